//! A third generation while the first still drains: whoever of the three is killed, frozen or without descriptors when the
//! channel of the first is passed on, nothing of it is lost.

mod support;

use std::process::Child;

use nix::sys::signal::Signal;
use support::{
    Hello,
    at_rest::freezes,
    client::{Client, request},
    eventually,
    generations::{Upload, are_left, draining, is_plain, until_moved},
    write_program,
};

/// Whether this process has said that it goes on without a successor.
fn is_alone(hello: &Hello, pid: u32) -> bool {
    let (name, words) = (format!("{pid} "), "finishing without one");
    let log = hello.log();
    log.lines()
        .any(|line| line.starts_with(&name) && line.contains(words))
}

/// A third generation on its way, while an upload keeps the first from leaving.
struct Third {
    hello: Hello,
    first: u32,
    second: u32,
    upload: Upload,
    reload: Child,
}

impl Third {
    /// `second` and `third` are commands of the shell that these generations run before they become `hello`.
    fn starts_after(second: &str, third: &str) -> Self {
        let hello = Hello::start();
        let first = hello.pid();
        let upload = Upload::begin(&hello);
        // Each is started from where its parent was.
        let next = |program: &str, command: &str, becomes: &str| {
            let path = hello.dir().join(becomes);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hello"), &path).expect("symlink");
            let script = format!("#!/bin/sh\n{command}\nexec {} \"$@\"\n", path.display());
            let new = hello.dir().join("new");
            write_program(&new, script.as_bytes());
            std::fs::rename(new, hello.dir().join(program)).expect("rename");
        };
        next("hello", second, "second");
        hello.begin_reload();
        let second = hello.pid();
        next("second", third, "third");
        let reload = hello
            .verb(&["reload", "--no-wait"])
            .spawn()
            .expect("reload");
        Self {
            hello,
            first,
            second,
            upload,
            reload,
        }
    }

    /// The third's pid, once it serves.
    fn serves(&self) -> u32 {
        eventually("the third serves", || self.hello.pid() != self.second);
        self.hello.pid()
    }
}

fn failpoint(point: &str) -> String {
    format!("export HANDOFF_FAILPOINTS='{point}'")
}

/// The newest does not take the channel while it is frozen; then it does.
#[test]
fn a_newest_that_freezes_and_thaws_takes_everything() {
    // Frozen after the ack it would be woken by the kernel as soon as its parent leaves: setpgid(2).
    for place in ["heard/Channel", "after-say/Successor"] {
        let generations = Third::starts_after("", &failpoint(&format!("child/{place}=stop")));
        let third = generations.serves();
        let Third {
            hello,
            first,
            mut upload,
            mut reload,
            ..
        } = generations;
        freezes(third);
        is_plain(&upload.end(), 1);
        upload.0.send(request("/hello"));
        hello.signal(third, Signal::SIGCONT);
        // One that arrives with the answer on its way may still be the first's.
        let answer = upload.0.answer();
        assert!(!answer.closes() && [1, 3].contains(&answer.generation()));
        until_moved(&mut upload.0, 3);
        assert!(reload.wait().expect("reload").success());
        hello.settles();
        assert_ne!(first, third);
    }
}

/// Killed before it has passed the channel on, the oldest finds that nobody has it, and ends alone; killed
/// after that, the newest has it.
#[test]
fn a_middle_that_is_killed_loses_nothing_of_the_oldest() {
    for (moment, has_passed) in [("before-say", false), ("after-say", true)] {
        let Third {
            hello,
            first,
            mut upload,
            mut reload,
            ..
        } = Third::starts_after(
            &failpoint(&format!("parent/{moment}/Channel=kill")),
            "unset HANDOFF_FAILPOINTS",
        );
        eventually("the second is dead, and the third serves", || {
            hello.generation() == 3
                && hello.processes() == {
                    let mut pids = vec![first, hello.pid()];
                    pids.sort_unstable();
                    pids
                }
        });
        assert!(reload.wait().expect("reload").success());
        eventually("the first knows", || has_passed || is_alone(&hello, first));
        let answer = upload.end();
        assert_eq!((answer.generation(), answer.closes()), (1, !has_passed));
        if has_passed {
            until_moved(&mut upload.0, 3);
        } else {
            upload.0.expect_end();
        }
        hello.settles();
    }
}

/// The newest has no descriptors left for the channel of the oldest: it stays in the middle, through which the oldest
/// goes on draining.
#[test]
fn a_newest_without_descriptors_leaves_the_middle_between_and_nothing_is_lost() {
    let generations = Third::starts_after(
        &failpoint("parent/before-say/Channel=stop"),
        "unset HANDOFF_FAILPOINTS; ulimit -n 64",
    );
    let third = generations.serves();
    let Third {
        hello,
        first,
        second,
        mut upload,
        mut reload,
    } = generations;
    freezes(second);
    let crowd: Vec<Client> = (0..80).map(|_| Client::connect(hello.address())).collect();
    eventually("the third has no descriptors left", || {
        hello.log().contains("cannot accept; waiting")
    });
    hello.signal(second, Signal::SIGCONT);
    eventually("the third has refused the channel", || {
        hello.log().contains("it goes on draining into this one")
    });
    assert!(
        hello.log().contains("at its limit of descriptors"),
        "for another reason"
    );
    assert!(reload.wait().expect("reload").success());
    are_left(&hello, &[first, second, third]);
    drop(crowd);
    eventually("status lists who drains", || draining(&hello) == [2, 1]);
    is_plain(&upload.end(), 1);
    // Through the second, which has it for a moment.
    let asked = until_moved(&mut upload.0, 3);
    hello.settles();
    assert_eq!(hello.requests(), 1 + asked, "what was counted came through");
    // The next reload finds nothing of it.
    hello.reload();
    assert_eq!(hello.generation(), 4);
}

/// The newest is killed while it takes the channel: nobody serves any more, and what the oldest had is
/// answered all the same.
#[test]
fn a_newest_that_is_killed_leaves_the_oldest_to_finish() {
    for place in [
        "heard/Channel",
        "before-say/Successor",
        "after-say/Successor",
        "before-say/ChannelAck",
        "after-say/ChannelAck",
    ] {
        let Third {
            hello,
            first,
            mut upload,
            mut reload,
            ..
        } = Third::starts_after("", &failpoint(&format!("child/{place}=kill")));
        // Whatever it says: nobody is left to say it.
        reload.wait().expect("reload");
        eventually("only the first is left, and knows it", || {
            hello.processes() == [first] && is_alone(&hello, first)
        });
        let answer = upload.end();
        assert_eq!((answer.generation(), answer.closes()), (1, true), "{place}");
        upload.0.expect_end();
        drop(upload);
        eventually("all have ended", || hello.processes().is_empty());
    }
}
