//! The highest rate of which no more than a share is lost.
//!
//! # Theory of operation
//! From a low rate the search doubles until a rate fails, then halves the interval in logarithms
//! until it is narrow, then confirms what it found. Noise is one-sided, as another program can
//! make a good rate fail but not a bad one pass, so a rate that fails is tried once more before
//! it counts, and a found rate that fails its confirmation gives way to the next lower one. A rate
//! that the generator cannot offer ends the climb: what came of it is the figure, flagged.

use std::time::Duration;

use super::{Course, Offer, Outcome, Pace, sample};
use crate::measure::{MeasureError, Request};
use crate::result::{Flag, Sample};
use crate::system::System;

/// Where the climb starts, in frames a second: the slowest system here does ten times that.
const RATE_FIRST: f64 = 25e3;
/// How much the climb grows.
const CLIMB: f64 = 2.0;
/// Width of the last interval, as a ratio.
const RESOLUTION: f64 = 1.03;
/// Probes at most, repetitions included.
const PROBES_MAX: usize = 60;
/// Probes of one rate before it has failed.
const TRIES: usize = 2;
/// Rates that are tried for confirmation: down to half of what was found.
const CONFIRMATIONS_MAX: usize = 22;
/// How much a found rate is lowered when it fails its confirmation.
const BACK_OFF: f64 = 0.97;
/// A probe's share of the load's duration.
const PROBE_SHARE: u32 = 4;
/// Shortest probe: a few scheduler periods and timer ticks.
const PROBE_MIN: Duration = Duration::from_millis(150);
/// What a probe does not count, for queues and sleepers to get going.
const PROBE_WARM_UP: Duration = Duration::from_millis(30);

/// Searches.
pub fn frames_at_loss(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut course = Course::open(request, system)?;
    let load = &request.load;
    let duration = Duration::from_millis(load.duration_ms) / PROBE_SHARE;
    let mut last = None;
    let mut try_rate = |rate| {
        let pace = Pace {
            rate,
            warm_up: PROBE_WARM_UP,
            duration: duration.max(PROBE_MIN),
            placement: load.placement,
        };
        let outcome = course.run(system, Offer::Paced(pace))?;
        let probe = Probe {
            delivered: outcome.rate(),
            lost_little: outcome.loss() <= load.loss_max,
            offered_all: outcome.offered_all,
        };
        if probe.lost_little {
            last = Some(outcome);
        }
        Ok(probe)
    };
    let found = search(load.rate_max, &mut try_rate)?;
    let best: Outcome = last.filter(|_| found.rate > 0.0).ok_or_else(|| {
        MeasureError::Stuck(format!(
            "more than {} of the datagrams are lost even at {RATE_FIRST} a second; give a higher \
             loss-max",
            load.loss_max
        ))
    })?;
    let mut sample = sample(&best);
    sample.metrics[0].value = found.rate * 1e-6;
    // Whatever it lost was allowed.
    if !best.offered_all && !sample.flags.contains(&Flag::GeneratorLimited) {
        sample.flags.push(Flag::GeneratorLimited);
    }
    if found.at_ceiling && !sample.flags.contains(&Flag::CeilingReached) {
        sample.flags.push(Flag::CeilingReached);
    }
    Ok(sample)
}

/// What one rate came to.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// Datagrams a second that came.
    delivered: f64,
    /// Whether the loss was allowed.
    lost_little: bool,
    /// Whether the generator kept to its schedule.
    offered_all: bool,
}

impl Probe {
    /// One that was not made, as there were too many.
    const FAILED: Self = Self {
        delivered: 0.0,
        lost_little: false,
        offered_all: true,
    };

    fn is_better_than(&self, other: &Self) -> bool {
        let rank = |probe: &Self| (probe.lost_little, probe.offered_all);
        (rank(self), self.delivered) > (rank(other), other.delivered)
    }
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    /// Delivered at the highest rate that passed; 0 when none did.
    rate: f64,
    /// Whether no higher rate may be tried.
    at_ceiling: bool,
}

type TryRate<'a> = &'a mut dyn FnMut(f64) -> Result<Probe, MeasureError>;

fn search(rate_max: f64, try_rate: TryRate<'_>) -> Result<Found, MeasureError> {
    let mut left = PROBES_MAX;
    let mut passes = |rate: f64| -> Result<Probe, MeasureError> {
        let mut best: Option<Probe> = None;
        for _ in 0..TRIES {
            if left == 0 {
                break;
            }
            left -= 1;
            let probe = try_rate(rate)?;
            if best.is_none_or(|best| probe.is_better_than(&best)) {
                best = Some(probe);
            }
            if probe.lost_little && probe.offered_all {
                break;
            }
        }
        Ok(best.unwrap_or(Probe::FAILED))
    };
    let mut low = 0.0;
    let mut high = RATE_FIRST.min(rate_max);
    // Climb.
    loop {
        let probe = passes(high)?;
        if !probe.lost_little {
            break;
        }
        low = high;
        if !probe.offered_all || high >= rate_max {
            return Ok(Found {
                rate: probe.delivered,
                at_ceiling: probe.offered_all,
            });
        }
        high = (high * CLIMB).min(rate_max);
    }
    if low == 0.0 {
        return Ok(Found {
            rate: 0.0,
            at_ceiling: false,
        });
    }
    // Narrow.
    while high / low > RESOLUTION {
        let middle = (low * high).sqrt();
        let probe = passes(middle)?;
        if probe.lost_little {
            low = middle;
            if !probe.offered_all {
                break;
            }
        } else {
            high = middle;
        }
    }
    // Confirm.
    let mut confirmed = 0.0;
    for _ in 0..CONFIRMATIONS_MAX {
        let probe = passes(low)?;
        if probe.lost_little {
            confirmed = probe.delivered;
            break;
        }
        low *= BACK_OFF;
    }
    Ok(Found {
        rate: confirmed,
        at_ceiling: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system that carries up to `capacity`, with a generator that offers up to `offer`; every
    /// `noise`-th probe fails for no reason.
    fn simulate(capacity: f64, offer: f64, rate_max: f64, noise: usize) -> (Found, usize) {
        let mut probes = 0;
        let found = search(rate_max, &mut |rate| {
            probes += 1;
            let offered = rate.min(offer);
            let spoilt = noise > 0 && probes % noise == 0;
            let passing = offered <= capacity && !spoilt;
            Ok(Probe {
                delivered: if passing { offered } else { offered * 0.5 },
                lost_little: passing,
                offered_all: rate <= offer,
            })
        });
        (found.expect("a simulated probe"), probes)
    }

    #[test]
    fn the_capacity_is_found_within_the_resolution() {
        for capacity in [30e3, 123_456.0, 700e3, 2.2e6] {
            let (found, probes) = simulate(capacity, 1e9, 4e6, 0);
            assert!(
                found.rate <= capacity && found.rate > capacity / RESOLUTION,
                "{found:?}"
            );
            assert!(!found.at_ceiling);
            assert!(probes <= PROBES_MAX, "{probes}");
        }
    }

    #[test]
    fn a_probe_that_fails_for_no_reason_does_not_count() {
        for noise in [2, 3, 5, 7] {
            let (found, _) = simulate(400e3, 1e9, 4e6, noise);
            assert!(
                found.rate > 400e3 / RESOLUTION,
                "every {noise}th: {found:?}"
            );
        }
    }

    #[test]
    fn the_ceiling_and_a_slow_generator_end_the_climb() {
        let (found, _) = simulate(9e6, 1e9, 1e6, 0);
        assert_eq!((found.rate, found.at_ceiling), (1e6, true));
        let (found, _) = simulate(9e6, 333e3, 1e6, 0);
        assert_eq!((found.rate, found.at_ceiling), (333e3, false));
        let (found, _) = simulate(10e3, 1e9, 1e6, 0);
        assert_eq!(found.rate, 0.0, "too slow for the first rate");
    }
}
