//! The record of a run: in memory, and on disk from the first measurement on.
//!
//! While a run lasts, each entry is one JSON line in `NAME.jsonl`, written when it comes and never
//! rewritten: whatever kills the run, even SIGKILL, all whole lines are there. At the end the
//! document `NAME.json` takes the place of the journal. [`read`] takes either.
//!
//! Thread-safe: the run enters, and who handles signals finishes, whichever comes first wins.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::primitives::{self, Primitives};
use crate::result::{Absent, FORMAT, Results, SystemSamples, Taken};

/// Largest document that is read, in bytes: a hundred times the largest scenario's.
const SIZE_MAX: u64 = 1 << 30;
/// Files of one name that are tried before giving up.
const NAMES_MAX: u32 = 100;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// The first one: the document without measurements.
    Begin(Box<Results>),
    /// A measurement.
    Sample {
        /// Index of the point.
        point: usize,
        /// Name of the contestant.
        system: String,
        /// What was measured.
        taken: Taken,
    },
    /// A measurement that was not to be had.
    Failure {
        /// Index of the point.
        point: usize,
        /// Name of the contestant.
        system: String,
        /// Why.
        reason: String,
    },
    /// A system that cannot take part at all.
    Absent(Absent),
    /// What a system says of itself.
    Facts {
        /// Name of the contestant.
        system: String,
        /// By name.
        facts: BTreeMap<String, String>,
    },
}

impl Results {
    /// Takes an entry in. One for a point that does not exist is ignored.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Begin(results) => *self = *results,
            Entry::Sample {
                point,
                system,
                taken,
            } => {
                if let Some(samples) = self.samples_mut(point, &system) {
                    samples.samples.push(taken);
                }
            }
            Entry::Failure {
                point,
                system,
                reason,
            } => {
                if let Some(samples) = self.samples_mut(point, &system) {
                    samples.failure = Some(reason);
                }
            }
            Entry::Absent(absent) => self.absent.push(absent),
            Entry::Facts { system, facts } => {
                let known = self.manifest.systems.entry(system).or_default();
                known.extend(facts);
            }
        }
    }

    fn samples_mut(&mut self, point: usize, system: &str) -> Option<&mut SystemSamples> {
        let systems = &mut self.points.get_mut(point)?.systems;
        let found = systems.iter().position(|samples| samples.system == system);
        let index = found.unwrap_or_else(|| {
            systems.push(SystemSamples {
                system: system.to_owned(),
                samples: Vec::new(),
                failure: None,
            });
            systems.len() - 1
        });
        systems.get_mut(index)
    }
}

/// The record of a run that goes on.
#[derive(Debug)]
pub struct Record(Mutex<State>);

#[derive(Debug)]
struct State {
    results: Results,
    journal: File,
    journal_path: PathBuf,
    path: PathBuf,
    started: Instant,
    finished: bool,
    /// The first entry that could not be written.
    lost: Option<io::Error>,
}

impl Record {
    /// Begins a record in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn begin(dir: &Path, results: Results) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {}; give another --out", dir.display()))?;
        let started = results.manifest.started.replace(':', "-");
        let stem = format!("{}-{started}", results.scenario.name);
        let (journal_path, journal) = create(dir, &stem)?;
        let record = Self(Mutex::new(State {
            path: journal_path.with_extension("json"),
            journal,
            journal_path,
            started: Instant::now(),
            finished: false,
            lost: None,
            results: results.clone(),
        }));
        record.enter(Entry::Begin(Box::new(results)));
        Ok(record)
    }

    /// Enters something, in memory and on disk. Nothing is entered after the end.
    pub fn enter(&self, entry: Entry) {
        let mut state = self.state();
        if state.finished {
            return;
        }
        let written = serde_json::to_string(&entry)
            .map_err(io::Error::other)
            .and_then(|line| writeln!(state.journal, "{line}"));
        if let Err(error) = written {
            state.lost.get_or_insert(error);
        }
        state.results.apply(entry);
    }

    /// Writes the document and removes the journal; where it is, and what it says.
    ///
    /// # Errors
    /// What the file system says; the journal then stays where it is.
    pub fn finish(&self, partial: Option<String>) -> anyhow::Result<(PathBuf, Results)> {
        let mut state = self.state();
        if !state.finished {
            state.finished = true;
            state.results.manifest.seconds = state.started.elapsed().as_secs_f64();
            state.results.partial = partial;
            write(&state.path, &state.results).with_context(|| {
                format!("the journal {} has it all", state.journal_path.display())
            })?;
            fs::remove_file(&state.journal_path)
                .with_context(|| format!("cannot remove {}", state.journal_path.display()))?;
        }
        Ok((state.path.clone(), state.results.clone()))
    }

    /// Why the journal is not whole, if it is not.
    pub fn lost(&self) -> Option<String> {
        self.state().lost.as_ref().map(ToString::to_string)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create(dir: &Path, stem: &str) -> anyhow::Result<(PathBuf, File)> {
    for number in 1..=NAMES_MAX {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let path = dir.join(format!("{stem}{suffix}.jsonl"));
        if path.with_extension("json").exists() {
            continue;
        }
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let path = path.display();
                return Err(error).context(format!("cannot create {path}; give another --out"));
            }
        }
    }
    bail!(
        "{} holds {NAMES_MAX} results of this second already; give another --out",
        dir.display()
    )
}

/// Writes a document so that a reader sees the old one or the new one.
///
/// # Errors
/// What the file system says, with the path.
pub fn write(path: &Path, results: &Results) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    let beside = path.with_extension("json.new");
    fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// What a file may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A result, whole or partial.
    Results(Box<Results>),
    /// What the machine's smallest steps cost.
    Primitives(Primitives),
}

/// Reads a result, its journal, or primitives.
///
/// # Errors
/// What is wrong with it, with the path.
pub fn read_any(path: &Path) -> anyhow::Result<Document> {
    let text = read_text(path)?;
    match serde_json::from_str::<Primitives>(&text) {
        Ok(primitives) if primitives.format == primitives::FORMAT => {
            Ok(Document::Primitives(primitives))
        }
        Ok(_) | Err(_) => Ok(Document::Results(Box::new(read(path)?))),
    }
}

/// Reads a document, or the journal of a run that did not end.
///
/// # Errors
/// What is wrong with it, with the path.
pub fn read(path: &Path) -> anyhow::Result<Results> {
    let text = read_text(path)?;
    let shown = path.display();

    let journal = path.extension().is_some_and(|end| end == "jsonl");
    let results = if journal {
        read_journal(&text)
    } else {
        serde_json::from_str(&text).context("it is not a result of `bench run`")
    };
    let results = results.with_context(|| format!("cannot read {shown}"))?;
    if results.format != FORMAT {
        bail!(
            "{shown} has format {}, and this program reads {FORMAT}; run the scenario again",
            results.format
        );
    }
    Ok(results)
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let size = fs::metadata(path)
        .with_context(|| format!("cannot read {shown}"))?
        .len();
    if size > SIZE_MAX {
        bail!("{shown} has {size} bytes, too much for a result");
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))
}

/// The last line of a journal may be torn; any other must be whole.
fn read_journal(text: &str) -> anyhow::Result<Results> {
    let lines: Vec<&str> = text.lines().collect();
    let Some((first, rest)) = lines.split_first() else {
        bail!("the journal is empty: the run was killed before it began");
    };
    let Ok(Entry::Begin(mut results)) = serde_json::from_str(first) else {
        bail!("it is not a journal of `bench run`");
    };
    for (index, line) in rest.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(entry) => results.apply(entry),
            Err(_) if index + 1 == rest.len() && !text.ends_with('\n') => break,
            Err(error) => bail!("line {}: {error}", index + 2),
        }
    }
    results.partial = Some("the run was killed, or is still going on".to_owned());
    Ok(*results)
}
