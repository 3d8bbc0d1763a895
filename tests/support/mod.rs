//! One running `hello` and all that a test needs to press it hard.
//!
//! A test owns its world: a directory, a port that nobody else is given, a pidfile; and leaves nothing
//! behind: when [`Hello`] is dropped, every process that ran from its directory is killed.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part"
)]

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

pub mod at_rest;
pub mod cells;
pub mod client;
pub mod crowd;
pub mod diag;
pub mod generations;
pub mod load;
pub mod manager;
pub mod systemd;
pub mod ws;

use client::Client;

/// Longer than anything takes, even on a machine that is busy with other things: a test that waits
/// so long has failed.
pub const LONG: Duration = Duration::from_secs(60);

/// A running server.
pub struct Hello {
    dir: TempDir,
    child: Option<Child>,
    address: SocketAddr,
    /// Of a server that a test kills, the port must not become another test's.
    _port: Option<Reserved>,
}

/// A port that the kernel gives to nobody who does not ask for it by its number: bound, and never listened on, ip(7).
struct Reserved(Socket);

impl Reserved {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).expect("bind");
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("an address");
        address.as_socket().expect("of IPv4")
    }
}

/// How to start one.
pub struct Start {
    args: Vec<String>,
    env: Vec<(String, String)>,
    ulimit: Option<String>,
    user: Option<u32>,
    probation: String,
    config: Option<String>,
}

impl Start {
    /// It is told nothing but where its configuration is, `hello.toml` in its directory, with this text: to be relative
    /// to that, the pidfile should be `hello.pid`.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Its children are on probation so long; a test that says nothing wants no time lost.
    pub fn probation(mut self, time: &str) -> Self {
        self.probation = time.to_owned();
        self
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// It, and whatever it starts, may have so many descriptors.
    pub fn descriptors(mut self, most: u32) -> Self {
        self.ulimit = Some(format!("-n {most}"));
        self
    }

    /// It begins with so many, and may have more if it asks for them.
    pub fn soft_descriptors(mut self, few: u32) -> Self {
        self.ulimit = Some(format!("-S -n {few}"));
        self
    }

    /// As another user, if this one may: root is exempt from many limits.
    pub fn user(mut self, uid: u32) -> Self {
        self.user = Some(uid).filter(|_| nix::unistd::geteuid().is_root());
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Hello {
        let dir = tempfile::Builder::new()
            .prefix("hello-test-")
            .tempdir()
            .expect("tempdir");
        let binary = dir.path().join("hello");
        copy_program(Path::new(env!("CARGO_BIN_EXE_hello")), &binary);
        let log = fs::File::create(dir.path().join("log")).expect("log");
        let mut command = match self.ulimit {
            None => Command::new(&binary),
            Some(limit) => {
                let mut shell = Command::new("/bin/sh");
                let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
                shell.arg("-c").arg(script).arg(&binary);
                shell
            }
        };
        if let Some(user) = self.user {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).expect("chown");
            command.uid(user).gid(user);
        }
        command.arg("serve");
        let mut port = None;
        match &self.config {
            Some(text) => {
                fs::write(dir.path().join("hello.toml"), text).expect("hello.toml");
                command.args(["--config", "hello.toml"]);
            }
            None => {
                let address = port.insert(Reserved::new()).address();
                command
                    .args(["--listen", &address.to_string(), "--pidfile"])
                    .arg(dir.path().join("hello.pid"))
                    .args(["--probation", &self.probation]);
            }
        }
        let child = command
            .args(&self.args)
            // Whoever runs the tests may be a service himself.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start hello");
        let mut hello = Hello {
            dir,
            child: Some(child),
            address: ([127, 0, 0, 1], 0).into(),
            _port: port,
        };
        hello.wait_until_serving();
        let status = hello.status();
        let listeners = status["listeners"].as_array().expect("listeners");
        let mut addresses = listeners.iter().filter_map(|l| l["address"].as_str());
        hello.address = addresses
            .find_map(|address| address.parse().ok())
            .expect("an address");
        hello
    }
}

impl Hello {
    /// A server with the options that a test adds.
    pub fn with() -> Start {
        Start {
            args: Vec::new(),
            // Whose the checkout is does not matter.
            env: vec![("HELLO_ALLOW_WRITABLE_BINARY".to_owned(), "true".to_owned())],
            ulimit: None,
            user: None,
            probation: "0s".to_owned(),
            config: None,
        }
    }

    /// A server with the default options.
    pub fn start() -> Self {
        Self::with().start()
    }

    fn wait_until_serving(&mut self) {
        eventually("the server answers", || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().expect("wait"))
            {
                panic!("hello ended with {status}: {}", self.log());
            }
            self.hello(&["status"]).status.success()
        });
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The binary that a reload starts.
    pub fn binary(&self) -> PathBuf {
        self.dir.path().join("hello")
    }

    pub fn pidfile(&self) -> PathBuf {
        self.dir.path().join("hello.pid")
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("hello.pid.sock")
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes its configuration anew: for the next reload.
    pub fn configure(&self, text: &str) {
        fs::write(self.dir.path().join("hello.toml"), text).expect("hello.toml");
    }

    /// Where the listener of this name is, by the word of `status`.
    pub fn listener(&self, name: &str) -> Option<String> {
        let status = self.status();
        let listeners = status["listeners"].as_array()?.iter();
        let mut named = listeners.filter(|listener| listener["name"] == name);
        Some(named.next()?["address"].as_str()?.to_owned())
    }

    /// What all generations wrote to stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap_or_default())
            .into_owned()
    }

    /// The process that was started first.
    pub fn first(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// Waits for its end.
    pub fn wait_for_first(&mut self) -> std::process::ExitStatus {
        self.child
            .as_mut()
            .expect("a process")
            .wait()
            .expect("wait")
    }

    /// The pid in the pidfile.
    pub fn pid(&self) -> u32 {
        fs::read_to_string(self.pidfile())
            .expect("pidfile")
            .trim()
            .parse()
            .expect("a pid")
    }

    /// Runs a verb of the *original* binary against this server, whatever has become of the one on
    /// disk.
    pub fn hello(&self, args: &[&str]) -> Output {
        self.verb(args).output().expect("run hello")
    }

    /// The same, not yet started.
    pub fn verb(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        command
            .args(args)
            .arg("--pidfile")
            .arg(self.pidfile())
            .stdin(Stdio::null());
        command
    }

    /// `hello reload`, which must succeed.
    pub fn reload(&self) -> String {
        let output = self.hello(&["reload"]);
        assert!(
            output.status.success(),
            "reload: {}\n{}",
            text(&output),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `hello reload --no-wait`, which must succeed: the new generation serves, and the old one may still
    /// be busy.
    pub fn begin_reload(&self) {
        let output = self.hello(&["reload", "--no-wait"]);
        assert!(
            output.status.success(),
            "reload: {}\n{}",
            text(&output),
            self.log()
        );
    }

    /// `hello reload`, which must fail with this exit code; what it said.
    pub fn reload_fails(&self, code: i32) -> String {
        let output = self.hello(&["reload"]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "reload: {}\n{}",
            text(&output),
            self.log()
        );
        text(&output)
    }

    /// `hello status --json`.
    pub fn status(&self) -> serde_json::Value {
        let output = self.hello(&["status", "--json"]);
        assert!(
            output.status.success(),
            "status: {}\n{}",
            text(&output),
            self.log()
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The same while the service passes from one process to the next, when it may have no answer for a moment: null then.
    pub fn try_status(&self) -> serde_json::Value {
        let output = self.hello(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("a generation")
    }

    /// How many requests have been answered, by the application's own count.
    pub fn requests(&self) -> u64 {
        let status: serde_json::Value =
            serde_json::from_slice(&Client::connect(self.address).get("/status").body)
                .expect("JSON");
        status["requests"].as_u64().expect("a number")
    }

    /// Sends a signal to a process.
    pub fn signal(&self, pid: u32, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    /// What the next reload starts waits until it is let go ([`Gate::reached`]), and serves then.
    pub fn replace_binary_by_gate(&self) -> Gate {
        let path = self.dir().join("gate");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        self.replace_binary_by_script(&format!(
            "read go < {}; exec {} \"$@\"",
            path.display(),
            env!("CARGO_BIN_EXE_hello")
        ));
        Gate(path)
    }

    /// Puts a shell script where the binary was: what the next reload starts.
    pub fn replace_binary_by_script(&self, script: &str) {
        self.replace_binary(format!("#!/bin/sh\n{script}\n").as_bytes());
    }

    /// Replaces the binary as a deploy does: a new file, renamed over.
    pub fn replace_binary(&self, content: &[u8]) {
        let new = self.dir.path().join("hello.new");
        write_program(&new, content);
        fs::rename(&new, self.binary()).expect("rename");
    }

    /// Puts the real binary back.
    pub fn restore_binary(&self) {
        self.replace_binary(&fs::read(env!("CARGO_BIN_EXE_hello")).expect("read hello"));
    }

    /// Processes that run from this server's directory and are not zombies, by pid.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A zombie has neither a command line nor a working directory; a script's `exec sleep` has
            // only the latter in common with its server.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let dir = self.dir.path();
            let bytes = dir.as_os_str().as_encoded_bytes();
            let is_named = line.windows(bytes.len()).any(|window| window == bytes);
            if (is_named || cwd.starts_with(dir)) && pid != std::process::id() {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        pids
    }

    /// Waits until only the process in the pidfile is left.
    pub fn settles(&self) {
        eventually("one generation is left", || {
            let pids = self.processes();
            pids.len() == 1
                && fs::read_to_string(self.pidfile())
                    .is_ok_and(|pid| pid.trim() == pids[0].to_string())
        });
    }

    /// How many descriptors a process has.
    pub fn descriptors(&self, pid: u32) -> usize {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fds")
            .count()
    }
}

impl Drop for Hello {
    fn drop(&mut self) {
        // Newest last: a child that is being started may appear while its parent is killed.
        for _ in 0..3 {
            for pid in self.processes() {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}

/// Where a child waits.
pub struct Gate(PathBuf);

impl Gate {
    /// Waits until somebody waits there; who does not pass before this is written to.
    pub fn reached(&self) -> fs::File {
        use std::os::unix::fs::OpenOptionsExt;
        let mut gate = None;
        eventually("a child waits", || {
            // Without a reader it cannot be opened so (fifo(7)).
            let opened = fs::File::options()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&self.0);
            gate = opened.ok();
            gate.is_some()
        });
        gate.expect("a gate")
    }
}

/// Copies a program. Not in this process: a descriptor that is open for writing is inherited, for a moment, by
/// whatever another thread starts, and exec of the copy would fail with `ETXTBSY`.
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp");
    assert!(status.success(), "cp {}", from.display());
}

/// Writes one, likewise.
pub fn write_program(path: &Path, content: &[u8]) {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut pipe = shell.stdin.take().expect("a pipe");
    pipe.write_all(content).expect("write");
    drop(pipe);
    assert!(shell.wait().expect("sh").success(), "{}", path.display());
}

/// Lets this process have as many connections as a test needs.
pub fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("setrlimit");
}

/// A number in a line of the log.
pub fn field(line: &str, name: &str) -> u64 {
    let (_, value) = line.split_once(&format!("{name}=")).expect(name);
    let end = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    value[..end].parse().expect("a number")
}

/// All that a command said.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits for an event of another process, of which there is no word but its effect.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < LONG, "waited {LONG:?} until {what}");
        // Who looks all the time takes the processor from what it waits for.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Between two looks.
pub const LOOK_AGAIN: Duration = Duration::from_millis(2);
