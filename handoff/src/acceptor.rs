//! Accepting on an inherited or bound listener, for exactly as long as this process should.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::{io::Errno, net::SocketFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
};

use crate::{
    listeners::{Kind, Listener},
    live::{ConnectionGuard, OtherGuard},
    rarely::Rarely,
    shared::{Phase, Shared},
};

/// How long to wait before another try when descriptors or memory have run out: the kernel
/// keeps the queue, and trying without a pause would take the processor from those who could give some back.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// An accepted or adopted connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Stream {
    /// Registers a connected socket with tokio.
    ///
    /// # Errors
    /// If it is neither TCP nor Unix, or cannot be registered.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        match rustix::net::sockopt::socket_domain(&fd)? {
            rustix::net::AddressFamily::UNIX => {
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Self::Unix)
            }
            rustix::net::AddressFamily::INET | rustix::net::AddressFamily::INET6 => {
                let stream = std::net::TcpStream::from(fd);
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            other => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("address family {other:?}"),
            )),
        }
    }

    /// Takes it from tokio: no epoll knows it any more, as a handover demands.
    ///
    /// # Errors
    /// If it cannot be deregistered.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(OwnedFd::from),
            Self::Unix(stream) => stream.into_std().map(OwnedFd::from),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A connection that was accepted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// The client; `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// To be kept as long as the connection lives.
    pub guard: ConnectionGuard,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts on one listener while this process should: not before the commit, not in a
/// successor's probation, and no more once the successor is final.
///
/// The drain waits for every acceptor to end or be dropped.
#[derive(Debug)]
pub struct Acceptor {
    name: String,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    socket: Option<Socket>,
    alive: Option<OtherGuard>,
    exhausted: Rarely,
}

/// All listeners, registered with tokio: what can fail has been done before the process is committed.
#[derive(Debug)]
pub(crate) struct Acceptors(HashMap<String, Socket>);

impl Acceptors {
    pub(crate) fn new(shared: &Shared) -> io::Result<Self> {
        let register = |listener: &Arc<Listener>| {
            let fd = listener.as_fd().try_clone_to_owned()?;
            let socket = match listener.kind() {
                Kind::Tcp => Socket::Tcp(TcpListener::from_std(fd.into())?),
                Kind::Unix => Socket::Unix(UnixListener::from_std(fd.into())?),
            };
            Ok((listener.name().to_owned(), socket))
        };
        shared
            .listeners()
            .iter()
            .map(register)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The acceptor of the named listener, once.
    pub(crate) fn take(&mut self, name: &str, shared: &Arc<Shared>) -> Option<Acceptor> {
        let (name, socket) = self.0.remove_entry(name)?;
        Some(Acceptor {
            name,
            phase: shared.phase.subscribe(),
            alive: Some(shared.live.other()),
            socket: Some(socket),
            exhausted: Rarely::default(),
            shared: shared.clone(),
        })
    }
}

impl Acceptor {
    /// The listener's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next connection; `None` when this process is to accept no more.
    ///
    /// Waits while the service has as many connections as it may have
    /// ([`Builder::max_connections`](crate::Builder::max_connections)). A lack of descriptors or memory is
    /// waited out. Cancel safe.
    pub async fn accept(&mut self) -> Option<Accepted> {
        loop {
            let phase = *self.phase.borrow_and_update();
            self.socket.as_ref()?;
            match phase {
                Phase::Starting | Phase::Paused => {
                    let _ = self.phase.changed().await;
                }
                // What was accepted so far is counted. Nobody need wait for this acceptor, until it may bring
                // another one.
                Phase::Returning => {
                    self.alive = None;
                    let _ = self.phase.changed().await;
                }
                Phase::Serving => {
                    if self.alive.is_none() {
                        self.alive = Some(self.shared.live.other());
                    }
                    let socket = self.socket.as_ref()?;
                    tokio::select! {
                        biased;
                        _ = self.phase.changed() => {}
                        // Others may be accepted or adopted while this waits for a client.
                        () = self.shared.live.full() => {
                            self.room().await;
                        }
                        result = accept(socket) => match result {
                            Ok((stream, peer)) => return Some(self.accepted(stream, peer)),
                            Err(error) => self.after(&error).await,
                        },
                    }
                }
                // Nobody else accepts on this socket: what is in its queue is answered.
                Phase::Stopping => {
                    if self.room().await {
                        return self.last();
                    }
                }
                Phase::HandingOver | Phase::Finishing if self.shared.is_removed(&self.name) => {
                    if self.room().await {
                        return self.last();
                    }
                }
                Phase::HandingOver | Phase::Finishing | Phase::Cut => {
                    self.end();
                    return None;
                }
            }
        }
    }

    /// Waits for room below the limit: what waits in the backlog is found by the next generation, too.
    /// `false` if the phase has changed first.
    async fn room(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.phase.changed() => false,
            () = self.shared.live.room() => true,
        }
    }

    fn accepted(&self, stream: Stream, peer: Option<SocketAddr>) -> Accepted {
        Accepted {
            stream,
            peer,
            guard: self.shared.live.connection(),
        }
    }

    /// What is queued now, or the end. Past tokio, which may not have heard of it yet.
    fn last(&mut self) -> Option<Accepted> {
        loop {
            let accepted = match self.socket.as_ref()? {
                Socket::Tcp(listener) => accept_now(listener),
                Socket::Unix(listener) => accept_now(listener),
            };
            match accepted {
                Ok((stream, peer)) => return Some(self.accepted(stream, peer)),
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::CONNABORTED | Errno::INTR)
                    ) => {}
                Err(e) => {
                    if e.kind() != io::ErrorKind::WouldBlock {
                        tracing::error!(listener = self.name, error = %e, "cannot empty the queue");
                    }
                    self.end();
                    return None;
                }
            }
        }
    }

    fn end(&mut self) {
        // Where nobody accepts after us, whoever comes is to be refused at once, and not let into a
        // queue that is reset at the end.
        let is_last = *self.phase.borrow() == Phase::Stopping || self.shared.is_removed(&self.name);
        if self.socket.take().is_some() && is_last {
            self.shared.forget_listener(&self.name);
        }
        self.alive = None;
    }

    async fn after(&mut self, error: &io::Error) {
        match Errno::from_io_error(error) {
            // That client has gone already (accept(2)).
            Some(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM,
            ) => {}
            _ => {
                if let Some(times) = self.exhausted.again() {
                    tracing::warn!(listener = self.name, %error, times, "cannot accept; waiting");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

async fn accept(socket: &Socket) -> io::Result<(Stream, Option<SocketAddr>)> {
    match socket {
        Socket::Tcp(listener) => listener
            .accept()
            .await
            .map(|(stream, peer)| (Stream::Tcp(stream), Some(peer))),
        Socket::Unix(listener) => listener
            .accept()
            .await
            .map(|(stream, _)| (Stream::Unix(stream), None)),
    }
}

fn accept_now(listener: &impl AsFd) -> io::Result<(Stream, Option<SocketAddr>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    Ok((Stream::from_fd(fd)?, peer))
}
