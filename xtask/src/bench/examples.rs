//! Programs of `server/examples` that are measured, or measured against.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::soak::{Build, Place, Server, Status, executable, workspace_root};

/// Builds one, as `hello` is built.
pub(crate) fn build(name: &str) -> Result<PathBuf> {
    let root = workspace_root();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--release", "--locked", "--package"];
    let output = Command::new(cargo)
        .args(args)
        .args(["hello-server", "--example", name])
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
    executable(&output.stdout, name)
}

/// Starts `heavy`, whose first generation has so much state, in the place of a `hello` that gives it the verbs.
pub(crate) async fn start_heavy<'a>(
    place: &'a Place,
    heavy: &Path,
    state_bytes: u64,
    log: &Path,
) -> Result<(Server<'a>, Status)> {
    place.deploy(Build::A)?;
    // The place kills what runs from it.
    let program = place.path().join("heavy");
    std::fs::copy(heavy, &program)
        .with_context(|| format!("failed to copy `{}`", heavy.display()))?;
    let mut command = tokio::process::Command::new(program);
    command
        .arg("127.0.0.1:0")
        .arg(place.pidfile())
        .arg(state_bytes.to_string());
    Server::start_other(place, command, log).await
}
