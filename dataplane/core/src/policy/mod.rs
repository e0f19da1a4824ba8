//! The policy stage: who may open flows to whom, by ordered rules of which the first that fits counts.
//!
//! # Theory of operation
//! A rule speaks of the packet that opens a flow. Whatever belongs to a flow is judged as its opening
//! packet would be now: an answer passes because its question may be asked, and stops when it may no
//! longer. Who opened a flow is known from the session, where addresses are translated, and else from
//! the table of flows (`flows.rs`). So `allow A B` lets A open flows to B and B answer, no more, and a
//! rule that goes ends what it let through.
//!
//! Where no rule fits, the default counts: networks are isolated from each other, endpoints of a
//! network with `icc` off do not reach each other, everything else passes.
//!
//! *Asked of*: bridged frames on ports that have [`PortFlags::POLICED`](crate::l2::PortFlags::POLICED),
//! between lookup and egress; routed packets, once the gateway knows whom they are for and before
//! a session is made for them. *Never asked of*: ARP, neighbour discovery and group membership, without
//! which a segment does not work, and what the gateway answers itself (ARP, echo, DNS).
//!
//! What cannot be read of a packet (a port in a later fragment, a header that contradicts itself)
//! counts as what a rule denies, and not as what it allows.
//!
//! Limits: [`RULES_MAX`] rules, [`PORTS_PER_RULE_MAX`] port ranges in each, [`FLOWS_MAX`] flows. A
//! packet asks the rules of where it comes from, one after the other; one of a known flow asks none
//! until the topology changes.

mod bridged;
mod flows;
mod judge;
mod question;
mod rule;

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::addr::DomainId;

pub(crate) use bridged::within;
pub use flows::{FLOWS_MAX, Flows, FlowsView};
pub(crate) use judge::Judge;
pub use judge::{Ruling, Standing};
pub(crate) use question::{Party, Question};
pub use rule::{Action, PORTS_PER_RULE_MAX, Protocol, Rule, RuleSlot, Side};

/// Rules of one process. Each has counters in every worker, and a packet that opens a flow may ask
/// them all.
pub const RULES_MAX: usize = 1_024;

/// Where a packet comes from, as far as rules are sorted by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Zone {
    /// A network.
    Domain(DomainId),
    /// The host itself.
    Host,
    /// Beyond an uplink.
    Outside,
}

/// The compiled rules of a topology.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Positions in `rules` of those that a zone's packets ask, for zones that a rule names.
    by_origin: HashMap<Zone, Box<[u16]>, FxBuildHasher>,
    /// The same for every other zone.
    of_any: Box<[u16]>,
}

impl Policy {
    /// Compiles rules, which are asked in this order. Of more than [`RULES_MAX`] the last are left
    /// out: who takes them in refuses more.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let rules: Vec<Rule> = rules.into_iter().take(RULES_MAX).collect();
        let list = |zone: Option<Zone>| {
            let asked = |(_, rule): &(usize, &Rule)| match rule.from.zone() {
                Some(named) => Some(named) == zone,
                // An address may be anywhere.
                None => true,
            };
            let asked = rules.iter().enumerate().filter(asked);
            asked.map(|(position, _)| position as u16).collect()
        };
        let zones = rules.iter().filter_map(|rule| rule.from.zone());
        let by_origin = zones.map(|zone| (zone, list(Some(zone)))).collect();
        Self {
            of_any: list(None),
            by_origin,
            rules,
        }
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule whose counters are in `slot`.
    pub fn rule(&self, slot: RuleSlot) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.slot == slot)
    }

    fn of_origin(&self, zone: Zone) -> impl Iterator<Item = &Rule> {
        let list = self.by_origin.get(&zone).unwrap_or(&self.of_any);
        list.iter()
            .filter_map(|position| self.rules.get(usize::from(*position)))
    }

    /// Whether a rule may have a say in what goes from one zone to another.
    fn concerns(&self, from: Zone, to: Zone) -> bool {
        let mut rules = self.of_origin(from);
        rules.any(|rule| rule.to.zone().is_none_or(|named| named == to))
    }

    /// Whether rules may have a say in what is bridged within a network.
    pub(crate) fn sees_bridged(&self, domain: DomainId) -> bool {
        let zone = Zone::Domain(domain);
        self.concerns(zone, zone)
    }

    /// Whether rules may have a say in what a network sends outside.
    pub(crate) fn sees_leaving(&self, domain: DomainId) -> bool {
        self.concerns(Zone::Domain(domain), Zone::Outside)
    }

    /// Whether a rule denies it.
    pub(crate) fn denies(&self, question: &Question) -> bool {
        matches!(
            self.judge(question),
            Ruling::Denied(_) | Ruling::Rejected(_)
        )
    }

    /// What the first rule says that fits; nothing where none does.
    pub(crate) fn judge(&self, question: &Question) -> Ruling {
        let mut rules = self.of_origin(question.from.zone());
        let first = rules.find(|rule| rule.decides(question));
        first.map_or(Ruling::Default, |rule| match rule.action {
            Action::Allow => Ruling::Allowed(rule.slot),
            Action::Drop => Ruling::Denied(rule.slot),
            Action::Reject => Ruling::Rejected(rule.slot),
        })
    }
}
