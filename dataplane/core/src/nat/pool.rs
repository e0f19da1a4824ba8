//! Which external port a new mapping gets.
//!
//! External and inside port agree modulo [`SHARDS`], which makes the residue the shard, known from
//! either side without a lookup, and keeps the parity of ports (RFC 4787 REQ-4) for free. Within
//! the residue the inside port itself is preferred (port preservation); failing that, one that
//! nobody outside can predict (RFC 6056 section 3.3.3: a keyed hash of the inside), because a
//! predictable port helps whoever forges packets.
//!
//! A port below 1024 gets one below 1024 where the range has any, and no other port does (RFC 4787
//! REQ-3 a).

use std::ops::RangeInclusive;

use crate::addr::L4Port;

/// Shards of the NAT tables and residues of ports: fixed, independent of the number of workers,
/// so that it never has to be re-partitioned. 64 keep 4 workers from meeting in more than one
/// translation of 20, and leave 256 ports of the default range to each.
pub const SHARDS: usize = 64;

/// Random ports that are tried before the residue is searched in order: with half of the residue
/// taken, 8 tries fail once in 256.
const PROBES_MAX: usize = 8;

/// The first port behind the system ports (RFC 6335 section 6).
const REGISTERED_FIRST: u16 = 1_024;

/// The shard of a port.
#[inline]
pub(super) const fn shard_of_port(port: L4Port) -> usize {
    port.0 as usize % SHARDS
}

/// A port of `range` that is congruent to `inside` and `free`: `inside` itself if possible.
/// Asks `free` at most 1 + [`PROBES_MAX`] + 1,024 times.
pub(super) fn pick(
    range: &RangeInclusive<u16>,
    inside: L4Port,
    rng: &mut fastrand::Rng,
    free: impl Fn(L4Port) -> bool,
) -> Option<L4Port> {
    let (first, last) = class_of(range, inside);
    if (first..=last).contains(&inside.0) && free(inside) {
        return Some(inside);
    }
    let shards = SHARDS as u16;
    let lowest = first.checked_add((inside.0 % shards + shards - first % shards) % shards)?;
    let count = last.checked_sub(lowest)? / shards + 1;
    let port = |index: u16| L4Port(lowest + index % count * shards);
    let tried = (0..PROBES_MAX).map(|_| port(rng.u16(0..count)));
    if let Some(found) = tried.into_iter().find(|port| free(*port)) {
        return Some(found);
    }
    let start = rng.u16(0..count);
    (0..count)
        .map(|step| port((start + step) % count))
        .find(|port| free(*port))
}

/// The part of `range` for an inside port: first and last, in the wrong order when there is none.
fn class_of(range: &RangeInclusive<u16>, inside: L4Port) -> (u16, u16) {
    // Port 0 is reserved (RFC 6335 section 6) and never given out.
    let (first, last) = ((*range.start()).max(1), *range.end());
    if inside.0 < REGISTERED_FIRST && first < REGISTERED_FIRST {
        (first, last.min(REGISTERED_FIRST - 1))
    } else {
        (first.max(REGISTERED_FIRST), last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_inside_port_is_kept_when_it_is_free_and_in_range() {
        let mut rng = fastrand::Rng::with_seed(1);
        let range = 49_152..=65_535;
        let kept = pick(&range, L4Port(50_001), &mut rng, |_| true);
        assert_eq!(kept, Some(L4Port(50_001)));
        for (inside, taken) in [(50_001, 50_001), (80, 0)] {
            let other = pick(&range, L4Port(inside), &mut rng, |port| port.0 != taken).unwrap();
            assert!(range.contains(&other.0));
            assert_ne!(other.0, inside);
            assert_eq!(other.0 % 64, inside % 64);
        }
    }

    #[test]
    fn the_last_free_port_is_found_and_then_none() {
        let mut rng = fastrand::Rng::with_seed(2);
        for range in [
            49_152..=65_535,
            1..=65_535,
            0..=65_535,
            1_000..=1_063,
            65_500..=65_535,
        ] {
            for inside in [1u16, 63, 64, 4_711, 65_535] {
                let mut taken = HashSet::new();
                while let Some(port) =
                    pick(&range, L4Port(inside), &mut rng, |p| !taken.contains(&p))
                {
                    assert!(range.contains(&port.0) && port.0 != 0);
                    assert_eq!(port.0 % 64, inside % 64);
                    assert!(taken.insert(port));
                }
                let has_low = *range.start() < 1_024;
                let wanted = range.clone().filter(|p| *p != 0 && p % 64 == inside % 64);
                let low = inside < 1_024 && has_low;
                let of_its_class = wanted.filter(|port| (*port < 1_024) == low);
                assert_eq!(taken.len(), of_its_class.count(), "{range:?} {inside}");
            }
        }
    }

    #[test]
    fn a_range_without_the_residue_gives_nothing() {
        let mut rng = fastrand::Rng::with_seed(3);
        assert_eq!(pick(&(1_024..=1_030), L4Port(63), &mut rng, |_| true), None);
        assert_eq!(
            pick(&(65_530..=65_535), L4Port(1), &mut rng, |_| true),
            None
        );
    }
}
