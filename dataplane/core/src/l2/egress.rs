//! The way out of a bridged frame: to one port, or to all that take it.

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::topology::{Port, Topology};
use crate::verdict::{DropReason, Verdict};

use super::{FloodClass, PortFlags};

/// Sends a bridged frame that entered by `ingress` to one port: as `should_deliver` of
/// net/bridge/br_forward.c, back to its ingress only where that port is a hairpin.
///
/// # Errors
/// `SamePort`, `EgressDown`, `PortIsolated`.
#[inline]
pub(crate) fn bridge(
    topology: &Topology,
    ingress: &Port,
    egress: PortId,
) -> Result<Verdict, DropReason> {
    if egress == ingress.id && !ingress.flags.has(PortFlags::HAIRPIN) {
        return Err(DropReason::SamePort);
    }
    let egress = topology.port_up(egress).ok_or(DropReason::EgressDown)?;
    if are_isolated(ingress, egress) {
        return Err(DropReason::PortIsolated);
    }
    Ok(Verdict::Bridged(egress.id))
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
#[inline]
pub(crate) fn are_isolated(ingress: &Port, egress: &Port) -> bool {
    (ingress.flags & egress.flags).has(PortFlags::ISOLATED)
}

/// Whether a frame of a class, flooded when it entered by `ingress`, leaves by `port`. Either port
/// is in the domain.
#[inline]
pub(crate) fn takes_flood(port: &Port, ingress: &Port, class: FloodClass) -> bool {
    let back = port.id == ingress.id && !port.flags.has(PortFlags::HAIRPIN);
    port.up && port.flags.has(class.flag()) && !back && !are_isolated(ingress, port)
}
