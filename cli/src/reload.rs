//! `hello reload`.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use handoff::control::message::Generation;
use handoff::control::{self, ClientError, Event, Outcome, ReloadReport, Waits};

use crate::args::Reload;
use crate::exit::{Exit, Failure};
use crate::locate::ANSWER_PATIENCE;
use crate::output;
use crate::progress::{Progress, TICK};
use crate::render::{self, Parent};

pub(crate) fn run(args: &Reload) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let socket = args.which.paths()?.socket;
    runtime.block_on(async {
        if args.json {
            for_a_script(args, &socket).await
        } else {
            for_a_person(args, &socket).await
        }
    })
}

async fn for_a_script(args: &Reload, socket: &Path) -> Result<Exit, Failure> {
    let result = follow(args, socket, |event| {
        // Whether somebody reads does not change the outcome, which the exit code tells.
        if let Ok(line) = serde_json::to_string(event) {
            let _ = output::result(line);
        }
    })
    .await;
    match result {
        Ok(report) => Ok(exit(&report)),
        // It was printed, as an event.
        Err(ClientError::Refused { .. }) => Ok(Exit::Failed),
        Err(error) => Err(args.which.failure(error)),
    }
}

async fn for_a_person(args: &Reload, socket: &Path) -> Result<Exit, Failure> {
    let progress = RefCell::new(Progress::on_stderr());
    let result = tokio::select! {
        result = follow(args, socket, |event| progress.borrow_mut().learn(event)) => result,
        () = redraw(&progress) => unreachable!("it never ends"),
    };
    let mut progress = progress.into_inner();
    progress.erase();
    let report = result.map_err(|error| unfinished(args, error))?;
    match &report.outcome {
        Outcome::Failed {
            phase,
            reason,
            stderr,
        } => {
            output::note(render::failed(report.reload, phase, reason));
            progress.last_words(stderr);
            output::note(render::serves_on(survivor(socket).await));
        }
        _ => {
            let parent = if args.no_wait {
                Parent::NotAwaited
            } else {
                Parent::Awaited(args.timeout)
            };
            if let Some(line) = render::reloaded(&report, parent) {
                // As above: a full disk under stdout does not make it a failed reload.
                let _ = output::result(line);
            }
        }
    }
    Ok(exit(&report))
}

async fn follow(
    args: &Reload,
    socket: &Path,
    on_event: impl FnMut(&Event),
) -> Result<ReloadReport, ClientError> {
    let waits = Waits {
        outcome: args.timeout,
        drained: (!args.no_wait).then_some(args.timeout),
    };
    control::reload(socket, waits, on_event).await
}

pub(crate) async fn redraw(progress: &RefCell<Progress<std::io::Stderr>>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        progress.borrow_mut().draw();
    }
}

fn exit(report: &ReloadReport) -> Exit {
    match report.outcome {
        Outcome::Confirmed { .. } => Exit::Done,
        _ => Exit::Failed,
    }
}

/// What to do about a reload whose outcome was not learned, or that did not begin.
fn unfinished(args: &Reload, error: ClientError) -> Failure {
    let advice = match error {
        ClientError::TimedOut { .. } => "; it may still succeed, see `hello status`",
        ClientError::Gone | ClientError::Forgotten { .. } => {
            "; who serves now, `hello status` tells"
        }
        _ => "",
    };
    let Failure { exit, error } = args.which.failure(error);
    exit.because(anyhow!("{error:#}{advice}"))
}

/// Who serves on, by its own word, and in which phase it is.
pub(crate) async fn survivor(socket: &Path) -> Option<(Generation, String)> {
    let status = control::status(socket, ANSWER_PATIENCE).await.ok()?;
    Some((status.process, status.phase))
}
