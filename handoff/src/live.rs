//! What is alive in this process: the drain waits for it, and the report counts it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::control::message::ConnectionCounts;

/// How many connections that were cut are named; further ones are only counted. A report that
/// does not fit into a message would be no report.
const MAX_NAMED: usize = 100;

/// The longest name, in bytes.
const MAX_NAME: usize = 200;

/// How many words for what moved are told apart, for the same reason.
const MAX_WORDS: usize = 16;

/// What a connection is that nobody has called anything else.
const RAW: &str = "raw";

#[derive(Debug, Default)]
pub(crate) struct Live {
    connections: AtomicU64,
    /// Acceptors that have not ended: each may still bring a connection.
    others: AtomicU64,
    none: Notify,
    leaving: AtomicBool,
    drained: AtomicU64,
    moved: Mutex<BTreeMap<&'static str, u64>>,
    cut: Mutex<Cut>,
}

#[derive(Debug, Default)]
struct Cut {
    count: u64,
    named: Vec<String>,
}

impl Live {
    /// A connection lives as long as the guard.
    pub(crate) fn connection(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::AcqRel);
        ConnectionGuard {
            live: self.clone(),
            moves_as: RAW,
            accounted: false,
        }
    }

    /// Something else that must end before the process may.
    pub(crate) fn other(self: &Arc<Self>) -> OtherGuard {
        self.others.fetch_add(1, Ordering::AcqRel);
        OtherGuard(self.clone())
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    pub(crate) fn is_none(&self) -> bool {
        // In this order: an acceptor that ends has counted its connections before.
        self.others.load(Ordering::Acquire) == 0 && self.connections() == 0
    }

    /// Wakes when [`is_none`](Self::is_none) may have become true.
    pub(crate) async fn changed(&self) {
        self.none.notified().await;
    }

    /// From here on connections that end are counted.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(crate) fn counts(&self) -> ConnectionCounts {
        let cut = lock(&self.cut);
        let moved = lock(&self.moved);
        ConnectionCounts {
            moved: moved.values().sum(),
            moved_as: moved
                .iter()
                .map(|(what, count)| ((*what).to_owned(), *count))
                .collect(),
            drained: self.drained.load(Ordering::Acquire),
            cut: cut.count,
            named: cut.named.clone(),
        }
    }
}

/// A count is valid whatever panicked.
fn lock<T>(counted: &Mutex<T>) -> MutexGuard<'_, T> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A live connection: [`Serving::finished`](crate::Serving::finished) waits until it is dropped, at most
/// until the drain deadline.
#[derive(Debug)]
#[must_use = "a connection without its guard is not waited for"]
pub struct ConnectionGuard {
    live: Arc<Live>,
    moves_as: &'static str,
    accounted: bool,
}

impl ConnectionGuard {
    /// What the report calls the connection if it moves, e.g. `idle`; else `raw`. A report tells 16
    /// words apart.
    pub fn moves_as(&mut self, what: &'static str) {
        self.moves_as = what;
    }

    /// The connection was closed at the deadline with something under way: `what` names it in the
    /// report, e.g. `127.0.0.1:5000 GET /slow`.
    pub fn cut(mut self, what: &str) {
        self.accounted = true;
        let mut cut = lock(&self.live.cut);
        cut.count += 1;
        if cut.named.len() < MAX_NAMED {
            cut.named
                .push(what[..what.floor_char_boundary(MAX_NAME)].to_owned());
        }
    }

    pub(crate) fn moved(mut self) {
        self.accounted = true;
        let mut moved = lock(&self.live.moved);
        let is_known = moved.contains_key(self.moves_as) || moved.len() < MAX_WORDS;
        *moved
            .entry(if is_known { self.moves_as } else { RAW })
            .or_default() += 1;
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if !self.accounted && self.live.leaving.load(Ordering::Acquire) {
            self.live.drained.fetch_add(1, Ordering::AcqRel);
        }
        if self.live.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.live.none.notify_one();
        }
    }
}

#[derive(Debug)]
pub(crate) struct OtherGuard(Arc<Live>);

impl Drop for OtherGuard {
    fn drop(&mut self) {
        if self.0.others.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_counted_once() {
        let live = Arc::new(Live::default());
        drop(live.connection());
        live.leave();
        let (a, b, c) = (live.connection(), live.connection(), live.connection());
        let mut idle = live.connection();
        idle.moves_as("idle");
        idle.moved();
        let acceptor = live.other();
        a.moved();
        b.cut("127.0.0.1:1 GET /slow");
        drop(c);
        assert!(!live.is_none());
        drop(acceptor);
        assert!(live.is_none());
        let counts = live.counts();
        assert_eq!((counts.moved, counts.drained, counts.cut), (2, 1, 1));
        let moved_as = [("idle".to_owned(), 1), ("raw".to_owned(), 1)];
        assert_eq!(counts.moved_as, BTreeMap::from(moved_as));
        assert_eq!(counts.named, ["127.0.0.1:1 GET /slow"]);
    }

    #[tokio::test]
    async fn the_last_one_wakes_whoever_waits() {
        let live = Arc::new(Live::default());
        let guard = live.connection();
        let waiting = tokio::spawn({
            let live = live.clone();
            async move {
                while !live.is_none() {
                    live.changed().await;
                }
            }
        });
        drop(guard);
        waiting.await.unwrap();
    }
}
