//! The life of one HTTP/1.1 connection that can be given up at rest and taken up elsewhere.
//!
//! # Contract
//!
//! [`serve`] answers requests until the connection ends or an [`Order`] ends it, and says how it
//! ended. A connection that was given up ([`End::GivenUp`]) is at the start of a request: nothing of
//! an earlier exchange is left in it, neither of an answer nor of a request's body, and everything
//! that was read and not yet understood is in [`Carried`]. Another `serve`, in this process or
//! another, goes on from there, and the client cannot tell.
//!
//! hyper does not say when a connection rests. It is derived, after each poll that returned
//! `Pending`, from four conditions:
//!
//! 1. no service future and no response body lives (hyper owns both, each holds a guard);
//! 2. the last write or flush was not left pending, and the writing side was never shut down;
//! 3. the request's body was read to its end. One that is alive *anywhere*, in a spawned task for
//!    instance, blocks the move; one that was dropped early forbids it;
//! 4. the client has not closed its side, and hyper has not decided to close the connection (it
//!    then shuts the writing side down in that same poll, see 2).
//!
//! Without the third, the rest of a body would be read as a request by the next owner: request
//! smuggling. With all four, hyper is in its initial state, reading and writing (`hyper-1.12`,
//! `proto/h1/conn.rs`: any other state either has something alive or is on its way to the
//! shutdown), and so equal to a fresh one. This includes HTTP/1.0 with an honoured
//! `Connection: keep-alive`: hyper takes the version from each head anew.
//!
//! # Failure rules
//!
//! - Whatever closes a connection does so without a reset ([`crate::linger`]); only [`Order::Cut`]
//!   and the client itself are exceptions.
//! - A panic of the service unwinds through `serve`; the socket is closed, nothing else happens.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::server::conn::http1;
use hyper::service::Service;
use tokio::sync::watch;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::body::RequestBody;
use crate::clock::{LOOK_AFTER, Spent};
use crate::dormant::{Wake, sleep};
use crate::io::Stream;
use crate::life::{Goodbye, Life, Step, Verdict};
use crate::linger::linger;
use crate::session::Session;

/// hyper's own limit on the number of headers. At this number it keeps them on the stack.
const DEFAULT_MAX_HEADERS: usize = 100;

/// A boxed error, as hyper wants to be able to make of a service's.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the process wants of each of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// Serve on.
    Serve,
    /// Give the connection up at the first moment it rests; until then answer as usual.
    HandOver,
    /// There is nobody to give it to, but time: answer one more request with `Connection: close`. A
    /// connection at rest waits for that request.
    LastAnswer,
    /// Stop: what has arrived of a request, even a part of its head and even if only the kernel
    /// has it yet, is answered with `Connection: close`; a connection without it is closed now.
    Close,
    /// The deadline: drop the connection, whatever it does.
    Cut,
}

/// How the service of a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Finished in the regular way by client, server or timeout, or broken by an I/O error.
    Closed,
    /// Given up at rest, because of [`Order::HandOver`].
    GivenUp(Rested),
    /// It rests, nothing was read ahead, and its client has said nothing for [`LOOK_AFTER`]; nor has anything been ordered.
    Rests(Rested),
    /// HTTP has ended on it, and a session of an application's protocol begins.
    Upgraded(Session),
    /// Cut by [`Order::Cut`].
    Cut {
        /// Method and path of the request that was under way, if any.
        request: Option<String>,
    },
}

/// A connection at rest: out of epoll, owned by nobody else, ready to travel.
#[derive(Debug)]
pub(crate) struct Rested {
    pub(crate) socket: OwnedFd,
    pub(crate) carried: Carried,
    /// A request was under way when it was to be given up; it rested only after the answer.
    pub(crate) answered: bool,
}

/// What a connection brings along from the process that served it before. Empty for a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried {
    /// Bytes that were read from the socket and are not part of any request yet: part of a head,
    /// or whole pipelined requests.
    pub(crate) leftover: Bytes,
    /// What it has used up of its timeouts.
    pub(crate) spent: Spent,
}

impl Carried {
    /// Whether there is nothing but time.
    pub(crate) fn is_nothing(&self) -> bool {
        self.leftover.is_empty() && self.spent.head.is_none()
    }
}

/// Limits of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// From the first byte of a head to its end.
    pub(crate) header_timeout: Duration,
    /// From the accept, or the end of an exchange, to the first byte of the next head.
    pub(crate) idle_timeout: Duration,
    /// Longest head in bytes; a longer one is answered 431.
    pub(crate) max_header_size: usize,
    /// Most headers in a head; more are answered 431. Other values than 100 cost an allocation for
    /// each request.
    pub(crate) max_headers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            max_header_size: 64 * 1024,
            max_headers: DEFAULT_MAX_HEADERS,
        }
    }
}

impl Config {
    /// hyper, with these limits.
    pub(crate) fn http(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        // A client may shut down writing after its request and still wait for the answer.
        http.half_close(true)
            // Ours travel, see `clock`; hyper's would also close idle connections.
            .header_read_timeout(None)
            .max_header_size(self.max_header_size);
        if self.max_headers != DEFAULT_MAX_HEADERS {
            http.max_headers(self.max_headers);
        }
        http
    }
}

/// A service whose requests may come from a connection that moves: any `hyper` service of
/// [`RequestBody`]. For tower's, see `hyper_util::service::TowerToHyperService`.
pub(crate) trait Answer:
    Service<Request<RequestBody>, Response = Response<Self::Body>, Error = Self::Failure>
{
    /// The body of its responses.
    type Body: Body<Error: Into<BoxError>> + 'static;
    /// What it fails with; the connection ends then, without an answer.
    type Failure: Into<BoxError>;
}

impl<S, B> Answer for S
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Error: Into<BoxError>> + 'static,
{
    type Body = B;
    type Failure = S::Error;
}

/// Is told the request that keeps a connection from what was ordered, e.g. `GET /slow`.
pub(crate) type Busy<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// Serves `stream`, which brings `carried` along, until it ends or `orders` end it.
///
/// The first order is the one that is in force when this is called. If the sender of `orders` is
/// dropped, the last one stays in force. Includes the wait for an upgraded connection's end, and for
/// the client to close its side (bounded by [`crate::linger::LINGER_TIME`]).
///
/// What every request of the connection should know (its peer, for instance) is put into the
/// request's extensions by a service around `service`.
///
/// Not an `async fn`: that would hold its arguments twice, and most connections only wait.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(crate) fn serve<'a, S: Answer + 'a>(
    mut stream: Stream,
    mut carried: Carried,
    mut service: S,
    config: &'a Config,
    mut orders: watch::Receiver<Order>,
    busy: &'a Busy<'a>,
) -> impl Future<Output = End> + use<'a, S> {
    async move {
        let mut patience = LOOK_AFTER;
        loop {
            if carried.is_nothing() {
                let now = Instant::now();
                let since = now.checked_sub(carried.spent.waited).unwrap_or(now);
                let wake = sleep(&stream, since, patience, config, &mut orders).await;
                carried.spent.waited = since.elapsed();
                match wake {
                    Wake::Bytes => {}
                    Wake::Silence => {
                        return take_out(stream, carried).map_or(End::Closed, End::Rests);
                    }
                    Wake::GiveUp => {
                        return take_out(stream, carried).map_or(End::Closed, End::GivenUp);
                    }
                    Wake::Close => {
                        unless_cut(&mut orders, Box::pin(linger(stream, Vec::new()))).await;
                        return End::Closed;
                    }
                    Wake::Cut => return End::Cut { request: None },
                }
            }
            // In a box, so that a connection that sleeps has none of it.
            let awake = serve_awake(stream, carried, service, config, &mut orders, busy);
            let awake = Box::pin(awake);
            match awake.await {
                Left::Ended(end) => return end,
                Left::Sleeps(left) => (stream, carried, service) = left,
            }
            patience = Duration::ZERO;
        }
    }
}

fn take_out(stream: Stream, carried: Carried) -> Option<Rested> {
    match stream.into_fd() {
        Ok(socket) => Some(Rested {
            socket,
            carried,
            answered: false,
        }),
        Err(error) => {
            debug!(%error, "connection lost: cannot be taken out of epoll");
            None
        }
    }
}

/// How [`serve_awake`] was left.
enum Left<S> {
    Ended(End),
    /// The client has not spoken for a while.
    Sleeps((Stream, Carried, S)),
}

/// Serves the connection with hyper, until its end or until the client falls silent.
async fn serve_awake<S: Answer>(
    stream: Stream,
    carried: Carried,
    service: S,
    config: &Config,
    orders: &mut watch::Receiver<Order>,
    busy: &Busy<'_>,
) -> Left<S> {
    let mut life = Life::begin(stream, carried, service, config);
    let mut timer = pin!(sleep_until(life.first_deadline()));
    let order_waker = life.order_waker();
    // Set when the sender of orders is gone.
    let mut is_deaf = false;
    let Goodbye { stream, words } = loop {
        let order = *orders.borrow_and_update();
        if order == Order::Cut {
            return Left::Ended(life.cut());
        }
        life.obey(order);
        let step = {
            // Unconstrained: when this is pending, its waker will be woken by the next order.
            let mut changed = pin!(unconstrained(orders.changed()));
            let mut ordered = || {
                if is_deaf {
                    return false;
                }
                let order = changed
                    .as_mut()
                    .poll(&mut Context::from_waker(&order_waker));
                is_deaf = matches!(order, Poll::Ready(Err(_)));
                matches!(order, Poll::Ready(Ok(())))
            };
            poll_fn(|cx| life.poll(cx, timer.as_mut(), &mut ordered)).await
        };
        match step {
            Step::Ordered => {}
            Step::Busy(request) => busy(&request),
            // In a box: `life` would be held twice by every connection, for the moment of its end.
            Step::Ended => return Left::Ended(Box::pin(life.end(orders, busy)).await),
            Step::GiveUp => return Left::Ended(life.give_up()),
            Step::Close => {
                if let Some(goodbye) = life.close() {
                    break goodbye;
                }
            }
            Step::TimeOut => match life.time_out() {
                Verdict::Stays => {}
                Verdict::Ends(goodbye) => break goodbye,
                Verdict::Sleeps {
                    stream,
                    spent,
                    service,
                } => {
                    let carried = Carried {
                        leftover: Bytes::new(),
                        spent,
                    };
                    return Left::Sleeps((stream, carried, service));
                }
            },
        }
    };
    drop(life);
    unless_cut(orders, Box::pin(linger(stream, words))).await;
    Left::Ended(End::Closed)
}

/// Does `work` to its end, or until [`Order::Cut`].
pub(crate) async fn unless_cut<F: Future>(
    orders: &mut watch::Receiver<Order>,
    work: F,
) -> Option<F::Output> {
    let cut = async {
        if orders.wait_for(|order| *order == Order::Cut).await.is_err() {
            // No order will come any more.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        output = work => Some(output),
        () = cut => None,
    }
}

#[cfg(test)]
mod tests;
