//! Processes: what to exec, how a child gets its channel, and handles that cannot be mistaken.
//!
//! The contract:
//! - **What to exec is resolved once, at start** ([`Program::resolve`]), and without resolving
//!   symlinks: a `current -> releases/42` deployment picks up the next release, a file replaced
//!   in place is found under its name.
//! - **The child is started by `posix_spawn`** ([`Program::spawn`]): no page tables are copied,
//!   whatever the size of the parent. std takes that path only without `pre_exec`, uid and gid,
//!   which is why the channel travels as the child's stdin. The call blocks until the exec: it
//!   belongs on a blocking thread.
//! - **A process is addressed by its pidfd**, never by a number that may be another's by now.
//! - **A child that nobody took charge of dies**: dropping [`Spawned`] kills and reaps it, until
//!   [`Spawned::disarm`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};

use crate::activation;

mod trust;

/// Names the inode of the socket that is the child's stdin. A process whose stdin is anything
/// else ignores it: a grandchild that inherits the variable is not taken for a child.
pub const CHANNEL_VARIABLE: &str = "HANDOFF_CHANNEL";

/// What a process can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGUSR2`: reload.
    Usr2,
    /// `SIGHUP`: reload.
    Hup,
    /// `SIGTERM`: stop gracefully.
    Term,
    /// `SIGINT`: stop gracefully.
    Int,
    /// `SIGQUIT`: stop at once.
    Quit,
    /// `SIGKILL`.
    Kill,
}

/// Sends `signal` to the process behind `pidfd`.
///
/// # Errors
/// `NotFound` if it has been reaped, `PermissionDenied` if it is another user's.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let signal = match signal {
        Signal::Usr2 => rustix::process::Signal::USR2,
        Signal::Hup => rustix::process::Signal::HUP,
        Signal::Term => rustix::process::Signal::TERM,
        Signal::Int => rustix::process::Signal::INT,
        Signal::Quit => rustix::process::Signal::QUIT,
        Signal::Kill => rustix::process::Signal::KILL,
    };
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        // std has no kind for ESRCH.
        Err(Errno::SRCH) => Err(io::Error::new(io::ErrorKind::NotFound, "no such process")),
        sent => Ok(sent?),
    }
}

/// A pidfd of process `pid`.
///
/// # Errors
/// `NotFound` if there is none; those of pidfd_open(2).
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let not_found = || io::Error::new(io::ErrorKind::NotFound, "no such process");
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(not_found)?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // INVAL and NOENT: a thread that is no process.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Err(not_found()),
        opened => Ok(opened?),
    }
}

/// Whether the process behind `pidfd` runs, frozen or not. A zombie does not.
pub(crate) fn is_running(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&now)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? == 0),
        }
    }
}

/// Why it is not clear what a reload would start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is no working directory.
    #[error("the working directory is gone: start from one that stays")]
    Cwd(#[source] io::Error),
    /// Neither `argv[0]` nor `/proc/self/exe` leads to a program.
    #[error("cannot find this program: `{}` is not an executable file: start it by its path", argv0.display())]
    NotFound {
        /// How it was called.
        argv0: OsString,
    },
}

/// Why no child could be started. The parent is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The working directory does not exist any more.
    #[error("the working directory `{}` is gone: create it again, or stop and start", cwd.display())]
    Cwd {
        /// The working directory.
        cwd: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("cannot execute `{}`: {advice}", path.display())]
    Exec {
        /// The program.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
        /// Why.
        source: io::Error,
    },
    /// This process is root's, and somebody else may write the program, or what leads to it.
    #[error(
        "root does not execute `{}`: `{}` may be written by {by}: `chown root` and `chmod go-w` it, or allow it \
         (--allow-writable-binary)", program.display(), path.display()
    )]
    Writable {
        /// The program.
        program: PathBuf,
        /// The program itself, or a directory or symlink on the way to it.
        path: PathBuf,
        /// Who.
        by: String,
    },
    /// The child ran, but no handle of it could be had. It has been killed.
    #[error("cannot {step} of the child")]
    Handle {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a process that was started with a channel cannot join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The announced stdin is another kind of socket.
    #[error("stdin is not a channel: it is no SOCK_SEQPACKET Unix socket")]
    NotChannel,
    /// A system call failed.
    #[error("cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What a reload starts, fixed at the start of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    argv0: OsString,
    args: Vec<OsString>,
    cwd: PathBuf,
}

/// What [`Program::resolve`] looks at.
struct Surroundings<'a> {
    argv0: &'a OsStr,
    path_variable: Option<&'a OsStr>,
    /// The logical working directory.
    cwd: &'a Path,
    /// What `/proc/self/exe` leads to, and its identity.
    exe: Option<(PathBuf, (u64, u64))>,
}

impl Program {
    /// Finds out how this process was called. To be asked before anything changes the working
    /// directory or the environment.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve() -> Result<Self, ResolveError> {
        let mut args = env::args_os();
        let argv0 = args.next().unwrap_or_default();
        let cwd = logical_cwd(env::var_os("PWD")).map_err(ResolveError::Cwd)?;
        let exe = Path::new("/proc/self/exe");
        let exe = fs::read_link(exe).ok().zip(identity(exe));
        let path = find_program(&Surroundings {
            argv0: &argv0,
            path_variable: env::var_os("PATH").as_deref(),
            cwd: &cwd,
            exe,
        });
        match path {
            Some(path) => Ok(Self {
                path,
                argv0,
                args: args.collect(),
                cwd,
            }),
            None => Err(ResolveError::NotFound { argv0 }),
        }
    }

    /// Another program than this one, called by its path. For tests and for embedders who know
    /// better; `path` and `cwd` are absolute.
    #[must_use]
    pub fn new(path: PathBuf, args: Vec<OsString>, cwd: PathBuf) -> Self {
        let argv0 = path.clone().into();
        Self {
            path,
            argv0,
            args,
            cwd,
        }
    }

    /// What is executed: absolute, symlinks unresolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As this process was called.
    #[must_use]
    pub(crate) fn argv0(&self) -> &OsStr {
        &self.argv0
    }

    /// The arguments, without `argv[0]`.
    #[must_use]
    pub fn args(&self) -> &[OsString] {
        &self.args
    }

    /// The working directory as the caller named it: symlinks unresolved.
    #[must_use]
    pub fn cwd(&self) -> &Path {
        &self.cwd
    }

    /// Whether this process may execute it: root executes nothing that somebody else may write.
    ///
    /// # Errors
    /// [`SpawnError::Writable`]. What cannot be examined is found to be missing when it is executed.
    pub fn check(&self) -> Result<(), SpawnError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        match trust::writable_by_others(&self.path) {
            Ok(Some(trust::Writable { path, by })) => Err(SpawnError::Writable {
                program: self.path.clone(),
                path,
                by,
            }),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Starts it, with `channel` as its stdin and `stderr` as its stderr, in a process group
    /// of its own so that a terminal's Ctrl-C does not reach it twice. `extra` is added to the
    /// environment, `without` and what means this process alone ([`activation::VARIABLES`]) is not in it.
    ///
    /// Blocks until the child has executed the program.
    ///
    /// # Errors
    /// [`SpawnError`]; no process is left.
    pub fn spawn(
        &self,
        channel: OwnedFd,
        stderr: OwnedFd,
        extra: &[(OsString, OsString)],
        without: &[OsString],
    ) -> Result<Spawned, SpawnError> {
        let inode = match rustix::fs::fstat(&channel) {
            Ok(stat) => stat.st_ino,
            Err(error) => {
                let step = "examine the channel";
                return Err(SpawnError::Handle {
                    step,
                    source: error.into(),
                });
            }
        };
        let mut command = Command::new(&self.path);
        // Of the command, not of this process: threads of ours may be reading the environment.
        for name in without {
            command.env_remove(name);
        }
        for name in activation::VARIABLES {
            command.env_remove(name);
        }
        command
            .arg0(&self.argv0)
            .args(&self.args)
            .envs(extra.iter().map(|(name, value)| (name, value)))
            .env("PWD", &self.cwd)
            .env(CHANNEL_VARIABLE, inode.to_string())
            .current_dir(&self.cwd)
            .stdin(Stdio::from(channel))
            .stdout(Stdio::inherit())
            .stderr(Stdio::from(stderr))
            .process_group(0);
        let child = command.spawn().map_err(|error| self.spawn_error(error))?;
        // `command` holds our copies of both descriptors: without dropping it, the death of
        // the child would never be the end of the channel.
        drop(command);
        Spawned::new(child)
    }

    /// The errno alone does not tell a missing program from a missing directory.
    pub(crate) fn spawn_error(&self, source: io::Error) -> SpawnError {
        // With the ".", a file in its place is an error too.
        if let Err(source) = fs::metadata(self.cwd.join(".")) {
            return SpawnError::Cwd {
                cwd: self.cwd.clone(),
                source,
            };
        }
        let errno = Errno::from_io_error(&source);
        let advice = match errno {
            Some(Errno::NOENT) if self.path.exists() => "its interpreter or loader does not exist",
            Some(Errno::NOENT | Errno::NOTDIR) => "it does not exist: deploy it",
            Some(Errno::ACCESS) if self.path.is_dir() => "it is a directory: deploy the program",
            Some(Errno::ACCESS | Errno::PERM) => "it is not executable for this user: chmod +x",
            Some(Errno::NOEXEC) => "it is not a program of this machine: half a file, perhaps",
            Some(Errno::TXTBSY) => "somebody is writing to it: replace it by a rename",
            Some(Errno::NOMEM) => "there is not enough memory",
            Some(Errno::AGAIN) => "there are too many processes (ulimit -u, pids.max)",
            Some(Errno::MFILE | Errno::NFILE) => "there are too many open files (ulimit -n)",
            Some(Errno::TOOBIG) => "its arguments and environment are too long",
            _ => "the system refused it",
        };
        SpawnError::Exec {
            path: self.path.clone(),
            advice,
            source,
        }
    }
}

/// `PWD` if it is what it should be, as `pwd -L` of POSIX judges; else the physical directory.
fn logical_cwd(pwd: Option<OsString>) -> io::Result<PathBuf> {
    let is_logical = |path: &PathBuf| {
        let dots = |part| matches!(part, Component::CurDir | Component::ParentDir);
        let here = identity(Path::new("."));
        path.is_absolute()
            && !path.components().any(dots)
            && identity(path) == here
            && here.is_some()
    };
    match pwd.map(PathBuf::from).filter(is_logical) {
        Some(path) => Ok(path),
        None => env::current_dir(),
    }
}

/// Device and inode of what `path` leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn find_program(around: &Surroundings<'_>) -> Option<PathBuf> {
    // Without the "." of "./hello", but with every ".." and symlink.
    let absolute = |path: &Path| around.cwd.join(path).components().collect::<PathBuf>();
    let link = around
        .exe
        .as_ref()
        .map(|(path, _)| path)
        .filter(|path| is_executable(path));
    if around.argv0.as_encoded_bytes().contains(&b'/') {
        let path = absolute(Path::new(around.argv0));
        return is_executable(&path).then_some(path).or(link.cloned());
    }
    let in_path = || {
        let directories = env::split_paths(around.path_variable?);
        let mut files = directories.map(|directory| absolute(&directory.join(around.argv0)));
        files.find(|path| is_executable(path))
    };
    let found = if around.argv0.is_empty() {
        None
    } else {
        in_path()
    };
    // A bare name may be anything (`exec -a`, a login shell's "-sh"): another program of that
    // name in PATH is not believed as long as ours is still where it was.
    let ours = around.exe.as_ref().map(|(_, identity)| *identity);
    match (found, link) {
        (Some(found), Some(link)) if identity(&found) != ours => Some(link.clone()),
        (Some(found), _) => Some(found),
        (None, link) => link.cloned(),
    }
}

/// A regular file that this user may execute. The link of a deleted program ends in
/// " (deleted)", and thus is none.
fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// A child that has been started. Dropping it kills and reaps it, unless it was
/// [disarmed](Self::disarm).
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    pidfd: OwnedFd,
    armed: bool,
}

impl Spawned {
    fn new(mut child: Child) -> Result<Self, SpawnError> {
        // Not reaped yet: the number can be no other process's.
        match open_pidfd(child.id()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                armed: true,
            }),
            Err(source) => {
                // Neither can fail for an unreaped child of our own.
                let _ = child.kill().and_then(|()| child.wait());
                Err(SpawnError::Handle {
                    step: "open a pidfd",
                    source,
                })
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and what it has started in its process group: a wrapper script's server must not
    /// outlive the script. To do so again, or when it has ended, is no error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2), if the child has become another user's.
    pub fn kill(&mut self) -> io::Result<()> {
        match self.child.try_wait() {
            Ok(Some(_)) => return Ok(()),
            // Not reaped, so that the number is still its own, and its group's unless it has left that.
            Ok(None) => {
                let group = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
                let kill = |group| {
                    rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
                };
                let _ = group.map(kill);
            }
            // Somebody else reaps our children.
            Err(_) => {}
        }
        match send_signal(self.pidfd.as_fd(), Signal::Kill) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            sent => sent,
        }
    }

    /// Reaps it if it has ended: to be asked when the pidfd has become readable.
    ///
    /// # Errors
    /// Those of waitpid(2): `ECHILD` if somebody else reaps this process's children.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// From here on, dropping it leaves the child alone: it is the one that serves. A zombie
    /// remains if it ends before this process and nobody asks [`try_wait`](Self::try_wait).
    pub fn disarm(&mut self) {
        self.armed = false;
    }

    /// Puts it in our charge again: after a revoke.
    pub fn arm(&mut self) {
        self.armed = true;
    }
}

/// The pidfd: readable when the child has ended.
impl AsFd for Spawned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if !self.armed {
            // Takes a zombie along if there is one.
            let _ = self.child.try_wait();
            return;
        }
        if let Err(error) = self.kill() {
            tracing::warn!(pid = self.pid(), %error, "cannot kill the child");
            return;
        }
        // Bounded by the kernel: SIGKILL ends a frozen process too.
        if let Err(error) = self.child.wait() {
            tracing::warn!(pid = self.pid(), %error, "cannot reap the child");
        }
    }
}

/// How a process ended, in words: `exited with status 1`, `was killed by signal 9 (SIGKILL)`.
#[must_use]
pub fn describe_exit(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return match status.code() {
            Some(code) => format!("exited with status {code}"),
            None => status.to_string(),
        };
    };
    let name = match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => format!(" ({signal})"),
        Err(_) => String::new(),
    };
    let core = if status.core_dumped() {
        ", core dumped"
    } else {
        ""
    };
    format!("was killed by signal {number}{name}{core}")
}

/// The channel to the parent, if a parent started this process: the first thing in `main`.
///
/// Moves the channel from stdin to a `CLOEXEC` descriptor and puts `/dev/null` in its place.
/// From the second call on there is none.
///
/// # Errors
/// [`JoinError`] if stdin is the announced socket, but not a channel, or cannot be moved.
pub fn take_channel() -> Result<Option<OwnedFd>, JoinError> {
    let step = |step| {
        move |error: Errno| JoinError::Io {
            step,
            source: error.into(),
        }
    };
    let stdin = io::stdin();
    if !has_channel() {
        return Ok(None);
    }
    let family = sockopt::socket_domain(&stdin).map_err(step("examine stdin"))?;
    let kind = sockopt::socket_type(&stdin).map_err(step("examine stdin"))?;
    if (family, kind) != (AddressFamily::UNIX, SocketType::SEQPACKET) {
        return Err(JoinError::NotChannel);
    }
    let null = File::open("/dev/null").map_err(|source| JoinError::Io {
        step: "open /dev/null",
        source,
    })?;
    // At least 3: nothing of ours may sit where a program expects its stdio.
    let channel = rustix::io::fcntl_dupfd_cloexec(&stdin, 3).map_err(step("move the channel"))?;
    rustix::stdio::dup2_stdin(&null).map_err(step("put /dev/null in the place of stdin"))?;
    Ok(Some(channel))
}

/// Whether a parent started this process, and its channel is still where it was put.
pub(crate) fn has_channel() -> bool {
    let announced = env::var(CHANNEL_VARIABLE)
        .ok()
        .and_then(|inode| inode.parse::<u64>().ok());
    let (Some(announced), Ok(stat)) = (announced, rustix::fs::fstat(io::stdin())) else {
        return false;
    };
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket() && stat.st_ino == announced
}

/// Makes `fd` the stderr of this process: with `Commit`, or a promotion, the real one takes
/// the place of the pipe to the parent.
///
/// # Errors
/// Those of dup2(2).
pub fn adopt_stderr(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(fd)?)
}

/// Raises the soft limit of open files to the hard one, and returns the limits before and
/// after; `u64::MAX` stands for none.
///
/// Children inherit the raised limit. One that uses select(2) breaks at descriptor 1024:
/// a program that starts such should give it the old limit back.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_nofile_limit() -> io::Result<(u64, u64)> {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let (old, new) = (number(limits.current), number(limits.maximum));
    if old < new {
        let raised = Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        };
        rustix::process::setrlimit(Resource::Nofile, raised)?;
    }
    Ok((old, new))
}

/// The pidfd of this process: what an offer tells the child of its parent.
///
/// # Errors
/// Those of pidfd_open(2).
pub fn own_pidfd() -> io::Result<OwnedFd> {
    open_pidfd(std::process::id())
}

/// Checks that a received descriptor is a pidfd of process `pid`, or of one that has been reaped meanwhile.
///
/// # Errors
/// `InvalidInput` if it is anything else.
pub fn check_pidfd(pidfd: &OwnedFd, pid: u32) -> io::Result<()> {
    let info = match fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())) {
        Ok(info) => info,
        // To look takes a descriptor more, and there is none.
        Err(e) if matches!(e.raw_os_error(), Some(EMFILE | ENFILE)) => return Ok(()),
        Err(e) => return Err(e),
    };
    let named = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    // pidfd_open(2) and proc(5): -1 once it is reaped.
    match named.and_then(|named| named.trim().parse::<i64>().ok()) {
        Some(named) if named == i64::from(pid) || named == -1 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not a pidfd of process {pid}"),
        )),
    }
}

const EMFILE: i32 = Errno::MFILE.raw_os_error();
const ENFILE: i32 = Errno::NFILE.raw_os_error();

#[cfg(test)]
mod tests;
