//! A LAN that admits one MAC: sandboxes talk with it all the same, and nothing else reaches it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use dataplane_core::addr::MacAddr;
use dataplane_core::headers::{Headers, L4Kind};
use serde_json::Value;
use tests::conform::program;
use tests::daemon::{Daemon, attach_words};
use tests::lab::{DEADLINE, Lab, Namespace, block_on, ip, require_root, wait_until};
use tests::site::serve_leases;
use tests::talk::{
    Watch, ask_tcp, ask_udp, assert_one_mac, ping, serve_tcp, serve_udp, watch_others,
};

const LAN: &str = "10.88.0.200";
const LAN6: &str = "fd00:88::200";

/// A network one port of which leads to a LAN, a namespace at the other end of a veth.
struct Site {
    daemon: Daemon,
    lan: Namespace,
    lab: Lab,
}

impl Site {
    /// With the port as it was attached: everybody leaves by it under his own MAC.
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
        let create = "network create n --no-host-link --subnet 10.88.0.0/24 --subnet6 fd00:88::/64";
        daemon.run(&create.split(' ').collect::<Vec<_>>());
        let lan = lab.namespace("lan");
        let addresses = ["--ip", LAN, "--ip6", LAN6, "--backend", "packet"];
        daemon.attach(&lan, "n", "lan", &addresses);
        Self { daemon, lan, lab }
    }

    /// Has one MAC leave by the port, its device's, which is returned.
    fn admit_one(&self) -> MacAddr {
        let words = "port set lan port-security off mac-nat on";
        self.daemon.run(&words.split(' ').collect::<Vec<_>>());
        self.mac_nat()
    }

    fn mac_nat(&self) -> MacAddr {
        let shown = self.daemon.json(&["port", "show", "lan"]);
        shown["mac_nat"].as_str().unwrap().parse().unwrap()
    }

    fn attach(&self, name: &str, options: &[&str]) -> Namespace {
        let ns = self.lab.namespace(name);
        let path = ns.path();
        self.daemon
            .run(&[&attach_words(&path, "n", name)[..], options].concat());
        ns
    }

    /// Watches the LAN: every frame that is not the LAN's own.
    fn guard(&self) -> Watch<Vec<u8>> {
        watch_others(&self.lan, "eth0")
    }

    /// The stations that are known behind the port, as "address mac".
    fn known(&self) -> Vec<(IpAddr, MacAddr)> {
        let listed = self.daemon.json(&["mac-nat", "ls", "lan"]);
        let entries = listed[0]["addresses"].as_array().unwrap();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        entries
            .iter()
            .map(|entry| {
                (
                    ip(&text(entry, "address")),
                    text(entry, "mac").parse().unwrap(),
                )
            })
            .collect()
    }
}

/// Covers: 68
#[test]
fn sandboxes_talk_with_a_lan_that_sees_one_mac_both_ways_and_after_a_restart() {
    if !require_root("sandboxes_talk_with_a_lan_that_sees_one_mac_both_ways_and_after_a_restart") {
        return;
    }
    let mut site = Site::new("mnat");
    let own = site.admit_one();
    let guard = site.guard();
    let (a, b) = (site.attach("a", &[]), site.attach("b", &[]));
    let addresses = [("10.88.0.2", "fd00:88::2"), ("10.88.0.3", "fd00:88::3")];
    serve_tcp(&site.lan, "0.0.0.0:80");
    serve_udp(&site.lan, "0.0.0.0:53");
    for (sandbox, (v4, v6)) in [&a, &b].into_iter().zip(addresses) {
        assert!(ping(sandbox, ip(LAN), 56));
        assert!(ping(sandbox, ip(LAN6), 1_400));
        assert!(ping(&site.lan, ip(v4), 1_400));
        assert!(ping(&site.lan, ip(v6), 56));
        // Hundreds of kilobytes: large frames, cut on the way out.
        assert_eq!(ask_tcp(sandbox, &format!("{LAN}:80"), 300_000), ip(v4));
        assert_eq!(ask_udp(sandbox, &format!("{LAN}:53"), 500), ip(v4));
        serve_tcp(sandbox, &format!("{v4}:8080"));
        assert_eq!(ask_tcp(&site.lan, &format!("{v4}:8080"), 300_000), ip(LAN));
    }
    assert!(
        ping(&a, ip("10.88.0.3"), 56),
        "they reach each other as before"
    );
    let macs = [&a, &b].map(|sandbox| sandbox.mac("eth0"));
    let known = site.known();
    for ((v4, v6), mac) in addresses.into_iter().zip(macs) {
        for address in [v4, v6] {
            assert!(known.contains(&(ip(address), mac)), "{address}: {known:?}");
        }
    }
    site.daemon.kill();
    site.daemon.restart();
    assert_eq!(site.mac_nat(), own);
    assert!(ping(&site.lan, ip("10.88.0.2"), 56));
    assert!(ping(&b, ip(LAN6), 56));
    assert_one_mac(guard, own, &macs);
    // Off again, who comes is himself; the LAN has the others by the old MAC until it asks anew.
    site.daemon.run(&["port", "set", "lan", "mac-nat", "off"]);
    let guard = site.guard();
    let late = site.attach("late", &[]);
    assert!(ping(&late, ip(LAN), 56));
    let seen = guard.end().kept;
    let own = late.mac("eth0");
    let mut sources = seen.iter().map(|frame| Headers::parse(frame).unwrap().src);
    assert!(sources.any(|src| src == own));
}

#[test]
fn a_sandbox_gets_its_addresses_from_the_lan_by_dhcp_and_advertisement() {
    let test = "a_sandbox_gets_its_addresses_from_the_lan_by_dhcp_and_advertisement";
    if !require_root(test) {
        return;
    }
    let dnsmasq = program(test, "dnsmasq", "dnsmasq-base");
    let udhcpc = program(test, "udhcpc", "udhcpc");
    let (Some(dnsmasq), Some(udhcpc)) = (dnsmasq, udhcpc) else {
        return;
    };
    let site = Site::new("mnatdhcp");
    let own = site.admit_one();
    let guard = site.guard();
    let ranges = ["10.88.0.100,10.88.0.150", "fd00:88::"];
    let _server = serve_leases(&site.lab, &site.lan, &dnsmasq, ranges);
    let client = site.attach("client", &["--ip", "none", "--ip6", "none"]);
    let mac = client.mac("eth0");
    let leased = lease(&site, &client, &udhcpc);
    client.add_address("eth0", &format!("{leased}/24"));
    assert!(ping(&client, ip(LAN), 56));
    assert!(ping(&site.lan, leased.into(), 1_400));
    let advertised = || {
        let all = block_on(client.netlink().addresses()).unwrap();
        let ready = all.iter().filter(|address| !address.tentative);
        let mut addresses = ready.map(|address| address.prefix.address);
        addresses.find(|address| match address {
            IpAddr::V6(v6) => v6.segments()[..4] == [0xfd00, 0x88, 0, 0],
            IpAddr::V4(_) => false,
        })
    };
    wait_until(DEADLINE, "the client has an advertised address", || {
        advertised().is_some()
    });
    let v6 = advertised().unwrap();
    assert!(ping(&client, ip(LAN6), 56));
    assert!(ping(&site.lan, v6, 1_400));
    let known = site.known();
    for address in [leased.into(), v6] {
        assert!(known.contains(&(address, mac)), "{known:?}");
    }
    let seen = assert_one_mac(guard, own, &[mac]);
    let asked = seen.iter().filter_map(|frame| {
        let l4 = Headers::parse(frame).unwrap().l4.ok()?;
        matches!(l4.kind, L4Kind::Udp { dst, .. } if dst.0 == 67).then(|| &frame[l4.offset + 8..])
    });
    let asked: Vec<&[u8]> = asked.collect();
    assert!(!asked.is_empty(), "a DHCP client asks");
    for message in asked {
        assert_eq!(message[10] & 0x80, 0x80, "to be answered by broadcast");
        assert_eq!(message[28..34], mac.0, "chaddr");
    }
}

/// The address that udhcpc gets.
fn lease(site: &Site, client: &Namespace, udhcpc: &std::path::Path) -> Ipv4Addr {
    let (noted, script) = (
        site.lab.dir().join("noted"),
        site.lab.dir().join("noted.sh"),
    );
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip\" >{}\nexit 0\n",
        noted.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(udhcpc);
    command
        .args(["-i", "eth0", "-f", "-q", "-n", "-t", "20", "-T", "1", "-s"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let ended = client.start(&mut command).wait().unwrap();
    let log = || fs::read_to_string(site.lab.dir().join("dnsmasq.log")).unwrap();
    assert!(ended.success(), "no lease: {}", log());
    fs::read_to_string(&noted).unwrap().trim().parse().unwrap()
}

#[test]
fn a_station_that_has_the_port_s_mac_itself_works_beside_the_others() {
    if !require_root("a_station_that_has_the_port_s_mac_itself_works_beside_the_others") {
        return;
    }
    let site = Site::new("mnatown");
    let owner = site.attach("owner", &[]);
    let own = owner.mac("eth0");
    let words = [
        "port",
        "set",
        "lan",
        "port-security",
        "off",
        "mac-nat",
        &own.to_string(),
    ];
    site.daemon.run(&words);
    let guard = site.guard();
    let other = site.attach("other", &[]);
    // As a host has addresses that nobody told the switch of.
    site.daemon
        .run(&["port", "set", "owner", "port-security", "off"]);
    owner.add_address("eth0", "10.88.0.77/24");
    for sandbox in [&owner, &other] {
        assert!(ping(sandbox, ip(LAN), 56));
        assert!(ping(sandbox, ip(LAN6), 56));
    }
    for address in [
        "10.88.0.2",
        "10.88.0.3",
        "10.88.0.77",
        "fd00:88::2",
        "fd00:88::3",
    ] {
        assert!(ping(&site.lan, ip(address), 1_400), "{address}");
    }
    let listed = site.daemon.json(&["mac-nat", "ls", "lan"]);
    assert_eq!(listed[0]["owned"], true, "{listed}");
    assert_one_mac(guard, own, &[other.mac("eth0")]);
}

#[test]
fn what_cannot_be_is_refused_with_what_can_and_changes_nothing() {
    if !require_root("what_cannot_be_is_refused_with_what_can_and_changes_nothing") {
        return;
    }
    let site = Site::new("mnatbad");
    let a = site.attach("a", &[]);
    let far = site.lan.mac("eth0").to_string();
    let before = site.daemon.json(&["port", "ls"]);
    let settings = |listed: &Value| -> Vec<(Value, Value)> {
        let ports = listed.as_array().unwrap().iter();
        ports
            .map(|port| (port["mac_nat"].clone(), port["flags"].clone()))
            .collect()
    };
    for (words, said) in [
        (
            &["lan", "mac-nat", "01:00:5e:00:00:01"][..],
            "group address",
        ),
        (&["lan", "mac-nat", "00:00:00:00:00:00"], "zero"),
        (&["lan", "mac-nat", "maybe"], "MAC"),
        (&["lan", "mac-nat"], "lacks its value"),
        (&["lan", "mac-nat", &far], "leads to"),
        (&["lan", "mac-nat", "on", "hairpin", "on"], "hairpin"),
        (&["lan", "mac-nat", "02:42:0a:58:00:01"], "gateway"),
        (&["a", "mac-nat", "on"], "is a TAP"),
        (&["nobody", "mac-nat", "on"], "nobody"),
    ] {
        let error = site.daemon.refused(&[&["port", "set"], words].concat());
        assert!(error.contains(said), "{words:?}: {error}");
    }
    let error = site.daemon.refused(&["mac-nat", "ls", "a"]);
    assert!(error.contains("mac-nat on"), "{error}");
    let after = site.daemon.json(&["port", "ls"]);
    assert_eq!(settings(&before), settings(&after));
    assert_eq!(
        site.daemon.json(&["mac-nat", "ls"]),
        Value::Array(Vec::new())
    );
    // A TAP's own MAC is its sandbox's, so another has to be named.
    let named = "02:00:00:00:77:01";
    site.daemon.run(&["port", "set", "a", "mac-nat", named]);
    let shown = site.daemon.json(&["port", "show", "a"]);
    assert_eq!(shown["mac_nat"], named);
    assert!(ping(&a, ip(LAN), 56), "a station may be behind it as well");
}
