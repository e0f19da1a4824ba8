//! The way out of a bridged frame: to one port, or to all that take it.

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::frame::{Frame, FrameBuf};
use crate::topology::{Port, Role, Topology};
use crate::verdict::{DropReason, Verdict};

use super::{FloodClass, PortFlags, TRANSPARENT, reshape};

/// Sends a bridged frame to one port: as `should_deliver` of net/bridge/br_forward.c, back to its
/// ingress only where that `port` is a hairpin.
///
/// # Errors
/// `SamePort`, `EgressDown`, `PortIsolated`, `VlanEgress`.
#[inline]
pub(crate) fn bridge(
    topology: &Topology,
    port: &Port,
    frame: &mut Frame<'_>,
    egress: PortId,
    vlan: VlanId,
) -> Result<Verdict, DropReason> {
    if egress == frame.ingress && !port.flags.has(PortFlags::HAIRPIN) {
        return Err(DropReason::SamePort);
    }
    topology.port_up(egress).ok_or(DropReason::EgressDown)?;
    if port.flags.has(PortFlags::RESTRICTED) {
        return bridge_restricted(topology, port, frame, egress, vlan);
    }
    Ok(Verdict::Bridged(egress))
}

/// The same of a frame from a port that does not reach every other: apart, so that others are asked
/// no more than whether theirs is one.
#[cold]
#[inline(never)]
fn bridge_restricted(
    topology: &Topology,
    port: &Port,
    frame: &mut Frame<'_>,
    egress: PortId,
    vlan: VlanId,
) -> Result<Verdict, DropReason> {
    let to = topology.port(egress).ok_or(DropReason::EgressDown)?;
    if are_isolated(port, to) {
        return Err(DropReason::PortIsolated);
    }
    if vlan != TRANSPARENT {
        leave(frame.buf, to, vlan)?;
    }
    Ok(Verdict::Bridged(egress))
}

/// Brings a frame into the form that a port has for its VLAN.
///
/// # Errors
/// `VlanEgress`: the port is no member.
#[cold]
#[inline(never)]
pub(crate) fn leave(buf: &mut FrameBuf, port: &Port, vlan: VlanId) -> Result<(), DropReason> {
    let form = port.profile.form(vlan).ok_or(DropReason::VlanEgress)?;
    reshape(buf, vlan, form)
        .then_some(())
        .ok_or(DropReason::VlanEgress)
}

/// Sends a frame to every port of its domain that takes it; the worker walks
/// [`Topology::flood_set`].
///
/// # Errors
/// `NoOtherPort`.
pub(crate) fn flood(
    topology: &Topology,
    ingress: PortId,
    domain: DomainId,
    vlan: VlanId,
    dst: MacAddr,
) -> Result<Verdict, DropReason> {
    let class = FloodClass::of(dst);
    let mut takers = topology.flood_set(domain, vlan, ingress, class);
    takers.next().ok_or(DropReason::NoOtherPort)?;
    Ok(Verdict::Flooded(domain, vlan, class))
}

/// Whether a frame that entered by one port may not leave by the other for both being isolated.
pub(crate) fn are_isolated(ingress: &Port, egress: &Port) -> bool {
    (ingress.flags & egress.flags).has(PortFlags::ISOLATED)
}

/// Which ports of a domain a flooded frame leaves by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Takers {
    ingress: PortId,
    /// What is looked at of a port, and what it has to be.
    mask: PortFlags,
    wanted: PortFlags,
    /// What it has to be a member of.
    vlan: VlanId,
}

impl Takers {
    /// Those of frames of a VLAN and a class that entered by `ingress`.
    #[inline]
    pub fn new(ingress: &Port, vlan: VlanId, class: FloodClass) -> Self {
        Self {
            ingress: ingress.id,
            mask: class.flag() | (ingress.flags & PortFlags::ISOLATED),
            wanted: class.flag(),
            vlan,
        }
    }

    /// Those of frames to a group that is known: no flag of the way out is asked.
    pub fn of_group(ingress: &Port, vlan: VlanId) -> Self {
        Self {
            ingress: ingress.id,
            mask: ingress.flags & PortFlags::ISOLATED,
            wanted: PortFlags::NONE,
            vlan,
        }
    }

    /// Whether `port` is one, and of that domain.
    pub fn include_of(self, port: &Port, domain: DomainId) -> bool {
        port.role == Role::Bridge(domain) && self.include(port)
    }

    /// Whether `port`, which is of the domain, is one.
    #[inline]
    pub fn include(self, port: &Port) -> bool {
        let back = port.id == self.ingress && !port.flags.has(PortFlags::HAIRPIN);
        let member = self.vlan == TRANSPARENT || port.form(self.vlan).is_some();
        port.up && (port.flags & self.mask) == self.wanted && !back && member
    }
}
