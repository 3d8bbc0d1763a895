//! Traffic on a server that may break: clients that never retry, each of which counts what became of its requests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// Longer than any deadline that a cell waits for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(4);
/// Connections that rest.
const IDLE: usize = 6;
/// Those that come while the child is on probation.
const MORE_IDLE: u64 = 3;
/// Clients that ask one request after the other: the first ones on a connection that they keep.
const ASKING: [bool; 3] = [true, true, false];
/// Who can have a request under way: those that ask, the upload, the session.
pub(crate) const CLIENTS: u64 = ASKING.len() as u64 + 2;

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    /// Sent, and not answered: the connection ended instead.
    pub(crate) lost: u64,
    /// Not sent: nobody listens.
    pub(crate) refused: u64,
    /// No answer for as long as a client waits.
    pub(crate) silent: u64,
    /// Connections that rested, and the session, that were ended in order.
    pub(crate) closed: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.lost += other.lost;
        self.refused += other.refused;
        self.silent += other.silent;
        self.closed += other.closed;
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The upload may end.
    finish_upload: AtomicBool,
    answered: AtomicU64,
    refused: AtomicU64,
    /// Connections of [`Load::rests_more`] that have been answered.
    resting: AtomicU64,
    /// What no server may do: an answer with another status, for instance.
    wrong: Mutex<Vec<String>>,
}

/// Running clients.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Counts>>,
    idle: Vec<Client>,
}

impl Load {
    /// Connects all that stays connected before it returns, so that the fault finds it there.
    pub(crate) fn start(address: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut idle = Vec::new();
        for _ in 0..IDLE {
            let mut client = Client::connect(address)?;
            client.get("/healthz")?;
            idle.push(client);
        }
        let mut load = Self {
            shared,
            threads: Vec::new(),
            idle,
        };
        for keeps in ASKING {
            load.spawn(move |shared| asks(address, keeps, shared));
        }
        let upload = Client::connect(address)?;
        load.spawn(move |shared| uploads(upload, shared));
        let session = Client::connect(address)?.upgrade()?;
        load.spawn(move |shared| talks(session, shared));
        Ok(load)
    }

    fn spawn(&mut self, client: impl FnOnce(&Shared) -> Counts + Send + 'static) {
        let shared = self.shared.clone();
        self.threads
            .push(std::thread::spawn(move || client(&shared)));
    }

    /// Connections that come now, and rest. In the background: who accepts them may be frozen.
    pub(crate) fn rests_more(&mut self, address: SocketAddr) {
        for _ in 0..MORE_IDLE {
            self.spawn(move |shared| rests(address, shared));
        }
    }

    /// Whether they do.
    pub(crate) fn has_more_resting(&self) -> bool {
        self.shared.resting.load(Ordering::Relaxed) == MORE_IDLE
    }

    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// The request that was under way all the time may end.
    pub(crate) fn finish_upload(&self) {
        self.shared.finish_upload.store(true, Ordering::Relaxed);
    }

    /// Ends it, and asks one request on each connection that has rested.
    pub(crate) fn finish(mut self) -> Result<Counts> {
        self.stop();
        let mut sum = Counts::default();
        for thread in std::mem::take(&mut self.threads) {
            sum.add(&thread.join().ok().context("a client has panicked")?);
        }
        for client in &mut self.idle {
            // This is not counted by the application.
            match client.get("/healthz") {
                Ok((200, _)) => {}
                Ok((status, _)) => bail!("an idle client got {status}"),
                Err(_) => sum.closed += 1,
            }
        }
        let wrong = self.shared.wrong.lock();
        let wrong = wrong.unwrap_or_else(PoisonError::into_inner);
        ensure!(wrong.is_empty(), "wrong answers: {wrong:?}");
        Ok(sum)
    }

    fn stop(&self) {
        self.finish_upload();
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A request from a client that comes now.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let (status, body) = Client::connect(address)?.get(path)?;
    ensure!(status == 200, "GET {path}: {status}");
    Ok(body)
}

fn asks(address: SocketAddr, keeps: bool, shared: &Shared) -> Counts {
    let mut counts = Counts::default();
    let mut client = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut asking = match client.take().map_or_else(|| Client::connect(address), Ok) {
            Ok(client) => client,
            Err(error) => {
                shared.count_failure(&error, &mut counts);
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        match asking.get("/hello") {
            Ok((200, _)) => {
                shared.count_answer(&mut counts);
                client = Some(asking).filter(|client| keeps && !client.closes);
            }
            Ok((status, body)) => shared.wrong(format!("{status}: {body}")),
            Err(error) => shared.count_failure(&error, &mut counts),
        }
        std::thread::sleep(PAUSE);
    }
    counts
}

/// A connection that rests from its first request to the end of the load.
fn rests(address: SocketAddr, shared: &Shared) -> Counts {
    let mut counts = Counts::default();
    let rested = Client::connect(address).and_then(|mut client| {
        let first = client.get("/healthz")?;
        shared.resting.fetch_add(1, Ordering::Relaxed);
        while !shared.stop.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
        }
        Ok((first, client.get("/healthz")?))
    });
    match rested {
        Ok(((200, _), (200, _))) => {}
        Ok((first, last)) => shared.wrong(format!("a resting client got {first:?}, {last:?}")),
        Err(_) => counts.closed += 1,
    }
    counts
}

/// One upload, of which the second half is sent when it is allowed to: a request that is under way all the while.
fn uploads(mut client: Client, shared: &Shared) -> Counts {
    let mut counts = Counts::default();
    let head = "POST /upload HTTP/1.1\r\nhost: faults\r\ncontent-length: 10\r\n\r\nhalf ";
    let mut sent = client.send(head.as_bytes());
    while !shared.finish_upload.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
    }
    sent = sent.and_then(|()| client.send(b"whole"));
    match sent.and_then(|()| client.answer()) {
        Ok((200, _)) => shared.count_answer(&mut counts),
        Ok((status, body)) => shared.wrong(format!("upload: {status}: {body}")),
        Err(error) => shared.count_failure(&error, &mut counts),
    }
    counts
}

/// One session, as long as it lasts.
fn talks(mut session: Client, shared: &Shared) -> Counts {
    let mut counts = Counts::default();
    for number in 1.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        match session.message("word") {
            // The number is the session's own, and has moved with it.
            Ok(answer)
                if answer.starts_with(&format!("{number} ")) && answer.ends_with(" word") =>
            {
                shared.count_answer(&mut counts);
            }
            Ok(answer) => {
                shared.wrong(format!("message {number} was answered by {answer:?}"));
                break;
            }
            // By a Close frame.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                counts.closed += 1;
                break;
            }
            Err(error) => {
                shared.count_failure(&error, &mut counts);
                break;
            }
        }
        std::thread::sleep(PAUSE);
    }
    counts
}

impl Shared {
    fn count_answer(&self, counts: &mut Counts) {
        counts.answered += 1;
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn count_failure(&self, error: &io::Error, counts: &mut Counts) {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                counts.refused += 1;
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => counts.silent += 1,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => counts.lost += 1,
            _ => self.wrong(format!("{error}")),
        }
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(what);
    }
}

/// One connection, at the level of bytes.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    /// The last answer said that it closes the connection.
    closes: bool,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            stream: BufReader::new(stream),
            closes: false,
        })
    }

    /// Whether the last answer said that it closes the connection.
    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub(crate) fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: faults\r\n\r\n").as_bytes())?;
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> io::Result<(u16, String)> {
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Status, and length of the body.
    fn head(&mut self) -> io::Result<(u16, usize)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| malformed(&first))?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                None => return Ok((status, length)),
                Some(("content-length", value)) => {
                    length = value.trim().parse().map_err(|_| malformed(&line))?;
                }
                Some(("connection", value)) => self.closes = value.trim() == "close",
                Some(_) => {}
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Begins a WebSocket session.
    pub(crate) fn upgrade(mut self) -> io::Result<Self> {
        self.send(
            b"GET /ws HTTP/1.1\r\nhost: faults\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
              sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )?;
        match self.head()? {
            (101, _) => Ok(self),
            (status, _) => Err(io::Error::other(format!("upgrade: {status}"))),
        }
    }

    /// A short text and its answer, each one frame (RFC 6455, section 5.2).
    pub(crate) fn message(&mut self, text: &str) -> io::Result<String> {
        // Masked with zeros, which is as good as any mask for a server.
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.send(&frame)?;
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut body = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut body)?;
        match head[0] {
            0x81 => Ok(String::from_utf8_lossy(&body).into_owned()),
            0x88 => Err(io::ErrorKind::ConnectionAborted.into()),
            other => Err(malformed(&format!("frame {other:#x}"))),
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::other(format!("not an answer: {what:?}"))
}
