//! Two interfaces whose sockets have packet buffers in common, so that a frame passes from one to
//! the other by its descriptor and is not copied by us.
//!
//! This is the least that forwarding by AF_XDP can cost. No port of a switch is made of it: decision
//! 0034 has the figures why.
//!
//! # Theory of operation
//! Each interface has the four rings of a socket of its own; the second socket takes its packet
//! buffers from the first (`XDP_SHARED_UMEM`, between interfaces since Linux 5.10). A chunk is *free*,
//! else *lent* to an interface to receive into, from when it is put into the fill ring until its frame
//! is taken from the receive ring, or *submitted* to one, from when it is put into the transmit ring until it comes
//! back by the completion ring.
//!
//! Every interface may have [`RECEIVE_CHUNKS`] lent and [`TRANSMIT_CHUNKS`] submitted, and there are as
//! many chunks as both may have. So however slow one of them is, the other has chunks to receive into.
//! A frame that finds no room to be submitted is lost and counted, and its chunk is free.
//!
//! A frame's bytes are read for what is left to do of its checksum, and what is found is put in front
//! of it, into the room that the kernel leaves there.
//!
//! Limits: frames of one chunk; copy mode, as of [`XdpSocket`](super::XdpSocket). Thread-safety: a pair has one
//! owner.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dataplane_core::checksum;

use super::bpf::Pieces;
use super::features::{Checksums, Frames};
use super::memory::Umem;
use super::open::{Hook, Site, XdpBuilder};
use super::ring::Rings;
use super::transmit::{describe, drain, reap};
use super::{METADATA_SIZE, RECEIVE_CHUNKS, TRANSMIT_CHUNKS, XdpError, unfinished};
use crate::{BATCH_MAX, EdgeStats};

/// Chunks of two interfaces: what both may have at once.
const CHUNKS: u32 = 2 * (RECEIVE_CHUNKS + TRANSMIT_CHUNKS);

/// One of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first.
    First,
    /// The second.
    Second,
}

/// A queue of each of two interfaces, with packet buffers in common.
#[derive(Debug)]
pub struct SharedPair {
    umem: Umem,
    /// Chunks that neither interface has.
    free: Vec<u64>,
    checksums: Checksums,
    first: Side,
    second: Side,
}

/// The queue of one interface.
#[derive(Debug)]
struct Side {
    fd: OwnedFd,
    rings: Rings,
    /// Chunks that it has to receive into.
    lent: u32,
    /// Chunks that it has to send from.
    submitted: u32,
    /// Frames for it that were lost.
    tx_dropped: u64,
    /// Keeps the program on the interface.
    _hook: Arc<Hook>,
}

impl SharedPair {
    /// Opens all queues of two interfaces in the calling thread's network namespace, each with the
    /// queue of the same number of the other. From then on the host's stack receives nothing on them.
    ///
    /// # Errors
    /// As the variants of [`XdpError`] say, [`XdpError::OtherQueues`] where one has more queues than
    /// the other; the interfaces are as they were.
    pub fn open(first: &XdpBuilder, second: &XdpBuilder) -> Result<Vec<Self>, XdpError> {
        if first.queues != second.queues {
            return Err(XdpError::OtherQueues {
                name: second.name.clone(),
                wanted: first.queues,
                has: second.queues,
            });
        }
        let (site_1, site_2) = (first.prepare()?, second.prepare()?);
        let queues = 0..first.queues as u32;
        let opened = queues.map(|queue| Opened::new((first, &site_1), (second, &site_2), queue));
        let opened = opened.collect::<Result<Vec<Opened>, XdpError>>()?;
        let (hook_1, _) = first.redirect(site_1, opened.iter().map(|it| it.first.0.as_fd()))?;
        let (hook_2, _) = second.redirect(site_2, opened.iter().map(|it| it.second.0.as_fd()))?;
        let pairs = opened.into_iter().map(|opened| {
            let chunk_size = opened.umem.chunk_size() as u64;
            let mut pair = Self {
                umem: opened.umem,
                free: (0..u64::from(CHUNKS)).map(|it| it * chunk_size).collect(),
                checksums: opened.checksums,
                first: Side::new(opened.first, &hook_1),
                second: Side::new(opened.second, &hook_2),
            };
            pair.first.lend(&mut pair.free);
            pair.second.lend(&mut pair.free);
            pair
        });
        Ok(pairs.collect())
    }

    /// Passes what was received at one end, up to [`BATCH_MAX`] frames, to the other, and returns how
    /// many were taken. The other end has sent or lost all of them that it has room for when this returns;
    /// what the kernel could not take yet goes first the next time.
    pub fn forward(&mut self, from: End) -> usize {
        let (umem, free) = (&mut self.umem, &mut self.free);
        let (from, to) = match from {
            End::First => (&mut self.first, &mut self.second),
            End::Second => (&mut self.second, &mut self.first),
        };
        to.reap(umem, free);
        let count = from.rings.received.available().min(BATCH_MAX as u32);
        for ahead in 0..count {
            let piece = from.rings.received.peek(ahead);
            let options = prepare(umem, &piece, self.checksums);
            let Some(options) = options.filter(|_| to.submitted < TRANSMIT_CHUNKS) else {
                to.tx_dropped += 1;
                free.push(umem.chunk_of(piece.addr));
                continue;
            };
            to.rings.transmit.push(libc::xdp_desc { options, ..piece });
            to.submitted += 1;
        }
        from.rings.received.release(count);
        from.lent -= count;
        to.send(umem, free);
        from.lend(free);
        count as usize
    }

    /// The descriptors to wait on: readable when an end has received something.
    pub fn readiness(&self) -> [BorrowedFd<'_>; 2] {
        [self.first.fd.as_fd(), self.second.fd.as_fd()]
    }

    /// What was lost at one end: `tx_dropped` has all frames that were to be sent by it and were not.
    pub fn edge_stats(&self, end: End) -> EdgeStats {
        let side = match end {
            End::First => &self.first,
            End::Second => &self.second,
        };
        EdgeStats {
            rx_dropped: super::receive_drops(side.fd.as_fd()),
            rx_malformed: 0,
            tx_dropped: side.tx_dropped,
        }
    }
}

/// A socket with its rings.
type Socket = (OwnedFd, Rings);

/// A pair that is open, while nothing is redirected to it.
struct Opened {
    umem: Umem,
    checksums: Checksums,
    first: Socket,
    second: Socket,
}

impl Opened {
    fn new(
        (first, site_1): (&XdpBuilder, &Site),
        (second, site_2): (&XdpBuilder, &Site),
        queue: u32,
    ) -> Result<Self, XdpError> {
        let owner = first.socket()?;
        let (umem, checksums) = first.register_memory(owner.as_fd(), CHUNKS)?;
        let owner_rings = first.rings(owner.as_fd())?;
        first.bind(owner.as_fd(), (site_1.index, queue), Pieces::One)?;
        let other = second.socket()?;
        let other_rings = second.rings(other.as_fd())?;
        second.bind_sharing(other.as_fd(), (site_2.index, queue), owner.as_fd())?;
        for end in [first, second] {
            end.frame_size_max(Frames::OneChunk, umem.chunk_size())?;
        }
        Ok(Self {
            umem,
            checksums,
            first: (owner, owner_rings),
            second: (other, other_rings),
        })
    }
}

/// Says or finishes what is left to do of a received frame's checksum; options of its descriptor to
/// send. `None` when it is no frame.
fn prepare(umem: &mut Umem, piece: &libc::xdp_desc, checksums: Checksums) -> Option<u32> {
    let len = piece.len as usize;
    let offload = unfinished::find(umem.bytes(piece.addr, len)?);
    if !offload.needs_checksum() {
        return Some(0);
    }
    match checksums {
        Checksums::Described => {
            let at = piece.addr.checked_sub(METADATA_SIZE as u64)?;
            let room = umem.bytes_mut(at, METADATA_SIZE)?;
            room.copy_from_slice(&describe(offload));
            Some(libc::XDP_TX_METADATA)
        }
        Checksums::Finished => {
            let (start, offset) = (offload.csum_start.into(), offload.csum_offset.into());
            checksum::complete_at(umem.bytes_mut(piece.addr, len)?, start, offset).ok()?;
            Some(0)
        }
    }
}

impl Side {
    fn new((fd, rings): Socket, hook: &Arc<Hook>) -> Self {
        Self {
            fd,
            rings,
            lent: 0,
            submitted: 0,
            tx_dropped: 0,
            _hook: Arc::clone(hook),
        }
    }

    /// Lends it free chunks to receive into, as many as it may have.
    fn lend(&mut self, free: &mut Vec<u64>) {
        while self.lent < RECEIVE_CHUNKS
            && let Some(chunk) = free.pop()
        {
            self.rings.fill.push(chunk);
            self.lent += 1;
        }
        self.rings.fill.submit();
    }

    /// Takes chunks back that were sent from.
    fn reap(&mut self, umem: &Umem, free: &mut Vec<u64>) {
        self.submitted -= reap(umem, &mut self.rings.completed, free);
    }

    /// Has the kernel send what is in the transmit ring; of an interface that is down all of it is lost.
    fn send(&mut self, umem: &Umem, free: &mut Vec<u64>) {
        let Rings {
            transmit,
            completed,
            ..
        } = &mut self.rings;
        transmit.submit();
        if transmit.pending() == 0 {
            return;
        }
        let submitted = &mut self.submitted;
        let drained = drain(self.fd.as_fd(), transmit, || {
            *submitted -= reap(umem, completed, free);
        });
        self.tx_dropped += drained.lost as u64;
        if drained.down {
            let pending = transmit.pending();
            transmit.retract(pending, |piece| free.push(umem.chunk_of(piece.addr)));
            self.submitted -= pending;
            self.tx_dropped += u64::from(pending);
        }
    }
}

const _: () = assert!(
    METADATA_SIZE <= super::KERNEL_HEADROOM,
    "metadata has room in front of a received frame"
);
