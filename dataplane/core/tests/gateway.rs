//! The gateway, driven through `forward`: answers made in place, routing, refusals. etherparse
//! reads what comes out, so that headers and checksums are judged by another implementation.

#![allow(clippy::unwrap_used)]

mod world;

use std::net::IpAddr;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::route::{ERRORS_PER_SECOND_MAX, HELD_PER_NEXT_HOP_MAX, HOLD_TIME};
use dataplane_core::trace::{Answer, IcmpErrorKind, Step, Way};
use dataplane_core::verdict::{Consumer, DropReason, Verdict, VerdictKind};
use etherparse::{
    ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket,
};
use world::{
    BLUE, HOST_LINK, HOST_MAC, Outcome, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac,
    ip, mac,
};

fn arp_request(src: MacAddr, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let arp = ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &src.0,
        &sender,
        &[0; 6],
        &target,
    )
    .unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src.0, [0xff; 6])
        .arp(arp)
        .write(&mut frame)
        .unwrap();
    frame
}

fn octets4(text: &str) -> [u8; 4] {
    match ip(text) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("{text} is IPv6"),
    }
}

fn octets6(text: &str) -> [u8; 16] {
    match ip(text) {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => panic!("{text} is IPv4"),
    }
}

fn udp4(src_mac: MacAddr, dst_mac: MacAddr, src: &str, dst: &str, ttl: u8, size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, dst_mac.0)
        .ipv4(octets4(src), octets4(dst), ttl)
        .udp(1000, 2000)
        .write(&mut frame, &vec![7; size])
        .unwrap();
    frame
}

fn udp6(
    src_mac: MacAddr,
    dst_mac: MacAddr,
    src: &str,
    dst: &str,
    hops: u8,
    size: usize,
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, dst_mac.0)
        .ipv6(octets6(src), octets6(dst), hops)
        .udp(1000, 2000)
        .write(&mut frame, &vec![7; size])
        .unwrap();
    frame
}

/// From endpoint a to the gateway of red.
fn from_a(dst: &str) -> Vec<u8> {
    udp4(mac(1), gateway_mac(RED), "10.1.0.2", dst, 64, 32)
}

fn set_dont_fragment(frame: &mut [u8], dont_fragment: bool) {
    frame[20] = frame[20] & 0xbf | u8::from(dont_fragment) << 6;
    frame[24..26].fill(0);
    let sum = dataplane_core::checksum::ipv4_header(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Every checksum of the frame, judged by etherparse. The quoted packet of an error included.
#[track_caller]
fn assert_valid(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match packet.net {
        Some(etherparse::NetSlice::Ipv4(v4)) => {
            let header = v4.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header"
            );
            if let Some(etherparse::TransportSlice::Icmpv4(icmp)) = &packet.transport {
                let expected = icmp.icmp_type().calc_checksum(icmp.payload());
                assert_eq!(icmp.checksum(), expected, "ICMP");
            }
            if let Some(etherparse::TransportSlice::Udp(udp)) = &packet.transport {
                let expected = udp
                    .to_header()
                    .calc_checksum_ipv4(&header, udp.payload())
                    .unwrap();
                assert_eq!(udp.checksum(), expected, "UDP");
            }
        }
        Some(etherparse::NetSlice::Ipv6(v6)) => {
            let header = v6.header().to_header();
            if let Some(etherparse::TransportSlice::Icmpv6(icmp)) = packet.transport {
                assert!(
                    icmp.is_checksum_valid(header.source, header.destination),
                    "ICMPv6"
                );
            }
        }
        Some(etherparse::NetSlice::Arp(_)) | None => {}
    }
}

#[track_caller]
fn assert_error(out: &Outcome, kind: IcmpErrorKind, from: &str, to: &str) {
    assert!(
        out.steps.contains(&Step::Reply(Answer::Error { kind })),
        "{:?}",
        out.steps
    );
    assert_valid(out.frame.bytes());
    let packet = SlicedPacket::from_ethernet(out.frame.bytes()).unwrap();
    let (src, dst) = match packet.net {
        Some(etherparse::NetSlice::Ipv4(v4)) => (
            IpAddr::from(v4.header().source_addr()),
            IpAddr::from(v4.header().destination_addr()),
        ),
        Some(etherparse::NetSlice::Ipv6(v6)) => (
            IpAddr::from(v6.header().source_addr()),
            IpAddr::from(v6.header().destination_addr()),
        ),
        Some(etherparse::NetSlice::Arp(_)) | None => panic!("not IP"),
    };
    assert_eq!((src, dst), (ip(from), ip(to)));
}

#[test]
fn the_gateway_answers_arp_for_itself_alone() {
    let mut world = World::new();
    let out = world.send(1, &arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 1]));
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    let packet = SlicedPacket::from_ethernet(out.frame.bytes()).unwrap();
    let link = packet
        .link
        .unwrap()
        .to_header()
        .unwrap()
        .ethernet2()
        .unwrap();
    assert_eq!(
        (link.destination, link.source),
        (mac(1).0, gateway_mac(RED).0)
    );
    let Some(etherparse::NetSlice::Arp(arp)) = packet.net else {
        panic!("not ARP")
    };
    assert_eq!(arp.operation(), ArpOperation::REPLY);
    assert_eq!(arp.sender_hw_addr(), gateway_mac(RED).0);
    assert_eq!(arp.sender_protocol_addr(), [10, 1, 0, 1]);
    assert_eq!(arp.target_hw_addr(), mac(1).0);
    assert_eq!(arp.target_protocol_addr(), [10, 1, 0, 2]);

    let out = world.send(1, &arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]));
    assert_eq!(
        world.flood_ports(&out, 1),
        [2, 3],
        "a sibling answers for itself"
    );
    let mut to_gateway = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    to_gateway[..6].copy_from_slice(&gateway_mac(RED).0);
    let out = world.send(1, &to_gateway);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::ArpNotForGateway));
}

#[test]
fn the_gateway_answers_neighbour_solicitations_with_and_without_a_source() {
    for (src, flags, dst_mac) in [
        ("fd00:1::2", 0xe0, mac(1).0),
        ("::", 0xa0, [0x33, 0x33, 0, 0, 0, 1]),
    ] {
        for target in [
            "fd00:1::1".to_owned(),
            gateway_mac(RED).link_local_v6().to_string(),
        ] {
            let mut world = World::new();
            let mut payload = octets6(&target).to_vec();
            payload.extend([1, 1]);
            payload.extend(mac(1).0);
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(mac(1).0, [0x33, 0x33, 0xff, 0, 0, 1])
                .ipv6(octets6(src), octets6("ff02::1:ff00:1"), 255)
                .icmpv6(Icmpv6Type::NeighborSolicitation)
                .write(&mut frame, &payload)
                .unwrap();
            let out = world.send(1, &frame);
            assert_eq!(out.verdict, Verdict::Replied(PortId(1)), "{src} {target}");
            assert_valid(out.frame.bytes());
            assert_eq!(out.frame.bytes()[..6], dst_mac);
            let packet = SlicedPacket::from_ethernet(out.frame.bytes()).unwrap();
            let Some(etherparse::TransportSlice::Icmpv6(icmp)) = packet.transport else {
                panic!("not ICMPv6")
            };
            assert_eq!(icmp.type_u8(), 136);
            assert_eq!(icmp.slice()[4], flags);
            assert_eq!(icmp.slice()[8..24], octets6(&target));
            assert_eq!(
                icmp.slice()[24..32],
                [&[2, 1][..], &gateway_mac(RED).0].concat()
            );
            // RFC 4861 section 7.1.1: a solicitation that crossed a router is none.
            frame[21] = 254;
            let out = world.send(1, &frame);
            assert!(
                matches!(out.verdict, Verdict::Flooded(..)),
                "{:?}",
                out.verdict
            );
        }
    }
}

#[test]
fn the_gateway_answers_echo_in_place() {
    let mut world = World::new();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4([10, 1, 0, 2], [10, 1, 0, 1], 1)
        .icmpv4_echo_request(77, 3)
        .write(&mut frame, b"are you there?")
        .unwrap();
    let out = world.send(1, &frame);
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert_valid(out.frame.bytes());
    let packet = SlicedPacket::from_ethernet(out.frame.bytes()).unwrap();
    let Some(etherparse::TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!()
    };
    let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
        panic!("{:?}", icmp.icmp_type())
    };
    assert_eq!(
        (echo.id, echo.seq, icmp.payload()),
        (77, 3, &b"are you there?"[..])
    );
    let Some(etherparse::NetSlice::Ipv4(v4)) = packet.net else {
        panic!()
    };
    assert_eq!(
        (v4.header().source(), v4.header().ttl()),
        ([10, 1, 0, 1], 64)
    );

    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv6(octets6("fd00:1::2"), octets6("fd00:1::1"), 9)
        .icmpv6_echo_request(77, 3)
        .write(&mut frame, b"are you there?")
        .unwrap();
    let out = world.send(1, &frame);
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    assert_valid(out.frame.bytes());
}

#[test]
fn each_fragment_of_an_echo_request_is_answered_by_itself() {
    let mut world = World::new();
    let mut whole = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4([10, 1, 0, 2], [10, 1, 0, 1], 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut whole, &[0xa5; 2000])
        .unwrap();
    // Cut by hand at 1,000 bytes of IP payload.
    let payload = whole[34..].to_vec();
    let mut reassembled = Vec::new();
    for (offset, part, more) in [
        (0usize, &payload[..1000], 0x20u8),
        (1000, &payload[1000..], 0),
    ] {
        let mut frame = whole[..34].to_vec();
        frame[16..18].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&((offset / 8) as u16).to_be_bytes());
        frame[20] |= more;
        frame[24..26].fill(0);
        let sum = dataplane_core::checksum::ipv4_header(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(part);
        let out = world.send(1, &frame);
        assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
        let header = SlicedPacket::from_ethernet(out.frame.bytes()).unwrap();
        let Some(etherparse::NetSlice::Ipv4(v4)) = header.net else {
            panic!()
        };
        let header = v4.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(header.destination, [10, 1, 0, 2]);
        reassembled.extend(&out.frame.bytes()[34..]);
    }
    let icmp = etherparse::Icmpv4Slice::from_slice(&reassembled).unwrap();
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(_)));
    assert_eq!(
        icmp.checksum(),
        icmp.icmp_type().calc_checksum(icmp.payload())
    );
}

#[test]
fn the_last_hop_is_reported() {
    let mut world = World::new();
    for ttl in [0, 1] {
        let frame = udp4(
            mac(1),
            gateway_mac(RED),
            "10.1.0.2",
            "198.51.100.9",
            ttl,
            100,
        );
        let out = world.send(1, &frame);
        assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
        assert_error(&out, IcmpErrorKind::TimeExceeded, "10.1.0.1", "10.1.0.2");
        assert_eq!(
            out.frame.bytes()[14 + 28..],
            frame[14..],
            "the whole packet is quoted"
        );
        assert_eq!(
            out.frame.bytes()[..12],
            [mac(1).0, gateway_mac(RED).0].concat()
        );
    }
    let out = world.send(
        1,
        &udp6(
            mac(1),
            gateway_mac(RED),
            "fd00:1::2",
            "2001:db8:9::9",
            1,
            100,
        ),
    );
    assert_error(&out, IcmpErrorKind::TimeExceeded, "fd00:1::1", "fd00:1::2");
}

#[test]
fn errors_quote_no_more_than_their_rfc_allows() {
    let mut world = World::new();
    let out = world.send(
        1,
        &udp4(mac(1), gateway_mac(RED), "10.1.0.2", "10.9.9.9", 1, 1400),
    );
    assert_eq!(out.frame.len(), 14 + 576);
    assert_valid(out.frame.bytes());
    let out = world.send(
        1,
        &udp6(
            mac(1),
            gateway_mac(RED),
            "fd00:1::2",
            "2001:db8:9::9",
            1,
            1400,
        ),
    );
    assert_eq!(out.frame.len(), 14 + 1280);
    assert_valid(out.frame.bytes());
}

#[test]
fn errors_are_limited_and_the_suppressed_are_counted() {
    let mut world = World::new();
    let frame = udp4(mac(1), gateway_mac(RED), "10.1.0.2", "198.51.100.9", 1, 100);
    for _ in 0..ERRORS_PER_SECOND_MAX {
        assert_eq!(world.send(1, &frame).verdict, Verdict::Replied(PortId(1)));
    }
    assert_eq!(
        world.send(1, &frame).verdict,
        Verdict::Drop(DropReason::TtlExceeded)
    );
    assert_eq!(world.sw.counters.errors_suppressed.get(), 1);
    world.wait(1);
    assert_eq!(world.send(1, &frame).verdict, Verdict::Replied(PortId(1)));
}

#[test]
fn no_error_is_sent_about_an_error() {
    let mut world = World::new();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4([10, 1, 0, 2], [198, 51, 100, 9], 1)
        .icmpv4(Icmpv4Type::TimeExceeded(
            etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit,
        ))
        .write(&mut frame, &[0; 28])
        .unwrap();
    assert_eq!(
        world.send(1, &frame).verdict,
        Verdict::Drop(DropReason::TtlExceeded)
    );
}

#[test]
fn a_packet_too_large_for_the_next_link_is_reported_with_its_mtu() {
    let mut world = World::new();
    world.edit(|t| t.uplinks[0].mtu = 1280);
    let mut frame = udp4(
        mac(1),
        gateway_mac(RED),
        "10.1.0.2",
        "198.51.100.9",
        64,
        1253,
    );
    set_dont_fragment(&mut frame, false);
    let out = world.send(1, &frame);
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::FragmentationNeeded),
        "no DF, no error"
    );
    set_dont_fragment(&mut frame, true);
    let out = world.send(1, &frame);
    assert_error(
        &out,
        IcmpErrorKind::TooBig { mtu: 1280 },
        "10.1.0.1",
        "10.1.0.2",
    );
    assert_eq!(
        out.frame.bytes()[34..42][6..],
        [0x05, 0x00],
        "RFC 1191: next-hop MTU"
    );
    let frame = udp6(
        mac(1),
        gateway_mac(RED),
        "fd00:1::2",
        "2001:db8:9::9",
        64,
        1233,
    );
    let out = world.send(1, &frame);
    assert_error(
        &out,
        IcmpErrorKind::TooBig { mtu: 1280 },
        "fd00:1::1",
        "fd00:1::2",
    );
}

#[test]
fn a_gso_frame_is_measured_by_its_segments() {
    let mut world = World::new();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4([10, 1, 0, 2], [10, 1, 0, 3], 64)
        .tcp(1000, 2000, 1, 1000)
        .write(&mut frame, &[1; 20_000])
        .unwrap();
    set_dont_fragment(&mut frame, true);
    let gso = |gso_size| Offload {
        gso_type: 1,
        gso_size,
        ..Offload::NONE
    };
    let out = world.send_offloaded(1, &frame, gso(1460));
    assert_eq!(
        out.verdict,
        Verdict::Routed(PortId(2)),
        "1,500 bytes a segment"
    );
    let out = world.send_offloaded(1, &frame, gso(1461));
    assert_error(
        &out,
        IcmpErrorKind::TooBig { mtu: 1500 },
        "10.1.0.1",
        "10.1.0.2",
    );
    assert_eq!(out.frame.offload, Offload::NONE);
}

#[test]
fn the_same_network_is_routed_out_again_with_one_hop_less() {
    let mut world = World::new();
    let out = world.send(1, &from_a("10.1.0.3"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(2)));
    assert_valid(out.frame.bytes());
    assert_eq!(
        out.frame.bytes()[..12],
        [mac(2).0, gateway_mac(RED).0].concat()
    );
    assert_eq!(out.frame.bytes()[22], 63);
    let out = world.send(1, &from_a("10.1.0.77"));
    assert_error(&out, IcmpErrorKind::HostUnreachable, "10.1.0.1", "10.1.0.2");
}

#[test]
fn networks_are_isolated_until_allowed_and_then_in_that_direction_only() {
    let mut world = World::new();
    let isolated = Verdict::Drop(DropReason::NetworkIsolated);
    assert_eq!(world.send(1, &from_a("10.2.0.2")).verdict, isolated);
    assert_eq!(
        world.send(1, &from_a("10.2.0.1")).verdict,
        isolated,
        "nor its gateway"
    );
    world.edit(|t| {
        t.allowed.insert((RED, BLUE));
    });
    let out = world.send(1, &from_a("10.2.0.2"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(4)));
    assert_eq!(
        out.frame.bytes()[..12],
        [mac(4).0, gateway_mac(BLUE).0].concat()
    );
    let back = udp4(mac(4), gateway_mac(BLUE), "10.2.0.2", "10.1.0.2", 64, 8);
    assert_eq!(world.send(4, &back).verdict, isolated);
}

#[test]
fn an_internal_network_reaches_its_gateway_and_nothing_outside() {
    let mut world = World::new();
    let vault = gateway_mac(dataplane_core::addr::DomainId(3));
    for dst in ["198.51.100.9", "192.0.2.1", "10.1.0.2", "192.0.2.7"] {
        let out = world.send(5, &udp4(mac(5), vault, "10.3.0.2", dst, 64, 8));
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::NetworkInternal),
            "{dst}"
        );
    }
    let out = world.send(5, &udp4(mac(5), vault, "10.3.0.2", "10.3.0.1", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Delivered(Consumer::HostLink(HOST_LINK))
    );
}

#[test]
fn the_host_is_reached_at_the_gateway_and_at_its_own_addresses() {
    let mut world = World::new();
    for dst in ["10.1.0.1", "192.0.2.1"] {
        let out = world.send(1, &from_a(dst));
        assert_eq!(
            out.verdict,
            Verdict::Delivered(Consumer::HostLink(HOST_LINK)),
            "{dst}"
        );
        assert!(out.steps.contains(&Step::Route(Way::Host)));
        assert_eq!(
            out.frame.bytes()[..12],
            [HOST_MAC.0, gateway_mac(RED).0].concat()
        );
        assert_eq!(out.frame.bytes()[22], 64, "the host is no hop away");
    }
}

#[test]
fn without_a_host_link_the_gateway_refuses_what_it_does_not_serve() {
    let mut world = World::new();
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().host_link = false);
    let out = world.send(1, &from_a("10.1.0.1"));
    assert_error(&out, IcmpErrorKind::PortUnreachable, "10.1.0.1", "10.1.0.2");
    let out = world.send(1, &from_a("192.0.2.1"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoHostLink));
    let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, "192.0.2.1", "10.1.0.2", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::NoRoute),
        "nor does the host get in"
    );
}

#[test]
fn the_host_reaches_containers_from_its_own_addresses_only() {
    let mut world = World::new();
    for src in ["192.0.2.1", "10.1.0.1"] {
        let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, src, "10.1.0.2", 64, 8));
        assert_eq!(out.verdict, Verdict::Routed(PortId(1)), "{src}");
        assert_eq!(
            out.frame.bytes()[..12],
            [mac(1).0, gateway_mac(RED).0].concat()
        );
        assert_eq!(out.frame.bytes()[22], 64);
    }
    let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, "192.0.2.7", "10.1.0.2", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::HostLinkForeignSource)
    );
}

#[test]
fn impossible_addresses_go_nowhere() {
    let mut world = World::new();
    let martian = Verdict::Drop(DropReason::MartianDestination);
    for dst in [
        "224.0.0.1",
        "255.255.255.255",
        "127.0.0.1",
        "0.0.0.0",
        "10.1.255.255",
    ] {
        assert_eq!(world.send(1, &from_a(dst)).verdict, martian, "{dst}");
    }
    for src in ["10.2.0.2", "198.51.100.1", "0.0.0.0", "127.0.0.1"] {
        let out = world.send(
            1,
            &udp4(mac(1), gateway_mac(RED), src, "198.51.100.9", 64, 8),
        );
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::MartianSource),
            "{src}"
        );
    }
}

#[test]
fn what_the_gateway_cannot_read_is_dropped_with_its_reason() {
    let mut world = World::new();
    let whole = from_a("198.51.100.9");
    for size in 14..whole.len() {
        let out = world.send(1, &whole[..size]);
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::L3Malformed),
            "{size} bytes"
        );
    }
    let mut tagged = whole[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&whole[12..]);
    assert_eq!(
        world.send(1, &tagged).verdict,
        Verdict::Drop(DropReason::TaggedForGateway)
    );
}

#[test]
fn no_route_and_a_route_by_no_uplink_are_told_apart() {
    let mut world = World::new();
    let out = world.send(1, &from_a("203.0.113.5"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoUplinkRoute));
    world.edit(|t| t.routes.retain(|route| route.prefix.len != 0));
    let out = world.send(1, &from_a("198.51.100.9"));
    assert_error(
        &out,
        IcmpErrorKind::NetworkUnreachable,
        "10.1.0.1",
        "10.1.0.2",
    );
}

#[test]
fn a_frame_waits_for_its_next_hop_and_leaves_when_it_is_known() {
    let mut world = World::new();
    let out = world.send(1, &from_a("192.0.2.99"));
    assert_eq!(out.verdict, Verdict::Held);
    assert_eq!(
        world.sw.gateway.take_wanted(),
        [(dataplane_core::addr::UplinkId(0), ip("192.0.2.99"))]
    );
    let counters = std::sync::Arc::clone(&world.sw.counters);
    assert!(
        world
            .sw
            .gateway
            .release(&world.sw.topology, &counters, world.now)
            .is_none()
    );
    world.edit(|t| {
        t.uplinks[0].neighbours.insert(ip("192.0.2.99"), mac(99));
    });
    let released = world
        .sw
        .gateway
        .release(&world.sw.topology, &counters, world.now);
    let (ingress, frame, verdict) = released.unwrap();
    assert_eq!((ingress, verdict), (PortId(1), Verdict::Routed(UPLINK)));
    assert_eq!(frame.bytes()[..12], [mac(99).0, UPLINK_MAC.0].concat());
    assert_valid(frame.bytes());
    assert_eq!(counters.released.get(), 1);
    assert_eq!(counters.judged(), counters.rx.get() + 1);
    assert_eq!(counters.verdict(VerdictKind::Held), 1);
}

#[test]
fn waiting_frames_are_few_and_are_given_up_in_time() {
    let mut world = World::new();
    for n in 0..=HELD_PER_NEXT_HOP_MAX {
        let verdict = world.send(1, &from_a("192.0.2.99")).verdict;
        let expected = match n {
            HELD_PER_NEXT_HOP_MAX => Verdict::Drop(DropReason::NextHopUnresolved),
            _ => Verdict::Held,
        };
        assert_eq!(verdict, expected, "frame {n}");
    }
    world.wait(HOLD_TIME.as_secs());
    let counters = std::sync::Arc::clone(&world.sw.counters);
    let mut given_up = 0;
    while let Some((_, _, verdict)) =
        world
            .sw
            .gateway
            .release(&world.sw.topology, &counters, world.now)
    {
        assert_eq!(verdict, Verdict::Drop(DropReason::NextHopUnresolved));
        given_up += 1;
    }
    assert_eq!(given_up, HELD_PER_NEXT_HOP_MAX);
}

#[test]
fn on_a_shared_interface_the_hosts_own_traffic_is_left_alone() {
    let mut world = World::new();
    let to_host = |dst_mac, dst: &str| udp4(ROUTER_MAC, dst_mac, "198.51.100.9", dst, 64, 8);
    for (frame, why) in [
        (to_host(UPLINK_MAC, "192.0.2.1"), "a port of the host's own"),
        (to_host(mac(66), "192.0.2.1"), "another station's MAC"),
        (
            to_host(UPLINK_MAC, "192.0.2.200"),
            "neither an address of the host nor of a network",
        ),
        (
            arp_request(ROUTER_MAC, [192, 0, 2, 254], [192, 0, 2, 1]),
            "ARP is the host's",
        ),
        (vec![0xff; 60], "noise"),
    ] {
        assert_eq!(world.send(9, &frame).verdict, Verdict::NotOurs, "{why}");
    }
    let out = world.send(9, &to_host(UPLINK_MAC, "10.1.0.2"));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::UplinkForeignDestination)
    );
}
