//! A scenario: what is compared on which work, as a user writes it in TOML.

use serde::{Deserialize, Serialize};

use crate::frame_size::FrameSize;
use crate::measure::addresses;
use crate::system::{BackendName, Shape, SystemName, WaitingMode};

/// What is compared on which work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// Its name, which result files are called after.
    pub name: String,
    /// What it shows, for the report.
    #[serde(default)]
    pub about: String,
    /// How the ends are connected.
    pub topology: Shape,
    /// What is measured.
    pub measure: MeasureName,
    /// What is compared.
    pub systems: Vec<SystemName>,
    /// What the others are compared with; the first system when absent.
    #[serde(default)]
    pub baseline: Option<SystemName>,
    /// Measurements of each system at each point.
    #[serde(default = "repeats_default")]
    pub repeats: u32,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Whether the baseline takes part a second time, which gives the noise floor.
    #[serde(default = "noise_floor_default")]
    pub noise_floor: bool,
    /// How long a system lives.
    #[serde(default)]
    pub instances: Instances,
    /// Details of the load.
    #[serde(default)]
    pub load: Load,
    /// What is varied; every combination is a point.
    #[serde(default)]
    pub axes: Axes,
}

const fn repeats_default() -> u32 {
    5
}

const fn noise_floor_default() -> bool {
    true
}

/// How long a system lives at a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instances {
    /// Started for each measurement and stopped after it: nothing else runs beside it, and how one
    /// instance differs from the next is part of the spread.
    #[default]
    Fresh,
    /// Started once at each point, all side by side: for what takes long to set up. Systems that
    /// spin when idle take CPU time from the others.
    Kept,
}

impl Scenario {
    /// What the others are compared with.
    pub fn baseline(&self) -> SystemName {
        self.baseline.unwrap_or_else(|| {
            *self
                .systems
                .first()
                .expect("a scenario that was read has systems")
        })
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeasureName {
    /// Bytes by TCP streams.
    TcpBulk,
    /// Datagrams at a fixed rate, by an open loop: loss, order, duplicates, one-way latency.
    Frames,
    /// The highest rate of datagrams with no more than `loss-max` lost, by search.
    FramesAtLoss,
    /// The rates of which nothing is lost (NDR) and no more than `pdr-loss-max` (PDR), by search: RFC
    /// 2544 section 26.1.
    Rfc2544Throughput,
    /// Latency at 10, 50 and 90 % of the PDR: RFC 2544 section 26.2.
    Rfc2544Latency,
    /// The longest burst of which nothing is lost: RFC 2544 section 26.4.
    Rfc2544BackToBack,
    /// How many addresses are cached: RFC 2889 section 5.7.
    Rfc2889Capacity,
    /// How fast addresses are learned: RFC 2889 section 5.8.
    Rfc2889LearningRate,
    /// Rates and latency of broadcast frames: RFC 2889 section 5.10.
    Rfc2889Broadcast,
    /// What a frame costs Causeway's core in memory, with no I/O, by what it has to remember.
    CoreFrames,
    /// Round trips of one byte, one after the other.
    RoundTrip,
    /// New TCP connections, one after the other per flow.
    Connections,
    /// CPU time with no traffic.
    Idle,
}

/// Details of the load; every time and count is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Load {
    /// Milliseconds of one measurement.
    pub duration_ms: u64,
    /// Milliseconds before it that are not counted.
    pub warm_up_ms: u64,
    /// Frames a second, for `frames`.
    pub rate: f64,
    /// Share of frames that may be lost, for `frames-at-loss`.
    pub loss_max: f64,
    /// Highest rate that a search tries, in frames a second.
    pub rate_max: f64,
    /// Round trips of one measurement.
    pub round_trips: u32,
    /// Milliseconds of one trial of RFC 2544 (which itself asks for 60,000).
    pub trial_ms: u64,
    /// Share of frames that may be lost at the PDR.
    pub pdr_loss_max: f64,
    /// How near to each other a search's last two values are, as a share.
    pub resolution: f64,
    /// Frames of the longest burst that is tried.
    pub burst_max: u32,
    /// Addresses of one trial of `rfc2889-learning-rate`.
    pub addresses: u32,
    /// Addresses that `rfc2889-capacity` tries at most.
    pub addresses_max: u32,
    /// Where the ends run.
    pub placement: Placement,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            duration_ms: 1_500,
            warm_up_ms: 300,
            rate: 100_000.0,
            loss_max: 0.01,
            rate_max: 4e6,
            round_trips: 10_000,
            trial_ms: 500,
            pdr_loss_max: 0.005,
            resolution: 0.02,
            burst_max: 1_000_000,
            addresses: 4_096,
            addresses_max: 65_536,
            placement: Placement::Free,
        }
    }
}

impl MeasureName {
    /// Whether it sends datagrams of a size that the scenario chooses.
    pub const fn sends_frames(self) -> bool {
        match self {
            Self::Frames
            | Self::FramesAtLoss
            | Self::Rfc2544Throughput
            | Self::Rfc2544Latency
            | Self::Rfc2544BackToBack
            | Self::Rfc2889Broadcast => true,
            Self::TcpBulk
            | Self::CoreFrames
            | Self::Rfc2889Capacity
            | Self::Rfc2889LearningRate
            | Self::RoundTrip
            | Self::Connections
            | Self::Idle => false,
        }
    }

    /// Whether an RFC says what sizes of frames it is made with: 2544 section 9.1, 2889 section 5.10.
    pub const fn has_sizes_of_its_own(self) -> bool {
        match self {
            Self::Rfc2544Throughput
            | Self::Rfc2544Latency
            | Self::Rfc2544BackToBack
            | Self::Rfc2889Broadcast => true,
            Self::Frames
            | Self::CoreFrames
            | Self::FramesAtLoss
            | Self::Rfc2889Capacity
            | Self::Rfc2889LearningRate
            | Self::TcpBulk
            | Self::RoundTrip
            | Self::Connections
            | Self::Idle => false,
        }
    }

    /// Ports that take part at least, of a switch that is between all of them; `None` where the
    /// topology does not matter.
    pub const fn ports_min(self) -> Option<u16> {
        match self {
            Self::Rfc2889Capacity | Self::Rfc2889LearningRate => Some(addresses::PORTS_MIN),
            Self::Rfc2889Broadcast | Self::CoreFrames => Some(2),
            Self::Frames
            | Self::FramesAtLoss
            | Self::Rfc2544Throughput
            | Self::Rfc2544Latency
            | Self::Rfc2544BackToBack
            | Self::TcpBulk
            | Self::RoundTrip
            | Self::Connections
            | Self::Idle => None,
        }
    }
}

/// Which CPUs the ends of a conversation run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Wherever the kernel puts them.
    #[default]
    Free,
    /// Both on CPU 0, the switch on the others.
    Together,
    /// The sender on CPU 0, the receiver on CPU 1.
    Apart,
}

/// What is varied. An empty list leaves the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Axes {
    /// Bytes of a frame, its check sequence included, or a mix of several sizes. Benchmarks of RFC
    /// 2544 have its seven sizes when none is given.
    pub frame_size: Vec<FrameSize>,
    /// Sandboxes on the switch.
    pub ports: Vec<u16>,
    /// Worker threads of Causeway.
    pub workers: Vec<u16>,
    /// How sandboxes are plugged into Causeway.
    pub backend: Vec<BackendName>,
    /// Frames of one batch of Causeway.
    pub batch: Vec<u16>,
    /// Flows side by side.
    pub flows: Vec<u16>,
    /// MTU of every interface.
    pub mtu: Vec<u16>,
    /// Segmentation offload of the sandboxes' interfaces.
    pub gso: Vec<bool>,
    /// How Causeway's workers wait.
    pub waiting: Vec<WaitingMode>,
    /// Stations that the core in memory knows.
    pub stations: Vec<u32>,
    /// NAT sessions of the core in memory, beside the one that is always there.
    pub sessions: Vec<u32>,
    /// Congestion control of TCP, such as `bbr` or `cubic`.
    pub congestion: Vec<String>,
}
