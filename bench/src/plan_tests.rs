//! What is planned, and what is refused in which words.

use super::*;

const HEAD: &str = "name = \"t\"\ntopology = \"pair\"\nmeasure = \"frames\"\n\
                    systems = [\"bridge\", \"causeway\"]\n";

#[track_caller]
fn refusal(text: &str) -> String {
    read(text).expect_err("it is refused").to_string()
}

#[test]
fn every_combination_of_the_axes_is_a_point_and_the_last_axis_changes_fastest() {
    let text = format!("{HEAD}[axes]\nworkers = [1, 2]\nframe-size = [64, 1518]\n");
    let plan = read(&text).unwrap();
    let shown: Vec<String> = plan
        .points
        .iter()
        .map(|point| {
            format!(
                "{:?} {} {}",
                point.axes, point.setup.workers, point.frame_size
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"{"frame-size": "64", "workers": "1"} 1 64"#,
            r#"{"frame-size": "1518", "workers": "1"} 1 1518"#,
            r#"{"frame-size": "64", "workers": "2"} 2 64"#,
            r#"{"frame-size": "1518", "workers": "2"} 2 1518"#,
        ]
    );
    assert_eq!(plan.measurements(), 4 * 5 * 3);
}

#[test]
fn a_benchmark_of_rfc_2544_has_its_sizes_unless_it_is_given_others() {
    let sizes = |text: &str| -> Vec<u16> {
        let points = read(text).expect("a plan").points.into_iter();
        points
            .map(|point| {
                let sizes = point.frame_size.sizes(point.setup.mtu);
                assert_eq!(sizes.len(), 1);
                sizes[0]
            })
            .collect()
    };
    for measure in ["throughput", "latency", "back-to-back"] {
        let head = HEAD.replace("frames", &format!("rfc2544-{measure}"));
        assert_eq!(sizes(&head), [64, 128, 256, 512, 1_024, 1_280, 1_518]);
        assert_eq!(sizes(&format!("{head}[axes]\nframe-size = [96]\n")), [96]);
    }
    assert_eq!(sizes(HEAD), [64], "the other measures have one size");
}

#[test]
fn a_mix_of_sizes_is_a_value_of_the_axis() {
    let text = format!("{HEAD}[axes]\nmtu = [9000]\nframe-size = [64, \"imix\", \"az\"]\n");
    let plan = read(&text).expect("a plan");
    let words: Vec<&str> = plan
        .points
        .iter()
        .map(|point| point.axes["frame-size"].as_str())
        .collect();
    assert_eq!(words, ["64", "imix", "az"]);
    let sizes = |index: usize| plan.points[index].frame_size.sizes(9_000);
    assert_eq!((sizes(1).len(), sizes(2)), (12, vec![64, 9_018]));
}

#[test]
fn a_discarded_measurement_is_short_whatever_is_measured() {
    let load = Load {
        trial_ms: 60_000,
        resolution: 0.001,
        burst_max: BURST_MAX,
        ..Load::default()
    };
    let discarded = warm_up(load);
    assert_eq!(discarded.trial_ms, TRIAL_MS_MIN);
    assert!(discarded.resolution > 0.4 && discarded.burst_max <= 10_000);
}

#[test]
fn the_baseline_is_the_first_system_and_takes_part_twice() {
    let labels = |text: &str| -> Vec<String> {
        let contestants = read(text).unwrap().contestants().into_iter();
        contestants.map(|contestant| contestant.label).collect()
    };
    assert_eq!(labels(HEAD), ["bridge", "causeway", "baseline again"]);
    let without = format!("{HEAD}noise-floor = false\n");
    assert_eq!(labels(&without), ["bridge", "causeway"]);
    let other = format!("{HEAD}baseline = \"causeway\"\n");
    let plan = read(&other).unwrap();
    assert_eq!(plan.contestants()[2].system, SystemName::Causeway);
}

#[test]
fn a_planned_scenario_survives_its_json() {
    let text = format!("{HEAD}[load]\nrate = 5000\n[axes]\nmtu = [1500, 9000]\ngso = [true]\n");
    let plan = read(&text).unwrap();
    let json = serde_json::to_string(&plan.scenario).unwrap();
    let again = super::plan(serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(again, plan);
}

#[test]
fn refusals_name_the_line_the_key_and_what_to_do() {
    let axes = |text: &str| format!("{HEAD}[axes]\n{text}\n");
    let core = |text: &str| {
        axes(text)
            .replace("\"frames\"", "\"core-frames\"")
            .replace("pair", "star")
            .replace("\"bridge\", ", "")
    };
    let golden: Vec<(String, &str)> = vec![
        (
            axes("worker = [1]"),
            "line 6: unknown key `worker`; the nearest known is `workers` (expected one of \
             `frame-size`, `ports`, `workers`, `backend`, `batch`, `flows`, `mtu`, `gso`, \
             `waiting`, `stations`, `sessions`, `congestion`)",
        ),
        (
            HEAD.replace("\"causeway\"", "\"cuaseway\""),
            "line 4: unknown value `cuaseway`; the nearest known is `causeway` (expected one of \
             `causeway`, `causeway-packet`, `causeway-packet-calls`, `causeway-xdp`, \
             `causeway-tap-plain`, `veth`, `bridge`, `nft`, `ovs-packet`, `ovs-xdp`, `vde`, `pasta`, \
             `docker-proxy`)",
        ),
        (
            HEAD.replace("systems = ", "system = "),
            "line 4: unknown key `system`; the nearest known is `systems` (expected one of \
             `name`, `about`, `topology`, `measure`, `systems`, `baseline`, `repeats`, `seed`, \
             `noise-floor`, `instances`, `load`, `axes`)",
        ),
        (
            HEAD.replace("topology = \"pair\"\n", ""),
            "line 1: missing field `topology`",
        ),
        (
            axes("workers = [-1]"),
            "line 6: invalid value: integer `-1`, expected u16",
        ),
        (
            axes("frame-size = [64, 1519]"),
            "line 6: frames of 1519 bytes do not fit an MTU of 1500; at most 1518, or raise `mtu`",
        ),
        (
            axes("frame-size = [64, \"imx\"]"),
            "line 6: `imx` is no size of frames; give 64 to 65535, \"imix\", or a genome of RFC 6985: \
             letters from a to j and z, at most 64",
        ),
        (
            axes("frame-size = [65536]"),
            "line 6: `65536` is no size of frames; give 64 to 65535, \"imix\", or a genome of RFC \
             6985: letters from a to j and z, at most 64",
        ),
        (
            axes("frame-size = [\"adh\"]"),
            "line 6: frames of 2112 bytes do not fit an MTU of 1500; at most 1518, or raise `mtu`",
        ),
        (
            axes("frame-size = [\"imix\", \"imix\"]"),
            "line 6: a value of `frame-size` is listed twice; each is one point",
        ),
        (
            axes("frame-size = [63]"),
            "line 6: `frame-size` 63; give 64 to 65535",
        ),
        (axes("workers = [0]"), "line 6: `workers` 0; give 1 to 64"),
        (axes("batch = [65]"), "line 6: `batch` 65; give 1 to 64"),
        (
            axes("flows = [1, 1]"),
            "line 6: a value of `flows` is listed twice; each is one point",
        ),
        (
            axes("ports = [4]"),
            "line 6: only a star or a mesh has a choice of ports; use topology = \"star\"",
        ),
        (
            axes("ports = [1]").replace("pair", "star"),
            "line 6: `ports` 1; give 2 to 2000",
        ),
        (
            axes("congestion = [\"cubic\"]"),
            "line 6: frames does not use TCP; remove `congestion`",
        ),
        (
            axes("frame-size = [64]").replace("frames", "tcp-bulk"),
            "line 6: tcp-bulk does not choose the size of its frames; vary `mtu`, or measure \
             frames",
        ),
        (
            axes("backend = [\"tap\"]").replace(", \"causeway\"", ""),
            "line 6: only causeway has `backend`, and it does not take part; add it to `systems`",
        ),
        (
            HEAD.replace("[\"bridge\", \"causeway\"]", "[]"),
            "line 4: nothing to compare; list at least one system",
        ),
        (
            format!("{HEAD}baseline = \"nft\"\n"),
            "line 5: the baseline does not take part; add it to `systems`",
        ),
        (
            format!("{HEAD}repeats = 2\n"),
            "line 5: 2 repeats; give 3 to 99 (a finding needs 5)",
        ),
        (
            format!("{HEAD}[load]\nduration-ms = 200\nwarm-up-ms = 200\n"),
            "line 7: the warm-up leaves nothing to measure; make it shorter than duration-ms",
        ),
        (
            format!("{HEAD}[load]\nloss-max = nan\n"),
            "line 6: a loss of NaN cannot be asked for; give 0 to 0.5",
        ),
        (
            format!("{HEAD}[load]\npdr-loss-max = 1.5\n"),
            "line 6: a loss of 1.5 cannot be asked for; give 0 to 0.5",
        ),
        (
            format!("{HEAD}[load]\nresolution = 0\n"),
            "line 6: a resolution of 0; give 0.0001 to 0.5",
        ),
        (
            format!("{HEAD}[load]\ntrial-ms = 99\n"),
            "line 6: a trial of 99 ms; give 100 to 60000",
        ),
        (
            axes("stations = [2]"),
            "line 6: only core-frames has `stations`; remove it, or measure that",
        ),
        (
            HEAD.replace("frames", "core-frames")
                .replace("pair", "star"),
            "line 4: core-frames is of causeway's core alone; use systems = [\"causeway\"]",
        ),
        (
            core("sessions = [0, 1000001]"),
            "line 6: `sessions` 1000001; give 0 to 1000000",
        ),
        (
            core("stations = [0]"),
            "line 6: `stations` 0; give 1 to 1048576",
        ),
        (
            core("stations = [2]\nsessions = [2]"),
            "line 7: frames of sessions are routed, whatever `ports` and `stations` are; split the \
             scenario",
        ),
        (
            core("workers = [1]"),
            "line 6: core-frames is in memory, without `workers`; remove it",
        ),
        (
            HEAD.replace("frames", "rfc2889-capacity"),
            "line 2: rfc2889-capacity is of many ports on one switch; use topology = \"star\"",
        ),
        (
            axes("ports = [2]")
                .replace("frames", "rfc2889-learning-rate")
                .replace("pair", "star"),
            "line 6: `ports` 2; rfc2889-learning-rate takes 3 to 2000",
        ),
        (
            axes("flows = [2]")
                .replace("frames", "rfc2889-broadcast")
                .replace("pair", "star"),
            "line 6: rfc2889-broadcast has no choice of flows; remove `flows`",
        ),
        (
            format!("{HEAD}[load]\naddresses-max = 0\n"),
            "line 6: 0 addresses; give 1 to 4194304",
        ),
        (
            format!("{HEAD}[load]\nburst-max = 0\n"),
            "line 6: bursts of 0 frames; give 1 to 10000000",
        ),
        (
            HEAD.replace("\"t\"", "\"../t\""),
            "line 1: '../t' cannot name a file; use letters, digits, '-' and '_', at most 64",
        ),
    ];
    for (text, wanted) in golden {
        assert_eq!(refusal(&text), wanted, "{text}");
    }
}

#[test]
fn a_congestion_control_that_the_kernel_lacks_is_refused_with_those_that_it_has() {
    let with = |names: &str| {
        let text = format!("{HEAD}[axes]\ncongestion = {names}\n");
        text.replace("frames", "tcp-bulk")
    };
    for name in ["cubik", "a b", "", "far-too-long-for-the-kernel"] {
        let said = refusal(&with(&format!("[\"reno\", \"{name}\"]")));
        let begin = format!("line 6: this kernel has no congestion control '{name}'; it has ");
        let listed = said
            .strip_prefix(&begin)
            .unwrap_or_else(|| panic!("{said}"));
        assert!(listed.contains("reno"), "every kernel has it: {said}");
    }
    read(&with("[\"reno\"]")).expect("a plan");
}

#[test]
fn too_many_points_are_refused_before_anything_starts() {
    let many: Vec<String> = (1..=17).map(|n| n.to_string()).collect();
    let many = many.join(", ");
    let text = format!("{HEAD}[axes]\nworkers = [{many}]\nbatch = [{many}]\n");
    assert_eq!(
        refusal(&text),
        "line 5: 289 points; at most 256: shorten an axis or split the scenario"
    );
}
