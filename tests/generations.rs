//! Reloads that follow each other faster than generations drain: the middle ones leave, and what the oldest has
//! arrives in the newest.

mod support;

use nix::sys::signal::Signal;
use support::{
    Hello,
    at_rest::freezes,
    client::Client,
    eventually,
    generations::{Upload, are_left, draining, is_plain, until_moved},
    load::Load,
};

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
