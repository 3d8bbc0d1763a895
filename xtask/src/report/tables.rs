//! What is told in words and figures: losses, checks, latencies, phases.

use std::collections::BTreeMap;

use super::html::{details, escape, table, tag};
use super::model::{Latency, Loss, Run};
use super::plots::phases::{PHASES, quantile, sorted};
use super::words;

/// Losses and failed reloads that are shown one by one; the files beside the page have the others.
const MAX_SHOWN: usize = 50;
/// Of what a server or a command said.
const MAX_DETAIL: usize = 300;

/// What was lost, by name, and what failed. Nothing if nothing was.
pub(super) fn losses(run: &Run) -> String {
    let mut text = String::new();
    if !run.losses.is_empty() {
        text.push_str(&tag("h3", "", "Lost"));
        text.push_str(&by_name(&run.losses));
        let shown: Vec<Vec<String>> = run.losses.iter().take(MAX_SHOWN).map(loss).collect();
        let head = [
            "what",
            "request",
            "at",
            "reload",
            "after its start",
            "generation",
            "port",
            "why",
        ];
        let summary = format!(
            "Each of the first {}; all are in losses.log",
            words::count(shown.len() as u64)
        );
        text.push_str(&details(&summary, &table("plain", &head, &shown)));
    }
    let failed: Vec<Vec<String>> = run
        .reloads
        .iter()
        .filter_map(|reload| {
            let why = short(reload.failure.as_ref()?);
            Some(vec![
                format!("reload {}", reload.number),
                format!("{:.2} s", reload.at_s),
                why,
            ])
        })
        .take(MAX_SHOWN)
        .collect();
    if !failed.is_empty() {
        text.push_str(&tag("h3", "", "Reloads that failed"));
        text.push_str(&table("plain", &["which", "at", "why"], &failed));
    }
    text
}

/// One row for each name, in the order of the first of each: the cause is seldom the last.
fn by_name(losses: &[Loss]) -> String {
    let mut names: BTreeMap<(&str, &str), Vec<&Loss>> = BTreeMap::new();
    for loss in losses {
        let name = (loss.what.as_str(), loss.kind.as_str());
        names.entry(name).or_default().push(loss);
    }
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by(|(_, a), (_, b)| a[0].at_s.total_cmp(&b[0].at_s));
    let rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|((what, kind), losses)| by_name_row(what, kind, &losses))
        .collect();
    let head = ["what", "how often", "when", "the first", "its reason"];
    table("plain loss", &head, &rows)
}

/// Each cell says what it is: on a phone they stand below each other, without a head.
fn by_name_row(what: &str, kind: &str, losses: &[&Loss]) -> Vec<String> {
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    let when = match losses {
        [only] => format!("at {:.2} s", only.at_s),
        _ => format!("{:.2} s to {:.2} s", first.at_s, last.at_s),
    };
    vec![
        format!("{what} ({kind})"),
        words::counted(losses.len() as u64, "time"),
        when,
        format!(
            "{} after the start of reload {}",
            words::time(first.since_reload_ms),
            first.reload
        ),
        short(&first.detail),
    ]
}

fn loss(loss: &Loss) -> Vec<String> {
    vec![
        loss.what.clone(),
        loss.kind.clone(),
        format!("{:.3} s", loss.at_s),
        loss.reload.to_string(),
        words::time(loss.since_reload_ms),
        loss.generation.to_string(),
        loss.port.to_string(),
        short(&loss.detail),
    ]
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Each check with its words; what failed comes first.
pub(super) fn checks(run: &Run) -> String {
    let mut checks: Vec<_> = run.checks.iter().collect();
    checks.sort_by_key(|check| match check.passed {
        Some(false) => 0,
        Some(true) => 1,
        None => 2,
    });
    let rows: String = checks
        .into_iter()
        .map(|check| {
            let (class, mark) = match check.passed {
                Some(true) => ("pass", "✓ passed"),
                Some(false) => ("fail", "✗ FAILED"),
                None => ("open", "– not judged"),
            };
            let content = format!(
                "<b>{mark}</b><span>{}<small>{}</small></span>",
                escape(&check.what),
                escape(&short(&check.detail))
            );
            tag("li", class, &content)
        })
        .collect();
    tag("ul", "checks", &rows)
}

/// The figures behind the pictures of latency.
pub(super) fn latencies(run: &Run) -> String {
    let name = |name: &str| match name {
        "all" => "all of the schedule, pauses included".to_owned(),
        "met-reload" => "at once, during a reload".to_owned(),
        "met-none" => "at once, without one".to_owned(),
        kind => kind.to_owned(),
    };
    let rows: Vec<Vec<String>> = run
        .load
        .latencies
        .iter()
        .filter(|(_, latency)| latency.count > 0)
        .map(|(kind, latency)| latency_row(name(kind), latency))
        .collect();
    let head = [
        "requests", "how many", "half", "90 %", "99 %", "99.9 %", "worst",
    ];
    table("figures", &head, &rows)
}

fn latency_row(name: String, latency: &Latency) -> Vec<String> {
    let times = [
        latency.p50_ms,
        latency.p90_ms,
        latency.p99_ms,
        latency.p999_ms,
        latency.max_ms,
    ];
    [name, words::count(latency.count)]
        .into_iter()
        .chain(times.map(words::time))
        .collect()
}

/// The figures behind the pictures of phases.
pub(super) fn phases(run: &Run) -> String {
    let row = |(phase, name): (usize, &str)| {
        let times = sorted(run, phase);
        let shares = [0.0, 0.5, 0.9, 0.99, 1.0];
        let cells = shares.map(|share| words::time(quantile(&times, share)));
        [name.to_owned(), words::count(times.len() as u64)]
            .into_iter()
            .chain(cells)
            .collect()
    };
    let rows: Vec<Vec<String>> = PHASES.into_iter().enumerate().map(row).collect();
    let head = [
        "phase", "reloads", "shortest", "half", "90 %", "99 %", "longest",
    ];
    table("figures", &head, &rows)
}
