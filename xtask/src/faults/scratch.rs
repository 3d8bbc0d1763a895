//! A server of a cell's own: a directory, a port that the kernel chose, and a say in what the next process does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal, prlimit,
};
use tempfile::TempDir;

use super::cells::{Cell, Course, Fault, Side};

/// The parent's limit for each step before the commit.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(3);
/// For requests under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than anything takes that is to happen at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks at another process.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Starts the binary that `next.env` names. SIGXFSZ is ignored so that a write beyond RLIMIT_FSIZE fails as one to
/// a full disk does.
const LAUNCHER: &str =
    "#!/bin/sh\ntrap '' XFSZ\ndir=${0%/*}\n. \"$dir/next.env\"\nexec \"$dir/$next\" \"$@\"\n";

/// The binary and the launcher, of which every server has links. Written before any server runs: what one thread
/// has open for writing, a process that another one starts has, too, for a moment, and exec fails with `ETXTBSY`.
#[derive(Debug)]
pub(crate) struct Programs {
    root: TempDir,
}

impl Programs {
    pub(crate) fn new(binary: &Path) -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("hello-faults-")
            .tempdir()
            .context("failed to make a directory")?;
        let (hello, launcher) = (root.path().join("hello"), root.path().join("launcher"));
        fs::copy(binary, &hello)
            .with_context(|| format!("failed to copy `{}`", binary.display()))?;
        fs::write(&launcher, LAUNCHER)?;
        fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))?;
        Ok(Self { root })
    }

    /// From now on a Ctrl-C ends what was started from here, and then this process: threads that wait for a server could
    /// not be told.
    pub(crate) fn end_with_this_process(&self) -> Result<()> {
        let root = self.root.path().canonicalize()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let interrupted = {
            let _context = runtime.enter();
            crate::soak::interrupted()?
        };
        std::thread::spawn(move || {
            runtime.block_on(interrupted);
            eprintln!("interrupted: the servers are killed, nothing is reported");
            // A child that is being started may appear while its parent is killed.
            for _ in 0..3 {
                processes_below(&root).into_iter().for_each(Scratch::kill);
            }
            let _ = fs::remove_dir_all(&root);
            std::process::exit(crate::soak::INTERRUPTED.into());
        });
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn hello(&self) -> PathBuf {
        self.root.path().join("hello")
    }
}

/// A running server. Dropping it kills all that runs in its directory.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    programs: &'a Programs,
    dir: PathBuf,
    /// The first generation.
    first: Child,
    pub(crate) address: SocketAddr,
    /// Its pid.
    pub(crate) parent: u32,
}

/// What `hello status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) generation: u64,
}

impl<'a> Scratch<'a> {
    /// Starts a server in which the cell's fault is laid.
    pub(crate) fn start(programs: &'a Programs, number: usize, cell: &Cell) -> Result<Self> {
        // Canonical, as /proc shows it.
        let dir = programs
            .root
            .path()
            .canonicalize()?
            .join(number.to_string());
        fs::create_dir(&dir)?;
        for name in ["hello", "next", "real"] {
            fs::hard_link(programs.hello(), dir.join(name))?;
        }
        let action = match cell.fault {
            Fault::Delay => format!("delay({})", super::rules::delay(&cell.boundary).as_millis()),
            fault => fault.to_string(),
        };
        let point = format!("{}#1={action}", cell.boundary.failpoint());
        let is_parent = cell.boundary.side == Side::Parent;
        let (first, next) = if is_parent {
            (&*point, "")
        } else {
            ("", &*point)
        };
        let probation = match cell.boundary.course {
            Course::Reload => "0",
            // Longer than anything that is to happen in it.
            Course::Rollback => "40s",
        };
        let mut first = serve(&dir, "127.0.0.1:0", probation, first)?;
        let ready = wait_for("the server answers", || {
            if let Some(status) = first.try_wait()? {
                bail!("the server ended with {status}");
            }
            Ok(status(&dir, programs)?.is_some())
        });
        let mut scratch = Self {
            programs,
            parent: first.id(),
            dir,
            first,
            address: ([127, 0, 0, 1], 0).into(),
        };
        ready?;
        scratch.address = address(&scratch.output(&["status", "--json"])?)?;
        scratch.next_does("hello", "next", next)?;
        Ok(scratch)
    }

    /// What the program at `name` starts from now on, and with which failpoints.
    fn next_does(&self, name: &str, program: &str, failpoints: &str) -> Result<()> {
        let env = format!("export HANDOFF_FAILPOINTS='{failpoints}'\nnext={program}\n");
        let (new, link) = (self.dir.join("next.env.new"), self.dir.join("launcher"));
        fs::write(&new, env)?;
        fs::rename(&new, self.dir.join("next.env"))?;
        fs::hard_link(self.programs.root.path().join("launcher"), &link)?;
        fs::rename(&link, self.dir.join(name))?;
        // Of two links to one file, rename leaves both.
        match fs::remove_file(&link) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// No process that is started from now on fails.
    pub(crate) fn all_are_well(&self) -> Result<()> {
        self.next_does("hello", "real", "")?;
        self.next_does("next", "real", "")
    }

    /// A verb, not yet started.
    fn verb(&self, args: &[&str]) -> Command {
        verb(&self.dir, self.programs, args)
    }

    pub(crate) fn output(&self, args: &[&str]) -> Result<Output> {
        let output = self.verb(args).output();
        output.with_context(|| format!("failed to run `hello {}`", args.join(" ")))
    }

    /// `hello reload`, under way.
    pub(crate) fn reload(&self) -> Result<Child> {
        let mut reload = self.verb(&["reload", "--timeout", "25s"]);
        reload.stdout(Stdio::piped()).stderr(Stdio::piped());
        reload.spawn().context("failed to run `hello reload`")
    }

    /// `hello rollback` or `hello confirm`, under way. Nobody hears what it says.
    pub(crate) fn decide(&self, verb: &str) -> Result<Child> {
        let mut decide = self.verb(&[verb, "--timeout", "25s"]);
        decide.stdout(Stdio::null()).stderr(Stdio::null());
        decide
            .spawn()
            .with_context(|| format!("failed to run `hello {verb}`"))
    }

    pub(crate) fn status(&self) -> Result<Option<Status>> {
        status(&self.dir, self.programs)
    }

    /// Whether somebody is connected to the control socket.
    pub(crate) fn has_clients(&self) -> Result<bool> {
        let control = self.dir.join("hello.pid.sock").display().to_string();
        // Connected (03): the server's end bears the listener's path.
        Ok(fs::read_to_string("/proc/net/unix")?.lines().any(|line| {
            line.ends_with(&control) && line.split_ascii_whitespace().nth(5) == Some("03")
        }))
    }

    /// The pid in the pidfile, if there is one.
    pub(crate) fn pidfile(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("hello.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The live processes of this server, and none of its verbs.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes_in(&self.dir)
    }

    /// Children of these processes that have ended and that nobody has waited for.
    pub(crate) fn zombies(&self) -> Vec<u32> {
        let parents = self.processes();
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                state_and_parent(*pid)
                    .is_some_and(|(state, parent)| state == 'Z' && parents.contains(&parent))
            })
            .collect()
    }

    /// How many descriptors of each kind a process holds.
    pub(crate) fn descriptors(pid: u32) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        let entries = fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let kind = match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
                _ => target,
            };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        kinds
    }

    /// Reaps the first generation if it has ended.
    pub(crate) fn reap(&mut self) {
        let _ = self.first.try_wait();
    }

    /// A server on the same address and pidfile, which must be free; then it is ended.
    pub(crate) fn serve_anew(&self) -> Result<()> {
        let mut server = serve(&self.dir, &self.address.to_string(), "0", "")?;
        let answers = wait_for("a new server answers", || {
            if let Some(status) = server.try_wait()? {
                bail!("a new server on the same address ended with {status}");
            }
            Ok(self.status()?.is_some())
        });
        server.kill()?;
        server.wait()?;
        answers
    }

    pub(crate) fn thaw(pid: u32) {
        signal(pid, Signal::CONT);
    }

    fn kill(pid: u32) {
        signal(pid, Signal::KILL);
    }

    /// What a fault has lowered.
    pub(crate) fn lift_limits(&self) {
        for pid in self.processes() {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            for resource in [Resource::Nofile, Resource::Fsize] {
                // It may have ended since.
                let _ = prlimit(Some(pid), resource, getrlimit(resource));
            }
        }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            pids.into_iter().for_each(Self::kill);
            std::thread::sleep(LOOK_AGAIN);
        }
        let _ = self.first.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn serve(dir: &Path, address: &str, probation: &str, failpoints: &str) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    let program = if failpoints.is_empty() && dir.join("next.env").exists() {
        "real"
    } else {
        "hello"
    };
    Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(dir.join(program))
        // Whose the checkout is does not matter.
        .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
        .args(["serve", "--listen", address, "--pidfile"])
        .arg(dir.join("hello.pid"))
        .args(["--ready-timeout", &millis(READY_TIMEOUT)])
        .args(["--drain-timeout", &millis(DRAIN_TIMEOUT)])
        .args(["--probation", probation])
        .env("HANDOFF_FAILPOINTS", failpoints)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A Ctrl-C is for the runner, which then ends its servers.
        .process_group(0)
        .spawn()
        .context("failed to start hello")
}

fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

fn verb(dir: &Path, programs: &Programs, args: &[&str]) -> Command {
    let mut command = Command::new(programs.hello());
    command
        .args(args)
        .arg("--pidfile")
        .arg(dir.join("hello.pid"))
        .stdin(Stdio::null());
    command
}

/// `None`: nobody answers.
fn status(dir: &Path, programs: &Programs) -> Result<Option<Status>> {
    let output = verb(dir, programs, &["status", "--json"]).output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |name| status[name].as_u64().with_context(|| format!("no {name}"));
    Ok(Some(Status {
        pid: u32::try_from(number("pid")?)?,
        generation: number("generation")?,
    }))
}

fn address(output: &Output) -> Result<SocketAddr> {
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let address = status["listeners"][0]["address"].as_str();
    Ok(address.context("no address")?.parse()?)
}

/// Waits for an event of another process, of which there is no word but its effect.
pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !happened()? {
        ensure!(Instant::now() < end, "waited {PATIENCE:?} until {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Of a process: `R`, `S`, `T` (stopped), `Z` (zombie), and its parent.
pub(crate) fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name before may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// To one of this server's processes, which the caller has just seen.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let Some(pid) = pid_of(pid) else {
        return;
    };
    if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
        // It may have ended, which is as good.
        let _ = pidfd_send_signal(&fd, signal);
    }
}

pub(crate) fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The live processes whose working directory is this one, by pid.
pub(crate) fn processes_in(dir: &Path) -> Vec<u32> {
    processes(|cwd| cwd == dir)
}

fn processes_below(dir: &Path) -> Vec<u32> {
    processes(|cwd| cwd.starts_with(dir))
}

fn processes(is_theirs: impl Fn(&Path) -> bool) -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // A zombie has no working directory.
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| is_theirs(&cwd)))
        .collect();
    pids.sort_unstable();
    pids
}

/// All that a command said.
pub(crate) fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}
