//! Line 6: big numbers of sessions, of published ports, of stations and of endpoints.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use control::cli::client::Client;
use serde_json::json;
use tests::daemon::{self, Daemon};
use tests::lab::{Lab, Namespace, block_on};
use tests::talk::Pinger;

use super::contest::{self, BRIDGE, CAUSEWAY};
use super::{Line, Options, Profiler, progress};
use crate::core_alone::{self, ManySessions};
use crate::held::{self, Table};
use crate::measure::Request;
use crate::profile::{self, Profile};
use crate::prototype::Attacher;
use crate::scenario::MeasureName;
use crate::summary::Series;
use crate::system::{Setup, Shape};

const MEMORY: &str = "scale: 1 M NAT sessions, memory";
const EXPIRY: &str = "scale: NAT sessions that one worker expires";
const PUBLISHING: &str = "scale: publishing 65,000 ports, command to acknowledged topology";
const DESCRIPTORS: &str = "scale: descriptors that 130,000 published ports take";

const STATIONS: &str = "scale: 1 M stations, memory";
const ATTACHING: &str = "scale: attaching the 1,000th endpoint, of the first";
const FIRST_PING: &str = "scale: the 1,000th endpoint, from the API's call to its first ping";
const DETACHING: &str = "scale: detaching 1,000 endpoints by one request";
const PORTS: &str = "scale: 2,000 ports on one network, memory of the daemon for each";
const NOT_BUILT: &str = "the program is not built: cargo build --release -p control";

const FAIRNESS: &str = "scale: 32 ports all to all, small flows, fairness of their shares";
/// Sandboxes that all send to all, a flow each way.
const MESH_PORTS: u16 = 32;
const MESH_FLOWS: u16 = MESH_PORTS * (MESH_PORTS - 1);
/// Datagrams a second that are offered to a mesh: more than any system carries, so that there is
/// something to share.
const MESH_RATE: f64 = 3e6;

/// Endpoints of one network.
const ENDPOINTS: usize = 2_000;
const THOUSANDTH: usize = 1_000;
/// Endpoints of which the median is taken, first ones and last ones.
const COMPARED: usize = 50;
/// Endpoints between two signs of life.
const PROGRESS_STEP: usize = 200;
/// "What the first did" allows for noise, and for nothing that grows with their number.
const ATTACHING_MAX: f64 = 1.25;
/// Milliseconds from the call to the first ping that are allowed.
const FIRST_PING_MAX: f64 = 20.0;
/// Endpoints that go by one request, and the seconds that it may take.
const DETACHED: usize = 1_000;
const DETACHING_MAX: f64 = 2.0;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const PING_MAX: Duration = Duration::from_secs(10);

/// Ports published at once, of TCP and then of UDP.
const PUBLISHED: &str = "1-65000:1-65000";
/// Where the NAT's own ports begin, so that all of [`PUBLISHED`] are free.
const CONFIG: &str = "[nat]\nport_first = 65024\n";

/// Every line.
///
/// # Errors
/// When the daemon cannot be watched.
pub fn lines(options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut lines = sessions(options)?;
    lines.extend(publishing(options)?);
    lines.push(stations(options)?);
    // Minutes of measuring are behind it, of other things.
    let attached = attaching();
    lines.extend(attached.unwrap_or_else(|error| vec![Line::failed(6, ATTACHING, &error)]));
    let shared = fairness(options);
    lines.push(shared.unwrap_or_else(|error| Line::failed(6, FAIRNESS, &error)));
    Ok(lines)
}

fn line(name: &str, unit: &'static str, reached: Series) -> Line {
    Line {
        number: 6,
        name: name.to_owned(),
        unit,
        reached: Some(reached),
        ..Line::default()
    }
}

/// A million sessions in memory, until the last has expired.
fn sessions(options: &Options) -> anyhow::Result<Vec<Line>> {
    let (mut memory, mut rate) = (Series::default(), Series::default());
    let (mut opening, mut spike) = (Series::default(), Series::default());
    for repeat in 0..options.repeats {
        progress(MEMORY, repeat, options.repeats);
        let held: ManySessions = held::of(Table::Sessions)?;
        memory.push(held.bytes as f64 * 1e-6);
        rate.push(held.expired_per_second * 1e-6);
        opening.push(held.opening_nanos);
        spike.push(held.tick_nanos_max * 1e-6);
    }
    Ok(vec![
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
    ])
}

/// A million stations in memory.
fn stations(options: &Options) -> anyhow::Result<Line> {
    let mut memory = Series::default();
    for repeat in 0..options.repeats {
        progress(STATIONS, repeat, options.repeats);
        memory.push(held::of::<u64>(Table::Stations)? as f64 * 1e-6);
    }
    Ok(line(STATIONS, "MB", memory))
}

/// Jain's index of what each flow of an overloaded mesh gets through, beside the kernel bridge's.
fn fairness(options: &Options) -> anyhow::Result<Line> {
    let setup = Setup {
        ports: MESH_PORTS,
        ..options.setup(Shape::Mesh)
    };
    let mut request = Request::new(MeasureName::Frames);
    request.flows = MESH_FLOWS;
    request.load.rate = MESH_RATE;
    let held = contest::hold(options, FAIRNESS, &setup, &[BRIDGE, CAUSEWAY], &request)?;
    let figures = [
        ("fairness", "Jain"),
        ("throughput", "Mframes/s"),
        ("loss", "%"),
    ];
    let behind = figures.map(|(metric, unit)| held.medians(metric, unit));
    Ok(Line {
        more_is_better: true,
        least: Some(0.95),
        behind: behind.into_iter().flatten().collect(),
        reached: held.figure(CAUSEWAY, "fairness"),
        profiler: Some(held.profiler()),
        ..line(FAIRNESS, "Jain", Series::default())
    })
}

/// The real daemon with a thousand endpoints, and with a thousand more, each there when it has pinged its
/// gateway. At either number some are attached in turns with the first ones of a daemon that has none yet,
/// because a machine does not do the same thing as fast now as a minute ago. Then a thousand go by one
/// request. Beside all of them some are attached without a daemon.
fn attaching() -> anyhow::Result<Vec<Line>> {
    if daemon::find_binary().is_none() {
        return Ok(vec![Line::unmeasured(6, ATTACHING, NOT_BUILT)]);
    }
    let lab = Lab::new("bench-plug");
    let mut crowd = Crowd::start()?;
    // What the kernel alone takes, when there are as many.
    let mut prototype = Attacher::new(&lab)?;
    let mut alone = vec![attached_alone(&lab, &mut prototype)?];
    let mut first = Series::default();
    for _ in 0..COMPARED {
        first.push(crowd.attach_next()?);
    }
    crowd.grow_to(THOUSANDTH - COMPARED)?;
    let thousandth = crowd.compare()?;
    alone.push(attached_alone(&lab, &mut prototype)?);
    crowd.grow_to(ENDPOINTS - COMPARED)?;
    let last = crowd.compare()?;
    alone.push(attached_alone(&lab, &mut prototype)?);
    let mut each = Series::default();
    each.push((resident_bytes(&crowd.daemon)? - crowd.memory_before) / ENDPOINTS as f64 * 1e-3);
    let names: Vec<String> = (0..DETACHED).map(endpoint_name).collect();
    let mut detached = Series::default();
    let start = Instant::now();
    block_on((crowd.client).create("/v1/detach", &json!({ "names": names })))?;
    detached.push(start.elapsed().as_secs_f64());
    Ok(vec![
        Line {
            behind: [
                ("the 1,000th ms", thousandth.took.median()),
                ("first ones beside it ms", thousandth.first.median()),
                ("the 2,000th ms", last.took.median()),
                ("first ones beside it ms", last.first.median()),
                ("of the first", last.ratio.median()),
                ("the very first ms", first.median()),
                ("prototype without a daemon, the first ones ms", alone[0]),
                ("prototype without a daemon, beside 1,000 ms", alone[1]),
                ("prototype without a daemon, beside 2,000 ms", alone[2]),
            ]
            .map(|(what, figure)| (what.to_owned(), figure))
            .into(),
            least: Some(ATTACHING_MAX),
            stretch: Some(1.0),
            profiler: Some(Profiler(Rc::new(|_| profile_of_attaching()))),
            ..line(ATTACHING, "x", thousandth.ratio)
        },
        Line {
            least: Some(FIRST_PING_MAX),
            ..line(FIRST_PING, "ms", thousandth.took)
        },
        Line {
            least: Some(DETACHING_MAX),
            ..line(DETACHING, "s", detached)
        },
        line(PORTS, "kB", each),
    ])
}

/// Where the time goes while a thousand grow by as many as are compared.
fn profile_of_attaching() -> anyhow::Result<Profile> {
    let mut crowd = Crowd::start()?;
    crowd.grow_to(THOUSANDTH)?;
    let (grown, profile) = profile::during(|| crowd.grow_to(THOUSANDTH + COMPARED))?;
    grown?;
    Ok(profile)
}

/// A daemon with a network, and the sandboxes that were attached to it.
struct Crowd {
    daemon: Daemon,
    client: Client,
    /// Resident bytes of the daemon when it had no endpoint.
    memory_before: f64,
    namespaces: Vec<Namespace>,
    lab: Lab,
}

/// Milliseconds of the last endpoints of a large network, and of the first ones of another.
#[derive(Default)]
struct Compared {
    took: Series,
    first: Series,
    ratio: Series,
}

impl Crowd {
    fn start() -> anyhow::Result<Self> {
        let lab = Lab::new("bench-attach");
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.64.0.0/16"]);
        Ok(Self {
            client: Client::new(&daemon.socket()),
            memory_before: resident_bytes(&daemon)?,
            daemon,
            namespaces: Vec::new(),
            lab,
        })
    }

    /// Milliseconds from the API's call to the first ping.
    fn attach_next(&mut self) -> anyhow::Result<f64> {
        let ns = sandbox(&self.lab);
        Pinger::allow(&ns);
        let path = ns.path();
        let number = self.namespaces.len();
        let request = json!({"netns": path, "network": "n", "name": endpoint_name(number)});
        let start = Instant::now();
        block_on(self.client.create("/v1/endpoints", &request))?;
        let answered = Pinger::open(&ns, GATEWAY.into()).ping(56, PING_MAX);
        let took = start.elapsed();
        ensure!(answered, "endpoint {number} does not reach its gateway");
        // The kernel has room for 1,024 neighbours of all namespaces together by its default.
        let (netlink, link) = (ns.netlink(), ns.link("eth0").index);
        block_on(netlink.remove_neighbour(link, GATEWAY.into()))?;
        self.namespaces.push(ns);
        Ok(took.as_secs_f64() * 1e3)
    }

    fn grow_to(&mut self, endpoints: usize) -> anyhow::Result<()> {
        for number in self.namespaces.len()..endpoints {
            if number % PROGRESS_STEP == 0 {
                progress(ATTACHING, number / PROGRESS_STEP, ENDPOINTS / PROGRESS_STEP);
            }
            self.attach_next()?;
        }
        Ok(())
    }

    /// Attaches some more, in turns with the first ones of another daemon.
    fn compare(&mut self) -> anyhow::Result<Compared> {
        let mut beside = Self::start()?;
        let mut compared = Compared::default();
        for _ in 0..COMPARED {
            let first = beside.attach_next()?;
            let took = self.attach_next()?;
            compared.first.push(first);
            compared.took.push(took);
            compared.ratio.push(took / first);
        }
        Ok(compared)
    }
}

/// A namespace without IPv6: without snooping, what each stack tells of its groups is flooded to all others.
fn sandbox(lab: &Lab) -> Namespace {
    let ns = lab.namespace("endpoint");
    for scope in ["all", "default"] {
        ns.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    ns
}

/// What the prototype takes for one, in milliseconds: the median of as many as are compared.
fn attached_alone(lab: &Lab, prototype: &mut Attacher) -> anyhow::Result<f64> {
    let mut took = Series::default();
    for number in 0..COMPARED {
        let address = format!("10.65.0.{}/24", 2 + number);
        took.push(prototype.attach(sandbox(lab), &address, "10.65.0.1")?);
    }
    Ok(took.median())
}

fn endpoint_name(number: usize) -> String {
    format!("e{number}")
}

/// The real daemon, on a host of its own.
fn publishing(options: &Options) -> anyhow::Result<Vec<Line>> {
    if daemon::find_binary().is_none() {
        return Ok(vec![Line::unmeasured(6, PUBLISHING, NOT_BUILT)]);
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

/// Memory of the daemon that is there (`proc(5)`).
fn resident_bytes(daemon: &Daemon) -> anyhow::Result<f64> {
    core_alone::resident_bytes_of(&daemon.pid().to_string()).context("the daemon's memory")
}

fn descriptor_count(daemon: &Daemon) -> anyhow::Result<f64> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?;
    Ok(open.count() as f64)
}
