//! One rule, and whether it fits.

use core::ops::RangeInclusive;
use std::net::IpAddr;

use super::Zone;
use super::question::{Content, Party, Question};
use crate::addr::{DomainId, PortId, Prefix, UplinkId};
use crate::headers::protocol;

/// Port ranges of one rule, on either side: as many as iptables' multiport has.
pub const PORTS_PER_RULE_MAX: usize = 15;

/// Where a rule's counters are. A rule keeps its slot as long as it exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleSlot(pub u16);

/// What becomes of packets that a rule fits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// They pass.
    Allow,
    /// They end here.
    Drop,
    /// They end here, and their sender is told.
    Reject,
}

/// One end of the flows that a rule speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Whoever it is.
    Anyone,
    /// The endpoints of a network.
    Network(DomainId),
    /// One endpoint, of that network.
    Endpoint(PortId, DomainId),
    /// Whoever has such an address.
    Prefix(Prefix),
    /// The host itself.
    Host,
    /// Whoever is beyond an uplink.
    Outside,
}

/// The protocol that a rule speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// Any, and what is no IP.
    Any,
    /// ICMP and ICMPv6.
    Icmp,
    /// The one of this number.
    Number(u8),
}

/// One rule. A condition that is empty is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Where it counts.
    pub slot: RuleSlot,
    /// What people call it.
    pub name: Box<str>,
    /// What becomes of what it fits.
    pub action: Action,
    /// Who opens the flow.
    pub from: Side,
    /// Towards whom.
    pub to: Side,
    /// By which protocol.
    pub protocol: Protocol,
    /// From one of these ports, of TCP and UDP.
    pub source_ports: Box<[RangeInclusive<u16>]>,
    /// To one of these ports, of TCP and UDP.
    pub ports: Box<[RangeInclusive<u16>]>,
    /// Over this uplink, in or out.
    pub uplink: Option<UplinkId>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    Yes,
    No,
    /// What it asks cannot be read.
    Unknown,
}

impl From<bool> for Fit {
    fn from(holds: bool) -> Self {
        match holds {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

impl Fit {
    /// Whether both hold.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }
}

impl Rule {
    /// One that allows flows of any kind.
    pub fn new(slot: RuleSlot, name: &str, action: Action, from: Side, to: Side) -> Self {
        Self {
            slot,
            name: name.into(),
            action,
            from,
            to,
            protocol: Protocol::Any,
            source_ports: Box::default(),
            ports: Box::default(),
            uplink: None,
        }
    }

    /// Whether the rule decides a question. In doubt one that denies does, and one that allows does
    /// not.
    pub(super) fn decides(&self, question: &Question) -> bool {
        match self.fits(question) {
            Fit::Yes => true,
            Fit::No => false,
            Fit::Unknown => self.action != Action::Allow,
        }
    }

    fn fits(&self, question: &Question) -> Fit {
        let Question { from, to, .. } = question;
        let content = &question.content;
        let over = |uplink| from.uplink() == Some(uplink) || to.uplink() == Some(uplink);
        Fit::from(self.uplink.is_none_or(over))
            .and(self.from.has(from, content.src()))
            .and(self.to.has(to, content.dst()))
            .and(self.protocol.is(content))
            .and(one_of(&self.source_ports, content.ports().map(|p| p.0)))
            .and(one_of(&self.ports, content.ports().map(|p| p.1)))
    }
}

fn one_of(ranges: &[RangeInclusive<u16>], port: Option<u16>) -> Fit {
    match port {
        _ if ranges.is_empty() => Fit::Yes,
        Some(port) => ranges.iter().any(|range| range.contains(&port)).into(),
        None => Fit::Unknown,
    }
}

impl Side {
    /// The zone that it is in, where that is the same for all of it and known.
    pub(super) const fn zone(&self) -> Option<Zone> {
        match self {
            Self::Network(domain) | Self::Endpoint(_, domain) => Some(Zone::Domain(*domain)),
            Self::Host => Some(Zone::Host),
            Self::Outside => Some(Zone::Outside),
            Self::Anyone | Self::Prefix(_) => None,
        }
    }

    /// Whether somebody is of this side; `address` is his, if it is known that he has one.
    fn has(&self, party: &Party, address: Option<Option<IpAddr>>) -> Fit {
        match self {
            Self::Anyone => Fit::Yes,
            Self::Network(domain) => (party.domain() == Some(*domain)).into(),
            Self::Endpoint(port, _) => (party.port() == Some(*port)).into(),
            Self::Host => (*party == Party::Host).into(),
            Self::Outside => party.uplink().is_some().into(),
            Self::Prefix(prefix) => match address {
                Some(Some(address)) => prefix.contains(address).into(),
                Some(None) => Fit::No,
                None => Fit::Unknown,
            },
        }
    }
}

impl Protocol {
    /// The one of a number.
    pub const fn of(number: u8) -> Self {
        match number {
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            other => Self::Number(other),
        }
    }

    fn is(self, content: &Content) -> Fit {
        if self == Self::Any {
            return Fit::Yes;
        }
        match content {
            Content::Other => Fit::No,
            Content::Unreadable => Fit::Unknown,
            Content::Ip { protocol, .. } => match protocol {
                Some(number) => (Self::of(*number) == self).into(),
                None => Fit::Unknown,
            },
        }
    }
}
