//! A bridge with VLANs, groups, storm control, mirrors and links among adversaries, on a virtual clock,
//! each frame held against a model. `SEED=… cargo test -p tests --test sim_bridge` replays.

use std::collections::BTreeMap;

use tests::sim::bridge::{BridgeSim, Report, Scenario};

/// The seed that is used when the environment names none.
const SEED_DEFAULT: u64 = 1;
/// Runs of each number of workers, and deeds of each.
const RUNS: u64 = 2;
const DEEDS: usize = 4_000;

fn seed() -> u64 {
    let text = std::env::var("SEED").ok();
    text.and_then(|text| text.parse().ok())
        .unwrap_or(SEED_DEFAULT)
}

fn run(scenario: Scenario) -> Report {
    println!("SEED={} {scenario:?}", scenario.seed);
    BridgeSim::new(scenario).run()
}

#[test]
fn every_frame_meets_the_fate_that_the_model_has_told_of_it() {
    let mut covered: BTreeMap<String, u64> = BTreeMap::new();
    for index in 0..RUNS {
        for workers in [1, 2, 4] {
            let report = run(Scenario {
                seed: seed().wrapping_add(index),
                workers,
                deeds: DEEDS,
            });
            assert!(report.seconds > 300, "{} s", report.seconds);
            for (label, count) in report.covered {
                *covered.entry(label).or_default() += count;
            }
        }
    }
    println!("covered: {covered:#?}");
    for label in [
        "bridged",
        "flooded",
        "multicast",
        "drop vlan_ingress",
        "drop vlan_no_pvid",
        "drop vlan_egress",
        "drop no_listener",
        "drop no_other_port",
        "drop same_port",
        "drop port_isolated",
        "drop port_down",
        "drop mirror_port",
        "drop group_message_malformed",
        "drop storm_broadcast",
        "drop storm_multicast",
        "drop storm_unknown_unicast",
        "copies tagged",
        "copies untagged",
        "copies from afar",
        "deed hop",
        "deed flap",
        "deed change",
        "groups refused",
        "learn moved",
        "learn full",
        "stations aged",
        "mirrored",
    ] {
        let count = covered.get(label).copied().unwrap_or_default();
        assert!(count >= 100, "{label}: {count}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let scenario = |seed| Scenario {
        seed,
        workers: 3,
        deeds: 1_000,
    };
    let (one, again, other) = (run(scenario(7)), run(scenario(7)), run(scenario(8)));
    assert_eq!(one, again);
    assert_ne!(one.hash, other.hash);
}
