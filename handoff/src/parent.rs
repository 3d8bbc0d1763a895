//! The parent's side of a reload: carries out what the machine in [`protocol::parent`]
//! decides.
//!
//! Nothing here waits but [`ParentDriver::next`], which is cancel safe; everything that takes time
//! (the snapshot, the hooks) runs elsewhere and comes back as an event.

use std::{
    convert::Infallible,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    changes,
    channel::{self, Received},
    control::{
        Event as News, Outcome,
        message::{Builds, DryRun, Generation, ListenerChanges},
    },
    failpoint::Side,
    intake::Intake,
    link::{Heard, Link, Peer},
    process::{self, Signal, Spawned},
    protocol::{
        self, CUT_GRACE, MIN_DRAIN, Timer,
        parent::{Action, Event, Failure, Parent, State, Undo},
    },
    shared::{PassRequest, Phase, Report, Shared, Turn},
    state::{Manifest, Snapshot},
    stderr::{Capture, PassThrough},
    transfer::{self, Transfer},
    wire::{
        Commit, Decision, Health, Inherited, MAX_WAITING_NAMED, Message, Offer, Prepared, VERSIONS,
    },
};

/// In words.
pub(crate) const CLOSED: &str = "it closed its end of the channel and lives on";

/// How soon the child hears that there are fewer connections here; many end at a time.
const SAY_SOON: Duration = Duration::from_millis(20);

/// How long the last words may take to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// What the process as a whole must do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Stop gracefully: parent and child were told.
    StopSelf(String),
    /// The reload is over. With a report the child serves and this process has finished;
    /// without one this process serves on, or stops.
    Ended(Option<Report>),
}

/// What comes back from a task of the driver's own.
#[derive(Debug)]
enum Inner {
    Event(Event),
    Snapshot(Result<(Manifest, OwnedFd), String>),
}

/// A reload that begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    pub(crate) reload: u64,
    pub(crate) started: Instant,
    /// It is to end once the child is ready.
    pub(crate) dry_run: bool,
}

/// See the module.
pub(crate) struct ParentDriver {
    shared: Arc<Shared>,
    machine: Parent,
    link: Link,
    child: Spawned,
    /// Who takes what this process passes on: the child, or a generation that came after it.
    successor: Generation,
    /// The child, while somebody else is the successor: it must not stay a zombie until we end.
    reaper: Option<Peer>,
    capture: Option<Capture>,
    reload: u64,
    started: Instant,
    /// What the child says that it is.
    build: String,
    inbox: mpsc::UnboundedReceiver<Inner>,
    inbox_tx: mpsc::UnboundedSender<Inner>,
    prepared: Prepared,
    snapshot: Option<(Manifest, OwnedFd)>,
    /// `Accepting`, or the `Ready` of a dry run, was heard this long after the start.
    serving_us: u64,
    asked: u64,
    /// How many connections the child was told of last.
    said: u64,
    /// The deadline at which the reload failed.
    overstepped: Option<Duration>,
    /// The drain deadline has passed.
    is_late: bool,
    /// Nothing may be left to drain.
    none: watch::Receiver<()>,
    /// What is being undone: it is not all done while it is here.
    failing: Option<Failure>,
    /// Since `Confirm`.
    transfer: Option<Transfer>,
    /// Since `Revoke`: the child returns what it has.
    intake: Option<Intake>,
    pass: Option<mpsc::UnboundedReceiver<PassRequest>>,
}

impl ParentDriver {
    /// Starts the child. Blocking: std's spawn stops its caller until the exec.
    ///
    /// # Errors
    /// In words, with the path and the remedy.
    pub(crate) fn spawn(
        shared: &Arc<Shared>,
        reload: u64,
        runtime: &tokio::runtime::Handle,
    ) -> Result<(Spawned, OwnedFd, Capture), String> {
        let _context = runtime.enter();
        if !shared.settings.allow_writable_program {
            shared.program.check().map_err(|e| crate::words(&e))?;
        }
        // Should the child fail once the pidfile names it.
        shared.prepare_pidfile().map_err(|e| crate::words(&e))?;
        let (ours, theirs) =
            channel::pair().map_err(|e| format!("cannot make the channel: {e}"))?;
        let watcher = shared.clone();
        let on_line = move |line: &str| {
            watcher.news.tell(&News::Stderr {
                reload,
                line: line.to_owned(),
            });
        };
        let (capture, write_end) = PassThrough::stderr()
            .and_then(|sink| Capture::new(sink, on_line))
            .map_err(|e| format!("cannot make the pipe for stderr: {e}"))?;
        let child = shared
            .program
            .spawn(theirs, write_end, &[], &shared.notify.not_inherited())
            .map_err(|e| crate::words(&e))?;
        Ok((child, ours, capture))
    }

    pub(crate) fn new(
        shared: Arc<Shared>,
        Begin {
            reload,
            started,
            dry_run,
        }: Begin,
        (child, channel, capture): (Spawned, OwnedFd, Capture),
        pass: mpsc::UnboundedReceiver<PassRequest>,
    ) -> Result<Self, (String, mpsc::UnboundedReceiver<PassRequest>)> {
        let link = child
            .as_fd()
            .try_clone_to_owned()
            .and_then(|pidfd| Link::new(Side::Parent, channel, pidfd));
        let link = match link {
            Ok(link) => link,
            Err(e) => return Err((format!("cannot watch the child: {e}"), pass)),
        };
        let (machine, actions) = if dry_run {
            Parent::dry_run()
        } else {
            Parent::new(!shared.settings.probation.is_zero())
        };
        let (inbox_tx, inbox) = mpsc::unbounded_channel();
        let successor = Generation {
            generation: shared.identity().generation + 1,
            pid: child.pid(),
        };
        let mut driver = Self {
            none: shared.live.none(),
            failing: None,
            shared,
            machine,
            link,
            successor,
            reaper: None,
            child,
            capture: Some(capture),
            reload,
            started,
            build: String::new(),
            inbox,
            inbox_tx,
            prepared: Prepared::default(),
            snapshot: None,
            serving_us: 0,
            asked: 0,
            said: 0,
            overstepped: None,
            is_late: false,
            transfer: None,
            intake: None,
            pass: Some(pass),
        };
        // The first actions have no effect on the process as a whole.
        let _ = driver.perform(actions);
        Ok(driver)
    }

    pub(crate) fn reload(&self) -> u64 {
        self.reload
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(crate) fn phase(&self) -> &'static str {
        self.machine.phase()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.machine.is_dry_run()
    }

    /// Whether the child is final, so that this process only drains.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.machine.is_confirmed()
    }

    /// Whether this process is the service no more and has nothing to finish: all is said, or it broke off between
    /// deciding that the child is final and acting on it.
    pub(crate) fn is_past_all(&self) -> bool {
        match self.machine.state() {
            // Without one the reload has failed.
            State::Ended => self.transfer.is_some(),
            _ => self.is_confirmed() && self.transfer.is_none(),
        }
    }

    /// Whether an operator may still decide.
    pub(crate) fn is_on_probation(&self) -> bool {
        matches!(self.machine.state(), State::Probation | State::Confirming)
    }

    /// An operator ends the probation.
    pub(crate) fn decide(&mut self, decision: Decision) -> Vec<Effect> {
        self.handle(match decision {
            Decision::Confirm => Event::ConfirmNow,
            Decision::Rollback => Event::Rollback,
        })
    }

    /// Sends a signal on to the successor.
    pub(crate) fn forward(&self, signal: Signal) {
        if let Err(error) = self.link.peer.signal(signal) {
            tracing::warn!(%error, pid = self.pid(), "cannot pass the signal on to the successor");
        }
    }

    /// Whether there is nobody now to send a signal on to, but may be soon.
    pub(crate) fn is_forsaken(&self) -> bool {
        *self.machine.state() == State::Forsaken
    }

    /// Passes the channel of an older generation on; [`take_passed`](Self::take_passed) tells what
    /// became of it.
    pub(crate) fn pass_channel(&mut self, inherited: Inherited, fds: Vec<Arc<OwnedFd>>) {
        if let Some(transfer) = &mut self.transfer {
            transfer.pass_channel(inherited, fds);
        }
    }

    /// See [`Transfer::take_passed`].
    pub(crate) fn take_passed(&mut self) -> Vec<(u64, bool)> {
        self.transfer
            .as_mut()
            .map(Transfer::take_passed)
            .unwrap_or_default()
    }

    /// Whether channels of older generations can be passed on: there is a successor, and time.
    pub(crate) fn can_pass_on(&self) -> bool {
        matches!(self.machine.state(), State::Draining { child_lives: true })
            && *self.shared.phase.borrow() == Phase::HandingOver
            && !self.is_late
    }

    /// The receiver of connections that are given up, for the next reload.
    pub(crate) fn take_pass(&mut self) -> Option<mpsc::UnboundedReceiver<PassRequest>> {
        self.pass.take()
    }

    /// The next event. Cancel safe.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if let Some(intake) = &mut self.intake {
                intake.give(&self.shared, &self.link);
            }
            let drained = self
                .transfer
                .as_mut()
                .map(|t| t.turn(&self.shared, &mut self.link));
            match drained {
                Some(Ok(true)) => return Event::Drained,
                Some(Err(reason)) => return Event::Broken(reason),
                _ => {}
            }
            let room = self.transfer.as_ref().map_or(0, Transfer::room);
            let shared = self.shared.clone();
            let changed = shared.live.changed();
            if self.transfer.is_some() && self.waiting_for() < self.said {
                // Perhaps somebody waits at the child's limit for just that.
                self.link.timers.hasten(Timer::Heartbeat, SAY_SOON);
            }
            tokio::select! {
                biased;
                heard = self.link.next() => {
                    if let Some(event) = self.translate(heard) {
                        return event;
                    }
                }
                Some(inner) = self.inbox.recv() => return self.inner(inner),
                () = transfer::receive(&mut self.pass, &mut self.transfer, room), if room > 0 => {}
                _ = self.none.changed(), if self.transfer.is_some() => {}
                () = changed, if self.transfer.is_some() => {}
                () = ended(self.reaper.as_ref()) => {
                    self.reaper = None;
                    let _ = self.child.try_wait();
                }
                never = pump(&mut self.capture) => match never {},
            }
        }
    }

    /// How many connections are still to be finished or passed on here. What is on its way is the child's when
    /// it hears this.
    fn waiting_for(&self) -> u64 {
        let on_their_way = self.transfer.as_ref().map_or(0, Transfer::on_their_way);
        self.shared.live.connections().saturating_sub(on_their_way)
    }

    fn inner(&mut self, inner: Inner) -> Event {
        match inner {
            Inner::Event(event) => event,
            Inner::Snapshot(Ok(taken)) => {
                self.snapshot = Some(taken);
                Event::Snapshot(Ok(()))
            }
            Inner::Snapshot(Err(reason)) => Event::Snapshot(Err(reason)),
        }
    }

    fn translate(&mut self, heard: Heard) -> Option<Event> {
        let received = match heard {
            Heard::Message(received) => *received,
            Heard::Broken(reason) => return Some(Event::Broken(reason)),
            Heard::Died => return Some(Event::Died(self.obituary())),
            // An ack comes before anything is done with a connection: at the end of the channel nobody has
            // what was not acknowledged, and nobody ever will.
            Heard::Closed if self.machine.is_confirmed() => {
                return Some(Event::Died("has closed the channel".to_owned()));
            }
            Heard::Closed => return Some(Event::Broken(CLOSED.to_owned())),
            Heard::Vanished => {
                let _ = self.child.try_wait();
                return Some(Event::Vanished);
            }
            Heard::Timer(timer) => {
                if timer == Timer::Drain {
                    self.cut();
                }
                return Some(Event::Timer(timer));
            }
        };
        self.message(received)
    }

    /// What the child said, as the machine knows it.
    fn message(&mut self, received: Received) -> Option<Event> {
        if let Message::Successor(successor) = received.message {
            return Some(
                match self.succeed(successor, received.fds, received.missing) {
                    Ok(()) => Event::Successor,
                    Err(reason) => Event::Broken(reason),
                },
            );
        }
        let received = match self.take_in(received) {
            Ok(Some(received)) => received,
            Ok(None) => return None,
            Err(reason) => return Some(Event::Broken(reason)),
        };
        if !received.fds.is_empty() || received.missing > 0 {
            return Some(Event::Broken(format!(
                "{} with descriptors that do not belong to it",
                received.message
            )));
        }
        self.word(received.message)
    }

    /// What it said without descriptors.
    fn word(&mut self, message: Message) -> Option<Event> {
        let acked = match message {
            Message::Hello(hello) => {
                let version = hello.choose(&VERSIONS).ok_or_else(|| {
                    format!(
                        "the new build speaks protocol versions {}..={}, this one {}..={}: go by way of a build that speaks both",
                        hello.oldest, hello.newest, VERSIONS.start(), VERSIONS.end(),
                    )
                });
                self.build = hello.build;
                return Some(Event::Hello(version));
            }
            Message::Refuse(reason) => return Some(Event::Refused(reason)),
            Message::Stop(reason) => return Some(Event::Stopped(reason)),
            Message::Prepared(prepared) => {
                self.prepared = prepared;
                return Some(Event::Prepared);
            }
            Message::Ready => return Some(Event::Ready),
            Message::Accepting => return Some(Event::Accepting),
            Message::Health(Health::Answer { number, ill }) if number == self.asked => {
                return Some(Event::Health(ill));
            }
            Message::Health(Health::Answer { .. }) => return None,
            Message::Decide(Decision::Confirm) => return Some(Event::ConfirmNow),
            Message::Decide(Decision::Rollback) => return Some(Event::Rollback),
            Message::Yielded => return Some(Event::Yielded),
            Message::Bye(counts) => {
                tracing::info!(
                    reload = self.reload,
                    child = self.pid(),
                    moved = counts.moved,
                    drained = counts.drained,
                    cut = counts.cut,
                    "the revoked child has returned what it had"
                );
                return Some(Event::Returned);
            }
            Message::RestAck { number } => self.transfer.as_mut().map(|t| t.rest_acked(number)),
            Message::ConnAck(ack) => self.transfer.as_mut().map(|t| t.conn_acked(ack)),
            Message::ChannelAck(ack) => {
                let acked = self.transfer.as_mut().map(|t| t.channel_acked(ack));
                if let Some(Ok(())) = acked {
                    return Some(Event::Acked);
                }
                acked
            }
            other => return Some(Event::Broken(format!("the child said {other}"))),
        };
        match acked {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(Event::Broken(reason)),
            None => Some(Event::Broken("an ack where nothing was sent".to_owned())),
        }
    }

    /// Takes what a revoked child returns; gives back what is something else.
    fn take_in(&mut self, received: Received) -> Result<Option<Received>, String> {
        let Some(intake) = &mut self.intake else {
            return Ok(Some(received));
        };
        let (shared, link) = (&*self.shared, &mut self.link);
        let Received {
            message,
            fds,
            missing,
        } = received;
        match message {
            Message::Rest(rest) => intake.take_rest(shared, link, rest, fds)?,
            Message::Conn(batch) => {
                intake.take_batch(shared, link, batch, fds, missing)?;
            }
            message => {
                return Ok(Some(Received {
                    message,
                    fds,
                    missing,
                }));
            }
        }
        Ok(None)
    }

    /// Another generation has got our channel.
    fn succeed(
        &mut self,
        successor: Generation,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<(), String> {
        if self.transfer.is_none() {
            return Err("a successor of the child, which is not the service yet".to_owned());
        }
        let peer = match <[OwnedFd; 1]>::try_from(fds) {
            // It may be dead and reaped by now, and another one have its place: that is said in its turn.
            Ok([pidfd]) => process::check_pidfd(&pidfd, successor.pid)
                .and_then(|()| Peer::new(pidfd))
                .map(Some),
            Err(none) if none.is_empty() && missing == 1 => {
                tracing::warn!("no descriptor left to watch the successor by");
                Ok(None)
            }
            Err(_) => return Err("a successor without its one descriptor".to_owned()),
        };
        let peer = peer.map_err(|e| format!("cannot watch the successor: {e}"))?;
        self.link.succeed(peer);
        tracing::info!(
            reload = self.reload,
            generation = successor.generation,
            pid = successor.pid,
            "draining into a later generation"
        );
        self.successor = successor;
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let pidfd = self.child.as_fd().try_clone_to_owned();
            self.reaper = pidfd.and_then(Peer::new).ok();
        }
        Ok(())
    }

    /// How the child ended, in words.
    fn obituary(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => process::describe_exit(status),
            // Somebody else has reaped it.
            Ok(None) | Err(_) => "has ended".to_owned(),
        }
    }

    /// Feeds the machine and carries out what it says.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Effect> {
        tracing::debug!(reload = self.reload, ?event, state = ?self.machine.state(), "parent");
        let limit = self.limit(&event);
        let was_failing = self.machine.phase() == "failing";
        let actions = self.machine.on(event);
        if !was_failing && self.machine.phase() == "failing" {
            self.overstepped = limit;
        }
        self.perform(actions)
    }

    fn perform(&mut self, actions: Vec<Action>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for action in actions {
            if let Err(reason) = self.act(action, &mut effects) {
                // It could not be said: the machine decides what that means.
                let _ = self.inbox_tx.send(Inner::Event(Event::Broken(reason)));
            }
        }
        effects
    }

    fn act(&mut self, action: Action, effects: &mut Vec<Effect>) -> Result<(), String> {
        match action {
            Action::Phase(phase) => self.tell_phase(phase),
            Action::SendOffer { version } => return self.send_offer(version),
            Action::TakeSnapshot => self.take_snapshot(),
            Action::SendState => {
                if let Some((manifest, memfd)) = self.snapshot.take() {
                    return self.say(&Message::State(manifest), vec![Arc::new(memfd)]);
                }
            }
            Action::Retire => self.retire(),
            Action::SendCommit => {
                let (changes, fds) = changes::pack(self.shared.deltas())?;
                let commit = Commit {
                    changes,
                    waiting_for: self.shared.live.connections(),
                    older: self.shared.draining(),
                };
                return self.say(&Message::Commit(commit), fds);
            }
            Action::PauseAccepting => {
                self.serving_us = crate::micros(self.started.elapsed());
                self.shared.set_phase(Phase::Paused);
                self.shared.pause_control();
            }
            Action::AskHealth => {
                self.asked += 1;
                let question = Health::Ask {
                    number: self.asked,
                    waiting_for: self.shared.live.connections(),
                };
                return self.say(&Message::Health(question), vec![]);
            }
            Action::SendConfirm => {
                // What the child says to the service manager from here on must find it named.
                self.shared.notify.succeeded_by(self.successor);
                return self.say(
                    &Message::Confirm {
                        serving_us: self.serving_us,
                    },
                    vec![],
                );
            }
            Action::ReleaseOwnership => self.release(),
            Action::StartDrain => self.start_drain(),
            Action::DrainAlone { child_is_dead } => self.drain_alone(child_is_dead),
            Action::SayDraining => {
                self.said = self.waiting_for();
                let draining = Message::Draining {
                    waiting_for: self.said,
                    named: self.shared.live.waits_for(MAX_WAITING_NAMED),
                    older: self.shared.draining(),
                };
                return self.say(&draining, vec![]);
            }
            Action::SendBye => return self.say(&Message::Bye(self.shared.live.counts()), vec![]),
            Action::ResumeAccepting => self.shared.set_phase(Phase::Serving),
            Action::SendRevoke(reason) => {
                tracing::warn!(
                    reload = self.reload,
                    child = self.pid(),
                    reason,
                    "revoking the child; this generation accepts again"
                );
                self.intake = Some(Intake::new("the child"));
                return self.say(&Message::Revoke(reason), vec![]);
            }
            Action::TakeBack => {
                self.shared.publish_or_log();
                self.shared.call(Turn::Revoked);
            }
            Action::SendAbort(reason) => {
                if *self.machine.state() == State::Discarding {
                    self.serving_us = crate::micros(self.started.elapsed());
                    // That it goes, and why, is no news.
                    self.capture = None;
                }
                return self.say(&Message::Abort(reason), vec![]);
            }
            Action::SendStop(reason) => return self.say(&Message::Stop(reason), vec![]),
            Action::Kill => {
                if let Err(error) = self.child.kill() {
                    tracing::error!(%error, child = self.pid(), "cannot kill the child");
                }
            }
            Action::Failed(failure) => {
                self.failing = Some(failure);
                self.failed();
            }
            Action::Discarded => self.discarded(),
            Action::StopSelf(reason) => {
                if self.transfer.is_none() {
                    self.tell_failed("stopping", &reason);
                }
                effects.push(Effect::StopSelf(reason));
            }
            Action::Start(timer) => self.link.timers.start(timer, self.duration(timer)),
            Action::Cancel(timer) => self.link.timers.cancel(timer),
            Action::Ended => {
                let effect = self.ended();
                effects.push(effect);
            }
        }
        Ok(())
    }

    fn say(&mut self, message: &Message, fds: Vec<Arc<OwnedFd>>) -> Result<(), String> {
        self.link.say(message, fds).map_err(|e| e.to_string())
    }

    fn duration(&self, timer: Timer) -> Duration {
        let settings = &self.shared.settings;
        match timer {
            Timer::Ready => settings
                .ready_timeout
                .saturating_sub(self.started.elapsed()),
            Timer::Retire => protocol::RETIRE_TIMEOUT,
            Timer::Accept => protocol::ACCEPT_TIMEOUT,
            Timer::Probation => settings.probation,
            Timer::Confirm => Duration::ZERO,
            Timer::Heartbeat => protocol::HEARTBEAT,
            Timer::Silence => protocol::SILENCE_TIMEOUT,
            Timer::Goodbye => protocol::GOODBYE_TIMEOUT,
            // The child must have had its own time.
            Timer::Leave if self.intake.is_some() => {
                protocol::leave_timeout(settings.drain_timeout) + protocol::GOODBYE_TIMEOUT
            }
            Timer::Leave => settings.drain_timeout + protocol::GOODBYE_TIMEOUT,
            Timer::Successor => protocol::SUCCESSOR_TIMEOUT,
            Timer::Drain => settings.drain_timeout.max(MIN_DRAIN),
        }
    }

    /// The deadline that has passed, as whoever set it knows it.
    fn limit(&self, event: &Event) -> Option<Duration> {
        match event {
            Event::Timer(Timer::Ready) => Some(self.shared.settings.ready_timeout),
            Event::Timer(timer) => Some(self.duration(*timer)),
            _ => None,
        }
    }

    fn tell_phase(&self, phase: &str) {
        let at_us = crate::micros(self.started.elapsed());
        tracing::info!(
            reload = self.reload,
            child = self.pid(),
            at_us,
            "reload: {phase}"
        );
        let probation = self.shared.settings.probation.as_millis();
        self.shared.news.tell(&News::Phase {
            reload: self.reload,
            phase: phase.to_owned(),
            pid: Some(self.pid()),
            at_us,
            lasts_ms: (phase == "probation").then(|| u64::try_from(probation).unwrap_or(u64::MAX)),
        });
    }

    fn send_offer(&mut self, version: u16) -> Result<(), String> {
        self.link.agree(version);
        let shared = &self.shared;
        let held = shared.listeners();
        let duplicate =
            |e: std::io::Error| format!("cannot duplicate a descriptor for the child: {e}");
        let mut fds = Vec::with_capacity(held.len() + 5);
        for listener in &held {
            fds.push(Arc::new(
                listener.as_fd().try_clone_to_owned().map_err(duplicate)?,
            ));
        }
        let ownership = shared.ownership_fds().map_err(duplicate)?;
        let has_pidfile = !ownership.is_empty();
        fds.extend(ownership);
        fds.push(Arc::new(
            std::io::stderr()
                .as_fd()
                .try_clone_to_owned()
                .map_err(duplicate)?,
        ));
        let capture = self
            .capture
            .as_ref()
            .ok_or("the child's stderr is closed")?;
        fds.push(Arc::new(capture.reader().map_err(duplicate)?));
        fds.push(Arc::new(process::own_pidfd().map_err(duplicate)?));
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let pidfile = shared.paths.as_ref().filter(|_| has_pidfile).map(|paths| {
            use std::os::unix::ffi::OsStrExt;
            paths.pidfile.as_os_str().as_bytes().to_vec()
        });
        let offer = Offer {
            reload: self.reload,
            parent: shared.identity(),
            listeners: held.iter().map(|l| l.describe()).collect(),
            pidfile,
            older: shared.draining(),
            ready_timeout_ms: millis(shared.settings.ready_timeout),
            drain_timeout_ms: millis(shared.settings.drain_timeout),
            probation_ms: millis(shared.settings.probation),
            last_reload: shared.news.memory(),
        };
        self.say(&Message::Offer(offer), fds)
    }

    fn take_snapshot(&self) {
        let shared = self.shared.clone();
        let inbox = self.inbox_tx.clone();
        tokio::spawn(async move {
            // One at a time: that of a reload that has failed meanwhile would take away what
            // this one's deltas count from.
            let _alone = shared.snapshot.lock().await;
            let sections = shared.sections();
            // The parent serves meanwhile: filling a memfd with 1 GiB takes half a second.
            let taken = match tokio::task::spawn_blocking(move || Snapshot::take(&sections)).await {
                Ok(taken) => taken.map_err(|e| crate::words(&e)),
                Err(panic) => Err(format!("taking the snapshot failed: {panic}")),
            };
            if let Err(unheard) = inbox.send(Inner::Snapshot(taken)) {
                // The reload has failed meanwhile. Whoever lets go of the memfd waits until it is freed.
                tokio::task::spawn_blocking(move || drop(unheard));
            }
        });
    }

    fn retire(&self) {
        let inbox = self.inbox_tx.clone();
        let retired = self.shared.call(Turn::Retired);
        tokio::spawn(async move {
            // A hook that panicked has ended, too.
            let _ = retired.await;
            let _ = inbox.send(Inner::Event(Event::Retired));
        });
    }

    /// From here on the child alone is the service.
    fn release(&self) {
        self.shared.set_removed(self.prepared.removed.clone());
        self.shared.release();
    }

    fn start_drain(&mut self) {
        let shared = &self.shared;
        let from = shared.identity();
        let to = self.successor;
        // It is the service now, whatever becomes of us.
        self.child.disarm();
        self.link.expect_successor();
        shared.live.leave();
        self.transfer = Some(Transfer::new());
        self.link
            .timers
            .start(Timer::Drain, shared.settings.drain_timeout.max(MIN_DRAIN));
        shared.set_phase(Phase::HandingOver);
        // The child's `status` names us at once.
        let _ = self
            .inbox_tx
            .send(Inner::Event(Event::Timer(Timer::Heartbeat)));
        tracing::info!(
            reload = self.reload,
            generation = to.generation,
            pid = to.pid,
            serving_us = self.serving_us,
            connections = shared.live.connections(),
            "the new generation serves; draining"
        );
        let listeners = self.listener_changes();
        let serving_us = self.serving_us;
        shared.news.reloaded(
            self.reload,
            Outcome::Confirmed {
                from,
                to,
                serving_us,
                listeners,
            },
        );
    }

    fn listener_changes(&self) -> ListenerChanges {
        let Prepared {
            kept,
            added,
            removed,
        } = &self.prepared;
        ListenerChanges::new(kept, added, removed)
    }

    fn drain_alone(&mut self, child_is_dead: bool) {
        tracing::error!(
            reload = self.reload,
            child = self.pid(),
            "the successor is gone; finishing without one"
        );
        self.shared.set_phase(Phase::Finishing);
        if let Some(transfer) = &mut self.transfer {
            transfer.continue_alone("the successor is gone", child_is_dead);
        }
    }

    /// The drain deadline: what is under way is cut. A second later nothing is waited for any more.
    fn cut(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        if self.shared.has_upstream() {
            // What an older generation passes on is younger than our deadline; its own is earlier. But a
            // successor that has not taken its channel by now will not.
            self.is_late = true;
            self.link.timers.start(Timer::Drain, protocol::HEARTBEAT);
        } else if *self.shared.phase.borrow() == Phase::Cut {
            transfer.give_up();
        } else {
            tracing::warn!(
                connections = self.shared.live.connections(),
                "drain deadline: cutting what is under way"
            );
            transfer.abandon_unacked();
            self.shared.set_phase(Phase::Cut);
            self.link.timers.start(Timer::Drain, CUT_GRACE);
        }
    }

    /// After a panic on the way out of a reload that has failed: what it left undone. Each step may be done twice; a second
    /// panic in the same place is left where it is.
    pub(crate) fn fail_once_more(&mut self) -> Option<Effect> {
        if *self.machine.state() != State::Ended || self.transfer.is_some() {
            return None;
        }
        let _ = catch_unwind(AssertUnwindSafe(|| self.failed()));
        Some(Effect::Ended(None))
    }

    /// Puts everything back, and says why. What others wait for comes first, and the log last: it is an embedder's code.
    fn failed(&mut self) {
        let Some(Failure {
            phase,
            mut reason,
            undo,
        }) = self.failing.clone()
        else {
            return;
        };
        if let Some(limit) = self.overstepped {
            reason.push_str(&format!(" (limit: {limit:?})"));
        }
        // First of all: nobody accepts.
        if undo >= Undo::Accepting {
            self.shared.set_phase(Phase::Serving);
        }
        if undo >= Undo::Ownership {
            self.shared.publish_or_log();
        }
        self.forget_traces();
        if undo >= Undo::Retired {
            self.shared.call(Turn::Revoked);
        }
        if let Some(mut intake) = self.intake.take() {
            intake.give_all(&self.shared);
        }
        if !self.machine.is_dry_run() {
            self.shared
                .notify
                .reload_failed(self.reload, phase, &reason);
        }
        self.tell_failed(phase, &reason);
        self.failing = None;
        tracing::error!(
            reload = self.reload,
            child = self.pid(),
            phase,
            reason,
            dry_run = self.machine.is_dry_run(),
            "reload failed; this generation serves on"
        );
    }

    fn tell_failed(&mut self, phase: &str, reason: &str) {
        let captured = self.capture.take().map(Capture::finish);
        let stderr = captured.map(|captured| captured.lines).unwrap_or_default();
        let (phase, reason) = (phase.to_owned(), reason.to_owned());
        if self.machine.is_dry_run() {
            let outcome = DryRun::Failed {
                phase,
                reason,
                stderr,
            };
            return self.shared.news.dry_run(self.reload, outcome);
        }
        let outcome = Outcome::Failed {
            phase,
            reason,
            stderr,
        };
        self.shared.news.reloaded(self.reload, outcome);
    }

    /// What a child leaves behind that has not become the service.
    fn forget_traces(&self) {
        self.shared.forget_pidfile();
        self.shared.forget_pidfile_of(self.pid());
        // It may have raised a backlog: see `listeners::reconcile`.
        for listener in self.shared.listeners() {
            if let Err(error) = listener.settle() {
                tracing::warn!(listener = listener.name(), %error, "cannot set the backlog");
            }
        }
    }

    /// The end of a dry run that has succeeded.
    fn discarded(&mut self) {
        self.forget_traces();
        tracing::info!(
            reload = self.reload,
            child = self.pid(),
            build = self.build,
            ready_us = self.serving_us,
            "dry run: the child was ready, and has gone"
        );
        let outcome = DryRun::Ready {
            ready_us: self.serving_us,
            build: Builds {
                from: self.shared.settings.build.clone(),
                to: self.build.clone(),
            },
            listeners: self.listener_changes(),
        };
        self.shared.news.dry_run(self.reload, outcome);
    }

    fn ended(&mut self) -> Effect {
        let report = self.transfer.is_some().then(|| {
            let connections = self.shared.live.counts();
            let at_us = crate::micros(self.started.elapsed());
            self.shared
                .news
                .drained(self.reload, at_us, connections.clone());
            Report {
                connections,
                successor: Some(self.successor),
            }
        });
        Effect::Ended(report)
    }

    /// Writes the last words before the process ends.
    pub(crate) async fn flush(&mut self) {
        self.link.flush(FLUSH_PATIENCE).await;
    }
}

async fn ended(process: Option<&Peer>) {
    match process {
        Some(process) => process.died().await,
        None => std::future::pending().await,
    }
}

/// Reads the child's stderr. Cancel safe.
async fn pump(capture: &mut Option<Capture>) -> Infallible {
    match capture {
        Some(capture) => capture.pump().await,
        None => std::future::pending().await,
    }
}
