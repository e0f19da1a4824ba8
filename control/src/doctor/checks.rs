//! The checks: from what is so to what it means.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::facts::{DaemonFacts, Facts, Forward};
use super::{Said, Severity};
use crate::events::EventKind;
use crate::ipam::overlap;

/// Files that the daemon has open besides those of ports: the socket, state, clients.
const FILES_BESIDES: u64 = 256;

/// A check: what it makes of the facts.
type Check = fn(&Facts) -> Vec<Said>;

/// Every check by its name, in the order in which they are told.
pub const CHECKS: [(&str, Check); 13] = [
    ("rights", rights),
    ("tun", tun),
    ("daemon", daemon),
    ("warnings", warnings),
    ("uplink", uplink),
    ("forward-policy", forward_policy),
    ("rp-filter", rp_filter),
    ("mtu", mtu),
    ("offload", offload),
    ("pool-clash", pool_clash),
    ("duplicate-mac", duplicate_mac),
    ("enslaved", enslaved),
    ("limits", limits),
];

fn said_or_ok(said: Vec<Said>, ok: impl Into<String>) -> Vec<Said> {
    match said.is_empty() {
        true => Said::ok(ok),
        false => said,
    }
}

fn of_daemon(facts: &Facts) -> Option<&DaemonFacts> {
    facts.daemon.as_ref().ok()
}

fn rights(facts: &Facts) -> Vec<Said> {
    if facts.missing_capabilities.is_empty() {
        return Said::ok("this user may do what the daemon does");
    }
    let lacking = facts.missing_capabilities.join(", ");
    vec![Said::new(
        Severity::Warning,
        format!("this user lacks {lacking}"),
        "start the daemon as root, or by its systemd unit",
    )]
}

fn tun(facts: &Facts) -> Vec<Said> {
    match &facts.tun_problem {
        None => Said::ok("/dev/net/tun can be opened"),
        Some(problem) => vec![Said::new(
            Severity::Problem,
            format!("/dev/net/tun cannot be opened: {problem}"),
            "`modprobe tun`; in a container, `mkdir -p /dev/net && mknod /dev/net/tun c 10 200`, and let \
             its device rules admit it",
        )],
    }
}

fn daemon(facts: &Facts) -> Vec<Said> {
    match &facts.daemon {
        Ok(_) => Said::ok("the daemon answers"),
        Err(problem) => vec![Said::new(
            Severity::Warning,
            format!("the daemon does not answer: {problem}"),
            "`causeway daemon` starts it, --socket names another; checks of networks were left out",
        )],
    }
}

/// What the daemon itself warns of.
fn warnings(facts: &Facts) -> Vec<Said> {
    let status = of_daemon(facts).and_then(|daemon| daemon.status.as_ref());
    let Some(status) = status else {
        return Vec::new();
    };
    let replaced: Vec<&str> = status
        .features
        .iter()
        .map(|it| it.object.as_str())
        .collect();
    let said = status.warnings.iter();
    // Those of features are told by the check for them.
    let said = said.filter(|text| !replaced.iter().any(|object| text.starts_with(object)));
    let said = said.map(|text| {
        let (what, fix) = crate::error::split_hint(text);
        Said::new(
            Severity::Warning,
            what,
            fix.unwrap_or("`causeway status` and `causeway events` say more"),
        )
    });
    said_or_ok(said.collect(), "the daemon warns of nothing")
}

fn uplink(facts: &Facts) -> Vec<Said> {
    let Some(status) = of_daemon(facts).and_then(|daemon| daemon.status.as_ref()) else {
        return Vec::new();
    };
    if status.uplinks.is_empty() {
        return vec![Said::new(
            Severity::Note,
            "there is no uplink: networks reach the host and each other's gateway, nothing outside",
            "`causeway daemon --uplink IF` names one; without it the default route's is taken",
        )];
    }
    let mut said = Vec::new();
    for uplink in &status.uplinks {
        if !uplink.up {
            said.push(Said::new(
                Severity::Problem,
                format!("uplink {} is down", uplink.name),
                format!("`ip link set {} up`, and look at its cable", uplink.name),
            ));
        } else if uplink.addresses.is_empty() {
            said.push(Said::new(
                Severity::Problem,
                format!("uplink {} has no address to translate to", uplink.name),
                format!("`ip address add ADDRESS/LEN dev {}`", uplink.name),
            ));
        }
    }
    said_or_ok(said, "every uplink is up and has an address")
}

/// Frames in the switch never pass the host's packet filter; those on a kernel bridge may.
fn forward_policy(facts: &Facts) -> Vec<Said> {
    match (&facts.forward, facts.bridge_filtered) {
        (Forward::Accepted, _) => Said::ok("no packet filter drops forwarded packets by default"),
        (Forward::Unknown, _) => vec![Said::new(
            Severity::Note,
            "neither nft nor iptables is here to say what becomes of forwarded packets",
            "nothing of ours depends on it: frames in the switch never pass a packet filter",
        )],
        (Forward::Dropped(chain), true) => vec![Said::new(
            Severity::Warning,
            format!(
                "{chain} drops forwarded packets, and br_netfilter hands it those between ports of \
                 kernel bridges: containers on one such bridge do not reach each other. Networks of \
                 Causeway are not concerned"
            ),
            "`sysctl net.bridge.bridge-nf-call-iptables=0`, or move them to a network of Causeway",
        )],
        (Forward::Dropped(chain), false) => vec![Said::new(
            Severity::Note,
            format!(
                "{chain} drops forwarded packets: kernel bridges and routes of this host are \
                 concerned, networks of Causeway are not"
            ),
            "where the host is to route between its own interfaces: `iptables -P FORWARD ACCEPT`",
        )],
    }
}

/// What a strict filter does is seen where there are two ways.
fn rp_filter(facts: &Facts) -> Vec<Said> {
    let status = of_daemon(facts).and_then(|daemon| daemon.status.as_ref());
    let uplinks: Vec<&str> = status.map_or_else(Vec::new, |status| {
        status.uplinks.iter().map(|it| it.name.as_str()).collect()
    });
    if uplinks.len() < 2 {
        return Said::ok(
            "there is one way outside, so reverse-path filters drop nothing by mistake",
        );
    }
    let strict = facts.strict_reverse_path.iter();
    let strict: Vec<&str> = strict
        .map(String::as_str)
        .filter(|name| uplinks.contains(name))
        .collect();
    if strict.is_empty() {
        return Said::ok("no uplink has a strict reverse-path filter");
    }
    let names = strict.join(", ");
    vec![Said::new(
        Severity::Note,
        format!(
            "{names} has a strict reverse-path filter: the host itself does not answer clients that \
             come in by another uplink than its answers take. Published ports are not concerned"
        ),
        format!(
            "`sysctl net.ipv4.conf.{}.rp_filter=2` makes it loose",
            strict[0]
        ),
    )]
}

fn mtu(facts: &Facts) -> Vec<Said> {
    let Some(daemon) = of_daemon(facts) else {
        return Vec::new();
    };
    let uplinks = daemon.status.iter().flat_map(|status| &status.uplinks);
    let narrowest = uplinks
        .filter_map(|uplink| facts.links.iter().find(|link| link.name == uplink.name))
        .min_by_key(|link| link.mtu);
    let Some(narrowest) = narrowest else {
        return Said::ok("there is no uplink whose MTU could be too small");
    };
    let wide = daemon.networks.iter();
    let wide =
        wide.filter(|it| !it.internal && it.router != "lan" && u32::from(it.mtu) > narrowest.mtu);
    let said = wide.map(|network| {
        Said::new(
            Severity::Warning,
            format!(
                "network '{}' has an MTU of {}, uplink {} one of {}: larger packets are fragmented, or \
                 their sender is told",
                network.name, network.mtu, narrowest.name, narrowest.mtu
            ),
            format!(
                "create it with --mtu {}, or set nat.clamp_mss = true for TCP through broken firewalls",
                narrowest.mtu
            ),
        )
    });
    said_or_ok(
        said.collect(),
        "no network has a larger MTU than the uplinks",
    )
}

fn offload(facts: &Facts) -> Vec<Said> {
    let Some(status) = of_daemon(facts).and_then(|daemon| daemon.status.as_ref()) else {
        return Vec::new();
    };
    let mut lesser: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for it in status.features.iter().filter(|it| it.replaced) {
        let key = (it.feature.as_str(), it.used.as_str(), it.wanted.as_str());
        lesser.entry(key).or_default().push(&it.object);
    }
    let said = lesser.into_iter().map(|((feature, used, wanted), objects)| {
        let fix = match feature {
            "guard" => "the guard works as well by filters; for the program, run where BPF may be loaded",
            "backend" | "reception" | "sending" => {
                "frames are right all the same; `causeway port show PORT` and the log tell why"
            }
            _ => "a newer kernel has it; frames are right all the same, large ones cost more",
        };
        let who = match objects.as_slice() {
            [one] => (*one).to_owned(),
            many => format!("{} and {} more", many[0], many.len() - 1),
        };
        let text = format!("{who}: {feature} is {used} instead of {wanted}");
        Said::new(Severity::Note, text, fix)
    });
    said_or_ok(
        said.collect(),
        "the kernel gave every feature that was asked for",
    )
}

fn pool_clash(facts: &Facts) -> Vec<Said> {
    let Some(daemon) = of_daemon(facts) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    // A default route leads everywhere, and clashes with nothing.
    let routes = || {
        facts
            .routes
            .iter()
            .filter(|(prefix, _)| prefix.prefix_len() > 0)
    };
    for network in daemon.networks.iter().filter(|it| it.host_link) {
        let subnets = network.subnets.iter();
        for subnet in subnets.filter_map(|it| it.subnet.parse::<IpNet>().ok()) {
            for (prefix, interface) in routes().filter(|(prefix, _)| overlap(*prefix, subnet)) {
                said.push(Said::new(
                    Severity::Problem,
                    format!(
                        "network '{}' ({subnet}) overlaps the host's route {prefix} by {interface}: the \
                         host reaches one of the two",
                        network.name
                    ),
                    "create the network with another --subnet, or with --no-host-link",
                ));
            }
        }
    }
    said_or_ok(said, "no network overlaps a route of the host")
}

fn duplicate_mac(facts: &Facts) -> Vec<Said> {
    let Some(daemon) = of_daemon(facts) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    for endpoint in &daemon.endpoints {
        let same = facts.links.iter().find(|link| {
            let mac = link.mac.map(|mac| mac.to_string());
            mac.as_deref() == Some(&*endpoint.mac)
        });
        if let Some(link) = same {
            said.push(Said::new(
                Severity::Warning,
                format!(
                    "endpoint '{}' has the MAC of the host's {} ({})",
                    endpoint.name, link.name, endpoint.mac
                ),
                "attach it again with another --mac",
            ));
        }
    }
    let told = [EventKind::MacFlap, EventKind::DuplicateAddress].map(EventKind::label);
    let last = daemon
        .events
        .iter()
        .rfind(|event| told.contains(&&*event.kind));
    if let Some(event) = last {
        said.push(Said::new(
            Severity::Warning,
            format!("at {}: {}", event.time, event.text),
            "give one of the two stations another MAC or address; `causeway events` has every case",
        ));
    }
    said_or_ok(said, "no MAC or address was seen twice")
}

/// A member of a bridge has no stack of its own: what is addressed to it is the bridge's.
fn enslaved(facts: &Facts) -> Vec<Said> {
    let Some(status) = of_daemon(facts).and_then(|daemon| daemon.status.as_ref()) else {
        return Vec::new();
    };
    let members = facts.links.iter().filter(|link| link.enslaved);
    let members = members.filter(|link| status.uplinks.iter().any(|it| it.name == link.name));
    let said = members.map(|link| {
        Said::new(
            Severity::Problem,
            format!(
                "uplink {} is a member of a kernel bridge or bond, which takes its frames and has its \
                 addresses",
                link.name
            ),
            "name the bridge or bond as --uplink instead",
        )
    });
    said_or_ok(said.collect(), "no uplink is a member of a kernel bridge")
}

fn limits(facts: &Facts) -> Vec<Said> {
    let mut said = Vec::new();
    let daemon = of_daemon(facts);
    let endpoints = daemon.map_or(0, |daemon| daemon.endpoints.len() as u64);
    let workers = daemon.and_then(|daemon| daemon.status.as_ref());
    let workers = workers.map_or(1, |status| status.workers as u64);
    // Each worker has a queue of each port; half of what there may be is room to grow.
    let files = endpoints * workers + FILES_BESIDES;
    if facts.open_files_max < files * 2 {
        said.push(Said::new(
            Severity::Warning,
            format!(
                "a process may have {} open files; {endpoints} endpoints of {workers} workers take \
                 {files}",
                facts.open_files_max
            ),
            "`LimitNOFILE=` in the systemd unit, or `ulimit -Hn` before the daemon",
        ));
    }
    let families = [
        ("ipv4", facts.neighbours_max[0]),
        ("ipv6", facts.neighbours_max[1]),
    ];
    for (family, most) in families {
        // Of all namespaces together.
        if most < endpoints * 2 {
            said.push(Said::new(
                Severity::Warning,
                format!(
                    "the kernel remembers {most} neighbours in {family}, of all namespaces together; \
                     {endpoints} endpoints that all talk may need more"
                ),
                format!("`sysctl net.{family}.neigh.default.gc_thresh3={}`", endpoints * 4),
            ));
        }
    }
    said_or_ok(said, "the host's limits leave room")
}
