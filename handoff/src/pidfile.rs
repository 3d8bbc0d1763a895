//! The pidfile, the lock that says whether it is true, and the place of the control socket.
//!
//! The contract:
//! - **The lock decides, the pidfile only informs.** Who holds the lock on `<pidfile>.lock`
//!   is the running server. It is an OFD lock (fcntl(2)): it belongs to the open file
//!   description, so that passing the descriptor to a child passes the lock, without a moment in
//!   which nobody has it. It is released by closing the last copy and by nothing else: unlocking
//!   one copy would release it for both processes.
//! - **The lock file is never renamed or removed**: two processes could hold "the" lock on two
//!   files. It stays behind, empty, when the server has stopped.
//! - **The pidfile is replaced by rename**: a reader sees the old pid or the new one, never
//!   none and never half of one. Both processes of a reload have written theirs beside it before anything is
//!   decided: a disk that is full fails the reload, not the pidfile of who serves afterwards.
//! - **Before a process is signalled it is held by its pidfd**, and the pidfile is read again
//!   ([`find`]): the signal reaches the server or nobody, never a stranger with a reused pid.
//! - **A symlink is refused**, for reading as for writing: a rename would replace the link rather
//!   than the file it points to, and what others can create in `/tmp` must not redirect us.

use std::env;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

pub(crate) use write::Spare;
pub use write::{Pidfile, WriteError};

use crate::listeners::MAX_UNIX_PATH;
use crate::process::{self, Signal};

mod write;

/// How often to look again if the pidfile changes while it is read. It changes once a reload.
const FIND_TRIES: u32 = 10;

/// A pid has at most 10 digits. What is longer is no pidfile.
const MAX_PIDFILE_BYTES: u64 = 32;

/// The three places of one server. All absolute; symlinks of directories are not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The pidfile.
    pub pidfile: PathBuf,
    /// `<pidfile>.lock`.
    pub lock: PathBuf,
    /// The control socket, `<pidfile>.sock`.
    pub socket: PathBuf,
}

/// A path that cannot be a pidfile's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathsError {
    /// It ends in a directory.
    #[error("`{}` does not name a pidfile: add a file name, as in /run/hello.pid", _0.display())]
    NoName(PathBuf),
    /// The control socket beside it would have too long a path.
    #[error(
        "pidfile `{}`: the control socket beside it would have a path of {length} bytes, at most \
         {MAX_UNIX_PATH} are possible: choose a shorter path", pidfile.display()
    )]
    TooLong {
        /// The pidfile.
        pidfile: PathBuf,
        /// Of the control socket, in bytes.
        length: usize,
    },
    /// It is relative, and there is no working directory.
    #[error("cannot make pidfile `{}` absolute", pidfile.display())]
    NotAbsolute {
        /// As given.
        pidfile: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Paths {
    /// The places that belong to `pidfile`.
    ///
    /// # Errors
    /// [`PathsError`].
    pub fn of(pidfile: &Path) -> Result<Self, PathsError> {
        if pidfile.file_name().is_none() || pidfile.as_os_str().as_bytes().ends_with(b"/") {
            return Err(PathsError::NoName(pidfile.to_owned()));
        }
        let pidfile = std::path::absolute(pidfile).map_err(|source| PathsError::NotAbsolute {
            pidfile: pidfile.to_owned(),
            source,
        })?;
        let beside = |suffix: &str| {
            let mut path = pidfile.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        let (lock, socket) = (beside(".lock"), beside(".sock"));
        let length = socket.as_os_str().len();
        if length > MAX_UNIX_PATH {
            return Err(PathsError::TooLong { pidfile, length });
        }
        Ok(Self {
            pidfile,
            lock,
            socket,
        })
    }
}

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another server runs.
    #[error("cannot lock pidfile lock `{}`: held by {}", lock.display(), Holder(*holder))]
    Held {
        /// The lock file.
        lock: PathBuf,
        /// What the pidfile says.
        holder: Option<u32>,
    },
    /// The file was replaced again and again while it was being locked.
    #[error("cannot lock pidfile lock `{}`: somebody keeps replacing it", _0.display())]
    Replaced(PathBuf),
    /// Not a regular file.
    #[error("cannot lock pidfile lock `{}`: it is not a regular file: remove it", _0.display())]
    NotAFile(PathBuf),
    /// What the parent passed is not the lock at that path.
    #[error(
        "the parent's lock is not pidfile lock `{}`: the path leads elsewhere since the parent \
         started (a symlink on it, perhaps): name a pidfile whose directory stays", _0.display()
    )]
    OtherFile(PathBuf),
    /// What the parent passed is that file, but it does not hold the lock.
    #[error("the parent's descriptor of pidfile lock `{}` does not hold the lock", _0.display())]
    NotHeld(PathBuf),
    /// A system call failed.
    #[error("cannot lock pidfile lock `{}`{}", lock.display(), advice(source))]
    Io {
        /// The lock file.
        lock: PathBuf,
        /// Why.
        source: io::Error,
    },
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// What to do about `error`, to be appended to a message.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": its directory does not exist: create it",
        io::ErrorKind::PermissionDenied => ": this user may not: choose another --pidfile",
        io::ErrorKind::ReadOnlyFilesystem => ": the file system is read-only: choose another",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": the disk is full",
        _ => "",
    }
}

/// The lock of a running server. Dropping it closes this copy; the lock is released with the
/// last one.
#[derive(Debug)]
pub struct Lock {
    file: OwnedFd,
}

impl Lock {
    /// Takes the lock, or says who has it. Never waits.
    ///
    /// The file is made with mode 0600: with more, any user could hold a read lock on it and
    /// keep the server from starting.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(paths: &Paths) -> Result<Self, LockError> {
        let lock = &paths.lock;
        let error = |source| LockError::Io {
            lock: lock.clone(),
            source,
        };
        // Again if the file was replaced between opening and locking.
        for _ in 0..FIND_TRIES {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            // Not to block on a FIFO.
            options
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = match options.open(lock) {
                Err(source) if source.raw_os_error() == Some(libc::ELOOP) => {
                    return Err(LockError::NotAFile(lock.clone()));
                }
                opened => opened.map_err(error)?,
            };
            if !file.metadata().map_err(error)?.is_file() {
                return Err(LockError::NotAFile(lock.clone()));
            }
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file_write_lock())) {
                Ok(_) => {}
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                    let holder = read_pid(&paths.pidfile).ok();
                    return Err(LockError::Held {
                        lock: lock.clone(),
                        holder,
                    });
                }
                Err(errno) => return Err(error(errno.into())),
            }
            if is_at(&file, lock).map_err(error)? {
                return Ok(Self { file: file.into() });
            }
        }
        Err(LockError::Replaced(lock.clone()))
    }

    /// Takes a received descriptor for the lock that the parent holds.
    ///
    /// # Errors
    /// [`LockError::OtherFile`] and [`LockError::NotHeld`] if it is not.
    pub fn from_fd(fd: OwnedFd, paths: &Paths) -> Result<Self, LockError> {
        let lock = &paths.lock;
        let error = |source| LockError::Io {
            lock: lock.clone(),
            source,
        };
        let file = File::from(fd);
        if !is_at(&file, lock).map_err(error)? {
            return Err(LockError::OtherFile(lock.clone()));
        }
        // The holder sees no lock but its own; everybody else sees the holder's.
        let own_conflict = conflicts(&file).map_err(error)?;
        if own_conflict || !Self::is_held(lock).map_err(error)? {
            return Err(LockError::NotHeld(lock.clone()));
        }
        Ok(Self { file: file.into() })
    }

    /// Whether some process holds the lock at `lock`. Without a file nobody does. Never takes
    /// it, not even for a moment.
    ///
    /// # Errors
    /// Those of open(2) and fcntl(2).
    pub fn is_held(lock: &Path) -> io::Result<bool> {
        // Asking needs no write access, unlike locking.
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        match options.open(lock) {
            Ok(file) => conflicts(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn whole_file_write_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end, wherever that will be
        l_pid: 0, // must be, for OFD locks
    }
}

/// Whether another open file description holds a lock on the file.
fn conflicts(file: &File) -> io::Result<bool> {
    let mut lock = whole_file_write_lock();
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether `path` still leads to `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let file = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (file.dev(), file.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is at the place of a pidfile instead of a pid.
enum NoPid {
    Missing,
    Invalid(&'static str),
    Io(io::Error),
}

fn read_pid(pidfile: &Path) -> Result<u32, NoPid> {
    read_pid_and_owner(pidfile).map(|(pid, _)| pid)
}

/// With the user whose file it is.
fn read_pid_and_owner(pidfile: &Path) -> Result<(u32, u32), NoPid> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options
        .open(pidfile)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => NoPid::Missing,
            Some(libc::ELOOP) => NoPid::Invalid("it is a symlink: name the file itself"),
            _ => NoPid::Io(error),
        })?;
    let found = file.metadata().map_err(NoPid::Io)?;
    if !found.is_file() {
        return Err(NoPid::Invalid("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_PIDFILE_BYTES)
        .read_to_end(&mut text)
        .map_err(NoPid::Io)?;
    Ok((parse_pid(text.trim_ascii())?, found.uid()))
}

/// As the reader of a file with these bytes sees them.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn pid_in(bytes: &[u8]) -> Option<u32> {
    parse_pid(bytes.trim_ascii()).ok()
}

fn parse_pid(text: &[u8]) -> Result<u32, NoPid> {
    if text.is_empty() {
        return Err(NoPid::Invalid("it is empty"));
    }
    let digits = text.iter().all(u8::is_ascii_digit);
    let number = digits
        .then(|| str::from_utf8(text).ok()?.parse::<u32>().ok())
        .flatten();
    match number {
        Some(pid) if pid > 0 && i32::try_from(pid).is_ok() => Ok(pid),
        _ => Err(NoPid::Invalid("it does not hold a process id")),
    }
}

/// The process that serves, held so that nobody else can be meant.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    pidfd: OwnedFd,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// `NotFound` if it has ended meanwhile, `PermissionDenied` if it is another user's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        process::send_signal(self.pidfd.as_fd(), signal)
    }

    /// Whether it still runs, frozen or not.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn is_alive(&self) -> io::Result<bool> {
        process::is_running(self.pidfd.as_fd())
    }
}

/// The pidfd: readable when the process has ended.
impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Why a server counts as not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotRunning {
    /// There is no pidfile.
    NoPidfile,
    /// The process is gone: it was killed.
    Stale {
        /// What the pidfile says.
        pid: u32,
    },
    /// There is such a process, but nobody holds the lock: the pid is another's by now.
    Foreign {
        /// What the pidfile says.
        pid: u32,
    },
}

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPidfile => write!(f, "there is no such pidfile"),
            Self::Stale { pid } => write!(f, "it is stale, process {pid} is gone"),
            Self::Foreign { pid } => {
                write!(
                    f,
                    "process {pid} does not hold its lock and is another program"
                )
            }
        }
    }
}

/// Why no running server was found. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// None runs.
    #[error("no server is running with pidfile `{}`: {reason}", pidfile.display())]
    NotRunning {
        /// The pidfile.
        pidfile: PathBuf,
        /// Why it counts as not running.
        reason: NotRunning,
    },
    /// One holds the lock, but has not written the pidfile yet, or has removed it.
    #[error("the server of pidfile `{}` is starting or stopping: try again", _0.display())]
    Transient(PathBuf),
    /// One holds the lock, but the pidfile names a process that does not exist.
    #[error(
        "pidfile `{}` names process {pid}, which does not exist here, but its lock is held: \
         does the server run in a container?", pidfile.display()
    )]
    Elsewhere {
        /// The pidfile.
        pidfile: PathBuf,
        /// What it says.
        pid: u32,
    },
    /// It does not hold a process id.
    #[error("`{}` is not a pidfile: {problem}", pidfile.display())]
    Invalid {
        /// The pidfile.
        pidfile: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file belongs to a user who could not signal that process himself: where others may write, anybody could have any process
    /// signalled by naming it.
    #[error(
        "`{}` belongs to uid {owner}, who has no say over process {pid}: it may be a trap; remove it, or name a \
         pidfile in a directory that others cannot write to", path.display()
    )]
    Untrusted {
        /// The pidfile or its lock.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// What the pidfile says.
        pid: u32,
    },
    /// Its directory can be written by others.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file could not be read.
    #[error("cannot read `{}`{}", path.display(), read_advice(source))]
    Io {
        /// The pidfile or its lock.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn read_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": ask as the server's user, or as root",
        _ => "",
    }
}

/// Finds the running server: read the pidfile, hold the process, check the lock, read the
/// pidfile again.
///
/// # Errors
/// [`FindError`].
pub fn find(paths: &Paths) -> Result<Running, FindError> {
    if is_private_default(&paths.pidfile) && paths.pidfile.parent().is_some_and(Path::exists) {
        verify_directory(&paths.pidfile)?;
    }
    let mut found = Err(FindError::Transient(paths.pidfile.clone()));
    for _ in 0..FIND_TRIES {
        found = find_once(paths);
        // Both are what a moment between two generations may look like.
        match found {
            Err(FindError::Transient(_) | FindError::Elsewhere { .. }) => {}
            decided => return decided,
        }
    }
    found
}

fn find_once(paths: &Paths) -> Result<Running, FindError> {
    let pidfile = || paths.pidfile.clone();
    let is_held = || {
        let held = Lock::is_held(&paths.lock);
        held.map_err(|source| FindError::Io {
            path: paths.lock.clone(),
            source,
        })
    };
    let not_running = |reason| FindError::NotRunning {
        pidfile: pidfile(),
        reason,
    };
    let (pid, owner) = match read_pid_and_owner(&paths.pidfile) {
        Ok(found) => found,
        Err(NoPid::Missing) if is_held()? => return Err(FindError::Transient(pidfile())),
        Err(NoPid::Missing) => return Err(not_running(NotRunning::NoPidfile)),
        Err(NoPid::Invalid(problem)) => {
            return Err(FindError::Invalid {
                pidfile: pidfile(),
                problem,
            });
        }
        Err(NoPid::Io(source)) => {
            return Err(FindError::Io {
                path: pidfile(),
                source,
            });
        }
    };
    let pidfd = match process::open_pidfd(pid) {
        // A process that has ended and is not reaped yet is as good as gone.
        Ok(pidfd) => process::is_running(pidfd.as_fd())
            .unwrap_or(true)
            .then_some(pidfd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(FindError::Io {
                path: pidfile(),
                source,
            });
        }
    };
    let held = is_held()?;
    if read_pid(&paths.pidfile).ok() != Some(pid) {
        return Err(FindError::Transient(pidfile()));
    }
    match (pidfd, held) {
        (Some(pidfd), true) => {
            check_owner(&paths.pidfile, owner, pid)?;
            if let Ok(lock) = fs::symlink_metadata(&paths.lock) {
                check_owner(&paths.lock, lock.uid(), pid)?;
            }
            Ok(Running { pid, pidfd })
        }
        (Some(_), false) => Err(not_running(NotRunning::Foreign { pid })),
        (None, false) => Err(not_running(NotRunning::Stale { pid })),
        (None, true) => Err(FindError::Elsewhere {
            pidfile: pidfile(),
            pid,
        }),
    }
}

/// Whether the `owner` of a file may say that `pid` is the server: root, this user, or somebody who may signal that
/// process himself (kill(2): its real or saved user).
fn check_owner(path: &Path, owner: u32, pid: u32) -> Result<(), FindError> {
    let own = rustix::process::geteuid().as_raw();
    if owner == 0 || owner == own || users_of(pid).is_some_and(|users| users.contains(&owner)) {
        return Ok(());
    }
    Err(FindError::Untrusted {
        path: path.to_owned(),
        owner,
        pid,
    })
}

/// The real and the saved user of a process (proc_pid_status(5)). `None` if it cannot be seen.
fn users_of(pid: u32) -> Option<[u32; 2]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_ascii_whitespace().map(str::parse);
    let (real, saved) = (users.next()?, users.nth(1)?);
    Some([real.ok()?, saved.ok()?])
}

/// The directory of the default pidfile cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep a pidfile in `{}`: {problem}", directory.display())]
pub struct DirectoryError {
    directory: PathBuf,
    problem: String,
}

/// Where the pidfile of program `name` is if nobody says otherwise, so that a client finds it
/// too: `/run` for root; else `$XDG_RUNTIME_DIR`; else a directory of this user in `/tmp`.
#[must_use]
pub fn default_pidfile(name: &str) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    default_pidfile_of(name, uid, env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

fn default_pidfile_of(name: &str, uid: u32, runtime: Option<PathBuf>) -> PathBuf {
    let file = format!("{name}.pid");
    if uid == 0 {
        return Path::new("/run").join(file);
    }
    // Kept over sudo and su, it may be another user's.
    let is_own = |path: &PathBuf| {
        let found = fs::metadata(path);
        path.is_absolute() && found.is_ok_and(|found| found.is_dir() && found.uid() == uid)
    };
    match runtime.filter(is_own) {
        Some(runtime) => runtime.join(file),
        None => private_default(name, uid),
    }
}

fn private_default(name: &str, uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}-{uid}/{name}.pid"))
}

/// Whether `pidfile` is in a directory that [`default_pidfile`] chose in `/tmp`.
fn is_private_default(pidfile: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let name = pidfile.file_stem().and_then(|name| name.to_str());
    name.is_some_and(|name| pidfile == private_default(name, uid))
}

/// Makes the directory of a [`default_pidfile`] if it is one in `/tmp`, and checks that nobody
/// else can write to it. For servers: a client makes nothing.
///
/// # Errors
/// [`DirectoryError`].
pub fn prepare_directory(pidfile: &Path) -> Result<(), DirectoryError> {
    if is_private_default(pidfile) {
        make_directory(pidfile)?;
        verify_directory(pidfile)?;
    }
    Ok(())
}

fn make_directory(pidfile: &Path) -> Result<(), DirectoryError> {
    let directory = pidfile.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(DirectoryError {
            directory: directory.to_owned(),
            problem: error.to_string(),
        }),
        _ => Ok(()),
    }
}

fn verify_directory(pidfile: &Path) -> Result<(), DirectoryError> {
    let uid = rustix::process::geteuid().as_raw();
    let directory = pidfile.parent().unwrap_or(Path::new("/"));
    let problem = match fs::symlink_metadata(directory) {
        Err(error) => error.to_string(),
        Ok(found) if !found.is_dir() => "it is not a directory".to_owned(),
        Ok(found) if found.uid() != uid => format!("it belongs to user {}", found.uid()),
        Ok(found) if found.mode() & 0o022 != 0 => "others can write to it: chmod 700 it".to_owned(),
        Ok(_) => return Ok(()),
    };
    Err(DirectoryError {
        directory: directory.to_owned(),
        problem,
    })
}

#[cfg(test)]
mod tests;
