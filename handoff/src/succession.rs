//! The one task that decides: it listens to the parent, to the child, to signals and to the control socket,
//! and to nothing else at the same time, so that no two of them can race.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    child::{self, ChildDriver},
    control::{
        Event as News, Incoming, Outcome, Reply, Request,
        message::{DrainingStatus, DryRun, ListenerStatus, ProbationStatus, ReloadStatus, Status},
    },
    parent::{self, Begin, ParentDriver},
    process::Signal,
    protocol::{CUT_GRACE, child::Event as ChildEvent, parent::Event as ParentEvent},
    shared::{NotMoved, PassRequest, Phase, Receivers, Report, Shared, Turn},
    signals::{self, Signals},
    wire::{Decision, MAX_DRAINING, Older, Prepared},
};

/// What the application says while it starts.
#[derive(Debug)]
pub(crate) enum Command {
    /// It has its listeners, and has bound what is new.
    Prepared(Result<Prepared, String>),
    /// It has its state and is well: serve when allowed.
    Ready(Result<(), String>, oneshot::Sender<()>),
}

/// A process that panics more often than that does nothing else.
const MAX_PANICS: u32 = 3;

/// In words, for whoever asked for the reload.
const PANICKED: &str = "the succession has panicked, which is a bug; the log has the place";

/// A child that runs, or why it does not.
type Started = Result<Box<ParentDriver>, (String, Option<mpsc::UnboundedReceiver<PassRequest>>)>;

/// A child that is being started.
type Starting = JoinHandle<Started>;

/// The graceful end of this process without a successor.
#[derive(Debug)]
struct Ending {
    deadline: Instant,
    /// An operator has told this process, and not only one that tells the others.
    was_told: bool,
}

/// See the module.
pub(crate) struct Succession {
    shared: Arc<Shared>,
    signals: Signals,
    commands: mpsc::UnboundedReceiver<Command>,
    incoming: mpsc::Receiver<Incoming>,
    pass: Option<mpsc::UnboundedReceiver<PassRequest>>,
    upstream: Option<ChildDriver>,
    /// Older generations that drain into this one, by channels that came from the parent.
    elders: Vec<ChildDriver>,
    downstream: Option<ParentDriver>,
    starting: Option<(Begin, Starting)>,
    /// A reload was asked for by a signal while it could not be: it follows.
    latched: bool,
    ending: Option<Ending>,
    serving: Option<oneshot::Sender<()>>,
    /// Nothing may live here any more.
    none: watch::Receiver<()>,
    /// The last child that did not become the service: it may have put its name into the pidfile.
    last_child: Option<u32>,
    /// How often a service manager hears of this task.
    heartbeat: Option<Interval>,
    /// How it ends, once that is decided.
    result: Option<Result<Report, String>>,
}

enum Woken {
    Upstream(ChildEvent),
    /// The elder at this place.
    Elder(usize, ChildEvent),
    Downstream(ParentEvent),
    Started(Started),
    Signal(signals::Request),
    Asked(Incoming),
    Command(Command),
    Deadline,
    /// The service manager wants to hear that this task lives.
    Heartbeat,
    Idle,
    /// The application has dropped its handle without having served.
    Abandoned,
}

impl Succession {
    pub(crate) fn new(
        shared: Arc<Shared>,
        signals: Signals,
        commands: mpsc::UnboundedReceiver<Command>,
        receivers: (
            mpsc::Receiver<Incoming>,
            mpsc::UnboundedReceiver<PassRequest>,
        ),
        upstream: Option<ChildDriver>,
    ) -> Self {
        let (incoming, pass) = receivers;
        shared.set_upstream(upstream.is_some());
        let heartbeat = shared.notify.heartbeat().map(|period| {
            let mut heartbeat = interval(period);
            // After a sleep, what counts is the next time.
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat
        });
        Self {
            none: shared.live.none(),
            heartbeat,
            shared,
            signals,
            commands,
            incoming,
            pass: Some(pass),
            upstream,
            elders: Vec::new(),
            downstream: None,
            starting: None,
            latched: false,
            ending: None,
            serving: None,
            last_child: None,
            result: None,
        }
    }

    /// Runs until this process has nothing more to do.
    pub(crate) async fn run(mut self) {
        let mut panics = 0;
        let result = loop {
            match unless_panicked(self.turn()).await {
                Some(None) => {}
                Some(Some(result)) => break result,
                None => {
                    panics += 1;
                    self.survive(panics);
                }
            }
        };
        self.end(result).await;
    }

    async fn turn(&mut self) -> Option<Result<Report, String>> {
        if self.result.is_some() {
            return self.result.take();
        }
        let woken = self.next().await;
        self.handle(woken)
    }

    /// A panic in here is a bug of ours, and costs as little as it can. Where another process is the service, or is about
    /// to be, that one sees our death and goes on; a process in doubt must not stand in its way. Otherwise this process is
    /// the service: a reload that is under way fails like one of which the child broke the protocol, and what older
    /// generations still have to pass on they finish themselves.
    fn survive(&mut self, panics: u32) {
        let phase = *self.shared.phase.borrow();
        let may_not_serve = self.upstream.as_ref().is_some_and(|up| !up.may_serve());
        let is_judged = phase != Phase::Starting && may_not_serve || phase == Phase::Returning;
        let is_replaced = self
            .downstream
            .as_ref()
            .is_some_and(ParentDriver::is_past_all);
        if is_judged || is_replaced || panics > MAX_PANICS {
            std::process::abort();
        }
        if phase == Phase::Starting {
            // The application ends the process, and says why.
            self.result = Some(Err(PANICKED.to_owned()));
            return;
        }
        tracing::error!("the succession has panicked, which is a bug; this process serves on");
        // A parent that has not said its last word sees the end of the channel, and kills us.
        for mut up in self.elders.drain(..).chain(self.upstream.take()) {
            up.sever();
        }
        if let Some(down) = &mut self.downstream {
            let mut effects = down.handle(ParentEvent::Broken(PANICKED.to_owned()));
            effects.extend(down.fail_once_more());
            self.downstream_effects(effects);
        }
        self.settle_upstream();
        // The application may not have heard it yet.
        self.tell_serving();
    }

    async fn next(&mut self) -> Woken {
        tokio::select! {
            biased;
            () = tick(&mut self.heartbeat) => Woken::Heartbeat,
            event = next_of(&mut self.upstream) => Woken::Upstream(event),
            (place, event) = next_of_any(&mut self.elders) => Woken::Elder(place, event),
            event = next_of_child(&mut self.downstream) => Woken::Downstream(event),
            started = started(&mut self.starting) => Woken::Started(started),
            signal = self.signals.next() => Woken::Signal(signal),
            command = self.commands.recv(), if *self.shared.phase.borrow() == Phase::Starting => {
                command.map_or(Woken::Abandoned, Woken::Command)
            }
            Some(asked) = self.incoming.recv() => Woken::Asked(asked),
            () = deadline(self.ending.as_ref()) => Woken::Deadline,
            _ = self.none.changed(), if self.ending.is_some() => Woken::Idle,
            () = bounce(&mut self.pass), if self.takes_back() => Woken::Idle,
        }
    }

    /// Whether what was given up when there was somebody to take it is this process's own.
    fn takes_back(&self) -> bool {
        matches!(
            *self.shared.phase.borrow(),
            Phase::Serving | Phase::Stopping | Phase::Cut
        )
    }

    /// `Some` when the process has nothing more to do.
    fn handle(&mut self, woken: Woken) -> Option<Result<Report, String>> {
        match woken {
            Woken::Upstream(event) => {
                let effects = self
                    .upstream
                    .as_mut()
                    .map(|up| up.handle(event))
                    .unwrap_or_default();
                if let Some(reason) = self.upstream_effects(effects) {
                    return Some(Err(reason));
                }
            }
            Woken::Elder(place, event) => {
                let effects = self.elders[place].handle(event);
                if let Some(reason) = self.upstream_effects(effects) {
                    return Some(Err(reason));
                }
            }
            Woken::Downstream(event) => {
                let effects = self
                    .downstream
                    .as_mut()
                    .map(|down| down.handle(event))
                    .unwrap_or_default();
                if let Some(report) = self.downstream_effects(effects) {
                    return Some(Ok(report));
                }
                self.forward_latched();
            }
            Woken::Started(result) => self.started(result),
            Woken::Signal(request) => self.signalled(request),
            Woken::Asked(incoming) => self.asked(incoming),
            Woken::Command(command) => {
                if let Some(reason) = self.command(command) {
                    return Some(Err(reason));
                }
            }
            Woken::Deadline => self.deadline(),
            Woken::Heartbeat => self.shared.notify.alive(),
            Woken::Idle => {}
            Woken::Abandoned => {
                let gave_up =
                    Command::Prepared(Err("the application gave up its start".to_owned()));
                if let Some(reason) = self.command(gave_up) {
                    return Some(Err(reason));
                }
            }
        }
        self.pass_on();
        self.finished_stopping()
    }

    // The parent.

    fn upstream_effects(&mut self, effects: Vec<child::Effect>) -> Option<String> {
        for effect in effects {
            match effect {
                child::Effect::Serving => self.tell_serving(),
                child::Effect::StopSelf(reason) => self.begin_stop(&reason),
                // An orphan's driver goes on until it serves: the application's words go through it.
                child::Effect::ParentGone => {}
                child::Effect::Exit(reason) => return Some(reason),
                child::Effect::Returning => self.begin_return(),
                child::Effect::Resumed => {
                    self.pass = self.upstream.as_mut().and_then(ChildDriver::take_pass);
                }
                child::Effect::PassOn(inherited, fds) => {
                    if let Some(down) = &mut self.downstream {
                        down.pass_channel(inherited, fds);
                    }
                }
            }
        }
        self.settle_upstream();
        // A reload that was latched during probation can begin now.
        self.reload_if_latched();
        None
    }

    /// What the application gives up from here on goes to the parent, and so does a reload that a signal asked for.
    fn begin_return(&mut self) {
        let Some(up) = &mut self.upstream else { return };
        if let Some(pass) = self.pass.take() {
            up.return_by(pass);
        }
        if std::mem::take(&mut self.latched) {
            up.forward(Signal::Usr2);
        }
    }

    /// All conversations with generations that drain into this one.
    fn conversations(&mut self) -> impl Iterator<Item = &mut ChildDriver> {
        self.upstream.iter_mut().chain(&mut self.elders)
    }

    /// Takes in what came with the last event, and forgets whom there is nothing more to hear from.
    fn settle_upstream(&mut self) {
        let inherited: Vec<ChildDriver> = self
            .conversations()
            .flat_map(ChildDriver::take_inherited)
            .collect();
        self.elders.extend(inherited);
        self.upstream.take_if(|up| up.is_ended());
        self.elders.retain(|elder| !elder.is_ended());
        if self.ending.is_some() {
            // They came too late to be told with the others.
            let reason = "the service is stopping".to_owned();
            for elder in &mut self.elders {
                elder.handle(ChildEvent::Stop(reason.clone()));
            }
        }
        let conversations = || self.elders.iter().chain(&self.upstream);
        // The youngest first; of two who speak of one, the one that speaks with it is believed.
        let mut draining: Vec<Older> = conversations().filter_map(ChildDriver::direct).collect();
        draining.extend(conversations().flat_map(ChildDriver::hearsay));
        draining.sort_by_key(|older| std::cmp::Reverse(older.process.generation));
        draining.dedup_by_key(|older| older.process.generation);
        self.shared
            .live
            .set_older(draining.iter().map(|older| older.waiting_for).sum());
        // A parent that may come back does not drain.
        if self.upstream.as_ref().is_some_and(|up| !up.is_final()) {
            draining.clear();
        }
        self.shared.set_draining(draining);
        self.shared
            .set_upstream(self.upstream.is_some() || !self.elders.is_empty());
    }

    /// Once this process has a child that is final, its older generations drain into that one.
    fn pass_on(&mut self) {
        let Some(down) = self.downstream.as_mut().filter(|d| d.is_confirmed()) else {
            return;
        };
        let (passed, can_pass_on) = (down.take_passed(), down.can_pass_on());
        let mut effects = Vec::new();
        for driver in self.conversations() {
            let outcome = passed.iter().find(|(older, _)| driver.is_with(*older));
            let event = match outcome {
                Some((_, true)) => ChildEvent::Passed,
                Some((_, false)) => ChildEvent::NotPassed,
                None if driver.is_sent() && !can_pass_on => ChildEvent::Forsaken,
                // A refusal is final: it would be refused again.
                None if driver.is_confirmed() && can_pass_on && !driver.was_refused() => {
                    effects.extend(driver.pass_on());
                    continue;
                }
                None => continue,
            };
            effects.extend(driver.handle(event));
        }
        if !effects.is_empty() {
            self.upstream_effects(effects);
        }
    }

    fn tell_serving(&mut self) {
        if let Some(serving) = self.serving.take()
            && serving.send(()).is_err()
        {
            self.stop("the application has given up its start");
        }
    }

    // The application.

    fn command(&mut self, command: Command) -> Option<String> {
        match (command, &mut self.upstream) {
            (Command::Prepared(result), Some(upstream)) => {
                let event = result.map(|prepared| upstream.prepared = prepared);
                let effects = upstream.handle(ChildEvent::Prepared(event));
                self.upstream_effects(effects)
            }
            (Command::Ready(result, serving), Some(upstream)) => {
                self.serving = Some(serving);
                // What can fail fails now, while the parent serves.
                let result = result.and_then(|()| {
                    let prepared = self.shared.prepare_pidfile();
                    prepared.map_err(|e| crate::words(&e))
                });
                let effects = upstream.handle(ChildEvent::Restored(result));
                self.upstream_effects(effects)
            }
            (Command::Prepared(result), None) => result.err(),
            (Command::Ready(Err(reason), _), None) => Some(reason),
            (Command::Ready(Ok(()), serving), None) => {
                self.serving = Some(serving);
                self.serve_first()
            }
        }
    }

    /// The first generation: there is nobody to wait for.
    fn serve_first(&mut self) -> Option<String> {
        if let Err(error) = self.shared.publish() {
            return Some(crate::words(&error));
        }
        self.shared.set_phase(Phase::Serving);
        self.shared.call(Turn::Committed);
        let (us, listeners) = (self.shared.identity(), self.shared.listeners());
        self.shared.notify.serves(us, &listeners, &[], false);
        self.tell_serving();
        self.reload_if_latched();
        None
    }

    // The child.

    /// Why a reload cannot begin now; `None` if it can.
    fn busy(&self) -> Option<String> {
        if self.ending.is_some() {
            return Some("the service is stopping".to_owned());
        }
        if let Some((begin, _)) = &self.starting {
            return Some(format!(
                "{} {}: the child is being started, {}",
                word(begin.dry_run),
                begin.reload,
                seconds(begin.started.elapsed())
            ));
        }
        if let Some(down) = &self.downstream {
            let (reload, pid) = (down.reload(), down.pid());
            if down.is_confirmed() {
                return Some(format!(
                    "reload {reload}: child {pid} serves already; this generation is draining"
                ));
            }
            return Some(format!(
                "{} {reload}: child {pid} is {}, {}",
                word(down.is_dry_run()),
                down.phase(),
                seconds(down.elapsed())
            ));
        }
        let draining = self.shared.draining();
        if draining.len() >= MAX_DRAINING
            && let Some(oldest) = draining.last()
        {
            return Some(format!(
                "{} older generations still drain, the oldest is generation {}, pid {}, which waits for {} \
                 connections: try again when it has gone",
                draining.len(),
                oldest.process.generation,
                oldest.process.pid,
                oldest.waiting_for,
            ));
        }
        self.upstream.as_ref().and_then(ChildDriver::blocks_reload)
    }

    fn begin_reload(&mut self, why: &str) {
        self.begin(why, false);
    }

    fn begin(&mut self, why: &str, dry_run: bool) {
        let reload = self.shared.reload.fetch_add(1, Ordering::AcqRel) + 1;
        let started = Instant::now();
        let begin = Begin {
            reload,
            started,
            dry_run,
        };
        tracing::info!(
            reload,
            why,
            dry_run,
            generation = self.shared.identity().generation,
            "reload: starting"
        );
        let settings = &self.shared.settings;
        let at_most = settings.ready_timeout + settings.probation + 2 * settings.drain_timeout;
        if !dry_run {
            self.shared.notify.reloading(reload, at_most);
        }
        self.shared.news.tell(&News::Phase {
            reload,
            phase: "starting".to_owned(),
            pid: None,
            at_us: 0,
            lasts_ms: None,
        });
        let shared = self.shared.clone();
        let pass = self.pass.take();
        let runtime = tokio::runtime::Handle::current();
        let task = tokio::spawn(async move {
            let spawn = {
                let shared = shared.clone();
                tokio::task::spawn_blocking(move || ParentDriver::spawn(&shared, reload, &runtime))
            };
            match (spawn.await, pass) {
                (Ok(Ok(parts)), Some(pass)) => ParentDriver::new(shared, begin, parts, pass)
                    .map(Box::new)
                    .map_err(|(reason, pass)| (reason, Some(pass))),
                (Ok(Err(reason)), pass) => Err((reason, pass)),
                (Err(panic), pass) => Err((format!("starting the child failed: {panic}"), pass)),
                (_, None) => Err((
                    "this generation has passed its connections on already".to_owned(),
                    None,
                )),
            }
        });
        self.starting = Some((begin, task));
    }

    fn started(&mut self, result: Started) {
        let Some((begin, _)) = self.starting.take() else {
            return;
        };
        let reload = begin.reload;
        match result {
            Ok(driver) => {
                self.downstream = Some(*driver);
                // A stop that came meanwhile is said now.
                if self.ending.is_some() {
                    let event = ParentEvent::Stop("the service is stopping".to_owned());
                    let effects = self
                        .downstream
                        .as_mut()
                        .map(|down| down.handle(event))
                        .unwrap_or_default();
                    self.downstream_effects(effects);
                }
            }
            Err((reason, pass)) => {
                self.pass = pass;
                self.shared.forget_pidfile();
                let dry_run = begin.dry_run;
                tracing::error!(
                    reload,
                    reason,
                    dry_run,
                    "reload failed; this generation serves on"
                );
                let (phase, stderr) = ("starting".to_owned(), vec![]);
                if dry_run {
                    let outcome = DryRun::Failed {
                        phase,
                        reason,
                        stderr,
                    };
                    self.shared.news.dry_run(reload, outcome);
                } else {
                    self.shared.notify.reload_failed(reload, &phase, &reason);
                    let outcome = Outcome::Failed {
                        phase,
                        reason,
                        stderr,
                    };
                    self.shared.news.reloaded(reload, outcome);
                }
                self.reload_if_latched();
            }
        }
    }

    fn downstream_effects(&mut self, effects: Vec<parent::Effect>) -> Option<Report> {
        for effect in effects {
            match effect {
                parent::Effect::StopSelf(reason) => {
                    self.stop_upstream(&reason);
                    self.begin_stop(&reason);
                }
                parent::Effect::Ended(Some(report)) => return Some(report),
                parent::Effect::Ended(None) => {
                    if let Some(mut driver) = self.downstream.take() {
                        self.last_child = Some(driver.pid());
                        self.pass = driver.take_pass();
                    }
                    self.reload_if_latched();
                }
            }
        }
        None
    }

    fn reload_if_latched(&mut self) {
        if self.latched && *self.shared.phase.borrow() == Phase::Serving && self.busy().is_none() {
            self.latched = false;
            self.begin_reload("a signal that came during the last reload");
        }
    }

    /// The reload that a signal asked for meanwhile is the successor's to make.
    fn forward_latched(&mut self) {
        if let Some(down) = &self.downstream
            && down.is_confirmed()
            && !down.is_forsaken()
            && std::mem::take(&mut self.latched)
        {
            down.forward(Signal::Usr2);
        }
    }

    // Those who ask.

    fn signalled(&mut self, request: signals::Request) {
        match request {
            signals::Request::Reload(name) if self.ending.is_some() => {
                tracing::info!("{name}: not heeded, the service is stopping");
            }
            signals::Request::Reload(name) => match (&self.downstream, self.busy()) {
                (Some(down), _) if down.is_forsaken() => self.latched = true,
                (Some(down), _) if down.is_confirmed() => down.forward(Signal::Usr2),
                (_, Some(why)) => {
                    tracing::info!(why, "{name}: one further reload will follow");
                    self.latched = true;
                }
                (_, None) if *self.shared.phase.borrow() == Phase::Serving => {
                    self.begin_reload(name);
                }
                (_, None) => self.latched = true,
            },
            signals::Request::Stop(name) => match &mut self.ending {
                None => self.stop(name),
                Some(ending) if ending.was_told => {
                    tracing::warn!("a second request to stop: stopping at once");
                    self.cut();
                }
                // A service manager tells every process. This one has heard of it from another.
                Some(ending) => {
                    tracing::info!("{name}: stopping already");
                    ending.was_told = true;
                }
            },
            signals::Request::Quit => {
                self.stop("SIGQUIT");
                self.cut();
            }
        }
    }

    fn asked(&mut self, incoming: Incoming) {
        let Incoming { request, reply, .. } = incoming;
        match request {
            Request::Status => {
                reply.send(&News::Status(Box::new(self.status())));
            }
            Request::Reload => match self.busy() {
                Some(reason) => {
                    reply.send(&News::Refused { reason });
                }
                None => {
                    let next = self.shared.reload.load(Ordering::Acquire) + 1;
                    self.shared.news.watch(next, reply);
                    self.begin_reload("control socket");
                }
            },
            Request::DryRun => match self.busy() {
                Some(reason) => {
                    reply.send(&News::Refused { reason });
                }
                None => {
                    let next = self.shared.reload.load(Ordering::Acquire) + 1;
                    self.shared.news.watch(next, reply);
                    self.begin("control socket", true);
                }
            },
            Request::Outcome { reload } => self.outcome(reload, reply),
            Request::Confirm => self.decide(Decision::Confirm, reply),
            Request::Rollback => self.decide(Decision::Rollback, reply),
            Request::Stop => {
                reply.send(&News::Stopping {
                    process: self.shared.identity(),
                });
                self.stop("control socket");
                // The client's end of the socket is closed by our end.
                self.shared.news.subscribe(reply);
            }
            Request::Events => {
                // Who comes too late to hear it with the others is told now.
                if self.ending.is_some() {
                    reply.send(&News::Stopping {
                        process: self.shared.identity(),
                    });
                }
                self.shared.news.subscribe(reply);
            }
        }
    }

    /// Ends a probation: this process's own, by its parent's leave, or that of its child.
    fn decide(&mut self, decision: Decision, reply: Reply) {
        let judged = self.upstream.as_ref().and_then(ChildDriver::judge);
        if self.ending.is_none()
            && let (Some((_, reload)), Some(up)) = (judged, &mut self.upstream)
        {
            self.shared.news.follow(reload, reply, std::process::id());
            if let Err(error) = up.decide(decision) {
                // The parent is told by our silence.
                tracing::error!(error, "cannot speak to the parent");
            }
            return;
        }
        let own = self
            .downstream
            .as_mut()
            .filter(|down| down.is_on_probation());
        if let Some(down) = own {
            self.shared.news.follow(down.reload(), reply, down.pid());
            let effects = down.decide(decision);
            self.downstream_effects(effects);
            return;
        }
        let what = match decision {
            Decision::Confirm => "confirm",
            Decision::Rollback => "roll back",
        };
        let why = match (&self.downstream, self.shared.news.last()) {
            _ if self.ending.is_some() => "the service is stopping".to_owned(),
            (Some(down), _) => format!("reload {} is {}", down.reload(), down.phase()),
            (None, Some(last)) => match last.outcome {
                Outcome::Failed { .. } => format!("reload {} has failed", last.reload),
                Outcome::Confirmed { .. } => format!("reload {} is confirmed", last.reload),
            },
            (None, None) => "there was no reload".to_owned(),
        };
        reply.send(&News::Refused {
            reason: format!("there is nothing to {what}: no reload is on probation, {why}"),
        });
    }

    fn outcome(&mut self, reload: u64, reply: Reply) {
        let under_way = self
            .starting
            .as_ref()
            .map(|(begin, _)| begin.reload)
            .or(self.downstream.as_ref().map(ParentDriver::reload));
        // This process's own reload, while it is on probation: its end is not known yet.
        let own = self
            .upstream
            .as_ref()
            .is_some_and(|up| up.blocks_reload().is_some())
            && self.shared.reload.load(Ordering::Acquire) == reload;
        if self.shared.news.answer(reload, reply.clone()) {
            return;
        }
        // One by which an older generation leaves that still drains into this one: how it ended is known to it.
        let older = self.conversations().any(|driver| driver.is_of(reload));
        if under_way == Some(reload) || own || older {
            self.shared.news.watch(reload, reply);
        } else {
            reply.send(&News::Refused {
                reason: format!("no reload {reload} is known here"),
            });
        }
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let reload = match (&self.starting, &self.downstream) {
            (Some((begin, _)), _) => Some(ReloadStatus {
                reload: begin.reload,
                phase: "starting".to_owned(),
                pid: None,
                elapsed_ms: millis(begin.started.elapsed()),
                dry_run: begin.dry_run,
            }),
            (None, Some(down)) => Some(ReloadStatus {
                reload: down.reload(),
                phase: down.phase().to_owned(),
                pid: Some(down.pid()),
                elapsed_ms: millis(down.elapsed()),
                dry_run: down.is_dry_run(),
            }),
            (None, None) => None,
        };
        let draining = shared.draining().into_iter().map(|older| DrainingStatus {
            process: older.process,
            waiting_for: older.waiting_for,
            named: older.named,
        });
        Status {
            process: shared.identity(),
            build: shared.settings.build.clone(),
            phase: shared.phase.borrow().name().to_owned(),
            serving_for_ms: millis(shared.serving_for()),
            probation: self.upstream.as_ref().and_then(|up| {
                let ((parent, reload), left) = (up.judge()?, up.probation_left()?);
                Some(ProbationStatus {
                    reload,
                    parent,
                    left_ms: millis(left),
                })
            }),
            listeners: shared
                .listeners()
                .iter()
                .map(|l| ListenerStatus {
                    name: l.name().to_owned(),
                    address: l.address().to_string(),
                    backlog: l.backlog(),
                })
                .collect(),
            reload,
            last_reload: shared.news.last(),
            draining: draining.collect(),
            application: shared.report_application(),
        }
    }

    // The end.

    /// An operator's word. It is said to parent and child before anything else.
    fn stop(&mut self, why: &str) {
        let reason = format!("stopped by an operator ({why})");
        self.stop_upstream(&reason);
        if let Some(down) = &mut self.downstream {
            let effects = down.handle(ParentEvent::Stop(reason.clone()));
            self.downstream_effects(effects);
        }
        self.begin_stop(&reason);
        if let Some(ending) = &mut self.ending {
            ending.was_told = true;
        }
    }

    /// Says it to every generation that drains into this one.
    fn stop_upstream(&mut self, reason: &str) {
        let mut effects = Vec::new();
        for driver in self.conversations() {
            effects.extend(driver.handle(ChildEvent::Stop(reason.to_owned())));
        }
        if let Some(reason) = self.upstream_effects(effects) {
            self.result = Some(Err(reason));
        }
    }

    fn begin_stop(&mut self, reason: &str) {
        if self.ending.is_some() {
            return;
        }
        self.latched = false;
        let connections = self.shared.live.connections();
        tracing::info!(
            reason,
            connections,
            generation = self.shared.identity().generation,
            "stopping"
        );
        self.shared.live.leave();
        let drain_timeout = self.shared.settings.drain_timeout;
        self.shared
            .notify
            .stopping(reason, drain_timeout + CUT_GRACE);
        self.shared.news.tell(&News::Stopping {
            process: self.shared.identity(),
        });
        self.ending = Some(Ending {
            deadline: Instant::now() + drain_timeout,
            was_told: false,
        });
        if *self.shared.phase.borrow() == Phase::Starting {
            self.result.get_or_insert(Err(reason.to_owned()));
        }
        self.shared.set_phase(Phase::Stopping);
    }

    fn deadline(&mut self) {
        if *self.shared.phase.borrow() == Phase::Cut {
            self.result = Some(Ok(self.report()));
        } else {
            tracing::warn!(
                connections = self.shared.live.connections(),
                "drain deadline: cutting what is under way"
            );
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.shared.set_phase(Phase::Cut);
        if let Some(ending) = &mut self.ending {
            ending.deadline = Instant::now() + CUT_GRACE;
        }
    }

    fn report(&self) -> Report {
        Report {
            connections: self.shared.live.counts(),
            successor: None,
        }
    }

    /// Whether a stop has come to its end: nothing lives here, and the child has gone.
    fn finished_stopping(&mut self) -> Option<Result<Report, String>> {
        if self.result.is_some() {
            return self.result.take();
        }
        self.ending.as_ref()?;
        // With a successor, the driver's own drain comes to its end and says `Bye`.
        let child_gone = self.starting.is_none() && self.downstream.is_none();
        let all_gone = child_gone && self.shared.live.is_none() && !self.waits_for_elders();
        all_gone.then(|| Ok(self.report()))
    }

    /// Whoever watches the service takes the end of its main process for the end of all, and kills what is left.
    fn waits_for_elders(&self) -> bool {
        self.shared.notify.is_heard() && (self.upstream.is_some() || !self.elders.is_empty())
    }

    async fn end(mut self, result: Result<Report, String>) {
        let handed_over = matches!(&result, Ok(report) if report.successor.is_some());
        for driver in self.conversations() {
            driver.flush().await;
        }
        if let Some(down) = &mut self.downstream {
            down.flush().await;
        }
        if !handed_over {
            self.end_child();
            self.retract();
        }
        self.shared.flush_control().await;
        if handed_over {
            self.shared.notify.flush().await;
        }
        if let Ok(report) = &result {
            let counts = &report.connections;
            tracing::info!(
                moved = counts.moved,
                drained = counts.drained,
                cut = counts.cut,
                "finished"
            );
        }
        self.shared.end(result);
    }

    /// A child that has outstayed every deadline is killed: it holds the lock, and its name may be in the
    /// pidfile.
    fn end_child(&mut self) {
        if let Some(down) = self.downstream.take_if(|down| !down.is_confirmed()) {
            self.last_child = Some(down.pid());
            // Of a dry run, the end of the socket is the news.
            if !down.is_dry_run() {
                let outcome = Outcome::Failed {
                    phase: down.phase().to_owned(),
                    reason: "the service was stopped, and the child did not end in time".to_owned(),
                    stderr: vec![],
                };
                self.shared.news.reloaded(down.reload(), outcome);
            }
            // Killed and reaped by its drop.
        }
    }

    /// Removes what names the service, as far as it is this process's.
    fn retract(&self) {
        if self
            .downstream
            .as_ref()
            .is_some_and(ParentDriver::is_confirmed)
        {
            return;
        }
        match &self.upstream {
            // Its parent is the service, or ends with it; only what this process has bound is its own.
            Some(up) if !up.is_confirmed() && !up.orphaned => {
                self.shared.retract_added(&up.prepared.added);
            }
            _ => self.shared.retract(self.last_child),
        }
    }
}

fn word(dry_run: bool) -> &'static str {
    if dry_run { "dry run" } else { "reload" }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// `None` if it has panicked.
async fn unless_panicked<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(_) => Poll::Ready(None),
        },
    )
    .await
}

async fn next_of(upstream: &mut Option<ChildDriver>) -> ChildEvent {
    match upstream {
        Some(upstream) => upstream.next().await,
        None => std::future::pending().await,
    }
}

async fn tick(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(heartbeat) => {
            heartbeat.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// A connection that was given up while this process was revoked, and arrives here when it serves again, is served
/// on. Cancel safe.
async fn bounce(pass: &mut Option<mpsc::UnboundedReceiver<PassRequest>>) {
    let Some(request) = (match pass {
        Some(pass) => pass.recv().await,
        None => None,
    }) else {
        return std::future::pending().await;
    };
    request.returned.call(NotMoved {
        connection: Some((request.connection, request.guard)),
        reason: "this process serves".to_owned(),
    });
}

/// The next event of any of them. Cancel safe.
async fn next_of_any(drivers: &mut [ChildDriver]) -> (usize, ChildEvent) {
    let mut nexts: Vec<_> = drivers.iter_mut().map(|d| Box::pin(d.next())).collect();
    poll_fn(|cx| {
        for (place, next) in nexts.iter_mut().enumerate() {
            if let Poll::Ready(event) = next.as_mut().poll(cx) {
                return Poll::Ready((place, event));
            }
        }
        Poll::Pending
    })
    .await
}

async fn next_of_child(downstream: &mut Option<ParentDriver>) -> ParentEvent {
    match downstream {
        Some(downstream) => downstream.next().await,
        None => std::future::pending().await,
    }
}

async fn started(starting: &mut Option<(Begin, Starting)>) -> Started {
    match starting {
        Some((.., task)) => match task.await {
            Ok(result) => result,
            Err(error) => Err((format!("starting the child failed: {error}"), None)),
        },
        None => std::future::pending().await,
    }
}

async fn deadline(ending: Option<&Ending>) {
    match ending {
        Some(ending) => sleep_until(ending.deadline).await,
        None => std::future::pending().await,
    }
}

/// Splits off what the application reads.
pub(crate) fn split(
    receivers: Receivers,
) -> (
    mpsc::UnboundedReceiver<crate::shared::Adopted>,
    (
        mpsc::Receiver<Incoming>,
        mpsc::UnboundedReceiver<PassRequest>,
    ),
) {
    (receivers.adopted, (receivers.incoming, receivers.pass))
}
