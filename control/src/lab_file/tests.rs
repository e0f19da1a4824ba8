//! Lab files: read, written, and planned from any state to any other.

use super::plan::{Error, Namespaces, Rest, Step, apply, down};
use super::*;

const LAB: &str = r#"
namespaces = ["blue", "green"]

[networks.web]
subnet = "10.88.0.0/24"
mtu = 1400
nat6 = "default"
dns = ["192.0.2.53"]
reservations = [{ ip = "10.88.0.9" }, { ip = "10.88.0.10", for = "db" }]
fdb = [{ mac = "02:00:00:00:00:0A", port = "web1" }]
mdb = [{ group = "239.1.2.3", port = "web1" }]

[networks.lan]
subnet = "192.168.7.0/24"
lan_gateway = ["192.168.7.1"]
nic = { name = "eth1", mac_nat = true, backend = "xdp" }

[endpoints.web1]
network = "web"
netns = "/run/netns/blue"
ip = "10.88.0.2"
ip6 = "none"
aliases = ["www"]
routes = ["10.9.0.7=10.88.0.254"]

[endpoints.web1.port]
vlans = "10-20, 1 pvid untagged"
flags = { isolated = true }
rate_in = "10mbit"
impair_out = { delay = "20ms" }

[endpoints.db]
network = "web"
netns = "green"

[[publications]]
spec = "8080:80"
endpoint = "web1"
weight = 2

[[publications]]
spec = "8080:8000/tcp"
endpoint = "db"
draining = true

[[rules]]
name = "no-smtp"
action = "drop"
from = "web"
to = "outside"
protocol = "6"
ports = "25,587-587"

[[rules]]
name = "office"
action = "allow"
from = "198.51.100.7"
to = "web1"

[mirrors.m1]
from = "web1"
to = "db"

[mirrors.m2]
network = "lan"
to_file = "/var/log/lan.pcapng"
"#;

#[test]
fn texts_are_brought_into_the_form_in_which_the_daemon_lists_them() {
    let lab = LabFile::read(LAB).unwrap();
    let web1 = &lab.endpoints["web1"];
    assert_eq!(web1.netns, "blue");
    assert_eq!(web1.port.vlans.as_deref(), Some("1 pvid untagged, 10-20"));
    assert_eq!(web1.routes.as_ref().unwrap()[0], "10.9.0.7/32=10.88.0.254");
    let rate = web1.port.rate_in.as_deref().unwrap();
    assert!(rate.starts_with("10mbit burst "), "{rate}");
    assert_eq!(lab.networks["web"].nat6.as_deref(), Some("auto"));
    assert_eq!(lab.networks["web"].fdb[0].mac, "02:00:00:00:00:0a");
    assert_eq!(lab.networks["web"].fdb[0].state, "static");
    assert_eq!(lab.publications[0].spec, "8080:80/tcp");
    let smtp = "drop web to outside tcp 25,587";
    assert_eq!(lab.rules[0].words(), smtp);
    assert_eq!(lab.rules[1].words(), "allow 198.51.100.7/32 to web1");
    let again = LabFile::read(&lab.to_text().unwrap()).unwrap();
    assert_eq!(again, lab);
}

#[test]
fn what_cannot_be_read_is_told_with_its_place_and_key() {
    for (line, told) in [
        ("subnett = \"10.0.0.0/24\"", "unknown field `subnett`"),
        ("mtu = \"1500\"", "expected u16"),
        ("mtu = 70000", "70000"),
        ("subnet = 5", "expected a string"),
        ("subnet = \"10.0.0.0\"", "'10.0.0.0'"),
        ("gateway = \"10.0.0.256\"", "'10.0.0.256'"),
        ("stp_frames = \"maybe\"", "'maybe'"),
        ("nat4 = \"symmetric\"", "'symmetric'"),
        ("internal = \"yes\"", "expected a boolean"),
        ("fdb = [{ mac = \"02:00\", port = \"a\" }]", "'02:00'"),
        (
            "fdb = [{ mac = \"02:00:00:00:00:01\" }]",
            "missing field `port`",
        ),
        ("nic = { nome = \"eth1\" }", "unknown field `nome`"),
        (
            "nic = { name = \"eth1\", backend = \"tap\" }",
            "choose packet or xdp",
        ),
        (
            "mdb = [{ group = \"10.0.0.1\", port = \"a\" }]",
            "'10.0.0.1'",
        ),
    ] {
        let error = LabFile::read(&format!("[networks.web]\n{line}\n")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("line 2, column "), "{line}: {error}");
        assert!(
            error.contains(line) && error.contains(told),
            "{line}: {error}"
        );
    }
    for (text, told) in [
        ("[endpoints.a]\nnetwork = \"web\"", "missing field `netns`"),
        (
            "[endpoints.a]\nroutes = [\"10.9.0.1/16=10.88.0.1\"]",
            "write 10.9.0.0/16",
        ),
        ("[endpoints.a.port]\nvlans = \"5000\"", "from 1 to 4094"),
        (
            "[[publications]]\nspec = \"80\"\nendpoint = \"a\"",
            "the host's port as well",
        ),
        ("[[rules]]\nname = \"a\"\naction = \"deny\"", "'deny'"),
        (
            "[[rules]]\nname = \"a\"\naction = \"drop\"\nfrom = \"10.0.0.0/33\"",
            "'10.0.0.0/33'",
        ),
        (
            "[[rules]]\nname = \"a\"\naction = \"drop\"\nport = \"25\"",
            "unknown field `port`",
        ),
        (
            "[[rules]]\nname = \"a\"\naction = \"drop\"\nports = \"0\"",
            "'0' names no ports",
        ),
        ("[mirrors.m]\ndirection = \"up\"", "'up'"),
        ("[mirrors.m]\nport = \"a\"", "unknown field `port`"),
        ("networks = [", "line 1"),
    ] {
        let error = LabFile::read(text).unwrap_err().to_string();
        assert!(
            error.contains("line ") && error.contains(told),
            "{text}: {error}"
        );
    }
}

#[test]
fn steps_come_in_the_order_in_which_each_finds_what_it_needs() {
    let lab = LabFile::read(LAB).unwrap();
    let steps = apply(&lab, &LabFile::default(), Rest::Stays).unwrap();
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    let expected = [
        "create namespace 'blue'",
        "create namespace 'green'",
        "create network 'lan' (192.168.7.0/24)",
        "create network 'web' (10.88.0.0/24)",
        "reserve 10.88.0.9 of network 'web'",
        "reserve 10.88.0.10 of network 'web' for db",
        "attach 'db' (green) to network 'web'",
        "attach 'web1' (blue) to network 'web'",
    ];
    assert_eq!(steps[..expected.len()], expected);
    let rest = steps[expected.len()..].join("\n");
    for part in [
        "set of port 'web1': rate_in = \"10mbit",
        "put port 'web1' into VLANs 1 pvid untagged, 10-20",
        "set 02:00:00:00:00:0a behind 'web1' in the FDB of network 'web'",
        "publish 8080:80/tcp for endpoint 'web1'\npublish 8080:8000/tcp for endpoint 'db'\n\
         change endpoint 'db' as a target of 8080:8000/tcp",
        "have 'web1' listen to 239.1.2.3 in the MDB of network 'web'\n\
         add rule 'no-smtp' last: drop network:web to outside tcp 25,587\n\
         add rule 'office' after rule no-smtp: allow 198.51.100.7/32 to endpoint:web1\n\
         publish",
        "set mirror 'm1': from = \"web1\", to = \"db\"\n\
         set mirror 'm2': network = \"lan\", to_file",
    ] {
        assert!(rest.contains(part), "{part} is not in\n{rest}");
    }
}

#[test]
fn what_contradicts_itself_or_what_is_settled_is_refused_by_name() {
    let lab = LabFile::read(LAB).unwrap();
    let nothing = LabFile::default();
    let refused = |text: &str| apply(&LabFile::read(text).unwrap(), &lab, Rest::Stays).unwrap_err();
    let settled = refused("[networks.web]\nmtu = 1500");
    assert!(matches!(settled, Error::Settled { key: "mtu", .. }));
    assert!(settled.to_string().contains("mtu 1400"), "{settled}");
    let nowhere = "[endpoints.a]\nnetwork = \"x\"\nnetns = \"b\"";
    assert!(matches!(refused(nowhere), Error::NoNetwork { .. }));
    let nobody = "[[publications]]\nspec = \"1:1\"\nendpoint = \"x\"";
    assert!(matches!(refused(nobody), Error::NoEndpoint { .. }));
    let twice = "[[publications]]\nspec = \"1:1\"\nendpoint = \"db\"\n[[publications]]\n\
                 spec = \"1:2\"\nendpoint = \"db\"";
    assert!(matches!(refused(twice), Error::Twice { .. }));
    let rule = |name: &str, to: &str| {
        format!("[[rules]]\nname = \"{name}\"\naction = \"drop\"\nto = \"{to}\"\n")
    };
    for side in ["x", "network:x", "endpoint:web", "network:db"] {
        let refused = refused(&rule("r", side));
        assert!(matches!(refused, Error::NoSide { .. }), "{side}: {refused}");
    }
    let either = format!("[networks.db]\n{}", rule("r", "db"));
    assert!(matches!(refused(&either), Error::Ambiguous { .. }));
    let twice = rule("r", "any") + &rule("r", "host");
    assert!(matches!(refused(&twice), Error::SameName { .. }));
    for mirror in [
        "to = \"db\"",
        "from = \"web1\"\nnetwork = \"web\"\nto = \"db\"",
        "from = \"web1\"",
        "from = \"web1\"\nto = \"db\"\nrotate = 2",
        "from = \"web1\"\nto_file = \"a.pcapng\"",
        "from = \"web1\"\nto_file = \"/a.pcapng\"\ningress = true",
    ] {
        let refused = refused(&format!("[mirrors.m]\n{mirror}"));
        assert!(matches!(refused, Error::Mirror { .. }), "{mirror}");
    }
    let nobody = "[mirrors.m]\nfrom = \"web1\"\nto = \"x\"";
    assert!(matches!(refused(nobody), Error::NoEndpoint { .. }));
    let nowhere = "[mirrors.m]\nnetwork = \"x\"\nto = \"db\"";
    assert!(matches!(refused(nowhere), Error::NoMirrored { .. }));
    // A card's port, and the host's beside it, come with the network.
    let card = "[networks.net]\nnic = { name = \"eth7\", take_address = true }\n\
                [mirrors.m]\nfrom = \"eth7\"\nto = \"net-host\"";
    assert!(apply(&LabFile::read(card).unwrap(), &nothing, Rest::Stays).is_ok());
    assert_eq!(down(&lab, &nothing, Namespaces::Go), Vec::new());
    let steps = down(&lab, &lab, Namespaces::Go);
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        steps,
        [
            "end mirror 'm1'",
            "end mirror 'm2'",
            "detach db, web1",
            "remove network 'lan'",
            "remove network 'web'",
            "remove rule 'no-smtp'",
            "remove rule 'office'",
            "remove namespace 'blue'",
            "remove namespace 'green'",
        ]
    );
}

/// What a step does to a lab, as the daemon does it.
fn carry_out(step: &Step, lab: &mut LabFile) {
    match step.clone() {
        Step::Unpublish(gone) => {
            let is_gone = |other: &PublicationFile| {
                (&other.spec, &other.endpoint) == (&gone.spec, &gone.endpoint)
            };
            lab.publications.retain(|other| !is_gone(other));
        }
        Step::Detach(names) => {
            lab.endpoints.retain(|name, _| !names.contains(name));
            lab.publications
                .retain(|other| !names.contains(&other.endpoint));
            for network in lab.networks.values_mut() {
                network.fdb.retain(|entry| !names.contains(&entry.port));
                network.mdb.retain(|entry| !names.contains(&entry.port));
            }
            lab.mirrors.retain(|_, mirror| {
                let mut ports = [&mirror.from, &mirror.to].into_iter().flatten();
                ports.all(|port| !names.contains(port))
            });
        }
        Step::RemoveNetwork(name) => {
            assert!(lab.endpoints.values().all(|e| e.network != name), "in use");
            lab.networks.remove(&name);
            lab.mirrors
                .retain(|_, mirror| mirror.network.as_ref() != Some(&name));
        }
        Step::RemoveNamespace(name) => assert!(lab.namespaces.remove(&name)),
        Step::CreateNamespace(name) => assert!(lab.namespaces.insert(name)),
        Step::CreateNetwork(name, file) => {
            let (fdb, mdb, reservations) = Default::default();
            let made = NetworkFile {
                fdb,
                mdb,
                reservations,
                ..*file
            };
            assert!(lab.networks.insert(name, made).is_none());
        }
        Step::ChangeNetwork(name, change) => {
            let network = lab.networks.get_mut(&name).unwrap();
            network.ageing_seconds = change.ageing_seconds.or(network.ageing_seconds);
            network.mcast_querier = change.mcast_querier.or(network.mcast_querier);
        }
        Step::Release(name, ip) => {
            let network = lab.networks.get_mut(&name).unwrap();
            network.reservations.retain(|other| other.ip != ip);
        }
        Step::Reserve(name, body) => {
            let network = lab.networks.get_mut(&name).unwrap();
            assert!(network.reservations.iter().all(|other| other.ip != body.ip));
            network.reservations.push(body);
        }
        Step::Attach(name, file) => {
            assert!(lab.networks.contains_key(&file.network));
            let port = PortFile {
                vlans: Some("1 pvid untagged".to_owned()),
                ..PortFile::default()
            };
            let made = EndpointFile { port, ..*file };
            assert!(lab.endpoints.insert(name, made).is_none());
        }
        Step::Reattach(name, file) => {
            let endpoint = lab.endpoints.get_mut(&name).unwrap();
            let port = endpoint.port.clone();
            if endpoint.network != file.network {
                let old = lab.networks.get_mut(&endpoint.network).unwrap();
                old.fdb.retain(|entry| entry.port != name);
                old.mdb.retain(|entry| entry.port != name);
            }
            *endpoint = EndpointFile { port, ..*file };
        }
        Step::SetPort(name, change) => {
            let port = &mut lab.endpoints.get_mut(&name).unwrap().port;
            port.mac_limit = change.mac_limit.or(port.mac_limit);
            port.flags.isolated = change.flags.isolated.or(port.flags.isolated);
        }
        Step::SetVlans {
            endpoint,
            there,
            wanted,
        } => {
            let port = &mut lab.endpoints.get_mut(&endpoint).unwrap().port;
            assert_eq!(port.vlans.replace(wanted), Some(there));
        }
        Step::SetFdb(name, entry) => {
            let network = lab.networks.get_mut(&name).unwrap();
            network.fdb.retain(|other| other.mac != entry.mac);
            network.fdb.push(entry);
        }
        Step::Publish(publication, _) => lab.publications.push(publication),
        Step::SetBalance(changed) | Step::SetTarget(changed) => {
            let is_it = |other: &&mut PublicationFile| {
                (&other.spec, &other.endpoint) == (&changed.spec, &changed.endpoint)
            };
            let publication = lab.publications.iter_mut().find(is_it).unwrap();
            publication.weight = changed.weight.or(publication.weight);
            publication.draining = changed.draining.or(publication.draining);
            publication.balance = changed.balance.or(publication.balance.take());
        }
        Step::AddListener(name, entry) => {
            let network = lab.networks.get_mut(&name).unwrap();
            network.mdb.push(entry);
        }
        Step::AddRule(rule, place) => {
            assert!(lab.rules.iter().all(|other| other.name != rule.name));
            let index = index_of(&lab.rules, &place);
            lab.rules.insert(index, rule);
        }
        Step::ChangeRule(rule) => {
            let mut rules = lab.rules.iter_mut();
            let there = rules.find(|other| other.name == rule.name).unwrap();
            *there = rule;
        }
        Step::MoveRule(name, place) => {
            let index = lab.rules.iter().position(|rule| rule.name == name);
            let rule = lab.rules.remove(index.unwrap());
            let index = index_of(&lab.rules, &place);
            lab.rules.insert(index, rule);
        }
        Step::RemoveRule(name) => {
            let before = lab.rules.len();
            lab.rules.retain(|rule| rule.name != name);
            assert_eq!(lab.rules.len() + 1, before);
        }
        Step::AddMirror(name, mirror) => {
            assert!(lab.mirrors.insert(name, mirror).is_none());
        }
        Step::RemoveMirror(name) => assert!(lab.mirrors.remove(&name).is_some()),
    }
}

/// Where a place in words is.
fn index_of(rules: &[RuleFile], place: &str) -> usize {
    let position = |name: &str| rules.iter().position(|rule| rule.name == name).unwrap();
    match place.split_once(':') {
        Some(("before", name)) => position(name),
        Some(("after", name)) => position(name) + 1,
        Some(_) | None => rules.len(),
    }
}

/// Rules out of a few names, in any order.
fn random_rules(rng: &mut fastrand::Rng, networks: &[String]) -> Vec<RuleFile> {
    let mut names = ["r0", "r1", "r2", "r3"];
    rng.shuffle(&mut names);
    let mut rules = Vec::new();
    for name in &names[..rng.usize(..=names.len())] {
        rules.push(RuleFile {
            name: (*name).to_owned(),
            action: "drop".to_owned(),
            from: match rng.choice(networks).filter(|_| rng.bool()) {
                // In a file the name may be bare.
                Some(network) => format!("network:{network}"),
                None => "any".to_owned(),
            },
            to: "outside".to_owned(),
            protocol: "tcp".to_owned(),
            source_ports: String::new(),
            ports: rng.u16(25..27).to_string(),
            uplink: None,
        });
    }
    rules
}

/// A lab out of a few names, so that two of them have much in common.
fn random(rng: &mut fastrand::Rng) -> LabFile {
    let mut lab = LabFile::default();
    for name in ["n0", "n1", "n2"] {
        if rng.bool() {
            continue;
        }
        let mut network = NetworkFile {
            ageing_seconds: rng.bool().then(|| rng.u32(10..12)),
            mcast_querier: rng.bool().then(|| rng.bool()),
            ..NetworkFile::default()
        };
        for host in 9..11 {
            if rng.bool() {
                network.reservations.push(ReservationBody {
                    ip: format!("10.0.0.{host}"),
                    holder: rng.bool().then(|| "e0".to_owned()),
                });
            }
        }
        lab.networks.insert(name.to_owned(), network);
    }
    let networks: Vec<String> = lab.networks.keys().cloned().collect();
    lab.rules = random_rules(rng, &networks);
    for name in ["e0", "e1", "e2", "e3"] {
        let Some(network) = rng.choice(&networks).filter(|_| rng.bool()) else {
            continue;
        };
        let netns = format!("ns{}", rng.u8(..3));
        lab.namespaces.insert(netns.clone());
        let mut endpoint = EndpointFile {
            network: network.clone(),
            netns,
            ifname: Some(format!("eth{}", rng.u8(..2))),
            ..EndpointFile::default()
        };
        endpoint.port.mac_limit = rng.bool().then(|| rng.u32(1..3));
        endpoint.port.flags.isolated = rng.bool().then(|| rng.bool());
        endpoint.port.vlans = rng.bool().then(|| "1-9, 10 pvid".to_owned());
        if rng.bool() {
            let networks = lab.networks.get_mut(network).unwrap();
            networks.fdb.push(FdbFile {
                mac: format!("02:00:00:00:00:0{}", &name[1..]),
                port: name.to_owned(),
                vlan: None,
                state: "static".to_owned(),
            });
            networks.mdb.push(ListenerFile {
                group: "239.1.1.1".to_owned(),
                port: name.to_owned(),
                vlan: None,
            });
        }
        if rng.bool() {
            let mirror = MirrorFile {
                from: Some(name.to_owned()),
                to_file: Some(format!("/m{}", rng.u8(..2))),
                ..MirrorFile::default()
            };
            lab.mirrors.insert(format!("m{}", rng.u8(..3)), mirror);
        }
        lab.endpoints.insert(name.to_owned(), endpoint);
        for host in 80..82 {
            if rng.bool() {
                lab.publications.push(PublicationFile {
                    spec: format!("{host}:{}/tcp", rng.u16(80..82)),
                    endpoint: name.to_owned(),
                    weight: rng.bool().then(|| rng.u16(1..3)),
                    draining: rng.bool().then(|| rng.bool()),
                    ..PublicationFile::default()
                });
            }
        }
    }
    lab
}

#[test]
fn from_any_state_and_after_any_step_a_plan_leads_to_what_is_wanted() {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..2_000 {
        let (before, wanted) = (random(&mut rng), random(&mut rng));
        let rest = match rng.bool() {
            true => Rest::Goes,
            false => Rest::Stays,
        };
        let mut there = LabFile::default();
        for step in apply(&before, &there.clone(), Rest::Stays).unwrap() {
            carry_out(&step, &mut there);
        }
        let steps = apply(&wanted, &there, rest).unwrap();
        // Ended somewhere, by a failure or by Ctrl-C.
        let done = rng.usize(..=steps.len());
        for step in &steps[..done] {
            carry_out(step, &mut there);
        }
        for step in apply(&wanted, &there, rest).unwrap() {
            carry_out(&step, &mut there);
        }
        assert_eq!(
            apply(&wanted, &there, rest),
            Ok(Vec::new()),
            "{wanted:#?}\n{there:#?}"
        );
        if rest == Rest::Goes {
            let names = |lab: &LabFile| {
                let networks: Vec<String> = lab.networks.keys().cloned().collect();
                let endpoints: Vec<String> = lab.endpoints.keys().cloned().collect();
                let rules: Vec<&str> = lab.rules.iter().map(|rule| rule.name.as_str()).collect();
                let mirrors: Vec<String> = lab.mirrors.keys().cloned().collect();
                let rules = rules.join(",");
                (networks, endpoints, lab.publications.len(), rules, mirrors)
            };
            assert_eq!(names(&there), names(&wanted));
        }
        for step in down(&there.clone(), &there, Namespaces::Go) {
            carry_out(&step, &mut there);
        }
        assert_eq!(there, LabFile::default());
    }
}
