//! The lock that keeps a second daemon out of a state directory.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::Error;

/// Takes the lock and writes down by whom it was taken, for those who come too late.
pub(super) fn take(file: File, dir: &Path) -> Result<Flock<File>, Error> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let pid = std::process::id().to_string();
            // On a full disk the lock holds all the same, without a name to it.
            let written = lock
                .set_len(0)
                .and_then(|()| (&*lock).write_all(pid.as_bytes()));
            if let Err(error) = written {
                tracing::warn!(%error, "cannot write down who has the state directory");
            }
            Ok(lock)
        }
        Err((mut file, _)) => {
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok();
            Err(Error::Locked {
                dir: dir.to_owned(),
                holder: holder.and_then(|_| text.trim().parse().ok()),
            })
        }
    }
}
