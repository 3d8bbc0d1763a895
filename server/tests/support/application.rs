//! The service of the tests of upgraded connections: protocols that give their sessions up as bytes, and applications that
//! know nothing of reloads.

#![allow(unreachable_pub, missing_docs, reason = "shared between tests")]

use std::{path::Path, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, WebSocketUpgrade, ws},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{SinkExt, StreamExt};
use handoff::control::{Outcome, message::ConnectionCounts};
use hello_server::{
    BoxError, ConnectionInfo, Server,
    upgrade::{InvalidSession, Protocol, Served, Upgrade, Upgraded, Want},
    websocket::{self, Event, Message, WebSocket},
};
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use crate::support::{
    self, Service,
    ws::{HANDSHAKE, Ws},
};

/// In a process that plays the service: does so. The configuration is `<kind of the chat's sessions>\n<drain timeout in ms>`.
pub fn play() {
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
                get({
                    let bytes = bytes.clone();
                    async move |request: Request| begin(&bytes, request)
                }),
            )
            .route(
                "/axum",
                get(async move |upgrade: WebSocketUpgrade| {
                    upgrade.on_upgrade(move |socket| echo(generation, socket))
                }),
            )
            .route(
                "/plain",
                get(async move |request: Request| plain(generation, request)),
            )
            .route("/raw", get(async |request: Request| raw(request)))
            .route("/poll", get(poll))
            .route("/who", get(async move || format!("{generation}")))
            // A CONNECT has no path to route by.
            .fallback(async move |request: Request| tunnel(&bytes, request))
            .layer(Extension(Chats(chat))))
    })
    .listen("main", "127.0.0.1:0".parse()?)
    .listen(
        "unix",
        format!("unix:{}", dir.join("socket").display()).parse()?,
    )
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
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
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
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
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

/// The same with axum's own extractor.
async fn echo(generation: u64, mut socket: ws::WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if let ws::Message::Text(text) = message {
            let answer = format!("{generation} {text}");
            let _ = socket.send(ws::Message::Text(answer.into())).await;
        }
    }
}

/// Nor does this know of reloads, and it is no WebSocket.
fn raw(mut request: Request) -> Response {
    echo_bytes(&mut request);
    switch("raw")
}

fn echo_bytes(request: &mut Request) {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.expect("upgraded"));
        while let Ok(byte) = io.read_u8().await {
            let _ = io.write_u8(byte).await;
        }
    });
}

/// CONNECT to `bytes` begins a session that moves, to anything else one that does not.
fn tunnel(protocol: &Upgrade, mut request: Request) -> Response {
    if request.method() != Method::CONNECT {
        return StatusCode::NOT_FOUND.into_response();
    }
    if request.uri().host() == Some("bytes") {
        protocol.begin(&mut request).expect("a CONNECT");
    } else {
        echo_bytes(&mut request);
    }
    StatusCode::OK.into_response()
}

async fn poll(Extension(info): Extension<ConnectionInfo>, request: Request) -> &'static str {
    let _ = request.into_body().collect().await;
    info.draining().await;
    "drains"
}

pub fn start(config: &str) -> Service {
    Service::start(config)
}

pub fn connect(service: &Service, path: &str) -> Ws {
    let handshake = HANDSHAKE.replace("/ws ", &format!("{path} "));
    Ws::connect_to(
        service.address("main").parse().expect("an address"),
        &handshake,
    )
}

/// A reload that succeeds: what became of the connections.
pub fn reload(service: &Service) -> ConnectionCounts {
    let report = service.try_reload(true, |_| {}).expect("an outcome");
    assert!(
        matches!(report.outcome, Outcome::Confirmed { .. }),
        "{}",
        service.log()
    );
    report.drained.expect("the parent's end").connections
}

/// Begins a reload, and waits until the new generation serves.
pub fn begin_reload(service: &Service) {
    let report = service.try_reload(false, |_| {}).expect("an outcome");
    assert!(
        matches!(report.outcome, Outcome::Confirmed { .. }),
        "{}",
        service.log()
    );
}
