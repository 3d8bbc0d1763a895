//! The fault matrix, run: either side fails in every way at every message of a reload, under load.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use cells::{Cell, all};
use cross::cross;
pub(crate) use load::{Client, get};
use report::{Crossed, Report};
pub(crate) use scratch::{
    LOOK_AGAIN, Programs, Scratch, pid_of, processes_in, signal, state_and_parent, text, wait_for,
};

mod cells;
mod cross;
mod load;
mod page;
mod report;
mod rules;
mod scratch;

/// Let either side of a reload fail in every way, at every message, and check what is left.
///
/// Each cell of the matrix starts a server of its own, puts load on it (clients that never retry, idle connections,
/// an upload, a WebSocket session), and runs `hello reload`, in which one side fails at one message. What must be
/// seen then follows from a table of rules; see docs/faults.md. Exit code 0: every cell was as it must be;
/// 1: one was not, and the last lines say which.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FaultsArgs {
    /// Only cells whose name contains this, such as `parent/`, `say/Commit`, `=kill`; may be repeated, and all must.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,

    /// Only those in which no deadline must pass, and of `exit`, `say-exit` and `truncate` only what differs most
    /// from `kill` and `garbage`: what CI runs.
    #[arg(long)]
    fast: bool,

    /// The order in which the cells are run.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Cells at a time: most of them wait.
    #[arg(long, default_value = "4")]
    jobs: NonZeroUsize,

    /// A `hello` with the feature `failpoints`, instead of building it.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,

    /// Where `faults.json` and `faults.html` go. Default: `target/faults`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &FaultsArgs) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.context("xtask is not in a workspace")?;
    let mut chosen: Vec<(usize, Cell)> = all()
        .into_iter()
        .enumerate()
        .filter(|(_, cell)| cell.excuse().is_none() && args.chooses(cell))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no cell has all of {:?} in its name",
        args.only
    );
    chosen.sort_by_key(|(_, cell)| crc32fast::hash(format!("{} {cell}", args.seed).as_bytes()));
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => build(root)?,
    };
    let programs = Programs::new(&binary)?;
    programs.end_with_this_process()?;
    let began = Instant::now();
    let crossed = cross_all(&programs, chosen, args.jobs.get());
    let report = Report::new(crossed, args.seed, began.elapsed());
    println!("{}", report.table());
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| root.join("target/faults"));
    report.write(&out)?;
    print!("{}", report.verdict());
    Ok(if report.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl FaultsArgs {
    fn chooses(&self, cell: &Cell) -> bool {
        let name = cell.to_string();
        self.only.iter().all(|part| name.contains(part)) && (!self.fast || cell.is_in_fast_half())
    }
}

/// Runs so many at a time, and says how far it is.
fn cross_all(programs: &Programs, chosen: Vec<(usize, Cell)>, jobs: usize) -> Vec<Crossed> {
    let progress = Progress::new(chosen.len());
    let todo = Mutex::new(chosen.into_iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((number, cell)) = next else { return };
                    let began = Instant::now();
                    let outcome = cross(programs, number, &cell);
                    let crossed = Crossed::new(cell, outcome, began.elapsed());
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push(crossed);
                    progress.show(&done);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One line on stderr, drawn anew after each cell; where nobody looks, one for every tenth of all.
struct Progress {
    all: usize,
    began: Instant,
    is_live: bool,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self {
            all,
            began: Instant::now(),
            is_live: std::io::stderr().is_terminal(),
        }
    }

    fn show(&self, done: &[Crossed]) {
        let Some(last) = done.last() else { return };
        let failed = done.iter().filter(|crossed| crossed.has_failed()).count();
        let elapsed: Duration = self.began.elapsed();
        let line = format!(
            "{}/{} cells, {failed} failed, {} s; {}",
            done.len(),
            self.all,
            elapsed.as_secs(),
            last.cell
        );
        let mut stderr = std::io::stderr().lock();
        // That nobody reads it changes nothing.
        let _ = if last.has_failed() {
            let clear = if self.is_live { "\r\x1b[K" } else { "" };
            writeln!(stderr, "{clear}FAIL {}", last.cell)
        } else if self.is_live {
            write!(stderr, "\r\x1b[K{line}")
        } else if done.len().is_multiple_of(self.all.div_ceil(10)) {
            writeln!(stderr, "{line}")
        } else {
            Ok(())
        };
        if self.is_live && done.len() == self.all {
            let _ = writeln!(stderr);
        }
    }
}

/// `hello` with failpoints, as the tests build it.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    eprintln!("building hello with failpoints");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--package", "hello-cli", "--bin", "hello"])
        .args(["--all-features", "--locked"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("failed to run cargo")?;
    ensure!(
        output.status.success(),
        "cargo build failed: {}",
        output.status
    );
    crate::soak::executable(&output.stdout, "hello")
}
