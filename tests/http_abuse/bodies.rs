//! Where a body ends.

use super::{
    BAD, CHUNKED, EVIL, Row, Then, bad, chunk, chunked, coding, good, length, row, upload,
};

pub(super) fn lengths() -> Vec<Row> {
    let both = "content-length: 41\r\ntransfer-encoding: chunked";
    let hidden = format!("0\r\n\r\n{EVIL}");
    let covers = format!(
        "transfer-encoding: chunked\r\ncontent-length: {}",
        hidden.len()
    );
    vec![
        // "The server MUST close the connection after responding to such a request."
        row(
            "`Content-Length`, then `Transfer-Encoding`",
            "6.1",
            upload(both, &chunked("29")) + EVIL,
            &[200, 400],
            Then::Closes,
        ),
        row(
            "`Transfer-Encoding`, and a `Content-Length` beyond the last chunk",
            "6.1",
            upload(&covers, &hidden),
            &[200, 400],
            Then::Closes,
        ),
        row(
            "`Transfer-Encoding`, and a `Content-Length` that is no number",
            "6.1",
            upload("transfer-encoding: chunked\r\ncontent-length: x", &hidden),
            &[200, 400],
            Then::Closes,
        ),
        bad(
            "two `Content-Length`, 41 and 0",
            "6.3",
            length("41\r\ncontent-length: 0"),
        ),
        // "unless the field value can be successfully parsed as a comma-separated list, all values in the list are valid, and all
        // values in the list are the same".
        good(
            "two `Content-Length`, both 41",
            "6.3",
            upload("content-length: 41\r\ncontent-length: 41", EVIL),
        ),
        row(
            "`Content-Length: 41, 41`",
            "6.3",
            length("41, 41"),
            BAD,
            Then::Closes,
        ),
        bad("`Content-Length:  41 ,0`", "6.3", length(" 41 ,0")),
        bad("`Content-Length: +41`", "6.3", length("+41")),
        bad("`Content-Length: -1`", "6.3", length("-1")),
        bad("`Content-Length: 0x29`", "6.3", length("0x29")),
        bad("`Content-Length: 4 1`", "6.3", length("4 1")),
        bad("`Content-Length:` empty", "6.3", length("")),
        bad(
            "`Content-Length` of 2^64",
            "6.3",
            length("18446744073709551616"),
        ),
        bad(
            "`Content-Length` of 2^64 + 41",
            "6.3",
            length("18446744073709551657"),
        ),
        // Valid, but more than can be counted: any 4xx.
        row(
            "`Content-Length` of 2^64 - 1",
            "6.3",
            length("18446744073709551615"),
            &[400, 413, 431],
            Then::Closes,
        ),
    ]
}

pub(super) fn codings() -> Vec<Row> {
    // "A server that receives a request message with a transfer coding it does not understand SHOULD respond with 501." (6.1) "If a
    // Transfer-Encoding header field is present in a request and the chunked transfer coding is not the final encoding, [...] the server
    // MUST respond with the 400 (Bad Request) status code and then close the connection." (6.3)
    const UNKNOWN: &[u16] = &[400, 501];
    let unknown = |name, value| row(name, "6.1", coding(value), UNKNOWN, Then::Closes);
    let old = |fields: &str| {
        format!(
            "POST /upload HTTP/1.0\r\nhost: test\r\n{CHUNKED}\r\n{fields}\r\n{}{EVIL}",
            chunked("29")
        )
    };
    vec![
        good(
            "`Transfer-Encoding: CHUNKED`",
            "7",
            upload("Transfer-Encoding: CHUNKED", &chunked("29")),
        ),
        bad(
            "`Transfer-Encoding: chunked, identity`",
            "6.3",
            coding("chunked, identity"),
        ),
        bad("`Transfer-Encoding: identity`", "6.3", coding("identity")),
        bad(
            "`Transfer-Encoding: identity`, with a `Content-Length`",
            "6.3",
            length("41\r\ntransfer-encoding: identity"),
        ),
        bad("`Transfer-Encoding: xchunked`", "6.3", coding("xchunked")),
        bad(
            "`Transfer-Encoding: chunked\\x0b`",
            "6.3",
            coding("chunked\x0b"),
        ),
        bad(
            "`Transfer-Encoding: \\x0bchunked`",
            "6.3",
            coding("\x0bchunked"),
        ),
        bad(
            "`Transfer-Encoding: \"chunked\"`",
            "6.3",
            coding("\"chunked\""),
        ),
        bad(
            "`Transfer-Encoding: chunked;q=1`",
            "6.3",
            coding("chunked;q=1"),
        ),
        bad("`Transfer-Encoding:` empty", "6.3", coding("")),
        bad(
            "`Transfer-Encoding: chunked` and `: identity`, two lines",
            "6.3",
            coding("chunked\r\ntransfer-encoding: identity"),
        ),
        // "A sender MUST NOT apply the chunked transfer coding more than once."
        unknown("`Transfer-Encoding: chunked, chunked`", "chunked, chunked"),
        unknown(
            "`Transfer-Encoding: chunked`, two lines",
            "chunked\r\ntransfer-encoding: chunked",
        ),
        unknown(
            "`Transfer-Encoding: identity, chunked`",
            "identity, chunked",
        ),
        unknown(
            "`Transfer-Encoding: x` and `: chunked`, two lines",
            "x\r\ntransfer-encoding: chunked",
        ),
        unknown("`Transfer-Encoding: gzip, chunked`", "gzip, chunked"),
        // "a server [...] that receives an HTTP/1.0 message containing a Transfer-Encoding header field MUST treat the message as if the
        // framing is faulty, even if a Content-Length is present, and close the connection".
        bad("`Transfer-Encoding: chunked` in HTTP/1.0", "6.1", old("")),
        bad(
            "the same, with `Connection: keep-alive`",
            "6.1",
            old("connection: keep-alive\r\n"),
        ),
    ]
}

pub(super) fn chunks() -> Vec<Row> {
    let framed = |name, size: &str| bad(name, "7.1", chunk(&chunked(size)) + EVIL);
    let extension = format!("29;{}", "a".repeat(70_000));
    let ended = |end: &str| chunk(&format!("29\r\n{EVIL}{end}"));
    let trailers = |lines: &str| ended(&format!("\r\n0\r\n{lines}"));
    vec![
        // "Recipients MUST anticipate potentially large hexadecimal numerals and prevent parsing errors due to integer conversion
        // overflows".
        good(
            "chunk size of 17 digits, 0…029",
            "7.1",
            chunk(&chunked("00000000000000029")),
        ),
        framed("chunk size of 17 digits, 10…029", "10000000000000029"),
        framed("chunk size `-29`", "-29"),
        framed("chunk size `+29`", "+29"),
        framed("chunk size `0x29`", "0x29"),
        framed("chunk size after a space", " 29"),
        framed("chunk size that is empty", ""),
        good("chunk size before a space", "7.1.1", chunk(&chunked("29 "))),
        good("chunk extension", "7.1.1", chunk(&chunked("29;a=b"))),
        // "A server ought to limit the total length of chunk extensions received in a request".
        bad(
            "chunk extension of 70,000 bytes",
            "7.1.1",
            chunk(&chunked(&extension)) + EVIL,
        ),
        bad(
            "chunk extension with a bare LF",
            "7.1.1",
            chunk(&format!("29;a\n{EVIL}\r\n0\r\n\r\n")) + EVIL,
        ),
        bad(
            "chunk extension with a bare CR",
            "7.1.1",
            chunk(&chunked("29;a\rb")) + EVIL,
        ),
        bad(
            "bare LF after a chunk size",
            "7.1",
            chunk(&format!("29\n{EVIL}\r\n0\r\n\r\n")) + EVIL,
        ),
        bad(
            "chunk data without CRLF after it",
            "7.1",
            ended("0\r\n\r\n") + EVIL,
        ),
        bad(
            "chunk data with a bare LF after it",
            "7.1",
            ended("\n0\r\n\r\n") + EVIL,
        ),
        bad(
            "chunk data longer than its size",
            "7.1",
            chunk(&chunked("28")) + EVIL,
        ),
        good("trailer fields", "7.1.2", trailers("x: 1\r\n\r\n")),
        // "A recipient MUST NOT merge it into the header section unless [...]": it changes no framing.
        good(
            "`Content-Length` as a trailer field",
            "7.1.2",
            trailers("content-length: 500\r\n\r\n"),
        ),
        bad(
            "NUL in a trailer field's name",
            "7.1.2",
            trailers("x\0: 1\r\n\r\n") + EVIL,
        ),
        bad(
            "trailer fields, 20,000 and no end",
            "7.1.2",
            trailers(&"x: 1\r\n".repeat(20_000)),
        ),
        bad(
            "trailer field of 100,000 bytes and no end",
            "7.1.2",
            trailers(&format!("x: {}", "a".repeat(100_000))),
        ),
    ]
}
