//! What the generations hold, stacked, over time.

use anyhow::Result;
use plotters::prelude::*;

use super::super::canvas::{HEIGHT, Ink, Width, draw};
use super::super::model::{Run, Sample};
use super::super::words;
use super::{Plot, axes, builder, whole};

const ABOUT: &str = "One band for each generation, its colour by its number. Parent and child stand on each other at a reload. Each column \
     is the moment of its time at which all together held most.";

pub(super) const MEMORY: Plot = Plot {
    id: "memory",
    title: "Memory of each generation",
    about: ABOUT,
    lead: |run| lead(run, mib, |mib| words::memory(*mib)),
    legend,
    draw: |run, limits, width| {
        let ends = (limits.seconds, limits.rss_mib);
        picture(run, ends, width, mib, &|mib| format!("{mib} MiB"))
    },
};

pub(super) const DESCRIPTORS: Plot = Plot {
    id: "descriptors",
    title: "Descriptors of each generation",
    about: ABOUT,
    lead: |run| lead(run, fds, whole),
    legend,
    draw: |run, limits, width| {
        let ends = (limits.seconds, limits.fds);
        picture(run, ends, width, fds, &whole)
    },
};

/// Neighbours differ, and so do those two apart.
const INKS: [Ink; 3] = [Ink::One, Ink::Two, Ink::Four];

type Value = fn(&Sample) -> f64;

fn mib(sample: &Sample) -> f64 {
    sample.rss_kib as f64 / 1024.0
}

fn fds(sample: &Sample) -> f64 {
    sample.fds as f64
}

fn moments(run: &Run) -> impl Iterator<Item = &[Sample]> {
    run.samples.chunk_by(|a, b| a.at_s == b.at_s)
}

fn held(moment: &[Sample], value: Value) -> f64 {
    moment.iter().map(value).sum()
}

fn lead(run: &Run, value: Value, shown: fn(&f64) -> String) -> Option<String> {
    let all = moments(run)
        .map(|moment| held(moment, value))
        .fold(0.0, f64::max);
    let one = run.samples.iter().map(value).fold(0.0, f64::max);
    let last = run.samples.last().map(value)?;
    let together = moments(run).map(<[Sample]>::len).max()?;
    Some(format!(
        "At most {} by one generation, {} by all at a time (up to {together}); {} by the last, at the end.",
        shown(&one),
        shown(&all),
        shown(&last)
    ))
}

fn legend(_: &Run) -> Vec<(Ink, &'static str)> {
    let names = ["generations 3, 6, 9 …", "1, 4, 7 …", "2, 5, 8 …"];
    INKS.into_iter().zip(names).collect()
}

fn ink(generation: u64) -> Ink {
    INKS[(generation % INKS.len() as u64) as usize]
}

/// For each column that has one, the moment with the most.
fn columns(run: &Run, seconds: f64, width: Width, value: Value) -> Vec<Option<&[Sample]>> {
    // An early look at few moments would leave gaps between narrow columns.
    let count = width.columns().min(moments(run).count()).max(1);
    let mut columns: Vec<Option<&[Sample]>> = vec![None; count];
    for moment in moments(run) {
        let place = (moment[0].at_s / seconds * count as f64) as usize;
        let column = &mut columns[place.min(count - 1)];
        if column.is_none_or(|most| held(most, value) < held(moment, value)) {
            *column = Some(moment);
        }
    }
    // A column in which nobody looked shows what was seen before.
    let mut before = None;
    let end = run.end_s() / seconds * count as f64;
    for (place, column) in columns.iter_mut().enumerate() {
        if (place as f64) < end {
            *column = column.or(before
                .and_then(|moment: &'_ [Sample]| moment.last())
                .map(std::slice::from_ref));
            before = *column;
        }
    }
    columns
}

fn picture(
    run: &Run,
    (seconds, most): (f64, f64),
    width: Width,
    value: Value,
    shown: &dyn Fn(&f64) -> String,
) -> Result<String> {
    let columns = columns(run, seconds, width, value);
    let described = "Held by each generation, over time.";
    draw(width, HEIGHT, described, |area| {
        let mut chart = builder(area).build_cartesian_2d(0.0..seconds, 0.0..most)?;
        axes(&mut chart, width, &|s| words::clock(*s), shown)?;
        let each = seconds / columns.len() as f64;
        for (place, moment) in (0u32..).zip(&columns) {
            let from = f64::from(place) * each;
            let mut top = 0.0;
            for sample in moment.unwrap_or_default() {
                let end = top + value(sample);
                let corners = [(from, top), (from + each, end)];
                let ink = ink(sample.generation).color();
                chart.draw_series([Rectangle::new(corners, ink.filled())])?;
                // What stands on another is told apart from it without colour, too.
                if top > 0.0 {
                    let edge = [(from, top), (from + each, top)];
                    chart.draw_series([PathElement::new(edge, Ink::Paper.color())])?;
                }
                top = end;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::model::tests::{GOOD, run};
    use super::*;

    #[test]
    fn the_moment_at_which_both_are_there_is_the_one_that_shows() {
        let mut run = run(GOOD);
        let sample = |at_s, generation| Sample {
            at_s,
            generation,
            rss_kib: 10,
            fds: 5,
        };
        run.samples = (0..1000)
            .map(|n| sample(f64::from(n) / 100.0, 1))
            .chain([sample(10.0, 1), sample(10.0, 2), sample(10.001, 2)])
            .collect();
        let columns = columns(&run, 10.5, Width::Narrow, fds);
        assert!(columns.iter().flatten().any(|moment| moment.len() == 2));
        let lead = (DESCRIPTORS.lead)(&run).unwrap();
        assert!(
            lead.starts_with("At most 5 by one generation, 10 by all"),
            "{lead}"
        );
    }
}
