//! Fragments: the later ones follow the first.
//!
//! Only the first fragment of a packet carries ports. When it is translated, what became of its
//! addresses is remembered by (addresses, protocol, identification), and later fragments get the
//! same. Their checksum needs nothing: it is in the first fragment and covers the whole packet.
//!
//! Deviation from RFC 4787 REQ-14: a fragment that overtakes the first one is dropped rather than
//! kept, because a worker holds no frames. Senders emit the first one first, and the kernel's
//! queues keep the order of one flow; tested by `a_fragment_before_the_first_is_dropped`.
//!
//! Limits: [`FRAGMENTS_MAX`] packets in each shard, the oldest forgotten first;
//! [`FRAGMENT_TIMEOUT_SECONDS`].

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr};
use crate::frame::Frame;
use crate::headers::{Fragment, Headers, Ip};
use crate::time::Instant;
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::packet::Packet;
use super::rewrite::Side;
use super::shared::NatView;
use super::translate::{Found, Inbound, Translation};

/// Fragmented packets remembered by each shard: 4,096 in all, a quarter of a megabyte, which a
/// flood of fragments cannot exceed.
pub const FRAGMENTS_MAX: usize = 64;

/// How long the fragments of a packet may trail the first: what Linux waits to reassemble
/// (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIMEOUT_SECONDS: u32 = 30;

/// What the fragments of a packet have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FragmentKey {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
    /// The network that it came from; `None` from outside. Networks may overlap.
    from: Option<DomainId>,
}

/// What became of the first fragment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FragmentRoute {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The network of the inside end.
    pub domain: DomainId,
    pub kind: NatKind,
}

#[derive(Clone, Debug)]
pub(super) struct Fragments {
    records: Vec<Record>,
    /// The record to be replaced next.
    next: usize,
}

#[derive(Clone, Copy, Hash, Debug)]
pub(super) struct Record {
    key: FragmentKey,
    route: FragmentRoute,
    second: u32,
}

impl FragmentKey {
    /// The key of a packet from the network `from`, or from outside.
    pub const fn new(ip: &Ip, fragment: Fragment, from: Option<DomainId>) -> Self {
        Self {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            id: fragment.id,
            from,
        }
    }

    /// The address and number that spread packets over the shards.
    pub const fn spread(&self) -> (IpAddr, u32) {
        (self.src, self.id)
    }
}

impl Fragments {
    pub const fn new() -> Self {
        Self {
            records: Vec::new(),
            next: 0,
        }
    }

    /// What is remembered.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// Remembers what became of a first fragment, in place of the oldest if there are too many.
    pub fn remember(&mut self, key: FragmentKey, route: FragmentRoute, now: Instant) {
        let record = Record {
            key,
            route,
            second: now.second(),
        };
        if let Some(same) = self.records.iter_mut().find(|record| record.key == key) {
            *same = record;
        } else if self.records.len() < FRAGMENTS_MAX {
            self.records.push(record);
        } else {
            self.records[self.next] = record;
            self.next = (self.next + 1) % FRAGMENTS_MAX;
        }
    }

    /// What became of the first fragment of the same packet.
    pub fn find(&self, key: &FragmentKey, now: Instant) -> Option<FragmentRoute> {
        let fresh = |record: &&Record| {
            let age = now.second().saturating_sub(record.second);
            record.key == *key && age <= FRAGMENT_TIMEOUT_SECONDS
        };
        self.records.iter().find(fresh).map(|record| record.route)
    }
}

impl NatView {
    /// What became of the first fragment of a packet from the network `from`, or from outside.
    #[cold]
    pub(super) fn route_of_fragment(
        &mut self,
        headers: &Headers,
        from: Option<DomainId>,
        now: Instant,
    ) -> Option<FragmentRoute> {
        let key = key(headers, from)?;
        let shard = self.tables.shard_of_fragment(key.spread());
        self.tables.shard(shard).table.fragments.find(&key, now)
    }

    /// Remembers what became of a first fragment, whose `headers` are those from before.
    #[cold]
    pub(super) fn remember_fragment(
        &mut self,
        headers: &Headers,
        from: Option<DomainId>,
        packet: &Packet,
        found: &Found,
        now: Instant,
    ) {
        let Some(key) = key(headers, from) else {
            return;
        };
        let route = FragmentRoute {
            src: packet.src.ip,
            dst: packet.dst.ip,
            domain: found.domain,
            kind: found.kind,
        };
        let shard = self.tables.shard_of_fragment(key.spread());
        let mut shard = self.tables.shard(shard);
        shard.table.fragments.remember(key, route, now);
    }

    /// A later fragment addressed to an external address. One whose first fragment is unknown is
    /// the host's: its own fragments look the same.
    #[cold]
    pub(super) fn follow_in(
        &mut self,
        packet: &mut Packet,
        frame: &mut Frame<'_>,
        headers: &Headers,
        from: Option<DomainId>,
        now: Instant,
    ) -> Result<Inbound, DropReason> {
        let route = self
            .route_of_fragment(headers, from, now)
            .ok_or(DropReason::NatNoMapping)?;
        Ok(Inbound {
            translation: follow(packet, frame, &route),
            domain: route.domain,
            inside: route.dst,
        })
    }
}

/// Does to a later fragment what was done to the first.
pub(super) fn follow(
    packet: &mut Packet,
    frame: &mut Frame<'_>,
    route: &FragmentRoute,
) -> Translation {
    let before = packet.ends();
    if packet.src.ip != route.src {
        packet.rewrite(frame, Side::Source, L4Addr::new(route.src, 0));
    }
    if packet.dst.ip != route.dst {
        packet.rewrite(frame, Side::Destination, L4Addr::new(route.dst, 0));
    }
    Translation {
        kind: route.kind,
        before,
        after: packet.ends(),
        created: false,
    }
}

fn key(headers: &Headers, from: Option<DomainId>) -> Option<FragmentKey> {
    let ip = headers.ip()?;
    Some(FragmentKey::new(ip, ip.fragment?, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> FragmentKey {
        FragmentKey {
            src: [10, 0, 0, 2].into(),
            dst: [192, 0, 2, 1].into(),
            protocol: 17,
            id,
            from: None,
        }
    }

    const ROUTE: FragmentRoute = FragmentRoute {
        src: IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
        dst: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        domain: DomainId(1),
        kind: NatKind::Source,
    };

    #[test]
    fn a_flood_forgets_the_oldest_and_keeps_its_bound() {
        let mut fragments = Fragments::new();
        let now = Instant::from_secs(5);
        for id in 0..1_000 {
            fragments.remember(key(id), ROUTE, now);
            fragments.remember(key(id), ROUTE, now);
        }
        assert_eq!(fragments.records.len(), FRAGMENTS_MAX);
        let kept = (0..1_000).filter(|id| fragments.find(&key(*id), now).is_some());
        let last: Vec<u32> = (1_000 - FRAGMENTS_MAX as u32..1_000).collect();
        assert_eq!(kept.collect::<Vec<_>>(), last);
    }

    #[test]
    fn a_fragment_is_forgotten_after_the_timeout() {
        let mut fragments = Fragments::new();
        fragments.remember(key(1), ROUTE, Instant::from_secs(5));
        assert_eq!(fragments.find(&key(1), Instant::from_secs(35)), Some(ROUTE));
        assert_eq!(fragments.find(&key(1), Instant::from_secs(36)), None);
        assert_eq!(fragments.find(&key(2), Instant::from_secs(5)), None);
    }
}
