//! Places at which a test makes this process fail: before and after every message that it says, and before it acts
//! on every message that it hears.
//!
//! Compiled in with the feature `failpoints` only. `HANDOFF_FAILPOINTS` then names places and what happens there,
//! separated by commas: `child/before-say/Ready=kill,parent/heard/Accepting=stop`. A number means only that time
//! that the process comes by: `child/before-say/ConnAck#3=kill`. What can happen:
//!
//! | action | effect |
//! |---|---|
//! | `kill`, `stop` | SIGKILL, SIGSTOP |
//! | `hang` | this thread alone, for ever |
//! | `delay(MS)` | this thread alone, for so many milliseconds |
//! | `exit` | without a word, status 70 |
//! | `say-exit` | the same, after `Refuse` (child) or `Abort` (parent) |
//! | `panic` | of the task that drives the succession |
//! | `garbage`, `truncate` | before a message is said: its bytes are noise, or end half-way |
//! | `emfile` | RLIMIT_NOFILE is lowered to what is open |
//! | `enospc` | no file can be written, a memfd neither: RLIMIT_FSIZE is 0. The kernel's word is `EFBIG` then, if the process ignores SIGXFSZ |

#[cfg(feature = "failpoints")]
mod act;
#[cfg(feature = "failpoints")]
pub(crate) use act::{hit, spoil};

/// Which end of the channel this process is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Parent,
    Child,
}

/// What the caller must do at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    GoOn,
    /// Say that it is over, and exit with this status.
    #[cfg_attr(
        not(feature = "failpoints"),
        expect(dead_code, reason = "nothing fails")
    )]
    LastWords(i32),
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn hit(_side: Side, _moment: &str, _message: &crate::wire::Message) -> Then {
    Then::GoOn
}

/// Damages the record that is about to be sent, if [`hit`] was told to.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn spoil(_record: &mut Vec<u8>) {}
