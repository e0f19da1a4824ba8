//! One side of the NAT: a namespace with an interface, whose packets are written and seen raw while
//! its own stack stays silent.
//!
//! # Theory of operation
//! Packets leave by an `IPPROTO_RAW` socket, which routes them as the namespace would its own, and
//! are seen by a packet socket in cooked mode, which works on Ethernet, TAP and tun alike. The
//! namespace's stack sees them too; it would answer a datagram to nobody with an ICMP error and a
//! segment to nobody with a reset. So every port that a probe uses is *reserved*: a socket is bound
//! to it whose filter lets nothing in, and the stack says nothing. All of it ends with the process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::Error;
use super::packet::{Family, Packet};
use crate::netns::Netns;

/// Packets that a side remembers; the oldest go first. A whole run with timers sees fewer.
const SEEN_MAX: usize = 32_768;
/// Sockets that reserve ports; below the 1,024 descriptors that a process may have by default.
const RESERVED_MAX: usize = 800;
/// Bytes that wait in the packet socket.
const BUFFER_SIZE: usize = 4 << 20;
/// Largest packet that is read.
const PACKET_SIZE_MAX: usize = 1 << 16;
/// `PACKET_OUTGOING` of `linux/if_packet.h`: what the namespace sent itself.
const OUTGOING: u8 = 4;
/// `BPF_RET | BPF_K` of `linux/bpf_common.h`; with 0 it lets nothing in.
const RETURN: u16 = 0x06;

/// What a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A packet that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was read.
    pub at: Instant,
    /// The packet.
    pub packet: Packet,
}

/// One side of the NAT.
#[derive(Debug)]
pub struct Side {
    netns: Netns,
    /// Who it is in messages.
    label: &'static str,
    link: u32,
    /// Largest packet that its interface takes, in bytes.
    pub mtu: u32,
    addresses: Vec<IpAddr>,
    send: OwnedFd,
    receive: OwnedFd,
    seen: Vec<Seen>,
    /// How many have been forgotten, so that marks stay valid.
    forgotten: usize,
    reserved: Vec<(Transport, u16, Socket)>,
    buffer: Vec<u8>,
}

/// All sides of a NAT.
#[derive(Debug)]
pub struct Sides {
    /// Behind the NAT.
    pub inside: Side,
    /// The remotes.
    pub outside: Side,
    /// Another host behind the NAT, if there is one.
    pub second: Option<Side>,
}

/// A moment in what a side has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl Side {
    /// Opens the sockets. Only what comes in by `link` for one of `addresses` is seen.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW` in the namespace.
    pub fn open(
        label: &'static str,
        netns: &Netns,
        (link, mtu): (u32, u32),
        addresses: &[IpAddr],
    ) -> Result<Self, Error> {
        let failed = |action| {
            move |errno: Errno| Error::Socket {
                action,
                side: label,
                source: errno.into(),
            }
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (inet, ether) = match Family::of(addresses[0]) {
            Family::V4 => (AddressFamily::Inet, SockProtocol::EthIp),
            Family::V6 => (AddressFamily::Inet6, SockProtocol::EthIpv6),
        };
        let open = || {
            let send = socket(inet, SockType::Raw, flags, SockProtocol::Raw)?;
            let receive = socket(AddressFamily::Packet, SockType::Datagram, flags, ether)?;
            Ok((send, receive))
        };
        let (send, receive) = netns.run(open)?.map_err(failed("open a raw socket"))?;
        // Best effort: without it a burst of somebody else's traffic may hide a packet.
        if let Err(errno) = setsockopt(&receive, sockopt::RcvBufForce, &BUFFER_SIZE) {
            tracing::debug!(%errno, label, "a small receive buffer");
        }
        Ok(Self {
            netns: netns.clone(),
            label,
            link,
            mtu,
            addresses: addresses.to_vec(),
            send,
            receive,
            seen: Vec::new(),
            forgotten: 0,
            reserved: Vec::new(),
            buffer: vec![0; PACKET_SIZE_MAX],
        })
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Reserves a port of its addresses, as long as this exists; `false` when somebody else has it.
    /// Of the addresses alone, for another side may have the same namespace.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn reserve(&mut self, transport: Transport, port: u16) -> Result<bool, Error> {
        let ours = |(t, p, _): &(Transport, u16, Socket)| (*t, *p) == (transport, port);
        if self.reserved.iter().any(ours) {
            return Ok(true);
        }
        if self.reserved.len() >= RESERVED_MAX {
            return Ok(false);
        }
        let bind = |address: IpAddr| -> io::Result<Socket> {
            let address = SocketAddr::new(address, port);
            let (kind, protocol) = match transport {
                Transport::Udp => (Type::DGRAM, Protocol::UDP),
                Transport::Tcp => (Type::STREAM, Protocol::TCP),
            };
            let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
            socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
            socket.bind(&address.into())?;
            if transport == Transport::Tcp {
                // A socket that is only bound does not keep the stack from resetting.
                socket.listen(1)?;
            }
            Ok(socket)
        };
        let bind_all = || -> io::Result<Vec<Socket>> {
            self.addresses
                .iter()
                .map(|address| bind(*address))
                .collect()
        };
        match self.netns.run(bind_all)? {
            Ok(sockets) => {
                let sockets = sockets.into_iter();
                self.reserved
                    .extend(sockets.map(|socket| (transport, port, socket)));
                Ok(true)
            }
            // Taken, or below 1024 without CAP_NET_BIND_SERVICE.
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EADDRINUSE | Errno::EACCES) => Ok(false),
                _ => Err(Error::Socket {
                    action: "reserve a port",
                    side: self.label,
                    source: error,
                }),
            },
        }
    }

    /// Sends a packet; `false` when it is too large for the interface.
    ///
    /// # Errors
    /// When the namespace has no way to its destination.
    pub fn send(&self, packet: &[u8]) -> Result<bool, Error> {
        let Some(to) = Packet::read(packet).map(|packet| packet.dst) else {
            return Ok(false);
        };
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        match sendto(self.send.as_raw_fd(), packet, &to, MsgFlags::empty()) {
            // A full queue is a lost packet, as on any wire.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(true),
            Err(Errno::EMSGSIZE) => Ok(false),
            Err(errno) => Err(Error::Socket {
                action: "send",
                side: self.label,
                source: errno.into(),
            }),
        }
    }

    /// The present moment.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn mark(&mut self) -> Result<Mark, Error> {
        self.read()?;
        Ok(Mark(self.forgotten + self.seen.len()))
    }

    /// What has been seen since a mark, without waiting.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn since(&mut self, mark: Mark) -> Result<&[Seen], Error> {
        self.read()?;
        let from = mark.0.saturating_sub(self.forgotten);
        Ok(self.seen.get(from..).unwrap_or_default())
    }

    /// The first thing since `mark` in which `find` finds something, waiting for it for up to
    /// `patience`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait<T>(
        &mut self,
        mark: Mark,
        patience: Duration,
        mut find: impl FnMut(&Packet) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + patience;
        let mut next = mark;
        loop {
            let found = self.since(next)?.iter().find_map(|seen| find(&seen.packet));
            if found.is_some() {
                return Ok(found);
            }
            next = Mark(self.forgotten + self.seen.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait_readable(left)?;
        }
    }

    fn wait_readable(&self, patience: Duration) -> Result<(), Error> {
        let mut polled = [PollFd::new(self.receive.as_fd(), PollFlags::POLLIN)];
        let millis = u16::try_from(patience.as_millis())
            .unwrap_or(u16::MAX)
            .max(1);
        match poll(&mut polled, PollTimeout::from(millis)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(self.receive_failed(errno)),
        }
    }

    /// Reads what has arrived.
    fn read(&mut self) -> Result<(), Error> {
        loop {
            let fd = self.receive.as_raw_fd();
            let (size, from) = match recvfrom::<LinkAddr>(fd, &mut self.buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(()),
                // The interface went down; whoever waits for a packet will say so.
                Err(Errno::ENETDOWN | Errno::EINTR) => continue,
                Err(errno) => return Err(self.receive_failed(errno)),
            };
            let by_link = from.is_some_and(|from| {
                from.ifindex() == self.link as usize && from.pkttype() != OUTGOING
            });
            let packet = Packet::read(&self.buffer[..size]);
            let packet = packet.filter(|packet| by_link && self.addresses.contains(&packet.dst));
            let Some(packet) = packet else { continue };
            if self.seen.len() >= SEEN_MAX {
                let half = self.seen.len() / 2;
                self.seen.drain(..half);
                self.forgotten += half;
            }
            let at = Instant::now();
            self.seen.push(Seen { at, packet });
        }
    }

    fn receive_failed(&self, errno: Errno) -> Error {
        Error::Socket {
            action: "receive",
            side: self.label,
            source: errno.into(),
        }
    }
}
