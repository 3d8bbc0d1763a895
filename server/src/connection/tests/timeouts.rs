//! Timeouts strike at the right time, and a move gives nobody a second chance.

use std::time::Duration;

use tokio::time::Instant;

use super::support::*;
use crate::clock::LOOK_AFTER;
use crate::connection::{Carried, Config, End, Order, Rested, serve};
use crate::io::Stream;

fn config(header: u64, idle: u64) -> Config {
    Config {
        header_timeout: Duration::from_millis(header),
        idle_timeout: Duration::from_millis(idle),
        ..Config::default()
    }
}

/// Waits for the connection's end while its client does nothing; it must come after `timeout`.
async fn ends_after(client: &mut Client<tokio::net::TcpStream>, since: Instant, timeout: u64) {
    client.closed().await;
    assert!(
        since.elapsed() >= Duration::from_millis(timeout),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn a_connection_that_sends_nothing() {
    let since = Instant::now();
    let (mut client, host) = pair(config(100, 300)).await;
    ends_after(&mut client, since, 300).await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn idle_after_requests() {
    let (mut client, _host) = pair(config(100, 300)).await;
    for _ in 0..3 {
        // Each answer begins the wait anew, and the shorter header timeout does not count.
        client.ask("/n/1").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let since = Instant::now();
    client.ask("/n/1").await;
    ends_after(&mut client, since, 300).await;
}

/// No timeout runs while a request is served.
#[tokio::test]
async fn a_slow_service() {
    let (mut client, host) = pair(config(50, 50)).await;
    client.send(get("/wait")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.state.gate.add_permits(1);
    assert_eq!(client.receive().await.text(), "waited");
    client.closed().await;
}

#[tokio::test]
async fn half_a_first_head() {
    let since = Instant::now();
    let (mut client, host) = pair(config(200, 10_000)).await;
    client.send("GET / HT").await;
    let answer = client.receive().await;
    assert_eq!((answer.status, answer.says_close()), (408, true));
    assert!(answer.headers.contains_key("date"));
    ends_after(&mut client, since, 200).await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

#[tokio::test]
async fn half_a_later_head() {
    let (mut client, _host) = pair(config(200, 10_000)).await;
    client.ask("/n/1").await;
    client.send("GET / HT").await;
    assert_eq!(client.receive().await.status, 408);
    client.closed().await;
}

/// hyper has read it along with the request before, which nobody outside can see at once.
#[tokio::test]
async fn half_a_head_that_was_read_ahead() {
    let since = Instant::now();
    let (mut client, _host) = pair(config(200, 10_000)).await;
    client.send(get("/n/1") + "GET / HT").await;
    assert_eq!(client.receive().await.status, 200);
    assert_eq!(client.receive().await.status, 408);
    ends_after(&mut client, since, 200).await;
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn half_a_head_that_was_read_ahead_and_moved() {
    let since = Instant::now();
    let (mut client, host) = pair(config(200, 10_000)).await;
    client.send(get("/n/1") + "GET / HT").await;
    assert_eq!(client.receive().await.status, 200);
    host.hand_over().await;
    assert_eq!(host.moves().with_leftover, 1);
    assert_eq!(client.receive().await.status, 408);
    ends_after(&mut client, since, 200).await;
}

/// A head in time, in spite of pauses longer than what is left of nothing.
#[tokio::test]
async fn a_slow_head_in_time() {
    let (mut client, host) = pair(config(10_000, 100)).await;
    for piece in ["GET /n/", "5 HTTP/1.1\r\n", "host: test\r\n", "\r\n"] {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(120)).await;
        if piece != "\r\n" {
            host.hand_over().await;
        }
    }
    assert_eq!(client.receive().await.text(), "/n/5");
}

/// A byte at a time, and a move after each: the time runs from the first byte.
#[tokio::test]
async fn the_header_timeout_survives_moves() {
    let since = Instant::now();
    let (mut client, host) = pair(config(1000, 60_000)).await;
    client.send("GET /").await;
    loop {
        assert!(since.elapsed() < PATIENCE, "no timeout");
        client.send("x").await;
        host.order(Order::HandOver);
        let pause = Duration::from_millis(20);
        if tokio::time::timeout(pause, client.stream.readable())
            .await
            .is_ok()
        {
            break;
        }
    }
    assert!(host.moves().total >= 10, "{:?}", host.moves());
    assert_eq!(client.receive().await.status, 408);
    ends_after(&mut client, since, 1000).await;
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}

/// Moves all the time, faster than the timeout: if it began anew each time, it would never strike.
#[tokio::test]
async fn timeouts_survive_moves_without_end() {
    for (bytes, status) in [("", 0), ("GET / HT", 408)] {
        let since = Instant::now();
        let (mut client, host) = pair(config(300, 300)).await;
        client.send(bytes).await;
        let mover = host.move_without_end();
        if status > 0 {
            assert_eq!(client.receive().await.status, status);
        }
        ends_after(&mut client, since, 300).await;
        assert!(host.moves().total > 20, "{:?}", host.moves());
        drop(client);
        assert!(matches!(host.end().await, End::Closed));
        mover.await.unwrap();
    }
}

/// Serves a connection that asks `before` times, and then says nothing, until it is left to rest. The time is tokio's own.
async fn until_it_rests(before: usize) -> (Client<tokio::net::TcpStream>, Rested) {
    let (client, server) = tcp().await;
    let mut client = Client::new(client);
    let began = Instant::now();
    let orders = tokio::sync::watch::Sender::new(Order::Serve);
    let app = App {
        state: State::new(),
        generation: 0,
    };
    let (stream, config) = (Stream::from(server), Config::default());
    let (carried, watch) = (Carried::default(), orders.subscribe());
    let serving = serve(stream, carried, app, &config, watch, &|_| {});
    let speaking = async {
        for _ in 0..before {
            client.ask("/n/1").await;
        }
    };
    let (end, ()) = tokio::join!(serving, speaking);
    let End::Rests(rested) = end else {
        panic!("{end:?} after {before} requests, at {:?}", began.elapsed());
    };
    (client, rested)
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_for_long_is_left_to_rest() {
    for before in [0, 1, 3] {
        let (client, rested) = until_it_rests(before).await;
        let waited = rested.carried.spent.waited;
        assert!(
            waited >= LOOK_AFTER && waited < LOOK_AFTER * 2,
            "{waited:?} after {before} requests"
        );
        assert!(rested.carried.is_nothing());
        drop(client);
    }
}

/// Nobody rests who is to go: the order would not be heard in time.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_last_answer_does_not_rest() {
    let (client, server) = tcp().await;
    let state = State::new();
    let host = Host::start_with(
        Stream::from(server),
        Config::default(),
        Order::LastAnswer,
        state,
    );
    tokio::time::sleep(LOOK_AFTER * 3).await;
    let mut client = Client::new(client);
    assert!(client.ask("/n/1").await.says_close());
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
}
