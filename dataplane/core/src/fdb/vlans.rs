//! A number for every VLAN in use, so that a station of a VLAN has a place in the index as well.
//!
//! The index knows a key by one word: 16 bits for the bridge domain, 48 for the MAC. A VLAN of a domain
//! in which VLANs count takes the place of a domain there, by a number of its own beyond those of the
//! domains: what IEEE 802.1Q-2018 clause 8.8.8 calls a filtering identifier. It is given when a frame
//! first asks for it, is read without a lock, and stays, so no word ever means two stations.
//!
//! Limits: as many numbers as 16 bits have beyond [`DOMAINS_MAX`]. Stations of further VLANs are found
//! in the table of record, as are those of domains that were not opened.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::OnceLock;

use super::entry::FdbKey;
use crate::addr::DomainId;
use crate::topology::DOMAINS_MAX;

/// VLANs of a domain, reserved ones included.
const VLANS: usize = 4_096;
/// The first number that is no domain's.
const FIRST: u32 = DOMAINS_MAX as u32;

/// Stands for a VLAN that has no number yet; no VLAN gets it.
const NONE: u16 = 0;

/// The numbers of the VLANs.
#[derive(Debug)]
pub(super) struct VlanNumbers {
    /// By domain, once it is open, and by VLAN.
    domains: Box<[OnceLock<Box<[AtomicU16]>>]>,
    next: AtomicU32,
}

impl VlanNumbers {
    /// No VLAN has a number.
    pub fn new() -> Self {
        Self {
            domains: (0..DOMAINS_MAX).map(|_| OnceLock::new()).collect(),
            next: AtomicU32::new(FIRST),
        }
    }

    /// Makes room for the numbers of a domain. Allocates; not for a worker.
    pub fn open(&self, domain: DomainId) {
        if let Some(numbers) = self.domains.get(domain.index()) {
            numbers.get_or_init(|| (0..VLANS).map(|_| AtomicU16::new(NONE)).collect());
        }
    }

    /// The key of a station in a VLAN in one word, if it has one.
    #[inline(never)]
    pub fn word(&self, key: FdbKey) -> Option<u64> {
        let numbers = self.domains.get(key.domain().index())?.get()?;
        let number = numbers.get(key.vlan().index())?;
        let number = match number.load(Relaxed) {
            NONE => self.give(number)?,
            number => number,
        };
        Some(u64::from(number) << 48 | key.mac().to_u64())
    }

    #[cold]
    fn give(&self, number: &AtomicU16) -> Option<u16> {
        let next = |next: u32| (next <= u32::from(u16::MAX)).then_some(next + 1);
        let next = self.next.fetch_update(Relaxed, Relaxed, next).ok()?;
        match number.compare_exchange(NONE, next as u16, Relaxed, Relaxed) {
            Ok(_) => Some(next as u16),
            // Another worker was first; the number that was for this VLAN is lost.
            Err(given) => Some(given),
        }
    }
}

// A domain's own number is never a VLAN's, and every number fits its bits.
const _: () = assert!(DOMAINS_MAX > NONE as usize && DOMAINS_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{MacAddr, VlanId};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn key(domain: u16, vlan: u16) -> FdbKey {
        FdbKey::new(DomainId(domain), VlanId(vlan), MAC)
    }

    #[test]
    fn every_vlan_of_an_open_domain_has_a_word_of_its_own_for_good() {
        let numbers = VlanNumbers::new();
        assert_eq!(numbers.word(key(3, 7)), None, "not open");
        numbers.open(DomainId(3));
        numbers.open(DomainId(4));
        let keys = [key(3, 7), key(3, 8), key(4, 7), key(3, 4_094)];
        let words = keys.map(|key| numbers.word(key).unwrap());
        numbers.open(DomainId(3));
        assert_eq!(keys.map(|key| numbers.word(key).unwrap()), words);
        for (at, word) in words.iter().enumerate() {
            assert!(!words[..at].contains(word));
            assert!(word >> 48 >= u64::from(FIRST), "no domain has this number");
            assert_eq!(MacAddr::from_u64(*word), MAC);
        }
        assert_eq!(numbers.word(key(5, 7)), None, "not open");
        assert_eq!(numbers.word(key(3, 4_096)), None, "no VLAN");
    }

    #[test]
    fn vlans_beyond_the_last_number_have_none() {
        let numbers = VlanNumbers::new();
        let domains = (u16::MAX - DOMAINS_MAX as u16) / VLANS as u16 + 2;
        let mut words = std::collections::HashSet::new();
        for domain in 0..domains {
            numbers.open(DomainId(domain));
            words.extend((0..VLANS as u16).filter_map(|vlan| numbers.word(key(domain, vlan))));
        }
        assert_eq!(words.len(), usize::from(u16::MAX) + 1 - DOMAINS_MAX);
    }
}
