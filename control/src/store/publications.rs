//! The tables of publications and their targets.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use dataplane_core::nat::{Balance, Duty, Transport};
use rusqlite::{Connection, params};

use super::{Error, Store, execute, optional_text};
use crate::model::{Publication, PublicationTarget, balance_label, duty_label, transport_label};

/// A publication leads to several endpoints; before, each had one.
pub(super) const TARGETS: &str = "
ALTER TABLE publication RENAME TO publication_before;
CREATE TABLE publication (
    id INTEGER PRIMARY KEY, transport TEXT NOT NULL, host_ip TEXT,
    host_port_first INTEGER NOT NULL, host_port_last INTEGER NOT NULL, from_prefix TEXT,
    balance TEXT NOT NULL, hash_key INTEGER NOT NULL) STRICT;
CREATE TABLE publication_target (
    publication INTEGER NOT NULL REFERENCES publication ON DELETE CASCADE,
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    inside_port_first INTEGER NOT NULL, weight INTEGER NOT NULL, duty TEXT NOT NULL,
    UNIQUE (publication, port)) STRICT;
INSERT INTO publication
    SELECT id, transport, host_ip, host_port_first, host_port_last, from_prefix, 'round-robin', 0
    FROM publication_before;
INSERT INTO publication_target
    SELECT id, port, inside_port_first, 1, 'serving' FROM publication_before;
DROP TABLE publication_before;
";

/// A publication may be for one uplink alone.
pub(super) const UPLINKS: &str = "ALTER TABLE publication ADD COLUMN uplink TEXT;";

impl Store {
    /// Adds publications, all or none.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_publications(&self, publications: &[Publication]) -> Result<(), Error> {
        self.transaction(|connection| {
            publications
                .iter()
                .try_for_each(|publication| insert(connection, publication))
        })
    }

    /// Replaces a publication whose targets or balance have changed.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn replace_publication(&self, publication: &Publication) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(
                connection,
                "DELETE FROM publication WHERE id = ?1",
                [publication.id],
            )?;
            insert(connection, publication)
        })
    }

    /// Removes a publication.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_publication(&self, id: u32) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(connection, "DELETE FROM publication WHERE id = ?1", [id])?;
            Ok(())
        })
    }
}

fn insert(connection: &Connection, publication: &Publication) -> rusqlite::Result<()> {
    let key = match publication.balance {
        Balance::RoundRobin => 0,
        Balance::SourceHash { key } => key,
    };
    execute(
        connection,
        "INSERT INTO publication VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            publication.id,
            transport_label(publication.transport),
            publication.host_ip.map(|ip| ip.to_string()),
            publication.host_ports.start(),
            publication.host_ports.end(),
            publication.from.map(|prefix| prefix.to_string()),
            balance_label(publication.balance),
            key.cast_signed(),
            publication.uplink
        ],
    )?;
    for target in &publication.targets {
        execute(
            connection,
            "INSERT INTO publication_target VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                publication.id,
                target.endpoint.0,
                target.inside_port_first,
                target.weight,
                duty_label(target.duty)
            ],
        )?;
    }
    Ok(())
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<BTreeMap<u32, Publication>> {
    let mut publications = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM publication")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let transport = match row.get::<_, String>("transport")?.as_str() {
            "udp" => Transport::Udp,
            _ => Transport::Tcp,
        };
        let balance = match row.get::<_, String>("balance")?.as_str() {
            "source-hash" => Balance::SourceHash {
                key: row.get::<_, i64>("hash_key")?.cast_unsigned(),
            },
            _ => Balance::RoundRobin,
        };
        let publication = Publication {
            id: row.get("id")?,
            transport,
            host_ip: optional_text(row, "host_ip")?,
            uplink: row.get("uplink")?,
            host_ports: row.get("host_port_first")?..=row.get("host_port_last")?,
            from: optional_text(row, "from_prefix")?,
            balance,
            targets: Vec::new(),
        };
        publications.insert(publication.id, publication);
    }
    let mut statement = connection.prepare("SELECT * FROM publication_target ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let target = PublicationTarget {
            endpoint: PortId(row.get("port")?),
            inside_port_first: row.get("inside_port_first")?,
            weight: row.get("weight")?,
            duty: match row.get::<_, String>("duty")?.as_str() {
                "draining" => Duty::Draining,
                _ => Duty::Serving,
            },
        };
        if let Some(publication) = publications.get_mut(&row.get("publication")?) {
            publication.targets.push(target);
        }
    }
    Ok(publications)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dataplane_core::addr::PortId;

    use super::super::tests::{Dir, example, write};
    use super::super::{DATABASE_FILE, FIRST_SCHEMA, connect};
    use super::*;

    #[test]
    fn publications_are_added_all_or_none() {
        let dir = Dir::new();
        let desired = example();
        let store = Store::open(&dir.0).unwrap();
        write(&store, &desired);
        let mut two = desired.publications[&9].clone();
        two.id = 10;
        let clash = desired.publications[&9].clone();
        assert!(store.put_publications(&[two, clash]).is_err());
        assert_eq!(store.load().unwrap(), desired);
    }

    #[test]
    fn a_replaced_publication_has_the_new_targets_alone() {
        let dir = Dir::new();
        let mut desired = example();
        let store = Store::open(&dir.0).unwrap();
        write(&store, &desired);
        let publication = desired.publications.get_mut(&9).unwrap();
        publication.targets.remove(0);
        publication.balance = Balance::RoundRobin;
        store.replace_publication(publication).unwrap();
        assert_eq!(store.load().unwrap(), desired);
    }

    #[test]
    fn a_publication_of_the_first_version_keeps_its_endpoint() {
        let dir = Dir::new();
        fs::create_dir_all(&dir.0).unwrap();
        let connection = connect(&dir.0.join(DATABASE_FILE)).unwrap();
        connection.execute_batch(FIRST_SCHEMA).unwrap();
        connection
            .execute_batch(
                "PRAGMA user_version = 1;
                 INSERT INTO host VALUES ('instance', '0000abcd');
                 INSERT INTO network VALUES (3, 'web', 0, 1, 1500, 300, NULL, NULL);
                 INSERT INTO endpoint VALUES (40, 'web1', 3, '/run/netns/web1', 7, 'eth0',
                     '02:42:0a:58:00:02', 'tap', 'attached', NULL, NULL);
                 INSERT INTO publication VALUES (9, 40, 'udp', '127.0.0.1', 8000, 8010, 80,
                     '192.0.2.0/24');
                 INSERT INTO publication VALUES (2, 40, 'tcp', NULL, 443, 443, 8443, NULL);",
            )
            .unwrap();
        drop(connection);
        let store = Store::open(&dir.0).unwrap();
        assert_eq!(store.instance(), "0000abcd");
        let publications = store.load().unwrap().publications;
        let mut wanted = example().publications.remove(&9).unwrap();
        wanted.balance = Balance::RoundRobin;
        wanted.targets.truncate(1);
        wanted.targets[0].weight = 1;
        wanted.uplink = None;
        assert_eq!(publications[&9], wanted);
        assert_eq!(publications[&2].host_ports, 443..=443);
        assert_eq!(publications[&2].targets[0].inside_port_first, 8_443);
        store.remove_endpoint(PortId(40)).unwrap();
        assert_eq!(store.load().unwrap().publications.len(), 0);
    }
}
