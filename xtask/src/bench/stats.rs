//! Samples, their median, and how two of them compare.

use serde::Serialize;

/// What one side of a comparison measured, in one unit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Samples {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    /// In the order in which they were taken.
    pub(crate) each: Vec<f64>,
}

impl Samples {
    /// All zero without samples.
    pub(crate) fn of(each: Vec<f64>) -> Self {
        let mut sorted = each.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.as_slice() {
            [] => 0.0,
            odd if odd.len() % 2 == 1 => odd[middle],
            even => f64::midpoint(even[middle - 1], even[middle]),
        };
        Self {
            min: sorted.first().copied().unwrap_or(0.0),
            median,
            max: sorted.last().copied().unwrap_or(0.0),
            each,
        }
    }

    /// For a table: min, median, max.
    pub(crate) fn cells(&self) -> [String; 3] {
        [self.min, self.median, self.max].map(|value| format!("{value:.2}"))
    }
}

/// `b / a`; 0 if there is no `a`.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if a > 0.0 { b / a } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(Samples::of(vec![3.0, 1.0, 9.0]).median, 3.0);
        assert_eq!(Samples::of(vec![4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(Samples::of(vec![]), Samples::default());
    }

    #[test]
    fn ratios() {
        assert_eq!(ratio(2.0, 5.0), 2.5);
        assert_eq!(ratio(0.0, 5.0), 0.0);
    }
}
