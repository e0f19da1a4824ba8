//! From the text of a scenario to the list of points that a run visits, or to a clear refusal.
//!
//! Everything that can be known to be wrong is refused here, before anything is started, with what
//! the kernel lacks for every system alike. What is a system's own (that it is absent, or cannot do
//! the topology) is not: the run names it and goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dataplane::WORKERS_MAX;
use dataplane_port::BATCH_MAX;

use crate::core_scale::{SESSIONS_MAX, STATIONS_MAX};
use crate::frame_size::{FRAME_OVERHEAD, FrameSize};
use crate::measure::addresses::ADDRESSES_MAX;
use crate::measure::{FLOWS_MAX, FRAME_SIZE_MIN, Scale, congestion};
use crate::scenario::{Instances, Load, MeasureName, Scenario};
use crate::system::{BackendName, Setup, Shape, SystemName, WaitingMode};

/// Points of one scenario: with three systems and five rounds that is over an hour.
pub const POINTS_MAX: usize = 256;
/// Rounds of one point.
pub const REPEATS_MAX: u32 = 99;
/// Sandboxes on one switch: the product's own goal.
pub const PORTS_MAX: u16 = 2_000;
/// Longest measurement, in milliseconds.
pub const DURATION_MS_MAX: u64 = 60_000;
/// Shortest measurement, in milliseconds: ten ticks of the kernel's CPU accounting.
pub const DURATION_MS_MIN: u64 = 100;
/// Most round trips of one measurement.
pub const ROUND_TRIPS_MAX: u32 = 10_000_000;
/// Shortest trial of RFC 2544, in milliseconds: some scheduler periods.
pub const TRIAL_MS_MIN: u64 = 100;
/// Longest trial of RFC 2544, in milliseconds: what it asks for.
pub const TRIAL_MS_MAX: u64 = 60_000;
/// Finest resolution of a search: a hundredth of what rounds differ by.
pub const RESOLUTION_MIN: f64 = 0.0001;
/// Coarsest resolution of a search: nearly the step of its climb.
pub const RESOLUTION_MAX: f64 = 0.5;
/// Largest share of frames that may be lost: the other half is all that came.
pub const LOSS_MAX: f64 = 0.5;
/// Longest burst, in frames: minutes of the slowest system's time.
pub const BURST_MAX: u32 = 10_000_000;
/// Sizes of frames on Ethernet: RFC 2544 section 9.1.
const RFC2544_SIZES: [FrameSize; 7] = [
    FrameSize::Bytes(64),
    FrameSize::Bytes(128),
    FrameSize::Bytes(256),
    FrameSize::Bytes(512),
    FrameSize::Bytes(1_024),
    FrameSize::Bytes(1_280),
    FrameSize::Bytes(1_518),
];
/// Highest rate, in frames a second: ten times what a core can send.
pub const RATE_MAX: f64 = 1e8;
/// Smallest MTU: what IPv6 asks for, so that every topology can use it.
const MTU_MIN: u16 = 1_280;
/// Largest MTU that Linux gives a TAP or a veth.
const MTU_MAX: u16 = 65_521;
/// Longest scenario text, in bytes.
const TEXT_SIZE_MAX: usize = 1 << 20;
/// Longest discarded measurement before the first one that counts.
const WARM_UP_MAX: Duration = Duration::from_millis(300);

/// What a trial takes beside its own time: its warm-up, and waiting for silence.
const TRIAL_AROUND: Duration = Duration::from_millis(200);
/// Trials of a discarded search are this short at most.
const WARM_UP_TRIAL_MS: u64 = TRIAL_MS_MIN;
/// Frames of a discarded burst at most.
const WARM_UP_BURST: u32 = 10_000;

/// Addresses of a discarded trial at most.
const WARM_UP_ADDRESSES: u32 = 256;

/// Sandboxes of a star or a mesh whose scenario does not say.
const STAR_PORTS_DEFAULT: u16 = 8;
/// MTU of scenarios that do not say.
pub const MTU_DEFAULT: u16 = 1_500;

/// Why a scenario is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// Line of the text, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A scenario that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What it was made from.
    pub scenario: Scenario,
    /// In the order in which they are visited.
    pub points: Vec<PlannedPoint>,
}

/// One combination of the axes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedPoint {
    /// The values of the axes that the scenario varies, by name.
    pub axes: BTreeMap<String, String>,
    /// What systems are set up with.
    pub setup: Setup,
    /// Flows side by side.
    pub flows: u16,
    /// Bytes of its frames, their check sequence included.
    pub frame_size: FrameSize,
    /// What the core in memory has to remember.
    pub scale: Scale,
    /// Congestion control of TCP; `None` is the machine's default.
    pub congestion: Option<String>,
}

/// Reads a scenario and plans it.
///
/// # Errors
/// Names the line and the key, and for an unknown word the nearest known one.
pub fn read(text: &str) -> Result<Plan, Refused> {
    if text.len() > TEXT_SIZE_MAX {
        return Err(Refused {
            line: None,
            message: format!(
                "{} bytes are no scenario; at most {TEXT_SIZE_MAX} are read",
                text.len()
            ),
        });
    }
    let scenario: Scenario = toml::from_str(text).map_err(|error| refused_by_toml(text, &error))?;
    plan(scenario).map_err(|(key, message)| Refused {
        line: line_of_key(text, key),
        message,
    })
}

/// The points of a scenario.
///
/// # Errors
/// The key that is wrong, and why.
pub fn plan(scenario: Scenario) -> Result<Plan, (&'static str, String)> {
    check_systems(&scenario)?;
    check_load(&scenario)?;
    check_axes(&scenario)?;
    let points = cross(&scenario);
    check_points(&scenario, &points)?;
    Ok(Plan { scenario, points })
}

impl Plan {
    /// Who takes part in each round: every system, and the baseline once more.
    pub fn contestants(&self) -> Vec<Contestant> {
        let named = |system: &SystemName| Contestant {
            label: word(system),
            system: *system,
        };
        let mut all: Vec<_> = self.scenario.systems.iter().map(named).collect();
        if self.scenario.noise_floor {
            all.push(Contestant {
                label: AGAIN.to_owned(),
                system: self.scenario.baseline(),
            });
        }
        all
    }

    /// Measurements of the whole run, warm-ups not counted.
    pub fn measurements(&self) -> usize {
        self.points.len() * self.scenario.repeats as usize * self.contestants().len()
    }

    /// About how long the run takes when every system takes part.
    pub fn estimated(&self) -> Duration {
        let load = &self.scenario.load;
        let one = measurement_time(self.scenario.measure, load);
        let start = Duration::from_millis(600);
        let each = match self.scenario.instances {
            Instances::Fresh => one + one.min(WARM_UP_MAX) + start,
            Instances::Kept => one,
        };
        each * u32::try_from(self.measurements()).unwrap_or(u32::MAX)
    }
}

/// The load of the discarded measurement that precedes the first one of an instance.
pub fn warm_up(load: Load) -> Load {
    let duration_ms = load.duration_ms.min(WARM_UP_MAX.as_millis() as u64);
    Load {
        duration_ms,
        warm_up_ms: load.warm_up_ms.min(duration_ms / 3),
        round_trips: load.round_trips.min(500),
        trial_ms: load.trial_ms.min(WARM_UP_TRIAL_MS),
        resolution: RESOLUTION_MAX,
        burst_max: load.burst_max.min(WARM_UP_BURST),
        addresses: load.addresses.min(WARM_UP_ADDRESSES),
        addresses_max: load.addresses_max.min(WARM_UP_ADDRESSES),
        ..load
    }
}

/// Who takes part in each round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contestant {
    /// Its name in results.
    pub label: String,
    /// What it is.
    pub system: SystemName,
}

/// What the baseline is called when it takes part the second time.
pub const AGAIN: &str = "baseline again";

/// What one measurement takes, roughly.
fn measurement_time(measure: MeasureName, load: &Load) -> Duration {
    let duration = Duration::from_millis(load.duration_ms + load.warm_up_ms);
    match measure {
        // A search tries about eight rates.
        MeasureName::FramesAtLoss => duration * 8,
        // A search for two rates makes about thirty trials, and waits after each for what is on
        // its way.
        MeasureName::Rfc2544Throughput => trial(load) * 30,
        MeasureName::Rfc2544Latency => trial(load) * 20,
        MeasureName::Rfc2544BackToBack | MeasureName::Rfc2889LearningRate => TRIAL_AROUND * 25,
        MeasureName::Rfc2889Broadcast => trial(load) * 31,
        // Each address is learned and tested, by a climb and a narrowing.
        MeasureName::Rfc2889Capacity => {
            let once = f64::from(load.addresses_max) / load.rate;
            TRIAL_AROUND * 20 + Duration::from_secs_f64(4.0 * once)
        }
        MeasureName::RoundTrip => Duration::from_micros(u64::from(load.round_trips) * 50),
        MeasureName::TcpBulk
        | MeasureName::Frames
        | MeasureName::Connections
        | MeasureName::CoreFrames
        | MeasureName::Idle => duration,
    }
}

/// What a trial takes with what is around it.
fn trial(load: &Load) -> Duration {
    Duration::from_millis(load.trial_ms) + TRIAL_AROUND
}

type Check = Result<(), (&'static str, String)>;

fn check(holds: bool, key: &'static str, message: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err((key, message())) }
}

fn check_systems(scenario: &Scenario) -> Check {
    let name = &scenario.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    check(
        !name.is_empty() && name.len() <= 64 && name.chars().all(plain),
        "name",
        || format!("'{name}' cannot name a file; use letters, digits, '-' and '_', at most 64"),
    )?;
    check(!scenario.systems.is_empty(), "systems", || {
        "nothing to compare; list at least one system".to_owned()
    })?;
    check(distinct(&scenario.systems), "systems", || {
        "a system is listed twice; each takes part once".to_owned()
    })?;
    check(
        scenario.systems.contains(&scenario.baseline()),
        "baseline",
        || "the baseline does not take part; add it to `systems`".to_owned(),
    )?;
    let repeats = scenario.repeats;
    check((3..=REPEATS_MAX).contains(&repeats), "repeats", || {
        format!("{repeats} repeats; give 3 to {REPEATS_MAX} (a finding needs 5)")
    })
}

fn check_load(scenario: &Scenario) -> Check {
    let load = &scenario.load;
    check(
        (DURATION_MS_MIN..=DURATION_MS_MAX).contains(&load.duration_ms),
        "duration-ms",
        || {
            format!(
                "{} ms; give {DURATION_MS_MIN} to {DURATION_MS_MAX}",
                load.duration_ms
            )
        },
    )?;
    check(load.warm_up_ms < load.duration_ms, "warm-up-ms", || {
        "the warm-up leaves nothing to measure; make it shorter than duration-ms".to_owned()
    })?;
    let rates = 1.0..=RATE_MAX;
    check(rates.contains(&load.rate), "rate", || {
        format!("{} frames a second; give 1 to {RATE_MAX:e}", load.rate)
    })?;
    check(rates.contains(&load.rate_max), "rate-max", || {
        format!("{} frames a second; give 1 to {RATE_MAX:e}", load.rate_max)
    })?;
    for (key, loss) in [
        ("loss-max", load.loss_max),
        ("pdr-loss-max", load.pdr_loss_max),
    ] {
        check((0.0..=LOSS_MAX).contains(&loss), key, || {
            format!("a loss of {loss} cannot be asked for; give 0 to {LOSS_MAX}")
        })?;
    }
    check(
        (TRIAL_MS_MIN..=TRIAL_MS_MAX).contains(&load.trial_ms),
        "trial-ms",
        || {
            format!(
                "a trial of {} ms; give {TRIAL_MS_MIN} to {TRIAL_MS_MAX}",
                load.trial_ms
            )
        },
    )?;
    check(
        (RESOLUTION_MIN..=RESOLUTION_MAX).contains(&load.resolution),
        "resolution",
        || {
            format!(
                "a resolution of {}; give {RESOLUTION_MIN} to {RESOLUTION_MAX}",
                load.resolution
            )
        },
    )?;
    for (key, count) in [
        ("addresses", load.addresses),
        ("addresses-max", load.addresses_max),
    ] {
        check((1..=ADDRESSES_MAX).contains(&count), key, || {
            format!("{count} addresses; give 1 to {ADDRESSES_MAX}")
        })?;
    }
    check(
        (1..=BURST_MAX).contains(&load.burst_max),
        "burst-max",
        || format!("bursts of {} frames; give 1 to {BURST_MAX}", load.burst_max),
    )?;
    check(
        (100..=ROUND_TRIPS_MAX).contains(&load.round_trips),
        "round-trips",
        || {
            format!(
                "{} round trips; give 100 to {ROUND_TRIPS_MAX}",
                load.round_trips
            )
        },
    )
}

/// Axes that make no difference, or make no sense, for what is measured.
fn check_axes(scenario: &Scenario) -> Check {
    let (axes, measure) = (&scenario.axes, scenario.measure);
    let ours = scenario.systems.iter().any(|system| system.is_causeway());
    let chosen = scenario.systems.contains(&SystemName::Causeway);
    check(chosen || axes.backend.is_empty(), "backend", || {
        "only causeway has `backend`, and it does not take part; add it to `systems`".to_owned()
    })?;
    for (key, varied) in [
        ("workers", !axes.workers.is_empty()),
        ("batch", !axes.batch.is_empty()),
        ("waiting", !axes.waiting.is_empty()),
    ] {
        check(ours || !varied, key, || {
            format!("only causeway has `{key}`, and it does not take part; add it to `systems`")
        })?;
    }
    let tcp = matches!(
        measure,
        MeasureName::TcpBulk | MeasureName::RoundTrip | MeasureName::Connections
    );
    check(tcp || axes.congestion.is_empty(), "congestion", || {
        format!("{} does not use TCP; remove `congestion`", word(&measure))
    })?;
    let datagrams = measure.sends_frames();
    check(
        datagrams || axes.frame_size.is_empty(),
        "frame-size",
        || {
            format!(
                "{} does not choose the size of its frames; vary `mtu`, or measure frames",
                word(&measure)
            )
        },
    )?;
    let one = measure == MeasureName::Idle || measure.ports_min().is_some();
    check(!one || axes.flows.is_empty(), "flows", || {
        format!("{} has no choice of flows; remove `flows`", word(&measure))
    })?;
    let switched = matches!(scenario.topology, Shape::Star | Shape::Mesh);
    check(
        switched || measure.ports_min().is_none(),
        "topology",
        || {
            format!(
                "{} is of many ports on one switch; use topology = \"star\"",
                word(&measure)
            )
        },
    )?;
    check(switched || axes.ports.is_empty(), "ports", || {
        "only a star or a mesh has a choice of ports; use topology = \"star\"".to_owned()
    })?;
    check_core(scenario)?;
    check_values(scenario)
}

/// The core in memory has axes of its own, and none of those of devices.
fn check_core(scenario: &Scenario) -> Check {
    let axes = &scenario.axes;
    let name = word(&MeasureName::CoreFrames);
    if scenario.measure != MeasureName::CoreFrames {
        let of_core = [
            ("stations", axes.stations.is_empty()),
            ("sessions", axes.sessions.is_empty()),
        ];
        return of_core.into_iter().try_for_each(|(key, absent)| {
            check(absent, key, || {
                format!("only {name} has `{key}`; remove it, or measure that")
            })
        });
    }
    check(
        scenario.systems == [SystemName::Causeway],
        "systems",
        || format!("{name} is of causeway's core alone; use systems = [\"causeway\"]"),
    )?;
    for (key, absent) in [
        ("workers", axes.workers.is_empty()),
        ("backend", axes.backend.is_empty()),
        ("batch", axes.batch.is_empty()),
        ("waiting", axes.waiting.is_empty()),
        ("mtu", axes.mtu.is_empty()),
        ("gso", axes.gso.is_empty()),
    ] {
        check(absent, key, || {
            format!("{name} is in memory, without `{key}`; remove it")
        })?;
    }
    let bridged = axes.ports.is_empty() && axes.stations.is_empty();
    check(axes.sessions.is_empty() || bridged, "sessions", || {
        "frames of sessions are routed, whatever `ports` and `stations` are; split the scenario"
            .to_owned()
    })
}

/// Single values that cannot be, whatever the others are.
fn check_values(scenario: &Scenario) -> Check {
    let axes = &scenario.axes;
    let lists = [
        ("ports", &axes.ports, 2, PORTS_MAX),
        ("workers", &axes.workers, 1, WORKERS_MAX as u16),
        ("batch", &axes.batch, 1, BATCH_MAX as u16),
        ("flows", &axes.flows, 1, FLOWS_MAX),
        ("mtu", &axes.mtu, MTU_MIN, MTU_MAX),
    ];
    for (key, values, least, most) in lists {
        let wrong = values.iter().find(|v| !(least..=most).contains(*v));
        if let Some(wrong) = wrong {
            return Err((key, format!("`{key}` {wrong}; give {least} to {most}")));
        }
        check(distinct(values), key, || twice(key))?;
    }
    let scales = [
        ("stations", &axes.stations, 1, STATIONS_MAX),
        ("sessions", &axes.sessions, 0, SESSIONS_MAX),
    ];
    for (key, values, least, most) in scales {
        let wrong = values.iter().find(|v| !(least..=most).contains(*v));
        if let Some(wrong) = wrong {
            return Err((key, format!("`{key}` {wrong}; give {least} to {most}")));
        }
        check(distinct(values), key, || twice(key))?;
    }
    let too_small = axes.frame_size.iter().find_map(|size| match size {
        FrameSize::Bytes(bytes) if *bytes < FRAME_SIZE_MIN => Some(bytes),
        FrameSize::Bytes(_) | FrameSize::Imix | FrameSize::Genome(_) => None,
    });
    if let Some(bytes) = too_small {
        let most = u16::MAX;
        let message = format!("`frame-size` {bytes}; give {FRAME_SIZE_MIN} to {most}");
        return Err(("frame-size", message));
    }
    check(distinct(&axes.frame_size), "frame-size", || {
        twice("frame-size")
    })?;
    check(distinct(&axes.backend), "backend", || twice("backend"))?;
    check(distinct(&axes.gso), "gso", || twice("gso"))?;
    check(distinct(&axes.waiting), "waiting", || twice("waiting"))?;
    check(distinct(&axes.congestion), "congestion", || {
        twice("congestion")
    })?;
    let absent = axes.congestion.iter().find(|name| !congestion::known(name));
    match absent {
        Some(name) => Err((
            "congestion",
            format!(
                "this kernel has no congestion control '{name}'; it has {}",
                congestion::available()
            ),
        )),
        None => Ok(()),
    }
}

fn twice(key: &str) -> String {
    format!("a value of `{key}` is listed twice; each is one point")
}

/// Combinations that cannot be, and too many of them.
fn check_points(scenario: &Scenario, points: &[PlannedPoint]) -> Check {
    check(points.len() <= POINTS_MAX, "axes", || {
        format!(
            "{} points; at most {POINTS_MAX}: shorten an axis or split the scenario",
            points.len()
        )
    })?;
    let ports_min = scenario.measure.ports_min().unwrap_or_default();
    for point in points {
        let ports = point.setup.ports;
        check(ports >= ports_min, "ports", || {
            format!(
                "`ports` {ports}; {} takes {ports_min} to {PORTS_MAX}",
                word(&scenario.measure)
            )
        })?;
    }
    let datagrams = scenario.measure.sends_frames();
    for point in points.iter().filter(|_| datagrams) {
        let most = point.setup.mtu.saturating_add(FRAME_OVERHEAD);
        let sizes = point.frame_size.sizes(point.setup.mtu);
        let largest = sizes.into_iter().max().unwrap_or_default();
        check(largest <= most, "frame-size", || {
            format!(
                "frames of {largest} bytes do not fit an MTU of {}; at most {most}, or raise `mtu`",
                point.setup.mtu
            )
        })?;
    }
    Ok(())
}

fn distinct<T: PartialEq>(values: &[T]) -> bool {
    let mut rest = values;
    while let [first, others @ ..] = rest {
        if others.contains(first) {
            return false;
        }
        rest = others;
    }
    true
}

/// Every combination of the axes; the last axis changes fastest.
fn cross(scenario: &Scenario) -> Vec<PlannedPoint> {
    let axes = &scenario.axes;
    let ports = match scenario.topology {
        Shape::Star | Shape::Mesh => STAR_PORTS_DEFAULT,
        Shape::Pair | Shape::NatOut | Shape::PortForward => 2,
    };
    let plain = PlannedPoint {
        axes: BTreeMap::new(),
        setup: Setup {
            shape: scenario.topology,
            ports,
            mtu: MTU_DEFAULT,
            gso: true,
            workers: Setup::default().workers,
            backend: BackendName::default(),
            batch: None,
            waiting: WaitingMode::default(),
        },
        flows: 1,
        frame_size: FrameSize::Bytes(FRAME_SIZE_MIN),
        scale: Scale::default(),
        congestion: None,
    };
    let points = vec![plain];
    let points = vary(points, "backend", &axes.backend, |p, v| {
        p.setup.backend = *v;
    });
    let points = vary(points, "waiting", &axes.waiting, |p, v| {
        p.setup.waiting = *v;
    });
    let points = vary(points, "batch", &axes.batch, |p, v| {
        p.setup.batch = Some(*v);
    });
    let points = vary(points, "gso", &axes.gso, |p, v| p.setup.gso = *v);
    let points = vary(points, "mtu", &axes.mtu, |p, v| p.setup.mtu = *v);
    let points = vary(points, "congestion", &axes.congestion, |p, v| {
        p.congestion = Some(v.clone());
    });
    let points = vary(points, "ports", &axes.ports, |p, v| p.setup.ports = *v);
    let points = vary(points, "workers", &axes.workers, |p, v| {
        p.setup.workers = *v;
    });
    let points = vary(points, "stations", &axes.stations, |p, v| {
        p.scale.stations = Some(*v);
    });
    let points = vary(points, "sessions", &axes.sessions, |p, v| {
        p.scale.sessions = Some(*v);
    });
    let points = vary(points, "flows", &axes.flows, |p, v| p.flows = *v);
    let frame_sizes = match axes.frame_size.is_empty() && scenario.measure.has_sizes_of_its_own() {
        true => &RFC2544_SIZES[..],
        false => &axes.frame_size,
    };
    vary(points, "frame-size", frame_sizes, |p, v| {
        p.frame_size = v.clone();
    })
}

/// Each point once for each value; an axis without values leaves them as they are. Stops soon
/// after [`POINTS_MAX`], which the caller refuses.
fn vary<T: serde::Serialize>(
    points: Vec<PlannedPoint>,
    name: &str,
    values: &[T],
    set: impl Fn(&mut PlannedPoint, &T),
) -> Vec<PlannedPoint> {
    if values.is_empty() {
        return points;
    }
    let with = |point: &PlannedPoint, value: &T| {
        let mut point = point.clone();
        set(&mut point, value);
        point.axes.insert(name.to_owned(), word(value));
        point
    };
    let each = points.iter();
    each.flat_map(|point| values.iter().map(move |value| with(point, value)))
        .take(POINTS_MAX * 64)
        .collect()
}

/// A value as scenarios write it, without quotes.
pub fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// What the TOML reader says, with its line, and with the nearest known word for an unknown one.
fn refused_by_toml(text: &str, error: &toml::de::Error) -> Refused {
    let message = error.message();
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = message
        .starts_with("unknown ")
        .then(|| words.next())
        .flatten();
    let nearest = unknown.and_then(|unknown| {
        let like = |word: &&str| (strsim::jaro_winkler(unknown, word) * 1000.0) as u32;
        words.max_by_key(like)
    });
    let message = match (unknown, nearest) {
        (Some(unknown), Some(nearest)) => {
            let kind = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            let known = message.split_once(", ").map_or("", |(_, known)| known);
            format!("unknown {kind} `{unknown}`; the nearest known is `{nearest}` ({known})")
        }
        _ => message.to_owned(),
    };
    let line = error
        .span()
        .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    Refused { line, message }
}

/// The line that sets a key.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start();
        let rest = line.strip_prefix(key).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('=')) || line.starts_with(&format!("[{key}]"))
    };
    text.lines().position(sets).map(|index| index + 1)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
