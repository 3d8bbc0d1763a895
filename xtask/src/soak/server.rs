//! The server under test, as its operator sees it: `hello serve`, `status`, `reload`, `stop`.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::builds::Place;
use super::reloaded::{Reloaded, follow_reload, follow_socket};

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
        let mut command = Command::new(place.hello());
        command
            // Whose the checkout is does not matter.
            .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
            .args(["serve", "--listen", "http=127.0.0.1:0", "--pidfile"])
            .arg(place.pidfile())
            .args(args);
        Self::start_other(place, command, log).await
    }

    /// The same of another program with the verbs of `hello`, and with the pidfile of this place.
    pub(crate) async fn start_other(
        place: &'a Place,
        mut command: Command,
        log: &Path,
    ) -> Result<(Self, Status)> {
        let (stdout, stderr) = File::create(log)
            .and_then(|log| Ok((log.try_clone()?, log)))
            .with_context(|| format!("failed to create `{}`", log.display()))?;
        let mut first = command
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A Ctrl-C is for the soak, which then ends the server.
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
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
    pub(crate) async fn reload(&self, committed: impl FnMut((u64, u32))) -> Result<Reloaded> {
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
    pub(crate) async fn reload_by_socket(
        &self,
        committed: impl FnMut((u64, u32)),
    ) -> Result<Reloaded> {
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
}
