//! What is sent, and what RFC 9112 allows as the answer.
//!
//! The bodies are made of a request, [`EVIL`], and another follows where a parser might see the end of the first one elsewhere: whoever
//! frames the bytes differently from us answers one of them.

mod bodies;
mod heads;

/// A request that nobody made.
pub(crate) const EVIL: &str = "GET /hello?admin HTTP/1.1\r\nhost: evil\r\n\r\n";

/// One request, or what looks like one.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Of RFC 9112, unless another one is named.
    pub(crate) section: &'static str,
    pub(crate) request: Vec<u8>,
    /// The statuses that are right; 0 is an end without an answer.
    pub(crate) allowed: &'static [u16],
    pub(crate) then: Then,
    /// Whether the answer is the same if it comes in pieces.
    pub(crate) is_cut: bool,
}

/// What has to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Closes,
    Lives,
    /// It lives if the body, which nobody reads, was there when the answer was given: the server does not wait for it.
    LivesIfWhole,
}

impl Then {
    pub(crate) fn allows(self, lives: bool, is_cut: bool) -> bool {
        match self {
            Self::Closes => !lives,
            Self::Lives => lives,
            Self::LivesIfWhole => lives || is_cut,
        }
    }
}

/// Malformed: "SHOULD respond with a 400 (Bad Request) response and close the connection" (2.2), and a MUST in many rows.
const BAD: &[u16] = &[400];
const GOOD: &[u16] = &[200];
const CHUNKED: &str = "transfer-encoding: chunked";

pub(crate) fn rows() -> Vec<Row> {
    [
        bodies::lengths(),
        bodies::codings(),
        heads::fields(),
        bodies::chunks(),
        heads::lines(),
        heads::hosts(),
        heads::endless(),
        heads::odd(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn row(
    name: &'static str,
    section: &'static str,
    request: impl Into<Vec<u8>>,
    allowed: &'static [u16],
    then: Then,
) -> Row {
    Row {
        name,
        section,
        request: request.into(),
        allowed,
        then,
        is_cut: true,
    }
}

fn bad(name: &'static str, section: &'static str, request: impl Into<Vec<u8>>) -> Row {
    row(name, section, request, BAD, Then::Closes)
}

fn good(name: &'static str, section: &'static str, request: impl Into<Vec<u8>>) -> Row {
    row(name, section, request, GOOD, Then::Lives)
}

/// Reads its body to the end.
fn upload(fields: &str, body: &str) -> String {
    format!("POST /upload HTTP/1.1\r\nhost: test\r\n{fields}\r\n\r\n{body}")
}

fn get(fields: &str) -> String {
    format!("GET /hello HTTP/1.1\r\nhost: test\r\n{fields}\r\n\r\n")
}

/// A `Content-Length` of `value`, a body of 41 bytes, and the request that follows.
fn length(value: &str) -> String {
    upload(&format!("content-length: {value}"), EVIL) + EVIL
}

/// A `Transfer-Encoding` of `value`, and what follows.
fn coding(value: &str) -> String {
    upload(&format!("transfer-encoding: {value}"), &chunked("29")) + EVIL
}

/// One chunk with `size` as its first line, the last one, no trailers. The right size is 29: hexadecimal for 41.
fn chunked(size: &str) -> String {
    format!("{size}\r\n{EVIL}\r\n0\r\n\r\n")
}

/// A chunked body that begins like this.
fn chunk(body: &str) -> String {
    upload(CHUNKED, body)
}
