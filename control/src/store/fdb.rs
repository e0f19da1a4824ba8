//! The table of FDB entries that commands have set for good.

use std::collections::BTreeMap;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use dataplane_core::fdb::FdbKind;
use rusqlite::{Connection, params};

use super::{Error, Store, execute, text, unreadable};
use crate::model::{FdbPlace, FdbSetting, fdb_kind};

/// What is set ends with its network or its port.
pub(super) const ENTRIES: &str = "
CREATE TABLE fdb_entry (
    domain INTEGER NOT NULL REFERENCES network ON DELETE CASCADE, mac TEXT NOT NULL,
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE, kind TEXT NOT NULL,
    PRIMARY KEY (domain, mac)) STRICT;
";

impl Store {
    /// Adds or replaces an FDB entry.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_fdb_entry(
        &self,
        (domain, vlan, mac): FdbPlace,
        setting: FdbSetting,
    ) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(
                connection,
                "INSERT OR REPLACE INTO fdb_entry VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    domain.0,
                    vlan.0,
                    mac.to_string(),
                    setting.port.0,
                    setting.kind.label()
                ],
            )?;
            Ok(())
        })
    }

    /// Removes FDB entries, all or none.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_fdb_entries(&self, keys: &[FdbPlace]) -> Result<(), Error> {
        self.transaction(|connection| {
            for (domain, vlan, mac) in keys {
                execute(
                    connection,
                    "DELETE FROM fdb_entry WHERE domain = ?1 AND vlan = ?2 AND mac = ?3",
                    params![domain.0, vlan.0, mac.to_string()],
                )?;
            }
            Ok(())
        })
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<BTreeMap<FdbPlace, FdbSetting>> {
    let mut entries = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM fdb_entry")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let kind: String = row.get("kind")?;
        let kind: FdbKind = fdb_kind(&kind).map_err(unreadable)?;
        let setting = FdbSetting {
            port: PortId(row.get("port")?),
            kind,
        };
        let (domain, vlan) = (row.get("domain")?, row.get("vlan")?);
        let place = (DomainId(domain), VlanId(vlan), text(row, "mac")?);
        entries.insert(place, setting);
    }
    Ok(entries)
}
