//! A network card as a port of a network: containers with addresses of the LAN, the host's own address
//! moved to a port beside them, and back, whatever dies on the way.
//!
//! The card is a veth whose far end is a LAN of one router.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use control::cli::client::Client;
use dataplane_port::{ethtool, guard};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Namespace, block_on, ip, require_root, wait_until};
use tests::rig::transfer;
use tests::site::{Footprint, Site, footprint, settled};
use tests::talk::{ask_tcp, ping, serve_tcp, unpingable};

/// Bytes of a bulk transfer: far more than any buffer on the way.
const BULK: u64 = 20_000_000;
/// The words of a move to the network `lan`.
const TAKE: [&str; 6] = [
    "network",
    "create",
    "lan",
    "--nic",
    "nic0",
    "--take-address",
];
/// How long a lifeline may take beyond its second, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// The steps of a move, each of which leaves what a crash can undo.
const STEPS: [&str; 7] = [
    "recorded",
    "host_port",
    "guarded",
    "addresses",
    "taken",
    "routes",
    "held",
];

/// That the host reaches the LAN and beyond, by both families.
fn reaches_the_lan(host: &Namespace) {
    for address in ["192.168.7.1", "198.51.100.1", "fd00:7::1", "2001:db8:9::1"] {
        assert!(ping(host, ip(address), 56), "{address}");
    }
}

/// Waits until the host is as it was, without anybody's doing but the lifeline's.
fn wait_until_restored(host: &Namespace, before: &Footprint) {
    let deadline = Instant::now() + PATIENCE;
    while footprint(host) != *before {
        assert!(
            Instant::now() < deadline,
            "not as it was: {:#?}\nbut {before:#?}",
            footprint(host)
        );
        thread::yield_now();
    }
    reaches_the_lan(host);
}

/// Covers: 9, 24, 72
#[test]
fn containers_have_addresses_of_the_lan_and_the_host_neither_hears_nor_answers_it() {
    let test = "containers_have_addresses_of_the_lan_and_the_host_neither_hears_nor_answers_it";
    if require_root(test) {
        containers_are_on_the_lan_behind_a_card("nic", "packet");
    }
}

/// Covers: 9, 24, 72
#[test]
fn a_card_by_af_xdp_does_what_one_by_packet_sockets_does() {
    if require_root("a_card_by_af_xdp_does_what_one_by_packet_sockets_does") {
        containers_are_on_the_lan_behind_a_card("nic-xdp", "xdp");
    }
}

fn containers_are_on_the_lan_behind_a_card(lab: &str, backend: &str) {
    let site = Site::bare(lab);
    let (host, router) = (&site.host, &site.router);
    host.add_address("lo", "10.9.9.9/32");
    router.add_route("10.9.9.9/32", "192.168.7.9", "eth0");
    let before = settled(host);
    let mut daemon = site.daemon(&[]);
    daemon.run(
        &[
            &["network", "create", "lan", "--nic", "nic0"][..],
            &["--subnet", "192.168.7.0/24", "--lan-gateway", "192.168.7.1"],
            &["--ip-range", "192.168.7.64/26", "--nic-backend", backend],
        ]
        .concat(),
    );
    let listed = daemon.json(&["network", "ls"]);
    assert_eq!(listed[0]["router"], "lan");
    assert_eq!(listed[0]["nic"]["name"], "nic0");
    assert_eq!(listed[0]["nic"]["backend"], backend);
    // Tags stay in the bytes, for whoever could not put them back.
    let parsed = || host.run(|| ethtool::features("nic0")).unwrap();
    let parses = |features: Vec<String>| features.contains(&"rx-vlan-hw-parse".to_owned());
    assert_eq!(parses(parsed()), backend == "packet");
    assert_eq!(listed[0]["nic"]["host_ifname"], serde_json::Value::Null);
    let a = site.sandbox(&daemon, "lan", "a", "192.168.7.70");
    let b = site.lab.namespace("b");
    assert_eq!(daemon.attach(&b, "lan", "b", &[]), "192.168.7.65");
    for (from, to) in [
        (&a, "192.168.7.1"),
        (&a, "198.51.100.1"),
        (router, "192.168.7.70"),
        (&b, "192.168.7.70"),
    ] {
        assert!(ping(from, ip(to), 1_400), "{to}");
    }
    serve_tcp(&a, "0.0.0.0:22");
    assert_eq!(ask_tcp(router, "192.168.7.70:22", 1_000), ip("192.168.7.1"));
    // Whole frames, with checksums left to do, both ways.
    let at = |address: &str, port| SocketAddr::new(ip(address), port);
    transfer(
        &a,
        router,
        at("0.0.0.0", 80),
        at("192.168.7.1", 80),
        BULK,
        None,
    );
    transfer(
        router,
        &a,
        at("0.0.0.0", 81),
        at("192.168.7.70", 81),
        BULK,
        None,
    );
    // The router asks who has the host's address, and the host hears nothing on its card.
    router.add_address("eth0", "10.9.9.1/24");
    assert!(unpingable(router, ip("10.9.9.9")));
    let all = block_on(host.netlink().addresses()).unwrap();
    let nic = host.link("nic0").index;
    assert!(!all.iter().any(|address| address.link == nic), "{all:?}");
    assert!(host.run(|| guard::find("nic0")).unwrap().is_some());

    // What a killed daemon leaves, the next one goes on with.
    daemon.kill();
    assert!(unpingable(&a, ip("192.168.7.1")));
    daemon.restart();
    // Whom the sandbox could not resolve meanwhile it asks for again in its own time.
    wait_until(DEADLINE, "the LAN", || ping(&a, ip("192.168.7.1"), 1_400));
    assert!(unpingable(router, ip("10.9.9.9")));
    let flags = daemon.json(&["port", "show", "nic0"]);
    assert_eq!(flags["flags"]["port_security"], false, "{flags}");
    let refused = daemon.refused(&["detach", "nic0"]);
    assert!(refused.contains("--nic none"), "{refused}");
    // The same address on the LAN and here is told.
    router.add_address("eth0", "192.168.7.65/32");
    let claimed = || {
        router.run(|| {
            let socket = std::net::UdpSocket::bind("192.168.7.65:0").unwrap();
            socket.send_to(b"?", "192.168.7.72:9").unwrap();
        });
        let events = daemon.run(&["events", "--kind", "duplicate_address"]);
        events.contains("192.168.7.65 is that of 'b'") && events.contains("'nic0'")
    };
    wait_until(DEADLINE, "the duplicate is told", claimed);
    let refused = daemon.refused(&["publish", "add", "80:80", "a"]);
    assert!(refused.contains("address of its own"), "{refused}");

    daemon.run(&["network", "set", "lan", "--nic", "none"]);
    assert!(unpingable(&a, ip("192.168.7.1")));
    assert_eq!(settled(host), before);
    assert!(parses(parsed()), "the card does by itself what it did");
    daemon.run(&[
        "network",
        "set",
        "lan",
        "--nic",
        "nic0",
        "--nic-backend",
        backend,
    ]);
    assert!(ping(&a, ip("192.168.7.1"), 56));
    daemon.stop();
    let said = daemon.clean();
    assert!(said.contains("'nic0'"), "{said}");
    assert_eq!(settled(host), before);
}

/// Covers: 69, 70
#[test]
fn the_hosts_address_moves_to_a_port_of_its_own_and_back() {
    if !require_root("the_hosts_address_moves_to_a_port_of_its_own_and_back") {
        return;
    }
    let site = Site::addressed("take");
    let host = &site.host;
    let before = settled(host);
    let mac = host.mac("nic0");
    let mut daemon = site.daemon(&[]);
    let said = daemon.output(&[&TAKE[..], &["--ip-range", "192.168.7.64/26"]].concat());
    let reminder = String::from_utf8(said.stderr).unwrap();
    assert!(reminder.contains("network confirm lan"), "{reminder}");
    daemon.run(&["network", "confirm", "lan"]);
    // What was known of the LAN is the host's own knowledge.
    let network = &daemon.json(&["network", "ls"])[0];
    assert_eq!(network["subnets"][0]["subnet"], "192.168.7.0/24");
    assert_eq!(network["subnets"][0]["gateway"], "192.168.7.1");
    assert_eq!(network["nic"]["host_ifname"], "cw-lan");
    assert_eq!(host.mac("cw-lan"), mac);
    let port = host.link("cw-lan").index;
    let moved = block_on(host.netlink().saved_ip(port)).unwrap();
    let mut all: Vec<String> = moved.addresses().map(|a| a.to_string()).collect();
    all.extend(moved.routes());
    all.sort();
    assert_eq!(all, before.nic);
    assert_eq!(moved.leases().count(), 1);
    reaches_the_lan(host);

    // Host to container and back, which macvlan forbids; the LAN to both.
    let a = site.sandbox(&daemon, "lan", "a", "192.168.7.70");
    serve_tcp(&a, "0.0.0.0:22");
    serve_tcp(host, "192.168.7.2:23");
    assert_eq!(ask_tcp(host, "192.168.7.70:22", 1_000), ip("192.168.7.2"));
    assert_eq!(ask_tcp(&a, "192.168.7.2:23", 1_000), ip("192.168.7.70"));
    for (from, to) in [
        (&a, "192.168.7.1"),
        (&a, "198.51.100.1"),
        (&site.router, "192.168.7.70"),
        (&site.router, "192.168.7.2"),
        (&site.router, "fd00:7::2"),
    ] {
        assert!(ping(from, ip(to), 1_400), "{to}");
    }
    let at = |address: &str, port| SocketAddr::new(ip(address), port);
    transfer(
        host,
        &a,
        at("0.0.0.0", 80),
        at("192.168.7.70", 80),
        BULK,
        None,
    );
    transfer(
        &site.router,
        host,
        at("0.0.0.0", 81),
        at("192.168.7.2", 81),
        BULK,
        None,
    );
    let taken = daemon.refused(&[
        "attach",
        "--netns",
        path_text(&a.path()),
        "--network",
        "lan",
        "--ip",
        "192.168.7.2",
        "--ifname",
        "eth9",
    ]);
    assert!(taken.contains("taken"), "{taken}");

    // A daemon that comes back adopts; the host is where it was.
    daemon.kill();
    daemon.restart();
    reaches_the_lan(host);
    assert!(ping(host, ip("192.168.7.70"), 56));
    assert!(ping(&site.router, ip("192.168.7.3"), 56));

    let used = daemon.refused(&["network", "rm", "lan"]);
    assert!(used.contains("'lan'") && used.contains(": a"), "{used}");
    daemon.run(&["detach", "a"]);
    daemon.run(&["network", "rm", "lan"]);
    assert_eq!(footprint(host), before);
    reaches_the_lan(host);
    daemon.stop();
    daemon.clean();
}

#[test]
fn a_move_that_nobody_confirms_is_undone() {
    if !require_root("a_move_that_nobody_confirms_is_undone") {
        return;
    }
    let site = Site::addressed("unconfirmed");
    let before = settled(&site.host);
    let mut daemon = site.daemon(&[]);
    daemon.run(&[&TAKE[..], &["--confirm-within", "1"]].concat());
    wait_until_restored(&site.host, &before);
    wait_until(
        DEADLINE,
        "the network that came with the card is gone",
        || daemon.json(&["network", "ls"]) == serde_json::json!([]),
    );
    let events = daemon.run(&["events", "--kind", "nic_returned"]);
    assert!(
        events.contains("nobody confirmed the move of 'nic0'"),
        "{events}"
    );
    let late = daemon.refused(&["network", "confirm", "lan"]);
    assert!(late.contains("no network 'lan'"), "{late}");
    daemon.stop();
    daemon.clean();
    assert_eq!(footprint(&site.host), before);
}

/// Covers: 69
#[test]
fn a_daemon_that_dies_at_any_step_of_the_move_and_never_returns_leaves_the_host_as_it_was() {
    let test =
        "a_daemon_that_dies_at_any_step_of_the_move_and_never_returns_leaves_the_host_as_it_was";
    if !require_root(test) {
        return;
    }
    thread::scope(|scope| {
        for step in STEPS {
            scope.spawn(move || dies_at(step));
        }
    });
}

fn dies_at(step: &str) {
    let site = Site::addressed(&format!("die-{step}"));
    let before = settled(&site.host);
    let mut daemon = site.daemon(&["--die-at", step]);
    let output = daemon.output(&[&TAKE[..], &["--confirm-within", "1"]].concat());
    assert!(!output.status.success(), "{step}: it was to die");
    daemon.kill();
    wait_until_restored(&site.host, &before);
    // And the next daemon knows of nothing.
    let mut daemon = site.daemon(&[]);
    assert_eq!(
        daemon.json(&["network", "ls"]),
        serde_json::json!([]),
        "{step}"
    );
    assert_eq!(footprint(&site.host), before, "{step}");
    daemon.stop();
    daemon.clean();
}

#[test]
fn a_daemon_that_returns_half_way_undoes_the_move_at_once() {
    if !require_root("a_daemon_that_returns_half_way_undoes_the_move_at_once") {
        return;
    }
    let site = Site::addressed("half");
    let before = settled(&site.host);
    let mut daemon = site.daemon(&["--die-at", "taken"]);
    let output = daemon.output(&TAKE);
    assert!(!output.status.success(), "it was to die");
    assert!(unpingable(&site.host, ip("192.168.7.1")));
    daemon.kill();
    let mut daemon = site.daemon(&[]);
    assert_eq!(footprint(&site.host), before);
    reaches_the_lan(&site.host);
    assert_eq!(daemon.json(&["network", "ls"]), serde_json::json!([]));
    daemon.stop();
    daemon.clean();
}

#[test]
fn a_confirmed_move_is_undone_when_no_daemon_returns_and_done_again_by_the_next() {
    let test = "a_confirmed_move_is_undone_when_no_daemon_returns_and_done_again_by_the_next";
    if !require_root(test) {
        return;
    }
    let site = Site::addressed("again");
    let host = &site.host;
    let before = settled(host);
    let mut daemon = site.daemon(&[]);
    daemon.run(&[&TAKE[..], &["--confirm-within", "3"]].concat());
    daemon.run(&["network", "confirm", "lan"]);
    let a = site.sandbox(&daemon, "lan", "a", "192.168.7.70");
    daemon.kill();
    wait_until_restored(host, &before);
    daemon.restart();
    assert!(host.link("cw-lan").up);
    reaches_the_lan(host);
    assert!(ping(host, ip("192.168.7.70"), 56));
    assert!(ping(&a, ip("192.168.7.1"), 56));
    let port = host.link("cw-lan").index;
    assert_eq!(
        block_on(host.netlink().saved_ip(port))
            .unwrap()
            .leases()
            .count(),
        1
    );
    daemon.stop();
    wait_until_restored(host, &before);
    daemon.clean();
    assert_eq!(footprint(host), before);
}

/// The lifelines of a daemon that are ready, by process id.
fn lifelines(daemon: &Daemon) -> Vec<Pid> {
    let state_dir = daemon.state_dir();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ours = processes.filter(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let lifeline = words.contains(&&b"lifeline"[..]);
        let ours = words.contains(&path_text(&state_dir).as_bytes());
        lifeline && ours && catches_sigterm(&process.path())
    });
    let pids = ours.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).collect()
}

/// Whether a process has a handler for SIGTERM (proc(5)).
fn catches_sigterm(process: &Path) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let mut lines = status.lines();
    let caught = lines.find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    caught.is_some_and(|signals| signals & (1 << (Signal::SIGTERM as i32 - 1)) != 0)
}

#[test]
fn who_stops_the_lifeline_with_the_daemon_has_the_card_back_at_once() {
    if !require_root("who_stops_the_lifeline_with_the_daemon_has_the_card_back_at_once") {
        return;
    }
    let site = Site::addressed("stopped");
    let before = settled(&site.host);
    let mut daemon = site.daemon(&[]);
    daemon.run(&[&TAKE[..], &["--confirm-within", "600"]].concat());
    let warned = daemon.run(&["status"]);
    assert!(warned.contains("network confirm lan"), "{warned}");
    daemon.run(&["network", "confirm", "lan"]);
    assert!(!daemon.run(&["status"]).contains("network confirm"));
    // A lifeline that dies is followed by another.
    let [first] = lifelines(&daemon)[..] else {
        panic!("one lifeline: {:?}", lifelines(&daemon));
    };
    kill(first, Signal::SIGKILL).unwrap();
    wait_until(
        DEADLINE,
        "there is another lifeline",
        || matches!(lifelines(&daemon)[..], [second] if second != first),
    );
    let [second] = lifelines(&daemon)[..] else {
        panic!("one lifeline: {:?}", lifelines(&daemon));
    };
    // As a service manager does it: in either order.
    kill(second, Signal::SIGTERM).unwrap();
    reaches_the_lan(&site.host);
    daemon.stop();
    wait_until_restored(&site.host, &before);
    wait_until(DEADLINE, "the lifeline has ended", || {
        lifelines(&daemon).is_empty()
    });
    daemon.clean();
}

#[test]
fn a_card_can_be_taken_as_soon_as_it_is_there() {
    if !require_root("a_card_can_be_taken_as_soon_as_it_is_there") {
        return;
    }
    let site = Site::bare("new-card");
    let daemon = site.daemon(&[]);
    // Sooner than any program could be started: nothing that was read of the host before will do.
    let client = Client::new(&daemon.socket());
    let cable = |card: &str| site.lab.cable(&site.host, card, &site.router, card);
    for round in 0..5 {
        let [created, set] = ["created", "set"].map(|how| format!("{how}{round}"));
        daemon.run(&["network", "create", &set, "--lan-gateway", "none"]);
        let network = json!({
            "name": created, "lan_gateway": ["none"], "nic": { "name": created }
        });
        cable(&created);
        block_on(client.create("/v1/networks", &network)).unwrap();
        cable(&set);
        let change = json!({ "nic": { "name": set } });
        let path = format!("/v1/networks/{set}");
        block_on(client.patch::<Value>(&path, &change)).unwrap();
        for name in [created, set] {
            let shown = daemon.run(&["network", "inspect", &name]);
            let shown: Value = serde_json::from_str(&shown).unwrap();
            assert!(shown.to_string().contains("\"nic\":{"), "{shown}");
            daemon.run(&["network", "rm", &name]);
        }
    }
}

#[test]
fn a_card_is_heard_of_when_its_cable_is_pulled_and_when_it_is_set_up_behind_our_back() {
    let test = "a_card_is_heard_of_when_its_cable_is_pulled_and_when_it_is_set_up_behind_our_back";
    if !require_root(test) {
        return;
    }
    let site = Site::bare("cable");
    let daemon = site.daemon(&[]);
    daemon.run(&[
        "network",
        "create",
        "lan",
        "--nic",
        "nic0",
        "--lan-gateway",
        "none",
    ]);
    let a = site.lab.namespace("a");
    daemon.run(&[
        "attach",
        "--netns",
        path_text(&a.path()),
        "--network",
        "lan",
        "--name",
        "a",
    ]);
    a.add_address("eth0", "192.168.7.70/24");
    assert!(ping(&a, ip("192.168.7.1"), 56));
    let stations = || {
        let listed = daemon.json(&["fdb", "show", "lan"]);
        let of_card = listed
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["port_name"] == "nic0");
        of_card.count()
    };
    assert_eq!(stations(), 1);
    let index = site.router.link("eth0").index;
    block_on(site.router.netlink().set_down(index)).unwrap();
    let told = |kind: &str| daemon.run(&["events", "--kind", kind]).contains("'nic0'");
    wait_until(DEADLINE, "the pulled cable is told", || told("port_down"));
    assert_eq!(stations(), 0);
    site.router.set_up("eth0");
    wait_until(DEADLINE, "the cable is told", || told("port_up"));
    assert!(ping(&a, ip("192.168.7.1"), 56));
    site.host.add_address("nic0", "192.168.7.9/24");
    wait_until(DEADLINE, "the address is warned of", || {
        daemon
            .run(&["status"])
            .contains("somebody has put 192.168.7.9 on 'nic0'")
    });
}

#[test]
fn what_cannot_be_a_port_is_refused_by_name_and_nothing_is_changed() {
    if !require_root("what_cannot_be_a_port_is_refused_by_name_and_nothing_is_changed") {
        return;
    }
    let site = Site::addressed("refused");
    let host = &site.host;
    site.lab.cable(host, "member0", &site.router, "eth1");
    site.lab.cable(host, "up0", &site.router, "eth2");
    site.lab.cable(host, "small0", &site.router, "eth3");
    host.set_mtu("small0", 1_300);
    block_on(host.netlink().create_bridge("br7")).unwrap();
    let bridge = host.link("br7").index;
    block_on(
        host.netlink()
            .set_controller(host.link("member0").index, bridge),
    )
    .unwrap();
    let before = settled(host);
    let mut daemon = Daemon::start(&site.lab, host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    let lan = ["--subnet", "192.168.7.0/24", "--lan-gateway", "192.168.7.1"];
    fn create<'w>(more: &[&'w str]) -> Vec<&'w str> {
        [&["network", "create", "lan"], more].concat()
    }
    for (words, parts) in [
        (create(&["--nic", "nope0"]), &["'nope0'", "nic0"][..]),
        (create(&["--nic", "lo"]), &["'lo'", "no Ethernet card"]),
        (
            create(&["--nic", "up0"]),
            &["'up0' is an uplink", "--uplink"],
        ),
        (
            create(&["--nic", "member0"]),
            &["member of 'br7'", "nomaster"],
        ),
        (
            create(&["--nic", "causeway0"]),
            &["'causeway0' is one of Causeway's own"],
        ),
        (
            create(&["--nic", "nic0"]),
            &["192.168.7.2/24", "--take-address"],
        ),
        (
            create(&["--nic", "small0", "--mtu", "1500"]),
            &["'small0'", "1300"],
        ),
        (
            create(&["--nic", "small0", "--take-address"]),
            &["no address on interface 'small0'"],
        ),
        (
            create(&["--nic", "nic0", "--take-address", "--confirm-within", "0"]),
            &["within 1 to 3600 seconds"],
        ),
        (
            create(&[
                "--nic",
                "nic0",
                "--take-address",
                "--gateway",
                "192.168.7.9",
            ]),
            &["--lan-gateway", "give one of the two"],
        ),
        (
            [&create(&lan)[..], &["--gateway", "192.168.7.9"]].concat(),
            &["--lan-gateway"],
        ),
        (
            create(&["--lan-gateway", "10.1.1.1"]),
            &["10.1.1.1", "--subnet"],
        ),
        (
            vec!["network", "set", "web", "--nic", "nic0", "--take-address"],
            &["'web' has a gateway of the switch's own"],
        ),
        (vec!["network", "confirm", "web"], &["nothing to confirm"]),
    ] {
        let refused = daemon.refused(&words);
        for part in parts {
            assert!(refused.contains(part), "{words:?}: {refused}");
        }
    }
    let names: Vec<String> = daemon
        .json(&["network", "ls"])
        .as_array()
        .unwrap()
        .iter()
        .map(|network| network["name"].to_string())
        .collect();
    assert_eq!(names, ["\"web\""]);
    // Addresses of the LAN are others' as well.
    daemon.run(&create(&lan));
    let stranger = site.lab.namespace("stranger");
    let path = stranger.path();
    let attach = ["attach", "--netns", path_text(&path), "--network", "lan"];
    let refused = daemon.refused(&attach);
    assert!(refused.contains("--ip-range"), "{refused}");
    for (address, part) in [
        ("192.168.7.2", "the host itself"),
        ("192.168.7.1", "taken"),
        ("192.168.8.2", "no subnet"),
    ] {
        let refused = daemon.refused(&[&attach[..], &["--ip", address]].concat());
        assert!(refused.contains(part), "{address}: {refused}");
    }
    let refused = daemon.refused(&[&attach[..], &["--ip", "none", "--backend", "nic"]].concat());
    assert!(refused.contains("'nic' is no backend"), "{refused}");
    daemon.run(&["network", "rm", "lan", "web"]);
    daemon.stop();
    daemon.clean();
    assert_eq!(footprint(host).nic, before.nic);
    // And the reverse: a network's NIC is no uplink.
    let mut daemon = site.daemon(&[]);
    daemon.run(&["network", "create", "plain", "--nic", "small0"]);
    daemon.stop();
    let command = &mut daemon.command(&["daemon", "--uplink", "small0", "--state-dir"]);
    command.arg(daemon.state_dir());
    let output = host.run(|| command.output()).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("'small0' is the NIC of network 'plain'"),
        "{said}"
    );
    daemon.clean();
}
