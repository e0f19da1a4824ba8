//! Line 6: big numbers of sessions and of published ports.

use std::time::Instant;

use anyhow::Context;
use tests::daemon::{self, Daemon};
use tests::lab::Lab;

use super::{Line, Options, progress};
use crate::core_alone;
use crate::summary::Series;

const MEMORY: &str = "scale: 1 M NAT sessions, memory";
const EXPIRY: &str = "scale: NAT sessions that one worker expires";
const PUBLISHING: &str = "scale: publishing 65,000 ports, command to acknowledged topology";
const DESCRIPTORS: &str = "scale: descriptors that 130,000 published ports take";

/// Ports published at once, of TCP and then of UDP.
const PUBLISHED: &str = "1-65000:1-65000";
/// Where the NAT's own ports begin, so that all of [`PUBLISHED`] are free.
const CONFIG: &str = "[nat]\nport_first = 65024\n";

/// Every line.
///
/// # Errors
/// When the daemon cannot be watched.
pub fn lines(options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut lines = sessions(options);
    lines.extend(publishing(options)?);
    let left =
        "scale: 2,000 ports, memory of stations, attaching the 1,000th, fairness of 32 ports";
    lines.push(Line::unmeasured(6, left, "not built"));
    Ok(lines)
}

fn line(name: &str, unit: &'static str, reached: Series) -> Line {
    Line {
        number: 6,
        name: name.to_owned(),
        unit,
        more_is_better: false,
        least: None,
        stretch: None,
        reached: Some(reached),
        behind: Vec::new(),
        note: None,
    }
}

/// A million sessions in memory, until the last has expired.
fn sessions(options: &Options) -> Vec<Line> {
    let (mut memory, mut rate) = (Series::default(), Series::default());
    let (mut opening, mut spike) = (Series::default(), Series::default());
    for repeat in 0..options.repeats {
        progress(MEMORY, repeat, options.repeats);
        let held = core_alone::million_sessions();
        memory.push(held.bytes as f64 * 1e-6);
        rate.push(held.expired_per_second * 1e-6);
        opening.push(held.opening_nanos);
        spike.push(held.tick_nanos_max * 1e-6);
    }
    vec![
        Line {
            least: Some(300.0),
            behind: vec![("opening ns/session".to_owned(), opening.median())],
            ..line(MEMORY, "MB", memory)
        },
        Line {
            more_is_better: true,
            behind: vec![("longest tick ms".to_owned(), spike.median())],
            ..line(EXPIRY, "M/s", rate)
        },
    ]
}

/// The real daemon, on a host of its own.
fn publishing(options: &Options) -> anyhow::Result<Vec<Line>> {
    if daemon::find_binary().is_none() {
        let why = "the program is not built: cargo build --release -p control";
        return Ok(vec![Line::unmeasured(6, PUBLISHING, why)]);
    }
    let (mut took, mut descriptors) = (Series::default(), Series::default());
    let mut program = Series::default();
    for repeat in 0..options.repeats {
        progress(PUBLISHING, repeat, options.repeats);
        let lab = Lab::new("bench-publish");
        let (host, _outside) = lab.host_and_outside();
        let web = lab.namespace("web");
        let config = lab.dir().join("config");
        std::fs::write(&config, CONFIG).context("cannot write a configuration")?;
        let config = config.to_str().context("a lab's path is text")?.to_owned();
        let daemon = Daemon::start(&lab, &host, &["--uplink", "up0", "--config", &config]);
        daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
        daemon.attach(&web, "web", "web", &[]);
        let before = descriptor_count(&daemon)?;
        took.push(millis(|| daemon.run(&["publish", "add", PUBLISHED, "web"])));
        let udp = format!("{PUBLISHED}/udp");
        daemon.run(&["publish", "add", &udp, "web"]);
        descriptors.push(descriptor_count(&daemon)? - before);
        program.push(millis(|| daemon.run(&["port", "web"])));
    }
    Ok(vec![
        Line {
            least: Some(50.0),
            behind: vec![(
                "a command that changes nothing, ms".to_owned(),
                program.median(),
            )],
            ..line(PUBLISHING, "ms", took)
        },
        Line {
            least: Some(0.0),
            ..line(DESCRIPTORS, "more", descriptors)
        },
    ])
}

fn millis<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let _ = work();
    start.elapsed().as_secs_f64() * 1e3
}

fn descriptor_count(daemon: &Daemon) -> anyhow::Result<f64> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?;
    Ok(open.count() as f64)
}
