//! Which external port a new mapping gets.
//!
//! External and inside port agree modulo [`SHARDS`], which makes the residue the shard, known from
//! either side without a lookup, and keeps the parity of ports (RFC 4787 REQ-4) for free. Within
//! the residue the inside port itself is preferred (port preservation); failing that, one that
//! nobody outside can predict (RFC 6056 section 3.3.3: a keyed hash of the inside), because a
//! predictable port helps whoever forges packets.
//!
//! The last ports of a residue are kept for endpoints that hold few of them ([`Residue::is_fair`]),
//! so that one which opens port after port does not shut out the others.
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

/// One of so many ports of a residue is kept for endpoints that hold fewer than that of them: 32 of
/// 256 in the default range, and so 2,048 of its 16,384 ports.
const RESERVE: u16 = 8;

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
    let residue = Residue::of(range, inside)?;
    let count = residue.count;
    let tried = (0..PROBES_MAX).map(|_| residue.port(rng.u16(0..count)));
    if let Some(found) = tried.into_iter().find(|port| free(*port)) {
        return Some(found);
    }
    let start = rng.u16(0..count);
    (0..count)
        .map(|step| residue.port((start + step) % count))
        .find(|port| free(*port))
}

/// The ports that an inside port may get: those congruent to it, of its class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Residue {
    lowest: u16,
    count: u16,
}

impl Residue {
    /// The ports of `range` for `inside`; `None` when there are none.
    pub fn of(range: &RangeInclusive<u16>, inside: L4Port) -> Option<Self> {
        let (first, last) = class_of(range, inside);
        let shards = SHARDS as u16;
        let lowest = first.checked_add((inside.0 % shards + shards - first % shards) % shards)?;
        let count = last.checked_sub(lowest)? / shards + 1;
        Some(Self { lowest, count })
    }

    /// Ports that are kept for those who hold few.
    const fn reserve(self) -> u16 {
        self.count / RESERVE
    }

    fn port(self, index: u16) -> L4Port {
        L4Port(self.lowest + index * SHARDS as u16)
    }

    /// Whether an endpoint may take one more port. `held` says how many of the shard's ports are held
    /// at all, and `holder` asks about one port: whether nobody holds it, the endpoint, or another.
    /// Asks only when there may be nothing left but what is kept, and then once for each port.
    pub fn is_fair(self, held: u32, holder: impl Fn(L4Port) -> Holder) -> bool {
        let reserve = self.reserve();
        if reserve == 0 || held + u32::from(reserve) < u32::from(self.count) {
            return true;
        }
        let (mut free, mut own) = (0, 0);
        for index in 0..self.count {
            match holder(self.port(index)) {
                Holder::Nobody => free += 1,
                Holder::Own => own += 1,
                Holder::Another => {}
            }
        }
        free > reserve || own < reserve
    }
}

/// Who holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Nobody,
    /// The endpoint that asks for one.
    Own,
    Another,
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
    fn the_last_eighth_of_a_residue_is_for_those_who_hold_less_than_an_eighth() {
        // 256 ports of the residue, 32 of them kept.
        let residue = Residue::of(&(49_152..=65_535), L4Port(50_001)).unwrap();
        // Of those that are held, the lowest are the endpoint's own.
        let asked = std::cell::Cell::new(0);
        let fair = |own: u16, others: u16| {
            asked.set(0);
            let holder = |port: L4Port| {
                asked.set(asked.get() + 1);
                let index = (port.0 - residue.lowest) / 64;
                match index {
                    _ if index < own => Holder::Own,
                    _ if index < own + others => Holder::Another,
                    _ => Holder::Nobody,
                }
            };
            residue.is_fair(u32::from(own + others), holder)
        };
        assert!(fair(223, 0));
        assert_eq!(asked.get(), 0, "nothing is counted while many are free");
        assert!(!fair(224, 0), "only what is kept is left");
        assert_eq!(asked.get(), 256);
        assert!(!fair(32, 192) && fair(31, 193), "an eighth itself");
        assert!(fair(31, 224), "the very last one");
        // Ports of another class may be held in the same shard.
        assert!(residue.is_fair(300, |_| Holder::Nobody));
        // Where a residue has a handful of ports, the first who comes takes them.
        let small = Residue::of(&(50_000..=50_127), L4Port(50_001)).unwrap();
        assert!(small.is_fair(2, |_| Holder::Own));
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
