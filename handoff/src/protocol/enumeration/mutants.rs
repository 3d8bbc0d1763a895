//! Protocols with one guard less. Each must be caught, by the invariant that the guard is there for.

use super::{
    super::{
        Timer,
        child::{self, State as ChildState},
        parent::{self, Failure, Parent, State as ParentState, Undo},
    },
    invariants::Invariant,
    search::walk,
    world::{Config, Fault, Who, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    // The rules that bind the drivers.
    DeathsBeforeMessages,
    TimersBeforeMessages,
    // The parent.
    /// It pauses with `Commit`, not with `Accepting`.
    PausesAtCommit,
    /// It gives up what it owns as soon as the child accepts.
    ReleasesAtAccepting,
    /// A deadline after `Commit` counts as the child's death.
    TakesDeadlineForDeath,
    /// It goes on as soon as the child is killed, not when it is dead.
    GoesOnBeforeDeath,
    /// It accepts again and restores nothing else.
    RestoresNothing,
    /// It says `Confirm` in the same step in which it reads the last word.
    ConfirmsAtOnce,
    /// The end of the probation is enough, whether or not the child has answered.
    ConfirmsUnasked,
    /// A question is not what starts the clock.
    ClockRunsBetweenQuestions,
    /// It takes up what a living child has not acknowledged.
    TakesBackFromTheLiving,
    /// It serves what a revoked child returns without a word.
    ServesUnacknowledged,
    /// It takes back what only one may have before the child has let go of it.
    TakesBackUnasked,
    /// It accepts again when the child has yielded, not before it is told to.
    ResumesWhenYielded,
    /// It goes on serving when the child of a stopped service dies.
    GoesOnAfterStop,
    /// A child that was stopped has crashed.
    TakesStopForCrash,
    // The child.
    /// It takes over when it is ready.
    TakesOverWhenReady,
    /// It takes over before it has an offer.
    PromotesInJoining,
    /// It takes over from a parent that was stopped.
    PromotesAfterStop,
    /// It ends when its parent dies, whatever is agreed.
    NeverPromotes,
    /// The parent's death ends a child that was being revoked.
    RevokedGivesUp,
    /// Revoked, it takes up what a living parent has not acknowledged.
    TakesBackFromALivingParent,
    /// The last word of a parent that it has killed counts for nothing.
    DeposingIsDeaf,
    /// It takes over although promotion is off.
    PromotesUnasked,
    /// A parent that does not decide has crashed.
    TakesSilenceForDeath,
    // Either leaves out one kind of action, or never starts one kind of timer.
    ParentSkips(&'static str),
    ChildSkips(&'static str),
    ParentNever(Timer),
    ChildNever(Timer),
}

impl Mutant {
    /// What the parent's machine says to this event.
    pub(super) fn parent(
        mutant: Option<Self>,
        world: &mut World,
        event: parent::Event,
    ) -> Vec<parent::Action> {
        use parent::{Action, Event};
        let before = world.parent.state().clone();
        match (mutant, &event) {
            (Some(Self::TakesDeadlineForDeath), Event::Timer(Timer::Accept)) => {
                return world.parent.on(Event::Died(String::new()));
            }
            (Some(Self::TakesStopForCrash), Event::Stopped(_)) => return vec![],
            (Some(Self::ConfirmsUnasked), Event::Timer(Timer::Probation)) => {
                world.parent.on(event);
                return world.parent.on(Event::Timer(Timer::Confirm));
            }
            _ => {}
        }
        let mut actions = world.parent.on(event);
        match mutant {
            Some(Self::ConfirmsAtOnce) if actions.contains(&Action::Start(Timer::Confirm)) => {
                actions.extend(world.parent.on(Event::Timer(Timer::Confirm)));
            }
            Some(Self::GoesOnAfterStop)
                if before == ParentState::Stopping && actions.contains(&Action::Ended) =>
            {
                let failure = Failure {
                    phase: "",
                    reason: String::new(),
                    undo: Undo::Accepting,
                };
                actions.insert(0, Action::Failed(failure));
            }
            Some(Self::TakesBackUnasked)
                if actions.iter().any(|a| matches!(a, Action::SendRevoke(_))) =>
            {
                actions.push(Action::TakeBack);
            }
            Some(Self::ResumesWhenYielded) => {
                actions.retain(|a| *a != Action::ResumeAccepting);
                if actions.contains(&Action::TakeBack) {
                    actions.push(Action::ResumeAccepting);
                }
            }
            Some(Self::PausesAtCommit) if actions.contains(&Action::SendCommit) => {
                actions.push(Action::PauseAccepting);
            }
            Some(Self::ReleasesAtAccepting) if actions.contains(&Action::PauseAccepting) => {
                actions.push(Action::ReleaseOwnership);
            }
            Some(Self::GoesOnBeforeDeath) => {
                if let (true, ParentState::Dying(failure)) =
                    (actions.contains(&Action::Kill), world.parent.state())
                {
                    actions.push(Action::Failed(failure.clone()));
                }
            }
            _ => {}
        }
        Self::parent_actions(mutant, &world.parent, &mut actions);
        actions
    }

    /// What is left of the parent's actions.
    pub(super) fn parent_actions(
        mutant: Option<Self>,
        parent: &Parent,
        actions: &mut Vec<parent::Action>,
    ) {
        use parent::Action;
        match mutant {
            Some(Self::ParentSkips(name)) => actions.retain(|a| !is_named(&format!("{a:?}"), name)),
            Some(Self::ParentNever(timer)) => actions.retain(|a| *a != Action::Start(timer)),
            _ => {}
        }
        for action in actions {
            match (mutant, &mut *action) {
                (Some(Self::RestoresNothing), Action::Failed(failure)) => {
                    failure.undo = Undo::Nothing;
                }
                (Some(Self::TakesBackFromTheLiving), Action::DrainAlone { child_is_dead }) => {
                    *child_is_dead = true;
                }
                (Some(Self::ClockRunsBetweenQuestions), Action::Cancel(Timer::Silence))
                    if *parent.state() == ParentState::Probation =>
                {
                    *action = Action::Start(Timer::Silence);
                }
                _ => {}
            }
        }
    }

    /// What the child's machine says to this event.
    pub(super) fn child(
        mutant: Option<Self>,
        world: &mut World,
        event: child::Event,
    ) -> Vec<child::Action> {
        use child::{Action, Event};
        let before = world.child.state();
        match (mutant, before, &event) {
            (Some(Self::PromotesInJoining), ChildState::Joining, Event::ParentDied)
            | (Some(Self::PromotesUnasked), ChildState::Ready, Event::ParentDied) => {
                return vec![Action::TakeOver, Action::Final];
            }
            (Some(Self::PromotesAfterStop), ChildState::Ready, Event::Stopped(_))
            | (Some(Self::DeposingIsDeaf), ChildState::Deposing, Event::Stopped(_)) => {
                return vec![];
            }
            (Some(Self::NeverPromotes), _, Event::ParentDied) if !world.read_commit => {
                return world.child.on(Event::Aborted(String::new()));
            }
            (Some(Self::RevokedGivesUp), ChildState::Returning, Event::ParentDied) => {
                return world.child.on(Event::Returned);
            }
            (Some(Self::TakesSilenceForDeath), ChildState::Ready, Event::Timer(Timer::Ready)) => {
                return world.child.on(Event::ParentDied);
            }
            _ => {}
        }
        let mut actions = world.child.on(event);
        match mutant {
            Some(Self::TakesOverWhenReady) if actions.contains(&Action::SendReady) => {
                actions.push(Action::TakeOver);
            }
            _ => {}
        }
        Self::child_actions(mutant, &mut actions);
        actions
    }

    /// What is left of the child's actions.
    pub(super) fn child_actions(mutant: Option<Self>, actions: &mut Vec<child::Action>) {
        match mutant {
            Some(Self::ChildSkips(name)) => actions.retain(|a| !is_named(&format!("{a:?}"), name)),
            Some(Self::ChildNever(timer)) => actions.retain(|a| *a != child::Action::Start(timer)),
            _ => {}
        }
    }
}

/// Whether an action's `Debug` begins with this name.
fn is_named(action: &str, name: &str) -> bool {
    action
        .strip_prefix(name)
        .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// Where a mutant is put to work.
#[derive(Clone, Copy, Debug)]
enum Setting {
    /// Nothing fails, and nothing is late.
    Calm,
    /// Nothing fails; everything may be late.
    Late,
    /// Nothing is late, and the parent is killed.
    Orphaned,
    /// So many faults.
    Faults(u32),
    /// One fault, and whoever freezes does not thaw.
    Frozen,
    /// One fault, promotion off.
    Unpromoted,
    /// One fault, no probation.
    Unwatched,
}

impl Setting {
    fn config(self, mutant: Mutant) -> Config {
        let faults = match self {
            Self::Calm | Self::Late => 0,
            Self::Faults(faults) => faults,
            Self::Orphaned | Self::Frozen | Self::Unpromoted | Self::Unwatched => 1,
        };
        let probation = !matches!(self, Self::Unwatched);
        let mut config = Config::new(probation, !matches!(self, Self::Unpromoted), faults);
        config.patient = matches!(self, Self::Calm | Self::Orphaned);
        if matches!(self, Self::Orphaned) {
            config.allowed = Fault::Kill(Who::Parent).bit();
        }
        config.thaws = !matches!(self, Self::Frozen);
        config.mutant = Some(mutant);
        config
    }
}

fn assert_caught(mutant: Mutant, setting: Setting, by: Invariant) {
    let Err(found) = walk(&setting.config(mutant)) else {
        panic!("{mutant:?} is not caught");
    };
    println!("{mutant:?}, {setting:?}: {by:?}");
    assert_eq!(
        found.invariant, by,
        "{mutant:?} is caught by another invariant:\n{}",
        found.story
    );
}

macro_rules! caught {
    ($($name:ident: $mutant:ident, $setting:expr => $invariant:ident;)*) => {
        $(
            #[test]
            fn $name() {
                use Setting::{Calm, Faults, Frozen, Late, Unpromoted, Unwatched};
                // Not every line needs every setting.
                let _ = (Calm, Faults(0), Frozen, Late, Unpromoted, Unwatched);
                assert_caught(Mutant::$mutant, $setting, Invariant::$invariant);
            }
        )*
    };
}

caught! {
    deaths_before_messages: DeathsBeforeMessages, Faults(1) => I1;
    timers_before_messages: TimersBeforeMessages, Late => I1;
    the_parent_pauses_at_commit: PausesAtCommit, Calm => I2;
    the_parent_releases_at_accepting: ReleasesAtAccepting, Calm => I8;
    the_parent_takes_a_deadline_for_a_death: TakesDeadlineForDeath, Late => I5;
    the_parent_goes_on_before_the_death: GoesOnBeforeDeath, Late => I5;
    the_parent_restores_nothing: RestoresNothing, Late => I5;
    the_parent_confirms_at_once: ConfirmsAtOnce, Faults(1) => I8;
    the_parent_confirms_at_once_without_probation: ConfirmsAtOnce, Unwatched => I8;
    the_parent_confirms_unasked: ConfirmsUnasked, Frozen => I1;
    the_clock_runs_between_questions: ClockRunsBetweenQuestions, Late => I1;
    the_parent_takes_back_from_the_living: TakesBackFromTheLiving, Faults(1) => I4;
    the_parent_serves_unacknowledged: ServesUnacknowledged, Faults(1) => I4;
    the_child_takes_back_from_a_living_parent: TakesBackFromALivingParent, Faults(1) => I4;
    the_parent_takes_back_unasked: TakesBackUnasked, Late => I3;
    the_parent_resumes_when_the_child_has_yielded: ResumesWhenYielded, Late => I1;
    the_parent_goes_on_after_a_stop: GoesOnAfterStop, Faults(1) => Stopped;
    the_parent_takes_a_stop_for_a_crash: TakesStopForCrash, Faults(1) => Stopped;
    the_child_takes_over_when_ready: TakesOverWhenReady, Calm => I2;
    the_child_promotes_in_joining: PromotesInJoining, Faults(1) => I6;
    the_child_promotes_after_a_stop: PromotesAfterStop, Faults(2) => Stopped;
    the_child_never_promotes: NeverPromotes, Faults(1) => I1;
    the_child_promotes_unasked: PromotesUnasked, Unpromoted => I6;
    the_child_gives_up_when_revoked: RevokedGivesUp, Faults(1) => I1;
    the_deposing_child_is_deaf: DeposingIsDeaf, Faults(1) => Stopped;
    the_child_takes_silence_for_a_death: TakesSilenceForDeath, Late => I2;
}

/// Not among them: the parent's `SendAbort` and the child's `SendYielded`, `SendRefuse`, `SendBye` and `Cancel`. Without these
/// things take longer, and a reason is not told.
#[test]
fn every_action_is_needed() {
    use Setting::{Calm, Faults, Late, Orphaned};
    let parent = [
        ("SendOffer", Calm, Invariant::Works),
        ("TakeSnapshot", Calm, Invariant::Works),
        ("SendState", Calm, Invariant::Works),
        ("Retire", Calm, Invariant::Works),
        ("SendCommit", Calm, Invariant::Works),
        ("PauseAccepting", Calm, Invariant::I3),
        ("AskHealth", Calm, Invariant::Works),
        ("SendConfirm", Calm, Invariant::I8),
        ("ReleaseOwnership", Calm, Invariant::I2),
        ("StartDrain", Calm, Invariant::I7),
        ("DrainAlone", Faults(1), Invariant::I4),
        ("SayDraining", Calm, Invariant::I7),
        ("SendBye", Calm, Invariant::Works),
        ("ResumeAccepting", Late, Invariant::I1),
        ("SendRevoke", Late, Invariant::I1),
        ("TakeBack", Late, Invariant::I5),
        ("SendStop", Faults(1), Invariant::Stopped),
        ("Kill", Late, Invariant::I7),
        ("Failed", Late, Invariant::I5),
        ("StopSelf", Faults(1), Invariant::Stopped),
        ("Cancel", Late, Invariant::I7),
        ("Ended", Calm, Invariant::Works),
    ];
    let child = [
        ("SendHello", Calm, Invariant::Works),
        ("Prepare", Calm, Invariant::Works),
        ("SendPrepared", Calm, Invariant::Works),
        ("Restore", Calm, Invariant::Works),
        ("ColdStart", Orphaned, Invariant::I7),
        ("SendReady", Calm, Invariant::Works),
        ("TakeOver", Calm, Invariant::Works),
        ("SendAccepting", Calm, Invariant::Works),
        ("AnswerHealth", Calm, Invariant::Works),
        ("Final", Calm, Invariant::Works),
        ("Return", Late, Invariant::I3),
        ("Resume", Faults(1), Invariant::I7),
        ("SendStop", Faults(1), Invariant::Stopped),
        ("KillParent", Late, Invariant::I7),
        ("ParentGone", Calm, Invariant::Works),
        ("StopSelf", Faults(1), Invariant::I2),
        ("Exit", Faults(1), Invariant::I7),
    ];
    for (name, setting, invariant) in parent {
        assert_caught(Mutant::ParentSkips(name), setting, invariant);
    }
    for (name, setting, invariant) in child {
        assert_caught(Mutant::ChildSkips(name), setting, invariant);
    }
}

#[test]
fn every_timer_is_needed() {
    use Setting::{Calm, Late};
    let parent = [
        (Timer::Ready, Calm),
        (Timer::Retire, Calm),
        (Timer::Accept, Calm),
        (Timer::Probation, Calm),
        (Timer::Confirm, Calm),
        (Timer::Heartbeat, Calm),
        (Timer::Silence, Calm),
        (Timer::Goodbye, Late),
        (Timer::Leave, Late),
    ];
    for (timer, setting) in parent {
        assert_caught(Mutant::ParentNever(timer), setting, Invariant::I7);
    }
    for (timer, setting) in [
        (Timer::Ready, Calm),
        (Timer::Silence, Calm),
        (Timer::Leave, Late),
    ] {
        assert_caught(Mutant::ChildNever(timer), setting, Invariant::I7);
    }
}
