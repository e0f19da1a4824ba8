//! IPv4 packets as the probes write and read them.
//!
//! Written whole, checksums included, and fragmented by hand where a probe says so; read leniently,
//! since what a NAT makes of a packet may be anything. IP options are neither written nor looked at.
//! Pure functions.

use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane_core::checksum::{self, Sum};
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, TcpHeader, TcpSlice, UdpHeader,
};

/// The TTL that the probes send with, as most hosts do.
pub const TTL: u8 = 64;
/// The window of the probes' TCP segments.
const WINDOW: u16 = 64_240;

/// TCP flags, by their bits (RFC 9293 section 3.1).
pub mod flags {
    /// FIN
    pub const FIN: u8 = 0x01;
    /// SYN
    pub const SYN: u8 = 0x02;
    /// RST
    pub const RST: u8 = 0x04;
    /// ACK
    pub const ACK: u8 = 0x10;
    /// The ones that tell segments apart here.
    pub const TELLING: u8 = FIN | SYN | RST | ACK;
}

/// The head of a packet to be written.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Identification; 0 leaves it to the kernel.
    pub id: u16,
    /// DF.
    pub dont_fragment: bool,
}

impl Head {
    /// A head as most packets have one.
    pub const fn new(src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self {
            src,
            dst,
            ttl: TTL,
            id: 0,
            dont_fragment: false,
        }
    }

    fn ip(&self, protocol: IpNumber, payload: &[u8]) -> Ipv4Header {
        let mut ip = Ipv4Header {
            identification: self.id,
            dont_fragment: self.dont_fragment,
            time_to_live: self.ttl,
            protocol,
            source: self.src.octets(),
            destination: self.dst.octets(),
            ..Ipv4Header::default()
        };
        set_payload_size(&mut ip, payload.len());
        ip
    }

    fn packet(&self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut ip = self.ip(protocol, payload);
        ip.header_checksum = ip.calc_header_checksum();
        [&ip.to_bytes(), payload].concat()
    }

    /// A UDP datagram.
    pub fn udp(&self, (src_port, dst_port): (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut udp = self.udp_header((src_port, dst_port), payload);
        let sum = Sum::pseudo_header(self.src.into(), self.dst.into(), 17, 8 + payload.len())
            .add_bytes(&udp.to_bytes())
            .add_bytes(payload)
            .checksum();
        udp.checksum = checksum::udp_form(sum);
        self.packet(IpNumber::UDP, &[&udp.to_bytes(), payload].concat())
    }

    /// A UDP datagram without a checksum (RFC 768).
    pub fn udp_without_checksum(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let udp = self.udp_header(ports, payload);
        self.packet(IpNumber::UDP, &[&udp.to_bytes(), payload].concat())
    }

    fn udp_header(&self, (source_port, destination_port): (u16, u16), payload: &[u8]) -> UdpHeader {
        UdpHeader {
            source_port,
            destination_port,
            length: u16::try_from(8 + payload.len()).unwrap_or(u16::MAX),
            checksum: 0,
        }
    }

    /// A TCP segment.
    pub fn tcp(
        &self,
        (src_port, dst_port): (u16, u16),
        segment: Segment,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut tcp = TcpHeader::new(src_port, dst_port, segment.seq, WINDOW);
        tcp.acknowledgment_number = segment.ack;
        tcp.fin = segment.flags & flags::FIN != 0;
        tcp.syn = segment.flags & flags::SYN != 0;
        tcp.rst = segment.flags & flags::RST != 0;
        tcp.ack = segment.flags & flags::ACK != 0;
        tcp.psh = !payload.is_empty();
        let size = tcp.header_len() + payload.len();
        tcp.checksum = Sum::pseudo_header(self.src.into(), self.dst.into(), 6, size)
            .add_bytes(&tcp.to_bytes())
            .add_bytes(payload)
            .checksum();
        self.packet(IpNumber::TCP, &[&tcp.to_bytes(), payload].concat())
    }

    /// An ICMP message; `rest` is the second half of its header (RFC 792).
    pub fn icmp(&self, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut message = [&[kind, code, 0, 0], &rest[..], payload].concat();
        let sum = Sum::ZERO.add_bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(IpNumber::ICMP, &message)
    }
}

fn set_payload_size(ip: &mut Ipv4Header, size: usize) {
    ip.total_len = u16::try_from(ip.header_len() + size).unwrap_or(u16::MAX);
}

/// What tells one TCP segment from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; 0 without the flag.
    pub ack: u32,
    /// Bits of [`flags`].
    pub flags: u8,
}

/// Cuts a packet into fragments of at most `size` bytes of payload each, which is rounded down to
/// the multiple of 8 that RFC 791 wants. In order; the packet must have an identification.
pub fn fragments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let Ok((header, payload)) = Ipv4Header::from_slice(packet) else {
        return Vec::new();
    };
    let size = (size / 8 * 8).max(8);
    let count = payload.len().div_ceil(size);
    let cut = |(index, piece): (usize, &[u8])| {
        let mut ip = header.clone();
        ip.more_fragments = index + 1 < count;
        let units = u16::try_from(index * size / 8).unwrap_or(u16::MAX);
        ip.fragment_offset = IpFragOffset::try_new(units).unwrap_or_default();
        set_payload_size(&mut ip, piece.len());
        ip.header_checksum = ip.calc_header_checksum();
        [&ip.to_bytes(), piece].concat()
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// A packet as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Whether the IP header's checksum holds.
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
    /// Reads a packet; `None` when it is not IPv4 or shorter than it says.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let ip = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        let payload = bytes.get(ip.slice().len()..usize::from(ip.total_len()))?;
        let protocol = ip.protocol().0;
        let (src, dst) = (ip.source_addr(), ip.destination_addr());
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
            id: ip.identification(),
            header_sum_holds: ip.to_header().calc_header_checksum() == ip.header_checksum(),
            body,
        })
    }

    /// Source and destination, when it has ports.
    pub fn ends(&self) -> Option<(SocketAddrV4, SocketAddrV4)> {
        match &self.body {
            Body::Udp { ports, .. } | Body::Tcp { ports, .. } => Some((
                SocketAddrV4::new(self.src, ports.0),
                SocketAddrV4::new(self.dst, ports.1),
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

    /// The ICMP type and code.
    pub fn icmp_kind(&self) -> Option<(u8, u8)> {
        match &self.body {
            Body::Icmp { kind, .. } => Some(*kind),
            Body::Udp { .. } | Body::Tcp { .. } | Body::Fragment { .. } | Body::Other { .. } => {
                None
            }
        }
    }

    /// The MTU that fragmentation needed tells (RFC 1191).
    pub fn next_hop_mtu(&self) -> Option<u16> {
        match &self.body {
            Body::Icmp {
                kind: (3, 4), rest, ..
            } => Some(u16::from_be_bytes([rest[2], rest[3]])),
            _ => None,
        }
    }

    /// The identifier of an ICMP echo request (8) or reply (0).
    pub fn echo_id(&self) -> Option<u16> {
        match &self.body {
            Body::Icmp {
                kind: (0 | 8, 0),
                rest,
                ..
            } => Some(u16::from_be_bytes([rest[0], rest[1]])),
            _ => None,
        }
    }
}

impl Body {
    fn read(protocol: u8, src: Ipv4Addr, dst: Ipv4Addr, bytes: &[u8]) -> Self {
        let pseudo = Sum::pseudo_header(src.into(), dst.into(), protocol, bytes.len());
        let other = Self::Other { protocol };
        match protocol {
            1 => {
                let Some((&[kind, code, _, _, a, b, c, d], payload)) = bytes.split_first_chunk()
                else {
                    return other;
                };
                Self::Icmp {
                    kind: (kind, code),
                    rest: [a, b, c, d],
                    sum: check(Sum::ZERO, bytes, None),
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
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Whether the quoted IP header's checksum holds.
    pub header_sum_holds: bool,
    /// What was quoted of the transport header and its payload, at least 8 bytes.
    pub transport: Vec<u8>,
}

impl Quoted {
    /// Reads what an ICMP error carries.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let ip = Ipv4HeaderSlice::from_slice(payload).ok()?;
        let transport = payload.get(ip.slice().len()..)?;
        (transport.len() >= 8).then(|| Self {
            src: ip.source_addr(),
            dst: ip.destination_addr(),
            header_sum_holds: ip.to_header().calc_header_checksum() == ip.header_checksum(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    #[test]
    fn what_is_written_is_read_and_its_checksums_hold() {
        let udp = Packet::read(&Head::new(A, B).udp((5, 7), b"hello")).unwrap();
        assert!(udp.header_sum_holds);
        assert_eq!(udp.transport_sum(), Some(Checked::Holds));
        assert_eq!(udp.payload(), b"hello");
        let ends = udp.ends().unwrap();
        assert_eq!(ends.0, SocketAddrV4::new(A, 5));
        assert_eq!(ends.1, SocketAddrV4::new(B, 7));
        let segment = Segment {
            seq: 0xffff_fff0,
            ack: 9,
            flags: flags::SYN | flags::ACK,
        };
        let tcp = Packet::read(&Head::new(A, B).tcp((5, 7), segment, b"")).unwrap();
        assert_eq!(tcp.segment(), Some(segment));
        assert_eq!(tcp.transport_sum(), Some(Checked::Holds));
        let ping = Packet::read(&Head::new(A, B).icmp(8, 0, [1, 2, 0, 1], b"ping")).unwrap();
        assert_eq!(ping.echo_id(), Some(0x0102));
        assert_eq!(ping.transport_sum(), Some(Checked::Holds));
    }

    #[test]
    fn a_wrong_a_missing_and_a_half_done_checksum_are_told_apart() {
        let mut packet = Head::new(A, B).udp((5, 7), b"hello");
        packet[26] ^= 1;
        let sum = |packet: &[u8]| Packet::read(packet).unwrap().transport_sum();
        assert_eq!(sum(&packet), Some(Checked::Wrong));
        let none = Head::new(A, B).udp_without_checksum((5, 7), b"hello");
        assert_eq!(sum(&none), Some(Checked::Absent));
        let half = Sum::pseudo_header(A.into(), B.into(), 17, 13).folded();
        packet[26..28].copy_from_slice(&half.to_be_bytes());
        assert_eq!(sum(&packet), Some(Checked::Holds));
    }

    #[test]
    fn fragments_come_together_in_any_order_and_not_with_a_gap() {
        let mut head = Head::new(A, B);
        head.id = 77;
        let payload: Vec<u8> = (0..100).collect();
        let whole = head.udp((5, 7), &payload);
        let mut pieces: Vec<Packet> = fragments(&whole, 45)
            .iter()
            .map(|piece| Packet::read(piece).unwrap())
            .collect();
        assert_eq!(pieces.len(), 3, "40 bytes each");
        pieces.reverse();
        let all: Vec<&Packet> = pieces.iter().collect();
        let together = reassemble(&all).unwrap();
        assert_eq!(together.payload(), payload);
        assert_eq!(together.transport_sum(), Some(Checked::Holds));
        for missing in 0..3 {
            let mut some = all.clone();
            some.remove(missing);
            assert_eq!(reassemble(&some), None, "without the piece {missing}");
        }
    }

    #[test]
    fn a_quoted_packet_is_read_with_its_ports() {
        let udp = Head::new(A, B).udp((500, 700), b"hello");
        let quoted = Quoted::read(&udp[..28]).unwrap();
        assert_eq!((quoted.src, quoted.dst), (A, B));
        assert_eq!(quoted.ports(), (500, 700));
        assert!(quoted.header_sum_holds);
        assert_eq!(Quoted::read(&udp[..27]), None, "less than 8 bytes");
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        let packets = [
            Head::new(A, B).udp((5, 7), b"hello"),
            Head::new(A, B).icmp(3, 3, [0; 4], b"abcdefgh"),
        ];
        for packet in packets {
            for end in 0..packet.len() {
                let _ = Packet::read(&packet[..end]);
                let _ = Quoted::read(&packet[..end]);
            }
        }
    }
}
