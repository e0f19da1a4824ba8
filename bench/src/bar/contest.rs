//! Systems that take turns at the same work.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::modes::{self, Mode};
use super::{Line, Options, Profiler, progress};
use crate::measure::{Request, measure};
use crate::profile;
use crate::prototype::{self, Prototype};
use crate::result::{Flag, Sample};
use crate::summary::Series;
use crate::system::{self, Setup, Shape, StartError, System, SystemName, WaitingMode};

/// One that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrant {
    /// A system.
    System(SystemName),
    /// A prototype of Causeway's method.
    Prototype(Prototype),
}

/// Causeway itself.
pub const CAUSEWAY: Entrant = Entrant::System(SystemName::Causeway);
/// The kernel bridge.
pub const BRIDGE: Entrant = Entrant::System(SystemName::Bridge);
impl std::fmt::Display for Entrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System(name) => write!(f, "{name}"),
            Self::Prototype(prototype) => write!(f, "{prototype}"),
        }
    }
}

/// What everybody came to.
pub struct Contest {
    entrants: Vec<(Entrant, Vec<Sample>)>,
    setup: Setup,
    request: Request,
    /// Those that could not take part, and why.
    pub absent: Vec<String>,
}

impl Options {
    /// The set-up of a shape.
    pub fn setup(&self, shape: Shape) -> Setup {
        Setup {
            shape,
            workers: u16::try_from(self.workers).unwrap_or(u16::MAX),
            waiting: match self.spin {
                0 => WaitingMode::Sleep,
                _ => WaitingMode::Adaptive,
            },
            ..Setup::default()
        }
    }

    fn start(&self, entrant: Entrant, setup: &Setup) -> Result<System, StartError> {
        let spin = Duration::from_micros(self.spin);
        match entrant {
            Entrant::System(name) => system::start_with(name, setup, spin),
            Entrant::Prototype(prototype) => {
                prototype::forwarder(prototype, setup).map_err(|error| StartError::Failed {
                    system: SystemName::Causeway,
                    reason: format!("its prototype: {error}"),
                })
            }
        }
    }
}

/// Has every entrant measured `repeats` times, in turn. One that polls without end runs only
/// while it is measured.
///
/// # Errors
/// When Causeway, a prototype or the first entrant cannot be started or measured; others are
/// absent then.
pub fn hold(
    options: &Options,
    what: &str,
    setup: &Setup,
    entrants: &[Entrant],
    request: &Request,
) -> anyhow::Result<Contest> {
    let mut contest = Contest {
        entrants: Vec::new(),
        setup: setup.clone(),
        request: request.clone(),
        absent: Vec::new(),
    };
    let mut running = Vec::new();
    for entrant in entrants {
        let needed = *entrant == entrants[0] || *entrant == CAUSEWAY;
        match options.start(*entrant, setup) {
            Ok(system) => {
                running.push(Some(system).filter(|_| !polls_always(*entrant)));
                contest.entrants.push((*entrant, Vec::new()));
            }
            Err(error) if needed => return Err(error.into()),
            Err(error) => contest.absent.push(error.to_string()),
        }
    }
    for repeat in 0..options.repeats {
        progress(what, repeat, options.repeats);
        for (index, (entrant, samples)) in contest.entrants.iter_mut().enumerate() {
            let started;
            let system = match &running[index] {
                Some(system) => system,
                None => {
                    started = options.start(*entrant, setup)?;
                    &started
                }
            };
            match measure(request, system) {
                Ok(sample) => samples.push(sample),
                Err(error) if *entrant == CAUSEWAY || index == 0 => return Err(error.into()),
                Err(error) => contest.absent.push(format!("{entrant}: {error}")),
            }
        }
    }
    contest
        .entrants
        .retain(|(_, samples)| samples.len() == options.repeats);
    Ok(contest)
}

fn polls_always(entrant: Entrant) -> bool {
    entrant == Entrant::System(SystemName::OvsXdp)
}

impl Contest {
    /// A figure of an entrant, turn by turn; `None` when it did not take part.
    pub fn figure(&self, entrant: Entrant, metric: &str) -> Option<Series> {
        let (_, samples) = self.entrants.iter().find(|(who, _)| *who == entrant)?;
        let value = |sample: &Sample| {
            let found = sample.metrics.iter().find(|found| found.name == metric);
            found.map_or(f64::NAN, |found| found.value)
        };
        Some(Series {
            values: samples.iter().map(value).collect(),
        })
    }

    /// The medians of a figure, of everybody.
    pub fn medians(&self, metric: &str, unit: &str) -> Vec<(String, f64)> {
        let median = |(entrant, _): &(Entrant, _)| {
            let series = self.figure(*entrant, metric)?;
            Some((format!("{entrant} {unit}"), series.median()))
        };
        self.entrants.iter().filter_map(median).collect()
    }

    /// Causeway's figure over another's, paired by turn.
    pub fn ratio_to(&self, other: Entrant, metric: &str) -> Option<Series> {
        let (ours, theirs) = (self.figure(CAUSEWAY, metric)?, self.figure(other, metric)?);
        Some(ours.ratio(&theirs))
    }

    /// Causeway's ratios to another's figure, by the modes of the latter.
    pub fn modes(&self, other: Entrant, metric: &str) -> Vec<Mode> {
        let figures = self
            .figure(CAUSEWAY, metric)
            .zip(self.figure(other, metric));
        figures.map_or_else(Vec::new, |(ours, theirs)| modes::of(&ours, &theirs))
    }

    /// The reference with the highest median.
    pub fn best_of(&self, names: &[SystemName], metric: &str) -> Option<Entrant> {
        let entrants = names.iter().map(|name| Entrant::System(*name));
        let medians = entrants.filter_map(|who| Some((who, self.figure(who, metric)?.median())));
        let best = medians.max_by(|(_, one), (_, other)| one.total_cmp(other));
        best.map(|(who, _)| who)
    }

    /// Who is absent, and whose figures a load has limited.
    pub fn note(&self) -> Option<String> {
        let mut notes = self.absent.clone();
        for (flag, words) in [
            (
                Flag::GeneratorLimited,
                "could have carried more than the generator offered",
            ),
            (
                Flag::ReceiverLimited,
                "could have delivered more than the receiver took",
            ),
            (
                Flag::CeilingReached,
                "reached the highest rate that is tried",
            ),
        ] {
            let limited = |samples: &[Sample]| samples.iter().any(|s| s.flags.contains(&flag));
            let who = self.entrants.iter().filter(|(_, samples)| limited(samples));
            let who: BTreeSet<String> = who.map(|(entrant, _)| entrant.to_string()).collect();
            if !who.is_empty() {
                let who: Vec<String> = who.into_iter().collect();
                notes.push(format!("{} {words}", who.join(", ")));
            }
        }
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    /// Has Causeway measured once more, under a profiler.
    pub fn profiler(&self) -> Profiler {
        let (setup, request) = (self.setup.clone(), self.request.clone());
        Profiler(Rc::new(move |options| {
            let system = options.start(CAUSEWAY, &setup)?;
            measure(&request, &system)?;
            let (measured, profile) = profile::during(|| measure(&request, &system))?;
            measured?;
            Ok(profile)
        }))
    }

    /// A line of the bar: Causeway's figure over another's.
    pub fn line(&self, line: Wanted<'_>, metric: &str, unit: &str, over: Entrant) -> Line {
        let mut behind = self.medians(metric, unit);
        let prototypes = self.entrants.iter().map(|(who, _)| *who);
        for prototype in prototypes.filter(|who| matches!(who, Entrant::Prototype(_))) {
            let ratio = self
                .figure(prototype, metric)
                .zip(self.figure(over, metric));
            let ratio = ratio.map(|(own, theirs)| own.ratio(&theirs).median());
            behind.extend(ratio.map(|ratio| (format!("{prototype} ratio"), ratio)));
        }
        Line {
            number: line.number,
            name: line.name.to_owned(),
            unit: "x",
            more_is_better: line.more_is_better,
            least: Some(line.least),
            stretch: line.stretch,
            behind,
            reached: self.ratio_to(over, metric),
            note: self.note(),
            profile: None,
            profiler: Some(self.profiler()),
        }
    }
}

/// What a line asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Number of the bar's line.
    pub number: u8,
    /// What is measured.
    pub name: &'a str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The least.
    pub least: f64,
    /// What is aimed at.
    pub stretch: Option<f64>,
}

/// Asks for at least so much.
pub const fn at_least(number: u8, name: &str, least: f64, stretch: f64) -> Wanted<'_> {
    Wanted {
        number,
        name,
        more_is_better: true,
        least,
        stretch: Some(stretch),
    }
}

/// Asks for no more than so much.
pub const fn at_most(number: u8, name: &str, least: f64, stretch: f64) -> Wanted<'_> {
    Wanted {
        number,
        name,
        more_is_better: false,
        least,
        stretch: Some(stretch),
    }
}
