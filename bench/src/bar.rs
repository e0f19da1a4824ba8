//! The performance bar: every line with its least, its stretch and what was reached.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::core_alone;
use crate::load::{self, Placement};
use crate::summary::{Series, quantile};
use crate::systems::{self, Pair, Tuning};

/// How the bar is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Measurements of each system in each line.
    pub repeats: usize,
    /// Only lines whose name contains this.
    pub only: Option<String>,
    /// Microseconds of spinning.
    pub spin: u64,
    /// Worker threads.
    pub workers: usize,
}

/// One line of the bar.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Number of the bar's line.
    pub number: u8,
    /// What is measured.
    pub name: &'static str,
    /// Unit of `reached`, `least` and `stretch`.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The least that is wanted.
    pub least: Option<f64>,
    /// What is aimed at.
    pub stretch: Option<f64>,
    /// What was measured; `None` when it is not built.
    pub reached: Option<Series>,
    /// The figures behind it: label, unit, medians.
    pub behind: Vec<(String, f64)>,
}

/// Idle ports of the idle line.
const IDLE_PORTS: u8 = 100;
/// No frame for this long is quiet.
const SETTLE_QUIET: Duration = Duration::from_secs(2);
/// Longest wait for quiet; the line is measured all the same, and shows it.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// How long idleness is watched.
const IDLE_TIME: Duration = Duration::from_secs(3);

/// Measures every line that is built.
///
/// # Errors
/// When a socket fails. Namespaces are gone then as well.
pub fn run(options: &Options) -> io::Result<Vec<Line>> {
    let tuning = Tuning {
        workers: options.workers,
        spin: options.spin,
    };
    let mut lines = Vec::new();
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    if wanted("bulk tcp") {
        lines.extend(bulk_lines(options, tuning)?);
    }
    if wanted("small frames") {
        lines.push(small_frames_line(options, tuning)?);
    }
    if wanted("latency") {
        lines.extend(latency_lines(options, tuning)?);
    }
    if wanted("idle") {
        lines.push(idle_line(tuning)?);
    }
    if wanted("nat") {
        lines.push(not_built(
            4,
            "NAT out and port-forward in, against nft and docker-proxy",
        ));
    }
    lines.extend(core_lines(options));
    if wanted("scale") {
        lines.push(not_built(
            6,
            "scale: 2,000 ports, a million sessions, 65,000 published ports",
        ));
    }
    Ok(lines)
}

fn progress(what: &str, repeat: usize, of: usize) {
    eprintln!("{what}: {} of {of}", repeat + 1);
}

/// Both systems, in turn, each measured `repeats` times.
fn in_turn(
    options: &Options,
    tuning: Tuning,
    what: &str,
    mut measure: impl FnMut(&Pair) -> io::Result<f64>,
) -> io::Result<(Series, Series)> {
    let (kernel, ours) = (systems::kernel_bridge(), systems::causeway(tuning));
    let (mut theirs, mut own) = (Series::default(), Series::default());
    for repeat in 0..options.repeats {
        progress(what, repeat, options.repeats);
        theirs.push(measure(&kernel)?);
        own.push(measure(&ours)?);
    }
    Ok((own, theirs))
}

fn bulk_lines(options: &Options, tuning: Tuning) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (congestion, name, cpu_name, least, stretch, cpu_least) in [
        (
            "bbr",
            "bulk TCP, BBR: ratio to the bridge",
            "bulk TCP, BBR: CPU",
            0.60,
            0.90,
            1.2,
        ),
        (
            "cubic",
            "bulk TCP, cubic: ratio to the bridge",
            "bulk TCP, cubic: CPU",
            0.80,
            1.0,
            0.8,
        ),
    ] {
        let mut cpu = (Series::default(), Series::default());
        let mut turn = 0;
        let (own, theirs) = in_turn(options, tuning, name, |pair| {
            let bulk = load::bulk(pair, congestion)?;
            let series = if turn % 2 == 0 {
                &mut cpu.1
            } else {
                &mut cpu.0
            };
            series.push(bulk.cpu_seconds_per_gb);
            turn += 1;
            Ok(bulk.gbits)
        })?;
        lines.push(Line {
            number: 1,
            name,
            unit: "x",
            more_is_better: true,
            least: Some(least),
            stretch: Some(stretch),
            behind: behind(&own, &theirs, "Gbit/s"),
            reached: Some(own.ratio(&theirs)),
        });
        lines.push(Line {
            number: 1,
            name: cpu_name,
            unit: "s/GB",
            more_is_better: false,
            least: Some(cpu_least),
            stretch: None,
            behind: behind(&cpu.0, &cpu.1, "s/GB"),
            reached: Some(cpu.0),
        });
    }
    Ok(lines)
}

fn small_frames_line(options: &Options, tuning: Tuning) -> io::Result<Line> {
    let name = "64 B frames to a socket at <= 1 % loss, TAP: ratio to the bridge";
    let (own, theirs) = in_turn(options, tuning, name, load::small_frames)?;
    Ok(Line {
        number: 2,
        name,
        unit: "x",
        more_is_better: true,
        least: Some(1.05),
        stretch: Some(1.25),
        behind: behind(&own, &theirs, "Mframes/s"),
        reached: Some(own.ratio(&theirs)),
    })
}

fn latency_lines(options: &Options, tuning: Tuning) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (placement, name, least, stretch) in [
        (
            Placement::Together,
            "latency p50, ends on one CPU: ratio to the bridge",
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
        let mut tails = (Vec::new(), Vec::new());
        let mut turn = 0;
        let (own, theirs) = in_turn(options, tuning, name, |pair| {
            let times = load::round_trips(pair, placement)?;
            let tail = if turn % 2 == 0 {
                &mut tails.1
            } else {
                &mut tails.0
            };
            tail.push((quantile(&times, 0.99), quantile(&times, 0.999)));
            turn += 1;
            Ok(quantile(&times, 0.5))
        })?;
        let mut figures = behind(&own, &theirs, "µs p50");
        for (label, tail) in [("Causeway", &tails.0), ("bridge", &tails.1)] {
            let median = |pick: fn(&(f64, f64)) -> f64| {
                quantile(&tail.iter().map(pick).collect::<Vec<_>>(), 0.5)
            };
            figures.push((format!("{label} µs p99"), median(|t| t.0)));
            figures.push((format!("{label} µs p99.9"), median(|t| t.1)));
        }
        lines.push(Line {
            number: 3,
            name,
            unit: "x",
            more_is_better: false,
            least: Some(least),
            stretch: Some(stretch),
            behind: figures,
            reached: Some(own.ratio(&theirs)),
        });
    }
    Ok(lines)
}

/// Waits until the sandboxes have stopped announcing themselves (duplicate address detection,
/// multicast reports), which is traffic and not idleness.
fn settle(rig: &tests::rig::Rig) {
    let deadline = Instant::now() + SETTLE_MAX;
    let mut quiet_since = (rig.dataplane.stats().rx, Instant::now());
    while quiet_since.1.elapsed() < SETTLE_QUIET && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let rx = rig.dataplane.stats().rx;
        if rx != quiet_since.0 {
            quiet_since = (rx, Instant::now());
        }
    }
}

fn idle_line(tuning: Tuning) -> io::Result<Line> {
    let rig = systems::idle(tuning, IDLE_PORTS);
    settle(&rig);
    let (start, before) = (Instant::now(), load::process_cpu_seconds()?);
    // Nothing is waited for but time itself: this line measures doing nothing.
    std::thread::sleep(IDLE_TIME);
    let cpu = load::process_cpu_seconds()? - before;
    let share = 100.0 * cpu / start.elapsed().as_secs_f64();
    drop(rig);
    Ok(Line {
        number: 3,
        name: "idle with 100 ports: share of a core",
        unit: "%",
        more_is_better: false,
        least: Some(1.0),
        stretch: None,
        behind: Vec::new(),
        reached: Some(Series {
            values: vec![share],
        }),
    })
}

fn core_lines(options: &Options) -> Vec<Line> {
    type Measure = fn() -> f64;
    let lines: [(&'static str, Measure, f64); 5] = [
        (
            "core: known unicast, 64 stations",
            core_alone::unicast_64,
            40.0,
        ),
        (
            "core: 1 M stations, uniform",
            core_alone::unicast_million_uniform,
            120.0,
        ),
        (
            "core: 1 M stations, Zipf(1.0)",
            core_alone::unicast_million_zipf,
            60.0,
        ),
        ("core: NAT hit", core_alone::nat_hit, 90.0),
        ("core: new NAT session", core_alone::nat_new_session, 700.0),
    ];
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let lines = lines.into_iter().filter(|(name, ..)| wanted(name));
    let measured = lines.map(|(name, measure, least)| {
        let mut reached = Series::default();
        for repeat in 0..options.repeats {
            progress(name, repeat, options.repeats);
            reached.push(measure());
        }
        Line {
            number: 5,
            name,
            unit: "ns/frame",
            more_is_better: false,
            least: Some(least),
            stretch: Some(least / 2.0),
            behind: Vec::new(),
            reached: Some(reached),
        }
    });
    measured.collect()
}

fn behind(own: &Series, theirs: &Series, unit: &str) -> Vec<(String, f64)> {
    vec![
        (format!("Causeway {unit}"), own.median()),
        (format!("bridge {unit}"), theirs.median()),
    ]
}

const fn not_built(number: u8, name: &'static str) -> Line {
    Line {
        number,
        name,
        unit: "",
        more_is_better: true,
        least: None,
        stretch: None,
        reached: None,
        behind: Vec::new(),
    }
}

impl Line {
    /// Whether the median reaches a mark.
    fn reaches(&self, mark: f64) -> Option<bool> {
        let median = self.reached.as_ref()?.median();
        Some(if self.more_is_better {
            median >= mark
        } else {
            median <= mark
        })
    }
}

/// Prints the lines as a table.
pub fn print(lines: &[Line]) {
    println!("{}", machine());
    for line in lines {
        let Some(reached) = &line.reached else {
            println!("{}  {:<66} not built", line.number, line.name);
            continue;
        };
        let (low, high) = reached.spread();
        let mark = |mark: Option<f64>| mark.map_or_else(|| "-".to_owned(), |m| format!("{m:.2}"));
        let outcome = match (line.least.and_then(|m| line.reaches(m)), line.stretch) {
            (Some(false), _) => "SHORT",
            (_, Some(stretch)) if line.reaches(stretch) == Some(true) => "stretch",
            (_, _) => "reached",
        };
        println!(
            "{}  {:<66} {:>8.2} {:<9} [{low:.2} .. {high:.2}]  least {}, stretch {}  {outcome}",
            line.number,
            line.name,
            reached.median(),
            line.unit,
            mark(line.least),
            mark(line.stretch),
        );
        if !line.behind.is_empty() {
            let figures = line
                .behind
                .iter()
                .map(|(label, value)| format!("{label} {value:.2}"));
            println!("     {}", figures.collect::<Vec<_>>().join(", "));
        }
    }
}

/// The machine in a line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| {
        rest.trim_start_matches([':', ' ', '\t'])
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cpus} x {model}, Linux {}; medians of paired runs, spread in brackets",
        read("/proc/sys/kernel/osrelease").trim()
    )
}
