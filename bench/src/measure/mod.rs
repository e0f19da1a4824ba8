//! The loads: each is bounded in time and count, and says what it could not do.
//!
//! Ends are threads of this process inside the namespaces of a [`System`]'s paths: flow `n` takes
//! path `n` modulo their count. Whose CPU time is whose is counted by thread; what nobody's
//! thread used while the machine was busy is the kernel's, in softirq, and that of everybody else
//! on the machine.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;

use self::placement::Pinned;
use crate::result::Sample;
use crate::scenario::{Load, MeasureName};
use crate::system::System;

pub mod addresses;
pub mod congestion;
mod connections;
pub(crate) mod cpu;
mod frames;
pub mod highest;
mod idle;
mod placement;
mod round_trip;
mod tcp;

/// Most flows of one measurement: each is a socket at either end.
pub const FLOWS_MAX: u16 = 1_000;
/// Bytes of the smallest frame, its check sequence included.
pub const FRAME_SIZE_MIN: u16 = 64;
/// Longest measurement, its warm-up included, in milliseconds.
pub const DURATION_MS_MAX: u64 = 600_000;

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// What.
    pub measure: MeasureName,
    /// Its times, counts and rates.
    pub load: Load,
    /// Flows side by side.
    pub flows: u16,
    /// Bytes of each frame of a flow in turn, its check sequence included; for datagrams.
    pub frame_sizes: Vec<u16>,
    /// What the core in memory has to remember.
    pub scale: Scale,
    /// Congestion control of TCP; the system's default when absent.
    pub congestion: Option<String>,
    /// Seed of everything random.
    pub seed: u64,
    /// Whether the run is to end: a search then makes no more trials.
    pub stop: Stop,
}

/// How much the core in memory has to remember.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Stations; one behind each port but the source's where it is not said.
    pub stations: Option<u32>,
    /// NAT sessions beside the one that is always there; frames are bridged where it is not said.
    pub sessions: Option<u32>,
}

/// Whether somebody has asked for an end. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for an end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Request {
    /// One flow of small frames, or one stream, with everything else by default.
    pub fn new(measure: MeasureName) -> Self {
        Self {
            measure,
            load: Load::default(),
            flows: 1,
            frame_sizes: vec![FRAME_SIZE_MIN],
            scale: Scale::default(),
            congestion: None,
            seed: 0,
            stop: Stop::default(),
        }
    }
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A socket, a thread or a file of /proc refused.
    #[error("cannot {action}: {source}")]
    Refused {
        /// What was tried, on what.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// It never got so far.
    #[error("{0}")]
    Stuck(String),
    /// It was asked to end before it had a figure; what it knew by then.
    #[error("{0}")]
    Stopped(String),
}

/// Makes an error of a refused action; says which one.
fn refused<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> MeasureError {
    let action = action.into();
    move |source| MeasureError::Refused {
        action,
        source: source.into(),
    }
}

/// Measures once.
///
/// # Errors
/// [`MeasureError`].
pub fn measure(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    check(request)?;
    let placement = request.load.placement;
    let _pinned = Pinned::switch(system, placement).map_err(refused("place the switch"))?;
    let mut sample = match request.measure {
        MeasureName::TcpBulk => tcp::bulk(request, system),
        MeasureName::Frames => frames::frames(request, system),
        MeasureName::FramesAtLoss => frames::search::frames_at_loss(request, system),
        MeasureName::Rfc2544Throughput => frames::rfc2544::throughput(request, system),
        MeasureName::Rfc2544Latency => frames::rfc2544::latency(request, system),
        MeasureName::Rfc2544BackToBack => frames::rfc2544::back_to_back(request, system),
        MeasureName::Rfc2889Capacity => addresses::capacity(request, system),
        MeasureName::Rfc2889LearningRate => addresses::learning_rate(request, system),
        MeasureName::Rfc2889Broadcast => frames::rfc2544::broadcast(request, system),
        MeasureName::CoreFrames => Err(MeasureError::Request(
            "the core is measured in memory, and this is a system with devices".to_owned(),
        )),
        MeasureName::RoundTrip => round_trip::round_trips(request, system),
        MeasureName::Idle => idle::idle(request, system),
        MeasureName::Connections => connections::connections(request, system),
    }?;
    let places = placement::places(system, placement);
    sample.places = places.map_err(refused("see where the switch runs"))?;
    Ok(sample)
}

fn check(request: &Request) -> Result<(), MeasureError> {
    let load = &request.load;
    let bad = |text: String| Err(MeasureError::Request(text));
    if !(1..=FLOWS_MAX).contains(&request.flows) {
        return bad(format!("{} flows; give 1 to {FLOWS_MAX}", request.flows));
    }
    let duration = load.duration_ms.saturating_add(load.warm_up_ms);
    if load.duration_ms == 0 || duration > DURATION_MS_MAX {
        return bad(format!(
            "{duration} ms of load; give 1 to {DURATION_MS_MAX}, warm-up included"
        ));
    }
    let smallest = request.frame_sizes.iter().min();
    if smallest.is_none_or(|size| *size < FRAME_SIZE_MIN) {
        return bad(format!(
            "frames of {:?} bytes; there is at least one, and the smallest has {FRAME_SIZE_MIN}",
            request.frame_sizes
        ));
    }
    if !(load.rate > 0.0 && load.rate_max > 0.0 && load.loss_max >= 0.0 && load.loss_max < 1.0) {
        return bad(format!(
            "rate {}, rate-max {} and loss-max {}: rates are above 0, the loss is below 1",
            load.rate, load.rate_max, load.loss_max
        ));
    }
    Ok(())
}

/// Quantiles that a distribution is stored by.
const QUANTILES: [f64; 14] = [
    0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0,
];

/// A distribution of nanoseconds, in microseconds.
fn quantiles(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let value = |q: &f64| (*q, latency.value_at_quantile(*q) as f64 * 1e-3);
    QUANTILES.iter().map(value).collect()
}
