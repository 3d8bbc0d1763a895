//! Exit codes.

use std::process::ExitCode;

/// What a script learns. The numbers are a promise, and `--help` prints it: see [`HELP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    NotRunning,
    TimedOut,
    NothingOpen,
    /// The service has ended with this one, and this process was its keeper.
    Kept(u8),
}

pub(crate) const HELP: &str = "\
Exit codes:
  0  done (serve: it was stopped, or another generation has taken over)
  1  failed; a reload that fails leaves the old generation serving
  2  the command line is not understood
  3  no server is running
  4  the outcome is not known: timed out, or the server went away
  5  no reload is on probation: there is nothing to confirm or to roll back";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotRunning => 3,
            Exit::TimedOut => 4,
            Exit::NothingOpen => 5,
            Exit::Kept(code) => code,
        })
    }
}

/// An error, and what a script learns of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
}

/// Any error is a plain failure unless it says more.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Exit::Failed.because(error)
    }
}

impl Exit {
    pub(crate) fn because(self, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            exit: self,
            error: error.into(),
        }
    }
}

/// What clap has to say: an error, but also `--help` and `--version`.
pub(crate) fn usage(error: &clap::Error) -> Result<Exit, Failure> {
    // It knows whether that goes to stdout or stderr, and the colours. A closed one is no news.
    let _ = error.print();
    Ok(if error.use_stderr() {
        // A build that does not have an option of the running one's.
        handoff::refuse(error.to_string().trim_end());
        Exit::Usage
    } else {
        Exit::Done
    })
}
