//! One worker's view of the forwarding database: a direct-mapped cache in front of it.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::entry::{FdbEntry, FdbKey, age};
use super::{Fdb, Learn};
use crate::addr::PortId;
use crate::time::Instant;

/// Slots of a worker's cache: 4,096 × 32 bytes, half of a typical L2 share, and far more stations
/// than talk within one batch.
pub const CACHE_SLOTS: usize = 4_096;

/// Moves that one worker lets through in a second. Each empties every cache, which costs a few
/// microseconds; a station that flaps faster stays where it was, and is counted.
pub const MOVES_PER_SECOND_MAX: u32 = 256;

const _: () = assert!(CACHE_SLOTS.is_power_of_two());

#[derive(Clone, Copy)]
struct Slot {
    key: FdbKey,
    entry: FdbEntry,
    epoch: u64,
}

/// One worker's view. Not shared: each worker, simulation or question has its own.
pub struct FdbView {
    shared: Arc<Fdb>,
    cache: Box<[Slot]>,
    epoch: u64,
    moves: MoveBudget,
    /// Present in a what-if: learning goes here, and the shared table stays as it is.
    overlay: Option<HashMap<FdbKey, FdbEntry, FxBuildHasher>>,
}

impl FdbView {
    /// A view that learns into the shared table.
    pub fn live(shared: Arc<Fdb>) -> Self {
        let never = Slot {
            key: FdbKey::new(Default::default(), Default::default(), Default::default()),
            entry: FdbEntry(0),
            epoch: 0,
        };
        let cache = vec![never; CACHE_SLOTS].into_boxed_slice();
        let mut view = Self {
            shared,
            cache,
            epoch: 0,
            moves: MoveBudget::default(),
            overlay: None,
        };
        view.begin_batch();
        view
    }

    /// A view that reads the shared table and keeps what it learns to itself.
    pub fn overlay(shared: Arc<Fdb>) -> Self {
        Self {
            overlay: Some(HashMap::default()),
            ..Self::live(shared)
        }
    }

    /// Takes notice of what other workers and the control plane changed. Once per batch.
    #[inline]
    pub fn begin_batch(&mut self) {
        // Acquire: pairs with the Release in `Fdb::bump_epoch`; what was changed before the bump
        // is seen by every lookup of this batch.
        self.epoch = self.shared.epoch.load(Ordering::Acquire);
    }

    /// Notes that a station was heard on `port`. A cache hit costs no lock and no shared write.
    #[inline]
    pub fn learn(&mut self, key: FdbKey, port: PortId, now: Instant, ageing: Duration) -> Learn {
        let slot = self.slot(key);
        if slot.key == key && slot.epoch == self.epoch && slot.entry.port() == port {
            let refresh = (ageing.as_secs() / 16).max(1);
            if u64::from(age(now, slot.entry.second())) < refresh {
                return Learn::Known;
            }
        }
        self.learn_slowly(key, port, now, ageing)
    }

    /// The port on which a station was last heard. A cache hit costs no lock.
    #[inline]
    pub fn lookup(&mut self, key: FdbKey, now: Instant, ageing: Duration) -> Option<PortId> {
        let slot = self.slot(key);
        if slot.key == key && slot.epoch == self.epoch && !slot.entry.aged(now, ageing) {
            return Some(slot.entry.port());
        }
        self.lookup_slowly(key, now, ageing)
    }

    #[cold]
    #[inline(never)]
    fn learn_slowly(&mut self, key: FdbKey, port: PortId, now: Instant, ageing: Duration) -> Learn {
        let known = self.known(key, now, ageing);
        if self.overlay.is_some() {
            return self.learn_apart(key, port, known, now);
        }
        let moves = known.is_some_and(|entry| entry.port() != port);
        if moves && !self.moves.take(now) {
            return Learn::MoveRefused;
        }
        let learned = self.shared.learn(key, port, now, ageing);
        match learned.outcome {
            Learn::New | Learn::Known => self.remember(key, learned.entry),
            // The epoch has moved on: the slot would be stale at once.
            Learn::Moved { .. } => self.begin_batch(),
            Learn::Full | Learn::MoveRefused | Learn::Exempt => {}
        }
        learned.outcome
    }

    #[cold]
    #[inline(never)]
    fn lookup_slowly(&mut self, key: FdbKey, now: Instant, ageing: Duration) -> Option<PortId> {
        let entry = self.known(key, now, ageing)?;
        if self.overlay.is_none() {
            self.remember(key, entry);
        }
        Some(entry.port())
    }

    /// What the overlay or else the shared table knows of a station.
    fn known(&self, key: FdbKey, now: Instant, ageing: Duration) -> Option<FdbEntry> {
        let apart = self
            .overlay
            .as_ref()
            .and_then(|overlay| overlay.get(&key).copied());
        apart.or_else(|| self.shared.lookup(key, now, ageing))
    }

    fn learn_apart(
        &mut self,
        key: FdbKey,
        port: PortId,
        known: Option<FdbEntry>,
        now: Instant,
    ) -> Learn {
        let outcome = match known {
            None if self.shared.len() >= self.shared.limits.entries_max => return Learn::Full,
            None => Learn::New,
            Some(entry) if entry.port() == port => Learn::Known,
            Some(entry) => Learn::Moved { from: entry.port() },
        };
        let entry = FdbEntry::new(port, self.shared.generation(port), now.second());
        if let Some(overlay) = &mut self.overlay {
            overlay.insert(key, entry);
        }
        outcome
    }

    #[inline]
    fn slot(&self, key: FdbKey) -> &Slot {
        &self.cache[key.mix() as usize & (CACHE_SLOTS - 1)]
    }

    fn remember(&mut self, key: FdbKey, entry: FdbEntry) {
        let index = key.mix() as usize & (CACHE_SLOTS - 1);
        self.cache[index] = Slot {
            key,
            entry,
            epoch: self.epoch,
        };
    }
}

impl core::fmt::Debug for FdbView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FdbView")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Counts the moves of the current second.
#[derive(Debug, Default)]
struct MoveBudget {
    second: u32,
    used: u32,
}

impl MoveBudget {
    fn take(&mut self, now: Instant) -> bool {
        if self.second != now.second() {
            *self = Self {
                second: now.second(),
                used: 0,
            };
        }
        self.used += 1;
        self.used <= MOVES_PER_SECOND_MAX
    }
}
