//! The flags of ports, driven through `forward`: what the kernel bridge does with each of them
//! (net/bridge/br_input.c, br_forward.c), and what the gateway makes of isolation.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::fdb::Learn;
use dataplane_core::l2::{FloodClass, PortFlags};
use dataplane_core::trace::Step;
use dataplane_core::verdict::{DropReason, Verdict};
use world::packets::{arp_request, from_a};
use world::{RED, World, mac};

const BROADCAST: MacAddr = MacAddr::BROADCAST;
const MULTICAST: MacAddr = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
const UNKNOWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);

/// An Ethernet frame with an EtherType that nothing looks into.
fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    frame
}

/// Turns a flag of a port on or off.
fn set(world: &mut World, port: u16, change: impl FnOnce(PortFlags) -> PortFlags) {
    world.edit(|t| {
        let port = t.ports[usize::from(port)].as_mut().unwrap();
        port.flags = change(port.flags);
    });
}

#[test]
fn a_port_without_learning_teaches_nothing_and_refreshes_nothing() {
    let mut world = World::new();
    let _ = world.send(1, &plain(BROADCAST, mac(1)));
    set(&mut world, 1, |flags| flags.without(PortFlags::LEARNING));
    let out = world.send(1, &plain(BROADCAST, mac(50)));
    assert!(out.steps.contains(&Step::Learned(Learn::Off)));
    assert_eq!(world.flood_ports(&out, 1), [2, 3], "forwarded all the same");
    assert_eq!(world.fdb.len(), 1, "only what was learned before");
    world.wait(200);
    let _ = world.send(1, &plain(BROADCAST, mac(1)));
    world.wait(101);
    let out = world.send(2, &plain(mac(1), mac(2)));
    assert_eq!(world.flood_ports(&out, 2), [1, 3], "it was not refreshed");
}

#[test]
fn a_station_does_not_move_to_a_port_without_learning() {
    let mut world = World::new();
    let _ = world.send(1, &plain(BROADCAST, mac(50)));
    set(&mut world, 3, |flags| flags.without(PortFlags::LEARNING));
    let _ = world.send(3, &plain(BROADCAST, mac(50)));
    let out = world.send(2, &plain(mac(50), mac(2)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
}

#[test]
fn each_flood_flag_keeps_its_class_off_the_port_and_no_other() {
    for (flag, off) in [
        (PortFlags::FLOOD, UNKNOWN),
        (PortFlags::MCAST_FLOOD, MULTICAST),
        (PortFlags::BCAST_FLOOD, BROADCAST),
    ] {
        let mut world = World::new();
        let _ = world.send(3, &plain(BROADCAST, mac(3)));
        set(&mut world, 3, |flags| flags.without(flag));
        for dst in [UNKNOWN, MULTICAST, BROADCAST] {
            let out = world.send(1, &plain(dst, mac(1)));
            let takers: &[u16] = if dst == off { &[2] } else { &[2, 3] };
            assert_eq!(world.flood_ports(&out, 1), takers, "{flag:?} {dst}");
        }
        let out = world.send(1, &plain(mac(3), mac(1)));
        assert_eq!(out.verdict, Verdict::Bridged(PortId(3)), "it is known");
        let out = world.send(3, &plain(off, mac(3)));
        assert_eq!(world.flood_ports(&out, 3), [1, 2], "a flag of the way out");
    }
}

#[test]
fn a_flood_that_no_port_takes_ends() {
    let mut world = World::new();
    for port in [2, 3] {
        set(&mut world, port, |flags| flags.without(PortFlags::FLOOD));
    }
    let out = world.send(1, &plain(UNKNOWN, mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoOtherPort));
}

#[test]
fn the_verdict_names_the_class_of_a_flood() {
    let mut world = World::new();
    for (dst, class) in [
        (UNKNOWN, FloodClass::UnknownUnicast),
        (MULTICAST, FloodClass::Multicast),
        (BROADCAST, FloodClass::Broadcast),
    ] {
        let out = world.send(1, &plain(dst, mac(1)));
        assert_eq!(
            out.verdict,
            Verdict::Flooded(RED, Default::default(), class)
        );
    }
}

#[test]
fn isolated_ports_reach_the_others_and_not_each_other() {
    let mut world = World::new();
    for port in [1, 2, 3] {
        let _ = world.send(port, &plain(BROADCAST, mac(port as u8)));
    }
    for port in [1, 2] {
        set(&mut world, port, |flags| flags.with(PortFlags::ISOLATED));
    }
    for dst in [UNKNOWN, MULTICAST, BROADCAST] {
        let out = world.send(1, &plain(dst, mac(1)));
        assert_eq!(world.flood_ports(&out, 1), [3], "{dst}");
        let out = world.send(3, &plain(dst, mac(3)));
        assert_eq!(world.flood_ports(&out, 3), [1, 2], "{dst}");
    }
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::PortIsolated));
    let out = world.send(1, &plain(mac(3), mac(1)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(3)));
    let out = world.send(3, &plain(mac(1), mac(3)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
}

#[test]
fn the_gateway_is_no_way_around_isolation() {
    let mut world = World::new();
    for port in [1, 2] {
        set(&mut world, port, |flags| flags.with(PortFlags::ISOLATED));
    }
    let out = world.send(1, &from_a("10.1.0.3"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::PortIsolated));
    let out = world.send(1, &from_a("10.1.0.4"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(3)), "not isolated");
    let arp = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 1]);
    let out = world.send(1, &arp);
    assert_eq!(
        out.verdict,
        Verdict::Replied(PortId(1)),
        "the gateway is no port"
    );
}

#[test]
fn a_hairpin_port_gets_its_own_frames_back() {
    let mut world = World::new();
    let _ = world.send(1, &plain(BROADCAST, mac(50)));
    set(&mut world, 1, |flags| flags.with(PortFlags::HAIRPIN));
    let out = world.send(1, &plain(mac(50), mac(1)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
    let out = world.send(1, &plain(BROADCAST, mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [1, 2, 3]);
    let out = world.send(2, &plain(BROADCAST, mac(2)));
    assert_eq!(world.flood_ports(&out, 2), [1, 3], "only a hairpin's own");
    set(&mut world, 1, |flags| flags.with(PortFlags::ISOLATED));
    let out = world.send(1, &plain(mac(50), mac(1)));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::PortIsolated),
        "as the kernel: an isolated port does not reach itself"
    );
}
