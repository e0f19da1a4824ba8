//! Scripts: frames of a few stations, drawn from a seed.
//!
//! A script has stations of its own, whose MACs follow from its seed, so that thousands of scripts
//! can be played to one bridge and none knows of the other. Every frame carries its number, by
//! which it is told from every other of its script.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

use super::vlan::{FOREIGN, VIDS, Vlans};
use super::{Change, Flag, Kind, PORTS};

/// Frames of a script.
pub const FRAMES: usize = 60;
/// Stations that speak.
const STATIONS: usize = 7;
/// Stations that are only spoken to.
const SILENT: usize = 2;
/// Bytes of the smallest frame without its check sequence (IEEE 802.3 clause 4.2.3.3).
const SIZE_MIN: usize = 60;
/// Bytes of the largest frame at an MTU of 1,500.
const SIZE_MAX: usize = 1_514;
/// One script in so many has stations that move: a worker lets only so many through in a second.
const MOVING: u64 = 8;

/// Stations of the script in which they fall silent.
const AGEING_STATIONS: usize = 120;
/// Stations with an entry that is set, static and sticky in turn. Every second two say something,
/// from where they are and from elsewhere.
const AGEING_SET: usize = 40;
/// Who speaks to each of them, and from where: there nobody else is.
const AGEING_ASKER: usize = 200;
const AGEING_ASKER_PORT: usize = PORTS - 1;
/// How long they are remembered in it.
const AGEING: Duration = Duration::from_secs(6);
/// One in so many speaks again, and when.
const AGEING_SPEAKER: usize = 6;
const AGEING_AGAIN: Duration = Duration::from_secs(5);
/// How much later each is spoken to. Those that have spoken again are remembered with more than a
/// second to spare, the others forgotten with two: Causeway counts in seconds, and the kernel sweeps
/// its table at full ones.
const AGEING_ASKED: Duration = Duration::from_millis(3_400);

const BROADCAST: [u8; 6] = [0xff; 6];

/// What is done to a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A frame enters by a port.
    Send {
        /// Which.
        port: usize,
        /// Its bytes.
        frame: Vec<u8>,
    },
    /// The bridge is changed.
    Change(Change),
}

/// A script, the same for the same seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What it follows from.
    pub seed: u64,
    /// Its steps.
    pub ops: Vec<Op>,
}

impl Script {
    /// The script of a seed.
    pub fn new(seed: u64) -> Self {
        let mut writer = Writer::new(seed);
        while writer.frames < FRAMES {
            writer.step();
        }
        writer.tidy();
        Self {
            seed,
            ops: writer.ops,
        }
    }
}

impl Script {
    /// The script of a seed in which VLANs count: ports are in some and get others.
    pub fn vlans(seed: u64) -> Self {
        let mut writer = Writer::new(seed);
        writer.tags = Tags::OfVlans;
        for port in 0..PORTS {
            let vlans = Vlans::random(&mut writer.rng);
            writer.ops.push(Op::Change(Change::Vlans { port, vlans }));
        }
        while writer.frames < FRAMES {
            writer.step();
        }
        writer.tidy();
        Self {
            seed,
            ops: writer.ops,
        }
    }

    /// A script of stations that fall silent: all speak, later one in six again, and when
    /// the time of the others is over, each is spoken to. So are stations whose entries were set.
    pub fn ageing(seed: u64) -> Self {
        let mut writer = Writer::new(seed);
        let stations = 0..AGEING_STATIONS;
        writer.ops.push(Op::Change(Change::Ageing(AGEING)));
        for station in stations.clone() {
            writer.say(station, BROADCAST);
        }
        let set = AGEING_STATIONS..AGEING_STATIONS + AGEING_SET;
        for station in set.clone() {
            let (mac, port) = (writer.station(station), station % AGEING_ASKER_PORT);
            let kind = if station % 2 == 0 {
                Kind::Static
            } else {
                Kind::Sticky
            };
            writer.ops.push(Op::Change(Change::Set { mac, port, kind }));
        }
        writer.ops.push(Op::Change(Change::Pass(AGEING_AGAIN)));
        for station in stations.clone().step_by(AGEING_SPEAKER) {
            writer.say(station, BROADCAST);
        }
        for station in set.clone().filter(|station| station % 4 >= 2) {
            writer.say(station, BROADCAST);
            writer.say_from(station + 1, station, BROADCAST);
        }
        writer.ops.push(Op::Change(Change::Pass(AGEING_ASKED)));
        for station in stations.chain(set.clone()) {
            let dst = writer.station(station);
            let src = writer.station(AGEING_ASKER);
            let frame = writer.frame(dst, src);
            let port = AGEING_ASKER_PORT;
            writer.ops.push(Op::Send { port, frame });
        }
        for station in set {
            let mac = writer.station(station);
            writer.ops.push(Op::Change(Change::Remove(mac)));
        }
        Self {
            seed,
            ops: writer.ops,
        }
    }
}

/// The number of a frame that a script has made.
pub fn number(frame: &[u8]) -> Option<u32> {
    frame.last_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Which tags frames have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tags {
    /// A few, of any VLAN: the bridges are transparent to them.
    Any,
    /// Those of VLANs that ports are in, for the most part.
    OfVlans,
}

struct Writer {
    seed: u64,
    tags: Tags,
    rng: Rng,
    /// The ports that the stations are behind.
    homes: [usize; STATIONS],
    /// Flags that were switched, as they are.
    flags: BTreeMap<(usize, Flag), bool>,
    frames: usize,
    ops: Vec<Op>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let homes = std::array::from_fn(|_| rng.usize(..PORTS));
        Self {
            seed,
            tags: Tags::Any,
            rng,
            homes,
            flags: BTreeMap::new(),
            frames: 0,
            ops: Vec::new(),
        }
    }

    fn step(&mut self) {
        if self.rng.u8(..) < 16 {
            let change = self.change();
            self.ops.push(Op::Change(change));
        }
        let station = self.rng.usize(..STATIONS);
        if self.seed.is_multiple_of(MOVING) && self.rng.u8(..) < 24 {
            self.homes[station] = self.rng.usize(..PORTS);
        }
        let (src, dst) = (self.source(station), self.destination(station));
        let frame = self.frame(dst, src);
        let port = self.homes[station];
        self.ops.push(Op::Send { port, frame });
    }

    fn change(&mut self) -> Change {
        let port = self.rng.usize(..PORTS);
        let mac = self.station(self.homes.len() - 1);
        if self.tags == Tags::OfVlans && self.rng.bool() {
            let vlans = Vlans::random(&mut self.rng);
            return Change::Vlans { port, vlans };
        }
        match self.rng.u8(..16) {
            0..4 => Change::Flush(port),
            4..12 => {
                let flag = Flag::ALL[self.rng.usize(..Flag::ALL.len())];
                let on = self.flags.entry((port, flag)).or_insert(flag.default());
                *on = !*on;
                Change::Flag {
                    port,
                    flag,
                    on: *on,
                }
            }
            12..15 => {
                let kind = if self.rng.bool() {
                    Kind::Static
                } else {
                    Kind::Sticky
                };
                Change::Set { mac, port, kind }
            }
            _ => Change::Remove(mac),
        }
    }

    /// Leaves a bridge as a new one is.
    fn tidy(&mut self) {
        for ((port, flag), on) in std::mem::take(&mut self.flags) {
            if on != flag.default() {
                let on = flag.default();
                self.ops.push(Op::Change(Change::Flag { port, flag, on }));
            }
        }
        let mac = self.station(STATIONS - 1);
        self.ops.push(Op::Change(Change::Remove(mac)));
    }

    /// A station says something from a port that is its own for the whole script.
    fn say(&mut self, station: usize, dst: [u8; 6]) {
        self.say_from(station, station, dst);
    }

    /// A station says something from the port of another one.
    fn say_from(&mut self, other: usize, station: usize, dst: [u8; 6]) {
        let src = self.station(station);
        let frame = self.frame(dst, src);
        let port = other % AGEING_ASKER_PORT;
        self.ops.push(Op::Send { port, frame });
    }

    /// The MAC of a station; those from [`STATIONS`] on are silent.
    fn station(&self, index: usize) -> [u8; 6] {
        let [.., a, b, c, d] = self.seed.to_be_bytes();
        [0x06, a, b, c, d, index as u8 + 1]
    }

    /// Now and then an address that no station can have.
    fn source(&mut self, station: usize) -> [u8; 6] {
        let mut mac = self.station(station);
        match self.rng.u8(..) {
            0..6 => mac[0] |= 1,
            6..10 => mac = [0; 6],
            _ => {}
        }
        mac
    }

    fn destination(&mut self, station: usize) -> [u8; 6] {
        match self.rng.u8(..100) {
            0..55 => {
                let other = self.rng.usize(..STATIONS);
                self.station(other)
            }
            55..63 => {
                let silent = self.rng.usize(..SILENT);
                self.station(STATIONS + silent)
            }
            63..65 => self.station(station),
            65..77 => BROADCAST,
            77..81 => [0x01, 0x00, 0x5e, self.rng.u8(..128), self.rng.u8(..), 1],
            81..85 => [0x33, 0x33, 0, self.rng.u8(..), 0, self.rng.u8(..)],
            85..88 => [0x03, self.rng.u8(..), 0, 0, 0, self.rng.u8(..)],
            88..90 => [0x01, 0x80, 0xc2, 0, self.rng.u8(..2), 0x10],
            _ => [0x01, 0x80, 0xc2, 0, 0, self.rng.u8(..16)],
        }
    }

    /// TPID and content of a tag: of a customer or a service.
    fn tag(&mut self) -> Option<(u16, u16)> {
        match (self.tags, self.rng.u8(..16)) {
            (Tags::Any | Tags::OfVlans, 0) => Some((0x8100, self.rng.u16(..))),
            (Tags::Any | Tags::OfVlans, 1) => Some((0x88a8, self.rng.u16(..))),
            (Tags::OfVlans, 2..9) => {
                let vid = match self.rng.usize(..VIDS.len() + 2) {
                    0 => 0,
                    1 => FOREIGN,
                    place => VIDS[place - 2],
                };
                Some((0x8100, self.rng.u16(..) & 0xf000 | vid))
            }
            (Tags::Any | Tags::OfVlans, _) => None,
        }
    }

    fn frame(&mut self, dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
        let size = match self.rng.u8(..8) {
            0 => SIZE_MAX,
            1 | 2 => self.rng.usize(SIZE_MIN..=SIZE_MAX),
            _ => self.rng.usize(SIZE_MIN..SIZE_MIN + 80),
        };
        let mut bytes = [dst, src].concat();
        if let Some((tpid, tci)) = self.tag() {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        // Local experiments, IP and ARP of random content, LLC.
        let kind = match self.rng.u8(..8) {
            0 => 0x0800_u16,
            1 => 0x86dd,
            2 => 0x0806,
            3 => 0x0040,
            _ => 0x88b5,
        };
        bytes.extend(kind.to_be_bytes());
        while bytes.len() + 4 < size {
            bytes.push(self.rng.u8(..));
        }
        bytes.truncate(size - 4);
        bytes.extend((self.frames as u32).to_be_bytes());
        self.frames += 1;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_script_and_another_one_another() {
        assert_eq!(Script::new(7), Script::new(7));
        assert_ne!(Script::new(7), Script::new(8));
    }

    #[test]
    fn frames_are_as_long_as_ethernet_has_them_and_numbered_in_order() {
        for seed in 0..200 {
            let script = Script::new(seed);
            let frames = script.ops.iter().filter_map(|op| match op {
                Op::Send { frame, .. } => Some(frame),
                Op::Change(_) => None,
            });
            let mut count = 0;
            for frame in frames {
                assert!((SIZE_MIN..=SIZE_MAX).contains(&frame.len()));
                assert_eq!(number(frame), Some(count));
                count += 1;
            }
            assert_eq!(count as usize, FRAMES);
        }
    }
}
