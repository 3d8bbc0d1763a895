//! Parent and child as pure state machines: `(state, event) -> (state, actions)`.
//!
//! Nothing here does I/O, reads a clock or holds a descriptor: what a message carries is the
//! drivers' business, when it may be said is decided here. That is what makes it
//! possible to walk through every interleaving of two processes that may die, stop and
//! continue at any point (see `enumeration`).
//!
//! Three rules bind the drivers, and the machines rely on them:
//!
//! 1. messages that are queued are delivered before a death, the end of the channel or a
//!    timer is: after SIGCONT every timer has expired, and the answer may be lying there;
//! 2. a death is reported when the pidfd says so, never because of the channel;
//! 3. actions are carried out in order, and completely, before the next event.

pub(crate) mod child;
pub(crate) mod drain;
#[cfg(test)]
mod enumeration;
pub(crate) mod parent;

use std::time::Duration;

/// By how much each of the child's deadlines exceeds the parent's: the parent, which
/// decides, must be the one that gives up first.
pub(crate) const CHILD_MARGIN: Duration = Duration::from_secs(5);

/// How long the child may take from `Commit` to `Accepting`: it only puts names and
/// descriptors in place, so that a slower one is frozen or broken.
pub(crate) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the `retired` hook may take: meanwhile nobody does what only one generation may do.
pub(crate) const RETIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a child that was told to go may take before it is killed.
pub(crate) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the application's health hook may take: less than [`SILENCE_TIMEOUT`], so that a child whose hook
/// hangs says so, and is not taken for frozen.
pub(crate) const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the application may take to let go of its connections once they are cut.
pub(crate) const CUT_GRACE: Duration = Duration::from_secs(1);

/// What rests is given this long to move, however short the drain timeout is: that bounds what is busy.
pub(crate) const MIN_DRAIN: Duration = Duration::from_millis(500);

/// How often the parent asks for the child's health in probation, and says that it drains.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long either side may be silent after the commit before it counts as frozen.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a generation whose successor has died waits for word from whoever has its channel now. The channel
/// travels as a message does: a process that got it says so at once.
pub(crate) const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a revoked child may take to return what it has: its drain, or its `retired` hook.
pub(crate) fn leave_timeout(drain_timeout: Duration) -> Duration {
    drain_timeout.max(MIN_DRAIN).max(RETIRE_TIMEOUT) + CUT_GRACE
}

/// What a machine wants to be woken for. One of each kind runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Parent: start to `Ready`. Child: `Hello` to `Commit`.
    Ready,
    /// Parent: the `retired` hook.
    Retire,
    /// Parent: `Commit` to `Accepting`.
    Accept,
    /// Parent: how long the child is on probation.
    Probation,
    /// Parent: of no length. What is queued, and a death, are reported before it: `Confirm` is not
    /// said to a child that is dead already.
    Confirm,
    /// Parent: when to ask again, or to say that it drains.
    Heartbeat,
    /// Parent: the child owes an answer. Child: the parent has not said a word.
    Silence,
    /// Parent: the child was told to go, and has nothing to finish.
    Goodbye,
    /// Parent: the child was told to go, and finishes or returns what it has. Child: it was revoked, and
    /// returns what it has.
    Leave,
    /// Parent: its successor has died, and somebody else has the channel.
    Successor,
    /// After `Confirm`, or in a revoked child: until what is still under way is cut. The driver's own.
    Drain,
}
