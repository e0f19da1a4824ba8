//! What limits and harms a port's frames, between real namespaces and driven by the command line.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, require_root, wait_until};

/// Broadcasts that are sent against a limit.
const STORM: u64 = 3_000;
/// A hearer looks this often whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// One network with two sandboxes, a and b.
struct Pair {
    daemon: Daemon,
    a: Namespace,
    b: Namespace,
    /// Address of b.
    address: String,
    _lab: Lab,
}

impl Pair {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", "2"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        let [a, b] = lab.namespaces(["a", "b"]);
        daemon.attach(&a, "n", "a", &[]);
        let address = daemon.attach(&b, "n", "b", &[]);
        Self {
            daemon,
            a,
            b,
            address,
            _lab: lab,
        }
    }

    fn set(&self, port: &str, words: &[&str]) {
        let words: Vec<&str> = ["port", "set", port].iter().chain(words).copied().collect();
        self.daemon.run(&words);
    }

    fn port(&self, port: &str) -> Value {
        self.daemon.json(&["port", "show", port])
    }

    /// Frames that entered by a port and were too many of a class.
    fn stormed(&self, port: &str, class: &str) -> u64 {
        let shown = self.port(port);
        let classes = shown["storm"].as_array().unwrap();
        let found = classes.iter().find(|storm| storm["class"] == class);
        found.unwrap()["dropped"].as_u64().unwrap()
    }

    /// A socket in a that may broadcast, and one in b that hears everything sent to `port`.
    fn sockets(&self, port: u16) -> (UdpSocket, UdpSocket) {
        let from = self.a.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        from.set_broadcast(true).unwrap();
        let to = self.b.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
        to.set_read_timeout(Some(DEADLINE)).unwrap();
        (from, to)
    }
}

/// Hears numbered datagrams while others are busy.
struct Hearer {
    thread: JoinHandle<Vec<(u64, Instant)>>,
    count: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Hearer {
    fn new(socket: UdpSocket) -> Self {
        let (count, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (heard, ended) = (Arc::clone(&count), Arc::clone(&over));
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let hear = move || {
            let (mut numbers, mut buffer) = (Vec::new(), [0; 2_048]);
            while !ended.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                    numbers.push((number, Instant::now()));
                    heard.store(numbers.len() as u64, Ordering::Relaxed);
                }
            }
            numbers
        };
        Self {
            thread: thread::spawn(hear),
            count,
            over,
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The numbers that were heard, in the order in which they came, and when they did.
    fn end(self) -> Vec<(u64, Instant)> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Sends datagrams to `to` at `per_second`, and returns how long it took.
fn send_paced(from: &UdpSocket, to: (&str, u16), count: u64, per_second: u64) -> Duration {
    let start = Instant::now();
    for number in 0..count {
        let due = Duration::from_nanos(number * 1_000_000_000 / per_second);
        while start.elapsed() < due {
            std::hint::spin_loop();
        }
        from.send_to(&number.to_be_bytes(), to).unwrap();
    }
    start.elapsed()
}

#[test]
fn storm_control_holds_broadcasts_to_their_rate_and_leaves_unicast_alone() {
    if !require_root("storm_control_holds_broadcasts_to_their_rate_and_leaves_unicast_alone") {
        return;
    }
    let mut pair = Pair::new("storm");
    pair.set("a", &["storm-broadcast", "1000", "burst", "50"]);
    let listed = pair.daemon.run(&["port", "ls"]);
    assert!(listed.contains("storm-broadcast 1000 burst 50"), "{listed}");
    for round in 0..2 {
        let before = pair.stormed("a", "broadcast");
        let (from, to) = pair.sockets(6_000);
        let hearer = Hearer::new(to);
        // Three times what may pass.
        let took = send_paced(&from, ("10.88.0.255", 6_000), STORM, 3_000);
        wait_until(DEADLINE, "every broadcast is passed or dropped", || {
            hearer.count() + pair.stormed("a", "broadcast") - before >= STORM
        });
        let may = 1_000.0 * took.as_secs_f64();
        let passed = hearer.end().len() as f64;
        assert!(passed >= may * 0.95, "{passed} of {may:.0} and 50");
        assert!(passed <= may * 1.01 + 51.0, "{passed} of {may:.0} and 50");
        let (from, to) = pair.sockets(6_001);
        let mut buffer = [0; 16];
        for _ in 0..2_000 {
            from.send_to(b"unicast", (pair.address.as_str(), 6_001))
                .unwrap();
            assert_eq!(to.recv(&mut buffer).unwrap(), 7, "untouched");
        }
        if round == 0 {
            pair.daemon.kill();
            pair.daemon.restart();
        }
    }
    let drops = pair.daemon.json(&["drops"]).to_string();
    assert!(drops.contains("storm_broadcast"), "{drops}");
    pair.set("a", &["storm-broadcast", "none"]);
    let before = pair.stormed("a", "broadcast");
    let (from, to) = pair.sockets(6_002);
    for _ in 0..500 {
        from.send_to(b"all", ("10.88.0.255", 6_002)).unwrap();
        assert_eq!(to.recv(&mut [0; 16]).unwrap(), 3);
    }
    assert_eq!(pair.stormed("a", "broadcast"), before);
}

#[test]
fn limits_that_cannot_be_are_refused_and_change_nothing() {
    if !require_root("limits_that_cannot_be_are_refused_and_change_nothing") {
        return;
    }
    let pair = Pair::new("badlimits");
    pair.set("a", &["storm-multicast", "7"]);
    let settings = || {
        let port = pair.port("a");
        let classes = port["storm"].as_array().unwrap().iter();
        let limits: Vec<Value> = classes.map(|class| class["limit"].clone()).collect();
        (limits, port["flags"].clone())
    };
    let before = settings();
    for (words, named) in [
        (&["storm-broadcast", "0"][..], "from 1 to 1000000"),
        (&["storm-broadcast", "-5"], "from 1 to 1000000"),
        (&["storm-broadcast", "1000001"], "from 1 to 1000000"),
        (&["storm-broadcast", "lots"], "frames per second"),
        (&["storm-broadcast", "5", "burst", "0"], "from 1 to 1000000"),
        (&["storm-broadcast", "5", "burst"], "lacks its value"),
        (&["storm-broadcast"], "lacks its value"),
        (&["storm-anycast", "5"], "storm-multicast"),
        (&["isolated", "on", "storm-broadcast", "0"], "from 1 to"),
    ] {
        let words: Vec<&str> = ["port", "set", "a"].iter().chain(words).copied().collect();
        let error = pair.daemon.refused(&words);
        assert!(error.contains(named), "{words:?}: {error}");
        assert_eq!(settings(), before, "{words:?}");
    }
}
