//! Tasks of this workspace that are programs of their own: `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chaos;
mod faults;
mod fuzz;
mod report;
mod soak;

/// What developers and CI run, besides cargo's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Reload `hello` again and again under load, and prove that no client notices.
    Soak(soak::SoakArgs),
    /// Make a page to look at from one or several runs of the soak.
    Report(report::ReportArgs),
    Bench(bench::BenchArgs),
    Fuzz(fuzz::FuzzArgs),
    Faults(faults::FaultsArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Soak(args) => soak::run(args),
        Task::Report(args) => report::run(&args),
        Task::Bench(args) => bench::run(args),
        Task::Fuzz(args) => fuzz::run(args),
        Task::Faults(args) => faults::run(&args),
    };
    outcome.unwrap_or_else(|err| {
        eprintln!("error: {err:#}");
        ExitCode::FAILURE
    })
}
