//! One status line while the soak runs.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::book::{Book, Second, Totals};

/// Where nothing can be overwritten, a line a second would be noise.
const PLAIN_EVERY: u64 = 5;

/// Ends a second of the book each second, and shows it, until it is dropped.
pub(crate) async fn show(book: Arc<Book>) {
    let terminal = io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once.
    ticks.tick().await;
    for seconds in 1.. {
        ticks.tick().await;
        let line = line(&book.turn(), book.totals());
        // Nobody may be reading: that must not end the soak.
        if terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        } else if seconds % PLAIN_EVERY == 0 {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

/// Takes the status line away.
pub(crate) fn clear() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

fn line(second: &Second, totals: Totals) -> String {
    format!(
        "{:6.1} s  reloads {}  generation {}  requests {}  ok {}  lost {}  closed {}  reconnects {}  p50 {:.2} ms  p99 {:.2} ms",
        second.at_s,
        second.reloads,
        second.generation,
        totals.ended,
        totals.ok,
        totals.lost,
        totals.closed,
        totals.forced_reconnects,
        second.p50_ms,
        second.p99_ms
    )
}
