//! What `/proc` says of the processes that the soak has started, and the end of them.
//!
//! The generations of a server are not our children: each is started by the one before it.
//! What they have in common is their executable, a file in a directory that nobody else uses.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;

/// A process that is being replaced while we kill it has a successor we have not seen: look again.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What one process holds, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Holding {
    /// Descriptors that are sockets.
    pub(crate) sockets: u64,
    /// All other descriptors: files, pipes, epoll, pidfds, memfds.
    pub(crate) other_fds: u64,
    /// Resident memory.
    pub(crate) rss_kib: u64,
}

impl Holding {
    /// What `pid` holds now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let context = || format!("failed to inspect process {pid}");
        let (mut sockets, mut other_fds) = (0, 0);
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).with_context(context)? {
            // One that is closed meanwhile does not count.
            let Ok(target) = fs::read_link(entry.with_context(context)?.path()) else {
                continue;
            };
            if target.to_string_lossy().starts_with("socket:") {
                sockets += 1;
            } else {
                other_fds += 1;
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(context)?;
        let rss_kib = status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .with_context(context)?;
        Ok(Self {
            sockets,
            other_fds,
            rss_kib,
        })
    }
}

/// The live processes whose executable is, or was, a file in `dir`. Zombies have none.
pub(crate) fn running_under(dir: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| runs_under(*pid, dir))
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

fn runs_under(pid: u32, dir: &Path) -> bool {
    // A replaced binary reads "/tmp/x/hello (deleted)": still under the directory.
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(dir))
}

/// Kills every process whose executable is in `dir`. Returns how many there were.
pub(crate) fn kill_all_under(dir: &Path) -> io::Result<usize> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let pids = running_under(dir)?;
        if pids.is_empty() || Instant::now() > deadline {
            return Ok(killed.len());
        }
        for pid in pids {
            kill(pid, dir);
            killed.insert(pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills `pid` if it is still what it was: the number may belong to somebody else by now, so it
/// is checked again *after* the pidfd has tied it down.
fn kill(pid: u32, dir: &Path) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if runs_under(pid.as_raw_nonzero().get().unsigned_abs(), dir) {
        // It may have exited, which is what we want.
        let _ = pidfd_send_signal(&fd, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_holding_is_counted_by_kind() {
        let pid = std::process::id();
        let before = Holding::of(pid).unwrap();
        let sockets: Vec<_> = (0..50)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let files: Vec<_> = (0..50)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        let after = Holding::of(pid).unwrap();
        // Other tests run in this process too.
        assert!(
            after.sockets.abs_diff(before.sockets + 50) < 40,
            "{before:?} {after:?}"
        );
        assert!(
            after.other_fds.abs_diff(before.other_fds + 50) < 40,
            "{before:?} {after:?}"
        );
        assert!(after.rss_kib > 100);
        drop((sockets, files));
        assert!(Holding::of(u32::MAX).is_err());
    }

    #[test]
    fn only_what_runs_in_the_directory_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::copy("/bin/sleep", path.join("sleep")).unwrap();
        let mut ours = Command::new(path.join("sleep")).arg("60").spawn().unwrap();
        let mut foreign = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        assert_eq!(running_under(&path).unwrap(), [ours.id()]);
        // Replaced on disk, as by a deploy.
        fs::remove_file(path.join("sleep")).unwrap();
        assert_eq!(kill_all_under(&path).unwrap(), 1);
        assert!(!ours.wait().unwrap().success());
        assert!(foreign.try_wait().unwrap().is_none(), "the other one lives");
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}
