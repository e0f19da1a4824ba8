//! Which sessions of a shard have changed since they were last saved.
//!
//! A shard has a journal only when sessions are to survive a restart. It names slots of the session
//! slab, each at most once however often its session changes, so that it cannot grow beyond the
//! table. A slot that is empty when it is saved means that its session has ended. That a session was
//! heard again is worth saving only now and then: [`LAG_SECONDS`].

use super::session::Class;

/// How much older than in the tables a session may look when it is read back, but for
/// [`LAG_ESTABLISHED_SECONDS`]: little beside the shortest timeout of the RFCs, 60 s.
pub const LAG_SECONDS: u32 = 5;
/// The same of established TCP connections, whose timeout is two hours.
pub const LAG_ESTABLISHED_SECONDS: u32 = 60;

#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    slots: Vec<Slot>,
    changed: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// When its session was heard, as it was saved.
    heard: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Saved,
    Changed,
}

impl Journal {
    /// A session was made, has moved to another state, or has ended.
    pub fn note(&mut self, session: u32) {
        let slot = self.slot(session);
        if slot.place == Place::Saved {
            slot.place = Place::Changed;
            self.changed.push(session);
        }
    }

    /// A session was heard in this second.
    pub fn heard(&mut self, session: u32, class: Class, second: u32) {
        let lag = match class {
            Class::TcpEstablished => LAG_ESTABLISHED_SECONDS,
            Class::TcpOpening | Class::TcpClosing | Class::Udp | Class::UdpDns | Class::Icmp => {
                LAG_SECONDS
            }
        };
        let saved = self.slot(session).heard;
        if second.saturating_sub(saved) >= lag {
            self.note(session);
        }
    }

    /// A session is saved as it is now.
    pub fn saved(&mut self, session: u32, heard: u32) {
        self.slot(session).heard = heard;
    }

    /// Takes out a slot that has changed.
    pub fn take(&mut self) -> Option<u32> {
        let session = self.changed.pop()?;
        self.slot(session).place = Place::Saved;
        Some(session)
    }

    fn slot(&mut self, session: u32) -> &mut Slot {
        let index = session as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::default());
            // Room for all of them, so that only a new session ever allocates.
            let room = self.slots.len() - self.changed.len();
            self.changed.reserve(room);
        }
        &mut self.slots[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_named_once_until_it_is_taken() {
        let mut journal = Journal::default();
        for session in [3, 3, 1, 3] {
            journal.note(session);
        }
        assert_eq!([journal.take(), journal.take()], [Some(1), Some(3)]);
        assert_eq!(journal.take(), None);
        journal.note(3);
        assert_eq!(journal.take(), Some(3));
    }

    #[test]
    fn being_heard_is_worth_saving_only_now_and_then() {
        for (class, lag) in [(Class::Udp, 5), (Class::TcpEstablished, 60)] {
            let mut journal = Journal::default();
            journal.saved(7, 100);
            journal.heard(7, class, 100 + lag - 1);
            assert_eq!(journal.take(), None, "{class:?}");
            journal.heard(7, class, 100 + lag);
            assert_eq!(journal.take(), Some(7), "{class:?}");
        }
    }
}
