//! The report of a soak: one page to look at, and a table for programs.
//!
//! `report.html` is whole in itself: no network, no script, its pictures are SVG within it. It says first whether
//! something was lost, then what and when, then why. It is made from `soak.json` alone, so
//! that it can be made again, and from several runs side by side: `cargo xtask report`.
//!
//! # Layout
//!
//! - [`model`]: `soak.json`, and what is said of one that cannot be read;
//! - [`page`] (the verdict first), [`tables`], [`html`], [`words`]: the page, from the top down;
//! - [`plots`] on [`canvas`], with the same [`axes`] for all runs;
//! - [`csv`]: a line for each reload.
//!
//! # Failure rules
//!
//! A file that cannot be read or understood fails the report, by its name and the field. What a run does not
//! have (no reload, no sample) is said in its place, and is no error. Nothing is written unless all of it could be made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

mod axes;
mod canvas;
mod csv;
mod html;
mod model;
mod page;
mod plots;
mod tables;
mod words;

use model::Run;

/// Side by side, more would be too narrow to read.
const MAX_RUNS: usize = 8;

/// Makes a page to look at from one or several `soak.json`.
///
/// Several runs stand side by side, with the same axes. The page needs no network and no script.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// `soak.json`, or the directory in which it lies; several to compare them.
    #[arg(required = true, value_name = "SOAK.JSON")]
    runs: Vec<PathBuf>,

    /// Where the page goes.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
}

/// Writes the page. Exit code 1 with a reason if a run cannot be read.
pub(crate) fn run(args: &ReportArgs) -> Result<ExitCode> {
    ensure!(
        args.runs.len() <= MAX_RUNS,
        "{} runs do not fit beside each other: give at most {MAX_RUNS}",
        args.runs.len()
    );
    let runs = args
        .runs
        .iter()
        .map(|path| Run::read(path))
        .collect::<Result<Vec<_>>>()?;
    write(&args.out, &page::page(&runs)?)?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes `report.html` and `soak.csv` beside the `soak.json` in `dir`.
pub(crate) fn beside(dir: &Path) -> Result<()> {
    let run = Run::read(dir)?;
    let table = csv::table(&run);
    let page = page::page(&[run])?;
    write(&dir.join("soak.csv"), &table)?;
    write(&dir.join("report.html"), &page)
}

/// Writes the page of several to `out`; returns the table of its top, for a terminal.
pub(crate) fn compared(dirs: &[PathBuf], out: &Path) -> Result<String> {
    let runs = dirs
        .iter()
        .map(|dir| Run::read(dir))
        .collect::<Result<Vec<_>>>()?;
    write(out, &page::page(&runs)?)?;
    let head = page::servers::HEAD.map(str::to_owned).to_vec();
    let rows: Vec<_> = [head]
        .into_iter()
        .chain(page::servers::rows(&runs))
        .collect();
    Ok(crate::soak::align(&rows))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}
