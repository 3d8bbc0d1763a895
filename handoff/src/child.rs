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

use tokio::sync::oneshot;

use crate::{
    changes,
    connections::{self, Unpacked},
    control::{
        self, Outcome,
        message::{ConnectionCounts, Generation, ListenerChanges},
    },
    failpoint::Side,
    link::{Heard, Link, Peer},
    listeners::Listener,
    pidfile::Lock,
    process::{self, Signal},
    protocol::{
        self, Timer,
        child::{Action, Child, Event, State},
        drain::Sequence,
    },
    shared::{Adopted, Phase, Shared, Turn},
    state::{Deltas, Snapshot},
    wire::{Batch, BatchAck, Health, Hello, Message, Offer, Older, Prepared, Rest, VERSIONS},
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
        shared.set_upstream(true);
        let mut driver = Self {
            link: Link::new(Side::Child, channel, parent)?,
            shared,
            machine,
            offered: Some(offered),
            source: Some(source),
            offer: None,
            listeners: Vec::new(),
            stderr: None,
            prepared: Prepared::default(),
            snapshot: None,
            changes: Deltas::default(),
            serving_us: 0,
            asked: 0,
            sequence: Sequence::default(),
            orphaned: false,
            is_final: false,
        };
        // The first actions have no effect on the process as a whole.
        let _ = driver.perform(actions);
        Ok(driver)
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
            State::Serving | State::Ended { .. } => None,
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
            let heard = self.link.next().await;
            if let Some(event) = self.translate(heard) {
                return event;
            }
        }
    }

    fn translate(&mut self, heard: Heard) -> Option<Event> {
        let received = match heard {
            Heard::Message(received) => *received,
            Heard::Broken(reason) => return Some(Event::Broken(reason)),
            Heard::Died => return Some(Event::ParentDied),
            Heard::Timer(timer) => return Some(Event::Timer(timer)),
        };
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
            Message::Commit(changes) => match changes::unpack(changes, fds) {
                Ok(deltas) => {
                    self.changes = deltas;
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
            Message::Draining { waiting_for, older } => {
                self.note_draining(waiting_for, older);
                Event::Heard
            }
            Message::Bye(counts) => {
                if let Some(offer) = &self.offer {
                    tracing::info!(
                        reload = offer.reload,
                        parent = offer.parent.pid,
                        moved = counts.moved,
                        drained = counts.drained,
                        cut = counts.cut,
                        "the parent has finished"
                    );
                    self.shared.news.drained(offer.reload, 0, counts);
                }
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
        let parent =
            process::Parent::from_fd(next()?, offer.parent.pid).map_err(|e| crate::words(&e))?;
        let parent = parent.as_fd().try_clone_to_owned().and_then(Peer::new);
        self.link.peer = parent.map_err(|e| format!("cannot watch the parent: {e}"))?;
        self.shared.set_generation(offer.parent.generation + 1);
        self.shared.reload.store(offer.reload, Ordering::Release);
        self.offer = Some(offer);
        Ok(())
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
            connections::unpack(batch, fds, missing, &self.shared.settings.kinds)?;
        if !refused.is_empty() {
            tracing::warn!(
                refused = refused.len(),
                reason = refused[0].1,
                "connections stay with the parent"
            );
        }
        // "I own these": said before anything is done with them.
        self.say(&Message::ConnAck(BatchAck { number, refused }), vec![])?;
        for connection in adopted {
            let guard = self.shared.live.connection();
            // Fails only if nobody will ever serve them: then they close here.
            let _ = self.shared.adopted.send(Adopted { connection, guard });
        }
        Ok(())
    }

    /// Feeds the machine and carries out what it says.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Effect> {
        tracing::debug!(?event, state = ?self.machine.state(), "child");
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
        self.shared.set_phase(Phase::Serving);
        self.shared.call(Turn::Committed);
    }

    fn note_draining(&self, waiting_for: u64, older: Vec<Older>) {
        let Some(offer) = &self.offer else { return };
        let mut draining = vec![Older {
            process: offer.parent,
            waiting_for,
        }];
        draining.extend(older);
        self.shared.set_draining(draining);
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
        if !self.orphaned {
            self.note_draining(0, offer.older.clone());
        }
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
        let Some(offer) = &self.offer else { return };
        let Generation { generation, pid } = offer.parent;
        let draining = self.shared.draining();
        let lost = ConnectionCounts {
            cut: draining.first().map_or(0, |parent| parent.waiting_for),
            named: vec![format!(
                "generation {generation}, pid {pid}, crashed: what it still served is lost"
            )],
            ..ConnectionCounts::default()
        };
        self.shared.news.drained(offer.reload, 0, lost);
    }

    fn parent_gone(&mut self, crashed: bool, effects: &mut Vec<Effect>) {
        // First of all: until the commit stderr is a pipe that the parent read, and whoever writes to it
        // now may panic.
        self.adopt_stderr();
        self.orphaned = crashed && !self.is_final;
        if crashed {
            tracing::error!("the parent has crashed; what it still served is lost");
            if self.is_final {
                self.tell_what_is_lost();
            }
        }
        self.shared.set_draining(Vec::new());
        self.shared.set_upstream(false);
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
