//! Endpoints, with what other tables have of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::PortVlans;
use rusqlite::{Connection, Row, params};

use super::{
    Error, Store, choices, dns, execute, foreign, foreign_columns, links, mac_nat, routes, storm,
    text, unreadable, vlans,
};
use crate::model::dns::EndpointDns;
use crate::model::{Endpoint, Phase, Sandbox};
use crate::port_settings::{self, AdminState, PortSettings};

/// What goes with an endpoint is found by its port: without an index each attachment would read the
/// rows of all others.
pub(super) const BY_PORT: &str = "
CREATE INDEX endpoint_address_by_port ON endpoint_address (port);
CREATE INDEX publication_target_by_port ON publication_target (port);
CREATE INDEX fdb_entry_by_port ON fdb_entry (port);
CREATE INDEX mdb_entry_by_port ON mdb_entry (port);
";

impl Store {
    /// Adds or replaces an endpoint.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), Error> {
        self.transaction(|connection| put(connection, endpoint))
    }

    /// Notes how far endpoints are, all at once.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn set_phase(&self, ports: &[PortId], phase: Phase) -> Result<(), Error> {
        self.transaction(|connection| {
            let statement = "UPDATE endpoint SET phase = ?2 WHERE port = ?1";
            for port in ports {
                execute(connection, statement, params![port.0, phase_label(phase)])?;
            }
            Ok(())
        })
    }

    /// Removes an endpoint, and the publications that lead to no other.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_endpoint(&self, port: PortId) -> Result<(), Error> {
        self.remove_endpoints(&[port])
    }

    /// The same of several, all at once.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_endpoints(&self, ports: &[PortId]) -> Result<(), Error> {
        self.transaction(|connection| {
            for port in ports {
                execute(connection, "DELETE FROM endpoint WHERE port = ?1", [port.0])?;
            }
            execute(
                connection,
                "DELETE FROM publication
                 WHERE id NOT IN (SELECT publication FROM publication_target)",
                [],
            )?;
            Ok(())
        })
    }
}

fn put(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let (owner, id) = foreign_columns(endpoint.foreign.as_ref());
    let path = endpoint.sandbox.path.to_string_lossy();
    execute(
        connection,
        "INSERT INTO endpoint VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,
         ?13, ?14, ?15, ?16)
         ON CONFLICT (port) DO UPDATE SET name = ?2, domain = ?3, sandbox_path = ?4,
         sandbox_inode = ?5, ifname = ?6, mac = ?7, backend = ?8, phase = ?9,
         foreign_owner = ?10, foreign_id = ?11, flags = ?12, mac_limit = ?13,
         down = ?14, attached_at = ?15, gw_priority = ?16",
        params![
            endpoint.port.0,
            endpoint.name.as_str(),
            endpoint.domain.0,
            path,
            endpoint.sandbox.inode.cast_signed(),
            endpoint.ifname,
            endpoint.mac.to_string(),
            endpoint.backend.label(),
            phase_label(endpoint.phase),
            owner,
            id,
            port_settings::changed(endpoint.settings.flags),
            endpoint.settings.mac_limit,
            endpoint.settings.state == AdminState::Down,
            endpoint.attached_at.cast_signed(),
            endpoint.gw_priority
        ],
    )?;
    vlans::put_endpoint(connection, endpoint)?;
    dns::put_endpoint(connection, endpoint)?;
    routes::put(connection, endpoint)?;
    choices::put(connection, endpoint)?;
    let port = endpoint.port.0;
    execute(
        connection,
        "DELETE FROM endpoint_address WHERE port = ?1",
        [port],
    )?;
    for address in &endpoint.addresses {
        execute(
            connection,
            "INSERT INTO endpoint_address VALUES (?1, ?2)",
            params![port, address.to_string()],
        )?;
    }
    storm::put(connection, endpoint)?;
    links::put(connection, endpoint)?;
    mac_nat::put(connection, endpoint)
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<BTreeMap<PortId, Endpoint>> {
    let mut endpoints = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM endpoint")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let endpoint = Endpoint {
            port: PortId(row.get("port")?),
            name: text(row, "name")?,
            domain: DomainId(row.get("domain")?),
            sandbox: Sandbox {
                path: PathBuf::from(row.get::<_, String>("sandbox_path")?),
                inode: row.get::<_, i64>("sandbox_inode")?.cast_unsigned(),
            },
            ifname: row.get("ifname")?,
            mac: text(row, "mac")?,
            addresses: Vec::new(),
            backend: text(row, "backend")?,
            choice: None,
            phase: phase(row)?,
            settings: PortSettings {
                flags: port_settings::flags(&row.get::<_, String>("flags")?).map_err(unreadable)?,
                mac_limit: row.get("mac_limit")?,
                state: match row.get("down")? {
                    true => AdminState::Down,
                    false => AdminState::Up,
                },
                ..PortSettings::default()
            },
            attached_at: row.get::<_, i64>("attached_at")?.cast_unsigned(),
            vlans: PortVlans::default(),
            dns: EndpointDns::default(),
            gw_priority: row.get("gw_priority")?,
            routes: Vec::new(),
            foreign: foreign(row)?,
        };
        endpoints.insert(endpoint.port, endpoint);
    }
    let mut statement = connection.prepare("SELECT * FROM endpoint_address ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let address: IpAddr = text(row, "address")?;
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            endpoint.addresses.push(address);
        }
    }
    vlans::load_endpoints(connection, &mut endpoints)?;
    dns::load_endpoints(connection, &mut endpoints)?;
    routes::load(connection, &mut endpoints)?;
    choices::load(connection, &mut endpoints)?;
    storm::load(connection, &mut endpoints)?;
    links::load(connection, &mut endpoints)?;
    mac_nat::load(connection, &mut endpoints)?;
    Ok(endpoints)
}

fn phase(row: &Row<'_>) -> rusqlite::Result<Phase> {
    Ok(match row.get::<_, String>("phase")?.as_str() {
        "attached" => Phase::Attached,
        "attaching" => Phase::Attaching,
        _ => Phase::Detaching,
    })
}

const fn phase_label(phase: Phase) -> &'static str {
    match phase {
        Phase::Attaching => "attaching",
        Phase::Attached => "attached",
        Phase::Detaching => "detaching",
    }
}
