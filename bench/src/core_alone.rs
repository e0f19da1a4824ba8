//! The core without I/O: nanoseconds for each frame, in memory, on one CPU.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant as Clock;

use dataplane_core::addr::{MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::ahead::look_ahead;
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::Instant;
use dataplane_core::topology::{Domain, Gateway, Neighbour, Role, Route, Topology, Uplink};
use dataplane_core::trace::Off;
use dataplane_core::verdict::Verdict;
use etherparse::PacketBuilder;

use crate::in_memory::{MTU, NETWORK, SINK, SOURCE, port, station};

const UP: PortId = PortId(3);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 1]);
const UPLINK_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 2]);

/// Frames between two reads of the clock, as a busy worker has them.
const BATCH: usize = 64;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn switch() -> Switch {
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
        gateway: State::live(&Tables::new(1)),
        counters: Arc::new(Counters::default()),
    }
}

/// Known unicast among `stations`, destinations drawn by `draw`; nanoseconds a frame, the writing
/// of two MAC addresses included.
fn bridged(stations: usize, frames: usize, draw: impl Fn(&mut fastrand::Rng) -> usize) -> f64 {
    let mut sw = switch();
    let now = Instant::from_secs(10);
    let address = |buf: &mut FrameBuf, dst: MacAddr, src: MacAddr| {
        let bytes = buf.bytes_mut();
        bytes[..6].copy_from_slice(&dst.0);
        bytes[6..12].copy_from_slice(&src.0);
    };
    let mut minimum = FrameBuf::with_capacity(60);
    minimum.copy_from(&[0x5a; 60], Offload::NONE);
    let mut batch = vec![minimum; BATCH];
    for n in 0..stations {
        address(&mut batch[0], MacAddr::BROADCAST, station(n));
        let _ = forward(&mut sw, &mut Frame::new(SINK, &mut batch[0]), now, &mut Off);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let targets: Vec<MacAddr> = (0..1 << 16).map(|_| station(draw(&mut rng))).collect();
    let source = station(stations + 1);
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
    assert_eq!(
        sw.counters
            .verdict(dataplane_core::verdict::VerdictKind::Bridged),
        frames as u64
    );
    nanos
}

/// Known unicast among 64 stations.
pub fn unicast_64() -> f64 {
    bridged(64, 2_000_000, |rng| rng.usize(..64))
}

/// Seconds of `frames` frames of known unicast among 64 stations: real work for tests of the
/// runner.
#[cfg(test)]
pub(crate) fn unicast_64_seconds(frames: usize) -> f64 {
    bridged(64, frames, |rng| rng.usize(..64)) * frames as f64 * 1e-9
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

fn datagram(src_port: u16, dst: [u8; 4]) -> Vec<u8> {
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
    let flows: Vec<Vec<u8>> = (0..1024)
        .map(|n| datagram(2000 + n, [198, 51, 100, 9]))
        .collect();
    translate(&flows, 1_000_000, true)
}

/// Out by source NAT, a new session for each frame.
pub fn nat_new_session() -> f64 {
    let flow = |n: usize| {
        let [_, _, high, low] = (n as u32 / 50_000).to_be_bytes();
        datagram(2000 + (n % 50_000) as u16, [198, 51, high, low])
    };
    let flows: Vec<Vec<u8>> = (0..200_000).map(flow).collect();
    translate(&flows, flows.len(), false)
}

/// What [`million_sessions`] has seen.
#[derive(Clone, Copy, Debug)]
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
    let mut sw = switch();
    let opened = Instant::from_secs(10);
    let mut buf = FrameBuf::new();
    let template = datagram(0, [198, 51, 100, 9]);
    let before = resident_bytes();
    let start = Clock::now();
    for n in 0..SESSIONS {
        if n % BATCH == 0 {
            sw.fdb.begin_batch();
        }
        buf.copy_from(&template, Offload::NONE);
        address(buf.bytes_mut(), n);
        let verdict = forward(&mut sw, &mut Frame::new(SOURCE, &mut buf), opened, &mut Off);
        let _ = std::hint::black_box(verdict);
    }
    let opening_nanos = start.elapsed().as_nanos() as f64 / SESSIONS as f64;
    let bytes = resident_bytes().saturating_sub(before);
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

/// Makes a datagram the one of session `n`: its inside port and its remote. The checksums are left
/// as they are, because the NAT changes them and judges only those of ICMP errors.
fn address(bytes: &mut [u8], n: usize) {
    let port = 2_000 + (n % SESSION_PORTS) as u16;
    let [_, _, high, low] = ((n / SESSION_PORTS) as u32).to_be_bytes();
    bytes[32..34].copy_from_slice(&[high, low]);
    bytes[34..36].copy_from_slice(&port.to_be_bytes());
}

/// Memory of this process that is there, by the kernel's own count of pages (`proc(5)`).
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    pages.unwrap_or(0) * PAGE_SIZE
}

/// Bytes of a page on every machine that this runs on.
const PAGE_SIZE: u64 = 4_096;

fn translate(flows: &[Vec<u8>], frames: usize, warm: bool) -> f64 {
    let mut sw = switch();
    let now = Instant::from_secs(10);
    let mut buf = FrameBuf::new();
    let mut send = |sw: &mut Switch, bytes: &[u8]| {
        buf.copy_from(bytes, Offload::NONE);
        forward(sw, &mut Frame::new(SOURCE, &mut buf), now, &mut Off)
    };
    for flow in flows.iter().filter(|_| warm) {
        let _ = send(&mut sw, flow);
    }
    let start = Clock::now();
    for (count, flow) in flows.iter().cycle().take(frames).enumerate() {
        if count % BATCH == 0 {
            sw.fdb.begin_batch();
        }
        let _ = std::hint::black_box(send(&mut sw, flow));
    }
    let nanos = start.elapsed().as_nanos() as f64 / frames as f64;
    let routed = sw
        .counters
        .verdict(dataplane_core::verdict::VerdictKind::Routed) as usize;
    assert_eq!(
        routed,
        frames + if warm { flows.len() } else { 0 },
        "every frame left"
    );
    nanos
}
