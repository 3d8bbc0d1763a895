//! The child's side of a reload: carries out what the machine in [`protocol::child`]
//! decides, and takes in what its parent passes on until the parent has gone.
//!
//! Nothing here waits but [`ChildDriver::next`], which is cancel safe; what the application has to do comes
//! back as an event.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    changes,
    channel::Position,
    connections::{self, Connection, Unpacked},
    control::{
        self, Outcome,
        message::{ConnectionCounts, Generation, ListenerChanges},
    },
    failpoint::Side,
    link::{Heard, Link, Peer},
    listeners::Listener,
    parent::CLOSED,
    pidfile::Lock,
    process::{self, Signal},
    protocol::{
        self, Timer,
        child::{Action, Child, Event, State},
        drain::Sequence,
    },
    shared::{Adopted, Phase, Shared, Turn},
    state::{Deltas, Snapshot},
    wire::{
        Batch, BatchAck, Health, Hello, Inherited, InheritedAck, Message, Offer, Older, Prepared,
        Rest, VERSIONS,
    },
};

/// What the application gets of an offer.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) listeners: Vec<Listener>,
}

/// Where the application's state comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The parent's snapshot.
    Snapshot(Box<Snapshot>),
    /// The parent died without handing it over.
    ColdStart,
}

/// How the process as a whole is concerned.
#[derive(Debug)]
pub(crate) enum Effect {
    /// This process serves.
    Serving,
    /// Stop gracefully.
    StopSelf(String),
    /// Nothing more is to be said to the parent; the process lives on.
    ParentGone,
    /// This process never served, or does no more: end.
    Exit(String),
    /// The channel goes on to this process's own child.
    PassOn(Inherited, Vec<Arc<OwnedFd>>),
}

/// See the module.
pub(crate) struct ChildDriver {
    shared: Arc<Shared>,
    machine: Child,
    link: Link,
    offered: Option<oneshot::Sender<Offered>>,
    source: Option<oneshot::Sender<Source>>,
    offer: Option<Offer>,
    listeners: Vec<Listener>,
    stderr: Option<OwnedFd>,
    pub(crate) prepared: Prepared,
    snapshot: Option<Snapshot>,
    changes: Deltas,
    serving_us: u64,
    asked: u64,
    sequence: Sequence,
    /// The process at the other end, once it is known which, and the reload by which it leaves.
    parent: Option<Generation>,
    reload: u64,
    /// How many connections it still serves, and who drains into it, as last heard.
    waiting_for: u64,
    named: Vec<String>,
    older: Vec<Older>,
    /// Connections whose acks are not written yet.
    arrived: Vec<Connection>,
    /// The channel, on its way to this process's own child.
    parcel: Option<(Position, [OwnedFd; 2])>,
    /// When the other process was heard last.
    heard_at: Instant,
    /// This process's child did not take the channel.
    refused: bool,
    /// Channels of older generations that came on this one.
    inherited: Vec<ChildDriver>,
    /// The parent crashed before the commit: the names are ours, though we do not serve yet.
    pub(crate) orphaned: bool,
    /// Whether whoever watches has been told that this process is the service.
    is_final: bool,
}

impl ChildDriver {
    /// Takes the channel that the parent gave, and says `Hello`.
    ///
    /// # Errors
    /// If the channel or the parent's pid cannot be watched.
    pub(crate) fn new(
        shared: Arc<Shared>,
        channel: OwnedFd,
        offered: oneshot::Sender<Offered>,
        source: oneshot::Sender<Source>,
    ) -> io::Result<Self> {
        // The process that made the channel, and not getppid(): a parent that has died
        // already has left another one in its place.
        let parent = peer_of(&channel)?;
        let (machine, actions) = Child::new(shared.settings.promote);
        let link = Link::new(Side::Child, channel, parent)?;
        let mut driver = Self {
            offered: Some(offered),
            source: Some(source),
            ..Self::with(shared, machine, link)
        };
        // The first actions have no effect on the process as a whole.
        let _ = driver.perform(actions);
        Ok(driver)
    }

    /// Takes up the conversation with a generation that drains, and tells it so.
    fn inherit(
        shared: Arc<Shared>,
        inherited: &Inherited,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<Self, String> {
        let Ok([channel, pidfd]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(if missing > 0 {
                "the new process is at its limit of descriptors (RLIMIT_NOFILE)".to_owned()
            } else {
                "a channel without its two descriptors".to_owned()
            });
        };
        if !VERSIONS.contains(&inherited.version) {
            return Err(format!(
                "generation {} speaks protocol version {}, which the new build does not",
                inherited.from.generation, inherited.version
            ));
        }
        let position = Position {
            version: inherited.version,
            sent: inherited.sent,
            received: inherited.received,
        };
        let listen = || -> io::Result<Link> {
            process::check_pidfd(&pidfd, inherited.from.pid)?;
            Link::resume(Side::Child, channel, pidfd, position)
        };
        let link = listen().map_err(|e| {
            format!(
                "cannot listen to generation {}: {e}",
                inherited.from.generation
            )
        })?;
        let own = process::own_pidfd().map_err(|e| format!("cannot open a pidfd: {e}"))?;
        let (machine, actions) = Child::inherited();
        let mut driver = Self {
            parent: Some(inherited.from),
            reload: inherited.reload,
            waiting_for: inherited.waiting_for,
            sequence: Sequence::after(inherited.items),
            is_final: true,
            ..Self::with(shared, machine, link)
        };
        let us = driver.shared.identity();
        let silent_for = Duration::from_millis(inherited.silent_for_ms);
        driver.say(&Message::Successor(us), vec![Arc::new(own)])?;
        // It must be there before the parent can leave: else a death is all that the older one sees.
        if driver.link.is_pending() {
            return Err(format!(
                "generation {} does not read what it is told",
                inherited.from.generation
            ));
        }
        let _ = driver.perform(actions);
        // A deadline does not begin anew with each generation.
        let left = driver.duration(Timer::Silence).saturating_sub(silent_for);
        driver.link.timers.hasten(Timer::Silence, left);
        driver.heard_at = driver
            .heard_at
            .checked_sub(silent_for)
            .unwrap_or(driver.heard_at);
        Ok(driver)
    }

    fn with(shared: Arc<Shared>, machine: Child, link: Link) -> Self {
        Self {
            link,
            shared,
            machine,
            offered: None,
            source: None,
            offer: None,
            listeners: Vec::new(),
            stderr: None,
            prepared: Prepared::default(),
            snapshot: None,
            changes: Deltas::default(),
            serving_us: 0,
            asked: 0,
            sequence: Sequence::default(),
            parent: None,
            reload: 0,
            waiting_for: 0,
            named: Vec::new(),
            older: Vec::new(),
            arrived: Vec::new(),
            parcel: None,
            heard_at: Instant::now(),
            refused: false,
            inherited: Vec::new(),
            orphaned: false,
            is_final: false,
        }
    }

    /// Whether the parent is draining into this process.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.machine.state() == State::Serving
    }

    /// Whether there is nothing more to hear or to say.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.machine.state(), State::Ended { .. })
    }

    /// Whether this process can be replaced: not before its parent cannot come back.
    pub(crate) fn blocks_reload(&self) -> Option<String> {
        match self.machine.state() {
            State::Serving | State::Sent | State::Ended { .. } => None,
            State::Probation | State::Deposing => Some(format!(
                "generation {} is on probation",
                self.shared.identity().generation
            )),
            _ => Some("this process does not serve yet".to_owned()),
        }
    }

    /// The next event. Cancel safe.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if self.machine.state() == State::Sent {
                // It is another process's to read.
                std::future::pending::<()>().await;
            }
            self.take_arrived();
            let heard = self.link.next().await;
            if let Some(event) = self.translate(heard) {
                return event;
            }
        }
    }

    /// Channels of older generations that have arrived.
    pub(crate) fn take_inherited(&mut self) -> Vec<Self> {
        std::mem::take(&mut self.inherited)
    }

    /// Whether the process at the other end cannot come back.
    pub(crate) fn is_final(&self) -> bool {
        self.is_final
    }

    /// The process at the other end: its connections are still to come.
    pub(crate) fn direct(&self) -> Option<Older> {
        let process = self.parent.filter(|_| !self.orphaned)?;
        Some(Older {
            process,
            waiting_for: self.waiting_for,
            named: self.named.clone(),
        })
    }

    /// Who drains into that one, by its own words.
    pub(crate) fn hearsay(&self) -> Vec<Older> {
        if self.orphaned {
            Vec::new()
        } else {
            self.older.clone()
        }
    }

    /// Whether the process at the other end leaves by this reload.
    pub(crate) fn is_of(&self, reload: u64) -> bool {
        self.is_final && self.reload == reload
    }

    /// Whether the channel is on its way to this process's child.
    pub(crate) fn is_sent(&self) -> bool {
        self.machine.state() == State::Sent
    }

    /// Gives the channel to this process's own child; not yet, while an ack is still to be written.
    pub(crate) fn pass_on(&mut self) -> Vec<Effect> {
        match self.link.pass_on() {
            Ok(Some(parcel)) => {
                self.parcel = Some(parcel);
                self.handle(Event::PassOn)
            }
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "cannot duplicate the channel of an older generation; it goes on draining into this one");
                self.refused = true;
                Vec::new()
            }
        }
    }

    /// Whether this process's child has refused the channel.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }

    /// Whether this is the conversation with that process.
    pub(crate) fn is_with(&self, generation: u64) -> bool {
        self.parent
            .is_some_and(|parent| parent.generation == generation)
    }

    fn translate(&mut self, heard: Heard) -> Option<Event> {
        let received = match heard {
            Heard::Message(received) => *received,
            Heard::Broken(reason) => return Some(Event::Broken(reason)),
            Heard::Closed => return Some(Event::Broken(CLOSED.to_owned())),
            Heard::Died | Heard::Vanished => return Some(Event::ParentDied),
            Heard::Timer(timer) => return Some(Event::Timer(timer)),
        };
        self.heard_at = Instant::now();
        let (fds, missing) = (received.fds, received.missing);
        Some(match received.message {
            Message::Offer(offer) => Event::Offer(self.take_offer(offer, fds, missing)),
            Message::State(manifest) => {
                let fd = if fds.len() == 1 {
                    fds.into_iter().next()
                } else {
                    None
                };
                let opened =
                    fd.ok_or_else(|| "the state came without its one descriptor".to_owned());
                Event::State(opened.and_then(|fd| {
                    self.snapshot =
                        Some(Snapshot::open(manifest, fd).map_err(|e| crate::words(&e))?);
                    Ok(())
                }))
            }
            Message::Commit(commit) => match changes::unpack(commit.changes, fds) {
                Ok(deltas) => {
                    self.changes = deltas;
                    self.waiting_for = commit.waiting_for;
                    self.older = commit.older;
                    Event::Commit
                }
                Err(reason) => Event::Broken(reason),
            },
            Message::Health(Health::Ask { number }) => {
                self.asked = number;
                Event::AskHealth
            }
            Message::Confirm { serving_us } => {
                self.serving_us = serving_us;
                Event::Confirm
            }
            Message::Revoke(reason) => Event::Revoke(reason),
            Message::Abort(reason) | Message::Refuse(reason) => Event::Aborted(reason),
            Message::Stop(reason) => Event::Stopped(reason),
            Message::Rest(rest) => self.heard_or_broken(|driver| driver.take_rest(rest, fds)),
            Message::Conn(batch) => {
                self.heard_or_broken(|driver| driver.take_batch(batch, fds, missing))
            }
            Message::Channel(inherited) => {
                self.heard_or_broken(|driver| driver.take_channel(&inherited, fds, missing))
            }
            Message::Draining {
                waiting_for,
                named,
                older,
            } => {
                self.waiting_for = waiting_for;
                self.named = named;
                self.older = older;
                Event::Heard
            }
            Message::Bye(counts) => {
                tracing::info!(
                    reload = self.reload,
                    parent = self.parent.map(|parent| parent.pid),
                    moved = counts.moved,
                    drained = counts.drained,
                    cut = counts.cut,
                    "the parent has finished"
                );
                self.shared.news.drained(self.reload, 0, counts);
                Event::Bye
            }
            other => Event::Broken(format!("the parent said {other}")),
        })
    }

    fn heard_or_broken(&mut self, take: impl FnOnce(&mut Self) -> Result<(), String>) -> Event {
        match take(self) {
            Ok(()) => Event::Heard,
            Err(reason) => Event::Broken(reason),
        }
    }

    /// Checks number, kind and address of every descriptor; those of a refused offer close themselves.
    fn take_offer(
        &mut self,
        offer: Offer,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<(), String> {
        let named = if offer.pidfile.is_some() { 2 } else { 0 };
        let expected = offer.listeners.len() + named + 2;
        if missing > 0 {
            return Err(format!(
                "{missing} of the {expected} offered descriptors could not be received: raise RLIMIT_NOFILE of the new build"
            ));
        }
        if fds.len() != expected {
            return Err(format!(
                "{} descriptors offered where {expected} are due",
                fds.len()
            ));
        }
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| "too few descriptors".to_owned());
        for described in &offer.listeners {
            self.listeners
                .push(Listener::check(next()?, described).map_err(|e| crate::words(&e))?);
        }
        let ours = self.shared.paths.as_ref();
        if offer.pidfile.as_deref() != ours.map(|paths| paths.pidfile.as_os_str().as_bytes()) {
            let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Err(format!(
                "the pidfile would change from {} to {}: stop the service and start it anew to change it",
                offer.pidfile.as_deref().map_or("none".to_owned(), name),
                ours.map_or("none".to_owned(), |p| p.pidfile.display().to_string()),
            ));
        }
        if let Some(paths) = ours {
            let lock = Lock::from_fd(next()?, paths).map_err(|e| crate::words(&e))?;
            self.shared.set_lock(lock);
            let server =
                control::Server::new(next()?).map_err(|e| format!("the control socket: {e}"))?;
            self.shared.set_control(server);
        }
        self.stderr = Some(next()?);
        let parent = next()?;
        let watch =
            process::check_pidfd(&parent, offer.parent.pid).and_then(|()| Peer::new(parent));
        self.link.peer = watch.map_err(|e| format!("cannot watch the parent: {e}"))?;
        self.shared.set_generation(offer.parent.generation + 1);
        self.shared.reload.store(offer.reload, Ordering::Release);
        self.parent = Some(offer.parent);
        self.reload = offer.reload;
        self.older.clone_from(&offer.older);
        self.offer = Some(offer);
        Ok(())
    }

    /// "I am at its end now": said to the older generation before it is said to the parent.
    fn take_channel(
        &mut self,
        inherited: &Inherited,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<(), String> {
        let number = inherited.number;
        self.sequence.received(number).map_err(|e| e.to_string())?;
        let from = inherited.from;
        let refused = match Self::inherit(self.shared.clone(), inherited, fds, missing) {
            Ok(driver) => {
                tracing::info!(
                    generation = from.generation,
                    pid = from.pid,
                    waiting_for = inherited.waiting_for,
                    "an older generation drains into this one"
                );
                self.inherited.push(driver);
                None
            }
            Err(reason) => {
                tracing::warn!(
                    generation = from.generation,
                    reason,
                    "the channel of an older generation stays with the parent"
                );
                Some(reason)
            }
        };
        self.say(
            &Message::ChannelAck(InheritedAck { number, refused }),
            vec![],
        )
    }

    fn take_rest(&mut self, rest: Rest, fds: Vec<OwnedFd>) -> Result<(), String> {
        self.sequence
            .received(rest.number)
            .map_err(|e| e.to_string())?;
        match changes::unpack(rest.changes, fds) {
            Ok(deltas) => self.absorb(&deltas),
            // Never fatal: what else the parent has is worth more.
            Err(error) => tracing::error!(error, "state that changed after the commit is lost"),
        }
        self.say(
            &Message::RestAck {
                number: rest.number,
            },
            vec![],
        )
    }

    fn absorb(&self, deltas: &Deltas) {
        let sections = self.shared.sections();
        let absorbed = catch_unwind(AssertUnwindSafe(|| deltas.absorb(&sections)));
        let errors = absorbed.unwrap_or_else(|_| {
            tracing::error!(
                "a section of the state has panicked: what the parent changed in it is lost"
            );
            Vec::new()
        });
        for error in errors {
            let error = crate::words(&error);
            tracing::error!(error, "state that changed after the snapshot is lost");
        }
    }

    fn take_batch(
        &mut self,
        batch: Batch,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<(), String> {
        let number = batch.number;
        self.sequence.received(number).map_err(|e| e.to_string())?;
        let Unpacked { adopted, refused } =
            connections::unpack(batch, fds, missing, &self.shared.kinds())?;
        if !refused.is_empty() {
            tracing::warn!(
                refused = refused.len(),
                adopted = adopted.len(),
                reason = refused[0].1,
                "connections stay with the parent"
            );
        }
        // "I own these": said before anything is done with them.
        self.say(&Message::ConnAck(BatchAck { number, refused }), vec![])?;
        self.waiting_for = self.waiting_for.saturating_sub(adopted.len() as u64);
        self.arrived.extend(adopted);
        self.take_arrived();
        Ok(())
    }

    /// Gives the application what is acknowledged. An ack that waits to be written is none yet: should this
    /// process end before that, the parent serves the connection.
    fn take_arrived(&mut self) {
        if !self.link.is_pending() {
            self.take_all_arrived();
        }
    }

    fn take_all_arrived(&mut self) {
        for connection in self.arrived.drain(..) {
            let guard = self.shared.live.connection();
            // Fails only if nobody will ever serve them: then they close here.
            let _ = self.shared.adopted.send(Adopted { connection, guard });
        }
    }

    /// Feeds the machine and carries out what it says.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Effect> {
        tracing::debug!(?event, state = ?self.machine.state(), "child");
        self.refused |= event == Event::NotPassed;
        let actions = self.machine.on(event);
        self.perform(actions)
    }

    fn perform(&mut self, actions: Vec<Action>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for action in actions {
            if let Err(error) = self.act(action, &mut effects) {
                // The parent is told by our silence, and we by its pidfd or our own deadline.
                tracing::error!(error, "cannot speak to the parent");
            }
        }
        effects
    }

    fn act(&mut self, action: Action, effects: &mut Vec<Effect>) -> Result<(), String> {
        match action {
            Action::SendHello => {
                let hello = Hello {
                    oldest: *VERSIONS.start(),
                    newest: *VERSIONS.end(),
                    pid: std::process::id(),
                    build: self.shared.settings.build.clone(),
                };
                self.say(&Message::Hello(hello), vec![])?;
            }
            Action::Prepare => {
                let listeners = std::mem::take(&mut self.listeners);
                answer(&mut self.offered, Offered { listeners });
            }
            Action::SendPrepared => {
                return self.say(&Message::Prepared(self.prepared.clone()), vec![]);
            }
            Action::Restore => {
                if let Some(snapshot) = self.snapshot.take() {
                    answer(&mut self.source, Source::Snapshot(Box::new(snapshot)));
                }
            }
            Action::ColdStart => {
                answer(&mut self.source, Source::ColdStart);
            }
            Action::SendReady => return self.say(&Message::Ready, vec![]),
            Action::TakeOver => {
                self.take_over();
                effects.push(Effect::Serving);
            }
            Action::SendAccepting => return self.say(&Message::Accepting, vec![]),
            Action::AnswerHealth => {
                return self.say(
                    &Message::Health(Health::Answer {
                        number: self.asked,
                        ill: None,
                    }),
                    vec![],
                );
            }
            Action::Final => self.become_final(),
            Action::SendChannel => self.send_channel(effects),
            // With this driver's end.
            Action::LetGo => effects.push(Effect::ParentGone),
            Action::Return => self.shared.set_phase(Phase::Paused),
            Action::Resume => self.shared.set_phase(Phase::Serving),
            Action::SendRefuse(reason) => return self.say(&Message::Refuse(reason), vec![]),
            Action::SendStop(reason) => return self.say(&Message::Stop(reason), vec![]),
            Action::SendBye => return self.say(&Message::Bye(self.shared.live.counts()), vec![]),
            Action::KillParent => {
                tracing::error!(
                    "the parent is silent, or does not speak the protocol any more; killing it"
                );
                self.link
                    .peer
                    .signal(Signal::Kill)
                    .map_err(|e| e.to_string())?;
            }
            Action::ParentGone { crashed } => self.parent_gone(crashed, effects),
            Action::StopSelf(reason) => effects.push(Effect::StopSelf(reason)),
            Action::Exit(reason) => effects.push(Effect::Exit(reason)),
            Action::Start(timer) => self.link.timers.start(timer, self.duration(timer)),
            Action::Cancel(timer) => self.link.timers.cancel(timer),
        }
        Ok(())
    }

    fn say(&mut self, message: &Message, fds: Vec<Arc<OwnedFd>>) -> Result<(), String> {
        self.link.say(message, fds).map_err(|e| e.to_string())
    }

    fn duration(&self, timer: Timer) -> Duration {
        let ready = self
            .offer
            .as_ref()
            .map_or(self.shared.settings.ready_timeout, |offer| {
                Duration::from_millis(offer.ready_timeout_ms)
            });
        match timer {
            // The parent's deadline, the snapshot and the hook included.
            Timer::Ready => ready + protocol::RETIRE_TIMEOUT + protocol::CHILD_MARGIN,
            _ => protocol::SILENCE_TIMEOUT + protocol::CHILD_MARGIN,
        }
    }

    /// The order matters: words first, then state, then the names under which others find us, then the
    /// listeners.
    fn take_over(&mut self) {
        self.adopt_stderr();
        let changes = std::mem::take(&mut self.changes);
        self.absorb(&changes);
        self.shared.publish_or_log();
        let older = self.direct().into_iter().chain(self.hearsay());
        self.shared
            .live
            .set_older(older.map(|older| older.waiting_for).sum());
        self.shared.set_phase(Phase::Serving);
        self.shared.call(Turn::Committed);
    }

    fn send_channel(&mut self, effects: &mut Vec<Effect>) {
        let (Some(from), Some((position, fds))) = (self.parent, self.parcel.take()) else {
            return;
        };
        let silent_for = self.heard_at.elapsed().as_millis();
        let inherited = Inherited {
            number: 0, // the sender's to count
            from,
            reload: self.reload,
            version: position.version,
            sent: position.sent,
            received: position.received,
            items: self.sequence.last(),
            waiting_for: self.waiting_for,
            silent_for_ms: u64::try_from(silent_for).unwrap_or(u64::MAX),
        };
        effects.push(Effect::PassOn(inherited, fds.map(Arc::new).into()));
    }

    fn adopt_stderr(&mut self) {
        if let Some(stderr) = self.stderr.take()
            && let Err(error) = process::adopt_stderr(stderr)
        {
            tracing::error!(%error, "cannot take over stderr");
        }
    }

    /// The parent cannot come back.
    fn become_final(&mut self) {
        for listener in self.shared.listeners() {
            // A smaller backlog could not be set while the parent could still come back.
            if let Err(error) = listener.settle() {
                tracing::warn!(listener = listener.name(), %error, "cannot set the backlog");
            }
        }
        let Some(offer) = &self.offer else { return };
        let to = self.shared.identity();
        tracing::info!(
            reload = offer.reload,
            generation = to.generation,
            parent = offer.parent.pid,
            "confirmed"
        );
        let Prepared {
            kept,
            added,
            removed,
        } = self.prepared.clone();
        let listeners = ListenerChanges {
            kept,
            added,
            removed,
        };
        let outcome = Outcome::Confirmed {
            from: offer.parent,
            to,
            serving_us: self.serving_us,
            listeners,
        };
        self.shared.news.reloaded(offer.reload, outcome);
        self.is_final = true;
        if self.orphaned {
            self.tell_what_is_lost();
        }
    }

    /// A parent that crashed has said no `Bye`, for which somebody may be waiting.
    fn tell_what_is_lost(&self) {
        let Some(Generation { generation, pid }) = self.parent else {
            return;
        };
        let lost = ConnectionCounts {
            cut: self.waiting_for,
            named: vec![format!(
                "generation {generation}, pid {pid}, crashed: what it still served is lost"
            )],
            ..ConnectionCounts::default()
        };
        self.shared.news.drained(self.reload, 0, lost);
    }

    fn parent_gone(&mut self, crashed: bool, effects: &mut Vec<Effect>) {
        // First of all: until the commit stderr is a pipe that the parent read, and whoever writes to it
        // now may panic.
        self.adopt_stderr();
        self.orphaned = crashed && !self.is_final;
        // Nobody else will serve them.
        self.take_all_arrived();
        if crashed {
            tracing::error!("the parent has crashed; what it still served is lost");
            if self.is_final {
                self.tell_what_is_lost();
            }
        }
        effects.push(Effect::ParentGone);
    }

    /// Writes the last words before the process ends.
    pub(crate) async fn flush(&mut self) {
        self.link.flush(FLUSH_PATIENCE).await;
    }
}

/// How long the last words may take to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// A pidfd of the process that made the channel.
fn peer_of(channel: &OwnedFd) -> io::Result<OwnedFd> {
    let gone = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the parent died before it was joined",
        )
    };
    let credentials = rustix::net::sockopt::socket_peercred(channel)?;
    let pidfd =
        match rustix::process::pidfd_open(credentials.pid, rustix::process::PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Err(gone()),
            opened => opened?,
        };
    // The number could be another process's by now; while it is our parent's it is not.
    match rustix::process::getppid() {
        Some(parent) if parent == credentials.pid => Ok(pidfd),
        _ if !process::is_running(pidfd.as_fd())? => Err(gone()),
        parent => Err(io::Error::other(format!(
            "process {} made the channel, and process {} started this one: a script between them must end in \
             `exec`",
            credentials.pid.as_raw_pid(),
            parent.map_or(0, rustix::process::Pid::as_raw_pid),
        ))),
    }
}

fn answer<T>(to: &mut Option<oneshot::Sender<T>>, value: T) {
    if let Some(to) = to.take() {
        // Whoever does not wait any more has given up the start.
        let _ = to.send(value);
    }
}
