//! The switch in a bottle as a NAT's neighbours see it: hosts inside, hosts outside, and a clock.

use std::net::{IpAddr, SocketAddr};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::counters::Counters;
use dataplane_core::nat::{Behaviour, Dependence, NatConfig, SessionState};
use dataplane_core::topology::Topology;
use dataplane_core::verdict::{Awaited, DropReason, Verdict};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use std::sync::Arc;
use tests::wire::{self, Link, at, flags};
use tests::world::{BLUE, HOST_LINK, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac, mac};

/// The first host inside, and a second one; both on the network `red`.
pub const A: &str = "10.1.0.2";
pub const B: &str = "10.1.0.3";
/// A host outside, behind the router.
pub const FAR: &str = "198.51.100.9";
/// The host's address on the uplink.
pub const OUTSIDE: &str = "192.0.2.1";

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Udp,
    /// A segment with these flags, sequence number 1000 and acknowledgment 2000.
    Tcp(u8),
    /// An echo request, or its reply: the end that asks has the identifier as its port.
    Ask,
    Answer,
}

pub const SYN: Kind = Kind::Tcp(flags::SYN);
pub const SYN_ACK: Kind = Kind::Tcp(flags::SYN_ACK);
pub const ACK: Kind = Kind::Tcp(flags::ACK);
pub const FIN: Kind = Kind::Tcp(flags::FIN_ACK);
pub const RST: Kind = Kind::Tcp(flags::RST);

pub struct Lab {
    pub world: World,
    waited: u64,
    /// Frames that left without another frame having come: ports and bytes.
    pub later: Vec<(PortId, Vec<u8>)>,
}

impl Lab {
    pub fn new() -> Self {
        Self {
            world: World::new(),
            waited: 0,
            later: Vec::new(),
        }
    }

    /// Seconds that the clock was let run.
    pub fn waited(&self) -> u64 {
        self.waited
    }

    /// Lets the clock run, second by second, as a worker ticks.
    pub fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.world.wait(1);
            self.waited += 1;
            self.tick();
        }
    }

    /// What a worker does now and then.
    pub fn tick(&mut self) {
        let topology = Arc::clone(&self.world.sw.topology);
        let now = self.world.now;
        self.world.sw.gateway.tick(&topology, now, usize::MAX);
        let counters = Arc::clone(&self.world.sw.counters);
        while let Some((_, buf, verdict)) = self.release(&topology, &counters) {
            if let Verdict::Routed(port) | Verdict::Replied(port) = verdict {
                self.later.push((port, buf));
            }
        }
    }

    fn release(
        &mut self,
        topology: &Topology,
        counters: &Counters,
    ) -> Option<(PortId, Vec<u8>, Verdict)> {
        let now = self.world.now;
        let gateway = &mut self.world.sw.gateway;
        let (ingress, buf, verdict) = gateway.release(topology, counters, now)?;
        Some((ingress, buf.bytes().to_vec(), verdict))
    }

    /// Changes the NAT's settings.
    pub fn set(&mut self, change: impl FnOnce(&mut NatConfig)) {
        self.world.edit(|topology| change(&mut topology.nat));
    }

    /// Changes how the network of A and B is treated.
    pub fn behave(&mut self, mapping: Dependence, filtering: Dependence) {
        self.world.edit(|topology| {
            let red = topology.domains[RED.index()].as_mut().unwrap();
            red.nat = Behaviour { mapping, filtering };
        });
    }

    /// Sends the fragments of one packet, and what the switch kept of them behind the first: all that
    /// left, with the port that each left by.
    pub fn send_pieces(&mut self, port: u16, fragments: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
        let mut left = Vec::new();
        for fragment in fragments {
            let out = self.world.send(port, fragment);
            match out.verdict {
                Verdict::Routed(port) => left.push((port, out.frame.bytes().to_vec())),
                Verdict::Held(Awaited::Fragment) => {}
                other => panic!("{other:?}"),
            }
            if self.world.sw.gateway.take_due() {
                self.tick();
                left.append(&mut self.later);
            }
        }
        left
    }

    /// Sessions that are there.
    pub fn sessions(&self) -> usize {
        self.world.tables.nat.session_count()
    }

    /// Sends a frame by a port; what leaves, and by which port. What is left to the host is, for
    /// the NAT, a packet without a mapping.
    pub fn send(&mut self, port: u16, frame: &[u8]) -> Result<(PortId, Vec<u8>), DropReason> {
        let out = self.world.send(port, frame);
        match out.verdict {
            Verdict::Routed(port) | Verdict::Replied(port) => {
                Ok((port, out.frame.bytes().to_vec()))
            }
            Verdict::Delivered(_) => Ok((HOST_LINK, out.frame.bytes().to_vec())),
            Verdict::Drop(reason) => Err(reason),
            Verdict::Held(Awaited::Fragment) => Ok((PortId(port), Vec::new())),
            Verdict::NotOurs => Err(DropReason::NatNoMapping),
            other => panic!("{other:?}"),
        }
    }

    /// A host inside sends a packet to a remote: where it appears to come from.
    pub fn out(&mut self, kind: Kind, src: &str, dst: &str) -> Result<SocketAddr, DropReason> {
        let frame = packet(kind, inside_link(at(src)), at(src), at(dst));
        let (port, sent) = self.send(port_of(at(src).ip()), &frame)?;
        assert_eq!(port, UPLINK, "{kind:?} from {src} to {dst}");
        let (external, to) = ends(&sent);
        assert_eq!(to, at(dst));
        Ok(external)
    }

    /// A host inside sends a packet that is refused, and is told so by "administratively
    /// prohibited" about it: for which reason.
    pub fn refused(&mut self, kind: Kind, src: &str, dst: &str) -> DropReason {
        let before = self.refusals();
        let frame = packet(kind, inside_link(at(src)), at(src), at(dst));
        let ingress = port_of(at(src).ip());
        let (port, told) = self.send(ingress, &frame).unwrap();
        let wanted = if at(src).is_ipv4() { (3, 13) } else { (1, 1) };
        let (kind, code, quoted) = icmp(&told);
        assert_eq!((port.0, (kind, code)), (ingress, wanted));
        assert_eq!(quoted, frame[14..], "the packet as it was sent");
        let after = self.refusals();
        let changed = after.iter().zip(&before).position(|(a, b)| a != b);
        DropReason::ALL[changed.unwrap()]
    }

    fn refusals(&self) -> Vec<u64> {
        let counters = &self.world.sw.counters;
        DropReason::ALL
            .iter()
            .map(|reason| counters.refused(*reason))
            .collect()
    }

    /// A packet from a remote that is kept for later, and nothing is said of it yet.
    pub fn held(&mut self, kind: Kind, src: &str, dst: SocketAddr) -> bool {
        let frame = packet(kind, OUTSIDE_LINK, at(src), dst);
        let verdict = self.world.send(UPLINK.0, &frame).verdict;
        verdict == Verdict::Held(Awaited::Connection)
    }

    /// A remote sends a packet to an external address and port: who inside gets it.
    pub fn back(
        &mut self,
        kind: Kind,
        src: &str,
        dst: SocketAddr,
    ) -> Result<SocketAddr, DropReason> {
        let frame = packet(kind, Link(ROUTER_MAC, UPLINK_MAC), at(src), dst);
        let (port, got) = self.send(UPLINK.0, &frame)?;
        let (from, to) = ends(&got);
        assert_eq!(from, at(src), "the remote's address is kept");
        assert_eq!(port.0, port_of(to.ip()));
        Ok(to)
    }

    /// A packet from inside to one of our own external addresses: source and destination as the
    /// inside host at the other end sees them.
    pub fn around(
        &mut self,
        kind: Kind,
        src: &str,
        dst: SocketAddr,
    ) -> Result<(SocketAddr, SocketAddr), DropReason> {
        let frame = packet(kind, inside_link(at(src)), at(src), dst);
        let (port, got) = self.send(port_of(at(src).ip()), &frame)?;
        assert_ne!(port, HOST_LINK, "the NAT does not know {dst}");
        Ok(ends(&got))
    }

    /// A connection whose handshake is through: its external address and port.
    pub fn connect(&mut self, src: &str, dst: &str) -> SocketAddr {
        let external = self.out(SYN, src, dst).unwrap();
        self.back(SYN_ACK, dst, external).unwrap();
        self.out(ACK, src, dst).unwrap();
        external
    }

    /// A host inside sends a segment with everything chosen: flags, sequence and acknowledgment.
    pub fn say(&mut self, src: &str, dst: &str, bits: u8, numbers: (u32, u32)) {
        let frame = segment(inside_link(at(src)), (at(src), at(dst)), bits, numbers, b"");
        let (port, _) = self.send(port_of(at(src).ip()), &frame).unwrap();
        assert_eq!(port, UPLINK);
    }

    /// A remote sends one: who inside gets it.
    pub fn hear(
        &mut self,
        src: &str,
        dst: SocketAddr,
        bits: u8,
        numbers: (u32, u32),
    ) -> Result<SocketAddr, DropReason> {
        let frame = segment(OUTSIDE_LINK, (at(src), dst), bits, numbers, b"");
        let (_, got) = self.send(UPLINK.0, &frame)?;
        Ok(ends(&got).1)
    }

    /// Where the only session stands.
    pub fn state(&self) -> SessionState {
        let sessions = self.world.tables.nat.sessions(2);
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        sessions[0].state
    }

    /// Whether a UDP session (or one of `kind`) still lets its remote in.
    pub fn open(&mut self, kind: Kind, remote: &str, external: SocketAddr) -> bool {
        self.back(kind, remote, external).is_ok()
    }
}

/// The MACs of a packet from an inside host to its gateway.
pub fn inside_link(src: SocketAddr) -> Link {
    let blue = src.ip().to_string().starts_with("10.2.");
    let gateway = gateway_mac(if blue { BLUE } else { RED });
    Link(mac(port_of(src.ip()) as u8), gateway)
}

/// The MACs of a packet from the router.
pub const OUTSIDE_LINK: Link = Link(ROUTER_MAC, UPLINK_MAC);

/// The port of an inside host of the world.
pub fn port_of(address: IpAddr) -> u16 {
    match address.to_string().as_str() {
        "10.1.0.2" | "fd00:1::2" => 1,
        "10.1.0.3" | "fd00:1::3" => 2,
        "10.1.0.4" | "fd00:1::4" => 3,
        "10.2.0.2" => 4,
        // Any other host of red is behind the first port.
        _ => 1,
    }
}

pub fn packet(kind: Kind, link: Link, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    match kind {
        Kind::Udp => wire::udp(link, src, dst, 64, b"payload"),
        Kind::Tcp(flags) => wire::tcp(link, src, dst, flags, b""),
        Kind::Ask => wire::echo(link, src.ip(), dst.ip(), true, src.port()),
        Kind::Answer => wire::echo(link, src.ip(), dst.ip(), false, dst.port()),
    }
}

/// A TCP segment with everything chosen.
pub fn segment(
    link: Link,
    (src, dst): (SocketAddr, SocketAddr),
    bits: u8,
    (sequence, acknowledgment): (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(src.port(), dst.port(), sequence, 8_192);
    header.syn = bits & flags::SYN != 0;
    header.ack = bits & flags::ACK != 0;
    header.rst = bits & flags::RST != 0;
    header.fin = bits & 1 != 0;
    header.acknowledgment_number = acknowledgment;
    let mut frame = Vec::new();
    builder(link, src.ip(), dst.ip())
        .tcp_header(header)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn builder(
    Link(MacAddr(from), MacAddr(to)): Link,
    src: IpAddr,
    dst: IpAddr,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(from, to);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("two families"),
    }
}

/// Both ends of a packet, whose checksums etherparse has found right. An echo's identifier stands
/// at the end that asks.
pub fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    wire::check_complete(frame).unwrap();
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (src, dst) = addresses(frame);
    let (from, to) = match packet.transport.as_ref().unwrap() {
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Icmpv4(icmp) => echo_ends(icmp.slice(), 8),
        TransportSlice::Icmpv6(icmp) => echo_ends(icmp.slice(), 128),
        TransportSlice::Igmp(_) => panic!("IGMP"),
    };
    (SocketAddr::new(src, from), SocketAddr::new(dst, to))
}

fn echo_ends(icmp: &[u8], request: u8) -> (u16, u16) {
    let id = u16::from_be_bytes([icmp[4], icmp[5]]);
    if icmp[0] == request { (id, 0) } else { (0, id) }
}

/// Source and destination address of a frame.
pub fn addresses(frame: &[u8]) -> (IpAddr, IpAddr) {
    match SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
        NetSlice::Ipv4(v4) => (
            v4.header().source_addr().into(),
            v4.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(v6) => (
            v6.header().source_addr().into(),
            v6.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

/// Type and code of an ICMP message, and the packet that it quotes.
pub fn icmp(frame: &[u8]) -> (u8, u8, Vec<u8>) {
    wire::check_complete(frame).unwrap();
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let bytes = match packet.transport.as_ref().unwrap() {
        TransportSlice::Icmpv4(icmp) => icmp.slice(),
        TransportSlice::Icmpv6(icmp) => icmp.slice(),
        other => panic!("{other:?} is no ICMP"),
    };
    (bytes[0], bytes[1], bytes[8..].to_vec())
}
