//! What must hold for a soak to pass, each judged from the results alone.

use std::fmt::Write;

use serde::Serialize;

use super::book::Totals;
use super::results::{Ending, Growth, Holdings, IdleResults, Reload};
use super::websocket::Sessions;

/// Fewer reloads say nothing about growth: a tenth of them would be a single sample.
const MIN_SAMPLES: usize = 20;
/// Not sockets: only what a `hello status` or the like in that very moment may hold.
const OTHER_FD_NOISE: i64 = 2;
/// Connections that one side has closed and the other has not yet noticed, at the moment of a
/// sample: at 2,000 requests a second there are 240 new connections, each of under a millisecond.
const SOCKET_NOISE: i64 = 8;
/// An allocator's arenas come and go by this much …
const RSS_NOISE_KIB: i64 = 4096;
/// … or by this part of the level.
const RSS_NOISE_PART: i64 = 5;

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What must hold.
    pub(crate) what: &'static str,
    /// Whether it does. `null`: it could not be judged, for the reason in `detail`, which is no failure.
    pub(crate) passed: Option<bool>,
    /// The figures.
    pub(crate) detail: String,
}

impl Check {
    pub(super) fn new(what: &'static str, passed: bool, detail: impl Into<String>) -> Self {
        Self {
            what,
            passed: Some(passed),
            detail: detail.into(),
        }
    }

    fn not_judged(what: &'static str, why: impl Into<String>) -> Self {
        Self {
            what,
            passed: None,
            detail: why.into(),
        }
    }

    /// Whether it fails the soak.
    pub(crate) fn failed(&self) -> bool {
        self.passed == Some(false)
    }
}

/// What the checks judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) totals: Totals,
    pub(crate) idle: &'a IdleResults,
    pub(crate) websockets: Sessions,
    pub(crate) reloads: &'a [Reload],
    pub(crate) holdings: &'a Holdings,
    pub(crate) ending: &'a Ending,
}

/// All checks, in the order in which a reader wants to know.
pub(crate) fn all(found: Found<'_>) -> Vec<Check> {
    let Found {
        totals,
        idle,
        websockets,
        reloads,
        holdings,
        ending,
    } = found;
    let mut checks = vec![
        Check::new(
            "no request and no message is lost",
            totals.ended > 0 && totals.lost == 0,
            format!("{} lost of {}", totals.lost, totals.ended),
        ),
        Check::new(
            "no keep-alive connection is closed",
            totals.closed == 0,
            format!(
                "{} closed by the server although nothing was wrong",
                totals.closed
            ),
        ),
    ];
    checks.extend((idle.connections > 0).then(|| idle_live(idle)));
    checks.extend((websockets.sessions > 0).then(|| sessions_live(totals, websockets)));
    checks.extend([
        reloads_succeed(reloads),
        new_build_answers(reloads),
        counter(totals, ending),
        one_generation(reloads, ending),
    ]);
    checks.extend(flat(holdings));
    checks.push(stop(ending));
    checks
}

fn idle_live(idle: &IdleResults) -> Check {
    let detail = format!(
        "{} connections looked at {} times, {} closed; {} of {} requests answered on them",
        idle.connections, idle.looks, idle.closed, idle.right, idle.used
    );
    Check::new(
        "every idle connection is alive after each reload",
        idle.looks > 0 && idle.closed == 0 && idle.right == idle.used,
        detail,
    )
}

fn sessions_live(totals: Totals, websockets: Sessions) -> Check {
    let detail = format!(
        "{} forced reconnects; {} of {} sessions on one connection, {} messages",
        totals.forced_reconnects, websockets.unbroken, websockets.sessions, websockets.messages
    );
    Check::new(
        "every WebSocket session goes on",
        totals.forced_reconnects == 0
            && websockets.unbroken == websockets.sessions
            && websockets.messages > 0,
        detail,
    )
}

fn reloads_succeed(reloads: &[Reload]) -> Check {
    let failed: Vec<_> = reloads
        .iter()
        .filter_map(|reload| Some((reload.number, reload.failure.as_ref()?)))
        .collect();
    let mut detail = format!("{} of {} failed", failed.len(), reloads.len());
    if let Some((number, failure)) = failed.first() {
        let _ = write!(detail, "; reload {number}: {failure}");
    }
    Check::new(
        "every reload succeeds",
        failed.is_empty() && !reloads.is_empty(),
        detail,
    )
}

fn new_build_answers(reloads: &[Reload]) -> Check {
    let confirmed = reloads.iter().filter(|reload| reload.generation.is_some());
    let silent: Vec<u64> = confirmed
        .filter(|reload| reload.first_answer_ms.is_none())
        .map(|reload| reload.number)
        .collect();
    let detail = match silent.first() {
        None => "each new generation answered a new connection".into(),
        Some(first) => format!("{} never did, the first at reload {first}", silent.len()),
    };
    Check::new("every new generation answers", silent.is_empty(), detail)
}

fn counter(totals: Totals, ending: &Ending) -> Check {
    let what = "the server's counter equals the answers received";
    let Some(requests) = ending.server_requests else {
        return Check::new(what, false, "`/status` did not tell the counter");
    };
    let detail = format!("counter {requests}, answers {}", ending.answers);
    if totals.lost > 0 {
        // A lost request may or may not have been counted.
        Check::not_judged(
            what,
            format!("{detail}; not judged, because {} were lost", totals.lost),
        )
    } else {
        Check::new(what, requests == ending.answers, detail)
    }
}

fn one_generation(reloads: &[Reload], ending: &Ending) -> Check {
    let expected = reloads.iter().filter_map(|reload| reload.generation).max();
    let alone = ending.serving.is_some_and(|pid| ending.processes == [pid]);
    let last = expected.is_none() || ending.generation == expected;
    let detail = format!(
        "processes {:?}; `hello status` names generation {}, pid {}",
        ending.processes,
        shown(ending.generation),
        shown(ending.serving)
    );
    let known = ending.strangers.is_empty();
    let detail = if known {
        detail
    } else {
        format!("{detail}; {:?} answered too", ending.strangers)
    };
    Check::new(
        "one generation is left, the last",
        alone && last && known,
        detail,
    )
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn flat(holdings: &Holdings) -> [Check; 3] {
    let rss_noise = |growth: Growth| RSS_NOISE_KIB.max(growth.first_tenth / RSS_NOISE_PART);
    [
        grows(
            "descriptors that are not sockets",
            holdings.other_fds,
            |_| OTHER_FD_NOISE,
        ),
        grows(
            "sockets beyond the client's connections",
            holdings.sockets_beyond_clients,
            |_| SOCKET_NOISE,
        ),
        grows("resident memory (KiB)", holdings.rss_kib, rss_noise),
    ]
}

fn grows(what: &'static str, growth: Option<Growth>, noise: impl Fn(Growth) -> i64) -> Check {
    let Some(growth) = growth else {
        return Check::new(what, false, "nothing could be sampled");
    };
    let detail = format!(
        "first {}, median of the first tenth {}, of the last tenth {}, max {}",
        growth.first, growth.first_tenth, growth.last_tenth, growth.max
    );
    if growth.samples < MIN_SAMPLES {
        return Check::not_judged(
            what,
            format!("{detail}; not judged under {MIN_SAMPLES} reloads"),
        );
    }
    Check::new(
        what,
        growth.last_tenth <= growth.first_tenth + noise(growth),
        detail,
    )
}

fn stop(ending: &Ending) -> Check {
    let mut wrong = Vec::new();
    if ending.stop_exit != Some(0) {
        wrong.push(format!(
            "exit code {}: {}",
            shown(ending.stop_exit),
            ending.stop_output.trim()
        ));
    }
    if !ending.left.is_empty() {
        wrong.push(format!("processes {:?} are left", ending.left));
    }
    wrong.extend(ending.port.clone());
    let detail = if wrong.is_empty() {
        "exit code 0, no process left, port free".into()
    } else {
        wrong.join("; ")
    };
    Check::new("`hello stop` stops it", wrong.is_empty(), detail)
}

#[cfg(test)]
mod tests;
