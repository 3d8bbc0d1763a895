//! `hello status`.

use anyhow::Context;
use handoff::control;

use crate::args::Status;
use crate::exit::{Exit, Failure};
use crate::locate::ANSWER_PATIENCE;
use crate::{output, render};

pub(crate) fn run(args: &Status) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let socket = args.which.paths()?.socket;
    let status = runtime
        .block_on(control::status(&socket, ANSWER_PATIENCE))
        .map_err(|error| args.which.failure(error))?;
    let text = if args.json {
        serde_json::to_string(&status)?
    } else {
        render::status(&status)
    };
    output::result(text).context("failed to print the status")?;
    Ok(Exit::Done)
}
