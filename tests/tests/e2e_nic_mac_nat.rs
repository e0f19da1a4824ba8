//! A network card behind which one MAC is admitted: the host, moved to a port beside its containers,
//! and the containers share the card's, and nothing else of theirs reaches the LAN.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use dataplane_core::addr::MacAddr;
use dataplane_core::headers::{Headers, L4Kind};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::conform::program;
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Namespace, block_on, ip, require_root, wait_for};
use tests::site::{LAN_LEASES, Site, footprint, serve_leases, settled};
use tests::talk::{ask_tcp, assert_one_mac, ping, serve_tcp, watch_others};

/// A move to the network `lan`, whose containers have addresses of both families.
const TAKE: &str = "network create lan --nic nic0 --take-address --no-confirm --mac-nat \
                    --subnet 192.168.7.0/24 --subnet6 fd00:7::/64 --ip-range 192.168.7.64/26";

fn take(daemon: &Daemon) {
    daemon.run(&TAKE.split_whitespace().collect::<Vec<_>>());
}

/// A container with addresses of both families, whose last group is the same.
fn container(site: &Site, daemon: &Daemon, name: &str, group: &str) -> Namespace {
    let ns = site.lab.namespace(name);
    let (v4, v6) = (format!("192.168.7.{group}"), format!("fd00:7::{group}"));
    daemon.attach(&ns, "lan", name, &["--ip", &v4, "--ip6", &v6]);
    ns
}

/// The one MAC of the card's port.
fn mac_nat(daemon: &Daemon) -> MacAddr {
    let shown = daemon.json(&["port", "show", "nic0"]);
    shown["mac_nat"].as_str().unwrap().parse().unwrap()
}

/// Host, containers and LAN reach each other by both families, whoever begins.
fn all_reach_each_other(site: &Site, a: &Namespace, b: &Namespace) {
    let (host, router) = (&site.host, &site.router);
    let lan = ["192.168.7.1", "fd00:7::1", "198.51.100.1"];
    let own = [host, a, b].into_iter().zip(["2", "70", "71"]);
    for (station, group) in own {
        for address in lan {
            assert!(ping(station, ip(address), 1_400), "{group} to {address}");
        }
        let own = [format!("192.168.7.{group}"), format!("fd00:7::{group}")];
        for (from, name) in [(router, "LAN"), (host, "host"), (a, "a"), (b, "b")] {
            for address in &own {
                assert!(ping(from, ip(address), 56), "{name} to {address}");
            }
        }
    }
}

/// Covers: 68, 70
#[test]
fn host_containers_and_lan_reach_each_other_and_the_lan_sees_the_cards_mac_alone() {
    let test = "host_containers_and_lan_reach_each_other_and_the_lan_sees_the_cards_mac_alone";
    if !require_root(test) {
        return;
    }
    let site = Site::addressed("nicmnat");
    let (host, router) = (&site.host, &site.router);
    let before = settled(host);
    let card = host.mac("nic0");
    let guard = watch_others(router, "eth0");
    let mut daemon = site.daemon(&[]);
    take(&daemon);
    assert_eq!(mac_nat(&daemon), card);
    assert_eq!(host.mac("cw-lan"), card, "the host shares it");
    let a = container(&site, &daemon, "a", "70");
    let b = container(&site, &daemon, "b", "71");
    all_reach_each_other(&site, &a, &b);
    // Hundreds of kilobytes: large frames, cut on the way out.
    for (server, address) in [
        (router, "192.168.7.1:80"),
        (host, "192.168.7.2:81"),
        (&a, "192.168.7.70:82"),
        (&b, "[fd00:7::71]:83"),
    ] {
        serve_tcp(server, address);
    }
    for (client, server, sees) in [
        (host, "192.168.7.1:80", "192.168.7.2"),
        (&a, "192.168.7.1:80", "192.168.7.70"),
        (router, "192.168.7.2:81", "192.168.7.1"),
        (&a, "192.168.7.2:81", "192.168.7.70"),
        (router, "192.168.7.70:82", "192.168.7.1"),
        (host, "192.168.7.70:82", "192.168.7.2"),
        (router, "[fd00:7::71]:83", "fd00:7::1"),
        (host, "[fd00:7::71]:83", "fd00:7::2"),
    ] {
        assert_eq!(ask_tcp(client, server, 300_000), ip(sees), "{server}");
    }
    let listed = daemon.json(&["mac-nat", "ls", "nic0"]);
    assert_eq!(listed[0]["owned"], true, "{listed}");

    daemon.kill();
    daemon.restart();
    assert_eq!(mac_nat(&daemon), card);
    all_reach_each_other(&site, &a, &b);
    let macs = [&a, &b].map(|container| container.mac("eth0"));
    assert_one_mac(guard, card, &macs);

    // Off, who comes is himself, and is seen.
    daemon.run(&["port", "set", "nic0", "mac-nat", "off"]);
    let guard = watch_others(router, "eth0");
    let late = container(&site, &daemon, "late", "72");
    assert!(ping(&late, ip("192.168.7.1"), 56));
    let seen = guard.end().kept;
    let mut sources = seen.iter().map(|frame| Headers::parse(frame).unwrap().src);
    let own = late.mac("eth0");
    assert!(sources.any(|src| src == own));
    daemon.run(&["detach", "a", "b", "late"]);
    daemon.run(&["network", "rm", "lan"]);
    assert_eq!(footprint(host), before);
}

#[test]
fn a_container_beside_the_host_gets_its_addresses_from_the_lan_by_the_cards_mac() {
    let test = "a_container_beside_the_host_gets_its_addresses_from_the_lan_by_the_cards_mac";
    if !require_root(test) {
        return;
    }
    let dnsmasq = program(test, "dnsmasq", "dnsmasq-base");
    let udhcpc = program(test, "udhcpc", "udhcpc");
    let (Some(dnsmasq), Some(_)) = (dnsmasq, udhcpc) else {
        return;
    };
    let site = Site::addressed("nicmnatdhcp");
    let (host, router) = (&site.host, &site.router);
    let card = host.mac("nic0");
    let _server = serve_leases(&site.lab, router, &dnsmasq, LAN_LEASES);
    let guard = watch_others(router, "eth0");
    let daemon = site.daemon(&[]);
    take(&daemon);
    let client = site.lab.namespace("client");
    let said = daemon.run(&["plug", "nic0", path_text(&client.path()), "dhcp"]);
    let address = said.split_whitespace().nth(2).unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let leased: u8 = address.strip_prefix("192.168.7.").unwrap().parse().unwrap();
    assert!((100..=150).contains(&leased), "{said}");
    let mac = client.mac("eth1");
    let advertised = wait_for(DEADLINE, "the client has an advertised address", || {
        let all = block_on(client.netlink().addresses()).unwrap();
        let ready = all.iter().filter(|address| !address.tentative);
        let mut ready = ready.map(|address| address.prefix.address);
        ready.find(|address| match address {
            IpAddr::V6(v6) => v6.segments()[..2] == [0xfd00, 7],
            IpAddr::V4(_) => false,
        })
    });
    for (from, to) in [
        (&client, ip("192.168.7.1")),
        (&client, ip("192.168.7.2")),
        (&client, ip("fd00:7::1")),
        (&client, ip("fd00:7::2")),
        (router, ip(address)),
        (router, advertised),
        (host, ip(address)),
        (host, advertised),
        (host, ip("192.168.7.1")),
    ] {
        assert!(ping(from, to, 1_400), "{to}");
    }
    let seen = assert_one_mac(guard, card, &[mac]);
    let asked = |frame: &&Vec<u8>| {
        let l4 = Headers::parse(frame).unwrap().l4;
        matches!(l4.map(|l4| l4.kind), Ok(L4Kind::Udp { dst, .. }) if dst.0 == 67)
    };
    assert!(seen.iter().any(|frame| asked(&frame)), "a client asks");
    // The server tells it from others by what it says of itself.
    let log = fs::read_to_string(site.lab.dir().join("dnsmasq.log")).unwrap();
    let leased = format!("DHCPACK(eth0) {address} {mac}");
    assert!(log.contains(&leased), "{leased}: {log}");
}

/// Has this thread, and what it starts, see a `/sys` by which `nic0` is a wireless card.
fn pretend_wireless() {
    const NONE: Option<&str> = None;
    let class = "/sys/class/net";
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, private, NONE).unwrap();
    mount(NONE, class, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
    fs::create_dir_all(Path::new(class).join("nic0/phy80211")).unwrap();
}

/// Covers: 68
#[test]
fn a_wireless_card_gets_one_mac_for_all_by_itself() {
    if !require_root("a_wireless_card_gets_one_mac_for_all_by_itself") {
        return;
    }
    let body = || {
        pretend_wireless();
        let site = Site::bare("nicwifi");
        let (card, router) = (site.host.mac("nic0"), &site.router);
        let guard = watch_others(router, "eth0");
        let daemon = site.daemon(&[]);
        let create =
            "network create lan --nic nic0 --subnet 192.168.7.0/24 --lan-gateway 192.168.7.1";
        daemon.run(&create.split(' ').collect::<Vec<_>>());
        assert_eq!(mac_nat(&daemon), card);
        let a = site.sandbox(&daemon, "lan", "a", "192.168.7.70");
        let b = site.sandbox(&daemon, "lan", "b", "192.168.7.71");
        for sandbox in [&a, &b] {
            assert!(ping(sandbox, ip("192.168.7.1"), 1_400));
            assert!(ping(sandbox, ip("198.51.100.1"), 56));
        }
        for address in ["192.168.7.70", "192.168.7.71"] {
            assert!(ping(router, ip(address), 56), "{address}");
        }
        assert!(ping(&a, ip("192.168.7.71"), 56));
        assert_one_mac(guard, card, &[a.mac("eth0"), b.mac("eth0")]);
    };
    thread::spawn(body).join().unwrap();
}
