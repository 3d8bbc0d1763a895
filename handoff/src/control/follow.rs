//! All that happens to reloads, from one process of the succession to the next.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;

use tokio::time::{Instant, sleep};

use super::client::RETRY_PAUSE;
use super::conversation::NOBODY_PATIENCE;
use super::{Client, ClientError, Event, Outcome, Request};

/// How many ends of reloads are remembered, so that none is told twice: both generations tell of one.
const REMEMBERED: usize = 64;

/// How often one that will not answer is asked again, one after the other: for a second or so.
const REFUSALS: u32 = 50;

/// Follows a server through its generations, and gives `on_event` all that it says of reloads, each thing once: `phase`, `stderr`,
/// `reloaded`, `dry-run`, `drained`, `stopping`. Returns when the server was stopped and has gone, or `on_event` has had enough.
///
/// What happens while one process has gone and the next one is being asked is not heard: the first `phase` of a reload that
/// follows another at once, for instance. How reloads ended is.
///
/// # Errors
///
/// See [`ClientError`]. [`ClientError::Gone`]: the server went away, and was not told to.
pub async fn events(
    path: &Path,
    mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let mut current = subscribe(path).await?;
    // A generation that was replaced, until it has finished.
    let mut leaving: Option<Client> = None;
    let mut told = Told::default();
    let mut is_stopping = false;
    let mut refused = 0;
    loop {
        let (heard, is_current) = tokio::select! {
            biased;
            heard = next_of(&mut leaving) => (heard, false),
            heard = next_of_one(&mut current) => (heard, true),
        };
        let Some(event) = heard? else {
            match (is_current, is_stopping) {
                (false, _) => leaving = None,
                (true, true) => return Ok(()),
                (true, false) => current = subscribe_again(path).await?,
            }
            continue;
        };
        match &event {
            // A process that is about to end says so: the next one is asked.
            Event::Refused { .. } if is_current && refused < REFUSALS => {
                refused += 1;
                sleep(RETRY_PAUSE).await;
                current = subscribe_again(path).await?;
                continue;
            }
            Event::Refused { reason } => {
                let reason = reason.clone();
                return Err(ClientError::Refused { reason });
            }
            Event::Invalid { reason } => {
                let reason = reason.clone();
                return Err(ClientError::Invalid { reason });
            }
            event if told.is_known(event) => continue,
            event if on_event(event).is_break() => return Ok(()),
            _ => {}
        }
        refused = 0;
        match &event {
            Event::Stopping { .. } => is_stopping |= is_current,
            Event::Reloaded {
                outcome: Outcome::Confirmed { .. },
                ..
            } if is_current => {
                let next = subscribe_again(path).await?;
                leaving = Some(std::mem::replace(&mut current, next));
            }
            _ => {}
        }
    }
}

async fn subscribe(path: &Path) -> Result<Client, ClientError> {
    let mut client = Client::connect(path).await?;
    client.request(&Request::Events).await?;
    Ok(client)
}

/// Asks whoever has the socket by now.
async fn subscribe_again(path: &Path) -> Result<Client, ClientError> {
    let since = Instant::now();
    loop {
        match subscribe(path).await {
            Err(ClientError::Connect(error)) if error.is_not_running() => {
                if since.elapsed() >= NOBODY_PATIENCE {
                    return Err(ClientError::Gone);
                }
                sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// A connection that breaks has ended. Cancel safe.
async fn next_of_one(client: &mut Client) -> Result<Option<Event>, ClientError> {
    match client.next_event().await {
        Err(ClientError::Io(_)) => {
            // Not in a circle without a pause.
            sleep(RETRY_PAUSE).await;
            Ok(None)
        }
        heard => heard,
    }
}

async fn next_of(client: &mut Option<Client>) -> Result<Option<Event>, ClientError> {
    match client {
        Some(client) => next_of_one(client).await,
        None => std::future::pending().await,
    }
}

/// The ends that were told.
#[derive(Debug, Default)]
struct Told(VecDeque<(u64, bool)>);

impl Told {
    fn is_known(&mut self, event: &Event) -> bool {
        let end = match event {
            Event::Reloaded { reload, .. } => (*reload, false),
            Event::Drained { reload, .. } => (*reload, true),
            _ => return false,
        };
        if self.0.contains(&end) {
            return true;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(end);
        false
    }
}
