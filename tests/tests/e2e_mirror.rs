//! Mirrors between real namespaces, driven by the command line: what a port shows of others.

#![allow(clippy::unwrap_used)]

use dataplane_core::addr::MacAddr;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::talk::{Witness, ask_tcp, ping, serve_tcp, unpingable};
use tests::wire::{self, Link};

/// Frames whose order is looked at, and how many are on their way at once.
const FRAMES: u32 = 2_000;
const WINDOW: u32 = 16;
/// Bytes of a bulk transfer, there and back.
const BULK: usize = 4 << 20;

/// A network of a, b and ids, which is to show mirrors.
struct Floor {
    daemon: Daemon,
    a: Namespace,
    b: Namespace,
    address_of_b: String,
    ids: Namespace,
    _lab: Lab,
}

impl Floor {
    /// A network whose ids is connected by that backend.
    fn new(name: &str, workers: &str, backend: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", workers]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        let [a, b, ids] = ["a", "b", "ids"].map(|name| {
            let ns = lab.namespace(name);
            let backend = if name == "ids" { backend } else { "tap" };
            let address = daemon.attach(&ns, "n", name, &["--backend", backend]);
            daemon.run(&["port", "set", name, "port-security", "off"]);
            (ns, address)
        });
        let ((a, _), (b, address_of_b), (ids, _)) = (a, b, ids);
        Self {
            daemon,
            a,
            b,
            address_of_b,
            ids,
            _lab: lab,
        }
    }

    fn mirror(&self, name: &str) -> Value {
        let listed = self.daemon.json(&["mirror", "ls"]);
        let mut listed = listed.as_array().unwrap().iter();
        listed
            .find(|mirror| mirror["name"] == name)
            .unwrap()
            .clone()
    }
}

/// Frames of the test's own that a witness has seen.
fn look(witness: &mut Witness, seen: &mut Vec<Vec<u8>>) {
    while witness.look(|frame| {
        if frame[12..14] == [0x88, 0xb5] {
            seen.push(frame.to_vec());
        }
    }) {}
}

#[test]
fn a_port_shows_the_frames_of_another_in_order_and_bit_by_bit() {
    if !require_root("a_port_shows_the_frames_of_another_in_order_and_bit_by_bit") {
        return;
    }
    // A plain TAP has one queue: with two workers the other one hands its copies over.
    for (workers, backend) in [("1", "packet"), ("2", "tap-plain")] {
        let floor = Floor::new("mirror-order", workers, backend);
        floor.daemon.run(&[
            "mirror",
            "add",
            "m",
            "--from",
            "a",
            "--direction",
            "in",
            "--to",
            "ids",
        ]);
        let mut ids = Witness::new(&floor.ids, "eth0");
        let mut sender = Witness::new(&floor.a, "eth0");
        let link = Link(floor.a.mac("eth0"), floor.b.mac("eth0"));
        let (mut sent, mut shown) = (Vec::new(), Vec::new());
        for number in 0..FRAMES {
            let mut frame = wire::plain(link);
            frame.resize(60 + (number as usize * 7) % 1_400, number as u8);
            frame.extend(number.to_be_bytes());
            sender.send(&frame);
            sent.push(frame);
            if number % WINDOW == WINDOW - 1 {
                wait_until(DEADLINE, "the copies", || {
                    look(&mut ids, &mut shown);
                    shown.len() >= sent.len()
                });
            }
        }
        assert!(
            shown == sent,
            "{workers} workers: {} of {}",
            shown.len(),
            sent.len()
        );
        let mirror = floor.mirror("m");
        assert!(
            mirror["copies"].as_u64().unwrap() >= u64::from(FRAMES),
            "{mirror}"
        );
        assert_eq!(mirror["dropped"], 0, "{mirror}");
    }
}

#[test]
fn a_port_that_shows_a_mirror_carries_nothing_else_until_it_ends() {
    if !require_root("a_port_that_shows_a_mirror_carries_nothing_else_until_it_ends") {
        return;
    }
    let mut floor = Floor::new("mirror-closed", "1", "packet");
    let gateway = ip("10.88.0.1");
    assert!(ping(&floor.ids, gateway, 56));
    let add = ["mirror", "add", "m", "--from", "a", "--to", "ids"];
    floor.daemon.run(&add);
    floor.daemon.kill();
    floor.daemon.restart();
    let wanted = json!({"name": "m", "port": "a", "network": null, "direction": "both", "to": "ids",
        "ingress": false});
    let mirror = floor.mirror("m");
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&mirror[key], value, "{key} after a restart");
    }
    assert!(unpingable(&floor.ids, gateway), "nothing enters");
    let mut ids = Witness::new(&floor.ids, "eth0");
    let mut b = Witness::new(&floor.b, "eth0");
    let mut shown = Vec::new();
    b.send(&wire::plain(Link(
        floor.b.mac("eth0"),
        MacAddr([2, 0, 0, 0, 0, 0x77]),
    )));
    let hello = wire::plain(Link(floor.b.mac("eth0"), floor.a.mac("eth0")));
    b.send(&hello);
    // What b floods to an unknown station leaves by a's port, and so does what is for a.
    wait_until(DEADLINE, "two copies", || {
        look(&mut ids, &mut shown);
        shown.len() >= 2
    });
    assert_eq!(shown.len(), 2, "one copy each, and no flood besides");
    assert_eq!(shown[1], hello);
    floor.daemon.run(&["mirror", "rm", "m"]);
    wait_until(DEADLINE, "an ordinary port", || {
        ping(&floor.ids, gateway, 56)
    });
    floor.daemon.run(&[&add[..], &["--ingress"]].concat());
    assert!(ping(&floor.ids, gateway, 56), "an ordinary port besides");
    floor.daemon.run(&["detach", "a"]);
    assert_eq!(
        floor.daemon.json(&["mirror", "ls"]),
        json!([]),
        "gone with its source"
    );
}

#[test]
fn bulk_tcp_is_shown_in_large_frames() {
    if !require_root("bulk_tcp_is_shown_in_large_frames") {
        return;
    }
    let floor = Floor::new("mirror-bulk", "1", "packet");
    let b = &floor.address_of_b;
    floor
        .daemon
        .run(&["mirror", "add", "m", "--network", "n", "--to", "ids"]);
    assert_eq!(floor.mirror("m")["direction"], "in", "each frame once");
    serve_tcp(&floor.b, &format!("{b}:7000"));
    let mut witness = Witness::new(&floor.ids, "eth0");
    let mut largest = || {
        ask_tcp(&floor.a, &format!("{b}:7000"), BULK);
        let mut largest = 0;
        while witness.look(|frame| largest = largest.max(frame.len())) {}
        largest
    };
    assert!(largest() > 1_514, "as the switch carries them");
    let port = floor.daemon.json(&["port", "show", "ids"]);
    let count = |name: &str| port[name].as_u64().unwrap();
    let (frames, bytes) = (count("tx_frames"), count("tx_bytes"));
    let copies = floor.mirror("m")["copies"].as_u64().unwrap();
    assert_eq!(copies, frames + count("tx_dropped"), "{port}");
    assert!(bytes / frames > 1_514, "{frames} frames, {bytes} bytes");
    floor.daemon.run(&["port", "set", "ids", "offload", "off"]);
    assert_eq!(largest(), 1_514, "complete, for a tool that wants them so");
}

#[test]
fn impossible_mirrors_are_refused_and_change_nothing() {
    if !require_root("impossible_mirrors_are_refused_and_change_nothing") {
        return;
    }
    let floor = Floor::new("mirror-refused", "1", "packet");
    let daemon = &floor.daemon;
    daemon.run(&["mirror", "add", "m", "--from", "a", "--to", "ids"]);
    // Without the counters: stations chatter by themselves.
    let listed = || {
        let mut mirrors = daemon.json(&["mirror", "ls"]);
        for mirror in mirrors.as_array_mut().unwrap() {
            for counter in ["copies", "dropped"] {
                mirror[counter].take();
            }
        }
        mirrors
    };
    let before = listed();
    let station = "02:00:00:00:00:07";
    daemon.run(&["fdb", "add", "n", station, "--port", "b"]);
    for (words, said) in [
        (
            &["mirror", "add", "m", "--from", "b", "--to", "ids"][..],
            "already a mirror",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "a"],
            "cannot show itself",
        ),
        (
            &["mirror", "add", "x", "--from", "nobody", "--to", "ids"],
            "causeway port ls",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "nobody"],
            "causeway port ls",
        ),
        (
            &["mirror", "add", "x", "--network", "none", "--to", "ids"],
            "no network",
        ),
        (
            &[
                "mirror",
                "add",
                "x",
                "--from",
                "a",
                "--direction",
                "up",
                "--to",
                "ids",
            ],
            "in, out or both",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "b"],
            "static or local FDB entries",
        ),
        (
            &["fdb", "add", "n", station, "--port", "ids"],
            "shows a mirror",
        ),
        (&["mirror", "rm", "x"], "causeway mirror ls"),
    ] {
        let error = daemon.refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    assert_eq!(listed(), before);
    for number in 1..16 {
        let name = format!("m{number}");
        daemon.run(&["mirror", "add", &name, "--from", "a", "--to", "ids"]);
    }
    let error = daemon.refused(&["mirror", "add", "m16", "--from", "a", "--to", "ids"]);
    assert!(error.contains("limited to 16"), "{error}");
}
