//! The bridge between real namespaces, driven by the command line: who hears which frame.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;

use dataplane_core::addr::MacAddr;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, require_root, wait_until};
use tests::talk::Witness;
use tests::wire::{self, Link};

const BROADCAST: MacAddr = MacAddr::BROADCAST;
const MULTICAST: MacAddr = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
const UNKNOWN: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
/// A port that nobody listens on.
const FENCE_PORT: u16 = 9;

/// A sandbox on the network, with everything that reaches its interface.
struct Station {
    ns: Namespace,
    mac: MacAddr,
    address: String,
    witness: Witness,
    heard: Vec<Vec<u8>>,
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
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        let stations = NAMES.map(|name| {
            let ns = lab.namespace(name);
            let address = daemon.attach(&ns, "n", name, &[]);
            Station {
                mac: ns.mac("eth0"),
                witness: Witness::new(&ns, "eth0"),
                ns,
                address,
                heard: Vec::new(),
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
        self.stations[station].mac
    }

    /// Sends a frame from a station; the names of those that hear it.
    fn heard(&mut self, from: usize, frame: &[u8]) -> Vec<&'static str> {
        for station in &mut self.stations {
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
        for station in &mut self.stations {
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
    let drops = floor.daemon.json(&["drops"]);
    let isolated = drops.as_array().unwrap().iter();
    let isolated: Vec<_> = isolated
        .filter(|d| d["reason"] == "port_isolated")
        .collect();
    assert_eq!(isolated[0]["count"], 1, "{drops}");
    let listed = floor.daemon.run(&["port", "ls"]);
    assert!(listed.contains("isolated hairpin"), "{listed}");

    floor.daemon.kill();
    floor.daemon.restart();
    let wanted = json!({"learning": true, "flood": true, "mcast_flood": true,
        "bcast_flood": true, "isolated": true, "hairpin": true});
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
            "'wings' is no flag",
        ),
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
    assert!(floor.lab.dir().exists());
}
