//! Both sides of a NAT in one hand, and the conversations that probes have across it.
//!
//! What should arrive is sent up to [`TRIES`] times and waited for; what may be filtered is followed
//! by a *fence*, a packet that is known to pass, so that silence means a filter and not a slow
//! machine. Every packet carries a token of its own: nothing is taken for an answer to something
//! else.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Error;
use super::packet::{Checked, Family, Head, Message, Packet, Segment, flags};
use super::side::{Mark, Side, Sides, Transport};

/// How often a packet is sent that should arrive.
pub const TRIES: usize = 3;
/// How long it is waited for after each.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long after a fence something may still arrive that was sent before it: the NAT may have
/// several workers.
pub const GRACE: Duration = Duration::from_millis(150);
/// How long something is waited for that has no fence.
pub const SILENCE: Duration = Duration::from_secs(1);
/// Ports that are tried for a free one.
const PORT_TRIES_MAX: usize = 4_096;
/// Where inside ports begin; a random part of 5,000 is added, so that a second run meets nothing that the
/// first has left in the NAT. The families stay apart: a proxy may have one socket for both.
const INSIDE_PORT_FIRST: u16 = 50_000;
const INSIDE_PORT_FIRST_V6: u16 = 57_500;
/// The same for the remotes' ports.
const REMOTE_PORT_FIRST: u16 = 30_000;
const PORT_SPREAD: u16 = 5_000;

/// A token, which makes a packet unlike any other.
pub type Token = [u8; 16];

/// A mapping with the remote that it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The inside port.
    pub port: u16,
    /// The remote that was contacted.
    pub remote: SocketAddr,
    /// Where the remote sees it come from.
    pub external: SocketAddr,
}

/// One end of a TCP connection, as that end sees it: a NAT that is a proxy has numbers of its own on
/// either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The next sequence number to send.
    pub next: u32,
    /// The next one expected.
    pub expected: u32,
}

/// A TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Its mapping.
    pub mapping: Mapping,
    /// The inside end.
    pub inside: End,
    /// The remote end.
    pub outside: End,
}

/// What became of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Where the remote sees it come from, and its identifier there.
    pub external: (IpAddr, u16),
    /// Whether its reply came back, with the identifier that it was sent with.
    pub answered: bool,
}

/// How many translated packets were looked at, and what was wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Looked at.
    pub count: usize,
    /// With a wrong IP header checksum.
    pub header_wrong: usize,
    /// With a wrong transport checksum.
    pub transport_wrong: usize,
}

/// Both sides, and what has been learned about the NAT on the way.
#[derive(Debug)]
pub struct Prober {
    /// Behind the NAT.
    pub inside: Side,
    /// The remotes.
    pub outside: Side,
    /// Another host behind the NAT, if there is one.
    pub second: Option<Side>,
    /// Two remote addresses.
    pub remotes: [IpAddr; 2],
    /// Two ports of either, reserved for UDP and TCP.
    pub remote_ports: [u16; 2],
    /// External addresses seen so far.
    pub externals: BTreeSet<IpAddr>,
    /// Checksums seen so far.
    pub sums: Sums,
    /// External ports and identifiers seen so far, of any transport.
    taken: BTreeSet<u16>,
    /// Address of the first inside host, whose external addresses are noted.
    first: IpAddr,
    rng: fastrand::Rng,
    next_port: u16,
    next_remote_port: u16,
    /// Sequence numbers of the SYNs that arrived outside: one that comes again is a repetition.
    syns: BTreeSet<u32>,
}

impl Prober {
    /// Takes all sides; `seed` is what random numbers come from.
    ///
    /// # Errors
    /// When the remotes have no free ports.
    pub fn new(sides: Sides, remotes: [IpAddr; 2], seed: u64) -> Result<Self, Error> {
        let Sides {
            inside,
            outside,
            second,
        } = sides;
        let (first_port, seed) = match Family::of(inside.address()) {
            Family::V4 => (INSIDE_PORT_FIRST, seed),
            Family::V6 => (INSIDE_PORT_FIRST_V6, !seed),
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let next_port = first_port + rng.u16(..PORT_SPREAD);
        let next_remote_port = REMOTE_PORT_FIRST + rng.u16(..PORT_SPREAD);
        let mut prober = Self {
            first: inside.address(),
            inside,
            outside,
            second,
            remotes,
            remote_ports: [0; 2],
            externals: BTreeSet::new(),
            sums: Sums::default(),
            taken: BTreeSet::new(),
            rng,
            next_port,
            next_remote_port,
            syns: BTreeSet::new(),
        };
        prober.remote_ports = [prober.remote_port()?, prober.remote_port()?];
        Ok(prober)
    }

    /// The family of all addresses.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// The inside address.
    pub fn inside_address(&self) -> IpAddr {
        self.inside.address()
    }

    /// Does something as the second inside host; `None` when there is none.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn as_second<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(second) = self.second.take() else {
            return Ok(None);
        };
        let first = std::mem::replace(&mut self.inside, second);
        let done = work(self);
        self.second = Some(std::mem::replace(&mut self.inside, first));
        done.map(Some)
    }

    /// A remote, by the indexes of its address and its port.
    pub fn remote(&self, address: usize, port: usize) -> SocketAddr {
        SocketAddr::new(self.remotes[address], self.remote_ports[port])
    }

    /// A free port of the inside, reserved.
    ///
    /// # Errors
    /// When there is none.
    pub fn port(&mut self, transport: Transport) -> Result<u16, Error> {
        for _ in 0..PORT_TRIES_MAX {
            let port = self.next_port;
            self.next_port = match port {
                u16::MAX => INSIDE_PORT_FIRST,
                _ => port + 1,
            };
            if self.inside.reserve(transport, port)? {
                return Ok(port);
            }
        }
        Err(Error::NoFreePort("inside"))
    }

    /// A free port of the remotes, reserved for both transports.
    ///
    /// # Errors
    /// When there is none.
    pub fn remote_port(&mut self) -> Result<u16, Error> {
        for _ in 0..PORT_TRIES_MAX {
            let port = self.next_remote_port;
            self.next_remote_port += 1;
            if self.outside.reserve(Transport::Udp, port)?
                && self.outside.reserve(Transport::Tcp, port)?
            {
                return Ok(port);
            }
        }
        Err(Error::NoFreePort("outside"))
    }

    /// A token that nobody else has.
    pub fn token(&mut self) -> Token {
        self.rng.u128(..).to_be_bytes()
    }

    /// A random number: identifications, sequence numbers.
    pub fn number(&mut self) -> u32 {
        self.rng.u32(1..)
    }

    /// An identification of a packet, not 0.
    pub fn identification(&mut self) -> u16 {
        self.rng.u16(1..)
    }

    /// Sends from inside until `find` finds something outside.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn out<T>(
        &mut self,
        packets: &[Vec<u8>],
        mut find: impl FnMut(&Packet) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mark = self.outside.mark()?;
        self.out_since(mark, packets, &mut find)
    }

    fn out_since<T>(
        &mut self,
        mark: Mark,
        packets: &[Vec<u8>],
        mut find: impl FnMut(&Packet) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        for _ in 0..TRIES {
            for packet in packets {
                self.inside.send(packet)?;
            }
            let found = self.outside.wait(mark, PATIENCE, &mut find)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Sends from outside until `find` finds something inside.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn into<T>(
        &mut self,
        packets: &[Vec<u8>],
        mut find: impl FnMut(&Packet) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mark = self.inside.mark()?;
        for _ in 0..TRIES {
            for packet in packets {
                self.outside.send(packet)?;
            }
            let found = self.inside.wait(mark, PATIENCE, &mut find)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Notes a packet that was translated.
    pub fn note(&mut self, packet: &Packet) {
        self.sums.count += 1;
        self.sums.header_wrong += usize::from(!packet.header_sum_holds);
        self.sums.transport_wrong += usize::from(packet.transport_sum() == Some(Checked::Wrong));
    }

    /// A datagram from an inside port to a remote; where it comes from there.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn udp_out(&mut self, port: u16, remote: SocketAddr) -> Result<Option<Mapping>, Error> {
        let token = self.token();
        let head = Head::new(self.inside_address(), remote.ip());
        let packet = head.udp((port, remote.port()), &token);
        let seen = self.out(&[packet], |packet| {
            (packet.payload() == token && packet.ends()?.1 == remote).then(|| packet.clone())
        })?;
        let Some((packet, ends)) = seen.and_then(|packet| Some((packet.clone(), packet.ends()?)))
        else {
            return Ok(None);
        };
        self.note(&packet);
        self.note_external(packet.src, ends.0.port());
        Ok(Some(Mapping {
            port,
            remote,
            external: ends.0,
        }))
    }

    /// A mapping of a new inside port.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn udp_mapping(&mut self, remote: SocketAddr) -> Result<Option<Mapping>, Error> {
        let port = self.port(Transport::Udp)?;
        self.udp_out(port, remote)
    }

    /// A datagram from a remote to a mapping; whether it comes in.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn udp_in(&mut self, mapping: &Mapping) -> Result<bool, Error> {
        let (packet, token) = self.udp_inbound(mapping.remote, mapping.external);
        let to = SocketAddr::new(self.inside_address(), mapping.port);
        let from = mapping.remote;
        let seen = self.into(&[packet], |packet| {
            (packet.payload() == token && packet.ends()? == (from, to)).then(|| packet.clone())
        })?;
        if let Some(packet) = &seen {
            self.note(packet);
        }
        Ok(seen.is_some())
    }

    /// A datagram from a remote, to be sent.
    pub fn udp_inbound(&mut self, from: SocketAddr, to: SocketAddr) -> (Vec<u8>, Token) {
        let token = self.token();
        let packet = Head::new(from.ip(), to.ip()).udp((from.port(), to.port()), &token);
        (packet, token)
    }

    /// Datagrams of strangers to a mapping; who of them comes in. `None` when not even the remote
    /// that was contacted does.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn udp_admitted(
        &mut self,
        mapping: &Mapping,
        strangers: &[SocketAddr],
    ) -> Result<Option<Vec<bool>>, Error> {
        let mark = self.inside.mark()?;
        let mut tokens = Vec::new();
        for stranger in strangers {
            let (packet, token) = self.udp_inbound(*stranger, mapping.external);
            self.outside.send(&packet)?;
            tokens.push(token);
        }
        if !self.udp_in(mapping)? {
            return Ok(None);
        }
        self.inside.wait(mark, GRACE, |_| None::<()>)?;
        let seen = self.inside.since(mark)?;
        let came = |token: &Token| seen.iter().any(|seen| seen.packet.payload() == token);
        Ok(Some(tokens.iter().map(came).collect()))
    }

    /// A SYN from an inside port; where it comes from outside, with its sequence numbers on either
    /// side.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_syn(&mut self, port: u16, remote: SocketAddr) -> Result<Option<Syn>, Error> {
        let sent = self.number();
        let segment = Segment {
            seq: sent,
            ack: 0,
            flags: flags::SYN,
        };
        let head = Head::new(self.inside_address(), remote.ip());
        let packet = head.tcp((port, remote.port()), segment, &[]);
        let known = self.syns.clone();
        let seen = self.out(&[packet], |packet| {
            let segment = packet.segment()?;
            let syn = segment.flags & flags::TELLING == flags::SYN;
            // A proxy has a number of its own.
            let new = segment.seq == sent || !known.contains(&segment.seq);
            (syn && new && packet.ends()?.1 == remote).then(|| (packet.clone(), segment.seq))
        })?;
        let Some((packet, seen)) = seen else {
            return Ok(None);
        };
        let Some((external, _)) = packet.ends() else {
            return Ok(None);
        };
        self.note(&packet);
        self.note_external(packet.src, external.port());
        self.syns.insert(seen);
        let mapping = Mapping {
            port,
            remote,
            external,
        };
        Ok(Some(Syn {
            mapping,
            sent,
            seen,
        }))
    }

    /// A connection from an inside port.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_open(&mut self, port: u16, remote: SocketAddr) -> Result<Option<Flow>, Error> {
        let Some(syn) = self.tcp_syn(port, remote)? else {
            return Ok(None);
        };
        let outside = End {
            next: self.number(),
            expected: syn.seen.wrapping_add(1),
        };
        let inside = End {
            next: syn.sent.wrapping_add(1),
            expected: 0,
        };
        let mut flow = Flow {
            mapping: syn.mapping,
            inside,
            outside,
        };
        // A proxy acknowledges by itself, before the inside does.
        let mark = self.outside.mark()?;
        let answered = self.tcp_in(&mut flow, flags::SYN | flags::ACK, &[])?;
        let opened = answered && self.tcp_out_since(mark, &mut flow, flags::ACK, &[])?;
        Ok(opened.then_some(flow))
    }

    /// A connection from a new inside port.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_flow(&mut self, remote: SocketAddr) -> Result<Option<Flow>, Error> {
        let port = self.port(Transport::Tcp)?;
        self.tcp_open(port, remote)
    }

    /// A segment of a connection from inside; whether it comes out, with the same payload.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_out(&mut self, flow: &mut Flow, flags: u8, payload: &[u8]) -> Result<bool, Error> {
        let mark = self.outside.mark()?;
        self.tcp_out_since(mark, flow, flags, payload)
    }

    fn tcp_out_since(
        &mut self,
        mark: Mark,
        flow: &mut Flow,
        flags: u8,
        payload: &[u8],
    ) -> Result<bool, Error> {
        let Mapping {
            port,
            remote,
            external,
        } = flow.mapping;
        let segment = flow.inside.segment(flags);
        let head = Head::new(self.inside_address(), remote.ip());
        let packet = head.tcp((port, remote.port()), segment, payload);
        let find = fits((external, remote), flags, payload);
        let seen = self.out_since(mark, &[packet], find)?;
        Ok(self.noted(seen, &mut flow.inside, &mut flow.outside, segment, payload))
    }

    /// A segment of a connection from the remote; whether it comes in, with the same payload.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_in(&mut self, flow: &mut Flow, flags: u8, payload: &[u8]) -> Result<bool, Error> {
        let Mapping {
            port,
            remote,
            external,
        } = flow.mapping;
        let segment = flow.outside.segment(flags);
        let head = Head::new(remote.ip(), external.ip());
        let packet = head.tcp((remote.port(), external.port()), segment, payload);
        let inside = SocketAddr::new(self.inside_address(), port);
        let seen = self.into(&[packet], fits((remote, inside), flags, payload))?;
        Ok(self.noted(seen, &mut flow.outside, &mut flow.inside, segment, payload))
    }

    /// Data from inside and an answer to it.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn tcp_talk(&mut self, flow: &mut Flow) -> Result<(bool, bool), Error> {
        let token = self.token();
        let out = self.tcp_out(flow, flags::ACK, &token)?;
        let token = self.token();
        let back = self.tcp_in(flow, flags::ACK, &token)?;
        if back {
            // As a stack would: a proxy waits for it.
            self.tcp_out(flow, flags::ACK, &[])?;
        }
        Ok((out, back))
    }

    fn noted(
        &mut self,
        seen: Option<Packet>,
        from: &mut End,
        to: &mut End,
        sent: Segment,
        payload: &[u8],
    ) -> bool {
        let Some((packet, arrived)) = seen.and_then(|p| Some((p.clone(), p.segment()?))) else {
            return false;
        };
        self.note(&packet);
        let counted = sent.flags & (flags::SYN | flags::FIN) != 0;
        let length = u32::try_from(payload.len()).unwrap_or(0) + u32::from(counted);
        if sent.flags & flags::RST == 0 {
            from.next = sent.seq.wrapping_add(length);
            to.expected = arrived.seq.wrapping_add(length);
        }
        true
    }

    /// A ping from inside to a remote, which the remote's own stack answers.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn ping(&mut self, id: u16, to: IpAddr) -> Result<Option<Ping>, Error> {
        let token = self.token();
        let [high, low] = id.to_be_bytes();
        let packet = Head::new(self.inside_address(), to).icmp(
            Message::EchoRequest,
            [high, low, 0, 1],
            &token,
        );
        let mark = self.inside.mark()?;
        let seen = self.out(&[packet], |packet| {
            let request = packet.is(Message::EchoRequest) && packet.payload() == token;
            request.then(|| packet.clone())
        })?;
        let Some((packet, external_id)) = seen.and_then(|p| Some((p.clone(), p.echo_id()?))) else {
            return Ok(None);
        };
        self.note(&packet);
        self.note_external(packet.src, external_id);
        let reply = self.inside.wait(mark, PATIENCE, |packet| {
            let reply = packet.is(Message::EchoReply) && packet.payload() == token;
            (reply && packet.src == to && packet.echo_id() == Some(id)).then(|| packet.clone())
        })?;
        if let Some(reply) = &reply {
            self.note(reply);
        }
        Ok(Some(Ping {
            external: (packet.src, external_id),
            answered: reply.is_some(),
        }))
    }

    fn note_external(&mut self, address: IpAddr, port: u16) {
        if self.inside_address() == self.first {
            self.externals.insert(address);
        }
        self.taken.insert(port);
    }

    /// An identifier for pings that nobody used yet, on either side: a NAT may have chosen any for
    /// somebody else.
    pub fn query_id(&mut self) -> u16 {
        loop {
            let id = self.next_port;
            self.next_port = match id {
                u16::MAX => INSIDE_PORT_FIRST,
                _ => id + 1,
            };
            // Ends, for far fewer are taken than there are.
            if !self.taken.contains(&id) {
                return id;
            }
        }
    }
}

/// A SYN that went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// Its mapping.
    pub mapping: Mapping,
    /// The sequence number that was sent.
    pub sent: u32,
    /// The one that arrived.
    pub seen: u32,
}

impl End {
    /// The next segment of this end.
    pub fn segment(&self, flags: u8) -> Segment {
        let ack = if flags & flags::ACK == 0 {
            0
        } else {
            self.expected
        };
        Segment {
            seq: self.next,
            ack,
            flags,
        }
    }
}

/// Finds the segment with these ends, flags and payload.
fn fits(
    ends: (SocketAddr, SocketAddr),
    flags: u8,
    payload: &[u8],
) -> impl FnMut(&Packet) -> Option<Packet> {
    move |packet| {
        let segment = packet.segment()?;
        // A reset is one with and without an acknowledgment: a proxy makes its own.
        let telling = if flags & flags::RST == 0 {
            flags::TELLING
        } else {
            flags::RST
        };
        let same_flags = segment.flags & telling == flags & telling;
        (same_flags && packet.ends()? == ends && packet.payload() == payload)
            .then(|| packet.clone())
    }
}
