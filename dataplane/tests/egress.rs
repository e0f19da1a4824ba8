//! The way out of a worker: what a device cannot do is done for it, what it does not take is
//! counted, and copies are neither lost nor made up.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::stats::{EgressDrop, PortStats};
use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::PortFlags;
use dataplane_core::topology::{AGEING_DEFAULT, Topology};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use etherparse::{SlicedPacket, TransportSlice};
use world::mac;
use world::packets::unfinished;

const DEADLINE: Duration = Duration::from_secs(20);
/// Largest frame of the world's ports: MTU 1500, Ethernet header, one tag.
const FRAME_SIZE_MAX: usize = 1_518;

/// The stations that are known on a port of network red.
fn stations_on(rig: &Rig, port: u16) -> usize {
    let fdb = rig.dataplane.fdb();
    let rows = fdb.rows(world::RED, rig.dataplane.now(), AGEING_DEFAULT);
    rows.iter().filter(|row| row.port == PortId(port)).count()
}

struct Rig {
    dataplane: Dataplane,
    peers: Vec<MemoryPeer>,
}

impl Rig {
    /// Ports 1, 2 and 3 of network red, port 2 with `capabilities`, each queue of `queue_len`.
    fn new(workers: usize, capabilities: Capabilities, queue_len: usize) -> Self {
        let config = Config {
            workers,
            waiting: Waiting::Sleep,
            ..Config::default()
        };
        let dataplane = Dataplane::start(&config).unwrap();
        let offloading = Capabilities::offloading(70_000);
        let mut peers = Vec::new();
        for (port, capabilities) in [(1, offloading), (2, capabilities), (3, offloading)] {
            let (io, peer) = MemoryPort::pair(capabilities, queue_len);
            let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
            dataplane.add_port(PortId(port), queues).unwrap();
            peers.push(peer);
        }
        dataplane.install(world::topology()).unwrap();
        let rig = Self { dataplane, peers };
        // Port 2 makes its station known; who hears it does not matter.
        rig.send(2, &plain(mac(2), MacAddr::BROADCAST, 60), Offload::NONE);
        rig.wait_for(|rig| rig.peers[0].pending() == 1 && rig.peers[2].pending() == 1);
        for peer in &rig.peers {
            while peer.take().is_some() {}
        }
        rig
    }

    /// Turns flags of a port on and off.
    fn set(&self, port: u16, on: PortFlags, off: PortFlags) {
        let mut topology = Topology::clone(&self.dataplane.topology());
        let port = topology.ports[usize::from(port)].as_mut().unwrap();
        port.flags = port.flags.with(on).without(off);
        topology.finish();
        self.dataplane.install(topology).unwrap();
    }

    fn send(&self, port: usize, bytes: &[u8], offload: Offload) {
        let deadline = Instant::now() + DEADLINE;
        while !self.peers[port - 1].inject(bytes, offload) {
            assert!(Instant::now() < deadline, "port {port} takes no frame");
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

    /// What port 2 got of one frame that port 1 sent.
    fn through(&self, bytes: &[u8], offload: Offload) -> Vec<(Vec<u8>, Offload)> {
        let before = self.port(2).enqueued;
        self.send(1, bytes, offload);
        self.wait_for(|rig| rig.port(2).enqueued == before + 1 && rig.settled(2));
        std::iter::from_fn(|| self.peers[1].take()).collect()
    }

    fn port(&self, port: u16) -> PortStats {
        self.dataplane.stats().port(PortId(port)).unwrap().clone()
    }

    /// Whether every copy for a port has been sent or dropped.
    fn settled(&self, port: u16) -> bool {
        let stats = self.port(port);
        let drops: u64 = stats.drops.iter().map(|(_, count)| count).sum();
        stats.enqueued == stats.sent_frames + drops
    }
}

fn plain(src: MacAddr, dst: MacAddr, size: usize) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(size, 0x5a);
    frame
}

#[track_caller]
fn assert_sound(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        panic!("no TCP")
    };
    let sum = tcp.calc_checksum_ipv4([10, 1, 0, 2], [10, 1, 0, 3]);
    assert_eq!(tcp.checksum(), sum.unwrap());
}

#[test]
fn a_checksum_is_completed_for_a_device_that_cannot() {
    let (frame, offload) = unfinished(500, 0);
    let rig = Rig::new(1, Capabilities::plain(FRAME_SIZE_MAX), 16);
    let got = rig.through(&frame, offload);
    assert!(got.len() == 1 && !got[0].1.needs_checksum());
    assert_sound(&got[0].0);
    assert_eq!(rig.port(2).checksums, 1);
    let rig = Rig::new(1, Capabilities::offloading(70_000), 16);
    assert_eq!(rig.through(&frame, offload), [(frame, offload)]);
    assert_eq!(rig.port(2).checksums, 0);
}

#[test]
fn a_gso_frame_is_cut_for_a_device_that_cannot() {
    let (frame, offload) = unfinished(10_000, 1_448);
    let rig = Rig::new(1, Capabilities::plain(FRAME_SIZE_MAX), 16);
    let got = rig.through(&frame, offload);
    assert_eq!(got.len(), 7);
    for (segment, offload) in &got {
        assert!(segment.len() <= 1_502 && *offload == Offload::NONE);
        assert_sound(segment);
    }
    let stats = rig.port(2);
    assert_eq!(
        (stats.segments, stats.sent_frames - 1, stats.sent_gso),
        (7, 0, 0)
    );
    let rig = Rig::new(1, Capabilities::offloading(70_000), 16);
    assert_eq!(rig.through(&frame, offload), [(frame, offload)]);
    assert_eq!(rig.port(2).sent_gso, 1);
}

#[test]
fn frames_leave_complete_by_a_port_whose_offload_is_off() {
    let rig = Rig::new(1, Capabilities::offloading(70_000), 16);
    let (large, cut) = unfinished(10_000, 1_448);
    let (small, sum) = unfinished(500, 0);
    for _ in 0..2 {
        rig.set(2, PortFlags::NONE, PortFlags::OFFLOAD);
        let got = rig.through(&large, cut);
        assert_eq!(got.len(), 7);
        for (frame, offload) in got.iter().chain(&rig.through(&small, sum)) {
            let complete = !offload.needs_checksum() && offload.gso().is_none();
            assert!(frame.len() <= 1_502 && complete);
            assert_sound(frame);
        }
        rig.set(2, PortFlags::OFFLOAD, PortFlags::NONE);
        assert_eq!(rig.through(&large, cut), [(large.clone(), cut)]);
        assert_eq!(rig.through(&small, sum), [(small.clone(), sum)]);
    }
}

/// A frame that must be cut is not sent before what waits for the same device.
#[test]
fn what_must_be_cut_does_not_overtake() {
    const ROUNDS: u32 = 300;
    let rig = Rig::new(1, Capabilities::plain(FRAME_SIZE_MAX), 64);
    let (large, offload) = unfinished(3_000, 1_000);
    let mut in_one_batch = 0;
    for round in 0..ROUNDS {
        let batches = rig.dataplane.stats().workers[0].batches;
        let before = rig.port(2).enqueued;
        let size = 60 + (round % 40) as usize;
        rig.send(1, &plain(mac(1), mac(2), size), Offload::NONE);
        rig.send(1, &large, offload);
        rig.wait_for(|rig| rig.port(2).enqueued == before + 2 && rig.settled(2));
        let sizes: Vec<usize> = std::iter::from_fn(|| rig.peers[1].take())
            .map(|(bytes, _)| bytes.len())
            .collect();
        assert_eq!(sizes, [size, 1_054, 1_054, 1_054], "round {round}");
        in_one_batch += u32::from(rig.dataplane.stats().workers[0].batches == batches + 1);
    }
    println!("{in_one_batch} of {ROUNDS} rounds came as one batch");
    assert!(in_one_batch > 0, "never put to the test");
}

#[test]
fn a_frame_beyond_the_mtu_and_a_tag_is_dropped_and_counted() {
    let rig = Rig::new(1, Capabilities::offloading(70_000), 16);
    let whole = plain(mac(1), mac(2), FRAME_SIZE_MAX);
    assert_eq!(rig.through(&whole, Offload::NONE), [(whole, Offload::NONE)]);
    let larger = plain(mac(1), mac(2), FRAME_SIZE_MAX + 1);
    assert_eq!(rig.through(&larger, Offload::NONE), []);
    let drops = rig.port(2).drops;
    assert!(drops.contains(&(EgressDrop::Oversize, 1)), "{drops:?}");
    rig.dataplane.stats().check_laws().unwrap();
}

#[test]
fn a_flood_reaches_each_other_port_once_and_never_its_ingress() {
    let rig = Rig::new(1, Capabilities::offloading(70_000), 64);
    let hello = plain(mac(1), MacAddr::BROADCAST, 60);
    for _ in 0..20 {
        rig.send(1, &hello, Offload::NONE);
    }
    rig.wait_for(|rig| rig.peers[1].pending() == 20 && rig.peers[2].pending() == 20);
    rig.wait_for(|rig| rig.dataplane.stats().check_laws().is_ok());
    assert_eq!(rig.peers[0].pending(), 0);
    // Port 1 heard the greeting of port 2 when the rig was made, and nothing since.
    assert_eq!(rig.port(1).enqueued, 1);
}

#[test]
fn a_device_that_takes_no_more_costs_counted_copies() {
    let rig = Rig::new(1, Capabilities::offloading(70_000), 8);
    let frame = plain(mac(1), mac(2), 60);
    for _ in 0..500 {
        rig.send(1, &frame, Offload::NONE);
    }
    rig.wait_for(|rig| rig.port(2).enqueued == 500);
    assert_eq!(rig.peers[1].pending(), 8);
    rig.wait_for(|rig| {
        let stats = rig.port(2);
        let drops: u64 = stats.drops.iter().map(|(_, count)| count).sum();
        stats.sent_frames + stats.queued + drops == 500
    });
    rig.dataplane.stats().check_laws().unwrap();
}

#[test]
fn workers_hand_frames_over_for_as_long_as_it_takes() {
    let rig = Rig::new(2, Capabilities::offloading(70_000), 64);
    let (frame, back) = (plain(mac(1), mac(2), 60), plain(mac(2), mac(1), 60));
    rig.send(1, &frame, Offload::NONE);
    rig.wait_for(|rig| rig.peers[1].take().is_some());
    // More than there are buffers for frames on their way between two workers.
    for _ in 0..dataplane::HANDOVER_MAX / 8 {
        for (from, to, frame) in [(1, 1, &frame), (2, 0, &back)] {
            let taken = std::cell::Cell::new(0);
            for _ in 0..16 {
                rig.send(from, frame, Offload::NONE);
            }
            rig.wait_for(|rig| {
                taken.set(taken.get() + u32::from(rig.peers[to].take().is_some()));
                taken.get() == 16
            });
        }
    }
    rig.wait_for(|rig| rig.dataplane.stats().check_laws().is_ok());
}

#[test]
fn a_device_that_goes_down_loses_its_stations_and_its_frames_find_others() {
    let rig = Rig::new(1, Capabilities::offloading(70_000), 64);
    rig.send(1, &plain(mac(1), mac(2), 60), Offload::NONE);
    rig.wait_for(|rig| rig.peers[1].pending() == 1);
    assert_eq!((stations_on(&rig, 1), stations_on(&rig, 2)), (1, 1));
    rig.peers[1].unplug();
    rig.wait_for(|rig| stations_on(rig, 2) == 0);
    assert_eq!(stations_on(&rig, 1), 1, "another port's stay");
    rig.send(1, &plain(mac(1), mac(2), 61), Offload::NONE);
    rig.wait_for(|rig| rig.peers[2].pending() == 1);
}
