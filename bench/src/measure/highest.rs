//! The highest whole number that passes, by trials.
//!
//! # Theory of operation
//! From a first value the search doubles until a trial fails, or halves until one passes, and then
//! halves the interval between the two in logarithms until it is as narrow as the resolution: the
//! binary search of RFC 2544 section 26.1, which a link without a line rate cannot begin at its
//! end. A value that fails is tried once more before it counts, as something else on the machine
//! can make a good value fail but not a bad one pass (binary search with loss verification, ETSI GS
//! NFV-TST 009 section 12.3). What passed while the tester was at its end, and did so again,
//! passes and ends the search.

use super::MeasureError;
use crate::result::{Flag, Sample};

/// How much a climb or a descent changes the value.
const STEP: u64 = 2;
/// Trials of one value before it has failed.
const TRIES: usize = 2;
/// Trials of one search at most: 2⁶³ values are climbed, and narrowed to a thousandth, with half of
/// it.
const TRIALS_MAX: usize = 200;

/// Where a search looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The lowest value that is tried, at least 1.
    pub least: u64,
    /// The one that is tried first.
    pub first: u64,
    /// The highest value that is tried.
    pub most: u64,
    /// Width of the last interval, as a share of its lower end; never less than 1 in all.
    pub resolution: f64,
}

/// What one trial came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It passed.
    Passed,
    /// It passed, and the tester could not have offered more.
    AtTesterLimit,
    /// It failed.
    Failed,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A higher value fails, and the interval is narrow.
    Narrowed,
    /// The highest value that may be tried passes.
    Ceiling,
    /// The tester can offer no more.
    TesterLimit,
    /// The lowest value that may be tried fails.
    Floor,
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The highest value that passed; 0 when none did.
    pub value: u64,
    /// Why it is not higher.
    pub end: End,
}

/// Searches. `stop` is asked before each trial.
///
/// # Errors
/// What a trial says, and [`MeasureError::Stopped`] with what is known by then.
pub fn highest(
    bounds: Bounds,
    stop: &dyn Fn() -> bool,
    trial: &mut dyn FnMut(u64) -> Result<Trial, MeasureError>,
) -> Result<Found, MeasureError> {
    let mut search = Search {
        stop,
        trial,
        low: 0,
        high: None,
        left: TRIALS_MAX,
    };
    let mut value = bounds.first.clamp(bounds.least.max(1), bounds.most.max(1));
    // Until one passes and a higher one fails.
    loop {
        match search.decide(value)? {
            Trial::AtTesterLimit => return Ok(search.found(End::TesterLimit)),
            Trial::Passed if value >= bounds.most => return Ok(search.found(End::Ceiling)),
            Trial::Passed if search.high.is_some() => break,
            Trial::Passed => value = value.saturating_mul(STEP).min(bounds.most),
            Trial::Failed if search.low > 0 => break,
            Trial::Failed if value <= bounds.least.max(1) => return Ok(search.found(End::Floor)),
            Trial::Failed => value = (value / STEP).max(bounds.least.max(1)),
        }
    }
    // Narrow.
    while let Some(high) = search.high
        && search.left > 0
    {
        let low = search.low;
        let width = (low as f64 * bounds.resolution).max(1.0);
        if (high - low) as f64 <= width {
            break;
        }
        let middle = (low as f64 * high as f64).sqrt() as u64;
        if search.decide(middle.clamp(low + 1, high - 1))? == Trial::AtTesterLimit {
            return Ok(search.found(End::TesterLimit));
        }
    }
    Ok(search.found(End::Narrowed))
}

/// Says by a flag that a figure is a bound.
pub fn flag(sample: &mut Sample, end: End) {
    let flag = match end {
        End::Narrowed => return,
        End::Ceiling => Flag::CeilingReached,
        End::TesterLimit => Flag::GeneratorLimited,
        End::Floor => Flag::FloorReached,
    };
    if !sample.flags.contains(&flag) {
        sample.flags.push(flag);
    }
}

struct Search<'a> {
    stop: &'a dyn Fn() -> bool,
    trial: &'a mut dyn FnMut(u64) -> Result<Trial, MeasureError>,
    /// The highest that passed, 0 before one did.
    low: u64,
    /// The lowest that failed.
    high: Option<u64>,
    /// Trials that may still be made.
    left: usize,
}

impl Search<'_> {
    /// Tries a value until it passes, or has not as often as it may, and notes what it came to.
    fn decide(&mut self, value: u64) -> Result<Trial, MeasureError> {
        let mut best = Trial::Failed;
        for _ in 0..TRIES {
            if (self.stop)() {
                return Err(self.stopped());
            }
            self.left = self.left.saturating_sub(1);
            match (self.trial)(value)? {
                Trial::Passed => {
                    best = Trial::Passed;
                    break;
                }
                Trial::AtTesterLimit => best = Trial::AtTesterLimit,
                Trial::Failed => {}
            }
        }
        match best {
            Trial::Passed | Trial::AtTesterLimit => self.low = self.low.max(value),
            Trial::Failed => self.high = Some(self.high.map_or(value, |high| high.min(value))),
        }
        Ok(best)
    }

    const fn found(&self, end: End) -> Found {
        Found {
            value: self.low,
            end,
        }
    }

    fn stopped(&self) -> MeasureError {
        let high = self.high.map_or("none".to_owned(), |high| high.to_string());
        MeasureError::Stopped(format!(
            "the search was stopped: the highest that had passed was {}, the lowest that had \
             failed {high}",
            self.low
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        least: 100,
        first: 25_000,
        most: 4_000_000,
        resolution: 0.02,
    };

    /// Searches a device that carries up to `capacity`; every `noise`-th trial fails for no reason.
    fn search(bounds: Bounds, capacity: u64, noise: usize) -> (Found, usize) {
        let mut trials = 0;
        let found = highest(bounds, &|| false, &mut |value| {
            assert!((bounds.least..=bounds.most).contains(&value), "{value}");
            trials += 1;
            let spoilt = noise > 0 && trials % noise == 0;
            Ok(match value <= capacity && !spoilt {
                true => Trial::Passed,
                false => Trial::Failed,
            })
        });
        (found.expect("a simulated trial"), trials)
    }

    #[test]
    fn the_capacity_is_found_within_the_resolution_above_and_below_the_first_value() {
        for resolution in [0.001, 0.02, 0.5] {
            let bounds = Bounds {
                resolution,
                ..BOUNDS
            };
            for capacity in [101, 777, 25_000, 30_001, 123_456, 2_200_000, 3_999_999] {
                let (found, trials) = search(bounds, capacity, 0);
                assert_eq!(found.end, End::Narrowed, "{capacity}");
                let least = capacity as f64 / (1.0 + resolution) - 1.0;
                assert!(
                    found.value <= capacity && found.value as f64 >= least,
                    "{capacity} by {resolution}: {found:?}"
                );
                assert!(trials <= 60, "{capacity} by {resolution}: {trials}");
            }
        }
    }

    #[test]
    fn small_capacities_are_found_exactly() {
        let bounds = Bounds {
            least: 1,
            first: 64,
            most: 1_000,
            resolution: 0.001,
        };
        for capacity in 1..200 {
            assert_eq!(search(bounds, capacity, 0).0.value, capacity);
        }
    }

    #[test]
    fn a_trial_that_fails_for_no_reason_does_not_count() {
        for noise in [2, 3, 5, 7] {
            let (found, _) = search(BOUNDS, 400_000, noise);
            assert!(found.value <= 400_000, "every {noise}th: {found:?}");
            assert!(
                found.value as f64 > 400e3 / 1.02,
                "every {noise}th: {found:?}"
            );
        }
    }

    #[test]
    fn the_ends_of_the_range_are_told() {
        let (found, _) = search(BOUNDS, 9_000_000, 0);
        assert_eq!((found.value, found.end), (4_000_000, End::Ceiling));
        let (found, _) = search(BOUNDS, 99, 0);
        assert_eq!((found.value, found.end), (0, End::Floor));
        let (found, _) = search(BOUNDS, 100, 0);
        assert_eq!((found.value, found.end), (100, End::Narrowed));
    }

    #[test]
    fn a_tester_at_its_end_is_flagged_and_not_taken_for_the_device() {
        let mut tried = Vec::new();
        let found = highest(BOUNDS, &|| false, &mut |value| {
            tried.push(value);
            Ok(match value > 333_000 {
                true => Trial::AtTesterLimit,
                false => Trial::Passed,
            })
        });
        let found = found.expect("a simulated trial");
        assert_eq!((found.value, found.end), (400_000, End::TesterLimit));
        assert_eq!(tried.last(), Some(&400_000), "nothing above is tried");
    }

    #[test]
    fn a_stopped_search_says_what_it_knows_and_makes_no_more_trials() {
        let trials = std::cell::Cell::new(0);
        let found = highest(BOUNDS, &|| trials.get() == 3, &mut |value| {
            trials.set(trials.get() + 1);
            Ok(match value <= 60_000 {
                true => Trial::Passed,
                false => Trial::Failed,
            })
        });
        let said = found.expect_err("it was stopped").to_string();
        assert_eq!(trials.get(), 3, "25,000, 50,000, and 100,000 once");
        assert!(said.contains("had passed was 50000"), "{said}");
        assert!(said.contains("had failed none"), "failed once only: {said}");
    }

    #[test]
    fn what_a_trial_says_ends_the_search() {
        let found = highest(BOUNDS, &|| false, &mut |_| {
            Err(MeasureError::Stuck("no socket".to_owned()))
        });
        assert_eq!(found.expect_err("an error").to_string(), "no socket");
    }
}
