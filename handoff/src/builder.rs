//! How a process begins: alone, or as the child of one that it is to replace.

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    acceptor::Acceptors,
    activation::{self, Passed},
    child::{ChildDriver, Offered, Source},
    control,
    listeners::{self, Address, Listener, Reconciled, Spec},
    notify::Notifier,
    pidfile::{self, Lock, Paths},
    process::{self, Program},
    serving::Serving,
    shared::{Adopted, Hook, Hooks, Phase, Report, Settings, Shared, Turn},
    signals::Signals,
    state::{self, Section, Snapshot},
    succession::{self, Command, Succession},
    wire::Prepared,
    words,
};

/// What a child does when its parent dies without a word before the commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Orphan {
    /// Take over: nobody else does.
    #[default]
    Promote,
    /// Exit: a supervisor starts the service anew.
    Exit,
}

/// Why a process does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A descriptor, a signal handler or the like could not be had.
    #[error("cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The pidfile, its directory or its lock; in words, with the remedy.
    #[error("{0}")]
    Pidfile(String),
    /// A listener could not be bound; in words, with the remedy.
    #[error("{0}")]
    Listen(String),
    /// The parent's state could not be restored.
    #[error("{0}")]
    State(String),
    /// The parent or an operator ended the start, or the parent died.
    #[error("{0}")]
    Ended(String),
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { step, source }
}

/// Long enough to see a process crash with its first requests, short enough for whoever waits for the reload.
const DEFAULT_PROBATION: Duration = Duration::from_secs(1);

/// What a server is, before it runs.
#[derive(Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    build: String,
    pidfile: Option<PathBuf>,
    specs: Vec<Spec>,
    ready_timeout: Duration,
    drain_timeout: Duration,
    probation: Duration,
    max_connections: Option<u64>,
    orphan: Option<Orphan>,
    allow_writable_program: bool,
    hooks: Hooks,
    kinds: Vec<String>,
}

impl Builder {
    /// A server of this name, with its pidfile in the [default place](pidfile::default_pidfile).
    pub fn new(name: &str) -> Self {
        Self {
            build: String::new(),
            pidfile: Some(pidfile::default_pidfile(name)),
            specs: Vec::new(),
            ready_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            probation: DEFAULT_PROBATION,
            max_connections: None,
            orphan: None,
            allow_writable_program: false,
            hooks: Hooks::default(),
            kinds: Vec::new(),
        }
    }

    /// What `status` and the other generation are told that this build is, e.g. a version.
    pub fn build_id(mut self, build: impl Into<String>) -> Self {
        self.build = build.into();
        self
    }

    /// Where the pidfile is. The lock is `<pidfile>.lock`, the control socket `<pidfile>.sock`.
    pub fn pidfile(mut self, pidfile: impl Into<PathBuf>) -> Self {
        self.pidfile = Some(pidfile.into());
        self
    }

    /// Without a pidfile: no lock, and no control socket; signals work.
    pub fn no_pidfile(mut self) -> Self {
        self.pidfile = None;
        self
    }

    /// A listener, by name. The name is what makes it the same listener in the next build.
    pub fn listen(self, name: &str, address: Address) -> Self {
        self.listener(Spec::new(name, address))
    }

    /// A listener, with its options.
    pub fn listener(mut self, spec: Spec) -> Self {
        self.specs.push(spec);
        self
    }

    /// How long a child may take from its start to `Ready`. Default: 30 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// How long connections may take to finish once this process has been replaced or
    /// stopped, before they are cut. Default: 10 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How long a child of this process is on probation once it accepts: until its end this process, which has kept its
    /// listeners and its connections, takes over again should the child die or not be [well](Self::on_health).
    /// Zero: the child is final as soon as it accepts. Default: 1 s.
    ///
    /// The value of the process that is replaced counts, for it is the one that judges.
    pub fn probation(mut self, probation: Duration) -> Self {
        self.probation = probation;
        self
    }

    /// Whether a process of root's reloads even if somebody else may write the program, a directory on the way to it, or a
    /// symlink: that somebody can then become root at the next reload. Default: it refuses.
    pub fn allow_writable_program(mut self, allow: bool) -> Self {
        self.allow_writable_program = allow;
        self
    }

    /// How many connections all generations together may have; more wait in the backlog. Adopted ones count,
    /// and are never refused. Default: no limit.
    pub fn max_connections(mut self, most: u64) -> Self {
        self.max_connections = Some(most);
        self
    }

    /// What to do when the parent dies without a word before the commit. Default: [`Orphan::Promote`]; where a service
    /// manager, or the [keeper](crate::keeper), watches the service (`NOTIFY_SOCKET` is set), [`Orphan::Exit`].
    pub fn orphan(mut self, orphan: Orphan) -> Self {
        self.orphan = Some(orphan);
        self
    }

    /// Adopt connections of this kind: [`Serving::adopted`] brings them.
    pub fn adopt(mut self, kind: impl Into<String>) -> Self {
        self.kinds.push(kind.into());
        self
    }

    /// Called when this process has become the one that serves: start what only one generation may
    /// do (cron, queue consumers, exclusive locks).
    pub fn on_committed<F: Future<Output = ()> + Send + 'static>(
        mut self,
        hook: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.hooks.committed = Some(boxed(hook));
        self
    }

    /// Called when a child is ready and before it is told to take over, and in a child that is revoked: stop what only
    /// one generation may do. The reload waits for it for at most 5 s, and fails if it takes longer.
    pub fn on_retired<F: Future<Output = ()> + Send + 'static>(
        mut self,
        hook: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.hooks.retired = Some(boxed(hook));
        self
    }

    /// Called every 500 ms while this process is on probation: `Err` says why it is not well, and its parent serves
    /// again. So it does if the hook panics, or has not returned after 3 s. Default: always well.
    pub fn on_health<F: Future<Output = Result<(), String>> + Send + 'static>(
        mut self,
        hook: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.hooks.health = Some(Arc::new(move || Box::pin(hook())));
        self
    }

    /// Called when a reload has failed after `retired`: start it again. Also in a child that was revoked, should its
    /// parent die before everything was returned.
    pub fn on_revoked<F: Future<Output = ()> + Send + 'static>(
        mut self,
        hook: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.hooks.revoked = Some(boxed(hook));
        self
    }

    /// Called in a child whose parent died without handing over its state.
    pub fn on_cold_start<F: Future<Output = ()> + Send + 'static>(
        mut self,
        hook: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        self.hooks.cold_start = Some(boxed(hook));
        self
    }

    /// Begins: takes the listeners of the parent if there is one, and binds what it has not.
    ///
    /// Call it before anything reads stdin and before the working directory changes.
    ///
    /// # Errors
    /// [`StartError`]; the parent, if there is one, was told, and serves on.
    pub async fn start(self) -> Result<Starting, StartError> {
        let channel = process::take_channel().map_err(|e| StartError::Ended(words(&e)))?;
        let program = Program::resolve().map_err(|e| StartError::Ended(words(&e)))?;
        // Handlers first: whoever finds the pidfile may signal.
        let signals = Signals::install().map_err(io_error("install signal handlers"))?;
        process::raise_nofile_limit().map_err(io_error("raise RLIMIT_NOFILE"))?;
        let paths = match &self.pidfile {
            Some(pidfile) => Some(Paths::of(pidfile).map_err(|e| StartError::Pidfile(words(&e)))?),
            None => None,
        };
        let notify = Notifier::from_env();
        // It sees the death of the main process, and starts the service anew: two would be one too many.
        let by_default = if notify.is_on() {
            Orphan::Exit
        } else {
            Orphan::Promote
        };
        let passed = activation::take().map_err(StartError::Listen)?;
        let settings = Settings {
            build: self.build,
            ready_timeout: self.ready_timeout,
            drain_timeout: self.drain_timeout,
            probation: self.probation,
            max_connections: self.max_connections,
            promote: self.orphan.unwrap_or(by_default) == Orphan::Promote,
            allow_writable_program: self.allow_writable_program,
            hooks: self.hooks,
        };
        let (shared, receivers) = Shared::new(settings, program, paths, notify);
        shared.kinds().extend(self.kinds);
        let (adopted, receivers) = succession::split(receivers);
        let (commands, inbox) = mpsc::unbounded_channel();
        let (offered_tx, offered) = oneshot::channel();
        let (source_tx, source) = oneshot::channel();
        let upstream = match channel {
            Some(channel) => Some(
                ChildDriver::new(shared.clone(), channel, offered_tx, source_tx)
                    .map_err(io_error("join the parent"))?,
            ),
            None => None,
        };
        let is_child = upstream.is_some();
        if !is_child {
            own_the_names(&shared)?;
        }
        let succession = Succession::new(shared.clone(), signals, inbox, receivers, upstream);
        tokio::spawn(watch_over(tokio::spawn(succession.run()), shared.clone()));
        let mut starting = Starting {
            ended: shared.ended.subscribe(),
            shared,
            commands,
            adopted,
            origin: if is_child {
                Origin::Parent(source)
            } else {
                Origin::None
            },
            said_prepared: false,
            prepared: Prepared::default(),
        };
        starting
            .take_listeners(self.specs, is_child.then_some(offered), passed)
            .await?;
        Ok(starting)
    }
}

/// A bug of ours must not leave a process that waits for ever: a child ends, and its parent serves on. One that
/// serves goes on serving, which is all that it still can.
async fn watch_over(succession: JoinHandle<()>, shared: Arc<Shared>) {
    let Err(error) = succession.await else { return };
    if !error.is_panic() {
        return; // the runtime ends
    }
    let reason = format!("the succession has failed, which is a bug: {error}");
    if *shared.phase.borrow() == Phase::Starting {
        shared.end(Err(reason));
    } else {
        tracing::error!(
            reason,
            "this process serves on, but only SIGKILL will end it"
        );
    }
}

fn boxed<F: Future<Output = ()> + Send + 'static>(
    hook: impl Fn() -> F + Send + Sync + 'static,
) -> Hook {
    Arc::new(move || Box::pin(hook()))
}

/// The first generation takes the lock before it binds anything: a second server on the same
/// pidfile learns of it at once.
fn own_the_names(shared: &Shared) -> Result<(), StartError> {
    shared.set_generation(1);
    let Some(paths) = &shared.paths else {
        return Ok(());
    };
    let refused = |e: &dyn std::error::Error| StartError::Pidfile(words(e));
    pidfile::prepare_directory(&paths.pidfile).map_err(|e| refused(&e))?;
    shared.set_lock(Lock::acquire(paths).map_err(|e| refused(&e))?);
    pidfile::Spare::sweep(&paths.pidfile);
    let socket = control::bind(&paths.socket).map_err(|e| refused(&e))?;
    shared.set_control(
        control::Server::new(socket).map_err(io_error("listen on the control socket"))?,
    );
    Ok(())
}

#[derive(Debug)]
enum Origin {
    /// The first generation: state begins here.
    None,
    /// A parent has it.
    Parent(oneshot::Receiver<Source>),
    /// It is here.
    Snapshot(Arc<Snapshot>),
    /// The parent died with it.
    Lost,
}

/// A process that has its listeners and does not serve yet. Dropping it ends the start: a parent is told, and
/// serves on.
#[derive(Debug)]
pub struct Starting {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    ended: watch::Receiver<Option<Result<Report, String>>>,
    adopted: mpsc::UnboundedReceiver<Adopted>,
    origin: Origin,
    said_prepared: bool,
    prepared: Prepared,
}

impl Starting {
    async fn take_listeners(
        &mut self,
        specs: Vec<Spec>,
        offered: Option<oneshot::Receiver<Offered>>,
        passed: Passed,
    ) -> Result<(), StartError> {
        let inherited: Vec<Listener> = match offered {
            None => match passed.matched(&specs) {
                Ok(matched) => {
                    // An address that the manager still listens on could not be bound.
                    self.shared.notify.forget(&matched.forgotten).await;
                    matched.listeners
                }
                Err(reason) => {
                    self.give_up(reason.clone()).await;
                    return Err(StartError::Listen(reason));
                }
            },
            Some(offered) => tokio::select! {
                Ok(offered) = offered => offered.listeners,
                reason = ended(&mut self.ended) => return Err(StartError::Ended(reason)),
            },
        };
        let bound =
            tokio::task::spawn_blocking(move || listeners::reconcile(&specs, inherited)).await;
        let bound = bound
            .map_err(|e| words(&e))
            .and_then(|bound| bound.map_err(|e| words(&e)));
        let Reconciled {
            listeners,
            kept,
            added,
            removed,
        } = match bound {
            Ok(reconciled) => reconciled,
            Err(reason) => {
                self.give_up(reason.clone()).await;
                return Err(StartError::Listen(reason));
            }
        };
        let removed = removed.iter().map(|l| l.name().to_owned()).collect();
        self.prepared = Prepared {
            kept,
            added,
            removed,
        };
        self.shared
            .set_listeners(listeners.into_iter().map(Arc::new).collect());
        Ok(())
    }

    /// 1 for the first process of a service, one more for each that replaces it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.identity().generation
    }

    /// What the named listener is bound to: the real port where 0 was asked for.
    #[must_use]
    pub fn address(&self, listener: &str) -> Option<Address> {
        self.shared
            .listeners()
            .iter()
            .find(|l| l.name() == listener)
            .map(|l| l.address().clone())
    }

    /// A second descriptor of the named listener; `None` if there is none of that name. For what is to be answered while this
    /// process does not accept ([`Serving::acceptor`] is for all else): before the first generation serves, or while the service
    /// stops. It is to be dropped when the phase says that another process accepts, or an old socket would outlive its service.
    ///
    /// # Errors
    /// Those of fcntl(2), `EMFILE` above all.
    pub fn duplicate(&self, listener: &str) -> Option<io::Result<Listener>> {
        let listeners = self.shared.listeners();
        let found = listeners.iter().find(|l| l.name() == listener)?;
        Some(found.try_clone())
    }

    /// What this process wants, from now on: see [`Serving::phase`].
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Calls `observer` with all that clients of the control socket are told of reloads, from now on. It must be quick: whoever
    /// decides over the process waits for it.
    pub fn observe(&self, observer: impl Fn(&control::Event) + Send + Sync + 'static) {
        self.shared.news.observe(Box::new(observer));
    }

    /// Resolves when the start has been ended by the parent or an operator, with the reason: to be
    /// raced against whatever takes long.
    pub fn cancelled(&self) -> impl Future<Output = String> + Send + use<> {
        let mut watch = self.ended.clone();
        async move { ended(&mut watch).await }
    }

    /// Adopt connections of this kind, too: see [`Builder::adopt`].
    pub fn adopt(&self, kind: impl Into<String>) {
        self.shared.kinds().insert(kind.into());
    }

    /// Makes a section of the state: as the parent had it if there is one, else as given.
    ///
    /// The first call says that this process is prepared. The parent then writes its state,
    /// serving all the time; what changes after that follows by itself.
    ///
    /// # Errors
    /// If the parent's section cannot be read by this build; the parent is told, and serves on.
    pub async fn state<S: Section>(&mut self, section: S) -> Result<Arc<S>, StartError> {
        let section = Arc::new(section);
        self.share(section.clone()).await?;
        Ok(section)
    }

    /// As [`state`](Self::state), of a section that others have already.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub async fn share<S: Section>(&mut self, section: Arc<S>) -> Result<(), StartError> {
        let ours = self.shared.sections();
        let names = ours.iter().map(|ours| ours.name());
        if let Err(error) = state::check_names(names.chain([section.name()])) {
            // At the first start, and not at the first reload.
            let reason = words(&error);
            self.give_up(reason.clone()).await;
            return Err(StartError::State(reason));
        }
        let snapshot = self.prepare().await?;
        if let Some(snapshot) = snapshot {
            let dynamic: Arc<dyn Section> = section.clone();
            let restored = tokio::task::spawn_blocking(move || snapshot.restore(&[dynamic])).await;
            let restored = restored
                .map_err(|e| words(&e))
                .and_then(|r| r.map_err(|e| words(&e)));
            if let Err(reason) = restored {
                self.give_up(reason.clone()).await;
                return Err(StartError::State(reason));
            }
        }
        self.shared.add_section(section);
        Ok(())
    }

    /// Says that this process is prepared, once, and waits for the state. Cancel safe.
    async fn prepare(&mut self) -> Result<Option<Arc<Snapshot>>, StartError> {
        let source = match &mut self.origin {
            Origin::None | Origin::Lost => return Ok(None),
            Origin::Snapshot(snapshot) => return Ok(Some(snapshot.clone())),
            Origin::Parent(source) => source,
        };
        if !std::mem::replace(&mut self.said_prepared, true) {
            let _ = self
                .commands
                .send(Command::Prepared(Ok(self.prepared.clone())));
        }
        tokio::select! {
            Ok(source) = source => match source {
                Source::Snapshot(snapshot) => {
                    let snapshot = Arc::new(*snapshot);
                    self.origin = Origin::Snapshot(snapshot.clone());
                    Ok(Some(snapshot))
                }
                Source::ColdStart => {
                    tracing::warn!("the parent died without handing over its state: a cold start");
                    self.origin = Origin::Lost;
                    let _ = self.shared.call(Turn::ColdStart).await;
                    Ok(None)
                }
            },
            reason = ended(&mut self.ended) => Err(StartError::Ended(reason)),
        }
    }

    /// The application cannot serve: tells the parent, which serves on and tells whoever asked for the
    /// reload.
    pub async fn refuse(mut self, reason: impl Into<String>) {
        self.give_up(reason.into()).await;
    }

    async fn give_up(&mut self, reason: String) {
        let _ = self.commands.send(Command::Prepared(Err(reason)));
        // Said when the task that says it has ended.
        ended(&mut self.ended).await;
    }

    /// The application is ready and well. Returns when this process is the one that serves.
    ///
    /// # Errors
    /// If the parent or an operator ended the start, or the parent died and
    /// [promotion](Orphan) is off. Then nothing was accepted.
    pub async fn ready(mut self) -> Result<Serving, StartError> {
        if let Some(snapshot) = self.prepare().await? {
            self.report_dropped(&snapshot);
            self.let_go(snapshot).await;
        }
        // While a parent still serves: what cannot be accepted on is no reason for an outage.
        let acceptors = match Acceptors::new(&self.shared) {
            Ok(acceptors) => acceptors,
            Err(source) => {
                let error = io_error("accept on a listener")(source);
                self.give_up(words(&error)).await;
                return Err(error);
            }
        };
        let (serving_tx, serving) = oneshot::channel();
        let _ = self.commands.send(Command::Ready(Ok(()), serving_tx));
        tokio::select! {
            biased;
            Ok(()) = serving => {}
            reason = ended(&mut self.ended) => return Err(StartError::Ended(reason)),
        }
        Ok(Serving::new(self.shared, self.adopted, acceptors))
    }

    /// Gives the memfd back while the parent still serves, and where nobody waits: the kernel takes 0.4 s to free 1 GiB, and
    /// the last holder of it pays.
    async fn let_go(&mut self, snapshot: Arc<Snapshot>) {
        self.origin = Origin::None;
        // Fails only if the runtime ends: then all goes.
        let _ = tokio::task::spawn_blocking(move || drop(snapshot)).await;
    }

    fn report_dropped(&self, snapshot: &Snapshot) {
        let ours = self.shared.sections();
        for entry in &snapshot.manifest().sections {
            if !ours.iter().any(|section| section.name() == entry.name) {
                tracing::warn!(
                    section = entry.name,
                    bytes = entry.length,
                    "this build has no such state: it ends here"
                );
            }
        }
    }
}

async fn ended(watch: &mut watch::Receiver<Option<Result<Report, String>>>) -> String {
    match watch.wait_for(Option::is_some).await {
        Ok(ended) => match ended.as_ref() {
            Some(Err(reason)) => reason.clone(),
            _ => "the process has ended its part".to_owned(),
        },
        Err(_) => "the process is ending".to_owned(),
    }
}
