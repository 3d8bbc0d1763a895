//! Serve any hyper, tower or axum service over HTTP/1.1, and replace the process by its next build without a
//! client noticing.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use hello_server::{Server, state::Counter};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! Server::build(|ctx| async move {
//!     // Configuration and warm-up: the old build serves meanwhile.
//!     let hits = ctx.state(Counter::new("hits")).await?;
//!     Ok(Router::new().route("/", get(move || async move { format!("hit {}\n", hits.add(1)) })))
//! })
//! .name("my-service")
//! .listen("http", "127.0.0.1:8321".parse()?)
//! .run()
//! .await?;
//! # Ok(())
//! # }
//! ```
//!
//! `kill -USR2` by the pidfile, or `hello reload --pidfile …`, then replaces it by what is on disk.
//!
//! # Layout
//!
//! - [`Server`] says what the server is and runs it; [`Context`] is what the application gets while it starts.
//! - `connection` serves one connection and knows when it rests between two requests; `drain` hands it to the
//!   next generation then; `accept` brings new ones, and those of the generation before.
//!
//! # Failure rules
//!
//! A connection moves only between two requests, when nothing of the last one is left: not in the handler, not in a
//! buffer, not in the body. What cannot move is answered to its end with `Connection: close`, within the
//! drain deadline. A request that has arrived is never answered by silence.

#![forbid(unsafe_code)]

mod accept;
mod admin;
mod body;
mod clock;
mod connection;
mod dormant;
mod drain;
mod exchange;
mod farewell;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod kinds;
mod life;
mod linger;
mod malformed;
mod pool;
mod probe;
mod service;
mod session;
pub mod upgrade;
pub mod websocket;

/// The programs of docs/embedding.md compile; those that need no server run.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embedding.md")]
struct Embedding;

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use handoff::{
    Builder, Orphan, Report, StartError, Starting,
    listeners::{Address, Spec},
    state::Section,
};
use tokio::sync::{Mutex, watch};

use crate::{
    admin::{Pages, Tally, measured::Measured},
    connection::{Config, Order},
    drain::{Http1, Live},
    kinds::Kinds,
    pool::Pool,
    session::Sessions,
    upgrade::{AnyProtocol, KindTaken, Protocol, Protocols, Upgrade},
};

pub use body::RequestBody;
pub use handoff::{listeners, state};
pub use service::{BoxError, ConnectionInfo, Hyper, IntoService, Serve, Tower, TowerService};

/// Why the server does not serve, or ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not start; the parent, if there is one, serves on.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The application could not start; likewise.
    #[error("{0}")]
    Application(BoxError),
    /// The probe was not answered with success; likewise.
    #[error("{0}")]
    Unhealthy(String),
    /// It served, and was told to end before its time.
    #[error("{0}")]
    Ended(String),
}

/// What the application has while it starts.
#[derive(Debug)]
pub struct Context {
    starting: Arc<Mutex<Option<Starting>>>,
    protocols: Arc<Protocols>,
    generation: u64,
}

impl Context {
    /// 1 for the first process of a service, one more for each that replaces it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes a section of the state: as the generation before had it, else as given.
    ///
    /// The first call says that this process is prepared: whatever takes long and may fail belongs
    /// before it.
    ///
    /// # Errors
    /// If the section of the generation before cannot be read by this build.
    pub async fn state<S: Section>(&self, section: S) -> Result<Arc<S>, StartError> {
        match self.starting.lock().await.as_mut() {
            Some(starting) => starting.state(section).await,
            None => Err(StartError::Ended("the start has ended".to_owned())),
        }
    }

    /// Speaks `protocol` on upgraded connections that the application [begins](Upgrade::begin), and on those that the generation before
    /// gives up.
    ///
    /// # Errors
    /// [`KindTaken`].
    pub fn upgrade(&self, protocol: impl Protocol) -> Result<Upgrade, KindTaken> {
        self.protocols.add(Arc::new(protocol))
    }
}

/// Limits of a server and of its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at once, of all generations together; more wait in the backlog. Those that move here count,
    /// and are never refused. Default: 10,000.
    pub connections: usize,
    /// From the first byte of a request's head to its end; then 408. Default: 30 s.
    pub header_timeout: Duration,
    /// From the accept, or the end of the last answer, to the next request. Default: 75 s.
    pub idle_timeout: Duration,
    /// The longest head, in bytes; a longer one is answered 431. Default: 64 KiB.
    pub header_size: usize,
    /// The most headers of a request; more are answered 431. Default: 100.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let Config {
            header_timeout,
            idle_timeout,
            max_header_size,
            max_headers,
        } = Config::default();
        Self {
            connections: 10_000,
            header_timeout,
            idle_timeout,
            header_size: max_header_size,
            headers: max_headers,
        }
    }
}

type StatusReport = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// A server, before it runs. `F` makes the service.
#[must_use = "nothing happens before `run`"]
pub struct Server<F> {
    build: F,
    builder: Box<dyn FnOnce(Builder) -> Builder + Send>,
    name: String,
    limits: Limits,
    probe: Option<String>,
    ready_timeout: Duration,
    status: Option<StatusReport>,
    build_id: String,
    admin: bool,
}

impl<F> std::fmt::Debug for Server<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<F> Server<F> {
    /// A server whose service `build` makes, in this process and in each that replaces it.
    ///
    /// The service is any of hyper's or tower's (axum's `Router`, for instance); it is cloned for each
    /// connection.
    pub fn build<Fut, S, Kind>(build: F) -> Self
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<S, BoxError>>,
        S: IntoService<Kind>,
    {
        Self {
            build,
            builder: Box::new(|builder| builder.adopt(drain::HTTP1)),
            name: "server".to_owned(),
            limits: Limits::default(),
            probe: None,
            ready_timeout: Duration::from_secs(30),
            status: None,
            build_id: String::new(),
            admin: false,
        }
    }

    fn with(mut self, change: impl FnOnce(Builder) -> Builder + Send + 'static) -> Self {
        let before = self.builder;
        self.builder = Box::new(move |builder| change(before(builder)));
        self
    }

    /// The service's name: the default pidfile's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What `status` says that this build is.
    pub fn build_id(mut self, build: impl Into<String>) -> Self {
        let build = build.into();
        self.build_id.clone_from(&build);
        self.with(|builder| builder.build_id(build))
    }

    /// Listens, under a name by which the next generation knows the listener again.
    pub fn listen(self, name: &str, address: Address) -> Self {
        self.listener(Spec::new(name, address))
    }

    /// Listens, with the listener's options.
    pub fn listener(self, spec: Spec) -> Self {
        self.with(|builder| builder.listener(spec))
    }

    /// Answers on this address, too, by a listener named `admin`, and not with the application:
    ///
    /// - `/metrics`: generation, reloads, connections and requests, in Prometheus's text format (version 0.0.4). Counters go on
    ///   from generation to generation;
    /// - `/livez`: 200;
    /// - `/readyz`: 200, or 503 with the reason: the first generation has not begun to serve, the service stops, or the
    ///   [`probe`](Self::probe) is not answered with success. It is answered at all times.
    ///
    /// Whoever can connect can read it: use an address of the machine's own, or of a network that is trusted.
    pub fn admin(mut self, address: Address) -> Self {
        self.admin = true;
        self.listen(admin::ADMIN, address)
    }

    /// Where the pidfile is.
    pub fn pidfile(self, pidfile: impl Into<PathBuf>) -> Self {
        let pidfile = pidfile.into();
        self.with(|builder| builder.pidfile(pidfile))
    }

    /// Without a pidfile, a lock and a control socket: only signals work.
    pub fn no_pidfile(self) -> Self {
        self.with(Builder::no_pidfile)
    }

    /// Limits of the server and of its connections.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A path that the service must answer with success (2xx), asked by the process itself: before it serves, and
    /// every 500 ms while it is on [probation](Self::probation). An answer that takes longer than 2.5 s then is none.
    pub fn probe(mut self, path: impl Into<String>) -> Self {
        self.probe = Some(path.into());
        self
    }

    /// How long the next generation may take until it is ready. Default: 30 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self.with(move |builder| builder.ready_timeout(timeout))
    }

    /// How long requests may take to finish once this process has been replaced or stopped. Default: 10 s.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        self.with(move |builder| builder.drain_timeout(timeout))
    }

    /// How long the next generation is on probation once it accepts: should it die meanwhile, or not answer its
    /// [`probe`](Self::probe), this process takes over again, and gets the connections back. Zero: it is final as soon as
    /// it accepts. Default: 1 s. The value of the process that is replaced counts.
    pub fn probation(self, probation: Duration) -> Self {
        self.with(move |builder| builder.probation(probation))
    }

    /// Whether a process of root's reloads even if somebody else may write the program. Default: it refuses. See
    /// [`handoff::Builder::allow_writable_program`].
    pub fn allow_writable_program(self, allow: bool) -> Self {
        self.with(move |builder| builder.allow_writable_program(allow))
    }

    /// What to do when the parent dies without a word before the commit.
    pub fn orphan(self, orphan: Orphan) -> Self {
        self.with(move |builder| builder.orphan(orphan))
    }

    /// Called when this process has become the one that serves: start what only one generation may do.
    pub fn committed<T: Future<Output = ()> + Send + 'static>(
        self,
        hook: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.with(|builder| builder.on_committed(hook))
    }

    /// Called before the next generation takes over: stop it. The reload waits for it for at most 5 s.
    pub fn retired<T: Future<Output = ()> + Send + 'static>(
        self,
        hook: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.with(|builder| builder.on_retired(hook))
    }

    /// Called when a reload has failed after `retired`: start it again.
    pub fn revoked<T: Future<Output = ()> + Send + 'static>(
        self,
        hook: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.with(|builder| builder.on_revoked(hook))
    }

    /// Called in a child whose parent died without handing over its state.
    pub fn cold_start<T: Future<Output = ()> + Send + 'static>(
        self,
        hook: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.with(|builder| builder.on_cold_start(hook))
    }

    /// What `status` says of the application, besides the number of connections.
    pub fn status(
        mut self,
        report: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.status = Some(Box::new(report));
        self
    }

    /// Serves until the process is stopped, or replaced and has finished. Call it before anything reads
    /// stdin.
    ///
    /// # Errors
    /// [`Error`]. A parent was told, serves on, and tells whoever asked for the reload.
    pub async fn run<Fut, S, Kind>(self) -> Result<Report, Error>
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = Result<S, BoxError>>,
        S: IntoService<Kind>,
    {
        let Self {
            build,
            builder,
            name,
            limits,
            probe,
            ready_timeout,
            status,
            build_id,
            admin,
        } = self;
        let builder = builder(Builder::new(&name)).max_connections(limits.connections as u64);
        // The service that it asks is made later.
        let health = Arc::new(OnceLock::new());
        let builder = builder.on_health(examine(health.clone()));
        let starting = builder.start().await?;
        let pages = admin.then(|| open_admin(&starting, build_id, health.clone()));
        let (mut starting, service, protocols) = build_service(starting, build).await?;
        if let Some(pages) = &pages {
            starting.share(pages.tally.clone()).await?;
        }
        let service = Measured::new(service.into_service(), pages.clone());
        if let Some(path) = probe {
            let _ = health.set(probe::again(service.clone(), path.clone()));
            let probed = tokio::select! {
                probed = probe::probe(service.clone(), &path, ready_timeout) => probed,
                reason = starting.cancelled() => return Err(StartError::Ended(reason).into()),
            };
            if let Err(reason) = probed {
                starting.refuse(reason.clone()).await;
                return Err(Error::Unhealthy(reason));
            }
        }
        let protocols = protocols.take();
        for protocol in &protocols {
            starting.adopt(session::kind(&**protocol));
        }
        // Before the process is seen to serve.
        let pool = Pool::default();
        pool.open();
        let serving = starting.ready().await?;
        if let Some(pages) = &pages {
            pages.serves(serving.clone());
        }
        serve(serving, service, protocols, limits, status, pool).await
    }
}

/// The pages of the admin listener, which are answered from now on.
fn open_admin(
    starting: &Starting,
    build: String,
    health: Arc<OnceLock<probe::Again>>,
) -> Arc<Pages> {
    let tally = Arc::new(Tally::default());
    let generation = starting.generation();
    let pages = Arc::new(Pages::new(
        tally,
        build,
        generation,
        starting.phase(),
        health,
    ));
    let observer = pages.clone();
    starting.observe(move |event| observer.hear(event));
    let opened = starting.duplicate(admin::ADMIN).map(|listener| {
        listener.and_then(|listener| admin::outside_hours(&listener, pages.clone()))
    });
    if let Some(Err(error)) = opened {
        tracing::warn!(%error, "the admin listener is answered only while this process serves");
    }
    pages
}

/// What the parent asks for while this process is on probation.
fn examine(health: Arc<OnceLock<probe::Again>>) -> impl Fn() -> probe::Probing + Send + Sync {
    move || match health.get() {
        Some(again) => again(),
        None => Box::pin(std::future::ready(Ok(()))),
    }
}

/// Lets the application start, unless the start is ended meanwhile.
async fn build_service<F, Fut, S>(
    starting: Starting,
    build: F,
) -> Result<(Starting, S, Arc<Protocols>), Error>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<S, BoxError>>,
{
    let generation = starting.generation();
    let cancelled = starting.cancelled();
    let shared = Arc::new(Mutex::new(Some(starting)));
    let protocols = Arc::new(Protocols::default());
    let context = Context {
        starting: shared.clone(),
        protocols: protocols.clone(),
        generation,
    };
    let built = tokio::select! {
        built = build(context) => built,
        reason = cancelled => return Err(StartError::Ended(reason).into()),
    };
    let Some(starting) = shared.lock().await.take() else {
        return Err(StartError::Ended("the start has ended".to_owned()).into());
    };
    match built {
        Ok(service) => Ok((starting, service, protocols)),
        Err(error) => {
            starting.refuse(error.to_string()).await;
            Err(Error::Application(error))
        }
    }
}

async fn serve<S: Serve>(
    serving: handoff::Serving,
    service: S,
    protocols: Vec<Arc<dyn AnyProtocol>>,
    limits: Limits,
    status: Option<StatusReport>,
    pool: Pool,
) -> Result<Report, Error> {
    let (orders_tx, orders) = watch::channel(Order::Serve);
    let config = Config {
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        max_header_size: limits.header_size,
        max_headers: limits.headers,
    };
    let sessions_lost = Arc::new(AtomicU64::new(0));
    report_status(&serving, sessions_lost.clone(), status);
    let mut kinds = Kinds::new();
    kinds.insert(drain::HTTP1, Http1);
    for protocol in protocols {
        kinds.insert(session::kind(&*protocol), Sessions(protocol));
    }
    let live = Arc::new(Live {
        serving: serving.clone(),
        service,
        config,
        orders,
        kinds,
        sessions_lost,
        listeners: serving.listeners().into_iter().map(Arc::from).collect(),
        pool,
    });
    pool::start(&live);
    tokio::spawn(drain::command(serving.phase(), orders_tx));
    for name in serving.listeners() {
        if let Some(acceptor) = serving.acceptor(&name) {
            tokio::spawn(accept::accept(acceptor, live.clone()));
        }
    }
    if let Some(adopted) = serving.adopted() {
        tokio::spawn(accept::adopt(adopted, live));
    }
    serving.finished().await.map_err(Error::Ended)
}

fn report_status(
    serving: &handoff::Serving,
    sessions_lost: Arc<AtomicU64>,
    status: Option<StatusReport>,
) {
    let connections = serving.connections();
    serving.report_status(move || {
        let mut report = status
            .as_ref()
            .map_or_else(|| serde_json::json!({}), |status| status());
        if let Some(object) = report.as_object_mut() {
            object.insert("connections".to_owned(), connections().into());
            // Of interest only to those who have some.
            let lost = sessions_lost.load(Ordering::Relaxed);
            if lost > 0 {
                object.insert("sessions_lost".to_owned(), lost.into());
            }
        }
        report
    });
}
