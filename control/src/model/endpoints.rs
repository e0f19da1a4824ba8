//! The endpoints of all networks, each shared, and how they are found.
//!
//! What the pictures have of an endpoint is made once and kept for as long as the endpoint is the
//! same one, of which its `Arc` is the proof: whoever changes a shared endpoint makes another one.
//! What an attachment asks of the others is found by an index. So it costs what is new, not what all
//! the others are.

use std::borrow::Borrow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Bound, Index, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::topology::PORTS_MAX;
use rangemap::RangeInclusiveSet;

use super::{Endpoint, Name};

/// Endpoints by switch port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Each at its port's index, without empty places at the end: each picture looks at all of them.
    by_port: Vec<Option<Arc<Endpoint>>>,
    count: usize,
    by_name: Found<Name>,
    by_path: Found<OsString>,
    by_inode: Found<u64>,
    addresses: BTreeSet<(DomainId, IpAddr, PortId)>,
    /// The same as runs without a gap, by network: the first free address is behind one, however
    /// many are taken.
    runs: HashMap<DomainId, RangeInclusiveSet<u128>>,
    /// Those with one MAC for everybody behind them.
    mac_nats: BTreeSet<PortId>,
    /// Those whose sandbox was found by a process.
    by_process: BTreeSet<PortId>,
}

/// Whether a path leads by a process. As bytes: component by component takes ten times as long.
fn is_by_process(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(b"/proc/")
}

/// An address as a number; an IPv4 address as IPv6 has it (RFC 4291 section 2.5.5.2).
const fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address that a number of a family stands for.
const fn address(number: u128, v4: bool) -> IpAddr {
    match v4 {
        true => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        false => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// The endpoints that have something, by port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found<K: Eq + Hash>(HashMap<K, BTreeSet<PortId>>);

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl<K: Eq + Hash> Default for Found<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Found<K> {
    fn add(&mut self, key: K, port: PortId) {
        self.0.entry(key).or_default().insert(port);
    }

    fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, port: PortId)
    where
        K: Borrow<Q>,
    {
        if let Some(ports) = self.0.get_mut(key) {
            ports.remove(&port);
            if ports.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&BTreeSet<PortId>>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }
}

impl Endpoints {
    /// The endpoint of that port.
    pub fn get(&self, port: &PortId) -> Option<&Endpoint> {
        self.by_port.get(port.index())?.as_deref()
    }

    /// Changes the endpoint of that port, but for the port; `None` when there is none.
    pub fn change<T>(
        &mut self,
        port: PortId,
        change: impl FnOnce(&mut Endpoint) -> T,
    ) -> Option<T> {
        let mut endpoint = self.remove(&port)?;
        let changed = change(Arc::make_mut(&mut endpoint));
        self.put(endpoint);
        Some(changed)
    }

    /// Whether that port is an endpoint's.
    pub fn contains_key(&self, port: &PortId) -> bool {
        self.get(port).is_some()
    }

    /// Puts one in, in place of the one that has its port.
    pub fn insert(&mut self, endpoint: Endpoint) {
        self.remove(&endpoint.port);
        self.put(Arc::new(endpoint));
    }

    fn put(&mut self, endpoint: Arc<Endpoint>) {
        let port = endpoint.port;
        self.by_name.add(endpoint.name.clone(), port);
        self.by_path
            .add(endpoint.sandbox.path.clone().into_os_string(), port);
        self.by_inode.add(endpoint.sandbox.inode, port);
        let domain = endpoint.domain;
        for address in &endpoint.addresses {
            self.addresses.insert((domain, *address, port));
            let runs = self.runs.entry(domain).or_default();
            runs.insert(number(*address)..=number(*address));
        }
        if endpoint.settings.mac_nat.is_some() {
            self.mac_nats.insert(port);
        }
        if is_by_process(&endpoint.sandbox.path) {
            self.by_process.insert(port);
        }
        let index = port.index();
        self.by_port
            .resize_with(self.by_port.len().max(index + 1), || None);
        self.by_port[index] = Some(endpoint);
        self.count += 1;
    }

    /// Takes the one of that port out.
    pub fn remove(&mut self, port: &PortId) -> Option<Arc<Endpoint>> {
        let endpoint = self.by_port.get_mut(port.index())?.take()?;
        self.count -= 1;
        let last = self.by_port.iter().rposition(Option::is_some);
        self.by_port.truncate(last.map_or(0, |last| last + 1));
        self.by_name.remove(&endpoint.name, *port);
        self.by_path
            .remove(endpoint.sandbox.path.as_os_str(), *port);
        self.by_inode.remove(&endpoint.sandbox.inode, *port);
        for address in &endpoint.addresses {
            self.addresses.remove(&(endpoint.domain, *address, *port));
            self.end_run(endpoint.domain, *address);
        }
        self.mac_nats.remove(port);
        self.by_process.remove(port);
        Some(endpoint)
    }

    fn at<'e>(
        &'e self,
        ports: Option<&'e BTreeSet<PortId>>,
    ) -> impl Iterator<Item = &'e Endpoint> + use<'e> {
        let ports = ports.into_iter().flatten();
        ports.filter_map(|port| self.get(port))
    }

    /// The endpoint of that name.
    pub fn named(&self, name: &str) -> Option<&Endpoint> {
        self.at(self.by_name.get(name)).next()
    }

    /// Those whose sandbox is at a path, by port. Paths are compared as bytes.
    pub fn at_path<'e>(&'e self, path: &OsStr) -> impl Iterator<Item = &'e Endpoint> + use<'e> {
        self.at(self.by_path.get(path))
    }

    /// Those of a sandbox, by port.
    pub fn in_sandbox(&self, inode: u64) -> impl Iterator<Item = &Endpoint> {
        self.at(self.by_inode.get(&inode))
    }

    /// Takes an address out of its network's runs when no other endpoint has it.
    fn end_run(&mut self, domain: DomainId, address: IpAddr) {
        let all = (domain, address, PortId(0))..=(domain, address, PortId(u16::MAX));
        let Entry::Occupied(mut runs) = self.runs.entry(domain) else {
            return;
        };
        if self.addresses.range(all).next().is_none() {
            runs.get_mut().remove(number(address)..=number(address));
            if runs.get().is_empty() {
                runs.remove();
            }
        }
    }

    /// The lowest address of a range of one family that no endpoint of a network has, and that suits.
    pub fn free_address(
        &self,
        domain: DomainId,
        range: RangeInclusive<IpAddr>,
        mut suits: impl FnMut(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let v4 = range.start().is_ipv4();
        let range = number(*range.start())..=number(*range.end());
        if range.is_empty() {
            return None;
        }
        let mut first_of = |free: RangeInclusive<u128>| {
            free.map(|number| address(number, v4))
                .find(|found| suits(*found))
        };
        match self.runs.get(&domain) {
            Some(runs) => runs.gaps(&range).find_map(first_of),
            None => first_of(range),
        }
    }

    /// Those with one MAC for everybody behind them, by port.
    pub fn with_mac_nat(&self) -> impl Iterator<Item = &Endpoint> {
        self.at(Some(&self.mac_nats))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their ports, ascending.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.values().map(|endpoint| endpoint.port)
    }

    /// The lowest port from `first` on that no endpoint has.
    pub fn free_port(
        &self,
        first: PortId,
        mut taken: impl FnMut(PortId) -> bool,
    ) -> Option<PortId> {
        let is_free = |port: &PortId| !self.contains_key(port) && !taken(*port);
        (first.0..PORTS_MAX as u16).map(PortId).find(is_free)
    }

    /// All of them, by port.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Endpoint> + Clone {
        self.shared().map(Arc::as_ref)
    }

    /// All of them, by port, as they are shared.
    pub fn shared(&self) -> impl DoubleEndedIterator<Item = &Arc<Endpoint>> + Clone {
        self.by_port.iter().flatten()
    }

    /// What is at each port's index, up to the last endpoint's.
    pub fn places(&self) -> &[Option<Arc<Endpoint>>] {
        &self.by_port
    }

    /// Those whose sandbox a process leads to: the ones after a port, then the ones up to it.
    pub fn by_process_after(&self, port: PortId) -> impl Iterator<Item = &Arc<Endpoint>> {
        let after = self
            .by_process
            .range((Bound::Excluded(port), Bound::Unbounded));
        let all = after.chain(self.by_process.range(..=port));
        all.filter_map(|port| self.by_port.get(port.index())?.as_ref())
    }
}

impl Index<&PortId> for Endpoints {
    type Output = Endpoint;

    fn index(&self, port: &PortId) -> &Endpoint {
        let endpoint = self.get(port);
        endpoint.expect("the port is an endpoint's")
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut all = Self::default();
        for endpoint in endpoints {
            all.insert(endpoint);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_changes_a_shared_endpoint_makes_another_one() {
        let mut endpoints = crate::store::tests::example().endpoints;
        let port = endpoints.ports().next().unwrap();
        let shared =
            |endpoints: &Endpoints| -> Vec<Arc<Endpoint>> { endpoints.shared().cloned().collect() };
        let before = shared(&endpoints);
        endpoints.change(port, |e| e.gw_priority += 1).unwrap();
        for (before, after) in before.iter().zip(&shared(&endpoints)) {
            let same = before.port != port;
            assert_eq!(Arc::ptr_eq(before, after), same, "{}", before.name);
            assert_eq!(before == after, same, "{}", before.name);
        }
    }

    proptest::proptest! {
        /// Several may have the same address: it is free when the last of them is gone.
        #[test]
        fn the_lowest_free_address_is_what_a_walk_would_find(
            steps in proptest::collection::vec((33_u16..43, 0..12_u8, 0..2_u16), 1..40),
            range in (0..12_u8, 0..12_u8),
            odd in proptest::bool::ANY,
        ) {
            let one = crate::store::tests::example().endpoints.values().next().unwrap().clone();
            let at = |last: u8| IpAddr::from([10, 1, 0, last]);
            let mut endpoints = Endpoints::default();
            for (port, last, domain) in steps {
                let port = PortId(port);
                if endpoints.remove(&port).is_none() {
                    let (addresses, domain) = (vec![at(last)], DomainId(domain));
                    endpoints.insert(Endpoint { port, addresses, domain, ..one.clone() });
                }
                let suits = |address: IpAddr| {
                    let IpAddr::V4(address) = address else { return false };
                    !odd || address.octets()[3] % 2 == 1
                };
                let is_taken = |address: &IpAddr| {
                    let has = |e: &Endpoint| e.domain.0 == 1 && e.addresses.contains(address);
                    endpoints.values().any(has)
                };
                let mut walk = (range.0..=range.1).map(at);
                let wanted = walk.find(|address| suits(*address) && !is_taken(address));
                let found = endpoints.free_address(DomainId(1), at(range.0)..=at(range.1), suits);
                proptest::prop_assert_eq!(found, wanted);
            }
            for port in endpoints.ports().collect::<Vec<_>>() {
                endpoints.remove(&port);
            }
            proptest::prop_assert_eq!(endpoints, Endpoints::default());
        }
    }

    #[test]
    fn places_are_taken_given_back_and_gone_round() {
        let example = crate::store::tests::example().endpoints;
        let one = example.values().next().unwrap();
        let at = |port: u16| Endpoint {
            port: PortId(port),
            ..one.clone()
        };
        let mut endpoints: Endpoints = [40, 33, 35].map(at).into_iter().collect();
        let ports = |endpoints: &Endpoints| endpoints.ports().map(|p| p.0).collect::<Vec<_>>();
        assert_eq!((ports(&endpoints), endpoints.len()), (vec![33, 35, 40], 3));
        let before = endpoints.clone();
        let free = |first, taken: &[u16]| {
            let free = before.free_port(PortId(first), |port| taken.contains(&port.0));
            free.map(|port| port.0)
        };
        assert_eq!(free(32, &[]), Some(32));
        assert_eq!(free(33, &[34]), Some(36));
        assert_eq!(free(40, &[]), Some(41));
        assert_eq!(free(PORTS_MAX as u16 - 1, &[]), Some(PORTS_MAX as u16 - 1));
        assert_eq!(free(PORTS_MAX as u16, &[]), None);
        // As if it had never been there, wherever it was.
        for port in [32, 34, 41, 77] {
            endpoints.insert(at(port));
            assert_ne!(endpoints, before);
            assert!(endpoints.remove(&PortId(port)).is_some());
            assert_eq!((&endpoints, endpoints.len()), (&before, 3));
        }
        assert!(endpoints.remove(&PortId(34)).is_none());
        assert!(endpoints.remove(&PortId(9_000)).is_none());
        endpoints.insert(at(35));
        assert_eq!(endpoints, before, "in place of the one that has its port");
        for port in [40, 33, 35] {
            endpoints.remove(&PortId(port));
        }
        assert!(endpoints.is_empty());
        assert_eq!(endpoints, Endpoints::default());
    }

    #[test]
    fn what_is_found_is_what_there_is() {
        let mut endpoints = crate::store::tests::example().endpoints;
        let port = endpoints.ports().next().unwrap();
        let before = endpoints[&port].clone();
        let found = |endpoints: &Endpoints, e: &Endpoint| {
            let path = e.sandbox.path.as_os_str();
            let is_it = |found: &Endpoint| found.port == e.port;
            let addresses = e.addresses.iter();
            let addresses = addresses.map(|own| {
                endpoints
                    .free_address(e.domain, *own..=*own, |_| true)
                    .is_none()
            });
            let found = [
                endpoints.named(e.name.as_str()).is_some_and(is_it),
                endpoints.at_path(path).any(is_it),
                endpoints.in_sandbox(e.sandbox.inode).any(is_it),
            ];
            found.into_iter().chain(addresses).collect::<Vec<_>>()
        };
        assert_eq!(found(&endpoints, &before)[..3], [true; 3]);
        let with_mac_nat =
            |endpoints: &Endpoints| endpoints.with_mac_nat().any(|found| found.port == port);
        let changed = endpoints.change(port, |endpoint| {
            endpoint.name = "another".parse().unwrap();
            endpoint.sandbox.path = "/run/netns/another".into();
            endpoint.sandbox.inode -= 1_000;
            endpoint.addresses = vec!["203.0.113.9".parse().unwrap()];
            endpoint.settings.mac_nat = Some(endpoint.mac);
        });
        assert_eq!(changed, Some(()));
        let after = endpoints[&port].clone();
        assert_eq!(found(&endpoints, &after), [true; 4]);
        assert!(with_mac_nat(&endpoints));
        assert!(found(&endpoints, &before).iter().all(|found| !found));
        endpoints.insert(before.clone());
        assert!(found(&endpoints, &after).iter().all(|found| !found));
        assert_eq!(with_mac_nat(&endpoints), before.settings.mac_nat.is_some());
        endpoints.remove(&port);
        assert!(!with_mac_nat(&endpoints));
        assert!(found(&endpoints, &before).iter().all(|found| !found));
        assert_eq!(endpoints.change(port, |_| ()), None);
    }

    #[test]
    fn those_that_a_process_leads_to_are_gone_round() {
        let example = crate::store::tests::example().endpoints;
        let one = example.values().next().unwrap();
        let at = |port: u16| {
            let mut endpoint = one.clone();
            endpoint.port = PortId(port);
            endpoint.sandbox.path = match port % 2 {
                1 => format!("/proc/{port}/ns/net").into(),
                _ => format!("/run/netns/{port}").into(),
            };
            endpoint
        };
        let mut endpoints: Endpoints = [40, 33, 35, 41, 36].map(at).into_iter().collect();
        let after = |endpoints: &Endpoints, port| {
            let after = endpoints.by_process_after(PortId(port));
            after.map(|endpoint| endpoint.port.0).collect::<Vec<_>>()
        };
        assert_eq!(after(&endpoints, 0), [33, 35, 41]);
        assert_eq!(after(&endpoints, 33), [35, 41, 33]);
        assert_eq!(after(&endpoints, 36), [41, 33, 35]);
        assert_eq!(after(&endpoints, 41), [33, 35, 41]);
        assert_eq!(after(&endpoints, 9_000), [33, 35, 41]);
        endpoints.change(PortId(35), |e| e.sandbox.path = "/run/netns/kept".into());
        endpoints.change(PortId(36), |e| e.sandbox.path = "/proc/36/ns/net".into());
        endpoints.remove(&PortId(33));
        assert_eq!(after(&endpoints, 0), [36, 41]);
    }
}
