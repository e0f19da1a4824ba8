//! What ran while something was measured is what a profile shows.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use bench::profile::{self, ProfileError};
use bench::run::{Hall, Refusal, Subject};
use bench::system::{Setup, SystemName};
use bench::{library, plan};
use tests::lab::require_root;

/// How long the thread that is to be found computes: some hundred samples.
const BUSY: Duration = Duration::from_millis(200);

/// perf is the same program everywhere: where it is not, its package is named.
fn taken<T>(profile: Result<T, ProfileError>) -> Option<T> {
    match profile {
        Err(absent @ ProfileError::Absent(_)) => {
            println!("not tested: {absent}");
            assert!(absent.to_string().contains("linux-perf"));
            None
        }
        taken => Some(taken.unwrap()),
    }
}

#[test]
fn a_thread_that_computes_is_found() {
    if !require_root("a_thread_that_computes_is_found") {
        return;
    }
    let busy = || {
        let start = Instant::now();
        while start.elapsed() < BUSY {
            black_box(start);
        }
    };
    let work = || {
        let thread = thread::Builder::new().name("computes".to_owned());
        thread.spawn(busy).unwrap().join().unwrap();
        7
    };
    let Some((done, profile)) = taken(profile::during(work)) else {
        return;
    };
    assert_eq!(done, 7);
    let found = profile.threads.iter().find(|part| part.name == "computes");
    // One CPU of as many as there are.
    assert!(found.unwrap().percent > 2.0, "{profile:?}");
    let of_it = |name: &str| name.starts_with("computes [.]");
    assert!(
        profile.functions.iter().any(|part| of_it(&part.name)),
        "{profile:?}"
    );
    println!("covered: a profile, {:?}", profile.lines());
}

/// No system is here but the baseline, which cannot be measured.
struct Empty;

impl Hall for Empty {
    fn start(&mut self, system: SystemName, _: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        if system == SystemName::Bridge {
            panic!("the kernel refused a bridge");
        }
        Err(Refusal::Absent(format!("{system} is not installed")))
    }
}

#[test]
fn a_system_that_cannot_be_measured_says_why() {
    let plan = plan::plan(library::open("pair-latency").unwrap().scenario).unwrap();
    let all = profile::of_plan(&plan, &mut Empty, |_| ()).unwrap();
    assert_eq!(all.len(), plan.points.len() * plan.scenario.systems.len());
    for one in &all {
        assert_eq!(one.profile, None);
        let text = one.to_string();
        let why = match one.system.as_str() {
            "bridge" => "not measured: the kernel refused a bridge",
            _ => "is not installed",
        };
        assert!(text.contains(why), "{text}");
    }
}
