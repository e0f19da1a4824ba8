//! Sessions of published ports: opened by clients outside, answered by endpoints.
//!
//! They live in the shard of a hash of their remote, which both directions know without a lookup.
//! A target is chosen when a session is made and stays in its mapping; a session is followed as long
//! as its rule still leads there.

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr};
use crate::frame::Frame;
use crate::headers::{Headers, TcpFlags};
use crate::time::Instant;
use crate::topology::{Role, RouteMark, Topology};
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::forward::{External, StaticRule};
use super::icmp::error_about;
use super::packet::{Body, Packet};
use super::session::{Direction, Mapping, NatProtocol, SessionState};
use super::shared::{NatView, Shard};
use super::table::{FlowKey, Origin};
use super::target::{Duty, Target};
use super::translate::{Found, Query};

impl NatView {
    /// A packet to a published port.
    pub(super) fn forward(
        &mut self,
        query: &Query<'_>,
        rule: &StaticRule,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        if !query.enters_by_the_uplink_of(rule) {
            return Err(DropReason::NatOtherUplink);
        }
        if !rule.admits(packet.src.ip) {
            return Err(DropReason::NatFiltered);
        }
        let (external, remote) = (packet.dst, packet.src);
        let event = query.event(Direction::In);
        let found = |to: L4Addr, domain, created| Found {
            kind: NatKind::Forward,
            to,
            domain,
            created,
        };
        let mut shard = self.tables.shard(self.tables.shard_of_remote(remote));
        let session =
            shard
                .table
                .session_by_external(query.protocol, external, remote, Origin::Published);
        if let Some(session) = session {
            let mapping = *shard.table.at(session).1;
            let goes_on = leads_on(rule, &mapping).is_some_and(|target| {
                shard.table.alive(session, query.now, &query.topology.nat)
                    && !query.moves_on(&shard, session, target)
            });
            if goes_on {
                shard.table.touch(session, event);
                // What is published for one uplink is let in by that one alone.
                if !matches!(rule.external, External::Uplink(..)) {
                    let stamp = query.topology.stamp();
                    shard.table.session_mut(session).remember_way_in(stamp);
                }
                return Ok(found(mapping.inside, mapping.domain, false));
            }
            let counts = shard.counts;
            shard.table.remove(session, counts);
        }
        let target = query.target(rule, &shard, remote.ip)?;
        let key = FlowKey {
            protocol: query.protocol,
            domain: target.domain,
            inside: target.inside_of(rule, external.l4_port),
            remote,
        };
        query.opening(target.domain, event).published(
            &mut shard,
            (rule, target),
            external,
            &key,
        )?;
        Ok(found(key.inside, key.domain, true))
    }

    /// A packet from a published port to a client that has a session with it, which is to remember
    /// its route by `mark`.
    pub(super) fn forward_return(
        &mut self,
        query: &Query<'_>,
        domain: DomainId,
        packet: &Packet,
        mark: RouteMark,
    ) -> Option<Found> {
        let key = query.flow(domain, packet);
        let mut shard = self.tables.shard(self.tables.shard_of_remote(key.remote));
        let session = shard.table.session_by_inside(&key, Origin::Published)?;
        if !shard.table.alive(session, query.now, &query.topology.nat) {
            return None;
        }
        shard.table.touch(session, query.event(Direction::Out));
        // Rules judge an answer as the question of who spoke to the port, and see every one.
        let mark = match query.topology.policy.is_empty() {
            true => mark,
            false => RouteMark::NONE,
        };
        shard.table.session_mut(session).remember_way_out(mark);
        Some(Found {
            kind: NatKind::ForwardReturn,
            to: shard.table.at(session).1.external,
            domain,
            created: false,
        })
    }

    /// The external address that a client spoke to whom a packet from `domain` answers, by a published
    /// port. Nothing is noted of the packet.
    #[cold]
    pub(crate) fn asked_at(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        frame: &mut Frame<'_>,
        headers: &Headers,
        now: Instant,
    ) -> Option<IpAddr> {
        if topology.statics.is_empty() {
            return None;
        }
        let packet = Packet::read(frame, headers, Direction::Out).ok()?;
        let (protocol, inside, remote) = match packet.body {
            Body::Flow { protocol, .. } => (protocol, packet.src, packet.dst),
            Body::Error { offset, end } => error_about(frame, &packet, (offset, end))?,
            Body::LaterFragment => return self.fragment_source(headers, domain, now),
            Body::StrayEcho => return None,
        };
        // A session that is left of what was published before answers nobody: its flow goes on as any
        // other does.
        let transport = protocol.transport()?;
        topology.statics.by_inside(transport, domain, inside)?;
        let key = FlowKey {
            protocol,
            domain,
            inside,
            remote,
        };
        let shard = self.tables.shard(self.tables.shard_of_remote(remote));
        let session = shard.table.session_by_inside(&key, Origin::Published)?;
        let alive = shard.table.alive(session, now, &topology.nat);
        alive.then(|| shard.table.at(session).1.external.ip)
    }

    /// Takes up a published TCP connection that the tables do not know, from its server's side.
    pub(super) fn resume(
        &mut self,
        query: &Query<'_>,
        (rule, target): (&StaticRule, &Target),
        external: IpAddr,
        packet: &Packet,
    ) -> Result<Found, DropReason> {
        let external = L4Addr {
            ip: rule.external.source(external),
            l4_port: target.external_of(rule, packet.src.l4_port),
        };
        let key = query.flow(target.domain, packet);
        let mut shard = self.tables.shard(self.tables.shard_of_remote(key.remote));
        query
            .opening(target.domain, query.event(Direction::Out))
            .published(&mut shard, (rule, target), external, &key)?;
        Ok(Found {
            kind: NatKind::ForwardReturn,
            to: external,
            domain: target.domain,
            created: true,
        })
    }
}

/// The target that a session's mapping leads to, if its rule still leads there.
#[inline]
fn leads_on<'r>(rule: &'r StaticRule, mapping: &Mapping) -> Option<&'r Target> {
    let target = rule.target(mapping.target)?;
    let inside = target.inside_of(rule, mapping.external.l4_port);
    let same = mapping.rule == Some(rule.id)
        && (mapping.domain, mapping.inside) == (target.domain, inside);
    same.then_some(target)
}

impl Query<'_> {
    /// Whether a packet may come in by its port, which an uplink is or an endpoint of ours that
    /// addresses the host.
    #[inline]
    fn enters_by_the_uplink_of(&self, rule: &StaticRule) -> bool {
        let External::Uplink(uplink, _) = rule.external else {
            return true;
        };
        let port = self.topology.port(self.ingress);
        match port.map(|port| port.role) {
            Some(Role::Uplink(ingress)) => ingress == uplink,
            Some(Role::Bridge(_) | Role::HostLink) | None => true,
        }
    }

    /// The target of a packet without a session. A segment of a connection that is under way goes
    /// to the one that can have it: another one would reset it.
    #[cold]
    fn target<'r>(
        &self,
        rule: &'r StaticRule,
        shard: &Shard<'_>,
        client: IpAddr,
    ) -> Result<&'r Target, DropReason> {
        if self.protocol == NatProtocol::Tcp && !self.opens() {
            return rule.recall(client).ok_or(DropReason::NatTargetUnknown);
        }
        let chosen = rule.choose(client, |rule| shard.counts.in_turn(rule));
        chosen.ok_or(DropReason::NatNoTarget)
    }

    /// Whether a packet begins anew what has ended at a target that gets nothing new.
    #[inline]
    fn moves_on(&self, shard: &Shard<'_>, session: u32, target: &Target) -> bool {
        self.opens()
            && target.duty == Duty::Draining
            && shard.table.at(session).0.tcp.phase() == SessionState::Closing
    }

    /// Whether it is a SYN alone, which only a new connection begins with.
    #[inline]
    const fn opens(&self) -> bool {
        self.flags.has(TcpFlags::SYN) && !self.flags.has(TcpFlags::ACK)
    }
}

/// Whether a packet from a published port belongs to a connection that a client opened before the
/// tables were made. A connection that the server itself opens begins with a SYN alone; anything
/// else from a published TCP port without a session is a server's answer, and a new external port
/// would make its client reset the connection. UDP has no such mark and falls through.
pub(super) fn resumes(rule: &StaticRule, query: &Query<'_>, packet: &Packet) -> bool {
    query.protocol == NatProtocol::Tcp && !query.opens() && rule.admits(packet.dst.ip)
}
