//! How many sessions each inside address holds, by all shards together.
//!
//! Asked once by a packet that opens a session, and only of endpoints that hold one, so there are no
//! more entries than sessions.
//!
//! # Thread-safety
//! [`STRIPES`] tables, each behind a lock of its own that is held for one look and may be taken
//! under a shard's.

use std::net::IpAddr;

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::addr::DomainId;

use super::hash::HashKey;
use super::lock::Lock;

/// Tables of counts. Workers meet in one only while both open a session, and then for some
/// nanoseconds.
const STRIPES: usize = 16;

/// Sessions by inside address.
#[derive(Debug)]
pub(super) struct Endpoints {
    key: HashKey,
    stripes: [CachePadded<Lock<HashTable<Count>>>; STRIPES],
}

/// What one inside address holds.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Count {
    pub domain: DomainId,
    pub inside: IpAddr,
    /// Never 0.
    pub sessions: u32,
}

impl Count {
    fn is_of(&self, domain: DomainId, inside: IpAddr) -> bool {
        (self.domain, self.inside) == (domain, inside)
    }
}

impl Endpoints {
    pub fn new(key: HashKey) -> Self {
        let empty = |_| CachePadded::new(Lock::new(HashTable::new()));
        Self {
            key,
            stripes: core::array::from_fn(empty),
        }
    }

    /// Counts one session more, unless the endpoint holds `max`.
    #[must_use]
    pub fn take(&self, domain: DomainId, inside: IpAddr, max: usize) -> bool {
        let hash = self.hash(domain, inside);
        let mut stripe = self.stripe(hash).lock();
        let same = |held: &Count| held.is_of(domain, inside);
        let rehash = |held: &Count| self.hash(held.domain, held.inside);
        match stripe.entry(hash, same, rehash) {
            Entry::Occupied(mut there) => {
                let held = there.get_mut();
                let taken = (held.sessions as usize) < max;
                held.sessions += u32::from(taken);
                taken
            }
            Entry::Vacant(vacant) => {
                if max > 0 {
                    vacant.insert(Count {
                        domain,
                        inside,
                        sessions: 1,
                    });
                }
                max > 0
            }
        }
    }

    /// Counts one session less.
    pub fn give_back(&self, domain: DomainId, inside: IpAddr) {
        let hash = self.hash(domain, inside);
        let mut stripe = self.stripe(hash).lock();
        if let Ok(mut entry) = stripe.find_entry(hash, |held| held.is_of(domain, inside)) {
            entry.get_mut().sessions -= 1;
            if entry.get().sessions == 0 {
                entry.remove();
            }
        }
    }

    /// Sessions of one inside address.
    pub fn get(&self, domain: DomainId, inside: IpAddr) -> usize {
        let hash = self.hash(domain, inside);
        let stripe = self.stripe(hash).lock();
        let held = stripe.find(hash, |held| held.is_of(domain, inside));
        held.map_or(0, |held| held.sessions as usize)
    }

    /// Inside addresses that hold a session.
    pub fn len(&self) -> usize {
        let stripes = self.stripes.iter();
        stripes.map(|stripe| stripe.lock().len()).sum()
    }

    /// All counts, in no particular order; stripe by stripe, so that the whole is no snapshot.
    pub fn all(&self) -> Vec<Count> {
        let mut all = Vec::new();
        for stripe in &self.stripes {
            all.extend(stripe.lock().iter().copied());
        }
        all
    }

    pub fn copy(&self) -> Self {
        let copy = |at: usize| CachePadded::new(Lock::new(self.stripes[at].lock().clone()));
        Self {
            key: self.key,
            stripes: core::array::from_fn(copy),
        }
    }

    #[inline]
    fn hash(&self, domain: DomainId, inside: IpAddr) -> u64 {
        self.key.endpoint(domain, inside)
    }

    #[inline]
    fn stripe(&self, hash: u64) -> &Lock<HashTable<Count>> {
        // Bits that a table does not use: it takes the lowest and the seven highest.
        &self.stripes[(hash >> 32) as usize % STRIPES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn address(n: u8) -> IpAddr {
        match n % 2 {
            0 => [10, 0, 0, n].into(),
            _ => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
        }
    }

    #[test]
    fn what_is_held_is_what_was_taken_and_not_given_back_up_to_the_most() {
        const MAX: usize = 5;
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let endpoints = Endpoints::new(HashKey::new(seed));
            let mut model: HashMap<(DomainId, IpAddr), usize> = HashMap::new();
            for _ in 0..2_000 {
                let who = (DomainId(rng.u16(..3)), address(rng.u8(..40)));
                let held = model.get(&who).copied().unwrap_or_default();
                if rng.u8(..3) > 0 {
                    let taken = endpoints.take(who.0, who.1, MAX);
                    assert_eq!(taken, held < MAX, "seed {seed}");
                    model.insert(who, held + usize::from(taken));
                } else {
                    endpoints.give_back(who.0, who.1);
                    model.insert(who, held.saturating_sub(1));
                }
                assert_eq!(endpoints.get(who.0, who.1), model[&who], "seed {seed}");
            }
            model.retain(|_, held| *held > 0);
            let all = endpoints.copy().all();
            assert_eq!((endpoints.len(), all.len()), (model.len(), model.len()));
            let right = |held: &Count| model[&(held.domain, held.inside)] == held.sessions as usize;
            assert!(all.iter().all(right), "seed {seed}");
        }
    }

    #[test]
    fn who_may_hold_none_leaves_nothing_behind() {
        let endpoints = Endpoints::new(HashKey::new(1));
        assert!(!endpoints.take(DomainId(1), address(2), 0));
        assert_eq!((endpoints.len(), endpoints.all().len()), (0, 0));
        endpoints.give_back(DomainId(1), address(2));
        assert_eq!(endpoints.get(DomainId(1), address(2)), 0);
    }
}
