//! Rules that reject: whose sender is told, of what, and by whom.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{L4Addr, MacAddr, PortId, VlanId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::{Form, PortFlags, PortVlans};
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::policy::{Action, Policy, Rule, RuleSlot, Ruling, Side, Standing};
use dataplane_core::route::ERRORS_PER_SECOND_MAX;
use dataplane_core::trace::{Answer, IcmpErrorKind, Step};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use world::packets::{
    arp_request, assert_error, assert_valid, from_a, octets4, octets6, udp4, udp6,
};
use world::{
    HOST_LINK, HOST_MAC, Outcome, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac, ip, mac,
};

const REJECTED: Verdict = Verdict::Drop(DropReason::PolicyRejected);
const PROHIBITED: IcmpErrorKind = IcmpErrorKind::Prohibited;

fn reject(from: Side, to: Side) -> Rule {
    Rule::new(RuleSlot(0), "no", Action::Reject, from, to)
}

/// A world whose stations are known, with this rule.
fn ruled(rule: Rule) -> World {
    let mut world = World::new();
    for port in 1..=3 {
        let hello = arp_request(mac(port), [10, 1, 0, port + 1], [10, 1, 0, 99]);
        let _ = world.send(port.into(), &hello);
    }
    world.edit(|t| t.policy = Policy::new([rule]));
    world
}

/// A segment with sequence number 1,000, of five bytes if it is no SYN.
fn segment(macs: [MacAddr; 2], ends: [(&str, u16); 2], flags: &str) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    let builder = match ends[0].0.contains(':') {
        true => builder.ipv6(octets6(ends[0].0), octets6(ends[1].0), 64),
        false => builder.ipv4(octets4(ends[0].0), octets4(ends[1].0), 64),
    };
    let mut tcp = builder.tcp(ends[0].1, ends[1].1, 1_000, 100);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'A' => tcp.ack(7_000),
            'F' => tcp.fin(),
            _ => tcp.rst(),
        };
    }
    let mut frame = Vec::new();
    let payload: &[u8] = if flags.contains('S') { &[] } else { &[9; 5] };
    tcp.write(&mut frame, payload).unwrap();
    frame
}

fn a_to_b() -> Vec<u8> {
    udp4(mac(1), mac(2), "10.1.0.2", "10.1.0.3", 64, 8)
}

/// From a to b, within their network.
fn within(flags: &str) -> Vec<u8> {
    segment(
        [mac(1), mac(2)],
        [("10.1.0.2", 1_000), ("10.1.0.3", 22)],
        flags,
    )
}

/// That the frame has become a reset; its sequence number, and what it acknowledges, if it does.
#[track_caller]
fn reset(out: &Outcome, ingress: PortId, ends: [(&str, u16); 2]) -> (u32, Option<u32>) {
    assert_eq!(out.verdict, Verdict::Replied(ingress), "{:?}", out.steps);
    for step in [
        Step::Policy(Ruling::Rejected(RuleSlot(0)), Standing::Opening),
        Step::Refused(DropReason::PolicyRejected),
        Step::Reply(Answer::Reset),
    ] {
        assert!(
            out.steps.contains(&step),
            "{step:?} is not in {:?}",
            out.steps
        );
    }
    let bytes = out.frame.bytes();
    assert_valid(bytes);
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("no TCP: {sliced:?}");
    };
    let addresses = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(v4) => {
            let header = v4.header();
            let sum = tcp.to_header().calc_checksum_ipv4(&header.to_header(), &[]);
            assert_eq!(sum.unwrap(), tcp.checksum(), "TCP");
            [
                header.source_addr().to_string(),
                header.destination_addr().to_string(),
            ]
        }
        NetSlice::Ipv6(v6) => {
            let header = v6.header();
            let sum = tcp.to_header().calc_checksum_ipv6(&header.to_header(), &[]);
            assert_eq!(sum.unwrap(), tcp.checksum(), "TCP");
            [
                header.source_addr().to_string(),
                header.destination_addr().to_string(),
            ]
        }
        NetSlice::Arp(_) => panic!("no IP: {sliced:?}"),
    };
    assert_eq!(addresses, ends.map(|(address, _)| address.to_owned()));
    let ports = (tcp.source_port(), tcp.destination_port());
    assert_eq!(ports, (ends[0].1, ends[1].1));
    assert!(tcp.rst() && !tcp.syn() && !tcp.fin());
    assert!(tcp.payload().is_empty() && tcp.options().is_empty());
    (
        tcp.sequence_number(),
        tcp.ack().then(|| tcp.acknowledgment_number()),
    )
}

#[test]
fn a_connection_within_a_network_is_reset_as_by_whom_it_was_for() {
    let mut world = ruled(reject(Side::Endpoint(PortId(1), RED), Side::Anyone));
    let ends = [("10.1.0.3", 22), ("10.1.0.2", 1_000)];
    let out = world.send(1, &within("S"));
    assert_eq!(
        reset(&out, PortId(1), ends),
        (0, Some(1_001)),
        "SYN counts as one"
    );
    let bytes = out.frame.bytes();
    assert_eq!(&bytes[..12], [mac(1).0, mac(2).0].concat());
    assert_eq!(bytes.len(), 14 + 20 + 20);
    let out = world.send(1, &within("F"));
    assert_eq!(
        reset(&out, PortId(1), ends),
        (0, Some(1_006)),
        "five bytes and FIN"
    );
    assert_eq!(
        world.send(1, &within("R")).verdict,
        REJECTED,
        "no reset of a reset"
    );
    let counters = &world.sw.counters;
    assert_eq!(counters.refused(DropReason::PolicyRejected), 2);
    assert_eq!(counters.dropped(DropReason::PolicyRejected), 1);
    assert_eq!(counters.rule_hits(RuleSlot(0)).0, 3);
    // Who is not spoken of is not told of.
    let other = segment([mac(3), mac(2)], [("10.1.0.4", 1), ("10.1.0.3", 22)], "S");
    assert_eq!(world.send(3, &other).verdict, Verdict::Bridged(PortId(2)));
}

#[test]
fn a_segment_that_acknowledges_is_reset_where_it_does() {
    let mut world = ruled(reject(Side::Anyone, Side::Anyone));
    let ends = [("10.1.0.3", 22), ("10.1.0.2", 1_000)];
    // RFC 9293 section 3.10.7.1.
    for flags in ["A", "SA", "FA"] {
        let out = world.send(1, &within(flags));
        assert_eq!(reset(&out, PortId(1), ends), (7_000, None), "{flags}");
    }
}

#[test]
fn options_and_large_segments_are_answered_by_the_smallest_reset() {
    let mut world = ruled(reject(Side::Anyone, Side::Anyone));
    let ends = [("10.1.0.3", 22), ("10.1.0.2", 1_000)];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4(octets4("10.1.0.2"), octets4("10.1.0.3"), 64)
        .tcp(1_000, 22, u32::MAX, 100)
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1_460)])
        .unwrap()
        .write(&mut frame, &[1; 3_000])
        .unwrap();
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 58,
        gso_size: 1_000,
        csum_start: 34,
        csum_offset: 16,
    };
    let out = world.send_offloaded(1, &frame, offload);
    assert_eq!(
        reset(&out, PortId(1), ends),
        (0, Some(2_999)),
        "the number wraps"
    );
    assert_eq!(out.frame.offload, Offload::NONE);
}

#[test]
fn all_but_tcp_is_told_of_by_icmp_from_the_gateway() {
    let mut world = ruled(reject(Side::Network(RED), Side::Anyone));
    // Bridged.
    let mut datagram = a_to_b();
    let out = world.send(1, &datagram);
    assert_error(&out, PROHIBITED, "10.1.0.1", "10.1.0.2");
    assert_eq!(&out.frame.bytes()[6..12], gateway_mac(RED).0);
    // Routed: to another network, outside, to the host.
    for to in ["10.2.0.2", "198.51.100.7", "192.0.2.1"] {
        datagram = from_a(to);
        let out = world.send(1, &datagram);
        assert_error(&out, PROHIBITED, "10.1.0.1", "10.1.0.2");
        let quoted = &out.frame.bytes()[14 + 28..];
        assert_eq!(quoted, &datagram[14..], "as it was sent, {to}");
    }
    let six = udp6(mac(1), mac(2), "fd00:1::2", "fd00:1::3", 64, 8);
    let out = world.send(1, &six);
    assert_error(&out, PROHIBITED, "fd00:1::1", "fd00:1::2");
    let icmp = &out.frame.bytes()[14 + 40..];
    assert_eq!(icmp[..2], [1, 1], "RFC 4443 section 3.1");
    let ends = [("fd00:1::2", 1_000), ("fd00:1::3", 22)];
    let out = world.send(1, &segment([mac(1), mac(2)], ends, "S"));
    let ends = [ends[1], ends[0]];
    assert_eq!(reset(&out, PortId(1), ends), (0, Some(1_001)));
    let out = world.send(1, &a_to_b());
    assert_eq!(
        out.frame.bytes()[14 + 20..][..2],
        [3, 13],
        "RFC 1812 section 5.2.7.1"
    );
}

#[test]
fn without_a_gateway_who_it_was_for_tells() {
    let mut world = ruled(reject(Side::Network(RED), Side::Anyone));
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().gateway = None);
    let out = world.send(1, &a_to_b());
    assert_error(&out, PROHIBITED, "10.1.0.3", "10.1.0.2");
    assert_eq!(&out.frame.bytes()[6..12], mac(2).0);
}

#[test]
fn nobody_is_told_of_errors_groups_later_fragments_and_what_is_no_ip() {
    let mut world = ruled(reject(Side::Anyone, Side::Anyone));
    let mut to_group = udp4(mac(1), mac(2), "10.1.0.2", "239.1.2.3", 64, 8);
    to_group[..6].copy_from_slice(&[1, 0, 0x5e, 1, 2, 3]);
    assert_eq!(world.send(1, &to_group).verdict, REJECTED);
    let mut fragment = a_to_b();
    fragment[20..22].copy_from_slice(&[0, 9]);
    assert_eq!(world.send(1, &fragment).verdict, REJECTED);
    let mut error = Vec::new();
    let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
    PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4(octets4("10.1.0.2"), octets4("10.1.0.3"), 64)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(unreachable))
        .write(
            &mut error,
            &udp4(mac(2), mac(1), "10.1.0.3", "10.1.0.2", 64, 8)[14..],
        )
        .unwrap();
    assert_eq!(world.send(1, &error).verdict, REJECTED);
    let mut other = within("S");
    other[12..14].copy_from_slice(&[0x88, 0xb5]);
    assert_eq!(world.send(1, &other).verdict, REJECTED);
    assert_eq!(world.sw.counters.refused(DropReason::PolicyRejected), 0);
    assert_eq!(world.dropped(DropReason::PolicyRejected), 4);
}

#[test]
fn telling_takes_from_the_budget_of_errors() {
    let mut world = ruled(reject(Side::Anyone, Side::Anyone));
    let told = (0..ERRORS_PER_SECOND_MAX + 10)
        .filter(|_| world.send(1, &within("S")).verdict == Verdict::Replied(PortId(1)))
        .count();
    assert_eq!(told, ERRORS_PER_SECOND_MAX as usize);
    assert_eq!(world.sw.counters.errors_suppressed.get(), 10);
    assert_eq!(world.dropped(DropReason::PolicyRejected), 10);
    world.wait(1);
    assert_eq!(
        world.send(1, &within("S")).verdict,
        Verdict::Replied(PortId(1))
    );
}

#[test]
fn the_host_and_the_outside_are_told_as_well() {
    let mut world = ruled(reject(Side::Anyone, Side::Endpoint(PortId(1), RED)));
    let from_host = [("192.0.2.1", 40_000), ("10.1.0.2", 80)];
    let frame = segment([HOST_MAC, gateway_mac(RED)], from_host, "S");
    let out = world.send(HOST_LINK.0, &frame);
    let ends = [from_host[1], from_host[0]];
    assert_eq!(reset(&out, HOST_LINK, ends), (0, Some(1_001)));

    // A published port, by the address that was asked: nothing tells of the one inside.
    world.edit(|t| {
        let server = L4Addr::new(ip("10.1.0.2"), 8_080);
        let target = Target::new(1, RED, server);
        let rules = [(1, Transport::Tcp, 80), (2, Transport::Udp, 2_000)];
        let published = |(id, transport, port): (u32, Transport, u16)| {
            StaticRule::new(id, transport, port..=port, target)
        };
        t.statics = StaticRules::build(rules.map(published).into()).unwrap();
    });
    let client = [("198.51.100.7", 40_000), ("192.0.2.1", 80)];
    let out = world.send(UPLINK.0, &segment([ROUTER_MAC, UPLINK_MAC], client, "S"));
    assert_eq!(
        reset(&out, UPLINK, [client[1], client[0]]),
        (0, Some(1_001))
    );
    let (from, to) = (client[0].0, client[1].0);
    let datagram = udp4(ROUTER_MAC, UPLINK_MAC, from, to, 64, 8);
    let out = world.send(UPLINK.0, &datagram);
    assert_error(&out, PROHIBITED, "192.0.2.1", "198.51.100.7");
    assert_eq!(world.sw.gateway.session_count(), 0);
}

#[test]
fn what_comes_back_to_a_translated_connection_ends_without_a_word() {
    let all = Side::Anyone;
    let mut world = ruled(Rule::new(RuleSlot(0), "yes", Action::Allow, all, all));
    let out = world.send(1, &from_a("198.51.100.7"));
    assert_eq!(out.verdict, Verdict::Routed(UPLINK));
    let sent = out.frame.bytes();
    let port = u16::from_be_bytes([sent[34], sent[35]]);
    let mut answer = udp4(ROUTER_MAC, UPLINK_MAC, "198.51.100.7", "192.0.2.1", 64, 8);
    answer[34..38].copy_from_slice(&[2_000u16.to_be_bytes(), port.to_be_bytes()].concat());
    answer[40..42].fill(0);
    assert_eq!(
        world.send(UPLINK.0, &answer).verdict,
        Verdict::Routed(PortId(1))
    );
    world.edit(|t| t.policy = Policy::new([reject(Side::Network(RED), Side::Outside)]));
    // By then it is addressed to the endpoint; the endpoint is told of what it sends.
    let denied = Verdict::Drop(DropReason::PolicyDenied);
    assert_eq!(world.send(UPLINK.0, &answer).verdict, denied);
    assert_eq!(world.sw.counters.refused(DropReason::PolicyRejected), 0);
    let out = world.send(1, &from_a("198.51.100.7"));
    assert_error(&out, PROHIBITED, "10.1.0.1", "10.1.0.2");
}

#[test]
fn an_answer_leaves_in_the_vlan_of_what_it_answers() {
    let mut world = ruled(reject(Side::Anyone, Side::Anyone));
    world.edit(|t| {
        for port in t.ports.iter_mut().flatten().filter(|port| port.id.0 <= 3) {
            port.flags = port.flags.with(PortFlags::FILTERING);
            let mut vlans = PortVlans::access(VlanId(5));
            vlans.add(7..=7, Form::Tagged);
            port.profile_mut().vlans = Some(Box::new(vlans));
        }
        t.domains[RED.index()].as_mut().unwrap().gateway_vlan = VlanId(7);
    });
    let tagged = |mut frame: Vec<u8>, vlan: u8| {
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    };
    let tag_of = |out: &Outcome| match out.frame.bytes()[12..14] {
        [0x81, 0] => Some(out.frame.bytes()[15]),
        _ => None,
    };
    let out = world.send(1, &within("S"));
    assert_eq!(
        (out.verdict, tag_of(&out)),
        (Verdict::Replied(PortId(1)), None)
    );
    let out = world.send(1, &tagged(within("S"), 7));
    assert_eq!(
        (out.verdict, tag_of(&out)),
        (Verdict::Replied(PortId(1)), Some(7))
    );
    // To the gateway, which takes the tag off.
    let ends = [("10.1.0.2", 1_000), ("198.51.100.7", 22)];
    let out = world.send(
        1,
        &tagged(segment([mac(1), gateway_mac(RED)], ends, "S"), 7),
    );
    assert_eq!(
        (out.verdict, tag_of(&out)),
        (Verdict::Replied(PortId(1)), Some(7))
    );
}
