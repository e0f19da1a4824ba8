//! A host with two network cards and a tunnel: each uplink with its own address, and what happens to
//! one of them is nothing to the flows on the others.

#![allow(clippy::unwrap_used)]

mod program;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use control::link::inet::Route;
use dataplane_port::guard;
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{
    DEADLINE, Lab, Namespace, block_on, connect, ip, prefix, require_root, wait_until,
};
use tests::rig::{bulk_size, transfer};
use tests::talk::{Pinger, SILENCE, ask_tcp, ask_udp, ping, serve_tcp, serve_udp, unreachable_tcp};
use tests::tunnel::Tunnel;

use program::footprint;

/// An address behind the default route, whichever that is.
const FAR: &str = "100.64.9.9";
/// MTU of the tunnel, as WireGuard's.
const TUNNEL_MTU: u32 = 1_420;

/// A host with `up0` 192.0.2.1, `up1` 198.51.100.1 and `tun0` 203.0.113.1, each with somebody at .2 of
/// it, a default route by the tunnel, and a container `a` with port 80 published as 8080.
struct Homes {
    lab: Lab,
    host: Namespace,
    one: Namespace,
    two: Namespace,
    far: Namespace,
    a: Namespace,
    daemon: Daemon,
    _tunnel: Tunnel,
}

impl Homes {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let [host, one, two, far, a] = lab.namespaces(["host", "one", "two", "far", "a"]);
        lab.cable(&host, "up0", &one, "eth0");
        lab.cable(&host, "up1", &two, "eth0");
        let tunnel = Tunnel::new(&host, &far, "tun0");
        for (ns, link, address) in [
            (&host, "up0", "192.0.2.1/24"),
            (&one, "eth0", "192.0.2.2/24"),
            (&host, "up1", "198.51.100.1/24"),
            (&two, "eth0", "198.51.100.2/24"),
            (&host, "tun0", "203.0.113.1/24"),
            (&far, "tun0", "203.0.113.2/24"),
            // What is far away is reached by the tunnel or by `one`, as the host says.
            (&far, "lo", "100.64.9.9/32"),
            (&one, "lo", "100.64.9.9/32"),
        ] {
            ns.add_address(link, address);
        }
        for ns in [&host, &far] {
            ns.set_mtu("tun0", TUNNEL_MTU);
        }
        // A datagram's answer comes from the address that was asked only where a socket has it.
        for (ns, address) in [
            (&one, "192.0.2.2"),
            (&two, "198.51.100.2"),
            (&far, "203.0.113.2"),
            (&one, FAR),
            (&far, FAR),
        ] {
            serve_tcp(ns, &format!("{address}:80"));
            serve_udp(ns, &format!("{address}:80"));
        }
        serve_tcp(&a, "0.0.0.0:80");
        serve_udp(&a, "0.0.0.0:80");
        let tunnel_index = host.link("tun0").index;
        add_route(&host, Route::on_link(prefix("0.0.0.0/0"), tunnel_index));
        let uplinks = ["--uplink", "up0", "--uplink", "up1", "--uplink", "tun0"];
        let daemon = Daemon::start(&lab, &host, &uplinks);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        daemon.attach(&a, "n", "a", &[]);
        daemon.run(&["publish", "add", "8080:80", "a"]);
        daemon.run(&["publish", "add", "8080:80/udp", "a"]);
        Self {
            lab,
            host,
            one,
            two,
            far,
            a,
            daemon,
            _tunnel: tunnel,
        }
    }

    /// Whether the status says that an uplink is up, with these addresses.
    fn uplink(&self, name: &str) -> (bool, Vec<String>) {
        let status = self.daemon.json(&["status"]);
        let uplinks = status["uplinks"].as_array().unwrap().iter();
        let mut uplinks = uplinks.filter(|uplink| uplink["name"] == name);
        let uplink = uplinks.next().unwrap();
        let addresses = uplink["addresses"].as_array().unwrap().iter();
        let addresses = addresses.map(|address| address.as_str().unwrap().to_owned());
        (uplink["up"] == true, addresses.collect())
    }

    /// Sessions with this external address.
    fn sessions_by(&self, external: &str) -> Vec<Value> {
        let sessions = self.daemon.json(&["nat", "sessions"]);
        let sessions = sessions.as_array().unwrap().iter();
        let by = format!("{external}:");
        let by_it = |session: &&Value| session["external"].as_str().unwrap().starts_with(&by);
        sessions.filter(by_it).cloned().collect()
    }
}

fn add_route(ns: &Namespace, route: Route) {
    block_on(ns.netlink().add_route(route)).unwrap();
}

/// The address by which a server sees one datagram of a new flow, if it is answered.
fn seen_once(ns: &Namespace, server: &str) -> Option<IpAddr> {
    let client = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.set_read_timeout(Some(SILENCE)).unwrap();
    client.send_to(b"", server).ok()?;
    let mut buffer = [0; 64];
    let (size, _) = client.recv_from(&mut buffer).ok()?;
    let answer = std::str::from_utf8(&buffer[..size]).unwrap();
    Some(ip(answer.trim()))
}

/// A ping each millisecond, and a stream that goes back and forth, until they are ended.
struct Undisturbed {
    stop: Arc<AtomicBool>,
    pings: JoinHandle<(u32, u32)>,
    stream: JoinHandle<u32>,
}

impl Undisturbed {
    fn new(ns: &Namespace, address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_pings, stop_stream) = (Arc::clone(&stop), Arc::clone(&stop));
        let mut pinger = Pinger::new(ns, ip(address));
        let pings = std::thread::spawn(move || {
            let (mut sent, mut lost) = (0, 0);
            while !stop_pings.load(Ordering::Relaxed) {
                sent += 1;
                lost += u32::from(!pinger.ping(56, Duration::from_secs(2)));
                // One per millisecond, and not as fast as the machine can.
                std::thread::park_timeout(Duration::from_millis(1));
            }
            (sent, lost)
        });
        let server = format!("{address}:80").parse().unwrap();
        let mut stream = ns.run(|| connect(DEADLINE, server));
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let stream = std::thread::spawn(move || {
            let mut line = [0; "198.51.100.1\n".len()];
            stream.read_exact(&mut line).unwrap();
            let mut rounds = 0u32;
            while !stop_stream.load(Ordering::Relaxed) {
                let sent = [rounds as u8; 100];
                stream.write_all(&sent).unwrap();
                let mut received = [0; 100];
                stream.read_exact(&mut received).unwrap();
                assert_eq!(received, sent);
                rounds += 1;
                std::thread::park_timeout(Duration::from_millis(1));
            }
            rounds
        });
        Self {
            stop,
            pings,
            stream,
        }
    }

    /// Ends both, and tells what they did.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let rounds = self.stream.join().unwrap();
        let (sent, lost) = self.pings.join().unwrap();
        println!("{sent} pings, {lost} lost; a stream of {rounds} rounds");
        assert!(sent > 0 && rounds > 0);
        assert_eq!(lost, 0, "of {sent} pings");
    }
}

#[test]
fn each_uplink_is_left_by_its_own_address_and_entered_with_the_clients() {
    if !require_root("each_uplink_is_left_by_its_own_address_and_entered_with_the_clients") {
        return;
    }
    let mut homes = Homes::new("homes");
    for (server, own) in [
        ("192.0.2.2", "192.0.2.1"),
        ("198.51.100.2", "198.51.100.1"),
        ("203.0.113.2", "203.0.113.1"),
        (FAR, "203.0.113.1"),
    ] {
        let at = format!("{server}:80");
        assert_eq!(ask_tcp(&homes.a, &at, 1_000_000), ip(own), "{server}");
        assert_eq!(ask_udp(&homes.a, &at, 1_000), ip(own), "{server}");
        assert_eq!(
            ask_udp(&homes.a, &at, 4_000),
            ip(own),
            "in fragments, {server}"
        );
        assert!(ping(&homes.a, ip(server), 56), "{server}");
    }
    for (client, own, seen) in [
        (&homes.one, "192.0.2.1", "192.0.2.2"),
        (&homes.two, "198.51.100.1", "198.51.100.2"),
        (&homes.far, "203.0.113.1", "203.0.113.2"),
    ] {
        let at = format!("{own}:8080");
        assert_eq!(ask_tcp(client, &at, 1_000_000), ip(seen), "{own}");
        assert_eq!(ask_udp(client, &at, 1_000), ip(seen), "{own}");
        assert_eq!(ask_udp(client, &at, 4_000), ip(seen), "in fragments, {own}");
    }
    // The host beside us keeps what is its own, on the tunnel too, and answers for nothing of ours.
    serve_tcp(&homes.host, "0.0.0.0:22");
    for (client, own) in [
        (&homes.one, "192.0.2.1"),
        (&homes.two, "198.51.100.1"),
        (&homes.far, "203.0.113.1"),
    ] {
        ask_tcp(client, &format!("{own}:22"), 100_000);
        assert!(ping(client, ip(own), 56), "{own}");
        let refused = client.run(|| std::net::TcpStream::connect(format!("{own}:23")));
        assert_eq!(
            refused.unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{own}"
        );
        // Nobody opened this port of the NAT's range, and the host is kept from saying so.
        assert!(unreachable_tcp(client, &format!("{own}:60000")), "{own}");
    }
    assert_eq!(
        ask_tcp(&homes.host, &format!("{FAR}:80"), 1_000),
        ip("203.0.113.1")
    );
    for uplink in ["up0", "up1", "tun0"] {
        let found = homes.host.run(|| guard::find(uplink)).unwrap();
        assert_eq!(found, Some(guard::Method::Bpf), "{uplink}");
    }
    homes.daemon.clean();
    for uplink in ["up0", "up1", "tun0"] {
        assert_eq!(
            homes.host.run(|| guard::find(uplink)).unwrap(),
            None,
            "{uplink}"
        );
    }
    let left = footprint(&homes.host);
    let ours = left
        .links
        .iter()
        .filter(|(name, _)| name.starts_with("causeway"));
    assert_eq!((ours.count(), left.reserved_ports.as_str()), (0, ""));
}

#[test]
fn bulk_passes_a_tunnel_both_ways() {
    if !require_root("bulk_passes_a_tunnel_both_ways") {
        return;
    }
    let homes = Homes::new("bulk");
    let far = "203.0.113.2:5001".parse().unwrap();
    // The test's own carrier takes a packet at a time.
    let bytes = bulk_size() / 4;
    let out = transfer(&homes.a, &homes.far, far, far, bytes, None);
    assert_eq!(out.client.ip(), ip("203.0.113.1"));
    let (listen, published) = ("0.0.0.0:81", "203.0.113.1:8081");
    homes.daemon.run(&["publish", "add", "8081:81", "a"]);
    let (listen, published) = (listen.parse().unwrap(), published.parse().unwrap());
    let inwards = transfer(&homes.far, &homes.a, listen, published, bytes, None);
    assert_eq!(inwards.client.ip(), ip("203.0.113.2"));
    println!("by a tunnel of MTU {TUNNEL_MTU}: out {out}; in {inwards}");
}

#[test]
fn a_default_route_that_moves_and_an_address_that_renews_disturb_no_other_uplink() {
    if !require_root(
        "a_default_route_that_moves_and_an_address_that_renews_disturb_no_other_uplink",
    ) {
        return;
    }
    let homes = Homes::new("moves");
    let (host, a) = (&homes.host, &homes.a);
    let far = format!("{FAR}:80");
    let undisturbed = Undisturbed::new(a, "198.51.100.2");

    assert_eq!(ask_tcp(a, &far, 10), ip("203.0.113.1"), "by the tunnel");
    // In place of the one by the tunnel.
    host.add_default_route("up0", "192.0.2.2");
    wait_until(DEADLINE, "the default route by up0 is used", || {
        seen_once(a, &far) == Some(ip("192.0.2.1"))
    });
    assert_eq!(ask_tcp(a, &far, 100_000), ip("192.0.2.1"));
    assert_eq!(ask_tcp(a, "203.0.113.2:80", 10), ip("203.0.113.1"));

    // The address of up0 is replaced: what used it ends, and what is new uses the other.
    let mut old = a.run(|| connect(DEADLINE, "192.0.2.2:80".parse().unwrap()));
    old.set_read_timeout(Some(DEADLINE)).unwrap();
    old.read_exact(&mut [0; "192.0.2.1\n".len()]).unwrap();
    assert!(!homes.sessions_by("192.0.2.1").is_empty());
    let index = host.link("up0").index;
    block_on(host.netlink().remove_address(index, prefix("192.0.2.1/24"))).unwrap();
    host.add_address("up0", "192.0.2.50/24");
    wait_until(DEADLINE, "up0 has its new address", || {
        homes.uplink("up0") == (true, vec!["192.0.2.50".to_owned()])
    });
    assert_eq!(homes.sessions_by("192.0.2.1"), [] as [Value; 0]);
    assert_eq!(ask_tcp(a, "192.0.2.2:80", 100_000), ip("192.0.2.50"));
    assert_eq!(ask_tcp(&homes.one, "192.0.2.50:8080", 10), ip("192.0.2.2"));
    assert!(unreachable_tcp(&homes.one, "192.0.2.1:8080"));

    // And the default route goes back; the kernel took it away with the address.
    let tunnel = host.link("tun0").index;
    add_route(host, Route::on_link(prefix("0.0.0.0/0"), tunnel));
    wait_until(DEADLINE, "the default route by the tunnel is used", || {
        seen_once(a, &far) == Some(ip("203.0.113.1"))
    });
    assert_eq!(ask_tcp(a, &far, 100_000), ip("203.0.113.1"));
    undisturbed.end();
}

#[test]
fn an_uplink_that_flaps_or_vanishes_comes_back_and_disturbs_no_other() {
    if !require_root("an_uplink_that_flaps_or_vanishes_comes_back_and_disturbs_no_other") {
        return;
    }
    let homes = Homes::new("flaps");
    let (host, a) = (&homes.host, &homes.a);
    let undisturbed = Undisturbed::new(a, "198.51.100.2");
    let works = |own: &str| {
        assert_eq!(ask_tcp(a, "192.0.2.2:80", 100_000), ip(own));
        assert_eq!(ask_udp(a, "192.0.2.2:80", 100), ip(own));
        let published = format!("{own}:8080");
        assert_eq!(ask_tcp(&homes.one, &published, 100_000), ip("192.0.2.2"));
        let found = host.run(|| guard::find("up0")).unwrap();
        assert_eq!(found, Some(guard::Method::Bpf));
        // A guard that were gone would let the host refuse this.
        assert!(unreachable_tcp(&homes.one, &format!("{own}:60000")));
    };
    works("192.0.2.1");
    for _ in 0..3 {
        let index = host.link("up0").index;
        block_on(host.netlink().set_down(index)).unwrap();
        wait_until(DEADLINE, "up0 is down", || !homes.uplink("up0").0);
        assert_eq!(ask_tcp(a, "198.51.100.2:80", 10), ip("198.51.100.1"));
        host.set_up("up0");
        wait_until(DEADLINE, "up0 is up", || homes.uplink("up0").0);
        works("192.0.2.1");
    }
    // A tunnel flaps like a card.
    let index = host.link("tun0").index;
    block_on(host.netlink().set_down(index)).unwrap();
    wait_until(DEADLINE, "tun0 is down", || !homes.uplink("tun0").0);
    host.set_up("tun0");
    wait_until(DEADLINE, "tun0 is up", || homes.uplink("tun0").0);
    assert_eq!(ask_tcp(a, "203.0.113.2:80", 10), ip("203.0.113.1"));

    // A card is pulled out, and another is put in under the same name.
    for _ in 0..2 {
        block_on(host.netlink().delete(host.link("up0").index)).unwrap();
        wait_until(DEADLINE, "up0 is gone", || !homes.uplink("up0").0);
        assert_eq!(homes.sessions_by("192.0.2.1"), [] as [Value; 0]);
        assert_eq!(ask_tcp(a, "198.51.100.2:80", 10), ip("198.51.100.1"));
        homes.lab.cable(host, "up0", &homes.one, "eth0");
        host.add_address("up0", "192.0.2.1/24");
        homes.one.add_address("eth0", "192.0.2.2/24");
        wait_until(DEADLINE, "up0 is back", || {
            homes.uplink("up0") == (true, vec!["192.0.2.1".to_owned()])
        });
        works("192.0.2.1");
    }
    undisturbed.end();
}

#[test]
fn without_a_name_the_tunnel_of_the_default_route_is_the_uplink() {
    if !require_root("without_a_name_the_tunnel_of_the_default_route_is_the_uplink") {
        return;
    }
    let lab = Lab::new("default");
    let [host, far, a] = lab.namespaces(["host", "far", "a"]);
    let _tunnel = Tunnel::new(&host, &far, "tun0");
    host.add_address("tun0", "203.0.113.1/24");
    far.add_address("tun0", "203.0.113.2/24");
    far.add_address("lo", "100.64.9.9/32");
    let index = host.link("tun0").index;
    add_route(&host, Route::on_link(prefix("0.0.0.0/0"), index));
    serve_tcp(&far, "0.0.0.0:80");
    let daemon = Daemon::start(&lab, &host, &[]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let own: IpAddr = ip("203.0.113.1");
    assert_eq!(ask_tcp(&a, &format!("{FAR}:80"), 1_000), own);
}

/// Serves TCP and UDP on port 90 of every address of `ns`: says a name.
fn serve_name(ns: &Namespace, name: &'static str) {
    let listener = ns.run(|| TcpListener::bind("0.0.0.0:90")).unwrap();
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:90")).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // A client that is gone is nothing to the server.
            let _ = stream.write_all(name.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), client);
        }
    });
}

/// Who answers at an address by TCP and by UDP, which is the same.
fn name_at(ns: &Namespace, address: &str) -> String {
    let mut stream = ns.run(|| connect(DEADLINE, address.parse().unwrap()));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut name = String::new();
    stream.read_to_string(&mut name).unwrap();
    let client = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"?", address).unwrap();
    let mut buffer = [0; 16];
    let (size, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], name.as_bytes(), "UDP at {address}");
    name
}

fn refused_tcp(ns: &Namespace, address: &str) -> bool {
    let refused = ns.run(|| TcpStream::connect(address));
    refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The words of each line that a command prints.
fn words(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines();
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[test]
fn one_port_leads_to_two_endpoints_on_two_uplinks() {
    if !require_root("one_port_leads_to_two_endpoints_on_two_uplinks") {
        return;
    }
    let mut homes = Homes::new("doors");
    let b = homes.lab.namespace("b");
    homes.daemon.attach(&b, "n", "b", &[]);
    serve_name(&homes.a, "a");
    serve_name(&b, "b");
    for (endpoint, uplink) in [("a", "up0"), ("b", "up1")] {
        for spec in ["9000:90", "9000:90/udp"] {
            let add = ["publish", "add", spec, endpoint, "--uplink", uplink];
            homes.daemon.run(&add);
        }
    }
    what_cannot_be_published_for_an_uplink_is_refused(&homes.daemon);
    publications_of_uplinks_are_listed(&homes.daemon);

    let everybody = |homes: &Homes, first: &str| {
        let (first, second) = (format!("{first}:9000"), "198.51.100.1:9000");
        assert_eq!(name_at(&homes.one, &first), "a");
        assert_eq!(name_at(&homes.two, second), "b");
        // Hosts inside, the target itself among them, and the host.
        for ns in [&homes.a, &b, &homes.host] {
            assert_eq!(name_at(ns, &first), "a");
            assert_eq!(name_at(ns, second), "b");
        }
        for (ns, closed) in [
            (&homes.far, "203.0.113.1:9000"),
            (&homes.host, "127.0.0.1:9000"),
            (&homes.a, "203.0.113.1:9000"),
        ] {
            assert!(refused_tcp(ns, closed), "{closed}");
        }
    };
    everybody(&homes, "192.0.2.1");
    the_address_of_an_uplink_is_closed_to_another(&homes);

    // What was published is there again after a crash, and follows an address that renews.
    let before = homes.daemon.json(&["publish", "ls"]);
    homes.daemon.kill();
    homes.daemon.restart();
    assert_eq!(
        tests::daemon::without_sessions(homes.daemon.json(&["publish", "ls"])),
        tests::daemon::without_sessions(before)
    );
    everybody(&homes, "192.0.2.1");
    let index = homes.host.link("up0").index;
    let old = prefix("192.0.2.1/24");
    block_on(homes.host.netlink().remove_address(index, old)).unwrap();
    homes.host.add_address("up0", "192.0.2.50/24");
    wait_until(DEADLINE, "up0 has its new address", || {
        homes.uplink("up0") == (true, vec!["192.0.2.50".to_owned()])
    });
    everybody(&homes, "192.0.2.50");
    assert_eq!(
        homes.daemon.json(&["status"])["warnings"],
        serde_json::json!([])
    );

    let ambiguous = homes.daemon.refused(&["publish", "rm", "9000:90"]);
    for word in ["(up0)", "(up1)", "id"] {
        assert!(ambiguous.contains(word), "{ambiguous}");
    }
    let listed = homes.daemon.json(&["publish", "ls"]);
    let mut listed = listed.as_array().unwrap().iter();
    let of_up0 = listed.find(|one| one["uplink"] == "up0" && one["transport"] == "tcp");
    let id = of_up0.unwrap()["id"].to_string();
    homes.daemon.run(&["publish", "rm", &id]);
    assert!(refused_tcp(&homes.one, "192.0.2.50:9000"));
    assert_eq!(name_at(&homes.two, "198.51.100.1:9000"), "b");
}

fn what_cannot_be_published_for_an_uplink_is_refused(daemon: &Daemon) {
    let refused = |spec: &str, uplink: &[&str]| {
        let add = ["publish", "add", spec, "a"];
        daemon.refused(&[&add, uplink].concat())
    };
    let no_uplink = refused("9001:90", &["--uplink", "lo"]);
    for word in ["'lo'", "up0, up1, tun0", "--uplink lo"] {
        assert!(no_uplink.contains(word), "{no_uplink}");
    }
    let both = refused("192.0.2.1:9001:90", &["--uplink", "up0"]);
    assert!(both.contains("one of the two"), "{both}");
    for uplink in [&[][..], &["--uplink", "up0"]] {
        let taken = refused("9000:90", uplink);
        assert!(taken.contains("endpoint 'a'"), "{taken}");
    }
}

fn publications_of_uplinks_are_listed(daemon: &Daemon) {
    let listed = daemon.run(&["publish", "ls"]);
    let listed = words(&listed);
    assert_eq!(listed[0][..4], ["ID", "SPEC", "UPLINK", "ENDPOINT"]);
    for wanted in [
        ["8080:80/tcp", "any", "a"],
        ["9000:90/tcp", "up0", "a"],
        ["9000:90/udp", "up1", "b"],
    ] {
        assert!(listed.iter().any(|line| line[1..4] == wanted), "{listed:?}");
    }
    let ports = daemon.run(&["port", "b"]);
    assert!(ports.contains("90/tcp -> 0.0.0.0%up1:9000\n"), "{ports}");
    for (client, host, endpoint) in [
        ("192.0.2.2", "192.0.2.1", "a"),
        ("198.51.100.2", "198.51.100.1", "b"),
    ] {
        let why = daemon.run(&["why", client, host, "tcp", "9000"]);
        assert!(why.contains("published port"), "{why}");
        assert!(why.contains(&format!("routed to {endpoint}")), "{why}");
    }
}

/// A client of `up0` that sends to the address of `up1` all the same gets no answer, not even the
/// host's.
fn the_address_of_an_uplink_is_closed_to_another(homes: &Homes) {
    homes.one.add_route("198.51.100.1/32", "192.0.2.1", "eth0");
    assert!(unreachable_tcp(&homes.one, "198.51.100.1:9000"));
    let drops = homes.daemon.json(&["drops"]);
    let mut drops = drops.as_array().unwrap().iter();
    let other = drops.find(|drop| drop["reason"] == "nat_other_uplink");
    assert!(other.unwrap()["count"].as_u64().unwrap() > 0);
}
