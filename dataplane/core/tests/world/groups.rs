//! Frames about groups: IGMP and MLD of every version, PIM, and data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::addr::MacAddr;
use dataplane_core::checksum::{Sum, ipv4_header};
use dataplane_core::multicast::group_mac;

/// Types of IGMP.
pub const QUERY: u8 = 0x11;
pub const REPORT_V1: u8 = 0x12;
pub const REPORT_V2: u8 = 0x16;
pub const LEAVE: u8 = 0x17;
pub const REPORT_V3: u8 = 0x22;
/// Types of MLD.
pub const MLD_QUERY: u8 = 130;
pub const MLD_REPORT: u8 = 131;
pub const MLD_DONE: u8 = 132;
pub const MLD_REPORT_V2: u8 = 143;

/// Record types of IGMPv3 and MLDv2.
pub const IS_IN: u8 = 1;
pub const IS_EX: u8 = 2;
pub const TO_IN: u8 = 3;
pub const TO_EX: u8 = 4;
pub const ALLOW: u8 = 5;
pub const BLOCK: u8 = 6;

/// A record: type, group, number of sources.
pub type Record = (u8, IpAddr, u16);

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// An IPv4 packet in a frame to its group, with a router alert.
pub fn ipv4(
    src_mac: MacAddr,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![
        0x46,
        0xc0,
        0,
        24 + payload.len() as u8,
        0,
        0,
        0,
        0,
        1,
        protocol,
        0,
        0,
    ];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend([0x94, 4, 0, 0]);
    let sum = ipv4_header(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    frame(src_mac, group_mac(dst.into()), 0x0800, &packet)
}

/// An IPv6 packet in a frame to its group, with the hop-by-hop options of MLD.
pub fn ipv6(src_mac: MacAddr, src: Ipv6Addr, dst: Ipv6Addr, icmp: &[u8]) -> Vec<u8> {
    let mut icmp = icmp.to_vec();
    let sum = Sum::pseudo_header(src.into(), dst.into(), 58, icmp.len());
    let sum = sum.add_bytes(&icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, 8 + icmp.len() as u8, 0, 1];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    packet.extend(icmp);
    frame(src_mac, group_mac(dst.into()), 0x86dd, &packet)
}

/// A datagram to a group.
pub fn data(src_mac: MacAddr, group: IpAddr) -> Vec<u8> {
    let udp = [0x30, 0x39, 0x30, 0x39, 0, 12, 0, 0, b'd', b'a', b't', b'a'];
    match group {
        IpAddr::V4(group) => ipv4(src_mac, v4("10.1.0.9"), group, 17, &udp),
        IpAddr::V6(group) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 12, 17, 1];
            packet.extend(v6("fd00:1::9").octets());
            packet.extend(group.octets());
            packet.extend(udp);
            frame(src_mac, group_mac(group.into()), 0x86dd, &packet)
        }
    }
}

fn frame(src: MacAddr, dst: MacAddr, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// IGMP before version 3.
pub fn igmp(kind: u8, code: u8, group: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(group.octets());
    summed(message)
}

/// Writes the checksum of an IGMP message.
pub fn summed(mut message: Vec<u8>) -> Vec<u8> {
    message[2..4].fill(0);
    let sum = Sum::ZERO.add_bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn records(kind: u8, records: &[Record]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, records.len() as u8];
    for (kind, group, sources) in records {
        message.extend([*kind, 0]);
        message.extend(sources.to_be_bytes());
        match group {
            IpAddr::V4(group) => {
                message.extend(group.octets());
                (0..*sources).for_each(|n| message.extend([192, 0, 2, n as u8]));
            }
            IpAddr::V6(group) => {
                message.extend(group.octets());
                (0..*sources).for_each(|n| message.extend(Ipv6Addr::from(u128::from(n)).octets()));
            }
        }
    }
    message
}

/// A report for a group in the version of old, from a host.
pub fn report(src: MacAddr, group: IpAddr) -> Vec<u8> {
    match group {
        IpAddr::V4(group) => ipv4(src, v4("10.1.0.2"), group, 2, &igmp(REPORT_V2, 0, group)),
        IpAddr::V6(group) => ipv6(src, v6("fe80::2"), group, &mld(MLD_REPORT, 0, group)),
    }
}

/// That nobody behind a host listens to a group any more.
pub fn leave(src: MacAddr, group: IpAddr) -> Vec<u8> {
    match group {
        IpAddr::V4(group) => {
            let routers = v4("224.0.0.2");
            ipv4(src, v4("10.1.0.2"), routers, 2, &igmp(LEAVE, 0, group))
        }
        IpAddr::V6(group) => ipv6(src, v6("fe80::2"), v6("ff02::2"), &mld(MLD_DONE, 0, group)),
    }
}

/// A report of IGMPv3.
pub fn report_v3(src: MacAddr, list: &[Record]) -> Vec<u8> {
    let message = summed(records(REPORT_V3, list));
    ipv4(src, v4("10.1.0.2"), v4("224.0.0.22"), 2, &message)
}

/// A report of MLDv2.
pub fn mld_report_v2(src: MacAddr, list: &[Record]) -> Vec<u8> {
    ipv6(
        src,
        v6("fe80::2"),
        v6("ff02::16"),
        &records(MLD_REPORT_V2, list),
    )
}

/// MLD of version 1.
pub fn mld(kind: u8, millis: u16, group: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(millis.to_be_bytes());
    message.extend([0, 0]);
    message.extend(group.octets());
    message
}

/// A general query of IGMPv2.
pub fn query(src: MacAddr, from: Ipv4Addr, tenths: u8) -> Vec<u8> {
    let all = v4("224.0.0.1");
    ipv4(
        src,
        from,
        all,
        2,
        &igmp(QUERY, tenths, Ipv4Addr::UNSPECIFIED),
    )
}

/// A query of IGMPv2 about a group.
pub fn group_query(src: MacAddr, from: Ipv4Addr, tenths: u8, group: Ipv4Addr) -> Vec<u8> {
    ipv4(src, from, group, 2, &igmp(QUERY, tenths, group))
}

/// A general query of MLDv1.
pub fn mld_query(src: MacAddr, from: Ipv6Addr, millis: u16) -> Vec<u8> {
    let all = v6("ff02::1");
    ipv6(
        src,
        from,
        all,
        &mld(MLD_QUERY, millis, Ipv6Addr::UNSPECIFIED),
    )
}
