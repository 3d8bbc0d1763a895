//! HTTP under abuse: what is malformed or ambiguous is answered as RFC 9112 says, and ends its connection, whether that
//! connection is new, was moved by a reload, or is in the middle of the request when the reload comes.
//!
//! Behind each request come two more on the same connection. Where the first one is refused, neither may be answered:
//! where a request ends is what its sender and we may not agree on.

mod support;

use std::io::{ErrorKind, Write};

use support::{Hello, client::Client, load::Load};

/// What follows, and shows if it is taken for a request.
const NEXT: &str = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// Refused: one answer, and the end.
const BAD: &[u16] = &[400];
/// A request, and the end: what follows it may be meant as its body.
const LAST: &[u16] = &[200];
/// The end, without a word.
const NONE: &[u16] = &[];
/// The request is a request, and so is what follows.
const FINE: &[u16] = &[200, 200, 200];

struct Row {
    what: &'static str,
    /// Of RFC 9112, or RFC 9110 where it says so.
    section: &'static str,
    bytes: Vec<u8>,
    /// The statuses of all answers before the end.
    answers: &'static [u16],
}

fn row(
    what: &'static str,
    section: &'static str,
    bytes: impl AsRef<[u8]>,
    answers: &'static [u16],
) -> Row {
    Row {
        what,
        section,
        bytes: bytes.as_ref().to_vec(),
        answers,
    }
}

/// A request with these lines in its head.
fn get(lines: &str) -> String {
    format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{lines}\r\n")
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /upload HTTP/1.1\r\nhost: a\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked\r\n", body)
}

fn lengths() -> Vec<Row> {
    let length = |value: &str| post(&format!("content-length: {value}\r\n"), "hello");
    vec![
        row("a length that is signed", "6.2", length("+5"), BAD),
        row("a negative length", "6.2", length("-5"), BAD),
        row("a length in hexadecimal", "6.2", length("0x5"), BAD),
        row(
            "a length of 2^64",
            "6.2",
            length("18446744073709551616"),
            BAD,
        ),
        row("a length with a space in it", "6.2", length("5 5"), BAD),
        row("an empty length", "6.2", length(""), BAD),
        row("a list of lengths that differ", "6.3", length("5, 6"), BAD),
        row(
            "two lengths that differ",
            "6.3",
            post("content-length: 5\r\ncontent-length: 6\r\n", "hello"),
            BAD,
        ),
        row(
            "two lengths that are the same",
            "6.3",
            post("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
            FINE,
        ),
        row(
            "a length, and chunks",
            "6.1",
            post(
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            LAST,
        ),
        row(
            "chunks, and a length",
            "6.1",
            post(
                "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
                "0\r\n\r\n",
            ),
            LAST,
        ),
    ]
}

fn codings() -> Vec<Row> {
    let coding = |value: &str| post(&format!("transfer-encoding: {value}\r\n"), "0\r\n\r\n");
    vec![
        row(
            "chunks that are not the last coding",
            "6.3",
            coding("chunked, identity"),
            BAD,
        ),
        row("an unknown coding", "6.1", coding("xchunked"), BAD),
        row(
            "a coding with a vertical tab",
            "6.1",
            coding("chunked\x0b"),
            BAD,
        ),
        row("a coding in quotes", "6.1", coding("\"chunked\""), BAD),
        row("an empty coding", "6.1", coding(""), BAD),
        row("chunks of chunks", "6.1", coding("chunked, chunked"), FINE),
        row(
            "two codings in two lines",
            "6.1",
            post(
                "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
                "0\r\n\r\n",
            ),
            BAD,
        ),
        row("chunks in other letters", "7", coding("Chunked"), FINE),
        row(
            "chunks with HTTP/1.0",
            "6.1",
            "POST /upload HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            BAD,
        ),
    ]
}

fn chunks() -> Vec<Row> {
    let whole = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        row("chunks", "7.1", chunked(whole), FINE),
        row(
            "a chunk size of 17 digits",
            "7.1",
            chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a negative chunk size",
            "7.1",
            chunked("-5\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a chunk size with 0x",
            "7.1",
            chunked("0x5\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "an empty chunk size",
            "7.1",
            chunked("\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a chunk longer than its size",
            "7.1",
            chunked("4\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a chunk size that ends in LF alone",
            "7.1",
            chunked("5\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a chunk that ends in LF alone",
            "7.1",
            chunked("5\r\nhello\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "a chunk extension",
            "7.1.1",
            chunked("5;a=b\r\nhello\r\n0\r\n\r\n"),
            FINE,
        ),
        row(
            "a LF in a chunk extension",
            "7.1.1",
            chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"),
            BAD,
        ),
        row(
            "chunk extensions without end",
            "7.1.1",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(100_000))),
            BAD,
        ),
        row(
            "trailers without end",
            "7.1.2",
            chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(20_000))),
            BAD,
        ),
    ]
}

fn heads() -> Vec<Row> {
    vec![
        row("a space before the colon", "5.1", get("a : b\r\n"), BAD),
        row("a line that is folded", "5.2", get("a: b\r\n c\r\n"), BAD),
        row(
            "a first line that is folded",
            "5.2",
            "GET /healthz HTTP/1.1\r\n host: a\r\n\r\n",
            BAD,
        ),
        row("a CR alone in a value", "2.2", get("a: b\rc: d\r\n"), BAD),
        row("a NUL in a value", "RFC 9110, 5.5", get("a: b\0c\r\n"), BAD),
        row("a name with a space", "5.1", get("a b: c\r\n"), BAD),
        row("a name with a NUL", "5.1", get("a\0b: c\r\n"), BAD),
        row("an empty name", "5.1", get(": c\r\n"), BAD),
        row("a line without a colon", "5", get("abc\r\n"), BAD),
        row(
            "lines that end in LF alone",
            "2.2",
            "GET /healthz HTTP/1.1\nhost: a\n\n",
            FINE,
        ),
        row(
            "a line before the request",
            "2.2",
            "\r\nGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
            FINE,
        ),
        row(
            "too many lines",
            "5.4 of RFC 9110",
            get(&"a: b\r\n".repeat(200)),
            &[431],
        ),
        row(
            "too long a line",
            "5.4 of RFC 9110",
            get(&format!("a: {}\r\n", "b".repeat(100_000))),
            &[431],
        ),
        row("no host", "3.2", "GET /healthz HTTP/1.1\r\n\r\n", BAD),
        row("two hosts", "3.2", get("host: b\r\n"), BAD),
        row(
            "a host that is none",
            "3.2",
            "GET /healthz HTTP/1.1\r\nhost: a b\r\n\r\n",
            BAD,
        ),
    ]
}

fn request_lines() -> Vec<Row> {
    let line = |line: &str| format!("{line}\r\nhost: a\r\n\r\n");
    vec![
        row("no version", "3", line("GET /healthz"), BAD),
        row(
            "an unknown version",
            "2.3",
            line("GET /healthz HTTP/1.2"),
            BAD,
        ),
        row(
            "a version of two digits",
            "2.3",
            line("GET /healthz HTTP/1.10"),
            BAD,
        ),
        row(
            "another protocol",
            "2.3",
            line("GET /healthz HTCPCP/1.1"),
            BAD,
        ),
        row(
            "the preface of HTTP/2",
            "RFC 9113, 3.4",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            NONE,
        ),
        row("a space too many", "3", line("GET  /healthz HTTP/1.1"), BAD),
        row(
            "a space in the target",
            "3.2",
            line("GET /health z HTTP/1.1"),
            BAD,
        ),
        row(
            "a target that is none",
            "3.2",
            line("GET healthz HTTP/1.1"),
            BAD,
        ),
        row(
            "a method that is none",
            "3.1",
            line("G@T /healthz HTTP/1.1"),
            BAD,
        ),
        row(
            "an absolute target",
            "3.2.2",
            line("GET http://a/healthz HTTP/1.1"),
            FINE,
        ),
        row(
            "a target of 64 KiB",
            "3",
            line(&format!("GET /{} HTTP/1.1", "a".repeat(65536))),
            &[431],
        ),
        row(
            "bytes that are no HTTP",
            "3",
            [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3, 3, 13, 10, 13, 10],
            BAD,
        ),
    ]
}

fn rows() -> Vec<Row> {
    let mut rows = lengths();
    rows.extend(codings());
    rows.extend(chunks());
    rows.extend(heads());
    rows.extend(request_lines());
    for row in &mut rows {
        row.bytes.extend(NEXT.as_bytes());
    }
    rows
}

/// The statuses of all answers up to the end of the connection.
fn answers(client: &mut Client) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match client.try_answer() {
            Ok(Some(answer)) => statuses.push(answer.status),
            Ok(None) => return statuses,
            // What was sent after the end is answered by a reset.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return statuses,
            Err(error) => panic!("{error}, after {statuses:?}"),
        }
    }
}

/// Writes all, even to a server that has refused the first half of it.
fn send(client: &Client, bytes: &[u8]) {
    let _ = client.socket().write_all(bytes);
}

fn judge(on: &str, rows: &[Row], seen: Vec<Vec<u16>>) {
    let wrong: Vec<String> = rows
        .iter()
        .zip(seen)
        .filter(|(row, seen)| row.answers != seen)
        .map(|(row, seen)| {
            let Row {
                what,
                section,
                answers,
                ..
            } = row;
            format!("{what} ({section}): {seen:?}, not {answers:?}")
        })
        .collect();
    assert!(wrong.is_empty(), "on {on}:\n{}", wrong.join("\n"));
}

/// All rows, each on a connection of its own; what each has been answered.
fn ask_all(hello: &Hello, rows: &[Row], between: impl FnOnce(&mut [Client])) -> Vec<Vec<u16>> {
    let mut clients: Vec<Client> = rows
        .iter()
        .map(|_| Client::connect(hello.address()))
        .collect();
    between(&mut clients);
    // All are written before the first is read.
    for (client, row) in clients.iter().zip(rows) {
        send(client, &row.bytes);
    }
    clients.iter_mut().map(answers).collect()
}

#[test]
fn on_a_new_connection() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let rows = rows();
    let seen = ask_all(&hello, &rows, |_| {});
    judge("a new connection", &rows, seen);
    let answered = load.finish() + uploads(&rows);
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

#[test]
fn on_a_connection_that_was_moved() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let rows = rows();
    let seen = ask_all(&hello, &rows, |clients| {
        for client in clients.iter_mut() {
            assert_eq!(client.get("/healthz").status, 200);
        }
        let said = hello.reload();
        assert!(said.contains("moved"), "{said}");
    });
    judge("a connection that was moved", &rows, seen);
    let answered = load.finish() + uploads(&rows);
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

/// Here the process that is replaced answers, or the one that it gave the half to.
#[test]
fn on_a_connection_that_is_in_the_middle_of_it() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let rows = rows();
    let mut clients: Vec<Client> = rows
        .iter()
        .map(|_| Client::connect(hello.address()))
        .collect();
    // Half of what is malformed, not of what follows.
    let half = |row: &Row| (row.bytes.len() - NEXT.len()) / 2;
    for (client, row) in clients.iter().zip(&rows) {
        send(client, &row.bytes[..half(row)]);
    }
    hello.begin_reload();
    for (client, row) in clients.iter().zip(&rows) {
        send(client, &row.bytes[half(row)..]);
    }
    let seen: Vec<Vec<u16>> = clients.iter_mut().map(answers).collect();
    // A process that is being replaced answers what is under way, and closes: of what follows it knows nothing.
    let rows_of_the_old: Vec<Row> = rows
        .into_iter()
        .zip(&seen)
        .map(|(row, seen)| match row.answers {
            FINE if seen == LAST => Row {
                answers: LAST,
                ..row
            },
            // hyper looks for it at the start of a connection.
            NONE if seen == BAD => Row {
                answers: BAD,
                ..row
            },
            _ => row,
        })
        .collect();
    judge("a connection in the middle of it", &rows_of_the_old, seen);
    hello.settles();
    let answered = load.finish() + uploads(&rows_of_the_old);
    assert_eq!(hello.requests(), answered, "a body was served as a request");
}

/// How many are counted: the uploads that were answered by 200.
fn uploads(rows: &[Row]) -> u64 {
    let counts =
        |row: &&Row| row.bytes.starts_with(b"POST /upload") && row.answers.first() == Some(&200);
    rows.iter().filter(counts).count() as u64
}
