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
    fn new(what: &'static str, passed: bool, detail: impl Into<String>) -> Self {
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
mod tests {
    use super::super::process::Holding;
    use super::*;

    fn reloads(count: u64) -> Vec<Reload> {
        let holding = Some(Holding {
            sockets: 75,
            other_fds: 9,
            rss_kib: 6000,
        });
        (1..=count)
            .map(|number| Reload {
                number,
                exit: Some(0),
                generation: Some(number + 1),
                first_answer_ms: Some(3.0),
                holding,
                client_connections: 70,
                ..Reload::default()
            })
            .collect()
    }

    fn ending() -> Ending {
        Ending {
            answers: 100,
            server_requests: Some(100),
            serving: Some(7),
            generation: Some(101),
            processes: vec![7],
            stop_exit: Some(0),
            ..Ending::default()
        }
    }

    const FINE: Totals = Totals {
        ended: 120,
        ok: 120,
        lost: 0,
        closed: 0,
        forced_reconnects: 0,
    };
    const SESSIONS: Sessions = Sessions {
        sessions: 20,
        unbroken: 20,
        messages: 500,
        worst_lateness_ms: 0.1,
    };

    fn idle() -> IdleResults {
        IdleResults {
            connections: 20,
            looks: 2000,
            closed: 0,
            used: 400,
            right: 400,
        }
    }

    fn judged(totals: Totals, reloads: &[Reload], ending: &Ending) -> Vec<Check> {
        all(Found {
            totals,
            idle: &idle(),
            websockets: SESSIONS,
            reloads,
            holdings: &Holdings::of(reloads),
            ending,
        })
    }

    fn failed(totals: Totals, reloads: &[Reload], ending: &Ending) -> Vec<&'static str> {
        names(&judged(totals, reloads, ending))
    }

    fn names(checks: &[Check]) -> Vec<&'static str> {
        checks
            .iter()
            .filter(|check| check.failed())
            .map(|check| check.what)
            .collect()
    }

    #[test]
    fn a_good_soak_passes() {
        assert_eq!(failed(FINE, &reloads(100), &ending()), [""; 0]);
    }

    #[test]
    fn each_fault_fails_its_own_check() {
        let good = reloads(100);
        let lost = Totals { lost: 1, ..FINE };
        assert_eq!(
            failed(lost, &good, &ending()),
            ["no request and no message is lost"]
        );
        let closed = Totals { closed: 1, ..FINE };
        assert_eq!(
            failed(closed, &good, &ending()),
            ["no keep-alive connection is closed"]
        );
        let mut bad = good.clone();
        bad[3].failure = Some("exit code 1".into());
        assert_eq!(failed(FINE, &bad, &ending()), ["every reload succeeds"]);
        let mut bad = good.clone();
        bad[3].first_answer_ms = None;
        assert_eq!(
            failed(FINE, &bad, &ending()),
            ["every new generation answers"]
        );
        let miscounted = Ending {
            server_requests: Some(99),
            ..ending()
        };
        assert_eq!(
            failed(FINE, &good, &miscounted),
            ["the server's counter equals the answers received"]
        );
        for left in [vec![], vec![7, 8], vec![8]] {
            let two = Ending {
                processes: left,
                ..ending()
            };
            assert_eq!(
                failed(FINE, &good, &two),
                ["one generation is left, the last"]
            );
        }
        let stranger = Ending {
            strangers: vec![8],
            ..ending()
        };
        assert_eq!(
            failed(FINE, &good, &stranger),
            ["one generation is left, the last"]
        );
        let old = Ending {
            generation: Some(100),
            ..ending()
        };
        assert_eq!(
            failed(FINE, &good, &old),
            ["one generation is left, the last"]
        );
        let stop = [
            Ending {
                stop_exit: Some(2),
                ..ending()
            },
            Ending {
                left: vec![9],
                ..ending()
            },
            Ending {
                port: Some("in use".into()),
                ..ending()
            },
        ];
        for stop in stop {
            assert_eq!(failed(FINE, &good, &stop), ["`hello stop` stops it"]);
        }
    }

    #[test]
    fn idle_connections_and_sessions_have_checks_of_their_own() {
        let (reloads, ending) = (reloads(100), ending());
        let judge = |idle: &IdleResults, websockets, totals| {
            names(&all(Found {
                totals,
                idle,
                websockets,
                reloads: &reloads,
                holdings: &Holdings::of(&reloads),
                ending: &ending,
            }))
        };
        let (closed, unanswered, unseen) = (
            IdleResults {
                closed: 1,
                ..idle()
            },
            IdleResults {
                right: 399,
                ..idle()
            },
            IdleResults { looks: 0, ..idle() },
        );
        for bad in [closed, unanswered, unseen] {
            let failed = judge(&bad, SESSIONS, FINE);
            assert_eq!(failed, ["every idle connection is alive after each reload"]);
        }
        let reconnected = Totals {
            forced_reconnects: 1,
            ..FINE
        };
        let failed = judge(&idle(), SESSIONS, reconnected);
        assert_eq!(failed, ["every WebSocket session goes on"]);
        for (unbroken, messages) in [(19, 500), (20, 0)] {
            let bad = Sessions {
                unbroken,
                messages,
                ..SESSIONS
            };
            assert_eq!(
                judge(&idle(), bad, FINE),
                ["every WebSocket session goes on"]
            );
        }
        let none = judge(&IdleResults::default(), Sessions::default(), FINE);
        assert_eq!(none, [""; 0], "nobody asked for any");
    }

    #[test]
    fn a_leak_of_one_descriptor_a_reload_fails() {
        for (sockets, other_fds, rss_kib, what) in [
            (1, 0, 0, "sockets beyond the client's connections"),
            (0, 1, 0, "descriptors that are not sockets"),
            (0, 0, 100, "resident memory (KiB)"),
        ] {
            let mut leaking = reloads(100);
            for (n, reload) in (0..).zip(&mut leaking) {
                let holding = reload.holding.as_mut().unwrap();
                holding.sockets += n * sockets;
                holding.other_fds += n * other_fds;
                holding.rss_kib += n * rss_kib;
            }
            assert_eq!(failed(FINE, &leaking, &ending()), [what]);
        }
    }

    #[test]
    fn nothing_done_is_not_a_pass() {
        let nothing = failed(Totals::default(), &[], &ending());
        assert!(
            nothing.contains(&"no request and no message is lost")
                && nothing.contains(&"every reload succeeds"),
            "{nothing:?}"
        );
    }

    #[test]
    fn few_reloads_do_not_judge_growth() {
        let checks = judged(FINE, &reloads(5), &ending());
        assert_eq!(
            checks.iter().filter(|check| check.passed.is_none()).count(),
            3
        );
    }
}
