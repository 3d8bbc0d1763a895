//! A child that serves, and whose parent can take over again: until the reload is confirmed.
//!
//! Every test acts under traffic. What a child that was killed owned is lost with it; whatever else happens, no request is
//! lost, no connection is closed, and the counters are exact.

#![allow(
    clippy::zombie_processes,
    reason = "the harness kills what runs from its directory"
)]

mod support;

use std::process::{Child, Output};

use nix::sys::signal::Signal;
use support::{
    Hello, Start,
    at_rest::{freezes, is_frozen},
    cells::{all_children_are_well, child_does, end_of, parent_does, reloading},
    client::Client,
    crowd::Crowd,
    eventually,
    load::Load,
    text,
    ws::Ws,
};

/// No test waits for its end.
const LONG_PROBATION: &str = "10m";

/// Long enough for several questions after the health.
const SHORT_PROBATION: &str = "1200ms";

/// A reload whose child serves on probation.
struct OnProbation {
    reloading: Child,
    parent: u32,
    child: u32,
}

impl OnProbation {
    fn begin(hello: &Hello) -> Self {
        let before = hello.status();
        let (parent, generation) = (hello.pid(), before["generation"].as_u64());
        let reloading = reloading(hello);
        let mut child = 0;
        eventually("a child is on probation", || {
            let status = hello.status();
            child = status["pid"].as_u64().expect("a pid");
            status["generation"].as_u64() > generation && status["probation"].is_object()
        });
        Self {
            reloading,
            parent,
            child: u32::try_from(child).expect("a pid"),
        }
    }

    /// Rolls it back; both verbs tell of it.
    fn roll_back(self, hello: &Hello) {
        let output = hello.hello(&["rollback"]);
        assert!(output.status.success(), "{}{}", text(&output), hello.log());
        assert!(text(&output).contains("serves on"), "{}", text(&output));
        let output = end_of(self.reloading);
        failed(&output, "rolled back by an operator");
        assert_eq!(hello.pid(), self.parent);
    }
}

/// A reload that failed on probation, for this reason.
fn failed(output: &Output, reason: &str) {
    let words = text(output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("failed on probation: "), "{words}");
    assert!(words.contains(reason), "{words}");
    assert!(words.contains("serves on"), "{words}");
}

fn on_long_probation() -> Hello {
    Hello::with().probation(LONG_PROBATION).start()
}

/// A connection that this generation has accepted, after its first answer.
fn client_of(hello: &Hello, generation: u64) -> Client {
    let mut client = Client::connect(hello.address());
    assert_eq!(client.get("/hello").generation(), generation);
    client
}

#[test]
fn a_reload_is_confirmed_at_the_end_of_its_probation() {
    let hello = Hello::with().probation(SHORT_PROBATION).start();
    let load = Load::start(hello.address());
    let mut old = client_of(&hello, 1);
    let reload = OnProbation::begin(&hello);
    // New connections are the child's, old ones stay where they are.
    let mut new = client_of(&hello, 2);
    assert_eq!(old.get("/hello").generation(), 1);
    let status = hello.status();
    let left = status["probation"]["left_ms"].as_u64().expect("a number");
    assert!((1..=1200).contains(&left), "{status}");
    assert_eq!(status["probation"]["parent"]["pid"], reload.parent);
    let output = end_of(reload.reloading);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(old.get("/hello").generation(), 2);
    assert_eq!(new.get("/hello").generation(), 2);
    assert!(hello.status()["probation"].is_null());
    let answered = load.finish();
    assert_eq!(hello.requests(), answered + 5);
    hello.settles();
}

#[test]
fn a_rollback_returns_connections_and_the_count() {
    let hello = on_long_probation();
    let before = hello.at_rest();
    let load = Load::start(hello.address());
    let mut old = client_of(&hello, 1);
    let reload = OnProbation::begin(&hello);
    let mut new = client_of(&hello, 2);
    let mut session = Ws::connect(hello.address());
    assert_eq!(session.ask("a"), "1 2 a");
    let mut half = Client::connect(hello.address());
    half.send("GET /hello HTTP/1.1\r\nho");
    half.until_read();
    // Busy when the child is revoked, and moves after its answer.
    let mut busy = Client::connect(hello.address());
    busy.send("GET /slow?ms=700 HTTP/1.1\r\nhost: test\r\n\r\n");
    busy.until_read();
    load.goes_on();
    let child = reload.child;
    reload.roll_back(&hello);
    assert!(!hello.processes().contains(&child));
    assert_eq!(new.get("/hello").generation(), 1);
    assert_eq!(old.get("/hello").generation(), 1);
    assert_eq!(session.ask("b"), "2 1 b");
    half.send("st: test\r\n\r\n");
    assert_eq!(half.answer().generation(), 1);
    assert_eq!(busy.answer().status, 200);
    assert_eq!(busy.get("/hello").generation(), 1);
    load.goes_on();
    let answered = load.finish();
    // old 2, new 2, half 1, busy 2, messages 2.
    assert_eq!(hello.requests(), answered + 9, "{}", hello.log());
    drop((old, new, session, half, busy));
    hello.is_again(&before);
}

#[test]
fn what_does_not_end_in_time_is_cut_and_the_rest_returns() {
    let hello = Hello::with()
        .probation(LONG_PROBATION)
        .arg("--drain-timeout")
        .arg("700ms")
        .start();
    let load = Load::calm(hello.address());
    let reload = OnProbation::begin(&hello);
    let mut new = client_of(&hello, 2);
    let mut slow = Client::connect(hello.address());
    slow.send("GET /slow?ms=50000 HTTP/1.1\r\nhost: test\r\n\r\n");
    slow.until_read();
    reload.roll_back(&hello);
    assert!(slow.try_answer().ok().flatten().is_none(), "it was cut");
    assert_eq!(new.get("/hello").generation(), 1);
    load.goes_on();
    let answered = load.finish();
    assert_eq!(hello.requests(), answered + 2);
    let log = hello.log();
    let returned = log.lines().find(|line| line.contains("has returned"));
    assert!(returned.is_some_and(|line| line.contains("cut=1")), "{log}");
    assert_eq!(hello.at_rest().generation, 1);
}

#[test]
fn a_child_that_is_killed_loses_what_it_owned_and_nothing_else() {
    let hello = on_long_probation();
    let mut old = client_of(&hello, 1);
    let crowd = Crowd::start(hello.address());
    let reload = OnProbation::begin(&hello);
    crowd.goes_on();
    hello.signal(reload.child, Signal::SIGKILL);
    let output = end_of(reload.reloading);
    failed(&output, "SIGKILL");
    assert_eq!(hello.pid(), reload.parent);
    crowd.goes_on();
    assert_eq!(old.get("/hello").generation(), 1);
    assert_eq!(hello.generation(), 1);
    let counts = crowd.finish();
    assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
    assert_eq!((counts.refused, counts.closed), (0, 0));
    hello.settles();
}

#[test]
fn what_a_child_says_on_probation_is_shown() {
    let hello = on_long_probation();
    child_does(&hello, "heard/Health#2", "panic");
    let crowd = Crowd::start(hello.address());
    let output = hello.hello(&["reload"]);
    let words = text(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("failpoint child/heard/Health"), "{words}");
    crowd.goes_on();
    // It was killed by its parent, with what it had begun.
    let counts = crowd.finish();
    assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
    hello.settles();
}

#[test]
fn a_frozen_child_is_revoked_and_never_serves_again() {
    let hello = on_long_probation();
    let mut old = client_of(&hello, 1);
    let crowd = Crowd::start(hello.address());
    let reload = OnProbation::begin(&hello);
    crowd.goes_on();
    hello.signal(reload.child, Signal::SIGSTOP);
    freezes(reload.child);
    let output = end_of(reload.reloading);
    failed(&output, "did not answer during probation");
    crowd.goes_on();
    assert_eq!(old.get("/hello").generation(), 1);
    assert_eq!(hello.generation(), 1);
    assert!(!hello.processes().contains(&reload.child));
    let counts = crowd.finish();
    assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
    hello.settles();
}

#[test]
fn a_child_that_thaws_in_time_was_just_slow() {
    let hello = on_long_probation();
    let load = Load::calm(hello.address());
    let reload = OnProbation::begin(&hello);
    hello.signal(reload.child, Signal::SIGSTOP);
    freezes(reload.child);
    hello.signal(reload.child, Signal::SIGCONT);
    assert!(!is_frozen(reload.child));
    load.goes_on();
    let output = hello.hello(&["confirm"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(end_of(reload.reloading).status.success());
    load.finish();
    assert_eq!(hello.at_rest().generation, 2);
}

#[test]
fn a_child_whose_probe_hangs_is_revoked_in_order() {
    let hello = Hello::with().probation(LONG_PROBATION).start();
    // Before it takes over, the probe may take longer.
    let real = env!("CARGO_BIN_EXE_hello");
    let next = hello.dir().join("next");
    std::os::unix::fs::symlink(real, &next).expect("symlink");
    hello.replace_binary_by_script(&format!(
        "exec {} \"$@\" --probe '/slow?ms=4000'",
        next.display()
    ));
    let load = Load::calm(hello.address());
    let reload = OnProbation::begin(&hello);
    let mut new = client_of(&hello, 2);
    let output = end_of(reload.reloading);
    failed(
        &output,
        "the child is not healthy: not healthy: GET /slow?ms=4000 was not answered",
    );
    assert_eq!(new.get("/hello").generation(), 1);
    load.goes_on();
    load.finish();
    assert_eq!(hello.at_rest().generation, 1);
}

#[test]
fn a_confirmation_by_hand_ends_the_probation() {
    let hello = on_long_probation();
    let load = Load::start(hello.address());
    let reload = OnProbation::begin(&hello);
    let output = hello.hello(&["confirm"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("reload 1 is confirmed: generation 2"),
        "{}",
        text(&output)
    );
    assert!(end_of(reload.reloading).status.success());
    let output = hello.hello(&["rollback"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    let answered = load.finish();
    assert_eq!(hello.requests(), answered);
    hello.settles();
}

#[test]
fn there_is_nothing_to_roll_back_or_to_confirm() {
    let hello = on_long_probation();
    for verb in ["rollback", "confirm"] {
        let output = hello.hello(&[verb]);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
        assert!(
            text(&output).contains("there was no reload"),
            "{}",
            text(&output)
        );
    }
}

#[test]
fn a_second_reload_is_refused_by_name() {
    let hello = on_long_probation();
    let load = Load::calm(hello.address());
    let reload = OnProbation::begin(&hello);
    let output = hello.hello(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let words = text(&output);
    assert!(words.contains("generation 2 is on probation"), "{words}");
    assert!(words.contains("`hello rollback`"), "{words}");
    reload.roll_back(&hello);
    load.finish();
}

#[test]
fn a_signal_on_probation_makes_one_further_reload() {
    for confirms in [true, false] {
        let hello = on_long_probation();
        let load = Load::calm(hello.address());
        let reload = OnProbation::begin(&hello);
        for _ in 0..3 {
            hello.signal(reload.child, Signal::SIGUSR2);
        }
        eventually("the signal is heard", || {
            hello.log().contains("one further reload will follow")
        });
        let verb = if confirms { "confirm" } else { "rollback" };
        let output = hello.hello(&[verb]);
        assert!(output.status.success(), "{}", text(&output));
        let _ = end_of(reload.reloading);
        eventually("the next child is on probation", || {
            let status = hello.status();
            status["probation"]["reload"] == 2
        });
        assert!(hello.hello(&["confirm"]).status.success());
        load.goes_on();
        load.finish();
        let generation = if confirms { 3 } else { 2 };
        assert_eq!(hello.at_rest().generation, generation, "{verb}");
    }
}

#[test]
fn a_stop_on_probation_ends_both() {
    for by_child in [true, false] {
        let hello = on_long_probation();
        let crowd = Crowd::start(hello.address());
        let reload = OnProbation::begin(&hello);
        let whom = if by_child {
            reload.child
        } else {
            reload.parent
        };
        hello.signal(whom, Signal::SIGTERM);
        let output = end_of(reload.reloading);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        hello.is_gone();
        crowd.is_refused();
        let counts = crowd.finish();
        assert!(counts.lost <= Crowd::LOST_AT_A_STOP_OF_TWO, "{counts:?}");
    }
    let hello = on_long_probation();
    let reload = OnProbation::begin(&hello);
    let output = hello.hello(&["stop"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(end_of(reload.reloading).status.code(), Some(1));
    hello.is_gone();
}

/// What is under way at the child is finished; nothing waits for a deadline.
#[test]
fn a_stop_during_a_rollback_waits_for_requests_and_no_longer() {
    let hello = Hello::with()
        .probation(LONG_PROBATION)
        .arg("--drain-timeout")
        .arg("10m")
        .start();
    let reload = OnProbation::begin(&hello);
    let mut client = client_of(&hello, 2);
    client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    client.until_read();
    let rollback = hello.verb(&["rollback"]).spawn().expect("hello rollback");
    eventually("the parent serves again", || {
        let mut client = Client::connect(hello.address());
        client.get("/hello").generation() == 1
    });
    hello.signal(reload.child, Signal::SIGTERM);
    eventually("it is told to stop", || hello.log().contains("stopping"));
    client.send("b");
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (200, true));
    client.expect_end();
    end_of(rollback);
    end_of(reload.reloading);
    hello.is_gone();
}

#[test]
fn a_parent_that_is_killed_on_probation_leaves_a_child_that_serves() {
    let hello = on_long_probation();
    let reload = OnProbation::begin(&hello);
    let mut new = client_of(&hello, 2);
    let crowd = Crowd::start(hello.address());
    hello.signal(reload.parent, Signal::SIGKILL);
    let output = end_of(reload.reloading);
    assert!(output.status.success(), "{}", text(&output));
    crowd.goes_on();
    assert_eq!(new.get("/hello").generation(), 2);
    let counts = crowd.finish();
    assert_eq!(
        counts.lost + counts.refused + counts.closed,
        0,
        "{counts:?}"
    );
    // Its stderr has a reader again: what it says is in the log.
    assert!(
        hello.log().contains("the parent has crashed"),
        "{}",
        hello.log()
    );
    hello.settles();
    let reload = OnProbation::begin(&hello);
    reload.roll_back(&hello);
    assert_eq!(hello.at_rest().generation, 2);
}

#[test]
fn twenty_rounds_of_reload_and_rollback_lose_nothing() {
    let hello = on_long_probation();
    let load = Load::start(hello.address());
    let mut client = client_of(&hello, 1);
    let mut asked = 1;
    let mut session = Ws::connect(hello.address());
    let mut generation = 1;
    for round in 0..20 {
        let reload = OnProbation::begin(&hello);
        load.goes_on();
        let mut new = client_of(&hello, generation + 1);
        assert!(!session.ask("x").is_empty());
        asked += 2;
        if round % 2 == 0 {
            reload.roll_back(&hello);
        } else {
            assert!(hello.hello(&["confirm"]).status.success());
            let output = end_of(reload.reloading);
            assert!(output.status.success(), "{}", text(&output));
            generation += 1;
        }
        assert_eq!(client.get("/hello").generation(), generation);
        assert_eq!(new.get("/hello").generation(), generation);
        asked += 2;
    }
    let answered = load.finish();
    assert_eq!(hello.requests(), answered + asked, "{}", hello.log());
    hello.settles();
}

/// The child killed or frozen around each of its words when it is revoked: what it has not given back dies with it, the
/// parent serves, and the next reload succeeds.
#[test]
fn a_child_that_fails_while_it_returns_things() {
    let points = [
        "heard/Revoke",
        "before-say/Yielded",
        "after-say/Yielded",
        "before-say/Rest",
        "after-say/Rest",
        "before-say/Conn",
        "after-say/Conn",
        "heard/ConnAck",
        "before-say/Bye",
        "after-say/Bye",
    ];
    support::cells::each(
        &points,
        |p| (*p).to_owned(),
        |point| {
            let hello = on_long_probation();
            child_does(&hello, point, "kill");
            let mut old = client_of(&hello, 1);
            let crowd = Crowd::start(hello.address());
            let reload = OnProbation::begin(&hello);
            let clients: Vec<Client> = (0..3).map(|_| client_of(&hello, 2)).collect();
            crowd.goes_on();
            let output = hello.hello(&["rollback"]);
            assert!(output.status.success(), "{}", text(&output));
            failed(&end_of(reload.reloading), "rolled back by an operator");
            crowd.goes_on();
            assert_eq!(old.get("/hello").generation(), 1);
            assert_eq!(hello.pid(), reload.parent);
            let counts = crowd.finish();
            assert!(counts.lost <= Crowd::CLIENTS, "{counts:?}");
            assert_eq!((counts.refused, counts.closed), (0, 0));
            drop(clients);
            all_children_are_well(&hello);
            OnProbation::begin(&hello).roll_back(&hello);
            assert_eq!(hello.at_rest().generation, 1);
        },
    );
}

/// Without a probation, too, the child is not final at once: what it got with the commit is not its own to return.
#[test]
fn a_rollback_before_the_last_word_counts_nothing_twice() {
    // Requests are counted between the snapshot and the commit; and there is time to say it.
    let points = "parent/heard/Ready=delay(200),parent/heard/Accepting=delay(500)";
    let mut taken_back = 0;
    for _ in 0..4 {
        let hello = Hello::with().env("HANDOFF_FAILPOINTS", points).start();
        all_children_are_well(&hello);
        let parent = hello.pid();
        let load = Load::start(hello.address());
        load.goes_on();
        let reload = reloading(&hello);
        eventually("the child has taken over", || hello.pid() != parent);
        // Both processes answer on the control socket: some of these find the child.
        let verbs: Vec<Child> = (0..6)
            .map(|_| hello.verb(&["rollback"]).spawn().expect("rollback"))
            .collect();
        let is_taken_back = end_of(reload).status.code() == Some(1);
        for verb in verbs {
            verb.wait_with_output().expect("rollback");
        }
        // Either way.
        hello.settles();
        load.goes_on();
        let answered = load.finish();
        assert_eq!(hello.pid() == parent, is_taken_back);
        assert_eq!(hello.requests(), answered, "the counter is exact");
        taken_back += u32::from(is_taken_back);
    }
    assert!(taken_back > 0, "no rollback came in time");
}

/// Whoever takes the operator's word dies of it, before it can say which reload that ends: the one who serves then knows.
#[test]
fn a_child_that_dies_of_the_word_is_followed_to_its_parent() {
    for verb in ["rollback", "confirm"] {
        let hello = on_long_probation();
        child_does(&hello, "before-say/Decide", "kill");
        let reload = OnProbation::begin(&hello);
        let output = hello.hello(&[verb]);
        let words = text(&output);
        assert!(
            words.contains("the child was killed by signal 9"),
            "{words}"
        );
        // Taken back it is; confirmed it is not.
        let code = if verb == "rollback" { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{words}");
        failed(
            &end_of(reload.reloading),
            "the child was killed by signal 9",
        );
        assert_eq!(hello.generation(), 1);
    }
}

/// The parent killed while it is given things back: the child serves on with what it has.
#[test]
fn a_parent_that_dies_while_it_is_given_things_back() {
    // Whether the connection at rest was acknowledged by then: if so, it is lost with the parent.
    let points = [
        ("after-say/Revoke", Some(false)),
        ("heard/Yielded", None),
        ("heard/Conn", Some(false)),
        ("before-say/ConnAck", Some(false)),
        ("after-say/ConnAck", Some(true)),
    ];
    support::cells::each(
        &points,
        |p| p.0.to_owned(),
        |(point, is_acked)| {
            let start: Start = Hello::with().probation(LONG_PROBATION);
            let hello = parent_does(start, point, "kill");
            let reload = OnProbation::begin(&hello);
            let mut new = client_of(&hello, 2);
            // Keeps the child from its end.
            let mut busy = Client::connect(hello.address());
            busy.send("GET /slow?ms=1500 HTTP/1.1\r\nhost: test\r\n\r\n");
            busy.until_read();
            let _ = hello.hello(&["rollback"]);
            let _ = end_of(reload.reloading);
            assert_eq!(hello.generation(), 2);
            assert_eq!(hello.pid(), reload.child);
            assert_eq!(busy.answer().generation(), 2);
            let answer = new.try_get("/hello").ok().flatten();
            let is_lost = answer.is_none();
            assert!(answer.is_none_or(|answer| answer.generation() == 2 && !answer.closes()));
            assert!(
                is_acked.is_none_or(|is_acked| is_acked == is_lost),
                "{is_lost}"
            );
            let load = Load::calm(hello.address());
            all_children_are_well(&hello);
            let next = OnProbation::begin(&hello);
            assert!(hello.hello(&["confirm"]).status.success());
            assert!(end_of(next.reloading).status.success());
            load.finish();
            assert_eq!(hello.at_rest().generation, 3);
        },
    );
}
