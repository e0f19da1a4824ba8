//! Tests of the NAT on a virtual clock, through `outbound`, `inbound` and `hairpin` only.

mod accounts;
mod dynamic;
mod fragments;
mod icmp;
mod keep;
mod limits;
mod model;
mod published;
mod sharing;
mod stress;
mod targets;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use etherparse::{IpHeaders, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::addr::{DomainId, L4Addr, PortId};
use crate::frame::{Frame, FrameBuf};
use crate::headers::{Headers, TcpFlags};
use crate::time::{Duration, Instant};
use crate::topology::{Port, Role, Topology};
use crate::verdict::DropReason;

/// The first network; its hosts are 10.0.0.x and fd00::x.
const NET: DomainId = DomainId(1);
/// A second network with the same addresses.
const TWIN: DomainId = DomainId(2);

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const RST: TcpFlags = TcpFlags::RST;
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const FIN_ACK: TcpFlags = TcpFlags(0x11);

/// Parses `10.0.0.2:80` or `[fd00::2]:80`.
fn at(text: &str) -> L4Addr {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    L4Addr::new(socket.ip(), socket.port())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The host's external address of the family of `address`.
fn external_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => ip("198.51.100.1"),
        IpAddr::V6(_) => ip("2001:db8::1"),
    }
}

/// What a test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp(TcpFlags),
    Udp,
    EchoRequest,
    EchoReply,
}

/// Builds a frame. An echo takes its identifier from the end that has a port.
fn frame(kind: Kind, src: L4Addr, dst: L4Addr) -> FrameBuf {
    frame_with(kind, src, dst, b"payload")
}

fn frame_with(kind: Kind, src: L4Addr, dst: L4Addr, payload: &[u8]) -> FrameBuf {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = builder.ip(ip_headers(src.ip, dst.ip));
    let (from, to) = (src.l4_port.0, dst.l4_port.0);
    let (id, v6) = (from | to, src.ip.is_ipv6());
    let mut bytes = Vec::new();
    match kind {
        Kind::Tcp(flags) => {
            let mut tcp = etherparse::TcpHeader::new(from, to, 7, 512);
            tcp.syn = flags.has(SYN);
            tcp.ack = flags.has(ACK);
            tcp.rst = flags.has(RST);
            tcp.fin = flags.has(TcpFlags::FIN);
            builder.tcp_header(tcp).write(&mut bytes, payload)
        }
        Kind::Udp => builder.udp(from, to).write(&mut bytes, payload),
        Kind::EchoRequest if v6 => builder
            .icmpv6_echo_request(id, 1)
            .write(&mut bytes, payload),
        Kind::EchoRequest => builder
            .icmpv4_echo_request(id, 1)
            .write(&mut bytes, payload),
        Kind::EchoReply if v6 => builder.icmpv6_echo_reply(id, 1).write(&mut bytes, payload),
        Kind::EchoReply => builder.icmpv4_echo_reply(id, 1).write(&mut bytes, payload),
    }
    .unwrap();
    FrameBuf::from_bytes(&bytes)
}

fn ip_headers(src: IpAddr, dst: IpAddr) -> IpHeaders {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                time_to_live: 64,
                identification: 99,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            },
            Default::default(),
        ),
        (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            },
            Default::default(),
        ),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("{src} and {dst} are of two families")
        }
    }
}

/// Reads the two ends back with etherparse, and checks every checksum on the way.
fn ends(bytes: &[u8]) -> (L4Addr, L4Addr) {
    assert_checksums(bytes);
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let (src, dst) = addresses(&packet);
    let (from, to) = match packet.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        TransportSlice::Icmpv4(icmp) => {
            let id = u16::from_be_bytes([icmp.slice()[4], icmp.slice()[5]]);
            if icmp.slice()[0] == 8 {
                (id, 0)
            } else {
                (0, id)
            }
        }
        TransportSlice::Icmpv6(icmp) => {
            let id = u16::from_be_bytes([icmp.slice()[4], icmp.slice()[5]]);
            if icmp.slice()[0] == 128 {
                (id, 0)
            } else {
                (0, id)
            }
        }
        TransportSlice::Igmp(_) => panic!("IGMP"),
    };
    (L4Addr::new(src, from), L4Addr::new(dst, to))
}

fn addresses(packet: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

/// Every checksum of a whole packet, computed from scratch by etherparse.
fn assert_checksums(bytes: &[u8]) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let transport = packet.transport.as_ref().unwrap();
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let wanted = tcp
                        .calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                        .unwrap();
                    assert_eq!(tcp.checksum(), wanted);
                }
                TransportSlice::Udp(udp) => {
                    let wanted = udp
                        .to_header()
                        .calc_checksum_ipv4(&header, udp.payload())
                        .unwrap();
                    assert_eq!(udp.checksum(), wanted);
                }
                TransportSlice::Icmpv4(icmp) => {
                    let wanted = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), wanted);
                }
                TransportSlice::Igmp(_) => panic!("IGMP"),
                TransportSlice::Icmpv6(_) => panic!("ICMPv6 over IPv4"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let wanted = tcp.calc_checksum_ipv6(src, dst).unwrap();
                    assert_eq!(tcp.checksum(), wanted);
                }
                TransportSlice::Udp(udp) => {
                    let header = ip.header().to_header();
                    let wanted = udp
                        .to_header()
                        .calc_checksum_ipv6(&header, udp.payload())
                        .unwrap();
                    assert_eq!(udp.checksum(), wanted);
                }
                TransportSlice::Icmpv6(icmp) => assert!(icmp.is_checksum_valid(src, dst)),
                TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => panic!("not over IPv6"),
            }
        }
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

/// A NAT, its picture, and a clock.
struct Lab {
    nat: Arc<Nat>,
    view: NatView,
    topology: Topology,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        Self::with_seed(42)
    }

    fn with_seed(seed: u64) -> Self {
        let nat = Nat::new(seed);
        Self {
            view: NatView::live(Arc::clone(&nat)),
            nat,
            topology: Topology::default(),
            now: Instant::from_secs(1_000),
        }
    }

    /// Makes the port outside one of that role.
    fn enter_by(&mut self, role: Role) {
        self.topology
            .put_port(Port::new(PortId(0), "outside", role));
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    fn publish(&mut self, id: u32, external: &str, ports: RangeInclusive<u16>, inside: L4Addr) {
        let rule = StaticRule {
            external: match external {
                "*" => External::Every,
                address => External::Address(ip(address)),
            },
            ..StaticRule::new(id, Transport::Tcp, ports, Target::new(0, NET, inside))
        };
        for (id, transport) in [(id, Transport::Tcp), (id + 100, Transport::Udp)] {
            let rule = StaticRule {
                id,
                transport,
                ..rule.clone()
            };
            self.topology.statics.add(rule).unwrap();
        }
    }

    /// Sends a frame out from `domain`.
    fn go_out(&mut self, domain: DomainId, buf: &mut FrameBuf) -> Result<Translation, DropReason> {
        let headers = Headers::parse(buf.bytes()).unwrap();
        let external = external_of(headers.ip().unwrap().src);
        let mut frame = Frame::new(PortId(1), buf);
        self.view.outbound(
            &self.topology,
            domain,
            external.into(),
            &mut frame,
            &headers,
            self.now,
        )
    }

    /// Sends out a frame that need not be readable.
    fn go_out_any(&mut self, buf: &mut FrameBuf) -> Result<Translation, DropReason> {
        let headers = Headers::parse(buf.bytes())?;
        let external = external_of(headers.ip().map_or(ip("10.0.0.2"), |ip| ip.src));
        let mut frame = Frame::new(PortId(1), buf);
        let topology = &self.topology;
        self.view.outbound(
            topology,
            NET,
            external.into(),
            &mut frame,
            &headers,
            self.now,
        )
    }

    /// Sends a frame in from outside.
    fn come_in(&mut self, buf: &mut FrameBuf) -> Result<Inbound, DropReason> {
        let headers = Headers::parse(buf.bytes()).unwrap();
        let mut frame = Frame::new(PortId(0), buf);
        self.view
            .inbound(&self.topology, &mut frame, &headers, self.now)
    }

    /// Sends a frame from inside to an external address.
    fn around(&mut self, domain: DomainId, buf: &mut FrameBuf) -> Result<Inbound, DropReason> {
        let headers = Headers::parse(buf.bytes()).unwrap();
        let mut frame = Frame::new(PortId(1), buf);
        self.view
            .hairpin(&self.topology, domain, &mut frame, &headers, self.now)
    }

    /// Sends one packet out and returns the external address and port that it got.
    fn out(&mut self, kind: Kind, src: L4Addr, dst: L4Addr) -> Result<L4Addr, DropReason> {
        self.out_from(NET, kind, src, dst)
    }

    fn out_from(
        &mut self,
        domain: DomainId,
        kind: Kind,
        src: L4Addr,
        dst: L4Addr,
    ) -> Result<L4Addr, DropReason> {
        let mut buf = frame(kind, src, dst);
        let sent = buf.clone();
        match self.go_out(domain, &mut buf) {
            Ok(translation) => {
                let (external, to) = ends(buf.bytes());
                assert_eq!(translation.before, (src, dst));
                assert_eq!(translation.after, (external, to));
                assert_eq!(to, dst);
                Ok(external)
            }
            Err(reason) => {
                assert_eq!(buf.bytes(), sent.bytes(), "a refused packet is unchanged");
                Err(reason)
            }
        }
    }

    /// Sends one packet in and returns where it got.
    fn back(
        &mut self,
        kind: Kind,
        src: L4Addr,
        dst: L4Addr,
    ) -> Result<(DomainId, L4Addr), DropReason> {
        let mut buf = frame(kind, src, dst);
        let sent = buf.clone();
        match self.come_in(&mut buf) {
            Ok(inbound) => {
                let (from, inside) = ends(buf.bytes());
                assert_eq!(inbound.translation.before, (src, dst));
                assert_eq!(inbound.translation.after, (from, inside));
                assert_eq!((from, inside.ip), (src, inbound.inside));
                Ok((inbound.domain, inside))
            }
            Err(reason) => {
                assert_eq!(buf.bytes(), sent.bytes(), "a refused packet is unchanged");
                Err(reason)
            }
        }
    }

    /// New sessions of a rule with one target.
    fn opened(&self, rule: u32) -> u64 {
        let account = Account::Target { rule, target: 0 };
        let totals = self.nat.accounts().get(&account).copied();
        totals.unwrap_or_default().opened
    }

    fn only_session(&self) -> SessionInfo {
        let sessions = self.nat.sessions(2);
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        sessions[0].clone()
    }
}
