//! IPv4 and IPv6 packets as the probes write and read them.
//!
//! Written whole, and read leniently, since what a NAT makes of a packet may be anything. IPv4 options
//! and IPv6 extension headers other than the fragment header are neither written nor looked at. Pure
//! functions.

mod message;
mod read;
mod write;

pub use message::{Family, Message};
pub use read::{Body, Checked, Packet, Quoted, reassemble};
pub use write::{Head, TTL, fragments};

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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use dataplane_core::checksum::Sum;

    use super::*;

    /// An inside address and a remote, of either family.
    fn pairs() -> [(IpAddr, IpAddr); 2] {
        [
            ([10, 0, 0, 2].into(), [192, 0, 2, 7].into()),
            ("fd00::2".parse().unwrap(), "2001:db8::7".parse().unwrap()),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_its_checksums_hold() {
        for (a, b) in pairs() {
            let udp = Packet::read(&Head::new(a, b).udp((5, 7), b"hello")).unwrap();
            assert!(udp.header_sum_holds);
            assert_eq!(udp.ttl, TTL);
            assert_eq!(udp.transport_sum(), Some(Checked::Holds));
            assert_eq!(udp.payload(), b"hello");
            let ends = udp.ends().unwrap();
            assert_eq!(ends.0, SocketAddr::new(a, 5));
            assert_eq!(ends.1, SocketAddr::new(b, 7));
            let segment = Segment {
                seq: 0xffff_fff0,
                ack: 9,
                flags: flags::SYN | flags::ACK,
            };
            let tcp = Packet::read(&Head::new(a, b).tcp((5, 7), segment, b"")).unwrap();
            assert_eq!(tcp.segment(), Some(segment));
            assert_eq!(tcp.transport_sum(), Some(Checked::Holds));
            let ping = Head::new(a, b).icmp(Message::EchoRequest, [1, 2, 0, 1], b"ping");
            let ping = Packet::read(&ping).unwrap();
            assert_eq!(ping.echo_id(), Some(0x0102));
            assert_eq!(ping.transport_sum(), Some(Checked::Holds));
            let rest = Message::mtu_field(1_300);
            let too_big = Packet::read(&Head::new(a, b).icmp(Message::TooBig, rest, &[0; 48]));
            assert_eq!(too_big.unwrap().next_hop_mtu(), Some(1_300));
        }
    }

    #[test]
    fn a_wrong_a_missing_and_a_half_done_checksum_are_told_apart() {
        for (a, b) in pairs() {
            let mut packet = Head::new(a, b).udp((5, 7), b"hello");
            let field = Family::of(a).header_size() + 6;
            packet[field] ^= 1;
            let sum = |packet: &[u8]| Packet::read(packet).unwrap().transport_sum();
            assert_eq!(sum(&packet), Some(Checked::Wrong));
            let none = Head::new(a, b).udp_without_checksum((5, 7), b"hello");
            assert_eq!(sum(&none), Some(Checked::Absent));
            let half = Sum::pseudo_header(a, b, 17, 13).folded();
            packet[field..field + 2].copy_from_slice(&half.to_be_bytes());
            assert_eq!(sum(&packet), Some(Checked::Holds));
            let mut ping = Head::new(a, b).icmp(Message::EchoRequest, [0; 4], b"ping");
            ping[field - 4] ^= 1;
            assert_eq!(sum(&ping), Some(Checked::Wrong));
        }
    }

    #[test]
    fn fragments_come_together_in_any_order_and_not_with_a_gap() {
        for (a, b) in pairs() {
            let payload: Vec<u8> = (0..100).collect();
            let whole = Head::new(a, b).udp((5, 7), &payload);
            let mut pieces: Vec<Packet> = fragments(&whole, 77, 45)
                .iter()
                .map(|piece| Packet::read(piece).unwrap())
                .collect();
            assert_eq!(pieces.len(), 3, "40 bytes each");
            assert!(pieces.iter().all(|piece| piece.id == 77));
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
    }

    #[test]
    fn a_quoted_packet_is_read_with_its_ports() {
        for (a, b) in pairs() {
            let udp = Head::new(a, b).udp((500, 700), b"hello");
            let end = Family::of(a).header_size() + 8;
            let quoted = Quoted::read(&udp[..end]).unwrap();
            assert_eq!((quoted.src, quoted.dst), (a, b));
            assert_eq!(quoted.ports(), (500, 700));
            assert!(quoted.header_sum_holds);
            assert_eq!(Quoted::read(&udp[..end - 1]), None, "less than 8 bytes");
        }
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        for (a, b) in pairs() {
            let udp = Head::new(a, b).udp((5, 7), b"hello");
            let error = Head::new(a, b).icmp(Message::PortUnreachable, [0; 4], b"abcdefgh");
            let fragment = fragments(&udp, 1, 8).remove(0);
            for packet in [udp, error, fragment] {
                for end in 0..packet.len() {
                    let _ = Packet::read(&packet[..end]);
                    let _ = Quoted::read(&packet[..end]);
                }
            }
        }
    }

    #[test]
    fn every_message_has_a_kind_of_its_own_in_either_family() {
        let all = [
            Message::EchoRequest,
            Message::EchoReply,
            Message::HostUnreachable,
            Message::ProtocolUnreachable,
            Message::PortUnreachable,
            Message::Prohibited,
            Message::TooBig,
            Message::TimeExceeded,
            Message::Rare,
            Message::Rarer,
        ];
        for (a, b) in pairs() {
            for one in all {
                let packet = Packet::read(&Head::new(a, b).icmp(one, [0; 4], b"")).unwrap();
                for other in all {
                    assert_eq!(packet.is(other), one == other, "{one:?} {other:?}");
                }
            }
        }
    }
}
