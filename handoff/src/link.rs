//! One process's line to the other: the channel, the pidfd and the timers, in the order in which
//! the machines rely on them.
//!
//! What is queued on the channel is heard before a death or a timer is: after SIGCONT every timer
//! has expired while the answer lies in the queue. Death is what the pidfd says: a grandchild may hold
//! the channel open, and a peer that has closed it may go on living.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};

use crate::{
    channel::{Channel, ChannelError, Position, Read, Received},
    failpoint::{self, Side, Then},
    process::{self, Signal},
    protocol::Timer,
    registered::register,
    wire::Message,
};

/// How long a peer may live on after it has closed its channel. A process that exits closes its
/// descriptors first, and is dead a moment later.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// What was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Box<Received>),
    /// The channel is of no more use, and the peer may be alive.
    Broken(String),
    /// The peer has closed its end of the channel, and lives on; all that it said has been heard.
    Closed,
    /// The peer is dead, and all that it said has been heard.
    Died,
    /// The peer is dead, and somebody else holds its end of the channel. Only after
    /// [`Link::expect_successor`].
    Vanished,
    Timer(Timer),
}

/// Timers by name, on the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeMap<Timer, Instant>);

impl Timers {
    pub(crate) fn start(&mut self, timer: Timer, after: Duration) {
        self.0.insert(timer, Instant::now() + after);
    }

    /// A timer that runs ends after that time at the latest.
    pub(crate) fn hasten(&mut self, timer: Timer, after: Duration) {
        if let Some(at) = self.0.get_mut(&timer) {
            *at = (*at).min(Instant::now() + after);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        self.0.remove(&timer);
    }

    fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    fn expired(&mut self, now: Instant) -> Option<Timer> {
        let timer = self
            .0
            .iter()
            .find(|(_, at)| **at <= now)
            .map(|(timer, _)| *timer)?;
        self.0.remove(&timer);
        Some(timer)
    }
}

/// Another process, by its pidfd.
#[derive(Debug)]
pub(crate) struct Peer(AsyncFd<OwnedFd>);

impl Peer {
    pub(crate) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        register(pidfd, Interest::READABLE).map(Self)
    }

    fn is_dead(&self) -> bool {
        matches!(process::is_running(self.0.get_ref().as_fd()), Ok(false))
    }

    pub(crate) async fn died(&self) {
        // A pidfd stays readable once it is: the readiness is never cleared.
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Signals the process; one that is dead needs no signal.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match process::send_signal(self.0.get_ref().as_fd(), signal) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            sent => sent,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    side: Side,
    channel: Channel,
    pub(crate) peer: Peer,
    pub(crate) timers: Timers,
    /// The channel may be passed on: a death is not the end of the conversation.
    expects_successor: bool,
    said_accepting: bool,
    told_vanished: bool,
    /// The channel has ended, or is not to be believed any more: when.
    deaf_since: Option<Instant>,
    told_broken: bool,
    told_dead: bool,
}

impl Link {
    pub(crate) fn new(side: Side, channel: OwnedFd, pidfd: OwnedFd) -> io::Result<Self> {
        Self::with(side, Channel::new(channel)?, pidfd)
    }

    fn with(side: Side, channel: Channel, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            side,
            channel,
            peer: Peer::new(pidfd)?,
            timers: Timers::default(),
            expects_successor: false,
            said_accepting: false,
            told_vanished: false,
            deaf_since: None,
            told_broken: false,
            told_dead: false,
        })
    }

    /// The end of a conversation that another process has had so far.
    pub(crate) fn resume(
        side: Side,
        channel: OwnedFd,
        pidfd: OwnedFd,
        position: Position,
    ) -> io::Result<Self> {
        Self::with(side, Channel::resume(channel, position)?, pidfd)
    }

    /// From here on the peer may pass its end on to another process.
    pub(crate) fn expect_successor(&mut self) {
        self.expects_successor = true;
    }

    /// Another process is at the other end. Without its pidfd its death is not seen, but the end of the
    /// channel is.
    pub(crate) fn succeed(&mut self, peer: Option<Peer>) {
        self.told_vanished = peer.is_none();
        if let Some(peer) = peer {
            self.peer = peer;
        }
    }

    /// Where the conversation is, and duplicates of the channel and of the peer's pidfd: to be passed on.
    /// `None` while something is queued, and for good if the channel has ended.
    pub(crate) fn pass_on(&self) -> io::Result<Option<(Position, [OwnedFd; 2])>> {
        let position = self.channel.position();
        let Some(position) = position.filter(|_| self.deaf_since.is_none()) else {
            return Ok(None);
        };
        let pidfd = self.peer.0.get_ref().try_clone()?;
        Ok(Some((position, [self.channel.duplicate()?, pidfd])))
    }

    /// Whether something that was said is not written.
    pub(crate) fn is_pending(&self) -> bool {
        self.channel.is_pending()
    }

    /// From here on messages are of this version.
    pub(crate) fn agree(&mut self, version: u16) {
        self.channel.agree(version);
    }

    /// Queues a message. A channel that fails is reported as [`Heard::Broken`].
    pub(crate) fn say(
        &mut self,
        message: &Message,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Result<(), ChannelError> {
        tracing::trace!(%message, fds = fds.len(), "say");
        self.come_by("before-say", message);
        let said = self.channel.queue(message, fds);
        self.said_accepting |= matches!(message, Message::Accepting);
        self.come_by("after-say", message);
        said
    }

    /// Whether this side has said that it serves.
    pub(crate) fn has_said_accepting(&self) -> bool {
        self.said_accepting
    }

    /// Writes what is queued before this process ends.
    pub(crate) async fn flush(&mut self, patience: Duration) {
        if !self.told_dead {
            self.channel.flush(patience).await;
        }
    }

    /// The next thing. Cancel safe.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            // Both are looked at before the queue: what the queue holds then came first.
            let now = Instant::now();
            let dead = self.peer.is_dead();
            if let Some(heard) = self.listen(now) {
                return heard;
            }
            if dead && !self.told_dead {
                // A process that exits closes its descriptors first: were nobody else at its end, the
                // channel would have ended by now.
                let has_ended = self.deaf_since.is_some() || !self.expects_successor;
                if has_ended {
                    self.told_dead = true;
                    self.deaf_since.get_or_insert(now);
                    // Its descriptors, too.
                    self.channel.forget_queued();
                    return Heard::Died;
                }
                if !std::mem::replace(&mut self.told_vanished, true) {
                    return Heard::Vanished;
                }
            }
            if let Some(timer) = self.timers.expired(now) {
                return Heard::Timer(timer);
            }
            let closed_at = self
                .deaf_since
                .filter(|_| !self.told_broken && !self.told_dead);
            let grace = closed_at.map(|at| at + CLOSING_GRACE);
            if grace.is_some_and(|end| end <= now) {
                self.told_broken = true;
                return Heard::Closed;
            }
            let wake = [self.timers.next(), grace].into_iter().flatten().min();
            tokio::select! {
                turned = self.channel.turn(), if self.deaf_since.is_none() => {
                    if let Err(e) = turned {
                        return self.broken(now, &e);
                    }
                }
                () = self.peer.died(), if !self.told_dead && !self.told_vanished => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                // Nothing can happen any more.
                else => std::future::pending().await,
            }
        }
    }

    fn listen(&mut self, now: Instant) -> Option<Heard> {
        if self.deaf_since.is_some() {
            return None;
        }
        match self.channel.try_recv() {
            Ok(Some(Read::Message(received))) => {
                tracing::trace!(message = %received.message, fds = received.fds.len(), "heard");
                self.come_by("heard", &received.message);
                // An ack may have made room for descriptors that the kernel would not take.
                match self.channel.write_queued() {
                    Ok(()) => Some(Heard::Message(received)),
                    Err(e) => Some(self.broken(now, &e)),
                }
            }
            Ok(Some(Read::End)) => {
                self.deaf_since = Some(now);
                None
            }
            Ok(None) => None,
            Err(e) => Some(self.broken(now, &e)),
        }
    }

    /// A place at which a test may make this process fail.
    fn come_by(&mut self, moment: &str, message: &Message) {
        if let Then::LastWords(status) = failpoint::hit(self.side, moment, message) {
            let why = format!("failpoint {moment}/{message}");
            let _ = match self.side {
                Side::Parent => self.channel.queue(&Message::Abort(why), Vec::new()),
                Side::Child => self.channel.queue(&Message::Refuse(why), Vec::new()),
            };
            std::process::exit(status);
        }
    }

    fn broken(&mut self, now: Instant, error: &ChannelError) -> Heard {
        self.deaf_since = Some(now);
        self.told_broken = true;
        Heard::Broken(error.to_string())
    }
}
