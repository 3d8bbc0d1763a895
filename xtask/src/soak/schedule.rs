//! Which request leaves when: decided before the first one leaves, by rate and seed alone.
//!
//! The load is an *open loop*: request `n` is due at `start + n / rate`, whatever became of
//! the requests before it. A server that stalls for 100 ms is therefore met by all the
//! requests of these 100 ms, and each counts its latency from the time at which it was due
//! (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::request::{Ask, Kind};

/// Of a hundred requests, how many are of which kind.
const MIX: [(Kind, u64); 5] = [
    (Kind::KeepAlive, 70),
    (Kind::NewConnection, 12),
    (Kind::Slow, 6),
    (Kind::Upload, 6),
    (Kind::Stream, 6),
];

/// A request to be sent, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shot {
    /// What to ask.
    pub(crate) ask: Ask,
    /// When it is due: its latency counts from here.
    pub(crate) due: Instant,
}

/// All requests of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u32,
    seed: u64,
    mix: &'static [(Kind, u64)],
}

impl Schedule {
    /// `rate` requests a second from `start` on, of all kinds.
    pub(crate) fn new(start: Instant, rate: u32, seed: u64) -> Self {
        Self {
            start,
            rate,
            seed,
            mix: &MIX,
        }
    }

    /// The same with requests of one kind: for figures that must not depend on the mix.
    pub(crate) fn of_keep_alive(self) -> Self {
        Self {
            mix: &[(Kind::KeepAlive, 100)],
            ..self
        }
    }

    /// The same with requests that every HTTP server answers at once.
    pub(crate) fn of_any_server(self) -> Self {
        Self {
            mix: &[(Kind::KeepAlive, 85), (Kind::NewConnection, 15)],
            ..self
        }
    }

    /// The `n`th request, from 0.
    pub(crate) fn shot(&self, n: u64) -> Shot {
        Shot {
            ask: self.ask(n),
            due: self.due(n),
        }
    }

    /// When it is due.
    pub(crate) fn due(&self, n: u64) -> Instant {
        due(self.start, self.rate, n)
    }

    fn ask(&self, n: u64) -> Ask {
        // Hashing the number instead of drawing from a generator makes the `n`th request
        // the same whoever asks for it, in whatever order.
        let random = splitmix64(self.seed ^ splitmix64(n));
        let mut left = random % 100;
        for &(kind, share) in self.mix {
            if left < share {
                // The top bit did not take part in the choice above.
                return Ask {
                    kind,
                    variant: random >> 63 == 1,
                };
            }
            left -= share;
        }
        unreachable!("the shares add up to 100")
    }
}

/// When the `n`th of `rate` a second is due, from 0.
pub(crate) fn due(start: Instant, rate: u32, n: u64) -> Instant {
    // Whole nanoseconds from the start, not from the one before: rounding never adds up.
    let (seconds, part) = (n / u64::from(rate), n % u64::from(rate));
    let nanos = part * 1_000_000_000 / u64::from(rate);
    start + Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// Sebastiano Vigna's SplitMix64: a bijection that mixes well, in three lines.
fn splitmix64(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How well the schedule was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paced {
    /// Requests handed out.
    pub(crate) shots: u64,
    /// The latest of them, against its due time.
    pub(crate) worst_lateness: Duration,
}

/// Hands out what is due, on a thread of its own: tokio's timers have a granularity of 1 ms, which would be
/// added to every latency; a sleeping thread wakes some 50 µs late.
#[derive(Debug)]
pub(crate) struct Pacer {
    stop: Arc<AtomicBool>,
}

impl Pacer {
    /// Ends once `stop` is set.
    pub(crate) fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop }
    }

    /// Calls `hand_out` with 0, 1, 2 … at the times that `due` says, until it returns false. What
    /// is overdue leaves at once, late but with its due time.
    pub(crate) fn run(
        self,
        due: impl Fn(u64) -> Instant + Send + 'static,
        mut hand_out: impl FnMut(u64, Instant) -> bool + Send + 'static,
    ) -> thread::JoinHandle<Paced> {
        thread::spawn(move || {
            let mut paced = Paced::default();
            loop {
                let (number, due) = (paced.shots, due(paced.shots));
                // At most a second, the interval at the lowest rate: `stop` is seen in time.
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if self.stop.load(Ordering::Relaxed) {
                    return paced;
                }
                paced.worst_lateness = paced.worst_lateness.max(due.elapsed());
                paced.shots += 1;
                if !hand_out(number, due) {
                    return paced;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_fixed_times() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3, 1);
        assert_eq!(schedule.shot(0).due, start);
        assert_eq!(
            schedule.shot(1).due,
            start + Duration::from_nanos(333_333_333)
        );
        assert_eq!(schedule.shot(3).due, start + Duration::from_secs(1));
        assert_eq!(
            schedule.shot(3_000_000).due,
            start + Duration::from_secs(1_000_000)
        );
    }

    #[test]
    fn the_seed_decides_the_mix() {
        let start = Instant::now();
        let asks = |seed| {
            (0..1000)
                .map(|n| Schedule::new(start, 500, seed).shot(n).ask)
                .collect::<Vec<_>>()
        };
        assert_eq!(asks(1), asks(1));
        assert_ne!(asks(1), asks(2));
    }

    #[test]
    fn the_shares_are_as_promised() {
        assert_eq!(MIX.iter().map(|(_, share)| share).sum::<u64>(), 100);
        let schedule = Schedule::new(Instant::now(), 500, 7);
        let total = 100_000;
        for (kind, share) in MIX {
            let asks: Vec<Ask> = (0..total)
                .map(|n| schedule.shot(n).ask)
                .filter(|ask| ask.kind == kind)
                .collect();
            let found = asks.len() as f64 / total as f64 * 100.0;
            assert!(
                (found - share as f64).abs() < 0.5,
                "{kind:?}: {found} % instead of {share} %"
            );
            let variant = asks.iter().filter(|ask| ask.variant).count() as f64 / asks.len() as f64;
            assert!(
                (variant - 0.5).abs() < 0.05,
                "{kind:?}: variant in {variant}"
            );
        }
    }

    #[test]
    fn the_pacer_skips_nothing_and_waits() {
        let start = Instant::now() - Duration::from_millis(100);
        let (shots, taken) = std::sync::mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let schedule = Schedule::new(start, 1000, 1);
        let pacer = Pacer::new(Arc::clone(&stop)).run(
            move |n| schedule.due(n),
            move |n, _| shots.send(schedule.shot(n)).is_ok(),
        );
        let mut count = 0;
        while count < 150 {
            let shot = taken.recv().unwrap();
            assert!(shot.due <= Instant::now(), "request {count} left too early");
            assert_eq!(shot.due, start + Duration::from_millis(count));
            count += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let paced = pacer.join().unwrap();
        assert!(paced.shots >= 150);
        assert!(
            paced.worst_lateness >= Duration::from_millis(100),
            "the first ones were overdue"
        );
    }
}
