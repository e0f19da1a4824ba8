//! The table of listeners to groups that commands have set.

use std::collections::BTreeSet;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use rusqlite::{Connection, params};

use super::{Error, Store, execute, text};
use crate::model::MdbSetting;

/// What is set ends with its network or its port.
pub(super) const LISTENERS: &str = "
CREATE TABLE mdb_entry (
    domain INTEGER NOT NULL REFERENCES network ON DELETE CASCADE, vlan INTEGER NOT NULL,
    multicast_group TEXT NOT NULL,
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    PRIMARY KEY (domain, vlan, multicast_group, port)) STRICT;
";

impl Store {
    /// Adds a listener; one that is there already stays.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_listener(&self, listener: MdbSetting) -> Result<(), Error> {
        let statement = "INSERT OR REPLACE INTO mdb_entry VALUES (?1, ?2, ?3, ?4)";
        self.change_listener(statement, listener)
    }

    /// Removes a listener.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_listener(&self, listener: MdbSetting) -> Result<(), Error> {
        let statement = "DELETE FROM mdb_entry
                         WHERE domain = ?1 AND vlan = ?2 AND multicast_group = ?3 AND port = ?4";
        self.change_listener(statement, listener)
    }

    fn change_listener(&self, statement: &str, listener: MdbSetting) -> Result<(), Error> {
        let MdbSetting {
            domain,
            vlan,
            group,
            port,
        } = listener;
        self.transaction(|connection| {
            let values = params![domain.0, vlan.0, group.to_string(), port.0];
            execute(connection, statement, values)?;
            Ok(())
        })
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<BTreeSet<MdbSetting>> {
    let mut listeners = BTreeSet::new();
    let mut statement = connection.prepare("SELECT * FROM mdb_entry")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        listeners.insert(MdbSetting {
            domain: DomainId(row.get("domain")?),
            vlan: VlanId(row.get("vlan")?),
            group: text(row, "multicast_group")?,
            port: PortId(row.get("port")?),
        });
    }
    Ok(listeners)
}
