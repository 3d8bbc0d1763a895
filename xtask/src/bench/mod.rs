//! `cargo xtask bench`: figures of `hello` beside those of something simpler, measured in the same run.
//!
//! # Layout
//!
//! - [`args`]: what can be asked for;
//! - [`connections`]: moving N idle connections, beside a bare loop that passes as many descriptors;
//! - [`latency`]: requests in windows with a reload, beside windows without;
//! - [`reload`]: a reload by phase, beside starting the same binary;
//! - [`throughput`]: requests a second and processor time, beside hyper alone, nginx and Go;
//! - [`stats`]: samples, medians, ratios; [`report`]: the table and the JSON;
//! - [`crowd`] (many connections at once), [`limits`] (whether the machine lets us), [`affinity`] (who runs where).
//!
//! A and B take turns within one process, so that what else the machine does meets both. A figure that could not be
//! measured is an error that names what is missing; a figure that is bad is no error.
//! Whatever ends a measurement, what it started is killed.

use std::process::ExitCode;

use anyhow::Result;

mod affinity;
mod args;
mod connections;
mod crowd;
mod latency;
mod limits;
mod reload;
mod report;
mod stats;
mod throughput;

pub(crate) use args::BenchArgs;
use args::Measurement;

/// Runs one measurement. Exit code 0 if it could be made, whatever it says.
pub(crate) fn run(args: BenchArgs) -> Result<ExitCode> {
    match args.measurement {
        Measurement::Connections(args) => connections::run(&args)?,
        Measurement::Latency(args) => latency::run(&args)?,
        Measurement::Reload(args) => reload::run(&args)?,
        Measurement::Throughput(args) => throughput::run(&args)?,
        Measurement::BareSender(args) => connections::bare::sender(&args)?,
        Measurement::BareClients(args) => connections::bare::clients(&args)?,
        Measurement::BareReceiver => connections::bare::receiver()?,
    }
    Ok(ExitCode::SUCCESS)
}
