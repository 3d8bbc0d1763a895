//! Where connections come from: listeners, and older generations.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use handoff::{Accepted, Acceptor, Adopted, ConnectionGuard};
use tokio::sync::{Notify, mpsc};

use crate::{
    connection::Carried,
    drain::{self, Live},
    io::Stream,
    service::{ConnectionInfo, Serve},
};

/// How many connections there are, and may be.
#[derive(Debug)]
pub(crate) struct Slots {
    taken: AtomicUsize,
    most: usize,
    changed: Notify,
}

impl Slots {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            most,
            changed: Notify::new(),
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits until a connection may be accepted, or until none may be.
    async fn are(&self, full: bool) {
        loop {
            let changed = self.changed.notified();
            if (self.taken() >= self.most) == full {
                return;
            }
            changed.await;
        }
    }

    /// Takes one, also beyond the limit: a connection that is adopted was accepted already.
    pub(crate) fn take(self: &Arc<Self>) -> Slot {
        if self.taken.fetch_add(1, Ordering::Relaxed) + 1 >= self.most {
            self.changed.notify_waiters();
        }
        Slot(self.clone())
    }
}

/// One connection's place.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        // Each accept loop may be waiting, and one slot may serve any of them.
        self.0.changed.notify_waiters();
    }
}

/// Accepts until this process is to accept no more.
pub(crate) async fn accept<S: Serve>(mut acceptor: Acceptor, server: Arc<Live<S>>) {
    let listener: Arc<str> = acceptor.name().into();
    loop {
        // More wait in the backlog, where the next generation finds them, too.
        server.slots.are(false).await;
        let accepted = tokio::select! {
            biased;
            // Others may be accepted or adopted while this waits for a client.
            () = server.slots.are(true) => continue,
            accepted = acceptor.accept() => accepted,
        };
        let Some(Accepted {
            stream,
            peer,
            guard,
            ..
        }) = accepted
        else {
            return;
        };
        if let handoff::Stream::Tcp(tcp) = &stream
            && let Err(error) = tcp.set_nodelay(true)
        {
            // The client has gone already; reading will tell.
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let info = ConnectionInfo {
            peer,
            listener: listener.clone(),
        };
        spawn(&server, stream.into(), Carried::default(), info, guard);
    }
}

/// Takes up what older generations give up, until there are none.
pub(crate) async fn adopt<S: Serve>(
    mut adopted: mpsc::UnboundedReceiver<Adopted>,
    server: Arc<Live<S>>,
) {
    while let Some(Adopted {
        connection, guard, ..
    }) = adopted.recv().await
    {
        let info = ConnectionInfo {
            peer: connection.peer,
            listener: connection.listener.as_str().into(),
        };
        match drain::take_up(connection) {
            Ok((stream, carried)) => spawn(&server, stream, carried, info, guard),
            Err(error) => {
                tracing::error!(%error, "a connection that was handed over cannot be served");
            }
        }
    }
}

fn spawn<S: Serve>(
    server: &Arc<Live<S>>,
    stream: Stream,
    carried: Carried,
    info: ConnectionInfo,
    guard: ConnectionGuard,
) {
    let slot = server.slots.take();
    let server = server.clone();
    tokio::spawn(async move {
        drain::serve(&server, stream, carried, info, guard).await;
        drop(slot);
    });
}

impl From<handoff::Stream> for Stream {
    fn from(stream: handoff::Stream) -> Self {
        match stream {
            handoff::Stream::Tcp(stream) => stream.into(),
            handoff::Stream::Unix(stream) => stream.into(),
        }
    }
}

/// Joins the layers that a connection brings along: plain HTTP has one at the most.
pub(crate) fn leftover(mut layers: Vec<Vec<u8>>) -> Bytes {
    match layers.len() {
        0 => Bytes::new(),
        1 => layers.swap_remove(0).into(),
        _ => layers.concat().into(),
    }
}
