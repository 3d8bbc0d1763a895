//! What the WebSocket library reads: whole frames, one at a time.
//!
//! The library has an input buffer that cannot be taken out again. So it is never given a byte of a frame before that frame is
//! here as a whole: between two messages everything unread is in [`Frames`], and can travel. A frame of more than
//! [`WHOLE`] bytes is passed through as it comes; in the middle of one, and between the fragments of a message,
//! nothing rests.
//!
//! Nothing is judged here (RFC 6455, section 5.2, but for lengths): that is the library's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest frame, in bytes with its header, that is kept here until it is whole.
const WHOLE: u64 = 64 * 1024;

/// How much is read at a time, in bytes. On the stack: a connection at rest needs no memory for it.
const CHUNK: usize = 4 * 1024;

/// The head of a frame, as far as it matters to where frames end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the whole frame, with its header, in bytes.
    pub(crate) length: u64,
    /// The last frame of its message.
    pub(crate) is_final: bool,
    /// Ping, Pong, Close: they may come between the fragments of a message.
    pub(crate) is_control: bool,
    pub(crate) is_close: bool,
}

impl Head {
    /// Reads it (2 to 14 bytes); `None` if it is not there as a whole.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (extended, payload) = match second & 0x7f {
            126 => (2, u16::from_be_bytes(*rest.first_chunk()?).into()),
            127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
            length => (0, length.into()),
        };
        if rest.len() < extended + mask {
            return None;
        }
        let header = (2 + extended + mask) as u64;
        Some(Self {
            length: header.saturating_add(payload),
            is_final: first & 0x80 != 0,
            is_control: first & 0x08 != 0,
            is_close: first & 0x0f == 0x08,
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Frames<S> {
    io: S,
    /// Read, and not given to the library.
    unread: BytesMut,
    /// What the library has yet to get of the frame that it was given the beginning of, in bytes.
    open: u64,
    /// It has the beginning of a message, and not its last fragment.
    is_fragmented: bool,
}

impl<S> Frames<S> {
    pub(crate) fn new(io: S) -> Self {
        Self {
            io,
            unread: BytesMut::new(),
            open: 0,
            is_fragmented: false,
        }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.io
    }

    /// The library has nothing but whole messages.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.open == 0 && !self.is_fragmented
    }

    /// With what was read and not given to the library.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.io, self.unread.into())
    }

    /// Begins the next frame, if as much of it is here as must be.
    fn begin(&mut self) -> bool {
        let Some(head) = Head::parse(&self.unread) else {
            return false;
        };
        if head.length <= WHOLE && head.length > self.unread.len() as u64 {
            return false;
        }
        self.open = head.length;
        if !head.is_control {
            self.is_fragmented = !head.is_final;
        }
        true
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    /// Reads more; false at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [0; CHUNK];
        let mut buffer = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        self.unread.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(!buffer.filled().is_empty()))
    }

    /// Gives from what is here.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let most = self.unread.len().min(buffer.remaining());
        let length = most.min(usize::try_from(self.open).unwrap_or(usize::MAX));
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        self.open -= length as u64;
        if self.unread.is_empty() {
            // A connection at rest keeps no memory for what it once read.
            self.unread = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.open == 0 && !this.begin() {
            if !ready!(this.poll_more(cx))? {
                // What is here of a frame will never be one.
                return Poll::Ready(Ok(()));
            }
        }
        if this.unread.is_empty() && !ready!(this.poll_more(cx))? {
            return Poll::Ready(Ok(()));
        }
        this.give(buffer);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
