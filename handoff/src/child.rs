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
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    changes,
    channel::{Position, Received},
    control::{
        self, Outcome,
        message::{ConnectionCounts, Generation, ListenerChanges},
    },
    failpoint::Side,
    intake::{self, Intake},
    link::{Heard, Link, Peer},
    listeners::Listener,
    parent::CLOSED,
    pidfile::Lock,
    process::{self, Signal},
    protocol::{
        self, Timer,
        child::{Action, Child, Event, State},
    },
    shared::{PassRequest, Phase, Shared, Turn},
    state::{Deltas, Manifest, Snapshot},
    stderr::Lent,
    transfer::{self, Transfer},
    wire::{Health, Hello, Inherited, InheritedAck, Message, Offer, Older, Prepared, VERSIONS},
};

mod probation;

use probation::Inner;

/// How often a child on probation looks whether its parent reads its stderr.
const STDERR_LOOK: Duration = Duration::from_millis(500);

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
    /// This process was revoked: what the application gives up goes to the parent.
    Returning,
    /// Nobody takes what the application gives up any more: it is for a successor, or comes back.
    Resumed,
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
    stderr: Option<Lent>,
    pub(crate) prepared: Prepared,
    snapshot: Option<Snapshot>,
    changes: Deltas,
    /// What this process had changed of the state before it took over.
    earlier: Deltas,
    serving_us: u64,
    asked: u64,
    intake: Intake,
    inbox: mpsc::UnboundedReceiver<Inner>,
    inbox_tx: mpsc::UnboundedSender<Inner>,
    /// When the probation is to end.
    probation_ends: Option<Instant>,
    /// Nothing may be left to return.
    none: watch::Receiver<()>,
    /// Since it was revoked.
    transfer: Option<Transfer>,
    pass: Option<mpsc::UnboundedReceiver<PassRequest>>,
    /// The `retired` hook is under way.
    is_retiring: bool,
    /// The time to return what there is has passed.
    is_late: bool,
    /// The process at the other end, once it is known which, and the reload by which it leaves.
    parent: Option<Generation>,
    reload: u64,
    /// How many connections it still serves, and who drains into it, as last heard.
    waiting_for: u64,
    named: Vec<String>,
    older: Vec<Older>,
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
    /// The parent died before it could name this process to the service manager.
    lost_parent: bool,
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
            intake: Intake::after(inherited.items),
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
        let (inbox_tx, inbox) = mpsc::unbounded_channel();
        Self {
            none: shared.live.none(),
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
            earlier: Deltas::default(),
            serving_us: 0,
            asked: 0,
            intake: Intake::new("the parent"),
            inbox,
            inbox_tx,
            probation_ends: None,
            transfer: None,
            pass: None,
            is_retiring: false,
            is_late: false,
            parent: None,
            reload: 0,
            waiting_for: 0,
            named: Vec::new(),
            older: Vec::new(),
            parcel: None,
            heard_at: Instant::now(),
            refused: false,
            inherited: Vec::new(),
            orphaned: false,
            lost_parent: false,
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
                "generation {} is on probation, {:.1} s left: `hello confirm` ends it, `hello rollback` takes it back",
                self.shared.identity().generation,
                self.probation_left().unwrap_or_default().as_secs_f64(),
            )),
            State::Returning => Some("this process was revoked".to_owned()),
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
            self.intake.give(&self.shared, &self.link);
            if self.has_returned() {
                return Event::Returned;
            }
            let room = self.transfer.as_ref().map_or(0, Transfer::room);
            self.look_after_stderr();
            let is_lent = self.stderr.is_some() && self.machine.state() == State::Probation;
            tokio::select! {
                biased;
                heard = self.link.next() => {
                    if let Some(event) = self.translate(heard) {
                        return event;
                    }
                }
                Some(inner) = self.inbox.recv() => {
                    if let Some(event) = self.inner(inner) {
                        return event;
                    }
                }
                () = transfer::receive(&mut self.pass, &mut self.transfer, room), if room > 0 => {}
                _ = self.none.changed(), if self.transfer.is_some() => {}
                () = tokio::time::sleep(STDERR_LOOK), if is_lent => {
                    self.look_after_stderr();
                }
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
            Heard::Timer(timer) => {
                if timer == Timer::Drain {
                    self.cut();
                }
                return Some(Event::Timer(timer));
            }
        };
        self.heard_at = Instant::now();
        self.message(received)
    }

    /// What the parent said, as the machine knows it.
    fn message(&mut self, received: Received) -> Option<Event> {
        let (fds, missing) = (received.fds, received.missing);
        Some(match received.message {
            Message::Offer(offer) => Event::Offer(self.take_offer(offer, fds, missing)),
            Message::State(manifest) => Event::State(self.take_state(manifest, fds)),
            Message::Commit(commit) => match changes::unpack(commit.changes, fds) {
                Ok(deltas) => {
                    self.changes = deltas;
                    self.waiting_for = commit.waiting_for;
                    self.older = commit.older;
                    Event::Commit
                }
                Err(reason) => Event::Broken(reason),
            },
            Message::Health(Health::Ask {
                number,
                waiting_for,
            }) => {
                self.asked = number;
                self.waiting_for = waiting_for;
                Event::AskHealth
            }
            Message::RestAck { number } => {
                return self.acked(|transfer| transfer.rest_acked(number));
            }
            Message::ConnAck(ack) => return self.acked(|transfer| transfer.conn_acked(ack)),
            Message::Confirm { serving_us } => {
                self.serving_us = serving_us;
                Event::Confirm
            }
            Message::Revoke(reason) => Event::Revoke(reason),
            Message::Abort(reason) | Message::Refuse(reason) => Event::Aborted(reason),
            Message::Stop(reason) => Event::Stopped(reason),
            Message::Rest(rest) => self.heard_or_broken(|driver| {
                let Self {
                    intake,
                    shared,
                    link,
                    ..
                } = driver;
                intake.take_rest(shared, link, rest, fds)
            }),
            Message::Conn(batch) => self.heard_or_broken(|driver| {
                let Self {
                    intake,
                    shared,
                    link,
                    ..
                } = driver;
                let adopted = intake.take_batch(shared, link, batch, fds, missing)?;
                driver.waiting_for = driver.waiting_for.saturating_sub(adopted as u64);
                Ok(())
            }),
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
                self.parent_has_finished(counts);
                Event::Bye
            }
            other => Event::Broken(format!("the parent said {other}")),
        })
    }

    fn take_state(&mut self, manifest: Manifest, fds: Vec<OwnedFd>) -> Result<(), String> {
        let [fd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| "the state came without its one descriptor".to_owned())?;
        let snapshot = Snapshot::open(manifest, fd).map_err(|e| crate::words(&e))?;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn parent_has_finished(&self, counts: ConnectionCounts) {
        tracing::info!(
            reload = self.reload,
            parent = self.parent.map(|parent| parent.pid),
            moved = counts.moved,
            drained = counts.drained,
            cut = counts.cut,
            "the parent has finished"
        );
        self.shared.news.drained(self.reload, 0, counts);
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
        let expected = offer.listeners.len() + named + 3;
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
        self.stderr = Some(Lent::new(next()?, next()?));
        let parent = next()?;
        let watch =
            process::check_pidfd(&parent, offer.parent.pid).and_then(|()| Peer::new(parent));
        self.link.peer = watch.map_err(|e| format!("cannot watch the parent: {e}"))?;
        self.shared.set_generation(offer.parent.generation + 1);
        self.shared.reload.store(offer.reload, Ordering::Release);
        self.parent = Some(offer.parent);
        self.reload = offer.reload;
        self.older.clone_from(&offer.older);
        if let Some(last) = &offer.last_reload {
            self.shared.news.remember(last);
        }
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
        self.intake.received(number)?;
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

    /// Feeds the machine and carries out what it says.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Effect> {
        tracing::debug!(?event, state = ?self.machine.state(), "child");
        self.refused |= event == Event::NotPassed;
        let is_alone = event == Event::ParentDied;
        self.lost_parent |= is_alone && !self.is_final;
        if is_alone && let Some(lent) = self.stderr.take() {
            // First of all: nobody reads that pipe any more.
            lent.adopt_with_rest();
        }
        if let (Event::Broken(reason), Some(transfer)) = (&event, &mut self.transfer) {
            // An ack may lie behind what was not understood, and the parent may live.
            transfer.continue_alone(reason, false);
        }
        let actions = self.machine.on(event);
        let mut effects = self.perform(actions);
        if is_alone && let Some(transfer) = self.transfer.take() {
            // Stopped while it was to return things, which nobody takes any more.
            transfer.dissolve("the parent has died", &mut self.pass);
            effects.push(Effect::Resumed);
        }
        effects
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
            Action::AnswerHealth => return self.examine(),
            Action::Final => self.become_final(),
            Action::SendChannel => self.send_channel(effects),
            // With this driver's end.
            Action::LetGo => effects.push(Effect::ParentGone),
            Action::Return => self.begin_return(effects),
            Action::SendYielded => return self.say(&Message::Yielded, vec![]),
            Action::Resume => self.resume(effects),
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
            Action::StopSelf(reason) => {
                // Its parent stops, too, and listens no more.
                if let Some(lent) = self.stderr.take() {
                    lent.adopt_with_rest();
                }
                effects.push(Effect::StopSelf(reason));
            }
            Action::Exit(reason) => {
                if *self.shared.phase.borrow() == Phase::Returning {
                    // Acceptors end, and so does whatever could not be returned.
                    self.shared.set_phase(Phase::Cut);
                }
                effects.push(Effect::Exit(reason));
            }
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
            Timer::Leave => protocol::leave_timeout(self.drain_timeout()),
            _ => protocol::SILENCE_TIMEOUT + protocol::CHILD_MARGIN,
        }
    }

    /// The order matters: words first, then state, then the names under which others find us, then the
    /// listeners.
    fn take_over(&mut self) {
        let probation = self.probation();
        if probation.is_zero() {
            self.adopt_stderr();
        } else {
            // Its parent listens until it is final.
            self.probation_ends = Some(Instant::now() + probation);
        }
        // Without a probation, too, its parent can take over again until it says `Confirm`.
        self.earlier = self.shared.deltas();
        let changes = std::mem::take(&mut self.changes);
        intake::absorb(&self.shared, &changes);
        // The parent knows those: they are not what it must be told should it take over again.
        let _ = self.shared.deltas();
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
            items: self.intake.last(),
            waiting_for: self.waiting_for,
            silent_for_ms: u64::try_from(silent_for).unwrap_or(u64::MAX),
        };
        effects.push(Effect::PassOn(inherited, fds.map(Arc::new).into()));
    }

    fn adopt_stderr(&mut self) {
        if let Some(lent) = self.stderr.take() {
            lent.adopt();
        }
    }

    /// The parent cannot come back.
    fn become_final(&mut self) {
        self.adopt_stderr();
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
        } = &self.prepared;
        let listeners = ListenerChanges::new(kept, added, removed);
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
        self.shared.notify.serves(
            to,
            &self.shared.listeners(),
            &self.prepared.removed,
            self.lost_parent,
        );
    }

    /// Whether this process may be the service: its parent has word of it, or is no more, or has said its last word.
    pub(crate) fn may_serve(&self) -> bool {
        self.is_final || self.orphaned || self.link.has_said_accepting()
    }

    /// There is nobody to talk with any more, and this process is the service if anybody is.
    pub(crate) fn sever(&mut self) {
        // What was acknowledged is this process's. An ack that is not written yet never will be: what it is about stays with the
        // other process.
        self.intake.give(&self.shared, &self.link);
        if !self.is_final {
            self.become_final();
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
        self.orphaned = crashed && !self.is_final;
        self.intake.give_all(&self.shared);
        if crashed {
            if let Some(parent) = self.parent {
                self.shared.forget_pidfile_of(parent.pid);
            }
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
