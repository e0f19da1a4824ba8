//! A hierarchical timer wheel: things that wait, each until a moment of its own.
//!
//! # Theory of operation
//! A moment is eleven digits of six bits, and every level of the wheel has a slot for each value
//! of one digit. An entry stands on the level of the highest digit in which its moment differs
//! from the wheel's own time, so whatever stands on a lower level is due before anything on a
//! higher one, and within a level the slots are in order. When the first slot's turn has come the
//! wheel's time moves to where that slot begins and its entries *cascade* to lower levels; on the
//! lowest a slot is one nanosecond, and its entries leave in the order in which they came. An
//! entry is moved at most ten times in its life, and once or twice where many wait.
//!
//! Every slot knows the earliest moment in it, so [`Wheel::next_due`] is exact and nobody wakes up
//! to cascade only.
//!
//! Limits: as many entries as the wheel was made for; all memory is allocated then. Not
//! thread-safe: a worker has its own.

use crate::time::Instant;

/// Bits of a digit.
const DIGIT_BITS: u32 = 6;
/// Slots of a level: the values of a digit, a bit of a word each.
const SLOTS: usize = 1 << DIGIT_BITS;
/// Digits of 64 bits of nanoseconds.
const LEVELS: usize = u64::BITS.div_ceil(DIGIT_BITS) as usize;
/// No entry.
const NONE: u32 = u32::MAX;

/// Things that wait until they are due. Of what is due at the same moment, what was inserted first
/// comes first.
#[derive(Debug)]
pub struct Wheel<T> {
    levels: Box<[Level; LEVELS]>,
    /// Which levels have entries, a bit each.
    occupied: u32,
    entries: Vec<Entry<T>>,
    capacity: usize,
    /// The first of the entries that are free.
    free: u32,
    len: usize,
    /// The wheel's time: no entry is due before it.
    elapsed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    /// Which slots have entries, a bit each.
    occupied: u64,
    slots: [Slot; SLOTS],
}

/// A list of entries, oldest first.
#[derive(Debug, Clone, Copy)]
struct Slot {
    first: u32,
    last: u32,
    /// When the first of them is due.
    earliest: u64,
}

#[derive(Debug)]
struct Entry<T> {
    due: u64,
    next: u32,
    /// Absent of an entry that is free.
    item: Option<T>,
}

impl Slot {
    const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
        earliest: u64::MAX,
    };
}

impl<T> Entry<T> {
    const FREE: Self = Self {
        due: 0,
        next: NONE,
        item: None,
    };
}

impl<T> Wheel<T> {
    /// An empty wheel for up to `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(NONE as usize);
        let level = Level {
            occupied: 0,
            slots: [Slot::EMPTY; SLOTS],
        };
        Self {
            levels: Box::new([level; LEVELS]),
            occupied: 0,
            entries: Vec::with_capacity(capacity),
            capacity,
            free: NONE,
            len: 0,
            elapsed: 0,
        }
    }

    /// Lets `item` wait until `due`; what is due already leaves with the next
    /// [`Wheel::take_due`].
    ///
    /// # Errors
    /// The item, when as many wait as may.
    pub fn insert(&mut self, item: T, due: Instant, now: Instant) -> Result<(), T> {
        if self.len == 0 {
            // Nothing waits, so the time may go on without cascading.
            self.elapsed = self.elapsed.max(now.nanos());
        }
        let due = due.nanos().max(self.elapsed);
        if self.free == NONE {
            if self.entries.len() == self.capacity {
                return Err(item);
            }
            self.free = self.entries.len() as u32;
            self.entries.push(Entry::FREE);
        }
        let index = self.free;
        let entry = &mut self.entries[index as usize];
        self.free = entry.next;
        (entry.due, entry.item) = (due, Some(item));
        self.len += 1;
        self.link(index);
        Ok(())
    }

    /// Takes out what is due first, if it is due by now. Call until `None`.
    pub fn take_due(&mut self, now: Instant) -> Option<T> {
        loop {
            let (level, digit) = self.first_slot()?;
            let slot = self.levels[level].slots[digit];
            if slot.earliest > now.nanos() {
                return None;
            }
            if level > 0 {
                self.cascade(level, digit);
                continue;
            }
            self.elapsed = slot.earliest;
            let next = self.entries[slot.first as usize].next;
            if next == NONE {
                self.clear(level, digit);
            } else {
                self.levels[level].slots[digit].first = next;
            }
            return self.release(slot.first);
        }
    }

    /// When the first entry is due, to the nanosecond.
    pub fn next_due(&self) -> Option<Instant> {
        let (level, digit) = self.first_slot()?;
        Some(Instant::from_nanos(
            self.levels[level].slots[digit].earliest,
        ))
    }

    /// Entries that wait.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot whose entries are due before all others.
    fn first_slot(&self) -> Option<(usize, usize)> {
        if self.occupied == 0 {
            return None;
        }
        let level = self.occupied.trailing_zeros() as usize;
        let digit = self.levels[level].occupied.trailing_zeros() as usize;
        Some((level, digit))
    }

    /// Moves the time to where a slot begins, and its entries to lower levels, in their order.
    fn cascade(&mut self, level: usize, digit: usize) {
        let slot = self.levels[level].slots[digit];
        let below = (1u64 << (DIGIT_BITS * level as u32)) - 1;
        self.elapsed = slot.earliest & !below;
        self.clear(level, digit);
        let mut index = slot.first;
        while index != NONE {
            let next = core::mem::replace(&mut self.entries[index as usize].next, NONE);
            self.link(index);
            index = next;
        }
    }

    /// Puts an entry at the end of the slot that its moment belongs to.
    fn link(&mut self, index: u32) {
        let due = self.entries[index as usize].due;
        self.entries[index as usize].next = NONE;
        let highest = u64::BITS - 1 - ((due ^ self.elapsed) | 1).leading_zeros();
        let level = highest / DIGIT_BITS;
        let digit = (due >> (DIGIT_BITS * level)) as usize % SLOTS;
        let level = level as usize;
        self.occupied |= 1 << level;
        self.levels[level].occupied |= 1 << digit;
        let slot = &mut self.levels[level].slots[digit];
        let last = core::mem::replace(&mut slot.last, index);
        slot.earliest = slot.earliest.min(due);
        match last {
            NONE => slot.first = index,
            last => self.entries[last as usize].next = index,
        }
    }

    fn clear(&mut self, level: usize, digit: usize) {
        let slots = &mut self.levels[level];
        slots.slots[digit] = Slot::EMPTY;
        slots.occupied &= !(1 << digit);
        if slots.occupied == 0 {
            self.occupied &= !(1 << level);
        }
    }

    /// Gives an entry's place free.
    fn release(&mut self, index: u32) -> Option<T> {
        let entry = &mut self.entries[index as usize];
        entry.next = core::mem::replace(&mut self.free, index);
        self.len -= 1;
        entry.item.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn what_is_due_at_the_same_moment_leaves_in_the_order_in_which_it_came() {
        let mut wheel = Wheel::new(8);
        wheel.insert('a', at(1_000_000), at(0)).unwrap();
        wheel.insert('b', at(999_999), at(0)).unwrap();
        assert_eq!(wheel.take_due(at(999_998)), None);
        assert_eq!(wheel.take_due(at(999_999)), Some('b'));
        // On a lower level than its elder, until that one comes down.
        wheel.insert('c', at(1_000_000), at(999_999)).unwrap();
        assert_eq!(wheel.next_due(), Some(at(1_000_000)));
        assert_eq!(wheel.take_due(at(999_999)), None);
        assert_eq!(wheel.take_due(at(2_000_000)), Some('a'));
        assert_eq!(wheel.take_due(at(2_000_000)), Some('c'));
        assert_eq!(wheel.take_due(at(2_000_000)), None);
        assert!(wheel.is_empty() && wheel.next_due().is_none());
    }

    #[test]
    fn a_full_wheel_refuses_the_new_and_keeps_the_old() {
        let mut wheel = Wheel::new(2);
        wheel.insert(1, at(10), at(0)).unwrap();
        wheel.insert(2, at(20), at(0)).unwrap();
        assert_eq!(wheel.insert(3, at(5), at(0)), Err(3));
        assert_eq!(wheel.take_due(at(10)), Some(1));
        wheel.insert(4, at(15), at(10)).unwrap();
        assert_eq!(wheel.len(), 2);
        assert_eq!(wheel.take_due(at(u64::MAX)), Some(4));
        assert_eq!(wheel.take_due(at(u64::MAX)), Some(2));
    }

    #[test]
    fn the_far_end_of_time_can_be_waited_for() {
        let mut wheel = Wheel::new(2);
        wheel.insert((), at(u64::MAX), at(1)).unwrap();
        assert_eq!(wheel.next_due(), Some(at(u64::MAX)));
        assert_eq!(wheel.take_due(at(u64::MAX - 1)), None);
        assert_eq!(wheel.take_due(at(u64::MAX)), Some(()));
    }

    #[derive(Clone, Copy, Debug)]
    enum Do {
        /// Insert, due so far from now.
        Insert(u64),
        /// Let time pass, then take all that is due.
        Pass(u64),
        /// Take one that is due, if any.
        Take,
    }

    fn spans() -> impl Strategy<Value = u64> {
        // Every level is met: the exponent is drawn, then what is below it.
        (0u32..45, any::<u64>()).prop_map(|(bits, rest)| rest & ((1 << bits) - 1))
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let step = prop_oneof![
            4 => spans().prop_map(Do::Insert),
            2 => spans().prop_map(Do::Pass),
            1 => Just(Do::Take),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_wheel_is_a_map_sorted_by_due_time_and_arrival(start in spans(), steps in steps()) {
            const CAPACITY: usize = 40;
            let mut wheel = Wheel::new(CAPACITY);
            let mut model = BTreeMap::new();
            let (mut now, mut number) = (start, 0u64);
            for step in steps {
                let takes = match step {
                    Do::Insert(after) => {
                        let (due, room) = (now + after, model.len() < CAPACITY);
                        let inserted = wheel.insert(number, at(due), at(now));
                        prop_assert_eq!(inserted.is_ok(), room);
                        if room {
                            model.insert((due, number), number);
                        }
                        number += 1;
                        0
                    }
                    Do::Pass(span) => {
                        now += span;
                        usize::MAX
                    }
                    Do::Take => 1,
                };
                for _ in 0..takes {
                    let due = model.first_key_value().filter(|((due, _), _)| *due <= now);
                    let wanted = due.map(|(key, number)| (*key, *number));
                    prop_assert_eq!(wheel.take_due(at(now)), wanted.map(|(_, number)| number));
                    match wanted {
                        Some((key, _)) => model.remove(&key),
                        None => break,
                    };
                }
                let first = model.first_key_value().map(|((due, _), _)| at(*due));
                prop_assert_eq!(wheel.next_due(), first);
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
