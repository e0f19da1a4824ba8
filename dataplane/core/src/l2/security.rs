//! Port security: an endpoint sends by its own MAC and from its own addresses only.
//!
//! What claims an address is the source of an IP packet, the sender of an ARP message and the target
//! of a neighbour advertisement. Let through besides, because nothing can be claimed by it: DHCP
//! requests and IGMP (RFC 3376 section 4.2.13) from 0.0.0.0, ARP probes (RFC 5227), ICMPv6 from the unspecified address (duplicate
//! address detection, RFC 4862; listener reports, RFC 3590), and IPv6 link-local addresses, which
//! endpoints choose themselves (RFC 7217). Whose claim cannot be read is not believed: a receiver
//! may be less strict than the parser. Other EtherTypes claim a MAC alone.
//!
//! An endpoint that was given no address of a family may have any of it, as its DHCP server or router says.
//!
//! Link-local addresses of another endpoint can be claimed: telling them apart would need a table
//! of what each endpoint has chosen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::MacAddr;
use crate::frame::Frame;
use crate::headers::{Arp, Headers, Ip, L3, L4Kind, array_at, ethertype, protocol};
use crate::verdict::DropReason;

/// Neighbour advertisement (RFC 4861 section 4.4).
const ND_ADVERTISEMENT: u8 = 136;
/// Where an advertisement's target stands behind the beginning of its ICMPv6 header.
const ND_TARGET_AT: usize = 8;
/// UDP ports of DHCP (RFC 2131 section 4.1).
const DHCP_CLIENT: u16 = 68;
const DHCP_SERVER: u16 = 67;

/// Address families, each or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Whether the family of `address` is one of them.
    pub const fn have(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// Who an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
    /// Families in which every address may be its own, for it gets them from somebody else.
    pub open: Families,
}

impl Identity {
    /// Checks that a frame is the endpoint's own.
    ///
    /// # Errors
    /// `SourceMacForeign`, `SourceAddressForeign`.
    pub(super) fn check(&self, headers: &Headers, frame: &Frame<'_>) -> Result<(), DropReason> {
        if headers.src != self.mac {
            return Err(DropReason::SourceMacForeign);
        }
        let own = match (&headers.l3, headers.ethertype) {
            (Ok(L3::Arp(arp)), _) => return self.check_arp(arp),
            (Ok(L3::Ip(ip)), _) => {
                self.owns_source(ip, headers) && self.owns_target(ip, headers, frame.bytes())
            }
            (Err(_), ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP) => false,
            (Err(_), _) => true,
        };
        own.then_some(()).ok_or(DropReason::SourceAddressForeign)
    }

    fn check_arp(&self, arp: &Arp) -> Result<(), DropReason> {
        if arp.sender_mac != self.mac {
            return Err(DropReason::SourceMacForeign);
        }
        let own = arp.sender.is_unspecified() || self.has(arp.sender.into());
        own.then_some(()).ok_or(DropReason::SourceAddressForeign)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.open.have(address)
    }

    fn owns_source(&self, ip: &Ip, headers: &Headers) -> bool {
        let kind = headers.l4.map(|l4| l4.kind);
        match ip.src {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) if ip.protocol == protocol::IGMP => true,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => matches!(
                kind,
                Ok(L4Kind::Udp { src, dst }) if (src.0, dst.0) == (DHCP_CLIENT, DHCP_SERVER)
            ),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => ip.protocol == protocol::ICMPV6,
            IpAddr::V6(own) if own.is_unicast_link_local() => true,
            own => self.has(own),
        }
    }

    /// Whether a neighbour advertisement, if the packet is one, is about an address of the
    /// endpoint's. A packet whose extension headers could not be followed may be one.
    fn owns_target(&self, ip: &Ip, headers: &Headers, bytes: &[u8]) -> bool {
        if ip.src.is_ipv4() {
            return true;
        }
        let Ok(l4) = headers.l4 else {
            return !protocol::is_extension(ip.protocol);
        };
        let advertisement = L4Kind::IcmpOther {
            icmp_type: ND_ADVERTISEMENT,
        };
        if ip.protocol != protocol::ICMPV6 || l4.kind != advertisement {
            return true;
        }
        let target: Option<[u8; 16]> = array_at(bytes, l4.offset + ND_TARGET_AT);
        target
            .map(Ipv6Addr::from)
            .is_some_and(|target| target.is_unicast_link_local() || self.has(target.into()))
    }
}
