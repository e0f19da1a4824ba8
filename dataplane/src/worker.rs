//! A worker thread: its turn, its ports, its switch.
//!
//! # Theory of operation
//! A worker owns one queue of every multi-queue port and the only queue of some others. One turn:
//! commands, then poll, then one batch of each ready queue (forward every frame, flush egress),
//! then the tick. mio is edge-triggered: a queue enters the ready set on its event and leaves it
//! only when `recv` says that nothing is left, at that moment: a poll in between could take up the
//! event of a new frame and think the queue ready already. While the set is not empty the worker
//! does not sleep; queues take turns, one batch each, so that none starves the others.
//!
//! The clock is read once per batch. Only the owning worker closes a descriptor.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crossbeam::channel::{Receiver, Sender};
use dataplane_core::addr::{DomainId, PortId, VlanId};
use dataplane_core::ahead::look_ahead;
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::gso::Segmenter;
use dataplane_core::l2::{FloodClass, Form, PortFlags, TRANSPARENT, reshape};
use dataplane_core::link::Direction;
use dataplane_core::multicast::Question;
use dataplane_core::path::{Switch, forward};
use dataplane_core::time::Instant;
use dataplane_core::topology::Topology;
use dataplane_core::trace::Off;
use dataplane_core::verdict::{Consumer, Verdict};
use dataplane_port::Batch;
use mio::{Events, Poll, Token, Waker};

use crate::Waiting;
use crate::announcing::Announcements;
use crate::command::{Command, Notice, Order};
use crate::egress::{Handover, Lane, QUEUE_MAX};
use crate::links::Links;
use crate::service::Inbox;
use crate::stats::{EgressDrop, PortCounters, WorkerCounters};
use crate::timer::Timer;
use crate::tracing::Tap;

/// Events taken from one poll; more wait for the next.
const EVENTS_MAX: usize = 256;

/// Batches forwarded between two looks at the poll while queues are ready: a new arrival waits at
/// most this many batches.
const BATCHES_PER_POLL: usize = 8;

/// Time between two ticks: session expiry, lost devices, held frames.
const TICK: Duration = Duration::from_millis(100);

/// Sessions that one tick may expire.
const EXPIRE_BUDGET: usize = 4_096;

/// The token of commands and handed-over frames; port tokens are below it.
pub(crate) const WAKE: Token = Token(usize::MAX);

/// The token of the timer, which is set for the first frame that a link holds.
pub(crate) const TIMER: Token = Token(usize::MAX - 1);

/// What every worker shares.
pub(crate) struct Shared {
    pub handovers: Vec<Handover>,
    /// The way to the service thread.
    pub service: Inbox,
    /// What the service thread sends, for the first worker to enqueue.
    pub injected: Handover,
    pub wakers: Vec<Waker>,
    pub notices: Sender<Notice>,
    pub origin: Clock,
    /// What the core's clock shows at `origin`.
    pub clock_start: Instant,
    pub waiting: Waiting,
}

impl Shared {
    /// What the core's clock shows at a moment.
    pub fn instant(&self, clock: Clock) -> Instant {
        self.clock_start + clock.saturating_duration_since(self.origin)
    }
}

/// One worker.
pub(crate) struct Worker {
    pub index: usize,
    pub poll: Poll,
    pub orders: Receiver<Order>,
    pub switch: Switch,
    pub shared: Arc<Shared>,
    pub counters: Arc<WorkerCounters>,
    pub lanes: Vec<Slot>,
    pub ready: VecDeque<PortId>,
    pub batch: Batch,
    pub segmenter: Segmenter,
    pub taps: Vec<Tap>,
    /// Ports whose device did not take everything.
    pub blocked: Vec<PortId>,
    /// Ports without a descriptor: asked at every turn, and the worker never sleeps.
    pub askable: Vec<PortId>,
    /// Ports whose frames come sooner when the worker asks for them while it spins.
    pub busy_polled: Vec<PortId>,
    /// When a frame was last received; the worker spins only for a while after it.
    pub last_busy: Clock,
    /// Ports with frames for the next flush.
    pub touched: Vec<PortId>,
    /// Rate limits and impairments of ports.
    pub links: Links,
    pub timer: Timer,
    pub announcements: Announcements,
    /// What is to be asked as a querier; empty between two ticks.
    pub questions: Vec<Question>,
    pub next_tick: Clock,
    pub stopped: bool,
}

/// What this worker knows of a port.
#[derive(Default)]
pub(crate) enum Slot {
    /// Nothing.
    #[default]
    Empty,
    /// It owns a queue of it.
    Own { lane: Lane, ready: bool },
    /// Another worker owns its only queue.
    Remote {
        owner: usize,
        counters: Arc<PortCounters>,
    },
    /// Its only queue is on the way here from another worker; frames for it wait.
    Expected {
        waiting: Vec<FrameBuf>,
        counters: Arc<PortCounters>,
    },
}

impl Slot {
    /// The counters of the port, where the worker knows it.
    pub fn counters(&self) -> Option<&Arc<PortCounters>> {
        match self {
            Self::Own { lane, .. } => Some(&lane.counters),
            Self::Remote { counters, .. } | Self::Expected { counters, .. } => Some(counters),
            Self::Empty => None,
        }
    }
}

impl Worker {
    /// Takes turns until told to stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.stopped {
            self.take_orders();
            self.poll(&mut events);
            for _ in 0..BATCHES_PER_POLL {
                self.pass_due();
                if !self.take_batch() {
                    break;
                }
            }
            self.take_handover();
            self.go_on_announcing();
            self.take_injected();
            self.retry_blocked();
            self.tick();
            self.counters.turns.add(1);
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            let outcome = self.obey(order.command);
            self.announcements.note_order(Clock::now());
            // The caller may have given up waiting; the change stands all the same.
            let _ = order.done.send(outcome);
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Install(topology) => {
                self.switch.topology = topology;
                self.follow_flags();
                self.switch.fdb.begin_batch();
                self.release_held();
            }
            Command::Attach(attachment) => return self.attach(attachment),
            Command::Detach(id) => self.detach(id),
            Command::Expect(id) => self.expect(id),
            Command::Redirect(id, owner) => self.redirect(id, owner),
            Command::Release(id, owner, to) => self.release(id, owner, &to),
            Command::Adopt(id, queue) => return self.adopt(id, queue),
            Command::Announce(port, bytes) => return self.announce(port, bytes),
            Command::Probe(key) => self.send_probes(key),
            Command::Trace(tap) => self.taps.push(tap),
            Command::EndTrace(number) => self.taps.retain(|tap| tap.number != number),
            Command::SetLink(id, direction, link) => self.links.set(id, direction, link),
            Command::SetCarrier(id, carrier) => return self.set_carrier(id, carrier),
            Command::Pass => {}
            Command::Stop => self.stopped = true,
        }
        Ok(())
    }

    pub fn mark_ready(&mut self, id: PortId) {
        if let Some(Slot::Own { ready, .. }) = self.lanes.get_mut(id.index())
            && !*ready
        {
            *ready = true;
            self.ready.push_back(id);
        }
    }

    /// Receives and forwards one batch of the next ready queue; `false` when none is ready.
    fn take_batch(&mut self) -> bool {
        let Some(id) = self.ready.pop_front() else {
            return false;
        };
        let clock = Clock::now();
        let Some(Slot::Own { lane, ready }) = self.lanes.get_mut(id.index()) else {
            return true;
        };
        match lane.io.recv(&mut self.batch) {
            Ok(_) => {
                // Before the next poll: an event that it takes up must count again.
                if self.batch.take_drained() {
                    *ready = false;
                } else {
                    self.ready.push_back(id);
                }
                if core::mem::take(&mut lane.down) {
                    self.notify(Notice::PortUp(id));
                }
            }
            Err(error) => {
                *ready = false;
                // Only `WouldBlock` promises an event; after anything else the tick asks again.
                lane.failed = error.kind() != io::ErrorKind::WouldBlock;
                let lost = error.kind() == io::ErrorKind::NotConnected && !lane.down;
                if lost {
                    lane.down = true;
                    self.switch.fdb.flush_port(id);
                    self.switch.groups.flush_port(id);
                    self.notify(Notice::PortDown(id));
                }
            }
        }
        if !self.batch.is_empty() {
            self.forward_batch(id, clock);
            self.count_busy(Some(id), clock);
        }
        true
    }

    /// Forwards what the batch holds. The choice between watching frames and not is made once, here.
    fn forward_batch(&mut self, ingress: PortId, clock: Clock) {
        let now = self.instant(clock);
        self.last_busy = clock;
        self.switch.fdb.begin_batch();
        self.counters.batches.add(1);
        let mut frames = self.batch.take_frames();
        self.count_received(ingress, &frames);
        if self.links.any(Direction::In) && self.links.has(ingress, Direction::In) {
            // The batch's clock was read before them, and one may have come since.
            self.enter_by_link(ingress, &mut frames, self.now());
        }
        look_ahead(&self.switch, ingress, frames.iter());
        if self.taps.is_empty() && !self.is_mirroring() {
            for frame in frames.drain(..) {
                self.forward_one(ingress, frame, now);
            }
        } else {
            for frame in frames.drain(..) {
                if self.taps.is_empty() {
                    self.forward_mirrored(ingress, frame, now, forward);
                } else {
                    self.forward_traced(ingress, frame, now, forward);
                }
            }
        }
        self.batch.return_list(frames);
        if self.switch.gateway.take_due() {
            self.release_held();
        }
        self.flush_touched();
    }

    fn count_received(&self, ingress: PortId, frames: &[FrameBuf]) {
        if let Some(Slot::Own { lane, .. }) = self.lanes.get(ingress.index()) {
            lane.counters.rx_frames.add(frames.len() as u64);
            lane.counters
                .rx_bytes
                .add(frames.iter().map(|frame| frame.len() as u64).sum());
        }
    }

    /// Books the time since `since` on the worker, and on the port whose frames took it.
    pub fn count_busy(&mut self, port: Option<PortId>, since: Clock) {
        self.last_busy = Clock::now();
        let nanos = self.last_busy.saturating_duration_since(since).as_nanos() as u64;
        self.counters.busy_nanos.add(nanos);
        if let Some(port) = port
            && let Some(Slot::Own { lane, .. }) = self.lanes.get(port.index())
        {
            lane.counters.busy_nanos.add(nanos);
        }
    }

    #[inline]
    fn forward_one(&mut self, ingress: PortId, mut buf: FrameBuf, now: Instant) {
        let verdict = forward(
            &mut self.switch,
            &mut Frame::new(ingress, &mut buf),
            now,
            &mut Off,
        );
        self.dispatch(ingress, buf, verdict);
    }

    /// Carries out a verdict.
    #[inline]
    pub fn dispatch(&mut self, ingress: PortId, buf: FrameBuf, verdict: Verdict) {
        match verdict {
            Verdict::Bridged(port)
            | Verdict::Routed(port)
            | Verdict::Replied(port)
            | Verdict::Delivered(Consumer::HostLink(port)) => self.enqueue(port, buf),
            Verdict::Flooded(domain, vlan, class) => {
                self.counters.flooded[class as usize].add(1);
                self.flood((domain, vlan), ingress, class, buf);
            }
            Verdict::Multicast(_, vlan) => {
                let takers = self.switch.groups.take_takers();
                self.send_copies(vlan, || takers.iter().copied(), buf);
                self.switch.groups.return_takers(takers);
            }
            Verdict::Delivered(Consumer::Service(domain)) => self.serve(domain, ingress, buf),
            Verdict::Held(_) | Verdict::NotOurs | Verdict::Drop(_) => self.batch.recycle(buf),
        }
    }

    /// Puts a frame on its way to one port.
    #[inline]
    pub fn enqueue(&mut self, port: PortId, buf: FrameBuf) {
        if self.links.any(Direction::Out) && self.leave_by_link(port, &buf) {
            return self.batch.recycle(buf);
        }
        self.enqueue_past_link(port, buf);
    }

    /// Puts a frame on its way to one port, whose link it has behind it.
    #[inline]
    pub fn enqueue_past_link(&mut self, port: PortId, buf: FrameBuf) {
        let freed = match self.lanes.get_mut(port.index()) {
            Some(Slot::Own { lane, .. }) => {
                lane.counters.enqueued.add(1);
                return self.push(port, buf);
            }
            Some(Slot::Remote { owner, counters }) => {
                counters.enqueued.add(1);
                let (owner, counters) = (*owner, Arc::clone(counters));
                Some(self.hand_over(owner, &counters, port, buf))
            }
            Some(Slot::Expected { waiting, counters }) => {
                counters.enqueued.add(1);
                expect_frame(waiting, counters, buf)
            }
            // The port's removal overtook this frame; its counters are gone with it.
            Some(Slot::Empty) | None => Some(buf),
        };
        if let Some(buf) = freed {
            self.batch.recycle(buf);
        }
    }

    /// Gives a frame to an own queue, for the next flush.
    pub fn push(&mut self, port: PortId, mut buf: FrameBuf) {
        let found = self.switch.topology.port(port);
        let mtu = found.map_or(0, |port| port.mtu);
        let one_mac = found.is_some_and(|port| port.flags.has(PortFlags::MAC_NAT));
        if one_mac && !self.leave_by_one_mac(port, &mut buf) {
            return self.batch.recycle(buf);
        }
        let lane = match self.lanes.get_mut(port.index()) {
            Some(Slot::Own { lane, .. }) => lane,
            // Handed over by a worker that was redirected before the queue has come.
            Some(Slot::Expected { waiting, counters }) => {
                if let Some(buf) = expect_frame(waiting, counters, buf) {
                    self.batch.recycle(buf);
                }
                return;
            }
            // The port's removal overtook this frame; its counters are gone with it.
            Some(Slot::Remote { .. } | Slot::Empty) | None => return self.batch.recycle(buf),
        };
        lane.push(buf, mtu, &mut self.batch, &mut self.segmenter);
        if lane.has_waiting() && self.touched.last() != Some(&port) {
            self.touched.push(port);
        }
    }

    fn hand_over(
        &self,
        owner: usize,
        counters: &PortCounters,
        port: PortId,
        buf: FrameBuf,
    ) -> FrameBuf {
        match self.shared.handovers[owner].give(port, buf) {
            Ok(buf) => {
                self.wake(owner);
                buf
            }
            Err(buf) => {
                counters.record_drop(EgressDrop::HandoverFull);
                buf
            }
        }
    }

    /// Sends a frame to every port of its VLAN that takes it.
    pub fn flood(
        &mut self,
        (domain, vlan): (DomainId, VlanId),
        ingress: PortId,
        class: FloodClass,
        buf: FrameBuf,
    ) {
        let topology = Arc::clone(&self.switch.topology);
        let takers = || topology.flood_set(domain, vlan, ingress, class);
        self.send_copies(vlan, takers, buf);
    }

    /// Sends a frame to each of several ports, without copying it for own queues: where VLANs count,
    /// first to those that take it with a tag.
    pub fn send_copies<I: Iterator<Item = PortId>>(
        &mut self,
        vlan: VlanId,
        takers: impl Fn() -> I,
        mut buf: FrameBuf,
    ) {
        self.flush_touched();
        let topology = Arc::clone(&self.switch.topology);
        if vlan == TRANSPARENT {
            self.send_to(&topology, takers(), &mut buf);
        } else {
            for form in Form::ALL {
                let form_of = |id: &PortId| topology.port(*id).and_then(|port| port.form(vlan));
                let takers = takers().filter(|id| form_of(id) == Some(form));
                // What is flooded was not answered in place, so there is room for a tag.
                if reshape(&mut buf, vlan, form) {
                    self.send_to(&topology, takers, &mut buf);
                }
            }
        }
        self.batch.recycle(buf);
    }

    /// Sends a frame to several ports as it is.
    fn send_to(
        &mut self,
        topology: &Topology,
        ports: impl Iterator<Item = PortId>,
        buf: &mut FrameBuf,
    ) {
        for port in ports {
            let found = topology.port(port);
            if found.is_some_and(|port| port.flags.has(PortFlags::MAC_NAT)) {
                self.send_copy(port, buf);
                continue;
            }
            if self.links.any(Direction::Out) && self.leave_by_link(port, buf) {
                continue;
            }
            let mtu = found.map_or(0, |port| port.mtu);
            match self.lanes.get_mut(port.index()) {
                Some(Slot::Own { lane, .. }) if lane.has_waiting() => {
                    // The device is behind: this copy must not overtake what waits for it.
                    lane.counters.enqueued.add(1);
                    match self.batch.take_copy(buf) {
                        Some(copy) => {
                            lane.push(copy, mtu, &mut self.batch, &mut self.segmenter);
                        }
                        None => lane.counters.record_drop(EgressDrop::QueueFull),
                    }
                }
                Some(Slot::Own { lane, .. }) => {
                    lane.counters.enqueued.add(1);
                    lane.send_now(buf, mtu, &mut self.segmenter);
                    if lane.take_lost() {
                        self.switch.fdb.flush_port(port);
                        self.switch.groups.flush_port(port);
                    }
                }
                Some(Slot::Expected { waiting, counters }) => {
                    counters.enqueued.add(1);
                    match self.batch.take_copy(buf) {
                        Some(copy) => {
                            if let Some(copy) = expect_frame(waiting, counters, copy) {
                                self.batch.recycle(copy);
                            }
                        }
                        None => counters.record_drop(EgressDrop::QueueFull),
                    }
                }
                Some(Slot::Remote { owner, counters }) => {
                    counters.enqueued.add(1);
                    if self.shared.handovers[*owner].give_copy(port, buf) {
                        let owner = *owner;
                        self.wake(owner);
                    } else {
                        counters.record_drop(EgressDrop::HandoverFull);
                    }
                }
                Some(Slot::Empty) | None => {}
            }
        }
    }

    pub fn flush_touched(&mut self) {
        while let Some(port) = self.touched.pop() {
            let Some(Slot::Own { lane, .. }) = self.lanes.get_mut(port.index()) else {
                continue;
            };
            lane.flush(&mut self.batch, &mut self.segmenter);
            if lane.take_lost() {
                self.switch.fdb.flush_port(port);
                self.switch.groups.flush_port(port);
            }
            if lane.has_waiting() && !self.blocked.contains(&port) {
                self.blocked.push(port);
            }
        }
    }

    fn retry_blocked(&mut self) {
        if self.blocked.is_empty() {
            return;
        }
        self.touched.append(&mut self.blocked);
        self.flush_touched();
    }

    /// What is done now and then: expiry, lost devices, held frames.
    fn tick(&mut self) {
        let clock = Clock::now();
        if clock < self.next_tick {
            return;
        }
        self.next_tick = clock + TICK;
        let now = self.now();
        let topology = Arc::clone(&self.switch.topology);
        self.switch.gateway.tick(&topology, now, EXPIRE_BUDGET);
        self.release_held();
        for (uplink, next_hop) in self.switch.gateway.take_wanted() {
            self.notify(Notice::NextHopWanted(uplink, next_hop));
        }
        self.tell_sightings();
        if self.index == 0 {
            self.ask_listeners(&topology, now);
        }
        self.count_edges(clock);
        for index in 0..self.lanes.len() {
            if matches!(&self.lanes[index], Slot::Own { lane, .. } if lane.failed) {
                self.mark_ready(PortId(index as u16));
            }
        }
    }

    /// Takes held frames up again whose next hop is known now, or has not answered in time.
    fn release_held(&mut self) {
        let now = self.now();
        let topology = Arc::clone(&self.switch.topology);
        while let Some((ingress, buf, verdict)) =
            self.switch
                .gateway
                .release(&topology, &self.switch.counters, now)
        {
            self.dispatch_mirrored(ingress, buf, verdict);
        }
        self.flush_touched();
    }

    pub fn now(&self) -> Instant {
        self.instant(Clock::now())
    }

    pub fn instant(&self, clock: Clock) -> Instant {
        self.shared.instant(clock)
    }

    pub fn notify(&self, notice: Notice) {
        if self.shared.notices.try_send(notice).is_err() {
            self.counters.notices_lost.add(1);
        }
    }

    fn wake(&self, worker: usize) {
        // A full eventfd still wakes.
        let _ = self.shared.wakers[worker].wake();
    }
}

/// Keeps a frame for a port whose queue is on its way here; gives it back when too many wait.
fn expect_frame(
    waiting: &mut Vec<FrameBuf>,
    counters: &PortCounters,
    buf: FrameBuf,
) -> Option<FrameBuf> {
    if waiting.len() >= QUEUE_MAX {
        counters.record_drop(EgressDrop::QueueFull);
        return Some(buf);
    }
    waiting.push(buf);
    None
}
