//! Either process killed, or frozen, before and after every message that it says, and when it has heard one.
//!
//! What must hold follows from where the decision lies. Before `Accepting` has been said the old generation serves on,
//! and no request is lost. Once the offer is complete, the death of the old one makes the new one serve. Who
//! was frozen and thaws again in time was just slow.

#![allow(
    clippy::zombie_processes,
    reason = "the harness kills what runs from its directory"
)]

mod support;

use std::process::Child;

use nix::sys::signal::Signal;
use support::{
    Hello, Start,
    at_rest::{freezes, is_frozen},
    cells::{all_children_are_well, child_does, child_of, each, end_of, parent_does, reloading},
    client::Client,
    crowd::Crowd,
    eventually,
    load::Load,
    text,
};

/// Of each client of a service that ends without a word: the request under way, and one that found its way
/// into a queue that nobody accepts from any more.
const LOST_AT_THE_END: u64 = 2 * Crowd::CLIENTS;

/// A request that a test can keep under way: what it changes is said after the commit, and its connection moves
/// last.
struct Upload(Client);

impl Upload {
    fn begin(hello: &Hello) -> Self {
        let mut client = Client::connect(hello.address());
        client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf ");
        client.until_read();
        Self(client)
    }

    /// The other half, once the child has been told to take over.
    fn send_rest_after_commit(&mut self, hello: &Hello, parent: u32) {
        eventually("the child has taken the pidfile over", || {
            hello.pid() != parent
        });
        self.0.send("whole");
    }
}

/// The next reload succeeds, and the one before has left nothing behind.
fn goes_on(hello: &Hello, generation: u64) {
    all_children_are_well(hello);
    let load = Load::calm(hello.address());
    let line = hello.reload();
    assert!(
        line.starts_with(&format!("generation {generation} → ")),
        "{line}"
    );
    load.goes_on();
    load.finish();
    assert_eq!(hello.at_rest().generation, generation + 1);
}

/// What the child says and hears until it has said that it accepts; the phase in which the parent then is.
const BEFORE_ACCEPTING: &[(&str, &str)] = &[
    ("before-say/Hello", "joining"),
    ("after-say/Hello", "booting"),
    ("heard/Offer", "booting"),
    ("before-say/Prepared", "booting"),
    ("after-say/Prepared", "restoring"),
    ("heard/State", "restoring"),
    ("before-say/Ready", "restoring"),
    ("after-say/Ready", "committing"),
    ("heard/Commit", "committing"),
    ("before-say/Accepting", "committing"),
];

/// And then.
const CHILD_AFTER: &[&str] = &[
    "after-say/Accepting",
    "heard/Confirm",
    "heard/Draining",
    "heard/Rest",
    "before-say/RestAck",
    "after-say/RestAck",
    "heard/Conn",
    "before-say/ConnAck",
    "after-say/ConnAck",
    "heard/Bye",
];

/// What the parent says and hears before the offer is complete.
const BEFORE_THE_OFFER: &[&str] = &["heard/Hello", "before-say/Offer"];

/// Then, up to its last word. `true`: the child has the state by then.
const AFTER_THE_OFFER: &[(&str, bool)] = &[
    ("after-say/Offer", false),
    ("heard/Prepared", false),
    ("before-say/State", false),
    ("after-say/State", true),
    ("heard/Ready", true),
    ("before-say/Commit", true),
    ("after-say/Commit", true),
    ("heard/Accepting", true),
    ("before-say/Confirm", true),
    ("after-say/Confirm", true),
    ("before-say/Draining", true),
    ("after-say/Draining", true),
    ("before-say/Rest", true),
    ("after-say/Rest", true),
    ("heard/RestAck", true),
    ("before-say/Conn", true),
    ("after-say/Conn", true),
    ("heard/ConnAck", true),
    ("before-say/Bye", true),
    ("after-say/Bye", true),
];

/// The reload fails in `phase`, for this reason; the old generation serves every request.
fn old_one_serves_on(start: Start, point: &str, what: &str, phase: &str, reason: &str) {
    let hello = start.start();
    let before = hello.at_rest();
    child_does(&hello, point, what);
    let load = Load::calm(hello.address());
    let said = hello.reload_fails(1);
    load.goes_on();
    let mut answered = load.finish();
    for words in [
        &*format!("reload 1 failed while {phase}: {reason}"),
        &*format!("generation 1, pid {}, serves on", before.pid),
    ] {
        assert!(
            said.contains(words),
            "`{words}` is missing:\n{said}\n{}",
            hello.log()
        );
    }
    hello.is_again(&before);

    all_children_are_well(&hello);
    let load = Load::calm(hello.address());
    let line = hello.reload();
    assert!(line.starts_with("generation 1 → 2"), "{line}");
    load.goes_on();
    answered += load.finish();
    assert_eq!(hello.requests(), answered, "the counter is exact");
    hello.holds_what_it_held(&before);
}

#[test]
fn a_child_that_is_killed_before_it_accepts() {
    each(
        BEFORE_ACCEPTING,
        |(point, _)| format!("child killed, {point}"),
        |(point, phase)| {
            let reason = "the child was killed by signal 9 (SIGKILL)";
            old_one_serves_on(Hello::with(), point, "kill", phase, reason);
        },
    );
}

/// A deadline alone decides nothing after the commit: the child is killed, and its death awaited.
#[test]
fn a_child_that_is_frozen_before_it_accepts() {
    each(
        BEFORE_ACCEPTING,
        |(point, _)| format!("child frozen, {point}"),
        |(point, phase)| {
            let start = Hello::with().arg("--ready-timeout").arg("5s");
            let reason = match *phase {
                "joining" => "the child did not say Hello in time: is it this program? (limit: 5s)",
                "booting" => "the child was not prepared in time (limit: 5s)",
                "restoring" => "the child was not ready in time (limit: 5s)",
                _ => "the child did not accept in time after the commit (limit: 5s)",
            };
            old_one_serves_on(start, point, "stop", phase, reason);
        },
    );
}

/// Without a probation the parent has left by then: the service is gone, and says so. What the parent had not
/// handed over it answers.
#[test]
fn a_child_that_is_killed_after_it_accepts() {
    each(
        CHILD_AFTER,
        |point| format!("child killed, {point}"),
        |point| {
            let hello = Hello::start();
            let parent = hello.pid();
            child_does(&hello, point, "kill");
            let mut upload = Upload::begin(&hello);
            let crowd = Crowd::start(hello.address());
            let reloading = reloading(&hello);
            if *point != "after-say/Accepting" {
                eventually("the child has taken the pidfile over", || {
                    hello.pid() != parent
                });
                let child = hello.pid();
                if *point == "heard/Draining" {
                    eventually("the child is dead", || !hello.processes().contains(&child));
                }
                upload.0.send("whole");
                let answer = upload.0.try_answer();
                if *point == "heard/Draining" {
                    let answer = answer.expect("an answer").expect("an answer");
                    assert_eq!(answer.status, 200);
                }
            }
            drop(upload);
            let output = end_of(reloading);
            eventually("no process is left, or the parent serves on", || {
                hello.processes().is_empty()
                    || hello.processes() == [parent] && hello.pid() == parent
            });
            if hello.processes().is_empty() {
                // It had been confirmed.
                assert_eq!(output.status.code(), Some(0), "{}", text(&output));
                crowd.is_refused();
                let counts = crowd.finish();
                assert!(counts.lost <= LOST_AT_THE_END, "{counts:?}");
                let status = hello.hello(&["status"]);
                assert_eq!(status.status.code(), Some(3), "{}", text(&status));
                hello.serve_anew();
            } else {
                // The parent has seen the death before it said the last word.
                assert_eq!(*point, "after-say/Accepting");
                assert_eq!(output.status.code(), Some(1), "{}", text(&output));
                crowd.goes_on();
                assert_eq!(crowd.finish().refused, 0);
                goes_on(&hello, 1);
            }
        },
    );
}

#[test]
fn a_parent_that_is_killed_before_its_offer_is_complete() {
    each(
        BEFORE_THE_OFFER,
        |point| format!("parent killed, {point}"),
        |point| {
            let hello = parent_does(Hello::with(), point, "kill");
            let crowd = Crowd::start(hello.address());
            let output = end_of(reloading(&hello));
            assert_eq!(output.status.code(), Some(4), "{}", text(&output));
            assert!(
                text(&output).contains("the server went away"),
                "{}",
                text(&output)
            );
            // The child has nothing to serve with.
            eventually("no process is left", || hello.processes().is_empty());
            crowd.is_refused();
            let counts = crowd.finish();
            assert!(counts.lost <= LOST_AT_THE_END, "{counts:?}");
            let status = hello.hello(&["status"]);
            assert_eq!(status.status.code(), Some(3), "{}", text(&status));
            hello.serve_anew();
        },
    );
}

/// Connections in the parent are lost, and only those; nobody is refused.
#[test]
fn a_parent_that_is_killed_after_its_offer() {
    each(
        AFTER_THE_OFFER,
        |(point, _)| format!("parent killed, {point}"),
        |(point, has_state)| {
            let hello = parent_does(Hello::with(), point, "kill");
            let before = hello.at_rest();
            let parent = before.pid;
            let load = Load::calm(hello.address());
            let known = load.finish();
            let mut upload = Upload::begin(&hello);
            let crowd = Crowd::start(hello.address());
            let reloading = reloading(&hello);
            let is_late =
                point.ends_with("Rest") || point.ends_with("RestAck") || point.ends_with("Bye");
            if is_late {
                upload.send_rest_after_commit(&hello, parent);
            }
            eventually("the parent is dead", || {
                !hello.processes().contains(&parent)
            });
            crowd.goes_on();
            let output = end_of(reloading);
            let said = text(&output);
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(said.contains("generation 1 → 2, pid "), "{said}");
            let crashed =
                format!("generation 1, pid {parent}, crashed: what it still served is lost");
            assert_eq!(said.contains(&crashed), *point != "after-say/Bye", "{said}");
            let counts = crowd.finish();
            assert_eq!(counts.refused, 0, "{counts:?}");
            assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
            assert_eq!(hello.at_rest().generation, 2);
            // Nothing is served twice; and what the child was given it has.
            let requests = hello.requests();
            let most = known + counts.answered + counts.lost + 1;
            assert!(requests <= most, "{requests} of {most}");
            if *has_state {
                assert!(
                    requests >= known,
                    "{requests}, but {known} were handed over"
                );
            }
            drop(upload);
            goes_on(&hello, 2);
            hello.holds_what_it_held(&before);
        },
    );
}

/// Frozen and soon thawed: slow, and nothing else.
#[test]
fn a_parent_that_is_frozen_and_thaws() {
    each(
        AFTER_THE_OFFER,
        |(point, _)| format!("parent frozen, {point}"),
        |(point, _)| {
            let hello = parent_does(Hello::with(), point, "stop");
            let before = hello.at_rest();
            frozen_and_thawed(&hello, &before, |_| before.pid, point);
        },
    );
}

#[test]
fn a_child_that_is_frozen_and_thaws() {
    let mut points: Vec<&str> = BEFORE_ACCEPTING.iter().map(|(point, _)| *point).collect();
    points.extend(CHILD_AFTER);
    // A parent that has said `Bye` ends. If its child is stopped by then, the kernel wakes that with SIGHUP, as the last of
    // an orphaned process group (setpgid(2)), and it reloads once more: the fault matrix has that cell, and expects it.
    points.retain(|point| *point != "heard/Bye");
    each(
        &points,
        |point| format!("child frozen, {point}"),
        |point| {
            let hello = Hello::start();
            let before = hello.at_rest();
            child_does(&hello, point, "stop");
            let who = |reloading: &Child| child_of(&hello, before.pid, reloading);
            frozen_and_thawed(&hello, &before, who, point);
        },
    );
}

fn frozen_and_thawed(
    hello: &Hello,
    before: &support::at_rest::AtRest,
    who: impl Fn(&Child) -> u32,
    point: &str,
) {
    let mut upload = Upload::begin(hello);
    let load = Load::calm(hello.address());
    let mut reloading = reloading(hello);
    let is_late = point.ends_with("Rest") || point.ends_with("RestAck") || point.ends_with("Bye");
    if is_late {
        upload.send_rest_after_commit(hello, before.pid);
    }
    let frozen = who(&reloading);
    freezes(frozen);
    hello.signal(frozen, Signal::SIGCONT);
    let mut is_sent = is_late;
    eventually("the reload has ended", || {
        // Some things are said more than once.
        if is_frozen(frozen) {
            hello.signal(frozen, Signal::SIGCONT);
        }
        if !is_sent && hello.pid() != before.pid {
            upload.0.send("whole");
            is_sent = true;
        }
        reloading.try_wait().expect("wait").is_some()
    });
    assert_eq!(upload.0.answer().status, 200);
    let output = end_of(reloading);
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        hello.log()
    );
    assert!(
        text(&output).contains("generation 1 → 2, pid "),
        "{}",
        text(&output)
    );
    load.goes_on();
    let answered = load.finish() + 1;
    assert_eq!(hello.requests(), answered, "the counter is exact");
    drop(upload);
    goes_on(hello, 2);
    hello.holds_what_it_held(before);
}

/// The child cannot know whether the parent will thaw: it gives up, accepts nothing, and goes.
#[test]
fn a_parent_that_is_frozen_for_too_long_before_the_commit() {
    let points = ["after-say/Offer", "heard/Ready", "before-say/Commit"];
    each(
        &points,
        |point| format!("parent frozen, {point}"),
        |point| {
            let hello = Hello::with()
                .arg("--ready-timeout")
                .arg("1s")
                .env("HANDOFF_FAILPOINTS", &format!("parent/{point}=stop"))
                .start();
            let before = hello.at_rest();
            all_children_are_well(&hello);
            let load = Load::calm(hello.address());
            let reloading = reloading(&hello);
            let child = child_of(&hello, before.pid, &reloading);
            freezes(before.pid);
            let status = hello.hello(&["status"]);
            assert_eq!(status.status.code(), Some(4), "{}", text(&status));
            eventually("the child has gone", || !hello.processes().contains(&child));
            hello.signal(before.pid, Signal::SIGCONT);
            let output = end_of(reloading);
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
            let said = text(&output);
            assert!(said.contains("the parent did not decide in time"), "{said}");
            load.goes_on();
            let answered = load.finish();
            assert_eq!(hello.requests(), answered, "the counter is exact");
            hello.is_again(&before);
        },
    );
}

/// The child serves, and a parent that cannot come back in time does not come back at all.
#[test]
fn a_parent_that_is_frozen_for_too_long_after_the_commit() {
    let points = ["after-say/Commit", "after-say/Confirm"];
    each(
        &points,
        |point| format!("parent frozen, {point}"),
        |point| {
            let hello = parent_does(Hello::with(), point, "stop");
            let before = hello.at_rest();
            let crowd = Crowd::start(hello.address());
            let reloading = reloading(&hello);
            freezes(before.pid);
            let mut client = Client::connect(hello.address());
            assert_eq!(client.get("/hello").generation(), 2);
            let output = end_of(reloading);
            assert!(output.status.success(), "{}", text(&output));
            assert_eq!(client.get("/hello").generation(), 2);
            crowd.goes_on();
            let counts = crowd.finish();
            assert_eq!(counts.refused, 0, "{counts:?}");
            assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
            drop(client);
            goes_on(&hello, 2);
            hello.holds_what_it_held(&before);
        },
    );
}
