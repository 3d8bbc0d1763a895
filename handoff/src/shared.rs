//! What all parts of one process share: its identity, what it owns, and what it tells the application.

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::{
    connections::Connection,
    control::{self, Incoming, message::Generation},
    listeners::Listener,
    live::{ConnectionGuard, Live},
    news::News,
    notify::Notifier,
    pidfile::{Lock, Paths, Pidfile, Spare, WriteError},
    process::Program,
    state::{Deltas, Section},
    wire::Older,
};

/// What a process wants of its connections and acceptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Not serving yet.
    Starting,
    /// Accept and serve.
    Serving,
    /// A successor is on probation: do not accept, serve what is there.
    Paused,
    /// This process was revoked: its parent accepts again. Do not accept; give connections up as they come to
    /// rest, as in [`HandingOver`](Self::HandingOver). It becomes [`Serving`](Self::Serving) again should the parent die
    /// meanwhile.
    Returning,
    /// The successor is final: give connections up as they come to rest, finish the others.
    HandingOver,
    /// There is no successor to give them to, but there is time: answer, then close.
    Finishing,
    /// An operator stops the service: finish what is under way, close what rests.
    Stopping,
    /// The deadline: end every connection now.
    Cut,
}

impl Phase {
    /// Whether this process will accept no more connections.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::HandingOver | Self::Finishing | Self::Stopping | Self::Cut
        )
    }

    /// Whether connections at rest are to be given up to another generation:
    /// [`Serving::hand_over`](crate::Serving::hand_over) takes them.
    #[must_use]
    pub fn gives_up(self) -> bool {
        matches!(self, Self::HandingOver | Self::Returning)
    }

    fn strictness(self) -> u8 {
        match self {
            Self::Starting | Self::Serving | Self::Paused | Self::Returning => 0,
            Self::HandingOver => 1,
            Self::Finishing => 2,
            Self::Stopping => 3,
            Self::Cut => 4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Paused => "paused",
            Self::Returning => "returning",
            Self::HandingOver | Self::Finishing => "draining",
            Self::Stopping | Self::Cut => "stopping",
        }
    }
}

pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
pub(crate) type Hook = Arc<dyn Fn() -> BoxFuture + Send + Sync>;
pub(crate) type Examination = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
pub(crate) type StatusReport = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the application does at the turns of a succession.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) committed: Option<Hook>,
    pub(crate) retired: Option<Hook>,
    pub(crate) revoked: Option<Hook>,
    pub(crate) cold_start: Option<Hook>,
    /// Whether this process is well, asked again and again while it is on probation.
    pub(crate) health: Option<Arc<dyn Fn() -> Examination + Send + Sync>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

/// At which turn of a succession the application is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Committed,
    Retired,
    Revoked,
    ColdStart,
}

/// The hook that was called last.
#[derive(Debug)]
struct Called {
    turn: Turn,
    task: JoinHandle<()>,
    /// Ends the hook, if it is still at it, or keeps it from beginning.
    end: Arc<Notify>,
}

/// What was asked for when the process was built.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) build: String,
    pub(crate) ready_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    /// How long a child of this process is on probation. Zero: it is final as soon as it accepts.
    pub(crate) probation: Duration,
    /// How many connections all generations together may have; further ones wait in the backlog.
    pub(crate) max_connections: Option<u64>,
    /// Whether this process takes over from a parent that crashes.
    pub(crate) promote: bool,
    /// Root executes a program that others may write.
    pub(crate) allow_writable_program: bool,
    pub(crate) hooks: Hooks,
}

/// A connection that the application gives up.
#[derive(Debug)]
pub(crate) struct PassRequest {
    pub(crate) connection: Connection,
    pub(crate) guard: ConnectionGuard,
    pub(crate) returned: Returned,
}

/// What to do with a connection that comes back. Dropped when it has moved.
pub(crate) struct Returned(Box<dyn FnOnce(NotMoved) + Send>);

impl Returned {
    pub(crate) fn new(then: impl FnOnce(NotMoved) + Send + 'static) -> Self {
        Self(Box::new(then))
    }

    pub(crate) fn call(self, not_moved: NotMoved) {
        (self.0)(not_moved);
    }
}

impl fmt::Debug for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Returned")
    }
}

/// A connection that did not move.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotMoved {
    /// The connection, to be served on; `None` if it is not known whether the
    /// successor serves it: then nobody else may.
    pub connection: Option<(Connection, ConnectionGuard)>,
    /// Why.
    pub reason: String,
}

/// A connection that moved here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Adopted {
    /// What arrived.
    pub connection: Connection,
    /// To be kept as long as the connection lives.
    pub guard: ConnectionGuard,
}

/// How the process ended its part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What became of its connections after it had ceased to accept.
    pub connections: control::message::ConnectionCounts,
    /// Who serves now; `None` if the service was stopped.
    pub successor: Option<Generation>,
}

/// Descriptors and names that only the process that serves may have.
#[derive(Debug, Default)]
struct Owned {
    listeners: Vec<Arc<Listener>>,
    lock: Option<Lock>,
    control: Option<Arc<control::Server>>,
    control_task: Option<AbortHandle>,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) program: Program,
    pub(crate) paths: Option<Paths>,
    pub(crate) live: Arc<Live>,
    pub(crate) news: News,
    /// What a service manager hears.
    pub(crate) notify: Notifier,
    pub(crate) phase: watch::Sender<Phase>,
    /// `Some` once the process has nothing more to do; `Err` with the reason if it never served.
    pub(crate) ended: watch::Sender<Option<Result<Report, String>>>,
    pub(crate) adopted: mpsc::UnboundedSender<Adopted>,
    pub(crate) pass: mpsc::UnboundedSender<PassRequest>,
    /// The last reload's id.
    pub(crate) reload: AtomicU64,
    pub(crate) application: OnceLock<StatusReport>,
    /// An older generation still drains into this one.
    upstream: AtomicBool,
    identity: OnceLock<Generation>,
    serving_since: OnceLock<Instant>,
    incoming: mpsc::Sender<Incoming>,
    removed: OnceLock<Vec<String>>,
    sections: Mutex<Vec<Arc<dyn Section>>>,
    /// The kinds of connections that this process adopts.
    kinds: Mutex<HashSet<String>>,
    owned: Mutex<Owned>,
    /// The pidfile that this process may come to need.
    spare: Mutex<Option<Spare>>,
    /// The hook that was called last.
    hook: Mutex<Option<Called>>,
    /// The snapshot that is being taken.
    pub(crate) snapshot: tokio::sync::Mutex<()>,
    /// Older generations that still drain, the youngest first.
    draining: Mutex<Vec<Older>>,
}

/// The receiving ends that belong to [`Shared`].
pub(crate) struct Receivers {
    pub(crate) adopted: mpsc::UnboundedReceiver<Adopted>,
    pub(crate) pass: mpsc::UnboundedReceiver<PassRequest>,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        program: Program,
        paths: Option<Paths>,
        notify: Notifier,
    ) -> (Arc<Self>, Receivers) {
        let (adopted, adopted_rx) = mpsc::unbounded_channel();
        let (pass, pass_rx) = mpsc::unbounded_channel();
        let (incoming, incoming_rx) = mpsc::channel(control::MAX_CLIENTS);
        let shared = Self {
            live: Arc::new(Live::limited_to(settings.max_connections)),
            settings,
            program,
            paths,
            news: News::default(),
            notify,
            phase: watch::Sender::new(Phase::Starting),
            ended: watch::Sender::new(None),
            adopted,
            pass,
            reload: AtomicU64::new(0),
            application: OnceLock::new(),
            upstream: AtomicBool::new(false),
            identity: OnceLock::new(),
            serving_since: OnceLock::new(),
            incoming,
            removed: OnceLock::new(),
            sections: Mutex::default(),
            kinds: Mutex::default(),
            owned: Mutex::default(),
            spare: Mutex::default(),
            hook: Mutex::default(),
            snapshot: tokio::sync::Mutex::default(),
            draining: Mutex::default(),
        };
        (
            Arc::new(shared),
            Receivers {
                adopted: adopted_rx,
                pass: pass_rx,
                incoming: incoming_rx,
            },
        )
    }

    fn owned(&self) -> MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this process is; before it knows, a generation of 0.
    pub(crate) fn identity(&self) -> Generation {
        self.identity.get().copied().unwrap_or(Generation {
            generation: 0,
            pid: std::process::id(),
        })
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        let _ = self.identity.set(Generation {
            generation,
            pid: std::process::id(),
        });
    }

    pub(crate) fn has_upstream(&self) -> bool {
        self.upstream.load(Ordering::Acquire)
    }

    pub(crate) fn set_upstream(&self, lives: bool) {
        self.upstream.store(lives, Ordering::Release);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            // What has begun to end does not begin anew: each final phase is stricter than the one before.
            let changes =
                *now != phase && (!now.is_final() || phase.strictness() > now.strictness());
            if changes {
                *now = phase;
            }
            changes
        });
    }

    pub(crate) fn end(&self, result: Result<Report, String>) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(result);
            }
            first
        });
    }

    /// Calls a hook, in a task of its own, which a panic in it does not leave. Hooks are called one after the
    /// other; `revoked` ends a `retired` that is still at it. Resolves when the hook has ended.
    pub(crate) fn call(&self, turn: Turn) -> oneshot::Receiver<()> {
        let hooks = &self.settings.hooks;
        let hook = match turn {
            Turn::Committed => hooks.committed.clone(),
            Turn::Retired => hooks.retired.clone(),
            Turn::Revoked => hooks.revoked.clone(),
            Turn::ColdStart => hooks.cold_start.clone(),
        };
        let (ended, has_ended) = oneshot::channel();
        let end = Arc::new(Notify::new());
        let called_off = Arc::clone(&end);
        let mut last = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.take();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                if turn == Turn::Revoked && before.turn == Turn::Retired {
                    // Only that one: what it has waited for is waited for here, too.
                    before.end.notify_one();
                }
                let _ = before.task.await;
            }
            if let Some(hook) = hook {
                tokio::select! {
                    biased;
                    () = called_off.notified() => {}
                    () = hook() => {}
                }
            }
            drop(ended);
        });
        *last = Some(Called { turn, task, end });
        has_ended
    }

    /// What the application says of itself. A panic in it costs only that.
    pub(crate) fn report_application(&self) -> serde_json::Value {
        let Some(report) = self.application.get() else {
            return serde_json::Value::Null;
        };
        catch_unwind(AssertUnwindSafe(|| report())).unwrap_or_else(|_| {
            tracing::error!("the application's status report has panicked");
            serde_json::Value::Null
        })
    }

    /// Older generations that still drain, the youngest first.
    pub(crate) fn draining(&self) -> Vec<Older> {
        self.draining
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_draining(&self, draining: Vec<Older>) {
        *self.draining.lock().unwrap_or_else(PoisonError::into_inner) = draining;
    }

    pub(crate) fn serving_for(&self) -> Duration {
        self.serving_since
            .get()
            .map_or(Duration::ZERO, Instant::elapsed)
    }

    // Listeners, lock, control socket.

    pub(crate) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.owned().listeners.clone()
    }

    pub(crate) fn set_listeners(&self, listeners: Vec<Arc<Listener>>) {
        self.owned().listeners = listeners;
    }

    /// What is bound to be closed once its queue is empty, by name.
    pub(crate) fn is_removed(&self, name: &str) -> bool {
        self.removed
            .get()
            .is_some_and(|removed| removed.iter().any(|r| r == name))
    }

    pub(crate) fn set_removed(&self, removed: Vec<String>) {
        let _ = self.removed.set(removed);
    }

    pub(crate) fn set_lock(&self, lock: Lock) {
        self.owned().lock = Some(lock);
    }

    pub(crate) fn set_control(&self, server: control::Server) {
        self.owned().control = Some(Arc::new(server));
    }

    /// Duplicates of the lock and the control listener, for the offer.
    pub(crate) fn ownership_fds(&self) -> std::io::Result<Vec<Arc<OwnedFd>>> {
        let owned = self.owned();
        let mut fds = Vec::new();
        if let (Some(lock), Some(control)) = (&owned.lock, &owned.control) {
            fds.push(Arc::new(lock.as_fd().try_clone_to_owned()?));
            fds.push(Arc::new(control.listener()?));
        }
        Ok(fds)
    }

    /// As [`publish`](Self::publish), for a service that runs: a pidfile that cannot be written does not end it.
    pub(crate) fn publish_or_log(&self) {
        if let Err(error) = self.publish() {
            tracing::error!(
                error = crate::words(&error),
                "the pidfile does not name this process: `kill` by it will not work"
            );
            self.serve_control();
        }
    }

    /// Puts this process's pid into the pidfile and answers on the control socket.
    pub(crate) fn publish(&self) -> Result<(), WriteError> {
        match (self.spare().take(), &self.paths) {
            (Some(spare), _) => spare.place()?,
            (None, Some(paths)) => Pidfile::write(&paths.pidfile, self.identity().pid)?,
            (None, None) => {}
        }
        self.serve_control();
        Ok(())
    }

    /// Writes the pidfile that [`publish`](Self::publish) puts into its place.
    pub(crate) fn prepare_pidfile(&self) -> Result<(), WriteError> {
        if let Some(paths) = &self.paths {
            let spare = Spare::prepare(&paths.pidfile, self.identity().pid)?;
            *self.spare() = Some(spare);
        }
        Ok(())
    }

    /// What this process has prepared is not needed.
    pub(crate) fn forget_pidfile(&self) {
        self.spare().take();
    }

    /// The same of what a process has that has died.
    pub(crate) fn forget_pidfile_of(&self, pid: u32) {
        if let Some(paths) = &self.paths {
            Spare::forget(&paths.pidfile, pid);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_control(&self) {
        self.resume_control();
        if self.serving_since.set(Instant::now()).is_ok() {
            let listeners: Vec<String> = self
                .listeners()
                .iter()
                .map(|l| format!("{}={}", l.name(), l.address()))
                .collect();
            tracing::info!(
                generation = self.identity().generation,
                listeners = listeners.join(" "),
                "serving"
            );
        }
    }

    pub(crate) fn resume_control(&self) {
        let mut owned = self.owned();
        let Some(server) = owned.control.clone() else {
            return;
        };
        let incoming = self.incoming.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = server.run(incoming).await {
                tracing::error!(%error, "the control socket is closed: `reload`, `stop` and `status` will not work");
            }
        });
        if let Some(old) = owned.control_task.replace(task.abort_handle()) {
            old.abort();
        }
    }

    pub(crate) fn pause_control(&self) {
        if let Some(task) = self.owned().control_task.take() {
            task.abort();
        }
    }

    /// Everything that names the service is the successor's alone: this process's copies are closed.
    pub(crate) fn release(&self) {
        self.pause_control();
        self.forget_pidfile();
        let mut owned = self.owned();
        owned.lock = None;
        if let Some(control) = &owned.control {
            // Clients that were accepted are served on.
            control.close();
        }
        owned.listeners.retain(|l| self.is_removed(l.name()));
    }

    /// Removes what names a service that ends: paths first, the lock last, so that nobody who starts
    /// meanwhile has his files removed.
    pub(crate) fn retract(&self, child: Option<u32>) {
        self.pause_control();
        self.forget_pidfile();
        let mut owned = self.owned();
        for listener in &owned.listeners {
            if let Err(error) = listener.unlink() {
                tracing::warn!(listener = listener.name(), %error, "cannot remove the socket's path");
            }
        }
        owned.listeners.clear();
        if owned.lock.is_none() {
            return;
        }
        if let Some(paths) = &self.paths {
            // Whoever holds the lock is the service: a name that a dead child of ours left is ours to remove.
            for pid in [Some(self.identity().pid), child].into_iter().flatten() {
                Spare::forget(&paths.pidfile, pid);
                if let Err(error) = Pidfile::remove(&paths.pidfile, pid) {
                    tracing::warn!(%error, "cannot remove the pidfile");
                }
            }
            let _ = std::fs::remove_file(&paths.socket);
        }
        owned.lock = None;
    }

    /// Removes the paths of listeners that this process has bound and will not serve.
    pub(crate) fn retract_added(&self, added: &[String]) {
        self.forget_pidfile();
        for listener in self
            .owned()
            .listeners
            .iter()
            .filter(|l| added.iter().any(|a| a == l.name()))
        {
            if let Err(error) = listener.unlink() {
                tracing::warn!(listener = listener.name(), %error, "cannot remove the socket's path");
            }
        }
    }

    /// Closes a removed listener whose queue is empty, and its path.
    pub(crate) fn forget_listener(&self, name: &str) {
        let mut owned = self.owned();
        owned.listeners.retain(|listener| {
            if listener.name() == name
                && let Err(error) = listener.unlink()
            {
                tracing::warn!(listener = name, %error, "cannot remove the socket's path");
            }
            listener.name() != name
        });
    }

    /// Gives clients of the control socket what is queued for them.
    pub(crate) async fn flush_control(&self) {
        let server = self.owned().control.clone();
        if let Some(server) = server {
            server.flush(Duration::from_secs(1)).await;
        }
    }

    // Connections.

    /// The kinds of connections that this process adopts.
    pub(crate) fn kinds(&self) -> MutexGuard<'_, HashSet<String>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // State.

    pub(crate) fn add_section(&self, section: Arc<dyn Section>) {
        self.sections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(section);
    }

    pub(crate) fn sections(&self) -> Vec<Arc<dyn Section>> {
        self.sections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What changed since the snapshot or the last call.
    pub(crate) fn deltas(&self) -> Deltas {
        let collected = catch_unwind(AssertUnwindSafe(|| Deltas::collect(&self.sections())));
        collected.unwrap_or_else(|_| {
            tracing::error!("a section of the state has panicked: what changed in it is lost");
            Deltas::default()
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}
