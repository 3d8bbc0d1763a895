//! `hello`: an HTTP server that is replaced by its next build while it serves, and the verbs
//! to do it with.
//!
//! Here are the words that a person types, reads, and finds in a script's `$?`. What the verbs do is
//! in `handoff` (any program can have them) and `hello-server`; the application is in `demo`.

#![forbid(unsafe_code)]

mod args;
mod check;
mod config;
mod decide;
mod demo;
mod dry_run;
mod duration;
mod events;
mod exit;
mod listen;
mod locate;
mod log;
mod output;
mod parse;
mod progress;
mod reload;
mod render;
mod serve;
mod status;
mod stop;
mod watch;

use std::process::ExitCode;

use crate::args::Verb;
use crate::decide::Decision;
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let exit = run().unwrap_or_else(|Failure { exit, error }| {
        output::note(format_args!("hello: {error:#}"));
        // Whoever asked for the reload learns it, too; once the server has started, it has said so itself.
        handoff::refuse(&format!("{error:#}"));
        exit
    });
    exit.into()
}

fn run() -> Result<Exit, Failure> {
    let args = match parse::command_line() {
        Ok(args) => args,
        Err(parse::Problem::Usage(error)) => return exit::usage(&error),
        Err(parse::Problem::Config(error)) => return Err(error.into()),
    };
    match args.verb {
        Verb::Serve(args) if args.check => check::run(&args),
        Verb::Serve(args) => serve::run(*args),
        Verb::Reload(args) if args.dry_run => dry_run::run(&args),
        Verb::Reload(args) => reload::run(&args),
        Verb::Rollback(args) => decide::run(&args, Decision::Rollback),
        Verb::Confirm(args) => decide::run(&args, Decision::Confirm),
        Verb::Stop(args) => stop::run(&args),
        Verb::Status(args) if args.watch => watch::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Events(args) => events::run(&args),
    }
}
