//! A run: every system in turn, round after round, at every point.
//!
//! # Theory of operation
//! At each point the contestants are measured A B C A B C, so that what changes slowly (heat, a busy
//! neighbour) disturbs all of them alike. Before the first measurement of an instance comes a short
//! measurement that is discarded. A contestant is in one of three states: *waiting* (no instance),
//! *up* (an instance, warmed up), and *out*: it is absent, cannot do what the point asks, or has
//! failed [`FAILURES_MAX`] times. Only `out` is final, for the point; an absent system is out for
//! the run.
//!
//! The run is stopped between two measurements by its `stop` flag, and a search between two
//! trials. What has been measured until
//! then is in the [`Record`], which others may read at any time.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::measure::{Request, Stop};
use crate::plan::{Contestant, Plan, PlannedPoint, warm_up};
use crate::record::{Entry, Record};
use crate::result::{Absent, Sample, Taken};
use crate::scenario::Instances;
use crate::system::{Setup, SystemName};

/// Failures of one contestant at one point after which it is not tried again: the second one shows
/// that the first was no accident.
pub const FAILURES_MAX: u32 = 2;

/// Starts systems: the real ones, or those that a test invents.
pub trait Hall: Send {
    /// Starts one instance.
    ///
    /// # Errors
    /// Why it cannot take part.
    fn start(&mut self, system: SystemName, setup: &Setup) -> Result<Box<dyn Subject>, Refusal>;
}

/// An instance of a system, stopped when it is dropped.
pub trait Subject {
    /// What it says of itself, its version among it.
    fn facts(&self) -> BTreeMap<String, String>;

    /// Measures it once.
    ///
    /// # Errors
    /// [`Refusal::Failed`] with what went wrong, in a sentence, or [`Refusal::Stopped`].
    fn sample(&mut self, request: &Request) -> Result<Sample, Refusal>;
}

/// Why a system does not take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not on this machine.
    Absent(String),
    /// It cannot do what this point asks.
    Impossible(String),
    /// It should have started, or have been measured.
    Failed(String),
    /// The measurement was asked to end before it had a figure; what it knew by then.
    Stopped(String),
}

impl Refusal {
    /// In a sentence.
    pub fn reason(&self) -> &str {
        match self {
            Self::Absent(reason)
            | Self::Impossible(reason)
            | Self::Failed(reason)
            | Self::Stopped(reason) => reason,
        }
    }
}

/// Who wants to know how the run goes.
pub trait Watch: Sync {
    /// A measurement begins.
    fn begins(&self, point: usize, label: &str, round: u32);
    /// A measurement has ended, or is not going to be.
    fn ended(&self);
    /// Something that the user should read.
    fn note(&self, text: &str);
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Ending {
    /// Everything was tried.
    Whole,
    /// It was asked to stop.
    Stopped,
}

/// Runs a plan and enters what is measured into the record.
pub fn run(
    plan: &Plan,
    hall: &mut dyn Hall,
    record: &Record,
    stop: &Stop,
    watch: &dyn Watch,
) -> Ending {
    let contestants = plan.contestants();
    let mut absent = BTreeSet::new();
    for (index, point) in plan.points.iter().enumerate() {
        let seats = contestants.iter().map(|contestant| Seat {
            contestant,
            state: match absent.contains(&contestant.system) {
                true => State::Out,
                false => State::Waiting,
            },
            failures: 0,
        });
        let mut visit = Visit {
            plan,
            index,
            point,
            seats: seats.collect(),
            record,
            stop,
            watch,
        };
        let ending = visit.rounds(hall, &mut absent);
        if ending == Ending::Stopped {
            return ending;
        }
    }
    Ending::Whole
}

/// A contestant at a point.
struct Seat<'a> {
    contestant: &'a Contestant,
    state: State,
    failures: u32,
}

enum State {
    Waiting,
    Up(Box<dyn Subject>),
    Out,
}

/// The visit of one point.
struct Visit<'a> {
    plan: &'a Plan,
    index: usize,
    point: &'a PlannedPoint,
    seats: Vec<Seat<'a>>,
    record: &'a Record,
    stop: &'a Stop,
    watch: &'a dyn Watch,
}

impl Visit<'_> {
    fn rounds(&mut self, hall: &mut dyn Hall, absent: &mut BTreeSet<SystemName>) -> Ending {
        for round in 0..self.plan.scenario.repeats {
            for seat in 0..self.seats.len() {
                if self.stop.is_asked() {
                    return Ending::Stopped;
                }
                let label = &self.seats[seat].contestant.label;
                if !matches!(self.seats[seat].state, State::Out) {
                    self.watch.begins(self.index, label, round);
                    self.measure(seat, round, hall, absent);
                }
                self.watch.ended();
            }
        }
        Ending::Whole
    }

    /// Measures one contestant: started if it must be, measured, and stopped if it is to be.
    fn measure(
        &mut self,
        seat: usize,
        round: u32,
        hall: &mut dyn Hall,
        absent: &mut BTreeSet<SystemName>,
    ) {
        let seat = &mut self.seats[seat];
        let contestant = seat.contestant;
        let state = std::mem::replace(&mut seat.state, State::Waiting);
        let request = Request {
            stop: self.stop.clone(),
            ..request(self.plan, self.point, self.index, round)
        };
        // The lab panics with the object in its message when the kernel refuses something. Nothing
        // of the instance is used after that: it is dropped.
        let work =
            AssertUnwindSafe(|| measured(hall, contestant.system, state, self.point, &request));
        let outcome = catch_unwind(work)
            .unwrap_or_else(|panic| Err(Refusal::Failed(panic_message(panic.as_ref()))));
        let refusal = match outcome {
            Ok((subject, sample)) => {
                self.record.enter(Entry::Facts {
                    system: contestant.label.clone(),
                    facts: subject.facts(),
                });
                self.record.enter(Entry::Sample {
                    point: self.index,
                    system: contestant.label.clone(),
                    taken: Taken { round, sample },
                });
                if self.plan.scenario.instances == Instances::Kept {
                    seat.state = State::Up(subject);
                }
                return;
            }
            Err(refusal) => refusal,
        };
        // A signal from the terminal reaches the systems too: that they die of it is no failure. What
        // a search knew by then is kept as words, because it is no figure.
        if self.stop.is_asked() {
            if let Refusal::Stopped(known) = refusal {
                self.record.enter(Entry::Failure {
                    point: self.index,
                    system: contestant.label.clone(),
                    reason: known,
                });
            }
            return;
        }
        let (reason, out) = match refusal {
            Refusal::Absent(reason) => {
                if absent.insert(contestant.system) {
                    self.watch
                        .note(&format!("{} is absent: {reason}", contestant.label));
                    self.record.enter(Entry::Absent(Absent {
                        system: contestant.label.clone(),
                        reason: reason.clone(),
                    }));
                }
                (reason, true)
            }
            Refusal::Impossible(reason) => (reason, true),
            Refusal::Failed(reason) | Refusal::Stopped(reason) => {
                seat.failures += 1;
                (reason, seat.failures >= FAILURES_MAX)
            }
        };
        if !absent.contains(&contestant.system) {
            self.watch
                .note(&format!("{} in round {round}: {reason}", contestant.label));
        }
        if out {
            seat.state = State::Out;
        }
        self.record.enter(Entry::Failure {
            point: self.index,
            system: contestant.label.clone(),
            reason,
        });
    }
}

/// Starts and warms up what is not up, then measures.
fn measured(
    hall: &mut dyn Hall,
    system: SystemName,
    state: State,
    point: &PlannedPoint,
    request: &Request,
) -> Result<(Box<dyn Subject>, Sample), Refusal> {
    let mut subject = match state {
        State::Up(subject) => subject,
        State::Waiting | State::Out => started(hall, system, point, request)?,
    };
    let sample = subject.sample(request)?;
    Ok((subject, sample))
}

/// Starts and warms up.
fn started(
    hall: &mut dyn Hall,
    system: SystemName,
    point: &PlannedPoint,
    request: &Request,
) -> Result<Box<dyn Subject>, Refusal> {
    let mut subject = hall.start(system, &point.setup)?;
    let discarded = Request {
        load: warm_up(request.load),
        ..request.clone()
    };
    subject.sample(&discarded)?;
    Ok(subject)
}

/// Has a contestant measured at a point, for `watch` to look on: it calls what it is given, once. Nothing is
/// recorded.
///
/// # Errors
/// Why it was not measured.
pub fn watched<T>(
    plan: &Plan,
    index: usize,
    system: SystemName,
    hall: &mut dyn Hall,
    watch: impl FnOnce(&mut dyn FnMut() -> Result<Sample, Refusal>) -> T,
) -> Result<T, Refusal> {
    let point = &plan.points[index];
    let request = request(plan, point, index, 0);
    let work = AssertUnwindSafe(|| {
        let mut subject = started(hall, system, point, &request)?;
        Ok(watch(&mut || subject.sample(&request)))
    });
    catch_unwind(work).unwrap_or_else(|panic| Err(Refusal::Failed(panic_message(panic.as_ref()))))
}

fn request(plan: &Plan, point: &PlannedPoint, index: usize, round: u32) -> Request {
    // Rounds get seeds of their own; the same place of the same scenario always gets the same.
    let place = (index as u64) << 32 | u64::from(round);
    Request {
        measure: plan.scenario.measure,
        load: plan.scenario.load,
        flows: point.flows,
        scale: point.scale,
        frame_sizes: point.frame_size.sizes(point.setup.mtu),
        congestion: point.congestion.clone(),
        seed: fastrand::Rng::with_seed(plan.scenario.seed ^ place).u64(..),
        stop: Stop::default(),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::result::{Manifest, Metric, Results};

    /// The third measurement is a search that is asked to end.
    struct Searching {
        stop: Stop,
        made: u32,
    }

    struct Instance {
        stop: Option<Stop>,
    }

    impl Hall for Searching {
        fn start(&mut self, _: SystemName, _: &Setup) -> Result<Box<dyn Subject>, Refusal> {
            self.made += 1;
            let stop = (self.made == 3).then(|| self.stop.clone());
            Ok(Box::new(Instance { stop }))
        }
    }

    impl Subject for Instance {
        fn facts(&self) -> BTreeMap<String, String> {
            BTreeMap::new()
        }

        fn sample(&mut self, request: &Request) -> Result<Sample, Refusal> {
            if let Some(stop) = &self.stop {
                stop.ask();
            }
            match request.stop.is_asked() {
                true => Err(Refusal::Stopped("between 100 and 200".to_owned())),
                false => Ok(Sample {
                    metrics: vec![Metric::more("ndr", "Mframes/s", 1.0)],
                    ..Sample::default()
                }),
            }
        }
    }

    struct Silent;

    impl Watch for Silent {
        fn begins(&self, _: usize, _: &str, _: u32) {}
        fn ended(&self) {}
        fn note(&self, _: &str) {}
    }

    #[test]
    fn a_search_that_is_stopped_leaves_what_was_measured_and_its_words_but_no_figure() {
        let text = "name = \"t\"\ntopology = \"pair\"\nmeasure = \"rfc2544-throughput\"\n\
                    systems = [\"bridge\", \"causeway\"]\nnoise-floor = false\n";
        let plan = plan::read(text).expect("a plan");
        let dir = tempfile::tempdir().expect("a directory");
        let results = Results::empty(&plan, Manifest::default());
        let record = Record::begin(dir.path(), results).expect("a record");
        let stop = Stop::default();
        let mut hall = Searching {
            stop: stop.clone(),
            made: 0,
        };
        let ending = run(&plan, &mut hall, &record, &stop, &Silent);
        assert_eq!((ending, hall.made), (Ending::Stopped, 3));
        let partial = Some("interrupted".to_owned());
        let (_, results) = record.finish(partial).expect("a document");
        let systems = &results.points[0].systems;
        let counts: Vec<usize> = systems.iter().map(|system| system.samples.len()).collect();
        assert_eq!(counts, [1, 1], "what was measured before is kept");
        assert_eq!(systems[0].failure.as_deref(), Some("between 100 and 200"));
        assert_eq!(systems[1].failure, None);
    }
}
