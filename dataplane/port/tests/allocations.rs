//! Receiving and sending allocate nothing once the buffers exist, on every backend.
//!
//! The counter is the process's allocator, counting the calling thread alone.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use common::{in_namespace, ip};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::conformance::{numbered, wait};
use dataplane_port::fault::{FaultRates, Faulty};
use dataplane_port::memory::MemoryPort;
use dataplane_port::packet::{PacketBuilder, PacketSocket, Rings};
use dataplane_port::tap::Tap;
use dataplane_port::xdp::XdpSocket;
use dataplane_port::{BATCH_MAX, Batch, Capabilities, PortIo};

/// Rounds after which every buffer has been used.
const WARM_UP: u32 = 200;
const ROUNDS: u32 = 500;

/// Counts what `work` allocates.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = counting::of_this_thread();
    work();
    counting::of_this_thread() - before
}

/// Sends a batch by one port and receives it by another, again and again.
fn check(near: &mut dyn PortIo, far: &mut dyn PortIo) {
    let mut batch = Batch::new();
    let mut frames: Vec<_> = (0..BATCH_MAX as u32)
        .map(|number| FrameBuf::from_bytes(&numbered(200, number)))
        .collect();
    let mut round = || {
        let mut sent = 0;
        let mut received = 0;
        let done = wait(|| {
            if sent < frames.len() {
                sent += near.send(&mut frames[sent..]).unwrap_or(0);
            }
            received += far.recv(&mut batch).unwrap_or(0);
            batch.clear();
            (received == frames.len()).then_some(())
        });
        assert!(done.is_some(), "{received} of {} arrived", frames.len());
    };
    for _ in 0..WARM_UP {
        round();
    }
    let count = allocations(|| {
        for _ in 0..ROUNDS {
            round();
        }
    });
    assert_eq!(count, 0, "in {ROUNDS} rounds");
}

#[test]
fn tap_and_packet_socket() {
    in_namespace(|| {
        let mut tap = Tap::create("tap0", 1).unwrap().remove(0);
        ip("link set tap0 up");
        let mut socket = PacketSocket::open("tap0").unwrap();
        check(&mut tap, &mut socket);
        check(&mut socket, &mut tap);
    });
}

#[test]
fn packet_sockets_with_rings() {
    in_namespace(|| {
        ip("link add a0 type veth peer name b0");
        ip("link set a0 up");
        ip("link set b0 up");
        let open = |name| {
            let builder = PacketBuilder::new(name).rings(Rings::Wanted);
            builder.open().unwrap().remove(0)
        };
        let (mut near, mut far) = (open("a0"), open("b0"));
        check(&mut near, &mut far);
        check(&mut far, &mut near);
    });
}

#[test]
fn xdp_socket() {
    in_namespace(|| {
        ip("link add a0 type veth peer name b0");
        ip("link set a0 up");
        ip("link set b0 up");
        let mut xdp = XdpSocket::open("a0").unwrap();
        let mut socket = PacketSocket::open("b0").unwrap();
        check(&mut xdp, &mut socket);
        check(&mut socket, &mut xdp);
    });
}

#[test]
fn memory_with_and_without_faults() {
    let rates = FaultRates {
        reordering: dataplane_port::fault::PER / 5,
        corruption: dataplane_port::fault::PER / 5,
        ..FaultRates::NONE
    };
    let (port, peer) = MemoryPort::pair(Capabilities::plain(1_514), BATCH_MAX);
    let mut port = Faulty::new(port, 3, rates, rates);
    let mut batch = Batch::new();
    let mut frame = [FrameBuf::from_bytes(&numbered(200, 1))];
    let mut taken = FrameBuf::new();
    let mut round = || {
        for _ in 0..BATCH_MAX / 4 {
            assert!(peer.inject(frame[0].bytes(), Offload::NONE));
        }
        while port.recv(&mut batch).is_ok() {
            batch.clear();
        }
        for _ in 0..BATCH_MAX / 4 {
            assert_eq!(port.send(&mut frame).unwrap(), 1);
            while peer.take_into(&mut taken) {}
        }
    };
    for _ in 0..WARM_UP {
        round();
    }
    let count = allocations(|| {
        for _ in 0..ROUNDS {
            round();
        }
    });
    assert_eq!(count, 0);
}
