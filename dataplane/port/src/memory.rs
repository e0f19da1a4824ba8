//! A port in memory: what tests, simulations and benches plug into a switch.
//!
//! [`MemoryPort::pair`] gives the switch's side, a [`PortIo`], and the other end of the cable, a
//! [`MemoryPeer`]. Both directions are bounded queues that refuse the newest frame when full, as
//! a network card does; refused injections count as [`EdgeStats::rx_dropped`].
//!
//! Limits: there is no descriptor to wait on, so the port must be polled. The switch's side
//! allocates only until as many buffers exist as were ever queued at once; from then on they
//! circulate. The peer's side copies into fresh vectors: it belongs to the test.
//! Thread-safety: the two sides may live on different threads; a [`MemoryPeer`] is cloned to be
//! shared.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf, Offload};

use crate::{Batch, Capabilities, EdgeStats, PortIo};

/// The switch's side of a cable in memory.
#[derive(Debug)]
pub struct MemoryPort {
    cable: Arc<Cable>,
    capabilities: Capabilities,
}

/// The far side of a cable in memory: injects what the switch receives, takes what it sends.
#[derive(Clone, Debug)]
pub struct MemoryPeer {
    cable: Arc<Cable>,
}

/// Both directions. Each has the queue of frames and the buffers that come back from it.
#[derive(Debug)]
struct Cable {
    to_switch: Lane,
    from_switch: Lane,
    unplugged: AtomicBool,
    rx_dropped: AtomicU64,
}

#[derive(Debug)]
struct Lane {
    queued: ArrayQueue<FrameBuf>,
    free: ArrayQueue<FrameBuf>,
}

impl Lane {
    fn new(len: usize) -> Self {
        Self {
            queued: ArrayQueue::new(len),
            free: ArrayQueue::new(len),
        }
    }

    /// Queues a copy; `false` when the queue is full.
    fn push(&self, bytes: &[u8], offload: Offload) -> bool {
        if self.queued.is_full() {
            return false;
        }
        let mut buf = match self.free.pop() {
            Some(buf) if buf.capacity() >= bytes.len() => buf,
            Some(_) | None => FrameBuf::with_capacity(bytes.len().max(BUFFER_SIZE_MIN)),
        };
        buf.copy_from(bytes, offload);
        // Another thread may have filled the queue since it was looked at.
        self.queued.push(buf).is_ok()
    }

    /// Gives a buffer back. There are never more buffers than two lanes of slots hold, and a
    /// surplus one is freed.
    fn reuse(&self, buf: FrameBuf) {
        drop(self.free.push(buf));
    }
}

/// Smallest buffer of a lane: any frame of an ordinary MTU with two tags fits, so that frames of
/// mixed size do not make a lane reallocate.
const BUFFER_SIZE_MIN: usize = 2_048;

impl MemoryPort {
    /// Both ends of a cable whose directions queue up to `queue_len` frames each.
    ///
    /// # Panics
    /// When `queue_len` is zero.
    pub fn pair(capabilities: Capabilities, queue_len: usize) -> (Self, MemoryPeer) {
        let cable = Arc::new(Cable {
            to_switch: Lane::new(queue_len),
            from_switch: Lane::new(queue_len),
            unplugged: AtomicBool::new(false),
            rx_dropped: AtomicU64::new(0),
        });
        let peer = MemoryPeer {
            cable: Arc::clone(&cable),
        };
        (
            Self {
                cable,
                capabilities,
            },
            peer,
        )
    }
}

impl PortIo for MemoryPort {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let lane = &self.cable.to_switch;
        let mut count = 0;
        while let Some(mut buf) = rx.take_buffer() {
            let Some(queued) = lane.queued.pop() else {
                rx.recycle(buf);
                break;
            };
            buf.copy_from(queued.bytes(), queued.offload);
            lane.reuse(queued);
            rx.push(buf);
            count += 1;
        }
        if count > 0 || rx.is_full() {
            return Ok(count);
        }
        if self.cable.unplugged.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        if self.cable.unplugged.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        for (sent, frame) in frames.iter().enumerate() {
            let refusal = if !self.capabilities.accepts(frame) {
                io::ErrorKind::InvalidInput
            } else if !self.cable.from_switch.push(frame.bytes(), frame.offload) {
                io::ErrorKind::WouldBlock
            } else {
                continue;
            };
            return if sent > 0 {
                Ok(sent)
            } else {
                Err(refusal.into())
            };
        }
        Ok(frames.len())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn edge_stats(&self) -> EdgeStats {
        EdgeStats {
            rx_dropped: self.cable.rx_dropped.load(Ordering::Relaxed),
            ..EdgeStats::default()
        }
    }
}

impl MemoryPeer {
    /// Queues a frame for the switch; `false` when its queue is full, the frame is larger than
    /// any buffer, or the cable is unplugged. The frame is then counted as dropped.
    pub fn inject(&self, bytes: &[u8], offload: Offload) -> bool {
        let queued = bytes.len() <= FRAME_SIZE_MAX
            && !self.cable.unplugged.load(Ordering::Relaxed)
            && self.cable.to_switch.push(bytes, offload);
        if !queued {
            self.cable.rx_dropped.fetch_add(1, Ordering::Relaxed);
        }
        queued
    }

    /// The oldest frame that the switch sent and nobody took yet.
    pub fn take(&self) -> Option<(Vec<u8>, Offload)> {
        let buf = self.cable.from_switch.queued.pop()?;
        let taken = (buf.bytes().to_vec(), buf.offload);
        self.cable.from_switch.reuse(buf);
        Some(taken)
    }

    /// Like [`MemoryPeer::take`], but into a buffer of the caller: nothing is allocated.
    pub fn take_into(&self, frame: &mut FrameBuf) -> bool {
        let Some(buf) = self.cable.from_switch.queued.pop() else {
            return false;
        };
        frame.copy_from(buf.bytes(), buf.offload);
        self.cable.from_switch.reuse(buf);
        true
    }

    /// Frames sent by the switch and not taken yet.
    pub fn pending(&self) -> usize {
        self.cable.from_switch.queued.len()
    }

    /// Makes the device vanish: what is queued can still be received, then the port reports
    /// `NotConnected`.
    pub fn unplug(&self) {
        self.cable.unplugged.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::frame::HEADROOM;

    fn plain() -> (MemoryPort, MemoryPeer) {
        MemoryPort::pair(Capabilities::plain(1_514), 2)
    }

    #[test]
    fn full_queue_refuses_the_newest_and_counts_it() {
        let (mut port, peer) = plain();
        assert!(peer.inject(b"one", Offload::NONE));
        assert!(peer.inject(b"two", Offload::NONE));
        assert!(!peer.inject(b"three", Offload::NONE));
        assert_eq!(port.edge_stats().rx_dropped, 1);
        let mut rx = Batch::new();
        assert_eq!(port.recv(&mut rx).unwrap(), 2);
        assert_eq!(rx.frames()[1].bytes(), b"two");
    }

    #[test]
    fn send_stops_at_the_first_frame_that_does_not_fit() {
        let (mut port, peer) = plain();
        let mut frames = vec![FrameBuf::from_bytes(b"abc"); 3];
        assert_eq!(port.send(&mut frames).unwrap(), 2);
        let error = port.send(&mut frames[2..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(peer.pending(), 2);
        let mut frame = FrameBuf::new();
        assert!(peer.take_into(&mut frame));
        assert_eq!(frame.bytes(), b"abc");
        assert_eq!(port.send(&mut frames[2..]).unwrap(), 1);
    }

    #[test]
    fn plain_port_refuses_what_it_cannot_finish() {
        let (mut port, peer) = plain();
        let mut unfinished = FrameBuf::from_bytes(&[0; 60]);
        unfinished.offload.flags = Offload::NEEDS_CSUM;
        let mut oversized = FrameBuf::from_bytes(&[0; 60]);
        oversized.offload.gso_type = 1;
        let jumbo = FrameBuf::from_bytes(&[0; 1_515]);
        for frame in [unfinished, oversized, jumbo] {
            let error = port.send(&mut [frame]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert!(peer.take().is_none());
    }

    #[test]
    fn unplugged_cable_delivers_what_was_queued_first() {
        let (mut port, peer) = plain();
        assert!(peer.inject(b"last words", Offload::NONE));
        peer.unplug();
        let mut rx = Batch::new();
        assert_eq!(port.recv(&mut rx).unwrap(), 1);
        let error = port.recv(&mut rx).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(!peer.inject(b"too late", Offload::NONE));
    }

    #[test]
    fn buffers_have_their_headroom_back_after_a_round_trip() {
        let (mut port, peer) = plain();
        let mut frame = FrameBuf::from_bytes(b"abc");
        assert!(frame.insert(0, HEADROOM));
        assert_eq!(port.send(&mut [frame]).unwrap(), 1);
        assert_eq!(peer.take().unwrap().0.len(), HEADROOM + 3);
        assert!(peer.inject(b"abc", Offload::NONE));
        let mut rx = Batch::new();
        port.recv(&mut rx).unwrap();
        assert!(rx.frames_mut()[0].with_prefix(HEADROOM).is_some());
    }
}
