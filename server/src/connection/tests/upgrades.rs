//! Upgraded connections live on in the application; the connection's task waits for their end.

use super::support::*;
use crate::connection::{Config, End, Order};

async fn upgraded() -> (Client<tokio::net::TcpStream>, Host) {
    let (mut client, host) = pair(Config::default()).await;
    client.ask("/n/1").await;
    host.hand_over().await;
    let upgrade = "connection: upgrade\r\nupgrade: echo\r\n\r\n";
    client
        .send(get("/upgrade?secret=1").replace("\r\n\r\n", "\r\n") + upgrade)
        .await;
    let answer = client.head().await;
    assert_eq!(
        (answer.status, &*answer.headers["connection"]),
        (101, "upgrade")
    );
    client.send("hello").await;
    assert_eq!(client.exact(5).await, b"hello");
    (client, host)
}

#[tokio::test]
async fn orders_but_the_last_do_not_touch_it() {
    let (mut client, host) = upgraded().await;
    for order in [
        Order::HandOver,
        Order::LastAnswer,
        Order::Close,
        Order::Serve,
    ] {
        host.order(order);
        for _ in 0..20 {
            client.send("more").await;
            assert_eq!(client.exact(4).await, b"more");
        }
    }
    assert_eq!(host.moves().total, 1);
    assert!(!host.task.is_finished());
}

#[tokio::test]
async fn its_end_ends_the_connection() {
    let (client, host) = upgraded().await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn it_may_begin_while_the_process_drains() {
    for order in [Order::LastAnswer, Order::Close] {
        let (mut client, host) = pair(Config::default()).await;
        client.send("GET /upgrade HTTP/1.1\r\nhost: test\r\n").await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        host.order(order);
        client
            .send("connection: upgrade\r\nupgrade: echo\r\n\r\nahead")
            .await;
        assert_eq!(client.head().await.status, 101);
        assert_eq!(client.exact(5).await, b"ahead");
    }
}

/// The application waits in a read that would never end; it gets an error.
#[tokio::test]
async fn cut_reaches_the_application() {
    let (mut client, host) = upgraded().await;
    let state = std::sync::Arc::clone(&host.state);
    host.order(Order::Cut);
    let end = host.end().await;
    let End::Cut {
        request: Some(request),
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(request, "GET /upgrade");
    // Given when the echo has ended.
    soon(state.gate.acquire()).await.unwrap().forget();
    client.rest().await;
}

/// Likewise when the connection's task is gone without an order.
#[tokio::test]
async fn the_end_of_the_task_reaches_the_application() {
    let (mut client, host) = upgraded().await;
    host.task.abort();
    soon(host.state.gate.acquire()).await.unwrap().forget();
    client.rest().await;
}
