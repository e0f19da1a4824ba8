//! Links of ports: what they hold, lose and double is counted, and nothing vanishes or is made up.

#![allow(clippy::unwrap_used)]

#[path = "../core/tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use dataplane::stats::EgressDrop;
use dataplane::{Config, Dataplane, LinkStats, QUEUE_MAX, Waiting};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::link::{Chance, Direction, Impairment, LINK_HELD_MAX, LinkSpec, LossModel};
use dataplane_core::topology::Topology;
use dataplane_core::verdict::{DropReason, VerdictKind};
use dataplane_port::memory::{MemoryPeer, MemoryPort};
use dataplane_port::{Capabilities, PortIo};
use etherparse::{SlicedPacket, TransportSlice};
use world::mac;
use world::packets::unfinished;

const DEADLINE: Duration = Duration::from_secs(20);
/// Frames of a port that wait in memory.
const QUEUE: usize = 8_192;
const DELAY: Duration = Duration::from_millis(30);

/// Ports 1, 2 and 3 of network red.
struct Rig {
    dataplane: Dataplane,
    peers: Vec<MemoryPeer>,
    topology: Topology,
}

impl Rig {
    fn new(workers: usize) -> Self {
        let config = Config {
            workers,
            waiting: Waiting::Sleep,
            ..Config::default()
        };
        let mut rig = Self {
            dataplane: Dataplane::start(&config).unwrap(),
            peers: Vec::new(),
            topology: world::topology(),
        };
        for port in 1..=3 {
            let peer = rig.plug(port);
            rig.peers.push(peer);
        }
        rig.install();
        rig
    }

    fn plug(&self, port: u16) -> MemoryPeer {
        let (io, peer) = MemoryPort::pair(Capabilities::offloading(70_000), QUEUE);
        let queues: Vec<Box<dyn PortIo>> = vec![Box::new(io)];
        self.dataplane.add_port(PortId(port), queues).unwrap();
        peer
    }

    fn install(&mut self) {
        self.topology.finish();
        self.dataplane.install(self.topology.clone()).unwrap();
    }

    fn set(&mut self, port: usize, direction: Direction, spec: LinkSpec) {
        let port = self.topology.ports[port].as_mut().unwrap();
        port.set_link(direction, spec);
        self.install();
    }

    fn impair(&mut self, port: usize, direction: Direction, impairment: Impairment) {
        impairment.check().unwrap();
        let limit = None;
        self.set(port, direction, LinkSpec { limit, impairment });
    }

    fn send(&self, port: usize, bytes: &[u8], offload: Offload) {
        let deadline = Instant::now() + DEADLINE;
        while !self.peers[port - 1].inject(bytes, offload) {
            assert!(Instant::now() < deadline, "port {port} takes no frame");
            std::thread::yield_now();
        }
    }

    fn send_numbered(&self, port: usize, dst: MacAddr, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let frame = numbered(mac(port as u8), dst, number);
            self.send(port, &frame, Offload::NONE);
        }
    }

    #[track_caller]
    fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}",
                self.dataplane.stats()
            );
            std::thread::yield_now();
        }
    }

    /// Waits until nothing is on its way, and checks every law.
    #[track_caller]
    fn settle(&self) {
        let idle = |rig: &Self| {
            let links = rig.dataplane.link_stats();
            links.iter().all(|link| link.held == 0) && rig.dataplane.stats().check_laws().is_ok()
        };
        self.wait_for("the laws", idle);
    }

    fn link(&self, port: u16, direction: Direction) -> LinkStats {
        let links = self.dataplane.link_stats();
        let ours = |link: &&LinkStats| (link.port, link.direction) == (PortId(port), direction);
        *links.iter().find(ours).unwrap()
    }

    /// The numbers of the frames that a port has been sent since the last call.
    fn taken(&self, port: usize) -> Vec<u32> {
        let frames = std::iter::from_fn(|| self.peers[port - 1].take());
        let number = |frame: Vec<u8>| u32::from_be_bytes(frame[14..18].try_into().unwrap());
        frames.map(|(frame, _)| number(frame)).collect()
    }
}

fn numbered(src: MacAddr, dst: MacAddr, number: u32) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(100, 0x5a);
    // As an EtherType that nothing looks into, with the number behind it.
    frame
}

fn delay() -> Impairment {
    Impairment {
        delay: DELAY,
        ..Impairment::default()
    }
}

/// The port whose link of a direction is on the way from port 1 to port 2.
fn end(direction: Direction) -> usize {
    match direction {
        Direction::In => 1,
        Direction::Out => 2,
    }
}

fn chance(text: &str) -> Chance {
    text.parse().unwrap()
}

#[test]
fn a_delayed_frame_is_held_and_leaves_in_its_order_and_not_before_its_time() {
    for direction in Direction::ALL {
        let mut rig = Rig::new(1);
        let port = end(direction);
        rig.impair(port, direction, delay());
        let start = Instant::now();
        rig.send_numbered(1, MacAddr::BROADCAST, 0..500);
        let entered = |rig: &Rig| rig.link(port as u16, direction).counts.entered == 500;
        rig.wait_for("every frame is on its way", entered);
        let mut got = rig.taken(2);
        if start.elapsed() < DELAY {
            assert_eq!(got, [], "{direction:?}");
        }
        rig.wait_for("every frame is through", |rig| {
            rig.link(port as u16, direction).passed == 500
        });
        assert!(start.elapsed() >= DELAY, "{direction:?}");
        rig.settle();
        got.extend(rig.taken(2));
        assert!(got.iter().copied().eq(0..500), "{direction:?}: in order");
        let stats = rig.dataplane.stats();
        let held = stats.verdict(VerdictKind::Held);
        match direction {
            Direction::In => assert_eq!((held, stats.released), (500, 500)),
            Direction::Out => assert_eq!((held, stats.released), (0, 0)),
        }
        let elsewhere = rig.taken(3);
        assert_eq!(elsewhere.len(), 500, "the others get theirs");
    }
}

#[test]
fn others_are_not_held_up_by_frames_that_are() {
    let mut rig = Rig::new(1);
    let hour = Impairment {
        delay: Duration::from_secs(60),
        ..Impairment::default()
    };
    rig.impair(2, Direction::Out, hour);
    let count = LINK_HELD_MAX + 100;
    for first in (0..count).step_by(100) {
        rig.send_numbered(1, MacAddr::BROADCAST, first..(first + 100).min(count));
    }
    rig.wait_for("the third port gets all", |rig| {
        rig.peers[2].pending() == count as usize
    });
    assert_eq!(rig.taken(2), []);
    let link = rig.link(2, Direction::Out);
    assert_eq!(link.held, u64::from(LINK_HELD_MAX));
    assert_eq!(link.counts.overflowed, 100);
    let stats = rig.dataplane.stats();
    let dropped = &stats.port(PortId(2)).unwrap().drops;
    assert!(
        dropped.contains(&(EgressDrop::LinkFull, 100)),
        "{dropped:?}"
    );
    stats.check_laws().unwrap();
}

#[test]
fn what_is_lost_and_doubled_keeps_the_laws_on_every_worker() {
    for workers in [1, 2] {
        let mut rig = Rig::new(workers);
        let bad = |seed| Impairment {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: LossModel::Random(chance("20%")),
            duplicate: chance("10%"),
            corrupt: chance("1%"),
            reorder: chance("5%"),
            seed,
            ..Impairment::default()
        };
        for port in 1..=3 {
            rig.impair(port, Direction::In, bad(port as u64));
            rig.impair(port, Direction::Out, bad(port as u64 + 10));
        }
        for round in 0..10 {
            for port in 1..=3 {
                let next = port % 3 + 1;
                rig.send_numbered(port, MacAddr::BROADCAST, round * 50..round * 50 + 25);
                rig.send_numbered(port, mac(next as u8), round * 50 + 25..round * 50 + 50);
            }
        }
        rig.wait_for("every frame is on its way", |rig| {
            (1..=3).all(|port| rig.link(port, Direction::In).counts.entered == 500)
        });
        rig.settle();
        let stats = rig.dataplane.stats();
        assert!(stats.dropped(DropReason::LinkLost) > 150, "{stats:?}");
        for link in rig.dataplane.link_stats() {
            let counts = link.counts;
            assert!(counts.lost > 0 && counts.duplicated > 0, "{link:?}");
            assert!(counts.reordered > 0 && link.passed > 0, "{link:?}");
        }
    }
}

#[test]
fn a_rate_limit_delays_drops_what_is_too_much_and_is_taken_back() {
    let mut rig = Rig::new(1);
    let limited = LinkSpec {
        // 100 bytes are 10 ms, and 32 KiB may wait.
        limit: Some("80kbit burst 1000".parse().unwrap()),
        impairment: Impairment::default(),
    };
    rig.set(2, Direction::Out, limited);
    rig.send_numbered(1, MacAddr::BROADCAST, 0..400);
    rig.wait_for("all came to the link, and the burst is through", |rig| {
        let link = rig.link(2, Direction::Out);
        link.counts.entered == 400 && link.passed >= 10
    });
    let link = rig.link(2, Direction::Out);
    assert!(link.counts.limited >= 50, "{link:?}");
    assert!(link.held > 250, "{link:?}");
    // Taken back: what is held keeps its time, what comes passes at once.
    rig.set(2, Direction::Out, LinkSpec::default());
    let _ = rig.taken(2);
    rig.send_numbered(1, MacAddr::BROADCAST, 1_000..1_001);
    rig.wait_for("it overtakes", |rig| rig.taken(2).contains(&1_000));
    assert!(rig.link(2, Direction::Out).held > 0);
}

#[test]
fn a_link_carries_segments_each_by_itself() {
    for direction in Direction::ALL {
        let mut rig = Rig::new(1);
        let port = end(direction);
        rig.impair(port, direction, delay());
        let (frame, offload) = unfinished(4_000, 1_000);
        rig.send(1, &frame, offload);
        rig.wait_for("four segments", |rig| rig.peers[1].pending() == 4);
        rig.settle();
        assert_eq!(rig.link(port as u16, direction).counts.entered, 4);
        while let Some((segment, offload)) = rig.peers[1].take() {
            assert_eq!((segment.len(), offload.gso()), (1_054, None));
            let packet = SlicedPacket::from_ethernet(&segment).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                panic!("no TCP")
            };
            let sum = tcp.calc_checksum_ipv4([10, 1, 0, 2], [10, 1, 0, 3]);
            assert_eq!(tcp.checksum(), sum.unwrap());
        }
        assert_eq!(
            rig.peers[2].take().unwrap().1,
            match direction {
                Direction::In => Offload::NONE,
                // The third port's copy went whole.
                Direction::Out => offload,
            }
        );
    }
}

#[test]
fn what_is_held_for_a_removed_port_does_not_reach_the_next_of_its_id() {
    let mut rig = Rig::new(1);
    let delay = Impairment {
        delay: Duration::from_millis(300),
        ..Impairment::default()
    };
    rig.impair(2, Direction::Out, delay);
    rig.impair(2, Direction::In, delay);
    rig.send_numbered(1, MacAddr::BROADCAST, 0..10);
    rig.send_numbered(2, MacAddr::BROADCAST, 0..10);
    rig.wait_for("all are held", |rig| {
        let held = |direction| rig.link(2, direction).held;
        held(Direction::In) == 10 && held(Direction::Out) == 10
    });
    let since = Instant::now();
    rig.dataplane.remove_port(PortId(2)).unwrap();
    rig.peers[1] = rig.plug(2);
    for direction in Direction::ALL {
        let port = rig.topology.ports[2].as_mut().unwrap();
        port.set_link(direction, LinkSpec::default());
    }
    rig.install();
    let _ = rig.taken(3);
    rig.wait_for("their time has passed", |_| {
        since.elapsed() > Duration::from_millis(400)
    });
    rig.send_numbered(1, MacAddr::BROADCAST, 20..21);
    rig.wait_for("what is sent now arrives", |rig| rig.peers[1].pending() > 0);
    assert_eq!(rig.taken(2), [20]);
    rig.wait_for("at the third as well", |rig| rig.peers[2].pending() > 0);
    assert_eq!(rig.taken(3), [20]);
}

#[test]
fn held_frames_follow_their_port_to_another_worker() {
    let mut rig = Rig::new(2);
    rig.impair(2, Direction::Out, delay());
    // All together no more than may wait for a port on its way: on a busy machine, all are let go during a move.
    const EACH: u32 = QUEUE_MAX as u32 / 6;
    for (round, worker) in (0..6).zip([1, 0].into_iter().cycle()) {
        rig.send_numbered(1, MacAddr::BROADCAST, round * EACH..(round + 1) * EACH);
        rig.dataplane.move_port(PortId(2), worker).unwrap();
    }
    rig.wait_for("all are through", |rig| {
        rig.link(2, Direction::Out).passed == u64::from(6 * EACH)
    });
    rig.settle();
    assert_eq!(rig.taken(2), Vec::from_iter(0..6 * EACH), "in order");
}
