//! Published ports: intervals of external ports that lead to endpoints, searchable from both sides.
//!
//! A rule is an interval, never a table entry per port, so publishing 65,000 ports costs what
//! publishing one does. From outside the intervals of one transport and address never overlap,
//! and a lookup is a binary search; a rule for one address goes before a rule for every address.
//! From inside they may overlap, because one endpoint's port can be published several times; each
//! target of a rule has an interval there.
//!
//! Immutable once built into a topology. Limits: [`RULES_MAX`], [`TARGETS_MAX`].

use core::cmp::Ordering;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::addr::{DomainId, L4Addr, L4Port, Prefix, UplinkId};
use crate::headers::protocol;

use super::target::{Balance, TARGETS_MAX, Target, WEIGHT_MAX};

/// Published intervals of one process: one for each port of one address, which is as far as
/// anybody publishing ports one by one can get.
pub const RULES_MAX: usize = 65_535;

/// A transport that ports can be published of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A published interval of ports: external `external_ports` lead to as many ports of each target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticRule {
    /// Names the rule in counters, traces and listings.
    pub id: u32,
    /// TCP or UDP.
    pub transport: Transport,
    /// At which of the host's addresses.
    pub external: External,
    /// External ports, both ends included.
    pub external_ports: RangeInclusive<u16>,
    /// Only clients of this prefix; `None` for all.
    pub from: Option<Prefix>,
    /// How new sessions are spread over `targets`.
    pub balance: Balance,
    /// Where it leads: from 1 to [`TARGETS_MAX`] endpoints of one family, in the order of their
    /// ids once it is part of [`StaticRules`].
    pub targets: Vec<Target>,
}

/// The addresses of the host that a rule publishes ports at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum External {
    /// Every one of the targets' family.
    Every,
    /// This one.
    Address(IpAddr),
    /// Those that an uplink has, in this picture, to frames that come in by that uplink.
    Uplink(UplinkId, Vec<IpAddr>),
}

impl External {
    /// The addresses that are named, none for every one.
    pub fn named(&self) -> &[IpAddr] {
        match self {
            Self::Every => &[],
            Self::Address(address) => core::slice::from_ref(address),
            Self::Uplink(_, addresses) => addresses,
        }
    }

    /// The address of a packet that comes from the published port, where the host would take `own`.
    pub(super) fn source(&self, own: IpAddr) -> IpAddr {
        let named = self.named();
        let fits = |address: &&IpAddr| address.is_ipv4() == own.is_ipv4();
        let first = named.iter().find(fits);
        match first {
            Some(first) if !named.contains(&own) => *first,
            Some(_) | None => own,
        }
    }
}

impl StaticRule {
    /// A rule for every address of the host and every client, with one target.
    pub fn new(
        id: u32,
        transport: Transport,
        external_ports: RangeInclusive<u16>,
        target: Target,
    ) -> Self {
        Self {
            id,
            transport,
            external: External::Every,
            external_ports,
            from: None,
            balance: Balance::RoundRobin,
            targets: vec![target],
        }
    }

    /// Whether the rule serves this client.
    pub fn admits(&self, client: IpAddr) -> bool {
        self.from.is_none_or(|prefix| prefix.contains(client))
    }

    /// A target's last published port; `None` when it would lie beyond 65535.
    fn inside_port_last(&self, target: &Target) -> Option<u16> {
        let extent = self
            .external_ports
            .end()
            .checked_sub(*self.external_ports.start())?;
        target.inside_port_first.checked_add(extent)
    }

    /// Puts the targets in order.
    ///
    /// # Errors
    /// The first [`RuleError`] that the rule has by itself.
    fn prepare(&mut self) -> Result<(), RuleError> {
        let id = self.id;
        if self.external_ports.is_empty() || *self.external_ports.start() == 0 {
            return Err(RuleError::Empty(id));
        }
        self.targets.sort_by_key(|target| target.id);
        let twice = self.targets.windows(2).any(|pair| pair[0].id == pair[1].id);
        let family = self.targets.first().map(|target| target.inside.is_ipv6());
        let Some(family) = family.filter(|_| !twice && self.targets.len() <= TARGETS_MAX) else {
            return Err(RuleError::Targets(id));
        };
        let stranger = |address: IpAddr| address.is_ipv6() != family;
        let lone = match self.external {
            External::Address(address) => Some(address),
            // An uplink has addresses of both.
            External::Every | External::Uplink(..) => None,
        };
        if lone.is_some_and(stranger)
            || self.from.is_some_and(|from| stranger(from.address))
            || self.targets.iter().any(|target| stranger(target.inside))
        {
            return Err(RuleError::Family(id));
        }
        let weighs = |target: &Target| (1..=WEIGHT_MAX).contains(&target.weight);
        if !self.targets.iter().all(weighs) {
            return Err(RuleError::Weight(id));
        }
        let beyond = |target: &Target| self.inside_port_last(target).is_none();
        if self.targets.iter().any(beyond) {
            return Err(RuleError::InsideRange(id));
        }
        Ok(())
    }
}

/// Why a rule cannot be added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleError {
    /// Some of its external ports already lead elsewhere.
    #[error(
        "rule {rule} and rule {other} both publish external ports {from}-{to} of {transport:?}"
    )]
    Overlap {
        /// The rule to be added.
        rule: u32,
        /// The rule that holds the ports.
        other: u32,
        /// TCP or UDP.
        transport: Transport,
        /// First port that both want.
        from: u16,
        /// Last port that both want.
        to: u16,
    },
    /// The same id twice.
    #[error("there already is a rule {0}")]
    Duplicate(u32),
    /// The external interval is empty or begins with port 0.
    #[error(
        "rule {0} publishes no port; an interval begins at 1 and does not end before it begins"
    )]
    Empty(u32),
    /// The endpoint's ports would go beyond 65535.
    #[error("rule {0} leads to ports beyond 65535 of the endpoint")]
    InsideRange(u32),
    /// External address, endpoint and client prefix are not of one family.
    #[error("rule {0} mixes IPv4 and IPv6")]
    Family(u32),
    /// It leads nowhere, to too many, or to one twice.
    #[error("rule {0} needs from 1 to {TARGETS_MAX} targets, each with an id of its own")]
    Targets(u32),
    /// A target weighs nothing or too much.
    #[error("rule {0} has a weight that is not from 1 to {WEIGHT_MAX}")]
    Weight(u32),
    /// [`RULES_MAX`] are there.
    #[error("there are {RULES_MAX} rules already; publish intervals instead of single ports")]
    Full,
}

/// Every published interval of a topology, searchable from both sides.
#[derive(Clone, Debug, Default)]
pub struct StaticRules {
    rules: Vec<StaticRule>,
    /// Sorted; intervals of one `ExternalKey` do not overlap.
    by_external: Vec<Interval<ExternalKey>>,
    /// Sorted; intervals of one `InsideKey` may overlap.
    by_inside: Vec<Interval<InsideKey>>,
}

/// Whose external ports an interval takes: one address, or all of a family.
type ExternalKey = (Transport, bool, Option<IpAddr>);
/// Whose own ports an interval covers.
type InsideKey = (Transport, DomainId, IpAddr);

#[derive(Clone, Debug)]
struct Interval<K> {
    key: K,
    first: u16,
    last: u16,
    /// The greatest `last` of this interval and those before it that have the same key: below it
    /// no earlier interval needs to be looked at.
    reach: u16,
    /// Index into the rules.
    rule: u32,
    /// Index into the rule's targets; 0 of an external interval.
    target: u16,
}

impl StaticRules {
    /// Builds the index of many rules at once, in O(n log n).
    ///
    /// # Errors
    /// The first [`RuleError`] met.
    pub fn build(mut rules: Vec<StaticRule>) -> Result<Self, RuleError> {
        let targets: usize = rules.iter().map(|rule| rule.targets.len()).sum();
        let named: usize = rules.iter().map(|rule| rule.external.named().len()).sum();
        if rules.len().max(targets).max(named) > RULES_MAX {
            return Err(RuleError::Full);
        }
        let mut ids: Vec<u32> = rules.iter().map(|rule| rule.id).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(RuleError::Duplicate(pair[0]));
        }
        let mut built = Self::default();
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.prepare()?;
            built
                .by_external
                .extend(external_intervals(rule, index as u32));
            built.by_inside.extend(inside_intervals(rule, index as u32));
        }
        built.rules = rules;
        built.by_external.sort_by(order);
        built.by_inside.sort_by(order);
        built.check_overlap()?;
        extend_reach(&mut built.by_inside);
        Ok(built)
    }

    /// Adds one rule, in O(n log n). Many rules are cheaper through [`StaticRules::build`].
    ///
    /// # Errors
    /// [`RuleError`]; nothing is changed.
    pub fn add(&mut self, mut rule: StaticRule) -> Result<(), RuleError> {
        let full = |there: usize, more: usize| there + more > RULES_MAX;
        if full(self.by_inside.len(), rule.targets.len())
            || full(self.by_external.len(), rule.external.named().len())
        {
            return Err(RuleError::Full);
        }
        if self.rules.iter().any(|other| other.id == rule.id) {
            return Err(RuleError::Duplicate(rule.id));
        }
        rule.prepare()?;
        let externals: Vec<_> = external_intervals(&rule, self.rules.len() as u32).collect();
        for external in &externals {
            let at = self
                .by_external
                .partition_point(|other| order(other, external) == Ordering::Less);
            let neighbours = [at.checked_sub(1), Some(at)];
            for other in neighbours.into_iter().flatten() {
                if let Some(other) = self.by_external.get(other) {
                    overlap(&rule, external, other, &self.rules)?;
                }
            }
        }
        self.by_external.extend(externals);
        self.by_external.sort_by(order);
        self.by_inside
            .extend(inside_intervals(&rule, self.rules.len() as u32));
        self.by_inside.sort_by(order);
        extend_reach(&mut self.by_inside);
        self.rules.push(rule);
        Ok(())
    }

    /// Takes a rule out. Its sessions are ended separately, by `Nat::remove_sessions`.
    pub fn remove(&mut self, id: u32) -> Option<StaticRule> {
        let at = self.rules.iter().position(|rule| rule.id == id)?;
        let removed = self.rules.remove(at);
        let gone = at as u32;
        self.by_external.retain(|interval| interval.rule != gone);
        self.by_inside.retain(|interval| interval.rule != gone);
        let externals = self.by_external.iter_mut().map(|i| &mut i.rule);
        let insides = self.by_inside.iter_mut().map(|i| &mut i.rule);
        for rule in externals.chain(insides) {
            *rule -= u32::from(*rule > gone);
        }
        extend_reach(&mut self.by_inside);
        Some(removed)
    }

    /// The rules, in the order in which they were added.
    pub fn rules(&self) -> &[StaticRule] {
        &self.rules
    }

    /// Whether no port is published.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule that an external address and port belong to: one for this very address before
    /// one for every address.
    #[inline]
    pub fn by_external(&self, transport: Transport, external: L4Addr) -> Option<&StaticRule> {
        if self.rules.is_empty() {
            return None;
        }
        let family = external.ip.is_ipv6();
        self.find_external((transport, family, Some(external.ip)), external.l4_port)
            .or_else(|| self.find_external((transport, family, None), external.l4_port))
    }

    /// Whether an external address and port is published for the IP protocol of that number.
    #[inline]
    pub fn covers(&self, number: u8, external: IpAddr, l4_port: L4Port) -> bool {
        let transport = match number {
            protocol::TCP => Transport::Tcp,
            protocol::UDP => Transport::Udp,
            _ => return false,
        };
        let external = L4Addr {
            ip: external,
            l4_port,
        };
        self.by_external(transport, external).is_some()
    }

    /// A rule that leads to this address and port of an endpoint, and which of its targets that is:
    /// the one whose interval begins last, when there are several.
    #[inline]
    pub fn by_inside(
        &self,
        transport: Transport,
        domain: DomainId,
        inside: L4Addr,
    ) -> Option<(&StaticRule, &Target)> {
        self.leading_to(transport, domain, inside).next()
    }

    /// A rule that opens this port of an endpoint to a remote that comes by the endpoint's own
    /// address, with the endpoint as its target: one for every address of the host, because what is
    /// published on one of them is meant to be reached by that one.
    pub fn opens(
        &self,
        transport: Transport,
        domain: DomainId,
        inside: L4Addr,
        remote: IpAddr,
    ) -> Option<(&StaticRule, &Target)> {
        self.leading_to(transport, domain, inside)
            .find(|(rule, _)| rule.external == External::Every && rule.admits(remote))
    }

    /// The rules that lead to this address and port of an endpoint, those whose interval begins last
    /// first.
    #[inline]
    fn leading_to(
        &self,
        transport: Transport,
        domain: DomainId,
        inside: L4Addr,
    ) -> impl Iterator<Item = (&StaticRule, &Target)> {
        let key = (transport, domain, inside.ip);
        let port = inside.l4_port.0;
        let end = self
            .by_inside
            .partition_point(|interval| (interval.key, interval.first) <= (key, port));
        self.by_inside[..end]
            .iter()
            .rev()
            .take_while(move |interval| interval.key == key && interval.reach >= port)
            .filter(move |interval| interval.last >= port)
            .filter_map(|interval| {
                let rule = self.rules.get(interval.rule as usize)?;
                Some((rule, rule.targets.get(usize::from(interval.target))?))
            })
    }

    fn find_external(&self, key: ExternalKey, port: L4Port) -> Option<&StaticRule> {
        let end = self
            .by_external
            .partition_point(|interval| (interval.key, interval.first) <= (key, port.0));
        let interval = self.by_external.get(end.checked_sub(1)?)?;
        let found = interval.key == key && interval.last >= port.0;
        found
            .then(|| self.rules.get(interval.rule as usize))
            .flatten()
    }

    fn check_overlap(&self) -> Result<(), RuleError> {
        for pair in self.by_external.windows(2) {
            let later = &pair[usize::from(pair[1].rule > pair[0].rule)];
            let earlier = &pair[usize::from(pair[1].rule < pair[0].rule)];
            overlap(
                &self.rules[later.rule as usize],
                later,
                earlier,
                &self.rules,
            )?;
        }
        Ok(())
    }
}

/// The intervals of a rule that was prepared, one for each of its addresses, or one for all.
fn external_intervals(
    rule: &StaticRule,
    index: u32,
) -> impl Iterator<Item = Interval<ExternalKey>> {
    let family = rule.targets.iter().any(|target| target.inside.is_ipv6());
    let every = (rule.external == External::Every).then_some(None);
    let named = rule.external.named().iter().copied();
    let addresses = named.filter(move |address| address.is_ipv6() == family);
    let places = every.into_iter().chain(addresses.map(Some));
    places.map(move |address| Interval {
        key: (rule.transport, family, address),
        first: *rule.external_ports.start(),
        last: *rule.external_ports.end(),
        reach: *rule.external_ports.end(),
        rule: index,
        target: 0,
    })
}

/// The intervals of a rule that was prepared, one for each target.
fn inside_intervals(rule: &StaticRule, index: u32) -> impl Iterator<Item = Interval<InsideKey>> {
    rule.targets.iter().zip(0..).map(move |(target, position)| {
        let last = rule.inside_port_last(target).unwrap_or(u16::MAX);
        Interval {
            key: (rule.transport, target.domain, target.inside),
            first: target.inside_port_first,
            last,
            reach: last,
            rule: index,
            target: position,
        }
    })
}

fn order<K: Ord>(a: &Interval<K>, b: &Interval<K>) -> Ordering {
    (&a.key, a.first, a.rule, a.target).cmp(&(&b.key, b.first, b.rule, b.target))
}

fn overlap(
    rule: &StaticRule,
    own: &Interval<ExternalKey>,
    other: &Interval<ExternalKey>,
    rules: &[StaticRule],
) -> Result<(), RuleError> {
    let (from, to) = (own.first.max(other.first), own.last.min(other.last));
    if own.key != other.key || from > to {
        return Ok(());
    }
    Err(RuleError::Overlap {
        rule: rule.id,
        other: rules[other.rule as usize].id,
        transport: rule.transport,
        from,
        to,
    })
}

fn extend_reach(intervals: &mut [Interval<InsideKey>]) {
    let mut before: Option<(InsideKey, u16)> = None;
    for interval in intervals {
        interval.reach = match before {
            Some((key, reach)) if key == interval.key => reach.max(interval.last),
            Some(_) | None => interval.last,
        };
        before = Some((interval.key, interval.reach));
    }
}

#[cfg(test)]
mod tests;
