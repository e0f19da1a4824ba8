//! What was measured: one document for a whole run, from which tables, plots and pages are made.
//!
//! Only measured values are stored. Medians, intervals and findings are computed from them when
//! they are shown, so that an old result can be looked at with better statistics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlannedPoint};
use crate::scenario::Scenario;

/// Version of the document; another one is refused.
pub const FORMAT: u32 = 1;

/// The metric that says how much was really offered, where a load has a rate.
pub const OFFERED: &str = "offered";

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Where and with what it was measured.
    pub manifest: Manifest,
    /// What was asked for, so that it can be run again.
    pub scenario: Scenario,
    /// One for each combination of the axes, in the order of the scenario.
    pub points: Vec<Point>,
    /// Systems that could not take part, and why.
    pub absent: Vec<Absent>,
    /// Why the run ended early; `None` when it is whole.
    pub partial: Option<String>,
}

/// Where and with what a run was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// RFC 3339, UTC.
    pub started: String,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Commit of the tree that was built, with `-dirty` when files were changed.
    pub commit: String,
    /// Kernel release.
    pub kernel: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Count of processors.
    pub cpus: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Everything else about the machine that may matter, by name: sysctls, mitigations,
    /// governors, the load before the run.
    pub facts: BTreeMap<String, String>,
    /// What each system says of itself, by its name: its version, offloads, devices.
    #[serde(default)]
    pub systems: BTreeMap<String, BTreeMap<String, String>>,
}

/// One combination of the axes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Value of each axis by its name.
    pub axes: BTreeMap<String, String>,
    /// What each system came to, in the order in which they took turns.
    pub systems: Vec<SystemSamples>,
}

/// The measurements of one system at one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemSamples {
    /// Name of the system, as in the scenario.
    pub system: String,
    /// In the order in which they were taken; the warm-up is not among them.
    pub samples: Vec<Taken>,
    /// Why there are fewer samples than asked for.
    pub failure: Option<String>,
}

/// A measurement and when it was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// The round, from 0. Measurements of the same round and point are pairs.
    pub round: u32,
    /// What was measured.
    #[serde(flatten)]
    pub sample: Sample,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The figures, the main one first.
    pub metrics: Vec<Metric>,
    /// Latency distribution where the measure has one: quantile (0 to 1) and microseconds.
    pub latency: Vec<(f64, f64)>,
    /// CPU seconds by who spent them: sender, receiver, switch (each process by name), kernel.
    pub cpu: BTreeMap<String, f64>,
    /// What makes the figures doubtful.
    pub flags: Vec<Flag>,
    /// On which CPUs it ran, pinned or free, by who: sender, receiver, switch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, String>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What it is, such as `throughput`.
    pub name: String,
    /// Its unit, such as `Gbit/s`.
    pub unit: String,
    /// Which direction is good.
    pub better: Better,
    /// The figure.
    pub value: f64,
}

/// Which direction of a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// More is better.
    More,
    /// Less is better.
    Less,
}

/// What makes a sample doubtful.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// The generator could not offer the load that was asked for: the system may do better.
    GeneratorLimited,
    /// The receiver itself lost frames in its socket queue.
    ReceiverLimited,
    /// Frames came out of order.
    Reordered,
    /// Frames came twice.
    Duplicated,
    /// The search for a rate ended at the highest rate that it may try.
    CeilingReached,
    /// Even the lowest value that a search may try failed: the figure is 0.
    FloorReached,
}

/// A system that could not take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// Its name.
    pub system: String,
    /// Why, and what would help.
    pub reason: String,
}

impl Results {
    /// The document of a run that has not measured anything yet.
    pub fn empty(plan: &Plan, manifest: Manifest) -> Self {
        let point = |point: &PlannedPoint| Point {
            axes: point.axes.clone(),
            systems: Vec::new(),
        };
        Self {
            format: FORMAT,
            manifest,
            scenario: plan.scenario.clone(),
            points: plan.points.iter().map(point).collect(),
            absent: Vec::new(),
            partial: None,
        }
    }
}

impl Metric {
    /// A figure of which more is better.
    pub fn more(name: &str, unit: &str, value: f64) -> Self {
        Self::new(name, unit, Better::More, value)
    }

    /// A figure of which less is better.
    pub fn less(name: &str, unit: &str, value: f64) -> Self {
        Self::new(name, unit, Better::Less, value)
    }

    fn new(name: &str, unit: &str, better: Better, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            better,
            value,
        }
    }
}
