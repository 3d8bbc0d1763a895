//! A server that is driven by commands, as its operator would type them.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Uri;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::client::Page;
use super::profile::Commands;

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

    /// Runs the start command and waits until `address` takes a connection. Whoever holds the child keeps it.
    pub(crate) async fn start(&self, address: SocketAddr) -> Result<Child> {
        let from = self.log_length();
        let mut child = self.spawn(&self.commands.start, 1)?;
        let deadline = Instant::now() + self.timeout;
        let mut ended: Option<ExitStatus> = None;
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
            if TcpStream::connect(address).await.is_ok() {
                return Ok(child);
            }
            ensure!(
                Instant::now() < deadline,
                "`{}` did not answer within {:?} of the start command{}",
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
        shell.spawn().context("failed to run `sh`")
    }

    fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// What was printed since `from`, its end.
    fn said(&self, from: u64) -> String {
        last_output(&self.log, from).map_or_else(String::new, |text| format!("; it said: {text}"))
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
