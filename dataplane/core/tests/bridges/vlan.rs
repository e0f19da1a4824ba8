//! VLANs of the bridges that are compared, and what the model does with tags: frames are taken apart
//! and put together again, where the core moves a few bytes.

use dataplane_core::addr::VlanId;
use dataplane_core::l2::{Form, PortVlans};
use fastrand::Rng;

use super::PORTS;

/// The VLANs that ports may be in.
pub const VIDS: [u16; 4] = [1, 10, 20, 4_094];
/// One in which no port is.
pub const FOREIGN: u16 = 30;

/// TPID of a customer tag.
const CUSTOMER: [u8; 2] = [0x81, 0x00];

/// How a port takes the frames of a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Not at all.
    No,
    /// With a tag.
    Tagged,
    /// Without.
    Untagged,
}

/// The VLANs of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// In the order of [`VIDS`].
    pub members: [Member; VIDS.len()],
    /// That of frames without a tag, by its place in [`VIDS`].
    pub pvid: Option<usize>,
}

impl Vlans {
    /// Drawn: most ports are in most VLANs.
    pub fn random(rng: &mut Rng) -> Self {
        let members = std::array::from_fn(|_| match rng.u8(..8) {
            0..2 => Member::No,
            2..5 => Member::Tagged,
            _ => Member::Untagged,
        });
        let pvid = rng.usize(..VIDS.len());
        Self {
            members,
            pvid: (members[pvid] != Member::No && rng.u8(..8) > 0).then_some(pvid),
        }
    }

    /// The same as the core has them.
    pub fn of_core(self) -> PortVlans {
        let mut vlans = PortVlans::NONE;
        for (vid, member) in VIDS.into_iter().zip(self.members) {
            match member {
                Member::No => {}
                Member::Tagged => vlans.add(vid..=vid, Form::Tagged),
                Member::Untagged => vlans.add(vid..=vid, Form::Untagged),
            }
        }
        if let Some(pvid) = self.pvid {
            vlans.set_pvid(VlanId(VIDS[pvid]));
        }
        vlans
    }

    fn member(self, vid: u16) -> Member {
        let place = VIDS.into_iter().position(|other| other == vid);
        place.map_or(Member::No, |place| self.members[place])
    }
}

/// A frame within a bridge for which VLANs count.
#[derive(Clone, Debug)]
pub struct Classified {
    /// Its VLAN.
    pub vid: u16,
    /// Priority and drop eligibility, as a tag has them.
    priority: u16,
    /// The frame without the tag of the VLAN.
    bare: Vec<u8>,
}

/// What became of a frame where it entered.
pub enum Entry {
    /// VLANs do not count.
    Transparent,
    /// It is in a VLAN.
    In(Classified),
    /// It ends, and why.
    Out(&'static str),
}

/// The VLANs of every port, where they count.
#[derive(Clone, Debug, Default)]
pub struct VlanModel {
    ports: Option<[Option<Vlans>; PORTS]>,
}

impl VlanModel {
    /// Gives a port its VLANs; from the first time on, VLANs count.
    pub fn set(&mut self, port: usize, vlans: Vlans) {
        self.ports.get_or_insert_default()[port] = Some(vlans);
    }

    /// Has a frame enter; with it, what is to be covered.
    pub fn enter(&self, port: usize, frame: &[u8]) -> Entry {
        let Some(ports) = &self.ports else {
            return Entry::Transparent;
        };
        let Some(vlans) = ports[port] else {
            return Entry::Out("vlan: no PVID");
        };
        let (mut vid, mut priority, mut bare) = (0, 0, frame.to_vec());
        if frame[12..14] == CUSTOMER && frame.len() >= 18 {
            let tci = u16::from_be_bytes([frame[14], frame[15]]);
            (vid, priority) = (tci % 4_096, tci - tci % 4_096);
            bare = [&frame[..12], &frame[16..]].concat();
        }
        if vid == 0 {
            match vlans.pvid {
                Some(pvid) => vid = VIDS[pvid],
                None => return Entry::Out("vlan: no PVID"),
            }
        } else if vlans.member(vid) == Member::No {
            return Entry::Out("vlan: not allowed in");
        }
        Entry::In(Classified {
            vid,
            priority,
            bare,
        })
    }

    /// The frame as it leaves by a port, if it may; and what is to be covered.
    pub fn leave(&self, port: usize, frame: &Classified) -> (Option<Vec<u8>>, &'static str) {
        let vlans = self.ports.and_then(|ports| ports[port]);
        match vlans.map_or(Member::No, |vlans| vlans.member(frame.vid)) {
            Member::No => (None, "vlan: not allowed out"),
            Member::Untagged => (Some(frame.bare.clone()), "vlan: untagged out"),
            Member::Tagged => {
                let tci = (frame.priority + frame.vid).to_be_bytes();
                let (macs, rest) = frame.bare.split_at(12);
                let whole = [macs, &CUSTOMER, &tci, rest].concat();
                (Some(whole), "vlan: tagged out")
            }
        }
    }
}
