//! Real TCP, UDP and ICMP through the real core on a virtual clock, over wires that lose, double
//! and reorder, while others flood, spoof, roam and flap. `SEED=… cargo test -p tests --test sim`
//! replays.

use std::collections::BTreeMap;

use tests::sim::{Report, Scenario, Sim};

/// The seed that is used when the environment names none.
const SEED_DEFAULT: u64 = 0xca05_e3a1;
/// Bytes that each of the five transfers moves each way.
const TRANSFER_SIZE: usize = 150_000;

fn seed() -> u64 {
    let text = std::env::var("SEED").ok();
    text.and_then(|text| text.parse().ok())
        .unwrap_or(SEED_DEFAULT)
}

/// Runs a scenario twice, wants the same run twice, and prints what it covered.
fn run(scenario: Scenario) -> Report {
    println!("SEED={} {scenario:?}", scenario.seed);
    let report = Sim::new(scenario).run();
    let again = Sim::new(scenario).run();
    assert_eq!(report, again, "the same seed gives the same run");
    assert_eq!(
        report.bytes,
        10 * scenario.bytes,
        "five transfers, both ways"
    );
    println!(
        "covered: {} frames, {} bytes in {} virtual ms, {:?}, log {:016x}\n  {:?}",
        report.frames, report.bytes, report.millis, report.copies, report.hash, report.outcomes
    );
    report
}

fn scenario(index: u64) -> Scenario {
    Scenario {
        seed: seed().wrapping_add(index),
        workers: [1, 2, 4][(seed().wrapping_add(index) % 3) as usize],
        loss_permille: 0,
        duplicate_permille: 0,
        reorder_permille: 0,
        bytes: TRANSFER_SIZE,
        offloads: false,
        adversaries: false,
    }
}

#[test]
fn transfers_arrive_over_perfect_wires() {
    for (index, workers) in [1, 2, 4].into_iter().enumerate() {
        for offloads in [false, true] {
            let report = run(Scenario {
                workers,
                offloads,
                ..scenario(index as u64)
            });
            assert_eq!(report.copies.lost, 0);
            assert_eq!(report.outcomes.get("drop nat_filtered"), None);
        }
    }
}

#[test]
fn transfers_arrive_over_wires_that_lose_and_reorder() {
    for (index, loss_permille) in [20, 100].into_iter().enumerate() {
        for offloads in [false, true] {
            let report = run(Scenario {
                loss_permille,
                duplicate_permille: 10,
                reorder_permille: 50,
                offloads,
                ..scenario(10 + index as u64)
            });
            let Report { copies, .. } = report;
            assert!(copies.lost > 0 && copies.doubled > 0 && copies.delayed > 0);
        }
    }
}

#[test]
fn transfers_arrive_among_adversaries() {
    let mut outcomes = BTreeMap::new();
    for index in 0..3 {
        let report = run(Scenario {
            loss_permille: 20,
            duplicate_permille: 20,
            reorder_permille: 100,
            adversaries: true,
            offloads: index == 1,
            ..scenario(20 + index)
        });
        for (label, count) in report.outcomes {
            *outcomes.entry(label).or_insert(0) += count;
        }
    }
    for label in [
        "bridged",
        "flooded",
        "routed",
        "held",
        "not_ours",
        "drop source_group",
        "learn moved",
        "learn full",
    ] {
        assert!(
            outcomes.get(label).is_some_and(|count| *count > 0),
            "no frame was {label}: {outcomes:?}"
        );
    }
}

#[test]
fn another_seed_gives_another_run() {
    let lossy = |seed| Scenario {
        seed,
        loss_permille: 50,
        bytes: 20_000,
        ..scenario(0)
    };
    let (one, other) = (Sim::new(lossy(1)).run(), Sim::new(lossy(2)).run());
    assert_ne!(one.hash, other.hash);
}
