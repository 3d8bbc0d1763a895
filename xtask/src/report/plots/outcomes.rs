//! What became of the requests, from one reload to the next.

use anyhow::Result;

use super::super::axes::Axes;
use super::super::canvas::{Ink, Width};
use super::super::model::{Between, Run};
use super::super::words;
use super::Plot;
use super::stack::{self, Bar};

pub(super) const PLOT: Plot = Plot {
    id: "outcomes",
    title: "Requests, from each reload to the next",
    about: "One column for each reload, by its number (for several, their mean, where there are many), the first for the time before it, the last to the end of the run. A loss \
            is drawn larger than it is, and marked with a triangle.",
    lead,
    legend,
    draw: picture,
};

/// What is shown as one, by the names in the file. What has no name here is counted to the last.
const PARTS: [(&str, &[&str]); 6] = [
    ("kept-alive", &["keep-alive"]),
    ("new connection", &["new-connection"]),
    ("slow, stream", &["slow", "stream"]),
    ("upload", &["upload"]),
    ("WebSocket message", &["websocket"]),
    ("after rest, and others", &["idle", "probe"]),
];

fn part_of(kind: &str) -> usize {
    let named = |(_, kinds): &(&str, &[&str])| kinds.contains(&kind);
    PARTS.iter().position(named).unwrap_or(PARTS.len() - 1)
}

fn lead(run: &Run) -> Option<String> {
    let totals = run.load.totals;
    (!run.by_reload.is_empty()).then(|| {
        let lost = run
            .by_reload
            .iter()
            .filter(|between| !between.lost.is_empty());
        let mut text = format!(
            "{} of {} answered rightly.",
            words::count(totals.ended - totals.lost.min(totals.ended)),
            words::count(totals.ended)
        );
        let hit = lost.count() as u64;
        if hit > 0 {
            text.push_str(&format!(" Losses after {}.", words::counted(hit, "reload")));
        }
        text
    })
}

fn legend(run: &Run) -> Vec<(Ink, &'static str)> {
    let used = |part: usize| {
        let mut kinds = run.by_reload.iter().flat_map(|between| between.ok.keys());
        kinds.any(|kind| part_of(kind) == part)
    };
    let parts = PARTS.iter().zip(Ink::SERIES).enumerate();
    let mut entries: Vec<_> = parts
        .filter(|(part, _)| used(*part))
        .map(|(_, ((name, _), ink))| (ink, *name))
        .collect();
    entries.push((Ink::Loss, "lost, or closed for nothing"));
    entries
}

fn bar(between: &Between) -> Bar {
    let mut bar = Bar {
        reload: between.reload,
        lost: between.lost.values().sum(),
        ..Bar::default()
    };
    for (kind, count) in &between.ok {
        bar.parts[part_of(kind)] += count;
    }
    bar
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let bars: Vec<Bar> = run.by_reload.iter().map(bar).collect();
    let described = format!("Requests by reload. {}", lead(run).unwrap_or_default());
    stack::picture(&bars, (limits.reloads, limits.requests), width, &described)
}
