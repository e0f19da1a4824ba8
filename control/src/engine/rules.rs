//! Rules: added, changed, moved, removed, listed with what they have decided on.

use dataplane_core::policy::{RULES_MAX, RuleSlot};

use super::{Engine, State};
use crate::api::rules::RuleView;
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::model::{
    DesiredState, Name, RuleBody, RuleSetting, RuleSide, has_ports, rule_action_label,
    rule_protocol_label,
};
use crate::rules;

/// Where a rule stands among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulePlace {
    /// Before all others.
    First,
    /// After all others.
    Last,
    /// Right before that one.
    Before(String),
    /// Right after that one.
    After(String),
}

impl Engine {
    /// Adds a rule, the last one if nothing is said of its place. It is in force, and kept, when this
    /// returns.
    ///
    /// # Errors
    /// Names what is unknown, taken or impossible; nothing is changed.
    pub async fn add_rule(
        &self,
        name: &str,
        what: RuleBody,
        place: Option<RulePlace>,
    ) -> Result<RuleView, Error> {
        let mut state = self.state().await;
        let name: Name = name.parse()?;
        if state.desired.rules.iter().any(|rule| rule.name == name) {
            return Err(Error::Exists {
                kind: "rule",
                name: name.to_string(),
            });
        }
        self.check_rule(&state, &what)?;
        let slot = (0..RULES_MAX as u16).map(RuleSlot).find(|slot| {
            let mut rules = state.desired.rules.iter();
            rules.all(|rule| rule.slot != *slot)
        });
        let slot = slot.ok_or(Error::Limit {
            what: "rules",
            max: RULES_MAX,
        })?;
        let mut after = state.desired.rules.clone();
        let index = index_of(&after, &place.unwrap_or(RulePlace::Last))?;
        let rule = RuleSetting {
            name: name.clone(),
            slot,
            what,
        };
        after.insert(index, rule);
        // The slot may have been another rule's.
        let before = self.dataplane.rule_hits(slot);
        state.rule_counts.insert(slot.0, before);
        self.put_rules(&mut state, after)?;
        self.tell_rule(&name, "was added");
        self.rule_view(&state, name.as_str())
    }

    /// Changes a rule, or its place. Its counters go on.
    ///
    /// # Errors
    /// Names what is unknown or impossible; nothing is changed.
    pub async fn change_rule(
        &self,
        name: &str,
        change: impl FnOnce(&mut RuleBody, &Named<'_>) -> Result<(), Error>,
        place: Option<RulePlace>,
    ) -> Result<RuleView, Error> {
        let mut state = self.state().await;
        let mut after = state.desired.rules.clone();
        let index = position(&after, name)?;
        let known = Named(&state.desired);
        change(&mut after[index].what, &known)?;
        self.check_rule(&state, &after[index].what)?;
        if let Some(place) = place {
            let rule = after.remove(index);
            let index = index_of(&after, &place)?;
            after.insert(index, rule);
        }
        self.put_rules(&mut state, after)?;
        self.tell_rule(&name.parse()?, "was changed");
        self.rule_view(&state, name)
    }

    /// Removes a rule; connections that it alone let through are at their end.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn remove_rule(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state().await;
        let mut after = state.desired.rules.clone();
        let gone = after.remove(position(&after, name)?);
        self.put_rules(&mut state, after)?;
        self.tell_rule(&gone.name, "was removed");
        Ok(())
    }

    /// The rules, in their order.
    pub async fn rules(&self) -> Vec<RuleView> {
        let state = self.state().await;
        let rules = state.desired.rules.iter().enumerate();
        rules
            .map(|(index, rule)| self.view_of_rule(&state, index, rule))
            .collect()
    }

    /// Reads a side; a bare name is a network's or an endpoint's.
    ///
    /// # Errors
    /// What is unknown, or could be either.
    pub async fn rule_side(&self, text: &str) -> Result<RuleSide, Error> {
        let state = self.state().await;
        side_of(&state.desired, text)
    }

    fn check_rule(&self, state: &State, what: &RuleBody) -> Result<(), Error> {
        let ports = [&what.source_ports, &what.ports];
        if ports.iter().any(|ports| !ports.0.is_empty()) && !has_ports(what.protocol) {
            let problem = "only tcp and udp have ports; give one of them as the protocol";
            return Err(Error::Invalid(problem.to_owned()));
        }
        for side in [&what.from, &what.to] {
            if let Some(gone) = rules::absent(&state.desired, side) {
                let (kind, name) = gone.split_once(':').unwrap_or(("endpoint", &gone));
                return Err(match kind {
                    "network" => Error::unknown_network(name),
                    _ => Error::unknown_endpoint(name),
                });
            }
        }
        if let Some(name) = &what.uplink
            && !state.uplinks.iter().any(|uplink| uplink.name == *name)
        {
            return Err(Error::Invalid(format!(
                "'{name}' is no uplink; `causeway status` lists those that are"
            )));
        }
        rules::check_passage(&state.desired, what).map_err(Error::Invalid)
    }

    fn put_rules(&self, state: &mut State, rules: Vec<RuleSetting>) -> Result<(), Error> {
        self.store.put_rules(&rules)?;
        let before = std::mem::replace(&mut state.desired.rules, rules);
        if let Err(error) = self.install(state) {
            self.store.put_rules(&before)?;
            state.desired.rules = before;
            return Err(error);
        }
        Ok(())
    }

    fn tell_rule(&self, name: &Name, what: &str) {
        let text = format!("rule '{name}' {what}");
        self.events
            .tell(EventKind::RulesChanged, Subject::none(), text);
    }

    fn rule_view(&self, state: &State, name: &str) -> Result<RuleView, Error> {
        let index = position(&state.desired.rules, name)?;
        Ok(self.view_of_rule(state, index, &state.desired.rules[index]))
    }

    fn view_of_rule(&self, state: &State, index: usize, rule: &RuleSetting) -> RuleView {
        let counts = state.rule_counts.get(&rule.slot.0).copied();
        let (packets_before, bytes_before) = counts.unwrap_or_default();
        let (packets, bytes) = self.dataplane.rule_hits(rule.slot);
        let what = &rule.what;
        let sides = [&what.from, &what.to];
        let mut absent: Vec<String> = sides
            .iter()
            .filter_map(|side| rules::absent(&state.desired, side))
            .collect();
        let there = |name: &String| state.uplinks.iter().any(|uplink| uplink.name == *name);
        let uplink = what.uplink.iter().filter(|name| !there(name));
        absent.extend(uplink.map(|name| format!("uplink:{name}")));
        RuleView {
            position: index + 1,
            name: rule.name.to_string(),
            action: rule_action_label(what.action).to_owned(),
            from: what.from.to_string(),
            to: what.to.to_string(),
            protocol: rule_protocol_label(what.protocol),
            source_ports: what.source_ports.to_string(),
            ports: what.ports.to_string(),
            uplink: what.uplink.clone(),
            packets: packets.saturating_sub(packets_before),
            bytes: bytes.saturating_sub(bytes_before),
            absent,
        }
    }
}

/// What is there to be named by a rule.
#[derive(Debug)]
pub struct Named<'d>(&'d DesiredState);

impl Named<'_> {
    /// Reads a side; a bare name is a network's or an endpoint's.
    ///
    /// # Errors
    /// What is unknown, or could be either.
    pub fn side(&self, text: &str) -> Result<RuleSide, Error> {
        side_of(self.0, text)
    }
}

fn side_of(desired: &DesiredState, text: &str) -> Result<RuleSide, Error> {
    if let Ok(side) = text.parse() {
        return Ok(side);
    }
    let name: Name = match text.parse() {
        Ok(name) => name,
        Err(_) => {
            return Err(Error::RuleSide(crate::model::RuleSideError(
                text.to_owned(),
            )));
        }
    };
    let network = desired.network(text).is_some();
    let endpoint = desired.endpoint(text).is_some();
    match (network, endpoint) {
        (true, true) => Err(Error::Invalid(format!(
            "'{text}' is a network and an endpoint; write network:{text} or endpoint:{text}"
        ))),
        (true, false) => Ok(RuleSide::Network(name)),
        (false, true) => Ok(RuleSide::Endpoint(name)),
        (false, false) => Err(Error::NotAttached(format!(
            "there is no network and no endpoint '{text}'; `causeway network ls` and `causeway port \
             ls` list those that are"
        ))),
    }
}

fn position(rules: &[RuleSetting], name: &str) -> Result<usize, Error> {
    let found = rules.iter().position(|rule| rule.name.as_str() == name);
    found.ok_or_else(|| Error::Unknown {
        kind: "rule",
        name: name.to_owned(),
        list: "rule ls",
    })
}

fn index_of(rules: &[RuleSetting], place: &RulePlace) -> Result<usize, Error> {
    match place {
        RulePlace::First => Ok(0),
        RulePlace::Last => Ok(rules.len()),
        RulePlace::Before(name) => position(rules, name),
        RulePlace::After(name) => Ok(position(rules, name)? + 1),
    }
}
