//! Finds the moment at which the new generation answers first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::request::{Ask, Kind};

/// A server that refuses connections must not make the prober spin.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

/// Opens connection after connection until one is answered by `generation` or a later one,
/// and returns when that was. The caller bounds it in time.
///
/// It asks from nearby, whatever the distance of the load: what it measures is the server.
/// What it loses is lost like any other request.
pub(crate) async fn first_answer(client: Arc<Client>, generation: u64) -> Instant {
    loop {
        let began = Instant::now();
        let ask = Ask::plain(Kind::Probe);
        let verdict = match client.connect(ask.kind).await {
            Ok(mut connection) => client.first_exchange(&mut connection, ask).await,
            Err(verdict) => verdict,
        };
        let (found, answered, at) = (
            verdict.generation >= Some(generation),
            verdict.answered,
            verdict.at,
        );
        client.book.enter(ask.kind, began, verdict);
        if found {
            return at;
        }
        if !answered {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}
