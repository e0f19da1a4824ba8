//! How exactly a port's impairments and rate are what was set, at 100,000 frames of 64 bytes a second
//! between real devices of the real daemon: by the ends of an open loop, and by the link's own counts,
//! which know nothing of how long the ends' processes wait for a CPU.
//!
//! What is drawn and counted is held to; what a clock says of a machine that does other things as well
//! is printed. Without `CAUSEWAY_ENGINES` the load is a tenth for a tenth of the time, and with it
//! `CAUSEWAY_SECONDS` says how long each figure is measured.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use bench::measure::{Request, measure};
use bench::result::Sample;
use bench::scenario::MeasureName;
use bench::system::{Path, System, Work};
use serde_json::Value;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, require_root, wait_until};

/// Bytes of a frame as links count them: of 64, without the check sequence.
const FRAME_BITS: f64 = 60.0 * 8.0;
/// The delay that is set.
const DELAY: Duration = Duration::from_millis(10);
/// Deviations from what is expected of something drawn, by which a link that is right is off once in
/// two million times.
const DEVIATIONS_MAX: f64 = 5.0;
/// Deviations that say that a figure was measured long enough, of the share that is asked of it.
const SHARE: f64 = 0.01;
/// What latencies lose to the three digits that are kept of them.
const ROUNDED: f64 = 1e-3;

/// A daemon with a sandbox that sends to another one.
struct Pair {
    daemon: Daemon,
    system: System,
    request: Request,
    _lab: Lab,
}

/// What a measurement came to.
struct Run {
    sample: Sample,
    /// What the link has done meanwhile.
    link: BTreeMap<String, u64>,
}

impl Pair {
    fn new() -> Self {
        let lab = Lab::new("bench-impair");
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        let [from, to] = lab.namespaces(["a", "b"]);
        daemon.attach(&from, "n", "a", &[]);
        let address = daemon.attach(&to, "n", "b", &[]);
        let server = format!("{address}:5201").parse().unwrap();
        let work = Work::Process {
            name: "causeway".to_owned(),
            pid: daemon.pid(),
        };
        let path = Path {
            from,
            to,
            listen: server,
            connect: server,
        };
        let system = System::of_paths(vec![path], work, Box::new(()));
        let mut request = Request::new(MeasureName::Frames);
        let (rate, milliseconds) = match std::env::var_os("CAUSEWAY_ENGINES") {
            Some(_) => (100_000.0, 1_000 * seconds()),
            None => (10_000.0, 300),
        };
        request.load.rate = rate;
        request.load.duration_ms = milliseconds;
        // A queue before a slow line is full by then.
        request.load.warm_up_ms = 500;
        Self {
            daemon,
            system,
            request,
            _lab: lab,
        }
    }

    /// How long frames are sent, with those before the ones that count.
    fn seconds(&self) -> f64 {
        let load = &self.request.load;
        Duration::from_millis(load.warm_up_ms + load.duration_ms).as_secs_f64()
    }

    /// Sends by a link of a port that is set anew, and no other.
    fn run(&self, port: &str, direction: &str, words: &[&str]) -> Run {
        for port in ["a", "b"] {
            self.daemon.run(&["impair", "clear", port]);
        }
        let way = format!("--{direction}");
        if !words.is_empty() {
            let set = [&["impair", "set", port, &way], words].concat();
            self.daemon.run(&set);
        }
        let before = self.settled(port, direction);
        let sample = measure(&self.request, &self.system).unwrap();
        let after = self.settled(port, direction);
        let counts = after.as_object().into_iter().flatten();
        let link = counts
            .filter_map(|(what, count)| {
                let before = before[what].as_u64().unwrap_or(0);
                Some((what.clone(), count.as_u64()?.saturating_sub(before)))
            })
            .collect();
        Run { sample, link }
    }

    /// The link's counts when it holds nothing and nothing vanished: while frames are on the way, which they
    /// are for longer where the daemon has no CPU, counts of one moment need not agree.
    fn settled(&self, port: &str, direction: &str) -> Value {
        let mut link = Value::Null;
        wait_until(
            DEADLINE,
            "the link holds nothing, and nothing vanished",
            || {
                link = self.link(port, direction);
                link["held"].as_u64().unwrap_or(0) == 0 && law(&link)
            },
        );
        link
    }

    fn link(&self, port: &str, direction: &str) -> Value {
        let shown = self.daemon.json(&["port", "show", port]);
        let mut links = shown["links"].as_array().unwrap().iter();
        let found = links.find(|link| link["direction"] == direction);
        found.cloned().unwrap_or_default()
    }
}

/// Whether what came by a link is what went by it, but for what it says.
fn law(link: &Value) -> bool {
    let sum = |counts: &[&str]| -> u64 {
        let counts = counts.iter().map(|what| link[what].as_u64().unwrap_or(0));
        counts.sum()
    };
    sum(&["entered", "duplicated"]) == sum(&["passed", "lost", "rate_limited", "overflowed"])
}

/// How long each figure is measured.
fn seconds() -> u64 {
    let given = std::env::var("CAUSEWAY_SECONDS").ok();
    given.map_or(3, |text| text.parse().expect("whole seconds"))
}

impl Run {
    fn figure(&self, name: &str) -> f64 {
        let mut metrics = self.sample.metrics.iter();
        metrics.find(|metric| metric.name == name).unwrap().value
    }

    fn count(&self, what: &str) -> f64 {
        self.link[what] as f64
    }

    /// Nothing vanished but what the link says.
    fn check_law(&self) {
        let came = self.count("entered") + self.count("duplicated");
        let went = ["passed", "lost", "rate_limited", "overflowed"];
        let went: f64 = went.iter().map(|what| self.count(what)).sum();
        assert!(self.count("entered") > 1_000.0, "{:?}", self.link);
        assert_eq!(came, went, "{:?}", self.link);
    }

    /// By how many microseconds the link let frames go after they were due, on average.
    fn late(&self) -> f64 {
        self.count("late_nanos") / self.count("passed") * 1e-3
    }

    /// Prints what that makes of a delay that is set in microseconds.
    fn say_late(&self, set: f64) {
        let (late, off) = (self.late(), self.late() / set);
        println!(
            "  by the link: {late:.1} µs late on average, {:+.2} % off: {}",
            100.0 * off,
            within(off, 0.0)
        );
    }

    /// A quantile of the time from due to arrival, in microseconds.
    fn quantile(&self, wanted: f64) -> f64 {
        let mut quantiles = self.sample.latency.iter();
        quantiles.find(|(q, _)| *q == wanted).unwrap().1
    }

    /// Prints a share of what came by the link, and holds it to what may be of something drawn, whose
    /// sum deviates so many times as much as that of what is drawn by itself.
    fn check_share(&self, what: &str, expected: f64, deviation: f64) {
        // Of lost frames nothing else is drawn.
        let of = match what {
            "corrupted" | "reordered" => self.count("passed"),
            _ => self.count("entered"),
        };
        let share = self.count(what) / of;
        let error = deviation * (expected * (1.0 - expected) / of).sqrt();
        let (off, relative) = (share / expected - 1.0, error / expected);
        println!(
            "  {what}: {:.4} % of {of}, {:+.2} % off, standard error {:.2} %: {}",
            100.0 * share,
            100.0 * off,
            100.0 * relative,
            within(off, relative)
        );
        let deviations = (share - expected).abs() / error;
        assert!(deviations < DEVIATIONS_MAX, "{deviations}: {:?}", self.link);
    }
}

/// In words, whether a figure is what it has to be.
fn within(off: f64, error: f64) -> &'static str {
    match (off.abs() <= SHARE, 2.0 * error <= SHARE) {
        (true, true) => "within 1 %",
        (true, false) => "within 1 %, and measured too shortly to be sure",
        (false, true) => "NOT within 1 %",
        (false, false) => "not within 1 %, and measured too shortly to tell",
    }
}

/// The links that are measured: out by the receiver's port, in by the sender's.
const LINKS: [(&str, &str); 2] = [("b", "out"), ("a", "in")];

#[test]
fn a_share_that_is_lost_doubled_reordered_or_corrupted_is_what_was_set() {
    if !require_root("a_share_that_is_lost_doubled_reordered_or_corrupted_is_what_was_set") {
        return;
    }
    let pair = Pair::new();
    // What came in bursts of ten frames and 1 in 11: neighbours correlate by 1 - P - R.
    let (p, r): (f64, f64) = (0.01, 0.1);
    let bursts = ((2.0 - p - r) / (p + r)).sqrt();
    for (port, direction) in LINKS {
        for (words, what, expected, deviation) in [
            ("--loss 1% --seed 1", "lost", 0.01, 1.0),
            ("--loss 10% --seed 1", "lost", 0.1, 1.0),
            (
                "--loss-model gilbert-elliott 1% 10% --seed 1",
                "lost",
                p / (p + r),
                bursts,
            ),
            ("--duplicate 5% --seed 2", "duplicated", 0.05, 1.0),
            ("--corrupt 5% --seed 3", "corrupted", 0.05, 1.0),
            ("--delay 10ms --reorder 5% --seed 4", "reordered", 0.05, 1.0),
        ] {
            let all: Vec<&str> = words.split(' ').collect();
            let run = pair.run(port, direction, &all);
            println!("{direction} {words}");
            run.check_law();
            run.check_share(what, expected, deviation);
            println!(
                "  by the ends: {:.4} % did not come, {} came twice, {} late",
                run.figure("loss"),
                run.figure("duplicates"),
                run.figure("reordered")
            );
        }
    }
}

#[test]
fn a_delay_is_never_less_and_its_jitter_is_spread_as_was_set() {
    if !require_root("a_delay_is_never_less_and_its_jitter_is_spread_as_was_set") {
        return;
    }
    let pair = Pair::new();
    for (port, direction) in LINKS {
        delay(&pair, port, direction);
        // Between the 5th and the 95th percentile.
        for (distribution, spread) in [("uniform", 1.8), ("normal", 2.0 * 1.644_854)] {
            let words = format!("--delay 10ms --jitter 1ms --distribution {distribution} --seed 5");
            let all: Vec<&str> = words.split(' ').collect();
            let run = pair.run(port, direction, &all);
            run.check_law();
            let width = run.quantile(0.95) - run.quantile(0.05);
            let off = width / (spread * 1e3) - 1.0;
            println!(
                "{direction} {words}: mean {:.1} µs, 5 % to 95 % {width:.1} µs wide, {:+.2} % off: {}",
                run.figure("mean"),
                100.0 * off,
                within(off, 0.0)
            );
            run.say_late(DELAY.as_secs_f64() * 1e6);
        }
    }
}

/// Against the same way without a delay, before and after.
fn delay(pair: &Pair, port: &str, direction: &str) {
    let words = ["--delay", "10ms"];
    let [before, run, after] = [&[][..], &words, &[]].map(|words| pair.run(port, direction, words));
    run.check_law();
    let set = DELAY.as_secs_f64() * 1e6;
    for name in ["mean", "p50"] {
        let bare = [&before, &after].map(|run| run.figure(name));
        let added = run.figure(name) - (bare[0] + bare[1]) / 2.0;
        let off = added / set - 1.0;
        println!(
            "{direction} --delay 10ms: {name} {:.1} µs, without it {:.1} and {:.1}: {added:.1} added, \
             {:+.2} % off: {}",
            run.figure(name),
            bare[0],
            bare[1],
            100.0 * off,
            within(off, 0.0)
        );
    }
    run.say_late(set);
    println!(
        "  p99 {:.1} µs; of {:.0} frames/s {:.4} % did not come, {} were too many for the link",
        run.figure("p99"),
        run.figure("offered") * 1e6,
        run.figure("loss"),
        run.count("overflowed")
    );
    // Late it may be, early never, but for what the histogram rounds.
    let least = run.quantile(0.0);
    assert!(least >= set * (1.0 - ROUNDED), "{least} µs");
    assert_eq!(run.figure("reordered"), 0.0);
}

#[test]
fn a_line_is_as_fast_as_was_set() {
    if !require_root("a_line_is_as_fast_as_was_set") {
        return;
    }
    let pair = Pair::new();
    // Five sixths of what is offered: 40 Mbit/s at 100,000 frames a second.
    let set = pair.request.load.rate * 400.0;
    let word = format!("{}kbit", set / 1e3);
    for (port, direction) in LINKS {
        let run = pair.run(port, direction, &["--rate", &word]);
        run.check_law();
        // Of those that are offered in a time when the queue is full, as many pass as leave it.
        let goodput = run.figure("throughput") * 1e6 * FRAME_BITS;
        let off = goodput / set - 1.0;
        println!(
            "{direction} --rate {word}: {:.3} Mbit/s of {:.3} offered, {:.3} at the link; {:+.2} % off: {}",
            goodput * 1e-6,
            run.figure("offered") * FRAME_BITS,
            run.count("entered") * FRAME_BITS / pair.seconds() * 1e-6,
            100.0 * off,
            within(off, 0.0)
        );
        assert!(off <= SHARE, "faster than the line: {goodput} bit/s");
        assert!(run.count("rate_limited") + run.count("overflowed") > 0.0);
    }
}
