//! Where connections come from: listeners, and older generations.

use std::sync::Arc;

use bytes::Bytes;
use handoff::{Accepted, Acceptor, Adopted, Stream};
use tokio::sync::mpsc;

use crate::{
    connection::Carried,
    drain::{self, Live, Taken},
    service::Serve,
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
        if let Stream::Tcp(tcp) = &stream
            && let Err(error) = tcp.set_nodelay(true)
        {
            // The client has gone already; reading will tell.
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let info = server.info(peer, listener.clone());
        let taken = Taken {
            stream,
            carried: Carried::default(),
            info,
            guard,
        };
        drain::spawn(&server, |server| drain::serve(server, taken));
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
        match server.kinds.get(&connection.kind) {
            Some(kind) => kind.take_up(&server, connection, guard),
            None => {
                let kind = connection.kind;
                tracing::error!(kind, "a connection was handed over that nobody here serves");
            }
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
