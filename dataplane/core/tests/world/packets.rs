//! Frames that the gateway's tests send, and judges of what comes out: etherparse reads it, so that
//! headers and checksums are held to another implementation.

use std::net::IpAddr;

use dataplane_core::addr::MacAddr;
use dataplane_core::checksum::Sum;
use dataplane_core::frame::Offload;
use dataplane_core::trace::{Answer, IcmpErrorKind, Step};
use etherparse::{ArpOperation, ArpPacket, EtherType, PacketBuilder, SlicedPacket};

use super::{Outcome, RED, gateway_mac, ip, mac};

pub fn arp_request(src: MacAddr, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
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

pub fn octets4(text: &str) -> [u8; 4] {
    match ip(text) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("{text} is IPv6"),
    }
}

pub fn octets6(text: &str) -> [u8; 16] {
    match ip(text) {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => panic!("{text} is IPv4"),
    }
}

pub fn udp4(
    src_mac: MacAddr,
    dst_mac: MacAddr,
    src: &str,
    dst: &str,
    ttl: u8,
    size: usize,
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, dst_mac.0)
        .ipv4(octets4(src), octets4(dst), ttl)
        .udp(1000, 2000)
        .write(&mut frame, &vec![7; size])
        .unwrap();
    frame
}

pub fn udp6(
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
pub fn from_a(dst: &str) -> Vec<u8> {
    udp4(mac(1), gateway_mac(RED), "10.1.0.2", dst, 64, 32)
}

pub fn set_dont_fragment(frame: &mut [u8], dont_fragment: bool) {
    frame[20] = frame[20] & 0xbf | u8::from(dont_fragment) << 6;
    frame[24..26].fill(0);
    let sum = dataplane_core::checksum::ipv4_header(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Every checksum of the frame, judged by etherparse. The quoted packet of an error included.
#[track_caller]
pub fn assert_valid(frame: &[u8]) {
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
pub fn assert_error(out: &Outcome, kind: IcmpErrorKind, from: &str, to: &str) {
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

/// A TCP frame from a to b whose sum is left to the device, as a kernel hands it over.
pub fn unfinished(payload: usize, gso_size: u16) -> (Vec<u8>, Offload) {
    let (src, dst) = ([10, 1, 0, 2], [10, 1, 0, 3]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4(src, dst, 64)
        .tcp(1_000, 80, 1, 100)
        .ack(1)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    let partial = Sum::pseudo_header(src.into(), dst.into(), 6, 20 + payload).folded();
    frame[50..52].copy_from_slice(&partial.to_be_bytes());
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: u8::from(gso_size != 0),
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
    };
    (frame, offload)
}
