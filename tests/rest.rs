//! Connections whose clients have said nothing for long: they cost a place in one epoll, and all that can happen to a
//! connection happens to them.

mod support;

use std::fs;

use support::{
    Hello,
    client::{Client, request},
    eventually,
    load::Load,
    text,
};

/// How many connections of the process rest: its epoll asks for input, its end and errors (which the kernel adds) only,
/// each time anew, while tokio's asks for edges.
fn resting(pid: u32) -> usize {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives");
    let infos = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
    let rests = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("tfd:") && words.nth(2) == Some("2019")
    };
    infos.map(|info| info.lines().filter(rests).count()).sum()
}

fn rest(hello: &Hello, count: usize) {
    eventually("they rest", || resting(hello.pid()) == count);
}

fn connections(hello: &Hello) -> u64 {
    let status = hello.status();
    status["application"]["connections"]
        .as_u64()
        .expect("a number")
}

fn connected(hello: &Hello, count: usize) -> Vec<Client> {
    let one = |_| {
        let mut client = Client::connect(hello.address());
        assert_eq!(client.get("/hello").status, 200);
        client
    };
    (0..count).map(one).collect()
}

#[test]
fn they_are_answered_rest_again_and_move_from_there() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut clients = connected(&hello, 20);
    for generation in 1..=3 {
        // In the first generation after a while, later at once.
        rest(&hello, clients.len());
        for client in &mut clients {
            assert_eq!(client.get("/hello").generation(), generation);
        }
        rest(&hello, clients.len());
        hello.reload();
    }
    load.finish();
}

#[test]
fn who_never_speaks_rests_too() {
    let hello = Hello::start();
    let mut client = Client::connect(hello.address());
    rest(&hello, 1);
    assert_eq!(client.get("/hello").generation(), 1);
}

/// Places are used again: whoever gets one must not be taken for the one before.
#[test]
fn who_goes_is_forgotten_and_who_comes_takes_the_place() {
    let hello = Hello::start();
    for round in 1..=5 {
        let mut clients = connected(&hello, 30);
        hello.reload();
        rest(&hello, clients.len());
        clients.truncate(10);
        rest(&hello, clients.len());
        eventually("the others are gone", || connections(&hello) == 10);
        for client in &mut clients {
            assert_eq!(client.get("/hello").generation(), round + 1);
        }
        drop(clients);
        eventually("all are gone", || connections(&hello) == 0);
    }
}

#[test]
fn part_of_a_head_wakes_and_its_timeout_strikes() {
    let hello = Hello::with().arg("--header-timeout").arg("1s").start();
    let mut clients = connected(&hello, 1);
    hello.reload();
    rest(&hello, 1);
    let client = &mut clients[0];
    client.send("GET / HT");
    assert_eq!(client.answer().status, 408);
    client.expect_end();
}

#[test]
fn the_idle_timeout_ends_the_rest() {
    let hello = Hello::with().arg("--idle-timeout").arg("5s").start();
    let mut clients = connected(&hello, 3);
    hello.reload();
    rest(&hello, 3);
    for client in &mut clients {
        client.expect_end();
    }
    eventually("all are gone", || connections(&hello) == 0);
}

/// What has been sent when the process is stopped is answered; the others see an end, and no reset.
#[test]
fn a_stop_answers_who_has_spoken_and_closes_the_others() {
    let hello = Hello::start();
    let mut clients = connected(&hello, 40);
    hello.reload();
    rest(&hello, clients.len());
    let (speaking, silent) = clients.split_at_mut(20);
    for client in &mut *speaking {
        client.send(request("/hello"));
    }
    let output = hello.hello(&["stop"]);
    assert!(output.status.success(), "{}", text(&output));
    for client in speaking {
        assert_eq!(client.answer().status, 200);
        client.expect_end();
    }
    for client in silent {
        client.expect_end();
    }
}
