//! Fragments that have overtaken the first of their packet, which wait for it.
//!
//! Only the first fragment says which flow a packet is of (RFC 4787 REQ-14). What comes before it is
//! kept as it came, and taken through the gateway again once the first is known, by this worker or
//! another.
//!
//! Limits: [`EARLY_MAX`] fragments of one worker with [`EARLY_BYTES_MAX`] bytes together, of which one
//! sender has at most [`EARLY_PER_SENDER_MAX`]; [`EARLY_TIME`]. What exceeds them is dropped, or left
//! to the host when it came from outside.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::addr::{DomainId, PortId};
use crate::frame::FrameBuf;
use crate::headers::Headers;
use crate::nat::NatView;
use crate::time::{Duration, Instant};

/// Fragments that one worker keeps: more than two of the largest datagrams have.
pub const EARLY_MAX: usize = 128;
/// Bytes of those.
pub const EARLY_BYTES_MAX: usize = 256 * 1_024;
/// Fragments of one sender, so that a flood from one leaves room for the others.
pub const EARLY_PER_SENDER_MAX: usize = 64;
/// How long a fragment waits. On the way of one packet fragments overtake each other by milliseconds.
pub const EARLY_TIME: Duration = Duration::from_secs(2);

/// Where a fragment came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub ingress: PortId,
    /// Its network; `None` for outside.
    pub from: Option<DomainId>,
    pub sender: IpAddr,
}

#[derive(Debug)]
struct Waiting {
    origin: Origin,
    since: Instant,
    buf: FrameBuf,
}

/// A fragment whose waiting is over.
#[derive(Debug)]
pub(super) enum Due {
    /// The first one has come.
    Follows(PortId, FrameBuf),
    /// It has not.
    InVain(Origin, FrameBuf),
}

/// One worker's early fragments, oldest first.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl Early {
    /// Keeps a copy of a fragment; `false` when there is no room.
    pub fn hold(&mut self, origin: Origin, buf: &FrameBuf, now: Instant) -> bool {
        let same = |other: &&Waiting| other.origin.sender == origin.sender;
        let full = self.waiting.len() >= EARLY_MAX
            || self.bytes + buf.len() > EARLY_BYTES_MAX
            || self.waiting.iter().filter(same).count() >= EARLY_PER_SENDER_MAX;
        if full {
            return false;
        }
        let mut copy = FrameBuf::with_capacity(buf.len());
        copy.copy_from(buf.bytes(), buf.offload);
        self.bytes += copy.len();
        self.waiting.push_back(Waiting {
            origin,
            since: now,
            buf: copy,
        });
        true
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out the oldest fragment whose waiting is over. Call until `None`.
    pub fn take(&mut self, nat: &mut NatView, now: Instant) -> Option<Due> {
        let known = |waiting: &Waiting, nat: &mut NatView| {
            let headers = Headers::parse(waiting.buf.bytes());
            headers.is_ok_and(|headers| nat.knows_fragment(&headers, waiting.origin.from, now))
        };
        for index in 0..self.waiting.len() {
            let waiting = &self.waiting[index];
            let follows = known(waiting, nat);
            if !follows && now.since(waiting.since) < EARLY_TIME {
                continue;
            }
            let Waiting { origin, buf, .. } = self.waiting.remove(index)?;
            self.bytes -= buf.len();
            return Some(if follows {
                Due::Follows(origin.ingress, buf)
            } else {
                Due::InVain(origin, buf)
            });
        }
        None
    }
}
