//! What the stages of the data path cost: nanoseconds a packet by the switch alone, by source NAT and
//! by a published port.
//!
//! The core runs in memory over frames of its own, on one thread, as a busy worker runs it: batches,
//! flows that are known already, the smallest datagrams. No device, no system call, no daemon. Stages
//! take turns, so that whatever else the machine does meanwhile meets all of them; each is the median
//! of its rounds.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::addr::{DomainId, L4Addr, MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::ahead::look_ahead;
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::l2::{self, ProbeKey, StormMeters, StormView};
use dataplane_core::multicast::{Mdb, MdbView};
use dataplane_core::nat::{StaticRule, Target, Transport};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::Instant;
use dataplane_core::topology::{Domain, Gateway, Neighbour, Port, Role, Route, Topology, Uplink};
use dataplane_core::trace::Off;
use dataplane_core::verdict::Verdict;
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// Flows that take turns: more than one cache line of anything, less than the first cache.
const FLOWS: u16 = 256;
/// Frames between two looks ahead, as a busy worker has them.
const BATCH: usize = 64;
/// Frames of a stage in one round: a few milliseconds, in which a timer tick does not show.
const FRAMES: usize = 64 * 1_024;
/// Rounds; odd, so that one is the median.
const ROUNDS: usize = 9;

const NETWORK: DomainId = DomainId(1);
const INSIDE: PortId = PortId(1);
const BESIDE: PortId = PortId(2);
const OUTSIDE: PortId = PortId(3);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 1]);
const UPLINK_MAC: MacAddr = MacAddr([2, 0xca, 0, 0, 0, 2]);
const INSIDE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const BESIDE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
const INSIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const BESIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HOST_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const REMOTE_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const SERVER_PORT: u16 = 8_080;
const PUBLISHED_PORT: u16 = 80;

/// Something that the data path does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bridged to a known station.
    L2,
    /// Out by the host's address.
    SnatOut,
    /// The answer to that.
    SnatIn,
    /// In by a published port.
    DnatIn,
    /// The answer to that.
    DnatOut,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 5] = [
        Self::L2,
        Self::SnatOut,
        Self::SnatIn,
        Self::DnatIn,
        Self::DnatOut,
    ];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::SnatOut => "snat-out",
            Self::SnatIn => "snat-in",
            Self::DnatIn => "dnat-in",
            Self::DnatOut => "dnat-out",
        }
    }

    /// What it is, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::L2 => "bridged to a known station",
            Self::SnatOut => "out by the host's address",
            Self::SnatIn => "the answer to that",
            Self::DnatIn => "in by a published port",
            Self::DnatOut => "the answer to that",
        }
    }

    fn ingress(self) -> PortId {
        match self {
            Self::L2 | Self::SnatOut | Self::DnatOut => INSIDE,
            Self::SnatIn | Self::DnatIn => OUTSIDE,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::L2 => Verdict::Bridged(BESIDE),
            Self::SnatOut | Self::DnatOut => Verdict::Routed(OUTSIDE),
            Self::SnatIn | Self::DnatIn => Verdict::Routed(INSIDE),
        }
    }
}

/// Why there are no figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// A frame had another fate than its stage's: the figures would be of something else.
    #[error("a frame of {stage} came to {verdict:?}, so there is nothing to measure")]
    Fate {
        /// The stage.
        stage: &'static str,
        /// What the frame came to.
        verdict: Verdict,
    },
    /// The kernel does not say how long the thread has run.
    #[error("the time that this thread had cannot be read: {0}")]
    Clock(Errno),
}

/// Nanoseconds a packet of each stage.
///
/// # Errors
/// [`StageError`].
pub fn measure() -> Result<Vec<(Stage, f64)>, StageError> {
    let mut bench = Bench::new()?;
    let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); Stage::ALL.len()];
    for _ in 0..ROUNDS {
        for (index, figures) in rounds.iter_mut().enumerate() {
            figures.push(bench.round(index)?);
        }
    }
    let median = |mut figures: Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[ROUNDS / 2]
    };
    let medians = rounds.into_iter().map(median);
    Ok(Stage::ALL.into_iter().zip(medians).collect())
}

/// A switch with its flows.
struct Bench {
    sw: Switch,
    batch: Vec<FrameBuf>,
    /// The frames of each stage, in the order of [`Stage::ALL`].
    flows: Vec<Vec<Vec<u8>>>,
}

impl Bench {
    /// Opens every flow, by one frame each way.
    fn new() -> Result<Self, StageError> {
        let mut bench = Self {
            sw: switch(),
            batch: (0..BATCH).map(|_| FrameBuf::new()).collect(),
            flows: Vec::new(),
        };
        // The one beside is heard, so that it is known.
        let hello = datagram([BESIDE_MAC, INSIDE_MAC], [BESIDE_IP, INSIDE_IP], [9, 9]);
        let _ = bench.send(BESIDE, &hello);
        let beside = |n| {
            datagram(
                [INSIDE_MAC, BESIDE_MAC],
                [INSIDE_IP, BESIDE_IP],
                [2_000 + n, 9],
            )
        };
        let out = |n| {
            datagram(
                [INSIDE_MAC, GATEWAY_MAC],
                [INSIDE_IP, REMOTE_IP],
                [2_000 + n, 9],
            )
        };
        let client = |n| {
            let ports = [2_000 + n, PUBLISHED_PORT];
            datagram([ROUTER_MAC, UPLINK_MAC], [REMOTE_IP, HOST_IP], ports)
        };
        let server = |n| {
            let ports = [SERVER_PORT, 2_000 + n];
            datagram([INSIDE_MAC, GATEWAY_MAC], [INSIDE_IP, REMOTE_IP], ports)
        };
        let outward: Vec<Vec<u8>> = (0..FLOWS).map(out).collect();
        let mut answers = Vec::new();
        for bytes in &outward {
            let sent = bench.expect(Stage::SnatOut, bytes)?;
            // The port that the NAT has chosen is the UDP source port of what has left.
            let external = u16::from_be_bytes([sent[34], sent[35]]);
            let ports = [9, external];
            answers.push(datagram(
                [ROUTER_MAC, UPLINK_MAC],
                [REMOTE_IP, HOST_IP],
                ports,
            ));
        }
        bench.flows = vec![
            (0..FLOWS).map(beside).collect(),
            outward,
            answers,
            (0..FLOWS).map(client).collect(),
            (0..FLOWS).map(server).collect(),
        ];
        for (stage, flows) in Stage::ALL.into_iter().zip(bench.flows.clone()) {
            for bytes in &flows {
                bench.expect(stage, bytes)?;
            }
        }
        Ok(bench)
    }

    fn send(&mut self, ingress: PortId, bytes: &[u8]) -> Verdict {
        let buf = &mut self.batch[0];
        buf.copy_from(bytes, Offload::NONE);
        forward(&mut self.sw, &mut Frame::new(ingress, buf), NOW, &mut Off)
    }

    /// Sends a frame that must have its stage's fate; what it became.
    fn expect(&mut self, stage: Stage, bytes: &[u8]) -> Result<Vec<u8>, StageError> {
        let verdict = self.send(stage.ingress(), bytes);
        check(stage, verdict)?;
        Ok(self.batch[0].bytes().to_vec())
    }

    /// One round of a stage; nanoseconds a packet, the copying of the frame into a buffer included,
    /// as a read from a device has it.
    fn round(&mut self, index: usize) -> Result<f64, StageError> {
        let stage = Stage::ALL[index];
        let (ingress, expected) = (stage.ingress(), stage.verdict());
        let flows = &self.flows[index];
        let mut other = None;
        let start = cpu_time()?;
        for turn in 0..FRAMES / BATCH {
            let frames = flows.iter().cycle().skip(turn * BATCH % flows.len());
            for (buf, bytes) in self.batch.iter_mut().zip(frames) {
                buf.copy_from(bytes, Offload::NONE);
            }
            self.sw.fdb.begin_batch();
            look_ahead(&self.sw, ingress, self.batch.iter());
            for buf in &mut self.batch {
                let mut frame = Frame::new(ingress, buf);
                let verdict = forward(&mut self.sw, &mut frame, NOW, &mut Off);
                if verdict != expected {
                    other = Some(verdict);
                }
            }
        }
        let nanos = (cpu_time()? - start).as_nanos() as f64 / FRAMES as f64;
        other.map_or(Ok(()), |verdict| check(stage, verdict))?;
        Ok(nanos)
    }
}

/// What this thread has had of a CPU: while others have it, nothing of a stage is done.
fn cpu_time() -> Result<Duration, StageError> {
    let read = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_err(StageError::Clock)?;
    Ok(Duration::from(read))
}

/// The data path's clock, which stands still: no session may expire.
const NOW: Instant = Instant::from_secs(10);

fn check(stage: Stage, verdict: Verdict) -> Result<(), StageError> {
    if verdict == stage.verdict() {
        return Ok(());
    }
    Err(StageError::Fate {
        stage: stage.label(),
        verdict,
    })
}

/// The smallest datagram that Ethernet takes.
fn datagram(macs: [MacAddr; 2], ips: [Ipv4Addr; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0)
        .ipv4(ips[0].octets(), ips[1].octets(), 64)
        .udp(ports[0], ports[1]);
    builder
        .write(&mut bytes, &[0; 18])
        .expect("a vector takes every byte, and 18 of them fit a datagram");
    bytes
}

/// A network with two stations, and a way outside by NAT.
fn switch() -> Switch {
    let fdb = Fdb::new(Limits::default(), 1);
    Switch {
        topology: Arc::new(topology()),
        fdb: FdbView::live(fdb),
        bridge: l2::State::new(ProbeKey::new(1)),
        storm: StormView::live(StormMeters::new()),
        groups: MdbView::live(Mdb::new(1)),
        gateway: State::live(&Tables::new(1)),
        counters: Arc::new(Counters::default()),
    }
}

fn topology() -> Topology {
    let mut topology = Topology::default();
    let mut domain = Domain::new(NETWORK, "net");
    domain
        .subnets
        .push(Prefix::new(IpAddr::from([10, 0, 0, 0]), 8));
    domain.gateway = Some(Gateway {
        mac: GATEWAY_MAC,
        addresses: vec![GATEWAY_IP.into()],
        mtu: crate::model::MTU_DEFAULT,
    });
    let neighbour = Neighbour {
        mac: INSIDE_MAC,
        port: INSIDE,
    };
    domain.neighbours.insert(INSIDE_IP.into(), neighbour);
    topology.put_domain(domain);
    for (id, role) in [
        (INSIDE, Role::Bridge(NETWORK)),
        (BESIDE, Role::Bridge(NETWORK)),
        (OUTSIDE, Role::Uplink(UplinkId(0))),
    ] {
        topology.put_port(Port::new(id, &id.to_string(), role));
    }
    topology.local_addresses.insert(HOST_IP.into());
    topology.uplinks.push(Uplink {
        id: UplinkId(0),
        name: "up".into(),
        port: OUTSIDE,
        mac: UPLINK_MAC,
        mtu: crate::model::MTU_DEFAULT,
        addresses: vec![HOST_IP.into()],
        neighbours: [(ROUTER_IP.into(), ROUTER_MAC)].into_iter().collect(),
        peer: None,
    });
    topology.routes.push(Route {
        prefix: Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        uplink: Some(UplinkId(0)),
        next_hop: Some(ROUTER_IP.into()),
        source: None,
    });
    let server = Target::new(0, NETWORK, L4Addr::new(INSIDE_IP.into(), SERVER_PORT));
    let published = PUBLISHED_PORT..=PUBLISHED_PORT;
    let rule = StaticRule::new(1, Transport::Udp, published, server);
    topology
        .statics
        .add(rule)
        .expect("the only rule overlaps no other");
    topology.finish();
    topology
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_does_what_it_is_measured_for() {
        let mut bench = Bench::new().unwrap();
        let sent = |bench: &mut Bench, index: usize| {
            let bytes = bench.flows[index][7].clone();
            bench.expect(Stage::ALL[index], &bytes).unwrap()
        };
        let ends = |bytes: &[u8]| -> [Vec<u8>; 4] {
            [26..30, 30..34, 34..36, 36..38].map(|range| bytes[range].to_vec())
        };
        let port = |port: u16| port.to_be_bytes().to_vec();
        let ip = |ip: Ipv4Addr| ip.octets().to_vec();
        let bridged = ends(&sent(&mut bench, 0));
        assert_eq!(
            bridged,
            [ip(INSIDE_IP), ip(BESIDE_IP), port(2_007), port(9)]
        );
        let out = ends(&sent(&mut bench, 1));
        assert_eq!(out[..2], [ip(HOST_IP), ip(REMOTE_IP)]);
        let back = ends(&sent(&mut bench, 2));
        assert_eq!(back, [ip(REMOTE_IP), ip(INSIDE_IP), port(9), port(2_007)]);
        let asked = ends(&sent(&mut bench, 3));
        let expected = [ip(REMOTE_IP), ip(INSIDE_IP), port(2_007), port(SERVER_PORT)];
        assert_eq!(asked, expected);
        let answer = ends(&sent(&mut bench, 4));
        let expected = [
            ip(HOST_IP),
            ip(REMOTE_IP),
            port(PUBLISHED_PORT),
            port(2_007),
        ];
        assert_eq!(answer, expected);
        assert_eq!(bench.sw.gateway.session_count(), 2 * usize::from(FLOWS));
    }

    #[test]
    fn a_frame_of_another_fate_is_no_figure() {
        let mut bench = Bench::new().unwrap();
        let mut topology = Topology::clone(&bench.sw.topology);
        topology.statics = Default::default();
        topology.generation += 1;
        topology.finish();
        bench.sw.topology = Arc::new(topology);
        let refused = bench.round(3).unwrap_err().to_string();
        assert!(refused.contains("dnat-in"), "{refused}");
    }
}
