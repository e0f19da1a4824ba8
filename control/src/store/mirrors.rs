//! The tables of mirrors: to ports, and to files.

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::{Mirror, MirrorSource};
use rusqlite::{Connection, Row, params};

use super::{Error, Store, execute, text, unreadable};
use crate::model::{
    FileTarget, MirrorFileSetting, MirrorFiles, MirrorIngress, MirrorSetting, Mirrors, Name,
    mirror_direction,
};

/// A mirror ends with what it watches, and with its port.
pub(super) const MIRRORS: &str = "
CREATE TABLE mirror (
    name TEXT PRIMARY KEY, from_port INTEGER REFERENCES endpoint ON DELETE CASCADE,
    from_domain INTEGER REFERENCES network ON DELETE CASCADE, direction TEXT NOT NULL,
    to_port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    ingress INTEGER NOT NULL) STRICT;
";

/// A mirror to a file ends with what it watches. Its port is no endpoint's.
pub(super) const FILES: &str = "
CREATE TABLE mirror_file (
    name TEXT PRIMARY KEY, from_port INTEGER REFERENCES endpoint ON DELETE CASCADE,
    from_domain INTEGER REFERENCES network ON DELETE CASCADE, direction TEXT NOT NULL,
    to_port INTEGER NOT NULL UNIQUE, path TEXT NOT NULL UNIQUE, size_max INTEGER NOT NULL,
    files_max INTEGER NOT NULL) STRICT;
";

impl Store {
    /// Adds a mirror.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_mirror(&self, name: &Name, setting: MirrorSetting) -> Result<(), Error> {
        let (port, domain) = source_columns(setting.mirror.from);
        self.transaction(|connection| {
            execute(
                connection,
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

    /// Adds a mirror to a file.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_mirror_file(&self, name: &Name, setting: &MirrorFileSetting) -> Result<(), Error> {
        let (port, domain) = source_columns(setting.mirror.from);
        self.transaction(|connection| {
            execute(
                connection,
                "INSERT INTO mirror_file VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    name.as_str(),
                    port,
                    domain,
                    setting.mirror.direction.label(),
                    setting.mirror.to.0,
                    setting.target.path.to_string_lossy(),
                    setting.target.size_max.cast_signed(),
                    setting.target.files_max
                ],
            )?;
            Ok(())
        })
    }

    /// Removes a mirror, of either kind.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_mirror(&self, name: &Name) -> Result<(), Error> {
        self.transaction(|connection| {
            for table in ["mirror", "mirror_file"] {
                let delete = format!("DELETE FROM {table} WHERE name = ?1");
                execute(connection, &delete, [name.as_str()])?;
            }
            Ok(())
        })
    }
}

fn source_columns(from: MirrorSource) -> (Option<u16>, Option<u16>) {
    match from {
        MirrorSource::Port(port) => (Some(port.0), None),
        MirrorSource::Domain(domain) => (None, Some(domain.0)),
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Mirrors> {
    let mut mirrors = Mirrors::new();
    let mut statement = connection.prepare("SELECT * FROM mirror")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mirror = mirror_of(row)?;
        let ingress = match row.get("ingress")? {
            true => MirrorIngress::Open,
            false => MirrorIngress::Closed,
        };
        mirrors.insert(text(row, "name")?, MirrorSetting { mirror, ingress });
    }
    Ok(mirrors)
}

pub(super) fn load_files(connection: &Connection) -> rusqlite::Result<MirrorFiles> {
    let mut mirrors = MirrorFiles::new();
    let mut statement = connection.prepare("SELECT * FROM mirror_file")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let path: String = row.get("path")?;
        let target = FileTarget {
            path: path.into(),
            size_max: row.get::<_, i64>("size_max")?.cast_unsigned(),
            files_max: row.get("files_max")?,
        };
        let mirror = mirror_of(row)?;
        mirrors.insert(text(row, "name")?, MirrorFileSetting { mirror, target });
    }
    Ok(mirrors)
}

/// The columns that both tables have.
fn mirror_of(row: &Row<'_>) -> rusqlite::Result<Mirror> {
    let port: Option<u16> = row.get("from_port")?;
    let domain: Option<u16> = row.get("from_domain")?;
    let direction: String = row.get("direction")?;
    Ok(Mirror {
        from: match (port, domain) {
            (Some(port), _) => MirrorSource::Port(PortId(port)),
            (None, domain) => MirrorSource::Domain(DomainId(domain.unwrap_or_default())),
        },
        direction: mirror_direction(&direction).map_err(unreadable)?,
        to: PortId(row.get("to_port")?),
    })
}
