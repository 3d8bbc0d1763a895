//! `cargo xtask fuzz`: gives every reader of foreign bytes what nobody would think of, guided by what it covers.
//!
//! The targets are in `fuzz/`, a workspace of its own, because everything in it, dependencies included, is built with
//! the compiler's coverage instrumentation. libFuzzer comes with the crate `libfuzzer-sys` and needs a C++ compiler.
//! All of it works on the stable toolchain; the sanitizers do not, and are missed little where `unsafe` is forbidden.
//!
//! What was found is in `target/fuzz/found`. It belongs into `fuzz/corpus/TARGET`, where `cargo test` replays it. Inputs that
//! cover more than the corpus stay in `target/fuzz/corpus`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::soak::{parse_duration, target_directory, workspace_root};

/// What `cargo fuzz` passes, less the sanitizer.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// The longest input, in bytes: some frames and messages are longer, and no rule changes there.
const MAX_LEN: u32 = 8 * 1024;

/// A reader that needs more memory than this for such an input has believed a length that it was told.
const MAX_MEMORY_MB: u32 = 512;

/// Between two lines of progress.
const PULSE: Duration = Duration::from_secs(5);

/// Feed the readers of foreign bytes with what a fuzzer makes up
///
/// Exit code 0: nothing was found. 1: something was; the input that does it is named.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// How long, for each target.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    time: Duration,

    /// Which; all of them by default.
    target: Vec<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// Messages between parent and child.
    Wire,
    /// A snapshot of the application's state, and its changes.
    State,
    /// Lines on the control socket, both ways.
    Control,
    Pidfile,
    /// What a client sends on a WebSocket.
    Frames,
    /// What an application writes on one.
    Farewell,
}

impl Target {
    const ALL: [Self; 6] = [
        Self::Wire,
        Self::State,
        Self::Control,
        Self::Pidfile,
        Self::Frames,
        Self::Farewell,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::State => "state",
            Self::Control => "control",
            Self::Pidfile => "pidfile",
            Self::Frames => "frames",
            Self::Farewell => "farewell",
        }
    }
}

pub(crate) fn run(args: FuzzArgs) -> Result<ExitCode> {
    let targets = match args.target {
        none if none.is_empty() => Target::ALL.to_vec(),
        some => some,
    };
    let out = target_directory().join("fuzz");
    eprintln!("building the targets");
    let programs = build(&out)?;
    for target in targets {
        fuzz(target.name(), &programs, &out, args.time)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all of them; where they are.
fn build(out: &Path) -> Result<PathBuf> {
    let triple = host()?;
    let status = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--target",
            &triple,
        ])
        .current_dir(workspace_root().join("fuzz"))
        .env("CARGO_TARGET_DIR", out)
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the targets could not be built");
    Ok(out.join(triple).join("release"))
}

/// This machine's, for cargo: with a target of its own, build scripts and macros are not instrumented.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("cannot run rustc")?.stdout;
    let text = String::from_utf8_lossy(&output);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

fn fuzz(name: &str, programs: &Path, out: &Path, time: Duration) -> Result<()> {
    let seeds = workspace_root().join("fuzz/corpus").join(name);
    let (corpus, found) = (out.join("corpus").join(name), out.join("found").join(name));
    for directory in [&corpus, &found] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let seconds = time.as_secs().max(1);
    let mut child = Command::new(programs.join(name))
        .args([&corpus, &seeds])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_LEN}"))
        .arg(format!("-rss_limit_mb={MAX_MEMORY_MB}"))
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", found.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start target {name}"))?;
    let log = out.join(format!("{name}.log"));
    let stderr = child.stderr.take().context("no stderr")?;
    let last = follow(name, stderr, &log)?;
    let status = child.wait().context("wait")?;
    ensure!(
        status.success(),
        "{name}: found something ({status}): see {} and {}",
        log.display(),
        found.display()
    );
    eprintln!("{name}: nothing found. {last}");
    Ok(())
}

/// Keeps what libFuzzer says, and shows some of it. Its last word on how far it came.
fn follow(name: &str, stderr: ChildStderr, log: &Path) -> Result<String> {
    let mut file = File::create(log).with_context(|| log.display().to_string())?;
    let (mut shown, mut last) = (Instant::now(), String::new());
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read")?;
        writeln!(file, "{line}").context("write")?;
        if line.starts_with('#') {
            last = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if shown.elapsed() >= PULSE {
                eprintln!("{name}: {last}");
                shown = Instant::now();
            }
        } else if line.contains("panicked at") || line.contains("ERROR") {
            eprintln!("{name}: {line}");
        }
    }
    Ok(last)
}
