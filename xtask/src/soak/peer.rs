//! A server that is driven by commands, as its operator would type them.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Uri;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::client::{Client, Page};
use super::outcome::Outcome;
use super::profile::Commands;
use super::request::{Ask, Kind};
use super::tree::Tree;

/// Between two questions whether it answers.
const POLL: Duration = Duration::from_millis(20);
/// Of what a command printed, for an error.
const LAST_OUTPUT: usize = 2000;

/// The server, and where its commands run.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) commands: Commands,
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) timeout: Duration,
    pub(crate) log: PathBuf,
    /// `$HELLO`, where it was built.
    pub(crate) hello: Option<PathBuf>,
    /// What its processes belong to.
    pub(crate) tree: Arc<Tree>,
}

impl Peer {
    /// The address and the page of the URL. Only loopback, and only plain HTTP: it is a load.
    pub(crate) fn target(&self) -> Result<(SocketAddr, Page)> {
        let url = self.commands.url.replace("$PORT", &self.port.to_string());
        let context = || format!("--url `{url}`: give `http://127.0.0.1:$PORT/path`");
        let uri: Uri = url.parse().with_context(context)?;
        ensure!(uri.scheme_str() == Some("http"), context());
        let authority = uri.authority().with_context(context)?;
        let address = match authority.port_u16() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        let address: SocketAddr = address
            .replace("localhost:", "127.0.0.1:")
            .parse()
            .with_context(context)?;
        ensure!(
            address.ip().is_loopback(),
            "--url `{url}`: the load goes to loopback only"
        );
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok((
            address,
            Page {
                path: path.parse()?,
                host: authority.as_str().parse()?,
            },
        ))
    }

    /// Runs the start command and waits until the URL answers 200. Whoever holds the child keeps it.
    /// Also says whether the answer has an `x-generation`.
    pub(crate) async fn start(&self, client: &Client) -> Result<(Child, bool)> {
        let from = self.log_length();
        let mut child = self.spawn(&self.commands.start, 1)?;
        let deadline = Instant::now() + self.timeout;
        let mut ended: Option<ExitStatus> = None;
        let mut why = String::from("no answer");
        loop {
            if ended.is_none() {
                ended = child.try_wait()?;
            }
            if let Some(status) = ended.filter(|status| !status.success()) {
                bail!(
                    "the start command failed: {}{}",
                    told(status),
                    self.said(from)
                );
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, answers(client)).await {
                Ok(Ok(tells)) => return Ok((child, tells)),
                Ok(Err(reason)) => why = reason,
                // The last answer says more than that there was no time for another.
                Err(_) => {}
            }
            ensure!(
                Instant::now() < deadline,
                "`{}` did not answer 200 within {:?} of the start command: {why}{}",
                self.commands.url,
                self.timeout,
                self.said(from)
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs a command to its end. One that does not end in time is killed, with what it started in the foreground.
    pub(crate) async fn run(&self, what: &str, command: &str, generation: u64) -> Result<()> {
        let from = self.log_length();
        let mut child = self.spawn(command, generation)?;
        let Ok(status) = tokio::time::timeout(self.timeout, child.wait()).await else {
            // Its group is its own, and as long as it is not waited for, so is the number.
            if let Some(group) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.kill().await;
            bail!(
                "the {what} command has not ended after {:?}{}",
                self.timeout,
                self.said(from)
            );
        };
        let status = status?;
        ensure!(
            status.success(),
            "the {what} command failed: {}{}",
            told(status),
            self.said(from)
        );
        Ok(())
    }

    fn spawn(&self, command: &str, generation: u64) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .and_then(|log| Ok((log.try_clone()?, log)))
            .with_context(|| format!("failed to open `{}`", self.log.display()))?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("PORT", self.port.to_string())
            .env("DIR", &self.dir)
            .env("GENERATION", generation.to_string())
            .stdin(Stdio::null())
            .stdout(log.0)
            .stderr(log.1)
            .process_group(0)
            .kill_on_drop(true);
        if let Some(hello) = &self.hello {
            shell.env("HELLO", hello);
        }
        self.tree.spawn(&mut shell).context("failed to run `sh`")
    }

    fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// What was printed since `from`, its end.
    fn said(&self, from: u64) -> String {
        last_output(&self.log, from).map_or_else(String::new, |text| format!("; it said: {text}"))
    }
}

/// Whether the page is answered 200, and has an `x-generation`; if not, why.
async fn answers(client: &Client) -> Result<bool, String> {
    let ask = Ask::plain(Kind::Probe);
    let verdict = match client.connect(ask.kind).await {
        Ok(mut connection) => client.first_exchange(&mut connection, ask).await,
        Err(verdict) => verdict,
    };
    match verdict.outcome {
        Outcome::Ok => Ok(verdict.generation.is_some()),
        outcome => Err(format!("{}: {}", outcome.name(), verdict.detail)),
    }
}

fn last_output(log: &Path, from: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(
        from.max(length.saturating_sub(LAST_OUTPUT as u64)),
    ))
    .ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_OUTPUT as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "unknown end".into(),
    }
}
