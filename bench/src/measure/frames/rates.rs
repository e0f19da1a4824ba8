//! The two rates of a device: the one of which nothing is lost (NDR) and the one of which no more
//! than a share is lost (PDR).
//!
//! RFC 1242 section 3.17 calls the first one throughput, and RFC 2544 section 26.1 says how it is
//! found. Who loses a frame now and then, for a reason that no rate removes, has a low NDR, so the
//! second one is searched as well, as is usual for switches in software. The NDR cannot be above the
//! PDR and is searched below it; a trial of the first search that lost nothing is not made again.

use crate::measure::MeasureError;
use crate::measure::highest::{Bounds, Found, Trial, highest};

/// What became of the frames of one trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Frames that left the tester.
    pub offered: u64,
    /// Of these, how many came back, each counted once.
    pub came: u64,
    /// Of those that did not come, how many the tester's own sockets had no room for.
    pub missed_by_tester: u64,
    /// Frames a second that came.
    pub delivered: f64,
    /// Whether the tester kept to the rate.
    pub kept_pace: bool,
}

impl Traffic {
    /// Frames that the device lost: what the tester did not send, or did not take, is not among
    /// them.
    pub const fn lost(&self) -> u64 {
        self.offered
            .saturating_sub(self.came)
            .saturating_sub(self.missed_by_tester)
    }

    /// What it means when a share of `loss_max` may be lost.
    pub fn judged(&self, loss_max: f64) -> Trial {
        let allowed = (self.offered as f64 * loss_max) as u64;
        if self.offered == 0 || self.lost() > allowed {
            return Trial::Failed;
        }
        match self.kept_pace && self.missed_by_tester == 0 {
            true => Trial::Passed,
            false => Trial::AtTesterLimit,
        }
    }
}

/// A rate that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Frames a second that came at it; 0 when no rate passed.
    pub delivered: f64,
    /// The rate that was asked of the tester, and why it is not higher.
    pub found: Found,
}

/// Both rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of which nothing is lost.
    pub ndr: Rate,
    /// Of which no more than the bound is lost.
    pub pdr: Rate,
    /// Trials that were made.
    pub trials: usize,
}

type MakeTrial<'a> = &'a mut dyn FnMut(u64) -> Result<Traffic, MeasureError>;

/// Searches for the PDR alone.
///
/// # Errors
/// As [`highest`].
pub fn partial_drop_rate(
    bounds: Bounds,
    loss_max: f64,
    stop: &dyn Fn() -> bool,
    make: MakeTrial<'_>,
) -> Result<Rate, MeasureError> {
    search(bounds, loss_max, stop, &mut Ledger::default(), make)
}

/// Searches for both rates.
///
/// # Errors
/// As [`highest`].
pub fn rates(
    bounds: Bounds,
    loss_max: f64,
    stop: &dyn Fn() -> bool,
    make: MakeTrial<'_>,
) -> Result<Rates, MeasureError> {
    let mut ledger = Ledger::default();
    let pdr = search(bounds, loss_max, stop, &mut ledger, make)?;
    let ndr = match (pdr.found.value, ledger.lossless_up_to(pdr.found.value)) {
        // Even the lowest rate loses more than the bound.
        (0, _) => pdr,
        // Nothing was lost at the PDR itself.
        (value, Some((rate, delivered))) if rate == value => Rate { delivered, ..pdr },
        (value, lossless) => {
            let below = Bounds {
                first: lossless.map_or(value / 2, |(rate, _)| rate),
                most: value,
                ..bounds
            };
            let below = search(below, 0.0, stop, &mut ledger, make)?;
            // What is above was not forbidden: it was found to fail, or not to be had.
            match below.found.value == value {
                true => Rate {
                    delivered: below.delivered,
                    ..pdr
                },
                false => below,
            }
        }
    };
    Ok(Rates {
        ndr,
        pdr,
        trials: ledger.made.len(),
    })
}

/// Every trial with its rate.
#[derive(Default)]
struct Ledger {
    made: Vec<(u64, Traffic)>,
}

impl Ledger {
    /// The highest rate up to `most` at which nothing was lost, with the most that came at it then.
    fn lossless_up_to(&self, most: u64) -> Option<(u64, f64)> {
        let up_to = self.made.iter().filter(|(rate, _)| *rate <= most);
        let lossless = up_to.filter(|(_, traffic)| traffic.judged(0.0) != Trial::Failed);
        let rate = lossless.map(|(rate, _)| *rate).max()?;
        Some((rate, self.passed(rate, 0.0)?.delivered))
    }

    /// The trial of a rate that passed; of several the one of which most came.
    fn passed(&self, rate: u64, loss_max: f64) -> Option<Traffic> {
        let at = self.made.iter().filter(|(tried, _)| *tried == rate);
        let passed = at.filter(|(_, traffic)| traffic.judged(loss_max) != Trial::Failed);
        let most = passed.max_by(|(_, a), (_, b)| a.delivered.total_cmp(&b.delivered));
        most.map(|(_, traffic)| *traffic)
    }
}

fn search(
    bounds: Bounds,
    loss_max: f64,
    stop: &dyn Fn() -> bool,
    ledger: &mut Ledger,
    make: MakeTrial<'_>,
) -> Result<Rate, MeasureError> {
    let found = highest(bounds, stop, &mut |rate| {
        // Where the tester was at its end, it may have been so by accident.
        let known = ledger.passed(rate, loss_max);
        if known.is_some_and(|known| known.judged(loss_max) == Trial::Passed) {
            return Ok(Trial::Passed);
        }
        let traffic = make(rate)?;
        ledger.made.push((rate, traffic));
        Ok(traffic.judged(loss_max))
    })?;
    let at = ledger.passed(found.value, loss_max);
    Ok(Rate {
        delivered: at.map_or(0.0, |traffic| traffic.delivered),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::highest::End;

    const BOUNDS: Bounds = Bounds {
        least: 1_000,
        first: 25_000,
        most: 4_000_000,
        resolution: 0.02,
    };
    const LOSS_MAX: f64 = 0.005;
    /// Seconds of a simulated trial.
    const SECONDS: f64 = 1.0;

    /// A device and the tester in front of it.
    #[derive(Clone, Copy)]
    struct Simulated {
        /// Frames a second above which it begins to lose.
        lossless: f64,
        /// Frames a second that it carries at most.
        capacity: f64,
        /// Frames a second that the tester can send.
        offer: f64,
        /// Frames of each trial that the tester itself does not get out.
        withheld: u64,
        /// Frames of each trial that the tester's sockets miss.
        missed: u64,
        /// Every so manyth trial one frame is lost that no rate explains.
        unlucky: usize,
    }

    const DEVICE: Simulated = Simulated {
        lossless: 300e3,
        capacity: 700e3,
        offer: 1e9,
        withheld: 0,
        missed: 0,
        unlucky: 0,
    };

    impl Simulated {
        /// Between the two rates it loses three thousandths.
        fn traffic(&self, rate: u64, trial: usize) -> Traffic {
            let sent = (rate as f64).min(self.offer) * SECONDS;
            let offered = sent as u64 - self.withheld;
            let mut came = (offered as f64).min(self.capacity * SECONDS) as u64;
            if sent > self.lossless * SECONDS {
                came = came.min((offered as f64 * 0.997) as u64);
            }
            if self.unlucky > 0 && trial.is_multiple_of(self.unlucky) {
                came -= 1;
            }
            came -= self.missed;
            Traffic {
                offered,
                came,
                missed_by_tester: self.missed,
                delivered: came as f64 / SECONDS,
                kept_pace: offered as f64 >= 0.98 * rate as f64 * SECONDS,
            }
        }

        fn found(&self) -> Rates {
            let mut trial = 0;
            let rates = rates(BOUNDS, LOSS_MAX, &|| false, &mut |rate| {
                trial += 1;
                Ok(self.traffic(rate, trial))
            });
            let rates = rates.expect("simulated trials");
            assert_eq!(rates.trials, trial, "every trial is counted once");
            rates
        }
    }

    /// Whether a rate is the capacity, or less by no more than the resolution.
    fn is_within(rate: Rate, capacity: f64) -> bool {
        let value = rate.found.value as f64;
        value <= capacity && value >= capacity / 1.02 - 1.0
    }

    #[test]
    fn both_rates_are_found_within_the_resolution() {
        for (lossless, capacity) in [(300e3, 700e3), (30e3, 31e3), (1_100.0, 2e6)] {
            let device = Simulated {
                lossless,
                capacity,
                ..DEVICE
            };
            let rates = device.found();
            assert!(is_within(rates.ndr, lossless), "{lossless}: {rates:?}");
            // Five thousandths may be lost, and three are lost below the capacity.
            assert!(
                is_within(rates.pdr, capacity * 1.005),
                "{capacity}: {rates:?}"
            );
            assert!(rates.pdr.delivered <= capacity);
            assert_eq!(rates.ndr.delivered, rates.ndr.found.value as f64);
            assert!(rates.trials < 60, "{}", rates.trials);
        }
    }

    #[test]
    fn a_device_that_loses_nothing_up_to_its_capacity_has_one_rate() {
        let device = Simulated {
            lossless: 700e3,
            ..DEVICE
        };
        let rates = device.found();
        assert!(is_within(rates.ndr, 700e3), "{rates:?}");
        assert!(rates.ndr.found.value <= rates.pdr.found.value);
    }

    #[test]
    fn a_frame_that_the_generator_loses_is_not_the_devices() {
        let tester = Simulated {
            withheld: 1,
            ..DEVICE
        };
        assert!(is_within(tester.found().ndr, 300e3), "{:?}", tester.found());
        let unlucky = Simulated {
            unlucky: 3,
            ..DEVICE
        };
        assert!(
            is_within(unlucky.found().ndr, 300e3),
            "{:?}",
            unlucky.found()
        );
    }

    #[test]
    fn one_frame_that_the_device_loses_every_time_is_a_loss() {
        let leaky = Simulated {
            unlucky: 1,
            ..DEVICE
        };
        let rates = leaky.found();
        assert_eq!(
            (rates.ndr.delivered, rates.ndr.found.end),
            (0.0, End::Floor)
        );
        assert!(is_within(rates.pdr, 700e3 * 1.005), "{rates:?}");
    }

    #[test]
    fn a_generator_that_is_the_bottleneck_is_flagged() {
        let slow = Simulated {
            offer: 200e3,
            ..DEVICE
        };
        let rates = slow.found();
        assert_eq!(rates.pdr.found.end, End::TesterLimit);
        assert_eq!(rates.ndr.found.end, End::TesterLimit);
        assert_eq!(rates.ndr.delivered, 200e3, "what came, not what was asked");
    }

    #[test]
    fn a_generator_that_is_late_once_is_not_the_bottleneck() {
        let mut trial = 0;
        let rates = rates(BOUNDS, LOSS_MAX, &|| false, &mut |rate| {
            trial += 1;
            let traffic = DEVICE.traffic(rate, trial);
            Ok(Traffic {
                kept_pace: trial % 3 != 0,
                ..traffic
            })
        });
        let rates = rates.expect("simulated trials");
        assert!(is_within(rates.ndr, 300e3), "{rates:?}");
        assert!(is_within(rates.pdr, 700e3 * 1.005), "{rates:?}");
    }

    #[test]
    fn the_rate_of_bounded_loss_is_no_ceiling_of_the_other() {
        for capacity in (0..20).map(|step| 700e3 + 1e3 * f64::from(step)) {
            let device = Simulated {
                lossless: capacity,
                capacity,
                ..DEVICE
            };
            let mut tried = std::collections::BTreeSet::new();
            let rates = rates(BOUNDS, LOSS_MAX, &|| false, &mut |rate| {
                // One frame is lost when a rate is tried for the first time.
                let unlucky = usize::from(tried.insert(rate));
                Ok(Simulated { unlucky, ..device }.traffic(rate, 1))
            });
            let rates = rates.expect("simulated trials");
            assert!(is_within(rates.pdr, capacity * 1.005), "{rates:?}");
            assert!(is_within(rates.ndr, capacity), "{rates:?}");
            assert_eq!(rates.ndr.found.end, End::Narrowed, "{capacity}: {rates:?}");
        }
    }

    #[test]
    fn no_more_comes_without_loss_than_with_some() {
        let mut trial = 0;
        let rates = rates(BOUNDS, LOSS_MAX, &|| false, &mut |rate| {
            trial += 1;
            // A tester that becomes faster, in front of a device without limits.
            let tester = Simulated {
                lossless: 1e9,
                capacity: 1e9,
                offer: 210e3 + 100.0 * trial as f64,
                ..DEVICE
            };
            Ok(tester.traffic(rate, trial))
        });
        let rates = rates.expect("simulated trials");
        assert_eq!(rates.pdr.found.end, End::TesterLimit);
        assert_eq!(rates.ndr, rates.pdr);
    }

    #[test]
    fn a_receiver_that_misses_frames_is_no_loss_of_the_device_and_flagged() {
        let deaf = Simulated {
            missed: 5,
            ..DEVICE
        };
        let rates = deaf.found();
        assert_eq!(rates.ndr.found.end, End::TesterLimit, "{rates:?}");
    }

    #[test]
    fn a_device_that_loses_too_much_at_every_rate_has_neither() {
        let broken = Simulated {
            lossless: 0.0,
            capacity: 500.0,
            ..DEVICE
        };
        let rates = broken.found();
        for rate in [rates.ndr, rates.pdr] {
            assert_eq!((rate.delivered, rate.found.end), (0.0, End::Floor));
        }
    }

    #[test]
    fn a_search_for_one_rate_is_stopped_with_what_it_knows() {
        let mut trial = 0;
        let stop = std::cell::Cell::new(false);
        let rate = partial_drop_rate(BOUNDS, LOSS_MAX, &|| stop.get(), &mut |rate| {
            trial += 1;
            stop.set(trial == 2);
            Ok(DEVICE.traffic(rate, trial))
        });
        let said = rate.expect_err("stopped").to_string();
        assert!(said.contains("had passed was 50000"), "{said}");
    }
}
