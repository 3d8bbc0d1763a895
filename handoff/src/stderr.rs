//! The child's stderr until it is confirmed: a pipe that the parent reads.
//!
//! Whoever asked for a reload that failed wants to see what the child said, and the log wants
//! it all. So each byte is passed through to the parent's own stderr, each line is reported as it
//! comes, and the last lines are kept.
//!
//! The contract:
//! - **Reading never blocks**, neither on the child nor on where the bytes go: a log pipe that
//!   is full costs lines (counted), never the parent's service. One thread a process does all
//!   writing; it alone may get stuck.
//! - **The end of the pipe means nothing.** A grandchild may keep it open for ever: what there
//!   is to know comes from the child's pidfd, and [`Capture::finish`] takes what is there by then.
//! - **What is kept is bounded**: [`MAX_LINES`] lines of [`MAX_LINE_BYTES`].
//! - The child's end stays blocking: a program may not expect `EAGAIN` from its stderr.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use tokio::net::unix::pipe::Receiver;

/// How many of the last lines are kept: a panic with its backtrace.
pub(crate) const MAX_LINES: usize = 50;

/// Two panics stay in sight: a backtrace alone has more lines than are kept.
const MAX_PINNED: usize = 4;

/// As Rust's own panic hook says it.
const PANICKED: &str = " panicked at ";

/// How much of one line is kept, in bytes as JSON has them. With [`MAX_LINES`] the whole fits into one message
/// of the control socket, also where every byte is no UTF-8, and is told as three.
pub(crate) const MAX_LINE_BYTES: usize = 1024;

/// How many chunks may wait for the thread that writes them: 4 MiB at the most.
const MAX_CHUNKS: usize = 256;

/// What is read at a time, in bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// How much the pipe holds: as much as an unprivileged user may have, pipe(7).
const PIPE_BYTES: i32 = 1 << 20;

/// How much is read at the end, in bytes: the largest pipe of an unprivileged user. A
/// grandchild that writes without end cannot hold us up.
const MAX_FINISH_BYTES: usize = 1 << 20;

/// Where the bytes go: a thread that writes them, fed without ever blocking.
#[derive(Clone, Debug)]
pub(crate) struct PassThrough {
    chunks: SyncSender<Box<[u8]>>,
    lost: Arc<AtomicU64>,
}

impl PassThrough {
    /// To this process's stderr. All calls share one thread, so that one that is stuck there
    /// stays the only one.
    ///
    /// # Errors
    /// That the thread cannot be started.
    pub(crate) fn stderr() -> io::Result<Self> {
        static SHARED: OnceLock<PassThrough> = OnceLock::new();
        if let Some(shared) = SHARED.get() {
            return Ok(shared.clone());
        }
        // Of two that come here at once one starts a thread in vain, which ends by itself.
        let started = Self::start(|| Unlocked)?;
        Ok(SHARED.get_or_init(|| started).clone())
    }

    /// To any file or pipe, by a thread of its own that ends with the last clone.
    ///
    /// # Errors
    /// That the thread cannot be started.
    #[cfg(test)]
    pub(crate) fn to(file: impl Into<OwnedFd>) -> io::Result<Self> {
        let file = Arc::new(File::from(file.into()));
        Self::start(move || Arc::clone(&file))
    }

    /// `open` is called for each chunk: nothing is locked in between.
    fn start<W: Write>(open: impl Fn() -> W + Send + 'static) -> io::Result<Self> {
        let (chunks, received) = sync_channel::<Box<[u8]>>(MAX_CHUNKS);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let write = move || {
            for chunk in received {
                // A reader that has gone is no reason to end: another may take its place.
                if open().write_all(&chunk).is_err() {
                    counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new()
            .name("child-stderr".to_owned())
            .spawn(write)?;
        Ok(Self { chunks, lost })
    }

    /// Hands over a copy of `bytes`, or counts them as lost.
    fn write(&self, bytes: &[u8]) {
        match self.chunks.try_send(bytes.into()) {
            Ok(()) => {}
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                self.lost.fetch_add(lost.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// How many bytes were not written, because the reader was slow or gone.
    #[must_use]
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Our stderr without std's lock: whoever is stuck in a write would hold it, and with it every
/// thread that has a line to log.
struct Unlocked;

impl Write for Unlocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts bytes into lines, and keeps the last ones.
struct Lines {
    on_line: Box<dyn FnMut(&str) + Send>,
    /// The line that has not ended yet, as far as it is kept.
    open: Vec<u8>,
    /// What that takes in JSON, in bytes.
    length: usize,
    /// How much of it was cut off, in bytes.
    cut: usize,
    kept: VecDeque<String>,
    /// How many of the first ones stay, however many come.
    pinned: usize,
    dropped: u64,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let kept = bytes.iter().take_while(|byte| {
            let length = self.length + length_in_json(**byte);
            let fits = self.cut == 0 && length <= MAX_LINE_BYTES;
            if fits {
                self.length = length;
            }
            fits
        });
        let kept = kept.count();
        self.open.extend_from_slice(&bytes[..kept]);
        self.cut += bytes.len() - kept;
    }

    fn end_line(&mut self) {
        let bytes = self.open.strip_suffix(b"\r").unwrap_or(&self.open);
        let mut line = String::from_utf8_lossy(bytes).into_owned();
        if self.cut > 0 {
            line.push_str(&format!(" [{} bytes cut]", self.cut));
        }
        self.open.clear();
        (self.length, self.cut) = (0, 0);
        (self.on_line)(&line);
        if self.kept.len() == MAX_LINES {
            let oldest = &self.kept[self.pinned];
            if self.pinned < MAX_PINNED && oldest.contains(PANICKED) {
                // With the line after it, which is the message.
                self.pinned += 2;
            }
            self.kept.remove(self.pinned);
            self.dropped += 1;
        }
        self.kept.push_back(line);
    }

    /// A last line without an end is a line too.
    fn finish(&mut self) {
        if !self.open.is_empty() {
            self.end_line();
        }
    }
}

/// Of a byte of a text, RFC 8259, section 7.
fn length_in_json(byte: u8) -> usize {
    match byte {
        b'\t' | b'\r' | b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

/// What the child said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// The last lines, oldest first, without their ends; not-UTF-8 replaced. Those in which a panic tells itself stay.
    pub(crate) lines: Vec<String>,
    /// How many came before them.
    pub(crate) dropped: u64,
}

/// The reading end of a child's stderr.
pub(crate) struct Capture {
    receiver: Receiver,
    sink: PassThrough,
    /// What the sink, which outlives us, had lost before.
    lost_before: u64,
    lines: Lines,
    ended: bool,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("receiver", &self.receiver)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// A pipe whose writing end becomes the child's stderr. Each byte goes to `sink`; each line
    /// to `on_line`, which must not block.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub(crate) fn new(
        sink: PassThrough,
        on_line: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<(Self, OwnedFd)> {
        // Both ends CLOEXEC; each an open file description of its own, so that making ours
        // non-blocking leaves the child's as it is.
        let (reader, writer) = io::pipe()?;
        let lines = Lines {
            on_line: Box::new(on_line),
            open: Vec::new(),
            length: 0,
            cut: 0,
            kept: VecDeque::new(),
            pinned: 0,
            dropped: 0,
        };
        // A child that serves must not wait for a parent that is slow. What is refused is no reason to fail.
        let _ = nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let receiver = Receiver::from_owned_fd(reader.into())?;
        let capture = Self {
            receiver,
            lost_before: sink.lost_bytes(),
            sink,
            lines,
            ended: false,
        };
        Ok((capture, writer.into()))
    }

    /// The reading end, for the child to hold: were the parent to die, a child that is on probation would write to
    /// a pipe without reader, for a moment, and panic.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        dup(&self.receiver)
    }

    /// Reads and passes on, for ever: an arm of a `select!` that never wins. Nothing is lost
    /// when it is dropped and called again. A child that writes without end gets a chunk for each turn of the others.
    pub(crate) async fn pump(&mut self) -> Infallible {
        let mut buffer = vec![0; CHUNK_BYTES];
        while !self.ended {
            let read = match self.receiver.readable().await {
                Ok(()) => self.receiver.try_read(&mut buffer),
                Err(error) => Err(error),
            };
            match read {
                Err(error) if is_temporary(&error) => {}
                Ok(0) | Err(_) => self.ended = true,
                Ok(read) => {
                    self.take(&buffer[..read]);
                    // Tokio's own budget does not count this.
                    tokio::task::yield_now().await;
                }
            }
        }
        std::future::pending().await
    }

    /// Reads what is in the pipe now, and no more: for when the child has ended or has changed
    /// to the real stderr. Never waits.
    #[must_use]
    pub(crate) fn finish(mut self) -> Captured {
        if let Err(error) = self.drain() {
            tracing::warn!(%error, "cannot read the rest of the child's stderr");
        }
        self.lines.finish();
        let lost = self.sink.lost_bytes() - self.lost_before;
        if lost > 0 {
            tracing::warn!(
                bytes = lost,
                "our stderr was too slow for the child's, or closed"
            );
        }
        Captured {
            lines: self.lines.kept.into(),
            dropped: self.lines.dropped,
        }
    }

    /// By a descriptor of its own: tokio would say `WouldBlock` until its driver has heard
    /// of the last bytes.
    fn drain(&mut self) -> io::Result<()> {
        let mut reader = File::from(dup(&self.receiver)?);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut total = 0;
        while !self.ended && total < MAX_FINISH_BYTES {
            match reader.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    self.take(&buffer[..read]);
                    total += read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.sink.write(bytes);
        self.lines.push(bytes);
    }
}

fn dup(fd: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

mod lent;
#[cfg(test)]
mod tests;

pub(crate) use lent::Lent;
