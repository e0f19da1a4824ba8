//! `kill -9` of the daemon at random points of a scripted workload: after a restart the rest of the
//! script leads to the same as without.
//!
//! A few points by default; the whole campaign with `CAUSEWAY_SOAK=1` (`tests/run --soak`). `SEED`
//! replays the points, as far as the machine takes the same time.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::{Daemon, path_text, without_sessions};
use tests::footprint::{Footprint, footprint};
use tests::lab::{DEADLINE, Lab, Namespace, require_root, wait_for};

/// Points of the campaign.
const POINTS: usize = 200;
/// Points by default.
const POINTS_SHORT: usize = 12;
/// Every so manieth death is one of a daemon that has just been started.
const YOUNG_EVERY: usize = 4;
/// How long such a one lives at most.
const YOUNG_MAX: Duration = Duration::from_millis(40);
/// Pause between two looks at a command that runs.
const LOOK: Duration = Duration::from_micros(300);

/// One namespace that the script attaches.
struct Sandboxes {
    a: Namespace,
    b: Namespace,
    c: Namespace,
}

/// What the script comes to, at one of its marks.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    state: Vec<Value>,
    kernel: Vec<Footprint>,
}

/// A line of the script: words, or a mark at which everything is compared.
enum Line {
    Run(&'static str),
    Mark,
}

/// `@a` stands for the path of a sandbox. Every command may be given twice, as by somebody who has
/// seen the first fail.
const SCRIPT: &[Line] = &[
    Line::Run("network create web --subnet 10.88.0.0/24"),
    Line::Run("network create db --subnet 10.89.0.0/24 --subnet6 fd00:89::/64 --internal"),
    Line::Run("attach --netns @a --network web --name a"),
    Line::Run("attach --netns @b --network web --name b --backend packet --ip 10.88.0.77"),
    Line::Run("attach --netns @a --network db --name a2 --ifname eth1"),
    Line::Run("publish add 8080:80 a"),
    Line::Run("publish add 8080:8000 b --join --weight 2"),
    Line::Run("publish add 192.0.2.1:5353:53/udp b"),
    Line::Run("publish add 30000-30999:1000-1999 a"),
    Line::Run("port set a isolated on"),
    Line::Run("port set a mac-limit 7"),
    Line::Run("port set b storm-broadcast 100 rate-out 10mbit"),
    Line::Run("network set web --ageing 60 --nat-filtering endpoint-independent --dns 192.0.2.53"),
    Line::Run("network reserve web 10.88.0.9 --for c"),
    Line::Run("network reserve web 10.88.0.10"),
    Line::Run("attach --netns @c --network web --name c --alias www"),
    Line::Run("vlan add c 10-20"),
    Line::Run("fdb add web 02:00:00:00:00:01 --port c"),
    Line::Run("network create tmp"),
    Line::Run("publish set 8080:80 a --weight 3"),
    Line::Mark,
    Line::Run("network rm tmp"),
    Line::Run("publish rm 30000-30999:1000-1999"),
    Line::Run("detach b"),
    Line::Run("network release web 10.88.0.10"),
    Line::Run("attach --netns @b --network db --name b --backend packet"),
    Line::Run("port set a isolated off"),
    Line::Mark,
    Line::Run("detach a a2 c"),
    Line::Run("network rm web"),
    Line::Run("down --all"),
    Line::Mark,
];

struct Stage {
    host: Namespace,
    sandboxes: Sandboxes,
    daemon: Daemon,
    /// Paths in place of `@a`, `@b`, `@c`.
    paths: [(&'static str, String); 3],
}

impl Stage {
    fn words(&self, line: &str) -> Vec<String> {
        let path = |word: &str| {
            let mut paths = self.paths.iter();
            let found = paths.find(|(short, _)| *short == word);
            found.map_or_else(|| word.to_owned(), |(_, path)| path.clone())
        };
        line.split(' ').map(path).collect()
    }

    fn start(&self, line: &str) -> Child {
        let words = self.words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.daemon.command(&words);
        // What is refused the second time is no news.
        self.host
            .start(command.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn outcome(&self) -> Outcome {
        let lists = [
            &["export"][..],
            &["network", "ls"],
            &["publish", "ls"],
            &["vlan", "ls"],
        ];
        let mut state: Vec<Value> = lists
            .iter()
            .map(|words| without_sessions(self.daemon.json(words)))
            .collect();
        for publication in state[2].as_array_mut().unwrap() {
            publication["id"].take();
        }
        let ports = self.daemon.json(&["port", "ls"]);
        let ports = ports.as_array().unwrap().iter();
        let kept = ["port", "name", "network", "up", "mtu", "flags", "mac_limit"];
        state.push(
            ports
                .map(|port| Value::from(kept.map(|key| port[key].clone()).to_vec()))
                .collect(),
        );
        let Sandboxes { a, b, c } = &self.sandboxes;
        let kernel = [&self.host, a, b, c].map(|ns| footprint(ns).numberless(ns));
        Outcome {
            state,
            kernel: kernel.into(),
        }
    }

    /// Runs the whole script without a death, and notes what it comes to at each mark.
    fn undisturbed(&self) -> (Vec<Outcome>, Duration) {
        let started = Instant::now();
        let mut outcomes = Vec::new();
        for line in SCRIPT {
            match line {
                Line::Run(words) => {
                    let words = self.words(words);
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    self.daemon.run(&words);
                }
                Line::Mark => outcomes.push(self.outcome()),
            }
        }
        (outcomes, started.elapsed())
    }
}

/// When the daemon dies, and of how many deaths.
struct Deaths {
    rng: fastrand::Rng,
    left: usize,
    at: Instant,
    /// Longest life in which the script goes on.
    life_max: Duration,
}

impl Deaths {
    fn draw(&mut self) {
        let micros = self.rng.u64(..self.life_max.as_micros() as u64);
        self.at = Instant::now() + Duration::from_micros(micros);
    }

    fn is_due(&self) -> bool {
        self.left > 0 && Instant::now() >= self.at
    }

    /// Starts a daemon that was killed, and sometimes kills it again in its first moments.
    fn revive(&mut self, daemon: &mut Daemon) {
        self.left -= 1;
        while self.left > 0 && self.rng.usize(..YOUNG_EVERY) == 0 {
            daemon.restart_without_waiting();
            // The instant is this test's randomness, and not a wait for anything.
            let life = self.rng.u64(..YOUNG_MAX.as_micros() as u64);
            std::thread::park_timeout(Duration::from_micros(life));
            daemon.kill();
            self.left -= 1;
        }
        daemon.restart();
        self.draw();
    }
}

/// Runs a command to its end; the daemon may die meanwhile. Whether it did.
fn run_through(stage: &mut Stage, line: &str, deaths: &mut Deaths) -> bool {
    let mut child = stage.start(line);
    loop {
        if deaths.is_due() {
            stage.daemon.kill();
            child.wait().unwrap();
            deaths.revive(&mut stage.daemon);
            return true;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{line}: {status}\n{}", stage.daemon.log());
            return false;
        }
        std::thread::park_timeout(LOOK);
    }
}

fn run_again(stage: &Stage, line: &str) {
    let mut child = stage.start(line);
    let ended = wait_for(DEADLINE, line, || child.try_wait().unwrap());
    assert!(
        [Some(0), Some(1)].contains(&ended.code()),
        "{line}: {ended}"
    );
}

#[test]
fn soak_killed_at_any_point_of_a_script_its_rest_leads_to_the_same() {
    if !require_root("soak_killed_at_any_point_of_a_script_its_rest_leads_to_the_same") {
        return;
    }
    let points = match std::env::var_os("CAUSEWAY_SOAK") {
        Some(_) => POINTS,
        None => POINTS_SHORT,
    };
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("SEED={seed}");
    let lab = Lab::new("script");
    let (host, _outside) = lab.host_and_outside();
    let [a, b, c] = lab.namespaces(["a", "b", "c"]);
    let clean = [&host, &a, &b, &c].map(footprint);
    let path = |ns: &Namespace| path_text(&ns.path()).to_owned();
    let paths = [("@a", path(&a)), ("@b", path(&b)), ("@c", path(&c))];
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    let mut stage = Stage {
        host,
        sandboxes: Sandboxes { a, b, c },
        daemon,
        paths,
    };
    let before = stage.outcome();
    let (expected, duration) = stage.undisturbed();
    assert_eq!(expected.last(), Some(&before), "the script takes all away");
    let mut deaths = Deaths {
        rng: fastrand::Rng::with_seed(seed),
        left: points,
        at: Instant::now(),
        life_max: duration / 2,
    };
    deaths.draw();
    let (started, mut rounds, mut repeated) = (Instant::now(), 0, 0);
    while deaths.left > 0 {
        rounds += 1;
        let mut marks = expected.iter();
        for line in SCRIPT {
            match line {
                Line::Run(words) => {
                    if run_through(&mut stage, words, &mut deaths) {
                        repeated += 1;
                        run_again(&stage, words);
                    }
                }
                Line::Mark => {
                    let found = stage.outcome();
                    let context = format!("round {rounds}, {} points left", deaths.left);
                    assert_eq!(
                        Some(&found),
                        marks.next(),
                        "{context}\n{}",
                        stage.daemon.log()
                    );
                }
            }
        }
    }
    println!(
        "{points} kills in {rounds} rounds of {} commands, {repeated} commands given again, {:.1} s",
        SCRIPT.len(),
        started.elapsed().as_secs_f64()
    );
    stage.daemon.clean();
    let Sandboxes { a, b, c } = &stage.sandboxes;
    assert_eq!([&stage.host, a, b, c].map(footprint), clean);
}
