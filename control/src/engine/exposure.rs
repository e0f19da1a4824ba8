//! What the outside can reach, and what narrows it.

use std::collections::BTreeSet;

use dataplane_core::nat::Dependence;
use dataplane_core::policy::Side;

use super::{Engine, State};
use crate::api::rules::{Exposed, ExposureView};
use crate::model::{Endpoint, Network, Publication, Router, transport_label};
use crate::publish::range_text;

/// Open mappings that are listed: more tell nobody more.
const MAPPINGS_LISTED_MAX: usize = 10_000;

impl Engine {
    /// Everything that somebody outside can open a connection to, or send to.
    pub async fn exposure(&self) -> Vec<ExposureView> {
        let state = self.state().await;
        let mut all = Vec::new();
        for publication in state.desired.publications.values() {
            all.extend(self.published(&state, publication));
        }
        for network in state.desired.networks.values() {
            all.extend(self.routed(&state, network));
            all.extend(on_a_lan(&state, network));
        }
        all.extend(self.open_mappings(&state));
        all
    }

    /// A row for each endpoint that a publication leads to.
    fn published(&self, state: &State, publication: &Publication) -> Vec<ExposureView> {
        let loopback = publication.host_ip.is_some_and(|ip| ip.is_loopback());
        let targets = publication.targets.iter().filter(|_| !loopback);
        let endpoints = targets.filter_map(|target| state.desired.endpoints.get(&target.endpoint));
        let row = |endpoint: &Endpoint| ExposureView {
            address: publication
                .host_ip
                .map_or_else(|| "any".to_owned(), |ip| ip.to_string()),
            protocol: transport_label(publication.transport).to_owned(),
            ports: range_text(&publication.host_ports),
            uplinks: match &publication.uplink {
                Some(name) => vec![name.clone()],
                None => uplinks(state),
            },
            from: publication
                .from
                .map_or_else(|| "any".to_owned(), |from| from.to_string()),
            ..self.of_endpoint(state, Exposed::Published, endpoint)
        };
        endpoints.map(row).collect()
    }

    /// The endpoints of a network that the outside reaches by their own addresses.
    fn routed(&self, state: &State, network: &Network) -> Vec<ExposureView> {
        let prefixes: Vec<_> = network.routed_prefixes().collect();
        let routed = |address: &std::net::IpAddr| prefixes.iter().any(|p| p.contains(*address));
        let mut rows = Vec::new();
        for endpoint in state.desired.endpoints_of(network.domain) {
            for address in endpoint.addresses.iter().filter(|address| routed(address)) {
                rows.push(ExposureView {
                    address: address.to_string(),
                    protocol: "icmp echo, and published ports".to_owned(),
                    uplinks: uplinks(state),
                    ..self.of_endpoint(state, Exposed::Routed, endpoint)
                });
            }
        }
        rows
    }

    /// External ports that let in whoever sends to them.
    fn open_mappings(&self, state: &State) -> Vec<ExposureView> {
        let mut seen = BTreeSet::new();
        let mut rows = Vec::new();
        for session in self.nat().sessions(MAPPINGS_LISTED_MAX) {
            let network = state.desired.networks.get(&session.domain);
            let Some(network) = network.filter(|_| session.rule.is_none()) else {
                continue;
            };
            let base = self.config.nat.behaviour_of(network.name.as_str());
            let filtering = network.nat.behaviour(base).filtering;
            let from = match filtering {
                Dependence::EndpointIndependent => "any",
                Dependence::AddressDependent => "whom it has sent to, from any port",
                Dependence::AddressAndPortDependent => continue,
            };
            let protocol = format!("{:?}", session.protocol).to_lowercase();
            if !seen.insert((protocol.clone(), session.external, session.inside)) {
                continue;
            }
            let mut endpoints = state.desired.endpoints_of(session.domain);
            let inside = |endpoint: &&Endpoint| endpoint.addresses.contains(&session.inside.ip);
            let Some(endpoint) = endpoints.find(inside) else {
                continue;
            };
            rows.push(ExposureView {
                address: session.external.ip.to_string(),
                ports: session.external.l4_port.0.to_string(),
                protocol,
                uplinks: uplinks(state),
                from: from.to_owned(),
                ..self.of_endpoint(state, Exposed::Mapping, endpoint)
            });
        }
        rows
    }

    fn of_endpoint(&self, state: &State, kind: Exposed, endpoint: &Endpoint) -> ExposureView {
        let network = state.desired.network_of(endpoint);
        ExposureView {
            network: network.map_or_else(String::new, |network| network.name.to_string()),
            endpoint: Some(endpoint.name.to_string()),
            rules: self.rules_towards(endpoint),
            ..ExposureView::new(kind)
        }
    }

    /// The rules that somebody outside may meet on the way to an endpoint, in their order.
    fn rules_towards(&self, endpoint: &Endpoint) -> Vec<String> {
        let topology = self.dataplane.topology();
        let from_outside =
            |side: &Side| matches!(side, Side::Anyone | Side::Outside | Side::Prefix(_));
        let to_it = |side: &Side| match side {
            Side::Anyone => true,
            Side::Network(domain) => *domain == endpoint.domain,
            Side::Endpoint(port, _) => *port == endpoint.port,
            Side::Prefix(prefix) => endpoint.addresses.iter().any(|own| prefix.contains(*own)),
            Side::Host | Side::Outside => false,
        };
        let rules = topology.policy.rules().iter();
        let met = rules.filter(|rule| from_outside(&rule.from) && to_it(&rule.to));
        met.map(|rule| rule.name.to_string()).collect()
    }
}

/// A network that a card of the host is a port of: whoever is on its LAN reaches every endpoint.
fn on_a_lan(state: &State, network: &Network) -> Option<ExposureView> {
    let nic = state.desired.nic_of(network.domain)?;
    let prefix = |subnet: &crate::model::Subnet| subnet.prefix.to_string();
    let subnets: Vec<String> = network.subnets.iter().map(prefix).collect();
    let own = network.router == Router::Switch;
    Some(ExposureView {
        address: match subnets.is_empty() {
            true => "any".to_owned(),
            false => subnets.join(", "),
        },
        protocol: "any".to_owned(),
        uplinks: vec![nic.ifname.clone()],
        from: match own {
            true => "the LAN behind the card".to_owned(),
            false => "the LAN behind the card, and whom it routes".to_owned(),
        },
        network: network.name.to_string(),
        ..ExposureView::new(Exposed::Nic)
    })
}

fn uplinks(state: &State) -> Vec<String> {
    let uplinks = state.uplinks.iter();
    uplinks.map(|uplink| uplink.name.clone()).collect()
}
