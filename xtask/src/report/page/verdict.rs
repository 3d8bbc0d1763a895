//! The top of the page: passed or failed, the sentence that matters, and the five figures behind it.

use super::super::html::{escape, tag};
use super::super::model::{Latency, Run};
use super::super::words;

/// In one word.
pub(super) fn word(run: &Run) -> &'static str {
    if run.passed { "Passed" } else { "FAILED" }
}

/// Of all runs.
pub(super) fn verdict(runs: &[Run]) -> String {
    let parts: String = runs.iter().map(|run| one(run, runs.len() > 1)).collect();
    tag("header", "runs", &parts)
}

fn one(run: &Run, with_name: bool) -> String {
    let (class, mark) = if run.passed {
        ("pass", "✓")
    } else {
        ("fail", "✗")
    };
    let mut text = String::new();
    if with_name {
        text.push_str(&tag("p", "name", &escape(&run.name)));
    }
    text.push_str(&tag("h1", class, &format!("<b>{mark} {}</b>", word(run))));
    text.push_str(&tag("p", "sentence", &escape(&words::verdict(run))));
    let failed: Vec<&str> = run
        .checks
        .iter()
        .filter(|check| check.passed == Some(false))
        .map(|check| check.what.as_str())
        .collect();
    if !failed.is_empty() {
        let failed = format!("What does not hold: {}.", failed.join("; "));
        text.push_str(&tag("p", "failed", &escape(&failed)));
    }
    text.push_str(&tiles(run));
    let command = tag("code", "", &escape(&run.command.join(" ")));
    let when = escape(&words::date(run.machine.unix_time));
    text.push_str(&tag("p", "origin", &format!("{command} {when}")));
    tag("div", "run verdict", &text)
}

/// What one looks for first, each with what it is measured against.
fn tiles(run: &Run) -> String {
    let totals = run.load.totals;
    let latency = |name: &str| {
        let latency = run
            .load
            .latencies
            .get(name)
            .filter(|latency| latency.count > 0);
        let p99 = |latency: &Latency| words::time(latency.p99_ms);
        latency.map_or_else(|| "–".into(), p99)
    };
    let (moved, cut) = run.reloads.iter().fold((0, 0), |(moved, cut), reload| {
        (moved + reload.moved, cut + reload.cut)
    });
    let judged = |good: bool| if good { "good" } else { "bad" };
    let closed = totals.closed + totals.forced_reconnects;
    let tile = |class: &str, number: String, what: String| {
        let content = format!("<b>{}</b><span>{}</span>", escape(&number), escape(&what));
        tag("li", class, &content)
    };
    let tiles = [
        tile(
            judged(totals.lost == 0),
            words::count(totals.lost),
            format!("lost of {} requests", words::count(totals.ended)),
        ),
        tile(
            // To close them is what most servers do at a reload: told, not judged.
            if run.is_driven() && closed > 0 {
                ""
            } else {
                judged(closed + cut == 0)
            },
            words::count(closed),
            if !run.is_driven() {
                format!(
                    "connections closed; {} moved, {} cut",
                    words::count(moved),
                    words::count(cut)
                )
            } else {
                "kept-alive connections closed between two requests".into()
            },
        ),
        tile(
            "",
            latency("met-reload"),
            format!(
                "99 % answered within, during a reload; {} otherwise",
                latency("met-none")
            ),
        ),
        tile(
            "",
            first_answer(run),
            "to the new build’s first answer, half of the reloads".into(),
        ),
    ];
    tag("ul", "tiles", &tiles.concat())
}

pub(super) fn first_answer(run: &Run) -> String {
    let mut times: Vec<f64> = run
        .reloads
        .iter()
        .filter_map(|reload| reload.first_answer_ms)
        .collect();
    times.sort_by(f64::total_cmp);
    times
        .get(times.len() / 2)
        .map_or_else(|| "–".into(), |ms| words::time(*ms))
}
