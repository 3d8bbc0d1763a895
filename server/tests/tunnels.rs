//! Upgraded connections of other kinds, over real reloads: axum's own WebSocket extractor, tunnels that a CONNECT begins, and
//! sessions on a Unix socket.

#[path = "support/application.rs"]
mod application;
mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use application::{begin_reload, connect, reload, start};
use support::{
    Service,
    client::Client,
    ws::{CLOSE, HANDSHAKE, TEXT, Ws, frame, text},
};

#[test]
fn program() {
    application::play();
}

const LONG_DRAIN: &str = "chat/1\n20000";

fn client(service: &Service) -> Client {
    Client::connect(service.address("main").parse().expect("an address"))
}

fn unix_client(service: &Service) -> Client<UnixStream> {
    let address = service.address("unix");
    Client::connect_unix(address.strip_prefix("unix:").expect("a path").as_ref())
}

/// Asks for a tunnel, with the first bytes for its other end behind the request.
fn tunnel(mut client: Client, authority: &str, bytes: &str) -> Client {
    client.send(format!(
        "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n{bytes}"
    ));
    let answer = client.head();
    assert_eq!(answer.status, 200, "{answer:?}");
    for name in ["content-length", "transfer-encoding", "connection"] {
        assert_eq!(answer.header(name), None, "{answer:?}");
    }
    client
}

/// Sends a byte on what is not HTTP's any more, and reads one.
fn byte<S: Read + Write>(stream: &mut std::io::BufReader<S>, byte: u8) -> u8 {
    stream.get_mut().write_all(&[byte]).expect("send");
    let mut answer = [0];
    stream.read_exact(&mut answer).expect("an answer");
    answer[0]
}

#[test]
fn who_uses_axums_extractor_is_told_and_comes_back_and_axums_other_routes_move() {
    let service = start(LONG_DRAIN);
    let mut routed = client(&service);
    assert_eq!(routed.get("/who").text(), "1");
    let mut idle: Vec<Ws> = (0..20).map(|_| connect(&service, "/axum")).collect();
    for ws in &mut idle {
        assert_eq!(ws.ask("x"), "1 x");
    }
    // In the middle of a message, which the application has not heard of.
    let mut half = connect(&service, "/axum");
    half.send(&frame(false, TEXT, b"one "));
    half.until_read();
    let counts = std::thread::scope(|scope| {
        let reload = scope.spawn(|| reload(&service));
        for ws in idle {
            ws.closes(1012);
        }
        half.closes(1012);
        reload.join().expect("a reload")
    });
    assert_eq!((counts.cut, counts.moved), (0, 1), "{counts:?}");
    assert_eq!(routed.get("/who").text(), "2");
    assert_eq!(connect(&service, "/axum").ask("again"), "2 again");
}

#[test]
fn who_uses_axums_extractor_and_does_not_answer_is_cut_and_named() {
    let service = start("chat/1\n700");
    let mut silent = connect(&service, "/axum");
    assert_eq!(silent.ask("x"), "1 x");
    let counts = reload(&service);
    assert_eq!(counts.named, [format!("{} GET /axum", silent.name())]);
    assert_eq!(silent.recv().code(), 1012);
    // Nothing comes behind the word.
    assert!(matches!(silent.try_recv(), Ok(None) | Err(_)));
}

#[test]
fn a_tunnel_that_is_given_up_as_bytes_moves_over_reloads() {
    let service = start(LONG_DRAIN);
    let mut first = client(&service);
    // Its connection has moved once as HTTP's.
    assert_eq!(first.get("/who").text(), "1");
    assert_eq!(reload(&service).moved, 1);
    let mut tunnel = tunnel(first, "bytes:443", "abc").into_stream();
    let mut answer = [0; 3];
    tunnel.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, [1, 2, 3]);
    for count in 4..=7 {
        assert_eq!(reload(&service).moved_as["upgraded"], 1);
        assert_eq!(byte(&mut tunnel, b'x'), count);
    }
}

#[test]
fn a_tunnel_that_knows_nothing_is_waited_for() {
    let service = start(LONG_DRAIN);
    let mut tunnel = tunnel(client(&service), "echo:443", "").into_stream();
    assert_eq!(byte(&mut tunnel, b'a'), b'a');
    begin_reload(&service);
    // No frame of ours is put between its bytes.
    assert_eq!(byte(&mut tunnel, b'b'), b'b');
    assert_eq!(client(&service).get("/who").text(), "2");
    assert_eq!(service.status().draining.len(), 1);
    tunnel
        .get_ref()
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    expect_end(&mut tunnel);
    service.settles();
}

fn expect_end(stream: &mut std::io::BufReader<TcpStream>) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an end in order");
    assert_eq!(rest, b"");
}

#[test]
fn a_tunnel_that_does_not_end_is_cut_and_named() {
    let service = start("chat/1\n700");
    let tunnel = tunnel(client(&service), "echo:443", "");
    let counts = reload(&service);
    assert_eq!(counts.named, [format!("{} CONNECT", tunnel.name())]);
    let mut rest = Vec::new();
    let _ = tunnel.into_stream().read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

#[test]
fn sessions_on_a_unix_socket_move_over_reloads() {
    let service = start(LONG_DRAIN);
    let mut chat = Ws::begin(unix_client(&service), HANDSHAKE.as_bytes());
    assert_eq!(chat.ask("peer"), "1 1 peer None");
    let mut bytes = unix_client(&service);
    bytes.send("GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n");
    assert_eq!(bytes.head().status, 101);
    let mut bytes = bytes.into_stream();
    let half = text("half");
    for generation in 2..=5_u8 {
        let (first, second) = half.split_at(usize::from(generation));
        chat.send(first);
        let counts = reload(&service);
        assert_eq!((counts.moved_as["upgraded"], counts.cut), (2, 0));
        chat.send(second);
        assert_eq!(
            chat.recv().text(),
            format!("{generation} {generation} half")
        );
        assert_eq!(byte(&mut bytes, b'x'), generation - 1);
    }
    assert_eq!(chat.ask("peer"), "6 5 peer None");
}

#[test]
fn who_knows_nothing_on_a_unix_socket_is_told() {
    let service = start(LONG_DRAIN);
    let handshake = HANDSHAKE.replace("/ws ", "/axum ");
    let mut ws = Ws::begin(unix_client(&service), handshake.as_bytes());
    assert_eq!(ws.ask("x"), "1 x");
    begin_reload(&service);
    let close = ws.recv();
    assert_eq!(close.code(), 1012);
    ws.send(&frame(true, CLOSE, &close.payload));
    assert_eq!(ws.try_recv().expect("an end in order"), None);
    service.settles();
}
