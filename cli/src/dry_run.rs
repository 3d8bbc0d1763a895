//! `hello reload --dry-run`.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Context;
use handoff::control::{self, ClientError, DryRun};

use crate::args::Reload;
use crate::exit::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, reload, render};

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
    let result = control::dry_run(socket, args.timeout, |event| {
        if let Ok(line) = serde_json::to_string(event) {
            let _ = output::result(line);
        }
    });
    match result.await {
        Ok(report) => Ok(exit(&report.outcome)),
        // It was printed, as an event.
        Err(ClientError::Refused { .. }) => Ok(Exit::Failed),
        Err(error) => Err(args.which.failure(error)),
    }
}

async fn for_a_person(args: &Reload, socket: &Path) -> Result<Exit, Failure> {
    let progress = RefCell::new(Progress::on_stderr());
    let learn = |event: &control::Event| progress.borrow_mut().learn(event);
    let result = tokio::select! {
        result = control::dry_run(socket, args.timeout, learn) => result,
        () = reload::redraw(&progress) => unreachable!("it never ends"),
    };
    let mut progress = progress.into_inner();
    progress.erase();
    let report = result.map_err(|error| args.which.failure(error))?;
    let id = report.reload;
    match &report.outcome {
        DryRun::Ready {
            ready_us,
            build,
            listeners,
        } => {
            // As with a reload: a closed stdout does not change what was found.
            let _ = output::result(render::rehearsed(id, *ready_us, build, listeners));
        }
        DryRun::Failed {
            phase,
            reason,
            stderr,
        } => {
            output::note(render::rehearsal_failed(id, phase, reason));
            progress.last_words(stderr);
            output::note(render::serves_on(reload::survivor(socket).await));
        }
        _ => output::note(format_args!(
            "dry run {id} has ended in a way that this version does not know"
        )),
    }
    Ok(exit(&report.outcome))
}

fn exit(outcome: &DryRun) -> Exit {
    match outcome {
        DryRun::Ready { .. } => Exit::Done,
        _ => Exit::Failed,
    }
}
