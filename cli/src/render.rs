//! The lines that a person reads. Pure, so that tests can pin every one of them.

use std::fmt::Write;
use std::time::Duration;

use handoff::control::message::{
    Builds, ConnectionCounts, Generation, LastReload, ListenerChanges,
};
use handoff::control::{Drained, DryRun, Event, Outcome, ReloadReport, Status};
use serde_json::Value;

/// How the parent's end is to be spoken of when it was not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nobody wanted to know.
    NotAwaited,
    /// It did not come in time.
    Awaited(Duration),
}

/// A successful reload: one line, and one more for each thing that somebody should look at. `None`
/// if it failed.
pub(crate) fn reloaded(report: &ReloadReport, parent: Parent) -> Option<String> {
    let Outcome::Confirmed {
        from,
        to,
        serving_us,
        listeners,
    } = &report.outcome
    else {
        return None;
    };
    let mut text = format!("{}: serving", succession(*from, *to));
    // Only the parent knows; if it has crashed, nobody does.
    if *serving_us > 0 {
        let _ = write!(text, " after {}", micros(*serving_us));
    }
    match (&report.drained, parent) {
        (Some(drained), _) => text.push_str(&drained_tail(drained)),
        (None, Parent::NotAwaited) => text.push_str(", parent drains"),
        (None, Parent::Awaited(after)) => {
            let _ = write!(text, ", parent not seen to end within {}", span(after));
        }
    }
    text.push_str(&changed_listeners(listeners));
    if let Some(drained) = &report.drained {
        text.push_str(&victims(&drained.connections));
    }
    Some(text)
}

/// The connections that were cut, each by name as far as it was kept.
fn victims(connections: &ConnectionCounts) -> String {
    let mut text = String::new();
    for name in &connections.named {
        let _ = write!(text, "\n  cut: {name}");
    }
    match connections
        .cut
        .saturating_sub(connections.named.len() as u64)
    {
        0 => {}
        more => {
            let _ = write!(text, "\n  cut: {more} more");
        }
    }
    text
}

fn drained_tail(drained: &Drained) -> String {
    let mut text = match drained.at_us {
        // Asked of the successor, which does not know when that was.
        0 => ", parent has ended".to_owned(),
        after => format!(", parent drained after {}", micros(after)),
    };
    if let Some(counts) = counts(&drained.connections) {
        let _ = write!(text, " ({counts})");
    }
    text
}

fn succession(from: Generation, to: Generation) -> String {
    format!(
        "generation {} → {}, pid {} → {}",
        from.generation, to.generation, from.pid, to.pid
    )
}

/// `40 connections moved (31 idle, 8 after an answer, 1 upgraded), 2 drained, 1 cut`, without what is zero.
fn counts(connections: &ConnectionCounts) -> Option<String> {
    let ConnectionCounts {
        moved,
        drained,
        cut,
        ..
    } = connections;
    let as_what = format!("moved{}", moved_as(connections));
    let parts: Vec<String> = [(*moved, &*as_what), (*drained, "drained"), (*cut, "cut")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .enumerate()
        .map(|(place, (count, what))| match (place, count) {
            (0, 1) => format!("1 connection {what}"),
            (0, _) => format!("{count} connections {what}"),
            _ => format!("{count} {what}"),
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// ` (31 idle, 8 after an answer)`, the most frequent first.
fn moved_as(connections: &ConnectionCounts) -> String {
    let mut kinds: Vec<(&String, &u64)> = connections.moved_as.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let word = |what: &String| match what.as_str() {
        "answered" => "after an answer".to_owned(),
        what => what.to_owned(),
    };
    match kinds.as_slice() {
        [] => String::new(),
        [(what, _)] => format!(" ({})", word(what)),
        kinds => {
            let counted = |(what, count): &(&String, &u64)| format!("{count} {}", word(what));
            let words: Vec<String> = kinds.iter().map(counted).collect();
            format!(" ({})", words.join(", "))
        }
    }
}

fn changed_listeners(changes: &ListenerChanges) -> String {
    let ListenerChanges {
        kept,
        added,
        removed,
        changed,
    } = changes;
    let mut text = String::new();
    if added.is_empty() && removed.is_empty() {
        return text;
    }
    // A changed one is among the other two.
    let only = |names: &[String]| -> Vec<String> {
        let names = names.iter().filter(|name| !changed.contains(name));
        names.cloned().collect()
    };
    for (names, what) in [
        (kept.clone(), "kept"),
        (only(added), "added"),
        (only(removed), "removed"),
        (changed.clone(), "changed"),
    ] {
        if !names.is_empty() {
            let _ = write!(text, "\n  listeners {what}: {}", names.join(", "));
        }
    }
    text
}

/// A dry run that went well: what it took, and what would change.
pub(crate) fn rehearsed(
    reload: u64,
    ready_us: u64,
    build: &Builds,
    listeners: &ListenerChanges,
) -> String {
    let mut text = format!(
        "dry run {reload}: ready after {}, nothing was changed",
        micros(ready_us)
    );
    if build.from == build.to {
        let _ = write!(text, "\n  build stays: {}", build.to);
    } else {
        let _ = write!(text, "\n  build changes: {} → {}", build.from, build.to);
    }
    match changed_listeners(listeners) {
        none if none.is_empty() => {
            let _ = write!(text, "\n  listeners kept: {}", listeners.kept.join(", "));
        }
        changed => text.push_str(&changed),
    }
    text
}

/// The first line of one that did not.
pub(crate) fn rehearsal_failed(reload: u64, phase: &str, reason: &str) -> String {
    format!("dry run {reload} failed {}: {reason}", at(phase))
}

/// A failed reload's first line.
pub(crate) fn failed(reload: u64, phase: &str, reason: &str) -> String {
    format!("reload {reload} failed {}: {reason}", at(phase))
}

/// When a reload failed.
fn at(phase: &str) -> String {
    match phase {
        "probation" => "on probation".to_owned(),
        phase => format!("while {phase}"),
    }
}

/// Its last line: the good news, if it is.
pub(crate) fn serves_on(survivor: Option<(Generation, String)>) -> String {
    match survivor {
        Some((Generation { generation, pid }, phase)) => match phase.as_str() {
            "serving" => format!("generation {generation}, pid {pid}, serves on"),
            phase => format!("generation {generation}, pid {pid}, is {phase}"),
        },
        None => {
            "whether the old generation serves on is not known, it has not answered since; see \
                 `hello status`"
                .to_owned()
        }
    }
}

/// The line that is rewritten while a reload is under way.
pub(crate) fn progress(reload: u64, phase: &str, pid: Option<u32>, elapsed: Duration) -> String {
    let at = micros(elapsed.as_micros() as u64);
    match pid {
        Some(pid) => format!("reload {reload}: {phase}, child {pid}, {at}"),
        None => format!("reload {reload}: {phase}, {at}"),
    }
}

/// One event, for `hello events`. `None` if there is nothing to say to a person.
pub(crate) fn event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Phase {
            reload,
            phase,
            pid,
            at_us,
            ..
        } => progress(*reload, phase, *pid, Duration::from_micros(*at_us)),
        Event::Stderr { reload, line } => format!("reload {reload}: child: {line}"),
        Event::Reloaded {
            reload,
            outcome: Outcome::Failed { phase, reason, .. },
        } => failed(*reload, phase, reason),
        Event::Reloaded { reload, outcome } => {
            let report = ReloadReport {
                reload: *reload,
                outcome: outcome.clone(),
                drained: None,
            };
            let text = reloaded(&report, Parent::NotAwaited)?;
            format!("reload {reload}: {text}")
        }
        Event::DryRun { reload, outcome } => match outcome {
            DryRun::Ready {
                ready_us,
                build,
                listeners,
            } => rehearsed(*reload, *ready_us, build, listeners),
            DryRun::Failed { phase, reason, .. } => rehearsal_failed(*reload, phase, reason),
            _ => return None,
        },
        Event::Drained {
            reload,
            connections,
            ..
        } => {
            let counts = counts(connections).map_or(String::new(), |counts| format!(" ({counts})"));
            let victims = victims(connections);
            format!("reload {reload}: parent has ended{counts}{victims}")
        }
        Event::Stopping { process } => {
            let Generation { generation, pid } = process;
            format!("generation {generation}, pid {pid}, is stopping")
        }
        _ => return None,
    })
}

/// A status in one line, without what changes all the time: two are equal unless something has happened.
pub(crate) fn summary(status: &Status) -> String {
    let Generation { generation, pid } = status.process;
    let mut text = format!(
        "{}, generation {generation}, pid {pid}, {}",
        status.build, status.phase
    );
    for listener in &status.listeners {
        let _ = write!(text, ", {}={}", listener.name, listener.address);
    }
    if let Some(probation) = &status.probation {
        let _ = write!(text, "; reload {} is on probation", probation.reload);
    }
    if let Some(reload) = &status.reload {
        let what = if reload.dry_run { "dry run" } else { "reload" };
        let _ = write!(text, "; {what} {}: {}", reload.reload, reload.phase);
    }
    if let Some(last) = &status.last_reload {
        let how = match last.outcome {
            Outcome::Confirmed { .. } => "confirmed",
            _ => "failed",
        };
        let _ = write!(text, "; last reload {}: {how}", last.reload);
    }
    for older in &status.draining {
        let _ = write!(text, "; generation {} drains", older.process.generation);
    }
    text
}

/// `hello status`.
pub(crate) fn status(status: &Status) -> String {
    let Generation { generation, pid } = status.process;
    let time = span(Duration::from_millis(status.serving_for_ms));
    let doing = match status.phase.as_str() {
        "serving" => format!("serving for {time}"),
        phase => format!("{phase}, after {time}"),
    };
    let mut text = format!(
        "{}, generation {generation}, pid {pid}, {doing}",
        status.build
    );
    if !status.listeners.is_empty() {
        let name_width = width(status.listeners.iter().map(|listener| &listener.name));
        let address_width = width(status.listeners.iter().map(|listener| &listener.address));
        text.push_str("\nlisteners");
        for listener in &status.listeners {
            let _ = write!(
                text,
                "\n  {:name_width$}  {:address_width$}  backlog {}",
                listener.name, listener.address, listener.backlog
            );
        }
    }
    text.push_str(&application(&status.application));
    if let Some(probation) = &status.probation {
        let Generation { generation, pid } = probation.parent;
        let left = micros(probation.left_ms.saturating_mul(1000));
        let _ = write!(
            text,
            "\non probation\n  reload {}, {left} left; until then generation {generation}, pid {pid}, can serve again",
            probation.reload
        );
    }
    if let Some(reload) = &status.reload {
        let elapsed = Duration::from_millis(reload.elapsed_ms);
        let under_way = progress(reload.reload, &reload.phase, reload.pid, elapsed);
        let note = if reload.dry_run { " (a dry run)" } else { "" };
        let _ = write!(text, "\nunder way\n  {under_way}{note}");
    }
    if let Some(last) = &status.last_reload {
        let _ = write!(text, "\nlast reload\n  {}", last_reload(last));
    }
    if !status.draining.is_empty() {
        text.push_str("\ndraining");
        for older in &status.draining {
            let Generation { generation, pid } = older.process;
            let _ = write!(
                text,
                "\n  generation {generation}, pid {pid}, waits for {}",
                counted(older.waiting_for, "connection")
            );
            for name in &older.named {
                let _ = write!(text, "\n    {name}");
            }
        }
    }
    text
}

fn last_reload(last: &LastReload) -> String {
    match &last.outcome {
        Outcome::Confirmed {
            from,
            to,
            serving_us,
            ..
        } => {
            let counts = last.drained.as_ref().and_then(counts);
            let counts = counts.map_or(String::new(), |counts| format!(", {counts}"));
            format!(
                "{}: {}, serving after {}{counts}",
                last.reload,
                succession(*from, *to),
                micros(*serving_us)
            )
        }
        Outcome::Failed { phase, reason, .. } => {
            format!("{}: failed {}: {reason}", last.reload, at(phase))
        }
        _ => format!(
            "{}: ended in a way that this version does not know",
            last.reload
        ),
    }
}

/// What the application says of itself: the members of its object, one a line.
fn application(value: &Value) -> String {
    let Value::Object(members) = value else {
        return match value {
            Value::Null => String::new(),
            value => format!("\napplication\n  {value}"),
        };
    };
    let name_width = width(members.keys());
    let mut text = String::new();
    for (place, (name, value)) in members.iter().enumerate() {
        if place == 0 {
            text.push_str("\napplication");
        }
        // A string without its quotes.
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let _ = write!(text, "\n  {name:name_width$}  {value}");
    }
    text
}

fn width<'a>(texts: impl Iterator<Item = &'a String>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// A short time, with two digits or so that matter: `850 µs`, `4.1 ms`, `12 ms`, `3.2 s`.
pub(crate) fn micros(micros: u64) -> String {
    let of = |unit: u64| micros as f64 / unit as f64;
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..9_950 => format!("{:.1} ms", of(1_000)),
        9_950..999_500 => format!("{:.0} ms", of(1_000)),
        999_500..59_950_000 => format!("{:.1} s", of(1_000_000)),
        _ => span(Duration::from_micros(micros)),
    }
}

/// A long time, as people say it: `7s`, `3m12s`, `5h02m`, `9d03h`. Below a second, in milliseconds.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests;
