//! What happens to each connection after the commit: handed over at rest, else finished, else cut.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use handoff::{Connection, ConnectionGuard, NotMoved, Phase, Serving};
use tokio::sync::watch;

use crate::{
    accept::leftover,
    clock::Spent,
    connection::{self, Carried, Config, End, Order, Rested},
    io::Stream,
    kinds::{Kinds, TakeUp},
    pool::{self, Dormant, Pool},
    service::{ConnectionInfo, Informed, Serve},
    session,
};

/// The kind of a connection at rest between two HTTP/1.1 requests.
pub(crate) const HTTP1: &str = "http/1.1";

/// How long the client has been waited for, in a handed-over connection.
const WAITED: &str = "waited";

/// How long it has been at the head of its request.
const HEAD: &str = "head";

/// All that the connections of a server share.
#[derive(Debug)]
pub(crate) struct Live<S> {
    pub(crate) serving: Serving,
    pub(crate) service: S,
    pub(crate) config: Config,
    pub(crate) orders: watch::Receiver<Order>,
    /// The names of the listeners.
    pub(crate) listeners: Vec<Arc<str>>,
    /// Those that rest.
    pub(crate) pool: Pool,
    /// Who takes up what older generations give up.
    pub(crate) kinds: Kinds<S>,
    /// Sessions of upgraded connections that this build could not read.
    pub(crate) sessions_lost: Arc<AtomicU64>,
}

impl<S> Live<S> {
    /// The name of a listener, as all its connections share it.
    pub(crate) fn listener(&self, name: &str) -> Arc<str> {
        let known = self.listeners.iter().find(|known| ***known == *name);
        // One that this build has not got: its connections live on.
        known.cloned().unwrap_or_else(|| name.into())
    }

    /// What the requests of a connection are told of it.
    pub(crate) fn info(&self, peer: Option<SocketAddr>, listener: Arc<str>) -> ConnectionInfo {
        ConnectionInfo::new(peer, listener, self.orders.clone())
    }
}

/// Serves one connection in a task of its own.
pub(crate) fn spawn<S, F>(server: &Arc<Live<S>>, serve: impl FnOnce(Arc<Live<S>>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(serve(server.clone()));
}

/// Turns what the process as a whole does into orders to its connections.
pub(crate) async fn command(mut phase: watch::Receiver<Phase>, orders: watch::Sender<Order>) {
    loop {
        let order = match *phase.borrow_and_update() {
            phase if phase.gives_up() => Order::HandOver,
            Phase::Finishing => Order::LastAnswer,
            Phase::Stopping => Order::Close,
            Phase::Cut => Order::Cut,
            _ => Order::Serve,
        };
        orders.send_replace(order);
        if phase.changed().await.is_err() {
            return;
        }
    }
}

/// A connection that nobody serves at the moment.
pub(crate) struct Taken {
    pub(crate) stream: Stream,
    pub(crate) carried: Carried,
    pub(crate) info: ConnectionInfo,
    pub(crate) guard: ConnectionGuard,
}

/// Serves a connection to its end in this process, or gives it up.
///
/// Not an `async fn`, for [`connection::serve`]'s reason.
pub(crate) fn serve<S: Serve>(
    server: Arc<Live<S>>,
    taken: Taken,
) -> impl Future<Output = ()> + Send + use<S> {
    let Taken {
        mut stream,
        mut carried,
        info,
        mut guard,
    } = taken;
    async move {
        let end = loop {
            let orders = server.orders.clone();
            let service = informed(&server, &info);
            let end = {
                let busy = |request: &str| guard.waits_for(&name(&info, Some(request)));
                connection::serve(stream, carried, service, &server.config, orders, &busy).await
            };
            let End::Rests(rested) = end else {
                break end;
            };
            match rest(&server, Dormant::new(rested, &info, guard)) {
                None => return,
                Some(taken) => {
                    (stream, carried, guard) = (taken.stream, taken.carried, taken.guard);
                }
            }
        };
        match end {
            End::Closed | End::Rests(_) => {}
            End::Cut { request } => guard.cut(&name(&info, request.as_deref())),
            End::Upgraded(session) => Box::pin(session::run(&server, session, info, guard)).await,
            End::GivenUp(rested) => hand_over(&server, rested, info, guard),
        }
    }
}

/// Lets a connection rest in the pool. It comes back if it cannot.
fn rest<S: Serve>(server: &Arc<Live<S>>, dormant: Dormant) -> Option<Taken> {
    let dormant = server
        .pool
        .admit(dormant, server.config.idle_timeout)
        .err()?;
    match pool::awake(server, dormant) {
        Ok(taken) => Some(taken),
        Err(error) => {
            tracing::error!(%error, "a connection at rest cannot be served");
            None
        }
    }
}

/// Gives the connection to the next generation; it is served on here if it does not move.
pub(crate) fn hand_over<S: Serve>(
    server: &Arc<Live<S>>,
    rested: Rested,
    info: ConnectionInfo,
    mut guard: ConnectionGuard,
) {
    guard.moves_as(if rested.answered { "answered" } else { "idle" });
    let here = server.clone();
    let connection = give_up(rested, &info);
    server
        .serving
        .hand_over_or(connection, guard, move |not_moved| {
            come_back(&here, not_moved, info);
        });
}

fn informed<S: Serve>(server: &Live<S>, info: &ConnectionInfo) -> Informed<S> {
    Informed {
        service: server.service.clone(),
        info: Arc::new(info.clone()),
    }
}

/// A connection that did not move is served on here.
fn come_back<S: Serve>(server: &Arc<Live<S>>, not_moved: NotMoved, info: ConnectionInfo) {
    let NotMoved {
        connection, reason, ..
    } = not_moved;
    tracing::debug!(reason, peer = ?info.peer, "a connection stays");
    // Without one, somebody else may be serving it: then nobody here does.
    let Some((connection, guard)) = connection else {
        return;
    };
    let rested = rested(connection);
    if serves(server) {
        // Whoever was to have it has died, and this process is the one that serves.
        return begin(server, rested, info, guard);
    }
    match Stream::from_fd(rested.socket) {
        Ok(stream) => spawn(server, |server| async move {
            let carried = rested.carried;
            serve_to_its_end(&server, stream, carried, info, guard).await;
        }),
        Err(error) => {
            tracing::error!(%error, "a connection that came back cannot be served");
            guard.cut(&name(&info, None));
        }
    }
}

/// Whether this process is the one that serves, so that nothing has to end here.
pub(crate) fn serves<S>(server: &Live<S>) -> bool {
    *server.serving.phase().borrow() == Phase::Serving
}

async fn serve_to_its_end<S: Serve>(
    server: &Live<S>,
    stream: Stream,
    carried: Carried,
    info: ConnectionInfo,
    guard: ConnectionGuard,
) {
    let service = informed(server, &info);
    let busy = |request: &str| guard.waits_for(&name(&info, Some(request)));
    let served = stay(
        |orders| connection::serve(stream, carried, service, &server.config, orders, &busy),
        server.orders.clone(),
    )
    .await;
    match served {
        End::Cut { request } => guard.cut(&name(&info, request.as_deref())),
        End::Upgraded(session) => Box::pin(session::run(server, session, info, guard)).await,
        // The orders here are such that none rests.
        End::Closed | End::GivenUp(_) | End::Rests(_) => {}
    }
}

/// Serves a connection that was refused: its next answer is its last here, whatever the others do.
pub(crate) async fn stay<F: Future>(
    serve: impl FnOnce(watch::Receiver<Order>) -> F,
    mut orders: watch::Receiver<Order>,
) -> F::Output {
    let (own, own_orders) = watch::channel(Order::LastAnswer);
    let mut obey = async || -> Infallible {
        loop {
            let order = *orders.borrow_and_update();
            if matches!(order, Order::Close | Order::Cut) {
                own.send_replace(order);
            }
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        end = serve(own_orders) => end,
        never = obey() => match never {},
    }
}

/// How the report calls a connection that is cut.
pub(crate) fn name(info: &ConnectionInfo, request: Option<&str>) -> String {
    let peer = info.peer.map_or_else(
        || format!("a client of {}", info.listener),
        |peer| peer.to_string(),
    );
    format!("{peer} {}", request.unwrap_or("(no request)"))
}

/// As it travels.
fn give_up(rested: Rested, info: &ConnectionInfo) -> Connection {
    let Rested {
        socket,
        carried: Carried { leftover, spent },
        answered: _,
    } = rested;
    let mut connection = Connection::new(HTTP1, &*info.listener, socket);
    connection.peer = info.peer;
    if !leftover.is_empty() {
        connection.layers.push(leftover.into());
    }
    connection.timers.push((WAITED.to_owned(), spent.waited));
    connection
        .timers
        .extend(spent.head.map(|head| (HEAD.to_owned(), head)));
    connection
}

/// Takes up connections at rest between two HTTP/1.1 requests.
pub(crate) struct Http1;

impl<S: Serve> TakeUp<S> for Http1 {
    fn take_up(&self, server: &Arc<Live<S>>, connection: Connection, guard: ConnectionGuard) {
        let info = server.info(connection.peer, server.listener(&connection.listener));
        begin(server, rested(connection), info, guard);
    }
}

/// Serves a connection that has come here: in the pool if it rests, else in a task.
fn begin<S: Serve>(
    server: &Arc<Live<S>>,
    rested: Rested,
    info: ConnectionInfo,
    guard: ConnectionGuard,
) {
    if rested.carried.is_nothing() {
        if let Some(taken) = rest(server, Dormant::new(rested, &info, guard)) {
            spawn(server, |server| serve(server, taken));
        }
        return;
    }
    match Stream::from_fd(rested.socket) {
        Ok(stream) => {
            let taken = Taken {
                stream,
                carried: rested.carried,
                info,
                guard,
            };
            spawn(server, |server| serve(server, taken));
        }
        Err(error) => {
            tracing::error!(%error, "a connection that was handed over cannot be served");
        }
    }
}

/// As it came.
fn rested(connection: Connection) -> Rested {
    let spent = Spent {
        waited: connection.timer(WAITED).unwrap_or(Duration::ZERO),
        head: connection.timer(HEAD),
    };
    Rested {
        carried: Carried {
            leftover: leftover(connection.layers),
            spent,
        },
        socket: connection.fd,
        answered: false,
    }
}
