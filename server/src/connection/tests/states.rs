//! One test for each state in which a move may be ordered.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

use super::support::*;
use crate::body::RequestBody;
use crate::connection::{Carried, Config, End, Order, serve};
use crate::io::Stream;

#[tokio::test]
async fn new_with_nothing_read() {
    let (mut client, host) = pair(Config::default()).await;
    host.hand_over().await;
    host.hand_over().await;
    let answer = client.ask("/n/1").await;
    assert_eq!((answer.text(), answer.generation()), ("/n/1", 2));
    assert_eq!(host.moves().with_leftover, 0);
}

#[tokio::test]
async fn idle_between_requests() {
    let (mut client, host) = pair(Config::default()).await;
    for generation in 0..5 {
        let answer = client.ask("/n/1").await;
        assert_eq!(
            (answer.generation(), answer.says_close()),
            (generation, false)
        );
        host.hand_over().await;
    }
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn half_a_first_head() {
    let (mut client, host) = pair(Config::default()).await;
    client.send("GET /n/7 HT").await;
    moved_with_leftover(&host).await;
    client.send("TP/1.1\r\nhost: te").await;
    moved_with_leftover(&host).await;
    client.send("st\r\n\r\n").await;
    assert_eq!(client.receive().await.text(), "/n/7");
}

#[tokio::test]
async fn half_a_later_head() {
    let (mut client, host) = pair(Config::default()).await;
    client.send(get("/n/1") + "GET /n/2 HTTP/1.1\r\nho").await;
    assert_eq!(client.receive().await.text(), "/n/1");
    moved_with_leftover(&host).await;
    client.send("st: test\r\n\r\n").await;
    assert_eq!(client.receive().await.text(), "/n/2");
}

/// Moves until some bytes travelled: until then they had not arrived.
async fn moved_with_leftover(host: &Host) {
    let before = host.moves().with_leftover;
    while host.moves().with_leftover == before {
        host.hand_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined() {
    let (mut client, host) = pair(Config::default()).await;
    let mover = host.move_without_end();
    for round in 0..50 {
        let many = (0..100).map(|number| get(&format!("/n/{round}-{number}")));
        client.send(many.collect::<String>()).await;
        for number in 0..100 {
            assert_eq!(
                client.receive().await.text(),
                format!("/n/{round}-{number}")
            );
        }
    }
    assert!(host.moves().with_leftover > 0, "{:?}", host.moves());
    drop(client);
    host.end().await;
    mover.await.unwrap();
}

/// The order stands while the request is served: the move follows the answer at once.
#[tokio::test]
async fn just_answered() {
    let (mut client, host) = pair(Config::default()).await;
    client.send(get("/wait")).await;
    while host.state.calls.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    host.order(Order::HandOver);
    host.state.gate.add_permits(1);
    let answer = client.receive().await;
    assert_eq!((answer.generation(), answer.says_close()), (0, false));
    host.moved(1).await;
    assert_eq!(client.ask("/n/1").await.generation(), 1);
}

#[tokio::test]
async fn an_order_that_was_taken_back() {
    let (mut client, host) = pair(Config::default()).await;
    client.send(get("/wait")).await;
    while host.state.calls.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    host.order(Order::HandOver);
    tokio::task::yield_now().await;
    host.order(Order::Serve);
    host.state.gate.add_permits(1);
    client.receive().await;
    assert_eq!(client.ask("/n/1").await.generation(), 0);
    assert_eq!(host.moves().total, 0);
}

#[tokio::test]
async fn streaming_is_finished_first() {
    let (mut client, host) = pair(Config::default()).await;
    let (sender, frames) = mpsc::channel(1);
    *host.state.frames.lock().unwrap() = Some(frames);
    client.send(get("/stream")).await;
    client.head().await;
    host.order(Order::HandOver);
    for _ in 0..20 {
        sender.send(Bytes::from_static(b"frame")).await.unwrap();
        assert_eq!(client.chunk().await, b"frame");
        assert_eq!(host.moves().total, 0);
    }
    drop(sender);
    assert_eq!(client.chunk().await, b"");
    host.moved(1).await;
    assert_eq!(client.ask("/n/1").await.generation(), 1);
}

/// The whole answer lies in hyper's buffer and nothing of the exchange lives, but the client does
/// not read: without condition 2 the connection would move and the answer would be cut short.
#[tokio::test]
async fn a_blocked_write_is_finished_first() {
    let (mut client, host) = pair(Config::default()).await;
    host.order(Order::HandOver);
    host.moved(1).await;
    client.send(get("/large")).await;
    client.head().await;
    host.order(Order::HandOver);
    for _ in 0..LARGE / 65536 / 2 {
        client.exact(65536).await;
        assert_eq!(host.moves().total, 1);
    }
    client.exact(LARGE / 2).await;
    host.moved(2).await;
    assert_eq!(client.ask("/n/1").await.generation(), 2);
}

#[tokio::test]
async fn http_10_is_answered_and_closed() {
    let (mut client, host) = pair(Config::default()).await;
    client.send("GET /wait HTTP/1.0\r\n\r\n").await;
    while host.state.calls.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    host.order(Order::HandOver);
    host.state.gate.add_permits(1);
    assert_eq!(client.receive().await.text(), "waited");
    client.closed().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

/// hyper's state after such an exchange is that of a new connection, so it may move.
#[tokio::test]
async fn http_10_with_keep_alive_moves() {
    let (mut client, host) = pair(Config::default()).await;
    for generation in 0..5 {
        client
            .send("GET /n/1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await;
        let answer = client.receive().await;
        assert_eq!(answer.headers["connection"], "keep-alive");
        assert_eq!(answer.generation(), generation);
        host.hand_over().await;
    }
    // And on to HTTP/1.1 in the same connection.
    assert_eq!(client.ask("/n/2").await.generation(), 5);
    host.hand_over().await;
    client.send("GET /n/3 HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.receive().await.text(), "/n/3");
    client.closed().await;
}

#[tokio::test]
async fn connection_close_is_answered_and_closed() {
    let (mut client, host) = pair(Config::default()).await;
    host.hand_over().await;
    client
        .send("GET /wait HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await;
    while host.state.calls.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    host.order(Order::HandOver);
    host.state.gate.add_permits(1);
    assert!(client.receive().await.says_close());
    client.closed().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answer() {
    for order in [
        Order::Serve,
        Order::HandOver,
        Order::LastAnswer,
        Order::Close,
    ] {
        let (mut client, host) = pair(Config::default()).await;
        client.send(get("/wait")).await;
        client.stream.shutdown().await.unwrap();
        while host.state.calls.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        host.order(order);
        host.state.gate.add_permits(1);
        assert_eq!(client.receive().await.text(), "waited", "{order:?}");
        client.closed().await;
        assert!(matches!(host.end().await, End::Closed), "{order:?}");
    }
}

#[tokio::test]
async fn expect_100_continue() {
    let (mut client, host) = pair(Config::default()).await;
    for generation in 0..5 {
        let expect = "expect: 100-continue\r\n\r\n";
        client
            .send(post("/echo", 5).replace("\r\n\r\n", "\r\n") + expect)
            .await;
        assert_eq!(client.head().await.status, 100);
        host.order(Order::HandOver);
        client.send("he").await;
        tokio::task::yield_now().await;
        assert_eq!(host.moves().total, generation);
        client.send("llo").await;
        let answer = client.receive().await;
        assert_eq!((answer.text(), answer.generation()), ("hello", generation));
        host.moved(generation + 1).await;
    }
}

#[tokio::test]
async fn head_requests_have_no_body() {
    let (mut client, host) = pair(Config::default()).await;
    for generation in 0..5 {
        client.send(get("/n/123").replace("GET", "HEAD")).await;
        let answer = client.head().await;
        assert_eq!(answer.headers["content-length"], "6");
        assert_eq!(answer.generation(), generation);
        host.hand_over().await;
    }
    assert_eq!(client.ask("/n/1").await.text(), "/n/1");
}

#[tokio::test]
async fn unix_sockets_move_too() {
    let (mut client, host) = unix();
    for generation in 0..5 {
        assert_eq!(client.ask("/n/1").await.generation(), generation);
        client.send("GET /n/2 HTTP/1.1\r\n").await;
        host.hand_over().await;
        client.send("host: test\r\n\r\n").await;
        assert_eq!(client.receive().await.text(), "/n/2");
    }
}

#[tokio::test]
async fn a_panic_costs_one_connection() {
    let (mut client, host) = pair(Config::default()).await;
    client.send(get("/panic")).await;
    assert_eq!(client.rest().await, b"");
    assert!(host.task.await.unwrap_err().is_panic());
}

#[tokio::test]
async fn the_last_order_stays_when_its_sender_is_gone() {
    let (client, server) = tcp().await;
    let mut client = Client::new(client);
    let (orders, receiver) = watch::channel(Order::Serve);
    let task = tokio::spawn(async move {
        let service = hyper::service::service_fn(async |_: Request<RequestBody>| {
            Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(b"/n/1"))))
        });
        let (stream, config) = (Stream::from(server), Config::default());
        serve(
            stream,
            Carried::default(),
            service,
            &config,
            receiver,
            &|_| {},
        )
        .await
    });
    assert!(!client.ask("/n/1").await.says_close());
    orders.send(Order::LastAnswer).unwrap();
    drop(orders);
    assert!(client.ask("/n/1").await.says_close());
    client.closed().await;
    drop(client);
    assert!(matches!(task.await.unwrap(), End::Closed));
}

/// An axum router takes our bodies as they are.
#[tokio::test]
async fn axum_routers_are_served() {
    let (client, server) = tcp().await;
    let mut client = Client::new(client);
    let (_orders, receiver) = watch::channel(Order::Serve);
    tokio::spawn(async move {
        let echo = axum::routing::post(async |body: String| body);
        let router: axum::Router = axum::Router::new().route("/echo", echo);
        let service = hyper_util::service::TowerToHyperService::new(router);
        let (stream, config) = (Stream::from(server), Config::default());
        serve(
            stream,
            Carried::default(),
            service,
            &config,
            receiver,
            &|_| {},
        )
        .await
    });
    client.send(post("/echo", 5) + "hello").await;
    assert_eq!(client.receive().await.text(), "hello");
}
