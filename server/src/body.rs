//! The body of a request, as the service gets it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::exchange::Shared;
use crate::service::ConnectionInfo;

/// The most that is read and thrown away of a body that the service did not read, in bytes.
///
/// Reading such a rest keeps a connection alive (and lets it be handed over) where the service
/// answered without looking at a small body. Beyond this, closing is cheaper than reading.
pub(crate) const DISCARD_MAX: u64 = 64 * 1024;

/// How often hyper is asked for more of such a rest: many small chunks are not worth the time either.
const DISCARD_ROUNDS: u32 = 256;

/// The body of a request: `hyper::body::Incoming`, and the knowledge whether it was read to its end.
///
/// Whoever would take a connection over while part of a body is still unread would take that part
/// for the next request. So a connection stays where it is as long as the body of its request is
/// alive anywhere, and one that was dropped before its end forbids the move.
#[must_use = "a body does nothing unless it is read"]
pub struct RequestBody {
    /// `None` for a body that never had any bytes, and after `drop`.
    incoming: Option<Incoming>,
    /// Keeps the connection in its place. `None` once the end was seen.
    hold: Option<Hold>,
    connection: Option<Arc<ConnectionInfo>>,
}

/// One request body that has not been read to its end.
pub(crate) struct Hold {
    shared: Arc<Shared>,
    /// The exchange that the body belongs to.
    exchange: u64,
    expects_continue: bool,
    /// Reading gave an error: what follows in the connection is not known.
    failed: bool,
}

/// A body that the service dropped before its end, on its way to being read to its end after all.
pub(crate) struct Abandoned {
    incoming: Incoming,
    exchange: u64,
    /// Bytes thrown away so far.
    discarded: u64,
    /// Looks taken so far.
    rounds: u32,
    /// hyper has been polled since the last look, and had nothing new.
    starved: bool,
}

/// What became of an [`Abandoned`] body.
pub(crate) enum Discarded {
    /// It was read to its end: the connection is at the start of the next request.
    Whole,
    /// More may be had by polling hyper.
    More(Abandoned),
    /// The rest is too long, has not arrived, or is broken. hyper must be polled to find it dropped.
    GaveUp,
}

impl RequestBody {
    /// A body without bytes, for requests that do not come from a connection.
    pub fn empty() -> Self {
        Self {
            incoming: None,
            hold: None,
            connection: None,
        }
    }

    /// Wraps a body, which is already at its end if there is no `hold`.
    pub(crate) fn new(incoming: Incoming, hold: Option<Hold>) -> Self {
        Self {
            incoming: Some(incoming),
            hold,
            connection: None,
        }
    }

    pub(crate) fn came_on(&mut self, connection: Arc<ConnectionInfo>) {
        self.connection = Some(connection);
    }

    /// The connection that the request came on; `None` if it came from none.
    pub fn connection(&self) -> Option<&ConnectionInfo> {
        self.connection.as_deref()
    }
}

impl Hold {
    /// Holds the connection for the body of the exchange that has just begun in `shared`.
    ///
    /// `expects_continue`: the client waits for `100 Continue` before it sends the body.
    pub(crate) fn new(shared: &Arc<Shared>, expects_continue: bool) -> Self {
        shared.body_begins();
        Self {
            shared: Arc::clone(shared),
            exchange: shared.exchange(),
            expects_continue,
            failed: false,
        }
    }
}

impl Default for RequestBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("ended", &self.hold.is_none())
            .finish_non_exhaustive()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        match &frame {
            // An end that follows an error is not the end of the body.
            None if this.hold.as_ref().is_some_and(|hold| hold.failed) => {}
            None => this.end(),
            Some(Ok(frame)) if frame.is_trailers() || incoming.is_end_stream() => this.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                if let Some(hold) = &mut this.hold {
                    hold.failed = true;
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl RequestBody {
    /// The end was seen: hyper stands at the start of the next request, or will once it has answered.
    fn end(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.shared.body_ends();
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let (Some(incoming), Some(hold)) = (self.incoming.take(), self.hold.take()) else {
            return;
        };
        let hopeless = hold.failed
            // Reading on would make hyper ask the client for the body.
            || hold.expects_continue
            || incoming.size_hint().lower() > DISCARD_MAX;
        let rest = (!hopeless).then(|| Abandoned {
            incoming,
            exchange: hold.exchange,
            discarded: 0,
            rounds: 0,
            starved: false,
        });
        hold.shared.body_abandoned(hold.exchange, rest);
    }
}

impl Abandoned {
    pub(crate) fn exchange(&self) -> u64 {
        self.exchange
    }

    /// Throws away what hyper has put into the body since the last look.
    pub(crate) fn discard(mut self, cx: &mut Context<'_>) -> Discarded {
        let mut progress = false;
        self.rounds += 1;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(None) => return Discarded::Whole,
                Poll::Ready(Some(Err(_))) => return Discarded::GaveUp,
                Poll::Ready(Some(Ok(frame))) => {
                    progress = true;
                    if frame.is_trailers() || self.incoming.is_end_stream() {
                        return Discarded::Whole;
                    }
                    self.discarded += frame.data_ref().map_or(0, |data| data.len() as u64);
                    if self.discarded > DISCARD_MAX {
                        return Discarded::GaveUp;
                    }
                }
                // hyper holds one chunk at a time: only a poll of hyper that brought nothing
                // shows that nothing more has arrived.
                Poll::Pending if self.rounds < DISCARD_ROUNDS && (progress || !self.starved) => {
                    self.starved = !progress;
                    return Discarded::More(self);
                }
                Poll::Pending => return Discarded::GaveUp,
            }
        }
    }
}
