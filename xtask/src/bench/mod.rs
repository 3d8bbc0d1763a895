//! `cargo xtask bench`: figures of `hello` beside those of something simpler, measured in the same run.
//!
//! # Layout
//!
//! - [`args`]: what can be asked for;
//! - [`connections`]: moving N idle connections, beside a bare loop that passes as many descriptors;
//! - [`descriptors`]: descriptors passed a second by handoff's channel, beside the same bare loop;
//! - [`adoption`]: processor time of moving a connection, beside accepting one;
//! - [`memory`]: memory for an idle connection, beside hyper alone, nginx and Go;
//! - [`latency`]: requests in windows with a reload, beside windows without;
//! - [`parent`]: a reload of a process with much memory, beside one of an empty process;
//! - [`state`]: reloads with much state, and the longest silence that a client saw ([`gaps`]);
//! - [`reload`]: a reload by phase, beside starting the same binary;
//! - [`throughput`]: requests a second and processor time, beside hyper alone, nginx and Go;
//! - [`goals`]: all of them, and what is to be reached;
//! - [`stats`]: samples, medians, ratios; [`report`]: the table and the JSON;
//! - [`examples`]: the programs beside `hello`;
//! - [`crowd`] (many connections at once), [`limits`] (whether the machine lets us), [`affinity`] (who runs where), [`smaps`] (memory of a process).
//!
//! A and B take turns within one process, so that what else the machine does meets both. A figure that could not be
//! measured is an error that names what is missing; a figure that is bad is no error.
//! Whatever ends a measurement, what it started is killed.

use std::process::ExitCode;

use anyhow::Result;

mod adoption;
mod affinity;
mod args;
mod connections;
mod crowd;
mod descriptors;
mod examples;
mod gaps;
mod goals;
mod latency;
mod limits;
mod memory;
mod parent;
mod reload;
mod report;
mod smaps;
mod state;
mod stats;
mod throughput;

pub(crate) use args::BenchArgs;
use args::Measurement;

/// Runs one measurement, or all. Exit code 0 if it could be made, whatever it says.
pub(crate) fn run(args: BenchArgs) -> Result<ExitCode> {
    let Some(measurement) = args.measurement else {
        goals::run(&args.all)?;
        return Ok(ExitCode::SUCCESS);
    };
    match measurement {
        Measurement::Adoption(args) => drop(adoption::run(&args)?),
        Measurement::Connections(args) => drop(connections::run(&args)?),
        Measurement::Descriptors(args) => drop(descriptors::run(&args)?),
        Measurement::Latency(args) => drop(latency::run(&args)?),
        Measurement::Memory(args) => drop(memory::run(&args)?),
        Measurement::Parent(args) => drop(parent::run(&args)?),
        Measurement::Reload(args) => drop(reload::run(&args)?),
        Measurement::State(args) => drop(state::run(&args)?),
        Measurement::Throughput(args) => drop(throughput::run(&args)?),
        Measurement::BareSender(args) => connections::bare::sender(&args)?,
        Measurement::BareClients(args) => connections::bare::clients(&args)?,
        Measurement::BareReceiver(args) => connections::bare::receiver(args.by_channel)?,
    }
    Ok(ExitCode::SUCCESS)
}
