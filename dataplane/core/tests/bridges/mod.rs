//! One script of frames through several bridges, and what left each of them by which port.
//!
//! The model says what a bridge does with a frame, and where the kernel's bridge and Causeway are
//! meant to differ: each is compared with what is expected of it, byte for byte and in order, and
//! whatever differs otherwise is a failure. The core is played in memory; the real dataplane and
//! the kernel's own bridge, which is the model's oracle, by the end-to-end suite.

#![allow(dead_code)]

pub mod bottle;
pub mod model;
pub mod script;
pub mod vlan;

use std::fmt::Write as _;
use std::time::Duration;

use dataplane_core::addr::MacAddr;

use script::{Op, Script};
use vlan::Vlans;

/// Ports of every bridge.
pub const PORTS: usize = 5;

/// What left by each port, in order.
pub type Outputs = [Vec<Vec<u8>>; PORTS];

/// What is switched on for a port, as bridge(8) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// Stations that are heard on it are learned.
    Learning,
    /// Unicast to stations that nobody knows leaves by it.
    Flood,
    /// Multicast leaves by it.
    McastFlood,
    /// Broadcast leaves by it.
    BcastFlood,
    /// It and other isolated ports do not reach each other.
    Isolated,
    /// What came by it may leave by it.
    Hairpin,
}

impl Flag {
    /// Every flag.
    pub const ALL: [Self; 6] = [
        Self::Learning,
        Self::Flood,
        Self::McastFlood,
        Self::BcastFlood,
        Self::Isolated,
        Self::Hairpin,
    ];

    /// Whether it is on for a new port.
    pub const fn default(self) -> bool {
        match self {
            Self::Learning | Self::Flood | Self::McastFlood | Self::BcastFlood => true,
            Self::Isolated | Self::Hairpin => false,
        }
    }
}

/// An entry that is set, not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It neither ages nor moves.
    Static,
    /// It ages and does not move.
    Sticky,
}

/// A change of a bridge's settings or table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Forgets what was learned on a port.
    Flush(usize),
    /// Switches a flag of a port.
    Flag {
        /// Which port.
        port: usize,
        /// Which flag.
        flag: Flag,
        /// Whether it is on from now on.
        on: bool,
    },
    /// Sets a station's entry.
    Set {
        /// The station.
        mac: [u8; 6],
        /// Where it is.
        port: usize,
        /// What the entry is.
        kind: Kind,
    },
    /// Removes a station's entry, of whatever kind.
    Remove([u8; 6]),
    /// Stations are forgotten when they were not heard for so long.
    Ageing(Duration),
    /// So much time passes.
    Pass(Duration),
    /// Gives a port its VLANs; from the first time on, VLANs count.
    Vlans {
        /// Which port.
        port: usize,
        /// Which VLANs.
        vlans: Vlans,
    },
}

/// A bridge that scripts are played to.
pub trait Bridge {
    /// Gives it a frame by a port. Frames of later calls come after it, by whichever port.
    fn send(&mut self, port: usize, frame: &[u8]);

    /// Changes it, once everything that was sent is through.
    fn change(&mut self, change: Change);

    /// What has left since the last call, once everything that was sent is through.
    fn collect(&mut self) -> Outputs;
}

/// Plays a whole script.
pub fn play(bridge: &mut dyn Bridge, script: &Script) -> Outputs {
    for op in &script.ops {
        match op {
            Op::Send { port, frame } => bridge.send(*port, frame),
            Op::Change(change) => bridge.change(*change),
        }
    }
    bridge.collect()
}

/// Scripts that a suite plays when the environment does not say.
const SCRIPTS: u64 = 2_000;
/// The first of their seeds.
const SEED_DEFAULT: u64 = 0x00b1_d9e5;

/// One in `share` of the scripts of a run; `SEED` names the first one, `SCRIPTS` how many there are.
pub fn scripts(share: u64) -> impl Iterator<Item = Script> {
    scripts_of(share, Script::new)
}

/// The same of scripts that are made otherwise.
pub fn scripts_of(share: u64, make: fn(u64) -> Script) -> impl Iterator<Item = Script> {
    let number = |name, default| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (first, count) = (number("SEED", SEED_DEFAULT), number("SCRIPTS", SCRIPTS));
    (first..first + (count / share).max(1)).map(make)
}

/// Wants of a bridge what the model says of a script.
///
/// # Panics
/// With the first frames that differ, and the variables that play this script alone.
pub fn agree(name: &str, script: &Script, wanted: &Outputs, found: &Outputs) {
    if let Some(text) = difference(wanted, found) {
        panic!("{name}, SEED={} SCRIPTS=1:\n{text}", script.seed);
    }
}

/// Where two outputs part, for people; `None` when they are the same.
fn difference(wanted: &Outputs, found: &Outputs) -> Option<String> {
    let mut text = String::new();
    for (port, (wanted, found)) in wanted.iter().zip(found).enumerate() {
        let Some(at) = first_difference(wanted, found) else {
            continue;
        };
        let show = |frames: &[Vec<u8>]| frames.get(at).map_or("nothing".to_owned(), |f| sketch(f));
        let _ = writeln!(
            text,
            "port {port}, frame {at}: wanted {}, found {} ({} and {} frames in all)",
            show(wanted),
            show(found),
            wanted.len(),
            found.len()
        );
    }
    (!text.is_empty()).then_some(text)
}

fn first_difference(wanted: &[Vec<u8>], found: &[Vec<u8>]) -> Option<usize> {
    let longest = wanted.len().max(found.len());
    (0..longest).find(|at| wanted.get(*at) != found.get(*at))
}

/// A frame in a few words.
fn sketch(frame: &[u8]) -> String {
    let address = |at: usize| {
        let octets = frame.get(at..at + 6).and_then(|six| six.try_into().ok());
        octets.map_or(MacAddr::ZERO, MacAddr)
    };
    let number = script::number(frame).map_or("?".to_owned(), |number| number.to_string());
    let rest: Vec<String> = frame
        .iter()
        .skip(12)
        .take(12)
        .map(|b| format!("{b:02x}"))
        .collect();
    format!(
        "frame {number} from {} to {} of {} bytes ({}...)",
        address(6),
        address(0),
        frame.len(),
        rest.concat()
    )
}
