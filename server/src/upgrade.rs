//! Connections that have left HTTP (WebSocket, or anything else that a `101` or a CONNECT begins), and how they move
//! to the next generation.
//!
//! # Contract
//!
//! A [`Protocol`] serves such a connection. While the process serves, nothing is asked of it. Once it is replaced,
//! [`Wants`] says [`Want::GiveUp`]; the protocol then ends its work **at a moment of its choosing** by
//! [`Upgraded::give_up`], with all that it has read and not understood, and with its session as bytes. The next
//! generation calls [`Protocol::serve`] with these bytes; the client, in the same connection, cannot tell.
//!
//! ```
//! use hello_server::upgrade::{Protocol, Served, Upgraded, Want};
//! use hello_server::BoxError;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! /// Answers each byte by how many there were, modulo 256.
//! struct Count;
//!
//! impl Protocol for Count {
//!     fn kind(&self) -> &str {
//!         "count/1"
//!     }
//!
//!     async fn serve(&self, mut connection: Upgraded, resumed: Option<Vec<u8>>) -> Result<Served, BoxError> {
//!         let mut count = resumed.map_or(0, |session| session[0]);
//!         let mut wants = connection.wants();
//!         loop {
//!             if wants.now() == Want::GiveUp {
//!                 return Ok(connection.give_up(Vec::new(), vec![count]));
//!             }
//!             tokio::select! {
//!                 _ = wants.changed() => {}
//!                 byte = connection.read_u8() => {
//!                     byte?;
//!                     count = count.wrapping_add(1);
//!                     connection.write_u8(count).await?;
//!                 }
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! In the build function `ctx.upgrade(Count)?` gives a handle; in a handler `handle.begin(&mut request)?`, and then an
//! answer with status 101. For WebSocket there is [`crate::websocket`].
//!
//! # Failure rules
//!
//! - The next generation refuses a [kind](Protocol::kind) that it does not know, and more bytes than it can take (16 MiB).
//!   The connection then comes back: `serve` is called again, in this process, with the same bytes, and is
//!   told to [`Want::Finish`].
//! - Bytes that the next generation cannot read are answered by [`InvalidSession`]: that connection is closed, counted
//!   (`sessions_lost` in the status) and logged; the others live.
//! - A protocol that does not give its connection up is waited for, and cut at the drain deadline.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use hyper::upgrade::OnUpgrade;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use crate::{
    connection::Order,
    exchange::Shared,
    io::Io,
    service::{BoxError, ConnectionInfo},
};

mod registry;

pub use registry::KindTaken;
pub(crate) use registry::Protocols;

/// What is spoken on upgraded connections, and how it moves. See the [module](self).
pub trait Protocol: Send + Sync + 'static {
    /// What is spoken, and the version of the session's bytes, e.g. `chat/1`. A build that does not know it does not take
    /// the connection; one that knows several versions registers a protocol for each. Always the same.
    fn kind(&self) -> &str;

    /// Serves one connection to its end, or until it is [given up](Upgraded::give_up).
    ///
    /// `resumed`: the session as bytes, if it was given up elsewhere. What was left over then is read first.
    ///
    /// Dropped at the drain deadline.
    ///
    /// # Errors
    /// Any: the connection is closed. [`InvalidSession`] for bytes that this build cannot read.
    fn serve(
        &self,
        connection: Upgraded,
        resumed: Option<Vec<u8>>,
    ) -> impl Future<Output = Result<Served, BoxError>> + Send;
}

/// How the service of an upgraded connection ended.
#[derive(Debug)]
#[must_use]
pub struct Served(pub(crate) Option<GivenUp>);

impl Served {
    /// To its end: whatever holds the connection yet is waited for, then it is closed.
    pub fn closed() -> Self {
        Self(None)
    }
}

/// A connection that was given up, with all that it brings along.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) io: Io,
    /// What the protocol had read.
    pub(crate) leftover: Vec<u8>,
    pub(crate) session: Vec<u8>,
}

/// A session as bytes that this build cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the session's data cannot be read: {0}")]
pub struct InvalidSession(pub String);

/// What the process wants of an upgraded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Want {
    /// Serve on.
    Serve,
    /// There is a successor: give the connection up at the next rest, see [`Upgraded::give_up`].
    GiveUp,
    /// No successor takes it: tell the client, and come to an end. There is time until the drain deadline.
    Finish,
    /// The process is being stopped: likewise.
    Stop,
    /// The deadline: reading and writing fails from now on.
    Cut,
}

/// What the process wants of an upgraded connection, now and later. Apart from the connection, so that both can
/// be awaited at once.
#[derive(Clone, Debug)]
pub struct Wants(watch::Receiver<Order>);

impl Wants {
    pub(crate) fn new(orders: watch::Receiver<Order>) -> Self {
        Self(orders)
    }

    /// What it wants now.
    pub fn now(&mut self) -> Want {
        match *self.0.borrow_and_update() {
            Order::Serve => Want::Serve,
            Order::HandOver => Want::GiveUp,
            Order::LastAnswer => Want::Finish,
            Order::Close => Want::Stop,
            Order::Cut => Want::Cut,
        }
    }

    /// Waits until it wants something else than [`Wants::now`] or this said last. Cancel safe.
    pub async fn changed(&mut self) -> Want {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.now()
    }
}

/// A connection that has left HTTP. Reads first what came with the request, or was left over elsewhere.
///
/// Dropped, it is closed in order: what was written arrives.
#[derive(Debug)]
pub struct Upgraded {
    io: Io,
    info: ConnectionInfo,
    wants: Wants,
}

impl Upgraded {
    pub(crate) fn new(io: Io, info: ConnectionInfo, wants: Wants) -> Self {
        Self { io, info, wants }
    }

    /// Which connection this is: the same as in the extensions of the request that began it.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// What the process wants of it.
    #[must_use]
    pub fn wants(&self) -> Wants {
        self.wants.clone()
    }

    /// Whether something can be read, also if tokio does not know it yet.
    pub(crate) fn has_arrived(&self) -> bool {
        self.io.has_arrived()
    }

    /// Gives the connection up, when [`Want::GiveUp`] says so: to be returned from [`Protocol::serve`]. All that was written must
    /// have been flushed.
    ///
    /// `leftover`: what was read and belongs to what the client says next; whoever takes the connection up reads
    /// it first. `session`: what else [`Protocol::serve`] must know to go on. At most 16 MiB in all.
    pub fn give_up(self, leftover: Vec<u8>, session: Vec<u8>) -> Served {
        Served(Some(GivenUp {
            io: self.io,
            leftover,
            session,
        }))
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Begins sessions of one [`Protocol`]; made by [`Context::upgrade`](crate::Context::upgrade). Clones are the same one.
#[derive(Clone)]
pub struct Upgrade {
    protocol: Arc<dyn AnyProtocol>,
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upgrade")
            .field(&self.protocol.kind())
            .finish()
    }
}

impl Upgrade {
    /// Begins a session on the request's connection, as soon as the request has been answered with status 101 (or, for
    /// CONNECT, with success). Returns at once; with another answer nothing begins.
    ///
    /// # Errors
    /// [`NotUpgradable`].
    pub fn begin<B>(&self, request: &mut Request<B>) -> Result<(), NotUpgradable> {
        let switch = request.extensions_mut().remove::<Switch>();
        let Switch(shared) = switch.ok_or(NotUpgradable)?;
        shared.begin(Begun {
            protocol: Arc::clone(&self.protocol),
            upgrade: hyper::upgrade::on(request),
        });
        Ok(())
    }
}

/// The request does not ask for another protocol (it has no `Upgrade`), or a session was begun on it before.
#[derive(Debug, thiserror::Error)]
#[error(
    "the request does not ask for another protocol: it has no `Upgrade`, or it was begun before"
)]
pub struct NotUpgradable;

/// In the extensions of a request that may be upgraded: where it says what begins then.
#[derive(Clone)]
pub(crate) struct Switch(pub(crate) Arc<Shared>);

/// What begins on a connection once hyper has left it.
pub(crate) struct Begun {
    pub(crate) protocol: Arc<dyn AnyProtocol>,
    pub(crate) upgrade: OnUpgrade,
}

type Serving<'a> = Pin<Box<dyn Future<Output = Result<Served, BoxError>> + Send + 'a>>;

/// A [`Protocol`] of whatever type.
pub(crate) trait AnyProtocol: Send + Sync + 'static {
    fn kind(&self) -> &str;
    fn serve(&self, connection: Upgraded, resumed: Option<Vec<u8>>) -> Serving<'_>;
}

impl<P: Protocol> AnyProtocol for P {
    fn kind(&self) -> &str {
        Protocol::kind(self)
    }

    fn serve(&self, connection: Upgraded, resumed: Option<Vec<u8>>) -> Serving<'_> {
        Box::pin(Protocol::serve(self, connection, resumed))
    }
}
