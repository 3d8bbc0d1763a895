//! The admin listener: metrics for Prometheus, and whether the service lives and is ready.
//!
//! It is a listener as any other, by the name [`ADMIN`]: kept over reloads, its connections move. Who answers is whoever serves. What
//! differs is that it is answered outside of hours, too: by the first generation before it serves, and by the last one while it
//! stops ([`outside_hours`]). A readiness that cannot be asked is no answer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use handoff::control::{DryRun, Event, Outcome};
use handoff::listeners::Listener;
use handoff::registered::register;
use handoff::{Phase, Serving};
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, watch};

use crate::probe;

mod exposition;
pub(crate) mod measured;
mod tally;

use tally::Count;
pub(crate) use tally::Tally;

/// The listener's name.
pub(crate) const ADMIN: &str = "admin";

/// How long one who asks outside of hours may take for all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many may ask at once then.
const VISITORS: usize = 32;

/// How long not to accept when descriptors have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the pages tell.
pub(crate) struct Pages {
    pub(crate) tally: Arc<Tally>,
    build: String,
    generation: u64,
    phase: watch::Receiver<Phase>,
    serving: OnceLock<Serving>,
    health: Arc<OnceLock<probe::Again>>,
    /// This process is final: not on probation.
    confirmed: AtomicBool,
    in_flight: AtomicI64,
    /// The phase that each reload under way is in, and since when, in microseconds from its beginning.
    reloads: Mutex<HashMap<u64, (String, u64)>>,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

impl Pages {
    pub(crate) fn new(
        tally: Arc<Tally>,
        build: String,
        generation: u64,
        phase: watch::Receiver<Phase>,
        health: Arc<OnceLock<probe::Again>>,
    ) -> Self {
        Self {
            tally,
            build,
            generation,
            phase,
            serving: OnceLock::new(),
            health,
            confirmed: AtomicBool::new(generation == 1),
            in_flight: AtomicI64::new(0),
            reloads: Mutex::default(),
        }
    }

    pub(crate) fn serves(&self, serving: Serving) {
        let _ = self.serving.set(serving);
    }

    fn takes_off(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn lands(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts what is said of reloads. Each thing is counted by one process: by the one that goes on.
    pub(crate) fn hear(&self, event: &Event) {
        match event {
            Event::Phase {
                reload,
                phase,
                at_us,
                ..
            } => self.enters(*reload, phase, *at_us),
            Event::Reloaded { reload, outcome } => {
                self.reloads().remove(reload);
                match outcome {
                    Outcome::Confirmed { to, .. } if to.pid == std::process::id() => {
                        self.confirmed.store(true, Ordering::Release);
                        self.tally.add(Count::Confirmed, 1);
                    }
                    Outcome::Failed { .. } => self.tally.add(Count::Failed, 1),
                    _ => {}
                }
            }
            Event::DryRun { reload, outcome } => {
                self.reloads().remove(reload);
                match outcome {
                    DryRun::Ready { .. } => self.tally.add(Count::DryReady, 1),
                    _ => self.tally.add(Count::DryFailed, 1),
                }
            }
            // By the successor: the process that has finished has nobody left to tell its numbers to.
            Event::Drained {
                at_us: 0,
                connections,
                ..
            } => {
                self.tally.add(Count::Moved, connections.moved);
                self.tally.add(Count::Drained, connections.drained);
                self.tally.add(Count::Cut, connections.cut);
            }
            _ => {}
        }
    }

    fn enters(&self, reload: u64, phase: &str, at_us: u64) {
        let entered = (phase.to_owned(), at_us);
        if let Some((left, since)) = self.reloads().insert(reload, entered) {
            self.tally.lasted(&left, at_us.saturating_sub(since));
        }
    }

    fn reloads(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (String, u64)>> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the service is: `Err` says why not.
    async fn readiness(&self) -> Result<(), String> {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Starting => Err("starting".to_owned()),
            Phase::Finishing | Phase::Stopping | Phase::Cut => Err("stopping".to_owned()),
            // In all others this process serves, or another one does.
            _ => match self.health.get() {
                Some(again) => again().await,
                None => Ok(()),
            },
        }
    }

    /// One page.
    pub(crate) async fn answer(&self, head: &http::request::Parts) -> Response<Full<Bytes>> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allow);
            return response;
        }
        match head.uri.path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, exposition::write(self));
                let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, version);
                response
            }
            "/livez" => text(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => match self.readiness().await {
                Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
            },
            _ => {
                let pages = "not found; try /metrics, /livez or /readyz\n";
                text(StatusCode::NOT_FOUND, pages.to_owned())
            }
        }
    }
}

/// The next question is for whoever serves by then: no connection is kept.
fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, plain);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers while nobody accepts: before the first generation serves, and while the last one stops. Ends when another process is the
/// one that accepts, and with this one.
///
/// # Errors
/// If the listener cannot be watched.
pub(crate) fn outside_hours(listener: &Listener, pages: Arc<Pages>) -> io::Result<()> {
    let fd = listener.as_fd().try_clone_to_owned()?;
    let listener = register(fd, Interest::READABLE)?;
    tokio::spawn(async move {
        let mut phase = pages.phase.clone();
        let visitors = Arc::new(Semaphore::new(VISITORS));
        loop {
            let is_open = match *phase.borrow_and_update() {
                // A child does not accept: its parent does.
                Phase::Starting => pages.generation == 1,
                Phase::Stopping | Phase::Cut => true,
                // An old socket must not outlive its service.
                Phase::HandingOver | Phase::Finishing => return,
                _ => false,
            };
            tokio::select! {
                changed = phase.changed() => if changed.is_err() { return },
                () = visit(&listener, &pages, &visitors), if is_open => {}
            }
        }
    });
    Ok(())
}

/// Lets one in.
async fn visit(listener: &AsyncFd<OwnedFd>, pages: &Arc<Pages>, visitors: &Arc<Semaphore>) {
    let Ok(place) = visitors.clone().acquire_owned().await else {
        return;
    };
    let Ok(mut ready) = listener.readable().await else {
        return std::future::pending().await;
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted = rustix::net::accept_with(listener.get_ref(), flags).map_err(io::Error::from);
    match accepted.and_then(handoff::Stream::from_fd) {
        Ok(stream) => {
            let pages = pages.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let pages = pages.clone();
                    async move { Ok::<_, Infallible>(pages.answer(&request.into_parts().0).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(PATIENCE, connection).await;
                drop(place);
            });
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
        // A client that has gone already, or no descriptor left.
        Err(error) => {
            tracing::debug!(%error, "the admin listener cannot accept");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests;
