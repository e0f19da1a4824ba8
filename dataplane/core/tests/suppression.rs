//! ARP and ND suppression (RFC 9161) and claims of addresses, driven through `forward`.

#![allow(clippy::unwrap_used)]

mod world;

use std::net::{IpAddr, Ipv6Addr};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::headers::{Headers, L3};
use dataplane_core::l2::{Claim, Identity, PortFlags};
use dataplane_core::topology::{Multicast, Suppression};
use dataplane_core::trace::{Answer, Step};
use dataplane_core::verdict::Verdict;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use world::packets::arp_request;
use world::{Outcome, RED, World, gateway_mac, ip, mac};

const A: [u8; 4] = [10, 1, 0, 2];
const B: [u8; 4] = [10, 1, 0, 3];
const UNKNOWN: [u8; 4] = [10, 1, 0, 77];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn suppressing() -> World {
    let mut world = World::new();
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().suppression = Suppression::On);
    world
}

fn set(world: &mut World, port: usize, change: impl FnOnce(PortFlags) -> PortFlags) {
    world.edit(|t| {
        let port = t.ports[port].as_mut().unwrap();
        port.flags = change(port.flags);
    });
}

fn arp(operation: ArpOperation, src: MacAddr, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let (hardware, ethernet) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let packet = ArpPacket::new(
        hardware, ethernet, operation, &src.0, &sender, &[0; 6], &target,
    );
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(src.0, [0xff; 6]).arp(packet.unwrap());
    builder.write(&mut frame).unwrap();
    frame
}

/// Neighbour discovery to a group.
fn discovery(src_mac: MacAddr, src: &str, kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let dst = if kind == SOLICITATION {
        let [.., x, y, z] = target.octets();
        let mut group = octets("ff02::1:ff00:0");
        group[13..].copy_from_slice(&[x, y, z]);
        group
    } else {
        octets("ff02::1")
    };
    let [.., a, b, c, d] = dst;
    let option = if kind == SOLICITATION { 1 } else { 2 };
    let mut body = target.octets().to_vec();
    body.extend([option, 1]);
    body.extend(src_mac.0);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, [0x33, 0x33, a, b, c, d])
        .ipv6(octets(src), dst, 255)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut frame, &body)
        .unwrap();
    frame
}

fn is_flooded(out: &Outcome) -> bool {
    matches!(out.verdict, Verdict::Flooded(..))
}

#[test]
fn rfc9161_a_question_for_an_endpoint_is_answered_and_nobody_else_hears_it() {
    let mut world = suppressing();
    let out = world.send(1, &arp_request(mac(1), A, B));
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert!(out.steps.contains(&Step::Reply(Answer::ArpFor)));
    let headers = Headers::parse(out.frame.bytes()).unwrap();
    assert_eq!((headers.src, headers.dst), (mac(2), mac(1)));
    let Ok(L3::Arp(reply)) = headers.l3 else {
        panic!("{headers:?}")
    };
    assert_eq!((reply.operation, reply.sender_mac), (2, mac(2)));
    assert_eq!((reply.sender.octets(), reply.target.octets()), (B, A));
    assert_eq!(world.sw.counters.answered_for.get(), 1);
    assert_eq!(world.fdb.len(), 1, "the asker is learned all the same");
}

#[test]
fn rfc9161_a_solicitation_is_answered_as_its_endpoint_would() {
    let mut world = suppressing();
    let asked = discovery(mac(1), "fd00:1::2", SOLICITATION, "fd00:1::3");
    let out = world.send(1, &asked);
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert!(out.steps.contains(&Step::Reply(Answer::NeighbourFor)));
    let bytes = out.frame.bytes();
    let headers = Headers::parse(bytes).unwrap();
    let header = headers.ip().unwrap();
    assert_eq!((headers.src, headers.dst), (mac(2), mac(1)));
    assert_eq!((header.src, header.dst), (ip("fd00:1::3"), ip("fd00:1::2")));
    let icmp = headers.l4.unwrap().offset;
    assert_eq!(bytes[icmp], ADVERTISEMENT);
    assert_eq!(bytes[icmp + 4], 0x60, "solicited, override, no router");
    assert_eq!(bytes[icmp + 26..icmp + 32], mac(2).0);
    let sum = dataplane_core::checksum::Sum::pseudo_header(
        header.src,
        header.dst,
        58,
        bytes.len() - icmp,
    );
    assert_eq!(sum.add_bytes(&bytes[icmp..]).checksum(), 0);
}

#[test]
fn what_the_owner_has_to_hear_itself_is_flooded() {
    let mut world = suppressing();
    let request = ArpOperation::REQUEST;
    for (what, frame) in [
        ("a probe (RFC 5227)", arp(request, mac(1), [0; 4], B)),
        ("an announcement", arp(request, mac(1), B, B)),
        ("a reply", arp(ArpOperation::REPLY, mac(1), A, B)),
        ("somebody unknown", arp(request, mac(1), A, UNKNOWN)),
        (
            "duplicate address detection (RFC 4862)",
            discovery(mac(1), "::", SOLICITATION, "fd00:1::3"),
        ),
        (
            "an unsolicited advertisement",
            discovery(mac(1), "fd00:1::2", ADVERTISEMENT, "fd00:1::2"),
        ),
    ] {
        let out = world.send(1, &frame);
        assert!(is_flooded(&out), "{what}: {}", out.verdict);
        assert_eq!(out.frame.bytes(), &frame[..], "{what}");
    }
    let own = world.send(2, &arp_request(mac(2), B, B));
    assert!(is_flooded(&own));
    assert_eq!(world.sw.counters.answered_for.get(), 0);
}

#[test]
fn who_cannot_be_reached_is_not_answered_for() {
    let mut world = suppressing();
    let question = arp_request(mac(1), A, B);
    for port in [1, 2] {
        set(&mut world, port, |flags| flags.with(PortFlags::ISOLATED));
    }
    assert!(is_flooded(&world.send(1, &question)), "isolated");
    set(&mut world, 1, |flags| flags.without(PortFlags::ISOLATED));
    world.edit(|t| t.ports[2].as_mut().unwrap().up = false);
    assert!(is_flooded(&world.send(1, &question)), "down");
    world.edit(|t| t.ports[2].as_mut().unwrap().up = true);
    assert!(!is_flooded(&world.send(1, &question)));
    let mut tagged = question.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    assert!(is_flooded(&world.send(1, &tagged)), "in a VLAN");
    let beside = arp_request(mac(9), [10, 1, 0, 9], B);
    assert!(is_flooded(&world.send(2, &beside)), "behind its own port");
}

#[test]
fn suppression_is_off_unless_it_is_on_and_leaves_the_gateway_alone() {
    let mut world = World::new();
    assert!(is_flooded(&world.send(1, &arp_request(mac(1), A, B))));
    let mut world = suppressing();
    let out = world.send(1, &arp_request(mac(1), A, [10, 1, 0, 1]));
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert!(out.steps.contains(&Step::Reply(Answer::Arp)));
    // With snooping too, a solicitation goes by the table before it goes by its group.
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().multicast = Multicast::Snooped);
    let asked = discovery(mac(1), "fd00:1::2", SOLICITATION, "fd00:1::3");
    assert_eq!(world.send(1, &asked).verdict, Verdict::Replied(PortId(1)));
}

fn claims(world: &mut World) -> Vec<Claim> {
    std::iter::from_fn(|| world.sw.bridge.claims.take()).collect()
}

fn claim(port: u16, address: &str, mac: MacAddr) -> Claim {
    Claim {
        domain: RED,
        port: PortId(port),
        address: ip(address),
        mac,
    }
}

#[test]
fn an_address_that_another_has_is_noticed_when_it_is_claimed() {
    let request = ArpOperation::REQUEST;
    for (what, frame, address) in [
        ("a question", arp(request, mac(1), B, UNKNOWN), "10.1.0.3"),
        ("an announcement", arp(request, mac(1), B, B), "10.1.0.3"),
        (
            "a question for the gateway",
            arp(request, mac(1), B, [10, 1, 0, 1]),
            "10.1.0.3",
        ),
        (
            "an advertisement",
            discovery(mac(1), "fd00:1::3", ADVERTISEMENT, "fd00:1::3"),
            "fd00:1::3",
        ),
        (
            "the gateway's own",
            arp(request, mac(1), [10, 1, 0, 1], B),
            "10.1.0.1",
        ),
    ] {
        let mut world = World::new();
        let _ = world.send(1, &frame);
        let _ = world.send(1, &frame);
        let wanted = [claim(1, address, mac(1))];
        assert_eq!(claims(&mut world), wanted, "{what}, told once");
    }
}

#[test]
fn ones_own_address_and_one_that_nobody_has_are_nobodys_business() {
    let mut world = World::new();
    let request = ArpOperation::REQUEST;
    for frame in [
        arp(request, mac(1), A, B),
        arp(request, mac(1), A, A),
        arp(request, mac(1), UNKNOWN, B),
        arp(request, mac(1), [0; 4], B),
        arp(request, gateway_mac(RED), [10, 1, 0, 1], B),
        discovery(mac(1), "fd00:1::2", ADVERTISEMENT, "fd00:1::2"),
        discovery(mac(1), "fd00:1::2", SOLICITATION, "fd00:1::3"),
    ] {
        let _ = world.send(1, &frame);
    }
    assert_eq!(claims(&mut world), []);
}

#[test]
fn what_port_security_refuses_is_noticed_as_well() {
    let mut world = World::new();
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.flags = port.flags.with(PortFlags::SECURED);
        port.profile_mut().identity = Identity {
            mac: mac(1),
            addresses: [IpAddr::from(A)].into(),
            ..Identity::default()
        };
    });
    let out = world.send(1, &arp(ArpOperation::REQUEST, mac(1), B, UNKNOWN));
    assert!(matches!(out.verdict, Verdict::Drop(_)));
    assert_eq!(claims(&mut world), [claim(1, "10.1.0.3", mac(1))]);
}
