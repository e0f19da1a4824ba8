//! Receiving by a ring: what is there is taken without a system call.
//!
//! # Theory of operation
//! The kernel copies each frame into the next slot. Of one that is larger than a slot it copies the beginning
//! and keeps the whole in the socket's queue (`PACKET_COPY_THRESH`), which the slot says; so the slots tell the
//! order, and what is larger is taken by `recvmmsg`, several at once. A frame that neither has room for is cut
//! off, counted as missed, and skipped.
//!
//! Where a frame comes that the virtio-net header cannot describe, of SCTP that is to be segmented, the kernel
//! leaves the next slot marked as in use and drops whatever comes from then on (`tpacket_rcv` of
//! net/packet/af_packet.c sets the mark before it looks). That is noticed, when frames were missed though the
//! ring was empty all the while, and the ring is made anew.

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;

use dataplane_core::frame::FrameBuf;
use dataplane_core::headers::ETHERNET_SIZE;

use super::Link;
use super::burst::{self, Arrival, Receiver};
use super::slots::{self, Slots};
use crate::virtio::{self, VNET_HEADER_SIZE};
use crate::{BATCH_MAX, Batch, sys};

/// Slots to receive into: what arrives in half a millisecond at 2 million frames per second, while a worker
/// serves its other ports. 2 MiB.
pub const RECEIVE_SLOTS: usize = 1_024;

/// Slots that one call looks at: skipped frames count too, so that a flood of them cannot hold the worker.
const LOOKS_MAX: usize = 4 * BATCH_MAX;

/// Where the kernel says in a slot who has sent the frame: `sll_pkttype`, behind the header.
const PACKET_TYPE_OFFSET: usize =
    size_of::<libc::tpacket2_hdr>() + std::mem::offset_of!(libc::sockaddr_ll, sll_pkttype);

/// A ring to receive by.
pub struct ReceiveRing {
    slots: Slots,
    /// The slot that the kernel fills next, or has filled.
    next: usize,
    /// Slots gone through.
    taken: u64,
    /// Frames cut off or malformed.
    pub malformed: u64,
    /// Frames that neither a slot nor the socket's queue had room for.
    pub missed: u64,
    watch: Watch,
}

/// Notices that the kernel fills no slot any more.
#[derive(Debug, Default)]
struct Watch {
    /// How many slots had been gone through when the ring was last seen empty.
    empty_at: Cell<Option<u64>>,
    stopped: Cell<bool>,
}

impl ReceiveRing {
    pub fn new(slots: Slots) -> Self {
        Self {
            slots,
            next: 0,
            taken: 0,
            malformed: 0,
            missed: 0,
            watch: Watch::default(),
        }
    }

    /// Appends received frames to `rx`, as [`crate::PortIo::recv`] says.
    pub fn recv(
        &mut self,
        fd: BorrowedFd<'_>,
        receiver: &mut Receiver,
        rx: &mut Batch,
        link: Link,
    ) -> io::Result<usize> {
        let before = rx.len();
        for _ in 0..LOOKS_MAX {
            if rx.is_full() {
                break;
            }
            let status = self.slots.status(self.next);
            if status == libc::TP_STATUS_KERNEL {
                if rx.len() > before {
                    rx.mark_drained();
                    break;
                }
                sys::take_error(fd)?;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if status & libc::TP_STATUS_COPY != 0 {
                match self.recv_queued(fd, receiver, rx, link) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) if rx.len() > before => break,
                    Err(error) => return Err(error),
                }
                continue;
            }
            let Some(buf) = rx.take_buffer() else {
                break;
            };
            self.recv_slot(buf, rx);
        }
        Ok(rx.len() - before)
    }

    /// Takes the frame of the next slot, which holds all of it or what there was room for.
    fn recv_slot(&mut self, mut buf: FrameBuf, rx: &mut Batch) {
        let header = self.slots.header(self.next);
        if header.tp_snaplen < header.tp_len {
            self.missed += 1;
            rx.recycle(buf);
        } else {
            match self.accept(&header, &mut buf) {
                Arrival::Frame => rx.push(buf),
                Arrival::Outgoing => rx.recycle(buf),
                Arrival::Malformed => {
                    self.malformed += 1;
                    rx.recycle(buf);
                }
            }
        }
        self.release(1);
    }

    /// Makes what the next slot holds a frame in `buf`.
    fn accept(&self, header: &libc::tpacket2_hdr, buf: &mut FrameBuf) -> Arrival {
        let sent_by = self.slots.bytes(self.next, PACKET_TYPE_OFFSET, 1);
        if sent_by == Some(&[libc::PACKET_OUTGOING]) {
            return Arrival::Outgoing;
        }
        let size = header.tp_snaplen as usize;
        let start = usize::from(header.tp_mac).checked_sub(VNET_HEADER_SIZE);
        let bytes = start.and_then(|at| self.slots.bytes(self.next, at, VNET_HEADER_SIZE + size));
        let Some((description, frame)) = bytes.and_then(|bytes| bytes.split_first_chunk()) else {
            return Arrival::Malformed;
        };
        let Some(room) = buf.receive_area(0).get_mut(..size) else {
            return Arrival::Malformed;
        };
        if size < ETHERNET_SIZE {
            return Arrival::Malformed;
        }
        room.copy_from_slice(frame);
        let offload = virtio::sanitise(virtio::decode(description), size);
        buf.set_received(size, offload);
        let (tpid, tci) = (header.tp_vlan_tpid, header.tp_vlan_tci);
        match burst::tag_of(header.tp_status, tpid, tci) {
            Some(tag) => burst::with_tag(buf, tag),
            None => Arrival::Frame,
        }
    }

    /// Takes frames from the socket's queue, as many as slots in a row say that they are there; how many
    /// slots are done with. None is when no buffer was free.
    fn recv_queued(
        &mut self,
        fd: BorrowedFd<'_>,
        receiver: &mut Receiver,
        rx: &mut Batch,
        link: Link,
    ) -> io::Result<usize> {
        let shape = (VNET_HEADER_SIZE, link);
        let count = self.queued(receiver.wanted(rx));
        let done = match receiver.receive(fd, rx, count, shape) {
            Ok(arrived) => {
                self.malformed += receiver.deliver(arrived, rx, shape);
                arrived
            }
            Err(error) => match error.raw_os_error() {
                // A frame that the header cannot describe was consumed (virtio_net_hdr_from_skb), or the
                // kernel has it no more.
                Some(libc::EINVAL | libc::EAGAIN) => {
                    self.malformed += 1;
                    1
                }
                Some(_) | None => return Err(error),
            },
        };
        self.release(done);
        Ok(done)
    }

    /// Slots in a row whose frames are in the socket's queue, up to `max`.
    fn queued(&self, max: usize) -> usize {
        let ahead = (0..max).map(|ahead| self.slots.status((self.next + ahead) % RECEIVE_SLOTS));
        ahead
            .take_while(|status| status & libc::TP_STATUS_COPY != 0)
            .count()
    }

    /// Gives slots back to the kernel.
    fn release(&mut self, count: usize) {
        for _ in 0..count {
            self.slots.set_status(self.next, libc::TP_STATUS_KERNEL);
            self.next = (self.next + 1) % RECEIVE_SLOTS;
        }
        self.taken += count as u64;
    }

    /// Takes note that the kernel has missed so many frames since the last call.
    pub fn note_missed(&self, missed: u64) {
        let empty = self.slots.status(self.next) == libc::TP_STATUS_KERNEL;
        let now = empty.then_some(self.taken);
        let before = self.watch.empty_at.replace(now);
        if missed > 0 && now.is_some() && now == before {
            self.watch.stopped.set(true);
        }
    }

    /// Whether the kernel fills no slot any more.
    pub fn has_stopped(&self) -> bool {
        self.watch.stopped.get()
    }

    /// Has the kernel make the ring anew, without what waited in it.
    pub fn remade(self, fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (malformed, missed) = (self.malformed + 1, self.missed);
        let share = self.slots.unmap();
        slots::make(fd, libc::PACKET_RX_RING, 0)?;
        slots::make(fd, libc::PACKET_RX_RING, RECEIVE_SLOTS)?;
        Ok(Self {
            malformed,
            missed,
            ..Self::new(Slots::map(fd, share)?)
        })
    }
}
