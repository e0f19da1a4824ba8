//! What the machine's smallest steps cost: the ground that predictions stand on.
//!
//! A switch in userspace does a few things for each frame: it enters the kernel, the kernel copies
//! the frame, the switch looks two addresses up. What these cost at the least is measured here, each
//! on its own and warm, so that a prediction can be made before a switch is measured, and be wrong
//! in an interesting way.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::compare::shown;
use crate::report::table::{Style, table};
use crate::result::Manifest;
use crate::stats::{Estimate, estimate};

/// Version of the document; another one is refused.
pub const FORMAT: u32 = 1;
/// Measurements of each primitive, in turn.
const ROUNDS: usize = 9;
/// How long one measurement takes at the least.
const TIME: Duration = Duration::from_millis(10);
/// Steps between two reads of the clock.
const STEPS: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;
/// The largest GSO frame, about; also what a pipe holds.
pub const LARGE: usize = 65_536;
/// Sizes that pointers are chased in, with the memory that they should fit.
const CHASES: [(&str, usize); 4] = [
    ("miss-l1", 16 << 10),
    ("miss-l2", 256 << 10),
    ("miss-l3", 8 << 20),
    ("miss-dram", 128 << 20),
];

/// The primitives of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primitives {
    /// [`FORMAT`].
    pub format: u32,
    /// Where it was measured.
    pub manifest: Manifest,
    /// Each with its measurements, in nanoseconds.
    pub primitives: Vec<Primitive>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primitive {
    /// What it is called, such as `syscall`.
    pub name: String,
    /// What was done once.
    pub what: String,
    /// Nanoseconds, in the order of the rounds.
    pub nanos: Vec<f64>,
}

impl Primitive {
    /// The median with its interval.
    pub fn estimate(&self) -> Estimate {
        estimate(&self.nanos, 0)
    }
}

impl Primitives {
    /// Median nanoseconds of a primitive; NaN when it was not measured.
    pub fn nanos(&self, name: &str) -> f64 {
        let found = self.primitives.iter().find(|p| p.name == name);
        found.map_or(f64::NAN, |primitive| primitive.estimate().median)
    }

    /// The least that a worker can spend on a frame of `size` bytes between two TAPs: a read and a
    /// write, which enter the kernel and copy the frame, and two lookups that miss the first cache.
    pub fn frame_nanos(&self, size: f64) -> f64 {
        let (small, large) = (self.nanos("pipe-1"), self.nanos("pipe-64k"));
        let each_byte = (large - small) / (LARGE - 1) as f64;
        small + each_byte * size + 2.0 * self.nanos("miss-l2")
    }

    /// As a table.
    pub fn render(&self, style: Style) -> String {
        let mut found = table(style);
        found.set_header(["primitive", "what", "ns", "95 % interval"]);
        for primitive in &self.primitives {
            let e = primitive.estimate();
            found.add_row([
                primitive.name.clone(),
                primitive.what.clone(),
                shown(e.median),
                format!("[{}, {}]", shown(e.low), shown(e.high)),
            ]);
        }
        found.to_string()
    }
}

/// Measures all of them, in turn, which takes about two seconds and 128 MiB.
///
/// # Errors
/// When a pipe cannot be made or used.
pub fn measure(manifest: Manifest) -> io::Result<Primitives> {
    let mut steps = steps()?;
    let mut primitives: Vec<Primitive> = Vec::new();
    for (name, what, _) in &steps {
        primitives.push(Primitive {
            name: (*name).to_owned(),
            what: what.clone(),
            nanos: Vec::new(),
        });
    }
    for _ in 0..ROUNDS {
        for (primitive, (_, _, step)) in primitives.iter_mut().zip(&mut steps) {
            primitive.nanos.push(timed(step.as_mut())?);
        }
    }
    Ok(Primitives {
        format: FORMAT,
        manifest,
        primitives,
    })
}

/// Does a step many times; nanoseconds each.
type Step = Box<dyn FnMut() -> io::Result<f64>>;

fn timed(step: &mut dyn FnMut() -> io::Result<f64>) -> io::Result<f64> {
    // Once for the caches; then the least of what fits the time would hide interrupts that frames
    // meet too, so it is the mean.
    step()?;
    let (start, mut sum, mut count) = (Instant::now(), 0.0, 0.0);
    while start.elapsed() < TIME {
        sum += step()?;
        count += 1.0;
    }
    Ok(sum / count)
}

fn steps() -> io::Result<Vec<(&'static str, String, Step)>> {
    let mut steps: Vec<(&'static str, String, Step)> = vec![
        (
            "syscall",
            "getpid".to_owned(),
            repeated(|| {
                black_box(std::process::id());
                Ok(())
            }),
        ),
        (
            "pipe-1",
            "write and read 1 byte of a pipe".to_owned(),
            pipe(1)?,
        ),
        (
            "pipe-64k",
            "write and read 64 KiB of a pipe".to_owned(),
            pipe(LARGE)?,
        ),
        ("copy-1k", "copy 1 KiB that is in the cache".to_owned(), {
            let (from, mut to) = (vec![0x5a_u8; 1024], vec![0_u8; 1024]);
            repeated(move || {
                black_box(&mut to).copy_from_slice(black_box(&from));
                Ok(())
            })
        }),
    ];
    for (name, size) in CHASES {
        let what = format!("follow a pointer within {} KiB", size >> 10);
        steps.push((name, what, chase(size)));
    }
    Ok(steps)
}

/// A step of [`STEPS`] repetitions.
fn repeated(mut work: impl FnMut() -> io::Result<()> + 'static) -> Step {
    Box::new(move || {
        let start = Instant::now();
        for _ in 0..STEPS {
            work()?;
        }
        Ok(start.elapsed().as_nanos() as f64 / STEPS as f64)
    })
}

fn pipe(size: usize) -> io::Result<Step> {
    let (mut reader, mut writer) = io::pipe()?;
    let (from, mut to) = (vec![0x5a_u8; size], vec![0_u8; size]);
    Ok(repeated(move || {
        writer.write_all(&from)?;
        reader.read_exact(&mut to)
    }))
}

/// Dependent loads, each from a line that the last one told, in an order that no prefetcher knows.
fn chase(size: usize) -> Step {
    let lines = size / LINE;
    let words = LINE / size_of::<usize>();
    let mut next = vec![0_usize; lines * words];
    // Sattolo's shuffle: one cycle through all lines.
    let mut order: Vec<usize> = (0..lines).collect();
    let mut rng = fastrand::Rng::with_seed(7);
    for index in (1..lines).rev() {
        order.swap(index, rng.usize(..index));
    }
    for (line, target) in order.iter().enumerate() {
        next[line * words] = target * words;
    }
    let mut place = 0;
    Box::new(move || {
        let count = STEPS * 64;
        let start = Instant::now();
        for _ in 0..count {
            place = next[place];
        }
        black_box(place);
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_primitive_is_measured_and_larger_ones_cost_more() {
        let found = measure(Manifest::default()).unwrap();
        for primitive in &found.primitives {
            assert_eq!(primitive.nanos.len(), ROUNDS);
            assert!(primitive.nanos.iter().all(|n| *n > 0.0), "{primitive:?}");
        }
        // Factors of ten and more, which no noise hides.
        assert!(found.nanos("pipe-64k") > found.nanos("pipe-1"));
        assert!(found.nanos("miss-dram") > found.nanos("miss-l1"));
        assert!(found.frame_nanos(65_536.0) > found.frame_nanos(64.0));
    }

    #[test]
    fn the_chase_visits_every_line() {
        let lines = 64;
        let mut order: Vec<usize> = (0..lines).collect();
        let mut rng = fastrand::Rng::with_seed(7);
        for index in (1..lines).rev() {
            order.swap(index, rng.usize(..index));
        }
        let mut place = 0;
        let steps = (1..).find(|_| {
            place = order[place];
            place == 0
        });
        assert_eq!(steps, Some(lines), "one cycle");
    }
}
