//! What published ports and networks have carried: sessions, packets, bytes.
//!
//! A packet is counted in its session, under the lock that it holds anyway, and goes over to the
//! account of the session's target or network when the session ends. So a packet writes nothing
//! that two shards share. What an account shows is the sum of what has ended and what lives, and
//! never goes back: each shard is read whole under its lock.
//!
//! Limits: in each shard an account for each target and network that had a session there, which
//! are as many as [`RULES_MAX`](super::RULES_MAX) and the networks allow.

use core::ops::AddAssign;
use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::addr::DomainId;

use super::session::{Direction, Mapping, Session};

/// Whose sessions are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Account {
    /// Those that a network's endpoints opened to the outside.
    Network(DomainId),
    /// Those that a published interval led to one of its targets.
    Target {
        /// The rule's id.
        rule: u32,
        /// The target's id.
        target: u16,
    },
}

impl Account {
    /// Whether it is one of a rule's.
    pub fn is_of(self, rule: u32) -> bool {
        matches!(self, Self::Target { rule: own, .. } if own == rule)
    }
}

/// What an account has carried. A GSO frame counts as one packet; bytes are those of the IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Totals {
    /// Sessions that were opened.
    pub opened: u64,
    /// Sessions that have not ended.
    pub live: u64,
    /// Packets from inside.
    pub packets_out: u64,
    /// Packets from the remotes.
    pub packets_in: u64,
    /// Bytes from inside.
    pub bytes_out: u64,
    /// Bytes from the remotes.
    pub bytes_in: u64,
}

impl AddAssign for Totals {
    /// Wraps round, as what a zeroed account lacks of its live sessions does.
    fn add_assign(&mut self, other: Self) {
        let sum = |own: &mut u64, other: u64| *own = own.wrapping_add(other);
        sum(&mut self.opened, other.opened);
        sum(&mut self.live, other.live);
        sum(&mut self.packets_out, other.packets_out);
        sum(&mut self.packets_in, other.packets_in);
        sum(&mut self.bytes_out, other.bytes_out);
        sum(&mut self.bytes_in, other.bytes_in);
    }
}

impl Totals {
    /// What a session has carried so far.
    pub(super) const fn of(session: &Session) -> Self {
        Self {
            opened: 0,
            live: 0,
            packets_out: session.packets(Direction::Out),
            packets_in: session.packets(Direction::In),
            bytes_out: session.bytes(Direction::Out),
            bytes_in: session.bytes(Direction::In),
        }
    }

    const fn negative(self) -> Self {
        Self {
            opened: self.opened.wrapping_neg(),
            live: self.live.wrapping_neg(),
            packets_out: self.packets_out.wrapping_neg(),
            packets_in: self.packets_in.wrapping_neg(),
            bytes_out: self.bytes_out.wrapping_neg(),
            bytes_in: self.bytes_in.wrapping_neg(),
        }
    }
}

impl Mapping {
    /// Whose its sessions are.
    pub fn account(&self) -> Account {
        match self.rule {
            Some(rule) => Account::Target {
                rule,
                target: self.target,
            },
            None => Account::Network(self.domain),
        }
    }
}

/// The accounts of one shard, without what live sessions have carried.
#[derive(Clone, Debug, Default)]
pub(super) struct Accounts(HashMap<Account, Totals, FxBuildHasher>);

impl Accounts {
    /// Counts a session that begins.
    pub fn open(&mut self, account: Account) {
        let totals = self.0.entry(account).or_default();
        totals.opened = totals.opened.wrapping_add(1);
        totals.live += 1;
    }

    /// Counts a session that an earlier process has opened.
    pub fn adopt(&mut self, account: Account) {
        self.0.entry(account).or_default().live += 1;
    }

    /// Takes over what a session that ends has carried.
    pub fn close(&mut self, account: Account, session: &Session) {
        let totals = self.0.entry(account).or_default();
        totals.live = totals.live.saturating_sub(1);
        *totals += Totals::of(session);
    }

    /// Makes everything zero but the live sessions' number, as if they had carried nothing yet.
    pub fn zero<'s>(&mut self, live: impl Iterator<Item = (Account, &'s Session)>) {
        for totals in self.0.values_mut() {
            *totals = Totals {
                live: totals.live,
                ..Totals::default()
            };
        }
        for (account, session) in live {
            *self.0.entry(account).or_default() += Totals::of(session).negative();
        }
    }

    pub fn forget(&mut self, condemned: impl Fn(Account) -> bool) {
        self.0.retain(|account, _| !condemned(*account));
    }

    pub fn get(&self, account: Account) -> Totals {
        self.0.get(&account).copied().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Account, Totals)> {
        self.0.iter().map(|(account, totals)| (*account, *totals))
    }
}
