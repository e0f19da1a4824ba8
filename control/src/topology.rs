//! From what is wanted and what is there to the picture that the dataplane forwards by.
//!
//! Pure, and always the whole picture: the dataplane swaps one for the next between two batches,
//! so nothing is ever half-changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane_core::addr::{L4Addr, MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::l2::{MacNat, Mirror, MirrorSource, PortFlags, PortProfile};
use dataplane_core::nat::{
    Account, External, NatConfig, RuleError, StaticRule, StaticRules, Target,
};
use dataplane_core::time::Duration;
use dataplane_core::topology::{
    Domain, Gateway, HostLink, Neighbour, Port, Role, Route, Topology, Uplink,
};
use dataplane_port::Framing;

use crate::hostnet::HostState;
use crate::model::{
    DesiredState, HOST_LINK_PORT, MTU_DEFAULT, Name, Network, Publication, PublicationTarget,
    Router, Subnet, only_shows,
};
use crate::parts::{EndpointParts, Parts, Wanted};
use crate::vlans::VlanFiltering;

/// An uplink that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkPort {
    /// Its id; ids are consecutive from 0.
    pub id: UplinkId,
    /// Its switch port.
    pub port: PortId,
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub link: u32,
    /// What the interface's packets begin with.
    pub framing: Framing,
}

/// The host link, when it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLinkPort {
    /// The interface's index.
    pub link: u32,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// Everything that a topology is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What is wanted.
    pub desired: &'a DesiredState,
    /// What the host has.
    pub host: &'a HostState,
    /// The open uplinks, by id.
    pub uplinks: &'a [UplinkPort],
    /// What is made of the endpoints.
    pub parts: &'a Parts,
    /// The host link.
    pub host_link: Option<HostLinkPort>,
    /// Endpoint ports whose device is open.
    pub open: &'a BTreeSet<PortId>,
    /// Ports that are blocked, for they are part of a loop.
    pub blocked: &'a BTreeSet<PortId>,
    /// Ranges, timeouts and limits of the NAT.
    pub nat: &'a NatConfig,
    /// The ports that have one MAC for everybody behind them.
    pub mac_nats: &'a BTreeMap<PortId, MacNat>,
}

/// Builds the topology. What ports of an earlier picture share with it, if one is given, is taken from there.
///
/// # Errors
/// A publication that contradicts another or itself; requests are checked before, so only a
/// store that was edited by hand can bring one here.
pub fn build(inputs: &Inputs<'_>, earlier: Option<Topology>) -> Result<Topology, RuleError> {
    let mut topology = Topology::default();
    let mut earlier = earlier.map_or_else(Vec::new, |earlier| earlier.ports);
    topology.nat = inputs.nat.clone();
    for network in inputs.desired.networks.values() {
        topology.put_domain(domain(inputs, network));
    }
    let mut open = inputs.open.iter().peekable();
    for parts in inputs.parts.all() {
        let place = earlier.get_mut(parts.port.index());
        // Both are sorted by port: to walk them side by side is less than to look each up.
        while open.next_if(|open| **open < parts.port).is_some() {}
        let is_open = open.peek() == Some(&&parts.port);
        let earlier = place.and_then(Option::take);
        put_endpoint(&mut topology, inputs, parts, is_open, earlier);
    }
    if let Some(link) = inputs.host_link {
        topology.put_port(Port {
            mtu: link.mtu,
            ..Port::new(HOST_LINK_PORT, crate::host_link::IFNAME, Role::HostLink)
        });
        topology.host_link = Some(HostLink {
            port: HOST_LINK_PORT,
            mac: link.mac,
        });
    }
    for uplink in inputs.uplinks {
        put_uplink(&mut topology, inputs, uplink);
    }
    let except = inputs.host_link.map(|link| link.link);
    topology.local_addresses = inputs.host.local_addresses(except).into_iter().collect();
    topology.routes = routes(inputs, except);
    let publications = inputs.desired.publications.values();
    let rules = publications.flat_map(|publication| {
        let rules = rules_of(inputs.desired, publication).into_iter();
        rules.filter_map(move |rule| placed(inputs, publication, rule))
    });
    let mirrors = inputs.desired.mirrors.values();
    topology.mirrors = mirrors.map(|setting| setting.mirror).collect();
    for (name, setting) in &inputs.desired.mirror_files {
        put_mirror_file(&mut topology, inputs.desired, name, setting.mirror);
    }
    topology.policy = crate::rules::compile(inputs.desired, &topology.uplinks);
    topology.statics = StaticRules::build(rules.collect())?;
    topology.finish();
    Ok(topology)
}

/// A mirror whose port leads to a file, which takes frames of any size.
fn put_mirror_file(topology: &mut Topology, desired: &DesiredState, name: &Name, mirror: Mirror) {
    let domain = match mirror.from {
        MirrorSource::Port(port) => desired.endpoints.get(&port).map(|from| from.domain),
        MirrorSource::Domain(domain) => Some(domain),
    };
    if let Some(domain) = domain {
        topology.put_port(Port {
            mtu: u16::MAX,
            flags: PortFlags::MIRROR | PortFlags::OFFLOAD,
            // No endpoint can have such a name.
            ..Port::new(mirror.to, &format!("mirror:{name}"), Role::Bridge(domain))
        });
        topology.mirrors.push(mirror);
    }
}

fn put_endpoint(
    topology: &mut Topology,
    inputs: &Inputs<'_>,
    parts: &EndpointParts,
    is_open: bool,
    earlier: Option<Port>,
) {
    let EndpointParts { port, domain, .. } = *parts;
    let Some(network) = inputs.desired.networks.get(&domain) else {
        return;
    };
    // Whose port shows a mirror is reached by nobody.
    let shows = only_shows(&inputs.desired.mirrors, port);
    if !shows && let Some(Some(domain)) = topology.domains.get_mut(domain.index()) {
        let mac = parts.mac;
        let addresses = parts.addresses.into_iter().flatten();
        domain
            .neighbours
            .extend(addresses.map(|address| (address, Neighbour { mac, port })));
    }
    let up = parts.wanted == Wanted::Up;
    let (name, profile) = shared(parts, earlier);
    let mut made = Port {
        id: port,
        name,
        role: Role::Bridge(domain),
        up: up && is_open && !inputs.blocked.contains(&port),
        mtu: network.mtu,
        flags: match shows {
            // Of what is set of it, what is of frames that leave counts.
            true => PortFlags::MIRROR | (parts.endpoint.settings.flags & PortFlags::OFFLOAD),
            false => parts.flags,
        },
        profile,
    };
    if let Some(nat) = inputs.mac_nats.get(&port) {
        made.profile_mut().mac_nat = Some(nat.clone());
    }
    topology.put_port(made);
}

/// A port's name and profile. To take them over from an earlier picture costs nothing; to share them once
/// more touches the memory of each, of which there may be thousands.
fn shared(parts: &EndpointParts, earlier: Option<Port>) -> (Arc<str>, Arc<PortProfile>) {
    let same = |port: &Port| {
        Arc::ptr_eq(&port.name, &parts.name) && Arc::ptr_eq(&port.profile, &parts.profile)
    };
    match earlier.filter(same) {
        Some(port) => (port.name, port.profile),
        None => (Arc::clone(&parts.name), Arc::clone(&parts.profile)),
    }
}

fn domain(inputs: &Inputs<'_>, network: &Network) -> Domain {
    let mut domain = Domain::new(network.domain, network.name.as_str());
    domain.ageing = Duration::from_secs(network.ageing_seconds.into());
    domain.multicast = network.flood.multicast();
    domain.suppression = network.flood.suppression();
    if network.router == Router::Switch {
        let prefixes = network.subnets.iter().map(Subnet::dataplane_prefix);
        domain.subnets = prefixes.collect();
    }
    if network.router == Router::Switch && !network.subnets.is_empty() {
        domain.gateway = Some(Gateway {
            mac: network.gateway_mac(),
            addresses: network.subnets.iter().map(|s| s.gateway).collect(),
            mtu: network.mtu,
        });
    }
    if network.vlans.filtering == VlanFiltering::On {
        domain.gateway_vlan = network.vlans.gateway;
    }
    domain.nat = network
        .nat
        .behaviour(inputs.nat.behaviour_of(network.name.as_str()));
    domain.modes = network.nat_modes();
    domain.internal = network.internal;
    domain.resolver = network.dns.state.resolver();
    domain.host_link = network.host_link && inputs.host_link.is_some();
    domain
}

fn put_uplink(topology: &mut Topology, inputs: &Inputs<'_>, uplink: &UplinkPort) {
    let link = inputs.host.link_by_index(uplink.link);
    let mtu = link.map_or(MTU_DEFAULT, |link| {
        u16::try_from(link.mtu).unwrap_or(u16::MAX)
    });
    let (mac, peer) = match uplink.framing {
        Framing::Ethernet => (link.and_then(|link| link.mac), None),
        Framing::Ip => (Some(Framing::OWN_MAC), Some(Framing::PEER_MAC)),
    };
    let mac = mac.unwrap_or(MacAddr::ZERO);
    topology.put_port(Port {
        up: link.is_some_and(|link| link.up),
        mtu,
        ..Port::new(uplink.port, &uplink.name, Role::Uplink(uplink.id))
    });
    topology.uplinks.push(Uplink {
        id: uplink.id,
        name: uplink.name.as_str().into(),
        port: uplink.port,
        mac,
        mtu,
        addresses: inputs.host.addresses_of(uplink.link).collect(),
        neighbours: inputs
            .host
            .neighbours
            .iter()
            .filter(|neighbour| neighbour.link == uplink.link)
            .filter_map(|neighbour| Some((neighbour.address, neighbour.mac?)))
            .collect(),
        peer,
    });
}

/// The host's routes, lowest metric first, because the first of equal prefixes counts.
fn routes(inputs: &Inputs<'_>, except: Option<u32>) -> Vec<Route> {
    let mut routes: Vec<_> = inputs
        .host
        .routes
        .iter()
        .filter(|route| Some(route.link) != except)
        .collect();
    routes.sort_by_key(|route| route.metric);
    let uplink_of = |link: u32| inputs.uplinks.iter().find(|uplink| uplink.link == link);
    routes
        .into_iter()
        .map(|route| Route {
            prefix: route.prefix,
            uplink: uplink_of(route.link).map(|uplink| uplink.id),
            next_hop: route.gateway,
            source: route.source,
        })
        .collect()
}

/// The ids of a publication's NAT rules: for the IPv4 addresses of its endpoints, and for the IPv6
/// ones.
pub const fn rule_ids(publication: u32) -> [u32; 2] {
    let first = publication.wrapping_mul(2);
    [first, first.wrapping_add(1)]
}

/// The id of a target in a publication's NAT rules.
pub const fn target_id(target: &PublicationTarget) -> u16 {
    target.endpoint.0
}

/// What is counted of a target, in either address family.
pub fn accounts_of(
    publication: &Publication,
    target: &PublicationTarget,
) -> impl Iterator<Item = Account> {
    let target = target_id(target);
    let rules = rule_ids(publication.id).into_iter();
    rules.map(move |rule| Account::Target { rule, target })
}

/// The addresses that an uplink has as of now: what another one before it has as well is that one's,
/// because a port of an address leads to one place.
pub fn uplink_addresses(uplinks: &[UplinkPort], host: &HostState, name: &str) -> Vec<IpAddr> {
    let mut of_others = BTreeSet::new();
    for uplink in uplinks {
        let own = host.addresses_of(uplink.link);
        if uplink.name == name {
            return own.filter(|own| !of_others.contains(own)).collect();
        }
        of_others.extend(own);
    }
    Vec::new()
}

/// A publication's rule at the addresses that its uplink has, if it is for one; `None` while there is
/// no such uplink.
fn placed(
    inputs: &Inputs<'_>,
    publication: &Publication,
    mut rule: StaticRule,
) -> Option<StaticRule> {
    if let Some(name) = &publication.uplink {
        let uplink = inputs.uplinks.iter().find(|uplink| uplink.name == *name)?;
        let addresses = uplink_addresses(inputs.uplinks, inputs.host, name);
        rule.external = External::Uplink(uplink.id, addresses);
    }
    Some(rule)
}

/// A rule for each address family that the publication and one of its endpoints have. One for an
/// uplink is not yet at its addresses.
pub fn rules_of(desired: &DesiredState, publication: &Publication) -> Vec<StaticRule> {
    let [v4_rule, v6_rule] = rule_ids(publication.id);
    let families = [(v4_rule, true), (v6_rule, false)];
    let rule = |(id, v4): (u32, bool)| {
        let fits = |address: IpAddr| address.is_ipv4() == v4;
        let wanted = publication.host_ip.is_none_or(fits)
            && publication.from.is_none_or(|from| fits(from.addr()));
        let of_target = |target: &PublicationTarget| {
            let endpoint = desired.endpoints.get(&target.endpoint)?;
            let inside = endpoint.addresses.iter().find(|inside| fits(**inside))?;
            let inside = L4Addr::new(*inside, target.inside_port_first);
            Some(Target {
                weight: target.weight,
                duty: target.duty,
                ..Target::new(target_id(target), endpoint.domain, inside)
            })
        };
        let targets = publication.targets.iter().filter(|_| wanted);
        let mut targets: Vec<Target> = targets.filter_map(of_target).collect();
        targets.sort_by_key(|target| target.id);
        (!targets.is_empty()).then(|| StaticRule {
            id,
            transport: publication.transport,
            external: publication
                .host_ip
                .map_or(External::Every, External::Address),
            external_ports: publication.host_ports.clone(),
            from: publication
                .from
                .map(|from| Prefix::new(from.network(), from.prefix_len())),
            balance: publication.balance,
            targets,
        })
    };
    families.into_iter().filter_map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoints;

    fn picture(desired: &DesiredState, parts: &Parts, earlier: Option<Topology>) -> Topology {
        let open: BTreeSet<PortId> = desired.endpoints.ports().step_by(2).collect();
        let inputs = Inputs {
            desired,
            host: &HostState::default(),
            uplinks: &[],
            parts,
            host_link: None,
            open: &open,
            blocked: &BTreeSet::new(),
            nat: &NatConfig::default(),
            mac_nats: &BTreeMap::new(),
        };
        build(&inputs, earlier).unwrap()
    }

    fn ports(topology: &Topology) -> String {
        format!("{:#?}", topology.ports)
    }

    #[test]
    fn what_is_taken_from_an_earlier_picture_is_what_would_be_made() {
        let mut desired = crate::store::tests::example();
        let mut parts = Parts::of(&desired);
        let first = picture(&desired, &parts, None);
        let again = picture(&desired, &parts, Some(first.clone()));
        assert_eq!(ports(&first), ports(&again));
        // One goes and another has its place, one changes, one is new.
        let all: Vec<PortId> = desired.endpoints.ports().collect();
        let mut other = (*desired.endpoints.remove(&all[0]).unwrap()).clone();
        other.name = "other".parse().unwrap();
        desired.endpoints.insert(other.clone());
        desired.endpoints.change(all[1], |e| {
            e.settings.flags = e.settings.flags.without(PortFlags::FLOOD);
            e.settings.mac_limit = Some(7);
        });
        other.port = PortId(all[all.len() - 1].0 + 3);
        desired.endpoints.insert(other);
        parts.follow(&desired);
        let anew = picture(&desired, &parts, None);
        assert_ne!(ports(&first), ports(&anew));
        assert_eq!(ports(&picture(&desired, &parts, Some(first))), ports(&anew));
        desired.endpoints = Endpoints::default();
        parts.follow(&desired);
        let none = ports(&picture(&desired, &parts, None));
        assert_eq!(ports(&picture(&desired, &parts, Some(anew))), none);
    }
}
