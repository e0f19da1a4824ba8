//! One suite, every backend, as a table.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use control::link::VethEnd;
use dataplane_core::frame::FRAME_SIZE_MAX;
use dataplane_port::conformance::{Peer, PortPeer, Subject};
use dataplane_port::fault::{FaultRates, Faulty};
use dataplane_port::memory::MemoryPort;
use dataplane_port::packet::{PacketBuilder, PacketSocket, Rings};
use dataplane_port::pcap::{PcapWriter, Recorder};
use dataplane_port::tap::Tap;
use dataplane_port::tap_plain::PlainTap;
use dataplane_port::xdp::XdpBuilder;
use dataplane_port::{BATCH_MAX, Capabilities, PortIo};
use tests::lab::{Lab, Namespace, block_on, require_root};

/// Largest MTU of the cables under test, and the frame that it carries.
const MTU: u32 = 9_000;
const PLAIN_SIZE_MAX: usize = MTU as usize + 14;

type Check<P, R> = (&'static str, fn(Subject<P, R>));

/// The suite, by name.
fn checks<P: PortIo, R: Peer>() -> Vec<Check<P, R>> {
    vec![
        ("would block", Subject::drained_port_would_block),
        ("sizes", Subject::every_size_passes_both_ways),
        ("tags", Subject::tags_stay_in_the_bytes),
        (
            "checksums",
            Subject::unfinished_checksums_pass_or_are_finished,
        ),
        ("GSO", Subject::gso_frames_pass_with_their_description),
        ("order", Subject::order_is_kept),
        ("full queue", Subject::full_queue_refuses_and_recovers),
        (
            "bad frames",
            Subject::bad_frames_are_refused_without_a_panic,
        ),
        ("readiness", Subject::readiness_follows_the_frames),
        ("unplugged", Subject::vanished_device_is_an_error),
    ]
}

/// One backend's line of the table.
struct Row {
    backend: &'static str,
    results: Vec<(&'static str, bool)>,
}

fn row<P: PortIo, R: Peer>(backend: &'static str, make: impl Fn() -> Subject<P, R>) -> Row {
    let run = |(name, check): Check<P, R>| {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(make())));
        (name, outcome.is_ok())
    };
    Row {
        backend,
        results: checks().into_iter().map(run).collect(),
    }
}

fn memory() -> (MemoryPort, dataplane_port::memory::MemoryPeer) {
    MemoryPort::pair(Capabilities::offloading(FRAME_SIZE_MAX), 2 * BATCH_MAX)
}

/// The backends that need no kernel.
fn pure_rows() -> Vec<Row> {
    vec![
        row("memory", || {
            let (port, peer) = memory();
            Subject::new(port, peer, PLAIN_SIZE_MAX)
        }),
        row("fault (none)", || {
            let (port, peer) = memory();
            let port = Faulty::new(port, 1, FaultRates::NONE, FaultRates::NONE);
            Subject::new(port, peer, PLAIN_SIZE_MAX)
        }),
        row("pcap recorder", || {
            let (port, peer) = memory();
            let port = Recorder::new(port, PcapWriter::new(Vec::new()).unwrap());
            Subject::new(port, peer, PLAIN_SIZE_MAX)
        }),
    ]
}

/// The kernel's backends, in a namespace where nobody else speaks.
fn kernel_rows(ns: &Namespace) -> Vec<Row> {
    for scope in ["all", "default"] {
        ns.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    // A name of its own for each check: a device lives on for a moment after its descriptor.
    let devices = Cell::new(0);
    let next = |stem: &str| {
        devices.set(devices.get() + 1);
        format!("{stem}{}", devices.get())
    };
    let ready = |name: &str| {
        ns.set_mtu(name, MTU);
        ns.set_up(name);
    };
    let unplug = |name: String| {
        move || {
            let index = ns.link(&name).index;
            block_on(ns.netlink().delete(index)).unwrap();
        }
    };
    let veth = |name: &str, peer: &str| {
        let end = |name| VethEnd {
            name,
            mac: None,
            mtu: MTU,
        };
        let made = ns.netlink().create_veth(end(name), end(peer), ns.netns());
        block_on(made).unwrap();
        ns.set_up(name);
        ns.set_up(peer);
    };
    vec![
        row("tap", || {
            let name = next("tap");
            let tap = Tap::create(&name, 1).unwrap().remove(0);
            ready(&name);
            let far_end = PacketSocket::open(&name).unwrap();
            Subject::new(tap, PortPeer::new(far_end, unplug(name)), PLAIN_SIZE_MAX)
        }),
        row("tap-plain", || {
            let name = next("plain");
            let tap = PlainTap::create(&name).unwrap();
            ready(&name);
            let far_end = PacketSocket::open(&name).unwrap();
            Subject::new(tap, PortPeer::new(far_end, unplug(name)), PLAIN_SIZE_MAX)
        }),
        row("packet on veth", || {
            let (name, peer) = (next("near"), next("far"));
            veth(&name, &peer);
            let port = PacketSocket::open(&name).unwrap();
            let far_end = PacketSocket::open(&peer).unwrap();
            Subject::new(port, PortPeer::new(far_end, unplug(name)), PLAIN_SIZE_MAX)
        }),
        row("packet, rings", || {
            let (name, peer) = (next("near"), next("far"));
            veth(&name, &peer);
            let builder = PacketBuilder::new(&name).rings(Rings::Wanted);
            let port = builder.open().unwrap().remove(0);
            let far_end = PacketSocket::open(&peer).unwrap();
            Subject::new(port, PortPeer::new(far_end, unplug(name)), PLAIN_SIZE_MAX)
        }),
        row("xdp on veth", || {
            let (name, peer) = (next("near"), next("far"));
            veth(&name, &peer);
            let builder = XdpBuilder::new(&name).mtu(MTU as u16);
            let port = builder.open().unwrap().remove(0);
            let far_end = PacketSocket::open(&peer).unwrap();
            Subject::new(port, PortPeer::new(far_end, unplug(name)), PLAIN_SIZE_MAX)
        }),
    ]
}

#[test]
fn every_backend_passes_every_check() {
    let mut rows = pure_rows();
    if require_root("every_backend_passes_every_check, the kernel's backends") {
        let lab = Lab::new("conformance");
        let ns = lab.namespace("devices");
        rows.extend(ns.run(|| kernel_rows(&ns)));
    }
    let mut table = format!("{:<16}", "backend");
    for (name, _) in &rows[0].results {
        let _ = write!(table, "{name:>13}");
    }
    for row in &rows {
        let _ = write!(table, "\n{:<16}", row.backend);
        for (_, passed) in &row.results {
            let _ = write!(table, "{:>13}", if *passed { "passed" } else { "FAILED" });
        }
    }
    println!("{table}");
    let failed = rows.iter().flat_map(|row| {
        let failed = row.results.iter().filter(|(_, passed)| !passed);
        failed.map(|(name, _)| (row.backend, *name))
    });
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{failed:?}");
}
