//! The control socket: how a person, a script or a deploy tool speaks to a running server.
//!
//! Both ends are here, so that any program on this crate can have the verbs `status`, `reload`, `dry-run`, `confirm`,
//! `rollback`, `stop` and `events`, and neither end knows how a reload works:
//!
//! - [`bind()`] makes the socket, [`Server`] turns what clients say into [`Incoming`] requests, and a
//!   [`Reply`] carries [`Event`]s back;
//! - [`Client`] speaks one request; [`reload`], [`dry_run`], [`confirm`], [`rollback`], [`stop`], [`status`] and [`events`] are whole conversations,
//!   which outlive the process that they began with.
//!
//! The format is one JSON object a line: see [`message`].
//!
//! # Failure rules
//!
//! - Only root and the server's own user are listened to; the socket file has mode 0600 from its
//!   first moment, and the kernel's word on the peer is checked besides.
//! - No client can hurt another one, or the server: their number, the length of a line, the time to
//!   send it, and the answers that wait for a slow reader all have limits (the constants here).
//!   Whoever exceeds one is told why, if that is possible, and closed.
//! - Nothing here blocks the caller: [`Reply::send`] queues.
//! - Every conversation of the client's end has a deadline, on the monotonic clock.

#![forbid(unsafe_code)]

use std::time::Duration;

mod bind;
mod client;
mod conversation;
mod follow;
pub mod message;
mod outbox;
mod server;
#[cfg(test)]
mod tests;

pub use bind::{BindError, bind};
pub use client::{Client, ClientError, ConnectError};
pub use conversation::{
    Drained, DryRunReport, ReloadReport, Waits, confirm, dry_run, reload, rollback, status, stop,
};
pub use follow::events;
pub use message::{DryRun, Event, Outcome, Request, Status};
pub use outbox::Reply;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use server::read_line;
pub use server::{Incoming, Peer, Server};

/// Clients at once; one more is told so and closed.
pub const MAX_CLIENTS: usize = 64;

/// The longest request, its line end included, in bytes. All that a request says fits in 100.
pub const MAX_REQUEST_LEN: usize = 4 * 1024;

/// How long a client may take to say what it wants.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Answers that may wait for one slow reader, in bytes. A client that lets more of them pile up is
/// dropped; what it missed it can ask for again ([`Request::Outcome`]).
pub const MAX_QUEUED_LEN: usize = 256 * 1024;

/// How long a client may take to read the rest of its answers, once there are no more to come.
pub const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// The longest line that a [`Client`] takes from a server, in bytes.
pub const MAX_EVENT_LEN: usize = 1024 * 1024;
