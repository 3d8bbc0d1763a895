//! Numbers that only grow, exact over generations: one section of the state for all of them.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use handoff::state::{Section, SectionError};

/// The section's name; an application has no use for it.
const NAME: &str = "hello-server.metrics";

/// A line for each number: its name, a blank, the number. Names that a build does not know it passes over.
const VERSION: u32 = 1;

/// Longer than all names and numbers of any build, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The classes of answers, by the first digit of their status.
pub(crate) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The phases of a reload that have an end while there is somebody to count them.
pub(crate) const PHASES: [&str; 6] = [
    "starting",
    "joining",
    "booting",
    "restoring",
    "committing",
    "probation",
];

/// Upper ends of the buckets for phases, in microseconds: what a fast one takes, up to the default time limit.
pub(crate) const BUCKETS_US: [u64; 10] = [
    1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 30_000_000,
];

/// Of a phase: its buckets, not cumulated, then what was longer, then the sum in microseconds.
const PER_PHASE: usize = BUCKETS_US.len() + 2;

const REQUESTS: usize = 0;
const OTHERS: usize = REQUESTS + CLASSES.len();
const PHASED: usize = OTHERS + Count::ALL.len();
const COUNT: usize = PHASED + PHASES.len() * PER_PHASE;

/// What else is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Count {
    Confirmed,
    Failed,
    DryReady,
    DryFailed,
    Moved,
    Drained,
    Cut,
}

impl Count {
    const ALL: [(Self, &str); 7] = [
        (Self::Confirmed, "reloads.confirmed"),
        (Self::Failed, "reloads.failed"),
        (Self::DryReady, "dry-runs.ready"),
        (Self::DryFailed, "dry-runs.failed"),
        (Self::Moved, "connections.moved"),
        (Self::Drained, "connections.drained"),
        (Self::Cut, "connections.cut"),
    ];
}

/// The numbers.
#[derive(Debug)]
pub(crate) struct Tally {
    totals: [AtomicU64; COUNT],
    /// How much of them the other side knows. As with `handoff::state::Counter`: an addition is before or after the one load that a
    /// snapshot or a delta makes of its number, and thus in that or in the next one.
    delivered: Mutex<[u64; COUNT]>,
}

impl Default for Tally {
    fn default() -> Self {
        names();
        Self {
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
            delivered: Mutex::new([0; COUNT]),
        }
    }
}

/// All names, by place: a reload is no time to make them.
fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| (0..COUNT).map(name).collect())
}

/// How a number is called in the state.
fn name(place: usize) -> String {
    match place {
        REQUESTS..OTHERS => format!("requests.{}", CLASSES[place - REQUESTS]),
        OTHERS..PHASED => Count::ALL[place - OTHERS].1.to_owned(),
        _ => {
            let (phase, part) = ((place - PHASED) / PER_PHASE, (place - PHASED) % PER_PHASE);
            let phase = PHASES[phase];
            match BUCKETS_US.get(part) {
                Some(end) => format!("phase.{phase}.{end}"),
                None if part == BUCKETS_US.len() => format!("phase.{phase}.more"),
                None => format!("phase.{phase}.sum-us"),
            }
        }
    }
}

impl Tally {
    fn add_at(&self, place: usize, n: u64) {
        self.totals[place].fetch_add(n, Ordering::Relaxed);
    }

    fn at(&self, place: usize) -> u64 {
        self.totals[place].load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, count: Count, n: u64) {
        self.add_at(OTHERS + count as usize, n);
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.at(OTHERS + count as usize)
    }

    /// An answer with this status.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if (1..=CLASSES.len()).contains(&class) {
            self.add_at(REQUESTS + class - 1, 1);
        }
    }

    /// How many answers of each class there were, in the order of [`CLASSES`].
    pub(crate) fn answers(&self) -> [u64; CLASSES.len()] {
        std::array::from_fn(|class| self.at(REQUESTS + class))
    }

    /// A phase has lasted so long. One that is not among [`PHASES`] is not counted.
    pub(crate) fn lasted(&self, phase: &str, us: u64) {
        let Some(phase) = PHASES.iter().position(|known| *known == phase) else {
            return;
        };
        let first = PHASED + phase * PER_PHASE;
        let bucket = BUCKETS_US.iter().position(|end| us <= *end);
        self.add_at(first + bucket.unwrap_or(BUCKETS_US.len()), 1);
        self.add_at(first + BUCKETS_US.len() + 1, us);
    }

    /// Of a phase, by its place in [`PHASES`]: the cumulated buckets with that of all at the end, and the sum in microseconds.
    pub(crate) fn phase(&self, phase: usize) -> (Vec<u64>, u64) {
        let first = PHASED + phase * PER_PHASE;
        let buckets = (0..=BUCKETS_US.len()).scan(0, |sum, bucket| {
            *sum += self.at(first + bucket);
            Some(*sum)
        });
        (buckets.collect(), self.at(first + BUCKETS_US.len() + 1))
    }

    fn delivered(&self) -> MutexGuard<'_, [u64; COUNT]> {
        // Numbers are valid whatever panicked.
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(version: u32, bytes: &[u8]) -> Result<[u64; COUNT], SectionError> {
        if version != VERSION {
            return Err(SectionError::Version {
                supported: VERSION..=VERSION,
            });
        }
        let wrong =
            |line: &str| SectionError::Invalid(format!("not a name and a number: `{line}`"));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("not UTF-8"))?;
        let mut numbers = [0; COUNT];
        for line in text.lines() {
            let (found, number) = line.split_once(' ').ok_or_else(|| wrong(line))?;
            let number: u64 = number.parse().map_err(|_| wrong(line))?;
            if let Some(place) = names().iter().position(|name| name == found) {
                numbers[place] = number;
            }
        }
        Ok(numbers)
    }
}

fn encode(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    let lines = numbers.enumerate().filter(|(_, number)| *number > 0);
    let lines = lines.map(|(place, number)| format!("{} {number}\n", names()[place]));
    lines.collect::<String>().into_bytes()
}

impl Section for Tally {
    fn name(&self) -> &str {
        NAME
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut delivered = self.delivered();
        let totals: [u64; COUNT] = std::array::from_fn(|place| self.at(place));
        out.write_all(&encode(totals.into_iter()))?;
        *delivered = totals;
        Ok(())
    }

    fn delta(&self) -> Option<Vec<u8>> {
        let mut delivered = self.delivered();
        let totals: [u64; COUNT] = std::array::from_fn(|place| self.at(place));
        let new = totals.iter().zip(&*delivered);
        let bytes = encode(new.map(|(total, known)| total.wrapping_sub(*known)));
        *delivered = totals;
        (!bytes.is_empty()).then_some(bytes)
    }

    fn restore(&self, version: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        let mut bytes = Vec::new();
        input.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let restored = Self::decode(version, &bytes)?;
        let mut delivered = self.delivered();
        for (place, number) in restored.into_iter().enumerate() {
            delivered[place] = delivered[place].wrapping_add(number);
            self.add_at(place, number);
        }
        Ok(())
    }

    fn absorb(&self, version: u32, bytes: &[u8]) -> Result<(), SectionError> {
        let new = Self::decode(version, bytes)?;
        for (place, number) in new.into_iter().enumerate() {
            self.add_at(place, number);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn passed_on(from: &Tally) -> Tally {
        let mut bytes = Vec::new();
        from.snapshot(&mut bytes).unwrap();
        let to = Tally::default();
        to.restore(VERSION, &mut &bytes[..]).unwrap();
        to
    }

    #[test]
    fn every_number_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> = (0..COUNT).map(name).collect();
        assert_eq!(names.len(), COUNT);
        for (place, (count, _)) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, place);
        }
    }

    #[test]
    fn what_is_counted_goes_on_in_the_next_generation() {
        let first = Tally::default();
        first.answered(StatusCode::OK);
        first.lasted("booting", 3_000);
        let second = passed_on(&first);
        first.answered(StatusCode::OK);
        first.answered(StatusCode::NOT_FOUND);
        second.answered(StatusCode::OK);
        let delta = first.delta().unwrap();
        assert_eq!(first.delta(), None, "it was delivered");
        second.absorb(VERSION, &delta).unwrap();
        assert_eq!(second.answers(), [0, 3, 0, 1, 0]);
        let (buckets, sum) = second.phase(2);
        assert_eq!(buckets, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(sum, 3_000);
        // What came from the first is not returned to it; what it absorbed goes on to the third.
        let third = passed_on(&second);
        assert_eq!(third.answers(), [0, 3, 0, 1, 0]);
    }

    #[test]
    fn a_phase_that_is_longer_than_all_buckets_is_counted() {
        let tally = Tally::default();
        tally.lasted("probation", 60_000_000);
        tally.lasted("draining", 1);
        let (buckets, sum) = tally.phase(5);
        assert_eq!((buckets[9], buckets[10], sum), (0, 1, 60_000_000));
    }

    #[test]
    fn names_of_another_build_are_passed_over_and_nonsense_is_refused() {
        let tally = Tally::default();
        let bytes = b"connections.teleported 7\nreloads.failed 2\n";
        tally.absorb(VERSION, bytes).unwrap();
        assert_eq!(tally.get(Count::Failed), 2);
        assert!(tally.absorb(VERSION, b"reloads.failed two\n").is_err());
        assert!(tally.absorb(2, b"").is_err());
    }
}
