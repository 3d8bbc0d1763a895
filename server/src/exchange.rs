//! One request and its answer, and what the parts of a connection must know of each other.
//!
//! hyper owns the service's future and the response's body, the application owns the request's body,
//! and the connection's task must know of all of them whether they still live. [`Shared`] is where
//! they meet: one allocation for the life of a connection, a few atomics for each request.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;

use crate::body::{Abandoned, RequestBody};
use crate::connection::Order;
use crate::io::Stream;

/// What the parts of one connection know of each other.
///
/// Where nothing else is said, only the connection's own task reads and writes a field (hyper's io
/// and service run in it); it is atomic because it is shared, not because it is contended. What
/// decides over giving a connection up is `alive` and `unread`; they are ordered, and read in that
/// order.
pub(crate) struct Shared {
    /// The [`Order`] in force, as a number.
    order: AtomicU8,
    /// The exchange that began last. Before the first one it is 1, so that 0 means none.
    exchange: AtomicU64,
    /// How many service futures, response bodies and unfinished request bodies live. Request bodies
    /// are counted down by any thread.
    alive: AtomicU32,
    /// The last exchange whose request body was dropped before its end; 0 if there is none.
    /// Written by any thread, never to a smaller number but 0.
    unread: AtomicU64,
    /// [`Cold::abandoned`] is worth a look. Written by any thread.
    abandoned: AtomicBool,
    /// The connection was cut, or its task is gone. Read by any thread.
    cut: AtomicBool,
    /// The connection's protocol was switched. Read by any thread.
    upgraded: AtomicBool,
    /// Bytes were read since an exchange, or a part of one, began or ended. A hint for the header
    /// timeout: a body that ends in another thread may clear it late.
    pub(crate) arrived: AtomicBool,
    /// The client's end of stream, or an error, was read.
    pub(crate) ended: AtomicBool,
    /// The last write or flush could not be completed.
    pub(crate) write_blocked: AtomicBool,
    /// The writing side was, or is being, shut down.
    pub(crate) shut_down: AtomicBool,
    cold: Mutex<Cold>,
}

/// What is needed rarely.
#[derive(Default)]
struct Cold {
    /// Wakes the connection's task.
    task: Option<Waker>,
    /// Wake those who wait for an upgraded connection's socket, by [`Direction`].
    io: [Option<Waker>; 2],
    /// A body that the service dropped before its end.
    abandoned: Option<Abandoned>,
    /// The request whose body, or whose upgraded connection, may outlive its answer.
    lasting: Option<Name>,
    /// The request that was under way when the connection was cut.
    interrupted: Option<Name>,
    /// The socket, given back by the last who held it.
    returned: Option<Stream>,
}

/// Which half of a socket somebody waits for.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read = 0,
    Write = 1,
}

/// How a request is called in reports: method and path, without its query (which may hold secrets).
#[derive(Clone)]
pub(crate) struct Name {
    method: Method,
    uri: Uri,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uri.authority() {
            Some(authority) if self.method == Method::CONNECT => {
                write!(f, "{} {authority}", self.method)
            }
            _ => write!(f, "{} {}", self.method, self.uri.path()),
        }
    }
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            order: AtomicU8::new(Order::Serve as u8),
            exchange: AtomicU64::new(1),
            alive: AtomicU32::new(0),
            unread: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            shut_down: AtomicBool::new(false),
            cold: Mutex::default(),
        })
    }

    fn cold(&self) -> MutexGuard<'_, Cold> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `order` known to the answers that are yet to be given.
    pub(crate) fn obey(&self, order: Order) {
        self.order.store(order as u8, Relaxed);
    }

    /// Whether an answer given now is the last one of its connection.
    fn is_last_answer(&self) -> bool {
        let order = self.order.load(Relaxed);
        order == Order::LastAnswer as u8 || order == Order::Close as u8
    }

    /// Which exchange began last.
    pub(crate) fn exchange(&self) -> u64 {
        self.exchange.load(Relaxed)
    }

    /// Whether any part of any exchange lives: a service future, a response body, or, wherever it
    /// may be, a request body whose end was not seen.
    pub(crate) fn is_busy(&self) -> bool {
        self.alive.load(Acquire) > 0
    }

    /// Whether the request body of the last exchange was dropped before its end.
    ///
    /// This is asked of the last exchange only. When hyper calls the service again, it has itself
    /// found the end of the body before (it parses a head nowhere else), and the connection is as
    /// good as new.
    pub(crate) fn is_tainted(&self) -> bool {
        self.unread.load(Acquire) == self.exchange()
    }

    /// Names the task that serves the connection.
    pub(crate) fn register(&self, task: &Waker) {
        self.cold().task = Some(task.clone());
    }

    fn wake(&self) {
        let task = self.cold().task.clone();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// A request body with bytes begins its life.
    pub(crate) fn body_begins(&self) {
        self.alive.fetch_add(1, Relaxed);
    }

    /// A request body was read to its end.
    pub(crate) fn body_ends(&self) {
        // What is read from here on is the next head.
        self.arrived.store(false, Relaxed);
        self.forget_lasting();
        self.release_body();
    }

    /// A request body was dropped before its end; `rest` is what remains of it, if reading that is
    /// worth while.
    pub(crate) fn body_abandoned(&self, exchange: u64, rest: Option<Abandoned>) {
        // The order matters: by the time that the count says "nobody", the taint must be seen.
        // `fetch_max`, because a body that outlived its exchange must not clear a later taint.
        self.unread.fetch_max(exchange, AcqRel);
        let rest = rest.filter(|_| exchange == self.exchange());
        if rest.is_some() {
            let before = std::mem::replace(&mut self.cold().abandoned, rest);
            self.abandoned.store(true, Release);
            drop(before); // not under the lock: it wakes
        }
        self.release_body();
        self.forget_lasting();
        // Whether to be read to its end or found dropped by hyper: the connection must be polled.
        self.wake();
    }

    /// A name keeps hyper's read buffer from being used again, so it goes when it is not needed.
    fn forget_lasting(&self) {
        if !self.is_upgraded() {
            let name = self.cold().lasting.take();
            drop(name);
        }
    }

    fn release_body(&self) {
        // If nothing else of the exchange lives, nobody but us can tell the connection's task that
        // the connection rests.
        if self.alive.fetch_sub(1, AcqRel) == 1 {
            self.wake();
        }
    }

    /// Takes the body that the service dropped before its end.
    pub(crate) fn take_abandoned(&self) -> Option<Abandoned> {
        if !self.abandoned.load(Acquire) {
            return None;
        }
        self.abandoned.store(false, Relaxed);
        self.cold().abandoned.take()
    }

    /// Puts a body back that is not read to its end yet.
    pub(crate) fn keep_abandoned(&self, rest: Abandoned) {
        self.cold().abandoned = Some(rest);
        self.abandoned.store(true, Release);
    }

    /// The body that `exchange` left unread has been read to its end by us.
    pub(crate) fn body_discarded(&self, exchange: u64) {
        self.arrived.store(false, Relaxed);
        let _ = self.unread.compare_exchange(exchange, 0, AcqRel, Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Acquire)
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Acquire)
    }

    /// From now on the socket belongs to whoever asked for the upgrade, and [`Shared::cut`] must
    /// reach it there.
    pub(crate) fn upgrade(&self) {
        self.upgraded.store(true, Release);
    }

    /// Every use of the socket fails from now on, wherever it is.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Release);
        let mut cold = self.cold();
        let (returned, io) = (cold.returned.take(), std::mem::take(&mut cold.io));
        drop(cold);
        drop(returned);
        io.into_iter().flatten().for_each(Waker::wake);
    }

    /// Which request the connection was cut in, if any: one that was being answered, else one whose
    /// body or upgraded connection lived on.
    pub(crate) fn interrupted(&self) -> Option<String> {
        let mut cold = self.cold();
        let name = cold.interrupted.take();
        let lives_on = self.is_busy() || self.is_upgraded();
        name.or_else(|| cold.lasting.take().filter(|_| lives_on))
            .map(|name| name.to_string())
    }

    /// Waits for an upgraded connection's socket: `waker` is woken by [`Shared::cut`].
    pub(crate) fn register_io(&self, waker: &Waker, direction: Direction) {
        self.cold().io[direction as usize] = Some(waker.clone());
        // A cut that came before the registration has woken nobody.
        if self.is_cut() {
            waker.wake_by_ref();
        }
    }

    /// Gives the socket back to the connection's task; closes it if that is gone.
    pub(crate) fn give_back(&self, stream: Stream) {
        let mut cold = self.cold();
        if self.is_cut() {
            return;
        }
        cold.returned = Some(stream);
        drop(cold);
        self.wake();
    }

    /// Waits until the socket was given back.
    pub(crate) fn poll_returned(&self, cx: &Context<'_>) -> Poll<Stream> {
        let mut cold = self.cold();
        match cold.returned.take() {
            Some(stream) => Poll::Ready(stream),
            None => {
                cold.task = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The life of one exchange, from the head of its request to the last byte that the service gives.
struct Exchange {
    shared: Arc<Shared>,
    name: Name,
    number: u64,
    version: Version,
}

impl Exchange {
    fn begin<B>(shared: &Arc<Shared>, request: &Request<B>) -> Self {
        let number = shared.exchange() + 1;
        shared.exchange.store(number, Relaxed);
        shared.alive.fetch_add(1, Relaxed);
        // The head is complete; what is read from here on is body, or later.
        shared.arrived.store(false, Relaxed);
        Self {
            shared: Arc::clone(shared),
            name: Name {
                method: request.method().clone(),
                uri: request.uri().clone(),
            },
            number,
            version: request.version(),
        }
    }

    /// Says in the head of the answer what we know of the connection's end.
    fn settle<B>(&self, response: &mut Response<B>) {
        let status = response.status();
        let connects = self.name.method == Method::CONNECT && status.is_success();
        if status == StatusCode::SWITCHING_PROTOCOLS || connects {
            self.shared.cold().lasting = Some(self.name.clone());
            self.shared.upgrade();
            return;
        }
        // A body that was dropped and that we will not read either ends the connection.
        let is_unread =
            self.shared.unread.load(Acquire) == self.number && !self.shared.abandoned.load(Acquire);
        if self.shared.is_last_answer() || is_unread {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            // To a client of HTTP/1.0 hyper would add `keep-alive` to it, unless the answer is of
            // that version too.
            if self.version == Version::HTTP_10 {
                *response.version_mut() = Version::HTTP_10;
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.shared.is_cut() {
            self.shared.cold().interrupted = Some(self.name.clone());
        }
        self.shared.arrived.store(false, Relaxed);
        // Always within the connection's own task, which looks at the count when hyper returns.
        self.shared.alive.fetch_sub(1, Release);
    }
}

/// The service, as hyper sees it.
pub(crate) struct Watched<S> {
    service: S,
    shared: Arc<Shared>,
}

impl<S> Watched<S> {
    pub(crate) fn new(service: S, shared: Arc<Shared>) -> Self {
        Self { service, shared }
    }
}

impl<S, B> Service<Request<Incoming>> for Watched<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = Serving<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = Exchange::begin(&self.shared, &request);
        let expects_continue = request.headers().contains_key(header::EXPECT);
        let request = request.map(|body| RequestBody::new(body, &self.shared, expects_continue));
        if !request.body().is_end_stream() {
            self.shared.cold().lasting = Some(exchange.name.clone());
        }
        Serving {
            future: self.service.call(request),
            exchange: Some(exchange),
        }
    }
}

pin_project_lite::pin_project! {
    /// The service's future.
    pub(crate) struct Serving<F> {
        #[pin]
        future: F,
        exchange: Option<Exchange>,
    }
}

impl<F, B, E> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let exchange = this.exchange.take();
        if let Some(exchange) = &exchange {
            exchange.settle(&mut response);
        }
        Poll::Ready(Ok(response.map(|body| ResponseBody {
            body,
            _exchange: exchange,
        })))
    }
}

pin_project_lite::pin_project! {
    /// The response's body: the exchange lives as long as hyper has not dropped it.
    pub(crate) struct ResponseBody<B> {
        #[pin]
        body: B,
        _exchange: Option<Exchange>,
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
