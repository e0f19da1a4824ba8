//! What a bridge does with a frame, by a `BTreeMap` and no thought of speed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dataplane_core::topology::AGEING_DEFAULT;

use super::vlan::{Classified, Entry, VlanModel};
use super::{Bridge, Change, Flag, Kind, Outputs, PORTS};

/// Which bridge it is that the model speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The kernel's.
    Kernel,
    /// Causeway.
    Causeway,
}

/// Where the two are meant to differ. Each is in `docs/manual/kernel-bridge.md` with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Without spanning tree the kernel floods what is sent to 01:80:c2:00:00:00.
    BpduFlooded,
    /// A static entry of the kernel moves, unless it is sticky as well.
    StaticMoved,
    /// The kernel learns the source of a frame to another link-local group, which goes nowhere.
    LinkLocalLearned,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BpduFlooded, Self::LinkLocalLearned, Self::StaticMoved];

    /// Its name in the manual and in coverage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BpduFlooded => "differs: BPDU flooded",
            Self::LinkLocalLearned => "differs: link-local source learned",
            Self::StaticMoved => "differs: static entry moved",
        }
    }
}

/// What a run has to have made a bridge do.
const COVERED: [&str; 20] = [
    "new station",
    "known station",
    "move",
    "known unicast",
    "known on the same port",
    "unknown unicast",
    "broadcast",
    "multicast",
    "link-local group",
    "group source",
    "zero source",
    "flush",
    "learning off",
    "flood off",
    "mcast-flood off",
    "bcast-flood off",
    "isolated",
    "hairpin",
    "set entry",
    "sticky entry holds",
];
/// What a run in which VLANs count has to have made one do.
const COVERED_OF_VLANS: [&str; 10] = [
    "new station",
    "move",
    "known unicast",
    "unknown unicast",
    "broadcast",
    "vlan: no PVID",
    "vlan: not allowed in",
    "vlan: not allowed out",
    "vlan: tagged out",
    "vlan: untagged out",
];
/// How often.
const COVERED_MIN: u64 = 100;

/// What a script has made a bridge do: how often, by name.
pub type Coverage = BTreeMap<&'static str, u64>;

/// What is known of a station.
#[derive(Clone, Copy, Debug)]
struct Station {
    /// Whether its entry was set, and as what.
    set: Option<Kind>,
    /// Where it was heard last.
    port: usize,
    /// When.
    heard: Duration,
}

/// The model switch.
#[derive(Clone, Debug)]
pub struct Model {
    side: Side,
    /// By VLAN, 0 where they do not count, and MAC.
    stations: BTreeMap<(u16, [u8; 6]), Station>,
    vlans: VlanModel,
    /// Flags that are not as on a new port.
    switched: BTreeSet<(usize, Flag)>,
    now: Duration,
    ageing: Duration,
    outputs: Outputs,
    coverage: Coverage,
}

impl Model {
    /// A switch that has heard nobody.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            stations: BTreeMap::new(),
            vlans: VlanModel::default(),
            switched: BTreeSet::new(),
            now: Duration::ZERO,
            ageing: AGEING_DEFAULT,
            outputs: Outputs::default(),
            coverage: Coverage::new(),
        }
    }

    /// How often something was done.
    pub fn count(&self, what: &str) -> u64 {
        self.coverage.get(what).copied().unwrap_or_default()
    }

    /// Wants each kind of thing to have happened often, and prints how often it did.
    ///
    /// # Panics
    /// When one was too rare, unless the run was a short one.
    pub fn check_coverage(&self) {
        let differences = Difference::ALL.map(Difference::name);
        self.check(COVERED.into_iter().chain(differences));
    }

    /// The same of a run in which VLANs count.
    ///
    /// # Panics
    /// As [`Model::check_coverage`].
    pub fn check_coverage_of_vlans(&self) {
        self.check(COVERED_OF_VLANS);
    }

    fn check(&self, wanted: impl IntoIterator<Item = &'static str>) {
        println!("covered: {:?}", self.coverage);
        if std::env::var_os("SCRIPTS").is_some() {
            return;
        }
        for what in wanted {
            let count = self.count(what);
            assert!(count >= COVERED_MIN, "{what}: only {count} times");
        }
    }

    fn cover(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    fn has(&self, port: usize, flag: Flag) -> bool {
        flag.default() != self.switched.contains(&(port, flag))
    }

    fn learn(&mut self, src: (u16, [u8; 6]), port: usize) {
        if !self.has(port, Flag::Learning) {
            return self.cover("learning off");
        }
        let known = self.stations.get(&src).copied();
        let (heard, mut set) = (self.now, None);
        match known {
            None => self.cover("new station"),
            Some(there) if there.port == port => {
                set = there.set;
                self.cover("known station");
            }
            Some(there) => match there.set {
                None => self.cover("move"),
                Some(Kind::Sticky) => return self.cover("sticky entry holds"),
                Some(Kind::Static) => {
                    set = there.set;
                    if !self.differs(Difference::StaticMoved) {
                        return;
                    }
                }
            },
        }
        self.stations.insert(src, Station { set, port, heard });
    }

    /// Whether the kernel's way is to be gone where the two differ.
    fn differs(&mut self, difference: Difference) -> bool {
        self.cover(difference.name());
        self.side == Side::Kernel
    }

    /// Whether a frame to a link-local group goes on; the kernel learns of its sender.
    fn link_local(&mut self, group: u8, src: [u8; 6], port: usize) -> bool {
        self.cover("link-local group");
        match group {
            0 => self.differs(Difference::BpduFlooded),
            // Pause frames are dropped at once.
            1 => false,
            _ => {
                if self.differs(Difference::LinkLocalLearned) {
                    self.learn((0, src), port);
                }
                false
            }
        }
    }

    fn deliver(&mut self, dst: [u8; 6], port: usize, frame: &Inside<'_>) {
        let known = self.stations.get(&(frame.vid(), dst));
        let known = known.map(|station| station.port);
        let (what, flag, off) = match (dst, known) {
            ([0xff, 0xff, 0xff, 0xff, 0xff, 0xff], _) => {
                ("broadcast", Flag::BcastFlood, "bcast-flood off")
            }
            ([first, ..], _) if first & 1 == 1 => {
                ("multicast", Flag::McastFlood, "mcast-flood off")
            }
            (_, None) => ("unknown unicast", Flag::Flood, "flood off"),
            (_, Some(egress)) => return self.bridge(port, egress, frame),
        };
        self.cover(what);
        for other in 0..PORTS {
            if self.has(other, flag) {
                self.leave(port, other, frame);
            } else if other != port {
                self.cover(off);
            }
        }
    }

    fn bridge(&mut self, port: usize, egress: usize, frame: &Inside<'_>) {
        self.cover(if egress == port {
            "known on the same port"
        } else {
            "known unicast"
        });
        self.leave(port, egress, frame);
    }

    /// Lets a frame that entered by one port leave by another, if it may.
    fn leave(&mut self, port: usize, egress: usize, frame: &Inside<'_>) {
        if port == egress && !self.has(port, Flag::Hairpin) {
            return;
        }
        if self.has(port, Flag::Isolated) && self.has(egress, Flag::Isolated) {
            return self.cover("isolated");
        }
        if port == egress {
            self.cover("hairpin");
        }
        match frame {
            Inside::Transparent(frame) => self.outputs[egress].push(frame.to_vec()),
            Inside::Classified(frame) => {
                let (sent, what) = self.vlans.leave(egress, frame);
                self.cover(what);
                self.outputs[egress].extend(sent);
            }
        }
    }
}

/// A frame that was let in.
enum Inside<'f> {
    Transparent(&'f [u8]),
    Classified(Classified),
}

impl Inside<'_> {
    fn vid(&self) -> u16 {
        match self {
            Self::Transparent(_) => 0,
            Self::Classified(frame) => frame.vid,
        }
    }
}

impl Bridge for Model {
    fn send(&mut self, port: usize, frame: &[u8]) {
        let Some(([dst, src], _)) = frame.as_chunks::<6>().0.split_first_chunk() else {
            return;
        };
        let (dst, src) = (*dst, *src);
        if src[0] & 1 == 1 {
            return self.cover("group source");
        }
        if src == [0; 6] {
            return self.cover("zero source");
        }
        if let [0x01, 0x80, 0xc2, 0, 0, group @ 0..16] = dst
            && !self.link_local(group, src, port)
        {
            return;
        }
        let inside = match self.vlans.enter(port, frame) {
            Entry::Transparent => Inside::Transparent(frame),
            Entry::In(frame) => Inside::Classified(frame),
            Entry::Out(what) => return self.cover(what),
        };
        self.learn((inside.vid(), src), port);
        self.deliver(dst, port, &inside);
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Flush(port) => {
                self.cover("flush");
                self.stations
                    .retain(|_, station| station.port != port || station.set == Some(Kind::Static));
            }
            Change::Flag { port, flag, on } => {
                if on == flag.default() {
                    self.switched.remove(&(port, flag));
                } else {
                    self.switched.insert((port, flag));
                }
            }
            Change::Set { mac, port, kind } => {
                self.cover("set entry");
                let (set, heard) = (Some(kind), self.now);
                self.stations.insert((0, mac), Station { set, port, heard });
            }
            Change::Remove(mac) => {
                self.stations.remove(&(0, mac));
            }
            Change::Vlans { port, vlans } => self.vlans.set(port, vlans),
            Change::Ageing(ageing) => self.ageing = ageing,
            Change::Pass(time) => {
                self.now += time;
                let (now, ageing) = (self.now, self.ageing);
                let before = self.stations.len();
                self.stations.retain(|_, station| {
                    station.set == Some(Kind::Static) || now - station.heard < ageing
                });
                for _ in self.stations.len()..before {
                    self.cover("aged");
                }
            }
        }
    }

    fn collect(&mut self) -> Outputs {
        std::mem::take(&mut self.outputs)
    }
}
