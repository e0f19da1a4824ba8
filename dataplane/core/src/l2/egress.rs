//! The way out of a bridged frame: to one port, or to all that take it.

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::topology::{Port, Topology};
use crate::verdict::{DropReason, Verdict};

use super::{FloodClass, PortFlags};

/// Sends a bridged frame to one port: as `should_deliver` of net/bridge/br_forward.c, back to its
/// ingress only where that `port` is a hairpin.
///
/// # Errors
/// `SamePort`, `EgressDown`, `PortIsolated`.
#[inline]
pub(crate) fn bridge(
    topology: &Topology,
    port: &Port,
    ingress: PortId,
    egress: PortId,
) -> Result<Verdict, DropReason> {
    if egress == ingress && !port.flags.has(PortFlags::HAIRPIN) {
        return Err(DropReason::SamePort);
    }
    topology.port_up(egress).ok_or(DropReason::EgressDown)?;
    if port.flags.has(PortFlags::ISOLATED) {
        return bridge_isolated(topology, egress);
    }
    Ok(Verdict::Bridged(egress))
}

/// The same of a frame from an isolated port: apart, so that others are asked no more than whether
/// theirs is one.
#[cold]
#[inline(never)]
fn bridge_isolated(topology: &Topology, egress: PortId) -> Result<Verdict, DropReason> {
    match topology.port(egress) {
        Some(port) if port.flags.has(PortFlags::ISOLATED) => Err(DropReason::PortIsolated),
        Some(_) | None => Ok(Verdict::Bridged(egress)),
    }
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
    let mut takers = topology.flood_set(domain, ingress, class);
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
}

impl Takers {
    /// Those of frames of a class that entered by `ingress`.
    #[inline]
    pub fn new(ingress: &Port, class: FloodClass) -> Self {
        Self {
            ingress: ingress.id,
            mask: class.flag() | (ingress.flags & PortFlags::ISOLATED),
            wanted: class.flag(),
        }
    }

    /// Whether `port`, which is of the domain, is one.
    #[inline]
    pub fn include(self, port: &Port) -> bool {
        let back = port.id == self.ingress && !port.flags.has(PortFlags::HAIRPIN);
        port.up && (port.flags & self.mask) == self.wanted && !back
    }
}
