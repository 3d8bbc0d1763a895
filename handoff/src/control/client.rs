//! The client's end of one connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::{Event, MAX_EVENT_LEN, Request};

/// How long a full backlog is tried again. It is full only while nobody accepts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts to connect.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why no server could be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no socket.
    #[error("no server runs here: there is no control socket `{path}`")]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// There is one, left behind by a server that died.
    #[error(
        "no server runs here: nobody answers on the control socket `{path}`, which a dead one left behind"
    )]
    Stale {
        /// The socket.
        path: PathBuf,
    },
    /// It is somebody else's.
    #[error("uid {uid} may not open the control socket `{path}`; use the server's user, or root")]
    Denied {
        /// The socket.
        path: PathBuf,
        /// Our user.
        uid: u32,
    },
    /// Anything else.
    #[error("failed to connect to the control socket `{path}`")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ConnectError {
    /// Whether there is no process to connect to.
    #[must_use]
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Stale { .. })
    }

    fn new(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::ConnectionRefused => Self::Stale { path },
            io::ErrorKind::PermissionDenied => Self::Denied {
                path,
                uid: rustix::process::geteuid().as_raw(),
            },
            _ => Self::Io { path, source },
        }
    }
}

/// Why a conversation did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It did not begin.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Io(#[from] io::Error),
    /// The server said something that this version does not understand.
    #[error("the server's answer is not understood, perhaps it is of another version: `{line}`")]
    Unintelligible {
        /// The line's beginning.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line longer than [`MAX_EVENT_LEN`].
    #[error("the server's answer exceeds {MAX_EVENT_LEN} bytes")]
    TooLong,
    /// The server will not, and nothing was changed.
    #[error("{reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The server did not understand us.
    #[error(
        "the server did not understand the request, perhaps it is of another version: {reason}"
    )]
    Invalid {
        /// Its reason.
        reason: String,
    },
    /// The process that was asked for the reload has gone, and its successor does not know of it.
    #[error(
        "what became of reload {reload} is not known, as the server that ran it has gone: {reason}"
    )]
    Forgotten {
        /// The reload's id.
        reload: u64,
        /// The successor's words.
        reason: String,
    },
    /// The connection ended, and nobody is left to ask.
    #[error("the server went away before it had answered")]
    Gone,
    /// The deadline passed.
    #[error("{awaited} did not come within {after:?}")]
    TimedOut {
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        after: Duration,
    },
}

/// One connection to a server's control socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects to the socket at `path`. (Not to a process: during a reload the next one to accept
    /// answers. The kernel's peer credentials name the one that called listen(2), perhaps long ago.)
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub async fn connect(path: &Path) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + CONNECT_PATIENCE;
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => {
                    return Ok(Self {
                        stream,
                        received: Vec::new(),
                    });
                }
                // EAGAIN: its backlog is full.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(ConnectError::new(path, error)),
            }
        }
    }

    /// Sends a request; a connection takes one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`]. That the server has closed already is none: its reason can still be read.
    pub async fn request(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        match self.stream.write_all(&line).await {
            Err(error) if !is_end(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The next event; `None` at the connection's end. Events of later versions are skipped. A
    /// cancelled call loses nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`], [`ClientError::Unintelligible`] or [`ClientError::TooLong`].
    pub async fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        while let Some(line) = self.next_line().await? {
            match serde_json::from_slice(&line) {
                Ok(Event::Unknown) => {}
                Ok(event) => return Ok(Some(event)),
                Err(source) => {
                    let line = String::from_utf8_lossy(&line).chars().take(200).collect();
                    return Err(ClientError::Unintelligible { line, source });
                }
            }
        }
        Ok(None)
    }

    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.received.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.received.len();
            if searched >= MAX_EVENT_LEN {
                return Err(ClientError::TooLong);
            }
            match self.stream.read_buf(&mut self.received).await {
                // Half a line, too, is what a process leaves that dies.
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_end(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A peer that dies, or closes with something of ours unread, ends a Unix socket in these ways
/// besides an orderly end of file.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
