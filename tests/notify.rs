//! What a service manager hears (sd_notify(3)), in the order in which it hears it, and from whom.

mod support;

use std::{io::Write, os::unix::net::UnixDatagram};

use nix::sys::signal::Signal;
use support::{
    Hello,
    client::Client,
    eventually,
    load::Load,
    manager::{Manager, Note},
    text,
};

fn of(notes: &[Note], variable: &str) -> Vec<String> {
    notes
        .iter()
        .filter_map(|note| note.value(variable))
        .collect()
}

/// All that was said until `READY=1` is said again.
fn until_ready(manager: &mut Manager) -> Vec<Note> {
    manager.until(|note| note.says("READY=1"))
}

#[test]
fn the_start_is_ready_and_the_stop_is_said_once() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    let pid = hello.pid();
    let ready = until_ready(&mut manager).pop().expect("READY=1");
    assert_eq!(ready.from, pid);
    assert_eq!(ready.value("MAINPID"), None);
    let status = ready.value("STATUS").expect("a status");
    assert_eq!(
        status,
        format!("generation 1 serves http={}", hello.address())
    );
    hello.signal(pid, Signal::SIGTERM);
    eventually("it has ended", || hello.processes().is_empty());
    manager.take();
    let said = manager.heard();
    let stopping: Vec<_> = said.iter().filter(|n| n.says("STOPPING=1")).collect();
    assert_eq!(stopping.len(), 1);
    assert_eq!(stopping[0].from, pid);
    // The drain deadline, and what else it may take.
    let time: u64 = stopping[0]
        .value("EXTEND_TIMEOUT_USEC")
        .and_then(|time| time.parse().ok())
        .expect("a time");
    assert!(time > 10_000_000, "{time}");
}

#[test]
fn a_reload_names_the_successor_before_that_one_says_a_word() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with().probation("50ms"));
    let parent = hello.pid();
    until_ready(&mut manager);
    let before = clock();
    let load = Load::calm(hello.address());
    hello.signal(parent, Signal::SIGHUP);
    let begun = manager.until(|note| note.says("RELOADING=1"));
    let begun = begun.last().expect("RELOADING=1");
    assert_eq!(begun.from, parent);
    let at: u128 = begun
        .value("MONOTONIC_USEC")
        .and_then(|at| at.parse().ok())
        .expect("a time");
    assert!((before..=clock()).contains(&at), "{at}");
    let done = until_ready(&mut manager).pop().expect("READY=1");
    assert_eq!(done.from, parent);
    let child: u32 = done
        .value("MAINPID")
        .and_then(|pid| pid.parse().ok())
        .expect("MAINPID");
    eventually("the child has the pidfile", || hello.pid() == child);
    // It speaks from here on, and the parent says no more but that it waits to be heard.
    let serves = until_ready(&mut manager).pop().expect("READY=1");
    assert_eq!(serves.from, child);
    let status = serves.value("STATUS").expect("a status");
    assert!(status.starts_with("generation 2 serves http="), "{status}");
    let farewell = manager.until(|note| note.says("BARRIER=1"));
    let of_parent: Vec<_> = farewell.iter().filter(|note| note.from == parent).collect();
    assert_eq!(of_parent.len(), 1, "{of_parent:?}");
    hello.settles();
    load.goes_on();
    load.finish();
    assert!(!manager.heard().iter().any(|note| note.says("STOPPING=1")));
}

#[test]
fn a_failed_reload_is_ready_again_and_says_why() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    until_ready(&mut manager);
    for (script, phase) in [
        ("echo broken >&2; exit 7", "exited with status 7"),
        ("", ""),
    ] {
        if script.is_empty() {
            hello.replace_binary(b"not a program");
        } else {
            hello.replace_binary_by_script(script);
        }
        hello.reload_fails(1);
        let said = until_ready(&mut manager);
        assert_eq!(of(&said, "RELOADING"), ["1"], "{said:?}");
        assert_eq!(of(&said, "MAINPID"), Vec::<String>::new());
        let status = said
            .last()
            .and_then(|n| n.value("STATUS"))
            .expect("a status");
        assert!(
            status.contains("failed while") && status.contains(phase),
            "{status}"
        );
        assert!(status.starts_with("generation 1 serves "), "{status}");
    }
}

#[test]
fn a_rollback_is_ready_again_without_another_main_process() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with().probation("1h"));
    until_ready(&mut manager);
    let parent = hello.pid();
    let mut reload = hello.verb(&["reload"]).spawn().expect("reload");
    eventually("the child is on probation", || {
        hello.try_status()["probation"]["left_ms"].is_u64()
    });
    let output = hello.hello(&["rollback"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(reload.wait().expect("reload").code(), Some(1));
    let said = until_ready(&mut manager);
    assert!(said.iter().all(|note| note.from == parent), "{said:?}");
    assert_eq!(of(&said, "MAINPID"), Vec::<String>::new());
    assert_eq!(of(&said, "RELOADING"), ["1"]);
}

#[test]
fn a_stop_is_said_by_nobody_who_drains() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    let first = hello.pid();
    let mut slow = Client::connect(hello.address());
    slow.send(support::client::request("/slow?ms=700"));
    eventually("the request is under way", || {
        hello.try_status()["application"]["connections"] == 1
    });
    hello.begin_reload();
    let second = hello.pid();
    assert_ne!(first, second);
    hello.signal(second, Signal::SIGTERM);
    assert_eq!(slow.answer().status, 200);
    drop(slow);
    manager.until(|note| note.from == first && note.says("BARRIER=1"));
    eventually("all have ended", || hello.processes().is_empty());
    manager.take();
    let stopping: Vec<_> = manager
        .heard()
        .iter()
        .filter(|note| note.says("STOPPING=1"))
        .map(|note| note.from)
        .collect();
    assert_eq!(stopping, [second]);
}

#[test]
fn the_main_process_outlives_those_that_drain_into_it() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    let mut slow = Client::connect(hello.address());
    slow.send(support::client::request("/slow?ms=700"));
    eventually("the request is under way", || {
        hello.try_status()["application"]["connections"] == 1
    });
    hello.begin_reload();
    let second = hello.pid();
    hello.signal(second, Signal::SIGTERM);
    assert_eq!(slow.answer().status, 200);
    drop(slow);
    manager.until(|note| note.says("BARRIER=1"));
    eventually("all have ended", || hello.processes().is_empty());
    // It has nothing to do itself, and would not have heard that.
    let log = hello.log();
    let place = |words: &str| {
        let is_it = |line: &str| line.starts_with(&second.to_string()) && line.contains(words);
        log.lines().position(is_it)
    };
    let heard = place("the parent has finished").expect("it has waited");
    assert!(Some(heard) < place(" finished moved=0"), "{log}");
}

#[test]
fn the_watchdog_hears_of_the_one_that_serves_only() {
    let mut manager = Manager::new();
    let start = Hello::with().env("WATCHDOG_USEC", "200000");
    let hello = manager.start(start);
    let parent = hello.pid();
    for _ in 0..3 {
        let beat = manager.until(|note| note.says("WATCHDOG=1"));
        assert_eq!(beat.last().map(|note| note.from), Some(parent));
    }
    hello.reload();
    let child = hello.pid();
    manager.until(|note| note.says("WATCHDOG=1") && note.from == child);
    for _ in 0..3 {
        let beat = manager.until(|note| note.says("WATCHDOG=1"));
        assert_eq!(beat.last().map(|note| note.from), Some(child));
    }
}

#[test]
fn a_watchdog_that_watches_another_process_hears_nothing() {
    let mut manager = Manager::new();
    let start = Hello::with()
        .env("WATCHDOG_USEC", "20000")
        .env("WATCHDOG_PID", &std::process::id().to_string());
    let hello = manager.start(start);
    // Its child must not take the interval for its own, now that the pid is gone from the environment.
    for _ in 0..2 {
        hello.reload();
        manager.until(|note| note.says("BARRIER=1"));
        hello.settles();
    }
    manager.take();
    assert!(!manager.heard().iter().any(|note| note.says("WATCHDOG=1")));
}

#[test]
fn listeners_are_given_to_the_store_by_name() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    let stored = manager.until(|note| note.says("FDSTORE=1"));
    let stored = stored.last().expect("FDSTORE=1");
    assert_eq!(stored.value("FDNAME").as_deref(), Some("stored/http"));
    assert_eq!(stored.from, hello.pid());
    assert_eq!(stored.sockets(), [hello.address()]);
    hello.reload();
    let again = manager.until(|note| note.says("FDSTORE=1"));
    let again = again.last().expect("FDSTORE=1");
    assert_eq!(again.from, hello.pid());
    assert_eq!(again.sockets(), [hello.address()]);
}

#[test]
fn a_manager_that_is_not_there_costs_a_line() {
    let hello = Hello::with()
        .env("NOTIFY_SOCKET", "/nowhere/at/all")
        .start();
    hello.reload();
    hello.settles();
    hello.reload();
    hello.settles();
    let first = hello.pid();
    assert!(hello.hello(&["stop"]).status.success());
    let log = hello.log();
    let complaints = log.lines().filter(|line| line.contains("NOTIFY_SOCKET"));
    // Each process, once.
    assert_eq!(complaints.count(), 3, "{first}: {log}");
}

#[test]
fn a_manager_that_does_not_read_keeps_nobody_from_serving() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("notify");
    let deaf = UnixDatagram::bind(&path).expect("bind");
    let hello = Hello::with()
        .env("NOTIFY_SOCKET", path.to_str().expect("a path"))
        .env("WATCHDOG_USEC", "20000")
        .start();
    let load = Load::calm(hello.address());
    for _ in 0..3 {
        hello.reload();
        load.goes_on();
    }
    load.finish();
    hello.settles();
    assert!(hello.hello(&["stop"]).status.success());
    let log = hello.log();
    let said = log
        .lines()
        .filter(|line| line.contains("it has not answered for 2s"));
    assert!(said.count() > 0, "{log}");
    drop(deaf);
}

#[test]
fn a_socket_that_makes_no_sense_is_said() {
    for name in ["vsock:2:1234", "relative", "@"] {
        let hello = Hello::with().env("NOTIFY_SOCKET", name).start();
        let log = hello.log();
        assert!(log.contains("NOTIFY_SOCKET is of no use"), "{log}");
    }
}

#[test]
fn an_orphan_leaves_it_to_the_manager() {
    let mut manager = Manager::new();
    let hello = manager.start(Hello::with());
    let parent = hello.pid();
    let gate = hello.replace_binary_by_gate();
    let mut reload = hello.verb(&["reload"]).spawn().expect("reload");
    manager.until(|note| note.says("RELOADING=1"));
    let mut gate = gate.reached();
    hello.signal(parent, Signal::SIGKILL);
    gate.write_all(b"go\n").expect("write");
    let _ = reload.wait();
    eventually("the child has ended", || hello.processes().is_empty());
    assert!(
        Client::try_connect(hello.address()).is_err(),
        "somebody serves"
    );
}

/// The monotonic clock, in microseconds.
fn clock() -> u128 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    std::time::Duration::from(now).as_micros()
}
