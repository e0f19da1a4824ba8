//! Names at the gateway of a running switch: frames in, frames out, on real workers.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dataplane::{Config, Dataplane, SERVICE_QUEUE_MAX, Waiting};
use dataplane_core::addr::PortId;
use dataplane_core::checksum::Sum;
use dataplane_core::frame::Offload;
use dataplane_core::topology::{Resolver, Topology};
use dataplane_core::verdict::VerdictKind;
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use dataplane_service::dns::message::Transport;
use dataplane_service::dns::zone::Forward;
use dataplane_service::dns::{EndpointNames, NetworkNames, Via, Zones};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use world::packets::{assert_valid, octets4};
use world::{RED, gateway_mac, ip, mac};

const DEADLINE: Duration = Duration::from_secs(20);

struct Rig {
    dataplane: Dataplane,
    peers: Vec<MemoryPeer>,
}

impl Rig {
    fn new(workers: usize, waiting: Waiting) -> Self {
        let config = Config {
            workers,
            waiting,
            ..Config::default()
        };
        let dataplane = Dataplane::start(&config).unwrap();
        let mut peers = Vec::new();
        for port in 1..=3 {
            let (io, peer) = MemoryPort::pair(Capabilities::offloading(70_000), 2_048);
            let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
            dataplane.add_port(PortId(port), queues).unwrap();
            peers.push(peer);
        }
        let rig = Self { dataplane, peers };
        rig.install(|_| {});
        rig.dataplane
            .set_zones(Arc::new(Zones::build(vec![NetworkNames {
                domain: RED,
                name: "red".to_owned(),
                subnets: Vec::new(),
                forward: Forward::Nobody,
                endpoints: vec![Arc::new(EndpointNames {
                    names: vec!["b".to_owned()],
                    addresses: vec![ip("10.1.0.3")],
                    upstreams: Vec::new(),
                    links: Vec::new(),
                })],
            }])));
        rig
    }

    fn install(&self, change: impl FnOnce(&mut Topology)) {
        let mut topology = world::topology();
        topology.domains[RED.index()].as_mut().unwrap().resolver = Resolver::Service;
        change(&mut topology);
        topology.finish();
        self.dataplane.install(topology).unwrap();
    }

    fn take(&self, port: usize) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some((frame, _)) = self.peers[port - 1].take() {
                return frame;
            }
            assert!(Instant::now() < deadline, "nothing came to port {port}");
            std::thread::yield_now();
        }
    }

    fn wait(&self, what: &str, holds: impl Fn(&dataplane::stats::Stats) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(&self.dataplane.stats()) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }
}

/// A question for the address of `b`.
fn question(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let header = [high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], &[1, b'b', 0, 0, 1, 0, 1]].concat()
}

fn frame(port: u8, id: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(port).0, gateway_mac(RED).0)
        .ipv4([10, 1, 0, port + 1], octets4("10.1.0.1"), 64)
        .udp(4_000, 53)
        .write(&mut frame, &question(id))
        .unwrap();
    frame
}

fn assert_answer(frame: &[u8], id: u16) {
    assert_valid(frame);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("no UDP")
    };
    assert_eq!((udp.source_port(), udp.destination_port()), (53, 4_000));
    let message = udp.payload();
    assert_eq!(message[..2], id.to_be_bytes());
    assert_eq!(message[message.len() - 4..], [10, 1, 0, 3]);
}

#[test]
fn a_name_is_answered_to_the_port_that_asked_whoever_owns_it() {
    for (workers, waiting) in [
        (1, Waiting::Sleep),
        (2, Waiting::Sleep),
        (2, Waiting::Always),
    ] {
        let rig = Rig::new(workers, waiting);
        for id in 0..200 {
            let port = u8::try_from(id % 3 + 1).unwrap();
            assert!(rig.peers[usize::from(port) - 1].inject(&frame(port, id), Offload::NONE));
            let answer = rig.take(port.into());
            assert_eq!(answer[..6], mac(port).0);
            assert_eq!(answer[6..12], gateway_mac(RED).0);
            assert_answer(&answer, id);
        }
        let stats = rig.dataplane.stats();
        stats.check_laws().unwrap();
        assert_eq!(stats.verdict(VerdictKind::Delivered), 200);
        assert_eq!(rig.dataplane.name_stats().get("own"), 200);
    }
}

#[test]
fn a_checksum_that_is_left_to_the_device_is_no_obstacle() {
    let rig = Rig::new(1, Waiting::Sleep);
    let mut unfinished = frame(1, 7);
    let (src, dst) = (ip("10.1.0.2"), ip("10.1.0.1"));
    let partial = Sum::pseudo_header(src, dst, 17, unfinished.len() - 34).folded();
    unfinished[40..42].copy_from_slice(&partial.to_be_bytes());
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Offload::NONE
    };
    assert!(rig.peers[0].inject(&unfinished, offload));
    assert_answer(&rig.take(1), 7);
}

#[test]
fn a_service_that_is_stuck_holds_no_worker_and_what_it_misses_is_counted() {
    let rig = Rig::new(1, Waiting::Sleep);
    let (stuck, is_stuck) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let via = Via {
        domain: RED,
        source: ip("10.1.0.2"),
        transport: Transport::Udp,
    };
    let asked = rig.dataplane.ask_name(via, question(1), move |_| {
        stuck.send(()).unwrap();
        let _ = released.recv_timeout(DEADLINE);
    });
    assert!(asked);
    is_stuck.recv_timeout(DEADLINE).unwrap();
    let extra = 40;
    for id in 0..SERVICE_QUEUE_MAX + extra {
        let frame = frame(1, u16::try_from(id).unwrap());
        assert!(rig.peers[0].inject(&frame, Offload::NONE));
    }
    let refused = |stats: &dataplane::stats::Stats| stats.workers[0].service_refused;
    rig.wait("the queue is full", |stats| refused(stats) == extra as u64);
    // Other frames go on.
    let mut other = frame(1, 0);
    other[..6].copy_from_slice(&mac(2).0);
    assert!(rig.peers[0].inject(&other, Offload::NONE));
    assert_eq!(rig.take(2), other);
    rig.install(|_| {});
    release.send(()).unwrap();
    for id in 0..SERVICE_QUEUE_MAX {
        assert_answer(&rig.take(1), u16::try_from(id).unwrap());
    }
    rig.dataplane.stats().check_laws().unwrap();
}

#[test]
fn a_network_that_is_not_served_any_more_gets_no_answer() {
    let rig = Rig::new(1, Waiting::Sleep);
    assert!(rig.peers[0].inject(&frame(1, 1), Offload::NONE));
    assert_answer(&rig.take(1), 1);
    rig.install(|topology| {
        topology.domains[RED.index()].as_mut().unwrap().resolver = Resolver::Host;
    });
    assert!(rig.peers[0].inject(&frame(1, 2), Offload::NONE));
    rig.wait("it has a verdict", |stats| {
        stats.verdicts.iter().map(|(_, n)| n).sum::<u64>() >= 2
    });
    assert!(rig.peers[0].take().is_none());
    rig.install(|_| {});
    assert!(rig.peers[0].inject(&frame(1, 3), Offload::NONE));
    assert_answer(&rig.take(1), 3);
}
