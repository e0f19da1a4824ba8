//! The performance bar: every line with its least, its stretch and what was reached.

use clap::ValueEnum;
use serde::Serialize;

use std::rc::Rc;

use crate::profile::Profile;
use crate::summary::Series;

mod contest;
mod core_lines;
mod modes;
mod nat_lines;
mod pair_lines;
mod scale_lines;

/// How the bar is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Measurements of each system in each line.
    pub repeats: usize,
    /// The groups of lines that are measured; all when it is empty.
    pub only: Vec<Group>,
    /// Microseconds of spinning.
    pub spin: u64,
    /// Worker threads.
    pub workers: usize,
}

/// Lines that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Line 1: bulk TCP between two sandboxes.
    Bulk,
    /// Line 2: small frames.
    Frames,
    /// Line 3: round trips.
    Latency,
    /// Line 3: a hundred ports without traffic.
    Idle,
    /// Line 4: out by source NAT, in by a published port.
    Nat,
    /// Line 5: the core in memory.
    Core,
    /// Line 6: big numbers.
    Scale,
}

/// One line of the bar.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    /// Number of the bar's line.
    pub number: u8,
    /// What is measured.
    pub name: String,
    /// Unit of `reached`, `least` and `stretch`.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The least that is wanted.
    pub least: Option<f64>,
    /// What is aimed at.
    pub stretch: Option<f64>,
    /// What was measured; `None` when it is not built.
    pub reached: Option<Series>,
    /// The figures behind it: label, unit, medians.
    pub behind: Vec<(String, f64)>,
    /// Why there is no figure, or what makes it doubtful.
    pub note: Option<String>,
    /// Where the time went, of a line that falls short.
    pub profile: Option<Profile>,
    /// Takes [`Self::profile`].
    #[serde(skip)]
    profiler: Option<Profiler>,
}

/// Does once more, under a profiler, what a line has measured of Causeway.
#[derive(Clone)]
struct Profiler(Rc<TakeProfile>);

type TakeProfile = dyn Fn(&Options) -> anyhow::Result<Profile>;

impl std::fmt::Debug for Profiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Profiler")
    }
}

impl Group {
    /// Measures its lines.
    ///
    /// # Errors
    /// When Causeway or a system of the kernel cannot be measured; a reference that cannot is named
    /// as absent. Namespaces are gone then as well.
    fn measure(self, options: &Options) -> anyhow::Result<Vec<Line>> {
        match self {
            Self::Bulk => pair_lines::bulk(options),
            Self::Frames => pair_lines::small_frames(options),
            Self::Latency => pair_lines::latency(options),
            Self::Idle => Ok(vec![pair_lines::idle(options)?]),
            Self::Nat => nat_lines::lines(options),
            Self::Core => core_lines::lines(options),
            Self::Scale => scale_lines::lines(options),
        }
    }

    /// Number of the bar's line.
    const fn number(self) -> u8 {
        match self {
            Self::Bulk => 1,
            Self::Frames => 2,
            Self::Latency | Self::Idle => 3,
            Self::Nat => 4,
            Self::Core => 5,
            Self::Scale => 6,
        }
    }
}

/// Measures every line that is built. A group that cannot be measured is a line that says why, and
/// loses what was measured to nobody else.
pub fn run(options: &Options) -> Vec<Line> {
    let all = Group::value_variants().iter();
    let wanted = all.filter(|group| options.only.is_empty() || options.only.contains(group));
    let measured = wanted.map(|group| {
        group.measure(options).unwrap_or_else(|error| {
            let line = Line::failed(group.number(), &format!("{group:?}").to_lowercase(), &error);
            vec![line]
        })
    });
    let mut lines: Vec<Line> = measured.flatten().collect();
    for line in lines.iter_mut().filter(|line| line.is_short()) {
        line.take_profile(options);
    }
    lines
}

fn progress(what: &str, repeat: usize, of: usize) {
    eprintln!("{what}: {} of {of}", repeat + 1);
}

impl Line {
    /// A line without a figure.
    fn unmeasured(number: u8, name: &str, why: &str) -> Self {
        Self {
            number,
            name: name.to_owned(),
            more_is_better: true,
            note: Some(why.to_owned()),
            ..Self::default()
        }
    }

    /// A line whose measurement failed.
    fn failed(number: u8, name: &str, error: &anyhow::Error) -> Self {
        Self {
            note: Some(format!("failed: {error:#}")),
            ..Self::unmeasured(number, name, "")
        }
    }

    /// Whether its measurement failed.
    pub fn has_failed(&self) -> bool {
        let note = self.note.as_deref().unwrap_or_default();
        self.reached.is_none() && note.starts_with("failed: ")
    }

    /// Whether it misses its least.
    pub fn is_short(&self) -> bool {
        self.least.and_then(|least| self.reaches(least)) == Some(false)
    }

    /// Takes the profile of a line that falls short, or notes why there is none.
    fn take_profile(&mut self, options: &Options) {
        let Some(Profiler(profiler)) = self.profiler.clone() else {
            return;
        };
        eprintln!("{}: its profile", self.name);
        match profiler(options) {
            Ok(profile) => self.profile = Some(profile),
            Err(error) => {
                let notes = self.note.take().into_iter().chain([format!("{error:#}")]);
                self.note = Some(notes.collect::<Vec<_>>().join("; "));
            }
        }
    }

    /// Whether the median reaches a mark.
    fn reaches(&self, mark: f64) -> Option<bool> {
        let median = self.reached.as_ref()?.median();
        Some(if self.more_is_better {
            median >= mark
        } else {
            median <= mark
        })
    }
}

/// Prints the lines as a table.
pub fn print(lines: &[Line]) {
    println!("{}", machine());
    let (mut short, mut unmeasured) = (0, 0);
    for line in lines {
        let Some(reached) = &line.reached else {
            unmeasured += 1;
            let why = line.note.as_deref().unwrap_or("not built");
            println!("{}  {:<66} {why}", line.number, line.name);
            continue;
        };
        let (low, high) = reached.spread();
        let mark = |mark: Option<f64>| mark.map_or_else(|| "-".to_owned(), |m| format!("{m:.2}"));
        let outcome = match (line.least, line.stretch) {
            _ if line.is_short() => "SHORT",
            (_, Some(stretch)) if line.reaches(stretch) == Some(true) => "stretch",
            (Some(_), _) => "reached",
            (None, _) => "no mark",
        };
        short += usize::from(line.is_short());
        println!(
            "{}  {:<66} {:>8.2} {:<9} [{low:.2} .. {high:.2}]  least {}, stretch {}  {outcome}",
            line.number,
            line.name,
            reached.median(),
            line.unit,
            mark(line.least),
            mark(line.stretch),
        );
        if !line.behind.is_empty() {
            let figures = line
                .behind
                .iter()
                .map(|(label, value)| format!("{label} {value:.2}"));
            println!("     {}", figures.collect::<Vec<_>>().join(", "));
        }
        if let Some(note) = &line.note {
            println!("     {note}");
        }
        for words in line.profile.iter().flat_map(|profile| profile.lines()) {
            println!("     {words}");
        }
    }
    let measured = lines.len() - unmeasured;
    println!("{measured} lines measured, {short} of them SHORT; {unmeasured} not measured");
}

/// The machine in a line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| {
        rest.trim_start_matches([':', ' ', '\t'])
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cpus} x {model}, Linux {}; medians of paired runs, spread in brackets",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_taken_of_what_falls_short_alone() {
        let line = |reached: f64| Line {
            least: Some(2.5),
            reached: Some(Series {
                values: vec![reached],
            }),
            profiler: Some(Profiler(Rc::new(|_| Ok(Profile::default())))),
            ..Line::default()
        };
        assert!(line(2.6).is_short());
        assert!(!line(2.4).is_short());
        assert!(!Line::unmeasured(2, "frames", "not built").is_short());
        let options = Options {
            repeats: 3,
            only: Vec::new(),
            spin: 0,
            workers: 1,
        };
        let mut short = line(2.6);
        short.take_profile(&options);
        assert_eq!(short.profile, Some(Profile::default()));
        let refuse = |_: &Options| -> anyhow::Result<Profile> { anyhow::bail!("no perf") };
        short.note = Some("doubtful".to_owned());
        short.profiler = Some(Profiler(Rc::new(refuse)));
        short.take_profile(&options);
        assert_eq!(short.note.as_deref(), Some("doubtful; no perf"));
    }

    #[test]
    fn a_line_that_failed_is_told_from_one_that_is_not_built() {
        let failed = Line::failed(6, "scale", &anyhow::anyhow!("no way to 10.0.0.19"));
        assert!(failed.has_failed());
        assert_eq!(failed.note.as_deref(), Some("failed: no way to 10.0.0.19"));
        assert!(!Line::unmeasured(2, "frames", "not built").has_failed());
    }
}
