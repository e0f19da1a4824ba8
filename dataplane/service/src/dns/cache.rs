//! What upstream servers have said, for as long as they say.
//!
//! Limits: [`ENTRIES_MAX`] answers, of which the oldest goes first; [`TTL_SECONDS_MAX`] and, of names
//! and types that do not exist, [`NEGATIVE_TTL_SECONDS_MAX`], however long a server says.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use dataplane_core::time::{Duration, Instant};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use rustc_hash::FxBuildHasher;

use super::message::{Reply, Sections};

/// Answers that are kept: some kilobytes each at most.
pub const ENTRIES_MAX: usize = 8_192;
/// The longest that an answer is kept: an hour, so that a mistake upstream ends.
pub const TTL_SECONDS_MAX: u32 = 3_600;
/// The longest that the absence of something is kept (RFC 2308 section 5 suggests one to three
/// hours; five minutes are enough to spare the servers).
pub const NEGATIVE_TTL_SECONDS_MAX: u32 = 300;

/// What is asked, of whom: networks with different servers may hear different things.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name; letter case does not matter.
    pub name: Name,
    /// The type.
    pub rtype: RecordType,
    /// Signatures are wanted.
    pub dnssec_ok: bool,
    /// Signatures are not checked.
    pub checking_disabled: bool,
    /// The servers that may be asked.
    pub servers: Arc<[SocketAddr]>,
}

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The code.
    pub code: ResponseCode,
    /// The records, as they came.
    pub sections: Sections,
    /// Who said so.
    pub from: SocketAddr,
    /// When.
    pub since: Instant,
    until: Instant,
}

impl Entry {
    /// The records as of a moment.
    pub fn sections_at(&self, now: Instant) -> Sections {
        let age = now.since(self.since).as_secs();
        self.sections.aged(u32::try_from(age).unwrap_or(u32::MAX))
    }
}

/// The answers that are kept.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry, FxBuildHasher>,
    /// In the order in which they came; some may be gone or replaced.
    order: VecDeque<(Key, Instant)>,
}

impl Cache {
    /// What is known, if it still holds.
    pub fn get(&self, key: &Key, now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| now < entry.until)
    }

    /// Keeps what a server has said, if it may be kept at all.
    pub fn put(&mut self, key: &Key, reply: &Reply, from: SocketAddr, now: Instant) {
        let Some(seconds) = lifetime(reply) else {
            return;
        };
        let entry = Entry {
            code: reply.code,
            sections: reply.sections.clone(),
            from,
            since: now,
            until: now + Duration::from_secs(seconds.into()),
        };
        while self.entries.len() >= ENTRIES_MAX && self.forget_oldest() {}
        // What was replaced many times leaves its trace in the order only.
        while self.order.len() >= 2 * ENTRIES_MAX && self.forget_oldest() {}
        self.order.push_back((key.clone(), now));
        self.entries.insert(key.clone(), entry);
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((key, since)) = self.order.pop_front() else {
            return false;
        };
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.since == since)
        {
            self.entries.remove(&key);
        }
        true
    }

    /// Forgets everything; how much that was.
    pub fn flush(&mut self) -> usize {
        let count = self.entries.len();
        *self = Self::default();
        count
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Seconds for which an answer may be kept; `None` for not at all.
fn lifetime(reply: &Reply) -> Option<u32> {
    let positive = reply.code == ResponseCode::NoError && !reply.sections.answers.is_empty();
    let seconds = match reply.code {
        ResponseCode::NoError if positive => reply.sections.ttl_min()?.min(TTL_SECONDS_MAX),
        // RFC 2308 section 5: without an SOA record nobody says for how long.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = reply.sections.authorities.iter();
            let mut soa = soa.filter_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa.next()?.min(NEGATIVE_TTL_SECONDS_MAX)
        }
        _ => return None,
    };
    (seconds > 0).then_some(seconds)
}
