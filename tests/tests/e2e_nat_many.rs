//! Very many at once through the NAT, from real namespaces: mappings, connections, and every value
//! that a UDP checksum can have.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root};
use tests::talk::Witness;
use tests::wire::{self, Link};

/// Mappings of one container.
const MAPPINGS: u16 = 50_000;
/// The first port of the container: some have to get another port than their own.
const FIRST_PORT: u16 = 1_024;
/// Datagrams that are on their way at a time: few enough for every buffer between the ends.
const WINDOW: usize = 100;
/// How long one that may be lost is waited for, and how often it is sent.
const PATIENCE: Duration = Duration::from_millis(500);
const TRIES_MAX: usize = 10;
/// TCP connections, one after the other by each of the callers.
const CONNECTIONS: u32 = 20_000;
const CALLERS: u32 = 8;

/// A host with an outside, and a container `a` at 10.88.0.2.
fn container(lab: &Lab, nat: &str) -> (Namespace, Namespace, Namespace, Daemon) {
    let (host, outside) = lab.host_and_outside();
    if nat.contains("port_first") {
        // The host keeps its own connections out of the NAT's range.
        host.set_sysctl("net/ipv4/ip_local_port_range", "1024 8191");
    }
    let a = lab.namespace("a");
    let daemon = Daemon::start_with_nat(lab, &host, nat);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    assert_eq!(daemon.attach(&a, "n", "a", &[]), "10.88.0.2");
    (host, outside, a, daemon)
}

/// Sends back what comes, with the client's address and port in front. Ends with the process.
fn echo_with_port(ns: &Namespace, address: &str) {
    let socket = ns.run(|| UdpSocket::bind(address)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((size, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&labelled(client, &buffer[..size]), client);
        }
    });
}

/// What a server answers: whom it sees, and what it got.
fn labelled(client: SocketAddr, got: &[u8]) -> Vec<u8> {
    let IpAddr::V4(address) = client.ip().to_canonical() else {
        panic!("{client} is no IPv4 client");
    };
    let mut answer = address.octets().to_vec();
    answer.extend(client.port().to_be_bytes());
    answer.extend(got);
    answer
}

/// Reads a [`labelled`] answer to `number`.
fn seen_by_server(answer: &[u8], number: u32) -> SocketAddr {
    assert_eq!(
        answer.get(6..),
        Some(&number.to_be_bytes()[..]),
        "own answer"
    );
    let address: [u8; 4] = *answer.first_chunk().unwrap();
    let port = u16::from_be_bytes([answer[4], answer[5]]);
    (Ipv4Addr::from(address), port).into()
}

/// Sends each port's own number from it, and returns by which address each was seen outside.
fn ask_from(ns: &Namespace, ports: &[u16], round: u32, server: &str) -> HashMap<u16, SocketAddr> {
    let mut seen = HashMap::new();
    for window in ports.chunks(WINDOW) {
        let clients: Vec<(u16, UdpSocket)> = ns.run(|| {
            let client = |port: &u16| {
                let socket = UdpSocket::bind(("0.0.0.0", *port)).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                (*port, socket)
            };
            window.iter().map(client).collect()
        });
        let number = |port: u16| round << 16 | u32::from(port);
        for (port, client) in &clients {
            client.send(&number(*port).to_be_bytes()).unwrap();
        }
        for (port, client) in &clients {
            seen.insert(*port, answer_to(client, number(*port)));
        }
    }
    seen
}

/// The answer to what was sent, which is sent again when none comes.
fn answer_to(client: &UdpSocket, number: u32) -> SocketAddr {
    let mut buffer = [0; 64];
    for _ in 0..TRIES_MAX {
        match client.recv(&mut buffer) {
            Ok(size) => return seen_by_server(&buffer[..size], number),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        client.send(&number.to_be_bytes()).unwrap();
    }
    panic!("{number:#x} got no answer");
}

#[test]
fn fifty_thousand_udp_mappings_of_one_container_are_each_answered_right() {
    if !require_root("fifty_thousand_udp_mappings_of_one_container_are_each_answered_right") {
        return;
    }
    let lab = Lab::new("mappings");
    let (_host, outside, a, daemon) = container(&lab, "port_first = 8192\nport_last = 65535\n");
    echo_with_port(&outside, "192.0.2.2:9");
    let mut ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + MAPPINGS).collect();
    fastrand::Rng::with_seed(50_000).shuffle(&mut ports);
    let since = Instant::now();
    let first = ask_from(&a, &ports, 1, "192.0.2.2:9");
    let made = since.elapsed();
    for (port, external) in &first {
        assert_eq!(external.ip(), ip("192.0.2.1"), "{port}");
        assert!(external.port() >= 8_192, "{port} by {external}");
        assert_eq!(external.port() % 2, port % 2, "parity is kept");
    }
    let external: HashSet<&SocketAddr> = first.values().collect();
    assert_eq!(external.len(), usize::from(MAPPINGS), "no two share a port");
    let kept = first.iter().filter(|(port, seen)| **port == seen.port());
    let kept = kept.count();
    // All at once: each is still the one that it was.
    let held = daemon.json(&["status"])["nat_sessions"].as_u64().unwrap();
    assert_eq!(held, u64::from(MAPPINGS));
    let second = ask_from(&a, &ports, 2, "192.0.2.2:9");
    assert_eq!(second, first);
    let held = daemon.json(&["status"])["nat_sessions"].as_u64().unwrap();
    assert_eq!(held, u64::from(MAPPINGS));
    println!("{MAPPINGS} mappings made and answered in {made:.1?}, {kept} of them kept their port");
}

/// Serves TCP on `address`: answers four bytes with them, [`labelled`], and closes when the client
/// has. Ends with the process.
fn serve_numbers(ns: &Namespace, address: &str) {
    let listener = ns.run(|| TcpListener::bind(address)).unwrap();
    for _ in 0..CALLERS {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // What failed is told by the caller.
                let _ = serve_number(stream);
            }
        });
    }
}

fn serve_number(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut number = [0; 4];
    stream.read_exact(&mut number)?;
    let answer = labelled(stream.peer_addr()?, &number);
    stream.write_all(&answer)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// One connection: its own number there and back, and an orderly end by the client first.
fn call(server: SocketAddr, number: u32) -> std::io::Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(&number.to_be_bytes())?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(stream.read_to_end(&mut Vec::new())?, 0);
    Ok(seen_by_server(&answer, number))
}

/// Calls `server` from `ns` again and again, by several callers at a time; none may fail, and every
/// call must be seen as coming from `seen_as`. What it took, and the longest call.
fn call_many(ns: &Namespace, server: &str, seen_as: IpAddr) -> String {
    let server: SocketAddr = server.parse().unwrap();
    // Each end of a connection that is over keeps its port for a minute.
    ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let count = CONNECTIONS;
    let (next, since) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let next = Arc::clone(&next);
            ns.spawn(move || {
                let (mut failed, mut longest) = (Vec::new(), Duration::ZERO);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return (failed, longest);
                    }
                    let since = Instant::now();
                    match call(server, number) {
                        Ok(client) if client.ip() == seen_as => {}
                        outcome => failed.push((number, outcome.map_err(|e| e.to_string()))),
                    }
                    longest = longest.max(since.elapsed());
                }
            })
        })
        .collect();
    let (mut failed, mut longest) = (Vec::new(), Duration::ZERO);
    for caller in callers {
        let (some, long) = caller.join().unwrap();
        failed.extend(some);
        longest = longest.max(long);
    }
    let shown = &failed[..failed.len().min(10)];
    assert!(
        failed.is_empty(),
        "{} of {count} failed: {shown:?}",
        failed.len()
    );
    format!(
        "{count} connections in {:.1?}, the longest {longest:.1?}",
        since.elapsed()
    )
}

#[test]
fn twenty_thousand_tcp_connections_leave_by_snat_and_none_fails() {
    if !require_root("twenty_thousand_tcp_connections_leave_by_snat_and_none_fails") {
        return;
    }
    let lab = Lab::new("snat");
    // More connections than the range has ports: those that are over have to make room.
    let (_host, outside, a, daemon) = container(&lab, "");
    serve_numbers(&outside, "192.0.2.2:80");
    println!(
        "by SNAT: {}",
        call_many(&a, "192.0.2.2:80", ip("192.0.2.1"))
    );
    assert_eq!(drops(&daemon, "nat_"), [] as [String; 0]);
}

#[test]
fn twenty_thousand_tcp_connections_enter_by_a_published_port_and_none_fails() {
    if !require_root("twenty_thousand_tcp_connections_enter_by_a_published_port_and_none_fails") {
        return;
    }
    let lab = Lab::new("published");
    let (_host, outside, a, daemon) = container(&lab, "");
    daemon.run(&["publish", "add", "8080:80", "a"]);
    serve_numbers(&a, "0.0.0.0:80");
    let told = call_many(&outside, "192.0.2.1:8080", ip("192.0.2.2"));
    println!("by a published port: {told}");
    assert_eq!(drops(&daemon, "nat_"), [] as [String; 0]);
}

/// The reasons beginning with `prefix` for which anything was dropped.
fn drops(daemon: &Daemon, prefix: &str) -> Vec<String> {
    let drops = daemon.json(&["drops"]);
    let reasons = drops.as_array().unwrap().iter();
    let reasons =
        reasons.map(|drop| format!("{} {}", drop["reason"].as_str().unwrap(), drop["count"]));
    reasons
        .filter(|reason| reason.starts_with(prefix))
        .collect()
}

/// Sends datagrams whose payload is each number of `numbers`, from the port that `port` says, as
/// complete frames, and waits until each has come. The receiving kernel sums up every one: what is
/// wrong by a bit does not come.
fn numbers_arrive(
    sender: &mut Witness,
    receiver: &UdpSocket,
    (link, port): (Link, u16),
    numbers: Range<u32>,
) {
    let mut missing: HashSet<u16> = numbers.map(|number| number as u16).collect();
    let source = SocketAddr::from(([10, 88, 0, 2], port));
    let target = SocketAddr::from(([192, 0, 2, 2], 9));
    let mut buffer = [0; 64];
    for _ in 0..TRIES_MAX {
        for number in &missing {
            let payload = number.to_be_bytes();
            sender.send(&wire::udp(link, source, target, 64, &payload));
        }
        while !missing.is_empty() {
            let Ok((size, client)) = receiver.recv_from(&mut buffer) else {
                break;
            };
            assert_eq!((client.ip(), size), (ip("192.0.2.1"), 2));
            missing.remove(&u16::from_be_bytes([buffer[0], buffer[1]]));
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("{missing:?} never came from port {port}");
}

#[test]
fn every_value_of_a_udp_checksum_survives_the_translation() {
    if !require_root("every_value_of_a_udp_checksum_survives_the_translation") {
        return;
    }
    let lab = Lab::new("checksums");
    let (_host, outside, a, daemon) = container(&lab, "");
    let receiver = outside.run(|| UdpSocket::bind("192.0.2.2:9")).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let shown = daemon.json(&["network", "ls"]);
    let gateway = shown[0]["gateway_mac"].as_str().unwrap().parse().unwrap();
    let link = Link(a.mac("eth0"), gateway);
    let mut sender = Witness::new(&a, "eth0");
    // One port outside the range, which is replaced, and one that is kept.
    for port in [40_000, 50_000] {
        let source = SocketAddr::from(([10, 88, 0, 2], port));
        let target = SocketAddr::from(([192, 0, 2, 2], 9));
        let mut sums = HashSet::new();
        for first in (0..65_536).step_by(WINDOW) {
            let numbers = first..(first + WINDOW as u32).min(65_536);
            for number in numbers.clone() {
                let payload = (number as u16).to_be_bytes();
                let frame = wire::udp(link, source, target, 64, &payload);
                sums.insert([frame[40], frame[41]]);
            }
            numbers_arrive(&mut sender, &receiver, (link, port), numbers);
        }
        // Zero would say that there is none (RFC 768), and is sent as 0xffff.
        assert_eq!(sums.len(), 65_535, "from port {port}");
        // And the datagram without one.
        let mut frame = wire::udp(link, source, target, 64, b"none");
        frame[40..42].fill(0);
        sender.send(&frame);
        let mut buffer = [0; 64];
        let (size, client) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..size], client.ip()),
            (&b"none"[..], ip("192.0.2.1"))
        );
        println!("65,536 payloads from port {port}, seen as {client}");
    }
    // The witness is not blind: a sum that is wrong by one does not come.
    let source = SocketAddr::from(([10, 88, 0, 2], 40_000));
    let target = SocketAddr::from(([192, 0, 2, 2], 9));
    let mut frame = wire::udp(link, source, target, 64, b"wrong");
    frame[41] ^= 1;
    sender.send(&frame);
    let error = receiver.recv_from(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
