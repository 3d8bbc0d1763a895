//! The processes of a server that is driven by commands: all that descend from the soak.
//!
//! A server that goes into the background, or whose first process ends on a reload, leaves orphans.
//! The soak adopts them (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so that the tree below it is the server,
//! whatever it calls itself; and kills what is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitpid,
};
use tokio::process::{Child, Command};

/// A process that forks while it is killed has a child that was not seen: look again.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Whoever holds it adopts orphans. Dropped, it kills every process below this one.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Children that the soak has spawned and waits for itself; all others are orphans. A number stays here when its
    /// process has ended: an orphan that gets it again is not buried before the end.
    awaited: Mutex<BTreeSet<u32>>,
}

impl Tree {
    /// Adopts from now on.
    pub(crate) fn adopt() -> Result<Self> {
        // The kernel only asks whether it is there.
        set_child_subreaper(Some(getpid())).context("failed to become a subreaper")?;
        Ok(Self {
            awaited: Mutex::default(),
        })
    }

    /// Starts a child that the caller waits for.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held over the start: one that ends at once must not be buried before it is known.
        let mut awaited = self.awaited();
        let child = command.spawn()?;
        awaited.extend(child.id());
        Ok(child)
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live processes below this one, sorted.
    pub(crate) fn processes() -> Vec<u32> {
        descendants(&parents(), std::process::id())
    }

    /// Takes the ends of orphans, as init does: a command that waits with `kill -0` for a process of before would find
    /// a zombie for ever.
    pub(crate) fn bury(&self) {
        let awaited = self.awaited();
        for (pid, process) in parents() {
            if process.zombie
                && process.parent == std::process::id()
                && !awaited.contains(&pid)
                && let Some(pid) = as_pid(pid)
            {
                // It may have been taken meanwhile.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }

    /// Waits until nothing is left, or `timeout` has passed. Returns what is left.
    pub(crate) async fn gone_within(&self, timeout: Duration) -> Vec<u32> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = Self::processes();
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Kills all of them. Returns how many there were.
    pub(crate) fn kill(&self) -> usize {
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut killed = BTreeSet::new();
        loop {
            let left = Self::processes();
            if left.is_empty() || Instant::now() >= deadline {
                return killed.len();
            }
            for pid in left {
                kill(pid);
                killed.insert(pid);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.kill();
        self.bury();
    }
}

/// The number may belong to somebody else by now, so it is looked at again *after* the pidfd has tied it down.
fn kill(pid: u32) {
    let Some(fd) = as_pid(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return;
    };
    if descendants(&parents(), std::process::id()).contains(&pid) {
        // It may have exited, which is what we want.
        let _ = pidfd_send_signal(&fd, Signal::KILL);
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

#[derive(Clone, Copy, Debug)]
struct Process {
    parent: u32,
    zombie: bool,
}

fn parents() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse(&stat)?))
        })
        .collect()
}

/// Of `/proc/pid/stat` (proc_pid_stat(5)). The name before them may hold spaces and parentheses.
fn parse(stat: &str) -> Option<Process> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    Some(Process {
        parent: fields.next()?.parse().ok()?,
        zombie: matches!(state, "Z" | "X"),
    })
}

fn descendants(processes: &BTreeMap<u32, Process>, root: u32) -> Vec<u32> {
    let mut found = BTreeSet::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for (pid, process) in processes {
            if process.parent == parent && !process.zombie && found.insert(*pid) {
                next.push(*pid);
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_a_parent() {
        let process = parse("7 (a) R 1 (b) S 42 7 7 0").unwrap();
        assert_eq!((process.parent, process.zombie), (42, false));
        assert!(parse("7 (a) Z 42 7").unwrap().zombie);
        assert!(parse("").is_none());
    }

    #[test]
    fn grandchildren_belong_and_zombies_do_not() {
        let live = |parent| Process {
            parent,
            zombie: false,
        };
        let dead = Process {
            parent: 10,
            zombie: true,
        };
        let all = BTreeMap::from([
            (10, live(1)),
            (11, live(10)),
            (12, live(11)),
            (13, dead),
            (14, live(1)),
        ]);
        assert_eq!(descendants(&all, 10), [11, 12]);
    }
}
