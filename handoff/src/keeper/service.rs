//! Which process is the service, and how it ended.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::signal::Signal;
use rustix::process::{Pid, WaitStatus};

use super::{code, say};
use crate::process;

/// The main process.
pub(super) struct Service {
    pid: Pid,
    /// `None` once it has ended.
    pidfd: Option<OwnedFd>,
    is_ready: bool,
    is_stopping: bool,
    /// How it ended, if it was ours to reap.
    status: Option<WaitStatus>,
}

impl Service {
    pub(super) fn new(pid: Pid) -> io::Result<Self> {
        Ok(Self {
            pid,
            pidfd: Some(process::open_pidfd(pid.as_raw_pid().cast_unsigned())?),
            is_ready: false,
            is_stopping: false,
            status: None,
        })
    }

    /// Readable when it has ended.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Whether it runs: to be asked whenever something has happened.
    pub(super) fn lives(&mut self) -> bool {
        let lives = self
            .pidfd()
            .is_some_and(|pidfd| process::is_running(pidfd).unwrap_or(false));
        if !lives {
            self.pidfd = None;
        }
        lives
    }

    pub(super) fn signal(&self, signal: Signal) {
        let Some(pidfd) = self.pidfd() else { return };
        let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) else {
            return;
        };
        if let Err(error) = rustix::process::pidfd_send_signal(pidfd, signal) {
            say(format_args!(
                "cannot pass signal {} on to process {}: {error}",
                signal.as_raw(),
                self.pid
            ));
        }
    }

    /// Whether it is heeded what `from` says: it is the main process, or that one has died and this is one that it has
    /// left behind, and that says that it is the service now.
    pub(super) fn believes(&mut self, from: Pid, text: &str) -> bool {
        from == self.pid || !self.lives() && main_pid(text) == Some(from) && is_our_child(from)
    }

    /// Says whether another process is the service by that.
    pub(super) fn hear(&mut self, from: Pid, text: &str) -> bool {
        for line in text.lines() {
            match line {
                "READY=1" => self.is_ready = true,
                "STOPPING=1" => self.is_stopping = true,
                _ => {}
            }
        }
        let Some(pid) = main_pid(text).filter(|pid| *pid != self.pid) else {
            return false;
        };
        let named = Self::new(pid).map(|named| Self {
            is_ready: self.is_ready,
            // Its predecessor's word holds for it, unless it has crashed.
            is_stopping: self.is_stopping && from == self.pid,
            ..named
        });
        match named {
            Ok(named) => *self = named,
            Err(error) => {
                // It has died meanwhile: so has the service.
                say(format_args!(
                    "process {pid}, which is to be the service, cannot be watched: {error}"
                ));
                self.pid = pid;
                self.pidfd = None;
                self.status = None;
            }
        }
        true
    }

    /// A process has been reaped.
    pub(super) fn buried(&mut self, pid: Pid, status: WaitStatus) {
        if pid == self.pid {
            self.status = Some(status);
            self.pidfd = None;
        }
    }

    /// That of the main process. One that an older generation has reaped has left none.
    pub(super) fn exit_code(&self) -> u8 {
        match self.status {
            Some(status) => code(status),
            None => u8::from(!self.is_stopping),
        }
    }
}

fn main_pid(text: &str) -> Option<Pid> {
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("MAINPID="))?;
    pid.parse().ok().and_then(Pid::from_raw)
}

/// Orphans of a service are its keeper's children.
fn is_our_child(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.and_then(|parent| parent.trim().parse().ok()) == Some(std::process::id())
}

#[cfg(test)]
mod tests;
