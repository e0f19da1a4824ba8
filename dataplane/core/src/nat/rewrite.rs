//! Replaces an address and port in a packet, and keeps every checksum right.
//!
//! Works on a whole frame as well as on a packet quoted by an ICMP error: a [`Layout`] says where
//! the headers are. All updates are incremental, so a checksum that was wrong stays wrong by the
//! same amount and its receiver still finds out (RFC 3022 section 4.1).

use std::net::{IpAddr, Ipv4Addr};

use crate::addr::{L4Addr, L4Port};
use crate::checksum::{self, Change, IPV4_CHECKSUM_OFFSET, L4Checksum};
use crate::frame::{FrameBuf, Offload};
use crate::headers::{EXTENSION_HEADERS_MAX, array_at, protocol};

use super::packet::End;
use super::session::NatProtocol;

/// Which of a packet's two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Where the headers of a packet are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset and kind of the transport header; `None` when the packet has none to rewrite, as a
    /// later fragment.
    pub l4: Option<(usize, L4Checksum)>,
}

/// The checksum of `protocol` over IPv6 or IPv4.
pub(super) const fn l4_checksum(protocol: NatProtocol, v6: bool) -> L4Checksum {
    match protocol {
        NatProtocol::Tcp => L4Checksum::Tcp,
        NatProtocol::Udp => L4Checksum::Udp,
        NatProtocol::Icmp if v6 => L4Checksum::Icmpv6,
        NatProtocol::Icmp => L4Checksum::Icmp,
    }
}

/// Replaces `old` by `new` at one side of the packet, and updates the IPv4 header checksum and
/// the transport checksum. Addresses are of one family. What lies beyond `bytes`, as in a quoted
/// packet that was cut off, is left out.
#[inline]
pub(super) fn rewrite(
    bytes: &mut [u8],
    offload: &Offload,
    layout: Layout,
    side: Side,
    (old, new): (&L4Addr, &L4Addr),
) {
    let addresses = change_of(&old.ip, &new.ip);
    put_address(bytes, layout.l3, side, &new.ip, addresses);
    let ports = (old.l4_port, new.l4_port);
    put_port(bytes, offload, layout, side, ports, addresses);
}

/// What it changes in a sum that `new` takes the place of `old`.
#[inline(always)]
fn change_of(old: &IpAddr, new: &IpAddr) -> Change {
    match (old, new) {
        (IpAddr::V4(old), IpAddr::V4(new)) => Change::NONE.ipv4(*old, *new),
        (old, new) => Change::NONE.ip(*old, *new),
    }
}

/// The same of a packet that makes a hop, of which it has more than one left: its TTL is lowered, and
/// its header's checksum updated once for both.
#[inline(always)]
pub(super) fn pass(buf: &mut FrameBuf, layout: Layout, side: Side, old: End<'_>, new: &L4Addr) {
    let offload = buf.offload;
    let bytes = buf.bytes_mut();
    let addresses = change_of(old.ip, &new.ip);
    match new.ip {
        IpAddr::V4(new) => pass_ipv4(bytes, layout.l3, side, new, addresses),
        IpAddr::V6(_) => {
            if let Some(hops) = bytes.get_mut(layout.l3 + 7) {
                *hops = hops.saturating_sub(1);
            }
            put_address(bytes, layout.l3, side, &new.ip, addresses);
        }
    }
    let ports = (old.l4_port, new.l4_port);
    put_port(bytes, &offload, layout, side, ports, addresses);
}

/// Writes `new`, which is a change of `change`, into the whole IPv4 header at `l3` and takes a hop.
#[inline(always)]
fn pass_ipv4(bytes: &mut [u8], l3: usize, side: Side, new: Ipv4Addr, change: Change) {
    let header: Option<&mut [u8; 20]> = bytes.get_mut(l3..).and_then(|rest| rest.first_chunk_mut());
    let Some([.., ttl, _, s0, s1, a0, a1, a2, a3, b0, b1, b2, b3]) = header else {
        return;
    };
    *ttl = ttl.saturating_sub(1);
    let sum = change
        .and(Change::HOP)
        .complete(u16::from_be_bytes([*s0, *s1]));
    [*s0, *s1] = sum.to_be_bytes();
    match side {
        Side::Source => [*a0, *a1, *a2, *a3] = new.octets(),
        Side::Destination => [*b0, *b1, *b2, *b3] = new.octets(),
    }
}

/// Writes the port `new`, and updates the transport checksum, which covers `addresses`, too.
#[inline(always)]
fn put_port(
    bytes: &mut [u8],
    offload: &Offload,
    layout: Layout,
    side: Side,
    (old, new): (L4Port, L4Port),
    addresses: Change,
) {
    let Some((l4, kind)) = layout.l4 else {
        return;
    };
    let port = match (kind, side) {
        (L4Checksum::Icmp | L4Checksum::Icmpv6, _) => l4 + 4,
        (L4Checksum::Tcp | L4Checksum::Udp, Side::Source) => l4,
        (L4Checksum::Tcp | L4Checksum::Udp, Side::Destination) => l4 + 2,
    };
    put(bytes, port, new.0.to_be_bytes());
    let header = Change::NONE.word(old.0, new.0);
    checksum::update_l4(bytes, offload, l4, kind, addresses, header);
}

/// Replaces an address in the IP header at `l3`, and updates the header's own checksum.
#[inline]
pub(super) fn rewrite_address(bytes: &mut [u8], l3: usize, side: Side, old: IpAddr, new: IpAddr) {
    put_address(bytes, l3, side, &new, Change::NONE.ip(old, new));
}

/// Writes `new`, which is a change of `change`, into the IP header at `l3`.
#[inline(always)]
fn put_address(bytes: &mut [u8], l3: usize, side: Side, new: &IpAddr, change: Change) {
    match new {
        IpAddr::V4(address) => {
            let at = match side {
                Side::Source => l3 + 12,
                Side::Destination => l3 + 16,
            };
            put(bytes, at, address.octets());
            if let Some(sum) = array_at::<2>(bytes, l3 + IPV4_CHECKSUM_OFFSET) {
                let sum = change.complete(u16::from_be_bytes(sum));
                put(bytes, l3 + IPV4_CHECKSUM_OFFSET, sum.to_be_bytes());
            }
        }
        IpAddr::V6(address) => {
            let at = match side {
                Side::Source => l3 + 8,
                Side::Destination => l3 + 24,
            };
            put(bytes, at, address.octets());
        }
    }
}

/// Writes an identification into the IPv4 header at `l3`, and updates the header's checksum.
pub(super) fn put_identification(bytes: &mut [u8], l3: usize, id: u16) {
    let sum_at = l3 + IPV4_CHECKSUM_OFFSET;
    let words = array_at(bytes, l3 + 4).zip(array_at(bytes, sum_at));
    let Some((old, sum)) = words else {
        return;
    };
    let change = Change::NONE.word(u16::from_be_bytes(old), id);
    put(bytes, l3 + 4, id.to_be_bytes());
    let sum = change.complete(u16::from_be_bytes(sum));
    put(bytes, sum_at, sum.to_be_bytes());
}

/// Whether the IPv6 extension headers from `offset` to `end` let addresses be rewritten. They do
/// not when a routing header has segments left, for then the destination in the header is not the
/// one that the transport checksum covers (RFC 8200 section 8.1), nor behind an authentication
/// header, which exists to notice (RFC 4302).
pub(super) fn extensions_allow(bytes: &[u8], offset: usize, end: usize, first: u8) -> bool {
    let (mut at, mut next) = (offset, first);
    for _ in 0..EXTENSION_HEADERS_MAX {
        if at >= end {
            return true;
        }
        let Some([following, len, _, segments_left]) = array_at::<4>(bytes, at) else {
            return true;
        };
        match next {
            protocol::AUTHENTICATION => return false,
            protocol::ROUTING if segments_left != 0 => return false,
            protocol::FRAGMENT => at += 8,
            _ => at += (usize::from(len) + 1) * 8,
        }
        next = following;
    }
    true
}

#[inline(always)]
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    let place = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
    if let Some(place) = place {
        *place = value;
    }
}
