//! A lab in one file: applied, applied again, half-done, exported and taken down.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use control::netns::Netns;
use tests::daemon::{Daemon, path_text};
use tests::lab::{Lab, Namespace, ip, require_root};
use tests::talk::{ask_tcp, serve_tcp};

/// Names of namespaces of this test, which vanish with it.
struct Named<const N: usize>([String; N]);

impl<const N: usize> Named<N> {
    fn new(labels: [&str; N]) -> Self {
        Self(labels.map(|label| format!("cw-{label}-{}", std::process::id())))
    }
}

impl<const N: usize> Drop for Named<N> {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Netns::remove_named(name);
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// A lab with a little of everything.
fn everything([blue, green]: [&str; 2], copies: &Path) -> String {
    let copies = path_text(copies);
    format!(
        r#"
namespaces = ["{blue}", "{green}"]

[networks.web]
subnet = "10.88.0.0/24"
ip_range = "10.88.0.128/25"
subnet6 = "fd00:88::/64"
mtu = 1400
ageing_seconds = 60
mcast_querier = true
nat_filtering = "endpoint-independent"
dns = ["192.0.2.53"]
reservations = [{{ ip = "10.88.0.9" }}, {{ ip = "10.88.0.200", for = "green" }}]
fdb = [{{ mac = "02:00:00:00:00:07", port = "blue" }}]
mdb = [{{ group = "239.1.2.3", port = "blue" }}]

[networks.back]
subnet = "10.89.0.0/24"
internal = true

[endpoints.blue]
network = "web"
netns = "{blue}"
mac = "02:00:00:00:00:01"
aliases = ["www"]
routes = ["10.9.0.0/16=10.88.0.254"]

[endpoints.blue.port]
vlans = "1 pvid untagged, 10-20"
mac_limit = 7
storm_broadcast = "1000"
rate_out = "100mbit"
flags = {{ isolated = true }}
impair_in = {{ delay = "1ms" }}

[endpoints.green]
network = "web"
netns = "{green}"
ip6 = "none"
backend = "packet"

[endpoints.green-back]
network = "back"
netns = "{green}"
ifname = "eth1"
ip = "10.89.0.77"

[[publications]]
spec = "8080:80"
endpoint = "blue"
balance = "source-hash"

[[publications]]
spec = "8080:8000"
endpoint = "green"
weight = 3
draining = true

[[publications]]
spec = "127.0.0.1:5353:53/udp"
endpoint = "green"
from = "127.0.0.0/8"

[[rules]]
name = "no-smtp"
action = "drop"
from = "web"
to = "outside"
protocol = "tcp"
ports = "25,465-465"

[[rules]]
name = "admin"
action = "allow"
from = "192.0.2.0/24"
to = "blue"

[mirrors.shown]
from = "blue"
direction = "in"
to = "green-back"

[mirrors.written]
network = "web"
to_file = "{copies}"
limit_size = 1048576
"#
    )
}

/// Covers: 26
#[test]
fn a_lab_is_applied_once_and_exported_as_one_that_comes_to_the_same() {
    if !require_root("a_lab_is_applied_once_and_exported_as_one_that_comes_to_the_same") {
        return;
    }
    let lab = Lab::new("apply");
    let (host, outside) = lab.host_and_outside();
    let named = Named::new(["blue", "green"]);
    let [blue, green] = &named.0;
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    let file = lab.dir().join("lab.toml");
    let path = path_text(&file);
    let copies = lab.dir().join("copies.pcapng");
    write(&file, &everything([blue, green], &copies));
    let planned = daemon.run(&["apply", "-f", path, "--dry-run"]);
    assert!(
        planned.contains("create network 'web' (10.88.0.0/24, fd00:88::/64)"),
        "{planned}"
    );
    assert!(
        daemon
            .json(&["network", "ls"])
            .as_array()
            .unwrap()
            .is_empty(),
        "a dry run does nothing"
    );
    let done = daemon.run(&["apply", "-f", path]);
    assert_eq!(done, planned);
    assert_eq!(daemon.run(&["apply", "-f", path]), "nothing to do\n");
    let network = &daemon.json(&["network", "ls"])[1];
    assert_eq!(
        (&network["name"], &network["mtu"]),
        (&"web".into(), &1_400.into())
    );
    let green_ns = Namespace::new("green", Netns::from_name(green).unwrap());
    assert!(green_ns.link("eth0").mac.is_some() && green_ns.link("eth1").mac.is_some());
    let ports = daemon.run(&["port", "green"]);
    assert!(ports.contains("8000/tcp -> 0.0.0.0:8080"), "{ports}");

    // What was exported is all of it: nothing is left to do, and elsewhere it makes the same.
    let exported = daemon.run(&["export"]);
    assert!(
        exported.contains("10.88.0.200") && exported.contains("source-hash"),
        "{exported}"
    );
    for part in [
        "group = \"239.1.2.3\"",
        "from = \"network:web\"",
        "ports = \"25,465\"",
        "[mirrors.shown]",
        "limit_size = 1048576",
    ] {
        assert!(exported.contains(part), "{part} is not in\n{exported}");
    }
    write(&file, &exported);
    assert_eq!(daemon.run(&["apply", "-f", path]), "nothing to do\n");
    daemon.run(&["down", "-f", path, "--namespaces"]);
    assert!(Netns::from_name(blue).is_err());
    assert_eq!(daemon.run(&["export"]), "");
    daemon.run(&["apply", "-f", path]);
    assert_eq!(daemon.run(&["export"]), exported);

    // And it works.
    let blue_ns = Namespace::new("blue", Netns::from_name(blue).unwrap());
    serve_tcp(&blue_ns, "0.0.0.0:80");
    assert_eq!(ask_tcp(&outside, "192.0.2.1:8080", 1_000), ip("192.0.2.2"));
    daemon.run(&["down", "--all"]);
    assert_eq!(daemon.run(&["export"]), "");
    assert!(
        Netns::from_name(blue).is_ok(),
        "namespaces stay unless they are asked for"
    );
}

#[test]
fn a_lab_that_was_applied_in_part_is_gone_on_with_and_a_changed_one_is_followed() {
    if !require_root("a_lab_that_was_applied_in_part_is_gone_on_with_and_a_changed_one_is_followed")
    {
        return;
    }
    let lab = Lab::new("partial");
    let host = lab.namespace("host");
    let [a, b] = lab.namespaces(["a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let file = lab.dir().join("lab.toml");
    let path = path_text(&file);
    let missing = lab.dir().join("nothing-here");
    let text = |second: &str| {
        format!(
            "[networks.n]\nsubnet = \"10.88.0.0/24\"\n\
             [endpoints.a]\nnetwork = \"n\"\nnetns = \"{}\"\n\
             [endpoints.b]\nnetwork = \"n\"\nnetns = \"{second}\"\n\
             [[publications]]\nspec = \"8080:80\"\nendpoint = \"a\"\n",
            path_text(&a.path()),
        )
    };
    write(&file, &text(path_text(&missing)));
    let failed = daemon.refused(&["apply", "-f", path]);
    assert!(
        failed.contains("cannot attach 'b'") && failed.contains("step 3 of 4"),
        "{failed}"
    );
    assert!(failed.contains("nothing-here"), "{failed}");
    let one = daemon.json(&["network", "ls"]);
    assert_eq!(one[0]["endpoints"].as_array().unwrap().len(), 1);
    write(&file, &text(path_text(&b.path())));
    let rest = daemon.run(&["apply", "-f", path]);
    assert_eq!(rest.lines().count(), 2, "{rest}");

    // Something is changed by hand, and put right; what the file does not name goes only if asked.
    daemon.run(&["port", "set", "a", "isolated", "on"]);
    daemon.run(&["network", "create", "other", "--subnet", "10.99.0.0/24"]);
    let changed = text(path_text(&b.path()))
        .replace("8080:80\"", "8081:80\"")
        .replace(
            "[endpoints.b]",
            "ip = \"10.88.0.50\"\n[endpoints.a.port]\nflags = { isolated = false }\n[endpoints.b]",
        );
    write(&file, &changed);
    let steps = daemon.json(&["apply", "-f", path, "--prune", "--dry-run"]);
    let steps: Vec<&str> = steps
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(steps[0], "withdraw 8080:80/tcp from endpoint 'a'");
    assert_eq!(steps[1], "remove network 'other'");
    daemon.run(&["apply", "-f", path]);
    assert!(
        daemon.run(&["port", "a"]).contains(":8080"),
        "without --prune it stays"
    );
    daemon.run(&["apply", "-f", path, "--prune"]);
    assert_eq!(
        daemon.run(&["apply", "-f", path, "--prune"]),
        "nothing to do\n"
    );
    let view = &daemon.json(&["network", "ls"])[0]["endpoints"][0];
    assert_eq!(view["addresses"][0], "10.88.0.50/24");
    assert!(!daemon.run(&["port", "a"]).contains(":8080"));
    daemon.run(&["down", "-f", path]);
    assert_eq!(daemon.run(&["down", "-f", path]), "nothing to do\n");
}

#[test]
fn rules_of_a_file_come_in_its_order_and_others_stay_between_them_or_go() {
    if !require_root("rules_of_a_file_come_in_its_order_and_others_stay_between_them_or_go") {
        return;
    }
    let lab = Lab::new("laborder");
    let (host, _outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    let file = lab.dir().join("lab.toml");
    let path = path_text(&file);
    let names = || {
        let rules = daemon.json(&["rule", "ls"]);
        let rules = rules.as_array().unwrap().iter();
        let names: Vec<&str> = rules.map(|rule| rule["name"].as_str().unwrap()).collect();
        names.join(" ")
    };
    let rule = |name: &str, rest: &str| {
        format!("[[rules]]\nname = \"{name}\"\naction = \"drop\"\n{rest}\n")
    };
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    for name in ["c", "other", "a"] {
        daemon.run(&["rule", "add", name, "drop", "--to", "n"]);
    }
    let tcp = "to = \"n\"\nprotocol = \"tcp\"\nuplink = \"up0\"";
    let text = "[networks.n]\n".to_owned() + &rule("a", "to = \"n\"") + &rule("b", tcp);
    let text = text + &rule("c", "from = \"10.0.0.1\"");
    write(&file, &text);
    let planned = daemon.run(&["apply", "-f", path, "--dry-run"]);
    assert_eq!(names(), "c other a");
    assert_eq!(daemon.run(&["apply", "-f", path]), planned);
    assert_eq!(names(), "other a b c");
    let rules = daemon.json(&["rule", "ls"]);
    let asked = |index: usize| ["from", "to", "protocol", "uplink"].map(|key| &rules[index][key]);
    assert_eq!(asked(2), ["any", "network:n", "tcp", "up0"]);
    assert_eq!(asked(3)[..3], ["10.0.0.1/32", "any", "any"]);
    assert_eq!(daemon.run(&["apply", "-f", path]), "nothing to do\n");
    daemon.run(&["apply", "-f", path, "--prune"]);
    assert_eq!(names(), "a b c");

    // What would fit nothing cannot be made anew, and is told of.
    daemon.run(&["network", "create", "m", "--subnet", "10.89.0.0/24"]);
    daemon.run(&["rule", "add", "late", "drop", "--to", "m"]);
    daemon.run(&["network", "rm", "m"]);
    let export = daemon.output(&["export"]);
    let told = String::from_utf8_lossy(&export.stderr).into_owned();
    assert!(
        told.contains("'late'") && told.contains("network:m"),
        "{told}"
    );
    let exported = String::from_utf8(export.stdout).unwrap();
    assert!(!exported.contains("late"), "{exported}");
    write(&file, &exported);
    assert_eq!(daemon.run(&["apply", "-f", path]), "nothing to do\n");
    daemon.run(&["down", "-f", path]);
    assert_eq!(names(), "late");
}

#[test]
fn a_file_that_is_no_lab_is_refused_with_line_and_key_and_changes_nothing() {
    if !require_root("a_file_that_is_no_lab_is_refused_with_line_and_key_and_changes_nothing") {
        return;
    }
    let lab = Lab::new("nolab");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let file = lab.dir().join("lab.toml");
    let path = path_text(&file);
    let long = "x".repeat(300);
    for (text, told) in [
        (
            "[networks.n]\nsubnets = \"10.88.0.0/24\"",
            &["line 2", "`subnets`"][..],
        ),
        (
            "[networks.n]\nmtu = \"1500\"",
            &["line 2", "column 7", "mtu"],
        ),
        ("[networks.n", &["line 1"]),
        (
            "[networks.n]\nsubnet = \"10.88.0.5/24\"",
            &["create network 'n'", "10.88.0.0/24"],
        ),
        (&format!("[networks.{long}]"), &["1 to 63 letters"]),
        ("[networks.\"a/b\"]", &["'a/b' cannot be a name"]),
        (
            "[endpoints.a]\nnetwork = \"n\"\nnetns = \"b\"",
            &["[networks.n]"],
        ),
        (
            "[[rules]]\nname = \"r\"\naction = \"deny\"",
            &["line 3", "column 10", "'deny'", "allow"],
        ),
        (
            "[[rules]]\nname = \"r\"\naction = \"drop\"\nto = \"nowhere\"",
            &["rule 'r'", "'nowhere'"],
        ),
        ("[mirrors.m]\nto = \"a\"", &["mirrors.m", "'from'"]),
    ] {
        write(&file, text);
        let refused = daemon.refused(&["apply", "-f", path]);
        for part in told {
            assert!(refused.contains(part), "{text}: {part}: {refused}");
        }
    }
    let refused = daemon.refused(&["apply", "-f", "/nowhere/lab.toml"]);
    assert!(
        refused.contains("cannot read /nowhere/lab.toml"),
        "{refused}"
    );
    assert_eq!(daemon.run(&["export"]), "");
}
