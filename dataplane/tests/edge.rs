//! What was lost at the kernel's edge is counted once, wherever the queue goes.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use dataplane::{Config, Dataplane};
use dataplane_core::addr::PortId;
use dataplane_core::frame::{FRAME_SIZE_MAX, Offload};
use dataplane_port::Capabilities;
use dataplane_port::memory::{MemoryPeer, MemoryPort};

const PORT: PortId = PortId(1);
/// Frames that the port's queue holds.
const QUEUE: usize = 4;
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Sends until some frames found no room, and returns how many.
fn overrun(peer: &MemoryPeer) -> u64 {
    let frame = [0x02; 60];
    let mut refused = 0;
    let deadline = Instant::now() + WAIT_MAX;
    while refused < 10 {
        assert!(Instant::now() < deadline, "{refused} refused");
        refused += u64::from(!peer.inject(&frame, Offload::NONE));
    }
    refused
}

fn missed(dataplane: &Dataplane) -> u64 {
    dataplane.stats().port(PORT).unwrap().rx_missed
}

#[test]
fn frames_missed_are_told_within_a_second_and_once_wherever_the_queue_goes() {
    let config = Config {
        workers: 2,
        ..Config::default()
    };
    let dataplane = Dataplane::start(&config).unwrap();
    let (port, peer) = MemoryPort::pair(Capabilities::plain(FRAME_SIZE_MAX), QUEUE);
    dataplane.add_port(PORT, vec![Box::new(port)]).unwrap();
    let mut refused = overrun(&peer);
    let deadline = Instant::now() + WAIT_MAX;
    while missed(&dataplane) != refused {
        let missed = missed(&dataplane);
        assert!(Instant::now() < deadline, "{missed} of {refused}");
        std::thread::yield_now();
    }
    // The worker that gives the queue up counts what was lost until then, and the next from there.
    for worker in [1, 0, 1] {
        refused += overrun(&peer);
        dataplane.move_port(PORT, worker).unwrap();
        dataplane.move_port(PORT, 1 - worker).unwrap();
        assert_eq!(missed(&dataplane), refused);
    }
    refused += overrun(&peer);
    dataplane.remove_port(PORT).unwrap();
    assert_eq!(dataplane.stats().retired.rx_missed, refused);
}
