//! What a server is like when nothing happens, so that a test can say that nothing was left behind.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::{Hello, LONG, LOOK_AGAIN, client::Client, eventually};

/// One process that serves, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRest {
    pub pid: u32,
    pub generation: u64,
    /// How many of each kind: `socket`, `anon_inode:[pidfd]`, …
    pub descriptors: BTreeMap<String, usize>,
    /// The pidfile and all that lies beside it.
    pub files: Vec<String>,
}

impl Hello {
    /// Waits until one process is left, and nobody talks to it on the control socket; what it is then.
    pub fn at_rest(&self) -> AtRest {
        self.settles();
        let (pid, generation) = (self.pid(), self.generation());
        eventually("no client is connected", || !self.has_clients());
        eventually("no zombie is left", || self.zombies().is_empty());
        AtRest {
            pid,
            generation,
            descriptors: descriptors(pid),
            files: self.files(),
        }
    }

    /// Waits until the server is what it was: the same process, and nothing that it did not have before.
    pub fn is_again(&self, before: &AtRest) {
        self.comes_to(|now| now == before, before);
    }

    /// Waits until the server, by now another process perhaps, has no more and no less than it had before.
    pub fn holds_what_it_held(&self, before: &AtRest) {
        let same =
            |now: &AtRest| (&now.descriptors, &now.files) == (&before.descriptors, &before.files);
        self.comes_to(same, before);
    }

    fn comes_to(&self, is: impl Fn(&AtRest) -> bool, before: &AtRest) {
        let start = Instant::now();
        loop {
            let now = self.at_rest();
            if is(&now) {
                return;
            }
            assert!(
                start.elapsed() < LONG / 4,
                "before: {before:#?}\nnow: {now:#?}\n{}",
                self.log()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until no process is left, nor anything that names one.
    pub fn is_gone(&self) {
        eventually("no process is left", || self.processes().is_empty());
        assert_eq!(self.files(), ["hello.pid.lock"], "{}", self.log());
    }

    /// Starts another server on the same address and pidfile, which must be free, and waits until it answers.
    pub fn serve_anew(&self) -> Child {
        let log = fs::File::options()
            .append(true)
            .open(self.dir().join("log"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_hello"))
            .args([
                "serve",
                "--listen",
                &self.address().to_string(),
                "--pidfile",
            ])
            .arg(self.pidfile())
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("log"))
            .spawn()
            .expect("start hello");
        eventually("the new server answers", || {
            let ended = child.try_wait().expect("wait");
            assert!(
                ended.is_none(),
                "hello ended with {ended:?}: {}",
                self.log()
            );
            self.hello(&["status"]).status.success()
        });
        assert_eq!(
            Client::connect(self.address()).get("/hello").generation(),
            1
        );
        child
    }

    /// The pidfile and all that lies beside it.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir())
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.contains("hello.pid"))
            .collect();
        names.sort_unstable();
        names
    }

    /// Whether somebody is connected to the control socket.
    fn has_clients(&self) -> bool {
        let control = self.control().display().to_string();
        let unix = fs::read_to_string("/proc/net/unix").expect("unix");
        // Connected (03): the server's end bears the listener's path.
        unix.lines().any(|line| {
            line.ends_with(&control) && line.split_ascii_whitespace().nth(5) == Some("03")
        })
    }

    /// Children of this server's processes that have ended and that nobody has waited for.
    fn zombies(&self) -> Vec<u32> {
        let parents = self.processes();
        let stats = fs::read_dir("/proc").expect("/proc").flatten();
        stats
            .filter_map(|entry| {
                let (state, parent) = state_and_parent(&entry.file_name().to_string_lossy())?;
                (state == 'Z' && parents.contains(&parent))
                    .then(|| entry.file_name().to_string_lossy().parse().ok())?
            })
            .collect()
    }
}

/// Descriptors of a process, by what they are.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fds")
        .flatten()
    {
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

/// Waits until a process has been frozen by SIGSTOP.
pub fn freezes(pid: u32) {
    eventually("the process is frozen", || is_frozen(pid));
}

pub fn is_frozen(pid: u32) -> bool {
    state_and_parent(&pid.to_string()).is_some_and(|(state, _)| state == 'T')
}

/// Of a process: `R`, `S`, `T` (stopped), `Z` (zombie), and its parent.
pub fn state_and_parent(pid: &str) -> Option<(char, u32)> {
    pid.parse::<u32>().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}
