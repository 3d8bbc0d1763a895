//! The pictures. Each is a sentence, a legend and a drawing, from one run and the axes of all.
//!
//! A drawing has no more marks than a reader can tell apart, however long the run: neighbours are put
//! together so that the worst of them shows, and a loss always does.

use anyhow::Result;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use super::axes::Axes;
use super::canvas::{Area, Ink, Width, text};
use super::model::Run;

mod bands;
mod connections;
mod distribution;
mod latency;
mod outcomes;
pub(super) mod phases;
mod spread;
mod stack;

/// A picture.
pub(super) struct Plot {
    /// In the page's address, and for tests.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) about: &'static str,
    /// What it shows of this run; `None` if the run has nothing of it.
    pub(super) lead: fn(&Run) -> Option<String>,
    /// Its colours, from the bottom up.
    pub(super) legend: fn(&Run) -> Vec<(Ink, &'static str)>,
    /// The SVG.
    pub(super) draw: fn(&Run, &Axes, Width) -> Result<String>,
}

/// In the order in which one asks: was anything lost, when, and why.
pub(super) const ALL: [Plot; 8] = [
    outcomes::PLOT,
    latency::PLOT,
    distribution::PLOT,
    connections::PLOT,
    phases::PLOT,
    spread::PLOT,
    bands::MEMORY,
    bands::DESCRIPTORS,
];

/// Room for the labels of the axes, in pixels.
const LEFT: u32 = 62;
const BOTTOM: u32 = 22;

/// A chart with the page's margins.
fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .margin_top(10)
        .margin_right(24)
        .set_label_area_size(LabelAreaPosition::Left, LEFT)
        .set_label_area_size(LabelAreaPosition::Bottom, BOTTOM);
    builder
}

/// Draws the axes: faint lines at the ticks, and what the ticks mean.
fn axes<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    width: Width,
    x: &dyn Fn(&f64) -> String,
    y: &dyn Fn(&f64) -> String,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(Ink::Grid.color())
        .axis_style(Ink::Faint.color())
        .label_style(text(Ink::Faint))
        .x_labels(width.labels())
        .y_labels(6)
        .x_label_formatter(x)
        .y_label_formatter(y)
        .draw()?;
    Ok(())
}

/// The axes of rows, which name themselves: only the one of time.
fn time_axis<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    width: Width,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(Ink::Grid.color())
        .axis_style(Ink::Faint.color())
        .label_style(text(Ink::Faint))
        .x_labels(width.labels())
        .y_labels(0)
        .x_label_formatter(&|ms| super::words::tick(*ms))
        .draw()?;
    Ok(())
}

/// How many neighbours share a column, so that all fit.
fn per_column(count: usize, width: Width) -> usize {
    count.div_ceil(width.columns()).max(1)
}

/// A count on an axis: plotters puts ticks at fractions, too.
fn whole(number: &f64) -> String {
    if number.fract().abs() < 1e-9 && *number >= 0.0 {
        super::words::count(*number as u64)
    } else {
        String::new()
    }
}
