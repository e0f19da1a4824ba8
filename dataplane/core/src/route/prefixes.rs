//! Longest-prefix match over a few distinct prefix lengths.
//!
//! One hash lookup per distinct length, longest first: networks of one host share a handful of
//! lengths however many they are.

use std::collections::HashMap;
use std::net::IpAddr;

use rustc_hash::FxBuildHasher;

use crate::addr::Prefix;

/// A map from prefixes to values, asked by address.
#[derive(Clone, Debug)]
pub struct PrefixTable<T> {
    v4: Family<T>,
    v6: Family<T>,
}

#[derive(Clone, Debug)]
struct Family<T> {
    /// Distinct lengths, longest first.
    lengths: Vec<u8>,
    entries: HashMap<(u8, u128), T, FxBuildHasher>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        let family = || Family {
            lengths: Vec::new(),
            entries: HashMap::default(),
        };
        Self {
            v4: family(),
            v6: family(),
        }
    }
}

impl<T> PrefixTable<T> {
    /// Puts a value at a prefix; returns what stood there.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let (family, bits) = match prefix.address {
            IpAddr::V4(_) => (&mut self.v4, bits(prefix.address)),
            IpAddr::V6(_) => (&mut self.v6, bits(prefix.address)),
        };
        if let Err(at) = family.lengths.binary_search_by(|len| prefix.len.cmp(len)) {
            family.lengths.insert(at, prefix.len);
        }
        family
            .entries
            .insert((prefix.len, mask(bits, prefix.len)), value)
    }

    /// Puts a value at a prefix where none stands.
    pub fn insert_first(&mut self, prefix: Prefix, value: T) {
        if let Some(first) = self.insert(prefix, value) {
            self.insert(prefix, first);
        }
    }

    /// The value at the longest prefix that covers `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        let family = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let bits = bits(address);
        family
            .lengths
            .iter()
            .find_map(|len| family.entries.get(&(*len, mask(bits, *len))))
    }
}

/// An address left-aligned in 128 bits.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(bits: u128, len: u8) -> u128 {
    match len {
        0 => 0,
        len => bits & (u128::MAX << (128 - u32::from(len.min(128)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), len.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order_of_insertion() {
        let mut table = PrefixTable::default();
        for (text, value) in [
            ("10.0.0.0/8", 8),
            ("10.1.2.0/24", 24),
            ("0.0.0.0/0", 0),
            ("10.1.0.0/16", 16),
        ] {
            assert_eq!(table.insert(prefix(text), value), None);
        }
        let found = |address: &str| table.lookup(address.parse().unwrap()).copied();
        assert_eq!(found("10.1.2.3"), Some(24));
        assert_eq!(found("10.1.3.3"), Some(16));
        assert_eq!(found("10.2.3.3"), Some(8));
        assert_eq!(found("11.2.3.3"), Some(0));
        assert_eq!(found("fe80::1"), None, "another family");
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_matter_and_a_second_insert_replaces() {
        let mut table = PrefixTable::default();
        assert_eq!(table.insert(prefix("fd00:1::7/64"), 1), None);
        assert_eq!(table.insert(prefix("fd00:1::/64"), 2), Some(1));
        assert_eq!(table.lookup("fd00:1::ffff".parse().unwrap()), Some(&2));
        assert_eq!(table.lookup("fd00:2::ffff".parse().unwrap()), None);
    }
}
