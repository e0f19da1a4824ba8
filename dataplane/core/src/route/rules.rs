//! What the gateway asks the rules: once it knows whom a packet is for.

use std::net::IpAddr;

use super::Passage;
use super::reject::untold;
use crate::addr::{DomainId, L4Addr, UplinkId};
use crate::headers::{Ip, L4Kind};
use crate::nat::{Inbound, Transport};
use crate::policy::{Party, Question, Standing, within};
use crate::topology::{Domain, Port, Role, RouteMark};
use crate::trace::{NatKind, Trace};
use crate::verdict::DropReason;

impl<T: Trace> Passage<'_, '_, T> {
    /// From an endpoint to another one of its network, back out.
    pub(super) fn police_within(&mut self, domain: &Domain, dst: IpAddr) -> Result<(), DropReason> {
        let to = party(domain, dst);
        let ingress = self.topology.port(self.frame.ingress);
        let egress = to.port().and_then(|port| self.topology.port(port));
        let default = |port: &Port| within(port, egress, self.headers);
        let otherwise = ingress.map_or(Ok(()), default);
        self.police(self.sender(domain.id), to, otherwise)
    }

    /// From an endpoint to one of another network.
    pub(super) fn police_across(
        &mut self,
        from: DomainId,
        to: &Domain,
        dst: IpAddr,
    ) -> Result<(), DropReason> {
        let isolated = Err(DropReason::NetworkIsolated);
        self.police(self.sender(from), party(to, dst), isolated)
    }

    /// From an endpoint to the host.
    pub(super) fn police_to_host(&mut self, from: DomainId) -> Result<(), DropReason> {
        self.police(self.sender(from), Party::Host, Ok(()))
    }

    /// From the host to an endpoint.
    pub(super) fn police_from_host(
        &mut self,
        domain: &Domain,
        dst: IpAddr,
    ) -> Result<(), DropReason> {
        self.police(Party::Host, party(domain, dst), Ok(()))
    }

    /// Judges a packet by the table of flows.
    fn police(
        &mut self,
        from: Party,
        to: Party,
        otherwise: Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        if self.topology.policy.is_empty() {
            return otherwise;
        }
        self.follow(&Question::of(self.headers, from, to, otherwise))
    }

    #[cold]
    fn follow(&mut self, question: &Question) -> Result<(), DropReason> {
        let headers = self.headers;
        let (topology, trace) = (self.topology, &mut *self.trace);
        let mut judge = self.state.judge(topology, self.counters, self.now, trace);
        judge.follow(question, headers, self.frame)
    }

    #[cold]
    fn settle(&mut self, question: &Question, standing: Standing) -> Result<(), DropReason> {
        let headers = self.headers;
        let (topology, trace) = (self.topology, &mut *self.trace);
        let mut judge = self.state.judge(topology, self.counters, self.now, trace);
        judge.settle(question, standing, headers)
    }

    /// From an endpoint to the outside, before a session is made. What answers somebody outside who
    /// spoke to a published port is judged as his question.
    pub(super) fn police_outwards(
        &mut self,
        domain: DomainId,
        uplink: UplinkId,
    ) -> Result<(), DropReason> {
        if self.topology.policy.is_empty() {
            return Ok(());
        }
        let kind = self.headers.l4.map(|l4| l4.kind);
        // The NAT passes errors of its sessions alone.
        if matches!(kind, Ok(L4Kind::IcmpError { .. })) {
            return Ok(());
        }
        let (topology, now) = (self.topology, self.now);
        let nat = &mut self.state.nat;
        let asked = nat.asked_at(topology, domain, self.frame, self.headers, now);
        let standing = match asked {
            _ if matches!(kind, Ok(L4Kind::Echo { request: false, .. })) => Standing::Answer,
            Some(_) => Standing::Answer,
            None => Standing::Opening,
        };
        let (from, to) = (self.sender(domain), Party::Outside(uplink));
        let question = Question::of(self.headers, from, to, Ok(()));
        self.settle(&question, standing)
    }

    /// The mark that a session remembers its route by: none where rules have to see every packet.
    pub(super) fn policed_mark(&self, domain: DomainId, mark: RouteMark) -> RouteMark {
        let policy = &self.topology.policy;
        match policy.is_empty() || !policy.sees_leaving(domain) {
            true => mark,
            false => RouteMark::NONE,
        }
    }

    /// To a published port, before a session is made: ends where no target may be reached.
    pub(super) fn police_published(&mut self, ip: &Ip) -> Result<(), DropReason> {
        if self.topology.policy.is_empty() {
            return Ok(());
        }
        let (transport, dst) = match self.headers.l4.map(|l4| l4.kind) {
            Ok(L4Kind::Tcp { dst, .. }) => (Transport::Tcp, dst),
            Ok(L4Kind::Udp { dst, .. }) => (Transport::Udp, dst),
            _ => return Ok(()),
        };
        let external = L4Addr {
            ip: ip.dst,
            l4_port: dst,
        };
        let topology = self.topology;
        let Some(rule) = topology.statics.by_external(transport, external) else {
            return Ok(());
        };
        let question = |inside: L4Addr, domain: &Domain| {
            let (from, to) = (self.entrance(), party(domain, inside.ip));
            let content = Question::of(self.headers, from, to, Ok(()));
            let src = content.content.ports().map_or(0, |ports| ports.0);
            content.between(L4Addr::new(ip.src, src), inside)
        };
        let mut denied = None;
        for target in &rule.targets {
            let Some(domain) = topology.domain(target.domain) else {
                continue;
            };
            let question = question(target.inside_of(rule, dst), domain);
            if !topology.policy.denies(&question) {
                return Ok(());
            }
            denied = denied.or(Some(question));
        }
        denied.map_or(Ok(()), |question| self.settle(&question, Standing::Opening))
    }

    /// From outside to an endpoint, once it is known to whom and in whose flow.
    pub(super) fn police_inwards(
        &mut self,
        uplink: UplinkId,
        inbound: &Inbound,
    ) -> Result<(), DropReason> {
        if self.topology.policy.is_empty() {
            return Ok(());
        }
        let standing = match inbound.translation.kind {
            NatKind::Forward => Standing::Opening,
            NatKind::SourceReturn => Standing::Answer,
            NatKind::Source | NatKind::ForwardReturn | NatKind::Hairpin | NatKind::IcmpError => {
                return Ok(());
            }
        };
        let Some(domain) = self.topology.domain(inbound.domain) else {
            return Ok(());
        };
        let (from, to) = (Party::Outside(uplink), party(domain, inbound.inside));
        let (src, dst) = inbound.translation.after;
        let question = Question::of(self.headers, from, to, Ok(())).between(src, dst);
        self.settle(&question, standing).map_err(untold)
    }

    /// From an endpoint to another one by an external address: between the two as they are inside.
    pub(super) fn police_hairpin(
        &mut self,
        from: DomainId,
        inbound: &Inbound,
    ) -> Result<(), DropReason> {
        if self.topology.policy.is_empty() || inbound.translation.kind == NatKind::IcmpError {
            return Ok(());
        }
        let Some(domain) = self.topology.domain(inbound.domain) else {
            return Ok(());
        };
        let (from, to) = (self.sender(from), party(domain, inbound.inside));
        let (before, after) = (inbound.translation.before, inbound.translation.after);
        let question = Question::of(self.headers, from, to, Ok(()));
        self.follow(&question.between(before.0, after.1))
            .map_err(untold)
    }

    fn sender(&self, domain: DomainId) -> Party {
        Party::Port(self.frame.ingress, domain)
    }

    /// Whoever is behind the port that the packet entered by.
    fn entrance(&self) -> Party {
        let port = self.topology.port(self.frame.ingress);
        match port.map(|port| port.role) {
            Some(Role::Bridge(domain)) => self.sender(domain),
            Some(Role::Uplink(uplink)) => Party::Outside(uplink),
            Some(Role::HostLink) | None => Party::Host,
        }
    }
}

/// Who has an address of a network.
fn party(domain: &Domain, address: IpAddr) -> Party {
    let neighbour = domain.neighbours.get(&address);
    neighbour.map_or(Party::Domain(domain.id), |neighbour| {
        Party::Port(neighbour.port, domain.id)
    })
}
