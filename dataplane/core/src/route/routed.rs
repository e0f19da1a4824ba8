//! Packets from outside to an endpoint's own address, on a network that is routed.
//!
//! Nothing is translated, but flows are tracked, and only what somebody inside has asked for comes in:
//! packets of flows that an endpoint began, connections to published ports, ICMP errors about either,
//! and echo requests, which a router passes (RFC 4890 section 4.3.1). All else ends here; a SYN is
//! told so when its silence is over (RFC 6092 section 3.3.1).

use super::Passage;
use super::passage::{is_broadcast_of, is_echo_request, is_routable};
use super::refuse::Reporter;
use crate::headers::Ip;
use crate::reply;
use crate::topology::{Domain, Gateway, Uplink};
use crate::trace::{Answer, IcmpErrorKind, Trace};
use crate::verdict::{DropReason, Verdict};

impl<T: Trace> Passage<'_, '_, T> {
    /// A packet from outside to an address of `domain`, which is routed.
    pub(super) fn routed_ingress(
        &mut self,
        uplink: &Uplink,
        domain: &Domain,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        let gateway = domain.gateway.as_ref().ok_or(DropReason::NoRoute)?;
        let inside = self.topology.network_of(ip.src).is_some();
        if inside || !is_routable(ip.src) || self.topology.is_host_address(ip.src) {
            return Err(DropReason::MartianSource);
        }
        if is_broadcast_of(domain, ip.dst) {
            return Err(DropReason::MartianDestination);
        }
        if gateway.owns(ip.dst) {
            return self.at_routed_gateway(uplink, gateway, ip);
        }
        let reporter = Reporter::outwards(gateway, uplink);
        let admitted =
            self.state
                .nat
                .admit(self.topology, domain.id, self.frame, self.headers, self.now);
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(DropReason::NatFragment) => return self.await_first(None, ip),
            Err(reason) => return self.turned_away(ip, reason),
        };
        self.trace_nat(&admitted.translation);
        self.police_inwards(uplink.id, &admitted)?;
        if ip.ttl <= 1 {
            let kind = IcmpErrorKind::TimeExceeded;
            return self.refuse(reporter, ip, kind, DropReason::TtlExceeded);
        }
        self.clamp_mss(uplink.mtu.min(gateway.mtu));
        reply::take_hop(self.frame.buf, self.headers.l3_offset, ip);
        self.send_to_endpoint(domain, ip.dst, ip, Some(reporter))
    }

    /// The gateway of a routed network answers the outside's echo requests, and nothing else.
    fn at_routed_gateway(
        &mut self,
        uplink: &Uplink,
        gateway: &Gateway,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        let own = gateway.addresses.contains(&ip.dst);
        if !own || !is_echo_request(self.headers, ip) {
            return Err(DropReason::GatewayClosed);
        }
        reply::echo(self.frame.buf, self.headers, ip, uplink.mac);
        Ok(self.replied(Answer::Echo))
    }
}
