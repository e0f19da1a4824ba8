//! Ports whose frames come when somebody asks for them.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::topology::{Domain, Port, Role, Topology};
use dataplane_port::{Batch, Capabilities, PortIo};
use world::mac;

const DOMAIN: DomainId = DomainId(1);
const FETCHING: PortId = PortId(1);
const PLAIN: PortId = PortId(2);
const FRAME_SIZE: usize = 60;
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A port of datagrams that a worker can sleep on.
struct Cable {
    near: UnixDatagram,
    /// Of a port that is busy polled: its far end, from which the first poll fetches a frame, and how often
    /// it was polled.
    fetched: Option<(UnixDatagram, Arc<AtomicUsize>)>,
}

impl Cable {
    /// The port, and its far end.
    fn new() -> (Self, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        for end in [&near, &far] {
            end.set_nonblocking(true).unwrap();
        }
        let fetched = None;
        (Self { near, fetched }, far)
    }
}

impl PortIo for Cable {
    fn capabilities(&self) -> Capabilities {
        Capabilities::plain(FRAME_SIZE)
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let mut buf = rx.take_buffer().ok_or(io::ErrorKind::OutOfMemory)?;
        match self.near.recv(buf.receive_area(0)) {
            Ok(size) => {
                buf.set_received(size, Offload::NONE);
                rx.push(buf);
                Ok(1)
            }
            Err(error) => {
                rx.recycle(buf);
                Err(error)
            }
        }
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        self.near.send(frames[0].bytes()).map(|_| 1)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.near.as_fd())
    }

    fn busy_polled(&self) -> bool {
        self.fetched.is_some()
    }

    fn busy_poll(&mut self) {
        let (far, polls) = self.fetched.as_ref().unwrap();
        if polls.fetch_add(1, Ordering::Relaxed) == 0 {
            far.send(&broadcast(1)).unwrap();
        }
    }
}

/// A frame of a port for everybody.
fn broadcast(from: u8) -> Vec<u8> {
    let mut frame = vec![0xff; FRAME_SIZE];
    frame[6..12].copy_from_slice(&mac(from).0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn arrives(far: &UnixDatagram, from: u8) {
    let deadline = Instant::now() + WAIT_MAX;
    let mut bytes = [0; FRAME_SIZE];
    while far.recv(&mut bytes).is_err() || bytes[..] != broadcast(from) {
        assert!(Instant::now() < deadline, "not in time: from {from}");
        std::thread::yield_now();
    }
}

/// A dataplane with a port that is busy polled and one that is not.
struct World {
    dataplane: Dataplane,
    fetching: UnixDatagram,
    polls: Arc<AtomicUsize>,
    plain: UnixDatagram,
}

fn world(waiting: Waiting) -> World {
    let config = Config {
        workers: 1,
        waiting,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let mut topology = Topology::default();
    topology.put_domain(Domain::new(DOMAIN, "small"));
    for port in [FETCHING, PLAIN] {
        topology.put_port(Port::new(port, "p", Role::Bridge(DOMAIN)));
    }
    topology.finish();
    dataplane.install(topology).unwrap();
    let (cable, plain) = Cable::new();
    dataplane.add_port(PLAIN, vec![Box::new(cable)]).unwrap();
    let (mut cable, fetching) = Cable::new();
    let polls = Arc::<AtomicUsize>::default();
    cable.fetched = Some((fetching.try_clone().unwrap(), Arc::clone(&polls)));
    dataplane.add_port(FETCHING, vec![Box::new(cable)]).unwrap();
    World {
        dataplane,
        fetching,
        polls,
        plain,
    }
}

#[test]
fn a_worker_that_spins_fetches_frames_and_one_that_sleeps_does_not() {
    let spin = Duration::from_millis(200);
    for waiting in [Waiting::Always, Waiting::Adaptive { spin }] {
        let world = world(waiting);
        // One that adapts spins after this.
        world.plain.send(&broadcast(2)).unwrap();
        arrives(&world.fetching, 2);
        arrives(&world.plain, 1);
        world.dataplane.remove_port(FETCHING).unwrap();
        let polls = world.polls.load(Ordering::Relaxed);
        assert!(polls > 0, "{waiting:?}");
        // It goes on, with nobody left to ask.
        let (cable, far) = Cable::new();
        world
            .dataplane
            .add_port(FETCHING, vec![Box::new(cable)])
            .unwrap();
        world.plain.send(&broadcast(2)).unwrap();
        arrives(&far, 2);
        assert_eq!(world.polls.load(Ordering::Relaxed), polls);
    }
    let world = world(Waiting::Sleep);
    for _ in 0..2 {
        world.plain.send(&broadcast(2)).unwrap();
        arrives(&world.fetching, 2);
    }
    assert_eq!(world.polls.load(Ordering::Relaxed), 0);
}
