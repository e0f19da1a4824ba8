//! What a daemon has from its first start, and where networks get their addresses from.

#![allow(clippy::unwrap_used)]

use tests::daemon::{Daemon, path_text};
use tests::lab::{Lab, ip, require_root};
use tests::talk::{ask_tcp, serve_tcp};

/// Covers: 32
#[test]
fn the_default_network_is_there_once_and_stays_away_when_it_was_removed() {
    if !require_root("the_default_network_is_there_once_and_stays_away_when_it_was_removed") {
        return;
    }
    let lab = Lab::new("first");
    let (host, outside) = lab.host_and_outside();
    let [a, b] = lab.namespaces(["a", "b"]);
    host.set_mtu("up0", 1_400);
    let mut daemon = Daemon::start_as_usual(&lab, &host, &["--uplink", "up0"]);
    let networks = daemon.json(&["network", "ls"]);
    let network = &networks[0];
    assert_eq!(
        (&network["name"], networks.as_array().unwrap().len()),
        (&"default".into(), 1)
    );
    assert_eq!(network["subnets"][0]["subnet"], "172.17.0.0/16");
    assert_eq!(network["subnets"][0]["gateway"], "172.17.0.1");
    assert_eq!(network["mtu"], 1_400, "the uplink's");
    for (ns, name, address) in [(&a, "a", "172.17.0.2/16"), (&b, "b", "172.17.0.3/16")] {
        let made = daemon.json(&["attach", "--netns", path_text(&ns.path()), "--name", name]);
        assert_eq!(made["addresses"][0], address);
    }
    serve_tcp(&outside, "0.0.0.0:80");
    serve_tcp(&b, "0.0.0.0:80");
    assert_eq!(ask_tcp(&a, "192.0.2.2:80", 1_000), ip("192.0.2.1"));
    assert_eq!(ask_tcp(&a, "172.17.0.3:80", 1_000), ip("172.17.0.2"));
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.json(&["network", "ls"]).as_array().unwrap().len(), 1);
    assert_eq!(daemon.run(&["network", "prune", "--force"]), "");
    daemon.run(&["detach", "a", "b"]);
    assert_eq!(
        daemon.run(&["network", "prune", "--force"]),
        "",
        "the default one stays"
    );
    daemon.run(&["network", "rm", "default"]);
    daemon.stop();
    daemon.restart();
    assert_eq!(daemon.json(&["network", "ls"]).as_array().unwrap().len(), 0);
    let path = a.path();
    let nowhere = daemon.refused(&["attach", "--netns", path_text(&path)]);
    assert!(nowhere.contains("no network 'default'"), "{nowhere}");
    daemon.clean();
}

#[test]
fn a_default_network_that_clashes_with_a_route_gets_another_subnet_and_names_the_route() {
    if !require_root(
        "a_default_network_that_clashes_with_a_route_gets_another_subnet_and_names_the_route",
    ) {
        return;
    }
    let lab = Lab::new("clash");
    let (host, _outside) = lab.host_and_outside();
    host.add_address("up0", "172.17.5.1/24");
    let daemon = Daemon::start_as_usual(&lab, &host, &["--uplink", "up0"]);
    let network = &daemon.json(&["network", "ls"])[0];
    assert_eq!(network["subnets"][0]["subnet"], "172.31.0.0/16");
    let events = daemon.run(&["events", "--json"]);
    assert!(
        events.contains("host's route to 172.17.5.0/24 by 'up0'"),
        "{events}"
    );
    assert!(daemon.log().contains("172.17.5.0/24"));
}

/// Covers: 40, 41, 44
#[test]
fn the_configuration_says_what_the_default_network_and_the_pools_are_like() {
    if !require_root("the_configuration_says_what_the_default_network_and_the_pools_are_like") {
        return;
    }
    let lab = Lab::new("pools");
    let host = lab.namespace("host");
    let config = lab.dir().join("causeway.toml");
    let text = "[default_network]\nbip = \"10.200.0.254/24\"\nfixed_cidr = \"10.200.0.128/26\"\n\
                bip6 = \"fd00:200::1/64\"\nmtu = 1300\n\
                [[default_address_pools]]\nbase = \"10.201.0.0/16\"\nsize = 24\n";
    std::fs::write(&config, text).unwrap();
    let options = ["--uplink", "none", "--config", path_text(&config)];
    let daemon = Daemon::start_as_usual(&lab, &host, &options);
    let network = &daemon.json(&["network", "ls"])[0];
    let subnets = &network["subnets"];
    assert_eq!(
        (&subnets[0]["gateway"], &subnets[0]["ip_range"]),
        (&"10.200.0.254".into(), &"10.200.0.128/26".into())
    );
    assert_eq!(
        (&subnets[1]["gateway"], &network["mtu"]),
        (&"fd00:200::1".into(), &1_300.into())
    );
    let [a] = lab.namespaces(["a"]);
    let made = daemon.json(&["attach", "--netns", path_text(&a.path()), "--name", "a"]);
    assert_eq!(made["addresses"][0], "10.200.0.129/24");
    for (name, subnet) in [("n0", "10.201.0.0/24"), ("n1", "10.201.1.0/24")] {
        daemon.run(&["network", "create", name]);
        let networks = daemon.json(&["network", "ls"]);
        let made = networks.as_array().unwrap().last().unwrap();
        assert_eq!(
            (&made["name"], &made["subnets"][0]["subnet"]),
            (&name.into(), &subnet.into())
        );
    }
    let table = daemon.run(&["network", "ls"]);
    assert!(
        table.starts_with("NAME     DRIVER  SCOPE  SUBNETS"),
        "{table}"
    );
    let mut pruned = daemon.run(&["network", "prune", "-f"]);
    assert_eq!(pruned, "n0\nn1\n");
    pruned = daemon.run(&["network", "prune", "-f"]);
    assert_eq!(pruned, "");
}

/// Covers: 33
#[test]
fn a_reserved_address_is_given_to_its_holder_alone_and_survives_a_restart() {
    if !require_root("a_reserved_address_is_given_to_its_holder_alone_and_survives_a_restart") {
        return;
    }
    let lab = Lab::new("reserve");
    let host = lab.namespace("host");
    let [a, b, c, d] = lab.namespaces(["a", "b", "c", "d"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/29"]);
    daemon.run(&["network", "reserve", "n", "10.88.0.2"]);
    daemon.run(&["network", "reserve", "n", "10.88.0.3", "--for", "db"]);
    daemon.run(&[
        "network",
        "reserve",
        "n",
        "10.88.0.4",
        "--for",
        "02:00:00:00:00:09",
    ]);
    daemon.run(&["network", "reserve", "n", "10.88.0.3", "--for", "db"]);
    for (words, told) in [
        (
            &["n", "10.88.0.3"][..],
            "taken by a reservation for endpoint 'db'",
        ),
        (&["n", "10.88.0.1"], "the gateway"),
        (&["n", "10.88.1.1"], "in no subnet"),
        (&["n", "10.88.0.7"], "broadcast"),
        (&["n", "ten"], "'ten' is no IP address"),
        (&["x", "10.88.0.5"], "no network 'x'"),
        (
            &["n", "10.88.0.5", "--for", "a b"],
            "neither an endpoint's name nor a MAC",
        ),
    ] {
        let refused = daemon.refused(&[&["network", "reserve"], words].concat());
        assert!(refused.contains(told), "{words:?}: {refused}");
    }
    daemon.kill();
    daemon.restart();
    let shown = daemon.run(&["network", "inspect", "n"]);
    assert!(shown.contains("\"for\": \"db\""), "{shown}");
    assert_eq!(daemon.attach(&a, "n", "a", &[]), "10.88.0.5");
    assert_eq!(daemon.attach(&b, "n", "db", &[]), "10.88.0.3");
    assert_eq!(
        daemon.attach(&c, "n", "c", &["--mac", "02:00:00:00:00:09"]),
        "10.88.0.4"
    );
    let path = d.path();
    let attach = [
        "attach",
        "--network",
        "n",
        "--netns",
        path_text(&path),
        "--name",
        "d",
    ];
    let refused = daemon.refused(&[&attach[..], &["--ip", "10.88.0.2"]].concat());
    assert!(
        refused.contains("taken by a reservation for nobody"),
        "{refused}"
    );
    daemon.run(&["network", "release", "n", "10.88.0.2"]);
    daemon.refused(&["network", "release", "n", "10.88.0.2"]);
    assert_eq!(
        daemon.attach(&d, "n", "d", &["--ip", "10.88.0.2"]),
        "10.88.0.2"
    );
    daemon.run(&["detach", "db"]);
    let shown = daemon.run(&["network", "inspect", "n"]);
    assert!(
        shown.contains("\"for\": \"db\""),
        "it outlives its holder: {shown}"
    );
    daemon.run(&["detach", "a", "c", "d"]);
    daemon.run(&["network", "rm", "n"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/29"]);
    assert_eq!(
        daemon.attach(&a, "n", "a", &[]),
        "10.88.0.2",
        "and ends with its network"
    );
}

/// Covers: 41
#[test]
fn two_networks_of_the_same_subnet_work_side_by_side() {
    if !require_root("two_networks_of_the_same_subnet_work_side_by_side") {
        return;
    }
    let lab = Lab::new("same");
    let (host, outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    let create = ["network", "create", "two", "--subnet", "172.26.0.0/16"];
    daemon.run(&["network", "create", "one", "--subnet", "172.26.0.0/16"]);
    let refused = daemon.refused(&create);
    assert!(
        refused.contains("of network 'one'") && refused.contains("--no-host-link"),
        "{refused}"
    );
    let routed = daemon.refused(&[&create[..], &["--no-host-link", "--nat4", "routed"]].concat());
    assert!(
        routed.contains("overlaps 172.26.0.0/16 of network 'one'"),
        "{routed}"
    );
    daemon.run(&[&create[..], &["--no-host-link"]].concat());
    let refused = daemon.refused(&["network", "set", "one", "--nat4", "routed"]);
    assert!(refused.contains("overlaps"), "{refused}");
    let [a, b, c, d] = lab.namespaces(["a", "b", "c", "d"]);
    for (ns, network, name) in [
        (&a, "one", "a"),
        (&b, "one", "b"),
        (&c, "two", "c"),
        (&d, "two", "d"),
    ] {
        daemon.attach(ns, network, name, &[]);
    }
    serve_tcp(&outside, "0.0.0.0:80");
    // The same address at both ends of both networks, and each one's own neighbour answers.
    for (client, server) in [(&a, &b), (&c, &d)] {
        serve_tcp(server, "0.0.0.0:80");
        assert_eq!(ask_tcp(client, "172.26.0.3:80", 1_000), ip("172.26.0.2"));
        assert_eq!(ask_tcp(client, "192.0.2.2:80", 1_000), ip("192.0.2.1"));
    }
    daemon.run(&["publish", "add", "8080:80", "d"]);
    assert_eq!(ask_tcp(&outside, "192.0.2.1:8080", 1_000), ip("192.0.2.2"));
    daemon.run(&["detach", "b"]);
    assert_eq!(ask_tcp(&c, "172.26.0.3:80", 1_000), ip("172.26.0.2"));
}
