//! What a bridge does with a frame, by a `BTreeMap` and no thought of speed.

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane_core::topology::AGEING_DEFAULT;

use super::{Bridge, Change, Outputs, PORTS};

/// Which bridge it is that the model speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The kernel's.
    Kernel,
    /// Causeway.
    Causeway,
}

/// Where the two are meant to differ. Each is in `docs/manual/bridge.md` with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Without spanning tree the kernel floods what is sent to 01:80:c2:00:00:00.
    BpduFlooded,
    /// The kernel learns the source of a frame to another link-local group, which goes nowhere.
    LinkLocalLearned,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::BpduFlooded, Self::LinkLocalLearned];

    /// Its name in the manual and in coverage.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BpduFlooded => "differs: BPDU flooded",
            Self::LinkLocalLearned => "differs: link-local source learned",
        }
    }
}

/// What a run has to have made a bridge do.
const COVERED: [&str; 12] = [
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
];
/// How often.
const COVERED_MIN: u64 = 100;

/// What a script has made a bridge do: how often, by name.
pub type Coverage = BTreeMap<&'static str, u64>;

/// What is known of a station.
#[derive(Clone, Copy, Debug)]
struct Station {
    /// Where it was heard last.
    port: usize,
    /// When.
    heard: Duration,
}

/// The model switch.
#[derive(Clone, Debug)]
pub struct Model {
    side: Side,
    stations: BTreeMap<[u8; 6], Station>,
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
        println!("covered: {:?}", self.coverage);
        if std::env::var_os("SCRIPTS").is_some() {
            return;
        }
        let differences = Difference::ALL.map(Difference::name);
        for what in COVERED.into_iter().chain(differences) {
            let count = self.count(what);
            assert!(count >= COVERED_MIN, "{what}: only {count} times");
        }
    }

    fn cover(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    fn learn(&mut self, src: [u8; 6], port: usize) {
        let heard = self.now;
        match self.stations.insert(src, Station { port, heard }) {
            None => self.cover("new station"),
            Some(before) if before.port != port => self.cover("move"),
            Some(_) => self.cover("known station"),
        }
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
                    self.learn(src, port);
                }
                false
            }
        }
    }

    fn deliver(&mut self, dst: [u8; 6], port: usize, frame: &[u8]) {
        let known = self.stations.get(&dst).map(|station| station.port);
        let (what, egress) = match (dst, known) {
            ([0xff, 0xff, 0xff, 0xff, 0xff, 0xff], _) => ("broadcast", None),
            ([first, ..], _) if first & 1 == 1 => ("multicast", None),
            (_, None) => ("unknown unicast", None),
            (_, Some(egress)) if egress == port => ("known on the same port", Some(egress)),
            (_, Some(egress)) => ("known unicast", Some(egress)),
        };
        self.cover(what);
        for other in 0..PORTS {
            let takes = egress.is_none_or(|egress| egress == other);
            if other != port && takes {
                self.outputs[other].push(frame.to_vec());
            }
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
        self.learn(src, port);
        self.deliver(dst, port, frame);
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Flush(port) => {
                self.cover("flush");
                self.stations.retain(|_, station| station.port != port);
            }
            Change::Ageing(ageing) => self.ageing = ageing,
            Change::Pass(time) => {
                self.now += time;
                let (now, ageing) = (self.now, self.ageing);
                let before = self.stations.len();
                self.stations
                    .retain(|_, station| now - station.heard < ageing);
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
