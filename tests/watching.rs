//! `hello events` and `hello status --watch`: from generation to generation, until the server is stopped.

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Hello, LONG, text};

/// A verb that goes on, and what it says.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(hello: &Hello, verb: &[&str]) -> Self {
        let mut child = hello
            .verb(verb)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run hello");
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                if sender.send(line.expect("a line")).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// `hello events --json`, when it listens: a dry run shows that. All that came with dry runs is past.
    fn events(hello: &Hello) -> Self {
        let watching = Self::start(hello, &["events", "--json"]);
        let mut runs = 0;
        let mut first = None;
        while first.is_none() {
            let output = hello.hello(&["reload", "--dry-run"]);
            assert!(output.status.success(), "{}", text(&output));
            runs += 1;
            first = watching.lines.try_recv().ok();
        }
        let is_last = |line: &str| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            event["event"] == "dry-run" && event["reload"] == runs
        };
        if !is_last(&first.expect("a line")) {
            while !is_last(&watching.line()) {}
        }
        watching
    }

    /// Waits until it listens to the process that serves now: what happens before that, it does not hear.
    fn hears_of_a_dry_run(&self, hello: &Hello, is_end: impl Fn(&str) -> bool) {
        loop {
            let output = hello.hello(&["reload", "--dry-run"]);
            assert!(output.status.success(), "{}", text(&output));
            let mut lines = self.lines.try_iter();
            if lines.any(|line| is_end(&line)) {
                return;
            }
        }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(LONG).expect("a line")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.line()).expect("JSON")
    }

    /// The next event that is not a line of the child's log.
    fn event(&self) -> Value {
        loop {
            let event = self.json();
            if event["event"] != "stderr" {
                return event;
            }
        }
    }

    /// The line that fits.
    fn until(&self, fits: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.line();
            if fits(&line) {
                return line;
            }
        }
    }

    /// How it has ended, and what it has said until then.
    fn ends(mut self) -> (Option<i32>, Vec<String>) {
        let rest = self.lines.iter().collect();
        (self.child.wait().expect("wait").code(), rest)
    }
}

#[test]
fn events_go_on_from_generation_to_generation_and_none_is_told_twice() {
    let hello = Hello::start();
    let events = Watching::events(&hello);
    for to in 2..=6 {
        hello.reload();
        let (mut reloaded, mut drained) = (0, 0);
        while reloaded + drained < 2 {
            let event = events.event();
            match event["event"].as_str() {
                Some("reloaded") => {
                    assert_eq!(event["to"]["generation"], to, "{event}");
                    reloaded += 1;
                }
                Some("drained") => drained += 1,
                Some("phase") => assert_eq!((reloaded, drained), (0, 0), "{event}"),
                Some("dry-run") => {}
                _ => panic!("{event}"),
            }
        }
        assert_eq!((reloaded, drained), (1, 1));
        events.hears_of_a_dry_run(&hello, |line| line.contains("\"event\":\"dry-run\""));
    }
    // The one that answers now is told to stop.
    let stopped = hello.hello(&["stop"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    let (code, rest) = events.ends();
    assert_eq!(code, Some(0));
    let last = rest.last().expect("a line");
    let stopping = "{\"event\":\"stopping\",\"generation\":6,";
    assert!(last.starts_with(stopping), "{rest:?}");
}

#[test]
fn events_are_lines_for_people_too() {
    let hello = Hello::start();
    // Whether it listens yet, a reload that fails shows.
    let watching = Watching::start(&hello, &["events"]);
    hello.replace_binary_by_script("echo 'no such table' >&2; exit 7");
    let mut runs = 0;
    let first = loop {
        hello.reload_fails(1);
        runs += 1;
        if let Ok(line) = watching.lines.try_recv() {
            break line;
        }
    };
    let failed = format!("reload {runs} failed while joining: the child exited with status 7");
    if first != failed {
        watching.until(|line| line == failed);
    }
    hello.restore_binary();
    hello.reload();
    let id = runs + 1;
    assert_eq!(
        watching.until(|line| !line.contains("child: no such")),
        format!("reload {id}: starting, 0 µs")
    );
    let start = format!("reload {id}: generation 1 → 2, pid ");
    watching.until(|line| line.starts_with(&start));
    let end = format!("reload {id}: parent has ended");
    watching.until(|line| line.starts_with(&end));
    watching.hears_of_a_dry_run(&hello, |line| line.contains(", nothing was changed"));
    hello.signal(hello.pid(), Signal::SIGTERM);
    watching
        .until(|line| line.starts_with("generation 2, pid ") && line.ends_with(", is stopping"));
    assert_eq!(watching.ends().0, Some(0));
}

#[test]
fn a_server_that_dies_and_one_that_does_not_run_are_told_apart() {
    let hello = Hello::start();
    let events = Watching::events(&hello);
    let watch = Watching::start(&hello, &["status", "--watch"]);
    watch.line();
    hello.signal(hello.pid(), Signal::SIGKILL);
    assert_eq!(events.ends().0, Some(4));
    assert_eq!(watch.ends().0, Some(4));
    for verb in [&["events"][..], &["status", "--watch"]] {
        let output = hello.hello(verb);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    }
}

#[test]
fn a_watched_status_has_a_line_for_each_change_and_none_for_the_time_that_passes() {
    let hello = Hello::start();
    let watch = Watching::start(&hello, &["status", "--watch"]);
    let json = Watching::start(&hello, &["status", "--watch", "--json"]);
    let first = watch.line();
    assert!(first.contains(", generation 1, pid "), "{first}");
    assert!(
        first.ends_with(&format!(", serving, http={}", hello.address())),
        "{first}"
    );
    assert_eq!(json.json()["generation"], 1);
    for generation in 2..=3 {
        hello.reload();
        let serves = format!(", generation {generation}, pid {}, serving, ", hello.pid());
        let ended = format!("last reload {}: confirmed", generation - 1);
        let line = watch.until(|line| line.contains(&serves) && line.contains(&ended));
        // Once more when the parent has gone, perhaps.
        if line.contains("drains") {
            watch.until(|line| !line.contains("drains"));
        }
        loop {
            let status = json.json();
            if status["generation"] == generation && status["draining"] == serde_json::json!([]) {
                break;
            }
        }
    }
    let stopped = hello.hello(&["stop"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    let (code, rest) = watch.ends();
    assert_eq!(
        (code, rest.last().map(String::as_str)),
        (Some(0), Some("stopped")),
        "{rest:?}"
    );
    assert_eq!(json.ends().0, Some(0));
}

#[test]
fn it_ends_when_nobody_reads() {
    let hello = Hello::start();
    let mut child = hello
        .verb(&["events"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run hello");
    drop(child.stdout.take());
    loop {
        hello.reload();
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(status.success(), "{status}");
            return;
        }
    }
}
