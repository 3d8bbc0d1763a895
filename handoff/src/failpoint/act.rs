//! What happens at a failpoint.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{Signal, raise},
};

use super::{Side, Then};
use crate::wire::Message;

/// Of a process that exits at a failpoint.
const STATUS: i32 = 70;

/// What becomes of the next record.
#[derive(Clone, Copy)]
enum Spoil {
    Garbage,
    Truncate,
}

thread_local! {
    // A message is queued by the thread that came by its failpoint, and nothing is awaited between the two.
    static SPOIL: Cell<Option<Spoil>> = const { Cell::new(None) };
}

pub(crate) fn hit(side: Side, moment: &str, message: &Message) -> Then {
    let Ok(points) = std::env::var("HANDOFF_FAILPOINTS") else {
        return Then::GoOn;
    };
    let side = match side {
        Side::Parent => "parent",
        Side::Child => "child",
    };
    let here = format!("{side}/{moment}/{message}");
    let time = count(&here);
    let mut then = Then::GoOn;
    for point in points.split(',') {
        let Some((place, what)) = point.split_once('=') else {
            continue;
        };
        let is_here = match place.split_once('#') {
            Some((place, number)) => place == here && number == time.to_string(),
            None => place == here,
        };
        if is_here {
            then = act(what, &here);
        }
    }
    then
}

/// How many times this process has come by here.
fn count(place: &str) -> u64 {
    static TIMES: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let time = times
        .get_or_insert_default()
        .entry(place.to_owned())
        .or_default();
    *time += 1;
    *time
}

fn act(what: &str, place: &str) -> Then {
    match what {
        // To this thread: sent to the process, another thread could take it, and this one go on meanwhile.
        "kill" => drop(raise(Signal::SIGKILL)),
        "stop" => drop(raise(Signal::SIGSTOP)),
        "hang" => loop {
            std::thread::park();
        },
        "exit" => std::process::exit(STATUS),
        "say-exit" => return Then::LastWords(STATUS),
        "panic" => panic!("failpoint {place}"),
        "garbage" => SPOIL.set(Some(Spoil::Garbage)),
        "truncate" => SPOIL.set(Some(Spoil::Truncate)),
        "emfile" => limit(Resource::RLIMIT_NOFILE, lowest_free_descriptor(), place),
        "enospc" => limit(Resource::RLIMIT_FSIZE, 0, place),
        other => match delay_of(other) {
            Some(delay) => std::thread::sleep(delay),
            None => panic!("failpoint {place}: unknown action `{other}`"),
        },
    }
    Then::GoOn
}

fn delay_of(action: &str) -> Option<Duration> {
    let millis = action.strip_prefix("delay(")?.strip_suffix(')')?;
    millis.parse().ok().map(Duration::from_millis)
}

/// Lowers the soft limit, so that whoever runs the test can lift it again.
fn limit(resource: Resource, soft: u64, place: &str) {
    let lowered = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, soft, hard));
    if let Err(error) = lowered {
        panic!("failpoint {place}: setrlimit: {error}");
    }
}

/// The limit is on the number of a descriptor: the next one that is opened gets the lowest that is free.
fn lowest_free_descriptor() -> u64 {
    let is_free = |fd: &u64| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err();
    (0..).find(is_free).unwrap_or(0)
}

pub(crate) fn spoil(record: &mut Vec<u8>) {
    match SPOIL.take() {
        None => {}
        Some(Spoil::Garbage) => record.fill(0xa5),
        Some(Spoil::Truncate) => record.truncate(record.len() / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_in_milliseconds() {
        assert_eq!(delay_of("delay(3000)"), Some(Duration::from_secs(3)));
        for wrong in ["delay", "delay()", "delay(3s)", "delay(3", "3000"] {
            assert_eq!(delay_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_record_is_spoiled_once() {
        for (spoiling, expected) in [("garbage", &[0xa5; 4][..]), ("truncate", &[1, 2])] {
            assert_eq!(act(spoiling, "here"), Then::GoOn);
            let mut record = vec![1, 2, 3, 4];
            spoil(&mut record);
            assert_eq!(record, expected);
            let mut next = vec![1, 2];
            spoil(&mut next);
            assert_eq!(next, [1, 2]);
        }
    }
}
