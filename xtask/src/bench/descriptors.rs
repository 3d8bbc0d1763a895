//! Descriptors passed a second: by handoff's channel (B), and by a bare loop (A), in turns.
//!
//! Both are the sending process's own clock: its first message to the last acknowledgement. The sockets are accepted before,
//! and the processes are fresh each time. What B does beside A: it says of each connection what it is and whose, checks
//! that it is a stream socket, and makes a value of it at the other end.

use anyhow::{Context, Result};
use serde::Serialize;

use super::args::DescriptorsArgs;
use super::connections::bare_once;
use super::goals::{Row, Verdict};
use super::stats::{Samples, ratio};
use super::{limits, report};
use crate::soak::align;

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: DescriptorsArgs,
    /// A.
    bare_per_second: Samples,
    /// B.
    channel_per_second: Samples,
    /// The median over the turns of B's rate through A's.
    pub(crate) channel_per_bare: f64,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let (bare, channel) = (&self.bare_per_second, &self.channel_per_second);
        let measured = format!(
            "{:.2} ({:.0} and {:.0})",
            self.channel_per_bare, channel.median, bare.median
        );
        let figure = "descriptors a second, channel / bare loop";
        vec![Row::new(figure, "", measured, Verdict::NoGoal)]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &DescriptorsArgs) -> Result<Results> {
    limits::make_room(args.count)?;
    let out = report::made(args.out.as_deref())?;
    let mut rates = [Vec::new(), Vec::new()];
    for n in 0..args.repetitions {
        // The order changes with each turn: what drifts meets both.
        for by_channel in [n % 2 == 1, n % 2 == 0] {
            let took = bare_once(args.count, args.batch, by_channel).context(if by_channel {
                "B"
            } else {
                "A"
            })?;
            rates[usize::from(by_channel)].push(f64::from(args.count) / took.as_secs_f64());
        }
        let last = |side: &[f64]| side.last().copied().unwrap_or_default();
        eprintln!(
            "{} of {}: A {:.0}, B {:.0} descriptors/s",
            n + 1,
            args.repetitions,
            last(&rates[0]),
            last(&rates[1])
        );
    }
    let results = results(args, rates);
    print!("{}", table(&results));
    report::write_json(&results, &out, "descriptors")?;
    Ok(results)
}

fn results(args: &DescriptorsArgs, [bare, channel]: [Vec<f64>; 2]) -> Results {
    let turns = bare.iter().zip(&channel);
    Results {
        args: args.clone(),
        channel_per_bare: Samples::of(turns.map(|(a, b)| ratio(*a, *b)).collect()).median,
        bare_per_second: Samples::of(bare),
        channel_per_second: Samples::of(channel),
    }
}

fn table(results: &Results) -> String {
    let head = ["descriptors/s", "min", "median", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, of) in [
        ("A: bare loop", &results.bare_per_second),
        ("B: handoff's channel", &results.channel_per_second),
    ] {
        let cells = [of.min, of.median, of.max].map(|rate| format!("{rate:.0}"));
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    format!(
        "{} descriptors, {} turns\n{}B / A: {:.2}\n",
        results.args.count,
        results.args.repetitions,
        align(&rows),
        results.channel_per_bare
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_each_turn() {
        let args = DescriptorsArgs {
            count: 1,
            repetitions: 3,
            batch: 253,
            out: None,
        };
        let results = results(&args, [vec![10.0, 100.0, 1.0], vec![5.0, 80.0, 2.0]]);
        assert_eq!(results.channel_per_bare, 0.8);
        assert_eq!(results.bare_per_second.median, 10.0);
    }
}
