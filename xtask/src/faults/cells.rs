//! The cells of the matrix: a side, a boundary, a fault.

use std::fmt;

use serde::Serialize;

/// Who fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    Parent,
    Child,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Course {
    /// `hello reload` with `--probation 0`.
    Reload,
    /// `hello reload` with a long probation, and `hello rollback` once it has begun.
    Rollback,
}

/// When, as regards a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moment {
    BeforeSay,
    AfterSay,
    Heard,
}

/// A place at which a process fails: a failpoint of `handoff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Boundary {
    pub(crate) course: Course,
    pub(crate) side: Side,
    pub(crate) moment: Moment,
    pub(crate) message: &'static str,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    Kill,
    Exit,
    SayExit,
    Panic,
    Garbage,
    Truncate,
    Emfile,
    Enospc,
    Stop,
    Delay,
}

/// One of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    pub(crate) boundary: Boundary,
    pub(crate) fault: Fault,
}

/// What either side says, in its order, by the design's table of messages. A line to add here is three rows of the
/// matrix.
const SAID: [(Side, &str); 14] = [
    (Side::Child, "Hello"),
    (Side::Parent, "Offer"),
    (Side::Child, "Prepared"),
    (Side::Parent, "State"),
    (Side::Child, "Ready"),
    (Side::Parent, "Commit"),
    (Side::Child, "Accepting"),
    (Side::Parent, "Confirm"),
    (Side::Parent, "Draining"),
    (Side::Parent, "Rest"),
    (Side::Child, "RestAck"),
    (Side::Parent, "Conn"),
    (Side::Child, "ConnAck"),
    (Side::Parent, "Bye"),
];

/// The same, from the beginning of the probation on.
const SAID_BACK: [(Side, &str); 10] = [
    (Side::Parent, "Health"),
    (Side::Child, "Health"),
    (Side::Child, "Decide"),
    (Side::Parent, "Revoke"),
    (Side::Child, "Yielded"),
    (Side::Child, "Rest"),
    (Side::Parent, "RestAck"),
    (Side::Child, "Conn"),
    (Side::Parent, "ConnAck"),
    (Side::Child, "Bye"),
];

/// The columns.
pub(crate) const FAULTS: [Fault; 10] = [
    Fault::Kill,
    Fault::Exit,
    Fault::SayExit,
    Fault::Panic,
    Fault::Garbage,
    Fault::Truncate,
    Fault::Emfile,
    Fault::Enospc,
    Fault::Stop,
    Fault::Delay,
];

/// The rows: each message before and after it is said, and when it is heard.
pub(crate) fn boundaries() -> Vec<Boundary> {
    let of = |course: Course| {
        course.said().iter().flat_map(move |(side, message)| {
            [
                (*side, Moment::BeforeSay),
                (*side, Moment::AfterSay),
                (side.other(), Moment::Heard),
            ]
            .map(|(side, moment)| Boundary {
                course,
                side,
                moment,
                message,
            })
        })
    };
    [Course::Reload, Course::Rollback]
        .into_iter()
        .flat_map(of)
        .collect()
}

/// All of them, those that do not apply too.
pub(crate) fn all() -> Vec<Cell> {
    let of = |boundary| FAULTS.map(|fault| Cell { boundary, fault });
    boundaries().into_iter().flat_map(of).collect()
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Parent => Self::Child,
            Self::Child => Self::Parent,
        }
    }
}

impl Course {
    fn said(self) -> &'static [(Side, &'static str)] {
        match self {
            Self::Reload => &SAID,
            Self::Rollback => &SAID_BACK,
        }
    }
}

impl Boundary {
    /// As `handoff` knows it.
    pub(crate) fn failpoint(&self) -> String {
        let moment = match self.moment {
            Moment::BeforeSay => "before-say",
            Moment::AfterSay => "after-say",
            Moment::Heard => "heard",
        };
        format!("{}/{moment}/{}", self.side, self.message)
    }

    /// Who says the message.
    pub(crate) fn speaker(&self) -> Side {
        match self.moment {
            Moment::Heard => self.side.other(),
            Moment::BeforeSay | Moment::AfterSay => self.side,
        }
    }

    /// How far the conversation is: the message's place in it, before or after it is said, heard.
    pub(crate) fn step(&self) -> (Course, usize, Moment) {
        let said = self.course.said();
        let is_this =
            |(side, message): &(Side, &str)| (*side, *message) == (self.speaker(), self.message);
        let place = said.iter().position(is_this).unwrap_or(said.len());
        (self.course, place, self.moment)
    }

    /// Whether this comes before that message is said.
    pub(crate) fn is_before(&self, message: &'static str) -> bool {
        let said = self.course.said();
        let place = said.iter().position(|(_, said)| *said == message);
        let place = place.unwrap_or(said.len());
        (self.step().1, self.moment) < (place, Moment::AfterSay)
    }
}

impl Cell {
    /// Why there is nothing to test.
    pub(crate) fn excuse(&self) -> Option<&'static str> {
        let spoils = matches!(self.fault, Fault::Garbage | Fault::Truncate);
        match self.boundary.moment {
            Moment::AfterSay if spoils => {
                Some("the message is with the kernel, which does not change it")
            }
            Moment::Heard if spoils => Some("see the row in which the same message is said"),
            _ => None,
        }
    }

    /// Whether no deadline must pass, which would take seconds, and no other cell of the row is nearly the same.
    pub(crate) fn is_in_fast_half(&self) -> bool {
        match self.fault {
            Fault::Kill | Fault::SayExit | Fault::Garbage => true,
            // `hello reload` waits to its own deadline.
            Fault::Panic if self.boundary.side == Side::Parent => false,
            Fault::Exit | Fault::Truncate | Fault::Panic | Fault::Emfile | Fault::Enospc => {
                self.boundary.moment == Moment::BeforeSay
            }
            Fault::Stop | Fault::Delay => false,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parent => "parent",
            Self::Child => "child",
        })
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let course = match self.course {
            Course::Reload => "",
            Course::Rollback => "rollback/",
        };
        write!(f, "{course}{}", self.failpoint())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::Exit => "exit",
            Self::SayExit => "say-exit",
            Self::Panic => "panic",
            Self::Garbage => "garbage",
            Self::Truncate => "truncate",
            Self::Emfile => "emfile",
            Self::Enospc => "enospc",
            Self::Stop => "stop",
            Self::Delay => "delay",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.boundary, self.fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_are_in_the_order_of_the_conversation() {
        let rows = boundaries();
        assert_eq!(rows.len(), 42 + 30);
        assert!(rows.is_sorted_by_key(Boundary::step));
        assert_eq!(rows[2].to_string(), "parent/heard/Hello");
        assert!(rows[3].is_before("Offer") && !rows[4].is_before("Offer"));
        assert_eq!(rows[42].to_string(), "rollback/parent/before-say/Health");
        assert_eq!(rows[42].failpoint(), "parent/before-say/Health");
        // Both sides say it.
        assert!(rows[44].step() < rows[45].step());
        assert!(rows[50].is_before("Revoke") && !rows[52].is_before("Revoke"));
    }
}
