//! Links of ports: rate limits and impairments, before the switch and behind it.
//!
//! # Theory of operation
//! A port has a link for each direction that something is set of. Frames that enter by such a port
//! go through its link before they are forwarded; copies that leave by one go through it before
//! they come to a lane, on the worker that forwarded them. What becomes of a frame is decided when
//! it comes (`dataplane_core::link`), under the lock of its link, which the workers that have a queue
//! of the port share: only frames of such ports ever see a lock. Until it is due its worker holds a
//! copy in a timer wheel; no worker sleeps meanwhile, but until the first is due.
//!
//! Held frames have buffers of their own, so the batches never lack any. They are made when
//! the first link is, and when more are held than ever before, up to [`HELD_MAX`].
//!
//! In the law of frames a frame that enters by a link has the verdict *held* (or its drop, if no
//! copy of it comes through), and each copy counts as *released* when it is forwarded. In the law of
//! copies a copy counts as enqueued when its link lets it go, or drops it. And every link has a law
//! of its own, [`LinkStats::check_law`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant as Clock;

use dataplane_core::addr::PortId;
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::gso::Segmenter;
use dataplane_core::l2::PortFlags;
use dataplane_core::link::{self, Arrival, Direction, HELD_MAX, LINK_HELD_MAX, Link, LinkCounts};
use dataplane_core::link::{LinkSpec, Loss, Unseen, Wheel, resume};
use dataplane_core::time::Instant;
use dataplane_core::topology::Topology;
use dataplane_core::verdict::{Awaited, DropReason, Verdict};

use crate::command::Command;
use crate::stats::EgressDrop;
use crate::worker::{Slot, Worker};
use crate::{Dataplane, Error, lock};

#[cfg(test)]
mod tests;

/// Buffers for held frames that there are as soon as there is a link; more are made when as many
/// frames are held for the first time.
const SPARE_MIN: usize = 256;

/// Held frames that are let go before the worker looks at its queues again.
const RELEASED_MAX: usize = 256;

/// A link that several workers share.
#[derive(Debug)]
pub(crate) struct SharedLink {
    link: Mutex<Link>,
    held: AtomicU32,
    passed: AtomicU64,
    late_nanos: AtomicU64,
}

/// What links have done, and how many frames they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStats {
    /// Of which port.
    pub port: PortId,
    /// In which direction.
    pub direction: Direction,
    /// What it has done.
    pub counts: LinkCounts,
    /// Copies that it has let go.
    pub passed: u64,
    /// Nanoseconds by which those went later than they were due, in all.
    pub late_nanos: u64,
    /// Copies that it holds.
    pub held: u64,
}

impl LinkStats {
    /// Checks that no frame has vanished on the link. Exact when none is on its way into it.
    ///
    /// # Errors
    /// A sentence with both sides.
    pub fn check_law(&self) -> Result<(), String> {
        let counts = self.counts;
        let came = counts.entered + counts.duplicated;
        let dropped = counts.lost + counts.limited + counts.overflowed;
        if came == dropped + self.passed + self.held {
            return Ok(());
        }
        Err(format!(
            "law of links on {} {}: {came} came, but {dropped} dropped + {} passed + {} held",
            self.port,
            self.direction.label(),
            self.passed,
            self.held
        ))
    }
}

impl SharedLink {
    fn new(spec: LinkSpec, direction: Direction) -> Self {
        Self {
            link: Mutex::new(Link::new(spec, direction)),
            held: AtomicU32::new(0),
            passed: AtomicU64::new(0),
            late_nanos: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        // Plain data, whatever became of another holder.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self, port: PortId, direction: Direction) -> LinkStats {
        let link = self.lock();
        LinkStats {
            port,
            direction,
            counts: link.counts,
            passed: self.passed.load(Ordering::Relaxed),
            late_nanos: self.late_nanos.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed).into(),
        }
    }
}

/// The links that there have been, by port: only on the control side.
#[derive(Debug, Default)]
pub(crate) struct Registry(BTreeMap<PortId, [Option<Arc<SharedLink>>; Direction::ALL.len()]>);

impl Dataplane {
    /// Gives the ports of a picture the links that it says.
    pub(crate) fn connect_links(&self, topology: &Topology) -> Result<(), Error> {
        let mut registry = lock(&self.links);
        for port in topology.ports.iter().flatten() {
            // Of the others not even the profile is read: there may be thousands.
            if !port.flags.has(PortFlags::LINKED) && !registry.0.contains_key(&port.id) {
                continue;
            }
            for direction in Direction::ALL {
                let spec = port.profile.links[direction as usize];
                let known = registry.0.get(&port.id);
                let known = known.and_then(|links| links[direction as usize].as_ref());
                let before = known.map_or_else(LinkSpec::default, |link| *link.lock().spec());
                if before == spec {
                    continue;
                }
                let links = registry.0.entry(port.id).or_default();
                let made = || Arc::new(SharedLink::new(spec, direction));
                let link = links[direction as usize].get_or_insert_with(made);
                link.lock().set(spec);
                let link = (!spec.is_plain()).then(|| Arc::clone(link));
                self.order_all(|_| Command::SetLink(port.id, direction, link.clone()))?;
            }
        }
        Ok(())
    }

    /// Forgets the links of a port that is removed.
    pub(crate) fn forget_links(&self, port: PortId) {
        lock(&self.links).0.remove(&port);
    }

    /// What the links that there are, or have been, have done.
    pub fn link_stats(&self) -> Vec<LinkStats> {
        let registry = lock(&self.links);
        let mut stats = Vec::new();
        for (port, links) in &registry.0 {
            for direction in Direction::ALL {
                let link = links[direction as usize].as_ref();
                stats.extend(link.map(|link| link.stats(*port, direction)));
            }
        }
        stats
    }
}

/// What a worker knows of the links.
#[derive(Debug)]
pub(crate) struct Links {
    /// By port.
    ports: Vec<PortLinks>,
    /// Links of each direction.
    counts: [usize; Direction::ALL.len()],
    wheel: Wheel<Held>,
    /// Buffers for held frames that are free.
    spare: Vec<FrameBuf>,
}

#[derive(Debug, Default)]
struct PortLinks {
    links: [Option<Arc<SharedLink>>; Direction::ALL.len()],
    /// Grows when the port is removed: what was held for it before is of another port.
    removals: u32,
}

/// A frame that is on its way over a link.
#[derive(Debug)]
struct Held {
    buf: FrameBuf,
    due: Instant,
    port: PortId,
    direction: Direction,
    removals: u32,
    link: Arc<SharedLink>,
}

/// What became of a frame that came to a link, in copies.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    held: u64,
    lost: u64,
    limited: u64,
    overflowed: u64,
}

impl Outcome {
    fn count(&mut self, loss: Loss) {
        match loss {
            Loss::Limited => self.limited += 1,
            Loss::Lost => self.lost += 1,
        }
    }

    /// The verdict of a frame that was to enter.
    fn verdict(self) -> Verdict {
        if self.held > 0 {
            return Verdict::Held(Awaited::Link);
        }
        Verdict::Drop(if self.overflowed > 0 {
            DropReason::LinkFull
        } else if self.limited > 0 {
            Loss::Limited.reason()
        } else {
            Loss::Lost.reason()
        })
    }
}

impl Links {
    /// No links.
    pub fn new() -> Self {
        Self {
            ports: Vec::new(),
            counts: [0; Direction::ALL.len()],
            wheel: Wheel::new(HELD_MAX),
            spare: Vec::new(),
        }
    }

    /// Whether there is any link of that direction.
    #[inline]
    pub fn any(&self, direction: Direction) -> bool {
        self.counts[direction as usize] > 0
    }

    /// When the first frame that is held is due.
    #[inline]
    pub fn next_due(&self) -> Option<Instant> {
        self.wheel.next_due()
    }

    /// Whether no frame is held.
    #[inline]
    pub fn hold_nothing(&self) -> bool {
        self.wheel.is_empty()
    }

    /// Replaces the link of a port.
    pub fn set(&mut self, port: PortId, direction: Direction, link: Option<Arc<SharedLink>>) {
        if self.ports.len() <= port.index() {
            self.ports.resize_with(port.index() + 1, PortLinks::default);
        }
        if link.is_some() && self.spare.capacity() == 0 {
            self.spare.reserve_exact(HELD_MAX);
            self.spare.resize_with(SPARE_MIN, FrameBuf::new);
        }
        let place = &mut self.ports[port.index()].links[direction as usize];
        let count = &mut self.counts[direction as usize];
        *count -= usize::from(place.is_some());
        *count += usize::from(link.is_some());
        *place = link;
    }

    /// Forgets the links of a port that is removed; what they hold ends when it is due.
    pub fn forget(&mut self, port: PortId) {
        for direction in Direction::ALL {
            self.set(port, direction, None);
        }
        self.ports[port.index()].removals += 1;
    }

    /// Whether a port has a link of that direction.
    pub fn has(&self, port: PortId, direction: Direction) -> bool {
        self.link(port, direction).is_some()
    }

    fn link(&self, port: PortId, direction: Direction) -> Option<&Arc<SharedLink>> {
        self.ports.get(port.index())?.links[direction as usize].as_ref()
    }

    /// Sends a frame over a link of a port, GSO frames in segments: a link is a wire.
    fn enter(
        &mut self,
        (port, direction): (PortId, Direction),
        frame: &FrameBuf,
        now: Instant,
        segmenter: &mut Segmenter,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(link) = self.link(port, direction).map(Arc::clone) else {
            return outcome;
        };
        let mut over = |frame: &FrameBuf| {
            // Before it is paid for: the line would be busy with a frame that is not there.
            if self.is_full(&link) {
                link.lock().refuse();
                outcome.overflowed += 1;
                return;
            }
            let passed = link.lock().pass(frame.len(), now);
            match passed {
                Ok((first, second)) => {
                    for arrival in [Some(first), second].into_iter().flatten() {
                        let held = self.hold((port, direction), &link, frame, arrival, now);
                        outcome.held += u64::from(held);
                        outcome.overflowed += u64::from(!held);
                    }
                }
                Err(loss) => outcome.count(loss),
            }
        };
        let whole = frame.offload.gso().is_none();
        if whole || segmenter.segment(frame, |segment| over(segment)).is_err() {
            // What cannot be segmented is one frame, however large.
            over(frame);
        }
        outcome
    }

    /// Whether as many frames are held as may be. One too many may be for a moment, where workers come at
    /// once: no reason to wait for each other.
    fn is_full(&self, link: &SharedLink) -> bool {
        link.held.load(Ordering::Relaxed) >= LINK_HELD_MAX || self.wheel.len() >= HELD_MAX
    }

    /// Holds a copy of a frame until it is due; `false` when as many are held as may be.
    fn hold(
        &mut self,
        (port, direction): (PortId, Direction),
        link: &Arc<SharedLink>,
        frame: &FrameBuf,
        arrival: Arrival,
        now: Instant,
    ) -> bool {
        if self.is_full(link) {
            link.lock().counts.overflowed += 1;
            return false;
        }
        let mut buf = self.spare.pop().unwrap_or_default();
        buf.copy_from(frame.bytes(), frame.offload);
        if let Some(bit) = arrival.corrupt {
            link::corrupt(&mut buf, bit);
        }
        let held = Held {
            buf,
            due: arrival.due,
            port,
            direction,
            removals: self.ports[port.index()].removals,
            link: Arc::clone(link),
        };
        link.held.fetch_add(1, Ordering::Relaxed);
        // There is room, so nothing comes back.
        self.wheel.insert(held, arrival.due, now).is_ok()
    }

    /// Takes out a frame that is due, of a port that is still there.
    fn take_due(&mut self, now: Instant) -> Option<Held> {
        loop {
            let held = self.wheel.take_due(now)?;
            held.link.held.fetch_sub(1, Ordering::Relaxed);
            held.link.passed.fetch_add(1, Ordering::Relaxed);
            let late = now.since(held.due).as_nanos() as u64;
            held.link.late_nanos.fetch_add(late, Ordering::Relaxed);
            let ports = self.ports.get(held.port.index());
            if ports.is_some_and(|port| port.removals == held.removals) {
                return Some(held);
            }
            self.spare.push(held.buf);
        }
    }
}

impl Worker {
    /// Sends received frames over the link of their port; they enter the switch when it lets them.
    #[cold]
    pub fn enter_by_link(&mut self, ingress: PortId, frames: &mut Vec<FrameBuf>, now: Instant) {
        for frame in frames.drain(..) {
            let place = (ingress, Direction::In);
            let outcome = self.links.enter(place, &frame, now, &mut self.segmenter);
            let verdict = outcome.verdict();
            self.switch.counters.rx.add(1);
            self.switch.counters.record(verdict);
            if !self.taps.is_empty() {
                self.trace_link(ingress, &frame, verdict, now);
            }
            self.batch.recycle(frame);
        }
    }

    /// Sends a copy over the link of its port; `false` when the port has none.
    #[cold]
    pub fn leave_by_link(&mut self, port: PortId, frame: &FrameBuf) -> bool {
        if !self.links.has(port, Direction::Out) {
            return false;
        }
        let now = self.now();
        let place = (port, Direction::Out);
        let outcome = self.links.enter(place, frame, now, &mut self.segmenter);
        let Some(counters) = self.lanes.get(port.index()).and_then(Slot::counters) else {
            return true;
        };
        for (reason, count) in [
            (EgressDrop::LinkLost, outcome.lost),
            (EgressDrop::RateLimited, outcome.limited),
            (EgressDrop::LinkFull, outcome.overflowed),
        ] {
            counters.enqueued.add(count);
            counters.record_drops(reason, count);
        }
        true
    }

    /// Lets frames go that are due.
    #[inline]
    pub fn pass_due(&mut self) {
        if !self.links.hold_nothing() {
            self.pass_some();
        }
    }

    #[cold]
    fn pass_some(&mut self) {
        let clock = Clock::now();
        let now = self.instant(clock);
        if self.links.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.switch.fdb.begin_batch();
        for _ in 0..RELEASED_MAX {
            let Some(held) = self.links.take_due(now) else {
                break;
            };
            // One buffer for the other, so that neither side runs out.
            let Some(spare) = self.batch.take_buffer() else {
                self.lose(held);
                continue;
            };
            self.links.spare.push(spare);
            match held.direction {
                Direction::In => self.forward_released(held.port, held.buf, now),
                Direction::Out => self.enqueue_past_link(held.port, held.buf),
            }
        }
        self.flush_touched();
        self.count_busy(None, clock);
    }

    /// Forwards a frame that its port's link has held.
    fn forward_released(&mut self, ingress: PortId, mut buf: FrameBuf, now: Instant) {
        if !self.taps.is_empty() {
            return self.forward_traced(ingress, buf, now, resume);
        }
        if self.is_mirroring() {
            return self.forward_mirrored(ingress, buf, now, resume);
        }
        let mut frame = Frame::new(ingress, &mut buf);
        let verdict = resume(&mut self.switch, &mut frame, now, &mut Unseen);
        self.dispatch(ingress, buf, verdict);
    }

    /// Gives up a frame that is due, when every buffer waits for slow devices.
    fn lose(&mut self, held: Held) {
        match held.direction {
            Direction::In => {
                self.switch.counters.released.add(1);
                let verdict = Verdict::Drop(DropReason::LinkFull);
                self.switch.counters.record(verdict);
            }
            Direction::Out => self.drop_copy(held.port, EgressDrop::LinkFull),
        }
        self.links.spare.push(held.buf);
    }

    fn drop_copy(&self, port: PortId, reason: EgressDrop) {
        if let Some(counters) = self.lanes.get(port.index()).and_then(Slot::counters) {
            counters.enqueued.add(1);
            counters.record_drop(reason);
        }
    }

    /// Whether a held frame is due.
    pub fn has_due(&self) -> bool {
        let due = self.links.next_due();
        due.is_some_and(|due| due <= self.now())
    }
}
