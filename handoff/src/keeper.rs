//! A process that stays while generations come and go: for whoever takes the end of the first process for the end of
//! the service. That is a container (whose first process is pid 1), runit, supervisord, a shell.
//!
//! The contract:
//! - [`keep`] starts this program once more, which is the first generation, and returns when the service has ended, with its
//!   exit code: 128 + n where signal n ended it.
//! - **It learns who serves as a service manager does**, from `NOTIFY_SOCKET`: a generation names its successor.
//!   It believes the main process only; once that one has died without a word, a child of its own that names itself.
//! - **What is sent to it is meant for the service**: SIGTERM, SIGINT, SIGQUIT, SIGHUP and SIGUSR2 are passed on to the main
//!   process. Reload signals wait until that one is ready: before, they would kill it.
//! - It is the parent of every process below that has lost its own (`PR_SET_CHILD_SUBREAPER`), and reaps it.
//! - A service manager of its own hears all that the generations say, but for `MAINPID=`: to that one, the keeper is
//!   the main process.
//!
//! It has one thread, and starts nothing by itself but the first generation: the others are started by the one
//! before, by the same rules as without a keeper.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus},
};

use crate::{
    activation,
    notify::SOCKET_VARIABLE,
    process::{self, Program, ResolveError, SpawnError},
};

mod ears;
mod service;

use ears::{Ears, Heard};
use service::Service;

/// Tells the first generation who stands in its place: `LISTEN_PID` and `WATCHDOG_PID` that name the keeper mean that one.
pub const KEEPER_VARIABLE: &str = "HANDOFF_KEEPER";

/// What is passed on.
const PASSED_ON: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR2,
];

/// Why there is no keeper. The service was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The program cannot be found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It cannot be executed.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A system call failed.
    #[error("the keeper cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> KeepError {
    move |source| KeepError::Io {
        step,
        source: source.into(),
    }
}

/// Whether `pid`, from a variable that means one process, means this one: it is this one's, or that of the keeper which
/// started this one in its place.
pub(crate) fn is_meant(pid: &OsStr) -> bool {
    let pid = number(pid);
    pid.is_some() && (pid == Some(std::process::id()) || pid == parent_keeper())
}

/// The keeper, if it is what started this process.
fn parent_keeper() -> Option<u32> {
    let keeper = number(&env::var_os(KEEPER_VARIABLE)?)?;
    let parent = rustix::process::getppid().map(Pid::as_raw_pid);
    (parent == i32::try_from(keeper).ok()).then_some(keeper)
}

fn number(text: &OsStr) -> Option<u32> {
    text.to_str()?.parse().ok()
}

/// Stays, if that is wanted or this is pid 1, and this process was not started by a keeper or by a generation: starts
/// the service below, and returns its exit code when it has ended. `None`: this process is to serve.
///
/// To be called first thing in `main`, while there is one thread. `patience` bounds how long it waits, once
/// the main process has ended, for other processes below it: older generations that drain.
///
/// # Errors
/// [`KeepError`]
pub fn keep(wanted: bool, patience: Duration) -> Result<Option<u8>, KeepError> {
    if parent_keeper().is_some() {
        // A child inherits what its parent has blocked.
        let unblock = heeded().thread_unblock();
        unblock.map_err(failed("unblock its child's signals"))?;
        return Ok(None);
    }
    if process::has_channel() || !(wanted || std::process::id() == 1) {
        return Ok(None);
    }
    Keeper::start(patience)?.run().map(Some)
}

fn heeded() -> SigSet {
    PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// See the module.
struct Keeper {
    signals: SignalFd,
    ears: Ears,
    service: Service,
    patience: Duration,
    /// Reload signals that came before the service was ready.
    held: Vec<Signal>,
    /// When to go, now that the main process has ended.
    leaves_at: Option<Instant>,
}

impl Keeper {
    fn start(patience: Duration) -> Result<Self, KeepError> {
        // Blocked from here on, so that none comes too early.
        heeded().thread_block().map_err(failed("block signals"))?;
        let signals =
            SignalFd::with_flags(&heeded(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(failed("wait for signals"))?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(failed("become a subreaper"))?;
        let ears = Ears::open().map_err(failed("listen to its child"))?;
        let first = start(&Program::resolve()?, &ears)?;
        let service = Service::new(first).map_err(failed("watch its child"))?;
        // They are the child's: a listener that is removed must not stay open here.
        drop(activation::take());
        Ok(Self {
            signals,
            ears,
            service,
            patience,
            held: Vec::new(),
            leaves_at: None,
        })
    }

    fn run(mut self) -> Result<u8, KeepError> {
        loop {
            self.wait().map_err(failed("wait"))?;
            // What the main process said before it died counts: first.
            self.listen();
            while let Some(signal) = self.signals.read_signal().map_err(failed("read signals"))? {
                if let Ok(signal) = Signal::try_from(signal.ssi_signo.cast_signed()) {
                    self.signalled(signal);
                }
            }
            if self.reap() {
                return Ok(self.service.exit_code());
            }
        }
    }

    /// Until there is something to do.
    fn wait(&self) -> io::Result<()> {
        let left = self
            .leaves_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut polled = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.ears, PollFlags::IN),
        ];
        polled.extend(
            self.service
                .pidfd()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn listen(&mut self) {
        while let Some(heard) = self.ears.next() {
            let Heard { from, text, fds } = heard;
            if !self.service.believes(from, &text) {
                say(format_args!(
                    "process {from} is not the service: not heeded: {text:?}"
                ));
                continue;
            }
            if self.service.hear(from, &text) {
                self.leaves_at = None;
            }
            self.ears.pass_on(&text, fds);
        }
        if self.service.is_ready() {
            for signal in std::mem::take(&mut self.held) {
                self.service.signal(signal);
            }
        }
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => {}
            Signal::SIGHUP | Signal::SIGUSR2 if !self.service.is_ready() => self.held.push(signal),
            // There is nobody to pass it on to.
            _ if self.leaves_at.is_some() => {
                if !matches!(signal, Signal::SIGHUP | Signal::SIGUSR2) {
                    self.leaves_at = Some(Instant::now());
                }
            }
            _ => self.service.signal(signal),
        }
    }

    /// Buries the dead; says whether there is nobody left to wait for.
    fn reap(&mut self) -> bool {
        let has_children = loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.service.buried(pid, status),
                Ok(None) => break true,
                Err(Errno::INTR) => {}
                // ECHILD
                Err(_) => break false,
            }
        };
        if self.service.lives() {
            return false;
        }
        // It may have named another one with its last word.
        self.listen();
        if self.service.lives() {
            return false;
        }
        let leaves_at = *self
            .leaves_at
            .get_or_insert_with(|| Instant::now() + self.patience);
        !has_children || Instant::now() >= leaves_at
    }
}

/// Starts the first generation: this program, called as it was called.
fn start(program: &Program, ears: &Ears) -> Result<Pid, KeepError> {
    let keeper = std::process::id();
    let mut command = Command::new(program.path());
    command
        .arg0(program.argv0())
        .args(program.args())
        .env("PWD", program.cwd())
        .env(SOCKET_VARIABLE, ears.name())
        .env(KEEPER_VARIABLE, keeper.to_string())
        .current_dir(program.cwd())
        .stdin(Stdio::inherit())
        // So that a terminal's Ctrl-C reaches it once, by way of us.
        .process_group(0);
    let child = command
        .spawn()
        .map_err(|error| program.spawn_error(error))?;
    // It is reaped with all others.
    Ok(Pid::from_child(&child))
}

/// A line on stderr, which may be closed.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "keeper: {what}");
}

/// The exit code that says how a process ended, as a shell has it.
fn code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}
