//! The same for a reload that is rolled back during its probation: the parent is the service before and after, so that
//! whatever the child does, the parent serves on. Only the parent's own death makes the child final; and once the child
//! has returned all that it had, not even that.

use super::super::cells::{Boundary, Fault, Moment};
use super::{Ending, Losses, Rule, reasons};

const ROLLED_BACK: &str = "rolled back by an operator";

pub(super) fn child(boundary: &Boundary, fault: Fault) -> Rule {
    // Of the two, what comes first is the reason.
    let mut reasons = reasons(fault);
    reasons.push(ROLLED_BACK);
    if matches!(fault, Fault::Stop | Fault::Delay) {
        reasons.push("the child did not answer during probation");
    }
    if fault == Fault::Emfile {
        // It is asked for its health by a request to itself.
        reasons.push("the child is not healthy");
    }
    let stays = Rule::new(&[Ending::Stays]).named(Some("probation"), reasons);
    let has_returned_all = (boundary.moment, boundary.message) == (Moment::AfterSay, "Bye");
    let losses = match fault {
        _ if has_returned_all => Losses::Closed,
        // What cannot be returned is finished by the child, and closed.
        Fault::Emfile => Losses::Closed,
        Fault::Enospc => Losses::Nothing,
        // What it has accepted, or has in its hand, dies with it.
        _ => Losses::OfTheDead,
    };
    let mut rule = Rule { losses, ..stays };
    if fault == Fault::Emfile && boundary.is_before("Decide") {
        // It cannot take the operator's word, and is confirmed by the clock.
        rule.endings.push(Ending::Replaced);
    }
    rule
}

pub(super) fn parent(boundary: &Boundary, fault: Fault) -> Rule {
    let is_revoked = !boundary.is_before("Revoke");
    let is_alone = (boundary.moment, boundary.message) == (Moment::Heard, "Bye");
    let stays = |reasons| Rule::new(&[Ending::Stays]).named(Some("probation"), reasons);
    let dead = |rule| Rule {
        losses: Losses::OfTheDead,
        ..rule
    };
    match fault {
        Fault::Kill | Fault::Exit | Fault::SayExit if is_alone => {
            Rule::new(&[Ending::Gone]).losing(&[4])
        }
        // What there is to return may have been returned by then: the child goes, if it sees that before it sees the death.
        Fault::Kill | Fault::Exit | Fault::SayExit if !boundary.is_before("Yielded") => {
            Rule::new(&[Ending::Succeeded, Ending::Gone]).losing(&[4])
        }
        Fault::Kill | Fault::Exit => Rule::new(&[Ending::Succeeded]).losing(&[]),
        // `Abort` sends the child away; one that was revoked goes its way, and finds its parent dead.
        Fault::SayExit if is_revoked => Rule::new(&[Ending::Succeeded]).losing(&[]),
        Fault::SayExit => Rule::new(&[Ending::Gone]).losing(&[4]),
        // The child is killed.
        Fault::Panic => dead(stays(vec!["the succession has panicked", ROLLED_BACK])),
        // The child does not hear a word more, and ends when its time has passed.
        Fault::Garbage | Fault::Truncate if is_revoked && boundary.message != "Revoke" => {
            dead(stays(vec![ROLLED_BACK]))
        }
        Fault::Garbage | Fault::Truncate => Rule::new(&[Ending::Succeeded]).losing(&[]),
        Fault::Emfile => stays(vec![ROLLED_BACK]).closing(),
        Fault::Enospc => stays(vec![ROLLED_BACK]),
        // One that was revoked waits for its parent, and ends when its time has passed.
        Fault::Stop | Fault::Delay if is_revoked => dead(stays(vec![ROLLED_BACK])),
        Fault::Stop | Fault::Delay => Rule::new(&[Ending::Succeeded]).losing(&[]),
    }
}
