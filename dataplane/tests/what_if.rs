//! The answer to "what would happen?" is what then happens, and asking changes nothing.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::{DomainId, MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::trace::Step;
use dataplane_core::verdict::{Awaited, DropReason, Verdict};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use etherparse::PacketBuilder;
use world::{RED, UPLINK_MAC, gateway_mac, mac};

const PORTS: [u16; 7] = [1, 2, 3, 4, 5, 8, 9];
const DEADLINE: Duration = Duration::from_secs(10);

fn start() -> (Arc<Dataplane>, BTreeMap<u16, MemoryPeer>) {
    let config = Config {
        workers: 1,
        waiting: Waiting::Sleep,
        ..Config::default()
    };
    let dataplane = Arc::new(Dataplane::start(&config).unwrap());
    let mut peers = BTreeMap::new();
    for port in PORTS {
        let (io, peer) = MemoryPort::pair(Capabilities::plain(1518), 64);
        let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
        dataplane.add_port(PortId(port), queues).unwrap();
        peers.insert(port, peer);
    }
    dataplane.install(world::topology()).unwrap();
    (dataplane, peers)
}

/// A frame of a kind that the data path treats in a way of its own.
fn frame(rng: &mut fastrand::Rng) -> (u16, Vec<u8>) {
    let port = *rng.choice(&PORTS[..5]).unwrap() as u8;
    let (own, domain) = match port {
        1..=3 => ([10, 1, 0, port + 1], RED),
        4 => ([10, 2, 0, 2], DomainId(2)),
        _ => ([10, 3, 0, 2], DomainId(3)),
    };
    let gateway = gateway_mac(domain);
    let dsts: [[u8; 4]; 10] = [
        [192, 0, 2, 77],
        [10, 1, 0, 1],
        [10, 1, 0, 3],
        [10, 1, 0, 99],
        [10, 2, 0, 2],
        [192, 0, 2, 1],
        [192, 0, 2, 7],
        [198, 51, 100, 9],
        [203, 0, 113, 4],
        [224, 0, 0, 5],
    ];
    let dst = *rng.choice(&dsts).unwrap();
    let dst_mac = *rng
        .choice(&[gateway, gateway, mac(2), mac(3), MacAddr::BROADCAST])
        .unwrap();
    let src_mac = if rng.u8(..20) == 0 {
        MacAddr::ZERO
    } else {
        mac(port)
    };
    let l4_port = 50_000 + u16::from(rng.u8(..8));
    let ttl = if rng.u8(..10) == 0 { 1 } else { 64 };
    let builder = PacketBuilder::ethernet2(src_mac.0, dst_mac.0).ipv4(own, dst, ttl);
    let mut bytes = Vec::new();
    match rng.u8(..4) {
        0 => builder
            .udp(l4_port, 53)
            .write(&mut bytes, b"question")
            .unwrap(),
        1 => builder
            .tcp(l4_port, 80, 1, 1000)
            .write(&mut bytes, b"")
            .unwrap(),
        2 => builder
            .icmpv4_echo_request(l4_port, 1)
            .write(&mut bytes, b"ping")
            .unwrap(),
        _ => {
            // From outside, to what may be a mapping.
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xfe], UPLINK_MAC.0).ipv4(
                [198, 51, 100, 9],
                [192, 0, 2, 1],
                ttl,
            );
            builder
                .udp(53, if rng.bool() { l4_port } else { 22 })
                .write(&mut bytes, b"answer")
                .unwrap();
            return (9, bytes);
        }
    }
    if rng.u8(..12) == 0 {
        bytes.truncate(rng.usize(..bytes.len()));
    }
    (port.into(), bytes)
}

#[test]
fn what_is_foretold_is_what_happens_and_asking_changes_nothing() {
    let seed = std::env::var("SEED").map_or(42, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (dataplane, peers) = start();
    let stream = dataplane.trace(2048).unwrap();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..5_000 {
        let (port, bytes) = frame(&mut rng);
        let before = dataplane.state_hash();
        let mut what_if = dataplane.what_if();
        let foretold = what_if.ask(PortId(port), &bytes, Offload::NONE).unwrap();
        assert_eq!(
            dataplane.state_hash(),
            before,
            "round {round}: asking changed something"
        );
        assert!(peers[&port].inject(&bytes, Offload::NONE));
        let record = stream.records().recv_timeout(DEADLINE).unwrap();
        if record.verdict == Verdict::Drop(DropReason::NextHopUnresolved) {
            // How many frames wait is the worker's alone to know.
            assert_eq!(
                foretold.verdict,
                Verdict::Held(Awaited::NextHop),
                "round {round}"
            );
            *seen.entry("next_hop_unresolved".to_owned()).or_default() += 1;
            continue;
        }
        assert_eq!(record.verdict, foretold.verdict, "round {round}");
        assert_eq!(record.egress, foretold.egress, "round {round}");
        assert_eq!(record.after, foretold.frame, "round {round}");
        let told = |steps: &[Step]| steps.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>();
        assert_eq!(told(&record.steps), told(&foretold.steps), "round {round}");
        let kind = match record.verdict {
            Verdict::Drop(reason) => reason.label().to_owned(),
            other => other.kind().unwrap().label().to_owned(),
        };
        *seen.entry(kind).or_default() += 1;
        for peer in peers.values() {
            while peer.take().is_some() {}
        }
    }
    println!("covered: {seen:?}");
    let wanted = [
        "bridged",
        "flooded",
        "routed",
        "replied",
        "delivered",
        "held",
        "not_ours",
        "runt",
        "source_zero",
        "same_port",
        "network_isolated",
        "network_internal",
        "no_uplink_route",
        "martian_destination",
        "l3_malformed",
        "nat_no_mapping",
    ];
    // Not wanted: that more frames wait for a next hop than may takes a machine that sends them
    // within a second.
    let missing: Vec<_> = wanted
        .iter()
        .filter(|kind| !seen.contains_key(**kind))
        .collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
    drop(stream);
    let start = Instant::now();
    while let Err(broken) = dataplane.stats().check_laws() {
        assert!(start.elapsed() < DEADLINE, "{broken}");
        std::thread::yield_now();
    }
}
