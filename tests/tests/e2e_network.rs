//! What is set of a network, at its creation and while it is in use.

#![allow(clippy::unwrap_used)]

mod program;

use std::net::{SocketAddr, UdpSocket};

use serde_json::json;
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::talk::{Pinger, SILENCE, ping};

fn udp(ns: &Namespace, address: &str) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let (size, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..size].to_vec(), from)
}

/// Whether a stranger's datagram comes in by the external port that `inside` has got for talking
/// to a friend; what the friend sends after it comes in at any rate.
fn lets_strangers_in(inside: &UdpSocket, friend: &UdpSocket, stranger: &UdpSocket) -> bool {
    inside
        .send_to(b"hello", friend.local_addr().unwrap())
        .unwrap();
    let (_, external) = heard(friend);
    stranger.send_to(b"stranger", external).unwrap();
    friend.send_to(b"friend", external).unwrap();
    let (first, _) = heard(inside);
    let strangers = first == b"stranger";
    if strangers {
        assert_eq!(heard(inside).0, b"friend");
    }
    strangers
}

#[test]
fn a_networks_behaviour_is_set_in_use_kept_and_goes_before_the_file() {
    if !require_root("a_networks_behaviour_is_set_in_use_kept_and_goes_before_the_file") {
        return;
    }
    let lab = Lab::new("behave");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let config = lab.dir().join("causeway.toml");
    let text = "[nat]\nmapping = \"address-dependent\"\n\
                [nat.networks.n]\nfiltering = \"address-dependent\"\n";
    std::fs::write(&config, text).unwrap();
    let mut daemon = Daemon::start(&lab, &host, &["--config", path_text(&config)]);
    let strict = "address-and-port-dependent";
    daemon.run(&[
        "network",
        "create",
        "n",
        "--subnet",
        "10.88.0.0/24",
        "--nat-filtering",
        strict,
    ]);
    daemon.attach(&a, "n", "a", &[]);
    let shown = |daemon: &Daemon| {
        let view: serde_json::Value =
            serde_json::from_str(&daemon.run(&["network", "inspect", "n"])).unwrap();
        let view = view[0].clone();
        let listed = daemon.json(&["network", "ls"])[0].clone();
        assert_eq!(listed["nat_filtering"], view["nat_filtering"]);
        (
            view["nat_mapping"].clone(),
            view["nat_filtering"].clone(),
            view["nat_set"]["filtering"].clone(),
            view["ageing_seconds"].clone(),
        )
    };
    let wanted = (
        json!("address-dependent"),
        json!(strict),
        json!(strict),
        json!(300),
    );
    assert_eq!(shown(&daemon), wanted);

    let friend = udp(&outside, "192.0.2.2:7000");
    let stranger = udp(&outside, "192.0.2.2:7001");
    let old = udp(&a, "10.88.0.2:5000");
    assert!(!lets_strangers_in(&old, &friend, &stranger));
    let open = "endpoint-independent";
    daemon.run(&[
        "network",
        "set",
        "n",
        "--nat-filtering",
        open,
        "--ageing",
        "60",
    ]);
    let new = udp(&a, "10.88.0.2:5001");
    assert!(lets_strangers_in(&new, &friend, &stranger));
    assert!(
        !lets_strangers_in(&old, &friend, &stranger),
        "a mapping stays as it was made"
    );

    let wanted = (
        json!("address-dependent"),
        json!(open),
        json!(open),
        json!(60),
    );
    assert_eq!(shown(&daemon), wanted);
    daemon.kill();
    daemon.restart();
    assert_eq!(shown(&daemon), wanted);
    daemon.run(&["network", "set", "n", "--nat-filtering", "default"]);
    let filtering = json!("address-dependent");
    let wanted = (filtering.clone(), filtering, json!(null), json!(60));
    assert_eq!(shown(&daemon), wanted, "the file's");

    let wrong = daemon.refused(&["network", "set", "n", "--nat-mapping", "symmetric"]);
    assert!(
        wrong.contains("symmetric") && wrong.contains("choose"),
        "{wrong}"
    );
    let wrong = daemon.refused(&["network", "set", "n", "--ageing", "1"]);
    assert!(wrong.contains("from 10 to"), "{wrong}");
    let unknown = daemon.refused(&["network", "set", "m", "--ageing", "60"]);
    assert!(unknown.contains("'m'"), "{unknown}");
    assert_eq!(shown(&daemon).3, json!(60), "refusals change nothing");
}

#[test]
fn a_routed_network_leaves_the_host_its_own_address() {
    if !require_root("a_routed_network_leaves_the_host_its_own_address") {
        return;
    }
    let lab = Lab::new("own");
    let (host, outside) = lab.host_and_outside();
    host.add_address("up0", "2001:db8::1/64");
    outside.add_address("eth0", "2001:db8::2/64");
    outside.add_route("2001:db8:5::/64", "2001:db8::1", "eth0");
    let daemon = Daemon::start(&lab, &host, &[]);
    let create = [
        "network",
        "create",
        "own",
        "--no-host-link",
        "--subnet6",
        "2001:db8::/64",
    ];
    let words = |more: &[&'static str]| [&create[..], more].concat();
    let refused = daemon.refused(&words(&["--nat6", "routed"]));
    assert!(refused.contains("2001:db8::1"), "{refused}");
    daemon.run(&words(&["--nat6", "masquerade"]));
    let refused = daemon.refused(&["network", "set", "own", "--nat6", "routed"]);
    assert!(refused.contains("2001:db8::1"), "{refused}");
    assert!(ping(&outside, ip("2001:db8::1"), 56));
    daemon.run(&["network", "rm", "own"]);
    let far = ["network", "create", "far", "--subnet6", "2001:db8:5::/64"];
    daemon.run(&[&far[..], &["--no-host-link", "--nat6", "routed"]].concat());
    assert!(ping(&outside, ip("2001:db8:5::1"), 56), "the gateway's");
    // An address that comes later is the host's as well.
    host.add_address("up0", "2001:db8:5::99/128");
    wait_until(DEADLINE, "the host answers at its new address", || {
        Pinger::new(&outside, ip("2001:db8:5::99")).ping(56, SILENCE)
    });
}
