//! Medians, bootstrap intervals and the finding that follows from them.
//!
//! # Why the bootstrap
//! Figures of a shared machine are skewed and have outliers, so neither their mean nor a normal
//! interval says much. The median withstands outliers, and the percentile bootstrap (Efron and
//! Tibshirani, *An Introduction to the Bootstrap*, chapter 13) gives it an interval without a word
//! about the distribution. With five values it is about the range of them, which holds the true
//! median in 94 of 100 cases; more repeats make it narrower.
//!
//! # Why a noise floor
//! The interval of a ratio knows the spread *within* a run only. That one instance of the same
//! system differs from another, that whoever goes last meets a warmer cache: this is measured by
//! letting the baseline take part twice. A difference must be larger than the one that the
//! baseline shows to itself.
//!
//! Everything here is a pure function of its arguments; the randomness is seeded.

/// Samples drawn for one interval: its ends are good to about a tenth of their width.
pub const RESAMPLES: usize = 2_000;
/// Share of cases in which an interval holds the true value.
pub const CONFIDENCE: f64 = 0.95;
/// Rounds below which no difference is claimed: four values have no 95 % interval.
pub const ROUNDS_MIN: usize = 5;

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Better than the baseline, beyond the interval and the noise floor.
    Faster,
    /// Worse than the baseline, beyond the interval and the noise floor.
    Slower,
    /// Neither could be shown.
    NoDifference,
}

impl Finding {
    /// The word that reports use.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NoDifference => "no difference shown",
        }
    }
}

/// The median; NaN when there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

fn median_of_sorted(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => f64::NAN,
        odd if odd.len() % 2 == 1 => odd[middle],
        even => f64::midpoint(even[middle - 1], even[middle]),
    }
}

/// The median of `values` with its interval.
pub fn estimate(values: &[f64], seed: u64) -> Estimate {
    bootstrap(median(values), seed, |rng| {
        median_of_sorted(&resampled(values, rng))
    })
}

/// The median of the ratios of paired values, `ours` to `theirs`, with its interval.
///
/// Both slices are in the order of the rounds. What disturbed a whole round disturbed both and
/// cancels out.
pub fn paired_ratio(ours: &[f64], theirs: &[f64], seed: u64) -> Estimate {
    let pairs = ours.iter().zip(theirs);
    let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
    estimate(&ratios, seed)
}

/// The ratio of the medians of two unpaired series, `new` to `old`, with its interval.
pub fn unpaired_ratio(new: &[f64], old: &[f64], seed: u64) -> Estimate {
    bootstrap(median(new) / median(old), seed, |rng| {
        median_of_sorted(&resampled(new, rng)) / median_of_sorted(&resampled(old, rng))
    })
}

/// How far a ratio may be from 1, as a logarithm, without meaning anything: the farther end of the
/// interval of a ratio whose truth is 1.
pub fn noise_floor(again: Estimate) -> f64 {
    again.low.ln().abs().max(again.high.ln().abs())
}

/// Judges a ratio to the baseline by its interval and the noise floor (0 when there is none).
///
/// `rounds` is the count of values behind it; below [`ROUNDS_MIN`] nothing is claimed.
pub fn judge(ratio: Estimate, noise_floor: f64, more_is_better: bool, rounds: usize) -> Finding {
    let finite = [ratio.low, ratio.median, ratio.high].map(f64::is_finite);
    let apart = ratio.low > 1.0 || ratio.high < 1.0;
    let audible = ratio.median.ln().abs() > noise_floor;
    if rounds < ROUNDS_MIN || finite.contains(&false) || !apart || !audible {
        return Finding::NoDifference;
    }
    if (ratio.median > 1.0) == more_is_better {
        Finding::Faster
    } else {
        Finding::Slower
    }
}

fn resampled(values: &[f64], rng: &mut fastrand::Rng) -> Vec<f64> {
    let mut drawn: Vec<f64> = (0..values.len())
        .map(|_| values[rng.usize(..values.len())])
        .collect();
    drawn.sort_by(f64::total_cmp);
    drawn
}

/// The percentile interval of a statistic that `draw` computes from one resampling.
fn bootstrap(median: f64, seed: u64, mut draw: impl FnMut(&mut fastrand::Rng) -> f64) -> Estimate {
    if median.is_nan() {
        return Estimate {
            median,
            low: f64::NAN,
            high: f64::NAN,
        };
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(|_| draw(&mut rng)).collect();
    drawn.sort_by(f64::total_cmp);
    let tail = ((1.0 - CONFIDENCE) / 2.0 * RESAMPLES as f64) as usize;
    Estimate {
        median,
        low: drawn[tail],
        high: drawn[RESAMPLES - 1 - tail],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A normal deviate, by Box and Muller.
    fn normal(rng: &mut fastrand::Rng) -> f64 {
        let (u, v) = (1.0 - rng.f64(), rng.f64());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert!(estimate(&[], 1).low.is_nan());
    }

    #[test]
    fn the_interval_of_five_values_is_nearly_their_range() {
        let estimate = estimate(&[10.0, 11.0, 12.0, 13.0, 14.0], 1);
        assert_eq!(estimate.median, 12.0);
        assert_eq!((estimate.low, estimate.high), (10.0, 14.0));
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values = [1.0, 1.5, 0.8, 1.2, 1.1, 0.9, 1.3, 1.05];
        assert_eq!(estimate(&values, 7), estimate(&values, 7));
        assert_eq!(
            paired_ratio(&values, &values, 7),
            Estimate {
                median: 1.0,
                low: 1.0,
                high: 1.0
            }
        );
    }

    #[test]
    fn intervals_hold_the_true_median_about_as_often_as_they_say() {
        for rounds in [5, 9, 15] {
            let trials = 1_000;
            let holds = (0..trials).filter(|seed| {
                let mut rng = fastrand::Rng::with_seed(*seed);
                // Lognormal: skewed, with the median 1.
                let values: Vec<f64> = (0..rounds)
                    .map(|_| (0.3 * normal(&mut rng)).exp())
                    .collect();
                let estimate = estimate(&values, *seed);
                estimate.low <= 1.0 && 1.0 <= estimate.high
            });
            let coverage = holds.count() as f64 / trials as f64;
            assert!((0.91..=0.985).contains(&coverage), "{rounds}: {coverage}");
        }
    }

    #[test]
    fn a_difference_must_leave_both_its_interval_and_the_noise_floor() {
        let ratio = |low, median, high| Estimate { median, low, high };
        let floor = noise_floor(ratio(0.98, 1.0, 1.03));
        assert!((floor - 1.03_f64.ln()).abs() < 1e-12);
        for (given, more_is_better, rounds, wanted) in [
            (ratio(1.05, 1.10, 1.20), true, 5, Finding::Faster),
            (ratio(1.05, 1.10, 1.20), false, 5, Finding::Slower),
            (ratio(0.80, 0.90, 0.95), true, 5, Finding::Slower),
            (ratio(0.80, 0.90, 0.95), false, 5, Finding::Faster),
            (ratio(0.99, 1.10, 1.20), true, 5, Finding::NoDifference),
            (ratio(1.01, 1.02, 1.04), true, 5, Finding::NoDifference),
            (ratio(1.05, 1.10, 1.20), true, 4, Finding::NoDifference),
            (ratio(f64::NAN, 2.0, 3.0), true, 5, Finding::NoDifference),
        ] {
            let found = judge(given, floor, more_is_better, rounds);
            assert_eq!(found, wanted, "{given:?}");
        }
    }

    #[test]
    fn unpaired_ratios_are_of_the_medians() {
        let estimate = unpaired_ratio(&[2.0; 5], &[1.0; 5], 1);
        assert_eq!(
            (estimate.low, estimate.median, estimate.high),
            (2.0, 2.0, 2.0)
        );
    }
}
