//! Replace a running server by its next version, without a client noticing.
//!
//! A process (the parent) starts its new build (the child), gives it its listening sockets, its state and its
//! live connections, and leaves when the child serves. If the child fails, the parent never stopped.
//!
//! # Layout
//!
//! - [`Builder`] says what the server is; [`Builder::start`] takes the parent's listeners or binds;
//!   [`Starting::state`] gives the application its state, [`Starting::ready`] makes it serve;
//!   [`Serving`] is what it holds from then on.
//! - [`Acceptor`] accepts for as long as this process should; [`Serving::hand_over`] and [`Serving::adopted`]
//!   move connections.
//! - [`control`] is the socket by which people and tools give a server its verbs, both ends;
//!   [`pidfile`] is how they find it.
//! - `protocol` (pure state machines), `wire` and `channel` are what parent and child say to each other;
//!   `docs/protocol.md` describes it for whoever writes the other side.
//!
//! # Failure rules
//!
//! At every moment some process accepts on every listener that is kept. A child accepts nothing before it was told
//! to, and the parent stops only when the child has said that it accepts. A child that fails before that
//! leaves the parent as it was, and the reason is told to whoever asked.

mod acceptor;
mod activation;
mod builder;
mod changes;
mod channel;
mod child;
mod codec;
mod connections;
pub mod control;
mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod intake;
pub mod keeper;
mod link;
pub mod listeners;
mod live;
#[cfg(any(test, feature = "measuring"))]
#[doc(hidden)]
pub mod measuring;
mod memory;
mod news;
mod notify;
mod parent;
pub mod pidfile;
#[doc(hidden)]
pub mod process;
mod protocol;
mod rarely;
mod refusal;
#[doc(hidden)]
pub mod registered;
mod serving;
mod shared;
mod signals;
pub mod state;
mod stderr;
mod succession;
mod transfer;
mod wire;

pub use acceptor::{Accepted, Acceptor, Stream};
pub use builder::{Builder, Orphan, StartError, Starting};
pub use connections::{Connection, MAX_CONNECTION_BYTES};
pub use live::ConnectionGuard;
pub use refusal::refuse;
pub use serving::Serving;
pub use shared::{Adopted, NotMoved, Phase, Report};

/// An error and its causes, in one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        // Some errors repeat their cause.
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
