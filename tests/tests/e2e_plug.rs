//! `causeway plug`: the examples of pipework's README, as far as they need no container engine.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};

use tests::conform::program;
use tests::daemon::{Daemon, path_text};
use tests::lab::{
    DEADLINE, Lab, Namespace, Running, block_on, ip, require_root, wait_for, wait_until,
};
use tests::site::{LAN_LEASES, serve_leases};
use tests::talk::{ask_tcp, ping, serve_tcp, unpingable};

/// A host with a card on a LAN of one router, and a daemon.
struct Site {
    daemon: Daemon,
    router: Namespace,
    host: Namespace,
    lab: Lab,
}

impl Site {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let [host, router] = lab.namespaces(["host", "router"]);
        lab.cable(&host, "nic0", &router, "eth0");
        router.add_address("eth0", "192.168.7.1/24");
        router.add_address("eth0", "fd00:7::1/64");
        router.add_address("lo", "198.51.100.1/32");
        Self {
            daemon: Daemon::start(&lab, &host, &["--uplink", "none"]),
            router,
            host,
            lab,
        }
    }

    /// Plugs a sandbox in, and returns what was said.
    fn plug(&self, interface: &str, guest: &Namespace, more: &[&str]) -> String {
        let path = guest.path();
        let words = [&["plug", interface, path_text(&path)], more].concat();
        self.daemon.run(&words)
    }

    fn refused(&self, interface: &str, guest: &Namespace, more: &[&str]) -> String {
        let path = guest.path();
        let words = [&["plug", interface, path_text(&path)], more].concat();
        self.daemon.refused(&words)
    }
}

/// Whether a namespace knows no way to an address.
fn has_no_route(ns: &Namespace, address: &str) -> bool {
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect((address, 9)).is_err()
}

/// A process that sleeps in a sandbox, as a container's would.
fn sleeper(ns: &Namespace) -> Running {
    Running(ns.start(Command::new("sleep").arg("60").stdin(Stdio::null())))
}

/// Covers: 71
#[test]
fn containers_meet_on_a_bridge_of_their_own_and_have_a_router() {
    if !require_root("containers_meet_on_a_bridge_of_their_own_and_have_a_router") {
        return;
    }
    let site = Site::new("plug-bridge");
    let [apache, mysql, far] = site.lab.namespaces(["apache", "mysql", "far"]);
    site.plug("br1", &apache, &["192.168.1.1/24"]);
    // By a process, as from `docker inspect`.
    let process = sleeper(&mysql);
    let pid = process.0.id().to_string();
    let said = site.daemon.run(&["plug", "br1", &pid, "192.168.1.2/24"]);
    assert_eq!(said, format!("pid-{pid} eth1 192.168.1.2/24\n"));
    assert!(ping(&apache, ip("192.168.1.2"), 1_400));
    assert!(ping(&mysql, ip("192.168.1.1"), 1_400));
    // The bridge has no card, no gateway, and the host is not on it.
    let network = &site.daemon.json(&["network", "ls"])[0];
    assert_eq!(network["nic"], serde_json::Value::Null);
    assert_eq!(network["router"], "lan");
    assert!(has_no_route(&site.host, "192.168.1.1"));

    // IP/LEN@GATEWAY: the default route goes there, in place of another.
    far.add_address("lo", "198.51.100.9/32");
    let said = site.plug("br1", &far, &["192.168.1.254/24"]);
    let port = said.split(' ').next().unwrap();
    // It answers by an address that it was not given.
    site.daemon
        .run(&["port", "set", port, "port-security", "off"]);
    far.set_sysctl("net/ipv4/ip_forward", "1");
    let routed = site.lab.namespace("routed");
    site.plug("br1", &routed, &["192.168.1.7/24@192.168.1.254"]);
    assert!(ping(&routed, ip("198.51.100.9"), 56));
    let path = routed.path();
    let route = |words: &[&str]| {
        let all = [&["plug", "route", path_text(&path)], words].concat();
        site.daemon.output(&all)
    };
    assert!(route(&["del", "default"]).status.success());
    assert!(has_no_route(&routed, "198.51.100.9"));
    let again = route(&["del", "default"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("no route to default"));
    assert!(
        route(&["add", "198.51.100.0/24", "via", "192.168.1.254"])
            .status
            .success()
    );
    assert!(ping(&routed, ip("198.51.100.9"), 56));

    // What the README warns of.
    let refused = site.refused("br1", &routed, &["192.168.1.8"]);
    assert!(
        refused.contains("maybe you meant 192.168.1.8/24"),
        "{refused}"
    );
    let refused = site.refused("br1", &routed, &["192.168.9.8/24", "-i", "eth2"]);
    assert!(refused.contains("no subnet of network 'br1'"), "{refused}");
    let refused = site.refused("br1", &routed, &["192.168.1.8/20", "-i", "eth2"]);
    assert!(refused.contains("192.168.1.8/24"), "{refused}");
    let refused = site.refused("br1", &routed, &["192.168.1.8/24"]);
    assert!(refused.contains("'eth1' is taken"), "{refused}");
    let refused = site.refused("nope7", &routed, &["192.168.1.8/24", "-i", "eth2"]);
    assert!(
        refused.contains("'nope7'") && refused.contains("nic0"),
        "{refused}"
    );
    let refused = site
        .daemon
        .refused(&["plug", "br1", "cw-nobody", "192.168.1.8/24"]);
    assert!(
        refused.contains("no container, process or network namespace"),
        "{refused}"
    );
    assert_eq!(
        site.daemon
            .json(&["network", "ls"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// Covers: 71, 72
#[test]
fn containers_share_a_card_of_the_host_with_addresses_and_macs_of_their_own() {
    let test = "containers_share_a_card_of_the_host_with_addresses_and_macs_of_their_own";
    if !require_root(test) {
        return;
    }
    let site = Site::new("plug-card");
    let [one, two, bare] = site.lab.namespaces(["one", "two", "bare"]);
    site.plug("nic0", &one, &["192.168.7.70/24@192.168.7.1"]);
    site.plug("nic0", &two, &["192.168.7.71/24", "26:2e:71:98:60:8f"]);
    assert_eq!(two.mac("eth1").to_string(), "26:2e:71:98:60:8f");
    serve_tcp(&one, "0.0.0.0:80");
    assert_eq!(
        ask_tcp(&site.router, "192.168.7.70:80", 100),
        ip("192.168.7.1")
    );
    assert_eq!(ask_tcp(&two, "192.168.7.70:80", 100), ip("192.168.7.71"));
    assert!(ping(&one, ip("198.51.100.1"), 1_400));
    assert!(has_no_route(&two, "198.51.100.1"), "it was given no router");
    // 0/0: an interface, and whatever is set inside.
    site.plug("nic0", &bare, &["0/0", "-i", "lan0"]);
    let all = block_on(bare.netlink().addresses()).unwrap();
    let index = bare.link("lan0").index;
    let v4 = |a: &&control::link::inet::Address| a.link == index && a.prefix.address.is_ipv4();
    assert_eq!(all.iter().find(v4), None);
    bare.add_address("lan0", "192.168.7.72/24");
    assert!(ping(&bare, ip("192.168.7.1"), 56));
    // The host's own address on a card is not taken by the way.
    site.lab.cable(&site.host, "nic1", &site.router, "eth1");
    site.host.add_address("nic1", "192.168.8.2/24");
    let refused = site.refused("nic1", &one, &["192.168.8.7/24", "-i", "eth2"]);
    assert!(
        refused.contains("192.168.8.2/24") && refused.contains("--take-address"),
        "{refused}"
    );
}

/// Covers: 71
#[test]
fn vlans_keep_plugged_containers_apart() {
    if !require_root("vlans_keep_plugged_containers_apart") {
        return;
    }
    let site = Site::new("plug-vlan");
    let [a, b, c] = site.lab.namespaces(["a", "b", "c"]);
    site.plug("br2", &a, &["10.1.1.1/24", "@30"]);
    site.plug("br2", &b, &["10.1.1.2/24", "fa:de:b0:99:52:1c@30"]);
    site.plug("br2", &c, &["10.1.1.3/24", "@31"]);
    assert!(ping(&a, ip("10.1.1.2"), 56));
    assert!(unpingable(&a, ip("10.1.1.3")));
    site.plug("br3", &a, &["10.1.2.1/24", "-i", "eth2"]);
    let refused = site.refused("br3", &b, &["10.1.2.2/24", "@30", "-i", "eth2"]);
    assert!(refused.contains("--vlan-filtering on"), "{refused}");
}

/// Covers: 71
#[test]
fn an_address_comes_from_the_lans_server() {
    let test = "an_address_comes_from_the_lans_server";
    if !require_root(test) {
        return;
    }
    let dnsmasq = program(test, "dnsmasq", "dnsmasq-base");
    let udhcpc = program(test, "udhcpc", "udhcpc");
    let (Some(dnsmasq), Some(_)) = (dnsmasq, udhcpc) else {
        return;
    };
    let site = Site::new("plug-dhcp");
    let _server = serve_leases(&site.lab, &site.router, &dnsmasq, LAN_LEASES);
    let client = site.lab.namespace("client");
    let said = site.plug("nic0", &client, &["dhcp", "fa:de:b0:99:52:1c"]);
    let address = said.split_whitespace().nth(2).unwrap();
    let (address, len) = address.split_once('/').unwrap();
    assert_eq!(len, "24");
    assert!(address.starts_with("192.168.7.1"), "{said}");
    assert!(
        ping(&client, ip("198.51.100.1"), 56),
        "by the router of the lease"
    );
    assert!(ping(&site.router, ip(address), 1_400));
    // And of the other family by the LAN's advertisements, though its port is secured.
    wait_until(DEADLINE, "the client has an advertised address", || {
        let all = block_on(client.netlink().addresses()).unwrap();
        let of_lan = |a: &control::link::inet::Address| match a.prefix.address {
            IpAddr::V6(address) => address.segments()[..2] == [0xfd00, 7] && !a.tentative,
            IpAddr::V4(_) => false,
        };
        all.iter().any(of_lan)
    });
    assert!(ping(&client, ip("fd00:7::1"), 1_400));
    let log = fs::read_to_string(site.lab.dir().join("dnsmasq.log")).unwrap();
    assert!(log.contains("fa:de:b0:99:52:1c"), "{log}");
}

/// Covers: 71
#[test]
fn a_container_waits_for_its_interface() {
    if !require_root("a_container_waits_for_its_interface") {
        return;
    }
    let site = Site::new("plug-wait");
    let guest = site.lab.namespace("guest");
    let mut waiting = Running(guest.start(&mut site.daemon.command(&["plug", "--wait"])));
    site.plug("br1", &guest, &["192.168.1.1/24", "-i", "eth0"]);
    assert_eq!(
        waiting.0.try_wait().unwrap(),
        None,
        "another interface came"
    );
    site.plug("br1", &guest, &["192.168.1.2/24"]);
    let ended = wait_for(DEADLINE, "the wait ends", || waiting.0.try_wait().unwrap());
    assert!(ended.success());
    wait_until(DEADLINE, "both interfaces are there", || {
        let links = block_on(guest.netlink().links()).unwrap();
        links
            .iter()
            .filter(|link| link.name.starts_with("eth"))
            .count()
            == 2
    });
}
