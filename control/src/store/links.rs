//! What the links of ports are, a row for each that is no plain cable.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use dataplane_core::link::{Direction, LinkSpec};
use rusqlite::{Connection, params};

use super::{execute, optional_text, unreadable};
use crate::impairment::ImpairmentBody;
use crate::model::Endpoint;

/// The table of links.
pub(super) const LINKS: &str = "
CREATE TABLE link (
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE, direction TEXT NOT NULL,
    rate TEXT, impairment TEXT, PRIMARY KEY (port, direction)) STRICT;
";

/// Writes the links of an endpoint's port.
pub(super) fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    execute(
        connection,
        "DELETE FROM link WHERE port = ?1",
        [endpoint.port.0],
    )?;
    for direction in Direction::ALL {
        let link = endpoint.settings.links[direction as usize];
        if link == LinkSpec::default() {
            continue;
        }
        let body = ImpairmentBody::from(link.impairment);
        let body = serde_json::to_string(&body).map_err(unreadable)?;
        execute(
            connection,
            "INSERT INTO link VALUES (?1, ?2, ?3, ?4)",
            params![
                endpoint.port.0,
                direction.label(),
                link.limit.map(|limit| limit.to_string()),
                (!link.impairment.is_none()).then_some(body)
            ],
        )?;
    }
    Ok(())
}

/// Reads the links of all ports.
pub(super) fn load(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM link")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let direction: String = row.get("direction")?;
        let mut all = Direction::ALL.into_iter();
        let direction = all.find(|known| known.label() == direction);
        let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) else {
            continue;
        };
        let Some(direction) = direction else {
            continue;
        };
        let link = &mut endpoint.settings.links[direction as usize];
        link.limit = optional_text(row, "rate")?;
        if let Some(text) = row.get::<_, Option<String>>("impairment")? {
            let body: ImpairmentBody = serde_json::from_str(&text).map_err(unreadable)?;
            link.impairment = body.impairment().map_err(unreadable)?;
        }
    }
    Ok(())
}
