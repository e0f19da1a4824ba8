//! One worker's view of the forwarding database: where the index is, and what is its own.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::entry::{FdbEntry, FdbKey, age};
use super::index::Index;
use super::{Fdb, FdbKind, Learn, Place};
use crate::addr::{DomainId, MacAddr, PortId};
use crate::time::Instant;

/// Moves that one worker lets through in a second. Each takes a lock and a cache line from every
/// other worker; a station that flaps faster stays where it was, and is counted.
pub const MOVES_PER_SECOND_MAX: u32 = 256;

/// One worker's view. Not shared: each worker, simulation or question has its own.
pub struct FdbView {
    shared: Arc<Fdb>,
    /// The index as of `epoch`; one without room in a what-if, which asks the tables themselves.
    index: Arc<Index>,
    epoch: u64,
    moves: MoveBudget,
    /// Present in a what-if: learning goes here, and the shared table stays as it is.
    overlay: Option<HashMap<FdbKey, FdbEntry, FxBuildHasher>>,
}

impl FdbView {
    /// A view that learns into the shared table.
    pub fn live(shared: Arc<Fdb>) -> Self {
        let (index, epoch) = (shared.index(), 0);
        let mut view = Self {
            shared,
            index,
            epoch,
            moves: MoveBudget::default(),
            overlay: None,
        };
        view.begin_batch();
        view
    }

    /// A view that reads the shared table and keeps what it learns to itself.
    pub fn overlay(shared: Arc<Fdb>) -> Self {
        Self {
            index: Arc::new(Index::new(0, 0)),
            overlay: Some(HashMap::default()),
            ..Self::live(shared)
        }
    }

    /// Takes notice of what other workers and the control plane changed. Once per batch.
    #[inline]
    pub fn begin_batch(&mut self) {
        // Acquire: pairs with the Release in `Fdb::bump_epoch`; what was changed before the bump
        // is seen by every lookup of this batch.
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.take_index();
        }
    }

    /// Notes that a station was heard on `port`. One that is known there costs no lock and no
    /// shared write.
    #[inline]
    pub fn learn(&mut self, key: FdbKey, port: PortId, now: Instant, ageing: Duration) -> Learn {
        let entry = self.indexed(key);
        let current = entry != FdbEntry::NONE && self.shared.is_current(entry);
        if entry.port() == port && current && is_fresh(entry, now, ageing) {
            return Learn::Known;
        }
        self.learn_slowly(key, port, now, ageing)
    }

    /// Where a station is. One that is known costs no lock.
    #[inline]
    pub fn lookup(&mut self, key: FdbKey, now: Instant, ageing: Duration) -> Option<Place> {
        let entry = self.indexed(key);
        let current = entry != FdbEntry::NONE && self.shared.is_current(entry);
        if current && !entry.aged(now, ageing) {
            return Some(Place::Port(entry.port()));
        }
        self.lookup_slowly(key, now, ageing)
    }

    /// Where the index has what `learn` or `lookup` will ask of a station of a domain that is transparent
    /// to tags; any line where it has nothing of it.
    #[inline(always)]
    pub(crate) fn line_of(&self, domain: DomainId, mac: MacAddr) -> usize {
        self.index.line_of(FdbKey::transparent_word(domain, mac))
    }

    /// Whether the line at a position has a key.
    #[cfg(test)]
    pub(super) fn has_on_line(&self, at: usize, key: FdbKey) -> bool {
        let word = self.shared.word(key);
        word.is_some_and(|word| self.index.has_on_line(at, word))
    }

    /// Reads these lines of the index, so that they are in the cache. The value is for the caller to
    /// use up, lest the compiler leave the reads out.
    #[inline]
    pub(crate) fn read_lines(&self, lines: &[usize]) -> u64 {
        lines
            .iter()
            .fold(0, |read, line| read ^ self.index.read(*line))
    }

    /// Forgets what was learned on a port, which a worker has found to be down.
    #[cold]
    pub fn flush_port(&self, port: PortId) {
        if self.overlay.is_none() {
            self.shared.flush_port(port);
        }
    }

    /// Stations in the table, dead ones included.
    #[inline]
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether the table has no station.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }

    #[inline]
    fn indexed(&self, key: FdbKey) -> FdbEntry {
        self.shared
            .word(key)
            .map_or(FdbEntry::NONE, |word| self.index.get(word))
    }

    #[cold]
    fn take_index(&mut self) {
        if self.overlay.is_none() {
            self.index = self.shared.index();
        }
    }

    #[cold]
    #[inline(never)]
    fn learn_slowly(&mut self, key: FdbKey, port: PortId, now: Instant, ageing: Duration) -> Learn {
        // What was set is looked at here, so that what was learned need not be asked its kind.
        let set = self.indexed(key);
        let at_home = set.kind() != FdbKind::Dynamic && set.port() == port;
        if at_home && self.shared.is_valid(set) && is_fresh(set, now, ageing) {
            return Learn::Known;
        }
        let known = self.known(key, now, ageing);
        if self.overlay.is_some() {
            return self.learn_apart(key, port, known, now);
        }
        let moves = |entry: FdbEntry| entry.port() != port && entry.kind() == FdbKind::Dynamic;
        if known.is_some_and(moves) && !self.moves.take(now) {
            return Learn::MoveRefused;
        }
        let learned = self.shared.learn(key, port, now, ageing);
        // What was learned may stand in a newer index than this view has.
        self.begin_batch();
        learned
    }

    #[cold]
    #[inline(never)]
    fn lookup_slowly(&mut self, key: FdbKey, now: Instant, ageing: Duration) -> Option<Place> {
        let set = self.indexed(key);
        if set.kind() != FdbKind::Dynamic && self.shared.alive(set, now, ageing) {
            // Local entries are not in the index.
            return Some(Place::Port(set.port()));
        }
        self.known(key, now, ageing).map(FdbEntry::place)
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
            None => match self.shared.refusal_of(port) {
                Some(refusal) => return refusal,
                None => Learn::New,
            },
            Some(entry) if entry.kind() == FdbKind::Local => return Learn::Exempt,
            Some(entry) if entry.port() == port => Learn::Known,
            Some(entry) if entry.kind() != FdbKind::Dynamic => {
                return Learn::Pinned { at: entry.port() };
            }
            Some(entry) => Learn::Moved { from: entry.port() },
        };
        let kind = known.map_or(FdbKind::Dynamic, FdbEntry::kind);
        let entry = FdbEntry::new(port, self.shared.generation(port), now.second()).of_kind(kind);
        if let Some(overlay) = &mut self.overlay {
            overlay.insert(key, entry);
        }
        outcome
    }
}

impl core::fmt::Debug for FdbView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FdbView")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Whether the entry of a busy station need not be written again yet.
#[inline]
fn is_fresh(entry: FdbEntry, now: Instant, ageing: Duration) -> bool {
    u64::from(age(now, entry.second())) < (ageing.as_secs() / 16).max(1)
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
