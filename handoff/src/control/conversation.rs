//! What a person wants of a server: its status, a reload, its end. Each is a whole conversation with
//! a deadline.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::client::RETRY_PAUSE;
use super::message::{ConnectionCounts, Generation};
use super::{Client, ClientError, DryRun, Event, Outcome, Request, Status};

/// How long a socket without any process behind it is tried again. A successor holds the same
/// listener since before the commit, so that this does not happen in a reload: whoever held it is dead.
pub(super) const NOBODY_PATIENCE: Duration = Duration::from_secs(1);

/// Asks for the status: of whoever serves next, too, if the process that heard the question goes away before
/// it has answered.
///
/// # Errors
///
/// See [`ClientError`]; [`ClientError::TimedOut`] after `patience`.
pub async fn status(path: &Path, patience: Duration) -> Result<Status, ClientError> {
    let answer = async {
        loop {
            let answer = ask(path, &Request::Status, |event| match event {
                Event::Status(status) => Some(*status),
                _ => None,
            });
            match answer.await {
                // It was accepted by a process that died. A question changes nothing, and a socket
                // that nobody is left to answer on refuses the next connection.
                Err(ClientError::Gone | ClientError::Io(_)) => sleep(RETRY_PAUSE).await,
                answer => return answer,
            }
        }
    };
    within(patience, "the status", answer).await
}

/// Asks the server to stop, and says which process does. It is gone when its pidfd says so.
///
/// # Errors
///
/// See [`ClientError`]; [`ClientError::TimedOut`] if it does not even answer within `patience`.
pub async fn stop(path: &Path, patience: Duration) -> Result<Generation, ClientError> {
    let answer = ask(path, &Request::Stop, |event| match event {
        Event::Stopping { process } => Some(process),
        _ => None,
    });
    within(patience, "an answer", answer).await
}

async fn within<T>(
    patience: Duration,
    awaited: &'static str,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(patience, answer)
        .await
        .unwrap_or(Err(ClientError::TimedOut {
            awaited,
            after: patience,
        }))
}

async fn ask<T>(
    path: &Path,
    request: &Request,
    mut answer: impl FnMut(Event) -> Option<T>,
) -> Result<T, ClientError> {
    let mut client = Client::connect(path).await?;
    client.request(request).await?;
    loop {
        match client.next_event().await?.ok_or(ClientError::Gone)? {
            Event::Refused { reason } => return Err(ClientError::Refused { reason }),
            Event::Invalid { reason } => return Err(ClientError::Invalid { reason }),
            event => {
                if let Some(answer) = answer(event) {
                    return Ok(answer);
                }
            }
        }
    }
}

/// How long [`reload`] waits, from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For the reload to end, one way or the other, the probation not counted.
    pub outcome: Duration,
    /// Then, for the parent to finish what it had begun; `None` not to wait for that.
    pub drained: Option<Duration>,
}

/// How the parent ended: [`Event::Drained`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// When, from the request, in microseconds.
    pub at_us: u64,
    /// What became of its connections.
    pub connections: ConnectionCounts,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadReport {
    /// Its id.
    pub reload: u64,
    /// Whether the new generation serves.
    pub outcome: Outcome,
    /// How the parent ended: `None` if the reload failed, or this was not waited for, or did not
    /// come in time, or nobody was left to ask.
    pub drained: Option<Drained>,
}

/// Asks for a reload and follows it to its end: also when the process that answers goes away, by
/// asking its successor. `on_event` is given all that is said on the way, the end included.
///
/// That the parent's end was not learned in time is no error: the new generation serves.
///
/// # Errors
///
/// See [`ClientError`]. [`ClientError::Refused`]: nothing was changed. [`ClientError::Gone`],
/// [`ClientError::Forgotten`] and [`ClientError::TimedOut`]: the outcome is not known.
pub async fn reload(
    path: &Path,
    waits: Waits,
    on_event: impl FnMut(&Event),
) -> Result<ReloadReport, ClientError> {
    pursue(path, Request::Reload, waits, on_event).await
}

/// Ends the probation of the last reload now, and follows that reload to its end, as [`reload`] does.
///
/// # Errors
///
/// As [`reload`]. [`ClientError::Refused`]: no reload is on probation.
pub async fn confirm(path: &Path, patience: Duration) -> Result<ReloadReport, ClientError> {
    let waits = Waits {
        outcome: patience,
        drained: None,
    };
    pursue(path, Request::Confirm, waits, |_| {}).await
}

/// Takes the last reload back, which is on probation, and follows it to its end. It has been taken back if its outcome
/// is [`Outcome::Failed`]; it was too late for that if it is [`Outcome::Confirmed`].
///
/// # Errors
///
/// As [`confirm`].
pub async fn rollback(path: &Path, patience: Duration) -> Result<ReloadReport, ClientError> {
    let waits = Waits {
        outcome: patience,
        drained: None,
    };
    pursue(path, Request::Rollback, waits, |_| {}).await
}

/// How a dry run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunReport {
    /// Its id.
    pub reload: u64,
    /// Whether a reload would have come as far as it can come without a decision.
    pub outcome: DryRun,
}

/// Asks for a dry run and follows it to its end: a child is started and sent away once it is ready, and nothing of the
/// running process changes. `on_event` is given all that is said on the way, the end included.
///
/// # Errors
///
/// See [`ClientError`]. [`ClientError::Refused`]: another reload is under way. [`ClientError::Invalid`]: the server is of a
/// version that knows no dry runs, and has done nothing. [`ClientError::Gone`]: it went away meanwhile.
pub async fn dry_run(
    path: &Path,
    patience: Duration,
    mut on_event: impl FnMut(&Event),
) -> Result<DryRunReport, ClientError> {
    // Not `reload` with a field, which an older server would not know: it would reload.
    let answer = ask(path, &Request::DryRun, |event| {
        on_event(&event);
        match event {
            Event::DryRun { reload, outcome } => Some(DryRunReport { reload, outcome }),
            _ => None,
        }
    });
    within(patience, "the dry run's outcome", answer).await
}

async fn pursue(
    path: &Path,
    request: Request,
    waits: Waits,
    on_event: impl FnMut(&Event),
) -> Result<ReloadReport, ClientError> {
    let reload = match request {
        // Whoever is asked to give up the service may do so before it has said which reload that ends. Who knows it asks
        // the one that serves then.
        Request::Confirm | Request::Rollback => {
            let status = status(path, waits.outcome).await?;
            status.probation.map(|probation| probation.reload)
        }
        _ => None,
    };
    let mut pursuit = Pursuit {
        path,
        request,
        on_event,
        lasts: Duration::ZERO,
        client: None,
        nobody_since: None,
        asked: false,
        asks_again: false,
        reload,
        outcome: None,
        drained: None,
    };
    let (reload, outcome) = pursuit.outcome(waits.outcome).await?;
    if let (Outcome::Confirmed { .. }, Some(patience)) = (&outcome, waits.drained) {
        // Neither a deadline nor an error changes the outcome.
        let _ = timeout(patience, pursuit.drained()).await;
    }
    Ok(ReloadReport {
        reload,
        outcome,
        drained: pursuit.drained,
    })
}

/// A reload that is followed from one process to the next.
struct Pursuit<'a, F> {
    path: &'a Path,
    /// What is asked for at first.
    request: Request,
    on_event: F,
    /// How long the probation is: nobody can know the outcome sooner.
    lasts: Duration,
    client: Option<Client>,
    nobody_since: Option<Instant>,
    /// Whether the reload was asked for. That is done once, whatever happens.
    asked: bool,
    /// By now what is asked for is the outcome.
    asks_again: bool,
    reload: Option<u64>,
    outcome: Option<Outcome>,
    drained: Option<Drained>,
}

impl<F: FnMut(&Event)> Pursuit<'_, F> {
    async fn outcome(&mut self, patience: Duration) -> Result<(u64, Outcome), ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            if let (Some(reload), Some(outcome)) = (self.reload, &self.outcome) {
                return Ok((reload, outcome.clone()));
            }
            // A probation that is too long for the clock has no end.
            let deadline = deadline.checked_add(self.lasts).unwrap_or(deadline);
            timeout_at(deadline, self.step())
                .await
                .unwrap_or(Err(ClientError::TimedOut {
                    awaited: "the reload's outcome",
                    after: patience + self.lasts,
                }))?;
        }
    }

    async fn drained(&mut self) -> Result<(), ClientError> {
        while self.drained.is_none() {
            self.step().await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), ClientError> {
        let Some(client) = &mut self.client else {
            return self.connect().await;
        };
        match client.next_event().await {
            Ok(Some(event)) => self.learn(event),
            Ok(None) | Err(ClientError::Io(_)) => {
                self.client = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let request = match (self.asked, self.reload) {
            (false, _) => self.request.clone(),
            (true, Some(reload)) => {
                // The process that ends may still accept, once.
                sleep(RETRY_PAUSE).await;
                self.asks_again = true;
                Request::Outcome { reload }
            }
            // Without an id nobody can be asked; and to ask again for a reload might be a second one.
            (true, None) => return Err(ClientError::Gone),
        };
        let mut client = match Client::connect(self.path).await {
            Err(error) if self.asked && error.is_not_running() => {
                let since = *self.nobody_since.get_or_insert_with(Instant::now);
                return if since.elapsed() < NOBODY_PATIENCE {
                    Ok(())
                } else {
                    Err(ClientError::Gone)
                };
            }
            client => client?,
        };
        self.nobody_since = None;
        self.asked = true;
        client.request(&request).await?;
        self.client = Some(client);
        Ok(())
    }

    fn learn(&mut self, event: Event) -> Result<(), ClientError> {
        (self.on_event)(&event);
        match event {
            Event::Phase {
                reload, lasts_ms, ..
            } => {
                self.reload = Some(reload);
                self.lasts = Duration::from_millis(lasts_ms.unwrap_or(0)).max(self.lasts);
            }
            Event::Reloaded { reload, outcome } => {
                self.reload = Some(reload);
                self.outcome = Some(outcome);
            }
            Event::Drained {
                at_us, connections, ..
            } => self.drained = Some(Drained { at_us, connections }),
            Event::Refused { reason } => {
                // Once it was asked for, and whoever was asked is gone, this is the answer to `Outcome`.
                return Err(match self.reload {
                    Some(reload) if self.asks_again => ClientError::Forgotten { reload, reason },
                    _ => ClientError::Refused { reason },
                });
            }
            Event::Invalid { reason } => return Err(ClientError::Invalid { reason }),
            _ => {}
        }
        Ok(())
    }
}
