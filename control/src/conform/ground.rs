//! Where the probes run: which addresses the sides of a NAT have, and what is borrowed when the outside
//! has only one remote or nobody names a second inside host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane_core::addr::Prefix;

use super::Error;
use super::packet::Family;
use super::side::{Side, Sides};
use crate::link::inet::{Address, DuplicateDetection};
use crate::link::{Link, Netlink};
use crate::netns::Netns;

/// Addresses of the outside's subnet that are looked at for a free one, from its end.
const CANDIDATES_MAX: u32 = 16;
/// How long a candidate may take to say that it is somebody's.
const NEIGHBOUR_PATIENCE: Duration = Duration::from_millis(300);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);
/// Longest prefix with room for another address. A /29 has 6 hosts.
const PREFIX_LEN_MAX: u8 = 29;
/// The same for IPv6, whose subnets end with anycast addresses (RFC 2526).
const PREFIX_LEN_MAX_V6: u8 = 112;
const ANYCAST_COUNT: u128 = 128;
/// Any UDP port: only the route is looked up.
const DISCARD: u16 = 9;

/// Addresses that were added to a namespace and belong to nobody. Whoever ends the program takes
/// them away by any of the handles; removing twice is no error.
#[derive(Clone, Debug, Default)]
pub struct Borrowed(Arc<Mutex<Vec<(Netlink, u32, Prefix)>>>);

impl Borrowed {
    async fn add(&self, netlink: &Netlink, link: u32, prefix: Prefix) -> Result<(), Error> {
        // Noted first: a signal between the two finds it.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((netlink.clone(), link, prefix));
        let added = netlink.add_address(link, prefix, DuplicateDetection::Off);
        Ok(added.await?)
    }

    /// Removes what was added.
    ///
    /// # Errors
    /// The first that the kernel has refused; the others are tried all the same.
    pub async fn give_back(&self) -> Result<(), Error> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        for (netlink, link, prefix) in all {
            let removed = netlink.remove_address(link, prefix).await;
            result = result.and(removed);
        }
        Ok(result?)
    }
}

/// The namespaces around a NAT.
#[derive(Clone, Debug)]
pub struct Namespaces {
    /// A host behind it.
    pub inside: Netns,
    /// The remotes.
    pub outside: Netns,
    /// Another host behind it; `None`: another address of the inside.
    pub second: Option<Netns>,
}

impl Namespaces {
    fn check(&self) -> Result<(), Error> {
        let twice = self.inside == self.outside;
        let second = self.second.as_ref();
        if twice || second.is_some_and(|second| *second == self.inside || *second == self.outside) {
            return Err(Error::OneNamespace);
        }
        Ok(())
    }
}

/// The sides of a NAT, found out.
#[derive(Debug)]
pub struct Ground {
    inside: Place,
    outside: Place,
    second: Option<Place>,
}

#[derive(Debug)]
struct Place {
    netns: Netns,
    link: u32,
    mtu: u32,
    addresses: Vec<IpAddr>,
}

/// An address that others can reach, with its link.
type Usable = (Link, Prefix);

impl Ground {
    /// Finds the addresses of all sides in one family. The remotes are `wanted`, or what the outside has; when
    /// that is one address only, the last free one of its subnet is borrowed. So is a second inside
    /// address when no namespace is named for it; a subnet without a free one goes without.
    ///
    /// # Errors
    /// When a side has no usable address, or a second remote cannot be had.
    pub async fn find(
        namespaces: Namespaces,
        family: Family,
        wanted: &[IpAddr],
        borrowed: &Borrowed,
    ) -> Result<Self, Error> {
        namespaces.check()?;
        let Namespaces {
            inside,
            outside,
            second: second_inside,
        } = namespaces;
        let netlink = Netlink::open(&outside)?;
        let own = usable(&netlink, family).await?;
        let first = match wanted.first() {
            None => own.first(),
            Some(wanted) => own.iter().find(|(_, prefix)| prefix.address == *wanted),
        };
        let Some((link, prefix)) = first.cloned() else {
            return Err(match wanted.first() {
                None => Error::NoRemote(family),
                Some(wanted) => Error::UnknownRemote(*wanted),
            });
        };
        let first = prefix.address;
        let mut others = own.iter().filter(|(l, prefix)| {
            l.index == link.index
                && prefix.address != first
                && wanted.get(1).is_none_or(|w| *w == prefix.address)
        });
        let second = match others.next() {
            Some((_, second)) => second.address,
            None => {
                let second = match wanted.get(1) {
                    Some(wanted) => *wanted,
                    None => free_address(&netlink, &link, prefix, &own).await?,
                };
                let second_prefix = Prefix::new(second, prefix.len);
                borrowed.add(&netlink, link.index, second_prefix).await?;
                second
            }
        };
        let outside = Place {
            netns: outside,
            link: link.index,
            mtu: link.mtu,
            addresses: vec![first, second],
        };
        let inside = find_inside(inside, first).await?;
        let second = match second_inside {
            Some(netns) => Some(find_inside(netns, first).await?),
            None => find_beside(&inside, borrowed).await?,
        };
        Ok(Self {
            inside,
            outside,
            second,
        })
    }

    /// The remotes.
    pub fn remotes(&self) -> [IpAddr; 2] {
        [self.outside.addresses[0], self.outside.addresses[1]]
    }

    /// Opens all sides.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open(&self) -> Result<Sides, Error> {
        let open = |label, place: &Place| {
            let link = (place.link, place.mtu);
            Side::open(label, &place.netns, link, &place.addresses)
        };
        let second = self.second.as_ref();
        Ok(Sides {
            inside: open("inside", &self.inside)?,
            outside: open("outside", &self.outside)?,
            second: second
                .map(|place| open("second inside", place))
                .transpose()?,
        })
    }
}

/// Addresses of a family that others can reach: neither of the loopback, nor of a link alone, nor
/// still being looked for.
async fn usable(netlink: &Netlink, family: Family) -> Result<Vec<Usable>, Error> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let with_link = |address: &Address| {
        let prefix = address.prefix;
        let elsewhere = match prefix.address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || address.tentative,
        };
        if elsewhere || Family::of(prefix.address) != family {
            return None;
        }
        let link = links.iter().find(|link| link.index == address.link)?;
        (link.up && !link.loopback).then(|| (link.clone(), prefix))
    };
    Ok(addresses.iter().filter_map(with_link).collect())
}

/// The inside address and link are those that a packet to the remote would have.
async fn find_inside(netns: Netns, remote: IpAddr) -> Result<Place, Error> {
    let family = Family::of(remote);
    let source = netns.run(|| {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((remote, DISCARD))?;
        socket.local_addr()
    })?;
    let source = match source {
        Ok(source) => source.ip(),
        Err(error) => {
            tracing::debug!(%error, %remote, "no way to the remote");
            return Err(Error::NoRoute(remote));
        }
    };
    let own = usable(&Netlink::open(&netns)?, family).await?;
    let found = own.into_iter().find(|(_, own)| own.address == source);
    let (link, _) = found.ok_or(Error::NoRoute(remote))?;
    Ok(Place {
        netns,
        link: link.index,
        mtu: link.mtu,
        addresses: vec![source],
    })
}

/// Another address of the inside's interface, borrowed when it has none; `None` when its subnet has no
/// free one.
async fn find_beside(inside: &Place, borrowed: &Borrowed) -> Result<Option<Place>, Error> {
    let netlink = Netlink::open(&inside.netns)?;
    let first = inside.addresses[0];
    let mut own = usable(&netlink, Family::of(first)).await?;
    own.retain(|(link, _)| link.index == inside.link);
    let beside = |address| Place {
        addresses: vec![address],
        netns: inside.netns.clone(),
        ..*inside
    };
    if let Some((_, other)) = own.iter().find(|(_, own)| own.address != first) {
        return Ok(Some(beside(other.address)));
    }
    let Some((link, prefix)) = own.first() else {
        return Ok(None);
    };
    let address = match free_address(&netlink, link, *prefix, &own).await {
        Err(Error::NoSecondRemote(_)) => return Ok(None),
        found => found?,
    };
    let second = Prefix::new(address, prefix.len);
    borrowed.add(&netlink, link.index, second).await?;
    Ok(Some(beside(address)))
}

/// The last address of a subnet that nobody answers for.
async fn free_address(
    netlink: &Netlink,
    link: &Link,
    prefix: Prefix,
    own: &[Usable],
) -> Result<IpAddr, Error> {
    for candidate in candidates(prefix) {
        if own.iter().any(|(_, own)| own.address == candidate) {
            continue;
        }
        // Without a MAC there is nobody to ask.
        if link.mac.is_none() || !is_taken(netlink, link.index, candidate).await? {
            return Ok(candidate);
        }
    }
    Err(Error::NoSecondRemote(prefix.address))
}

/// The last addresses of a subnet, the last first; none when it is too small.
fn candidates(prefix: Prefix) -> Vec<IpAddr> {
    match prefix.address {
        IpAddr::V4(_) if prefix.len > PREFIX_LEN_MAX => Vec::new(),
        IpAddr::V6(_) if prefix.len > PREFIX_LEN_MAX_V6 => Vec::new(),
        IpAddr::V4(own) => {
            let hosts = u32::MAX >> prefix.len;
            let broadcast = own.to_bits() | hosts;
            let count = (hosts - 1).min(CANDIDATES_MAX);
            let back = (1..=count).map(|back| Ipv4Addr::from(broadcast - back));
            back.map(IpAddr::V4).collect()
        }
        IpAddr::V6(own) => {
            let last = (own.to_bits() | (u128::MAX >> prefix.len)) - ANYCAST_COUNT;
            let back = (0..u128::from(CANDIDATES_MAX)).map(|back| Ipv6Addr::from(last - back));
            back.map(IpAddr::V6).collect()
        }
    }
}

async fn is_taken(netlink: &Netlink, link: u32, address: IpAddr) -> Result<bool, Error> {
    netlink.probe_neighbour(link, address).await?;
    let deadline = Instant::now() + NEIGHBOUR_PATIENCE;
    loop {
        let neighbours = netlink.neighbours().await?;
        let answered = neighbours
            .iter()
            .any(|n| n.link == link && n.address == address && n.mac.is_some());
        if answered {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_remote_is_looked_for_at_the_end_of_the_subnet() {
        let of = |text: &str, len| {
            let prefix = Prefix::new(text.parse().unwrap(), len);
            let all = candidates(prefix);
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let found = of("192.0.2.2", 24);
        assert_eq!(found.len(), 16);
        assert_eq!(found[0], "192.0.2.254");
        assert_eq!(found[15], "192.0.2.239");
        assert_eq!(
            of("192.0.2.9", 29),
            [
                "192.0.2.14",
                "192.0.2.13",
                "192.0.2.12",
                "192.0.2.11",
                "192.0.2.10",
                "192.0.2.9"
            ]
        );
        assert_eq!(of("192.0.2.2", 30), [""; 0]);
        assert_eq!(of("192.0.2.2", 32), [""; 0]);
        let found = of("2001:db8::2", 64);
        assert_eq!(found.len(), 16);
        assert_eq!(found[0], "2001:db8::ffff:ffff:ffff:ff7f");
        assert_eq!(found[15], "2001:db8::ffff:ffff:ffff:ff70");
        assert_eq!(of("2001:db8::2", 127), [""; 0]);
    }
}
