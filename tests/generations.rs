//! Reloads that follow each other faster than generations drain: the middle ones leave, and what the oldest has
//! arrives in the newest.

mod support;

use nix::sys::signal::Signal;
use support::{
    Hello,
    at_rest::freezes,
    client::{Answer, Client},
    eventually,
    load::Load,
};

fn is_plain(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

/// A connection whose request ends when the test says so.
struct Upload(Client);

impl Upload {
    fn begin(hello: &Hello) -> Self {
        let mut client = Client::connect(hello.address());
        client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
        client.until_read();
        Self(client)
    }

    fn end(&mut self) -> Answer {
        self.0.send("67890");
        self.0.answer()
    }
}

/// Asks until the connection has moved, and says how often.
fn until_moved(client: &mut Client, generation: u64) -> u64 {
    let mut asked = 0;
    eventually("the connection has moved", || {
        asked += 1;
        let answer = client.get("/hello");
        assert!(!answer.closes(), "{answer:?}");
        answer.generation() == generation
    });
    asked
}

/// The generations that drain, the youngest first.
fn draining(hello: &Hello) -> Vec<u64> {
    let status = hello.status();
    let draining = status["draining"].as_array().expect("a list");
    let generation = |older: &serde_json::Value| older["generation"].as_u64().expect("a number");
    draining.iter().map(generation).collect()
}

/// Whether this process has said that it goes on without a successor.
#[cfg(feature = "failpoints")]
fn is_alone(hello: &Hello, pid: u32) -> bool {
    let (name, words) = (format!("{pid} "), "finishing without one");
    let log = hello.log();
    log.lines()
        .any(|line| line.starts_with(&name) && line.contains(words))
}

/// Waits until only these processes are left.
fn are_left(hello: &Hello, pids: &[u32]) {
    let mut pids = pids.to_vec();
    pids.sort_unstable();
    eventually("the generations between have left", || {
        hello.processes() == pids
    });
}

#[cfg(feature = "failpoints")]
impl Hello {
    /// The next start of `program` runs with these failpoints, and starts `becomes` itself later.
    fn next(&self, program: &str, failpoints: &str, becomes: &str) {
        let path = self.dir().join(becomes);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hello"), &path).expect("symlink");
        let script = format!(
            "#!/bin/sh\nHANDOFF_FAILPOINTS='{failpoints}' exec {} \"$@\"\n",
            path.display()
        );
        let new = self.dir().join("new");
        support::write_program(&new, script.as_bytes());
        std::fs::rename(new, self.dir().join(program)).expect("rename");
    }
}

#[test]
fn generations_in_the_middle_leave() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    let mut second = None;
    let mut asked = 0;
    for generation in 2..=6 {
        hello.begin_reload();
        are_left(
            &hello,
            &[
                &[first, hello.pid()],
                &*second.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(),
            ]
            .concat(),
        );
        load.goes_on();
        if generation == 3 {
            second = Some((hello.pid(), Upload::begin(&hello)));
        }
        let expected: &[u64] = if generation > 3 { &[3, 1] } else { &[1] };
        eventually("status lists who drains", || draining(&hello) == expected);
    }
    // Answered where it began; then it moves to the newest, past all others.
    is_plain(&upload.end(), 1);
    asked += until_moved(&mut upload.0, 6);
    let (_, mut second) = second.expect("an upload");
    eventually("the first has left", || draining(&hello) == [3]);
    is_plain(&second.end(), 3);
    asked += until_moved(&mut second.0, 6);
    hello.settles();
    assert_eq!(draining(&hello), [0_u64; 0]);
    let answered = load.finish() + 2 + asked;
    assert_eq!(hello.requests(), answered);
}

#[test]
fn sixty_four_reloads_within_the_drain_of_the_first() {
    let hello = Hello::with().arg("--drain-timeout").arg("60s").start();
    let before = hello.at_rest();
    let load = Load::start(hello.address());
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    let mut asked = 0;
    for generation in 2..=65 {
        hello.begin_reload();
        for client in idle.iter_mut().skip(generation as usize % 4).step_by(4) {
            asked += until_moved(client, generation);
        }
    }
    are_left(&hello, &[first, hello.pid()]);
    assert_eq!(draining(&hello), [1]);
    is_plain(&upload.end(), 1);
    asked += until_moved(&mut upload.0, 65);
    hello.settles();
    let answered = load.finish() + 1 + asked;
    assert_eq!(hello.requests(), answered);
    drop((idle, upload));
    hello.holds_what_it_held(&before);
}

#[test]
fn a_signal_to_the_oldest_reaches_the_newest() {
    let hello = Hello::start();
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    for _ in 2..=4 {
        hello.begin_reload();
    }
    are_left(&hello, &[first, hello.pid()]);
    hello.signal(first, Signal::SIGUSR2);
    eventually("the newest has been replaced", || hello.generation() == 5);
    is_plain(&upload.end(), 1);
    until_moved(&mut upload.0, 5);
    hello.settles();
}

#[test]
fn an_oldest_that_is_killed_takes_nobody_along() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    let mut second = Upload::begin(&hello);
    hello.begin_reload();
    hello.begin_reload();
    are_left(&hello, &[first, hello.pid()]);
    hello.signal(first, Signal::SIGKILL);
    for upload in [&mut upload, &mut second] {
        let rest = upload.0.try_answer();
        assert!(matches!(rest, Err(_) | Ok(None)), "{rest:?}");
    }
    eventually("nobody drains", || draining(&hello).is_empty());
    hello.settles();
    hello.reload();
    assert_eq!(hello.generation(), 4);
    load.finish();
}

#[test]
fn an_oldest_that_is_frozen_for_a_while_has_lost_nothing() {
    // Whoever outlives its parent is this process's to reap, as it would be that of a machine's init.
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    hello.begin_reload();
    hello.signal(first, Signal::SIGSTOP);
    freezes(first);
    let mut successors = Vec::new();
    for _ in 3..=5 {
        hello.begin_reload();
        load.goes_on();
        successors.push(hello.pid());
    }
    are_left(&hello, &[first, hello.pid()]);
    // The first will hear of them, when nothing is left of them.
    for pid in &successors[..2] {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).expect("a pid"));
        nix::sys::wait::waitpid(pid, None).expect("reaped");
    }
    hello.signal(first, Signal::SIGCONT);
    is_plain(&upload.end(), 1);
    until_moved(&mut upload.0, 5);
    hello.settles();
    load.finish();
}

/// It would be waited for without end: the newest ends it after its deadline, as its own child would have.
#[test]
fn an_oldest_that_is_frozen_for_ever_is_ended_by_the_newest() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    for _ in 2..=4 {
        hello.begin_reload();
    }
    are_left(&hello, &[first, hello.pid()]);
    hello.signal(first, Signal::SIGSTOP);
    hello.settles();
    assert!(hello.log().contains("the parent is silent"));
    let rest = upload.0.try_answer();
    assert!(matches!(rest, Err(_) | Ok(None)), "{rest:?}");
    load.finish();
}

#[test]
fn a_stop_is_told_to_the_oldest_as_well() {
    let hello = Hello::start();
    let first = hello.pid();
    let mut upload = Upload::begin(&hello);
    for _ in 2..=4 {
        hello.begin_reload();
    }
    are_left(&hello, &[first, hello.pid()]);
    let mut stop = hello.verb(&["stop"]).spawn().expect("hello stop");
    eventually("it is stopping", || {
        hello.log().matches(" stopping ").count() == 2
    });
    let answer = upload.end();
    assert_eq!((answer.generation(), answer.closes()), (1, true));
    upload.0.expect_end();
    assert!(stop.wait().expect("hello stop").success());
    eventually("all have ended", || hello.processes().is_empty());
}

/// The newest does not take the channel while it is frozen; then it does.
#[cfg(feature = "failpoints")]
#[test]
fn a_newest_that_freezes_and_thaws_takes_everything() {
    // Frozen after the ack it would be woken by the kernel as soon as its parent leaves: setpgid(2).
    for place in ["heard/Channel", "after-say/Successor"] {
        let hello = Hello::start();
        let first = hello.pid();
        let mut upload = Upload::begin(&hello);
        hello.next("hello", "", "second");
        hello.begin_reload();
        let second = hello.pid();
        hello.next("second", &format!("child/{place}=stop"), "third");
        let mut reload = hello
            .verb(&["reload", "--no-wait"])
            .spawn()
            .expect("reload");
        eventually("the third serves", || hello.pid() != second);
        let third = hello.pid();
        freezes(third);
        is_plain(&upload.end(), 1);
        upload.0.send(support::client::request("/hello"));
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
#[cfg(feature = "failpoints")]
#[test]
fn a_middle_that_is_killed_loses_nothing_of_the_oldest() {
    for (moment, has_passed) in [("before-say", false), ("after-say", true)] {
        let hello = Hello::start();
        let first = hello.pid();
        let mut upload = Upload::begin(&hello);
        hello.next("hello", &format!("parent/{moment}/Channel=kill"), "second");
        hello.begin_reload();
        hello.next("second", "", "third");
        let mut reload = hello
            .verb(&["reload", "--no-wait"])
            .spawn()
            .expect("reload");
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

/// The newest is killed while it takes the channel: nobody serves any more, and what the oldest had is
/// answered all the same.
#[cfg(feature = "failpoints")]
#[test]
fn a_newest_that_is_killed_leaves_the_oldest_to_finish() {
    for place in [
        "heard/Channel",
        "before-say/Successor",
        "after-say/Successor",
        "before-say/ChannelAck",
        "after-say/ChannelAck",
    ] {
        let hello = Hello::start();
        let first = hello.pid();
        let mut upload = Upload::begin(&hello);
        hello.next("hello", "", "second");
        hello.begin_reload();
        hello.next("second", &format!("child/{place}=kill"), "third");
        let _ = hello.hello(&["reload", "--no-wait"]);
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
