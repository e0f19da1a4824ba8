//! One packet's passage through a gateway.

use std::net::IpAddr;

use super::State;
use super::refuse::{Reporter, is_final, is_refusal};
use crate::addr::{DomainId, L4Addr, L4Port, MacAddr, PortId, UplinkId};
use crate::counters::Counters;
use crate::cut;
use crate::frame::Frame;
use crate::gso;
use crate::headers::{Arp, HeaderError, Headers, Ip, L3, L4Kind, protocol};
use crate::l2::{self, Form, PortFlags};
use crate::nat::{self, Outside, Translation, Transport};
use crate::reply::{self, Advertised};
use crate::time::Instant;
use crate::topology::{
    Domain, Gateway, NatMode, Neighbour, Port, Resolver, Role, Route, RouteMark, Topology, Uplink,
};
use crate::trace::{Answer, IcmpErrorKind, Step, Trace, Way, step};
use crate::verdict::{Awaited, Consumer, DropReason, Verdict};

/// Bytes of a packet's beginning that an ICMP error may have to quote as they were: Ethernet and
/// IPv6 headers with extensions, and the ports.
const KEPT_SIZE: usize = 192;

/// What a packet's passage needs.
pub(crate) struct Passage<'p, 'f, T> {
    pub state: &'p mut State,
    pub topology: &'p Topology,
    pub frame: &'p mut Frame<'f>,
    pub headers: &'p Headers,
    pub now: Instant,
    pub counters: &'p Counters,
    pub trace: &'p mut T,
}

impl<'p, T: Trace> Passage<'p, '_, T> {
    /// Takes the frame, which entered by `port`, through the gateway.
    #[inline(never)]
    pub fn through_gateway(&mut self, port: &Port) -> Result<Verdict, DropReason> {
        match port.role {
            Role::Bridge(id) => {
                if let Some(verdict) = self.known_way_out(id) {
                    return Ok(verdict);
                }
                let domain = self.topology.domain(id).ok_or(DropReason::PortDown)?;
                let gateway = domain.gateway.as_ref().ok_or(DropReason::NoRoute)?;
                let verdict = self.domain_ingress(domain, gateway)?;
                if port.flags.has(PortFlags::FILTERING) && verdict == Verdict::Replied(port.id) {
                    l2::leave(self.frame.buf, port, domain.gateway_vlan)?;
                }
                Ok(verdict)
            }
            Role::HostLink => self.host_ingress(),
            Role::Uplink(id) => {
                let uplink = self.topology.uplink(id).ok_or(DropReason::PortDown)?;
                if let Some(outcome) = self.known_way_in(uplink) {
                    return outcome;
                }
                self.uplink_ingress(uplink)
            }
        }
    }

    /// A frame that an endpoint sent to its gateway.
    #[inline(never)]
    fn domain_ingress(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
    ) -> Result<Verdict, DropReason> {
        if self.headers.tag.is_some() {
            return self.tagged_ingress(domain, gateway);
        }
        let ip = match self.headers.l3 {
            Ok(L3::Arp(arp)) => return self.answer_arp(gateway, &arp),
            Ok(L3::Ip(ip)) => ip,
            Err(HeaderError::Unknown) => return Err(DropReason::NotIp),
            Err(_) => return Err(DropReason::L3Malformed),
        };
        if let Some(target) = reply::solicited(self.frame.bytes(), self.headers) {
            return self.answer_solicitation(gateway, target);
        }
        if !domain.contains(ip.src) && !is_link_local(ip.src) {
            return Err(DropReason::MartianSource);
        }
        if gateway.owns(ip.dst) {
            return self.at_gateway(domain, gateway, &ip);
        }
        if !is_routable(ip.dst) || is_link_local(ip.src) || is_broadcast_of(domain, ip.dst) {
            return Err(DropReason::MartianDestination);
        }
        if domain.internal && !domain.contains(ip.dst) {
            return Err(DropReason::NetworkInternal);
        }
        if ip.ttl <= 1 {
            let kind = IcmpErrorKind::TimeExceeded;
            return self.refuse(gateway.into(), &ip, kind, DropReason::TtlExceeded);
        }
        if self.topology.local_addresses.contains(&ip.dst) {
            return self.send_to_host_address(domain, gateway, &ip);
        }
        if domain.contains(ip.dst) {
            self.check_isolated(domain, ip.dst)?;
            self.police_within(domain, ip.dst)?;
            reply::take_hop(self.frame.buf, self.headers.l3_offset, &ip);
            return self.send_to_endpoint(domain, ip.dst, &ip, Some(gateway.into()));
        }
        if let Some(other) = self.topology.network_of(ip.dst) {
            self.police_across(domain.id, other, ip.dst)?;
            reply::take_hop(self.frame.buf, self.headers.l3_offset, &ip);
            return self.send_to_endpoint(other, ip.dst, &ip, Some(gateway.into()));
        }
        self.send_outside(domain, gateway, &ip)
    }

    /// A frame that an endpoint sent to its gateway with a tag: that of the gateway's own VLAN comes
    /// off.
    #[cold]
    fn tagged_ingress(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
    ) -> Result<Verdict, DropReason> {
        let vlan = domain.gateway_vlan;
        if !l2::is_plain(self.headers, vlan) || !l2::reshape(self.frame.buf, vlan, Form::Untagged) {
            return Err(DropReason::TaggedForGateway);
        }
        let headers = Headers::parse(self.frame.bytes())?;
        let mut bare = Passage {
            state: &mut *self.state,
            frame: &mut *self.frame,
            headers: &headers,
            trace: &mut *self.trace,
            ..*self
        };
        match bare.known_way_out(domain.id) {
            Some(verdict) => Ok(verdict),
            None => bare.domain_ingress(domain, gateway),
        }
    }

    /// Isolated ports do not reach each other by way of the gateway either.
    fn check_isolated(&self, domain: &Domain, address: IpAddr) -> Result<(), DropReason> {
        let ingress = self.topology.port(self.frame.ingress);
        let neighbour = domain.neighbours.get(&address);
        let egress = neighbour.and_then(|neighbour| self.topology.port(neighbour.port));
        match (ingress, egress) {
            (Some(ingress), Some(egress)) if l2::are_isolated(ingress, egress) => {
                Err(DropReason::PortIsolated)
            }
            (_, _) => Ok(()),
        }
    }

    /// A frame that the host sent into its networks.
    fn host_ingress(&mut self) -> Result<Verdict, DropReason> {
        let ip = self.ip()?;
        if !is_routable(ip.dst) || is_link_local(ip.src) {
            return Err(DropReason::MartianDestination);
        }
        if !self.topology.is_host_address(ip.src) {
            return Err(DropReason::HostLinkForeignSource);
        }
        let domain = self
            .topology
            .network_of(ip.dst)
            .filter(|domain| domain.host_link);
        let domain = domain.ok_or(DropReason::NoRoute)?;
        self.police_from_host(domain, ip.dst)?;
        // What the host sends has not made a hop yet: its TTL stays.
        self.send_to_endpoint(domain, ip.dst, &ip, None)
    }

    /// A frame from outside, on an interface that the host shares with us.
    #[inline(never)]
    fn uplink_ingress(&mut self, uplink: &Uplink) -> Result<Verdict, DropReason> {
        let Ok(ip) = self.ip() else {
            return Ok(Verdict::NotOurs);
        };
        if self.headers.dst != uplink.mac || self.headers.tag.is_some() {
            return Ok(Verdict::NotOurs);
        }
        if !self.topology.local_addresses.contains(&ip.dst) {
            return match self.topology.network_of(ip.dst) {
                Some(domain) if domain.is_routed(ip.dst) => {
                    self.routed_ingress(uplink, domain, &ip)
                }
                Some(_) => Err(DropReason::UplinkForeignDestination),
                None => Ok(Verdict::NotOurs),
            };
        }
        self.police_published(&ip)?;
        // Whether an error may have to quote it is known before: few packets are copied.
        let size = gso::packet_size(&self.frame.buf.offload, self.headers);
        let fits = size.is_some_and(|size| size <= self.topology.mtu_min());
        let original = (ip.ttl <= 1 || !fits).then(|| Original::keep(self.frame));
        let inbound = self
            .state
            .nat
            .inbound(self.topology, self.frame, self.headers, self.now);
        let inbound = match inbound {
            Ok(inbound) => inbound,
            Err(DropReason::NatFragment) => return self.await_first(None, &ip),
            Err(reason) if is_final(reason) => return Err(reason),
            Err(reason) if self.is_guarded(&ip) => return self.turned_away(&ip, reason),
            Err(_) => return Ok(Verdict::NotOurs),
        };
        self.trace_nat(&inbound.translation);
        self.police_inwards(uplink.id, &inbound)?;
        if ip.ttl <= 1 {
            Original::restore(original.as_ref(), self.frame);
            let kind = IcmpErrorKind::TimeExceeded;
            return self.refuse(uplink.into(), &ip, kind, DropReason::TtlExceeded);
        }
        let domain = self
            .topology
            .domain(inbound.domain)
            .ok_or(DropReason::NeighbourUnknown)?;
        if let Some(mtu) = self.exceeds(domain.gateway.as_ref().map(|gateway| gateway.mtu)) {
            Original::restore(original.as_ref(), self.frame);
            return self.too_big(uplink.into(), &ip, mtu);
        }
        let mtu = domain.gateway.as_ref().map_or(uplink.mtu, |g| g.mtu);
        self.clamp_mss(uplink.mtu.min(mtu));
        reply::take_hop(self.frame.buf, self.headers.l3_offset, &ip);
        self.send_to_endpoint(domain, inbound.inside, &ip, None)
    }

    /// Holds the segment size of a SYN to an MTU, where that is asked for.
    pub(super) fn clamp_mss(&mut self, mtu: u16) {
        if self.topology.nat.clamp_mss {
            nat::clamp_mss(self.frame, self.headers, mtu);
        }
    }

    /// To one of the gateway's own addresses: echo here, DNS to the service, the rest to the host.
    fn at_gateway(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        step!(self.trace, Step::Route(Way::Local));
        if is_echo_request(self.headers, ip) {
            reply::echo(self.frame.buf, self.headers, ip, gateway.mac);
            return Ok(self.replied(Answer::Echo));
        }
        if domain.resolver == Resolver::Service && is_for_dns(self.headers) {
            return Ok(Verdict::Delivered(Consumer::Service(domain.id)));
        }
        if domain.host_link && self.topology.host_link.is_some() && !is_link_local(ip.dst) {
            return self.send_to_host(domain, gateway);
        }
        let kind = IcmpErrorKind::PortUnreachable;
        self.refuse(gateway.into(), ip, kind, DropReason::GatewayClosed)
    }

    /// To an address of the host: a mapping or published port of ours, or the host itself.
    fn send_to_host_address(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        self.police_published(ip)?;
        let hairpin =
            self.state
                .nat
                .hairpin(self.topology, domain.id, self.frame, self.headers, self.now);
        match hairpin {
            Ok(inbound) => {
                self.trace_nat(&inbound.translation);
                self.police_hairpin(domain.id, &inbound)?;
                let target = self.topology.domain(inbound.domain);
                let target = target.ok_or(DropReason::NeighbourUnknown)?;
                reply::take_hop(self.frame.buf, self.headers.l3_offset, ip);
                self.send_to_endpoint(target, inbound.inside, ip, Some(gateway.into()))
            }
            Err(reason) if is_refusal(reason) => self.prohibit(gateway, ip, reason),
            Err(DropReason::NatFragment) => self.await_first(Some(domain.id), ip),
            Err(
                reason @ (DropReason::NatFragmentOverlap
                | DropReason::NatFiltered
                | DropReason::NatTargetUnknown),
            ) => Err(reason),
            Err(_) => self.send_to_host(domain, gateway),
        }
    }

    /// Over the host link. The host is the destination, so the packet makes no hop.
    fn send_to_host(&mut self, domain: &Domain, gateway: &Gateway) -> Result<Verdict, DropReason> {
        let link = self.topology.host_link.filter(|_| domain.host_link);
        let link = link.ok_or(DropReason::NoHostLink)?;
        self.police_to_host(domain.id)?;
        step!(self.trace, Step::Route(Way::Host));
        reply::set_macs(self.frame.buf, &link.mac, &gateway.mac);
        Ok(Verdict::Delivered(Consumer::HostLink(link.port)))
    }

    /// To an endpoint of `domain`, a static neighbour of its gateway.
    pub(super) fn send_to_endpoint(
        &mut self,
        domain: &Domain,
        address: IpAddr,
        ip: &Ip,
        reporter: Option<Reporter<'_>>,
    ) -> Result<Verdict, DropReason> {
        let gateway = domain.gateway.as_ref().ok_or(DropReason::NoRoute)?;
        let Some(neighbour) = domain.neighbours.get(&address) else {
            let kind = IcmpErrorKind::HostUnreachable;
            return match reporter {
                Some(reporter) => self.refuse(reporter, ip, kind, DropReason::NeighbourUnknown),
                None => Err(DropReason::NeighbourUnknown),
            };
        };
        if let Some(mtu) = self.exceeds(Some(gateway.mtu)) {
            return match reporter {
                Some(reporter) => self.too_big(reporter, ip, mtu),
                None => Err(DropReason::FragmentationNeeded),
            };
        }
        self.send_to_neighbour(domain, gateway, neighbour)
    }

    /// To an endpoint of `domain` that is known and that the packet fits.
    pub(super) fn send_to_neighbour(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
        neighbour: &Neighbour,
    ) -> Result<Verdict, DropReason> {
        let Neighbour { mac, port } = *neighbour;
        step!(
            self.trace,
            Step::Route(Way::Endpoint {
                domain: domain.id,
                mac,
                port
            })
        );
        let egress = self.topology.port_up(port).ok_or(DropReason::EgressDown)?;
        reply::set_macs(self.frame.buf, &neighbour.mac, &gateway.mac);
        if egress.flags.has(PortFlags::FILTERING) {
            l2::leave(self.frame.buf, egress, domain.gateway_vlan)?;
        }
        Ok(Verdict::Routed(port))
    }

    /// Out by the uplink that the host's own routes name, from one of the host's addresses or, of a
    /// routed network, from the packet's own.
    fn send_outside(
        &mut self,
        domain: &Domain,
        gateway: &Gateway,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        let back = self.way_back(domain.id, ip.dst);
        let Some((route, mark)) = back.or_else(|| self.topology.marked_route(ip.dst)) else {
            let kind = IcmpErrorKind::NetworkUnreachable;
            return self.refuse(gateway.into(), ip, kind, DropReason::NoRoute);
        };
        let uplink = route.uplink.and_then(|id| self.topology.uplink(id));
        let uplink = uplink.ok_or(DropReason::NoUplinkRoute)?;
        self.topology
            .port_up(uplink.port)
            .ok_or(DropReason::EgressDown)?;
        self.police_outwards(domain.id, uplink.id)?;
        if let Some(mtu) = self.exceeds(Some(uplink.mtu)) {
            return self.too_big(gateway.into(), ip, mtu);
        }
        let external = match domain.modes.of(ip.src) {
            NatMode::Routed => ip.src,
            NatMode::Masquerade => self.host_address(domain, route, uplink, ip.src)?,
        };
        let mark = self.policed_mark(domain.id, mark);
        let outside = Outside { external, mark };
        let translation = self.state.nat.outbound(
            self.topology,
            domain.id,
            outside,
            self.frame,
            self.headers,
            self.now,
        );
        let translation = match translation {
            Ok(translation) => translation,
            Err(reason) if is_refusal(reason) => return self.prohibit(gateway, ip, reason),
            Err(DropReason::NatFragment) => return self.await_first(Some(domain.id), ip),
            Err(reason) => return Err(reason),
        };
        self.trace_nat(&translation);
        self.clamp_mss(uplink.mtu.min(gateway.mtu));
        reply::take_hop(self.frame.buf, self.headers.l3_offset, ip);
        let next_hop = route.next_hop.unwrap_or(ip.dst);
        let Some(mac) = uplink.mac_of(next_hop) else {
            let wait_for = (uplink.id, next_hop);
            self.state
                .holding
                .hold(self.frame.ingress, wait_for, self.frame.buf, self.now)?;
            return Ok(Verdict::Held(Awaited::NextHop));
        };
        Ok(self.send_by_uplink(uplink.id, uplink.port, &uplink.mac, &mac))
    }

    /// The route of an answer to a client outside that spoke to an address of another uplink than the
    /// one which the host's route leads by: by that uplink, if it is up and has a route to the client
    /// (decision 0015). Costs a lookup where there are several uplinks.
    fn way_back(&mut self, domain: DomainId, client: IpAddr) -> Option<(&'p Route, RouteMark)> {
        let topology = self.topology;
        if topology.uplinks.len() < 2 {
            return None;
        }
        let asked =
            self.state
                .nat
                .asked_at(topology, domain, self.frame, self.headers, self.now)?;
        let has = |uplink: &&Uplink| uplink.addresses.contains(&asked);
        let by_default = topology.route(client).and_then(|route| route.uplink);
        let by_default = by_default.and_then(|id| topology.uplink(id));
        if by_default.filter(has).is_some() {
            return None;
        }
        let uplink = topology.uplinks.iter().find(has)?;
        topology.port_up(uplink.port)?;
        // What the session does not remember need not be marked.
        Some((topology.route_by(uplink.id, client)?, RouteMark::NONE))
    }

    /// The host's address that an inside address appears under outside.
    fn host_address(
        &self,
        domain: &Domain,
        route: &Route,
        uplink: &Uplink,
        inside: IpAddr,
    ) -> Result<IpAddr, DropReason> {
        let own = uplink
            .addresses
            .iter()
            .find(|own| own.is_ipv4() == inside.is_ipv4());
        let external = route
            .source
            .or(own.copied())
            .ok_or(DropReason::NatNoAddress)?;
        let nat = &self.state.nat;
        Ok(nat.paired(self.topology, domain.id, inside, external))
    }

    #[inline(always)]
    pub(super) fn send_by_uplink(
        &mut self,
        uplink: UplinkId,
        port: PortId,
        src: &MacAddr,
        mac: &MacAddr,
    ) -> Verdict {
        step!(self.trace, Step::Route(Way::Uplink { uplink, mac: *mac }));
        reply::set_macs(self.frame.buf, mac, src);
        Verdict::Routed(port)
    }

    fn answer_arp(&mut self, gateway: &Gateway, arp: &Arp) -> Result<Verdict, DropReason> {
        if arp.operation != 1 || !gateway.owns(IpAddr::V4(arp.target)) {
            return Err(DropReason::ArpNotForGateway);
        }
        reply::arp(self.frame.buf, self.headers.l3_offset, arp, gateway.mac);
        Ok(self.replied(Answer::Arp))
    }

    fn answer_solicitation(
        &mut self,
        gateway: &Gateway,
        target: std::net::Ipv6Addr,
    ) -> Result<Verdict, DropReason> {
        if !gateway.owns(IpAddr::V6(target)) {
            return Err(DropReason::ArpNotForGateway);
        }
        if !reply::neighbour(
            self.frame.buf,
            self.headers,
            target,
            gateway.mac,
            Advertised::Gateway,
        ) {
            return Err(DropReason::L3Malformed);
        }
        Ok(self.replied(Answer::Neighbour))
    }

    pub(super) fn replied(&mut self, answer: Answer) -> Verdict {
        step!(self.trace, Step::Reply(answer));
        Verdict::Replied(self.frame.ingress)
    }

    /// The MTU, when the packet or a segment of it is larger and cannot be cut to it.
    fn exceeds(&mut self, mtu: Option<u16>) -> Option<u16> {
        let size = gso::packet_size(&self.frame.buf.offload, self.headers)?;
        let mtu = mtu.filter(|mtu| size > usize::from(*mtu))?;
        let ip = self.headers.ip()?;
        (!cut::mark(self.frame.buf, ip, size, mtu)).then_some(mtu)
    }

    /// Whether the guard keeps this packet from the host, so that a drop here is its end.
    fn is_guarded(&self, ip: &Ip) -> bool {
        let (transport, dst) = match self.headers.l4.map(|l4| l4.kind) {
            Ok(L4Kind::Tcp { dst, .. }) => (Transport::Tcp, dst),
            Ok(L4Kind::Udp { dst, .. }) => (Transport::Udp, dst),
            Ok(L4Kind::Echo { .. } | L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. })
            | Err(_) => return false,
        };
        let external = L4Addr {
            ip: ip.dst,
            l4_port: dst,
        };
        self.topology.nat.port_range.contains(&dst.0)
            || self
                .topology
                .statics
                .by_external(transport, external)
                .is_some()
    }

    fn ip(&self) -> Result<Ip, DropReason> {
        match self.headers.l3 {
            Ok(L3::Ip(ip)) => Ok(ip),
            Ok(L3::Arp(_)) | Err(HeaderError::Unknown) => Err(DropReason::NotIp),
            Err(_) => Err(DropReason::L3Malformed),
        }
    }

    pub(super) fn trace_nat(&mut self, translation: &Translation) {
        let (kind, created) = (translation.kind, translation.created);
        let (before, after) = (translation.before, translation.after);
        step!(
            self.trace,
            Step::Nat {
                kind,
                before,
                after,
                created
            }
        );
    }
}

/// A packet's beginning before NAT rewrote it, for the error that may have to quote it.
struct Original {
    bytes: [u8; KEPT_SIZE],
    size: usize,
}

impl Original {
    #[cold]
    fn keep(frame: &Frame<'_>) -> Self {
        let mut bytes = [0; KEPT_SIZE];
        let size = frame.buf.len().min(KEPT_SIZE);
        bytes[..size].copy_from_slice(&frame.bytes()[..size]);
        Self { bytes, size }
    }

    fn restore(kept: Option<&Self>, frame: &mut Frame<'_>) {
        if let Some(Self { bytes, size }) = kept {
            frame.buf.bytes_mut()[..*size].copy_from_slice(&bytes[..*size]);
        }
    }
}

/// An echo request, or a later fragment of an ICMP packet, which can only be part of one.
pub(super) fn is_echo_request(headers: &Headers, ip: &Ip) -> bool {
    match headers.l4 {
        Ok(l4) => matches!(l4.kind, L4Kind::Echo { request: true, .. }),
        Err(HeaderError::LaterFragment) => {
            matches!(ip.protocol, protocol::ICMP | protocol::ICMPV6)
        }
        Err(_) => false,
    }
}

/// Whether a packet is for the port of DNS. Later fragments do not say; they follow no first one to
/// the service, whose clients send questions whole.
fn is_for_dns(headers: &Headers) -> bool {
    match headers.l4.map(|l4| l4.kind) {
        Ok(L4Kind::Tcp { dst, .. } | L4Kind::Udp { dst, .. }) => dst == L4Port::DNS,
        Ok(L4Kind::Echo { .. } | L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. }) | Err(_) => {
            false
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether a router forwards to such an address at all (RFC 1812 section 5.3.7).
pub(super) fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified() || v4.is_loopback())
        }
        IpAddr::V6(v6) => {
            !(v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local())
        }
    }
}

pub(super) fn is_broadcast_of(domain: &Domain, address: IpAddr) -> bool {
    domain
        .subnets
        .iter()
        .any(|subnet| subnet.broadcast() == Some(address))
}
