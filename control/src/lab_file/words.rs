//! The steps to a lab in words, as `apply` prints them.

use std::fmt;

use super::plan::Step;
use super::{EndpointFile, FdbFile, ListenerFile, PublicationFile};

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpublish(publication) => {
                let PublicationFile { spec, endpoint, .. } = publication;
                write!(f, "withdraw {spec} from endpoint '{endpoint}'")
            }
            Self::Detach(names) => write!(f, "detach {}", names.join(", ")),
            Self::RemoveNetwork(name) => write!(f, "remove network '{name}'"),
            Self::RemoveNamespace(name) => write!(f, "remove namespace '{name}'"),
            Self::CreateNamespace(name) => write!(f, "create namespace '{name}'"),
            Self::CreateNetwork(name, network) => {
                let subnets = [&network.subnet, &network.subnet6];
                let subnets: Vec<&str> =
                    subnets.into_iter().flatten().map(String::as_str).collect();
                match subnets.is_empty() {
                    true => write!(f, "create network '{name}'"),
                    false => write!(f, "create network '{name}' ({})", subnets.join(", ")),
                }
            }
            Self::ChangeNetwork(name, change) => {
                write!(f, "change network '{name}': {}", keys(change))
            }
            Self::Release(network, ip) => write!(f, "release {ip} of network '{network}'"),
            Self::Reserve(network, body) => match &body.holder {
                Some(holder) => {
                    write!(f, "reserve {} of network '{network}' for {holder}", body.ip)
                }
                None => write!(f, "reserve {} of network '{network}'", body.ip),
            },
            Self::Attach(name, endpoint) => {
                let EndpointFile { network, netns, .. } = endpoint.as_ref();
                write!(f, "attach '{name}' ({netns}) to network '{network}'")
            }
            Self::Reattach(name, endpoint) => {
                let EndpointFile { network, netns, .. } = endpoint.as_ref();
                write!(f, "attach '{name}' ({netns}) to network '{network}' anew")
            }
            Self::SetPort(name, change) => write!(f, "set of port '{name}': {}", keys(change)),
            Self::SetVlans {
                endpoint, wanted, ..
            } => write!(f, "put port '{endpoint}' into VLANs {wanted}"),
            Self::SetFdb(network, entry) => {
                let FdbFile { mac, port, .. } = entry;
                write!(
                    f,
                    "set {mac} behind '{port}' in the FDB of network '{network}'"
                )
            }
            Self::Publish(publication, _) => {
                let PublicationFile { spec, endpoint, .. } = publication;
                write!(f, "publish {spec} for endpoint '{endpoint}'")
            }
            Self::SetBalance(publication) => {
                let balance = publication.balance.as_deref().unwrap_or_default();
                write!(f, "spread sessions of {} by {balance}", publication.spec)
            }
            Self::SetTarget(publication) => {
                let PublicationFile { spec, endpoint, .. } = publication;
                write!(f, "change endpoint '{endpoint}' as a target of {spec}")
            }
            Self::AddListener(network, entry) => {
                let ListenerFile { group, port, .. } = entry;
                write!(
                    f,
                    "have '{port}' listen to {group} in the MDB of network '{network}'"
                )
            }
            Self::AddRule(rule, place) => {
                let place = place.replacen(':', " rule ", 1);
                write!(f, "add rule '{}' {place}: {}", rule.name, rule.words())
            }
            Self::ChangeRule(rule) => {
                write!(f, "change rule '{}': {}", rule.name, rule.words())
            }
            Self::MoveRule(name, place) => {
                write!(f, "move rule '{name}' {}", place.replacen(':', " rule ", 1))
            }
            Self::RemoveRule(name) => write!(f, "remove rule '{name}'"),
            Self::AddMirror(name, mirror) => {
                write!(f, "set mirror '{name}': {}", keys(mirror))
            }
            Self::RemoveMirror(name) => write!(f, "end mirror '{name}'"),
        }
    }
}

/// What a file of one table says, in one line.
fn keys(file: &impl serde::Serialize) -> String {
    let text = toml::to_string(file).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(", ")
}
