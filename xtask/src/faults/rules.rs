//! What must be seen in a cell. It follows from who can decide at that point of the conversation, and from nothing
//! that was seen: docs/architecture.md and docs/protocol.md have the reasons.
//!
//! Before the child has said `Accepting` the parent is the service, whatever becomes of the child. Once the offer is
//! complete the child succeeds a parent that *crashes*; one that says why it ends has not crashed. After the commit
//! a parent that is silent for too long is killed by its child, and a child that does not accept by its parent.

use std::time::Duration;

use super::cells::{Boundary, Cell, Course, Fault, Moment, Side};
use super::scratch::READY_TIMEOUT;

mod back;

/// Cells in which the product is known to do less than the rule asks, and what it does instead. They are run, and
/// do not fail the run. There is none.
const KNOWN: [(&str, Fault, &str); 0] = [];

/// Why a failure in this cell is no news.
pub(crate) fn known(cell: &Cell) -> Option<&'static str> {
    let boundary = cell.boundary.to_string();
    KNOWN
        .iter()
        .find(|(of, fault, _)| boundary == *of && *fault == cell.fault)
        .map(|(.., why)| *why)
}

/// How a cell may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The parent serves on; the reload has failed.
    Stays,
    /// The child serves, and the parent has left.
    Replaced,
    /// The child serves, and the parent was killed or has crashed.
    Succeeded,
    /// Nobody serves, and a new server can start.
    Gone,
}

/// What clients may notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    Nothing,
    /// What cannot move is finished by the parent, and closed: connections that rest, and the session.
    Closed,
    /// The same; and what the parent counts from then on cannot be said to the child any more.
    Unsaid,
    /// What is owned by a process that was killed is lost with it; what was on its way to one that its peer could not
    /// wait for any longer is cut.
    OfTheDead,
}

/// What must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// One of them.
    pub(crate) endings: Vec<Ending>,
    /// Exit codes of `hello reload` if nobody serves.
    pub(crate) codes: Vec<i32>,
    /// In which a failed reload was.
    pub(crate) phase: Option<&'static str>,
    /// Of which a failed reload names one.
    pub(crate) reasons: Vec<&'static str>,
    pub(crate) losses: Losses,
}

/// `Hello` to `Commit` in the child, and silence after it, exceed the parent's limits by this: `CHILD_MARGIN`.
const CHILD_MARGIN: Duration = Duration::from_secs(5);
/// `RETIRE_TIMEOUT`, `ACCEPT_TIMEOUT` and `SILENCE_TIMEOUT`.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// By which a delay exceeds the deadline.
const BEYOND: Duration = Duration::from_millis(1500);

/// How long a process must stand still to miss its peer's deadline.
pub(crate) fn delay(boundary: &Boundary) -> Duration {
    let deadline = match boundary.side {
        // After the word of a rollback it exceeds the drain timeout, and what follows it.
        Side::Child if boundary.course == Course::Rollback => STEP_TIMEOUT + CHILD_MARGIN,
        Side::Parent if boundary.course == Course::Rollback => STEP_TIMEOUT + CHILD_MARGIN,
        Side::Child if !is_committing(boundary) && boundary.is_before("Accepting") => READY_TIMEOUT,
        // After the commit it also exceeds the drain timeout, and what follows it.
        Side::Child => STEP_TIMEOUT,
        Side::Parent if boundary.is_before("Commit") => READY_TIMEOUT + STEP_TIMEOUT + CHILD_MARGIN,
        Side::Parent => STEP_TIMEOUT + CHILD_MARGIN,
    };
    deadline + BEYOND
}

fn is_committing(boundary: &Boundary) -> bool {
    !boundary.is_before("Ready") && boundary.is_before("Accepting")
}

pub(crate) fn rule(cell: &Cell) -> Rule {
    let boundary = &cell.boundary;
    match boundary.side {
        Side::Child if boundary.course == Course::Rollback => back::child(boundary, cell.fault),
        Side::Parent if boundary.course == Course::Rollback => back::parent(boundary, cell.fault),
        Side::Child if boundary.is_before("Accepting") => {
            child_before_accepting(boundary, cell.fault)
        }
        Side::Child => child_after(boundary, cell.fault),
        Side::Parent if boundary.is_before("Commit") => parent_before_commit(boundary, cell.fault),
        Side::Parent => parent_after(boundary, cell.fault),
    }
}

fn child_before_accepting(boundary: &Boundary, fault: Fault) -> Rule {
    let (phase, reasons) = (Some(phase(boundary)), reasons(fault));
    let stays = Rule::new(&[Ending::Stays]).named(phase, reasons);
    match fault {
        // Whether it still has what it needs depends on what it has opened so far.
        Fault::Emfile => Rule::new(&[Ending::Stays, Ending::Replaced]).closing(),
        Fault::Enospc => Rule::new(&[Ending::Stays, Ending::Replaced]),
        // It serves, and is killed because it cannot say so: what it has accepted dies with it.
        Fault::Garbage | Fault::Truncate if boundary.message == "Accepting" => Rule {
            losses: Losses::OfTheDead,
            ..stays
        },
        _ => stays,
    }
}

/// Without a probation the child is final a moment after `Accepting`: its death is the end of the service.
fn child_after(boundary: &Boundary, fault: Fault) -> Rule {
    let is_first_moment = (boundary.moment, boundary.message) == (Moment::AfterSay, "Accepting");
    match fault {
        // The parent may see the death before it says the last word.
        Fault::Panic if is_first_moment => {
            Rule::new(&[Ending::Stays, Ending::Replaced]).losing(&[])
        }
        Fault::Kill | Fault::Exit | Fault::SayExit if is_first_moment => {
            Rule::new(&[Ending::Stays, Ending::Gone]).losing(&[0])
        }
        Fault::Kill | Fault::Exit | Fault::SayExit => Rule::new(&[Ending::Gone]).losing(&[0]),
        // It is the service, and goes on without what its parent could still have passed on.
        Fault::Panic => Rule {
            losses: in_hand(boundary),
            ..Rule::new(&[Ending::Replaced])
        },
        Fault::Emfile => Rule::new(&[Ending::Replaced]).closing(),
        Fault::Garbage | Fault::Truncate => Rule {
            losses: Losses::Unsaid,
            ..Rule::new(&[Ending::Replaced])
        },
        Fault::Enospc => Rule::new(&[Ending::Replaced]),
        // It takes nothing until the drain deadline has passed.
        Fault::Stop | Fault::Delay => Rule::new(&[Ending::Replaced]).losing(&[]),
    }
}

fn parent_before_commit(boundary: &Boundary, fault: Fault) -> Rule {
    match fault {
        // The child has nothing to serve with; or was told why, so that this is no crash.
        Fault::Kill | Fault::Exit if boundary.is_before("Offer") => {
            Rule::new(&[Ending::Gone]).losing(&[4])
        }
        Fault::SayExit => Rule::new(&[Ending::Gone]).losing(&[4]),
        Fault::Kill | Fault::Exit => Rule::new(&[Ending::Succeeded]).losing(&[]),
        Fault::Panic => {
            Rule::new(&[Ending::Stays]).named(None, vec!["the succession has panicked"])
        }
        Fault::Garbage | Fault::Truncate => Rule::new(&[Ending::Stays]).named(None, reasons(fault)),
        Fault::Emfile | Fault::Enospc => Rule::new(&[Ending::Stays, Ending::Replaced]),
        Fault::Stop | Fault::Delay => {
            Rule::new(&[Ending::Stays]).named(None, vec!["the parent did not decide in time"])
        }
    }
}

fn parent_after(boundary: &Boundary, fault: Fault) -> Rule {
    let has_left = (boundary.moment, boundary.message) == (Moment::AfterSay, "Bye");
    let is_confirmed = !boundary.is_before("Confirm");
    match fault {
        Fault::Emfile | Fault::Enospc => Rule::new(&[Ending::Replaced]),
        _ if has_left => Rule::new(&[Ending::Replaced]),
        // `Abort` takes the commit back: the child goes, whatever becomes of who said it.
        Fault::SayExit if !is_confirmed => Rule::new(&[Ending::Gone]).losing(&[4]),
        // The child is killed: what it has accepted is lost with it.
        Fault::Panic if !is_confirmed && boundary.message != "Confirm" => Rule {
            losses: Losses::OfTheDead,
            ..Rule::new(&[Ending::Stays])
                .named(Some("committing"), vec!["the succession has panicked"])
        },
        // It finishes what it has begun, and passes nothing on.
        Fault::Panic if is_confirmed && boundary.message != "Confirm" => Rule {
            losses: in_hand(boundary),
            ..Rule::new(&[Ending::Replaced, Ending::Succeeded])
        },
        // What it still serves is lost with it, and nothing else.
        _ => Rule::new(&[Ending::Succeeded]).losing(&[]),
    }
}

/// A connection that is being passed on, or taken in, is in the hand of the task that panics.
fn in_hand(boundary: &Boundary) -> Losses {
    match boundary.message {
        "Conn" | "ConnAck" => Losses::OfTheDead,
        _ => Losses::Unsaid,
    }
}

/// In which the parent is when the child fails here.
fn phase(boundary: &Boundary) -> &'static str {
    if boundary.is_before("Hello") {
        "joining"
    } else if boundary.is_before("Prepared") {
        "booting"
    } else if boundary.is_before("Ready") {
        "restoring"
    } else {
        "committing"
    }
}

fn reasons(fault: Fault) -> Vec<&'static str> {
    match fault {
        Fault::Kill => vec!["the child was killed by signal 9 (SIGKILL)"],
        Fault::Exit => vec!["the child exited with status 70"],
        Fault::SayExit => vec!["failpoint"],
        Fault::Panic => vec![
            "the child was killed by signal 6 (SIGABRT)",
            // In its first words.
            "the child exited with status",
            // It accepts, and leaves the decision to its parent.
            "it closed its end of the channel and lives on",
        ],
        Fault::Garbage | Fault::Truncate => vec!["not a message of this protocol", "malformed"],
        Fault::Emfile | Fault::Enospc => vec![],
        Fault::Stop | Fault::Delay => vec!["in time"],
    }
}

impl Rule {
    fn new(endings: &[Ending]) -> Self {
        Self {
            endings: endings.to_vec(),
            codes: vec![],
            phase: None,
            reasons: vec![],
            losses: Losses::Nothing,
        }
    }

    fn named(self, phase: Option<&'static str>, reasons: Vec<&'static str>) -> Self {
        Self {
            phase,
            reasons,
            ..self
        }
    }

    fn codes(self, codes: &[i32]) -> Self {
        Self {
            codes: codes.to_vec(),
            ..self
        }
    }

    fn closing(self) -> Self {
        Self {
            losses: Losses::Closed,
            ..self
        }
    }

    fn losing(self, codes: &[i32]) -> Self {
        Self {
            losses: Losses::OfTheDead,
            ..self.codes(codes)
        }
    }

    /// Which exit codes of `hello reload` tell the truth of this ending.
    pub(crate) fn codes_of(&self, ending: Ending) -> &[i32] {
        match ending {
            Ending::Stays => &[1],
            Ending::Replaced | Ending::Succeeded => &[0],
            Ending::Gone => &self.codes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells::{all, boundaries};
    use super::*;

    fn endings(name: &str) -> Vec<Ending> {
        let cell = all().into_iter().find(|cell| cell.to_string() == name);
        rule(&cell.expect(name)).endings
    }

    #[test]
    fn the_decision_is_where_the_design_has_it() {
        assert_eq!(endings("child/before-say/Accepting=kill"), [Ending::Stays]);
        assert_eq!(endings("child/heard/Confirm=kill"), [Ending::Gone]);
        assert_eq!(endings("parent/before-say/Offer=kill"), [Ending::Gone]);
        assert_eq!(endings("parent/after-say/Offer=kill"), [Ending::Succeeded]);
        // Said, and therefore no crash.
        assert_eq!(endings("parent/after-say/Offer=say-exit"), [Ending::Gone]);
        assert_eq!(endings("parent/before-say/Commit=stop"), [Ending::Stays]);
        assert_eq!(endings("parent/after-say/Commit=stop"), [Ending::Succeeded]);
    }

    #[test]
    fn a_delay_is_longer_than_the_peer_waits() {
        for boundary in boundaries() {
            let least = if boundary.side == Side::Parent {
                STEP_TIMEOUT + CHILD_MARGIN
            } else {
                READY_TIMEOUT
            };
            assert!(delay(&boundary) > least, "{boundary}");
        }
    }
}
