//! Connections that the server closes between two requests, and the distance that makes it a race.

use tokio::sync::mpsc;

use super::super::client::Exchange;
use super::*;

#[tokio::test]
async fn a_resting_connection_that_is_closed_is_counted_once_and_loses_nothing() {
    for ending in [
        Do::Wait(Duration::ZERO),
        Do::Reset,
        Do::Write("HTTP/1.1 408 Late\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let rest = Do::Wait(Duration::from_millis(30));
        let world = World::against(&[&[Do::Read, Do::Write(HELLO), rest, ending]]).await;
        let (verdict, connection) = world.ask(Kind::KeepAlive).await;
        assert_eq!(verdict.outcome, Outcome::Ok);
        let mut connection = connection.expect("still open");
        world.closed(1).await;
        assert!(!connection.is_open());
        let exchange = world
            .client
            .exchange(&mut connection, Ask::plain(Kind::KeepAlive))
            .await;
        assert!(matches!(exchange, Exchange::Unsent), "{exchange:?}");
        assert!(
            world
                .client
                .rest(connection, Kind::KeepAlive)
                .await
                .is_none()
        );
        let account = world.closed(1).await;
        assert_eq!(account.totals.lost, 0);
    }
}

#[tokio::test]
async fn a_connection_opened_in_advance_and_closed_is_counted() {
    let world = World::against(&[&[Do::Wait(Duration::from_millis(20))]]).await;
    let connection = world.client.connect(Kind::Idle).await.unwrap();
    let _connection = world
        .client
        .rest(connection, Kind::Idle)
        .await
        .expect("still open");
    assert_eq!(world.closed(1).await.losses[0].kind, "idle");
}

#[tokio::test]
async fn an_answer_that_says_close_is_counted_once_unless_it_was_asked_for() {
    const CLOSING: &str = "HTTP/1.1 200 OK\r\nx-generation: 1\r\nConnection: Close\r\ncontent-length: 16\r\n\r\nhello world eee\n";
    let world = World::against(&[&[Do::Read, Do::Write(CLOSING)]]).await;
    let (verdict, connection) = world.ask(Kind::KeepAlive).await;
    assert_eq!(verdict.outcome, Outcome::Ok);
    assert!(connection.is_none());
    world.closed(1).await;
    let mut connection = world.connect().await;
    let closing = Ask {
        kind: Kind::NewConnection,
        variant: true,
    };
    assert_eq!(
        world
            .client
            .first_exchange(&mut connection, closing)
            .await
            .outcome,
        Outcome::Ok
    );
    drop(connection);
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.closed(1).await;
}

#[tokio::test]
async fn a_connection_closed_right_after_the_answer_is_counted_once() {
    let world = World::against(&[&[Do::Read, Do::Write(HELLO)]]).await;
    for round in 1..=20 {
        let (verdict, _connection) = world.ask(Kind::KeepAlive).await;
        assert_eq!(verdict.outcome, Outcome::Ok);
        world.closed(round).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.closed(20).await;
}

/// The race that loopback hides: a server that closes a resting connection just before the
/// request comes. Near, the client has seen it; far, it has sent the request already.
#[tokio::test]
async fn distance_brings_the_keep_alive_race_to_light() {
    let script: &[&[Do]] = &[&[
        Do::Read,
        Do::Write(HELLO),
        Do::Wait(Duration::from_millis(200)),
    ]];
    for (round_trip, lost) in [(Duration::ZERO, false), (Duration::from_millis(200), true)] {
        let world = World::new(fake(script).await, round_trip);
        let (verdict, connection) = world.ask(Kind::KeepAlive).await;
        assert_eq!(verdict.outcome, Outcome::Ok);
        let mut connection = connection.unwrap();
        // The server closes 200 ms after its answer; the client is ready for the next request half
        // a round trip after that answer, and sends it 50 ms after the closing: 50 ms
        // before the far one hears of that.
        let since_answer = round_trip / 2;
        tokio::time::sleep(Duration::from_millis(250) - since_answer).await;
        let exchange = world
            .client
            .exchange(&mut connection, Ask::plain(Kind::KeepAlive))
            .await;
        match exchange {
            Exchange::Unsent => assert!(!lost, "the FIN was still on its way"),
            Exchange::Done(verdict) => {
                assert!(lost, "{verdict:?}");
                assert!(
                    matches!(verdict.outcome, Outcome::Eof | Outcome::Reset),
                    "{verdict:?}"
                );
            }
        }
    }
}

/// Reports when it accepted a connection, and when the first byte came on it.
async fn witness() -> (SocketAddr, mpsc::UnboundedReceiver<(Instant, Instant)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, report) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let accepted = Instant::now();
        socket.read_u8().await.unwrap();
        seen.send((accepted, Instant::now())).unwrap();
    });
    (address, report)
}

#[tokio::test]
async fn the_client_sees_and_acts_late_on_a_real_socket() {
    let (address, mut report) = witness().await;
    let world = World::new(address, Duration::from_millis(60));
    let began = Instant::now();
    let mut connection = world.connect().await;
    let connected = began.elapsed();
    assert!(
        connected >= Duration::from_millis(60),
        "a connect is a round trip: {connected:?}"
    );
    let sent = Instant::now();
    let _ = world
        .client
        .exchange(&mut connection, Ask::plain(Kind::KeepAlive))
        .await;
    let (accepted, read) = report.recv().await.unwrap();
    assert!(accepted - began >= Duration::from_millis(30));
    assert!(read - sent >= Duration::from_millis(30));
}
