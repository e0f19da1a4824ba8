//! The modes of a baseline: a figure that jumps between two levels is compared within each.
//!
//! # Why
//! On some machines the throughput of the same bridge is at one of two levels for a whole
//! measurement, such as 15 to 21 or 31 to 44 Gbit/s of one TCP stream. A median over both says
//! which level came up more often, and a ratio over both compares two levels with each other.
//!
//! # The rule
//! The baseline's figures are sorted. Where the largest step from one to the next is more than
//! [`STEP_MIN`] of the lower one, it parts them into two modes; otherwise there is one. A round
//! belongs to the mode that the *baseline* had in it, whatever the others did. What is judged is
//! the worst mode with [`ROUNDS_MIN`] rounds or more: a single round is an accident.

use crate::summary::Series;

/// The least step between two modes, as a share of the figure below it. Rounds within one mode
/// differ by up to 20 % on the machines known.
const STEP_MIN: f64 = 0.25;
/// Rounds of a mode that is judged.
const ROUNDS_MIN: usize = 2;

/// The rounds in which the baseline was at one level.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    /// Least figure of the baseline.
    pub low: f64,
    /// Greatest figure of the baseline.
    pub high: f64,
    /// The ratios of its rounds, in their order.
    pub ratios: Series,
}

impl Mode {
    /// Whether it came up often enough.
    pub fn is_judged(&self) -> bool {
        self.ratios.values.len() >= ROUNDS_MIN
    }
}

/// The ratios of `ours` to the baseline, round by round, by the baseline's modes from low to
/// high. A round in which either has no finite figure, or the baseline none above 0, is left out.
pub fn of(ours: &Series, baseline: &Series) -> Vec<Mode> {
    let rounds = ours.values.iter().zip(&baseline.values);
    let rounds: Vec<(f64, f64)> = rounds
        .map(|(ours, base)| (*ours, *base))
        .filter(|(ours, base)| ours.is_finite() && base.is_finite() && *base > 0.0)
        .collect();
    let bound = boundary(rounds.iter().map(|(_, base)| *base));
    let (low, high): (Vec<_>, Vec<_>) = rounds.into_iter().partition(|(_, base)| *base < bound);
    [low, high]
        .iter()
        .filter_map(|rounds| mode(rounds))
        .collect()
}

/// The worst of the modes that are judged, where more is better.
pub fn worst(modes: &[Mode]) -> Option<&Mode> {
    let judged = modes.iter().filter(|mode| mode.is_judged());
    judged.min_by(|one, other| one.ratios.median().total_cmp(&other.ratios.median()))
}

/// The median ratio of each mode with its label, such as `ratio at 15.2 to 20.8 Gbit/s in 3 rounds`.
pub fn shown(modes: &[Mode], unit: &str) -> Vec<(String, f64)> {
    let shown = modes.iter().map(|mode| {
        let rounds = match mode.ratios.values.len() {
            1 => "1 round".to_owned(),
            count => format!("{count} rounds"),
        };
        let label = format!(
            "ratio at {:.1} to {:.1} {unit} in {rounds}",
            mode.low, mode.high
        );
        (label, mode.ratios.median())
    });
    shown.collect()
}

/// The least figure of the upper mode; of the only one when there is one.
fn boundary(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let step = |pair: &[f64]| pair[1] / pair[0] - 1.0;
    let largest = sorted
        .windows(2)
        .max_by(|one, other| step(one).total_cmp(&step(other)));
    let parting = largest.filter(|pair| step(pair) > STEP_MIN);
    parting.map_or(f64::NEG_INFINITY, |pair| pair[1])
}

/// The mode that these rounds, ours and the baseline's, make up; `None` when there are none.
fn mode(rounds: &[(f64, f64)]) -> Option<Mode> {
    let base = rounds.iter().map(|(_, base)| *base);
    Some(Mode {
        low: base.clone().reduce(f64::min)?,
        high: base.reduce(f64::max)?,
        ratios: Series {
            values: rounds.iter().map(|(ours, base)| ours / base).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series {
            values: values.to_vec(),
        }
    }

    /// The modes as `low..high: ratios`.
    fn shown(ours: &[f64], baseline: &[f64]) -> Vec<String> {
        let modes = of(&series(ours), &series(baseline));
        let shown = modes
            .iter()
            .map(|mode| format!("{}..{}: {:?}", mode.low, mode.high, mode.ratios.values));
        shown.collect()
    }

    #[test]
    fn two_levels_are_two_modes_and_each_round_counts_in_that_of_its_baseline() {
        let baseline = [20.0, 40.0, 16.0, 32.0, 20.0];
        let ours = [18.0, 30.0, 16.0, 32.0, 25.0];
        assert_eq!(
            shown(&ours, &baseline),
            ["16..20: [0.9, 1.0, 1.25]", "32..40: [0.75, 1.0]"]
        );
    }

    #[test]
    fn figures_without_a_large_step_are_one_mode_however_far_they_reach() {
        let baseline = [10.0, 12.0, 14.0, 17.0, 20.0];
        assert_eq!(
            shown(&[10.0; 5], &baseline).len(),
            1,
            "from 10 to 20 by steps of a fifth"
        );
        assert_eq!(shown(&[5.0, 5.0], &[4.0, 5.0]), ["4..5: [1.25, 1.0]"]);
        assert_eq!(shown(&[5.0, 5.0], &[4.0, 5.01]).len(), 2);
    }

    #[test]
    fn only_the_largest_step_parts() {
        // 10 to 14 is a step of 40 %, 14 to 28 one of 100 %.
        let baseline = [14.0, 28.0, 10.0, 28.0];
        assert_eq!(
            shown(&baseline, &baseline),
            ["10..14: [1.0, 1.0]", "28..28: [1.0, 1.0]"]
        );
    }

    #[test]
    fn the_worst_mode_is_judged_and_a_single_round_is_not() {
        let baseline = series(&[20.0, 40.0, 20.0, 20.0]);
        let ours = series(&[18.0, 4.0, 20.0, 16.0]);
        let modes = of(&ours, &baseline);
        assert_eq!(modes.len(), 2);
        assert!(!modes[1].is_judged());
        let judged = worst(&modes).expect("the low mode");
        assert_eq!(judged.ratios.values, [0.9, 1.0, 0.8]);
        let often = of(
            &series(&[18.0, 30.0, 20.0, 28.0]),
            &series(&[20.0, 40.0, 20.0, 40.0]),
        );
        assert_eq!(worst(&often).expect("one").ratios.values, [0.75, 0.7]);
    }

    #[test]
    fn a_mode_is_shown_by_its_reach_and_its_rounds() {
        let modes = of(&series(&[9.0, 30.0, 16.0]), &series(&[20.0, 40.0, 16.0]));
        assert_eq!(
            super::shown(&modes, "Gbit/s"),
            [
                ("ratio at 16.0 to 20.0 Gbit/s in 2 rounds".to_owned(), 1.0),
                ("ratio at 40.0 to 40.0 Gbit/s in 1 round".to_owned(), 0.75)
            ]
        );
    }

    #[test]
    fn rounds_without_a_figure_are_left_out() {
        let (nan, zero) = (f64::NAN, 0.0);
        assert_eq!(
            shown(&[1.0, nan, 1.0, 1.0], &[nan, 1.0, zero, 2.0]),
            ["2..2: [0.5]"]
        );
        assert_eq!(shown(&[], &[]), [""; 0]);
        assert!(worst(&[]).is_none());
        assert!(worst(&of(&series(&[1.0]), &series(&[1.0]))).is_none());
    }
}
