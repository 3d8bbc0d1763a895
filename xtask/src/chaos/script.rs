//! The events, by the seed: each with its parameters, none depending on what happened.

use std::time::Duration;

/// Longer than a parent waits for its child at any point.
pub(super) const FROZEN: Duration = Duration::from_secs(7);

/// A build that is put in place of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Build {
    Missing,
    NotExecutable,
    NoProgram,
    ExitsAtOnce,
    Hangs,
    /// The real one, which fails at this place.
    Fails(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Parent,
    Child,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Reload,
    /// One reload after the other, so that several generations drain.
    Reloads(u32),
    FailingReload(Build),
    /// `hello rollback` or `hello confirm`, so long after the start of the reload.
    Decision {
        verb: &'static str,
        after: Duration,
    },
    /// SIGKILL so long after the start of a reload.
    KillInReload {
        who: Who,
        after: Duration,
    },
    KillAtRest,
    /// SIGSTOP so long after the start of a reload, SIGCONT so long after that.
    FreezeInReload {
        who: Who,
        after: Duration,
        lasts: Duration,
    },
    FreezeAtRest {
        lasts: Duration,
    },
    Signals {
        number: u32,
        hangups: bool,
    },
    StopAndServe,
    /// Two at once, after a stop.
    TwoServe,
    /// The limit of descriptors is so much above what is open, in a reload.
    Descriptors {
        room: u64,
        who: Who,
    },
    Strangers,
}

impl Event {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Reloads(_) => "reloads in a row",
            Self::FailingReload(_) => "reload that fails",
            Self::Decision { verb, .. } => verb,
            Self::KillInReload {
                who: Who::Parent, ..
            } => "kill the parent",
            Self::KillInReload {
                who: Who::Child, ..
            } => "kill the child",
            Self::KillAtRest => "kill at rest",
            Self::FreezeInReload {
                who: Who::Parent, ..
            } => "freeze the parent",
            Self::FreezeInReload {
                who: Who::Child, ..
            } => "freeze the child",
            Self::FreezeAtRest { .. } => "freeze at rest",
            Self::Signals { .. } => "signals",
            Self::StopAndServe => "stop, serve",
            Self::TwoServe => "stop, two serve",
            Self::Descriptors { .. } => "few descriptors",
            Self::Strangers => "strangers",
        }
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): the same events on every machine, for ever.
#[derive(Debug)]
pub(super) struct Script(u64);

const PLACES: [&str; 9] = [
    "child/before-say/Hello=exit",
    "child/heard/Offer=kill",
    "child/before-say/Prepared=garbage",
    "child/before-say/Ready=say-exit",
    "child/after-say/Ready=kill",
    "child/heard/Commit=exit",
    "child/before-say/Accepting=kill",
    "child/before-say/Ready=panic",
    "child/before-say/Ready=truncate",
];

impl Script {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn millis(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.random(below * 1000))
    }

    fn who(&mut self) -> Who {
        if self.random(2) == 0 {
            Who::Parent
        } else {
            Who::Child
        }
    }

    pub(super) fn next(&mut self) -> Event {
        match self.random(100) {
            0..24 => Event::Reload,
            24..30 => Event::Reloads(2 + self.random(4) as u32),
            30..44 => Event::FailingReload(self.build()),
            44..52 => Event::Decision {
                verb: if self.random(2) == 0 {
                    "rollback"
                } else {
                    "confirm"
                },
                after: self.millis(60),
            },
            52..66 => Event::KillInReload {
                who: self.who(),
                after: self.millis(40),
            },
            66..68 => Event::KillAtRest,
            68..77 => Event::FreezeInReload {
                who: self.who(),
                after: self.millis(40),
                lasts: self.millis(300),
            },
            77 => Event::FreezeInReload {
                who: Who::Child,
                after: self.millis(40),
                lasts: FROZEN,
            },
            78..82 => Event::FreezeAtRest {
                lasts: self.millis(300),
            },
            82..88 => Event::Signals {
                number: 1 + self.random(8) as u32,
                hangups: self.random(2) == 0,
            },
            88..91 => Event::StopAndServe,
            91..93 => Event::TwoServe,
            93..97 => Event::Descriptors {
                room: self.random(12),
                who: self.who(),
            },
            _ => Event::Strangers,
        }
    }

    fn build(&mut self) -> Build {
        match self.random(14) {
            0 => Build::Missing,
            1 => Build::NotExecutable,
            2 => Build::NoProgram,
            3 => Build::ExitsAtOnce,
            // It costs the whole --ready-timeout.
            4 => Build::Hangs,
            other => Build::Fails(PLACES[other as usize - 5]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_events() {
        let events = |seed| {
            let mut script = Script::new(seed);
            (0..500).map(|_| script.next()).collect::<Vec<_>>()
        };
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
        let kinds: std::collections::BTreeSet<_> = events(1).iter().map(Event::kind).collect();
        assert_eq!(kinds.len(), 16, "{kinds:?}");
    }
}
