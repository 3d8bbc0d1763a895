//! How much the time of each phase varies over the reloads.

use anyhow::Result;
use plotters::element::Text;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::axes::Axes;
use super::super::canvas::{Ink, Width, draw, text};
use super::super::model::Run;
use super::phases::{PHASES, quantile, sorted};
use super::{BOTTOM, Plot, builder, time_axis};

pub(super) const PLOT: Plot = Plot {
    id: "spread",
    title: "How much each phase varies",
    about: "The thin line goes from the shortest to the longest, the bar holds eight of ten reloads, the stroke in it is the median.",
    lead,
    legend: |_| Vec::new(),
    draw: picture,
};

/// Height of a row, in pixels.
const ROW: u32 = 30;

fn lead(run: &Run) -> Option<String> {
    let ratio = |phase: usize| {
        let times = sorted(run, phase);
        let median = quantile(&times, 0.5).max(0.01);
        (phase, times.len(), quantile(&times, 1.0) / median)
    };
    let (phase, count, ratio) = (0..PHASES.len())
        .map(ratio)
        .max_by(|a, b| a.2.total_cmp(&b.2))?;
    (count > 0).then(|| {
        format!(
            "“{}” varies most: its longest is {ratio:.1} times its median.",
            PHASES[phase]
        )
    })
}

fn picture(run: &Run, limits: &Axes, width: Width) -> Result<String> {
    let height = PHASES.len() as u32 * ROW + BOTTOM + 10;
    let range = limits.phase_ms.clone();
    let described = format!("Spread of the phases. {}", lead(run).unwrap_or_default());
    draw(width, height, &described, |area| {
        let rows = PHASES.len() as f64;
        let mut chart = builder(area)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .build_cartesian_2d(range.clone().log_scale(), rows..0.0)?;
        time_axis(&mut chart, width)?;
        let style = text(Ink::Faint).pos(Pos::new(HPos::Right, VPos::Center));
        for ((place, name), ink) in (0u32..).zip(PHASES).zip(Ink::SERIES) {
            let times = sorted(run, place as usize);
            let middle = f64::from(place) + 0.5;
            let (left, y) = chart.backend_coord(&(range.start, middle));
            area.draw(&Text::new(name, (left - 6, y), style.clone()))?;
            if times.is_empty() {
                continue;
            }
            let at = |share| quantile(&times, share).clamp(range.start, range.end);
            let whole = [(at(0.0), middle), (at(1.0), middle)];
            let most = [(at(0.1), middle - 0.25), (at(0.9), middle + 0.25)];
            let median = [(at(0.5), middle - 0.35), (at(0.5), middle + 0.35)];
            chart.draw_series([PathElement::new(whole, ink.color().stroke_width(2))])?;
            chart.draw_series([Rectangle::new(most, ink.color().filled())])?;
            chart.draw_series([PathElement::new(median, Ink::Text.color().stroke_width(2))])?;
        }
        Ok(())
    })
}
