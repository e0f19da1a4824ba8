//! Sessions that outlive the process: what is saved of them, and how they come back.
//!
//! # Theory of operation
//! With [`Nat::keep_journal`] every shard notes which of its sessions have changed (`journal.rs`). The
//! control plane asks for those a few times a second ([`Nat::save_changed`]), and now and then for
//! all ([`Nat::save_all`]), under one shard's lock at a time and for a bounded number of sessions; a
//! [`SlotId`] says which earlier record of a session a later one replaces. At the next start
//! [`Nat::restore`] puts back, before the first frame, what still fits the topology: its endpoint,
//! external address and port, or published port are there, and its time is not over.
//!
//! A session comes back with what decides about its packets and its life. The number that its inside
//! waits for does not come back, for it changes with every segment: until the inside has acknowledged
//! something, any RST is believed, as it is of a connection that is seen for the first time.

use crate::addr::{DomainId, L4Addr};
use crate::time::Instant;
use crate::topology::Topology;

use super::pool::shard_of_port;
use super::session::{Class, Direction, Mapping, NatProtocol, Session, TcpState};
use super::shared::Nat;
use super::table::{FlowKey, InsideKey, NatShard, Origin};
use super::{Dependence, SHARDS};

/// Sessions that are read under one lock of a shard: some tens of microseconds.
const SAVED_AT_ONCE_MAX: usize = 256;

/// Where a session is in the tables of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

impl SlotId {
    const fn new(shard: usize, session: u32) -> Self {
        Self((shard as u64) << 32 | session as u64)
    }
}

/// A session as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// The network of the inside address.
    pub domain: DomainId,
    /// TCP, UDP or ICMP.
    pub protocol: NatProtocol,
    /// The inside address and port.
    pub inside: L4Addr,
    /// The external address and port that the remote sees.
    pub external: L4Addr,
    /// The remote address and port; port 0 for ICMP.
    pub remote: L4Addr,
    /// The published port that it came by.
    pub rule: Option<u32>,
    /// Which of the rule's targets it was led to; 0 without a rule.
    pub target: u16,
    /// On what of the remote its external port depends.
    pub mapping: Dependence,
    /// Whom its external port lets in besides.
    pub filtering: Dependence,
    /// What was seen of a TCP connection, as bits of ours.
    pub tcp: u8,
    /// When its first packet came.
    pub created: Instant,
    /// When its last packet came.
    pub last_seen: Instant,
    /// Packets to the remote.
    pub packets_out: u64,
    /// Packets from the remote.
    pub packets_in: u64,
    /// Bytes of IP packets to the remote.
    pub bytes_out: u64,
    /// Bytes of IP packets from the remote.
    pub bytes_in: u64,
}

/// How far [`Nat::save_all`] has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct SaveCursor {
    shard: usize,
    session: u32,
}

/// What has become of the sessions that were to be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// They are in the tables.
    pub restored: usize,
    /// Their time was over.
    pub expired: usize,
    /// Their endpoint, address, port or rule is not there any more, or somebody else's.
    pub unfit: usize,
}

impl Nat {
    /// From now on, notes which sessions have changed.
    pub fn keep_journal(&self) {
        for shard in 0..SHARDS {
            self.shard(shard).keep_journal();
        }
    }

    /// Tells `save` of up to `budget` sessions that have changed: how they are now, or that they have
    /// ended. How many it were; fewer than `budget` when no more have changed.
    pub fn save_changed(
        &self,
        budget: usize,
        mut save: impl FnMut(SlotId, Option<SavedSession>),
    ) -> usize {
        let mut told = 0;
        for shard in 0..SHARDS {
            loop {
                let at_once = SAVED_AT_ONCE_MAX.min(budget - told);
                let taken = self.shard(shard).save_changed(at_once, |session, saved| {
                    save(SlotId::new(shard, session), saved);
                });
                told += taken;
                if taken < at_once || at_once == 0 {
                    break;
                }
            }
        }
        told
    }

    /// Tells `save` of every session, from where `cursor` stands: a few hundred at each call. Whether
    /// there may be more.
    pub fn save_all(
        &self,
        cursor: &mut SaveCursor,
        mut save: impl FnMut(SlotId, SavedSession),
    ) -> bool {
        if cursor.shard == SHARDS {
            return false;
        }
        let shard = cursor.shard;
        let next = self.shard(shard).save_range(
            cursor.session,
            SAVED_AT_ONCE_MAX as u32,
            |session, saved| save(SlotId::new(shard, session), saved),
        );
        *cursor = match next {
            Some(session) => SaveCursor { shard, session },
            None => SaveCursor {
                shard: shard + 1,
                session: 0,
            },
        };
        true
    }

    /// Puts sessions back that fit the topology. Call before the first frame.
    pub fn restore(
        &self,
        topology: &Topology,
        mut sessions: Vec<SavedSession>,
        now: Instant,
    ) -> Restored {
        // In the order in which they were heard, which the lists by age are in.
        sessions.sort_by_key(|saved| saved.last_seen);
        let mut done = Restored::default();
        for saved in &sessions {
            let class = Class::of(saved.protocol, saved.remote, TcpState::restored(saved.tcp));
            if class.expired(saved.last_seen.second(), now, &topology.nat.timeouts) {
                done.expired += 1;
            } else if fits(topology, saved) && self.put_back(topology, saved) {
                done.restored += 1;
            } else {
                done.unfit += 1;
            }
        }
        done
    }

    fn put_back(&self, topology: &Topology, saved: &SavedSession) -> bool {
        let shard = match saved.rule {
            Some(_) => self.shard_of_remote(saved.remote),
            None => shard_of_port(saved.external.l4_port),
        };
        let counts = self.counts();
        let mut table = self.shard(shard);
        let wanted = table.place_of(topology, saved);
        if wanted.is_none()
            || counts
                .reserve(saved.domain, saved.inside.ip, &topology.nat)
                .is_err()
        {
            return false;
        }
        table.put_back(saved, wanted.flatten());
        true
    }
}

/// Whether what a session needs of the topology is there.
fn fits(topology: &Topology, saved: &SavedSession) -> bool {
    let (inside, external) = (saved.inside, saved.external);
    let family = inside.ip.is_ipv6();
    let Some(domain) = topology.domain(saved.domain) else {
        return false;
    };
    if external.ip.is_ipv6() != family
        || saved.remote.ip.is_ipv6() != family
        || domain.internal
        || !domain.neighbours.contains_key(&inside.ip)
    {
        return false;
    }
    let routed = domain.is_routed(inside.ip);
    let hosts = topology.local_addresses.contains(&external.ip);
    let statics = &topology.statics;
    let transport = saved.protocol.transport();
    let Some(rule) = saved.rule else {
        if routed {
            return external == inside;
        }
        let published = transport.and_then(|transport| statics.by_external(transport, external));
        return hosts
            && published.is_none()
            && topology.nat.port_range.contains(&external.l4_port.0)
            && shard_of_port(external.l4_port) == shard_of_port(inside.l4_port);
    };
    let Some(transport) = transport else {
        return false;
    };
    if routed && external == inside {
        let opens = statics.opens(transport, saved.domain, inside, saved.remote.ip);
        return opens.is_some();
    }
    let found = statics.by_external(transport, external);
    let found = found.filter(|found| found.id == rule && found.admits(saved.remote.ip));
    let leads_on = found.is_some_and(|found| {
        let target = found.target(saved.target);
        target.is_some_and(|target| {
            let inside = target.inside_of(found, external.l4_port);
            (target.domain, inside) == (saved.domain, saved.inside)
        })
    });
    hosts && leads_on
}

impl NatShard {
    /// The mapping that a saved session belongs to, if it is there already: `Some(None)` when it is
    /// to be made, and `None` when the way is another session's.
    fn place_of(&self, topology: &Topology, saved: &SavedSession) -> Option<Option<u32>> {
        let origin = match saved.rule {
            Some(_) => Origin::Published,
            None => Origin::Dynamic(saved.external.ip),
        };
        let flow = FlowKey {
            protocol: saved.protocol,
            domain: saved.domain,
            inside: saved.inside,
            remote: saved.remote,
        };
        let (protocol, external) = (saved.protocol, saved.external);
        let taken = self.session_by_inside(&flow, origin).is_some()
            || self
                .session_by_external(protocol, external, saved.remote, origin)
                .is_some();
        if taken {
            return None;
        }
        if saved.rule.is_some() {
            return Some(None);
        }
        let key = InsideKey {
            protocol,
            domain: saved.domain,
            inside: saved.inside,
            external: external.ip,
            scope: self.scope(saved.mapping, saved.remote),
        };
        if let Some(mapping) = self.mapping_between(&key, external) {
            return Some(Some(mapping));
        }
        // As when it was made: one inside has one external port, and one external port one inside,
        // unless ports are shared.
        let alone = self.mapping_by_inside(&key).is_none()
            && self.mapping_by_external(protocol, external).is_none();
        (alone || topology.nat.share_ports).then_some(None)
    }

    fn put_back(&mut self, saved: &SavedSession, mapping: Option<u32>) {
        let made = || Mapping {
            inside: saved.inside,
            external: saved.external,
            domain: saved.domain,
            protocol: saved.protocol,
            rule: saved.rule,
            target: saved.target,
            scope: 0,
            filtering: saved.filtering,
            sessions: 0,
        };
        let mapping = match (mapping, saved.rule) {
            (Some(mapping), _) => mapping,
            (None, None) => {
                let scope = self.scope(saved.mapping, saved.remote);
                self.add_mapping(Mapping { scope, ..made() })
            }
            (None, Some(_)) => self.add_own_mapping(made()),
        };
        self.accounts.adopt(self.mapping(mapping).account());
        self.put_session(Session::restored(mapping, saved));
    }

    fn save_changed(
        &mut self,
        max: usize,
        mut save: impl FnMut(u32, Option<SavedSession>),
    ) -> usize {
        for told in 0..max {
            let Some(session) = self.journal_mut().and_then(|journal| journal.take()) else {
                return told;
            };
            let saved = self.saved(session);
            save(session, saved);
        }
        max
    }

    /// Saves the sessions of `count` slots from `first` on; the slot that comes next, if any does.
    fn save_range(
        &mut self,
        first: u32,
        count: u32,
        mut save: impl FnMut(u32, SavedSession),
    ) -> Option<u32> {
        let end = first.saturating_add(count).min(self.slot_count());
        for session in first..end {
            if let Some(saved) = self.saved(session) {
                save(session, saved);
            }
        }
        (end < self.slot_count()).then_some(end)
    }

    /// A session as it is kept, which is noted; `None` when the slot is empty.
    fn saved(&mut self, index: u32) -> Option<SavedSession> {
        let (session, mapping) = self.get(index)?;
        let (last_seen, saved) = (session.last_seen, SavedSession::new(session, mapping));
        if let Some(journal) = self.journal_mut() {
            journal.saved(index, last_seen);
        }
        Some(saved)
    }
}

impl SavedSession {
    fn new(session: &Session, mapping: &Mapping) -> Self {
        let second = |second: u32| Instant::from_secs(u64::from(second));
        Self {
            domain: mapping.domain,
            protocol: mapping.protocol,
            inside: mapping.inside,
            external: mapping.external,
            remote: session.remote,
            rule: mapping.rule,
            target: mapping.target,
            mapping: mapping.dependence(),
            filtering: mapping.filtering,
            tcp: session.tcp.bits(),
            created: second(session.created),
            last_seen: second(session.last_seen),
            packets_out: session.packets(Direction::Out),
            packets_in: session.packets(Direction::In),
            bytes_out: session.bytes(Direction::Out),
            bytes_in: session.bytes(Direction::In),
        }
    }
}
