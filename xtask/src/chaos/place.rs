//! The server of a chaos: its directory and processes, and how each event is carried out.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

use super::crowd::{Counts, Crowd};
use super::judge;
use super::script::{Build, Event, FROZEN, Who};
use crate::faults::{
    LOOK_AGAIN, Programs, Scratch, get, pid_of, signal, state_and_parent, text, wait_for,
};

/// Short enough for a reload that hangs not to take all the time.
const READY_TIMEOUT: &str = "2s";
const DRAIN_TIMEOUT: &str = "2s";
/// Descriptors that a server may have more than at the start: who comes and goes.
const DESCRIPTORS_MORE: usize = 12;

/// What was seen of an event.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Processes that were killed while they had connections, or had to cut them at their deadline.
    pub(super) killed_owners: u64,
    /// How often the service ended.
    pub(super) ends: u64,
    /// By which the generation has grown.
    pub(super) generations: u64,
    /// Of `hello reload`, and what it said.
    pub(super) reload: Option<(Option<i32>, String)>,
}

#[derive(Debug)]
pub(super) struct Place<'a> {
    programs: &'a Programs,
    dir: PathBuf,
    /// What this process has started, and must reap.
    started: Vec<Child>,
    pub(super) address: SocketAddr,
    pub(super) starts: u64,
    generation: u64,
    /// The counts at the last start, and whether nobody was killed since who counted.
    base: Counts,
    is_exact: bool,
    descriptors: usize,
}

impl<'a> Place<'a> {
    pub(super) fn start(programs: &'a Programs) -> Result<Self> {
        let dir = programs.root().canonicalize()?.join("chaos");
        fs::create_dir(&dir)?;
        let mut place = Self {
            programs,
            dir,
            started: Vec::new(),
            address: ([127, 0, 0, 1], 0).into(),
            starts: 0,
            generation: 1,
            base: Counts::default(),
            is_exact: true,
            descriptors: 0,
        };
        place.put_real()?;
        place.serve()?;
        place.until_served()?;
        let status = place.status()?.context("no status")?;
        let address = status["listeners"][0]["address"].as_str();
        place.address = address.context("no address")?.parse()?;
        Ok(place)
    }

    /// How many descriptors it has under load.
    pub(super) fn remember(&mut self) -> Result<()> {
        let pid = self.pidfile().context("no pidfile")?;
        self.descriptors = Scratch::descriptors(pid).values().sum();
        Ok(())
    }

    fn binary(&self) -> PathBuf {
        self.dir.join("hello")
    }

    /// Puts a file in the place of the next build, as a deploy does.
    fn put(&self, make: impl FnOnce(&PathBuf) -> Result<()>) -> Result<()> {
        let new = self.dir.join("hello.new");
        make(&new)?;
        fs::rename(&new, self.binary())?;
        // Of two links to one file, rename leaves both.
        let _ = fs::remove_file(&new);
        Ok(())
    }

    fn put_real(&self) -> Result<()> {
        let hello = self.programs.hello();
        self.put(|new| Ok(fs::hard_link(hello, new)?))
    }

    fn put_script(&self, script: &str) -> Result<()> {
        self.put(|new| {
            fs::write(new, format!("#!/bin/sh\n{script}\n"))?;
            Ok(fs::set_permissions(new, fs::Permissions::from_mode(0o755))?)
        })
    }

    fn put_bad(&self, build: Build) -> Result<()> {
        match build {
            Build::Missing => Ok(fs::remove_file(self.binary())?),
            Build::NotExecutable => self.put(|new| {
                fs::write(new, "not executable")?;
                Ok(fs::set_permissions(new, fs::Permissions::from_mode(0o644))?)
            }),
            Build::NoProgram => self.put(|new| {
                fs::write(new, [0x7f, b'E', b'L', b'F', 9, 9, 9])?;
                Ok(fs::set_permissions(new, fs::Permissions::from_mode(0o755))?)
            }),
            Build::ExitsAtOnce => self.put_script("echo 'no configuration' >&2; exit 3"),
            Build::Hangs => self.put_script("exec sleep 1000"),
            Build::Fails(point) => {
                // By the path from which its own children are started.
                let hello = self.programs.hello();
                self.put_script(&format!(
                    "HANDOFF_FAILPOINTS='{point}' exec {} \"$@\"",
                    hello.display()
                ))
            }
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let probation = ["0", "150ms"][self.starts as usize % 2];
        Command::new(self.binary())
            .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
            .args(["serve", "--listen", &self.address.to_string(), "--pidfile"])
            .arg(self.dir.join("hello.pid"))
            .args([
                "--ready-timeout",
                READY_TIMEOUT,
                "--drain-timeout",
                DRAIN_TIMEOUT,
            ])
            .args(["--probation", probation])
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("failed to start hello")
    }

    fn serve(&mut self) -> Result<()> {
        let child = self.spawn()?;
        self.started.push(child);
        self.starts += 1;
        self.generation = 1;
        Ok(())
    }

    fn until_served(&mut self) -> Result<()> {
        wait_for("the server answers", || Ok(self.status()?.is_some()))
    }

    fn verb(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.hello());
        command
            .args(args)
            .arg("--pidfile")
            .arg(self.dir.join("hello.pid"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        let output = self.verb(args).output();
        output.with_context(|| format!("failed to run `hello {}`", args.join(" ")))
    }

    fn status(&self) -> Result<Option<serde_json::Value>> {
        let output = self.output(&["status", "--json"])?;
        if !output.status.success() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    fn pidfile(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("hello.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn processes(&self) -> Vec<u32> {
        crate::faults::processes_in(&self.dir)
    }

    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    pub(super) fn last_lines(&self, number: usize) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(number).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
    }

    fn serving(&self) -> Result<u32> {
        self.pidfile().context("nobody is named by the pidfile")
    }

    pub(super) fn carry_out(&mut self, event: &Event, crowd: &Crowd) -> Result<Seen> {
        let mut seen = Seen::default();
        match event {
            Event::Reload => self.reload_well()?,
            Event::Reloads(number) => (0..*number).try_for_each(|_| self.reload_well())?,
            Event::FailingReload(build) => self.failing(*build, &mut seen)?,
            Event::Decision { verb, after } => {
                let reload = self.begin()?;
                std::thread::sleep(*after);
                self.output(&[verb])?;
                self.end(reload, &mut seen, &[0, 1])?;
            }
            Event::KillInReload { who, after } => self.kill_in_reload(*who, *after, &mut seen)?,
            Event::KillAtRest => {
                signal(self.serving()?, Signal::KILL);
                seen.killed_owners += 1;
            }
            Event::FreezeInReload { who, after, lasts } => {
                self.freeze_in_reload(*who, *after, *lasts, &mut seen)?;
            }
            Event::FreezeAtRest { lasts } => {
                let pid = self.serving()?;
                signal(pid, Signal::STOP);
                std::thread::sleep(*lasts);
                signal(pid, Signal::CONT);
            }
            Event::Signals { number, hangups } => {
                let pid = self.serving()?;
                for _ in 0..*number {
                    signal(pid, if *hangups { Signal::HUP } else { Signal::USR2 });
                    std::thread::sleep(Duration::from_millis(1));
                }
                let before = self.generation;
                wait_for("a signal has led to a reload", || {
                    let status = self.status()?;
                    Ok(status.is_some_and(|status| status["generation"].as_u64() > Some(before)))
                })?;
            }
            Event::StopAndServe => self.stop()?,
            Event::TwoServe => {
                self.stop()?;
                self.two_serve(crowd, &mut seen)?;
            }
            Event::Descriptors { room, who } => self.few_descriptors(*room, *who, &mut seen)?,
            Event::Strangers => self.strangers()?,
        }
        Ok(seen)
    }

    fn reload_well(&self) -> Result<()> {
        let output = self.output(&["reload"])?;
        ensure!(
            output.status.success(),
            "the reload failed: {}",
            text(&output)
        );
        Ok(())
    }

    fn failing(&mut self, build: Build, seen: &mut Seen) -> Result<()> {
        self.put_bad(build)?;
        let output = self.output(&["reload"])?;
        self.put_real()?;
        let said = text(&output);
        ensure!(
            output.status.code() == Some(1),
            "the reload did not fail: {said}"
        );
        ensure!(said.contains("serves on"), "who serves is not said: {said}");
        // It may have accepted before it could say so.
        if build == Build::Fails("child/before-say/Accepting=kill") {
            seen.killed_owners += 1;
        }
        Ok(())
    }

    fn begin(&self) -> Result<Child> {
        self.verb(&["reload", "--timeout", "25s"])
            .spawn()
            .context("failed to run `hello reload`")
    }

    fn end(&self, reload: Child, seen: &mut Seen, codes: &[i32]) -> Result<()> {
        let output = reload.wait_with_output()?;
        let (code, said) = (output.status.code(), text(&output));
        seen.reload = Some((code, said.clone()));
        ensure!(
            code.is_some_and(|code| codes.contains(&code)),
            "`hello reload` ended with {code:?}: {said}"
        );
        Ok(())
    }

    fn find(&self, who: Who, parent: u32) -> Option<u32> {
        let mut processes = self.processes().into_iter();
        match who {
            Who::Parent => processes.find(|pid| *pid == parent),
            Who::Child => processes.find(|pid| *pid != parent),
        }
    }

    fn kill_in_reload(&mut self, who: Who, after: Duration, seen: &mut Seen) -> Result<()> {
        let parent = self.serving()?;
        let reload = self.begin()?;
        std::thread::sleep(after);
        let victim = self.find(who, parent);
        if let Some(pid) = victim {
            signal(pid, Signal::KILL);
        }
        // The outcome is not known to who asked a process that is no more.
        self.end(reload, seen, &[0, 1, 3, 4])?;
        if let Some(pid) = victim {
            let owns = who == Who::Parent || self.has_served(pid);
            seen.killed_owners += u64::from(owns);
        }
        Ok(())
    }

    /// A child that has not accepted owns nothing.
    fn has_served(&self, pid: u32) -> bool {
        let serves = |line: &str| {
            line.starts_with(&format!("{pid} ")) && line.contains(": serving generation=")
        };
        self.log().lines().any(serves)
    }

    fn freeze_in_reload(
        &mut self,
        who: Who,
        after: Duration,
        lasts: Duration,
        seen: &mut Seen,
    ) -> Result<()> {
        let parent = self.serving()?;
        let reload = self.begin()?;
        std::thread::sleep(after);
        let frozen = self.find(who, parent);
        if let Some(pid) = frozen {
            signal(pid, Signal::STOP);
            std::thread::sleep(lasts);
            signal(pid, Signal::CONT);
        }
        let is_long = lasts >= FROZEN;
        self.end(reload, seen, if is_long { &[0, 1] } else { &[0] })?;
        let has_failed = matches!(seen.reload, Some((Some(1), _)));
        if let Some(pid) = frozen
            && has_failed
        {
            // Its parent did not wait for it any longer, and killed it.
            seen.killed_owners += u64::from(self.has_served(pid));
        }
        if is_long && frozen.is_some() && !has_failed {
            // It was final, and took nothing until the drain deadline: what its parent still had was cut.
            seen.killed_owners += 1;
        }
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        let output = self.output(&["stop"])?;
        ensure!(
            output.status.success(),
            "the stop failed: {}",
            text(&output)
        );
        Ok(())
    }

    /// One of two gets the lock; the other one says who has it.
    fn two_serve(&mut self, crowd: &Crowd, seen: &mut Seen) -> Result<()> {
        self.ended(crowd, seen)?;
        let mut both = [self.spawn()?, self.spawn()?];
        wait_for("one of two servers has given up", || {
            Ok(both
                .iter_mut()
                .any(|child| matches!(child.try_wait(), Ok(Some(_)))))
        })?;
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        let [first, second] = &mut both;
        let (first, second) = (ended(first), ended(second));
        ensure!(first != second, "both have ended");
        self.started.extend(both);
        self.starts += 1;
        self.generation = 1;
        self.until_served()
    }

    /// Nobody runs: what was counted so far is the last start's.
    fn ended(&mut self, crowd: &Crowd, seen: &mut Seen) -> Result<()> {
        wait_for("all have ended", || {
            self.reap();
            Ok(self.processes().is_empty())
        })?;
        seen.ends += 1;
        self.base = crowd.at_the_end_of_service();
        self.is_exact = true;
        Ok(())
    }

    fn few_descriptors(&mut self, room: u64, who: Who, seen: &mut Seen) -> Result<()> {
        let parent = self.serving()?;
        let reload = self.begin()?;
        let mut pid = None;
        let _ = wait_for("there is somebody to limit", || {
            pid = self.find(who, parent);
            Ok(pid.is_some())
        });
        let pid = pid.unwrap_or(parent);
        let most = Scratch::descriptors(pid).values().sum::<usize>() as u64;
        let limits = getrlimit(Resource::Nofile);
        let lowered = Rlimit {
            current: Some(most + room),
            maximum: limits.maximum,
        };
        // It may have ended since.
        let _ = prlimit(pid_of(pid), Resource::Nofile, lowered);
        let ended = self.end(reload, seen, &[0, 1]);
        for pid in self.processes() {
            let _ = prlimit(pid_of(pid), Resource::Nofile, limits);
        }
        ended
    }

    /// At the control socket, while a reload goes on.
    fn strangers(&self) -> Result<()> {
        let control = self.dir.join("hello.pid.sock");
        let words: [&[u8]; 4] = [
            b"",
            b"{\"half",
            b"\xff\xfe garbage\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ];
        let mut connected = Vec::new();
        for words in words {
            let mut stranger = UnixStream::connect(&control)?;
            // Its end may be closed already.
            let _ = stranger.write_all(words);
            connected.push(stranger);
        }
        self.reload_well()
    }

    pub(super) fn kill_unseen(&self) -> Result<()> {
        signal(self.serving()?, Signal::KILL);
        Ok(())
    }

    fn reap(&mut self) {
        self.started
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Waits until one process is the service in every respect; starts one if there is none.
    pub(super) fn settle(&mut self, seen: &mut Seen, crowd: &Crowd) -> Result<()> {
        let mut generation = 0;
        let mut what = String::new();
        let settled = wait_for("it has settled", || {
            self.reap();
            let pids = self.processes();
            if pids.is_empty() {
                self.ended(crowd, seen)?;
                self.serve()?;
                self.until_served()?;
                return Ok(false);
            }
            let status = self.status()?;
            let pidfile = self.pidfile();
            what = format!("running {pids:?}, pidfile {pidfile:?}, status {status:?}");
            let Some(status) = status else {
                return Ok(false);
            };
            generation = status["generation"].as_u64().unwrap_or(0);
            let pid = status["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            Ok(pids.len() == 1
                && Some(pids[0]) == pid
                && pidfile == pid
                && status["reload"].is_null()
                && self.zombies(&pids).is_empty())
        });
        settled.with_context(|| what)?;
        if seen.killed_owners > 0 {
            self.is_exact = false;
        }
        seen.generations += generation.saturating_sub(self.generation);
        self.generation = generation;
        let leftover: Vec<String> = fs::read_dir(&self.dir)?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| {
                let known = [
                    "hello",
                    "hello.pid",
                    "hello.pid.lock",
                    "hello.pid.sock",
                    "log",
                ];
                !known.contains(&name.as_str())
            })
            .collect();
        ensure!(leftover.is_empty(), "left behind: {leftover:?}");
        crowd.goes_on()
    }

    fn zombies(&self, parents: &[u32]) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                state_and_parent(*pid)
                    .is_some_and(|(state, parent)| state == 'Z' && parents.contains(&parent))
            })
            .collect()
    }

    /// Whether the application has counted what the clients have.
    pub(super) fn count(&self, seen: &Seen, counts: &Counts) -> Result<()> {
        let status: serde_json::Value = serde_json::from_str(&get(self.address, "/status")?)?;
        let requests = status["requests"]
            .as_u64()
            .context("no count of requests")?;
        let since = counts.since(&self.base);
        let lost = since.lost + since.silent;
        judge::count(requests, since.answered, lost, self.is_exact && lost == 0)
            .with_context(|| format!("{seen:?}"))
    }

    pub(super) fn holds_what_it_held(&self, seen: &Seen) -> Result<()> {
        let pid = self.serving()?;
        let most = self.descriptors + DESCRIPTORS_MORE;
        let mut now = 0;
        let same = wait_for("nothing is held that was not before", || {
            now = Scratch::descriptors(pid).values().sum();
            Ok(now <= most)
        });
        same.with_context(|| format!("{now} descriptors, at most {most} expected; {seen:?}"))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for _ in 0..200 {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            pids.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            std::thread::sleep(LOOK_AGAIN);
        }
        for child in &mut self.started {
            let _ = child.wait();
        }
    }
}
