//! Prometheus's text format, version 0.0.4: a few lines need no library.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use handoff::Phase;

use super::Pages;
use super::tally::{BUCKETS_US, CLASSES, Count, PHASES};

/// All of it.
pub(super) fn write(pages: &Pages) -> String {
    let mut text = String::with_capacity(8 * 1024);
    of_the_process(&mut text, pages);
    of_reloads(&mut text, pages);
    of_connections(&mut text, pages);
    of_requests(&mut text, pages);
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    head(text, name, "gauge", help);
    let _ = writeln!(text, "{name} {value}");
}

/// A counter with one label.
fn counters(
    text: &mut String,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) {
    head(text, name, "counter", help);
    for (value, count) in values {
        let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {count}");
    }
}

/// As the format wants the value of a label.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

fn of_the_process(text: &mut String, pages: &Pages) {
    let name = "handoff_build_info";
    head(
        text,
        name,
        "gauge",
        "What the build that answers calls itself.",
    );
    let _ = writeln!(text, "{name}{{build=\"{}\"}} 1", escaped(&pages.build));
    let generation = pages.serving.get().map(|s| s.identity().generation);
    gauge(
        text,
        "handoff_generation",
        "1 for the first process, one more for each that took over.",
        generation.unwrap_or(pages.generation),
    );
    let serves = *pages.phase.borrow() == Phase::Serving;
    let on_probation = serves && !pages.confirmed.load(Ordering::Acquire);
    gauge(
        text,
        "handoff_probation",
        "1 while the generation before can serve again.",
        on_probation.into(),
    );
}

fn of_reloads(text: &mut String, pages: &Pages) {
    let tally = &pages.tally;
    counters(
        text,
        "handoff_reloads_total",
        "Reloads by how they ended.",
        "outcome",
        [
            ("confirmed", tally.get(Count::Confirmed)),
            ("failed", tally.get(Count::Failed)),
        ],
    );
    counters(
        text,
        "handoff_dry_runs_total",
        "Dry runs by how they ended.",
        "outcome",
        [
            ("ready", tally.get(Count::DryReady)),
            ("failed", tally.get(Count::DryFailed)),
        ],
    );
    let name = "handoff_reload_phase_seconds";
    head(
        text,
        name,
        "histogram",
        "How long the phases of reloads and dry runs took.",
    );
    for (place, phase) in PHASES.iter().enumerate() {
        let (buckets, sum_us) = tally.phase(place);
        let ends = BUCKETS_US.iter().map(|us| (*us as f64 / 1e6).to_string());
        let ends = ends.chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(&buckets) {
            let _ = writeln!(
                text,
                "{name}_bucket{{phase=\"{phase}\",le=\"{end}\"}} {count}"
            );
        }
        let sum = sum_us as f64 / 1e6;
        let count = buckets.last().copied().unwrap_or(0);
        let _ = writeln!(text, "{name}_sum{{phase=\"{phase}\"}} {sum}");
        let _ = writeln!(text, "{name}_count{{phase=\"{phase}\"}} {count}");
    }
}

fn of_connections(text: &mut String, pages: &Pages) {
    let serving = pages.serving.get();
    gauge(
        text,
        "handoff_connections",
        "Connections of the process that answers.",
        serving.map_or(0, |serving| serving.connections()()),
    );
    let draining = serving.map(handoff::Serving::draining).unwrap_or_default();
    gauge(
        text,
        "handoff_draining_generations",
        "Older generations that still drain.",
        draining.len() as u64,
    );
    gauge(
        text,
        "handoff_draining_connections",
        "Connections that they still serve, as last heard.",
        draining.iter().map(|older| older.waiting_for).sum(),
    );
    counters(
        text,
        "handoff_connections_left_total",
        "What became of the connections of generations that were replaced.",
        "how",
        [
            ("moved", pages.tally.get(Count::Moved)),
            ("drained", pages.tally.get(Count::Drained)),
            ("cut", pages.tally.get(Count::Cut)),
        ],
    );
}

fn of_requests(text: &mut String, pages: &Pages) {
    counters(
        text,
        "handoff_http_requests_total",
        "Requests answered, by the class of their status.",
        "code",
        CLASSES.into_iter().zip(pages.tally.answers()),
    );
    let in_flight = pages.in_flight.load(Ordering::Relaxed);
    gauge(
        text,
        "handoff_http_requests_in_flight",
        "Requests of the process that answers that are under way.",
        u64::try_from(in_flight).unwrap_or(0),
    );
}
