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
/// (sd_listen_fds(3)). CLOEXEC from here on.
///
/// To be called in the order of the numbers: each one is given out once. The manager may lie about what it has opened;
/// a descriptor that this process has opened itself is known by its CLOEXEC, with which it would not have survived the
/// execution.
///
/// # Errors
/// `NotFound` if it is not open, was opened by this process, or was given out already.
#[allow(unsafe_code)]
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let not_found = || io::Error::new(io::ErrorKind::NotFound, "it was not passed");
    if !was_open_before(number) || TAKEN.fetch_max(number + 1, Ordering::AcqRel) > number {
        return Err(not_found());
    }
    // SAFETY: it is open, nothing in this process has opened it (all that is opened here is CLOEXEC), and it was not
    // given out before: nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Whether it is open, and was so when the program was executed.
fn was_open_before(number: RawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits() == 0)
}
