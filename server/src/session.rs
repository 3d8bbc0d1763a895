//! One upgraded connection of a [`Protocol`](crate::upgrade::Protocol): served, handed over, taken up, or come back.
//!
//! # How it travels
//!
//! Its kind is `upgraded/1 <kind>`: the version is that of the layout here, the rest is the application's. `layers`, outermost first: what
//! the socket's wrapper holds, then what the protocol had read before. `data`: the length of the request's name in
//! two bytes (little endian), the name, the session.
//!
//! # Failure rules
//!
//! What is refused comes back, is served on and told to finish. Whatever cannot be read is closed and counted; only the deadline cuts.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use handoff::{Connection, ConnectionGuard, NotMoved};
use tokio::sync::watch;

use crate::{
    connection::{Order, unless_cut},
    drain::{self, Live, name, stay},
    exchange::Shared,
    io::{Io, Stream},
    kinds::TakeUp,
    linger::linger,
    service::{ConnectionInfo, Serve},
    upgrade::{AnyProtocol, GivenUp, InvalidSession, Served, Upgraded, Wants},
};

/// The longest name of a request that travels, in bytes.
const MAX_NAME: usize = 200;

/// A session that nobody serves at the moment.
pub(crate) struct Session {
    pub(crate) protocol: Arc<dyn AnyProtocol>,
    /// The request that it began with, e.g. `GET /ws`.
    pub(crate) request: String,
    pub(crate) stream: Stream,
    /// What is to be read before the socket.
    pub(crate) leftover: Bytes,
    /// The session as bytes, if it does not begin here.
    pub(crate) resumed: Option<Vec<u8>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("kind", &self.protocol.kind())
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

/// How its service ended.
enum End {
    Closed,
    GivenUp(GivenUp),
    /// The session's data cannot be read.
    Invalid(String),
    Cut,
}

/// What this kind of connection is called between generations.
pub(crate) fn kind(protocol: &dyn AnyProtocol) -> String {
    format!("upgraded/1 {}", protocol.kind())
}

/// Serves a session to its end in this process.
pub(crate) async fn run<S>(
    server: &Live<S>,
    session: Session,
    info: ConnectionInfo,
    mut guard: ConnectionGuard,
) {
    let protocol = Arc::clone(&session.protocol);
    let request = session.request.clone();
    let mut end = {
        let mut orders = server.orders.clone();
        let named = async {
            if orders
                .wait_for(|order| *order != Order::Serve)
                .await
                .is_ok()
            {
                guard.waits_for(&name(&info, Some(&request)));
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            end = serve(session, &info, server.orders.clone()) => end,
            () = named => End::Closed,
        }
    };
    if let End::GivenUp(given_up) = end {
        guard.moves_as("upgraded");
        let connection = match pack(given_up, &*protocol, &request, &info) {
            Ok(connection) => connection,
            Err(error) => {
                return tracing::error!(%error, "a connection is lost: it cannot be given up");
            }
        };
        let Err(NotMoved {
            connection, reason, ..
        }) = server.serving.hand_over(connection, guard).await
        else {
            return;
        };
        tracing::debug!(reason, peer = ?info.peer, "an upgraded connection stays");
        // Without one, somebody else may be serving it: then nobody here does.
        let Some((connection, back)) = connection else {
            return;
        };
        guard = back;
        end = match unpack(connection, protocol) {
            // Whoever was to have it has died, and this process is the one that serves.
            Ok(session) if drain::serves(server) => {
                return Box::pin(run(server, session, info, guard)).await;
            }
            Ok(session) => {
                stay(
                    |orders| serve(session, &info, orders),
                    server.orders.clone(),
                )
                .await
            }
            Err(reason) => End::Invalid(reason),
        };
    }
    match end {
        End::Closed => {}
        End::GivenUp(_) => {
            tracing::error!(peer = ?info.peer, request, "given up though nobody takes it: closed");
        }
        End::Invalid(reason) => {
            let name = name(&info, Some(&request));
            tracing::error!(
                reason,
                name,
                "a session that moved here cannot be taken up: closed"
            );
            server.sessions_lost.fetch_add(1, Relaxed);
            guard.cut(&name);
        }
        End::Cut => guard.cut(&name(&info, Some(&request))),
    }
}

/// The end of whoever serves the connection is the end of its use, wherever the application holds it.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.cut();
    }
}

async fn serve(session: Session, info: &ConnectionInfo, mut orders: watch::Receiver<Order>) -> End {
    let owner = Owner(Shared::new());
    let shared = &owner.0;
    shared.upgrade();
    let io = Io::new(session.stream, session.leftover, Arc::clone(shared));
    let connection = Upgraded::new(io, info.clone(), Wants::new(orders.clone()));
    let serving = session.protocol.serve(connection, session.resumed);
    match unless_cut(&mut orders, serving).await {
        None => return End::Cut,
        Some(Ok(Served(Some(given_up)))) => return End::GivenUp(given_up),
        Some(Ok(Served(None))) => {}
        Some(Err(error)) => match error.downcast::<InvalidSession>() {
            Ok(invalid) => return End::Invalid(invalid.0),
            Err(error) => tracing::debug!(%error, peer = ?info.peer, "an upgraded connection ends"),
        },
    }
    // The application may hold it yet, in a task of its own.
    let returned = std::future::poll_fn(|cx| shared.poll_returned(cx));
    let Some(stream) = unless_cut(&mut orders, returned).await else {
        return End::Cut;
    };
    if !shared.ended.load(Relaxed) {
        unless_cut(&mut orders, Box::pin(linger(stream, Vec::new()))).await;
    }
    End::Closed
}

/// As it travels.
fn pack(
    given_up: GivenUp,
    protocol: &dyn AnyProtocol,
    request: &str,
    info: &ConnectionInfo,
) -> io::Result<Connection> {
    let GivenUp {
        io,
        leftover,
        session,
    } = given_up;
    let (stream, unread) = io.into_parts().ok_or(io::ErrorKind::NotConnected)?;
    let mut connection = Connection::new(kind(protocol), &*info.listener, stream.into_fd()?);
    connection.peer = info.peer;
    connection.layers = vec![unread.into(), leftover];
    let request = &request[..request.floor_char_boundary(MAX_NAME)];
    let length = u16::try_from(request.len()).unwrap_or(0);
    connection.data = [&length.to_le_bytes(), request.as_bytes(), &session].concat();
    Ok(connection)
}

/// As it is served; the reason if that is impossible.
fn unpack(connection: Connection, protocol: Arc<dyn AnyProtocol>) -> Result<Session, String> {
    let (request, session) =
        split(&connection.data).ok_or("its data is not laid out as it should")?;
    let (request, resumed) = (request.to_owned(), Some(session.to_vec()));
    Ok(Session {
        protocol,
        request,
        stream: Stream::from_fd(connection.fd).map_err(|error| error.to_string())?,
        leftover: leftover(connection.layers),
        resumed,
    })
}

fn split(data: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    let (request, session) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    Some((std::str::from_utf8(request).ok()?, session))
}

/// What the innermost layer had read came first.
fn leftover(mut layers: Vec<Vec<u8>>) -> Bytes {
    layers.retain(|layer| !layer.is_empty());
    if layers.len() == 1 {
        return layers.swap_remove(0).into();
    }
    let mut joined = BytesMut::new();
    layers
        .iter()
        .rev()
        .for_each(|layer| joined.extend_from_slice(layer));
    joined.freeze()
}

/// Takes up the sessions of one protocol.
pub(crate) struct Sessions(pub(crate) Arc<dyn AnyProtocol>);

impl<S: Serve> TakeUp<S> for Sessions {
    fn take_up(&self, server: &Arc<Live<S>>, connection: Connection, guard: ConnectionGuard) {
        let info = server.info(connection.peer, connection.listener.as_str().into());
        match unpack(connection, Arc::clone(&self.0)) {
            Ok(session) => {
                drain::spawn(server, |server| async move {
                    run(&server, session, info, guard).await;
                });
            }
            Err(reason) => {
                let name = name(&info, None);
                tracing::error!(
                    reason,
                    name,
                    "a session that moved here cannot be taken up: closed"
                );
                server.sessions_lost.fetch_add(1, Relaxed);
                guard.cut(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
