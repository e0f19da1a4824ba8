//! MAC-NAT on the way out: whoever has the port's queue, and whatever else a frame is flooded to.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::stats::EgressDrop;
use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::{MacNat, Mirror, MirrorDirection, MirrorSource, PortFlags};
use dataplane_core::topology::{Port, Role, Topology};
use dataplane_core::verdict::DropReason;
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use world::packets::{arp_request, udp4};
use world::{RED, mac};

const DEADLINE: Duration = Duration::from_secs(20);
/// The port with one MAC: before other ports in a flood, so that what they get would show a trace of
/// it.
const LAN: u16 = 2;
/// The port that shows what leaves by it.
const SPAN: u16 = 6;
const NAT_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0x77, 0x01]);
const OUTSIDE: MacAddr = MacAddr([0x02, 0, 0, 0, 0x99, 0x01]);

/// Ports 1 to 3 of red, the second of which leads to a LAN.
struct Rig {
    dataplane: Dataplane,
    peers: Vec<(u16, MemoryPeer)>,
}

impl Rig {
    fn new(workers: usize) -> Self {
        let config = Config {
            workers,
            waiting: Waiting::Sleep,
            ..Config::default()
        };
        let dataplane = Dataplane::start(&config).unwrap();
        let mut topology = world::topology();
        let mut peers = Vec::new();
        for port in [1, LAN, 3, SPAN] {
            let (io, peer) = MemoryPort::pair(Capabilities::offloading(70_000), 256);
            let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
            dataplane.add_port(PortId(port), queues).unwrap();
            peers.push((port, peer));
        }
        let lan = topology.ports[usize::from(LAN)].as_mut().unwrap();
        lan.flags = lan.flags.with(PortFlags::MAC_NAT);
        lan.profile_mut().mac_nat = Some(MacNat::new(NAT_MAC, 1));
        topology.put_port(Port {
            flags: PortFlags::MIRROR | PortFlags::OFFLOAD,
            ..Port::new(PortId(SPAN), "span", Role::Bridge(RED))
        });
        topology.mirrors.push(Mirror {
            from: MirrorSource::Port(PortId(LAN)),
            direction: MirrorDirection::Out,
            to: PortId(SPAN),
        });
        topology.finish();
        dataplane.install(topology).unwrap();
        Self { dataplane, peers }
    }

    fn peer(&self, port: u16) -> &MemoryPeer {
        let mut peers = self.peers.iter();
        &peers.find(|(id, _)| *id == port).unwrap().1
    }

    /// Sends a frame, and waits until whatever came of it has left.
    fn send(&self, port: u16, bytes: &[u8]) {
        let before = self.dataplane.stats().rx;
        assert!(self.peer(port).inject(bytes, Offload::NONE));
        self.wait_for(|rig| rig.dataplane.stats().rx == before + 1);
        let same = Topology::clone(&self.dataplane.topology());
        self.dataplane.install(same).unwrap();
        self.wait_for(|rig| {
            let stats = rig.dataplane.stats();
            let idle = stats.ports.iter().all(|port| port.queued == 0);
            idle && stats.check_laws().is_ok()
        });
    }

    fn left(&self, port: u16) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.peer(port).take())
            .map(|(bytes, _)| bytes)
            .collect()
    }

    /// What has come out of a port, as soon as it has.
    fn wait_left(&self, port: u16) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some((bytes, _)) = self.peer(port).take() {
                return bytes;
            }
            assert!(Instant::now() < deadline, "{:?}", self.dataplane.stats());
            std::thread::yield_now();
        }
    }

    #[track_caller]
    fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{:?}", self.dataplane.stats());
            std::thread::yield_now();
        }
    }

    fn dropped(&self, reason: EgressDrop) -> u64 {
        let stats = self.dataplane.stats();
        let port = stats.ports.iter().find(|port| port.port == PortId(LAN));
        port.unwrap().drops[reason as usize].1
    }
}

fn translated(frame: &[u8]) -> Vec<u8> {
    let mut wanted = frame.to_vec();
    wanted[6..12].copy_from_slice(&NAT_MAC.0);
    if wanted[12..14] == [0x08, 0x06] {
        wanted[22..28].copy_from_slice(&NAT_MAC.0);
    }
    wanted
}

#[test]
fn a_flood_leaves_by_the_lan_under_its_mac_and_by_the_others_as_it_came() {
    for workers in [1, 2, 3] {
        let rig = Rig::new(workers);
        let asks = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 200]);
        rig.send(1, &asks);
        assert_eq!(rig.wait_left(LAN), translated(&asks), "{workers} workers");
        assert_eq!(rig.wait_left(3), asks, "{workers} workers");
        assert_eq!(rig.wait_left(SPAN), translated(&asks), "as it has left");
        assert_eq!(rig.left(LAN), Vec::<Vec<u8>>::new(), "once");
    }
}

#[test]
fn a_talk_with_the_lan_goes_both_ways_whichever_worker_has_the_port() {
    for owner in [0, 1] {
        let rig = Rig::new(2);
        rig.dataplane.move_port(PortId(LAN), owner).unwrap();
        rig.send(LAN, &arp_request(OUTSIDE, [10, 1, 0, 200], [10, 1, 0, 200]));
        rig.wait_left(1);
        rig.send(1, &arp_request(mac(1), [10, 1, 0, 77], [10, 1, 0, 200]));
        rig.wait_left(LAN);
        let ask = udp4(mac(1), OUTSIDE, "10.1.0.77", "10.1.0.200", 64, 32);
        rig.send(1, &ask);
        assert_eq!(rig.wait_left(LAN), translated(&ask), "owner {owner}");
        let answer = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.77", 64, 32);
        rig.send(LAN, &answer);
        let mut wanted = answer.clone();
        wanted[..6].copy_from_slice(&mac(1).0);
        assert_eq!(rig.wait_left(1), wanted, "owner {owner}");
    }
}

#[test]
fn what_has_no_way_back_is_dropped_on_the_port_and_counted() {
    let rig = Rig::new(1);
    rig.send(LAN, &arp_request(OUTSIDE, [10, 1, 0, 200], [10, 1, 0, 200]));
    let mut other = [OUTSIDE.0, mac(1).0].concat();
    other.extend([0x88, 0xb5]);
    other.resize(60, 7);
    rig.send(1, &other);
    rig.wait_for(|rig| rig.dropped(EgressDrop::MacNatNotIp) == 1);
    assert_eq!(rig.left(LAN), Vec::<Vec<u8>>::new());
    let mut cut = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    cut.truncate(40);
    rig.send(1, &cut);
    rig.wait_for(|rig| rig.dropped(EgressDrop::MacNatUnreadable) == 1);
    rig.send(LAN, &arp_request(NAT_MAC, [10, 1, 0, 2], [10, 1, 0, 2]));
    let stats = rig.dataplane.stats();
    assert_eq!(stats.dropped(DropReason::MacNatEcho), 1);
}
