//! Where connections come from: listeners, and older generations.

use std::sync::Arc;

use bytes::Bytes;
use handoff::{Accepted, Acceptor, Adopted, ConnectionGuard};
use tokio::sync::mpsc;

use crate::{
    connection::Carried,
    drain::{self, Live},
    io::Stream,
    service::{ConnectionInfo, Serve},
};

/// Accepts until this process is to accept no more.
pub(crate) async fn accept<S: Serve>(mut acceptor: Acceptor, server: Arc<Live<S>>) {
    let listener: Arc<str> = acceptor.name().into();
    while let Some(Accepted {
        stream,
        peer,
        guard,
        ..
    }) = acceptor.accept().await
    {
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
    let server = server.clone();
    tokio::spawn(async move { drain::serve(&server, stream, carried, info, guard).await });
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
