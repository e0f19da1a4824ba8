//! The one MAC of ports that have one for everybody behind them, a row for each.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use rusqlite::{Connection, params};

use super::{execute, text};
use crate::model::Endpoint;

/// The table of MACs.
pub(super) const MACS: &str = "
CREATE TABLE mac_nat (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE, mac TEXT NOT NULL) STRICT;
";

/// Writes the MAC of an endpoint's port.
pub(super) fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let port = endpoint.port.0;
    match endpoint.settings.mac_nat {
        Some(mac) => execute(
            connection,
            "INSERT OR REPLACE INTO mac_nat VALUES (?1, ?2)",
            params![port, mac.to_string()],
        )?,
        None => execute(connection, "DELETE FROM mac_nat WHERE port = ?1", [port])?,
    };
    Ok(())
}

/// Reads the MACs of all ports.
pub(super) fn load(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM mac_nat")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mac = text(row, "mac")?;
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            endpoint.settings.mac_nat = Some(mac);
        }
    }
    Ok(())
}
