//! A reload of a process with much resident memory (B), and of one without (A), in turns: whether starting a child costs
//! more, the larger the parent is.
//!
//! One server: before each reload of B the process that is to be replaced is made to grow. Its child has nothing of that.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::args::{ParentArgs, size};
use super::goals::{Row, Verdict};
use super::reload::{Once, in_phases, once};
use super::smaps::Memory;
use super::stats::{Samples, ratio};
use super::{crowd, examples, report};
use crate::soak::{Place, align};

/// B takes at most so many times as long as A.
pub(crate) const GOAL: f64 = 1.1;

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: ParentArgs,
    /// A: from the start of the command to the first answer of the new generation, in milliseconds.
    empty_ms: Samples,
    /// B.
    large_ms: Samples,
    /// The median over the turns of B / A.
    pub(crate) large_per_empty: f64,
    /// The same, by the server's clock: from the request to its accepting.
    serving_ratio: f64,
    phases_empty: Vec<(String, Samples)>,
    phases_large: Vec<(String, Samples)>,
    /// Of B's parents, before their reload.
    resident_kib: Samples,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let measured = format!(
            "{:.3}, {} resident",
            self.large_per_empty,
            size(self.args.resident)
        );
        vec![Row::new(
            "the same of a large parent / an empty one",
            format!("at most {GOAL}"),
            measured,
            Verdict::of(self.large_per_empty <= GOAL),
        )]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &ParentArgs) -> Result<Results> {
    let out = report::directory(&args.common)?;
    let heavy = examples::build("heavy")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    let results = runtime.block_on(measure(args, &place, &heavy, &out))?;
    print!("{}", table(&results));
    report::write_json(&results, &out, "parent")?;
    Ok(results)
}

async fn measure(args: &ParentArgs, place: &Place, heavy: &Path, out: &Path) -> Result<Results> {
    let log = out.join("parent-server.log");
    let (server, status) = examples::start_heavy(place, heavy, 0, &log).await?;
    // The first generation was started by another: all that are measured are children of a child.
    let mut generation = once(&server, status.generation).await?.1;
    let (mut sides, mut resident) = ([Vec::new(), Vec::new()], Vec::new());
    for turn in 0..args.repetitions {
        // The order changes with each turn: what drifts meets both.
        for large in [turn % 2 == 1, turn % 2 == 0] {
            if large {
                crowd::get(server.address, &format!("/grow/{}", args.resident))?;
                let rss = Memory::of(server.status().await?.pid)?.rss_kib;
                ensure!(
                    rss * 1024.0 >= args.resident as f64,
                    "the process has only {rss} KiB"
                );
                resident.push(rss);
            }
            let began = Instant::now();
            let reload = once(&server, generation).await;
            let (once, next) = reload.context(if large { "B" } else { "A" })?;
            generation = next;
            eprintln!(
                "{} of {}: {}: {:.2} ms to the first answer, {:.1} ms in all",
                turn + 1,
                args.repetitions,
                if large { "B, large" } else { "A, empty" },
                once.first_answer_ms,
                began.elapsed().as_secs_f64() * 1e3
            );
            sides[usize::from(large)].push(once);
        }
    }
    server.stop().await?;
    let [empty, large] = sides;
    if empty.len() != large.len() {
        bail!("A and B did not take turns");
    }
    Ok(results(args, &empty, &large, resident))
}

fn results(args: &ParentArgs, empty: &[Once], large: &[Once], resident: Vec<f64>) -> Results {
    let of = |side: &[Once], value: fn(&Once) -> f64| side.iter().map(value).collect::<Vec<_>>();
    let per = |value: fn(&Once) -> f64| {
        let turns = of(empty, value).into_iter().zip(of(large, value));
        Samples::of(turns.map(|(a, b)| ratio(a, b)).collect()).median
    };
    let phases = |side: &[Once]| in_phases(side.iter().map(|once| once.phases.as_slice()));
    Results {
        args: args.clone(),
        large_per_empty: per(|once| once.first_answer_ms),
        serving_ratio: per(|once| once.serving_ms),
        empty_ms: Samples::of(of(empty, |once| once.first_answer_ms)),
        large_ms: Samples::of(of(large, |once| once.first_answer_ms)),
        phases_empty: phases(empty),
        phases_large: phases(large),
        resident_kib: Samples::of(resident),
    }
}

fn table(results: &Results) -> String {
    let head = ["milliseconds", "min", "median", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut row = |name: &str, samples: &Samples| {
        let name = [name.to_owned()];
        rows.push(name.into_iter().chain(samples.cells()).collect());
    };
    row("A, empty: to the answer", &results.empty_ms);
    row("B, large: to the answer", &results.large_ms);
    for (side, phases) in [("A", &results.phases_empty), ("B", &results.phases_large)] {
        for (name, ms) in phases {
            row(&format!("{side}, in {name}"), ms);
        }
    }
    let met = results.large_per_empty <= GOAL;
    format!(
        "{} turns, B with {} resident\n{}B / A: {:.3} (goal {GOAL}: {}); by the server's clock, to its accepting: {:.3}\n",
        results.args.repetitions,
        size(results.args.resident),
        align(&rows),
        results.large_per_empty,
        if met { "met" } else { "missed" },
        results.serving_ratio
    )
}
