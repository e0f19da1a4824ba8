//! `kill -9` of the daemon at random instants under traffic, again and again.
//!
//! A few rounds by default; the whole campaign with `CAUSEWAY_SOAK=1` (`tests/run --soak`).
//! `SEED` replays the instants.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::{Daemon, without_sessions};
use tests::footprint::footprint;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, connect, ip, require_root, wait_until};
use tests::talk::{SILENCE, ask_tcp, serve_tcp, serve_udp};

/// Deaths of the campaign.
const KILLS: usize = 50;
/// Deaths by default.
const KILLS_SHORT: usize = 5;
/// The daemon dies within this long after it last answered: during its first turns, its background
/// work, a request, or at rest.
const LIFE_MAX: Duration = Duration::from_millis(200);

/// What the daemon says of its state, without counters and ages.
fn configuration(daemon: &Daemon) -> Vec<Value> {
    let lists: [&[&str]; 4] = [
        &["network", "ls"],
        &["publish", "ls"],
        &["port", "web"],
        &["port", "db"],
    ];
    let listed = |words: &&[&str]| without_sessions(daemon.json(words));
    let mut lists: Vec<Value> = lists.iter().map(listed).collect();
    let ports = daemon.json(&["port", "ls"]);
    let ports = ports.as_array().unwrap().iter().map(|port| {
        let field = |name: &str| port[name].clone();
        Value::from(vec![
            field("port"),
            field("name"),
            field("network"),
            field("up"),
        ])
    });
    lists.push(ports.collect());
    lists
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd"));
    listed.map_or(0, Iterator::count)
}

/// Echoes one datagram after the other over UDP, and notes when the last answer came.
struct Heart {
    stop: Arc<AtomicBool>,
    /// Nanoseconds from `origin` to the last answer.
    beat: Arc<AtomicU64>,
    /// The longest time between two answers, in nanoseconds.
    gap: Arc<AtomicU64>,
    origin: Instant,
    thread: JoinHandle<()>,
}

impl Heart {
    fn start(ns: &Namespace, address: &'static str) -> Self {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let (stop, beat, gap) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (stopped, beats, gaps) = (Arc::clone(&stop), Arc::clone(&beat), Arc::clone(&gap));
        let origin = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                // Refused and unreachable are what an outage looks like.
                let _ = socket.send(b"beat");
                if socket.recv(&mut buffer).is_ok() {
                    let now = origin.elapsed().as_nanos() as u64;
                    gaps.fetch_max(now - beats.load(Ordering::Relaxed), Ordering::Relaxed);
                    // The partner is `next_after`: who sees this beat sees its gap.
                    beats.store(now, Ordering::Release);
                }
            }
        });
        Self {
            stop,
            beat,
            gap,
            origin,
            thread,
        }
    }

    /// When the last answer came.
    fn last(&self) -> Instant {
        self.origin + Duration::from_nanos(self.beat.load(Ordering::Acquire))
    }

    /// Waits for an answer later than `instant`.
    fn next_after(&self, instant: Instant) {
        wait_until(DEADLINE, "traffic flows", || self.last() > instant);
    }

    /// The longest time between two answers since this was last asked.
    fn take_gap(&self) -> Duration {
        Duration::from_nanos(self.gap.swap(0, Ordering::Relaxed))
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Sends a number over an open connection to an echo server, and waits for it to come back.
fn converse(mut stream: &TcpStream, number: u64) {
    let sent = number.to_le_bytes();
    stream.write_all(&sent).unwrap();
    let mut received = [0; 8];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, sent);
}

fn open(ns: &Namespace, address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = ns.run(|| connect(DEADLINE, address));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    stream
}

fn summary(outages: &mut [Duration]) -> String {
    outages.sort();
    let (median, max) = (outages[outages.len() / 2], outages[outages.len() - 1]);
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    format!("median {:.1} ms, max {:.1} ms", ms(median), ms(max))
}

#[test]
fn soak_killed_at_random_instants_under_traffic_it_comes_back_the_same() {
    if !require_root("soak_killed_at_random_instants_under_traffic_it_comes_back_the_same") {
        return;
    }
    let kills = match std::env::var_os("CAUSEWAY_SOAK") {
        Some(_) => KILLS,
        None => KILLS_SHORT,
    };
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new("soak");
    let [host, outside, web, db] = ["host", "outside", "web", "db"].map(|name| lab.namespace(name));
    lab.cable(&host, "up0", &outside, "eth0");
    host.add_address("up0", "192.0.2.1/24");
    outside.add_address("eth0", "192.0.2.2/24");
    host.add_default_route("up0", "192.0.2.2");
    let clean_host = footprint(&host);
    let clean_sandbox = footprint(&web);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.run(&[
        "network",
        "create",
        "m",
        "--subnet",
        "10.89.0.0/24",
        "--internal",
    ]);
    daemon.attach(&web, "n", "web", &[]);
    daemon.attach(
        &db,
        "n",
        "db",
        &["--backend", "packet", "--ip", "10.88.0.77"],
    );
    daemon.run(&["publish", "add", "8080:80", "web"]);
    daemon.run(&["publish", "add", "192.0.2.1:5353:53/udp", "db"]);
    for ns in [&web, &db, &outside] {
        serve_tcp(ns, "0.0.0.0:80");
        serve_udp(ns, "0.0.0.0:53");
    }
    let state = configuration(&daemon);
    let prints = || [&host, &outside, &web, &db].map(footprint);
    let marks = prints();
    // Within a network, out of the NAT, and in by a published port.
    let hearts = [
        Heart::start(&web, "10.88.0.77:53"),
        Heart::start(&web, "192.0.2.2:53"),
        Heart::start(&outside, "192.0.2.1:5353"),
    ];
    let inside = open(&web, "10.88.0.77:80");
    let mut outages: [Vec<Duration>; 3] = Default::default();
    let mut descriptors_first = None;
    for round in 0..kills as u64 {
        let started = Instant::now();
        for heart in &hearts {
            heart.next_after(started);
            heart.take_gap();
        }
        // The instant is this test's randomness, and not a wait for anything.
        let life = rng.u64(..LIFE_MAX.as_micros() as u64);
        std::thread::park_timeout(Duration::from_micros(life));
        daemon.kill();
        let dead = Instant::now();
        daemon.restart();
        for heart in &hearts {
            heart.next_after(dead);
        }
        // A request that was on its way when the daemon died may have been the last answer.
        let whole = Instant::now();
        for (outage, heart) in outages.iter_mut().zip(&hearts) {
            heart.next_after(whole);
            outage.push(heart.take_gap());
        }
        assert_eq!(configuration(&daemon), state, "round {round}");
        assert_eq!(prints(), marks, "round {round}");
        converse(&inside, round);
        assert_eq!(
            ask_tcp(&web, "192.0.2.2:80", 1_000),
            ip("192.0.2.1"),
            "SNAT"
        );
        assert_eq!(
            ask_tcp(&outside, "192.0.2.1:8080", 1_000),
            ip("192.0.2.2"),
            "published"
        );
        assert_eq!(
            ask_tcp(&host, "10.88.0.77:80", 1_000),
            ip("10.88.0.1"),
            "host link"
        );
        settled_descriptors(&daemon, &mut descriptors_first, round);
    }
    for (what, outages) in ["within a network", "by SNAT", "by a published port"]
        .iter()
        .zip(&mut outages)
    {
        println!("{kills} kills, outage {what}: {}", summary(outages));
    }
    hearts.into_iter().for_each(Heart::stop);
    drop(inside);
    daemon.clean();
    assert_eq!(footprint(&host), clean_host);
    for ns in [&web, &db] {
        assert_eq!(footprint(ns), clean_sandbox);
    }
    let refused = outside.run(|| {
        let address = "192.0.2.1:8080".parse().unwrap();
        TcpStream::connect_timeout(&address, SILENCE)
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_sandbox_remembers_its_neighbours_while_no_daemon_holds_its_tap() {
    if !require_root("a_sandbox_remembers_its_neighbours_while_no_daemon_holds_its_tap") {
        return;
    }
    let lab = Lab::new("remember");
    let [host, a, b] = ["host", "a", "b"].map(|name| lab.namespace(name));
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let subnets = ["--subnet", "10.88.0.0/24", "--subnet6", "fd00:88::/64"];
    daemon.run(&[&["network", "create", "n"], &subnets[..]].concat());
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    serve_tcp(&b, "[::]:80");
    let known = || {
        let neighbours = block_on(a.netlink().neighbours()).unwrap().into_iter();
        let resolved = neighbours.filter(|neighbour| neighbour.mac == Some(b.mac("eth0")));
        resolved.map(|n| n.address).collect::<Vec<_>>()
    };
    for (address, seen) in [("10.88.0.3", "10.88.0.2"), ("[fd00:88::3]", "fd00:88::2")] {
        assert_eq!(ask_tcp(&a, &format!("{address}:80"), 10), ip(seen));
    }
    daemon.kill();
    // By the time that the carrier is reported lost, what goes with it is gone.
    wait_until(DEADLINE, "the TAP loses its carrier", || {
        !a.link("eth0").carrier
    });
    for address in ["10.88.0.3", "fd00:88::3"] {
        assert!(known().contains(&ip(address)), "{address}: {:?}", known());
    }
    daemon.restart();
    assert_eq!(ask_tcp(&a, "10.88.0.3:80", 10), ip("10.88.0.2"));
    daemon.clean();
}

/// Each life of the daemon has as many descriptors open as the first, once its connections end.
fn settled_descriptors(daemon: &Daemon, first: &mut Option<usize>, round: u64) {
    let pid = daemon.pid();
    let Some(first) = *first else {
        // Those of ended requests close in the background; the least of a few looks is the rest.
        let least = (0..20).map(|_| {
            daemon.run(&["status"]);
            descriptors(pid)
        });
        *first = least.min();
        return;
    };
    wait_until(
        DEADLINE,
        &format!("round {round}: {first} descriptors"),
        || descriptors(pid) <= first,
    );
}
