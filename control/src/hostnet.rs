//! The host as observed: its links, addresses, routes and neighbours.
//!
//! Read as a whole by rtnetlink whenever [`crate::link::watch`] says that something has changed,
//! never patched from notifications, so it cannot drift.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane_port::Framing;
use ipnet::IpNet;

use crate::ipam::HostRoute;
use crate::link::inet::{Address, Neighbour, Route};
use crate::link::{Error, Link, Netlink};

/// What the host's network namespace holds.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// Every link.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<Address>,
    /// Every unicast route of the main table.
    pub routes: Vec<Route>,
    /// Every neighbour.
    pub neighbours: Vec<Neighbour>,
}

impl HostState {
    /// Reads everything.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
            neighbours: netlink.neighbours().await?,
        })
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link of that index.
    pub fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface of the default route; IPv4's before IPv6's, the lowest metric's among those.
    pub fn default_interface(&self) -> Option<&Link> {
        self.routes
            .iter()
            .filter(|route| route.prefix.len == 0)
            .filter_map(|route| Some((route, self.link_by_index(route.link)?)))
            // The host's port on a NIC's network leads outside, but by the switch.
            .filter(|(_, link)| !link.is_ours())
            // A tunnel needs no router: whoever is at its other end is one.
            .filter(|(route, link)| route.gateway.is_some() || link.framing() == Some(Framing::Ip))
            .min_by_key(|(route, _)| (route.prefix.address.is_ipv6(), route.metric))
            .map(|(_, link)| link)
    }

    /// The addresses of a link that others can send to.
    pub fn addresses_of(&self, link: u32) -> impl Iterator<Item = IpAddr> {
        self.addresses
            .iter()
            .filter(move |address| address.link == link && !address.tentative)
            .map(|address| address.prefix.address)
            .filter(|address| !is_link_scoped(*address))
    }

    /// Every address of the host that reaches beyond its link, those of `except` left out.
    pub fn local_addresses(&self, except: Option<u32>) -> BTreeSet<IpAddr> {
        self.links
            .iter()
            .filter(|link| Some(link.index) != except)
            .flat_map(|link| self.addresses_of(link.index))
            .collect()
    }

    /// The routes that a network must not overlap, those by `except` left out.
    pub fn foreign_routes(&self, except: Option<u32>) -> Vec<HostRoute> {
        let names: HashMap<u32, &str> = self
            .links
            .iter()
            .map(|link| (link.index, link.name.as_str()))
            .collect();
        self.routes
            .iter()
            .filter(|route| Some(route.link) != except && !is_link_scoped(route.prefix.address))
            .filter_map(|route| {
                let prefix = IpNet::new(route.prefix.address, route.prefix.len).ok()?;
                let interface = names
                    .get(&route.link)
                    .map_or_else(|| format!("link {}", route.link), |name| (*name).to_owned());
                Some(HostRoute { prefix, interface })
            })
            .collect()
    }

    /// The routers that routes by `link` name: the next hops to keep resolved.
    pub fn next_hops(&self, link: u32) -> BTreeSet<IpAddr> {
        self.routes
            .iter()
            .filter(|route| route.link == link)
            .filter_map(|route| route.gateway)
            .collect()
    }
}

/// Addresses that mean something on one link only, or on this machine only.
fn is_link_scoped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::link::LinkStats;
    use dataplane_core::addr::{MacAddr, Prefix};

    pub fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    pub fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: "veth".to_owned(),
            layer: 1,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: 1_500,
            up: true,
            carrier: true,
            loopback: false,
            controller: None,
            parent: None,
            alias: None,
            qdisc: "noqueue".to_owned(),
            tx_queue_frames: 1_000,
            stats: LinkStats::default(),
        }
    }

    pub fn route(prefix: &str, len: u8, link: u32, gateway: Option<&str>, metric: u32) -> Route {
        Route {
            prefix: Prefix::new(ip(prefix), len),
            link,
            gateway: gateway.map(ip),
            source: None,
            metric,
            ours: false,
        }
    }

    pub fn address(link: u32, text: &str, len: u8) -> Address {
        Address {
            link,
            prefix: Prefix::new(ip(text), len),
            tentative: false,
        }
    }

    #[test]
    fn the_default_interface_is_the_lowest_metric_of_ipv4_first() {
        let host = HostState {
            links: vec![link(1, "a"), link(2, "b"), link(3, "c")],
            routes: vec![
                route("::", 0, 1, Some("fe80::1"), 1),
                route("0.0.0.0", 0, 2, Some("10.0.0.1"), 200),
                route("0.0.0.0", 0, 3, Some("10.1.0.1"), 100),
                route("10.0.0.0", 8, 1, None, 0),
            ],
            ..HostState::default()
        };
        assert_eq!(host.default_interface().unwrap().name, "c");
        assert_eq!(host.next_hops(2), [ip("10.0.0.1")].into());
        assert!(HostState::default().default_interface().is_none());

        // A route without a router is one by a tunnel, and none by a network card.
        let mut host = HostState {
            links: vec![link(1, "eth0"), link(2, "tun0")],
            routes: vec![
                route("0.0.0.0", 0, 1, None, 0),
                route("0.0.0.0", 0, 2, None, 9),
            ],
            ..HostState::default()
        };
        assert!(host.default_interface().is_none());
        host.links[1].layer = 0xfffe;
        assert_eq!(host.default_interface().unwrap().name, "tun0");
    }

    #[test]
    fn local_addresses_leave_out_loopback_link_local_and_our_own_link() {
        let mut tentative = address(1, "fd00::9", 64);
        tentative.tentative = true;
        let host = HostState {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "causeway0")],
            addresses: vec![
                address(1, "127.0.0.1", 8),
                address(1, "203.0.113.1", 32),
                address(2, "fe80::1", 64),
                address(2, "10.0.0.2", 24),
                address(3, "10.88.0.1", 32),
                tentative,
            ],
            ..HostState::default()
        };
        let expected = [ip("10.0.0.2"), ip("203.0.113.1")].into();
        assert_eq!(host.local_addresses(Some(3)), expected);
    }
}
