//! How much of the NAT's limits is used, for gauges and warnings before something is full.

use std::net::IpAddr;

use core::sync::atomic::Ordering;

use crate::addr::DomainId;

use super::session::NatProtocol;
use super::shared::Nat;

/// How much of the NAT's limits is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sessions of all kinds.
    pub sessions: usize,
    /// External addresses with ports that dynamic mappings hold, in order.
    pub pools: Vec<PoolUsage>,
    /// Inside addresses with the most sessions, the fullest first.
    pub endpoints: Vec<EndpointUsage>,
}

/// Ports of one external address and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolUsage {
    /// The address.
    pub external: IpAddr,
    /// The protocol.
    pub protocol: NatProtocol,
    /// Ports, or ICMP identifiers, that are held.
    pub ports: u32,
}

/// Sessions of one inside address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointUsage {
    /// Its network.
    pub domain: DomainId,
    /// The address.
    pub inside: IpAddr,
    /// Its sessions.
    pub sessions: usize,
}

impl Nat {
    /// What is used, with up to `endpoints_max` of the fullest inside addresses. Locks the shards one
    /// after the other and looks at no session, so that it may be asked every second.
    pub fn usage(&self, endpoints_max: usize) -> Usage {
        let mut pools = Pools::default();
        for shard in &self.shards {
            for pool in shard.lock().pools.iter() {
                *pools.entry(pool.protocol, pool.external) += pool.ports;
            }
        }
        let mut pools = pools.0;
        pools.sort_unstable();
        let held = self.counts.endpoints.all().into_iter();
        let mut endpoints: Vec<_> = held
            .map(|held| EndpointUsage {
                domain: held.domain,
                inside: held.inside,
                sessions: held.sessions as usize,
            })
            .collect();
        // The address breaks the tie, so that a listing does not jump.
        let fullest = |endpoint: &EndpointUsage| {
            let least = core::cmp::Reverse(endpoint.sessions);
            (least, endpoint.domain, endpoint.inside)
        };
        endpoints.sort_unstable_by_key(fullest);
        endpoints.truncate(endpoints_max);
        Usage {
            sessions: self.counts.sessions.load(Ordering::Relaxed),
            pools,
            endpoints,
        }
    }
}

/// How many ports of each external address are held. A host has a handful of addresses, so a scan
/// is as good as a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Pools(Vec<PoolUsage>);

impl Pools {
    /// A port was taken.
    pub fn take(&mut self, protocol: NatProtocol, external: IpAddr) {
        *self.entry(protocol, external) += 1;
    }

    /// A port was given back.
    pub fn give_back(&mut self, protocol: NatProtocol, external: IpAddr) {
        *self.entry(protocol, external) -= 1;
        self.0.retain(|pool| pool.ports > 0);
    }

    /// Ports of an address that are held.
    pub fn held(&self, protocol: NatProtocol, external: IpAddr) -> u32 {
        let found = self.iter().find(|pool| pool.is(protocol, external));
        found.map_or(0, |pool| pool.ports)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PoolUsage> {
        self.0.iter()
    }

    fn entry(&mut self, protocol: NatProtocol, external: IpAddr) -> &mut u32 {
        let found = self.0.iter().position(|pool| pool.is(protocol, external));
        let index = found.unwrap_or_else(|| {
            self.0.push(PoolUsage {
                external,
                protocol,
                ports: 0,
            });
            self.0.len() - 1
        });
        &mut self.0[index].ports
    }
}

impl PoolUsage {
    fn is(&self, protocol: NatProtocol, external: IpAddr) -> bool {
        (self.protocol, self.external) == (protocol, external)
    }
}
