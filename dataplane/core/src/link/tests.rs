//! Links on a virtual clock: exact where nothing is drawn, within bounds of chance where it is.

use super::*;
use crate::headers::Headers;

/// Frames of a statistical run.
const FRAMES: usize = 100_000;
/// 100,000 frames per second.
const GAP: Duration = Duration::from_micros(10);
const SIZE: usize = 1_000;

fn chance(text: &str) -> Chance {
    text.parse().unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn link(spec: LinkSpec) -> Link {
    Link::new(spec, Direction::Out)
}

fn impaired(impairment: Impairment) -> Link {
    impairment.check().unwrap();
    link(LinkSpec {
        limit: None,
        impairment,
    })
}

/// What becomes of `FRAMES` frames, [`GAP`] apart: when each came, and what `pass` said.
fn run(link: &mut Link) -> Vec<(Instant, Result<Arrivals, Loss>)> {
    let came = |number| Instant::from_secs(1) + GAP * number as u32;
    let times = (0..FRAMES).map(came);
    times.map(|now| (now, link.pass(SIZE, now))).collect()
}

fn delays(link: &mut Link) -> Vec<f64> {
    let arrived = run(link).into_iter().map(|(came, passed)| {
        let due = passed.unwrap().0.due;
        due.since(came).as_nanos() as f64
    });
    arrived.collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2));
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

/// Asserts that of `FRAMES` draws so many happened as a chance of `expected` makes likely: within
/// five standard deviations.
fn assert_binomial(what: &str, count: usize, expected: f64) {
    let frames = FRAMES as f64;
    let bound = 5.0 * (frames * expected * (1.0 - expected)).sqrt();
    let off = (count as f64 - frames * expected).abs();
    assert!(off <= bound, "{what}: {count} of {FRAMES}, not {expected}");
}

#[test]
fn a_plain_link_passes_every_frame_at_once() {
    let mut link = link(LinkSpec::default());
    assert!(link.spec().is_plain());
    for (came, passed) in run(&mut link) {
        let arrival = Arrival {
            due: came,
            corrupt: None,
        };
        assert_eq!(passed, Ok((arrival, None)));
    }
}

#[test]
fn a_delay_is_exact_to_the_nanosecond() {
    let delay = Duration::from_nanos(20_000_003);
    let mut link = impaired(Impairment {
        delay,
        ..Impairment::default()
    });
    for (came, passed) in run(&mut link) {
        assert_eq!(passed.unwrap().0.due, came + delay);
    }
}

#[test]
fn uniform_jitter_fills_its_range_evenly() {
    let mut link = impaired(Impairment {
        delay: millis(20),
        jitter: millis(3),
        ..Impairment::default()
    });
    let delays = delays(&mut link);
    let within = |delay: &f64| (17e6..=23e6).contains(delay);
    assert!(delays.iter().all(within));
    assert!(
        (mean(&delays) - 20e6).abs() < 3e6 * 0.01,
        "{}",
        mean(&delays)
    );
    let wanted = 3e6 / 3f64.sqrt();
    let found = deviation(&delays);
    assert!((found - wanted).abs() < wanted * 0.01, "{found}");
    let low = delays.iter().filter(|delay| **delay < 18.5e6).count();
    assert_binomial("the lowest quarter", low, 0.25);
}

#[test]
fn normal_jitter_has_its_mean_and_deviation_and_tails() {
    let mut link = impaired(Impairment {
        delay: millis(20),
        jitter: millis(2),
        distribution: Distribution::Normal,
        ..Impairment::default()
    });
    let delays = delays(&mut link);
    assert!(
        (mean(&delays) - 20e6).abs() < 2e6 * 0.02,
        "{}",
        mean(&delays)
    );
    assert!((deviation(&delays) - 2e6).abs() < 2e6 * 0.01);
    let beyond = |sigmas: f64| {
        let far = |delay: &&f64| (**delay - 20e6).abs() > sigmas * 2e6;
        delays.iter().filter(far).count()
    };
    assert_binomial("beyond one deviation", beyond(1.0), 0.317_3);
    assert_binomial("beyond two", beyond(2.0), 0.045_5);
    assert!(beyond(3.0) > 150, "tails: {}", beyond(3.0));
}

#[test]
fn random_loss_duplication_corruption_and_reordering_are_as_likely_as_they_are_set() {
    let mut link = impaired(Impairment {
        delay: millis(1),
        loss: LossModel::Random(chance("10%")),
        duplicate: chance("2%"),
        corrupt: chance("1%"),
        reorder: chance("5%"),
        seed: 7,
        ..Impairment::default()
    });
    let (mut vanished, mut twice, mut corrupted, mut overtook, mut arrivals) =
        (0, 0, 0, 0, 0_usize);
    for (came, passed) in run(&mut link) {
        let Ok((first, second)) = passed else {
            assert_eq!(passed, Err(Loss::Lost));
            vanished += 1;
            continue;
        };
        twice += usize::from(second.is_some());
        for arrival in [Some(first), second].into_iter().flatten() {
            arrivals += 1;
            corrupted += usize::from(arrival.corrupt.is_some());
            overtook += usize::from(arrival.due == came);
        }
    }
    // A frame that was doubled and then lost arrives once.
    assert_binomial("lost", vanished, 0.10 * 0.98);
    assert_binomial("twice", twice, 0.02 * 0.90);
    assert_binomial(
        "corrupted",
        corrupted,
        0.01 * arrivals as f64 / FRAMES as f64,
    );
    assert_binomial(
        "reordered",
        overtook,
        0.05 * arrivals as f64 / FRAMES as f64,
    );
    let counts = link.counts;
    assert_eq!(counts.entered, FRAMES as u64);
    assert_binomial("drawn as twins", counts.duplicated as usize, 0.02);
    let gone = counts.lost + arrivals as u64;
    assert_eq!(counts.entered + counts.duplicated, gone, "the law");
    assert_eq!(counts.corrupted, corrupted as u64);
    assert_eq!(counts.reordered, overtook as u64);
    assert_binomial("drawn as lost", counts.lost as usize, 0.10);
}

#[test]
fn gilbert_elliott_loses_in_bursts_of_the_length_and_share_of_its_chances() {
    let mut link = impaired(Impairment {
        loss: LossModel::GilbertElliott {
            worsen: chance("1%"),
            recover: chance("10%"),
            loss_bad: Chance::ALWAYS,
            loss_good: Chance::NEVER,
        },
        seed: 3,
        ..Impairment::default()
    });
    let lost: Vec<bool> = run(&mut link).iter().map(|(_, p)| p.is_err()).collect();
    let share = lost.iter().filter(|lost| **lost).count() as f64 / FRAMES as f64;
    let stationary = 0.01 / (0.01 + 0.10);
    assert!((share - stationary).abs() < stationary * 0.1, "{share}");
    let bursts: Vec<f64> = lost
        .chunk_by(|a, b| a == b)
        .filter(|run| run[0])
        .map(|run| run.len() as f64)
        .collect();
    // Geometric with 10 %: mean 10, and one in ten is of a single frame.
    let mean_length = mean(&bursts);
    assert!((mean_length - 10.0).abs() < 1.0, "{mean_length}");
    let single = bursts.iter().filter(|length| **length == 1.0).count() as f64;
    let share = single / bursts.len() as f64;
    assert!((share - 0.1).abs() < 0.04, "{share}");
}

#[test]
fn gilbert_elliott_may_lose_a_little_while_it_is_good_and_spare_some_while_it_is_bad() {
    let mut link = impaired(Impairment {
        loss: LossModel::GilbertElliott {
            worsen: chance("5%"),
            recover: chance("5%"),
            loss_bad: chance("40%"),
            loss_good: chance("2%"),
        },
        ..Impairment::default()
    });
    let lost = run(&mut link).iter().filter(|(_, p)| p.is_err()).count();
    let share = lost as f64 / FRAMES as f64;
    // Half of the time each.
    assert!((share - 0.21).abs() < 0.02, "{share}");
}

#[test]
fn the_same_seed_draws_the_same_and_another_one_does_not() {
    let outcomes = |seed, direction| {
        let impairment = Impairment {
            delay: millis(5),
            jitter: millis(5),
            loss: LossModel::Random(chance("20%")),
            duplicate: chance("20%"),
            seed,
            ..Impairment::default()
        };
        let limit = None;
        run(&mut Link::new(LinkSpec { limit, impairment }, direction))
    };
    let first = outcomes(1, Direction::In);
    assert_eq!(first, outcomes(1, Direction::In));
    assert_ne!(first, outcomes(2, Direction::In));
    assert_ne!(
        first,
        outcomes(1, Direction::Out),
        "the directions draw apart"
    );
}

#[test]
fn a_line_rate_comes_before_the_delay_and_keeps_the_order() {
    let mut link = impaired(Impairment {
        delay: millis(3),
        rate: Some("1gbit".parse().unwrap()),
        ..Impairment::default()
    });
    let now = Instant::from_secs(1);
    // 8 µs each.
    for number in 1..=100 {
        let (first, _) = link.pass(SIZE, now).unwrap();
        assert_eq!(
            first.due,
            now + millis(3) + Duration::from_micros(8 * number)
        );
    }
}

#[test]
fn a_rate_limit_lets_a_hundred_thousand_frames_through_at_its_rate() {
    let mut link = link(LinkSpec {
        limit: Some("400mbit burst 1000".parse().unwrap()),
        impairment: Impairment::default(),
    });
    // 800 Mbit/s come.
    let outcomes = run(&mut link);
    let passed: Vec<Instant> = outcomes
        .iter()
        .filter_map(|(_, passed)| Some(passed.ok()?.0.due))
        .collect();
    assert!(passed.is_sorted(), "in order");
    let span = passed.last().unwrap().since(passed[0]).as_secs_f64();
    let rate = ((passed.len() - 1) * SIZE * 8) as f64 / span;
    assert!((rate - 400e6).abs() < 400e6 * 0.001, "{rate}");
    let limited = outcomes
        .iter()
        .filter(|(_, p)| *p == Err(Loss::Limited))
        .count();
    assert_eq!(link.counts.limited, limited as u64);
    assert_eq!(limited + passed.len(), FRAMES);
    let waited = outcomes.iter().filter_map(|(came, passed)| {
        let (first, _) = (*passed).ok()?;
        Some(first.due.since(*came))
    });
    assert!(waited.max().unwrap() <= RATE_WAIT_MAX + Duration::from_micros(20));
}

#[test]
fn a_change_of_settings_begins_anew_and_the_same_settings_do_not() {
    let spec = LinkSpec {
        limit: Some("8kbit burst 1000".parse().unwrap()),
        impairment: Impairment::default(),
    };
    let now = Instant::from_secs(5);
    let mut link = link(spec);
    assert_eq!(link.pass(SIZE, now).unwrap().0.due, now);
    link.set(spec);
    assert!(
        link.pass(SIZE, now).unwrap().0.due > now,
        "the burst is gone"
    );
    link.set(LinkSpec::default());
    assert_eq!(link.pass(SIZE, now).unwrap().0.due, now);
    assert_eq!(link.counts.entered, 3, "counted on");
}

#[test]
fn corruption_flips_one_bit_and_leaves_a_checksum_that_tells() {
    let mut frame = FrameBuf::from_bytes(&[0x11; 60]);
    frame.bytes_mut()[40..42].copy_from_slice(&[0, 0]);
    frame.offload = Offload {
        flags: Offload::NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Offload::NONE
    };
    let mut whole = frame.clone();
    checksum::complete(&mut whole).unwrap();
    corrupt(&mut frame, Bit(50 * 8 + 3));
    assert_eq!(frame.offload, Offload::NONE, "nothing is vouched for");
    let differ: Vec<usize> = (0..60)
        .filter(|at| frame.bytes()[*at] != whole.bytes()[*at])
        .collect();
    assert_eq!(differ, [50], "the checksum is that of what was sent");
    assert_eq!(frame.bytes()[50], 0x11 ^ 8);
    assert!(Headers::parse(frame.bytes()).is_ok());
}

#[test]
fn due_times_from_the_wheel_are_those_of_the_link_at_a_hundred_thousand_frames_per_second() {
    let mut link = impaired(Impairment {
        delay: millis(20),
        jitter: millis(2),
        ..Impairment::default()
    });
    let mut wheel = Wheel::new(HELD_MAX);
    let (mut left, mut most) = (0, 0);
    for (now, passed) in run(&mut link) {
        let due = passed.unwrap().0.due;
        wheel.insert(due, due, now).unwrap();
        most = most.max(wheel.len());
        // As a worker does that sleeps until the next is due: nothing is early, nothing late.
        while let Some(next) = wheel.next_due().filter(|due| *due <= now + GAP) {
            assert_eq!(wheel.take_due(next), Some(next));
            left += 1;
        }
    }
    assert!((1_900..=2_250).contains(&most), "{most} held at once");
    assert_eq!(left + wheel.len(), FRAMES);
}
