//! AF_PACKET on an interface that has a kernel driver: the host end of a veth, or a network card.
//!
//! The interface is one of the calling thread's network namespace. Checksums and segmentation
//! stay unfinished in both directions (`PACKET_VNET_HDR`). The kernel takes the outer VLAN tag out
//! of every received frame; it is put back from the auxiliary data, so a frame has its bytes as
//! on the cable (packet(7), Documentation/networking/packet_mmap.rst).
//!
//! The packets of an interface without a link layer ([`Framing::Ip`]) are Ethernet frames to
//! everybody but this port.
//!
//! The kernel's own stack receives every frame as well: a [`crate::guard`] on the interface keeps
//! it from answering. Sent frames bypass the queueing discipline, and the interface's own are
//! never received.
//!
//! Around the queueing discipline the kernel drops what it would have to segment in software
//! (`__dev_direct_xmit` of net/core/dev.c). The first oversized frame that is refused so, by a tunnel
//! or a card without that offload, makes the socket go through the discipline from then on.
//!
//! Small frames pass by rings of shared memory where [`Rings::Wanted`] and the kernel has them; larger ones, and
//! all of them elsewhere, by one system call for up to [`BURST_MAX`].
//!
//! Limits: [`BURST_MAX`] frames per system call, [`QUEUES_MAX`] queues, which share the frames by
//! flow hash. Frames larger than the MTU need GSO. The kernel drops silently when the receive
//! buffer is full; [`PortIo::edge_stats`] tells. Thread-safety: each [`PacketSocket`] is one
//! queue with one owner.

mod burst;
mod open;
mod passing;
mod receive_ring;
mod slots;
mod transmit_ring;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf};

use crate::virtio::VNET_HEADER_SIZE;
use crate::{BATCH_MAX, Batch, Capabilities, EdgeStats, Framing, Negotiated, PortIo, sys};
use burst::{Receiver, Sender};

use receive_ring::ReceiveRing;
use transmit_ring::TransmitRing;

pub use burst::BURST_MAX;
pub(crate) use open::make_promiscuous;
pub use open::{
    FilterHandle, Membership, PacketBuilder, PacketError, QUEUES_MAX, RECEIVE_BUFFER_SIZE,
};
pub use passing::{Because, Feature, Passing, Rings, Ways};
pub use receive_ring::RECEIVE_SLOTS;
pub use slots::{RING_BYTES_MAX, SLOT_SIZE};
pub use transmit_ring::TRANSMIT_SLOTS;

/// The first kernel whose virtio-net header says oversized UDP (commit 860b7f27b8f7); nothing but
/// a frame that is refused would tell otherwise. Before it, such a frame *from* a sandbox cannot
/// be received either and counts as malformed: switch off `tx-udp-segmentation` there.
const UDP_SEGMENTATION_SINCE: (u32, u32) = (6, 2);

/// One queue of a network interface.
pub struct PacketSocket {
    fd: OwnedFd,
    offloads: Offloads,
    link: Link,
    way: Way,
    /// The kernel knows `VIRTIO_NET_HDR_GSO_UDP_L4`.
    udp_segmentation: bool,
    receive: Option<ReceiveRing>,
    transmit: Option<TransmitRing>,
    ways: Ways,
    receiver: Box<Receiver>,
    sender: Box<Sender>,
    /// `PACKET_STATISTICS` starts again from zero each time it is read.
    rx_dropped: Cell<u64>,
    /// Received frames that were cut off or malformed.
    rx_malformed: u64,
}

/// Whether frames carry a virtio-net header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// `PACKET_VNET_HDR`: unfinished checksums and GSO pass both ways.
    VnetHeader,
    /// Complete frames only. Unfinished frames are then received as if they were complete, so
    /// offloads must be off on the far side (`ethtool -K`); for drivers that refuse the header.
    None,
}

/// How frames leave by the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `PACKET_QDISC_BYPASS`.
    Direct,
    /// Through the queueing discipline, which segments what the interface cannot.
    Queued,
}

/// The interface of a socket.
#[derive(Clone, Copy, Debug)]
struct Link {
    interface: libc::c_int,
    framing: Framing,
}

impl PacketSocket {
    /// Opens one queue of the interface `name` as [`PacketBuilder::new`] describes it.
    ///
    /// # Errors
    /// As [`PacketBuilder::open`].
    pub fn open(name: &str) -> Result<Self, PacketError> {
        let mut queues = PacketBuilder::new(name).open()?;
        queues.pop().ok_or(PacketError::QueueCount(0))
    }

    fn new(fd: OwnedFd, offloads: Offloads, link: Link) -> Self {
        Self {
            fd,
            offloads,
            link,
            way: Way::Direct,
            udp_segmentation: sys::kernel_version() >= UDP_SEGMENTATION_SINCE,
            receive: None,
            transmit: None,
            ways: Ways {
                receive: Passing::Calls(Because::NotWanted),
                transmit: Passing::Calls(Because::NotWanted),
            },
            receiver: Receiver::new(),
            sender: Sender::new(),
            rx_dropped: Cell::new(0),
            rx_malformed: 0,
        }
    }

    /// What replaces the queue's filter while it is in use.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn filter_handle(&self) -> io::Result<FilterHandle> {
        FilterHandle::new(self.fd.as_fd())
    }

    /// How frames pass.
    pub const fn ways(&self) -> Ways {
        self.ways
    }

    /// Bytes of virtio-net header in front of each frame.
    fn header_size(&self) -> usize {
        match self.offloads {
            Offloads::VnetHeader => VNET_HEADER_SIZE,
            Offloads::None => 0,
        }
    }

    /// Whether a frame may have been dropped only because the interface does not segment.
    fn may_need_segments(&self, error: &io::Error, frame: &FrameBuf) -> bool {
        self.way == Way::Direct
            && frame.offload.gso().is_some()
            && error.raw_os_error() == Some(libc::ENOBUFS)
    }

    /// Sends through the queueing discipline from now on.
    fn queue(&mut self) -> io::Result<()> {
        self.way = Way::Queued;
        let ring = self.transmit.as_ref().map(TransmitRing::socket);
        // Both, or one frame would overtake another.
        for socket in [Some(self.fd.as_fd()), ring].into_iter().flatten() {
            sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &0)?;
        }
        Ok(())
    }

    /// Sends the first of `frames`, as many as go the same way, and returns how many were accepted.
    fn send_run(&mut self, frames: &[FrameBuf]) -> io::Result<usize> {
        let shape = (self.offloads, self.link);
        let Some(ring) = &mut self.transmit else {
            return self.sender.send(self.fd.as_fd(), frames, shape);
        };
        let by_ring = ring.takes(&frames[0]);
        let run = frames.iter().take_while(|it| ring.takes(it) == by_ring);
        let run = &frames[..run.count()];
        if by_ring {
            let sent = ring.send(run)?;
            if sent > 0 {
                return Ok(sent);
            }
            // Slots that a device is not done with are before these: the order is kept.
        }
        self.sender.send(self.fd.as_fd(), run, shape)
    }

    /// Receives by the ring, which is made anew when the kernel fills it no more; by system calls where
    /// that fails.
    fn recv_slots(&mut self, mut ring: ReceiveRing, rx: &mut Batch) -> io::Result<usize> {
        if ring.has_stopped() {
            let (malformed, missed) = (ring.malformed, ring.missed);
            match ring.remade(self.fd.as_fd()) {
                Ok(remade) => ring = remade,
                Err(error) => {
                    self.ways.receive = Passing::Calls(Because::of(&error));
                    self.rx_malformed += malformed;
                    self.rx_dropped.set(self.rx_dropped.get() + missed);
                    return Ok(0);
                }
            }
        }
        let received = ring.recv(self.fd.as_fd(), &mut self.receiver, rx, self.link);
        self.receive = Some(ring);
        received
    }

    /// One system call's worth of frames, and whether there may be more.
    fn recv_burst(&mut self, rx: &mut Batch) -> io::Result<Queue> {
        let shape = (self.header_size(), self.link);
        let wanted = self.receiver.wanted(rx);
        let fd = self.fd.as_fd();
        let arrived = self.receiver.receive(fd, rx, wanted, shape)?;
        self.rx_malformed += self.receiver.deliver(arrived, rx, shape);
        Ok(if arrived == 0 {
            Queue::Untouched
        } else if arrived < wanted {
            Queue::Drained
        } else {
            Queue::MayHoldMore
        })
    }
}

impl PortIo for PacketSocket {
    fn capabilities(&self) -> Capabilities {
        match self.offloads {
            Offloads::VnetHeader => Capabilities {
                gso_udp: self.udp_segmentation,
                ..Capabilities::offloading(FRAME_SIZE_MAX)
            },
            Offloads::None => Capabilities::plain(FRAME_SIZE_MAX),
        }
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        if let Some(ring) = self.receive.take() {
            return self.recv_slots(ring, rx).map_err(classified);
        }
        let before = rx.len();
        // Skipped frames count too, so that a flood of them cannot hold the worker.
        for _ in 0..BATCH_MAX {
            if rx.is_full() {
                break;
            }
            match self.recv_burst(rx) {
                Ok(Queue::MayHoldMore) => {}
                // Asking again would only bring WouldBlock, which the next call tells.
                Ok(Queue::Drained) if rx.len() > before => break,
                Ok(Queue::Drained) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(Queue::Untouched) => break,
                // A frame that the header cannot describe was consumed (virtio_net_hdr_from_skb).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.rx_malformed += 1,
                Err(_) if rx.len() > before => break,
                Err(error) => return Err(classified(error)),
            }
        }
        Ok(rx.len() - before)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < frames.len() {
            match self.send_run(&frames[sent..]) {
                Ok(count) => sent += count,
                Err(_) if sent > 0 => break,
                Err(error) if self.may_need_segments(&error, &frames[0]) => self.queue()?,
                Err(error) => return Err(classified(error)),
            }
        }
        Ok(sent)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn edge_stats(&self) -> EdgeStats {
        let read = sys::get_option::<libc::tpacket_stats>(
            self.fd.as_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
        );
        // The option exists on every packet socket; were it refused, the count stays.
        if let Ok(stats) = read {
            let dropped = self.rx_dropped.get() + u64::from(stats.tp_drops);
            self.rx_dropped.set(dropped);
            if let Some(ring) = &self.receive {
                ring.note_missed(stats.tp_drops.into());
            }
        }
        let ring = self.receive.as_ref();
        EdgeStats {
            rx_dropped: self.rx_dropped.get() + ring.map_or(0, |ring| ring.missed),
            rx_malformed: self.rx_malformed + ring.map_or(0, |ring| ring.malformed),
            tx_dropped: 0,
        }
    }

    fn negotiated(&self) -> Vec<Negotiated> {
        self.ways.in_words()
    }
}

/// What the size of a burst tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    /// No buffer was free to receive into.
    Untouched,
    MayHoldMore,
    Drained,
}

impl std::fmt::Debug for PacketSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PacketSocket({:?}, {:?})", self.fd, self.offloads)
    }
}

/// The kernel's words in those of [`PortIo`]: the interface is down (ENETDOWN), gone (ENXIO,
/// ENODEV), or carries no frame of that size (EMSGSIZE).
fn classified(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
            io::Error::new(io::ErrorKind::NotConnected, error)
        }
        Some(libc::EMSGSIZE) => io::Error::new(io::ErrorKind::InvalidInput, error),
        _ => error,
    }
}
