//! The host is unharmed: the real daemon on a host with a network card, and everything that the
//! host does for itself on that card goes on as before.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use control::link::inet::Address;
use dataplane_core::addr::MacAddr;
use nix::sys::socket::{setsockopt, sockopt};
use sha2::{Digest, Sha256};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, connect, ip, require_root, wait_until};
use tests::talk::{
    Pinger, SILENCE, Witness, ask_tcp, ask_udp, nft_tables, ping, serve_tcp, serve_udp, unpingable,
    unreachable_tcp,
};
use tests::wire;

/// Flows of either transport.
const FLOWS: usize = 1_000;
/// Flows that are open at the same time: a descriptor on either side each.
const FLOWS_AT_ONCE: usize = 100;
/// Questions to a gateway.
const QUESTIONS: usize = 1_000;

/// What a frame is to somebody who looks for a host that answers what is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Reset,
    Icmp,
}

/// An IPv4 packet from `source` that resets a connection or is ICMP.
fn answer_of(frame: &[u8], source: Ipv4Addr) -> Option<Answer> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::NetSlice::Ipv4(ipv4) = sliced.net? else {
        return None;
    };
    if ipv4.header().source_addr() != source {
        return None;
    }
    match sliced.transport? {
        etherparse::TransportSlice::Tcp(tcp) => tcp.rst().then_some(Answer::Reset),
        etherparse::TransportSlice::Icmpv4(_) => Some(Answer::Icmp),
        _ => None,
    }
}

/// [`FLOWS`] TCP connections to an echo server, each with a question and its answer.
fn tcp_flows(from: &Namespace, to: &str) {
    for _ in 0..FLOWS / FLOWS_AT_ONCE {
        let streams: Vec<TcpStream> = from.run(|| {
            let open = |_| connect(DEADLINE, to.parse().unwrap());
            (0..FLOWS_AT_ONCE).map(open).collect()
        });
        for mut stream in &streams {
            stream.write_all(b"question").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        for mut stream in &streams {
            let mut answer = String::new();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "192.0.2.1\nquestion", "by the host's address");
        }
    }
}

/// [`FLOWS`] UDP flows to an echo server, each with a question and its answer.
fn udp_flows(from: &Namespace, to: &str) {
    for _ in 0..FLOWS / FLOWS_AT_ONCE {
        let sockets: Vec<UdpSocket> = from.run(|| {
            let open = |_| UdpSocket::bind("0.0.0.0:0").unwrap();
            (0..FLOWS_AT_ONCE).map(open).collect()
        });
        for socket in &sockets {
            socket.send_to(b"question", to).unwrap();
        }
        for socket in &sockets {
            let mut buffer = [0; 64];
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let (size, _) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..size], b"192.0.2.1 question");
        }
    }
}

/// SHA-256 of the packet filter's rules, or the number of tables where `nft` is not installed.
fn ruleset(ns: &Namespace) -> String {
    let listed = ns.run(|| Command::new("nft").args(["list", "ruleset"]).output());
    match listed {
        Ok(output) if output.status.success() => {
            assert!(!output.stdout.is_empty(), "there is a rule to be harmed");
            let digest = Sha256::digest(&output.stdout);
            format!("nft list ruleset: {digest:x?}")
        }
        _ => format!("nf_tables tables by netlink: {:?}", nft_tables(ns)),
    }
}

/// A rule of the host's own, if `nft` is there to make it.
fn add_rule(ns: &Namespace) {
    let rule = "add table inet own; add chain inet own c { type filter hook input priority 0; }; \
                add rule inet own c tcp dport 4 reject with tcp reset";
    let made = ns.run(|| Command::new("nft").arg(rule).output());
    if made.is_err() {
        eprintln!("nft is not installed: the tables are counted by netlink instead");
    }
}

/// Covers: 6
#[test]
fn nobody_but_the_nat_answers_for_its_flows_and_no_rule_is_written() {
    if !require_root("nobody_but_the_nat_answers_for_its_flows_and_no_rule_is_written") {
        return;
    }
    let lab = Lab::new("quiet");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    add_rule(&host);
    let (rules, tables) = (ruleset(&host), nft_tables(&host));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    serve_tcp(&outside, "192.0.2.2:80");
    serve_udp(&outside, "192.0.2.2:53");
    let host_address = Ipv4Addr::new(192, 0, 2, 1);
    let witness = Witness::new(&outside, "eth0");
    let watch = witness.watch(move |frame| answer_of(frame, host_address));
    tcp_flows(&a, "192.0.2.2:80");
    udp_flows(&a, "192.0.2.2:53");
    let sessions = daemon.json(&["nat", "sessions"]).as_array().unwrap().len();
    assert!(sessions >= FLOWS, "{sessions} sessions");
    let seen = watch.end();
    println!("{} frames seen, {} missed, {rules}", seen.seen, seen.missed);
    assert_eq!(seen.missed, 0);
    assert!(seen.seen > 6 * FLOWS as u64, "{} frames", seen.seen);
    assert_eq!(seen.kept, [], "answers of the host's kernel");
    assert_eq!(ruleset(&host), rules);
    assert_eq!(nft_tables(&host), tables);

    // The witness is not blind: what is the host's own, the host does answer.
    let witness = Witness::new(&outside, "eth0");
    let watch = witness.watch(move |frame| answer_of(frame, host_address));
    assert!(unreachable_tcp(&outside, "192.0.2.1:5"));
    assert!(ping(&outside, ip("192.0.2.1"), 56));
    let mut kept = watch.end().kept;
    kept.sort();
    assert_eq!(kept, [Answer::Reset, Answer::Icmp]);
}

#[test]
fn what_the_host_does_for_itself_goes_on_beside_the_nat() {
    if !require_root("what_the_host_does_for_itself_goes_on_beside_the_nat") {
        return;
    }
    let lab = Lab::new("beside");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    outside.set_sysctl("net/ipv4/ip_forward", "1");
    outside.add_default_route("eth0", "192.0.2.9");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.run(&["publish", "add", "8080:80", "a"]);
    for (ns, address) in [(&host, "192.0.2.1"), (&outside, "192.0.2.2")] {
        serve_tcp(ns, &format!("{address}:443"));
        serve_udp(ns, &format!("{address}:443"));
    }
    // The NAT is at work all the while.
    let stop = Arc::new(AtomicBool::new(false));
    let (inside, stopped) = (a.clone(), Arc::clone(&stop));
    let nat_at_work = std::thread::spawn(move || {
        let mut rounds = 0;
        while !stopped.load(Ordering::Relaxed) {
            assert_eq!(ask_tcp(&inside, "192.0.2.2:443", 100_000), ip("192.0.2.1"));
            assert_eq!(ask_udp(&inside, "192.0.2.2:443", 8_000), ip("192.0.2.1"));
            assert!(ping(&inside, ip("192.0.2.2"), 8_000), "fragmented ping");
            rounds += 1;
        }
        rounds
    });
    for (from, to, seen) in [
        (&host, "192.0.2.2", "192.0.2.1"),
        (&outside, "192.0.2.1", "192.0.2.2"),
    ] {
        for _ in 0..20 {
            let address = format!("{to}:443");
            assert_eq!(ask_tcp(from, &address, 1_000_000), ip(seen), "TCP");
            assert_eq!(ask_udp(from, &address, 8_000), ip(seen), "fragments");
            assert!(ping(from, ip(to), 56), "ping");
            assert!(ping(from, ip(to), 8_000), "fragmented ping");
        }
    }
    // As traceroute does: the first router, then the one behind it, say that time was exceeded.
    for (ns, ttl, what) in [
        (&host, 1, "the host's router"),
        (&a, 1, "the gateway"),
        (&a, 2, "the host's router, to a container"),
    ] {
        assert_eq!(probe(ns, ttl), Some(ErrorKind::HostUnreachable), "{what}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(nat_at_work.join().unwrap() > 0);

    // The host's own frames do not even reach the dataplane.
    let received = |name: &str| {
        let ports = daemon.json(&["port", "ls"]);
        let port = ports.as_array().unwrap().iter().find(|p| p["name"] == name);
        port.unwrap()["rx_frames"].as_u64().unwrap()
    };
    let before = received("up0");
    assert_eq!(ask_tcp(&host, "192.0.2.2:443", 1_000_000), ip("192.0.2.1"));
    let passed = received("up0") - before;
    assert!(
        passed < 10,
        "{passed} of the host's frames reached the dataplane"
    );
}

/// The error that a probe with this TTL to a far address brings back.
fn probe(ns: &Namespace, ttl: u32) -> Option<ErrorKind> {
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
    socket.set_ttl(ttl).unwrap();
    socket.connect("198.51.100.7:33434").unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    // A router may hold back an error for its rate limit, so a probe is repeated, as is usual.
    (0..10).find_map(|_| {
        socket.send(&[0; 32]).ok();
        let error = socket.recv(&mut [0; 64]).unwrap_err().kind();
        (error != ErrorKind::WouldBlock).then_some(error)
    })
}

#[test]
fn a_forwarding_host_lets_no_outsider_in_but_by_published_ports() {
    if !require_root("a_forwarding_host_lets_no_outsider_in_but_by_published_ports") {
        return;
    }
    let lab = Lab::new("outsider");
    let (host, outside) = lab.host_and_outside();
    host.set_sysctl("net/ipv4/ip_forward", "1");
    outside.add_route("10.88.0.0/24", "192.0.2.1", "eth0");
    let a = lab.namespace("a");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    serve_tcp(&a, "0.0.0.0:80");
    serve_udp(&a, "0.0.0.0:80");
    daemon.run(&["publish", "add", "8080:80", "a"]);
    assert_eq!(ask_tcp(&outside, "192.0.2.1:8080", 10), ip("192.0.2.2"));
    assert_eq!(ask_tcp(&host, "10.88.0.2:80", 10), ip("10.88.0.1"));

    assert!(unreachable_tcp(&outside, "10.88.0.2:80"));
    assert!(unpingable(&outside, ip("10.88.0.2")));
    let client = outside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.set_read_timeout(Some(SILENCE)).unwrap();
    client.send_to(b"x", "10.88.0.2:80").unwrap();
    assert!(client.recv(&mut [0; 8]).is_err());
    let drops = daemon.json(&["drops"]);
    let foreign = drops.as_array().unwrap().iter();
    let foreign: Vec<_> = foreign
        .filter(|drop| drop["reason"] == "host_link_foreign_source")
        .collect();
    assert_eq!(foreign.len(), 1, "stopped at the host link: {drops}");
}

/// A station on the link, as it asks for the gateway's MAC.
struct Asker {
    mac: MacAddr,
    network: u16,
}

impl Asker {
    /// The number of the question that a reply answers, and who says so; each question comes from
    /// an address of its own.
    fn answered(&self, frame: &[u8]) -> Option<(usize, MacAddr)> {
        let to_us = frame.get(..6)? == self.mac.0;
        let mac = |at: usize| Some(MacAddr(*frame.get(at..)?.first_chunk()?));
        let number = |at: usize| {
            let low: &[u8; 2] = frame.get(at..)?.first_chunk()?;
            // The sandbox's kernel asks as well, from its own address.
            u16::from_be_bytes(*low)
                .checked_sub(self.network)
                .map(usize::from)
        };
        match frame.get(12..14)? {
            [0x08, 0x06] if to_us && frame.get(20..22)? == [0, 2] => Some((number(40)?, mac(22)?)),
            [0x86, 0xdd] if to_us && *frame.get(54)? == 136 => Some((number(52)?, mac(80)?)),
            _ => None,
        }
    }

    /// "Who has 10.88.0.1?", from 10.88.(network + number).
    fn arp(&self, number: usize) -> Vec<u8> {
        let [high, low] = (self.network + number as u16).to_be_bytes();
        let (from, target) = (
            Ipv4Addr::new(10, 88, high, low),
            Ipv4Addr::new(10, 88, 0, 1),
        );
        wire::arp_request(self.mac, from, target)
    }

    /// "Who has fd00:88::1?", from fd00:88::(network + number).
    fn solicitation(&self, number: usize) -> Vec<u8> {
        let address = |last| Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, last);
        wire::solicitation(self.mac, address(self.network + number as u16), address(1))
    }
}

/// Covers: 24
#[test]
fn a_gateway_answers_each_question_once_and_with_its_own_mac() {
    if !require_root("a_gateway_answers_each_question_once_and_with_its_own_mac") {
        return;
    }
    let lab = Lab::new("gateway");
    let (host, _outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&[
        "network",
        "create",
        "n",
        "--subnet",
        "10.88.0.0/16",
        "--subnet6",
        "fd00:88::/64",
    ]);
    daemon.attach(&a, "n", "a", &["--backend", "packet"]);
    // The questions come from addresses that a does not have.
    daemon.run(&["port", "set", "a", "port-security", "off"]);
    serve_tcp(&a, "0.0.0.0:80");
    // The host has the gateway's addresses, and sees the frames of the veth.
    let addresses = block_on(host.netlink().addresses()).unwrap();
    let held = |address: &Address| address.prefix.address == ip("10.88.0.1");
    assert!(addresses.iter().any(held), "{addresses:?}");
    let gateway: MacAddr = {
        let shown = daemon.json(&["network", "ls"]);
        let text = shown[0]["gateway_mac"]
            .as_str()
            .unwrap_or_else(|| panic!("{shown}"));
        text.parse().unwrap()
    };
    let asker = Asker {
        mac: a.mac("eth0"),
        network: 0x2000,
    };
    type Question = fn(&Asker, usize) -> Vec<u8>;
    let kinds: [(&str, Question); 2] = [("ARP", Asker::arp), ("ND", Asker::solicitation)];
    for (kind, question) in kinds {
        let mut witness = Witness::new(&a, "eth0");
        let mut replies: BTreeMap<usize, Vec<MacAddr>> = BTreeMap::new();
        let mut collect = |witness: &mut Witness| {
            while witness.look(|frame| {
                if let Some((number, mac)) = asker.answered(frame) {
                    replies.entry(number).or_default().push(mac);
                }
            }) {}
            replies.len()
        };
        for number in 0..QUESTIONS {
            witness.send(&question(&asker, number));
            collect(&mut witness);
        }
        wait_until(DEADLINE, "every question is answered", || {
            collect(&mut witness) == QUESTIONS
        });
        // A second answer by the host's stack would be there by the time that it has opened a
        // connection through the same port.
        for _ in 0..20 {
            assert_eq!(ask_tcp(&host, "10.88.0.2:80", 10), ip("10.88.0.1"));
            collect(&mut witness);
        }
        assert_eq!(witness.missed(), 0);
        let wrong: Vec<_> = replies
            .iter()
            .filter(|(_, macs)| **macs != [gateway])
            .collect();
        assert!(wrong.is_empty(), "{kind}: {wrong:?}");
        println!("{kind}: {QUESTIONS} questions, one reply each from {gateway}");
    }
}

/// Covers: 49
#[test]
fn networks_keep_to_themselves_and_hairpins_turn_round() {
    if !require_root("networks_keep_to_themselves_and_hairpins_turn_round") {
        return;
    }
    let lab = Lab::new("apart");
    let (host, outside) = lab.host_and_outside();
    let names = ["a", "sibling", "b", "quiet"];
    let [a, sibling, b, quiet] = names.map(|name| lab.namespace(name));
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "one", "--subnet", "10.88.0.0/24"]);
    daemon.run(&["network", "create", "two", "--subnet", "10.89.0.0/24"]);
    daemon.run(&[
        "network",
        "create",
        "in",
        "--subnet",
        "10.90.0.0/24",
        "--internal",
    ]);
    daemon.attach(&a, "one", "a", &[]);
    daemon.attach(&sibling, "one", "sibling", &["--backend", "tap-plain"]);
    daemon.attach(&b, "two", "b", &[]);
    daemon.attach(&quiet, "in", "quiet", &[]);
    for ns in [&a, &sibling, &b, &quiet] {
        serve_tcp(ns, "0.0.0.0:80");
        serve_udp(ns, "0.0.0.0:80");
    }
    serve_tcp(&outside, "192.0.2.2:80");
    serve_tcp(&host, "0.0.0.0:22");

    assert_eq!(
        ask_tcp(&a, "10.88.0.3:80", 10),
        ip("10.88.0.2"),
        "one network"
    );
    assert!(unreachable_tcp(&a, "10.89.0.2:80") && unpingable(&a, ip("10.89.0.2")));
    assert!(unreachable_tcp(&b, "10.88.0.2:80") && unpingable(&b, ip("10.88.0.2")));
    // An internal network has no route out; the packets of one that makes itself a route are
    // stopped all the same.
    quiet.add_default_route("eth0", "10.90.0.1");
    for address in ["192.0.2.2", "192.0.2.1", "10.88.0.2"] {
        assert!(
            unreachable_tcp(&quiet, &format!("{address}:80")),
            "{address}"
        );
        assert!(unpingable(&quiet, ip(address)), "{address}");
    }
    assert!(
        unreachable_tcp(&quiet, "192.0.2.1:22"),
        "the host by its outer address"
    );
    assert!(unreachable_tcp(&a, "10.90.0.2:80") && unreachable_tcp(&outside, "10.90.0.2:80"));

    daemon.run(&["publish", "add", "8080:80", "a"]);
    daemon.run(&["publish", "add", "8081:80", "sibling"]);
    daemon.run(&["publish", "add", "8080:80/udp", "a"]);
    for from in [&a, &sibling, &b] {
        for port in ["192.0.2.1:8080", "192.0.2.1:8081"] {
            assert_eq!(ask_tcp(from, port, 10_000), ip("192.0.2.1"), "hairpin");
        }
        assert_eq!(ask_udp(from, "192.0.2.1:8080", 100), ip("192.0.2.1"));
    }
    assert!(unreachable_tcp(&quiet, "192.0.2.1:8080"));
}

#[test]
fn a_withdrawn_port_ends_its_sessions_and_the_next_one_starts_afresh() {
    if !require_root("a_withdrawn_port_ends_its_sessions_and_the_next_one_starts_afresh") {
        return;
    }
    let lab = Lab::new("withdraw");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    serve_tcp(&a, "0.0.0.0:80");
    serve_tcp(&outside, "192.0.2.2:80");
    let published = || {
        let sessions = daemon.json(&["nat", "sessions"]);
        let sessions = sessions.as_array().unwrap().iter();
        sessions.filter(|s| s["published"] == true).count()
    };
    for round in 0..3 {
        // Published while the card is in use: guard and socket filter follow.
        daemon.run(&["publish", "add", "8080:80", "a"]);
        let mut open = outside.run(|| connect(DEADLINE, "192.0.2.1:8080".parse().unwrap()));
        open.set_read_timeout(Some(SILENCE)).unwrap();
        open.read_exact(&mut [0; "192.0.2.2\n".len()]).unwrap();
        assert_eq!(ask_tcp(&outside, "192.0.2.1:8080", 10), ip("192.0.2.2"));
        assert!(published() >= 1, "round {round}");
        daemon.run(&["publish", "rm", "8080:80"]);
        assert_eq!(published(), 0, "round {round}");
        // The host, whose port it is again, refuses.
        let _ = open.write_all(b"x");
        let error = open.read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "round {round}");
        assert_eq!(
            ask_tcp(&a, "192.0.2.2:80", 10),
            ip("192.0.2.1"),
            "others go on"
        );
    }
}

#[test]
fn ipv6_reaches_siblings_the_gateway_and_the_host() {
    if !require_root("ipv6_reaches_siblings_the_gateway_and_the_host") {
        return;
    }
    let lab = Lab::new("six");
    let (host, outside) = lab.host_and_outside();
    let [a, b] = lab.namespaces(["a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&[
        "network",
        "create",
        "dual",
        "--subnet",
        "10.88.0.0/24",
        "--subnet6",
        "fd00:88::/64",
    ]);
    daemon.attach(&a, "dual", "a", &[]);
    daemon.attach(&b, "dual", "b", &["--backend", "packet"]);
    for ns in [&a, &b, &host] {
        serve_tcp(ns, "[::]:80");
        serve_udp(ns, "[::]:80");
    }
    serve_tcp(&outside, "192.0.2.2:80");
    for (from, to, seen) in [
        (&a, "fd00:88::3", "fd00:88::2"),
        (&b, "fd00:88::2", "fd00:88::3"),
        (&a, "fd00:88::1", "fd00:88::2"),
        (&b, "fd00:88::1", "fd00:88::3"),
        (&host, "fd00:88::2", "fd00:88::1"),
        (&host, "fd00:88::3", "fd00:88::1"),
    ] {
        let to_ip = ip(to);
        assert!(ping(from, to_ip, 56), "ping {to} from {seen}");
        assert_eq!(
            ask_tcp(from, &format!("[{to}]:80"), 1_000_000),
            ip(seen),
            "{to}"
        );
        assert_eq!(
            ask_udp(from, &format!("[{to}]:80"), 1_000),
            ip(seen),
            "{to}"
        );
    }
    // The other family of the same endpoints.
    assert_eq!(ask_tcp(&a, "10.88.0.3:80", 1_000), ip("10.88.0.2"));
    assert_eq!(ask_tcp(&a, "192.0.2.2:80", 1_000), ip("192.0.2.1"));
}

#[test]
fn panicking_handlers_cost_no_ping() {
    if !require_root("panicking_handlers_cost_no_ping") {
        return;
    }
    const PANICS: u64 = 20;
    let lab = Lab::new("pings");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut pinger = Pinger::new(&a, ip("10.88.0.3"));
    let pings = std::thread::spawn(move || {
        let (mut sent, mut lost) = (0u64, 0u64);
        while !stopped.load(Ordering::Relaxed) {
            sent += 1;
            lost += u64::from(!pinger.ping(56, Duration::from_secs(2)));
            // One per millisecond, and not as fast as the machine can.
            std::thread::park_timeout(Duration::from_millis(1));
        }
        (sent, lost)
    });
    for _ in 0..PANICS {
        let mut socket = UnixStream::connect(daemon.socket()).unwrap();
        let request = "POST /v1/debug/panic HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    }
    assert_eq!(daemon.json(&["status"])["api_panics"], PANICS);
    stop.store(true, Ordering::Relaxed);
    let (sent, lost) = pings.join().unwrap();
    println!("{sent} pings, {lost} lost, {PANICS} panics");
    assert!(sent > 0);
    assert_eq!(lost, 0);
}
