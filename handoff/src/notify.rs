//! What a service manager hears of the succession: sd_notify(3), spoken without its library.
//!
//! The contract:
//! - **Only the process that is the service speaks.** That is the first generation from its start, and a child from the
//!   moment at which its parent cannot come back. A generation that drains is silent: its `STOPPING=1`
//!   would end the service. So `NotifyAccess=main` is enough.
//! - **The main process is handed on before the child is told that it is final**, by the parent: `MAINPID=` and `READY=1`
//!   in one message. During probation the parent is still the main process, because it is the one that serves again
//!   should the child die.
//! - **`RELOADING=1` is answered by `READY=1`, however the reload ends**, unless the service stops meanwhile.
//! - **The parent leaves only when the manager has read that** (`BARRIER=1`), or after [`FAREWELL`].
//!
//! Nothing here fails: what cannot be said is logged, once.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use crate::{control::message::Generation, listeners::Listener};

pub(crate) mod socket;

use socket::{Note, Outbox};

/// Where the service manager listens.
pub(crate) const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// How often it wants to hear `WATCHDOG=1`, at least.
pub(crate) const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";

/// From whom. It names the first generation, so that no later one may see it.
pub(crate) const WATCHDOG_PID_VARIABLE: &str = "WATCHDOG_PID";

/// How long a process that leaves waits until the manager has heard who serves now.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a first generation waits until the manager has let go of sockets that it shall not keep.
const FORGET_PATIENCE: Duration = Duration::from_secs(2);

/// What comes on top of our own deadlines, until the manager acts by its own.
const MARGIN: Duration = Duration::from_secs(5);

/// The longest line of `STATUS=`, in characters.
const MAX_STATUS: usize = 200;

/// The names under which the manager keeps listeners begin with this, so that they differ from those of socket
/// units. No name of a listener has a `/`.
pub(crate) const STORED: &str = "stored/";

/// What this process may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Voice {
    /// Nothing: another one is the service.
    None,
    Service,
    /// That it is ready it will not say again.
    Stopping,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Notifier {
    outbox: Option<Arc<Outbox>>,
    voice: AtomicU8,
    watchdog: Option<Duration>,
    /// What the service is, in words.
    serves: OnceLock<String>,
}

impl Notifier {
    /// As the environment has it. A variable that makes no sense is as good as none, and logged.
    pub(crate) fn from_env() -> Self {
        let outbox = env::var_os(SOCKET_VARIABLE).and_then(|name| match Outbox::new(&name) {
            Ok(outbox) => Some(outbox),
            Err(problem) => {
                tracing::warn!(socket = %name.display(), problem, "NOTIFY_SOCKET is of no use");
                None
            }
        });
        let watchdog = outbox.as_ref().and_then(|_| watchdog());
        Self::new(outbox, watchdog)
    }

    fn new(outbox: Option<Arc<Outbox>>, watchdog: Option<Duration>) -> Self {
        Self {
            outbox,
            voice: AtomicU8::new(Voice::None as u8),
            watchdog,
            serves: OnceLock::new(),
        }
    }

    /// Whether there is a service manager.
    pub(crate) fn is_on(&self) -> bool {
        self.outbox.is_some()
    }

    /// Whether there is one, which hears of the service from this process.
    pub(crate) fn is_heard(&self) -> bool {
        self.is_on() && !self.has(Voice::None)
    }

    /// How often [`alive`](Self::alive) is to be called: at half of what the manager takes for a death.
    pub(crate) fn heartbeat(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Variables of the environment that mean this process, and none that it starts.
    pub(crate) fn not_inherited(&self) -> Vec<OsString> {
        let mut names = vec![OsString::from(WATCHDOG_PID_VARIABLE)];
        if self.watchdog.is_none() {
            names.push(WATCHDOG_VARIABLE.into());
        }
        names
    }

    fn has(&self, voice: Voice) -> bool {
        self.voice.load(Ordering::Acquire) == voice as u8
    }

    fn send(&self, note: impl Into<Note>) {
        if let Some(outbox) = &self.outbox {
            outbox.send(note);
        }
    }

    /// This process is the service from here on. `is_heir`: it was not named by the one before, which has crashed.
    pub(crate) fn serves(
        &self,
        us: Generation,
        listeners: &[Arc<Listener>],
        removed: &[String],
        is_heir: bool,
    ) {
        if !self.is_on() || !self.has(Voice::None) {
            return;
        }
        self.voice.store(Voice::Service as u8, Ordering::Release);
        let named: Vec<String> = listeners
            .iter()
            .map(|l| format!("{}={}", l.name(), l.address()))
            .collect();
        let serves = self
            .serves
            .get_or_init(|| format!("generation {} serves {}", us.generation, named.join(" ")));
        let main = if is_heir {
            format!("MAINPID={}\n", us.pid)
        } else {
            String::new()
        };
        self.send(format!("{main}READY=1\nSTATUS={}", line(serves)));
        self.alive();
        for name in removed {
            self.send(forgotten(name));
        }
        for listener in listeners {
            self.store(listener);
        }
    }

    /// The manager keeps the socket should this process die, if `FileDescriptorStoreMax=` allows it.
    fn store(&self, listener: &Listener) {
        match listener.as_fd().try_clone_to_owned() {
            Ok(fd) => self.send(Note {
                text: format!("FDSTORE=1\nFDNAME={STORED}{}", listener.name()),
                fds: vec![fd],
            }),
            Err(error) => {
                tracing::warn!(listener = listener.name(), %error, "cannot duplicate a listener for the service manager");
            }
        }
    }

    /// The manager shall not keep these any longer: waits, bounded, until it has let go of them.
    pub(crate) async fn forget(&self, names: &[String]) {
        let Some(outbox) = self.outbox.as_ref().filter(|_| !names.is_empty()) else {
            return;
        };
        for name in names {
            outbox.send(forgotten(name));
        }
        outbox.barrier(FORGET_PATIENCE).await;
    }

    /// A reload begins, and will not take longer than `at_most`.
    pub(crate) fn reloading(&self, reload: u64, at_most: Duration) {
        if !self.has(Voice::Service) {
            return;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::try_from(now).unwrap_or_default();
        self.send(format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nEXTEND_TIMEOUT_USEC={}\nSTATUS=reload {reload} is under way",
            now.as_micros(),
            (at_most + MARGIN).as_micros(),
        ));
    }

    /// A reload has failed: this process serves on.
    pub(crate) fn reload_failed(&self, reload: u64, phase: &str, reason: &str) {
        if !self.has(Voice::Service) {
            return;
        }
        let serves = self.serves.get().map_or("", String::as_str);
        let status = format!("{serves}; reload {reload} failed while {phase}: {reason}");
        self.send(format!("READY=1\nSTATUS={}", line(&status)));
    }

    /// The child is about to be told that it is final: it is the main process, and this one says no more.
    pub(crate) fn succeeded_by(&self, child: Generation) {
        let before = self.voice.swap(Voice::None as u8, Ordering::AcqRel);
        let Generation { generation, pid } = child;
        // A service that stops has said so, and cannot take it back.
        let ready = match before {
            before if before == Voice::None as u8 => return,
            before if before == Voice::Service as u8 => "\nREADY=1",
            _ => "",
        };
        self.send(format!(
            "MAINPID={pid}{ready}\nSTATUS=generation {generation} takes over"
        ));
    }

    /// The service ends, and will have ended after `at_most`.
    pub(crate) fn stopping(&self, reason: &str, at_most: Duration) {
        if !self.has(Voice::Service) {
            return;
        }
        self.voice.store(Voice::Stopping as u8, Ordering::Release);
        self.send(format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={}\nSTATUS={}",
            (at_most + MARGIN).as_micros(),
            line(reason),
        ));
    }

    /// The task that decides over this process is alive.
    pub(crate) fn alive(&self) {
        if self.watchdog.is_some() && !self.has(Voice::None) {
            self.send("WATCHDOG=1".to_owned());
        }
    }

    /// Waits until the manager has heard who is the main process: before this one ends. Bounded.
    pub(crate) async fn flush(&self) {
        if let Some(outbox) = &self.outbox {
            outbox.barrier(FAREWELL).await;
        }
    }
}

fn forgotten(name: &str) -> String {
    format!("FDSTOREREMOVE=1\nFDNAME={STORED}{name}")
}

/// A status is one line.
fn line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MAX_STATUS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

/// What the manager takes for a death, if it watches this process (sd_watchdog_enabled(3)).
fn watchdog() -> Option<Duration> {
    let pid = env::var_os(WATCHDOG_PID_VARIABLE);
    if pid.is_some_and(|pid| !crate::keeper::is_meant(&pid)) {
        return None;
    }
    interval(&env::var_os(WATCHDOG_VARIABLE)?)
}

fn interval(micros: &OsStr) -> Option<Duration> {
    let interval = micros.to_str().and_then(|text| text.parse().ok());
    let interval = interval.map(Duration::from_micros);
    // Whoever wants to hear of us more often than that would hear of nothing else.
    let possible = interval.filter(|interval| *interval >= Duration::from_millis(10));
    if possible.is_none() {
        tracing::warn!(value = %micros.display(), "WATCHDOG_USEC is of no use: at least 10000, in microseconds");
    }
    possible
}

#[cfg(test)]
mod tests;
