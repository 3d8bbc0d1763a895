//! Writing and removing the pidfile.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{advice, read_pid};

/// Why the pidfile could not be written or removed. What was there is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A symlink.
    #[error(
        "pidfile `{}` is a symlink to `{}`: name the file itself", pidfile.display(),
        target.display()
    )]
    Symlink {
        /// The pidfile.
        pidfile: PathBuf,
        /// Where it points to.
        target: PathBuf,
    },
    /// A directory, a device, a socket.
    #[error("pidfile `{}` is not a regular file: choose another path", _0.display())]
    NotAFile(PathBuf),
    /// A system call failed.
    #[error("cannot {step} pidfile `{}`{}", pidfile.display(), advice(source))]
    Io {
        /// The pidfile.
        pidfile: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Writing and removing a pidfile. Both are for the holder of the [`Lock`](super::Lock).
#[derive(Debug)]
pub enum Pidfile {}

impl Pidfile {
    /// Makes `pidfile` name `pid`, atomically, with mode 0644.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(pidfile: &Path, pid: u32) -> Result<(), WriteError> {
        Spare::prepare(pidfile, pid)?.place()
    }

    /// Removes `pidfile` if it still names `pid`; says whether it did. A parent thus never
    /// removes its child's.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn remove(pidfile: &Path, pid: u32) -> Result<bool, WriteError> {
        if read_pid(pidfile).ok() != Some(pid) {
            return Ok(false);
        }
        let removed = fs::remove_file(pidfile).map(|()| true);
        removed.map_err(|source| WriteError::Io {
            pidfile: pidfile.to_owned(),
            step: "remove",
            source,
        })
    }
}

/// A pidfile that is written and not yet in its place: what can fail for want of space has not failed. Removed when
/// dropped.
#[derive(Debug)]
pub(crate) struct Spare {
    pidfile: PathBuf,
    temporary: Option<PathBuf>,
}

impl Spare {
    /// Writes it beside `pidfile`, under a name that is this process's own.
    pub(crate) fn prepare(pidfile: &Path, pid: u32) -> Result<Self, WriteError> {
        let error = |source| cannot_write(pidfile, source);
        match fs::symlink_metadata(pidfile) {
            Ok(found) if found.is_symlink() => {
                let target = fs::read_link(pidfile).map_err(error)?;
                return Err(WriteError::Symlink {
                    pidfile: pidfile.to_owned(),
                    target,
                });
            }
            Ok(found) if !found.is_file() => return Err(WriteError::NotAFile(pidfile.to_owned())),
            Ok(_) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
        let temporary = temporary_of(pidfile, pid);
        let written = write_new(&temporary, format!("{pid}\n").as_bytes());
        let spare = Self {
            pidfile: pidfile.to_owned(),
            temporary: Some(temporary),
        };
        // Removed by the drop if it could not be written whole.
        written.map_err(error)?;
        Ok(spare)
    }

    /// Makes it the pidfile.
    pub(crate) fn place(mut self) -> Result<(), WriteError> {
        let Some(temporary) = self.temporary.take() else {
            return Ok(());
        };
        fs::rename(&temporary, &self.pidfile).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            cannot_write(&self.pidfile, source)
        })
    }

    /// Removes what a process that was killed had prepared.
    pub(crate) fn forget(pidfile: &Path, pid: u32) {
        // Hardly ever there.
        let _ = fs::remove_file(temporary_of(pidfile, pid));
    }

    /// Removes what any process that was killed had prepared. For the holder of the lock, before its first reload.
    pub(crate) fn sweep(pidfile: &Path) {
        let (Some(directory), Some(name)) = (pidfile.parent(), pidfile.file_name()) else {
            return;
        };
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let prefix = [b".", name.as_bytes(), b"."].concat();
        for entry in entries.flatten() {
            let found = entry.file_name();
            let pid = found
                .as_bytes()
                .strip_prefix(&prefix[..])
                .and_then(|rest| rest.strip_suffix(b".new"));
            if pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Gone already if it could not be made.
            let _ = fs::remove_file(temporary);
        }
    }
}

fn cannot_write(pidfile: &Path, source: io::Error) -> WriteError {
    WriteError::Io {
        pidfile: pidfile.to_owned(),
        step: "write",
        source,
    }
}

fn temporary_of(pidfile: &Path, pid: u32) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(pidfile.file_name().unwrap_or_default());
    name.push(format!(".{pid}.new"));
    pidfile.with_file_name(name)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Follows no symlink and opens nothing that is there already.
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
    };
    let mut file = match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a process of the same pid that was killed here.
            fs::remove_file(path)?;
            create()?
        }
        created => created?,
    };
    // Readable for all whatever the umask: `kill -USR2 $(cat pidfile)`.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)
}
