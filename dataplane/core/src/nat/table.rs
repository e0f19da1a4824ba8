//! One shard of the NAT: mappings, sessions, their indices and their lists by age.
//!
//! Everything here happens under the shard's lock, takes the time as an argument and allocates
//! only when a session or mapping is added. A session is found by its 4-tuple as either side sees
//! it, in one lookup; only a packet without a session asks for a mapping. The session of a
//! published port has a mapping of its own, because it lives in the shard of its remote.
//!
//! By age they are in `ages.rs`.

mod ages;

use std::net::IpAddr;

use hashbrown::HashTable;

use crate::addr::{DomainId, L4Addr};
use crate::headers::TcpFlags;
use crate::time::Instant;

use super::account::Accounts;
use super::hash::HashKey;
use super::index::SlotIndex;
use super::journal::Journal;
use super::packet::End;
use super::session::{Class, Direction, Mapping, NatProtocol, Session, SessionState, TcpState};
use super::shared::Counts;
use super::slab::Slab;
use super::usage::Pools;
use super::{Dependence, NatConfig};
use ages::List;

/// What a dynamic mapping is found by from inside: endpoint-independent, one for all remotes, but
/// one for each external address, because the route chooses the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InsideKey {
    pub protocol: NatProtocol,
    pub domain: DomainId,
    pub inside: L4Addr,
    pub external: IpAddr,
    /// What the mapping depends on of the remote: 0 for nothing.
    pub scope: u32,
}

/// The two ends of a session, as the inside sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FlowKey {
    pub protocol: NatProtocol,
    pub domain: DomainId,
    pub inside: L4Addr,
    pub remote: L4Addr,
}

/// Which session of a flow a lookup is after. From inside, a flow may have one for each external
/// address; and a port may be published while dynamic sessions still hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// That of a published port.
    Published,
    /// The one with an external port on this address.
    Dynamic(IpAddr),
}

impl Origin {
    #[inline]
    fn made(self, mapping: &Mapping) -> bool {
        match self {
            Self::Published => mapping.rule.is_some(),
            Self::Dynamic(external) => mapping.rule.is_none() && mapping.external.ip == external,
        }
    }
}

/// What a packet does to the session that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub direction: Direction,
    /// No flags for UDP and ICMP.
    pub flags: TcpFlags,
    /// Of a segment from inside its acknowledgment number, of one from outside its sequence number.
    pub number: u32,
    /// Whether it keeps a session that is not TCP's alive.
    pub refreshes: bool,
    /// Bytes of the IP packet.
    pub size: u32,
    pub now: Instant,
}

#[derive(Clone, Debug)]
pub(super) struct NatShard {
    key: HashKey,
    sessions: Slab<Session>,
    mappings: Slab<Mapping>,
    /// Dynamic mappings.
    mappings_by_inside: SlotIndex,
    mappings_by_external: SlotIndex,
    /// Sessions of both kinds.
    sessions_by_inside: SlotIndex,
    sessions_by_external: SlotIndex,
    lists: [List; Class::ALL.len()],
    /// Remotes of mappings that let in whoever's address was spoken to.
    contacts: HashTable<Contact>,
    /// Only where sessions are to survive the process.
    journal: Option<Box<Journal>>,
    pub(super) fragments: super::fragment::Fragments,
    pub(super) accounts: Accounts,
    /// External ports that dynamic mappings hold.
    pub(super) pools: Pools,
    /// Dynamic mappings whose external port another one held when they were made.
    sharers: usize,
}

/// A remote address that a mapping of address-dependent filtering has sessions with.
#[derive(Clone, Copy, Debug)]
struct Contact {
    mapping: u32,
    remote: IpAddr,
    sessions: u32,
}

/// What a dynamic mapping has of its external port.
enum Holding {
    /// All of it.
    Sole,
    /// A part: another one has it, too.
    Shared,
    /// Nothing: it leads to itself, on a routed network, and takes no port of a pool.
    None,
}

impl NatShard {
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            sessions: Slab::new(),
            mappings: Slab::new(),
            mappings_by_inside: SlotIndex::default(),
            mappings_by_external: SlotIndex::default(),
            sessions_by_inside: SlotIndex::default(),
            sessions_by_external: SlotIndex::default(),
            lists: [List::EMPTY; Class::ALL.len()],
            contacts: HashTable::new(),
            journal: None,
            fragments: super::fragment::Fragments::new(),
            accounts: Accounts::default(),
            pools: Pools::default(),
            sharers: 0,
        }
    }

    /// What a mapping that depends on the remote as `dependence` says is told apart by. A keyed
    /// hash stands for the remote: should two collide, they share a mapping.
    pub fn scope(&self, dependence: Dependence, remote: L4Addr) -> u32 {
        let hash = match dependence {
            Dependence::EndpointIndependent => 0,
            Dependence::AddressDependent => self.key.ip(remote.ip),
            Dependence::AddressAndPortDependent => self.key.l4(remote),
        };
        Mapping::scope_of(dependence, hash)
    }

    /// Whether a mapping lets in a remote that it has no session with.
    pub fn admits(&self, mapping: u32, remote: IpAddr) -> bool {
        match self.mappings[mapping].filtering {
            Dependence::EndpointIndependent => true,
            Dependence::AddressAndPortDependent => false,
            Dependence::AddressDependent => {
                let hash = self.key.contact(mapping, remote);
                let same =
                    |contact: &Contact| (contact.mapping, contact.remote) == (mapping, remote);
                self.contacts.find(hash, same).is_some()
            }
        }
    }

    /// What decides which free port an inside gets when its own is taken.
    pub fn choice_seed(&self, key: &InsideKey) -> u64 {
        self.key.inside(key)
    }

    /// A dynamic mapping of an inside address and port: the only one, unless ports are shared.
    #[inline]
    pub fn mapping_by_inside(&self, wanted: &InsideKey) -> Option<u32> {
        let hash = self.key.inside(wanted);
        let found = |index: u32| holds(&self.mappings[index], wanted);
        self.mappings_by_inside.find(hash, found)
    }

    /// A dynamic mapping that holds an external address and port: the only one, unless ports are
    /// shared.
    #[inline]
    pub fn mapping_by_external(&self, protocol: NatProtocol, external: L4Addr) -> Option<u32> {
        let hash = self.key.external(protocol, external);
        let found = |index: u32| {
            let mapping = &self.mappings[index];
            mapping.protocol == protocol && mapping.external == external
        };
        self.mappings_by_external.find(hash, found)
    }

    /// The dynamic mapping between an inside and an external address and port.
    pub fn mapping_between(&self, wanted: &InsideKey, external: L4Addr) -> Option<u32> {
        let hash = self.key.inside(wanted);
        let found = |index: u32| {
            let mapping = &self.mappings[index];
            mapping.external == external && holds(mapping, wanted)
        };
        self.mappings_by_inside.find(hash, found)
    }

    /// The mapping at an index that a lookup returned under the same lock.
    pub fn mapping(&self, index: u32) -> &Mapping {
        &self.mappings[index]
    }

    /// The session of a flow, as a packet from inside shows it.
    #[inline]
    pub fn session_by_inside(&self, wanted: &FlowKey, origin: Origin) -> Option<u32> {
        let hash = self.key.flow(wanted);
        let found = |index: u32| {
            let (session, mapping) = self.at(index);
            is_of(session, mapping, wanted) && origin.made(mapping)
        };
        self.sessions_by_inside.find(hash, found)
    }

    /// The session of a flow that knows its way out in the picture of this stamp, and the route. At
    /// most one does: a picture has one route to a remote, and so one external address for it.
    #[inline(always)]
    pub fn session_leaving(
        &self,
        protocol: NatProtocol,
        domain: DomainId,
        (inside, remote): (End<'_>, End<'_>),
        stamp: u32,
    ) -> Option<(u32, u16)> {
        let hash = self.key.flow_of(protocol, domain, inside, remote);
        for index in self.sessions_by_inside.under(hash) {
            let (session, mapping) = self.at(index);
            if let Some(route) = session.way_out(stamp)
                && (mapping.protocol, mapping.domain) == (protocol, domain)
                && inside.is(&mapping.inside)
                && remote.is(&session.remote)
            {
                return Some((index, route));
            }
        }
        None
    }

    /// The session between an external port and a remote whose packets are let in, in the picture of
    /// this stamp. At most one has been found to be.
    #[inline(always)]
    pub fn session_entering(
        &self,
        protocol: NatProtocol,
        (external, remote): (End<'_>, End<'_>),
        stamp: u32,
    ) -> Option<u32> {
        let hash = self.key.pair_of(protocol, external, remote);
        for index in self.sessions_by_external.under(hash) {
            let (session, mapping) = self.at(index);
            if session.has_way_in(stamp)
                && mapping.protocol == protocol
                && external.is(&mapping.external)
                && remote.is(&session.remote)
            {
                return Some(index);
            }
        }
        None
    }

    /// The session at an index, to take note of its ways.
    #[inline]
    pub fn session_mut(&mut self, session: u32) -> &mut Session {
        &mut self.sessions[session]
    }

    /// The session of a flow, as a packet from outside shows it.
    #[inline]
    pub fn session_by_external(
        &self,
        protocol: NatProtocol,
        external: L4Addr,
        remote: L4Addr,
        origin: Origin,
    ) -> Option<u32> {
        let hash = self.key.pair(protocol, external, remote);
        let found = |index: u32| {
            let (session, mapping) = self.at(index);
            session.remote == remote
                && mapping.external == external
                && mapping.protocol == protocol
                && origin.made(mapping)
        };
        self.sessions_by_external.find(hash, found)
    }

    /// The session at an index that a lookup returned under the same lock.
    #[inline(always)]
    pub fn at(&self, session: u32) -> (&Session, &Mapping) {
        let session = &self.sessions[session];
        (session, &self.mappings[session.mapping])
    }

    /// Every session with its mapping.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Session, &Mapping)> {
        self.sessions
            .iter()
            .map(|(index, session)| (index, session, &self.mappings[session.mapping]))
    }

    /// Makes the accounts zero.
    pub fn zero_accounts(&mut self) {
        let live = self.sessions.iter();
        let live = live.map(|(_, session)| (self.mappings[session.mapping].account(), session));
        self.accounts.zero(live);
    }

    /// Mappings of any kind, for gauges.
    pub fn mapping_count(&self) -> usize {
        self.mappings.len()
    }

    /// Sessions, for gauges.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Adds a dynamic mapping, which has to get a session before the lock is released.
    pub fn add_mapping(&mut self, mapping: Mapping) -> u32 {
        match self.holding(&mapping) {
            Holding::Sole => self.pools.take(mapping.protocol, mapping.external.ip),
            Holding::Shared => self.sharers += 1,
            Holding::None => {}
        }
        let inside = self.key.inside_of(&mapping);
        let external = self.key.external(mapping.protocol, mapping.external);
        let index = self.mappings.insert(mapping);
        self.mappings_by_inside.insert(inside, index);
        self.mappings_by_external.insert(external, index);
        index
    }

    /// What a dynamic mapping that is not in the table has of its external port there.
    fn holding(&self, mapping: &Mapping) -> Holding {
        let (protocol, external) = (mapping.protocol, mapping.external);
        if self.mapping_by_external(protocol, external).is_some() {
            Holding::Shared
        } else if external == mapping.inside {
            Holding::None
        } else {
            Holding::Sole
        }
    }

    /// Whether some dynamic mappings share an external port.
    #[inline]
    pub fn shares_ports(&self) -> bool {
        self.sharers != 0
    }

    /// Adds a session to a mapping.
    pub fn add_session(&mut self, mapping: u32, remote: L4Addr, event: Event) -> u32 {
        let owner = &self.mappings[mapping];
        let protocol = owner.protocol;
        self.accounts.open(owner.account());
        self.put_session(Session::new(mapping, protocol, remote, event))
    }

    /// Puts a session that belongs to a mapping into the tables, as the one heard last. Its account
    /// is the caller's.
    #[inline]
    pub fn put_session(&mut self, session: Session) -> u32 {
        let (mapping, remote) = (session.mapping, session.remote);
        let owner = &mut self.mappings[mapping];
        owner.sessions += 1;
        if owner.filtering == Dependence::AddressDependent {
            self.meet(mapping, remote.ip);
        }
        let (inside, external) = self.key.session_of(&session, &self.mappings[mapping]);
        let index = self.sessions.insert(session);
        self.link(index);
        self.note(index);
        self.sessions_by_inside.insert(inside, index);
        self.sessions_by_external.insert(external, index);
        index
    }

    /// Adds a session of a published port, with the mapping that is its own.
    pub fn add_published(&mut self, mapping: Mapping, remote: L4Addr, event: Event) -> u32 {
        let mapping = self.add_own_mapping(mapping);
        self.add_session(mapping, remote, event)
    }

    /// Adds the mapping of a session of a published port, by which nothing else is found.
    pub fn add_own_mapping(&mut self, mapping: Mapping) -> u32 {
        self.mappings.insert(mapping)
    }

    /// From now on, notes which sessions have changed.
    pub fn keep_journal(&mut self) {
        self.journal.get_or_insert_default();
    }

    pub fn journal_mut(&mut self) -> Option<&mut Journal> {
        self.journal.as_deref_mut()
    }

    /// Notes that a session has changed, where that is of interest.
    #[inline]
    fn note(&mut self, session: u32) {
        if let Some(journal) = &mut self.journal {
            journal.note(session);
        }
    }

    /// The session in a slot, with its mapping, if there is one.
    pub fn get(&self, index: u32) -> Option<(&Session, &Mapping)> {
        let session = self.sessions.get(index)?;
        Some((session, &self.mappings[session.mapping]))
    }

    /// Slots of sessions, empty ones included.
    pub fn slot_count(&self) -> u32 {
        self.sessions.slot_count()
    }

    /// Takes note of a packet. Writes the list at most once per second, and for a TCP session that
    /// changes its class.
    #[inline(always)]
    pub fn touch(&mut self, index: u32, event: Event) {
        let session = &mut self.sessions[index];
        session.count(event);
        if !event.refreshes && !session.class.is_tcp() {
            return;
        }
        let second = event.now.second();
        let mut class = session.class;
        if class.is_tcp() {
            if !session.believes(event) {
                return;
            }
            let before = session.tcp;
            session.tcp = session.hear(before.next(event.direction, event.flags), event);
            if session.tcp != before
                && let Some(journal) = &mut self.journal
            {
                journal.note(index);
            }
            class = Class::of_tcp(session.tcp);
            let closing = |state: TcpState| state.phase() == SessionState::Closing;
            if closing(before) && closing(session.tcp) {
                return;
            }
        }
        if class == session.class && second <= session.last_seen {
            return;
        }
        self.refresh(index, class, second);
    }

    /// Puts a session that was heard in this second at the new end of the list of `class`.
    #[inline(never)]
    fn refresh(&mut self, index: u32, class: Class, second: u32) {
        self.unlink(index);
        let session = &mut self.sessions[index];
        session.last_seen = session.last_seen.max(second);
        session.class = class;
        self.link(index);
        if let Some(journal) = &mut self.journal {
            journal.heard(index, class, second);
        }
    }

    /// Makes an expired session that its own inside host uses again a new one, in place.
    pub fn renew(&mut self, index: u32, event: Event) {
        self.unlink(index);
        let mapping = &self.mappings[self.sessions[index].mapping];
        let (protocol, account) = (mapping.protocol, mapping.account());
        let session = &mut self.sessions[index];
        self.accounts.close(account, session);
        self.accounts.open(account);
        *session = Session::new(session.mapping, protocol, session.remote, event);
        self.link(index);
        self.note(index);
    }

    /// Removes a session, and its mapping if it was the last.
    pub fn remove(&mut self, index: u32, counts: &Counts) {
        let session = self.sessions[index];
        let mapping = self.mappings[session.mapping];
        self.accounts.close(mapping.account(), &session);
        self.unlink(index);
        let (inside, external) = self.key.session_of(&session, &mapping);
        self.sessions_by_inside.remove(inside, index);
        self.sessions_by_external.remove(external, index);
        self.sessions.remove(index);
        self.note(index);
        if mapping.filtering == Dependence::AddressDependent {
            self.part(session.mapping, session.remote.ip);
        }
        let left = &mut self.mappings[session.mapping].sessions;
        *left -= 1;
        if *left == 0 {
            self.remove_mapping(session.mapping);
        }
        counts.release(mapping.domain, mapping.inside.ip);
    }

    /// Removes the sessions that `condemned` names; how many.
    pub fn remove_where(
        &mut self,
        mut condemned: impl FnMut(&Session, &Mapping) -> bool,
        counts: &Counts,
    ) -> usize {
        let found: Vec<u32> = self
            .iter()
            .filter(|(_, session, mapping)| condemned(session, mapping))
            .map(|(index, ..)| index)
            .collect();
        for index in &found {
            self.remove(*index, counts);
        }
        found.len()
    }

    /// Whether the session may still carry a packet at `now`.
    #[inline]
    pub fn alive(&self, session: u32, now: Instant, config: &NatConfig) -> bool {
        !self.sessions[session].expired(now, &config.timeouts)
    }

    /// Counts a session of a mapping with a remote address.
    fn meet(&mut self, mapping: u32, remote: IpAddr) {
        let key = self.key;
        let same = |contact: &Contact| (contact.mapping, contact.remote) == (mapping, remote);
        let hash = |contact: &Contact| key.contact(contact.mapping, contact.remote);
        self.contacts
            .entry(key.contact(mapping, remote), same, hash)
            .or_insert(Contact {
                mapping,
                remote,
                sessions: 0,
            })
            .get_mut()
            .sessions += 1;
    }

    /// Forgets a session of a mapping with a remote address.
    fn part(&mut self, mapping: u32, remote: IpAddr) {
        let same = |contact: &Contact| (contact.mapping, contact.remote) == (mapping, remote);
        let hash = self.key.contact(mapping, remote);
        if let Ok(mut entry) = self.contacts.find_entry(hash, same) {
            entry.get_mut().sessions -= 1;
            if entry.get().sessions == 0 {
                entry.remove();
            }
        }
    }

    /// Removes a mapping without sessions.
    fn remove_mapping(&mut self, index: u32) {
        let mapping = self.mappings[index];
        if mapping.rule.is_none() {
            let inside = self.key.inside_of(&mapping);
            self.mappings_by_inside.remove(inside, index);
            let external = self.key.external(mapping.protocol, mapping.external);
            self.mappings_by_external.remove(external, index);
            match self.holding(&mapping) {
                Holding::Sole => self.pools.give_back(mapping.protocol, mapping.external.ip),
                Holding::Shared => self.sharers -= 1,
                Holding::None => {}
            }
        }
        self.mappings.remove(index);
    }
}

/// Whether a mapping is the one that is wanted.
#[inline]
fn holds(mapping: &Mapping, wanted: &InsideKey) -> bool {
    (mapping.protocol, mapping.domain) == (wanted.protocol, wanted.domain)
        && mapping.inside == wanted.inside
        && mapping.external.ip == wanted.external
        && mapping.scope == wanted.scope
}

/// Whether a session is of the flow that is wanted.
#[inline]
fn is_of(session: &Session, mapping: &Mapping, wanted: &FlowKey) -> bool {
    (mapping.protocol, mapping.domain) == (wanted.protocol, wanted.domain)
        && mapping.inside == wanted.inside
        && session.remote == wanted.remote
}
