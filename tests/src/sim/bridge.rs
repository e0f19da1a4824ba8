//! A bridge among adversaries, on a virtual clock: VLANs with access ports and trunks, groups with a
//! querier, storm control, isolated ports, hairpins, a mirror and links that lose, delay and limit.
//! Somebody hops VLANs, somebody lies about groups, somebody floods; ports flap and change their
//! VLANs while several workers, each with a picture of its own age, share the tables.
//!
//! Every frame is judged: what became of it against [`Model`], which was asked before, and every copy
//! against what must leave by its port, byte by byte. The same seed gives the same run.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Learn, Limits};
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::l2::{self, ProbeKey, StormMeters, StormView, reshape};
use dataplane_core::link::Direction;
use dataplane_core::multicast::{GROUPS_PER_PORT_MAX, Mdb, MdbView};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::Instant;
use dataplane_core::topology::Topology;
use dataplane_core::trace::{Recorder, Step, Target};
use dataplane_core::verdict::Verdict;
use fastrand::Rng;

use super::bridge_model::{Fate, Kind, Model, Plan, Sent, as_it_leaves};
use super::bridge_world::{
    AGEING_MILLIS, FROM_AFAR, Held, PORTS, Plans, SPAN, TO_AFAR, any_plan, picture,
};
use crate::world::RED;

/// Stations that one port may have: few, so that a flooder meets the limit.
const STATIONS_PER_PORT_MAX: u32 = 300;
/// How much older an FDB entry may be in the table than it is.
const REFRESH_MILLIS: u64 = AGEING_MILLIS / 16 + 1_000;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Everything random comes from it.
    pub seed: u64,
    /// Workers that share the tables.
    pub workers: usize,
    /// Deeds that are done.
    pub deeds: usize,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash of every frame in order, with its verdict.
    pub hash: u64,
    /// Virtual seconds that it took.
    pub seconds: u64,
    /// Frames and copies, by what became of them.
    pub covered: BTreeMap<String, u64>,
}

/// A frame on its way into the switch.
#[derive(Clone, Debug)]
pub(super) struct Coming {
    pub port: PortId,
    pub bytes: Vec<u8>,
    pub kind: Kind,
}

/// One run.
pub struct BridgeSim {
    scenario: Scenario,
    pub(super) rng: Rng,
    pub(super) millis: u64,
    pub(super) plans: BTreeMap<PortId, Plan>,
    /// Those of each worker's picture.
    seen: Vec<Plans>,
    /// Pictures that workers have not taken up yet.
    pub(super) pending: Vec<(usize, Arc<Topology>, Plans)>,
    pub(super) topology: Topology,
    pub(super) fdb: Arc<Fdb>,
    pub(super) mdb: Arc<Mdb>,
    pub(super) workers: Vec<Switch>,
    links: [Held; Direction::ALL.len()],
    sequence: u64,
    mirrored: u64,
    pub(super) model: Model,
    log: DefaultHasher,
    covered: BTreeMap<String, u64>,
}

impl BridgeSim {
    /// A bridge at rest.
    pub fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::with_seed(scenario.seed);
        let mut plans = BTreeMap::new();
        for port in 1..=PORTS {
            plans.insert(PortId(port), any_plan(&mut rng, PortId(port)));
        }
        let topology = picture(&plans, 0);
        let limits = Limits {
            entries_per_port_max: STATIONS_PER_PORT_MAX,
            ..Limits::default()
        };
        let (fdb, mdb) = (Fdb::new(limits, scenario.seed), Mdb::new(scenario.seed));
        let (tables, storm) = (Tables::new(scenario.seed), StormMeters::new());
        let shared = Arc::new(topology.clone());
        let worker = |_| Switch {
            topology: Arc::clone(&shared),
            fdb: FdbView::live(Arc::clone(&fdb)),
            bridge: l2::State::new(ProbeKey::new(1)),
            storm: StormView::live(Arc::clone(&storm)),
            groups: MdbView::live(Arc::clone(&mdb)),
            gateway: State::live(&tables),
            counters: Arc::new(Counters::default()),
        };
        let seen = Arc::new(plans.clone());
        let workers: Vec<Switch> = (0..scenario.workers).map(worker).collect();
        Self {
            scenario,
            millis: 1_000_000,
            seen: workers.iter().map(|_| Arc::clone(&seen)).collect(),
            pending: Vec::new(),
            topology,
            fdb,
            mdb,
            workers,
            links: Direction::ALL.map(|direction| Held::new(direction, &mut rng)),
            sequence: 0,
            mirrored: 0,
            model: Model::default(),
            log: DefaultHasher::new(),
            covered: BTreeMap::new(),
            plans,
            rng,
        }
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// When an auditor finds fault.
    pub fn run(mut self) -> Report {
        let start = self.millis;
        let mut asked = 0;
        for _ in 0..self.scenario.deeds {
            self.millis += self.rng.u64(0..200);
            // The querier asks each VLAN; now and then it falls silent for too long.
            if self.millis >= asked {
                self.ask();
                let pause = if self.rng.u8(..) < 50 {
                    300_000
                } else {
                    60_000
                };
                asked = self.millis + pause;
            }
            self.pass_due();
            self.deed();
            self.take_up();
            self.audit_tables();
        }
        for held in &self.links {
            held.audit();
        }
        let frames = self.workers.iter().map(|worker| worker.counters.rx.get());
        assert_eq!(frames.sum::<u64>(), self.covered["frames"]);
        Report {
            hash: self.log.finish(),
            seconds: (self.millis - start) / 1_000,
            covered: self.covered,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.millis)
    }

    pub(super) fn count(&mut self, label: &str) {
        *self.covered.entry(label.to_owned()).or_default() += 1;
    }

    /// A frame of a VLAN as a port has it: by the newest plans, so an older worker may refuse it.
    pub(super) fn dressed(&mut self, port: PortId, vlan: u16, bytes: Vec<u8>) -> Vec<u8> {
        match self.plans[&port].vlans.get(&vlan) {
            Some(tagged) => as_it_leaves(&bytes, vlan, *tagged),
            None => bytes,
        }
    }

    /// A port, and a VLAN that it is in, if it is in any.
    pub(super) fn somewhere(&mut self) -> (PortId, u16) {
        let port = PortId(self.rng.u16(1..=PORTS));
        let vlans: Vec<u16> = self.plans[&port].vlans.keys().copied().collect();
        let vlan = self.rng.choice(&vlans).copied();
        (port, vlan.unwrap_or(1))
    }

    /// Some workers take up the newest picture.
    fn take_up(&mut self) {
        let mut questions = Vec::new();
        self.mdb.tick(&self.topology, self.now(), &mut questions);
        assert_eq!(questions, [], "the network has a querier of its own");
        let mut index = 0;
        while index < self.pending.len() {
            if self.rng.bool() {
                index += 1;
                continue;
            }
            let (worker, topology, plans) = self.pending.swap_remove(index);
            self.workers[worker].topology = topology;
            self.workers[worker].fdb.begin_batch();
            self.seen[worker] = plans;
        }
    }

    /// Has a frame of a VLAN come by a port.
    pub(super) fn come(&mut self, port: PortId, vlan: u16, bytes: Vec<u8>, kind: Kind) {
        let bytes = self.dressed(port, vlan, bytes);
        self.come_as_it_is(port, bytes, kind);
    }

    /// Has a frame come by a port: over its link, if it has one.
    pub(super) fn come_as_it_is(&mut self, port: PortId, bytes: Vec<u8>, kind: Kind) {
        let coming = Coming { port, bytes, kind };
        if port != FROM_AFAR {
            return self.enter(coming);
        }
        let now = self.now();
        self.sequence += 2;
        self.links[Direction::In as usize].take(&coming, now, self.sequence);
    }

    /// What links have held long enough goes on.
    fn pass_due(&mut self) {
        let now = self.now().nanos();
        for direction in Direction::ALL {
            while let Some(coming) = self.links[direction as usize].pass(now) {
                match direction {
                    Direction::In => self.enter(coming),
                    Direction::Out => self.count("copies from afar"),
                }
            }
        }
    }

    /// Takes one frame through the core, and judges it.
    pub(super) fn enter(&mut self, coming: Coming) {
        let worker = self.rng.usize(..self.workers.len());
        let Coming { port, bytes, kind } = coming;
        let (now, plans) = (self.now(), Arc::clone(&self.seen[worker]));
        let mut buf = FrameBuf::from_bytes(&bytes);
        let mut recorder = Recorder::new();
        let sw = &mut self.workers[worker];
        sw.fdb.begin_batch();
        let verdict = forward(sw, &mut Frame::new(port, &mut buf), now, &mut recorder);
        let takers = sw.groups.takers().to_vec();
        let (steps, topology) = (recorder.take(), Arc::clone(&sw.topology));
        self.count("frames");
        let label = match verdict.kind() {
            Ok(kind) => kind.label().to_owned(),
            Err(reason) => format!("drop {}", reason.label()),
        };
        self.count(&label);
        (self.millis, port.0, worker, &bytes, &label).hash(&mut self.log);
        let sent = Sent {
            port,
            bytes: &bytes,
            kind: &kind,
            millis: self.millis,
        };
        let fate = self.fate(&plans, &sent, &steps);
        let judged = judge(&fate, verdict, &takers, &topology, port);
        let (vlan, egress) = judged.unwrap_or_default();
        self.mirrored += u64::from(port != SPAN && plans[&port].up);
        for to in egress {
            self.leave(&plans, &topology, verdict, (to, vlan), &buf, &bytes);
        }
    }

    /// What must become of a frame; what the core has learned of it is judged on the way.
    fn fate(&mut self, plans: &BTreeMap<PortId, Plan>, sent: &Sent<'_>, steps: &[Step]) -> Fate {
        if sent.port == SPAN {
            return Fate::Drop("mirror_port");
        }
        let plan = &plans[&sent.port];
        if !plan.up {
            return Fate::Drop("port_down");
        }
        let vlan = match Model::classify(plan, sent.bytes) {
            Ok(vlan) => vlan,
            Err(dropped) => return Fate::Drop(dropped),
        };
        let learned = steps.iter().find_map(|step| match step {
            Step::Learned(learned) => Some(*learned),
            _ => None,
        });
        let src = MacAddr(sent.bytes[6..12].try_into().unwrap_or_default());
        self.judge_learning(sent, vlan, src, learned);
        let dst = MacAddr(sent.bytes[..6].try_into().unwrap_or_default());
        self.age(vlan, dst, steps);
        let fate = self.model.fate(plans, sent, vlan);
        let heard = steps.iter().find_map(|step| match step {
            Step::Snooped(heard) => Some(*heard),
            _ => None,
        });
        if let (Some(heard), Kind::Join { groups, .. }) = (heard, sent.kind) {
            assert_eq!(usize::from(heard.joined + heard.refused), groups.len());
            if heard.refused > 0 {
                self.count("groups refused");
                let known = self.model.groups_of(sent.port);
                assert!(known > GROUPS_PER_PORT_MAX, "refused with {known}");
                self.model.refused(sent.port, vlan, groups, sent.millis);
            }
        }
        fate
    }

    fn judge_learning(&mut self, sent: &Sent<'_>, vlan: u16, src: MacAddr, learned: Option<Learn>) {
        let known = self.model.station(vlan, src);
        let age = known.map(|(_, heard)| sent.millis - heard);
        let at = known.map(|(at, _)| at);
        match learned {
            Some(Learn::Known) => assert_eq!(at, Some(sent.port), "{src} in {vlan}"),
            Some(Learn::Moved { from }) => {
                assert_eq!(at, Some(from), "{src} in {vlan}");
                assert_ne!(from, sent.port);
                self.count("learn moved");
            }
            Some(Learn::New) => {
                let old = age.is_none_or(|age| age + REFRESH_MILLIS >= AGEING_MILLIS);
                assert!(old, "{src} in {vlan} was known: {known:?}");
            }
            Some(Learn::Full) => {
                let on_port = self.model.count_on(sent.port);
                assert!(on_port >= STATIONS_PER_PORT_MAX as usize, "{on_port}");
                return self.count("learn full");
            }
            Some(Learn::MoveRefused) => return self.count("learn refused"),
            other => panic!("{src} in {vlan}: {other:?}"),
        }
        self.model.learn(vlan, src, sent.port, sent.millis);
    }

    /// Forgets a station whose time is over, and at the edge of it goes by what the core says.
    fn age(&mut self, vlan: u16, dst: MacAddr, steps: &[Step]) {
        let Some((_, heard)) = self.model.station(vlan, dst) else {
            return;
        };
        let age = self.millis - heard;
        let found = steps
            .iter()
            .any(|step| matches!(step, Step::Lookup(Target::Unicast(_))));
        let edge = age + REFRESH_MILLIS >= AGEING_MILLIS && age <= AGEING_MILLIS + 1_000;
        if age > AGEING_MILLIS + 1_000 || edge && !found {
            self.count("stations aged");
            self.model.age_out(vlan, dst);
        }
    }

    /// A copy leaves: as its port has the VLAN, and over the port's link.
    fn leave(
        &mut self,
        plans: &BTreeMap<PortId, Plan>,
        topology: &Topology,
        verdict: Verdict,
        (to, vlan): (PortId, u16),
        buf: &FrameBuf,
        bytes: &[u8],
    ) {
        let tagged = plans[&to].vlans[&vlan];
        let mut copy = buf.clone();
        if !matches!(verdict, Verdict::Bridged(_)) {
            let port = topology.port(to);
            let form = port.and_then(|port| port.form(VlanId(vlan)));
            let form = form.unwrap_or_else(|| panic!("{to} is not in VLAN {vlan}"));
            assert!(reshape(&mut copy, VlanId(vlan), form));
        }
        assert_eq!(copy.bytes(), as_it_leaves(bytes, vlan, tagged), "by {to}");
        self.count(if tagged {
            "copies tagged"
        } else {
            "copies untagged"
        });
        self.mirrored += 1;
        if to == TO_AFAR {
            let (now, bytes) = (self.now(), copy.bytes().to_vec());
            self.sequence += 2;
            let kind = Kind::Plain;
            let coming = Coming {
                port: to,
                bytes,
                kind,
            };
            self.links[Direction::Out as usize].take(&coming, now, self.sequence);
        }
    }

    /// Tables stay within their limits, and mirrors show what they should.
    fn audit_tables(&mut self) {
        if self.rng.u8(..) > 8 {
            return;
        }
        let rows = self.mdb.rows(RED, self.now());
        for port in 1..=PORTS {
            let groups = rows.iter().filter(|row| row.port == PortId(port)).count();
            assert!(groups <= GROUPS_PER_PORT_MAX, "{groups} groups on {port}");
            let stations = self.fdb.usage_of(PortId(port)).stations;
            assert!(stations <= STATIONS_PER_PORT_MAX, "{stations} on {port}");
        }
        let [mirror] = self.topology.mirrors[..] else {
            panic!("one mirror");
        };
        for port in self.topology.ports.iter().flatten() {
            assert_eq!(mirror.copies_from(port), port.id != SPAN);
            assert_eq!(mirror.copies_to(port), port.id != SPAN);
        }
        self.covered.insert("mirrored".to_owned(), self.mirrored);
    }
}

/// Holds a verdict against what must be; the VLAN and the ports of the copies.
fn judge(
    fate: &Fate,
    verdict: Verdict,
    takers: &[PortId],
    topology: &Topology,
    ingress: PortId,
) -> Option<(u16, Vec<PortId>)> {
    match (fate, verdict) {
        (Fate::Drop(label), Verdict::Drop(reason)) => {
            assert_eq!(reason.label(), *label);
            None
        }
        (Fate::Bridged(vlan, to), Verdict::Bridged(port)) => {
            assert_eq!(*to, port);
            Some((*vlan, vec![port]))
        }
        (Fate::Flooded(vlan, class, ports), Verdict::Flooded(domain, in_vlan, found)) => {
            assert_eq!((domain, in_vlan, found), (RED, VlanId(*vlan), *class));
            let reached = topology.flood_set(domain, in_vlan, ingress, found);
            let reached: Vec<PortId> = reached.collect();
            assert_eq!(reached, *ports, "the flood set");
            Some((*vlan, reached))
        }
        (Fate::Group(vlan, must, may), Verdict::Multicast(domain, in_vlan)) => {
            assert_eq!((domain, in_vlan), (RED, VlanId(*vlan)));
            assert!(
                must.iter().all(|port| takers.contains(port)),
                "{must:?}: {takers:?}"
            );
            assert!(
                takers.iter().all(|port| may.contains(port)),
                "{may:?}: {takers:?}"
            );
            Some((*vlan, takers.to_vec()))
        }
        (Fate::Group(_, must, _), Verdict::Drop(reason)) => {
            assert_eq!((reason.label(), &must[..]), ("no_listener", &[][..]));
            None
        }
        (fate, verdict) => panic!("{fate:?} was to be, and it was {verdict}"),
    }
}
