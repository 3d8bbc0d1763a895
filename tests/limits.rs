//! Limits of the server and of its connections, also over reloads, and a server that has run out of
//! descriptors.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use nix::sys::signal::Signal;
use support::{
    Hello,
    client::{Answer, Client, request},
    eventually,
    load::Load,
};

fn is_plain(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

#[test]
fn connections_beyond_the_limit_wait_in_the_backlog() {
    let hello = Hello::with().arg("--max-connections").arg("4").start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    let mut fifth = Client::connect(hello.address());
    fifth.send(request("/hello"));
    let mut sixth = Client::connect(hello.address());
    sixth.send(request("/hello"));
    is_plain(&clients[0].get("/slow?ms=100"), 1);
    assert!(!fifth.is_accepted(), "a fifth where four are the most");
    clients.pop();
    is_plain(&fifth.answer(), 1);
    is_plain(&clients[0].get("/slow?ms=100"), 1);
    assert!(!sixth.is_accepted());
    drop(fifth);
    is_plain(&sixth.answer(), 1);
}

#[test]
fn connections_that_are_adopted_count_and_are_never_refused() {
    let hello = Hello::with().arg("--max-connections").arg("4").start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    for generation in 2..=4 {
        hello.reload();
        for client in &mut clients {
            is_plain(&client.get("/hello"), generation);
        }
    }
    let mut fifth = Client::connect(hello.address());
    fifth.send(request("/hello"));
    is_plain(&clients[0].get("/slow?ms=100"), 4);
    assert!(!fifth.is_accepted(), "a fifth where four are the most");
    clients.pop();
    is_plain(&fifth.answer(), 4);
}

#[test]
fn connections_beyond_the_limit_wait_in_the_backlog_over_a_reload() {
    let hello = Hello::with().arg("--max-connections").arg("4").start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    let mut fifth = Client::connect(hello.address());
    fifth.send(request("/hello"));
    hello.reload();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 2);
    }
    assert!(!fifth.is_accepted(), "a fifth where four are the most");
    clients.pop();
    is_plain(&fifth.answer(), 2);
}

/// What an older generation still serves is as real as what the new one does.
#[test]
fn connections_that_older_generations_still_serve_count() {
    let hello = Hello::with().arg("--max-connections").arg("4").start();
    let mut busy: Vec<Client> = (0..3).map(|_| Client::connect(hello.address())).collect();
    for client in &mut busy {
        // Until its other half comes, it stays where it is.
        client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf ");
        client.until_read();
    }
    for generation in 2..=3 {
        hello.begin_reload();
        let mut fourth = Client::connect(hello.address());
        is_plain(&fourth.get("/hello"), generation);
        let mut fifth = Client::connect(hello.address());
        fifth.send(request("/hello"));
        is_plain(&fourth.get("/slow?ms=100"), generation);
        assert!(!fifth.is_accepted(), "a fifth where four are the most");
        // It comes in as soon as one of those that the older ones serve has gone.
        drop(busy.pop());
        is_plain(&fifth.answer(), generation);
        drop(fifth);
        drop(fourth);
        busy.push(Client::connect(hello.address()));
        let last = busy.last_mut().expect("one");
        last.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf ");
        last.until_read();
    }
    for client in &mut busy {
        client.send("whole");
        assert_eq!(client.answer().status, 200);
    }
    hello.settles();
    for client in &mut busy {
        is_plain(&client.get("/hello"), 3);
    }
}

#[test]
fn a_limit_that_shrinks_closes_nobody() {
    let hello = Hello::with().arg("--max-connections").arg("8").start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    let real = hello.dir().join("real");
    support::copy_program(&hello.binary(), &real);
    // The next build has another default, so to speak.
    hello.replace_binary_by_script(&format!(
        "exec '{}' serve --listen 127.0.0.1:0 --pidfile '{}' --max-connections 2",
        real.display(),
        hello.pidfile().display()
    ));
    hello.reload();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 2);
    }
    let mut waiting = Client::connect(hello.address());
    waiting.send(request("/hello"));
    while clients.len() > 2 {
        assert!(!waiting.is_accepted(), "{} and one more", clients.len());
        drop(clients.pop());
        is_plain(&clients[0].get("/slow?ms=50"), 2);
    }
    drop(clients.pop());
    is_plain(&waiting.answer(), 2);
}

#[test]
fn heads_that_are_too_large_are_answered_431_in_every_generation() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let long = format!(
        "GET /hello HTTP/1.1\r\nhost: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    let many = format!(
        "GET /hello HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "a: b\r\n".repeat(100)
    );
    let most = format!(
        "GET /hello HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "a: b\r\n".repeat(99)
    );
    for generation in 1..=2 {
        for head in [&long, &many] {
            let mut client = Client::connect(hello.address());
            client.send(head);
            let answer = client.answer();
            assert_eq!((answer.status, answer.closes()), (431, true));
            client.expect_end();
        }
        let mut client = Client::connect(hello.address());
        client.send(&most);
        is_plain(&client.answer(), generation);
        // One that grows too large in the course of a reload.
        let (half, rest) = long.split_at(40_000);
        client.send(half);
        client.until_read();
        hello.reload();
        client.send(rest);
        assert_eq!(client.answer().status, 431);
        client.expect_end();
    }
    load.finish();
}

#[test]
fn a_slow_head_is_answered_408() {
    let hello = Hello::with().arg("--header-timeout").arg("300ms").start();
    let load = Load::start(hello.address());
    let mut first = Client::connect(hello.address());
    first.send("GET /hello HT");
    let mut later = Client::connect(hello.address());
    is_plain(&later.get("/hello"), 1);
    later.send("GET /hello HT");
    for client in [&mut first, &mut later] {
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (408, true));
        client.expect_end();
    }
    // Idleness is no slow head, and a slow answer is none either.
    let mut idle = Client::connect(hello.address());
    is_plain(&idle.get("/slow?ms=600"), 1);
    is_plain(&Client::connect(hello.address()).get("/slow?ms=600"), 1);
    is_plain(&idle.get("/hello"), 1);
    hello.reload();
    idle.send("G");
    assert_eq!(idle.answer().status, 408);
    idle.expect_end();
    load.finish();
}

#[test]
fn an_idle_connection_is_closed_in_order() {
    let hello = Hello::with().arg("--idle-timeout").arg("300ms").start();
    let load = Load::start(hello.address());
    let mut new = Client::connect(hello.address());
    let mut used = Client::connect(hello.address());
    is_plain(&used.get("/slow?ms=600"), 1);
    new.expect_end();
    used.expect_end();
    load.finish();
}

/// Processor time of a process, in ticks of 10 ms.
fn cpu(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[test]
fn a_server_without_descriptors_neither_spins_nor_forgets_anybody() {
    let hello = Hello::with().descriptors(50).start();
    let pid = hello.pid();
    let mut clients: Vec<Client> = (0..80).map(|_| Client::connect(hello.address())).collect();
    clients
        .iter_mut()
        .for_each(|client| client.send(request("/hello")));
    eventually("it runs out of descriptors", || {
        hello.log().contains("cannot accept; waiting")
    });
    is_plain(&clients[0].answer(), 1);
    // A second and a half, by the server's own clock.
    let (before, lines) = (cpu(pid), hello.log().lines().count());
    for _ in 0..15 {
        is_plain(&clients[0].get("/slow?ms=100"), 1);
    }
    let (used, lines) = (cpu(pid) - before, hello.log().lines().count() - lines);
    assert!(
        used < 50,
        "{used}0 ms of processor time while there was nothing to do"
    );
    // One line each ten seconds, if the machine is so slow.
    assert!(lines < 5, "{lines} lines in the log");
    // It cannot start a child now either, and says so.
    hello.signal(pid, Signal::SIGUSR2);
    eventually("the reload has failed", || {
        hello.log().contains("reload failed")
    });
    is_plain(&clients[0].get("/hello"), 1);
    // As clients go, all others come in.
    clients.remove(0);
    for mut client in clients {
        is_plain(&client.answer(), 1);
    }
    let load = Load::start(hello.address());
    hello.reload();
    hello.settles();
    load.finish();
}

/// The kernel keeps so many connections for a server that does not accept; and the next generation finds them.
#[test]
fn the_backlog_survives_a_reload() {
    let hello = Hello::with()
        .arg("--max-connections")
        .arg("1")
        .arg("--backlog")
        .arg("300")
        .start();
    let mut first = Client::connect(hello.address());
    is_plain(&first.get("/hello"), 1);
    let queued: Vec<TcpStream> = (0..250)
        .map(|_| {
            let mut socket = TcpStream::connect(hello.address()).expect("connect");
            let last = "GET /hello HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
            socket.write_all(last.as_bytes()).expect("send");
            socket
        })
        .collect();
    for generation in 2..=4 {
        hello.reload();
        is_plain(&first.get("/hello"), generation);
    }
    drop(first);
    for mut socket in queued {
        let mut answer = String::new();
        socket
            .set_read_timeout(Some(support::LONG))
            .expect("timeout");
        socket.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello world eee\n"), "{answer}");
    }
}
