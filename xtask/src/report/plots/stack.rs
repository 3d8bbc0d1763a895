//! Stacked columns, one for each reload or a few of them, with what went wrong on top.

use anyhow::Result;
use plotters::prelude::*;

use super::super::canvas::{HEIGHT, Ink, Width, draw};
use super::{axes, builder, per_column, whole};

/// A loss among thousands has this part of the height at least: it must be seen.
const LEAST_LOSS: f64 = 0.02;

/// What one column stands on: its reload, the parts from the bottom up, and what was lost.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bar {
    pub(super) reload: u64,
    pub(super) parts: [u64; Ink::SERIES.len()],
    pub(super) lost: u64,
}

/// Several bars as one: the mean of the parts, so that the axis stays what it is; all of the losses.
#[derive(Clone, Debug, PartialEq)]
struct Column {
    from: f64,
    to: f64,
    parts: [f64; Ink::SERIES.len()],
    lost: u64,
}

fn columns(bars: &[Bar], width: Width) -> Vec<Column> {
    bars.chunks(per_column(bars.len(), width))
        .map(|chunk| {
            let mean = |part: usize| {
                let sum: u64 = chunk.iter().map(|bar| bar.parts[part]).sum();
                sum as f64 / chunk.len() as f64
            };
            Column {
                from: chunk[0].reload as f64 - 0.5,
                to: chunk[chunk.len() - 1].reload as f64 + 0.5,
                parts: std::array::from_fn(mean),
                lost: chunk.iter().map(|bar| bar.lost).sum(),
            }
        })
        .collect()
}

/// Draws them. `reloads` and `most` are the ends of the axes.
pub(super) fn picture(
    bars: &[Bar],
    (reloads, most): (f64, f64),
    width: Width,
    described: &str,
) -> Result<String> {
    draw(width, HEIGHT, described, |area| {
        let first = bars.first().map_or(0.0, |bar| bar.reload as f64) - 0.5;
        let mut chart = builder(area).build_cartesian_2d(first..reloads, 0.0..most)?;
        let number = |reload: &f64| match whole(reload) {
            number if number.is_empty() => number,
            number => format!("#{number}"),
        };
        axes(&mut chart, width, &number, &whole)?;
        for column in columns(bars, width) {
            let gap = (column.to - column.from) * 0.08;
            let rectangle = |from: f64, to: f64, ink: Ink| {
                let corners = [(column.from + gap, from), (column.to - gap, to)];
                Rectangle::new(corners, ink.color().filled())
            };
            let mut top = 0.0;
            for (part, ink) in column.parts.into_iter().zip(Ink::SERIES) {
                if part > 0.0 {
                    chart.draw_series([rectangle(top, top + part, ink)])?;
                    top += part;
                }
            }
            if column.lost > 0 {
                let height = (column.lost as f64).max(most * LEAST_LOSS);
                let end = (top + height).min(most);
                let middle = f64::midpoint(column.from, column.to);
                let mark = TriangleMarker::new((middle, most), -6, Ink::Loss.color().filled());
                chart.draw_series([rectangle(top.min(end), end, Ink::Loss)])?;
                chart.draw_series([mark])?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loss_of_a_thousand_reloads_is_in_a_column() {
        let bars: Vec<Bar> = (1..=1000)
            .map(|reload| Bar {
                reload,
                parts: [100, 0, 0, 0, 0, 0],
                lost: u64::from(reload == 777),
            })
            .collect();
        for width in Width::BOTH {
            let columns = columns(&bars, width);
            assert!(columns.len() <= width.columns());
            assert!(columns.iter().all(|column| column.parts[0] == 100.0));
            assert_eq!(columns.iter().map(|column| column.lost).sum::<u64>(), 1);
        }
        let svg = picture(&bars, (1000.5, 120.0), Width::Wide, "").unwrap();
        assert!(svg.contains("var(--loss)"));
    }
}
