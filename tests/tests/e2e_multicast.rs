//! Groups between real namespaces: the kernels of sandboxes join and leave by IGMP and MLD, and who
//! hears what is seen at their interfaces.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane_core::addr::MacAddr;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::talk::{Witness, ping};

const GROUP4: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 1, 3);
const PORT: u16 = 5_353;
/// A socket of IPv6 takes the port from IPv4 as well.
const PORT6: u16 = 5_354;
/// Hosts have ten seconds for the answer to each of the first two queries, before which everything is
/// flooded.
const TRUSTED: Duration = Duration::from_secs(40);

const NAMES: [&str; 4] = ["speaker", "member", "bystander", "router"];
const ALL: [&str; 3] = ["member", "bystander", "router"];

struct Floor {
    daemon: Daemon,
    stations: Vec<Station>,
    sent: u32,
    _lab: Lab,
}

struct Station {
    ns: Namespace,
    address: IpAddr,
    witness: Witness,
}

impl Floor {
    fn new(name: &str, options: &[&str]) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "1"]);
        let create = "network create tv --subnet 10.88.0.0/24 --subnet6 fd00:88::/64";
        let words: Vec<&str> = create.split(' ').chain(options.iter().copied()).collect();
        daemon.run(&words);
        let stations = NAMES.map(|name| {
            let ns = lab.namespace(name);
            let address = daemon.attach(&ns, "tv", name, &[]);
            let witness = Witness::new(&ns, "eth0");
            let address = ip(&address);
            Station {
                ns,
                address,
                witness,
            }
        });
        Self {
            daemon,
            stations: stations.into(),
            sent: 0,
            _lab: lab,
        }
    }

    fn station(&self, name: &str) -> &Station {
        let at = NAMES.iter().position(|known| *known == name);
        &self.stations[at.unwrap()]
    }

    fn mdb(&self) -> Value {
        let listed = self.daemon.json(&["mdb", "show", "tv"]);
        listed[0].clone()
    }

    /// Whether a port listens to a group.
    fn listens(&self, port: &str, group: IpAddr) -> bool {
        let mdb = self.mdb();
        let mut groups = mdb["groups"].as_array().unwrap().iter();
        groups.any(|row| row["port_name"] == port && row["group"] == group.to_string())
    }

    /// Waits until frames go by the MDB.
    fn wait_for_trust(&self) {
        wait_until(TRUSTED, "the MDB is trusted", || {
            let mdb = self.mdb();
            let queriers = mdb["queriers"].as_array().unwrap();
            queriers.len() == 2 && queriers.iter().all(|querier| querier["trusted"] == true)
        });
    }

    /// Sends a datagram to a group; who hears it. A broadcast that follows it by the same way tells
    /// when those who do not have had their chance.
    fn hearers(&mut self, group: IpAddr) -> Vec<&'static str> {
        self.sent += 1;
        let (mark, end) = (format!("to {group} {}", self.sent), [0x5a, self.sent as u8]);
        let speaker = &mut self.stations[0];
        speak(&speaker.ns, SocketAddr::new(group, PORT), &mark);
        let mut last = [MacAddr::BROADCAST.0, speaker.ns.mac("eth0").0].concat();
        last.extend([0x88, 0xb5]);
        last.extend(end.repeat(30));
        speaker.witness.send(&last);
        let mut hearers = Vec::new();
        for (station, name) in self.stations.iter_mut().zip(NAMES).skip(1) {
            let (mut heard, mut over) = (false, false);
            wait_until(DEADLINE, "what is behind the datagram", || {
                station.witness.look(|frame| {
                    heard |= frame.ends_with(mark.as_bytes());
                    over |= frame == last;
                });
                over
            });
            if heard {
                hearers.push(name);
            }
        }
        hearers
    }
}

/// Sends a datagram to a group by the only interface that there is.
fn speak(ns: &Namespace, to: SocketAddr, text: &str) {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns.run(|| UdpSocket::bind((any, 0))).unwrap();
    wait_until(DEADLINE, "an address to send from", || {
        socket.send_to(text.as_bytes(), to).is_ok()
    });
}

/// Joins a group, which ends with the socket.
fn join(station: &Station, group: IpAddr) -> UdpSocket {
    let index = station.ns.link("eth0").index;
    let address = station.address;
    station.ns.run(|| match (group, address) {
        (IpAddr::V4(group), IpAddr::V4(own)) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            socket.join_multicast_v4(&group, &own).unwrap();
            socket
        }
        (IpAddr::V6(group), _) => {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT6)).unwrap();
            socket.join_multicast_v6(&group, index).unwrap();
            socket
        }
        (IpAddr::V4(_), IpAddr::V6(_)) => panic!("{group} from IPv6"),
    })
}

#[test]
fn groups_go_to_those_who_joined_until_they_leave() {
    if !require_root("groups_go_to_those_who_joined_until_they_leave") {
        return;
    }
    let mut floor = Floor::new("mcast", &["--mcast-querier", "on"]);
    floor
        .daemon
        .run(&["port", "set", "router", "mcast-router", "on"]);
    for group in [GROUP4.into(), GROUP6.into()] {
        assert_eq!(
            floor.hearers(group),
            ALL,
            "the first query is not answered yet"
        );
    }
    let sockets: Vec<UdpSocket> = [GROUP4.into(), GROUP6.into()]
        .map(|group| join(floor.station("member"), group))
        .into();
    floor.wait_for_trust();
    for group in [IpAddr::V4(GROUP4), GROUP6.into()] {
        wait_until(DEADLINE, "the report is in", || {
            floor.listens("member", group)
        });
        assert_eq!(floor.hearers(group), ["member", "router"]);
        let other = match group {
            IpAddr::V4(_) => ip("239.9.9.9"),
            IpAddr::V6(_) => ip("ff15::9:9"),
        };
        assert_eq!(floor.hearers(other), ["router"], "nobody has joined it");
    }
    assert_eq!(
        floor.hearers(ip("224.0.0.251")),
        ALL,
        "never reported, so always flooded"
    );

    // Neighbours are found by groups of their own, which hosts report.
    let bystander = floor.station("bystander");
    bystander.ns.add_address("eth0", "fd00:88::b/64");
    floor
        .daemon
        .run(&["port", "set", "bystander", "port-security", "off"]);
    wait_until(DEADLINE, "an address that nobody knew", || {
        ping(&floor.station("speaker").ns, ip("fd00:88::b"), 56)
    });

    drop(sockets);
    for group in [IpAddr::V4(GROUP4), GROUP6.into()] {
        wait_until(DEADLINE, "nobody answers for the group", || {
            !floor.listens("member", group)
        });
        assert_eq!(floor.hearers(group), ["router"]);
    }
    // One that is set to listen says nothing itself.
    let set = |word, group| ["mdb", word, "tv", group, "--port", "bystander"];
    for group in ["239.9.9.8", "ff15::9:8"] {
        floor.daemon.run(&set("add", group));
        assert_eq!(floor.hearers(ip(group)), ["bystander", "router"]);
        floor.daemon.run(&set("del", group));
        assert_eq!(floor.hearers(ip(group)), ["router"]);
        let error = floor.daemon.refused(&set("del", group));
        assert!(error.contains("does not listen to"), "{error}");
    }
    for group in ["224.0.0.251", "10.88.0.9", "ff02::1", "everybody"] {
        let error = floor.daemon.refused(&set("add", group));
        assert!(error.contains("from 224.0.1.0 to"), "{error}");
    }
    let nobody = ["mdb", "add", "tv", "239.9.9.8", "--port", "nobody"];
    assert!(floor.daemon.refused(&nobody).contains("nobody"));
    let text = floor.daemon.run(&["mdb", "show"]);
    assert!(
        text.contains("querier on tv: 10.88.0.1 (igmp), this switch"),
        "{text}"
    );
    assert!(
        text.contains("router port on tv: router (igmp, permanent)"),
        "{text}"
    );
}

#[test]
fn without_a_querier_or_without_snooping_groups_are_flooded() {
    if !require_root("without_a_querier_or_without_snooping_groups_are_flooded") {
        return;
    }
    let mut floor = Floor::new("mcast-flood", &[]);
    let _socket = join(floor.station("member"), GROUP4.into());
    wait_until(DEADLINE, "the report is in", || {
        floor.listens("member", GROUP4.into())
    });
    assert_eq!(floor.hearers(GROUP4.into()), ALL);
    let text = floor.daemon.run(&["mdb", "show", "tv"]);
    assert!(
        text.contains("tv: all multicast is flooded: no querier"),
        "{text}"
    );
    let set = ["network", "set", "tv", "--mcast-snooping", "off"];
    floor.daemon.run(&set);
    wait_until(DEADLINE, "what was heard is forgotten", || {
        !floor.listens("member", GROUP4.into())
    });
    assert_eq!(floor.hearers(GROUP4.into()), ALL);
    let text = floor.daemon.run(&["mdb", "show", "tv"]);
    assert!(
        text.contains("tv: all multicast is flooded: snooping is off"),
        "{text}"
    );
    let error = floor.daemon.refused(&["mdb", "show", "nosuch"]);
    assert!(error.contains("nosuch"), "{error}");
}

#[test]
fn a_daemon_that_was_killed_asks_anew_and_finds_the_listeners() {
    if !require_root("a_daemon_that_was_killed_asks_anew_and_finds_the_listeners") {
        return;
    }
    let mut floor = Floor::new("mcast-kill", &["--mcast-querier", "on"]);
    let _sockets = [GROUP4.into(), GROUP6.into()].map(|group| join(floor.station("member"), group));
    let set_to = "239.7.7.7";
    floor
        .daemon
        .run(&["mdb", "add", "tv", set_to, "--port", "bystander"]);
    floor.daemon.kill();
    floor.daemon.restart();
    for group in [GROUP4.into(), GROUP6.into()] {
        assert!(
            floor.hearers(group).contains(&"member"),
            "flooded meanwhile"
        );
    }
    floor.wait_for_trust();
    for group in [IpAddr::V4(GROUP4), GROUP6.into()] {
        assert!(floor.listens("member", group), "asked twice by now");
        assert_eq!(floor.hearers(group), ["member"]);
    }
    assert_eq!(floor.hearers(ip(set_to)), ["bystander"]);
    for snooping in ["off", "on"] {
        let set = ["network", "set", "tv", "--mcast-snooping", snooping];
        floor.daemon.run(&set);
    }
    assert!(floor.listens("bystander", ip(set_to)), "kept meanwhile");
    let made = floor.daemon.run(&["network", "inspect", "tv"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made[0]["mcast_querier"], true);
    assert_eq!(made[0]["mcast_snooping"], true);
}
