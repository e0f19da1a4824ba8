//! Parts of pictures: what the topology and the zones have of each endpoint, made once.
//!
//! Each change puts whole pictures in force ([`crate::topology`], [`crate::names`]). To make them of
//! nothing each time would cost whoever attaches what all endpoints cost that there are; so what
//! depends on an endpoint and its network alone is kept until one of the two is another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane_core::addr::{DomainId, MacAddr, PortId};
use dataplane_core::l2::{Families, Identity, PortFlags, PortProfile};
use dataplane_core::link::LinkSpec;
use dataplane_service::dns::EndpointNames;

use crate::model::{
    DesiredState, Endpoint, Icc, LoopDetect, Name, Network, Phase, Router, StpFrames,
};
use crate::port_settings::AdminState;
use crate::vlans::VlanFiltering;

/// The parts of all endpoints whose network is there.
#[derive(Debug, Default)]
pub struct Parts(Vec<Option<EndpointParts>>);

/// What pictures have of one endpoint. What is asked of each of them for each picture is here by itself,
/// side by side with the others': to fetch it from where the endpoints are takes longer than to use it.
#[derive(Debug)]
pub struct EndpointParts {
    /// Its port.
    pub port: PortId,
    /// Its network.
    pub domain: DomainId,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses, at most one of each family.
    pub addresses: [Option<IpAddr>; 2],
    /// Whether it is attached, and whether its port is to be up then.
    pub wanted: Wanted,
    /// What is switched on for its port.
    pub flags: PortFlags,
    /// Whose servers its questions go to.
    pub servers: Servers,
    /// Of which it is.
    pub endpoint: Arc<Endpoint>,
    /// Its name.
    pub name: Arc<str>,
    /// What its port has beyond its flags, but for the one MAC of those behind it.
    pub profile: Arc<PortProfile>,
    /// What others know it by, but for the servers that it asks.
    pub names: Arc<EndpointNames>,
    /// What its network had to do with it.
    beside: Beside,
}

/// What is wanted of an endpoint's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing yet, or nothing any more.
    Nothing,
    /// To be there, and down.
    Down,
    /// To be up.
    Up,
}

/// Whose name servers an endpoint's questions go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// Its network's.
    Network,
    /// Its own.
    Own,
}

/// What of a network these parts depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beside {
    /// What it switches on for all its ports.
    flags: PortFlags,
    icc: Icc,
    /// Families in which an endpoint without an address gets one from somebody else.
    offered: Families,
    filtering: VlanFiltering,
}

impl Beside {
    fn of(network: &Network) -> Self {
        let offered = |family: fn(&IpAddr) -> bool| {
            network.router == Router::Lan
                || network.subnets.iter().any(|subnet| family(&subnet.gateway))
        };
        Self {
            offered: Families {
                v4: offered(IpAddr::is_ipv4),
                v6: offered(IpAddr::is_ipv6),
            },
            filtering: network.vlans.filtering,
            flags: flags_of_all(network),
            icc: network.icc,
        }
    }
}

fn flags_of_all(network: &Network) -> PortFlags {
    let mut flags = PortFlags::NONE;
    if network.stp_frames == StpFrames::Forward {
        flags = flags.with(PortFlags::BPDUS);
    }
    if network.loop_detect != LoopDetect::Off {
        flags = flags.with(PortFlags::LOOP_DETECT);
    }
    if network.vlans.filtering == VlanFiltering::On {
        flags = flags.with(PortFlags::FILTERING);
    }
    flags
}

fn flags(endpoint: &Endpoint, beside: Beside) -> PortFlags {
    let mut flags = endpoint.settings.flags | beside.flags;
    if !endpoint.settings.storm.is_empty() {
        flags = flags.with(PortFlags::STORM);
    }
    if endpoint.settings.mac_nat.is_some() {
        flags = flags.with(PortFlags::MAC_NAT);
    }
    if !endpoint.settings.links.iter().all(LinkSpec::is_plain) {
        flags = flags.with(PortFlags::LINKED);
    }
    if beside.icc == Icc::Off && !endpoint.comes_with_nic() {
        flags = flags.with(PortFlags::ICC_OFF);
    }
    flags
}

fn wanted(endpoint: &Endpoint) -> Wanted {
    match (endpoint.phase, endpoint.settings.state) {
        (Phase::Attached, AdminState::Up) => Wanted::Up,
        (Phase::Attached, AdminState::Down) => Wanted::Down,
        (Phase::Attaching | Phase::Detaching, _) => Wanted::Nothing,
    }
}

impl Parts {
    /// The parts of these.
    pub fn of(desired: &DesiredState) -> Self {
        let mut parts = Self::default();
        parts.follow(desired);
        parts
    }

    /// Makes what is new, and drops what is of endpoints that are no more.
    pub fn follow(&mut self, desired: &DesiredState) {
        let places = desired.endpoints.places();
        // The same for all endpoints of a network.
        let networks = desired.networks.iter();
        let besides = networks.map(|(domain, network)| (*domain, Beside::of(network)));
        let besides: BTreeMap<DomainId, Beside> = besides.collect();
        let count = self.0.len().max(places.len());
        self.0.resize_with(count, || None);
        for (index, slot) in self.0.iter_mut().enumerate() {
            let here = places.get(index).and_then(Option::as_ref);
            follow_slot(slot, here, &besides);
        }
        self.0.truncate(places.len());
    }

    /// Those of all endpoints, by port.
    pub fn all(&self) -> impl Iterator<Item = &EndpointParts> {
        self.0.iter().flatten()
    }
}

fn follow_slot(
    slot: &mut Option<EndpointParts>,
    endpoint: Option<&Arc<Endpoint>>,
    besides: &BTreeMap<DomainId, Beside>,
) {
    let beside = |domain| besides.get(&domain).copied();
    // Of one that is the same nothing is read but where it is.
    let same = slot.as_ref().zip(endpoint).is_some_and(|(had, endpoint)| {
        Arc::ptr_eq(&had.endpoint, endpoint) && beside(had.domain) == Some(had.beside)
    });
    if !same {
        *slot = endpoint
            .and_then(|endpoint| Some(EndpointParts::of(endpoint, beside(endpoint.domain)?)));
    }
}

impl EndpointParts {
    fn of(endpoint: &Arc<Endpoint>, beside: Beside) -> Self {
        let mut addresses = endpoint.addresses.iter().copied();
        Self {
            port: endpoint.port,
            domain: endpoint.domain,
            mac: endpoint.mac,
            addresses: [addresses.next(), addresses.next()],
            wanted: wanted(endpoint),
            flags: flags(endpoint, beside),
            servers: match endpoint.dns.servers.is_empty() {
                true => Servers::Network,
                false => Servers::Own,
            },
            name: endpoint.name.as_str().into(),
            profile: Arc::new(profile(endpoint, beside)),
            names: Arc::new(names(endpoint)),
            endpoint: Arc::clone(endpoint),
            beside,
        }
    }
}

fn profile(endpoint: &Endpoint, beside: Beside) -> PortProfile {
    // What the network has and the endpoint was not given, it gets from elsewhere.
    let open = |offered: bool, family: fn(&IpAddr) -> bool| {
        offered && !endpoint.addresses.iter().any(family)
    };
    PortProfile {
        identity: Identity {
            mac: endpoint.mac,
            addresses: endpoint.addresses.as_slice().into(),
            open: Families {
                v4: open(beside.offered.v4, IpAddr::is_ipv4),
                v6: open(beside.offered.v6, IpAddr::is_ipv6),
            },
        },
        mac_limit: endpoint.settings.mac_limit,
        vlans: match beside.filtering {
            VlanFiltering::Off => None,
            VlanFiltering::On => Some(Box::new(endpoint.vlans.clone())),
        },
        storm: endpoint.settings.storm,
        mac_nat: None,
        links: endpoint.settings.links,
    }
}

fn names(endpoint: &Endpoint) -> EndpointNames {
    let names = std::iter::once(&endpoint.name).chain(&endpoint.dns.aliases);
    let links = endpoint.dns.links.iter();
    EndpointNames {
        names: names.map(Name::to_string).collect(),
        addresses: endpoint.addresses.clone(),
        upstreams: Vec::new(),
        links: links
            .map(|link| (link.alias.to_string(), link.target.to_string()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(parts: &Parts) -> Vec<(PortId, Arc<PortProfile>)> {
        let all = parts.all();
        all.map(|parts| (parts.endpoint.port, Arc::clone(&parts.profile)))
            .collect()
    }

    #[test]
    fn what_is_kept_is_what_would_be_made() {
        let mut desired = crate::store::tests::example();
        let mut parts = Parts::of(&desired);
        let before = profiles(&parts);
        assert_eq!(before.len(), desired.endpoints.len());
        parts.follow(&desired);
        for ((_, one), (_, two)) in before.iter().zip(profiles(&parts)) {
            assert!(Arc::ptr_eq(one, &two), "nothing has changed");
        }
        // An endpoint changes, another one goes, a third comes in, and a network is set anew.
        let ports: Vec<PortId> = desired.endpoints.ports().collect();
        desired.endpoints.change(ports[0], |e| e.addresses.clear());
        let mut third = (*desired.endpoints.remove(&ports[1]).unwrap()).clone();
        third.port = PortId(ports[1].0 + 7);
        desired.endpoints.insert(third);
        check(&mut parts, &desired);
        for network in desired.networks.values_mut() {
            network.vlans.filtering = VlanFiltering::On;
        }
        check(&mut parts, &desired);
        for network in desired.networks.values_mut() {
            network.subnets.clear();
            network.icc = Icc::Off;
            network.loop_detect = LoopDetect::Block;
        }
        check(&mut parts, &desired);
        desired.networks.clear();
        check(&mut parts, &desired);
    }

    fn check(parts: &mut Parts, desired: &DesiredState) {
        parts.follow(desired);
        let anew = Parts::of(desired);
        assert_eq!(profiles(parts), profiles(&anew));
        for (kept, made) in parts.all().zip(anew.all()) {
            assert!(Arc::ptr_eq(&kept.endpoint, &made.endpoint));
            assert_eq!((&kept.name, &kept.names), (&made.name, &made.names));
            let rest = |parts: &EndpointParts| (parts.wanted, parts.flags, parts.addresses);
            assert_eq!(rest(kept), rest(made));
        }
        let known = desired.endpoints.values();
        let known = known.filter(|e| desired.networks.contains_key(&e.domain));
        assert_eq!(parts.all().count(), known.count());
    }
}
