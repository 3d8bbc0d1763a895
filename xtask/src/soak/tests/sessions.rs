//! WebSocket sessions against servers that break them: each loss once, by its name.

use std::collections::VecDeque;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::websocket::{Message, Messages, Session};
use super::*;

const UPGRADED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What the stub does with the message that it has just read.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// The right answer, of generation 1.
    Right,
    /// A ping, and after its pong the right answer, a byte at a time.
    Slowly,
    /// None.
    Silence,
    /// None; the next one is answered as if this one had not been.
    Swallow,
    /// An answer that counts this much more.
    Ahead(u64),
    /// An answer to something else.
    Echo(&'static str),
    /// The right answer, twice.
    Twice,
    /// The right answer, of this generation.
    Of(u64),
    /// A text that is no answer.
    Text(&'static str),
    /// These bytes.
    Raw(&'static [u8]),
    /// FIN.
    End,
    /// FIN, within a frame.
    HalfFrame,
    Reset,
    /// A Close frame, 1012.
    Close,
    /// The right answer, then a Close frame.
    RightThenClose,
    /// The right answer, then FIN.
    RightThenEnd,
}

/// What the stub does: for each connection, for each message.
type Script = &'static [&'static [Reply]];

fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    [&[0x81, length], text.as_bytes()].concat()
}

/// A server that replies to the `n`th message of the `m`th connection by `replies[m][n]`; what is beyond is right.
async fn stub(replies: Script) -> (SocketAddr, UnboundedReceiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (opened, connections) = unbounded_channel();
    tokio::spawn(async move {
        for n in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let _ = opened.send(n);
            let replies = replies.get(n as usize).copied().unwrap_or_default();
            tokio::spawn(async move { drop(session(socket, replies).await) });
        }
    });
    (address, connections)
}

async fn session(mut socket: TcpStream, replies: &[Reply]) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    socket.write_all(UPGRADED.as_bytes()).await?;
    let (mut count, mut waiting) = (0, VecDeque::new());
    for n in 0.. {
        let message = match waiting.pop_front() {
            Some(message) => message,
            None => read(&mut socket).await?,
        };
        count += 1;
        let right = frame(&format!("{count} 1 {message}"));
        match replies.get(n).copied().unwrap_or(Reply::Right) {
            Reply::Right => socket.write_all(&right).await?,
            Reply::Slowly => {
                socket.write_all(b"\x89\x02hi").await?;
                // Messages that were under way come before the pong.
                while waiting.back().is_none_or(|last| last != "hi") {
                    waiting.push_back(read(&mut socket).await?);
                }
                waiting.pop_back();
                for byte in right {
                    socket.write_all(&[byte]).await?;
                    tokio::task::yield_now().await;
                }
            }
            Reply::Silence => {}
            Reply::Swallow => count -= 1,
            Reply::Ahead(by) => {
                count += by;
                socket
                    .write_all(&frame(&format!("{count} 1 {message}")))
                    .await?;
            }
            Reply::Echo(other) => {
                socket
                    .write_all(&frame(&format!("{count} 1 {other}")))
                    .await?;
            }
            Reply::Twice => socket.write_all(&[&*right, &*right].concat()).await?,
            Reply::Of(generation) => {
                let answer = frame(&format!("{count} {generation} {message}"));
                socket.write_all(&answer).await?;
            }
            Reply::Text(text) => socket.write_all(&frame(text)).await?,
            Reply::Raw(bytes) => socket.write_all(bytes).await?,
            Reply::End => return Ok(()),
            Reply::HalfFrame => return socket.write_all(&right[..3]).await,
            Reply::Reset => return socket.set_zero_linger(),
            Reply::Close => socket.write_all(b"\x88\x02\x03\xf4").await?,
            Reply::RightThenClose => {
                socket
                    .write_all(&[&*right, b"\x88\x02\x03\xf4"].concat())
                    .await?;
            }
            Reply::RightThenEnd => return socket.write_all(&right).await,
        }
    }
    Ok(())
}

/// The payload of the next frame; a Close ends the stub.
async fn read(socket: &mut TcpStream) -> std::io::Result<String> {
    let mut header = [0; 6];
    socket.read_exact(&mut header).await?;
    if header[0] == 0x88 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    assert_eq!(header[1] & 0x80, 0x80, "clients mask");
    let mut payload = vec![0; usize::from(header[1] & 0x7f)];
    socket.read_exact(&mut payload).await?;
    let mask = header[2..].iter().cycle();
    let text = payload
        .iter()
        .zip(mask)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    Ok(String::from_utf8(text).unwrap())
}

/// One session that sends a message every 10 ms, until `count` have ended; then what the book says.
async fn speak(replies: Script, count: u64, world_of: Duration) -> (Account, u64) {
    let (address, _connections) = stub(replies).await;
    let world = World::new(address, world_of);
    let messages = Messages::start(&world.client, 1, 100).await.unwrap();
    world.ended(count).await;
    let sessions = messages.finish().await.unwrap();
    let account = world.account();
    let row = &account.counts["websocket"];
    assert!(
        row.values().sum::<u64>() >= sessions.messages,
        "each message has an outcome"
    );
    (account, sessions.unbroken)
}

/// What became of six messages, each sent when the one before it was done with: the outcomes that are not
/// ok, the forced reconnects, and how many connections it took.
async fn losses(replies: Script) -> (Vec<(&'static str, u64)>, u64, u64) {
    let (address, _connections) = stub(replies).await;
    let world = World::new(address, Duration::ZERO);
    let session = Session::open(Arc::clone(&world.client)).await.unwrap();
    let (queue, due) = unbounded_channel();
    let running = tokio::spawn(session.run(due));
    for number in 0..6 {
        let due = Instant::now();
        queue.send(Message { number, due }).unwrap();
        world.ended(number + 1).await;
        if let Some(Reply::RightThenClose | Reply::RightThenEnd) = replies[0].get(number as usize) {
            world.forced_reconnect().await;
        }
    }
    drop(queue);
    let spoken = running.await.unwrap();
    let account = world.account();
    assert!(account.totals.ok > 0, "the session goes on: {account:?}");
    let lost = account.counts["websocket"]
        .iter()
        .filter(|(name, count)| **name != "ok" && **count > 0)
        .map(|(name, count)| (*name, *count))
        .collect();
    (lost, account.totals.forced_reconnects, spoken.connections)
}

#[tokio::test]
async fn right_answers_are_exact() {
    let (account, unbroken) = speak(&[&[Reply::Right, Reply::Slowly]], 20, Duration::ZERO).await;
    let totals = account.totals;
    assert!(totals.ok >= 10, "{totals:?}");
    assert_eq!((totals.lost, totals.forced_reconnects, unbroken), (0, 0, 1));
    assert_eq!(account.answers, totals.ok, "the server counts each");
    assert_eq!(account.latencies["websocket"].count, totals.ok);
}

#[tokio::test]
async fn distance_is_part_of_a_messages_latency() {
    let (account, unbroken) = speak(&[], 20, Duration::from_millis(40)).await;
    assert_eq!((account.totals.lost, unbroken), (0, 1));
    assert!(account.latencies["websocket"].min_ms >= 40.0, "{account:?}");
}

#[tokio::test]
async fn what_is_wrong_in_a_session_is_counted_once_and_the_session_goes_on() {
    use Reply::{Ahead, Echo, Of, Right, Silence, Swallow, Text, Twice};
    let cases: [(Script, &str); 7] = [
        (&[&[Right, Silence]], "timeout"),
        (&[&[Right, Ahead(1)]], "wrong-count"),
        (&[&[Right, Twice]], "wrong-count"),
        (&[&[Right, Echo("x")]], "wrong-echo"),
        (&[&[Right, Of(0)]], "old-generation"),
        (&[&[Right, Text("hello")]], "wrong-body"),
        (
            &[&[Right, Of(7), Of(7), Of(7), Right, Of(7)]],
            "old-generation",
        ),
    ];
    for (replies, name) in cases {
        assert_eq!(
            losses(replies).await,
            (vec![(name, 1)], 0, 1),
            "{replies:?}"
        );
    }
    // Two faults: the message that was swallowed, and the count that lacks it.
    let (lost, ..) = losses(&[&[Right, Swallow]]).await;
    assert_eq!(lost, [("timeout", 1), ("wrong-count", 1)]);
}

#[tokio::test]
async fn a_session_that_breaks_loses_its_message_and_is_a_forced_reconnect() {
    use Reply::{Close, End, HalfFrame, Reset, Right};
    let cases: [(Script, &str); 4] = [
        (&[&[Right, End]], "eof"),
        (&[&[Right, HalfFrame]], "truncated"),
        (&[&[Right, Reset]], "reset"),
        (&[&[Right, Close]], "close-frame"),
    ];
    for (replies, name) in cases {
        assert_eq!(
            losses(replies).await,
            (vec![(name, 1)], 1, 2),
            "{replies:?}"
        );
    }
}

#[tokio::test]
async fn a_session_that_ends_at_rest_is_a_forced_reconnect_and_loses_nothing() {
    const CASES: [Script; 2] = [
        &[&[Reply::Right, Reply::RightThenClose]],
        &[&[Reply::Right, Reply::RightThenEnd]],
    ];
    for replies in CASES {
        assert_eq!(losses(replies).await, (vec![], 1, 2), "{replies:?}");
    }
}

#[tokio::test]
async fn a_violation_ends_the_session_and_is_counted_once() {
    const CASES: [Script; 2] = [
        &[&[Reply::Raw(b"\x82\x01x")]],
        &[&[Reply::Raw(b"\x81\x85\0\0\0\0Hello")]],
    ];
    for replies in CASES {
        // It was the client that gave up: no forced reconnect.
        assert_eq!(
            losses(replies).await,
            (vec![("protocol", 1)], 0, 2),
            "{replies:?}"
        );
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_again_loses_what_is_due() {
    let (address, mut connections) = stub(&[&[Reply::End]]).await;
    let world = World::new(address, Duration::ZERO);
    let mut client = (*world.client).clone();
    // Room for one connection: the next attempt fails while the book holds the first open.
    client.max_open = 1;
    let client = Arc::new(client);
    // The session is open; its first message, which ends it, is due in 50 ms.
    let messages = Messages::start(&client, 1, 20).await.unwrap();
    client
        .open
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    connections.recv().await.unwrap();
    world.ended(5).await;
    let sessions = messages.finish().await.unwrap();
    let account = world.account();
    let row = &account.counts["websocket"];
    assert_eq!((row["eof"], row["client"]), (1, sessions.messages - 1));
    assert_eq!(
        account.totals.forced_reconnects, 1,
        "once, whatever follows"
    );
}

#[tokio::test]
async fn a_server_without_sessions_is_named_before_the_soak_begins() {
    const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    let world = World::against(&[&[Do::Read, Do::Write(NOT_FOUND), Do::Hang]]).await;
    let err = Messages::start(&world.client, 1, 100).await.unwrap_err();
    let text = format!("{err:#}");
    assert!(
        text.contains("--websockets 0") && text.contains("404"),
        "{text}"
    );
}
