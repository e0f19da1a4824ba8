//! The core without I/O: nanoseconds for each frame, in memory, on one CPU.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant as Clock;

use dataplane_core::addr::{MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::ahead::look_ahead;
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::l2::{self, Identity, PortFlags, ProbeKey, StormMeters, StormView};
use dataplane_core::multicast::{Mdb, MdbView};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::Instant;
use dataplane_core::topology::{Domain, Gateway, Neighbour, Role, Route, Topology, Uplink};
use dataplane_core::trace::Off;
use dataplane_core::verdict::{Verdict, VerdictKind};
use etherparse::PacketBuilder;
use serde::{Deserialize, Serialize};

use crate::in_memory::{MTU, NETWORK, SINK, SOURCE, port, station};

const UP: PortId = PortId(3);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 1]);
const UPLINK_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 2]);

/// Frames between two reads of the clock, as a busy worker has them.
pub const BATCH: usize = 64;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A switch with a network of two ports, a gateway and an uplink, and large limits.
pub fn switch() -> Switch {
    let mut topology = Topology::default();
    let mut domain = Domain::new(NETWORK, "net");
    domain.subnets.push(Prefix::new(ip("10.0.0.0"), 8));
    domain.gateway = Some(Gateway {
        mac: GATEWAY_MAC,
        addresses: vec![ip("10.0.0.1")],
        mtu: MTU,
    });
    domain.neighbours.insert(
        ip("10.0.0.2"),
        Neighbour {
            mac: station(0),
            port: SOURCE,
        },
    );
    topology.put_domain(domain);
    for (id, role) in [
        (SOURCE, Role::Bridge(NETWORK)),
        (SINK, Role::Bridge(NETWORK)),
        (UP, Role::Uplink(UplinkId(0))),
    ] {
        topology.put_port(port(id, role));
    }
    topology.local_addresses.insert(ip("192.0.2.1"));
    topology.uplinks.push(Uplink {
        id: UplinkId(0),
        name: "up".into(),
        port: UP,
        mac: UPLINK_MAC,
        mtu: MTU,
        addresses: vec![ip("192.0.2.1")],
        neighbours: [(ip("192.0.2.254"), station(9))].into_iter().collect(),
        peer: None,
    });
    topology.routes.push(Route {
        prefix: Prefix::new(ip("0.0.0.0"), 0),
        uplink: Some(UplinkId(0)),
        next_hop: Some(ip("192.0.2.254")),
        source: None,
    });
    topology.nat.port_range = 1024..=65_535;
    topology.nat.sessions_per_endpoint_max = 1 << 20;
    topology.finish();
    let fdb = Fdb::new(
        Limits {
            entries_max: 2 << 20,
            entries_per_port_max: 2 << 20,
        },
        1,
    );
    Switch {
        topology: Arc::new(topology),
        fdb: FdbView::live(fdb),
        bridge: l2::State::new(ProbeKey::new(1)),
        storm: StormView::live(StormMeters::new()),
        groups: MdbView::live(Mdb::new(1)),
        gateway: State::live(&Tables::new(1)),
        counters: Arc::new(Counters::default()),
    }
}

/// Known unicast among `stations`, destinations drawn by `draw`; nanoseconds a frame, the writing
/// of two MAC addresses included.
fn bridged(stations: usize, frames: usize, draw: impl Fn(&mut fastrand::Rng) -> usize) -> f64 {
    bridged_by(switch(), &[0x5a; 60], stations, frames, draw)
}

/// The same by a switch of one's own, of frames with what is in `like` behind the addresses.
fn bridged_by(
    mut sw: Switch,
    like: &[u8],
    stations: usize,
    frames: usize,
    draw: impl Fn(&mut fastrand::Rng) -> usize,
) -> f64 {
    let now = Instant::from_secs(10);
    let address = |buf: &mut FrameBuf, dst: MacAddr, src: MacAddr| {
        let bytes = buf.bytes_mut();
        bytes[..6].copy_from_slice(&dst.0);
        bytes[6..12].copy_from_slice(&src.0);
    };
    let mut minimum = FrameBuf::with_capacity(60);
    minimum.copy_from(like, Offload::NONE);
    let mut batch = vec![minimum; BATCH];
    for n in 0..stations {
        address(&mut batch[0], MacAddr::BROADCAST, station(n));
        let _ = forward(&mut sw, &mut Frame::new(SINK, &mut batch[0]), now, &mut Off);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let targets: Vec<MacAddr> = (0..1 << 16).map(|_| station(draw(&mut rng))).collect();
    let source = sender(stations);
    let start = Clock::now();
    for turn in 0..frames / BATCH {
        let first = turn * BATCH % targets.len();
        for (buf, target) in batch.iter_mut().zip(&targets[first..]) {
            address(buf, *target, source);
        }
        sw.fdb.begin_batch();
        look_ahead(&sw, SOURCE, batch.iter());
        for buf in &mut batch {
            let verdict = forward(&mut sw, &mut Frame::new(SOURCE, buf), now, &mut Off);
            debug_assert_eq!(verdict, Verdict::Bridged(SINK));
            let _ = std::hint::black_box(verdict);
        }
    }
    let nanos = start.elapsed().as_nanos() as f64 / frames as f64;
    let frames = frames / BATCH * BATCH;
    assert_eq!(sw.counters.verdict(VerdictKind::Bridged), frames as u64);
    nanos
}

/// Known unicast among 64 stations.
pub fn unicast_64() -> f64 {
    unicast_among_64(2_000_000)
}

/// `frames` frames of known unicast among 64 stations.
pub fn unicast_among_64(frames: usize) -> f64 {
    bridged(64, frames, |rng| rng.usize(..64))
}

/// `frames` datagrams among 64 known stations.
pub fn datagrams_among_64(frames: usize) -> f64 {
    let like = datagram(40_000, [10, 0, 0, 3]);
    bridged_by(switch(), &like, 64, frames, |rng| rng.usize(..64))
}

/// The same from a secured port, as an attached endpoint has one.
pub fn secured_among_64(frames: usize) -> f64 {
    let mut sw = switch();
    let mut topology = Topology::clone(&sw.topology);
    for port in topology.ports.iter_mut().flatten() {
        if port.id == SOURCE {
            port.flags = port.flags.with(PortFlags::SECURED);
            port.profile_mut().identity = Identity {
                mac: sender(64),
                addresses: Box::new([ip("10.0.0.2")]),
                ..Identity::default()
            };
        }
    }
    topology.finish();
    sw.topology = Arc::new(topology);
    let like = datagram(40_000, [10, 0, 0, 3]);
    bridged_by(sw, &like, 64, frames, |rng| rng.usize(..64))
}

/// The MAC of whoever sends to so many stations.
const fn sender(stations: usize) -> MacAddr {
    station(stations + 1)
}

/// Known unicast among a million stations, each as likely as any.
pub fn unicast_million_uniform() -> f64 {
    bridged(1 << 20, 2_000_000, |rng| rng.usize(..1 << 20))
}

/// Known unicast among a million stations by Zipf's law with exponent 1.
pub fn unicast_million_zipf() -> f64 {
    bridged(1 << 20, 2_000_000, zipf_million)
}

/// One of a million by Zipf's law with exponent 1: the inverse of the harmonic sum, which grows as
/// the logarithm.
pub fn zipf_million(rng: &mut fastrand::Rng) -> usize {
    let harmonic = f64::from(1 << 20).ln();
    (((rng.f64() * harmonic).exp() - 1.0) as usize).min((1 << 20) - 1)
}

/// A datagram from the station at the source to an outside address.
pub fn datagram(src_port: u16, dst: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(0).0, GATEWAY_MAC.0)
        .ipv4([10, 0, 0, 2], dst, 64)
        .udp(src_port, 53)
        .write(&mut bytes, &[0; 18])
        .expect("a datagram in memory");
    bytes
}

/// Out by source NAT on known sessions, 1,024 of them.
pub fn nat_hit() -> f64 {
    nat_hits(1_000_000)
}

/// `frames` frames out by source NAT on [`KNOWN_SESSIONS`].
pub fn nat_hits(frames: usize) -> f64 {
    let mut nat = Translating::new();
    nat.open_known_sessions();
    let flows = outward_flows();
    nat.send(SOURCE, frames, in_turn(&flows))
}

/// `frames` frames in by source NAT, answers on [`KNOWN_SESSIONS`].
pub fn nat_hits_inwards(frames: usize) -> f64 {
    let mut nat = Translating::new();
    let answers = nat.open_known_sessions();
    nat.send(UP, frames, in_turn(&answers))
}

/// Out by source NAT, a new session for each frame.
pub fn nat_new_session() -> f64 {
    nat_new_sessions(200_000)
}

/// `frames` frames out by source NAT, each of a session of its own.
pub fn nat_new_sessions(frames: usize) -> f64 {
    Translating::new().open_sessions(frames)
}

/// What [`million_sessions`] has seen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ManySessions {
    /// Memory that the process took for them.
    pub bytes: u64,
    /// Nanoseconds to open one.
    pub opening_nanos: f64,
    /// Expired a second of the worker's time.
    pub expired_per_second: f64,
    /// The longest tick that expired some.
    pub tick_nanos_max: f64,
}

/// Sessions of [`million_sessions`].
const SESSIONS: usize = 1 << 20;
/// Inside ports that they are spread over; each speaks to as many remotes as it takes.
const SESSION_PORTS: usize = 50_000;
/// Sessions that a worker's tick expires at most, as the dataplane's do.
const EXPIRED_PER_TICK: usize = 4_096;

/// Opens a million sessions by as many datagrams, and lets them expire by ticks.
pub fn million_sessions() -> ManySessions {
    let before = resident_bytes();
    let mut nat = Translating::new();
    let opening_nanos = nat.open_sessions(SESSIONS);
    let bytes = resident_bytes().saturating_sub(before);
    let mut sw = nat.sw;
    let live = sw.gateway.session_count();
    assert_eq!(live, SESSIONS, "every datagram opened a session");
    let topology = Arc::clone(&sw.topology);
    let expired = Instant::from_secs(10 + 3_600);
    let (mut ticks, mut tick_nanos_max) = (0.0, 0.0_f64);
    while sw.gateway.session_count() > 0 {
        let start = Clock::now();
        sw.gateway.tick(&topology, expired, EXPIRED_PER_TICK);
        let nanos = start.elapsed().as_nanos() as f64;
        ticks += nanos;
        tick_nanos_max = tick_nanos_max.max(nanos);
    }
    ManySessions {
        bytes,
        opening_nanos,
        expired_per_second: SESSIONS as f64 / (ticks * 1e-9),
        tick_nanos_max,
    }
}

/// Memory in bytes that a million learned stations take.
pub fn million_stations() -> u64 {
    let mut sw = switch();
    let before = resident_bytes();
    let mut buf = FrameBuf::with_capacity(60);
    buf.copy_from(&[0x5a; 60], Offload::NONE);
    for n in 0..1 << 20 {
        let bytes = buf.bytes_mut();
        bytes[..6].copy_from_slice(&MacAddr::BROADCAST.0);
        bytes[6..12].copy_from_slice(&station(n).0);
        let mut frame = Frame::new(SINK, &mut buf);
        let _ = forward(&mut sw, &mut frame, Instant::from_secs(10), &mut Off);
    }
    assert_eq!(sw.fdb.len(), 1 << 20, "every station was learned");
    resident_bytes().saturating_sub(before)
}

/// Makes a datagram the one of session `n`: its inside port and its remote. The checksums are left
/// as they are, because the NAT changes them and judges only those of ICMP errors.
pub fn name_session(bytes: &mut [u8], n: usize) {
    let port = 2_000 + (n % SESSION_PORTS) as u16;
    let [_, _, high, low] = ((n / SESSION_PORTS) as u32).to_be_bytes();
    bytes[32..34].copy_from_slice(&[high, low]);
    bytes[34..36].copy_from_slice(&port.to_be_bytes());
}

/// Memory of this process that is there.
fn resident_bytes() -> u64 {
    resident_bytes_of("self").unwrap_or_default() as u64
}

/// Memory of a process that is there, in bytes, by the kernel's own count of pages (`proc(5)`).
pub fn resident_bytes_of(process: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some((pages * PAGE_SIZE) as f64)
}

/// Bytes of a page on every machine that this runs on.
const PAGE_SIZE: u64 = 4_096;

/// Makes the frames of `flows` in turn.
fn in_turn(flows: &[Vec<u8>]) -> impl FnMut(&mut FrameBuf, usize) {
    |buf, count| buf.copy_from(&flows[count % flows.len()], Offload::NONE)
}

/// Sessions that are there before anything is measured on them.
const KNOWN_SESSIONS: u16 = 1_024;

/// A datagram of each of the [`KNOWN_SESSIONS`], as its endpoint sends it.
fn outward_flows() -> Vec<Vec<u8>> {
    let flow = |n| datagram(2_000 + n, [198, 51, 100, 9]);
    (0..KNOWN_SESSIONS).map(flow).collect()
}

/// A switch whose NAT is measured.
struct Translating {
    sw: Switch,
    buf: FrameBuf,
}

impl Translating {
    fn new() -> Self {
        Self {
            sw: switch(),
            buf: FrameBuf::new(),
        }
    }

    fn forward(&mut self, ingress: PortId) -> Verdict {
        let now = Instant::from_secs(10);
        let mut frame = Frame::new(ingress, &mut self.buf);
        forward(&mut self.sw, &mut frame, now, &mut Off)
    }

    /// Opens the [`KNOWN_SESSIONS`]; what their remotes answer.
    fn open_known_sessions(&mut self) -> Vec<Vec<u8>> {
        let answer = |bytes: &Vec<u8>| {
            self.buf.copy_from(bytes, Offload::NONE);
            let _ = self.forward(SOURCE);
            answer_to(self.buf.bytes())
        };
        outward_flows().iter().map(answer).collect()
    }

    /// Opens as many sessions by a datagram each; nanoseconds a session. A datagram is made where it
    /// is sent, because one that has just been read from a port is in the cache as well.
    fn open_sessions(&mut self, count: usize) -> f64 {
        let template = datagram(0, [198, 51, 100, 9]);
        self.send(SOURCE, count, |buf, n| {
            buf.copy_from(&template, Offload::NONE);
            name_session(buf.bytes_mut(), n);
        })
    }

    /// Sends `frames`, each as `make` makes it and all of which must leave; nanoseconds a frame.
    fn send(
        &mut self,
        ingress: PortId,
        frames: usize,
        mut make: impl FnMut(&mut FrameBuf, usize),
    ) -> f64 {
        let before = self.routed();
        let start = Clock::now();
        for count in 0..frames {
            if count % BATCH == 0 {
                self.sw.fdb.begin_batch();
            }
            make(&mut self.buf, count);
            let _ = std::hint::black_box(self.forward(ingress));
        }
        let nanos = start.elapsed().as_nanos() as f64 / frames as f64;
        assert_eq!(self.routed() - before, frames as u64, "every frame left");
        nanos
    }

    fn routed(&self) -> u64 {
        self.sw.counters.verdict(VerdictKind::Routed)
    }
}

/// The datagram that answers one that has left by the uplink.
fn answer_to(sent: &[u8]) -> Vec<u8> {
    let sent = etherparse::SlicedPacket::from_ethernet(sent).expect("a datagram that was sent");
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
        (&sent.net, &sent.transport)
    else {
        unreachable!("only UDP in IPv4 is sent");
    };
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(station(9).0, UPLINK_MAC.0)
        .ipv4(ip.header().destination(), ip.header().source(), 64)
        .udp(udp.destination_port(), udp.source_port())
        .write(&mut bytes, &[0; 18])
        .expect("a datagram in memory");
    bytes
}
