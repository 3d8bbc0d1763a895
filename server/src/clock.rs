//! The two timeouts of a connection that waits for a request.
//!
//! hyper has timers of its own, but they die with the hyper connection: a client that sends a byte
//! at a time would get a fresh timeout with every reload. These are kept as points in time, travel
//! as durations ([`Spent`]), and cost nothing while requests flow: the tokio timer behind them is
//! set again only when it fires too early, not at every request.

use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Config;

/// How long to wait for what never comes: an `Instant` cannot be infinite.
pub(crate) const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How long hyper is kept for a connection that rests: longer than between the requests of a client that is at work, and
/// short beside the time for which idle connections are kept.
pub(crate) const LOOK_AFTER: Duration = Duration::from_secs(2);

/// How much longer a client may take when its bytes arrived just before its time was up.
///
/// After a suspend or SIGSTOP every timer has expired, while the rest of the head lies in the
/// kernel and only needs to be read.
const GRACE: Duration = Duration::from_millis(100);

/// What a connection has used up of its timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Since the wait for a request began: since the accept, or the end of the last exchange.
    pub(crate) waited: Duration,
    /// Since the first byte of the request's head came, if it has.
    pub(crate) head: Option<Duration>,
}

/// Since when a connection has been waiting, and what for.
#[derive(Debug)]
pub(crate) struct Clock {
    /// No exchange is under way.
    resting: bool,
    /// The exchange whose end began this wait.
    exchange: u64,
    waiting_since: Instant,
    /// When the first byte of the next head came, as far as is known: it may be that of a blank line.
    head_since: Option<Instant>,
    /// It is that of a head.
    is_head: bool,
    /// hyper's buffer was found to hold no part of a head when the wait began.
    looked: bool,
    /// [`GRACE`] was granted in this wait, until then.
    graced: Option<Instant>,
}

impl Clock {
    /// A connection at rest that has used up `spent`, before exchange number `exchange` + 1.
    pub(crate) fn resume(spent: Spent, exchange: u64) -> Self {
        let now = Instant::now();
        // A machine may have been up for less than what was spent on another boot's clock; never
        // panic over it.
        let ago = |spent| now.checked_sub(spent).unwrap_or(now);
        Self {
            resting: true,
            exchange,
            waiting_since: ago(spent.waited),
            head_since: spent.head.map(ago),
            is_head: spent.head.is_some(),
            // What another hyper had read ahead came with the connection, so it is known.
            looked: true,
            graced: None,
        }
    }

    /// A head that is late already had its [`GRACE`] in the process that it comes from: granted anew
    /// by each, it would never end for a client that sends a byte at a time.
    pub(crate) fn arrives(&mut self, config: &Config) {
        let now = Instant::now();
        if self.has_head() && self.deadline(config) <= now {
            self.graced = Some(now);
        }
    }

    /// What has been used up by now, for another process to [`Clock::resume`] with. `has_head`: part
    /// of a head has been read.
    pub(crate) fn spent(&self, has_head: bool) -> Spent {
        let now = Instant::now();
        let waited = now.saturating_duration_since(self.waiting_since);
        let since = |begun| now.saturating_duration_since(begun);
        Spent {
            waited,
            head: has_head.then(|| self.head_since.map_or(waited, since)),
        }
    }

    /// An exchange is under way: no timeout runs.
    pub(crate) fn pause(&mut self) {
        self.resting = false;
    }

    /// No exchange is under way; the last one was number `exchange`. `arrived`: bytes have come
    /// since.
    pub(crate) fn rest(&mut self, now: Instant, exchange: u64, arrived: bool) {
        if !self.resting || exchange != self.exchange {
            *self = Self {
                resting: true,
                exchange,
                waiting_since: now,
                head_since: None,
                is_head: false,
                looked: false,
                graced: None,
            };
        }
        if arrived {
            self.head_since.get_or_insert(now);
        }
    }

    /// The first byte of a head is there.
    pub(crate) fn head_begins(&mut self, now: Instant) {
        self.head_since.get_or_insert(now);
        self.is_head = true;
    }

    /// A part of a head was found that must have been there since the wait began.
    pub(crate) fn head_found(&mut self) {
        self.head_begins(self.waiting_since);
    }

    /// hyper's buffer was found empty: what came, if anything, was blank lines.
    pub(crate) fn nothing_found(&mut self) {
        self.looked = true;
        self.head_since = None;
    }

    /// hyper's buffer cannot be looked into.
    pub(crate) fn cannot_look(&mut self) {
        self.looked = true;
    }

    /// Whether the client has certainly begun to send a request.
    pub(crate) fn is_at_a_head(&self) -> bool {
        self.is_head
    }

    /// Whether the client has begun to send a request, as far as is known.
    pub(crate) fn has_head(&self) -> bool {
        self.head_since.is_some()
    }

    /// When to do something about this wait.
    ///
    /// What hyper read ahead while it served the last exchange is not visible from outside, so that
    /// the first deadline of a wait is a look, before that of a head could be missed. It costs one look per wait.
    pub(crate) fn deadline(&self, config: &Config) -> Instant {
        let (since, timeout) = match self.head_since {
            Some(begun) => (begun, config.header_timeout),
            None if self.looked => (self.waiting_since, config.idle_timeout),
            None => {
                let first = config.header_timeout.min(config.idle_timeout);
                (self.waiting_since, first.min(LOOK_AFTER))
            }
        };
        let due = since
            .checked_add(timeout)
            .unwrap_or_else(|| Instant::now() + FOREVER);
        self.graced.map_or(due, |grace| due.max(grace))
    }

    /// Bytes arrived as the time was up: gives the client [`GRACE`] more to complete a head, once in a
    /// wait; false if it had that already.
    pub(crate) fn grant_grace(&mut self, now: Instant) -> bool {
        self.head_begins(now);
        let first = self.graced.is_none();
        self.graced = Some(now + GRACE);
        first
    }
}
