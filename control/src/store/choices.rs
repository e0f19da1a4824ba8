//! The table of endpoints whose backend the daemon has chosen, and why.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use rusqlite::{Connection, params};

use super::{execute, text};
use crate::model::{BackendAsked, BackendChoice, Endpoint};

pub(super) const CHOICES: &str = "
CREATE TABLE backend_choice (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE, asked TEXT NOT NULL,
    why TEXT NOT NULL) STRICT;
";

/// Writes the choice of an endpoint's backend.
pub(super) fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let port = endpoint.port.0;
    execute(
        connection,
        "DELETE FROM backend_choice WHERE port = ?1",
        [port],
    )?;
    if let Some(choice) = &endpoint.choice {
        let asked = BackendAsked::Auto(choice.purpose).label();
        execute(
            connection,
            "INSERT INTO backend_choice VALUES (?1, ?2, ?3)",
            params![port, asked, choice.why],
        )?;
    }
    Ok(())
}

/// Reads the choices of all endpoints.
pub(super) fn load(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM backend_choice")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let asked: BackendAsked = text(row, "asked")?;
        if let BackendAsked::Auto(purpose) = asked
            && let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?))
        {
            endpoint.choice = Some(BackendChoice {
                purpose,
                why: row.get("why")?,
            });
        }
    }
    Ok(())
}
