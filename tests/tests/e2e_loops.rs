//! Loops between real namespaces: found by probes and by stations that flap, told as events, and a
//! port blocked where the network says so.

#![allow(clippy::unwrap_used)]

use dataplane_core::addr::MacAddr;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, ip, require_root, wait_until};
use tests::talk::{Witness, ping};
use tests::wire;

const BRIDGE: &str = "br0";

/// A network whose sandbox `loop` has two interfaces on it, which a bridge inside connects.
struct Looped {
    daemon: Daemon,
    sandbox: Namespace,
    lab: Lab,
}

impl Looped {
    fn new(name: &str, detect: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
        let create = ["network", "create", "n", "--subnet", "10.88.0.0/24"];
        daemon.run(&[&create[..], &["--loop-detect", detect]].concat());
        let sandbox = lab.namespace("loop");
        for (endpoint, ifname) in [("first", "eth0"), ("second", "eth1")] {
            daemon.attach(&sandbox, "n", endpoint, &["--ifname", ifname]);
        }
        Self {
            daemon,
            sandbox,
            lab,
        }
    }

    fn close(&self) {
        let netlink = self.sandbox.netlink();
        block_on(netlink.create_bridge(BRIDGE)).unwrap();
        let bridge = self.sandbox.link(BRIDGE).index;
        for ifname in ["eth0", "eth1"] {
            let index = self.sandbox.link(ifname).index;
            block_on(netlink.set_controller(index, bridge)).unwrap();
        }
        self.sandbox.set_up(BRIDGE);
    }

    fn open(&self) {
        let index = self.sandbox.link("eth1").index;
        block_on(self.sandbox.netlink().set_controller(index, 0)).unwrap();
    }
}

fn events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let text = daemon.run(&["events", "--json", "--kind", kind]);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn state_of(daemon: &Daemon, port: &str) -> (bool, Option<u64>) {
    let view: Value = serde_json::from_str(&daemon.run(&["port", "show", port, "--json"])).unwrap();
    (
        view["up"].as_bool().unwrap(),
        view["blocked_seconds"].as_u64(),
    )
}

#[test]
fn a_loop_through_a_sandbox_is_told_of_and_nothing_is_blocked() {
    if !require_root("a_loop_through_a_sandbox_is_told_of_and_nothing_is_blocked") {
        return;
    }
    let looped = Looped::new("loopevent", "event");
    let daemon = &looped.daemon;
    assert_eq!(events(daemon, "loop"), [] as [Value; 0]);
    looped.close();
    // Both are secured: what comes back is dropped, so no storm tells of the loop; the probe does.
    wait_until(DEADLINE, "the loop is told of", || {
        !events(daemon, "loop").is_empty()
    });
    let event = &events(daemon, "loop")[0];
    let text = event["text"].as_str().unwrap();
    assert!(
        text.contains("'first'") && text.contains("'second'"),
        "{text}"
    );
    assert_eq!(event["network"], "n");
    assert_eq!(state_of(daemon, "first"), (true, None));
    assert_eq!(state_of(daemon, "second"), (true, None));
    let drops = daemon.run(&["drops", "--json"]);
    assert!(drops.contains("loop_probe"), "{drops}");
}

#[test]
fn the_port_that_came_later_is_blocked_until_it_is_set_up() {
    if !require_root("the_port_that_came_later_is_blocked_until_it_is_set_up") {
        return;
    }
    let looped = Looped::new("loopblock", "block");
    let daemon = &looped.daemon;
    for port in ["first", "second"] {
        daemon.run(&["port", "set", port, "port-security", "off"]);
    }
    looped.close();
    wait_until(DEADLINE, "a port is blocked", || {
        !events(daemon, "port_blocked").is_empty()
    });
    let blocked = events(daemon, "port_blocked");
    assert_eq!(blocked[0]["port"], "second", "{blocked:?}");
    let (up, seconds) = state_of(daemon, "second");
    assert!(
        !up && seconds.is_some_and(|left| left <= 60),
        "{up} {seconds:?}"
    );
    assert_eq!(state_of(daemon, "first"), (true, None));
    let listed = daemon.run(&["port", "ls"]);
    let line = listed.lines().find(|line| line.contains("second")).unwrap();
    assert!(line.contains("blocked"), "{listed}");
    // The storm is over, and the rest of the network goes on.
    let other = looped.lab.namespace("other");
    daemon.attach(&other, "n", "other", &[]);
    assert!(ping(&other, ip("10.88.0.1"), 56));
    // Mended, and taken into use again by hand.
    looped.open();
    daemon.run(&["port", "set", "second", "up"]);
    assert_eq!(state_of(daemon, "second"), (true, None));
    let unblocked = events(daemon, "port_unblocked");
    assert_eq!(unblocked[0]["port"], "second");
}

/// Covers: 68
#[test]
fn a_mac_that_is_heard_here_and_there_is_told_of_without_detection() {
    if !require_root("a_mac_that_is_heard_here_and_there_is_told_of_without_detection") {
        return;
    }
    let lab = Lab::new("macflap");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let witnesses = ["a", "b"].map(|name| {
        let ns = lab.namespace(name);
        daemon.attach(&ns, "n", name, &[]);
        daemon.run(&["port", "set", name, "port-security", "off"]);
        let witness = Witness::new(&ns, "eth0");
        // An endpoint goes when nobody holds its namespace.
        (ns, witness)
    });
    let twin = MacAddr([0x02, 0, 0, 0, 0, 0x99]);
    let frame = wire::plain(wire::Link(twin, MacAddr::BROADCAST));
    let [(_in_a, mut a), (_in_b, mut b)] = witnesses;
    wait_until(DEADLINE, "the flapping is told of", || {
        // Moves are limited in the second, so it may take some.
        a.send(&frame);
        let mut heard = false;
        wait_until(DEADLINE, "b hears a's", || {
            b.look(|got| heard |= got == frame);
            heard
        });
        b.send(&frame);
        let mut heard = false;
        wait_until(DEADLINE, "a hears b's", || {
            a.look(|got| heard |= got == frame);
            heard
        });
        !events(&daemon, "mac_flap").is_empty()
    });
    let text = events(&daemon, "mac_flap")[0]["text"].to_string();
    for part in ["02:00:00:00:00:99", "'a'", "'b'"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(events(&daemon, "port_blocked"), [] as [Value; 0]);
}
