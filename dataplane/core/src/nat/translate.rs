//! The three translations: inside to outside, outside to inside, and hairpin.
//!
//! Each locks one shard at a time and holds it for one lookup; the frame is rewritten after the
//! lock is released. A hit costs no allocation.

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr, PortId};
use crate::frame::Frame;
use crate::headers::{Headers, TcpFlags};
use crate::time::Instant;
use crate::topology::{RouteMark, Topology, Uplink};
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::open::Opening;
use super::packet::{Body, Packet};
use super::pool::shard_of_port;
use super::published::resumes;
use super::rewrite::Side;
use super::session::{Direction, NatProtocol};
use super::shared::{NatView, Shard};
use super::table::{Event, FlowKey, InsideKey, NatShard, Origin};

/// Expired sessions that a packet of no session clears away before it asks for a mapping, so that
/// none outlives its timeout by more than the sweep's delay.
const EXPIRE_FOR_STRANGER_MAX: usize = 8;

/// What a translation did, for traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Which.
    pub kind: NatKind,
    /// Source and destination before. The end of an echo that did not send the request has port
    /// 0, as have both ends of ICMP errors and of later fragments.
    pub before: (L4Addr, L4Addr),
    /// Source and destination after.
    pub after: (L4Addr, L4Addr),
    /// Whether a session was created for it.
    pub created: bool,
}

/// Where a packet that was addressed to an external port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// What was rewritten.
    pub translation: Translation,
    /// The network that it goes to.
    pub domain: DomainId,
    /// The address inside.
    pub inside: IpAddr,
}

/// Where an outgoing packet appears outside, and the way that leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The address of the host that it is translated to.
    pub external: IpAddr,
    /// What the session is to remember of its route; [`RouteMark::NONE`] for nothing.
    pub mark: RouteMark,
}

impl From<IpAddr> for Outside {
    /// That address, and nothing to remember.
    fn from(external: IpAddr) -> Self {
        Self {
            external,
            mark: RouteMark::NONE,
        }
    }
}

/// What a lookup for one side of a packet found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub kind: NatKind,
    /// The new address and port.
    pub to: L4Addr,
    pub domain: DomainId,
    pub created: bool,
}

impl Found {
    /// What was done to a packet whose destination this is.
    pub(super) const fn inbound(
        &self,
        before: (L4Addr, L4Addr),
        after: (L4Addr, L4Addr),
    ) -> Inbound {
        Inbound {
            translation: Translation {
                kind: self.kind,
                before,
                after,
                created: self.created,
            },
            domain: self.domain,
            inside: self.to.ip,
        }
    }
}

/// What the lookups are made with: the picture, the port that the packet entered by, the protocol, and
/// the packet as an event.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub topology: &'a Topology,
    pub ingress: PortId,
    pub protocol: NatProtocol,
    pub flags: TcpFlags,
    /// As [`Event::number`].
    pub number: u32,
    /// Bytes of the IP packet.
    pub size: u32,
    pub now: Instant,
}

impl NatView {
    /// Inside → outside: rewrites the source in place. For a packet of a new flow a session is
    /// made, with an external port on the address that `outside` names; a return packet of a
    /// published flow gets back the external address and port that its client spoke to.
    ///
    /// # Errors
    /// The reason to drop the packet, which is unchanged.
    pub fn outbound(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        outside: Outside,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Result<Translation, DropReason> {
        let external = outside.external;
        let mut packet = Packet::read(frame, headers, Direction::Out)?;
        if external.is_ipv6() != packet.src.ip.is_ipv6() {
            return Err(DropReason::NatNoAddress);
        }
        let before = packet.ends();
        if packet.fragment.is_some()
            && let Some(fate) = self.fate_of(frame, headers, Some(domain), now)?
        {
            return Self::follow_out(&mut packet, frame, headers, fate);
        }
        let found = match packet.body {
            Body::Flow {
                protocol,
                flags,
                number,
            } => {
                let query = Query::of(topology, frame, &packet, (protocol, flags, number), now);
                self.source(&query, domain, outside, &packet)?
            }
            // An answer to an echo request that a routed network let in.
            Body::StrayEcho if external == packet.src.ip => Found {
                kind: NatKind::ForwardReturn,
                to: packet.src,
                domain,
                created: false,
            },
            Body::StrayEcho => return Err(DropReason::NatUnsupported),
            Body::Error { offset, end } => {
                let (network, error) = ((domain, external), (offset, end));
                let translated =
                    self.error_outbound(topology, network, frame, &packet, error, now)?;
                self.identify(frame, headers, (before.0.ip, translated.after.0.ip));
                return Ok(translated);
            }
            Body::LaterFragment => return Err(DropReason::NatFragment),
        };
        packet.rewrite(frame, Side::Source, found.to);
        self.identify(frame, headers, (before.0.ip, found.to.ip));
        if packet.fragment.is_some() {
            let seen = (&packet, &found);
            self.remember_fragment(frame, headers, Some(domain), seen, now);
        }
        Ok(Translation {
            kind: found.kind,
            before,
            after: packet.ends(),
            created: found.created,
        })
    }

    /// Outside → inside: whether anything of ours is at the destination address and port. For
    /// frames that enter by an uplink. Rewrites the destination in place.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`] when nothing of ours is there and the packet is the host's to
    /// judge: no mapping and no published port, an echo request, an ICMP error about a flow that
    /// was never ours, a later fragment of a packet that was not translated. Any other reason is
    /// one to drop the packet. It is unchanged in either case.
    pub fn inbound(
        &mut self,
        topology: &Topology,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let mut packet = Packet::read(frame, headers, Direction::In)?;
        let before = packet.ends();
        if packet.fragment.is_some()
            && let Some(fate) = self.fate_of(frame, headers, None, now)?
        {
            return Self::follow_in(&mut packet, frame, headers, fate);
        }
        let found = match packet.body {
            Body::Flow {
                protocol,
                flags,
                number,
            } => {
                let query = Query::of(topology, frame, &packet, (protocol, flags, number), now);
                let found = self.destination(&query, &packet);
                self.or_foreign(found, frame, headers, &packet, None, now)?
            }
            Body::StrayEcho => {
                let none = Err(DropReason::NatNoMapping);
                return self.or_foreign(none, frame, headers, &packet, None, now);
            }
            Body::Error { offset, end } => {
                return self.error_inbound(topology, frame, &packet, (offset, end), now);
            }
            Body::LaterFragment => return Err(DropReason::NatFragment),
        };
        packet.rewrite(frame, Side::Destination, found.to);
        if packet.fragment.is_some() {
            self.remember_fragment(frame, headers, None, (&packet, &found), now);
        }
        Ok(found.inbound(before, packet.ends()))
    }

    /// An inside host addressed an external address: both sides are rewritten, the source to the
    /// host's own mapping on that same address (RFC 4787 REQ-9), so that the answer comes back
    /// the same way. Two lookups, the first lock released before the second is taken.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`] when the destination is not the NAT's, and the packet goes to
    /// the host; any other reason is one to drop it. It is unchanged in either case. A session of
    /// the source may have been made for a packet that the other side then filtered: that is how
    /// two inside hosts open a way to each other.
    pub fn hairpin(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let mut packet = Packet::read(frame, headers, Direction::Out)?;
        let external = packet.dst.ip;
        if packet.fragment.is_some()
            && let Some(fate) = self.fate_of(frame, headers, Some(domain), now)?
        {
            return Self::follow_in(&mut packet, frame, headers, fate);
        }
        let (protocol, flags, number) = match packet.body {
            Body::Flow {
                protocol: NatProtocol::Icmp,
                ..
            }
            | Body::StrayEcho => {
                let none = Err(DropReason::NatNoMapping);
                return self.or_foreign(none, frame, headers, &packet, Some(domain), now);
            }
            Body::Flow {
                protocol,
                flags,
                number,
            } => (protocol, flags, number),
            Body::Error { offset, end } => {
                let (src, error) = (packet.src.ip, (offset, end));
                let inbound = self.error_hairpin(topology, domain, frame, &packet, error, now)?;
                let after = inbound.translation.after.0.ip;
                self.identify(frame, headers, (src, after));
                return Ok(inbound);
            }
            Body::LaterFragment => return Err(DropReason::NatFragment),
        };
        let query = Query::of(topology, frame, &packet, (protocol, flags, number), now);
        if !self.owns(&query, packet.dst) {
            let none = Err(DropReason::NatNoMapping);
            return self.or_foreign(none, frame, headers, &packet, Some(domain), now);
        }
        let before = packet.ends();
        let external = self.paired(topology, domain, packet.src.ip, external);
        let source = self.source(&query, domain, external.into(), &packet)?;
        let target = self.behind(&query, frame, &packet, source.to)?;
        packet.rewrite(frame, Side::Source, source.to);
        packet.rewrite(frame, Side::Destination, target.to);
        self.identify(frame, headers, (before.0.ip, source.to.ip));
        let found = Found {
            kind: NatKind::Hairpin,
            created: source.created || target.created,
            ..target
        };
        if packet.fragment.is_some() {
            let seen = (&packet, &found);
            self.remember_fragment(frame, headers, Some(domain), seen, now);
        }
        Ok(found.inbound(before, packet.ends()))
    }

    /// What was found for a packet; where that is nothing of ours, its further fragments are the
    /// host's, too.
    fn or_foreign<F>(
        &mut self,
        found: Result<F, DropReason>,
        frame: &Frame<'_>,
        headers: &Headers,
        packet: &Packet,
        from: Option<DomainId>,
        now: Instant,
    ) -> Result<F, DropReason> {
        if packet.fragment.is_some() && matches!(found, Err(DropReason::NatNoMapping)) {
            self.leave_fragment(frame, headers, from, now);
        }
        found
    }

    /// The inside address and port behind a hairpinned packet's destination, to which it comes from
    /// outside, from `source`.
    fn behind(
        &mut self,
        query: &Query<'_>,
        frame: &Frame<'_>,
        packet: &Packet,
        source: L4Addr,
    ) -> Result<Found, DropReason> {
        let query = Query {
            number: packet.sequence(frame),
            ..*query
        };
        let seen = Packet {
            src: source,
            ..*packet
        };
        self.destination(&query, &seen)
    }

    /// Whether there is a TCP session between an external port and a remote.
    pub(crate) fn has_connection(
        &mut self,
        topology: &Topology,
        external: L4Addr,
        remote: L4Addr,
        now: Instant,
    ) -> bool {
        let shard = self.tables.shard(shard_of_port(external.l4_port));
        let origin = Origin::Dynamic(external.ip);
        let table = &shard.table;
        table
            .session_by_external(NatProtocol::Tcp, external, remote, origin)
            .is_some_and(|session| table.alive(session, now, &topology.nat))
    }

    /// The external address that an inside address appears under where `preferred` would do: always
    /// the same of those that are configured and on the same uplink (RFC 4787 REQ-2). The choice
    /// falls by rendezvous hashing, so that an address that comes or goes moves nobody else.
    pub(crate) fn paired(
        &self,
        topology: &Topology,
        domain: DomainId,
        inside: IpAddr,
        preferred: IpAddr,
    ) -> IpAddr {
        let pool = &topology.nat.external_addresses;
        if pool.is_empty() {
            return preferred;
        }
        let has = |uplink: &&Uplink| uplink.addresses.contains(&preferred);
        let uplink = topology.uplinks.iter().find(has);
        let key = self.tables.key();
        pool.iter()
            .filter(|own| own.is_ipv4() == inside.is_ipv4())
            .filter(|own| uplink.is_some_and(|uplink| uplink.addresses.contains(own)))
            .max_by_key(|own| key.pairing(domain, inside, **own))
            .copied()
            .unwrap_or(preferred)
    }

    /// The external address and port of an inside packet's source.
    #[inline]
    fn source(
        &mut self,
        query: &Query<'_>,
        domain: DomainId,
        outside: Outside,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        let Outside { external, mark } = outside;
        let statics = &query.topology.statics;
        let rule = query
            .protocol
            .transport()
            .and_then(|transport| statics.by_inside(transport, domain, packet.src));
        let event = query.event(Direction::Out);
        if rule.is_some()
            && let Some(found) = self.forward_return(query, domain, packet, mark)
        {
            return Ok(found);
        }
        let flow = query.flow(domain, packet);
        let config = &query.topology.nat;
        let mut shard = self.tables.shard(shard_of_port(packet.src.l4_port));
        if let Some(session) = shard
            .table
            .session_by_inside(&flow, Origin::Dynamic(external))
        {
            let alive = shard.table.alive(session, query.now, config);
            if alive {
                shard.table.touch(session, event);
            } else {
                shard.table.renew(session, event);
            }
            // Beside a published port another session of this flow may come to go first.
            if rule.is_none() {
                shard.table.session_mut(session).remember_way_out(mark);
            }
            return Ok(Found {
                kind: NatKind::Source,
                to: shard.table.at(session).1.external,
                domain,
                created: !alive,
            });
        }
        // Of a routed network, a client outside spoke to this very address: it is no mapping's.
        let routed = external == packet.src.ip;
        if let Some(rule) = rule.filter(|(rule, _)| !routed && resumes(rule, query, packet)) {
            drop(shard);
            return self.resume(query, rule, external, packet);
        }
        let key = InsideKey {
            protocol: query.protocol,
            domain,
            inside: packet.src,
            external,
            scope: 0,
        };
        let opening = query.opening(domain, event);
        let session = opening.dynamic(&mut shard, &key, packet.dst)?;
        Ok(Found {
            kind: NatKind::Source,
            to: shard.table.at(session).1.external,
            domain,
            created: true,
        })
    }

    /// The inside address and port behind an external packet's destination.
    #[inline]
    fn destination(&mut self, query: &Query<'_>, packet: &Packet) -> Result<Found, DropReason> {
        let rule = query
            .protocol
            .transport()
            .and_then(|transport| query.topology.statics.by_external(transport, packet.dst));
        if let Some(rule) = rule {
            return self.forward(query, rule, packet);
        }
        let event = query.event(Direction::In);
        let mut shard = self.tables.shard(shard_of_port(packet.dst.l4_port));
        let session = shard
            .table
            .session_by_external(
                query.protocol,
                packet.dst,
                packet.src,
                Origin::Dynamic(packet.dst.ip),
            )
            .filter(|session| shard.table.alive(*session, query.now, &query.topology.nat));
        let Some(session) = session else {
            return query.stranger(&mut shard, packet);
        };
        shard.table.touch(session, event);
        let stamp = query.topology.stamp();
        shard.table.session_mut(session).remember_way_in(stamp);
        let mapping = shard.table.at(session).1;
        Ok(Found {
            kind: NatKind::SourceReturn,
            to: mapping.inside,
            domain: mapping.domain,
            created: false,
        })
    }

    /// Whether a mapping or a published port holds an external address and port.
    pub(super) fn owns(&mut self, query: &Query<'_>, external: L4Addr) -> bool {
        let statics = &query.topology.statics;
        let published = query
            .protocol
            .transport()
            .and_then(|transport| statics.by_external(transport, external));
        if published.is_some() {
            return true;
        }
        let shard = self.tables.shard(shard_of_port(external.l4_port));
        let mapping = shard.table.mapping_by_external(query.protocol, external);
        mapping.is_some()
    }
}

impl<'a> Query<'a> {
    /// The lookups for a packet of a flow, with what its body says.
    #[inline(always)]
    pub(super) const fn of(
        topology: &'a Topology,
        frame: &Frame<'_>,
        packet: &Packet,
        (protocol, flags, number): (NatProtocol, TcpFlags, u32),
        now: Instant,
    ) -> Self {
        Self {
            topology,
            ingress: frame.ingress,
            protocol,
            flags,
            number,
            size: packet.size,
            now,
        }
    }

    #[inline]
    pub(super) const fn event(&self, direction: Direction) -> Event {
        Event {
            direction,
            flags: self.flags,
            number: self.number,
            refreshes: match direction {
                Direction::Out => true,
                Direction::In => self.topology.nat.udp_inbound_refresh,
            },
            size: self.size,
            now: self.now,
        }
    }

    /// A packet from a remote without a session. A mapping that lets it in is translated by alone:
    /// strangers neither make state nor keep any alive (RFC 7857 section 6).
    #[cold]
    pub(super) fn stranger(
        &self,
        shard: &mut Shard<'_>,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        let Shard { table, counts } = shard;
        let wanted = |table: &NatShard| {
            let mapping = table.mapping_by_external(self.protocol, packet.dst);
            mapping.ok_or(DropReason::NatNoMapping)
        };
        if !table.admits(wanted(table)?, packet.src.ip) {
            return Err(DropReason::NatFiltered);
        }
        // Looked up again: what let it in may have expired.
        let timeouts = &self.topology.nat.timeouts;
        table.expire(self.now, timeouts, EXPIRE_FOR_STRANGER_MAX, counts);
        let mapping = wanted(table)?;
        if !table.admits(mapping, packet.src.ip) {
            return Err(DropReason::NatFiltered);
        }
        let mapping = table.mapping(mapping);
        Ok(Found {
            kind: NatKind::SourceReturn,
            to: mapping.inside,
            domain: mapping.domain,
            created: false,
        })
    }

    /// The flow of a packet from `domain`.
    #[inline]
    pub(super) const fn flow(&self, domain: DomainId, packet: &Packet) -> FlowKey {
        FlowKey {
            protocol: self.protocol,
            domain,
            inside: packet.src,
            remote: packet.dst,
        }
    }

    pub(super) fn opening(&self, domain: DomainId, event: Event) -> Opening<'_> {
        let domain = self.topology.domain(domain);
        Opening {
            config: &self.topology.nat,
            statics: &self.topology.statics,
            behaviour: domain.map_or_else(Default::default, |domain| domain.nat),
            event,
        }
    }
}
