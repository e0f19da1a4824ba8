//! NAT sessions in a file of the state directory, so that flows go on after a restart.
//!
//! # Theory of operation
//! A log: what has changed in the NAT's tables is appended a few times a second, without a wait for
//! the disk, because the page cache survives the process. When the log has grown beyond twice
//! what a fresh one would take, all sessions are written to another file that then takes its place; so
//! it is after every start, and after a write that failed. A crash of the machine may lose the log;
//! the sandboxes are gone then as well.
//!
//! Lost are flows that began, and states that were reached, within the last interval before the end.
//!
//! Limits: `CHANGES_MAX` sessions at a time; the file is at most twice the sessions that there may
//! be, and `SLACK_SIZE`. Thread-safety: one owner, behind a mutex of the engine.

pub mod codec;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::nat::{Nat, SaveCursor, SavedSession};

use codec::{Clocks, HEADER_SIZE, RECORD_SIZE_MAX};

/// How often what has changed is written.
pub const INTERVAL: Duration = Duration::from_millis(200);
/// Sessions that are written at a time, so that a flood of them holds nobody up for long: six
/// megabytes. The rest waits for the next time.
const CHANGES_MAX: usize = 65_536;
/// What a log may have beyond twice its sessions, so that a small one is not written anew all the
/// time.
const SLACK_SIZE: u64 = 1 << 20;
const LOG_FILE: &str = "sessions";
const NEW_FILE: &str = "sessions.new";

/// The log of one daemon.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    nat: Arc<Nat>,
    /// The log; none before it is written for the first time, and after a write has failed.
    log: Option<File>,
    size: u64,
}

/// What an earlier daemon has left.
#[derive(Debug, Default)]
pub struct Left {
    /// Its sessions.
    pub sessions: Vec<SavedSession>,
    /// What is wrong with its file.
    pub problem: Option<String>,
}

/// Removes what an earlier daemon has left: to be read by nobody, once sessions are not kept.
///
/// # Errors
/// What the kernel said.
pub fn discard(dir: &Path) -> io::Result<()> {
    for name in [LOG_FILE, NEW_FILE] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Reads what an earlier daemon has left. A log that cannot be read is as good as none.
pub fn read(dir: &Path, sessions_max: usize, clocks: Clocks) -> Left {
    let path = dir.join(LOG_FILE);
    let problem = |what: &str| Left {
        problem: Some(format!("{}: {what}", path.display())),
        ..Left::default()
    };
    let size_max = size_max(sessions_max) + (CHANGES_MAX * RECORD_SIZE_MAX) as u64;
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|log| log.take(size_max).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Left::default(),
        Err(error) => return problem(&error.to_string()),
        Ok(_) => {}
    }
    match codec::decode(&bytes, clocks) {
        Ok(contents) => Left {
            problem: (contents.damaged > 0).then(|| {
                let (path, size) = (path.display(), contents.damaged);
                format!("{path}: the last {size} bytes are no whole record and are left out")
            }),
            sessions: contents.sessions,
        },
        Err(error) => problem(&error.to_string()),
    }
}

impl Keeper {
    /// Will keep the sessions of `nat` in `dir`. Nothing is written yet.
    pub fn new(dir: &Path, nat: Arc<Nat>) -> Self {
        nat.keep_journal();
        Self {
            dir: dir.to_owned(),
            nat,
            log: None,
            size: 0,
        }
    }

    /// Writes what has changed.
    ///
    /// # Errors
    /// What the kernel said. The next call writes the log anew.
    pub fn keep(&mut self, clocks: Clocks) -> io::Result<()> {
        let written = match self.log.take() {
            Some(log) if self.size <= size_max(self.nat.session_count()) => {
                self.append(log, clocks)
            }
            Some(_) | None => self.write_anew(clocks),
        };
        self.log = Some(written?);
        Ok(())
    }

    fn append(&mut self, mut log: File, clocks: Clocks) -> io::Result<File> {
        let mut out = Vec::new();
        self.nat.save_changed(CHANGES_MAX, |slot, saved| {
            codec::encode(&mut out, slot, saved.as_ref(), clocks);
        });
        log.write_all(&out)?;
        self.size += out.len() as u64;
        Ok(log)
    }

    /// Writes all sessions to a new log, which then takes the place of the old one. Sessions that
    /// change meanwhile are still noted as changed.
    fn write_anew(&mut self, clocks: Clocks) -> io::Result<File> {
        let path = self.dir.join(NEW_FILE);
        // As the socket, for its owner alone.
        let mut log = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        let mut out = codec::header().to_vec();
        let mut size = 0;
        let mut cursor = SaveCursor::default();
        loop {
            let more = self.nat.save_all(&mut cursor, |slot, saved| {
                codec::encode(&mut out, slot, Some(&saved), clocks);
            });
            log.write_all(&out)?;
            size += out.len() as u64;
            out.clear();
            if !more {
                break;
            }
        }
        fs::rename(&path, self.dir.join(LOG_FILE))?;
        self.size = size;
        Ok(log)
    }
}

/// The size at which the log of so many sessions is written anew.
fn size_max(sessions: usize) -> u64 {
    2 * (sessions * RECORD_SIZE_MAX) as u64 + HEADER_SIZE as u64 + SLACK_SIZE
}

#[cfg(test)]
mod tests;
