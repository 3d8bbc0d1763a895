//! A row for each server: what one wants to know before anything else.

use std::collections::BTreeMap;

use super::super::model::Run;
use super::super::words;
use super::verdict::first_answer;

pub(super) const ABOUT: &str = "Latencies are half / 99 % / 99.9 % of the requests that are answered at once. \
    Closed: kept-alive connections that the server closed between two requests, which loses nothing by itself. \
    Memory is the most that all processes had together; pages that they share count in each.";

/// `page.css` repeats them, for a phone.
pub(in super::super) const HEAD: [&str; 9] = [
    "server",
    "reloads",
    "requests",
    "lost",
    "closed",
    "during a reload",
    "otherwise",
    "first answer",
    "memory",
];

pub(in super::super) fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    runs.iter().map(row).collect()
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
        first_answer(run),
        peak(run).map_or_else(|| "–".into(), |kib| words::memory(kib as f64 / 1024.0)),
    ]
}

/// With what became of them: `12: 9 refused, 3 eof`.
fn lost(run: &Run) -> String {
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    for (outcome, count) in run.load.counts.values().flatten() {
        *outcomes.entry(outcome).or_default() += count;
    }
    let named: Vec<String> = outcomes
        .into_iter()
        .filter(|(outcome, count)| *outcome != "ok" && *count > 0)
        .map(|(outcome, count)| format!("{} {outcome}", words::count(count)))
        .collect();
    let lost = words::count(run.load.totals.lost);
    if named.is_empty() {
        lost
    } else {
        format!("{lost}: {}", named.join(", "))
    }
}

/// The most at one moment, of all generations together.
fn peak(run: &Run) -> Option<u64> {
    let mut looks: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in &run.samples {
        *looks.entry(sample.at_s.to_bits()).or_default() += sample.rss_kib;
    }
    looks.into_values().max()
}
