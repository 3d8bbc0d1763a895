//! What the parts of one connection know of each other.
//!
//! hyper owns the service's future and the response's body, the application owns the request's body,
//! and the connection's task must know of all of them whether they still live. [`Shared`] is where
//! they meet: one allocation for the life of a connection, a few atomics for each request.

use std::fmt;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use http::uri::PathAndQuery;
use http::{Method, Request};

use crate::body::Abandoned;
use crate::connection::Order;
use crate::io::Stream;
use crate::upgrade::Begun;

/// What the parts of one connection know of each other.
///
/// Where nothing else is said, only the connection's own task reads and writes a field (hyper's io
/// and service run in it); it is atomic because it is shared, not because it is contended. What
/// decides over giving a connection up is `alive` and `unread`; they are ordered, and read in that
/// order.
///
/// Laid out in this order, so that what is used for every request shares a cache line.
#[repr(C)]
pub(crate) struct Shared {
    /// The exchange that began last. Before the first one it is 1, so that 0 means none.
    exchange: AtomicU64,
    /// The last exchange whose request body was dropped before its end; 0 if there is none.
    /// Written by any thread, never to a smaller number but 0.
    unread: AtomicU64,
    /// How many service futures, response bodies and unfinished request bodies live. Request bodies
    /// are counted down by any thread.
    alive: AtomicU32,
    /// The [`Order`] in force, as a number.
    order: AtomicU8,
    /// [`Cold::abandoned`] is worth a look. Written by any thread.
    abandoned: AtomicBool,
    /// The watch on orders has something to say. Written by any thread.
    ordered: AtomicBool,
    /// The connection was cut, or its task is gone. Read by any thread.
    cut: AtomicBool,
    /// The connection's protocol was switched. Read by any thread.
    upgraded: AtomicBool,
    /// The application speaks WebSocket on it. Read by any thread.
    websocket: AtomicBool,
    /// What the client of an upgraded connection is to be told, as the code of a Close frame; 0 if nothing. Read by any thread.
    farewell: AtomicU16,
    /// Bytes were read since an exchange, or a part of one, began or ended. A hint for the header
    /// timeout: a body that ends in another thread may clear it late.
    pub(crate) arrived: AtomicBool,
    /// The client's end of stream, or an error, was read.
    pub(crate) ended: AtomicBool,
    /// The last write or flush could not be completed.
    pub(crate) write_blocked: AtomicBool,
    /// The writing side was, or is being, shut down.
    pub(crate) shut_down: AtomicBool,
    /// The exchange under way is to say its name.
    asked: AtomicBool,
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
    /// The request that is under way, if that was asked.
    told: Option<Name>,
    /// The request that was under way when the connection was cut.
    interrupted: Option<Name>,
    /// The socket, given back by the last who held it.
    returned: Option<Stream>,
    /// What is to begin on the connection when hyper has left it.
    begun: Option<Begun>,
}

/// Which half of a socket somebody waits for.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read = 0,
    Write = 1,
}

/// How a request is called in reports: method and path, without its query (which may hold secrets).
///
/// Small, because it is copied for each request.
#[derive(Clone)]
pub(crate) struct Name {
    method: Method,
    /// `None` for CONNECT, which has no path.
    path: Option<PathAndQuery>,
}

impl Name {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            path: request.uri().path_and_query().cloned(),
        }
    }

    pub(crate) fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} {}", self.method, path.path()),
            None => write!(f, "{}", self.method),
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
            ordered: AtomicBool::new(true),
            cut: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            websocket: AtomicBool::new(false),
            farewell: AtomicU16::new(0),
            arrived: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            shut_down: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            cold: Mutex::default(),
        })
    }

    fn cold(&self) -> MutexGuard<'_, Cold> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the watch on orders is to be polled; it was woken, or has never been polled.
    pub(crate) fn take_ordered(&self) -> bool {
        let ordered = self.ordered.load(Acquire);
        if ordered {
            self.ordered.store(false, Release);
        }
        ordered
    }

    /// Makes `order` known to the answers that are yet to be given.
    pub(crate) fn obey(&self, order: Order) {
        self.order.store(order as u8, Relaxed);
        // There is a new future that waits for the next one.
        self.ordered.store(true, Release);
    }

    /// Whether an answer given now is the last one of its connection.
    pub(crate) fn is_last_answer(&self) -> bool {
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

    fn wake_task(&self) {
        let task = self.cold().task.clone();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// An exchange begins: the head of its request is complete. Gives its number.
    pub(crate) fn exchange_begins(&self) -> u64 {
        let number = self.exchange() + 1;
        self.exchange.store(number, Relaxed);
        self.alive.fetch_add(1, Relaxed);
        // What is read from here on is body, or later.
        self.arrived.store(false, Relaxed);
        number
    }

    /// hyper has all of the answer (or lost interest). Only within the connection's own task, which
    /// looks at the count when hyper returns.
    pub(crate) fn exchange_ends(&self, name: &Name) {
        if self.is_cut() {
            self.cold().interrupted = Some(name.clone());
        }
        self.arrived.store(false, Relaxed);
        self.alive.fetch_sub(1, Release);
    }

    /// A request body with bytes begins its life.
    pub(crate) fn body_begins(&self) {
        self.alive.fetch_add(1, Relaxed);
    }

    /// `name` may outlive its answer: its body, or the upgraded connection.
    pub(crate) fn may_last(&self, name: &Name) {
        self.cold().lasting = Some(name.clone());
    }

    /// Whether the request body of `exchange` was dropped, and nobody reads on in it.
    pub(crate) fn is_unread(&self, exchange: u64) -> bool {
        self.unread.load(Acquire) == exchange && !self.abandoned.load(Acquire)
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
        self.wake_task();
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
            self.wake_task();
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

    /// What is spoken after the upgrade has frames that can be followed.
    pub(crate) fn speaks_websocket(&self) {
        self.websocket.store(true, Release);
    }

    pub(crate) fn is_websocket(&self) -> bool {
        self.websocket.load(Acquire)
    }

    /// The client of an upgraded connection is to be told by a Close frame with this code.
    pub(crate) fn bid_farewell(&self, code: u16) {
        self.farewell.store(code, Release);
        let io = std::mem::take(&mut self.cold().io);
        io.into_iter().flatten().for_each(Waker::wake);
    }

    /// What the client is to be told, if anything.
    pub(crate) fn farewell(&self) -> Option<u16> {
        Some(self.farewell.load(Acquire)).filter(|code| *code != 0)
    }

    /// `begun` is to follow the answer to the request under way, if that answer switches protocols.
    pub(crate) fn begin(&self, begun: Begun) {
        let before = self.cold().begun.replace(begun);
        drop(before); // not under the lock: it may wake
    }

    /// Takes what was to follow.
    pub(crate) fn take_begun(&self) -> Option<Begun> {
        self.cold().begun.take()
    }

    /// The request that an upgraded connection began with.
    pub(crate) fn lasting(&self) -> Option<String> {
        self.cold().lasting.as_ref().map(Name::to_string)
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

    /// Wants to know which request is under way: the exchange says it when it is polled next. No name is kept for
    /// each request on the chance that somebody asks.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Answers [`Shared::ask`].
    pub(crate) fn tell(&self, name: &Name) {
        self.asked.store(false, Relaxed);
        self.cold().told = Some(name.clone());
    }

    /// The answer, once: of the exchange, else of a body that lives on.
    pub(crate) fn take_told(&self) -> Option<String> {
        let mut cold = self.cold();
        let name = cold.told.take().or_else(|| cold.lasting.clone());
        name.map(|name| name.to_string())
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
        self.wake_task();
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

/// As a waker, [`Shared`] is what the watch on orders wakes.
///
/// Polling that watch takes a lock that all connections of the process take, so it is not done at
/// every request. That it has no new version to show does not mean that it need not be polled: it
/// may have been woken for a version that was seen already, and waits for nothing then.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ordered.store(true, Release);
        self.wake_task();
    }
}
