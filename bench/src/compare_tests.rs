//! Runs of invented systems: what is found, what is not, and what is refused.

use std::collections::BTreeMap;

use super::*;
use crate::invented::Invented;
use crate::measure::Request;
use crate::measure::cpu::thread_seconds;
use crate::plan::{self, Plan};
use crate::record::{Entry, Record};
use crate::result::{FORMAT, Manifest, Sample};
use crate::run::{self, Ending, Hall, Refusal, Subject, Watch};
use crate::system::{Setup, SystemName};

struct Silent;

impl Watch for Silent {
    fn begins(&self, _point: usize, _label: &str, _round: u32) {}
    fn ended(&self) {}
    fn note(&self, _text: &str) {}
}

fn scenario(repeats: u32) -> Plan {
    plan::read(&format!(
        "name = \"t\"\ntopology = \"pair\"\nmeasure = \"tcp-bulk\"\n\
         systems = [\"bridge\", \"causeway\"]\nrepeats = {repeats}\n"
    ))
    .unwrap()
}

fn results(plan: &Plan, hall: &mut dyn Hall, seed: u64) -> Results {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Manifest {
        seed,
        ..Manifest::default()
    };
    let record = Record::begin(dir.path(), Results::empty(plan, manifest)).unwrap();
    let ending = run::run(
        plan,
        hall,
        &record,
        &crate::measure::Stop::default(),
        &Silent,
    );
    assert_eq!(ending, Ending::Whole);
    let (path, results) = record.finish(None).unwrap();
    assert_eq!(
        crate::record::read(&path).unwrap(),
        results,
        "it can be read"
    );
    results
}

fn finding(results: &Results) -> Finding {
    let view = view(results);
    let row = view.points[0].metrics[0]
        .rows
        .iter()
        .find(|row| row.system == "causeway")
        .unwrap();
    row.comparison.unwrap().finding
}

/// Findings on Causeway with figures of `factor` times the bridge's, over a hundred seeds.
fn findings(factor: f64, noise: f64, repeats: u32, wanted: Finding) -> usize {
    let plan = scenario(repeats);
    let found = (0..100).filter(|seed| {
        let mut hall = Invented::new(noise, *seed);
        hall.factors = BTreeMap::from([(SystemName::Causeway, factor)]);
        finding(&results(&plan, &mut hall, *seed)) == wanted
    });
    found.count()
}

#[test]
fn no_difference_is_found_between_equals() {
    for (repeats, noise) in [(5, 0.02), (5, 0.1), (15, 0.02)] {
        let found = findings(1.0, noise, repeats, Finding::NoDifference);
        assert!(found >= 95, "{repeats} repeats, noise {noise}: {found}");
    }
}

#[test]
fn a_slowdown_of_five_percent_is_found() {
    for (repeats, noise) in [(11, 0.01), (25, 0.02)] {
        let found = findings(0.95, noise, repeats, Finding::Slower);
        assert!(found >= 95, "{repeats} repeats, noise {noise}: {found}");
    }
}

/// Frames of one measurement of real work: some milliseconds.
const WORK_FRAMES: usize = 80_000;

/// Times that real work is measured before a slowdown of it counts as not found.
const ATTEMPTS_MAX: usize = 12;

/// Forwards frames in memory; Causeway's own take `extra` percent more work than the baseline's.
struct RealWork {
    extra: usize,
}

impl Hall for RealWork {
    fn start(&mut self, system: SystemName, _setup: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        let extra = match system {
            SystemName::Causeway => self.extra,
            _ => 0,
        };
        Ok(Box::new(RealInstance { extra }))
    }
}

struct RealInstance {
    extra: usize,
}

impl Subject for RealInstance {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn sample(&mut self, _request: &Request) -> Result<Sample, Refusal> {
        // More frames in the name of the same count: exactly so much more work. In CPU time and the
        // least of a few, because others use this machine.
        let frames = WORK_FRAMES + WORK_FRAMES * self.extra / 100;
        let tries = (0..3).map(|_| {
            let before = thread_seconds().unwrap();
            let _ = crate::core_alone::unicast_among_64(frames);
            thread_seconds().unwrap() - before
        });
        let seconds = tries.fold(f64::INFINITY, f64::min);
        Ok(Sample {
            metrics: vec![Metric::more("rate", "1/s", WORK_FRAMES as f64 / seconds)],
            ..Sample::default()
        })
    }
}

#[test]
fn five_percent_more_real_work_is_found_and_none_is_not() {
    let mut plan = scenario(25);
    plan.scenario.instances = crate::scenario::Instances::Kept;
    let attempt = |extra, seed| finding(&results(&plan, &mut RealWork { extra }, seed));
    // While others use the machine, the noise floor hides 5 %, and rightly so: then once more.
    let mut slower = Vec::new();
    while !slower.contains(&Finding::Slower) && slower.len() < ATTEMPTS_MAX {
        slower.push(attempt(5, slower.len() as u64));
    }
    assert!(slower.contains(&Finding::Slower), "{slower:?}");
    assert!(!slower.contains(&Finding::Faster), "{slower:?}");
    let equal: Vec<Finding> = (0..3).map(|seed| attempt(0, seed)).collect();
    let found = equal.iter().filter(|f| **f != Finding::NoDifference);
    assert!(found.count() <= 1, "{equal:?}");
}

/// Says what it was told to, and that the generator was the limit.
struct Limited(BTreeMap<SystemName, (f64, bool)>);

impl Hall for Limited {
    fn start(&mut self, system: SystemName, _setup: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        let known = self.0.get(&system).copied();
        let (value, limited) = known.ok_or_else(|| Refusal::Absent("not here".to_owned()))?;
        Ok(Box::new(LimitedInstance { value, limited }))
    }
}

struct LimitedInstance {
    value: f64,
    limited: bool,
}

impl Subject for LimitedInstance {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn sample(&mut self, _task: &Request) -> Result<Sample, Refusal> {
        let limit = self.limited.then_some(Flag::GeneratorLimited);
        Ok(Sample {
            metrics: vec![Metric::more("rate", "1/s", self.value)],
            flags: limit.into_iter().collect(),
            ..Sample::default()
        })
    }
}

#[test]
fn who_was_limited_by_the_generator_is_not_slower_and_nobody_is_faster() {
    use SystemName::{Bridge, Causeway};
    for (bridge, causeway, wanted) in [
        ((1.0, false), (2.0, false), Finding::Faster),
        ((1.0, false), (2.0, true), Finding::Faster),
        ((1.0, true), (2.0, false), Finding::NoDifference),
        ((2.0, false), (1.0, true), Finding::NoDifference),
        ((2.0, true), (1.0, false), Finding::Slower),
    ] {
        let mut hall = Limited(BTreeMap::from([(Bridge, bridge), (Causeway, causeway)]));
        let results = results(&scenario(5), &mut hall, 1);
        assert_eq!(finding(&results), wanted, "{bridge:?} {causeway:?}");
        let view = view(&results);
        let (point, metric) = (&view.points[0], &view.points[0].metrics[0]);
        let row = &metric.rows[1];
        assert_eq!(row.at_least, causeway.1);
        let said = summary(point, metric, row, &view.baseline).unwrap();
        assert_eq!(said.contains("at least"), causeway.1, "{said}");
    }
}

/// Says how long frames took, and how much was really offered.
struct Offered(BTreeMap<SystemName, (f64, f64)>);

impl Hall for Offered {
    fn start(&mut self, system: SystemName, _setup: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        let (latency, offered) = self.0[&system];
        Ok(Box::new(OfferedInstance { latency, offered }))
    }
}

struct OfferedInstance {
    latency: f64,
    offered: f64,
}

impl Subject for OfferedInstance {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn sample(&mut self, _task: &Request) -> Result<Sample, Refusal> {
        Ok(Sample {
            metrics: vec![
                Metric::less("p50", "µs", self.latency),
                Metric::more(OFFERED, "Mframes/s", self.offered),
            ],
            ..Sample::default()
        })
    }
}

#[test]
fn who_was_really_offered_less_is_not_better_and_who_was_offered_more_is_not_worse() {
    use SystemName::{Bridge, Causeway};
    for (bridge, causeway, wanted) in [
        ((2.0, 1.0), (1.0, 1.0), Finding::Faster),
        ((2.0, 1.0), (1.0, 0.99), Finding::Faster),
        ((2.0, 1.0), (1.0, 0.9), Finding::NoDifference),
        ((2.0, 0.9), (1.0, 1.0), Finding::Faster),
        ((1.0, 1.0), (2.0, 1.0), Finding::Slower),
        ((1.0, 0.9), (2.0, 1.0), Finding::NoDifference),
        ((1.0, 1.0), (2.0, 0.9), Finding::Slower),
    ] {
        let mut hall = Offered(BTreeMap::from([(Bridge, bridge), (Causeway, causeway)]));
        let results = results(&scenario(5), &mut hall, 1);
        assert_eq!(finding(&results), wanted, "{bridge:?} {causeway:?}");
    }
}

#[test]
fn an_absent_system_is_named_once_and_the_run_goes_on() {
    let mut hall = Limited(BTreeMap::from([(SystemName::Bridge, (1.0, false))]));
    let mut plan = scenario(5);
    plan.points.push(plan.points[0].clone());
    let results = results(&plan, &mut hall, 1);
    assert_eq!(results.absent.len(), 1);
    assert_eq!(results.absent[0].system, "causeway");
    for point in &results.points {
        let counts = point.systems.iter().map(|system| system.samples.len());
        assert_eq!(counts.sum::<usize>(), 10, "the bridge twice");
    }
}

#[test]
fn a_torn_journal_is_read_up_to_its_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let plan = scenario(5);
    let record = Record::begin(dir.path(), Results::empty(&plan, Manifest::default())).unwrap();
    for round in 0..2 {
        record.enter(Entry::Sample {
            point: 0,
            system: "bridge".to_owned(),
            taken: crate::result::Taken {
                round,
                sample: Sample::default(),
            },
        });
    }
    let journal = std::fs::read_dir(dir.path()).unwrap().next().unwrap();
    let journal = journal.unwrap().path();
    let whole = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, &whole[..whole.len() - 5]).unwrap();
    let read = crate::record::read(&journal).unwrap();
    assert_eq!(read.points[0].systems[0].samples.len(), 1);
    assert!(read.partial.is_some());
    assert_eq!(read.format, FORMAT);
}

#[test]
fn figures_are_shown_with_three_digits() {
    for (value, wanted) in [
        (0.0, "0"),
        (0.012_34, "0.0123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.0, "1234"),
        (12_345.0, "12.3 k"),
        (1.5e6, "1.50 M"),
        (f64::NAN, "-"),
    ] {
        assert_eq!(shown(value), wanted);
    }
}
