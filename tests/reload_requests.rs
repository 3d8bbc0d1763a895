//! Who asks for a reload, how often, and what each is told.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use support::{Hello, eventually, load::Load, text};

/// A child that needs a while: the server waits for a line in a fifo before it is healthy.
fn slow_child(hello: &Hello) -> std::path::PathBuf {
    let fifo = hello.dir().join("gate");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let real = env!("CARGO_BIN_EXE_hello");
    hello.replace_binary_by_script(&format!(
        "read line < '{}'\nexec '{real}' \"$@\"",
        fifo.display()
    ));
    fifo
}

fn open_gate(fifo: &std::path::Path) {
    let mut gate = std::fs::OpenOptions::new()
        .write(true)
        .open(fifo)
        .expect("gate");
    gate.write_all(b"go\n").expect("gate");
}

#[test]
fn of_two_at_once_one_runs_and_the_other_is_refused_by_name() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let gate = slow_child(&hello);
    let first = hello
        .verb(&["reload"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reload");
    eventually("the first reload is under way", || {
        hello.status()["reload"]["pid"].is_number()
    });
    let refused = hello.reload_fails(1);
    assert!(refused.contains("reload 1: child "), "{refused}");
    assert!(refused.contains(" is joining, "), "{refused}");
    open_gate(&gate);
    let first = first.wait_with_output().expect("reload");
    assert!(first.status.success(), "{}", text(&first));
    hello.restore_binary();
    hello.reload();
    load.finish();
    hello.settles();
    assert_eq!(hello.generation(), 3);
}

#[test]
fn twenty_signals_in_a_row_lose_nothing_and_the_last_one_is_heeded() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let first = hello.pid();
    for _ in 0..20 {
        // To whoever serves now, as `kill -USR2 $(cat pidfile)` does.
        hello.signal(hello.pid(), Signal::SIGUSR2);
    }
    eventually("a reload has come of it", || hello.pid() != first);
    eventually("all reloads are over", || {
        hello.status()["reload"].is_null() && hello.processes().len() == 1
    });
    let generation = hello.generation();
    assert!((2..=21).contains(&generation), "{generation}");
    load.finish();
    hello.settles();
}

#[test]
fn a_signal_that_comes_during_a_reload_is_followed_by_one_further_reload() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let gate = slow_child(&hello);
    let first = hello.pid();
    hello.signal(first, Signal::SIGUSR2);
    eventually("the reload is under way", || {
        hello.status()["reload"]["pid"].is_number()
    });
    for _ in 0..5 {
        hello.signal(first, Signal::SIGUSR2);
    }
    eventually("it is latched", || {
        hello.log().contains("one further reload will follow")
    });
    hello.restore_binary();
    open_gate(&gate);
    eventually("the further reload is done", || {
        hello.processes().len() == 1 && hello.generation() == 3
    });
    load.finish();
    hello.settles();
    assert_eq!(
        hello.generation(),
        3,
        "five signals during one reload are one further reload"
    );
}

#[test]
fn sighup_reloads_too() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let first = hello.pid();
    hello.signal(first, Signal::SIGHUP);
    eventually("the next generation serves", || hello.pid() != first);
    load.finish();
    hello.settles();
    assert_eq!(hello.generation(), 2);
}

#[test]
fn the_line_of_the_manual_reloads() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let first = hello.pid();
    let line = format!("kill -USR2 $(cat '{}')", hello.pidfile().display());
    assert!(
        Command::new("/bin/sh")
            .args(["-c", &line])
            .status()
            .expect("sh")
            .success()
    );
    eventually("the next generation serves", || hello.pid() != first);
    load.finish();
    hello.settles();
}

#[test]
fn after_a_failed_reload_the_next_one_works_at_once() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    for round in 1..=5 {
        hello.replace_binary_by_script("echo no such database >&2; exit 7");
        let said = hello.reload_fails(1);
        assert!(said.contains("the child exited with status 7"), "{said}");
        assert!(said.contains("no such database"), "{said}");
        assert!(
            said.contains(&format!(
                "generation {round}, pid {}, serves on",
                hello.pid()
            )),
            "{said}"
        );
        hello.restore_binary();
        hello.reload();
    }
    load.finish();
    hello.settles();
    assert_eq!(hello.generation(), 6);
}

#[test]
fn with_no_wait_it_returns_while_the_parent_still_answers() {
    let hello = Hello::start();
    let mut slow = support::client::Client::connect(hello.address());
    slow.send(support::client::request("/slow?ms=3000"));
    eventually("the request is under way", || {
        hello.status()["application"]["connections"] == 1
    });
    let output = hello.hello(&["reload", "--no-wait"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(hello.processes().len(), 2, "the parent still answers");
    let answer = slow.answer();
    assert_eq!((answer.status, answer.generation()), (200, 1));
    hello.settles();
}

#[test]
fn as_json_every_event_is_one_line() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let output = hello.hello(&["reload", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let events: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let phases: Vec<&str> = events
        .iter()
        .filter_map(|event| event["phase"].as_str())
        .collect();
    assert_eq!(
        phases,
        [
            "starting",
            "joining",
            "booting",
            "restoring",
            "committing",
            "draining"
        ]
    );
    let reloaded = events
        .iter()
        .find(|event| event["event"] == "reloaded")
        .expect("reloaded");
    assert_eq!(reloaded["result"], "confirmed");
    assert_eq!(reloaded["to"]["generation"], 2);
    assert_eq!(events.last().expect("an event")["event"], "drained");
    load.finish();
    hello.settles();
}

#[test]
fn the_successor_knows_what_became_of_a_reload() {
    let hello = Hello::start();
    hello.reload();
    let mut socket = UnixStream::connect(hello.control()).expect("control socket");
    socket
        .write_all(b"{\"verb\":\"outcome\",\"reload\":1}\n")
        .expect("ask");
    let lines: Vec<serde_json::Value> = BufReader::new(socket)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
        .collect();
    assert_eq!(lines[0]["result"], "confirmed");
    assert_eq!(lines[1]["event"], "drained");
    let mut socket = UnixStream::connect(hello.control()).expect("control socket");
    socket
        .write_all(b"{\"verb\":\"outcome\",\"reload\":99}\n")
        .expect("ask");
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).expect("a line");
    assert!(
        line.contains("\"refused\"") && line.contains("99"),
        "{line}"
    );
}

#[test]
fn draining_generations_are_listed_and_capped() {
    let hello = Hello::with().arg("--drain-timeout").arg("30s").start();
    let mut slow = Vec::new();
    for generation in 1..=9 {
        let mut client = support::client::Client::connect(hello.address());
        client.send(support::client::request("/slow?ms=20000"));
        slow.push(client);
        eventually("the request is under way", || {
            hello.status()["application"]["connections"] == 1
        });
        if generation < 9 {
            hello.begin_reload();
        }
    }
    let said = hello.reload_fails(1);
    assert!(
        said.contains("8 older generations still drain, the oldest is generation 1"),
        "{said}"
    );
    eventually("all are listed", || {
        hello.status()["draining"].as_array().map(Vec::len) == Some(8)
    });
    assert_eq!(hello.status()["draining"][7]["generation"], 1);
    assert!(hello.hello(&["stop", "--timeout", "50s"]).status.success());
}
