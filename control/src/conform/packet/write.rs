//! Packets as the probes write them: whole, checksums included, and fragmented by hand where a probe
//! says so.

use std::net::{IpAddr, Ipv6Addr};

use dataplane_core::checksum::{self, Sum};
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader,
};

use super::{Family, Message, Segment, flags};

/// The TTL that the probes send with, as most hosts do.
pub const TTL: u8 = 64;
/// The window of the probes' TCP segments.
const WINDOW: u16 = 64_240;

/// The head of a packet to be written; both addresses are of one family.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Time to live; IPv6 calls it the hop limit.
    pub ttl: u8,
    /// IPv4: DF, which every IPv6 packet has in effect.
    pub dont_fragment: bool,
}

impl Head {
    /// A head as most packets have one.
    pub const fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self {
            src,
            dst,
            ttl: TTL,
            dont_fragment: false,
        }
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        Family::of(self.src)
    }

    fn packet(&self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let (source, destination) = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header {
                    dont_fragment: self.dont_fragment,
                    time_to_live: self.ttl,
                    protocol,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv4Header::default()
                };
                set_payload_size(&mut ip, payload.len());
                return [&ip.to_bytes(), payload].concat();
            }
            (src, dst) => (octets(src), octets(dst)),
        };
        let ip = Ipv6Header {
            payload_length: u16::try_from(payload.len()).unwrap_or(u16::MAX),
            next_header: protocol,
            hop_limit: self.ttl,
            source,
            destination,
            ..Ipv6Header::default()
        };
        [&ip.to_bytes(), payload].concat()
    }

    /// A UDP datagram.
    pub fn udp(&self, (src_port, dst_port): (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut udp = udp_header((src_port, dst_port), payload);
        let sum = Sum::pseudo_header(self.src, self.dst, 17, 8 + payload.len())
            .add_bytes(&udp.to_bytes())
            .add_bytes(payload)
            .checksum();
        udp.checksum = checksum::udp_form(sum);
        self.packet(IpNumber::UDP, &[&udp.to_bytes(), payload].concat())
    }

    /// A UDP datagram without a checksum (RFC 768).
    pub fn udp_without_checksum(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let udp = udp_header(ports, payload);
        self.packet(IpNumber::UDP, &[&udp.to_bytes(), payload].concat())
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
        tcp.checksum = Sum::pseudo_header(self.src, self.dst, 6, size)
            .add_bytes(&tcp.to_bytes())
            .add_bytes(payload)
            .checksum();
        self.packet(IpNumber::TCP, &[&tcp.to_bytes(), payload].concat())
    }

    /// An ICMP message; `rest` is the second half of its header (RFC 792, RFC 4443).
    pub fn icmp(&self, message: Message, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let family = self.family();
        let (kind, code) = message.kind(family);
        let mut bytes = [&[kind, code, 0, 0], &rest[..], payload].concat();
        let pseudo = match family {
            Family::V4 => Sum::ZERO,
            Family::V6 => Sum::pseudo_header(self.src, self.dst, family.icmp(), bytes.len()),
        };
        let sum = pseudo.add_bytes(&bytes).checksum();
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(IpNumber(family.icmp()), &bytes)
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    let v6: Ipv6Addr = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    v6.octets()
}

fn udp_header((source_port, destination_port): (u16, u16), payload: &[u8]) -> UdpHeader {
    UdpHeader {
        source_port,
        destination_port,
        length: u16::try_from(8 + payload.len()).unwrap_or(u16::MAX),
        checksum: 0,
    }
}

fn set_payload_size(ip: &mut Ipv4Header, size: usize) {
    ip.total_len = u16::try_from(ip.header_len() + size).unwrap_or(u16::MAX);
    ip.header_checksum = ip.calc_header_checksum();
}

/// Cuts a packet into fragments of at most `size` bytes of payload each, which is rounded down to
/// the multiple of 8 that RFC 791 and RFC 8200 want. In order, with this identification.
pub fn fragments(packet: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let size = (size / 8 * 8).max(8);
    if let Ok((header, payload)) = Ipv4Header::from_slice(packet) {
        return cut(payload, size, |more_fragments, fragment_offset, piece| {
            let mut ip = Ipv4Header {
                identification: id,
                more_fragments,
                fragment_offset,
                ..header.clone()
            };
            set_payload_size(&mut ip, piece.len());
            [&ip.to_bytes(), piece].concat()
        });
    }
    let Ok((header, payload)) = Ipv6Header::from_slice(packet) else {
        return Vec::new();
    };
    cut(payload, size, |more_fragments, fragment_offset, piece| {
        let fragment = Ipv6FragmentHeader {
            next_header: header.next_header,
            fragment_offset,
            more_fragments,
            identification: id.into(),
        };
        let mut ip = header.clone();
        ip.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
        let payload_length = Ipv6FragmentHeader::LEN + piece.len();
        ip.payload_length = u16::try_from(payload_length).unwrap_or(u16::MAX);
        [&ip.to_bytes()[..], &fragment.to_bytes(), piece].concat()
    })
}

/// Makes a packet of every piece: of whether more follow, its offset, and itself.
fn cut(
    payload: &[u8],
    size: usize,
    make: impl Fn(bool, IpFragOffset, &[u8]) -> Vec<u8>,
) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let piece = |(index, piece): (usize, &[u8])| {
        let units = u16::try_from(index * size / 8).unwrap_or(u16::MAX);
        let offset = IpFragOffset::try_new(units).unwrap_or_default();
        make(index + 1 < count, offset, piece)
    };
    payload.chunks(size).enumerate().map(piece).collect()
}
