//! The L2 part of the data path, driven through `forward` on a virtual clock.

#![allow(clippy::unwrap_used)]

mod world;

use std::sync::Arc;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::ahead::{STATIONS_MIN, look_ahead};
use dataplane_core::fdb::{FdbKey, FdbKind, Learn};
use dataplane_core::frame::FrameBuf;
use dataplane_core::l2::PortFlags;
use dataplane_core::trace::{Step, Target};
use dataplane_core::verdict::{DropReason, Verdict};
use world::packets::udp4;
use world::{RED, World, gateway_mac, mac};

/// An Ethernet frame with an EtherType that nothing looks into.
fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    frame
}

const BROADCAST: MacAddr = MacAddr::BROADCAST;

#[test]
fn unknown_unicast_floods_everyone_but_ingress_and_other_networks() {
    let mut world = World::new();
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [2, 3]);
    assert!(out.steps.contains(&Step::Lookup(Target::Flood)));
}

#[test]
fn broadcast_and_multicast_flood_even_from_known_stations() {
    let mut world = World::new();
    let multicast = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
    for dst in [BROADCAST, multicast] {
        let out = world.send(2, &plain(dst, mac(2)));
        assert_eq!(world.flood_ports(&out, 2), [1, 3], "{dst}");
    }
}

#[test]
fn a_learned_station_gets_its_frames_alone() {
    let mut world = World::new();
    let out = world.send(2, &plain(BROADCAST, mac(2)));
    assert!(out.steps.contains(&Step::Learned(Learn::New)));
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(2)));
    assert_eq!(
        out.frame.bytes(),
        plain(mac(2), mac(1)),
        "bridging changes nothing"
    );
}

#[test]
fn a_frame_never_goes_back_to_its_ingress() {
    let mut world = World::new();
    let _ = world.send(1, &plain(BROADCAST, mac(1)));
    let out = world.send(1, &plain(mac(1), mac(99)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::SamePort));
}

#[test]
fn a_station_that_moves_is_followed() {
    let mut world = World::new();
    let _ = world.send(1, &plain(BROADCAST, mac(50)));
    let out = world.send(3, &plain(BROADCAST, mac(50)));
    assert!(
        out.steps
            .contains(&Step::Learned(Learn::Moved { from: PortId(1) }))
    );
    let out = world.send(2, &plain(mac(50), mac(2)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(3)));
}

#[test]
fn a_station_that_falls_silent_is_forgotten() {
    let mut world = World::new();
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    world.wait(300);
    assert_eq!(
        world.send(1, &plain(mac(2), mac(1))).verdict,
        Verdict::Bridged(PortId(2))
    );
    world.wait(1);
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [2, 3]);
}

#[test]
fn networks_learn_apart() {
    let mut world = World::new();
    let _ = world.send(2, &plain(BROADCAST, mac(42)));
    let out = world.send(4, &plain(mac(42), mac(4)));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::NoOtherPort),
        "alone on blue"
    );
}

#[test]
fn impossible_sources_are_refused_and_not_learned() {
    let mut world = World::new();
    for (src, reason) in [
        (MacAddr([0x01, 0, 0x5e, 0, 0, 1]), DropReason::SourceGroup),
        (BROADCAST, DropReason::SourceGroup),
        (MacAddr::ZERO, DropReason::SourceZero),
    ] {
        let out = world.send(1, &plain(BROADCAST, src));
        assert_eq!(out.verdict, Verdict::Drop(reason));
    }
    assert_eq!(world.fdb.len(), 0);
}

#[test]
fn link_local_groups_stay_on_their_link_and_teach_nothing() {
    let mut world = World::new();
    for last in 0..16 {
        let out = world.send(1, &plain(MacAddr([0x01, 0x80, 0xc2, 0, 0, last]), mac(1)));
        assert_eq!(out.verdict, Verdict::Drop(DropReason::LinkLocalGroup));
    }
    assert_eq!(world.fdb.len(), 0);
    let out = world.send(1, &plain(MacAddr([0x01, 0x80, 0xc2, 0, 0, 16]), mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [2, 3]);
}

#[test]
fn bpdus_pass_where_they_are_let_and_no_other_link_local_group_does() {
    let mut world = World::new();
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.flags = port.flags.with(PortFlags::BPDUS);
        let port = t.ports[3].as_mut().unwrap();
        port.flags = port.flags.without(PortFlags::MCAST_FLOOD);
    });
    let out = world.send(1, &plain(MacAddr::BRIDGE_GROUP, mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [2], "as other multicast");
    assert_eq!(world.fdb.len(), 1, "and learned from");
    for last in 1..16 {
        let out = world.send(1, &plain(MacAddr([0x01, 0x80, 0xc2, 0, 0, last]), mac(1)));
        assert_eq!(out.verdict, Verdict::Drop(DropReason::LinkLocalGroup));
    }
    let out = world.send(2, &plain(MacAddr::BRIDGE_GROUP, mac(2)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::LinkLocalGroup));
}

#[test]
fn a_frame_shorter_than_its_header_is_a_runt() {
    let mut world = World::new();
    let whole = plain(BROADCAST, mac(1));
    for size in 0..14 {
        let out = world.send(1, &whole[..size]);
        assert_eq!(out.verdict, Verdict::Drop(DropReason::Runt), "{size} bytes");
    }
    let out = world.send(1, &whole[..14]);
    assert_eq!(
        world.flood_ports(&out, 1),
        [2, 3],
        "a header alone is enough"
    );
    assert_eq!(world.dropped(DropReason::Runt), 14);
}

#[test]
fn tagged_frames_pass_a_transparent_network_as_they_are() {
    let mut world = World::new();
    for tags in [
        &[0x81, 0, 0, 42][..],
        &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 42],
        &[0x81, 0],
    ] {
        let mut frame = [BROADCAST.0, mac(1).0].concat();
        frame.extend(tags);
        let out = world.send(1, &frame);
        assert_eq!(world.flood_ports(&out, 1), [2, 3]);
        assert_eq!(out.frame.bytes(), frame);
    }
}

#[test]
fn a_port_that_is_down_or_unknown_takes_and_gets_nothing() {
    let mut world = World::new();
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    world.edit(|t| t.ports[2].as_mut().unwrap().up = false);
    let out = world.send(2, &plain(BROADCAST, mac(2)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::PortDown));
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::EgressDown));
    let out = world.send(1, &plain(BROADCAST, mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [3]);
    let out = world.send(777, &plain(BROADCAST, mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::PortDown));
}

#[test]
fn bad_l3_is_still_l2() {
    let mut world = World::new();
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    let whole = etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 1, 0, 2], [10, 1, 0, 3], 64)
        .udp(1, 2);
    let mut frame = Vec::new();
    whole.write(&mut frame, b"payload").unwrap();
    for size in 14..frame.len() {
        assert_eq!(
            world.send(1, &frame[..size]).verdict,
            Verdict::Bridged(PortId(2)),
            "{size}"
        );
    }
    for first in 0..=255 {
        let mut frame = frame.clone();
        frame[14] = first;
        assert_eq!(
            world.send(1, &frame).verdict,
            Verdict::Bridged(PortId(2)),
            "{first:#x}"
        );
    }
}

#[test]
fn nobody_becomes_the_gateway_by_claiming_its_mac() {
    let mut world = World::new();
    let out = world.send(1, &plain(BROADCAST, gateway_mac(RED)));
    assert!(out.steps.contains(&Step::Learned(Learn::Exempt)));
    let out = world.send(2, &plain(gateway_mac(RED), mac(2)));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::NotIp),
        "the gateway's, not port 1's"
    );
}

#[test]
fn a_frame_from_another_port_than_a_static_entrys_passes_and_moves_nothing() {
    let mut world = World::new();
    let key = FdbKey::new(RED, Default::default(), mac(50));
    let fdb = Arc::clone(&world.fdb);
    fdb.set(key, PortId(3), FdbKind::Static, world.now).unwrap();
    let out = world.send(1, &plain(BROADCAST, mac(50)));
    let pinned = Learn::Pinned { at: PortId(3) };
    assert!(out.steps.contains(&Step::Learned(pinned)));
    assert_eq!(world.flood_ports(&out, 1), [2, 3]);
    world.wait(100_000);
    let out = world.send(2, &plain(mac(50), mac(2)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(3)));
    assert_eq!(world.sw.counters.pinned.get(), 1);
}

#[test]
fn what_is_sent_to_a_local_entry_is_the_gateways() {
    let mut world = World::new();
    let key = FdbKey::new(RED, Default::default(), mac(60));
    let fdb = Arc::clone(&world.fdb);
    fdb.set(key, PortId(3), FdbKind::Local, world.now).unwrap();
    let packet = udp4(mac(1), mac(60), "10.1.0.2", "10.1.0.4", 64, 20);
    let out = world.send(1, &packet);
    assert!(out.steps.contains(&Step::Lookup(Target::Gateway)));
    assert_eq!(out.verdict, Verdict::Routed(PortId(3)));
    let out = world.send(1, &plain(mac(60), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NotIp));
    let out = world.send(1, &plain(BROADCAST, mac(60)));
    assert!(out.steps.contains(&Step::Learned(Learn::Exempt)));
}

#[test]
fn reading_ahead_changes_nothing_and_takes_any_frame() {
    let mut world = World::new();
    let station = |n: usize| MacAddr::from_u64(0x0206_0000_0000 | n as u64);
    for n in 0..=STATIONS_MIN {
        let _ = world.send(1, &plain(BROADCAST, station(n)));
    }
    let frames: Vec<FrameBuf> = [
        plain(station(1), station(2)),
        plain(BROADCAST, MacAddr::ZERO),
        plain(station(STATIONS_MIN + 9), mac(1)),
        vec![2; 13],
        Vec::new(),
    ]
    .iter()
    .map(|bytes| FrameBuf::from_bytes(bytes))
    .collect();
    let before = world.fdb.state_hash();
    for port in [1, 8, 9, 4_000] {
        look_ahead(&world.sw, PortId(port), frames.iter());
        // More than are read ahead.
        look_ahead(&world.sw, PortId(port), frames.iter().cycle().take(500));
    }
    assert_eq!(world.fdb.state_hash(), before);
    let out = world.send(2, &plain(station(1), mac(2)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
}
