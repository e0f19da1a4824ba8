//! The table of addresses that are kept for somebody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane_core::addr::DomainId;
use rusqlite::{Connection, params};

use super::{Error, Store, execute, optional_text, text};
use crate::model::Holder;

/// A reservation ends with its network.
pub(super) const RESERVATIONS: &str = "
CREATE TABLE address_reservation (
    domain INTEGER NOT NULL REFERENCES network ON DELETE CASCADE, address TEXT NOT NULL,
    holder TEXT, PRIMARY KEY (domain, address)) STRICT;
";

impl Store {
    /// Keeps an address for somebody, in place of whom it was kept for.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_reservation(
        &self,
        domain: DomainId,
        address: IpAddr,
        holder: &Holder,
    ) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(
                connection,
                "INSERT OR REPLACE INTO address_reservation VALUES (?1, ?2, ?3)",
                params![domain.0, address.to_string(), holder.text()],
            )?;
            Ok(())
        })
    }

    /// Gives an address back.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_reservation(&self, domain: DomainId, address: IpAddr) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(
                connection,
                "DELETE FROM address_reservation WHERE domain = ?1 AND address = ?2",
                params![domain.0, address.to_string()],
            )?;
            Ok(())
        })
    }
}

pub(super) fn load(
    connection: &Connection,
) -> rusqlite::Result<BTreeMap<(DomainId, IpAddr), Holder>> {
    let mut reservations = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM address_reservation")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let place = (DomainId(row.get("domain")?), text(row, "address")?);
        let holder = optional_text(row, "holder")?.unwrap_or(Holder::Nobody);
        reservations.insert(place, holder);
    }
    Ok(reservations)
}
