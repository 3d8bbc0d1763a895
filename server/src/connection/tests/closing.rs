//! Connections that cannot be handed over: nothing that has arrived is lost, nothing is reset.

use std::io::Write as _;
use std::sync::atomic::Ordering::SeqCst;

use tokio::io::AsyncReadExt;

use super::support::*;
use crate::connection::{Config, End, Order};

async fn called(host: &Host) {
    while host.state.calls.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

/// The client's socket as the kernel has it: writing to it lets no other task run.
fn write_at_once(client: &Client<tokio::net::TcpStream>, bytes: &str) {
    let fd = std::os::fd::AsFd::as_fd(&client.stream)
        .try_clone_to_owned()
        .unwrap();
    std::net::TcpStream::from(fd)
        .write_all(bytes.as_bytes())
        .unwrap();
}

#[tokio::test]
async fn close_an_idle_connection() {
    for requests in 0..3 {
        let (mut client, host) = pair(Config::default()).await;
        for _ in 0..requests {
            client.ask("/n/1").await;
        }
        host.order(Order::Close);
        client.closed().await;
        drop(client);
        assert!(matches!(host.end().await, End::Closed));
    }
}

/// One thread, no point between the write and the order where the server could run: the request is
/// in the kernel, and tokio does not know of it yet.
#[tokio::test]
async fn close_with_a_request_unread_in_the_kernel() {
    for order in [Order::Close, Order::LastAnswer] {
        for requests in 0..3 {
            let (mut client, host) = pair(Config::default()).await;
            for _ in 0..requests {
                client.ask("/n/1").await;
            }
            write_at_once(&client, &get("/n/last"));
            host.order(order);
            let answer = client.receive().await;
            assert_eq!(
                (answer.text(), answer.says_close()),
                ("/n/last", true),
                "{order:?}"
            );
            client.closed().await;
            drop(client);
            assert!(matches!(host.end().await, End::Closed));
        }
    }
}

#[tokio::test]
async fn close_with_part_of_a_head_unread_in_the_kernel() {
    let (mut client, host) = pair(Config::default()).await;
    client.ask("/n/1").await;
    write_at_once(&client, "GET /n/2 HTTP/1.1\r\n");
    host.order(Order::Close);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    client.send("host: test\r\n\r\n").await;
    assert!(client.receive().await.says_close());
    client.closed().await;
}

#[tokio::test]
async fn close_with_part_of_a_head_in_hypers_buffer() {
    // The first has read it ahead, the second has been told of it, the third is a first head.
    for before in [get("/n/1") + "GET /n/2 HT", get("/n/1"), String::new()] {
        let (mut client, host) = pair(Config::default()).await;
        client.send(&before).await;
        if !before.is_empty() {
            client.receive().await;
        }
        if !before.ends_with("HT") {
            client.send("GET /n/2 HT").await;
        }
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        host.order(Order::Close);
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        client.send("TP/1.1\r\nhost: test\r\n\r\n").await;
        let answer = client.receive().await;
        assert_eq!((answer.text(), answer.says_close()), ("/n/2", true));
        client.closed().await;
        drop(client);
        assert!(matches!(host.end().await, End::Closed));
    }
}

/// That head never comes to its end.
#[tokio::test]
async fn close_with_part_of_a_head_times_out() {
    let header_timeout = std::time::Duration::from_millis(200);
    let (mut client, host) = pair(Config {
        header_timeout,
        ..Config::default()
    })
    .await;
    client.send(get("/n/1") + "GET /n/2 HT").await;
    client.receive().await;
    host.order(Order::Close);
    assert_eq!(client.receive().await.status, 408);
    client.closed().await;
}

/// Blank lines before a request line are not part of a request.
#[tokio::test]
async fn close_with_blank_lines_in_hypers_buffer() {
    let (mut client, host) = pair(Config::default()).await;
    client.send(get("/n/1") + "\r\n").await;
    client.receive().await;
    host.order(Order::Close);
    client.closed().await;
}

#[tokio::test]
async fn a_request_under_way_is_answered_with_close() {
    for order in [Order::LastAnswer, Order::Close] {
        let (mut client, host) = pair(Config::default()).await;
        client.send(get("/wait")).await;
        called(&host).await;
        host.order(order);
        host.state.gate.add_permits(1);
        let answer = client.receive().await;
        assert_eq!(
            (answer.text(), answer.says_close()),
            ("waited", true),
            "{order:?}"
        );
        client.closed().await;
        drop(client);
        assert!(matches!(host.end().await, End::Closed), "{order:?}");
    }
}

#[tokio::test]
async fn an_upload_under_way_is_answered_with_close() {
    for order in [Order::LastAnswer, Order::Close] {
        let (mut client, host) = pair(Config::default()).await;
        client.send(post("/echo", 10) + "hello").await;
        called(&host).await;
        host.order(order);
        tokio::task::yield_now().await;
        client.send("world").await;
        let answer = client.receive().await;
        assert_eq!(
            (answer.text(), answer.says_close()),
            ("helloworld", true),
            "{order:?}"
        );
        client.closed().await;
    }
}

/// Its head has gone out without `Connection: close`.
#[tokio::test]
async fn a_streaming_answer_is_finished() {
    for order in [Order::LastAnswer, Order::Close] {
        let (mut client, host) = pair(Config::default()).await;
        let (sender, frames) = tokio::sync::mpsc::channel(1);
        *host.state.frames.lock().unwrap() = Some(frames);
        client.send(get("/stream")).await;
        client.head().await;
        host.order(order);
        for _ in 0..5 {
            sender.send("frame".into()).await.unwrap();
            assert_eq!(client.chunk().await, b"frame");
        }
        drop(sender);
        assert_eq!(client.chunk().await, b"");
        if order == Order::LastAnswer {
            assert!(client.ask("/n/1").await.says_close());
        }
        client.closed().await;
    }
}

#[tokio::test]
async fn last_answer_waits_for_a_request() {
    let (mut client, host) = pair(Config::default()).await;
    assert!(!client.ask("/n/1").await.says_close());
    host.order(Order::LastAnswer);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(!host.task.is_finished());
    assert!(client.ask("/n/2").await.says_close());
    client.closed().await;
}

#[tokio::test]
async fn last_answer_turns_into_close() {
    let (mut client, host) = pair(Config::default()).await;
    client.ask("/n/1").await;
    host.order(Order::LastAnswer);
    tokio::task::yield_now().await;
    host.order(Order::Close);
    client.closed().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

/// A client of HTTP/1.0 that asked for keep-alive is told that it does not get it.
#[tokio::test]
async fn http_10_with_keep_alive_is_closed() {
    for order in [Order::LastAnswer, Order::Close] {
        let (mut client, host) = pair(Config::default()).await;
        client
            .send("GET /wait HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await;
        called(&host).await;
        host.order(order);
        host.state.gate.add_permits(1);
        let answer = client.receive().await;
        assert_eq!(
            (answer.text(), &*answer.headers["connection"]),
            ("waited", "close")
        );
        client.closed().await;
    }
}

/// Waits for the server's end of stream, and reads nothing.
async fn server_has_closed(stream: &tokio::net::TcpStream) {
    use tokio::io::Interest;
    loop {
        let ready = stream.ready(Interest::READABLE).await.expect("ready");
        if ready.is_read_closed() {
            return;
        }
        // What can be read already: the end behind it is another event.
        let _ = stream.try_io(Interest::READABLE, || -> std::io::Result<()> {
            Err(std::io::ErrorKind::WouldBlock.into())
        });
    }
}

/// The client goes on sending after the request whose answer is the last: without a linger the
/// close would reset the connection, and the client might lose the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_answer_is_not_destroyed_by_a_reset() {
    for _ in 0..20 {
        let (mut client, host) = pair(Config::default()).await;
        client.send(get("/wait")).await;
        called(&host).await;
        host.order(Order::Close);
        client.send(get("/n/more").repeat(1000)).await;
        host.state.gate.add_permits(1);
        // The answer is on its way, and the server has closed its side.
        server_has_closed(&client.stream).await;
        client.send(get("/n/more").repeat(10)).await;
        // The order may find the server in the middle of the requests: some more are answered then.
        let mut answer = client.receive().await;
        assert_eq!(answer.text(), "waited");
        while answer.headers.get("connection").map(String::as_str) != Some("close") {
            answer = client.receive().await;
        }
        client.closed().await;
    }
}

/// A client that neither reads nor closes does not hold us up for long.
#[tokio::test]
async fn lingering_has_an_end() {
    let (mut client, host) = pair(Config::default()).await;
    client.ask("/n/1").await;
    host.order(Order::Close);
    let since = tokio::time::Instant::now();
    assert!(matches!(host.end().await, End::Closed));
    assert!(since.elapsed() >= crate::linger::LINGER_TIME);
    drop(client);
}

#[tokio::test]
async fn too_large_a_head_is_answered_without_a_reset() {
    let (mut client, host) = pair(Config {
        max_header_size: 1000,
        ..Config::default()
    })
    .await;
    client
        .send(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000)))
        .await;
    assert_eq!(client.receive().await.status, 431);
    client.closed().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

/// hyper keeps the possibility of an upgrade from an earlier request, and would hand the socket to
/// nobody when the connection ends.
#[tokio::test]
async fn an_upgrade_that_was_not_accepted_does_not_end_in_a_reset() {
    let (mut client, host) = pair(Config::default()).await;
    let upgrade = "connection: upgrade\r\nupgrade: h2c\r\n\r\n";
    client
        .send(get("/n/1").replace("\r\n\r\n", "\r\n") + upgrade)
        .await;
    assert_eq!(client.receive().await.status, 200);
    host.order(Order::LastAnswer);
    client.send(get("/n/2").repeat(2000)).await;
    assert!(client.receive().await.says_close());
    client.closed().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn cut_an_idle_connection() {
    let (mut client, host) = pair(Config::default()).await;
    client.ask("/n/1").await;
    host.order(Order::Cut);
    client.closed().await;
    assert!(matches!(host.end().await, End::Cut { request: None }));
}

#[tokio::test]
async fn cut_names_the_request() {
    let upload = post("/spawn-read?secret=1", 10) + "hello";
    for (request, name) in [
        (get("/wait?secret=1"), "GET /wait"),
        (get("/stream"), "GET /stream"),
        // Its answer is done, its body is not.
        (upload, "POST /spawn-read"),
    ] {
        let (mut client, host) = pair(Config::default()).await;
        let (_sender, frames) = tokio::sync::mpsc::channel(1);
        *host.state.frames.lock().unwrap() = Some(frames);
        client.send(request).await;
        called(&host).await;
        if name != "GET /wait" {
            client.head().await;
        }
        host.order(Order::Cut);
        let end = host.end().await;
        let End::Cut {
            request: Some(request),
        } = end
        else {
            panic!("{name}: {end:?}");
        };
        assert_eq!(request, name);
        // Closed at once, whoever still holds the request's body.
        client.rest().await;
    }
}

#[tokio::test]
async fn cut_ends_the_linger() {
    let (mut client, host) = pair(Config::default()).await;
    host.order(Order::Close);
    let mut byte = [0];
    assert_eq!(soon(client.stream.read(&mut byte)).await.unwrap(), 0);
    let since = tokio::time::Instant::now();
    host.order(Order::Cut);
    assert!(matches!(host.end().await, End::Closed));
    assert!(since.elapsed() < crate::linger::LINGER_TIME / 2);
}
