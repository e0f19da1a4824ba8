//! The tables that all workers share, and the two ways of seeing them.
//!
//! # Thread-safety
//! [`SHARDS`] shards, each behind a lock of its own that is held for one translation (`lock.rs`).
//! Lock order: at most one shard at a time; under it, the counts (lock-free, or a lock of the
//! endpoints' counts that is never held across a call).

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::utils::CachePadded;
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

use crate::addr::{DomainId, L4Addr};
use crate::time::Instant;
use crate::verdict::DropReason;

use super::account::{Account, Totals};
use super::endpoints::Endpoints;
use super::forward::StaticRule;
use super::hash::HashKey;
use super::identification::Identifications;
use super::lock::{Held, Lock};
use super::packet::End;
use super::session::{Mapping, Session, SessionInfo};
use super::table::NatShard;
use super::target::{Rotation, Target};
use super::{NatConfig, SHARDS};

/// The NAT's tables, shared by all workers.
#[derive(Debug)]
pub struct Nat {
    pub(super) shards: Vec<CachePadded<Lock<NatShard>>>,
    pub(super) counts: Counts,
    key: HashKey,
    /// The shard at which the next budgeted sweep begins.
    sweep: AtomicUsize,
    /// Identifications given to fragmented packets of IPv6.
    fragment_ids: AtomicU32,
    /// Those given to packets of IPv4 that may be or are fragmented.
    identifications: CachePadded<Identifications>,
}

/// Numbers that a dashboard shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Sessions of all kinds.
    pub sessions: usize,
    /// Mappings: dynamic ones, and one for each session of a published port.
    pub mappings: usize,
    /// Sessions in the fullest shard.
    pub sessions_in_fullest_shard: usize,
    /// Inside addresses with at least one session.
    pub endpoints: usize,
}

impl Nat {
    /// Empty tables whose hashes are seeded with `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        let key = HashKey::new(seed);
        let shards = (0..SHARDS)
            .map(|_| CachePadded::new(Lock::new(NatShard::new(key))))
            .collect();
        Arc::new(Self {
            shards,
            counts: Counts::new(key),
            key,
            sweep: AtomicUsize::new(0),
            fragment_ids: AtomicU32::new(0),
            identifications: CachePadded::default(),
        })
    }

    /// Sessions of all shards.
    pub fn session_count(&self) -> usize {
        self.counts.sessions.load(Ordering::Relaxed)
    }

    /// Sessions of one inside address.
    pub fn session_count_of(&self, domain: DomainId, inside: IpAddr) -> usize {
        self.counts.endpoints.get(domain, inside)
    }

    /// What every target and network has carried. Looks at each session, one shard after the other.
    pub fn accounts(&self) -> BTreeMap<Account, Totals> {
        let mut all: BTreeMap<Account, Totals> = BTreeMap::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let ended = shard.accounts.iter();
            let live = shard
                .iter()
                .map(|(_, session, mapping)| (mapping.account(), Totals::of(session)));
            for (account, totals) in ended.chain(live) {
                *all.entry(account).or_default() += totals;
            }
        }
        all
    }

    /// Sessions of an account that have not ended. Looks at no session.
    pub fn live_sessions(&self, account: Account) -> u64 {
        let shards = self.shards.iter();
        shards.map(|s| s.lock().accounts.get(account).live).sum()
    }

    /// Makes every account zero but for the number of live sessions.
    pub fn zero_accounts(&self) {
        self.shards.iter().for_each(|s| s.lock().zero_accounts());
    }

    /// Forgets accounts whose sessions have ended for good: rules, targets and networks come and go
    /// for as long as the process lives.
    pub fn forget_accounts(&self, condemned: impl Fn(Account) -> bool) {
        for shard in &self.shards {
            shard.lock().accounts.forget(&condemned);
        }
    }

    /// Forgets a rule that was withdrawn: its accounts, and whose turn it was.
    pub fn forget_rule(&self, rule: u32) {
        self.forget_accounts(|account| account.is_of(rule));
        self.counts.rotations.remove(&rule);
    }

    /// Up to `max` sessions, for a listing. Shards are locked one after the other, so that a
    /// listing of a busy table is no snapshot.
    pub fn sessions(&self, max: usize) -> Vec<SessionInfo> {
        let mut listed = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let left = max - listed.len();
            let sessions = shard.iter().take(left);
            listed.extend(sessions.map(|(_, session, mapping)| SessionInfo::new(session, mapping)));
            if listed.len() == max {
                break;
            }
        }
        listed
    }

    /// Numbers for a dashboard; locks the shards one after the other.
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            endpoints: self.counts.endpoints.len(),
            ..Gauges::default()
        };
        for shard in &self.shards {
            let shard = shard.lock();
            gauges.sessions += shard.session_count();
            gauges.mappings += shard.mapping_count();
            gauges.sessions_in_fullest_shard =
                gauges.sessions_in_fullest_shard.max(shard.session_count());
        }
        gauges
    }

    /// Removes up to `budget` sessions that have outlived their timeout; how many. Each call
    /// begins where the last one stopped, so that a small budget reaches every shard in time.
    pub fn expire(&self, now: Instant, config: &NatConfig, budget: usize) -> usize {
        let start = self.sweep.load(Ordering::Relaxed);
        let mut removed = 0;
        for step in 0..SHARDS {
            let shard = (start + step) % SHARDS;
            self.sweep.store(shard, Ordering::Relaxed);
            let left = budget - removed;
            removed += self.shards[shard]
                .lock()
                .expire(now, &config.timeouts, left, &self.counts);
            if removed == budget {
                break;
            }
        }
        removed
    }

    /// Ends the sessions that `condemned` names, as when an endpoint goes or a published port is
    /// withdrawn; how many.
    pub fn remove_sessions(&self, mut condemned: impl FnMut(&SessionInfo) -> bool) -> usize {
        let mut condemned =
            |session: &Session, mapping: &Mapping| condemned(&SessionInfo::new(session, mapping));
        self.shards
            .iter()
            .map(|shard| shard.lock().remove_where(&mut condemned, &self.counts))
            .sum()
    }

    /// Forgets what is remembered of fragmented packets from or to the inside addresses that
    /// `condemned` names, as when an endpoint goes: another one may get its address before they have
    /// timed out.
    pub fn forget_fragments(&self, condemned: impl Fn(DomainId, IpAddr) -> bool) {
        for shard in &self.shards {
            shard.lock().fragments.forget_inside(&condemned);
        }
    }

    /// Locks a shard.
    pub(super) fn shard(&self, index: usize) -> Held<'_, NatShard> {
        self.shards[index].lock()
    }

    pub(super) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// As [`Tables::shard_of_remote`].
    pub(super) fn shard_of_remote(&self, remote: L4Addr) -> usize {
        shard_of_remote(&self.key, remote)
    }

    /// A hash of every session, remembered fragment and count, whatever their order: equal before
    /// and after whatever must not have changed anything.
    pub fn state_hash(&self) -> u64 {
        let mut sum = self.session_count() as u64;
        for shard in &self.shards {
            let shard = shard.lock();
            for fragment in shard.fragments.iter() {
                sum = sum.wrapping_add(digest(fragment));
            }
            for account in shard.accounts.iter() {
                sum = sum.wrapping_add(digest(&account));
            }
            for (_, session, mapping) in shard.iter() {
                sum = sum.wrapping_add(digest(&(
                    mapping,
                    session.remote,
                    (session.last_seen, session.created),
                    (session.tcp, session.class),
                    session.rest(),
                )));
            }
        }
        for held in self.counts.endpoints.all() {
            sum = sum.wrapping_add(digest(&held));
        }
        for entry in &self.counts.rotations {
            sum = sum.wrapping_add(digest(&(entry.key(), entry.value())));
        }
        sum
    }
}

#[inline]
fn shard_of_remote(key: &HashKey, remote: L4Addr) -> usize {
    shard_of_hash(key.spread(remote))
}

#[inline(always)]
const fn shard_of_hash(hash: u64) -> usize {
    // The high bits: within a shard, tables use the low ones.
    (hash >> 32) as usize % SHARDS
}

fn digest(value: &impl Hash) -> u64 {
    // The same keys in every process, unlike a `RandomState`.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// How many sessions there are, in all and for each inside address.
#[derive(Debug)]
pub(super) struct Counts {
    pub sessions: AtomicUsize,
    pub endpoints: Endpoints,
    /// Of the rules whose targets take turns.
    rotations: DashMap<u32, Rotation, FxBuildHasher>,
}

impl Counts {
    fn new(key: HashKey) -> Self {
        Self {
            sessions: AtomicUsize::new(0),
            endpoints: Endpoints::new(key),
            rotations: DashMap::default(),
        }
    }

    /// Counts a session that is about to be made.
    ///
    /// # Errors
    /// [`DropReason::NatTableFull`] and [`DropReason::NatQuota`]; nothing is counted.
    pub fn reserve(
        &self,
        domain: DomainId,
        inside: IpAddr,
        config: &NatConfig,
    ) -> Result<(), DropReason> {
        // Relaxed: a count guards no other memory.
        if self.sessions.fetch_add(1, Ordering::Relaxed) >= config.sessions_max {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            return Err(DropReason::NatTableFull);
        }
        let max = config.sessions_per_endpoint_max;
        if !self.endpoints.take(domain, inside, max) {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            return Err(DropReason::NatQuota);
        }
        Ok(())
    }

    /// Forgets a session that was counted.
    pub fn release(&self, domain: DomainId, inside: IpAddr) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        self.endpoints.give_back(domain, inside);
    }

    /// The target of a rule whose turn it is.
    pub fn in_turn<'r>(&self, rule: &'r StaticRule) -> Option<&'r Target> {
        self.rotations
            .entry(rule.id)
            .or_default()
            .advance(&rule.targets)
    }

    fn copy(&self) -> Self {
        Self {
            sessions: AtomicUsize::new(self.sessions.load(Ordering::Relaxed)),
            endpoints: self.endpoints.copy(),
            rotations: self.rotations.clone(),
        }
    }
}

/// One worker's or one observer's access to the tables.
#[derive(Debug)]
pub struct NatView {
    pub(super) tables: Tables,
    /// A first fragment has come since this was last looked at.
    pub(super) fragments_begun: bool,
}

impl NatView {
    /// Access to the live tables.
    pub const fn live(nat: Arc<Nat>) -> Self {
        Self {
            tables: Tables::Live(nat),
            fragments_begun: false,
        }
    }

    /// An effects overlay: reads the live tables and keeps every change to itself, by copying a
    /// shard when it first touches it. What a packet does to the overlay, the next packet sees.
    pub fn overlay(nat: Arc<Nat>) -> Self {
        let overlay = Overlay {
            counts: nat.counts.copy(),
            fragment_ids: nat.fragment_ids.load(Ordering::Relaxed),
            identifications: nat.identifications.copy(),
            nat,
            shards: HashMap::default(),
        };
        Self {
            tables: Tables::Overlay(Box::new(overlay)),
            fragments_begun: false,
        }
    }

    /// Whether a first fragment has come since this was last asked.
    pub(crate) fn take_fragments_begun(&mut self) -> bool {
        core::mem::take(&mut self.fragments_begun)
    }
}

#[derive(Debug)]
pub(super) enum Tables {
    Live(Arc<Nat>),
    Overlay(Box<Overlay>),
}

#[derive(Debug)]
pub(super) struct Overlay {
    nat: Arc<Nat>,
    shards: HashMap<usize, NatShard, FxBuildHasher>,
    counts: Counts,
    fragment_ids: u32,
    identifications: Identifications,
}

impl Tables {
    /// Locks a shard, or takes the overlay's copy of it.
    #[inline(always)]
    pub fn shard(&mut self, index: usize) -> Shard<'_> {
        match self {
            Self::Live(nat) => Shard {
                table: Table::Live(nat.shards[index].lock()),
                counts: &nat.counts,
            },
            Self::Overlay(overlay) => {
                let Overlay {
                    nat,
                    shards,
                    counts,
                    ..
                } = &mut **overlay;
                let copy = || nat.shards[index].lock().clone();
                Shard {
                    table: Table::Overlay(shards.entry(index).or_insert_with(copy)),
                    counts,
                }
            }
        }
    }

    /// The shard of the sessions that a remote has with published ports.
    #[inline]
    pub fn shard_of_remote(&self, remote: L4Addr) -> usize {
        shard_of_remote(self.key(), remote)
    }

    /// The same of a packet's end.
    #[inline(always)]
    pub fn shard_of_end(&self, remote: End<'_>) -> usize {
        shard_of_hash(self.key().spread_of(remote))
    }

    /// The shard that remembers a fragmented packet.
    pub fn shard_of_fragment(&self, (src, id): (IpAddr, u32)) -> usize {
        let hash = self.key().ip(src) ^ u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as usize % SHARDS
    }

    /// An identification for a fragmented packet: no other gets it before all of IPv4, or four
    /// thousand million of IPv6, were given, and nobody outside knows the next one (RFC 7739).
    pub fn fragment_id(&mut self, v6: bool) -> u32 {
        if !v6 {
            let (identifications, key) = self.identifications();
            return identifications.single(key).into();
        }
        let number = match self {
            // Relaxed: a number guards no other memory.
            Self::Live(nat) => nat.fragment_ids.fetch_add(1, Ordering::Relaxed),
            Self::Overlay(overlay) => {
                let number = overlay.fragment_ids;
                overlay.fragment_ids = number.wrapping_add(1);
                number
            }
        };
        self.key().permute(number, 32)
    }

    /// What gives identifications of IPv4, and the key that it gives them by.
    pub fn identifications(&self) -> (&Identifications, &HashKey) {
        match self {
            Self::Live(nat) => (&nat.identifications, &nat.key),
            Self::Overlay(overlay) => (&overlay.identifications, &overlay.nat.key),
        }
    }

    #[inline]
    pub fn key(&self) -> &HashKey {
        match self {
            Self::Live(nat) => &nat.key,
            Self::Overlay(overlay) => &overlay.nat.key,
        }
    }
}

/// A shard, for one translation.
pub(super) struct Shard<'a> {
    pub table: Table<'a>,
    pub counts: &'a Counts,
}

pub(super) enum Table<'a> {
    Live(Held<'a, NatShard>),
    Overlay(&'a mut NatShard),
}

impl Deref for Table<'_> {
    type Target = NatShard;

    #[inline]
    fn deref(&self) -> &NatShard {
        match self {
            Self::Live(shard) => shard,
            Self::Overlay(shard) => shard,
        }
    }
}

impl DerefMut for Table<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut NatShard {
        match self {
            Self::Live(shard) => shard,
            Self::Overlay(shard) => shard,
        }
    }
}
