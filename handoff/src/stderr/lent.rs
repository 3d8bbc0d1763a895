//! The child's side: what it writes to goes through its parent until it is final.
//!
//! The child holds the reading end of that pipe, too. So a write never meets a pipe without reader, whatever becomes
//! of the parent (`eprintln!` would panic, in the middle of a request perhaps), and what a dead parent has left
//! unread is not lost.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags};

use super::{CHUNK_BYTES, MAX_FINISH_BYTES};
use crate::process;

/// A pipe with so much in it has a reader that does not read: the next writer may have to wait for it.
const FULL_BYTES: u64 = 32 << 10;

/// The stderr that is to be this process's, and the pipe that is until then.
#[derive(Debug)]
pub(crate) struct Lent {
    real: OwnedFd,
    pipe: OwnedFd,
}

impl Lent {
    pub(crate) fn new(real: OwnedFd, pipe: OwnedFd) -> Self {
        Self { real, pipe }
    }

    /// Whether the parent does not read what this process writes.
    pub(crate) fn is_full(&self) -> bool {
        rustix::io::ioctl_fionread(&self.pipe).is_ok_and(|bytes| bytes >= FULL_BYTES)
    }

    /// From here on this process writes to the real stderr. What is in the pipe is the parent's to pass on.
    pub(crate) fn adopt(self) {
        if let Err(error) = process::adopt_stderr(&self.real) {
            tracing::error!(%error, "cannot take over stderr");
        }
    }

    /// The same where the parent does not read any more: what is in the pipe is passed on here.
    pub(crate) fn adopt_with_rest(self) {
        let rest = self.rest();
        self.adopt();
        if !rest.is_empty() {
            // As it would have been, and never waiting, for this may be the only process that serves. What nobody takes is lost.
            match super::PassThrough::stderr() {
                Ok(stderr) => stderr.write(&rest),
                Err(error) => tracing::warn!(%error, "what the parent had not passed on is lost"),
            }
        }
    }

    /// Never waits. If it cannot be had without waiting it is lost, and the process serves.
    pub(super) fn rest(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        let Ok(mut pipe) = self.without_waiting() else {
            return rest;
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        while rest.len() < MAX_FINISH_BYTES {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => rest.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        rest
    }

    /// The reading end, which the parent may have left blocking: the flag is that of the open file description, of which a living parent
    /// is an owner, too. So it is not set, but the pipe opened once more.
    fn without_waiting(&self) -> io::Result<File> {
        if rustix::fs::fcntl_getfl(&self.pipe)?.contains(OFlags::NONBLOCK) {
            return Ok(File::from(super::dup(&self.pipe)?));
        }
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
    }
}
