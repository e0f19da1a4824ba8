//! Queries: what the switch asks as a querier.
//!
//! IGMPv2 and MLDv1, the versions of the kernel's bridge: hosts of IGMPv3 and MLDv2 answer them in
//! the older version too (RFC 3376 section 7.2.1), and no source is asked about here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{ALL_NODES, ALL_SYSTEMS, igmp, mld};
use super::timing::{LAST_MEMBER_INTERVAL, RESPONSE_INTERVAL};
use super::{Question, group_mac};
use crate::addr::MacAddr;
use crate::checksum::{self, Sum};
use crate::frame::{FrameBuf, Offload};
use crate::headers::{ETHERNET_SIZE, ethertype, protocol};
use crate::topology::Domain;

/// An IPv4 header with the router alert option (RFC 2113), which IGMPv2 asks for.
const IPV4_SIZE: usize = 24;
const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];
/// An IPv6 header with hop-by-hop options: router alert (RFC 2711) for MLD, and padding.
const IPV6_SIZE: usize = 40;
const HOP_BY_HOP: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];

/// Writes a question of `domain` into a buffer. `false` when the network has no querier's address.
pub(super) fn write(buf: &mut FrameBuf, domain: &Domain, question: &Question) -> bool {
    let Some((gateway, from)) = domain
        .gateway
        .as_ref()
        .zip(domain.querier(question.vlan, question.family))
    else {
        return false;
    };
    let group = question.group;
    let response_max = match group {
        None => RESPONSE_INTERVAL,
        Some(_) => LAST_MEMBER_INTERVAL,
    };
    let millis = u16::try_from(response_max.as_millis()).unwrap_or(u16::MAX);
    let mut bytes = [0; ETHERNET_SIZE + IPV6_SIZE + HOP_BY_HOP.len() + mld::SIZE];
    let size = match (from, group) {
        (IpAddr::V4(from), None) => igmp_query(&mut bytes, from, None, millis),
        (IpAddr::V4(from), Some(IpAddr::V4(group))) => {
            igmp_query(&mut bytes, from, Some(group), millis)
        }
        (IpAddr::V6(from), None) => mld_query(&mut bytes, from, None, millis),
        (IpAddr::V6(from), Some(IpAddr::V6(group))) => {
            mld_query(&mut bytes, from, Some(group), millis)
        }
        (IpAddr::V4(_), Some(IpAddr::V6(_))) | (IpAddr::V6(_), Some(IpAddr::V4(_))) => {
            return false;
        }
    };
    bytes[6..12].copy_from_slice(&gateway.mac.0);
    buf.copy_from(&bytes[..size], Offload::NONE);
    true
}

/// RFC 2236 section 2: to the group that it asks about, or to all systems.
fn igmp_query(bytes: &mut [u8], from: Ipv4Addr, group: Option<Ipv4Addr>, millis: u16) -> usize {
    let to = group.unwrap_or(ALL_SYSTEMS);
    let payload = ethernet(bytes, group_mac(to.into()), ethertype::IPV4);
    let size = IPV4_SIZE + igmp::SIZE;
    payload[..12].copy_from_slice(&[
        0x46,
        0xc0,
        0,
        size as u8,
        0,
        0,
        0x40,
        0,
        1,
        protocol::IGMP,
        0,
        0,
    ]);
    payload[12..16].copy_from_slice(&from.octets());
    payload[16..20].copy_from_slice(&to.octets());
    payload[20..24].copy_from_slice(&ROUTER_ALERT);
    let sum = checksum::ipv4_header(&payload[..IPV4_SIZE]);
    payload[10..12].copy_from_slice(&sum.to_be_bytes());
    let message = &mut payload[IPV4_SIZE..size];
    message[0] = igmp::QUERY;
    message[1] = u8::try_from(millis / 100).unwrap_or(u8::MAX);
    message[4..8].copy_from_slice(&group.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    let sum = Sum::ZERO.add_bytes(message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ETHERNET_SIZE + size
}

/// RFC 2710 section 3: to the group that it asks about, or to all nodes.
fn mld_query(bytes: &mut [u8], from: Ipv6Addr, group: Option<Ipv6Addr>, millis: u16) -> usize {
    let to = group.unwrap_or(ALL_NODES);
    let payload = ethernet(bytes, group_mac(to.into()), ethertype::IPV6);
    let length = HOP_BY_HOP.len() + mld::SIZE;
    payload[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, length as u8, protocol::HOP_BY_HOP, 1]);
    payload[8..24].copy_from_slice(&from.octets());
    payload[24..40].copy_from_slice(&to.octets());
    payload[40..48].copy_from_slice(&HOP_BY_HOP);
    let message = &mut payload[IPV6_SIZE + HOP_BY_HOP.len()..IPV6_SIZE + length];
    message[0] = mld::QUERY;
    message[4..6].copy_from_slice(&millis.to_be_bytes());
    message[8..24].copy_from_slice(&group.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    let sum = Sum::pseudo_header(from.into(), to.into(), protocol::ICMPV6, mld::SIZE);
    let sum = sum.add_bytes(message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ETHERNET_SIZE + IPV6_SIZE + length
}

/// Writes destination and type of an Ethernet header; what follows it.
fn ethernet(bytes: &mut [u8], dst: MacAddr, kind: u16) -> &mut [u8] {
    let (header, payload) = bytes.split_at_mut(ETHERNET_SIZE);
    header[..6].copy_from_slice(&dst.0);
    header[12..].copy_from_slice(&kind.to_be_bytes());
    payload
}
