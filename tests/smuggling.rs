//! Request smuggling: the body of a request is never taken for a request, whatever becomes of the
//! connection meanwhile.
//!
//! Every body here is made of requests. The demo does not read the body of a `POST /hello` (405), and reads that
//! of a `POST /upload`. Requests for `/hello` and `/slow` are counted by the application, so that a
//! single smuggled one shows, whether or not somebody got its answer.

mod support;

use std::io::{Read, Write};

use support::{Hello, client::Client, load::Load};

const EVIL: &str = "GET /hello?admin HTTP/1.1\r\nhost: evil\r\n\r\n";

/// A request with this body.
fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// The same in chunks: one that holds whole requests, one that ends within one, and one of them in
/// trailers.
fn chunked(path: &str) -> String {
    let (half, rest) = EVIL.split_at(EVIL.len() / 2);
    let mut text =
        format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    for chunk in [&EVIL.repeat(2), half, rest, "0\r\n\r\n", EVIL] {
        text += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
    }
    text + "0\r\nx-get: GET /hello?admin HTTP/1.1\r\n\r\n"
}

/// Sends the request in two parts, with a reload between them, for many places of the cut; `status` must
/// be the one answer.
fn cut_in_two(whole: &str, status: u16) {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let step = (whole.len() / 60).max(1);
    let mut clients: Vec<(usize, Client)> = (1..whole.len())
        .step_by(step)
        .map(|cut| {
            let mut client = Client::connect(hello.address());
            client.send(&whole[..cut]);
            (cut, client)
        })
        .collect();
    // Those of the even places are at rest, the odd ones in flight somewhere.
    clients
        .iter()
        .step_by(2)
        .for_each(|(_, client)| client.until_read());
    hello.begin_reload();
    let mut lived = 0;
    for (cut, client) in &mut clients {
        // The server may have answered and closed: it does not want the rest.
        let _ = client.socket().write_all(&whole.as_bytes()[*cut..]);
    }
    for (cut, mut client) in clients {
        let answer = client.answer();
        assert_eq!(answer.status, status, "cut at {cut}: {answer:?}");
        lived += usize::from(client.lives());
    }
    assert!(
        lived > 0,
        "no connection lived: nothing could have been smuggled"
    );
    hello.reload();
    let answered = load.finish()
        + if status == 200 {
            places(whole, step)
        } else {
            0
        };
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

fn places(whole: &str, step: usize) -> u64 {
    (1..whole.len()).step_by(step).count() as u64
}

#[test]
fn smuggling_in_a_body_that_is_not_read() {
    cut_in_two(&post("/hello", EVIL), 405);
}

#[test]
fn smuggling_in_a_long_body_that_is_not_read() {
    cut_in_two(&post("/hello", &EVIL.repeat(500)), 405);
}

#[test]
fn smuggling_in_chunks_that_are_not_read() {
    cut_in_two(&chunked("/hello"), 405);
}

#[test]
fn smuggling_in_a_body_that_is_read() {
    cut_in_two(&post("/upload", &EVIL.repeat(20)), 200);
}

#[test]
fn smuggling_in_chunks_that_are_read() {
    cut_in_two(&chunked("/upload"), 200);
}

#[test]
fn smuggling_in_a_megabyte_that_is_not_read() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let body = EVIL.repeat((1 << 20) / EVIL.len());
    let whole = post("/hello", &body);
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..5).for_each(|_| drop(hello.reload())));
        while !reloads.is_finished() {
            let mut client = Client::connect(hello.address());
            let mut writer = client.socket().try_clone().expect("clone");
            let whole = &whole;
            // It is not wanted, so that writing may fail.
            scope.spawn(move || drop(writer.write_all(whole.as_bytes())));
            let answer = client.answer();
            assert_eq!(answer.status, 405);
            assert!(answer.closes(), "a megabyte is not read for nothing");
            let mut rest = Vec::new();
            let _ = client.socket().read_to_end(&mut rest);
            assert_eq!(rest, b"", "the answer to something else");
        }
    });
    let answered = load.finish();
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

/// A byte at a time, through as many reloads as it takes.
fn slowly(whole: &str, status: u16) {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut sent = 0;
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| (0..12).for_each(|_| drop(hello.reload())));
        while !reloads.is_finished() {
            let mut client = Client::connect(hello.address());
            for byte in whole.as_bytes() {
                if client.socket().write_all(&[*byte]).is_err() {
                    break;
                }
                std::thread::yield_now();
            }
            assert_eq!(client.answer().status, status);
            client.lives();
            sent += 1;
        }
    });
    hello.settles();
    let answered = load.finish() + if status == 200 { sent } else { 0 };
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

#[test]
fn smuggling_in_a_slow_body_that_is_not_read() {
    slowly(&post("/hello", EVIL), 405);
}

#[test]
fn smuggling_in_slow_chunks_that_are_not_read() {
    slowly(&chunked("/hello"), 405);
}

#[test]
fn smuggling_in_a_slow_body_that_is_read() {
    slowly(&post("/upload", EVIL), 200);
}

/// The answer is complete long before the body is: only the unread rest keeps the connection.
#[test]
fn smuggling_in_the_rest_of_a_body_whose_request_was_answered() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(hello.address())).collect();
    for (kept, client) in clients.iter_mut().enumerate() {
        let whole = post("/hello", &EVIL.repeat(2));
        client.send(&whole[..whole.len() - 1 - kept]);
        assert_eq!(client.answer().status, 405);
    }
    hello.reload();
    for (kept, client) in clients.iter_mut().enumerate() {
        let rest = &EVIL.repeat(2)[EVIL.len() * 2 - 1 - kept..];
        let _ = client.socket().write_all(rest.as_bytes());
        let _ = client.socket().write_all(EVIL.as_bytes());
        let mut rest = Vec::new();
        let _ = client.socket().read_to_end(&mut rest);
        assert_eq!(rest, b"", "the connection lived with its body unread");
    }
    let answered = load.finish();
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

/// Nobody reads the body of a request that waits for `100 Continue` in vain; a client that sends
/// another request instead of it must not be mistaken.
#[test]
fn smuggling_instead_of_a_body_that_was_not_asked_for() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(hello.address())).collect();
    let length = EVIL.len();
    for client in &mut clients {
        client.send(format!(
            "POST /hello HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ));
        let answer = client.answer();
        assert_eq!(answer.status, 405);
        assert!(
            answer.closes(),
            "where the next request begins is not known"
        );
    }
    hello.reload();
    for client in &mut clients {
        let _ = client.socket().write_all(EVIL.as_bytes());
        let mut rest = Vec::new();
        let _ = client.socket().read_to_end(&mut rest);
        assert_eq!(rest, b"", "the connection lived with its body unread");
    }
    let answered = load.finish();
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}
