//! A service to test with, a host that takes up what was given up, and a client that sees every byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::body::RequestBody;
use crate::connection::{Carried, Config, End, Order, serve};
use crate::io::Stream;

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("this takes too long")
}

/// A reproducible source of choices.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// What all generations of the service share.
pub(super) struct State {
    /// Requests for what nobody asks for: parts of bodies that were read as requests.
    pub(super) smuggled: AtomicUsize,
    /// Requests that the service was called for.
    pub(super) calls: AtomicUsize,
    /// `/wait` and others take a permit each.
    pub(super) gate: Semaphore,
    /// What `/stream` sends.
    pub(super) frames: Mutex<Option<mpsc::Receiver<Bytes>>>,
}

impl State {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            smuggled: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            frames: Mutex::new(None),
        })
    }
}

type Answered = Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, Infallible>;

/// The service of one generation.
#[derive(Clone)]
pub(super) struct App {
    state: Arc<State>,
    generation: usize,
}

fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, hyper::Error> {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|bytes| Some(Ok(Frame::data(bytes?))))
    }
}

pub(super) const LARGE: usize = 32 * 1024 * 1024;

impl App {
    async fn answer(self, mut request: Request<RequestBody>) -> Answered {
        let mut status = StatusCode::OK;
        let path = request.uri().path().to_owned();
        let body = match path.as_str() {
            "/panic" => panic!("as ordered"),
            "/echo" => match request.into_body().collect().await {
                Ok(body) => full(body.to_bytes()),
                Err(_) => {
                    status = StatusCode::BAD_REQUEST;
                    full("broken body")
                }
            },
            "/echo-stream" => request.into_body().boxed_unsync(),
            // Drops the body at once, after a while, after one frame.
            "/ignore" => full("ignored"),
            "/ignore-late" => {
                drop(request);
                tokio::task::yield_now().await;
                full("ignored late")
            }
            "/first-frame" => {
                let _ = request.body_mut().frame().await;
                full("one frame")
            }
            // Answer at once, and leave the body to a task.
            "/spawn-read" => {
                status = StatusCode::ACCEPTED;
                tokio::spawn(request.into_body().collect());
                full("later")
            }
            "/spawn-read-gated" | "/spawn-drop-gated" => {
                status = StatusCode::ACCEPTED;
                let state = Arc::clone(&self.state);
                tokio::spawn(async move {
                    state.gate.acquire().await.unwrap().forget();
                    if path == "/spawn-read-gated" {
                        let _ = request.into_body().collect().await;
                    } else {
                        drop(request);
                    }
                });
                full("later")
            }
            "/read-slowly" => {
                let mut total = 0;
                while let Some(Ok(frame)) = request.body_mut().frame().await {
                    total += frame.data_ref().map_or(0, Bytes::len);
                    tokio::task::yield_now().await;
                }
                full(total.to_string())
            }
            "/wait" => {
                self.state.gate.acquire().await.unwrap().forget();
                full("waited")
            }
            "/stream" => {
                let frames = self.state.frames.lock().unwrap().take();
                Frames(frames.expect("one stream at a time")).boxed_unsync()
            }
            "/large" => full(vec![b'x'; LARGE]),
            "/upgrade" => return Ok(self.upgrade(request)),
            number if number.starts_with("/n/") => full(number.to_owned()),
            _ => {
                self.state.smuggled.fetch_add(1, SeqCst);
                status = StatusCode::IM_A_TEAPOT;
                full("never asked for")
            }
        };
        Ok(Response::builder()
            .status(status)
            .header("x-generation", self.generation)
            .body(body)
            .unwrap())
    }

    /// An echo with another protocol than HTTP.
    fn upgrade(
        &self,
        request: Request<RequestBody>,
    ) -> Response<UnsyncBoxBody<Bytes, hyper::Error>> {
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut io = hyper_util::rt::TokioIo::new(upgraded);
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..length]).await.unwrap();
            }
            state.gate.add_permits(1);
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(full(""))
            .unwrap()
    }
}

impl Service<Request<RequestBody>> for App {
    type Response = Response<UnsyncBoxBody<Bytes, hyper::Error>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answered> + Send>>;
    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        self.state.calls.fetch_add(1, SeqCst);
        Box::pin(self.clone().answer(request))
    }
}

/// How often a connection has moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    pub(super) total: usize,
    /// Of them, with bytes that hyper had read ahead.
    pub(super) with_leftover: usize,
}

/// Serves one connection, and takes it up again whenever it is given up.
pub(super) struct Host {
    pub(super) state: Arc<State>,
    orders: Arc<watch::Sender<Order>>,
    moves: watch::Receiver<Moves>,
    pub(super) task: JoinHandle<End>,
}

impl Host {
    pub(super) fn start(stream: impl Into<Stream>, config: Config) -> Self {
        Self::start_with(stream.into(), config, Order::Serve, State::new())
    }

    pub(super) fn start_with(
        mut stream: Stream,
        config: Config,
        order: Order,
        state: Arc<State>,
    ) -> Self {
        let orders = Arc::new(watch::Sender::new(order));
        let (report, moves) = watch::channel(Moves::default());
        let (shared, sender) = (Arc::clone(&state), Arc::clone(&orders));
        let task = tokio::spawn(async move {
            let mut carried = Carried::default();
            for generation in 0.. {
                let app = App {
                    state: Arc::clone(&shared),
                    generation,
                };
                let end = serve(stream, carried, app, &config, sender.subscribe()).await;
                let End::GivenUp(rested) = end else {
                    return end;
                };
                // The next generation serves until it is told to hand over, too.
                sender.send_if_modified(|order| {
                    let done = *order == Order::HandOver;
                    if done {
                        *order = Order::Serve;
                    }
                    done
                });
                stream = Stream::from_fd(rested.socket).unwrap();
                carried = rested.carried;
                report.send_modify(|moves| {
                    moves.total += 1;
                    moves.with_leftover += usize::from(!carried.leftover.is_empty());
                });
            }
            unreachable!()
        });
        Self {
            state,
            orders,
            moves,
            task,
        }
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send_replace(order);
    }

    pub(super) fn moves(&self) -> Moves {
        *self.moves.borrow()
    }

    /// Orders a move and waits until it has happened.
    pub(super) async fn hand_over(&self) {
        let wanted = self.moves().total + 1;
        self.order(Order::HandOver);
        self.moved(wanted).await;
    }

    /// Waits until there have been `wanted` moves.
    pub(super) async fn moved(&self, wanted: usize) {
        let mut moves = self.moves.clone();
        soon(moves.wait_for(|moves| moves.total >= wanted))
            .await
            .expect("not moved");
    }

    /// Orders moves, one after the other, until the connection ends.
    pub(super) fn move_without_end(&self) -> JoinHandle<()> {
        let (orders, mut moves) = (Arc::clone(&self.orders), self.moves.clone());
        tokio::spawn(async move {
            loop {
                moves.mark_unchanged();
                orders.send_replace(Order::HandOver);
                if moves.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    pub(super) async fn end(self) -> End {
        soon(self.task).await.unwrap()
    }
}

/// One answer, as it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) status: u16,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Received {
    pub(super) fn says_close(&self) -> bool {
        self.headers
            .get("connection")
            .is_some_and(|value| value.contains("close"))
    }

    pub(super) fn generation(&self) -> usize {
        self.headers["x-generation"].parse().unwrap()
    }

    pub(super) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

/// A client that never retries and reads nothing but what it is told to.
pub(super) struct Client<T> {
    pub(super) stream: T,
    read: Vec<u8>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    pub(super) fn new(stream: T) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref()))
            .await
            .expect("send");
    }

    /// At least one more byte, or the end of stream (false).
    async fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 64 * 1024];
        let length = soon(self.stream.read(&mut chunk)).await?;
        self.read.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8(self.read[..end].to_vec()).unwrap();
                self.read.drain(..end + 2);
                return line;
            }
            assert!(
                self.fill().await.expect("no reset"),
                "end of stream in a head"
            );
        }
    }

    pub(super) async fn exact(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(
                self.fill().await.expect("no reset"),
                "end of stream in a body"
            );
        }
        self.read.drain(..length).collect()
    }

    /// The head of an answer: status and headers.
    pub(super) async fn head(&mut self) -> Received {
        let line = self.line().await;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = HashMap::<String, String>::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            let old = headers.entry(name.to_lowercase()).or_default();
            old.push_str(value);
        }
        Received {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// One chunk of a chunked body; empty at its end.
    pub(super) async fn chunk(&mut self) -> Vec<u8> {
        let length = usize::from_str_radix(&self.line().await, 16).unwrap();
        let chunk = self.exact(length).await;
        assert_eq!(self.exact(2).await, b"\r\n");
        chunk
    }

    /// A whole answer to anything but HEAD.
    pub(super) async fn receive(&mut self) -> Received {
        let mut received = self.head().await;
        if let Some(length) = received.headers.get("content-length") {
            received.body = self.exact(length.parse().unwrap()).await;
        } else if received.headers.contains_key("transfer-encoding") {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                received.body.extend(chunk);
            }
        }
        received
    }

    pub(super) async fn ask(&mut self, path: &str) -> Received {
        self.send(get(path)).await;
        self.receive().await
    }

    /// The server closes, in order, and has sent nothing else.
    pub(super) async fn closed(&mut self) {
        assert_eq!(str::from_utf8(&self.read).unwrap(), "");
        let more = self
            .fill()
            .await
            .expect("a reset instead of an end of stream");
        assert!(
            !more,
            "unexpected: {:?}",
            String::from_utf8_lossy(&self.read)
        );
    }

    /// Everything until the server closes, or resets.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await.unwrap_or(false) {}
        std::mem::take(&mut self.read)
    }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

pub(super) fn post(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n")
}

pub(super) fn post_chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
}

pub(super) async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.unwrap(), server.unwrap().0);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A client and the host of its connection.
pub(super) async fn pair(config: Config) -> (Client<TcpStream>, Host) {
    let (client, server) = tcp().await;
    (Client::new(client), Host::start(server, config))
}

pub(super) fn unix() -> (Client<UnixStream>, Host) {
    let (client, server) = UnixStream::pair().unwrap();
    (Client::new(client), Host::start(server, Config::default()))
}
