//! What a bridge port has beyond its flags: read only where a flag asks for it.

use super::vlan::{Form, PortVlans};
use super::{Identity, MacNat, StormLimits};
use crate::addr::VlanId;
use crate::headers::VlanTag;
use crate::link::LinkSpec;
use crate::verdict::DropReason;

/// Who is behind a bridge port, and what it is allowed. Apart from
/// [`Port`](crate::topology::Port), of which every frame reads one cache line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortProfile {
    /// Who its endpoint is; asked where [`PortFlags::SECURED`](super::PortFlags::SECURED) is on.
    pub identity: Identity,
    /// How many stations may be learned on it, where that is less than every port may have.
    pub mac_limit: Option<u32>,
    /// The VLANs that it is in; asked where
    /// [`PortFlags::FILTERING`](super::PortFlags::FILTERING) is on.
    pub vlans: Option<Box<PortVlans>>,
    /// How much may be flooded that enters by it; asked where
    /// [`PortFlags::STORM`](super::PortFlags::STORM) is on.
    pub storm: StormLimits,
    /// The one MAC that leaves by it; asked where
    /// [`PortFlags::MAC_NAT`](super::PortFlags::MAC_NAT) is on.
    pub mac_nat: Option<MacNat>,
    /// What its links are, by [`Direction`](crate::link::Direction): the worker's business. Asked
    /// where [`PortFlags::LINKED`](super::PortFlags::LINKED) is on.
    pub links: [LinkSpec; 2],
}

impl PortProfile {
    /// The VLAN of a frame that enters with `tag` outermost.
    ///
    /// # Errors
    /// `VlanNoPvid`, `VlanIngress`.
    pub(crate) fn classify(&self, tag: Option<VlanTag>) -> Result<VlanId, DropReason> {
        self.vlans
            .as_deref()
            .unwrap_or(&PortVlans::NONE)
            .classify(tag)
    }

    /// How frames of a VLAN leave, `None` where the port is no member.
    #[inline]
    pub(crate) fn form(&self, vlan: VlanId) -> Option<Form> {
        self.vlans.as_deref()?.form(vlan)
    }
}
