//! VLANs between real namespaces, driven by the command line: who hears which frame with which tag.

#![allow(clippy::unwrap_used)]

use dataplane_core::addr::MacAddr;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::oracle::kernel::join;
use tests::talk::{Witness, ask_tcp, ping, serve_tcp, unpingable};
use tests::wire::{self, Link};

const BROADCAST: MacAddr = MacAddr::BROADCAST;
const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;
/// Bytes of a bulk transfer, there and back.
const BULK: usize = 8 << 20;

/// A sandbox with everything that reaches its interface.
struct Station {
    ns: Namespace,
    witness: Witness,
    heard: Vec<Vec<u8>>,
    /// The VLAN in which it hears the fence.
    vlan: u16,
}

/// A network in which VLANs count: a and b in VLAN 10, c in VLAN 20, t a trunk of all, and f, which
/// sends the fences, another one.
struct Floor {
    daemon: Daemon,
    stations: Vec<Station>,
    fences: u32,
    _lab: Lab,
}

const PORTS: [(&str, u16); 5] = [("a", 10), ("b", 10), ("c", 20), ("t", 10), ("f", 10)];
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const T: usize = 3;
const F: usize = 4;

impl Floor {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
        let create = ["network", "create", "n", "--subnet", "10.88.0.0/24"];
        daemon.run(&[&create[..], &["--vlan-filtering"]].concat());
        let stations = PORTS.map(|(name, vlan)| {
            let ns = lab.namespace(name);
            let backend = if name == "b" { "packet" } else { "tap" };
            daemon.attach(&ns, "n", name, &["--backend", backend]);
            daemon.run(&["port", "set", name, "port-security", "off"]);
            if name == "t" || name == "f" {
                daemon.run(&["vlan", "add", name, "1-4094"]);
            } else {
                access(&daemon, name, vlan);
            }
            Station {
                witness: Witness::new(&ns, "eth0"),
                ns,
                heard: Vec::new(),
                vlan,
            }
        });
        Self {
            daemon,
            stations: stations.into(),
            fences: 0,
            _lab: lab,
        }
    }

    fn mac(&self, station: usize) -> MacAddr {
        self.stations[station].ns.mac("eth0")
    }

    fn plain(&self, from: usize, dst: MacAddr) -> Vec<u8> {
        wire::plain(Link(self.mac(from), dst))
    }

    /// Sends a frame from a station; what the others hear of the same source, by name.
    fn heard(&mut self, from: usize, frame: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        for station in &mut self.stations {
            station.heard.clear();
        }
        self.stations[from].witness.send(frame);
        // The second is sent when the first has passed, so nothing that the frame set off is behind.
        self.fence();
        self.fence();
        let source = &frame[6..12];
        let mut heard = Vec::new();
        for (at, (station, (name, _))) in self.stations.iter().zip(PORTS).enumerate() {
            // Stations chatter by themselves: what is meant is what nobody else sends.
            let meant = |got: &&Vec<u8>| got[6..12] == *source && got.ends_with(&[0x5a; 8]);
            if at != from && at != F {
                heard.extend(
                    station
                        .heard
                        .iter()
                        .filter(meant)
                        .map(|got| (name, got.clone())),
                );
            }
        }
        heard
    }

    /// Waits until every station has seen a frame of f's.
    fn fence(&mut self) {
        self.fences += 1;
        let source = self.mac(F);
        let (fence, others) = self.stations.split_last_mut().unwrap();
        for station in others {
            let mut frame = wire::plain(Link(source, BROADCAST));
            frame.extend(self.fences.to_be_bytes());
            let mark = frame[14..].to_vec();
            wire::tag(&mut frame, CUSTOMER, station.vlan);
            fence.witness.send(&frame);
            wait_until(DEADLINE, "the fence is seen", || {
                let heard = &mut station.heard;
                station.witness.look(|frame| heard.push(frame.to_vec()));
                heard.iter().any(|frame| frame.ends_with(&mark))
            });
        }
    }

    /// Frames that ended for a reason.
    fn dropped(&self, reason: &str) -> u64 {
        let drops = self.daemon.json(&["drops"]);
        let drops = drops.as_array().unwrap().iter();
        let counts = drops.filter(|drop| drop["reason"] == reason);
        counts.map(|drop| drop["count"].as_u64().unwrap()).sum()
    }
}

/// Puts a port into one VLAN alone.
fn access(daemon: &Daemon, port: &str, vlan: u16) {
    daemon.run(&["vlan", "del", port, "1-4094"]);
    daemon.run(&["vlan", "add", port, &vlan.to_string(), "pvid", "untagged"]);
}

fn tagged(mut frame: Vec<u8>, tpid: u16, tci: u16) -> Vec<u8> {
    wire::tag(&mut frame, tpid, tci);
    frame
}

#[test]
fn vlans_are_isolated_and_a_trunk_carries_all() {
    if !require_root("vlans_are_isolated_and_a_trunk_carries_all") {
        return;
    }
    let mut floor = Floor::new("vlans");
    for dst in [
        BROADCAST,
        MacAddr([0x01, 0, 0x5e, 1, 2, 3]),
        MacAddr([2, 0, 0, 0, 0, 0x77]),
    ] {
        let frame = floor.plain(A, dst);
        let on_trunk = tagged(frame.clone(), CUSTOMER, 10);
        let wanted = [("b", frame.clone()), ("t", on_trunk)];
        assert_eq!(floor.heard(A, &frame), wanted, "{dst}");
        let frame = floor.plain(C, dst);
        let on_trunk = tagged(frame.clone(), CUSTOMER, 20);
        assert_eq!(floor.heard(C, &frame), [("t", on_trunk)], "{dst}");
    }
    let (a, c) = (floor.mac(A), floor.mac(C));
    let known = floor.plain(B, a);
    assert_eq!(floor.heard(B, &known), [("a", known.clone())]);
    let across = floor.plain(B, c);
    let on_trunk = tagged(across.clone(), CUSTOMER, 10);
    assert_eq!(
        floor.heard(B, &across),
        [("a", across.clone()), ("t", on_trunk)],
        "c is unknown in VLAN 10"
    );
    for (vlan, name, dst) in [(10, "a", a), (20, "c", c)] {
        let bare = floor.plain(T, dst);
        let sent = tagged(bare.clone(), CUSTOMER, 0x6000 | vlan);
        assert_eq!(floor.heard(T, &sent), [(name, bare)]);
    }
    let before = floor.dropped("vlan_ingress");
    let foreign = tagged(floor.plain(A, BROADCAST), CUSTOMER, 20);
    assert_eq!(floor.heard(A, &foreign), []);
    assert_eq!(floor.dropped("vlan_ingress"), before + 1);
}

#[test]
fn service_tags_and_what_is_in_them_pass_bit_by_bit() {
    if !require_root("service_tags_and_what_is_in_them_pass_bit_by_bit") {
        return;
    }
    let mut floor = Floor::new("qinq");
    let inner = tagged(floor.plain(A, BROADCAST), CUSTOMER, 0xe123);
    let qinq = tagged(inner, SERVICE, 0x3456);
    let on_trunk = tagged(qinq.clone(), CUSTOMER, 10);
    let wanted = [("b", qinq.clone()), ("t", on_trunk.clone())];
    assert_eq!(floor.heard(A, &qinq), wanted);
    let mut back = on_trunk;
    back[..6].copy_from_slice(&floor.mac(A).0);
    back[6..12].copy_from_slice(&floor.mac(T).0);
    let mut wanted = qinq;
    wanted[..12].copy_from_slice(&back[..12]);
    assert_eq!(floor.heard(T, &back), [("a", wanted)]);
}

#[test]
fn what_is_set_of_vlans_is_listed_and_outlives_the_daemon() {
    if !require_root("what_is_set_of_vlans_is_listed_and_outlives_the_daemon") {
        return;
    }
    let mut floor = Floor::new("vlans-kept");
    let station = "02:00:00:00:00:07";
    let add = ["fdb", "add", "n", station, "--port", "t", "--vlan", "20"];
    floor.daemon.run(&add);
    floor.daemon.run(&["vlan", "add", "b", "30-31"]);
    floor
        .daemon
        .run(&["network", "set", "n", "--gateway-vlan", "20"]);
    let listed = |daemon: &Daemon| {
        let network = daemon.json(&["network", "ls"]);
        let network = &network[0];
        let vlans = [&network["vlan_filtering"], &network["gateway_vlan"]];
        let entries = daemon.json(&["fdb", "show", "n"]);
        let mut entries = entries.as_array().unwrap().iter();
        let entry = entries.find(|entry| entry["mac"] == station).unwrap();
        let entry = json!([entry["vlan"], entry["port_name"], entry["state"]]);
        json!([vlans, daemon.json(&["vlan", "ls"]), entry])
    };
    let before = listed(&floor.daemon);
    assert_eq!(before[0], json!([true, 20]));
    assert_eq!(before[2], json!([20, "t", "static"]));
    let of = |name: &str| {
        let ports = before[1].as_array().unwrap().iter();
        let mut ports = ports.filter(|port| port["name"] == name);
        ports.next().map(|port| port["vlans"].clone())
    };
    let access = json!({"vlan": 10, "flags": ["PVID", "Egress Untagged"]});
    let more = json!({"vlan": 30, "vlan_end": 31, "flags": []});
    assert_eq!(of("b"), Some(json!([access, more])));
    let all = json!([{"vlan": 1, "vlan_end": 4094, "flags": []}]);
    assert_eq!(of("t"), Some(all));
    let table = floor.daemon.run(&["vlan", "ls", "b"]);
    let wanted = "PORT  VLAN-ID\nb     10 PVID Egress Untagged\n      30-31\n";
    assert_eq!(table, wanted);
    floor.daemon.kill();
    floor.daemon.restart();
    assert_eq!(listed(&floor.daemon), before);
    let (frame, dst) = (floor.plain(A, BROADCAST), MacAddr([2, 0, 0, 0, 0, 7]));
    let on_trunk = tagged(frame.clone(), CUSTOMER, 10);
    let wanted = [("b", frame.clone()), ("t", on_trunk)];
    assert_eq!(floor.heard(A, &frame), wanted);
    let frame = floor.plain(C, dst);
    let on_trunk = tagged(frame.clone(), CUSTOMER, 20);
    assert_eq!(floor.heard(C, &frame), [("t", on_trunk)]);
}

#[test]
fn the_gateway_is_in_one_vlan_and_moves_when_it_is_told_to() {
    if !require_root("the_gateway_is_in_one_vlan_and_moves_when_it_is_told_to") {
        return;
    }
    let floor = Floor::new("vlans-gateway");
    let gateway = ip("10.88.0.1");
    for (vlan, reached, others) in [("10", vec![A, B], vec![C]), ("20", vec![C], vec![A, B])] {
        floor
            .daemon
            .run(&["network", "set", "n", "--gateway-vlan", vlan]);
        for station in reached {
            let ns = &floor.stations[station].ns;
            wait_until(DEADLINE, "the gateway answers", || ping(ns, gateway, 56));
        }
        for station in others {
            assert!(unpingable(&floor.stations[station].ns, gateway));
        }
    }
    floor
        .daemon
        .run(&["network", "set", "n", "--vlan-filtering", "off"]);
    for station in [A, B, C] {
        assert!(ping(&floor.stations[station].ns, gateway, 56));
    }
}

#[test]
fn an_entry_is_of_its_vlan_and_flushed_with_it() {
    if !require_root("an_entry_is_of_its_vlan_and_flushed_with_it") {
        return;
    }
    let mut floor = Floor::new("vlans-fdb");
    for vlan in [10, 20] {
        let hello = tagged(floor.plain(T, BROADCAST), CUSTOMER, vlan);
        floor.heard(T, &hello);
    }
    let mac = floor.mac(T).to_string();
    let vlans = |daemon: &Daemon| -> Vec<u64> {
        let entries = daemon.json(&["fdb", "show", "n"]);
        let entries = entries.as_array().unwrap().iter();
        let own = entries.filter(|entry| entry["mac"] == mac.as_str());
        let mut vlans: Vec<u64> = own.filter_map(|entry| entry["vlan"].as_u64()).collect();
        vlans.retain(|vlan| *vlan == 10 || *vlan == 20);
        vlans
    };
    assert_eq!(vlans(&floor.daemon), [10, 20]);
    floor.daemon.run(&["fdb", "flush", "n", "--vlan", "10"]);
    assert_eq!(vlans(&floor.daemon), [20]);
    floor.daemon.run(&["fdb", "del", "n", &mac, "--vlan", "20"]);
    assert_eq!(vlans(&floor.daemon), [] as [u64; 0]);
    let hello = tagged(floor.plain(T, BROADCAST), CUSTOMER, 20);
    floor.heard(T, &hello);
    assert_eq!(vlans(&floor.daemon), [20]);
    floor.daemon.run(&["vlan", "del", "t", "20"]);
    assert_eq!(vlans(&floor.daemon), [] as [u64; 0], "gone with the VLAN");
}

#[test]
fn tcp_crosses_a_trunk_between_two_switches_in_large_frames() {
    if !require_root("tcp_crosses_a_trunk_between_two_switches_in_large_frames") {
        return;
    }
    let lab = Lab::new("vlans-trunk");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
    let cable = lab.namespace("cable");
    let sandboxes = ["left", "right"].map(|name| {
        let subnet = ["10.88.0.0/24", "10.89.0.0/24"][usize::from(name == "right")];
        daemon.run(&[
            "network",
            "create",
            name,
            "--subnet",
            subnet,
            "--vlan-filtering",
        ]);
        let (ns, trunk) = (lab.namespace(name), format!("{name}-trunk"));
        daemon.attach(&ns, name, name, &[]);
        daemon.attach(&cable, name, &trunk, &["--ifname", name]);
        for port in [name, &trunk] {
            daemon.run(&["port", "set", port, "port-security", "off"]);
        }
        access(&daemon, name, 77);
        daemon.run(&["vlan", "add", &trunk, "77"]);
        ns
    });
    join(&cable, &["left", "right"]);
    let [left, right] = sandboxes;
    left.add_address("eth0", "172.31.0.1/24");
    right.add_address("eth0", "172.31.0.2/24");
    wait_until(DEADLINE, "right answers", || {
        ping(&left, ip("172.31.0.2"), 56)
    });
    serve_tcp(&right, "172.31.0.2:7000");
    ask_tcp(&left, "172.31.0.2:7000", BULK);
    for trunk in ["left-trunk", "right-trunk"] {
        let port = daemon.json(&["port", "show", trunk]);
        let count = |name: &str| port[name].as_u64().unwrap();
        for way in ["rx", "tx"] {
            let (frames, bytes) = (
                count(&format!("{way}_frames")),
                count(&format!("{way}_bytes")),
            );
            assert!(bytes >= BULK as u64, "{trunk} {way}: {bytes} bytes");
            assert!(
                bytes / frames > 1_518,
                "{trunk} {way}: {frames} frames, {bytes} bytes"
            );
        }
        assert_eq!(count("tx_dropped"), 0, "{port}");
    }
    daemon.run(&["vlan", "del", "right-trunk", "77"]);
    assert!(
        unpingable(&left, ip("172.31.0.2")),
        "the trunk carries it no more"
    );
}

#[test]
fn impossible_vlans_are_refused_with_the_range_and_change_nothing() {
    if !require_root("impossible_vlans_are_refused_with_the_range_and_change_nothing") {
        return;
    }
    let floor = Floor::new("vlans-refused");
    let daemon = &floor.daemon;
    let listed = || -> Value {
        json!([
            daemon.json(&["vlan", "ls"]),
            daemon.json(&["network", "ls"])
        ])
    };
    let before = listed();
    let range = "from 1 to 4094";
    for (words, said) in [
        (&["vlan", "add", "a", "0"][..], range),
        (&["vlan", "add", "a", "4095"], range),
        (&["vlan", "add", "a", "70000"], range),
        (&["vlan", "add", "a", "-1"], range),
        (&["vlan", "add", "a", "5-4095"], range),
        (&["vlan", "add", "a", "20-10"], "smaller VLAN first"),
        (&["vlan", "add", "a", "ten"], range),
        (&["vlan", "add", "a", "10-20", "pvid"], "one VLAN with pvid"),
        (&["vlan", "add", "a", "10", "fast"], "pvid, untagged"),
        (&["vlan", "add", "nobody", "10"], "causeway port ls"),
        (&["vlan", "del", "a", "30"], "not in VLAN 30"),
        (&["vlan", "del", "a", "0"], range),
        (&["vlan", "ls", "nobody"], "causeway port ls"),
        (&["network", "set", "n", "--gateway-vlan", "0"], range),
        (&["network", "set", "n", "--gateway-vlan", "4095"], range),
        (
            &[
                "fdb",
                "add",
                "n",
                "02:00:00:00:00:07",
                "--port",
                "a",
                "--vlan",
                "4095",
            ],
            range,
        ),
        (
            &[
                "fdb",
                "add",
                "n",
                "02:00:00:00:00:07",
                "--port",
                "a",
                "--vlan",
                "20",
            ],
            "vlan add a 20",
        ),
        (
            &["fdb", "add", "n", "02:00:00:00:00:07", "--port", "t"],
            "--vlan",
        ),
        (&["fdb", "flush", "n", "--vlan", "0"], range),
    ] {
        let error = daemon.refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    assert_eq!(listed(), before);
}
