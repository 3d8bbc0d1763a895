//! The socket of a connection, and the wrapper through which hyper sees it.
//!
//! hyper does not say whether it has flushed, shut down, or met the client's end of stream; whoever
//! wants to give a connection up must know all three. [`Io`] notes them in the connection's
//! [`Shared`] as they pass. It also puts bytes that another hyper instance had read ahead in front
//! of the socket, and gives the socket back when whoever held it (an upgraded connection's
//! application, for instance) lets go of it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::exchange::{Direction, Shared};
use crate::farewell::{InHyper, Outgoing};

pub(crate) use handoff::Stream;

/// What lies in the kernel's receive queue of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Nothing, and the client may still send.
    Empty,
    /// At least one byte.
    Bytes,
    /// The client's end of stream, or an error: no byte will come any more.
    Ended,
}

/// What the kernel knows of a connection, where tokio only knows what epoll has told.
pub(crate) trait AskKernel {
    /// Ready when the client has sent something, or its end, or an error is to be found.
    ///
    /// tokio's readiness alone does not say so: of a connection that was just accepted it believes, unasked, that
    /// it can be read.
    fn poll_spoken(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Looks into the receive queue without taking anything out of it.
    ///
    /// A request that came a microsecond ago must not be taken for silence.
    fn queue(&self) -> Queue;

    /// Whether the first bytes of the receive queue, some at least, are like this. They stay there.
    fn peeks(&self, like: impl FnOnce(&[u8]) -> bool) -> bool;
}

impl AskKernel for Stream {
    fn poll_spoken(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let ready = match self {
                Self::Tcp(stream) => ready!(stream.poll_read_ready(cx)),
                Self::Unix(stream) => ready!(stream.poll_read_ready(cx)),
            };
            let peek = || match self.queue() {
                Queue::Empty => Err(io::ErrorKind::WouldBlock.into()),
                Queue::Bytes | Queue::Ended => Ok(()),
            };
            // Makes tokio forget what it believed.
            let spoken = match self {
                Self::Tcp(stream) => stream.try_io(Interest::READABLE, peek),
                Self::Unix(stream) => stream.try_io(Interest::READABLE, peek),
            };
            if ready.is_err() || spoken.is_ok() {
                return Poll::Ready(());
            }
        }
    }

    fn queue(&self) -> Queue {
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self, &mut byte, flags) {
            Ok((0, _)) => Queue::Ended,
            Ok(_) => Queue::Bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Queue::Empty,
            Err(_) => Queue::Ended,
        }
    }

    fn peeks(&self, like: impl FnOnce(&[u8]) -> bool) -> bool {
        let mut bytes = [0_u8; 64];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self, &mut bytes, flags) {
            Ok((peeked, _)) => peeked > 0 && like(&bytes[..peeked]),
            Err(_) => false,
        }
    }
}

/// What hyper, and after an upgrade the application, reads from and writes to.
pub(crate) struct Io {
    /// `None` only once [`Io::into_parts`] has taken it.
    stream: Option<Stream>,
    /// Bytes that come before what the socket holds.
    leftover: Bytes,
    shared: Arc<Shared>,
    /// What an application writes that speaks WebSocket by itself.
    outgoing: Outgoing,
}

impl Io {
    pub(crate) fn new(stream: Stream, leftover: Bytes, shared: Arc<Shared>) -> Self {
        Self {
            stream: Some(stream),
            leftover,
            shared,
            outgoing: Outgoing::default(),
        }
    }

    /// The socket, and what of the leftover was not read. `None` if the socket was taken before.
    pub(crate) fn into_parts(mut self) -> Option<(Stream, Bytes)> {
        let stream = self.stream.take()?;
        Some((stream, std::mem::take(&mut self.leftover)))
    }

    /// The socket, unless the connection was cut: then an error, also for the application that holds
    /// the upgraded connection.
    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        if self.shared.is_cut() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "cut at the deadline of the drain",
            ));
        }
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }

    /// Sees to it that [`Shared::cut`] wakes the task that waits for this socket.
    ///
    /// Only after an upgrade: before it, that task is the connection's own, which gets the order.
    fn await_cut(&self, cx: &Context<'_>, direction: Direction) {
        if self.shared.is_upgraded() {
            self.shared.register_io(cx.waker(), direction);
        }
    }

    /// Whether something can be read: asks the kernel.
    pub(crate) fn has_arrived(&self) -> bool {
        let is_queued = |stream: &Stream| stream.queue() == Queue::Bytes;
        !self.leftover.is_empty() || self.stream.as_ref().is_some_and(is_queued)
    }

    /// Whether what is written now are an application's WebSocket frames.
    fn is_followed(&self) -> bool {
        self.shared.is_websocket() && !InHyper::is(&self.shared)
    }

    /// Tells the client what it is to be told, if that is due and this the place. Ready when nothing of it is left.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(code) = self.shared.farewell()
            && self.outgoing.may_speak()
        {
            self.outgoing.speak(code);
        }
        while let Some(frame) = self.outgoing.unwritten() {
            let frame = std::mem::take(frame);
            let outcome = self.stream()?.poll_write(cx, &frame);
            let written = match outcome {
                Poll::Ready(Ok(written)) => written,
                _ => 0,
            };
            self.outgoing.left(frame, written);
            ready!(outcome)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes an application's frames, and between them what the client is to be told.
    fn poll_write_frames(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let told = self.poll_farewell(cx);
        ready!(self.note_write(cx, told))?;
        if self.outgoing.has_spoken() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let is_due = self.shared.farewell().is_some();
        let most = if is_due {
            self.outgoing.until_boundary(bytes)
        } else {
            bytes.len()
        };
        let outcome = self.stream()?.poll_write(cx, &bytes[..most]);
        if let Poll::Ready(Ok(written)) = outcome {
            self.outgoing.wrote(&bytes[..written]);
        }
        self.note_write(cx, outcome)
    }

    /// Keeps the books of one write, vectored write or flush.
    fn note_write<T>(&self, cx: &Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.shared
            .write_blocked
            .store(outcome.is_pending(), Relaxed);
        if outcome.is_pending() {
            self.await_cut(cx, Direction::Write);
        }
        outcome
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("stream", &self.stream)
            .field("leftover", &self.leftover.len())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.leftover.is_empty() {
            let length = self.leftover.len().min(buffer.remaining());
            buffer.put_slice(&self.leftover[..length]);
            self.leftover.advance(length);
            self.shared.arrived.store(true, Relaxed);
            return Poll::Ready(Ok(()));
        }
        let is_followed = self.is_followed();
        if is_followed {
            let told = self.poll_farewell(cx);
            // A client that does not read may yet be read.
            if let Poll::Ready(Err(error)) = self.note_write(cx, told) {
                return Poll::Ready(Err(error));
            }
        }
        let room = buffer.remaining();
        let outcome = self.stream()?.poll_read(cx, buffer);
        match &outcome {
            Poll::Ready(Ok(())) if buffer.remaining() < room => {
                self.shared.arrived.store(true, Relaxed);
            }
            Poll::Ready(Ok(())) if room == 0 => {}
            Poll::Ready(_) => self.shared.ended.store(true, Relaxed),
            Poll::Pending => {
                self.await_cut(cx, Direction::Read);
                // Due since the look above: nobody has been woken for it.
                if is_followed && self.shared.farewell().is_some() && self.outgoing.may_speak() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        outcome
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_followed() {
            return self.poll_write_frames(cx, bytes);
        }
        let outcome = self.stream()?.poll_write(cx, bytes);
        self.note_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_followed() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write_frames(cx, first.map_or(&[], |slice| slice));
        }
        let outcome = self.stream()?.poll_write_vectored(cx, slices);
        self.note_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_followed() {
            let told = self.poll_farewell(cx);
            ready!(self.note_write(cx, told))?;
        }
        let outcome = self.stream()?.poll_flush(cx);
        self.note_write(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Noted before it happens: whatever comes of it, this connection is not given up any more.
        self.shared.shut_down.store(true, Relaxed);
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for Io {
    /// Gives the socket back to the connection's task, which closes it without a reset.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.shared.give_back(stream);
        }
    }
}
