//! The bridge between real namespaces, driven by the command line: who hears which frame.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dataplane_core::addr::MacAddr;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, ip, require_root, wait_until};
use tests::talk::{Pinger, Witness, ask_tcp, ping, serve_tcp};
use tests::wire::{self, Link, at};

const BROADCAST: MacAddr = MacAddr::BROADCAST;
const MULTICAST: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
const UNKNOWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
/// Frames of the run that looks at their order, and of them on their way at once.
const FRAMES: usize = 10_000;
const WINDOW: usize = 50;
/// Source MACs of a flooder, and those that its port may have.
const FLOOD: u64 = 200_000;
const FLOOD_LIMIT: u64 = 1_000;
/// A port that nobody listens on.
const FENCE_PORT: u16 = 9;

/// A sandbox on the network, with everything that reaches its interface.
struct Station {
    ns: Namespace,
    address: String,
    witness: Witness,
    heard: Vec<Vec<u8>>,
    /// Nothing can reach it.
    unplugged: bool,
}

/// One network of three sandboxes: a, b and c.
struct Floor {
    daemon: Daemon,
    host: Namespace,
    stations: Vec<Station>,
    fences: u32,
    lab: Lab,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Floor {
    fn new(name: &str) -> Self {
        Self::with(name, &[], "tap")
    }

    /// A network that is made with these options, and b connected by that backend.
    fn with(name: &str, options: &[&str], backend: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
        let create = ["network", "create", "n", "--subnet", "10.88.0.0/24"];
        daemon.run(&[&create, options].concat());
        let stations = NAMES.map(|name| {
            let ns = lab.namespace(name);
            let backend = if name == "b" { backend } else { "tap" };
            let address = daemon.attach(&ns, "n", name, &["--backend", backend]);
            // Most tests send by MACs that the sandboxes do not have.
            daemon.run(&["port", "set", name, "port-security", "off"]);
            Station {
                witness: Witness::new(&ns, "eth0"),
                ns,
                address,
                heard: Vec::new(),
                unplugged: false,
            }
        });
        Self {
            daemon,
            host,
            stations: stations.into(),
            fences: 0,
            lab,
        }
    }

    fn set(&self, port: &str, words: &[&str]) {
        let words: Vec<&str> = ["port", "set", port].iter().chain(words).copied().collect();
        self.daemon.run(&words);
    }

    fn mac(&self, station: usize) -> MacAddr {
        self.stations[station].ns.mac("eth0")
    }

    /// Sends a frame from a station; the names of those that hear it.
    fn heard(&mut self, from: usize, frame: &[u8]) -> Vec<&'static str> {
        for station in &mut self.stations {
            // What came before leaves no room for what comes now.
            while station.witness.look(|_| ()) {}
            station.heard.clear();
        }
        self.stations[from].witness.send(frame);
        // The second is sent when the first has passed, so nothing that the frame set off is behind.
        self.fence();
        self.fence();
        let heard = |(station, _): &(&Station, _)| station.heard.iter().any(|got| got == frame);
        let hearers = self.stations.iter().zip(NAMES).filter(heard);
        hearers.map(|(_, name)| name).collect()
    }

    /// Waits until every station has seen a datagram of the host's, which is routed to it whatever
    /// is set of its port.
    fn fence(&mut self) {
        self.fences += 1;
        let mark = format!("fence {}", self.fences);
        let socket = self.host.run(|| UdpSocket::bind("10.88.0.1:0")).unwrap();
        for station in self.stations.iter_mut().filter(|s| !s.unplugged) {
            socket
                .send_to(mark.as_bytes(), (station.address.as_str(), FENCE_PORT))
                .unwrap();
            wait_until(DEADLINE, "the fence is seen", || {
                let heard = &mut station.heard;
                station.witness.look(|frame| heard.push(frame.to_vec()));
                heard.iter().any(|frame| frame.ends_with(mark.as_bytes()))
            });
        }
    }

    fn fdb_has(&self, mac: MacAddr) -> bool {
        let listed = self.daemon.json(&["fdb", "show", "n"]);
        let mut entries = listed.as_array().unwrap().iter();
        entries.any(|entry| entry["mac"] == mac.to_string())
    }

    /// Frames that ended for a reason.
    fn dropped(&self, reason: &str) -> u64 {
        let drops = self.daemon.json(&["drops"]);
        let drops = drops.as_array().unwrap().iter();
        let counts = drops.filter(|drop| drop["reason"] == reason);
        counts.map(|drop| drop["count"].as_u64().unwrap()).sum()
    }

    fn flags(&self, port: &str) -> Value {
        self.daemon.json(&["port", "show", port])["flags"].clone()
    }
}

fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    wire::plain(Link(src, dst))
}

#[test]
fn flags_of_a_port_act_at_once_and_outlive_the_daemon() {
    if !require_root("flags_of_a_port_act_at_once_and_outlive_the_daemon") {
        return;
    }
    let mut floor = Floor::new("flags");
    let [a, b, c] = [0, 1, 2].map(|station| floor.mac(station));
    for dst in [UNKNOWN, MULTICAST, BROADCAST] {
        assert_eq!(floor.heard(0, &plain(dst, a)), ["b", "c"], "{dst}");
    }
    for (flag, off) in [
        ("flood", UNKNOWN),
        ("mcast-flood", MULTICAST),
        ("bcast-flood", BROADCAST),
    ] {
        floor.set("c", &[flag, "off"]);
        for dst in [UNKNOWN, MULTICAST, BROADCAST] {
            let hearers: &[&str] = if dst == off { &["b"] } else { &["b", "c"] };
            assert_eq!(floor.heard(0, &plain(dst, a)), hearers, "{flag} {dst}");
        }
        floor.set("c", &[flag, "on"]);
    }
    let _ = floor.heard(1, &plain(BROADCAST, b));
    let _ = floor.heard(2, &plain(BROADCAST, c));
    floor.set("a", &["isolated", "on", "hairpin", "on"]);
    floor.set("b", &["isolated", "on"]);
    assert_eq!(floor.heard(0, &plain(BROADCAST, a)), ["c"]);
    assert_eq!(floor.heard(0, &plain(b, a)), [""; 0]);
    assert_eq!(floor.heard(0, &plain(c, a)), ["c"]);
    assert_eq!(floor.dropped("port_isolated"), 1);
    let listed = floor.daemon.run(&["port", "ls"]);
    let words = "isolated hairpin no-port-security";
    assert!(listed.contains(words), "{listed}");

    floor.daemon.kill();
    floor.daemon.restart();
    let wanted = json!({"learning": true, "flood": true, "mcast_flood": true,
        "bcast_flood": true, "isolated": true, "hairpin": true, "offload": true, "port_security": false,
        "mcast_fast_leave": false, "mcast_router": false, "mcast_router_learning": true});
    assert_eq!(floor.flags("a"), wanted);
    assert_eq!(floor.heard(0, &plain(BROADCAST, a)), ["c"]);
    floor.set("a", &["isolated", "off"]);
    assert_eq!(floor.heard(0, &plain(BROADCAST, a)), ["a", "b", "c"]);
    floor.set("a", &["hairpin", "off"]);

    floor.set("a", &["learning", "off"]);
    assert_eq!(floor.heard(0, &plain(BROADCAST, UNKNOWN)), ["b", "c"]);
    assert!(!floor.fdb_has(UNKNOWN), "heard on a port without learning");
    floor.set("a", &["learning", "on"]);
    let _ = floor.heard(0, &plain(BROADCAST, UNKNOWN));
    assert!(floor.fdb_has(UNKNOWN));
}

#[test]
fn flags_that_cannot_be_are_refused_and_change_nothing() {
    if !require_root("flags_that_cannot_be_are_refused_and_change_nothing") {
        return;
    }
    let floor = Floor::new("badflags");
    let before = floor.flags("a");
    for (words, named) in [
        (
            &["nobody", "learning", "off"][..],
            "there is no port 'nobody'",
        ),
        (&["a", "wings", "on"], "hairpin"),
        (&["a", "isolated", "maybe"], "neither on nor off"),
        (&["a", "isolated"], "lacks its value"),
        (
            &["a", "isolated", "on", "wings", "on"],
            "'wings' is nothing",
        ),
        (&["a", "mac-limit", "0"], "from 1 to 262144"),
        (&["a", "mac-limit", "-3"], "from 1 to 262144"),
        (&["a", "mac-limit", "9999999999"], "from 1 to 262144"),
        (&["a", "mac-limit", "few"], "no number"),
        (&["causeway0", "isolated", "on"], "leads to no endpoint"),
        (&["0", "isolated", "on"], "leads to no endpoint"),
    ] {
        let words: Vec<&str> = ["port", "set"].iter().chain(words).copied().collect();
        let error = floor.daemon.refused(&words);
        assert!(error.contains(named), "{words:?}: {error}");
    }
    assert_eq!(floor.flags("a"), before);
    let by_number = floor.daemon.json(&["port", "show", "a"])["port"].to_string();
    floor.set(&by_number, &["isolated", "on"]);
    assert_eq!(floor.flags(&format!("port{by_number}"))["isolated"], true);
}

/// Covers: 21
#[test]
fn set_entries_hold_stations_where_they_are_and_outlive_the_daemon() {
    if !require_root("set_entries_hold_stations_where_they_are_and_outlive_the_daemon") {
        return;
    }
    let mut floor = Floor::new("entries");
    let [a, b] = [0, 1].map(|station| floor.mac(station));
    let station = |last: u8| MacAddr([0x02, 0, 0, 0, 1, last]);
    let texts = [1, 2, 3].map(|last| station(last).to_string());
    let [fixed, sticky, local] = texts.each_ref().map(String::as_str);
    floor.daemon.run(&["fdb", "add", "n", fixed, "--port", "c"]);
    floor
        .daemon
        .run(&["fdb", "add", "n", sticky, "--port", "c", "--sticky"]);
    floor
        .daemon
        .run(&["fdb", "add", "n", local, "--port", "c", "--local"]);
    for last in [1, 2] {
        assert_eq!(floor.heard(0, &plain(station(last), a)), ["c"]);
        let claimed = plain(BROADCAST, station(last));
        assert_eq!(floor.heard(1, &claimed), ["a", "c"], "it passes");
        assert_eq!(floor.heard(0, &plain(station(last), a)), ["c"], "no move");
    }
    assert_eq!(floor.heard(0, &plain(station(3), a)), [""; 0]);
    assert_eq!(floor.dropped("not_ip"), 1, "the gateway's business");
    let state = |floor: &Floor, mac: &str| {
        let listed = floor.daemon.json(&["fdb", "show", "n"]);
        let mut entries = listed.as_array().unwrap().iter();
        let found = entries.find(|entry| entry["mac"] == mac).cloned();
        found.map(|entry| (entry["state"].clone(), entry["port_name"].clone()))
    };
    for (mac, kind) in [(fixed, "static"), (sticky, "sticky"), (local, "local")] {
        assert_eq!(state(&floor, mac), Some((json!(kind), json!("c"))));
    }

    floor.daemon.kill();
    floor.daemon.restart();
    assert_eq!(state(&floor, fixed), Some((json!("static"), json!("c"))));
    assert_eq!(state(&floor, local), Some((json!("local"), json!("c"))));
    assert_eq!(state(&floor, sticky), None, "it ages, so it is not kept");
    let _ = floor.heard(1, &plain(BROADCAST, b));
    floor.daemon.run(&["fdb", "flush", "n", "--port", "a"]);
    assert!(floor.fdb_has(b), "another port's");
    // A station may say something of its own just then, such as a router solicitation.
    wait_until(DEADLINE, "b is forgotten", || {
        floor.daemon.run(&["fdb", "flush", "n"]);
        !floor.fdb_has(b)
    });
    assert_eq!(floor.heard(0, &plain(station(1), a)), ["c"]);
    floor.daemon.run(&["fdb", "del", "n", fixed]);
    assert_eq!(floor.heard(0, &plain(station(1), a)), ["b", "c"]);
    floor.daemon.run(&["fdb", "flush", "n", "--all"]);
    floor
        .daemon
        .run(&["fdb", "add", "n", fixed, "--port", "c", "--static"]);
    floor.daemon.run(&["detach", "c"]);
    assert_eq!(state(&floor, fixed), None, "it ends with its port");
    floor.daemon.kill();
    floor.daemon.restart();
    assert_eq!(state(&floor, fixed), None);
}

#[test]
fn entries_that_cannot_be_are_refused_and_change_nothing() {
    if !require_root("entries_that_cannot_be_are_refused_and_change_nothing") {
        return;
    }
    let floor = Floor::new("badentries");
    floor
        .daemon
        .run(&["network", "create", "m", "--subnet", "10.89.0.0/24"]);
    let network = &floor.daemon.json(&["network", "ls"])[0];
    let gateway = network["gateway_mac"].as_str().unwrap();
    let other = floor.lab.namespace("other");
    floor.daemon.attach(&other, "m", "other", &[]);
    // What somebody has set: sandboxes are heard, and so learned, at any time.
    let set = || -> Vec<Value> {
        let listed = floor.daemon.json(&["fdb", "show", "n"]);
        let entries = listed.as_array().unwrap().iter();
        let set = entries.filter(|e| {
            ["static", "sticky", "local"]
                .iter()
                .any(|s| e["state"] == *s)
        });
        set.map(|entry| entry["mac"].clone()).collect()
    };
    let fixed = "02:00:00:00:00:77";
    floor.daemon.run(&["fdb", "add", "n", fixed, "--port", "a"]);
    let before = set();
    assert!(before.contains(&json!(fixed)));
    let unicast = "02:00:00:00:00:99";
    for (words, named) in [
        (
            ["add", "n", "01:00:5e:00:00:01", "--port", "a"],
            "group address",
        ),
        (
            ["add", "n", "ff:ff:ff:ff:ff:ff", "--port", "a"],
            "group address",
        ),
        (["add", "n", "00:00:00:00:00:00", "--port", "a"], "zero"),
        (["add", "n", gateway, "--port", "a"], "gateway's MAC"),
        (
            ["add", "n", "02:00", "--port", "a"],
            "six hexadecimal octets",
        ),
        (
            ["add", "n", unicast, "--port", "nobody"],
            "there is no port 'nobody'",
        ),
        (
            ["add", "n", unicast, "--port", "other"],
            "is on network 'm'",
        ),
        (
            ["add", "n", unicast, "--port", "causeway0"],
            "leads to no endpoint",
        ),
        (["add", "nope", unicast, "--port", "a"], "'nope'"),
    ] {
        let words: Vec<&str> = ["fdb"].into_iter().chain(words).collect();
        let error = floor.daemon.refused(&words);
        assert!(error.contains(named), "{words:?}: {error}");
    }
    let error = floor.daemon.refused(&["fdb", "del", "n", unicast]);
    assert!(error.contains("no FDB entry"), "{error}");
    let error = floor
        .daemon
        .refused(&["fdb", "flush", "n", "--port", "nobody"]);
    assert!(error.contains("'nobody'"), "{error}");
    assert_eq!(set(), before);
}

#[test]
fn the_ageing_time_of_a_network_acts_while_it_is_in_use() {
    if !require_root("the_ageing_time_of_a_network_acts_while_it_is_in_use") {
        return;
    }
    let mut floor = Floor::new("ageing");
    let a = floor.mac(0);
    let _ = floor.heard(1, &plain(BROADCAST, UNKNOWN));
    assert_eq!(floor.heard(0, &plain(UNKNOWN, a)), ["b"]);
    floor.daemon.run(&["network", "set", "n", "--ageing", "10"]);
    wait_until(2 * DEADLINE, "a silent station is forgotten", || {
        !floor.fdb_has(UNKNOWN)
    });
    assert_eq!(floor.heard(0, &plain(UNKNOWN, a)), ["b", "c"]);
}

#[test]
fn an_attached_endpoint_speaks_for_itself_alone_unless_it_is_let() {
    if !require_root("an_attached_endpoint_speaks_for_itself_alone_unless_it_is_let") {
        return;
    }
    let mut floor = Floor::new("secure");
    let attached = floor.lab.namespace("d");
    let address = floor.daemon.attach(&attached, "n", "d", &[]);
    assert_eq!(floor.flags("d")["port_security"], true, "by default");
    assert!(ping(&attached, ip("10.88.0.1"), 56), "the gateway");
    let neighbour = ip(&floor.stations[1].address);
    assert!(ping(&attached, neighbour, 56), "a neighbour");
    assert_eq!(address, "10.88.0.5");

    floor.set("a", &["port-security", "on"]);
    let [a, b] = [0, 1].map(|station| floor.mac(station));
    let [own, to, other] = [2, 3, 4].map(|last| Ipv4Addr::new(10, 88, 0, last));
    let datagram = |link, from: Ipv4Addr| {
        let source = SocketAddr::new(from.into(), 7);
        wire::udp(link, source, at("10.88.0.3:9"), 64, b"a datagram")
    };
    assert_eq!(floor.heard(0, &datagram(Link(a, b), own)), ["b"]);
    let question = wire::arp_request(a, own, other);
    assert_eq!(floor.heard(0, &question), ["b", "c"]);
    let (mac, address) = ("source_mac_foreign", "source_address_foreign");
    let gateway = Ipv4Addr::new(10, 88, 0, 1);
    for (frame, reason) in [
        (plain(BROADCAST, UNKNOWN), mac),
        (datagram(Link(UNKNOWN, b), own), mac),
        (datagram(Link(a, b), other), address),
        (datagram(Link(a, b), Ipv4Addr::new(192, 0, 2, 7)), address),
        (wire::arp_request(a, other, to), address),
        (wire::arp_reply(Link(a, b), gateway, to), address),
    ] {
        let before = floor.dropped(reason);
        assert_eq!(floor.heard(0, &frame), [""; 0], "{reason}");
        assert_eq!(floor.dropped(reason), before + 1);
    }
    assert!(!floor.fdb_has(UNKNOWN));

    floor.daemon.kill();
    floor.daemon.restart();
    assert_eq!(floor.heard(0, &plain(BROADCAST, UNKNOWN)), [""; 0]);
    floor.set("a", &["port-security", "off"]);
    assert_eq!(floor.heard(0, &plain(BROADCAST, UNKNOWN)), ["b", "c"]);
}

#[test]
fn a_port_learns_as_many_stations_as_its_limit_says_and_passes_the_rest() {
    if !require_root("a_port_learns_as_many_stations_as_its_limit_says_and_passes_the_rest") {
        return;
    }
    let mut floor = Floor::new("limit");
    let a = floor.mac(0);
    let station = |last: u8| MacAddr([0x02, 0, 0, 0, 2, last]);
    floor.set("b", &["mac-limit", "3"]);
    let usage = |floor: &Floor| {
        let port = floor.daemon.json(&["port", "show", "b"]);
        let number = |key: &str| port[key].as_u64().unwrap();
        (number("stations"), number("mac_limit_refused"))
    };
    for last in 0..5 {
        let heard = floor.heard(1, &plain(BROADCAST, station(last)));
        assert_eq!(heard, ["a", "c"], "forwarded, learned or not");
    }
    // b itself may have been one of the three.
    let (stations, refused) = usage(&floor);
    assert!(stations == 3 && refused >= 2, "{stations}, {refused}");
    let heard = floor.heard(0, &plain(station(4), a));
    assert_eq!(heard, ["b", "c"], "unknown");
    let listed = floor.daemon.run(&["port", "ls"]);
    assert!(listed.contains("mac-limit 3"), "{listed}");
    let status = floor.daemon.run(&["status"]);
    assert!(status.contains("mac_limit"), "{status}");
    floor.daemon.kill();
    floor.daemon.restart();
    for last in 0..5 {
        let _ = floor.heard(1, &plain(BROADCAST, station(last)));
    }
    assert_eq!(usage(&floor).0, 3, "kept");
    floor.set("b", &["mac-limit", "none"]);
    let _ = floor.heard(1, &plain(BROADCAST, station(4)));
    assert_eq!(floor.heard(0, &plain(station(4), a)), ["b"]);
}

/// Covers: 11
#[test]
fn a_port_that_is_set_down_unplugs_its_sandbox_and_forgets_it() {
    if !require_root("a_port_that_is_set_down_unplugs_its_sandbox_and_forgets_it") {
        return;
    }
    for backend in ["tap", "tap-plain", "packet", "xdp"] {
        let mut floor = Floor::with("down", &[], backend);
        let [a, b] = [0, 1].map(|station| floor.mac(station));
        let _ = floor.heard(1, &plain(BROADCAST, b));
        assert_eq!(floor.heard(0, &plain(b, a)), ["b"]);
        let plugged = |floor: &Floor| floor.stations[1].ns.link("eth0").carrier;
        assert!(plugged(&floor));
        floor.set("b", &["down"]);
        floor.stations[1].unplugged = true;
        wait_until(DEADLINE, "the cable is pulled", || !plugged(&floor));
        assert!(!floor.fdb_has(b), "{backend}");
        assert_eq!(floor.heard(0, &plain(b, a)), ["c"], "{backend}");
        assert_eq!(floor.daemon.json(&["port", "show", "b"])["up"], false);
        floor.daemon.kill();
        floor.daemon.restart();
        wait_until(DEADLINE, "it stays pulled", || !plugged(&floor));
        assert_eq!(floor.heard(0, &plain(b, a)), ["c"], "{backend}");
        floor.set("b", &["up"]);
        floor.stations[1].unplugged = false;
        wait_until(DEADLINE, "the cable is back", || plugged(&floor));
        assert!(ping(&floor.stations[1].ns, ip("10.88.0.2"), 56));
        assert_eq!(floor.heard(0, &plain(b, a)), ["b"], "{backend}");
    }
}

/// Covers: 11
#[test]
fn an_interface_that_goes_down_in_its_sandbox_is_forgotten() {
    if !require_root("an_interface_that_goes_down_in_its_sandbox_is_forgotten") {
        return;
    }
    for backend in ["tap", "tap-plain", "packet", "xdp"] {
        let mut floor = Floor::with("lost", &[], backend);
        let [a, b] = [0, 1].map(|station| floor.mac(station));
        let _ = floor.heard(1, &plain(BROADCAST, b));
        assert_eq!(floor.heard(0, &plain(b, a)), ["b"]);
        let ns = floor.stations[1].ns.clone();
        let index = ns.link("eth0").index;
        block_on(ns.netlink().set_down(index)).unwrap();
        floor.stations[1].unplugged = true;
        // A worker finds a TAP down when it sends to it.
        wait_until(DEADLINE, "its station is unknown", || {
            floor.heard(0, &plain(b, a)) == ["c"]
        });
        assert!(!floor.fdb_has(b), "{backend}");
        ns.set_up("eth0");
        floor.stations[1].unplugged = false;
        wait_until(DEADLINE, "b is heard again", || {
            floor.heard(1, &plain(BROADCAST, b)) == ["a", "c"]
        });
        assert_eq!(floor.heard(0, &plain(b, a)), ["b"], "{backend}");
    }
}

#[test]
fn frames_reach_a_sandbox_large_or_complete_as_its_port_says() {
    if !require_root("frames_reach_a_sandbox_large_or_complete_as_its_port_says") {
        return;
    }
    const SIZE: usize = 1 << 20;
    let mut floor = Floor::new("offload");
    let server = format!("{}:7000", floor.stations[1].address);
    serve_tcp(&floor.stations[1].ns, &server);
    let largest = |floor: &mut Floor| {
        ask_tcp(&floor.stations[0].ns, &server, SIZE);
        let own = floor.mac(1);
        let mut largest = 0;
        // Frames to b alone: what it sends itself is as its own stack makes it.
        while floor.stations[1].witness.look(|frame| {
            if frame.starts_with(&own.0) {
                largest = largest.max(frame.len());
            }
        }) {}
        largest
    };
    assert!(largest(&mut floor) > 1_514, "large by itself");
    floor.set("b", &["offload", "off"]);
    assert_eq!(largest(&mut floor), 1_514);
    floor.set("b", &["offload", "on"]);
    assert!(largest(&mut floor) > 1_514, "and again");
}

#[test]
fn bpdus_pass_where_the_network_lets_them() {
    if !require_root("bpdus_pass_where_the_network_lets_them") {
        return;
    }
    let mut floor = Floor::with("bpdus", &["--stp-frames", "forward"], "tap");
    let a = floor.mac(0);
    let group = |last: u8| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
    assert_eq!(floor.heard(0, &plain(group(0), a)), ["b", "c"]);
    for last in 1..16 {
        assert_eq!(floor.heard(0, &plain(group(last), a)), [""; 0], "{last}");
    }
    floor
        .daemon
        .run(&["network", "set", "n", "--stp-frames", "drop"]);
    assert_eq!(floor.heard(0, &plain(group(0), a)), [""; 0]);
    floor
        .daemon
        .run(&["network", "set", "n", "--stp-frames", "forward"]);
    floor.daemon.kill();
    floor.daemon.restart();
    assert_eq!(floor.heard(0, &plain(group(0), a)), ["b", "c"]);
    let network = &floor.daemon.json(&["network", "ls"])[0];
    assert_eq!(network["stp_frames"], "forward");
    let set = ["network", "set", "n", "--stp-frames", "maybe"];
    let error = floor.daemon.refused(&set);
    assert!(error.contains("choose drop or forward"), "{error}");
    let group_source = floor.heard(0, &plain(BROADCAST, MULTICAST));
    assert_eq!(group_source, [""; 0], "no station has a group address");
}

#[test]
fn ten_thousand_frames_of_any_size_arrive_in_order_and_as_they_were() {
    if !require_root("ten_thousand_frames_of_any_size_arrive_in_order_and_as_they_were") {
        return;
    }
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut floor = Floor::with("order", &["--mtu", "9000"], "tap");
    let [a, b] = [0, 1].map(|station| floor.mac(station));
    let _ = floor.heard(1, &plain(BROADCAST, b));
    let mut sizes = [0; 3];
    for _ in 0..FRAMES / WINDOW {
        let window: Vec<Vec<u8>> = (0..WINDOW)
            .map(|_| {
                let kind = rng.usize(..3);
                sizes[kind] += 1;
                let size = [
                    rng.usize(14..60),
                    rng.usize(60..1_515),
                    rng.usize(1_515..9_015),
                ];
                let mut frame = plain(b, a)[..14].to_vec();
                frame.extend(std::iter::repeat_with(|| rng.u8(..)).take(size[kind] - 14));
                frame
            })
            .collect();
        for frame in &window {
            floor.stations[0].witness.send(frame);
        }
        let mut arrived: Vec<Vec<u8>> = Vec::new();
        let witness = &mut floor.stations[1].witness;
        wait_until(DEADLINE, "the frames arrive", || {
            witness.look(|frame| {
                if frame[6..12] == a.0 && frame.get(12..14) == Some(&[0x88, 0xb5]) {
                    arrived.push(frame.to_vec());
                }
            });
            arrived.len() >= window.len()
        });
        assert!(arrived == window, "in order, none twice, bit by bit");
    }
    assert_eq!(floor.stations[1].witness.missed(), 0);
    println!("covered: {sizes:?} frames below 60 bytes, to 1514, to 9014");
}

/// Covers: 18
#[test]
fn a_flood_of_source_macs_leaves_the_others_what_is_known_of_them() {
    if !require_root("a_flood_of_source_macs_leaves_the_others_what_is_known_of_them") {
        return;
    }
    let mut floor = Floor::new("flood");
    let (b, c) = (floor.mac(1), floor.mac(2));
    floor.set("a", &["mac-limit", &FLOOD_LIMIT.to_string()]);
    let (pinging, target) = (floor.stations[2].ns.clone(), ip(&floor.stations[1].address));
    assert!(ping(&pinging, target, 56), "both are known");
    let flooding = Arc::new(AtomicBool::new(true));
    let goes_on = Arc::clone(&flooding);
    let pinger = thread::spawn(move || {
        let (mut pinger, mut sent) = (Pinger::new(&pinging, target), 0);
        while goes_on.load(Ordering::Relaxed) {
            assert!(pinger.ping(56, DEADLINE), "ping {sent} is answered");
            sent += 1;
        }
        sent
    });
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..FLOOD {
        let [.., w, x, y, z] = rng.u64(..).to_be_bytes();
        let flooder = MacAddr([0x06, 0, w, x, y, z]);
        floor.stations[0].witness.send(&plain(b, flooder));
    }
    wait_until(DEADLINE, "every frame of the flood is through", || {
        let port = floor.daemon.json(&["port", "show", "a"]);
        port["rx_frames"].as_u64().unwrap() >= FLOOD
    });
    flooding.store(false, Ordering::Relaxed);
    let pings = pinger.join().unwrap();
    let port = floor.daemon.json(&["port", "show", "a"]);
    let number = |key: &str| port[key].as_u64().unwrap();
    assert_eq!(number("stations"), FLOOD_LIMIT, "the table is bounded");
    // A random MAC may come twice; a's own may have been one of those learned.
    let refused = number("mac_limit_refused");
    assert!(refused > FLOOD - FLOOD_LIMIT - 10, "{refused} refused");
    let listed = floor.daemon.run(&["fdb", "show", "n"]);
    assert!(listed.contains(&b.to_string()) && listed.contains(&c.to_string()));
    assert_eq!(floor.heard(1, &plain(c, b)), ["c"], "not flooded");
    println!("{FLOOD} source MACs, {refused} not learned, {pings} pings meanwhile, none lost");
}
