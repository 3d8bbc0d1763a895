//! The world: two processes that run the machines, the channel between them, and what may happen next.
//!
//! A process is its machine and a model of its driver: what it holds, what it accepts, which timers run, what it has
//! yet to do of its last event's actions, what the application has yet to answer. One step is one thing that one of
//! them does, or that is done to one of them; an event's actions are steps of their own wherever somebody else could
//! see the difference.

use std::{cell::RefCell, collections::HashSet, fmt, mem::Discriminant};

use super::{
    super::{
        Timer,
        child::{self, Child},
        drain::{Ledger, Sequence},
        parent::{self, Parent, Undo},
    },
    invariants::Invariant,
    mutants::Mutant,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Parent,
    Child,
}

impl Who {
    pub(super) const BOTH: [Self; 2] = [Self::Parent, Self::Child];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Parent => Self::Child,
            Self::Child => Self::Parent,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Hello,
    Offer,
    Prepared,
    State,
    Ready,
    Commit,
    Accepting,
    Ask,
    Answer,
    Confirm,
    Revoke,
    Yielded,
    /// The connection that the child has accepted itself, on its way back.
    Return,
    ReturnAck(bool),
    Rest(u8),
    Conn(u8, Connection),
    RestAck(u8),
    ConnAck(u8, bool),
    Draining,
    Bye,
    Refuse,
    Abort,
    Stop,
    /// Nothing that comes after it is heard.
    Garbage,
}

/// Which of the connections.
pub(super) type Connection = u8;

/// What may go wrong; each once at the most, and as many of them as the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    Kill(Who),
    Freeze(Who),
    /// An operator stops this process.
    Stop(Who),
    /// This process says something that makes no sense.
    Garbage(Who),
    /// The next message of this process cannot be sent.
    Mute(Who),
    /// Content that is refused, an application that fails, a child that is not well.
    Bad,
}

impl Fault {
    pub(super) const ALL: [Self; 11] = [
        Self::Kill(Who::Parent),
        Self::Kill(Who::Child),
        Self::Freeze(Who::Parent),
        Self::Freeze(Who::Child),
        Self::Stop(Who::Parent),
        Self::Stop(Who::Child),
        Self::Garbage(Who::Parent),
        Self::Garbage(Who::Child),
        Self::Mute(Who::Parent),
        Self::Mute(Who::Child),
        Self::Bad,
    ];

    pub(super) fn bit(self) -> u16 {
        let (kind, who) = match self {
            Self::Kill(who) => (0, who),
            Self::Freeze(who) => (2, who),
            Self::Stop(who) => (4, who),
            Self::Garbage(who) => (6, who),
            Self::Mute(who) => (8, who),
            Self::Bad => (10, Who::Parent),
        };
        1 << (kind + u16::from(who == Who::Child))
    }
}

/// What is walked through.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) probation: bool,
    pub(super) promote: bool,
    /// The parent sends the child away once it is ready.
    pub(super) dry_run: bool,
    /// Nothing takes longer than its deadline, and nobody decides anything by hand.
    pub(super) patient: bool,
    /// Whether a frozen process thaws at some time, or never.
    pub(super) thaws: bool,
    /// How many faults at the most.
    pub(super) faults: u32,
    /// Which, by their bits.
    pub(super) allowed: u16,
    pub(super) mutant: Option<Mutant>,
    /// What was carried out, to see that the walk has been everywhere.
    pub(super) parent_did: RefCell<HashSet<Discriminant<parent::Action>>>,
    pub(super) child_did: RefCell<HashSet<Discriminant<child::Action>>>,
}

impl Config {
    pub(super) fn new(probation: bool, promote: bool, faults: u32) -> Self {
        Self {
            probation,
            promote,
            dry_run: false,
            patient: false,
            thaws: true,
            faults,
            allowed: u16::MAX,
            mutant: None,
            parent_did: RefCell::default(),
            child_did: RefCell::default(),
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no = |on: bool, word: &str| {
            if on {
                word.to_owned()
            } else {
                format!("no {word}")
            }
        };
        write!(
            f,
            "{}, {}, ",
            no(self.probation, "probation"),
            no(self.promote, "promotion")
        )?;
        write!(f, "{}, {} faults", no(self.thaws, "thawing"), self.faults)?;
        if self.patient {
            f.write_str(", nothing late")?;
        }
        if self.dry_run {
            f.write_str(", a dry run")?;
        }
        match self.mutant {
            Some(mutant) => write!(f, ", {mutant:?}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Up,
    /// It has decided to end, has closed the channel, and is not dead yet.
    Exiting,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Accepts {
    NotYet,
    Yes,
    Paused,
    /// No more, whatever happens.
    Over,
}

/// What the application, or the driver, owes the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Snapshot,
    Retired,
    /// It could not be said.
    Broken,
    Prepared,
    Restored,
    Returned,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) frozen: bool,
    /// A SIGKILL is on its way: so many events are finished before it arrives.
    pub(super) doomed: Option<u8>,
    /// What it has yet to hear.
    pub(super) queue: Vec<Message>,
    pub(super) deaf: bool,
    pub(super) told_dead: bool,
    pub(super) told_closed: bool,
    /// The next message is lost.
    mute: bool,
    timers: u16,
    answers: u8,
    /// Listeners, lock, control listener.
    pub(super) holds: bool,
    pub(super) accepts: Accepts,
    /// Answers on the control socket.
    pub(super) control: bool,
    /// Does what only one generation may do.
    pub(super) exclusive: bool,
    /// A graceful stop is under way; it has a deadline of its own.
    pub(super) ending: bool,
    /// Was told to stop, by whomever.
    pub(super) told_stop: bool,
}

impl Process {
    fn new(first: bool) -> Self {
        Self {
            life: Life::Up,
            frozen: false,
            doomed: None,
            queue: Vec::new(),
            deaf: false,
            told_dead: false,
            told_closed: false,
            mute: false,
            timers: 0,
            answers: 0,
            holds: first,
            accepts: if first { Accepts::Yes } else { Accepts::NotYet },
            control: first,
            exclusive: first,
            ending: false,
            told_stop: false,
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.life == Life::Dead
    }

    /// Whether its death, if nothing else, is certain.
    pub(super) fn is_doomed(&self) -> bool {
        self.is_dead() || self.doomed.is_some()
    }

    /// Whether a timer runs that ends a wait. A heartbeat does not: it begins the next one.
    pub(super) fn has_deadline(&self) -> bool {
        self.timers & !timer_bit(Timer::Heartbeat) != 0
    }

    pub(super) fn has(&self, timer: Timer) -> bool {
        self.timers & timer_bit(timer) != 0
    }

    pub(super) fn armed(&self) -> impl Iterator<Item = Timer> + '_ {
        TIMERS.into_iter().filter(|t| self.has(*t))
    }

    fn owes(&self, answer: Answer) -> bool {
        self.answers & answer_bit(answer) != 0
    }

    fn owe(&mut self, answer: Answer) {
        self.answers |= answer_bit(answer);
    }

    /// Whether it goes on serving, as far as it knows.
    pub(super) fn serves(&self) -> bool {
        self.life == Life::Up && self.accepts == Accepts::Yes && !self.ending
    }
}

const TIMERS: [Timer; 10] = [
    Timer::Ready,
    Timer::Retire,
    Timer::Accept,
    Timer::Probation,
    Timer::Confirm,
    Timer::Heartbeat,
    Timer::Silence,
    Timer::Goodbye,
    Timer::Leave,
    Timer::Drain,
];

fn timer_bit(timer: Timer) -> u16 {
    1 << timer as u16
}

fn answer_bit(answer: Answer) -> u8 {
    1 << answer as u8
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// The parent serves it.
    Serves,
    /// Sent, and not acknowledged.
    Inert,
    Moved,
    Finished,
    /// Lost at the deadline, with the channel, or with its owner.
    Lost,
}

/// A connection that the drain moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Conn {
    pub(super) at_parent: Fate,
    /// The child has taken it up: at some time, and whether it is still alive.
    pub(super) child_took: bool,
    pub(super) child_serves: bool,
}

/// A connection that the child has accepted itself: a revoked child returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Back {
    /// `None` before it takes over, and when it is dead.
    pub(super) at_child: Option<Fate>,
    /// The parent has taken it up: at some time, and whether it is still alive.
    pub(super) parent_took: bool,
    pub(super) parent_serves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Item {
    Rest,
    Conn(Connection),
    /// A connection that was given up at the deadline.
    Abandoned,
}

/// Why the parent passes on no more connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Alone {
    No,
    /// There is nobody to pass anything on to.
    Gone,
    /// The drain deadline: only what changed is still passed on.
    Deadline,
}

/// The parent's half of moving connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transfer {
    ledger: Ledger<Item>,
    alone: Alone,
    rests: u8,
    /// The deadline has passed; a second time: nothing is waited for any more.
    cut: bool,
    gave_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) parent: Parent,
    pub(super) child: Child,
    parent_todo: Vec<parent::Action>,
    child_todo: Vec<child::Action>,
    pub(super) p: Process,
    pub(super) c: Process,
    pub(super) pidfile: Option<Who>,
    pub(super) conns: [Conn; 2],
    pub(super) back: Back,
    /// The parent takes what is returned: since `Revoke`.
    takes_in: bool,
    pub(super) transfer: Option<Transfer>,
    sequence: Sequence,
    /// Faults that have happened, by their bits.
    pub(super) spent: u16,
    /// An operator has confirmed or rolled back.
    decided: bool,
    // What has happened, for the invariants.
    /// The service was stopped on purpose.
    pub(super) stopped: bool,
    /// Nobody is left that could serve, and by the rules that may be so.
    pub(super) excused: bool,
    pub(super) read_commit: bool,
    pub(super) heard_accepting: bool,
    pub(super) said_confirm: bool,
    pub(super) released: bool,
    pub(super) is_final: bool,
    /// The child knows that its parent has gone, and whether it crashed.
    pub(super) parent_crashed: Option<bool>,
    /// What was broken in the step itself.
    pub(super) wrong: Option<(Invariant, &'static str)>,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The next of the actions of its last event.
    GoesOn(Who),
    Hears(Who),
    HearsBad(Who),
    /// The other is dead, by its pidfd.
    SeesDeath(Who),
    /// The other has closed its end and is alive.
    SeesEnd(Who),
    TimerOf(Who, Timer),
    Answers(Who, Answer),
    AnswersBad(Who, Answer),
    /// A graceful stop has come to its end, or to its deadline.
    Leaves(Who),
    /// The SIGKILL arrives, or the exit is complete.
    Dies(Who),
    Thaws(Who),
    /// The revoked child returns its connection.
    Returns,
    /// The parent passes on what changed, and its next connection.
    Passes,
    /// The parent has answered a connection and closes it.
    Finishes(usize),
    PassesLastRest,
    Drained,
    OperatorConfirms,
    OperatorRollsBack,
    Goes(Fault),
}

impl Step {
    /// Whether it must happen some time, if nothing else does, and leads on.
    pub(super) fn is_natural(self) -> bool {
        !matches!(
            self,
            Self::TimerOf(_, Timer::Heartbeat)
                | Self::HearsBad(_)
                | Self::AnswersBad(..)
                | Self::OperatorConfirms
                | Self::OperatorRollsBack
                | Self::Goes(_)
        )
    }
}

impl World {
    pub(super) fn start(config: &Config) -> Self {
        let (parent, mut parent_todo) = if config.dry_run {
            Parent::dry_run()
        } else {
            Parent::new(config.probation)
        };
        let (child, mut child_todo) = Child::new(config.promote);
        Mutant::parent_actions(config.mutant, &parent, &mut parent_todo);
        Mutant::child_actions(config.mutant, &mut child_todo);
        let conn = Conn {
            at_parent: Fate::Serves,
            child_took: false,
            child_serves: false,
        };
        let mut world = Self {
            parent,
            child,
            parent_todo,
            child_todo,
            p: Process::new(true),
            c: Process::new(false),
            pidfile: Some(Who::Parent),
            conns: [conn; 2],
            back: Back::default(),
            takes_in: false,
            transfer: None,
            sequence: Sequence::default(),
            spent: 0,
            decided: false,
            stopped: false,
            excused: false,
            read_commit: false,
            heard_accepting: false,
            said_confirm: false,
            released: false,
            is_final: false,
            parent_crashed: None,
            wrong: None,
        };
        world.run(Who::Parent, config);
        world.run(Who::Child, config);
        world
    }

    pub(super) fn process(&self, who: Who) -> &Process {
        match who {
            Who::Parent => &self.p,
            Who::Child => &self.c,
        }
    }

    fn process_mut(&mut self, who: Who) -> &mut Process {
        match who {
            Who::Parent => &mut self.p,
            Who::Child => &mut self.c,
        }
    }

    pub(super) fn is_busy(&self, who: Who) -> bool {
        match who {
            Who::Parent => !self.parent_todo.is_empty(),
            Who::Child => !self.child_todo.is_empty(),
        }
    }

    /// Whether the process still listens to the other.
    pub(super) fn has_link(&self, who: Who) -> bool {
        match who {
            Who::Parent => *self.parent.state() != parent::State::Ended,
            Who::Child => !matches!(self.child.state(), child::State::Ended { .. }),
        }
    }

    pub(super) fn is_releasing(&self) -> bool {
        self.parent_todo.contains(&parent::Action::ReleaseOwnership)
    }

    /// The driver has nothing more to do, and says so next.
    pub(super) fn is_drained(&self) -> bool {
        let mut steps = Vec::new();
        self.drain_steps(&mut steps);
        !steps.is_empty()
    }

    pub(super) fn has_happened(&self, fault: Fault) -> bool {
        self.spent & fault.bit() != 0
    }

    /// Something was lost on the channel that was said, or never said that should have been.
    pub(super) fn channel_failed(&self) -> bool {
        Who::BOTH
            .into_iter()
            .any(|w| self.has_happened(Fault::Garbage(w)) || self.has_happened(Fault::Mute(w)))
    }

    // What may happen.

    pub(super) fn steps(&self, config: &Config) -> Vec<Step> {
        let mut steps = Vec::with_capacity(16);
        for who in Who::BOTH {
            self.steps_of(who, config, &mut steps);
        }
        self.faults(config, &mut steps);
        steps
    }

    fn can_take_event(&self, who: Who) -> bool {
        let process = self.process(who);
        process.life == Life::Up
            && !process.frozen
            && process.doomed != Some(0)
            && !self.is_busy(who)
    }

    fn steps_of(&self, who: Who, config: &Config, steps: &mut Vec<Step>) {
        let process = self.process(who);
        if process.is_dead() {
            return;
        }
        if process.frozen {
            if config.thaws {
                steps.push(Step::Thaws(who));
            }
            return;
        }
        if process.doomed.is_some() || process.life == Life::Exiting {
            steps.push(Step::Dies(who));
        }
        if process.life != Life::Up {
            return;
        }
        if self.is_busy(who) {
            steps.push(Step::GoesOn(who));
            return;
        }
        if process.ending {
            steps.push(Step::Leaves(who));
        }
        if !self.can_take_event(who) {
            return;
        }
        self.heard_by(who, config, steps);
        for answer in [
            Answer::Snapshot,
            Answer::Retired,
            Answer::Broken,
            Answer::Prepared,
            Answer::Restored,
            Answer::Returned,
        ] {
            // Whether to go is asked after the news, as with the timers.
            let late = answer == Answer::Returned
                && (!process.queue.is_empty() || self.p.is_dead() && !process.told_dead);
            if process.owes(answer) && !late {
                steps.push(Step::Answers(who, answer));
            }
        }
        if who == Who::Parent {
            self.drain_steps(steps);
        } else if self.child.state() == child::State::Returning
            && self.back.at_child == Some(Fate::Serves)
            && !process.deaf
            && !process.told_closed
        {
            steps.push(Step::Returns);
        }
    }

    /// Rule 1: messages, then deaths and ends, then timers.
    fn heard_by(&self, who: Who, config: &Config, steps: &mut Vec<Step>) {
        if !self.has_link(who) {
            return;
        }
        let (process, other) = (self.process(who), self.process(who.other()));
        let quiet = process.queue.is_empty();
        if !quiet {
            steps.push(Step::Hears(who));
        }
        let news_of_death = other.is_dead() && !process.told_dead;
        if news_of_death && (quiet || config.is(Mutant::DeathsBeforeMessages)) {
            steps.push(Step::SeesDeath(who));
        }
        if other.life == Life::Exiting && quiet && !process.deaf && !process.told_closed {
            steps.push(Step::SeesEnd(who));
        }
        if (quiet && !news_of_death) || config.is(Mutant::TimersBeforeMessages) {
            let expires = |timer: &Timer| match timer {
                // One of each is under way at the most: a machine that talks for ever has as many
                // states as words.
                Timer::Heartbeat => !self.is_heartbeat_under_way(),
                Timer::Probation | Timer::Confirm => true,
                _ => !config.patient,
            };
            let expired = process.armed().filter(expires);
            steps.extend(expired.map(|timer| Step::TimerOf(who, timer)));
            if who == Who::Parent && !self.decided && !config.patient {
                steps.extend([Step::OperatorConfirms, Step::OperatorRollsBack]);
            }
        }
    }

    /// Whether a question, or its answer, is on its way.
    fn is_asked(&self) -> bool {
        self.c.queue.contains(&Message::Ask) || self.p.queue.contains(&Message::Answer)
    }

    fn is_heartbeat_under_way(&self) -> bool {
        self.is_asked() || self.c.queue.contains(&Message::Draining)
    }

    fn drain_steps(&self, steps: &mut Vec<Step>) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        if !matches!(self.parent.state(), parent::State::Draining { .. }) {
            return;
        }
        let waiting = self.conns.iter().position(|c| c.at_parent == Fate::Serves);
        if waiting.is_some() && transfer.alone == Alone::No && transfer.ledger.has_room() {
            steps.push(Step::Passes);
        }
        // They are alike: that the first is passed on and the last finished is no loss.
        let serves = |conn: &Conn| conn.at_parent == Fate::Serves;
        if let Some(last) = self.conns.iter().rposition(serves) {
            steps.push(Step::Finishes(last));
        }
        let finished = transfer.gave_up || (waiting.is_none() && transfer.alone == Alone::Gone);
        if finished {
            steps.push(Step::Drained);
        } else if waiting.is_none() && transfer.ledger.is_settled() {
            steps.push(match transfer.rests {
                2 => Step::Drained,
                _ => Step::PassesLastRest,
            });
        }
    }

    fn faults(&self, config: &Config, steps: &mut Vec<Step>) {
        if self.spent.count_ones() >= config.faults {
            return;
        }
        let possible = |fault: &Fault| {
            config.allowed & fault.bit() != 0
                && !self.has_happened(*fault)
                && self.is_possible(*fault)
        };
        for fault in Fault::ALL.into_iter().filter(possible) {
            if fault != Fault::Bad {
                steps.push(Step::Goes(fault));
                continue;
            }
            let worse: Vec<Step> = steps
                .iter()
                .filter_map(|step| match step {
                    Step::Hears(who) => Some(Step::HearsBad(*who)),
                    Step::Answers(who, Answer::Snapshot | Answer::Prepared | Answer::Restored) => {
                        let Step::Answers(_, answer) = step else {
                            return None;
                        };
                        Some(Step::AnswersBad(*who, *answer))
                    }
                    _ => None,
                })
                .collect();
            steps.extend(worse);
        }
    }

    fn is_possible(&self, fault: Fault) -> bool {
        let up = |who: Who| self.process(who).life == Life::Up;
        match fault {
            Fault::Kill(who) => !self.process(who).is_dead(),
            Fault::Freeze(who) => {
                let process = self.process(who);
                !process.is_dead() && !process.frozen && process.doomed.is_none()
            }
            Fault::Stop(who) => self.can_take_event(who) && !self.process(who).ending,
            Fault::Garbage(who) => up(who) && self.is_heard(who),
            Fault::Mute(who) => up(who) && self.has_link(who) && self.is_heard(who),
            Fault::Bad => true,
        }
    }

    /// Whether what this process says can still be heard.
    fn is_heard(&self, who: Who) -> bool {
        let other = self.process(who.other());
        other.life == Life::Up && !other.deaf && self.has_link(who.other())
    }

    // What happens.

    /// The world after this step.
    pub(super) fn after(&self, step: Step, config: &Config) -> Self {
        let mut world = self.clone();
        world.take(step, config);
        world.parent.forget_words();
        world
    }

    fn take(&mut self, step: Step, config: &Config) {
        match step {
            Step::GoesOn(who) => self.run(who, config),
            Step::Hears(who) => self.hears(who, false, config),
            Step::HearsBad(who) => {
                self.spent |= Fault::Bad.bit();
                self.hears(who, true, config);
            }
            Step::SeesDeath(who) => {
                self.process_mut(who).told_dead = true;
                match who {
                    Who::Parent => self.parent_event(parent::Event::Died(String::new()), config),
                    Who::Child => self.child_event(child::Event::ParentDied, config),
                }
            }
            Step::SeesEnd(who) => {
                self.process_mut(who).told_closed = true;
                self.broken(who, config);
            }
            Step::TimerOf(who, timer) => self.timer(who, timer, config),
            Step::Answers(who, answer) => self.answered(who, answer, false, config),
            Step::AnswersBad(who, answer) => {
                self.spent |= Fault::Bad.bit();
                self.answered(who, answer, true, config);
            }
            Step::Leaves(who) => self.leave(who),
            Step::Dies(who) => {
                let exiting = self.process(who).life == Life::Exiting;
                if exiting && self.process(who).doomed.is_none() {
                    self.retract(who);
                }
                self.die(who);
            }
            Step::Thaws(who) => self.process_mut(who).frozen = false,
            Step::Returns => {
                self.back.at_child = Some(Fate::Inert);
                self.say(Who::Child, Message::Return);
            }
            Step::Passes => self.pass(),
            Step::Finishes(place) => self.conns[place].at_parent = Fate::Finished,
            Step::PassesLastRest => {
                self.pass_rest();
                if let Some(transfer) = &mut self.transfer {
                    transfer.rests = 2;
                }
            }
            Step::Drained => self.parent_event(parent::Event::Drained, config),
            Step::OperatorConfirms => self.decide(parent::Event::ConfirmNow, config),
            Step::OperatorRollsBack => self.decide(parent::Event::Rollback, config),
            Step::Goes(fault) => self.go(fault, config),
        }
    }

    fn decide(&mut self, event: parent::Event, config: &Config) {
        let before = self.parent.clone();
        self.parent_event(event, config);
        self.decided |= self.parent != before;
    }

    fn go(&mut self, fault: Fault, config: &Config) {
        self.spent |= fault.bit();
        match fault {
            Fault::Kill(who) => {
                self.excuse(who, config);
                self.die(who);
            }
            Fault::Freeze(who) => {
                if !config.thaws {
                    self.excuse_frozen(who, config);
                }
                self.process_mut(who).frozen = true;
            }
            Fault::Stop(Who::Parent) => {
                let replaced = matches!(self.parent.state(), parent::State::Draining { .. });
                self.stopped |= !replaced;
                self.parent_event(parent::Event::Stop(String::new()), config);
                self.begin_stop(Who::Parent);
            }
            Fault::Stop(Who::Child) => {
                self.stopped = true;
                if self.has_link(Who::Child) {
                    self.child_event(child::Event::Stop(String::new()), config);
                }
                self.begin_stop(Who::Child);
            }
            Fault::Garbage(who) => self.say(who, Message::Garbage),
            Fault::Mute(who) => self.process_mut(who).mute = true,
            Fault::Bad => {}
        }
    }

    /// One of them is killed: is anybody left who must serve?
    fn excuse(&mut self, killed: Who, config: &Config) {
        self.excused |= match killed {
            Who::Parent => !self.child_can_succeed(config),
            Who::Child => !self.parent_can_serve(config),
        };
    }

    /// One of them stops for ever and cannot be told from a slow one.
    fn excuse_frozen(&mut self, frozen: Who, config: &Config) {
        self.excused |= match frozen {
            Who::Parent => {
                let commits = self.read_commit || self.c.queue.contains(&Message::Commit);
                let revoked = self.child.state() == child::State::Returning
                    || self.c.queue.contains(&Message::Revoke);
                !commits || revoked || !self.child_can_succeed(config)
            }
            // Nor is one that froze with its last answer on the way.
            Who::Child => {
                let confirming = *self.parent.state() == parent::State::Confirming;
                let answered = self.p.queue.contains(&Message::Answer) || !self.is_asked();
                !self.parent_can_serve(config)
                    || (confirming && answered)
                    || (!config.probation && self.p.queue.contains(&Message::Accepting))
            }
        };
    }

    fn parent_can_serve(&self, config: &Config) -> bool {
        let p = &self.p;
        let released = self.released || self.is_releasing();
        p.life == Life::Up && p.doomed.is_none() && !released && (config.thaws || !p.frozen)
    }

    /// By the rules: it must, if the parent crashes now.
    fn child_can_succeed(&self, config: &Config) -> bool {
        let c = &self.c;
        if c.life != Life::Up || c.doomed.is_some() || c.ending || (c.frozen && !config.thaws) {
            return false;
        }
        let promote = self.child.promotes();
        let queued = |message| c.queue.contains(&message);
        let told_off = queued(Message::Abort) || queued(Message::Stop) || queued(Message::Refuse);
        match self.child.state() {
            child::State::Joining if !queued(Message::Offer) => false,
            child::State::Joining
            | child::State::Preparing { .. }
            | child::State::Prepared
            | child::State::Restoring { .. }
            | child::State::Ready => {
                !told_off
                    && !c.deaf
                    && !queued(Message::Garbage)
                    && (promote || queued(Message::Commit))
            }
            child::State::Probation => promote || !queued(Message::Revoke),
            child::State::Returning => promote,
            child::State::Deposing | child::State::Serving | child::State::Sent => true,
            child::State::Stopping => false,
            child::State::Ended { serving } => serving,
        }
    }

    // What is heard.

    fn hears(&mut self, who: Who, bad: bool, config: &Config) {
        let process = self.process_mut(who);
        let message = process.queue.remove(0);
        if message == Message::Garbage {
            process.deaf = true;
            process.queue.clear();
            return self.broken(who, config);
        }
        match (who, message) {
            (Who::Parent, Message::Return) if self.takes_in => self.take_in(bad, config),
            (Who::Child, Message::ReturnAck(refused)) => {
                self.back.at_child = Some(if refused { Fate::Serves } else { Fate::Moved });
            }
            (Who::Parent, message) => {
                if let Some(event) = self.parent_hears(message, bad) {
                    self.parent_event(event, config);
                }
            }
            (Who::Child, message) => {
                let event = self.child_hears(message, bad);
                self.child_event(event, config);
            }
        }
    }

    /// "I own it": said before anything is done with it.
    fn take_in(&mut self, bad: bool, config: &Config) {
        let is_unsaid = self.p.mute;
        if !config.is(Mutant::ServesUnacknowledged) {
            self.say(Who::Parent, Message::ReturnAck(bad));
            if is_unsaid {
                return;
            }
        }
        self.back.parent_took |= !bad;
        self.back.parent_serves |= !bad;
    }

    /// What was sent and not acknowledged is the child's again.
    fn take_back(&mut self) {
        if self.back.at_child == Some(Fate::Inert) {
            self.back.at_child = Some(Fate::Serves);
            if self.back.parent_took {
                self.wrong = Some((
                    Invariant::I4,
                    "the child takes up a connection that its parent has served",
                ));
            }
        }
    }

    fn broken(&mut self, who: Who, config: &Config) {
        match who {
            Who::Parent => self.parent_event(parent::Event::Broken(String::new()), config),
            Who::Child => self.child_event(child::Event::Broken(String::new()), config),
        }
    }

    fn parent_hears(&mut self, message: Message, bad: bool) -> Option<parent::Event> {
        use parent::Event;
        Some(match message {
            Message::Hello if bad => Event::Hello(Err(String::new())),
            Message::Hello => Event::Hello(Ok(1)),
            Message::Prepared => Event::Prepared,
            Message::Ready => Event::Ready,
            Message::Accepting => {
                self.heard_accepting = true;
                Event::Accepting
            }
            // An answer to an older question counts for nothing: the driver numbers them.
            Message::Answer if self.is_asked() => return None,
            Message::Answer => Event::Health(bad.then(String::new)),
            Message::Refuse => Event::Refused(String::new()),
            Message::Stop => Event::Stopped(String::new()),
            Message::Yielded => Event::Yielded,
            Message::Bye => Event::Returned,
            Message::RestAck(number) => return self.acked(number, Item::Rest, false),
            Message::ConnAck(number, refused) => return self.acked(number, Item::Conn(0), refused),
            other => Event::Broken(format!("{other:?}")),
        })
    }

    fn acked(&mut self, number: u8, kind: Item, refused: bool) -> Option<parent::Event> {
        let broken = Some(parent::Event::Broken(String::new()));
        let Some(transfer) = &mut self.transfer else {
            return broken;
        };
        match (transfer.ledger.acked(u64::from(number)), kind) {
            (Ok(Item::Rest), Item::Rest) => None,
            (Ok(Item::Conn(place)), Item::Conn(_)) => {
                let conn = &mut self.conns[usize::from(place)];
                conn.at_parent = if refused { Fate::Serves } else { Fate::Moved };
                None
            }
            (Ok(Item::Abandoned), Item::Conn(_)) => None,
            _ => broken,
        }
    }

    fn child_hears(&mut self, message: Message, bad: bool) -> child::Event {
        use child::Event;
        let judged = if bad { Err(String::new()) } else { Ok(()) };
        match message {
            Message::Offer => {
                self.c.holds |= !bad;
                Event::Offer(judged)
            }
            Message::State => Event::State(judged),
            Message::Commit if bad => Event::Broken(String::new()),
            Message::Commit => {
                self.read_commit = true;
                Event::Commit
            }
            Message::Ask => Event::AskHealth,
            Message::Confirm => Event::Confirm,
            Message::Revoke => Event::Revoke(String::new()),
            Message::Abort | Message::Refuse => Event::Aborted(String::new()),
            Message::Stop => Event::Stopped(String::new()),
            Message::Rest(number) => self.receive(number, None, bad),
            Message::Conn(number, place) => self.receive(number, Some(place), bad),
            Message::Draining => Event::Heard,
            Message::Bye => Event::Bye,
            other => Event::Broken(format!("{other:?}")),
        }
    }

    fn receive(&mut self, number: u8, place: Option<Connection>, bad: bool) -> child::Event {
        if self.sequence.received(u64::from(number)).is_err() {
            return child::Event::Broken(String::new());
        }
        let Some(place) = place else {
            self.say(Who::Child, Message::RestAck(number));
            return child::Event::Heard;
        };
        let unsaid = self.c.mute;
        self.say(Who::Child, Message::ConnAck(number, bad));
        if unsaid {
            return child::Event::Broken(String::new());
        }
        if !bad {
            let conn = &mut self.conns[usize::from(place)];
            conn.child_took = true;
            conn.child_serves = true;
        }
        child::Event::Heard
    }

    fn timer(&mut self, who: Who, timer: Timer, config: &Config) {
        self.process_mut(who).timers &= !timer_bit(timer);
        let before = (
            self.c.queue.len(),
            self.p.mute || !self.is_heard(Who::Parent),
        );
        match (who, timer) {
            (Who::Parent, Timer::Drain) => self.cut(),
            (Who::Parent, timer) => self.parent_event(parent::Event::Timer(timer), config),
            (Who::Child, timer) => self.child_event(child::Event::Timer(timer), config),
        }
        if timer == Timer::Heartbeat && before == (self.c.queue.len(), false) {
            self.wrong = Some((Invariant::I7, "a heartbeat that nobody hears"));
        }
    }

    fn answered(&mut self, who: Who, answer: Answer, bad: bool, config: &Config) {
        self.process_mut(who).answers &= !answer_bit(answer);
        let result = if bad { Err(String::new()) } else { Ok(()) };
        match answer {
            Answer::Snapshot => self.parent_event(parent::Event::Snapshot(result), config),
            Answer::Retired => {
                self.process_mut(who).exclusive = false;
                match who {
                    Who::Parent => self.parent_event(parent::Event::Retired, config),
                    Who::Child => self.child_event(child::Event::Retired, config),
                }
            }
            Answer::Broken => self.broken(who, config),
            Answer::Prepared => self.child_event(child::Event::Prepared(result), config),
            Answer::Restored => self.child_event(child::Event::Restored(result), config),
            Answer::Returned => self.child_event(child::Event::Returned, config),
        }
    }

    // What is done.

    fn parent_event(&mut self, event: parent::Event, config: &Config) {
        if let Some(left) = &mut self.p.doomed {
            *left = left.saturating_sub(1);
        }
        let stop = matches!(event, parent::Event::Stop(_) | parent::Event::Stopped(_));
        let actions = Mutant::parent(config.mutant, self, event);
        self.p.told_stop |= stop;
        if actions.contains(&parent::Action::ReleaseOwnership) && self.c.is_dead() {
            self.wrong = Some((
                Invariant::I8,
                "the parent confirms a child that is dead already",
            ));
        }
        self.parent_todo.extend(actions);
        self.run(Who::Parent, config);
    }

    fn child_event(&mut self, event: child::Event, config: &Config) {
        if let Some(left) = &mut self.c.doomed {
            *left = left.saturating_sub(1);
        }
        let stop = matches!(event, child::Event::Stop(_) | child::Event::Stopped(_));
        // An orphan that cannot: nobody else is there.
        let alone = self.p.is_dead() || (self.p.frozen && !config.thaws);
        self.excused |= alone && is_inability(&event) && !self.read_commit;
        let is_broken = matches!(event, child::Event::Broken(_));
        if event == child::Event::ParentDied
            || (is_broken && config.is(Mutant::TakesBackFromALivingParent))
        {
            self.take_back();
        } else if is_broken && self.back.at_child == Some(Fate::Inert) {
            // The ack may lie behind what was not understood.
            self.back.at_child = Some(Fate::Lost);
        }
        let actions = Mutant::child(config.mutant, self, event);
        self.c.told_stop |= stop;
        self.child_todo.extend(actions);
        if !self.has_link(Who::Child) {
            self.c.queue.clear();
            self.c.timers = 0;
        }
        self.run(Who::Child, config);
    }

    /// Carries out what is to be done, up to the second action that somebody else could notice.
    fn run(&mut self, who: Who, config: &Config) {
        let mut noticed = false;
        loop {
            match who {
                Who::Parent => {
                    let Some(action) = self.parent_todo.first() else {
                        break;
                    };
                    if !is_private_to_parent(action) && std::mem::replace(&mut noticed, true) {
                        break;
                    }
                    let action = self.parent_todo.remove(0);
                    config
                        .parent_did
                        .borrow_mut()
                        .insert(std::mem::discriminant(&action));
                    self.parent_acts(action);
                }
                Who::Child => {
                    let Some(action) = self.child_todo.first() else {
                        break;
                    };
                    if !is_private_to_child(action) && std::mem::replace(&mut noticed, true) {
                        break;
                    }
                    let action = self.child_todo.remove(0);
                    config
                        .child_did
                        .borrow_mut()
                        .insert(std::mem::discriminant(&action));
                    self.child_acts(&action);
                }
            }
        }
    }

    fn say(&mut self, who: Who, message: Message) {
        if std::mem::take(&mut self.process_mut(who).mute) {
            if who == Who::Parent {
                self.p.owe(Answer::Broken);
            }
            return;
        }
        if self.is_heard(who) {
            self.process_mut(who.other()).queue.push(message);
        }
    }

    fn kill(&mut self, whom: Who) {
        // Two that kill each other in the same moment: only where neither can hear the other.
        self.excused |= self.process(whom.other()).doomed.is_some() && self.channel_failed();
        let process = self.process_mut(whom);
        if process.is_dead() {
            return;
        }
        if process.frozen || process.life == Life::Exiting {
            self.die(whom);
        } else {
            // It may run on another core meanwhile, and finish what it is at.
            process.doomed.get_or_insert(1);
        }
    }

    /// What a dead process knew makes no difference any more: it is forgotten.
    fn die(&mut self, who: Who) {
        let mut dead = Process::new(false);
        dead.life = Life::Dead;
        dead.accepts = Accepts::Over;
        *self.process_mut(who) = dead;
        match who {
            Who::Parent => {
                self.parent_todo.clear();
                self.parent.end();
                self.back.parent_serves = false;
                self.takes_in = false;
                self.transfer = None;
                (self.heard_accepting, self.said_confirm, self.released) = (false, false, false);
                for conn in &mut self.conns {
                    if matches!(conn.at_parent, Fate::Serves | Fate::Inert) {
                        conn.at_parent = Fate::Lost;
                    }
                }
            }
            Who::Child => {
                self.child_todo.clear();
                self.child.end();
                self.sequence = Sequence::default();
                self.back.at_child = None;
                self.back.parent_took = false;
                (self.read_commit, self.is_final, self.parent_crashed) = (false, false, None);
                self.conns
                    .iter_mut()
                    .for_each(|conn| conn.child_serves = false);
            }
        }
    }

    fn begin_stop(&mut self, who: Who) {
        let process = self.process_mut(who);
        if process.life != Life::Up {
            return;
        }
        process.told_stop = true;
        if process.accepts == Accepts::NotYet {
            process.life = Life::Exiting;
        }
        process.ending = true;
        process.accepts = Accepts::Over;
    }

    /// The end of a graceful stop. A child that is not final yet is taken along.
    fn leave(&mut self, who: Who) {
        if who == Who::Parent && self.transfer.is_none() && !self.c.is_dead() {
            self.die(Who::Child);
        }
        self.retract(who);
        self.die(who);
    }

    fn retract(&mut self, who: Who) {
        let names = match who {
            Who::Parent => self.transfer.is_none(),
            Who::Child => {
                let orphaned = self.parent_crashed == Some(true);
                orphaned || !self.has_link(who) || self.child.state() == child::State::Serving
            }
        };
        if names && self.pidfile == Some(who) {
            self.pidfile = None;
        }
    }

    fn arm(&mut self, who: Who, timer: Timer) {
        let process = self.process_mut(who);
        // A SIGKILL arrives before a timer that was started after it was sent.
        if process.doomed.is_none() {
            process.timers |= timer_bit(timer);
        }
    }

    fn cancel(&mut self, who: Who, timer: Timer) {
        self.process_mut(who).timers &= !timer_bit(timer);
    }

    fn parent_acts(&mut self, action: parent::Action) {
        use parent::Action;
        let me = Who::Parent;
        match action {
            Action::Phase(_) => {}
            Action::SendOffer { .. } => self.say(me, Message::Offer),
            Action::TakeSnapshot => self.p.owe(Answer::Snapshot),
            Action::SendState => self.say(me, Message::State),
            Action::Retire => self.p.owe(Answer::Retired),
            Action::SendCommit => self.say(me, Message::Commit),
            Action::PauseAccepting => {
                self.p.accepts = Accepts::Paused;
                self.p.control = false;
            }
            Action::AskHealth => self.say(me, Message::Ask),
            Action::SendConfirm => {
                self.said_confirm = true;
                self.say(me, Message::Confirm);
            }
            Action::ReleaseOwnership => {
                if !self.said_confirm {
                    self.wrong = Some((
                        Invariant::I8,
                        "the parent gives up what it owns without a word",
                    ));
                }
                self.p.holds = false;
                self.p.control = false;
                self.released = true;
            }
            Action::StartDrain => {
                self.p.accepts = Accepts::Over;
                self.transfer = Some(Transfer {
                    ledger: Ledger::new(),
                    alone: Alone::No,
                    cut: false,
                    gave_up: false,
                    rests: 0,
                });
                self.arm(me, Timer::Drain);
            }
            Action::DrainAlone { child_is_dead } => self.drain_alone(child_is_dead),
            Action::SayDraining => self.say(me, Message::Draining),
            Action::SendBye => self.say(me, Message::Bye),
            Action::ResumeAccepting => self.p.accepts = Accepts::Yes,
            Action::SendRevoke(_) => {
                self.takes_in = true;
                self.say(me, Message::Revoke);
            }
            Action::TakeBack => {
                self.p.exclusive = true;
                self.p.control = true;
                self.pidfile = Some(me);
            }
            Action::SendAbort(_) => self.say(me, Message::Abort),
            Action::SendStop(_) => self.say(me, Message::Stop),
            Action::Kill => self.kill(Who::Child),
            Action::Failed(failure) => self.failed(failure.undo),
            Action::Discarded => {}
            Action::StopSelf(_) => self.begin_stop(me),
            Action::Start(timer) => self.arm(me, timer),
            Action::Cancel(timer) => self.cancel(me, timer),
            Action::Ended => {
                self.p.timers = 0;
                self.p.queue.clear();
                self.p.answers = 0;
                if self.transfer.is_some() {
                    self.p.life = Life::Exiting;
                }
            }
        }
    }

    fn failed(&mut self, undo: Undo) {
        if self.p.told_stop {
            self.wrong = Some((
                Invariant::Stopped,
                "the parent goes on after it was stopped",
            ));
        }
        if !self.c.is_dead() {
            self.wrong = Some((Invariant::I5, "the parent goes on while the child lives"));
        }
        if undo >= Undo::Retired {
            self.p.exclusive = true;
        }
        if undo >= Undo::Ownership {
            self.pidfile = Some(Who::Parent);
            self.p.control = true;
        }
        if undo >= Undo::Accepting {
            self.p.accepts = Accepts::Yes;
        }
    }

    fn child_acts(&mut self, action: &child::Action) {
        use child::Action;
        let me = Who::Child;
        match action {
            Action::SendHello => self.say(me, Message::Hello),
            Action::Prepare => self.c.owe(Answer::Prepared),
            Action::SendPrepared => self.say(me, Message::Prepared),
            Action::Restore | Action::ColdStart => self.c.owe(Answer::Restored),
            Action::SendReady => self.say(me, Message::Ready),
            Action::TakeOver => {
                let asked = self.read_commit || self.child.promotes();
                if !self.c.holds || !asked {
                    let words = "the child takes over without an offer, or unasked";
                    self.wrong = Some((Invariant::I6, words));
                }
                self.pidfile = Some(me);
                self.c.control = true;
                self.c.exclusive = true;
                self.back.at_child = Some(Fate::Serves);
                self.child_accepts();
            }
            Action::SendAccepting => self.say(me, Message::Accepting),
            Action::AnswerHealth => self.say(me, Message::Answer),
            Action::Final => self.is_final = true,
            Action::SendChannel | Action::LetGo => {
                self.wrong = Some((Invariant::Works, "no third generation is in this world"));
            }
            Action::Return => {
                self.c.accepts = Accepts::Paused;
                self.c.control = false;
                self.c.owe(Answer::Retired);
                self.c.owe(Answer::Returned);
            }
            Action::SendYielded => self.say(me, Message::Yielded),
            Action::Resume => {
                // The hook that begins its work again ends the one that still ends it.
                self.c.answers &= !answer_bit(Answer::Retired);
                self.c.exclusive = true;
                self.c.control = true;
                self.pidfile = Some(me);
                self.child_accepts();
            }
            Action::SendRefuse(_) => self.say(me, Message::Refuse),
            Action::SendStop(_) => self.say(me, Message::Stop),
            Action::SendBye => self.say(me, Message::Bye),
            Action::KillParent => self.kill(Who::Parent),
            Action::ParentGone { crashed } => {
                self.parent_crashed = Some(*crashed);
            }
            Action::StopSelf(_) => self.begin_stop(me),
            Action::Exit(_) => {
                self.c.life = Life::Exiting;
                self.c.accepts = Accepts::Over;
                self.c.queue.clear();
                self.c.timers = 0;
                self.c.answers = 0;
            }
            Action::Start(timer) => self.arm(me, *timer),
            Action::Cancel(timer) => self.cancel(me, *timer),
        }
    }

    fn child_accepts(&mut self) {
        if self.c.told_stop {
            self.wrong = Some((
                Invariant::Stopped,
                "the child takes over after it was stopped",
            ));
        }
        self.c.accepts = Accepts::Yes;
    }

    // The drain.

    fn pass_rest(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        let number = u8::try_from(transfer.ledger.next_number()).unwrap_or(u8::MAX);
        transfer.ledger.sent(Item::Rest);
        transfer.rests += 1;
        self.say(Who::Parent, Message::Rest(number));
    }

    fn pass(&mut self) {
        if self.transfer.as_ref().is_some_and(|t| t.rests == 0) {
            self.pass_rest();
        }
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        let waiting = self
            .conns
            .iter_mut()
            .zip(0..)
            .find(|(conn, _)| conn.at_parent == Fate::Serves);
        let Some((conn, place)) = waiting else { return };
        conn.at_parent = Fate::Inert;
        let number = u8::try_from(transfer.ledger.next_number()).unwrap_or(u8::MAX);
        transfer.ledger.sent(Item::Conn(place));
        self.say(Who::Parent, Message::Conn(number, place));
    }

    fn drain_alone(&mut self, child_is_dead: bool) {
        self.p.accepts = Accepts::Over;
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.alone = Alone::Gone;
        for item in transfer.ledger.take_back() {
            if let Item::Conn(place) = item {
                let conn = &mut self.conns[usize::from(place)];
                conn.at_parent = if child_is_dead {
                    Fate::Serves
                } else {
                    Fate::Lost
                };
                if child_is_dead && conn.child_took {
                    self.wrong = Some((
                        Invariant::I4,
                        "the parent takes up a connection that the child has served",
                    ));
                }
            }
        }
    }

    /// The drain deadline.
    fn cut(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        if transfer.cut {
            transfer.gave_up = true;
            return;
        }
        transfer.cut = true;
        if transfer.alone == Alone::No {
            transfer.alone = Alone::Deadline;
        }
        for item in transfer.ledger.unacked_mut() {
            if matches!(item, Item::Conn(_)) {
                *item = Item::Abandoned;
            }
        }
        for conn in &mut self.conns {
            match conn.at_parent {
                Fate::Inert if self.c.is_dead() => {
                    self.wrong = Some((
                        Invariant::I4,
                        "a connection is given up although its receiver is dead",
                    ));
                }
                Fate::Inert => conn.at_parent = Fate::Lost,
                Fate::Serves => conn.at_parent = Fate::Finished,
                _ => {}
            }
        }
        self.arm(Who::Parent, Timer::Drain);
    }
}

fn is_inability(event: &child::Event) -> bool {
    use child::Event;
    matches!(
        event,
        Event::Offer(Err(_))
            | Event::Prepared(Err(_))
            | Event::State(Err(_))
            | Event::Restored(Err(_))
            | Event::Broken(_)
            | Event::Timer(Timer::Ready)
    )
}

/// Nobody else can see whether it has been done yet.
fn is_private_to_parent(action: &parent::Action) -> bool {
    use parent::Action;
    matches!(
        action,
        Action::Phase(_)
            | Action::TakeSnapshot
            | Action::Retire
            | Action::Start(_)
            | Action::Cancel(_)
            | Action::StartDrain
            | Action::Ended
    )
}

fn is_private_to_child(action: &child::Action) -> bool {
    use child::Action;
    matches!(
        action,
        Action::Prepare
            | Action::Restore
            | Action::ColdStart
            | Action::ParentGone { .. }
            | Action::Start(_)
            | Action::Cancel(_)
    )
}
