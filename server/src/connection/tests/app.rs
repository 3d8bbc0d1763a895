//! A service to test with: it reads bodies, or not, in every way that matters.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::body::RequestBody;

/// What all generations of the service share.
pub(super) struct State {
    /// Requests for what nobody asks for: parts of bodies that were read as requests.
    pub(super) smuggled: AtomicUsize,
    /// Requests that the service was called for.
    pub(super) calls: AtomicUsize,
    /// `/wait` and others take a permit each.
    pub(super) gate: Semaphore,
    /// What `/stream` sends.
    pub(super) frames: Mutex<Option<mpsc::Receiver<Bytes>>>,
}

impl State {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            smuggled: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            frames: Mutex::new(None),
        })
    }
}

type Answered = Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, Infallible>;

/// The service of one generation.
#[derive(Clone)]
pub(super) struct App {
    pub(super) state: Arc<State>,
    pub(super) generation: usize,
}

fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, hyper::Error> {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

async fn read_slowly(mut request: Request<RequestBody>) -> usize {
    let mut total = 0;
    while let Some(Ok(frame)) = request.body_mut().frame().await {
        total += frame.data_ref().map_or(0, Bytes::len);
        tokio::task::yield_now().await;
    }
    total
}

struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|bytes| Some(Ok(Frame::data(bytes?))))
    }
}

pub(super) const LARGE: usize = 32 * 1024 * 1024;

impl App {
    async fn answer(self, mut request: Request<RequestBody>) -> Answered {
        let mut status = StatusCode::OK;
        let path = request.uri().path().to_owned();
        let body = match path.as_str() {
            "/panic" => panic!("as ordered"),
            "/echo" => match request.into_body().collect().await {
                Ok(body) => full(body.to_bytes()),
                Err(_) => {
                    status = StatusCode::BAD_REQUEST;
                    full("broken body")
                }
            },
            "/echo-stream" => request.into_body().boxed_unsync(),
            // Drops the body at once, after a while, after one frame.
            "/ignore" => full("ignored"),
            "/ignore-late" => {
                drop(request);
                tokio::task::yield_now().await;
                full("ignored late")
            }
            "/first-frame" => {
                let _ = request.body_mut().frame().await;
                full("one frame")
            }
            // Answer at once, and leave the body to a task.
            "/spawn-read" => {
                status = StatusCode::ACCEPTED;
                tokio::spawn(request.into_body().collect());
                full("later")
            }
            "/spawn-read-gated" | "/spawn-drop-gated" => {
                status = StatusCode::ACCEPTED;
                let state = Arc::clone(&self.state);
                tokio::spawn(async move {
                    state.gate.acquire().await.unwrap().forget();
                    if path == "/spawn-read-gated" {
                        let _ = request.into_body().collect().await;
                    } else {
                        drop(request);
                    }
                });
                full("later")
            }
            "/read-slowly" => full(read_slowly(request).await.to_string()),
            "/spawn-read-slowly" => {
                status = StatusCode::ACCEPTED;
                tokio::spawn(read_slowly(request));
                full("later")
            }
            "/wait" => {
                self.state.gate.acquire().await.unwrap().forget();
                full("waited")
            }
            "/stream" => {
                let frames = self.state.frames.lock().unwrap().take();
                Frames(frames.expect("one stream at a time")).boxed_unsync()
            }
            "/large" => full(vec![b'x'; LARGE]),
            "/upgrade" => return Ok(self.upgrade(request)),
            number if number.starts_with("/n/") => full(number.to_owned()),
            _ => {
                self.state.smuggled.fetch_add(1, SeqCst);
                status = StatusCode::IM_A_TEAPOT;
                full("never asked for")
            }
        };
        Ok(Response::builder()
            .status(status)
            .header("x-generation", self.generation)
            .body(body)
            .unwrap())
    }

    /// An echo with another protocol than HTTP.
    fn upgrade(
        &self,
        request: Request<RequestBody>,
    ) -> Response<UnsyncBoxBody<Bytes, hyper::Error>> {
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut io = hyper_util::rt::TokioIo::new(upgraded);
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..length]).await.unwrap();
            }
            state.gate.add_permits(1);
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(full(""))
            .unwrap()
    }
}

impl Service<Request<RequestBody>> for App {
    type Response = Response<UnsyncBoxBody<Bytes, hyper::Error>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answered> + Send>>;
    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        self.state.calls.fetch_add(1, SeqCst);
        Box::pin(self.clone().answer(request))
    }
}
