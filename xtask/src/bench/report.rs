//! The JSON of a measurement, and where it goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::args::CommonArgs;
use crate::soak::{Place, target_directory, workspace_root};

/// The directory for the figures, made if it is not there.
pub(crate) fn directory(args: &CommonArgs) -> Result<PathBuf> {
    made(args.out.as_deref())
}

/// The same, of an `--out` alone.
pub(crate) fn made(out: Option<&Path>) -> Result<PathBuf> {
    let out = out.map_or_else(|| target_directory().join("bench"), Path::to_owned);
    fs::create_dir_all(&out).with_context(|| format!("failed to create `{}`", out.display()))?;
    Ok(out)
}

/// The binary to measure, twice, in a place of its own.
pub(crate) async fn place(args: &CommonArgs) -> Result<Place> {
    match &args.hello {
        Some(hello) => Place::with(&[hello.clone(), hello.clone()]),
        None => Place::build(&workspace_root(), &target_directory().join("soak")).await,
    }
}

/// Writes `<name>.json` into `dir`, and says where it is.
pub(crate) fn write_json(results: &impl Serialize, dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(name).with_extension("json");
    fs::write(&path, serde_json::to_string_pretty(results)?)
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
