//! What is alive in this process: the drain waits for it, the report counts it, and the limit is measured by it.
//!
//! The limit holds over generations: what older ones still serve counts here, until this process itself
//! only finishes what it has begun. A connection that moves here counts here before it ceases to count there:
//! at worst it counts twice for a moment. What older generations say of themselves is as old as their last
//! word, and what the parent accepts between `Commit` and `Accepting` is not known here before `Confirm`:
//! by so many a limit may be overstepped then. Nothing that is adopted is ever refused.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified, watch};

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
    /// Those of older generations.
    older: AtomicU64,
    /// How many there may be in all.
    most: Option<u64>,
    /// One of the numbers has changed.
    changed: Notify,
    /// Acceptors that have not ended: each may still bring a connection.
    others: AtomicU64,
    /// Nothing was left, at least for a moment. Each who waits sees each change: with a wakeup for one, the wrong one might take it.
    none: watch::Sender<()>,
    leaving: AtomicBool,
    drained: AtomicU64,
    moved: Mutex<BTreeMap<&'static str, u64>>,
    cut: Mutex<Cut>,
    /// What is under way, by name.
    waits_for: Mutex<Named>,
}

/// Names of what is under way, of the first so many.
#[derive(Debug, Default)]
struct Named {
    last: u64,
    names: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
struct Cut {
    count: u64,
    named: Vec<String>,
}

impl Live {
    /// At most so many connections are accepted.
    pub(crate) fn limited_to(most: Option<u64>) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    /// A connection lives as long as the guard.
    pub(crate) fn connection(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::AcqRel);
        if self.is_full() {
            self.changed.notify_waiters();
        }
        ConnectionGuard {
            live: self.clone(),
            moves_as: RAW,
            waits_for: AtomicU64::new(0),
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

    /// Its `changed` wakes when [`is_none`](Self::is_none) may have become true since the last time, or since this call.
    pub(crate) fn none(&self) -> watch::Receiver<()> {
        self.none.subscribe()
    }

    /// Resolves when the number of connections has changed since this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// From here on connections that end are counted.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// They are not counted any more: the process serves on.
    pub(crate) fn stay(&self) {
        self.leaving.store(false, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The process ends with what is under way: all of it counts as cut.
    pub(crate) fn cut_all(&self) {
        let names = self.waits_for(MAX_NAMED);
        let mut cut = lock(&self.cut);
        cut.count += self.connections();
        let room = MAX_NAMED.saturating_sub(cut.named.len());
        cut.named.extend(names.into_iter().take(room));
    }

    /// How many connections older generations still serve, as far as is known.
    pub(crate) fn set_older(&self, connections: u64) {
        if self.older.swap(connections, Ordering::AcqRel) != connections {
            self.changed.notify_waiters();
        }
    }

    /// Returns when another connection may be accepted. Cancel safe.
    pub(crate) async fn room(&self) {
        self.until(false).await;
    }

    /// Returns when no further connection may be accepted. Cancel safe.
    pub(crate) async fn full(&self) {
        self.until(true).await;
    }

    async fn until(&self, full: bool) {
        loop {
            let changed = self.changed.notified();
            if self.is_full() == full {
                return;
            }
            changed.await;
        }
    }

    fn is_full(&self) -> bool {
        let Some(most) = self.most else { return false };
        // Who leaves finishes what has come to it, whatever others have.
        let older = if self.leaving.load(Ordering::Acquire) {
            0
        } else {
            self.older.load(Ordering::Acquire)
        };
        // After the others: what has moved between the two looks is counted twice, and not missed.
        older.saturating_add(self.connections()) >= most
    }

    /// The first of what is under way, by name.
    pub(crate) fn waits_for(&self, most: usize) -> Vec<String> {
        let waits_for = lock(&self.waits_for);
        waits_for.names.values().take(most).cloned().collect()
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

fn shortened(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME)].to_owned()
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
    /// Its place among what is under way; 0 while it has none.
    waits_for: AtomicU64,
    accounted: bool,
}

impl ConnectionGuard {
    /// What the report calls the connection if it moves, e.g. `idle`; else `raw`. A report tells 16
    /// words apart.
    pub fn moves_as(&mut self, what: &'static str) {
        self.moves_as = what;
    }

    /// While this process is being replaced: what keeps the connection from moving or ending, e.g.
    /// `127.0.0.1:5000 GET /slow`. `status` shows it, of the first 100 connections.
    pub fn waits_for(&self, what: &str) {
        let mut waits_for = lock(&self.live.waits_for);
        let mut place = self.waits_for.load(Ordering::Acquire);
        if place == 0 {
            if waits_for.names.len() >= MAX_NAMED {
                return;
            }
            waits_for.last += 1;
            place = waits_for.last;
            self.waits_for.store(place, Ordering::Release);
        }
        waits_for.names.insert(place, shortened(what));
    }

    /// The connection was closed at the deadline with something under way: `what` names it in the
    /// report, e.g. `127.0.0.1:5000 GET /slow`.
    pub fn cut(mut self, what: &str) {
        self.accounted = true;
        let mut cut = lock(&self.live.cut);
        cut.count += 1;
        if cut.named.len() < MAX_NAMED {
            cut.named.push(shortened(what));
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
        let place = *self.waits_for.get_mut();
        if place != 0 {
            lock(&self.live.waits_for).names.remove(&place);
        }
        if !self.accounted && self.live.leaving.load(Ordering::Acquire) {
            self.live.drained.fetch_add(1, Ordering::AcqRel);
        }
        if self.live.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.live.none.send_replace(());
        }
        // Each acceptor may be waiting, and the place may be any one's.
        self.live.changed.notify_waiters();
    }
}

#[derive(Debug)]
pub(crate) struct OtherGuard(Arc<Live>);

impl Drop for OtherGuard {
    fn drop(&mut self) {
        if self.0.others.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.send_replace(());
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

    #[test]
    fn what_is_under_way_has_a_name_while_it_is() {
        let live = Arc::new(Live::default());
        let (slow, idle, upload) = (live.connection(), live.connection(), live.connection());
        slow.waits_for("a");
        slow.waits_for("127.0.0.1:1 GET /slow");
        upload.waits_for("127.0.0.1:2 POST /upload");
        assert_eq!(live.waits_for(1), ["127.0.0.1:1 GET /slow"]);
        drop((slow, idle));
        assert_eq!(live.waits_for(5), ["127.0.0.1:2 POST /upload"]);
        upload.moved();
        assert_eq!(live.waits_for(5), [""; 0]);
        let many: Vec<_> = (0..MAX_NAMED + 5).map(|_| live.connection()).collect();
        many.iter().for_each(|one| one.waits_for("x"));
        assert_eq!(live.waits_for(usize::MAX).len(), MAX_NAMED);
    }

    #[tokio::test]
    async fn the_limit_holds_over_generations() {
        let live = Arc::new(Live::limited_to(Some(2)));
        live.room().await;
        live.set_older(2);
        live.full().await;
        // One moves here: never less than two in the sum.
        let adopted = live.connection();
        live.full().await;
        live.set_older(1);
        live.full().await;
        let waiting = tokio::spawn({
            let live = live.clone();
            async move { live.room().await }
        });
        drop(adopted);
        waiting.await.unwrap();
        // Who leaves counts only its own.
        live.set_older(2);
        live.full().await;
        live.leave();
        live.room().await;
    }

    #[tokio::test]
    async fn the_last_one_wakes_whoever_waits() {
        let live = Arc::new(Live::default());
        let guard = live.connection();
        let waiting = tokio::spawn({
            let live = live.clone();
            async move {
                let (mut one, mut other) = (live.none(), live.none());
                // Both: what one has seen is not taken from the other.
                one.changed().await.unwrap();
                other.changed().await.unwrap();
                assert!(live.is_none());
            }
        });
        while live.none.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
        drop(guard);
        waiting.await.unwrap();
    }
}
