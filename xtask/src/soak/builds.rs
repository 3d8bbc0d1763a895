//! The two builds of `hello`, and the place on disk where one replaces the other.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use super::process;
use super::timeline::Build;

/// Compiled into the builds, A and B.
const GREETINGS: [&str; 2] = ["eee", "fff"];

/// A directory of our own, with the binary that is deployed and those that may be.
///
/// Dropping it kills every process that runs from it, then removes it. So whatever happens to
/// the soak, no server outlives it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
    /// Canonical, as `/proc` shows it.
    path: PathBuf,
    builds: [PathBuf; 2],
    /// What the builds say; unknown if they were given.
    pub(crate) greetings: [Option<String>; 2],
}

impl Place {
    /// With two binaries that were built elsewhere.
    pub(crate) fn with(binaries: &[PathBuf]) -> Result<Self> {
        let mut place = Self::empty()?;
        for (build, binary) in place.builds.iter().zip(binaries) {
            fs::copy(binary, build)
                .with_context(|| format!("failed to copy `{}`", binary.display()))?;
        }
        place.greetings = [None, None];
        Ok(place)
    }

    /// Builds both in `target_dir`.
    pub(crate) async fn build(root: &Path, target_dir: &Path) -> Result<Self> {
        let place = Self::empty()?;
        for (build, greeting) in place.builds.iter().zip(GREETINGS) {
            let binary = compile(root, target_dir, greeting).await?;
            // The next build overwrites it.
            fs::copy(&binary, build)
                .with_context(|| format!("failed to copy `{}`", binary.display()))?;
        }
        Ok(place)
    }

    fn empty() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("hello-soak-")
            .tempdir()
            .context("failed to make a directory")?;
        let path = dir.path().canonicalize()?;
        let builds = ["build-a", "build-b"].map(|name| path.join(name));
        Ok(Self {
            dir,
            path,
            builds,
            greetings: GREETINGS.map(|greeting| Some(greeting.into())),
        })
    }

    /// Where everything is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The deployed binary.
    pub(crate) fn hello(&self) -> PathBuf {
        self.path.join("hello")
    }

    /// The server's.
    pub(crate) fn pidfile(&self) -> PathBuf {
        self.path.join("hello.pid")
    }

    /// Puts a build in the place of the deployed binary: a new file, renamed over the old one,
    /// as `install` and package managers do.
    pub(crate) fn deploy(&self, build: Build) -> Result<()> {
        let (from, beside) = (&self.builds[build as usize], self.path.join("hello.new"));
        fs::copy(from, &beside)
            .and_then(|_| fs::rename(&beside, self.hello()))
            .with_context(|| format!("failed to deploy `{}`", from.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(err) = process::kill_all_under(&self.path) {
            eprintln!(
                "failed to kill what runs under `{}`: {err}",
                self.dir.path().display()
            );
        }
    }
}

/// One release build. A target directory of its own keeps the user's build as it is.
async fn compile(root: &Path, target_dir: &Path, greeting: &str) -> Result<PathBuf> {
    eprintln!("building hello ({greeting}) in {}", target_dir.display());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "hello-cli",
            "--bin",
            "hello",
        ])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--target-dir",
        ])
        .arg(target_dir)
        .env("HELLO_GREETING", greeting)
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to run cargo")?;
    ensure!(
        output.status.success(),
        "cargo build failed: {}",
        output.status
    );
    executable(&output.stdout, "hello")
}

/// Where the program of this name is, by what cargo wrote with `--message-format json-render-diagnostics`: that depends on
/// the user's configuration (a target triple, for instance).
pub(crate) fn executable(said: &[u8], name: &str) -> Result<PathBuf> {
    String::from_utf8_lossy(said)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("cargo did not say where `{name}` is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deploying_replaces_the_file_and_not_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let binaries = [dir.path().join("a"), dir.path().join("b")];
        fs::write(&binaries[0], "A").unwrap();
        fs::write(&binaries[1], "B").unwrap();
        let place = Place::with(&binaries).unwrap();
        place.deploy(Build::A).unwrap();
        // Writing into the file of a running process fails with ETXTBSY.
        let running = fs::File::open(place.hello()).unwrap();
        place.deploy(Build::B).unwrap();
        assert_eq!(std::io::read_to_string(running).unwrap(), "A");
        assert_eq!(fs::read_to_string(place.hello()).unwrap(), "B");
        let path = place.path().to_owned();
        drop(place);
        assert!(!path.exists());
    }
}
