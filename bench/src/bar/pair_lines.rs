//! Lines 1 to 3: two sandboxes on one switch, and a hundred that are idle.

use super::contest::{self, BRIDGE, CAUSEWAY, Contest, Entrant, at_least, at_most};
use super::{Line, Options, modes};
use crate::measure::{Request, measure};
use crate::prototype::Prototype;
use crate::result::Metric;
use crate::scenario::{MeasureName, Placement};
use crate::summary::Series;
use crate::system::{self, BackendName, Setup, Shape, SystemName};

/// Learning switches in userspace.
const USERSPACE: [SystemName; 2] = [SystemName::OvsXdp, SystemName::Vde];
/// Ports of the idle line.
const IDLE_PORTS: u16 = 100;
/// Milliseconds that idleness is watched.
const IDLE_MS: u64 = 3_000;

/// The bridge, Causeway and its prototypes.
fn usual() -> Vec<Entrant> {
    let mut entrants = vec![BRIDGE, CAUSEWAY];
    entrants.extend(Prototype::TAPS.map(Entrant::Prototype));
    entrants
}

/// The prototypes by AF_XDP: with frames copied, and with memory in common.
fn xdp_prototypes() -> impl Iterator<Item = Entrant> {
    let all = [Prototype::XDP_COPYING, Prototype::XDP_SHARING];
    all.into_iter().flatten().map(Entrant::Prototype)
}

fn hold(
    options: &Options,
    what: &str,
    entrants: &[Entrant],
    request: &Request,
) -> anyhow::Result<Contest> {
    let setup = options.setup(Shape::Pair);
    contest::hold(options, what, &setup, entrants, request)
}

/// Line 1.
pub fn bulk(options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (congestion, least, stretch, cpu_least) in
        [("bbr", 0.60, 0.90, 1.2), ("cubic", 0.80, 1.0, 0.8)]
    {
        let mut request = Request::new(MeasureName::TcpBulk);
        request.congestion = Some(congestion.to_owned());
        let mut entrants = usual();
        let shown = congestion.replace("bbr", "BBR");
        if congestion == "bbr" {
            entrants.extend(USERSPACE.map(Entrant::System));
        }
        let name = format!("bulk TCP, {shown}: ratio to the bridge");
        let held = hold(options, &name, &entrants, &request)?;
        let wanted = at_least(1, &name, least, stretch);
        let mut line = held.line(wanted, "throughput", "Gbit/s", BRIDGE);
        let parted = held.modes(BRIDGE, "throughput");
        line.behind.extend(modes::shown(&parted, "Gbit/s"));
        if congestion == "cubic" {
            line.name = "bulk TCP, cubic: ratio to the bridge in its worst mode".to_owned();
            line.reached = modes::worst(&parted).map(|mode| mode.ratios.clone());
            if line.reached.is_none() {
                let why = "no mode of the bridge came up twice; give more --repeats";
                line.note = Some(why.to_owned());
            }
        }
        lines.push(line);
        lines.push(Line {
            number: 1,
            name: format!("bulk TCP, {shown}: CPU"),
            unit: "s/GB",
            more_is_better: false,
            least: Some(cpu_least),
            stretch: None,
            behind: held.medians("cpu", "s/GB"),
            reached: held.figure(CAUSEWAY, "cpu"),
            profiler: Some(held.profiler()),
            ..Line::default()
        });
        if congestion == "bbr" {
            let name = "bulk TCP, BBR: ratio to the best userspace switch";
            lines.push(match held.best_of(&USERSPACE, "throughput") {
                None => Line::unmeasured(1, name, &held.absent.join("; ")),
                Some(best) => held.line(at_least(1, name, 2.5, 4.0), "throughput", "Gbit/s", best),
            });
        }
    }
    lines.push(bulk_by_xdp(options)?);
    Ok(lines)
}

/// The same by AF_XDP, of which nothing is asked: what it gives for frames of the MTU's size, and what
/// it would if they were not copied.
fn bulk_by_xdp(options: &Options) -> anyhow::Result<Line> {
    let name = "bulk TCP, BBR, AF_XDP: ratio to the bridge";
    let setup = Setup {
        backend: BackendName::Xdp,
        ..options.setup(Shape::Pair)
    };
    let mut request = Request::new(MeasureName::TcpBulk);
    request.congestion = Some("bbr".to_owned());
    let mut entrants = vec![BRIDGE, CAUSEWAY];
    entrants.extend(xdp_prototypes());
    let held = contest::hold(options, name, &setup, &entrants, &request)?;
    let line = held.line(at_least(1, name, 0.0, 0.0), "throughput", "Gbit/s", BRIDGE);
    Ok(Line {
        least: None,
        stretch: None,
        ..line
    })
}

/// Line 2.
pub fn small_frames(options: &Options) -> anyhow::Result<Vec<Line>> {
    let name = "64 B small frames to a socket at <= 1 % loss, TAP: ratio to the bridge";
    let held = hold(
        options,
        name,
        &usual(),
        &Request::new(MeasureName::FramesAtLoss),
    )?;
    let wanted = at_least(2, name, 1.05, 1.25);
    let mut lines = vec![held.line(wanted, "throughput", "Mframes/s", BRIDGE)];
    lines.extend(small_frames_by_xdp(options)?);
    Ok(lines)
}

/// The same by AF_XDP, beside the switch that forwards by it too.
fn small_frames_by_xdp(options: &Options) -> anyhow::Result<[Line; 2]> {
    const OTHER: Entrant = Entrant::System(SystemName::OvsXdp);
    let name = "64 B small frames to a socket at <= 1 % loss, AF_XDP: ratio to the bridge";
    let beside = "64 B small frames to a socket at <= 1 % loss, AF_XDP: ratio to OVS by AF_XDP";
    let setup = Setup {
        backend: BackendName::Xdp,
        ..options.setup(Shape::Pair)
    };
    let request = Request::new(MeasureName::FramesAtLoss);
    let mut entrants = vec![BRIDGE, CAUSEWAY, OTHER];
    entrants.extend(xdp_prototypes());
    let held = contest::hold(options, name, &setup, &entrants, &request)?;
    let (figure, unit) = ("throughput", "Mframes/s");
    let other = match held.figure(OTHER, figure) {
        Some(_) => held.line(at_least(2, beside, 1.0, 1.2), figure, unit, OTHER),
        None => Line::unmeasured(2, beside, &held.absent.join("; ")),
    };
    let wanted = at_least(2, name, 1.3, 1.6);
    let mut line = held.line(wanted, figure, unit, BRIDGE);
    // Where the generator is at its end, what it costs the machine still tells one from another.
    line.behind.extend(held.medians("cpu", "ns of CPU/frame"));
    Ok([line, other])
}

/// Line 3, the latencies.
pub fn latency(options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (placement, name, least, stretch) in [
        (
            Placement::Together,
            "latency p50, ends on one CPU, switch on others: ratio to the bridge",
            2.5,
            1.4,
        ),
        (
            Placement::Apart,
            "latency p50, ends apart: ratio to the bridge",
            1.0,
            1.0,
        ),
    ] {
        let mut request = Request::new(MeasureName::RoundTrip);
        request.load.placement = placement;
        let held = hold(options, name, &usual(), &request)?;
        let mut line = held.line(at_most(3, name, least, stretch), "p50", "µs p50", BRIDGE);
        for (metric, unit) in [("p99", "µs p99"), ("p99.9", "µs p99.9")] {
            line.behind.extend(held.medians(metric, unit));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Line 3, idleness.
pub fn idle(options: &Options) -> anyhow::Result<Line> {
    let setup = Setup {
        ports: IDLE_PORTS,
        ..options.setup(Shape::Star)
    };
    let spin = std::time::Duration::from_micros(options.spin);
    let system = system::start_with(SystemName::Causeway, &setup, spin)?;
    let mut request = Request::new(MeasureName::Idle);
    request.load.duration_ms = IDLE_MS;
    let sample = measure(&request, &system)?;
    let share = sample
        .metrics
        .first()
        .map_or(f64::NAN, |Metric { value, .. }| *value);
    Ok(Line {
        number: 3,
        name: format!("idle with {IDLE_PORTS} ports: share of a core"),
        unit: "%",
        least: Some(1.0),
        reached: Some(Series {
            values: vec![share],
        }),
        ..Line::default()
    })
}
