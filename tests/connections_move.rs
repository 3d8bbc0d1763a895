//! Connections at rest move to the next generation, and their clients cannot tell.
//!
//! Every test acts on the same TCP connection before and after real reloads, under traffic.

mod support;

use std::{
    io::{Read, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use support::{
    Hello, LONG,
    client::{Answer, Client, request},
    copy_program, eventually, field,
    load::Load,
    raise_descriptors,
};

/// An answer like all others, from this generation.
fn is_plain(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

#[test]
fn a_new_connection_with_nothing_read_moves() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    eventually("it is accepted", || client.is_accepted());
    for _ in 0..3 {
        hello.reload();
    }
    is_plain(&client.get("/hello"), 4);
    load.finish();
}

#[test]
fn an_idle_connection_moves_again_and_again() {
    idle("0");
}

#[test]
fn after_a_probation_an_idle_connection_moves_too() {
    idle("100ms");
}

fn idle(probation: &str) {
    let hello = Hello::with().probation(probation).start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    is_plain(&client.get("/hello"), 1);
    for generation in 2..=5 {
        hello.reload();
        is_plain(&client.get("/hello"), generation);
    }
    hello.reload();
    hello.reload();
    is_plain(&client.get("/hello"), 7);
    load.finish();
}

/// Three parts of a head, in three generations, for each place of the first cut.
fn heads_in_three_parts(probation: &str, before: impl Fn(&mut Client)) {
    let hello = Hello::with().probation(probation).start();
    let load = Load::start(hello.address());
    let head = request("/hello").into_bytes();
    let mut clients: Vec<(usize, usize, Client)> = (1..head.len())
        .map(|first| {
            let second = first + (head.len() - first) / 2;
            (first, second, Client::connect(hello.address()))
        })
        .collect();
    for (first, _, client) in &mut clients {
        before(client);
        client.send(&head[..*first]);
    }
    clients.iter().for_each(|(.., client)| client.until_read());
    hello.reload();
    for (first, second, client) in &mut clients {
        client.send(&head[*first..*second]);
    }
    clients.iter().for_each(|(.., client)| client.until_read());
    hello.reload();
    for (first, second, client) in &mut clients {
        client.send(&head[*second..]);
        let answer = client.answer();
        assert_eq!(answer.status, 200, "cut at {first} and {second}");
        is_plain(&answer, 3);
        is_plain(&client.get("/hello"), 3);
    }
    load.finish();
}

#[test]
fn half_a_first_head_moves() {
    heads_in_three_parts("0", |_| {});
}

#[test]
fn half_a_later_head_moves() {
    heads_in_three_parts("0", |client| is_plain(&client.get("/hello"), 1));
}

#[test]
fn half_a_head_that_was_read_during_the_probation_moves() {
    heads_in_three_parts("100ms", |client| is_plain(&client.get("/hello"), 1));
}

#[test]
fn half_a_head_that_the_server_may_not_have_read_moves() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let head = request("/hello").into_bytes();
    let mut clients: Vec<Client> = (1..head.len())
        .map(|_| Client::connect(hello.address()))
        .collect();
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..4).for_each(|_| drop(hello.reload())));
        while !reloads.is_finished() {
            for (cut, client) in (1..).zip(&mut clients) {
                client.send(&head[..cut]);
            }
            for (cut, client) in (1..).zip(&mut clients) {
                client.send(&head[cut..]);
                let answer = client.answer();
                assert_eq!((answer.status, answer.closes()), (200, false));
            }
        }
    });
    load.finish();
}

#[test]
fn pipelined_requests_are_answered_in_order_and_none_twice() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    let last = request("/slow?ms=99");
    let (half, rest) = last.split_at(20);
    let whole: String = (1..=25)
        .map(|ms| request(&format!("/slow?ms={ms}")))
        .collect();
    client.send(whole + half);
    assert_eq!(client.answer().text(), "slow 1\n");
    hello.begin_reload();
    for ms in 2..=25 {
        let answer = client.answer();
        assert_eq!(answer.text(), format!("slow {ms}\n"));
        assert!(!answer.closes());
    }
    hello.settles();
    client.send(rest);
    let answer = client.answer();
    assert_eq!(answer.text(), "slow 99\n");
    is_plain(&answer, 2);
    let answered = load.finish() + 26;
    assert_eq!(hello.requests(), answered, "none was answered twice");
}

#[test]
fn a_megabyte_of_pipelined_requests_crosses_a_reload() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let one = request("/hello");
    let count = (1 << 20) / one.len() + 1;
    let mut client = Client::connect(hello.address());
    let mut writer = client.socket().try_clone().expect("clone");
    let mut generations = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer
                .write_all(one.repeat(count).as_bytes())
                .expect("send");
        });
        let mut reload = None;
        for number in 0..count {
            if number == count / 4 {
                reload = Some(scope.spawn(|| hello.reload()));
            }
            let answer = client.answer();
            assert_eq!((answer.status, answer.closes()), (200, false));
            generations.push(answer.generation());
        }
        reload.expect("begun").join().expect("a reload");
    });
    assert!(generations.is_sorted(), "answers went back to the parent");
    is_plain(&client.get("/hello"), 2);
    let answered = load.finish() + count as u64 + 1;
    assert_eq!(hello.requests(), answered, "none was answered twice");
}

#[test]
fn connections_that_were_just_answered_move() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut clients: Vec<(Client, u64)> = (0..100)
        .map(|_| (Client::connect(hello.address()), 1))
        .collect();
    let mut count = 0;
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..5).for_each(|_| drop(hello.reload())));
        while !reloads.is_finished() {
            for (client, _) in &mut clients {
                client.send(request("/hello"));
            }
            for (client, before) in &mut clients {
                let answer = client.answer();
                assert_eq!((answer.status, answer.closes()), (200, false));
                assert!(answer.generation() >= *before, "back to the parent");
                *before = answer.generation();
                count += 1;
            }
        }
    });
    for (client, _) in &mut clients {
        is_plain(&client.get("/hello"), 6);
        count += 1;
    }
    let answered = load.finish() + count;
    assert_eq!(hello.requests(), answered);
}

#[test]
fn a_thousand_idle_connections_live_through_five_reloads() {
    raise_descriptors();
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut clients: Vec<Client> = (0..1000)
        .map(|_| Client::connect(hello.address()))
        .collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    for _ in 0..5 {
        hello.reload();
        let moved = &hello.status()["last_reload"]["drained"]["moved"];
        assert!(moved.as_u64() >= Some(1000), "{moved} moved");
    }
    for client in &mut clients {
        is_plain(&client.get("/hello"), 6);
    }
    load.finish();
}

#[test]
fn unix_socket_connections_move() {
    let hello = Hello::with()
        .arg("--listen")
        .arg("unix=unix:hello.sock")
        .start();
    let path = hello.dir().join("hello.sock");
    let load = Load::start(hello.address());
    let mut new = Client::connect_unix(&path);
    let mut idle = Client::connect_unix(&path);
    let mut half = Client::connect_unix(&path);
    is_plain(&idle.get("/hello"), 1);
    half.send("GET /hel");
    for generation in 2..=4 {
        hello.reload();
        is_plain(&idle.get("/hello"), generation);
        is_plain(&Client::connect_unix(&path).get("/hello"), generation);
    }
    half.send("lo HTTP/1.1\r\nhost: test\r\n\r\n");
    is_plain(&half.answer(), 4);
    is_plain(&new.get("/hello"), 4);
    load.finish();
}

#[test]
fn an_http_1_0_connection_with_keep_alive_moves() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    for generation in 1..=3 {
        client.send("GET /hello HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
        let answer = client.answer();
        is_plain(&answer, generation);
        assert_eq!(answer.header("connection"), Some("keep-alive"));
        hello.reload();
    }
    load.finish();
}

#[test]
fn the_peer_address_moves_along() {
    let hello = Hello::with().arg("--drain-timeout").arg("500ms").start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    is_plain(&client.get("/hello"), 1);
    hello.reload();
    hello.reload();
    // Only what is cut is named; so it is made to be.
    client.send(request("/slow?ms=60000"));
    client.until_read();
    let said = hello.reload();
    let named = format!("cut: {} GET /slow", client.name());
    assert!(said.contains(&named), "{said}");
    load.finish();
}

/// A timeout that reloads must not prolong.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reloads again and again until the timeout of the client, which acts each time, has passed.
fn reload_until_timeout(hello: &Hello, client: &Client, mut act: impl FnMut(usize)) {
    let began = Instant::now();
    let (mut reloads, mut longest) = (0, Duration::ZERO);
    while !client.has_input() {
        // One reload more than it takes, and another that has begun meanwhile.
        let late = TIMEOUT + longest * 3 + Duration::from_secs(1);
        assert!(began.elapsed() < late, "it begins anew with each reload");
        let reload = Instant::now();
        act(reloads);
        hello.reload();
        longest = longest.max(reload.elapsed());
        reloads += 1;
    }
    let early = TIMEOUT - Duration::from_millis(100);
    assert!(began.elapsed() > early, "after {:?}", began.elapsed());
    assert!(reloads >= 3, "only {reloads} reloads: no test of anything");
}

/// A byte at a time, and a reload after each.
#[test]
fn the_header_timeout_goes_on_over_ten_reloads() {
    const RELOADS: usize = 10;
    // Long enough for all of them on this machine, whatever else it does.
    let first = Instant::now();
    Hello::start().reload();
    let timeout = (first.elapsed() * 4 * RELOADS as u32).max(TIMEOUT);
    let hello = Hello::with()
        .arg("--header-timeout")
        .arg(format!("{}ms", timeout.as_millis()))
        .start();
    let load = Load::start(hello.address());
    let head = request("/hello").into_bytes();
    let mut slow = Client::connect(hello.address());
    let mut later = Client::connect(hello.address());
    let began = Instant::now();
    for number in 0..RELOADS {
        slow.send(&head[number..=number]);
        slow.until_read();
        // Began halfway, and moved with it from then on.
        if number == RELOADS / 2 {
            later.send(&head[..1]);
            later.until_read();
        }
        hello.reload();
        assert!(!slow.has_input(), "after {:?}", began.elapsed());
    }
    let answer = slow.answer();
    assert_eq!((answer.status, answer.closes()), (408, true));
    assert!(began.elapsed() > timeout - Duration::from_millis(100));
    slow.expect_end();
    // Had the time begun anew with each reload, it would have been over for both at once.
    later.send(&head[1..]);
    is_plain(&later.answer(), 1 + RELOADS as u64);
    load.finish();
}

#[test]
fn the_idle_timeout_goes_on_over_reloads() {
    let hello = Hello::with().arg("--idle-timeout").arg("2s").start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    is_plain(&client.get("/hello"), 1);
    reload_until_timeout(&hello, &client, |_| {});
    client.expect_end();
    load.finish();
}

/// Asks until this process says that it will close, or another one answers; says which, and how often.
fn until_settled(client: &mut Client) -> (Answer, u64) {
    let mut count = 0;
    loop {
        // A request that is quick enough is answered before anything happens.
        let answer = client.get("/hello");
        assert_eq!(answer.status, 200);
        count += 1;
        assert!(count < 10_000, "neither moved nor closed");
        if answer.closes() || answer.generation() > 1 {
            return (answer, count);
        }
    }
}

#[test]
fn what_exceeds_the_child_s_descriptors_is_finished_by_the_parent() {
    let hello = Hello::start();
    let mut clients: Vec<Client> = (0..120).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    let real = hello.dir().join("real");
    copy_program(&hello.binary(), &real);
    hello.replace_binary_by_script(&format!("ulimit -n 64; exec '{}' \"$@\"", real.display()));
    hello.begin_reload();
    let (mut moved, mut stayed, mut asked) = (0, 0, 120);
    // Those that moved are left open meanwhile: none is taken over later.
    for client in &mut clients {
        let (answer, count) = until_settled(client);
        asked += count;
        match answer.generation() {
            1 => {
                assert!(answer.closes(), "{answer:?}");
                client.expect_end();
                stayed += 1;
            }
            2 => {
                assert!(!answer.closes(), "{answer:?}");
                moved += 1;
            }
            other => panic!("generation {other}"),
        }
    }
    assert!(moved > 10 && stayed > 10, "{moved} moved, {stayed} stayed");
    drop(clients);
    hello.settles();
    assert_eq!(hello.requests(), asked);
    // Both say so, with numbers.
    let log = hello.log();
    let mut refused = 0;
    for line in log.lines().filter(|l| l.contains("stay with the parent")) {
        assert!(line.contains("raise RLIMIT_NOFILE, which is 64"), "{line}");
        refused += field(line, "refused");
    }
    let finished = log.lines().find(|line| line.contains("finished"));
    let finished = finished.expect("the parent's last line");
    assert_eq!((refused, field(finished, "moved")), (stayed, moved));
    assert_eq!(field(finished, "drained"), stayed, "{finished}");
}

#[test]
fn connections_that_were_not_acknowledged_come_back_from_a_child_that_is_killed() {
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/before-say/ConnAck=kill")
        .start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    let mut busy = Client::connect(hello.address());
    busy.send(request("/slow?ms=1500"));
    busy.until_read();
    hello.hello(&["reload", "--no-wait"]);
    for client in &mut clients {
        let (answer, _) = until_settled(client);
        assert_eq!((answer.closes(), answer.generation()), (true, 1));
        client.expect_end();
    }
    assert_eq!(busy.answer().text(), "slow 1500\n");
}

#[test]
fn connections_that_were_acknowledged_die_with_the_child_and_the_others_live() {
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/after-say/ConnAck=kill")
        .start();
    let mut idle = Client::connect(hello.address());
    is_plain(&idle.get("/hello"), 1);
    let mut busy: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    for client in &mut busy {
        client.send(request("/slow?ms=1500"));
        client.until_read();
    }
    hello.hello(&["reload", "--no-wait"]);
    // It was the child's, so the parent must not have touched it.
    let mut rest = Vec::new();
    let _ = idle.socket().read_to_end(&mut rest);
    assert_eq!(rest, b"", "somebody answered what nobody asked");
    for client in &mut busy {
        let answer = client.answer();
        assert_eq!(
            (answer.text().as_str(), answer.generation()),
            ("slow 1500\n", 1)
        );
    }
}

#[test]
fn a_connection_is_never_lost_while_reloads_storm() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A client that pauses at another place of its request each time.
        let walker = scope.spawn(|| {
            let mut client = Client::connect(hello.address());
            let head = request("/hello");
            let mut count = 0;
            for cut in (0..head.len()).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                client.send(&head[..cut]);
                client.until_read();
                client.send(&head[cut..]);
                let answer = client.answer();
                assert_eq!((answer.status, answer.closes()), (200, false));
                count += 1;
            }
            count
        });
        let began = Instant::now();
        for _ in 0..20 {
            hello.reload();
            assert!(began.elapsed() < LONG);
        }
        stop.store(true, Ordering::Relaxed);
        let walked = walker.join().expect("no request was lost");
        let answered = load.finish() + walked;
        assert_eq!(hello.requests(), answered);
    });
}
