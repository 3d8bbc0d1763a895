//! WebSocket sessions that count: long-lived connections which a reload has to move, or break.
//!
//! - [`messages`]: which message leaves when, and the sessions that carry them;
//! - [`session`]: one session, on one connection as long as the server lets it;
//! - [`tally`]: what is still unanswered in it, and what a right answer is;
//! - [`upgrade`] and [`frame`]: RFC 6455 by hand, as much as a client needs that must know what came on the wire.
//!
//! The message `X` is to be answered by `<n> <generation> <X>`, where `n` counts the messages of
//! this session from 1, whichever generation answers. A session that the server ends is a
//! forced reconnect, whether something was unanswered or not; what was unanswered is lost besides. No message
//! is sent twice.

mod frame;
mod messages;
mod session;
mod tally;
mod upgrade;

pub(crate) use messages::{Messages, Sessions};
#[cfg(test)]
pub(crate) use session::{Message, Session};
