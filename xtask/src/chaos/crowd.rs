//! Clients that never retry, for as long as the chaos lasts. What becomes of their requests is counted; between two of
//! them each can be made to wait, so that the counts can be compared with the server's.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::faults::{Client, wait_for};

/// Who can have a request under way: two that keep their connection, one that does not, one that uploads, one that sends
/// a byte at a time, and a session.
pub(super) const CLIENTS: u64 = 6;
/// Connections that rest.
const IDLE: usize = 8;
const PAUSE: Duration = Duration::from_millis(3);
/// Requests that must be answered before the service counts as going on.
const GOES_ON: u64 = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) answered: u64,
    /// Sent, and not answered: the connection ended instead.
    pub(super) lost: u64,
    /// Connections that rested, and sessions, that were ended in order.
    pub(super) closed: u64,
    /// Not sent: nobody listens.
    pub(super) refused: u64,
    /// No answer for as long as a client waits.
    pub(super) silent: u64,
}

impl Counts {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            lost: self.lost - before.lost,
            closed: self.closed - before.closed,
            refused: self.refused - before.refused,
            silent: self.silent - before.silent,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.lost += other.lost;
        self.closed += other.closed;
        self.refused += other.refused;
        self.silent += other.silent;
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Held for reading by who has a request under way.
    gate: RwLock<()>,
    answered: AtomicU64,
    lost: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
    silent: AtomicU64,
    wrong: RwLock<Vec<String>>,
}

#[derive(Debug)]
pub(super) struct Crowd {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    idle: Vec<Client>,
}

impl Crowd {
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut crowd = Self {
            address,
            shared,
            threads: Vec::new(),
            idle: Vec::new(),
        };
        crowd.rest()?;
        let asks: [fn(&mut Client) -> io::Result<Asked>; 4] = [hello, hello, upload, slowly];
        for ask in asks {
            crowd.spawn(move |shared| exchanges(address, true, ask, shared));
        }
        crowd.spawn(move |shared| exchanges(address, false, hello, shared));
        crowd.spawn(move |shared| sessions(address, shared));
        Ok(crowd)
    }

    fn spawn(&mut self, client: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.threads
            .push(std::thread::spawn(move || client(&shared)));
    }

    /// As many connections rest as are to.
    fn rest(&mut self) -> Result<()> {
        while self.idle.len() < IDLE {
            let mut client = Client::connect(self.address)?;
            client.get("/healthz")?;
            self.idle.push(client);
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answered: get(&self.shared.answered),
            lost: get(&self.shared.lost),
            closed: get(&self.shared.closed),
            refused: get(&self.shared.refused),
            silent: get(&self.shared.silent),
        }
    }

    pub(super) fn goes_on(&self) -> Result<()> {
        let before = self.counts().answered;
        wait_for("requests are answered", || {
            Ok(self.counts().answered > before + GOES_ON)
        })
    }

    /// Asks on all connections that rest, and calls `look` while nobody has a request under way.
    pub(super) fn quiesce(&mut self, look: impl FnOnce(&Counts) -> Result<()>) -> Result<Counts> {
        let shared = Arc::clone(&self.shared);
        let _nobody = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut alive = Vec::new();
        for mut client in self.idle.drain(..) {
            match client.get("/healthz") {
                Ok((200, _)) => alive.push(client),
                Ok((status, _)) => shared.wrong(format!("a connection that rests got {status}")),
                Err(_) => {
                    shared.closed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.idle = alive;
        let counts = self.counts();
        look(&counts)?;
        let wrong = shared.wrong.read().unwrap_or_else(PoisonError::into_inner);
        if !wrong.is_empty() {
            bail!("wrong answers: {wrong:?}");
        }
        drop(wrong);
        self.rest().context("a connection that is to rest")?;
        Ok(counts)
    }

    /// The counts while nobody serves: there is nothing to be asked.
    pub(super) fn at_the_end_of_service(&self) -> Counts {
        let _nobody = self
            .shared
            .gate
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.counts()
    }

    pub(super) fn finish(mut self) -> Result<Counts> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().ok().context("a client has panicked")?;
        }
        Ok(self.counts())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn failed(&self, error: &io::Error) {
        let counter = match error.kind() {
            io::ErrorKind::ConnectionRefused => &self.refused,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => &self.silent,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => &self.lost,
            _ => return self.wrong(error.to_string()),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.write().unwrap_or_else(PoisonError::into_inner);
        wrong.push(what);
    }
}

type Asked = (u16, String);

fn hello(client: &mut Client) -> io::Result<Asked> {
    client.get("/hello")
}

fn upload(client: &mut Client) -> io::Result<Asked> {
    client.send(b"POST /upload HTTP/1.1\r\nhost: chaos\r\ncontent-length: 10\r\n\r\nhalf ")?;
    std::thread::sleep(PAUSE * 5);
    client.send(b"whole")?;
    client.answer()
}

fn slowly(client: &mut Client) -> io::Result<Asked> {
    for byte in b"GET /hello HTTP/1.1\r\nhost: chaos\r\n\r\n" {
        client.send(&[*byte])?;
        std::thread::sleep(PAUSE / 3);
    }
    client.answer()
}

/// One request after the other.
fn exchanges(
    address: SocketAddr,
    keeps: bool,
    ask: fn(&mut Client) -> io::Result<Asked>,
    shared: &Shared,
) {
    let mut kept = None;
    while shared.goes_on() {
        {
            let _under_way = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
            let connected = kept.take().map_or_else(|| Client::connect(address), Ok);
            let asked = connected.and_then(|mut client| Ok((ask(&mut client)?, client)));
            match asked {
                Ok(((200, _), client)) => {
                    shared.answered.fetch_add(1, Ordering::Relaxed);
                    kept = Some(client).filter(|client| keeps && !client.closes());
                }
                Ok(((status, body), _)) => shared.wrong(format!("{status}: {body}")),
                Err(error) => shared.failed(&error),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// One session, as long as it lasts, then the next.
fn sessions(address: SocketAddr, shared: &Shared) {
    let mut session: Option<(Client, u64)> = None;
    while shared.goes_on() {
        {
            let _under_way = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
            match session.take() {
                None => match Client::connect(address).and_then(Client::upgrade) {
                    Ok(client) => session = Some((client, 0)),
                    Err(error) => shared.failed(&error),
                },
                Some((mut client, said)) => match client.message("word") {
                    // The number is the session's own, and has moved with it.
                    Ok(answer) if answer.starts_with(&format!("{} ", said + 1)) => {
                        shared.answered.fetch_add(1, Ordering::Relaxed);
                        session = Some((client, said + 1));
                    }
                    Ok(answer) => {
                        shared.wrong(format!("message {said} was answered by {answer:?}"));
                    }
                    // By a Close frame.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                        shared.closed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => shared.failed(&error),
                },
            }
        }
        std::thread::sleep(PAUSE);
    }
}
