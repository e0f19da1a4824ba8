//! What can be wrong with the state on disk.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::SCHEMA_VERSION;
use crate::serving::process_text;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("cannot use the state directory {}: {source}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another daemon holds it.
    #[error(
        "the state directory {} is in use by a running daemon{}; \
         stop that one or choose another --state-dir", dir.display(), process_text(*holder)
    )]
    Locked {
        /// Which.
        dir: PathBuf,
        /// The daemon's process, where it has written it down.
        holder: Option<i32>,
    },
    /// A newer program has written it.
    #[error(
        "the state in {} has version {found}, this program knows {SCHEMA_VERSION}; \
         use the program that wrote it", path.display()
    )]
    Version {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// SQLite's own errors.
    #[error("cannot access the state in {}: {source}{}", path.display(), remedy(.source))]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Whether the disk has no room for what was to be written.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Database { source, .. } => is_full(source),
            Self::Directory { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Locked { .. } | Self::Version { .. } => false,
        }
    }
}

fn is_full(source: &rusqlite::Error) -> bool {
    source.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn remedy(source: &rusqlite::Error) -> &'static str {
    match is_full(source) {
        true => "; make room there and try again: nothing was changed",
        false => "",
    }
}
