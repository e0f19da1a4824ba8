//! The names of endpoints: an immutable picture, as of one moment.
//!
//! An endpoint is known on its own network by its name, its aliases, and each of them followed by
//! the network's name. A network knows its own endpoints alone: what is only the name of an endpoint
//! of another network does not exist here, and nobody outside is asked for it. Names with dots may
//! be anybody's, so of those only the ones that end in a network's name count as the other's.
//!
//! A link is a name for one asker alone, who is known by the source of the question.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane_core::addr::{DomainId, Prefix};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, RecordType};
use rustc_hash::FxBuildHasher;

/// Seconds for which an answer from a zone may be kept: few, because an endpoint's address changes
/// when it is attached anew (decision 0024).
pub const TTL_SECONDS: u32 = 5;

/// An endpoint with its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointNames {
    /// Its own, then its aliases.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The servers that its questions go to, where they are others than its network's.
    pub upstreams: Vec<SocketAddr>,
    /// Names that it alone knows others by, with their addresses.
    pub links: Vec<(String, Vec<IpAddr>)>,
}

/// A network with what its service knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNames {
    /// The network.
    pub domain: DomainId,
    /// Its name.
    pub name: String,
    /// Its prefixes.
    pub subnets: Vec<Prefix>,
    /// Whom other questions go to.
    pub forward: Forward,
    /// Its endpoints.
    pub endpoints: Vec<EndpointNames>,
}

/// Whom questions go to that no zone answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// These servers, in this order.
    To(Arc<[SocketAddr]>),
    /// Nobody: the network is internal, and a name that is not its own does not exist.
    Nobody,
}

/// The zones of all networks.
#[derive(Debug, Default)]
pub struct Zones {
    zones: HashMap<DomainId, Zone, FxBuildHasher>,
    /// Names that are some network's.
    taken: HashSet<String, FxBuildHasher>,
    /// Prefixes of all networks.
    subnets: Vec<Prefix>,
}

#[derive(Debug)]
struct Zone {
    network: Arc<str>,
    forward: Forward,
    subnets: Vec<Prefix>,
    /// In lower case, without a dot at the end.
    names: HashMap<String, Vec<IpAddr>, FxBuildHasher>,
    /// An endpoint's first name, with the network's.
    reverse: HashMap<IpAddr, Vec<Name>, FxBuildHasher>,
    upstreams: HashMap<IpAddr, Arc<[SocketAddr]>, FxBuildHasher>,
    /// By the one who asks, as names are.
    links: HashMap<IpAddr, HashMap<String, Vec<IpAddr>>, FxBuildHasher>,
}

/// What the zones say to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The name has these records of the type.
    Records(Vec<RData>),
    /// The name exists, and has no record of the type.
    NoData,
    /// The name is for this switch to know, and does not exist.
    NoName(Missing),
    /// Others may know.
    Elsewhere,
}

/// Why a name does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Only another network has it.
    OtherNetwork,
    /// It is the reverse of an address of the switch's that no endpoint of this network has.
    Address,
    /// The network is internal, and it is no endpoint of it.
    Internal,
}

/// One record, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Zones {
    /// The picture of these networks.
    pub fn build(networks: &[NetworkNames]) -> Self {
        let mut zones = Self::default();
        for network in networks {
            zones.subnets.extend(&network.subnets);
            let zone = Zone::build(network);
            let suffix = format!(".{}", zone.network);
            let ours = |name: &&String| !name.contains('.') || name.ends_with(&suffix);
            zones.taken.extend(zone.names.keys().filter(ours).cloned());
            zones.zones.insert(network.domain, zone);
        }
        zones
    }

    /// Whether that network is served at all.
    pub fn serves(&self, domain: DomainId) -> bool {
        self.zones.contains_key(&domain)
    }

    /// The network's name.
    pub fn network(&self, domain: DomainId) -> Option<Arc<str>> {
        self.zones
            .get(&domain)
            .map(|zone| Arc::clone(&zone.network))
    }

    /// The servers that questions of `source`, on that network, go to.
    pub fn upstreams(&self, domain: DomainId, source: IpAddr) -> Arc<[SocketAddr]> {
        let Some(zone) = self.zones.get(&domain) else {
            return Arc::default();
        };
        match (&zone.forward, zone.upstreams.get(&source)) {
            (Forward::Nobody, _) => Arc::default(),
            (Forward::To(_), Some(own)) => Arc::clone(own),
            (Forward::To(servers), None) => Arc::clone(servers),
        }
    }

    /// Looks a name up for `source`, who is on that network.
    pub fn look_up(
        &self,
        domain: DomainId,
        source: IpAddr,
        name: &Name,
        rtype: RecordType,
    ) -> Found {
        let Some(zone) = self.zones.get(&domain) else {
            return Found::Elsewhere;
        };
        if let Some(address) = reversed(name) {
            return self.look_up_address(zone, address, rtype);
        }
        let text = plain(name);
        let links = zone.links.get(&source);
        let linked = links.and_then(|links| links.get(&text));
        if let Some(addresses) = linked.or_else(|| zone.names.get(&text)) {
            let records = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(v4) if rtype == RecordType::A => Some(RData::A(A(*v4))),
                IpAddr::V6(v6) if rtype == RecordType::AAAA => Some(RData::AAAA(AAAA(*v6))),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            });
            return of_type(records.collect());
        }
        if self.taken.contains(&text) {
            return Found::NoName(Missing::OtherNetwork);
        }
        zone.not_here()
    }

    fn look_up_address(&self, zone: &Zone, address: IpAddr, rtype: RecordType) -> Found {
        if let Some(names) = zone.reverse.get(&address) {
            let records = names.iter().map(|name| RData::PTR(PTR(name.clone())));
            let wanted = records.filter(|_| rtype == RecordType::PTR);
            return of_type(wanted.collect());
        }
        let has = |subnets: &[Prefix]| subnets.iter().any(|subnet| subnet.contains(address));
        if has(&zone.subnets) || has(&self.subnets) {
            return Found::NoName(Missing::Address);
        }
        zone.not_here()
    }

    /// The records of a network, by name.
    pub fn list(&self, domain: DomainId) -> Vec<Listed> {
        let zone = self.zones.get(&domain);
        let names = zone.into_iter().flat_map(|zone| &zone.names);
        let mut listed: Vec<Listed> = names
            .map(|(name, addresses)| Listed {
                name: name.clone(),
                addresses: addresses.clone(),
            })
            .collect();
        listed.sort();
        listed
    }
}

impl Zone {
    fn build(network: &NetworkNames) -> Self {
        let mut zone = Self {
            network: network.name.to_ascii_lowercase().into(),
            forward: network.forward.clone(),
            subnets: network.subnets.clone(),
            names: HashMap::default(),
            reverse: HashMap::default(),
            upstreams: HashMap::default(),
            links: HashMap::default(),
        };
        for endpoint in &network.endpoints {
            let full = |name: &str| format!("{name}.{}", zone.network);
            for name in &endpoint.names {
                let name = name.to_ascii_lowercase();
                for name in [full(&name), name] {
                    let known = zone.names.entry(name).or_default();
                    let news = endpoint.addresses.iter();
                    let news: Vec<_> = news.filter(|a| !known.contains(a)).copied().collect();
                    known.extend(news);
                }
            }
            let first = endpoint.names.first().map(|name| full(name));
            let first = first.and_then(|name| Name::from_ascii(format!("{name}.")).ok());
            for address in &endpoint.addresses {
                if let Some(first) = &first {
                    zone.reverse
                        .entry(*address)
                        .or_default()
                        .push(first.clone());
                }
                if !endpoint.upstreams.is_empty() {
                    let own = endpoint.upstreams.as_slice().into();
                    zone.upstreams.insert(*address, own);
                }
                if !endpoint.links.is_empty() {
                    let links = endpoint.links.iter();
                    let links = links.map(|(name, to)| (name.to_ascii_lowercase(), to.clone()));
                    zone.links.insert(*address, links.collect());
                }
            }
        }
        zone
    }

    fn not_here(&self) -> Found {
        match self.forward {
            Forward::To(_) => Found::Elsewhere,
            Forward::Nobody => Found::NoName(Missing::Internal),
        }
    }
}

fn of_type(records: Vec<RData>) -> Found {
    match records.is_empty() {
        true => Found::NoData,
        false => Found::Records(records),
    }
}

/// A name as zones have it: in lower case, without a dot at the end.
pub fn plain(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') && text.len() > 1 {
        text.pop();
    }
    text
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` is the reverse of.
fn reversed(name: &Name) -> Option<IpAddr> {
    let text = plain(name);
    if !text.ends_with(".in-addr.arpa") && !text.ends_with(".ip6.arpa") {
        return None;
    }
    let prefix = name.parse_arpa_name().ok()?;
    (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
}
