//! A vector whose slots are used again, so that an index stays valid while tables hold it.

use core::ops::{Index, IndexMut};

/// Values by a `u32` that stays theirs until they are removed.
#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

/// Slots that the first value takes room for: so many that the kernel maps them by themselves
/// (`M_MMAP_THRESHOLD` of mallopt(3)). Only pages that are used take memory then, and a slab that grows
/// has its pages moved by the kernel; one that grew from a few slots spent a fifth of the time of a new
/// session on copies and on pages that were soon given back.
const SLOTS_FIRST: usize = 4_096;

/// Why indexing cannot fail: the tables and lists of a shard name a slot only while it is filled.
const OCCUPIED: &str = "an index is taken out of every table and list before its slot is emptied";

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        if self.slots.len() == self.slots.capacity() {
            self.make_room();
        }
        // A shard holds no more than `sessions_max` values, and u32::MAX stands for "none".
        self.slots.push(Some(value));
        (self.slots.len() - 1) as u32
    }

    #[cold]
    fn make_room(&mut self) {
        let more = self.slots.len().max(SLOTS_FIRST);
        self.slots.reserve_exact(more);
    }

    pub fn remove(&mut self, index: u32) {
        if self.slots[index as usize].take().is_some() {
            self.free.push(index);
        }
    }

    /// The value in a slot, if it is filled.
    pub fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    /// Slots, empty ones included.
    pub fn slot_count(&self) -> u32 {
        // As in `insert`.
        self.slots.len() as u32
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((index as u32, slot.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, index: u32) -> &T {
        self.slots[index as usize].as_ref().expect(OCCUPIED)
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.slots[index as usize].as_mut().expect(OCCUPIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_others_keep_their_index() {
        let mut slab = Slab::new();
        let [a, b, c] = ["a", "b", "c"].map(|text| slab.insert(text));
        slab.remove(b);
        assert_eq!((slab.len(), slab[a], slab[c]), (2, "a", "c"));
        assert_eq!(slab.insert("d"), b);
        slab[a] = "e";
        let all: Vec<_> = slab.iter().map(|(_, text)| *text).collect();
        assert_eq!(all, ["e", "d", "c"]);
    }

    #[test]
    fn nothing_is_copied_before_the_first_room_is_used_up() {
        let mut slab = Slab::new();
        slab.insert([0_u64; 8]);
        let place = slab.slots.as_ptr();
        for value in 1..SLOTS_FIRST as u64 {
            slab.insert([value; 8]);
        }
        assert_eq!(slab.slots.as_ptr(), place);
        slab.insert([u64::MAX; 8]);
        assert_eq!(slab.slots.capacity(), 2 * SLOTS_FIRST);
        let last = SLOTS_FIRST as u32;
        assert_eq!([slab[0], slab[last]], [[0; 8], [u64::MAX; 8]]);
    }
}
