//! All measurements one after the other, and the table of the goals: `cargo xtask bench`.
//!
//! A measurement that cannot be made is a row that says why, and no reason to leave out the others.

use std::fmt::Display;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Command, FromArgMatches};
use serde::Serialize;

use super::args::{AllArgs, CommonArgs};
use super::{
    adoption, connections, descriptors, latency, memory, parent, reload, report, state, throughput,
};
use crate::soak::{Build, align};

/// Whether a figure keeps to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// What was measured are bounds, and the goal lies between them.
    Open,
    /// None was set.
    NoGoal,
    NotMeasured,
}

impl Verdict {
    /// Met, or not.
    pub(crate) fn of(met: bool) -> Self {
        if met { Self::Met } else { Self::Missed }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Open => "open",
            Self::NoGoal => "-",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) figure: &'static str,
    pub(crate) goal: String,
    pub(crate) measured: String,
    pub(crate) verdict: Verdict,
}

impl Row {
    pub(crate) fn new(
        figure: &'static str,
        goal: impl Display,
        measured: impl Display,
        verdict: Verdict,
    ) -> Self {
        Self {
            figure,
            goal: goal.to_string(),
            measured: measured.to_string(),
            verdict,
        }
    }
}

/// All figures.
#[derive(Debug, Serialize)]
struct Results {
    args: AllArgs,
    /// Of the machine: one minute, before and after. More than nothing before is a noisy measurement.
    load: [f64; 2],
    rows: Vec<Row>,
}

/// Runs all, prints the table, and writes `goals.json`.
pub(crate) fn run(args: &AllArgs) -> Result<()> {
    let out = report::directory(&args.common)?;
    let before = load();
    // Once for all: the builds of two greetings replace each other.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    place.deploy(Build::A)?;
    let common = CommonArgs {
        hello: Some(place.hello()),
        ..args.common.clone()
    };
    let results = Results {
        args: args.clone(),
        rows: all(args, &common),
        load: [before, load()],
    };
    print!("{}", table(&results));
    report::write_json(&results, &out, "goals")
}

fn all(args: &AllArgs, common: &CommonArgs) -> Vec<Row> {
    let mut rows = Vec::new();
    let quick = !args.full;
    measure(&mut rows, "reload", |mut args: super::args::ReloadArgs| {
        args.common = common.clone();
        args.repetitions = if quick { 7 } else { args.repetitions };
        Ok(reload::run(&args)?.rows())
    });
    measure(&mut rows, "parent", |mut args: super::args::ParentArgs| {
        args.common = common.clone();
        args.repetitions = if quick { 7 } else { args.repetitions };
        Ok(parent::run(&args)?.rows())
    });
    measure(&mut rows, "state", |mut args: super::args::StateArgs| {
        args.common = common.clone();
        if quick {
            args.rounds = 2;
            args.sizes = vec![1 << 10, 64 << 20, 1 << 30];
        }
        Ok(state::run(&args)?.rows())
    });
    measure(
        &mut rows,
        "throughput",
        |mut args: super::args::ThroughputArgs| {
            args.common = common.clone();
            args.rounds = if quick { 3 } else { args.rounds };
            Ok(throughput::run(&args)?.rows())
        },
    );
    measure(
        &mut rows,
        "connections",
        |mut args: super::args::ConnectionsArgs| {
            args.common = common.clone();
            args.repetitions = if quick { 3 } else { args.repetitions };
            args.count = args.count.min(super::limits::most());
            Ok(connections::run(&args)?.rows())
        },
    );
    measure(&mut rows, "memory", |mut args: super::args::MemoryArgs| {
        args.common = common.clone();
        args.rounds = if quick { 2 } else { args.rounds };
        Ok(memory::run(&args)?.rows())
    });
    measure(
        &mut rows,
        "descriptors",
        |mut args: super::args::DescriptorsArgs| {
            args.out = common.out.clone();
            args.repetitions = if quick { 7 } else { args.repetitions };
            Ok(descriptors::run(&args)?.rows())
        },
    );
    measure(
        &mut rows,
        "adoption",
        |mut args: super::args::AdoptionArgs| {
            args.common = common.clone();
            args.repetitions = if quick { 3 } else { args.repetitions };
            Ok(adoption::run(&args)?.rows())
        },
    );
    measure(
        &mut rows,
        "latency",
        |mut args: super::args::LatencyArgs| {
            args.common = common.clone();
            args.windows = if quick { 3 } else { args.windows };
            Ok(latency::run(&args)?.rows())
        },
    );
    rows
}

/// One of them with its defaults.
fn measure<A: Args + Send>(
    rows: &mut Vec<Row>,
    name: &'static str,
    run: impl FnOnce(A) -> Result<Vec<Row>> + Send,
) {
    println!("\n{name}");
    let measured = std::thread::scope(|scope| {
        // Whoever moves to a core stays there: a thread of its own.
        let thread = scope.spawn(|| run(defaults()?));
        let panicked = |_| Err(anyhow!("it has panicked"));
        thread.join().unwrap_or_else(panicked)
    });
    match measured {
        Ok(measured) => rows.extend(measured),
        Err(err) => {
            eprintln!("{name}: {err:#}");
            let said = format!("{err:#}");
            rows.push(Row::new(name, "", said, Verdict::NotMeasured));
        }
    }
}

fn defaults<A: Args + FromArgMatches>() -> Result<A> {
    let matches = A::augment_args(Command::new("defaults")).try_get_matches_from(["defaults"])?;
    A::from_arg_matches(&matches).context("defaults")
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next();
    first.and_then(|load| load.parse().ok()).unwrap_or_default()
}

fn table(results: &Results) -> String {
    let mut rows = vec![
        ["figure", "goal", "measured", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for row in &results.rows {
        rows.push(vec![
            row.figure.to_owned(),
            row.goal.clone(),
            row.measured.clone(),
            row.verdict.word().to_owned(),
        ]);
    }
    let [before, after] = results.load;
    format!(
        "\n{}load of the machine (1 min): {before} before, {after} after\n",
        align(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::super::args::{LatencyArgs, MemoryArgs, StateArgs};
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_said_and_the_others_are() {
        let mut rows = Vec::new();
        measure(&mut rows, "memory", |_: MemoryArgs| Err(anyhow!("no go")));
        measure(&mut rows, "state", |args: StateArgs| {
            assert_eq!(args.sizes.len(), 5);
            Ok(vec![Row::new("gap", "below 5 ms", 4, Verdict::of(true))])
        });
        measure(&mut rows, "latency", |_: LatencyArgs| panic!("on purpose"));
        let said: Vec<_> = rows
            .iter()
            .map(|row| (row.measured.as_str(), row.verdict.word()))
            .collect();
        assert_eq!(
            said,
            [
                ("no go", "not measured"),
                ("4", "met"),
                ("it has panicked", "not measured")
            ]
        );
    }
}
