//! Static routes of endpoints: in the sandbox, over a restart, in a listing and a lab file.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use serde_json::json;
use tests::daemon::{Daemon, path_text};
use tests::lab::{Lab, Namespace, block_on, ip, prefix, require_root};
use tests::talk::{ping, unpingable};

/// Who a namespace sends packets to that subnet to.
fn router_to(ns: &Namespace, subnet: &str) -> Option<IpAddr> {
    let routes = block_on(ns.netlink().routes()).unwrap();
    let found = routes.iter().find(|route| route.prefix == prefix(subnet));
    found.and_then(|route| route.gateway)
}

#[test]
fn a_sandbox_reaches_a_subnet_by_the_router_that_its_endpoint_names() {
    if !require_root("a_sandbox_reaches_a_subnet_by_the_router_that_its_endpoint_names") {
        return;
    }
    let lab = Lab::new("static-routes");
    let host = lab.namespace("host");
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&[
        "network",
        "create",
        "n",
        "--subnet",
        "10.88.0.0/24",
        "--subnet6",
        "fd00:88::/64",
    ]);
    let [a, b, router] = lab.namespaces(["a", "b", "router"]);
    daemon.attach(&router, "n", "router", &["--ip", "10.88.0.254"]);
    // It answers for what is behind it, under addresses that are not its endpoint's.
    daemon.run(&["port", "set", "router", "port-security", "off"]);
    router.add_address("eth0", "10.9.0.1/32");
    let routes = [
        "--route",
        "10.9.0.0/16=10.88.0.254",
        "--route",
        "fd00:9::/32=fd00:88::fe",
    ];
    daemon.attach(&a, "n", "a", &routes);
    daemon.attach(&b, "n", "b", &[]);
    assert!(ping(&a, ip("10.9.0.1"), 56));
    assert!(unpingable(&b, ip("10.9.0.1")), "b has no such route");
    let listed = &daemon.json(&["network", "ls"])[0]["endpoints"][1];
    let shown = json!(["10.9.0.0/16=10.88.0.254", "fd00:9::/32=fd00:88::fe"]);
    assert_eq!((&listed["name"], &listed["routes"]), (&json!("a"), &shown));

    // Gone while no daemon looks, and there again with the next.
    daemon.stop();
    let gone = block_on(a.netlink().routes()).unwrap();
    for subnet in ["10.9.0.0/16", "fd00:9::/32"] {
        let route = gone.iter().find(|route| route.prefix == prefix(subnet));
        block_on(a.netlink().remove_route(*route.unwrap())).unwrap();
    }
    daemon.restart();
    assert_eq!(router_to(&a, "10.9.0.0/16"), Some(ip("10.88.0.254")));
    assert_eq!(router_to(&a, "fd00:9::/32"), Some(ip("fd00:88::fe")));
    assert!(ping(&a, ip("10.9.0.1"), 56));

    // A lab file carries them, and changes them by attaching anew.
    let exported = daemon.run(&["export"]);
    assert!(
        exported.contains("\"10.9.0.0/16=10.88.0.254\""),
        "{exported}"
    );
    let file = lab.dir().join("lab.toml");
    let changed = exported.replace("\"10.9.0.0/16=", "\"10.7.0.0/16=");
    std::fs::write(&file, changed).unwrap();
    let steps = daemon.run(&["apply", "-f", path_text(&file)]);
    assert_eq!(steps.lines().count(), 1, "{steps}");
    assert_eq!(router_to(&a, "10.7.0.0/16"), Some(ip("10.88.0.254")));
    assert_eq!(router_to(&a, "10.9.0.0/16"), None);
}

#[test]
fn routes_that_lead_nowhere_are_refused_and_leave_nothing() {
    if !require_root("routes_that_lead_nowhere_are_refused_and_leave_nothing") {
        return;
    }
    let lab = Lab::new("bad-routes");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let a = lab.namespace("a");
    let path = a.path();
    let attach = [
        "attach",
        "--netns",
        path_text(&path),
        "--network",
        "n",
        "--name",
        "a",
    ];
    for (routes, told) in [
        (&["10.9.0.0/16"][..], "SUBNET=ROUTER"),
        (&["10.9.0.1/16=10.88.0.254"], "write 10.9.0.0/16"),
        (&["0.0.0.0/0=10.88.0.254"], "--gw-priority"),
        (&["10.9.0.0/16=10.99.0.1"], "no neighbour"),
        (&["10.9.0.0/16=10.88.0.2"], "not its own"),
        (&["fd00:9::/32=fd00:88::fe"], "no neighbour"),
        (&["10.9.0.0/16=10.88.0.7", "10.9.0.0/16=10.88.0.8"], "twice"),
    ] {
        let words = routes.iter().flat_map(|route| ["--route", *route]);
        let words: Vec<&str> = attach.into_iter().chain(words).collect();
        let refused = daemon.refused(&words);
        assert!(refused.contains(told), "{routes:?}: {refused}");
    }
    let many: Vec<String> = (0..65)
        .map(|n| format!("10.{n}.0.0/16=10.88.0.254"))
        .collect();
    let words = many.iter().flat_map(|route| ["--route", route.as_str()]);
    let words: Vec<&str> = attach.into_iter().chain(words).collect();
    assert!(daemon.refused(&words).contains("at most 64"));
    assert_eq!(daemon.json(&["status"])["endpoints"], 0);
    daemon.run(&attach);
}
