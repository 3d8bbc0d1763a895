//! A reload by phase (C), beside starting and ending the same binary (A) and a first start of it (B), in turns.
//!
//! - [`starting`]: A and B;
//! - [`first_answer`]: when a server answers.
//!
//! What a reload is to be compared with is fork, exec and the start of a runtime. Nothing does just that with this binary: A does
//! less (`--version` starts no runtime), and B does more (log, pidfile, listeners, control socket, an answer). So the ratio that is
//! asked for lies between C / B and C / A, and the verdict says so if the goal does, too.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::args::ReloadArgs;
use super::goals::{self, Row};
use super::report;
use super::stats::{Samples, ratio};
use crate::soak::{Build, Phase, Place, Reloaded, Server, align};

mod first_answer;
mod starting;

/// From the start of `hello reload` to the first answer of the new generation: at most so many times what is bare.
const GOAL: f64 = 1.5;

/// One reload, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Once {
    /// From the start of the command to the first answer of the new generation.
    pub(crate) first_answer_ms: f64,
    /// By the server's clock: from the request to its accepting.
    pub(crate) serving_ms: f64,
    pub(crate) phases: Vec<Phase>,
}

/// Whether a ratio that is known by its bounds keeps to the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Met,
    Missed,
    /// The goal lies between the bounds.
    Open,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: ReloadArgs,
    goal: f64,
    verdict: Verdict,
    /// A.
    version_ms: Samples,
    /// B.
    first_start_ms: Samples,
    /// C.
    first_answer_ms: Samples,
    serving_ms: Samples,
    /// The median over the turns of C / A.
    per_version: f64,
    /// The median over the turns of C / B.
    per_first_start: f64,
    /// How long the reloads were in each phase, in milliseconds.
    phases: Vec<(String, Samples)>,
    reloads: Vec<Once>,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        vec![Row::new(
            "reload to the first answer / fork, exec, runtime",
            format!("at most {GOAL}"),
            format!(
                "{:.2} to {:.2} ({:.1} ms)",
                self.per_first_start, self.per_version, self.first_answer_ms.median
            ),
            match self.verdict {
                Verdict::Met => goals::Verdict::Met,
                Verdict::Missed => goals::Verdict::Missed,
                Verdict::Open => goals::Verdict::Open,
            },
        )]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &ReloadArgs) -> Result<Results> {
    let out = report::directory(&args.common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    let results = runtime.block_on(measure(args, &place, &out))?;
    print!("{}", table(&results));
    report::write_json(&results, &out, "reload")?;
    Ok(results)
}

async fn measure(args: &ReloadArgs, place: &Place, out: &Path) -> Result<Results> {
    place.deploy(Build::A)?;
    let serve_args = args.common.serve_args();
    let log = out.join("reload-server.log");
    let (server, status) = Server::start(place, &serve_args, &log).await?;
    // The first generation was started by another: all that are measured are children of a child.
    let mut generation = once(&server, status.generation).await?.1;
    let (mut version_ms, mut first_start_ms, mut reloads) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..args.repetitions {
        // The order changes with each turn: what drifts meets all.
        for side in 0..3 {
            match (turn + side) % 3 {
                0 => version_ms.push(ms(server.bare_exec().await.context("A")?)),
                1 => {
                    let start = starting::first_start(place, &serve_args, turn);
                    first_start_ms.push(ms(start.context("B, a first start")?));
                }
                _ => {
                    let (once, next) = once(&server, generation).await.context("C")?;
                    generation = next;
                    reloads.push(once);
                }
            }
        }
        if let (Some(a), Some(b), Some(c)) =
            (version_ms.last(), first_start_ms.last(), reloads.last())
        {
            let (n, of, c) = (turn + 1, args.repetitions, c.first_answer_ms);
            eprintln!("{n} of {of}: A {a:.2} ms, B {b:.2} ms, C {c:.2} ms");
        }
    }
    server.stop().await?;
    Ok(results(args, version_ms, first_start_ms, reloads))
}

/// One reload of `generation`, and the generation that came of it.
pub(crate) async fn once(server: &Server<'_>, generation: u64) -> Result<(Once, u64)> {
    let (address, next) = (server.address, generation + 1);
    let began = Instant::now();
    let probe = tokio::task::spawn_blocking(move || first_answer::of_generation(address, next));
    let reloaded = server.reload(|_| {}).await?;
    if let Some(failure) = reloaded.failure() {
        bail!("the reload failed: {failure}");
    }
    let answered = probe.await??;
    ensure!(
        reloaded.to.map(|(generation, _)| generation) == Some(next),
        "somebody else reloads this server"
    );
    let Reloaded {
        serving, phases, ..
    } = reloaded;
    let once = Once {
        first_answer_ms: ms(answered.duration_since(began)),
        serving_ms: ms(serving.context("`reloaded` without `serving_us`")?),
        phases,
    };
    Ok((once, next))
}

fn results(
    args: &ReloadArgs,
    version_ms: Vec<f64>,
    first_start_ms: Vec<f64>,
    reloads: Vec<Once>,
) -> Results {
    let first_answer_ms: Vec<f64> = reloads.iter().map(|once| once.first_answer_ms).collect();
    let per = |peer: &[f64]| {
        let turns = peer.iter().zip(&first_answer_ms);
        Samples::of(turns.map(|(peer, reload)| ratio(*peer, *reload)).collect()).median
    };
    let (per_version, per_first_start) = (per(&version_ms), per(&first_start_ms));
    Results {
        args: args.clone(),
        goal: GOAL,
        verdict: verdict(per_first_start, per_version),
        per_version,
        per_first_start,
        version_ms: Samples::of(version_ms),
        first_start_ms: Samples::of(first_start_ms),
        first_answer_ms: Samples::of(first_answer_ms),
        serving_ms: Samples::of(reloads.iter().map(|once| once.serving_ms).collect()),
        phases: in_phases(reloads.iter().map(|once| once.phases.as_slice())),
        reloads,
    }
}

/// How long each of these reloads was in each phase, in milliseconds: from its beginning to that of the next. The last,
/// `drained`, is the end of one.
pub(crate) fn in_phases<'a>(reloads: impl Iterator<Item = &'a [Phase]>) -> Vec<(String, Samples)> {
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for pair in reloads.flat_map(|phases| phases.windows(2)) {
        let took = pair[1].at_ms - pair[0].at_ms;
        match all.iter_mut().find(|(name, _)| *name == pair[0].name) {
            Some((_, each)) => each.push(took),
            None => all.push((pair[0].name.clone(), vec![took])),
        }
    }
    let of = |(name, each)| (name, Samples::of(each));
    all.into_iter().map(of).collect()
}

fn verdict(lower: f64, upper: f64) -> Verdict {
    if upper <= GOAL {
        Verdict::Met
    } else if lower > GOAL {
        Verdict::Missed
    } else {
        Verdict::Open
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn table(results: &Results) -> String {
    let head = ["milliseconds", "min", "median", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut row = |name: &str, samples: &Samples| {
        let name = [name.to_owned()];
        rows.push(name.into_iter().chain(samples.cells()).collect());
    };
    row("A: hello --version", &results.version_ms);
    row("B: first start to answer", &results.first_start_ms);
    row("C: hello reload to answer", &results.first_answer_ms);
    row("request to serving", &results.serving_ms);
    for (phase, ms) in &results.phases {
        row(&format!("in {phase}"), ms);
    }
    let said = match results.verdict {
        Verdict::Met => "met",
        Verdict::Missed => "missed",
        Verdict::Open => "open, it lies between them",
    };
    format!(
        "{} turns\n{}C / A: {:.2}, C / B: {:.2} (goal of what is between them {GOAL}: {said})\n",
        results.args.repetitions,
        align(&rows),
        results.per_version,
        results.per_first_start,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(phases: &[(&str, f64)]) -> Once {
        let phase = |(name, at_ms): &(&str, f64)| Phase {
            name: (*name).into(),
            at_ms: *at_ms,
        };
        Once {
            first_answer_ms: 1.0,
            serving_ms: 1.0,
            phases: phases.iter().map(phase).collect(),
        }
    }

    #[test]
    fn a_phase_lasts_until_the_next() {
        let whole = once(&[("starting", 0.5), ("joining", 2.0), ("drained", 9.0)]);
        // The successor answered: the end is not known.
        let without_end = once(&[("starting", 0.0), ("joining", 3.0)]);
        let reloads = [whole, without_end];
        let phases = in_phases(reloads.iter().map(|once| once.phases.as_slice()));
        let told: Vec<_> = phases
            .iter()
            .map(|(name, ms)| (name.as_str(), ms.each.as_slice()))
            .collect();
        assert_eq!(
            told,
            [("starting", &[1.5, 3.0][..]), ("joining", &[7.0][..])]
        );
    }

    #[test]
    fn a_goal_between_the_bounds_is_neither_met_nor_missed() {
        assert_eq!(verdict(1.0, 1.5), Verdict::Met);
        assert_eq!(verdict(1.4, 1.6), Verdict::Open);
        assert_eq!(verdict(1.6, 4.0), Verdict::Missed);
    }

    #[test]
    fn the_ratio_is_of_each_turn() {
        let args = ReloadArgs {
            repetitions: 1,
            common: super::super::args::CommonArgs::default(),
        };
        let reloads = vec![once(&[]), once(&[]), once(&[])];
        let results = results(&args, vec![0.5, 0.1, 1.0], vec![2.0, 1.0, 4.0], reloads);
        assert_eq!((results.per_version, results.per_first_start), (2.0, 0.5));
    }
}
