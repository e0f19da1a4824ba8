//! The table of static routes of endpoints.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use rusqlite::{Connection, params};

use super::{execute, text};
use crate::model::{Endpoint, StaticRoute};

/// In the order in which they were given.
pub(super) const ROUTES: &str = "
CREATE TABLE endpoint_route (
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE, prefix TEXT NOT NULL,
    via TEXT NOT NULL, PRIMARY KEY (port, prefix)) STRICT;
";

/// Writes the routes of an endpoint.
pub(super) fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let port = endpoint.port.0;
    execute(
        connection,
        "DELETE FROM endpoint_route WHERE port = ?1",
        [port],
    )?;
    for StaticRoute { prefix, via } in &endpoint.routes {
        execute(
            connection,
            "INSERT INTO endpoint_route VALUES (?1, ?2, ?3)",
            params![port, prefix.to_string(), via.to_string()],
        )?;
    }
    Ok(())
}

/// Reads the routes of all endpoints.
pub(super) fn load(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM endpoint_route ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let route = StaticRoute {
            prefix: text(row, "prefix")?,
            via: text(row, "via")?,
        };
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            endpoint.routes.push(route);
        }
    }
    Ok(())
}
