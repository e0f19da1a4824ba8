//! Rules between real namespaces, driven by the command line: who may open connections to whom, what
//! the outside can reach, and what of it outlives the daemon.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, connect, ip, require_root, wait_until};
use tests::talk::{ask_tcp, ask_udp, ping, serve_tcp, serve_udp, unpingable, unreachable_tcp};

/// How long nothing is waited for.
const SILENCE: Duration = Duration::from_millis(500);

/// A connection that stays open, to a server that sends back what comes.
struct Open(TcpStream);

impl Open {
    fn to(ns: &Namespace, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let mut stream = ns.run(|| connect(DEADLINE, address));
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The server says whom it sees.
        while read_byte(&mut stream) != Some(b'\n') {}
        Self(stream)
    }

    fn goes_on(&mut self) -> bool {
        self.0.write_all(b"x").is_ok() && read_byte(&mut self.0) == Some(b'x')
    }
}

fn read_byte(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok().map(|()| byte[0])
}

/// A host with an outside, two networks, and a server of either protocol in each sandbox.
struct Stage {
    daemon: Daemon,
    host: Namespace,
    outside: Namespace,
    /// a and b are on `red`, c is on `blue`.
    sandboxes: [Namespace; 3],
    addresses: [String; 3],
    lab: Lab,
}

fn stage(name: &str, red: &[&str]) -> Stage {
    let lab = Lab::new(name);
    let (host, outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &[]);
    let create = ["network", "create", "red", "--subnet", "10.88.0.0/24"];
    daemon.run(&[&create[..], red].concat());
    daemon.run(&["network", "create", "blue", "--subnet", "10.89.0.0/24"]);
    let sandboxes = lab.namespaces(["a", "b", "c"]);
    let homes = [("red", "a"), ("red", "b"), ("blue", "c")];
    let mut number = 0;
    let addresses = homes.map(|(network, name)| {
        let sandbox = &sandboxes[number];
        number += 1;
        daemon.attach(sandbox, network, name, &[])
    });
    for sandbox in &sandboxes {
        serve_tcp(sandbox, "0.0.0.0:80");
        serve_udp(sandbox, "0.0.0.0:53");
    }
    serve_tcp(&outside, "192.0.2.2:80");
    Stage {
        daemon,
        host,
        outside,
        sandboxes,
        addresses,
        lab,
    }
}

impl Stage {
    fn at(&self, number: usize, port: u16) -> String {
        format!("{}:{port}", self.addresses[number])
    }

    fn rule(&self, name: &str) -> Value {
        let rules = self.daemon.json(&["rule", "ls"]);
        let mut rules = rules.as_array().unwrap().iter();
        rules.find(|rule| rule["name"] == name).unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        let rules = self.daemon.json(&["rule", "ls"]);
        let names = rules.as_array().unwrap().iter();
        names
            .map(|rule| rule["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Asks a name server for the address of `b`, again if nothing comes back.
fn names_are_answered(ns: &Namespace, server: &str) -> bool {
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01b\0\0\x01\0\x01";
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let mut answer = [0; 512];
    (0..20).any(|_| {
        socket.send_to(question, server).unwrap();
        let got = socket.recv_from(&mut answer);
        // The id, and one answer at least.
        got.is_ok() && answer[..2] == question[..2] && answer[7] > 0
    })
}

/// Covers: 25
#[test]
fn networks_talk_one_way_once_that_is_allowed_and_no_longer_when_it_is_not() {
    if !require_root("networks_talk_one_way_once_that_is_allowed_and_no_longer_when_it_is_not") {
        return;
    }
    let s = stage("allow", &[]);
    let [a, _, c] = &s.sandboxes;
    assert!(unreachable_tcp(a, &s.at(2, 80)), "isolated");
    let why = s.daemon.run(&["why", "a", "c", "tcp", "80"]);
    assert!(why.contains("causeway allow"), "{why}");
    s.daemon.run(&["allow", "red", "blue", "tcp", "80"]);
    s.daemon.run(&["allow", "red", "blue", "tcp", "80"]);
    assert_eq!(
        s.names(),
        ["allow-red-blue-tcp-80"],
        "allowed twice is allowed"
    );
    assert_eq!(
        ask_tcp(a, &s.at(2, 80), 100_000),
        ip(&s.addresses[0]),
        "untranslated"
    );
    assert!(unreachable_tcp(c, &s.at(0, 80)), "the other way");
    assert!(unpingable(a, ip(&s.addresses[2])), "by TCP alone");
    let why = s.daemon.run(&["why", "a", "c", "tcp", "80"]);
    assert!(
        why.contains("rule 'allow-red-blue-tcp-80' allows it"),
        "{why}"
    );
    let mut open = Open::to(a, &s.at(2, 80));
    assert!(open.goes_on());
    s.daemon.run(&["disallow", "red", "blue", "tcp", "80"]);
    open.0.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(!open.goes_on(), "connections end with what allowed them");
    assert!(s.names().is_empty());
    let error = s.daemon.refused(&["disallow", "red", "blue"]);
    assert!(error.contains("rule ls"), "{error}");
}

#[test]
fn with_icc_off_endpoints_reach_all_but_each_other_and_those_that_are_allowed() {
    if !require_root("with_icc_off_endpoints_reach_all_but_each_other_and_those_that_are_allowed") {
        return;
    }
    let s = stage("icc", &["--icc", "off"]);
    let [a, b, _] = &s.sandboxes;
    assert!(unreachable_tcp(a, &s.at(1, 80)));
    assert!(unpingable(a, ip(&s.addresses[1])));
    assert!(ping(a, ip("10.88.0.1"), 56), "the gateway");
    ask_tcp(a, "192.0.2.2:80", 10_000);
    assert!(names_are_answered(a, "10.88.0.1:53"));
    let why = s.daemon.run(&["why", "a", "b"]);
    assert!(
        why.contains("icc_off") || why.contains("do not reach each other"),
        "{why}"
    );
    s.daemon.run(&["allow", "a", "b"]);
    ask_tcp(a, &s.at(1, 80), 100_000);
    ask_udp(a, &s.at(1, 53), 500);
    assert!(ping(a, ip(&s.addresses[1]), 56));
    assert!(unreachable_tcp(b, &s.at(0, 80)), "b may answer, not ask");
    s.daemon.run(&["network", "set", "red", "--icc", "on"]);
    ask_tcp(b, &s.at(0, 80), 1_000);
    let shown = s.daemon.run(&["network", "inspect", "red"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["icc"], true);
}

/// Covers: 66
#[test]
fn rules_are_asked_in_order_counted_and_moved() {
    if !require_root("rules_are_asked_in_order_counted_and_moved") {
        return;
    }
    let s = stage("order", &[]);
    let [a, ..] = &s.sandboxes;
    let add = |words: &[&str]| {
        s.daemon.run(&[&["rule", "add"], words].concat());
    };
    add(&[
        "web",
        "allow",
        "--from",
        "a",
        "--to",
        "192.0.2.2",
        "--proto",
        "tcp",
        "--ports",
        "80",
    ]);
    add(&["closed", "drop", "--from", "red", "--to", "outside"]);
    ask_tcp(a, "192.0.2.2:80", 50_000);
    let web = s.rule("web");
    let (packets, bytes) = (
        web["packets"].as_u64().unwrap(),
        web["bytes"].as_u64().unwrap(),
    );
    assert!(packets >= 8 && bytes >= 100_000, "both ways: {web}");
    assert_eq!(s.rule("closed")["packets"], 0);
    s.daemon.run(&["rule", "move", "closed", "--first"]);
    assert_eq!(s.names(), ["closed", "web"]);
    assert!(unreachable_tcp(a, "192.0.2.2:80"));
    assert!(s.rule("closed")["packets"].as_u64().unwrap() > 0);
    assert_eq!(
        s.rule("web")["packets"].as_u64().unwrap(),
        packets,
        "its count stays"
    );
    let why = s.daemon.run(&["why", "a", "192.0.2.2", "tcp", "80"]);
    assert!(why.contains("rule 'closed' denies it"), "{why}");
    let drops = s.daemon.run(&["drops"]);
    assert!(drops.contains("policy_denied"), "{drops}");
    s.daemon.run(&["rule", "set", "closed", "--to", "host"]);
    ask_tcp(a, "192.0.2.2:80", 1_000);
    s.daemon.run(&["rule", "rm", "closed"]);
    add(&["next", "drop", "--from", "b", "--before", "web"]);
    assert_eq!(s.names(), ["next", "web"]);
    assert_eq!(
        s.rule("next")["packets"],
        0,
        "not what another rule had counted there"
    );
}

#[test]
fn exposure_lists_what_the_outside_reaches_and_the_rules_that_it_meets() {
    if !require_root("exposure_lists_what_the_outside_reaches_and_the_rules_that_it_meets") {
        return;
    }
    let s = stage("exposure", &[]);
    assert_eq!(s.daemon.json(&["exposure"]), Value::Array(Vec::new()));
    let publish = |words: &[&str]| {
        s.daemon.run(&[&["publish", "add"], words].concat());
    };
    publish(&["8080:80", "a"]);
    publish(&["8081:80", "b", "--from", "198.51.100.0/24"]);
    publish(&["127.0.0.1:8082:80", "b"]);
    ask_tcp(&s.outside, "192.0.2.1:8080", 1_000);
    assert!(unreachable_tcp(&s.outside, "192.0.2.1:8081"));
    let why = s
        .daemon
        .run(&["why", "192.0.2.2", "192.0.2.1", "tcp", "8081"]);
    assert!(why.contains("198.51.100.0/24"), "{why}");
    s.daemon.run(&[
        "rule", "add", "shut", "drop", "--from", "outside", "--to", "a",
    ]);
    assert!(unreachable_tcp(&s.outside, "192.0.2.1:8080"));
    let exposed = s.daemon.json(&["exposure"]);
    let exposed = exposed.as_array().unwrap();
    assert_eq!(
        exposed.len(),
        2,
        "what is for the host alone is not exposed: {exposed:?}"
    );
    assert_eq!(exposed[0]["kind"], "published");
    assert_eq!(
        (&exposed[0]["ports"], &exposed[0]["endpoint"]),
        (&"8080".into(), &"a".into())
    );
    assert_eq!(exposed[0]["rules"][0], "shut");
    assert_eq!(exposed[0]["uplinks"][0], "up0");
    assert_eq!(exposed[1]["from"], "198.51.100.0/24");
    assert_eq!(exposed[1]["rules"], Value::Array(Vec::new()));
    let network = ["network", "create", "games", "--subnet", "10.90.0.0/24"];
    let open = ["--nat-filtering", "endpoint-independent"];
    s.daemon.run(&[&network[..], &open].concat());
    let game = s.lab.namespace("game");
    let inside = s.daemon.attach(&game, "games", "game", &[]);
    let socket = game
        .run(|| UdpSocket::bind((inside.as_str(), 7_777)))
        .unwrap();
    let is_open = || {
        socket.send_to(b"x", "192.0.2.2:9").unwrap();
        let exposed = s.daemon.json(&["exposure"]);
        let mut rows = exposed.as_array().unwrap().iter();
        rows.any(|row| row["kind"] == "mapping" && row["endpoint"] == "game")
    };
    wait_until(DEADLINE, "the mapping is listed", is_open);
}

#[test]
fn routed_addresses_and_networks_on_a_card_are_exposed_as_a_whole() {
    if !require_root("routed_addresses_and_networks_on_a_card_are_exposed_as_a_whole") {
        return;
    }
    let red = ["--subnet6", "2001:db8:5::/64", "--nat6", "routed"];
    let s = stage("exposed", &red);
    let rows = |kind: &str| {
        let exposed = s.daemon.json(&["exposure"]);
        let rows = exposed.as_array().unwrap().iter();
        let rows: Vec<Value> = rows.filter(|row| row["kind"] == kind).cloned().collect();
        rows
    };
    let routed = rows("routed");
    assert_eq!(routed.len(), 2, "{routed:?}");
    assert_eq!(routed[0]["address"], "2001:db8:5::2");
    assert_eq!(
        (
            &routed[0]["network"],
            &routed[0]["endpoint"],
            &routed[0]["uplinks"][0]
        ),
        (&"red".into(), &"a".into(), &"up0".into())
    );
    assert_eq!(routed[0]["rules"], Value::Array(Vec::new()));
    s.daemon.run(&[
        "rule",
        "add",
        "six",
        "drop",
        "--from",
        "outside",
        "--to",
        "2001:db8:5::2",
    ]);
    assert_eq!(rows("routed")[0]["rules"][0], "six");
    assert_eq!(rows("routed")[1]["rules"], Value::Array(Vec::new()));
    s.daemon
        .run(&["network", "set", "red", "--nat6", "masquerade"]);
    assert_eq!(rows("routed"), Vec::<Value>::new());

    // Who is on the LAN of a card is one hop from every endpoint.
    let lan = s.lab.namespace("lan");
    s.lab.cable(&s.host, "card0", &lan, "eth0");
    let create = [
        "network",
        "create",
        "lan",
        "--nic",
        "card0",
        "--subnet",
        "192.168.7.0/24",
    ];
    s.daemon
        .run(&[&create[..], &["--lan-gateway", "192.168.7.1"]].concat());
    let on_card = rows("nic");
    assert_eq!(on_card.len(), 1, "{on_card:?}");
    assert_eq!(
        (
            &on_card[0]["network"],
            &on_card[0]["endpoint"],
            &on_card[0]["uplinks"][0]
        ),
        (&"lan".into(), &Value::Null, &"card0".into())
    );
    assert_eq!(on_card[0]["address"], "192.168.7.0/24");
    let from = on_card[0]["from"].as_str().unwrap();
    assert!(from.contains("whom it routes"), "{from}");
    let table = s.daemon.run(&["exposure"]);
    let row = table.lines().find(|line| line.starts_with("nic")).unwrap();
    assert!(row.contains(" all"), "{table}");
    s.daemon.run(&["network", "set", "lan", "--nic", "none"]);
    assert_eq!(rows("nic"), Vec::<Value>::new());
}

/// An address has to tell whose it is: the gateways route by it.
#[test]
fn networks_of_overlapping_subnets_are_not_led_into_each_other_and_the_reason_is_told() {
    if !require_root(
        "networks_of_overlapping_subnets_are_not_led_into_each_other_and_the_reason_is_told",
    ) {
        return;
    }
    let s = stage("overlap", &[]);
    let d = &s.daemon;
    let twin = ["network", "create", "twin", "--no-host-link", "--subnet"];
    d.run(&[&twin[..], &["10.88.0.0/16"]].concat());
    let far = s.lab.namespace("far");
    d.attach(&far, "twin", "far", &["--ip", "10.88.9.9"]);
    serve_tcp(&far, "0.0.0.0:80");
    for words in [
        ["allow", "red", "twin"],
        ["allow", "twin", "red"],
        ["allow", "a", "far"],
        ["allow", "blue", "twin"],
    ] {
        let refused = d.refused(&words);
        assert!(refused.contains("10.88.0.0/"), "{words:?}: {refused}");
        assert!(refused.contains("subnet"), "{words:?}: {refused}");
    }
    assert!(s.names().is_empty());
    // Each to itself, and a third to one that no other overlaps any more.
    assert!(unreachable_tcp(&s.sandboxes[0], "10.88.9.9:80"));
    d.run(&["detach", "far"]);
    d.run(&["network", "rm", "twin"]);
    d.run(&["allow", "red", "blue"]);
    ask_tcp(&s.sandboxes[0], &s.at(2, 80), 1_000);
}

#[test]
fn rules_outlive_the_daemon_and_so_do_connections() {
    if !require_root("rules_outlive_the_daemon_and_so_do_connections") {
        return;
    }
    let mut s = stage("rules-kept", &["--icc", "off"]);
    s.daemon.run(&["allow", "a", "b", "tcp", "80"]);
    s.daemon.run(&["allow", "red", "blue"]);
    s.daemon.run(&["rule", "move", "allow-red-blue", "--first"]);
    let before = s.names();
    let mut open = Open::to(&s.sandboxes[0], &s.at(1, 80));
    s.daemon.kill();
    s.daemon.restart();
    assert_eq!(s.names(), before);
    assert!(open.goes_on(), "a connection that is older than the daemon");
    ask_tcp(&s.sandboxes[0], &s.at(2, 80), 1_000);
    assert!(unreachable_tcp(&s.sandboxes[1], &s.at(0, 80)));
    s.daemon.run(&["detach", "b"]);
    let gone = s.rule("allow-a-b-tcp-80");
    assert_eq!(gone["absent"][0], "endpoint:b", "{gone}");
    let again = s.daemon.attach(&s.sandboxes[1], "red", "b", &[]);
    ask_tcp(&s.sandboxes[0], &format!("{again}:80"), 1_000);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    if !require_root("what_makes_no_sense_is_refused_and_changes_nothing") {
        return;
    }
    let s = stage("rules-bad", &[]);
    let d = &s.daemon;
    d.run(&[
        "network",
        "create",
        "vault",
        "--internal",
        "--subnet",
        "10.91.0.0/24",
    ]);
    for (words, says) in [
        (&["allow", "red", "nobody"][..], "nobody"),
        (&["allow", "red", "vault"], "internal"),
        (&["allow", "red", "blue", "http"], "protocol"),
        (&["allow", "red", "blue", "icmp", "80"], "tcp and udp"),
        (&["allow", "red", "blue", "tcp", "80-79"], "ports"),
        (&["rule", "add", "a b", "drop"], "name"),
        (
            &["rule", "add", "x", "drop", "--from", "10.0.0.0/33"],
            "side",
        ),
        (&["rule", "add", "x", "drop", "--uplink", "eth7"], "uplink"),
        (&["rule", "add", "x", "drop", "--before", "y"], "rule ls"),
        (&["rule", "rm", "x"], "rule ls"),
        (&["rule", "set", "x", "--ports", "80"], "rule ls"),
    ] {
        let error = d.refused(words);
        assert!(error.contains(says), "{words:?}: {error}");
    }
    assert!(s.names().is_empty());
}
