//! How many requests took how long, with a reload and without.

use anyhow::Result;
use plotters::prelude::*;

use super::super::axes::Axes;
use super::super::canvas::{HEIGHT, Ink, Width, draw};
use super::super::model::Run;
use super::super::words;
use super::{Plot, axes, builder};

pub(super) const PLOT: Plot = Plot {
    id: "distribution",
    title: "Latency, with and without a reload",
    about: "A line that goes through (99 %, 2 ms) says: 99 of 100 requests took 2 ms or less. The two lines lie on each \
            other where a reload costs nothing. From the intended time: free of coordinated omission.",
    lead,
    legend,
    draw: picture,
};

/// Name in the file, colour, width of the line.
const LINES: [(&str, Ink, u32); 2] = [("met-none", Ink::Two, 4), ("met-reload", Ink::One, 2)];

fn lead(run: &Run) -> Option<String> {
    let latency = |name: &str| {
        let latency = run.load.latencies.get(name)?;
        (latency.count > 0).then_some(latency)
    };
    let (with, without) = (latency("met-reload"), latency("met-none"));
    let p99 = |latency: &super::super::model::Latency| words::time(latency.p99_ms);
    match (with, without) {
        (Some(with), Some(without)) => Some(format!(
            "99 % within {} while a reload was under way, within {} otherwise.",
            p99(with),
            p99(without)
        )),
        (Some(one), None) | (None, Some(one)) => Some(format!("99 % within {}.", p99(one))),
        (None, None) => None,
    }
}

fn legend(_: &Run) -> Vec<(Ink, &'static str)> {
    vec![
        (Ink::One, "a reload was under way"),
        (Ink::Two, "no reload"),
    ]
}

/// A share as one reads it: `99.9 %`.
fn share(beyond: f64) -> String {
    let percent = 100.0 - 100.0 / beyond;
    format!("{} %", (percent * 1000.0).round() / 1000.0)
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let (low, high) = (limits.latency_ms.start, limits.latency_ms.end);
    let described = format!("Latency by percentile. {}", lead(run).unwrap_or_default());
    draw(width, HEIGHT, &described, |area| {
        let mut chart = builder(area).build_cartesian_2d(
            (1.0..limits.beyond).log_scale(),
            limits.latency_ms.clone().log_scale(),
        )?;
        axes(&mut chart, width, &|beyond| share(*beyond), &|ms| {
            words::tick(*ms)
        })?;
        for (name, ink, stroke) in LINES {
            let Some(steps) = run.load.distributions.get(name) else {
                continue;
            };
            let points = steps.iter().map(|(share, ms)| {
                let beyond = 1.0 / (1.0 - share).max(1.0 / limits.beyond);
                (beyond, ms.clamp(low, high))
            });
            chart.draw_series(LineSeries::new(points, ink.color().stroke_width(stroke)))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_named_as_people_do() {
        let named = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5].map(share);
        let expected = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
        assert_eq!(named, expected);
    }
}
