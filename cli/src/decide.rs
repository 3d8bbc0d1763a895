//! `hello rollback` and `hello confirm`.

use anyhow::{Context, anyhow};
use handoff::control::{self, ClientError, Outcome};

use crate::args::Decide;
use crate::exit::{Exit, Failure};
use crate::{output, render};

/// How a probation is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Rollback,
    Confirm,
}

pub(crate) fn run(args: &Decide, decision: Decision) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let socket = args.which.paths()?.socket;
    let report = runtime
        .block_on(async {
            match decision {
                Decision::Rollback => control::rollback(&socket, args.timeout).await,
                Decision::Confirm => control::confirm(&socket, args.timeout).await,
            }
        })
        .map_err(|error| match error {
            ClientError::Refused { .. } => Exit::NothingOpen.because(error),
            error => args.which.failure(error),
        })?;
    let line = match (decision, &report.outcome) {
        (Decision::Rollback, Outcome::Failed { reason, .. }) => {
            let status = runtime.block_on(control::status(&socket, crate::locate::ANSWER_PATIENCE));
            let survivor = status.ok().map(|status| (status.process, status.phase));
            let serves = render::serves_on(survivor);
            format!("reload {} is taken back: {reason}\n{serves}", report.reload)
        }
        (Decision::Confirm, Outcome::Confirmed { to, .. }) => format!(
            "reload {} is confirmed: generation {}, pid {}, serves",
            report.reload, to.generation, to.pid
        ),
        (Decision::Rollback, _) => {
            return Err(Exit::Failed.because(anyhow!(
                "reload {} was confirmed before it could be taken back",
                report.reload
            )));
        }
        (Decision::Confirm, Outcome::Failed { phase, reason, .. }) => {
            return Err(Exit::Failed.because(anyhow!(render::failed(
                report.reload,
                phase,
                reason
            ))));
        }
        (Decision::Confirm, _) => {
            return Err(Exit::Failed.because(anyhow!(
                "reload {} has ended in a way that this version does not know",
                report.reload
            )));
        }
    };
    // As with a reload: a closed stdout changes nothing of what was done.
    let _ = output::result(line);
    Ok(Exit::Done)
}
