//! The messages of all sessions: an open loop, as the requests are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::client::Client;
use super::super::latency::ms;
use super::super::schedule::{Paced, Pacer, due};
use super::session::{Message, Session, Spoken};

/// What the sessions were, once they are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Sessions {
    /// Sessions opened at the start.
    pub(crate) sessions: u64,
    /// Of these, such as were on one connection from beginning to end.
    pub(crate) unbroken: u64,
    /// Messages that were due.
    pub(crate) messages: u64,
    /// The latest of them, against its due time.
    pub(crate) worst_lateness_ms: f64,
}

/// The running sessions.
#[derive(Debug)]
pub(crate) struct Messages {
    client: Arc<Client>,
    stop: Arc<AtomicBool>,
    pacer: Option<JoinHandle<Paced>>,
    sessions: JoinSet<Spoken>,
}

impl Messages {
    /// Opens `sessions` and lets them send `rate` messages a second, in all: each in its turn.
    ///
    /// # Errors
    ///
    /// A session that cannot be opened ends the soak before it begins.
    pub(crate) async fn start(client: &Arc<Client>, sessions: u32, rate: u32) -> Result<Self> {
        let (mut queues, mut running) = (Vec::new(), JoinSet::new());
        for _ in 0..sessions {
            let opened = Session::open(Arc::clone(client)).await;
            let session = opened
                .map_err(|lost| anyhow!("{}: {}", lost.outcome.name(), lost.detail))
                .context("failed to open a session at /ws; `--websockets 0` leaves them out")?;
            let (queue, messages) = mpsc::unbounded_channel();
            queues.push(queue);
            running.spawn(session.run(messages));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let pacer = (!queues.is_empty()).then(|| {
            let turns = queues.len() as u64;
            let send = move |number, due| {
                let queue = &queues[(number % turns) as usize];
                queue.send(Message { number, due }).is_ok()
            };
            Pacer::new(Arc::clone(&stop)).run(move |n| due(start, rate, n), send)
        });
        Ok(Self {
            client: Arc::clone(client),
            stop,
            pacer,
            sessions: running,
        })
    }

    /// Sends nothing new, waits for what is unanswered, and closes all sessions.
    pub(crate) async fn finish(mut self) -> Result<Sessions> {
        self.stop.store(true, Ordering::Relaxed);
        let paced = match self.pacer.take() {
            Some(pacer) => tokio::task::spawn_blocking(move || pacer.join())
                .await?
                .map_err(|_| anyhow!("the pacing thread panicked"))?,
            None => Paced::default(),
        };
        // Each message is bounded by the client's timeouts: connect, upgrade, answer.
        let bound = self.client.timeout * 4 + self.client.one_way * 4;
        let (sessions, mut unbroken) = (self.sessions.len() as u64, 0);
        let all = async {
            while let Some(spoken) = self.sessions.join_next().await {
                unbroken += u64::from(spoken?.broken == 0);
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(bound, all).await {
            Ok(ended) => ended?,
            Err(_) => bail!("WebSocket sessions have not ended {bound:?} after the last message"),
        }
        Ok(Sessions {
            sessions,
            unbroken,
            messages: paced.shots,
            worst_lateness_ms: ms(paced.worst_lateness),
        })
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
