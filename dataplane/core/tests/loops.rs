//! Loops: what a worker notices of ports that are connected outside the switch.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::l2::{FLAP_MOVES, Identity, PROBE_GROUP, PortFlags, ProbeKey, Sighting};
use dataplane_core::verdict::{DropReason, Verdict};
use world::{PROBE_SEED, RED, World, mac};

fn sightings(world: &mut World) -> Vec<Sighting> {
    let watch = &mut world.sw.bridge.watch;
    std::iter::from_fn(|| watch.take_sighting()).collect()
}

fn detect(world: &mut World) {
    world.edit(|t| {
        for port in t.ports.iter_mut().flatten() {
            port.flags = port.flags.with(PortFlags::LOOP_DETECT);
        }
    });
}

fn broadcast(src: MacAddr) -> Vec<u8> {
    let mut frame = [MacAddr::BROADCAST.0, src.0].concat();
    frame.extend([0x08, 0x00]);
    frame.extend([0; 46]);
    frame
}

#[test]
fn a_probe_that_comes_back_ends_here_and_both_ports_are_named() {
    let mut world = World::new();
    detect(&mut world);
    let probe = ProbeKey::new(PROBE_SEED).probe(PortId(1));
    let out = world.send(2, &probe);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::LoopProbe));
    let expected = Sighting::Loop {
        domain: RED,
        sent: PortId(1),
        received: PortId(2),
    };
    assert_eq!(sightings(&mut world), [expected]);
    assert_eq!(world.fdb.len(), 0, "and teaches nothing");
}

#[test]
fn a_secured_port_notices_a_probe_all_the_same() {
    let mut world = World::new();
    detect(&mut world);
    world.edit(|t| {
        let port = t.ports[2].as_mut().unwrap();
        port.flags = port.flags.with(PortFlags::SECURED);
        port.profile_mut().identity = Identity {
            mac: mac(2),
            addresses: Box::new([]),
            ..Identity::default()
        };
    });
    let probe = ProbeKey::new(PROBE_SEED).probe(PortId(1));
    let out = world.send(2, &probe);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::LoopProbe));
    let out = world.send(2, &broadcast(mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::SourceMacForeign));
}

#[test]
fn probes_of_other_switches_and_frames_that_look_like_them_are_multicast() {
    let mut world = World::new();
    detect(&mut world);
    let other = ProbeKey::new(PROBE_SEED + 1).probe(PortId(1));
    let mut elsewhere = ProbeKey::new(PROBE_SEED).probe(PortId(1));
    elsewhere[..6].copy_from_slice(&MacAddr([0x01, 0, 0x5e, 0, 0, 1]).0);
    let mut tagged = ProbeKey::new(PROBE_SEED).probe(PortId(1));
    tagged[12..14].copy_from_slice(&[0x88, 0xb6]);
    for frame in [other, elsewhere, tagged] {
        let out = world.send(2, &frame);
        assert_eq!(world.flood_ports(&out, 2), [1, 3]);
    }
    assert_eq!(sightings(&mut world), []);
}

#[test]
fn without_detection_a_probe_is_multicast_too() {
    let mut world = World::new();
    let probe = ProbeKey::new(PROBE_SEED).probe(PortId(1));
    assert_eq!(&probe[..6], PROBE_GROUP.0);
    let out = world.send(2, &probe);
    assert_eq!(world.flood_ports(&out, 2), [1, 3]);
    assert_eq!(sightings(&mut world), []);
}

#[test]
fn a_station_that_is_heard_here_and_there_flaps() {
    let mut world = World::new();
    world.send(1, &broadcast(mac(9)));
    for turn in 0..FLAP_MOVES {
        assert_eq!(sightings(&mut world), [], "move {turn}");
        let port = if turn % 2 == 0 { 2 } else { 1 };
        world.send(port, &broadcast(mac(9)));
    }
    let expected = Sighting::Flap {
        domain: RED,
        vlan: VlanId(0),
        mac: mac(9),
        from: PortId(2),
        to: PortId(1),
    };
    assert_eq!(sightings(&mut world), [expected]);
}
