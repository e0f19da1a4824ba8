//! What IP puts on links: addresses, routes and neighbours.

use std::net::{IpAddr, Ipv6Addr};

use dataplane_core::addr::{MacAddr, Prefix};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Netlink};

/// The routing protocol number that our routes carry, so that they are recognised: one that
/// neither the kernel nor a daemon of `/etc/iproute2/rt_protos` uses.
pub const ROUTE_PROTOCOL: u8 = 171;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address, with the length of the prefix that is on the link.
    pub prefix: Prefix,
    /// IPv6: duplicate detection has not ended, so the address cannot be used yet.
    pub tentative: bool,
}

/// Whether IPv6 duplicate address detection runs for a new address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// The kernel probes first; the address is unusable for about a second.
    On,
    /// Usable at once: the address cannot be anybody else's.
    Off,
}

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// Index of the link it leaves by.
    pub link: u32,
    /// The router; `None` for destinations on the link.
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The metric; lower wins.
    pub metric: u32,
    /// Whether [`Netlink::add_route`] made it.
    pub ours: bool,
}

impl Route {
    /// A route for destinations on the link.
    pub const fn on_link(prefix: Prefix, link: u32) -> Self {
        Self {
            prefix,
            link,
            gateway: None,
            source: None,
            metric: 0,
            ours: true,
        }
    }

    /// The default route by `gateway`.
    pub const fn default_by(gateway: IpAddr, link: u32) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self {
            prefix: Prefix::new(any, 0),
            link,
            gateway: Some(gateway),
            source: None,
            metric: 0,
            ours: true,
        }
    }
}

/// A neighbour: an address on a link with the MAC it was resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC, once resolved and not known to be wrong.
    pub mac: Option<MacAddr>,
    /// The kernel keeps it resolved (`NTF_EXT_MANAGED`).
    pub managed: bool,
}

impl Netlink {
    /// Every address.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let replies = self.dump(message, "list", "the addresses").await?;
        Ok(replies.iter().filter_map(address_of_reply).collect())
    }

    /// Adds an address; that it is there already is no error.
    ///
    /// # Errors
    /// What the kernel said, `EACCES` for IPv6 where it is switched off.
    pub async fn add_address(
        &self,
        link: u32,
        address: Prefix,
        detection: DuplicateDetection,
    ) -> Result<(), Error> {
        let mut message = address_message(link, address);
        if detection == DuplicateDetection::Off {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        let object = || format!("address {address} on link {link}");
        match self.command(request, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.raw_os_error() != Some(Errno::EEXIST as i32) => {
                Err(Error::new("add", object(), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes an address; that it is gone already is no error.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove_address(&self, link: u32, address: Prefix) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelAddress(address_message(link, address));
        match self.command(request, 0).await {
            Err(error) if error.raw_os_error() != Some(Errno::EADDRNOTAVAIL as i32) => {
                let object = format!("address {address} from link {link}");
                Err(Error::new("remove", object, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Every unicast route of the main table that leaves by one link. Multipath routes are left
    /// out: they name no link of their own.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            let replies = self.dump(request, "list", "the routes").await?;
            routes.extend(replies.iter().filter_map(route_of_reply));
        }
        Ok(routes)
    }

    /// Adds a route, or replaces the one of equal prefix and metric.
    ///
    /// # Errors
    /// `ENETUNREACH` when the gateway cannot be reached, `ENETDOWN` when the link is down.
    pub async fn add_route(&self, route: Route) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewRoute(route_message(route));
        self.command(request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(|error| {
                let object = format!("route to {} by link {}", route.prefix, route.link);
                Error::new("add", object, error)
            })
    }

    /// Removes a route; that it is gone already is no error.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove_route(&self, route: Route) -> Result<(), Error> {
        let mut message = route_message(route);
        if !route.ours {
            // Of any protocol.
            message.header.protocol = RouteProtocol::Unspec;
        }
        let request = RouteNetlinkMessage::DelRoute(message);
        match self.command(request, 0).await {
            Err(error) if error.raw_os_error() != Some(Errno::ESRCH as i32) => {
                let object = format!("route to {} by link {}", route.prefix, route.link);
                Err(Error::new("remove", object, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Every neighbour.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let request = RouteNetlinkMessage::GetNeighbour(message);
            let replies = self.dump(request, "list", "the neighbours").await?;
            neighbours.extend(replies.iter().filter_map(neighbour_of_reply));
        }
        Ok(neighbours)
    }

    /// Tells the kernel a neighbour's MAC for good.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_static_neighbour(
        &self,
        link: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), Error> {
        let mut message = neighbour_message(link, address);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.put_neighbour(message, link, address).await
    }

    /// Makes the kernel resolve a neighbour and keep it resolved (`NTF_EXT_MANAGED`, Linux 5.16).
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_managed_neighbour(&self, link: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour_message(link, address);
        message.header.state = NeighbourState::None;
        message
            .attributes
            .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.put_neighbour(message, link, address).await
    }

    /// Makes the kernel resolve a neighbour once, as if it had a packet for it (`NTF_USE`).
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn probe_neighbour(&self, link: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour_message(link, address);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        self.put_neighbour(message, link, address).await
    }

    async fn put_neighbour(
        &self,
        message: NeighbourMessage,
        link: u32,
        address: IpAddr,
    ) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.command(request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(|error| {
                Error::new("add", format!("neighbour {address} on link {link}"), error)
            })
    }

    /// Removes a neighbour; that it is gone already is no error.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove_neighbour(&self, link: u32, address: IpAddr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelNeighbour(neighbour_message(link, address));
        match self.command(request, 0).await {
            Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => {
                let object = format!("neighbour {address} from link {link}");
                Err(Error::new("remove", object, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(link: u32, address: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address.address);
    message.header.index = link;
    message.header.prefix_len = address.len;
    message.header.scope = AddressScope::Universe;
    message
        .attributes
        .push(AddressAttribute::Local(address.address));
    message
        .attributes
        .push(AddressAttribute::Address(address.address));
    if let Some(IpAddr::V4(broadcast)) = address.broadcast() {
        message
            .attributes
            .push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

fn address_of_reply(reply: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = reply else {
        return None;
    };
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut own = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(address) => own = Some(*address),
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Flags(more) => flags |= *more,
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours (if_addr.h).
        prefix: Prefix::new(local.or(own)?, message.header.prefix_len),
        tentative: flags.contains(AddressFlags::Tentative)
            && !flags.contains(AddressFlags::Optimistic),
    })
}

fn route_message(route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(route.prefix.address);
    message.header.destination_prefix_length = route.prefix.len;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.scope = match (route.prefix.address, route.gateway) {
        (IpAddr::V4(_), None) => RouteScope::Link,
        (IpAddr::V4(_) | IpAddr::V6(_), _) => RouteScope::Universe,
    };
    message.header.kind = RouteType::Unicast;
    if route.prefix.len > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(route.prefix.address.into()));
    }
    message.attributes.push(RouteAttribute::Oif(route.link));
    if let Some(gateway) = route.gateway {
        message
            .attributes
            .push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric > 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn route_of_reply(reply: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = reply else {
        return None;
    };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut route = Route {
        prefix: Prefix::new(any, message.header.destination_prefix_length),
        link: 0,
        gateway: None,
        source: None,
        metric: 0,
        ours: message.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => {
                route.prefix.address = ip_of_route(address)?;
            }
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Gateway(address) => route.gateway = ip_of_route(address),
            RouteAttribute::PrefSource(address) => route.source = ip_of_route(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN) && route.link != 0).then_some(route)
}

fn ip_of_route(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = link;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }));
    message
}

fn neighbour_of_reply(reply: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = reply else {
        return None;
    };
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let mut neighbour = Neighbour {
        link: message.header.ifindex,
        address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        mac: None,
        managed: false,
    };
    let mut found = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                neighbour.address = IpAddr::V4(*ip);
                found = true;
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                neighbour.address = IpAddr::V6(*ip);
                found = true;
            }
            NeighbourAttribute::LinkLayerAddress(octets) if usable => {
                neighbour.mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            NeighbourAttribute::ExtFlags(flags) => {
                neighbour.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    found.then_some(neighbour)
}
