//! After the load: what is left, what the server counted, and whether it stops.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::builds::Place;
use super::results::{Ending, Reload};
use super::server::Server;
use super::{counter, process};

/// For generations that drain, and for the server to end: longer than its drain deadline.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);

/// What is left once the load has ended. What cannot be learnt stays empty, and fails its check.
pub(crate) async fn end(place: &Place, server: &Server<'_>, counted_before: u64) -> Ending {
    let mut ending = Ending {
        server_requests: counter::requests(server.address)
            .await
            .ok()
            .and_then(|now| now.checked_sub(counted_before)),
        ..Ending::default()
    };
    if let Ok(status) = server.status().await {
        (ending.generation, ending.serving) = (Some(status.generation), Some(status.pid));
    }
    ending.processes = wait_until_left(place, 1).await;
    match server.stop().await {
        Ok(output) => {
            ending.stop_exit = output.status.code();
            ending.stop_output =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into();
        }
        Err(err) => ending.stop_output = format!("{err:#}"),
    }
    ending.left = wait_until_left(place, 0).await;
    ending.port = server
        .port_is_free()
        .await
        .err()
        .map(|err| format!("{err:#}"));
    ending
}

/// Of the processes that answered, those that are neither the first generation nor one that a reload reported.
pub(crate) fn strangers(answered: &BTreeSet<u32>, first: u32, reloads: &[Reload]) -> Vec<u32> {
    let known: BTreeSet<u32> = reloads
        .iter()
        .filter_map(|reload| reload.pid)
        .chain([first])
        .collect();
    answered.difference(&known).copied().collect()
}

/// The processes that run from `place`, once they are no more than `count` or have had their time.
async fn wait_until_left(place: &Place, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        let running = process::running_under(place.path()).unwrap_or_default();
        if running.len() <= count || Instant::now() > deadline {
            return running;
        }
        // There is no event to wait for: they are not our children.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
