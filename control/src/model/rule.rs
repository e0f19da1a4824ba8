//! Rules that commands set: who may open connections to whom.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use dataplane_core::headers::protocol;
use dataplane_core::policy::{Action, PORTS_PER_RULE_MAX, Protocol, RuleSlot};
use ipnet::IpNet;

use super::Name;

/// A rule. Networks and endpoints are named in it: while there is none of that name, the rule fits
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSetting {
    /// Its name.
    pub name: Name,
    /// Where the dataplane counts it; not kept over a restart.
    pub slot: RuleSlot,
    /// What it asks, and what it says.
    pub what: RuleBody,
}

/// What a rule asks, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleBody {
    /// What becomes of what it fits.
    pub action: Action,
    /// Who opens the connection.
    pub from: RuleSide,
    /// Towards whom.
    pub to: RuleSide,
    /// By which protocol.
    pub protocol: Protocol,
    /// From one of these ports; any when empty.
    pub source_ports: RulePorts,
    /// To one of these ports; any when empty.
    pub ports: RulePorts,
    /// Over this uplink.
    pub uplink: Option<String>,
}

/// One end of what a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSide {
    /// Whoever it is.
    Anyone,
    /// The host itself.
    Host,
    /// Whoever is beyond an uplink.
    Outside,
    /// Whoever has such an address.
    Prefix(IpNet),
    /// The endpoints of a network.
    Network(Name),
    /// One endpoint.
    Endpoint(Name),
}

impl fmt::Display for RuleSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("any"),
            Self::Host => f.write_str("host"),
            Self::Outside => f.write_str("outside"),
            Self::Prefix(prefix) => write!(f, "{prefix}"),
            Self::Network(name) => write!(f, "network:{name}"),
            Self::Endpoint(name) => write!(f, "endpoint:{name}"),
        }
    }
}

/// Text that is no side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no side of a rule; give the name of a network or an endpoint, network:NAME, \
     endpoint:NAME, an address or subnet, 'outside', 'host' or 'any'"
)]
pub struct RuleSideError(pub String);

impl FromStr for RuleSide {
    type Err = RuleSideError;

    /// Reads what [`RuleSide`] writes. A bare name is for whoever knows what there is.
    fn from_str(text: &str) -> Result<Self, RuleSideError> {
        let wrong = || RuleSideError(text.to_owned());
        let named = |name: &str| name.parse::<Name>().map_err(|_| wrong());
        if let Some(name) = text.strip_prefix("network:") {
            return named(name).map(Self::Network);
        }
        if let Some(name) = text.strip_prefix("endpoint:") {
            return named(name).map(Self::Endpoint);
        }
        match text {
            "any" => return Ok(Self::Anyone),
            "host" => return Ok(Self::Host),
            "outside" => return Ok(Self::Outside),
            _ => {}
        }
        if let Ok(prefix) = text.parse::<IpNet>() {
            return Ok(Self::Prefix(prefix.trunc()));
        }
        let address = text.parse::<std::net::IpAddr>().map_err(|_| wrong())?;
        Ok(Self::Prefix(address.into()))
    }
}

/// Port ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulePorts(pub Vec<RangeInclusive<u16>>);

impl fmt::Display for RulePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match range.start() == range.end() {
                true => write!(f, "{comma}{}", range.start())?,
                false => write!(f, "{comma}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

/// Text that names no ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no ports; write up to {PORTS_PER_RULE_MAX} of 1 to 65535, as in 80,443,8000-8010"
)]
pub struct RulePortsError(pub String);

impl FromStr for RulePorts {
    type Err = RulePortsError;

    fn from_str(text: &str) -> Result<Self, RulePortsError> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let range = |text: &str| {
            let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some(first..=last)
        };
        if text.is_empty() {
            return Ok(Self::default());
        }
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        let ranges = ranges.filter(|ranges| ranges.len() <= PORTS_PER_RULE_MAX);
        ranges
            .map(Self)
            .ok_or_else(|| RulePortsError(text.to_owned()))
    }
}

/// Text that names no protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no protocol; choose any, tcp, udp, icmp, or a number from 0 to 255")]
pub struct RuleProtocolError(pub String);

/// Reads a protocol.
///
/// # Errors
/// [`RuleProtocolError`] for any other text.
pub fn rule_protocol(text: &str) -> Result<Protocol, RuleProtocolError> {
    match text {
        "any" => Ok(Protocol::Any),
        "tcp" => Ok(Protocol::Number(protocol::TCP)),
        "udp" => Ok(Protocol::Number(protocol::UDP)),
        "icmp" => Ok(Protocol::Icmp),
        _ => {
            let number = text.parse::<u8>();
            let wrong = |_| RuleProtocolError(text.to_owned());
            number.map(Protocol::of).map_err(wrong)
        }
    }
}

/// The word for a protocol.
pub fn rule_protocol_label(of: Protocol) -> String {
    match of {
        Protocol::Any => "any".to_owned(),
        Protocol::Icmp => "icmp".to_owned(),
        Protocol::Number(protocol::TCP) => "tcp".to_owned(),
        Protocol::Number(protocol::UDP) => "udp".to_owned(),
        Protocol::Number(number) => number.to_string(),
    }
}

/// Whether a protocol has ports that rules can name.
pub const fn has_ports(of: Protocol) -> bool {
    matches!(
        of,
        Protocol::Number(protocol::TCP) | Protocol::Number(protocol::UDP)
    )
}

/// Text that names no action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is nothing that a rule does; choose allow, drop or reject")]
pub struct RuleActionError(pub String);

/// Reads an action.
///
/// # Errors
/// [`RuleActionError`] for any other text.
pub fn rule_action(text: &str) -> Result<Action, RuleActionError> {
    match text {
        "allow" => Ok(Action::Allow),
        "drop" => Ok(Action::Drop),
        "reject" => Ok(Action::Reject),
        _ => Err(RuleActionError(text.to_owned())),
    }
}

/// The word for an action.
pub const fn rule_action_label(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Drop => "drop",
        Action::Reject => "reject",
    }
}

/// Whether endpoints of a network reach each other without a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Icc {
    /// They do.
    #[default]
    On,
    /// They do not.
    Off,
}

impl From<bool> for Icc {
    fn from(on: bool) -> Self {
        match on {
            true => Self::On,
            false => Self::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_ports_and_protocols_are_read_as_they_are_written() {
        for text in [
            "any",
            "host",
            "outside",
            "10.0.0.0/8",
            "fd00::/8",
            "network:web",
            "endpoint:host",
        ] {
            assert_eq!(text.parse::<RuleSide>().unwrap().to_string(), text);
        }
        assert_eq!(
            "10.1.2.3".parse::<RuleSide>().unwrap().to_string(),
            "10.1.2.3/32"
        );
        for bad in ["", "web", "network:", "endpoint:a b", "10.0.0.0/33"] {
            assert_eq!(bad.parse::<RuleSide>(), Err(RuleSideError(bad.to_owned())));
        }
        for text in ["", "80", "80,443,8000-8010"] {
            assert_eq!(text.parse::<RulePorts>().unwrap().to_string(), text);
        }
        let many = vec!["1"; PORTS_PER_RULE_MAX + 1].join(",");
        for bad in ["0", "80-79", "65536", "80,", "-", many.as_str()] {
            assert_eq!(
                bad.parse::<RulePorts>(),
                Err(RulePortsError(bad.to_owned()))
            );
        }
        for text in ["any", "tcp", "udp", "icmp", "132"] {
            assert_eq!(rule_protocol_label(rule_protocol(text).unwrap()), text);
        }
        assert!(rule_protocol("256").is_err() && rule_protocol("http").is_err());
    }
}
