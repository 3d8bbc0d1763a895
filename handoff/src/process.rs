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
    /// What was passed as the parent's pidfd is not.
    #[error("the descriptor is no pidfd of process {pid}")]
    NotPidfd {
        /// The parent's process id.
        pid: u32,
    },
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

    /// Starts it, with `channel` as its stdin and `stderr` as its stderr, in a process group
    /// of its own so that a terminal's Ctrl-C does not reach it twice. `extra` is added to the
    /// environment.
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
    fn spawn_error(&self, source: io::Error) -> SpawnError {
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

    /// Kills it. To do so again, or when it has ended, is no error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2), if the child has become another user's.
    pub fn kill(&self) -> io::Result<()> {
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

/// How a process ended, in words: `exited with status 1`, `killed by signal 9 (SIGKILL)`.
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
    format!("killed by signal {number}{name}{core}")
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
    let announced = env::var(CHANNEL_VARIABLE)
        .ok()
        .and_then(|inode| inode.parse::<u64>().ok());
    let stdin = io::stdin();
    let (Some(announced), Ok(stat)) = (announced, rustix::fs::fstat(&stdin)) else {
        return Ok(None);
    };
    let is_socket = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket();
    if !is_socket || stat.st_ino != announced {
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

/// The parent, as its child sees it.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    pidfd: OwnedFd,
}

impl Parent {
    /// Takes a received descriptor for the pidfd of process `pid`.
    ///
    /// # Errors
    /// [`JoinError::NotPidfd`] if it is anything else, or the process has been reaped.
    pub fn from_fd(pidfd: OwnedFd, pid: u32) -> Result<Self, JoinError> {
        let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = fs::read_to_string(info).map_err(|source| JoinError::Io {
            step: "examine the parent's pidfd",
            source,
        })?;
        let named = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        if named.and_then(|named| named.trim().parse().ok()) == Some(pid) {
            Ok(Self { pid, pidfd })
        } else {
            Err(JoinError::NotPidfd { pid })
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs, frozen or not.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn is_alive(&self) -> io::Result<bool> {
        is_running(self.pidfd.as_fd())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// `NotFound` if it has been reaped.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        send_signal(self.pidfd.as_fd(), signal)
    }
}

/// The pidfd: readable when the parent has ended.
impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::net::{RecvFlags, SendFlags, SocketFlags};

    use super::*;

    const ROLE: &str = "HANDOFF_TEST_ROLE";

    fn channel() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("pair")
    }

    fn shell(script: &str) -> Program {
        let args = vec!["-c".into(), script.into()];
        Program::new("/bin/sh".into(), args, env::temp_dir())
    }

    /// The child, our end of its channel, and the end of its stderr.
    fn start(program: &Program, extra: &[(&str, &str)]) -> (Spawned, OwnedFd, io::PipeReader) {
        let (ours, theirs) = channel();
        let (reader, writer) = io::pipe().expect("pipe");
        let own = |(name, value): &(&str, &str)| (name.into(), value.into());
        let extra: Vec<_> = extra.iter().map(own).collect();
        let spawned = program.spawn(theirs, writer.into(), &extra).expect("spawn");
        (spawned, ours, reader)
    }

    fn wait(spawned: &mut Spawned) -> ExitStatus {
        let mut polled = [PollFd::new(&spawned.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut polled, None).expect("poll");
        spawned.try_wait().expect("wait").expect("has ended")
    }

    fn receive(channel: &OwnedFd) -> String {
        let mut buffer = [0; 4096];
        let (read, _) = rustix::net::recv(channel, &mut buffer, RecvFlags::empty()).expect("recv");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    fn executable(path: &Path) {
        fs::write(path, "#!/bin/sh\nexit 0\n").expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn find(argv0: &str, path: &str, cwd: &Path, exe: Option<&Path>) -> Option<PathBuf> {
        find_program(&Surroundings {
            argv0: OsStr::new(argv0),
            path_variable: Some(OsStr::new(path)),
            cwd,
            exe: exe.map(|path| (path.to_owned(), identity(path).unwrap_or_default())),
        })
    }

    #[test]
    fn the_program_is_found_as_it_was_called() {
        let dir = tempfile::tempdir().expect("dir");
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        fs::create_dir(&one).expect("mkdir");
        fs::create_dir(&two).expect("mkdir");
        executable(&two.join("hello"));
        fs::write(one.join("hello"), "not executable").expect("write");
        symlink(&two, dir.path().join("current")).expect("symlink");
        let current = dir.path().join("current");
        let program = two.join("hello");
        let exe = Some(program.as_path());
        // Symlinks and ".." stay, "." goes.
        assert_eq!(
            find("./hello", "", &current, exe),
            Some(current.join("hello"))
        );
        assert_eq!(
            find("../2/hello", "", &one, exe),
            Some(one.join("../2/hello"))
        );
        assert_eq!(
            find("current/hello", "", dir.path(), exe),
            Some(current.join("hello"))
        );
        // PATH: the first executable; a relative or empty entry is meant from the cwd.
        let path = format!("{}:{}", one.display(), current.display());
        assert_eq!(
            find("hello", &path, dir.path(), exe),
            Some(current.join("hello"))
        );
        assert_eq!(find("hello", "x:2", dir.path(), exe), Some(program.clone()));
        assert_eq!(
            find("hello", ":x", &current, exe),
            Some(current.join("hello"))
        );
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_believed() {
        let dir = tempfile::tempdir().expect("dir");
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        executable(&ours);
        executable(&other);
        let path = dir.path().to_str().expect("UTF-8");
        let find = |argv0: &str, exe: &Path| find(argv0, path, dir.path(), Some(exe));
        // A bare name: only if it is this program, or this program is gone.
        assert_eq!(find("other", &ours), Some(ours.clone()));
        assert_eq!(find("-sh", &ours), Some(ours.clone()));
        assert_eq!(find("", &ours), Some(ours.clone()));
        let deleted = dir.path().join("other (deleted)");
        assert_eq!(find("other", &deleted), Some(other.clone()));
        // A path is a path: the deployment may just have replaced it.
        assert_eq!(find("./other", &ours), Some(other));
        assert_eq!(find("./gone", &ours), Some(ours));
        assert_eq!(find("./gone", &deleted), None);
    }

    #[test]
    fn the_logical_directory_is_pwd_only_if_it_is_ours() {
        let dir = tempfile::tempdir().expect("dir");
        let here = env::current_dir().expect("cwd");
        let link = dir.path().join("link");
        symlink(&here, &link).expect("symlink");
        let cwd = |pwd: &Path| logical_cwd(Some(pwd.into())).expect("cwd");
        assert_eq!(cwd(&link), link);
        assert_eq!(cwd(dir.path()), here, "another directory");
        assert_eq!(cwd(&dir.path().join("gone")), here);
        assert_eq!(cwd(Path::new(".")), here, "relative");
        assert_eq!(cwd(&link.join("../link")), here, "dots");
        assert_eq!(logical_cwd(None).expect("cwd"), here);
    }

    #[test]
    fn this_program_resolves_to_itself() {
        let program = Program::resolve().expect("resolve");
        assert_eq!(
            identity(program.path()),
            identity(Path::new("/proc/self/exe"))
        );
        assert_eq!(program.args().len(), env::args_os().count() - 1);
    }

    #[test]
    fn a_child_has_what_it_was_promised() {
        let dir = tempfile::tempdir().expect("dir");
        let link = dir.path().join("current");
        symlink(dir.path(), &link).expect("symlink");
        let script =
            "echo \"$0|$1|$PWD|$EXTRA|$(ps -o pgid= -p $$ 2>/dev/null || echo)\" >&2; exit 3";
        let args = vec!["-c".into(), script.into(), "zero".into(), "one".into()];
        let program = Program::new("/bin/sh".into(), args, link.clone());
        let (mut spawned, _channel, mut stderr) = start(&program, &[("EXTRA", "x")]);
        let mut text = String::new();
        // Ends with the child: no copy of its stderr has stayed here.
        stderr.read_to_string(&mut text).expect("read");
        let expected = format!("zero|one|{}|x|", link.display());
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(describe_exit(wait(&mut spawned)), "exited with status 3");
        spawned.kill().expect("killing the dead is no error");
    }

    #[test]
    fn a_child_leads_its_own_process_group() {
        let (spawned, _channel, _stderr) = start(&shell("exec cat"), &[]);
        let stat = fs::read_to_string(format!("/proc/{}/stat", spawned.pid())).expect("stat");
        let group = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(2));
        assert_eq!(
            group.and_then(|group| group.parse().ok()),
            Some(spawned.pid())
        );
    }

    #[test]
    fn the_end_of_a_child_closes_the_channel() {
        let (mut spawned, channel, _stderr) = start(&shell("exit 0"), &[]);
        wait(&mut spawned);
        assert_eq!(receive(&channel), "");
    }

    #[test]
    fn a_child_that_is_dropped_is_killed_and_reaped_even_if_frozen() {
        let (spawned, channel, _stderr) = start(&shell("exec cat"), &[]);
        let pid = spawned.pid();
        rustix::process::pidfd_send_signal(&spawned, rustix::process::Signal::STOP).expect("stop");
        drop(spawned);
        assert_eq!(receive(&channel), "");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "no zombie");
    }

    #[test]
    fn a_disarmed_child_lives_on() {
        let (mut spawned, channel, _stderr) = start(&shell("exec cat"), &[]);
        spawned.disarm();
        let pidfd = spawned.pidfd.try_clone().expect("dup");
        drop(spawned);
        assert!(is_running(pidfd.as_fd()).expect("poll"));
        drop(channel); // the end of cat's input
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::event::poll(&mut polled, None).expect("poll");
        assert!(
            !is_running(pidfd.as_fd()).expect("poll"),
            "a zombie does not run"
        );
    }

    #[test]
    fn an_end_is_told_in_words() {
        let (mut spawned, _channel, _stderr) = start(&shell("kill -ABRT $$"), &[]);
        let text = describe_exit(wait(&mut spawned));
        assert!(text.starts_with("killed by signal 6 (SIGABRT)"), "{text}");
        let status = ExitStatus::from_raw(9);
        assert_eq!(describe_exit(status), "killed by signal 9 (SIGKILL)");
    }

    #[test]
    fn what_cannot_be_executed_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("hello");
        let attempt = || {
            let program = Program::new(path.clone(), Vec::new(), dir.path().to_owned());
            let (_ours, theirs) = channel();
            let (_reader, writer) = io::pipe().expect("pipe");
            let spawned = program.spawn(theirs, writer.into(), &[]);
            spawned.expect_err("cannot be executed").to_string()
        };
        let fail = |part: &str| {
            // A child that another test starts may hold a writable copy until its own exec.
            let errors = std::iter::repeat_with(attempt);
            let mut errors = errors.filter(|e| e.contains(part) || !e.contains("by a rename"));
            let error = errors.next().expect("endless");
            assert!(error.contains(part) && error.contains("hello"), "{error}");
        };
        fail("does not exist: deploy it");
        fs::write(&path, "").expect("write");
        fail("chmod +x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        fail("half a file");
        fs::write(&path, b"\x7fELF\x02\x01\x01").expect("write");
        fail("half a file");
        fs::write(&path, "#!/nonexistent/interpreter\n").expect("write");
        fail("interpreter or loader");
        let _writer = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("open");
        fail("by a rename");
    }

    #[test]
    fn a_deleted_directory_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let gone = dir.path().join("gone");
        let program = Program::new("/bin/true".into(), Vec::new(), gone.clone());
        let (_ours, theirs) = channel();
        let (_reader, writer) = io::pipe().expect("pipe");
        let error = program
            .spawn(theirs, writer.into(), &[])
            .expect_err("gone")
            .to_string();
        assert!(error.contains(gone.to_str().expect("UTF-8")), "{error}");
        assert!(error.contains("create it again"), "{error}");
    }

    /// This test binary again, as a child that plays `role`.
    fn play(role: &str, extra: &[(&str, &str)]) -> (Spawned, OwnedFd, io::PipeReader) {
        let args = ["--exact", "--nocapture", "process::tests::child"].map(OsString::from);
        let exe = env::current_exe().expect("exe");
        let program = Program::new(exe, args.to_vec(), env::temp_dir());
        let extra: Vec<_> = [(ROLE, role)].iter().chain(extra).copied().collect();
        start(&program, &extra)
    }

    /// Not a test: what the child of a test does, which [`play`] starts.
    #[test]
    fn child() {
        let Ok(role) = env::var(ROLE) else { return };
        let outcome = match role.as_str() {
            "join" => child_joins(),
            "stderr" => child_adopts_stderr(),
            "limit" => child_raises_its_limit(),
            _ => "unknown role".to_owned(),
        };
        // Past the test harness, so that nothing else is written.
        let sent = match take_channel() {
            Ok(Some(channel)) => rustix::net::send(channel, outcome.as_bytes(), SendFlags::empty()),
            _ => Ok(0),
        };
        std::process::exit(i32::from(sent.is_err()));
    }

    fn child_joins() -> String {
        let channel = take_channel().expect("take").expect("a channel");
        assert!(channel.as_raw_fd() >= 3);
        let flags = rustix::io::fcntl_getfd(&channel).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut stdin = Vec::new();
        io::stdin().read_to_end(&mut stdin).expect("read");
        assert!(stdin.is_empty(), "/dev/null");
        assert!(take_channel().expect("again").is_none());
        rustix::net::send(channel, b"joined", SendFlags::empty()).expect("send");
        String::new()
    }

    fn child_adopts_stderr() -> String {
        eprintln!("before");
        let path = env::var("REAL").expect("path");
        adopt_stderr(File::create(path).expect("create")).expect("adopt");
        eprintln!("after");
        "done".to_owned()
    }

    fn child_raises_its_limit() -> String {
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let low = Rlimit {
            current: Some(100),
            maximum,
        };
        rustix::process::setrlimit(Resource::Nofile, low).expect("lower");
        let maximum = maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_nofile_limit().expect("raise"), (100, maximum));
        assert_eq!(raise_nofile_limit().expect("again"), (maximum, maximum));
        "done".to_owned()
    }

    #[test]
    fn a_child_takes_its_channel_once() {
        let (mut spawned, channel, mut stderr) = play("join", &[]);
        let received = receive(&channel);
        let mut text = String::new();
        stderr.read_to_string(&mut text).expect("read");
        assert_eq!(received, "joined", "{text}");
        assert!(wait(&mut spawned).success());
    }

    #[test]
    fn a_child_changes_to_the_real_stderr() {
        let dir = tempfile::tempdir().expect("dir");
        let real = dir.path().join("stderr");
        let path = real.to_str().expect("UTF-8");
        let (_spawned, channel, mut stderr) = play("stderr", &[("REAL", path)]);
        assert_eq!(receive(&channel), "done");
        let mut text = String::new();
        stderr.read_to_string(&mut text).expect("read");
        assert_eq!(text, "before\n");
        assert_eq!(fs::read_to_string(real).expect("read"), "after\n");
    }

    #[test]
    fn the_limit_of_open_files_is_raised() {
        let (_spawned, channel, mut stderr) = play("limit", &[]);
        let received = receive(&channel);
        let mut text = String::new();
        stderr.read_to_string(&mut text).expect("read");
        assert_eq!(received, "done", "{text}");
    }

    #[test]
    fn a_process_without_a_channel_has_none() {
        assert!(take_channel().expect("take").is_none());
    }

    #[test]
    fn a_parent_is_known_by_its_pidfd() {
        let (mut spawned, _channel, _stderr) = start(&shell("exec cat"), &[]);
        let pidfd = || spawned.pidfd.try_clone().expect("dup");
        let pid = spawned.pid();
        let parent = Parent::from_fd(pidfd(), pid).expect("a pidfd");
        assert!(parent.is_alive().expect("poll"));
        Parent::from_fd(pidfd(), 1).expect_err("another process's");
        let file = tempfile::tempfile().expect("file");
        Parent::from_fd(file.into(), pid).expect_err("no pidfd");
        parent.signal(Signal::Term).expect("signal");
        wait(&mut spawned);
        assert!(!parent.is_alive().expect("poll"));
        let error = parent.signal(Signal::Term).expect_err("reaped");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let own = Parent::from_fd(own_pidfd().expect("own"), std::process::id());
        assert!(own.expect("own").is_alive().expect("poll"));
        let error = open_pidfd(u32::MAX).expect_err("no such process");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
