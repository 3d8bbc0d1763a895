//! Latency over time, each reload marked.

use anyhow::Result;
use plotters::prelude::*;

use super::super::axes::Axes;
use super::super::canvas::{HEIGHT, Ink, Width, draw};
use super::super::model::{Run, Slice};
use super::super::words;
use super::{Plot, axes, builder, per_column};

/// More lines than this would be a grey wall: they become ticks at the foot.
const MAX_LINES: usize = 60;

pub(super) const PLOT: Plot = Plot {
    id: "latency",
    title: "Latency over time",
    about: "From the time at which a request was to leave, so a server that stalls cannot hide it. Requests that \
            are answered at once only: those with a pause of their own would hide a reload's.",
    lead,
    legend,
    draw: picture,
};

fn lead(run: &Run) -> Option<String> {
    let worst = run
        .series
        .iter()
        .filter(|slice| slice.max_ms > 0.0)
        .max_by(|a, b| a.max_ms.total_cmp(&b.max_ms))?;
    Some(format!(
        "The worst answer took {}, {} after the start.",
        words::time(worst.max_ms),
        words::clock(worst.at_s.round())
    ))
}

fn legend(run: &Run) -> Vec<(Ink, &'static str)> {
    let mut entries = vec![
        (Ink::Four, "worst"),
        (Ink::One, "99 % within"),
        (Ink::Two, "90 %"),
        (Ink::Three, "half"),
        (Ink::Faint, "a reload"),
    ];
    if !run.losses.is_empty() || run.reloads.iter().any(|reload| reload.failure.is_some()) {
        entries.push((Ink::Loss, "a loss, or a reload that failed"));
    }
    entries
}

/// One column: the worst of its slices, the median of their medians.
fn columns(run: &Run, width: Width) -> Vec<Slice> {
    let slices: Vec<Slice> = run
        .series
        .iter()
        .filter(|slice| slice.max_ms > 0.0)
        .copied()
        .collect();
    slices
        .chunks(per_column(slices.len(), width))
        .map(|chunk| {
            let most = |value: fn(&Slice) -> f64| chunk.iter().map(value).fold(0.0, f64::max);
            let mut medians: Vec<f64> = chunk.iter().map(|slice| slice.p50_ms).collect();
            medians.sort_by(f64::total_cmp);
            Slice {
                at_s: most(|slice| slice.at_s),
                ended: chunk.iter().map(|slice| slice.ended).sum(),
                p50_ms: medians[medians.len() / 2],
                p90_ms: most(|slice| slice.p90_ms),
                p99_ms: most(|slice| slice.p99_ms),
                max_ms: most(|slice| slice.max_ms),
            }
        })
        .collect()
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let columns = columns(run, width);
    let (low, high) = (limits.latency_ms.start, limits.latency_ms.end);
    let described = format!("Latency over time. {}", lead(run).unwrap_or_default());
    draw(width, HEIGHT, &described, |area| {
        let mut chart = builder(area)
            .build_cartesian_2d(0.0..limits.seconds, limits.latency_ms.clone().log_scale())?;
        let place = |ms: f64| ms.clamp(low, high);
        let foot = (low * (high / low).powf(0.05)).min(high);
        let few = run.reloads.len() <= MAX_LINES;
        for reload in &run.reloads {
            let (ink, top) = match &reload.failure {
                Some(_) => (Ink::Loss.color().mix(1.0), high),
                None if few => (Ink::Faint.color().mix(0.3), high),
                None => (Ink::Faint.color().mix(0.5), foot),
            };
            let at = reload.at_s;
            chart.draw_series([PathElement::new([(at, low), (at, top)], ink)])?;
        }
        axes(&mut chart, width, &|s| words::clock(*s), &|ms| {
            words::tick(*ms)
        })?;
        let mut line = |ink: Ink, stroke: u32, value: fn(&Slice) -> f64| {
            let points = columns
                .iter()
                .map(|slice| (slice.at_s, place(value(slice))));
            chart
                .draw_series(LineSeries::new(points, ink.color().stroke_width(stroke)))
                .map(|_| ())
        };
        line(Ink::Three, 2, |slice| slice.p50_ms)?;
        line(Ink::Two, 2, |slice| slice.p90_ms)?;
        line(Ink::One, 2, |slice| slice.p99_ms)?;
        line(Ink::Four, 1, |slice| slice.max_ms)?;
        let dots = columns.iter().map(|slice| {
            let at = (slice.at_s, place(slice.max_ms));
            Circle::new(at, 2, Ink::Four.color().filled())
        });
        chart.draw_series(dots)?;
        let mut seen = None;
        for loss in &run.losses {
            // One mark for each column.
            let column = (loss.at_s / limits.seconds * width.columns() as f64) as u64;
            if seen.replace(column) != Some(column) {
                let mark = TriangleMarker::new((loss.at_s, high), -6, Ink::Loss.color().filled());
                chart.draw_series([mark])?;
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
    fn an_hour_fits_and_its_worst_shows() {
        let mut run = run(GOOD);
        let second = run.series[0];
        run.series = (1..=3600)
            .map(|at| Slice {
                at_s: f64::from(at),
                max_ms: if at == 1234 { 900.0 } else { 3.0 },
                ..second
            })
            .collect();
        for width in Width::BOTH {
            let columns = columns(&run, width);
            assert!(columns.len() <= width.columns());
            let worst = columns.iter().map(|slice| slice.max_ms).fold(0.0, f64::max);
            assert_eq!(worst, 900.0);
        }
    }
}
