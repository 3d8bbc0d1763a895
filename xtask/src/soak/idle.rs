//! Connections that rest: looked at after each reload, and used now and then.
//!
//! After a reload every connection is looked at: it must be open, and no byte may have
//! come. A look is a `poll` of all sockets at once, not a request: with 10,000 connections it takes
//! the client a few milliseconds, and the server nothing. Then a sample of them, each in its turn, carries a request,
//! which a generation that is still there must answer on the same connection.
//!
//! These clients are near, whatever the distance of the load: what distance brings to light is the
//! request that meets a close under way, and here the close alone is a loss already.
//!
//! Failure rules: a connection that has ended, or on which a byte came, is entered as closed,
//! once, and replaced, so that later reloads meet as many. What is lost on one that carries a request is
//! entered as any other request. Each look and each request is bounded in time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Client, Exchange, Socket};
use super::outcome::{Outcome, Verdict};
use super::request::{Ask, Kind};

/// Connections opened, or used, at a time: fewer than the shortest backlog takes.
const AT_A_TIME: usize = 64;

/// What was found after one reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Look {
    /// Connections that were to rest.
    pub(crate) looked_at: u64,
    /// Of these, open and silent.
    pub(crate) alive: u64,
    /// Connections that then carried a request.
    pub(crate) used: u64,
    /// Of these, answered rightly and still open.
    pub(crate) right: u64,
}

/// The pool. The next one to be used is in front.
#[derive(Debug)]
pub(crate) struct Idle {
    client: Arc<Client>,
    count: usize,
    sample: usize,
    resting: VecDeque<Resting>,
}

impl Idle {
    /// Opens `count` connections, of which `sample` are used after each reload.
    ///
    /// # Errors
    ///
    /// One that cannot be opened ends the soak before it begins.
    pub(crate) async fn open(client: &Arc<Client>, count: u32, sample: u32) -> Result<Self> {
        let mut pool = Self {
            client: Arc::clone(client),
            count: count as usize,
            sample: sample as usize,
            resting: VecDeque::new(),
        };
        let lost = pool.fill().await.into_iter().next();
        let lost = lost.map(|lost| {
            anyhow!(
                "an idle connection: {}: {}",
                lost.outcome.name(),
                lost.detail
            )
        });
        lost.map_or(Ok(pool), Err)
    }

    /// Looks at all, replaces those that have ended, and uses the sample.
    pub(crate) async fn check(&mut self) -> Look {
        self.tend(self.sample).await
    }

    /// The same, but uses all: after the last reload.
    pub(crate) async fn finish(mut self) -> Look {
        self.tend(self.count).await
    }

    async fn tend(&mut self, sample: usize) -> Look {
        let mut look = Look {
            looked_at: self.resting.len() as u64,
            ..Look::default()
        };
        self.look();
        look.alive = self.resting.len() as u64;
        let mut left = sample.min(self.resting.len());
        look.used = left as u64;
        while left > 0 {
            let batch = left.min(AT_A_TIME);
            left -= batch;
            look.right += self.use_some(batch).await;
        }
        let due = Instant::now();
        for lost in self.fill().await {
            self.client.book.enter(Kind::Idle, due, lost);
        }
        look
    }

    /// Takes those out that have ended, or are not silent.
    fn look(&mut self) {
        let stirred = match stirred(&self.resting) {
            Ok(stirred) => stirred,
            Err(err) => {
                // A pool that cannot be looked at proves nothing.
                let lost = Verdict::lost(Outcome::Client, 0, format!("poll: {err}"));
                return self.client.book.enter(Kind::Idle, Instant::now(), lost);
            }
        };
        let mut stirred = stirred.into_iter();
        self.resting.retain(|resting| {
            let Some(why) = stirred.next().flatten() else {
                return true;
            };
            self.client
                .book
                .closed(Kind::Idle, resting.socket.port, why);
            false
        });
    }

    /// A request on each of the first `count`, at the same time. Returns how many went well.
    async fn use_some(&mut self, count: usize) -> u64 {
        let mut using = JoinSet::new();
        for resting in self.resting.drain(..count) {
            using.spawn(resting.used());
        }
        let mut right = 0;
        while let Some(used) = using.join_next().await {
            if let Ok(Some(resting)) = used {
                right += u64::from(resting.right);
                self.resting.push_back(resting);
            }
        }
        right
    }

    /// Opens what is missing. Returns those that could not be opened; after such a batch it goes on later.
    async fn fill(&mut self) -> Vec<Verdict> {
        let mut lost = Vec::new();
        while lost.is_empty() && self.resting.len() < self.count {
            let batch = AT_A_TIME.min(self.count - self.resting.len());
            let opening: JoinSet<_> = (0..batch)
                .map(|_| {
                    let client = Arc::clone(&self.client);
                    async move {
                        client
                            .socket()
                            .await
                            .map(|socket| Resting::new(client, socket))
                    }
                })
                .collect();
            for opened in opening.join_all().await {
                match opened {
                    Ok(resting) => self.resting.push_back(resting),
                    Err(verdict) => lost.push(verdict),
                }
            }
        }
        lost
    }
}

/// One connection.
#[derive(Debug)]
struct Resting {
    client: Arc<Client>,
    socket: Socket,
    /// How its last request went.
    right: bool,
    _counted: Counted,
}

impl Resting {
    fn new(client: Arc<Client>, socket: Socket) -> Self {
        let counted = Counted::new(&client.open);
        Self {
            client,
            socket,
            right: true,
            _counted: counted,
        }
    }

    /// Carries a request. `None`: it is not open any more; why is in the book.
    async fn used(self) -> Option<Self> {
        let Self {
            client,
            socket,
            _counted,
            ..
        } = self;
        let (ask, due) = (Ask::plain(Kind::Idle), Instant::now());
        let (exchange, socket) = client.lend(socket, ask).await;
        let right = match exchange {
            Exchange::Done(verdict) => {
                let right = verdict.outcome == Outcome::Ok;
                client.book.enter(ask.kind, due, verdict);
                right
            }
            // Closed between the look and the request: in the book already.
            Exchange::Unsent => false,
        };
        socket.map(|socket| Self {
            client,
            socket,
            right,
            _counted,
        })
    }
}

/// As long as it lives, one more connection is open.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For each connection why it does not rest; `None`: it does.
fn stirred(pool: &VecDeque<Resting>) -> io::Result<Vec<Option<String>>> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut sockets: Vec<PollFd<'_>> = pool
        .iter()
        .map(|resting| PollFd::new(&resting.socket.socket, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut sockets, Some(&now)) {
            // Even a poll that does not wait is interrupted by a signal that is pending.
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
            Ok(_) => break,
        }
    }
    let stirs = |(socket, resting): (&PollFd<'_>, &Resting)| {
        let silent = socket.revents().is_empty();
        (!silent).then(|| why(&resting.socket))
    };
    Ok(sockets.iter().zip(pool).map(stirs).collect())
}

/// What there is to read on a connection where nothing should be.
fn why(socket: &Socket) -> String {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match recv(&socket.socket, &mut [0; 64], flags) {
        Ok((_, 0)) => "the server closed it while it rested: Eof".into(),
        Ok((_, n)) => format!("{n} bytes or more came while it rested"),
        Err(err) => format!("the server closed it while it rested: {err}"),
    }
}
