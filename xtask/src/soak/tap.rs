//! Listens in on a connection: what its socket said last, and how much passed since a request began.
//!
//! hyper's errors name what hyper could not do (`IncompleteMessage`, `Canceled`), which
//! leaves open whether the server closed, reset, or never got the request. The [`Tap`]
//! stands between hyper and the (possibly delayed) socket and knows.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How the server's side of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order: FIN.
    Eof,
    /// RST, seen by reading or by writing.
    Reset,
    /// Any other error.
    Failed,
}

impl End {
    fn of(err: &io::Error) -> Self {
        match err.kind() {
            // EPIPE: the reset came earlier, and the error that told of it went elsewhere.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Failed,
        }
    }
}

/// What passed since a request began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bytes of the answer.
    pub(crate) read: u64,
    /// Bytes of the request. None: it was never sent, and nothing is lost.
    pub(crate) written: u64,
    /// How the connection ended, if it has.
    pub(crate) end: Option<End>,
}

/// Who is at fault if the connection ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A request is under way, or about to be: the exchange will notice.
    Busy,
    /// Between two requests: the server has no reason to close.
    Resting,
    /// Closed by the client or on its demand, or counted already.
    Over,
}

#[derive(Debug)]
struct State {
    seen: Seen,
    usage: Use,
}

/// What is known of one connection; shared by the [`Tap`], the exchange and the task that drives hyper.
#[derive(Debug)]
pub(crate) struct Record(Mutex<State>);

impl Record {
    /// Of a new connection, which is busy: it was opened for a request.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            seen: Seen::default(),
            usage: Use::Busy,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins: counts from here.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        state.seen = Seen {
            end: state.seen.end,
            ..Seen::default()
        };
        if state.usage == Use::Resting {
            state.usage = Use::Busy;
        }
    }

    /// What passed since [`begin`](Self::begin).
    pub(crate) fn seen(&self) -> Seen {
        self.state().seen
    }

    /// The answer is complete and the connection stays open.
    ///
    /// Returns how it ended if it has ended nevertheless; once per connection.
    pub(crate) fn rest(&self) -> Option<End> {
        let mut state = self.state();
        if state.usage != Use::Busy {
            // One that rests already is watched by the task that drives it.
            return None;
        }
        state.usage = if state.seen.end.is_some() {
            Use::Over
        } else {
            Use::Resting
        };
        state.seen.end
    }

    /// The connection is to end, or its end is counted: what comes now is nobody's fault.
    /// Returns whether this was news.
    pub(crate) fn give_up(&self) -> bool {
        let mut state = self.state();
        std::mem::replace(&mut state.usage, Use::Over) != Use::Over
    }

    /// The client lets go of the connection. If the server was faster, it stays at fault.
    pub(crate) fn let_go(&self) {
        let mut state = self.state();
        if state.seen.end.is_none() {
            state.usage = Use::Over;
        }
    }

    /// hyper is done with the connection: whether it was resting, so that the server is at fault.
    pub(crate) fn finish(&self) -> bool {
        let mut state = self.state();
        let resting = state.usage == Use::Resting;
        if resting {
            state.usage = Use::Over;
        }
        resting
    }

    fn ended(&self, end: End) {
        // The first word counts: after a reset the kernel reports an ordinary end.
        self.state().seen.end.get_or_insert(end);
    }
}

/// The socket as hyper sees it, overheard.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    socket: S,
    record: Arc<Record>,
}

impl<S> Tap<S> {
    /// Notes in `record` what passes `socket`.
    pub(crate) fn new(socket: S, record: Arc<Record>) -> Self {
        Self { socket, record }
    }

    /// Stops listening in.
    pub(crate) fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (out.filled().len(), out.remaining() > 0);
        let polled = Pin::new(&mut self.socket).poll_read(cx, out);
        match &polled {
            Poll::Ready(Ok(())) if out.filled().len() > before => {
                self.record.state().seen.read += (out.filled().len() - before) as u64;
            }
            Poll::Ready(Ok(())) if room => self.record.ended(End::Eof),
            Poll::Ready(Err(err)) => self.record.ended(End::of(err)),
            _ => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, bytes);
        match &polled {
            Poll::Ready(Ok(n)) => self.record.state().seen.written += *n as u64,
            Poll::Ready(Err(err)) => self.record.ended(End::of(err)),
            Poll::Pending => {}
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn counts_from_the_beginning_of_a_request() {
        let (near, mut far) = tokio::io::duplex(64);
        let record = Record::new();
        let mut tap = Tap::new(near, Arc::clone(&record));
        tap.write_all(b"one").await.unwrap();
        record.begin();
        assert_eq!(record.seen(), Seen::default());
        tap.write_all(b"four").await.unwrap();
        far.write_all(b"five!").await.unwrap();
        tap.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(
            record.seen(),
            Seen {
                read: 5,
                written: 4,
                end: None
            }
        );
        drop(far);
        assert_eq!(tap.read(&mut [0; 5]).await.unwrap(), 0);
        assert_eq!(record.seen().end, Some(End::Eof));
    }

    #[test]
    fn an_end_is_reported_once() {
        let record = Record::new();
        assert_eq!(record.rest(), None);
        record.begin();
        record.ended(End::Reset);
        record.ended(End::Eof);
        assert!(!record.finish(), "the exchange will notice");
        assert_eq!(record.rest(), Some(End::Reset));
        assert_eq!(record.rest(), None);
        assert!(!record.finish());
    }

    #[test]
    fn only_a_resting_connection_is_closed_for_nothing() {
        let resting = Record::new();
        resting.rest();
        assert!(resting.finish());
        let given_up = Record::new();
        given_up.rest();
        assert!(given_up.give_up());
        assert!(!given_up.finish());
        let let_go = Record::new();
        let_go.rest();
        let_go.let_go();
        assert!(!let_go.finish());
        let closed_first = Record::new();
        closed_first.rest();
        closed_first.ended(End::Eof);
        closed_first.let_go();
        assert!(closed_first.finish());
    }
}
