//! Request lines and header fields.

use super::{BAD, CHUNKED, EVIL, GOOD, Row, Then, bad, chunked, get, good, row, upload};

pub(super) fn fields() -> Vec<Row> {
    vec![
        bad(
            "space before the colon",
            "5.1",
            upload("content-length : 41", EVIL) + EVIL,
        ),
        bad(
            "space before the colon of `Transfer-Encoding`",
            "5.1",
            upload("transfer-encoding : chunked", &chunked("29")) + EVIL,
        ),
        bad(
            "space before the first field",
            "2.2",
            format!("GET /hello HTTP/1.1\r\n x: y\r\nhost: test\r\n\r\n{EVIL}"),
        ),
        bad("obs-fold", "5.2", get("x: 1\r\n 2") + EVIL),
        bad(
            "obs-fold of `Transfer-Encoding`",
            "5.2",
            upload("transfer-encoding:\r\n chunked", &chunked("29")) + EVIL,
        ),
        bad(
            "bare CR in a field's value",
            "2.2",
            get("x: 1\ry: 2") + EVIL,
        ),
        // "a recipient MAY recognize a single LF as a line terminator".
        good(
            "bare LF after each line",
            "2.2",
            "GET /hello HTTP/1.1\nhost: test\n\n",
        ),
        good("bare LF after one field", "2.2", get("x: 1\ny: 2")),
        bad(
            "NUL in a field's value",
            "5.5 (9110)",
            get("x: 1\x002") + EVIL,
        ),
        bad(
            "DEL in a field's value",
            "5.5 (9110)",
            get("x: 1\x7f2") + EVIL,
        ),
        bad("NUL in a field's name", "5.1 (9110)", get("x\0y: 1") + EVIL),
        bad(
            "brackets in a field's name",
            "5.1 (9110)",
            get("x[y]: 1") + EVIL,
        ),
        bad(
            "a field's name that is not ASCII",
            "5.1 (9110)",
            get("x\u{e4}: 1") + EVIL,
        ),
        bad("a field without a name", "5", get(": 1") + EVIL),
        bad("a field without a colon", "5", get("x") + EVIL),
    ]
}

pub(super) fn lines() -> Vec<Row> {
    let line = |line: &str| format!("{line}\r\nhost: test\r\n\r\n{EVIL}");
    let target = |length| format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "a".repeat(length));
    vec![
        bad(
            "request line without a version",
            "3",
            format!("GET /hello\r\n\r\n{EVIL}"),
        ),
        bad("HTTP/1.10", "2.3", line("GET /hello HTTP/1.10")),
        bad("another protocol", "2.3", line("GET /hello HTCPCP/1.1")),
        row(
            "HTTP/1.2",
            "2.3",
            line("GET /hello HTTP/1.2"),
            &[400, 505],
            Then::Closes,
        ),
        row(
            "HTTP/2.0 in the request line",
            "2.3",
            line("GET /hello HTTP/2.0"),
            &[400, 505],
            Then::Closes,
        ),
        bad(
            "`http/1.1` in lower case",
            "2.3",
            line("GET /hello http/1.1"),
        ),
        // No message of this protocol, and nobody who would read an answer in it. Seen only where all its 24 bytes come at once.
        Row {
            is_cut: false,
            ..row(
                "the preface of HTTP/2",
                "3.4 (9113)",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                &[0, 400, 505],
                Then::Closes,
            )
        },
        row(
            "the head in the preface of HTTP/2",
            "2.3",
            "PRI * HTTP/2.0\r\n\r\n",
            &[400, 505],
            Then::Closes,
        ),
        bad(
            "the first bytes of TLS",
            "2.2",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        bad(
            "two spaces in the request line",
            "3",
            line("GET  /hello HTTP/1.1"),
        ),
        bad(
            "tabs in the request line",
            "3",
            line("GET\t/hello\tHTTP/1.1"),
        ),
        bad(
            "a space in the target",
            "3.2",
            line("GET /hello x HTTP/1.1"),
        ),
        bad("NUL in the target", "3.2", line("GET /hello\0 HTTP/1.1")),
        bad(
            "a target that does not begin with a slash",
            "3.2",
            line("GET hello HTTP/1.1"),
        ),
        bad(
            "authority form of GET",
            "3.2.3",
            line("GET test:80 HTTP/1.1"),
        ),
        bad(
            "origin form of CONNECT",
            "3.2.3",
            line("CONNECT /hello HTTP/1.1"),
        ),
        bad("asterisk form of GET", "3.2.4", line("GET * HTTP/1.1")),
        bad(
            "a method that is no token",
            "3.1",
            line("G(T /hello HTTP/1.1"),
        ),
        // "the origin server MUST ignore the received Host header field (if any) and instead use the host information of the
        // request-target".
        good(
            "absolute form",
            "3.2.2",
            "GET http://test/hello HTTP/1.1\r\nhost: test\r\n\r\n",
        ),
        good(
            "absolute form of another host",
            "3.2.2",
            "GET http://other/hello HTTP/1.1\r\nhost: test\r\n\r\n",
        ),
        row(
            "target of 60,000 bytes",
            "3",
            target(60_000),
            &[404, 414],
            Then::Lives,
        ),
        // 414 is a MUST "for a request-target longer than any URI it wishes to parse". It is the head that is too long here, whose
        // bound is one for all of it.
        row(
            "target of 64 KiB",
            "3",
            target(65_536),
            &[414, 431],
            Then::Closes,
        ),
        // "a server [...] SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
        good(
            "empty lines before the request",
            "2.2",
            format!("{}{}", "\r\n".repeat(3), get("x: y")),
        ),
    ]
}

pub(super) fn hosts() -> Vec<Row> {
    let with = |version: &str, fields: &str| format!("GET /hello {version}\r\n{fields}\r\n");
    let bad = |name, fields: &str| bad(name, "3.2", with("HTTP/1.1", fields) + EVIL);
    vec![
        bad("no `Host`", ""),
        bad("two `Host`", "host: a\r\nhost: b\r\n"),
        bad("two `Host`, the same", "host: a\r\nhost: a\r\n"),
        bad("`Host: a b`", "host: a b\r\n"),
        bad("`Host: a@b`", "host: a@b\r\n"),
        bad("`Host: a/b`", "host: a/b\r\n"),
        bad("`Host: a:b`", "host: a:b\r\n"),
        bad("`Host: [::1`", "host: [::1\r\n"),
        good(
            "`Host: [::1]:80`",
            "3.2",
            with("HTTP/1.1", "host: [::1]:80\r\n"),
        ),
        good("`Host:` empty", "3.2", with("HTTP/1.1", "host:\r\n")),
        row(
            "no `Host`, in HTTP/1.0",
            "3.2",
            with("HTTP/1.0", "") + EVIL,
            GOOD,
            Then::Closes,
        ),
        row(
            "two `Host`, in HTTP/1.0",
            "3.2",
            with("HTTP/1.0", "host: a\r\nhost: b\r\n") + EVIL,
            BAD,
            Then::Closes,
        ),
        row(
            "the same, with `Connection: keep-alive`",
            "3.2",
            with(
                "HTTP/1.0",
                "host: a\r\nhost: b\r\nconnection: keep-alive\r\n",
            ) + EVIL,
            BAD,
            Then::Closes,
        ),
    ]
}

pub(super) fn endless() -> Vec<Row> {
    const LARGE: &[u16] = &[400, 431];
    let head = "GET /hello HTTP/1.1\r\nhost: test\r\n";
    let section = "5.4 (9110)";
    vec![
        row(
            "header fields, 100,000 and no end",
            section,
            format!("{head}{}", "a: b\r\n".repeat(100_000)),
            LARGE,
            Then::Closes,
        ),
        row(
            "header field of 500,000 bytes and no end",
            section,
            format!("{head}a: {}", "b".repeat(500_000)),
            LARGE,
            Then::Closes,
        ),
        row(
            "method of 70,000 bytes",
            "3",
            format!(
                "{} /hello HTTP/1.1\r\nhost: test\r\n\r\n",
                "G".repeat(70_000)
            ),
            &[400, 431, 501],
            Then::Closes,
        ),
    ]
}

/// What is unusual, and has to be understood.
pub(super) fn odd() -> Vec<Row> {
    let with_body = |method: &str| {
        format!("{method} /hello HTTP/1.1\r\nhost: test\r\ncontent-length: 41\r\n\r\n{EVIL}")
    };
    let in_chunks = |method: &str| {
        format!(
            "{method} /hello HTTP/1.1\r\nhost: test\r\n{CHUNKED}\r\n\r\n{}",
            chunked("29")
        )
    };
    vec![
        row(
            "GET with a body",
            "6",
            with_body("GET"),
            GOOD,
            Then::LivesIfWhole,
        ),
        row(
            "HEAD with a body",
            "6",
            with_body("HEAD"),
            GOOD,
            Then::LivesIfWhole,
        ),
        row(
            "GET with chunks",
            "6",
            in_chunks("GET"),
            GOOD,
            Then::LivesIfWhole,
        ),
        row(
            "HEAD with chunks",
            "6",
            in_chunks("HEAD"),
            GOOD,
            Then::LivesIfWhole,
        ),
        row(
            "`Expect: 200-ok`",
            "10.1.1 (9110)",
            upload("expect: 200-ok\r\ncontent-length: 41", EVIL),
            &[200, 417],
            Then::Lives,
        ),
        good(
            "`Upgrade: h2c`",
            "7.8 (9110)",
            get("connection: upgrade\r\nupgrade: h2c"),
        ),
    ]
}
