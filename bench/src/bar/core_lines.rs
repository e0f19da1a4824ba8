//! Line 5: the core alone, in memory, on one CPU.

use std::rc::Rc;

use super::{Line, Options, Profiler, progress};
use crate::profile;
use crate::scaling::{self, MemoryPath};
use crate::summary::Series;
use crate::{core_alone, prototype};

type Measure = fn() -> f64;

/// What is measured, with its least and what the same costs without a switch around it.
const LINES: [(&str, Measure, f64, Option<Measure>); 5] = [
    (
        "core: known unicast, 64 stations",
        core_alone::unicast_64,
        40.0,
        Some(|| prototype::lookup(64, |rng| rng.usize(..64))),
    ),
    (
        "core: 1 M stations, uniform",
        core_alone::unicast_million_uniform,
        120.0,
        Some(|| prototype::lookup(1 << 20, |rng| rng.usize(..1 << 20))),
    ),
    (
        "core: 1 M stations, Zipf(1.0)",
        core_alone::unicast_million_zipf,
        60.0,
        Some(|| prototype::lookup(1 << 20, core_alone::zipf_million)),
    ),
    (
        "core: NAT hit",
        core_alone::nat_hit,
        90.0,
        Some(|| prototype::translation(1024)),
    ),
    (
        "core: new NAT session",
        core_alone::nat_new_session,
        700.0,
        None,
    ),
];

const SCALING: &str = "core: two workers on memory ports, ratio to a two-thread ALU loop";
const TRACING: &str = "core: cost of tracing that is off";

/// Every line.
///
/// # Errors
/// When the workers on memory ports cannot start.
pub fn lines(options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut lines = alone(options);
    lines.push(two_workers(options)?);
    lines.push(tracing_off(options)?);
    Ok(lines)
}

fn alone(options: &Options) -> Vec<Line> {
    let measured = LINES.iter().map(|(name, measure, least, prototype)| {
        let measure = *measure;
        let (mut reached, mut least_possible) = (Series::default(), Series::default());
        for repeat in 0..options.repeats {
            progress(name, repeat, options.repeats);
            reached.push(measure());
            if let Some(prototype) = prototype {
                least_possible.push(prototype());
            }
        }
        let behind = prototype.map(|_| ("prototype ns/frame".to_owned(), least_possible.median()));
        Line {
            number: 5,
            name: (*name).to_owned(),
            unit: "ns/frame",
            more_is_better: false,
            least: Some(*least),
            stretch: Some(least / 2.0),
            behind: behind.into_iter().collect(),
            reached: Some(reached),
            profiler: Some(Profiler(Rc::new(move |_| {
                let (_, profile) = profile::during(measure)?;
                Ok(profile)
            }))),
            ..Line::default()
        }
    });
    measured.collect()
}

/// How much faster two workers are than one, over how much faster two threads are that only
/// compute.
fn two_workers(options: &Options) -> anyhow::Result<Line> {
    let (mut reached, mut one, mut two) = <(Series, Series, Series)>::default();
    let (mut workers, mut threads) = (Series::default(), Series::default());
    for repeat in 0..options.repeats {
        progress(SCALING, repeat, options.repeats);
        // Never two at a time: workers on memory ports do not sleep.
        one.push(MemoryPath::start(1)?.nanos()?);
        two.push(MemoryPath::start(2)?.nanos()?);
        let last = one.values.len() - 1;
        workers.push(one.values[last] / two.values[last]);
        threads.push(scaling::alu(2)? / scaling::alu(1)?);
        reached.push(workers.values[last] / threads.values[last]);
    }
    Ok(Line {
        number: 5,
        name: SCALING.to_owned(),
        unit: "x",
        more_is_better: true,
        least: Some(0.9),
        stretch: Some(1.0),
        behind: vec![
            ("one worker ns/frame".to_owned(), one.median()),
            ("two workers ns/frame".to_owned(), two.median()),
            ("workers x".to_owned(), workers.median()),
            ("threads x".to_owned(), threads.median()),
        ],
        reached: Some(reached),
        ..Line::default()
    })
}

/// A worker whose trace has ended against one that was never traced.
fn tracing_off(options: &Options) -> anyhow::Result<Line> {
    let (mut never, mut ended) = (Series::default(), Series::default());
    for repeat in 0..options.repeats {
        progress(TRACING, repeat, options.repeats);
        never.push(MemoryPath::start(1)?.nanos()?);
        let traced = MemoryPath::start(1)?;
        traced.trace_once()?;
        ended.push(traced.nanos()?);
    }
    let cost = |(ended, never): (&f64, &f64)| 100.0 * (ended / never - 1.0);
    let reached = Series {
        values: ended.values.iter().zip(&never.values).map(cost).collect(),
    };
    Ok(Line {
        number: 5,
        name: TRACING.to_owned(),
        unit: "%",
        more_is_better: false,
        least: Some(2.0),
        stretch: Some(1.0),
        behind: vec![
            ("never traced ns/frame".to_owned(), never.median()),
            ("trace ended ns/frame".to_owned(), ended.median()),
        ],
        reached: Some(reached),
        note: Some(
            "a worker whose trace has ended, against one that was never traced: within the core \
             a trace that is off is compiled away"
                .to_owned(),
        ),
        ..Line::default()
    })
}
