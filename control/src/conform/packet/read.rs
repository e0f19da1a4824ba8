//! Packets as they were seen, and what ICMP errors quote of others.

use std::net::{IpAddr, SocketAddr};

use dataplane_core::checksum::Sum;
use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeader, Ipv6Header, Ipv6HeaderSlice, TcpSlice, UdpHeader,
};

use super::{Family, Message, Segment};

/// A packet as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Time to live.
    pub ttl: u8,
    /// Identification; 0 for an IPv6 packet that is no fragment.
    pub id: u32,
    /// Whether the IP header's checksum holds; IPv6 has none.
    pub header_sum_holds: bool,
    /// What it carries.
    pub body: Body,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Whether its checksum holds.
        sum: Checked,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Numbers and flags.
        segment: Segment,
        /// Whether its checksum holds.
        sum: Checked,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// An ICMP message.
    Icmp {
        /// Type and code.
        kind: (u8, u8),
        /// The second half of the header.
        rest: [u8; 4],
        /// Whether its checksum holds.
        sum: Checked,
        /// What follows the header.
        payload: Vec<u8>,
    },
    /// A fragment, the first one included.
    Fragment {
        /// IP protocol.
        protocol: u8,
        /// Offset in bytes.
        offset: usize,
        /// Whether more follow.
        more: bool,
        /// Its part of the payload.
        payload: Vec<u8>,
    },
    /// Another protocol, or a transport header that is cut off.
    Other {
        /// IP protocol.
        protocol: u8,
    },
}

/// What became of a transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It holds, or a device was left to finish it.
    Holds,
    /// It is wrong.
    Wrong,
    /// UDP: there is none.
    Absent,
}

impl Packet {
    /// Reads a packet; `None` when it is neither IPv4 nor IPv6, or shorter than it says.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::read_v4(bytes),
            6 => Self::read_v6(bytes),
            _ => None,
        }
    }

    fn read_v4(bytes: &[u8]) -> Option<Self> {
        let ip = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        let payload = bytes.get(ip.slice().len()..usize::from(ip.total_len()))?;
        let protocol = ip.protocol().0;
        let (src, dst) = (ip.source_addr().into(), ip.destination_addr().into());
        let body = if ip.is_fragmenting_payload() {
            Body::Fragment {
                protocol,
                offset: usize::from(ip.fragments_offset().value()) * 8,
                more: ip.more_fragments(),
                payload: payload.to_vec(),
            }
        } else {
            Body::read(protocol, src, dst, payload)
        };
        Some(Self {
            src,
            dst,
            ttl: ip.ttl(),
            id: ip.identification().into(),
            header_sum_holds: ip.to_header().calc_header_checksum() == ip.header_checksum(),
            body,
        })
    }

    fn read_v6(bytes: &[u8]) -> Option<Self> {
        let ip = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        let end = Ipv6Header::LEN + usize::from(ip.payload_length());
        let payload = bytes.get(Ipv6Header::LEN..end)?;
        let (src, dst) = (ip.source_addr().into(), ip.destination_addr().into());
        let mut id = 0;
        let body = if ip.next_header() == IpNumber::IPV6_FRAGMENTATION_HEADER {
            let (fragment, payload) = Ipv6FragmentHeader::from_slice(payload).ok()?;
            id = fragment.identification;
            let protocol = fragment.next_header.0;
            if fragment.is_fragmenting_payload() {
                Body::Fragment {
                    protocol,
                    offset: usize::from(fragment.fragment_offset.value()) * 8,
                    more: fragment.more_fragments,
                    payload: payload.to_vec(),
                }
            } else {
                Body::read(protocol, src, dst, payload)
            }
        } else {
            Body::read(ip.next_header().0, src, dst, payload)
        };
        Some(Self {
            src,
            dst,
            ttl: ip.hop_limit(),
            id,
            header_sum_holds: true,
            body,
        })
    }

    /// Source and destination, when it has ports.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        match &self.body {
            Body::Udp { ports, .. } | Body::Tcp { ports, .. } => Some((
                SocketAddr::new(self.src, ports.0),
                SocketAddr::new(self.dst, ports.1),
            )),
            Body::Icmp { .. } | Body::Fragment { .. } | Body::Other { .. } => None,
        }
    }

    /// What follows the transport header.
    pub fn payload(&self) -> &[u8] {
        match &self.body {
            Body::Udp { payload, .. } | Body::Tcp { payload, .. } | Body::Icmp { payload, .. } => {
                payload
            }
            Body::Fragment { .. } | Body::Other { .. } => &[],
        }
    }

    /// The transport checksum of a packet that has one.
    pub fn transport_sum(&self) -> Option<Checked> {
        match &self.body {
            Body::Udp { sum, .. } | Body::Tcp { sum, .. } | Body::Icmp { sum, .. } => Some(*sum),
            Body::Fragment { .. } | Body::Other { .. } => None,
        }
    }

    /// The TCP segment.
    pub fn segment(&self) -> Option<Segment> {
        match &self.body {
            Body::Tcp { segment, .. } => Some(*segment),
            Body::Udp { .. } | Body::Icmp { .. } | Body::Fragment { .. } | Body::Other { .. } => {
                None
            }
        }
    }

    /// Whether it is this ICMP message.
    pub fn is(&self, message: Message) -> bool {
        match &self.body {
            Body::Icmp { kind, .. } => *kind == message.kind(Family::of(self.src)),
            Body::Udp { .. } | Body::Tcp { .. } | Body::Fragment { .. } | Body::Other { .. } => {
                false
            }
        }
    }

    /// The MTU that *too big* tells (RFC 1191, RFC 4443).
    pub fn next_hop_mtu(&self) -> Option<u32> {
        match &self.body {
            Body::Icmp { rest, .. } if self.is(Message::TooBig) => Some(match self.src {
                IpAddr::V4(_) => u16::from_be_bytes([rest[2], rest[3]]).into(),
                IpAddr::V6(_) => u32::from_be_bytes(*rest),
            }),
            _ => None,
        }
    }

    /// The identifier of an ICMP echo request or reply.
    pub fn echo_id(&self) -> Option<u16> {
        match &self.body {
            Body::Icmp { rest, .. }
                if self.is(Message::EchoRequest) || self.is(Message::EchoReply) =>
            {
                Some(u16::from_be_bytes([rest[0], rest[1]]))
            }
            _ => None,
        }
    }
}

impl Body {
    fn read(protocol: u8, src: IpAddr, dst: IpAddr, bytes: &[u8]) -> Self {
        let family = Family::of(src);
        let pseudo = Sum::pseudo_header(src, dst, protocol, bytes.len());
        let other = Self::Other { protocol };
        match protocol {
            _ if protocol == family.icmp() => {
                let Some((&[kind, code, _, _, a, b, c, d], payload)) = bytes.split_first_chunk()
                else {
                    return other;
                };
                Self::Icmp {
                    kind: (kind, code),
                    rest: [a, b, c, d],
                    sum: match family {
                        Family::V4 => check(Sum::ZERO, bytes, None),
                        Family::V6 => check(pseudo, bytes, None),
                    },
                    payload: payload.to_vec(),
                }
            }
            6 => TcpSlice::from_slice(bytes).map_or(other, |tcp| Self::Tcp {
                ports: (tcp.source_port(), tcp.destination_port()),
                segment: Segment {
                    seq: tcp.sequence_number(),
                    ack: tcp.acknowledgment_number(),
                    flags: tcp.header_slice()[13],
                },
                sum: check(pseudo, bytes, Some(tcp.checksum())),
                payload: tcp.payload().to_vec(),
            }),
            17 => UdpHeader::from_slice(bytes).map_or(other, |(udp, payload)| Self::Udp {
                ports: (udp.source_port, udp.destination_port),
                sum: match udp.checksum {
                    0 => Checked::Absent,
                    field => check(pseudo, bytes, Some(field)),
                },
                payload: payload.to_vec(),
            }),
            _ => other,
        }
    }
}

/// Sums up. A socket's own packet on a virtual cable carries the pseudo-header's sum alone: the
/// rest is left to a device, and no fault of the NAT's.
fn check(pseudo: Sum, bytes: &[u8], field: Option<u16>) -> Checked {
    let whole = pseudo.add_bytes(bytes).folded() == 0xffff;
    let partial = field.is_some_and(|field| field == pseudo.folded());
    if whole || partial {
        Checked::Holds
    } else {
        Checked::Wrong
    }
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Whether the quoted IP header's checksum holds; IPv6 has none.
    pub header_sum_holds: bool,
    /// What was quoted of the transport header and its payload, at least 8 bytes.
    pub transport: Vec<u8>,
}

impl Quoted {
    /// Reads what an ICMP error carries.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (src, dst, header_sum_holds, transport) = match payload.first()? >> 4 {
            4 => {
                let ip = Ipv4HeaderSlice::from_slice(payload).ok()?;
                let holds = ip.to_header().calc_header_checksum() == ip.header_checksum();
                let transport = payload.get(ip.slice().len()..)?;
                let (src, dst) = (ip.source_addr(), ip.destination_addr());
                (src.into(), dst.into(), holds, transport)
            }
            6 => {
                let ip = Ipv6HeaderSlice::from_slice(payload).ok()?;
                let transport = payload.get(Ipv6Header::LEN..)?;
                let (src, dst) = (ip.source_addr(), ip.destination_addr());
                (src.into(), dst.into(), true, transport)
            }
            _ => return None,
        };
        (transport.len() >= 8).then(|| Self {
            src,
            dst,
            header_sum_holds,
            transport: transport.to_vec(),
        })
    }

    /// The two 16-bit fields that begin a UDP or TCP header.
    pub fn ports(&self) -> (u16, u16) {
        let word = |at: usize| u16::from_be_bytes([self.transport[at], self.transport[at + 1]]);
        (word(0), word(2))
    }
}

/// Puts fragments of one packet together; `None` while something is missing.
pub fn reassemble(fragments: &[&Packet]) -> Option<Packet> {
    let first = fragments.first()?;
    let mut pieces = Vec::new();
    let mut protocol_seen = None;
    for fragment in fragments {
        if let Body::Fragment {
            protocol,
            offset,
            more,
            payload,
        } = &fragment.body
        {
            protocol_seen = Some(*protocol);
            pieces.push((*offset, *more, payload));
        }
    }
    pieces.sort_by_key(|(offset, _, _)| *offset);
    let mut whole = Vec::new();
    let mut ended = false;
    for (offset, more, payload) in pieces {
        if offset != whole.len() {
            // A copy of what is there already is no gap.
            if offset < whole.len() {
                continue;
            }
            return None;
        }
        whole.extend_from_slice(payload);
        ended = !more;
    }
    let body = Body::read(protocol_seen?, first.src, first.dst, &whole);
    ended.then(|| Packet {
        body,
        ..(*first).clone()
    })
}
