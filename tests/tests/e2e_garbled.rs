//! Frames that no honest sandbox sends, by real devices of every backend: forwarded or dropped and
//! counted, and everybody else goes on.
//!
//! # Theory of operation
//! For each backend a hostile sandbox, plugged in by it, and for one batch in eight a host outside, send
//! frames that were good before they were garbled, with offloads that are true of them, of other frames, or of
//! none; to sandboxes of every backend, to the gateway, to everybody. Now and then the hostile interface goes
//! down and comes back up. After each batch legal frames cross between all kinds of ports, to and from the
//! hostile one, and arrive as they were sent, once each; and the laws of counters hold. In the end everybody
//! still converses, the workers are the ones that there were, and no descriptor is left.
//!
//! `SEED` replays the frames of a run and their order, not the moments at which threads take their turns;
//! `FUZZ_FRAMES` sets how many there are by each backend.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane::Config;
use dataplane::stats::Stats;
use dataplane_core::addr::MacAddr;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::gso::Segmenter;
use dataplane_core::nat::Transport;
use dataplane_port::conformance::{Packet, PacketKind};
use fastrand::Rng;
use tests::lab::{self, DEADLINE, Lab, Namespace, wait_until};
use tests::rig::{self, Backend, GATEWAY_MAC, Outside, Rig, Sandbox, transfer};
use tests::talk::Witness;
use tests::wire::{self, Link, at};

/// Every way of a port, rings refused included.
const BACKENDS: [Backend; 5] = [
    Backend::Tap,
    Backend::Packet,
    Backend::PacketCalls,
    Backend::Xdp,
    Backend::TapPlain,
];
/// Garbled frames by each backend.
const FRAMES: usize = 3_000;
/// The same in the long runs (`tests/run --engines`).
const FRAMES_LONG: usize = 40_000;
/// Garbled frames between two looks at everybody else: fewer than any queue on the way holds.
const BATCH: usize = 64;
/// Batches between two times that the hostile interface goes down.
const DOWN_EVERY: usize = 16;
/// Frames flooded meanwhile.
const FLOODED_WHILE_DOWN: usize = 20;
/// How long a legal frame may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Times that a legal frame is sent, while others are being dropped.
const TRIES_MAX: usize = 8;
/// Pause between two looks at counters.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Looks in a row that find the same before something is at rest.
const LOOKS_AT_REST: usize = 10;
/// Tags of legal frames, from the outside in.
const TAGGINGS: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 0x600a)], &[(0x88a8, 100), (0x8100, 10)]];
/// Bytes of each conversation at the end.
const CONVERSATION: u64 = 1_000_000;

const GATEWAY: &str = "10.0.0.1";
/// So many bits from every other address that garbling does not make it somebody else's.
const HOSTILE: &str = "10.0.0.200";
const PUBLISHED: u16 = 8_080;
const MTU: u16 = 1_500;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

/// A sandbox, and what its interface sees.
struct Station {
    sandbox: Sandbox,
    witness: Witness,
    /// Frames that only the kernel has sent or received: before the port was open, and those that it does not
    /// count.
    before: Edge,
}

/// Both sides of the border between a sandbox's kernel and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Edge {
    /// Frames that the kernel has sent, less those that the port has received, missed or thrown away.
    unseen: i64,
    /// Frames that the kernel has received, less those that the port has sent and the kernel not lost.
    invented: i64,
}

impl Edge {
    fn of(sandbox: &Sandbox, stats: &Stats) -> Self {
        let link = sandbox.ns.link("eth0").stats;
        let port = stats.port(sandbox.port).unwrap();
        let seen = port.rx_frames + port.rx_missed + port.rx_malformed;
        let sent = port.sent_frames - port.tx_lost;
        Self {
            unseen: link.tx_frames as i64 - seen as i64,
            invented: link.rx_frames as i64 - sent as i64,
        }
    }

    /// Holds that nothing was lost without a trace since `before`, and nothing came from nowhere. What was
    /// unseen then may have been counted as missed since; a frame that is cut here counts once, and arrives as
    /// its segments.
    fn hold(self, before: Self, segments: u64) -> Result<(), String> {
        let (unseen, invented) = (self.unseen, self.invented - before.invented);
        if (0..=before.unseen).contains(&unseen) && (0..=segments as i64).contains(&invented) {
            return Ok(());
        }
        Err(format!(
            "{unseen} frames of the kernel's are unaccounted for, {} before, and {invented} more \
             were received than sent, with {segments} segments",
            before.unseen
        ))
    }
}

/// A switch with a hostile sandbox of one backend, honest ones of all, and a host outside.
struct Ground {
    rig: Rig,
    /// The hostile one, one that is plugged in the same way, and one of each backend.
    stations: Vec<Station>,
    outside: Outside,
    outside_witness: Witness,
    workers: BTreeSet<String>,
}

/// The threads of this process that are workers.
fn workers() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let is_worker = |task: &fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("worker-"))
    };
    let workers = tasks.filter(is_worker);
    workers
        .map(|task| task.file_name().into_string().unwrap())
        .collect()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Descriptors that are open once nobody is closing any.
fn descriptors_at_rest() -> usize {
    let (mut last, mut alike) = (descriptors(), 0);
    while alike < LOOKS_AT_REST {
        std::thread::park_timeout(LOOK_PAUSE);
        let now = descriptors();
        alike = if now == last { alike + 1 } else { 0 };
        last = now;
    }
    last
}

impl Ground {
    fn new(backend: Backend) -> Self {
        let config = Config {
            workers: 2,
            ..Config::default()
        };
        let mut rig = Rig::new("garbled", &config);
        let mut stations = Vec::new();
        let mut plug = |label: &str, address: &str, backend| {
            let sandbox = rig.sandbox(label, &format!("{address}/24"), backend, MTU);
            let witness = Witness::new(&sandbox.ns, "eth0");
            stations.push(Station {
                sandbox,
                witness,
                before: Edge::default(),
            });
        };
        plug("hostile", HOSTILE, backend);
        plug("a", "10.0.0.2", backend);
        for (index, backend) in BACKENDS.into_iter().enumerate() {
            plug(
                &format!("{backend:?}"),
                &format!("10.0.0.{}", 3 + index),
                backend,
            );
        }
        let a = &stations[1].sandbox;
        a.ns.add_default_route("eth0", GATEWAY);
        rig.add_gateway(&[GATEWAY], MTU);
        for transport in [Transport::Tcp, Transport::Udp] {
            rig.publish(transport, PUBLISHED, a, 80);
        }
        let outside = rig.add_uplink(MTU);
        let mut ground = Self {
            outside_witness: Witness::new(&outside.ns, "eth0"),
            rig,
            stations,
            outside,
            workers: workers(),
        };
        ground.note_edges();
        ground
    }

    /// Notes what passed before the ports were there, once nothing is on its way.
    fn note_edges(&mut self) {
        let mut last = Vec::new();
        wait_until(DEADLINE, "silence", || {
            let stats = self.rig.dataplane.stats();
            let stations = self.stations.iter();
            let now: Vec<_> = stations
                .map(|station| {
                    let received = stats.port(station.sandbox.port).unwrap().rx_frames;
                    (Edge::of(&station.sandbox, &stats), received)
                })
                .collect();
            let silent = now == last;
            last = now;
            silent
        });
        for (station, (edge, _)) in self.stations.iter_mut().zip(last) {
            station.before = edge;
        }
    }

    /// Asserts that no port has lost a frame without counting it; what a port has missed, it counts within a
    /// second.
    fn check_edges(&self) {
        for (
            index,
            Station {
                sandbox, before, ..
            },
        ) in self.stations.iter().enumerate()
        {
            let mut last = Ok(());
            let deadline = Instant::now() + DEADLINE;
            while Instant::now() < deadline {
                let stats = self.rig.dataplane.stats();
                let segments = stats.port(sandbox.port).unwrap().segments;
                last = Edge::of(sandbox, &stats).hold(*before, segments);
                if last.is_ok() {
                    break;
                }
                std::thread::park_timeout(LOOK_PAUSE);
            }
            last.unwrap_or_else(|broken| panic!("station {index}: {broken}"));
        }
    }

    /// Whom hostile frames are sent to.
    fn targets(&self) -> Vec<MacAddr> {
        let stations = self.stations.iter().skip(1);
        let macs = stations.map(|station| station.sandbox.mac);
        // The gateway as often as all sandboxes together.
        macs.chain([MacAddr::BROADCAST, MacAddr([0x33, 0x33, 0, 0, 0, 1])])
            .chain([GATEWAY_MAC; 6])
            .collect()
    }

    /// Sends a batch of garbled frames; how many the sender's kernel has taken. It refuses what is shorter
    /// than a header, larger than the MTU or described beyond belief.
    fn attack(&mut self, rng: &mut Rng, batch: usize) -> usize {
        let from_outside = batch % 8 == 7;
        let (link, targets) = if from_outside {
            let card = self.rig.host.mac(rig::UPLINK_NAME);
            (self.outside.ns.mac("eth0"), vec![card])
        } else {
            (self.stations[0].sandbox.mac, self.targets())
        };
        let mut taken = 0;
        for _ in 0..BATCH {
            let link = Link(link, targets[rng.usize(..targets.len())]);
            let seedling = match from_outside {
                true => from_outside_in(rng, link),
                false => from_inside(rng, link),
            };
            let (frame, offload) = garbled(rng, seedling);
            let witness = match from_outside {
                true => &mut self.outside_witness,
                false => &mut self.stations[0].witness,
            };
            let accepted = witness.try_send(&frame, offload);
            taken += usize::from(accepted);
            if accepted && !from_outside && is_cut_in_its_tag(&frame) {
                self.stations[0].before.unseen += 1;
            }
        }
        self.look_away();
        taken
    }

    /// Takes what has come to everybody, so that what comes next has room.
    fn look_away(&mut self) {
        for station in &mut self.stations {
            while station.witness.look(|_| {}) {}
        }
        while self.outside_witness.look(|_| {}) {}
    }

    /// Has the hostile interface go down while frames are flooded to it, and come back.
    fn flap(&mut self) {
        let hostile = &self.stations[0].sandbox.ns;
        let index = hostile.link("eth0").index;
        lab::block_on(hostile.netlink().set_down(index)).unwrap();
        let from = self.stations[1].sandbox.mac;
        let flooded = wire::plain(Link(from, MacAddr::BROADCAST));
        for _ in 0..FLOODED_WHILE_DOWN {
            self.stations[1].witness.send(&flooded);
        }
        self.stations[0].sandbox.ns.set_up("eth0");
        self.look_away();
    }

    /// Legal frames of every kind from each backend to another, to the hostile port and from it.
    fn probe(&mut self, rng: &mut Rng) {
        let other = rng.usize(1..self.stations.len());
        let mut pairs = vec![(0, other), (other, 0)];
        let from = rng.usize(1..self.stations.len());
        let to = (from + rng.usize(1..self.stations.len() - 1)) % self.stations.len();
        if to != from && to != 0 {
            pairs.push((from, to));
        }
        for (from, to) in pairs {
            let link = Link(
                self.stations[from].sandbox.mac,
                self.stations[to].sandbox.mac,
            );
            let (frame, offload) = honest(rng, link);
            self.cross(from, to, &frame, offload);
        }
    }

    /// Sends a frame from one station to another, where it arrives with the same bytes: whole, in segments, or
    /// with a checksum to do. What the attack has left in queues may have a copy dropped, which is counted;
    /// only then is the frame sent again.
    fn cross(&mut self, from: usize, to: usize, frame: &[u8], offload: Offload) {
        let wanted = on_the_wire(frame, offload);
        for _ in 0..TRIES_MAX {
            let before = self.losses();
            wait_until(DEADLINE, "the interface takes a legal frame", || {
                self.stations[from].witness.try_send(frame, offload)
            });
            if self.arrives(to, &wanted) {
                return;
            }
            let size = frame.len();
            let ways = format!("from station {from} to {to}, {size} bytes, {offload:?}");
            assert!(self.losses() > before, "lost without a trace {ways}");
        }
        panic!("no legal frame passes from station {from} to {to}");
    }

    /// Whether a station receives these frames in their order, whatever is between them.
    fn arrives(&mut self, to: usize, wanted: &[Vec<u8>]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let witness = &mut self.stations[to].witness;
        let mut arrived = 0;
        while arrived < wanted.len() {
            let more = witness.look_whole(|seen| {
                for piece in on_the_wire(seen.bytes(), seen.offload) {
                    arrived += usize::from(wanted.get(arrived) == Some(&piece));
                }
            });
            if Instant::now() > deadline {
                return false;
            }
            if !more {
                std::thread::yield_now();
            }
        }
        true
    }

    /// Frames and copies that were dropped so far, each for a reason, and what was missed.
    fn losses(&self) -> u64 {
        let stats = self.rig.dataplane.stats();
        let of_ports = stats.ports.iter().map(|port| {
            let copies: u64 = port.drops.iter().map(|(_, count)| count).sum();
            copies + port.rx_missed + port.tx_lost
        });
        let frames: u64 = stats.drops.iter().map(|(_, count)| count).sum();
        let witnessed = self.stations.iter().map(|it| it.witness.missed());
        frames + of_ports.sum::<u64>() + witnessed.sum::<u64>()
    }

    /// Waits until what was sent has passed, as far as counters tell.
    fn rest(&self) {
        let (mut last, mut alike) = ((0, 0), 0);
        wait_until(DEADLINE, "rest", || {
            let stats = self.rig.dataplane.stats();
            let ports = stats.ports.iter();
            let copies = ports.map(|port| port.enqueued + port.sent_frames);
            let now = (stats.rx, copies.sum::<u64>());
            alike = if now == last { alike + 1 } else { 0 };
            last = now;
            alike == 2
        });
    }

    /// What nobody may have lost.
    fn check(&self) {
        self.rig.check_laws();
        assert_eq!(workers(), self.workers, "the workers that there were");
    }
}

/// Whether a frame ends before the EtherType behind its VLAN tag: a kernel that receives it throws it away
/// without counting it, and before anybody sees it (`skb_vlan_untag` of net/core/skbuff.c).
fn is_cut_in_its_tag(frame: &[u8]) -> bool {
    let tagged = matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
    tagged && frame.len() < 14 + 6
}

/// A frame as complete frames: its checksum done, and cut where it is to be. Nothing where that cannot be.
fn on_the_wire(bytes: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let mut frame = FrameBuf::from_bytes(bytes);
    frame.offload = offload;
    let mut pieces = Vec::new();
    let cut = Segmenter::new().segment(&frame, |piece| pieces.push(piece.bytes().to_vec()));
    match cut {
        Ok(_) => pieces,
        Err(_) => Vec::new(),
    }
}

/// A packet whose checksum is to do, and that is to be cut if `segment` is not zero.
fn unfinished(rng: &mut Rng, link: Link, size: usize, segment: u16) -> (Vec<u8>, Offload) {
    let kind = PacketKind::ALL[rng.usize(..PacketKind::ALL.len())];
    let packet = Packet::new(kind, TAGGINGS[rng.usize(..TAGGINGS.len())], size);
    let mut frame = packet.partial();
    frame[..6].copy_from_slice(&link.1.0);
    frame[6..12].copy_from_slice(&link.0.0);
    match segment {
        0 => (frame, packet.checksum_offload()),
        segment => (frame, packet.gso_offload(segment)),
    }
}

/// A frame that any sandbox may send.
fn honest(rng: &mut Rng, link: Link) -> (Vec<u8>, Offload) {
    match rng.u8(..3) {
        0 => {
            let mut frame = wire::plain(link);
            frame.truncate(14);
            frame.resize(rng.usize(60..=usize::from(MTU) + 14), 0);
            rng.fill(&mut frame[14..]);
            (frame, Offload::NONE)
        }
        1 => {
            let size = rng.usize(1..1_400);
            unfinished(rng, link, size, 0)
        }
        _ => {
            let size = rng.usize(3_000..60_000);
            unfinished(rng, link, size, 1_400)
        }
    }
}

/// A frame of a sandbox before it is garbled, with what is left to do for it.
fn from_inside(rng: &mut Rng, link: Link) -> (Vec<u8>, Offload) {
    let source = at(&format!("{HOSTILE}:{}", rng.u16(1..)));
    let targets = [
        "10.0.0.3:80",
        "10.0.0.1:53",
        "192.0.2.2:80",
        "192.0.2.1:8080",
        "203.0.113.1:9",
    ];
    let target = at(targets[rng.usize(..targets.len())]);
    let payload = [0x5a; 100];
    let whole = match rng.u8(..9) {
        0 => wire::udp(link, source, target, 64, &payload),
        1 => wire::tcp(link, source, target, rng.u8(..), &payload),
        2 => wire::echo(link, source.ip(), target.ip(), rng.bool(), rng.u16(..)),
        3 => wire::arp_request(
            link.0,
            Ipv4Addr::new(10, 0, 0, 200),
            Ipv4Addr::new(10, 0, 0, 1),
        ),
        4 => {
            let whole = wire::udp(link, source, target, 64, &[0x5a; 1_400]);
            let mut fragments = wire::fragments(&whole, rng.u16(..), 512);
            fragments.swap_remove(rng.usize(..fragments.len()))
        }
        5 => {
            let frame = wire::udp(link, at("[fd00::200]:9"), at("[fd00::3]:9"), 64, &payload);
            wire::extension_chain(rng, frame)
        }
        6 => {
            let mut frame = wire::udp(link, source, target, 64, &payload);
            wire::tag(&mut frame, 0x8100, rng.u16(..));
            frame
        }
        7 => {
            let size = rng.usize(..1_400);
            return unfinished(rng, link, size, 0);
        }
        _ => {
            let (size, segment) = (rng.usize(2_000..60_000), rng.u16(1..1_460));
            return unfinished(rng, link, size, segment);
        }
    };
    (whole, Offload::NONE)
}

/// The same of a host outside.
fn from_outside_in(rng: &mut Rng, link: Link) -> (Vec<u8>, Offload) {
    let source = at(&format!("{}:{}", rig::OUTSIDE_ADDRESS, rng.u16(1..)));
    let ports = [PUBLISHED, 40_000, 9];
    let port = ports[rng.usize(..ports.len())];
    let target = at(&format!("{}:{port}", rig::HOST_ADDRESS));
    let payload = [0x5a; 100];
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let (from, to) = (address(rig::OUTSIDE_ADDRESS), address(rig::HOST_ADDRESS));
    let whole = match rng.u8(..4) {
        0 => wire::udp(link, source, target, 64, &payload),
        1 => wire::tcp(link, source, target, rng.u8(..), &payload),
        2 => {
            let about = wire::udp(link, target, source, 9, &payload);
            wire::icmp_error(link, from, to, (3, rng.u8(..5)), &about)
        }
        _ => {
            let whole = wire::udp(link, source, target, 64, &[0x5a; 1_400]);
            let mut fragments = wire::fragments(&whole, rng.u16(..), 512);
            fragments.swap_remove(rng.usize(..fragments.len()))
        }
    };
    (whole, Offload::NONE)
}

/// Breaks a frame, and says of it what is true of the whole one, of another, or nothing.
fn garbled(rng: &mut Rng, (mut frame, offload): (Vec<u8>, Offload)) -> (Vec<u8>, Offload) {
    wire::garble(rng, &mut frame);
    let offload = match rng.u8(..4) {
        0 => Offload::NONE,
        1 => wire::any_offload(rng),
        _ => offload,
    };
    (frame, offload)
}

/// What the frames of all backends have come to.
#[derive(Default)]
struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    fn count(&mut self, what: &str, count: u64) {
        if count > 0 {
            *self.0.entry(what.to_owned()).or_default() += count;
        }
    }

    fn add(&mut self, stats: &Stats) {
        for (kind, count) in &stats.verdicts {
            self.count(kind.label(), *count);
        }
        for (reason, count) in &stats.drops {
            self.count(&format!("drop {}", reason.label()), *count);
        }
        for port in &stats.ports {
            for (reason, count) in &port.drops {
                self.count(&format!("copy {}", reason.label()), *count);
            }
            for (what, count) in [
                ("edge missed", port.rx_missed),
                ("edge malformed", port.rx_malformed),
                ("edge lost", port.tx_lost),
                ("segments", port.segments),
                ("checksums", port.checksums),
                ("gso", port.sent_gso),
            ] {
                self.count(what, count);
            }
        }
    }

    fn of(&self, prefix: &str) -> usize {
        self.0
            .keys()
            .filter(|what| what.starts_with(prefix))
            .count()
    }
}

/// One backend's part; what it came to.
fn fuzz(backend: Backend, frames: usize, rng: &mut Rng) -> Stats {
    let mut ground = Ground::new(backend);
    let held = descriptors_at_rest();
    let mut taken = 0;
    for batch in 0..frames.div_ceil(BATCH) {
        if batch % DOWN_EVERY == DOWN_EVERY - 1 {
            ground.flap();
        }
        taken += ground.attack(rng, batch);
        ground.rest();
        ground.probe(rng);
        ground.check();
    }
    assert!(taken > frames / 3, "{taken} frames taken");
    assert_eq!(descriptors(), held, "no frame keeps a descriptor");
    converse(&ground, backend, taken);
    ground.check();
    ground.check_edges();
    ground.rig.dataplane.stats()
}

/// Everybody still talks by TCP: within, and with the outside.
fn converse(ground: &Ground, backend: Backend, taken: usize) {
    let a = &ground.stations[1].sandbox;
    let to = |ns: &Namespace, address| {
        let server = (address, 80).into();
        transfer(&a.ns, ns, server, server, CONVERSATION, None)
    };
    for station in &ground.stations[2..] {
        to(&station.sandbox.ns, station.sandbox.address);
    }
    let done = to(&ground.outside.ns, ground.outside.address);
    println!("{backend:?}, after {taken} garbled frames: {done} to the outside");
}

#[test]
fn garbled_frames_by_real_devices_of_every_backend_harm_nobody() {
    if !lab::require_root("e2e_garbled") {
        return;
    }
    let seed = variable("SEED").unwrap_or_else(|| fastrand::u64(..));
    let long = std::env::var_os("CAUSEWAY_ENGINES").is_some();
    let usual = if long { FRAMES_LONG } else { FRAMES };
    let frames = variable("FUZZ_FRAMES").map_or(usual, |frames| frames as usize);
    println!("SEED={seed} FUZZ_FRAMES={frames}");
    let mut rng = Rng::with_seed(seed);
    let mut coverage = Coverage::default();
    // What a lab opens once is open before descriptors are counted.
    drop(Lab::new("garbled").namespace("first"));
    let held = descriptors_at_rest();
    for backend in BACKENDS {
        coverage.add(&fuzz(backend, frames, &mut rng));
        wait_until(
            DEADLINE,
            "every descriptor of the ground to be given back",
            || descriptors() == held,
        );
    }
    println!("covered: {:?}", coverage.0);
    if frames >= FRAMES {
        for kind in ["bridged", "flooded", "routed", "replied", "not_ours"] {
            assert!(coverage.0.contains_key(kind), "no frame was {kind}");
        }
        for done in ["segments", "checksums", "gso", "copy device_down"] {
            assert!(coverage.0.contains_key(done), "no {done}");
        }
        let reasons = coverage.of("drop ");
        assert!(reasons >= DROP_REASONS_MIN, "only {reasons} drop reasons");
    }
}

/// Drop reasons that a short run reaches with any seed.
const DROP_REASONS_MIN: usize = 10;
