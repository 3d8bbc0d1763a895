use std::collections::BTreeMap;

use handoff::control::message::{DrainingStatus, ListenerStatus, ProbationStatus, ReloadStatus};
use serde_json::json;

use super::*;

const FROM: Generation = Generation {
    generation: 3,
    pid: 811,
};
const TO: Generation = Generation {
    generation: 4,
    pid: 857,
};

fn confirmed(listeners: ListenerChanges) -> Outcome {
    Outcome::Confirmed {
        from: FROM,
        to: TO,
        serving_us: 4_100,
        listeners,
    }
}

fn report(drained: Option<ConnectionCounts>) -> ReloadReport {
    ReloadReport {
        reload: 7,
        outcome: confirmed(ListenerChanges::default()),
        drained: drained.map(|connections| Drained {
            at_us: 12_000,
            connections,
        }),
    }
}

#[test]
fn a_reload_ends_with_one_line() {
    let report = report(Some(ConnectionCounts::default()));
    assert_eq!(
        reloaded(&report, Parent::Awaited(Duration::from_secs(60))).unwrap(),
        "generation 3 → 4, pid 811 → 857: serving after 4.1 ms, parent drained after 12 ms"
    );
}

#[test]
fn what_became_of_connections_is_counted_and_the_cut_are_named() {
    let mut report = report(Some(ConnectionCounts {
        moved: 40,
        moved_as: moved_as([("answered", 8), ("idle", 31), ("upgraded", 1)]),
        drained: 2,
        cut: 3,
        named: vec!["127.0.0.1:4711 POST /upload".to_owned()],
    }));
    report.outcome = confirmed(ListenerChanges {
        kept: vec!["http".to_owned()],
        added: vec!["admin".to_owned(), "moved".to_owned(), "metrics".to_owned()],
        removed: vec!["moved".to_owned(), "old".to_owned()],
        changed: vec!["moved".to_owned()],
    });
    assert_eq!(
        reloaded(&report, Parent::NotAwaited).unwrap(),
        "generation 3 → 4, pid 811 → 857: serving after 4.1 ms, parent drained after 12 ms \
         (40 connections moved (31 idle, 8 after an answer, 1 upgraded), 2 drained, 3 cut)\n  \
         listeners kept: http\n  \
         listeners added: admin, metrics\n  \
         listeners removed: old\n  \
         listeners changed: moved\n  \
         cut: 127.0.0.1:4711 POST /upload\n  \
         cut: 2 more"
    );
}

fn moved_as<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(what, count)| (what.to_owned(), count)).into()
}

#[test]
fn zeros_are_not_worth_a_word() {
    let idle = ConnectionCounts {
        moved: 2,
        moved_as: moved_as([("idle", 2)]),
        ..ConnectionCounts::default()
    };
    assert_eq!(counts(&idle).unwrap(), "2 connections moved (idle)");
    let counts = |moved, drained| {
        counts(&ConnectionCounts {
            moved,
            drained,
            ..ConnectionCounts::default()
        })
    };
    assert_eq!(counts(0, 0), None);
    assert_eq!(counts(1, 0).unwrap(), "1 connection moved");
    assert_eq!(counts(0, 2).unwrap(), "2 connections drained");
}

#[test]
fn a_parent_that_was_not_awaited_still_drains() {
    let report = report(None);
    let start = "generation 3 → 4, pid 811 → 857: serving after 4.1 ms, parent ";
    assert_eq!(
        reloaded(&report, Parent::NotAwaited).unwrap(),
        format!("{start}drains")
    );
    assert_eq!(
        reloaded(&report, Parent::Awaited(Duration::from_secs(60))).unwrap(),
        format!("{start}not seen to end within 1m00s")
    );
}

#[test]
fn a_successor_that_is_asked_later_does_not_know_when() {
    let mut report = report(Some(ConnectionCounts::default()));
    if let Some(drained) = &mut report.drained {
        drained.at_us = 0;
    }
    assert_eq!(
        reloaded(&report, Parent::NotAwaited).unwrap(),
        "generation 3 → 4, pid 811 → 857: serving after 4.1 ms, parent has ended"
    );
}

#[test]
fn a_failure_has_a_phase_a_reason_and_a_survivor() {
    assert_eq!(
        failed(7, "booting", "the child exited with status 101"),
        "reload 7 failed while booting: the child exited with status 101"
    );
    let phase = |phase: &str| serves_on(Some((FROM, phase.to_owned())));
    assert_eq!(phase("serving"), "generation 3, pid 811, serves on");
    assert_eq!(phase("stopping"), "generation 3, pid 811, is stopping");
}

#[test]
fn progress_names_the_child_as_soon_as_there_is_one() {
    let elapsed = Duration::from_millis(3_210);
    assert_eq!(
        progress(7, "booting", Some(857), elapsed),
        "reload 7: booting, child 857, 3.2 s"
    );
    assert_eq!(
        progress(7, "starting", None, Duration::from_micros(850)),
        "reload 7: starting, 850 µs"
    );
}

fn a_status() -> Status {
    let listener = |name: &str, address: &str| ListenerStatus {
        name: name.to_owned(),
        address: address.to_owned(),
        backlog: 4096,
    };
    Status {
        process: TO,
        build: "hello 0.1.0 (eee)".to_owned(),
        phase: "serving".to_owned(),
        serving_for_ms: 192_000,
        probation: None,
        listeners: vec![
            listener("http", "127.0.0.1:8321"),
            listener("http-2", "unix:/run/hello.sock"),
        ],
        reload: None,
        last_reload: None,
        draining: Vec::new(),
        application: Value::Null,
    }
}

#[test]
fn a_status_is_short_when_nothing_happens() {
    assert_eq!(
        status(&a_status()),
        "hello 0.1.0 (eee), generation 4, pid 857, serving for 3m12s\n\
         listeners\n  \
         http    127.0.0.1:8321        backlog 4096\n  \
         http-2  unix:/run/hello.sock  backlog 4096"
    );
}

#[test]
fn a_status_tells_all_that_goes_on() {
    let full = Status {
        phase: "stopping".to_owned(),
        listeners: Vec::new(),
        reload: Some(ReloadStatus {
            reload: 8,
            phase: "booting".to_owned(),
            pid: Some(900),
            elapsed_ms: 3_200,
            dry_run: false,
        }),
        last_reload: Some(LastReload {
            reload: 7,
            outcome: confirmed(ListenerChanges::default()),
            drained: Some(ConnectionCounts {
                moved: 40,
                ..ConnectionCounts::default()
            }),
        }),
        draining: vec![DrainingStatus {
            process: FROM,
            waiting_for: 1,
            named: vec!["127.0.0.1:4711 POST /upload".to_owned()],
        }],
        application: json!({ "connections": 12, "greeting": "eee" }),
        ..a_status()
    };
    assert_eq!(
        status(&full),
        "hello 0.1.0 (eee), generation 4, pid 857, stopping, after 3m12s\n\
         application\n  \
         connections  12\n  \
         greeting     eee\n\
         under way\n  \
         reload 8: booting, child 900, 3.2 s\n\
         last reload\n  \
         7: generation 3 → 4, pid 811 → 857, serving after 4.1 ms, 40 connections moved\n\
         draining\n  \
         generation 3, pid 811, waits for 1 connection\n    \
         127.0.0.1:4711 POST /upload"
    );
}

#[test]
fn a_status_tells_of_a_probation() {
    let probation = Some(ProbationStatus {
        reload: 7,
        parent: FROM,
        left_ms: 2_300,
    });
    let text = status(&Status {
        probation,
        ..a_status()
    });
    assert!(
        text.ends_with(
            "on probation\n  reload 7, 2.3 s left; until then generation 3, pid 811, can serve again"
        ),
        "{text}"
    );
}

#[test]
fn a_failed_reload_stays_in_the_status() {
    let last = LastReload {
        reload: 7,
        outcome: Outcome::Failed {
            phase: "booting".to_owned(),
            reason: "the child exited with status 101".to_owned(),
            stderr: Vec::new(),
        },
        drained: None,
    };
    assert_eq!(
        last_reload(&last),
        "7: failed while booting: the child exited with status 101"
    );
}

#[test]
fn times_have_the_digits_that_matter() {
    for (us, expected) in [
        (0, "0 µs"),
        (999, "999 µs"),
        (4_100, "4.1 ms"),
        (9_949, "9.9 ms"),
        (9_950, "10 ms"),
        (12_345, "12 ms"),
        (999_499, "999 ms"),
        (999_500, "1.0 s"),
        (59_949_000, "59.9 s"),
        (60_000_000, "1m00s"),
    ] {
        assert_eq!(micros(us), expected, "{us}");
    }
    for (seconds, expected) in [
        (7, "7s"),
        (192, "3m12s"),
        (18_120, "5h02m"),
        (788_400, "9d03h"),
    ] {
        assert_eq!(span(Duration::from_secs(seconds)), expected);
    }
    assert_eq!(span(Duration::from_millis(250)), "250ms");
}
