//! A server that is this test executable itself, run again: its generations are started by the library as
//! any program's are.
//!
//! A test file has a test named `program` that calls [`playing`] first: in the processes that
//! [`Service::start`] and its reloads start it is the server, and otherwise it passes at once. What the program is to be is in
//! a file in the service's directory, which each generation reads anew: that is how a test makes another
//! "build".

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use handoff::{
    Builder,
    control::{
        self, ClientError, DryRun, Event, Outcome, ReloadReport, Status, Waits,
        message::ListenerChanges,
    },
};
use tempfile::TempDir;

/// A test that waits so long has failed.
pub const LONG: Duration = Duration::from_secs(60);

const PLAY: &str = "HANDOFF_TEST_PLAY";

/// In a process that plays the server: its directory and its configuration.
pub fn playing() -> Option<(PathBuf, String)> {
    let dir = PathBuf::from(std::env::var_os(PLAY)?);
    let config = fs::read_to_string(dir.join("config")).expect("config");
    Some((dir, config))
}

/// The server that a program is.
pub fn builder(dir: &Path) -> Builder {
    Builder::new("play")
        .pidfile(dir.join("pid"))
        .drain_timeout(Duration::from_secs(20))
        // Tests that want one say so.
        .probation(Duration::ZERO)
}

/// Runs the program.
pub fn play(program: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(program);
}

/// A running server.
pub struct Service {
    dir: TempDir,
    child: Child,
}

impl Service {
    pub fn start(config: &str) -> Self {
        Self::start_with(config, "")
    }

    /// With failpoints.
    pub fn start_with(config: &str, failpoints: &str) -> Self {
        Self::start_in(config, |_, command| {
            command.env("HANDOFF_FAILPOINTS", failpoints);
        })
    }

    /// With another environment, which may name the service's directory.
    pub fn start_in(config: &str, change: impl FnOnce(&Path, &mut Command)) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("handoff-test-")
            .tempdir()
            .expect("tempdir");
        fs::write(dir.path().join("config"), config).expect("config");
        let log = fs::File::create(dir.path().join("log")).expect("log");
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        change(dir.path(), &mut command);
        let child = command
            // The directory is a filter that matches nothing, and marks the process as ours.
            .args(["program", "--exact", "--nocapture"])
            .arg(dir.path())
            .env(PLAY, dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start");
        let mut service = Self { dir, child };
        eventually("the server serves", || {
            if let Some(status) = service.child.try_wait().expect("wait") {
                panic!("it ended with {status}: {}", service.log());
            }
            service
                .try_status()
                .is_ok_and(|status| status.phase == "serving")
        });
        service
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the next generation is to be.
    pub fn configure(&self, config: &str) {
        fs::write(self.dir().join("config"), config).expect("config");
    }

    pub fn log(&self) -> String {
        self.read("log")
    }

    /// A file that the program writes; empty if there is none.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir().join(name)).unwrap_or_default()).into_owned()
    }

    fn ask<T>(&self, ask: impl AsyncFnOnce(&Path) -> T) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(ask(&self.dir().join("pid.sock")))
    }

    fn try_status(&self) -> Result<Status, ClientError> {
        self.ask(async |socket| control::status(socket, LONG).await)
    }

    pub fn status(&self) -> Status {
        self.try_status().expect("status")
    }

    pub fn pid(&self) -> u32 {
        self.status().process.pid
    }

    pub fn try_reload(
        &self,
        wait: bool,
        on_event: impl FnMut(&Event),
    ) -> Result<ReloadReport, ClientError> {
        let waits = Waits {
            outcome: LONG,
            drained: wait.then_some(LONG),
        };
        self.ask(async |socket| control::reload(socket, waits, on_event).await)
    }

    /// A reload that must succeed: what it did to the listeners.
    pub fn reload(&self) -> ListenerChanges {
        let report = self.try_reload(true, |_| {}).expect("an outcome");
        assert!(report.drained.is_some(), "the parent's end was not seen");
        match report.outcome {
            Outcome::Confirmed { listeners, .. } => listeners,
            other => panic!("{other:?}: {}", self.log()),
        }
    }

    /// A dry run that must end well: what a reload would do to the listeners.
    pub fn dry_run(&self) -> ListenerChanges {
        let before = self.status().process;
        let report = self.ask(async |socket| control::dry_run(socket, LONG, |_| {}).await);
        let DryRun::Ready { listeners, .. } = report.expect("an outcome").outcome else {
            panic!("it failed: {}", self.log());
        };
        assert_eq!(self.status().process, before, "the parent serves on");
        listeners
    }

    /// A reload that must fail: why.
    pub fn reload_fails(&self) -> String {
        let before = self.status().process;
        let report = self.try_reload(true, |_| {}).expect("an outcome");
        let Outcome::Failed { reason, .. } = report.outcome else {
            panic!("it succeeded: {}", self.log());
        };
        assert_eq!(self.status().process, before, "the parent serves on");
        reason
    }

    /// Of who serves: one who has just been replaced still answers, and has no listeners any more.
    pub fn address(&self, listener: &str) -> String {
        let mut address = None;
        eventually("there is such a listener", || {
            let status = self.status();
            let found = status.listeners.iter().find(|l| l.name == listener);
            address = found.map(|found| found.address.clone());
            address.is_some()
        });
        address.expect("found")
    }

    pub fn connect(&self, listener: &str) -> Line {
        Line::connect(&self.address(listener)).expect("connect")
    }

    /// Asks the server to stop, and waits until nothing of it is left.
    pub fn stop(&self) {
        self.ask(async |socket| control::stop(socket, LONG).await)
            .expect("stop");
        eventually("it has ended", || self.processes().is_empty());
    }

    pub fn signal(&self, pid: u32, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    /// All generations that live.
    pub fn processes(&self) -> Vec<u32> {
        let dir = self.dir().as_os_str().as_encoded_bytes();
        fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                // A zombie has no command line.
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                line.windows(dir.len()).any(|w| w == dir).then_some(pid)
            })
            .collect()
    }

    /// Waits until one generation is left.
    pub fn settles(&self) {
        eventually("one generation is left", || self.processes().len() == 1);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for _ in 0..3 {
            for pid in self.processes() {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}

trait Socket: Read + Write + Send {}

impl<S: Read + Write + Send> Socket for S {}

/// A client that says and hears lines.
pub struct Line {
    socket: BufReader<Box<dyn Socket>>,
}

impl Line {
    pub fn connect(address: &str) -> std::io::Result<Self> {
        let socket: Box<dyn Socket> = if let Some(path) = address.strip_prefix("unix:") {
            let socket = std::os::unix::net::UnixStream::connect(path)?;
            socket.set_read_timeout(Some(LONG))?;
            Box::new(socket)
        } else {
            let socket = std::net::TcpStream::connect(address)?;
            socket.set_read_timeout(Some(LONG))?;
            socket.set_nodelay(true)?;
            Box::new(socket)
        };
        Ok(Self {
            socket: BufReader::new(socket),
        })
    }

    pub fn say(&mut self, words: &str) {
        self.socket
            .get_mut()
            .write_all(words.as_bytes())
            .expect("say");
    }

    /// The next line; an empty one at the end.
    pub fn try_hear(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.socket.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub fn hear(&mut self) -> String {
        self.try_hear().expect("a line")
    }

    pub fn ask(&mut self, question: &str) -> String {
        self.say(&format!("{question}\n"));
        self.hear()
    }
}

/// Waits for an event of another process, of which there is no word but its effect.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < LONG, "waited {LONG:?} until {what}");
        std::thread::yield_now();
    }
}

/// Does something without a pause while something else happens; says how often.
pub fn meanwhile(mut traffic: impl FnMut() + Send, act: impl FnOnce(&dyn Fn())) -> u64 {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    // Also if `act` panics: else its thread would never end.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stop = Stop(&stop);
        let (stopped, counted) = (stop.0, &count);
        let thread = scope.spawn(move || {
            while !stopped.load(Relaxed) {
                traffic();
                counted.fetch_add(1, Relaxed);
            }
        });
        let goes_on = || {
            let before = count.load(Relaxed);
            eventually("traffic flows", || {
                assert!(
                    !thread.is_finished(),
                    "the traffic has failed: see its panic"
                );
                count.load(Relaxed) > before + 3
            });
        };
        goes_on();
        act(&goes_on);
        goes_on();
    });
    count.load(Relaxed)
}
