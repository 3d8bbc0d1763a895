//! The report: a plain table for people, `soak.json` for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::latency::Latency;
use super::outcome::Outcome;
use super::request::Kind;
use super::results::{Growth, Results};

/// Writes `soak.json` into `dir`.
pub(crate) fn write_json(results: &Results, dir: &Path) -> Result<()> {
    let path = dir.join("soak.json");
    let text = serde_json::to_string_pretty(results)?;
    fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

/// All that a person wants to see.
pub(crate) fn table(results: &Results) -> String {
    let sections = [
        outcomes(results),
        kept(results),
        latencies(results),
        reloads(results),
        holdings(results),
        checks(results),
    ];
    sections.join("\n")
}

/// Aligned columns: the first to the left, the others to the right.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(line, "{cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(crate) fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Requests by kind; of the outcomes only `ok` and those that occurred.
fn outcomes(results: &Results) -> String {
    let counts = &results.load.counts;
    let occurred: Vec<&str> = Outcome::ALL
        .iter()
        .map(|outcome| outcome.name())
        .filter(|name| {
            *name == "ok"
                || counts
                    .values()
                    .any(|row| row.get(name).is_some_and(|count| *count > 0))
        })
        .collect();
    let mut rows = vec![
        [&["requests", "all"], occurred.as_slice()]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect(),
    ];
    for kind in Kind::ALL {
        let Some(counts) = counts.get(kind.name()) else {
            continue;
        };
        let count = |name: &&str| counts.get(name).copied().unwrap_or(0).to_string();
        let sum: u64 = counts.values().sum();
        rows.push(
            [kind.name().to_owned(), sum.to_string()]
                .into_iter()
                .chain(occurred.iter().map(count))
                .collect(),
        );
    }
    let totals = results.load.totals;
    let mut text = align(&rows);
    let _ = writeln!(
        text,
        "{} requests and messages in {:.1} s, {} lost, {} connections closed; {} extra connections, worst lateness of the client {:.2} ms",
        totals.ended,
        results.lasted_s,
        totals.lost,
        totals.closed,
        results.load.extra_connections,
        results.load.worst_lateness_ms
    );
    text
}

/// What reloads find open: idle connections, sessions, and what moved.
fn kept(results: &Results) -> String {
    let (idle, sessions, moved) = (&results.idle, &results.websockets, &results.moved);
    let totals = results.load.totals;
    let as_what: Vec<String> = moved
        .moved_as
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    format!(
        "idle: {} connections, {} looks after reloads, {} closed; {} of {} requests answered\n\
         websocket: {} sessions, {} of them unbroken, {} forced reconnects; {} messages\n\
         moved: {} ({}), {} cut\n",
        idle.connections,
        idle.looks,
        idle.closed,
        idle.right,
        idle.used,
        sessions.sessions,
        sessions.unbroken,
        totals.forced_reconnects,
        sessions.messages,
        moved.moved,
        as_what.join(", "),
        moved.cut
    )
}

fn latency_row(name: &str, latency: &Latency) -> Vec<String> {
    let ms = [
        latency.p50_ms,
        latency.p90_ms,
        latency.p99_ms,
        latency.p999_ms,
        latency.max_ms,
    ];
    [name.to_owned(), latency.count.to_string()]
        .into_iter()
        .chain(ms.map(|ms| format!("{ms:.2}")))
        .collect()
}

fn latencies(results: &Results) -> String {
    let mut rows = vec![cells([
        "latency from the due time, ms",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
    ])];
    let names = Kind::ALL
        .iter()
        .map(|kind| kind.name())
        .chain(["all", "met-reload", "met-none"]);
    rows.extend(names.filter_map(|name| {
        let latency = results.load.latencies.get(name)?;
        (latency.count > 0).then(|| latency_row(name, latency))
    }));
    align(&rows)
}

fn reloads(results: &Results) -> String {
    let timings = &results.timings;
    let mut rows = vec![cells([
        "reloads, ms",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
    ])];
    for (name, latency) in [
        ("command to first answer", &timings.first_answer),
        ("command to reported commit", &timings.commit),
        ("server: request to accepting", &timings.serving),
        ("command to parent drained", &timings.drained),
        ("server: draining to drained", &timings.drain),
        ("bare fork+exec (hello --version)", &timings.bare_exec),
    ] {
        rows.push(latency_row(name, latency));
    }
    let mut text = align(&rows);
    let _ = writeln!(
        text,
        "the first answer takes {:.2} times a bare fork+exec, which is {:.0} % of it",
        timings.first_answer_per_bare_exec,
        timings.bare_exec_share * 100.0
    );
    text
}

fn holdings(results: &Results) -> String {
    let holdings = &results.holdings;
    let mut rows = vec![cells([
        "the serving generation holds",
        "first",
        "first 10 %",
        "last 10 %",
        "max",
    ])];
    for (name, growth) in [
        ("descriptors", holdings.fds),
        ("  not sockets", holdings.other_fds),
        (
            "  sockets beyond the client's",
            holdings.sockets_beyond_clients,
        ),
        ("resident memory, KiB", holdings.rss_kib),
    ] {
        let numbers = |growth: Growth| {
            [
                growth.first,
                growth.first_tenth,
                growth.last_tenth,
                growth.max,
            ]
        };
        let numbers = growth.map_or_else(Vec::new, |growth| {
            numbers(growth).map(|n| n.to_string()).to_vec()
        });
        rows.push([name.to_owned()].into_iter().chain(numbers).collect());
    }
    align(&rows)
}

fn checks(results: &Results) -> String {
    let mut text = String::new();
    for check in &results.checks {
        let mark = match check.passed {
            Some(true) => "pass",
            Some(false) => "FAIL",
            None => "  - ",
        };
        let _ = writeln!(text, "{mark}  {}: {}", check.what, check.detail);
    }
    let failed = results.checks.iter().filter(|check| check.failed()).count();
    let _ = if results.passed {
        writeln!(
            text,
            "passed: {} reloads, nothing lost",
            results.reloads.len()
        )
    } else {
        writeln!(text, "FAILED: {failed} of {} checks", results.checks.len())
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            cells(["requests", "ok"]),
            cells(["slow", "12345"]),
            cells(["x"]),
        ];
        assert_eq!(align(&rows), "requests     ok\nslow      12345\nx\n");
    }
}
