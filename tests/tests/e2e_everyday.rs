//! Everyday things that the tutorials show with a bridge, on a network of ours: ports that come and go beside
//! others' traffic, counters, link-local addresses, the host's own addresses.

#![allow(clippy::unwrap_used)]

mod program;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tests::daemon::Daemon;
use tests::lab::{
    DEADLINE, Lab, Namespace, block_on, connect, ip, require_root, wait_for, wait_until,
};

use program::*;

/// Ports that come and go beside a stream.
const PORTS: usize = 20;
/// How long a stream may stand still meanwhile: far less than a retransmission after a loss in a burst
/// takes, and far more than a busy machine makes it wait.
const STILL_MAX: Duration = Duration::from_secs(1);

/// Covers: 28
#[test]
fn ports_come_and_go_beside_a_stream_that_does_not_notice() {
    if !require_root("ports_come_and_go_beside_a_stream_that_does_not_notice") {
        return;
    }
    let lab = Lab::new("hot");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    let _server = echo(&a, "0.0.0.0:80");
    let mut stream = b.run(|| connect(DEADLINE, "10.88.0.2:80".parse().unwrap()));
    assert_eq!(seen_on(&stream), ip("10.88.0.3"));
    stream.set_read_timeout(Some(STILL_MAX)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (ended, rounds) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let talker = {
        let (ended, rounds) = (Arc::clone(&ended), Arc::clone(&rounds));
        std::thread::spawn(move || {
            let mut block = [7; 4_096];
            while !ended.load(Ordering::Relaxed) {
                stream.write_all(&block).unwrap();
                stream.read_exact(&mut block).unwrap();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let others: Vec<Namespace> = (0..PORTS).map(|_| lab.namespace("other")).collect();
    let before = rounds.load(Ordering::Relaxed);
    for (number, other) in others.iter().enumerate() {
        daemon.attach(other, "n", &format!("other{number}"), &[]);
    }
    let names: Vec<String> = (0..PORTS).map(|number| format!("other{number}")).collect();
    for name in &names {
        daemon.run(&["detach", name]);
    }
    assert!(rounds.load(Ordering::Relaxed) > before, "it went on");
    ended.store(true, Ordering::Relaxed);
    talker.join().unwrap();
}

/// Covers: 30
#[test]
fn a_ports_counters_are_those_of_its_interface() {
    if !require_root("a_ports_counters_are_those_of_its_interface") {
        return;
    }
    let lab = Lab::new("counters");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &["--backend", "packet"]);
    let _server = echo(&a, "0.0.0.0:80");
    let mut stream = b.run(|| connect(DEADLINE, "10.88.0.2:80".parse().unwrap()));
    stream.write_all(&[7; 100_000]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_exact(&mut [0; 100_000]).unwrap();
    drop(stream);
    // Both sides of a cable count the same, with their ends swapped. The kernel asks its neighbours again at
    // times, so it is looked until nothing is under way.
    for (ns, name) in [(&a, "a"), (&b, "b")] {
        wait_until(DEADLINE, name, || {
            let own = ns.link("eth0").stats;
            let listed = daemon.json(&["port", "ls"]);
            let ports = listed.as_array().unwrap();
            let port = ports.iter().find(|port| port["name"] == name).unwrap();
            let count = |which: &str| port[which].as_u64().unwrap();
            assert!(
                count("rx_bytes") > 100_000 && count("tx_bytes") > 100_000,
                "{port}"
            );
            let there = [own.rx_frames, own.tx_frames];
            let here = ["tx_frames", "rx_frames"].map(count);
            there == here
        });
    }
}

/// Covers: 31
#[test]
fn link_local_addresses_reach_each_other() {
    if !require_root("link_local_addresses_reach_each_other") {
        return;
    }
    let lab = Lab::new("link-local");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &["--backend", "packet"]);
    for (one, two) in [(&a, &b), (&b, &a)] {
        let link = one.link("eth0").index;
        let there = wait_for(DEADLINE, "an address of the link", || {
            let addresses = block_on(one.netlink().addresses()).unwrap();
            let mut own = addresses.into_iter().filter(|own| own.link == link);
            own.find_map(|own| match own.prefix.address {
                IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            })
        });
        let _server = wait_for(DEADLINE, "the address is nobody else's", || {
            // Until duplicates were looked for, the address cannot be used.
            let bind = SocketAddr::from(SocketAddrV6::new(there, 80, 0, link));
            one.run(|| std::net::TcpListener::bind(bind)).ok()
        });
        let scope = two.link("eth0").index;
        let to = SocketAddr::from(SocketAddrV6::new(there, 80, 0, scope));
        let stream = two.run(|| connect(DEADLINE, to));
        assert!(matches!(stream.peer_addr(), Ok(peer) if peer.ip() == IpAddr::V6(there)));
    }
}

/// Covers: 63, 65
#[test]
fn a_sandbox_reaches_the_hosts_own_addresses_and_those_behind_it() {
    if !require_root("a_sandbox_reaches_the_hosts_own_addresses_and_those_behind_it") {
        return;
    }
    let lab = Lab::new("hosts-own");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    host.add_address("lo", "198.51.100.1/32");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let (_on_host, _behind) = (echo(&host, "0.0.0.0:22"), echo(&outside, "192.0.2.2:80"));
    for address in ["10.88.0.1:22", "192.0.2.1:22", "198.51.100.1:22"] {
        assert_eq!(seen_address(&a, address), ip("10.88.0.2"), "{address}");
    }
    assert_eq!(
        seen_address(&a, "192.0.2.2:80"),
        ip("192.0.2.1"),
        "translated"
    );
    let patience = Duration::from_millis(300);
    let closed = a.run(|| TcpStream::connect_timeout(&"192.0.2.1:23".parse().unwrap(), patience));
    assert_eq!(
        closed.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}
