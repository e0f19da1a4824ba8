//! The short way out: a packet whose session remembers the route that its flow takes.
//!
//! What the gateway decides for a packet that goes outside depends on its domain, its two
//! addresses and the topology, and the session stands for the first three. So the session
//! remembers the route with the topology's stamp, and as long as the stamp is right a packet skips
//! all those decisions: one lookup, one rewrite. Whatever a single packet can be refused for (its
//! TTL, its size, being a fragment) is looked at again, and any doubt leads to the long way, which
//! comes to the same verdict by the same steps.

use crate::addr::{DomainId, L4Addr, MacAddr};
use crate::frame::Frame;
use crate::headers::{Headers, TcpFlags};
use crate::time::Instant;
use crate::topology::{Exit, Topology};
use crate::trace::NatKind;

use super::packet::{Body, Packet};
use super::pool::shard_of_port;
use super::rewrite::Side;
use super::session::{Direction, NatProtocol};
use super::shared::NatView;
use super::table::{Event, FlowKey};
use super::translate::Translation;

/// A packet of `size` bytes that an endpoint of `domain` sends outside.
#[derive(Clone, Copy)]
pub(crate) struct Leaving {
    pub domain: DomainId,
    /// What is compared with the MTU of the way out.
    pub size: usize,
    pub now: Instant,
}

impl NatView {
    /// Inside → outside for a packet whose session remembers an open way: where it leaves, the
    /// MAC of its next hop, and the translation, which is made. `None`, and nothing changed, for
    /// any other packet.
    #[inline]
    pub(crate) fn follow<'t>(
        &mut self,
        topology: &'t Topology,
        frame: &mut Frame<'_>,
        headers: &Headers,
        leaving: &Leaving,
    ) -> Option<(&'t Exit, MacAddr, Translation)> {
        let mut packet = Packet::read(frame, headers, Direction::Out).ok()?;
        let Body::Flow {
            protocol,
            flags,
            number,
        } = packet.body
        else {
            return None;
        };
        // The segment size that a SYN offers may have to be changed.
        let offers = flags.has(TcpFlags::SYN) && topology.nat.clamp_mss;
        if packet.fragment.is_some() || offers {
            return None;
        }
        let event = Event {
            direction: Direction::Out,
            flags,
            number,
            refreshes: true,
            size: packet.size,
            now: leaving.now,
        };
        let before = packet.ends();
        let (exit, mac, to) = self.way_of(topology, &packet, (protocol, event), leaving)?;
        packet.rewrite(frame, Side::Source, to);
        self.identify(frame, headers, (before.0.ip, to.ip));
        let translation = Translation {
            kind: NatKind::Source,
            before,
            after: packet.ends(),
            created: false,
        };
        Some((exit, mac, translation))
    }

    /// Finds the session and takes note of the packet, under one lock.
    #[inline]
    fn way_of<'t>(
        &mut self,
        topology: &'t Topology,
        packet: &Packet,
        (protocol, event): (NatProtocol, Event),
        leaving: &Leaving,
    ) -> Option<(&'t Exit, MacAddr, L4Addr)> {
        let flow = FlowKey {
            protocol,
            domain: leaving.domain,
            inside: packet.src,
            remote: packet.dst,
        };
        let mut shard = self.tables.shard(shard_of_port(packet.src.l4_port));
        let index = shard.table.session_on_route(&flow, topology.stamp())?;
        let (session, mapping) = shard.table.at(index);
        let (exit, mac) = topology.exit(session.route, packet.dst.ip)?;
        let refused = leaving.size > usize::from(exit.mtu)
            || session.expired(leaving.now, &topology.nat.timeouts);
        if refused {
            return None;
        }
        let to = mapping.external;
        shard.table.touch(index, event);
        Some((exit, mac, to))
    }
}
