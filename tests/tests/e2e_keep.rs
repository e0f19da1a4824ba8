//! NAT sessions that outlive the daemon, by real flows through `kill -9`.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, require_root, wait_until};
use tests::talk::{SILENCE, serve_tcp, serve_udp};

/// A conversation that goes to and fro for as long as the test wants.
struct Flow {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    /// The longest time between two answers.
    talk: JoinHandle<Duration>,
}

impl Flow {
    fn start(turn: impl FnMut() -> bool + Send + 'static) -> Self {
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let mut turn = turn;
        let talk = std::thread::spawn(move || {
            let (mut last, mut outage) = (Instant::now(), Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                if turn() {
                    outage = outage.max(last.elapsed());
                    last = Instant::now();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                // A thousand rounds a second at most, and not as fast as the machine can.
                std::thread::park_timeout(Duration::from_millis(1));
            }
            outage
        });
        Self { stop, rounds, talk }
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.talk.join().unwrap()
    }
}

/// A connection whose bytes come back one by one.
fn tcp_flow(ns: &Namespace, address: &str) -> Flow {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = ns
        .run(|| TcpStream::connect_timeout(&address, DEADLINE))
        .unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut byte = [0];
    // The server's line with our address.
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    let mut number = 0u8;
    Flow::start(move || {
        number = number.wrapping_add(1);
        stream.write_all(&[number]).unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number]);
        true
    })
}

/// Datagrams from one socket, each answered with the address that the server saw, which stays.
fn udp_flow(ns: &Namespace, address: &str) -> Flow {
    let address: SocketAddr = address.parse().unwrap();
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    Flow::start(move || {
        let mut buffer = [0; 64];
        let _ = socket.send(b"x");
        socket.recv(&mut buffer).is_ok()
    })
}

/// What identifies the sessions that are there.
fn listed(daemon: &Daemon) -> Vec<Value> {
    let mut sessions: Vec<Value> = daemon
        .json(&["nat", "sessions"])
        .as_array()
        .unwrap()
        .iter()
        .map(|session| {
            let keys = [
                "protocol",
                "inside",
                "external",
                "remote",
                "published",
                "state",
            ];
            keys.map(|key| session[key].clone()).to_vec().into()
        })
        .collect();
    sessions.sort_by_key(ToString::to_string);
    sessions
}

fn sessions_on_disk(daemon: &Daemon) -> u64 {
    let file = daemon.state_dir().join("sessions");
    std::fs::metadata(file).map_or(0, |file| file.len())
}

#[test]
fn flows_go_on_after_kill_and_start_by_the_same_external_ports() {
    if !require_root("flows_go_on_after_kill_and_start_by_the_same_external_ports") {
        return;
    }
    let lab = Lab::new("keep");
    let (host, outside) = lab.host_and_outside();
    let [a, b] = lab.namespaces(["a", "b"]);
    let mut daemon = Daemon::start(&lab, &host, &["--keep-sessions"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    daemon.run(&["publish", "add", "8080:80", "a"]);
    let of_one = ["publish", "add", "8080:80/udp", "a", "--uplink", "up0"];
    daemon.run(&of_one);
    for ns in [&a, &outside] {
        serve_tcp(ns, "0.0.0.0:80");
        serve_udp(ns, "0.0.0.0:80");
    }
    // Two hosts inside that use one port: one of them has another outside.
    let bound = |ns: &Namespace| {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:50000")).unwrap();
        socket.connect("192.0.2.2:80").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        socket
    };
    let (of_a, of_b) = (bound(&a), bound(&b));
    let flows = [
        ("TCP out", tcp_flow(&a, "192.0.2.2:80")),
        ("UDP out", udp_flow(&a, "192.0.2.2:80")),
        ("TCP in", tcp_flow(&outside, "192.0.2.1:8080")),
        ("UDP in", udp_flow(&outside, "192.0.2.1:8080")),
    ];
    let progress = |what: &str| {
        let before: Vec<u64> = flows.iter().map(|(_, flow)| flow.rounds()).collect();
        wait_until(DEADLINE, what, || {
            let mut both = flows.iter().zip(&before);
            both.all(|((_, flow), before)| flow.rounds() > before + 20)
        });
    };
    progress("every flow flows");
    let before = listed(&daemon);
    assert_eq!(before.len(), 6, "{before:?}");
    // All are on disk once nothing new has been written for two intervals.
    let mut last = (0, Instant::now());
    wait_until(DEADLINE, "the sessions are written", || {
        let size = sessions_on_disk(&daemon);
        if size != last.0 {
            last = (size, Instant::now());
        }
        size > 0 && last.1.elapsed() > 2 * control::keep::INTERVAL
    });
    for round in 0..3 {
        daemon.kill();
        daemon.restart();
        progress("every flow goes on");
        assert_eq!(listed(&daemon), before, "round {round}");
    }
    for (socket, name) in [(&of_b, "b"), (&of_a, "a")] {
        socket.send(b"again").unwrap();
        let size = socket.recv(&mut [0; 64]).unwrap();
        assert_eq!(size, "192.0.2.1 again".len(), "{name}");
    }
    assert_eq!(listed(&daemon), before, "of two with one port, too");
    for (name, flow) in flows {
        let outage = flow.end();
        println!("{name}: longest outage {outage:?}");
    }
    assert!(daemon.log().contains("restored=6"), "{}", daemon.log());

    // What has ended stays ended.
    daemon.run(&["publish", "rm", "8080:80"]);
    daemon.run(&["detach", "b"]);
    daemon.kill();
    daemon.restart();
    let left = listed(&daemon);
    assert!(left.len() < before.len() && !left.is_empty());
    assert!(
        left.iter()
            .all(|session| !session[1].to_string().contains("10.88.0.3"))
    );

    // A damaged tail is left out, and a file of another version is no reason not to start.
    daemon.kill();
    let file = daemon.state_dir().join("sessions");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.extend([80, 0, 1, 2, 3]);
    std::fs::write(&file, &bytes).unwrap();
    daemon.restart();
    assert!(daemon.log().contains("no whole record"), "{}", daemon.log());
    assert_eq!(listed(&daemon), left);
    daemon.kill();
    bytes[6] = 99;
    std::fs::write(&file, &bytes).unwrap();
    daemon.restart();
    assert!(daemon.log().contains("version 99"), "{}", daemon.log());
    assert_eq!(listed(&daemon), Vec::<Value>::new());
}

#[test]
fn without_the_option_nothing_is_kept_and_what_was_is_removed() {
    if !require_root("without_the_option_nothing_is_kept_and_what_was_is_removed") {
        return;
    }
    let lab = Lab::new("forget");
    let (host, outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let mut daemon = Daemon::start(&lab, &host, &[]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let listener = outside.run(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let address: SocketAddr = "192.0.2.2:80".parse().unwrap();
    let _stream = a
        .run(|| TcpStream::connect_timeout(&address, DEADLINE))
        .unwrap();
    listener.accept().unwrap();
    assert_eq!(listed(&daemon).len(), 1);
    daemon.kill();
    assert_eq!(sessions_on_disk(&daemon), 0);
    std::fs::write(daemon.state_dir().join("sessions"), b"left by another").unwrap();
    daemon.restart();
    assert_eq!(sessions_on_disk(&daemon), 0);
    assert_eq!(listed(&daemon), Vec::<Value>::new());
}
