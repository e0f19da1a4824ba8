//! Address management: which subnet a network gets, and which address an endpoint.
//!
//! Pure: what is taken comes in, the choice goes out. The lowest free one is taken, so that the
//! same commands on a fresh host give the same addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::AddressPool;
use crate::model::{Claimant, DesiredState, Endpoint, Holder, Network, Subnet};

/// Addresses looked at before a pool counts as exhausted. A /16 is searched whole; in larger
/// pools the first 65,536 are more than one host can have endpoints for.
const ADDRESSES_SEARCHED_MAX: u32 = 65_536;
/// Longest IPv4 prefix that leaves room for a gateway and one endpoint.
const V4_PREFIX_LEN_MAX: u8 = 30;
/// Longest IPv6 prefix that leaves room for a gateway and one endpoint.
const V6_PREFIX_LEN_MAX: u8 = 126;
/// Subnets handed out when the user names none: as Docker's defaults, a /16 each, but counted
/// from the top, so that Docker on the same host finds its own free for longest.
const V4_DEFAULT_POOL: [(u8, u8); 2] = [(172, 31), (172, 16)];

/// Why no subnet or address can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Host bits are set.
    #[error("'{given}' has host bits set; write {network}")]
    HostBits {
        /// As given.
        given: IpNet,
        /// Without the host bits.
        network: IpNet,
    },
    /// No room for a gateway and an endpoint.
    #[error("subnet {0} is too small: it must hold a gateway and at least one endpoint")]
    TooSmall(IpNet),
    /// Not for endpoints.
    #[error("subnet {0} is not unicast; choose a private one, such as 10.88.0.0/24")]
    NotUnicast(IpNet),
    /// Another network has it, and both are where there can be only one.
    #[error(
        "subnet {subnet} overlaps {other} of network '{network}', and the host has addresses in both; \
         choose another subnet, or --no-host-link to keep the host out of the network"
    )]
    OverlapsNetwork {
        /// The one asked for.
        subnet: IpNet,
        /// The one that is there.
        other: IpNet,
        /// Whose it is.
        network: String,
    },
    /// The host routes it elsewhere.
    #[error(
        "subnet {subnet} overlaps the host's route to {route} by '{interface}'; choose another \
         subnet, or --no-host-link to keep the host out of the network"
    )]
    OverlapsRoute {
        /// The one asked for.
        subnet: IpNet,
        /// The host's route.
        route: IpNet,
        /// Its interface.
        interface: String,
    },
    /// All default subnets are in use.
    #[error("no default subnet is free; choose one with --subnet")]
    NoSubnet,
    /// Outside the subnet.
    #[error("{what} {address} is not inside subnet {subnet}")]
    Outside {
        /// Which address.
        what: &'static str,
        /// Its value.
        address: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// Network or broadcast address.
    #[error("{what} {address} is the network or broadcast address of {subnet}; choose another")]
    Reserved {
        /// Which address.
        what: &'static str,
        /// Its value.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// In use.
    #[error("address {address} is taken by {owner}; choose another or leave --ip out")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// The network has no such subnet.
    #[error("address {address} is in no subnet of network '{network}'")]
    NoSuchSubnet {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
    },
    /// All in use.
    #[error("network '{network}' has no free address left in {pool}")]
    Exhausted {
        /// The network.
        network: String,
        /// Where addresses come from.
        pool: IpNet,
    },
}

/// A route of the host that a network must not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Its destinations.
    pub prefix: IpNet,
    /// The interface it leaves by.
    pub interface: String,
}

/// Prefixes of 2000::/3, the global unicast addresses, that nobody can route on the Internet (RFC
/// 6890 with the registries that it makes; RFC 9637): protocol assignments with Teredo,
/// benchmarking and ORCHID, documentation, 6to4.
const V6_NOT_ROUTED: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
/// The global unicast addresses that are given out (RFC 4291 section 2.5.4).
const V6_GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Whether the Internet can have a route to an IPv6 subnet.
pub fn is_global_v6(subnet: IpNet) -> bool {
    let IpNet::V6(subnet) = subnet else {
        return false;
    };
    let within = |(address, len): (Ipv6Addr, u8)| {
        Ipv6Net::new(address, len).is_ok_and(|net| net.contains(&subnet))
    };
    within(V6_GLOBAL) && !V6_NOT_ROUTED.into_iter().any(within)
}

/// Checks a subnet that the user chose, and completes what was left open.
///
/// # Errors
/// Says which part is wrong and what would be right.
pub fn subnet(
    prefix: IpNet,
    gateway: Option<IpAddr>,
    pool: Option<IpNet>,
) -> Result<Subnet, Error> {
    if prefix.trunc() != prefix {
        let network = prefix.trunc();
        let given = prefix;
        return Err(Error::HostBits { given, network });
    }
    let small = match prefix {
        IpNet::V4(net) => net.prefix_len() > V4_PREFIX_LEN_MAX,
        IpNet::V6(net) => net.prefix_len() > V6_PREFIX_LEN_MAX,
    };
    if small {
        return Err(Error::TooSmall(prefix));
    }
    if !is_unicast(prefix) {
        return Err(Error::NotUnicast(prefix));
    }
    let pool = pool.map_or(prefix, |pool| pool.trunc());
    if !prefix.contains(&pool) {
        let (what, address) = ("the range", pool.to_string());
        let subnet = prefix;
        return Err(Error::Outside {
            what,
            address,
            subnet,
        });
    }
    let gateway = match gateway {
        Some(gateway) => {
            check_inside("the gateway", gateway, prefix)?;
            gateway
        }
        None => *searched(prefix).start(),
    };
    Ok(Subnet {
        prefix,
        gateway,
        pool,
    })
}

/// The lowest subnet of the first pool that has one which nothing overlaps; without pools, of the
/// usual private addresses.
///
/// # Errors
/// [`Error::NoSubnet`].
pub fn default_subnet(
    pools: &[AddressPool],
    desired: &DesiredState,
    routes: &[HostRoute],
) -> Result<Subnet, Error> {
    let networks = || desired.networks.values();
    let free = |net: &IpNet| check_overlap(*net, networks(), routes).is_ok();
    let found = match pools {
        [] => usual_subnets().find(free),
        pools => pools.iter().flat_map(|pool| pool.subnets()).find(free),
    };
    found
        .ok_or(Error::NoSubnet)
        .and_then(|net| subnet(net, None, None))
}

fn usual_subnets() -> impl Iterator<Item = IpNet> {
    let [(first, high), (_, low)] = V4_DEFAULT_POOL;
    let large = (low..=high)
        .rev()
        .map(move |second| (Ipv4Addr::new(first, second, 0, 0), 16));
    let small = (0..=255).map(|third| (Ipv4Addr::new(192, 168, third, 0), 24));
    large
        .chain(small)
        .filter_map(|(address, len)| Ipv4Net::new(address, len).ok())
        .map(IpNet::V4)
}

/// Whether a network that the host has addresses in may have `subnet`. Networks keep each other's
/// addresses apart; the host has one table of routes.
///
/// # Errors
/// [`Error::OverlapsNetwork`], [`Error::OverlapsRoute`].
pub fn check_host_link(
    subnet: IpNet,
    desired: &DesiredState,
    routes: &[HostRoute],
) -> Result<(), Error> {
    let linked = desired.networks.values();
    let linked = linked.filter(|network| network.host_link);
    check_overlap(subnet, linked, routes)
}

/// Whether `subnet` is nobody's.
fn check_overlap<'n>(
    subnet: IpNet,
    mut networks: impl Iterator<Item = &'n Network>,
    routes: &[HostRoute],
) -> Result<(), Error> {
    for network in networks.by_ref() {
        if let Some(other) = network.subnets.iter().find(|o| overlap(o.prefix, subnet)) {
            let (other, network) = (other.prefix, network.name.to_string());
            return Err(Error::OverlapsNetwork {
                subnet,
                other,
                network,
            });
        }
    }
    // A default route overlaps everything and harms nothing: ours is the longer prefix.
    let clash = |route: &&HostRoute| route.prefix.prefix_len() > 0 && overlap(route.prefix, subnet);
    if let Some(route) = routes.iter().find(clash) {
        let interface = route.interface.clone();
        let route = route.prefix;
        return Err(Error::OverlapsRoute {
            subnet,
            route,
            interface,
        });
    }
    Ok(())
}

/// Checks an address that the user chose for an endpoint.
///
/// # Errors
/// Says what is wrong with it, and who has it when it is taken.
pub fn check_address(
    network: &Network,
    desired: &DesiredState,
    address: IpAddr,
    claimant: Claimant<'_>,
) -> Result<(), Error> {
    check_free(network, desired, address)?;
    match desired.reservations.get(&(network.domain, address)) {
        Some(holder) if !holder.is(claimant) => Err(Error::Taken {
            address,
            owner: format!("a reservation for {holder}"),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Checks an address that is to be kept for somebody, who may have it already.
///
/// # Errors
/// As [`check_address`].
pub fn check_reservation(
    network: &Network,
    desired: &DesiredState,
    address: IpAddr,
    holder: &Holder,
) -> Result<(), Error> {
    if let Some(other) = desired.reservations.get(&(network.domain, address)) {
        let owner = format!("a reservation for {other}");
        return Err(Error::Taken { address, owner });
    }
    let mut endpoints = desired.endpoints_of(network.domain);
    let is_holder = |endpoint: &&Endpoint| {
        let (name, mac) = (&endpoint.name, Some(endpoint.mac));
        endpoint.addresses.contains(&address) && holder.is(Claimant { name, mac })
    };
    match endpoints.find(is_holder) {
        Some(_) => Ok(()),
        None => check_free(network, desired, address),
    }
}

fn check_free(network: &Network, desired: &DesiredState, address: IpAddr) -> Result<(), Error> {
    let subnet = network
        .subnet_of(address)
        .ok_or_else(|| Error::NoSuchSubnet {
            address,
            network: network.name.to_string(),
        })?;
    check_inside("address", address, subnet.prefix)?;
    if address == subnet.gateway {
        let owner = "the gateway".to_owned();
        return Err(Error::Taken { address, owner });
    }
    let holder = desired
        .endpoints_of(network.domain)
        .find(|endpoint| endpoint.addresses.contains(&address));
    match holder {
        Some(endpoint) => Err(Error::Taken {
            address,
            owner: format!("endpoint '{}'", endpoint.name),
        }),
        None => Ok(()),
    }
}

/// The lowest address of a subnet that is kept for somebody and free.
pub fn reserved_address(
    network: &Network,
    subnet: &Subnet,
    desired: &DesiredState,
    claimant: Claimant<'_>,
) -> Option<IpAddr> {
    let kept = desired.reservations.iter();
    kept.filter(|((domain, _), holder)| *domain == network.domain && holder.is(claimant))
        .map(|((_, address), _)| *address)
        .filter(|address| subnet.prefix.contains(address))
        .find(|address| check_free(network, desired, *address).is_ok())
}

/// The lowest free address of a subnet that is kept for nobody.
///
/// # Errors
/// [`Error::Exhausted`].
pub fn free_address(
    network: &Network,
    subnet: &Subnet,
    desired: &DesiredState,
) -> Result<IpAddr, Error> {
    let domain = network.domain;
    let is_kept = |address| desired.reservations.contains_key(&(domain, address));
    let free = desired
        .endpoints
        .free_address(domain, searched(subnet.pool), |address| {
            !is_edge(address, subnet.prefix) && address != subnet.gateway && !is_kept(address)
        });
    free.ok_or_else(|| Error::Exhausted {
        network: network.name.to_string(),
        pool: subnet.pool,
    })
}

/// Whether two prefixes share an address.
pub fn overlap(one: IpNet, two: IpNet) -> bool {
    one.contains(&two) || two.contains(&one)
}

fn check_inside(what: &'static str, address: IpAddr, subnet: IpNet) -> Result<(), Error> {
    if !subnet.contains(&address) {
        let address = address.to_string();
        return Err(Error::Outside {
            what,
            address,
            subnet,
        });
    }
    if is_edge(address, subnet) {
        return Err(Error::Reserved {
            what,
            address,
            subnet,
        });
    }
    Ok(())
}

/// The network address, and for IPv4 the broadcast address. IPv6's first address is the
/// subnet-router anycast address (RFC 4291 section 2.6.1).
fn is_edge(address: IpAddr, subnet: IpNet) -> bool {
    address == subnet.network() || (address.is_ipv4() && address == subnet.broadcast())
}

fn is_unicast(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => {
            let first = net.network();
            !(first.is_multicast()
                || first.is_loopback()
                || first.is_unspecified()
                || first.octets()[0] >= 240)
        }
        IpNet::V6(net) => {
            let first = net.network();
            !(first.is_multicast()
                || first.is_loopback()
                || first.is_unspecified()
                || first.is_unicast_link_local())
        }
    }
}

/// The addresses of a pool without its edges, no more than are looked at.
fn searched(pool: IpNet) -> RangeInclusive<IpAddr> {
    let more = ADDRESSES_SEARCHED_MAX - 1;
    match pool {
        IpNet::V4(net) => {
            let (network, broadcast) = (net.network().to_bits(), net.broadcast().to_bits());
            let (first, last) = match net.prefix_len() {
                // Both edges are hosts (RFC 3021).
                31.. => (network, broadcast),
                _ => (network + 1, broadcast - 1),
            };
            let last = last.min(first.saturating_add(more));
            let at = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
            at(first)..=at(last)
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let first = first.saturating_add(1);
            let last = last.min(first.saturating_add(more.into()));
            let at = |bits| IpAddr::V6(Ipv6Addr::from_bits(bits));
            at(first)..=at(last)
        }
    }
}

#[cfg(test)]
mod tests;
