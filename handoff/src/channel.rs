//! A `SOCK_SEQPACKET` pair that carries one message and its descriptors in each record.
//!
//! SEQPACKET keeps record boundaries, so that descriptors never merge with the bytes of another
//! message, and reports the end of the peer. What is sent is queued here and written
//! by [`Channel::flush`]: nobody who drives a protocol ever blocks on a peer that does not read.
//!
//! Failure rules: a received descriptor is owned from the first instruction, is
//! CLOEXEC, and closes itself when its message is dropped. Descriptors that the kernel could
//! not install (this process is at its limit) are counted in [`Received::missing`], never
//! guessed at. `ECONNRESET` is not the end: the kernel reports it once when
//! the peer left something unread, and what the peer had sent is still queued behind it. Where the kernel
//! takes no further descriptor of this user (`ETOOMANYREFS`: more than RLIMIT_NOFILE are on their way, perhaps
//! in other processes; root is exempt), the message waits, and is tried again. A smaller message would not help: the
//! kernel looks at what is on its way before this one, never at how many descriptors this one has (unix(7)).

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use crate::failpoint;
use crate::registered::register;
use crate::wire::{self, MAX_FDS, MAX_MESSAGE, Message, VERSIONS, WireError};

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) message: Message,
    pub(crate) fds: Vec<OwnedFd>,
    /// How many of the announced descriptors did not come (`MSG_CTRUNC`): those that did
    /// are the first ones, in order.
    pub(crate) missing: usize,
}

/// What a read from the channel gave.
#[derive(Debug)]
pub(crate) enum Read {
    Message(Box<Received>),
    /// The peer has closed its end, and all that it sent has been read.
    End,
}

/// Why the channel cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("message {got} where {expected} was due")]
    Number { got: u64, expected: u64 },
    #[error("{got} descriptors where {announced} were announced")]
    Descriptors { got: usize, announced: usize },
    #[error("a record longer than a message may be ({MAX_MESSAGE} bytes)")]
    Truncated,
    #[error("channel: {0}")]
    Io(#[from] io::Error),
}

/// Where a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// What was agreed on.
    pub(crate) version: u16,
    /// The number of the last message sent.
    pub(crate) sent: u64,
    /// The number of the last message received.
    pub(crate) received: u64,
}

/// How soon a message is tried again for whose descriptors the kernel had no room: nothing tells when it has.
const TRY_AGAIN: Duration = Duration::from_millis(20);

struct Outgoing {
    record: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

/// One end.
pub(crate) struct Channel {
    fd: AsyncFd<OwnedFd>,
    /// `None` until it is agreed: then the first message that is not frozen settles it.
    version: Option<u16>,
    sent: u64,
    received: u64,
    outgoing: VecDeque<Outgoing>,
    /// Too many descriptors are on their way.
    is_crowded: bool,
    buffer: Vec<u8>,
}

/// Makes a connected pair, both ends CLOEXEC: one to keep, one for the child.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for end in [&ours, &theirs] {
        // As far as net.core.wmem_max allows, whatever the default is.
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * MAX_MESSAGE)?;
    }
    Ok((ours, theirs))
}

impl Channel {
    /// Takes one end. Must be called within a tokio runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // Not through O_NONBLOCK: that flag belongs to the open file description, and the child's
        // end is also its stdin for a moment. Every call says MSG_DONTWAIT instead.
        Ok(Self {
            fd: register(fd, Interest::READABLE | Interest::WRITABLE)?,
            version: None,
            sent: 0,
            received: 0,
            outgoing: VecDeque::new(),
            is_crowded: false,
            buffer: vec![0; MAX_MESSAGE + 1],
        })
    }

    /// Takes up a conversation that another process has had so far.
    pub(crate) fn resume(fd: OwnedFd, position: Position) -> io::Result<Self> {
        Ok(Self {
            version: Some(position.version),
            sent: position.sent,
            received: position.received,
            ..Self::new(fd)?
        })
    }

    /// Where the conversation is, for another process to [`resume`](Self::resume) it. `None` while something is queued, or nothing has been agreed on.
    pub(crate) fn position(&self) -> Option<Position> {
        let version = self.version.filter(|_| !self.is_pending())?;
        Some(Position {
            version,
            sent: self.sent,
            received: self.received,
        })
    }

    /// A duplicate of this end.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.get_ref().try_clone()
    }

    /// From here on messages are of this version.
    pub(crate) fn agree(&mut self, version: u16) {
        self.version = Some(version);
    }

    /// Queues a message; [`flush`](Self::flush) sends it.
    pub(crate) fn queue(
        &mut self,
        message: &Message,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Result<(), ChannelError> {
        if fds.len() > MAX_FDS {
            return Err(ChannelError::Descriptors {
                got: fds.len(),
                announced: MAX_FDS,
            });
        }
        let mut record = wire::encode(
            message,
            self.version.unwrap_or(*VERSIONS.end()),
            self.sent + 1,
            fds.len(),
        )?;
        failpoint::spoil(&mut record);
        self.sent += 1;
        self.outgoing.push_back(Outgoing { record, fds });
        // Most of the time the peer has room: then nothing waits for the next round of a loop.
        self.write_queued()
    }

    /// Nobody will read what is queued.
    pub(crate) fn forget_queued(&mut self) {
        self.outgoing.clear();
    }

    /// Whether something is queued that the kernel has not taken.
    pub(crate) fn is_pending(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Waits until [`try_recv`](Self::try_recv) is worth calling, and writes what is queued
    /// meanwhile. Cancel safe.
    pub(crate) async fn turn(&mut self) -> Result<(), ChannelError> {
        loop {
            let interest = if self.is_pending() && !self.is_crowded {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let ready = tokio::select! {
                ready = self.fd.ready(interest) => Some(ready),
                () = sleep(TRY_AGAIN), if self.is_crowded => None,
            };
            let Some(guard) = ready else {
                self.write_queued()?;
                continue;
            };
            let mut guard = guard?;
            let ready = guard.ready();
            if ready.is_readable() {
                // The readiness that tokio remembers may be of a message that has been read since.
                if has_input(self.fd.get_ref().as_fd())? {
                    return Ok(());
                }
                guard.clear_ready_matching(tokio::io::Ready::READABLE);
            }
            if ready.is_writable() && interest.is_writable() {
                guard.clear_ready_matching(tokio::io::Ready::WRITABLE);
                drop(guard);
                self.write_queued()?;
            }
        }
    }

    /// Writes what is queued, for at most `patience`, before the process ends.
    pub(crate) async fn flush(&mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.written()).await;
    }

    /// Returns when all that is queued is written, or cannot be. What waits for others' acks is not waited for.
    /// Cancel safe.
    pub(crate) async fn written(&mut self) {
        while self.is_pending() {
            let Ok(mut guard) = self.fd.writable().await else {
                return;
            };
            guard.clear_ready();
            drop(guard);
            if self.write_queued().is_err() {
                return;
            }
        }
    }

    /// Writes as much of what is queued as the kernel takes.
    pub(crate) fn write_queued(&mut self) -> Result<(), ChannelError> {
        self.is_crowded = false;
        while let Some(next) = self.outgoing.front() {
            match send(self.fd.get_ref().as_fd(), next) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Acks make room, ours or another process's: the driver calls again after each message. Memory comes back, too:
                // a reload must not fail of a moment without it.
                Err(e) if is_shortage(&e) => {
                    self.is_crowded = true;
                    return Ok(());
                }
                // The peer is gone. That is said by its pidfd and by the end of the channel, after
                // all that it sent: not here.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    self.outgoing.clear();
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads a message if one is queued.
    pub(crate) fn try_recv(&mut self) -> Result<Option<Read>, ChannelError> {
        loop {
            match receive(self.fd.get_ref().as_fd(), &mut self.buffer) {
                Ok(raw) if raw.length == 0 => return Ok(Some(Read::End)),
                Ok(raw) => return self.check(raw).map(|m| Some(Read::Message(Box::new(m)))),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn check(&mut self, raw: Raw) -> Result<Received, ChannelError> {
        if raw.truncated || raw.length > MAX_MESSAGE {
            return Err(ChannelError::Truncated);
        }
        let record = &self.buffer[..raw.length];
        let (header, message) = wire::decode(record, self.version)?;
        if header.version != wire::FROZEN {
            self.version = Some(header.version);
        }
        let expected = self.received + 1;
        if header.number != expected {
            return Err(ChannelError::Number {
                got: header.number,
                expected,
            });
        }
        self.received = expected;
        let announced = usize::from(header.fds);
        let got = raw.fds.len();
        if got > announced || (got < announced && !raw.fds_lost) {
            return Err(ChannelError::Descriptors { got, announced });
        }
        Ok(Received {
            message,
            fds: raw.fds,
            missing: announced - got,
        })
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("fd", &self.fd.get_ref().as_raw_fd())
            .field("sent", &self.sent)
            .field("received", &self.received)
            .field("queued", &self.outgoing.len())
            .finish_non_exhaustive()
    }
}

/// What others, or the kernel, may have again soon: descriptors on their way, or memory.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM)
    )
}

fn has_input(socket: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&now)) {
            // Even a poll that does not wait is interrupted by a signal that is pending.
            Err(Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

#[doc(alias = "SCM_RIGHTS")]
fn send(socket: BorrowedFd<'_>, out: &Outgoing) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = out.fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for descriptors"));
    }
    // A record is sent whole or not at all.
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&out.record)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

struct Raw {
    length: usize,
    fds: Vec<OwnedFd>,
    truncated: bool,
    fds_lost: bool,
}

#[doc(alias = "SCM_RIGHTS")]
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Raw> {
    // Room for the most that the kernel sends: a shorter buffer would lose descriptors.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Raw {
        length: got.bytes,
        fds,
        truncated: got.flags.contains(ReturnFlags::TRUNC),
        fds_lost: got.flags.contains(ReturnFlags::CTRUNC),
    })
}
