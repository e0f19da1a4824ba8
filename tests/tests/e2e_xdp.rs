//! Endpoints by AF_XDP: what is told of them, what the host hears of them, and what is left.

#![allow(clippy::unwrap_used)]

mod program;

use std::process::Command;

use dataplane_port::ethtool;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::talk::ping;

use program::*;

/// An address of the host that is on none of its networks: Linux answers ARP for it on every
/// interface that hears the question.
const ELSEWHERE: &str = "198.51.100.9";

/// What a command prints in a namespace.
fn printed(ns: &Namespace, line: &str) -> String {
    let mut words = line.split(' ');
    let output = ns.run(|| {
        let mut command = Command::new(words.next().unwrap());
        command.args(words).output().unwrap()
    });
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The name of the only veth's end in a namespace.
fn veth_end(host: &Namespace) -> String {
    let links: Value = serde_json::from_str(&printed(host, "ip -j link show type veth")).unwrap();
    assert_eq!(links.as_array().unwrap().len(), 1, "{links}");
    links[0]["ifname"].as_str().unwrap().to_owned()
}

fn has_program(host: &Namespace, name: &str) -> bool {
    printed(host, &format!("ip -d link show dev {name}")).contains("prog/xdp")
}

/// Whether somebody answers ARP for [`ELSEWHERE`]: the kernel asks three times, a second apart.
fn is_answered(ns: &Namespace) -> bool {
    printed(ns, "ip neigh flush all");
    let _ = ns.run(|| {
        Command::new("ping")
            .args(["-c", "1", "-W", "4", ELSEWHERE])
            .output()
    });
    let neighbour = format!("ip neigh show to {ELSEWHERE}");
    printed(ns, &neighbour).contains("lladdr")
}

fn features(daemon: &Daemon, endpoint: &str) -> Vec<Value> {
    let object = format!("endpoint '{endpoint}'");
    let status = daemon.json(&["status"]);
    let all = status["features"].as_array().unwrap().iter();
    let of = all.filter(|feature| feature["object"] == object);
    of.cloned().collect()
}

#[test]
fn an_endpoint_by_af_xdp_works_is_told_of_and_leaves_nothing() {
    if !require_root("an_endpoint_by_af_xdp_works_is_told_of_and_leaves_nothing") {
        return;
    }
    let lab = Lab::new("xdp");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let before = [&host, &b].map(footprint);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let create = ["network", "create", "n", "--subnet", "10.88.0.0/24"];
    daemon.run(&[&create[..], &["--mtu", "9000"]].concat());
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &["--backend", "xdp"]);
    let _server = echo(&b, "10.88.0.3:80");
    assert_eq!(seen_address(&a, "10.88.0.3:80"), ip("10.88.0.2"));
    assert!(ping(&a, ip("10.88.0.3"), 8_900), "a jumbo frame");

    let name = veth_end(&host);
    assert!(has_program(&host, &name));
    let told = features(&daemon, "b");
    let kinds: Vec<&Value> = told.iter().map(|it| &it["feature"]).collect();
    assert_eq!(kinds, ["XDP program", "frames", "checksums"]);
    for feature in &told {
        assert_eq!(feature["wanted"], feature["used"], "of this kernel");
        assert_eq!(feature["replaced"], false);
    }
    let network = &daemon.json(&["network", "ls"])[0];
    let endpoints = network["endpoints"].as_array().unwrap().iter();
    let mut backends: Vec<&Value> = endpoints.map(|it| &it["backend"]).collect();
    backends.sort_by_key(|it| it.to_string());
    assert_eq!(backends, ["tap", "xdp"]);

    daemon.run(&["detach", "b"]);
    assert_eq!(features(&daemon, "b"), Vec::<Value>::new());
    assert_eq!(footprint(&b), before[1]);
    daemon.attach(&b, "n", "b", &["--backend", "xdp"]);
    assert_eq!(seen_address(&a, "10.88.0.3:80"), ip("10.88.0.2"));
    daemon.clean();
    assert_eq!([&host, &b].map(footprint), before);
}

#[test]
fn the_host_answers_nothing_by_af_xdp_even_after_a_kill() {
    if !require_root("the_host_answers_nothing_by_af_xdp_even_after_a_kill") {
        return;
    }
    let lab = Lab::new("xdp-silent");
    let [host, a] = lab.namespaces(["host", "a"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &["--backend", "xdp"]);
    host.add_address("lo", &format!("{ELSEWHERE}/32"));
    printed(&a, &format!("ip route add {ELSEWHERE} dev eth0"));
    assert!(!is_answered(&a), "while the daemon runs");

    let name = veth_end(&host);
    daemon.kill();
    wait_until(DEADLINE, "the program ends", || !has_program(&host, &name));
    assert!(!is_answered(&a), "when it was killed");
    printed(&host, &format!("tc qdisc del dev {name} clsact"));
    assert!(is_answered(&a), "but for the guard");

    daemon.restart();
    assert!(has_program(&host, &name));
    assert!(!is_answered(&a), "when it is back");
    let _server = echo(&a, "10.88.0.2:80");
    assert_eq!(seen_address(&host, "10.88.0.2:80"), ip("10.88.0.1"));
    daemon.clean();
}

#[test]
fn what_a_veth_would_leave_to_its_device_is_off_and_checksums_are_not() {
    if !require_root("what_a_veth_would_leave_to_its_device_is_off_and_checksums_are_not") {
        return;
    }
    let lab = Lab::new("xdp-features");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &["--backend", "xdp"]);
    daemon.attach(&b, "n", "b", &["--backend", "packet"]);
    let features = [
        "tx-checksum-ip-generic",
        "tx-checksum-sctp",
        "tx-tcp-segmentation",
        "tx-vlan-hw-insert",
        "tx-vlan-stag-hw-insert",
    ];
    let on = |ns: &Namespace| {
        let on = ns.run(|| ethtool::features("eth0")).unwrap();
        features.map(|feature| on.iter().any(|on| on == feature))
    };
    assert_eq!(on(&b), [true; 5], "{features:?}");
    assert_eq!(on(&a), [true, false, false, false, false], "{features:?}");
}
