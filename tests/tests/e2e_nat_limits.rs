//! The NAT near its limits, from real namespaces: whoever fills them pays for it, and it is told.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, connect, ip, require_root, wait_until};
use tests::talk::{SILENCE, Witness, ask_tcp, serve_tcp};
use tests::wire::{self, Link};

/// Ports of the default range, and how many of them one container may have.
const POOL: u64 = 16_384;
const FAIR_PART: u64 = POOL / 8 * 7;
/// Frames that are on their way at a time.
const WINDOW: usize = 100;
/// New flows of the container that must not starve.
const FLOWS: usize = 300;
/// Times that an answer is waited for.
const TRIES_MAX: usize = 10;

/// A host, an outside, and containers `noisy` at 10.88.0.2 and `quiet` at 10.88.0.3.
struct Neighbours {
    outside: Namespace,
    noisy: Namespace,
    quiet: Namespace,
    daemon: Daemon,
    gateway: Link,
    host: Namespace,
    _lab: Lab,
}

impl Neighbours {
    fn new(name: &str, nat: &str) -> Self {
        let lab = Lab::new(name);
        let (host, outside) = lab.host_and_outside();
        let [noisy, quiet] = lab.namespaces(["noisy", "quiet"]);
        let daemon = Daemon::start_with_nat(&lab, &host, nat);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        assert_eq!(daemon.attach(&noisy, "n", "noisy", &[]), "10.88.0.2");
        assert_eq!(daemon.attach(&quiet, "n", "quiet", &[]), "10.88.0.3");
        let shown = daemon.json(&["network", "ls"]);
        let gateway = shown[0]["gateway_mac"].as_str().unwrap().parse().unwrap();
        Self {
            gateway: Link(noisy.mac("eth0"), gateway),
            outside,
            noisy,
            quiet,
            daemon,
            host,
            _lab: lab,
        }
    }

    fn usage(&self) -> Value {
        self.daemon.json(&["nat", "usage"])
    }

    /// Datagrams from `noisy` with these source and destination ports, as fast as they are
    /// counted by what reaches the daemon.
    fn shout(&self, flows: impl Iterator<Item = (u16, u16)>, reached: impl Fn() -> usize) {
        let mut sender = Witness::new(&self.noisy, "eth0");
        let flows: Vec<(u16, u16)> = flows.collect();
        for window in flows.chunks(WINDOW) {
            let before = reached();
            for (from, to) in window {
                let from = SocketAddr::from(([10, 88, 0, 2], *from));
                let to = SocketAddr::from(([192, 0, 2, 2], *to));
                sender.send(&wire::udp(self.gateway, from, to, 64, b"noise"));
            }
            // What is refused reaches nobody: then the next window follows after a moment.
            let end = Instant::now() + Duration::from_millis(5);
            while reached() < before + window.len() && Instant::now() < end {
                std::thread::yield_now();
            }
        }
    }
}

/// Counts what comes, and answers a question with itself. Ends with the process.
fn serve_questions(ns: &Namespace, address: &str) -> Arc<AtomicUsize> {
    let socket = ns.run(|| UdpSocket::bind(address)).unwrap();
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((size, client)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::Relaxed);
            if buffer[..size] != *b"noise" {
                let _ = socket.send_to(&buffer[..size], client);
            }
        }
    });
    counted
}

/// A question from a port of its own, and its answer.
fn ask(ns: &Namespace, server: &str, number: usize) {
    let port = 10_000 + number as u16;
    let client = ns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
    client.connect(server).unwrap();
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let question = number.to_be_bytes();
    let mut buffer = [0; 64];
    for _ in 0..TRIES_MAX {
        client.send(&question).unwrap();
        match client.recv(&mut buffer) {
            Ok(size) => return assert_eq!(buffer[..size], question),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("flow {number} was refused: {error}"),
        }
    }
    panic!("flow {number} got no answer");
}

fn held(usage: &Value, protocol: &str) -> u64 {
    let pools = usage["pools"].as_array().unwrap().iter();
    let mut pools = pools.filter(|pool| pool["protocol"] == protocol);
    pools
        .next()
        .map_or(0, |pool| pool["ports"].as_u64().unwrap())
}

fn refused(usage: &Value, reason: &str) -> u64 {
    let counts = usage["refused"].as_array().unwrap().iter();
    let mut counts = counts.filter(|count| count["label"] == reason);
    counts.next().unwrap()["count"].as_u64().unwrap()
}

/// Warnings of the status that contain all of `words`.
fn warned(daemon: &Daemon, words: &[&str]) -> usize {
    let status = daemon.json(&["status"]);
    let warnings = status["warnings"].as_array().unwrap().iter();
    let warnings = warnings.map(|warning| warning.as_str().unwrap());
    warnings
        .filter(|text| words.iter().all(|word| text.contains(word)))
        .count()
}

/// Lines of the log that warn and contain all of `words`.
fn logged(daemon: &Daemon, words: &[&str]) -> usize {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("WARN"));
    lines
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

#[test]
fn a_container_that_takes_every_port_it_gets_leaves_some_to_its_neighbour() {
    if !require_root("a_container_that_takes_every_port_it_gets_leaves_some_to_its_neighbour") {
        return;
    }
    let lab = Neighbours::new("ports", "");
    let (daemon, server) = (&lab.daemon, "192.0.2.2:9");
    let reached = serve_questions(&lab.outside, server);
    // To one remote, where no two flows can share a port.
    let ports = 20_000..40_000;
    lab.shout(ports.map(|port| (port, 9)), || {
        reached.load(Ordering::Relaxed)
    });
    wait_until(DEADLINE, "the noisy one has what it gets", || {
        held(&lab.usage(), "UDP") == FAIR_PART
    });
    let told = ["UDP ports of 192.0.2.1", "of 16384"];
    wait_until(DEADLINE, "the log tells of it", || {
        logged(daemon, &told) == 1
    });
    assert_eq!(warned(daemon, &told), 1);
    assert!(refused(&lab.usage(), "nat_no_port") > 0);
    for number in 0..FLOWS {
        ask(&lab.quiet, server, number);
    }
    let usage = lab.usage();
    assert_eq!(held(&usage, "UDP"), FAIR_PART + FLOWS as u64);
    assert_eq!(usage["endpoints"][0]["endpoint"], "noisy");
    assert_eq!(usage["endpoints"][0]["sessions"], FAIR_PART);
    assert_eq!(usage["endpoints"][1]["endpoint"], "quiet");
    assert_eq!(logged(daemon, &told), 1, "once");
    let text = daemon.run(&["status"]);
    let line = format!(
        "UDP ports of 192.0.2.1 {} of {POOL}",
        FAIR_PART + FLOWS as u64
    );
    assert!(text.contains(&line), "{text}");
}

#[test]
fn a_container_at_its_quota_of_sessions_is_named_and_harms_nobody_else() {
    if !require_root("a_container_at_its_quota_of_sessions_is_named_and_harms_nobody_else") {
        return;
    }
    let lab = Neighbours::new("quota", "sessions_per_endpoint_max = 1000\n");
    let daemon = &lab.daemon;
    let reached = serve_questions(&lab.outside, "192.0.2.2:9");
    let reached = || reached.load(Ordering::Relaxed);
    // From one port to very many: one mapping, and a session for each.
    lab.shout((0..700).map(|n| (50_000, 10_000 + n)), reached);
    wait_until(DEADLINE, "700 sessions", || lab.usage()["sessions"] == 700);
    let near = ["endpoint 'noisy'", "of 1000"];
    assert_eq!((warned(daemon, &near), logged(daemon, &near)), (0, 0));
    lab.shout((700..850).map(|n| (50_000, 10_000 + n)), reached);
    wait_until(DEADLINE, "a line about 85 %", || logged(daemon, &near) == 1);
    assert_eq!(warned(daemon, &near), 1);
    assert_eq!(warned(daemon, &["nat_quota"]), 0, "before it is full");
    for number in 0..FLOWS {
        ask(&lab.quiet, "192.0.2.2:9", number);
        let first = 20_000 + number as u16 * 10;
        lab.shout((first..first + 10).map(|n| (50_000, n)), reached);
    }
    let usage = lab.usage();
    assert_eq!(usage["endpoints"][0]["endpoint"], "noisy");
    assert_eq!(usage["endpoints"][0]["sessions"], 1_000);
    assert_eq!(usage["endpoints"][1]["sessions"], FLOWS);
    assert!(refused(&usage, "nat_quota") > 0);
    let full = ["were refused", "nat_quota"];
    wait_until(DEADLINE, "a line about refusals", || {
        logged(daemon, &full) == 1
    });
    assert_eq!(warned(daemon, &full), 1);
    // However many come, the log hears of it once a minute.
    let before = refused(&lab.usage(), "nat_quota");
    wait_until(DEADLINE, "more refusals", || {
        lab.shout((0..100).map(|n| (50_000, 40_000 + n)), reached);
        refused(&lab.usage(), "nat_quota") > before + 200
    });
    assert_eq!(logged(daemon, &full), 1);
    assert_eq!(logged(daemon, &near), 1);
}

#[test]
fn a_flood_of_syns_to_a_published_port_locks_no_client_out() {
    if !require_root("a_flood_of_syns_to_a_published_port_locks_no_client_out") {
        return;
    }
    const ROUNDS: u32 = 20;
    const SYNS: u32 = 500;
    let lab = Neighbours::new("syns", "sessions_per_endpoint_max = 1000\n");
    let daemon = &lab.daemon;
    serve_tcp(&lab.noisy, "0.0.0.0:80");
    daemon.run(&["publish", "add", "8080:80", "noisy"]);
    let server = "192.0.2.1:8080";
    // One that is there before the flood outlives it.
    let mut before = lab
        .outside
        .run(|| connect(DEADLINE, server.parse().unwrap()));
    before.set_read_timeout(Some(DEADLINE)).unwrap();
    before.read_exact(&mut [0; "192.0.2.2\n".len()]).unwrap();
    let mut flood = Witness::new(&lab.outside, "eth0");
    let link = Link(lab.outside.mac("eth0"), lab.host.mac("up0"));
    let received = || {
        let ports = daemon.json(&["port", "ls"]);
        let mut ports = ports.as_array().unwrap().iter();
        let uplink = ports.find(|port| port["name"] == "up0").unwrap();
        uplink["rx_frames"].as_u64().unwrap()
    };
    let mut longest = Duration::ZERO;
    for round in 0..ROUNDS {
        let wanted = received() + u64::from(SYNS);
        for number in 0..SYNS {
            let [_, a, b, c] = (round * SYNS + number).to_be_bytes();
            let forged = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18 + a, b, c)), 1_025);
            flood.send(&wire::tcp(
                link,
                forged,
                server.parse().unwrap(),
                wire::flags::SYN,
                b"",
            ));
        }
        wait_until(DEADLINE, "the flood has come in", || received() >= wanted);
        let since = Instant::now();
        assert_eq!(
            ask_tcp(&lab.outside, server, 1_000),
            ip("192.0.2.2"),
            "round {round}"
        );
        longest = longest.max(since.elapsed());
    }
    let usage = lab.usage();
    let sessions = usage["endpoints"][0]["sessions"].as_u64().unwrap();
    println!(
        "{} SYNs, {sessions} sessions, the longest call {longest:.1?}",
        ROUNDS * SYNS
    );
    assert_eq!(usage["endpoints"][0]["endpoint"], "noisy");
    assert!(
        (900..=1_000).contains(&sessions),
        "the flood fills the quota: {usage}"
    );
    assert_eq!(refused(&usage, "nat_quota"), 0, "half-open ones made room");
    assert!(
        longest < Duration::from_millis(900),
        "nobody waited for a second SYN: {longest:?}"
    );
    before.write_all(b"still here").unwrap();
    let mut answer = [0; 10];
    before.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still here");
}
