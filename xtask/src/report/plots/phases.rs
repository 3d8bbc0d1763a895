//! What the time of a reload was spent on: the slowest reloads, and the median.

use anyhow::Result;
use plotters::element::Text;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::axes::Axes;
use super::super::canvas::{Ink, Width, draw, text};
use super::super::model::{Reload, Run};
use super::super::words;
use super::{BOTTOM, Plot, builder, time_axis};

pub(super) const PLOT: Plot = Plot {
    id: "phases",
    title: "Where a reload's time goes",
    about: "By the server's own clock, from the request: the median of each phase, then the slowest reloads. Clients are served in \
            all of them; the new process accepts from the end of “committing” on.",
    lead,
    legend,
    draw: picture,
};

/// In their order, as the server names them.
pub(in super::super) const PHASES: [&str; 6] = [
    "starting",
    "joining",
    "booting",
    "restoring",
    "committing",
    "draining",
];
/// Reloads that are shown one by one.
const SLOWEST: usize = 20;
/// Height of a row, in pixels.
const ROW: u32 = 17;
/// Above and below the rows.
const MARGIN: u32 = 10;

/// How long each phase took; one that the server did not enter, or whose end is unknown, is left out.
pub(in super::super) fn durations(reload: &Reload) -> impl Iterator<Item = (usize, f64)> {
    reload.phases.windows(2).filter_map(|pair| {
        let place = PHASES.iter().position(|name| *name == pair[0].name)?;
        Some((place, (pair[1].at_ms - pair[0].at_ms).max(0.0)))
    })
}

/// Of those reloads that have the phase, sorted.
pub(in super::super) fn sorted(run: &Run, phase: usize) -> Vec<f64> {
    let all = run.reloads.iter().flat_map(durations);
    let mut times: Vec<f64> = all
        .filter(|(place, _)| *place == phase)
        .map(|(_, ms)| ms)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The value below which this share lies; the values are sorted.
pub(in super::super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or(0.0)
}

/// A row of the picture: what it is called, and how long each phase took.
struct Row {
    name: String,
    times: [f64; PHASES.len()],
}

impl Row {
    fn of(reload: &Reload) -> Self {
        let mut times = [0.0; PHASES.len()];
        for (phase, ms) in durations(reload) {
            times[phase] += ms;
        }
        Self {
            name: format!("reload {}", reload.number),
            times,
        }
    }

    fn total(&self) -> f64 {
        self.times.iter().sum()
    }
}

fn slowest(run: &Run) -> Vec<Row> {
    let mut rows: Vec<Row> = run
        .reloads
        .iter()
        .filter(|reload| reload.phases.len() > 1)
        .map(Row::of)
        .collect();
    rows.sort_by(|a, b| b.total().total_cmp(&a.total()));
    rows.truncate(SLOWEST);
    rows
}

fn median(run: &Run) -> Row {
    Row {
        name: "median".into(),
        times: std::array::from_fn(|phase| quantile(&sorted(run, phase), 0.5)),
    }
}

fn lead(run: &Run) -> Option<String> {
    let rows = slowest(run);
    let slowest = rows.first()?;
    let (phase, longest) = slowest
        .times
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))?;
    let mut serving: Vec<f64> = run
        .reloads
        .iter()
        .filter_map(|reload| Some(reload.phases.iter().find(|p| p.name == "draining")?.at_ms))
        .collect();
    serving.sort_by(f64::total_cmp);
    Some(format!(
        "Half of the new processes served within {}. The slowest reload, number {}, took {}, of which {} {}.",
        words::time(quantile(&serving, 0.5)),
        slowest.name.trim_start_matches("reload "),
        words::time(slowest.total()),
        words::time(*longest),
        PHASES[phase]
    ))
}

fn legend(_: &Run) -> Vec<(Ink, &'static str)> {
    Ink::SERIES.into_iter().zip(PHASES).collect()
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let rows: Vec<Row> = [median(run)].into_iter().chain(slowest(run)).collect();
    let count = rows.len() as u32;
    let height = count * ROW + BOTTOM + MARGIN;
    let described = format!("Phases of reloads. {}", lead(run).unwrap_or_default());
    draw(width, height, &described, |area| {
        let end = f64::from(count);
        // From the top down.
        let mut chart = builder(area).build_cartesian_2d(0.0..limits.reload_ms, end..0.0)?;
        time_axis(&mut chart, width)?;
        // The median is no reload.
        let below = [(0.0, 1.0), (limits.reload_ms, 1.0)];
        chart.draw_series([PathElement::new(below, Ink::Faint.color())])?;
        let anchor = Pos::new(HPos::Right, VPos::Center);
        let style = text(Ink::Faint).pos(anchor);
        for (place, row) in (0u32..).zip(&rows) {
            let y = f64::from(place);
            let mut from = 0.0;
            for (time, ink) in row.times.into_iter().zip(Ink::SERIES) {
                let corners = [(from, y + 0.12), (from + time, y + 0.88)];
                if time > 0.0 {
                    chart.draw_series([Rectangle::new(corners, ink.color().filled())])?;
                }
                from += time;
            }
            let (left, middle) = chart.backend_coord(&(0.0, y + 0.5));
            area.draw(&Text::new(
                row.name.as_str(),
                (left - 6, middle),
                style.clone(),
            ))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::model::Phase;
    use super::super::super::model::tests::{GOOD, run};
    use super::*;

    #[test]
    fn phases_end_where_the_next_begins() {
        let mut reload = run(GOOD).reloads[0].clone();
        let phase = |(name, at_ms): (&str, f64)| Phase {
            name: name.into(),
            at_ms,
        };
        let phases = [
            ("starting", 0.0),
            ("joining", 0.5),
            ("later", 3.0),
            ("draining", 4.0),
        ];
        reload.phases = phases.map(phase).to_vec();
        let times: Vec<_> = durations(&reload).collect();
        assert_eq!(times, [(0, 0.5), (1, 2.5)], "unknown, and without an end");
    }

    #[test]
    fn the_slowest_come_first_and_are_few() {
        let mut run = run(GOOD);
        let reload = run.reloads[0].clone();
        run.reloads = (0..100)
            .map(|number| {
                let mut reload = reload.clone();
                reload.number = number;
                reload.phases.last_mut().unwrap().at_ms += f64::from(number as u32 % 50);
                reload
            })
            .collect();
        let rows = slowest(&run);
        assert_eq!(rows.len(), SLOWEST);
        assert!(["reload 49", "reload 99"].contains(&rows[0].name.as_str()));
        assert_eq!(quantile(&[1.0, 2.0, 9.0], 0.5), 2.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
