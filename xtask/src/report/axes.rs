//! What the axes reach to: the same for all runs of a page, so that their pictures can be compared.

use std::ops::Range;

use super::model::Run;

/// Latencies below this are not told apart.
const LEAST_MS: f64 = 0.01;

/// The ends of the axes, over all runs.
#[derive(Clone, Debug)]
pub(super) struct Axes {
    /// Time of the run.
    pub(super) seconds: f64,
    /// Latencies, in whole decades.
    pub(super) latency_ms: Range<f64>,
    /// One over the share of requests that took longer.
    pub(super) beyond: f64,
    /// Reloads.
    pub(super) reloads: f64,
    /// Requests from one reload to the next.
    pub(super) requests: f64,
    /// Connections that one reload found.
    pub(super) connections: f64,
    /// Memory of all generations at a moment.
    pub(super) rss_mib: f64,
    /// Their descriptors.
    pub(super) fds: f64,
    /// A reload, from the request to the end of the drain.
    pub(super) reload_ms: f64,
    /// A phase, in whole decades.
    pub(super) phase_ms: Range<f64>,
}

impl Axes {
    /// Of runs that have something to show; an empty one changes nothing.
    pub(super) fn of(runs: &[Run]) -> Self {
        Self {
            seconds: most(runs.iter().map(Run::end_s)),
            latency_ms: decades(runs.iter().flat_map(latencies)),
            beyond: most(runs.iter().flat_map(beyond)).max(1000.0),
            reloads: most(runs.iter().map(|run| run.reloads.len() as f64)) + 0.5,
            requests: room(runs.iter().flat_map(requests)),
            connections: room(runs.iter().flat_map(connections)),
            rss_mib: room(
                runs.iter()
                    .flat_map(|run| totals(run, |s| s.rss_kib as f64 / 1024.0)),
            ),
            fds: room(runs.iter().flat_map(|run| totals(run, |s| s.fds as f64))),
            reload_ms: room(runs.iter().flat_map(whole_reloads)),
            phase_ms: decades(runs.iter().flat_map(phases)),
        }
    }
}

fn latencies(run: &Run) -> impl Iterator<Item = f64> {
    // A slice without an answer has no latency.
    let slices = run.series.iter().filter(|slice| slice.max_ms > 0.0);
    let distributions = run.load.distributions.values().flatten();
    slices
        .flat_map(|slice| [slice.p50_ms, slice.max_ms])
        .chain(distributions.map(|(_, ms)| *ms))
}

fn beyond(run: &Run) -> impl Iterator<Item = f64> {
    let distributions = run.load.distributions.values().flatten();
    distributions.map(|(share, _)| 1.0 / (1.0 - share).max(1e-5))
}

fn requests(run: &Run) -> impl Iterator<Item = f64> {
    run.by_reload.iter().map(|between| {
        let all = between.ok.values().chain(between.lost.values());
        all.sum::<u64>() as f64
    })
}

fn connections(run: &Run) -> impl Iterator<Item = f64> {
    let reloads = run.reloads.iter();
    reloads.map(|reload| (reload.moved + reload.drained + reload.cut) as f64)
}

/// At each moment, of all generations.
fn totals(run: &Run, value: fn(&super::model::Sample) -> f64) -> Vec<f64> {
    let moments = run.samples.chunk_by(|a, b| a.at_s == b.at_s);
    moments
        .map(|moment| moment.iter().map(value).sum())
        .collect()
}

fn whole_reloads(run: &Run) -> impl Iterator<Item = f64> {
    let reloads = run.reloads.iter();
    reloads.filter_map(|reload| Some(reload.phases.last()?.at_ms))
}

fn phases(run: &Run) -> impl Iterator<Item = f64> {
    run.reloads
        .iter()
        .flat_map(super::plots::phases::durations)
        .map(|(_, ms)| ms)
}

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// From zero to a little above the highest: what is drawn there has to fit, and an axis has a length.
fn room(values: impl Iterator<Item = f64>) -> f64 {
    most(values).max(1.0) * 1.12
}

/// The whole decades that hold all values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let ends = |(least, most): (f64, f64), ms: f64| (least.min(ms), most.max(ms));
    let (least, most) = values.fold((f64::INFINITY, 0.0), ends);
    let least = least.clamp(LEAST_MS, 1.0);
    let most = most.max(least * 10.0);
    // A value on the last line would be half outside.
    let (low, high) = (least.log10().floor(), (most * 1.01).log10().ceil());
    // So that rounding leaves the ticks of both ends within.
    10f64.powf(low) * (1.0 - 1e-6)..10f64.powf(high) * (1.0 + 1e-6)
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{GOOD, LOST, run};
    use super::*;

    #[test]
    fn decades_hold_their_values() {
        let found = |values: &[f64]| {
            let range = decades(values.iter().copied());
            [range.start, range.end].map(|end| (end * 1e4).round() / 1e4)
        };
        assert_eq!(found(&[0.3, 42.0]), [0.1, 100.0001]);
        assert_eq!(found(&[0.0, 100.0]), [0.01, 1000.001]);
        assert_eq!(found(&[]), [1.0, 100.0001]);
    }

    #[test]
    fn two_runs_share_the_wider_axis() {
        let (a, b) = (run(GOOD), run(LOST));
        let both = Axes::of(&[a.clone(), b.clone()]);
        for one in [Axes::of(&[a]), Axes::of(&[b])] {
            assert!(both.seconds >= one.seconds && both.requests >= one.requests);
            assert!(both.latency_ms.end >= one.latency_ms.end);
        }
    }
}
