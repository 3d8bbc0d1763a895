//! No part of a request's body is ever taken for a request, whoever reads the body, or not, or
//! slowly, while the connection is ordered to move without end.
//!
//! Without condition 3 (see [`crate::connection`]) most of these fail; so do some if only bodies that
//! were dropped are watched, or only those that are alive. The rest show what conditions 1 and hyper
//! itself keep safe, and that it stays so.

use std::sync::atomic::Ordering::SeqCst;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::*;
use crate::connection::{Config, End, Order};

/// How many connections each of the tests tries it with.
const TRIES: u64 = 30;

/// A body that is nothing but requests. Longer than what is discarded and what hyper reads at once.
fn trap(length: usize) -> Vec<u8> {
    get("/admin")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(length)
        .collect()
}

/// The same in chunks, each of them a request.
fn chunked_trap(length: usize) -> Vec<u8> {
    let request = get("/admin");
    let chunk = format!("{:x}\r\n{request}\r\n", request.len());
    let mut bytes = chunk.repeat(length / chunk.len()).into_bytes();
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// Sends `bytes` in pieces, as long as the server takes them. Whether it took them all.
async fn pour(client: &mut Client<TcpStream>, bytes: &[u8], dice: &mut Dice) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((1 + dice.below(20_000)).min(rest.len()));
        if soon(client.stream.write_all(piece)).await.is_err() {
            return false;
        }
        rest = later;
        for _ in 0..dice.below(10) {
            tokio::task::yield_now().await;
        }
    }
    true
}

/// Posts a trap to `path` on new connections, over and over: a first piece of it with the head, the
/// rest after the answer (where the service answers before it has read everything).
///
/// Nothing may be answered but that post, and, if the connection still lives, one request after it.
async fn spring(path: &str, answers_first: bool, may_live: bool) {
    let mut moved_afterwards = 0;
    for seed in 1..=TRIES {
        let mut dice = Dice::new(seed);
        let length = 150_000 + dice.below(150_000);
        let (head, body) = if seed % 2 == 0 {
            (post(path, length), trap(length))
        } else {
            (post_chunked(path), chunked_trap(length))
        };
        let (mut client, host) = pair(Config::default()).await;
        let mover = host.move_without_end();
        let (first, rest) = body.split_at(dice.below(5_000));
        client.send([head.as_bytes(), first].concat()).await;
        let mut lives = true;
        if answers_first {
            assert!(client.receive().await.status < 300);
            lives = pour(&mut client, rest, &mut dice).await;
        } else {
            lives &= pour(&mut client, rest, &mut dice).await;
            assert_eq!(client.receive().await.status, 200);
        }
        let before = host.moves().total;
        if may_live {
            assert!(lives);
            assert_eq!(
                client.ask("/n/after").await.text(),
                "/n/after",
                "seed {seed}"
            );
            host.moved(before + 1).await;
            moved_afterwards += 1;
        } else {
            let _ = client.stream.shutdown().await;
            let answers = client.rest().await;
            assert_eq!(String::from_utf8_lossy(&answers), "", "seed {seed}");
        }
        assert_eq!(host.state.smuggled.load(SeqCst), 0, "seed {seed}");
        drop(client);
        assert!(matches!(host.end().await, End::Closed), "seed {seed}");
        mover.await.unwrap();
    }
    assert_eq!(moved_afterwards > 0, may_live);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_dropped_early_before_the_answer() {
    spring("/ignore", true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_dropped_early_while_the_answer_is_made() {
    spring("/ignore-late", true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_dropped_early_after_its_first_frame() {
    spring("/first-frame", true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_read_by_spawned_task() {
    spring("/spawn-read", true, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_read_slowly() {
    spring("/read-slowly", false, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_read_slowly_by_spawned_task() {
    spring("/spawn-read-slowly", true, true).await;
}

/// The task begins to read long after the answer; until it has read everything nothing moves.
#[tokio::test]
async fn smuggling_body_read_by_spawned_task_that_waits() {
    let (mut client, host) = pair(Config::default()).await;
    let body = trap(200_000);
    client
        .send(post("/spawn-read-gated", body.len()).as_bytes())
        .await;
    client.send(&body[..100_000]).await;
    assert_eq!(client.receive().await.status, 202);
    host.order(Order::HandOver);
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(host.moves().total, 0);
    }
    host.state.gate.add_permits(1);
    client.send(&body[100_000..]).await;
    // The end of the body, seen by a task that is not the connection's, sets the connection free.
    host.moved(1).await;
    assert_eq!(client.ask("/n/1").await.generation(), 1);
    assert_eq!(host.state.smuggled.load(SeqCst), 0);
}

/// A body that goes out again as the answer: both live and end together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_read_slowly_by_the_client_itself() {
    let (mut client, host) = pair(Config::default()).await;
    let mover = host.move_without_end();
    for _ in 0..20 {
        client.send(post_chunked("/echo-stream")).await;
        client.head().await;
        let request = get("/admin");
        for _ in 0..20 {
            client
                .send(format!("{:x}\r\n{request}\r\n", request.len()))
                .await;
            assert_eq!(client.chunk().await, request.as_bytes());
        }
        client.send("0\r\n\r\n").await;
        assert_eq!(client.chunk().await, b"");
    }
    assert_eq!(host.state.smuggled.load(SeqCst), 0);
    drop(client);
    host.end().await;
    mover.await.unwrap();
}

/// What the service did not read, but has arrived, is read by us: the connection stays alive, and
/// moves.
#[tokio::test]
async fn smuggling_body_dropped_early_but_short_is_discarded() {
    for path in ["/ignore", "/ignore-late", "/first-frame"] {
        let (mut client, host) = pair(Config::default()).await;
        for generation in 0..10 {
            let bytes = if generation % 2 == 0 {
                [post(path, 3000).into_bytes(), trap(3000)].concat()
            } else {
                [post_chunked(path).into_bytes(), chunked_trap(3000)].concat()
            };
            client.send(bytes).await;
            let answer = client.receive().await;
            assert_eq!(answer.generation(), generation, "{path}");
            assert!(!answer.says_close(), "{path}");
            host.hand_over().await;
        }
        assert_eq!(host.state.smuggled.load(SeqCst), 0, "{path}");
    }
}

/// The taint of an exchange ends with it: hyper calls the service again only after it has found the
/// end of the body itself.
#[tokio::test]
async fn smuggling_body_dropped_early_taints_only_its_exchange() {
    let (mut client, host) = pair(Config::default()).await;
    // We do not read on in a body that the client was to be asked for; hyper does, if it is there.
    let expect = "expect: 100-continue\r\n\r\nhello";
    client
        .send(post("/spawn-drop-gated", 5).replace("\r\n\r\n", "\r\n") + expect)
        .await;
    assert_eq!(client.receive().await.status, 202);
    host.order(Order::HandOver);
    host.state.gate.add_permits(1);
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(host.moves().total, 0);
    }
    // Still here, and still answering; then it moves.
    let answer = client.ask("/n/1").await;
    assert_eq!((answer.generation(), answer.says_close()), (0, false));
    host.moved(1).await;
    assert_eq!(client.ask("/n/2").await.generation(), 1);
}

/// A rest of a body that will not be read is the end of the connection, and the answer says so.
#[tokio::test]
async fn smuggling_body_dropped_early_and_long_is_announced() {
    for order in [Order::Serve, Order::HandOver] {
        let (mut client, host) = pair(Config::default()).await;
        host.order(order);
        client.send(post("/ignore-late", 10_000_000)).await;
        assert!(client.receive().await.says_close(), "{order:?}");
        client.closed().await;
        drop(client);
        assert!(matches!(host.end().await, End::Closed), "{order:?}");
    }
}

/// After an error in a body nobody knows where the next request begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_body_broken() {
    for path in ["/echo", "/spawn-read"] {
        let (mut client, host) = pair(Config::default()).await;
        let mover = host.move_without_end();
        let broken = format!("3\r\nabc\r\nnot a length\r\n{}", get("/admin"));
        client.send(post_chunked(path) + &broken).await;
        client.receive().await;
        assert_eq!(client.rest().await, b"", "{path}");
        assert_eq!(host.state.smuggled.load(SeqCst), 0, "{path}");
        drop(client);
        host.end().await;
        mover.await.unwrap();
    }
}
