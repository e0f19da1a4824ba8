//! What rules are asked: who would open a flow to whom, and by what.

use std::net::IpAddr;

use super::Zone;
use crate::addr::{DomainId, L4Addr, PortId, UplinkId};
use crate::headers::{HeaderError, Headers, L3, L4Kind, ethertype, protocol};
use crate::verdict::DropReason;

/// Somebody at one end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Party {
    /// Behind a port of a network.
    Port(PortId, DomainId),
    /// Somewhere on a network: everybody, or nobody that is known.
    Domain(DomainId),
    /// The host itself.
    Host,
    /// Beyond an uplink.
    Outside(UplinkId),
}

impl Party {
    pub const fn zone(&self) -> Zone {
        match self {
            Self::Port(_, domain) | Self::Domain(domain) => Zone::Domain(*domain),
            Self::Host => Zone::Host,
            Self::Outside(_) => Zone::Outside,
        }
    }

    pub const fn domain(&self) -> Option<DomainId> {
        match self {
            Self::Port(_, domain) | Self::Domain(domain) => Some(*domain),
            Self::Host | Self::Outside(_) => None,
        }
    }

    pub const fn port(&self) -> Option<PortId> {
        match self {
            Self::Port(port, _) => Some(*port),
            Self::Domain(_) | Self::Host | Self::Outside(_) => None,
        }
    }

    pub const fn uplink(&self) -> Option<UplinkId> {
        match self {
            Self::Outside(uplink) => Some(*uplink),
            Self::Port(..) | Self::Domain(_) | Self::Host => None,
        }
    }
}

/// What a packet carries, as far as it can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// IP.
    Ip {
        src: IpAddr,
        dst: IpAddr,
        /// `None` where a chain of headers is too long to be followed.
        protocol: Option<u8>,
        /// Of TCP and UDP; `None` where they cannot be read.
        ports: Option<(u16, u16)>,
    },
    /// Something else than IP.
    Other,
    /// IP whose header contradicts itself.
    Unreadable,
}

impl Content {
    pub fn of(headers: &Headers) -> Self {
        let ip = match headers.l3 {
            Ok(L3::Ip(ip)) => ip,
            Err(_) if matches!(headers.ethertype, ethertype::IPV4 | ethertype::IPV6) => {
                return Self::Unreadable;
            }
            Ok(L3::Arp(_)) | Err(_) => return Self::Other,
        };
        Self::Ip {
            src: ip.src,
            dst: ip.dst,
            protocol: (!protocol::is_extension(ip.protocol)).then_some(ip.protocol),
            ports: match headers.l4.map(|l4| l4.kind) {
                Ok(L4Kind::Tcp { src, dst, .. } | L4Kind::Udp { src, dst }) => Some((src.0, dst.0)),
                _ => None,
            },
        }
    }

    /// The source, if it can be told whether it has an address.
    pub const fn src(&self) -> Option<Option<IpAddr>> {
        match self {
            Self::Ip { src, .. } => Some(Some(*src)),
            Self::Other => Some(None),
            Self::Unreadable => None,
        }
    }

    /// The same of the destination.
    pub const fn dst(&self) -> Option<Option<IpAddr>> {
        match self {
            Self::Ip { dst, .. } => Some(Some(*dst)),
            Self::Other => Some(None),
            Self::Unreadable => None,
        }
    }

    pub const fn ports(&self) -> Option<(u16, u16)> {
        match self {
            Self::Ip { ports, .. } => *ports,
            Self::Other | Self::Unreadable => None,
        }
    }
}

/// Whether somebody may open a flow to somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Question {
    pub from: Party,
    pub to: Party,
    pub content: Content,
    /// What counts where no rule fits.
    pub otherwise: Result<(), DropReason>,
}

impl Question {
    /// Of the flow that a packet may open.
    pub fn of(
        headers: &Headers,
        from: Party,
        to: Party,
        otherwise: Result<(), DropReason>,
    ) -> Self {
        Self {
            from,
            to,
            content: Content::of(headers),
            otherwise,
        }
    }

    /// The same between ends that were translated.
    pub fn between(mut self, new_src: L4Addr, new_dst: L4Addr) -> Self {
        if let Content::Ip {
            src, dst, ports, ..
        } = &mut self.content
        {
            (*src, *dst) = (new_src.ip, new_dst.ip);
            if let Some(ports) = ports {
                *ports = (new_src.l4_port.0, new_dst.l4_port.0);
            }
        }
        self
    }

    /// Of the flow that a packet answers.
    pub fn flipped(&self) -> Self {
        let content = match self.content {
            Content::Ip {
                src,
                dst,
                protocol,
                ports,
            } => Content::Ip {
                src: dst,
                dst: src,
                protocol,
                ports: ports.map(|(src, dst)| (dst, src)),
            },
            other => other,
        };
        Self {
            from: self.to,
            to: self.from,
            content,
            otherwise: self.otherwise,
        }
    }
}

/// Whether a segment could not work without such frames: ARP, neighbour and router discovery, and
/// what tells who listens to which group.
pub(super) fn is_of_the_segment(headers: &Headers) -> bool {
    if headers.ethertype == ethertype::ARP {
        return true;
    }
    match (headers.ip(), headers.l4.map(|l4| l4.kind)) {
        (Some(ip), Ok(L4Kind::IcmpOther { icmp_type })) if ip.src.is_ipv6() => {
            matches!(icmp_type, 130..=137 | 143)
        }
        (Some(ip), _) => ip.protocol == protocol::IGMP,
        (None, _) => false,
    }
}

/// Whether a frame asks a DHCP server for something.
pub(super) fn is_dhcp_request(headers: &Headers) -> bool {
    match headers.l4.map(|l4| l4.kind) {
        Ok(L4Kind::Udp { src, dst }) => matches!((src.0, dst.0), (68, 67) | (546, 547)),
        Ok(_) | Err(_) => false,
    }
}

/// Whether a packet is a fragment other than the first.
pub(super) fn is_later_fragment(headers: &Headers) -> bool {
    headers.l4 == Err(HeaderError::LaterFragment)
}
