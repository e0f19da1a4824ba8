//! Endpoints of a sandbox: many sandboxes on a port, several endpoints in one, their MACs and cables.

#![allow(clippy::unwrap_used)]

mod program;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, block_on, ip, require_root, wait_until};

use tests::talk::ping;

use program::*;

/// Covers: 4, 22, 64
#[test]
fn a_hundred_namespaces_serve_the_same_port() {
    if !require_root("a_hundred_namespaces_serve_the_same_port") {
        return;
    }
    let lab = Lab::new("hundred");
    let [host, client] = lab.namespaces(["host", "client"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&client, "n", "client", &[]);
    let mut serving = Vec::new();
    for number in 0..100 {
        let ns = lab.namespace(&format!("n{number}"));
        let address = daemon.attach(&ns, "n", &format!("n{number}"), &[]);
        let server = ns.run(|| TcpListener::bind("0.0.0.0:80")).unwrap();
        serving.push((ns, ip(&address), server));
    }
    for from in [&client, &host] {
        for (_, address, server) in &serving {
            let stream = from.run(|| TcpStream::connect_timeout(&(*address, 80).into(), DEADLINE));
            let (accepted, _) = server.accept().unwrap();
            assert_eq!(accepted.local_addr().unwrap().ip(), *address);
            drop(stream.unwrap());
        }
    }
    daemon.run(&["detach", "--network", "n"]);
}

/// Open descriptors of the daemon, by what they lead to.
fn descriptors(daemon: &Daemon) -> usize {
    let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    all.count()
}

/// Covers: 22
#[test]
fn a_small_subnet_serves_far_more_endpoints_than_it_has_addresses_one_after_the_other() {
    if !require_root(
        "a_small_subnet_serves_far_more_endpoints_than_it_has_addresses_one_after_the_other",
    ) {
        return;
    }
    const ROUNDS: usize = 24;
    let lab = Lab::new("rounds");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    // 13 addresses besides the gateway's: one that is not given back in a round is missed in the sixth.
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/28"]);
    let count = |command: &[&str]| daemon.json(command).as_array().unwrap().len();
    let ports = count(&["port", "ls"]);
    let stay = lab.namespace("stay");
    daemon.attach(&stay, "n", "stay", &[]);
    let names: Vec<String> = (0..8).map(|number| format!("e{number}")).collect();
    let mut open = 0;
    for round in 0..ROUNDS {
        let sandboxes: Vec<Namespace> = names.iter().map(|name| lab.namespace(name)).collect();
        for (name, sandbox) in names.iter().zip(&sandboxes) {
            daemon.attach(sandbox, "n", name, &[]);
        }
        assert!(ping(&sandboxes[7], ip("10.88.0.1"), 56));
        let command = ["detach"]
            .into_iter()
            .chain(names.iter().map(String::as_str));
        let command: Vec<&str> = command.collect();
        match round % 3 {
            0 => {
                daemon.run(&command);
            }
            1 => names.iter().for_each(|name| {
                daemon.run(&["detach", name]);
            }),
            // Their namespaces go, without a word to the daemon.
            _ => {}
        }
        drop(sandboxes);
        wait_until(DEADLINE, "all of the round are gone", || {
            count(&["port", "ls"]) == ports + 1
        });
        let now = descriptors(&daemon);
        match round {
            0..3 => open = open.max(now),
            _ => assert!(
                now <= open,
                "{now} descriptors in round {round}, {open} before"
            ),
        }
    }
    assert!(ping(&stay, ip("10.88.0.1"), 56));
    println!("{} endpoints, one subnet of 13", ROUNDS * names.len());
}

/// The routers of a namespace's default routes.
fn ways_out(ns: &Namespace) -> Vec<String> {
    let routes = block_on(ns.netlink().routes()).unwrap();
    let defaults = routes.iter().filter(|route| route.prefix.len == 0);
    let routers = defaults.filter_map(|route| route.gateway);
    let mut routers: Vec<String> = routers.map(|router: IpAddr| router.to_string()).collect();
    routers.sort();
    routers
}

/// Covers: 29, 43, 45
#[test]
fn the_endpoint_of_the_highest_priority_has_the_way_out_and_the_next_when_it_goes() {
    if !require_root(
        "the_endpoint_of_the_highest_priority_has_the_way_out_and_the_next_when_it_goes",
    ) {
        return;
    }
    let lab = Lab::new("priority");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    for (number, name) in (1..).zip(["one", "two", "three"]) {
        let (v4, v6) = (format!("10.{number}.0.0/24"), format!("fd00:{number}::/64"));
        daemon.run(&["network", "create", name, "--subnet", &v4, "--subnet6", &v6]);
    }
    daemon.run(&[
        "network",
        "create",
        "inner",
        "--subnet",
        "10.9.0.0/24",
        "--internal",
    ]);
    let by = |number: u8| vec![format!("10.{number}.0.1"), format!("fd00:{number}::1")];
    daemon.attach(&b, "one", "b", &[]);
    daemon.attach(&a, "one", "a1", &[]);
    assert_eq!(ways_out(&a), by(1));
    // A flow goes on while networks come and go.
    let _server = echo(&b, "0.0.0.0:7000");
    let mut stream = a.run(|| TcpStream::connect("10.1.0.2:7000")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(seen_on(&stream), ip("10.1.0.3"));
    let mut goes_on = || {
        stream.write_all(b"x").unwrap();
        let mut back = [0; 1];
        stream.read_exact(&mut back).unwrap();
    };
    daemon.attach(&a, "two", "a2", &["--ifname", "eth1"]);
    assert_eq!(ways_out(&a), by(1), "of equals the first");
    let third = ["--ifname", "eth2", "--gw-priority", "10"];
    daemon.attach(&a, "three", "a3", &third);
    assert_eq!(ways_out(&a), by(3));
    let inner = ["--ifname", "eth3", "--gw-priority", "99"];
    daemon.attach(&a, "inner", "a9", &inner);
    assert_eq!(ways_out(&a), by(3), "an internal network leads nowhere");
    goes_on();
    let mut addresses = block_on(a.netlink().addresses()).unwrap();
    addresses.retain(|own| own.prefix.address.is_ipv4() && own.link != a.link("lo").index);
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    daemon.kill();
    daemon.restart();
    assert_eq!(ways_out(&a), by(3), "after a crash");
    daemon.run(&["detach", "a3"]);
    assert_eq!(ways_out(&a), by(1));
    daemon.run(&["detach", "a1"]);
    assert_eq!(ways_out(&a), by(2));
    // Somebody's own route stays, whatever comes.
    daemon.run(&["detach", "a2", "a9"]);
    assert_eq!(ways_out(&a), Vec::<String>::new());
    daemon.attach(&a, "one", "a1", &["--ip6", "none"]);
    a.add_default_route("eth0", "10.1.0.254");
    daemon.attach(
        &a,
        "two",
        "a2",
        &["--ifname", "eth1", "--gw-priority", "5", "--ip6", "none"],
    );
    assert_eq!(ways_out(&a), ["10.1.0.254"]);
}

/// Covers: 34
#[test]
fn a_mac_comes_from_the_address_or_from_chance() {
    if !require_root("a_mac_comes_from_the_address_or_from_chance") {
        return;
    }
    let lab = Lab::new("macs");
    let [host, a, b, c] = lab.namespaces(["host", "a", "b", "c"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "172.17.0.0/16"]);
    let wanted = "02:42:ac:11:00:05";
    for _ in 0..2 {
        daemon.attach(&a, "n", "a", &["--ip", "172.17.0.5"]);
        assert_eq!(
            a.mac("eth0").to_string(),
            wanted,
            "the same address, the same MAC"
        );
        daemon.run(&["detach", "a"]);
    }
    let mut macs = Vec::new();
    let _server = echo(&b, "0.0.0.0:80");
    for _ in 0..2 {
        daemon.attach(&b, "n", "b", &["--ip", "172.17.0.5", "--mac", "random"]);
        let mac = b.mac("eth0");
        assert_eq!(
            mac.0[0] & 0b11,
            0b10,
            "{mac}: one station's, administered here"
        );
        daemon.attach(&c, "n", "c", &[]);
        assert_eq!(seen_address(&c, "172.17.0.5:80"), ip("172.17.0.2"));
        macs.push(mac.to_string());
        daemon.run(&["detach", "b", "c"]);
    }
    assert!(macs[0] != macs[1] && macs[0] != wanted, "{macs:?}");
    let path = a.path();
    let attach = [
        "attach",
        "--netns",
        path_text(&path),
        "--network",
        "n",
        "--mac",
    ];
    for wrong in ["randon", "ff:ff:ff:ff:ff:ff", ""] {
        daemon.refused(&[&attach[..], &[wrong]].concat());
    }
}

/// Covers: 7, 8, 10, 12
#[test]
fn a_pair_is_made_in_the_namespace_and_its_host_end_is_a_bare_plug() {
    if !require_root("a_pair_is_made_in_the_namespace_and_its_host_end_is_a_bare_plug") {
        return;
    }
    let lab = Lab::new("pair");
    let [host, a] = lab.namespaces(["host", "a"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&[
        "network",
        "create",
        "n",
        "--subnet",
        "10.88.0.0/24",
        "--mtu",
        "1400",
    ]);
    daemon.attach(&a, "n", "a", &["--backend", "packet"]);
    let links = block_on(host.netlink().links()).unwrap();
    let ends: Vec<_> = links.iter().filter(|link| link.kind == "veth").collect();
    let [end] = ends[..] else {
        panic!("{links:?}");
    };
    let eth0 = a.link("eth0");
    assert_eq!(
        (end.parent, eth0.parent),
        (Some(eth0.index), Some(end.index))
    );
    assert_eq!((end.mtu, eth0.mtu), (1_400, 1_400));
    assert_eq!(eth0.mac.unwrap().to_string(), "02:42:0a:58:00:02");
    assert!(end.up && end.carrier && eth0.up && eth0.carrier);
    let addresses = block_on(host.netlink().addresses()).unwrap();
    assert!(
        addresses.iter().all(|own| own.link != end.index),
        "{addresses:?}"
    );
    // The far end, as it is told.
    let told = &daemon.json(&["network", "ls"])[0]["endpoints"][0];
    assert_eq!(told["netns"], path_text(&a.path()));
    assert_eq!(told["netns_inode"], a.netns().id().inode());
    assert_eq!(told["mac"], eth0.mac.unwrap().to_string());
    let addresses = serde_json::json!(["10.88.0.2/24"]);
    assert_eq!(
        (&told["ifname"], &told["addresses"]),
        (&"eth0".into(), &addresses)
    );
    daemon.run(&["detach", "a"]);
    assert!(block_on(a.netlink().link("eth0")).unwrap().is_none());
}

/// Covers: 14
#[test]
fn a_link_that_is_set_down_and_up_a_hundred_times_works_at_once() {
    if !require_root("a_link_that_is_set_down_and_up_a_hundred_times_works_at_once") {
        return;
    }
    let lab = Lab::new("flap");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    let _server = echo(&a, "0.0.0.0:80");
    let frames = || {
        daemon.json(&["port", "ls"])[1]["rx_frames"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(seen_address(&b, "10.88.0.2:80"), ip("10.88.0.3"));
    let before = frames();
    let index = a.link("eth0").index;
    for _ in 0..100 {
        block_on(a.netlink().set_down(index)).unwrap();
        block_on(a.netlink().set_up(index)).unwrap();
    }
    let start = Instant::now();
    assert_eq!(seen_address(&b, "10.88.0.2:80"), ip("10.88.0.3"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    wait_until(DEADLINE, "its counters go on", || frames() > before);
}
