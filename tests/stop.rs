//! The end of the service: when it is told to, all of it, and nothing comes back to life.

#![allow(
    clippy::zombie_processes,
    reason = "the harness kills what runs from its directory"
)]

mod support;

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::Stdio,
};

use nix::sys::signal::Signal;
use support::{
    Hello,
    at_rest::freezes,
    client::{Client, request},
    crowd::Crowd,
    eventually, text,
};

/// Nothing that names the service is left, and its port is free.
fn assert_gone(hello: &Hello) {
    eventually("every process has ended", || hello.processes().is_empty());
    assert!(!hello.pidfile().exists(), "the pidfile is left");
    assert!(!hello.control().exists(), "the control socket is left");
    TcpListener::bind(hello.address()).expect("the port is free");
    let output = hello.hello(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn what_is_under_way_is_answered_and_closed_in_order() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=300"));
    eventually("the request is under way", || {
        hello.status()["application"]["connections"] == 1
    });
    let output = hello.hello(&["stop"]);
    assert!(output.status.success(), "{}", text(&output));
    let answer = slow.answer();
    assert_eq!(answer.status, 200);
    assert!(answer.closes());
    slow.expect_end();
    assert_gone(&hello);
}

#[test]
fn a_server_can_be_started_at_once_on_the_same_names() {
    let hello = Hello::start();
    {
        assert!(hello.hello(&["stop"]).status.success());
        eventually("it has ended", || hello.processes().is_empty());
        let mut child = hello
            .verb(&["serve", "--listen", &hello.address().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("serve");
        eventually("it answers", || hello.hello(&["status"]).status.success());
        assert_eq!(hello.pid(), child.id());
        assert_eq!(
            Client::connect(hello.address()).get("/hello").generation(),
            1
        );
        let stopped = hello.hello(&["stop"]);
        assert!(stopped.status.success(), "{}", text(&stopped));
        assert!(child.wait().expect("wait").success());
        let mut child = hello
            .verb(&["serve", "--listen", &hello.address().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("serve");
        eventually("it answers", || hello.hello(&["status"]).status.success());
        hello.signal(child.id(), Signal::SIGTERM);
        assert!(child.wait().expect("wait").success());
    }
    assert_gone(&hello);
}

#[test]
fn a_stop_during_a_reload_ends_both() {
    for place in [
        "child/after-say/Hello",
        "child/heard/Offer",
        "child/before-say/Ready",
        "child/heard/State",
    ] {
        let hello = Hello::with()
            .env("HANDOFF_FAILPOINTS", &format!("{place}=stop"))
            .start();
        let reload = hello
            .verb(&["reload"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("reload");
        eventually("the child runs", || {
            hello.status()["reload"]["pid"].is_number()
        });
        let output = hello.hello(&["stop"]);
        assert!(output.status.success(), "{place}: {}", text(&output));
        let reload = reload.wait_with_output().expect("reload");
        assert!(!reload.status.success(), "{place}: {}", text(&reload));
        assert_gone(&hello);
    }
}

#[test]
fn a_child_that_is_told_to_stop_while_it_boots_ends_both() {
    let hello = Hello::with().arg("--probe").arg("/slow?ms=500").start();
    let reload = hello
        .verb(&["reload"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    eventually("the child is being probed", || {
        hello.status()["reload"]["phase"] == "restoring"
    });
    let child = hello.status()["reload"]["pid"].as_u64().expect("a child");
    let child = u32::try_from(child).expect("a pid");
    hello.signal(child, Signal::SIGTERM);
    assert!(!reload.expect("reload").wait().expect("reload").success());
    assert_gone(&hello);
}

#[test]
fn a_storm_of_sigterm_is_one_stop_at_once() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=30000"));
    eventually("the request is under way", || {
        hello.status()["application"]["connections"] == 1
    });
    let pid = hello.pid();
    for _ in 0..20 {
        if hello.processes().contains(&pid) {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        }
    }
    eventually("the second one cuts what is under way", || {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        hello.processes().is_empty()
    });
    assert!(
        hello
            .log()
            .contains("a second request to stop: stopping at once")
    );
    assert_gone(&hello);
}

#[test]
fn sigquit_stops_at_once() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=30000"));
    eventually("the request is under way", || {
        hello.status()["application"]["connections"] == 1
    });
    hello.signal(hello.pid(), Signal::SIGQUIT);
    assert_gone(&hello);
}

#[test]
fn a_signal_to_a_draining_generation_leaves_the_service_alone() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=1500"));
    eventually("the request is under way", || {
        hello.status()["application"]["connections"] == 1
    });
    let first = hello.pid();
    hello.begin_reload();
    hello.signal(first, Signal::SIGTERM);
    let answer = slow.answer();
    assert_eq!((answer.status, answer.generation()), (200, 1));
    hello.settles();
    assert_eq!(
        Client::connect(hello.address()).get("/hello").generation(),
        2
    );
}

/// Once the child has been told to take over it has the pidfile, and may have the control socket: whoever is asked to
/// stop, both end.
#[test]
fn a_stop_between_commit_and_accepting_ends_both() {
    for place in ["child/heard/Commit", "child/before-say/Accepting"] {
        let hello = Hello::with()
            .arg("--drain-timeout")
            .arg("500ms")
            .env("HANDOFF_FAILPOINTS", &format!("{place}=stop"))
            .start();
        let parent = hello.pid();
        let crowd = Crowd::start(hello.address());
        let reload = hello
            .verb(&["reload"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("reload");
        let child = the_other(&hello, &[parent, reload.id()]);
        freezes(child);
        let output = hello.hello(&["stop"]);
        assert!(output.status.success(), "{place}: {}", text(&output));
        let reload = reload.wait_with_output().expect("reload");
        assert!(!reload.status.success(), "{place}: {}", text(&reload));
        assert_gone(&hello);
        crowd.finish();
    }
}

/// The request lies with a child that hangs, and so does SIGTERM: it dies of its parent, which knows of nothing.
#[test]
fn a_stop_that_a_child_has_heard_and_never_said_ends_its_parent_too() {
    let hello = Hello::with()
        .env(
            "HANDOFF_FAILPOINTS",
            "child/before-say/Accepting=hang,parent/after-say/Commit=stop",
        )
        .start();
    let parent = hello.pid();
    let reload = hello
        .verb(&["reload"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("reload");
    let child = the_other(&hello, &[parent, reload.id()]);
    freezes(parent);
    eventually("the child has the names", || hello.pid() == child);
    let mut stop = hello
        .verb(&["stop"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("stop");
    let mut said = BufReader::new(stop.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(
        line.contains(&format!("sending SIGTERM to process {child}")),
        "{line}"
    );
    hello.signal(parent, Signal::SIGCONT);
    let output = stop.wait_with_output().expect("stop");
    assert!(output.status.success(), "{}", text(&output));
    let stopped = format!("generation 1, pid {parent}: stopped");
    assert!(text(&output).contains(&stopped), "{}", text(&output));
    drop(reload.wait_with_output());
    assert_gone(&hello);
}

fn the_other(hello: &Hello, known: &[u32]) -> u32 {
    let mut other = None;
    eventually("there is a child", || {
        other = hello
            .processes()
            .into_iter()
            .find(|pid| !known.contains(pid));
        other.is_some()
    });
    other.expect("found")
}

#[test]
fn under_traffic_every_request_is_answered_or_refused() {
    let hello = Hello::start();
    let crowd = Crowd::start(hello.address());
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=300"));
    slow.until_read();
    let output = hello.hello(&["stop"]);
    assert!(output.status.success(), "{}", text(&output));
    let answer = slow.answer();
    assert_eq!((answer.status, answer.closes()), (200, true));
    crowd.is_refused();
    let counts = crowd.finish();
    assert!(counts.lost <= Crowd::LOST_AT_A_STOP, "{counts:?}");
    drop(slow);
    assert_gone(&hello);
    hello.serve_anew();
}

/// The first one lets the request under way finish, the second one does not.
#[test]
fn a_second_sigterm_does_not_wait() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=30000"));
    slow.until_read();
    hello.signal(hello.pid(), Signal::SIGTERM);
    eventually("the first one is heeded", || {
        hello.log().contains("stopping")
    });
    assert_eq!(hello.processes().len(), 1);
    assert!(!slow.has_input(), "the request is still under way");
    hello.signal(hello.pid(), Signal::SIGTERM);
    assert_gone(&hello);
    assert!(
        slow.try_answer().map_or(true, |answer| answer.is_none()),
        "it was cut"
    );
}

/// Frozen, it cannot hear of it: it is told to the parent alone, and killed by it.
#[test]
fn a_stop_while_the_child_is_frozen_leaves_no_process() {
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/after-say/Prepared=stop")
        .start();
    let parent = hello.pid();
    let reload = hello
        .verb(&["reload"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reload");
    let child = the_other(&hello, &[parent, reload.id()]);
    freezes(child);
    hello.signal(parent, Signal::SIGTERM);
    let reload = reload.wait_with_output().expect("reload");
    assert!(!reload.status.success(), "{}", text(&reload));
    eprintln!("{}", text(&reload));
    assert_gone(&hello);
}

/// Blank lines mean nothing (RFC 9112, section 2.2): there is no request to wait for.
#[test]
fn a_blank_line_after_a_request_holds_no_stop_up() {
    for blank in ["\r\n", "\n", "\r\n\r\n"] {
        let hello = Hello::with().arg("--drain-timeout").arg("10m").start();
        let connect = || {
            let mut client = Client::connect(hello.address());
            assert_eq!(client.get("/hello").status, 200);
            client
        };
        let (mut read, mut queued) = (connect(), connect());
        read.send(blank);
        read.until_read();
        let pid = hello.pid();
        hello.signal(pid, Signal::SIGSTOP);
        queued.send(blank);
        hello.signal(pid, Signal::SIGTERM);
        hello.signal(pid, Signal::SIGCONT);
        for client in [&mut read, &mut queued] {
            client.expect_end();
            client.half_close();
        }
        hello.is_gone();
    }
}

/// A service manager tells every process, each once; and one of them tells the others.
#[test]
fn a_stop_that_reaches_every_generation_is_one_for_each() {
    let hello = Hello::start();
    let parent = hello.pid();
    let mut slow = Client::connect(hello.address());
    slow.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    slow.until_read();
    hello.begin_reload();
    hello.signal(hello.pid(), Signal::SIGTERM);
    eventually("the parent has heard of it", || {
        let log = hello.log();
        let mut lines = log.lines().filter(|line| line.contains(" stopping "));
        lines.any(|line| line.starts_with(&parent.to_string()))
    });
    hello.signal(parent, Signal::SIGTERM);
    eventually("the parent has heard it again", || {
        hello.log().contains("stopping already")
    });
    slow.send("b");
    let answer = slow.answer();
    assert_eq!(answer.status, 200);
    drop(slow);
    assert_gone(&hello);
}
