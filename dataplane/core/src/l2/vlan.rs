//! VLANs of a port: in which one a frame enters, and how it leaves (IEEE 802.1Q-2018 clauses 6.9,
//! 8.6.2 and 8.8.2), as net/bridge/br_vlan.c has it.
//!
//! A frame is in one VLAN: that of its customer tag (0x8100), or the port's PVID where it has none
//! or one of VLAN 0, which only gives a priority. A service tag (802.1ad, 0x88a8) is no customer tag:
//! such a frame has the PVID, and passes with its tags as they are. On the way out a port is either a
//! tagged or an untagged member of the VLAN. Tag priority and drop eligibility are kept as long as
//! there is a tag.

use core::fmt;
use core::ops::RangeInclusive;

use super::TRANSPARENT;
use crate::addr::VlanId;
use crate::frame::{FrameBuf, HEADROOM};
use crate::headers::{VLAN_TAG_SIZE, VlanTag, array_at, ethertype};
use crate::reply;
use crate::verdict::DropReason;

/// The VLANs that there can be: 0 and 4095 are reserved (IEEE 802.1Q-2018 table 9-2).
pub const VLANS: RangeInclusive<u16> = 1..=4_094;

/// The VLAN that a new port is in, as of a kernel bridge.
pub const VLAN_DEFAULT: VlanId = VlanId(1);

/// Where the outermost tag stands: behind the two MACs.
const TAG_AT: usize = 12;
/// The bits of a tag that name the VLAN.
const VID_MASK: u16 = 0x0fff;
/// Words of a set of VLANs.
const WORDS: usize = 4_096 / 64;

/// How frames of a VLAN leave by a port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// With a tag.
    Tagged,
    /// Without.
    Untagged,
}

impl Form {
    /// Both, in the order of a flood: a tag once taken off has lost its priority.
    pub const ALL: [Self; 2] = [Self::Tagged, Self::Untagged];
}

/// The VLANs of a port.
#[derive(Clone, PartialEq, Eq)]
pub struct PortVlans {
    /// That of frames without a tag; always one of `members`.
    pvid: Option<VlanId>,
    members: VlanSet,
    /// Those of `members` whose frames leave without a tag.
    untagged: VlanSet,
}

/// VLANs next to each other of which the same is set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VlanSpan {
    /// Which.
    pub vlans: RangeInclusive<u16>,
    /// How their frames leave.
    pub form: Form,
}

impl PortVlans {
    /// No VLAN at all: nothing enters or leaves.
    pub const NONE: Self = Self {
        pvid: None,
        members: VlanSet::EMPTY,
        untagged: VlanSet::EMPTY,
    };

    /// Those of an access port: one VLAN, untagged both ways.
    pub fn access(vlan: VlanId) -> Self {
        let mut vlans = Self::NONE;
        vlans.add(vlan.0..=vlan.0, Form::Untagged);
        vlans.set_pvid(vlan);
        vlans
    }

    /// Makes the port a member of VLANs, of which nothing that was set before is left; those outside
    /// [`VLANS`] are passed over.
    pub fn add(&mut self, vlans: RangeInclusive<u16>, form: Form) {
        self.remove(vlans.clone());
        for vlan in vlans.filter(|vlan| VLANS.contains(vlan)) {
            self.members.insert(vlan);
            if form == Form::Untagged {
                self.untagged.insert(vlan);
            }
        }
    }

    /// Takes VLANs away from the port, and with its PVID what classifies untagged frames.
    pub fn remove(&mut self, vlans: RangeInclusive<u16>) {
        self.pvid = self.pvid.filter(|pvid| !vlans.contains(&pvid.0));
        for vlan in vlans {
            self.members.remove(vlan);
            self.untagged.remove(vlan);
        }
    }

    /// Puts frames without a tag into a VLAN of which the port is a member; others change nothing.
    pub fn set_pvid(&mut self, vlan: VlanId) {
        if self.members.has(vlan.0) {
            self.pvid = Some(vlan);
        }
    }

    /// The VLAN of frames without a tag.
    pub fn pvid(&self) -> Option<VlanId> {
        self.pvid
    }

    /// How frames of a VLAN leave, `None` where the port is no member.
    #[inline]
    pub fn form(&self, vlan: VlanId) -> Option<Form> {
        self.members
            .has(vlan.0)
            .then(|| match self.untagged.has(vlan.0) {
                true => Form::Untagged,
                false => Form::Tagged,
            })
    }

    /// The VLANs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (VlanId, Form)> {
        let vlans = VLANS.map(VlanId);
        vlans.filter_map(|vlan| Some((vlan, self.form(vlan)?)))
    }

    /// The VLANs, ascending, those next to each other together. The PVID stands alone.
    pub fn spans(&self) -> Vec<VlanSpan> {
        let mut spans: Vec<VlanSpan> = Vec::new();
        for (VlanId(vlan), form) in self.iter() {
            let alone = |vlan| self.pvid == Some(VlanId(vlan));
            match spans.last_mut() {
                Some(last)
                    if last.form == form
                        && *last.vlans.end() + 1 == vlan
                        && !alone(vlan)
                        && !alone(*last.vlans.end()) =>
                {
                    last.vlans = *last.vlans.start()..=vlan;
                }
                Some(_) | None => spans.push(VlanSpan {
                    vlans: vlan..=vlan,
                    form,
                }),
            }
        }
        spans
    }

    /// The VLAN of a frame that enters with `tag` outermost.
    ///
    /// # Errors
    /// `VlanNoPvid`, `VlanIngress`.
    pub(super) fn classify(&self, tag: Option<VlanTag>) -> Result<VlanId, DropReason> {
        let customer = tag.filter(|tag| tag.tpid == ethertype::VLAN);
        match customer.map(VlanTag::vlan) {
            None | Some(TRANSPARENT) => self.pvid.ok_or(DropReason::VlanNoPvid),
            Some(vlan) if self.members.has(vlan.0) => Ok(vlan),
            Some(_) => Err(DropReason::VlanIngress),
        }
    }
}

impl Default for PortVlans {
    fn default() -> Self {
        Self::access(VLAN_DEFAULT)
    }
}

impl fmt::Debug for PortVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortVlans")
            .field("pvid", &self.pvid)
            .field("spans", &self.spans())
            .finish()
    }
}

/// A set of VLANs.
#[derive(Clone, PartialEq, Eq)]
struct VlanSet([u64; WORDS]);

impl VlanSet {
    const EMPTY: Self = Self([0; WORDS]);

    #[inline]
    fn has(&self, vlan: u16) -> bool {
        let word = self.0.get(usize::from(vlan / 64));
        word.is_some_and(|word| word >> (vlan % 64) & 1 == 1)
    }

    fn insert(&mut self, vlan: u16) {
        if let Some(word) = self.0.get_mut(usize::from(vlan / 64)) {
            *word |= 1 << (vlan % 64);
        }
    }

    fn remove(&mut self, vlan: u16) {
        if let Some(word) = self.0.get_mut(usize::from(vlan / 64)) {
            *word &= !(1 << (vlan % 64));
        }
    }
}

// What was answered in place still has room for a tag and a virtio-net header.
const _: () = assert!(reply::GROWTH_MAX + VLAN_TAG_SIZE + 12 <= HEADROOM);

/// Brings a frame of a VLAN into a form: gives it a tag, another one, or none. `false` when there is
/// no room for a tag.
pub fn reshape(buf: &mut FrameBuf, vlan: VlanId, form: Form) -> bool {
    let tag = customer_tag(buf.bytes());
    if form == Form::Untagged {
        return tag.is_none() || buf.remove(TAG_AT, VLAN_TAG_SIZE);
    }
    if tag.is_none() && !buf.insert(TAG_AT, VLAN_TAG_SIZE) {
        return false;
    }
    let kept = tag.map_or(0, |tag| tag.tci & !VID_MASK);
    let [p0, p1] = ethertype::VLAN.to_be_bytes();
    let [t0, t1] = (kept | vlan.0).to_be_bytes();
    buf.bytes_mut()[TAG_AT..TAG_AT + VLAN_TAG_SIZE].copy_from_slice(&[p0, p1, t0, t1]);
    true
}

/// The customer tag of a frame, where its outermost tag is one and is whole.
fn customer_tag(bytes: &[u8]) -> Option<VlanTag> {
    let [p0, p1, t0, t1]: [u8; VLAN_TAG_SIZE] = array_at(bytes, TAG_AT)?;
    let tpid = u16::from_be_bytes([p0, p1]);
    // As `Headers` has it: what a tag describes has an EtherType.
    let whole = bytes.len() >= TAG_AT + VLAN_TAG_SIZE + 2;
    (tpid == ethertype::VLAN && whole).then_some(VlanTag {
        tpid,
        tci: u16::from_be_bytes([t0, t1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(vlans: &PortVlans) -> Vec<(u16, u16, Form)> {
        let ends = |span: VlanSpan| (*span.vlans.start(), *span.vlans.end(), span.form);
        vlans.spans().into_iter().map(ends).collect()
    }

    #[test]
    fn a_new_port_is_in_vlan_1_untagged_both_ways() {
        let vlans = PortVlans::default();
        assert_eq!(vlans.pvid(), Some(VLAN_DEFAULT));
        assert_eq!(spans(&vlans), [(1, 1, Form::Untagged)]);
    }

    #[test]
    fn what_is_added_again_is_as_it_was_added_last() {
        let mut vlans = PortVlans::access(VlanId(5));
        vlans.add(4..=6, Form::Tagged);
        assert_eq!(vlans.pvid(), None, "the PVID went with the old membership");
        vlans.set_pvid(VlanId(5));
        vlans.add(8..=9, Form::Untagged);
        let (tagged, untagged) = (Form::Tagged, Form::Untagged);
        let wanted = [
            (4, 4, tagged),
            (5, 5, tagged),
            (6, 6, tagged),
            (8, 9, untagged),
        ];
        assert_eq!(spans(&vlans), wanted, "the PVID stands alone");
        vlans.remove(5..=8);
        assert_eq!(vlans.pvid(), None);
        assert_eq!(spans(&vlans), [(4, 4, tagged), (9, 9, untagged)]);
        vlans.set_pvid(VlanId(5));
        assert_eq!(vlans.pvid(), None, "only a member can be the PVID");
    }

    #[test]
    fn reserved_vlans_are_never_members() {
        let mut vlans = PortVlans::NONE;
        vlans.add(0..=u16::MAX, Form::Tagged);
        assert_eq!(spans(&vlans), [(1, 4_094, Form::Tagged)]);
        for vlan in [0, 4_095, 4_096, u16::MAX] {
            assert_eq!(vlans.form(VlanId(vlan)), None);
        }
    }

    #[test]
    fn a_frame_that_was_tagged_and_untagged_is_what_it_was() {
        let plain = [[0x5a; 12].as_slice(), &[0x08, 0x00, 1, 2, 3]].concat();
        let mut buf = FrameBuf::from_bytes(&plain);
        for vlan in [7, 4_094] {
            assert!(reshape(&mut buf, VlanId(vlan), Form::Tagged));
            assert_eq!(
                customer_tag(buf.bytes()).map(VlanTag::vlan),
                Some(VlanId(vlan))
            );
            assert_eq!(buf.len(), plain.len() + VLAN_TAG_SIZE);
        }
        for _ in 0..2 {
            assert!(reshape(&mut buf, VlanId(7), Form::Untagged));
            assert_eq!(buf.bytes(), plain);
        }
        assert!(buf.insert(0, HEADROOM));
        assert!(!reshape(&mut buf, VlanId(7), Form::Tagged), "no room");
    }
}
