//! What each reload did to the connections that it found.

use anyhow::Result;

use super::super::axes::Axes;
use super::super::canvas::{Ink, Width};
use super::super::model::{Counts, Reload, Run};
use super::super::words;
use super::Plot;
use super::stack::{self, Bar};

pub(super) const PLOT: Plot = Plot {
    id: "connections",
    title: "Connections that each reload found",
    about: "Moved to the new process, by what they were at that moment; finished by the old one; or cut at its deadline.",
    lead,
    legend,
    draw: picture,
};

/// Names in the file and for the reader. What the server calls otherwise is shown with the fifth.
const MOVED: [(&str, &str); 5] = [
    ("idle", "moved idle"),
    ("answered", "moved after an answer"),
    ("upgraded", "moved upgraded (WebSocket)"),
    ("raw", "moved raw"),
    ("", "moved, of another kind"),
];
const DRAINED: usize = MOVED.len();

fn part_of(kind: &str) -> usize {
    let named = |(name, _): &(&str, &str)| *name == kind;
    MOVED.iter().position(named).unwrap_or(MOVED.len() - 1)
}

fn lead(run: &Run) -> Option<String> {
    let mut moved = Counts::new();
    let (mut drained, mut cut) = (0, 0);
    for reload in &run.reloads {
        drained += reload.drained;
        cut += reload.cut;
        for (kind, count) in &reload.moved_as {
            *moved.entry(MOVED[part_of(kind)].1.into()).or_default() += count;
        }
    }
    if run.reloads.is_empty() || run.is_driven() {
        return None;
    }
    let mut parts: Vec<String> = moved
        .iter()
        .map(|(kind, count)| format!("{} {kind}", words::count(*count)))
        .collect();
    parts.push(format!(
        "{} finished by the old process",
        words::count(drained)
    ));
    Some(format!("{}; {} cut.", parts.join(", "), words::count(cut)))
}

fn legend(run: &Run) -> Vec<(Ink, &'static str)> {
    let bars: Vec<Bar> = run.reloads.iter().map(bar).collect();
    let names = MOVED
        .iter()
        .map(|(_, name)| *name)
        .chain(["finished by the old process"]);
    let parts = names.zip(Ink::SERIES).enumerate();
    let mut entries: Vec<_> = parts
        .filter(|(part, _)| bars.iter().any(|bar| bar.parts[*part] > 0))
        .map(|(_, (name, ink))| (ink, name))
        .collect();
    entries.push((Ink::Loss, "cut"));
    entries
}

fn bar(reload: &Reload) -> Bar {
    let mut bar = Bar {
        reload: reload.number,
        lost: reload.cut,
        ..Bar::default()
    };
    for (kind, count) in &reload.moved_as {
        bar.parts[part_of(kind)] += count;
    }
    bar.parts[DRAINED] = reload.drained;
    bar
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let bars: Vec<Bar> = run.reloads.iter().map(bar).collect();
    let described = format!("Connections by reload. {}", lead(run).unwrap_or_default());
    stack::picture(
        &bars,
        (limits.reloads, limits.connections),
        width,
        &described,
    )
}
