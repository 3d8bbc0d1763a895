//! `hello events`.

use std::ops::ControlFlow;

use anyhow::Context;
use handoff::control;

use crate::args::Events;
use crate::exit::{Exit, Failure};
use crate::{output, render};

pub(crate) fn run(args: &Events) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let socket = args.which.paths()?.socket;
    let followed = runtime.block_on(control::events(&socket, |event| {
        let line = if args.json {
            serde_json::to_string(event).ok()
        } else {
            render::event(event)
        };
        match line.map(output::line) {
            // Nobody reads any more.
            Some(Err(_)) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }));
    followed.map_err(|error| args.which.failure(error))?;
    Ok(Exit::Done)
}
