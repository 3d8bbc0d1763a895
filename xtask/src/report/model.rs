//! `soak.json` as the report reads it: format 1, described in `docs/soak.md`.
//!
//! A file that is missing, damaged or of another format is refused with its name, the field and the
//! remedy. Fields that the report does not show are not read, so that a newer soak may add some.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The format that this report reads.
const FORMAT: u64 = 1;
/// Larger than any soak writes: a week of it is a quarter of that.
const MAX_BYTES: u64 = 1 << 30;

/// A distribution: shares of the requests, from 0 to 1, and the milliseconds that they took at most.
pub(super) type Distribution = Vec<(f64, f64)>;
/// Numbers by the name of what is counted.
pub(super) type Counts = BTreeMap<String, u64>;

/// A run of the soak.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Run {
    /// What to call it beside others: the server, or else the directory.
    #[serde(default, rename = "server")]
    pub(super) name: String,
    pub(super) command: Vec<String>,
    pub(super) builds: Vec<Option<String>>,
    pub(super) passed: bool,
    pub(super) checks: Vec<Check>,
    pub(super) machine: Machine,
    pub(super) lasted_s: f64,
    pub(super) load: Load,
    /// Absent for a server that is driven by commands: nor does it tell what moved, nor its phases.
    pub(super) ending: Option<Ending>,
    pub(super) reloads: Vec<Reload>,
    pub(super) by_reload: Vec<Between>,
    pub(super) samples: Vec<Sample>,
    pub(super) series: Vec<Slice>,
    pub(super) losses: Vec<Loss>,
}

/// What must hold; `passed` is `None` where it could not be judged.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Check {
    pub(super) what: String,
    pub(super) passed: Option<bool>,
    pub(super) detail: String,
}

/// Where and when it ran.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpus: u64,
    pub(super) unix_time: f64,
}

/// The requests.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Load {
    pub(super) worst_lateness_ms: f64,
    pub(super) totals: Totals,
    /// Kind of request, then outcome.
    #[serde(default)]
    pub(super) counts: BTreeMap<String, Counts>,
    pub(super) latencies: BTreeMap<String, Latency>,
    pub(super) distributions: BTreeMap<String, Distribution>,
}

/// The sums.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Totals {
    pub(super) ended: u64,
    pub(super) lost: u64,
    pub(super) closed: u64,
    pub(super) forced_reconnects: u64,
}

/// A distribution in six figures.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

/// The two counts that must agree.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Ending {
    pub(super) answers: u64,
    pub(super) server_requests: Option<u64>,
}

/// One reload.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Reload {
    pub(super) number: u64,
    pub(super) at_s: f64,
    pub(super) failure: Option<String>,
    pub(super) generation: Option<u64>,
    pub(super) first_answer_ms: Option<f64>,
    #[serde(default)]
    pub(super) commit_ms: Option<f64>,
    pub(super) command_ms: f64,
    #[serde(default)]
    pub(super) bare_exec_ms: Option<f64>,
    #[serde(default)]
    pub(super) phases: Vec<Phase>,
    #[serde(default)]
    pub(super) moved: u64,
    #[serde(default)]
    pub(super) moved_as: Counts,
    #[serde(default)]
    pub(super) drained: u64,
    #[serde(default)]
    pub(super) cut: u64,
}

/// The beginning of a phase, since the request.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) at_ms: f64,
}

/// What ended between one reload and the next.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Between {
    pub(super) reload: u64,
    pub(super) ok: Counts,
    pub(super) lost: Counts,
}

/// What a generation held at a moment.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Sample {
    pub(super) at_s: f64,
    pub(super) generation: u64,
    pub(super) rss_kib: u64,
    pub(super) fds: u64,
}

/// A second of the run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Slice {
    pub(super) at_s: f64,
    pub(super) ended: u64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// A request that was lost, or a connection that was closed for nothing.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Loss {
    pub(super) at_s: f64,
    pub(super) what: String,
    pub(super) kind: String,
    pub(super) port: u16,
    pub(super) reload: u64,
    pub(super) since_reload_ms: f64,
    pub(super) generation: u64,
    pub(super) detail: String,
}

impl Run {
    /// Whether it is of a server that was driven by commands, and told nothing of itself.
    pub(super) fn is_driven(&self) -> bool {
        self.ending.is_none()
    }

    /// Reads `path`; a directory stands for the `soak.json` in it.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() {
            path.join("soak.json")
        } else {
            path.to_owned()
        };
        let shown = path.display();
        let read = || -> std::io::Result<String> {
            if std::fs::metadata(&path)?.len() > MAX_BYTES {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            std::fs::read_to_string(&path)
        };
        let text = read().with_context(|| {
            format!("failed to read `{shown}`: give a `soak.json`, or the directory that `cargo xtask soak --out` wrote")
        })?;
        let mut run = parse(&text).with_context(|| format!("failed to understand `{shown}`"))?;
        if run.name.is_empty() {
            run.name = directory(&path);
        }
        Ok(run)
    }

    /// The latest moment of which the file tells, in seconds.
    pub(super) fn end_s(&self) -> f64 {
        let slices = self.series.iter().map(|slice| slice.at_s);
        let samples = self.samples.iter().map(|sample| sample.at_s);
        slices.chain(samples).fold(self.lasted_s, f64::max)
    }
}

/// What a run is called that does not say it.
fn directory(path: &Path) -> String {
    let parent = path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    let name = parent.parent().and_then(Path::file_name);
    name.map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

fn parse(text: &str) -> Result<Run> {
    let value: Value = serde_json::from_str(text)
        .context("it is not complete JSON: the soak may have been killed while it wrote")?;
    match value.get("format").map(Value::as_u64) {
        Some(Some(FORMAT)) => {}
        Some(Some(other)) => bail!(
            "field `format` is {other}, and this report reads {FORMAT}: take the xtask that wrote the file"
        ),
        _ => bail!(
            "field `format` is not there: it is no `soak.json`, or one from before formats were numbered; run the soak again"
        ),
    }
    let run: Run = serde_path_to_error::deserialize(value)
        .map_err(|err| anyhow!("field `{}`: {}", err.path(), err.inner()))?;
    let whole = run.lasted_s.is_finite() && run.lasted_s > 0.0;
    ensure!(
        whole,
        "field `lasted_s` is {}: no time had load",
        run.lasted_s
    );
    Ok(run)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A good run, small and complete.
    pub(crate) const GOOD: &str = include_str!("../../tests/fixtures/good/soak.json");
    /// One that lost requests.
    pub(crate) const LOST: &str = include_str!("../../tests/fixtures/lost/soak.json");

    pub(crate) fn run(text: &str) -> Run {
        parse(text).unwrap()
    }

    fn refused(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused("{\"format\": 1").contains("not complete JSON"));
        assert!(refused("{}").contains("`format` is not there"));
        assert!(refused("{\"format\": 2}").contains("`format` is 2, and this report reads 1"));
        let mut damaged: Value = serde_json::from_str(GOOD).unwrap();
        damaged["reloads"][1]["at_s"] = "soon".into();
        let error = refused(&damaged.to_string());
        assert!(error.contains("`reloads[1].at_s`"), "{error}");
        let mut short: Value = serde_json::from_str(GOOD).unwrap();
        short["load"].as_object_mut().unwrap().remove("totals");
        let error = refused(&short.to_string());
        assert!(error.contains("`load`: missing field `totals`"), "{error}");
    }
}
