//! What the data path needs to know of a frame, read once at fixed offsets.
//!
//! A frame whose Ethernet header is whole can be bridged whatever follows, as the kernel bridge
//! does: errors in L3 and L4 are therefore kept as values, and only the stages that need those
//! layers (gateway, policy, port security) turn them into drops. etherparse is the oracle of the
//! property tests; it decodes for people, this decodes for the path.
//!
//! Limits: [`VLAN_TAGS_MAX`] tags, [`EXTENSION_HEADERS_MAX`] IPv6 extension headers.

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::{L4Port, MacAddr, VlanId};
use crate::l2;
use crate::verdict::DropReason;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_SIZE: usize = 14;
/// Bytes of one 802.1Q tag.
pub const VLAN_TAG_SIZE: usize = 4;
/// Tags that are looked through for L3: one of 802.1ad and one of 802.1Q.
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers that are looked through for L4: each of the six kinds of RFC 8200
/// section 4.1 once, and destination options twice. A longer chain has no known L4.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// `ETH_P_*` values of linux/if_ether.h.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
}

/// IANA protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// PIM.
    pub const PIM: u8 = 103;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;

    /// Whether it is an IPv6 header that others follow.
    pub const fn is_extension(protocol: u8) -> bool {
        matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
        )
    }
}

/// The parsed headers of one frame. Offsets count from the first byte of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC.
    pub dst: MacAddr,
    /// Source MAC.
    pub src: MacAddr,
    /// The outermost VLAN tag, if any.
    pub tag: Option<VlanTag>,
    /// EtherType after the tags that were looked through.
    pub ethertype: u16,
    /// Where L3 begins.
    pub l3_offset: usize,
    /// Network layer, or why it cannot be read.
    pub l3: Result<L3, HeaderError>,
    /// Transport layer, or why it cannot be read.
    pub l4: Result<L4, HeaderError>,
}

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// [`ethertype::VLAN`] or [`ethertype::QINQ`].
    pub tpid: u16,
    /// Priority (3 bits), drop eligible (1 bit), VLAN id (12 bits).
    pub tci: u16,
}

impl VlanTag {
    /// The 12-bit VLAN id.
    pub const fn vlan(self) -> VlanId {
        VlanId(self.tci & 0x0fff)
    }
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The frame ends within the header.
    Truncated,
    /// A length or version field contradicts the frame or the header itself.
    Inconsistent,
    /// The header is one that this parser does not look into.
    Unknown,
    /// A fragment other than the first: its L4 header travelled in another packet.
    LaterFragment,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "truncated",
            Self::Inconsistent => "inconsistent",
            Self::Unknown => "not looked into",
            Self::LaterFragment => "in an earlier fragment",
        })
    }
}

/// Network layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L3 {
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(Ip),
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 = request, 2 = reply.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address.
    pub sender: Ipv4Addr,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

/// What IPv4 and IPv6 headers have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes of IP header: IPv4 with options, IPv6 with the extension headers looked through.
    pub header_size: u16,
    /// Bytes of IP header and payload, as the header declares them.
    pub total_size: u32,
    /// Whether a router may not fragment it: the IPv4 DF bit; always for IPv6.
    pub dont_fragment: bool,
    /// Set for a fragment of a larger packet.
    pub fragment: Option<Fragment>,
}

/// Position of a fragment (RFC 791, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Offset of the payload in the original, in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Transport layer: where it begins and what tells its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L4 {
    /// Offset of the transport header in the frame.
    pub offset: usize,
    /// What it is.
    pub kind: L4Kind,
}

/// What a transport header says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Kind {
    /// TCP (RFC 9293).
    Tcp {
        /// Source port.
        src: L4Port,
        /// Destination port.
        dst: L4Port,
        /// The low eight flag bits: CWR ECE URG ACK PSH RST SYN FIN.
        flags: TcpFlags,
        /// Bytes of TCP header with options, 20..=60.
        header_size: u8,
    },
    /// UDP (RFC 768).
    Udp {
        /// Source port.
        src: L4Port,
        /// Destination port.
        dst: L4Port,
    },
    /// ICMP or ICMPv6 echo.
    Echo {
        /// Request or reply.
        request: bool,
        /// The query identifier.
        id: L4Port,
    },
    /// An ICMP or ICMPv6 error, which quotes a packet.
    IcmpError {
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
    },
    /// Another ICMP or ICMPv6 message, neighbour discovery included.
    IcmpOther {
        /// ICMP type.
        icmp_type: u8,
    },
}

/// TCP flag bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether any bit of `flags` is set.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }
}

impl Headers {
    /// No frame's headers.
    pub const NONE: Self = Self {
        dst: MacAddr::ZERO,
        src: MacAddr::ZERO,
        tag: None,
        ethertype: 0,
        l3_offset: ETHERNET_SIZE,
        l3: Err(HeaderError::Unknown),
        l4: Err(HeaderError::Unknown),
    };

    /// Reads the headers of `bytes`.
    ///
    /// # Errors
    /// [`DropReason::Runt`] when the Ethernet header is incomplete; nothing else.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let mut headers = Self::NONE;
        headers.read(bytes)?;
        Ok(headers)
    }

    /// Reads the headers of `bytes` in the place of [`Headers::NONE`]. The data path has them read
    /// where they stay: to copy what was just written in smaller pieces stalls the store buffer,
    /// which cost a bridged frame 12 ns of 37.
    ///
    /// # Errors
    /// As [`Headers::parse`].
    #[inline]
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        let Some(ethernet) = bytes.first_chunk::<ETHERNET_SIZE>() else {
            return Err(DropReason::Runt);
        };
        [self.dst, self.src] = l2::addresses(ethernet);
        let [.., e0, e1] = *ethernet;
        self.ethertype = u16::from_be_bytes([e0, e1]);
        if matches!(self.ethertype, ethertype::VLAN | ethertype::QINQ) {
            self.skip_tags(bytes);
        }
        match self.ethertype {
            ethertype::IPV4 => self.read_ipv4(bytes),
            ethertype::IPV6 => self.read_ipv6(bytes),
            ethertype::ARP => self.l3 = read_arp(bytes, self.l3_offset).map(L3::Arp),
            _ => {}
        }
        Ok(())
    }

    /// The IP header, when there is a readable one.
    #[inline]
    pub fn ip(&self) -> Option<&Ip> {
        match &self.l3 {
            Ok(L3::Ip(ip)) => Some(ip),
            Ok(L3::Arp(_)) | Err(_) => None,
        }
    }

    #[cold]
    fn skip_tags(&mut self, bytes: &[u8]) {
        for _ in 0..VLAN_TAGS_MAX {
            if !matches!(self.ethertype, ethertype::VLAN | ethertype::QINQ) {
                return;
            }
            let Some([t0, t1, e0, e1]) = array_at::<4>(bytes, self.l3_offset) else {
                self.l3 = Err(HeaderError::Truncated);
                return;
            };
            let tag = VlanTag {
                tpid: self.ethertype,
                tci: u16::from_be_bytes([t0, t1]),
            };
            self.tag = self.tag.or(Some(tag));
            self.ethertype = u16::from_be_bytes([e0, e1]);
            self.l3_offset += VLAN_TAG_SIZE;
        }
    }

    #[inline]
    fn read_ipv4(&mut self, bytes: &[u8]) {
        let at = self.l3_offset;
        let Some(fixed) = array_at::<20>(bytes, at) else {
            return self.fail(HeaderError::Truncated);
        };
        let header_size = usize::from(fixed[0] & 0x0f) * 4;
        let total_size = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if fixed[0] >> 4 != 4 || header_size < 20 || total_size < header_size {
            return self.fail(HeaderError::Inconsistent);
        }
        if bytes.len() < at + total_size {
            return self.fail(HeaderError::Truncated);
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let ip = Ip {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            protocol: fixed[9],
            ttl: fixed[8],
            header_size: header_size as u16,
            total_size: total_size as u32,
            dont_fragment: flags & 0x4000 != 0,
            fragment: (offset != 0 || more).then_some(Fragment { id, offset, more }),
        };
        self.l3 = Ok(L3::Ip(ip));
        self.l4 = if offset == 0 {
            read_l4(&bytes[..at + total_size], at + header_size, ip.protocol)
        } else {
            Err(HeaderError::LaterFragment)
        };
    }

    fn read_ipv6(&mut self, bytes: &[u8]) {
        let at = self.l3_offset;
        let Some(fixed) = array_at::<40>(bytes, at) else {
            return self.fail(HeaderError::Truncated);
        };
        if fixed[0] >> 4 != 6 {
            return self.fail(HeaderError::Inconsistent);
        }
        let total_size = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if bytes.len() < at + total_size {
            return self.fail(HeaderError::Truncated);
        }
        let packet = &bytes[..at + total_size];
        let address = |from: usize| {
            let octets: [u8; 16] = array_at(&fixed, from).unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let chain = walk_extensions(packet, at + 40, fixed[6]);
        let mut ip = Ip {
            src: address(8),
            dst: address(24),
            protocol: fixed[6],
            ttl: fixed[7],
            header_size: 40,
            total_size: total_size as u32,
            dont_fragment: true,
            fragment: None,
        };
        match chain {
            Ok(chain) => {
                ip.protocol = chain.protocol;
                ip.header_size = (chain.offset - at) as u16;
                ip.fragment = chain.fragment;
                self.l4 = match chain.fragment {
                    Some(Fragment { offset: 1.., .. }) => Err(HeaderError::LaterFragment),
                    Some(_) | None => read_l4(packet, chain.offset, chain.protocol),
                };
            }
            Err(error) => self.l4 = Err(error),
        }
        self.l3 = Ok(L3::Ip(ip));
    }

    fn fail(&mut self, error: HeaderError) {
        self.l3 = Err(error);
        self.l4 = Err(error);
    }
}

struct Chain {
    offset: usize,
    protocol: u8,
    fragment: Option<Fragment>,
}

/// Follows IPv6 extension headers (RFC 8200 section 4) to the transport header.
fn walk_extensions(packet: &[u8], offset: usize, next: u8) -> Result<Chain, HeaderError> {
    let mut chain = Chain {
        offset,
        protocol: next,
        fragment: None,
    };
    // Once more than there may be headers: the last turn finds what follows them.
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let size = match chain.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY => |len: u8| (usize::from(len) + 1) * 8,
            protocol::AUTHENTICATION => |len: u8| (usize::from(len) + 2) * 4,
            protocol::FRAGMENT => |_| 8,
            _ => return Ok(chain),
        };
        let head: [u8; 8] = array_at(packet, chain.offset).ok_or(HeaderError::Truncated)?;
        if chain.protocol == protocol::FRAGMENT {
            let position = u16::from_be_bytes([head[2], head[3]]);
            let fragment = Fragment {
                id: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
                offset: position & 0xfff8,
                more: position & 1 != 0,
            };
            chain.fragment = Some(fragment);
            if fragment.offset != 0 {
                // What follows is payload; its first bytes are not an extension header.
                return Ok(Chain {
                    offset: chain.offset + 8,
                    protocol: head[0],
                    ..chain
                });
            }
        }
        chain.offset += size(head[1]);
        chain.protocol = head[0];
        if chain.offset > packet.len() {
            return Err(HeaderError::Truncated);
        }
    }
    Err(HeaderError::Unknown)
}

/// Reads an ARP message; only Ethernet/IPv4 ARP is known.
fn read_arp(bytes: &[u8], at: usize) -> Result<Arp, HeaderError> {
    let arp: [u8; 28] = array_at(bytes, at).ok_or(HeaderError::Truncated)?;
    if arp[..6] != [0, 1, 0x08, 0x00, 6, 4] {
        return Err(HeaderError::Unknown);
    }
    Ok(Arp {
        operation: u16::from_be_bytes([arp[6], arp[7]]),
        sender_mac: MacAddr([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]),
        sender: Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]),
        target: Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]),
    })
}

/// Reads the transport header at `offset`; `packet` ends where the IP packet does.
#[inline]
pub(crate) fn read_l4(packet: &[u8], offset: usize, proto: u8) -> Result<L4, HeaderError> {
    let kind = match proto {
        protocol::TCP => read_tcp(packet, offset)?,
        protocol::UDP => read_udp(packet, offset)?,
        protocol::ICMP => read_icmp(packet, offset, (8, 0), |t| matches!(t, 3 | 4 | 5 | 11 | 12))?,
        protocol::ICMPV6 => read_icmp(packet, offset, (128, 129), |t| t < 128)?,
        _ => return Err(HeaderError::Unknown),
    };
    Ok(L4 { offset, kind })
}

#[inline]
fn read_tcp(packet: &[u8], offset: usize) -> Result<L4Kind, HeaderError> {
    let tcp: [u8; 20] = array_at(packet, offset).ok_or(HeaderError::Truncated)?;
    let header_size = (tcp[12] >> 4) * 4;
    if header_size < 20 {
        return Err(HeaderError::Inconsistent);
    }
    if packet.len() < offset + usize::from(header_size) {
        return Err(HeaderError::Truncated);
    }
    Ok(L4Kind::Tcp {
        src: L4Port(u16::from_be_bytes([tcp[0], tcp[1]])),
        dst: L4Port(u16::from_be_bytes([tcp[2], tcp[3]])),
        flags: TcpFlags(tcp[13]),
        header_size,
    })
}

#[inline]
fn read_udp(packet: &[u8], offset: usize) -> Result<L4Kind, HeaderError> {
    let udp: [u8; 8] = array_at(packet, offset).ok_or(HeaderError::Truncated)?;
    if u16::from_be_bytes([udp[4], udp[5]]) < 8 {
        return Err(HeaderError::Inconsistent);
    }
    Ok(L4Kind::Udp {
        src: L4Port(u16::from_be_bytes([udp[0], udp[1]])),
        dst: L4Port(u16::from_be_bytes([udp[2], udp[3]])),
    })
}

fn read_icmp(
    packet: &[u8],
    offset: usize,
    (request, reply): (u8, u8),
    is_error: impl Fn(u8) -> bool,
) -> Result<L4Kind, HeaderError> {
    let icmp: [u8; 8] = array_at(packet, offset).ok_or(HeaderError::Truncated)?;
    let icmp_type = icmp[0];
    Ok(if icmp_type == request || icmp_type == reply {
        let id = L4Port(u16::from_be_bytes([icmp[4], icmp[5]]));
        L4Kind::Echo {
            request: icmp_type == request,
            id,
        }
    } else if is_error(icmp_type) {
        L4Kind::IcmpError {
            icmp_type,
            code: icmp[1],
        }
    } else {
        L4Kind::IcmpOther { icmp_type }
    })
}

/// The `N` bytes at `offset`, or `None` past the end.
#[inline]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn the_offset_of_a_fragment_is_in_bytes_and_its_id_is_kept() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut frame, &[0; 64])
            .unwrap();
        frame[18..20].copy_from_slice(&0xbeefu16.to_be_bytes());
        for (word, offset, more) in [
            (0x2000u16, 0, true),
            (0x2003, 24, true),
            (0x1fff, 65_528, false),
        ] {
            frame[20..22].copy_from_slice(&word.to_be_bytes());
            let headers = Headers::parse(&frame).unwrap();
            let id = 0xbeef;
            assert_eq!(
                headers.ip().unwrap().fragment,
                Some(Fragment { id, offset, more })
            );
            assert_eq!(headers.l4.is_ok(), offset == 0);
        }
    }
}
