//! What the client asks, and what a right answer looks like.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request};
use serde::Serialize;
use tokio::time::Sleep;

/// An upload is `UPLOAD_CHUNKS` pieces of `CHUNK`, with a pause between two, so that a
/// reload can fall into the middle of it.
const UPLOAD_CHUNKS: usize = 4;
const UPLOAD_PAUSE: Duration = Duration::from_millis(2);
const UPLOAD_BYTES: usize = UPLOAD_CHUNKS * 8 * 1024;

/// As asked for by the path of [`Kind::Stream`].
const STREAM_CHUNKS: u32 = 10;

/// Not a constant byte: a piece that is lost, doubled or swapped changes the checksum.
static UPLOAD: LazyLock<Bytes> = LazyLock::new(|| {
    (0..UPLOAD_BYTES)
        .map(|i| (i.wrapping_mul(31) >> 3) as u8)
        .collect()
});
static UPLOAD_CRC32: LazyLock<String> =
    LazyLock::new(|| format!("{:08x}", crc32fast::hash(&UPLOAD)));

/// What kind a request is, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// `/hello` on a connection of the pool.
    KeepAlive,
    /// `/hello` on a connection of its own; every other one says `Connection: close`.
    NewConnection,
    /// `/slow`, on a connection of the pool.
    Slow,
    /// `POST /upload`, on a connection of the pool; every other one has no `Content-Length`.
    Upload,
    /// `/stream`, on a connection of the pool.
    Stream,
    /// A message of a WebSocket session, at a time of its own schedule.
    #[serde(rename = "websocket")]
    WebSocket,
    /// `/hello` on a connection that rests most of the time. Not part of the schedule.
    Idle,
    /// `/healthz` on a new connection, during a reload. Not part of the schedule, and not
    /// counted by the server.
    Probe,
}

impl Kind {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 8] = [
        Self::KeepAlive,
        Self::NewConnection,
        Self::Slow,
        Self::Upload,
        Self::Stream,
        Self::WebSocket,
        Self::Idle,
        Self::Probe,
    ];

    /// As in the table, the log and the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::NewConnection => "new-connection",
            Self::Slow => "slow",
            Self::Upload => "upload",
            Self::Stream => "stream",
            Self::WebSocket => "websocket",
            Self::Idle => "idle",
            Self::Probe => "probe",
        }
    }

    /// Whether it leaves at a time of the schedule, and its latency therefore means something.
    pub(crate) fn is_scheduled(self) -> bool {
        !matches!(self, Self::Idle | Self::Probe)
    }

    /// Whether the server answers it at once. The others have pauses of their own, which would hide
    /// those of a reload; and the longer a request lasts, the more likely it meets one.
    pub(crate) fn is_prompt(self) -> bool {
        matches!(
            self,
            Self::KeepAlive | Self::NewConnection | Self::WebSocket
        )
    }

    /// Whether the server's request counter counts it.
    pub(crate) fn is_counted_by_server(self) -> bool {
        self != Self::Probe
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Which of the two forms that some kinds have.
    pub(crate) variant: bool,
}

impl Ask {
    /// A request of a kind that has one form.
    pub(crate) fn plain(kind: Kind) -> Self {
        Self {
            kind,
            variant: false,
        }
    }

    /// Whether the client itself asks for the connection to be closed after the answer.
    pub(crate) fn closes(self) -> bool {
        self.kind == Kind::NewConnection && self.variant
    }

    /// As hyper sends it.
    pub(crate) fn request(self) -> Request<RequestBody> {
        let path = match self.kind {
            Kind::KeepAlive | Kind::NewConnection | Kind::Idle => "/hello",
            Kind::Slow => "/slow?ms=50",
            Kind::Upload => "/upload",
            Kind::Stream => "/stream?chunks=10&ms=5",
            Kind::WebSocket => "/ws",
            Kind::Probe => "/healthz",
        };
        let (method, body) = match self.kind {
            Kind::Upload => (Method::POST, RequestBody::upload(!self.variant)),
            _ => (Method::GET, RequestBody::default()),
        };
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("a constant path");
        request
            .headers_mut()
            .insert(HOST, "soak.test".parse().expect("a constant host"));
        if self.closes() {
            request
                .headers_mut()
                .insert(CONNECTION, "close".parse().expect("a constant"));
        }
        request
    }

    /// Whether `body` is what the server is to answer. A greeting is returned for the caller to judge.
    pub(crate) fn check(self, body: &[u8]) -> Result<Option<&str>, String> {
        match self.kind {
            Kind::KeepAlive | Kind::NewConnection | Kind::Idle => greeting(body).map(Some),
            Kind::Slow | Kind::WebSocket | Kind::Probe => Ok(None),
            Kind::Upload => check_upload(body).map(|()| None),
            Kind::Stream => check_stream(body).map(|()| None),
        }
    }
}

fn greeting(body: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(body)
        .ok()
        .and_then(|text| text.strip_prefix("hello world ")?.strip_suffix('\n'))
        .ok_or_else(|| format!("not a greeting: {}", shown(body)))
}

fn check_upload(body: &[u8]) -> Result<(), String> {
    let answer: serde_json::Value =
        serde_json::from_slice(body).map_err(|err| format!("{err}: {}", shown(body)))?;
    if answer["bytes"] == UPLOAD_BYTES && answer["crc32"] == UPLOAD_CRC32.as_str() {
        Ok(())
    } else {
        Err(format!(
            "uploaded {UPLOAD_BYTES} bytes, crc32 {}; it received {}",
            *UPLOAD_CRC32,
            shown(body)
        ))
    }
}

/// All chunks, in order, and the end. Whether the server numbers them from 0 or 1 is its own affair.
fn check_stream(body: &[u8]) -> Result<(), String> {
    let whole = |first| {
        let chunks = (first..first + STREAM_CHUNKS).map(|n| format!("chunk {n}\n"));
        chunks.chain(["end\n".into()]).collect::<String>()
    };
    if [0, 1]
        .into_iter()
        .any(|first| whole(first).as_bytes() == body)
    {
        Ok(())
    } else {
        Err(format!("not the whole stream: {}", shown(body)))
    }
}

/// For a log line: printable, one line, bounded.
fn shown(body: &[u8]) -> String {
    let start = &body[..body.len().min(120)];
    format!("{} bytes: \"{}\"", body.len(), start.escape_ascii())
}

/// The body of a request: nothing, or the upload.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    left: Bytes,
    /// Whether its length is announced; otherwise hyper sends it chunked.
    sized: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    fn upload(sized: bool) -> Self {
        Self {
            left: UPLOAD.clone(),
            sized,
            pause: None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
        }
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.left.split_to(UPLOAD_BYTES / UPLOAD_CHUNKS);
        self.pause = (!self.left.is_empty()).then(|| Box::pin(tokio::time::sleep(UPLOAD_PAUSE)));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized || self.left.is_empty() {
            SizeHint::with_exact(self.left.len() as u64)
        } else {
            SizeHint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_takes_its_time_and_is_whole() {
        let started = tokio::time::Instant::now();
        let body = RequestBody::upload(true)
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(body, *UPLOAD);
        assert_eq!(started.elapsed(), UPLOAD_PAUSE * (UPLOAD_CHUNKS as u32 - 1));
    }

    #[test]
    fn right_answers_pass() {
        assert_eq!(
            Ask::plain(Kind::KeepAlive).check(b"hello world eee\n"),
            Ok(Some("eee"))
        );
        let upload = format!(r#"{{"bytes":{UPLOAD_BYTES},"crc32":"{}"}}"#, *UPLOAD_CRC32);
        assert_eq!(Ask::plain(Kind::Upload).check(upload.as_bytes()), Ok(None));
        let stream: String = (0..10).map(|n| format!("chunk {n}\n")).collect();
        assert_eq!(
            Ask::plain(Kind::Stream).check(format!("{stream}end\n").as_bytes()),
            Ok(None)
        );
    }

    #[test]
    fn wrong_answers_do_not() {
        assert!(
            Ask::plain(Kind::KeepAlive)
                .check(b"hello world eee")
                .is_err()
        );
        assert!(
            Ask::plain(Kind::Upload)
                .check(br#"{"bytes":32768,"crc32":"00000000"}"#)
                .is_err()
        );
        let short = format!(
            r#"{{"bytes":{},"crc32":"{}"}}"#,
            UPLOAD_BYTES - 1,
            *UPLOAD_CRC32
        );
        assert!(Ask::plain(Kind::Upload).check(short.as_bytes()).is_err());
        assert!(Ask::plain(Kind::Upload).check(b"").is_err());
        let stream: String = (0..10).map(|n| format!("chunk {n}\n")).collect();
        assert!(
            Ask::plain(Kind::Stream).check(stream.as_bytes()).is_err(),
            "the end is missing"
        );
        assert!(
            Ask::plain(Kind::Stream)
                .check(
                    format!("{stream}end\n")
                        .replacen("chunk 4\n", "", 1)
                        .as_bytes()
                )
                .is_err(),
            "a chunk is missing"
        );
    }
}
