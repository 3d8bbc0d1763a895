//! The child's side, from its first word to the parent's `Bye`.
//!
//! Failure rules: before `Commit` the child accepts nothing, whatever happens, unless the parent
//! has crashed after a complete `Offer` and promotion is on. A parent that says
//! `Abort` or `Stop` has not crashed, and nor has one that says nothing: only its death counts.

use super::Timer;

/// Where the child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// `Hello` is out; the offer is awaited.
    Joining,
    /// The application prepares.
    Preparing { orphan: bool },
    /// `Prepared` is out; the state is awaited.
    Prepared,
    /// The application restores its state, and is probed.
    Restoring { orphan: bool },
    /// `Ready` is out; the decision is awaited.
    Ready,
    /// It accepts; the parent can still take over again.
    Probation,
    /// It accepts, and has killed a parent that does not answer.
    Deposing,
    /// It is final; its parent drains.
    Serving,
    /// It is final, and drains itself while its parent still does: the channel is on its way to its own
    /// child, and nothing is read from it.
    Sent,
    /// It was revoked and returns what it has.
    Returning,
    /// It is stopping: an operator said so.
    Stopping,
    /// Nothing more happens with the parent. `serving`: the process lives on.
    Ended { serving: bool },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// A complete offer, checked; or what is wrong with it.
    Offer(Result<(), String>),
    /// The application has prepared, or cannot.
    Prepared(Result<(), String>),
    /// The state is here, verified; or what is wrong with it.
    State(Result<(), String>),
    /// The application has restored its state and is healthy; or not.
    Restored(Result<(), String>),
    /// The decision.
    Commit,
    /// The parent asks.
    AskHealth,
    /// The child is final.
    Confirm,
    /// The parent serves again.
    Revoke(String),
    /// It was revoked, and its `retired` hook has returned.
    Retired,
    /// What had to be returned has been.
    Returned,
    /// `Abort` or `Refuse`: the reload is over, in words.
    Aborted(String),
    /// `Stop` from the parent.
    Stopped(String),
    /// `Rest`, `Conn`, `Draining`: it is alive.
    Heard,
    /// The parent has finished.
    Bye,
    /// The parent broke the protocol.
    Broken(String),
    /// The parent is dead and all that it said has been heard.
    ParentDied,
    /// A timer ran out.
    Timer(Timer),
    /// An operator stops this process.
    Stop(String),
    /// This process has a child of its own, which is final, and all that was said to the parent has been
    /// written: the channel is to be passed on. At its end the parent takes up what has no ack, so that
    /// none may be missing.
    PassOn,
    /// The child has taken the channel.
    Passed,
    /// The child has not taken it, and says why: this process goes on listening.
    NotPassed,
    /// There is nobody to pass it on to, or no time.
    Forsaken,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    SendHello,
    /// Hand the offer to the application; answer with [`Event::Prepared`].
    Prepare,
    SendPrepared,
    /// Hand the state to the application; answer with [`Event::Restored`].
    Restore,
    /// There is no state to be had: the application begins without.
    ColdStart,
    SendReady,
    /// Take over, in this order: the real stderr, the delta of the commit, pidfile and control
    /// socket, the listeners.
    TakeOver,
    SendAccepting,
    AnswerHealth,
    /// The parent cannot come back: the lock, the pidfile and the control socket are ours.
    Final,
    /// Pause accepting and the control socket, and call the `retired` hook: [`Event::Retired`]. Return rest and
    /// connections meanwhile: [`Event::Returned`]. Nothing is closed that [`Action::Resume`] could not open
    /// again.
    Return,
    SendYielded,
    /// The parent to which it was to be returned has died: accept again, keep the rest, and take back what was
    /// yielded.
    Resume,
    /// Send the channel to the child; answer with [`Event::Passed`] or [`Event::NotPassed`].
    SendChannel,
    /// Close the channel: another process has it, or the parent finds out that nobody has.
    LetGo,
    SendRefuse(String),
    SendStop(String),
    SendBye,
    /// SIGKILL by pidfd: the parent has not said a word for too long.
    KillParent,
    /// The parent has left: `crashed` or with its `Bye`.
    ParentGone {
        crashed: bool,
    },
    /// Stop this process gracefully.
    StopSelf(String),
    /// This process never served: end it, for this reason.
    Exit(String),
    Start(Timer),
    Cancel(Timer),
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Child {
    state: State,
    /// Whether it succeeds a parent that crashed.
    promote: bool,
}

impl Child {
    /// The channel is there.
    pub(crate) fn new(promote: bool) -> (Self, Vec<Action>) {
        (
            Self {
                state: State::Joining,
                promote,
            },
            vec![Action::SendHello, Action::Start(Timer::Ready)],
        )
    }

    /// At this end of a channel that came with `Channel`; a generation that drains is at the other.
    pub(crate) fn inherited() -> (Self, Vec<Action>) {
        let child = Self {
            state: State::Serving,
            promote: false,
        };
        (child, vec![Action::Start(Timer::Silence)])
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    #[cfg(test)]
    pub(crate) fn promotes(&self) -> bool {
        self.promote
    }

    /// The process is dead.
    #[cfg(test)]
    pub(crate) fn end(&mut self) {
        self.state = State::Ended { serving: false };
    }

    /// Whether this process is the one that serves.
    #[cfg(test)]
    pub(crate) fn has_taken_over(&self) -> bool {
        matches!(
            self.state,
            State::Probation
                | State::Deposing
                | State::Serving
                | State::Sent
                | State::Ended { serving: true }
        )
    }

    /// One step.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        match self.state {
            State::Ended { .. } => vec![],
            State::Joining
            | State::Preparing { .. }
            | State::Prepared
            | State::Restoring { .. }
            | State::Ready => self.before_commit(event),
            State::Probation => self.probation(event),
            State::Deposing => self.deposing(event),
            State::Serving => self.serving(event),
            State::Sent => self.sent(event),
            State::Returning => self.returning(event),
            State::Stopping => self.stopping(&event),
        }
    }

    fn before_commit(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Stop(reason) => self.exit(vec![Action::SendStop(reason.clone())], reason),
            Event::Stopped(reason) => self.exit(vec![], format!("stopped: {reason}")),
            Event::Aborted(reason) => {
                self.exit(vec![], format!("the parent ended the reload: {reason}"))
            }
            Event::Timer(Timer::Ready) => {
                let reason = "the parent did not decide in time";
                self.exit(
                    vec![Action::SendRefuse(reason.to_owned())],
                    reason.to_owned(),
                )
            }
            Event::ParentDied => self.orphaned(),
            Event::Offer(Err(e))
            | Event::Prepared(Err(e))
            | Event::State(Err(e))
            | Event::Restored(Err(e)) => self.exit(vec![Action::SendRefuse(e.clone())], e),
            Event::Broken(e) => self.exit(vec![Action::SendRefuse(e.clone())], e),
            event => self.forward(event),
        }
    }

    /// The happy path up to the commit; an orphan walks it alone.
    fn forward(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Joining, Event::Offer(Ok(()))) => {
                self.enter(State::Preparing { orphan: false }, vec![Action::Prepare])
            }
            (State::Preparing { orphan: false }, Event::Prepared(Ok(()))) => {
                self.enter(State::Prepared, vec![Action::SendPrepared])
            }
            (State::Preparing { orphan: true }, Event::Prepared(Ok(()))) => {
                self.enter(State::Restoring { orphan: true }, vec![Action::ColdStart])
            }
            (State::Prepared, Event::State(Ok(()))) => {
                self.enter(State::Restoring { orphan: false }, vec![Action::Restore])
            }
            (State::Restoring { orphan: false }, Event::Restored(Ok(()))) => {
                self.enter(State::Ready, vec![Action::SendReady])
            }
            (State::Restoring { orphan: true }, Event::Restored(Ok(()))) => self.promoted(),
            (State::Ready, Event::Commit) => self.enter(
                State::Probation,
                vec![
                    Action::Cancel(Timer::Ready),
                    Action::TakeOver,
                    Action::SendAccepting,
                    Action::Start(Timer::Silence),
                ],
            ),
            (_, Event::Timer(_) | Event::Heard) => vec![],
            (state, event) => {
                let reason = format!("the parent said {event:?} to a child that is {state:?}");
                self.exit(vec![Action::SendRefuse(reason.clone())], reason)
            }
        }
    }

    /// The parent crashed before the commit.
    fn orphaned(&mut self) -> Vec<Action> {
        let gone = Action::ParentGone { crashed: true };
        if self.state == State::Joining {
            return self.exit(
                vec![gone],
                "the parent died before it had offered its listeners".to_owned(),
            );
        }
        if !self.promote {
            return self.exit(
                vec![gone],
                "the parent died, and promotion is off".to_owned(),
            );
        }
        match self.state {
            State::Preparing { .. } => self.enter(State::Preparing { orphan: true }, vec![gone]),
            State::Prepared => self.enter(
                State::Restoring { orphan: true },
                vec![gone, Action::ColdStart],
            ),
            State::Restoring { .. } => self.enter(State::Restoring { orphan: true }, vec![gone]),
            _ => {
                let mut actions = vec![gone];
                actions.extend(self.promoted());
                actions
            }
        }
    }

    fn promoted(&mut self) -> Vec<Action> {
        self.enter(
            State::Ended { serving: true },
            vec![
                Action::Cancel(Timer::Ready),
                Action::TakeOver,
                Action::Final,
            ],
        )
    }

    fn probation(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Confirm => self.enter(
                State::Serving,
                vec![Action::Final, Action::Start(Timer::Silence)],
            ),
            Event::AskHealth => vec![Action::AnswerHealth, Action::Start(Timer::Silence)],
            Event::Revoke(_) => self.enter(
                State::Returning,
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::Return,
                    Action::Start(Timer::Leave),
                ],
            ),
            // Broken words from a parent that may still come back: as if it were silent.
            Event::Timer(Timer::Silence) | Event::Broken(_) => self.enter(
                State::Deposing,
                vec![Action::Cancel(Timer::Silence), Action::KillParent],
            ),
            Event::ParentDied => self.enter(
                State::Ended { serving: true },
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::Final,
                    Action::ParentGone { crashed: true },
                ],
            ),
            Event::Aborted(reason) => self.exit(vec![Action::Cancel(Timer::Silence)], reason),
            Event::Stopped(reason) => self.stop(reason, false),
            Event::Stop(reason) => self.stop(reason, true),
            _ => vec![],
        }
    }

    /// The parent was killed by us: its death is certain, but not yet seen.
    fn deposing(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::ParentDied => self.enter(
                State::Ended { serving: true },
                vec![Action::Final, Action::ParentGone { crashed: true }],
            ),
            // Its last word may have crossed our signal.
            Event::Stop(reason) | Event::Stopped(reason) => self.stop(reason, false),
            _ => vec![],
        }
    }

    fn serving(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Heard => vec![Action::Start(Timer::Silence)],
            Event::Bye => self.enter(
                State::Ended { serving: true },
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::ParentGone { crashed: false },
                ],
            ),
            Event::ParentDied => self.enter(
                State::Ended { serving: true },
                vec![
                    Action::Cancel(Timer::Silence),
                    Action::ParentGone { crashed: true },
                ],
            ),
            // Frozen while it drains: what it holds is lost to its clients already.
            Event::Timer(Timer::Silence) => vec![Action::KillParent],
            // Draining generations are told; they finish or pass on nothing more.
            Event::Stop(reason) => vec![Action::SendStop(reason.clone()), Action::StopSelf(reason)],
            Event::PassOn => self.enter(
                State::Sent,
                vec![Action::Cancel(Timer::Silence), Action::SendChannel],
            ),
            _ => vec![],
        }
    }

    fn sent(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::NotPassed => self.enter(State::Serving, vec![Action::Start(Timer::Silence)]),
            // If it was not taken, the child has perhaps said a word on it, and read one: for us it
            // is of no more use.
            Event::Passed | Event::Forsaken => {
                self.enter(State::Ended { serving: true }, vec![Action::LetGo])
            }
            Event::Stop(reason) => vec![Action::StopSelf(reason)],
            _ => vec![],
        }
    }

    fn returning(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Retired => vec![Action::SendYielded],
            Event::Returned => self.exit(vec![Action::SendBye], "revoked by the parent".to_owned()),
            Event::Timer(Timer::Leave) => {
                let reason = "revoked by the parent, and not done in time with what it had";
                self.exit(
                    vec![Action::SendRefuse(reason.to_owned())],
                    reason.to_owned(),
                )
            }
            // A crash, and nobody else is there: whatever we were revoked for, it is better than nothing.
            Event::ParentDied if self.promote => self.enter(
                State::Ended { serving: true },
                vec![
                    Action::Cancel(Timer::Leave),
                    Action::Resume,
                    Action::Final,
                    Action::ParentGone { crashed: true },
                ],
            ),
            Event::ParentDied => {
                self.exit(vec![], "revoked by a parent that died since".to_owned())
            }
            Event::Stop(reason) => self.stop(reason, true),
            Event::Stopped(reason) => self.stop(reason, false),
            _ => vec![],
        }
    }

    fn stopping(&mut self, event: &Event) -> Vec<Action> {
        match event {
            Event::ParentDied | Event::Bye => self.enter(State::Ended { serving: false }, vec![]),
            _ => vec![],
        }
    }

    fn stop(&mut self, reason: String, say: bool) -> Vec<Action> {
        self.state = State::Stopping;
        let mut actions = vec![Action::Cancel(Timer::Silence), Action::Cancel(Timer::Leave)];
        if say {
            actions.push(Action::SendStop(reason.clone()));
        }
        actions.push(Action::StopSelf(reason));
        actions
    }

    fn exit(&mut self, mut actions: Vec<Action>, reason: String) -> Vec<Action> {
        self.state = State::Ended { serving: false };
        actions.push(Action::Exit(reason));
        actions
    }

    fn enter(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }
}

#[cfg(test)]
mod tests;
