//! Answers made in place: a request's frame becomes its reply and goes back by its ingress.
//!
//! ARP, neighbour discovery, echo and ICMP errors need no state, so the worker answers them
//! itself by rewriting the frame; waking another thread would cost more than the answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::MacAddr;
use crate::checksum::{self, Change, ICMP_CHECKSUM_OFFSET, L4Checksum, Sum};
use crate::frame::{FrameBuf, Offload};
use crate::headers::{Arp, Headers, Ip, L4Kind, TcpFlags, array_at, protocol};
use crate::trace::IcmpErrorKind;

/// TTL and hop limit of what the gateway sends (RFC 1700; Linux's default).
const TTL: u8 = 64;

/// Most bytes of an ICMPv4 error packet (RFC 1812 section 4.3.2.3).
const ICMPV4_ERROR_SIZE_MAX: usize = 576;
/// Most bytes of an ICMPv6 error packet: the least MTU of IPv6 (RFC 4443 section 2.4 c).
const ICMPV6_ERROR_SIZE_MAX: usize = 1_280;

const IPV4_SIZE: usize = 20;
const IPV6_SIZE: usize = 40;
const ICMP_SIZE: usize = 8;
const TCP_SIZE: usize = 20;

/// By how much an answer may be longer in front than what it answers.
pub const GROWTH_MAX: usize = IPV6_SIZE + ICMP_SIZE;
/// Neighbour solicitation and advertisement (RFC 4861 sections 4.3 and 4.4).
const ND_SOLICITATION: u8 = 135;
const ND_ADVERTISEMENT: u8 = 136;
/// Bytes of an advertisement with the target link-layer address option.
const ADVERTISEMENT_SIZE: usize = 32;

/// Where the EtherType stands: behind the two MAC addresses.
const ETHERNET_TYPE_AT: usize = 12;

/// Turns an ARP request into the reply that `mac` owns the target (RFC 826).
pub fn arp(buf: &mut FrameBuf, l3_offset: usize, request: &Arp, mac: MacAddr) {
    answer_ethernet(buf.bytes_mut(), mac);
    let Some(arp) = buf.bytes_mut().get_mut(l3_offset..l3_offset + 28) else {
        return;
    };
    arp[6..8].copy_from_slice(&[0, 2]);
    arp[8..14].copy_from_slice(&mac.0);
    arp[14..18].copy_from_slice(&request.target.octets());
    arp[18..24].copy_from_slice(&request.sender_mac.0);
    arp[24..28].copy_from_slice(&request.sender.octets());
    buf.offload = Offload::NONE;
}

/// The address that a neighbour solicitation asks for, if the frame is a valid one
/// (RFC 4861 section 7.1.1).
pub fn solicited(bytes: &[u8], headers: &Headers) -> Option<Ipv6Addr> {
    let ip = headers.ip()?;
    let l4 = headers.l4.ok()?;
    let solicitation = ip.protocol == protocol::ICMPV6
        && l4.kind
            == L4Kind::IcmpOther {
                icmp_type: ND_SOLICITATION,
            };
    if !solicitation || ip.ttl != 255 {
        return None;
    }
    let target: [u8; 16] = array_at(bytes, l4.offset + 8)?;
    let target = Ipv6Addr::from(target);
    (!target.is_multicast()).then_some(target)
}

/// Who is advertised: a gateway is a router, an endpoint is none that we know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advertised {
    /// The gateway.
    Gateway,
    /// An endpoint.
    Endpoint,
}

/// Turns a neighbour solicitation for `target` into the advertisement that `mac` owns it
/// (RFC 4861 section 7.2.4). `false` when the frame cannot hold it.
pub fn neighbour(
    buf: &mut FrameBuf,
    headers: &Headers,
    target: Ipv6Addr,
    mac: MacAddr,
    who: Advertised,
) -> bool {
    let Some(Ip {
        src: IpAddr::V6(asker),
        ..
    }) = headers.ip()
    else {
        return false;
    };
    let l3 = headers.l3_offset;
    if !buf.resize(l3 + IPV6_SIZE + ADVERTISEMENT_SIZE) {
        return false;
    }
    // Who asks without an address is told together with everyone else, and is not "solicited".
    let unspecified = asker.is_unspecified();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = if unspecified { all_nodes } else { *asker };
    // Router, solicited, override (RFC 4861 section 4.4).
    let router = match who {
        Advertised::Gateway => 0x80,
        Advertised::Endpoint => 0,
    };
    let flags = router | if unspecified { 0x20 } else { 0x60 };
    answer_ethernet(buf.bytes_mut(), mac);
    if unspecified {
        buf.bytes_mut()[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    }
    let packet = &mut buf.bytes_mut()[l3..];
    write_ipv6(
        packet,
        target,
        to,
        protocol::ICMPV6,
        ADVERTISEMENT_SIZE,
        255,
    );
    let icmp = &mut packet[IPV6_SIZE..];
    icmp[..8].copy_from_slice(&[ND_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24..26].copy_from_slice(&[2, 1]);
    icmp[26..32].copy_from_slice(&mac.0);
    write_icmp_checksum(icmp, target.into(), to.into());
    buf.offload = Offload::NONE;
    true
}

/// Turns an echo request, or a fragment of one, into the reply from its destination.
///
/// The addresses change places, which leaves every sum as it is, so each fragment can be answered
/// by itself: the first one carries type and checksum, the others only move.
pub fn echo(buf: &mut FrameBuf, headers: &Headers, ip: &Ip, mac: MacAddr) {
    answer_ethernet(buf.bytes_mut(), mac);
    let l3 = headers.l3_offset;
    let bytes = buf.bytes_mut();
    match ip.src {
        IpAddr::V4(_) => {
            swap(bytes, l3 + 12, l3 + 16, 4);
            set_ipv4_ttl(bytes, l3, TTL);
        }
        IpAddr::V6(_) => {
            swap(bytes, l3 + 8, l3 + 24, 16);
            bytes[l3 + 7] = TTL;
        }
    }
    if let Ok(l4) = headers.l4 {
        let (request, reply, kind) = match ip.src {
            IpAddr::V4(_) => (8u8, 0u8, L4Checksum::Icmp),
            IpAddr::V6(_) => (128, 129, L4Checksum::Icmpv6),
        };
        bytes[l4.offset] = reply;
        let change = Change::NONE.word(u16::from(request) << 8, u16::from(reply) << 8);
        let offload = buf.offload;
        checksum::update_l4(
            buf.bytes_mut(),
            &offload,
            l4.offset,
            kind,
            Change::NONE,
            change,
        );
    }
}

/// Whether an ICMP error may be sent about a packet (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4 e): not about errors, later fragments, or what was sent to or by a group.
pub fn may_report(headers: &Headers, ip: &Ip) -> bool {
    let from_one = match ip.src {
        IpAddr::V4(src) => !(src.is_unspecified() || src.is_multicast() || src.is_broadcast()),
        IpAddr::V6(src) => !(src.is_unspecified() || src.is_multicast()),
    };
    let to_one = match ip.dst {
        IpAddr::V4(dst) => !(dst.is_multicast() || dst.is_broadcast()),
        IpAddr::V6(dst) => !dst.is_multicast(),
    };
    let first = ip.fragment.is_none_or(|fragment| fragment.offset == 0);
    let error = matches!(headers.l4.map(|l4| l4.kind), Ok(L4Kind::IcmpError { .. }));
    from_one && to_one && first && !error && !headers.dst.is_group() && !ip.src.is_loopback()
}

/// Turns a packet into the ICMP error about it, sent from `from` with `mac` as source.
/// `false` when the address families differ or the frame cannot hold it.
pub fn error(
    buf: &mut FrameBuf,
    headers: &Headers,
    ip: &Ip,
    kind: IcmpErrorKind,
    from: IpAddr,
    mac: MacAddr,
) -> bool {
    let l3 = headers.l3_offset;
    let packet_size = ip.total_size as usize;
    let (grow, size_max) = match (ip.src, from) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (IPV4_SIZE + ICMP_SIZE, ICMPV4_ERROR_SIZE_MAX),
        (IpAddr::V6(_), IpAddr::V6(_)) => (IPV6_SIZE + ICMP_SIZE, ICMPV6_ERROR_SIZE_MAX),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    buf.truncate(l3 + packet_size.min(size_max - grow));
    if !buf.insert(l3, grow) {
        return false;
    }
    buf.offload = Offload::NONE;
    let quoted = buf.len() - l3 - grow;
    answer_ethernet(buf.bytes_mut(), mac);
    let packet = &mut buf.bytes_mut()[l3..];
    match (ip.src, from) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            write_ipv4(packet, from, to, protocol::ICMP, ICMP_SIZE + quoted);
            packet[IPV4_SIZE..IPV4_SIZE + ICMP_SIZE].copy_from_slice(&icmpv4_header(kind));
            write_icmp_checksum(&mut packet[IPV4_SIZE..], from.into(), to.into());
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            write_ipv6(packet, from, to, protocol::ICMPV6, ICMP_SIZE + quoted, TTL);
            packet[IPV6_SIZE..IPV6_SIZE + ICMP_SIZE].copy_from_slice(&icmpv6_header(kind));
            write_icmp_checksum(&mut packet[IPV6_SIZE..], from.into(), to.into());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    }
    true
}

/// Turns a TCP segment into the reset that answers it, from whom it was for (RFC 9293
/// section 3.10.7.1). `false` when it cannot be read to its end.
pub fn reset(buf: &mut FrameBuf, headers: &Headers, ip: &Ip) -> bool {
    let l3 = headers.l3_offset;
    let Some(reset) = tcp_reset(buf.bytes(), headers, ip) else {
        return false;
    };
    let ip_size = match ip.src {
        IpAddr::V4(_) => IPV4_SIZE,
        IpAddr::V6(_) => IPV6_SIZE,
    };
    if !buf.resize(l3 + ip_size + TCP_SIZE) {
        return false;
    }
    buf.offload = Offload::NONE;
    answer_ethernet(buf.bytes_mut(), headers.dst);
    let packet = &mut buf.bytes_mut()[l3..];
    match (ip.dst, ip.src) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            write_ipv4(packet, from, to, protocol::TCP, TCP_SIZE);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            write_ipv6(packet, from, to, protocol::TCP, TCP_SIZE, TTL);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    }
    let tcp = &mut packet[ip_size..];
    tcp.copy_from_slice(&reset);
    let pseudo = Sum::pseudo_header(ip.dst, ip.src, protocol::TCP, TCP_SIZE);
    let sum = pseudo.add_bytes(tcp).checksum();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The header of the reset that answers a segment, without its checksum. One that acknowledges is
/// answered where it does; another is acknowledged to its end.
fn tcp_reset(bytes: &[u8], headers: &Headers, ip: &Ip) -> Option<[u8; TCP_SIZE]> {
    let l4 = headers.l4.ok()?;
    let L4Kind::Tcp {
        src,
        dst,
        flags,
        header_size,
    } = l4.kind
    else {
        return None;
    };
    let sequence: [u8; 4] = array_at(bytes, l4.offset + 4)?;
    let acknowledged: [u8; 4] = array_at(bytes, l4.offset + 8)?;
    let end = headers.l3_offset + ip.total_size as usize;
    let payload = end.checked_sub(l4.offset + usize::from(header_size))?;
    let mut reset = [0; TCP_SIZE];
    reset[..2].copy_from_slice(&dst.0.to_be_bytes());
    reset[2..4].copy_from_slice(&src.0.to_be_bytes());
    reset[12] = ((TCP_SIZE / 4) as u8) << 4;
    if flags.has(TcpFlags::ACK) {
        reset[4..8].copy_from_slice(&acknowledged);
        reset[13] = TcpFlags::RST.0;
        return Some(reset);
    }
    let ends = [TcpFlags::SYN, TcpFlags::FIN].map(|flag| u32::from(flags.has(flag)));
    let length = payload as u32 + ends[0] + ends[1];
    let next = u32::from_be_bytes(sequence).wrapping_add(length);
    reset[8..12].copy_from_slice(&next.to_be_bytes());
    reset[13] = TcpFlags::RST.0 | TcpFlags::ACK.0;
    Some(reset)
}

/// Gives a routed frame its next Ethernet addresses.
#[inline]
pub fn set_macs(buf: &mut FrameBuf, dst: &MacAddr, src: &MacAddr) {
    // A frame without room for them was a runt.
    if let Some(macs) = buf.bytes_mut().first_chunk_mut::<ETHERNET_TYPE_AT>() {
        macs[..6].copy_from_slice(&dst.0);
        macs[6..].copy_from_slice(&src.0);
    }
}

/// Takes one hop from a packet's life. The caller has seen that more than one is left.
#[inline]
pub fn take_hop(buf: &mut FrameBuf, l3_offset: usize, ip: &Ip) {
    let ttl = ip.ttl.saturating_sub(1);
    let bytes = buf.bytes_mut();
    match ip.src {
        IpAddr::V4(_) => set_ipv4_ttl(bytes, l3_offset, ttl),
        IpAddr::V6(_) => bytes[l3_offset + 7] = ttl,
    }
}

/// RFC 792, RFC 1812 section 5.2.7.1, RFC 1191 section 4.
fn icmpv4_header(kind: IcmpErrorKind) -> [u8; ICMP_SIZE] {
    let (icmp_type, code, mtu) = match kind {
        IcmpErrorKind::TimeExceeded => (11, 0, 0),
        IcmpErrorKind::NetworkUnreachable => (3, 0, 0),
        IcmpErrorKind::HostUnreachable => (3, 1, 0),
        IcmpErrorKind::PortUnreachable => (3, 3, 0),
        IcmpErrorKind::Prohibited => (3, 13, 0),
        IcmpErrorKind::TooBig { mtu } => (3, 4, mtu),
    };
    let [high, low] = mtu.to_be_bytes();
    [icmp_type, code, 0, 0, 0, 0, high, low]
}

/// RFC 4443 section 3.
fn icmpv6_header(kind: IcmpErrorKind) -> [u8; ICMP_SIZE] {
    let (icmp_type, code, mtu) = match kind {
        IcmpErrorKind::TimeExceeded => (3, 0, 0),
        IcmpErrorKind::NetworkUnreachable => (1, 0, 0),
        IcmpErrorKind::HostUnreachable => (1, 3, 0),
        IcmpErrorKind::PortUnreachable => (1, 4, 0),
        IcmpErrorKind::Prohibited => (1, 1, 0),
        IcmpErrorKind::TooBig { mtu } => (2, 0, mtu),
    };
    let [high, low] = mtu.to_be_bytes();
    [icmp_type, code, 0, 0, 0, 0, high, low]
}

/// Sends a frame back to where it came from, from `mac`.
fn answer_ethernet(bytes: &mut [u8], mac: MacAddr) {
    bytes.copy_within(6..ETHERNET_TYPE_AT, 0);
    bytes[6..ETHERNET_TYPE_AT].copy_from_slice(&mac.0);
}

fn write_ipv4(packet: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload_size: usize) {
    let [high, low] = ((IPV4_SIZE + payload_size) as u16).to_be_bytes();
    packet[..12].copy_from_slice(&[0x45, 0xc0, high, low, 0, 0, 0, 0, TTL, protocol, 0, 0]);
    packet[12..16].copy_from_slice(&src.octets());
    packet[16..20].copy_from_slice(&dst.octets());
    let sum = checksum::ipv4_header(&packet[..IPV4_SIZE]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn write_ipv6(
    packet: &mut [u8],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: u8,
    payload_size: usize,
    hops: u8,
) {
    let [high, low] = (payload_size as u16).to_be_bytes();
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, protocol, hops]);
    packet[8..24].copy_from_slice(&src.octets());
    packet[24..40].copy_from_slice(&dst.octets());
}

fn write_icmp_checksum(icmp: &mut [u8], src: IpAddr, dst: IpAddr) {
    icmp[ICMP_CHECKSUM_OFFSET..ICMP_CHECKSUM_OFFSET + 2].fill(0);
    let pseudo = match src {
        IpAddr::V4(_) => Sum::ZERO,
        IpAddr::V6(_) => Sum::pseudo_header(src, dst, protocol::ICMPV6, icmp.len()),
    };
    let sum = pseudo.add_bytes(icmp).checksum();
    icmp[ICMP_CHECKSUM_OFFSET..ICMP_CHECKSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());
}

fn set_ipv4_ttl(bytes: &mut [u8], l3: usize, ttl: u8) {
    let word = |ttl, protocol| u16::from_be_bytes([ttl, protocol]);
    let change = Change::NONE.word(word(bytes[l3 + 8], bytes[l3 + 9]), word(ttl, bytes[l3 + 9]));
    let old = u16::from_be_bytes([bytes[l3 + 10], bytes[l3 + 11]]);
    bytes[l3 + 8] = ttl;
    bytes[l3 + 10..l3 + 12].copy_from_slice(&change.complete(old).to_be_bytes());
}

fn swap(bytes: &mut [u8], first: usize, second: usize, size: usize) {
    for index in 0..size {
        bytes.swap(first + index, second + index);
    }
}
