//! What a daemon finds when it comes back: sandboxes that somebody has changed meanwhile, and
//! requests of which only some steps were taken.

#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, block_on, connect, prefix, require_root, wait_until};

/// Instants at which each request is cut off.
const INSTANTS: u32 = 12;
/// From one instant to the next: together they span what a request takes on a quiet machine.
const INSTANT_STEP: Duration = Duration::from_micros(1_500);
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

fn has_default_route(ns: &Namespace) -> bool {
    let routes = block_on(ns.netlink().routes()).unwrap();
    routes.iter().any(|route| route.prefix.len == 0)
}

fn has_address(ns: &Namespace, ifname: &str, address: &str) -> bool {
    let (link, wanted) = (ns.link(ifname).index, prefix(address));
    let addresses = block_on(ns.netlink().addresses()).unwrap();
    addresses
        .iter()
        .any(|found| found.link == link && found.prefix == wanted)
}

fn has_link(ns: &Namespace, ifname: &str) -> bool {
    block_on(ns.netlink().link(ifname)).unwrap().is_some()
}

fn can_connect(from: &Namespace, to: &Namespace, address: &str) {
    let listener = to.run(|| std::net::TcpListener::bind(address)).unwrap();
    from.run(|| connect(DEADLINE, address.parse().unwrap()));
    drop(listener);
}

#[test]
fn what_was_changed_in_a_sandbox_meanwhile_is_repaired() {
    if !require_root("what_was_changed_in_a_sandbox_meanwhile_is_repaired") {
        return;
    }
    let lab = Lab::new("adopt");
    let [host, other] = lab.namespaces(["host", "other"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let create = ["network", "create", "web", "--subnet", "10.88.0.0/24"];
    daemon.run(&[&create[..], &["--mtu", "1400"]].concat());
    daemon.attach(&other, "web", "other", &["--ip", "10.88.0.9"]);
    for (name, backend, address) in [
        ("tap", "tap", "10.88.0.11/24"),
        ("plain", "tap-plain", "10.88.0.12/24"),
        ("veth", "packet", "10.88.0.13/24"),
        ("xdp", "xdp", "10.88.0.14/24"),
    ] {
        let sandbox = lab.namespace(name);
        let host_part = address.split('/').next().unwrap();
        let more = ["--ip", host_part, "--backend", backend];
        daemon.attach(&sandbox, "web", name, &more);
        let mac = sandbox.mac("eth0");
        daemon.kill();

        // Everything of it, and an address of the sandbox's own, which stays.
        let netlink = sandbox.netlink();
        let index = sandbox.link("eth0").index;
        sandbox.add_address("eth0", "198.51.100.7/24");
        block_on(netlink.remove_address(index, prefix(address))).unwrap();
        block_on(netlink.set_down(index)).unwrap();
        block_on(netlink.set_mtu(index, 1_300)).unwrap();
        block_on(netlink.set_mac(index, "02:00:00:00:00:99".parse().unwrap())).unwrap();
        assert!(!has_default_route(&sandbox));
        daemon.restart();

        let link = sandbox.link("eth0");
        assert_eq!(
            (link.mtu, link.up, link.mac),
            (1_400, true, Some(mac)),
            "{name}"
        );
        assert!(has_address(&sandbox, "eth0", address), "{name}");
        assert!(has_address(&sandbox, "eth0", "198.51.100.7/24"), "{name}");
        assert!(has_default_route(&sandbox), "{name}");
        can_connect(&sandbox, &other, "10.88.0.9:7000");
        let log = daemon.log();
        let said = format!("MTU 1400, address {address}, state up, default route by 10.88.0.1");
        assert!(log.contains(&said), "{name}: {log}");

        // What is as it should be is left alone.
        let repairs = log.matches("repaired in its sandbox").count();
        daemon.kill();
        daemon.restart();
        let again = daemon.log().matches("repaired in its sandbox").count();
        assert_eq!(again, repairs, "{name}: {}", daemon.log());
    }
    daemon.clean();
}

/// Starts a request, ends the daemon under it after `delay`, starts it again.
fn cut_off(daemon: &mut Daemon, host: &Namespace, words: &[&str], delay: Duration) {
    let mut command = daemon.command(words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let end = Instant::now() + delay;
    let mut request = host.start(&mut command);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
    daemon.kill();
    request.wait().unwrap();
    daemon.restart();
    assert_eq!(daemon.json(&["status"])["warnings"], serde_json::json!([]));
}

fn instants() -> impl Iterator<Item = Duration> {
    (0..INSTANTS).map(|number| INSTANT_STEP * number)
}

fn count(daemon: &Daemon, what: &str) -> Value {
    daemon.json(&["status"])[what].clone()
}

#[test]
fn creating_a_network_is_done_or_undone_wherever_it_was_cut_off() {
    if !require_root("creating_a_network_is_done_or_undone_wherever_it_was_cut_off") {
        return;
    }
    let lab = Lab::new("cut-create");
    let host = lab.namespace("host");
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let create = ["network", "create", "web", "--subnet", "10.88.0.0/24"];
    let mut done = 0;
    for delay in instants() {
        cut_off(&mut daemon, &host, &create, delay);
        let made = count(&daemon, "networks") == 1;
        assert_eq!(has_link(&host, "causeway0"), made, "{delay:?}");
        if made {
            assert!(has_address(&host, "causeway0", "10.88.0.1/32"), "{delay:?}");
            done += 1;
            daemon.run(&["network", "rm", "web"]);
        }
        assert!(!has_link(&host, "causeway0"), "{delay:?}");
    }
    eprintln!("done {done} of {INSTANTS} times");
    daemon.run(&create);
}

#[test]
fn detaching_is_done_or_undone_wherever_it_was_cut_off() {
    if !require_root("detaching_is_done_or_undone_wherever_it_was_cut_off") {
        return;
    }
    let lab = Lab::new("cut-detach");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&b, "web", "b", &["--ip", "10.88.0.9"]);
    let path = a.path();
    for delay in instants() {
        if count(&daemon, "endpoints") == 1 {
            daemon.attach(&a, "web", "a", &[]);
            daemon.run(&["publish", "add", "8080:80", "a"]);
        }
        cut_off(
            &mut daemon,
            &host,
            &["detach", "--netns", path_text(&path)],
            delay,
        );
        let kept = count(&daemon, "endpoints") == 2;
        assert_eq!(has_link(&a, "eth0"), kept, "{delay:?}");
        assert_eq!(count(&daemon, "publications") == 1, kept, "{delay:?}");
        let port_free = host
            .run(|| std::net::TcpListener::bind("0.0.0.0:8080"))
            .is_ok();
        assert_eq!(port_free, !kept, "{delay:?}");
        if kept {
            can_connect(&a, &b, "10.88.0.9:7000");
        }
    }
}

#[test]
fn publishing_is_done_or_undone_wherever_it_was_cut_off() {
    if !require_root("publishing_is_done_or_undone_wherever_it_was_cut_off") {
        return;
    }
    let lab = Lab::new("cut-publish");
    let [host, a] = lab.namespaces(["host", "a"]);
    host.set_sysctl(RESERVED, "70,2500");
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    for delay in instants() {
        for spec in ["8080:80", "2000-2999:2000-2999"] {
            cut_off(&mut daemon, &host, &["publish", "add", spec, "a"], delay);
            let made = count(&daemon, "publications") == 1;
            if spec == "8080:80" {
                let free = host
                    .run(|| std::net::TcpListener::bind("0.0.0.0:8080"))
                    .is_ok();
                assert_eq!(free, !made, "{delay:?}");
            } else {
                let expected = if made { "70,2000-2999" } else { "70,2500" };
                assert_eq!(host.sysctl(RESERVED), expected, "{delay:?}");
            }
            if made {
                daemon.run(&["publish", "rm", spec]);
            }
            assert_eq!(host.sysctl(RESERVED), "70,2500", "{delay:?}");
        }
    }
    daemon.clean();
    wait_until(DEADLINE, "the host link is gone", || {
        !has_link(&host, "causeway0")
    });
    assert_eq!(host.sysctl(RESERVED), "70,2500");
}
