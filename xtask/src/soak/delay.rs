//! A client that is far away: what passes its socket is late by a fixed time, each way.
//!
//! [`DelayLine`] stands between hyper and the socket. Two tasks move the bytes between the
//! kernel and two queues, and every item of a queue carries the time at which it arrives
//! at the other end. So the line delays *everything*, and keeps its order: bytes written,
//! the end of the writing side, bytes read, the server's EOF, a reset. In particular the
//! client may send a request while the FIN that answers it is already on its way, which is
//! the race that loopback hides. A sleep before each request would hide it just the same.
//!
//! tokio's timers are up to a millisecond late, never early: the delay is at least what was asked for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, Sleep};

/// What one read takes from the kernel at most.
const READ_SIZE: usize = 16 * 1024;
/// A server that does not read for this long has lost the connection; the task must not outlive it for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes under way; empty ones are the end of the stream. The queues have no limit of their
/// own: a request and its answer are bounded, and one of each is under way at a time.
type Item = (Instant, io::Result<Bytes>);

/// The near end of the line, for hyper.
#[derive(Debug)]
pub(crate) struct DelayLine {
    one_way: Duration,
    /// `None` once the writing side was shut down.
    leaving: Option<UnboundedSender<(Instant, Bytes)>>,
    arriving: UnboundedReceiver<Item>,
    /// Taken from the queue, not due yet or not yet read to its end.
    next: Option<Item>,
    timer: Pin<Box<Sleep>>,
}

impl DelayLine {
    /// Puts `one_way` between the caller and `socket`, in both directions.
    pub(crate) fn new<S>(socket: S, one_way: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(socket);
        let (leaving, to_send) = mpsc::unbounded_channel();
        let (received, arriving) = mpsc::unbounded_channel();
        tokio::spawn(carry_out(writer, to_send, received.clone(), one_way));
        tokio::spawn(carry_in(reader, received, one_way));
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self {
            one_way,
            leaving: Some(leaving),
            arriving,
            next: None,
            timer,
        }
    }

    /// The client's FIN leaves now and arrives like everything else.
    fn end_writing(&mut self) {
        if let Some(line) = self.leaving.take() {
            let _ = line.send((Instant::now() + self.one_way, Bytes::new()));
        }
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.end_writing();
    }
}

/// Writes what is due, in order. No bytes: the end of the stream.
async fn carry_out<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut to_send: UnboundedReceiver<(Instant, Bytes)>,
    received: UnboundedSender<Item>,
    one_way: Duration,
) {
    while let Some((due, bytes)) = to_send.recv().await {
        tokio::time::sleep_until(due).await;
        if bytes.is_empty() {
            let _ = writer.shutdown().await;
            return;
        }
        let written = tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await;
        if let Err(err) = written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // A far client would learn of it from what the server sends back. The kernel may
            // have told only us (an error on a socket is reported once), so we pass it on.
            let _ = received.send((Instant::now() + one_way, Err(err)));
            return;
        }
    }
}

/// Reads whatever comes, as soon as it comes, and stamps it.
async fn carry_in<R: AsyncRead + Unpin>(
    mut reader: R,
    received: UnboundedSender<Item>,
    one_way: Duration,
) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let read = tokio::select! {
            read = reader.read(&mut buffer) => read,
            // The client has dropped its end.
            () = received.closed() => return,
        };
        let last = !matches!(read, Ok(n) if n > 0);
        let item = read.map(|n| Bytes::copy_from_slice(&buffer[..n]));
        if received.send((Instant::now() + one_way, item)).is_err() || last {
            return;
        }
    }
}

impl AsyncRead for DelayLine {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.next.is_none() {
            let Some(item) = ready!(self.arriving.poll_recv(cx)) else {
                return Poll::Ready(Ok(()));
            };
            self.timer.as_mut().reset(item.0);
            self.next = Some(item);
        }
        ready!(self.timer.as_mut().poll(cx));
        match self.next.take() {
            Some((due, Ok(mut bytes))) if !bytes.is_empty() => {
                let n = bytes.len().min(out.remaining());
                out.put_slice(&bytes[..n]);
                bytes.advance(n);
                self.next = (!bytes.is_empty()).then_some((due, Ok(bytes)));
                Poll::Ready(Ok(()))
            }
            Some((_, Err(err))) => Poll::Ready(Err(err)),
            end => {
                // The end of the stream stays where it is.
                self.next = end;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for DelayLine {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let due = Instant::now() + self.one_way;
        let sent = self
            .leaving
            .as_ref()
            .is_some_and(|line| line.send((due, Bytes::copy_from_slice(bytes))).is_ok());
        Poll::Ready(if sent {
            Ok(bytes.len())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_writing();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_WAY: Duration = Duration::from_millis(10);

    /// tokio's timers round up to the millisecond.
    fn assert_late(since: Instant, what: &str) {
        let late = since.elapsed();
        assert!(
            late >= ONE_WAY && late <= ONE_WAY + Duration::from_millis(2),
            "{what} after {late:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn both_directions_are_late_by_half_the_round_trip() {
        let (near, mut server) = tokio::io::duplex(1024);
        let mut client = DelayLine::new(near, ONE_WAY);
        let mut buffer = [0; 4];
        let sent = Instant::now();
        client.write_all(b"ping").await.unwrap();
        assert_eq!(sent.elapsed(), Duration::ZERO, "writing does not wait");
        server.read_exact(&mut buffer).await.unwrap();
        assert_late(sent, "ping");
        let sent = Instant::now();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        assert_late(sent, "pong");
        assert_eq!(&buffer, b"pong");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_a_line_and_not_a_sleep_per_message() {
        let (near, mut server) = tokio::io::duplex(1 << 20);
        let mut client = DelayLine::new(near, ONE_WAY);
        let sent = Instant::now();
        let mut expected = Vec::new();
        for byte in 0..100u8 {
            client.write_all(&[byte; 3]).await.unwrap();
            expected.extend([byte; 3]);
        }
        let mut got = vec![0; expected.len()];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected, "in order");
        assert_late(sent, "a hundred writes at once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_before_the_end_arrives_before_it() {
        let (near, mut server) = tokio::io::duplex(1024);
        let mut client = DelayLine::new(near, ONE_WAY);
        let sent = Instant::now();
        server.write_all(b"last words").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"last words");
        assert_late(sent, "the server's EOF");
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "the end stays");
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_sees_the_clients_end_late() {
        let (near, mut server) = tokio::io::duplex(1024);
        let mut client = DelayLine::new(near, ONE_WAY);
        let sent = Instant::now();
        client.write_all(b"x").await.unwrap();
        drop(client);
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"x");
        assert_late(sent, "the client's FIN");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_message_is_read_in_pieces() {
        let (near, mut server) = tokio::io::duplex(1024);
        let mut client = DelayLine::new(near, ONE_WAY);
        server.write_all(b"abcdef").await.unwrap();
        let mut got = [0; 2];
        for expected in [b"ab", b"cd", b"ef"] {
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, expected);
        }
    }
}
