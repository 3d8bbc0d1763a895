//! The parent's side of one reload, from the start of the child to its own `Bye`.
//!
//! Failure rules: whatever fails before `Confirm` ends in [`Action::Failed`], and only after the
//! child's death has been seen: a deadline alone decides nothing once `Commit` is out, because
//! a frozen child may thaw. Until `Confirm` the parent holds all that it needs to serve, and it says
//! `Confirm` only after a word of the child's, and after it has looked whether that was its last.

use super::Timer;

/// What the child of a dry run is told.
const DISCARDED: &str = "this was a dry run: the child was ready, and is not needed";

/// Where the reload is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The child runs; its `Hello` is awaited.
    Joining,
    /// It has the offer; its `Prepared` is awaited.
    Booting,
    /// The snapshot of the state is being taken.
    Snapshotting,
    /// The child has the state; its `Ready` is awaited.
    Restoring,
    /// The `retired` hook runs.
    Retiring,
    /// `Commit` is out; `Accepting` is awaited. Both processes accept.
    Committing,
    /// The child serves; the parent has paused.
    Probation,
    /// The probation is over, or off: `Confirm` follows the child's answer to a last question.
    Confirming,
    /// The child was revoked: it returns what it has. The parent accepts again.
    Revoking(Failure),
    /// The child was killed or told to go; its death is awaited.
    Dying(Failure),
    /// A dry run has come to its end: the child was ready, and has been told to go. Its death is awaited.
    Discarding,
    /// The child is final; the parent finishes what it has begun. `false`: it has died.
    Draining { child_lives: bool },
    /// The same. The child has died, but its end of the channel lives on, with a generation that came
    /// after it: word from that one is awaited.
    Forsaken,
    /// An operator stops parent and child; the child's end is awaited.
    Stopping,
    /// Nothing more happens.
    Ended,
}

/// Why a reload failed, and how far it had come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Failure {
    pub(crate) phase: &'static str,
    pub(crate) reason: String,
    /// What must be undone.
    pub(crate) undo: Undo,
}

/// How much of the old order must be restored before the parent is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Undo {
    /// The child had done nothing that shows.
    Nothing,
    /// The `retired` hook was called: `revoked` is due.
    Retired,
    /// The child may have put its name into the pidfile.
    Ownership,
    /// The parent had stopped accepting.
    Accepting,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// `Hello`, with the version that both speak or the words in which there is none.
    Hello(Result<u16, String>),
    /// `Prepared`.
    Prepared,
    /// The snapshot is in its memfd, or could not be taken.
    Snapshot(Result<(), String>),
    /// `Ready`.
    Ready,
    /// The `retired` hook has returned.
    Retired,
    /// `Accepting`.
    Accepting,
    /// `Health`: `None` when well.
    Health(Option<String>),
    /// `Refuse`: the child cannot go on.
    Refused(String),
    /// `Stop` from the child: an operator stopped it.
    Stopped(String),
    /// `Yielded` from a revoked child: what only one generation may have and do is the parent's again.
    Yielded,
    /// `Bye` from a revoked child.
    Returned,
    /// After `Confirm`: the child is dead, and somebody else has its end of the channel.
    Vanished,
    /// `Successor`: somebody else is at the other end now, and lives.
    Successor,
    /// The child broke the protocol, or closed its channel and lives.
    Broken(String),
    /// The child is dead and all that it said has been heard.
    Died(String),
    /// A timer ran out.
    Timer(Timer),
    /// An operator stops this process.
    Stop(String),
    /// An operator ends the probation.
    ConfirmNow,
    /// An operator takes the reload back.
    Rollback,
    /// `ChannelAck`: the channel of an older generation is the child's, or was refused.
    Acked,
    /// After `Confirm`: all is finished, passed or cut, and acknowledged.
    Drained,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Name the phase to whoever watches.
    Phase(&'static str),
    SendOffer {
        version: u16,
    },
    TakeSnapshot,
    SendState,
    /// Call the `retired` hook; answer with [`Event::Retired`].
    Retire,
    SendCommit,
    /// The listeners of this process are paused; nothing is closed.
    PauseAccepting,
    AskHealth,
    SendConfirm,
    /// Give up listeners, lock, pidfile and control socket: they are the child's alone.
    ReleaseOwnership,
    /// Begin to hand over and finish; answer with [`Event::Drained`].
    StartDrain,
    /// There is nobody to hand over to any more. What was not acknowledged comes back if the child is
    /// dead; a living one may serve it, so that nobody else does.
    DrainAlone {
        child_is_dead: bool,
    },
    SayDraining,
    SendBye,
    /// Accept again, on the queue that was never closed: before the child is told to pause.
    ResumeAccepting,
    SendRevoke(String),
    /// Pidfile, control socket and the work of one generation are this process's again.
    TakeBack,
    SendAbort(String),
    SendStop(String),
    /// SIGKILL by pidfd.
    Kill,
    /// Undo, then tell whoever watches that the old generation serves on.
    Failed(Failure),
    /// A dry run has succeeded, and nothing is left of the child.
    Discarded,
    /// Stop this process: the child heard it first.
    StopSelf(String),
    Start(Timer),
    Cancel(Timer),
    /// The reload is over for this process.
    Ended,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Parent {
    state: State,
    /// Whether the child is watched for a while before it is final.
    probation: bool,
    /// Whether the child is sent away once it is ready. It does not know: should this process die, it takes over.
    dry_run: bool,
}

impl Parent {
    /// The child has been started.
    pub(crate) fn new(probation: bool) -> (Self, Vec<Action>) {
        let parent = Self {
            state: State::Joining,
            probation,
            dry_run: false,
        };
        (
            parent,
            vec![Action::Phase("joining"), Action::Start(Timer::Ready)],
        )
    }

    /// The same, for a reload that ends where it would be decided.
    pub(crate) fn dry_run() -> (Self, Vec<Action>) {
        let (mut parent, actions) = Self::new(false);
        parent.dry_run = true;
        (parent, actions)
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The word for the state in messages to people.
    pub(crate) fn phase(&self) -> &'static str {
        match self.state {
            State::Joining => "joining",
            State::Booting => "booting",
            State::Snapshotting | State::Restoring => "restoring",
            State::Retiring | State::Committing => "committing",
            State::Confirming if !self.probation => "committing",
            State::Probation | State::Confirming => "probation",
            State::Revoking(_) | State::Dying(_) => "failing",
            State::Discarding => "discarding",
            State::Draining { .. } | State::Forsaken => "draining",
            State::Stopping => "stopping",
            State::Ended => "ended",
        }
    }

    /// Whether the child is final.
    pub(crate) fn is_confirmed(&self) -> bool {
        matches!(self.state, State::Draining { .. } | State::Forsaken)
    }

    /// Reasons make states differ that are the same otherwise.
    #[cfg(test)]
    pub(crate) fn forget_words(&mut self) {
        if let State::Revoking(failure) | State::Dying(failure) = &mut self.state {
            failure.phase = "";
            failure.reason.clear();
        }
    }

    /// The process is dead.
    #[cfg(test)]
    pub(crate) fn end(&mut self) {
        self.state = State::Ended;
    }

    /// One step.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        match (&self.state, event) {
            (State::Ended, _) => vec![],
            (_, Event::Stop(reason)) => self.stop(reason),
            (_, Event::Died(how)) => self.died(&how),
            (State::Draining { child_lives }, event) => self.draining(*child_lives, event),
            (State::Forsaken, event) => self.forsaken(event),
            (State::Dying(failure), event) => {
                let failure = failure.clone();
                self.dying(failure, event)
            }
            (State::Discarding, event) => self.discarding(event),
            (State::Stopping, Event::Timer(Timer::Goodbye | Timer::Leave)) => vec![Action::Kill],
            (State::Stopping, _) => vec![],
            (State::Revoking(failure), event) => {
                let failure = failure.clone();
                self.revoking(failure, event)
            }
            (_, Event::Stopped(reason)) => self.stopped_by_child(reason),
            (_, Event::Refused(reason)) => self.fail(reason, Some("told")),
            (_, Event::Broken(reason)) => self.fail(reason, None),
            (State::Probation | State::Confirming, event) => self.probation(event),
            (_, event) => self.before_accepting(event),
        }
    }

    /// The happy path up to `Accepting`, and its deadlines.
    fn before_accepting(&mut self, event: Event) -> Vec<Action> {
        match (&self.state, event) {
            (State::Joining, Event::Hello(Ok(version))) => self.enter(
                State::Booting,
                vec![Action::SendOffer { version }, Action::Phase("booting")],
            ),
            (State::Joining, Event::Hello(Err(reason))) => self.fail(reason, Some("told")),
            (State::Booting, Event::Prepared) => self.enter(
                State::Snapshotting,
                vec![Action::Phase("restoring"), Action::TakeSnapshot],
            ),
            (State::Snapshotting, Event::Snapshot(Ok(()))) => {
                self.enter(State::Restoring, vec![Action::SendState])
            }
            (State::Snapshotting, Event::Snapshot(Err(reason))) => self.fail(reason, Some("told")),
            (State::Restoring, Event::Ready) if self.dry_run => self.enter(
                State::Discarding,
                vec![
                    Action::Cancel(Timer::Ready),
                    Action::Phase("discarding"),
                    Action::SendAbort(DISCARDED.to_owned()),
                    Action::Start(Timer::Goodbye),
                ],
            ),
            (State::Restoring, Event::Ready) => self.enter(
                State::Retiring,
                vec![
                    Action::Cancel(Timer::Ready),
                    Action::Phase("committing"),
                    Action::Start(Timer::Retire),
                    Action::Retire,
                ],
            ),
            (State::Retiring, Event::Retired) => self.enter(
                State::Committing,
                vec![
                    Action::Cancel(Timer::Retire),
                    Action::SendCommit,
                    Action::Start(Timer::Accept),
                ],
            ),
            (State::Committing, Event::Accepting) => self.accepting(),
            (_, Event::Timer(Timer::Ready)) => {
                let reason = match self.state {
                    State::Joining => "the child did not say Hello in time: is it this program?",
                    State::Booting => "the child was not prepared in time",
                    State::Snapshotting => "the state was not written in time",
                    _ => "the child was not ready in time",
                };
                self.fail(reason.to_owned(), None)
            }
            (State::Retiring, Event::Timer(Timer::Retire)) => self.fail(
                "the `retired` hook of the old generation did not return in time".to_owned(),
                Some("told"),
            ),
            (State::Committing, Event::Timer(Timer::Accept)) => self.fail(
                "the child did not accept in time after the commit".to_owned(),
                None,
            ),
            // Timers that were cancelled while they ran out, and a hook that returned late.
            (
                _,
                Event::Timer(_)
                | Event::Retired
                | Event::Snapshot(_)
                | Event::ConfirmNow
                | Event::Rollback,
            ) => vec![],
            (_, event) => {
                let reason = format!("the child said {event:?} while {}", self.phase());
                self.fail(reason, None)
            }
        }
    }

    fn accepting(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::Cancel(Timer::Accept), Action::PauseAccepting];
        if self.probation {
            self.state = State::Probation;
            actions.extend([
                Action::Phase("probation"),
                Action::Start(Timer::Probation),
                Action::AskHealth,
                Action::Start(Timer::Silence),
            ]);
        } else {
            // Not `Confirm` at once: the child may have died with `Accepting` as its last word.
            self.state = State::Confirming;
            actions.push(Action::Start(Timer::Confirm));
        }
        actions
    }

    fn probation(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Health(None) if self.state == State::Confirming => {
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::Start(Timer::Confirm),
                ]
            }
            // `Silence` runs only while an answer is due: were it to run between two questions, then
            // two processes that wake from one long sleep would kill each other.
            Event::Health(None) => {
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::Start(Timer::Heartbeat),
                ]
            }
            Event::Health(Some(ill)) => self.revoke(format!("the child is not healthy: {ill}")),
            Event::Timer(Timer::Heartbeat) => {
                vec![Action::AskHealth, Action::Start(Timer::Silence)]
            }
            Event::Timer(Timer::Silence) => {
                self.fail("the child did not answer during probation".to_owned(), None)
            }
            Event::Rollback => self.revoke("rolled back by an operator".to_owned()),
            Event::Timer(Timer::Confirm) if self.state == State::Confirming => self.confirm(),
            // A last question: whoever does not answer is not confirmed, however short the probation.
            Event::Timer(Timer::Probation) | Event::ConfirmNow
                if self.state == State::Probation =>
            {
                self.enter(
                    State::Confirming,
                    vec![
                        Action::Cancel(Timer::Probation),
                        Action::Cancel(Timer::Heartbeat),
                        Action::AskHealth,
                        Action::Start(Timer::Silence),
                    ],
                )
            }
            Event::ConfirmNow => vec![],
            Event::Timer(_) | Event::Retired | Event::Snapshot(_) => vec![],
            event => self.fail(format!("the child said {event:?} in probation"), None),
        }
    }

    fn confirm(&mut self) -> Vec<Action> {
        let mut actions = self.cancel_all();
        self.state = State::Draining { child_lives: true };
        actions.extend([
            Action::SendConfirm,
            Action::ReleaseOwnership,
            Action::Phase("draining"),
            Action::StartDrain,
            Action::Start(Timer::Heartbeat),
        ]);
        actions
    }

    fn draining(&mut self, child_lives: bool, event: Event) -> Vec<Action> {
        match event {
            // Also to a child that is dead, or not believed: somebody may have its end of the channel, and
            // would take silence for a crash.
            Event::Drained => self.enter(
                State::Ended,
                vec![
                    Action::Cancel(Timer::Heartbeat),
                    Action::SendBye,
                    Action::Ended,
                ],
            ),
            Event::Timer(Timer::Heartbeat) => {
                vec![Action::SayDraining, Action::Start(Timer::Heartbeat)]
            }
            // The child cannot be killed any more, it is the service: only the channel is given up.
            Event::Broken(_) if child_lives => self.drain_alone(false),
            // The operator stopped the service. What is on its way to the child is still the child's
            // to acknowledge; the rest ends here.
            Event::Stopped(reason) => vec![Action::StopSelf(reason)],
            Event::Vanished if child_lives => {
                self.enter(State::Forsaken, vec![Action::Start(Timer::Successor)])
            }
            _ => vec![],
        }
    }

    /// The child is dead. Its end of the channel is not closed, so that what was sent may yet be served by
    /// whoever has it.
    fn forsaken(&mut self, event: Event) -> Vec<Action> {
        let over = Action::Cancel(Timer::Successor);
        match event {
            Event::Successor => self.enter(State::Draining { child_lives: true }, vec![over]),
            Event::Timer(Timer::Heartbeat) => {
                vec![Action::SayDraining, Action::Start(Timer::Heartbeat)]
            }
            Event::Timer(Timer::Successor) | Event::Broken(_) => {
                let mut actions = vec![over];
                actions.extend(self.drain_alone(false));
                actions
            }
            Event::Drained => self.enter(
                State::Ended,
                vec![
                    over,
                    Action::Cancel(Timer::Heartbeat),
                    Action::SendBye,
                    Action::Ended,
                ],
            ),
            Event::Stopped(reason) => vec![Action::StopSelf(reason)],
            _ => vec![],
        }
    }

    fn drain_alone(&mut self, child_is_dead: bool) -> Vec<Action> {
        self.state = State::Draining { child_lives: false };
        vec![Action::DrainAlone { child_is_dead }]
    }

    fn revoke(&mut self, reason: String) -> Vec<Action> {
        let failure = self.failure(reason.clone());
        let mut actions = self.cancel_all();
        self.state = State::Revoking(failure);
        actions.extend([
            Action::ResumeAccepting,
            Action::SendRevoke(reason),
            Action::Start(Timer::Leave),
        ]);
        actions
    }

    /// The child returns what it has, then says `Bye` and ends.
    fn revoking(&mut self, mut failure: Failure, event: Event) -> Vec<Action> {
        let over = Action::Cancel(Timer::Leave);
        match event {
            Event::Yielded => {
                failure.undo = Undo::Nothing;
                self.enter(State::Revoking(failure), vec![Action::TakeBack])
            }
            Event::Returned => self.enter(
                State::Dying(failure),
                vec![over, Action::Start(Timer::Goodbye)],
            ),
            Event::Timer(Timer::Leave) | Event::Broken(_) => {
                self.enter(State::Dying(failure), vec![over, Action::Kill])
            }
            Event::Stopped(reason) => self.stopped_by_child(reason),
            _ => vec![],
        }
    }

    /// Waits for the child's death; nothing that it says counts any more.
    fn dying(&mut self, failure: Failure, event: Event) -> Vec<Action> {
        match event {
            Event::Timer(Timer::Goodbye) => self.enter(State::Dying(failure), vec![Action::Kill]),
            Event::Stopped(reason) => self.stopped_by_child(reason),
            _ => vec![],
        }
    }

    /// As [`dying`](Self::dying): the child was ready, and how it goes is no news.
    fn discarding(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Timer(Timer::Goodbye) => vec![Action::Kill],
            Event::Stopped(reason) => self.stopped_by_child(reason),
            _ => vec![],
        }
    }

    fn died(&mut self, how: &str) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Draining { child_lives: true } => self.drain_alone(true),
            State::Forsaken => {
                let mut actions = vec![Action::Cancel(Timer::Successor)];
                actions.extend(self.drain_alone(true));
                actions
            }
            State::Draining { child_lives: false } => {
                self.state = State::Draining { child_lives: false };
                vec![]
            }
            State::Stopping => vec![
                Action::Cancel(Timer::Goodbye),
                Action::Cancel(Timer::Leave),
                Action::Ended,
            ],
            State::Dying(failure) => vec![
                Action::Cancel(Timer::Goodbye),
                Action::Failed(failure),
                Action::Ended,
            ],
            State::Discarding => vec![
                Action::Cancel(Timer::Goodbye),
                Action::Discarded,
                Action::Ended,
            ],
            State::Revoking(failure) => vec![
                Action::Cancel(Timer::Leave),
                Action::Failed(failure),
                Action::Ended,
            ],
            state => {
                self.state = state;
                let failure = self.failure(format!("the child {how}"));
                let mut actions = self.cancel_all();
                self.state = State::Ended;
                actions.extend([Action::Failed(failure), Action::Ended]);
                actions
            }
        }
    }

    /// The reload has failed: the child is told, if there is something that it does not know, or
    /// killed; either way its death comes first.
    fn fail(&mut self, reason: String, told: Option<&str>) -> Vec<Action> {
        let failure = self.failure(reason.clone());
        let mut actions = self.cancel_all();
        // Once `Commit` is out a word is not enough: a child that has read it accepts.
        let killed = told.is_none() || failure.undo >= Undo::Ownership;
        if killed {
            actions.push(Action::Kill);
        } else {
            actions.extend([Action::SendAbort(reason), Action::Start(Timer::Goodbye)]);
        }
        self.state = State::Dying(failure);
        actions
    }

    fn failure(&self, reason: String) -> Failure {
        let undo = match self.state {
            State::Retiring => Undo::Retired,
            State::Committing => Undo::Ownership,
            State::Probation | State::Confirming => Undo::Accepting,
            _ => Undo::Nothing,
        };
        Failure {
            phase: self.phase(),
            reason,
            undo,
        }
    }

    fn stop(&mut self, reason: String) -> Vec<Action> {
        match self.state {
            // A draining process that is stopped ends alone: its successor is the service now.
            State::Draining { .. } | State::Forsaken => vec![Action::StopSelf(reason)],
            State::Stopping => vec![],
            _ => {
                let mut actions = self.stopping();
                actions.extend([Action::SendStop(reason.clone()), Action::StopSelf(reason)]);
                actions
            }
        }
    }

    fn stopped_by_child(&mut self, reason: String) -> Vec<Action> {
        let mut actions = self.stopping();
        actions.push(Action::StopSelf(reason));
        actions
    }

    fn stopping(&mut self) -> Vec<Action> {
        let mut actions = self.cancel_all();
        let accepts = matches!(
            self.state,
            State::Committing | State::Probation | State::Confirming | State::Revoking(_)
        );
        actions.push(Action::Start(if accepts {
            Timer::Leave
        } else {
            Timer::Goodbye
        }));
        self.state = State::Stopping;
        actions
    }

    fn cancel_all(&self) -> Vec<Action> {
        let timers: &[Timer] = match self.state {
            State::Joining | State::Booting | State::Snapshotting | State::Restoring => {
                &[Timer::Ready]
            }
            State::Retiring => &[Timer::Retire],
            State::Committing => &[Timer::Accept],
            State::Probation => &[Timer::Probation, Timer::Heartbeat, Timer::Silence],
            State::Confirming => &[Timer::Silence, Timer::Confirm],
            State::Revoking(_) => &[Timer::Leave],
            State::Dying(_) | State::Discarding => &[Timer::Goodbye],
            _ => &[],
        };
        timers.iter().map(|t| Action::Cancel(*t)).collect()
    }

    fn enter(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }
}

#[cfg(test)]
mod tests;
