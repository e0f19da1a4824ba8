//! What limits and harms a port's frames, between real namespaces and driven by the command line.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::rig::transfer;
use tests::talk::{Pinger, ping};

/// Broadcasts that are sent against a limit.
const STORM: u64 = 3_000;
/// Datagrams that are sent over a lossy link.
const NUMBERED: u64 = 2_000;
/// How long a ping may take that is sent again if need be.
const PATIENCE: Duration = Duration::from_millis(300);
/// A hearer looks this often whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// One network with two sandboxes, a and b.
struct Pair {
    daemon: Daemon,
    a: Namespace,
    b: Namespace,
    /// Address of b.
    address: String,
    lab: Lab,
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
            lab,
        }
    }

    /// Kills the daemon and starts it again. The sandboxes' kernels see the cable again in their own
    /// time, and drop what is sent before.
    fn restart(&mut self) {
        self.daemon.kill();
        self.daemon.restart();
        let mut pinger = Pinger::new(&self.a, ip(&self.address));
        wait_until(DEADLINE, "b answers after the restart", || {
            pinger.ping(56, PATIENCE)
        });
    }

    fn set(&self, port: &str, words: &[&str]) {
        let words: Vec<&str> = ["port", "set", port].iter().chain(words).copied().collect();
        self.daemon.run(&words);
    }

    fn impair(&self, port: &str, words: &[&str]) {
        let words: Vec<&str> = ["impair", "set", port]
            .iter()
            .chain(words)
            .copied()
            .collect();
        self.daemon.run(&words);
    }

    /// A number that a link of a port counts.
    fn counted(&self, port: &str, direction: &str, what: &str) -> u64 {
        let shown = self.port(port);
        let mut links = shown["links"].as_array().unwrap().iter();
        let found = links.find(|link| link["direction"] == direction);
        found.map_or(0, |link| link[what].as_u64().unwrap())
    }

    /// How long pings of b from a take: a quarter of them less. What a busy machine adds is in the
    /// others.
    fn round_trip(&self, count: usize) -> Duration {
        let mut pinger = Pinger::new(&self.a, ip(&self.address));
        // The first one asks for the MAC as well.
        assert!(pinger.ping(56, DEADLINE));
        let time = |_| {
            let start = Instant::now();
            assert!(pinger.ping(56, DEADLINE));
            start.elapsed()
        };
        let mut times: Vec<Duration> = (0..count).map(time).collect();
        times.sort();
        times[count / 4]
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
        // A pause of the sender for longer than the burst lasts is not made up for.
        assert!(passed >= may * 0.85, "{passed} of {may:.0} and 50");
        assert!(passed <= may * 1.01 + 51.0, "{passed} of {may:.0} and 50");
        let (from, to) = pair.sockets(6_001);
        let mut buffer = [0; 16];
        for _ in 0..2_000 {
            from.send_to(b"unicast", (pair.address.as_str(), 6_001))
                .unwrap();
            assert_eq!(to.recv(&mut buffer).unwrap(), 7, "untouched");
        }
        if round == 0 {
            pair.restart();
        }
    }
    let drops = pair.daemon.json(&["drops"]).to_string();
    assert!(drops.contains("storm_broadcast"), "{drops}");
    for kind in ["storm_began", "storm_ended"] {
        wait_until(DEADLINE, kind, || {
            let told = pair.daemon.run(&["events", "--kind", kind]);
            told.contains("port 'a'") && told.contains("broadcast")
        });
    }
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
        (limits, port["flags"].clone(), port["links"].clone())
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
        (&["rate-in", "0"], "8kbit to 100gbit"),
        (&["rate-in", "0mbit"], "8kbit to 100gbit"),
        (&["rate-out", "200gbit"], "8kbit to 100gbit"),
        (&["rate-out", "10parsec"], "mbit"),
        (&["rate-out", "10mbit", "burst", "0"], "1 byte to 64m"),
        (&["rate-in", "10mbit", "rate-out", "0"], "8kbit to"),
    ] {
        let words: Vec<&str> = ["port", "set", "a"].iter().chain(words).copied().collect();
        let error = pair.daemon.refused(&words);
        assert!(error.contains(named), "{words:?}: {error}");
        assert_eq!(settings(), before, "{words:?}");
    }
}

#[test]
fn impairments_that_cannot_be_are_refused_and_change_nothing() {
    if !require_root("impairments_that_cannot_be_are_refused_and_change_nothing") {
        return;
    }
    let pair = Pair::new("badimpair");
    pair.impair("a", &["--in", "--delay", "1ms", "--seed", "3"]);
    // Without what the links count, which goes on.
    let impaired = || {
        let listed = pair.daemon.json(&["impair", "ls"]);
        let links = listed.as_array().unwrap().iter();
        let links = links.map(|row| (row["name"].clone(), row["link"]["impairment"].clone()));
        links.collect::<Vec<_>>()
    };
    let before = impaired();
    assert_eq!(before.len(), 1, "one direction");
    assert_eq!(before[0].1["delay"], "1ms");
    for (words, named) in [
        (&["a", "--loss", "130%"][..], "0% to 100%"),
        (&["a", "--loss", "-1%"], "0% to 100%"),
        (&["a", "--rate", "0"], "8kbit to 100gbit"),
        (&["a", "--delay", "61s"], "0 to 60s"),
        (&["a", "--delay", "20"], "ns, us, ms or s"),
        (
            &["a", "--delay", "1ms", "--jitter", "2ms"],
            "0 to the delay",
        ),
        (&["a", "--reorder", "5%"], "--delay"),
        (
            &["a", "--delay", "1ms", "--distribution", "pareto"],
            "uniform",
        ),
        (&["a", "--loss-model", "gilbert-elliott", "1%"], "P R"),
        (&["nobody", "--loss", "1%"], "there is no port 'nobody'"),
        (&["causeway0", "--loss", "1%"], "leads to no endpoint"),
    ] {
        let words: Vec<&str> = ["impair", "set"].iter().chain(words).copied().collect();
        let error = pair.daemon.refused(&words);
        assert!(error.contains(named), "{words:?}: {error}");
    }
    assert_eq!(impaired(), before);
}

#[test]
fn a_delay_both_ways_is_a_round_trip_and_outlives_the_daemon() {
    if !require_root("a_delay_both_ways_is_a_round_trip_and_outlives_the_daemon") {
        return;
    }
    let mut pair = Pair::new("delay");
    pair.impair("b", &["--delay", "20ms", "--seed", "1"]);
    for round in 0..2 {
        let time = pair.round_trip(15);
        let millis = time.as_secs_f64() * 1e3;
        assert!((40.0..44.0).contains(&millis), "{millis} ms");
        println!("covered: a round trip of {millis:.2} ms over 2 x 20 ms");
        let why = pair.daemon.run(&["why", "a", "b"]);
        assert!(why.contains("b's link out of it: delay 20ms"), "{why}");
        assert!(!why.contains("a's link into"), "{why}");
        let listed = pair.daemon.run(&["impair", "ls"]);
        assert!(listed.contains("delay 20ms seed 1"), "{listed}");
        if round == 0 {
            pair.restart();
        }
    }
    pair.impair("b", &["--out", "--delay", "500us"]);
    pair.daemon.run(&["impair", "clear", "a"]);
    let half = pair.round_trip(15).as_secs_f64() * 1e3;
    assert!((20.5..24.0).contains(&half), "in is as before: {half} ms");
    pair.daemon.run(&["impair", "clear", "b"]);
    let none = pair.round_trip(15).as_secs_f64() * 1e3;
    assert!(none < 5.0, "{none} ms");
    assert_eq!(pair.daemon.json(&["impair", "ls"]), serde_json::json!([]));
}

#[test]
fn a_tenth_of_two_thousand_datagrams_is_lost_and_some_come_twice() {
    if !require_root("a_tenth_of_two_thousand_datagrams_is_lost_and_some_come_twice") {
        return;
    }
    let pair = Pair::new("loss");
    assert!(ping(&pair.a, ip(&pair.address), 56));
    let words = [
        "--out",
        "--loss",
        "10%",
        "--duplicate",
        "5%",
        "--seed",
        "11",
    ];
    pair.impair("b", &words);
    let (from, to) = pair.sockets(6_100);
    let hearer = Hearer::new(to);
    send_paced(&from, (pair.address.as_str(), 6_100), NUMBERED, 5_000);
    let mut passed = 0;
    wait_until(DEADLINE, "the link has seen all, and its law holds", || {
        // Of one reading: the sandboxes' kernels speak now and then.
        let shown = pair.port("b");
        let count = |what: &str| shown["links"][0][what].as_u64().unwrap();
        passed = count("passed");
        let came = count("entered") + count("duplicated");
        count("entered") >= NUMBERED && count("held") == 0 && came == count("lost") + passed
    });
    wait_until(DEADLINE, "what passed is heard", || {
        hearer.count() + 5 >= passed
    });
    let mut heard: Vec<u64> = hearer.end().into_iter().map(|(number, _)| number).collect();
    assert!(heard.is_sorted(), "nothing was delayed");
    let all = heard.len();
    heard.dedup();
    // Lost are those whose twin is not there: 10 % of 95 %. Five deviations are 65.
    let lost = NUMBERED as i64 - heard.len() as i64;
    assert!((lost - 190).abs() <= 65, "{lost} of {NUMBERED} were lost");
    let twice = (all - heard.len()) as i64;
    assert!((twice - 90).abs() <= 46, "{twice} came twice");
    let drops = pair.daemon.json(&["drops"]).to_string();
    assert!(drops.contains("link_lost"), "{drops}");
}

#[test]
fn a_rate_limit_holds_datagrams_to_it_in_their_order() {
    if !require_root("a_rate_limit_holds_datagrams_to_it_in_their_order") {
        return;
    }
    for (port, direction, word) in [("b", "out", "rate-out"), ("a", "in", "rate-in")] {
        let mut pair = Pair::new("rate");
        assert!(ping(&pair.a, ip(&pair.address), 56));
        pair.set(port, &[word, "2mbit", "burst", "2k"]);
        let listed = pair.daemon.run(&["port", "ls"]);
        assert!(
            listed.contains(&format!("{word} 2mbit burst 2048")),
            "{listed}"
        );
        let (from, to) = pair.sockets(6_200);
        let hearer = Hearer::new(to);
        // Twice as fast: frames of 50 bytes, 5,000 of them a second.
        send_paced(&from, (pair.address.as_str(), 6_200), 12_000, 10_000);
        wait_until(DEADLINE, "all have passed or were dropped", || {
            let counted = |what| pair.counted(port, direction, what);
            counted("entered") >= 12_000 && counted("held") == 0
        });
        let limited = pair.counted(port, direction, "rate_limited");
        assert!(limited > 4_000, "{limited}");
        let heard = hearer.end();
        assert!(heard.windows(2).all(|two| two[0].0 < two[1].0), "in order");
        // Of the middle, where the line was busy all the time.
        let (first, last) = (heard[500], heard[heard.len() - 500]);
        let seconds = (last.1 - first.1).as_secs_f64();
        let rate = (heard.len() - 1_000) as f64 * 50.0 * 8.0 / seconds;
        println!("covered: {word} 2mbit gave {:.3} Mbit/s", rate / 1e6);
        assert!((rate - 2e6).abs() < 2e6 * 0.03, "{rate}");
        let drops = pair.daemon.json(&["drops"]).to_string();
        assert!(drops.contains("rate_limited"), "{drops}");
        pair.restart();
        let listed = pair.daemon.run(&["port", "ls"]);
        assert!(
            listed.contains(&format!("{word} 2mbit burst 2048")),
            "{listed}"
        );
    }
}

#[test]
fn tcp_fills_a_limited_port_and_others_do_not_notice() {
    if !require_root("tcp_fills_a_limited_port_and_others_do_not_notice") {
        return;
    }
    let pair = Pair::new("tcp");
    let c = pair.lab.namespace("c");
    let beside = pair.daemon.attach(&c, "n", "c", &[]);
    pair.set("b", &["rate-out", "10mbit"]);
    let bytes = 3_000_000;
    let server = format!("{}:7000", pair.address).parse().unwrap();
    let (a, b) = (pair.a.clone(), pair.b.clone());
    let busy = thread::spawn(move || transfer(&a, &b, server, server, bytes, None));
    wait_until(DEADLINE, "frames are held", || {
        pair.counted("b", "out", "held") > 10
    });
    let mut pinger = Pinger::new(&pair.a, ip(&beside));
    let time = |_| {
        let start = Instant::now();
        assert!(pinger.ping(56, DEADLINE));
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..50).map(time).collect();
    times.sort();
    assert!(times[25] < Duration::from_millis(5), "{:?}", times[25]);
    assert!(pair.counted("b", "out", "held") > 0, "they are still held");
    let done = busy.join().unwrap();
    // 1,448 bytes of payload in a frame of 1,514.
    let fastest = bytes as f64 * 8.0 / 10e6 * 1_514.0 / 1_448.0;
    let took = done.elapsed.as_secs_f64();
    println!(
        "covered: TCP at {:.2} of 10 Mbit/s of frames",
        fastest / took
    );
    assert!(took >= fastest * 0.98, "{took} s, at least {fastest}");
    assert!(took <= fastest * 1.08, "{took} s, at best {fastest}");
}
