//! `hello stop`.
//!
//! The request goes over the control socket; to a process that does not answer there, SIGTERM. Either
//! way the end is the process's own: its pidfd says when it has gone.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use handoff::control::message::{Generation, Status};
use handoff::control::{self, ClientError};
use handoff::pidfile::{self, FindError, Running};
use handoff::process::Signal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::runtime::Runtime;

use crate::args::Stop;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::render::{micros, span};

/// How long the control socket may take to answer before SIGTERM is sent.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks at a lock that an ending process still holds. There is nothing to wait on.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn run(args: &Stop) -> Result<Exit, Failure> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let mut running = args.which.find()?;
    loop {
        let told = tell(&runtime, args, &running)?;
        await_end(&told, began, args.timeout)?;
        match successor(&runtime, args, &told, began)? {
            Some(next) => running = next,
            None => {
                let took = micros(began.elapsed().as_micros() as u64);
                output::result(format_args!("{}: stopped after {took}", told.name()))?;
                return Ok(Exit::Done);
            }
        }
    }
}

/// Who serves in the place of the one that has ended: it committed between our question and the answer, or
/// it was there all the time, because the one that has ended was its child and had not accepted yet.
fn successor(
    runtime: &Runtime,
    args: &Stop,
    last: &Told,
    began: Instant,
) -> Result<Option<Running>, Failure> {
    let paths = args.which.paths()?;
    loop {
        match pidfile::find(&paths) {
            Ok(running) => {
                let status = control::status(&paths.socket, STOP_PATIENCE);
                let now = runtime.block_on(status);
                let follows = now.is_ok_and(|now| is_of_the_same(&now, last, began.elapsed()));
                return Ok(follows.then_some(running));
            }
            // Somebody else holds the lock still: a child that had not committed, or one that had.
            Err(error @ (FindError::Transient(_) | FindError::Elsewhere { .. })) => {
                if began.elapsed() >= args.timeout {
                    return Err(Exit::TimedOut.because(error));
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(_) => return Ok(None),
        }
    }
}

/// Whether a process is of the service that was told to stop. What a supervisor starts anew meanwhile, as
/// generation 1, is not ours to end.
fn is_of_the_same(now: &Status, last: &Told, asked_for: Duration) -> bool {
    let served_before = Duration::from_millis(now.serving_for_ms) > asked_for;
    let last = last.generation.map_or(1, |last| last.generation);
    served_before || now.process.generation > last
}

/// A process that knows that it has to end.
struct Told {
    pid: u32,
    /// `None`: gone already.
    pidfd: Option<OwnedFd>,
    /// `None`: it was told by a signal, and has not said.
    generation: Option<Generation>,
}

impl Told {
    fn name(&self) -> String {
        match self.generation {
            Some(Generation { generation, pid }) => format!("generation {generation}, pid {pid}"),
            None => format!("pid {}", self.pid),
        }
    }
}

fn tell(runtime: &Runtime, args: &Stop, running: &Running) -> Result<Told, Failure> {
    let socket = args.which.paths()?.socket;
    let held = || running.as_fd().try_clone_to_owned();
    let patience = STOP_PATIENCE.min(args.timeout);
    match runtime.block_on(control::stop(&socket, patience)) {
        Ok(generation) if generation.pid == running.pid() => Ok(Told {
            pid: generation.pid,
            pidfd: Some(held()?),
            generation: Some(generation),
        }),
        // The owner has changed since we looked.
        Ok(generation) => Ok(Told {
            pid: generation.pid,
            pidfd: open(generation.pid)?,
            generation: Some(generation),
        }),
        Err(error @ ClientError::Refused { .. }) => Err(args.which.failure(error)),
        Err(error) => {
            let pid = running.pid();
            output::note(format_args!(
                "hello: the control socket does not answer ({:#}); sending SIGTERM to process {pid}",
                anyhow::Error::from(error)
            ));
            signal(running)?;
            Ok(Told {
                pid,
                pidfd: Some(held()?),
                generation: None,
            })
        }
    }
}

fn open(pid: u32) -> Result<Option<OwnedFd>> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| anyhow!("the server says that its pid is {pid}"))?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("failed to watch process {pid}")),
    }
}

fn signal(running: &Running) -> Result<()> {
    match running.signal(Signal::Term) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let pid = running.pid();
            Err(error).with_context(|| format!("failed to send SIGTERM to process {pid}"))
        }
        _ => Ok(()),
    }
}

fn await_end(told: &Told, began: Instant, timeout: Duration) -> Result<(), Failure> {
    let Some(pidfd) = &told.pidfd else {
        return Ok(());
    };
    let pid = told.pid;
    if ends_by(pidfd, began + timeout).with_context(|| format!("failed to watch process {pid}"))? {
        return Ok(());
    }
    Err(Exit::TimedOut.because(anyhow!(
        "process {pid} was told to stop, and has not ended within {}; \
         wait longer (--timeout), or end it at once: kill -QUIT {pid}",
        span(timeout)
    )))
}

fn ends_by(pidfd: &OwnedFd, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_is_seen_when_it_comes_and_not_before() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let told = |pidfd| Told {
            pid: child.id(),
            pidfd,
            generation: None,
        };
        let watched = told(open(child.id()).unwrap());
        let gone = told(None);
        let now = Instant::now();
        let failure = await_end(&watched, now, Duration::from_millis(20)).unwrap_err();
        assert_eq!(failure.exit, Exit::TimedOut);
        assert!(failure.error.to_string().contains("kill -QUIT"));
        child.kill().unwrap();
        await_end(&watched, now, Duration::from_secs(20)).unwrap();
        child.wait().unwrap();
        // Gone altogether: no more to wait for.
        assert!(open(watched.pid).unwrap().is_none());
        await_end(&gone, now, Duration::ZERO).unwrap();
    }
}
