//! The one room with `unsafe`: registering an owned descriptor with tokio's epoll.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers `fd` for `interest`. Must be called within a tokio runtime.
///
/// # Errors
/// If epoll does not take it; it is closed then.
#[allow(unsafe_code)]
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor from here to its drop, nobody else can close or
    // replace it, and `AsyncFd` deregisters it before it drops it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}
