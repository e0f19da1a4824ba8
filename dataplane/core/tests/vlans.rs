//! VLANs, driven through `forward`: in which one a frame enters, whom it reaches, and with which tag
//! it leaves (IEEE 802.1Q-2018 clauses 6.9, 8.6.2, 8.8.2; net/bridge/br_vlan.c).

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::fdb::{FdbKey, FdbKind};
use dataplane_core::frame::Offload;
use dataplane_core::l2::{Form, PortFlags, PortVlans, reshape};
use dataplane_core::trace::{IcmpErrorKind, Step};
use dataplane_core::verdict::{DropReason, Verdict};
use world::packets::{arp_request, assert_valid, from_a, udp4};
use world::{Outcome, RED, World, gateway_mac, mac};

const BROADCAST: MacAddr = MacAddr::BROADCAST;
const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

/// Priority 5, drop eligible.
const PRIORITY: u16 = 0xb000;

/// An Ethernet frame with an EtherType that nothing looks into.
fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    frame
}

/// The same frame with a tag in front of what it carries.
fn tagged(mut frame: Vec<u8>, tpid: u16, tci: u16) -> Vec<u8> {
    let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
    frame.splice(12..12, tag);
    frame
}

/// Puts the ports a, b and c of red into VLANs, and with them its gateway into VLAN 1.
fn filtering(vlans: [PortVlans; 3]) -> World {
    let mut world = World::new();
    world.edit(|t| {
        for (port, vlans) in t.ports[1..=3].iter_mut().flatten().zip(vlans) {
            port.flags = port.flags.with(PortFlags::FILTERING);
            port.profile_mut().vlans = Some(Box::new(vlans));
        }
        t.domains[RED.index()].as_mut().unwrap().gateway_vlan = VlanId(1);
    });
    world
}

fn access(vlan: u16) -> PortVlans {
    PortVlans::access(VlanId(vlan))
}

/// Tagged in VLANs 1 to 99, and none for frames without a tag.
fn trunk() -> PortVlans {
    let mut vlans = PortVlans::NONE;
    vlans.add(1..=99, Form::Tagged);
    vlans
}

/// What leaves by each port, in the order of ports.
fn copies(world: &World, ingress: u16, outcome: &Outcome) -> Vec<(u16, Vec<u8>)> {
    let Verdict::Flooded(_, vlan, _) = outcome.verdict else {
        panic!("not flooded: {:?}", outcome.verdict);
    };
    let topology = &world.sw.topology;
    let copy = |port: u16| {
        let mut frame = outcome.frame.clone();
        let form = topology.port(PortId(port)).unwrap().form(vlan).unwrap();
        assert!(reshape(&mut frame, vlan, form));
        (port, frame.bytes().to_vec())
    };
    let ports = world.flood_ports(outcome, ingress).into_iter();
    ports.map(copy).collect()
}

#[test]
fn a_flood_reaches_the_members_alone_with_and_without_a_tag() {
    let mut world = filtering([access(10), access(20), trunk()]);
    let hello = plain(BROADCAST, mac(1));
    let out = world.send(1, &hello);
    assert!(out.steps.contains(&Step::Admitted(VlanId(10), BROADCAST)));
    let on_trunk = tagged(hello.clone(), CUSTOMER, 10);
    assert_eq!(copies(&world, 1, &out), [(3, on_trunk)]);
    let from_trunk = tagged(plain(BROADCAST, mac(3)), CUSTOMER, 20);
    let out = world.send(3, &from_trunk);
    assert_eq!(
        copies(&world, 3, &out),
        [(2, plain(BROADCAST, mac(3)))],
        "untagged in VLAN 20"
    );
    let out = world.send(3, &tagged(plain(BROADCAST, mac(3)), CUSTOMER, 30));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoOtherPort));
}

#[test]
fn known_unicast_leaves_in_the_form_of_its_port() {
    let mut world = filtering([access(10), access(20), trunk()]);
    let _ = world.send(1, &plain(BROADCAST, mac(1)));
    let _ = world.send(3, &tagged(plain(BROADCAST, mac(3)), CUSTOMER, 10));
    let out = world.send(1, &plain(mac(3), mac(1)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(3)));
    let sent = tagged(plain(mac(3), mac(1)), CUSTOMER, 10);
    assert_eq!(out.frame.bytes(), sent);
    let out = world.send(3, &tagged(plain(mac(1), mac(3)), CUSTOMER, PRIORITY | 10));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
    assert_eq!(out.frame.bytes(), plain(mac(1), mac(3)));
}

#[test]
fn a_frame_enters_only_in_a_vlan_of_its_port() {
    let mut world = filtering([access(10), access(20), trunk()]);
    for (port, frame, reason) in [
        (
            1,
            tagged(plain(BROADCAST, mac(1)), CUSTOMER, 20),
            DropReason::VlanIngress,
        ),
        (
            3,
            tagged(plain(BROADCAST, mac(3)), CUSTOMER, 100),
            DropReason::VlanIngress,
        ),
        (
            3,
            tagged(plain(BROADCAST, mac(3)), CUSTOMER, 4095),
            DropReason::VlanIngress,
        ),
        (3, plain(BROADCAST, mac(3)), DropReason::VlanNoPvid),
        (
            3,
            tagged(plain(BROADCAST, mac(3)), CUSTOMER, PRIORITY),
            DropReason::VlanNoPvid,
        ),
        (
            3,
            tagged(plain(BROADCAST, mac(3)), SERVICE, 10),
            DropReason::VlanNoPvid,
        ),
    ] {
        let out = world.send(port, &frame);
        assert_eq!(out.verdict, Verdict::Drop(reason));
    }
    assert_eq!(world.fdb.len(), 0, "nothing was learned of them");
    let out = world.send(1, &tagged(plain(BROADCAST, mac(1)), CUSTOMER, 10));
    assert_eq!(world.flood_ports(&out, 1), [3], "its own VLAN, with a tag");
}

#[test]
fn priority_is_kept_as_long_as_there_is_a_tag() {
    let mut world = filtering([access(10), trunk(), trunk()]);
    let out = world.send(1, &tagged(plain(BROADCAST, mac(1)), CUSTOMER, PRIORITY));
    let wanted = tagged(plain(BROADCAST, mac(1)), CUSTOMER, PRIORITY | 10);
    assert_eq!(copies(&world, 1, &out), [(2, wanted.clone()), (3, wanted)]);
    let frame = tagged(plain(BROADCAST, mac(2)), CUSTOMER, PRIORITY | 10);
    let out = world.send(2, &frame);
    assert_eq!(
        copies(&world, 2, &out),
        [(1, plain(BROADCAST, mac(2))), (3, frame)]
    );
}

#[test]
fn service_tags_pass_as_they_are_in_the_vlan_of_the_port() {
    let mut world = filtering([access(10), access(10), trunk()]);
    let inner = tagged(plain(BROADCAST, mac(1)), CUSTOMER, 77);
    let qinq = tagged(inner, SERVICE, PRIORITY | 500);
    let out = world.send(1, &qinq);
    let on_trunk = tagged(qinq.clone(), CUSTOMER, 10);
    assert_eq!(
        copies(&world, 1, &out),
        [(2, qinq.clone()), (3, on_trunk.clone())]
    );
    let mut back = on_trunk;
    back[6..12].copy_from_slice(&mac(3).0);
    let out = world.send(3, &back);
    let mut wanted = qinq;
    wanted[6..12].copy_from_slice(&mac(3).0);
    assert_eq!(
        copies(&world, 3, &out),
        [(1, wanted.clone()), (2, wanted)],
        "only the outer customer tag comes off"
    );
}

#[test]
fn a_station_has_an_entry_in_each_vlan() {
    let mut world = filtering([access(10), access(20), trunk()]);
    let _ = world.send(1, &plain(BROADCAST, mac(9)));
    let _ = world.send(2, &plain(BROADCAST, mac(9)));
    for (vlan, port) in [(10, 1), (20, 2)] {
        let out = world.send(3, &tagged(plain(mac(9), mac(3)), CUSTOMER, vlan));
        assert_eq!(out.verdict, Verdict::Bridged(PortId(port)));
    }
    assert_eq!(world.fdb.len(), 4, "two places of one, and c in both");
}

#[test]
fn a_known_station_on_a_port_that_left_its_vlan_is_not_reached() {
    let mut world = filtering([access(10), access(10), trunk()]);
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    world.edit(|t| {
        let port = t.ports[2].as_mut().unwrap();
        port.profile_mut().vlans = Some(Box::new(access(20)));
    });
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::VlanEgress));
    let hairpin = tagged(plain(mac(2), mac(3)), CUSTOMER, 10);
    let out = world.send(3, &hairpin);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::VlanEgress));
    assert_eq!(out.frame.bytes(), hairpin, "as it came");
}

#[test]
fn isolated_ports_of_one_vlan_are_isolated() {
    let mut world = filtering([access(10), access(10), trunk()]);
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    world.edit(|t| {
        for port in t.ports[1..=2].iter_mut().flatten() {
            port.flags = port.flags.with(PortFlags::ISOLATED);
        }
    });
    let out = world.send(1, &plain(mac(2), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::PortIsolated));
    let out = world.send(1, &plain(BROADCAST, mac(1)));
    assert_eq!(world.flood_ports(&out, 1), [3]);
}

#[test]
fn the_gateway_is_reached_in_its_vlan_alone() {
    let mut world = filtering([access(1), access(20), trunk()]);
    let ask = |n: u8| arp_request(mac(n), [10, 1, 0, n + 1], [10, 1, 0, 1]);
    let out = world.send(1, &ask(1));
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert_eq!(out.frame.bytes()[12..14], [0x08, 0x06], "untagged as asked");
    let out = world.send(2, &ask(2));
    assert_eq!(
        world.flood_ports(&out, 2),
        [3],
        "nobody there but the trunk"
    );
    let out = world.send(2, &plain(gateway_mac(RED), mac(2)));
    assert_eq!(
        world.flood_ports(&out, 2),
        [3],
        "its MAC is no station there"
    );
    let out = world.send(3, &tagged(ask(3), CUSTOMER, PRIORITY | 1));
    assert_eq!(out.verdict, Verdict::Replied(PortId(3)));
    assert_eq!(out.frame.bytes()[12..18], [0x81, 0, 0, 1, 0x08, 0x06]);
    let twice = tagged(tagged(ask(3), CUSTOMER, 7), CUSTOMER, 1);
    let out = world.send(3, &twice);
    assert_eq!(world.flood_ports(&out, 3), [1], "it looks behind one tag");
    let mut to_gateway = twice;
    to_gateway[..6].copy_from_slice(&gateway_mac(RED).0);
    let out = world.send(3, &to_gateway);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::TaggedForGateway));
    let service = tagged(plain(gateway_mac(RED), mac(1)), SERVICE, 1);
    let out = world.send(1, &service);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::TaggedForGateway));
}

#[test]
fn what_the_gateway_routes_leaves_in_the_form_of_the_port() {
    let mut world = filtering([access(1), access(20), trunk()]);
    let out = world.send(1, &from_a("10.1.0.4"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(3)));
    assert_eq!(out.frame.bytes()[12..18], [0x81, 0, 0, 1, 0x08, 0x00]);
    let mut bare = out.frame.clone();
    assert!(reshape(&mut bare, VlanId(1), Form::Untagged));
    assert_valid(bare.bytes());
    let from_c = udp4(mac(3), gateway_mac(RED), "10.1.0.4", "10.1.0.2", 64, 8);
    let out = world.send(3, &tagged(from_c, CUSTOMER, 1));
    assert_eq!(out.verdict, Verdict::Routed(PortId(1)));
    assert_eq!(out.frame.bytes()[12..14], [0x08, 0x00]);
    assert_valid(out.frame.bytes());
    let out = world.send(1, &from_a("10.1.0.3"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::VlanEgress));
}

#[test]
fn packets_of_a_tagged_endpoint_are_translated_out_and_back() {
    let mut world = filtering([access(1), access(20), trunk()]);
    let out = udp4(mac(3), gateway_mac(RED), "10.1.0.4", "198.51.100.9", 64, 8);
    let out = tagged(out, CUSTOMER, PRIORITY | 1);
    for way in ["long", "short"] {
        let sent = world.send(3, &out);
        assert_eq!(sent.verdict, Verdict::Routed(world::UPLINK), "{way} way");
        assert_eq!(sent.frame.bytes()[12..14], [0x08, 0x00], "{way} way");
        assert_valid(sent.frame.bytes());
        let mut back = sent.frame.bytes().to_vec();
        back[..6].copy_from_slice(&world::UPLINK_MAC.0);
        back[6..12].copy_from_slice(&world::ROUTER_MAC.0);
        let (src, dst) = (back[26..30].to_vec(), back[30..34].to_vec());
        back[26..30].copy_from_slice(&dst);
        back[30..34].copy_from_slice(&src);
        let (src, dst) = (back[34..36].to_vec(), back[36..38].to_vec());
        back[34..36].copy_from_slice(&dst);
        back[36..38].copy_from_slice(&src);
        let back = world.send(world::UPLINK.0, &back);
        assert_eq!(back.verdict, Verdict::Routed(PortId(3)));
        assert_eq!(back.frame.bytes()[12..18], [0x81, 0, 0, 1, 0x08, 0x00]);
    }
}

#[test]
fn errors_go_back_with_the_tag_that_their_cause_came_with() {
    let mut world = filtering([access(1), access(20), trunk()]);
    let last_hop = udp4(mac(3), gateway_mac(RED), "10.1.0.4", "198.51.100.9", 1, 8);
    let out = world.send(3, &tagged(last_hop, CUSTOMER, 1));
    assert_eq!(out.verdict, Verdict::Replied(PortId(3)));
    assert_eq!(out.frame.bytes()[12..18], [0x81, 0, 0, 1, 0x08, 0x00]);
    let error = IcmpErrorKind::TimeExceeded;
    let reply = dataplane_core::trace::Answer::Error { kind: error };
    assert!(out.steps.contains(&Step::Reply(reply)));
    let mut bare = out.frame.clone();
    assert!(reshape(&mut bare, VlanId(1), Form::Untagged));
    assert_valid(bare.bytes());
}

#[test]
fn a_local_entry_leads_to_the_gateway_from_its_vlan_alone() {
    let mut world = filtering([access(1), access(20), trunk()]);
    for vlan in [1, 20] {
        let key = FdbKey::new(RED, VlanId(vlan), mac(0x55));
        let set = world.fdb.set(key, PortId(3), FdbKind::Local, world.now);
        set.unwrap();
    }
    let out = world.send(1, &plain(mac(0x55), mac(1)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NotIp), "the gateway");
    let out = world.send(2, &plain(mac(0x55), mac(2)));
    assert_eq!(world.flood_ports(&out, 2), [3]);
}

#[test]
fn a_tag_moves_what_the_offload_counts_from_the_front() {
    let mut world = filtering([access(10), access(10), trunk()]);
    let _ = world.send(2, &plain(BROADCAST, mac(2)));
    let _ = world.send(3, &tagged(plain(BROADCAST, mac(3)), CUSTOMER, 10));
    let offload = |start| Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: start + 20,
        gso_size: 1_000,
        csum_start: start,
        csum_offset: 16,
    };
    let out = world.send_offloaded(1, &plain(mac(3), mac(1)), offload(34));
    assert_eq!(out.frame.offload, offload(38), "a tag more");
    let back = tagged(plain(mac(2), mac(3)), CUSTOMER, 10);
    let out = world.send_offloaded(3, &back, offload(38));
    assert_eq!(out.frame.offload, offload(34), "a tag less");
    let out = world.send_offloaded(1, &plain(mac(2), mac(1)), offload(34));
    assert_eq!(out.frame.offload, offload(34), "untagged to untagged");
}

#[test]
fn a_truncated_tag_is_no_tag() {
    let mut world = filtering([access(10), access(10), trunk()]);
    let mut short = [BROADCAST.0, mac(1).0].concat();
    short.extend([0x81, 0x00, 0x00, 0x14, 0x08]);
    let out = world.send(1, &short);
    let on_trunk = tagged(short.clone(), CUSTOMER, 10);
    assert_eq!(copies(&world, 1, &out), [(2, short), (3, on_trunk)]);
}

#[test]
fn what_the_host_sends_reaches_the_members_of_the_gateways_vlan() {
    let mut world = filtering([access(1), access(20), trunk()]);
    let routed = udp4(world::HOST_MAC, mac(0), "192.0.2.1", "10.1.0.3", 64, 8);
    let out = world.send(world::HOST_LINK.0, &routed);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::VlanEgress));
    let routed = udp4(world::HOST_MAC, mac(0), "192.0.2.1", "10.1.0.4", 64, 8);
    let out = world.send(world::HOST_LINK.0, &routed);
    assert_eq!(out.verdict, Verdict::Routed(PortId(3)));
    assert_eq!(out.frame.bytes()[12..18], [0x81, 0, 0, 1, 0x08, 0x00]);
}
