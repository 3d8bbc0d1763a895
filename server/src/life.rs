//! One connection, step by step: what [`serve`](crate::connection::serve) drives.
//!
//! hyper is polled first and judged afterwards, always: what has arrived is served before an order
//! or a timeout counts.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1::UpgradeableConnection;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};
use tracing::debug;

use crate::body::Discarded;
use crate::clock::{Clock, Spent};
use crate::connection::{Answer, Busy, Carried, Config, End, Order, Rested, unless_cut};
use crate::exchange::{Shared, Watched};
use crate::farewell::InHyper;
use crate::io::{AskKernel, Io, Stream};
use crate::linger::{linger, request_timeout};
use crate::session::Session;
use crate::upgrade::Begun;
use crate::websocket::{GOING_AWAY, SERVICE_RESTART};

/// What [`Life::poll`] asks for.
#[derive(Debug)]
pub(crate) enum Step {
    /// There is a new order.
    Ordered,
    /// This request keeps the connection from what was ordered.
    Busy(String),
    /// hyper is done with the connection.
    Ended,
    /// The connection rests, and is to be given up.
    GiveUp,
    /// The connection rests, and is to be closed unless something has arrived.
    Close,
    /// A timeout has passed, or may have.
    TimeOut,
}

/// What becomes of a connection whose timeout may have passed.
pub(crate) enum Verdict<S> {
    /// It is served on.
    Stays,
    /// It rests, and nothing was read ahead: hyper is not needed until the client speaks.
    Sleeps {
        stream: Stream,
        spent: Spent,
        service: S,
    },
    Ends(Goodbye),
}

/// A socket to be closed, and what to say before.
pub(crate) struct Goodbye {
    pub(crate) stream: Stream,
    pub(crate) words: Vec<u8>,
}

type Http<S> = UpgradeableConnection<TokioIo<Io>, Watched<S>>;

/// A connection that was taken apart.
struct Parts<S> {
    stream: Stream,
    /// All that was read and not understood, in the order in which it came.
    leftover: Bytes,
    service: Watched<S>,
}

/// A connection that is being served.
pub(crate) struct Life<'a, S: Answer> {
    config: &'a Config,
    /// `None` while it is taken apart, and at its end.
    http: Option<Http<S>>,
    shared: Arc<Shared>,
    order: Order,
    /// A request was under way when the order came.
    was_busy: bool,
    /// Whoever ordered knows what is under way.
    is_named: bool,
    clock: Clock,
    /// What the tokio timer is set to: never later than the clock's deadline while that matters.
    timer_set_to: Instant,
    /// The timer will wake `task`.
    timer_is_watched: bool,
    /// The task that was told to the timer and to `shared`.
    task: Option<Waker>,
}

impl<'a, S: Answer> Life<'a, S> {
    pub(crate) fn begin(stream: Stream, carried: Carried, service: S, config: &'a Config) -> Self {
        let shared = Shared::new();
        let mut clock = Clock::resume(carried.spent, shared.exchange());
        if !carried.leftover.is_empty() {
            clock.head_begins(Instant::now());
        }
        clock.arrives(config);
        let timer_set_to = clock.deadline(config);
        let mut life = Self {
            config,
            http: None,
            shared: Arc::clone(&shared),
            order: Order::Serve,
            was_busy: false,
            is_named: true,
            clock,
            timer_set_to,
            timer_is_watched: false,
            task: None,
        };
        life.assemble(Parts {
            stream,
            leftover: carried.leftover,
            service: Watched::new(service, shared),
        });
        life
    }

    /// What the timer must be set to at first.
    pub(crate) fn first_deadline(&self) -> Instant {
        self.timer_set_to
    }

    pub(crate) fn obey(&mut self, order: Order) {
        if std::mem::replace(&mut self.order, order) != order {
            self.was_busy = self.shared.is_busy();
            self.is_named = order == Order::Serve || !self.was_busy;
            if !self.is_named {
                self.shared.ask();
            }
        }
        self.shared.obey(order);
    }

    /// What the watch on orders is to wake.
    pub(crate) fn order_waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.shared))
    }

    /// Polls hyper, then judges what it has left behind.
    ///
    /// `ordered` says whether there is a new order, and wakes [`Life::order_waker`] when there is.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: Pin<&mut Sleep>,
        ordered: &mut impl FnMut() -> bool,
    ) -> Poll<Step> {
        let is_new = self
            .task
            .as_ref()
            .is_none_or(|task| !task.will_wake(cx.waker()));
        if is_new {
            self.task = Some(cx.waker().clone());
            self.shared.register(cx.waker());
            self.timer_is_watched = false;
        }
        if self.shared.take_ordered() && ordered() {
            return Poll::Ready(Step::Ordered);
        }
        loop {
            let Some(http) = &mut self.http else {
                return Poll::Ready(Step::Ended);
            };
            let in_hyper = InHyper::enter(&self.shared);
            let polled = Pin::new(http).poll(cx);
            drop(in_hyper);
            if let Poll::Ready(result) = polled {
                if let Err(error) = result {
                    debug!(%error, "connection ended");
                }
                return Poll::Ready(Step::Ended);
            }
            if !self.discard(cx) {
                return self.judge(cx, timer);
            }
        }
    }

    /// Reads on in a body that the service dropped before its end; true if hyper must be polled
    /// again because of that.
    fn discard(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(rest) = self.shared.take_abandoned() else {
            return false;
        };
        let exchange = rest.exchange();
        if exchange != self.shared.exchange() {
            return false; // hyper has found its end by itself
        }
        match rest.discard(cx) {
            Discarded::Whole => self.shared.body_discarded(exchange),
            Discarded::More(rest) => self.shared.keep_abandoned(rest),
            Discarded::GaveUp => {}
        }
        true
    }

    /// hyper has nothing to do: does the connection rest, and what follows from it?
    fn judge(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Step> {
        let shared = &*self.shared;
        // Condition 1, and the half of 3 that passes. Asked first: an unread body is noted before
        // it ceases to be counted.
        if shared.is_busy() {
            self.clock.pause();
            if !self.is_named
                && let Some(name) = shared.take_told()
            {
                self.is_named = true;
                return Poll::Ready(Step::Busy(name));
            }
            return Poll::Pending;
        }
        // Condition 2. hyper writes what is left, or shuts down, and no timeout runs meanwhile.
        if shared.write_blocked.load(Relaxed) || shared.shut_down.load(Relaxed) {
            self.clock.pause();
            return Poll::Pending;
        }
        let now = Instant::now();
        let arrived = shared.arrived.load(Relaxed);
        self.clock.rest(now, shared.exchange(), arrived);
        match self.order {
            Order::HandOver if self.may_move() => return Poll::Ready(Step::GiveUp),
            // Once part of a head is known to be there, it is waited for (and times out). What has come may be blank lines,
            // which only a look can tell.
            Order::Close if !self.clock.has_head() => return Poll::Ready(Step::Close),
            Order::Close if self.may_move() && !self.clock.is_at_a_head() => {
                return Poll::Ready(Step::Close);
            }
            _ => {}
        }
        self.poll_deadline(cx, timer, now).map(|()| Step::TimeOut)
    }

    /// The rest of condition 3, and 4, of a connection that is not busy.
    fn may_move(&self) -> bool {
        !self.shared.is_tainted() && !self.shared.ended.load(Relaxed)
    }

    /// Ready when the clock's deadline has passed. The timer is left alone while it is set to an
    /// earlier time and watched by the task: that is the case for almost every request.
    fn poll_deadline(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        now: Instant,
    ) -> Poll<()> {
        let deadline = self.clock.deadline(self.config);
        if deadline <= now {
            return Poll::Ready(());
        }
        if deadline < self.timer_set_to || self.timer_set_to <= now {
            timer.as_mut().reset(deadline);
            self.timer_set_to = deadline;
            self.timer_is_watched = false;
        }
        if !self.timer_is_watched {
            // Unconstrained: `Pending` must mean that the task will be woken by the timer.
            let is_watched = Pin::new(&mut unconstrained(timer)).poll(cx).is_pending();
            if !is_watched {
                // It fired a moment early, by tokio's rounding. It will not wake anybody again.
                cx.waker().wake_by_ref();
            }
            self.timer_is_watched = is_watched;
        }
        Poll::Pending
    }

    /// Takes the connection away from hyper. `None` after an upgrade.
    fn take_apart(&mut self) -> Option<Parts<S>> {
        let parts = self.http.take()?.into_parts()?;
        let (stream, unread) = parts.io.into_inner().into_parts()?;
        let mut leftover = join(parts.read_buf, &unread);
        if !begins_request(&leftover) {
            // Kept, they would be taken for what has just come.
            leftover.clear();
        }
        self.shared.arrived.store(false, Relaxed);
        Some(Parts {
            stream,
            leftover,
            service: parts.service,
        })
    }

    /// Gives the connection to hyper.
    fn assemble(&mut self, parts: Parts<S>) {
        let io = Io::new(parts.stream, parts.leftover, Arc::clone(&self.shared));
        let http = self.config.http();
        let http = http.serve_connection(TokioIo::new(io), parts.service);
        self.http = Some(http.with_upgrades());
    }

    pub(crate) fn give_up(mut self) -> End {
        let Some(parts) = self.take_apart() else {
            return End::Closed;
        };
        let spent = self.clock.spent(begins_request(&parts.leftover));
        match parts.stream.into_fd() {
            Ok(socket) => End::GivenUp(Rested {
                socket,
                carried: Carried {
                    leftover: parts.leftover,
                    spent,
                },
                answered: self.was_busy,
            }),
            Err(error) => {
                debug!(%error, "connection lost: cannot be taken out of epoll");
                End::Closed
            }
        }
    }

    /// Closes a connection at rest, unless part of a request has arrived.
    pub(crate) fn close(&mut self) -> Option<Goodbye> {
        let may_move = self.may_move();
        let parts = self.take_apart()?;
        let has_come = begins_request(&parts.leftover) || parts.stream.peeks(begins_request);
        if may_move && has_come {
            // Known by now, so that this is asked only once for each request.
            self.clock.head_begins(Instant::now());
            self.assemble(parts);
            return None;
        }
        Some(Goodbye {
            stream: parts.stream,
            words: Vec::new(),
        })
    }

    /// A timeout of a connection at rest may have passed: closes it if it has.
    pub(crate) fn time_out(&mut self) -> Verdict<S> {
        let may_move = self.may_move();
        let now = Instant::now();
        if !may_move {
            // It could not be put together again: leave it alone until it is late for certain.
            self.clock.cannot_look();
            if self.clock.deadline(self.config) > now {
                return Verdict::Stays;
            }
        }
        let Some(parts) = self.take_apart() else {
            return Verdict::Stays;
        };
        if begins_request(&parts.leftover) {
            self.clock.head_found();
        } else {
            self.clock.nothing_found();
        }
        let is_late = self.clock.deadline(self.config) <= now;
        // What came in time is served, even if we were stopped and look late.
        let is_saved = is_late && parts.stream.peeks(begins_request) && self.clock.grant_grace(now);
        if may_move && !is_late && !self.clock.has_head() && parts.leftover.is_empty() {
            return Verdict::Sleeps {
                stream: parts.stream,
                spent: self.clock.spent(false),
                service: parts.service.into_inner(),
            };
        }
        if may_move && (!is_late || is_saved) {
            self.assemble(parts);
            return Verdict::Stays;
        }
        let words = if self.clock.has_head() {
            request_timeout()
        } else {
            Vec::new()
        };
        Verdict::Ends(Goodbye {
            stream: parts.stream,
            words,
        })
    }

    /// hyper is done: closes the socket without a reset, or waits for an upgraded connection's end.
    pub(crate) async fn end(mut self, orders: &mut watch::Receiver<Order>, busy: &Busy<'_>) -> End {
        let stream = if let Some(parts) = self.take_apart() {
            parts.stream
        } else {
            let shared = Arc::clone(&self.shared);
            if let Some(session) = begun(&shared).await {
                return End::Upgraded(session);
            }
            self.shared.upgrade();
            match until_returned(&shared, orders, busy).await {
                Some(stream) => stream,
                None => return self.cut(),
            }
        };
        // The client that has closed its side sends nothing that could cause a reset.
        if !self.shared.ended.load(Relaxed) {
            drop(self);
            unless_cut(orders, Box::pin(linger(stream, Vec::new()))).await;
        }
        End::Closed
    }

    pub(crate) fn cut(mut self) -> End {
        self.shared.cut();
        // Drops the exchange, which says its name.
        self.http = None;
        End::Cut {
            request: self.shared.interrupted(),
        }
    }
}

impl<S: Answer> Drop for Life<'_, S> {
    /// Nobody is there to take the socket back any more. A request body that lives on elsewhere
    /// must not keep it open, and an upgraded connection's application must hear of it.
    fn drop(&mut self) {
        self.shared.cut();
    }
}

/// Waits for the end of a connection that the application uses, and has its client told when the process drains. `None` if it is to be cut.
async fn until_returned(
    shared: &Shared,
    orders: &mut watch::Receiver<Order>,
    busy: &Busy<'_>,
) -> Option<Stream> {
    loop {
        let order = *orders.borrow_and_update();
        if order != Order::Serve
            && let Some(request) = shared.lasting()
        {
            busy(&request);
        }
        match order {
            Order::Serve => {}
            Order::HandOver | Order::LastAnswer => shared.bid_farewell(SERVICE_RESTART),
            Order::Close => shared.bid_farewell(GOING_AWAY),
            Order::Cut => return None,
        }
        let changed = async {
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            stream = std::future::poll_fn(|cx| shared.poll_returned(cx)) => return Some(stream),
            () = changed => {}
        }
    }
}

/// What the application begins on the connection that hyper has left, if it is a protocol that we serve.
async fn begun(shared: &Shared) -> Option<Session> {
    let Begun { protocol, upgrade } = shared.take_begun()?;
    // hyper has kept its promise already; or it was for an earlier request, which was answered otherwise.
    let parts = upgrade.await.ok()?.downcast::<TokioIo<Io>>().ok()?;
    let (stream, unread) = parts.io.into_inner().into_parts()?;
    Some(Session {
        protocol,
        request: shared.lasting().unwrap_or_default(),
        stream,
        leftover: join(parts.read_buf, &unread),
        resumed: None,
    })
}

/// What hyper has read, and what it has not: it takes a long leftover in pieces.
fn join(read: Bytes, unread: &[u8]) -> Bytes {
    if unread.is_empty() {
        return read;
    }
    let mut whole = BytesMut::from(read);
    whole.extend_from_slice(unread);
    whole.freeze()
}

/// Whether `leftover` holds part of a request. Blank lines before a request line mean nothing
/// (RFC 9112, section 2.2).
fn begins_request(leftover: &[u8]) -> bool {
    leftover.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
}
