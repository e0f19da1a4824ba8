//! IPv6 to the outside, masqueraded and routed: from real namespaces, past a router to a far host.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_for};
use tests::rig::{bulk_size, transfer};
use tests::talk::{SILENCE, ask_tcp, ask_udp, ping, serve_tcp, serve_udp, unreachable_tcp};

const HOST: &str = "2001:db8::1";
const ROUTER: &str = "2001:db8::2";
const FAR: &str = "2001:db8:f::9";
const SUBNET: &str = "2001:db8:5::/64";
const GATEWAY: &str = "2001:db8:5::1";
const A: &str = "2001:db8:5::2";
const MODES: [&str; 2] = ["masquerade", "routed"];

/// A host that forwards and has a network `n`, behind a router that has a route to it, and a far host.
struct Place {
    daemon: Daemon,
    lab: Lab,
    host: Namespace,
    router: Namespace,
    far: Namespace,
}

fn place(name: &str, mode: &str) -> Place {
    let lab = Lab::new(name);
    let [host, router, far] = lab.namespaces(["host", "router", "far"]);
    for ns in [&host, &router] {
        ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    }
    lab.cable(&host, "up0", &router, "eth0");
    lab.cable(&router, "eth1", &far, "eth0");
    host.add_address("up0", "2001:db8::1/64");
    host.add_default_route("up0", ROUTER);
    router.add_address("eth0", "2001:db8::2/64");
    router.add_address("eth1", "2001:db8:f::1/64");
    router.add_route("2001:db8:5::/48", HOST, "eth0");
    far.add_address("eth0", "2001:db8:f::9/64");
    far.add_default_route("eth0", "2001:db8:f::1");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    create(&daemon, "n", SUBNET, mode, &[]);
    Place {
        daemon,
        lab,
        host,
        router,
        far,
    }
}

fn create(daemon: &Daemon, name: &str, subnet: &str, mode: &str, more: &[&str]) {
    let mut words = vec![
        "network",
        "create",
        name,
        "--subnet6",
        subnet,
        "--nat6",
        mode,
    ];
    words.extend(more);
    daemon.run(&words);
}

/// Who answers a probe that lives for so many hops.
fn hop(ns: &Namespace, limit: u32) -> IpAddr {
    let socket = ns.run(|| UdpSocket::bind("[::]:0")).unwrap();
    setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
    setsockopt(&socket, sockopt::Ipv6Ttl, &limit.cast_signed()).unwrap();
    socket.connect((FAR, 33_434)).unwrap();
    socket.set_nonblocking(true).unwrap();
    wait_for(DEADLINE, "somebody reports a probe", || {
        // What an earlier probe has brought is told by the next call.
        let _ = socket.send(&[0; 32]);
        let (mut buffer, mut control) = ([0; 64], nix::cmsg_space!([u8; 64]));
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_ERRQUEUE;
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
                .ok()?;
        message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
                Some(IpAddr::V6(Ipv6Addr::from(from.sin6_addr.s6_addr)))
            }
            _ => None,
        })
    })
}

#[test]
fn tcp_udp_and_probes_pass_nat66_and_a_routed_network() {
    if !require_root("tcp_udp_and_probes_pass_nat66_and_a_routed_network") {
        return;
    }
    for mode in MODES {
        let Place {
            daemon,
            lab,
            host,
            far,
            router: _router,
        } = place("six-out", mode);
        let a = lab.namespace("a");
        assert_eq!(daemon.attach(&a, "n", "a", &[]), A);
        serve_tcp(&far, "[::]:80");
        serve_udp(&far, "[::]:80");
        let seen = ip(if mode == "routed" { A } else { HOST });
        assert_eq!(
            ask_tcp(&a, &format!("[{FAR}]:80"), 1_000_000),
            seen,
            "{mode}"
        );
        for size in [8, 1_400, 8_000] {
            assert_eq!(ask_udp(&a, &format!("[{FAR}]:80"), size), seen, "{mode}");
            assert!(ping(&a, ip(FAR), size), "{mode}: {size} bytes");
        }
        let listen = (ip(FAR), 5_001).into();
        let done = transfer(&a, &far, listen, listen, bulk_size(), Some("cubic"));
        assert_eq!(done.client.ip(), seen);
        println!("{mode}: {done}");
        let hops = [1, 2, 3].map(|limit| hop(&a, limit));
        assert_eq!(hops, [GATEWAY, ROUTER, FAR].map(ip), "{mode}");
        // The host's own traffic is its own.
        assert_eq!(ask_tcp(&host, &format!("[{FAR}]:80"), 1_000), ip(HOST));
    }
}

#[test]
fn published_ipv6_ports_keep_the_client_and_turn_round() {
    if !require_root("published_ipv6_ports_keep_the_client_and_turn_round") {
        return;
    }
    for mode in MODES {
        let Place {
            daemon,
            lab,
            host: _host,
            far,
            router: _router,
        } = place("six-in", mode);
        let [a, b] = lab.namespaces(["a", "b"]);
        daemon.attach(&a, "n", "a", &[]);
        daemon.attach(&b, "n", "b", &[]);
        serve_tcp(&a, "[::]:80");
        serve_udp(&a, "[::]:80");
        daemon.run(&["publish", "add", "8080:80", "a"]);
        daemon.run(&["publish", "add", "8080:80/udp", "a"]);
        let public = format!("[{HOST}]:8080");
        assert_eq!(ask_tcp(&far, &public, 1_000_000), ip(FAR), "{mode}");
        assert_eq!(ask_udp(&far, &public, 1_000), ip(FAR), "{mode}");
        assert_eq!(ask_tcp(&b, &public, 1_000), ip(HOST), "{mode}: hairpin");
        assert_eq!(ask_udp(&b, &public, 1_000), ip(HOST), "{mode}: hairpin");
        let listen = (ip(A), 81).into();
        daemon.run(&["publish", "add", "8081:81", "a"]);
        let connect = (ip(HOST), 8_081).into();
        let done = transfer(&far, &a, listen, connect, bulk_size(), Some("cubic"));
        assert_eq!(done.client.ip(), ip(FAR));
        println!("published, {mode}: {done}");
    }
}

/// Covers: 65
#[test]
fn a_routed_network_lets_in_what_was_asked_for_and_the_host_stays_out_of_it() {
    if !require_root("a_routed_network_lets_in_what_was_asked_for_and_the_host_stays_out_of_it") {
        return;
    }
    let Place {
        daemon,
        lab,
        host: _host,
        far,
        router: _router,
    } = place("six-routed", "auto");
    let a = lab.namespace("a");
    daemon.attach(&a, "n", "a", &[]);
    serve_tcp(&far, "[::]:80");
    serve_tcp(&a, "[::]:80");
    let public = format!("[{A}]:80");
    // A documentation prefix is routed by nobody, so it is masqueraded until told otherwise.
    assert_eq!(daemon.json(&["network", "ls"])[0]["nat6"], "masquerade");
    assert_eq!(ask_tcp(&a, &format!("[{FAR}]:80"), 1_000), ip(HOST));
    daemon.run(&["network", "set", "n", "--nat6", "routed"]);
    assert_eq!(daemon.json(&["nat", "sessions"]), serde_json::json!([]));
    assert!(daemon.run(&["network", "ls"]).contains("routed"));
    assert_eq!(ask_tcp(&a, &format!("[{FAR}]:80"), 1_000), ip(A));

    assert!(unreachable_tcp(&far, &public), "nobody has asked for it");
    assert!(ping(&far, ip(A), 56) && ping(&far, ip(GATEWAY), 56));
    daemon.run(&["publish", "add", "8080:80", "a"]);
    daemon.run(&["publish", "add", "8080:80/udp", "a"]);
    assert_eq!(ask_tcp(&far, &public, 1_000_000), ip(FAR));

    // Each packet comes in once, though the host forwards.
    let server = a.run(|| UdpSocket::bind((ip(A), 80))).unwrap();
    let client = far.run(|| UdpSocket::bind((ip(FAR), 0))).unwrap();
    let mut buffer = [0; 16];
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"once", (ip(A), 80)).unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(from.ip(), ip(FAR));
    server.set_read_timeout(Some(SILENCE)).unwrap();
    let again = server.recv_from(&mut buffer).map_err(|e| e.kind());
    assert_eq!(again, Err(ErrorKind::WouldBlock));

    daemon.run(&["network", "set", "n", "--nat6", "masquerade"]);
    assert!(unreachable_tcp(&far, &public));
    assert_eq!(ask_tcp(&far, &format!("[{HOST}]:8080"), 1_000), ip(FAR));
    assert_eq!(ask_tcp(&a, &format!("[{FAR}]:80"), 1_000), ip(HOST));
}

#[test]
fn the_path_mtu_is_found_in_both_directions() {
    if !require_root("the_path_mtu_is_found_in_both_directions") {
        return;
    }
    for mode in MODES {
        let Place {
            daemon,
            lab,
            host: _host,
            router,
            far,
        } = place("six-mtu", mode);
        let [a, b] = lab.namespaces(["a", "b"]);
        create(
            &daemon,
            "small",
            "2001:db8:5:1::/64",
            mode,
            &["--mtu", "1280"],
        );
        daemon.attach(&a, "n", "a", &[]);
        daemon.attach(&b, "small", "b", &[]);
        serve_udp(&far, "[::]:80");
        // The answer is larger than the network's MTU: our gateway says so.
        let masqueraded = mode == "masquerade";
        let seen = if masqueraded { HOST } else { "2001:db8:5:1::2" };
        assert_eq!(
            ask_udp(&b, &format!("[{FAR}]:80"), 1_380),
            ip(seen),
            "{mode}"
        );
        // The far cable takes less than ours: its router says so.
        router.set_mtu("eth1", 1_280);
        far.set_mtu("eth0", 1_280);
        let listen = (ip(FAR), 5_001).into();
        let done = transfer(&a, &far, listen, listen, bulk_size(), Some("cubic"));
        println!("{mode}, MTU 1280 on the way: {done}");
    }
}
