//! How a request ended, judged by what its socket said rather than by hyper's error.

use std::io;
use std::time::Instant;

use serde::Serialize;

use super::tap::{End, Seen};

/// How a request ended. Everything but [`Outcome::Ok`] is a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The right answer.
    Ok,
    /// No connection: nobody listened, or the queue was full.
    Refused,
    /// The server reset the connection before the answer was complete.
    Reset,
    /// The server closed the connection before the first byte of the answer.
    Eof,
    /// The server closed the connection within the answer.
    Truncated,
    /// The server ended the WebSocket session, in order, before the answer.
    CloseFrame,
    /// No complete answer in time.
    Timeout,
    /// Status 5xx.
    ServerError,
    /// Any other status but 200.
    OtherStatus,
    /// A complete answer with the wrong content.
    WrongBody,
    /// A WebSocket session's count was wrong, or its answers came in the wrong order.
    WrongCount,
    /// A WebSocket answer that echoes no message.
    WrongEcho,
    /// Answered by an old generation, on a connection opened after the new one was reported to serve, or
    /// to a request sent after the old one was reported to have gone.
    OldGeneration,
    /// What came back was not HTTP, or the connection failed in a way that has no other name.
    Protocol,
    /// The client's own trouble: out of descriptors or ports. Says nothing of the server, but the soak is void.
    Client,
}

impl Outcome {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 15] = [
        Self::Ok,
        Self::Refused,
        Self::Reset,
        Self::Eof,
        Self::Truncated,
        Self::CloseFrame,
        Self::Timeout,
        Self::ServerError,
        Self::OtherStatus,
        Self::WrongBody,
        Self::WrongCount,
        Self::WrongEcho,
        Self::OldGeneration,
        Self::Protocol,
        Self::Client,
    ];

    /// As in the table, the log and the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Eof => "eof",
            Self::Truncated => "truncated",
            Self::CloseFrame => "close-frame",
            Self::Timeout => "timeout",
            Self::ServerError => "5xx",
            Self::OtherStatus => "other-status",
            Self::WrongBody => "wrong-body",
            Self::WrongCount => "wrong-count",
            Self::WrongEcho => "wrong-echo",
            Self::OldGeneration => "old-generation",
            Self::Protocol => "protocol",
            Self::Client => "client",
        }
    }

    /// Of a `connect` that failed.
    pub(crate) fn of_connect(err: &io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            // EADDRNOTAVAIL (no port left), EMFILE and their like.
            _ => Self::Client,
        }
    }

    /// Of an exchange that hyper gave up, by what the socket has said since the request began.
    pub(crate) fn of_broken(seen: &Seen) -> Self {
        match seen.end {
            Some(End::Reset) => Self::Reset,
            Some(End::Eof) if seen.read == 0 => Self::Eof,
            Some(End::Eof) => Self::Truncated,
            // The socket was fine and hyper was not.
            Some(End::Failed) | None => Self::Protocol,
        }
    }
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Why, for the log. Empty if all is well.
    pub(crate) detail: String,
    /// When it ended: the last byte of the answer, or the failure.
    pub(crate) at: Instant,
    /// The client's port; 0 without a connection.
    pub(crate) port: u16,
    /// `x-generation` of the answer.
    pub(crate) generation: Option<u64>,
    /// `x-pid` of the answer.
    pub(crate) pid: Option<u32>,
    /// Whether a complete answer came, whatever it said: the server has counted it.
    pub(crate) answered: bool,
}

impl Verdict {
    /// A request that got no complete answer.
    pub(crate) fn lost(outcome: Outcome, port: u16, detail: String) -> Self {
        Self {
            outcome,
            detail,
            at: Instant::now(),
            port,
            generation: None,
            pid: None,
            answered: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_complete() {
        let names: std::collections::BTreeSet<_> =
            Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        // The book indexes its table by discriminant.
        assert!(
            Outcome::ALL
                .iter()
                .enumerate()
                .all(|(index, outcome)| *outcome as usize == index)
        );
        assert!(
            super::super::request::Kind::ALL
                .iter()
                .enumerate()
                .all(|(index, kind)| *kind as usize == index)
        );
    }

    #[test]
    fn the_socket_decides() {
        let seen = |read, end| Seen {
            read,
            written: 10,
            end,
        };
        assert_eq!(Outcome::of_broken(&seen(0, Some(End::Eof))), Outcome::Eof);
        assert_eq!(
            Outcome::of_broken(&seen(5, Some(End::Eof))),
            Outcome::Truncated
        );
        assert_eq!(
            Outcome::of_broken(&seen(0, Some(End::Reset))),
            Outcome::Reset
        );
        assert_eq!(
            Outcome::of_broken(&seen(5, Some(End::Reset))),
            Outcome::Reset
        );
        assert_eq!(Outcome::of_broken(&seen(5, None)), Outcome::Protocol);
    }
}
