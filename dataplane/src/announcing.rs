//! Announcements on their way: told to a few ports a turn.
//!
//! A copy of an announcement costs its port's kernel some 10 µs, so that all the ports of a large
//! network would hold the worker, and whoever attached the endpoint, for many milliseconds. So an
//! announcement waits in a queue and goes to [`PORTS_PER_TURN`] ports between two batches of what
//! others send, and no more than [`TIME_SHARE`] of the worker's time goes there: while hundreds attach,
//! the rest of the machine is busy with them. The first ports are told at once: in a small network an
//! announcement that is acknowledged has been sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant as Clock;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::l2::FloodClass;
use dataplane_core::topology::Role;
use dataplane_core::verdict::Verdict;

use crate::worker::Worker;

/// Ports that an announcement is sent to in one turn: a third of a millisecond of work.
pub const PORTS_PER_TURN: usize = 32;

/// Announcing takes one part in so many of the worker's time, the first ports of each left aside.
const TIME_SHARE: u32 = 4;

/// Announcements that may wait: of an IPv4 and an IPv6 address of 2,000 endpoints that attach at once.
/// More are refused.
pub const ANNOUNCEMENTS_MAX: usize = 4_096;

/// Those that wait, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    waiting: VecDeque<Announcement>,
    /// When the next ports may be told.
    next_turn: Option<Clock>,
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
    /// When the next ports are told; `None` when nobody waits to be.
    pub fn due(&self) -> Option<Clock> {
        self.next_turn.filter(|_| !self.waiting.is_empty())
    }
}

impl Worker {
    /// Has a frame told to the ports of a domain, as if `from` had sent it.
    ///
    /// # Errors
    /// As many wait as may.
    pub fn announce(&mut self, from: PortId, bytes: Vec<u8>) -> Result<(), String> {
        if self.announcements.waiting.len() >= ANNOUNCEMENTS_MAX {
            return Err(format!("{ANNOUNCEMENTS_MAX} announcements wait already"));
        }
        let first = self.announcements.waiting.is_empty();
        self.announcements.waiting.push_back(Announcement {
            from,
            bytes,
            next: PortId(0),
        });
        if first {
            self.announce_to_some();
        }
        Ok(())
    }

    /// Tells the next ports, when it is time.
    pub fn go_on_announcing(&mut self) {
        let due = self.announcements.due();
        if due.is_some_and(|due| due <= Clock::now()) {
            self.announce_to_some();
        }
    }

    /// Tells the next ports of the oldest announcement. It ends when all were told, and when its
    /// port is gone or down.
    fn announce_to_some(&mut self) {
        let Some(mut announcement) = self.announcements.waiting.pop_front() else {
            return;
        };
        let start = Clock::now();
        if let Some(next) = self.tell_some(&announcement) {
            announcement.next = next;
            self.announcements.waiting.push_front(announcement);
        }
        let end = Clock::now();
        let took = end.saturating_duration_since(start);
        self.announcements.next_turn = Some(end + took * (TIME_SHARE - 1));
    }

    /// The port to go on with; `None` when there is no more to be told.
    fn tell_some(&mut self, announcement: &Announcement) -> Option<PortId> {
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
        let after = untold().nth(PORTS_PER_TURN);
        self.send_copies(vlan, || untold().take(PORTS_PER_TURN), buf);
        after
    }
}
