//! Frames: made for a test, garbled at random, and judged by etherparse, which shares no code with
//! the core.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane_core::addr::MacAddr;
use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::gso::Segmenter;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};
use fastrand::Rng;

use crate::world::{BLUE, HOST_MAC, RED, ROUTER_MAC, UPLINK_MAC, VAULT, gateway_mac, mac};

/// Between which stations a frame travels: source and destination.
#[derive(Clone, Copy, Debug)]
pub struct Link(pub MacAddr, pub MacAddr);

/// TCP flag bits as they stand in the header.
pub mod flags {
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// SYN and ACK.
    pub const SYN_ACK: u8 = 0x12;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// RST.
    pub const RST: u8 = 0x04;
    /// FIN and ACK.
    pub const FIN_ACK: u8 = 0x11;
}

/// The socket address that `text` writes.
///
/// # Panics
/// When it writes none.
pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no socket address"))
}

/// An Ethernet frame with an EtherType that nothing looks into.
pub fn plain(Link(src, dst): Link) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    frame
}

/// "Who has `target`? Tell `sender`."
pub fn arp_request(src: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let link = Link(src, MacAddr::BROADCAST);
    arp(link, ArpOperation::REQUEST, sender, (MacAddr::ZERO, target))
}

/// "`sender` is at the source MAC."
pub fn arp_reply(link: Link, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(link, ArpOperation::REPLY, sender, (link.1, target))
}

fn arp(
    Link(src, dst): Link,
    operation: ArpOperation,
    sender: Ipv4Addr,
    (target_mac, target): (MacAddr, Ipv4Addr),
) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &src.0,
        &sender.octets(),
        &target_mac.0,
        &target.octets(),
    )
    .expect("addresses of Ethernet and IPv4 fit");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src.0, dst.0)
        .arp(arp)
        .write(&mut frame)
        .expect("a vector takes everything");
    frame
}

/// A UDP datagram.
pub fn udp(link: Link, src: SocketAddr, dst: SocketAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip_builder(link, src.ip(), dst.ip(), ttl)
        .udp(src.port(), dst.port())
        .write(&mut frame, payload)
        .expect("the payload fits");
    frame
}

/// A TCP segment with the given flag bits.
pub fn tcp(link: Link, src: SocketAddr, dst: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut builder =
        ip_builder(link, src.ip(), dst.ip(), 64).tcp(src.port(), dst.port(), 1_000, 8_192);
    if flags & flags::SYN != 0 {
        builder = builder.syn();
    }
    if flags & flags::ACK != 0 {
        builder = builder.ack(1_000);
    }
    if flags & flags::RST != 0 {
        builder = builder.rst();
    }
    if flags & 1 != 0 {
        builder = builder.fin();
    }
    let mut frame = Vec::new();
    builder
        .write(&mut frame, payload)
        .expect("the payload fits");
    frame
}

/// An ICMP or ICMPv6 echo request or reply.
pub fn echo(link: Link, src: IpAddr, dst: IpAddr, request: bool, id: u16) -> Vec<u8> {
    let builder = ip_builder(link, src, dst, 64);
    let mut frame = Vec::new();
    let payload = b"are you there?";
    let written = match (src.is_ipv4(), request) {
        (true, true) => builder
            .icmpv4_echo_request(id, 1)
            .write(&mut frame, payload),
        (true, false) => builder.icmpv4_echo_reply(id, 1).write(&mut frame, payload),
        (false, true) => builder
            .icmpv6_echo_request(id, 1)
            .write(&mut frame, payload),
        (false, false) => builder.icmpv6_echo_reply(id, 1).write(&mut frame, payload),
    };
    written.expect("the payload fits");
    frame
}

/// A neighbour solicitation for `target`.
pub fn solicitation(src_mac: MacAddr, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = MacAddr([0x33, 0x33, 0xff, x, y, z]);
    let to = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(x),
        u16::from(y) << 8 | u16::from(z),
    );
    let mut payload = target.octets().to_vec();
    payload.extend([1, 1]);
    payload.extend(src_mac.0);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, group.0)
        .ipv6(src.octets(), to.octets(), 255)
        .icmpv6(etherparse::Icmpv6Type::NeighborSolicitation)
        .write(&mut frame, &payload)
        .expect("the payload fits");
    frame
}

/// An ICMP error of `icmp_type` and `code` from `src` that quotes the packet of `about`.
pub fn icmp_error(
    link: Link,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    (icmp_type, code): (u8, u8),
    about: &[u8],
) -> Vec<u8> {
    let quoted = &about[14..about.len().min(14 + 28)];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(link.0.0, link.1.0)
        .ipv4(src.octets(), dst.octets(), 64)
        .icmpv4_raw(icmp_type, code, [0; 4])
        .write(&mut frame, quoted)
        .expect("the payload fits");
    frame
}

fn ip_builder(
    Link(src_mac, dst_mac): Link,
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(src_mac.0, dst_mac.0);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), ttl),
        _ => panic!("{src} and {dst} are of two families"),
    }
}

/// Sets or clears DF of an untagged IPv4 frame.
pub fn set_dont_fragment(frame: &mut [u8], dont_fragment: bool) {
    frame[20] = frame[20] & 0xbf | u8::from(dont_fragment) << 6;
    repair_ipv4(frame);
}

/// Cuts an untagged IPv4 frame without options into fragments with `size` bytes of payload each.
pub fn fragments(frame: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8), "offsets count in units of 8 bytes");
    let (head, payload) = frame.split_at(34);
    let count = payload.len().div_ceil(size);
    let cut = |(index, piece): (usize, &[u8])| {
        let mut fragment = [head, piece].concat();
        fragment[16..18].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
        fragment[18..20].copy_from_slice(&id.to_be_bytes());
        let more = u16::from(index + 1 < count) << 13;
        let offset = (index * size / 8) as u16 | more;
        fragment[20..22].copy_from_slice(&offset.to_be_bytes());
        repair_ipv4(&mut fragment);
        fragment
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// Makes the IPv4 header checksum of an untagged frame right again.
pub fn repair_ipv4(frame: &mut [u8]) {
    if frame.len() >= 34 {
        frame[24..26].fill(0);
        let size = (usize::from(frame[14] & 0x0f) * 4).clamp(20, frame.len() - 14);
        let sum = checksum::ipv4_header(&frame[14..14 + size]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Puts an 802.1Q tag behind the MAC addresses.
pub fn tag(frame: &mut Vec<u8>, tpid: u16, vlan: u16) {
    let tag = [tpid.to_be_bytes(), vlan.to_be_bytes()].concat();
    frame.splice(12..12, tag);
}

/// Judges every checksum of a frame as it would be on a wire: what the offload leaves open is
/// completed first, and a GSO frame is judged by its segments.
///
/// # Errors
/// What is wrong, in words.
pub fn check(bytes: &[u8], offload: &Offload) -> Result<(), String> {
    let mut buf = FrameBuf::from_bytes(bytes);
    buf.offload = *offload;
    let mut outcome = Ok(());
    Segmenter::new()
        .segment(&buf, |segment| {
            if outcome.is_ok() {
                outcome = check_complete(segment.bytes());
            }
        })
        .map_err(|error| error.to_string())?;
    outcome
}

/// Judges every checksum of a complete frame. Fragments are judged by their IP header alone.
///
/// # Errors
/// What is wrong, in words.
pub fn check_complete(bytes: &[u8]) -> Result<(), String> {
    let packet = SlicedPacket::from_ethernet(bytes).map_err(|error| error.to_string())?;
    let equal = |what: &str, found: u16, wanted: u16| {
        if found == wanted {
            Ok(())
        } else {
            Err(format!(
                "{what} checksum is {found:#06x}, not {wanted:#06x}"
            ))
        }
    };
    match packet.net {
        Some(NetSlice::Ipv4(v4)) => {
            let ip = v4.header().to_header();
            equal("IPv4", ip.header_checksum, ip.calc_header_checksum())?;
            match packet.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let wanted = tcp.calc_checksum_ipv4(ip.source, ip.destination);
                    equal("TCP", tcp.checksum(), wanted.map_err(|e| e.to_string())?)
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    let header = udp.to_header();
                    let wanted = header.calc_checksum_ipv4(&ip, udp.payload());
                    equal("UDP", udp.checksum(), wanted.map_err(|e| e.to_string())?)
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    let wanted = icmp.icmp_type().calc_checksum(icmp.payload());
                    equal("ICMP", icmp.checksum(), wanted)
                }
                _ => Ok(()),
            }
        }
        Some(NetSlice::Ipv6(v6)) => {
            let ip = v6.header().to_header();
            match packet.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let wanted = tcp.calc_checksum_ipv6(ip.source, ip.destination);
                    equal("TCP", tcp.checksum(), wanted.map_err(|e| e.to_string())?)
                }
                Some(TransportSlice::Udp(udp)) => {
                    let header = udp.to_header();
                    let wanted = header.calc_checksum_ipv6(&ip, udp.payload());
                    equal("UDP", udp.checksum(), wanted.map_err(|e| e.to_string())?)
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    let valid = icmp.is_checksum_valid(ip.source, ip.destination);
                    valid
                        .then_some(())
                        .ok_or_else(|| "ICMPv6 checksum".to_owned())
                }
                _ => Ok(()),
            }
        }
        Some(NetSlice::Arp(_)) | None => Ok(()),
    }
}

/// The addresses that random frames are made of.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Where frames come from.
    pub src: Ends,
    /// Where they go.
    pub dst: Ends,
    /// TCP and UDP ports of both.
    pub ports: Vec<u16>,
}

/// The addresses of one side of random frames.
#[derive(Clone, Debug)]
pub struct Ends {
    /// MAC addresses.
    pub macs: Vec<MacAddr>,
    /// IPv4 addresses.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

impl Pool {
    /// A well-formed frame: ARP, ND, TCP, UDP, echo, ICMP errors, fragments, extension chains, tags.
    pub fn frame(&self, rng: &mut Rng) -> Vec<u8> {
        let link = Link(pick(rng, &self.src.macs), pick(rng, &self.dst.macs));
        let mut payload = vec![0; payload_size(rng)];
        rng.fill(&mut payload);
        let mut frame = if rng.bool() {
            self.v4_frame(rng, link, &payload)
        } else {
            self.v6_frame(rng, link, &payload)
        };
        if rng.u8(..) < 24 {
            tag(&mut frame, 0x8100, rng.u16(..4096));
            if rng.bool() {
                tag(&mut frame, 0x88a8, rng.u16(..4096));
            }
        }
        frame
    }

    fn v4_frame(&self, rng: &mut Rng, link: Link, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = (pick(rng, &self.src.v4), pick(rng, &self.dst.v4));
        let (from, to) = self.sockets(rng, src.into(), dst.into());
        let ttl = pick(rng, &[0, 1, 2, 64, 255]);
        match rng.u8(..10) {
            0 => arp_request(link.0, src, dst),
            1 => arp_reply(link, src, dst),
            2 | 3 => tcp(link, from, to, rng.u8(..), payload),
            4 => echo(link, src.into(), dst.into(), rng.bool(), rng.u16(..4)),
            5 => {
                let about = udp(link, to, from, 9, payload);
                let kind = (pick(rng, &[3, 4, 5, 11, 12]), rng.u8(..5));
                icmp_error(link, src, dst, kind, &about)
            }
            6 => {
                let whole = udp(link, from, to, ttl, payload);
                let mut cut = fragments(&whole, rng.u16(..8), 8 * rng.usize(1..100));
                cut.swap_remove(rng.usize(..cut.len()))
            }
            _ => {
                let mut frame = udp(link, from, to, ttl, payload);
                set_dont_fragment(&mut frame, rng.bool());
                frame
            }
        }
    }

    fn v6_frame(&self, rng: &mut Rng, link: Link, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = (pick(rng, &self.src.v6), pick(rng, &self.dst.v6));
        let (from, to) = self.sockets(rng, src.into(), dst.into());
        match rng.u8(..8) {
            0 => solicitation(link.0, src, dst),
            1 | 2 => tcp(link, from, to, rng.u8(..), payload),
            3 => echo(link, src.into(), dst.into(), rng.bool(), rng.u16(..4)),
            4 | 5 => extension_chain(rng, udp(link, from, to, 64, payload)),
            _ => udp(link, from, to, pick(rng, &[0, 1, 2, 64]), payload),
        }
    }

    fn sockets(&self, rng: &mut Rng, src: IpAddr, dst: IpAddr) -> (SocketAddr, SocketAddr) {
        let (from, to) = (pick(rng, &self.ports), pick(rng, &self.ports));
        (SocketAddr::new(src, from), SocketAddr::new(dst, to))
    }
}

/// Mostly small, sometimes an MTU, seldom as large as IP allows.
fn payload_size(rng: &mut Rng) -> usize {
    match rng.u8(..) {
        0..2 => rng.usize(..65_400),
        2..40 => rng.usize(..3_000),
        _ => rng.usize(..64),
    }
}

/// Puts up to ten extension headers in front of the transport header of an untagged IPv6 frame.
pub fn extension_chain(rng: &mut Rng, mut frame: Vec<u8>) -> Vec<u8> {
    for _ in 0..rng.usize(1..=10) {
        let kind = pick(rng, &[0u8, 43, 44, 60, 135, 51]);
        let next = frame[20];
        let header = match kind {
            44 => {
                let offset = if rng.bool() { 0 } else { rng.u16(..) };
                let [high, low] = offset.to_be_bytes();
                vec![next, 0, high, low, 0, 0, 0, rng.u8(..4)]
            }
            51 => [&[next, 4, 0, 0][..], &[7; 20]].concat(),
            _ => {
                let units = rng.u8(..3);
                let mut header = vec![next, units];
                // One PadN option that fills the header (RFC 8200 section 4.2).
                header.extend([1, 4 + units * 8]);
                header.resize(8 + usize::from(units) * 8, 0);
                header
            }
        };
        frame[20] = kind;
        frame.splice(54..54, header);
    }
    let size = (frame.len() - 54).min(65_535) as u16;
    frame[18..20].copy_from_slice(&size.to_be_bytes());
    frame
}

/// Breaks a frame in one to four ways: cut, grown, bits turned, length fields and the IHL changed.
pub fn garble(rng: &mut Rng, frame: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..=4) {
        let len = frame.len();
        match rng.u8(..10) {
            0 => frame.truncate(rng.usize(..=len)),
            1 => frame.resize((len + rng.usize(..2_000)).min(65_535), rng.u8(..)),
            2 if rng.u8(..) < 16 => frame.resize(rng.usize(1_500..65_535), rng.u8(..)),
            3 if len > 15 => frame[14] = rng.u8(..),
            4 if len > 18 => frame[16 + rng.usize(..2)] = rng.u8(..),
            5 if len > 24 => frame[20 + rng.usize(..4)] = rng.u8(..),
            6 if len > 14 => frame[12 + rng.usize(..2)] = rng.u8(..),
            _ if len > 0 => {
                let at = rng.usize(..len.min(120));
                frame[at] ^= 1 << rng.u8(..8);
            }
            _ => frame.extend([0; 8]),
        }
    }
}

/// An offload as a sandbox might hand it over: half of them sound, half of them anything.
pub fn any_offload(rng: &mut Rng) -> Offload {
    if rng.u8(..) < 160 {
        return Offload::NONE;
    }
    if rng.bool() {
        return Offload {
            flags: rng.u8(..),
            gso_type: rng.u8(..),
            hdr_len: rng.u16(..),
            gso_size: rng.u16(..),
            csum_start: rng.u16(..),
            csum_offset: rng.u16(..),
        };
    }
    Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: pick(rng, &[0, 1, 4, 5, 3, 0x81]),
        hdr_len: 54,
        gso_size: pick(rng, &[0, 1, 47, 536, 1_448, 65_535]),
        csum_start: pick(rng, &[34, 38, 54, 0]),
        csum_offset: pick(rng, &[16, 6, 2]),
    }
}

impl Pool {
    /// Any address of [`crate::world`] to any other, those of nobody and of no station included.
    pub fn of_the_world() -> Self {
        let macs = (1..=7).map(mac).chain([
            gateway_mac(RED),
            gateway_mac(BLUE),
            HOST_MAC,
            UPLINK_MAC,
            ROUTER_MAC,
            MacAddr::BROADCAST,
            MacAddr::ZERO,
            MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            MacAddr([1, 0x80, 0xc2, 0, 0, 0]),
        ]);
        let any = Ends {
            macs: macs.collect(),
            v4: [INSIDE_V4, OUTSIDE_V4, NOBODY_V4]
                .concat()
                .iter()
                .map(v4)
                .collect(),
            v6: [INSIDE_V6, OUTSIDE_V6, NOBODY_V6]
                .concat()
                .iter()
                .map(v6)
                .collect(),
        };
        Self {
            src: any.clone(),
            dst: any,
            ports: PORTS.to_vec(),
        }
    }

    /// What can be meant by frames that enter [`crate::world`] by a port, for each port: from its
    /// station to the gateway, from the router to the card, from the host to its networks.
    pub fn aimed() -> Vec<(u16, Self)> {
        let everywhere = Self::of_the_world().dst;
        let from = |src_mac, own4: &[&str], own6: &[&str]| Ends {
            macs: vec![src_mac],
            v4: own4.iter().map(v4).collect(),
            v6: own6.iter().map(v6).collect(),
        };
        let to = |dst_mac| Ends {
            macs: vec![dst_mac],
            ..everywhere.clone()
        };
        let card = Ends {
            macs: vec![UPLINK_MAC],
            v4: vec![v4(&"192.0.2.1")],
            v6: vec![v6(&"2001:db8::1")],
        };
        let red = to(gateway_mac(RED));
        let sides = [
            (1, from(mac(1), &["10.1.0.2"], &["fd00:1::2"]), red.clone()),
            (2, from(mac(2), &["10.1.0.3"], &["fd00:1::3"]), red),
            (
                4,
                from(mac(4), &["10.2.0.2"], &["fd00:2::2"]),
                to(gateway_mac(BLUE)),
            ),
            (
                5,
                from(mac(5), &["10.3.0.2"], &["fd00:3::2"]),
                to(gateway_mac(VAULT)),
            ),
            (
                8,
                from(HOST_MAC, &["10.1.0.1"], &["fd00:1::1"]),
                to(gateway_mac(RED)),
            ),
            (9, from(ROUTER_MAC, OUTSIDE_V4, OUTSIDE_V6), card),
        ];
        let pool = |(port, src, dst)| {
            let ports = PORTS.to_vec();
            (port, Self { src, dst, ports })
        };
        sides.into_iter().map(pool).collect()
    }
}

const PORTS: [u16; 9] = [0, 53, 80, 443, 8_080, 8_081, 50_000, 50_001, 65_535];
const INSIDE_V4: &[&str] = &[
    "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.2.0.2", "10.3.0.2",
];
const OUTSIDE_V4: &[&str] = &[
    "192.0.2.1",
    "192.0.2.7",
    "198.51.100.9",
    "203.0.113.9",
    "192.0.2.99",
];
const NOBODY_V4: &[&str] = &[
    "10.1.0.99",
    "10.1.255.255",
    "224.0.0.1",
    "255.255.255.255",
    "0.0.0.0",
    "127.0.0.1",
];
const INSIDE_V6: &[&str] = &["fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:2::2"];
const OUTSIDE_V6: &[&str] = &["2001:db8::1", "2001:db8::9", "2001:db8:9::9"];
const NOBODY_V6: &[&str] = &["fe80::1", "ff02::1", "::", "::1"];

fn v4(text: &&str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &&str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}
