//! A single-queue port changes its worker under load: nothing is lost, doubled or overtaken.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::{BATCH_MAX, Config, Dataplane, Error, Waiting};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use world::mac;

const DEADLINE: Duration = Duration::from_secs(60);
const WORKERS: usize = 3;
/// Frames on their way at a time: fewer than any queue between the two ports holds.
const WINDOW: u64 = 48;
/// Moves of one run.
const MOVES: usize = 300;

/// Ports 1 and 2 of network red, each with one queue.
fn rig() -> (Dataplane, Vec<MemoryPeer>) {
    let config = Config {
        workers: WORKERS,
        waiting: Waiting::Sleep,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let mut peers = Vec::new();
    for port in [1, 2] {
        let (io, peer) = MemoryPort::pair(Capabilities::offloading(70_000), 64);
        let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
        dataplane.add_port(PortId(port), queues).unwrap();
        peers.push(peer);
    }
    dataplane.install(world::topology()).unwrap();
    (dataplane, peers)
}

fn frame(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    bytes[..6].copy_from_slice(&mac(2).0);
    bytes[6..12].copy_from_slice(&mac(1).0);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[14..22].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[14..22].try_into().unwrap())
}

#[test]
fn frames_keep_their_order_while_ports_move() {
    let (dataplane, peers) = rig();
    // Port 2 makes its station known, so that nothing is flooded.
    let mut hello = frame(0);
    hello[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    hello[6..12].copy_from_slice(&mac(2).0);
    assert!(peers[1].inject(&hello, Offload::NONE));
    let deadline = Instant::now() + DEADLINE;
    while peers[0].take().is_none() {
        assert!(Instant::now() < deadline, "{:?}", dataplane.stats());
    }
    let moving = std::sync::atomic::AtomicBool::new(true);
    let (mut sent, mut received) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in 0..MOVES {
                let port = PortId(1 + (step % 2) as u16);
                dataplane.move_port(port, (step / 2) % WORKERS).unwrap();
            }
            moving.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        while moving.load(std::sync::atomic::Ordering::Relaxed) || received < sent {
            assert!(
                Instant::now() < deadline,
                "{received} of {sent}, {:?}",
                dataplane.stats()
            );
            let still = moving.load(std::sync::atomic::Ordering::Relaxed);
            if still && sent - received < WINDOW && peers[0].inject(&frame(sent), Offload::NONE) {
                sent += 1;
            }
            while let Some((bytes, _)) = peers[1].take() {
                assert_eq!(number_of(&bytes), received, "in order, once");
                received += 1;
            }
            std::thread::yield_now();
        }
    });
    println!("{MOVES} moves among {WORKERS} workers, {sent} frames, none lost or overtaken");
    assert!(sent > MOVES as u64, "the moves were under load");
    let deadline = Instant::now() + DEADLINE;
    while let Err(broken) = dataplane.stats().check_laws() {
        assert!(Instant::now() < deadline, "{broken}");
    }
}

#[test]
fn a_busy_port_leaves_a_busy_worker() {
    let (dataplane, peers) = rig();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Both ports on worker 0, and both busy.
        dataplane.move_port(PortId(1), 0).unwrap();
        dataplane.move_port(PortId(2), 0).unwrap();
        let load = |from: usize| {
            let (mut there, mut back) = (frame(0), frame(0));
            back[..6].copy_from_slice(&mac(1).0);
            back[6..12].copy_from_slice(&mac(2).0);
            let bytes = if from == 0 { &mut there } else { &mut back };
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for _ in 0..BATCH_MAX {
                    peers[from].inject(bytes, Offload::NONE);
                }
                // As many: to take all that comes would keep this side from sending at all.
                (0..BATCH_MAX).find(|_| peers[from].take().is_none());
            }
        };
        scope.spawn(move || load(0));
        scope.spawn(move || load(1));
        let deadline = Instant::now() + DEADLINE;
        let moved = loop {
            if let Some(moved) = dataplane.balance().unwrap() {
                break Some(moved);
            }
            if Instant::now() >= deadline {
                break None;
            }
            std::thread::yield_now();
        };
        let loads = dataplane.loads();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (port, worker) = moved.unwrap_or_else(|| panic!("nothing moved: {loads:?}"));
        println!("{port} moved to worker {worker}: {loads:?}");
        assert_ne!(worker, 0);
        assert!(loads.workers[0].busy >= dataplane::balance::BUSY_MIN);
    });
}

#[test]
fn impossible_configurations_are_refused() {
    for (config, named) in [
        (
            Config {
                batch_frames_max: 0,
                ..Config::default()
            },
            "batches of 0 frames",
        ),
        (
            Config {
                batch_frames_max: BATCH_MAX + 1,
                ..Config::default()
            },
            "batches of 65 frames",
        ),
    ] {
        let error = Dataplane::start(&config).unwrap_err();
        assert!(matches!(error, Error::BatchFrames(_)), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}
