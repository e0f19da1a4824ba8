//! The names of endpoints: an immutable picture, as of one moment.
//!
//! An endpoint is known on its own network by its name, its aliases, and each of them followed by
//! the network's name. A network knows its own endpoints alone: what is only the name of an endpoint
//! of another network does not exist here, and nobody outside is asked for it. Names with dots may
//! be anybody's, so of those only the ones that end in a network's name count as the other's.
//!
//! A link is a name for one asker alone, who is known by the source of the question.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use dataplane_core::addr::{DomainId, Prefix};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, RecordType};
use rustc_hash::FxBuildHasher;

use super::index::{NameIndex, hash_of};

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
    /// Names that it alone knows others of its network by, each with the other's own name. Who is not
    /// there has no address, and nobody else is asked for the name.
    pub links: Vec<(String, String)>,
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
    pub endpoints: Vec<Arc<EndpointNames>>,
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
    /// By the network's name, in lower case.
    by_name: HashMap<Arc<str>, DomainId, FxBuildHasher>,
    /// The hashes of names without dots, with whose they are: of all networks, where there are several.
    /// Made at the first question that needs it, as the indices of zones.
    taken: OnceLock<Vec<(u64, DomainId)>>,
    /// Prefixes of all networks.
    subnets: Vec<Prefix>,
}

#[derive(Debug)]
struct Zone {
    /// In lower case.
    network: Arc<str>,
    forward: Forward,
    subnets: Vec<Prefix>,
    endpoints: Vec<Arc<EndpointNames>>,
    /// Made at the first question that needs it: many pictures come and go without one.
    names: OnceLock<NameIndex>,
    /// Sorted, each with the position of its endpoint. The same.
    addresses: OnceLock<Vec<(IpAddr, u32)>>,
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
    pub fn build(networks: Vec<NetworkNames>) -> Self {
        let mut zones = Self::default();
        for network in networks {
            zones.subnets.extend(&network.subnets);
            let domain = network.domain;
            let zone = Zone::build(network);
            zones.by_name.insert(Arc::clone(&zone.network), domain);
            zones.zones.insert(domain, zone);
        }
        zones
    }

    fn taken(&self) -> &[(u64, DomainId)] {
        self.taken.get_or_init(|| {
            let mut taken = Vec::new();
            // With one network alone there is nobody else.
            for (domain, zone) in self.zones.iter().filter(|_| self.zones.len() > 1) {
                let names = zone.endpoints.iter().flat_map(|endpoint| &endpoint.names);
                let short = names.filter(|name| !name.contains('.'));
                taken.extend(short.map(|name| (hash_of(name), *domain)));
            }
            taken.sort_unstable();
            taken
        })
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
        let asker = zone.at(source).next();
        match (&zone.forward, asker.map(|asker| asker.upstreams.as_slice())) {
            (Forward::Nobody, _) => Arc::default(),
            (Forward::To(servers), None | Some([])) => Arc::clone(servers),
            (Forward::To(_), Some(own)) => own.into(),
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
        if let Some(addresses) = zone.linked(source, &text).or_else(|| zone.named(&text)) {
            let records = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(v4) if rtype == RecordType::A => Some(RData::A(A(*v4))),
                IpAddr::V6(v6) if rtype == RecordType::AAAA => Some(RData::AAAA(AAAA(*v6))),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            });
            return of_type(records.collect());
        }
        if self.is_taken(&text) {
            return Found::NoName(Missing::OtherNetwork);
        }
        zone.not_here()
    }

    /// Whether a name, in lower case, is an endpoint's of some network.
    fn is_taken(&self, text: &str) -> bool {
        let has = |domain: &DomainId| {
            let zone = self.zones.get(domain);
            zone.is_some_and(|zone| zone.holders(text).next().is_some())
        };
        if text.contains('.') {
            let dots = text.match_indices('.');
            let mut networks = dots.filter_map(|(at, _)| self.by_name.get(&text[at + 1..]));
            return networks.any(has);
        }
        let hash = hash_of(text);
        let taken = self.taken();
        let start = taken.partition_point(|(taken, _)| *taken < hash);
        let mut same = taken[start..].iter().take_while(|(h, _)| *h == hash);
        same.any(|(_, domain)| has(domain))
    }

    fn look_up_address(&self, zone: &Zone, address: IpAddr, rtype: RecordType) -> Found {
        let mut there = zone.at(address).peekable();
        if there.peek().is_some() {
            let firsts = there.filter_map(|endpoint| endpoint.names.first());
            let full = firsts.map(|first| format!("{first}.{}.", zone.network));
            let names = full.filter_map(|full| Name::from_ascii(full).ok());
            let records = names.map(|name| RData::PTR(PTR(name)));
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
        let mut listed: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let Some(zone) = self.zones.get(&domain) else {
            return Vec::new();
        };
        for endpoint in &zone.endpoints {
            for name in &endpoint.names {
                let name = name.to_ascii_lowercase();
                for name in [format!("{name}.{}", zone.network), name] {
                    let known = listed.entry(name).or_default();
                    add_new(known, &endpoint.addresses);
                }
            }
        }
        let listed = listed.into_iter();
        listed
            .map(|(name, addresses)| Listed { name, addresses })
            .collect()
    }
}

impl Zone {
    fn build(network: NetworkNames) -> Self {
        Self {
            network: network.name.to_ascii_lowercase().into(),
            forward: network.forward,
            subnets: network.subnets,
            endpoints: network.endpoints,
            names: OnceLock::new(),
            addresses: OnceLock::new(),
        }
    }

    fn addresses(&self) -> &[(IpAddr, u32)] {
        self.addresses.get_or_init(|| {
            let mut addresses = Vec::with_capacity(self.endpoints.len());
            for (position, endpoint) in (0..).zip(&self.endpoints) {
                addresses.extend(endpoint.addresses.iter().map(|own| (*own, position)));
            }
            addresses.sort_unstable();
            addresses
        })
    }

    fn names(&self) -> &NameIndex {
        self.names.get_or_init(|| NameIndex::of(&self.endpoints))
    }

    /// The endpoints that have an address: one, or none.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = &EndpointNames> {
        let addresses = self.addresses();
        let start = addresses.partition_point(|(own, _)| *own < address);
        let here = addresses[start..].iter();
        let here = here.take_while(move |(own, _)| *own == address);
        here.filter_map(|(_, position)| Some(self.endpoints.get(*position as usize)?.as_ref()))
    }

    /// The positions of the endpoints that have a name, as it is or without the network's after it.
    fn holders(&self, text: &str) -> impl Iterator<Item = usize> {
        let stem = text.strip_suffix(&*self.network);
        let stem = stem.and_then(|stem| stem.strip_suffix('.'));
        let names = [Some(text), stem].into_iter().flatten();
        names.flat_map(|name| self.names().holders(&self.endpoints, hash_of(name), name))
    }

    /// The addresses of a name; `None` where nobody has it.
    fn named(&self, text: &str) -> Option<Vec<IpAddr>> {
        let mut holders: Vec<usize> = self.holders(text).collect();
        holders.sort_unstable();
        holders.first()?;
        let mut addresses = Vec::new();
        for endpoint in holders.iter().filter_map(|at| self.endpoints.get(*at)) {
            add_new(&mut addresses, &endpoint.addresses);
        }
        Some(addresses)
    }

    /// The addresses of a name that `source` alone knows somebody by; `None` where it knows nobody by it.
    fn linked(&self, source: IpAddr, text: &str) -> Option<Vec<IpAddr>> {
        let mut links = self.at(source).flat_map(|asker| &asker.links);
        let (_, target) = links.find(|(alias, _)| alias.eq_ignore_ascii_case(text))?;
        // It is an endpoint's own name, not one that several may share.
        let holders = self
            .names()
            .holders(&self.endpoints, hash_of(target), target);
        let mut endpoints = holders.filter_map(|at| self.endpoints.get(at));
        let linked = endpoints.find(|endpoint| endpoint.names.first() == Some(target));
        Some(linked.map_or_else(Vec::new, |linked| linked.addresses.clone()))
    }

    fn not_here(&self) -> Found {
        match self.forward {
            Forward::To(_) => Found::Elsewhere,
            Forward::Nobody => Found::NoName(Missing::Internal),
        }
    }
}

fn add_new(known: &mut Vec<IpAddr>, news: &[IpAddr]) {
    for address in news {
        if !known.contains(address) {
            known.push(*address);
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
