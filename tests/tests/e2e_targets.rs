//! The real program with ports published to several targets, and with endpoints that go and come
//! back: who serves whom, what ends, what goes on.

#![allow(clippy::unwrap_used)]

mod program;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::daemon::{Daemon, attach_words, without_sessions};
use tests::lab::{DEADLINE, Lab, Namespace, connect, require_root, wait_until};

use program::unreachable;

const PUBLIC: &str = "192.0.2.1:8080";

/// Says its name to whoever connects, then sends back what comes. Ends with the process.
fn serve(ns: &Namespace, port: u16, name: &'static str) {
    let listener = ns.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    ns.spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = writeln!(stream, "{name}");
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    });
}

/// Says its name to whoever sends a datagram. Ends with the process.
fn serve_udp(ns: &Namespace, port: u16, name: &'static str) {
    let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
    ns.spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), client);
        }
    });
}

/// A connection and who is at its other end.
struct Connection {
    stream: TcpStream,
    server: String,
}

fn open(ns: &Namespace, address: &str) -> Connection {
    let address: SocketAddr = address.parse().unwrap();
    let stream = ns.run(|| connect(DEADLINE, address));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // Byte by byte: what follows the line is for others to read.
    let mut line = String::new();
    BufReader::with_capacity(1, &stream)
        .read_line(&mut line)
        .unwrap();
    let server = line.trim().to_owned();
    Connection { stream, server }
}

impl Connection {
    /// Sends a byte and gets it back.
    fn goes_on(&mut self) -> bool {
        let mut byte = [0];
        let sent = self.stream.write_all(b"x");
        sent.and_then(|()| self.stream.read_exact(&mut byte))
            .is_ok()
            && byte == *b"x"
    }
}

/// Connects `count` times and counts who answered.
fn spread(ns: &Namespace, address: &str, count: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        *counts.entry(open(ns, address).server).or_default() += 1;
    }
    counts
}

fn even(names: &[&str], count: usize) -> BTreeMap<String, usize> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), count))
        .collect()
}

struct Stage {
    lab: Lab,
    host: Namespace,
    outside: Namespace,
    servers: Vec<(Namespace, &'static str)>,
    daemon: Daemon,
}

/// Three servers on one network, none of them published yet.
fn stage(name: &str) -> Stage {
    let lab = Lab::new(name);
    let (host, outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &[]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let server = |name| (lab.namespace(name), name);
    let servers: Vec<_> = ["a", "b", "c"].map(server).into();
    for (ns, name) in &servers {
        daemon.attach(ns, "n", name, &[]);
        serve(ns, 80, name);
        serve_udp(ns, 53, name);
    }
    Stage {
        lab,
        host,
        outside,
        servers,
        daemon,
    }
}

impl Stage {
    fn publish(&self, spec: &str, more: &[&str]) {
        for (_, name) in &self.servers {
            let words = ["publish", "add", spec, name, "--join"];
            self.daemon.run(&[&words, more].concat());
        }
    }

    /// Live sessions of each target.
    fn sessions(&self) -> BTreeMap<String, u64> {
        let listed = self.daemon.json(&["publish", "ls"]);
        let targets = listed[0]["targets"].as_array().unwrap();
        let of_target = |target: &serde_json::Value| {
            let name = target["endpoint"].as_str().unwrap().to_owned();
            (name, target["live_sessions"].as_u64().unwrap())
        };
        targets.iter().map(of_target).collect()
    }
}

/// Covers: 56, 62
#[test]
fn connections_are_spread_evenly_wherever_they_come_from() {
    if !require_root("connections_are_spread_evenly_wherever_they_come_from") {
        return;
    }
    let stage = stage("spread");
    let daemon = &stage.daemon;
    daemon.run(&["publish", "add", "8080:80", "a"]);
    let refused = daemon.refused(&["publish", "add", "8080:80", "b"]);
    assert!(
        refused.contains("endpoint 'a'") && refused.contains("--join"),
        "{refused}"
    );
    for name in ["b", "c"] {
        let joined = daemon.run(&["publish", "add", "8080:80", name, "--join"]);
        assert_eq!(joined, "8080:80/tcp\n");
    }
    let twice = daemon.refused(&["publish", "add", "8080:80", "c", "--join"]);
    assert!(twice.contains("already"), "{twice}");

    let all = even(&["a", "b", "c"], 20);
    assert_eq!(spread(&stage.outside, PUBLIC, 60), all);
    let rules = daemon.json(&["nat", "rules"]);
    for rule in rules
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["kind"] == "publish")
    {
        assert_eq!(rule["new_sessions"], 20, "{rules}");
        for way in ["in", "out"] {
            let packets = rule[format!("packets_{way}")].as_u64().unwrap();
            let bytes = rule[format!("bytes_{way}")].as_u64().unwrap();
            assert!(packets >= 40 && bytes >= packets * 40, "{rule}");
        }
    }
    // By the host's own connections, and from one of the targets by the host's address.
    assert_eq!(spread(&stage.host, "127.0.0.1:8080", 60), all);
    assert_eq!(spread(&stage.servers[0].0, PUBLIC, 60), all);

    daemon.run(&["publish", "set", "8080:80", "b", "--weight", "3"]);
    let mut weighed = even(&["a", "c"], 10);
    weighed.insert("b".to_owned(), 30);
    assert_eq!(spread(&stage.outside, PUBLIC, 50), weighed);
    let bad = daemon.refused(&["publish", "set", "8080:80", "b", "--weight", "0"]);
    assert!(bad.contains("drain"), "{bad}");
    let unknown = daemon.refused(&["publish", "drain", "8080:80", "nobody"]);
    assert!(unknown.contains("nobody"), "{unknown}");

    let mut served = BTreeMap::new();
    for _ in 0..6 {
        // Said again, it changes nothing.
        daemon.run(&["publish", "set", "8080:80", "--balance", "source-hash"]);
        served.extend(spread(&stage.outside, PUBLIC, 4));
    }
    assert_eq!(served.len(), 1, "one client, one target: {served:?}");

    let printed = daemon.run(&["nat", "rules", "--zero"]);
    assert!(
        printed.contains("8080:80/tcp") && printed.contains("masquerade"),
        "{printed}"
    );
    let rules = daemon.json(&["nat", "rules"]);
    assert_eq!(
        (&rules[0]["new_sessions"], &rules[0]["bytes_in"]),
        (&0.into(), &0.into())
    );
    let listed = daemon.run(&["port", "b"]);
    assert!(
        listed.starts_with("80/tcp -> 0.0.0.0:8080 (source-hash, 1 of 3, weight 3"),
        "{listed}"
    );
}

#[test]
fn draining_loses_no_connection_and_taking_out_ends_them() {
    if !require_root("draining_loses_no_connection_and_taking_out_ends_them") {
        return;
    }
    let stage = stage("drain");
    let daemon = &stage.daemon;
    stage.publish("8080:80", &[]);
    let mut held: Vec<Connection> = (0..9).map(|_| open(&stage.outside, PUBLIC)).collect();
    let relayed: Vec<Connection> = (0..3)
        .map(|_| open(&stage.host, "127.0.0.1:8080"))
        .collect();
    assert_eq!(
        stage.sessions().values().copied().collect::<Vec<_>>(),
        [3; 3]
    );

    daemon.run(&["publish", "drain", "8080:80", "b"]);
    assert_eq!(spread(&stage.outside, PUBLIC, 10), even(&["a", "c"], 5));
    assert_eq!(
        spread(&stage.host, "127.0.0.1:8080", 10),
        even(&["a", "c"], 5)
    );
    assert!(held.iter_mut().all(Connection::goes_on));
    assert_eq!(stage.sessions()["b"], 3);
    daemon.run(&["publish", "undrain", "8080:80", "b"]);
    assert_eq!(
        spread(&stage.outside, PUBLIC, 30),
        even(&["a", "b", "c"], 10)
    );

    daemon.run(&["publish", "rm", "8080:80", "--target", "b"]);
    assert_eq!(spread(&stage.outside, PUBLIC, 10), even(&["a", "c"], 5));
    for connection in held
        .iter_mut()
        .chain(&mut relayed.into_iter().collect::<Vec<_>>())
    {
        let patience = Duration::from_millis(400);
        connection.stream.set_read_timeout(Some(patience)).unwrap();
        assert_eq!(
            connection.goes_on(),
            connection.server != "b",
            "{}",
            connection.server
        );
    }
    daemon.run(&["publish", "drain", "8080:80", "a"]);
    daemon.run(&["publish", "drain", "8080:80", "c"]);
    assert!(unreachable(&stage.outside, PUBLIC));
    let drops = daemon.json(&["drops"]);
    let counted = |drop: &serde_json::Value| drop["reason"] == "nat_no_target";
    assert!(drops.as_array().unwrap().iter().any(counted), "{drops}");
    daemon.run(&["publish", "rm", "8080:80"]);
    assert_eq!(daemon.json(&["publish", "ls"]), serde_json::json!([]));
}

/// Connections that each client of the load makes at most, so that it ends by itself.
const LOAD_CONNECTIONS_MAX: usize = 20_000;

#[test]
fn draining_under_load_fails_nobody() {
    if !require_root("draining_under_load_fails_nobody") {
        return;
    }
    let stage = stage("load");
    stage.publish("8080:80", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (outside, stop) = (stage.outside.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                for _ in 0..LOAD_CONNECTIONS_MAX {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut connection = open(&outside, PUBLIC);
                    for _ in 0..3 {
                        assert!(connection.goes_on(), "at {}", connection.server);
                    }
                    *counts.entry(connection.server).or_default() += 1;
                }
                counts
            })
        })
        .collect();
    for round in 0..12 {
        let name = ["a", "b", "c"][round % 3];
        stage.daemon.run(&["publish", "drain", "8080:80", name]);
        // Whoever was on the way in is counted by now, so that what is left goes down.
        let left = stage.sessions()[name];
        assert!(
            stage.sessions()[name] <= left,
            "{name} got a session while it drained"
        );
        stage.daemon.run(&["publish", "undrain", "8080:80", name]);
    }
    stop.store(true, Ordering::Relaxed);
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    for client in clients {
        for (server, count) in client.join().expect("a client that was always served") {
            *total.entry(server).or_default() += count;
        }
    }
    println!("served under load: {total:?}");
    assert_eq!(total.len(), 3);
}

#[test]
fn targets_outlive_a_killed_daemon_and_their_connections_with_them() {
    if !require_root("targets_outlive_a_killed_daemon_and_their_connections_with_them") {
        return;
    }
    let mut stage = stage("keep");
    stage.publish("8080:80", &["--balance", "source-hash"]);
    stage
        .daemon
        .run(&["publish", "set", "8080:80", "b", "--weight", "7"]);
    let mut held = open(&stage.outside, PUBLIC);
    // One that would change the choice if it counted.
    let other = ["a", "b", "c"]
        .into_iter()
        .find(|name| *name != held.server);
    stage
        .daemon
        .run(&["publish", "drain", "8080:80", other.unwrap()]);
    let described = |daemon: &Daemon| without_sessions(daemon.json(&["publish", "ls"]));
    let before = described(&stage.daemon);
    assert_eq!(before[0]["targets"][1]["weight"], 7);
    for _ in 0..3 {
        stage.daemon.kill();
        stage.daemon.restart();
        assert_eq!(described(&stage.daemon), before);
        assert!(
            held.goes_on(),
            "its client's address leads to the same target"
        );
        assert_eq!(open(&stage.outside, PUBLIC).server, held.server);
    }
}

#[test]
fn an_endpoint_that_goes_leaves_the_port_to_the_others() {
    if !require_root("an_endpoint_that_goes_leaves_the_port_to_the_others") {
        return;
    }
    let stage = stage("leave");
    let daemon = &stage.daemon;
    stage.publish("8080:80", &[]);
    daemon.run(&["detach", "a"]);
    assert_eq!(spread(&stage.outside, PUBLIC, 10), even(&["b", "c"], 5));
    daemon.run(&["detach", "b"]);
    daemon.run(&["detach", "c"]);
    assert_eq!(daemon.json(&["publish", "ls"]), serde_json::json!([]));
    assert!(unreachable(&stage.outside, PUBLIC));
}

/// A client that sends to one address from one port, and hears who answers.
struct Stream(UdpSocket);

impl Stream {
    fn new(ns: &Namespace, to: &str) -> Self {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        Self(socket)
    }

    /// Sends once; who has answered by then.
    fn say(&self) -> Option<String> {
        // An error speaks of an earlier datagram that nobody took.
        let _ = self.0.send(b"hello");
        let mut buffer = [0; 64];
        let size = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
    }

    fn reaches(&self, name: &str) {
        wait_until(DEADLINE, "the stream reaches it", || {
            self.say().as_deref() == Some(name)
        });
    }
}

/// Covers: 9, 48
#[test]
fn a_udp_stream_follows_its_container_to_another_address() {
    if !require_root("a_udp_stream_follows_its_container_to_another_address") {
        return;
    }
    let stage = stage("follow");
    let (daemon, lab) = (&stage.daemon, &stage.lab);
    daemon.run(&["publish", "add", "5353:53/udp", "a"]);
    let stream = Stream::new(&stage.outside, "192.0.2.1:5353");
    let inner = Stream::new(&stage.servers[2].0, "192.0.2.1:5353");
    stream.reaches("a");
    inner.reaches("a");

    // Detached and attached under another address, and published again.
    let next = lab.namespace("next");
    serve_udp(&next, 53, "next");
    daemon.run(&["detach", "a"]);
    assert_eq!(stream.say(), None);
    assert_eq!(
        daemon.attach(&next, "n", "a", &["--ip", "10.88.0.50"]),
        "10.88.0.50"
    );
    daemon.run(&["publish", "add", "5353:53/udp", "a"]);
    stream.reaches("next");
    inner.reaches("next");

    // In one step: what is published for it comes along.
    let last = lab.namespace("last");
    serve_udp(&last, 53, "last");
    let path = last.path();
    let words = attach_words(&path, "n", "a");
    let taken = daemon.refused(&words);
    assert!(taken.contains("already"), "{taken}");
    stream.reaches("next");
    let made = daemon.json(&[&words[..], &["--ip", "10.88.0.60", "--replace"]].concat());
    assert_eq!(made["addresses"][0], "10.88.0.60/24");
    stream.reaches("last");
    inner.reaches("last");
    assert_eq!(spread_of_udp(&stream, 20), ["last"]);
}

fn spread_of_udp(stream: &Stream, count: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..count).filter_map(|_| stream.say()).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn whoever_gets_an_address_by_chance_gets_nothing_of_its_former_owner() {
    if !require_root("whoever_gets_an_address_by_chance_gets_nothing_of_its_former_owner") {
        return;
    }
    let stage = stage("chance");
    let (daemon, lab) = (&stage.daemon, &stage.lab);
    daemon.run(&["publish", "add", "5353:53/udp", "a"]);
    let stream = Stream::new(&stage.outside, "192.0.2.1:5353");
    stream.reaches("a");
    // What the former owner asked outside is answered late, again and again.
    let asked = stage
        .outside
        .run(|| UdpSocket::bind("192.0.2.2:7777"))
        .unwrap();
    asked.set_read_timeout(Some(DEADLINE)).unwrap();
    let asking = stage.servers[0]
        .0
        .run(|| UdpSocket::bind("0.0.0.0:53053"))
        .unwrap();
    asking.send_to(b"question", "192.0.2.2:7777").unwrap();
    let (_, external) = asked.recv_from(&mut [0; 64]).unwrap();

    let address = "10.88.0.2";
    daemon.run(&["detach", "a"]);
    let stranger = lab.namespace("stranger");
    assert_eq!(
        daemon.attach(&stranger, "n", "stranger", &["--ip", address]),
        address
    );
    let heard: Vec<UdpSocket> = [53, 53_053]
        .map(|port| stranger.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap())
        .into();
    for _ in 0..5 {
        assert_eq!(stream.say(), None);
        asked.send_to(b"answer", external).unwrap();
    }
    // Behind everything that was sent before, one that does arrive.
    daemon.run(&["publish", "add", "6363:53/udp", "stranger"]);
    let fence = stage.outside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    fence.send_to(b"fence", "192.0.2.1:6363").unwrap();
    let mut buffer = [0; 64];
    heard[0].set_read_timeout(Some(DEADLINE)).unwrap();
    let (size, _) = heard[0].recv_from(&mut buffer).unwrap();
    assert_eq!(
        &buffer[..size],
        b"fence",
        "nothing of the former owner came before"
    );
    heard[1].set_nonblocking(true).unwrap();
    assert!(heard[1].recv_from(&mut buffer).is_err());
    assert_eq!(stream.say(), None);
}
