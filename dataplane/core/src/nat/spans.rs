//! Which bytes of a fragmented packet have been seen.

/// Separate stretches of one packet: a datagram of 64 KiB in fragments of 1,480 bytes has 45, and no
/// order of them leaves more than 23 apart.
pub(super) const SPANS_MAX: usize = 24;

/// Stretches of bytes that do not touch: beginning and end, in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spans {
    stretches: [(u16, u16); SPANS_MAX],
    count: u8,
    /// Bytes of the whole packet, once its last fragment has come.
    total: Option<u16>,
}

/// What a fragment is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// New bytes, and more are missing.
    New,
    /// The last bytes that were missing.
    Complete,
    /// Nothing but bytes that have come before.
    Repeated,
    /// Bytes that have come before and others, or bytes behind the packet's end.
    Overlapping,
    /// More stretches than are told apart.
    Scattered,
}

impl Spans {
    pub const NONE: Self = Self {
        stretches: [(0, 0); SPANS_MAX],
        count: 0,
        total: None,
    };

    /// Adds the bytes from `start` to `end` of the packet, with which it ends when they are `last`.
    /// Nothing is added that is not [`Fit::New`] or [`Fit::Complete`].
    pub fn add(&mut self, (start, end): (u16, u16), last: Option<Last>) -> Fit {
        let known = &self.stretches[..usize::from(self.count)];
        if known.iter().any(|(from, to)| *from <= start && end <= *to) {
            return Fit::Repeated;
        }
        let overlaps = known.iter().any(|(from, to)| *from < end && start < *to);
        let beyond = self.total.is_some_and(|total| end > total);
        let short = last.is_some() && known.iter().any(|(_, to)| *to > end);
        if overlaps || beyond || short || start >= end {
            return Fit::Overlapping;
        }
        let mut joined = (start, end);
        let mut kept = *self;
        kept.count = 0;
        for &(from, to) in known {
            if to == joined.0 {
                joined.0 = from;
            } else if from == joined.1 {
                joined.1 = to;
            } else {
                kept.push((from, to));
            }
        }
        if usize::from(kept.count) == SPANS_MAX {
            return Fit::Scattered;
        }
        kept.push(joined);
        kept.total = kept.total.or(last.map(|Last| end));
        *self = kept;
        if self.total.is_some_and(|total| joined == (0, total)) {
            return Fit::Complete;
        }
        Fit::New
    }

    fn push(&mut self, stretch: (u16, u16)) {
        self.stretches[usize::from(self.count)] = stretch;
        self.count += 1;
    }
}

/// No more fragments follow behind this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_complete_in_any_order_and_only_then() {
        let pieces: Vec<(u16, u16)> = (0..45)
            .map(|n: u32| (n * 1_480, ((n + 1) * 1_480).min(65_500)))
            .map(|(from, to)| (from as u16, to as u16))
            .collect();
        for seed in 0..200 {
            let mut order = pieces.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
            let mut spans = Spans::NONE;
            for (index, piece) in order.iter().enumerate() {
                let last = (piece.1 == 65_500).then_some(Last);
                let before = spans;
                let wanted = if index == 44 { Fit::Complete } else { Fit::New };
                assert_eq!(spans.add(*piece, last), wanted, "seed {seed}");
                assert_eq!(spans.clone().add(*piece, last), Fit::Repeated);
                assert_ne!(spans, before);
            }
        }
    }

    #[test]
    fn what_contradicts_the_others_is_refused_and_changes_nothing() {
        let mut spans = Spans::NONE;
        assert_eq!(spans.add((0, 80), None), Fit::New);
        assert_eq!(spans.add((160, 240), Some(Last)), Fit::New);
        let before = spans;
        for (piece, last) in [
            ((72, 88), None),
            ((152, 168), None),
            ((40, 200), None),
            ((240, 248), None),
            ((232, 248), Some(Last)),
            ((80, 88), Some(Last)),
            ((100, 100), None),
        ] {
            assert_eq!(spans.add(piece, last), Fit::Overlapping, "{piece:?}");
            assert_eq!(spans, before);
        }
        assert_eq!(spans.add((8, 16), None), Fit::Repeated);
        assert_eq!(spans.add((80, 160), None), Fit::Complete);
    }

    #[test]
    fn too_many_gaps_are_refused() {
        let mut spans = Spans::NONE;
        for n in 0..SPANS_MAX as u16 {
            assert_eq!(spans.add((n * 16, n * 16 + 8), None), Fit::New);
        }
        assert_eq!(spans.add((8_000, 8_008), None), Fit::Scattered);
        assert_eq!(spans.add((8, 16), None), Fit::New, "it fills a gap");
    }
}
