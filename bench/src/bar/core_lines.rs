//! Line 5: the core alone, in memory, on one CPU.

use super::{Line, Options, progress};
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

/// What the bar asks for and nothing measures here yet.
const NOT_BUILT: [&str; 2] = [
    "core: two workers on memory ports, ratio to a two-thread ALU loop",
    "core: cost of tracing that is off",
];

/// Every line that is asked for.
pub fn lines(options: &Options) -> Vec<Line> {
    let wanted = LINES.iter().filter(|(name, ..)| options.wants(name));
    let measured = wanted.map(|(name, measure, least, prototype)| {
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
            note: None,
        }
    });
    let missing = NOT_BUILT.iter().filter(|name| options.wants(name));
    let missing = missing.map(|name| Line::unmeasured(5, name, "not built"));
    measured.chain(missing).collect()
}
