//! Upgraded connections of applications: such as give their sessions up, and such as know nothing of reloads.

#[path = "../../tests/support/client.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared with other tests"
)]
mod client;
#[path = "../../tests/support/diag.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod diag;
#[path = "../../handoff/tests/support/mod.rs"]
mod support;
#[path = "../../tests/support/ws.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared with other tests"
)]
mod ws;

use std::{path::Path, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use client::Client;
use futures_util::{SinkExt, StreamExt};
use handoff::control::{Outcome, message::ConnectionCounts};
use hello_server::{
    BoxError, ConnectionInfo, Server,
    upgrade::{InvalidSession, Protocol, Served, Upgrade, Upgraded, Want},
    websocket::{self, Event, Message, WebSocket},
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use support::{LONG, Service, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
use ws::{CLOSE, HANDSHAKE, TEXT, Ws, frame, text};

/// The configuration is `<kind of the chat's sessions>\n<drain timeout in ms>`.
#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    support::play(async {
        // Its reason is told by the parent.
        let _ = serve(&dir, &config).await;
    });
}

async fn serve(dir: &Path, config: &str) -> Result<(), BoxError> {
    let (kind, timeout) = config.trim().split_once('\n').ok_or("a kind and a time")?;
    let kind = kind.to_owned();
    Server::build(|ctx| async move {
        let generation = ctx.generation();
        let chat = ctx.upgrade(Chat { generation, kind })?;
        let bytes = ctx.upgrade(Bytes)?;
        assert!(ctx.upgrade(Bytes).is_err(), "two of one kind");
        let ws = async |Extension(Chats(chat)): Extension<Chats>, mut request: Request| {
            match websocket::accept::<_, Body>(&chat, &mut request) {
                Ok(response) => response,
                Err(refused) => refused.response::<Body>(),
            }
        };
        Ok(Router::new()
            .route("/ws", get(ws))
            .route(
                "/bytes",
                get(async move |request: Request| begin(&bytes, request)),
            )
            .route(
                "/plain",
                get(async move |request: Request| plain(generation, request)),
            )
            .route("/raw", get(async |request: Request| raw(request)))
            .route("/poll", get(poll))
            .layer(Extension(Chats(chat))))
    })
    .listen("main", "127.0.0.1:0".parse()?)
    .pidfile(dir.join("pid"))
    .drain_timeout(Duration::from_millis(timeout.parse()?))
    .run()
    .await?;
    Ok(())
}

#[derive(Clone)]
struct Chats(Upgrade);

/// `<n> <generation> <text>`. Told `spoil`, it gives the session up as bytes that nobody can read.
struct Chat {
    generation: u64,
    kind: String,
}

impl Protocol for Chat {
    fn kind(&self) -> &str {
        &self.kind
    }

    async fn serve(
        &self,
        connection: Upgraded,
        resumed: Option<Vec<u8>>,
    ) -> Result<Served, BoxError> {
        let mut count: u64 = match resumed {
            None => 0,
            Some(session) => String::from_utf8(session)?
                .parse()
                .map_err(|error| InvalidSession(format!("{error}")))?,
        };
        let mut session = None;
        let peer = connection.info().peer;
        let mut socket = WebSocket::with_max_message(connection, 100_000).await;
        loop {
            match socket.next().await? {
                Event::Message(Message::Text(text)) => {
                    count += 1;
                    match &*text {
                        "spoil" => session = Some("garbage".to_owned()),
                        "huge" => session = Some("0".repeat(17 << 20)),
                        _ => {}
                    }
                    let peer = if text == "peer" {
                        format!(" {peer:?}")
                    } else {
                        String::new()
                    };
                    let answer = format!("{count} {} {text}{peer}", self.generation);
                    socket.send(Message::Text(answer)).await?;
                }
                Event::Message(Message::Binary(_)) => {}
                Event::GiveUp => {
                    return Ok(socket.give_up(session.unwrap_or(count.to_string()))?);
                }
                Event::Closed => return Ok(Served::closed()),
            }
        }
    }
}

/// Answers each byte by how many there were. No frames, no library.
struct Bytes;

impl Protocol for Bytes {
    fn kind(&self) -> &str {
        "bytes/1"
    }

    async fn serve(
        &self,
        mut connection: Upgraded,
        resumed: Option<Vec<u8>>,
    ) -> Result<Served, BoxError> {
        let mut count = resumed.map_or(0, |session| session[0]);
        let mut wants = connection.wants();
        loop {
            if wants.now() == Want::GiveUp {
                return Ok(connection.give_up(Vec::new(), vec![count]));
            }
            tokio::select! {
                _ = wants.changed() => {}
                byte = connection.read_u8() => {
                    byte?;
                    count = count.wrapping_add(1);
                    connection.write_u8(count).await?;
                }
            }
        }
    }
}

fn switch(protocol: &'static str) -> Response {
    let mut response = ().into_response();
    *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", hyper::header::HeaderValue::from_static(protocol));
    headers.insert(
        "connection",
        hyper::header::HeaderValue::from_static("upgrade"),
    );
    response
}

fn begin(protocol: &Upgrade, mut request: Request) -> Response {
    match protocol.begin(&mut request) {
        Ok(()) => switch("bytes"),
        Err(error) => (hyper::StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

/// Knows nothing of reloads: an echo.
fn plain(generation: u64, mut request: Request) -> Response {
    let response = websocket::answer::<_, Body>(&request).expect("a handshake");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgrade.await.expect("upgraded"));
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let Ok(text) = message.to_text() else {
                continue;
            };
            if message.is_text() {
                let answer = format!("{generation} {text}");
                let _ = socket.send(answer.into()).await;
            }
        }
    });
    response
}

/// Nor does this, and it is no WebSocket.
fn raw(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.expect("upgraded"));
        while let Ok(byte) = io.read_u8().await {
            let _ = io.write_u8(byte).await;
        }
    });
    switch("raw")
}

async fn poll(Extension(info): Extension<ConnectionInfo>, request: Request) -> &'static str {
    let _ = request.into_body().collect().await;
    info.draining().await;
    "drains"
}

fn start(config: &str) -> Service {
    Service::start(config)
}

fn connect(service: &Service, path: &str) -> Ws {
    let handshake = HANDSHAKE.replace("/ws ", &format!("{path} "));
    Ws::connect_to(
        service.address("main").parse().expect("an address"),
        &handshake,
    )
}

/// A reload that succeeds: what became of the connections.
fn reload(service: &Service) -> ConnectionCounts {
    let report = service.try_reload(true, |_| {}).expect("an outcome");
    assert!(
        matches!(report.outcome, Outcome::Confirmed { .. }),
        "{}",
        service.log()
    );
    report.drained.expect("the parent's end").connections
}

/// Begins a reload, and waits until the new generation serves.
fn begin_reload(service: &Service) {
    let report = service.try_reload(false, |_| {}).expect("an outcome");
    assert!(
        matches!(report.outcome, Outcome::Confirmed { .. }),
        "{}",
        service.log()
    );
}

#[test]
fn a_session_moves_with_its_peer_and_any_protocol_does() {
    let service = start("chat/1\n20000");
    let mut chat = connect(&service, "/ws");
    assert_eq!(chat.ask("x"), "1 1 x");
    let mut bytes = Client::connect(service.address("main").parse().unwrap());
    bytes
        .send("GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\nabc");
    assert_eq!(bytes.head().status, 101);
    let mut bytes = bytes.into_stream();
    let mut read = |count| {
        let mut answer = vec![0; count];
        std::io::Read::read_exact(&mut bytes, &mut answer).expect("an answer");
        answer
    };
    assert_eq!(read(3), [1, 2, 3]);
    for _ in 0..3 {
        let counts = reload(&service);
        assert_eq!(counts.moved_as["upgraded"], 2);
        // Adopted, they count as those that were accepted.
        assert_eq!(service.status().application["connections"], 2);
    }
    let peer = chat.name();
    assert_eq!(chat.ask("peer"), format!("2 4 peer Some({peer})"));
    std::io::Write::write_all(bytes.get_mut(), b"d").expect("write");
    let mut answer = [0];
    std::io::Read::read_exact(&mut bytes, &mut answer).expect("an answer");
    assert_eq!(answer, [4]);
}

#[test]
fn a_build_that_does_not_know_the_kind_leaves_the_session_to_the_parent() {
    let service = start("chat/1\n20000");
    let mut quiet = connect(&service, "/ws");
    assert_eq!(quiet.ask("x"), "1 1 x");
    let mut half = connect(&service, "/ws");
    let message = text("half");
    half.send(&message[..4]);
    half.until_read();
    service.configure("chat/2\n20000");
    begin_reload(&service);
    // Told, and served on until it ends.
    assert_eq!(quiet.recv().code(), 1012);
    let mut new = connect(&service, "/ws");
    assert_eq!(new.ask("x"), "1 2 x");
    quiet.send(&frame(true, CLOSE, &1012_u16.to_be_bytes()));
    assert_eq!(quiet.try_recv().expect("an end in order"), None);
    half.send(&message[4..]);
    half.closes(1012);
    service.settles();
    assert_eq!(new.ask("y"), "2 2 y");
}

#[test]
fn a_session_that_is_too_large_stays_with_the_parent() {
    let service = start("chat/1\n20000");
    let mut chat = connect(&service, "/ws");
    assert_eq!(chat.ask("huge"), "1 1 huge");
    begin_reload(&service);
    chat.closes(1012);
    service.settles();
}

#[test]
fn a_session_that_cannot_be_read_is_closed_and_counted_and_the_others_live() {
    let service = start("chat/1\n20000");
    let mut bad = connect(&service, "/ws");
    let mut good = connect(&service, "/ws");
    assert_eq!(bad.ask("spoil"), "1 1 spoil");
    assert_eq!(good.ask("x"), "1 1 x");
    reload(&service);
    assert_eq!(bad.try_recv().expect("an end in order"), None);
    assert_eq!(good.ask("y"), "2 2 y");
    let application = service.status().application;
    assert_eq!(application["sessions_lost"], 1);
}

#[test]
fn an_application_that_knows_nothing_has_its_clients_told_and_they_come_back() {
    let service = start("chat/1\n20000");
    let mut idle: Vec<Ws> = (0..20).map(|_| connect(&service, "/plain")).collect();
    for ws in &mut idle {
        assert_eq!(ws.ask("x"), "1 x");
    }
    let address = service.address("main").parse().expect("an address");
    let handshake = HANDSHAKE.replace("/ws ", "/plain ");
    // One that asks all the time: it gets every answer whole, then the word.
    let busy = std::thread::spawn(move || {
        let mut ws = Ws::connect_to(address, &handshake);
        let long = "x".repeat(70_000);
        loop {
            ws.send(&text(&long));
            let answer = ws.recv();
            if answer.opcode != TEXT {
                assert_eq!(answer.code(), 1012);
                ws.send(&frame(true, CLOSE, &answer.payload));
                assert_eq!(ws.try_recv().expect("an end in order"), None);
                return Ws::connect_to(address, &handshake).ask("again");
            }
            assert_eq!(answer.text().len(), long.len() + 2);
        }
    });
    let counts = std::thread::scope(|scope| {
        let reload = scope.spawn(|| reload(&service));
        for ws in idle {
            ws.closes(1012);
        }
        reload.join().expect("a reload")
    });
    assert_eq!((counts.cut, counts.moved), (0, 0), "{counts:?}");
    assert_eq!(busy.join().expect("all in order"), "2 again");
}

#[test]
fn a_stop_says_going_away_to_all() {
    let service = start("chat/1\n20000");
    let mut sessions = [connect(&service, "/ws"), connect(&service, "/plain")];
    for ws in &mut sessions {
        ws.send(&text("x"));
        assert_eq!(ws.recv().opcode, TEXT);
    }
    service.signal(service.pid(), nix::sys::signal::Signal::SIGTERM);
    for ws in sessions {
        ws.closes(1001);
    }
    eventually("it has ended", || service.processes().is_empty());
}

#[test]
fn who_does_not_answer_and_who_is_no_websocket_is_cut_and_named() {
    let service = start("chat/1\n700");
    let mut silent = connect(&service, "/plain");
    assert_eq!(silent.ask("x"), "1 x");
    let mut raw = Client::connect(service.address("main").parse().unwrap());
    raw.send("GET /raw?x=1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n");
    assert_eq!(raw.head().status, 101);
    let counts = reload(&service);
    let mut named = [
        format!("{} GET /plain", silent.name()),
        format!("{} GET /raw", raw.name()),
    ];
    named.sort();
    let mut said = counts.named;
    said.sort();
    assert_eq!(said, named);
    assert_eq!(silent.recv().code(), 1012);
}

#[test]
fn a_long_poll_hears_of_the_drain_and_its_connection_moves() {
    let service = start("chat/1\n20000");
    let mut client = Client::connect(service.address("main").parse().unwrap());
    client.send("GET /poll HTTP/1.1\r\nhost: x\r\n\r\n");
    client.until_read();
    let counts = reload(&service);
    assert_eq!(counts.moved, 1, "{counts:?}");
    let answer = client.answer();
    assert_eq!((answer.text().as_str(), answer.closes()), ("drains", false));
    assert_eq!(client.get("/nowhere").status, 404);
}

#[test]
fn who_asks_for_nothing_gets_nothing() {
    let service = start("chat/1\n20000");
    let mut client = Client::connect(service.address("main").parse().unwrap());
    let answer = client.get("/bytes");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("does not ask for another protocol"));
    assert_eq!(client.get("/ws").status, 426);
}
