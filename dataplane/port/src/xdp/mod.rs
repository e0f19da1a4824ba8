//! AF_XDP on an interface that has a kernel driver: the host end of a veth, or a network card.
//!
//! # Theory of operation
//! A program on the interface hands every frame to a socket before the kernel makes anything of it,
//! so neither the host's stack nor traffic control sees one. Packet buffers are memory that is
//! shared with the kernel, in chunks; which chunk holds which frame is told by rings (linux/if_xdp.h,
//! Documentation/networking/af_xdp.rst). Receiving costs no system call; sending costs one for up to 32 frames.
//! Frames are copied between chunks and the buffers that all backends share.
//!
//! What a frame's checksum lacks is in no ring: its bytes tell on the way in (`unfinished.rs`); on the way
//! out the kernel is told by metadata in front of the frame, or the checksum is finished here.
//! Segmentation does not pass: the kernel ends it on the far end of a veth that has such a program.
//!
//! A chunk to send is ours, then submitted, then the kernel's, and comes back by the completion ring.
//! The kernel takes submitted chunks only while we ask it to (`sendto`), for the sockets are in copy
//! mode: so what it has not looked for can be taken back, and each frame's end is known when
//! [`PortIo::send`] returns. What the kernel could not take for want of memory or room stays submitted and
//! goes first the next time.
//!
//! The program and the sockets end with the process, and the interface is as it was.
//!
//! Limits: [`RECEIVE_CHUNKS`] frames on their way in and [`TRANSMIT_CHUNKS`] on their way out, in pinned
//! memory of 5 MiB per queue at an MTU of 1,500; [`DESCRIPTORS_MAX`] chunks per frame, or one where
//! the kernel is older than Linux 6.6. Copy mode only: a card's own memory is not used. VLAN tags
//! that a driver has taken out of the bytes are lost (`ethtool -K IFACE rxvlan off`; of the far end of a
//! veth `txvlan off`). Thread-safety: each [`XdpSocket`] is one queue with one owner.

mod bpf;
mod error;
mod features;
mod memory;
mod open;
mod ring;
mod shared;
mod transmit;
mod unfinished;

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::headers::ETHERNET_SIZE;

use crate::sys::{self, PlainData};
use crate::{Batch, Capabilities, EdgeStats, Negotiated, PortIo};
use memory::Umem;
use open::Hook;
use ring::{Consumer, Producer};
use transmit::Drained;

pub use bpf::Mode;
pub use error::XdpError;
pub use features::{Checksums, Feature, Features, Frames, Polling};
pub use open::{BUSY_POLL_FRAMES_MAX, XdpBuilder};
pub use shared::{End, SharedPair};

/// Chunks to receive into: what arrives in a millisecond at 2 million frames per second, while a
/// worker serves its other ports.
pub const RECEIVE_CHUNKS: u32 = 2_048;

/// Chunks to send from: several batches, as a chunk comes back only when the far end has read it.
pub const TRANSMIT_CHUNKS: u32 = 512;

/// Chunks of one frame. The kernel takes one more (`MAX_SKB_FRAGS`), and fewer where it was built so.
pub const DESCRIPTORS_MAX: usize = 17;

/// Bytes in front of a frame to send that tell the kernel what to finish: `struct xsk_tx_metadata`,
/// with room for what later kernels add.
const METADATA_SIZE: usize = 32;

/// Bytes that the kernel leaves free in front of a received frame (`XDP_PACKET_HEADROOM`).
const KERNEL_HEADROOM: usize = 256;

/// One queue of a network interface.
pub struct XdpSocket {
    fd: OwnedFd,
    umem: Umem,
    fill: Producer<u64>,
    received: Consumer<libc::xdp_desc>,
    transmit: Producer<libc::xdp_desc>,
    completed: Consumer<u64>,
    /// Chunks to send from that are ours.
    free: Vec<u64>,
    features: Features,
    frame_size_max: usize,
    /// Frames that the caller still has and that count as refused: as many as the kernel dropped of the
    /// last batch.
    owed: usize,
    rx_malformed: u64,
    tx_dropped: u64,
    /// A frame has come.
    heard: bool,
    reach: Reach,
    /// Keeps the program on the interface.
    hook: Arc<Hook>,
}

/// What a busy poll reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// It is known when a frame has come.
    Untold,
    /// The driver's loop.
    Driver,
    /// Nothing: sockets are not told of the driver's loop, as of a veth on Linux 6.18.
    Nothing,
}

impl XdpSocket {
    /// Opens the only queue of the interface `name` as [`XdpBuilder::new`] describes it.
    ///
    /// # Errors
    /// As [`XdpBuilder::open`].
    pub fn open(name: &str) -> Result<Self, XdpError> {
        let mut queues = XdpBuilder::new(name).open()?;
        // One queue was asked for.
        Ok(queues.remove(0))
    }

    /// What the kernel could give.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Bytes of frame that a chunk to send has room for.
    const fn chunk_room(&self) -> usize {
        self.umem.chunk_size() - METADATA_SIZE
    }

    /// Takes chunks back that the kernel has sent from.
    fn reap(&mut self) {
        transmit::reap(&self.umem, &mut self.completed, &mut self.free);
    }

    /// Puts a frame into the transmit ring; `false` when it has no room now.
    fn put(&mut self, frame: &mut FrameBuf) -> io::Result<bool> {
        if !(ETHERNET_SIZE..=self.frame_size_max).contains(&frame.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let chunks = frame.len().div_ceil(self.chunk_room());
        if self.free.len() < chunks || (self.transmit.room() as usize) < chunks {
            return Ok(false);
        }
        let offload = frame.offload;
        if !offload.needs_checksum() {
            self.copy_out(frame.bytes(), None);
            return Ok(true);
        }
        if self.can_describe(frame) {
            self.copy_out(frame.bytes(), Some(offload));
            return Ok(true);
        }
        let (start, offset) = (offload.csum_start.into(), offload.csum_offset.into());
        let field = start + offset;
        let before: [u8; 2] = frame
            .bytes()
            .get(field..)
            .and_then(|field| field.first_chunk().copied())
            .ok_or(io::ErrorKind::InvalidInput)?;
        checksum::complete_at(frame.bytes_mut(), start, offset)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.copy_out(frame.bytes(), None);
        // The frame stays as it was, perhaps to be sent elsewhere.
        frame.bytes_mut()[field..field + 2].copy_from_slice(&before);
        Ok(true)
    }

    /// Whether metadata says what is left to do: only for a field that holds the pseudo-header's sum,
    /// so that whoever receives the frame without the metadata can tell. The kernel looks for the field
    /// in the first chunk.
    fn can_describe(&self, frame: &FrameBuf) -> bool {
        let offload = &frame.offload;
        let found = unfinished::find(frame.bytes());
        let field_end = usize::from(found.csum_start) + usize::from(found.csum_offset) + 2;
        self.features.checksums == Checksums::Described
            && found.needs_checksum()
            && (found.csum_start, found.csum_offset) == (offload.csum_start, offload.csum_offset)
            && field_end <= self.chunk_room()
    }

    /// Copies a frame into chunks that are there, and their descriptors into the ring.
    fn copy_out(&mut self, frame: &[u8], described: Option<Offload>) {
        let mut pieces = frame.chunks(self.chunk_room()).peekable();
        let mut metadata = described.map(transmit::describe);
        while let Some(piece) = pieces.next() {
            let Some(chunk) = self.free.pop() else {
                return;
            };
            let mut options = 0;
            let to = self.umem.bytes_mut(chunk, METADATA_SIZE + piece.len());
            let to = to.expect("a piece is no larger than a chunk has room");
            if let Some(metadata) = metadata.take() {
                to[..METADATA_SIZE].copy_from_slice(&metadata);
                options |= libc::XDP_TX_METADATA;
            }
            to[METADATA_SIZE..].copy_from_slice(piece);
            if pieces.peek().is_some() {
                options |= libc::XDP_PKT_CONTD;
            }
            self.transmit.push(libc::xdp_desc {
                addr: chunk + METADATA_SIZE as u64,
                len: piece.len() as u32,
                options,
            });
        }
    }

    /// Has the kernel take what was submitted, all of it unless it cannot.
    fn drain(&mut self) -> Drained {
        let (umem, completed, free) = (&self.umem, &mut self.completed, &mut self.free);
        transmit::drain(self.fd.as_fd(), &self.transmit, || {
            transmit::reap(umem, completed, free);
        })
    }

    /// Sends what an earlier call had to leave. Nobody waits to be told of those frames any more.
    fn settle(&mut self) -> io::Result<()> {
        if self.transmit.pending() == 0 {
            return Ok(());
        }
        let drained = self.drain();
        self.tx_dropped += drained.lost as u64;
        match self.transmit.pending() {
            0 => Ok(()),
            _ if drained.down => Err(io::ErrorKind::NotConnected.into()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Copies the frame whose first descriptor is `ahead` in the receive ring into `buf`, and gives its
    /// chunks back. How many there were, and how large it is unless it is none.
    fn copy_in(&mut self, ahead: u32, available: u32, buf: &mut FrameBuf) -> (u32, Option<usize>) {
        let mut count = 0;
        let mut size = Some(0);
        let area = buf.receive_area(0);
        while ahead + count < available {
            let piece = self.received.peek(ahead + count);
            count += 1;
            let from = self.umem.bytes(piece.addr, piece.len as usize);
            size = size.and_then(|at: usize| {
                let from = from?;
                area.get_mut(at..at + from.len())?.copy_from_slice(from);
                Some(at + from.len())
            });
            // As many chunks circulate as the ring has room for.
            self.fill.push(self.umem.chunk_of(piece.addr));
            if piece.options & libc::XDP_PKT_CONTD == 0 {
                return (count, size.filter(|&size| size >= ETHERNET_SIZE));
            }
        }
        (count, None)
    }

    /// Makes what was copied in a frame.
    fn accept(&self, buf: &mut FrameBuf, size: usize) {
        buf.set_received(size, Offload::NONE);
        buf.offload = unfinished::find(buf.bytes());
        if self.features.checksums == Checksums::Finished {
            // The field was found within the frame.
            let _ = checksum::complete(buf);
        }
    }
}

impl PortIo for XdpSocket {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            checksum: self.features.checksums == Checksums::Described,
            ..Capabilities::plain(self.frame_size_max)
        }
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let available = self.received.available();
        if available == 0 {
            check_up(self.fd.as_fd())?;
            // An event may have said that there is room again.
            let _ = self.settle();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = rx.len();
        self.heard = true;
        let mut done = 0;
        while done < available {
            let Some(mut buf) = rx.take_buffer() else {
                break;
            };
            let (count, size) = self.copy_in(done, available, &mut buf);
            done += count;
            match size {
                Some(size) => {
                    self.accept(&mut buf, size);
                    rx.push(buf);
                }
                None => {
                    self.rx_malformed += 1;
                    rx.recycle(buf);
                }
            }
        }
        self.received.release(done);
        self.fill.submit();
        if done == available && self.received.available() == 0 {
            rx.mark_drained();
        }
        Ok(rx.len() - before)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        if frames.is_empty() {
            return Ok(0);
        }
        if self.owed > 0 {
            self.owed -= 1;
            return Err(dropped());
        }
        self.settle()?;
        self.reap();
        let mut taken = 0;
        for frame in frames {
            match self.put(frame) {
                Ok(true) => taken += 1,
                Ok(false) => break,
                Err(error) if taken == 0 => return Err(error),
                // It comes first the next time.
                Err(_) => break,
            }
        }
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let submitted = self.transmit.pending();
        self.transmit.submit();
        let drained = self.drain();
        if drained.down && self.transmit.pending() == submitted {
            let (umem, free) = (&self.umem, &mut self.free);
            let give_back = |piece: libc::xdp_desc| free.push(umem.chunk_of(piece.addr));
            self.transmit.retract(submitted, give_back);
            return Err(io::ErrorKind::NotConnected.into());
        }
        match taken - drained.lost.min(taken) {
            0 => {
                self.owed = taken - 1;
                Err(dropped())
            }
            sent => {
                self.owed = taken - sent;
                Ok(sent)
            }
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn busy_polled(&self) -> bool {
        self.features.polling == Polling::ByOwner
    }

    fn busy_poll(&mut self) {
        if self.reach == Reach::Untold && self.heard {
            self.reach = reach(self.fd.as_fd());
        }
        if self.reach != Reach::Nothing {
            // What it says of the interface is found out when frames are received.
            let _ = check_up(self.fd.as_fd());
        }
    }

    fn negotiated(&self) -> Vec<Negotiated> {
        self.features.in_words()
    }

    fn edge_stats(&self) -> EdgeStats {
        EdgeStats {
            rx_dropped: receive_drops(self.fd.as_fd()),
            rx_malformed: self.rx_malformed,
            tx_dropped: self.tx_dropped,
        }
    }
}

impl std::fmt::Debug for XdpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XdpSocket({:?}, {:?})", self.hook, self.features)
    }
}

/// A frame that the kernel took and dropped.
fn dropped() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

/// What a busy poll reaches once a frame has come, which tells the socket.
fn reach(socket: BorrowedFd<'_>) -> Reach {
    let read = sys::get_option::<c_int>(socket, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID);
    match read {
        Ok(0) => Reach::Nothing,
        // Kernels that cannot be asked are those that have told.
        Ok(_) | Err(_) => Reach::Driver,
    }
}

/// Frames that the kernel dropped because they were not received in time.
fn receive_drops(socket: BorrowedFd<'_>) -> u64 {
    let (level, name) = (libc::SOL_XDP, libc::XDP_STATISTICS);
    let read = sys::get_option::<libc::xdp_statistics>(socket, level, name);
    // Every AF_XDP socket has the option.
    read.map_or(0, |it| it.rx_dropped + it.rx_ring_full)
}

/// Whether the interface is there and up, which the rings do not tell.
fn check_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = std::ptr::null_mut();
    // SAFETY: a buffer of no bytes is passed.
    // JUSTIFICATION: std receives on no socket of AF_XDP.
    let returned = unsafe { libc::recv(socket.as_raw_fd(), nowhere, 0, libc::MSG_DONTWAIT) };
    if returned >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
            Err(io::Error::new(io::ErrorKind::NotConnected, error))
        }
        // Linux before 5.11 cannot be asked, but for sending.
        Some(_) | None => Ok(()),
    }
}

// SAFETY: integers without padding.
unsafe impl PlainData for libc::xdp_statistics {
    const ZERO: Self = Self {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
}
