//! The one room with `unsafe`: where a descriptor that is a number becomes one that is owned, or one that is owned
//! is given to tokio's epoll.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

use tokio::io::{Interest, unix::AsyncFd};

/// The first descriptor after stdin, stdout and stderr.
pub(crate) const FIRST_INHERITED: RawFd = 3;

/// Below this one, all inherited descriptors have been given out.
static TAKEN: AtomicI32 = AtomicI32::new(FIRST_INHERITED);

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

/// Descriptor `number`, which a service manager has opened for this process before it executed the program
/// (sd_listen_fds(3)), and of which it says that nothing else of this process uses it. CLOEXEC from here on.
///
/// To be called in the order of the numbers: each one is given out once.
///
/// # Errors
/// `NotFound` if it is not open, or was given out already.
#[allow(unsafe_code)]
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let is_open = std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    if !is_open || TAKEN.fetch_max(number + 1, Ordering::AcqRel) > number {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: it is open, it was not given out before, and by the rules of socket activation it is this process's to
    // own: the variables that name it say which process they mean, and the caller has checked that.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
