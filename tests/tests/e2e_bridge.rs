//! Causeway beside the kernel's own bridge: the same frames in, the same frames out.
//!
//! Both are compared with one model, which is told where they are meant to differ
//! (`docs/manual/kernel-bridge.md`). `SEED=… cargo test -p tests --test e2e_bridge` plays other scripts; a
//! failure names the script, which `SEED` with `SCRIPTS=1` plays alone.

use tests::bridges::model::{Difference, Model, Side};
use tests::bridges::script::Script;
use tests::bridges::{agree, play, scripts, scripts_of};
use tests::lab::{self, Lab};
use tests::oracle::causeway::{Causeway, Devices, LANES};
use tests::oracle::kernel::KernelBridge;

#[test]
fn the_kernels_bridge_does_with_every_frame_what_the_model_says() {
    if !lab::require_root("the_kernels_bridge_does_with_every_frame_what_the_model_says") {
        return;
    }
    let lab = Lab::new("kernel-bridge");
    let (mut kernel, mut model) = (KernelBridge::new(&lab), Model::new(Side::Kernel));
    for script in scripts(1) {
        let wanted = play(&mut model, &script);
        agree("kernel", &script, &wanted, &play(&mut kernel, &script));
    }
    model.check_coverage();
}

/// Covers: 18
#[test]
fn causeway_does_with_every_frame_what_the_model_says() {
    if !lab::require_root("causeway_does_with_every_frame_what_the_model_says") {
        return;
    }
    for (devices, workers, share) in [
        (Devices::Taps, 1, 1),
        (Devices::Taps, 2, 4),
        (Devices::Veths, 1, 4),
        (Devices::VethsByXdp, 1, 4),
    ] {
        let lab = Lab::new("causeway-bridge");
        let mut causeway = Causeway::new(&lab, devices, workers);
        let mut model = Model::new(Side::Causeway);
        let scripts: Vec<Script> = scripts(share).collect();
        for scripts in scripts.chunks(LANES) {
            for (script, found) in scripts.iter().zip(causeway.play(scripts)) {
                agree("causeway", script, &play(&mut model, script), &found);
            }
        }
        println!("{devices:?}, {workers} workers, {} scripts", scripts.len());
        if share == 1 {
            model.check_coverage();
        }
    }
}

#[test]
fn causeway_does_with_vlans_what_the_model_says() {
    if !lab::require_root("causeway_does_with_vlans_what_the_model_says") {
        return;
    }
    for (devices, workers, share) in [
        (Devices::Taps, 2, 2),
        (Devices::Veths, 1, 8),
        (Devices::VethsByXdp, 1, 8),
    ] {
        let lab = Lab::new("causeway-vlans");
        let mut causeway = Causeway::new(&lab, devices, workers);
        let mut model = Model::new(Side::Causeway);
        let scripts: Vec<Script> = scripts_of(share, Script::vlans).collect();
        for scripts in scripts.chunks(LANES) {
            for (script, found) in scripts.iter().zip(causeway.play(scripts)) {
                agree("causeway", script, &play(&mut model, script), &found);
            }
        }
        println!("{devices:?}, {workers} workers, {} scripts", scripts.len());
        if share == 2 {
            model.check_coverage_of_vlans();
        }
    }
}

#[test]
fn the_kernels_bridge_forgets_stations_that_fall_silent_as_the_model_says() {
    if !lab::require_root("the_kernels_bridge_forgets_stations_that_fall_silent") {
        return;
    }
    let lab = Lab::new("kernel-ageing");
    let script = Script::ageing(1);
    let (mut kernel, mut model) = (KernelBridge::new(&lab), Model::new(Side::Kernel));
    let wanted = play(&mut model, &script);
    agree("kernel", &script, &wanted, &play(&mut kernel, &script));
    assert!(model.count("aged") >= 100);
}

#[test]
fn causeway_forgets_stations_that_fall_silent_as_the_model_says() {
    if !lab::require_root("causeway_forgets_stations_that_fall_silent") {
        return;
    }
    let lab = Lab::new("causeway-ageing");
    let scripts: Vec<Script> = (1..=LANES as u64).map(Script::ageing).collect();
    let mut model = Model::new(Side::Causeway);
    let mut causeway = Causeway::new(&lab, Devices::Taps, 1);
    for (script, found) in scripts.iter().zip(causeway.play(&scripts)) {
        agree("causeway", script, &play(&mut model, script), &found);
    }
    assert!(model.count("aged") >= 100 * LANES as u64);
}

#[test]
fn every_difference_is_in_the_manual_with_its_reason() {
    let manual = include_str!("../../docs/manual/kernel-bridge.md");
    for difference in Difference::ALL {
        let entry = format!("\n- **{}.** ", difference.name());
        assert!(manual.contains(&entry), "{entry}");
    }
    let listed = manual.matches("\n- **differs: ").count();
    assert_eq!(listed, Difference::ALL.len());
}
