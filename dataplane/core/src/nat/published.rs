//! Sessions of published ports: opened by clients outside, answered by endpoints.
//!
//! They live in the shard of a hash of their remote, which both directions know without a lookup.

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr};
use crate::headers::TcpFlags;
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::forward::StaticRule;
use super::packet::Packet;
use super::session::{Direction, NatProtocol};
use super::shared::NatView;
use super::table::{FlowKey, Origin};
use super::translate::{Found, Query};

impl NatView {
    /// A packet to a published port.
    pub(super) fn forward(
        &mut self,
        query: &Query<'_>,
        rule: &StaticRule,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        if !rule.admits(packet.src.ip) {
            return Err(DropReason::NatFiltered);
        }
        let (external, remote) = (packet.dst, packet.src);
        let key = FlowKey {
            protocol: query.protocol,
            domain: rule.domain,
            inside: rule.inside_of(external.l4_port),
            remote,
        };
        let event = query.event(Direction::In);
        let found = |created| Found {
            kind: NatKind::Forward,
            to: key.inside,
            domain: key.domain,
            created,
        };
        let mut shard = self.tables.shard(self.tables.shard_of_remote(remote));
        let session =
            shard
                .table
                .session_by_external(query.protocol, external, remote, Origin::Published);
        if let Some(session) = session {
            let mapping = shard.table.at(session).1;
            // A rule may have got another endpoint since.
            let same = (mapping.domain, mapping.inside) == (key.domain, key.inside);
            if same && shard.table.alive(session, query.now, &query.topology.nat) {
                shard.table.touch(session, event);
                return Ok(found(false));
            }
            let counts = shard.counts;
            shard.table.remove(session, counts);
        }
        query
            .opening(rule.domain, event)
            .published(&mut shard, rule, external, &key)?;
        Ok(found(true))
    }

    /// A packet from a published port to a client that has a session with it.
    pub(super) fn forward_return(
        &mut self,
        query: &Query<'_>,
        domain: DomainId,
        packet: &Packet,
    ) -> Option<Found> {
        let key = query.flow(domain, packet);
        let mut shard = self.tables.shard(self.tables.shard_of_remote(key.remote));
        let session = shard.table.session_by_inside(&key, Origin::Published)?;
        if !shard.table.alive(session, query.now, &query.topology.nat) {
            return None;
        }
        shard.table.touch(session, query.event(Direction::Out));
        Some(Found {
            kind: NatKind::ForwardReturn,
            to: shard.table.at(session).1.external,
            domain,
            created: false,
        })
    }

    /// Takes up a published TCP connection that the tables do not know, from its server's side.
    pub(super) fn resume(
        &mut self,
        query: &Query<'_>,
        rule: &StaticRule,
        external: IpAddr,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        let external = L4Addr {
            ip: rule.external.unwrap_or(external),
            l4_port: rule.external_of(packet.src.l4_port),
        };
        let key = query.flow(rule.domain, packet);
        let mut shard = self.tables.shard(self.tables.shard_of_remote(key.remote));
        query
            .opening(rule.domain, query.event(Direction::Out))
            .published(&mut shard, rule, external, &key)?;
        Ok(Found {
            kind: NatKind::ForwardReturn,
            to: external,
            domain: rule.domain,
            created: true,
        })
    }
}

/// Whether a packet from a published port belongs to a connection that a client opened before the
/// tables were made. A connection that the server itself opens begins with a SYN alone; anything
/// else from a published TCP port without a session is a server's answer, and a new external port
/// would make its client reset the connection. UDP has no such mark and falls through.
pub(super) fn resumes(rule: &StaticRule, query: &Query<'_>, packet: &Packet) -> bool {
    let opens = query.flags.has(TcpFlags::SYN) && !query.flags.has(TcpFlags::ACK);
    query.protocol == NatProtocol::Tcp && !opens && rule.admits(packet.dst.ip)
}
