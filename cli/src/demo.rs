//! The demo application: the seed's `/hello`, and whatever else makes a reload visible.
//!
//! It is an ordinary service: nothing in it knows of reloads, but for the counter, which is state
//! that the next generation goes on with, the two headers that say who answered, `/ws`, whose sessions move, and `/events`,
//! which ends when the process drains.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use handoff::state::Counter;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::json;

mod body;
mod query;
mod websocket;

pub(crate) use body::DemoBody;
pub(crate) use websocket::Numbered;

use hello_server::upgrade::Upgrade;
use hello_server::{ConnectionInfo, RequestBody, websocket as ws};
use query::Query;

/// Compiled in by `build.rs`, so that two builds differ.
pub(crate) const GREETING: &str = env!("HELLO_GREETING");

/// In one piece, so that a test finds it in the executable and makes another build of it.
const HELLO: &str = concat!("hello world ", env!("HELLO_GREETING"), "\n");

// What each answer carries is made once, not for each.
const X_GENERATION: HeaderName = HeaderName::from_static("x-generation");
const X_PID: HeaderName = HeaderName::from_static("x-pid");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// The longest a handler waits, so that a drain's end is in sight.
const MAX_PAUSE_MS: u64 = 60_000;

/// The shortest time between two events, so that one client is not a load by itself.
const MIN_TICK_MS: u64 = 1;

/// The longest stream.
const MAX_CHUNKS: u64 = 1_000_000;

/// The service. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Demo {
    shared: Arc<Shared>,
}

struct Shared {
    generation: u64,
    x_generation: HeaderValue,
    pid: u32,
    x_pid: HeaderValue,
    hits: Arc<Counter>,
    /// Without it `/ws` is answered, and nothing follows.
    sessions: Option<Upgrade>,
}

impl Demo {
    /// `sessions` begins those of `/ws`: it is [`Numbered`]'s.
    pub(crate) fn new(generation: u64, hits: Arc<Counter>, sessions: Option<Upgrade>) -> Self {
        let pid = std::process::id();
        Self {
            shared: Arc::new(Shared {
                generation,
                x_generation: generation.into(),
                pid,
                x_pid: pid.into(),
                hits,
                sessions,
            }),
        }
    }

    /// Answers one request. A counted one is counted when its answer is complete: `/stream` with its
    /// last chunk, all others here.
    pub(crate) async fn answer<B>(self, request: Request<B>) -> Response<DemoBody>
    where
        B: Upload,
        B::Error: std::fmt::Display,
    {
        let mut response = self.route(request).await.unwrap_or_else(Problem::response);
        let headers = response.headers_mut();
        headers.insert(X_GENERATION, self.shared.x_generation.clone());
        headers.insert(X_PID, self.shared.x_pid.clone());
        response
    }

    async fn route<B>(&self, mut request: Request<B>) -> Result<Response<DemoBody>, Problem>
    where
        B: Upload,
        B::Error: std::fmt::Display,
    {
        let route = Route::of(request.uri().path()).ok_or(Problem::NotFound)?;
        if !route.methods().contains(request.method()) {
            return Err(Problem::Method(route));
        }
        // The bodies of requests other than an upload are left unread: the server sees to it that
        // such a connection ends with its answer.
        let query = Query::of(request.uri());
        let response = match route {
            Route::Hello => text(HELLO),
            Route::Slow => {
                let ms = query.number("ms", 1_000, MAX_PAUSE_MS)?;
                // In boxes, so that a connection that never asks for it has no room for it.
                Box::pin(tokio::time::sleep(Duration::from_millis(ms))).await;
                text(format!("slow {ms}\n"))
            }
            Route::Stream => {
                let chunks = query.number("chunks", 10, MAX_CHUNKS)?;
                let pause = Duration::from_millis(query.number("ms", 100, MAX_PAUSE_MS)?);
                let hits = Arc::clone(&self.shared.hits);
                // Counts itself.
                return Ok(plain(DemoBody::stream(chunks, pause, move || {
                    hits.add(1);
                })));
            }
            Route::Upload => Box::pin(upload(request.into_body())).await?,
            // Its messages are counted, not the handshake.
            Route::WebSocket => return self.websocket(&mut request),
            // Never complete.
            Route::Events => return self.events(&request, &query),
            Route::Healthz => return Ok(text("ok\n")),
            Route::Status => return Ok(self.status()),
        };
        self.shared.hits.add(1);
        Ok(response)
    }

    fn websocket<B>(&self, request: &mut Request<B>) -> Result<Response<DemoBody>, Problem> {
        let answer = match &self.shared.sessions {
            Some(sessions) => ws::accept(sessions, request),
            None => ws::answer(request),
        };
        answer.map_err(Problem::WebSocket)
    }

    /// Goes on after the event that the client has seen last, in whichever generation that was.
    fn events(
        &self,
        request: &Request<impl Upload>,
        query: &Query,
    ) -> Result<Response<DemoBody>, Problem> {
        let tick = query.number("ms", 1_000, MAX_PAUSE_MS)?.max(MIN_TICK_MS);
        let last = request.headers().get("last-event-id");
        let last = last.and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
        let info = request.body().connection().cloned();
        let draining = async move {
            match info {
                Some(info) => info.draining().await,
                None => std::future::pending().await,
            }
        };
        let body = DemoBody::events(
            last.unwrap_or(0).saturating_add(1),
            self.shared.generation,
            Duration::from_millis(tick),
            draining,
        );
        let mut response = typed(EVENTS, body);
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(CACHE_CONTROL, no_store);
        Ok(response)
    }

    fn status(&self) -> Response<DemoBody> {
        let Shared {
            generation,
            pid,
            hits,
            ..
        } = &*self.shared;
        json(&json!({
            "generation": generation,
            "pid": pid,
            "greeting": GREETING,
            "version": env!("HELLO_VERSION"),
            "requests": hits.get(),
        }))
    }
}

/// The body of a request, from a connection or made up.
pub(crate) trait Upload: Body<Data = Bytes> + Send + 'static {
    /// Where it came from.
    fn connection(&self) -> Option<&ConnectionInfo> {
        None
    }
}

impl Upload for RequestBody {
    fn connection(&self) -> Option<&ConnectionInfo> {
        self.connection()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Hello,
    Slow,
    Stream,
    Upload,
    WebSocket,
    Events,
    Healthz,
    Status,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/hello" => Self::Hello,
            "/slow" => Self::Slow,
            "/stream" => Self::Stream,
            "/upload" => Self::Upload,
            "/ws" => Self::WebSocket,
            "/events" => Self::Events,
            "/healthz" => Self::Healthz,
            "/status" => Self::Status,
            _ => return None,
        })
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Self::Upload => &[Method::POST],
            Self::WebSocket => &[Method::GET],
            _ => &[Method::GET, Method::HEAD],
        }
    }

    fn allow(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Upload => "POST",
            Self::WebSocket => "GET",
            _ => "GET, HEAD",
        })
    }
}

/// Why a request is not served.
#[derive(Debug)]
enum Problem {
    NotFound,
    Method(Route),
    Request(String),
    WebSocket(ws::NotWebSocket),
}

impl Problem {
    fn response(self) -> Response<DemoBody> {
        match self {
            Self::NotFound => with_status(
                StatusCode::NOT_FOUND,
                "not found; try /hello, /slow?ms=500, /stream?chunks=5&ms=200, /upload (POST), /ws (WebSocket), /events?ms=1000, /healthz or /status\n",
            ),
            Self::Method(route) => {
                let mut response = with_status(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this method is not for this path; see the Allow header\n",
                );
                response.headers_mut().insert(ALLOW, route.allow());
                response
            }
            Self::WebSocket(problem) => problem.response(),
            Self::Request(problem) => with_status(StatusCode::BAD_REQUEST, problem + "\n"),
        }
    }
}

/// Reads a body to its end, whatever its length, in constant memory.
async fn upload<B>(body: B) -> Result<Response<DemoBody>, Problem>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut bytes: u64 = 0;
    let mut crc32 = crc32fast::Hasher::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Problem::Request(format!("the body ended before its end: {error}")))?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            crc32.update(data);
        }
    }
    let crc32 = format!("{:08x}", crc32.finalize());
    Ok(json(&json!({ "bytes": bytes, "crc32": crc32 })))
}

fn text(text: impl Into<Bytes>) -> Response<DemoBody> {
    plain(DemoBody::full(text.into()))
}

fn plain(body: DemoBody) -> Response<DemoBody> {
    typed(PLAIN, body)
}

fn json(value: &serde_json::Value) -> Response<DemoBody> {
    typed(JSON, DemoBody::full(format!("{value}\n").into()))
}

fn typed(content_type: HeaderValue, body: DemoBody) -> Response<DemoBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn with_status(status: StatusCode, problem: impl Into<Bytes>) -> Response<DemoBody> {
    let mut response = text(problem);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
