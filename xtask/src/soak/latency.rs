//! Distributions of times.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::request::Kind;

/// Times are recorded in microseconds, up to two minutes, to three digits.
const MAX_LATENCY_US: u64 = 120_000_000;

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// How many times it is made of.
    pub(crate) count: u64,
    pub(crate) min_ms: f64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latency {
    /// An empty one for what is to be a latency.
    pub(crate) fn histogram() -> Result<Histogram<u64>> {
        Ok(Histogram::new_with_bounds(1, MAX_LATENCY_US, 3)?)
    }

    /// Of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let quantile = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        Self {
            count: histogram.len(),
            min_ms: histogram.min() as f64 / 1e3,
            mean_ms: histogram.mean() / 1e3,
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            p999_ms: quantile(0.999),
            max_ms: histogram.max() as f64 / 1e3,
        }
    }

    /// Of single measurements.
    pub(crate) fn of_each(each: impl IntoIterator<Item = f64>) -> Self {
        let Ok(mut histogram) = Self::histogram() else {
            return Self::default();
        };
        for ms in each {
            histogram.saturating_record((ms * 1e3) as u64);
        }
        Self::of(&histogram)
    }
}

/// A distribution in full: pairs of a share of the requests, from 0 to 1, and the milliseconds
/// that they took at most.
pub(crate) type Distribution = Vec<(f64, f64)>;

/// Steps for each halving of what is left above a percentile (HdrHistogram's usual table).
const STEPS_PER_HALF: u32 = 5;
/// What lies beyond says where the one worst request was, and nothing of the distribution.
const LAST_QUANTILE: f64 = 0.99999;

fn distribution(histogram: &Histogram<u64>) -> Distribution {
    histogram
        .iter_quantiles(STEPS_PER_HALF)
        .map(|step| (step.quantile_iterated_to(), step.value_iterated_to()))
        .filter(|(quantile, _)| *quantile <= LAST_QUANTILE)
        .map(|(quantile, us)| (quantile, us as f64 / 1e3))
        .collect()
}

/// For the JSON: milliseconds, as everywhere.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The latencies of the schedule's requests, sorted in several ways.
#[derive(Debug)]
pub(crate) struct Histograms {
    by_kind: [Histogram<u64>; Kind::ALL.len()],
    all: Histogram<u64>,
    met_reload: Histogram<u64>,
    met_none: Histogram<u64>,
    second: Histogram<u64>,
}

impl Histograms {
    /// Empty ones.
    pub(crate) fn new() -> Result<Self> {
        let empty = Latency::histogram()?;
        Ok(Self {
            by_kind: std::array::from_fn(|_| empty.clone()),
            all: empty.clone(),
            met_reload: empty.clone(),
            met_none: empty.clone(),
            second: empty,
        })
    }

    /// One answer. `met_reload`: while it was waited for, a reload was under way.
    pub(crate) fn record(&mut self, kind: Kind, latency: Duration, met_reload: bool) {
        let us = latency.as_micros() as u64;
        let met = if met_reload {
            &mut self.met_reload
        } else {
            &mut self.met_none
        };
        for histogram in [&mut self.by_kind[kind as usize], &mut self.all] {
            histogram.saturating_record(us);
        }
        if kind.is_prompt() {
            for histogram in [met, &mut self.second] {
                histogram.saturating_record(us);
            }
        }
    }

    /// Of all.
    pub(crate) fn all(&self) -> &Histogram<u64> {
        &self.all
    }

    /// Of the prompt requests since the last call.
    pub(crate) fn turn(&mut self) -> Latency {
        let latency = Latency::of(&self.second);
        self.second.reset();
        latency
    }

    /// In full, of the prompt requests: `met-reload`, `met-none`.
    pub(crate) fn distributions(&self) -> BTreeMap<&'static str, Distribution> {
        BTreeMap::from([
            ("met-reload", distribution(&self.met_reload)),
            ("met-none", distribution(&self.met_none)),
        ])
    }

    /// By kind; `all`; and of the prompt ones `met-reload`, `met-none`.
    pub(crate) fn summary(&self) -> BTreeMap<&'static str, Latency> {
        let mut summary: BTreeMap<_, _> = Kind::ALL
            .into_iter()
            .filter(|kind| kind.is_scheduled())
            .map(|kind| (kind.name(), Latency::of(&self.by_kind[kind as usize])))
            .collect();
        summary.insert("all", Latency::of(&self.all));
        summary.insert("met-reload", Latency::of(&self.met_reload));
        summary.insert("met-none", Latency::of(&self.met_none));
        summary
    }
}
