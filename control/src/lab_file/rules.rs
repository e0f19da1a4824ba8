//! Rules of a lab: what they look like in a file, and the steps to them.
//!
//! Rules of a file are in its order among each other. Others that are there stay between them.

use serde::{Deserialize, Serialize};

use super::form;
use super::plan::{Error, Step};
use super::{LabFile, known_endpoint, known_network};
use crate::model::RuleSide;

/// A rule. It is whole: what the file leaves out is not asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// Its name.
    pub name: String,
    /// `allow`, `drop` or `reject`.
    #[serde(deserialize_with = "form::action")]
    pub action: String,
    /// Who opens the connection.
    #[serde(
        default = "form::any",
        deserialize_with = "form::side",
        skip_serializing_if = "form::is_any"
    )]
    pub from: String,
    /// Towards whom.
    #[serde(
        default = "form::any",
        deserialize_with = "form::side",
        skip_serializing_if = "form::is_any"
    )]
    pub to: String,
    /// By which protocol.
    #[serde(
        default = "form::any",
        deserialize_with = "form::protocol",
        skip_serializing_if = "form::is_any"
    )]
    pub protocol: String,
    /// From which ports; any when empty.
    #[serde(
        default,
        deserialize_with = "form::ports",
        skip_serializing_if = "String::is_empty"
    )]
    pub source_ports: String,
    /// To which ports; any when empty.
    #[serde(
        default,
        deserialize_with = "form::ports",
        skip_serializing_if = "String::is_empty"
    )]
    pub ports: String,
    /// Over which uplink alone.
    #[serde(default)]
    pub uplink: Option<String>,
}

impl RuleFile {
    /// The rule in few words: `drop network:web to outside tcp 25`.
    pub(super) fn words(&self) -> String {
        let mut words = format!("{} {} to {}", self.action, self.from, self.to);
        let asked = [
            ("", self.protocol.as_str(), "any"),
            ("", &self.ports, ""),
            ("from ports ", &self.source_ports, ""),
            ("over ", self.uplink.as_deref().unwrap_or_default(), ""),
        ];
        for (what, word, unasked) in asked {
            if word != unasked {
                words += &format!(" {what}{word}");
            }
        }
        words
    }
}

/// The steps that bring the rules that are there to those that are wanted.
///
/// # Errors
/// A rule that is there twice in the file, or that speaks of nobody.
pub(super) fn steps(wanted: &LabFile, there: &LabFile) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let mut order: Vec<&str> = there.rules.iter().map(|rule| rule.name.as_str()).collect();
    let mut before: Option<&str> = None;
    for (index, rule) in wanted.rules.iter().enumerate() {
        let name = rule.name.as_str();
        if wanted.rules[..index].iter().any(|other| other.name == name) {
            return Err(Error::SameName {
                kind: "rule",
                name: name.to_owned(),
            });
        }
        let rule = RuleFile {
            from: resolved(rule, &rule.from, wanted, there)?,
            to: resolved(rule, &rule.to, wanted, there)?,
            ..rule.clone()
        };
        let place = place(&mut order, name, before, &wanted.rules[index..]);
        match there.rules.iter().find(|other| other.name == name) {
            None => steps.push(Step::AddRule(rule, place.unwrap_or_else(last))),
            Some(other) => {
                if *other != rule {
                    steps.push(Step::ChangeRule(rule));
                }
                steps.extend(place.map(|place| Step::MoveRule(name.to_owned(), place)));
            }
        }
        before = Some(name);
    }
    Ok(steps)
}

fn last() -> String {
    "last".to_owned()
}

/// Where a rule has to go to come after the one `before` it, and that in words; none when it is
/// there, or when it is new and may be the last.
fn place<'l>(
    order: &mut Vec<&'l str>,
    name: &'l str,
    before: Option<&str>,
    later: &[RuleFile],
) -> Option<String> {
    let position = |order: &[&str], name: &str| order.iter().position(|other| *other == name);
    let there = position(order, name);
    let Some(before) = before else {
        if there.is_some() {
            return None;
        }
        let comes_later = |other: &&str| later.iter().any(|rule| rule.name == **other);
        let Some(index) = order.iter().position(comes_later) else {
            order.push(name);
            return None;
        };
        let place = format!("before:{}", order[index]);
        order.insert(index, name);
        return Some(place);
    };
    if there > position(order, before) {
        return None;
    }
    if let Some(there) = there {
        order.remove(there);
    }
    let index = position(order, before).map_or(order.len(), |index| index + 1);
    order.insert(index, name);
    Some(format!("after:{before}"))
}

/// The side with the kind of what a bare name is the name of.
fn resolved(
    rule: &RuleFile,
    side: &str,
    wanted: &LabFile,
    there: &LabFile,
) -> Result<String, Error> {
    let is_network = |name: &str| known_network(name, wanted, there);
    let is_endpoint = |name: &str| known_endpoint(name, wanted, there);
    let known = match side.parse::<RuleSide>() {
        Ok(RuleSide::Network(name)) => is_network(name.as_str()).then(|| side.to_owned()),
        Ok(RuleSide::Endpoint(name)) => is_endpoint(name.as_str()).then(|| side.to_owned()),
        Ok(_) => Some(side.to_owned()),
        Err(_) => match (is_network(side), is_endpoint(side)) {
            (true, false) => Some(format!("network:{side}")),
            (false, true) => Some(format!("endpoint:{side}")),
            (true, true) => {
                return Err(Error::Ambiguous {
                    rule: rule.name.clone(),
                    side: side.to_owned(),
                });
            }
            (false, false) => None,
        },
    };
    known.ok_or_else(|| Error::NoSide {
        rule: rule.name.clone(),
        side: side.to_owned(),
    })
}
