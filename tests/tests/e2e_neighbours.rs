//! Who answers for whom, and who is told: ARP and neighbour discovery between real namespaces.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::addr::MacAddr;
use dataplane_core::headers::{Headers, L3};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::talk::{Witness, ping};
use tests::wire;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;

struct Station {
    ns: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    mac: MacAddr,
}

struct Floor {
    daemon: Daemon,
    lab: Lab,
}

impl Floor {
    fn new(name: &str, options: &[&str]) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
        let create = "network create n --subnet 10.88.0.0/24 --subnet6 fd00:88::/64";
        let words: Vec<&str> = create.split(' ').chain(options.iter().copied()).collect();
        daemon.run(&words);
        Self { daemon, lab }
    }

    fn attach(&self, sandbox: &str, more: &[&str]) -> Station {
        let ns = self.lab.namespace(sandbox);
        let path = ns.path();
        let words = tests::daemon::attach_words(&path, "n", sandbox);
        self.made(ns.clone(), &[&words[..], more].concat())
    }

    fn made(&self, ns: Namespace, words: &[&str]) -> Station {
        let made = self.daemon.json(words);
        let address = |at: usize| {
            let text = made["addresses"][at].as_str().unwrap();
            ip(text.split('/').next().unwrap())
        };
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(0), address(1)) else {
            panic!("{made}")
        };
        let mac = ns.mac("eth0");
        Station { ns, v4, v6, mac }
    }

    /// The texts of the events of a kind.
    fn told(&self, kind: &str) -> Vec<String> {
        let listed = self.daemon.run(&["events", "--kind", kind, "--json"]);
        let events = listed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        events
            .map(|event: Value| event["text"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// The IPv6 address that a frame of neighbour discovery is about, with its flags.
fn discovery(frame: &[u8], kind: u8) -> Option<(Ipv6Addr, u8)> {
    let icmp = Headers::parse(frame).ok()?.l4.ok()?.offset;
    let target: [u8; 16] = frame.get(icmp + 8..icmp + 24)?.try_into().ok()?;
    (frame[20] == 58 && frame[icmp] == kind).then(|| (target.into(), frame[icmp + 4]))
}

/// The address that an ARP message asks for, and who asks.
fn asked(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    match Headers::parse(frame).ok()?.l3 {
        Ok(L3::Arp(arp)) if arp.operation == 1 => Some((arp.target, arp.sender_mac)),
        _ => None,
    }
}

/// Whether a bystander has heard a station ask for another by the time that a frame which is sent
/// to it alone has come.
fn hears_questions(bystander: (&mut Witness, &Station), asker: &Station, about: &Station) -> bool {
    let (witness, station) = bystander;
    let mut last = [station.mac.0, asker.mac.0].concat();
    last.extend([0x88, 0xb5]);
    last.resize(60, 0x5a);
    Witness::new(&asker.ns, "eth0").send(&last);
    let (mut heard, mut over) = (false, false);
    wait_until(DEADLINE, "the frame behind the questions", || {
        witness.look(|frame| {
            heard |= asked(frame) == Some((about.v4, asker.mac));
            heard |= discovery(frame, SOLICITATION).is_some_and(|(to, _)| to == about.v6);
            over |= frame == last;
        });
        over
    });
    heard
}

#[test]
fn with_suppression_nobody_hears_who_is_looked_for() {
    if !require_root("with_suppression_nobody_hears_who_is_looked_for") {
        return;
    }
    let floor = Floor::new("suppress", &["--arp-suppression", "on"]);
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| floor.attach(name, &[]));
    let mut witness = Witness::new(&c.ns, "eth0");
    for address in [IpAddr::V4(b.v4), b.v6.into()] {
        wait_until(DEADLINE, "b answers", || ping(&a.ns, address, 56));
    }
    assert!(!hears_questions((&mut witness, &c), &a, &b));
    let status = floor.daemon.json(&["status"]);
    let spared = status["spared"].as_array().unwrap();
    let mut counts = spared
        .iter()
        .filter(|count| count["label"] == "answered_for");
    assert!(counts.next().unwrap()["count"].as_u64() >= Some(2));
    floor
        .daemon
        .run(&["network", "set", "n", "--arp-suppression", "off"]);
    for address in [IpAddr::V4(d.v4), d.v6.into()] {
        wait_until(DEADLINE, "d answers", || ping(&a.ns, address, 56));
    }
    assert!(hears_questions((&mut witness, &c), &a, &d), "flooded again");
}

#[test]
fn an_address_that_another_has_is_told_of_when_it_is_claimed() {
    if !require_root("an_address_that_another_has_is_told_of_when_it_is_claimed") {
        return;
    }
    let floor = Floor::new("claims", &[]);
    let [owner, secured, open] = ["owner", "secured", "open"].map(|name| floor.attach(name, &[]));
    floor
        .daemon
        .run(&["port", "set", "open", "port-security", "off"]);
    for claimant in [&secured, &open] {
        let claim = wire::arp_request(claimant.mac, owner.v4, Ipv4Addr::new(10, 88, 0, 1));
        Witness::new(&claimant.ns, "eth0").send(&claim);
    }
    wait_until(DEADLINE, "both claims are told", || {
        floor.told("duplicate_address").len() == 2
    });
    let texts = floor.told("duplicate_address");
    for (claimant, name) in [(&secured, "secured"), (&open, "open")] {
        let wanted = format!(
            "{} is that of 'owner' ({}), and {} on port '{name}' claims to have it",
            owner.v4, owner.mac, claimant.mac
        );
        assert!(texts.contains(&wanted), "{texts:?} without {wanted}");
    }
}

#[test]
fn neighbours_are_told_where_an_address_is_when_its_endpoint_comes_and_when_it_is_replaced() {
    let name =
        "neighbours_are_told_where_an_address_is_when_its_endpoint_comes_and_when_it_is_replaced";
    if !require_root(name) {
        return;
    }
    let floor = Floor::new("announced", &[]);
    let bystander = floor.attach("bystander", &[]);
    let mut witness = Witness::new(&bystander.ns, "eth0");
    let first = floor.attach("web", &[]);
    let mut is_announced = |station: &Station| {
        let (mut v4, mut v6) = (false, false);
        wait_until(DEADLINE, "an announcement of both addresses", || {
            witness.look(|frame| {
                let source = MacAddr(*frame[6..].first_chunk().unwrap());
                v4 |= asked(frame) == Some((station.v4, station.mac));
                let advertised = discovery(frame, ADVERTISEMENT);
                v6 |= source == station.mac && advertised == Some((station.v6, OVERRIDE));
            });
            v4 && v6
        });
    };
    is_announced(&first);
    assert!(ping(&bystander.ns, first.v4.into(), 56));
    let ns = floor.lab.namespace("web2");
    let path = ns.path();
    let mac = "02:00:00:00:77:01";
    let words = tests::daemon::attach_words(&path, "n", "web");
    let second = floor.made(
        ns.clone(),
        &[&words[..], &["--replace", "--mac", mac]].concat(),
    );
    assert_eq!((second.v4, second.mac), (first.v4, mac.parse().unwrap()));
    is_announced(&second);
    assert!(ping(&bystander.ns, second.v4.into(), 56), "at once");
}
