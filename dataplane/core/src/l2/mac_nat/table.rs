//! Which station inside has which address: what leads answers back that came to the port's own MAC.
//!
//! # Theory of operation
//! Slots in atomic words, found by a hash of VLAN and address and the [`PROBED_MAX`] slots after it.
//! Each is a *sequence lock*: its counter is odd while it is written, and a reader that has seen it
//! change reads again. A reader takes no lock and writes nothing; whoever sends again what the table
//! knows writes at most one word a minute. New and moved addresses are written under a mutex.
//!
//! A slot that was used once stays so; an entry whose time is over gives its slot to the next
//! address that comes along. Full means: the new one is refused and counted, the old ones stay.
//!
//! Limits: [`MAC_NAT_ADDRESSES_MAX`] addresses a port, [`MAC_NAT_AGEING`].

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::RandomState;

use crate::addr::{MacAddr, VlanId};
use crate::time::{Duration, Instant};

/// Addresses that may be behind one port at a time: sixteen for each of the 256 stations that a
/// subnet of the usual size has, temporary IPv6 addresses included.
pub const MAC_NAT_ADDRESSES_MAX: usize = 4_096;

/// How long an address is known whose station sends nothing: as long as the longest ARP timeout in
/// use, four hours, by which whoever is outside has to ask anew.
pub const MAC_NAT_AGEING: Duration = Duration::from_secs(4 * 3_600);

/// Twice as many slots as addresses, so that a few steps find a free one.
const SLOTS: usize = 2 * MAC_NAT_ADDRESSES_MAX;
/// Slots that an address may be in. At half load a longer run of used slots is improbable, and
/// nobody who does not know the hash can bring one about.
const PROBED_MAX: usize = 32;
/// An entry is refreshed when it has not been for so long: a busy station writes once a minute.
const REFRESH_SECONDS: u32 = 60;
/// Times that a reader tries again while its slot is written; then the address counts as unknown.
const READS_MAX: usize = 64;

/// Bits of a slot's word besides the MAC: the VLAN, the family, and that it was ever used.
const VLAN_SHIFT: u32 = 48;
const FAMILY_V6: u64 = 1 << 60;
const USED: u64 = 1 << 61;
const MAC_BITS: u64 = (1 << VLAN_SHIFT) - 1;

/// What a station is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Located {
    /// The VLAN in which it is asked for.
    pub vlan: VlanId,
    /// Its address.
    pub address: IpAddr,
}

/// There is no room for another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// An entry, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacNatEntry {
    /// The VLAN and address.
    pub located: Located,
    /// The station that has it.
    pub mac: MacAddr,
    /// How long ago it was last heard.
    pub age: Duration,
}

/// The table of one port, shared by all workers.
pub struct MacNatTable {
    slots: Box<[Slot]>,
    hash: RandomState,
    writer: Mutex<Writer>,
    /// When a station inside has last sent by the port's own MAC, in seconds plus one; 0 for never.
    owner_seen: AtomicU32,
    /// Frames whose address was refused.
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Writer {
    /// Entries that are alive, and those whose end nobody has noticed.
    count: usize,
    /// The second in which the dead were last counted out.
    swept: Option<u32>,
}

#[derive(Default)]
struct Slot {
    /// Odd while the words below it are written.
    sequence: AtomicU32,
    /// When the address was last heard, in seconds plus one; 0 for an entry that is dead.
    seen: AtomicU32,
    address: [AtomicU64; 2],
    /// MAC, VLAN, family, [`USED`].
    station: AtomicU64,
}

/// A slot's words, read as of one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Words {
    address: [u64; 2],
    station: u64,
    seen: u32,
}

impl Located {
    fn words(self) -> ([u64; 2], u64) {
        let bits = match self.address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let family = match self.address {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => FAMILY_V6,
        };
        let vlan = u64::from(self.vlan.0 & 0x0fff) << VLAN_SHIFT;
        ([(bits >> 64) as u64, bits as u64], USED | family | vlan)
    }
}

impl Words {
    fn is(&self, (address, key): ([u64; 2], u64)) -> bool {
        self.address == address && self.station & !MAC_BITS == key
    }

    fn is_alive(&self, now: u32) -> bool {
        self.seen != 0 && is_recent(self.seen, now)
    }

    fn located(&self) -> Located {
        let [high, low] = self.address;
        let address = if self.station & FAMILY_V6 == 0 {
            Ipv4Addr::from_bits(low as u32).into()
        } else {
            Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
        };
        let vlan = VlanId((self.station >> VLAN_SHIFT) as u16 & 0x0fff);
        Located { vlan, address }
    }
}

/// The clock's second plus one, for 0 has a meaning of its own.
fn second(now: Instant) -> u32 {
    now.second().saturating_add(1)
}

fn is_recent(seen: u32, now: u32) -> bool {
    u64::from(now.saturating_sub(seen)) < MAC_NAT_AGEING.as_secs()
}

impl Slot {
    /// Reads the slot; `None` where it is being written all the time.
    fn read(&self) -> Option<Words> {
        for _ in 0..READS_MAX {
            // With the release fence of `write`: whoever sees a new word sees the counter odd.
            let before = self.sequence.load(Ordering::Acquire);
            let [high, low] = &self.address;
            let words = Words {
                address: [high.load(Ordering::Relaxed), low.load(Ordering::Relaxed)],
                station: self.station.load(Ordering::Relaxed),
                seen: self.seen.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                return Some(words);
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Writes the slot. The caller holds the mutex.
    fn write(&self, words: Words) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let [high, low] = &self.address;
        high.store(words.address[0], Ordering::Relaxed);
        low.store(words.address[1], Ordering::Relaxed);
        self.station.store(words.station, Ordering::Relaxed);
        self.seen.store(words.seen, Ordering::Relaxed);
        // With the first load of `read`.
        self.sequence
            .store(before.wrapping_add(2), Ordering::Release);
    }
}

impl MacNatTable {
    /// A table without entries. Its hash is keyed with `seed`, so that nobody can aim at a slot.
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            hash: RandomState::with_seeds(rng.u64(..), rng.u64(..), rng.u64(..), rng.u64(..)),
            writer: Mutex::default(),
            owner_seen: AtomicU32::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The station that has an address.
    pub fn station(&self, located: Located, now: Instant) -> Option<MacAddr> {
        let (_, words) = self.find(located)?;
        words
            .is_alive(second(now))
            .then(|| MacAddr::from_u64(words.station & MAC_BITS))
    }

    /// Takes note that a station has sent from an address.
    ///
    /// # Errors
    /// [`TableFull`], and the address counted, when it is new and there is no room for it.
    pub fn hear(&self, located: Located, mac: MacAddr, now: Instant) -> Result<(), TableFull> {
        let second = second(now);
        if let Some((slot, words)) = self.find(located)
            && words.is_alive(second)
            && words.station & MAC_BITS == mac.to_u64()
        {
            if second.saturating_sub(words.seen) >= REFRESH_SECONDS {
                slot.seen.store(second, Ordering::Relaxed);
            }
            return Ok(());
        }
        self.write(located, mac, second).inspect_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Takes note that a station inside has sent by the port's own MAC.
    pub fn hear_owner(&self, now: Instant) {
        let second = second(now);
        let seen = self.owner_seen.load(Ordering::Relaxed);
        if second.saturating_sub(seen) >= REFRESH_SECONDS || seen == 0 {
            self.owner_seen.store(second, Ordering::Relaxed);
        }
    }

    /// Whether a station inside has the port's own MAC.
    pub fn has_owner(&self, now: Instant) -> bool {
        let seen = self.owner_seen.load(Ordering::Relaxed);
        seen != 0 && is_recent(seen, second(now))
    }

    /// Frames whose address was refused, for the table was full.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What is known, by VLAN and address.
    pub fn entries(&self, now: Instant) -> Vec<MacNatEntry> {
        let second = second(now);
        let words = self.slots.iter().filter_map(Slot::read);
        let alive = words.filter(|words| words.station != 0 && words.is_alive(second));
        let entry = |words: Words| MacNatEntry {
            located: words.located(),
            mac: MacAddr::from_u64(words.station & MAC_BITS),
            age: Duration::from_secs(second.saturating_sub(words.seen).into()),
        };
        let mut entries: Vec<MacNatEntry> = alive.map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.located);
        entries
    }

    /// The slots that an address may be in, nearest first.
    fn slots_of(&self, key: ([u64; 2], u64)) -> impl Iterator<Item = &Slot> {
        let first = self.hash.hash_one(key) as usize;
        let places = (0..PROBED_MAX).map(move |step| first.wrapping_add(step) % SLOTS);
        places.filter_map(|place| self.slots.get(place))
    }

    fn find(&self, located: Located) -> Option<(&Slot, Words)> {
        let key = located.words();
        for slot in self.slots_of(key) {
            let words = slot.read()?;
            if words.station == 0 {
                return None;
            }
            if words.is(key) {
                return Some((slot, words));
            }
        }
        None
    }

    #[cold]
    fn write(&self, located: Located, mac: MacAddr, now: u32) -> Result<(), TableFull> {
        let key = located.words();
        let mut writer = self.writer();
        let mut free = None;
        for slot in self.slots_of(key) {
            let words = slot.read().ok_or(TableFull)?;
            if words.is(key) && words.is_alive(now) {
                slot.write(Words {
                    station: key.1 | mac.to_u64(),
                    seen: now,
                    ..words
                });
                return Ok(());
            }
            if !words.is_alive(now) {
                free = free.or(Some((slot, words)));
            }
            if words.station == 0 {
                break;
            }
        }
        let (slot, words) = free.ok_or(TableFull)?;
        // Whose end nobody has noticed gives its place in the count to its successor.
        if words.seen == 0 {
            self.make_room(&mut writer, now)?;
            writer.count += 1;
        }
        slot.write(Words {
            address: key.0,
            station: key.1 | mac.to_u64(),
            seen: now,
        });
        Ok(())
    }

    /// Counts out the dead where as many are counted as may live, at most once a second.
    fn make_room(&self, writer: &mut Writer, now: u32) -> Result<(), TableFull> {
        if writer.count >= MAC_NAT_ADDRESSES_MAX && writer.swept != Some(now) {
            writer.swept = Some(now);
            for slot in &self.slots {
                let words = slot.read().ok_or(TableFull)?;
                if words.seen != 0 && !words.is_alive(now) {
                    slot.write(Words { seen: 0, ..words });
                    writer.count -= 1;
                }
            }
        }
        match writer.count {
            0..MAC_NAT_ADDRESSES_MAX => Ok(()),
            MAC_NAT_ADDRESSES_MAX.. => Err(TableFull),
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // What a panic has left is whole slots and a count that is off by one at most.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MacNatTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacNatTable")
            .field("writer", &self.writer)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn v4(n: u32) -> Located {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
        let vlan = VlanId(0);
        Located { vlan, address }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(seconds)
    }

    #[test]
    fn an_address_leads_to_the_station_that_has_sent_from_it_last() {
        let table = MacNatTable::new(1);
        assert_eq!(table.station(v4(1), at(0)), None);
        table.hear(v4(1), A, at(0)).unwrap();
        assert_eq!(table.station(v4(1), at(0)), Some(A));
        table.hear(v4(1), B, at(1)).unwrap();
        assert_eq!(table.station(v4(1), at(1)), Some(B));
        let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_compatible();
        let [other_vlan, other_family] = [
            Located {
                vlan: VlanId(7),
                ..v4(1)
            },
            Located {
                address: mapped.into(),
                ..v4(1)
            },
        ];
        assert_eq!(table.station(other_vlan, at(1)), None);
        assert_eq!(table.station(other_family, at(1)), None);
        table.hear(other_family, A, at(2)).unwrap();
        let entry = |located, mac, age| MacNatEntry {
            located,
            mac,
            age: Duration::from_secs(age),
        };
        let wanted = [entry(v4(1), B, 1), entry(other_family, A, 0)];
        assert_eq!(table.entries(at(2)), wanted);
    }

    #[test]
    fn an_address_is_forgotten_four_hours_after_its_station_was_last_heard() {
        let table = MacNatTable::new(1);
        let ageing = MAC_NAT_AGEING.as_secs();
        table.hear(v4(1), A, at(0)).unwrap();
        table.hear(v4(2), A, at(0)).unwrap();
        table.hear(v4(2), A, at(100)).unwrap();
        assert_eq!(table.station(v4(1), at(ageing - 1)), Some(A));
        assert_eq!(table.station(v4(1), at(ageing)), None);
        assert_eq!(table.station(v4(2), at(ageing)), Some(A));
        assert_eq!(table.entries(at(ageing + 100)), []);
        assert!(!table.has_owner(at(0)));
        table.hear_owner(at(0));
        assert!(table.has_owner(at(ageing - 1)) && !table.has_owner(at(ageing)));
    }

    #[test]
    fn a_full_table_refuses_new_addresses_keeps_the_old_and_takes_new_ones_when_those_have_aged() {
        let table = MacNatTable::new(1);
        let max = MAC_NAT_ADDRESSES_MAX as u32;
        for n in 0..max {
            assert_eq!(table.hear(v4(n), A, at(5)), Ok(()), "address {n}");
        }
        for n in max..max + 10 {
            assert_eq!(table.hear(v4(n), B, at(6)), Err(TableFull));
            assert_eq!(table.station(v4(n), at(6)), None);
        }
        assert_eq!(table.refused(), 10);
        assert_eq!(table.hear(v4(3), B, at(6)), Ok(()), "it has only moved");
        for n in (0..max).filter(|n| *n != 3) {
            assert_eq!(table.station(v4(n), at(6)), Some(A), "address {n}");
        }
        let later = at(5 + MAC_NAT_AGEING.as_secs());
        for n in max..2 * max - 1 {
            assert_eq!(table.hear(v4(n), B, later), Ok(()), "address {n}");
        }
        assert_eq!(table.hear(v4(2 * max), B, later), Err(TableFull));
        assert_eq!(table.station(v4(3), later), Some(B));
        assert_eq!(table.entries(later).len(), MAC_NAT_ADDRESSES_MAX);
    }

    #[test]
    fn a_reader_never_sees_half_of_what_is_written() {
        let table = MacNatTable::new(1);
        let macs = [MacAddr([2; 6]), MacAddr([4; 6])];
        table.hear(v4(1), macs[0], at(0)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..20_000 {
                    table.hear(v4(1), macs[turn % 2], at(0)).unwrap();
                }
            });
            for _ in 0..20_000 {
                // Read at a bad moment a slot may count as unknown, but never as another's.
                let found = table.station(v4(1), at(0));
                assert!(found.is_none_or(|mac| macs.contains(&mac)), "{found:?}");
            }
        });
    }
}
