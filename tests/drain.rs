//! What is under way when a process is replaced or stopped is finished; a request that has arrived is never
//! answered by silence or a reset.

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use support::{
    Hello,
    client::{Answer, Client, request},
    eventually,
    load::Load,
    raise_descriptors, text,
};

/// Long enough to span a reload, even on a busy machine.
const SLOW: &str = "/slow?ms=2000";

fn is_from(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

/// Answered without a word of the end, by this generation.
fn is_plain(answer: &Answer, generation: u64) {
    is_from(answer, generation);
    assert!(!answer.closes(), "{answer:?}");
}

/// Asks until this generation answers, and says how often. A request that is quick enough is still answered where the
/// last one was.
fn until_moved(client: &mut Client, generation: u64) -> u64 {
    let mut count = 0;
    eventually("the connection has moved", || {
        let answer = client.get("/hello");
        assert_eq!((answer.status, answer.closes()), (200, false));
        count += 1;
        answer.generation() == generation
    });
    count
}

#[test]
fn a_request_in_flight_is_answered_by_the_parent_and_then_its_connection_moves() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    client.send(request(SLOW));
    client.until_read();
    hello.begin_reload();
    is_plain(&client.answer(), 1);
    until_moved(&mut client, 2);
    load.finish();
}

#[test]
fn what_waits_behind_a_request_in_flight_moves_with_its_connection() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    client.send(request(SLOW));
    client.until_read();
    hello.begin_reload();
    let (half, rest) = ("GET /hello HT", "TP/1.1\r\nhost: test\r\n\r\n");
    client.send(half);
    is_plain(&client.answer(), 1);
    hello.settles();
    client.send(rest);
    is_plain(&client.answer(), 2);
    load.finish();
}

/// An upload whose second half is sent after the reload.
fn upload_over_a_reload(head: &str, first: &[u8], second: &[u8], body: &[u8]) {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    client.send(head);
    client.send(first);
    client.until_read();
    hello.begin_reload();
    client.send(second);
    let answer = client.answer();
    is_plain(&answer, 1);
    let expected = format!(
        "{{\"bytes\":{},\"crc32\":\"{:08x}\"}}\n",
        body.len(),
        crc32fast::hash(body)
    );
    assert_eq!(answer.text(), expected);
    let answered = 1 + until_moved(&mut client, 2) + load.finish();
    // The parent's last word is about what it has counted.
    hello.settles();
    assert_eq!(hello.requests(), answered);
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * n / 7) as u8).collect()
}

#[test]
fn an_upload_is_finished_by_the_parent() {
    let body = noise(300_000);
    let head = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 300000\r\n\r\n";
    upload_over_a_reload(head, &body[..100_001], &body[100_001..], &body);
}

#[test]
fn a_chunked_upload_is_finished_by_the_parent() {
    let body = noise(0x2000);
    let head = "POST /upload HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut chunks = Vec::new();
    for chunk in body.chunks(0x1000) {
        chunks.extend_from_slice(b"1000\r\n");
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    upload_over_a_reload(head, &chunks[..5000], &chunks[5000..], &body);
}

#[test]
fn a_body_that_is_asked_for_with_100_continue_is_finished_by_the_parent() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let head =
        "POST /upload HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let mut client = Client::connect(hello.address());
    client.send(head);
    assert_eq!(client.answer().status, 100);
    hello.begin_reload();
    client.send("12345");
    let answer = client.answer();
    is_plain(&answer, 1);
    assert!(answer.text().contains("\"bytes\":5"), "{answer:?}");
    // The same, asked for in one generation and answered in the next.
    let (half, rest) = head.split_at(50);
    client.send(half);
    client.until_read();
    hello.reload();
    client.send(rest);
    assert_eq!(client.answer().status, 100);
    client.send("12345");
    is_plain(&client.answer(), 3);
    load.finish();
}

#[test]
fn a_stream_is_finished_by_the_parent() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut client = Client::connect(hello.address());
    client.send(request("/stream?chunks=20&ms=100"));
    let head = client.head();
    is_plain(&head, 1);
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    let line = |client: &mut Client| client.line().expect("a line").expect("a line");
    assert_eq!(
        [line(&mut client), line(&mut client)],
        ["8", "chunk 1"],
        "the first chunk"
    );
    hello.begin_reload();
    let mut rest = String::new();
    loop {
        match line(&mut client).as_str() {
            "0" => break,
            text => rest = rest + text + "\n",
        }
    }
    assert_eq!(line(&mut client), "");
    assert!(rest.ends_with("9\nchunk 20\n\n4\nend\n\n"), "{rest}");
    until_moved(&mut client, 2);
    load.finish();
}

#[test]
fn http_1_0_is_answered_and_closed_in_order() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut slow = Client::connect(hello.address());
    slow.send("GET /slow?ms=2000 HTTP/1.0\r\n\r\n");
    let mut stream = Client::connect(hello.address());
    stream.send("GET /stream?chunks=10&ms=100 HTTP/1.0\r\n\r\n");
    slow.until_read();
    stream.until_read();
    hello.begin_reload();
    let answer = slow.answer();
    is_from(&answer, 1);
    assert_eq!(answer.text(), "slow 2000\n");
    slow.expect_end();
    // Its end is the connection's.
    let answer = stream.answer();
    is_from(&answer, 1);
    assert!(answer.text().ends_with("chunk 10\nend\n"), "{answer:?}");
    load.finish();
}

#[test]
fn a_client_that_closes_its_side_after_the_request_gets_the_answer() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut slow = Client::connect(hello.address());
    slow.send(request(SLOW));
    slow.half_close();
    slow.until_read();
    hello.begin_reload();
    let answer = slow.answer();
    is_from(&answer, 1);
    slow.expect_end();
    load.finish();
}

#[test]
fn clients_that_close_their_side_at_any_moment_get_the_answer() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let stop = AtomicBool::new(false);
    let mut count = 0;
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            (0..10).for_each(|_| drop(hello.reload()));
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            let mut clients: Vec<Client> =
                (0..20).map(|_| Client::connect(hello.address())).collect();
            for client in &mut clients {
                client.send(request("/hello"));
                client.half_close();
            }
            for client in &mut clients {
                assert_eq!(client.answer().status, 200);
                client.expect_end();
                count += 1;
            }
        }
        reloads.join().expect("reloads");
    });
    let answered = load.finish() + count;
    assert_eq!(hello.requests(), answered);
}

#[test]
fn a_request_with_connection_close_is_answered_and_closed_in_order() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let last =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    let mut slow = Client::connect(hello.address());
    slow.send(last(SLOW));
    slow.until_read();
    hello.begin_reload();
    let answer = slow.answer();
    is_from(&answer, 1);
    assert!(answer.closes());
    slow.expect_end();
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..5).for_each(|_| drop(hello.reload())));
        while !reloads.is_finished() {
            let mut client = Client::connect(hello.address());
            client.send(last("/hello"));
            assert_eq!(client.answer().status, 200);
            client.expect_end();
        }
    });
    load.finish();
}

#[test]
fn a_request_under_way_at_the_deadline_is_cut_and_named() {
    let hello = Hello::with().arg("--drain-timeout").arg("700ms").start();
    let load = Load::start(hello.address());
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=60000&token=secret"));
    let mut upload = Client::connect(hello.address());
    upload.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
    let mut idle = Client::connect(hello.address());
    is_plain(&idle.get("/hello"), 1);
    slow.until_read();
    upload.until_read();
    let output = hello.hello(&["reload"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("2 cut"), "{said}");
    assert!(
        said.contains(&format!("cut: {} GET /slow\n", slow.name())),
        "{said}"
    );
    assert!(
        said.contains(&format!("cut: {} POST /upload\n", upload.name())),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
    for client in [&mut slow, &mut upload] {
        let mut rest = Vec::new();
        let _ = client.socket().read_to_end(&mut rest);
        assert_eq!(rest, b"", "no half answers");
    }
    is_plain(&idle.get("/hello"), 2);
    hello.settles();
    load.finish();
}

#[test]
fn idle_connections_do_not_wait_for_a_slow_one() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut idle: Vec<Client> = (0..200).map(|_| Client::connect(hello.address())).collect();
    for client in &mut idle {
        is_plain(&client.get("/hello"), 1);
    }
    let mut upload = Client::connect(hello.address());
    upload.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
    upload.until_read();
    hello.begin_reload();
    // The upload ends when the test says so, and the parent is not done before.
    for client in &mut idle {
        until_moved(client, 2);
    }
    assert_eq!(hello.status()["draining"][0]["generation"], 1);
    upload.send("67890");
    is_plain(&upload.answer(), 1);
    hello.settles();
    assert_eq!(hello.status()["draining"].as_array().map(Vec::len), Some(0));
    load.finish();
}

#[test]
fn generations_that_still_drain_finish_while_the_next_ones_serve() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut uploads = Vec::new();
    let mut idle = Vec::new();
    for generation in 1..=4 {
        let mut upload = Client::connect(hello.address());
        upload.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
        upload.until_read();
        uploads.push(upload);
        let mut client = Client::connect(hello.address());
        is_plain(&client.get("/hello"), generation);
        idle.push(client);
        hello.begin_reload();
        load.goes_on();
        let draining = &hello.status()["draining"];
        assert_eq!(draining[0]["generation"], generation, "{draining}");
    }
    assert_eq!(hello.processes().len(), 5, "all of them live");
    // What is at rest in the oldest is handed on through all of them.
    let asked: u64 = idle.iter_mut().map(|client| until_moved(client, 5)).sum();
    for (generation, upload) in (1..).zip(&mut uploads) {
        upload.send("67890");
        is_plain(&upload.answer(), generation);
    }
    hello.settles();
    for upload in &mut uploads {
        is_plain(&upload.get("/hello"), 5);
    }
    let answered = load.finish() + 4 * 3 + asked;
    assert_eq!(hello.requests(), answered);
}

/// Of each kind that can keep a process.
#[test]
fn status_says_what_a_draining_process_waits_for() {
    let hello = Hello::start();
    let mut upload = Client::connect(hello.address());
    upload.send("POST /upload?secret=1 HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345");
    upload.until_read();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=5000"));
    slow.until_read();
    let mut stream = Client::connect(hello.address());
    stream.send(request("/stream?chunks=1000&ms=20"));
    let _ = stream.head();
    hello.begin_reload();
    let expected = [
        format!("{} POST /upload", upload.name()),
        format!("{} GET /slow", slow.name()),
        format!("{} GET /stream", stream.name()),
    ];
    eventually("all three are named", || {
        let draining = &hello.status()["draining"][0];
        assert_eq!(draining["generation"], 1);
        let named = draining["named"].as_array().expect("a list");
        expected.iter().all(|name| named.iter().any(|n| n == name))
    });
    let output = hello.hello(&["status"]);
    let said = text(&output);
    assert!(said.contains(&format!("\n    {}", expected[0])), "{said}");
    upload.send("67890");
    is_plain(&upload.answer(), 1);
    eventually("what has ended is not named any more", || {
        let status = hello.status();
        let named = status["draining"][0]["named"].as_array().expect("a list");
        named.len() == 2 && !named.iter().any(|name| *name == expected[0])
    });
}

/// While the process is frozen, requests arrive in the kernel; then it is told to stop.
#[test]
fn requests_that_only_the_kernel_has_are_answered_before_a_stop() {
    raise_descriptors();
    let hello = Hello::start();
    // More than the process can hear of at once.
    let mut idle: Vec<Client> = (0..2000)
        .map(|_| Client::connect(hello.address()))
        .collect();
    let mut half: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    let mut silent = Client::connect(hello.address());
    for client in idle.iter_mut().chain(&mut half).chain([&mut silent]) {
        is_plain(&client.get("/hello"), 1);
    }
    let pid = hello.pid();
    hello.signal(pid, Signal::SIGSTOP);
    // In the backlog, with and without a request.
    let mut queued: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    for client in idle.iter_mut().chain(&mut queued) {
        client.send(request("/hello"));
    }
    half.iter_mut()
        .for_each(|client| client.send("GET /hello HTTP/1.1\r\n"));
    hello.signal(pid, Signal::SIGTERM);
    hello.signal(pid, Signal::SIGCONT);
    for client in idle.iter_mut().chain(&mut queued) {
        // Some may be answered before the process knows that it is to stop, and are closed after that.
        is_from(&client.answer(), 1);
        client.expect_end();
    }
    silent.expect_end();
    for client in &mut half {
        client.send("host: test\r\n\r\n");
        let answer = client.answer();
        is_from(&answer, 1);
        assert!(answer.closes(), "{answer:?}");
        client.expect_end();
    }
    drop((idle, half, silent, queued));
    eventually("it has ended", || hello.processes().is_empty());
    assert!(!hello.pidfile().exists());
}

/// It drains, and is the service no more: when its successor is gone, nobody is, and another can be started at once.
#[test]
fn a_draining_parent_holds_no_name_of_the_service() {
    let hello = Hello::with().arg("--drain-timeout").arg("10m").start();
    let parent = hello.pid();
    let mut slow = Client::connect(hello.address());
    slow.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    slow.until_read();
    hello.begin_reload();
    let child = hello.pid();
    hello.signal(child, Signal::SIGKILL);
    eventually("the parent is alone", || hello.processes() == [parent]);
    let output = hello.hello(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let mut anew = hello.serve_anew();
    slow.send("b");
    assert_eq!(slow.answer().status, 200);
    slow.expect_end();
    anew.kill().expect("kill");
    anew.wait().expect("wait");
}

#[test]
fn a_stop_finishes_what_is_under_way_and_lets_nobody_wait_in_vain() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request(SLOW));
    slow.until_read();
    let mut idle = Client::connect(hello.address());
    is_plain(&idle.get("/hello"), 1);
    let mut stop = hello.verb(&["stop"]).spawn().expect("hello stop");
    idle.expect_end();
    // Nobody is let into a queue that will be reset at the end.
    eventually("new clients are refused", || {
        assert!(!slow.has_input(), "they queue up until the end");
        let connected = TcpStream::connect_timeout(&hello.address(), Duration::from_secs(1));
        matches!(connected, Err(e) if e.kind() == ErrorKind::ConnectionRefused)
    });
    let answer = slow.answer();
    is_from(&answer, 1);
    assert!(answer.closes());
    slow.expect_end();
    drop((slow, idle));
    assert_eq!(stop.wait().expect("hello stop").code(), Some(0));
}

#[test]
fn a_request_under_way_when_a_stop_s_deadline_passes_is_cut() {
    let hello = Hello::with().arg("--drain-timeout").arg("500ms").start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=60000"));
    slow.until_read();
    assert!(hello.hello(&["stop"]).status.success());
    let mut rest = Vec::new();
    let _ = slow.socket().read_to_end(&mut rest);
    assert_eq!(rest, b"");
    assert!(hello.processes().is_empty());
}

#[test]
fn a_stop_while_older_generations_drain_ends_all_of_them() {
    let hello = Hello::start();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(hello.address());
        client.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
        client.until_read();
        clients.push(client);
        hello.begin_reload();
    }
    assert_eq!(hello.processes().len(), 3);
    let mut stop = hello.verb(&["stop"]).spawn().expect("hello stop");
    eventually("all are told to stop", || {
        let log = hello.log();
        let told = log.lines().filter(|line| line.contains(" stopping "));
        told.count() == 3
    });
    for (generation, client) in (1..).zip(&mut clients) {
        client.send("b");
        let answer = client.answer();
        is_from(&answer, generation);
        client.expect_end();
    }
    drop(clients);
    assert!(stop.wait().expect("hello stop").success());
    eventually("all have ended", || hello.processes().is_empty());
}

/// Nothing is sent by a client that has been cut off: a write fails, sooner or later.
#[test]
fn a_second_signal_stops_at_once() {
    let hello = Hello::start();
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=60000"));
    slow.until_read();
    let pid = hello.pid();
    hello.signal(pid, Signal::SIGTERM);
    eventually("it is stopping", || hello.log().contains("stopping"));
    hello.signal(pid, Signal::SIGTERM);
    let mut rest = Vec::new();
    let _ = slow.socket().read_to_end(&mut rest);
    assert_eq!(rest, b"");
    let _ = slow.socket().write_all(b"x");
    eventually("it has ended", || hello.processes().is_empty());
}
