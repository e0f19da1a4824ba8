//! Names that were given to namespaces which had none, so that they can be taken away again.
//!
//! A note lies beside the sockets in `/run`, which a reboot empties as it does `/run/netns`. It says which
//! namespace the name was given to: a name that leads to another one by now is somebody else's, and stays.
//! No daemon is asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::discovery;
use crate::netns::{self, Netns};

/// Where the notes are.
pub const NOTES_DIR: &str = "/run/causeway/exposed";

/// Why a namespace could not be exposed, or a name not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace or the name cannot be used.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// Not a name of ours.
    #[error(
        "'{0}' was not exposed by causeway, and stays; `causeway ns rm {0}` removes it all the same"
    )]
    NotOurs(String),
    /// A name of ours that leads elsewhere.
    #[error(
        "'{0}' leads to another namespace than the one that was exposed, and stays; \
         `causeway ns rm {0}` removes it all the same"
    )]
    LeadsElsewhere(String),
    /// The notes cannot be written.
    #[error("cannot write to {}: {source}; run as root", path.display())]
    Note {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Gives a namespace a name, and makes a note of it.
///
/// # Errors
/// See [`Error`].
pub fn expose(ns: &Netns, name: &str) -> Result<PathBuf, Error> {
    let path = netns::named_path(name)?;
    if path.symlink_metadata().is_ok() {
        return Err(netns::Error::NameTaken(name.to_owned()).into());
    }
    // First, for a name without a note would be nobody's; a note without a name does no harm.
    let note = note_of(name);
    let written =
        fs::create_dir_all(NOTES_DIR).and_then(|()| fs::write(&note, ns.id().inode().to_string()));
    written.map_err(|source| Error::Note {
        path: note.clone(),
        source,
    })?;
    if let Err(error) = ns.put_name(name) {
        forget(name);
        return Err(error.into());
    }
    Ok(path)
}

/// Takes a name away that was given by [`expose`].
///
/// # Errors
/// See [`Error`].
pub fn unexpose(name: &str) -> Result<(), Error> {
    let path = netns::named_path(name)?;
    let inode = exposed(name).ok_or_else(|| Error::NotOurs(name.to_owned()))?;
    let there = path.symlink_metadata().is_ok();
    if there && discovery::inode_at(&path) != Some(inode) {
        forget(name);
        return Err(Error::LeadsElsewhere(name.to_owned()));
    }
    Netns::remove_named(name)?;
    forget(name);
    Ok(())
}

/// The inode of the namespace that the name was given to.
pub fn exposed(name: &str) -> Option<u64> {
    netns::named_path(name).ok()?;
    fs::read_to_string(note_of(name)).ok()?.parse().ok()
}

/// Forgets that a name was given, when it is gone.
pub fn forget(name: &str) {
    if netns::named_path(name).is_err() {
        return;
    }
    match fs::remove_file(note_of(name)) {
        // The last one takes the directory along.
        Ok(()) => drop(fs::remove_dir(NOTES_DIR)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(name, %error, "cannot forget an exposed name"),
    }
}

fn note_of(name: &str) -> PathBuf {
    Path::new(NOTES_DIR).join(name)
}
