//! Deterministic simulation: hosts with a real TCP/IP stack on a virtual clock, wires that lose,
//! double and delay, and between them the real core. The same seed gives the same run, byte for
//! byte.
//!
//! The picture is that of [`crate::world`], with smoltcp hosts on ports 1 to 4 and one outside at
//! 192.0.2.7. Workers are views of the same tables; each frame is taken by one of them. After
//! every frame the auditors ([`audit`]) compare what the core did with what must hold.

pub mod audit;
pub mod bridge;
mod bridge_deeds;
pub mod bridge_model;
mod bridge_world;
pub mod host;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dataplane_core::addr::{L4Addr, MacAddr, PortId};
use dataplane_core::checksum::Sum;
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::gso::Segmenter;
use dataplane_core::headers::{Headers, L3, L4Kind, protocol};
use dataplane_core::l2::{self, ProbeKey, StormMeters, StormView};
use dataplane_core::multicast::{Mdb, MdbView};
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::Instant;
use dataplane_core::topology::Topology;
use dataplane_core::trace::Recorder;
use dataplane_core::verdict::{Consumer, Verdict};
use fastrand::Rng;

use crate::wire::{self, Link};
use crate::world::{self, BLUE, RED, UPLINK, UPLINK_MAC, gateway_mac, mac};
use audit::Model;
use host::Host;

/// Virtual time after which a run has failed.
const DEADLINE_MICROS: u64 = 4 * 3_600 * 1_000_000;
/// Time between two ticks of a worker, as the real one's.
const TICK_MICROS: u64 = 100_000;
/// Time between two deeds of the adversaries.
const MISCHIEF_MICROS: u64 = 25_000;
/// Stations that one port may have: few, so that the flooder meets the limit.
const STATIONS_PER_PORT_MAX: u32 = 400;
/// Sessions that one tick may expire.
const EXPIRE_BUDGET: usize = 64;
/// The address outside.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// The host's address, where the published port is.
const PUBLISHED: &str = "192.0.2.1:8080";

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Everything random comes from it.
    pub seed: u64,
    /// Workers that share the tables.
    pub workers: usize,
    /// Frames of a thousand that a wire loses.
    pub loss_permille: u32,
    /// Frames of a thousand that a wire doubles.
    pub duplicate_permille: u32,
    /// Frames of a thousand that are overtaken.
    pub reorder_permille: u32,
    /// Bytes that each transfer moves each way.
    pub bytes: usize,
    /// Whether hosts hand over large frames with unfinished sums, as kernels do.
    pub offloads: bool,
    /// Whether someone floods, spoofs, roams and flaps.
    pub adversaries: bool,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash of every event in order.
    pub hash: u64,
    /// Hash of the tables at the end.
    pub tables: u64,
    /// Virtual time that it took.
    pub millis: u64,
    /// Frames that entered the core.
    pub frames: u64,
    /// Bytes that transfers received and found right.
    pub bytes: usize,
    /// Copies that wires took, lost, doubled and delayed.
    pub copies: Copies,
    /// Frames by verdict and by reason of drop.
    pub outcomes: BTreeMap<String, u64>,
}

/// What became of the copies that left the switch or a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Given to a wire.
    pub sent: u64,
    /// Never arrived.
    pub lost: u64,
    /// Arrived twice.
    pub doubled: u64,
    /// Arrived later than they should.
    pub delayed: u64,
    /// Arrived at the other end.
    pub arrived: u64,
}

#[derive(Debug)]
enum Event {
    /// A frame reaches the switch.
    In(PortId, Vec<u8>, Offload),
    /// A frame reaches the host on a port.
    Out(PortId, Vec<u8>),
    /// A host asked to be run.
    Wake(PortId),
    Tick,
    Mischief,
    /// A worker takes up a topology.
    Install(usize, Arc<Topology>),
}

/// One run.
pub struct Sim {
    scenario: Scenario,
    rng: Rng,
    micros: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64, Slot)>>,
    topology: Topology,
    fdb: Arc<Fdb>,
    tables: Arc<Tables>,
    workers: Vec<Switch>,
    hosts: BTreeMap<PortId, Host>,
    wakes: BTreeMap<PortId, u64>,
    model: Model,
    log: DefaultHasher,
    copies: Copies,
    in_flight: u64,
    outcomes: BTreeMap<String, u64>,
}

/// An event in the queue, which orders by time and sequence alone.
#[derive(Debug)]
struct Slot(Event);

impl PartialEq for Slot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Slot {}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slot {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Sim {
    /// A picture with its transfers, at rest.
    ///
    /// # Panics
    /// When the published port is not sound.
    pub fn new(scenario: Scenario) -> Self {
        let mut topology = world::topology();
        let server = L4Addr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 3)), 80);
        let target = Target::new(0, RED, server);
        let rule = StaticRule::new(1, Transport::Tcp, 8_080..=8_080, target);
        topology.statics = StaticRules::build(vec![rule]).expect("one rule is sound");
        // Nobody has asked for the server's MAC yet: the first frames towards it are held.
        topology.uplinks[0].neighbours.remove(&IpAddr::V4(SERVER));
        topology.finish();
        let limits = Limits {
            entries_per_port_max: STATIONS_PER_PORT_MAX,
            ..Limits::default()
        };
        let fdb = Fdb::new(limits, scenario.seed);
        let mdb = Mdb::new(scenario.seed);
        let tables = Tables::new(scenario.seed);
        let shared = Arc::new(topology.clone());
        let worker = |_| Switch {
            topology: Arc::clone(&shared),
            fdb: FdbView::live(Arc::clone(&fdb)),
            bridge: l2::State::new(ProbeKey::new(1)),
            storm: StormView::live(StormMeters::new()),
            groups: MdbView::live(Arc::clone(&mdb)),
            gateway: State::live(&tables),
            counters: Arc::new(Counters::default()),
        };
        let mut sim = Self {
            scenario,
            rng: Rng::with_seed(scenario.seed),
            micros: 1_000_000_000,
            sequence: 0,
            events: BinaryHeap::new(),
            workers: (0..scenario.workers).map(worker).collect(),
            topology,
            fdb,
            tables,
            hosts: BTreeMap::new(),
            wakes: BTreeMap::new(),
            model: Model::default(),
            log: DefaultHasher::new(),
            copies: Copies::default(),
            in_flight: 0,
            outcomes: BTreeMap::new(),
        };
        sim.populate();
        sim.schedule(TICK_MICROS, Event::Tick);
        if scenario.adversaries {
            sim.schedule(MISCHIEF_MICROS, Event::Mischief);
        }
        sim
    }

    /// Hosts on red and blue, one outside, and what they have to do with each other.
    fn populate(&mut self) {
        let mtu = if self.scenario.offloads {
            16_000
        } else {
            1_500
        };
        let size = self.scenario.bytes;
        let mut host = |port: u8, address: [u8; 4], len, router: [u8; 4]| {
            let seed = self.rng.u64(..);
            Host::new(mac(port), address.into(), len, router.into(), mtu, seed)
        };
        let mut a = host(1, [10, 1, 0, 2], 16, [10, 1, 0, 1]);
        let mut b = host(2, [10, 1, 0, 3], 16, [10, 1, 0, 1]);
        let mut c = host(3, [10, 1, 0, 4], 16, [10, 1, 0, 1]);
        let mut d = host(4, [10, 2, 0, 2], 16, [10, 2, 0, 1]);
        // The world outside has one router: the host's card, whose kernel answers ARP.
        let mut server = host(7, SERVER.octets(), 24, [192, 0, 2, 1]);
        let outside = |port| SocketAddr::new(SERVER.into(), port);
        // a and d leave by SNAT from the same port; c is reached over the bridge.
        a.connect(outside(5_001), 40_000, (1, 101), size);
        server.listen(5_001, (101, 1), size);
        d.connect(outside(5_002), 40_000, (2, 102), size);
        server.listen(5_002, (102, 2), size);
        a.connect(wire::at("10.1.0.4:7000"), 41_000, (3, 103), size);
        c.listen(7_000, (103, 3), size);
        // The server reaches b by the published port, and so does c, by hairpin.
        server.connect(wire::at(PUBLISHED), 42_000, (4, 104), size);
        b.listen(80, (104, 4), size);
        c.connect(outside(5_003), 43_000, (5, 105), size);
        server.listen(5_003, (105, 5), size);
        d.ask(outside(5_300), 44_000, 12);
        b.ask(outside(5_300), 44_000, 12);
        server.answer(5_300);
        a.ping(SERVER, gateway_mac(RED), 7, 6);
        d.ping(SERVER, gateway_mac(BLUE), 7, 6);
        a.ping(Ipv4Addr::new(10, 1, 0, 1), gateway_mac(RED), 8, 3);
        let hosts = [(1, a), (2, b), (3, c), (4, d), (UPLINK.0, server)];
        for (port, host) in hosts {
            self.hosts.insert(PortId(port), host);
            self.schedule(0, Event::Wake(PortId(port)));
        }
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        let slot = (self.micros + delay, self.sequence, Slot(event));
        self.events.push(Reverse(slot));
    }

    /// Runs until every application is done.
    ///
    /// # Panics
    /// When an auditor finds fault or the deadline passes.
    pub fn run(mut self) -> Report {
        let start = self.micros;
        while !self.hosts.values().all(Host::is_done) {
            let Some(Reverse((at, _, Slot(event)))) = self.events.pop() else {
                panic!("nothing happens any more: {}", self.unfinished());
            };
            assert!(
                at - start < DEADLINE_MICROS,
                "too slow: {}",
                self.unfinished()
            );
            self.micros = at;
            self.handle(event);
        }
        self.report(start)
    }

    fn unfinished(&self) -> String {
        let hosts = self.hosts.iter();
        let texts = hosts.map(|(port, host)| format!("{port}: {}", host.unfinished()));
        texts.collect::<Vec<_>>().join("\n")
    }

    fn report(self, start: u64) -> Report {
        let queued = self
            .events
            .iter()
            .filter(|Reverse((_, _, Slot(event)))| matches!(event, Event::In(..) | Event::Out(..)));
        assert_eq!(queued.count() as u64, self.in_flight);
        let mut outcomes = self.outcomes;
        for worker in &self.workers {
            let counters = &worker.counters;
            let learned = [
                ("learn new", &counters.learned),
                ("learn moved", &counters.moved),
                ("learn full", &counters.learn_full),
            ];
            for (label, counter) in learned {
                *outcomes.entry(label.to_owned()).or_default() += counter.get();
            }
        }
        let Copies {
            sent,
            lost,
            doubled,
            arrived,
            ..
        } = self.copies;
        assert_eq!(
            sent + doubled,
            lost + arrived + self.in_flight,
            "law of copies"
        );
        Report {
            hash: self.log.finish(),
            tables: self.fdb.state_hash() ^ self.tables.nat.state_hash(),
            millis: (self.micros - start) / 1_000,
            frames: self.workers.iter().map(|w| w.counters.rx.get()).sum(),
            bytes: self.hosts.values().map(Host::bytes_received).sum(),
            copies: self.copies,
            outcomes,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::In(port, bytes, offload) => {
                self.arrived();
                self.ingress(port, &bytes, offload);
            }
            Event::Out(port, bytes) => {
                self.arrived();
                if let Some(host) = self.hosts.get_mut(&port) {
                    host.receive(bytes);
                    self.run_host(port);
                }
            }
            Event::Wake(port) => {
                // A host that was run since has asked anew.
                if self.wakes.get(&port).is_none_or(|at| *at <= self.micros) {
                    self.run_host(port);
                }
            }
            Event::Tick => self.tick(),
            Event::Mischief => {
                self.mischief();
                self.schedule(MISCHIEF_MICROS, Event::Mischief);
            }
            Event::Install(worker, topology) => {
                self.workers[worker].topology = topology;
                self.workers[worker].fdb.begin_batch();
                self.release(worker);
            }
        }
    }

    fn arrived(&mut self) {
        self.copies.arrived += 1;
        self.in_flight -= 1;
    }

    fn run_host(&mut self, port: PortId) {
        let Some(host) = self.hosts.get_mut(&port) else {
            return;
        };
        let (frames, wake) = host.run(self.micros);
        let offloads = host.offloads;
        if let Some(at) = wake {
            self.wakes.insert(port, at);
            self.schedule(at - self.micros, Event::Wake(port));
        } else {
            self.wakes.remove(&port);
        }
        for mut frame in frames {
            let offload = if offloads {
                unfinish(&mut frame)
            } else {
                Offload::NONE
            };
            self.transmit(|| Event::In(port, frame.clone(), offload));
        }
    }

    /// Puts a frame on a wire, which may lose, double or delay it.
    fn transmit(&mut self, event: impl Fn() -> Event) {
        let mut chance = |permille| self.rng.u32(..1_000) < permille;
        let scenario = self.scenario;
        let lost = chance(scenario.loss_permille);
        let doubled = !lost && chance(scenario.duplicate_permille);
        let delayed = chance(scenario.reorder_permille);
        self.copies.sent += 1;
        self.copies.lost += u64::from(lost);
        self.copies.doubled += u64::from(doubled);
        self.copies.delayed += u64::from(delayed && !lost);
        for _ in 0..u64::from(!lost) + u64::from(doubled) {
            // Without a draw a wire keeps the order: a fixed delay.
            let late = if delayed { self.rng.u64(..3_000) } else { 0 };
            self.in_flight += 1;
            self.schedule(200 + late, event());
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.micros * 1_000)
    }

    /// Takes one frame through the core and has the auditors judge it.
    fn ingress(&mut self, port: PortId, bytes: &[u8], offload: Offload) {
        let (now, worker) = (self.now(), self.rng.usize(..self.workers.len()));
        let mut buf = FrameBuf::from_bytes(bytes);
        buf.offload = offload;
        let mut recorder = Recorder::new();
        let sw = &mut self.workers[worker];
        sw.fdb.begin_batch();
        let verdict = forward(sw, &mut Frame::new(port, &mut buf), now, &mut recorder);
        let topology = Arc::clone(&sw.topology);
        let counters = &sw.counters;
        let entered = counters.rx.get() + counters.released.get();
        assert_eq!(counters.judged(), entered, "law of frames");
        let steps = recorder.take();
        self.model
            .judge(&topology, port, bytes, &steps, verdict, now);
        let on_port = self.model.count_on(port);
        assert!(
            on_port <= STATIONS_PER_PORT_MAX as usize,
            "{on_port} stations"
        );
        (self.micros, port.0, worker, bytes).hash(&mut self.log);
        format!("{steps:?}").hash(&mut self.log);
        self.dispatch(worker, &topology, port, &buf, verdict);
        if verdict == Verdict::NotOurs {
            self.kernel(bytes);
        }
    }

    /// Carries out a verdict: copies to the wires of the egress ports.
    fn dispatch(
        &mut self,
        worker: usize,
        topology: &Topology,
        ingress: PortId,
        buf: &FrameBuf,
        verdict: Verdict,
    ) {
        let label = match verdict.kind() {
            Ok(kind) => kind.label().to_owned(),
            Err(reason) => format!("drop {}", reason.label()),
        };
        *self.outcomes.entry(label).or_default() += 1;
        let egress: Vec<PortId> = match verdict {
            Verdict::Bridged(port)
            | Verdict::Routed(port)
            | Verdict::Replied(port)
            | Verdict::Delivered(Consumer::HostLink(port)) => vec![port],
            Verdict::Flooded(domain, vlan, class) => {
                topology.flood_set(domain, vlan, ingress, class).collect()
            }
            Verdict::Multicast(..) => unreachable!("no network of the simulation snoops"),
            Verdict::Delivered(Consumer::Service(_))
            | Verdict::Held(_)
            | Verdict::NotOurs
            | Verdict::Drop(_) => Vec::new(),
        };
        audit::judge_egress(topology, ingress, verdict, &egress);
        for port in egress {
            audit::judge_copy(topology, port, buf);
            let mut segments = Vec::new();
            Segmenter::new()
                .segment(buf, |segment| segments.push(segment.bytes().to_vec()))
                .expect("what a host sent can be segmented");
            for segment in segments {
                self.transmit(|| Event::Out(port, segment.clone()));
            }
        }
        self.resolve(worker);
    }

    /// What the host's kernel does with a frame that is its own: it answers ARP for its card.
    fn kernel(&mut self, bytes: &[u8]) {
        let Ok(Headers {
            l3: Ok(L3::Arp(arp)),
            ..
        }) = Headers::parse(bytes)
        else {
            return;
        };
        let own = self.topology.uplinks[0]
            .addresses
            .contains(&arp.target.into());
        if arp.operation == 1 && own {
            let reply = wire::arp_reply(Link(UPLINK_MAC, arp.sender_mac), arp.target, arp.sender);
            self.transmit(|| Event::Out(UPLINK, reply.clone()));
        }
    }

    /// What the control plane does about next hops that are wanted: it finds them, and installs.
    fn resolve(&mut self, worker: usize) {
        let wanted = self.workers[worker].gateway.take_wanted();
        for (uplink, next_hop) in wanted {
            if next_hop == IpAddr::V4(SERVER) {
                let neighbours = &mut self.topology.uplinks[uplink.index()].neighbours;
                neighbours.insert(next_hop, mac(7));
                self.install();
            }
        }
    }

    /// Installs the topology; each worker takes it up when it comes to it.
    fn install(&mut self) {
        self.topology.generation += 1;
        self.topology.finish();
        let shared = Arc::new(self.topology.clone());
        for worker in 0..self.workers.len() {
            let delay = self.rng.u64(..20_000);
            self.schedule(delay, Event::Install(worker, Arc::clone(&shared)));
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        for worker in 0..self.workers.len() {
            let topology = Arc::clone(&self.workers[worker].topology);
            self.workers[worker]
                .gateway
                .tick(&topology, now, EXPIRE_BUDGET);
            self.release(worker);
        }
        self.schedule(TICK_MICROS, Event::Tick);
    }

    fn release(&mut self, worker: usize) {
        let now = self.now();
        loop {
            let sw = &mut self.workers[worker];
            let topology = Arc::clone(&sw.topology);
            let Some((ingress, buf, verdict)) = sw.gateway.release(&topology, &sw.counters, now)
            else {
                return;
            };
            self.dispatch(worker, &topology, ingress, &buf, verdict);
        }
    }

    /// One deed of an adversary, or a change of the installation.
    fn mischief(&mut self) {
        let somewhere = PortId(self.rng.u16(1..=3));
        let frame = match self.rng.u8(..9) {
            // The flooder, on the last port of red.
            0..3 => {
                for _ in 0..8 {
                    let [x, y] = self.rng.u16(..).to_be_bytes();
                    let station = MacAddr([0x06, 0, 0, 0, x, y]);
                    let frame = wire::plain(Link(station, mac(0xaa)));
                    self.transmit(|| Event::In(PortId(3), frame.clone(), Offload::NONE));
                }
                return;
            }
            // The spoofer: it claims the gateway's MAC, another's address, or an impossible MAC.
            3 => wire::plain(Link(gateway_mac(RED), mac(0xbb))),
            4 => {
                let link = Link(mac(0x33), MacAddr::BROADCAST);
                wire::arp_reply(link, [10, 1, 0, 77].into(), [10, 1, 0, 2].into())
            }
            5 => wire::plain(Link(MacAddr([1, 2, 3, 4, 5, 6]), mac(1))),
            // The roamer: here today, there tomorrow; sometimes under a's own MAC.
            6 if self.rng.u8(..) < 20 => wire::plain(Link(mac(1), MacAddr::BROADCAST)),
            6 => wire::plain(Link(mac(50), MacAddr::BROADCAST)),
            7 => return self.send_fragments(),
            _ => return self.flap(somewhere),
        };
        self.transmit(|| Event::In(somewhere, frame.clone(), Offload::NONE));
    }

    /// b sends a datagram in pieces, in any order.
    fn send_fragments(&mut self) {
        let link = Link(mac(2), gateway_mac(RED));
        let (from, to) = (
            wire::at("10.1.0.3:6000"),
            SocketAddr::new(SERVER.into(), 6_000),
        );
        let whole = wire::udp(link, from, to, 64, &[0x5a; 2_000]);
        let mut pieces = wire::fragments(&whole, self.rng.u16(..), 800);
        self.rng.shuffle(&mut pieces);
        for piece in pieces {
            self.transmit(|| Event::In(PortId(2), piece.clone(), Offload::NONE));
        }
    }

    /// A port goes down, or comes back. What was learned on it is forgotten.
    fn flap(&mut self, id: PortId) {
        if self.rng.u8(..) > 40 {
            return;
        }
        let all_up = (1..=3).all(|port| self.topology.port_up(PortId(port)).is_some());
        for port in self.topology.ports.iter_mut().flatten() {
            // One at a time, and what is down comes up first.
            port.up = !all_up || port.id != id;
        }
        if all_up {
            self.fdb.flush_port(id);
            self.model.flush(id);
        }
        self.install();
    }
}

/// Turns a frame into what a kernel hands to a TAP: the sum left to the device, and more payload
/// than a wire carries left to be cut.
fn unfinish(frame: &mut [u8]) -> Offload {
    let Ok(headers) = Headers::parse(frame) else {
        return Offload::NONE;
    };
    let (Some(ip), Ok(l4)) = (headers.ip(), headers.l4) else {
        return Offload::NONE;
    };
    let (number, csum_offset, header_size) = match l4.kind {
        L4Kind::Tcp { header_size, .. } => (protocol::TCP, 16, usize::from(header_size)),
        L4Kind::Udp { .. } => (protocol::UDP, 6, 8),
        L4Kind::Echo { .. } | L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. } => {
            return Offload::NONE;
        }
    };
    let end = headers.l3_offset + ip.total_size as usize;
    let sum = Sum::pseudo_header(ip.src, ip.dst, number, end - l4.offset).folded();
    let field = l4.offset + csum_offset;
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let large = number == protocol::TCP && ip.total_size > 1_500;
    Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: u8::from(large),
        hdr_len: (l4.offset + header_size) as u16,
        gso_size: if large { 1_448 } else { 0 },
        csum_start: l4.offset as u16,
        csum_offset: csum_offset as u16,
    }
}
