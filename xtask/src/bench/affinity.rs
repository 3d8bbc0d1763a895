//! Who runs on which core: the client must not take time from the server, nor the other way round.

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A core each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) client: usize,
}

impl Cores {
    /// The first two that this process may use.
    ///
    /// # Errors
    ///
    /// There are not two.
    pub(crate) fn two() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (server, client) = (cores.next(), cores.next());
        ensure!(
            client.is_some(),
            "client and server need a core each, and this process may use one: see `taskset -p $$`"
        );
        Ok(Self {
            server: server.unwrap_or_default(),
            client: client.unwrap_or_default(),
        })
    }
}

/// Moves the calling thread to `core`, for good. Threads and processes that it starts from now on go there too.
pub(crate) fn move_to(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("failed to move to core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_starts_follows_it() {
        let Ok(cores) = Cores::two() else { return };
        std::thread::spawn(move || {
            move_to(cores.client).unwrap();
            let child = std::thread::spawn(|| sched_getaffinity(None).unwrap());
            let allowed = child.join().unwrap();
            assert_eq!(allowed.count(), 1);
            assert!(allowed.is_set(cores.client));
        })
        .join()
        .unwrap();
    }
}
