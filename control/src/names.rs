//! Names from the control plane's point of view: from what is wanted to the zones that the service
//! answers by, and the files that tell resolvers of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane_core::addr::{DomainId, L4Port};
use dataplane_service::dns::zone::Forward;
use dataplane_service::dns::{EndpointNames, NetworkNames, Zones};

use crate::model::dns::{DnsState, SERVERS_MAX};
use crate::model::{DesiredState, Network, Router};
use crate::parts::{Parts, Servers, Wanted};

/// What a resolv.conf(5) says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers, in order.
    pub servers: Vec<IpAddr>,
    /// The domains that are tried.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads one. What cannot be read is passed over, as resolvers do.
    pub fn read(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // A zone index has no place in a picture; such a server is left out.
                Some("nameserver") => read
                    .servers
                    .extend(words.next().and_then(|w| w.parse::<IpAddr>().ok())),
                Some("search") => read.search = words.map(str::to_owned).collect(),
                Some("domain") => read.search = words.take(1).map(str::to_owned).collect(),
                Some(_) | None => {}
            }
        }
        read.servers.truncate(SERVERS_MAX);
        read
    }

    /// The same as text, for a sandbox: every name may be an endpoint's, so none is too short to be
    /// asked as it is (`ndots:0`, as Docker has it).
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for server in self.servers.iter().take(SERVERS_MAX) {
            text += &format!("nameserver {server}\n");
        }
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        text += "options ndots:0\n";
        text
    }
}

/// Builds the zones of all networks that have the service. `servers` are the daemon's.
pub fn zones(desired: &DesiredState, parts: &Parts, servers: &[IpAddr]) -> Zones {
    let networks = desired.networks.values();
    // A gateway would ask itself.
    let routed = networks.clone().filter(|network| is_routed_by_us(network));
    let gateways = routed.flat_map(|network| network.subnets.iter().map(|subnet| subnet.gateway));
    let gateways: BTreeSet<IpAddr> = gateways.collect();
    let sockets = |servers: &[IpAddr]| -> Vec<SocketAddr> {
        let others = servers.iter().filter(|server| !gateways.contains(server));
        let sockets = others.map(|server| SocketAddr::new(reachable(*server), L4Port::DNS.0));
        sockets.collect()
    };
    let served = networks.filter(|network| is_served(network));
    let zone = |network: &Network| NetworkNames {
        domain: network.domain,
        name: network.name.to_string(),
        subnets: network
            .subnets
            .iter()
            .map(|s| s.dataplane_prefix())
            .collect(),
        forward: forward(
            network,
            sockets(match network.dns.servers.as_slice() {
                [] => servers,
                own => own,
            }),
        ),
        endpoints: Vec::new(),
    };
    let mut names: BTreeMap<DomainId, NetworkNames> = served
        .map(|network| (network.domain, zone(network)))
        .collect();
    for part in parts.all().filter(|part| part.wanted != Wanted::Nothing) {
        if let Some(network) = names.get_mut(&part.domain) {
            network.endpoints.push(match part.servers {
                Servers::Network => Arc::clone(&part.names),
                Servers::Own => Arc::new(EndpointNames {
                    upstreams: sockets(&part.endpoint.dns.servers),
                    ..EndpointNames::clone(&part.names)
                }),
            });
        }
    }
    Zones::build(names.into_values().collect())
}

fn forward(network: &Network, servers: Vec<SocketAddr>) -> Forward {
    match network.internal {
        true => Forward::Nobody,
        false => Forward::To(Arc::from(servers)),
    }
}

/// The unspecified address means this host (resolv.conf(5)).
fn reachable(server: IpAddr) -> IpAddr {
    match server {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        other => other,
    }
}

/// Whether a network has the name service: at a gateway of the switch's, for who else routes has the
/// port at the router.
pub fn is_served(network: &Network) -> bool {
    network.dns.state == DnsState::On && is_routed_by_us(network)
}

/// Whether a network's gateways are the switch's own.
fn is_routed_by_us(network: &Network) -> bool {
    network.router == Router::Switch
}

/// What the resolvers of a network's sandboxes are to ask.
pub fn nameservers(network: &Network) -> Vec<IpAddr> {
    let gateways = network.subnets.iter().map(|subnet| subnet.gateway);
    gateways.filter(|_| is_served(network)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resolvers_understand_of_a_file_is_read_and_the_rest_passed_over() {
        let text = "# comment\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::53 \nnameserver 1\noptions edns0\n\
                    search a.example b.example\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n";
        let read = ResolvConf::read(text);
        let servers = ["192.0.2.1", "2001:db8::53", "3.3.3.3"];
        assert_eq!(read.servers, servers.map(|s| s.parse::<IpAddr>().unwrap()));
        assert_eq!(read.search, ["a.example", "b.example"]);
        let written = read.to_text();
        assert!(written.ends_with("search a.example b.example\noptions ndots:0\n"));
        assert_eq!(ResolvConf::read(&written), read);
    }

    #[test]
    fn a_gateway_is_never_asked_by_itself() {
        let mut desired = crate::store::tests::example();
        let network = desired.networks.values_mut().next().unwrap();
        network.internal = false;
        network.router = Router::Switch;
        network.dns = Default::default();
        let (domain, gateway) = (network.domain, network.subnets[0].gateway);
        let server: IpAddr = "192.0.2.1".parse().unwrap();
        let zones = zones(
            &desired,
            &Parts::of(&desired),
            &[gateway, server, "0.0.0.0".parse().unwrap()],
        );
        let upstreams = zones.upstreams(domain, server);
        let upstreams: Vec<String> = upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(upstreams, ["192.0.2.1:53", "127.0.0.1:53"]);
    }

    #[test]
    fn a_network_that_others_route_has_no_names_of_ours() {
        let mut desired = crate::store::tests::example();
        let network = desired.networks.values_mut().next().unwrap();
        network.dns = Default::default();
        for (router, served) in [(Router::Switch, true), (Router::Lan, false)] {
            network.router = router;
            assert_eq!(nameservers(network).is_empty(), !served);
        }
        let (domain, router) = (network.domain, network.subnets[0].gateway);
        let mut other = network.clone();
        assert!(!zones(&desired, &Parts::of(&desired), &[]).serves(domain));
        // Its router may well answer the others.
        (other.domain, other.router, other.internal) = (DomainId(9), Router::Switch, false);
        other.subnets.clear();
        desired.networks.insert(other.domain, other);
        let upstreams =
            zones(&desired, &Parts::of(&desired), &[router]).upstreams(DomainId(9), router);
        assert_eq!(upstreams.len(), 1);
    }
}
