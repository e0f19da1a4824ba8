//! `causeway run` as users of docker run know it: modes of the network, published ports, names, signals, exit
//! codes.

#![allow(clippy::unwrap_used)]

mod program;
mod runs;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::process::{Command, Stdio};

use control::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::daemon::{binary, path_text};
use tests::lab::{DEADLINE, Namespace, Running, ip, require_root, wait_for, wait_until};

use program::*;
use runs::*;

/// The namespaces of a process, by kind.
const OWN_NAMESPACES: &str =
    "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";

fn kinds_that_differ(one: &str, two: &str) -> BTreeSet<String> {
    let pairs = one.lines().zip(two.lines());
    let differ = pairs.filter(|(one, two)| one != two);
    let kinds = differ.filter_map(|(one, _)| one.split(':').next());
    kinds.map(str::to_owned).collect()
}

/// Covers: 15, 36, 38, 39
#[test]
fn host_shares_the_callers_network_and_none_has_only_lo() {
    if !require_root("host_shares_the_callers_network_and_none_has_only_lo") {
        return;
    }
    let site = Site::new("run-modes");
    let net = "/proc/thread-self/net/dev";
    let host = site.prints(&["--network", "host", "--", "cat", net]);
    assert!(
        host.contains("up0:") && host.contains("causeway0:"),
        "{host}"
    );
    let none = site.prints(&["--network", "none", "--", "cat", net]);
    assert!(none.contains("lo:") && !none.contains("eth0:"), "{none}");
    assert!(!none.contains("up0:"), "{none}");
    let by_bash = |script| ["--network", "none", "--", "bash", "-c", script];
    let error = site.fails(1, &by_bash("echo > /dev/tcp/192.0.2.2/80"));
    assert!(error.contains("Network is unreachable"), "{error}");
    let lo = site.prints(&by_bash("exec 3<>/dev/udp/127.0.0.1/9 && echo ok"));
    assert_eq!(lo, "ok\n");
    // Nothing but the network differs, unless something else was asked for.
    let shared = site.prints(&["--network", "host", "--", "sh", "-c", OWN_NAMESPACES]);
    let own = site.prints(&["--network", "none", "--", "sh", "-c", OWN_NAMESPACES]);
    assert_eq!(kinds_that_differ(&shared, &own), ["net".to_owned()].into());
    let named = ["--network", "none", "--hostname", "box", "--", "sh", "-c"];
    let named = site.prints(&[&named[..], &[OWN_NAMESPACES]].concat());
    let both = ["net".to_owned(), "uts".to_owned()].into();
    assert_eq!(kinds_that_differ(&shared, &named), both);
    for mode in ["host", "none", "container:x"] {
        let error = site.fails(125, &["--network", mode, "-p", "80:80", "--", "true"]);
        assert!(
            error.contains("--publish means nothing without a network"),
            "{error}"
        );
    }
    let error = site.fails(
        125,
        &["--network", "host", "--network", "web", "--", "true"],
    );
    assert!(error.contains("stands alone"), "{error}");
    for mode in ["host", "none"] {
        let error = site.daemon.refused(&["network", "create", mode]);
        assert!(error.contains("is a mode of"), "{error}");
    }
    site.assert_nothing_is_left();
}

/// Covers: 38
#[test]
fn a_program_without_a_network_is_attached_while_it_runs() {
    if !require_root("a_program_without_a_network_is_attached_while_it_runs") {
        return;
    }
    let site = Site::new("run-none");
    let mut child = site.host.start(
        site.daemon
            .command(&[
                "run",
                "--network",
                "none",
                "--",
                "sh",
                "-c",
                "echo $$; exec sleep 600",
            ])
            .stdout(Stdio::piped()),
    );
    let mut pid = String::new();
    let out = child.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut pid).unwrap();
    let pid = pid.trim();
    let started = Started {
        site: &site,
        child: Some(child),
    };
    site.daemon
        .run(&["attach", "--pid", pid, "--network", "web", "--name", "late"]);
    let ns = Namespace::new("late", Netns::from_pid(pid.parse().unwrap()).unwrap());
    let _server = echo(&ns, "0.0.0.0:80");
    assert_eq!(seen_address(&site.host, "10.88.0.2:80"), ip("10.88.0.1"));
    drop(ns);
    started.end();
}

/// Covers: 35, 37
#[test]
fn a_shared_sandbox_has_one_address_one_set_of_ports_and_the_same_names() {
    if !require_root("a_shared_sandbox_has_one_address_one_set_of_ports_and_the_same_names") {
        return;
    }
    let site = Site::new("run-shared");
    let api = site.start(&["--network", "web", "--name", "api"]);
    let ns = site.sandbox("api");
    let _server = echo(&ns, "127.0.0.1:9000");
    let beside =
        |script: &str| site.prints(&["--network", "container:api", "--", "bash", "-c", script]);
    // By lo, as in a pod.
    let seen = beside("exec 3<>/dev/tcp/127.0.0.1/9000; head -1 <&3");
    assert_eq!(seen.trim(), "127.0.0.1");
    let inode = beside("readlink /proc/self/ns/net");
    assert_eq!(inode.trim(), format!("net:[{}]", ns.netns().id().inode()));
    let names = beside("cat /etc/resolv.conf; getent hosts api");
    assert!(names.contains("nameserver 10.88.0.1"), "{names}");
    assert!(names.contains("10.88.0.2"), "{names}");
    // By a process of it, too; and what ends beside it takes nothing along.
    let (_, endpoints) = (
        beside("true"),
        site.daemon.json(&["status"])["endpoints"].clone(),
    );
    assert_eq!(endpoints, 1);
    let path = ns.path();
    let by_path = format!("container:{}", path_text(&path));
    let same = ["--network", &by_path, "--", "readlink", "/proc/self/ns/net"];
    assert_eq!(site.prints(&same), inode);
    let error = site.fails(125, &["--network", "container:nobody", "--", "true"]);
    assert!(error.contains("'nobody' is no endpoint either"), "{error}");
    drop(ns);
    api.end();
    site.assert_nothing_is_left();
}

/// Covers: 57, 58, 59, 61
#[test]
fn ports_are_published_in_every_form_that_docker_has() {
    if !require_root("ports_are_published_in_every_form_that_docker_has") {
        return;
    }
    let site = Site::new("run-publish");
    site.host.add_address("up0", "192.0.2.11/24");
    let forms = [
        "80",
        "8080:80",
        "192.0.2.11::80",
        "192.0.2.11:8081:80",
        "8090-8092:80-82",
        "53:53/udp",
    ];
    let words: Vec<&str> = forms.iter().flat_map(|form| ["-p", form]).collect();
    let words = [&["--network", "web", "--name", "api"], &words[..]].concat();
    let api = site.start(&words);
    let ns = site.sandbox("api");
    wait_until(DEADLINE, "all is published", || {
        site.published("api").len() == forms.len()
    });
    let _servers = [echo(&ns, "0.0.0.0:80"), echo(&ns, "0.0.0.0:82")];
    let port_of = |index: usize| {
        site.published("api")[index]["host_port_first"]
            .as_u64()
            .unwrap()
    };
    let reached = |address: &str, port: u64| {
        let seen = seen_address(&site.outside, &format!("{address}:{port}"));
        assert_eq!(seen, ip("192.0.2.2"), "{address}:{port} keeps the client");
    };
    for address in ["192.0.2.1", "192.0.2.11"] {
        reached(address, port_of(0));
        reached(address, 8_080);
        reached(address, 8_090);
        reached(address, 8_092);
    }
    // With an address, there and nowhere else.
    for port in [port_of(2), 8_081] {
        reached("192.0.2.11", port);
        assert!(unreachable(&site.outside, &format!("192.0.2.1:{port}")));
    }
    let server = ns.run(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
    let client = site.outside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.send_to(b"?", "192.0.2.1:53").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(
        peer,
        client
            .local_addr()
            .map(|own| (ip("192.0.2.2"), own.port()).into())
            .unwrap()
    );
    let listed = site.daemon.run(&["port", "api"]);
    for line in [
        "80/tcp -> 0.0.0.0:8080",
        "80/tcp -> 192.0.2.11:8081",
        "82/tcp -> 0.0.0.0:8092",
        "53/udp -> 0.0.0.0:53",
    ] {
        assert!(
            listed.lines().any(|listed| listed == line),
            "{line}: {listed}"
        );
    }
    drop((ns, server));
    api.end();
    site.assert_nothing_is_left();
    for wrong in [
        "0",
        "70000:80",
        "80:",
        "a:b",
        "8000-8001:80",
        "192.0.2.300::80",
        "80/icmp",
    ] {
        let error = site.fails(125, &["--network", "web", "-p", wrong, "--", "true"]);
        assert!(error.contains(wrong), "{error}");
    }
    site.assert_nothing_is_left();
}

/// Covers: 60
#[test]
fn what_is_exposed_is_published_on_free_ports_when_all_is_to_be() {
    if !require_root("what_is_exposed_is_published_on_free_ports_when_all_is_to_be") {
        return;
    }
    let site = Site::new("run-all");
    let exposed = [
        "--network",
        "web",
        "--expose",
        "80",
        "--expose",
        "7000-7009/udp",
    ];
    let quiet = site.start(&[&exposed[..], &["--name", "quiet"]].concat());
    let loud = site.start(&[&exposed[..], &["--name", "loud", "-P"]].concat());
    let ns = site.sandbox("loud");
    wait_until(DEADLINE, "all is published", || {
        site.published("loud").len() == 2
    });
    assert_eq!(site.published("quiet"), Vec::<Value>::new());
    let listed = site.published("loud");
    let port = |index: usize, which: &str| listed[index][which].as_u64().unwrap();
    assert_eq!(
        port(1, "host_port_last") - port(1, "host_port_first"),
        9,
        "a range is one rule"
    );
    let _server = echo(&ns, "0.0.0.0:80");
    let address = format!("192.0.2.1:{}", port(0, "host_port_first"));
    assert_eq!(seen_address(&site.outside, &address), ip("192.0.2.2"));
    drop(ns);
    quiet.end();
    loud.end();
    for wrong in ["8080:80", "80/icmp", "0", "x", "9-1", "127.0.0.1::80"] {
        let error = site.fails(125, &["--network", "web", "--expose", wrong, "--", "true"]);
        assert!(
            error.contains("cannot be exposed") && error.contains(wrong),
            "{error}"
        );
    }
    site.assert_nothing_is_left();
}

/// Covers: 46
#[test]
fn a_linked_name_is_known_in_one_sandbox_alone() {
    if !require_root("a_linked_name_is_known_in_one_sandbox_alone") {
        return;
    }
    let site = Site::new("run-link");
    let daemon = &site.daemon;
    daemon.run(&["network", "create", "other", "--subnet", "10.89.0.0/24"]);
    let db = site.start(&["--network", "web", "--name", "db"]);
    drop(site.sandbox("db"));
    let app = [
        "--network",
        "web",
        "--name",
        "app",
        "--link",
        "db:database",
        "--",
    ];
    let hosts = site.prints(&[&app[..], &["cat", "/etc/hosts"]].concat());
    let own = fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(hosts, format!("10.88.0.2\tdatabase db\n{own}"));
    let found = site.prints(&[&app[..], &["getent", "hosts", "database"]].concat());
    assert!(found.starts_with("10.88.0.2"), "{found}");
    // The name service alone, without the file: it is asked by the endpoint that has the link.
    let app = site.start(&["--network", "web", "--name", "app", "--link", "db:database"]);
    drop(site.sandbox("app"));
    let why = |from: &str| daemon.json(&["dns", "why", "database", "--from", from])["code"].clone();
    assert_eq!(why("app"), "NOERROR");
    assert_ne!(why("db"), "NOERROR", "nobody else's name");
    // It follows: another endpoint of that name.
    db.end();
    let stranger = [
        "--network",
        "container:app",
        "--",
        "getent",
        "hosts",
        "database",
    ];
    assert_eq!(
        site.output(&stranger).status.code(),
        Some(2),
        "nobody is there"
    );
    let db = site.start(&["--network", "web", "--name", "db", "--ip", "10.88.0.77"]);
    drop(site.sandbox("db"));
    let found = site.prints(&stranger);
    assert!(found.starts_with("10.88.0.77"), "{found}");
    for (link, part) in [
        ("nobody:x", "there is no endpoint 'nobody'"),
        ("db:", "cannot be a name"),
        ("db:a b", "cannot be a name"),
    ] {
        let error = site.fails(125, &["--network", "web", "--link", link, "--", "true"]);
        assert!(error.contains(part), "{error}");
    }
    let error = site.fails(125, &["--network", "other", "--link", "db", "--", "true"]);
    assert!(error.contains("add --network web"), "{error}");
    app.end();
    db.end();
    site.assert_nothing_is_left();
}

/// Covers: 50
#[test]
fn a_program_has_the_addresses_names_and_servers_that_were_asked_for() {
    if !require_root("a_program_has_the_addresses_names_and_servers_that_were_asked_for") {
        return;
    }
    let site = Site::new("run-asked");
    let dual = [
        "network",
        "create",
        "dual",
        "--subnet",
        "10.90.0.0/24",
        "--subnet6",
    ];
    site.daemon.run(&[&dual[..], &["fd00:90::/64"]].concat());
    let words = [
        "--network",
        "dual",
        "--ip",
        "10.90.0.7",
        "--ip6",
        "fd00:90::7",
        "--mac",
        "02:00:00:00:00:07",
        "--hostname",
        "seven.example",
        "--",
        "bash",
        "-c",
        "hostname; cat /etc/hosts /sys/class/net/eth0/address /proc/thread-self/net/if_inet6 2>/dev/null; \
         getent ahosts seven.example",
    ];
    let text = site.prints(&words);
    assert!(
        text.starts_with("seven.example\n10.90.0.7\tseven.example\n"),
        "{text}"
    );
    assert!(text.contains("fd00:90::7\tseven.example"), "{text}");
    assert!(text.contains("fd000090000000000000000000000007"), "{text}");
    let here = Command::new("hostname").output().unwrap().stdout;
    assert!(
        !String::from_utf8(here).unwrap().contains("seven"),
        "the host's own stays"
    );
    let four = [
        "--network",
        "dual",
        "--ip6",
        "none",
        "--",
        "cat",
        "/proc/thread-self/net/if_inet6",
    ];
    assert!(!site.prints(&four).contains("fd0000900000"));
    // Without a network's service, the servers that were asked for are the program's own.
    let dns = [
        "--network",
        "none",
        "--dns",
        "192.0.2.53",
        "--",
        "cat",
        "/etc/resolv.conf",
    ];
    let shown = site.prints(&dns);
    assert!(shown.starts_with("nameserver 192.0.2.53\n"), "{shown}");
    for (option, value) in [("--hostname", "a b"), ("--ip", "10.91.0.1"), ("--mac", "x")] {
        let error = site.fails(125, &["--network", "dual", option, value, "--", "true"]);
        assert!(error.contains(value), "{error}");
    }
    site.assert_nothing_is_left();
}

#[test]
fn exit_codes_and_signals_are_dockers_and_the_terminal_is_the_programs() {
    if !require_root("exit_codes_and_signals_are_dockers_and_the_terminal_is_the_programs") {
        return;
    }
    let site = Site::new("run-codes");
    for mode in [
        &["--network", "web"][..],
        &["--network", "none"],
        &["--network", "host"],
    ] {
        let code = |words: &[&str]| site.output(&[mode, &["--"], words].concat()).status.code();
        assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7));
        assert_eq!(code(&["sh", "-c", "kill -KILL $$"]), Some(128 + 9));
        assert_eq!(code(&["/no/such/program"]), Some(127));
        assert_eq!(code(&["no-such-program"]), Some(127));
        assert_eq!(code(&["/etc/passwd"]), Some(126));
        assert_eq!(code(&["/etc"]), Some(126));
    }
    let error = site.fails(125, &["--network", "nope", "--", "true"]);
    assert!(error.contains("'nope'"), "{error}");
    let mut command = Command::new(binary());
    command.args([
        "--socket",
        "/nowhere/socket",
        "run",
        "--network",
        "web",
        "--",
        "true",
    ]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");

    for signal in ["INT", "TERM", "HUP", "QUIT", "ALRM", "USR1", "USR2"] {
        let script = format!(
            "trap 'echo got {signal}; exit 3' {signal}; echo ready; while read x; do :; done"
        );
        let words = ["run", "--network", "web", "--", "bash", "-c", &script];
        let causeway = site.daemon.command(&words);
        // A shell that started the tests in the background has them ignore some, and what is ignored
        // stays so.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(causeway.get_program());
        command.args(causeway.get_args());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running(site.host.start(&mut command));
        let mut out = BufReader::new(child.0.stdout.take().unwrap());
        let mut said = String::new();
        out.read_line(&mut said).unwrap();
        let sent: Signal = format!("SIG{signal}").parse().unwrap();
        kill(Pid::from_raw(child.0.id().cast_signed()), sent).unwrap();
        let ended = wait_for(DEADLINE, signal, || child.0.try_wait().unwrap());
        assert_eq!(ended.code(), Some(3), "{signal}");
        out.read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("ready\ngot {signal}\n"));
    }
    // What is written to us is read by the program.
    let mut command = site
        .daemon
        .command(&["run", "--network", "web", "--", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = site.host.start(&mut command);
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"hello\n");
    site.assert_nothing_is_left();
}
