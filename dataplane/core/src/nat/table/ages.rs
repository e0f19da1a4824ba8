//! The sessions of a shard by age: who expires, and who is given up.
//!
//! The sessions of a [`Class`] form a list from the one unheard for longest to the one heard last:
//! since a class has one timeout, whatever has expired is at its old end, and expiry never looks
//! at a live session. A session moves within its list at most once per second.

use std::net::IpAddr;

use crate::addr::DomainId;
use crate::time::Instant;

use super::NatShard;
use crate::nat::Timeouts;
use crate::nat::session::{Class, Mapping, Session};
use crate::nat::shared::Counts;

/// Transitory sessions that are looked at for one of an endpoint at its quota: such an endpoint
/// holds so many that one of the oldest is nearly always its own.
const EVICT_SCAN_MAX: usize = 16;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The sessions of a class, by age.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    oldest: u32,
    newest: u32,
}

impl List {
    pub const EMPTY: Self = Self {
        oldest: NONE,
        newest: NONE,
    };
}

impl NatShard {
    /// Removes up to `budget` sessions that have outlived their timeout; how many.
    pub fn expire(
        &mut self,
        now: Instant,
        timeouts: &Timeouts,
        budget: usize,
        counts: &Counts,
    ) -> usize {
        let mut removed = 0;
        for class in Class::ALL {
            while removed < budget {
                let Some(oldest) = self.oldest(class) else {
                    break;
                };
                if !self.sessions[oldest].expired(now, timeouts) {
                    break;
                }
                self.remove(oldest, counts);
                removed += 1;
            }
        }
        removed
    }

    /// Gives up the transitory TCP session that was unheard for longest. An established session
    /// is never given up for a new one.
    pub fn evict(&mut self, counts: &Counts) -> Option<Mapping> {
        let oldest = Class::TRANSITORY.map(|class| self.oldest(class));
        let oldest = oldest
            .into_iter()
            .flatten()
            .min_by_key(|index| self.heard(*index))?;
        let mapping = *self.at(oldest).1;
        self.remove(oldest, counts);
        Some(mapping)
    }

    /// Gives up the transitory TCP session of one inside address that was unheard for longest, as
    /// far as it is among the [`EVICT_SCAN_MAX`] oldest. So a flood of SYNs to a published port
    /// displaces itself, and does not lock out its server's clients until it has timed out.
    pub fn evict_of(
        &mut self,
        domain: DomainId,
        inside: IpAddr,
        counts: &Counts,
    ) -> Option<Mapping> {
        let found = Class::TRANSITORY.map(|class| self.oldest_of(class, domain, inside));
        let found = found
            .into_iter()
            .flatten()
            .min_by_key(|index| self.heard(*index))?;
        let mapping = *self.at(found).1;
        self.remove(found, counts);
        Some(mapping)
    }

    /// The session of a class and of one inside address that was unheard for longest, as far as it
    /// is among the [`EVICT_SCAN_MAX`] oldest.
    fn oldest_of(&self, class: Class, domain: DomainId, inside: IpAddr) -> Option<u32> {
        let mut next = self.oldest(class);
        for _ in 0..EVICT_SCAN_MAX {
            let index = next?;
            let (session, mapping) = self.at(index);
            if (mapping.domain, mapping.inside.ip) == (domain, inside) {
                return Some(index);
            }
            next = (session.newer != NONE).then_some(session.newer);
        }
        None
    }

    /// The second in which a session was last heard.
    fn heard(&self, session: u32) -> u32 {
        self.sessions[session].last_seen
    }

    fn oldest(&self, class: Class) -> Option<u32> {
        let oldest = self.lists[class as usize].oldest;
        (oldest != NONE).then_some(oldest)
    }

    /// Puts a session at the new end of the list of its class.
    pub(super) fn link(&mut self, index: u32) {
        let list = &mut self.lists[self.sessions[index].class as usize];
        let before = core::mem::replace(&mut list.newest, index);
        if before == NONE {
            list.oldest = index;
        } else {
            self.sessions[before].newer = index;
        }
        let session = &mut self.sessions[index];
        (session.older, session.newer) = (before, NONE);
    }

    pub(super) fn unlink(&mut self, index: u32) {
        let Session {
            older,
            newer,
            class,
            ..
        } = self.sessions[index];
        let list = &mut self.lists[class as usize];
        if older == NONE {
            list.oldest = newer;
        } else {
            self.sessions[older].newer = newer;
        }
        if newer == NONE {
            list.newest = older;
        } else {
            self.sessions[newer].older = older;
        }
    }
}
