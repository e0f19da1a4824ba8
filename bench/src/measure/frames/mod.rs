//! Datagrams by an open loop, and what became of each.
//!
//! # Theory of operation
//! The schedule is fixed before the first datagram: number `k` of all flows together belongs to
//! flow `k` modulo their count and is due when its burst is, the bursts being [`generator::TICK`]
//! apart. The generator never waits for an answer, a late one catches up, and latency counts from
//! when a datagram was *due*, so a system that stalls the generator pays for it (no coordinated
//! omission). Arrival is the kernel's time stamp, so the receiver need not run at that moment: it
//! sleeps between looks, because a wake-up for each datagram would cost more than the switch.
//!
//! What could not be sent by the end was never offered: every figure is of what was really sent,
//! and at a fixed rate that is a figure too. When all of it came, a flag says that the generator
//! was the bottleneck and the system may do better.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::tests::lab::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{self, sockopt};

use super::cpu::{Ends, Used};
use super::{FRAME_SIZE_MIN, MeasureError, Request, placement, refused};
use crate::result::{Flag, Metric, OFFERED, Sample};
use crate::scenario::{MeasureName, Placement};
use crate::system::{Path, System};

mod broadcast;
mod drops;
pub mod generator;
pub mod payload;
pub mod rates;
pub mod receiver;
pub mod rfc2544;
pub mod search;
pub mod way;

use self::generator::{Flow, Generator, Lane, Sent};
use self::payload::PAYLOAD_SIZE_MIN;
use self::receiver::{Arrivals, Receiver};
use self::way::Ways;

/// Bytes of a frame around a datagram's payload: Ethernet with its check sequence, IPv4, UDP.
const AROUND_PAYLOAD: u16 = 18 + 20 + 8;
const _: () = assert!((FRAME_SIZE_MIN - AROUND_PAYLOAD) as usize == PAYLOAD_SIZE_MIN);

/// Datagrams of one measurement at most: each has a bit in the receiver's memory, 32 MiB in all.
pub const FRAMES_MAX: f64 = (1 << 28) as f64;
/// Bytes that a socket may queue, as the kernel counts them: a tenth of a second.
const SOCKET_BUFFER_SIZE: usize = 64 << 20;
/// How long a flow may take to come through for the first time.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Pause between two greetings.
const GREETING_PAUSE: Duration = Duration::from_millis(2);
/// Share of the pace below which the generator has not kept to it, and share of what was sent from
/// which on it has come.
const OFFERED_LEAST: f64 = 0.98;

/// Sockets of every flow, with addresses resolved and translations made.
pub struct Course {
    /// One for each flow, connected: it sends the greeting, and keeps its port from others.
    clients: Vec<UdpSocket>,
    /// One for each place where a path ends, with its namespace.
    pub servers: Vec<(Namespace, UdpSocket)>,
    /// Which of the servers each path ends at.
    ends: Vec<usize>,
    /// One for each interface that a path begins with.
    lanes: Vec<Lane>,
    /// One for each client.
    flows: Vec<Flow>,
    /// Places that each datagram is to reach: one, or all servers.
    copies: usize,
    /// Bytes of the frames of each flow in turn.
    sizes: Vec<u16>,
    /// Names this measurement, so that datagrams of another are not taken for its.
    pub run: u32,
}

/// At which rate, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Datagrams a second, of all flows together.
    pub rate: f64,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub duration: Duration,
    /// Where the ends run.
    pub placement: Placement,
}

/// What a tester is to send.
#[derive(Clone, Copy, Debug)]
pub enum Offer {
    /// Datagrams at a pace.
    Paced(Pace),
    /// Datagrams with nothing between them.
    Burst {
        /// How many.
        frames: u64,
        /// Where the ends run.
        placement: Placement,
    },
}

/// What became of the datagrams of one offer.
pub struct Outcome {
    /// What was offered.
    pub sent: Sent,
    /// What came.
    pub arrived: Arrivals,
    /// Places that each datagram was to reach.
    pub copies: usize,
    /// Bytes of the frames of each flow in turn.
    pub sizes: Vec<u16>,
    /// Whether the generator kept to the pace.
    pub offered_all: bool,
    /// CPU seconds by who spent them, and in all.
    pub cpu: (BTreeMap<String, f64>, f64),
    /// What makes it doubtful.
    pub flags: Vec<Flag>,
}

impl Outcome {
    /// Share of the datagrams sent that did not come.
    pub fn loss(&self) -> f64 {
        match self.due() {
            0 => 0.0,
            due => 1.0 - self.arrived.unique as f64 / due as f64,
        }
    }

    /// Datagrams that should have come, at all places together.
    pub const fn due(&self) -> u64 {
        self.sent.frames * self.copies as u64
    }

    /// Datagrams a second that came, as a mean of the places that each was to reach.
    pub fn rate(&self) -> f64 {
        self.arrived.unique as f64 / self.copies as f64 / self.sent.seconds
    }

    /// Bits of frames a second that came, as a mean of those places.
    pub fn bits(&self) -> f64 {
        8.0 * self.arrived.bytes as f64 / self.copies as f64 / self.sent.seconds
    }

    /// Bytes of a frame that came, as a mean.
    pub fn mean_size(&self) -> f64 {
        self.arrived.bytes as f64 / self.arrived.unique as f64
    }
}

/// Datagrams at the load's rate.
pub fn frames(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut course = Course::open(request, system)?;
    let pace = Pace {
        rate: request.load.rate,
        warm_up: Duration::from_millis(request.load.warm_up_ms),
        duration: Duration::from_millis(request.load.duration_ms),
        placement: request.load.placement,
    };
    let outcome = course.run(system, Offer::Paced(pace))?;
    let mut sample = sample(&outcome);
    let latency = &outcome.arrived.latency;
    let quantile = |q| latency.value_at_quantile(q) as f64 * 1e-3;
    let lateness = outcome.sent.lateness.value_at_quantile(0.5) as f64 * 1e-3;
    sample.metrics.extend([
        Metric::more(OFFERED, "Mframes/s", outcome.sent.rate() * 1e-6),
        Metric::less("mean", "µs", latency.mean() * 1e-3),
        Metric::less("p50", "µs", quantile(0.5)),
        Metric::less("p99", "µs", quantile(0.99)),
        Metric::less("p99.9", "µs", quantile(0.999)),
        Metric::less("max", "µs", latency.max() as f64 * 1e-3),
        Metric::less("generator-late", "µs", lateness),
    ]);
    sample.latency = super::quantiles(latency);
    Ok(sample)
}

/// The figures that every measurement by datagrams has.
pub fn sample(outcome: &Outcome) -> Sample {
    let arrived = &outcome.arrived;
    let per_frame = match arrived.unique {
        0 => f64::NAN,
        frames => 1e9 * outcome.cpu.1 * outcome.copies as f64 / frames as f64,
    };
    let mut metrics = vec![
        Metric::more("throughput", "Mframes/s", outcome.rate() * 1e-6),
        Metric::less("loss", "%", 100.0 * outcome.loss()),
        Metric::less("cpu", "ns/frame", per_frame),
        Metric::more("bits", "Gbit/s", outcome.bits() * 1e-9),
        Metric::less("reordered", "frames", arrived.reordered as f64),
        Metric::less("duplicates", "frames", arrived.duplicates as f64),
    ];
    if outcome.sizes.len() > 1 {
        metrics.push(Metric::more("mean-size", "bytes", outcome.mean_size()));
    }
    if arrived.by_flow.len() > 1 {
        let rates: Vec<f64> = arrived.by_flow.iter().map(|count| *count as f64).collect();
        metrics.push(Metric::more("fairness", "Jain", super::tcp::jain(&rates)));
    }
    Sample {
        metrics,
        cpu: outcome.cpu.0.clone(),
        flags: outcome.flags.clone(),
        ..Sample::default()
    }
}

impl Course {
    /// Opens the sockets, and has every flow come through once.
    ///
    /// # Errors
    /// With the flow that does not come through.
    pub fn open(request: &Request, system: &System) -> Result<Self, MeasureError> {
        if request.measure == MeasureName::Rfc2889Broadcast {
            return broadcast::open(request, system);
        }
        let (mut servers, mut ends, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for path in &system.paths {
            let end = places.iter().position(|place| *place == path.listen);
            ends.push(end.unwrap_or(servers.len()));
            if end.is_none() {
                places.push(path.listen);
                servers.push((path.to.clone(), server(path, request.measure)?));
            }
        }
        let flows = 0..usize::from(request.flows);
        let path = |flow: usize| &system.paths[flow % system.paths.len()];
        let clients = flows.map(|flow| client(path(flow)));
        let mut course = Self {
            clients: clients.collect::<Result<_, _>>()?,
            servers,
            ends,
            lanes: Vec::new(),
            flows: Vec::new(),
            copies: 1,
            sizes: request.frame_sizes.clone(),
            run: fastrand::Rng::with_seed(request.seed).u32(1..),
        };
        for flow in 0..course.clients.len() {
            course.greet(flow, path(flow))?;
        }
        course.build(request, &system.paths)?;
        Ok(course)
    }

    /// Opens the lanes and writes the frames: a greeting has found the way of every flow.
    fn build(&mut self, request: &Request, paths: &[Path]) -> Result<(), MeasureError> {
        let largest = request.frame_sizes.iter().copied().max();
        let frame_size = usize::from(largest.unwrap_or(FRAME_SIZE_MIN));
        let used = paths.iter().take(self.clients.len());
        let (mut ways, mut senders) = (Vec::new(), Vec::new());
        // Read once for each sandbox: of a mesh each has many ways.
        let mut known = BTreeMap::new();
        for (flow, path) in used.enumerate() {
            let out = match known.entry(path.from.path()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(Ways::of(&path.from)?),
            };
            let mut way = out.to(path.connect.ip());
            if way.is_err() {
                // The kernel forgets neighbours when all namespaces together have more than 512.
                self.greet(flow, path)?;
                *out = Ways::of(&path.from)?;
                way = out.to(path.connect.ip());
            }
            let way = way?;
            let lane = senders.iter().position(|sender| *sender == way.sender());
            if lane.is_none() {
                let lane = Lane::open(&path.from, &way, frame_size);
                let action = format!("send frames by {}", way.interface);
                self.lanes.push(lane.map_err(refused(action))?);
                senders.push(way.sender());
            }
            ways.push((lane.unwrap_or(senders.len() - 1), way));
        }
        for (flow, client) in self.clients.iter().enumerate() {
            let (lane, way) = &ways[flow % paths.len()];
            let frame = |size: &u16| way.frame(client, usize::from(size - AROUND_PAYLOAD));
            let frames = request.frame_sizes.iter().map(frame);
            self.flows.push(Flow {
                lane: *lane,
                frames: frames.collect::<Result<_, _>>()?,
            });
        }
        Ok(())
    }

    /// Sends greetings until one comes through: the first ones may be lost while the way is found.
    fn greet(&self, flow: usize, path: &Path) -> Result<(), MeasureError> {
        let (_, server) = &self.servers[self.ends[flow % self.ends.len()]];
        let greeting = payload::greeting(flow as u16);
        let end = Instant::now() + GREETING_MAX;
        let mut buffer = [0; 64];
        while Instant::now() < end {
            // An error of an earlier one, such as an unreachable port, is reported here.
            let _ = self.clients[flow].send(&greeting);
            std::thread::park_timeout(GREETING_PAUSE);
            while let Ok(size) = server.recv(&mut buffer) {
                if buffer[..size] == greeting {
                    return Ok(());
                }
            }
        }
        Err(MeasureError::Stuck(format!(
            "no datagram of flow {flow} to {} has arrived at {} within {GREETING_MAX:?}",
            path.connect, path.listen
        )))
    }

    /// Offers datagrams and waits for the last of them.
    ///
    /// # Errors
    /// When a socket fails, or there are too many.
    pub fn run(&mut self, system: &System, offer: Offer) -> Result<Outcome, MeasureError> {
        let placement = offer.placement();
        offer.check()?;
        let mut generator = Generator::new(&mut self.lanes, &self.flows, self.run, offer);
        let receiver = Receiver {
            servers: &self.servers,
            flows: self.flows.len(),
            copies: self.copies,
            sizes: &self.sizes,
            run: self.run,
            uncounted: generator.uncounted,
        };
        let cpu_times = || Used::now(system).map_err(refused("read CPU times of the switch"));
        let done = Arc::new(AtomicBool::new(false));
        let panicked = || MeasureError::Stuck("a thread of the load panicked".to_owned());
        let (sent, arrived, before, after) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                placement::pin_receiver(placement)?;
                receiver.run(&done)
            });
            let before = cpu_times();
            let sending = scope.spawn(|| {
                placement::pin_sender(placement)?;
                generator.run()
            });
            let sent = sending.join();
            let after = cpu_times();
            done.store(true, Ordering::Relaxed);
            (sent, receiving.join(), before, after)
        });
        let sent = sent
            .map_err(|_| panicked())?
            .map_err(refused("send datagrams"))?;
        let arrived = arrived.map_err(|_| panicked())?;
        let arrived = arrived.map_err(refused("receive datagrams"))?;
        // The warm-up's share is left out, as it costs what the rest costs.
        let share = offer.counted_share();
        let ends = Ends {
            sender: sent.cpu_seconds,
            receiver: arrived.cpu_seconds,
        };
        let (mut cpu, machine) = after?.since(&before?, ends);
        cpu.values_mut().for_each(|seconds| *seconds *= share);
        let offered_all = match offer {
            Offer::Paced(pace) => sent.rate() >= OFFERED_LEAST * pace.rate,
            // It is as fast as this tester is.
            Offer::Burst { .. } => true,
        };
        let mut outcome = Outcome {
            sent,
            arrived,
            copies: self.copies,
            sizes: self.sizes.clone(),
            offered_all,
            cpu: (cpu, machine * share),
            flags: Vec::new(),
        };
        outcome.flags = flags(&outcome);
        Ok(outcome)
    }
}

impl Offer {
    const fn placement(self) -> Placement {
        match self {
            Self::Paced(pace) => pace.placement,
            Self::Burst { placement, .. } => placement,
        }
    }

    fn check(self) -> Result<(), MeasureError> {
        let (frames, shown) = match self {
            Self::Paced(pace) => {
                let total = (pace.warm_up + pace.duration).as_secs_f64();
                let shown = format!("{} frames a second for {total} s", pace.rate);
                (pace.rate * total, shown)
            }
            Self::Burst { frames, .. } => (frames as f64, format!("a burst of {frames} frames")),
        };
        match frames > FRAMES_MAX {
            false => Ok(()),
            true => Err(MeasureError::Request(format!(
                "{shown}; at most {FRAMES_MAX} frames"
            ))),
        }
    }

    /// Share of the datagrams that count.
    fn counted_share(self) -> f64 {
        match self {
            Self::Paced(pace) => {
                pace.duration.as_secs_f64() / (pace.warm_up + pace.duration).as_secs_f64()
            }
            Self::Burst { .. } => 1.0,
        }
    }
}

/// A system that loses of what it was offered could not have carried more of a higher offer.
fn flags(outcome: &Outcome) -> Vec<Flag> {
    let arrived = &outcome.arrived;
    let came = arrived.unique as f64 >= OFFERED_LEAST * outcome.due() as f64;
    let limited = !outcome.offered_all && came;
    let flags = [
        (limited, Flag::GeneratorLimited),
        (arrived.overflowed > 0, Flag::ReceiverLimited),
        (arrived.reordered > 0, Flag::Reordered),
        (arrived.duplicates > 0, Flag::Duplicated),
    ];
    let raised = flags.into_iter().filter(|(raised, _)| *raised);
    raised.map(|(_, flag)| flag).collect()
}

fn server(path: &Path, measure: MeasureName) -> Result<UdpSocket, MeasureError> {
    let open = || -> Result<UdpSocket, Errno> {
        let socket = UdpSocket::bind(path.listen).map_err(|e| errno(&e))?;
        socket.set_nonblocking(true).map_err(|e| errno(&e))?;
        socket::setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_SIZE)?;
        // A search does not look at times, and they are not for free.
        let stamped = matches!(
            measure,
            MeasureName::Frames | MeasureName::Rfc2544Latency | MeasureName::Rfc2889Broadcast
        );
        socket::setsockopt(&socket, sockopt::ReceiveTimestampns, &stamped)?;
        Ok(socket)
    };
    path.to
        .run(open)
        .map_err(refused(format!("receive datagrams on {}", path.listen)))
}

fn client(path: &Path) -> Result<UdpSocket, MeasureError> {
    let any = match path.connect {
        std::net::SocketAddr::V4(_) => "0.0.0.0:0",
        std::net::SocketAddr::V6(_) => "[::]:0",
    };
    let open = || -> Result<UdpSocket, Errno> {
        let socket = UdpSocket::bind(any).map_err(|e| errno(&e))?;
        socket.connect(path.connect).map_err(|e| errno(&e))?;
        socket.set_nonblocking(true).map_err(|e| errno(&e))?;
        Ok(socket)
    };
    path.from
        .run(open)
        .map_err(refused(format!("send datagrams to {}", path.connect)))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}
