//! What every generation holds, over time: a look at fixed times, and one at each commit, when parent and
//! child are both there.
//!
//! A look reads `/proc` of the generations that the soak knows, and never waits for anything. A process that
//! has gone, or that cannot be read, is left out: what cannot be seen is no sample of zero.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::param::page_size;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::timeline::Timeline;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// Samples that are kept. A run that lasts longer keeps its first ones, and says so by where they end.
const MAX_SAMPLES: usize = 100_000;
/// Generations that are looked at, the newest: a server caps those that drain far below.
const MAX_ALIVE: usize = 64;

/// What one generation held at one moment. Samples of one look have the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Since the start of the run.
    pub(crate) at_s: f64,
    /// Whose.
    pub(crate) generation: u64,
    /// Resident memory, shared pages included.
    pub(crate) rss_kib: u64,
    /// Open descriptors of any kind.
    pub(crate) fds: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Generation and process, of those that have not been seen to be gone.
    alive: BTreeMap<u64, u32>,
    samples: Vec<Sample>,
}

/// The looks of one run. Dropped, it looks no more.
#[derive(Debug)]
pub(crate) struct Samples {
    state: Arc<Mutex<State>>,
    look_now: mpsc::UnboundedSender<()>,
    _task: AbortOnDropHandle<()>,
}

impl Samples {
    /// Begins to look at `generation`, which runs as `pid`.
    pub(crate) fn start(timeline: Arc<Timeline>, generation: u64, pid: u32) -> Self {
        let state = Arc::new(Mutex::new(State {
            alive: BTreeMap::from([(generation, pid)]),
            samples: Vec::new(),
        }));
        let (look_now, wanted) = mpsc::unbounded_channel();
        let task = tokio::spawn(look_again(Arc::clone(&state), timeline, wanted));
        Self {
            state,
            look_now,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// `generation` serves from now on, as `pid`; the one before it is still there. Returns at once.
    pub(crate) fn committed(&self, generation: u64, pid: u32) {
        lock(&self.state).alive.insert(generation, pid);
        // The task ends only with `self`.
        let _ = self.look_now.send(());
    }

    /// What was seen.
    pub(crate) fn finish(self) -> Vec<Sample> {
        std::mem::take(&mut lock(&self.state).samples)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look_again(
    state: Arc<Mutex<State>>,
    timeline: Arc<Timeline>,
    mut wanted: mpsc::UnboundedReceiver<()>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            wanted = wanted.recv() => if wanted.is_none() { return },
        }
        look(&mut lock(&state), timeline.start().elapsed());
    }
}

fn look(state: &mut State, at: Duration) {
    let State { alive, samples } = state;
    alive.retain(|generation, pid| {
        let Some((rss_kib, fds)) = held_by(*pid) else {
            return false;
        };
        if samples.len() < MAX_SAMPLES {
            samples.push(Sample {
                at_s: at.as_secs_f64(),
                generation: *generation,
                rss_kib,
                fds,
            });
        }
        true
    });
    while alive.len() > MAX_ALIVE {
        alive.pop_first();
    }
}

/// Resident memory and number of descriptors; `None`: gone. A zombie has no memory, and counts as gone.
fn held_by(pid: u32) -> Option<(u64, u64)> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let resident: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let directory = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the size of this directory is the number of descriptors (proc_pid_fd(5)): no
    // need to list ten thousand of them while the server works.
    let fds = match fs::metadata(&directory).ok()?.size() {
        0 => fs::read_dir(&directory).ok()?.count() as u64,
        fds => fds,
    };
    (resident > 0).then(|| (resident * page_size() as u64 / 1024, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_who_is_there_and_forgets_who_is_gone() {
        let mut state = State {
            alive: BTreeMap::from([(1, u32::MAX), (2, std::process::id())]),
            samples: Vec::new(),
        };
        look(&mut state, Duration::from_secs(3));
        assert_eq!(state.alive.len(), 1, "generation 1 is no process");
        let sample = state.samples[0];
        assert_eq!((sample.generation, sample.at_s), (2, 3.0));
        assert!(sample.rss_kib > 100 && sample.fds >= 3, "{sample:?}");
    }

    /// Lets the task run; the clock stands still.
    async fn wait_for(samples: &Samples, count: usize) {
        for _ in 0..10_000 {
            if lock(&samples.state).samples.len() >= count {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("nobody looked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_is_looked_at_at_once() {
        let timeline = Arc::new(Timeline::new(1, [None, None]));
        let samples = Samples::start(timeline, 1, std::process::id());
        wait_for(&samples, 1).await;
        samples.committed(2, std::process::id());
        wait_for(&samples, 3).await;
        let seen = samples.finish();
        assert_eq!((seen[1].generation, seen[2].generation), (1, 2));
        assert_eq!(seen[1].at_s, seen[2].at_s, "both, at one moment");
    }
}
