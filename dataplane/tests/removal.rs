//! Many ports that leave at once, among others that stay.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::{Config, Dataplane, REMOVED_PER_TURN};
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::topology::{AGEING_DEFAULT, Domain, Port, Role, Topology};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Batch, Capabilities, PortIo};
use world::mac;

/// More than two turns take.
const LEAVING: u16 = 2 * REMOVED_PER_TURN as u16 + 3;
const ALL: u16 = LEAVING + 2;
const DOMAIN: DomainId = DomainId(1);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A port that tells when a worker lets go of it.
struct Told {
    port: MemoryPort,
    closed: Arc<AtomicUsize>,
}

impl PortIo for Told {
    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        self.port.recv(rx)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        self.port.send(frames)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.port.readiness()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

fn frame(from: u16, to: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&mac(u8::try_from(from).unwrap()).0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn ports_that_leave_together_are_closed_and_forgotten_and_the_others_go_on() {
    let config = Config {
        workers: 2,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let closed = Arc::new(AtomicUsize::new(0));
    let mut topology = Topology::default();
    topology.put_domain(Domain::new(DOMAIN, "large"));
    let mut peers: Vec<MemoryPeer> = Vec::new();
    for port in (1..=ALL).map(PortId) {
        let (memory, peer) = MemoryPort::pair(Capabilities::plain(1518), 256);
        let told = Told {
            port: memory,
            closed: Arc::clone(&closed),
        };
        dataplane.add_port(port, vec![Box::new(told)]).unwrap();
        topology.put_port(Port::new(port, "p", Role::Bridge(DOMAIN)));
        peers.push(peer);
    }
    topology.finish();
    dataplane.install(topology).unwrap();
    for (port, peer) in (1..=ALL).zip(&peers) {
        assert!(peer.inject(&frame(port, [0xff; 6]), Offload::NONE));
    }
    let stations = || {
        let rows = dataplane
            .fdb()
            .rows(DOMAIN, dataplane.now(), AGEING_DEFAULT);
        rows.len()
    };
    wait_until("every station is known", || stations() == usize::from(ALL));
    let leaving: Vec<PortId> = (1..=LEAVING).map(PortId).collect();
    dataplane.remove_ports(&leaving).unwrap();
    assert_eq!(closed.load(Ordering::Relaxed), usize::from(LEAVING));
    assert_eq!(stations(), 2, "those of the ports that stay");
    let stats = dataplane.stats();
    let left: Vec<u16> = stats.ports.iter().map(|port| port.port.0).collect();
    assert_eq!(left, [LEAVING + 1, ALL]);
    assert_eq!(stats.retired.rx_frames, u64::from(LEAVING));
    let staying = &peers[usize::from(LEAVING)..];
    let wanted = frame(LEAVING + 1, mac(u8::try_from(ALL).unwrap()).0);
    assert!(staying[0].inject(&wanted, Offload::NONE));
    wait_until("the others talk", || {
        std::iter::from_fn(|| staying[1].take()).any(|(bytes, _)| bytes == wanted)
    });
    dataplane.remove_ports(&[]).unwrap();
    // One that is not there is passed over.
    dataplane.remove_ports(&[PortId(1), PortId(ALL)]).unwrap();
    assert_eq!(closed.load(Ordering::Relaxed), usize::from(LEAVING) + 1);
}
