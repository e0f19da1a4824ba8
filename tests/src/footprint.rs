//! What the kernel has of a namespace: what a crash could leak or lose.

use std::net::IpAddr;

use control::link::inet::Route;
use dataplane_core::addr::Prefix;
use dataplane_port::guard;

use crate::lab::{Namespace, block_on};

/// Everything of a namespace that a crash could leak or lose.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// Name, queueing discipline and alias.
    pub links: Vec<(String, String, Option<String>)>,
    /// By link.
    pub addresses: Vec<(u32, Prefix)>,
    /// Of the main table.
    pub routes: Vec<Route>,
    /// Ports that the host does not choose for itself.
    pub reserved_ports: String,
    /// What keeps the host from answering, by link.
    pub guards: Vec<(String, Option<guard::Method>)>,
}

impl Footprint {
    /// The same without the kernel's numbers of links: alike for links that were made anew.
    ///
    /// # Panics
    /// When an address or a route is of a link that is not there.
    pub fn numberless(mut self, ns: &Namespace) -> Self {
        let mut known = block_on(ns.netlink().links()).expect("the kernel tells");
        known.sort_by(|one, two| one.name.cmp(&two.name));
        let number = |index: u32| {
            let rank = known.iter().position(|link| link.index == index);
            u32::try_from(rank.expect("its link is there")).expect("there are few")
        };
        for (link, _) in &mut self.addresses {
            *link = number(*link);
        }
        for route in &mut self.routes {
            route.link = number(route.link);
        }
        self.links.sort();
        self.guards.sort_by(|one, two| one.0.cmp(&two.0));
        self.addresses.sort_by_key(|address| format!("{address:?}"));
        self.routes.sort_by_key(|route| format!("{route:?}"));
        self
    }
}

/// Looks at everything of a namespace.
///
/// # Panics
/// When the kernel does not tell.
pub fn footprint(ns: &Namespace) -> Footprint {
    let netlink = ns.netlink();
    let links = block_on(netlink.links()).expect("the kernel tells");
    let guarded = |name: &String| {
        (
            name.clone(),
            ns.run(|| guard::find(name)).expect("the kernel tells"),
        )
    };
    let guards = links.iter().map(|link| guarded(&link.name)).collect();
    let links = links.into_iter();
    // The kernel gives links addresses of their own in its own time.
    let link_local = |prefix: &Prefix| match prefix.address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    };
    let addresses = block_on(netlink.addresses())
        .expect("the kernel tells")
        .into_iter();
    let addresses = addresses.map(|address| (address.link, address.prefix));
    let mut addresses: Vec<_> = addresses.filter(|(_, p)| !link_local(p)).collect();
    let mut routes = block_on(netlink.routes()).expect("the kernel tells");
    routes.retain(|route| !link_local(&route.prefix));
    addresses.sort_by_key(|address| format!("{address:?}"));
    routes.sort_by_key(|route| format!("{route:?}"));
    Footprint {
        links: links
            .map(|link| (link.name, link.qdisc, link.alias))
            .collect(),
        addresses,
        routes,
        reserved_ports: ns.sysctl("net/ipv4/ip_local_reserved_ports"),
        guards,
    }
}
