//! Ports that the host's kernel must not give to its own sockets: `ip_local_reserved_ports`.
//!
//! The sysctl belongs to the network namespace and may hold somebody else's ports, so ours are
//! merged in, and the text that was there before is written to the store first. Giving back
//! removes our range from what is there *then*, because others may have added ports meanwhile.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::error::Error;
use crate::netns::Netns;

const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Longest text of the sysctl: every other port by itself, five digits and a comma each.
const RESERVED_TEXT_SIZE_MAX: usize = 32_768 * 6 + 1;

/// A set of ports, as sorted, disjoint, non-adjacent ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// Adds a range.
    pub fn insert(&mut self, range: &RangeInclusive<u16>) {
        let (mut first, mut last) = (*range.start(), *range.end());
        self.0.retain(|(from, to)| {
            // Touching counts: 1-2 and 3-4 become 1-4.
            let apart =
                u32::from(*to) + 1 < u32::from(first) || u32::from(last) + 1 < u32::from(*from);
            if !apart {
                first = first.min(*from);
                last = last.max(*to);
            }
            apart
        });
        self.0.push((first, last));
        self.0.sort_unstable();
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: &RangeInclusive<u16>) {
        let (first, last) = (*range.start(), *range.end());
        let mut rest = Vec::new();
        for (from, to) in self.0.drain(..) {
            if to < first || last < from {
                rest.push((from, to));
                continue;
            }
            if from < first {
                rest.push((from, first - 1));
            }
            if last < to {
                rest.push((last + 1, to));
            }
        }
        self.0 = rest;
    }

    /// The ports of both sets.
    pub fn intersection(&self, range: &RangeInclusive<u16>) -> Self {
        let cut = |(from, to): &(u16, u16)| {
            let (from, to) = ((*from).max(*range.start()), (*to).min(*range.end()));
            (from <= to).then_some((from, to))
        };
        Self(self.0.iter().filter_map(cut).collect())
    }

    /// Whether every port of a range is in the set.
    pub fn covers(&self, range: &RangeInclusive<u16>) -> bool {
        self.0
            .iter()
            .any(|(first, last)| first <= range.start() && range.end() <= last)
    }

    /// The ranges.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.0.iter().map(|(first, last)| *first..=*last)
    }
}

impl FromStr for PortSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = Self::default();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let port = |text: &str| {
                text.trim()
                    .parse()
                    .map_err(|_| format!("'{part}' is no port range"))
            };
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!("'{part}' runs backwards"));
            }
            set.insert(&(first..=last));
        }
        Ok(set)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// The ports that are reserved now.
///
/// # Errors
/// When the sysctl cannot be read.
pub fn reserved_ports(ns: &Netns) -> Result<PortSet, Error> {
    let text = ns
        .run(read_at_once)?
        .map_err(|error| Error::io(format!("read {RESERVED_PORTS}"), error))?;
    text.parse().map_err(|problem: String| {
        let error = io::Error::new(io::ErrorKind::InvalidData, problem);
        Error::io(format!("read {RESERVED_PORTS}"), error)
    })
}

/// The kernel answers the first read only (`proc_do_large_bitmap` of kernel/sysctl.c), and cuts
/// the text to the buffer; `read_to_string` begins with a buffer of 32 bytes.
fn read_at_once() -> io::Result<String> {
    let mut text = vec![0; RESERVED_TEXT_SIZE_MAX];
    let size = fs::File::open(RESERVED_PORTS)?.read(&mut text)?;
    text.truncate(size);
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reserves these ports and no others.
///
/// # Errors
/// When the sysctl cannot be written.
pub fn set_reserved_ports(ns: &Netns, ports: &PortSet) -> Result<(), Error> {
    // An empty write changes nothing; a line break is how the kernel is told of an empty set.
    let text = format!("{ports}\n");
    ns.run(|| fs::write(RESERVED_PORTS, &text))?
        .map_err(|error| Error::io(format!("write '{ports}' to {RESERVED_PORTS}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_merged_and_written_as_the_kernel_does() {
        for (text, canonical) in [
            ("", ""),
            ("\n", ""),
            ("80\n", "80"),
            ("80,81,90-95,92-100", "80-81,90-100"),
            ("65535,1,2-3", "1-3,65535"),
        ] {
            assert_eq!(set(text).to_string(), canonical);
        }
        assert!("x".parse::<PortSet>().is_err());
        assert!("65024-6".parse::<PortSet>().is_err());
    }

    #[test]
    fn what_was_inserted_can_be_removed_again() {
        let mut ports = set("10-20,49000-49200");
        let before = ports.intersection(&(49_152..=65_535));
        ports.insert(&(49_152..=65_535));
        assert_eq!(ports, set("10-20,49000-65535"));
        ports.remove(&(49_152..=65_535));
        assert_eq!(ports, set("10-20,49000-49151"));
        before.ranges().for_each(|range| ports.insert(&range));
        assert_eq!(ports, set("10-20,49000-49200"));
    }
}
