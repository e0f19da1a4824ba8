//! Announcements on their way: told to a few ports a turn.
//!
//! A copy of an announcement costs its port's kernel some 10 µs, so that all the ports of a large
//! network would hold the worker, and whoever attached the endpoint, for many milliseconds. So an
//! announcement waits in a queue and goes to some ports between two batches of what others send, for
//! [`TURN_MAX`] at a time, and no more than [`TIME_SHARE`] of the worker's time goes there. While hundreds attach, each
//! would wait for what is said of those before it, so next to nothing goes there until the orders end. The
//! first ports are told at once: in a small network an announcement that is acknowledged has been sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::FloodClass;
use dataplane_core::topology::Role;
use dataplane_core::verdict::Verdict;

use crate::worker::Worker;

/// Ports that an announcement is sent to between two looks at the clock, and at once.
pub const PORTS_AT_ONCE: usize = 32;

/// What a turn takes, the last [`PORTS_AT_ONCE`] left aside. A worker that sleeps wakes a millisecond later at the
/// soonest, so shorter turns would never take their share.
const TURN_MAX: Duration = Duration::from_micros(250);

/// Announcing takes one part in so many of the worker's time, the first ports of each left aside.
const TIME_SHARE: u32 = 4;

/// The same, while orders come.
const TIME_SHARE_AMID_ORDERS: u32 = 64;

/// How long after an order another one is expected: several times what it takes to attach one of many.
const ORDERS_APART_MAX: Duration = Duration::from_millis(20);

/// Announcements that may wait: of an IPv4 and an IPv6 address of 2,000 endpoints that attach at once.
/// More are refused.
pub const ANNOUNCEMENTS_MAX: usize = 4_096;

/// Those that wait, the oldest first.
#[derive(Debug)]
pub(crate) struct Announcements {
    waiting: VecDeque<Announcement>,
    /// When the last turn ended, and what it took.
    last_turn: (Clock, Duration),
    /// When the worker was last given an order.
    last_order: Clock,
}

/// A frame that the ports of a network are told, as if one of them had sent it.
#[derive(Debug)]
struct Announcement {
    from: PortId,
    bytes: Vec<u8>,
    /// The lowest port that has not been told.
    next: PortId,
}

impl Announcements {
    /// None wait.
    pub fn new(now: Clock) -> Self {
        Self {
            waiting: VecDeque::new(),
            last_turn: (now, Duration::ZERO),
            last_order: now,
        }
    }

    /// When the next ports are told; `None` when nobody waits to be.
    pub fn due(&self) -> Option<Clock> {
        if self.waiting.is_empty() {
            return None;
        }
        let (ended, took) = self.last_turn;
        let orders_end = self.last_order + ORDERS_APART_MAX;
        let amid_orders = ended + took * (TIME_SHARE_AMID_ORDERS - 1);
        let alone = orders_end.max(ended + took * (TIME_SHARE - 1));
        Some(alone.min(amid_orders))
    }

    /// A turn that began at `start` is over.
    fn end_turn(&mut self, start: Clock) {
        let end = Clock::now();
        self.last_turn = (end, end.saturating_duration_since(start));
    }

    /// The worker was given an order: more may follow.
    pub fn note_order(&mut self, now: Clock) {
        self.last_order = now;
    }
}

impl Worker {
    /// Has a frame told to the ports of a domain, as if `from` had sent it.
    ///
    /// # Errors
    /// As many wait as may.
    pub fn announce(&mut self, from: PortId, bytes: Vec<u8>) -> Result<(), String> {
        let mut announcement = Announcement {
            from,
            bytes,
            next: PortId(0),
        };
        let start = Clock::now();
        let is_told = !self.tell_some(&mut announcement);
        self.announcements.end_turn(start);
        if is_told {
            return Ok(());
        }
        if self.announcements.waiting.len() >= ANNOUNCEMENTS_MAX {
            return Err(format!("{ANNOUNCEMENTS_MAX} announcements wait already"));
        }
        self.announcements.waiting.push_back(announcement);
        Ok(())
    }

    /// Takes a turn, when it is time.
    pub fn go_on_announcing(&mut self) {
        // Asked at every turn of the worker: nearly always nothing waits, and no clock is read.
        let Some(due) = self.announcements.due() else {
            return;
        };
        let start = Clock::now();
        if due > start {
            return;
        }
        while let Some(mut announcement) = self.announcements.waiting.pop_front() {
            let before = announcement.next;
            let mut is_stuck = false;
            if self.tell_some(&mut announcement) {
                // Without a buffer nobody was told.
                is_stuck = announcement.next == before;
                self.announcements.waiting.push_front(announcement);
            }
            if is_stuck || start.elapsed() >= TURN_MAX || !self.orders.is_empty() {
                break;
            }
        }
        self.announcements.end_turn(start);
    }

    /// Tells the next ports of an announcement. `false` when it has ended: all were told, or its port is gone or
    /// down.
    fn tell_some(&mut self, announcement: &mut Announcement) -> bool {
        let next = self.tell_from(announcement);
        if let Some(next) = next {
            announcement.next = next;
        }
        next.is_some()
    }

    /// The port to go on with; `None` when there is no more to be told.
    fn tell_from(&mut self, announcement: &Announcement) -> Option<PortId> {
        let Announcement { from, bytes, next } = announcement;
        let topology = Arc::clone(&self.switch.topology);
        let port = topology.port_up(*from)?;
        let Role::Bridge(domain) = port.role else {
            return None;
        };
        let vlan = port.vlan_of_untagged()?;
        let class = FloodClass::of(MacAddr(*bytes.first_chunk()?));
        // Without a buffer it is tried again at the next turn.
        let Some(mut buf) = self.batch.take_buffer() else {
            return Some(*next);
        };
        buf.copy_from(bytes, Offload::NONE);
        if *next == PortId(0) && self.is_mirroring() {
            self.mirror_leaving(*from, &buf, Verdict::Flooded(domain, vlan, class));
        }
        let untold = || topology.flood_set_from(*next, domain, vlan, *from, class);
        let after = untold().nth(PORTS_AT_ONCE);
        self.send_copies(vlan, || untold().take(PORTS_AT_ONCE), buf);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an announcement that waits, `took` after the first turn began.
    fn waiting(start: Clock, took: Duration) -> Announcements {
        let mut announcements = Announcements::new(start);
        announcements.last_turn = (start + took, took);
        announcements.waiting.push_back(Announcement {
            from: PortId(1),
            bytes: Vec::new(),
            next: PortId(0),
        });
        announcements
    }

    #[test]
    fn announcing_takes_its_share_of_the_time_once_orders_have_ended() {
        let (start, took) = (Clock::now(), TURN_MAX);
        let mut announcements = waiting(start, took);
        announcements.note_order(start);
        let amid_orders = start + took * TIME_SHARE_AMID_ORDERS;
        assert_eq!(announcements.due(), Some(amid_orders));
        let later = start + ORDERS_APART_MAX;
        announcements.last_turn = (later + took, took);
        assert_eq!(announcements.due(), Some(later + took * TIME_SHARE));
        announcements.note_order(later + took);
        assert_eq!(
            announcements.due(),
            Some(later + took * TIME_SHARE_AMID_ORDERS)
        );
        announcements.waiting.clear();
        assert_eq!(announcements.due(), None);
    }

    #[test]
    fn announcing_goes_on_soon_after_the_last_order() {
        let start = Clock::now();
        // A slow turn: amid orders it would be long before the next.
        let mut announcements = waiting(start, 8 * TURN_MAX);
        announcements.note_order(start);
        assert_eq!(announcements.due(), Some(start + ORDERS_APART_MAX));
    }
}
