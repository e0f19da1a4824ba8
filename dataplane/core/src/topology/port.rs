//! What a topology has of one switch port.

use std::sync::Arc;

use super::MTU_DEFAULT;
use crate::addr::{DomainId, PortId, UplinkId, VlanId};
use crate::l2::{Form, PortFlags, PortProfile, TRANSPARENT};
use crate::link::{Direction, LinkSpec};

/// One switch attachment. A cache line: what a frame asks of a port is one read away, and its
/// place in the table one shift.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Port {
    /// Its index in [`Topology::ports`](super::Topology::ports).
    pub id: PortId,
    /// The name that people use for it.
    pub name: Arc<str>,
    /// What it connects.
    pub role: Role,
    /// Frames are accepted from it and sent to it.
    pub up: bool,
    /// Largest IP packet that may leave by it, in bytes.
    pub mtu: u16,
    /// What is switched on for it, of a port of a bridge domain.
    pub flags: PortFlags,
    /// What it has beyond its flags.
    pub profile: Arc<PortProfile>,
}

/// What a port connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A sandbox, to a bridge domain.
    Bridge(DomainId),
    /// The host's IP stack, to the gateways.
    HostLink,
    /// An external interface, to the gateways.
    Uplink(UplinkId),
}

impl Port {
    /// A port that is up, for packets of [`MTU_DEFAULT`].
    pub fn new(id: PortId, name: &str, role: Role) -> Self {
        Self {
            id,
            name: name.into(),
            role,
            up: true,
            mtu: MTU_DEFAULT,
            flags: PortFlags::default(),
            profile: Arc::default(),
        }
    }

    /// What it has beyond its flags, to be changed while a picture is made.
    pub fn profile_mut(&mut self) -> &mut PortProfile {
        Arc::make_mut(&mut self.profile)
    }

    /// Gives it a link, while a picture is made.
    pub fn set_link(&mut self, direction: Direction, spec: LinkSpec) {
        self.profile_mut().links[direction as usize] = spec;
        let plain = self.profile.links.iter().all(LinkSpec::is_plain);
        self.flags = match plain {
            true => self.flags.without(PortFlags::LINKED),
            false => self.flags.with(PortFlags::LINKED),
        };
    }

    /// The VLAN of frames that enter without a tag, 0 in a domain that is transparent to tags;
    /// `None` where they may not enter.
    pub fn vlan_of_untagged(&self) -> Option<VlanId> {
        if !self.flags.has(PortFlags::FILTERING) {
            return Some(TRANSPARENT);
        }
        self.profile.vlans.as_deref()?.pvid()
    }

    /// How frames of a VLAN leave by it, where VLANs count; `None` where it is no member.
    #[inline]
    pub fn form(&self, vlan: VlanId) -> Option<Form> {
        self.profile.form(vlan)
    }
}

const _: () = assert!(size_of::<Option<Port>>() == 64);
