//! The core beside a model of a switch, on thousands of scripts of frames, in memory.
//!
//! `SEED=… SCRIPTS=… cargo test -p dataplane-core --test model` plays others.

#![allow(clippy::unwrap_used)]

mod bridges;

use bridges::bottle::Bottle;
use bridges::model::{Model, Side};
use bridges::script::Script;
use bridges::{agree, play, scripts, scripts_of};

#[test]
fn the_core_does_with_every_frame_what_the_model_says() {
    let (mut bottle, mut model) = (Bottle::default(), Model::new(Side::Causeway));
    for script in scripts(1) {
        let wanted = play(&mut model, &script);
        agree("core", &script, &wanted, &play(&mut bottle, &script));
    }
    model.check_coverage();
}

#[test]
fn the_core_does_with_vlans_what_the_model_says() {
    let (mut bottle, mut model) = (Bottle::default(), Model::new(Side::Causeway));
    for script in scripts_of(1, Script::vlans) {
        let wanted = play(&mut model, &script);
        agree("core", &script, &wanted, &play(&mut bottle, &script));
    }
    model.check_coverage_of_vlans();
}

#[test]
fn stations_that_fall_silent_are_forgotten_in_time() {
    let (mut bottle, mut model) = (Bottle::default(), Model::new(Side::Causeway));
    for seed in 0..20 {
        let script = Script::ageing(seed);
        let wanted = play(&mut model, &script);
        agree("core", &script, &wanted, &play(&mut bottle, &script));
    }
    assert!(model.count("aged") >= 2_000);
}
