//! Routed networks: flows are tracked under their own addresses, and strangers stay out.
//!
//! A mapping leads to itself, so that an endpoint's flows, their answers and the errors about them are
//! found in the same tables by the same keys. What comes from outside is let in when it belongs to a
//! flow, when the network's filtering admits its remote, or when the port is published: then under
//! the endpoint's own address and port, in addition to the host's. Published on one address of the
//! host, a port is reached by that one alone.

use crate::addr::DomainId;
use crate::frame::Frame;
use crate::headers::Headers;
use crate::time::Instant;
use crate::topology::Topology;
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::packet::{Body, Packet};
use super::pool::shard_of_port;
use super::session::Direction;
use super::shared::NatView;
use super::table::{FlowKey, Origin};
use super::translate::{Found, Inbound, Query};

impl NatView {
    /// Outside → inside by the endpoint's own address, in `domain`: whether the packet is let in.
    /// It stays as it is.
    ///
    /// # Errors
    /// [`DropReason::RoutedUnsolicited`] when nobody has asked for it; any other reason to drop it.
    pub(crate) fn admit(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let mut packet = Packet::read(frame, headers, Direction::In)?;
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
                self.expected(&query, domain, &packet)?
            }
            // Without state: the answer has the right to go out by itself.
            Body::StrayEcho => let_in(NatKind::Forward, domain, &packet),
            Body::Error { offset, end } => {
                return self.error_routed(topology, frame, &packet, (offset, end), now);
            }
            Body::LaterFragment => return Err(DropReason::NatFragment),
        };
        if packet.fragment.is_some() {
            self.remember_fragment(frame, headers, None, (&packet, &found), now);
        }
        Ok(found.inbound(packet.ends(), packet.ends()))
    }

    /// A packet of a flow, or the first one to a published port.
    fn expected(
        &mut self,
        query: &Query<'_>,
        domain: DomainId,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        let statics = &query.topology.statics;
        let rule = query
            .protocol
            .transport()
            .and_then(|transport| statics.opens(transport, domain, packet.dst, packet.src.ip));
        if rule.is_some() && self.hear(query, packet, Origin::Published) {
            return Ok(let_in(NatKind::Forward, domain, packet));
        }
        if self.hear(query, packet, Origin::Dynamic(packet.dst.ip)) {
            return Ok(let_in(NatKind::SourceReturn, domain, packet));
        }
        let Some(rule) = rule else {
            let mut shard = self.tables.shard(shard_of_port(packet.dst.l4_port));
            return match query.stranger(&mut shard, packet) {
                Err(DropReason::NatNoMapping | DropReason::NatFiltered) => {
                    Err(DropReason::RoutedUnsolicited)
                }
                found => found,
            };
        };
        let key = FlowKey {
            protocol: query.protocol,
            domain,
            inside: packet.dst,
            remote: packet.src,
        };
        let mut shard = self.tables.shard(self.tables.shard_of_remote(packet.src));
        query
            .opening(domain, query.event(Direction::In))
            .published(&mut shard, rule, packet.dst, &key)?;
        Ok(Found {
            created: true,
            ..let_in(NatKind::Forward, domain, packet)
        })
    }

    /// Whether a packet belongs to a session of that origin, which takes note of it.
    fn hear(&mut self, query: &Query<'_>, packet: &Packet, origin: Origin) -> bool {
        let shard = match origin {
            Origin::Published => self.tables.shard_of_remote(packet.src),
            Origin::Dynamic(_) => shard_of_port(packet.dst.l4_port),
        };
        let mut shard = self.tables.shard(shard);
        let (own, remote) = (packet.dst, packet.src);
        let session = shard
            .table
            .session_by_external(query.protocol, own, remote, origin)
            .filter(|session| shard.table.alive(*session, query.now, &query.topology.nat));
        let Some(session) = session else {
            return false;
        };
        shard.table.touch(session, query.event(Direction::In));
        true
    }
}

/// A packet that goes on to where it was sent.
const fn let_in(kind: NatKind, domain: DomainId, packet: &Packet) -> Found {
    Found {
        kind,
        to: packet.dst,
        domain,
        created: false,
    }
}
