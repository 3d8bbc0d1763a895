//! The server's end: who may connect, what they may say, and the way back to them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::outbox::Outbox;
use super::{Event, MAX_CLIENTS, MAX_REQUEST_LEN, REQUEST_PATIENCE, Reply, Request};
use crate::rarely::Rarely;

/// How long not to accept when descriptors or memory have run out: the connection stays in the
/// backlog, so an accept would fail again at once.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How often to look whether a client that only listens (`| socat`) is still there. The kernel
/// tells it by POLLHUP, for which tokio has no wait of its own.
const HANG_UP_CHECK: Duration = Duration::from_secs(1);

/// Who is at the other end, by the kernel's word (`SO_PEERCRED`): the process that connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; 0 when it lives in a namespace that we do not see into.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
}

/// What a client asks, and the way back to it.
#[derive(Debug)]
pub struct Incoming {
    /// What it asks.
    pub request: Request,
    /// Who asks, for the log.
    pub peer: Peer,
    /// The way back.
    pub reply: Reply,
}

/// The control socket of a running process.
///
/// The listener is shared with other generations, so that no client ever meets a socket without an
/// owner: whose [`run`](Self::run) is polled accepts. To let another process accept, drop that
/// future (the clients that it accepted stay); to take over again, call `run` again.
#[derive(Debug)]
pub struct Server {
    /// `None` once it was closed.
    listener: Mutex<Option<OwnedFd>>,
    clients: Clients,
}

#[derive(Debug)]
struct Clients {
    slots: Arc<Semaphore>,
    outboxes: Mutex<Vec<Weak<Outbox>>>,
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

async fn wait_out(error: &io::Error, exhausted: &mut Rarely) {
    if let Some(times) = exhausted.again() {
        tracing::warn!(%error, times, "the control socket cannot accept; trying again");
    }
    tokio::time::sleep(EXHAUSTED_PAUSE).await;
}

impl Server {
    /// Serves a listening Unix stream socket, made by [`bind`](super::bind()) or inherited.
    ///
    /// # Errors
    ///
    /// If it cannot be made non-blocking, which it already is if it comes from `bind`.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Self {
            listener: Mutex::new(Some(listener)),
            clients: Clients {
                slots: Arc::new(Semaphore::new(MAX_CLIENTS)),
                outboxes: Mutex::default(),
            },
        })
    }

    /// A duplicate of the listener, to be passed on.
    ///
    /// # Errors
    ///
    /// `NotConnected` if it was [closed](Self::close); those of dup(2).
    pub fn listener(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        match listener.as_ref() {
            Some(listener) => listener.try_clone(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Closes this process's copy of the listener: another process accepts on it, or nobody. Clients
    /// that were accepted are served on. End [`run`](Self::run) before.
    pub fn close(&self) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Accepts clients and sends on what they ask, until the receiver of `requests` is dropped.
    /// Dropping the future stops the accepting and nothing else.
    ///
    /// # Errors
    ///
    /// If the listener cannot be used. Not for anything that a client does, and not for a lack of
    /// descriptors or memory, which is waited out.
    pub async fn run(&self, requests: mpsc::Sender<Incoming>) -> io::Result<()> {
        // A duplicate, so that it is registered with epoll for only as long as this runs: epoll
        // would go on to report a listener that another process accepts on.
        let mut exhausted = Rarely::default();
        let listener = loop {
            match self.listener() {
                Ok(listener) => break UnixListener::from_std(listener.into())?,
                Err(error) if is_exhaustion(&error) => {
                    wait_out(&error, &mut exhausted).await;
                }
                Err(error) => return Err(error),
            }
        };
        loop {
            let accepted = tokio::select! {
                () = requests.closed() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _address)) => self.admit(stream, &requests),
                Err(error) if is_exhaustion(&error) => wait_out(&error, &mut exhausted).await,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::CONNABORTED | Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Waits until all that was queued is with the kernel, which keeps it for the clients beyond the
    /// end of this process. Says whether that was so within `patience`.
    pub async fn flush(&self, patience: Duration) -> bool {
        let outboxes: Vec<Arc<Outbox>> = self
            .clients
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let all = async {
            for outbox in outboxes {
                outbox.flushed().await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    fn admit(&self, stream: UnixStream, requests: &mpsc::Sender<Incoming>) {
        let admitted = identify(&stream).and_then(|peer| Ok((peer, self.clients.slot()?)));
        let (peer, slot) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                tracing::warn!(reason, "refused a client of the control socket");
                return turn_away(&stream, reason);
            }
        };
        let outbox = Outbox::new();
        self.clients.register(&outbox);
        let (from, to) = stream.into_split();
        let conversation = Conversation {
            from,
            to,
            peer,
            outbox,
            _slot: slot,
        };
        tokio::spawn(conversation.run(requests.clone()));
    }
}

impl Clients {
    fn slot(&self) -> Result<OwnedSemaphorePermit, String> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            format!("{MAX_CLIENTS} clients are connected already; try again when one has gone")
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Outbox>>> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, outbox: &Arc<Outbox>) {
        let mut outboxes = self.lock();
        outboxes.retain(|outbox| outbox.strong_count() > 0);
        outboxes.push(Arc::downgrade(outbox));
    }
}

/// Who it is, or why that one is not listened to.
fn identify(stream: &UnixStream) -> Result<Peer, String> {
    // nix, because rustix has a nonzero pid here, and a peer from another namespace has none.
    let credentials = getsockopt(stream, PeerCredentials)
        .map_err(|errno| format!("the kernel does not say who you are: {errno}"))?;
    let peer = Peer {
        pid: credentials.pid(),
        uid: credentials.uid(),
    };
    let own = rustix::process::geteuid().as_raw();
    if may_command(peer.uid, own) {
        Ok(peer)
    } else {
        let allowed = match own {
            0 => "only root may".to_owned(),
            own => format!("uid {own} and root may"),
        };
        let uid = peer.uid;
        Err(format!("uid {uid} may not command this server; {allowed}"))
    }
}

pub(super) fn may_command(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

/// Tells somebody who gets no slot why, without a task or a wait: the buffer of a new socket has
/// room for one line, and whoever is not there to take it does not need it.
fn turn_away(stream: &UnixStream, reason: String) {
    if let Ok(mut line) = serde_json::to_vec(&Event::Refused { reason }) {
        line.push(b'\n');
        let _ = rustix::net::send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

struct Conversation {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    peer: Peer,
    outbox: Arc<Outbox>,
    _slot: OwnedSemaphorePermit,
}

impl Conversation {
    async fn run(mut self, requests: mpsc::Sender<Incoming>) {
        self.hear(requests).await;
        let end = tokio::select! {
            // In this order: what can be written at once is, also to somebody who is not listening.
            biased;
            result = write_out(&mut self.to, &self.outbox) => match result {
                Ok(()) => "answered",
                Err(_) => "it has gone",
            },
            () = self.outbox.abandoned() => "it does not read its answers",
            () = hung_up(&mut self.from) => "it hung up",
        };
        self.outbox.give_up();
        tracing::debug!(
            pid = self.peer.pid,
            end,
            "closed a connection of the control socket"
        );
    }

    /// Passes the request on, with the way back; or says what is wrong with it.
    async fn hear(&mut self, requests: mpsc::Sender<Incoming>) {
        // The answers end when the last clone of this is dropped.
        let reply = Reply::new(Arc::clone(&self.outbox));
        match self.request().await {
            Ok(request) => self.pass_on(request, &reply, &requests).await,
            Err(reason) => {
                tracing::warn!(
                    pid = self.peer.pid,
                    reason,
                    "not a request on the control socket"
                );
                reply.send(&Event::Invalid { reason });
            }
        }
    }

    async fn pass_on(&self, request: Request, reply: &Reply, requests: &mpsc::Sender<Incoming>) {
        tracing::debug!(
            pid = self.peer.pid,
            uid = self.peer.uid,
            ?request,
            "asked on the control socket"
        );
        let incoming = Incoming {
            request,
            peer: self.peer,
            reply: reply.clone(),
        };
        if requests
            .send_timeout(incoming, REQUEST_PATIENCE)
            .await
            .is_err()
        {
            reply.send(&Event::Refused {
                reason: "the server is too busy, or about to end; try again".to_owned(),
            });
        }
    }

    /// The first line, or what is wrong with it.
    async fn request(&mut self) -> Result<Request, String> {
        let line = tokio::time::timeout(REQUEST_PATIENCE, read_line(&mut self.from))
            .await
            .map_err(|_elapsed| format!("no request within {} s", REQUEST_PATIENCE.as_secs()))??;
        serde_json::from_slice(&line).map_err(|error| {
            format!(r#"not a request: {error}; send a line such as {{"verb":"status"}}"#)
        })
    }
}

/// Up to the first line end, which is not part of it.
pub(crate) async fn read_line(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, String> {
    let mut line = Vec::with_capacity(256);
    loop {
        let room = MAX_REQUEST_LEN - line.len();
        if room == 0 {
            return Err(format!(
                "a request is one line of less than {MAX_REQUEST_LEN} bytes"
            ));
        }
        let before = line.len();
        // `take` bounds what is read into memory, whatever the client sends.
        let read = from
            .take(room as u64)
            .read_buf(&mut line)
            .await
            .map_err(|error| format!("the request could not be read: {error}"))?;
        if let Some(end) = line[before..].iter().position(|byte| *byte == b'\n') {
            line.truncate(before + end);
            return Ok(line);
        }
        if read == 0 {
            return Err("the request's line does not end; end it with a newline".to_owned());
        }
    }
}

async fn write_out(to: &mut OwnedWriteHalf, outbox: &Outbox) -> io::Result<()> {
    while let Some(chunk) = outbox.take().await {
        to.write_all(&chunk).await?;
        outbox.written(chunk.len());
    }
    to.shutdown().await
}

/// Returns when the client cannot read any more, or talks too much. One that has said all it wants
/// and shut down its writing end (`echo … | socat`) is still there.
async fn hung_up(from: &mut OwnedReadHalf) {
    let mut surplus = [0; 512];
    let mut room = MAX_REQUEST_LEN;
    loop {
        match from.read(&mut surplus).await {
            Ok(0) => break,
            Ok(len) if len <= room => room -= len,
            Ok(_) | Err(_) => return,
        }
    }
    loop {
        let stream: &UnixStream = from.as_ref();
        let mut ends = [PollFd::new(stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let polled = rustix::event::poll(&mut ends, Some(&now));
        let interrupted = matches!(polled, Err(Errno::INTR));
        if (polled.is_err() && !interrupted) || ends[0].revents().contains(PollFlags::HUP) {
            return;
        }
        tokio::time::sleep(HANG_UP_CHECK).await;
    }
}
