//! The load: takes requests at their due times, finds each a connection, and enters what became of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::client::{Client, Connection, Exchange};
use super::outcome::{Outcome, Verdict};
use super::request::{Ask, Kind};
use super::schedule::{Paced, Pacer, Schedule, Shot};

/// Connections opened at once, at the start: fewer than the shortest backlog takes.
const OPEN_AT_A_TIME: u32 = 64;
/// Before one that cannot be opened is tried again. What that loses, the requests show.
const OPEN_AGAIN: Duration = Duration::from_millis(10);

/// Connections that are kept alive, least recently used first: all of them are used in turn,
/// so that each one lives through reloads in every state.
///
/// One that the server closes is replaced by another, as clients do: a server that closes them at each reload
/// would else have fewer to close at the next.
#[derive(Debug)]
struct Pool {
    client: Arc<Client>,
    in_flight: TaskTracker,
    stop: Arc<AtomicBool>,
    rested: Mutex<VecDeque<Connection>>,
    /// Opened because all others were busy.
    extra: AtomicU64,
}

impl Pool {
    /// The one that has rested longest, and how many were found closed before it.
    fn take(&self) -> (Option<Connection>, u32) {
        let mut rested = self.rested.lock().unwrap_or_else(PoisonError::into_inner);
        let mut closed = 0;
        while let Some(connection) = rested.pop_front() {
            if connection.is_open() {
                return (Some(connection), closed);
            }
            // It was entered into the book by the task that drove it.
            closed += 1;
        }
        (None, closed)
    }

    /// Opens others in the place of `count` that have ended.
    fn replace(self: &Arc<Self>, count: u32) {
        for _ in 0..count {
            self.in_flight.spawn(Arc::clone(self).open_one());
        }
    }

    async fn open_one(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(connection) = self.client.connect(Kind::KeepAlive).await
                && let Some(connection) = self.client.rest(connection, Kind::KeepAlive).await
            {
                return self.put(connection);
            }
            tokio::time::sleep(OPEN_AGAIN).await;
        }
    }

    fn put(&self, connection: Connection) {
        self.rested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(connection);
    }

    async fn on_own_connection(&self, ask: Ask) -> Verdict {
        match self.client.connect(ask.kind).await {
            Ok(mut connection) => self.client.first_exchange(&mut connection, ask).await,
            Err(verdict) => verdict,
        }
    }

    /// On a rested connection, or a new one if there is none.
    async fn on_kept_connection(self: &Arc<Self>, shot: Shot) {
        let ask = shot.ask;
        let mut gone = 0;
        // Ends: each round uses up a connection that rested, or returns.
        loop {
            let (rested, closed) = self.take();
            gone += closed;
            let Some(mut connection) = rested else { break };
            if let Exchange::Done(verdict) = self.client.exchange(&mut connection, ask).await {
                self.replace(gone);
                return self.settle(shot, connection, verdict).await;
            }
            gone += 1;
        }
        match gone.checked_sub(1) {
            // The one opened here takes the place of one of them.
            Some(others) => self.replace(others),
            None => drop(self.extra.fetch_add(1, Ordering::Relaxed)),
        }
        match self.client.connect(ask.kind).await {
            Ok(mut connection) => {
                let verdict = self.client.first_exchange(&mut connection, ask).await;
                self.settle(shot, connection, verdict).await;
            }
            Err(verdict) => {
                self.client.book.enter(ask.kind, shot.due, verdict);
                self.replace(1);
            }
        }
    }

    async fn settle(self: &Arc<Self>, shot: Shot, connection: Connection, verdict: Verdict) {
        self.client.book.enter(shot.ask.kind, shot.due, verdict);
        match self.client.rest(connection, shot.ask.kind).await {
            Some(connection) => self.put(connection),
            None => self.replace(1),
        }
    }

    async fn fire(self: Arc<Self>, shot: Shot) {
        if shot.ask.kind == Kind::NewConnection {
            let verdict = self.on_own_connection(shot.ask).await;
            self.client.book.enter(shot.ask.kind, shot.due, verdict);
        } else {
            self.on_kept_connection(shot).await;
        }
    }
}

/// What the load was, once it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Requests of the schedule, and how late the worst of them left.
    pub(crate) paced: Paced,
    /// Connections opened because all others were busy.
    pub(crate) extra: u64,
}

/// The running load.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pacer: Option<JoinHandle<Paced>>,
    dispatcher: tokio::task::JoinHandle<()>,
    in_flight: TaskTracker,
    pool: Arc<Pool>,
}

impl Load {
    /// Opens `connections`, then sends as `schedule` says, which is given the time of the start.
    pub(crate) async fn start(
        client: &Arc<Client>,
        connections: u32,
        schedule: impl FnOnce(Instant) -> Schedule,
    ) -> Result<Self> {
        let rested = open(client, connections, Kind::KeepAlive).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let in_flight = TaskTracker::new();
        let pool = Arc::new(Pool {
            client: Arc::clone(client),
            in_flight: in_flight.clone(),
            stop: Arc::clone(&stop),
            rested: Mutex::new(rested.into()),
            extra: AtomicU64::new(0),
        });
        let schedule = schedule(Instant::now());
        let (shots, mut due) = mpsc::unbounded_channel();
        let pacer = Pacer::new(Arc::clone(&stop)).run(
            move |n| schedule.due(n),
            move |n, _| shots.send(schedule.shot(n)).is_ok(),
        );
        let dispatcher = tokio::spawn({
            let (in_flight, pool) = (in_flight.clone(), Arc::clone(&pool));
            async move {
                while let Some(shot) = due.recv().await {
                    in_flight.spawn(Arc::clone(&pool).fire(shot));
                }
            }
        });
        Ok(Self {
            stop,
            pacer: Some(pacer),
            dispatcher,
            in_flight,
            pool,
        })
    }

    /// Sends nothing new, waits for what is under way, and closes all connections.
    pub(crate) async fn finish(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(pacer) = self.pacer.take() else {
            bail!("the load was finished twice")
        };
        let paced = tokio::task::spawn_blocking(move || pacer.join())
            .await?
            .map_err(|_| anyhow!("the pacing thread panicked"))?;
        // The pacer has dropped its end: the dispatcher takes what is left, and ends.
        (&mut self.dispatcher).await?;
        self.in_flight.close();
        // Every request is bounded by the client's timeouts: connect, exchange, rest.
        let bound = self.pool.client.timeout * 3 + self.pool.client.one_way * 4;
        if tokio::time::timeout(bound, self.in_flight.wait())
            .await
            .is_err()
        {
            bail!(
                "{} requests are still under way {bound:?} after the last one left",
                self.in_flight.len()
            );
        }
        Ok(Sent {
            paced,
            extra: self.pool.extra.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Opens `count` connections that rest. One that cannot be opened ends the soak before it begins.
async fn open(client: &Arc<Client>, count: u32, kind: Kind) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    let mut left = count;
    while left > 0 {
        let batch = left.min(OPEN_AT_A_TIME);
        left -= batch;
        let opening: JoinSet<_> = (0..batch)
            .map(|_| {
                let client = Arc::clone(client);
                async move { Ok(client.rest(client.connect(kind).await?, kind).await) }
            })
            .collect();
        for opened in opening.join_all().await {
            let lost = |lost: Verdict| anyhow!("{}: {}", lost.outcome.name(), lost.detail);
            connections.extend(opened.map_err(lost)?);
        }
    }
    Ok(connections)
}

impl Client {
    /// On a connection opened for it: not sent is lost.
    pub(crate) async fn first_exchange(&self, connection: &mut Connection, ask: Ask) -> Verdict {
        match self.exchange(connection, ask).await {
            Exchange::Done(verdict) => verdict,
            Exchange::Unsent => Verdict::lost(
                Outcome::Protocol,
                0,
                "a new connection was taken for a rested one".into(),
            ),
        }
    }
}
