//! The answers that wait to be written to one client.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Event, FLUSH_PATIENCE, MAX_EVENT_LEN, MAX_QUEUED_LEN};

/// One client's queue. Whoever fills it never waits; the client's own task empties it.
///
/// A `watch` channel because each change has up to two kinds of waiter (the writer, and
/// [`Server::flush`](super::Server::flush)), and none of them may miss one.
#[derive(Debug)]
pub(super) struct Outbox {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that the writer has not taken yet.
    pending: Vec<u8>,
    /// Bytes that the kernel has not taken yet: `pending`, and what the writer has in hand.
    queued: usize,
    /// Nothing more will be said.
    finished: bool,
    /// Nobody will read it: the client is gone, or too slow.
    lost: bool,
}

impl Outbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::new(State::default()),
        })
    }

    /// Whether the line was queued.
    pub(super) fn push(&self, event: &Event) -> bool {
        let mut line = match line_of(event) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(%error, "an event of the control socket could not be written as JSON");
                return true;
            }
        };
        let mut kept = false;
        self.state.send_modify(|state| {
            if state.lost {
                return;
            }
            // One line that the client has room for is no heap.
            if state.queued > 0 && state.queued + line.len() > MAX_QUEUED_LEN {
                state.lost = true;
                state.pending = Vec::new();
                return;
            }
            state.queued += line.len();
            state.pending.append(&mut line);
            kept = true;
        });
        kept
    }

    pub(super) fn finish(&self) {
        self.state.send_modify(|state| state.finished = true);
    }

    pub(super) fn give_up(&self) {
        self.state.send_modify(|state| {
            state.lost = true;
            state.pending = Vec::new();
        });
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state.borrow().lost
    }

    /// The next bytes to write; `None` when there will be none.
    pub(super) async fn take(&self) -> Option<Vec<u8>> {
        self.until(|state| state.lost || state.finished || !state.pending.is_empty())
            .await;
        let mut chunk = Vec::new();
        self.state.send_if_modified(|state| {
            if !state.lost {
                chunk = std::mem::take(&mut state.pending);
            }
            false
        });
        (!chunk.is_empty()).then_some(chunk)
    }

    /// `len` bytes of what was taken are with the kernel.
    pub(super) fn written(&self, len: usize) {
        self.state.send_modify(|state| state.queued -= len);
    }

    /// All that was queued so far is with the kernel, or lost.
    pub(super) async fn flushed(&self) {
        self.until(|state| state.lost || state.queued == 0).await;
    }

    /// The writer should not go on: the client is too slow, or too slow with its last lines.
    pub(super) async fn abandoned(&self) {
        self.until(|state| state.lost || state.finished).await;
        if !self.is_lost() {
            let _ = tokio::time::timeout(FLUSH_PATIENCE, self.until(|state| state.lost)).await;
        }
    }

    async fn until(&self, condition: impl FnMut(&State) -> bool) {
        // An error means that the sender is gone, and `self` holds it.
        let _ = self.state.subscribe().wait_for(condition).await;
    }
}

/// The event as its client reads it, or why it cannot: a client takes no line beyond its bound.
fn line_of(event: &Event) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    if line.len() >= MAX_EVENT_LEN {
        let length = line.len();
        tracing::error!(length, "an event of the control socket is too long");
        line = serde_json::to_vec(&Event::Refused {
            reason: format!("the answer has {length} bytes, and may have {MAX_EVENT_LEN}"),
        })?;
    }
    line.push(b'\n');
    Ok(line)
}

/// The way back to a client. Clones speak to the same client; when the last one is dropped, what is
/// queued is written and the connection closed.
#[derive(Clone, Debug)]
pub struct Reply {
    last: Arc<Last>,
}

#[derive(Debug)]
struct Last(Arc<Outbox>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Reply {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self {
            last: Arc::new(Last(outbox)),
        }
    }

    /// Queues one event; never blocks. Says whether the client is still there, so that a list of
    /// subscribers can be kept by `replies.retain(|reply| reply.send(&event))`.
    ///
    /// A client that lets [`MAX_QUEUED_LEN`] bytes pile up, in more than one line, is dropped. In place of a line of [`MAX_EVENT_LEN`]
    /// bytes or more it gets [`Event::Refused`].
    pub fn send(&self, event: &Event) -> bool {
        self.last.0.push(event)
    }

    /// Whether the client has gone, or was dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.last.0.is_lost()
    }
}
