//! What the gateway answers in place, driven through `forward`: ARP, ND, echo and ICMP errors.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::PortId;
use dataplane_core::frame::Offload;
use dataplane_core::gso::Segmenter;
use dataplane_core::route::ERRORS_PER_SECOND_MAX;
use dataplane_core::trace::IcmpErrorKind;
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::{ArpOperation, Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket};
use world::packets::{
    arp_request, assert_error, assert_valid, octets6, set_dont_fragment, udp4, udp6,
};
use world::{RED, UPLINK, World, gateway_mac, mac};

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
    assert_eq!(out.verdict, Verdict::Routed(UPLINK), "no DF, no error");
    let mut sizes = Vec::new();
    let cut = Segmenter::new().segment(&out.frame, |piece| sizes.push(piece.len()));
    assert_eq!((cut, sizes), (Ok(2), vec![14 + 20 + 1_256, 14 + 20 + 5]));
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
