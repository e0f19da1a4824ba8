//! A worker's ports come, go, and move between workers.
//!
//! # Theory of operation
//! The only queue of a single-queue port can move from its old owner to a new one without losing or
//! reordering a frame. The control side gives four orders, each acknowledged before the next:
//! 1. the new owner *expects* the queue: frames for the port wait there;
//! 2. every other worker is *redirected*: it hands its frames to the new owner;
//! 3. the old owner *releases*: it sends what was handed to it before, gives up the queue with the
//!    frames that the device has not taken, and is redirected itself;
//! 4. the new owner *adopts* the queue and sends, oldest first, what waits.
//!
//! Frames of one flow enter by one queue, so one worker forwards them before and after; what that
//! worker gave to the old owner leaves in step 3, what it gave to the new owner waits until step 4.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crossbeam::channel::Sender;
use dataplane_core::addr::PortId;
use dataplane_core::frame::FrameBuf;
use dataplane_port::{Carrier, PortIo};
use mio::unix::SourceFd;
use mio::{Interest, Token};

use crate::command::{Attachment, Released};
use crate::egress::{Lane, QUEUE_MAX};
use crate::stats::PortCounters;
use crate::worker::{Slot, Worker};

/// How often ports are asked for what was lost at the kernel's edge: it takes a system call each.
const EDGE_INTERVAL: Duration = Duration::from_secs(1);

impl Worker {
    pub fn attach(&mut self, attachment: Attachment) -> Result<(), String> {
        let Attachment {
            id,
            queue,
            owner,
            counters,
        } = attachment;
        let slot = match queue {
            Some(io) => {
                self.register(id, &*io)
                    .map_err(|error| format!("cannot poll {id}: {error}"))?;
                // Whatever arrived before the registration raises no event.
                self.ready.push_back(id);
                Slot::Own {
                    lane: Lane::new(io, counters),
                    ready: true,
                }
            }
            None => Slot::Remote { owner, counters },
        };
        if self.lanes.len() <= id.index() {
            self.lanes.resize_with(id.index() + 1, Slot::default);
        }
        self.lanes[id.index()] = slot;
        Ok(())
    }

    fn register(&mut self, id: PortId, io: &dyn PortIo) -> io::Result<()> {
        if io.busy_polled() {
            self.busy_polled.push(id);
        }
        let Some(fd) = io.readiness() else {
            self.askable.push(id);
            return Ok(());
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let fd = fd.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), Token(id.index()), interest)
    }

    pub fn detach(&mut self, id: PortId) {
        let Some(slot) = self.lanes.get_mut(id.index()) else {
            return;
        };
        self.links.forget(id);
        if let Slot::Own { mut lane, .. } = core::mem::take(slot) {
            lane.abandon(&mut self.batch);
            self.forget(id, &lane);
        }
    }

    /// Has frames leave by each queue as the picture says of its port.
    pub fn follow_flags(&mut self) {
        for (port, slot) in self.switch.topology.ports.iter().zip(&mut self.lanes) {
            if let (Some(port), Slot::Own { lane, .. }) = (port, slot) {
                lane.follow(port.flags);
            }
        }
    }

    /// Counts what was lost at the kernel's edge of each queue, from time to time. One that has missed
    /// frames is asked for what there is: it may be the loss that keeps it from telling.
    pub fn count_edges(&mut self, clock: Clock) {
        for index in 0..self.lanes.len() {
            if let Slot::Own { lane, .. } = &mut self.lanes[index]
                && clock >= lane.edge_due
            {
                lane.edge_due = clock + EDGE_INTERVAL;
                if lane.count_edge() {
                    self.mark_ready(PortId(index as u16));
                }
            }
        }
    }

    /// Plugs or unplugs the cable of a port of which this worker has a queue.
    pub fn set_carrier(&self, id: PortId, carrier: Carrier) -> Result<(), String> {
        match self.lanes.get(id.index()) {
            Some(Slot::Own { lane, .. }) => lane
                .io
                .set_carrier(carrier)
                .map_err(|error| format!("cannot set the carrier of {id}: {error}")),
            Some(Slot::Remote { .. } | Slot::Expected { .. } | Slot::Empty) | None => Ok(()),
        }
    }

    /// Ends the polling of a port that is no longer here.
    fn forget(&mut self, id: PortId, lane: &Lane) {
        if let Some(fd) = lane.io.readiness() {
            let fd = fd.as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        self.askable.retain(|port| *port != id);
        self.busy_polled.retain(|port| *port != id);
        self.ready.retain(|port| *port != id);
        self.blocked.retain(|port| *port != id);
        self.touched.retain(|port| *port != id);
    }

    /// Lets frames for a port wait until its queue has come from another worker.
    pub fn expect(&mut self, id: PortId) {
        self.exchange(id, |counters| Slot::Expected {
            waiting: Vec::with_capacity(QUEUE_MAX),
            counters,
        });
    }

    /// Hands frames for a port to another worker from now on.
    pub fn redirect(&mut self, id: PortId, owner: usize) {
        self.exchange(id, |counters| Slot::Remote { owner, counters });
    }

    /// Replaces what is known of a port that another worker owns.
    fn exchange(&mut self, id: PortId, slot: impl FnOnce(Arc<PortCounters>) -> Slot) {
        if let Some(known @ Slot::Remote { .. }) = self.lanes.get_mut(id.index())
            && let Slot::Remote { counters, .. } = core::mem::take(known)
        {
            *known = slot(counters);
        }
    }

    /// Gives up the queue of a port, after everything that was handed over for it.
    pub fn release(&mut self, id: PortId, owner: usize, to: &Sender<Released>) {
        self.take_handover();
        let Some(slot @ Slot::Own { .. }) = self.lanes.get_mut(id.index()) else {
            return;
        };
        let Slot::Own { mut lane, .. } = core::mem::take(slot) else {
            return;
        };
        lane.flush(&mut self.batch, &mut self.segmenter);
        *slot = Slot::Remote {
            owner,
            counters: Arc::clone(&lane.counters),
        };
        self.forget(id, &lane);
        let released = lane.release();
        // The frames leave with their buffers; this is no hot path, so new ones are made.
        for _ in &released.waiting {
            self.batch.recycle(FrameBuf::new());
        }
        // The order is given up only together with the dataplane.
        let _ = to.send(released);
    }

    /// Takes over the queue of a port, and sends what waits for it.
    pub fn adopt(&mut self, id: PortId, released: Released) -> Result<(), String> {
        let Some(slot @ Slot::Expected { .. }) = self.lanes.get_mut(id.index()) else {
            return Err(format!("{id} was not expected"));
        };
        let Slot::Expected { waiting, counters } = core::mem::take(slot) else {
            return Err(format!("{id} was not expected"));
        };
        let registered = self.register(id, &*released.io);
        let mut lane = Lane::adopt(released, counters);
        if let Some(port) = self.switch.topology.port(id) {
            lane.follow(port.flags);
        }
        self.lanes[id.index()] = Slot::Own { lane, ready: true };
        self.ready.push_back(id);
        self.touched.push(id);
        for frame in waiting {
            self.push(id, frame);
        }
        self.flush_touched();
        registered.map_err(|error| format!("cannot poll {id}: {error}"))
    }
}
