//! Every interleaving of a parent and a child that run the machines, and what must hold in all of them.
//!
//! [`world`] is two processes with a model of their drivers and the channel between them: any message
//! may take any time, any timer may run out as soon as it is started (as far as rule 1 allows), any
//! answer of the application may come late or never. Faults are dealt out one by one, at every place
//! where the other side could tell the difference: SIGKILL, freezing (with and without thawing), an
//! operator's stop, words that make no sense, a message that cannot be sent, content that is refused.
//! [`invariants`] says what must hold, [`search`] walks through all of it, [`mutants`] shows that each
//! guard is needed.
//!
//! Time has no length here: where one deadline must exceed another, that is not seen. Nor are a second
//! reload, and generations older than the parent.
//!
//! `ENUMERATE=deep cargo test --release -p hello-handoff enumeration -- --nocapture` walks through all
//! with three faults at a time (27 million states, two minutes of one core); `ENUMERATE=4` with four.

mod generations;
mod invariants;
mod mutants;
mod search;
mod world;

use std::{collections::HashSet, mem::Discriminant};

use self::{
    search::{Walk, walk},
    world::{Config, Fault, Who},
};
use super::{child, parent};

/// The machines have so many states and actions, those of a dry run not counted, and a walk has met every one.
const PARENT_STATES: usize = 13;
const PARENT_ACTIONS: usize = 25;
const CHILD_STATES: usize = 11;
const CHILD_ACTIONS: usize = 22;

/// What several walks have met.
#[derive(Default)]
struct Met {
    states: usize,
    transitions: usize,
    parent_states: HashSet<Discriminant<parent::State>>,
    child_states: HashSet<Discriminant<child::State>>,
    parent_actions: HashSet<Discriminant<parent::Action>>,
    child_actions: HashSet<Discriminant<child::Action>>,
}

impl Met {
    fn walk(&mut self, config: &Config) -> Walk {
        let start = std::time::Instant::now();
        let walk = walk(config).unwrap_or_else(|found| panic!("{}", found.story));
        println!(
            "{config}: {} states, {} transitions; in the end the parent serves {}, the child {}, \
             stopped {}, excused {}; {:.1?}",
            walk.states,
            walk.transitions,
            walk.ends[0],
            walk.ends[1],
            walk.ends[2],
            walk.ends[3],
            start.elapsed()
        );
        self.states += walk.states;
        self.transitions += walk.transitions;
        self.parent_states.extend(&walk.parent_states);
        self.child_states.extend(&walk.child_states);
        self.parent_actions
            .extend(config.parent_did.borrow().iter());
        self.child_actions.extend(config.child_did.borrow().iter());
        walk
    }
}

/// Probation and promotion, each on and off.
fn all() -> impl Iterator<Item = (bool, bool)> {
    [(true, true), (true, false), (false, true), (false, false)].into_iter()
}

#[test]
fn where_nothing_fails_the_child_serves_with_everything() {
    let mut met = Met::default();
    for (probation, promote) in all() {
        let mut config = Config::new(probation, promote, 2);
        config.patient = true;
        config.allowed = Fault::Freeze(Who::Parent).bit() | Fault::Freeze(Who::Child).bit();
        let walk = met.walk(&config);
        assert!(walk.ends[1] >= 10, "few stories have an end");
        assert_eq!(walk.ends[0] + walk.ends[2] + walk.ends[3], 0);
    }
    assert!(met.states >= 4_000, "{} states", met.states);
}

#[test]
fn where_only_the_parent_is_killed_the_child_serves() {
    for probation in [true, false] {
        let mut config = Config::new(probation, true, 1);
        config.patient = true;
        config.allowed = Fault::Kill(Who::Parent).bit();
        let walk = Met::default().walk(&config);
        // Excused: before the offer nobody else has anything to serve with.
        assert!(walk.ends[1] > 5 && walk.ends[3] > 0 && walk.ends[0] + walk.ends[2] == 0);
    }
}

/// Unless the parent dies, or is stopped, it serves in the end as if nothing had been.
#[test]
fn a_dry_run() {
    let mut met = Met::default();
    for (faults, promote) in [(0, true), (1, true), (1, false), (2, true)] {
        let mut config = Config::new(false, promote, faults);
        config.dry_run = true;
        let walk = met.walk(&config);
        let [parent_serves, child_serves, stopped, excused] = walk.ends;
        assert!(parent_serves > 0);
        if faults == 0 {
            assert_eq!(child_serves + stopped + excused, 0);
        }
    }
    let discarding = std::mem::discriminant(&parent::State::Discarding);
    assert!(met.parent_states.contains(&discarding));
    assert!(
        !met.parent_states
            .contains(&std::mem::discriminant(&parent::State::Retiring))
    );
    assert!(met.states >= 13_000, "{} states", met.states);
}

#[test]
fn one_fault() {
    let mut met = Met::default();
    for (probation, promote) in all() {
        for thaws in [true, false] {
            let mut config = Config::new(probation, promote, 1);
            config.thaws = thaws;
            let walk = met.walk(&config);
            assert!(
                walk.ends.iter().all(|ends| *ends >= 20),
                "some stories have no end"
            );
        }
    }
    assert!(met.states >= 450_000, "{} states", met.states);
    assert!(
        met.transitions >= 1_200_000,
        "{} transitions",
        met.transitions
    );
    assert_eq!(met.parent_states.len(), PARENT_STATES);
    assert_eq!(met.child_states.len(), CHILD_STATES);
    assert_eq!(met.parent_actions.len(), PARENT_ACTIONS);
    assert_eq!(met.child_actions.len(), CHILD_ACTIONS);
}

#[test]
fn two_faults() {
    let states = Met::default().walk(&Config::new(true, true, 2)).states;
    assert!(states >= 800_000, "{states} states");
}

#[test]
fn two_faults_without_probation() {
    let states = Met::default().walk(&Config::new(false, true, 2)).states;
    assert!(states >= 400_000, "{states} states");
}

#[test]
fn two_faults_and_a_frozen_process_never_thaws() {
    let mut config = Config::new(true, true, 2);
    config.thaws = false;
    config.allowed = Who::BOTH
        .into_iter()
        .flat_map(|who| [Fault::Kill(who), Fault::Freeze(who), Fault::Stop(who)])
        .fold(Fault::Bad.bit(), |allowed, fault| allowed | fault.bit());
    let states = Met::default().walk(&config).states;
    assert!(states >= 100_000, "{states} states");
}

/// As far as asked for.
#[test]
fn deep() {
    let Ok(depth) = std::env::var("ENUMERATE") else {
        return;
    };
    let faults = if depth == "deep" {
        3
    } else {
        depth.parse().expect("`deep` or a number of faults")
    };
    let mut met = Met::default();
    for (probation, promote) in all() {
        for thaws in [true, false] {
            let mut config = Config::new(probation, promote, faults);
            config.thaws = thaws;
            met.walk(&config);
        }
    }
    println!("{} states, {} transitions", met.states, met.transitions);
}
