//! The short ways out and in: a packet whose session remembers the way that its flow takes.
//!
//! What the gateway decides for a packet of a flow depends on its domain, its two ends and the
//! topology, and the session stands for all but the last. So the session remembers the way with the
//! topology's stamp ([`Session`](super::session::Session)), and as long as the stamp is right a packet
//! skips all those decisions: one lookup, one rewrite. Whatever a single packet can be refused for (its
//! TTL, its size, being a fragment) is looked at again, and any doubt leads to the long way, which
//! comes to the same verdict by the same steps.
//!
//! A session is in the shard of a port of its own or, that of a published port, of its remote. Where
//! ports are published, a packet does not say which, and both are asked. In one picture only one of
//! them knows the way: which it is was decided by the picture's published ports.

use crate::addr::{DomainId, L4Addr, L4Port, MacAddr};
use crate::frame::Frame;
use crate::headers::{Headers, L4Kind, TcpFlags};
use crate::time::Instant;
use crate::topology::{Domain, Exit, Gateway, Neighbour, Topology};
use crate::trace::NatKind;

use super::packet::{Body, End, Outline};
use super::pool::shard_of_port;
use super::rewrite::{self, Side};
use super::session::{Direction, NatProtocol};
use super::shared::NatView;
use super::table::Event;
use super::translate::Translation;

/// What the gateway has read of a packet that may take a short way.
#[derive(Clone, Copy)]
pub(crate) struct Passing<'t> {
    pub topology: &'t Topology,
    /// What is compared with the MTU of the way.
    pub size: usize,
    pub now: Instant,
}

/// The way of a packet that goes outside.
pub(crate) struct Leaving<'t> {
    pub exit: &'t Exit,
    /// MAC of the next hop.
    pub mac: &'t MacAddr,
    /// What was done.
    pub translation: Translation,
}

/// The way of a packet that comes in.
pub(crate) struct Entering<'t> {
    pub domain: &'t Domain,
    pub gateway: &'t Gateway,
    pub neighbour: &'t Neighbour,
    /// What was done.
    pub translation: Translation,
}

/// By what the shard is known in which the session of a packet may be.
#[derive(Clone, Copy)]
enum Home {
    /// The port of ours, or of the endpoint's own: a dynamic session.
    Port,
    /// The remote: a session of a published port.
    Remote,
}

impl NatView {
    /// Inside → outside for a packet from `domain` whose session remembers an open way. The
    /// translation is made and a hop is taken. `None`, and nothing changed, for any other packet.
    #[inline(always)]
    pub(crate) fn leave<'t>(
        &mut self,
        passing: &Passing<'t>,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Leaving<'t>> {
        match self.leave_from(Home::Port, passing, domain, frame, headers) {
            None if !passing.topology.statics.is_empty() => {
                self.leave_published(passing, domain, frame, headers)
            }
            found => found,
        }
    }

    // A call, so that what it needs is put together for those alone who take it.
    #[inline(never)]
    fn leave_published<'t>(
        &mut self,
        passing: &Passing<'t>,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Leaving<'t>> {
        self.leave_from(Home::Remote, passing, domain, frame, headers)
    }

    #[inline(always)]
    fn leave_from<'t>(
        &mut self,
        home: Home,
        passing: &Passing<'t>,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Leaving<'t>> {
        let (ip, outline) = Outline::read(frame, headers, Direction::Out).ok()?;
        let (protocol, event) = passing.event(&outline, Direction::Out)?;
        let (inside, remote) = outline.ends(ip);
        let shard = self.shard_at(home, inside, remote);
        let flow = (protocol, domain, inside, remote);
        let (exit, mac, kind, to) = self.way_out(passing, shard, flow, event)?;
        rewrite::pass(frame.buf, outline.layout, Side::Source, inside, &to);
        self.identify(frame, headers, (ip.src, to.ip));
        let translation = Translation {
            kind,
            before: (inside.into(), remote.into()),
            after: (to, remote.into()),
            created: false,
        };
        Some(Leaving {
            exit,
            mac,
            translation,
        })
    }

    /// Outside → inside for a packet that entered by an uplink and whose session remembers that it is
    /// let in. The translation is made and a hop is taken. `None`, and nothing changed, for any other
    /// packet.
    #[inline(always)]
    pub(crate) fn enter<'t>(
        &mut self,
        passing: &Passing<'t>,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Entering<'t>> {
        let topology = passing.topology;
        if topology.statics.is_empty() {
            return self.enter_from(Home::Port, passing, frame, headers);
        }
        // Mappings have their ports in the range, unless it has changed since.
        let port = destination_port(headers)?;
        if topology.nat.port_range.contains(&port.0)
            && let Some(found) = self.enter_from(Home::Port, passing, frame, headers)
        {
            return Some(found);
        }
        self.enter_published(passing, frame, headers)
    }

    #[inline(never)]
    fn enter_published<'t>(
        &mut self,
        passing: &Passing<'t>,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Entering<'t>> {
        self.enter_from(Home::Remote, passing, frame, headers)
    }

    #[inline(always)]
    fn enter_from<'t>(
        &mut self,
        home: Home,
        passing: &Passing<'t>,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Option<Entering<'t>> {
        let (ip, outline) = Outline::read(frame, headers, Direction::In).ok()?;
        let (protocol, event) = passing.event(&outline, Direction::In)?;
        let (remote, external) = outline.ends(ip);
        let shard = self.shard_at(home, external, remote);
        let flow = (protocol, external, remote);
        let (domain, gateway, neighbour, kind, to) = self.way_in(passing, shard, flow, event)?;
        rewrite::pass(frame.buf, outline.layout, Side::Destination, external, &to);
        let translation = Translation {
            kind,
            before: (remote.into(), external.into()),
            after: (remote.into(), to),
            created: false,
        };
        Some(Entering {
            domain,
            gateway,
            neighbour,
            translation,
        })
    }

    /// The shard of a session between an end of ours and a remote.
    #[inline(always)]
    fn shard_at(&self, home: Home, own: End<'_>, remote: End<'_>) -> usize {
        match home {
            Home::Port => shard_of_port(own.l4_port),
            Home::Remote => self.tables.shard_of_end(remote),
        }
    }

    /// Finds the session of a flow that knows its way out, and takes note of the packet, under one lock.
    #[inline(always)]
    fn way_out<'t>(
        &mut self,
        passing: &Passing<'t>,
        shard: usize,
        (protocol, domain, inside, remote): (NatProtocol, DomainId, End<'_>, End<'_>),
        event: Event,
    ) -> Option<(&'t Exit, &'t MacAddr, NatKind, L4Addr)> {
        let topology = passing.topology;
        let mut shard = self.tables.shard(shard);
        let table = &mut *shard.table;
        let (ends, stamp) = ((inside, remote), topology.stamp());
        let (index, route) = table.session_leaving(protocol, domain, ends, stamp)?;
        let (session, mapping) = table.at(index);
        let (exit, mac) = topology.exit(route, remote.ip)?;
        let refused = passing.size > usize::from(exit.mtu)
            || session.expired(passing.now, &topology.nat.timeouts);
        if refused {
            return None;
        }
        let kind = match mapping.rule {
            Some(_) => NatKind::ForwardReturn,
            None => NatKind::Source,
        };
        let to = mapping.external;
        table.touch(index, event);
        Some((exit, mac, kind, to))
    }

    /// The same of a session that knows that its packets are let in.
    #[inline(always)]
    fn way_in<'t>(
        &mut self,
        passing: &Passing<'t>,
        shard: usize,
        (protocol, external, remote): (NatProtocol, End<'_>, End<'_>),
        event: Event,
    ) -> Option<(&'t Domain, &'t Gateway, &'t Neighbour, NatKind, L4Addr)> {
        let topology = passing.topology;
        let mut shard = self.tables.shard(shard);
        let table = &mut *shard.table;
        let index = table.session_entering(protocol, (external, remote), topology.stamp())?;
        let (session, mapping) = table.at(index);
        let domain = topology.domain(mapping.domain)?;
        let gateway = domain.gateway.as_ref()?;
        let neighbour = domain.neighbours.get(&mapping.inside.ip)?;
        let refused = passing.size > usize::from(gateway.mtu)
            || session.expired(passing.now, &topology.nat.timeouts);
        if refused {
            return None;
        }
        let kind = match mapping.rule {
            Some(_) => NatKind::Forward,
            None => NatKind::SourceReturn,
        };
        let to = mapping.inside;
        table.touch(index, event);
        Some((domain, gateway, neighbour, kind, to))
    }
}

/// The port that a packet is for; an echo reply is for one by its identifier.
#[inline(always)]
fn destination_port(headers: &Headers) -> Option<L4Port> {
    match headers.l4.ok()?.kind {
        L4Kind::Tcp { dst, .. } | L4Kind::Udp { dst, .. } => Some(dst),
        L4Kind::Echo { id, .. } => Some(id),
        L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. } => None,
    }
}

impl Passing<'_> {
    /// The event that a packet of a flow is. `None` for a fragment, and for a SYN, which may begin
    /// something new or offer a segment size that is to be changed.
    #[inline(always)]
    fn event(&self, packet: &Outline, direction: Direction) -> Option<(NatProtocol, Event)> {
        let Body::Flow {
            protocol,
            flags,
            number,
        } = packet.body
        else {
            return None;
        };
        if packet.fragment.is_some() || flags.has(TcpFlags::SYN) {
            return None;
        }
        let event = Event {
            direction,
            flags,
            number,
            refreshes: direction == Direction::Out || self.topology.nat.udp_inbound_refresh,
            size: packet.size,
            now: self.now,
        };
        Some((protocol, event))
    }
}
