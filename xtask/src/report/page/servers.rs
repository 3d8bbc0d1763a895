//! A row for each server: what one wants to know before anything else.

use std::collections::BTreeMap;

use super::super::model::Run;
use super::super::words;
use super::verdict::first_answer;

pub(in super::super) const HEAD: [&str; 9] = [
    "server",
    "reloads",
    "requests",
    "lost",
    "closed",
    "during a reload: p50 / p99 / p99.9",
    "otherwise: p50 / p99 / p99.9",
    "first answer, median",
    "memory, peak",
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
        words::count(totals.lost),
        words::count(totals.closed + totals.forced_reconnects),
        latency("met-reload"),
        latency("met-none"),
        first_answer(run),
        peak(run).map_or_else(|| "–".into(), |kib| words::memory(kib as f64 / 1024.0)),
    ]
}

/// The most at one moment, of all generations together.
fn peak(run: &Run) -> Option<u64> {
    let mut looks: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in &run.samples {
        *looks.entry(sample.at_s.to_bits()).or_default() += sample.rss_kib;
    }
    looks.into_values().max()
}
