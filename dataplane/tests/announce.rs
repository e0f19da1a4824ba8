//! What the switch itself says reaches every other port of the network, and no port else.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::stats::Stats;
use dataplane::{ANNOUNCED_AT_ONCE, Config, Dataplane, Waiting};
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::topology::{Domain, Port, Role, Topology};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use world::{ip, mac};

#[test]
fn an_announcement_reaches_the_other_ports_of_the_network_and_no_others() {
    let config = Config {
        workers: 1,
        waiting: Waiting::Sleep,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let mut peers: Vec<(u16, MemoryPeer)> = Vec::new();
    for port in 1..=5 {
        let (io, peer) = MemoryPort::pair(Capabilities::plain(1518), 16);
        let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
        dataplane.add_port(PortId(port), queues).unwrap();
        peers.push((port, peer));
    }
    dataplane.install(world::topology()).unwrap();
    dataplane
        .announce(PortId(1), mac(1), ip("10.1.0.2"))
        .unwrap();
    dataplane
        .announce(PortId(1), mac(1), ip("fd00:1::2"))
        .unwrap();
    // Acknowledged means sent where ports are few: nothing has to be waited for.
    let got: Vec<(u16, usize)> = peers
        .iter()
        .map(|(port, peer)| (*port, std::iter::from_fn(|| peer.take()).count()))
        .collect();
    assert_eq!(got, [(1, 0), (2, 2), (3, 2), (4, 0), (5, 0)]);
    let stats = dataplane.stats();
    stats.check_laws().unwrap();
    assert_eq!(stats.rx, 0, "no port received it");
    dataplane
        .announce(PortId(77), mac(1), ip("10.1.0.2"))
        .unwrap();
}

/// Ports of the large network, more than are told at once, and as many again.
const MANY: u16 = 2 * ANNOUNCED_AT_ONCE as u16 + 5;

#[test]
fn in_a_large_network_every_port_is_told_once_in_the_turns_that_follow() {
    let config = Config {
        workers: 1,
        waiting: Waiting::Sleep,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let mut topology = Topology::default();
    topology.put_domain(Domain::new(DomainId(1), "large"));
    let mut peers: Vec<MemoryPeer> = Vec::new();
    for port in (1..=MANY).map(PortId) {
        let (io, peer) = MemoryPort::pair(Capabilities::plain(1518), 16);
        dataplane.add_port(port, vec![Box::new(io)]).unwrap();
        topology.put_port(Port::new(port, "p", Role::Bridge(DomainId(1))));
        peers.push(peer);
    }
    topology.finish();
    dataplane.install(topology).unwrap();
    // Two, of which the first is on its way when the second comes: that goes to the first ports at once, too.
    for last in [2, 3] {
        let address = ip(&format!("10.1.0.{last}"));
        dataplane.announce(PortId(last), mac(1), address).unwrap();
    }
    let at_once = peers[0].pending();
    assert_eq!(at_once, 2);
    let deadline = Instant::now() + Duration::from_secs(10);
    let sent = |stats: &Stats| stats.ports.iter().map(|port| port.sent_frames).sum::<u64>();
    let all = 2 * (u64::from(MANY) - 1);
    while sent(&dataplane.stats()) < all {
        assert!(Instant::now() < deadline, "{}", sent(&dataplane.stats()));
        std::thread::yield_now();
    }
    for (port, peer) in (1..=MANY).zip(&peers) {
        let got = std::iter::from_fn(|| peer.take()).count();
        assert_eq!(
            got,
            if [2, 3].contains(&port) { 1 } else { 2 },
            "port {port}"
        );
    }
    dataplane.stats().check_laws().unwrap();
    // One whose port goes meanwhile ends, and holds up nobody.
    let told = |peer: &MemoryPeer, address: [u8; 4]| {
        std::iter::from_fn(|| peer.take()).any(|(bytes, _)| bytes.ends_with(&address))
    };
    dataplane
        .announce(PortId(4), mac(1), ip("10.1.0.4"))
        .unwrap();
    dataplane.remove_port(PortId(4)).unwrap();
    dataplane
        .announce(PortId(5), mac(1), ip("10.1.0.5"))
        .unwrap();
    while !told(&peers[usize::from(MANY) - 1], [10, 1, 0, 5]) {
        assert!(Instant::now() < deadline, "port {MANY} was not told");
        std::thread::yield_now();
    }
}
