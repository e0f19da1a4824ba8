//! Storm control, driven through `forward`: which frames are metered, and what becomes of the rest.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::{FloodClass, PortFlags, StormLimit};
use dataplane_core::time::Duration;
use dataplane_core::verdict::{DropReason, Verdict};
use world::packets::{arp_request, udp4};
use world::{World, mac};

const UNKNOWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
const DESTINATIONS: [(FloodClass, MacAddr); 3] = [
    (FloodClass::UnknownUnicast, UNKNOWN),
    (FloodClass::Multicast, MacAddr([0x01, 0, 0x5e, 0, 0, 1])),
    (FloodClass::Broadcast, MacAddr::BROADCAST),
];

fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    frame
}

/// Limits a class of port 1.
fn limit(world: &mut World, class: FloodClass, text: &str) {
    let limit: StormLimit = text.parse().unwrap();
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.flags = port.flags.with(PortFlags::STORM);
        *port.profile_mut().storm.of_mut(class) = Some(limit);
    });
}

/// How many of `count` frames to `dst` that enter by `port` at once are flooded.
fn flooded(world: &mut World, port: u16, dst: MacAddr, count: usize) -> usize {
    let frame = plain(dst, mac(port as u8));
    let passes = |_: &usize| matches!(world.send(port, &frame).verdict, Verdict::Flooded(..));
    (0..count).filter(passes).count()
}

#[test]
fn each_class_has_a_limit_of_its_own_and_each_port() {
    for (class, limited) in DESTINATIONS {
        let mut world = World::new();
        limit(&mut world, class, "100 burst 3");
        for (_, dst) in DESTINATIONS {
            let wanted = if dst == limited { 3 } else { 10 };
            assert_eq!(flooded(&mut world, 1, dst, 10), wanted, "{class:?} {dst}");
            assert_eq!(flooded(&mut world, 2, dst, 10), 10, "another port");
        }
        assert_eq!(world.sw.counters.dropped(class.storm()), 7);
        assert_eq!(world.storm.dropped(PortId(1), class), 7);
        assert_eq!(world.storm.dropped(PortId(2), class), 0);
        world.now = world.now + Duration::from_millis(20);
        assert_eq!(flooded(&mut world, 1, limited, 10), 2, "100 in a second");
    }
}

#[test]
fn a_limit_outlives_changes_of_the_topology_and_forgets_a_removed_port() {
    let mut world = World::new();
    limit(&mut world, FloodClass::Broadcast, "1 burst 2");
    assert_eq!(flooded(&mut world, 1, MacAddr::BROADCAST, 5), 2);
    world.edit(|_| {});
    assert_eq!(flooded(&mut world, 1, MacAddr::BROADCAST, 5), 0);
    world.storm.forget_port(PortId(1));
    assert_eq!(world.storm.dropped(PortId(1), FloodClass::Broadcast), 0);
    assert_eq!(flooded(&mut world, 1, MacAddr::BROADCAST, 5), 2);
}

#[test]
fn what_is_for_a_known_station_or_for_the_gateway_is_not_metered() {
    let mut world = World::new();
    for (class, _) in DESTINATIONS {
        limit(&mut world, class, "1 burst 1");
    }
    let _ = world.send(2, &plain(mac(1), mac(2)));
    for _ in 0..5 {
        let known = world.send(1, &plain(mac(2), mac(1)));
        assert_eq!(known.verdict, Verdict::Bridged(PortId(2)));
        let asked = world.send(1, &arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 1]));
        assert_eq!(asked.verdict, Verdict::Replied(PortId(1)));
    }
}

#[test]
fn a_gso_frame_counts_for_its_segments() {
    let mut world = World::new();
    limit(&mut world, FloodClass::UnknownUnicast, "10 burst 3");
    let frame = udp4(mac(1), UNKNOWN, "10.1.0.2", "10.1.0.3", 64, 4_000);
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 5,
        hdr_len: 42,
        gso_size: 1_000,
        csum_start: 34,
        csum_offset: 6,
    };
    let sent = world.send_offloaded(1, &frame, offload);
    assert!(matches!(sent.verdict, Verdict::Flooded(..)), "{sent:?}");
    // Four segments of three that might come at once: one and a bit of the next must pass by.
    world.now = world.now + Duration::from_millis(199);
    let early = world.send(1, &plain(UNKNOWN, mac(1)));
    let reason = DropReason::StormUnknownUnicast;
    assert_eq!(early.verdict, Verdict::Drop(reason));
    world.now = world.now + Duration::from_millis(1);
    assert_eq!(flooded(&mut world, 1, UNKNOWN, 2), 1);
}

#[test]
fn asking_what_would_happen_uses_nothing_up() {
    let mut world = World::new();
    limit(&mut world, FloodClass::Broadcast, "1 burst 2");
    // Every `send` asks beforehand and compares, so this would be 1 if asking took any.
    assert_eq!(flooded(&mut world, 1, MacAddr::BROADCAST, 5), 2);
    assert_eq!(world.storm.dropped(PortId(1), FloodClass::Broadcast), 3);
}
