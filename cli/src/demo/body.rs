//! What the demo answers: something short, or lines or events at a pace.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

pub(crate) enum DemoBody {
    Full(Option<Bytes>),
    Stream(Pin<Box<Stream>>),
    Events(Pin<Box<Events>>),
}

/// Server-sent events, one at each tick, until the process drains. See the HTML standard, section 9.2.
pub(crate) struct Events {
    /// Of the event that comes next.
    id: u64,
    generation: u64,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    /// `None` when the end was said.
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    has_begun: bool,
}

/// `chunk 1` … `chunk N`, then `end`, a pause before each but the first.
pub(crate) struct Stream {
    sent: u64,
    chunks: u64,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    /// Called when the last line has been taken; a stream that is cut is no answer.
    at_end: Option<Box<dyn FnOnce() + Send>>,
}

impl DemoBody {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes))
    }

    pub(super) fn stream(
        chunks: u64,
        pause: Duration,
        at_end: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self::Stream(Box::pin(Stream {
            sent: 0,
            chunks,
            pause,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            at_end: Some(Box::new(at_end)),
        }))
    }
}

impl DemoBody {
    /// Events from number `id` on, the first at once; ended when `draining` is ready.
    pub(super) fn events(
        id: u64,
        generation: u64,
        pause: Duration,
        draining: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self::Events(Box::pin(Events {
            id,
            generation,
            pause,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            draining: Some(Box::pin(draining)),
            has_begun: false,
        }))
    }
}

impl Events {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(draining) = &mut self.draining else {
            return Poll::Ready(None);
        };
        if !std::mem::replace(&mut self.has_begun, true) {
            // How soon the client comes back after the end, in milliseconds.
            return Poll::Ready(Some(Bytes::from_static(b"retry: 100\n\n")));
        }
        if draining.as_mut().poll(context).is_ready() {
            self.draining = None;
            return Poll::Ready(None);
        }
        ready!(self.timer.as_mut().poll(context));
        self.timer.as_mut().reset(Instant::now() + self.pause);
        let event = format!("id: {}\ndata: {}\n\n", self.id, self.generation);
        self.id = self.id.saturating_add(1);
        Poll::Ready(Some(event.into()))
    }
}

impl Default for DemoBody {
    fn default() -> Self {
        Self::Full(None)
    }
}

impl From<String> for DemoBody {
    fn from(text: String) -> Self {
        Self::full(text.into())
    }
}

impl Stream {
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.at_end.is_none() {
            return Poll::Ready(None);
        }
        if self.sent > 0 && !self.pause.is_zero() {
            ready!(self.timer.as_mut().poll(context));
        }
        self.sent += 1;
        if self.sent <= self.chunks {
            // From now, not from the last deadline: a slow reader is not sent a burst afterwards.
            self.timer.as_mut().reset(Instant::now() + self.pause);
            return Poll::Ready(Some(format!("chunk {}\n", self.sent).into()));
        }
        if let Some(at_end) = self.at_end.take() {
            at_end();
        }
        Poll::Ready(Some(Bytes::from_static(b"end\n")))
    }
}

impl Body for DemoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Full(bytes) => bytes.take(),
            Self::Stream(stream) => ready!(stream.as_mut().get_mut().poll_line(context)),
            Self::Events(events) => ready!(events.as_mut().get_mut().poll_event(context)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.at_end.is_none(),
            Self::Events(events) => events.draining.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) | Self::Events(_) => SizeHint::default(),
        }
    }
}
