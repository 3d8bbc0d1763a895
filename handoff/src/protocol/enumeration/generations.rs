//! Every interleaving of three generations: the channel of one that drains (the elder) goes from its child (the
//! middle) to that one's child (the heir), while any of them may die at any step.
//!
//! The machines are the real ones, in the states that they have after both commits. The model has what their
//! drivers do with the channel: who holds its end, what is queued on it, which number is due, what is acknowledged
//! and not yet written. Any step may take any time; a deadline may pass as soon as it is set.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::super::{
    child::{self, Child},
    drain::Ledger,
    parent::{self, Parent},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Elder,
    Middle,
    Heir,
}

use Who::{Elder, Heir, Middle};

/// One guard less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    /// The middle listens while the channel is on its way.
    ReadsOn,
    /// Who hears of a connection takes it, and acknowledges it later.
    TakesBeforeAck,
    /// The middle passes the channel on before its acks are written.
    PassesUnwritten,
    /// The middle passes the channel on before the state that it was told.
    PassesBeforeRest,
    /// The elder takes a death for the end of the channel.
    TakesBackAtOnce,
    /// The heir says that it has the channel before its first word on it is written.
    WritesLate,
    /// The heir listens and says nothing.
    SaysNothing,
    /// The middle keeps its end when the heir is dead.
    Keeps,
}

/// On the elder's channel, with the number of its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Rest(u64),
    Conn(u64, usize),
    Bye,
    RestAck(u64),
    ConnAck(u64, usize),
    Successor,
}

/// On the channel from the middle to its heir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Passed {
    Rest,
    Channel(Position),
    /// Whether it was taken.
    Ack(bool),
}

/// How far a conversation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Position {
    sent: u64,
    received: u64,
    items: u64,
}

/// A connection, as the elder knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Serves,
    Inert,
    Moved,
    Finished,
    /// Served by nobody, because nobody knows whether it is served.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Rest,
    Conn(usize),
}

/// Somebody at the end of the elder's channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    machine: Child,
    position: Position,
    /// Said, and not yet written.
    unwritten: Vec<Word>,
    /// It knows of the state that the elder has sent.
    knows: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    alive: [bool; 3],
    killed: u8,
    elder: Parent,
    peer: Who,
    told_vanished: bool,
    told_end: bool,
    alone: bool,
    timer_set: bool,
    timed_out: bool,
    /// Messages that the elder has sent and received.
    numbers: (u64, u64),
    rest_sent: bool,
    ledger: Ledger<Item>,
    conns: [Fate; 2],
    /// Who took each of them.
    owners: [Option<Who>; 2],
    to_end: Vec<(u64, Word)>,
    to_elder: Vec<(u64, Word)>,
    middle: Option<End>,
    middle_down: Parent,
    refused: bool,
    heir: Option<End>,
    heir_knows: bool,
    to_heir: Vec<Passed>,
    to_middle: Vec<Passed>,
    wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Kill(Who),
    ElderHears,
    ElderSeesEnd,
    ElderSeesDeath,
    ElderTimesOut,
    ElderPasses,
    ElderFinishes(usize),
    ElderLeaves,
    EndHears(Who),
    EndWrites(Who),
    EndSeesDeath(Who),
    MiddlePassesOn,
    /// A connection that the middle took goes on to the heir, as any of its own does.
    MiddleMovesOn(usize),
    MiddleHearsHeir,
    MiddleSeesHeirsDeath,
    MiddleLeaves,
    HeirHears {
        takes: bool,
    },
}

struct Config {
    mutant: Mutant,
    kills: u8,
    refuses: bool,
}

fn draining() -> Parent {
    let (mut parent, _) = Parent::new(false);
    for event in [
        parent::Event::Hello(Ok(1)),
        parent::Event::Prepared,
        parent::Event::Snapshot(Ok(())),
        parent::Event::Ready,
        parent::Event::Retired,
        parent::Event::Accepting,
        parent::Event::Timer(super::super::Timer::Confirm),
    ] {
        parent.on(event);
    }
    assert!(parent.is_confirmed());
    parent
}

impl End {
    fn new() -> Self {
        Self {
            machine: Child::inherited().0,
            position: Position::default(),
            unwritten: Vec::new(),
            knows: false,
        }
    }

    fn listens(&self) -> bool {
        self.machine.state() == child::State::Serving
    }

    fn say(&mut self, word: Word) {
        self.position.sent += 1;
        self.unwritten.push(word);
    }
}

impl World {
    fn start() -> Self {
        Self {
            alive: [true; 3],
            killed: 0,
            elder: draining(),
            peer: Middle,
            told_vanished: false,
            told_end: false,
            alone: false,
            timer_set: false,
            timed_out: false,
            numbers: (0, 0),
            rest_sent: false,
            ledger: Ledger::new(),
            conns: [Fate::Serves; 2],
            owners: [None; 2],
            to_end: Vec::new(),
            to_elder: Vec::new(),
            middle: Some(End::new()),
            middle_down: draining(),
            refused: false,
            heir: None,
            heir_knows: false,
            to_heir: Vec::new(),
            to_middle: Vec::new(),
            wrong: None,
        }
    }

    fn lives(&self, who: Who) -> bool {
        self.alive[who as usize]
    }

    fn end(&mut self, who: Who) -> Option<&mut End> {
        match who {
            Middle => self.middle.as_mut(),
            _ => self.heir.as_mut(),
        }
    }

    /// Nobody has the other end of the elder's channel, nor is it on its way to somebody.
    fn is_closed(&self) -> bool {
        let on_its_way = || {
            self.lives(Heir)
                && self
                    .to_heir
                    .iter()
                    .any(|passed| matches!(passed, Passed::Channel(_)))
        };
        self.middle.is_none() && self.heir.is_none() && !on_its_way()
    }

    fn steps(&self, config: &Config) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.lives(Elder) {
            self.elder_steps(&mut steps);
        }
        for who in [Middle, Heir] {
            self.end_steps(who, config, &mut steps);
        }
        if self.lives(Middle) {
            self.middle_steps(config, &mut steps);
        }
        if self.lives(Heir) && !self.to_heir.is_empty() {
            steps.push(Step::HeirHears { takes: true });
            if config.refuses && matches!(self.to_heir[0], Passed::Channel(_)) {
                steps.push(Step::HeirHears { takes: false });
            }
        }
        if self.killed < config.kills {
            let living = [Elder, Middle, Heir]
                .into_iter()
                .filter(|who| self.lives(*who));
            steps.extend(living.map(Step::Kill));
        }
        steps
    }

    /// Rule 1: messages, then ends and deaths, then timers.
    fn elder_steps(&self, steps: &mut Vec<Step>) {
        if !self.to_elder.is_empty() && !self.told_end {
            steps.push(Step::ElderHears);
        } else if !self.told_end {
            if self.is_closed() {
                steps.push(Step::ElderSeesEnd);
            } else if !self.lives(self.peer) && !self.told_vanished {
                steps.push(Step::ElderSeesDeath);
            } else if self.timer_set {
                steps.push(Step::ElderTimesOut);
            }
        }
        let serves = |fate: &Fate| *fate == Fate::Serves;
        if let Some(last) = self.conns.iter().rposition(serves) {
            steps.push(Step::ElderFinishes(last));
            if !self.alone && self.ledger.has_room() {
                steps.push(Step::ElderPasses);
            }
        } else if self.ledger.is_settled() || self.alone {
            steps.push(Step::ElderLeaves);
        }
    }

    fn end_steps(&self, who: Who, config: &Config, steps: &mut Vec<Step>) {
        let end = match who {
            Middle => self.middle.as_ref(),
            _ => self.heir.as_ref(),
        };
        let Some(end) = end.filter(|_| self.lives(who)) else {
            return;
        };
        if !end.unwritten.is_empty() {
            steps.push(Step::EndWrites(who));
        }
        let reads_on = config.mutant == Mutant::ReadsOn;
        if end.listens() || reads_on && end.machine.state() == child::State::Sent {
            if !self.to_end.is_empty() {
                steps.push(Step::EndHears(who));
            } else if !self.lives(Elder) {
                steps.push(Step::EndSeesDeath(who));
            }
        }
    }

    fn middle_steps(&self, config: &Config, steps: &mut Vec<Step>) {
        let down = self.middle_down.state();
        let has_heir = *down == parent::State::Draining { child_lives: true };
        if !self.to_middle.is_empty() {
            steps.push(Step::MiddleHearsHeir);
        } else if has_heir && !self.lives(Heir) {
            steps.push(Step::MiddleSeesHeirsDeath);
        }
        if has_heir && self.lives(Heir) {
            let is_here = |(_, owner): &(usize, &Option<Who>)| **owner == Some(Middle);
            let here = self.owners.iter().enumerate().filter(is_here);
            steps.extend(here.map(|(place, _)| Step::MiddleMovesOn(place)));
        }
        match &self.middle {
            Some(end) => {
                let is_written =
                    end.unwritten.is_empty() || config.mutant == Mutant::PassesUnwritten;
                if end.listens() && is_written && has_heir && !self.refused {
                    steps.push(Step::MiddlePassesOn);
                }
            }
            None => steps.push(Step::MiddleLeaves),
        }
    }

    fn after(&self, step: Step, config: &Config) -> Self {
        let mut world = self.clone();
        match step {
            Step::Kill(who) => {
                world.killed += 1;
                world.die(who);
            }
            Step::ElderHears => world.elder_hears(),
            Step::ElderSeesEnd => {
                world.told_end = true;
                world.elder_event(parent::Event::Died(String::new()));
            }
            Step::ElderSeesDeath => {
                world.told_vanished = true;
                let at_once = config.mutant == Mutant::TakesBackAtOnce;
                world.elder_event(if at_once {
                    parent::Event::Died(String::new())
                } else {
                    parent::Event::Vanished
                });
            }
            Step::ElderTimesOut => {
                world.timed_out = true;
                world.elder_event(parent::Event::Timer(super::super::Timer::Successor));
            }
            Step::ElderPasses => world.elder_passes(),
            Step::ElderFinishes(place) => world.conns[place] = Fate::Finished,
            Step::ElderLeaves => {
                world.elder_event(parent::Event::Drained);
                world.die(Elder);
            }
            Step::EndHears(who) => {
                if config.mutant == Mutant::TakesBeforeAck
                    && let Some((_, Word::Conn(_, place))) = world.to_end.first().copied()
                {
                    world.owners[place] = Some(who);
                }
                world.end_hears(who);
            }
            Step::EndWrites(who) => world.end_writes(who),
            Step::EndSeesDeath(who) => world.end_event(who, child::Event::ParentDied),
            Step::MiddlePassesOn => world.middle_sends(config),
            Step::MiddleMovesOn(place) => world.owners[place] = Some(Heir),
            Step::MiddleHearsHeir => world.middle_hears(),
            Step::MiddleSeesHeirsDeath => {
                world.middle_down.on(parent::Event::Died(String::new()));
                let sent = |end: &End| !end.listens();
                if config.mutant != Mutant::Keeps && world.middle.as_ref().is_some_and(sent) {
                    world.end_event(Middle, child::Event::Forsaken);
                }
            }
            Step::MiddleLeaves => world.die(Middle),
            Step::HeirHears { takes } => world.heir_hears(takes, config),
        }
        world
    }

    fn die(&mut self, who: Who) {
        self.alive[who as usize] = false;
        match who {
            Elder => {}
            Middle => {
                self.middle = None;
                self.to_middle.clear();
            }
            Heir => {
                self.heir = None;
                self.to_heir.clear();
            }
        }
        if self.is_closed() {
            self.to_end.clear();
        }
    }

    // The elder.

    fn elder_event(&mut self, event: parent::Event) {
        for action in self.elder.on(event) {
            match action {
                parent::Action::Start(super::super::Timer::Successor) => self.timer_set = true,
                parent::Action::Cancel(super::super::Timer::Successor) => self.timer_set = false,
                parent::Action::DrainAlone { child_is_dead } => self.take_back(child_is_dead),
                parent::Action::SendBye => self.elder_says(Word::Bye),
                _ => {}
            }
        }
    }

    fn take_back(&mut self, nobody_has_it: bool) {
        self.alone = true;
        for item in self.ledger.take_back() {
            if let Item::Conn(place) = item {
                self.conns[place] = if nobody_has_it {
                    Fate::Serves
                } else {
                    Fate::Lost
                };
            }
        }
    }

    fn elder_says(&mut self, word: Word) {
        self.numbers.0 += 1;
        if !self.is_closed() {
            self.to_end.push((self.numbers.0, word));
        }
    }

    fn elder_passes(&mut self) {
        if !std::mem::replace(&mut self.rest_sent, true) {
            let number = self.ledger.next_number();
            self.ledger.sent(Item::Rest);
            self.elder_says(Word::Rest(number));
        }
        let Some(place) = self.conns.iter().position(|fate| *fate == Fate::Serves) else {
            return;
        };
        self.conns[place] = Fate::Inert;
        let number = self.ledger.next_number();
        self.ledger.sent(Item::Conn(place));
        self.elder_says(Word::Conn(number, place));
    }

    fn elder_hears(&mut self) {
        let (number, word) = self.to_elder.remove(0);
        self.numbers.1 += 1;
        if number != self.numbers.1 {
            self.wrong = Some("the elder hears a number that is not due");
            return;
        }
        match word {
            Word::RestAck(number) | Word::ConnAck(number, _) => match self.ledger.acked(number) {
                Ok(Item::Conn(place)) => self.conns[place] = Fate::Moved,
                Ok(Item::Rest) => {}
                // Of what was given up when the deadline passed.
                Err(_) if self.alone => {}
                Err(_) => self.wrong = Some("an ack that is not due"),
            },
            Word::Successor => {
                self.peer = Heir;
                self.told_vanished = false;
                self.elder_event(parent::Event::Successor);
            }
            other => unreachable!("{other:?}"),
        }
    }

    // Who is at the end.

    fn end_event(&mut self, who: Who, event: child::Event) {
        let Some(end) = self.end(who) else { return };
        end.machine.on(event);
        if matches!(end.machine.state(), child::State::Ended { .. }) {
            match who {
                Middle => self.middle = None,
                _ => self.heir = None,
            }
            if self.is_closed() {
                self.to_end.clear();
            }
        }
    }

    fn end_hears(&mut self, who: Who) {
        let (number, word) = self.to_end.remove(0);
        let Some(end) = self.end(who) else { return };
        end.position.received += 1;
        let is_due = number == end.position.received;
        let is_due = is_due
            && match word {
                Word::Rest(item) | Word::Conn(item, _) => {
                    end.position.items += 1;
                    item == end.position.items
                }
                _ => true,
            };
        match word {
            Word::Rest(item) => {
                end.knows = true;
                end.say(Word::RestAck(item));
                self.heir_knows |= who == Heir;
            }
            Word::Conn(item, place) => {
                end.say(Word::ConnAck(item, place));
                if who == Heir && !self.heir_knows {
                    self.wrong = Some("a connection before the state that its requests changed");
                }
            }
            Word::Bye => self.end_event(who, child::Event::Bye),
            other => unreachable!("{other:?}"),
        }
        if !is_due {
            self.wrong = Some("the end hears a number that is not due");
        }
    }

    fn end_writes(&mut self, who: Who) {
        let Some(end) = self.end(who) else { return };
        let waiting = u64::try_from(end.unwritten.len()).expect("few");
        let number = end.position.sent - waiting + 1;
        let word = end.unwritten.remove(0);
        // Nothing is done with a connection before its ack is written.
        if let Word::ConnAck(_, place) = word {
            self.owners[place] = Some(who);
        }
        if self.lives(Elder) {
            self.to_elder.push((number, word));
        }
    }

    // The middle, and its heir.

    fn middle_sends(&mut self, config: &Config) {
        self.end_event(Middle, child::Event::PassOn);
        let sent = |end: &&End| end.machine.state() == child::State::Sent;
        let Some(end) = self.middle.as_ref().filter(sent) else {
            return;
        };
        let (position, knows) = (end.position, end.knows);
        if knows && config.mutant != Mutant::PassesBeforeRest {
            self.to_heir.push(Passed::Rest);
        }
        self.to_heir.push(Passed::Channel(position));
        if !self.lives(Heir) {
            self.to_heir.clear();
        }
    }

    fn middle_hears(&mut self) {
        if let Passed::Ack(taken) = self.to_middle.remove(0) {
            self.refused |= !taken;
            self.end_event(
                Middle,
                if taken {
                    child::Event::Passed
                } else {
                    child::Event::NotPassed
                },
            );
        }
    }

    fn heir_hears(&mut self, takes: bool, config: &Config) {
        match self.to_heir.remove(0) {
            Passed::Rest => self.heir_knows = true,
            Passed::Channel(position) => {
                if takes {
                    let mut end = End::new();
                    end.position = position;
                    if config.mutant != Mutant::SaysNothing {
                        end.say(Word::Successor);
                    }
                    self.heir = Some(end);
                    // It does not take what it cannot write on.
                    while config.mutant != Mutant::WritesLate
                        && self
                            .heir
                            .as_ref()
                            .is_some_and(|end| !end.unwritten.is_empty())
                    {
                        self.end_writes(Heir);
                    }
                }
                if self.lives(Middle) {
                    self.to_middle.push(Passed::Ack(takes));
                }
                if self.is_closed() {
                    self.to_end.clear();
                }
            }
            Passed::Ack(_) => unreachable!("an ack to the heir"),
        }
    }

    // What must hold.

    fn check(&self) -> Result<(), &'static str> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        for (fate, owner) in self.conns.iter().zip(&self.owners) {
            let owned = owner.is_some_and(|owner| self.lives(owner));
            if *fate == Fate::Serves && self.lives(Elder) && owned {
                return Err("two serve one connection");
            }
            if *fate == Fate::Moved && owner.is_none() {
                return Err("a connection was acknowledged that nobody took");
            }
            if *fate == Fate::Lost && !self.timed_out {
                return Err("a connection was given up before the deadline");
            }
        }
        Ok(())
    }

    /// When nothing more happens.
    fn check_end(&self) -> Result<(), &'static str> {
        if self.lives(Elder) {
            return Err("the elder waits for ever");
        }
        if self.lives(Middle) {
            return Err("the middle waits for ever");
        }
        if self.heir.is_some() {
            return Err("the heir waits for ever");
        }
        let is_kept = |(fate, owner): (&Fate, &Option<Who>)| match fate {
            Fate::Finished => true,
            Fate::Moved => owner.is_some(),
            _ => false,
        };
        if self.killed == 0 && !self.conns.iter().zip(&self.owners).all(is_kept) {
            return Err("nothing has failed, and a connection is lost");
        }
        Ok(())
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// How many states there are, or the shortest story that breaks a rule.
fn walk(config: &Config) -> Result<usize, String> {
    let mut known = HashSet::new();
    let mut from: HashMap<u64, (u64, Step)> = HashMap::new();
    let mut level = vec![World::start()];
    known.insert(fingerprint(&level[0]));
    while !level.is_empty() {
        let mut next = Vec::new();
        for world in level {
            let at = fingerprint(&world);
            let steps = world.steps(config);
            let natural = steps.iter().any(|step| !matches!(step, Step::Kill(_)));
            let judged = world
                .check()
                .and_then(|()| if natural { Ok(()) } else { world.check_end() });
            if let Err(words) = judged {
                return Err(story(words, at, &from, &world));
            }
            for step in steps {
                let after = world.after(step, config);
                let to = fingerprint(&after);
                if known.insert(to) {
                    from.insert(to, (at, step));
                    next.push(after);
                }
            }
        }
        level = next;
    }
    Ok(known.len())
}

fn story(words: &str, mut at: u64, from: &HashMap<u64, (u64, Step)>, world: &World) -> String {
    let mut steps = Vec::new();
    while let Some((before, step)) = from.get(&at) {
        steps.push(format!("{step:?}"));
        at = *before;
    }
    steps.reverse();
    format!("{words}\n  {}\n{world:#?}", steps.join("\n  "))
}

#[test]
fn a_channel_is_passed_on_whoever_dies() {
    for (kills, refuses, least) in [(0, false, 800), (1, true, 6_000), (2, true, 10_000)] {
        let config = Config {
            mutant: Mutant::None,
            kills,
            refuses,
        };
        let states = walk(&config).unwrap_or_else(|story| panic!("{story}"));
        println!("{kills} killed, refusals {refuses}: {states} states");
        assert!(states >= least, "{states} states with {kills} killed");
    }
}

#[test]
fn every_guard_of_the_passing_is_needed() {
    for (mutant, words) in [
        (Mutant::ReadsOn, "not due"),
        (Mutant::TakesBeforeAck, "two serve"),
        (Mutant::PassesUnwritten, "not due"),
        (Mutant::PassesBeforeRest, "before the state"),
        (Mutant::TakesBackAtOnce, "two serve"),
        (Mutant::SaysNothing, "a connection is lost"),
        (Mutant::WritesLate, "a connection is lost"),
        (Mutant::Keeps, "waits for ever"),
    ] {
        let config = Config {
            mutant,
            kills: 1,
            refuses: true,
        };
        let story = walk(&config).expect_err(&format!("{mutant:?} is not caught"));
        let first = story.lines().next().unwrap_or_default();
        assert!(first.contains(words), "{mutant:?}: {story}");
    }
}
