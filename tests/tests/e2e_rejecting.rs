//! Rules that reject, as sandboxes, the host and the outside feel them.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use nix::errno::Errno;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, require_root};
use tests::talk::{ask_tcp, serve_tcp, serve_udp};

/// How a connection fails.
fn connecting(ns: &Namespace, address: &str) -> ErrorKind {
    let address: SocketAddr = address.parse().unwrap();
    let connected = ns.run(|| TcpStream::connect_timeout(&address, DEADLINE));
    connected.unwrap_err().kind()
}

/// How a connected socket is told of its datagram: by its number, because names of errors differ.
fn sending(ns: &Namespace, address: &str) -> Option<i32> {
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = ns.run(|| UdpSocket::bind(any)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect(address).unwrap();
    socket.send(b"?").unwrap();
    socket.recv(&mut [0; 16]).unwrap_err().raw_os_error()
}

#[test]
fn who_is_rejected_is_told_at_once_and_of_what() {
    if !require_root("who_is_rejected_is_told_at_once_and_of_what") {
        return;
    }
    let lab = Lab::new("rejecting");
    let (host, outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&[
        "network",
        "create",
        "n",
        "--subnet",
        "10.88.0.0/24",
        "--subnet6",
        "fd00:88::/64",
    ]);
    let [a, b] = lab.namespaces(["a", "b"]);
    daemon.attach(&a, "n", "a", &["--ip", "10.88.0.2", "--ip6", "fd00:88::2"]);
    daemon.attach(&b, "n", "b", &["--ip", "10.88.0.3", "--ip6", "fd00:88::3"]);
    serve_tcp(&b, "0.0.0.0:80");
    serve_udp(&b, "0.0.0.0:53");
    serve_tcp(&outside, "192.0.2.2:80");
    ask_tcp(&a, "10.88.0.3:80", 1);
    daemon.run(&["rule", "add", "no", "reject", "--from", "a", "--to", "b"]);
    assert_eq!(connecting(&a, "10.88.0.3:80"), ErrorKind::ConnectionRefused);
    assert_eq!(
        connecting(&a, "[fd00:88::3]:80"),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(
        sending(&a, "10.88.0.3:53"),
        Some(Errno::EHOSTUNREACH as i32)
    );
    assert_eq!(sending(&a, "[fd00:88::3]:53"), Some(Errno::EACCES as i32));
    serve_tcp(&a, "0.0.0.0:80");
    ask_tcp(&b, "10.88.0.2:80", 1);
    let drops = daemon.json(&["drops"]);
    let mut reasons = drops.as_array().unwrap().iter();
    let rejected = reasons
        .find(|drop| drop["reason"] == "policy_rejected")
        .unwrap();
    assert!(rejected["answered"].as_u64().unwrap() >= 4, "{rejected}");
    let why = daemon.run(&["why", "a", "10.88.0.3", "tcp", "80"]);
    assert!(
        why.contains("rule 'no' rejects it") && why.contains("TCP reset"),
        "{why}"
    );

    // On the way out, and on the way in by a published port.
    daemon.run(&[
        "rule", "add", "inside", "reject", "--from", "n", "--to", "outside",
    ]);
    assert_eq!(connecting(&a, "192.0.2.2:80"), ErrorKind::ConnectionRefused);
    assert_eq!(sending(&a, "192.0.2.2:9"), Some(Errno::EHOSTUNREACH as i32));
    daemon.run(&["rule", "rm", "inside"]);
    daemon.run(&["publish", "add", "8080:80", "b"]);
    ask_tcp(&outside, "192.0.2.1:8080", 1);
    daemon.run(&[
        "rule", "add", "closed", "reject", "--from", "outside", "--to", "b",
    ]);
    assert_eq!(
        connecting(&outside, "192.0.2.1:8080"),
        ErrorKind::ConnectionRefused
    );
    let listed = daemon.run(&["rule", "ls"]);
    assert!(listed.contains("reject"), "{listed}");
    daemon.run(&["rule", "set", "closed", "--action", "allow"]);
    ask_tcp(&outside, "192.0.2.1:8080", 1);
}
