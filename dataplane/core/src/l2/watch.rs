//! What a worker notices about the wiring of a domain: a station that is heard now here, now there,
//! and a probe of ours that came back. Both mean that two ports are connected behind our back.
//!
//! Nothing is decided here; the control plane is told, and may block a port.

use core::time::Duration;

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::fdb::FdbKey;
use crate::time::Instant;

use super::probe::ProbeKey;

/// Moves of one station within [`FLAP_WINDOW`] by which it flaps. Moving house takes one, failing
/// over and back takes two; a loop moves a station with every frame.
pub const FLAP_MOVES: u8 = 4;
/// How long moves are counted together.
pub const FLAP_WINDOW: Duration = Duration::from_secs(5);

/// Stations whose moves are counted at a time. One that finds its place taken by another that moves
/// is counted later: a loop moves many, and one of them is enough.
const COUNTED_MAX: usize = 64;
/// Sightings that wait to be told; a loop is seen again.
const SIGHTINGS_MAX: usize = 16;

/// Something that should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A station is heard now on one port, now on another.
    Flap {
        /// Where it is.
        domain: DomainId,
        /// In which VLAN.
        vlan: VlanId,
        /// The station.
        mac: MacAddr,
        /// The port that it was on before its last move.
        from: PortId,
        /// The port that it is on now.
        to: PortId,
    },
    /// A probe that left by one port came back by another, or by the same.
    Loop {
        /// The domain of the port that it came back by.
        domain: DomainId,
        /// The port that it had left by.
        sent: PortId,
        /// The port that it came back by.
        received: PortId,
    },
}

/// Moves of a station.
#[derive(Clone, Copy, Debug)]
struct Moves {
    key: FdbKey,
    since: Instant,
    count: u8,
}

impl Moves {
    fn are_over(&self, now: Instant) -> bool {
        now.since(self.since) > FLAP_WINDOW
    }
}

/// What one worker has noticed.
#[derive(Debug)]
pub struct Watch {
    key: ProbeKey,
    moves: Box<[Option<Moves>; COUNTED_MAX]>,
    sightings: Vec<Sighting>,
    /// Sightings that nobody was told, for others were waiting already.
    untold: u64,
}

impl Watch {
    /// Nothing seen yet; probes are known by `key`.
    pub fn new(key: ProbeKey) -> Self {
        Self {
            key,
            moves: Box::new([None; COUNTED_MAX]),
            sightings: Vec::with_capacity(SIGHTINGS_MAX),
            untold: 0,
        }
    }

    /// The next thing that was seen and not told yet, the latest first.
    pub fn take_sighting(&mut self) -> Option<Sighting> {
        self.sightings.pop()
    }

    /// How many sightings were left out since it was last asked, because [`Watch::take_sighting`] was
    /// not asked in time.
    pub fn take_untold(&mut self) -> u64 {
        core::mem::take(&mut self.untold)
    }

    /// A station of `key` has moved.
    #[cold]
    #[inline(never)]
    pub(crate) fn moved(&mut self, key: FdbKey, from: PortId, to: PortId, now: Instant) {
        let place = (key.mac().to_u64() as usize ^ usize::from(key.domain().0)) % COUNTED_MAX;
        let slot = &mut self.moves[place];
        let moves = match slot {
            Some(moves) if !moves.are_over(now) && moves.key != key => return,
            Some(moves) if !moves.are_over(now) => moves,
            Some(_) | None => slot.insert(Moves {
                key,
                since: now,
                count: 0,
            }),
        };
        moves.count = moves.count.saturating_add(1);
        if moves.count == FLAP_MOVES {
            self.tell(Sighting::Flap {
                domain: key.domain(),
                vlan: key.vlan(),
                mac: key.mac(),
                from,
                to,
            });
        }
    }

    /// Takes note of a probe of ours in `bytes`, which entered by `received`. `false` for another
    /// switch's, and for what only looks like one.
    pub(super) fn is_own_probe(
        &mut self,
        bytes: &[u8],
        domain: DomainId,
        received: PortId,
    ) -> bool {
        let Some(sent) = self.key.read(bytes) else {
            return false;
        };
        self.tell(Sighting::Loop {
            domain,
            sent,
            received,
        });
        true
    }

    fn tell(&mut self, sighting: Sighting) {
        if self.sightings.contains(&sighting) {
            return;
        }
        if self.sightings.len() < SIGHTINGS_MAX {
            self.sightings.push(sighting);
        } else {
            self.untold += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn key(n: u8) -> FdbKey {
        FdbKey::new(DomainId(3), VlanId(0), MacAddr([2, 0, 0, 0, 0, n]))
    }

    fn seen(watch: &mut Watch) -> Vec<Sighting> {
        std::iter::from_fn(|| watch.take_sighting()).collect()
    }

    fn flap(n: u8) -> Sighting {
        Sighting::Flap {
            domain: DomainId(3),
            vlan: VlanId(0),
            mac: key(n).mac(),
            from: A,
            to: B,
        }
    }

    #[test]
    fn a_station_flaps_by_its_fourth_move_within_five_seconds_and_is_told_once() {
        let mut watch = Watch::new(ProbeKey::new(1));
        for second in 0..3 {
            watch.moved(key(1), A, B, Instant::from_secs(second));
            assert_eq!(seen(&mut watch), []);
        }
        for second in 3..6 {
            watch.moved(key(1), A, B, Instant::from_secs(second));
        }
        assert_eq!(seen(&mut watch), [flap(1)]);
    }

    #[test]
    fn a_station_that_moves_now_and_then_does_not_flap() {
        let mut watch = Watch::new(ProbeKey::new(1));
        for turn in 0..100 {
            watch.moved(key(1), A, B, Instant::from_secs(2 * turn));
        }
        assert_eq!(seen(&mut watch), []);
    }

    #[test]
    fn two_stations_in_one_place_do_not_add_up() {
        let mut watch = Watch::new(ProbeKey::new(1));
        for _ in 0..3 {
            for n in [1, 1 + COUNTED_MAX as u8] {
                watch.moved(key(n), A, B, Instant::from_secs(1));
            }
        }
        assert_eq!(seen(&mut watch), []);
        watch.moved(key(1), A, B, Instant::from_secs(1));
        assert_eq!(seen(&mut watch), [flap(1)]);
        // The other has its turn when the first one's time is over.
        for _ in 0..4 {
            watch.moved(key(1 + COUNTED_MAX as u8), A, B, Instant::from_secs(7));
        }
        assert_eq!(seen(&mut watch), [flap(1 + COUNTED_MAX as u8)]);
    }

    #[test]
    fn a_probe_that_came_back_is_told_with_both_ends_and_a_stranger_s_is_not() {
        let keys = (ProbeKey::new(1), ProbeKey::new(2));
        let mut watch = Watch::new(keys.0);
        let (own, other) = (keys.0.probe(A), keys.1.probe(A));
        assert!(!watch.is_own_probe(&other, DomainId(3), B));
        assert_eq!(seen(&mut watch), []);
        for _ in 0..3 {
            assert!(watch.is_own_probe(&own, DomainId(3), B));
        }
        let (domain, sent, received) = (DomainId(3), A, B);
        let expected = Sighting::Loop {
            domain,
            sent,
            received,
        };
        assert_eq!(seen(&mut watch), [expected]);
        for port in 0..SIGHTINGS_MAX as u16 + 2 {
            assert!(watch.is_own_probe(&own, DomainId(3), PortId(port)));
        }
        assert_eq!((watch.take_untold(), watch.take_untold()), (2, 0));
        assert_eq!(seen(&mut watch).len(), SIGHTINGS_MAX);
    }
}
