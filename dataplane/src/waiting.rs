//! How a worker finds out what there is to do, and waits when there is nothing.

use std::io;
use std::time::{Duration, Instant as Clock};

use dataplane_core::addr::PortId;
use mio::Events;

use crate::Waiting;
use crate::worker::{Slot, TIMER, WAKE, Worker};

impl Worker {
    /// Collects readiness, sleeping only when there is nothing to do.
    pub fn poll(&mut self, events: &mut Events) {
        for index in 0..self.askable.len() {
            self.mark_ready(self.askable[index]);
        }
        self.poll_once(events, Duration::ZERO);
        if self.has_work() || self.spin(events) {
            return;
        }
        self.counters.sleeps.add(1);
        let clock = Clock::now();
        self.timer.set(self.links.next_due(), self.instant(clock));
        let next = self.announcements.due().unwrap_or(self.next_tick);
        let timeout = next.min(self.next_tick).saturating_duration_since(clock);
        self.poll_once(events, timeout);
    }

    fn has_work(&self) -> bool {
        let due = self.announcements.due();
        let announcing = due.is_some_and(|due| due <= Clock::now());
        let given = announcing || self.is_given();
        !self.ready.is_empty() || !self.orders.is_empty() || given || self.has_due()
    }

    /// Whether another thread has given it frames.
    fn is_given(&self) -> bool {
        !self.shared.handovers[self.index].is_empty() || self.is_injected()
    }

    /// Looks for readiness without sleeping, as long as the waiting mode allows. `true` when
    /// something came up.
    fn spin(&mut self, events: &mut Events) -> bool {
        let limit = match self.shared.waiting {
            Waiting::Sleep => return false,
            Waiting::Adaptive { spin } => self.last_busy + spin,
            Waiting::Always => self.next_tick,
        };
        let start = Clock::now();
        let mut clock = start;
        let mut found = false;
        while clock < limit && !found {
            self.busy_poll();
            self.poll_once(events, Duration::ZERO);
            found = self.has_work();
            if !found {
                // Whoever else could use this CPU may be the one that sends the next frame.
                std::thread::yield_now();
            }
            clock = Clock::now();
        }
        let nanos = clock.saturating_duration_since(start).as_nanos() as u64;
        self.counters.spin_nanos.add(nanos);
        found || self.shared.waiting == Waiting::Always
    }

    fn busy_poll(&mut self) {
        for index in 0..self.busy_polled.len() {
            let id = self.busy_polled[index];
            if let Some(Slot::Own { lane, .. }) = self.lanes.get_mut(id.index()) {
                lane.io.busy_poll();
            }
        }
    }

    fn poll_once(&mut self, events: &mut Events, timeout: Duration) {
        match self.poll.poll(events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => panic!("a worker cannot poll any more: {error}"),
        }
        for event in events.iter() {
            if ![WAKE, TIMER].contains(&event.token()) {
                self.mark_ready(PortId(event.token().0 as u16));
            }
        }
    }
}
