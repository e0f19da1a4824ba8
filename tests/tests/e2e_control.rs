//! The real program on a host of its own: what a user does, and what a user gets wrong.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use control::link::inet::Route;
use dataplane_core::addr::Prefix;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::daemon::{Daemon, binary, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, block_on, connect, ip, require_root, wait_until};

/// Everything of a namespace that `clean` must leave as it was.
#[derive(Debug, PartialEq)]
struct Footprint {
    links: Vec<(String, String)>,
    addresses: Vec<(u32, Prefix)>,
    routes: Vec<Route>,
    reserved_ports: String,
}

fn footprint(ns: &Namespace) -> Footprint {
    let netlink = ns.netlink();
    let links = block_on(netlink.links()).unwrap();
    let addresses = block_on(netlink.addresses()).unwrap();
    Footprint {
        links: links
            .into_iter()
            .map(|link| (link.name, link.qdisc))
            .collect(),
        // Without the tentative state, which ends by itself.
        addresses: addresses.into_iter().map(|x| (x.link, x.prefix)).collect(),
        routes: block_on(netlink.routes()).unwrap(),
        reserved_ports: ns.sysctl("net/ipv4/ip_local_reserved_ports"),
    }
}

/// Sends back what comes, with the client's address in front, until the listener is dropped.
fn echo(ns: &Namespace, address: &str) -> JoinHandle<()> {
    let listener = ns.run(|| TcpListener::bind(address)).unwrap();
    ns.spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = writeln!(stream, "{peer}");
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    })
}

/// Connects from `ns` and returns the address that the other side sees.
fn seen_address(ns: &Namespace, address: &str) -> IpAddr {
    let address: SocketAddr = address.parse().unwrap();
    let stream = ns.run(|| connect(DEADLINE, address));
    seen_on(&stream)
}

fn seen_on(stream: &TcpStream) -> IpAddr {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut line)
        .unwrap();
    let canonical: IpAddr = line.trim().parse().unwrap();
    canonical.to_canonical()
}

/// Whether a connection is refused or unanswered; quick, because answers take microseconds here.
fn unreachable(ns: &Namespace, address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let patience = std::time::Duration::from_millis(300);
    ns.run(|| TcpStream::connect_timeout(&address, patience))
        .is_err()
}

/// A host with an uplink to an outside: 192.0.2.1 and 192.0.2.2.
fn host_and_outside(lab: &Lab) -> (Namespace, Namespace) {
    let (host, outside) = (lab.namespace("host"), lab.namespace("outside"));
    lab.cable(&host, "up0", &outside, "eth0");
    host.add_address("up0", "192.0.2.1/24");
    outside.add_address("eth0", "192.0.2.2/24");
    host.add_default_route("up0", "192.0.2.2");
    (host, outside)
}

#[test]
fn two_namespaces_on_a_network_talk_and_clean_leaves_nothing() {
    if !require_root("two_namespaces_on_a_network_talk_and_clean_leaves_nothing") {
        return;
    }
    let lab = Lab::new("talk");
    let (host, a, b) = (
        lab.namespace("host"),
        lab.namespace("a"),
        lab.namespace("b"),
    );
    let (host_before, a_before) = (footprint(&host), footprint(&a));
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    assert_eq!(daemon.attach(&a, "web", "a", &[]), "10.88.0.2");
    assert_eq!(
        daemon.attach(&b, "web", "b", &["--ip", "10.88.0.9"]),
        "10.88.0.9"
    );
    assert_eq!(b.mac("eth0").to_string(), "02:42:0a:58:00:09");
    assert_eq!(b.link("eth0").qdisc, "noqueue");

    let _server = echo(&b, "10.88.0.9:7000");
    assert_eq!(seen_address(&a, "10.88.0.9:7000"), ip("10.88.0.2"));
    // The host reaches both, as the gateway.
    assert_eq!(seen_address(&host, "10.88.0.9:7000"), ip("10.88.0.1"));
    let _on_host = echo(&host, "0.0.0.0:7001");
    assert_eq!(seen_address(&a, "10.88.0.1:7001"), ip("10.88.0.2"));

    let fdb = daemon.json(&["fdb", "show", "web"]);
    let ports: Vec<_> = fdb
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["port_name"])
        .collect();
    assert_eq!(ports, ["a", "b"], "{fdb}");
    let status = daemon.json(&["status"]);
    assert_eq!(
        (&status["networks"], &status["endpoints"]),
        (&1.into(), &2.into())
    );
    assert_eq!(status["warnings"], serde_json::json!([]));

    daemon.run(&["detach", "a"]);
    assert_eq!(footprint(&a), a_before);
    let busy = daemon.refused(&["network", "rm", "web"]);
    assert!(busy.contains("has endpoints: b"), "{busy}");
    let cleaned = daemon.clean();
    assert!(cleaned.contains("removed endpoint b"), "{cleaned}");
    assert_eq!(footprint(&host), host_before);
    assert_eq!(footprint(&b), a_before, "b is as a was");
    assert!(!daemon.state_dir().exists());
}

#[test]
fn the_way_out_is_translated_and_the_way_in_keeps_the_client() {
    if !require_root("the_way_out_is_translated_and_the_way_in_keeps_the_client") {
        return;
    }
    let lab = Lab::new("nat");
    let (host, outside) = host_and_outside(&lab);
    host.set_sysctl("net/ipv4/ip_local_reserved_ports", "5000,60000-60010");
    let before = footprint(&host);
    let (web, db, quiet) = (
        lab.namespace("web"),
        lab.namespace("db"),
        lab.namespace("quiet"),
    );
    let mut daemon = Daemon::start(&lab, &host, &[]);
    for words in [["web", "10.88.0.0/24"], ["db", "10.89.0.0/24"]] {
        daemon.run(&["network", "create", words[0], "--subnet", words[1]]);
    }
    daemon.run(&[
        "network",
        "create",
        "in",
        "--subnet",
        "10.90.0.0/24",
        "--internal",
    ]);
    daemon.attach(&web, "web", "web", &[]);
    daemon.attach(&db, "db", "db", &[]);
    daemon.attach(&quiet, "in", "quiet", &[]);
    assert_eq!(
        host.sysctl("net/ipv4/ip_local_reserved_ports"),
        "5000,49152-65535",
        "merged with what was there"
    );

    let _outside = echo(&outside, "192.0.2.2:80");
    let _web = echo(&web, "0.0.0.0:80");
    assert_eq!(seen_address(&web, "192.0.2.2:80"), ip("192.0.2.1"), "SNAT");
    let sessions = daemon.json(&["nat", "sessions"]);
    assert_eq!(
        sessions[0]["inside"].as_str().unwrap().split(':').next(),
        Some("10.88.0.2")
    );
    assert_eq!(
        seen_address(&host, "192.0.2.2:80"),
        ip("192.0.2.1"),
        "the host's own"
    );

    daemon.run(&["publish", "add", "8080:80", "web"]);
    assert_eq!(
        seen_address(&outside, "192.0.2.1:8080"),
        ip("192.0.2.2"),
        "client kept"
    );
    assert_eq!(
        seen_address(&host, "127.0.0.1:8080"),
        ip("10.88.0.1"),
        "relayed"
    );
    assert_eq!(
        seen_address(&db, "192.0.2.1:8080"),
        ip("192.0.2.1"),
        "hairpin"
    );
    let listed = daemon.run(&["port", "web"]);
    assert_eq!(listed, "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n");

    assert!(unreachable(&web, "10.89.0.2:80"), "networks are isolated");
    assert!(
        unreachable(&quiet, "192.0.2.2:80"),
        "an internal network has no way out"
    );
    assert!(
        unreachable(&outside, "10.88.0.2:80"),
        "no way in but by a published port"
    );

    daemon.run(&["publish", "rm", "8080:80"]);
    assert!(unreachable(&outside, "192.0.2.1:8080"), "withdrawn");
    daemon.clean();
    assert_eq!(footprint(&host), before);
    assert_eq!(seen_address(&host, "192.0.2.2:80"), ip("192.0.2.1"));
}

#[test]
fn udp_is_published_and_relayed() {
    if !require_root("udp_is_published_and_relayed") {
        return;
    }
    let lab = Lab::new("udp");
    let (host, outside) = host_and_outside(&lab);
    let a = lab.namespace("a");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let made = daemon.json(&["publish", "add", "192.0.2.1::53/udp", "a"]);
    let port = made["host_port_first"].as_u64().unwrap();
    assert!((32_768..49_152).contains(&port), "{port}");
    let server = a.run(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
    let _server = a.spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((size, client)) = server.recv_from(&mut buffer) {
            let text = format!("{} {size}", client.ip());
            server.send_to(text.as_bytes(), client).unwrap();
        }
    });
    for (from, seen) in [(&outside, "192.0.2.2 3"), (&host, "10.88.0.1 3")] {
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send_to(b"abc", format!("192.0.2.1:{port}")).unwrap();
        let mut buffer = [0; 64];
        let (size, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..size]), seen);
    }
}

#[test]
fn ipv6_works_within_a_network_and_to_the_host() {
    if !require_root("ipv6_works_within_a_network_and_to_the_host") {
        return;
    }
    let lab = Lab::new("v6");
    let (host, a, b) = (
        lab.namespace("host"),
        lab.namespace("a"),
        lab.namespace("b"),
    );
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "six", "--subnet6", "fd00:88::/64"]);
    assert_eq!(daemon.attach(&a, "six", "a", &[]), "fd00:88::2");
    daemon.attach(&b, "six", "b", &[]);
    let _server = echo(&b, "[fd00:88::3]:80");
    assert_eq!(seen_address(&a, "[fd00:88::3]:80"), ip("fd00:88::2"));
    assert_eq!(seen_address(&host, "[fd00:88::3]:80"), ip("fd00:88::1"));
}

#[test]
fn every_backend_serves_survives_a_killed_daemon_and_is_cleaned_away() {
    if !require_root("every_backend_serves_survives_a_killed_daemon_and_is_cleaned_away") {
        return;
    }
    let lab = Lab::new("backends");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let before = footprint(&host);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    assert_eq!(daemon.attach(&a, "n", "a", &[]), "10.88.0.2");
    for backend in ["tap", "tap-plain", "packet"] {
        let b = lab.namespace(backend);
        assert_eq!(
            daemon.attach(&b, "n", "b", &["--backend", backend]),
            "10.88.0.3"
        );
        let _server = echo(&b, "10.88.0.3:80");
        assert_eq!(
            seen_address(&a, "10.88.0.3:80"),
            ip("10.88.0.2"),
            "{backend}"
        );
        daemon.kill();
        daemon.restart();
        assert_eq!(
            seen_address(&a, "10.88.0.3:80"),
            ip("10.88.0.2"),
            "{backend}"
        );
        let ports = daemon.json(&["port", "ls"]);
        assert!(
            ports
                .as_array()
                .unwrap()
                .iter()
                .all(|port| port["up"] == true),
            "{ports}"
        );
        daemon.run(&["detach", "b"]);
        assert!(
            block_on(b.netlink().link("eth0")).unwrap().is_none(),
            "{backend}"
        );
    }
    daemon.clean();
    assert_eq!(footprint(&host), before);
}

#[test]
fn bad_input_names_the_object_says_what_to_do_and_leaves_nothing() {
    if !require_root("bad_input_names_the_object_says_what_to_do_and_leaves_nothing") {
        return;
    }
    let lab = Lab::new("bad");
    let (host, outside) = host_and_outside(&lab);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    lab.cable(&a, "eth7", &outside, "eth7");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&b, "web", "b", &[]);
    let (host_before, a_before) = (footprint(&host), footprint(&a));
    let taken = host.run(|| TcpListener::bind("0.0.0.0:9000")).unwrap();
    let path = a.path();
    let a_path = path_text(&path);
    let attach = |more: &[&'static str]| {
        let words = ["attach", "--netns", a_path, "--network", "web"];
        words.iter().chain(more).copied().collect::<Vec<_>>()
    };
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (
            vec!["network", "create", "web"],
            &["'web'", "choose another name"],
        ),
        (
            vec!["network", "create", "x", "--subnet", "10.88.0.0/16"],
            &["network 'web'"],
        ),
        (
            vec!["network", "create", "x", "--subnet", "10.1.0.1/24"],
            &["write 10.1.0.0/24"],
        ),
        (
            vec!["network", "create", "x", "--subnet", "banana"],
            &["'banana'", "10.88.0.0/24"],
        ),
        (
            vec!["network", "create", "x", "--subnet", "192.0.2.0/25"],
            &["'up0'", "--no-host-link"],
        ),
        (vec!["network", "create", "a b"], &["'a b'"]),
        (vec!["network", "create", "x", "--mtu", "100"], &["1280"]),
        (vec!["network", "rm", "nope"], &["'nope'", "network ls"]),
        (
            vec!["attach", "--netns", "nope", "--network", "web"],
            &["'nope'", "ip netns add nope"],
        ),
        (
            vec!["attach", "--netns", "/dev/null", "--network", "web"],
            &["/dev/null"],
        ),
        (
            vec!["attach", "--pid", "4000000", "--network", "web"],
            &["no process 4000000"],
        ),
        (
            vec!["attach", "--netns", a_path, "--network", "nope"],
            &["'nope'", "network ls"],
        ),
        (attach(&["--ifname", "eth7"]), &["'eth7'", "--ifname"]),
        (attach(&["--ifname", "a/b"]), &["'a/b'"]),
        (
            attach(&["--ip", "10.88.0.2"]),
            &["10.88.0.2", "endpoint 'b'"],
        ),
        (attach(&["--ip", "10.88.0.1"]), &["the gateway"]),
        (
            attach(&["--ip", "10.99.0.2"]),
            &["10.99.0.2", "network 'web'"],
        ),
        (attach(&["--ip", "10.88.0.255"]), &["broadcast"]),
        (
            attach(&["--mac", "01:00:5e:00:00:01"]),
            &["01:00:5e:00:00:01"],
        ),
        (attach(&["--name", "b"]), &["'b'"]),
        (
            attach(&["--backend", "carrier-pigeon"]),
            &["carrier-pigeon", "tap, tap-plain or packet"],
        ),
        (vec!["detach", "nope"], &["'nope'"]),
        (
            vec!["publish", "add", "9000:80", "b"],
            &["9000", "process", "choose another"],
        ),
        (
            vec!["publish", "add", "50000:80", "b"],
            &["50000", "the NAT"],
        ),
        (
            vec!["publish", "add", "192.0.2.77:80:80", "b"],
            &["192.0.2.77"],
        ),
        (vec!["publish", "add", "80:80:80:80", "b"], &["80:80:80:80"]),
        (vec!["publish", "add", "80", "nope"], &["'nope'"]),
        (vec!["publish", "rm", "1:1"], &["1:1", "publish ls"]),
        (vec!["fdb", "show", "nope"], &["'nope'"]),
    ];
    for (words, parts) in &cases {
        let message = daemon.refused(words);
        for part in *parts {
            assert!(
                message.contains(part),
                "{words:?} should name {part}: {message}"
            );
        }
    }
    assert_eq!(
        daemon.output(&["attach", "--network", "web"]).status.code(),
        Some(2)
    );
    assert_eq!(daemon.output(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(footprint(&a), a_before);
    assert_eq!(footprint(&host), host_before);
    assert_eq!(daemon.json(&["network", "ls"]).as_array().unwrap().len(), 1);
    assert_eq!(daemon.json(&["publish", "ls"]), serde_json::json!([]));
    drop(taken);
    daemon.run(&["publish", "add", "9000:80", "b"]);
    let clash = daemon.refused(&["publish", "add", "127.0.0.1:9000:81", "b"]);
    assert!(clash.contains("endpoint 'b'"), "{clash}");
}

#[test]
fn a_second_daemon_is_refused_and_another_namespace_is_served_beside() {
    if !require_root("a_second_daemon_is_refused_and_another_namespace_is_served_beside") {
        return;
    }
    let (lab, other) = (Lab::new("one"), Lab::new("two"));
    let (host, second) = (lab.namespace("host"), other.namespace("host"));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let beside = Daemon::start(&other, &second, &["--uplink", "none"]);
    for daemon in [&daemon, &beside] {
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    }
    let state = daemon.state_dir();
    let again = daemon.refused(&["daemon", "--state-dir", path_text(&state)]);
    assert!(again.contains("a daemon is running"), "{again}");
    let socket = other.dir().join("another");
    let start = |state: &std::path::Path| {
        let mut command = Command::new(binary());
        command.arg("--socket").arg(&socket);
        command
            .args(["daemon", "--uplink", "none", "--state-dir"])
            .arg(state);
        let output = second.run(|| command.output()).unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let locked = start(&state);
    assert!(locked.contains("in use by a running daemon"), "{locked}");
    let interface = start(&other.dir().join("third"));
    assert!(interface.contains("another Causeway daemon"), "{interface}");
    assert!(
        !socket.exists(),
        "the socket of a daemon that did not start is gone"
    );
}

#[test]
fn a_killed_daemon_comes_back_to_the_same_state_and_streams_go_on() {
    if !require_root("a_killed_daemon_comes_back_to_the_same_state_and_streams_go_on") {
        return;
    }
    let lab = Lab::new("kill");
    let (host, outside) = host_and_outside(&lab);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let mut daemon = Daemon::start(&lab, &host, &[]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &["--ifname", "net0", "--ip", "10.88.0.77"]);
    daemon.run(&["publish", "add", "8080:80", "b"]);
    let _server = echo(&b, "0.0.0.0:80");
    let stream = a.run(|| connect(DEADLINE, "10.88.0.77:80".parse().unwrap()));
    assert_eq!(seen_on(&stream), ip("10.88.0.2"));
    let lists = [&["network", "ls"][..], &["publish", "ls"], &["port", "b"]];
    let before: Vec<_> = lists.iter().map(|words| daemon.json(words)).collect();
    let links = footprint(&host);
    for round in 0..5u8 {
        daemon.kill();
        daemon.restart();
        let after: Vec<_> = lists.iter().map(|words| daemon.json(words)).collect();
        assert_eq!(after, before, "round {round}");
        assert_eq!(footprint(&host), links, "round {round}");
        let mut stream = &stream;
        stream.write_all(&[round]).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
        assert_eq!(seen_address(&outside, "192.0.2.1:8080"), ip("192.0.2.2"));
    }
}

#[test]
fn a_daemon_killed_within_a_request_leaves_it_done_or_undone() {
    if !require_root("a_daemon_killed_within_a_request_leaves_it_done_or_undone") {
        return;
    }
    let lab = Lab::new("within");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let path = a.path();
    let empty = footprint(&a);
    for round in 0..12u64 {
        let words = [
            "attach",
            "--netns",
            path_text(&path),
            "--network",
            "n",
            "--name",
            "a",
        ];
        let mut command = daemon.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut attach = host.start(&mut command);
        // Another instant each round; this is the randomness of the test, not a wait for it.
        std::thread::park_timeout(std::time::Duration::from_micros(2_000 * round));
        daemon.kill();
        let answered = attach.wait().unwrap().success();
        daemon.restart();
        let ports = daemon.json(&["port", "ls"]);
        let there = ports
            .as_array()
            .unwrap()
            .iter()
            .any(|port| port["name"] == "a");
        assert!(there || !answered, "round {round}: answered, but lost");
        let has_device = footprint(&a) != empty;
        assert_eq!(there, has_device, "round {round}: {:?}", footprint(&a));
        if there {
            daemon.run(&["detach", "a"]);
        }
        assert_eq!(footprint(&a), empty, "round {round}");
    }
}

#[test]
fn a_panic_in_a_handler_answers_500_and_nothing_else_happens() {
    if !require_root("a_panic_in_a_handler_answers_500_and_nothing_else_happens") {
        return;
    }
    let lab = Lab::new("panic");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let _server = echo(&a, "0.0.0.0:80");
    let mut socket = UnixStream::connect(daemon.socket()).unwrap();
    let request = "POST /v1/debug/panic HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert_eq!(daemon.json(&["status"])["api_panics"], 1);
    assert_eq!(seen_address(&host, "10.88.0.2:80"), ip("10.88.0.1"));
}

#[test]
fn run_gives_a_program_a_sandbox_and_passes_its_end_and_signals_on() {
    if !require_root("run_gives_a_program_a_sandbox_and_passes_its_end_and_signals_on") {
        return;
    }
    let lab = Lab::new("run");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let links = [
        "run",
        "--network",
        "n",
        "--",
        "cat",
        "/proc/thread-self/net/dev",
    ];
    let text = daemon.run(&links);
    assert!(text.contains("eth0:") && text.contains("lo:"), "{text}");
    let code = |words: &[&str]| daemon.output(words).status.code();
    assert_eq!(
        code(&["run", "--network", "n", "--", "sh", "-c", "exit 7"]),
        Some(7)
    );
    assert_eq!(
        code(&["run", "--", "sh", "-c", "kill -TERM $$"]),
        Some(128 + 15)
    );
    assert_eq!(code(&["run", "--", "/no/such/program"]), Some(127));
    assert_eq!(code(&["run", "--", "/etc/passwd"]), Some(126));
    assert_eq!(code(&["run", "--network", "nope", "--", "true"]), Some(1));

    let words = [
        "run",
        "--network",
        "n",
        "--name",
        "srv",
        "-p",
        "8080:80",
        "--",
        "sleep",
        "600",
    ];
    let mut command = daemon.command(&words);
    let mut running = host.start(&mut command);
    wait_until(DEADLINE, "the port is published", || {
        daemon.json(&["publish", "ls"]).as_array().unwrap().len() == 1
    });
    kill(Pid::from_raw(running.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(daemon.json(&["publish", "ls"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["status"])["endpoints"], 0);
}

#[test]
fn an_endpoint_is_dropped_when_its_sandbox_ends() {
    if !require_root("an_endpoint_is_dropped_when_its_sandbox_ends") {
        return;
    }
    let lab = Lab::new("ends");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    drop(a);
    wait_until(DEADLINE, "the endpoint is dropped", || {
        daemon.json(&["status"])["endpoints"] == 0
    });
    daemon.run(&["network", "rm", "n"]);
}

#[test]
fn a_gateway_address_that_somebody_removed_comes_back() {
    if !require_root("a_gateway_address_that_somebody_removed_comes_back") {
        return;
    }
    let lab = Lab::new("repair");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let before = footprint(&host);
    let index = host.link("causeway0").index;
    block_on(
        host.netlink()
            .remove_address(index, tests::lab::prefix("10.88.0.1/32")),
    )
    .unwrap();
    wait_until(DEADLINE, "the address and its route come back", || {
        footprint(&host) == before
    });
}

#[test]
fn a_trace_tells_what_happened_to_a_frame() {
    if !require_root("a_trace_tells_what_happened_to_a_frame") {
        return;
    }
    let lab = Lab::new("trace");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let words = [
        "trace",
        "--json",
        "--port",
        "a",
        "--count",
        "1",
        "10.88.0.1",
    ];
    let mut command = daemon.command(&words);
    let mut tracing = host.start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(tracing.stdout.take().unwrap());
    let socket = a.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line
    });
    wait_until(DEADLINE, "a frame is traced", || {
        let _ = socket.send_to(b"x", "10.88.0.1:9");
        reader.is_finished()
    });
    let view: serde_json::Value = serde_json::from_str(&reader.join().unwrap()).unwrap();
    assert_eq!(view["port_name"], "a");
    assert!(view["steps"].as_array().unwrap().len() > 2, "{view}");
    assert!(tracing.wait().unwrap().success());
}

#[test]
fn a_host_socket_in_the_nat_range_is_named_and_nothing_is_touched() {
    if !require_root("a_host_socket_in_the_nat_range_is_named_and_nothing_is_touched") {
        return;
    }
    let lab = Lab::new("range");
    let (host, _outside) = host_and_outside(&lab);
    let before = footprint(&host);
    let _socket = host.run(|| UdpSocket::bind("0.0.0.0:50123")).unwrap();
    let mut command = Command::new(binary());
    command.arg("--socket").arg(lab.dir().join("socket"));
    command
        .args(["daemon", "--state-dir"])
        .arg(lab.dir().join("state"));
    let output = host.run(|| command.output()).unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message.contains("50123") && message.contains("process"),
        "{message}"
    );
    assert_eq!(footprint(&host), before);
}

#[test]
fn a_deleted_host_link_comes_back() {
    if !require_root("a_deleted_host_link_comes_back") {
        return;
    }
    let lab = Lab::new("relink");
    let (host, a) = (lab.namespace("host"), lab.namespace("a"));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let _server = echo(&a, "0.0.0.0:80");
    block_on(host.netlink().delete(host.link("causeway0").index)).unwrap();
    wait_until(DEADLINE, "the host reaches the container again", || {
        !unreachable(&host, "10.88.0.2:80")
    });
}

#[test]
fn an_uplink_opens_when_the_default_route_comes_and_again_when_its_card_does() {
    if !require_root("an_uplink_opens_when_the_default_route_comes_and_again_when_its_card_does") {
        return;
    }
    let lab = Lab::new("late");
    let (host, outside) = (lab.namespace("host"), lab.namespace("outside"));
    let a = lab.namespace("a");
    let daemon = Daemon::start(&lab, &host, &[]);
    assert_eq!(daemon.json(&["status"])["uplinks"], serde_json::json!([]));
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let plug = || {
        lab.cable(&host, "up0", &outside, "eth0");
        host.add_address("up0", "192.0.2.1/24");
        outside.add_address("eth0", "192.0.2.2/24");
        host.add_default_route("up0", "192.0.2.2");
    };
    let uplink_up = || daemon.json(&["status"])["uplinks"][0]["up"] == true;
    plug();
    wait_until(DEADLINE, "the uplink opens", uplink_up);
    let _outside = echo(&outside, "0.0.0.0:80");
    assert_eq!(seen_address(&a, "192.0.2.2:80"), ip("192.0.2.1"));
    block_on(host.netlink().delete(host.link("up0").index)).unwrap();
    wait_until(DEADLINE, "the uplink is down", || !uplink_up());
    plug();
    wait_until(DEADLINE, "the uplink opens again", uplink_up);
    assert_eq!(seen_address(&a, "192.0.2.2:80"), ip("192.0.2.1"));
}

#[test]
fn the_configuration_file_counts_and_a_changed_nat_range_gives_the_old_one_back() {
    if !require_root("the_configuration_file_counts_and_a_changed_nat_range_gives_the_old_one_back")
    {
        return;
    }
    let lab = Lab::new("config");
    let (host, _outside) = host_and_outside(&lab);
    let before = footprint(&host);
    let config = lab.dir().join("causeway.toml");
    let write = |text: &str| std::fs::write(&config, text).unwrap();
    let reserved = || host.sysctl("net/ipv4/ip_local_reserved_ports");

    write("nat_range = 3\n");
    let mut command = Command::new(binary());
    command.args(["daemon", "--config", path_text(&config)]);
    let output = host.run(|| command.output()).unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("nat_range") && message.contains("causeway.toml"),
        "{message}"
    );

    let socket = lab.dir().join("socket");
    let text = |nat: &str| format!("socket = {socket:?}\nworkers = 1\n[nat]\n{nat}\n");
    write(&text("port_first = 40000\nport_last = 45000"));
    let mut daemon = Daemon::start_without_socket(&lab, &host, &["--config", path_text(&config)]);
    assert_eq!(reserved(), "40000-45000");
    assert_eq!(daemon.json(&["status"])["workers"], 1);
    daemon.stop();
    write(&text("port_first = 50000\nport_last = 55000"));
    daemon.restart();
    assert_eq!(reserved(), "50000-55000");
    daemon.clean();
    assert_eq!(footprint(&host), before);
}
