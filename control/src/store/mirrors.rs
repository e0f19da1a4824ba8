//! The table of mirrors.

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::{Mirror, MirrorSource};
use rusqlite::{Connection, params};

use super::{Error, Store, text, unreadable};
use crate::model::{MirrorIngress, MirrorSetting, Mirrors, Name, mirror_direction};

/// A mirror ends with what it watches, and with its port.
pub(super) const MIRRORS: &str = "
CREATE TABLE mirror (
    name TEXT PRIMARY KEY, from_port INTEGER REFERENCES endpoint ON DELETE CASCADE,
    from_domain INTEGER REFERENCES network ON DELETE CASCADE, direction TEXT NOT NULL,
    to_port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    ingress INTEGER NOT NULL) STRICT;
";

impl Store {
    /// Adds a mirror.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_mirror(&self, name: &Name, setting: MirrorSetting) -> Result<(), Error> {
        let (port, domain) = match setting.mirror.from {
            MirrorSource::Port(port) => (Some(port.0), None),
            MirrorSource::Domain(domain) => (None, Some(domain.0)),
        };
        self.transaction(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO mirror VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    name.as_str(),
                    port,
                    domain,
                    setting.mirror.direction.label(),
                    setting.mirror.to.0,
                    setting.ingress == MirrorIngress::Open
                ],
            )?;
            Ok(())
        })
    }

    /// Removes a mirror.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_mirror(&self, name: &Name) -> Result<(), Error> {
        self.transaction(|connection| {
            connection.execute("DELETE FROM mirror WHERE name = ?1", [name.as_str()])?;
            Ok(())
        })
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Mirrors> {
    let mut mirrors = Mirrors::new();
    let mut statement = connection.prepare("SELECT * FROM mirror")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let port: Option<u16> = row.get("from_port")?;
        let domain: Option<u16> = row.get("from_domain")?;
        let direction: String = row.get("direction")?;
        let mirror = Mirror {
            from: match (port, domain) {
                (Some(port), _) => MirrorSource::Port(PortId(port)),
                (None, domain) => MirrorSource::Domain(DomainId(domain.unwrap_or_default())),
            },
            direction: mirror_direction(&direction).map_err(unreadable)?,
            to: PortId(row.get("to_port")?),
        };
        let ingress = match row.get("ingress")? {
            true => MirrorIngress::Open,
            false => MirrorIngress::Closed,
        };
        mirrors.insert(text(row, "name")?, MirrorSetting { mirror, ingress });
    }
    Ok(mirrors)
}
