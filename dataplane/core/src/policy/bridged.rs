//! Which bridged frames rules are asked about, and between whom.

use std::net::IpAddr;

use super::question::{is_dhcp_request, is_of_the_segment};
use super::{Judge, Party, Question};
use crate::frame::Frame;
use crate::headers::Headers;
use crate::l2::PortFlags;
use crate::topology::{Domain, Port};
use crate::trace::{Target, Trace};
use crate::verdict::DropReason;

impl<T: Trace> Judge<'_, T> {
    /// Judges a frame that entered by `port` and goes to `target` if it may. What goes to the gateway
    /// is judged there. A port that reaches every other pays for the test of a mask, and no more.
    ///
    /// # Errors
    /// `PolicyDenied`, `PolicyRejected`, `IccOff`.
    #[inline(always)]
    pub fn bridged(
        self,
        port: &Port,
        target: Target,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        match port.flags.has(PortFlags::RESTRICTED) {
            true => self.bridged_restricted(port, target, frame, headers),
            false => Ok(()),
        }
    }

    #[cold]
    #[inline(never)]
    fn bridged_restricted(
        mut self,
        port: &Port,
        target: Target,
        frame: &mut Frame<'_>,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        if !port.flags.has(PortFlags::POLICED) || is_of_the_segment(headers) {
            return Ok(());
        }
        let Some(domain) = self.topology.bridge_domain(port) else {
            return Ok(());
        };
        let egress = match target {
            Target::Gateway => return Ok(()),
            Target::Unicast(egress) => Some(egress),
            Target::Flood => headers.ip().and_then(|ip| holder(domain, ip.dst)),
        };
        let to = egress.map_or(Party::Domain(domain.id), |egress| {
            Party::Port(egress, domain.id)
        });
        let egress = egress.and_then(|egress| self.topology.port(egress));
        let otherwise = within(port, egress, headers);
        if self.topology.policy.is_empty() {
            return otherwise;
        }
        let from = Party::Port(port.id, domain.id);
        let question = Question::of(headers, from, to, otherwise);
        self.follow(&question, headers, frame)
    }
}

/// The port behind which an address of a network is.
fn holder(domain: &Domain, address: IpAddr) -> Option<crate::addr::PortId> {
    let neighbour = domain.neighbours.get(&address)?;
    Some(neighbour.port)
}

/// The default between two ports of a network, or between one and all others: endpoints of one
/// with `icc` off reach nobody but what is no such endpoint, and ask everybody for DHCP.
pub(crate) fn within(
    ingress: &Port,
    egress: Option<&Port>,
    headers: &Headers,
) -> Result<(), DropReason> {
    if !ingress.flags.has(PortFlags::ICC_OFF) {
        return Ok(());
    }
    match egress {
        Some(egress) if !egress.flags.has(PortFlags::ICC_OFF) => Ok(()),
        None if is_dhcp_request(headers) => Ok(()),
        Some(_) | None => Err(DropReason::IccOff),
    }
}
