//! New sessions: limits, eviction, and the external port of a new mapping.
//!
//! The cold side of the NAT, under the lock of one shard. A full table costs the new session a
//! bounded search: [`EXPIRE_ON_FULL_MAX`] expired ones first, then the oldest transitory one, both
//! in the shard at hand. Where neither exists the new session is refused and the old ones stay.
//!
//! When every port of a residue has a mapping, a port is shared, unless the configuration forbids
//! it: two inside endpoints may hold the same external port as long as they speak to different
//! remotes, for a session is known by both of its ends. RFC 4787 REQ-3 is then given up rather than
//! the latecomer's flow, and one endpoint that opens thousands of ports does not shut out the
//! others. Towards one and the same remote ports cannot be shared, so the last eighth of a residue is
//! for endpoints that hold less than that (decision 0013).

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr};
use crate::time::Instant;
use crate::verdict::DropReason;

use super::forward::{StaticRule, StaticRules};
use super::pool::{self, Holder, Residue};
use super::session::{Mapping, NatProtocol, SessionState};
use super::shared::{Counts, Shard};
use super::table::{Event, FlowKey, InsideKey, NatShard, Origin};
use super::target::Target;
use super::{Behaviour, Dependence, NatConfig};

/// Expired sessions that one new session clears away when it finds the table full. A few pay for
/// it now; the sweep does the rest.
const EXPIRE_ON_FULL_MAX: usize = 8;

/// Transitory sessions that one new TCP mapping may take the place of when its residue has no
/// port left. The first is nearly always enough, for most mappings have one session.
const EVICT_FOR_PORT_MAX: usize = 8;

/// What a new session needs besides the shard.
pub(super) struct Opening<'a> {
    pub config: &'a NatConfig,
    pub statics: &'a StaticRules,
    pub behaviour: Behaviour,
    pub event: Event,
}

impl Opening<'_> {
    /// Opens a session from inside to `remote`, with the mapping of its inside address and port
    /// or a new one.
    #[cold]
    pub fn dynamic(
        &self,
        shard: &mut Shard<'_>,
        key: &InsideKey,
        remote: L4Addr,
    ) -> Result<u32, DropReason> {
        let Shard { table, counts } = shard;
        let key = &InsideKey {
            scope: table.scope(self.behaviour.mapping, remote),
            ..*key
        };
        self.reserve(table, counts, key.domain, key.inside.ip)?;
        // Looked up only now: making room may have ended the mapping. One that shares its port may
        // find the way to this remote taken; where none does, only a session of its own could.
        let mapping = table.mapping_by_inside(key).filter(|mapping| {
            let external = table.mapping(*mapping).external;
            !table.shares_ports() || unused(table, key.protocol, external, remote)
        });
        let mapping = match mapping {
            Some(mapping) => mapping,
            None => {
                let Some(external) = self.external(table, counts, key, remote) else {
                    counts.release(key.domain, key.inside.ip);
                    return Err(DropReason::NatNoPort);
                };
                table.add_mapping(Mapping {
                    inside: key.inside,
                    external,
                    domain: key.domain,
                    protocol: key.protocol,
                    rule: None,
                    target: 0,
                    scope: key.scope,
                    filtering: self.behaviour.filtering,
                    sessions: 0,
                })
            }
        };
        Ok(table.add_session(mapping, remote, self.event))
    }

    /// Opens a session of a published port.
    #[cold]
    pub fn published(
        &self,
        shard: &mut Shard<'_>,
        (rule, target): (&StaticRule, &Target),
        external: L4Addr,
        key: &FlowKey,
    ) -> Result<u32, DropReason> {
        let Shard { table, counts } = shard;
        if let Some(other) = table.session_by_inside(key, Origin::Published) {
            // The same client port came by another external port that leads to the same server
            // port. The server could not tell the two apart, so the second waits for the first.
            if !self.replaceable(table, other) {
                return Err(DropReason::NatNoPort);
            }
            table.remove(other, counts);
        }
        self.reserve(table, counts, key.domain, key.inside.ip)?;
        let mapping = Mapping {
            inside: key.inside,
            external,
            domain: key.domain,
            protocol: key.protocol,
            rule: Some(rule.id),
            target: target.id,
            scope: 0,
            filtering: Dependence::AddressAndPortDependent,
            sessions: 0,
        };
        Ok(table.add_published(mapping, key.remote, self.event))
    }

    fn now(&self) -> Instant {
        self.event.now
    }

    fn replaceable(&self, table: &NatShard, session: u32) -> bool {
        let (found, mapping) = table.at(session);
        let closing =
            mapping.protocol == NatProtocol::Tcp && found.tcp.phase() == SessionState::Closing;
        closing || !table.alive(session, self.now(), self.config)
    }

    fn reserve(
        &self,
        table: &mut NatShard,
        counts: &Counts,
        domain: DomainId,
        inside: IpAddr,
    ) -> Result<(), DropReason> {
        let Err(full) = counts.reserve(domain, inside, self.config) else {
            return Ok(());
        };
        let timeouts = &self.config.timeouts;
        let expired = table.expire(self.now(), timeouts, EXPIRE_ON_FULL_MAX, counts);
        if expired == 0 {
            // One endpoint's quota is no reason to end the sessions of others.
            let given_up = if full == DropReason::NatQuota {
                table.evict_of(domain, inside, counts)
            } else {
                table.evict(counts)
            };
            given_up.ok_or(full)?;
        }
        counts.reserve(domain, inside, self.config)
    }

    /// An external address and port for a mapping: one that nobody has, or one that nobody uses
    /// towards `remote`.
    fn external(
        &self,
        table: &mut NatShard,
        counts: &Counts,
        key: &InsideKey,
        remote: L4Addr,
    ) -> Option<L4Addr> {
        if key.external == key.inside.ip {
            // A routed network: its ports are its own, whatever the range.
            let own = key.inside;
            return unused(table, key.protocol, own, remote).then_some(own);
        }
        // The choice is a keyed function of the inside: nobody outside can predict it (RFC 6056
        // section 3.3.3), and the same inside gets the same choice (RFC 4787 REQ-11).
        let rng = &mut fastrand::Rng::with_seed(table.choice_seed(key));
        let fair = self.is_fair(table, key);
        let vacant = |table: &NatShard, external| {
            let held = table.mapping_by_external(key.protocol, external);
            held.is_none() && !self.published_port(key.protocol, external)
        };
        let free = |table: &NatShard, external| fair && vacant(table, external);
        if let Some(found) = self.pick(key, rng, |external| free(table, external)) {
            return Some(found);
        }
        let timeouts = &self.config.timeouts;
        if table.expire(self.now(), timeouts, EXPIRE_ON_FULL_MAX, counts) > 0
            && let Some(found) = self.pick(key, rng, |external| free(table, external))
        {
            return Some(found);
        }
        // A port that nobody has is not one to share.
        let shareable = |table: &NatShard, external| {
            let (protocol, share) = (key.protocol, self.config.share_ports);
            let held = table.mapping_by_external(protocol, external).is_some();
            (share && held && unused(table, protocol, external, remote) || free(table, external))
                && !self.published_port(protocol, external)
        };
        if let Some(found) = self.pick(key, rng, |external| shareable(table, external)) {
            return Some(found);
        }
        if key.protocol != NatProtocol::Tcp {
            return None;
        }
        for _ in 0..EVICT_FOR_PORT_MAX {
            // Who has more than a fair part takes the place of its own connections alone.
            let given_up = if fair {
                table.evict(counts)?
            } else {
                table.evict_of(key.domain, key.inside.ip, counts)?
            };
            let external = given_up.external;
            let fits = given_up.rule.is_none() && external.ip == key.external;
            if fits && (shareable(table, external) || vacant(table, external)) {
                return Some(external);
            }
        }
        None
    }

    /// Whether the inside may take one more port, or only what is kept for others is left.
    fn is_fair(&self, table: &NatShard, key: &InsideKey) -> bool {
        let residue = Residue::of(&self.config.port_range, key.inside.l4_port);
        let held = table.pools.held(key.protocol, key.external);
        let holder = |l4_port| {
            let external = L4Addr {
                ip: key.external,
                l4_port,
            };
            match table.mapping_by_external(key.protocol, external) {
                None => Holder::Nobody,
                Some(mapping) => {
                    let mapping = table.mapping(mapping);
                    let same = (mapping.domain, mapping.inside.ip) == (key.domain, key.inside.ip);
                    if same { Holder::Own } else { Holder::Another }
                }
            }
        };
        residue.is_none_or(|residue| residue.is_fair(held, holder))
    }

    fn pick(
        &self,
        key: &InsideKey,
        rng: &mut fastrand::Rng,
        allowed: impl Fn(L4Addr) -> bool,
    ) -> Option<L4Addr> {
        let external = |l4_port| L4Addr {
            ip: key.external,
            l4_port,
        };
        let (range, inside) = (&self.config.port_range, key.inside.l4_port);
        pool::pick(range, inside, rng, |port| allowed(external(port))).map(external)
    }

    /// Whether an external port is published, which would swallow the replies to a mapping.
    fn published_port(&self, protocol: NatProtocol, external: L4Addr) -> bool {
        let rule = protocol
            .transport()
            .and_then(|transport| self.statics.by_external(transport, external));
        rule.is_some()
    }
}

/// Whether no dynamic session leads from an external port to `remote`.
fn unused(table: &NatShard, protocol: NatProtocol, external: L4Addr, remote: L4Addr) -> bool {
    let origin = Origin::Dynamic(external.ip);
    table
        .session_by_external(protocol, external, remote, origin)
        .is_none()
}
