//! Where in a slab is what has a given hash.
//!
//! # Theory of operation
//! An *entry* is one word: the lower 32 bits of the hash, and the slot. They stand in a power of two of
//! places, each at the place that its hash names or, where that is taken, at the next free one
//! behind it; taking one out moves those behind it up, so that nothing marks where something was. A
//! lookup reads words that follow each other, nearly always within one cache line, and looks into the
//! slab for the one whose hash is right.
//!
//! A table that grows is read through once and asks the slab nothing, for the hashes are in it. What no
//! cache holds, as a hundred thousand sessions, is only touched where it is used.
//!
//! Whoever chooses keys could have many wait for one place if they knew the hash: it is keyed
//! (`hash.rs`). Limits: as many entries as the slab has slots, in at most two and a half times as many words.

/// The lower half of an entry: its slot, and one more, so that zero is a free place.
const SLOT_BITS: u32 = 32;
/// Places of the first table.
const PLACES_MIN: usize = 16;

/// Slots of a slab by hashes of their contents.
#[derive(Clone, Debug, Default)]
pub(super) struct SlotIndex {
    /// None, or a power of two; zero is free.
    places: Vec<u64>,
    len: usize,
}

impl SlotIndex {
    /// The first slot under this hash whose content is `wanted`.
    #[inline]
    pub fn find(&self, hash: u64, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        self.under(hash).find(|slot| wanted(*slot))
    }

    /// The slots under this hash.
    #[inline(always)]
    pub fn under(&self, hash: u64) -> Under<'_> {
        Under {
            index: self,
            hash: hash as u32,
            at: hash as usize,
        }
    }

    /// Puts a slot under a hash, beside others that have the same.
    #[inline]
    pub fn insert(&mut self, hash: u64, slot: u32) {
        if self.is_full() {
            self.grow();
        }
        self.put(entry(hash, slot));
        self.len += 1;
    }

    /// Takes a slot out that stands under this hash.
    pub fn remove(&mut self, hash: u64, slot: u32) {
        let gone = entry(hash, slot);
        let mut hole = hash as usize;
        loop {
            match self.places.get(hole & self.mask()) {
                None | Some(0) => return,
                Some(found) if *found == gone => break,
                Some(_) => hole += 1,
            }
        }
        self.len -= 1;
        // What stands behind moves up as far as its hash allows (Knuth, The Art of Computer
        // Programming, volume 3, section 6.4, algorithm R).
        let mask = self.mask();
        let mut next = hole;
        loop {
            next += 1;
            let entry = self.places[next & mask];
            if entry == 0 {
                break;
            }
            let distance = next.wrapping_sub(home(entry)) & mask;
            if distance >= next - hole {
                self.places[hole & mask] = entry;
                hole = next;
            }
        }
        self.places[hole & mask] = 0;
    }

    #[inline]
    fn mask(&self) -> usize {
        self.places.len().wrapping_sub(1)
    }

    /// Whether one more would leave less than a fifth of the places free. What is not there is then
    /// known by 13 words on average, which are in two cache lines; half as full, by two. More places
    /// would cost a new session more than that: each page of them is one that the kernel has to clear.
    #[inline]
    fn is_full(&self) -> bool {
        5 * (self.len + 1) > 4 * self.places.len()
    }

    #[cold]
    fn grow(&mut self) {
        let count = (2 * self.places.len()).max(PLACES_MIN);
        let old = core::mem::replace(&mut self.places, vec![0; count]);
        for entry in old.into_iter().filter(|entry| *entry != 0) {
            self.put(entry);
        }
    }

    /// Puts an entry at the first free place from its own on.
    #[inline]
    fn put(&mut self, entry: u64) {
        let mask = self.mask();
        let mut at = home(entry);
        while self.places[at & mask] != 0 {
            at += 1;
        }
        self.places[at & mask] = entry;
    }
}

/// The slots under a hash.
pub(super) struct Under<'i> {
    index: &'i SlotIndex,
    hash: u32,
    at: usize,
}

impl Iterator for Under<'_> {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        loop {
            // Less than all places are taken: there is a free one to stop at.
            let entry = *self.index.places.get(self.at & self.index.mask())?;
            if entry == 0 {
                return None;
            }
            self.at += 1;
            if (entry >> SLOT_BITS) as u32 == self.hash {
                return Some(slot_of(entry));
            }
        }
    }
}

#[inline]
const fn entry(hash: u64, slot: u32) -> u64 {
    hash << SLOT_BITS | (slot as u64 + 1)
}

#[inline]
const fn slot_of(entry: u64) -> u32 {
    (entry as u32).wrapping_sub(1)
}

/// The place that an entry's hash names, before the number of places is counted in.
#[inline]
const fn home(entry: u64) -> usize {
    (entry >> SLOT_BITS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The slots under a hash, in any order.
    fn all(index: &SlotIndex, hash: u64) -> Vec<u32> {
        let mut found: Vec<u32> = index.under(hash).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn it_finds_what_a_model_has_whatever_comes_and_goes() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut index = SlotIndex::default();
            let mut model: HashMap<u32, u64> = HashMap::new();
            // Few hashes at the table's end and beginning, so that rows of entries go round it.
            let hashes: Vec<u64> = (0..20)
                .map(|n| (rng.u64(..) << 4) + (n + 11) % 16)
                .collect();
            for _ in 0..400 {
                let slot = rng.u32(..40);
                match model.remove(&slot) {
                    Some(hash) => index.remove(hash, slot),
                    None => {
                        let hash = hashes[rng.usize(..hashes.len())];
                        index.insert(hash, slot);
                        model.insert(slot, hash);
                    }
                }
                for hash in &hashes {
                    let mut wanted: Vec<u32> = model
                        .iter()
                        .filter(|entry| *entry.1 as u32 == *hash as u32)
                        .map(|(slot, _)| *slot)
                        .collect();
                    wanted.sort_unstable();
                    assert_eq!(all(&index, *hash), wanted, "seed {seed}");
                }
                assert_eq!(index.len, model.len());
            }
        }
    }

    #[test]
    fn nothing_is_found_in_an_empty_one_and_nothing_taken_out() {
        let mut index = SlotIndex::default();
        assert_eq!(index.find(7, |_| true), None);
        index.remove(7, 0);
        index.insert(7, 0);
        index.remove(7, 1);
        assert_eq!(index.find(7, |_| true), Some(0));
        index.remove(7, 0);
        assert_eq!((index.find(7, |_| true), index.len), (None, 0));
    }

    #[test]
    fn the_largest_slot_and_a_hash_of_zero_are_entries() {
        let mut index = SlotIndex::default();
        index.insert(0, u32::MAX - 1);
        index.insert(0, 0);
        assert_eq!(all(&index, 0), [0, u32::MAX - 1]);
    }
}
