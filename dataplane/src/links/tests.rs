//! Links of a worker at times of our own.

use dataplane_core::frame::Offload;
use dataplane_core::link::{Impairment, Rate, RateLimit};
use dataplane_core::time::Duration;

use super::*;

const PLACE: (PortId, Direction) = (PortId(1), Direction::Out);
/// Of a frame of 64 bytes, as a link counts it.
const SIZE: usize = 60;

/// Frames that pass in two seconds of 100,000 a second, once what may be held is.
fn passed(spec: LinkSpec) -> LinkStats {
    let (port, direction) = PLACE;
    let link = Arc::new(SharedLink::new(spec, direction));
    let mut links = Links::new();
    links.set(port, direction, Some(Arc::clone(&link)));
    let mut frame = FrameBuf::new();
    frame.copy_from(&[0; SIZE], Offload::NONE);
    let (mut before, mut segmenter) = (0, Segmenter::new());
    for index in 0..300_000_u64 {
        let now = Instant::from_nanos(0) + Duration::from_micros(10 * (index + 1));
        while let Some(held) = links.take_due(now) {
            links.spare.push(held.buf);
        }
        let _ = links.enter(PLACE, &frame, now, &mut segmenter);
        if index == 100_000 {
            before = link.passed.load(Ordering::Relaxed);
        }
    }
    let stats = link.stats(port, direction);
    assert_eq!(stats.check_law(), Ok(()));
    LinkStats {
        passed: stats.passed - before,
        ..stats
    }
}

#[test]
fn a_line_that_holds_as_many_frames_as_may_be_is_as_fast_as_was_set() {
    for megabits in [40, 44] {
        let text = format!("{megabits}mbit");
        let limit: Option<RateLimit> = text.parse().ok();
        let rate: Option<Rate> = text.parse().ok();
        let limited = LinkSpec {
            limit,
            ..LinkSpec::default()
        };
        let impaired = LinkSpec {
            impairment: Impairment {
                rate,
                ..Impairment::default()
            },
            ..LinkSpec::default()
        };
        for spec in [limited, impaired] {
            let stats = passed(spec);
            let bits = stats.passed * SIZE as u64 * 8;
            let set = 2 * megabits * 1_000_000;
            let off = bits.abs_diff(set);
            assert!(off * 1_000 < set, "{megabits} Mbit/s: {stats:?}");
            assert!(stats.counts.overflowed > 0, "{stats:?}");
        }
    }
}

#[test]
fn what_goes_later_than_it_was_due_says_by_how_much() {
    let (port, direction) = PLACE;
    let delayed = LinkSpec {
        impairment: Impairment {
            delay: Duration::from_millis(10),
            ..Impairment::default()
        },
        ..LinkSpec::default()
    };
    let link = Arc::new(SharedLink::new(delayed, direction));
    let mut links = Links::new();
    links.set(port, direction, Some(Arc::clone(&link)));
    let mut frame = FrameBuf::new();
    frame.copy_from(&[0; SIZE], Offload::NONE);
    let mut segmenter = Segmenter::new();
    for sent in [0, 1] {
        let _ = links.enter(PLACE, &frame, Instant::from_millis(sent), &mut segmenter);
    }
    assert!(links.take_due(Instant::from_nanos(9_999_999)).is_none());
    assert!(links.take_due(Instant::from_millis(10)).is_some());
    assert_eq!(link.stats(port, direction).late_nanos, 0);
    assert!(links.take_due(Instant::from_nanos(11_002_500)).is_some());
    assert_eq!(link.stats(port, direction).late_nanos, 2_500);
}
