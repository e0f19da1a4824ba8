//! Rules, from what people name to what the dataplane asks.

use dataplane_core::addr::Prefix;
use dataplane_core::policy::{Action, Policy, Rule, Side};
use dataplane_core::topology::Uplink;

use crate::model::{DesiredState, Network, Router, RuleBody, RuleSetting, RuleSide};

/// Compiles the rules whose networks, endpoints and uplinks are there.
pub fn compile(desired: &DesiredState, uplinks: &[Uplink]) -> Policy {
    let rule = |rule: &RuleSetting| {
        let what = &rule.what;
        let uplink = match &what.uplink {
            Some(name) => Some(uplinks.iter().find(|uplink| *uplink.name == **name)?.id),
            None => None,
        };
        Some(Rule {
            slot: rule.slot,
            name: rule.name.as_str().into(),
            action: what.action,
            from: side(desired, &what.from)?,
            to: side(desired, &what.to)?,
            protocol: what.protocol,
            source_ports: what.source_ports.0.as_slice().into(),
            ports: what.ports.0.as_slice().into(),
            uplink,
        })
    };
    Policy::new(desired.rules.iter().filter_map(rule))
}

/// A side as the dataplane knows it; `None` while what it names is not there.
fn side(desired: &DesiredState, side: &RuleSide) -> Option<Side> {
    Some(match side {
        RuleSide::Anyone => Side::Anyone,
        RuleSide::Host => Side::Host,
        RuleSide::Outside => Side::Outside,
        RuleSide::Prefix(net) => Side::Prefix(Prefix::new(net.network(), net.prefix_len())),
        RuleSide::Network(name) => Side::Network(desired.network(name.as_str())?.domain),
        RuleSide::Endpoint(name) => {
            let endpoint = desired.endpoint(name.as_str())?;
            Side::Endpoint(endpoint.port, endpoint.domain)
        }
    })
}

/// What a side names that is not there.
pub fn absent(desired: &DesiredState, side: &RuleSide) -> Option<String> {
    match side {
        RuleSide::Network(name) if desired.network(name.as_str()).is_none() => {
            Some(side.to_string())
        }
        RuleSide::Endpoint(name) if desired.endpoint(name.as_str()).is_none() => {
            Some(side.to_string())
        }
        _ => None,
    }
}

fn network_of<'d>(desired: &'d DesiredState, side: &RuleSide) -> Option<&'d Network> {
    match side {
        RuleSide::Network(name) => desired.network(name.as_str()),
        RuleSide::Endpoint(name) => desired.network_of(desired.endpoint(name.as_str())?),
        RuleSide::Anyone | RuleSide::Host | RuleSide::Outside | RuleSide::Prefix(_) => None,
    }
}

/// Whether the gateways can route what a rule allows between two networks: an address has to tell
/// whose it is.
///
/// # Errors
/// Why not, and what to do.
pub fn check_passage(desired: &DesiredState, what: &RuleBody) -> Result<(), String> {
    let ends = (
        network_of(desired, &what.from),
        network_of(desired, &what.to),
    );
    let (Some(from), Some(to)) = ends else {
        return Ok(());
    };
    if what.action != Action::Allow || from.domain == to.domain {
        return Ok(());
    }
    for network in [from, to] {
        let name = &network.name;
        if network.internal {
            return Err(format!(
                "network '{name}' is internal, so nothing leads into or out of it; make it again \
                 without --internal"
            ));
        }
        if network.router == Router::Lan || network.subnets.is_empty() {
            return Err(format!(
                "network '{name}' has no gateway of the switch's, which would have to route between \
                 the two; attach an endpoint to both networks instead"
            ));
        }
        for other in desired.networks.values() {
            if let Some((own, others)) = overlap(network, other) {
                return Err(format!(
                    "network '{name}' ({own}) overlaps with network '{}' ({others}), so an address \
                     does not tell which of them is meant; give one of them another subnet",
                    other.name
                ));
            }
        }
    }
    Ok(())
}

fn overlap(one: &Network, other: &Network) -> Option<(ipnet::IpNet, ipnet::IpNet)> {
    if one.domain == other.domain || other.router == Router::Lan {
        return None;
    }
    let mut pairs = one.subnets.iter().flat_map(|own| {
        other
            .subnets
            .iter()
            .map(|others| (own.prefix, others.prefix))
    });
    pairs.find(|(own, others)| own.contains(&others.network()) || others.contains(&own.network()))
}

/// Whether the rules that are there can stay when a network has come.
///
/// # Errors
/// The rule that cannot, and why.
pub fn check_all(desired: &DesiredState) -> Result<(), String> {
    for rule in &desired.rules {
        check_passage(desired, &rule.what)
            .map_err(|why| format!("rule '{}' allows a passage, but {why}", rule.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam;
    use crate::model::RulePorts;
    use dataplane_core::addr::DomainId;
    use dataplane_core::policy::{Protocol, RuleSlot};

    fn network(domain: u16, name: &str, prefix: &str) -> Network {
        let example = crate::store::tests::example();
        let mut network = example.networks.into_values().next().unwrap();
        network.domain = DomainId(domain);
        network.name = name.parse().unwrap();
        network.subnets = vec![ipam::subnet(prefix.parse().unwrap(), None, None).unwrap()];
        network.internal = false;
        network.router = Router::Switch;
        network
    }

    fn desired(networks: impl IntoIterator<Item = Network>) -> DesiredState {
        let what = RuleBody {
            action: Action::Allow,
            from: RuleSide::Network("red".parse().unwrap()),
            to: RuleSide::Network("blue".parse().unwrap()),
            protocol: Protocol::Any,
            source_ports: RulePorts::default(),
            ports: RulePorts::default(),
            uplink: None,
        };
        let rule = RuleSetting {
            name: "r".parse().unwrap(),
            slot: RuleSlot(3),
            what,
        };
        let networks = networks.into_iter();
        DesiredState {
            networks: networks.map(|network| (network.domain, network)).collect(),
            rules: vec![rule],
            ..DesiredState::default()
        }
    }

    #[test]
    fn a_passage_needs_addresses_that_tell_whose_they_are() {
        let (red, blue) = (
            network(1, "red", "10.1.0.0/16"),
            network(2, "blue", "10.2.0.0/16"),
        );
        assert_eq!(check_all(&desired([red.clone(), blue.clone()])), Ok(()));
        for (third, prefix) in [("blue", "10.1.3.0/24"), ("green", "10.2.0.0/15")] {
            let number = if third == "blue" { 2 } else { 3 };
            let mut desired = desired([red.clone(), blue.clone()]);
            desired
                .networks
                .insert(DomainId(number), network(number, third, prefix));
            let error = check_all(&desired).unwrap_err();
            assert!(
                error.contains("rule 'r'") && error.contains("overlaps"),
                "{error}"
            );
        }
        let vault = Network {
            internal: true,
            ..blue.clone()
        };
        let error = check_all(&desired([red.clone(), vault])).unwrap_err();
        assert!(error.contains("internal"), "{error}");
        let lan = Network {
            router: Router::Lan,
            ..blue
        };
        assert!(check_all(&desired([red, lan])).is_err());
    }

    #[test]
    fn a_rule_whose_network_is_not_there_is_left_out_until_it_is() {
        let red = network(1, "red", "10.1.0.0/16");
        assert!(compile(&desired([red.clone()]), &[]).is_empty());
        let blue = network(2, "blue", "10.2.0.0/16");
        let policy = compile(&desired([red, blue]), &[]);
        assert_eq!(policy.rules()[0].to, Side::Network(DomainId(2)));
        assert_eq!(policy.rules()[0].slot, RuleSlot(3));
    }
}
