//! What the run knows of itself at any moment: which reload is under way, which generation
//! serves, and which build each generation is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Which of the two builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// The one that the soak starts with.
    A,
    /// The other.
    B,
}

impl Build {
    /// A, B, A, B … : what the `n`th reload brings, from 0 for the start.
    pub(crate) fn of_reload(n: u64) -> Self {
        if n.is_multiple_of(2) {
            Self::A
        } else {
            Self::B
        }
    }
}

/// Where in the run something happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moment {
    /// Since the start of the run.
    pub(crate) at: Duration,
    /// The last reload that was begun; 0 before the first.
    pub(crate) reload: u64,
    /// Since the command of that reload was started.
    pub(crate) since_reload: Duration,
    /// The last generation that was reported to serve.
    pub(crate) generation: u64,
}

#[derive(Debug)]
struct State {
    reload: u64,
    begun: Instant,
    /// `None` while the reload is under way.
    ended: Option<Instant>,
    committed: u64,
    /// All generations before it have gone.
    settled: u64,
    builds: BTreeMap<u64, Build>,
    greetings: [Option<String>; 2],
}

/// Shared by everything that runs.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    state: Mutex<State>,
}

impl Timeline {
    /// `generation` serves build A. Without `greetings` the first answer of each build teaches them.
    pub(crate) fn new(generation: u64, greetings: [Option<String>; 2]) -> Self {
        let start = Instant::now();
        let state = State {
            reload: 0,
            begun: start,
            ended: Some(start),
            committed: generation,
            settled: generation,
            builds: BTreeMap::from([(generation, Build::A)]),
            greetings,
        };
        Self {
            start,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the run began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// The `n`th reload begins; if it succeeds, the next generation will be `build`.
    ///
    /// Said before the command starts, because the new generation answers before the command says so.
    pub(crate) fn begin_reload(&self, n: u64, build: Build) -> Instant {
        let mut state = self.state();
        let next = state.committed + 1;
        state.builds.insert(next, build);
        state.reload = n;
        state.begun = Instant::now();
        state.ended = None;
        state.begun
    }

    /// The command reported that `generation` serves.
    pub(crate) fn commit(&self, generation: u64) {
        let mut state = self.state();
        state.committed = state.committed.max(generation);
    }

    /// The command reported that the generation before `generation` has gone.
    ///
    /// If that of an older one was not reported, it may be there still, and nothing is settled.
    pub(crate) fn settle(&self, generation: u64) {
        let mut state = self.state();
        if generation == state.settled + 1 {
            state.settled = generation;
        }
    }

    /// The oldest generation that can be there: a request that is sent from now on cannot be
    /// answered by an older one, on whatever connection.
    pub(crate) fn settled(&self) -> u64 {
        self.state().settled
    }

    /// The reload's command has ended, whatever its result.
    pub(crate) fn end_reload(&self) {
        self.state().ended = Some(Instant::now());
    }

    /// The last generation that was reported to serve: what a connection opened from now on must reach.
    pub(crate) fn committed(&self) -> u64 {
        self.state().committed
    }

    /// What the builds say, as far as known.
    pub(crate) fn greetings(&self) -> [Option<String>; 2] {
        self.state().greetings.clone()
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        let state = self.state();
        Moment {
            at: self.start.elapsed(),
            reload: state.reload,
            since_reload: state.begun.elapsed(),
            generation: state.committed,
        }
    }

    /// Whether a request that was due at `due` and ended at `done` met the last reload.
    pub(crate) fn met_reload(&self, due: Instant, done: Instant) -> bool {
        let state = self.state();
        state.reload > 0 && done >= state.begun && state.ended.is_none_or(|ended| due <= ended)
    }

    /// Whether `greeting` is that of the build that `generation` is.
    pub(crate) fn check_greeting(&self, generation: u64, greeting: &str) -> Result<(), String> {
        let mut state = self.state();
        let Some(&build) = state.builds.get(&generation) else {
            return Err(format!("generation {generation} was never started"));
        };
        let known = state.greetings[build as usize].get_or_insert_with(|| greeting.to_owned());
        if known == greeting {
            Ok(())
        } else {
            Err(format!(
                "generation {generation} is build {build:?}, which says {known:?}; it said {greeting:?}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_says_what_its_build_says() {
        let timeline = Timeline::new(1, [Some("eee".into()), None]);
        assert_eq!(timeline.check_greeting(1, "eee"), Ok(()));
        assert!(timeline.check_greeting(1, "fff").is_err());
        assert!(
            timeline.check_greeting(2, "fff").is_err(),
            "nobody started generation 2"
        );
        timeline.begin_reload(1, Build::of_reload(1));
        assert_eq!(timeline.check_greeting(2, "fff"), Ok(()), "learnt");
        assert!(
            timeline.check_greeting(2, "eee").is_err(),
            "the old binary was started again"
        );
        assert_eq!(
            timeline.check_greeting(1, "eee"),
            Ok(()),
            "the old one still drains"
        );
    }

    #[test]
    fn a_failed_reload_gives_its_generation_to_the_next() {
        let timeline = Timeline::new(1, [Some("eee".into()), Some("fff".into())]);
        timeline.begin_reload(1, Build::of_reload(1));
        timeline.end_reload();
        timeline.begin_reload(2, Build::of_reload(2));
        timeline.commit(2);
        assert_eq!(timeline.check_greeting(2, "eee"), Ok(()));
        assert_eq!(timeline.committed(), 2);
        assert_eq!(timeline.now().reload, 2);
    }

    #[test]
    fn only_an_unbroken_row_of_departures_settles() {
        let timeline = Timeline::new(1, [None, None]);
        assert_eq!(timeline.settled(), 1);
        timeline.settle(2);
        assert_eq!(timeline.settled(), 2);
        timeline.settle(4);
        assert_eq!(timeline.settled(), 2, "generation 2 may drain still");
    }

    #[test]
    fn a_request_meets_a_reload_if_they_overlap() {
        let timeline = Timeline::new(1, [None, None]);
        let before = Instant::now();
        assert!(
            !timeline.met_reload(before, Instant::now()),
            "there was none"
        );
        std::thread::sleep(Duration::from_millis(1));
        timeline.begin_reload(1, Build::B);
        assert!(!timeline.met_reload(before, before));
        assert!(timeline.met_reload(before, Instant::now()));
        timeline.end_reload();
        std::thread::sleep(Duration::from_millis(1));
        assert!(!timeline.met_reload(Instant::now(), Instant::now()));
    }
}
