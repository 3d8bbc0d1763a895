//! `hello reload --dry-run`: what a reload would come to, and the running generation is not touched.

mod support;

use std::{fs, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Hello, client::Client, diag, eventually, load::Load, text};

const DRY_RUN: [&str; 2] = ["reload", "--dry-run"];

/// A build that begins only once the test says so.
fn hold(hello: &Hello) {
    let real = env!("CARGO_BIN_EXE_hello");
    let script = format!("while [ ! -e go ]; do sleep 0.01; done; exec '{real}' \"$@\"");
    hello.replace_binary_by_script(&script);
}

fn let_go(hello: &Hello) {
    fs::write(hello.dir().join("go"), "").expect("go");
}

/// Waits until the child that [`hold`] holds is being joined.
fn is_held(hello: &Hello) {
    eventually("the child is held", || {
        hello.status()["reload"]["phase"] == "joining"
    });
}

#[test]
fn it_says_what_would_change_and_changes_nothing() {
    let hello = Hello::start();
    let before = hello.at_rest();
    let kept = Client::connect(hello.address());
    let load = Load::start(hello.address());
    for id in 1..=3 {
        let output = hello.hello(&DRY_RUN);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let said = String::from_utf8(output.stdout).expect("text");
        let start = format!("dry run {id}: ready after ");
        assert!(said.starts_with(&start), "{said}");
        assert!(
            said.contains(", nothing was changed\n  build stays: "),
            "{said}"
        );
        assert!(said.ends_with("\n  listeners kept: http\n"), "{said}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "",
            "the child's words are no news"
        );
        load.goes_on();
    }
    let mut answered = load.finish();
    drop(kept);
    hello.is_again(&before);
    let status = hello.status();
    assert_eq!(status["last_reload"], Value::Null, "it is no reload");
    assert_eq!(status["phase"], "serving");

    let load = Load::start(hello.address());
    let line = hello.reload();
    assert!(line.starts_with("generation 1 → 2, pid "), "{line}");
    load.goes_on();
    answered += load.finish();
    assert_eq!(hello.requests(), answered, "the counter is exact");
}

#[test]
fn its_events_are_for_scripts() {
    let hello = Hello::start();
    let output = hello.hello(&["reload", "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let events: Vec<Value> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let phases: Vec<&str> = events.iter().filter_map(|e| e["phase"].as_str()).collect();
    assert_eq!(
        phases,
        ["starting", "joining", "booting", "restoring", "discarding"]
    );
    let last = events.last().expect("an event");
    assert_eq!(last["event"], "dry-run");
    assert_eq!(last["result"], "ready");
    assert_eq!(last["build"]["from"], last["build"]["to"]);
    let listeners = json!({"kept": ["http"], "added": [], "removed": [], "changed": []});
    assert_eq!(last["listeners"], listeners);
}

#[test]
fn a_new_configuration_is_tried_and_nothing_of_it_stays() {
    let config = |listeners: &str| {
        format!("pidfile = \"hello.pid\"\nprobation = \"0s\"\n[listeners]\n{listeners}")
    };
    let hello = Hello::with()
        .config(&config(
            "http = { address = \"127.0.0.1:0\", backlog = 7 }\na = \"unix:a.sock\"\n",
        ))
        .start();
    let before = hello.at_rest();
    let backlog = diag::backlog(hello.address());
    assert_eq!(backlog, Some(7));
    hello.configure(&config(
        "http = { address = \"127.0.0.1:0\", backlog = 70 }\na = \"unix:b.sock\"\nc = \"unix:c.sock\"\n",
    ));
    let output = hello.hello(&DRY_RUN);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    let changes = "\n  listeners kept: http\n  listeners added: c\n  listeners changed: a\n";
    assert!(said.contains(changes), "{said}");
    hello.is_again(&before);
    assert!(hello.dir().join("a.sock").exists());
    assert!(!hello.dir().join("b.sock").exists() && !hello.dir().join("c.sock").exists());
    assert_eq!(diag::backlog(hello.address()), backlog);

    hello.configure("probe = 1\nprobe = 2\n");
    let output = hello.hello(&DRY_RUN);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("dry run 2 failed while joining: "), "{said}");
    assert!(
        said.contains("hello.toml:2:1: `probe` is there for the second time"),
        "{said}"
    );
    assert!(
        said.ends_with(&format!("generation 1, pid {}, serves on\n", before.pid)),
        "{said}"
    );
    assert_eq!(hello.status()["last_reload"], Value::Null);
    hello.is_again(&before);
}

#[test]
fn a_build_that_fails_says_why() {
    let hello = Hello::start();
    hello.replace_binary_by_script("echo 'no such table' >&2; exit 7");
    let output = hello.hello(&DRY_RUN);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("dry run 1 failed while joining: the child exited with status 7"),
        "{said}"
    );
    assert!(said.contains("child: no such table\n"), "{said}");
    fs::remove_file(hello.binary()).expect("remove");
    let said = text(&hello.hello(&DRY_RUN));
    assert!(
        said.contains("dry run 2 failed while starting: cannot execute"),
        "{said}"
    );
    hello.restore_binary();
    hello.reload();
}

#[test]
fn it_is_refused_beside_a_reload_and_a_reload_beside_it() {
    let hello = Hello::start();
    hold(&hello);
    for verb in [&DRY_RUN[..], &["reload"]] {
        let _ = fs::remove_file(hello.dir().join("go"));
        let waiting = hello
            .verb(verb)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run hello");
        is_held(&hello);
        assert_eq!(hello.status()["reload"]["dry_run"], verb.len() == 2);
        let (id, word) = if verb.len() == 2 {
            (1, "dry run")
        } else {
            (2, "reload")
        };
        for other in [&DRY_RUN[..], &["reload"]] {
            let refused = hello.hello(other);
            assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
            let said = text(&refused);
            assert!(said.contains(&format!("{word} {id}: child ")), "{said}");
        }
        let_go(&hello);
        let output = waiting.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    assert_eq!(hello.generation(), 2);
}

#[test]
fn a_signal_for_a_reload_that_comes_meanwhile_makes_one_follow() {
    let hello = Hello::start();
    hold(&hello);
    let mut waiting = hello.verb(&DRY_RUN).spawn().expect("run hello");
    is_held(&hello);
    hello.signal(hello.pid(), Signal::SIGUSR2);
    eventually("the signal has arrived", || {
        hello.log().contains("one further reload will follow")
    });
    let_go(&hello);
    assert!(waiting.wait().expect("wait").success());
    eventually("a reload follows", || hello.generation() == 2);
}

#[test]
fn a_stop_ends_it() {
    let hello = Hello::start();
    hold(&hello);
    let waiting = hello
        .verb(&DRY_RUN)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run hello");
    is_held(&hello);
    let stopped = hello.hello(&["stop"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    let output = waiting.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("dry run 1 failed"),
        "{}",
        text(&output)
    );
    hello.is_gone();
}

#[test]
fn one_that_takes_too_long_is_ended_by_the_deadline_of_a_reload() {
    let hello = Hello::with().arg("--ready-timeout").arg("300ms").start();
    let before = hello.at_rest();
    hold(&hello);
    let output = hello.hello(&DRY_RUN);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("did not say Hello in time"),
        "{}",
        text(&output)
    );
    hello.restore_binary();
    hello.is_again(&before);
}
