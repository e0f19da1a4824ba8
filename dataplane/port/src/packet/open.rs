//! Opening packet sockets: options, filters, and the group among which flows are spread.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::burst::EMPTY_ADDRESS;
use super::passing::{Because, Feature, Passing, Rings, Ways};
use super::receive_ring::{RECEIVE_SLOTS, ReceiveRing};
use super::slots::{self, RING_BYTES_MAX, Share, Slots};
use super::transmit_ring::{TRANSMIT_SLOTS, TransmitRing};
use super::{Link, Offloads, PacketSocket, UDP_SEGMENTATION_SINCE};
use crate::{Framing, sys};

/// Queues of one interface (`PACKET_FANOUT_MAX` before Linux 5.10).
pub const QUEUES_MAX: usize = 256;

/// Receive buffer asked for: some 2,000 frames of 1,500 bytes as the kernel counts them, or 60
/// full-size GSO frames: what arrives while a worker serves its other ports.
pub const RECEIVE_BUFFER_SIZE: u32 = 8 << 20;

/// How to open the queues of an interface.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    name: Box<str>,
    queues: usize,
    offloads: Offloads,
    framing: Framing,
    membership: Membership,
    receive_buffer_size: u32,
    filter: Option<Box<[libc::sock_filter]>>,
    rings: Rings,
    ring_bytes_max: usize,
    refused: Vec<(Feature, c_int)>,
}

impl PacketBuilder {
    /// One queue with offloads for the interface `name`, which is left as selective as it is.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            queues: 1,
            offloads: Offloads::VnetHeader,
            framing: Framing::Ethernet,
            membership: Membership::Own,
            receive_buffer_size: RECEIVE_BUFFER_SIZE,
            filter: None,
            rings: Rings::Off,
            ring_bytes_max: RING_BYTES_MAX,
            refused: Vec::new(),
        }
    }

    /// Opens this many queues, among which the kernel spreads flows by their hash.
    #[must_use]
    pub fn queues(mut self, count: usize) -> Self {
        self.queues = count;
        self
    }

    /// Sets whether frames carry a virtio-net header.
    #[must_use]
    pub fn offloads(mut self, offloads: Offloads) -> Self {
        self.offloads = offloads;
        self
    }

    /// Sets what the interface's packets begin with.
    #[must_use]
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sets whether frames for other stations are wanted.
    #[must_use]
    pub fn membership(mut self, membership: Membership) -> Self {
        self.membership = membership;
        self
    }

    /// Sets how many bytes the kernel may hold for each queue.
    #[must_use]
    pub fn receive_buffer_size(mut self, bytes: u32) -> Self {
        self.receive_buffer_size = bytes;
        self
    }

    /// Receives only what a classic BPF program admits, from the first frame on. At most
    /// `BPF_MAXINSNS` instructions.
    #[must_use]
    pub fn filter(mut self, program: &[libc::sock_filter]) -> Self {
        self.filter = Some(program.into());
        self
    }

    /// Sets whether frames pass by rings of memory that is shared with the kernel, of frames with an
    /// Ethernet header and a description of what is left to do.
    #[must_use]
    pub fn rings(mut self, rings: Rings) -> Self {
        self.rings = rings;
        self
    }

    /// Sets how many bytes all rings of the process may have with these, [`RING_BYTES_MAX`] where it is not
    /// set.
    #[must_use]
    pub fn ring_bytes_max(mut self, bytes: usize) -> Self {
        self.ring_bytes_max = bytes;
        self
    }

    /// Goes on as if the kernel had refused a feature with this error: for tests of what is done
    /// without it.
    #[must_use]
    pub fn refuse(mut self, feature: Feature, errno: c_int) -> Self {
        self.refused.push((feature, errno));
        self
    }

    /// Opens the queues in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`PacketError::NotFound`] and [`PacketError::NotPermitted`] as they say.
    pub fn open(&self) -> Result<Vec<PacketSocket>, PacketError> {
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(PacketError::QueueCount(self.queues));
        }
        let index = sys::interface_index(&self.name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.not_found(),
            _ => self.failed("look up the interface of", error),
        })?;
        let index = c_int::try_from(index).map_err(|_| self.not_found())?;
        let mut ways = self.ways_wanted();
        loop {
            match self.open_all(index, ways) {
                Ok(sockets) => return Ok(sockets),
                // All queues pass frames the same way: each round does without one ring more.
                Err(Failure::Receive(because)) => ways.receive = Passing::Calls(because),
                Err(Failure::Transmit(because)) => ways.transmit = Passing::Calls(because),
                Err(Failure::Socket(error)) => return Err(error),
            }
        }
    }

    /// How frames may pass, before the kernel was asked.
    fn ways_wanted(&self) -> Ways {
        let whole = (self.framing, self.offloads) == (Framing::Ethernet, Offloads::VnetHeader);
        if self.rings == Rings::Off || !whole {
            let calls = Passing::Calls(Because::NotWanted);
            return Ways {
                receive: calls,
                transmit: calls,
            };
        }
        let says_all = self.ask(Feature::Header, || {
            match sys::kernel_version() >= UDP_SEGMENTATION_SINCE {
                true => Ok(()),
                false => Err(io::ErrorKind::Unsupported.into()),
            }
        });
        Ways {
            receive: match says_all {
                Ok(()) => Passing::Ring,
                Err(_) => Passing::Calls(Because::OldKernel),
            },
            transmit: Passing::Ring,
        }
    }

    /// Asks the kernel, unless the builder is to refuse in its place.
    fn ask<T>(&self, feature: Feature, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.refused.iter().find(|(refused, _)| *refused == feature) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => call(),
        }
    }

    fn open_all(&self, index: c_int, ways: Ways) -> Result<Vec<PacketSocket>, Failure> {
        let mut sockets = Vec::with_capacity(self.queues);
        let mut group = None;
        for _ in 0..self.queues {
            let socket = self.open_queue(index, ways)?;
            if self.queues > 1 {
                let joined = self.ask(Feature::Group, || join_fanout(socket.fd.as_fd(), group));
                group = Some(joined.map_err(|error| self.failed("share the frames of", error))?);
            }
            sockets.push(socket);
        }
        for socket in &sockets {
            let socket = socket.fd.as_fd();
            match &self.filter {
                Some(program) => attach_filter(socket, program),
                None => sys::set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0),
            }
            .map_err(|error| self.failed("filter", error))?;
        }
        Ok(sockets)
    }

    /// One socket, bound, and closed to all frames: on its way into the group it would receive
    /// what the others receive too.
    fn open_queue(&self, index: c_int, ways: Ways) -> Result<PacketSocket, Failure> {
        // SOCK_DGRAM takes no virtio-net header (packet_setsockopt of net/packet/af_packet.c); of an
        // interface without a link header, SOCK_RAW gives and takes the same bytes.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = self
            .ask(Feature::Socket, || sys::socket(libc::AF_PACKET, kind, 0))
            .map_err(|error| self.failed("open", error))?;
        let socket = fd.as_fd();
        attach_filter(socket, &[REFUSE_ALL]).map_err(|error| self.failed("filter", error))?;
        let packet = |name, value: c_int| sys::set_option(socket, libc::SOL_PACKET, name, &value);
        if self.offloads == Offloads::VnetHeader {
            self.ask(Feature::Description, || packet(libc::PACKET_VNET_HDR, 1))
                .map_err(|error| self.failed("set the header of", error))?;
        }
        packet(libc::PACKET_AUXDATA, 1)
            .map_err(|error| self.failed("ask for the VLAN tags of", error))?;
        // Both save time only: what they leave in is skipped, or queued, at our own cost.
        // PACKET_IGNORE_OUTGOING is Linux 4.20.
        for saving in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_QDISC_BYPASS] {
            drop(packet(saving, 1));
        }
        self.size_receive_buffer(socket)
            .map_err(|error| self.failed("size the buffer of", error))?;
        let receive = match ways.receive {
            Passing::Ring => Some(self.receive_ring(socket).map_err(Failure::Receive)?),
            Passing::Calls(_) => None,
        };
        let transmit = match ways.transmit {
            Passing::Ring => Some(self.transmit_ring(index).map_err(Failure::Transmit)?),
            Passing::Calls(_) => None,
        };
        bind(socket, index, libc::ETH_P_ALL).map_err(|error| self.failed("bind", error))?;
        if self.membership == Membership::Promiscuous {
            join_all(socket, index).map_err(|error| self.failed("make promiscuous", error))?;
        }
        let link = Link {
            interface: index,
            framing: self.framing,
        };
        Ok(PacketSocket {
            receive,
            transmit,
            ways,
            ..PacketSocket::new(fd, self.offloads, link)
        })
    }

    fn receive_ring(&self, socket: BorrowedFd<'_>) -> Result<ReceiveRing, Because> {
        let share = Share::take(RECEIVE_SLOTS, self.ring_bytes_max).ok_or(Because::Limit)?;
        let made = (|| {
            self.ask(Feature::Version, || slots::choose_version(socket))?;
            // What is larger than a slot is kept whole, in as many bytes as the buffer has.
            sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1)?;
            self.ask(Feature::ReceiveRing, || {
                slots::make(socket, libc::PACKET_RX_RING, RECEIVE_SLOTS)
            })?;
            self.ask(Feature::ReceiveMapping, || Slots::map(socket, share))
        })();
        let slots = made.map_err(|error| Because::of(&error))?;
        Ok(ReceiveRing::new(slots))
    }

    fn transmit_ring(&self, index: c_int) -> Result<TransmitRing, Because> {
        let share = Share::take(TRANSMIT_SLOTS, self.ring_bytes_max).ok_or(Because::Limit)?;
        let made = (|| {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
            let fd = self.ask(Feature::TransmitSocket, || {
                sys::socket(libc::AF_PACKET, kind, 0)
            })?;
            let socket = fd.as_fd();
            let packet =
                |name, value: c_int| sys::set_option(socket, libc::SOL_PACKET, name, &value);
            packet(libc::PACKET_VNET_HDR, 1)?;
            drop(packet(libc::PACKET_QDISC_BYPASS, 1));
            self.ask(Feature::Version, || slots::choose_version(socket))?;
            self.ask(Feature::TransmitRing, || {
                slots::make(socket, libc::PACKET_TX_RING, TRANSMIT_SLOTS)
            })?;
            let slots = self.ask(Feature::TransmitMapping, || Slots::map(socket, share))?;
            // No protocol: it receives nothing.
            bind(socket, index, 0)?;
            let mtu = sys::interface_mtu(&self.name)?;
            Ok(TransmitRing::new(fd, slots, mtu))
        })();
        made.map_err(|error: io::Error| Because::of(&error))
    }

    /// Beyond `net.core.rmem_max` only with CAP_NET_ADMIN; without it, as much as allowed.
    fn size_receive_buffer(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let size = c_int::try_from(self.receive_buffer_size).unwrap_or(c_int::MAX);
        let set = |name| sys::set_option(socket, libc::SOL_SOCKET, name, &size);
        set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))
    }

    fn not_found(&self) -> PacketError {
        PacketError::NotFound {
            name: self.name.clone(),
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> PacketError {
        let name = self.name.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => PacketError::NotPermitted { name },
            Some(libc::ENODEV | libc::ENXIO) => PacketError::NotFound { name },
            _ => PacketError::Io {
                name,
                operation,
                source,
            },
        }
    }
}

/// Why the queues could not be opened as they were wanted.
enum Failure {
    /// There is no ring to receive by.
    Receive(Because),
    /// There is no ring to send by.
    Transmit(Because),
    /// There is no socket.
    Socket(PacketError),
}

impl From<PacketError> for Failure {
    fn from(error: PacketError) -> Self {
        Self::Socket(error)
    }
}

/// Replaces the filter of a queue that is in use, from any thread.
///
/// What is published changes while frames flow; each replacement is atomic. The handle keeps the
/// socket open: drop it with the port.
#[derive(Debug)]
pub struct FilterHandle {
    fd: OwnedFd,
}

impl FilterHandle {
    pub(super) fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = socket.try_clone_to_owned()?;
        Ok(Self { fd })
    }

    /// Admits from now on what `program` admits, at most `BPF_MAXINSNS` instructions of classic
    /// BPF. Frames that were received before stay.
    ///
    /// # Errors
    /// `InvalidInput` when the kernel takes `program` for none; the earlier filter then stays.
    pub fn replace(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        attach_filter(self.fd.as_fd(), program)
    }
}

/// Has an interface receive frames for every station for as long as the returned socket is open, which
/// receives nothing itself.
pub(crate) fn make_promiscuous(interface: u32) -> io::Result<OwnedFd> {
    // Without a protocol.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    let index = c_int::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    join_all(socket.as_fd(), index)?;
    Ok(socket)
}

/// Has an interface receive frames for every station for as long as the socket is open.
fn join_all(socket: BorrowedFd<'_>, interface: c_int) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: interface,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let (level, name) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    sys::set_option(socket, level, name, &request)
}

/// A program that admits nothing.
const REFUSE_ALL: libc::sock_filter = libc::sock_filter {
    code: (libc::BPF_RET | libc::BPF_K) as u16,
    jt: 0,
    jf: 0,
    k: 0,
};

/// Whether frames for other stations are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The interface stays as it is: right for a veth, which filters nothing, and for an uplink,
    /// where frames for other stations are none of our business.
    Own,
    /// `PACKET_MR_PROMISC` for as long as the socket is open: for a card that is a port of a
    /// bridge domain.
    Promiscuous,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Raw sockets were refused.
    #[error(
        "not permitted to open a packet socket on '{name}'; it needs CAP_NET_RAW in the user \
         namespace that owns this network namespace"
    )]
    NotPermitted {
        /// The interface.
        name: Box<str>,
    },
    /// There is no such interface.
    #[error("there is no interface '{name}' in this network namespace")]
    NotFound {
        /// The interface.
        name: Box<str>,
    },
    /// Zero queues, or too many.
    #[error("a packet socket has 1 to {QUEUES_MAX} queues, not {0}")]
    QueueCount(usize),
    /// Anything else.
    #[error("cannot {operation} the packet socket on '{name}': {source}")]
    Io {
        /// The interface.
        name: Box<str>,
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// `SO_ATTACH_FILTER`.
fn attach_filter(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len,
        // The kernel copies the program and does not write to it.
        filter: filter.as_ptr().cast_mut(),
    };
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Binds to an interface. For every protocol, a socket receives all that the interface receives, before tc
/// sees it: one for a single protocol would be served after clsact ingress.
fn bind(socket: BorrowedFd<'_>, index: c_int, protocol: c_int) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: index,
        ..EMPTY_ADDRESS
    };
    // SAFETY: the address is a live `sockaddr_ll`, and the size is its own.
    // JUSTIFICATION: std binds to IP and unix addresses only.
    let returned = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    sys::check(returned).map(drop)
}

/// Joins the fanout group, or founds one with an id that nobody in this namespace has, and
/// returns the group's id. All sockets of a group see flows by their hash.
fn join_fanout(socket: BorrowedFd<'_>, group: Option<u16>) -> io::Result<u16> {
    let founding = match group {
        Some(_) => 0,
        None => libc::PACKET_FANOUT_FLAG_UNIQUEID,
    };
    let id = c_uint::from(group.unwrap_or(0));
    let join = |flags: c_uint| {
        let argument = id | ((libc::PACKET_FANOUT_HASH | flags) << 16);
        sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &argument)
    };
    // Linux before 6.0 does not know the flag; our own frames are then skipped one by one.
    join(founding | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING).or_else(|_| join(founding))?;
    let joined: c_int = sys::get_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
    // The low half is the id, the high half the type and flags.
    Ok((joined & 0xffff) as u16)
}
