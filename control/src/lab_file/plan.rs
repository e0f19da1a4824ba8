//! The steps from what is there to what a lab file wants. Pure.
//!
//! Each step is one request, and steps come in an order in which each finds what it needs. So a
//! list that was carried out in part is no harm: planned again, it is what is left of it.

use std::collections::BTreeSet;

use dataplane_core::l2::PortFlags;

use super::form::NONE;
use super::{
    EndpointFile, FdbFile, LabFile, ListenerFile, MirrorFile, NetworkFile, PortFile,
    PublicationFile, RuleFile, known_endpoint, known_network, mirrors, rules,
};
use crate::api::bridging::FlagsBody;
use crate::api::reservations::ReservationBody;
use crate::config::DEFAULT_NETWORK;
use crate::impairment::ImpairmentBody;

/// What becomes of that which is there and not in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It stays.
    Stays,
    /// It is removed, but for namespaces and the network `default`.
    Goes,
}

/// What becomes of the namespaces that a file names when its lab is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// They stay.
    Stay,
    /// They are removed.
    Go,
}

/// Why a file cannot be applied to what is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Settled when a network is made.
    #[error(
        "network '{network}' has {key} {there}, and the file wants {wanted}; that is settled when a \
         network is made: take the lab down first (`causeway down`), or change the file"
    )]
    Settled {
        /// Which network.
        network: String,
        /// Which key.
        key: &'static str,
        /// What it is.
        there: String,
        /// What it is to be.
        wanted: String,
    },
    /// An endpoint on no network.
    #[error(
        "endpoints.{endpoint} is on network '{network}', which is neither there nor in the file; add \
         [networks.{network}]"
    )]
    NoNetwork {
        /// Which endpoint.
        endpoint: String,
        /// Its network.
        network: String,
    },
    /// A publication, a mirror or an entry of a table for nobody.
    #[error("{what} is about endpoint '{endpoint}', which is neither there nor in the file")]
    NoEndpoint {
        /// What.
        what: String,
        /// Whom it leads to.
        endpoint: String,
    },
    /// A name that is to be of one, twice.
    #[error("{kind} '{name}' is in the file twice; leave one out, or rename it")]
    SameName {
        /// What has the name.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A rule about nobody.
    #[error(
        "rule '{rule}' speaks of '{side}', which is neither there nor in the file: no network and no \
         endpoint"
    )]
    NoSide {
        /// Which rule.
        rule: String,
        /// Whom it speaks of.
        side: String,
    },
    /// A rule about one of two.
    #[error(
        "rule '{rule}' speaks of '{side}', which is a network and an endpoint; write network:{side} \
         or endpoint:{side}"
    )]
    Ambiguous {
        /// Which rule.
        rule: String,
        /// Whom it speaks of.
        side: String,
    },
    /// A mirror that cannot be.
    #[error("mirrors.{name} {problem}")]
    Mirror {
        /// Which mirror.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A mirror of nothing.
    #[error("mirrors.{name} watches network '{network}', which is neither there nor in the file")]
    NoMirrored {
        /// Which mirror.
        name: String,
        /// What it watches.
        network: String,
    },
    /// The same twice.
    #[error("{spec} leads to endpoint '{endpoint}' twice in the file; leave one out")]
    Twice {
        /// The publication.
        spec: String,
        /// The endpoint.
        endpoint: String,
    },
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Withdraw a publication from an endpoint.
    Unpublish(PublicationFile),
    /// Take interfaces away.
    Detach(Vec<String>),
    /// Remove a network.
    RemoveNetwork(String),
    /// Take the name off a namespace.
    RemoveNamespace(String),
    /// Make a namespace with a name.
    CreateNamespace(String),
    /// Make a network.
    CreateNetwork(String, Box<NetworkFile>),
    /// Change a network as far as the file says something else.
    ChangeNetwork(String, Box<NetworkFile>),
    /// Give a reserved address back.
    Release(String, String),
    /// Keep an address for somebody.
    Reserve(String, ReservationBody),
    /// Give a namespace an interface.
    Attach(String, Box<EndpointFile>),
    /// Give it another one in the place of that which it has.
    Reattach(String, Box<EndpointFile>),
    /// Change a port as far as the file says something else.
    SetPort(String, Box<PortFile>),
    /// Put a port into these VLANs and no others.
    SetVlans {
        /// The endpoint.
        endpoint: String,
        /// Those that it is in.
        there: String,
        /// Those that it is to be in.
        wanted: String,
    },
    /// Set an FDB entry.
    SetFdb(String, FdbFile),
    /// Publish ports for an endpoint, beside others where there are some.
    Publish(PublicationFile, Sharing),
    /// Change how a publication spreads sessions.
    SetBalance(PublicationFile),
    /// Change a target of a publication.
    SetTarget(PublicationFile),
    /// Have a port listen to a group.
    AddListener(String, ListenerFile),
    /// Add a rule at a place: `last`, `before:RULE`, `after:RULE`.
    AddRule(RuleFile, String),
    /// Change what a rule asks or does.
    ChangeRule(RuleFile),
    /// Have a rule asked at another place.
    MoveRule(String, String),
    /// Remove a rule.
    RemoveRule(String),
    /// Set a mirror.
    AddMirror(String, MirrorFile),
    /// End a mirror.
    RemoveMirror(String),
}

/// Whether the ports that are published lead to others already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They do not.
    Alone,
    /// They do.
    Joins,
}

/// The fields of `$wanted` that say something else than `$there`.
macro_rules! differing {
    ($kind:ident, $wanted:expr, $there:expr; $($field:ident),+ $(,)?) => {
        $kind {
            $($field: match &$wanted.$field {
                Some(wanted) if Some(wanted) != $there.$field.as_ref() => Some(wanted.clone()),
                Some(_) | None => None,
            },)+
            ..$kind::default()
        }
    };
}

/// The steps that bring what is there to what is wanted.
///
/// # Errors
/// See [`Error`]; nothing can have been done then.
pub fn apply(wanted: &LabFile, there: &LabFile, rest: Rest) -> Result<Vec<Step>, Error> {
    check_names(wanted, there)?;
    mirrors::check(wanted, there)?;
    let mut gone = match rest {
        Rest::Stays => LabFile::default(),
        Rest::Goes => leftovers(wanted, there),
    };
    let left = networks_left_later(&mut gone, wanted, there);
    let mut steps: Vec<Step> = mirrors::removals(wanted, there).collect();
    steps.extend(removals(&gone));
    let missing = wanted.namespaces.difference(&there.namespaces);
    steps.extend(missing.cloned().map(Step::CreateNamespace));
    for (name, network) in &wanted.networks {
        steps.extend(network_steps(name, network, there.networks.get(name))?);
    }
    for (name, endpoint) in &wanted.endpoints {
        steps.extend(endpoint_steps(name, endpoint, there.endpoints.get(name)));
    }
    for (name, network) in &wanted.networks {
        let known = there
            .networks
            .get(name)
            .map(|network| network.fdb.as_slice());
        let missing = network.fdb.iter().filter(|entry| !has_entry(known, entry));
        steps.extend(missing.map(|entry| Step::SetFdb(name.clone(), entry.clone())));
        let known = there
            .networks
            .get(name)
            .map(|network| network.mdb.as_slice());
        let missing = network.mdb.iter().filter(|entry| !listens(known, entry));
        steps.extend(missing.map(|entry| Step::AddListener(name.clone(), entry.clone())));
    }
    // Before ports are published, and before what they take the place of goes.
    steps.extend(rules::steps(wanted, there)?);
    steps.extend(rule_removals(&gone));
    steps.extend(publication_steps(wanted, there));
    steps.extend(mirrors::additions(wanted, there));
    steps.extend(left.into_iter().map(Step::RemoveNetwork));
    Ok(steps)
}

/// Takes the networks out that cannot be removed before endpoints have left them for others.
fn networks_left_later(gone: &mut LabFile, wanted: &LabFile, there: &LabFile) -> Vec<String> {
    let staying = there.endpoints.iter();
    let staying = staying.filter(|(name, _)| wanted.endpoints.contains_key(*name));
    let used: BTreeSet<&String> = staying.map(|(_, endpoint)| &endpoint.network).collect();
    let later = gone.networks.extract_if(.., |name, _| used.contains(name));
    later.map(|(name, _)| name).collect()
}

/// The steps that take away what a file names.
pub fn down(named: &LabFile, there: &LabFile, namespaces: Namespaces) -> Vec<Step> {
    let mut gone = named.clone();
    gone.endpoints
        .retain(|name, _| there.endpoints.contains_key(name));
    gone.networks
        .retain(|name, _| there.networks.contains_key(name));
    // Publications end with the endpoints that they lead to.
    gone.publications.clear();
    gone.mirrors
        .retain(|name, _| there.mirrors.contains_key(name));
    gone.rules.retain(|rule| {
        let mut others = there.rules.iter();
        others.any(|other| other.name == rule.name)
    });
    let mut steps = removals(&gone);
    steps.extend(rule_removals(&gone));
    if namespaces == Namespaces::Go {
        let known = named.namespaces.intersection(&there.namespaces);
        steps.extend(known.cloned().map(Step::RemoveNamespace));
    }
    steps
}

fn removals(gone: &LabFile) -> Vec<Step> {
    // Mirrors would end with what they watch.
    let mirrors = gone.mirrors.keys().cloned().map(Step::RemoveMirror);
    let publications = gone.publications.iter().cloned().map(Step::Unpublish);
    let mut steps: Vec<Step> = mirrors.chain(publications).collect();
    let endpoints: Vec<String> = gone.endpoints.keys().cloned().collect();
    if !endpoints.is_empty() {
        steps.push(Step::Detach(endpoints));
    }
    let networks = gone.networks.keys().cloned();
    steps.extend(networks.map(Step::RemoveNetwork));
    steps
}

/// Apart from the rest: rules hold until what they speak of is gone, or has its new ones.
fn rule_removals(gone: &LabFile) -> impl Iterator<Item = Step> {
    let names = gone.rules.iter().map(|rule| rule.name.clone());
    names.map(Step::RemoveRule)
}

/// What is there and not in the file.
fn leftovers(wanted: &LabFile, there: &LabFile) -> LabFile {
    let mut rest = there.clone();
    rest.networks
        .retain(|name, _| !wanted.networks.contains_key(name) && name != DEFAULT_NETWORK);
    rest.endpoints
        .retain(|name, _| !wanted.endpoints.contains_key(name));
    rest.publications.retain(|publication| {
        let mut others = wanted.publications.iter();
        let leads = rest.endpoints.contains_key(&publication.endpoint);
        // With its endpoint it ends anyway.
        !leads && !others.any(|other| is_same_target(other, publication))
    });
    rest.rules.retain(|rule| {
        let mut others = wanted.rules.iter();
        others.all(|other| other.name != rule.name)
    });
    rest.mirrors
        .retain(|name, _| !wanted.mirrors.contains_key(name));
    rest
}

fn check_names(wanted: &LabFile, there: &LabFile) -> Result<(), Error> {
    for (endpoint, file) in &wanted.endpoints {
        let network = &file.network;
        if !known_network(network, wanted, there) {
            return Err(Error::NoNetwork {
                endpoint: endpoint.clone(),
                network: network.clone(),
            });
        }
    }
    let check = |what: String, endpoint: &String| {
        let known = known_endpoint(endpoint, wanted, there);
        let endpoint = endpoint.clone();
        known
            .then_some(())
            .ok_or(Error::NoEndpoint { what, endpoint })
    };
    for network in wanted.networks.values() {
        for entry in &network.fdb {
            check(format!("the FDB entry for {}", entry.mac), &entry.port)?;
        }
        for entry in &network.mdb {
            check(format!("the MDB entry for {}", entry.group), &entry.port)?;
        }
    }
    let mut seen = BTreeSet::new();
    for publication in &wanted.publications {
        let (spec, endpoint) = (&publication.spec, &publication.endpoint);
        check(spec.clone(), endpoint)?;
        if !seen.insert((
            host_part(publication),
            publication.uplink.as_ref(),
            endpoint,
        )) {
            return Err(Error::Twice {
                spec: spec.clone(),
                endpoint: endpoint.clone(),
            });
        }
    }
    Ok(())
}

fn network_steps(
    name: &str,
    wanted: &NetworkFile,
    there: Option<&NetworkFile>,
) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    match there {
        None => steps.push(Step::CreateNetwork(
            name.to_owned(),
            Box::new(wanted.clone()),
        )),
        Some(there) => {
            check_settled(name, wanted, there)?;
            let change = differing!(NetworkFile, wanted, there;
                ageing_seconds, stp_frames, loop_detect, vlan_filtering, gateway_vlan,
                mcast_snooping, mcast_querier, arp_suppression, icc, nat_mapping, nat_filtering, nat4,
                nat6, dns, nic);
            if change != NetworkFile::default() {
                steps.push(Step::ChangeNetwork(name.to_owned(), Box::new(change)));
            }
        }
    }
    let kept = there.map_or(&[][..], |there| &there.reservations);
    for reservation in &wanted.reservations {
        match kept.iter().find(|other| other.ip == reservation.ip) {
            Some(other) if other == reservation => continue,
            Some(other) => steps.push(Step::Release(name.to_owned(), other.ip.clone())),
            None => {}
        }
        steps.push(Step::Reserve(name.to_owned(), reservation.clone()));
    }
    Ok(steps)
}

fn check_settled(name: &str, wanted: &NetworkFile, there: &NetworkFile) -> Result<(), Error> {
    let text = |value: &Option<String>| value.clone();
    let word = |value: &Option<bool>| value.map(|value| value.to_string());
    let number = |value: &Option<u16>| value.map(|value| value.to_string());
    let list = |value: &Option<Vec<String>>| value.as_ref().map(|value| value.join(","));
    let settled = |file: &NetworkFile| {
        [
            ("subnet", text(&file.subnet)),
            ("gateway", text(&file.gateway)),
            ("ip_range", text(&file.ip_range)),
            ("subnet6", text(&file.subnet6)),
            ("gateway6", text(&file.gateway6)),
            ("internal", word(&file.internal)),
            ("host_link", word(&file.host_link)),
            ("mtu", number(&file.mtu)),
            ("lan_gateway", list(&file.lan_gateway)),
        ]
    };
    for ((key, wanted), (_, there)) in settled(wanted).into_iter().zip(settled(there)) {
        if let Some(wanted) = wanted
            && Some(&wanted) != there.as_ref()
        {
            return Err(Error::Settled {
                network: name.to_owned(),
                key,
                there: there.unwrap_or_else(|| NONE.to_owned()),
                wanted,
            });
        }
    }
    Ok(())
}

fn endpoint_steps(name: &str, wanted: &EndpointFile, there: Option<&EndpointFile>) -> Vec<Step> {
    let mut steps = Vec::new();
    let usual = PortFile {
        vlans: Some(crate::vlans::written(&Default::default())),
        ..PortFile::default()
    };
    let port = match there {
        None => {
            steps.push(Step::Attach(name.to_owned(), Box::new(wanted.clone())));
            &usual
        }
        Some(there) => {
            let moved = (&wanted.network, &wanted.netns) != (&there.network, &there.netns);
            let change = differing!(EndpointFile, wanted, there;
                ifname, ip, ip6, mac, backend, aliases, links, gw_priority, routes, dns);
            if moved || change != EndpointFile::default() {
                steps.push(Step::Reattach(name.to_owned(), Box::new(wanted.clone())));
            }
            &there.port
        }
    };
    steps.extend(port_steps(name, &wanted.port, port));
    steps
}

fn port_steps(name: &str, wanted: &PortFile, there: &PortFile) -> Vec<Step> {
    let mut change = differing!(PortFile, wanted, there;
        mac_limit, storm_broadcast, storm_multicast, storm_unknown_unicast, rate_in, rate_out,
        mac_nat);
    change.flags = differing_flags(wanted.flags, there.flags);
    let impairments = [
        (&wanted.impair_in, &there.impair_in, &mut change.impair_in),
        (
            &wanted.impair_out,
            &there.impair_out,
            &mut change.impair_out,
        ),
    ];
    for (wanted, there, change) in impairments {
        if let Some(body) = wanted
            && !is_same_impairment(body, there.as_ref())
        {
            *change = Some(body.clone());
        }
    }
    let mut steps = Vec::new();
    if change != PortFile::default() {
        steps.push(Step::SetPort(name.to_owned(), Box::new(change)));
    }
    let vlans = there.vlans.clone().unwrap_or_default();
    match &wanted.vlans {
        Some(wanted) if *wanted != vlans => steps.push(Step::SetVlans {
            endpoint: name.to_owned(),
            there: vlans,
            wanted: wanted.clone(),
        }),
        Some(_) | None => {}
    }
    steps
}

fn differing_flags(mut wanted: FlagsBody, mut there: FlagsBody) -> FlagsBody {
    let mut change = FlagsBody::default();
    for (flag, _) in PortFlags::ALL {
        let (wanted, there) = (wanted.entry(flag), there.entry(flag));
        if let (Some(Some(wanted)), Some(entry)) = (wanted, change.entry(flag))
            && there.is_none_or(|there| *there != Some(*wanted))
        {
            *entry = Some(*wanted);
        }
    }
    change
}

/// A file need not say what is drawn.
fn is_same_impairment(wanted: &ImpairmentBody, there: Option<&ImpairmentBody>) -> bool {
    let seedless = |body: &ImpairmentBody| {
        let seed = wanted.seed.and(body.seed);
        let read = body.impairment().map(ImpairmentBody::from);
        read.map(|read| ImpairmentBody { seed, ..read })
    };
    match (seedless(wanted), there.map(seedless)) {
        (Ok(wanted), Some(Ok(there))) => wanted == there,
        // What cannot be read is for the daemon to say.
        _ => false,
    }
}

fn has_entry(there: Option<&[FdbFile]>, wanted: &FdbFile) -> bool {
    let mut entries = there.into_iter().flatten();
    entries.any(|entry| {
        let of_vlan = wanted.vlan.is_none_or(|vlan| entry.vlan == Some(vlan));
        of_vlan
            && (&entry.mac, &entry.port, &entry.state) == (&wanted.mac, &wanted.port, &wanted.state)
    })
}

fn listens(there: Option<&[ListenerFile]>, wanted: &ListenerFile) -> bool {
    let mut entries = there.into_iter().flatten();
    entries.any(|entry| {
        let of_vlan = wanted.vlan.is_none_or(|vlan| entry.vlan == Some(vlan));
        of_vlan && (&entry.group, &entry.port) == (&wanted.group, &wanted.port)
    })
}

fn publication_steps(wanted: &LabFile, there: &LabFile) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut led: Vec<&PublicationFile> = there.publications.iter().collect();
    for publication in &wanted.publications {
        let known = led
            .iter()
            .position(|other| is_same_target(other, publication));
        if let Some(index) = known
            && is_as_made(publication, led[index])
        {
            steps.extend(target_steps(publication, led[index]));
            continue;
        }
        if let Some(index) = known {
            steps.push(Step::Unpublish(led.remove(index).clone()));
        }
        let shares = |other: &&PublicationFile| is_same_host_ports(other, publication);
        let sharing = match led.iter().any(shares) {
            true => Sharing::Joins,
            false => Sharing::Alone,
        };
        steps.push(Step::Publish(publication.clone(), sharing));
        if publication.draining == Some(true) {
            steps.push(Step::SetTarget(publication.clone()));
        }
        led.push(publication);
    }
    steps
}

/// What changes of a target without withdrawing it.
fn target_steps(wanted: &PublicationFile, there: &PublicationFile) -> Vec<Step> {
    let mut steps = Vec::new();
    let balance = differing!(PublicationFile, wanted, there; balance);
    if balance.balance.is_some() {
        steps.push(Step::SetBalance(PublicationFile {
            id: there.id,
            ..wanted.clone()
        }));
    }
    let target = differing!(PublicationFile, wanted, there; weight, draining);
    if target != PublicationFile::default() {
        steps.push(Step::SetTarget(PublicationFile {
            id: there.id,
            ..wanted.clone()
        }));
    }
    steps
}

/// The host's side of a specification: `127.0.0.1:8080` of `127.0.0.1:8080:80/tcp`, with the transport.
pub(crate) fn host_part(publication: &PublicationFile) -> (&str, &str) {
    let spec = publication.spec.as_str();
    let (ports, transport) = spec.rsplit_once('/').unwrap_or((spec, "tcp"));
    let host = ports.rsplit_once(':').map_or(ports, |(host, _)| host);
    (host, transport)
}

fn is_same_host_ports(one: &PublicationFile, two: &PublicationFile) -> bool {
    host_part(one) == host_part(two) && one.uplink == two.uplink
}

fn is_same_target(one: &PublicationFile, two: &PublicationFile) -> bool {
    is_same_host_ports(one, two) && one.endpoint == two.endpoint
}

/// Whether what is settled when a publication is made is as wanted.
fn is_as_made(wanted: &PublicationFile, there: &PublicationFile) -> bool {
    wanted.spec == there.spec && (wanted.from.is_none() || wanted.from == there.from)
}
