//! The way out of a sandbox, and the frames that take it.
//!
//! A frame is written once, with everything that the sandbox's own stack would write, and later
//! only its payload is changed. Its UDP checksum is 0, "none" (RFC 768), which every system has
//! to carry, so that no sender spends time on it and no receiver either.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use ::tests::lab::{Namespace, block_on};
use control::link::Link;
use control::link::inet::{Neighbour, Route};
use dataplane_core::addr::MacAddr;
use etherparse::PacketBuilder;

use crate::measure::{MeasureError, refused};

/// Bytes before the payload: Ethernet, IPv4, UDP.
pub const HEADERS_SIZE: usize = 14 + 20 + 8;
/// Where the UDP checksum is.
const CHECKSUM_AT: usize = 14 + 20 + 6;
/// Hops that a frame may take.
const TTL: u8 = 64;

/// How frames leave a sandbox for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface.
    pub interface: String,
    /// Its MAC.
    own: MacAddr,
    /// The MAC of the next hop.
    next_hop: MacAddr,
}

/// What a sandbox knows of the ways out of it, as of one moment.
pub struct Ways {
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    links: Vec<Link>,
}

impl Ways {
    /// Reads them.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn of(ns: &Namespace) -> Result<Self, MeasureError> {
        let unread = |error: control::link::Error| stuck(&error.to_string());
        let netlink = ns.netlink();
        Ok(Self {
            routes: block_on(netlink.routes()).map_err(unread)?,
            neighbours: block_on(netlink.neighbours()).map_err(unread)?,
            links: block_on(netlink.links()).map_err(unread)?,
        })
    }

    /// The way to every station of the subnet that an address is the broadcast address of.
    ///
    /// # Errors
    /// When the sandbox has no route to the address.
    pub fn to_all(&self, to: IpAddr) -> Result<Way, MeasureError> {
        let stuck = |what: &str| stuck(&format!("to {to}: {what}"));
        let route = self.routes.iter().find(|route| route.prefix.contains(to));
        let route = route.ok_or_else(|| stuck("no route"))?;
        let link = self.links.iter().find(|link| link.index == route.link);
        let link = link.ok_or_else(|| stuck("its interface is gone"))?;
        Ok(Way {
            own: link.mac.ok_or_else(|| stuck("its interface has no MAC"))?,
            next_hop: MacAddr::BROADCAST,
            interface: link.name.clone(),
        })
    }

    /// The way to an address that something has just been sent to, so that the kernel knows the
    /// MAC of the next hop.
    ///
    /// # Errors
    /// When the sandbox has no route to the address, or knows no MAC.
    pub fn to(&self, to: IpAddr) -> Result<Way, MeasureError> {
        let stuck = |what: &str| stuck(&format!("to {to}: {what}"));
        let matching = self.routes.iter().filter(|route| route.prefix.contains(to));
        let longest = matching.max_by_key(|route| route.prefix.len);
        let route = longest.ok_or_else(|| stuck("no route"))?;
        let next_hop = route.gateway.unwrap_or(to);
        let is_meant = |known: &&Neighbour| known.link == route.link && known.address == next_hop;
        let found = self.neighbours.iter().find(is_meant);
        let link = self.links.iter().find(|link| link.index == route.link);
        let link = link.ok_or_else(|| stuck("its interface is gone"))?;
        Ok(Way {
            own: link.mac.ok_or_else(|| stuck("its interface has no MAC"))?,
            next_hop: found
                .and_then(|known| known.mac)
                .ok_or_else(|| stuck("the MAC of the next hop is not known"))?,
            interface: link.name.clone(),
        })
    }
}

fn stuck(what: &str) -> MeasureError {
    MeasureError::Stuck(format!("the way {what}"))
}

impl Way {
    /// The interface's MAC, which no other one has.
    pub const fn sender(&self) -> MacAddr {
        self.own
    }

    /// A frame from a connected socket to its peer, its payload all the same byte.
    ///
    /// # Errors
    /// When the socket is not connected, or not by IPv4.
    pub fn frame(&self, socket: &UdpSocket, payload_size: usize) -> Result<Vec<u8>, MeasureError> {
        let ends = socket.local_addr().and_then(|own| {
            let peer = socket.peer_addr()?;
            Ok((own, peer))
        });
        let (own, peer) = ends.map_err(refused("name the ends of a flow"))?;
        let (source, destination) = ipv4(own).zip(ipv4(peer)).ok_or_else(|| {
            MeasureError::Request(format!("frames from {own} to {peer}; only IPv4 is built"))
        })?;
        let mut bytes = Vec::with_capacity(HEADERS_SIZE + payload_size);
        PacketBuilder::ethernet2(self.own.0, self.next_hop.0)
            .ipv4(source.octets(), destination.octets(), TTL)
            .udp(own.port(), peer.port())
            .write(&mut bytes, &vec![0x5a; payload_size])
            .map_err(|error| MeasureError::Request(format!("{payload_size} bytes: {error}")))?;
        bytes[CHECKSUM_AT..HEADERS_SIZE].fill(0);
        Ok(bytes)
    }
}

fn ipv4(address: SocketAddr) -> Option<Ipv4Addr> {
    match address.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_the_stack_would_send_but_for_its_checksum() {
        let way = Way {
            interface: "eth0".to_owned(),
            own: MacAddr([2, 0, 0, 0, 0, 1]),
            next_hop: MacAddr([2, 0, 0, 0, 0, 2]),
        };
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(peer.local_addr().unwrap()).unwrap();
        let frame = way.frame(&socket, 18).unwrap();
        assert_eq!(frame.len(), 60, "64 with the check sequence");
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).expect("a whole packet");
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("no UDP: {sliced:?}");
        };
        assert_eq!(
            (udp.source_port(), udp.destination_port(), udp.checksum()),
            (
                socket.local_addr().unwrap().port(),
                peer.local_addr().unwrap().port(),
                0
            )
        );
        assert_eq!(udp.payload(), [0x5a; 18]);
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(way.frame(&unconnected, 18).is_err());
    }
}
