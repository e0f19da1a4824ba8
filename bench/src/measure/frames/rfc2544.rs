//! The benchmarks of RFC 2544 for one device: throughput (26.1), latency (26.2) and back-to-back
//! frames (26.4); and of RFC 2889 the one that is made in the same way, of broadcasts (5.10).
//!
//! # What differs from the RFC, and why
//! - A trial lasts `trial-ms`, half a second unless the scenario says more, where section 24 asks
//!   for 60 s: a measurement has dozens of trials, and rounds of all systems in turn show more of
//!   what varies than one long trial. 60,000 is accepted.
//! - Beside the rate without loss (26.1) there is the one with a bounded loss; see [`super::rates`].
//! - The search begins in the middle: there is no line rate (see [`crate::measure::highest`]).
//! - Latency (26.2) is not of one tagged frame in 60 s but of every frame, at fractions of the rate
//!   of bounded loss, as quantiles rather than a mean (RFC 8219 section 7.2 asks for those too). It
//!   counts from when a frame was due, and frames are due in bursts of 100 µs.
//! - A burst (26.4) has no minimum gaps, as there is no line: frames leave as fast as the
//!   tester's processor sends them, and the figures name that rate. Rounds take the place of the 50
//!   repetitions. A value of [`super::rates`] or of a burst holds for the tester's share of the
//!   machine, which it takes from the device.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::rates::{Rate, Traffic, partial_drop_rate, rates};
use super::{Course, Offer, Outcome, Pace, sample};
use crate::frame_size::{bytes_of, mean};
use crate::measure::highest::{Bounds, Trial, flag, highest};
use crate::measure::{MeasureError, Request};
use crate::result::{Metric, OFFERED, Sample};
use crate::system::System;

/// Where a search for a rate starts, in frames a second: the slowest system here does ten times
/// that.
const RATE_FIRST: u64 = 25_000;
/// The lowest rate that is tried, in frames a second: 100 frames of the shortest trial.
const RATE_LEAST: u64 = 1_000;
/// Where the search for a burst starts, in frames.
const BURST_FIRST: u64 = 64;
/// What a trial does not count, for queues and sleepers to get going.
const TRIAL_WARM_UP: Duration = Duration::from_millis(30);
/// Shares of the rate of bounded loss, in per cent, that latency is measured at.
const LATENCY_LOADS: [u32; 3] = [10, 50, 90];
/// The one of them that is the main figure.
const LATENCY_LOAD_MAIN: u32 = 50;

/// The rates of no loss and of bounded loss.
pub fn throughput(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut bench = Bench::open(request, system)?;
    let loss_max = request.load.pdr_loss_max;
    let found = rates(
        bounds(request),
        loss_max,
        &|| request.stop.is_asked(),
        &mut |rate| bench.trial(rate as f64),
    )?;
    let best = bench.best(found.pdr)?;
    let frame_bits = 8.0 * mean(&request.frame_sizes);
    let mut sample = sample(best);
    let mut metrics = vec![
        Metric::more("ndr", "Mframes/s", found.ndr.delivered * 1e-6),
        Metric::more("pdr", "Mframes/s", found.pdr.delivered * 1e-6),
        Metric::more(
            "ndr-bits",
            "Gbit/s",
            found.ndr.delivered * frame_bits * 1e-9,
        ),
        Metric::more(
            "pdr-bits",
            "Gbit/s",
            found.pdr.delivered * frame_bits * 1e-9,
        ),
    ];
    // What came at the PDR is the PDR.
    metrics.extend(
        sample
            .metrics
            .into_iter()
            .filter(|m| m.name != "throughput" && m.name != "bits"),
    );
    metrics.push(Metric::less("trials", "trials", found.trials as f64));
    sample.metrics = metrics;
    for rate in [found.ndr, found.pdr] {
        flag(&mut sample, rate.found.end);
    }
    Ok(sample)
}

/// Latency at fractions of the rate of bounded loss.
pub fn latency(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut bench = Bench::open(request, system)?;
    let loss_max = request.load.pdr_loss_max;
    let pdr = partial_drop_rate(
        bounds(request),
        loss_max,
        &|| request.stop.is_asked(),
        &mut |rate| bench.trial(rate as f64),
    )?;
    bench.best(pdr)?;
    let (mut metrics, mut main) = (Vec::new(), Sample::default());
    for percent in LATENCY_LOADS {
        if request.stop.is_asked() {
            let found = pdr.delivered;
            return Err(MeasureError::Stopped(format!(
                "stopped before all latencies were measured; the PDR is {found:.0} frames/s"
            )));
        }
        let rate = pdr.delivered * f64::from(percent) / 100.0;
        let outcome = bench.run(rate)?;
        let times = &outcome.arrived.latency;
        let loss = 100.0 * outcome.loss();
        let loss = Metric::less(&format!("loss-at-{percent}"), "%", loss);
        let figures = latency_at(percent, times).into_iter().chain([loss]);
        if percent == LATENCY_LOAD_MAIN {
            main = Sample {
                metrics: vec![Metric::more(
                    OFFERED,
                    "Mframes/s",
                    outcome.sent.rate() * 1e-6,
                )],
                latency: crate::measure::quantiles(times),
                ..sample(&outcome)
            };
            metrics.splice(0..0, figures);
        } else {
            metrics.extend(figures);
        }
    }
    metrics.push(Metric::more("pdr", "Mframes/s", pdr.delivered * 1e-6));
    metrics.append(&mut main.metrics);
    main.metrics = metrics;
    // Of the rate alone: what a latency is measured at is what was found.
    flag(&mut main, pdr.found.end);
    Ok(main)
}

/// The latencies that stand for those of all frames at a percentage of the rate of bounded loss.
fn latency_at(percent: u32, times: &Histogram<u64>) -> [Metric; 3] {
    [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)].map(|(name, quantile)| {
        let micros = times.value_at_quantile(quantile) as f64 * 1e-3;
        Metric::less(&format!("{name}-at-{percent}"), "µs", micros)
    })
}

/// The rates of broadcasts of which nothing, or little, is lost at any port, and their latency at the
/// main load: RFC 2889 section 5.10.
pub fn broadcast(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut bench = Bench::open(request, system)?;
    let loss_max = request.load.pdr_loss_max;
    let found = rates(
        bounds(request),
        loss_max,
        &|| request.stop.is_asked(),
        &mut |rate| bench.trial(rate as f64),
    )?;
    let best = bench.best(found.pdr)?;
    let (receivers, bits) = (best.copies as f64, best.bits());
    let mut best = sample(best);
    let rate = found.pdr.delivered * f64::from(LATENCY_LOAD_MAIN) / 100.0;
    let outcome = bench.run(rate)?;
    let times = &outcome.arrived.latency;
    let mut metrics = vec![
        Metric::more("ndr", "Mframes/s", found.ndr.delivered * 1e-6),
        Metric::more("pdr", "Mframes/s", found.pdr.delivered * 1e-6),
        Metric::more("pdr-bits", "Gbit/s", bits * 1e-9),
        Metric::more(
            "pdr-copies",
            "Mframes/s",
            found.pdr.delivered * receivers * 1e-6,
        ),
    ];
    best.metrics
        .retain(|metric| metric.name != "throughput" && metric.name != "bits");
    metrics.append(&mut best.metrics);
    let offered = outcome.sent.rate() * 1e-6;
    metrics.push(Metric::more(OFFERED, "Mframes/s", offered));
    metrics.extend(latency_at(LATENCY_LOAD_MAIN, times));
    metrics.push(Metric::less("trials", "trials", found.trials as f64));
    best.metrics = metrics;
    best.latency = crate::measure::quantiles(times);
    for rate in [found.ndr, found.pdr] {
        flag(&mut best, rate.found.end);
    }
    Ok(best)
}

/// The longest burst of which nothing is lost.
pub fn back_to_back(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut bench = Bench::open(request, system)?;
    let most = u64::from(request.load.burst_max);
    let bounds = Bounds {
        least: 1,
        first: BURST_FIRST.min(most),
        most,
        resolution: request.load.resolution,
    };
    let found = highest(bounds, &|| request.stop.is_asked(), &mut |frames| {
        let (traffic, outcome) = bench.burst(frames)?;
        let judged = traffic.judged(0.0);
        if judged != Trial::Failed {
            bench.passed.push((frames, outcome));
        }
        Ok(judged)
    })?;
    let rate = match bench
        .passed
        .iter()
        .find(|(frames, _)| *frames == found.value)
    {
        Some((_, outcome)) => outcome.sent.rate(),
        None => f64::NAN,
    };
    let frames = found.value as f64;
    let mut sample = Sample {
        metrics: vec![
            Metric::more("burst", "frames", frames),
            Metric::more(
                "burst-bytes",
                "kB",
                bytes_of(&request.frame_sizes, found.value) as f64 * 1e-3,
            ),
            Metric::less("burst-time", "ms", 1e3 * frames / rate),
            Metric::more("burst-rate", "Mframes/s", rate * 1e-6),
        ],
        ..Sample::default()
    };
    flag(&mut sample, found.end);
    Ok(sample)
}

/// A course with the settings of the trials.
struct Bench<'a> {
    request: &'a Request,
    system: &'a System,
    course: Course,
    /// What passed a trial of a rate or of a burst, by it.
    passed: Vec<(u64, Outcome)>,
}

impl<'a> Bench<'a> {
    fn open(request: &'a Request, system: &'a System) -> Result<Self, MeasureError> {
        Ok(Self {
            request,
            system,
            course: Course::open(request, system)?,
            passed: Vec::new(),
        })
    }

    fn run(&mut self, rate: f64) -> Result<Outcome, MeasureError> {
        let load = &self.request.load;
        let pace = Pace {
            rate,
            warm_up: TRIAL_WARM_UP,
            duration: Duration::from_millis(load.trial_ms),
            placement: load.placement,
        };
        self.course.run(self.system, Offer::Paced(pace))
    }

    fn trial(&mut self, rate: f64) -> Result<Traffic, MeasureError> {
        let outcome = self.run(rate)?;
        let traffic = traffic(&outcome);
        if traffic.judged(self.request.load.pdr_loss_max) != Trial::Failed {
            self.passed.push((rate as u64, outcome));
        }
        Ok(traffic)
    }

    fn burst(&mut self, frames: u64) -> Result<(Traffic, Outcome), MeasureError> {
        let placement = self.request.load.placement;
        let offer = Offer::Burst { frames, placement };
        let outcome = self.course.run(self.system, offer)?;
        Ok((traffic(&outcome), outcome))
    }

    /// What came at a rate that was found; of several trials the one of which most came.
    fn best(&self, rate: Rate) -> Result<&Outcome, MeasureError> {
        let tried = self.passed.iter();
        let at = tried
            .filter(|(tried, _)| *tried == rate.found.value)
            .max_by(|(_, a), (_, b)| a.rate().total_cmp(&b.rate()));
        at.map(|(_, outcome)| outcome).ok_or_else(|| {
            MeasureError::Stuck(format!(
                "more than {} of the frames are lost even at {RATE_LEAST} a second; give a higher \
                 pdr-loss-max",
                self.request.load.pdr_loss_max
            ))
        })
    }
}

fn traffic(outcome: &Outcome) -> Traffic {
    Traffic {
        offered: outcome.due(),
        came: outcome.arrived.unique,
        missed_by_tester: outcome.arrived.overflowed,
        delivered: outcome.rate(),
        kept_pace: outcome.offered_all,
    }
}

fn bounds(request: &Request) -> Bounds {
    let most = (request.load.rate_max as u64).max(1);
    Bounds {
        least: RATE_LEAST.min(most),
        first: RATE_FIRST.min(most),
        most,
        resolution: request.load.resolution,
    }
}
