//! The forwarding database (CAM table): which port each station was last heard on.
//!
//! # Theory of operation
//! One [`Fdb`] serves all workers. The *table of record* is a sharded concurrent map from
//! [`FdbKey`] to `FdbEntry`; whoever writes it holds a shard's lock. The *index* (`index.rs`)
//! repeats it in atomic words: a frame whose stations are known reads only that, takes no lock and
//! writes nothing shared. Each worker has an [`FdbView`], which says where the index is.
//!
//! *Coherence.* A word of the index is written under the lock of its key's shard, so the two never
//! disagree for longer than a write takes, and a move is seen by every worker at once. What the
//! index does not have is asked of the table of record. The epoch grows with a deletion, a flush
//! and a new index; a batch that begins after it has grown sees what it speaks of.
//!
//! *Ageing.* Learning refreshes an entry that is older than a sixteenth of the ageing time (at
//! least a second): a busy station costs at most 16 shared writes per ageing time. Lookup never refreshes and checks the age itself, so an entry is dead the
//! moment its time is over; [`Fdb::sweep`] only returns its memory.
//!
//! *Flushing a port* bumps the port's generation: entries of an older generation are dead.
//!
//! *Kinds.* What was learned is `Dynamic`. Commands set entries of three other kinds ([`FdbKind`]):
//! a sticky one does not move, a static one neither moves nor ages, a local one is an address of the
//! switch itself. Static and local entries outlive flushes of what was learned, and count for no
//! port's share. A frame from another port whose source has an entry that does not move is
//! forwarded, and changes nothing. Local entries are in the table of record alone, so the index
//! always says where a frame goes.
//!
//! Limits: [`Limits`], and a number for each port. At a limit a station is not learned and its
//! frames are still forwarded (flooded, where they are addressed to it).

mod entry;
mod index;
mod view;
mod vlans;

use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Arc, PoisonError, RwLock};

use ahash::RandomState;
use crossbeam::utils::CachePadded;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::time::Instant;
use crate::topology::PORTS_MAX;

use entry::{FdbEntry, age, next_generation};
pub use entry::{FdbKey, FdbKind, Place};
use index::Index;
pub use view::{FdbView, MOVES_PER_SECOND_MAX};
use vlans::VlanNumbers;

/// Locks of the table of record. A sweep holds one at a time: at a million entries each covers 4,000.
const SHARDS: usize = 256;

/// How many stations may be learned.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// On all ports together.
    pub entries_max: usize,
    /// On one port, so that a flooder does not deny learning to the others.
    pub entries_per_port_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_max: 1_048_576,
            entries_per_port_max: 262_144,
        }
    }
}

/// What learning a source MAC came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// First heard, or heard again after its entry had died.
    New,
    /// Known on this port.
    Known,
    /// Moved here from another port.
    Moved {
        /// Where it was before.
        from: PortId,
    },
    /// Not learned: the table or the port's share of it is full.
    Full,
    /// Not learned: as many stations are on the port as its MAC limit allows.
    Limited,
    /// Not learned: it is known on another port and moves faster than may be.
    MoveRefused,
    /// Not learned: the port is not part of a bridge domain, or the MAC is the gateway's.
    Exempt,
    /// Not learned: learning is off on the port.
    Off,
    /// Not learned: an entry that does not move has the station on another port.
    Pinned {
        /// Where it is.
        at: PortId,
    },
}

/// There is no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The shared table.
///
/// Lock order: a shard of `entries`, then `index`.
#[derive(Debug)]
pub struct Fdb {
    /// The table of record.
    entries: DashMap<FdbKey, Record, RandomState>,
    /// Replaced as a whole when it is worn; read by workers through an `Arc` of their own.
    index: RwLock<Arc<Index>>,
    vlans: VlanNumbers,
    seed: u64,
    len: CachePadded<AtomicUsize>,
    /// Entries that outlive a flush of what was learned.
    permanent: AtomicUsize,
    /// Bumped by deletions, flushes and a new index. Stored with `Release` after the change it speaks
    /// of; its partner is the `Acquire` load in [`FdbView::begin_batch`].
    epoch: CachePadded<AtomicU64>,
    /// By port: {generation 16, unused 16, learned stations of this generation 32}.
    ports: Box<[AtomicU64]>,
    /// By port: what only learning asks.
    shares: Box<[Share]>,
    limits: Limits,
}

/// How many stations may be learned on a port.
#[derive(Debug)]
struct Share {
    /// [`Share::NO_LIMIT`] where only the limit of every port holds.
    limit: AtomicU32,
    /// Frames whose source was not learned for that limit.
    refused: AtomicU64,
}

impl Share {
    const NO_LIMIT: u32 = u32::MAX;
}

/// How many stations a port has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortUsage {
    /// Learned ones, sticky ones among them; dead ones that no sweep has met included.
    pub stations: u32,
    /// Frames whose source was not learned for the port's MAC limit.
    pub refused: u64,
}

/// What the table of record has of a station.
#[derive(Clone, Copy, Debug)]
struct Record {
    entry: FdbEntry,
    /// How often it has moved, as far as a number goes.
    moves: u32,
}

/// Which entries a flush forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Those that were learned, sticky ones among them.
    Learned,
    /// All, those that commands have set among them.
    All,
}

/// One live entry, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The bridge domain.
    pub domain: DomainId,
    /// The VLAN, 0 in a transparent domain.
    pub vlan: VlanId,
    /// The station.
    pub mac: MacAddr,
    /// Where it was last heard.
    pub port: PortId,
    /// Time since the entry was last refreshed, or set.
    pub age: Duration,
    /// How it came.
    pub kind: FdbKind,
    /// How often the station has moved from port to port.
    pub moves: u32,
}

impl Fdb {
    /// An empty table. `seed` fixes the hash, so that a simulation repeats; a running switch
    /// takes it from the system's randomness, so that stations cannot choose colliding MACs.
    pub fn new(limits: Limits, seed: u64) -> Arc<Self> {
        let hasher = RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0x0ca5_e3a1);
        Arc::new(Self {
            entries: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS),
            index: RwLock::new(Arc::new(Index::new(limits.entries_max, seed))),
            vlans: VlanNumbers::new(),
            seed,
            len: CachePadded::new(AtomicUsize::new(0)),
            permanent: AtomicUsize::new(0),
            epoch: CachePadded::new(AtomicU64::new(1)),
            ports: (0..PORTS_MAX).map(|_| AtomicU64::new(0)).collect(),
            shares: (0..PORTS_MAX)
                .map(|_| Share {
                    limit: AtomicU32::new(Share::NO_LIMIT),
                    refused: AtomicU64::new(0),
                })
                .collect(),
            limits,
        })
    }

    /// Entries held, dead ones that no sweep has met included.
    #[inline]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether no entry is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The limits given at creation.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Has stations of a domain's VLANs found without a lock, as those of other domains are. Allocates
    /// the first time; not for a worker.
    pub fn open_vlans(&self, domain: DomainId) {
        self.vlans.open(domain);
    }

    /// Sets how many stations may be learned on a port; `None` for as many as on every other. What
    /// is learned already stays until it ages.
    pub fn limit_port(&self, port: PortId, limit: Option<u32>) {
        if let Some(share) = self.shares.get(port.index()) {
            let limit = limit.unwrap_or(Share::NO_LIMIT);
            share.limit.store(limit, Ordering::Relaxed);
        }
    }

    /// How many stations a port has.
    pub fn usage_of(&self, port: PortId) -> PortUsage {
        let state = self.ports.get(port.index());
        let share = self.shares.get(port.index());
        PortUsage {
            stations: state.map_or(0, |state| state.load(Ordering::Relaxed) as u32),
            refused: share.map_or(0, |share| share.refused.load(Ordering::Relaxed)),
        }
    }

    /// The live entries of `domain`, in no particular order. Holds one shard's lock at a time.
    pub fn rows(&self, domain: DomainId, now: Instant, ageing: Duration) -> Vec<FdbRow> {
        let mut rows = Vec::new();
        for item in &self.entries {
            let (key, Record { entry, moves }) = (*item.key(), *item.value());
            if key.domain() == domain && self.alive(entry, now, ageing) {
                rows.push(FdbRow {
                    domain,
                    vlan: key.vlan(),
                    mac: key.mac(),
                    port: entry.port(),
                    age: Duration::from_secs(u64::from(age(now, entry.second()))),
                    kind: entry.kind(),
                    moves,
                });
            }
        }
        rows
    }

    /// Sets an entry, in place of one that is there. `now` is when it was heard of.
    ///
    /// # Errors
    /// [`Full`] when there is no room for another one; an entry that is there stays.
    pub fn set(&self, key: FdbKey, port: PortId, kind: FdbKind, now: Instant) -> Result<(), Full> {
        let entry = FdbEntry::new(port, self.generation(port), now.second()).of_kind(kind);
        match self.entries.entry(key) {
            Entry::Occupied(mut there) => {
                let old = there.get().entry;
                if !self.is_counted_with(old, entry) {
                    self.count_in(entry).map_err(|_| Full)?;
                    self.count_out(old);
                }
                there.get_mut().entry = entry;
                self.publish(key, entry);
            }
            Entry::Vacant(vacant) => {
                self.take_room(entry).map_err(|_| Full)?;
                let _locked = vacant.insert(Record { entry, moves: 0 });
                self.publish(key, entry);
            }
        }
        self.bump_epoch();
        Ok(())
    }

    /// The kind of the live entry of a station.
    pub fn kind_of(&self, key: FdbKey, now: Instant, ageing: Duration) -> Option<FdbKind> {
        self.lookup(key, now, ageing).map(FdbEntry::kind)
    }

    /// Forgets what was learned on `port`, in constant time. Workers that are in a batch finish
    /// it with what they had; the flush is done when each has begun its next one.
    pub fn flush_port(&self, port: PortId) {
        if let Some(state) = self.ports.get(port.index()) {
            let bump = |state| Some(u64::from(next_generation(generation_of(state))) << 48);
            let _ = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, bump);
            self.bump_epoch();
        }
    }

    /// Forgets every entry of a port that is being removed. Walks the table, if it has entries that
    /// outlive a flush; not for a worker.
    pub fn forget_port(&self, port: PortId) {
        self.flush_port(port);
        if self.permanent.load(Ordering::Relaxed) > 0 {
            self.remove_where(|_, entry| entry.port() == port);
            self.bump_epoch();
        }
    }

    /// Forgets entries of a domain, those of one port or of all. Walks the table; not for a worker.
    pub fn flush_domain(&self, domain: DomainId, port: Option<PortId>, flush: Flush) -> usize {
        self.flush_vlans(domain, VlanId(0)..=VlanId(u16::MAX), port, flush)
    }

    /// The same of some VLANs.
    pub fn flush_vlans(
        &self,
        domain: DomainId,
        vlans: RangeInclusive<VlanId>,
        port: Option<PortId>,
        flush: Flush,
    ) -> usize {
        let meant = |entry: FdbEntry| {
            port.is_none_or(|port| entry.port() == port)
                && (flush == Flush::All || !entry.kind().is_permanent())
        };
        let removed = self.remove_where(|key, entry| {
            key.domain() == domain && vlans.contains(&key.vlan()) && meant(entry)
        });
        self.bump_epoch();
        removed
    }

    /// Forgets one station.
    pub fn remove(&self, domain: DomainId, vlan: VlanId, mac: MacAddr) -> bool {
        let key = FdbKey::new(domain, vlan, mac);
        let removed = self.entries.remove_if(&key, |_, record| {
            self.forget(key, record.entry);
            true
        });
        if removed.is_some() {
            self.bump_epoch();
        }
        removed.is_some()
    }

    /// Returns the memory of dead entries; `ageing` tells each domain's ageing time. Walks the
    /// table shard by shard, each briefly write-locked; for a housekeeping thread.
    pub fn sweep(&self, now: Instant, ageing: impl Fn(DomainId) -> Duration) -> usize {
        // Nobody believed the dead entries, so the epoch stays.
        let removed = self.remove_where(|key, entry| !self.alive(entry, now, ageing(key.domain())));
        if self.index().is_worn(self.len()) {
            self.renew_index();
        }
        removed
    }

    /// Begins a new index and fills it while the workers go on with the old one until their next
    /// batch. What it does not have yet, they find in the table of record.
    fn renew_index(&self) {
        let fresh = Arc::new(Index::new(self.limits.entries_max, self.seed));
        {
            // Whoever writes after this writes to the new one, and its shard is copied after that.
            // Bumped under the lock, so that a worker which learns then looks there, too.
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            *index = Arc::clone(&fresh);
            self.bump_epoch();
        }
        for item in &self.entries {
            self.put(&fresh, *item.key(), item.value().entry);
        }
    }

    /// The index as of this moment.
    fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Repeats an entry in the index. The caller holds the lock of the key's shard.
    fn publish(&self, key: FdbKey, entry: FdbEntry) {
        self.put(
            &self.index.read().unwrap_or_else(PoisonError::into_inner),
            key,
            entry,
        );
    }

    fn put(&self, index: &Index, key: FdbKey, entry: FdbEntry) {
        match self.word(key) {
            Some(word) if entry.kind() == FdbKind::Local => index.clear(word),
            Some(word) => index.put(word, entry),
            None => {}
        }
    }

    /// The key in one word, for the index; `None` for one that has no place in it.
    #[inline]
    fn word(&self, key: FdbKey) -> Option<u64> {
        match key.vlan() {
            VlanId(0) => key.word(),
            VlanId(_) => self.vlans.word(key),
        }
    }

    /// A hash of every entry, independent of their order: equal states have equal hashes.
    pub fn state_hash(&self) -> u64 {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let rows = self.entries.iter();
        rows.map(|item| hasher.hash_one((*item.key(), item.value().entry.0)))
            .fold(self.len() as u64, u64::wrapping_add)
    }

    /// Notes that `key` was heard on `port`.
    fn learn(&self, key: FdbKey, port: PortId, now: Instant, ageing: Duration) -> Learn {
        let entry = FdbEntry::new(port, self.generation(port), now.second());
        let Some(mut record) = self.entries.get_mut(&key) else {
            return self.insert(key, entry);
        };
        let old = record.entry;
        let alive = self.alive(old, now, ageing);
        let entry = match old.kind() {
            FdbKind::Local => return Learn::Exempt,
            FdbKind::Sticky | FdbKind::Static if alive && old.port() != port => {
                return Learn::Pinned { at: old.port() };
            }
            kind @ (FdbKind::Sticky | FdbKind::Static) if alive => entry.of_kind(kind),
            FdbKind::Dynamic | FdbKind::Sticky | FdbKind::Static => entry,
        };
        if self.is_counted_with(old, entry) {
            record.entry = entry;
            self.publish(key, entry);
            return Learn::Known;
        }
        if let Err(refusal) = self.count_in(entry) {
            return refusal;
        }
        self.count_out(old);
        record.entry = entry;
        self.publish(key, entry);
        if alive {
            record.moves = record.moves.saturating_add(1);
            return Learn::Moved { from: old.port() };
        }
        Learn::New
    }

    fn insert(&self, key: FdbKey, entry: FdbEntry) -> Learn {
        if let Err(refusal) = self.take_room(entry) {
            return refusal;
        }
        match self.entries.entry(key) {
            Entry::Vacant(vacant) => {
                let _locked = vacant.insert(Record { entry, moves: 0 });
                self.publish(key, entry);
            }
            Entry::Occupied(mut other) => {
                // Another worker inserted between our look and our insert, or a command did.
                self.len.fetch_sub(1, Ordering::Relaxed);
                let there = other.get_mut();
                if there.entry.kind() != FdbKind::Dynamic {
                    self.count_out(entry);
                    return Learn::Pinned {
                        at: there.entry.port(),
                    };
                }
                self.count_out(there.entry);
                there.entry = entry;
                self.publish(key, entry);
            }
        }
        Learn::New
    }

    /// Counts an entry in that no other gives way to; what to say when there is no room.
    fn take_room(&self, entry: FdbEntry) -> Result<(), Learn> {
        let before = self.len.fetch_add(1, Ordering::Relaxed);
        let taken = match before < self.limits.entries_max {
            true => self.count_in(entry),
            false => Err(Learn::Full),
        };
        if taken.is_err() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// How many stations a port may have, and what to say to one more.
    fn share_of(&self, port: PortId) -> (u32, Learn) {
        let own = self.shares.get(port.index());
        let own = own.map_or(0, |share| share.limit.load(Ordering::Relaxed));
        match self.limits.entries_per_port_max {
            every if own < every => (own, Learn::Limited),
            every => (every, Learn::Full),
        }
    }

    /// Whether an entry takes the place of another one in all counts.
    fn is_counted_with(&self, old: FdbEntry, entry: FdbEntry) -> bool {
        match (old.kind().is_permanent(), entry.kind().is_permanent()) {
            (true, true) => true,
            (false, false) => (old.port(), old.generation()) == (entry.port(), entry.generation()),
            (true, false) | (false, true) => false,
        }
    }

    /// The port of a live entry.
    fn lookup(&self, key: FdbKey, now: Instant, ageing: Duration) -> Option<FdbEntry> {
        let entry = self.entries.get(&key)?.entry;
        self.alive(entry, now, ageing).then_some(entry)
    }

    /// Whether an entry is alive, whatever its kind.
    fn alive(&self, entry: FdbEntry, now: Instant, ageing: Duration) -> bool {
        let ended = entry.aged(now, ageing) && !entry.kind().is_permanent();
        self.is_valid(entry) && !ended
    }

    /// Whether no flush has ended an entry, whatever its kind.
    fn is_valid(&self, entry: FdbEntry) -> bool {
        entry.kind().is_permanent() || entry.generation() == self.generation(entry.port())
    }

    /// Whether the entry was learned, and the port's stations were not flushed since.
    #[inline]
    fn is_current(&self, entry: FdbEntry) -> bool {
        entry.kind_and_generation() == self.generation(entry.port())
    }

    #[inline]
    fn generation(&self, port: PortId) -> u16 {
        self.ports
            .get(port.index())
            .map_or(0, |state| generation_of(state.load(Ordering::Relaxed)))
    }

    fn bump_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn remove_where(&self, dead: impl Fn(FdbKey, FdbEntry) -> bool) -> usize {
        let mut removed = 0;
        self.entries.retain(|key, record| {
            let remove = dead(*key, record.entry);
            if remove {
                self.forget(*key, record.entry);
                removed += 1;
            }
            !remove
        });
        removed
    }

    /// Takes notice of an entry that is about to be removed. The caller holds its shard's lock.
    fn forget(&self, key: FdbKey, entry: FdbEntry) {
        if let Some(word) = self.word(key) {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.clear(word);
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.count_out(entry);
    }

    /// Counts a station in at its port; what to say when the port's share is used up.
    fn count_in(&self, entry: FdbEntry) -> Result<(), Learn> {
        if entry.kind().is_permanent() {
            self.permanent.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let (max, refusal) = self.share_of(entry.port());
        let add = |state: u64| ((state as u32) < max).then_some(state + 1);
        let counted = self.ports.get(entry.port().index()).is_some_and(|state| {
            state
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
                .is_ok()
        });
        if counted {
            return Ok(());
        }
        if let (Learn::Limited, Some(share)) = (refusal, self.shares.get(entry.port().index())) {
            share.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(refusal)
    }

    /// What to say to one more station on a port, if there is no room for it.
    fn refusal_of(&self, port: PortId) -> Option<Learn> {
        if self.len() >= self.limits.entries_max {
            return Some(Learn::Full);
        }
        let (max, refusal) = self.share_of(port);
        (self.usage_of(port).stations >= max).then_some(refusal)
    }

    /// Counts a station out, unless a flush has already forgotten the whole generation.
    fn count_out(&self, entry: FdbEntry) {
        if entry.kind().is_permanent() {
            self.permanent.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let subtract = |state: u64| {
            let counted = generation_of(state) == entry.generation() && state as u32 > 0;
            counted.then(|| state - 1)
        };
        if let Some(state) = self.ports.get(entry.port().index()) {
            let _ = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        }
    }
}

fn generation_of(port_state: u64) -> u16 {
    (port_state >> 48) as u16
}

#[cfg(test)]
mod tests;
