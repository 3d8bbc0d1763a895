//! Places at which a test makes this process die or freeze: before and after every message that it says, and
//! before it acts on every message that it hears.
//!
//! Compiled in with the feature `failpoints` only. `HANDOFF_FAILPOINTS` then names places and what happens there,
//! separated by commas: `child/before-say/Ready=kill,parent/heard/Accepting=stop`. What can happen: `kill`
//! (SIGKILL), `stop` (SIGSTOP), `exit` (status 70), `panic`.

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
    for point in points.split(',') {
        if let Some((place, what)) = point.split_once('=')
            && place == here
        {
            act(what, &here);
        }
    }
}

#[cfg(feature = "failpoints")]
fn act(what: &str, place: &str) {
    use nix::sys::signal::{Signal, raise};
    match what {
        // To this thread: sent to the process, another thread could take it, and this one go on meanwhile.
        "kill" => drop(raise(Signal::SIGKILL)),
        "stop" => drop(raise(Signal::SIGSTOP)),
        "exit" => std::process::exit(70),
        "panic" => panic!("failpoint {place}"),
        other => panic!("failpoint {place}: unknown action `{other}`"),
    }
}
