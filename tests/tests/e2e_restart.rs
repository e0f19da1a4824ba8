//! The real program when things end and come back: daemons, sandboxes, devices, routes.

#![allow(clippy::unwrap_used)]

mod program;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use tests::daemon::{Daemon, attach_words, binary, path_text, without_sessions};
use tests::lab::{DEADLINE, Lab, block_on, connect, ip, require_root, wait_until};

use program::*;

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
    let named = |pid: u32| format!("(process {pid})");
    let holder = format!("in use by a running daemon {}", named(daemon.pid()));
    assert!(locked.contains(&holder), "{locked}");
    let served = start(&other.dir().join("third"));
    let holder = format!("another Causeway daemon {}", named(beside.pid()));
    assert!(served.contains(&holder), "{served}");
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
    let (host, outside) = lab.host_and_outside();
    let [a, b] = lab.namespaces(["a", "b"]);
    let mut daemon = Daemon::start(&lab, &host, &[]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &["--ifname", "net0", "--ip", "10.88.0.77"]);
    // With the carrier the kernel would forget its neighbours, and ask again after a second.
    assert_eq!(b.sysctl("net/ipv4/conf/net0/arp_evict_nocarrier"), "0");
    daemon.run(&["publish", "add", "8080:80", "b"]);
    let _server = echo(&b, "0.0.0.0:80");
    let stream = a.run(|| connect(DEADLINE, "10.88.0.77:80".parse().unwrap()));
    assert_eq!(seen_on(&stream), ip("10.88.0.2"));
    let lists = [&["network", "ls"][..], &["publish", "ls"], &["port", "b"]];
    let listed = |daemon: &Daemon| lists.map(|words| without_sessions(daemon.json(words)));
    let before = listed(&daemon);
    let links = footprint(&host);
    for round in 0..5u8 {
        daemon.kill();
        daemon.restart();
        assert_eq!(listed(&daemon), before, "round {round}");
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
    let [host, a] = lab.namespaces(["host", "a"]);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let path = a.path();
    let empty = footprint(&a);
    for round in 0..12u64 {
        let words = attach_words(&path, "n", "a");
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
    let [host, a] = lab.namespaces(["host", "a"]);
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
fn an_endpoint_is_dropped_when_its_sandbox_ends() {
    if !require_root("an_endpoint_is_dropped_when_its_sandbox_ends") {
        return;
    }
    let lab = Lab::new("ends");
    let [host, a] = lab.namespaces(["host", "a"]);
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

/// While the daemon still follows what it has done itself: what it reads then must not pass for what
/// it has looked at.
#[test]
fn gateway_addresses_that_are_removed_as_soon_as_they_are_there_come_back() {
    let name = "gateway_addresses_that_are_removed_as_soon_as_they_are_there_come_back";
    if !require_root(name) {
        return;
    }
    let lab = Lab::new("repairs");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let before = footprint(&host);
    let index = host.link("causeway0").index;
    for _ in 0..300 {
        let gateway = tests::lab::prefix("10.88.0.1/32");
        block_on(host.netlink().remove_address(index, gateway)).unwrap();
        wait_until(DEADLINE, "the address and its route come back", || {
            footprint(&host) == before
        });
    }
}

#[test]
fn a_deleted_host_link_comes_back() {
    if !require_root("a_deleted_host_link_comes_back") {
        return;
    }
    let lab = Lab::new("relink");
    let [host, a] = lab.namespaces(["host", "a"]);
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
    let [host, outside] = lab.namespaces(["host", "outside"]);
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
    let (host, _outside) = lab.host_and_outside();
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
