//! Frame I/O: one trait, several backends, and all of Causeway's `unsafe`.
//!
//! A [`PortIo`] is one queue of one switch port. It never blocks: a worker polls its
//! [`PortIo::readiness`] and reads until [`std::io::ErrorKind::WouldBlock`].
//!
//! | backend | module | offloads | queues |
//! |---|---|---|---|
//! | TAP with `vnet_hdr` | [`tap`] | checksum, GSO | one per worker |
//! | TAP by the `tun-tap` crate | [`tap_plain`] | none | one |
//! | AF_PACKET | [`packet`] | checksum, GSO | fanout by flow |
//! | AF_XDP | [`xdp`] | checksum | the interface's |
//! | in memory | [`memory`] | as configured | one |
//! | from a file | [`pcap`] | none | one |
//! | to a thread that writes | [`spool`] | every one | one |
//!
//! [`guard`] keeps the host's stack from answering on an interface that a packet socket shares
//! with it. [`fault`] and [`pcap`] wrap any port, to harm its frames or to record them.
//! [`conformance`] is the suite that every backend passes. What the kernel says of a frame is
//! checked in [`virtio`], once.

use std::io;
use std::os::fd::BorrowedFd;

use dataplane_core::frame::{FrameBuf, GsoKind};

pub use framing::Framing;
pub use sys::kernel_version;

pub mod conformance;
pub mod ethtool;
pub mod fault;
mod framing;
pub mod guard;
mod mapping;
pub mod memory;
pub mod packet;
pub mod pcap;
pub mod process;
pub mod spool;
mod sys;
pub mod tap;
pub mod tap_plain;
pub mod virtio;
pub mod xdp;

/// Frames handed over in one call: enough to amortise a wake-up, few enough that a batch of
/// small frames stays in the L1 cache and one port cannot starve the others for long.
pub const BATCH_MAX: usize = 64;

/// Bytes after which a batch takes no further frame: two of the largest GSO frames. Reading more
/// before forwarding would push the first ones out of the L2 cache.
pub const BATCH_BYTES_MAX: usize = 128 * 1024;

/// Buffers of one worker: a full batch being received, and what may wait for slow devices.
pub const BUFFERS_MAX: usize = 4 * BATCH_MAX;

/// What a port can take, so that the egress stage knows what it must finish in software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Largest frame accepted, in bytes, Ethernet header included.
    pub frame_size_max: usize,
    /// Frames with unfinished L4 checksums are accepted.
    pub checksum: bool,
    /// Oversized TCP frames (`GsoKind::TcpV4`, `TcpV6`) are accepted.
    pub gso_tcp: bool,
    /// Oversized UDP frames (`GsoKind::UdpL4`) are accepted.
    pub gso_udp: bool,
}

impl Capabilities {
    /// A port that only takes complete frames.
    pub const fn plain(frame_size_max: usize) -> Self {
        Self {
            frame_size_max,
            checksum: false,
            gso_tcp: false,
            gso_udp: false,
        }
    }

    /// A port that takes frames with every offload.
    pub const fn offloading(frame_size_max: usize) -> Self {
        Self {
            frame_size_max,
            checksum: true,
            gso_tcp: true,
            gso_udp: true,
        }
    }

    /// Whether `frame` may be sent as it is: no larger than allowed, nothing left unfinished that
    /// the port does not finish.
    #[inline]
    pub fn accepts(&self, frame: &FrameBuf) -> bool {
        let gso = match frame.offload.gso() {
            None => true,
            Some(GsoKind::TcpV4 | GsoKind::TcpV6) => self.gso_tcp,
            Some(GsoKind::UdpL4) => self.gso_udp,
            Some(GsoKind::Fragments | GsoKind::UdpFragments | GsoKind::Other(_)) => false,
        };
        gso && (self.checksum || !frame.offload.needs_checksum())
            && frame.len() <= self.frame_size_max
    }
}

/// Whether the far side sees a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `LOWER_UP`.
    Present,
    /// `NO-CARRIER`.
    Absent,
}

/// Received frames with the pool of buffers that they came from.
///
/// Buffers are reused last in, first out, so that a lightly loaded worker keeps touching the
/// same cache lines.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<FrameBuf>,
    pool: Vec<FrameBuf>,
    bytes: usize,
    drained: bool,
    frames_max: usize,
}

impl Batch {
    /// A batch for up to [`BATCH_MAX`] frames, with all [`BUFFERS_MAX`] buffers allocated. The
    /// system backs a buffer with memory when it is first written.
    pub fn new() -> Self {
        Self {
            frames: Vec::with_capacity(BATCH_MAX),
            pool: (0..BUFFERS_MAX).map(|_| FrameBuf::new()).collect(),
            bytes: 0,
            drained: false,
            frames_max: BATCH_MAX,
        }
    }

    /// A batch for up to `frames_max` frames, 1 to [`BATCH_MAX`]: an experiment's knob.
    pub fn with_frames_max(frames_max: usize) -> Self {
        Self {
            frames_max: frames_max.clamp(1, BATCH_MAX),
            ..Self::new()
        }
    }

    /// A cleared buffer to receive into, or `None` when the batch is full.
    pub fn take_buffer(&mut self) -> Option<FrameBuf> {
        if self.is_full() {
            return None;
        }
        let mut buf = self.pool.pop()?;
        buf.clear();
        Some(buf)
    }

    /// A copy of a frame, or `None` when no buffer is free.
    pub fn take_copy(&mut self, frame: &FrameBuf) -> Option<FrameBuf> {
        let mut copy = self.take_buffer()?;
        copy.copy_from(frame.bytes(), frame.offload);
        Some(copy)
    }

    /// Adds a received frame.
    pub fn push(&mut self, frame: FrameBuf) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    /// Notes that the port had nothing more when the last frame was added: for a backend that has
    /// found out anyway.
    pub fn mark_drained(&mut self) {
        self.drained = true;
    }

    /// Whether the port had nothing more when the last frame was added, which saves asking again.
    /// What arrived since is a new event. Forgotten once told: who takes up an event in between
    /// must ask the port.
    pub fn take_drained(&mut self) -> bool {
        core::mem::take(&mut self.drained)
    }

    /// Returns a buffer to the pool. One that is too small to receive into ends: a frame that the
    /// gateway had held is in one of its own size.
    pub fn recycle(&mut self, buf: FrameBuf) {
        if self.pool.len() < BUFFERS_MAX && buf.takes_any() {
            self.pool.push(buf);
        }
    }

    /// The frames, writable.
    pub fn frames_mut(&mut self) -> &mut [FrameBuf] {
        &mut self.frames
    }

    /// The frames.
    pub fn frames(&self) -> &[FrameBuf] {
        &self.frames
    }

    /// Returns every frame's buffer to the pool.
    pub fn clear(&mut self) {
        while let Some(buf) = self.frames.pop() {
            self.recycle(buf);
        }
        self.bytes = 0;
    }

    /// Frames held.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether no frame is held.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether no further frame fits.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= self.frames_max || self.bytes >= BATCH_BYTES_MAX
    }
}

impl Batch {
    /// Takes the received frames out, oldest first. Their buffers come back by
    /// [`Batch::recycle`], the emptied list by [`Batch::return_list`].
    pub fn take_frames(&mut self) -> Vec<FrameBuf> {
        self.bytes = 0;
        core::mem::take(&mut self.frames)
    }

    /// Returns the list of [`Batch::take_frames`], so that the next batch need not allocate one.
    pub fn return_list(&mut self, mut list: Vec<FrameBuf>) {
        while let Some(buf) = list.pop() {
            self.recycle(buf);
        }
        if self.frames.is_empty() {
            self.frames = list;
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// Counters that a backend alone can know: loss at the kernel's edge, before or after us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeStats {
    /// Frames the kernel dropped because we read too slowly, since the port was opened.
    pub rx_dropped: u64,
    /// Frames that were skipped because they were cut off or shorter than their headers.
    pub rx_malformed: u64,
    /// Frames that the kernel had taken and dropped later, which no caller was told.
    pub tx_dropped: u64,
}

/// Something that a backend asked of the kernel, and what it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// What it is about.
    pub feature: &'static str,
    /// What was asked for.
    pub wanted: &'static str,
    /// What is used, the same or something lesser.
    pub used: &'static str,
}

/// One queue of one switch port.
pub trait PortIo: Send {
    /// What this queue can send.
    fn capabilities(&self) -> Capabilities;

    /// Appends received frames to `rx` until it is full or nothing more is there, and returns how
    /// many were appended. The offload of each frame is set. Zero is not "drained": no buffer was
    /// free, or everything was skipped, and there may be more. A backend that learned on the way
    /// that nothing more is there may say so by [`Batch::mark_drained`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing was there (readiness may be awaited again). `NotConnected` when
    /// the device is gone or down for good. A frame that does not fit a buffer is skipped.
    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize>;

    /// Sends `frames` from the front and returns how many were accepted. Their headroom may be
    /// overwritten; bytes and offload are kept. A frame with an offload that
    /// [`PortIo::capabilities`] does not name must not be passed.
    ///
    /// # Errors
    /// Only when not even the first frame was accepted: `WouldBlock` when the device's queue is
    /// full, `InvalidInput` when the first frame is one that the device refuses, `NotConnected`
    /// when the device is gone or down. Any other error concerns the first frame alone, which is
    /// lost: drop it, count it, go on with the next.
    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize>;

    /// The descriptor to wait on; `None` means that the port must be polled.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Whether somebody who waits for frames has them sooner by [`PortIo::busy_poll`].
    fn busy_polled(&self) -> bool {
        false
    }

    /// Has the kernel fetch frames from the device now, where [`PortIo::busy_polled`] says that it makes a
    /// difference. What there was raises readiness as ever.
    fn busy_poll(&mut self) {}

    /// Plugs or unplugs the cable as the far side sees it, where the backend has one of its own to
    /// unplug: a TAP. Others stay as they are.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_carrier(&self, _carrier: Carrier) -> io::Result<()> {
        Ok(())
    }

    /// What was negotiated besides [`PortIo::capabilities`].
    fn negotiated(&self) -> Vec<Negotiated> {
        Vec::new()
    }

    /// Loss at the kernel's edge.
    fn edge_stats(&self) -> EdgeStats {
        EdgeStats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::frame::FRAME_SIZE_MAX;

    #[test]
    fn every_buffer_of_a_batch_takes_the_largest_frame_whatever_was_given_back() {
        let mut batch = Batch::new();
        for _ in 0..BATCH_MAX {
            let _ = batch.take_buffer();
            batch.recycle(FrameBuf::with_capacity(60));
        }
        let mut count = 0;
        while let Some(buf) = batch.take_buffer() {
            assert!(buf.capacity() >= FRAME_SIZE_MAX);
            count += 1;
        }
        assert_eq!(count, BUFFERS_MAX - BATCH_MAX);
    }
}
