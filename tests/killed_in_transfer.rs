//! Either process killed, or frozen, at every step of moving a thousand connections, which are four batches at least.
//!
//! What must hold follows from who owns a connection. What was acknowledged is the child's, and dies with it; what was sent
//! before the parent died is the child's, too; all else is the parent's. Nobody is served twice, nobody is lost whom these rules
//! do not name, and each client gets what it asked for and nobody else did.

#![allow(
    clippy::zombie_processes,
    reason = "the harness kills what runs from its directory"
)]

mod support;

use std::{
    io::{self, Write},
    process::Child,
};

use nix::sys::signal::Signal;
use support::{
    Hello, Start,
    at_rest::freezes,
    cells::{child_does, child_of, each, end_of, parent_does, reloading},
    client::{Answer, Client},
    eventually, field, raise_descriptors, text,
};

const CLIENTS: usize = 1000;

/// At each batch of four, and there may be more if the first ones were sent before they were full.
const BATCHES: [usize; 3] = [1, 2, 4];

const CHILD: &[&str] = &["heard/Conn", "before-say/ConnAck", "after-say/ConnAck"];

const PARENT: &[&str] = &["before-say/Conn", "after-say/Conn", "heard/ConnAck"];

fn cells(points: &[&'static str]) -> Vec<(&'static str, usize)> {
    let of = |point: &&'static str| BATCHES.map(|number| (*point, number));
    points.iter().flat_map(of).collect()
}

/// Those who have waited take longer than a drain may: who stays asks within it.
fn start() -> Start {
    raise_descriptors();
    Hello::with().arg("--drain-timeout").arg("40s")
}

/// Idle clients, each of which has been answered once.
fn connect(hello: &Hello) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| Client::connect(hello.address()))
        .collect();
    for client in &mut clients {
        // This is not counted.
        assert_eq!(client.get("/healthz").status, 200);
    }
    clients
}

/// What only this client asks.
fn question(number: usize) -> String {
    format!("{number:08}").repeat(number % 7 + 1)
}

fn ask(client: &Client, number: usize) {
    let body = question(number);
    let head = format!(
        "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // Where nobody is left this fails; the answer tells.
    let _ = client.socket().write_all((head + &body).as_bytes());
}

/// What became of the clients' questions.
#[derive(Debug, Default)]
struct Fates {
    /// In each generation.
    answered: [u64; 3],
    /// Told to go with the answer.
    closed: u64,
    /// Those who were not.
    open: Vec<usize>,
    lost: u64,
}

impl Fates {
    fn all(&self) -> u64 {
        self.answered.iter().sum()
    }
}

fn fates(clients: &mut [Client]) -> Fates {
    let mut fates = Fates::default();
    for (number, client) in clients.iter_mut().enumerate() {
        let Some(answer) = answer(client, number) else {
            fates.lost += 1;
            continue;
        };
        let generation = usize::try_from(answer.generation()).expect("a number");
        fates.answered[generation] += 1;
        if answer.closes() {
            fates.closed += 1;
        } else {
            fates.open.push(number);
        }
    }
    fates
}

/// What the client asked for; `None` if the connection has ended instead.
fn answer(client: &mut Client, number: usize) -> Option<Answer> {
    match client.try_answer() {
        Ok(Some(answer)) => {
            let crc32 = format!("{:08x}", crc32fast::hash(question(number).as_bytes()));
            let of: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(of["crc32"], crc32, "somebody else's answer: {answer:?}");
            Some(answer)
        }
        Ok(None) => None,
        Err(error) if is_lost(&error) => None,
        Err(error) => panic!("client {number}: {error}"),
    }
}

fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn ask_all(clients: &mut [Client]) -> Fates {
    for (number, client) in clients.iter().enumerate() {
        ask(client, number);
    }
    fates(clients)
}

/// Whom the parent serves it answers, and tells to go.
fn until_told_to_go(client: &mut Client, number: usize) {
    loop {
        ask(client, number);
        let answer = answer(client, number).expect("an answer: nobody else owned it");
        if answer.closes() {
            return;
        }
    }
}

fn name(who: &str) -> impl Fn(&(&'static str, usize)) -> String + Sync {
    move |(point, number)| format!("{who}, {point}#{number}")
}

/// What it had acknowledged is lost with it; all others are the parent's, which answers them.
#[test]
fn a_child_that_is_killed_takes_along_what_it_owned() {
    each(&cells(CHILD), name("child killed"), |(point, number)| {
        let hello = start().start();
        let parent = hello.pid();
        let mut clients = connect(&hello);
        child_does(&hello, &format!("{point}#{number}"), "kill");
        let reloading = reloading(&hello);
        eventually("the child has taken the pidfile over", || {
            hello.pid() != parent
        });
        let child = hello.pid();
        eventually("the child is dead", || !hello.processes().contains(&child));
        let fates = ask_all(&mut clients);
        // Whoever was so quick that the parent had not given it up yet.
        for number in &fates.open {
            until_told_to_go(&mut clients[*number], *number);
        }
        eventually("the parent has finished", || hello.processes().is_empty());
        let output = end_of(reloading);
        // It had been confirmed.
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(fates.answered[2], 0, "{fates:?}");
        let log = hello.log();
        let last = log.lines().find(|line| line.contains("finished"));
        let last = last.expect("the parent's last line");
        assert_eq!(field(last, "moved"), fates.lost, "{last} {fates:?}");
        assert_eq!(field(last, "drained"), fates.answered[1], "{last}");
        assert_eq!(field(last, "cut"), 0, "{last}");
        let has_owned = *number > 1 || *point == "after-say/ConnAck";
        assert_eq!(fates.lost > 0, has_owned, "{fates:?}");
    });
}

/// What was sent is the child's, whatever became of the parent; what was not is lost, and nobody else.
#[test]
fn a_parent_that_is_killed_takes_along_what_it_had_not_sent() {
    each(&cells(PARENT), name("parent killed"), |(point, number)| {
        let hello = parent_does(start(), &format!("{point}#{number}"), "kill");
        let mut clients = connect(&hello);
        let output = end_of(reloading(&hello));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        eventually("the child knows it", || {
            hello.log().contains("the parent has crashed")
        });
        let adopted = hello.status()["application"]["connections"].as_u64();
        let fates = ask_all(&mut clients);
        assert_eq!(Some(fates.answered[2]), adopted, "{fates:?}");
        assert_eq!(fates.all(), fates.answered[2], "{fates:?}");
        assert_eq!(fates.closed, 0, "{fates:?}");
        let has_sent = *number > 1 || *point != "before-say/Conn";
        assert_eq!(fates.all() > 0, has_sent, "{fates:?}");
        assert_eq!(hello.requests(), fates.all(), "nobody is served twice");
    });
}

/// Slow, and nothing else: everybody moves.
fn frozen_and_thawed(hello: &Hello, clients: &mut [Client], reloading: Child, frozen: u32) {
    freezes(frozen);
    for (number, client) in clients.iter().enumerate() {
        ask(client, number);
    }
    hello.signal(frozen, Signal::SIGCONT);
    let fates = fates(clients);
    assert_eq!((fates.lost, fates.closed), (0, 0), "{fates:?}");
    let output = end_of(reloading);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(hello.requests(), fates.all(), "nobody is served twice");
    let fates = ask_all(clients);
    assert_eq!(fates.answered[2], CLIENTS as u64, "{fates:?}");
    assert_eq!(fates.closed, 0, "{fates:?}");
}

#[test]
fn a_child_that_is_frozen_loses_nobody() {
    each(&cells(CHILD), name("child frozen"), |(point, number)| {
        let hello = start().start();
        let parent = hello.pid();
        let mut clients = connect(&hello);
        child_does(&hello, &format!("{point}#{number}"), "stop");
        let reloading = reloading(&hello);
        let child = child_of(&hello, parent, &reloading);
        frozen_and_thawed(&hello, &mut clients, reloading, child);
    });
}

#[test]
fn a_parent_that_is_frozen_loses_nobody() {
    each(&cells(PARENT), name("parent frozen"), |(point, number)| {
        let hello = parent_does(start(), &format!("{point}#{number}"), "stop");
        let parent = hello.pid();
        let mut clients = connect(&hello);
        let reloading = reloading(&hello);
        frozen_and_thawed(&hello, &mut clients, reloading, parent);
    });
}
