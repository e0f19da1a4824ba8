//! What a state that has just been made still lacks.

use rusqlite::Connection;

use super::{Error, Store, set_host_note};

const KEY: &str = "default_network";
const DUE: &str = "due";

impl Store {
    /// Whether the default network is still to be made.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn is_default_network_due(&self) -> Result<bool, Error> {
        Ok(self.host_note(KEY)?.is_some())
    }

    /// Writes down that it was made, or that there is to be none.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn default_network_was_made(&self) -> Result<(), Error> {
        self.remove_host_note(KEY)
    }
}

/// Writes down, with the first tables, that the default network is to be made.
pub(super) fn note(connection: &Connection) -> rusqlite::Result<()> {
    set_host_note(connection, KEY, DUE)
}
