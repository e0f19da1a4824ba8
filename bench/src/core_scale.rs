//! What a frame costs the core as what it has to remember grows: stations, ports, sessions.
//!
//! One thread, in memory, no I/O: frames are addressed and forwarded in batches, as a worker does it,
//! and CPU time is counted. Destinations and sessions are drawn evenly, so the more there are, the
//! fewer are in a cache. The draw and the writing of the addresses are counted too, some
//! nanoseconds that do not depend on the scale.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::ahead::look_ahead;
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::path::{Switch, forward};
use dataplane_core::time::Instant;
use dataplane_core::topology::{Role, Topology};
use dataplane_core::trace::Off;
use dataplane_core::verdict::VerdictKind;

use crate::core_alone::{BATCH, datagram, name_session, switch};
use crate::in_memory::{NETWORK, SINK, SOURCE, port, station};
use crate::measure::cpu::thread_seconds;
use crate::measure::{Request, Scale};
use crate::result::{Metric, Sample};
use crate::run::{Refusal, Subject};

/// Most stations: what the table has room for with the sender beside them, twice.
pub const STATIONS_MAX: u32 = 1 << 20;
/// Most sessions beside the one that there always is.
pub const SESSIONS_MAX: u32 = 1_000_000;
/// The first port beside the source, the first sink and the uplink.
const PORT_FIRST: u16 = 4;
/// Batches between two reads of the clock.
const TURNS: usize = 256;
/// When every frame is forwarded: nothing ages or expires.
const NOW: Instant = Instant::from_secs(10);

/// A core of a scale, built when it is measured for the first time.
#[derive(Default)]
pub struct CoreInMemory {
    /// Ports, the source among them.
    pub ports: u16,
    built: Option<(Scale, Built)>,
}

/// What is measured.
struct Built {
    sw: Switch,
    batch: Vec<FrameBuf>,
    work: Work,
}

/// How a frame is made.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// To one of so many stations, by the bridge.
    Bridged { stations: u32 },
    /// Of one of so many sessions, outwards by source NAT.
    Translated { sessions: u32 },
}

impl CoreInMemory {
    /// With so many ports.
    pub fn new(ports: u16) -> Self {
        Self { ports, built: None }
    }
}

impl Subject for CoreInMemory {
    fn facts(&self) -> BTreeMap<String, String> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        BTreeMap::from([
            ("version".to_owned(), version),
            ("where".to_owned(), "in memory, on one thread".to_owned()),
        ])
    }

    fn sample(&mut self, request: &Request) -> Result<Sample, Refusal> {
        let scale = request.scale;
        if self.built.as_ref().is_none_or(|(built, _)| *built != scale) {
            // One at a time: a million sessions have hundreds of megabytes.
            self.built = None;
            self.built = Some((scale, Built::new(self.ports, scale)?));
        }
        let Some((_, built)) = &mut self.built else {
            return Err(Refusal::Failed("nothing was built".to_owned()));
        };
        let duration = Duration::from_millis(request.load.duration_ms);
        let failed = |error: io::Error| Refusal::Failed(error.to_string());
        built.measure(duration, request.seed).map_err(failed)
    }
}

impl Built {
    fn new(ports: u16, scale: Scale) -> Result<Self, Refusal> {
        let (work, sw, like) = match scale.sessions {
            Some(others) => {
                let sessions = others.saturating_add(1);
                let work = Work::Translated { sessions };
                (work, switch(), datagram(0, [198, 51, 100, 9]))
            }
            None => {
                let stations = scale.stations.unwrap_or(u32::from(ports) - 1);
                let work = Work::Bridged { stations };
                (work, switch_of(ports), vec![0x5a; 60])
            }
        };
        let mut buf = FrameBuf::with_capacity(like.len());
        buf.copy_from(&like, Offload::NONE);
        let mut built = Self {
            sw,
            batch: vec![buf; BATCH],
            work,
        };
        match work {
            Work::Bridged { stations } => built.learn(ports, stations)?,
            Work::Translated { sessions } => built.open(sessions)?,
        }
        Ok(built)
    }

    /// Has every sink's stations send a frame, to one that is known so that nothing is flooded.
    fn learn(&mut self, ports: u16, stations: u32) -> Result<(), Refusal> {
        for n in 0..stations {
            let buf = &mut self.batch[0];
            address(buf, station(0), station(n as usize));
            let sink = sink((n % (u32::from(ports) - 1)) as u16);
            let mut frame = Frame::new(sink, buf);
            let _ = forward(&mut self.sw, &mut frame, NOW, &mut Off);
        }
        let learned = self.sw.fdb.len();
        match learned == stations as usize {
            true => Ok(()),
            false => Err(Refusal::Impossible(format!(
                "{learned} of {stations} stations were learned"
            ))),
        }
    }

    /// Opens so many sessions by a datagram each.
    fn open(&mut self, sessions: u32) -> Result<(), Refusal> {
        let like = self.batch[0].clone();
        for n in 0..sessions as usize {
            let buf = &mut self.batch[0];
            buf.copy_from(like.bytes(), Offload::NONE);
            name_session(buf.bytes_mut(), n);
            let _ = forward(&mut self.sw, &mut Frame::new(SOURCE, buf), NOW, &mut Off);
        }
        self.batch[0] = like;
        let opened = self.sw.gateway.session_count();
        match opened == sessions as usize {
            true => Ok(()),
            false => Err(Refusal::Impossible(format!(
                "{opened} of {sessions} sessions were opened"
            ))),
        }
    }

    /// Forwards for about so long.
    fn measure(&mut self, duration: Duration, seed: u64) -> io::Result<Sample> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let kind = match self.work {
            Work::Bridged { .. } => VerdictKind::Bridged,
            Work::Translated { .. } => VerdictKind::Routed,
        };
        let before = self.sw.counters.verdict(kind);
        let (start, cpu) = (Clock::now(), thread_seconds()?);
        let mut frames = 0;
        while start.elapsed() < duration {
            for _ in 0..TURNS {
                self.turn(&mut rng);
            }
            frames += (TURNS * BATCH) as u64;
        }
        let seconds = thread_seconds()? - cpu;
        let forwarded = self.sw.counters.verdict(kind) - before;
        if forwarded != frames {
            let message = format!("{forwarded} of {frames} frames were forwarded");
            return Err(io::Error::other(message));
        }
        let nanos = 1e9 * seconds / frames as f64;
        Ok(Sample {
            metrics: vec![
                Metric::less("cost", "ns/frame", nanos),
                Metric::more("rate", "Mframes/s", 1e3 / nanos),
            ],
            cpu: BTreeMap::from([("core".to_owned(), seconds)]),
            ..Sample::default()
        })
    }

    /// One batch.
    fn turn(&mut self, rng: &mut fastrand::Rng) {
        match self.work {
            Work::Bridged { stations } => {
                let source = station(STATIONS_MAX as usize);
                for buf in &mut self.batch {
                    address(buf, station(rng.u32(..stations) as usize), source);
                }
            }
            Work::Translated { sessions } => {
                let like = datagram_of_nobody();
                for buf in &mut self.batch {
                    buf.copy_from(like, Offload::NONE);
                    name_session(buf.bytes_mut(), rng.u32(..sessions) as usize);
                }
            }
        }
        self.sw.fdb.begin_batch();
        look_ahead(&self.sw, SOURCE, self.batch.iter());
        for buf in &mut self.batch {
            let verdict = forward(&mut self.sw, &mut Frame::new(SOURCE, buf), NOW, &mut Off);
            let _ = std::hint::black_box(verdict);
        }
    }
}

/// What every datagram of a session is made from.
fn datagram_of_nobody() -> &'static [u8] {
    static BYTES: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| datagram(0, [198, 51, 100, 9]));
    &BYTES
}

fn address(buf: &mut FrameBuf, dst: MacAddr, src: MacAddr) {
    let bytes = buf.bytes_mut();
    bytes[..6].copy_from_slice(&dst.0);
    bytes[6..12].copy_from_slice(&src.0);
}

/// The port of a sink by its number, from 0.
const fn sink(number: u16) -> PortId {
    match number {
        0 => SINK,
        number => PortId(PORT_FIRST + number - 1),
    }
}

/// A switch with so many ports in its network, the source among them.
fn switch_of(ports: u16) -> Switch {
    let mut sw = switch();
    let mut topology = Topology::clone(&sw.topology);
    for number in 1..ports - 1 {
        topology.put_port(port(sink(number), Role::Bridge(NETWORK)));
    }
    topology.finish();
    sw.topology = Arc::new(topology);
    sw
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::MeasureName;

    fn request(scale: Scale) -> Request {
        let mut request = Request::new(MeasureName::CoreFrames);
        request.load.duration_ms = 20;
        request.scale = scale;
        request
    }

    #[test]
    fn frames_are_forwarded_at_every_scale() {
        let stations = |count| Scale {
            stations: Some(count),
            sessions: None,
        };
        let sessions = |count| Scale {
            stations: None,
            sessions: Some(count),
        };
        for (ports, scale) in [
            (2, Scale::default()),
            (2, stations(1)),
            (8, stations(5_000)),
            (2_000, Scale::default()),
            (2_000, stations(2)),
            (2, sessions(0)),
            (2, sessions(70_000)),
        ] {
            let mut core = CoreInMemory::new(ports);
            // Every frame is counted: one that is flooded, dropped or left is an error.
            let sample = core.sample(&request(scale));
            let sample = sample.unwrap_or_else(|error| panic!("{ports} {scale:?}: {error:?}"));
            let cost = sample.metrics[0].value;
            assert!((1.0..1e6).contains(&cost), "{ports} {scale:?}: {cost}");
        }
    }

    #[test]
    fn another_scale_is_built_anew_and_the_same_one_is_kept() {
        let mut core = CoreInMemory::new(4);
        let known = |core: &CoreInMemory| core.built.as_ref().map(|(_, b)| b.sw.fdb.len());
        for (stations, wanted) in [(100, 101), (100, 101), (10, 11)] {
            let scale = Scale {
                stations: Some(stations),
                sessions: None,
            };
            core.sample(&request(scale)).expect("a sample");
            assert_eq!(known(&core), Some(wanted), "the sender's own beside them");
        }
    }

    #[test]
    fn more_stations_than_the_table_holds_are_refused_in_words() {
        let scale = Scale {
            stations: Some(3 << 20),
            sessions: None,
        };
        let refused = CoreInMemory::new(2).sample(&request(scale));
        let Err(Refusal::Impossible(said)) = refused else {
            panic!("{refused:?}");
        };
        assert!(said.ends_with("of 3145728 stations were learned"), "{said}");
    }
}
