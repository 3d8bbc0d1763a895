//! A client that never retries, and knows exactly what became of each request.
//!
//! One exception that is none: a kept-alive connection that the server closed *before the
//! client wrote a byte of the request* has lost nothing. That is counted as a closed
//! connection, and the request, never sent, goes out on another ([`Exchange::Unsent`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::book::Book;
use super::line::{self, Line};
use super::outcome::{Outcome, Verdict};
use super::request::{Ask, Kind, RequestBody};
use super::tap::{End, Record, Tap};
use super::timeline::Timeline;

mod lent;

/// No answer of the demo application comes near it.
const MAX_BODY: usize = 1 << 20;
/// After a complete answer, hyper needs a poll or two before it takes the next request.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// The one page of a server of which the soak knows nothing else: any complete 200 is right.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Path and query.
    pub(crate) path: Uri,
    /// The `Host` header.
    pub(crate) host: HeaderValue,
}

/// Everything a request needs.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Of the server.
    pub(crate) target: SocketAddr,
    /// The delay of each direction; zero leaves the delay line out.
    pub(crate) one_way: Duration,
    /// From the sending of a request, or the start of a `connect`, to its end.
    pub(crate) timeout: Duration,
    /// Connections that may be open at a time: one more is the client's own trouble, and said so.
    pub(crate) max_open: usize,
    /// Sockets that are open now; shared by all clients of a run.
    pub(crate) open: Arc<AtomicUsize>,
    /// What the run knows of itself.
    pub(crate) timeline: Arc<Timeline>,
    /// What to ask of a server that is not `hello`; `None`: what `hello` has.
    pub(crate) page: Option<Page>,
    /// Where closed connections are entered. Requests are entered by the caller, who knows their due times.
    pub(crate) book: Arc<Book>,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<RequestBody>,
    record: Arc<Record>,
    port: u16,
    /// The generation that was reported to serve before the connection was opened.
    floor: u64,
    /// Whether it has not rested yet: then the server must take a request, whatever happens.
    fresh: bool,
    reusable: bool,
}

/// An open socket, without anything on top of it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) socket: TcpStream,
    pub(crate) port: u16,
    /// The generation that was reported to serve before it was opened.
    pub(crate) floor: u64,
}

/// A line that was just opened.
pub(crate) struct Opened {
    pub(crate) line: Tap<Box<dyn Line>>,
    /// What passes it.
    pub(crate) record: Arc<Record>,
    pub(crate) port: u16,
    /// The generation that was reported to serve before it was opened.
    pub(crate) floor: u64,
}

/// What became of the attempt to use a connection.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// The request was sent, or ought to have been.
    Done(Verdict),
    /// The connection was closed while it rested, before a byte was written.
    Unsent,
}

/// The answer, complete.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn number<N: std::str::FromStr>(&self, header: &str) -> Option<N> {
        self.headers.get(header)?.to_str().ok()?.parse().ok()
    }

    /// Whether its end can be told from a cut.
    fn has_length(&self) -> bool {
        self.headers.contains_key(CONTENT_LENGTH) || self.headers.contains_key(TRANSFER_ENCODING)
    }

    fn says_close(&self) -> bool {
        self.headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("close"))
    }
}

impl Client {
    /// The same client next door: no delay, for what is about the server and not about the distance.
    pub(crate) fn nearby(&self) -> Self {
        Self {
            one_way: Duration::ZERO,
            ..self.clone()
        }
    }

    /// Half a round trip. Nearby it must not even be a sleep: one of no time takes tokio up to a millisecond.
    async fn travel(&self) {
        if !self.one_way.is_zero() {
            tokio::time::sleep(self.one_way).await;
        }
    }

    /// Opens a socket, at once: the delay is the caller's.
    pub(crate) async fn socket(&self) -> Result<Socket, Verdict> {
        if self.open.load(Ordering::Relaxed) >= self.max_open {
            return Err(Verdict::lost(
                Outcome::Client,
                0,
                format!("{} connections are open already", self.max_open),
            ));
        }
        let floor = self.timeline.committed();
        let connecting = tokio::time::timeout(self.timeout, TcpStream::connect(self.target));
        let socket = match connecting.await {
            Ok(Ok(socket)) => socket,
            Ok(Err(err)) => {
                let detail = format!("connect: {err}");
                return Err(Verdict::lost(Outcome::of_connect(&err), 0, detail));
            }
            Err(_) => {
                let detail = format!("connect: {:?} passed", self.timeout);
                return Err(Verdict::lost(Outcome::Timeout, 0, detail));
            }
        };
        let port = socket.local_addr().map_or(0, |address| address.port());
        if let Err(err) = socket.set_nodelay(true) {
            let detail = format!("TCP_NODELAY: {err}");
            return Err(Verdict::lost(Outcome::of_connect(&err), port, detail));
        }
        Ok(Socket {
            socket,
            port,
            floor,
        })
    }

    /// Opens a line, at the client's distance, and listens in on it.
    pub(crate) async fn line(&self) -> Result<Opened, Verdict> {
        // The SYN and its answer travel as far as everything else.
        self.travel().await;
        let Socket {
            socket,
            port,
            floor,
        } = self.socket().await?;
        // Before the second half of the delay: what the server says at once is under way meanwhile.
        let line = line::new(socket, self.one_way, Arc::clone(&self.open));
        self.travel().await;
        let record = Record::new();
        Ok(Opened {
            line: Tap::new(line, Arc::clone(&record)),
            record,
            port,
            floor,
        })
    }

    /// Opens a connection for a request of `kind`, which is the one to blame if it is closed early.
    pub(crate) async fn connect(&self, kind: Kind) -> Result<Connection, Verdict> {
        let Opened {
            line,
            record,
            port,
            floor,
        } = self.line().await?;
        match http1::handshake(TokioIo::new(line)).await {
            Ok((sender, driver)) => {
                self.drive(driver, kind, port, Arc::clone(&record));
                Ok(Connection {
                    sender,
                    record,
                    port,
                    floor,
                    fresh: true,
                    reusable: true,
                })
            }
            Err(err) => Err(Verdict::lost(Outcome::Protocol, port, chain(&err))),
        }
    }

    /// Lets hyper work on the connection; a resting one that ends is entered into the book.
    fn drive<T>(
        &self,
        driver: http1::Connection<T, RequestBody>,
        kind: Kind,
        port: u16,
        record: Arc<Record>,
    ) where
        T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let book = Arc::clone(&self.book);
        tokio::spawn(async move {
            let driven = driver.await;
            if record.finish() {
                let detail = match (record.seen().end, driven) {
                    (Some(end), _) => format!("the server closed it while it rested: {end:?}"),
                    // For instance a 408 that nobody asked for.
                    (None, Err(err)) => chain(&err),
                    (None, Ok(())) => "hyper ended it while it rested".into(),
                };
                book.closed(kind, port, detail);
            }
        });
    }

    /// One request and its answer, to the last byte.
    pub(crate) async fn exchange(&self, connection: &mut Connection, ask: Ask) -> Exchange {
        connection.record.begin();
        // An older generation that has gone cannot answer, whenever the connection was opened.
        connection.floor = connection.floor.max(self.timeline.settled());
        let port = connection.port;
        let conversation = converse(&mut connection.sender, self.request(ask));
        let Ok(conversed) = tokio::time::timeout(self.timeout, conversation).await else {
            connection.abandon();
            let seen = connection.record.seen();
            let detail = format!(
                "{:?} passed: wrote {} bytes, read {}",
                self.timeout, seen.written, seen.read
            );
            return Exchange::Done(Verdict::lost(Outcome::Timeout, port, detail));
        };
        match conversed {
            Ok(answer) => Exchange::Done(self.judge(connection, ask, &answer)),
            Err(error) => self.broken(connection, ask, &error),
        }
    }

    fn request(&self, ask: Ask) -> Request<RequestBody> {
        let mut request = ask.request();
        if let Some(page) = &self.page {
            *request.uri_mut() = page.path.clone();
            request.headers_mut().insert(HOST, page.host.clone());
        }
        request
    }

    fn broken(&self, connection: &mut Connection, ask: Ask, error: &str) -> Exchange {
        connection.reusable = false;
        let seen = connection.record.seen();
        let news = connection.record.give_up();
        if seen.written == 0 && !connection.fresh {
            if news {
                let detail = format!("the server closed it while it rested: {error}");
                self.book.closed(ask.kind, connection.port, detail);
            }
            return Exchange::Unsent;
        }
        let detail = format!(
            "{error}; wrote {} bytes, read {}, then {:?}",
            seen.written, seen.read, seen.end
        );
        Exchange::Done(Verdict::lost(
            Outcome::of_broken(&seen),
            connection.port,
            detail,
        ))
    }

    /// Makes the connection ready for its next request. `None`: it cannot have one.
    pub(crate) async fn rest(&self, mut connection: Connection, kind: Kind) -> Option<Connection> {
        if !connection.reusable {
            return None;
        }
        if let Some(end) = connection.record.rest() {
            self.book.closed(
                kind,
                connection.port,
                format!("the server closed it before it rested: {end:?}"),
            );
            return None;
        }
        connection.fresh = false;
        match tokio::time::timeout(REST_TIMEOUT, connection.sender.ready()).await {
            Ok(Ok(())) => Some(connection),
            Ok(Err(err)) => {
                // Unless the task that drives the connection was faster.
                if connection.record.give_up() {
                    self.book.closed(kind, connection.port, chain(&err));
                }
                None
            }
            // Answered before the request was read to its end; that answer is judged already.
            Err(_) => None,
        }
    }

    /// Judges a complete answer, and whether the connection is as open as it ought to be.
    fn judge(&self, connection: &mut Connection, ask: Ask, answer: &Answer) -> Verdict {
        let generation = answer.number("x-generation");
        let end = connection.record.seen().end;
        let (outcome, detail) = self.outcome(connection.floor, ask, answer, generation, end);
        if ask.closes() {
            connection.abandon();
        } else if answer.says_close() {
            let news = connection.record.give_up();
            connection.reusable = false;
            // After an error the server may close; that error is counted itself.
            if news && answer.status == StatusCode::OK {
                self.book.closed(
                    ask.kind,
                    connection.port,
                    "the answer said Connection: close".into(),
                );
            }
        } else if let Some(end) = connection.record.rest() {
            connection.reusable = false;
            self.book.closed(
                ask.kind,
                connection.port,
                format!("the server closed it after the answer: {end:?}"),
            );
        }
        Verdict {
            outcome,
            detail,
            at: Instant::now(),
            port: connection.port,
            generation,
            pid: answer.number("x-pid"),
            answered: outcome != Outcome::Truncated,
        }
    }

    fn outcome(
        &self,
        floor: u64,
        ask: Ask,
        answer: &Answer,
        generation: Option<u64>,
        end: Option<End>,
    ) -> (Outcome, String) {
        let status = answer.status;
        if status != StatusCode::OK {
            let outcome = if status.is_server_error() {
                Outcome::ServerError
            } else {
                Outcome::OtherStatus
            };
            return (outcome, format!("{status}: {}", answer.body.escape_ascii()));
        }
        if self.page.is_some() {
            return match end {
                // Without a length or chunks, an answer that was cut looks complete to hyper; and so does one that
                // the end of the connection ends, as HTTP/1.0 has it. The instrument asks for a length.
                Some(end) if !answer.has_length() => (
                    Outcome::Truncated,
                    format!("no length, and {end:?}: nobody can tell whether it is whole"),
                ),
                _ => (Outcome::Ok, String::new()),
            };
        }
        let Some(generation) = generation else {
            return (Outcome::WrongBody, "no x-generation".into());
        };
        if generation < floor {
            return (
                Outcome::OldGeneration,
                format!("answered by {generation}, when it had to be {floor} or later"),
            );
        }
        let checked = ask.check(&answer.body).and_then(|greeting| {
            greeting.map_or(Ok(()), |greeting| {
                self.timeline.check_greeting(generation, greeting)
            })
        });
        match checked {
            Ok(()) => (Outcome::Ok, String::new()),
            // Without a length or chunks, an answer that was cut looks complete to hyper.
            Err(detail) if end.is_some() => (Outcome::Truncated, detail),
            Err(detail) => (Outcome::WrongBody, detail),
        }
    }
}

/// Sends the request and reads the whole answer. The error is for people: the socket knows better.
async fn converse(
    sender: &mut SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Answer, String> {
    let answer: Response<Incoming> = sender
        .send_request(request)
        .await
        .map_err(|err| chain(&err))?;
    let (head, mut incoming) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|err| chain(&err))?;
        body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if body.len() > MAX_BODY {
            return Err(format!("the answer is longer than {MAX_BODY} bytes"));
        }
    }
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
    })
}

/// An error with its causes: hyper's own text leaves out the one that matters.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}

impl Connection {
    /// Whether it can carry a request: as far as the client knows.
    pub(crate) fn is_open(&self) -> bool {
        self.reusable && !self.sender.is_closed()
    }

    /// The client is about to close it, or knows that it will be closed.
    fn abandon(&mut self) {
        self.reusable = false;
        self.record.give_up();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.record.let_go();
    }
}
