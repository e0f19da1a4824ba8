//! Medians and spreads of a few measurements.

use serde::Serialize;

/// Measurements of one quantity.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// In the order in which they were taken.
    pub values: Vec<f64>,
}

impl Series {
    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The median; NaN when nothing was measured.
    pub fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    /// Least and greatest.
    pub fn spread(&self) -> (f64, f64) {
        (quantile(&self.values, 0.0), quantile(&self.values, 1.0))
    }

    /// The ratios of paired measurements, ours to theirs.
    pub fn ratio(&self, other: &Self) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Self {
            values: pairs.map(|(own, other)| own / other).collect(),
        }
    }
}

/// The value below which a share `q` of `values` lies, by nearest rank.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let rank = (q * last as f64).round() as usize;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_spreads_and_ratios_of_pairs() {
        let ours = Series {
            values: vec![3.0, 1.0, 2.0],
        };
        let theirs = Series {
            values: vec![1.0, 2.0, 2.0],
        };
        assert_eq!(ours.median(), 2.0);
        assert_eq!(ours.spread(), (1.0, 3.0));
        assert_eq!(ours.ratio(&theirs).values, [3.0, 0.5, 1.0]);
        assert!(Series::default().median().is_nan());
    }
}
