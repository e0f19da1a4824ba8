//! Systems whose figures are invented: to try out a scenario, the statistics and the reports
//! without waiting, and without rights.
//!
//! A figure is `level × drift × noise`, lognormal noise with now and then an outlier, as a shared
//! virtual machine shows it. All systems are equally good but for a factor of their own.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::time::Duration;

use crate::frame_size::mean;
use crate::measure::Request;
use crate::result::{Metric, Sample};
use crate::run::{Hall, Refusal, Subject};
use crate::scenario::MeasureName;
use crate::system::{Setup, SystemName};

/// Share of measurements that something else disturbed.
const OUTLIERS: f64 = 0.05;

/// Invents figures.
#[derive(Clone, Debug)]
pub struct Invented {
    /// Standard deviation of a figure, as a share of it.
    pub noise: f64,
    /// Factor of a system's figures; 1 where none is given.
    pub factors: BTreeMap<SystemName, f64>,
    /// How long one measurement pretends to take.
    pub pause: Duration,
    /// Where the randomness comes from.
    pub rng: fastrand::Rng,
}

impl Invented {
    /// Systems that do not differ.
    pub fn new(noise: f64, seed: u64) -> Self {
        Self {
            noise,
            factors: BTreeMap::new(),
            pause: Duration::ZERO,
            rng: fastrand::Rng::with_seed(seed),
        }
    }
}

impl Hall for Invented {
    fn start(&mut self, system: SystemName, _setup: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        Ok(Box::new(Instance {
            noise: self.noise,
            factor: self.factors.get(&system).copied().unwrap_or(1.0),
            pause: self.pause,
            rng: self.rng.fork(),
        }))
    }
}

struct Instance {
    noise: f64,
    factor: f64,
    pause: Duration,
    rng: fastrand::Rng,
}

impl Instance {
    /// A normal deviate, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.rng.f64(), self.rng.f64());
        (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
    }

    fn figure(&mut self, level: f64) -> f64 {
        let noise = (self.noise * self.normal()).exp();
        let outlier = if self.rng.f64() < OUTLIERS { 0.8 } else { 1.0 };
        level * self.factor * noise * outlier
    }
}

impl Subject for Instance {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("version".to_owned(), "invented figures".to_owned())])
    }

    fn sample(&mut self, request: &Request) -> Result<Sample, Refusal> {
        if !self.pause.is_zero() {
            std::thread::park_timeout(self.pause);
        }
        // What all have in common in one round: up to a fifth, as this class of machine drifts.
        let drift = 1.0 + 0.2 * (fastrand::Rng::with_seed(request.seed).f64() - 0.5);
        let speed = self.figure(drift);
        let metrics = match request.measure {
            MeasureName::TcpBulk => vec![
                Metric::more("throughput", "Gbit/s", 16.0 * speed),
                Metric::less("cpu", "s/GB", 0.6 / speed),
            ],
            MeasureName::Frames | MeasureName::FramesAtLoss => {
                let size = mean(&request.frame_sizes);
                let rate = 1e6 * speed / (1.0 + size / 4_000.0);
                vec![
                    Metric::more("rate", "frames/s", rate),
                    Metric::less("cpu", "ns/frame", 1.4e9 / rate),
                ]
            }
            MeasureName::CoreFrames => {
                let (stations, sessions) = (request.scale.stations, request.scale.sessions);
                let known = f64::from(stations.or(sessions).unwrap_or(1)) + 1.0;
                vec![Metric::less(
                    "cost",
                    "ns/frame",
                    (60.0 + 10.0 * known.log2()) / speed,
                )]
            }
            MeasureName::Rfc2889Capacity => {
                vec![Metric::more("addresses", "addresses", 8_192.0 * speed)]
            }
            MeasureName::Rfc2889LearningRate => {
                vec![Metric::more("learning-rate", "addresses/s", 2e5 * speed)]
            }
            MeasureName::Rfc2544Throughput | MeasureName::Rfc2889Broadcast => {
                let pdr = 1.2 * speed;
                vec![
                    Metric::more("ndr", "Mframes/s", 0.8 * pdr),
                    Metric::more("pdr", "Mframes/s", pdr),
                    Metric::less("cpu", "ns/frame", 1.4e3 / pdr),
                ]
            }
            MeasureName::Rfc2544Latency => [(50, 60.0), (10, 40.0), (90, 200.0)]
                .into_iter()
                .flat_map(|(percent, micros)| {
                    let name = |q: &str| format!("{q}-at-{percent}");
                    [
                        Metric::less(&name("p50"), "µs", micros / speed),
                        Metric::less(&name("p99"), "µs", 4.0 * micros / speed),
                    ]
                })
                .collect(),
            MeasureName::Rfc2544BackToBack => {
                vec![Metric::more("burst", "frames", 20_000.0 * speed)]
            }
            MeasureName::RoundTrip => {
                vec![Metric::less("round-trip-p50", "µs", 5.7 / speed)]
            }
            MeasureName::Connections => {
                vec![Metric::more("connections", "1/s", 38_000.0 * speed)]
            }
            MeasureName::Idle => vec![Metric::less("cpu", "% of a core", 0.5 / speed)],
        };
        let mut sample = Sample {
            metrics,
            ..Sample::default()
        };
        if request.measure == MeasureName::RoundTrip {
            let quantiles = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999];
            let tail = |q: f64| 5.0 / speed * (1.0 + 0.1 * (1.0 / (1.0 - q)).ln().powi(2));
            sample.latency = quantiles.iter().map(|q| (*q, tail(*q))).collect();
        }
        for (who, share) in [("sender", 0.3), ("switch", 0.5), ("receiver", 0.2)] {
            sample.cpu.insert(who.to_owned(), share / speed);
        }
        Ok(sample)
    }
}
