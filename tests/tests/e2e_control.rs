//! The real program on a host of its own: what a user does, and what a user gets wrong.

#![allow(clippy::unwrap_used)]

mod program;

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use control::link::TAP_QUEUE_FRAMES;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::daemon::{Daemon, binary, path_text};
use tests::lab::{DEADLINE, Lab, block_on, ip, require_root, wait_until};

use program::*;

/// Covers: 13, 21, 23, 64
#[test]
fn two_namespaces_on_a_network_talk_and_clean_leaves_nothing() {
    if !require_root("two_namespaces_on_a_network_talk_and_clean_leaves_nothing") {
        return;
    }
    let lab = Lab::new("talk");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let (host_before, a_before) = (footprint(&host), footprint(&a));
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    assert_eq!(daemon.attach(&a, "web", "a", &[]), "10.88.0.2");
    assert_eq!(
        daemon.attach(&b, "web", "b", &["--ip", "10.88.0.9"]),
        "10.88.0.9"
    );
    assert_eq!(b.mac("eth0").to_string(), "02:42:0a:58:00:09");
    let eth0 = b.link("eth0");
    assert_eq!(
        (eth0.qdisc.as_str(), eth0.tx_queue_frames),
        ("noqueue", TAP_QUEUE_FRAMES)
    );

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

/// Covers: 55, 58, 61, 65
#[test]
fn the_way_out_is_translated_and_the_way_in_keeps_the_client() {
    if !require_root("the_way_out_is_translated_and_the_way_in_keeps_the_client") {
        return;
    }
    let lab = Lab::new("nat");
    let (host, outside) = lab.host_and_outside();
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
    let (host, outside) = lab.host_and_outside();
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
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
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
    let [host, a] = lab.namespaces(["host", "a"]);
    let before = footprint(&host);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    assert_eq!(daemon.attach(&a, "n", "a", &[]), "10.88.0.2");
    for backend in ["tap", "tap-plain", "packet", "xdp"] {
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

/// Covers: 53
#[test]
fn bad_input_names_the_object_says_what_to_do_and_leaves_nothing() {
    if !require_root("bad_input_names_the_object_says_what_to_do_and_leaves_nothing") {
        return;
    }
    let lab = Lab::new("bad");
    let (host, outside) = lab.host_and_outside();
    let [a, b] = lab.namespaces(["a", "b"]);
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
            &["carrier-pigeon", "tap, tap-plain, packet or xdp"],
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
        code(&[
            "run",
            "--network",
            "none",
            "--",
            "sh",
            "-c",
            "kill -TERM $$"
        ]),
        Some(128 + 15)
    );
    assert_eq!(
        code(&["run", "--network", "none", "--", "/no/such/program"]),
        Some(127)
    );
    assert_eq!(
        code(&["run", "--network", "none", "--", "/etc/passwd"]),
        Some(126)
    );
    let unknown = ["run", "--network", "nope", "--", "true"];
    assert_eq!(code(&unknown), Some(125));

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

/// Covers: 20
#[test]
fn a_trace_tells_what_happened_to_a_frame() {
    if !require_root("a_trace_tells_what_happened_to_a_frame") {
        return;
    }
    let lab = Lab::new("trace");
    let [host, a] = lab.namespaces(["host", "a"]);
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
    let (host, _outside) = lab.host_and_outside();
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
fn what_happens_is_told_once_and_to_everyone_who_follows() {
    if !require_root("what_happens_is_told_once_and_to_everyone_who_follows") {
        return;
    }
    let lab = Lab::new("events");
    let [host, a] = lab.namespaces(["host", "a"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let mut follower = daemon
        .command(&["events", "--follow", "--json", "--kind", "published"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.refused(&["network", "create", "web", "--subnet", "10.89.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    daemon.run(&["port", "set", "a", "isolated", "on"]);
    daemon.refused(&["port", "set", "a", "mac-limit", "0"]);
    daemon.run(&["publish", "add", "8080:80", "a"]);
    daemon.run(&["network", "set", "web", "--ageing", "60"]);
    daemon.run(&["detach", "a"]);
    daemon.run(&["network", "rm", "web"]);
    let text = daemon.run(&["events", "--json"]);
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["kind"].as_str().unwrap()).collect();
    let wanted = [
        "network_created",
        "endpoint_attached",
        "port_changed",
        "published",
        "network_changed",
        "unpublished",
        "endpoint_detached",
        "network_removed",
    ];
    assert_eq!(kinds, wanted, "what was refused has not happened: {text}");
    for (event, number) in events.iter().zip(1..) {
        assert_eq!(event["number"], number);
    }
    let detached = &events[6];
    assert_eq!(
        (&detached["network"], &detached["port"]),
        (&"web".into(), &"a".into())
    );
    assert_eq!(events[2]["text"], "port 'a' was changed: isolated on");
    // The follower was there before all of it.
    let mut line = String::new();
    let mut out = BufReader::new(follower.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), events[3]);
    follower.kill().unwrap();
    follower.wait().unwrap();
    let table = daemon.run(&["events", "--after", "6"]);
    assert!(
        table.lines().count() == 3 && table.contains("web/a"),
        "{table}"
    );
    let refused = daemon.output(&["events", "--kind", "party"]).stderr;
    let refused = String::from_utf8(refused).unwrap();
    assert!(refused.contains("mac_flap"), "{refused}");
}
