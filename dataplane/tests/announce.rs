//! What the switch itself says reaches every other port of the network, and no port else.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::PortId;
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
    // Acknowledged means sent: nothing has to be waited for.
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
