//! The read side of the table: where a frame finds its station without a lock.
//!
//! # Theory of operation
//! The index repeats what the table of record says, in plain atomic words. Four keys and their
//! four entries fill one cache line, two lines a *group*; a key's hash names its group and in it
//! the line that is tried first. So a hit costs one line, nearly always.
//!
//! *Only hits count.* A key that the index does not have is looked up in the table of record, so
//! the index may leave out what it likes: keys whose group is full, and those of a VLAN for which
//! there is no number ([`super::vlans`]).
//!
//! *No entry is ever torn.* A key, once written, keeps its slot for as long as the index lives, so
//! whatever the slot's entry holds was written for that key. An entry of zero means "not here".
//! Slots of stations that are gone are not used again; a sweep that finds too many of them
//! replaces the whole index ([`Index::is_worn`]).
//!
//! *Writers* hold the lock of the key's shard in the table of record, so two of them never write
//! one key at once; claiming a slot is one compare-and-exchange. Every access is `Relaxed`: a word
//! is complete in itself and guards no other memory.
//!
//! Limits: 2 slots for each entry that the table may hold, rounded up to a power of two: 32 to 64
//! bytes an entry. Memory is zero pages
//! until stations are written to it.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use zerocopy::FromZeros;

use super::entry::FdbEntry;

/// Keys in a cache line, and entries after them.
const LINE_KEYS: usize = 4;
/// Words of a cache line.
const LINE_WORDS: usize = 2 * LINE_KEYS;
/// Words of the two lines that a key may be in.
const GROUP_WORDS: usize = 2 * LINE_WORDS;
/// Keys of a group.
const GROUP_KEYS: usize = 2 * LINE_KEYS;

/// 2^64 over the golden ratio, odd: spreads hashes by its multiplication (Knuth, The Art of Computer
/// Programming, volume 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Slots that are lost to stations which are gone before an index is worn, besides as many as
/// there are stations.
const WORN_MIN: usize = 4_096;

/// Keys and entries in atomic words.
pub(super) struct Index {
    words: Box<[AtomicU64]>,
    /// Words before the first that begins a cache line.
    skip: usize,
    /// Bits by which a hash is shifted to leave the number of a line.
    shift: u32,
    /// Factors of the hash, secret so that nobody can aim at one group.
    secret: [u64; 2],
    /// Slots that have a key.
    used: AtomicUsize,
}

impl Index {
    /// An index for up to `entries_max` stations, whose hash is keyed with `seed`.
    pub fn new(entries_max: usize, seed: u64) -> Self {
        // At least two, for a hash cannot be shifted out altogether.
        let groups = (2 * entries_max).div_ceil(GROUP_KEYS).max(2);
        let groups = groups.next_power_of_two();
        let size = groups * GROUP_WORDS + GROUP_WORDS;
        // Zero pages of the allocator, which cost nothing until they are written. An allocation
        // that fails leaves an index without room, and everything in the table of record.
        let words = <[AtomicU64]>::new_box_zeroed_with_elems(size).unwrap_or_default();
        let misaligned = words.as_ptr().addr() / size_of::<AtomicU64>() % GROUP_WORDS;
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            words,
            skip: (GROUP_WORDS - misaligned) % GROUP_WORDS,
            shift: u64::BITS - (2 * groups).ilog2(),
            secret: [rng.u64(..), rng.u64(..) | 1],
            used: AtomicUsize::new(0),
        }
    }

    /// The entry of a key; zero when it is not here.
    #[inline]
    pub fn get(&self, key: u64) -> FdbEntry {
        let first = self.line_of(key);
        let found = self
            .line(first)
            .map_or(Probe::Absent, |line| probe(line, key));
        match found {
            Probe::Found(entry) => entry,
            Probe::Absent => FdbEntry::NONE,
            Probe::Full => self.get_second(first, key),
        }
    }

    #[cold]
    fn get_second(&self, first: usize, key: u64) -> FdbEntry {
        match self.line(self.second(first)).map(|line| probe(line, key)) {
            Some(Probe::Found(entry)) => entry,
            Some(Probe::Absent | Probe::Full) | None => FdbEntry::NONE,
        }
    }

    /// Reads from the line at a position, so that it is in the cache when its key is asked for.
    #[inline]
    pub fn read(&self, at: usize) -> u64 {
        let first = self.words.get(at);
        first.map_or(0, |word| word.load(Relaxed))
    }

    #[cfg(test)]
    pub fn has_on_line(&self, at: usize, key: u64) -> bool {
        let line = self.line(at).map(|line| probe(line, key));
        matches!(line, Some(Probe::Found(_)))
    }

    /// Writes the entry of a key, if the key has a slot or can have one. The caller holds the lock
    /// of the key's shard.
    pub fn put(&self, key: u64, entry: FdbEntry) {
        let first = self.line_of(key);
        for at in [first, self.second(first)] {
            let Some(line) = self.line(at) else { return };
            for slot in 0..LINE_KEYS {
                if self.holds(&line[slot], key) {
                    line[LINE_KEYS + slot].store(entry.0, Relaxed);
                    return;
                }
            }
        }
    }

    /// Forgets a key, which keeps its slot. The caller holds the lock of the key's shard.
    pub fn clear(&self, key: u64) {
        if self.get(key) != FdbEntry::NONE {
            self.put(key, FdbEntry::NONE);
        }
    }

    /// Whether more slots are lost to stations that are gone than there are stations.
    pub fn is_worn(&self, stations: usize) -> bool {
        self.used.load(Relaxed) > 2 * stations + WORN_MIN
    }

    /// Whether a slot has this key, after claiming it if it had none.
    fn holds(&self, slot: &AtomicU64, key: u64) -> bool {
        let found = slot.load(Relaxed);
        if found != 0 {
            return found == key;
        }
        let claimed = slot.compare_exchange(0, key, Relaxed, Relaxed);
        self.used.fetch_add(usize::from(claimed.is_ok()), Relaxed);
        claimed.is_ok()
    }

    /// The position of the line that a key is first looked for in.
    #[inline]
    pub fn line_of(&self, key: u64) -> usize {
        let [flip, factor] = self.secret;
        let product = u128::from(key ^ flip) * u128::from(factor);
        let folded = (product >> 64) as u64 ^ product as u64;
        // The upper bits of a product of numbers in a row are in a row themselves, and a factor in
        // ten has them meet: a second one spreads what the first has mixed.
        let line = folded.wrapping_mul(SPREAD) >> self.shift;
        self.skip + line as usize * LINE_WORDS
    }

    /// The other line of the group.
    #[inline]
    fn second(&self, first: usize) -> usize {
        ((first - self.skip) ^ LINE_WORDS) + self.skip
    }

    #[inline]
    fn line(&self, at: usize) -> Option<&[AtomicU64; LINE_WORDS]> {
        self.words.get(at..)?.first_chunk()
    }
}

/// What a line says of a key.
enum Probe {
    Found(FdbEntry),
    /// Not here, nor in the other line: this one has room.
    Absent,
    Full,
}

#[inline]
fn probe(line: &[AtomicU64; LINE_WORDS], key: u64) -> Probe {
    for slot in 0..LINE_KEYS {
        let found = line[slot].load(Relaxed);
        if found == key {
            return Probe::Found(FdbEntry(line[LINE_KEYS + slot].load(Relaxed)));
        }
        if found == 0 {
            return Probe::Absent;
        }
    }
    Probe::Full
}

impl core::fmt::Debug for Index {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Index")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PortId;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// An entry that could only have been written for this key.
    fn entry_for(key: u64, second: u32) -> FdbEntry {
        FdbEntry::new(PortId((key % 4_099) as u16 + 1), key as u16, second)
    }

    fn is_for(key: u64, entry: FdbEntry) -> bool {
        entry == entry_for(key, entry.second())
    }

    proptest! {
        #[test]
        fn what_the_index_has_is_what_was_written_last(
            seed in any::<u64>(),
            steps in prop::collection::vec((1u64..60, 0u8..8, any::<u32>()), 1..400),
        ) {
            // Two groups of eight: most keys find no room.
            let index = Index::new(4, seed);
            let mut model: HashMap<u64, FdbEntry> = HashMap::new();
            for (key, action, second) in steps {
                if action == 0 {
                    index.clear(key);
                    model.remove(&key);
                } else {
                    index.put(key, entry_for(key, second));
                    model.insert(key, entry_for(key, second));
                }
                prop_assert!(index.used.load(Relaxed) <= 16);
                for key in 1..60 {
                    let found = index.get(key);
                    let right = model.get(&key) == Some(&found) || found == FdbEntry::NONE;
                    prop_assert!(right, "{key}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn of_a_full_table_one_station_in_a_hundred_has_no_slot_and_one_in_a_thousand_at_half_of_that()
    {
        for (stations, missing_max) in [(32_768u64, 400), (16_384, 16)] {
            let index = Index::new(32_768, 3);
            for key in 1..=stations {
                index.put(key << 3, entry_for(key, 1));
            }
            let missing = (1..=stations).filter(|key| index.get(key << 3) == FdbEntry::NONE);
            let missing = missing.count();
            assert!(missing <= missing_max, "{missing} of {stations}");
        }
    }

    #[test]
    fn stations_whose_addresses_are_in_a_row_have_a_slot_whatever_the_secret() {
        const STATIONS: u64 = 1 << 15;
        let rows: [fn(u64) -> u64; 3] = [
            |n| (1 << 48) + 0x0242_ac11_0000 + n,
            |n| (7 << 48) + 0x525a_0000_0000 + (n << 8),
            |n| ((n & 0xff) << 48) + 0x0242_0a00_0000 + (n >> 8),
        ];
        for seed in 0..40 {
            for (row, key) in rows.iter().enumerate() {
                let index = Index::new(2 * STATIONS as usize, seed);
                (0..STATIONS).for_each(|n| index.put(key(n), entry_for(key(n), 1)));
                let missing = |n: &u64| index.get(key(*n)) == FdbEntry::NONE;
                let missing = (0..STATIONS).filter(missing).count();
                // As many as chance leaves out, five times over.
                assert!(missing <= 24, "seed {seed}, row {row}: {missing} missing");
            }
        }
    }

    #[test]
    fn a_cleared_key_keeps_its_slot_and_an_absent_one_claims_none() {
        let index = Index::new(8, 1);
        index.put(5, entry_for(5, 1));
        index.clear(5);
        index.clear(6);
        assert_eq!(index.get(5), FdbEntry::NONE);
        assert_eq!(index.used.load(Relaxed), 1);
        index.put(5, entry_for(5, 2));
        assert_eq!(index.get(5), entry_for(5, 2));
        assert_eq!(index.used.load(Relaxed), 1);
    }

    #[test]
    fn readers_never_see_an_entry_of_another_key_while_writers_fill_the_index() {
        const KEYS: u64 = 512;
        const READERS: usize = 2;
        // Entries that each reader sees, however late the writers get a CPU.
        const SEEN: u32 = 50_000;
        const READS_MAX: u32 = 100_000_000;
        // Room for a quarter: claims, full groups and rewrites all happen at once.
        let index = Index::new(64, 9);
        let reading = AtomicUsize::new(READERS);
        std::thread::scope(|scope| {
            for writer in 0..2u64 {
                let (index, reading) = (&index, &reading);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(writer);
                    for second in 0.. {
                        if reading.load(Relaxed) == 0 {
                            break;
                        }
                        // Each key has one writer at a time, as under its shard's lock.
                        let key = rng.u64(1..KEYS / 2) * 2 + writer;
                        match second % 5 {
                            0 => index.clear(key),
                            _ => index.put(key, entry_for(key, second)),
                        }
                    }
                });
            }
            for reader in 0..READERS as u64 {
                let (index, reading) = (&index, &reading);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(100 + reader);
                    let (mut seen, mut wrong) = (0, None);
                    for _ in 0..READS_MAX {
                        let key = rng.u64(2..KEYS);
                        let entry = index.get(key);
                        if entry != FdbEntry::NONE {
                            seen += 1;
                            wrong = (!is_for(key, entry)).then_some((key, entry));
                        }
                        if seen == SEEN || wrong.is_some() {
                            break;
                        }
                    }
                    // Before anything is asserted: the writers wait for it.
                    reading.fetch_sub(1, Relaxed);
                    assert_eq!((seen, wrong), (SEEN, None), "readers met writers");
                });
            }
        });
    }
}
