//! A row for each server: what one wants to know before anything else.

use std::collections::BTreeMap;

use super::super::html::{escape, tag};
use super::super::model::Run;
use super::super::words;
use super::verdict::first_answer;

pub(super) const ABOUT: &str = "Latencies are half / 99 % / 99.9 % of the requests that are answered at once. \
    Closed: kept-alive connections that the server closed between two requests, which loses nothing by itself. \
    Reload: from the command to the first answer of the new generation, half of the reloads. \
    Memory is the most that all processes had together; pages that they share count in each.";

pub(in super::super) const HEAD: [&str; 9] = [
    "server",
    "reloads",
    "requests",
    "lost",
    "closed",
    "during a reload",
    "otherwise",
    "reload",
    "memory",
];
const LOST: usize = 3;

/// For a terminal.
pub(in super::super) fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    runs.iter().map(row).collect()
}

/// For the page. Each cell has the name of its column, which a phone shows beside it.
pub(super) fn table(runs: &[Run]) -> String {
    let head: String = HEAD
        .iter()
        .map(|name| format!("<th scope=\"col\">{name}</th>"))
        .collect();
    let rows: String = runs
        .iter()
        .map(|run| {
            let cells = HEAD.iter().zip(row(run)).enumerate();
            let cells: String = cells
                .map(|(place, (name, cell))| {
                    let lost = place == LOST && run.load.totals.lost > 0;
                    let class = if lost { " class=\"lost\"" } else { "" };
                    format!("<td data-label=\"{name}\"{class}>{}</td>", escape(&cell))
                })
                .collect();
            tag("tr", "", &cells)
        })
        .collect();
    let table = format!(
        "<table class=\"figures\"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    );
    tag("div", "scroll", &table)
}

fn row(run: &Run) -> Vec<String> {
    let totals = run.load.totals;
    let latency = |name: &str| {
        let latency = run
            .load
            .latencies
            .get(name)
            .filter(|latency| latency.count > 0);
        latency.map_or_else(
            || "–".into(),
            |latency| {
                [latency.p50_ms, latency.p99_ms, latency.p999_ms]
                    .map(words::time)
                    .join(" / ")
            },
        )
    };
    vec![
        run.name.clone(),
        words::count(run.reloads.len() as u64),
        words::count(totals.ended),
        lost(run),
        words::count(totals.closed + totals.forced_reconnects),
        latency("met-reload"),
        latency("met-none"),
        reload_time(run),
        peak(run).map_or_else(|| "–".into(), |kib| words::memory(kib as f64 / 1024.0)),
    ]
}

/// With what became of them: `12 (9 refused, 3 eof)`.
fn lost(run: &Run) -> String {
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    for (outcome, count) in run.load.counts.values().flatten() {
        *outcomes.entry(outcome).or_default() += count;
    }
    let named: Vec<(&str, u64)> = outcomes
        .into_iter()
        .filter(|(outcome, count)| *outcome != "ok" && *count > 0)
        .collect();
    let lost = words::count(run.load.totals.lost);
    match named.as_slice() {
        [] => lost,
        [(outcome, _)] => format!("{lost} ({outcome})"),
        several => {
            let named = several
                .iter()
                .map(|(outcome, count)| format!("{} {outcome}", words::count(*count)));
            format!("{lost} ({})", named.collect::<Vec<_>>().join(", "))
        }
    }
}

/// To the first answer of the new generation, half of the reloads; of a server whose generations cannot be told
/// apart, to the end of the command.
fn reload_time(run: &Run) -> String {
    if run
        .reloads
        .iter()
        .any(|reload| reload.first_answer_ms.is_some())
    {
        return first_answer(run);
    }
    let mut times: Vec<f64> = run.reloads.iter().map(|reload| reload.command_ms).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2);
    median.map_or_else(
        || "–".into(),
        |ms| format!("{} (command)", words::time(*ms)),
    )
}

/// The most at one moment, of all generations together.
fn peak(run: &Run) -> Option<u64> {
    let mut looks: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in &run.samples {
        *looks.entry(sample.at_s.to_bits()).or_default() += sample.rss_kib;
    }
    looks.into_values().max()
}
