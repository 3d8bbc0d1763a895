//! What no client should send: each row of a table is answered as RFC 9112 allows, alike on a connection that is new, one that has moved to the
//! next generation, and one on which it had begun before a reload.
//!
//! The answers stand in docs/http.md, row by row; the test compares. No request of the rows is served as another one: all that the
//! application serves is counted. Meanwhile clients that behave lose nothing.

mod support;

#[path = "http_abuse/rows.rs"]
mod rows;

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use rows::{Row, Then};
use support::{
    Hello, LONG,
    client::{Answer, Client, request},
    eventually,
    load::Load,
};

const DOCS: &str = include_str!("../docs/http.md");

/// What a client has seen.
struct Seen {
    /// 0: none.
    status: u16,
    /// What the answer says of the connection.
    keeps: bool,
    lives: bool,
}

impl Row {
    /// The line of the table in the docs.
    fn documented(&self, status: u16) -> String {
        let status = match status {
            0 => "none".to_owned(),
            status => status.to_string(),
        };
        let then = match self.then {
            Then::Closes => "closed",
            Then::Lives => "lives",
            Then::LivesIfWhole => "lives, if the body is there",
        };
        format!("| {} | {} | {status} | {then} |", self.name, self.section)
    }

    /// What becomes of the connection on which it was sent.
    fn outcome(&self, client: &mut Client) -> Result<Seen, String> {
        let answer = if self.request.starts_with(b"HEAD") {
            Some(client.head())
        } else {
            client.try_answer().map_err(|error| error.to_string())?
        };
        Ok(Seen {
            keeps: answer.as_ref().is_some_and(Answer::keeps),
            status: answer.map_or(0, |answer| answer.status),
            lives: client.try_lives()?,
        })
    }
}

/// The rows of one round, and what was wrong with them.
#[derive(Default)]
struct Round {
    counted: u64,
    wrong: Vec<String>,
}

impl Round {
    /// `cut` is the place at which a reload came between.
    fn take(&mut self, row: &Row, cut: Option<usize>, client: &mut Client) {
        match row.outcome(client) {
            Ok(seen) => {
                self.counted += u64::from(seen.status == 200);
                self.judge(row, cut, &seen);
            }
            Err(error) => self
                .wrong
                .push(format!("{}, cut {cut:?}: {error}", row.name)),
        }
    }

    fn judge(&mut self, row: &Row, cut: Option<usize>, seen: &Seen) {
        let Row { name, then, .. } = row;
        let line = row.documented(seen.status);
        if !row.allowed.contains(&seen.status) {
            let allowed = row.allowed;
            self.wrong
                .push(format!("cut {cut:?}: {line}: allowed is {allowed:?}"));
        } else if seen.keeps && *then == Then::Closes {
            self.wrong
                .push(format!("cut {cut:?}: {name}: keep-alive, and closed"));
        } else if !then.allows(seen.lives, cut.is_some()) {
            let lives = seen.lives;
            self.wrong.push(format!(
                "cut {cut:?}: {name}: lives: {lives}, and should: {then:?}"
            ));
        } else if !DOCS.lines().any(|documented| documented == line) {
            self.wrong
                .push(format!("cut {cut:?}: not in docs/http.md: {line}"));
        }
    }

    fn end(self, hello: &Hello, load: Load) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        let answered = load.finish() + self.counted;
        assert_eq!(hello.requests(), answered, "one was served that was none");
    }
}

#[test]
fn the_docs_have_no_other_rows() {
    let documented = DOCS.lines().filter(|line| {
        let then = ["| closed |", "| lives |", "| lives, if the body is there |"];
        then.iter().any(|then| line.ends_with(then))
    });
    assert_eq!(documented.count(), rows::rows().len());
}

/// The server may have answered and closed before all was sent.
fn send_if_wanted(client: &Client, bytes: &[u8]) {
    let _ = client.socket().write_all(bytes);
}

#[test]
fn on_a_new_connection() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let mut round = Round::default();
    for row in rows::rows() {
        let mut client = Client::connect(hello.address());
        send_if_wanted(&client, &row.request);
        round.take(&row, None, &mut client);
    }
    round.end(&hello, load);
}

#[test]
fn on_a_connection_that_has_moved() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let mut round = Round::default();
    let rows = rows::rows();
    let connect = || {
        let mut client = Client::connect(hello.address());
        assert_eq!(client.get("/healthz").status, 200);
        client
    };
    let clients: Vec<Client> = rows.iter().map(|_| connect()).collect();
    hello.reload();
    for (row, mut client) in rows.iter().zip(clients) {
        send_if_wanted(&client, &row.request);
        round.take(row, None, &mut client);
    }
    round.end(&hello, load);
}

/// Where a request is cut, in parts of its length.
const CUTS: [(usize, usize); 4] = [(1, 4), (1, 2), (3, 4), (1, 1)];

#[test]
fn begun_before_a_reload_and_ended_after_it() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let mut round = Round::default();
    let rows = rows::rows();
    let mut begun = Vec::new();
    for row in rows.iter().filter(|row| row.is_cut) {
        for (part, of) in CUTS {
            // Of the last one a byte is kept back.
            let cut = (row.request.len() * part / of).min(row.request.len() - 1);
            let client = Client::connect(hello.address());
            send_if_wanted(&client, &row.request[..cut]);
            begun.push((row, cut, client));
        }
    }
    for (_, _, client) in &begun {
        eventually("it has been read, or answered", || {
            client.has_input() || client.is_read()
        });
    }
    hello.begin_reload();
    for (row, cut, client) in &begun {
        send_if_wanted(client, &row.request[*cut..]);
    }
    for (row, cut, mut client) in begun {
        round.take(row, Some(cut), &mut client);
    }
    hello.reload();
    round.end(&hello, load);
}

/// Whether the server says something, or closes, within `time`.
fn speaks_within(client: &Client, time: Duration) -> bool {
    let socket = client.socket();
    socket.set_read_timeout(Some(time)).expect("timeout");
    let peeked = socket.peek(&mut [0]);
    socket.set_read_timeout(Some(LONG)).expect("timeout");
    !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Sends a byte at a time, until the server speaks.
fn trickle(client: &Client) {
    while !speaks_within(client, Duration::from_millis(20)) {
        send_if_wanted(client, b"a");
    }
}

const SLOW_HEAD: &str = "GET /hello HTTP/1.1\r\nhost: test\r\nx: ";

fn is_timed_out(client: &mut Client) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.closes()), (408, true));
    client.expect_end();
}

#[test]
fn a_head_that_comes_by_bytes_is_cut_at_the_header_timeout() {
    let timeout = Duration::from_secs(1);
    let hello = Hello::with().arg("--header-timeout").arg("1s").start();
    let load = Load::calm(hello.address());
    let mut moved = Client::connect(hello.address());
    assert_eq!(moved.get("/healthz").status, 200);
    let mut new = Client::connect(hello.address());
    new.send(SLOW_HEAD);
    let start = Instant::now();
    trickle(&new);
    assert!(start.elapsed() >= timeout / 2, "{:?}", start.elapsed());
    is_timed_out(&mut new);
    let mut begun = Client::connect(hello.address());
    begun.send(SLOW_HEAD);
    begun.until_read();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..3).for_each(|_| drop(hello.reload())));
        trickle(&begun);
        // The time spent travels: were it granted anew by each generation, there would be no end.
        assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
        reloads.join().expect("reloads");
    });
    is_timed_out(&mut begun);
    moved.send(SLOW_HEAD);
    trickle(&moved);
    is_timed_out(&mut moved);
    let answered = load.finish();
    assert_eq!(hello.requests(), answered);
}

const BEGUN: &str = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n";

/// The body has no time limit, but the drain's: it is cut then, by name, and a later one is served on.
#[test]
fn a_body_that_comes_by_bytes_ends_with_the_drain() {
    let hello = Hello::with().arg("--drain-timeout").arg("1s").start();
    let load = Load::calm(hello.address());
    let mut moved = Client::connect(hello.address());
    assert_eq!(moved.get("/healthz").status, 200);
    let mut begun = Client::connect(hello.address());
    begun.send(BEGUN);
    begun.until_read();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| hello.reload());
        trickle(&begun);
        let said = reload.join().expect("the reload");
        let named = format!("cut: {} POST /upload", begun.name());
        assert!(said.contains("1 cut)"), "{said}");
        assert!(said.contains(&named), "{said}");
    });
    // Nothing of an answer came.
    assert!(!matches!(begun.try_answer(), Ok(Some(_))));
    let mut new = Client::connect(hello.address());
    for client in [&mut moved, &mut new] {
        let body = "a".repeat(60);
        client.send(BEGUN.replace("100000", "60"));
        for byte in body.as_bytes() {
            assert!(!client.has_input());
            client.send([*byte]);
            client.until_read();
        }
        assert_eq!(client.answer().status, 200);
        assert!(client.lives());
    }
    let answered = load.finish() + 2;
    assert_eq!(hello.requests(), answered);
}

#[test]
fn a_client_that_does_not_send_what_it_was_asked_for_holds_nobody_up() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let begin = |client: &mut Client| {
        let head = BEGUN.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
        client.send(head);
        assert_eq!(client.head().status, 100);
    };
    let mut moved = Client::connect(hello.address());
    assert_eq!(moved.get("/healthz").status, 200);
    let mut begun = Client::connect(hello.address());
    begin(&mut begun);
    hello.begin_reload();
    let mut new = Client::connect(hello.address());
    begin(&mut new);
    begin(&mut moved);
    for client in [&mut new, &mut moved, &mut begun] {
        assert!(!client.has_input());
        client.half_close();
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (400, true), "{answer:?}");
        client.expect_end();
    }
    hello.reload();
    let answered = load.finish();
    assert_eq!(hello.requests(), answered);
}

/// What a process has in memory, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let words = line.expect("VmRSS").split_whitespace().nth(1);
    words.expect("a number").parse().expect("a number")
}

/// A stream of a hundred megabytes to each of twenty clients, of which none reads: the kernel's buffers fill, and no more is made.
#[test]
fn clients_that_do_not_read_cost_no_memory_and_end_with_the_drain() {
    let hello = Hello::with().arg("--drain-timeout").arg("1s").start();
    let load = Load::calm(hello.address());
    let before = resident(hello.pid());
    let connect = || {
        let mut client = Client::connect(hello.address());
        client.send(request("/stream?chunks=1000000&ms=0"));
        client
    };
    let clients: Vec<Client> = (0..20).map(|_| connect()).collect();
    for client in &clients {
        eventually("it is answered", || client.has_input());
    }
    for _ in 0..20 {
        load.goes_on();
    }
    let after = resident(hello.pid());
    assert!(after < before + 16 * 1024, "{before} KiB, then {after} KiB");
    let said = hello.reload();
    assert!(said.contains("20 cut)"), "{said}");
    drop(clients);
    let answered = load.finish();
    assert_eq!(hello.requests(), answered);
}
