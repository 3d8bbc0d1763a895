use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};

use super::*;
use crate::{connection::Order, exchange::Shared, io::Io, service::ConnectionInfo};

/// A client's socket, a session, and who orders.
async fn session() -> (UnixStream, WebSocket, watch::Sender<Order>) {
    let (client, server) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&server, 4096).unwrap();
    let (sender, orders) = watch::channel(Order::Serve);
    let shared = Shared::new();
    shared.upgrade();
    let io = Io::new(server.into(), Bytes::new(), Arc::clone(&shared));
    let info = ConnectionInfo::new(None, "main".into(), orders.clone());
    let connection = Upgraded::new(io, info, Wants::new(orders));
    (client, WebSocket::new(connection).await, sender)
}

/// A client's frame, masked by zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x80 | u8::try_from(payload.len()).unwrap();
    [&[first, length, 0, 0, 0, 0], payload].concat()
}

/// Polls `next` until it has nothing to do.
async fn is_idle(socket: &mut WebSocket) -> bool {
    tokio::time::timeout(Duration::from_millis(50), socket.next())
        .await
        .is_err()
}

#[tokio::test]
async fn an_answer_to_a_ping_that_could_not_be_written_yet_does_not_stay_behind() {
    let (mut client, mut socket, orders) = session().await;
    // The client does not read, until the answers fill the socket.
    let mut last = 0_u64;
    for _ in 0..200 {
        last += 1;
        let ping = [&last.to_be_bytes()[..], &[0; 100]].concat();
        client.write_all(&frame(0x89, &ping)).await.unwrap();
    }
    assert!(is_idle(&mut socket).await);
    orders.send_replace(Order::HandOver);
    assert!(
        is_idle(&mut socket).await,
        "given up with an unwritten answer"
    );
    let reading = tokio::spawn(async move {
        let mut pong = [0; 110];
        loop {
            client.read_exact(&mut pong).await.unwrap();
            if pong[2..10] == last.to_be_bytes() {
                return;
            }
        }
    });
    assert_eq!(socket.next().await.unwrap(), Event::GiveUp);
    reading.await.unwrap();
}

/// Whole messages that are there are answered before the client is told that there will be no more.
#[tokio::test]
async fn all_that_has_arrived_comes_before_the_farewell() {
    let (mut client, mut socket, orders) = session().await;
    client
        .write_all(&frame(0x81, b"x").repeat(500))
        .await
        .unwrap();
    orders.send_replace(Order::LastAnswer);
    for _ in 0..500 {
        let event = socket.next().await.unwrap();
        assert_eq!(event, Event::Message(Message::Text("x".to_owned())));
    }
    let serving = tokio::spawn(async move { socket.next().await.unwrap() });
    let mut close = [0; 4];
    client.read_exact(&mut close).await.unwrap();
    assert_eq!(close[..], [0x88, 17, 0x03, 0xf4]);
    // What crosses the word on its way is not the application's.
    client.write_all(&frame(0x81, b"late")).await.unwrap();
    client.write_all(&frame(0x88, &[0x03, 0xf4])).await.unwrap();
    assert_eq!(serving.await.unwrap(), Event::Closed);
}

#[tokio::test]
async fn only_a_session_at_rest_is_given_up() {
    let (mut client, mut socket, orders) = session().await;
    orders.send_replace(Order::HandOver);
    client.write_all(&frame(0x01, b"be")).await.unwrap();
    // It rests until that has been read.
    assert_eq!(socket.next().await.unwrap(), Event::GiveUp);
    orders.send_replace(Order::Serve);
    assert!(is_idle(&mut socket).await);
    orders.send_replace(Order::HandOver);
    assert!(is_idle(&mut socket).await, "in the middle of a message");
    assert!(!socket.is_at_rest());
    client.write_all(&frame(0x80, b"gun")).await.unwrap();
    let event = socket.next().await.unwrap();
    assert_eq!(event, Event::Message(Message::Text("begun".to_owned())));
    assert_eq!(socket.next().await.unwrap(), Event::GiveUp);
    socket.give_up("session").unwrap().0.unwrap();

    let (mut client, mut socket, _orders) = session().await;
    client.write_all(&frame(0x01, b"be")).await.unwrap();
    assert!(is_idle(&mut socket).await);
    assert!(matches!(socket.give_up(""), Err(Error::NotAtRest)));
}
