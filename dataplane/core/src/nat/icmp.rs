//! ICMP errors: translated together with the packet that they quote.
//!
//! An error about a translated packet reaches the NAT from the side that saw it translated, and
//! quotes it as that side saw it. The receiver knows the packet as it sent it, so the quoted
//! addresses, port and checksums are put back, along with the outer addresses (RFC 5508 section
//! 4.2, RFC 3022 section 4.3). The quote may be as short as the IP header and 8 bytes (RFC 792);
//! fields that were cut off are left out.
//!
//! Errors are verified before they are believed (RFC 5508 REQ-3) and matched against a session;
//! they never create, refresh or end one (RFC 4787 REQ-12). The outer checksum is recomputed in
//! full: errors are rare and always complete.

use std::net::IpAddr;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket};

use crate::addr::{DomainId, L4Addr};
use crate::checksum::{self, ICMP_CHECKSUM_OFFSET, Sum};
use crate::frame::{Frame, Offload};
use crate::headers::{Headers, TcpFlags, array_at, protocol};
use crate::time::Instant;
use crate::topology::Topology;
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::packet::{Body, Packet};
use super::pool::shard_of_port;
use super::rewrite::{self, Layout, Side};
use super::session::{Direction, NatProtocol};
use super::shared::NatView;
use super::table::{FlowKey, InsideKey, Origin};
use super::translate::{Inbound, Query, Translation};

/// Bytes of ICMP header in front of the quoted packet.
const ICMP_HEADER_SIZE: usize = 8;
/// Bytes of transport header that every error quotes (RFC 792).
const QUOTED_L4_MIN: usize = 8;

/// The packet that an error quotes.
#[derive(Clone, Copy, Debug)]
struct Quoted {
    protocol: NatProtocol,
    src: L4Addr,
    dst: L4Addr,
    /// Where its headers are in the frame.
    layout: Layout,
}

/// Where an error leads: what its quoted ends become, and its own.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    quoted_src: Option<L4Addr>,
    quoted_dst: Option<L4Addr>,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
}

impl NatView {
    /// An error from inside about a packet that came in: its quoted destination becomes external
    /// again, its source hides behind the same address.
    pub(super) fn error_outbound(
        &mut self,
        topology: &Topology,
        (domain, external): (DomainId, IpAddr),
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: (usize, usize),
        now: Instant,
    ) -> Result<Translation, DropReason> {
        let quoted = read(frame, packet, error, Direction::In)?.ok_or(UNMATCHED)?;
        let query = query(topology, frame, &quoted, now);
        let outside = self
            .external_of(&query, (domain, external), quoted.dst, quoted.src)
            .ok_or(UNMATCHED)?;
        let change = Change {
            quoted_dst: Some(outside),
            // On a routed network a router of its own reports under its own address.
            src: (outside != quoted.dst).then_some(outside.ip),
            ..Change::default()
        };
        Ok(apply(frame, packet, error, &quoted, &change))
    }

    /// An error from outside about a packet that went out: its quoted source becomes inside
    /// again, and so does its destination.
    pub(super) fn error_inbound(
        &mut self,
        topology: &Topology,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: (usize, usize),
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let quoted = read(frame, packet, error, Direction::Out)?.ok_or(DropReason::NatNoMapping)?;
        let query = query(topology, frame, &quoted, now);
        if !self.owns(&query, quoted.src) {
            return Err(DropReason::NatNoMapping);
        }
        self.error_to_inside(&query, frame, packet, error, &quoted)
    }

    /// An error from outside to an address that is the endpoint's own: as above, but nobody else's
    /// to judge.
    pub(super) fn error_routed(
        &mut self,
        topology: &Topology,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: (usize, usize),
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let quoted = read(frame, packet, error, Direction::Out)?.ok_or(UNMATCHED)?;
        let query = query(topology, frame, &quoted, now);
        self.error_to_inside(&query, frame, packet, error, &quoted)
    }

    fn error_to_inside(
        &mut self,
        query: &Query<'_>,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: (usize, usize),
        quoted: &Quoted,
    ) -> Result<Inbound, DropReason> {
        if quoted.src.ip != packet.dst.ip {
            return Err(UNMATCHED);
        }
        let (domain, inside) = self
            .inside_of(query, quoted.src, quoted.dst)
            .ok_or(UNMATCHED)?;
        let change = Change {
            quoted_src: Some(inside),
            dst: Some(inside.ip),
            ..Change::default()
        };
        Ok(Inbound {
            translation: apply(frame, packet, error, quoted, &change),
            domain,
            inside: inside.ip,
        })
    }

    /// An error from inside about a packet that came from inside by an external address: both of
    /// the above, in one step.
    pub(super) fn error_hairpin(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        frame: &mut Frame<'_>,
        packet: &Packet,
        error: (usize, usize),
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let external = packet.dst.ip;
        let quoted = read(frame, packet, error, Direction::In)?.ok_or(DropReason::NatNoMapping)?;
        let query = query(topology, frame, &quoted, now);
        if !self.owns(&query, quoted.src) {
            return Err(DropReason::NatNoMapping);
        }
        if quoted.src.ip != external {
            return Err(UNMATCHED);
        }
        let outside = self
            .external_of(&query, (domain, external), quoted.dst, quoted.src)
            .ok_or(UNMATCHED)?;
        let (target, inside) = self
            .inside_of(&query, quoted.src, outside)
            .ok_or(UNMATCHED)?;
        let change = Change {
            quoted_src: Some(inside),
            quoted_dst: Some(outside),
            src: Some(outside.ip),
            dst: Some(inside.ip),
        };
        Ok(Inbound {
            translation: apply(frame, packet, error, &quoted, &change),
            domain: target,
            inside: inside.ip,
        })
    }

    /// The external end of the session that `inside` has with `remote`.
    fn external_of(
        &mut self,
        query: &Query<'_>,
        (domain, external): (DomainId, IpAddr),
        inside: L4Addr,
        remote: L4Addr,
    ) -> Option<L4Addr> {
        let config = &query.topology.nat;
        let flow = FlowKey {
            protocol: query.protocol,
            domain,
            inside,
            remote,
        };
        let places = [
            (self.tables.shard_of_remote(remote), Origin::Published),
            (shard_of_port(inside.l4_port), Origin::Dynamic(external)),
        ];
        let of_session = places.into_iter().find_map(|(shard, origin)| {
            let shard = self.tables.shard(shard);
            let session = shard.table.session_by_inside(&flow, origin)?;
            let alive = shard.table.alive(session, query.now, config);
            alive.then(|| shard.table.at(session).1.external)
        });
        of_session.or_else(|| {
            // A stranger whom the mapping let in.
            let shard = self.tables.shard(shard_of_port(inside.l4_port));
            let mapping = shard.table.mapping_by_inside(&InsideKey {
                protocol: query.protocol,
                domain,
                inside,
                external,
                scope: 0,
            })?;
            let admitted = shard.table.admits(mapping, remote.ip);
            admitted.then(|| shard.table.mapping(mapping).external)
        })
    }

    /// The inside end of the session that `external` has with `remote`.
    fn inside_of(
        &mut self,
        query: &Query<'_>,
        external: L4Addr,
        remote: L4Addr,
    ) -> Option<(DomainId, L4Addr)> {
        let config = &query.topology.nat;
        let places = [
            (self.tables.shard_of_remote(remote), Origin::Published),
            (
                shard_of_port(external.l4_port),
                Origin::Dynamic(external.ip),
            ),
        ];
        places.into_iter().find_map(|(shard, origin)| {
            let shard = self.tables.shard(shard);
            let session =
                shard
                    .table
                    .session_by_external(query.protocol, external, remote, origin)?;
            let mapping = shard.table.at(session).1;
            let alive = shard.table.alive(session, query.now, config);
            alive.then_some((mapping.domain, mapping.inside))
        })
    }
}

const UNMATCHED: DropReason = DropReason::NatIcmpUnmatched;

fn query<'a>(
    topology: &'a Topology,
    frame: &Frame<'_>,
    quoted: &Quoted,
    now: Instant,
) -> Query<'a> {
    Query {
        topology,
        ingress: frame.ingress,
        protocol: quoted.protocol,
        flags: TcpFlags::default(),
        number: 0,
        size: 0,
        now,
    }
}

/// Verifies the error at `(offset, end)` of the frame and reads the packet that it quotes, which
/// went in `direction` when it was sent. `None` for one of a kind that is never translated.
fn read(
    frame: &mut Frame<'_>,
    packet: &Packet,
    (offset, end): (usize, usize),
    direction: Direction,
) -> Result<Option<Quoted>, DropReason> {
    let malformed = DropReason::NatIcmpMalformed;
    if checksum::is_partial(&frame.buf.offload, offset, ICMP_CHECKSUM_OFFSET) {
        checksum::complete(frame.buf).or(Err(malformed))?;
    }
    let message = frame.bytes().get(offset..end).ok_or(malformed)?;
    let pseudo = pseudo_header(packet, message.len());
    if pseudo.add_bytes(message).folded() != 0xffff {
        return Err(malformed);
    }
    let quoted = message.get(ICMP_HEADER_SIZE..).ok_or(malformed)?;
    let quoted_at = offset + ICMP_HEADER_SIZE;
    read_quoted(quoted, quoted_at, packet.src.ip.is_ipv6(), direction)
}

/// Which flow an error from inside is about: its protocol, the inside end and the remote. `None` for
/// one that cannot be read or is never translated.
pub(super) fn error_about(
    frame: &mut Frame<'_>,
    packet: &Packet,
    error: (usize, usize),
) -> Option<(NatProtocol, L4Addr, L4Addr)> {
    let quoted = read(frame, packet, error, Direction::In).ok()??;
    Some((quoted.protocol, quoted.dst, quoted.src))
}

/// Which flow an ICMP error is about, as its sender sees it: the number of its protocol, the sender's
/// end and the other one. Nothing for any other packet.
pub(crate) fn flow_of_error(
    frame: &mut Frame<'_>,
    headers: &Headers,
) -> Option<(u8, L4Addr, L4Addr)> {
    let packet = Packet::read(frame, headers, Direction::Out).ok()?;
    let Body::Error { offset, end } = packet.body else {
        return None;
    };
    let (about, own, other) = error_about(frame, &packet, (offset, end))?;
    let number = match about {
        NatProtocol::Tcp => protocol::TCP,
        NatProtocol::Udp => protocol::UDP,
        NatProtocol::Icmp if own.ip.is_ipv6() => protocol::ICMPV6,
        NatProtocol::Icmp => protocol::ICMP,
    };
    Some((number, own, other))
}

fn read_quoted(
    bytes: &[u8],
    at: usize,
    v6: bool,
    direction: Direction,
) -> Result<Option<Quoted>, DropReason> {
    let malformed = DropReason::NatIcmpMalformed;
    let sliced = LaxSlicedPacket::from_ip(bytes).or(Err(malformed))?;
    let (src, dst, header_size, payload): (IpAddr, IpAddr, _, _) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.header().slice().len(),
            ip.payload(),
        ),
        Some(LaxNetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.header().slice().len() + ip.extensions().slice().len(),
            ip.payload(),
        ),
        Some(LaxNetSlice::Arp(_)) | None => return Err(malformed),
    };
    if src.is_ipv6() != v6 {
        return Err(malformed);
    }
    // Without its ports a later fragment says nothing about a session.
    if is_later_fragment(bytes, header_size, payload.fragmented, v6) {
        return Ok(None);
    }
    let l4 = payload.payload;
    let Some(head) = array_at::<QUOTED_L4_MIN>(l4, 0) else {
        return Err(malformed);
    };
    let Some((protocol, src_port, dst_port)) = ports(payload.ip_number, head, direction) else {
        return Ok(None);
    };
    Ok(Some(Quoted {
        protocol,
        src: L4Addr::new(src, src_port),
        dst: L4Addr::new(dst, dst_port),
        layout: Layout {
            l3: at,
            l4: Some((at + header_size, rewrite::l4_checksum(protocol, v6))),
        },
    }))
}

/// Whether the quoted packet is a fragment with an offset.
fn is_later_fragment(bytes: &[u8], header_size: usize, fragmented: bool, v6: bool) -> bool {
    if !fragmented {
        return false;
    }
    // IPv6: the fragment header is the last one that is looked through in front of the payload.
    let at = if v6 { header_size - 6 } else { 6 };
    let mask = if v6 { 0xfff8 } else { 0x1fff };
    array_at::<2>(bytes, at).is_none_or(|field| u16::from_be_bytes(field) & mask != 0)
}

/// Protocol and ports of the quoted transport header. Of an echo, the side that sent the request
/// has the identifier: the source of a packet that went out, the destination of one that came in.
fn ports(
    number: IpNumber,
    head: [u8; QUOTED_L4_MIN],
    direction: Direction,
) -> Option<(NatProtocol, u16, u16)> {
    let first = u16::from_be_bytes([head[0], head[1]]);
    let second = u16::from_be_bytes([head[2], head[3]]);
    let id = u16::from_be_bytes([head[4], head[5]]);
    match (number.0, direction, head[0]) {
        (protocol::TCP, ..) => Some((NatProtocol::Tcp, first, second)),
        (protocol::UDP, ..) => Some((NatProtocol::Udp, first, second)),
        (protocol::ICMP, Direction::Out, 8) | (protocol::ICMPV6, Direction::Out, 128) => {
            Some((NatProtocol::Icmp, id, 0))
        }
        (protocol::ICMP, Direction::In, 0) | (protocol::ICMPV6, Direction::In, 129) => {
            Some((NatProtocol::Icmp, 0, id))
        }
        _ => None,
    }
}

/// Rewrites the quoted packet, the error's own addresses, and the error's checksum.
fn apply(
    frame: &mut Frame<'_>,
    packet: &Packet,
    (offset, end): (usize, usize),
    quoted: &Quoted,
    change: &Change,
) -> Translation {
    let before = packet.ends();
    let mut after = *packet;
    let bytes = &mut frame.buf.bytes_mut()[..end];
    if let Some(new) = change.quoted_src {
        let ends = (&quoted.src, &new);
        rewrite::rewrite(bytes, &Offload::NONE, quoted.layout, Side::Source, ends);
    }
    if let Some(new) = change.quoted_dst {
        let ends = (&quoted.dst, &new);
        rewrite::rewrite(
            bytes,
            &Offload::NONE,
            quoted.layout,
            Side::Destination,
            ends,
        );
    }
    if let Some(new) = change.src {
        rewrite::rewrite_address(bytes, packet.layout.l3, Side::Source, packet.src.ip, new);
        after.src.ip = new;
    }
    if let Some(new) = change.dst {
        rewrite::rewrite_address(
            bytes,
            packet.layout.l3,
            Side::Destination,
            packet.dst.ip,
            new,
        );
        after.dst.ip = new;
    }
    let message = &mut bytes[offset..];
    message[ICMP_CHECKSUM_OFFSET..ICMP_CHECKSUM_OFFSET + 2].fill(0);
    let sum = pseudo_header(&after, message.len()).add_bytes(message);
    message[ICMP_CHECKSUM_OFFSET..ICMP_CHECKSUM_OFFSET + 2]
        .copy_from_slice(&sum.checksum().to_be_bytes());
    Translation {
        kind: NatKind::IcmpError,
        before,
        after: after.ends(),
        created: false,
    }
}

/// What ICMPv6 sums besides the message; nothing for ICMP.
fn pseudo_header(packet: &Packet, size: usize) -> Sum {
    if packet.src.ip.is_ipv6() {
        Sum::pseudo_header(packet.src.ip, packet.dst.ip, protocol::ICMPV6, size)
    } else {
        Sum::ZERO
    }
}
