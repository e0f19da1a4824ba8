//! Mirrors: what a port shows of others, in order and as it was, whichever worker has it.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::stats::EgressDrop;
use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::{Form, Mirror, MirrorDirection, MirrorSource, PortFlags, PortVlans};
use dataplane_core::topology::{Multicast, Port, Role, Topology};
use dataplane_core::verdict::{DropReason, VerdictKind};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::spool::{self, Woken};
use dataplane_port::{Capabilities, PortIo};
use world::{RED, groups, mac};

const DEADLINE: Duration = Duration::from_secs(20);
/// Ports that show the copies of mirrors, and nothing else.
const SHOWING: [u16; 2] = [6, 7];
/// Frames whose order is looked at; no more than a memory port holds.
const FRAMES: u8 = 40;

/// Ports 1 to 3 of network red, and two that show what is mirrored.
struct Rig {
    dataplane: Dataplane,
    peers: Vec<(u16, MemoryPeer)>,
    topology: Topology,
}

impl Rig {
    fn new(workers: usize, mirrors: Vec<Mirror>) -> Self {
        let config = Config {
            workers,
            waiting: Waiting::Sleep,
            ..Config::default()
        };
        let dataplane = Dataplane::start(&config).unwrap();
        let mut topology = world::topology();
        let mut peers = Vec::new();
        for port in [1, 2, 3].into_iter().chain(SHOWING) {
            let (io, peer) = MemoryPort::pair(Capabilities::offloading(70_000), 256);
            let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
            dataplane.add_port(PortId(port), queues).unwrap();
            peers.push((port, peer));
        }
        for port in SHOWING {
            topology.put_port(Port {
                flags: PortFlags::MIRROR | PortFlags::OFFLOAD,
                ..Port::new(PortId(port), &format!("span{port}"), Role::Bridge(RED))
            });
        }
        topology.mirrors = mirrors;
        topology.finish();
        dataplane.install(topology.clone()).unwrap();
        Self {
            dataplane,
            peers,
            topology,
        }
    }

    fn peer(&self, port: u16) -> &MemoryPeer {
        let mut peers = self.peers.iter();
        &peers.find(|(id, _)| *id == port).unwrap().1
    }

    fn send(&self, port: u16, bytes: &[u8], offload: Offload) {
        let before = self.dataplane.stats().rx;
        assert!(self.peer(port).inject(bytes, offload));
        self.wait_for(|rig| rig.dataplane.stats().rx == before + 1);
        // Taken up between two batches: what the frame became has left its worker.
        let same = Topology::clone(&self.dataplane.topology());
        self.dataplane.install(same).unwrap();
        self.wait_for(|rig| {
            let stats = rig.dataplane.stats();
            let idle = stats.ports.iter().all(|port| port.queued == 0);
            idle && stats.check_laws().is_ok()
        });
    }

    fn shown(&self, port: u16) -> Vec<Vec<u8>> {
        let taken = std::iter::from_fn(|| self.peer(port).take());
        taken.map(|(bytes, _)| bytes).collect()
    }

    #[track_caller]
    fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{:?}", self.dataplane.stats());
            std::thread::yield_now();
        }
    }
}

fn mirror(from: MirrorSource, direction: MirrorDirection, to: u16) -> Mirror {
    Mirror {
        from,
        direction,
        to: PortId(to),
    }
}

fn plain(src: u8, dst: MacAddr, number: u8) -> Vec<u8> {
    let mut frame = [dst.0, mac(src).0].concat();
    frame.extend([0x88, 0xb5, number]);
    frame.resize(60 + usize::from(number), 0x5a);
    frame
}

const PORT_1: MirrorSource = MirrorSource::Port(PortId(1));

#[test]
fn frames_are_shown_in_order_and_bit_by_bit_on_either_way() {
    for workers in [1, 2] {
        for direction in MirrorDirection::ALL {
            let rig = Rig::new(workers, vec![mirror(PORT_1, direction, 6)]);
            let mut wanted = Vec::new();
            for number in 0..FRAMES / 2 {
                let there = plain(1, mac(2), number);
                rig.send(1, &there, Offload::NONE);
                let back = plain(2, mac(1), number);
                rig.send(2, &back, Offload::NONE);
                rig.send(3, &plain(3, mac(2), number), Offload::NONE);
                match direction {
                    MirrorDirection::In => wanted.push(there),
                    MirrorDirection::Out => wanted.push(back),
                    MirrorDirection::Both => wanted.extend([there, back]),
                }
            }
            assert_eq!(rig.shown(6), wanted, "{workers} workers, {direction:?}");
            let stats = rig.dataplane.stats();
            let port = stats.port(PortId(6)).unwrap();
            let copies = wanted.len() as u64;
            assert_eq!((port.mirrored, port.sent_frames), (copies, copies));
            assert_eq!(stats.port(PortId(2)).unwrap().mirrored, 0);
        }
    }
}

#[test]
fn a_network_is_shown_once_for_each_port_that_a_frame_enters_or_leaves_by() {
    let network = MirrorSource::Domain(RED);
    for (direction, copies) in [
        (MirrorDirection::In, 1),
        (MirrorDirection::Out, 2),
        (MirrorDirection::Both, 3),
    ] {
        let rig = Rig::new(1, vec![mirror(network, direction, 6)]);
        let frame = plain(1, MacAddr::BROADCAST, 1);
        rig.send(1, &frame, Offload::NONE);
        assert_eq!(rig.shown(6), vec![frame; copies], "{direction:?}");
    }
}

#[test]
fn what_a_mirror_shows_is_mirrored_by_none_and_nothing_enters_there() {
    let own = mirror(MirrorSource::Port(PortId(6)), MirrorDirection::Both, 7);
    let rig = Rig::new(1, vec![mirror(PORT_1, MirrorDirection::Both, 6), own]);
    let frame = plain(1, MacAddr::BROADCAST, 1);
    rig.send(1, &frame, Offload::NONE);
    assert_eq!(rig.shown(6), [frame]);
    assert!(rig.shown(7).is_empty(), "a copy of a copy");
    for port in [1, 2, 3] {
        rig.shown(port);
    }
    let intruder = plain(9, MacAddr::BROADCAST, 2);
    rig.send(6, &intruder, Offload::NONE);
    for port in [1, 2, 3] {
        assert!(rig.shown(port).is_empty());
    }
    assert_eq!(rig.shown(7), [intruder], "it has entered, and ends");
    let drops = rig.dataplane.stats().drops;
    let ended = drops.iter().find(|(r, _)| *r == DropReason::MirrorPort);
    assert_eq!(ended.map(|(_, count)| *count), Some(1));
}

#[test]
fn large_frames_are_shown_as_they_are() {
    let rig = Rig::new(1, vec![mirror(PORT_1, MirrorDirection::In, 6)]);
    let frame = [plain(1, mac(2), 1), vec![7; 20_000]].concat();
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1_400,
        csum_start: 34,
        csum_offset: 16,
    };
    rig.send(1, &frame, offload);
    assert_eq!(rig.peer(6).take(), Some((frame, offload)));
}

#[test]
fn copies_for_a_thread_wait_for_it_and_the_newest_are_dropped_when_too_many_do() {
    const SPOOL: PortId = PortId(8);
    // One worker, so that none is lost on the way to the one that owns the port.
    let rig = Rig::new(1, Vec::new());
    let (port, mut reader) = spool::pair().unwrap();
    rig.dataplane.add_port(SPOOL, vec![Box::new(port)]).unwrap();
    let mut topology = rig.topology.clone();
    topology.put_port(Port {
        mtu: u16::MAX,
        flags: PortFlags::MIRROR | PortFlags::OFFLOAD,
        ..Port::new(SPOOL, "spool", Role::Bridge(RED))
    });
    topology.mirrors = vec![mirror(PORT_1, MirrorDirection::In, SPOOL.0)];
    topology.finish();
    rig.dataplane.install(topology).unwrap();
    let count = 250;
    let frames = (0..count).map(|number| {
        let mut frame = plain(1, mac(2), number);
        frame.resize(60_000, number);
        frame
    });
    let sent: Vec<_> = frames.collect();
    for frame in &sent {
        assert!(rig.peer(1).inject(frame, Offload::NONE));
    }
    let copies = |rig: &Rig| rig.dataplane.stats().port(SPOOL).unwrap().clone();
    rig.wait_for(|rig| copies(rig).mirrored == u64::from(count));
    rig.wait_for(|rig| rig.dataplane.stats().check_laws().is_ok());
    let lost: u64 = copies(&rig).drops.iter().map(|(_, count)| count).sum();
    assert!(lost > 0 && lost < 100, "{:?}", copies(&rig));
    assert_eq!(copies(&rig).drops[EgressDrop::QueueFull as usize].1, lost);
    assert!(copies(&rig).queued > 0, "some wait outside of the ring");
    let (mut taken, mut frame) = (Vec::new(), Vec::new());
    while taken.len() as u64 + lost < u64::from(count) {
        assert_eq!(reader.wait(DEADLINE), Woken::Frames);
        while reader.take(&mut frame).is_some() {
            taken.push(frame.clone());
        }
    }
    assert!(taken == sent[..taken.len()], "the oldest, in order");
}

#[test]
fn a_group_that_is_snooped_is_shown_where_it_leaves_and_nowhere_else() {
    let leaving = MirrorDirection::Out;
    let to_router = mirror(MirrorSource::Port(PortId(3)), leaving, 6);
    let to_stranger = mirror(MirrorSource::Port(PortId(2)), leaving, 7);
    let mut rig = Rig::new(1, vec![to_router, to_stranger]);
    let red = rig.topology.domains[RED.index()].as_mut().unwrap();
    red.multicast = Multicast::Snooped;
    rig.dataplane.install(rig.topology.clone()).unwrap();
    let group = "239.1.2.3".parse().unwrap();
    // A querier that wants its answers at once, and nobody who gives one.
    rig.send(
        3,
        &groups::query(mac(3), "10.1.0.4".parse().unwrap(), 1),
        Offload::NONE,
    );
    let trusted = |rig: &Rig| {
        let (mdb, now) = (rig.dataplane.mdb(), rig.dataplane.now());
        let queriers = mdb.queriers(&rig.dataplane.topology(), RED, now);
        queriers.iter().any(|querier| querier.trusted)
    };
    rig.wait_for(trusted);
    for port in [1, 2, 3, 6, 7] {
        rig.shown(port);
    }
    let frame = groups::data(mac(1), group);
    rig.send(1, &frame, Offload::NONE);
    assert_eq!(rig.dataplane.stats().verdict(VerdictKind::Multicast), 1);
    assert_eq!(rig.shown(3), std::slice::from_ref(&frame));
    assert_eq!(rig.shown(6), std::slice::from_ref(&frame));
    assert_eq!(rig.shown(2), Vec::<Vec<u8>>::new());
    assert_eq!(rig.shown(7), Vec::<Vec<u8>>::new());
    // Somebody listens: it is shown as it leaves to him as well.
    rig.send(2, &groups::report(mac(2), group), Offload::NONE);
    for port in [3, 6] {
        rig.shown(port);
    }
    rig.send(1, &frame, Offload::NONE);
    for port in [2, 3, 6, 7] {
        assert_eq!(rig.shown(port), std::slice::from_ref(&frame), "port {port}");
    }
}

#[test]
fn a_flood_in_a_vlan_is_shown_as_it_leaves_by_the_port() {
    let leaving = MirrorDirection::Out;
    let mut rig = Rig::new(
        1,
        vec![
            mirror(MirrorSource::Port(PortId(2)), leaving, 6),
            mirror(MirrorSource::Port(PortId(3)), leaving, 7),
        ],
    );
    let mut trunk = PortVlans::NONE;
    trunk.add(10..=10, Form::Tagged);
    let access = PortVlans::access(VlanId(10));
    let vlans = [access.clone(), access, trunk];
    for (port, vlans) in rig.topology.ports.iter_mut().skip(1).flatten().zip(vlans) {
        port.flags = port.flags.with(PortFlags::FILTERING);
        port.profile_mut().vlans = Some(Box::new(vlans));
    }
    rig.dataplane.install(rig.topology.clone()).unwrap();
    let frame = plain(1, MacAddr::BROADCAST, 1);
    rig.send(1, &frame, Offload::NONE);
    let tagged = [&frame[..12], &[0x81, 0, 0, 10], &frame[12..]].concat();
    assert_eq!(rig.shown(2), std::slice::from_ref(&frame));
    assert_eq!(rig.shown(3), std::slice::from_ref(&tagged));
    assert_eq!(rig.shown(6), [frame]);
    assert_eq!(rig.shown(7), [tagged]);
}
