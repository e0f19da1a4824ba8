//! What IP has on a link, as the kernel tells it, to be put on that link or another one later.
//!
//! Addresses and routes are kept as the kernel's own messages, so that what we have no word for
//! (lifetimes, metrics, tables, protocols) is put back as it was, as `ip address save` and `ip route
//! save` do it. What the kernel makes by itself is left out: it comes with the addresses.

use std::fmt;
use std::net::IpAddr;

use dataplane_core::addr::Prefix;
use nix::errno::Errno;
use rtnetlink::packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Link, Netlink};

/// Clock ticks of `RTA_CACHEINFO` a second: `USER_HZ`.
const TICKS: u32 = 100;
/// `RT_TABLE_LOCAL`: the host's own addresses, which is the kernel's to fill.
const TABLE_LOCAL: u8 = 255;
/// How often routes are tried that need others first; a chain of routers is shorter.
const PASSES_MAX: usize = 8;

/// Addresses and routes of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedIp {
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
}

/// Bytes that are no message of the kernel's.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no saved address or route")]
pub struct SavedError(String);

impl SavedIp {
    /// The addresses, with the lengths of their prefixes.
    pub fn addresses(&self) -> impl Iterator<Item = Prefix> {
        self.addresses.iter().filter_map(prefix_of)
    }

    /// Those that others than the link's own neighbours can send to.
    pub fn global_addresses(&self) -> impl Iterator<Item = Prefix> {
        self.addresses().filter(|prefix| match prefix.address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
    }

    /// The link-local IPv6 addresses alone, which the kernel makes.
    #[must_use]
    pub fn link_local(&self) -> Self {
        let is_link_local = |message: &&AddressMessage| {
            let prefix = prefix_of(message);
            prefix.is_some_and(|prefix| match prefix.address {
                IpAddr::V4(_) => false,
                IpAddr::V6(address) => address.is_unicast_link_local(),
            })
        };
        Self {
            addresses: self
                .addresses
                .iter()
                .filter(is_link_local)
                .cloned()
                .collect(),
            routes: Vec::new(),
        }
    }

    /// Addresses that are given for a time, with the seconds that are left of it.
    pub fn leases(&self) -> impl Iterator<Item = (Prefix, u32)> {
        self.addresses.iter().filter_map(|message| {
            let seconds = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    // INFINITY_LIFE_TIME of net/addrconf.h.
                    AddressAttribute::CacheInfo(times) if times.ifa_valid < u32::MAX => {
                        Some(times.ifa_valid)
                    }
                    _ => None,
                })?;
            Some((prefix_of(message)?, seconds))
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.routes.is_empty()
    }

    /// The routes, in words.
    pub fn routes(&self) -> impl Iterator<Item = String> {
        self.routes.iter().map(route_text)
    }

    /// The router of the default route of a family, the lowest metric's.
    pub fn default_router(&self, of: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let defaults = self.routes.iter().filter(|route| {
            route.header.destination_prefix_length == 0 && !route.attributes.is_empty()
        });
        let router = |route: &RouteMessage| {
            let router = route.attributes.iter().find_map(gateway)?;
            of(&router).then_some((metric(route), router))
        };
        defaults.filter_map(router).min().map(|(_, router)| router)
    }

    /// A route that could not be put back as it was, in words: one of several links, or by an
    /// object that others may use as well.
    pub fn unmovable(&self) -> Option<String> {
        let shared = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_)
            )
        };
        let mut routes = self.routes.iter();
        let route = routes.find(|route| route.attributes.iter().any(shared))?;
        Some(route_text(route))
    }

    /// As text, to be kept: an address or route a line.
    pub fn encode(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(|message| hex("a", message));
        let routes = self.routes.iter().map(|message| hex("r", message));
        addresses.chain(routes).collect()
    }

    /// Reads what [`SavedIp::encode`] wrote.
    ///
    /// # Errors
    /// [`SavedError`] with the line that cannot be read.
    pub fn decode(lines: &[String]) -> Result<Self, SavedError> {
        let mut saved = Self::default();
        for line in lines {
            let wrong = || SavedError(line.clone());
            let (kind, digits) = line.split_at_checked(1).ok_or_else(wrong)?;
            let bytes = unhex(digits).ok_or_else(wrong)?;
            match kind {
                "a" => {
                    let message = AddressMessage::parse(&bytes[..]);
                    saved.addresses.push(message.map_err(|_| wrong())?);
                }
                "r" => {
                    let message = RouteMessage::parse(&bytes[..]);
                    saved.routes.push(message.map_err(|_| wrong())?);
                }
                _ => return Err(wrong()),
            }
        }
        Ok(saved)
    }
}

impl Netlink {
    /// What IP has on a link now.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn saved_ip(&self, link: u32) -> Result<SavedIp, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let replies = self.dump(request, "list", "the addresses").await?;
        let address = |reply| match reply {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == link => {
                Some(message)
            }
            _ => None,
        };
        let addresses = replies.into_iter().filter_map(address).collect();
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            let replies = self.dump(request, "list", "the routes").await?;
            let route = |reply| match reply {
                RouteNetlinkMessage::NewRoute(message) => {
                    (leaves_by(&message, link) && !is_kernels(&message)).then_some(message)
                }
                _ => None,
            };
            routes.extend(replies.into_iter().filter_map(route));
        }
        Ok(SavedIp { addresses, routes })
    }

    /// Puts addresses on a link, with their labels in its name; those that are there stay. Goes on
    /// when one fails, and returns what the kernel said.
    pub async fn put_addresses(&self, link: &Link, saved: &SavedIp) -> Vec<Error> {
        let mut failed = Vec::new();
        for address in &saved.addresses {
            let message = address_on(address.clone(), link);
            let request = RouteNetlinkMessage::NewAddress(message);
            // What is there gets the lifetimes that were saved.
            let outcome = self.command(request, NLM_F_CREATE | NLM_F_REPLACE).await;
            if let Err(error) = outcome {
                let address = prefix_of(address).map_or_else(String::new, |p| p.to_string());
                let object = format!("address {address} on '{}'", link.name);
                failed.push(Error::new("put", object, error));
            }
        }
        failed
    }

    /// Puts routes on a link whose addresses are there already. Those that need others first are
    /// tried again; goes on when one fails, and returns what the kernel said.
    pub async fn put_routes(&self, link: &Link, saved: &SavedIp) -> Vec<Error> {
        let mut left: Vec<&RouteMessage> = saved.routes.iter().collect();
        let mut failed = Vec::new();
        for _ in 0..PASSES_MAX {
            failed.clear();
            let before = left.len();
            let mut still = Vec::new();
            for route in left {
                let message = RouteNetlinkMessage::NewRoute(route_on(route.clone(), link.index));
                match self.command(message, NLM_F_CREATE | NLM_F_EXCL).await {
                    Err(error) if error.raw_os_error() != Some(Errno::EEXIST as i32) => {
                        let object = format!("route {} on '{}'", route_text(route), link.name);
                        failed.push(Error::new("put", object, error));
                        still.push(route);
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            left = still;
            if left.is_empty() || left.len() == before {
                break;
            }
        }
        failed
    }

    /// Takes what was saved of a link off it; what is gone already is no error. Goes on when one
    /// fails, and returns what the kernel said.
    pub async fn take_ip(&self, link: &Link, saved: &SavedIp) -> Vec<Error> {
        let mut failed = Vec::new();
        for route in &saved.routes {
            let message = route_on(route.clone(), link.index);
            let request = RouteNetlinkMessage::DelRoute(message);
            if let Err(error) = self.command(request, 0).await
                && !is_gone(&error)
            {
                let object = format!("route {} from '{}'", route_text(route), link.name);
                failed.push(Error::new("take", object, error));
            }
        }
        for address in &saved.addresses {
            let request = RouteNetlinkMessage::DelAddress(address_on(address.clone(), link));
            if let Err(error) = self.command(request, 0).await
                && !is_gone(&error)
            {
                let address = prefix_of(address).map_or_else(String::new, |p| p.to_string());
                let object = format!("address {address} from '{}'", link.name);
                failed.push(Error::new("take", object, error));
            }
        }
        failed
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    [Errno::EADDRNOTAVAIL, Errno::ESRCH, Errno::ENODEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// The message that puts a saved address on a link. Duplicates were looked for when it was first
/// given, and it would be of no use while they are again.
fn address_on(mut message: AddressMessage, link: &Link) -> AddressMessage {
    message.header.index = link.index;
    message.header.flags = AddressHeaderFlags::empty();
    let kept =
        AddressFlags::Noprefixroute | AddressFlags::Managetempaddr | AddressFlags::Homeaddress;
    for attribute in &mut message.attributes {
        match attribute {
            AddressAttribute::Flags(flags) => *flags = (*flags & kept) | AddressFlags::Nodad,
            AddressAttribute::Label(label) => {
                // `eth0:1`; a name beyond the kernel's length is as good as none.
                let alias = label.split_once(':').map(|(_, alias)| alias.to_owned());
                let named = alias.map(|alias| format!("{}:{alias}", link.name));
                let fits = named.filter(|name| name.len() <= super::IFNAME_LEN_MAX);
                *label = fits.unwrap_or_else(|| link.name.clone());
            }
            _ => {}
        }
    }
    message
}

/// The message that puts a saved route on a link.
fn route_on(mut message: RouteMessage, link: u32) -> RouteMessage {
    // What else the kernel says here is what became of the route, which it does not take back.
    message.header.flags &= RouteFlags::Onlink;
    let mut expires = None;
    message.attributes.retain_mut(|attribute| match attribute {
        RouteAttribute::Oif(index) => {
            *index = link;
            true
        }
        RouteAttribute::CacheInfo(info) => {
            // Of IPv6: 0 is for good.
            expires = (info.expires > 0).then_some(info.expires / TICKS);
            false
        }
        RouteAttribute::Expires(_) => false,
        _ => true,
    });
    if let Some(seconds) = expires
        && message.header.address_family == AddressFamily::Inet6
    {
        message.attributes.push(RouteAttribute::Expires(seconds));
    }
    message
}

fn leaves_by(message: &RouteMessage, link: u32) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(index) => *index == link,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == link),
        _ => false,
    })
}

/// Whether the kernel makes the route by itself, for an address or an interface.
fn is_kernels(message: &RouteMessage) -> bool {
    let header = &message.header;
    header.table == TABLE_LOCAL
        || header.protocol == RouteProtocol::Kernel
        || header.flags.contains(RouteFlags::Cloned)
        || matches!(
            header.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Anycast
        )
}

fn prefix_of(message: &AddressMessage) -> Option<Prefix> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the peer's (if_addr.h).
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    Some(Prefix::new(own?, message.header.prefix_len))
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn metric(message: &RouteMessage) -> u32 {
    let priority = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    message.attributes.iter().find_map(priority).unwrap_or(0)
}

fn route_text(message: &RouteMessage) -> String {
    let destination = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
    let len = message.header.destination_prefix_length;
    let mut text = match destination {
        Some(address) => format!("{address}/{len}"),
        None => "default".to_owned(),
    };
    if let Some(router) = message.attributes.iter().find_map(gateway) {
        text.push_str(&format!(" via {router}"));
    }
    match metric(message) {
        0 => {}
        metric => text.push_str(&format!(" metric {metric}")),
    }
    text
}

impl fmt::Display for SavedIp {
    /// For the log and for people who have to put it back by hand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses().map(|address| address.to_string());
        let all: Vec<String> = addresses.chain(self.routes()).collect();
        f.write_str(&all.join(", "))
    }
}

fn hex(kind: &str, message: &impl Emitable) -> String {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once(kind.to_owned()).chain(digits).collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok().filter(|t| t.len() == 2)?;
        u8::from_str_radix(text, 16).ok()
    };
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::route::{RouteCacheInfo, RouteHeader};

    fn default_by(router: [u8; 4], metric: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Dhcp;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Table(254),
            RouteAttribute::Priority(metric),
            RouteAttribute::Gateway(RouteAddress::Inet(router.into())),
            RouteAttribute::Oif(7),
        ];
        message
    }

    fn address() -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 24;
        message.header.index = 7;
        message.attributes = vec![
            AddressAttribute::Address("192.0.2.7".parse().unwrap()),
            AddressAttribute::Local("192.0.2.7".parse().unwrap()),
            AddressAttribute::Label("eth0:web".to_owned()),
            AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Noprefixroute),
        ];
        message
    }

    #[test]
    fn what_was_written_is_read_as_it_was() {
        let saved = SavedIp {
            addresses: vec![address()],
            routes: vec![default_by([192, 0, 2, 1], 100)],
        };
        assert_eq!(SavedIp::decode(&saved.encode()).unwrap(), saved);
        let text = saved.to_string();
        assert_eq!(text, "192.0.2.7/24, default via 192.0.2.1 metric 100");
        for wrong in ["", "x00", "a0", "azz", "é"] {
            let error = SavedIp::decode(&[wrong.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }

    #[test]
    fn on_another_link_a_route_leaves_by_it_and_says_nothing_of_its_past() {
        let mut route = default_by([192, 0, 2, 1], 0);
        route.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        let moved = route_on(route.clone(), 9);
        assert_eq!(moved.header.flags, RouteFlags::Onlink);
        assert!(leaves_by(&moved, 9) && !leaves_by(&moved, 7));
        // struct rta_cacheinfo: clntref, lastuse, expires, error, used, id, ts, tsage.
        let fields = [0, 0, 1_500 * TICKS, 0, 0, 0, 0, 0];
        let bytes: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
        let info = RouteCacheInfo::parse(&bytes).unwrap();
        route.header.address_family = AddressFamily::Inet6;
        route.attributes.push(RouteAttribute::CacheInfo(info));
        let moved = route_on(route, 9);
        assert!(moved.attributes.contains(&RouteAttribute::Expires(1_500)));
        let is_info = |a: &RouteAttribute| matches!(a, RouteAttribute::CacheInfo(_));
        assert!(!moved.attributes.iter().any(is_info));
    }

    #[test]
    fn an_address_keeps_its_label_in_the_name_of_its_new_link() {
        let link = |name: &str| Link {
            name: name.to_owned(),
            ..crate::hostnet::tests::link(9, name)
        };
        let label = |name: &str| {
            let moved = address_on(address(), &link(name));
            let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
            assert!(moved.attributes.contains(&AddressAttribute::Flags(flags)));
            moved.attributes.iter().find_map(|a| match a {
                AddressAttribute::Label(label) => Some(label.clone()),
                _ => None,
            })
        };
        assert_eq!(label("cw-lan").as_deref(), Some("cw-lan:web"));
        assert_eq!(label("cw-longest-name").as_deref(), Some("cw-longest-name"));
    }

    #[test]
    fn the_router_is_the_lowest_metrics_and_shared_routes_are_named() {
        let mut saved = SavedIp {
            addresses: Vec::new(),
            routes: vec![
                default_by([192, 0, 2, 1], 100),
                default_by([192, 0, 2, 9], 50),
            ],
        };
        let router = saved.default_router(IpAddr::is_ipv4);
        assert_eq!(router, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(saved.default_router(IpAddr::is_ipv6), None);
        assert_eq!(saved.unmovable(), None);
        saved.routes[1].attributes.push(RouteAttribute::NhId(3));
        let named = saved.unmovable().unwrap();
        assert_eq!(named, "default via 192.0.2.9 metric 50");
    }
}
