//! The way out: from a verdict's port to a device, with what the device cannot do done here.
//!
//! A worker sends by its own queue of a port. A port with a single queue belongs to one worker;
//! the others hand their frames over through a bounded queue of preallocated buffers, exchanged
//! one for one, so that no worker runs out of buffers by giving.

use std::io;
use std::sync::Arc;
use std::time::Instant as Clock;

use crossbeam::queue::ArrayQueue;
use dataplane_core::addr::PortId;
use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, GsoKind};
use dataplane_core::gso::Segmenter;
use dataplane_core::headers::{ETHERNET_SIZE, VLAN_TAG_SIZE};
use dataplane_core::l2::PortFlags;
use dataplane_port::{Batch, Capabilities, EdgeStats, PortIo};

use crate::command::Released;
use crate::stats::{EgressDrop, PortCounters};
use crate::worker::{Slot, Worker};

/// Frames that may wait for one device that takes no more.
pub const QUEUE_MAX: usize = 64;

/// Frames on their way to another worker.
pub const HANDOVER_MAX: usize = 256;

/// One worker's queue of one port.
pub(crate) struct Lane {
    pub io: Box<dyn PortIo>,
    pub counters: Arc<PortCounters>,
    /// Frames that leave with the next flush, and those that the device did not take.
    waiting: Vec<FrameBuf>,
    /// What the device takes.
    device: Capabilities,
    /// What it is given: no offload where the port's is off.
    capabilities: Capabilities,
    /// The device is down or gone, and the control side was told.
    pub down: bool,
    /// The last `recv` failed by other than `WouldBlock`.
    pub failed: bool,
    /// The device takes nothing, for it is down.
    link: Link,
    /// What was lost at the kernel's edge and is counted already.
    edge: EdgeStats,
    /// When it is asked for again.
    pub edge_due: Clock,
}

/// What the last frame for a device has shown of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// It takes frames.
    Up,
    /// It has just been found down; nobody was told.
    Lost,
    /// It is down.
    Down,
}

impl Lane {
    pub fn new(io: Box<dyn PortIo>, counters: Arc<PortCounters>) -> Self {
        let capabilities = io.capabilities();
        Self {
            io,
            counters,
            waiting: Vec::with_capacity(QUEUE_MAX),
            device: capabilities,
            capabilities,
            down: false,
            failed: false,
            link: Link::Up,
            edge: EdgeStats::default(),
            edge_due: Clock::now(),
        }
    }

    /// A queue that another worker has released.
    pub fn adopt(released: Released, counters: Arc<PortCounters>) -> Self {
        Self {
            device: released.io.capabilities(),
            capabilities: released.io.capabilities(),
            edge: released.edge,
            io: released.io,
            counters,
            waiting: released.waiting,
            down: released.down,
            failed: released.down,
            link: Link::Up,
            edge_due: Clock::now(),
        }
    }

    /// Gives the queue up for another worker.
    pub fn release(mut self) -> Released {
        self.count_edge();
        self.counters
            .queued
            .add(0u64.wrapping_sub(self.counters.queued.get()));
        Released {
            io: self.io,
            waiting: self.waiting,
            down: self.down,
            edge: self.edge,
        }
    }

    /// Has frames leave as the port's flags say.
    pub fn follow(&mut self, flags: PortFlags) {
        self.capabilities = match flags.has(PortFlags::OFFLOAD) {
            true => self.device,
            false => Capabilities::plain(self.device.frame_size_max),
        };
    }

    /// Counts what was lost at the kernel's edge since the last time; `true` when frames were missed on
    /// their way in.
    pub fn count_edge(&mut self) -> bool {
        let now = self.io.edge_stats();
        self.counters.record_edge(&self.edge, &now);
        let missed = now.rx_dropped > self.edge.rx_dropped;
        self.edge = now;
        missed
    }

    /// Whether frames wait for the device.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the device has been found down since the last call.
    pub fn take_lost(&mut self) -> bool {
        let lost = self.link == Link::Lost;
        if lost {
            self.link = Link::Down;
        }
        lost
    }

    /// Counts a copy that the device did not take, for this reason.
    fn refuse(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::NotConnected && self.link == Link::Up {
            self.link = Link::Lost;
        }
        self.counters.record_drop(reason(error));
    }

    /// Takes a frame for the next flush.
    pub fn push(
        &mut self,
        mut frame: FrameBuf,
        mtu: u16,
        pool: &mut Batch,
        segmenter: &mut Segmenter,
    ) {
        if let Err(reason) = self.prepare(&mut frame, mtu) {
            self.counters.record_drop(reason);
            return pool.recycle(frame);
        }
        if self.waiting.len() >= QUEUE_MAX && self.flush(pool, segmenter) {
            self.counters.record_drop(EgressDrop::QueueFull);
            return pool.recycle(frame);
        }
        self.waiting.push(frame);
    }

    /// Sends a frame that stays with the caller, for flooding. Nothing may wait for the device.
    pub fn send_now(&mut self, frame: &mut FrameBuf, mtu: u16, segmenter: &mut Segmenter) {
        if let Err(reason) = self.prepare(frame, mtu) {
            return self.counters.record_drop(reason);
        }
        if self.must_segment(frame) {
            let sent = send_segments(&mut *self.io, &self.counters, frame, segmenter);
            if let Err(error) = sent {
                self.refuse(&error);
            }
            return;
        }
        let (bytes, gso) = (frame.len() as u64, frame.offload.gso().is_some());
        match self.io.send(core::slice::from_mut(frame)) {
            Ok(0) => self.counters.record_drop(EgressDrop::QueueFull),
            Ok(_) => {
                self.link = Link::Up;
                self.counters.record_sent(bytes, gso);
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// Sends what waits, oldest first, segmented where the device cannot; buffers that are free again
    /// go to `pool`. `true` when as many frames wait as may.
    pub fn flush(&mut self, pool: &mut Batch, segmenter: &mut Segmenter) -> bool {
        let mut done = 0;
        while let Some(next) = self.waiting.get(done) {
            let sent = if self.must_segment(next) {
                self.send_waiting_segments(done, segmenter)
            } else {
                self.send_run(done)
            };
            match sent {
                Ok(0) => break,
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.refuse(&error);
                    done += 1;
                }
            }
        }
        for frame in self.waiting.drain(..done) {
            pool.recycle(frame);
        }
        let queued = self.waiting.len() as u64;
        self.counters
            .queued
            .add(queued.wrapping_sub(self.counters.queued.get()));
        self.waiting.len() >= QUEUE_MAX
    }

    /// Sends waiting frames from `start` on that need no segmentation; how many the device took.
    fn send_run(&mut self, start: usize) -> io::Result<usize> {
        let rest = &self.waiting[start..];
        let len = rest.iter().take_while(|frame| !self.must_segment(frame));
        let end = start + len.count();
        let sent = self.io.send(&mut self.waiting[start..end])?;
        self.link = Link::Up;
        for frame in &self.waiting[start..start + sent] {
            self.counters
                .record_sent(frame.len() as u64, frame.offload.gso().is_some());
        }
        Ok(sent)
    }

    /// Segments one waiting frame; 1 when it is done with, sent or not.
    fn send_waiting_segments(
        &mut self,
        index: usize,
        segmenter: &mut Segmenter,
    ) -> io::Result<usize> {
        let Self {
            io,
            counters,
            waiting,
            ..
        } = self;
        send_segments(&mut **io, counters, &waiting[index], segmenter)?;
        Ok(1)
    }

    /// Drops what waits, for a port that is being removed.
    pub fn abandon(&mut self, pool: &mut Batch) {
        self.count_edge();
        for frame in self.waiting.drain(..) {
            self.counters.record_drop(EgressDrop::PortGone);
            pool.recycle(frame);
        }
        self.counters
            .queued
            .add(0u64.wrapping_sub(self.counters.queued.get()));
    }

    /// Checks the size, and completes the checksum if the device cannot.
    fn prepare(&self, frame: &mut FrameBuf, mtu: u16) -> Result<(), EgressDrop> {
        let gso = frame.offload.gso();
        // As `is_skb_forwardable` of net/core/dev.c: one VLAN tag rides free, GSO is not measured.
        let size_max = ETHERNET_SIZE + VLAN_TAG_SIZE + usize::from(mtu);
        if gso.is_none() && frame.len() > size_max.min(self.capabilities.frame_size_max) {
            return Err(EgressDrop::Oversize);
        }
        if gso.is_none() && frame.offload.needs_checksum() && !self.capabilities.checksum {
            checksum::complete(frame).map_err(|_| EgressDrop::Unsegmentable)?;
            self.counters.checksums.add(1);
        }
        Ok(())
    }

    fn must_segment(&self, frame: &FrameBuf) -> bool {
        match frame.offload.gso() {
            None => false,
            Some(GsoKind::TcpV4 | GsoKind::TcpV6) => !self.capabilities.gso_tcp,
            Some(GsoKind::UdpL4) => !self.capabilities.gso_udp,
            Some(GsoKind::Fragments | GsoKind::UdpFragments | GsoKind::Other(_)) => true,
        }
    }
}

/// Sends a GSO frame as segments. It is one copy: sent when its last segment is, dropped and counted
/// when it cannot be segmented or the device stops taking segments half-way.
///
/// # Errors
/// Only when the device took no segment: the frame may be tried again.
fn send_segments(
    io: &mut dyn PortIo,
    counters: &PortCounters,
    frame: &FrameBuf,
    segmenter: &mut Segmenter,
) -> io::Result<()> {
    let mut taken = 0;
    let mut refused = None;
    let segmented = segmenter.segment(frame, |segment| {
        if refused.is_none() {
            match io.send(core::slice::from_mut(segment)) {
                Ok(1..) => taken += 1,
                Ok(0) => refused = Some(io::Error::from(io::ErrorKind::WouldBlock)),
                Err(error) => refused = Some(error),
            }
        }
    });
    counters.segments.add(taken);
    match (segmented, refused) {
        (Err(_), _) => counters.record_drop(EgressDrop::Unsegmentable),
        (Ok(_), Some(error)) if taken == 0 => return Err(error),
        (Ok(_), Some(error)) => counters.record_drop(reason(&error)),
        (Ok(_), None) => counters.record_sent(frame.len() as u64, false),
    }
    Ok(())
}

fn reason(error: &io::Error) -> EgressDrop {
    match error.kind() {
        io::ErrorKind::WouldBlock => EgressDrop::QueueFull,
        io::ErrorKind::NotConnected => EgressDrop::DeviceDown,
        _ => EgressDrop::Refused,
    }
}

/// Frames for one thread from the others, each with what it is for: of one worker, its port.
pub(crate) struct Handover<T = PortId> {
    full: ArrayQueue<(T, FrameBuf)>,
    free: ArrayQueue<FrameBuf>,
}

impl<T> Handover<T> {
    /// A queue of so many buffers, which are all allocated.
    pub fn new(frames_max: usize) -> Self {
        let free = ArrayQueue::new(frames_max);
        for _ in 0..frames_max {
            // The queue has room for exactly as many.
            let _ = free.push(FrameBuf::new());
        }
        Self {
            full: ArrayQueue::new(frames_max),
            free,
        }
    }

    /// Gives a frame in exchange for a free buffer; gives it back when there is none.
    pub fn give(&self, to: T, frame: FrameBuf) -> Result<FrameBuf, FrameBuf> {
        let Some(buf) = self.free.pop() else {
            return Err(frame);
        };
        match self.full.push((to, frame)) {
            Ok(()) => Ok(buf),
            Err((_, frame)) => {
                let _ = self.free.push(buf);
                Err(frame)
            }
        }
    }

    /// Gives a copy of a frame; `false` when there is no room.
    pub fn give_copy(&self, to: T, frame: &FrameBuf) -> bool {
        let Some(mut buf) = self.free.pop() else {
            return false;
        };
        buf.copy_from(frame.bytes(), frame.offload);
        match self.full.push((to, buf)) {
            Ok(()) => true,
            Err((_, buf)) => {
                let _ = self.free.push(buf);
                false
            }
        }
    }

    /// Whether nothing was handed over.
    pub fn is_empty(&self) -> bool {
        self.full.is_empty()
    }

    /// Takes the oldest frame; its taker returns one buffer for it.
    pub fn take(&self) -> Option<(T, FrameBuf)> {
        self.full.pop()
    }

    /// Returns a buffer for a frame taken.
    pub fn give_back(&self, buf: FrameBuf) {
        let _ = self.free.push(buf);
    }
}

impl Worker {
    /// Sends what other workers handed over for ports that this one owns.
    pub fn take_handover(&mut self) {
        let shared = Arc::clone(&self.shared);
        let handover = &shared.handovers[self.index];
        if handover.is_empty() {
            return;
        }
        let clock = Clock::now();
        self.last_busy = clock;
        for _ in 0..HANDOVER_MAX {
            let Some((port, buf)) = handover.take() else {
                break;
            };
            // One buffer for the other, so that neither worker runs out.
            match self.batch.take_buffer() {
                Some(spare) => {
                    handover.give_back(spare);
                    self.push(port, buf);
                }
                None => {
                    if let Some(Slot::Own { lane, .. }) = self.lanes.get(port.index()) {
                        lane.counters.record_drop(EgressDrop::QueueFull);
                    }
                    handover.give_back(buf);
                }
            }
        }
        self.flush_touched();
        self.count_busy(None, clock);
    }
}
