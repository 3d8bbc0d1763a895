//! The last word of a program that cannot even begin.

use rustix::net::SendFlags;

use crate::{
    process,
    wire::{self, Message},
};

/// The number of the first message of one direction: see `docs/protocol.md`.
const FIRST: u64 = 1;

/// Tells the parent, if this process was started to replace one, why it does not even begin: its command line or
/// configuration is not understood, say. The parent serves on, and whoever asked for the reload is told `reason`, cut to
/// 4,096 bytes.
///
/// For what comes before [`Builder::start`](crate::Builder::start), which speaks for itself from then on: afterwards this does
/// nothing. The process is expected to exit at once. Says whether there was a parent to tell.
pub fn refuse(reason: &str) -> bool {
    let Ok(Some(channel)) = process::take_channel() else {
        return false;
    };
    let refusal = Message::Refuse(reason.to_owned());
    let Ok(record) = wire::encode(&refusal, wire::FROZEN, FIRST, 0) else {
        return false;
    };
    // A new channel has room for one record.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(&channel, &record, flags).is_ok()
}
