//! Places at which a test makes this process die or freeze: before and after every message that it says, and
//! before it acts on every message that it hears.
//!
//! Compiled in with the feature `failpoints` only. `HANDOFF_FAILPOINTS` then names places and what happens there,
//! separated by commas: `child/before-say/Ready=kill,parent/heard/Accepting=stop`. A number means only that time
//! that the process comes by: `child/before-say/ConnAck#3=kill`. What can happen: `kill` (SIGKILL), `stop`
//! (SIGSTOP), `hang` (this thread alone, for ever), `exit` (status 70), `panic`.

/// Which end of the channel this process is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Parent,
    Child,
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn hit(_side: Side, _moment: &str, _message: &crate::wire::Message) {}

#[cfg(feature = "failpoints")]
pub(crate) fn hit(side: Side, moment: &str, message: &crate::wire::Message) {
    let Ok(points) = std::env::var("HANDOFF_FAILPOINTS") else {
        return;
    };
    let side = match side {
        Side::Parent => "parent",
        Side::Child => "child",
    };
    let here = format!("{side}/{moment}/{message}");
    let time = count(&here);
    for point in points.split(',') {
        let Some((place, what)) = point.split_once('=') else {
            continue;
        };
        let is_here = match place.split_once('#') {
            Some((place, number)) => place == here && number == time.to_string(),
            None => place == here,
        };
        if is_here {
            act(what, &here);
        }
    }
}

/// How many times this process has come by here.
#[cfg(feature = "failpoints")]
fn count(place: &str) -> u64 {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };
    static TIMES: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let time = times
        .get_or_insert_default()
        .entry(place.to_owned())
        .or_default();
    *time += 1;
    *time
}

#[cfg(feature = "failpoints")]
fn act(what: &str, place: &str) {
    use nix::sys::signal::{Signal, raise};
    match what {
        // To this thread: sent to the process, another thread could take it, and this one go on meanwhile.
        "kill" => drop(raise(Signal::SIGKILL)),
        "stop" => drop(raise(Signal::SIGSTOP)),
        "hang" => loop {
            std::thread::park();
        },
        "exit" => std::process::exit(70),
        "panic" => panic!("failpoint {place}"),
        other => panic!("failpoint {place}: unknown action `{other}`"),
    }
}
