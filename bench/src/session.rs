//! A run with its surroundings: signals, progress and the record on disk.
//!
//! # Theory of operation
//! The run has a thread of its own; the calling one waits for its end or for a signal. A signal
//! asks the run to stop and gives it `GRACE` to end the measurement that goes on, which also
//! stops the systems. If that is too long, the record is finished with what it has, what was
//! started is killed, and the caller is told to exit: the kernel takes the namespaces away with the
//! process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tests::lab;
use tokio::signal::unix::{SignalKind, signal};

use crate::leftover;
use crate::manifest;
use crate::measure::Stop;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::record::Record;
use crate::result::Results;
use crate::run::{self, Ending, Hall, Watch};

/// How long a run that is asked to stop may take to end its measurement.
const GRACE: Duration = Duration::from_secs(2);

/// How a session ended.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where the document is.
    pub path: PathBuf,
    /// What it says.
    pub results: Results,
    /// The signal that ended the run early.
    pub signal: Option<Interruption>,
}

/// A signal that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// Ctrl-C.
    Interrupt,
    /// What `kill` sends.
    Terminate,
    /// The terminal is gone.
    HangUp,
}

impl Interruption {
    /// The signal's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
        }
    }

    /// The exit status that a shell expects of a process that ended by it.
    pub const fn exit_status(self) -> i32 {
        match self {
            Self::HangUp => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

enum Event {
    /// `None` when the run panicked.
    Ended(Option<Ending>),
    Signal(Interruption),
}

/// Runs a plan, writing to a directory as it goes.
///
/// After an interruption the caller exits: a measurement may still be under way on a thread.
///
/// # Errors
/// When the record or the signals cannot be had.
pub fn run(plan: &Plan, mut hall: Box<dyn Hall>, out: &Path) -> anyhow::Result<Session> {
    let (events, inbox) = mpsc::channel();
    watch_signals(&events)?;
    let record = Arc::new(Record::begin(
        out,
        Results::empty(plan, manifest::look(Some(plan))),
    )?);
    let stop = Stop::default();
    let progress = Arc::new(Progress::new(plan));
    let (its_record, its_stop) = (Arc::clone(&record), stop.clone());
    let (its_progress, its_plan) = (Arc::clone(&progress), plan.clone());
    thread::Builder::new()
        .name("bench-run".to_owned())
        .spawn(move || {
            let watch: &dyn Watch = &*its_progress;
            let run = || run::run(&its_plan, hall.as_mut(), &its_record, &its_stop, watch);
            // Only the record is used after a panic, and it is whole after each entry.
            let ending = catch_unwind(AssertUnwindSafe(run)).ok();
            // Nobody listens any more when the grace is over.
            let _ = events.send(Event::Ended(ending));
        })
        .context("cannot start a thread")?;
    let (signal, partial) = match inbox.recv() {
        Ok(Event::Ended(Some(_))) => (None, None),
        // The signals hold senders, so the inbox stays open; a closed one is no better.
        Ok(Event::Ended(None)) | Err(mpsc::RecvError) => {
            (None, Some("the run panicked".to_owned()))
        }
        Ok(Event::Signal(signal)) => {
            stop.ask();
            progress.note(&format!("{}: stopping", signal.name()));
            let mut partial = format!("interrupted by {}", signal.name());
            if let Some(forced) = await_end(&inbox) {
                progress.note(&forced);
                partial = format!("{partial}; {forced}");
            }
            (Some(signal), Some(partial))
        }
    };
    progress.clear();
    if let Some(error) = record.lost() {
        progress.note(&format!("the journal is not whole: {error}"));
    }
    let (path, results) = record.finish(partial)?;
    Ok(Session {
        path,
        results,
        signal,
    })
}

/// Waits for the end of a run that was asked to stop; kills what it has started when it takes too
/// long, and says so.
fn await_end(inbox: &mpsc::Receiver<Event>) -> Option<String> {
    loop {
        match inbox.recv_timeout(GRACE) {
            // Impatience changes nothing.
            Ok(Event::Signal(_)) => {}
            Ok(Event::Ended(_)) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    let left = leftover::of_this_run();
    for failure in left.clean() {
        eprintln!("cannot clean {failure}");
    }
    let grace = GRACE.as_secs();
    Some(match left.is_empty() {
        true => format!("the measurement went on after {grace} s and was abandoned"),
        false => format!("it had not ended after {grace} s, so this was killed or removed: {left}"),
    })
}

/// Sends an event for each signal that ends a run.
fn watch_signals(events: &mpsc::Sender<Event>) -> anyhow::Result<()> {
    let kinds = [
        (SignalKind::interrupt(), Interruption::Interrupt),
        (SignalKind::terminate(), Interruption::Terminate),
        (SignalKind::hangup(), Interruption::HangUp),
    ];
    for (kind, interruption) in kinds {
        let mut stream = lab::block_on(async { signal(kind) })
            .with_context(|| format!("cannot listen to {}", interruption.name()))?;
        let events = events.clone();
        thread::Builder::new()
            .name("bench-signal".to_owned())
            .spawn(move || {
                while lab::block_on(stream.recv()).is_some() {
                    if events.send(Event::Signal(interruption)).is_err() {
                        return;
                    }
                }
            })
            .context("cannot start a thread")?;
    }
    Ok(())
}
