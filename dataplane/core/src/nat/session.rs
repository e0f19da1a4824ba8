//! Mappings, sessions and the life of a session.
//!
//! # Theory of operation
//! A *mapping* ties an inside address and port to an external one; a *session* is a mapping and
//! one remote address and port. Mappings live as long as they have a session. Every session is of
//! one [`Class`], which has one timeout; only a TCP session changes its class, by this diagram
//! (RFC 7857 section 2.1, which takes over the state machine of RFC 6146 section 3.5.2.2):
//!
//! ```text
//!            any segment                third step of the handshake
//!   (none) ───────────────► Opening ─────────────────────────────► Established
//!                              ▲  │ RST                      RST, or │  ▲ any segment
//!            SYN without ACK   │  ▼                FIN of both sides ▼  │ but RST, after RST
//!                              └─ Closing ◄──────────────────────────┘──┘
//! ```
//!
//! - *Any* segment opens, not only SYN: flows survive a restart of the switch. RFC 7857 leaves
//!   that open; the price is that a stray segment holds a port for the transitory timeout.
//! - *Established* needs both sides **and** a later segment without SYN from the side that opened:
//!   a SYN from a forged address, answered by a published server, stays transitory.
//! - A RST from outside is *believed* only when its number is one that the inside could be waiting
//!   for, as far as the inside has ever said ([`RST_WINDOW`]). Another one is passed on, for its
//!   receiver judges it by itself (RFC 5961 section 3.2), but moves nothing: whoever forges one
//!   blindly does not shorten the session's life.
//! - *Closing* does not refresh its timer, except by re-opening: stray segments of a closed
//!   connection cannot hold its port. A session that one RST closed is revived by any segment
//!   that is not RST, so that a forged RST costs an attacker's victim nothing.
//! - ICMP errors never move a session (RFC 5382 REQ-10, RFC 4787 REQ-12).

use core::fmt;

use crate::addr::{DomainId, L4Addr};
use crate::headers::TcpFlags;
use crate::time::{Duration, Instant};
use crate::topology::RouteMark;

use super::keep::SavedSession;
use super::table::Event;
use super::{Dependence, Timeouts, Transport};

/// How far beyond the last acknowledgment from inside a RST may lie to be believed: what a receiver
/// leaves unacknowledged is at most two segments (RFC 9293 section 3.8.6.3), each of which offloads
/// may make as large as 64 KiB. Whoever guesses hits it once in 32,768 times.
const RST_WINDOW: u32 = 2 * 65_536;

/// The port of name servers (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// A protocol that is translated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum NatProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo, whose identifier plays the port (RFC 5508 section 3).
    Icmp,
}

impl NatProtocol {
    /// The transport that published ports know it by.
    #[inline]
    pub const fn transport(self) -> Option<Transport> {
        match self {
            Self::Tcp => Some(Transport::Tcp),
            Self::Udp => Some(Transport::Udp),
            Self::Icmp => None,
        }
    }
}

impl From<Transport> for NatProtocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for NatProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Which way a packet of a session goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From inside to the remote.
    Out,
    /// From the remote to inside.
    In,
}

/// Inside ↔ external (RFC 4787 section 4.1). A cache line, so that reading it waits for memory once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(align(64))]
pub(super) struct Mapping {
    pub inside: L4Addr,
    pub external: L4Addr,
    pub domain: DomainId,
    pub protocol: NatProtocol,
    /// The published port that it belongs to; `None` for a dynamic mapping.
    pub rule: Option<u32>,
    /// Which of the rule's targets it leads to.
    pub target: u16,
    /// What it depends on of the remote: 0 for nothing, else a keyed hash of it.
    pub scope: u32,
    /// Whom it lets in besides the remotes of its sessions.
    pub filtering: Dependence,
    /// Sessions that hold it; the last one takes it along.
    pub sessions: u32,
}

/// Bits of [`Mapping::scope`] that say which [`Dependence`] it came from.
const SCOPE_KIND_MASK: u32 = 0b11;
const SCOPE_ADDRESS: u32 = 0b01;
const SCOPE_ADDRESS_AND_PORT: u32 = 0b10;

impl Mapping {
    /// What a mapping that depends on the remote as `dependence` says is told apart by; `hash` stands
    /// for that of the remote. Never 0 where it depends on anything.
    pub const fn scope_of(dependence: Dependence, hash: u64) -> u32 {
        let hash = (hash >> 32) as u32 & !SCOPE_KIND_MASK;
        match dependence {
            Dependence::EndpointIndependent => 0,
            Dependence::AddressDependent => hash | SCOPE_ADDRESS,
            Dependence::AddressAndPortDependent => hash | SCOPE_ADDRESS_AND_PORT,
        }
    }

    /// On what of the remote it depends.
    pub const fn dependence(&self) -> Dependence {
        match self.scope & SCOPE_KIND_MASK {
            SCOPE_ADDRESS => Dependence::AddressDependent,
            SCOPE_ADDRESS_AND_PORT => Dependence::AddressAndPortDependent,
            _ => Dependence::EndpointIndependent,
        }
    }
}

/// The bit of a session's ways that says that its packets are let in; the others are a route's number.
const WAY_IN: u16 = 1 << 15;
/// The number of no route.
const NO_ROUTE: u16 = RouteMark::ROUTES_MAX;

/// A mapping and one remote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub remote: L4Addr,
    pub mapping: u32,
    /// Neighbours in the list of its class.
    pub older: u32,
    pub newer: u32,
    /// Seconds of the caller's clock.
    pub last_seen: u32,
    pub created: u32,
    pub tcp: TcpState,
    pub class: Class,
    /// The ways that its packets take, and the stamp of the picture in which they do: bits of ours in
    /// two words that fill a gap.
    stamp: u32,
    ways: u16,
    /// Packets by [`Direction`]: 48 bits, enough for nine years at a million a second.
    packets_high: [u16; 2],
    packets_low: [u32; 2],
    /// Bytes of IP packets by [`Direction`]: low and high words.
    bytes: [[u32; 2]; 2],
    /// The sequence number that the inside of a TCP session waits for, once it has said so.
    expects: u32,
}

// One million sessions have to fit into 300 MB with their mappings and indices.
const _: () = assert!(size_of::<Option<Session>>() <= 80);
const _: () = assert!(size_of::<Option<Mapping>>() <= 64);

impl Session {
    /// Whether the session has outlived its timeout. Ages are whole seconds, so that it lives up
    /// to a second longer than configured and never shorter.
    #[inline]
    pub fn expired(&self, now: Instant, timeouts: &Timeouts) -> bool {
        self.class.expired(self.last_seen, now, timeouts)
    }

    /// A session that begins with `event`.
    #[inline]
    pub fn new(mapping: u32, protocol: NatProtocol, remote: L4Addr, event: Event) -> Self {
        let mut session = Self {
            remote,
            mapping,
            older: u32::MAX,
            newer: u32::MAX,
            last_seen: event.now.second(),
            created: event.now.second(),
            tcp: TcpState::default(),
            class: Class::Udp,
            stamp: 0,
            ways: NO_ROUTE,
            packets_high: [0; 2],
            packets_low: [0; 2],
            bytes: [[0; 2]; 2],
            expects: 0,
        };
        session.count(event);
        if protocol == NatProtocol::Tcp {
            let state = TcpState::open(event.direction, event.flags);
            session.tcp = session.hear(state, event);
        }
        session.class = Class::of(protocol, remote, session.tcp);
        session
    }

    /// A session of an earlier process.
    pub fn restored(mapping: u32, saved: &SavedSession) -> Self {
        let tcp = TcpState::restored(saved.tcp);
        let halves = [saved.packets_out, saved.packets_in];
        Self {
            remote: saved.remote,
            mapping,
            older: u32::MAX,
            newer: u32::MAX,
            last_seen: saved.last_seen.second(),
            created: saved.created.second(),
            tcp,
            class: Class::of(saved.protocol, saved.remote, tcp),
            stamp: 0,
            ways: NO_ROUTE,
            packets_high: halves.map(|packets| (packets >> 32) as u16),
            packets_low: halves.map(|packets| packets as u32),
            expects: 0,
            bytes: [saved.bytes_out, saved.bytes_in]
                .map(|bytes| [bytes as u32, (bytes >> 32) as u32]),
        }
    }

    /// Counts a packet and its bytes.
    #[inline]
    pub const fn count(&mut self, event: Event) {
        let way = event.direction as usize;
        let (low, carry) = self.packets_low[way].overflowing_add(1);
        self.packets_low[way] = low;
        if carry {
            self.packets_high[way] = self.packets_high[way].wrapping_add(1);
        }
        let [low, high] = self.bytes[way];
        let (low, carry) = low.overflowing_add(event.size);
        self.bytes[way] = [low, high.wrapping_add(carry as u32)];
    }

    /// Bytes that went in a direction.
    pub const fn bytes(&self, direction: Direction) -> u64 {
        let [low, high] = self.bytes[direction as usize];
        (high as u64) << 32 | low as u64
    }

    /// Packets that went in a direction.
    pub const fn packets(&self, direction: Direction) -> u64 {
        let way = direction as usize;
        (self.packets_high[way] as u64) << 32 | self.packets_low[way] as u64
    }

    /// Whether a segment may move the session: all but a RST from outside with a number that the
    /// inside cannot be waiting for.
    #[inline]
    pub const fn believes(&self, event: Event) -> bool {
        let forgeable = event.flags.has(TcpFlags::RST) && matches!(event.direction, Direction::In);
        !(forgeable
            && self.tcp.has_acknowledged()
            && event.number.wrapping_sub(self.expects) >= RST_WINDOW)
    }

    /// Takes note of what a segment from inside says that it waits for; the state with that.
    #[inline]
    pub const fn hear(&mut self, state: TcpState, event: Event) -> TcpState {
        match event.direction {
            Direction::In => state,
            Direction::Out if event.flags.has(TcpFlags::ACK) => {
                self.expects = event.number;
                state.acknowledged()
            }
            // A new beginning: nothing was received yet.
            Direction::Out => state.unacknowledged(),
        }
    }

    /// What a digest of the session has besides its public fields.
    pub const fn rest(&self) -> ([u64; 2], [[u32; 2]; 2], u32) {
        let packets = [self.packets(Direction::Out), self.packets(Direction::In)];
        (packets, self.bytes, self.expects)
    }

    /// The route by which its packets leave in the picture of that stamp, once it is known.
    #[inline]
    pub const fn way_out(&self, stamp: u32) -> Option<u16> {
        match self.ways & NO_ROUTE {
            NO_ROUTE => None,
            route if self.stamp == stamp => Some(route),
            _ => None,
        }
    }

    /// Whether packets of its remote are known to be let in by any uplink, in the picture of that stamp.
    #[inline]
    pub const fn has_way_in(&self, stamp: u32) -> bool {
        self.stamp == stamp && self.ways & WAY_IN != 0
    }

    /// Remembers the way that its packets take out.
    #[inline]
    pub const fn remember_way_out(&mut self, mark: RouteMark) {
        match mark {
            RouteMark::NONE => self.ways |= NO_ROUTE,
            RouteMark { stamp, route } => self.ways = self.ways_of(stamp) & WAY_IN | route,
        }
    }

    /// Remembers that packets of its remote are let in.
    #[inline]
    pub const fn remember_way_in(&mut self, stamp: u32) {
        self.ways = self.ways_of(stamp) | WAY_IN;
    }

    /// The ways that it knows in the picture of that stamp, which it knows no other from now on.
    #[inline]
    const fn ways_of(&mut self, stamp: u32) -> u16 {
        if self.stamp != stamp {
            (self.stamp, self.ways) = (stamp, NO_ROUTE);
        }
        self.ways
    }
}

/// Sessions that share a timeout.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(super) enum Class {
    /// TCP before its handshake is through.
    TcpOpening,
    /// TCP, both sides heard.
    TcpEstablished,
    /// TCP after a RST or both FINs.
    TcpClosing,
    /// UDP.
    Udp,
    /// UDP to a name server.
    UdpDns,
    /// ICMP echo.
    Icmp,
}

impl Class {
    pub const ALL: [Self; 6] = [
        Self::TcpOpening,
        Self::TcpEstablished,
        Self::TcpClosing,
        Self::Udp,
        Self::UdpDns,
        Self::Icmp,
    ];

    /// The classes that are given up first when the table is full.
    pub const TRANSITORY: [Self; 2] = [Self::TcpOpening, Self::TcpClosing];

    /// The class of a session of `protocol` with `remote`, in TCP state `tcp`.
    pub const fn of(protocol: NatProtocol, remote: L4Addr, tcp: TcpState) -> Self {
        match protocol {
            NatProtocol::Udp if remote.l4_port.0 == DNS_PORT => Self::UdpDns,
            NatProtocol::Udp => Self::Udp,
            NatProtocol::Icmp => Self::Icmp,
            NatProtocol::Tcp => Self::of_tcp(tcp),
        }
    }

    /// The class of a TCP session.
    #[inline]
    pub const fn of_tcp(tcp: TcpState) -> Self {
        match tcp.phase() {
            SessionState::Established => Self::TcpEstablished,
            SessionState::Closing => Self::TcpClosing,
            SessionState::Opening | SessionState::Active => Self::TcpOpening,
        }
    }

    /// Whether its sessions are TCP's.
    #[inline]
    pub const fn is_tcp(self) -> bool {
        matches!(
            self,
            Self::TcpOpening | Self::TcpEstablished | Self::TcpClosing
        )
    }

    #[inline]
    pub const fn timeout(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::TcpOpening => timeouts.tcp_opening,
            Self::TcpEstablished => timeouts.tcp_established,
            Self::TcpClosing => timeouts.tcp_closing,
            Self::Udp => timeouts.udp,
            Self::UdpDns => match timeouts.udp_dns {
                Some(timeout) => timeout,
                None => timeouts.udp,
            },
            Self::Icmp => timeouts.icmp,
        }
    }

    #[inline]
    pub fn expired(self, last_seen: u32, now: Instant, timeouts: &Timeouts) -> bool {
        let idle = u64::from(now.second().saturating_sub(last_seen));
        // Of a busy session no timeout needs to be looked up.
        idle != 0 && idle > self.timeout(timeouts).as_secs()
    }
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SessionState {
    /// TCP before the third step of its handshake.
    Opening,
    /// TCP after it.
    Established,
    /// TCP after a RST or the FINs of both sides.
    Closing,
    /// UDP and ICMP, which have no state.
    Active,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Active => "active",
        })
    }
}

/// What was seen of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct TcpState(u8);

impl TcpState {
    const OUT: u8 = 0x01;
    const IN: u8 = 0x02;
    const OUT_FIN: u8 = 0x04;
    const IN_FIN: u8 = 0x08;
    const OPENED_INSIDE: u8 = 0x10;
    const ESTABLISHED: u8 = 0x20;
    const RESET: u8 = 0x40;
    const ACKNOWLEDGED: u8 = 0x80;

    /// As one number, for [`TcpState::restored`].
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The state of a connection that an earlier process has seen. What its inside waits for has
    /// not come along.
    pub const fn restored(bits: u8) -> Self {
        Self(bits).unacknowledged()
    }

    /// The state after the first segment.
    pub const fn open(direction: Direction, flags: TcpFlags) -> Self {
        let opener = match direction {
            Direction::Out => Self::OPENED_INSIDE,
            Direction::In => 0,
        };
        Self(opener).step(direction, flags)
    }

    /// The state after a further segment.
    pub const fn next(self, direction: Direction, flags: TcpFlags) -> Self {
        let fresh = flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK);
        if fresh && matches!(self.phase(), SessionState::Closing) {
            return Self::open(direction, flags);
        }
        self.step(direction, flags)
    }

    /// Whether the inside has said what it waits for.
    pub const fn has_acknowledged(self) -> bool {
        self.0 & Self::ACKNOWLEDGED != 0
    }

    const fn acknowledged(self) -> Self {
        Self(self.0 | Self::ACKNOWLEDGED)
    }

    const fn unacknowledged(self) -> Self {
        Self(self.0 & !Self::ACKNOWLEDGED)
    }

    pub const fn phase(self) -> SessionState {
        let fins = Self::OUT_FIN | Self::IN_FIN;
        if self.0 & Self::RESET != 0 || self.0 & fins == fins {
            SessionState::Closing
        } else if self.0 & Self::ESTABLISHED != 0 {
            SessionState::Established
        } else {
            SessionState::Opening
        }
    }

    const fn step(self, direction: Direction, flags: TcpFlags) -> Self {
        let (own, fin, opener) = match direction {
            Direction::Out => (Self::OUT, Self::OUT_FIN, Self::OPENED_INSIDE),
            Direction::In => (Self::IN, Self::IN_FIN, 0),
        };
        let mut bits = self.0;
        if flags.has(TcpFlags::RST) {
            return Self(bits | own | Self::RESET);
        }
        bits &= !Self::RESET;
        let answered = bits & (Self::OUT | Self::IN) & !own != 0;
        if answered && bits & Self::OPENED_INSIDE == opener && !flags.has(TcpFlags::SYN) {
            bits |= Self::ESTABLISHED;
        }
        if flags.has(TcpFlags::FIN) {
            bits |= fin;
        }
        Self(bits | own)
    }
}

/// A session as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The network of the inside address.
    pub domain: DomainId,
    /// TCP, UDP or ICMP.
    pub protocol: NatProtocol,
    /// The inside address and port.
    pub inside: L4Addr,
    /// The external address and port that the remote sees.
    pub external: L4Addr,
    /// The remote address and port; port 0 for ICMP.
    pub remote: L4Addr,
    /// Where it stands.
    pub state: SessionState,
    /// When its first packet came, to the second.
    pub created: Instant,
    /// When its last packet came, to the second.
    pub last_seen: Instant,
    /// The published port that it came by; `None` when it was opened from inside.
    pub rule: Option<u32>,
    /// Which of the rule's targets it was led to; 0 without a rule.
    pub target: u16,
    /// Packets to the remote; a GSO frame counts as one.
    pub packets_out: u64,
    /// Packets from the remote.
    pub packets_in: u64,
    /// Bytes of IP packets to the remote.
    pub bytes_out: u64,
    /// Bytes of IP packets from the remote.
    pub bytes_in: u64,
}

impl SessionInfo {
    pub(super) fn new(session: &Session, mapping: &Mapping) -> Self {
        let state = match mapping.protocol {
            NatProtocol::Tcp => session.tcp.phase(),
            NatProtocol::Udp | NatProtocol::Icmp => SessionState::Active,
        };
        Self {
            domain: mapping.domain,
            protocol: mapping.protocol,
            inside: mapping.inside,
            external: mapping.external,
            remote: session.remote,
            state,
            created: Instant::from_secs(u64::from(session.created)),
            last_seen: Instant::from_secs(u64::from(session.last_seen)),
            rule: mapping.rule,
            target: mapping.target,
            packets_out: session.packets(Direction::Out),
            packets_in: session.packets(Direction::In),
            bytes_out: session.bytes(Direction::Out),
            bytes_in: session.bytes(Direction::In),
        }
    }

    /// Time since its first packet.
    pub fn age(&self, now: Instant) -> Duration {
        now.since(self.created)
    }

    /// Time since its last packet.
    pub fn idle(&self, now: Instant) -> Duration {
        now.since(self.last_seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const RST: TcpFlags = TcpFlags::RST;
    const SYN_ACK: TcpFlags = TcpFlags(0x12);
    const FIN_ACK: TcpFlags = TcpFlags(0x11);

    fn after(steps: &[(Direction, TcpFlags)]) -> SessionState {
        let (first, rest) = steps.split_first().unwrap();
        rest.iter()
            .fold(TcpState::open(first.0, first.1), |state, step| {
                state.next(step.0, step.1)
            })
            .phase()
    }

    #[test]
    fn the_life_of_a_connection() {
        use Direction::{In, Out};
        use SessionState::{Closing, Established, Opening};
        let life = [
            (Out, SYN, Opening),
            (In, SYN_ACK, Opening),
            (Out, ACK, Established),
            (In, ACK, Established),
            (Out, FIN_ACK, Established),
            (In, ACK, Established),
            (In, FIN_ACK, Closing),
            (Out, ACK, Closing),
            (Out, SYN, Opening),
            (In, SYN_ACK, Opening),
            (Out, ACK, Established),
            (In, RST, Closing),
            (In, RST, Closing),
            (Out, ACK, Established),
        ];
        for end in 1..=life.len() {
            let steps: Vec<_> = life[..end].iter().map(|s| (s.0, s.1)).collect();
            assert_eq!(after(&steps), life[end - 1].2, "after {end} steps");
        }
    }

    #[test]
    fn a_forged_syn_answered_by_a_server_stays_transitory() {
        use Direction::{In, Out};
        let mut steps = vec![(In, SYN)];
        for _ in 0..5 {
            steps.push((Out, SYN_ACK));
            assert_eq!(after(&steps), SessionState::Opening);
        }
        steps.push((Out, ACK));
        assert_eq!(
            after(&steps),
            SessionState::Opening,
            "only the opener completes it"
        );
        steps.push((In, ACK));
        assert_eq!(after(&steps), SessionState::Established);
    }

    #[test]
    fn simultaneous_open_and_a_flow_seen_from_its_middle_get_established() {
        use Direction::{In, Out};
        let simultaneous = [
            (Out, SYN),
            (In, SYN),
            (Out, SYN_ACK),
            (In, SYN_ACK),
            (Out, ACK),
        ];
        assert_eq!(after(&simultaneous), SessionState::Established);
        assert_eq!(after(&simultaneous[..4]), SessionState::Opening);
        let middle = [(Out, ACK), (In, ACK), (Out, ACK)];
        assert_eq!(after(&middle), SessionState::Established);
        assert_eq!(after(&middle[..2]), SessionState::Opening);
    }
}
