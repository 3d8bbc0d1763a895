//! Each fault fails its own check, and no other.

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
