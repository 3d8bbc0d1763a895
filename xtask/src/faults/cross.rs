//! One cell: a server under load, a fault, one `hello reload`, and what is seen afterwards.

use std::collections::BTreeMap;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use super::cells::{Cell, Course, Fault, Side};
use super::load::{CLIENTS, Counts, Load};
use super::rules::{Ending, Losses, Rule, delay, rule};
use super::scratch::{LOOK_AGAIN, Programs, Scratch, state_and_parent, text, wait_for};

/// Requests that must be answered before the service counts as going on.
const GOES_ON: u64 = 10;
/// From the beginning of the probation to a rollback of a child that answers nobody.
const ROLLBACK_ANYWAY: Duration = Duration::from_secs(1);
/// From SIGCONT to the first sign of a reload that a SIGHUP asked for.
const HANGUP_PATIENCE: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Seen {
    pub(crate) ending: String,
    /// Of `hello reload`.
    pub(crate) code: Option<i32>,
    pub(crate) counts: Counts,
}

/// Crosses one cell. An error says what does not hold, with the last lines of the log.
pub(crate) fn cross(programs: &Programs, number: usize, cell: &Cell) -> Result<Seen> {
    let mut scratch = Scratch::start(programs, number, cell).context("before the fault")?;
    match checked(&mut scratch, cell) {
        Ok(seen) => Ok(seen),
        Err(error) => {
            let log = scratch.log();
            let lines: Vec<&str> = log.lines().rev().take(12).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            Err(anyhow!(
                "{error:#}\nlog of the server:\n  {}",
                lines.join("\n  ")
            ))
        }
    }
}

fn checked(scratch: &mut Scratch<'_>, cell: &Cell) -> Result<Seen> {
    let mut before = Before::of(scratch)?;
    let mut load = Load::start(scratch.address).context("before the fault")?;
    goes_on(&load).context("before the fault")?;
    before.under_load(scratch);
    let output = reload(scratch, cell, &mut load)?;
    let rule = rule(cell);
    scratch.all_are_well()?;
    scratch.lift_limits();
    let (code, said) = (output.status.code(), text(&output));
    let ending = settles(scratch, &rule, code)
        .with_context(|| format!("`hello reload` ended with {code:?}: {}", said.trim()))?;
    if ending == Ending::Stays {
        is_told_why(&rule, &said)?;
    }
    let counts = match ending {
        Ending::Gone => is_gone(scratch, load)?,
        _ => serves(scratch, cell, &rule, ending, load, &before)?,
    };
    Ok(Seen {
        ending: format!("{ending:?}"),
        code,
        counts,
    })
}

/// What the server held at rest.
struct Before {
    descriptors: BTreeMap<String, usize>,
}

impl Before {
    fn of(scratch: &Scratch<'_>) -> Result<Self> {
        wait_for("the client that asked for the status has gone", || {
            Ok(!scratch.has_clients()?)
        })?;
        Ok(Self {
            descriptors: Scratch::descriptors(scratch.parent),
        })
    }

    /// What a server opens once it has work is not given back.
    fn under_load(&mut self, scratch: &Scratch<'_>) {
        for (kind, count) in Scratch::descriptors(scratch.parent) {
            if kind.starts_with("anon_inode:[event") {
                let most = self.descriptors.entry(kind).or_insert(0);
                *most = count.max(*most);
            }
        }
    }
}

/// `hello reload` from its start to its end; who is frozen by the fault is thawed once its peer's deadline has passed.
fn reload(scratch: &mut Scratch<'_>, cell: &Cell, load: &mut Load) -> Result<Output> {
    let mut reload = scratch.reload()?;
    let mut rollback = Rollback::default();
    let began = Instant::now();
    let mut frozen_at = None;
    while reload.try_wait()?.is_none() || (frozen_at.is_some() && is_frozen(scratch)) {
        scratch.reap();
        // What is under way at the commit ends after it.
        if scratch.pidfile().is_some_and(|pid| pid != scratch.parent) {
            load.finish_upload();
        }
        if cell.boundary.course == Course::Rollback {
            rollback.go_on(scratch, load)?;
        }
        if cell.fault == Fault::Stop {
            thaw_in_time(scratch, cell, &mut frozen_at)?;
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "`hello reload --timeout 25s` has not ended after 60 s"
        );
        std::thread::sleep(LOOK_AGAIN);
    }
    load.finish_upload();
    rollback.end()?;
    output(reload)
}

/// `hello rollback`, once the probation has begun and the child has connections of its own to give back.
#[derive(Default)]
struct Rollback {
    taken_over: Option<Instant>,
    began: Option<Instant>,
    verb: Option<Child>,
}

impl Rollback {
    fn go_on(&mut self, scratch: &Scratch<'_>, load: &mut Load) -> Result<()> {
        if self
            .verb
            .as_mut()
            .is_some_and(|verb| matches!(verb.try_wait(), Ok(None)))
        {
            return Ok(());
        }
        let Some(began) = self.began else {
            // Where no log can be written, time must tell.
            let has_taken_over = scratch.pidfile().is_some_and(|pid| pid != scratch.parent);
            let since = *self.taken_over.get_or_insert_with(Instant::now);
            if !has_taken_over {
                self.taken_over = None;
            } else if scratch.log().contains("reload: probation")
                || since.elapsed() > ROLLBACK_ANYWAY
            {
                self.began = Some(Instant::now());
                load.rests_more(scratch.address);
            }
            return Ok(());
        };
        // Who fails at its first word has nothing to give back.
        if load.has_more_resting() || began.elapsed() > ROLLBACK_ANYWAY {
            // Again, should it have found nobody who could be asked.
            self.verb = Some(scratch.decide("rollback")?);
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        if let Some(mut verb) = self.verb {
            verb.kill()?;
            verb.wait()?;
        }
        Ok(())
    }
}

/// A reload that must succeed, with its probation confirmed at once.
fn reload_well(scratch: &Scratch<'_>, cell: &Cell) -> Result<Output> {
    if cell.boundary.course == Course::Reload {
        return scratch.output(&["reload"]);
    }
    let mut reload = scratch.reload()?;
    let mut confirm: Option<Child> = None;
    while reload.try_wait()?.is_none() {
        let is_asking = |verb: &mut Child| matches!(verb.try_wait(), Ok(None));
        if !confirm.as_mut().is_some_and(is_asking) {
            // Refused until the probation has begun.
            confirm = Some(scratch.decide("confirm")?);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    if let Some(mut confirm) = confirm {
        confirm.kill()?;
        confirm.wait()?;
    }
    output(reload)
}

fn output(reload: Child) -> Result<Output> {
    Ok(reload.wait_with_output()?)
}

fn is_frozen(scratch: &Scratch<'_>) -> bool {
    scratch.processes().into_iter().any(is_stopped)
}

fn is_stopped(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state == 'T')
}

fn thaw_in_time(scratch: &Scratch<'_>, cell: &Cell, frozen_at: &mut Option<Instant>) -> Result<()> {
    for pid in scratch
        .processes()
        .into_iter()
        .filter(|pid| is_stopped(*pid))
    {
        let at = *frozen_at.get_or_insert_with(Instant::now);
        // The kernel may thaw it, and make it reload: see `after_the_hangup`.
        scratch.all_are_well()?;
        if at.elapsed() > delay(&cell.boundary) {
            Scratch::thaw(pid);
        }
    }
    Ok(())
}

/// A process group that is orphaned while a member is stopped gets SIGHUP and SIGCONT from the kernel (setpgid(2),
/// POSIX `_exit`): the child of a parent that ends is such a group, and SIGHUP means reload. The generation that
/// serves after that.
fn after_the_hangup(scratch: &mut Scratch<'_>, cell: &Cell) -> Result<u64> {
    let mut since = Instant::now();
    let (mut frozen_at, mut generation) = (None, 0);
    let ended = wait_for("the reload by SIGHUP has ended", || {
        scratch.reap();
        // The last message is heard when `hello reload` has ended, perhaps.
        if is_frozen(scratch) {
            thaw_in_time(scratch, cell, &mut frozen_at)?;
            since = Instant::now();
            return Ok(false);
        }
        let has_begun = scratch.log().contains("why=\"SIGHUP\"");
        let Some(status) = scratch.status()? else {
            return Ok(false);
        };
        generation = status.generation;
        // The group may have been orphaned before its member was stopped: then there is no signal.
        let is_over = !has_begun || generation > 2;
        Ok(is_over
            && (has_begun || since.elapsed() > HANGUP_PATIENCE)
            && scratch.processes() == [status.pid]
            && scratch.zombies().is_empty())
    });
    ended.with_context(|| {
        let of = |pid| (pid, state_and_parent(pid));
        let states: Vec<_> = scratch.processes().into_iter().map(of).collect();
        format!("generation {generation}; running, with state and parent: {states:?}")
    })?;
    Ok(generation)
}

/// Waits until the processes that are left, and the exit code, are those of an ending that the rule allows.
fn settles(scratch: &mut Scratch<'_>, rule: &Rule, code: Option<i32>) -> Result<Ending> {
    let mut seen = None;
    let settled = wait_for("it has settled", || {
        scratch.reap();
        let pids = scratch.processes();
        let parent = scratch.parent;
        let is_child = pids.len() == 1 && pids[0] != parent;
        let is_parent = pids == [parent];
        seen = rule.endings.iter().copied().find(|ending| {
            let is_there = match ending {
                Ending::Stays => is_parent,
                Ending::Replaced | Ending::Succeeded => is_child,
                Ending::Gone => pids.is_empty(),
            };
            let codes = rule.codes_of(*ending);
            is_there && code.is_some_and(|code| codes.contains(&code))
        });
        Ok(seen.is_some() && scratch.zombies().is_empty())
    });
    let what = || {
        format!(
            "expected one of {:?}; running: {:?} (parent {}), zombies: {:?}",
            rule.endings,
            scratch.processes(),
            scratch.parent,
            scratch.zombies()
        )
    };
    settled.with_context(what)?;
    seen.context("no ending")
}

fn is_told_why(rule: &Rule, said: &str) -> Result<()> {
    let phase = rule.phase.unwrap_or_default();
    let words = match phase {
        "probation" => "reload 1 failed on probation".to_owned(),
        phase => format!("reload 1 failed while {phase}"),
    };
    ensure!(said.contains(&words), "`{words}` is missing: {said}");
    ensure!(
        rule.reasons.is_empty() || rule.reasons.iter().any(|reason| said.contains(reason)),
        "none of {:?} is named: {said}",
        rule.reasons
    );
    ensure!(said.contains("serves on"), "who serves is not said: {said}");
    Ok(())
}

fn goes_on(load: &Load) -> Result<()> {
    let before = load.answered();
    wait_for("requests are answered", || {
        Ok(load.answered() > before + GOES_ON)
    })
}

/// One process is the service in every respect, and can be replaced at once.
fn serves(
    scratch: &mut Scratch<'_>,
    cell: &Cell,
    rule: &Rule,
    ending: Ending,
    load: Load,
    before: &Before,
) -> Result<Counts> {
    let is_orphaned_group = cell.fault == Fault::Stop
        && cell.boundary.side == Side::Child
        && ending == Ending::Replaced;
    let generation = match ending {
        Ending::Stays => 1,
        _ if is_orphaned_group => after_the_hangup(scratch, cell)?,
        _ => 2,
    };
    owns_the_names(scratch, generation)?;
    // What was lowered by the last message of all: who has answered has heard it.
    scratch.lift_limits();
    goes_on(&load)?;
    // With all of the load still there.
    let again = reload_well(scratch, cell)?;
    ensure!(
        again.status.success(),
        "the next reload failed: {}",
        text(&again)
    );
    wait_for("one process is left", || {
        scratch.reap();
        Ok(scratch.processes().len() == 1 && scratch.zombies().is_empty())
    })?;
    owns_the_names(scratch, generation + 1)?;
    goes_on(&load)?;
    let counts = load.finish()?;
    judge(&counts, requests(scratch)?, rule.losses)?;
    holds_what_it_held(scratch, before)?;
    Ok(counts)
}

/// By the application's own count.
fn requests(scratch: &Scratch<'_>) -> Result<u64> {
    let status = super::load::get(scratch.address, "/status")?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    status["requests"].as_u64().context("no count of requests")
}

fn owns_the_names(scratch: &Scratch<'_>, generation: u64) -> Result<()> {
    let mut status = None;
    let answered = wait_for("the control socket answers", || {
        status = scratch.status()?;
        Ok(status.is_some())
    });
    answered.with_context(|| format!("control socket of {:?}", scratch.processes()))?;
    let status = status.context("no status")?;
    let pids = scratch.processes();
    ensure!(
        status.generation == generation,
        "generation {} serves, not {generation}",
        status.generation
    );
    ensure!(
        Some(status.pid) == scratch.pidfile() && pids == [status.pid],
        "the control socket is {}'s, the pidfile {:?}'s, and {pids:?} run",
        status.pid,
        scratch.pidfile()
    );
    Ok(())
}

fn judge(counts: &Counts, requests: u64, losses: Losses) -> Result<()> {
    let lost = counts.lost + counts.silent;
    ensure!(counts.refused == 0, "clients were refused: {counts:?}");
    if losses != Losses::OfTheDead {
        ensure!(
            lost == 0,
            "lost, and no process that owned it was killed: {counts:?}"
        );
        ensure!(
            counts.closed == 0 || losses != Losses::Nothing,
            "closed, although it could have moved: {counts:?}"
        );
        ensure!(
            requests == counts.answered || losses == Losses::Unsaid,
            "the count is {requests}, but {} were answered",
            counts.answered
        );
    }
    ensure!(
        lost <= CLIENTS,
        "more is lost than was under way: {counts:?}"
    );
    ensure!(
        requests <= counts.answered + lost,
        "served twice: the count is {requests}: {counts:?}"
    );
    Ok(())
}

fn holds_what_it_held(scratch: &Scratch<'_>, before: &Before) -> Result<()> {
    let pid = scratch.pidfile().context("no pidfile")?;
    let mut now = BTreeMap::new();
    let same = wait_for("nothing is held that was not before", || {
        now = Scratch::descriptors(pid);
        Ok(now == before.descriptors)
    });
    same.with_context(|| format!("descriptors before: {:?}; now: {now:?}", before.descriptors))
}

/// Nobody serves: clients are refused, and the names are free.
fn is_gone(scratch: &Scratch<'_>, load: Load) -> Result<Counts> {
    wait_for("a client is refused", || Ok(load.refused() > 0))?;
    let counts = load.finish()?;
    // A request, and one more that found its way into a queue from which nobody accepts any more.
    ensure!(counts.lost <= 2 * CLIENTS, "{counts:?}");
    ensure!(counts.silent == 0, "a client waits for nobody: {counts:?}");
    let status = scratch.output(&["status"])?;
    ensure!(
        status.status.code() == Some(3),
        "`hello status`: {}",
        text(&status)
    );
    scratch.serve_anew()?;
    Ok(counts)
}
