//! The server under test, as its operator sees it: `hello serve`, `status`, `reload`, `stop`.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::builds::Place;

/// Until the first generation answers `hello status`.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two questions whether it does.
const START_POLL: Duration = Duration::from_millis(20);
/// Between the end of a process and that of its sockets.
const PORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any deadline of the server: one of its commands that takes longer hangs.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// What `hello status` says, as far as the soak cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Of the process that answered.
    pub(crate) generation: u64,
    /// The same.
    pub(crate) pid: u32,
    /// What the listener `http` is really bound to.
    pub(crate) address: SocketAddr,
}

/// How `hello reload` went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reloaded {
    /// Its exit code; `None`: killed.
    pub(crate) exit: Option<i32>,
    /// The new generation and its process, if one was confirmed.
    pub(crate) to: Option<(u64, u32)>,
    /// From the start of the command to the line that says so.
    pub(crate) confirmed: Option<Duration>,
    /// What the server measured: from the request to its accepting.
    pub(crate) serving: Option<Duration>,
    /// From the start of the command to the line that says that the parent has gone.
    pub(crate) drained: Option<Duration>,
    /// The server's own measure: from its start of the drain to its end.
    pub(crate) drain: Option<Duration>,
    /// Since the request, in microseconds: when the drain began.
    pub(crate) draining_at_us: Option<u64>,
    /// Connections that moved to the new generation.
    pub(crate) moved: u64,
    /// The same, by what they were: `idle`, `answered`, `upgraded` and others.
    pub(crate) moved_as: BTreeMap<String, u64>,
    /// Connections cut at the drain deadline.
    pub(crate) cut: u64,
    /// `drained` came without its counts, or with others than we know.
    pub(crate) unintelligible: bool,
    /// From start to exit of the command.
    pub(crate) took: Duration,
    /// What it printed, both streams, for the report of a failure.
    pub(crate) output: String,
}

/// A running server. [`Place`] is what kills it.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    place: &'a Place,
    /// The listener's address, which no reload changes.
    pub(crate) address: SocketAddr,
}

impl<'a> Server<'a> {
    /// Starts the deployed binary and waits until it answers. What it prints goes to `log`.
    pub(crate) async fn start(
        place: &'a Place,
        args: &[String],
        log: &Path,
    ) -> Result<(Self, Status)> {
        let (stdout, stderr) = File::create(log)
            .and_then(|log| Ok((log.try_clone()?, log)))
            .with_context(|| format!("failed to create `{}`", log.display()))?;
        let mut first = Command::new(place.hello())
            .args(["serve", "--listen", "http=127.0.0.1:0", "--pidfile"])
            .arg(place.pidfile())
            .args(args)
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A Ctrl-C is for the soak, which then ends the server.
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start `{}`", place.hello().display()))?;
        let status = answer(place, &mut first)
            .await
            .with_context(|| format!("see `{}`", log.display()))?;
        // Reaps it when its time is over: after the first reload.
        tokio::spawn(async move { first.wait().await });
        Ok((
            Self {
                place,
                address: status.address,
            },
            status,
        ))
    }

    /// Of whoever serves now.
    pub(crate) async fn status(&self) -> Result<Status> {
        status(self.place).await
    }

    /// Runs `hello reload`, and calls `committed` at the very moment at which it reports the
    /// new generation to serve.
    pub(crate) async fn reload(&self, committed: impl FnMut(u64)) -> Result<Reloaded> {
        let began = Instant::now();
        let child = self
            .command("reload", &["--json"])
            .spawn()
            .context("failed to run `hello reload`")?;
        // On a timeout the child is dropped, and thereby killed.
        let follow = follow_reload(child, began, committed);
        tokio::time::timeout(COMMAND_TIMEOUT, follow)
            .await
            .with_context(|| format!("`hello reload` has not ended after {COMMAND_TIMEOUT:?}"))?
    }

    /// The same without a command, which would take time from somebody: on the control socket.
    pub(crate) async fn reload_by_socket(&self, committed: impl FnMut(u64)) -> Result<Reloaded> {
        let mut path = self.place.pidfile().into_os_string();
        path.push(".sock");
        let began = Instant::now();
        let follow = async {
            let socket = UnixStream::connect(&path).await?;
            follow_socket(socket, began, committed).await
        };
        tokio::time::timeout(COMMAND_TIMEOUT, follow)
            .await
            .with_context(|| format!("the reload has not ended after {COMMAND_TIMEOUT:?}"))?
            .with_context(|| format!("on `{}`", path.display()))
    }

    /// Runs `hello --version`: starting and ending the binary, and nothing else.
    pub(crate) async fn bare_exec(&self) -> Result<Duration> {
        let began = Instant::now();
        let status = Command::new(self.place.hello())
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status();
        let status = tokio::time::timeout(COMMAND_TIMEOUT, status)
            .await
            .context("`hello --version` hangs")??;
        ensure!(status.success(), "`hello --version` failed: {status}");
        Ok(began.elapsed())
    }

    /// Runs `hello stop`.
    pub(crate) async fn stop(&self) -> Result<Output> {
        output(self.command("stop", &[])).await
    }

    /// Waits until somebody else could listen where the server did.
    ///
    /// A process that exits gives up its memory, by which `/proc` shows what it runs, before
    /// its sockets: for a moment it seems gone and still holds the port.
    pub(crate) async fn port_is_free(&self) -> Result<()> {
        let deadline = Instant::now() + PORT_TIMEOUT;
        loop {
            match TcpListener::bind(self.address) {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < deadline => tokio::time::sleep(START_POLL).await,
                Err(err) => {
                    return Err(err).with_context(|| format!("{} is still in use", self.address));
                }
            }
        }
    }

    fn command(&self, verb: &str, args: &[&str]) -> Command {
        command(self.place, verb, args)
    }
}

fn command(place: &Place, verb: &str, args: &[&str]) -> Command {
    let mut command = Command::new(place.hello());
    command
        .arg(verb)
        .arg("--pidfile")
        .arg(place.pidfile())
        .args(args)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> Result<Output> {
    tokio::time::timeout(COMMAND_TIMEOUT, command.output())
        .await
        .with_context(|| format!("{command:?} has not ended after {COMMAND_TIMEOUT:?}"))?
        .with_context(|| format!("failed to run {command:?}"))
}

/// Waits until the first generation answers, or has exited.
async fn answer(place: &Place, first: &mut Child) -> Result<Status> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let err = match status(place).await {
            Ok(status) => return Ok(status),
            Err(err) => err,
        };
        if let Some(exit) = first.try_wait()? {
            bail!("the server did not start: {exit}");
        }
        if Instant::now() > deadline {
            return Err(err.context(format!(
                "the server does not answer after {START_TIMEOUT:?}"
            )));
        }
        tokio::time::sleep(START_POLL).await;
    }
}

async fn status(place: &Place) -> Result<Status> {
    let output = output(command(place, "status", &["--json"])).await?;
    ensure!(
        output.status.success(),
        "`hello status` failed: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    parse_status(&text).with_context(|| format!("`hello status --json` said {text:?}"))
}

fn parse_status(text: &str) -> Result<Status> {
    let status: Value = serde_json::from_str(text)?;
    let generation = status["generation"].as_u64().context("no generation")?;
    let pid = status["pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .context("no pid")?;
    let listeners = status["listeners"].as_array().context("no listeners")?;
    let http = listeners
        .iter()
        .find(|listener| listener["name"] == "http")
        .context("no listener `http`")?;
    let address = http["address"].as_str().context("no address")?.parse()?;
    Ok(Status {
        generation,
        pid,
        address,
    })
}

async fn follow_reload(
    mut child: Child,
    began: Instant,
    mut committed: impl FnMut(u64),
) -> Result<Reloaded> {
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("`hello reload` has no output");
    };
    let mut errors = String::new();
    let mut reloaded = Reloaded::default();
    // Both at a time: a full pipe would stop the command.
    let (read_errors, read_events) = tokio::join!(
        stderr.read_to_string(&mut errors),
        reloaded.take_events(stdout, began, &mut committed)
    );
    read_errors?;
    read_events?;
    reloaded.exit = child.wait().await?.code();
    reloaded.took = began.elapsed();
    reloaded.output.push_str(&errors);
    Ok(reloaded)
}

/// Asks for a reload on the control socket, and follows it to the end of the process that was asked.
async fn follow_socket(
    mut socket: UnixStream,
    began: Instant,
    mut committed: impl FnMut(u64),
) -> Result<Reloaded> {
    let mut reloaded = Reloaded::default();
    socket.write_all(b"{\"verb\":\"reload\"}\n").await?;
    reloaded.take_events(socket, began, &mut committed).await?;
    reloaded.exit = Some(i32::from(reloaded.to.is_none()));
    reloaded.took = began.elapsed();
    Ok(reloaded)
}

impl Reloaded {
    /// Events, one a line, until they end.
    async fn take_events(
        &mut self,
        events: impl AsyncRead + Unpin,
        began: Instant,
        committed: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut lines = BufReader::new(events).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(generation) = self.take_event(&line, began.elapsed()) {
                committed(generation);
            }
        }
        Ok(())
    }

    /// One line of `hello reload --json`. Returns the generation that it says serves now.
    fn take_event(&mut self, line: &str, at: Duration) -> Option<u64> {
        self.output.push_str(line);
        self.output.push('\n');
        let event: Value = serde_json::from_str(line).ok()?;
        match (event["event"].as_str()?, event["result"].as_str()) {
            ("reloaded", Some("confirmed")) => {
                let to = &event["to"];
                let generation = to["generation"].as_u64()?;
                self.to = Some((
                    generation,
                    to["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())?,
                ));
                self.confirmed = Some(at);
                self.serving = event["serving_us"].as_u64().map(Duration::from_micros);
                Some(generation)
            }
            ("phase", _) if event["phase"] == "draining" => {
                self.draining_at_us = event["at_us"].as_u64();
                None
            }
            ("drained", _) => {
                self.drained = Some(at);
                self.take_counts(&event["connections"]);
                // 0: the successor answers, which does not know when the parent began.
                let ended_at_us = event["at_us"].as_u64().filter(|us| *us > 0);
                self.drain = ended_at_us
                    .zip(self.draining_at_us)
                    .and_then(|(end, begin)| Some(Duration::from_micros(end.checked_sub(begin)?)));
                None
            }
            _ => None,
        }
    }

    /// A count that is missing is an error of ours, and must not look like a good reload.
    fn take_counts(&mut self, connections: &Value) {
        let count = |name: &str| connections[name].as_u64();
        let moved_as = connections["moved_as"].as_object();
        let (Some(moved), Some(cut), Some(moved_as)) = (count("moved"), count("cut"), moved_as)
        else {
            self.unintelligible = true;
            return;
        };
        (self.moved, self.cut) = (moved, cut);
        self.moved_as = moved_as
            .iter()
            .map(|(kind, count)| (kind.clone(), count.as_u64().unwrap_or(0)))
            .collect();
    }

    /// Whether it did what it was asked for; if not, why.
    pub(crate) fn failure(&self) -> Option<String> {
        let why = match (self.exit, self.to) {
            (Some(0), Some(_)) if self.unintelligible => {
                "the counts of `drained` are not understood".into()
            }
            (Some(0), Some(_)) if self.cut == 0 => return None,
            (Some(0), Some(_)) => format!("{} connections were cut", self.cut),
            (Some(0), None) => "exit code 0, but no generation was confirmed".into(),
            (Some(code), _) => format!("exit code {code}"),
            (None, _) => "killed by a signal".into(),
        };
        Some(format!("{why}: {}", self.output.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_with_or_without_the_event_around_it() {
        let text = r#"{"event":"status","generation":3,"pid":42,"build":"x","more":[],
            "listeners":[{"name":"admin","address":"unix:/x","backlog":1},{"name":"http","address":"127.0.0.1:8321"}]}"#;
        let expected = Status {
            generation: 3,
            pid: 42,
            address: "127.0.0.1:8321".parse().unwrap(),
        };
        assert_eq!(parse_status(text).unwrap(), expected);
        assert!(parse_status(r#"{"generation":3,"pid":42,"listeners":[]}"#).is_err());
        assert!(parse_status("not running").is_err());
    }

    #[tokio::test]
    async fn a_reload_is_followed_line_by_line() {
        let script = r#"
            echo '{"event":"phase","reload":1,"phase":"starting","pid":null,"at_us":3}'
            echo '{"event":"phase","reload":1,"phase":"draining","pid":6,"at_us":4000}'
            echo '{"event":"reloaded","reload":1,"result":"confirmed","from":{"generation":1,"pid":5},"to":{"generation":2,"pid":6},"serving_us":4100,"listeners":{}}'
            sleep 0.2
            echo '{"event":"drained","reload":1,"at_us":9000,"connections":{"moved":7,"moved_as":{"idle":5,"upgraded":2},"drained":0,"cut":1,"named":["x"]}}'
            echo done >&2"#;
        let mut command = Command::new("/bin/sh");
        let child = command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let mut commits = Vec::new();
        let reloaded = follow_reload(child, began, |generation| {
            commits.push((generation, began.elapsed()));
        })
        .await
        .unwrap();
        assert_eq!((reloaded.exit, reloaded.to), (Some(0), Some((2, 6))));
        assert_eq!(commits[0].0, 2);
        assert!(
            commits[0].1 < Duration::from_millis(200),
            "told while the command still ran"
        );
        assert!(reloaded.drained.unwrap() >= Duration::from_millis(200));
        assert_eq!(reloaded.serving, Some(Duration::from_micros(4100)));
        assert_eq!(reloaded.drain, Some(Duration::from_millis(5)));
        assert_eq!((reloaded.moved, reloaded.cut), (7, 1));
        let moved_as = [("idle".to_owned(), 5), ("upgraded".to_owned(), 2)];
        assert_eq!(reloaded.moved_as, BTreeMap::from(moved_as));
        assert!(
            reloaded
                .failure()
                .unwrap()
                .starts_with("1 connections were cut")
        );
        assert!(reloaded.output.ends_with("done\n"));
    }

    #[test]
    fn counts_of_another_kind_do_not_pass_for_zeros() {
        let mut reloaded = Reloaded {
            exit: Some(0),
            to: Some((2, 6)),
            ..Reloaded::default()
        };
        reloaded.take_event(
            r#"{"event":"drained","at_us":9,"connections":{"moved":7,"moved_as":{},"cut":["x"]}}"#,
            Duration::ZERO,
        );
        let failure = reloaded.failure().unwrap();
        assert!(failure.starts_with("the counts"), "{failure}");
    }

    #[test]
    fn a_reload_that_failed_says_why() {
        let done = Reloaded {
            exit: Some(0),
            to: Some((2, 6)),
            ..Reloaded::default()
        };
        assert_eq!(done.failure(), None);
        let failed = Reloaded {
            exit: Some(1),
            output: "child exited\n".into(),
            ..Reloaded::default()
        };
        assert_eq!(failed.failure().unwrap(), "exit code 1: child exited");
        let silent = Reloaded {
            exit: Some(0),
            ..Reloaded::default()
        };
        assert!(silent.failure().is_some());
    }
}
