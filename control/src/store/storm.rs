//! How much each port may flood, a row for each port that is limited.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use dataplane_core::l2::StormLimits;
use rusqlite::{Connection, params};

use super::{execute, text};
use crate::model::Endpoint;

/// The table of limits.
pub(super) const LIMITS: &str = "
CREATE TABLE storm (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE, limits TEXT NOT NULL) STRICT;
";

/// Writes the limits of an endpoint's port.
pub(super) fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let limits = endpoint.settings.storm;
    if limits.is_empty() {
        execute(
            connection,
            "DELETE FROM storm WHERE port = ?1",
            [endpoint.port.0],
        )?;
        return Ok(());
    }
    execute(
        connection,
        "INSERT OR REPLACE INTO storm VALUES (?1, ?2)",
        params![endpoint.port.0, limits.to_string()],
    )?;
    Ok(())
}

/// Reads the limits of all ports.
pub(super) fn load(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM storm")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let limits: StormLimits = text(row, "limits")?;
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            endpoint.settings.storm = limits;
        }
    }
    Ok(())
}
