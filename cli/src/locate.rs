//! Which server is meant: by its pidfile, given, in its configuration file, or found.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use handoff::control::ClientError;
use handoff::pidfile::{self, FindError, Paths, Running};

use crate::exit::{Exit, Failure};

/// `--pidfile`, for every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    /// The server's pidfile; its lock and its control socket lie beside it
    ///
    /// Two servers on one machine need two. Without this option `serve`, `reload`, `stop` and
    /// `status` of one user agree on the same place.
    #[arg(
        long,
        value_name = "PATH",
        env = "HELLO_PIDFILE",
        hide_env_values = true
    )]
    pidfile: Option<PathBuf>,

    /// The server's configuration file, TOML (see docs/operations.md)
    ///
    /// Any option of `serve` may stand in it, by its long name; listeners are a table. Command line and environment
    /// take precedence. A reload reads it anew. The other verbs look into it only for the pidfile's path.
    #[arg(
        long,
        value_name = "FILE",
        env = "HELLO_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
}

impl Which {
    /// The pidfile and what lies beside it.
    pub(crate) fn paths(&self) -> Result<Paths, Failure> {
        let default = || pidfile::default_pidfile("hello");
        let pidfile = self.pidfile.clone().unwrap_or_else(default);
        Paths::of(&pidfile).map_err(|error| Exit::Usage.because(error))
    }

    /// The process that owns the pidfile now.
    pub(crate) fn find(&self) -> Result<Running, Failure> {
        pidfile::find(&self.paths()?).map_err(|error| match error {
            FindError::NotRunning { .. } => {
                let command = match (&self.config, &self.pidfile) {
                    (Some(path), _) => format!("hello serve --config {}", path.display()),
                    (None, Some(path)) => format!("hello serve --pidfile {}", path.display()),
                    (None, None) => "hello serve".to_owned(),
                };
                Exit::NotRunning.because(anyhow!("{error}; start one with `{command}`"))
            }
            other => Exit::Failed.because(other),
        })
    }

    /// What a conversation's end means for a script.
    pub(crate) fn failure(&self, error: ClientError) -> Failure {
        match &error {
            ClientError::Connect(cause) if cause.is_not_running() => self.no_answer(error),
            ClientError::TimedOut { .. } | ClientError::Gone | ClientError::Forgotten { .. } => {
                Exit::TimedOut.because(error)
            }
            _ => Exit::Failed.because(error),
        }
    }

    /// Nobody has the control socket. That somebody has the pidfile is rare enough to be explained.
    fn no_answer(&self, error: ClientError) -> Failure {
        match self.find() {
            Err(failure) => failure,
            Ok(running) => {
                let pid = running.pid();
                Exit::Failed.because(anyhow::Error::from(error).context(format!(
                    "process {pid} holds the pidfile, but does not answer on its control socket; \
                     `kill -USR2 {pid}` reloads it, `kill {pid}` stops it"
                )))
            }
        }
    }
}

/// How long a server may take to answer what it knows by heart. It is a matter of microseconds,
/// unless the process is frozen.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
