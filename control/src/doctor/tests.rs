use super::facts::{DaemonFacts, Facts, Forward, LinkFacts};
use super::{CHECKS, Finding, Severity, examine};
use crate::api::following::EventView;
use crate::api::types::{EndpointView, FeatureView, NetworkView, StatusView};

/// A host with nothing to complain of: one uplink, one network, one endpoint.
fn sound() -> Facts {
    Facts {
        missing_capabilities: Vec::new(),
        tun_problem: None,
        forward: Forward::Accepted,
        bridge_filtered: false,
        strict_reverse_path: Vec::new(),
        links: vec![link("eth0", 1_500)],
        routes: vec![
            ("0.0.0.0/0".parse().unwrap(), "eth0".to_owned()),
            ("192.0.2.0/24".parse().unwrap(), "eth0".to_owned()),
        ],
        open_files_max: 4_096,
        neighbours_max: [1_024, 1_024],
        daemon: Ok(DaemonFacts {
            status: Some(status()),
            networks: vec![network()],
            endpoints: vec![endpoint("02:42:0a:58:00:02")],
            events: Vec::new(),
        }),
    }
}

fn link(name: &str, mtu: u32) -> LinkFacts {
    LinkFacts {
        name: name.to_owned(),
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        mtu,
        enslaved: false,
    }
}

fn status() -> StatusView {
    serde_json::from_value(serde_json::json!({
        "version": "1", "pid": 1, "uptime_seconds": 1, "state_dir": "/", "netns_inode": 1, "workers": 1,
        "generation": 1, "networks": 1, "endpoints": 1, "publications": 0, "nat_sessions": 0,
        "uplinks": [{ "name": "eth0", "up": true, "addresses": ["192.0.2.2"] }],
        "host_link": "causeway0", "rx_frames": 0, "verdicts": [], "dropped": 0, "api_panics": 0,
        "warnings": [],
    }))
    .unwrap()
}

fn network() -> NetworkView {
    serde_json::from_value(serde_json::json!({
        "name": "web", "gateway_mac": "02:00:00:00:00:02", "internal": false, "host_link": true,
        "mtu": 1_500, "ageing_seconds": 300, "endpoints": [],
        "subnets": [{ "subnet": "10.88.0.0/24", "gateway": "10.88.0.1", "ip_range": "10.88.0.0/24" }],
    }))
    .unwrap()
}

fn endpoint(mac: &str) -> EndpointView {
    serde_json::from_value(serde_json::json!({
        "name": "a", "network": "web", "port": 1, "netns": "a", "ifname": "eth0", "mac": mac,
        "addresses": [], "backend": "tap", "up": true,
    }))
    .unwrap()
}

fn daemon(facts: &mut Facts) -> &mut DaemonFacts {
    facts.daemon.as_mut().unwrap()
}

/// What a check finds once something is not as it should be.
fn found(check: &str, spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = sound();
    spoil(&mut facts);
    let findings = examine(&facts).into_iter();
    findings
        .filter(|it| it.check == check && it.severity > Severity::Ok)
        .collect()
}

#[test]
fn a_sound_host_passes_every_check() {
    let findings = examine(&sound());
    let bad: Vec<&Finding> = findings
        .iter()
        .filter(|it| it.severity > Severity::Ok)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let told: Vec<&str> = findings.iter().map(|it| &*it.check).collect();
    assert_eq!(
        told,
        CHECKS.map(|(name, _)| name),
        "each check says something"
    );
}

#[test]
fn each_check_finds_what_it_is_for_and_says_what_to_do() {
    type Spoil = fn(&mut Facts);
    let cases: [(&str, Severity, &str, Spoil); 19] = [
        ("rights", Severity::Warning, "CAP_NET_ADMIN", |facts| {
            facts.missing_capabilities = vec!["CAP_NET_ADMIN".to_owned()];
        }),
        ("tun", Severity::Problem, "No such file", |facts| {
            facts.tun_problem = Some("No such file".to_owned());
        }),
        (
            "daemon",
            Severity::Warning,
            "not answer: no socket",
            |facts| {
                facts.daemon = Err("no socket".to_owned());
            },
        ),
        ("warnings", Severity::Warning, "ports run out", |facts| {
            status_of(facts).warnings = vec!["ports run out; add an address".to_owned()];
        }),
        ("uplink", Severity::Note, "no uplink", |facts| {
            status_of(facts).uplinks.clear();
        }),
        ("uplink", Severity::Problem, "eth0 is down", |facts| {
            status_of(facts).uplinks[0].up = false;
        }),
        (
            "uplink",
            Severity::Problem,
            "eth0 has no address",
            |facts| {
                status_of(facts).uplinks[0].addresses.clear();
            },
        ),
        (
            "forward-policy",
            Severity::Note,
            "ip filter FORWARD drops",
            |facts| {
                facts.forward = Forward::Dropped("ip filter FORWARD".to_owned());
            },
        ),
        (
            "forward-policy",
            Severity::Warning,
            "br_netfilter",
            |facts| {
                facts.forward = Forward::Dropped("ip filter FORWARD".to_owned());
                facts.bridge_filtered = true;
            },
        ),
        (
            "forward-policy",
            Severity::Note,
            "neither nft nor iptables",
            |facts| {
                facts.forward = Forward::Unknown;
            },
        ),
        ("rp-filter", Severity::Note, "eth1 has a strict", |facts| {
            let mut second = status_of(facts).uplinks[0].clone();
            second.name = "eth1".to_owned();
            status_of(facts).uplinks.push(second);
            facts.strict_reverse_path = vec!["eth1".to_owned(), "eth9".to_owned()];
        }),
        (
            "mtu",
            Severity::Warning,
            "MTU of 1500, uplink eth0 one of 1400",
            |facts| {
                facts.links[0].mtu = 1_400;
            },
        ),
        (
            "offload",
            Severity::Note,
            "guard is filters instead of a program",
            |facts| {
                status_of(facts).features = vec![lesser("guard", "filters", "a program")];
            },
        ),
        (
            "pool-clash",
            Severity::Problem,
            "10.0.0.0/8 by tun0",
            |facts| {
                let route = ("10.0.0.0/8".parse().unwrap(), "tun0".to_owned());
                facts.routes.push(route);
            },
        ),
        (
            "duplicate-mac",
            Severity::Warning,
            "the host's eth0",
            |facts| {
                daemon(facts).endpoints = vec![endpoint("02:00:00:00:00:01")];
            },
        ),
        (
            "duplicate-mac",
            Severity::Warning,
            "moves to and fro",
            |facts| {
                daemon(facts).events = vec![event("mac_flap", "02:: moves to and fro")];
            },
        ),
        ("enslaved", Severity::Problem, "eth0 is a member", |facts| {
            facts.links[0].enslaved = true;
        }),
        ("limits", Severity::Warning, "open files", |facts| {
            facts.open_files_max = 256;
        }),
        ("limits", Severity::Warning, "neighbours in ipv6", |facts| {
            facts.neighbours_max[1] = 1;
        }),
    ];
    for (check, severity, words, spoil) in cases {
        let found = found(check, spoil);
        let [finding] = found.as_slice() else {
            panic!("{check} ({words}): {found:#?}");
        };
        assert_eq!(finding.severity, severity, "{finding:?}");
        assert!(finding.text.contains(words), "{words}: {finding:?}");
        assert!(finding.fix.is_some(), "{finding:?}");
    }
    let covered: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.0).collect();
    assert_eq!(covered.len(), CHECKS.len(), "each check has a case");
}

#[test]
fn what_is_no_business_of_a_check_is_let_pass() {
    let passed = |check: &str, spoil: fn(&mut Facts)| {
        let found = found(check, spoil);
        assert!(found.is_empty(), "{found:#?}");
    };
    passed("mtu", |facts| {
        facts.links[0].mtu = 1_400;
        daemon(facts).networks[0].internal = true;
    });
    passed("pool-clash", |facts| {
        facts
            .routes
            .push(("10.0.0.0/8".parse().unwrap(), "tun0".to_owned()));
        daemon(facts).networks[0].host_link = false;
    });
    passed("duplicate-mac", |facts| {
        daemon(facts).events = vec![event("published", "8080:80")];
    });
    passed("enslaved", |facts| {
        facts.links.push(LinkFacts {
            enslaved: true,
            ..link("eth1", 1_500)
        });
    });
    passed("rp-filter", |facts| {
        facts.strict_reverse_path = vec!["eth0".to_owned()];
    });
    // The check for features tells of those.
    passed("warnings", |facts| {
        status_of(facts).features = vec![lesser("guard", "filters", "a program")];
        status_of(facts).warnings = vec!["uplink eth0: guard is filters instead of it".to_owned()];
    });
}

fn status_of(facts: &mut Facts) -> &mut StatusView {
    daemon(facts).status.as_mut().unwrap()
}

fn lesser(feature: &str, used: &str, wanted: &str) -> FeatureView {
    FeatureView {
        object: "uplink eth0".to_owned(),
        feature: feature.to_owned(),
        wanted: wanted.to_owned(),
        used: used.to_owned(),
        replaced: true,
    }
}

fn event(kind: &str, text: &str) -> EventView {
    EventView {
        number: 1,
        time: "2026-01-01T00:00:00Z".to_owned(),
        kind: kind.to_owned(),
        network: None,
        port: None,
        text: text.to_owned(),
    }
}
