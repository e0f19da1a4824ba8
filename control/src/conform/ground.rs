//! Where the probes run: which addresses the sides of a NAT have, and what is borrowed when the outside
//! has only one remote or nobody names a second inside host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane_core::addr::Prefix;

use super::Error;
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
/// Longest prefix with room for another address.
const PREFIX_LEN_MAX: u8 = 29;
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
    addresses: Vec<Ipv4Addr>,
}

impl Ground {
    /// Finds the addresses of all sides. The remotes are `wanted`, or what the outside has; when
    /// that is one address only, the last free one of its subnet is borrowed. So is a second inside
    /// address when no namespace is named for it; a subnet without a free one goes without.
    ///
    /// # Errors
    /// When a side has no usable address, or a second remote cannot be had.
    pub async fn find(
        namespaces: Namespaces,
        wanted: &[Ipv4Addr],
        borrowed: &Borrowed,
    ) -> Result<Self, Error> {
        namespaces.check()?;
        let Namespaces {
            inside,
            outside,
            second: second_inside,
        } = namespaces;
        let netlink = Netlink::open(&outside)?;
        let links = netlink.links().await?;
        let addresses = netlink.addresses().await?;
        let own = usable(&links, &addresses);
        let first = match wanted.first() {
            None => own.first(),
            Some(wanted) => own.iter().find(|(_, _, address)| address == wanted),
        };
        let Some((link, prefix, first)) = first.cloned() else {
            return Err(match wanted.first() {
                None => Error::NoRemote,
                Some(wanted) => Error::UnknownRemote(*wanted),
            });
        };
        let mut others = own.iter().filter(|(l, _, address)| {
            l.index == link.index && *address != first && wanted.get(1).is_none_or(|w| w == address)
        });
        let second = match others.next() {
            Some((_, _, second)) => *second,
            None => {
                let second = match wanted.get(1) {
                    Some(wanted) => *wanted,
                    None => free_address(&netlink, &link, prefix, &own).await?,
                };
                let second_prefix = Prefix::new(second.into(), prefix.len);
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
    pub fn remotes(&self) -> [Ipv4Addr; 2] {
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

/// Addresses that others can reach, with their links.
fn usable(links: &[Link], addresses: &[Address]) -> Vec<(Link, Prefix, Ipv4Addr)> {
    let with_link = |address: &Address| {
        let IpAddr::V4(v4) = address.prefix.address else {
            return None;
        };
        let link = links.iter().find(|link| link.index == address.link)?;
        (link.up && !link.loopback).then(|| (link.clone(), address.prefix, v4))
    };
    addresses.iter().filter_map(with_link).collect()
}

/// The inside address and link are those that a packet to the remote would have.
async fn find_inside(netns: Netns, remote: Ipv4Addr) -> Result<Place, Error> {
    let source = netns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((remote, DISCARD))?;
        socket.local_addr()
    })?;
    let source = match source {
        Ok(SocketAddr::V4(source)) => *source.ip(),
        Ok(SocketAddr::V6(_)) => return Err(Error::NoRoute(remote)),
        Err(error) => {
            tracing::debug!(%error, %remote, "no way to the remote");
            return Err(Error::NoRoute(remote));
        }
    };
    let netlink = Netlink::open(&netns)?;
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let own = usable(&links, &addresses);
    let found = own.into_iter().find(|(_, _, address)| *address == source);
    let (link, _, _) = found.ok_or(Error::NoRoute(remote))?;
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
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let own = usable(&links, &addresses);
    let first = inside.addresses[0];
    let here = |(link, _, _): &&(Link, Prefix, Ipv4Addr)| link.index == inside.link;
    let other = |(_, _, address): &&(Link, Prefix, Ipv4Addr)| *address != first;
    let beside = |address| Place {
        addresses: vec![address],
        netns: inside.netns.clone(),
        ..*inside
    };
    if let Some((_, _, address)) = own.iter().filter(here).find(other) {
        return Ok(Some(beside(*address)));
    }
    let Some((link, prefix, _)) = own.iter().find(here) else {
        return Ok(None);
    };
    let address = match free_address(&netlink, link, *prefix, &own).await {
        Err(Error::NoSecondRemote(_)) => return Ok(None),
        found => found?,
    };
    let second = Prefix::new(address.into(), prefix.len);
    borrowed.add(&netlink, link.index, second).await?;
    Ok(Some(beside(address)))
}

/// The last address of a subnet that nobody answers for.
async fn free_address(
    netlink: &Netlink,
    link: &Link,
    prefix: Prefix,
    own: &[(Link, Prefix, Ipv4Addr)],
) -> Result<Ipv4Addr, Error> {
    for candidate in candidates(prefix) {
        if own.iter().any(|(_, _, address)| *address == candidate) {
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
fn candidates(prefix: Prefix) -> impl Iterator<Item = Ipv4Addr> {
    let broadcast = match prefix.broadcast() {
        Some(IpAddr::V4(broadcast)) if prefix.len <= PREFIX_LEN_MAX => Some(broadcast),
        Some(IpAddr::V4(_) | IpAddr::V6(_)) | None => None,
    };
    // A /29 has 6 hosts.
    let size = (u32::MAX >> prefix.len.min(31)).saturating_sub(1);
    let count = size.min(CANDIDATES_MAX);
    broadcast
        .into_iter()
        .flat_map(move |last| (1..=count).map(move |back| Ipv4Addr::from(last.to_bits() - back)))
}

async fn is_taken(netlink: &Netlink, link: u32, address: Ipv4Addr) -> Result<bool, Error> {
    netlink.probe_neighbour(link, address.into()).await?;
    let deadline = Instant::now() + NEIGHBOUR_PATIENCE;
    loop {
        let neighbours = netlink.neighbours().await?;
        let answered = neighbours
            .iter()
            .any(|n| n.link == link && n.address == IpAddr::V4(address) && n.mac.is_some());
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
            candidates(prefix)
                .map(|a| a.to_string())
                .collect::<Vec<_>>()
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
    }
}
