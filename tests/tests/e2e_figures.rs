//! Figures that the command line has of the switch: what frames came to, what is connected to what,
//! and what the stages of the data path cost.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use dataplane_core::addr::MacAddr;
use serde_json::Value;
use tests::daemon::{Daemon, binary};
use tests::lab::{DEADLINE, Lab, require_root, wait_until};
use tests::talk::Witness;
use tests::wire::{Link, plain};

const MULTICAST: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
const UNKNOWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
/// Somebody behind the interface of `a`, besides itself.
const BESIDE_A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x78]);

/// Covers: 19
#[test]
fn frames_are_counted_apart_as_forwarded_filtered_and_flooded_by_class() {
    if !require_root("frames_are_counted_apart_as_forwarded_filtered_and_flooded_by_class") {
        return;
    }
    let lab = Lab::new("counted");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let names = ["a", "b", "c"];
    let sandboxes = lab.namespaces(names);
    for (sandbox, name) in sandboxes.iter().zip(names) {
        // Nobody says anything of itself.
        sandbox.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        daemon.attach(sandbox, "n", name, &[]);
    }
    daemon.run(&["port", "set", "a", "port-security", "off"]);
    let [a, b] = [0, 1].map(|index: usize| sandboxes[index].mac("eth0"));
    let [mut from_a, mut from_b] = [0, 1].map(|n: usize| Witness::new(&sandboxes[n], "eth0"));
    let stats = || daemon.json(&["stats"]);
    let before = stats();
    // Both are heard, and the one beside a as well.
    from_b.send(&plain(Link(b, MacAddr::BROADCAST)));
    from_a.send(&plain(Link(BESIDE_A, MacAddr::BROADCAST)));
    let expected = [
        ("received", 41),
        ("forwarded", 11),
        ("filtered_same_port", 13),
        ("flooded_unknown", 3),
        ("flooded_bcast", 7),
        ("flooded_mcast", 7),
        ("multicast", 0),
        ("routed", 0),
        ("delivered", 0),
        ("replied", 0),
        ("held", 0),
        ("not_ours", 0),
        ("dropped", 0),
    ];
    let count = |stats: &Value, name: &str| stats[name].as_u64().unwrap();
    wait_until(DEADLINE, "both are heard, by whatever worker", || {
        count(&stats(), "received") - count(&before, "received") == 2
    });
    for (count, dst) in [
        (3, UNKNOWN),
        (5, MacAddr::BROADCAST),
        (7, MULTICAST),
        (11, b),
        (13, BESIDE_A),
    ] {
        for _ in 0..count {
            from_a.send(&plain(Link(a, dst)));
        }
    }
    let delta = || {
        let now = stats();
        expected.map(|(name, _)| (name, count(&now, name) - count(&before, name)))
    };
    wait_until(DEADLINE, "everything is counted", || delta()[0].1 == 41);
    assert_eq!(delta(), expected);
    assert_eq!(stats().as_object().unwrap().len(), expected.len());
    let table = daemon.run(&["stats"]);
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let filtered = table
        .lines()
        .map(words)
        .find(|row| row[0] == "filtered_same_port");
    assert_eq!(filtered.unwrap()[1], "13", "{table}");
}

/// Covers: 27
#[test]
fn networks_are_listed_with_the_columns_of_brctl_show() {
    if !require_root("networks_are_listed_with_the_columns_of_brctl_show") {
        return;
    }
    let lab = Lab::new("brctl");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.run(&["network", "create", "idle", "--subnet", "10.89.0.0/24"]);
    let [a, b] = lab.namespaces(["a", "b"]);
    daemon.attach(&a, "web", "a", &[]);
    daemon.attach(&b, "web", "b", &[]);
    // As bridge-utils 1.7 prints two bridges, of which one has two interfaces.
    let web = "web\t\t8000.02420a580001\tno\t\ta\n\t\t\t\t\t\t\tb\n";
    let idle = "idle\t\t8000.02420a590001\tno\t\t\n";
    let heading = "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n";
    assert_eq!(daemon.run(&["show"]), format!("{heading}{idle}{web}"));
    assert_eq!(daemon.run(&["show", "idle"]), format!("{heading}{idle}"));
    daemon.run(&["detach", "b"]);
    let shown = daemon.json(&["show", "web"]);
    let expected = serde_json::json!([{
        "name": "web", "id": "8000.02420a580001", "stp": false, "interfaces": ["a"],
    }]);
    assert_eq!(shown, expected);
    let refused = daemon.refused(&["show", "nowhere"]);
    assert!(
        refused.contains("'nowhere'") && refused.contains("network ls"),
        "{refused}"
    );
}

/// Covers: 67
#[test]
fn the_cost_of_the_nat_is_measured_beside_that_of_the_bridge() {
    let output = Command::new(binary())
        .args(["bench", "stages", "--json"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let costs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let costs = costs.as_array().unwrap();
    let stages: Vec<&str> = costs.iter().map(|c| c["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["l2", "snat-out", "snat-in", "dnat-in", "dnat-out"]);
    let nanos = |index: usize| costs[index]["nanos_per_packet"].as_f64().unwrap();
    for (index, stage) in stages.iter().enumerate() {
        // Nothing is done in less than a cycle, nor slept for.
        assert!(
            (1.0..100_000.0).contains(&nanos(index)),
            "{stage}: {costs:?}"
        );
        let over = costs[index]["nanos_over_l2"].as_f64().unwrap();
        assert!((over - (nanos(index) - nanos(0))).abs() < 1e-6, "{stage}");
    }
    let table = Command::new(binary()).args(["bench", "stages"]).output();
    let table = String::from_utf8(table.unwrap().stdout).unwrap();
    assert!(
        table.starts_with("STAGE") && table.lines().count() == 6,
        "{table}"
    );
}
