//! What survives a crash: the desired state, and what must be given back to the host.
//!
//! SQLite in WAL mode with `synchronous = FULL`. Every method is one transaction and returns
//! after it is on disk, so whatever a request was answered with is still there after `kill -9`
//! or a power cut. A file lock in the same directory keeps a second daemon out.
//!
//! Thread-safety: one connection behind a mutex; calls take well under a millisecond on a disk
//! that is not busy, and only the control plane waits for them.

mod address_reservations;
mod choices;
mod dns;
mod endpoints;
mod error;
mod fdb;
mod first_start;
mod links;
mod lock;
mod mac_nat;
mod mdb;
mod mirrors;
mod nics;
mod publications;
mod routes;
mod rules;
mod storm;
mod vlans;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane_core::addr::DomainId;
use dataplane_core::nat::Dependence;
use dataplane_core::topology::NatMode;
use nix::fcntl::Flock;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Params, Row, params};

pub use error::Error;

use crate::flood_settings::FloodSettings;
use crate::model::dns::NetworkDns;
use crate::model::{self, DesiredState, ForeignId, Icc, Network, NetworkNat, Router, Subnet};
use crate::vlans::NetworkVlans;

/// The tables of the first version, and what each later one has added. How many have been carried
/// out is in `PRAGMA user_version`; an earlier state is brought forward when it is opened.
const MIGRATIONS: &[&str] = &[
    FIRST_SCHEMA,
    publications::TARGETS,
    "ALTER TABLE network ADD COLUMN nat_mapping TEXT;
     ALTER TABLE network ADD COLUMN nat_filtering TEXT;",
    "ALTER TABLE network ADD COLUMN nat_v4 TEXT; ALTER TABLE network ADD COLUMN nat_v6 TEXT;",
    "ALTER TABLE endpoint ADD COLUMN flags TEXT NOT NULL DEFAULT '';",
    fdb::ENTRIES,
    publications::UPLINKS,
    "ALTER TABLE endpoint ADD COLUMN mac_limit INTEGER;",
    "ALTER TABLE endpoint ADD COLUMN down INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE network ADD COLUMN stp_frames TEXT NOT NULL DEFAULT 'drop';",
    "ALTER TABLE endpoint ADD COLUMN attached_at INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE network ADD COLUMN loop_detect TEXT NOT NULL DEFAULT 'off';",
    vlans::VLANS,
    storm::LIMITS,
    links::LINKS,
    "ALTER TABLE network ADD COLUMN mcast_snooping INTEGER NOT NULL DEFAULT 1;
     ALTER TABLE network ADD COLUMN mcast_querier INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE network ADD COLUMN arp_suppression INTEGER NOT NULL DEFAULT 0;",
    mirrors::MIRRORS,
    mdb::LISTENERS,
    mac_nat::MACS,
    dns::SETTINGS,
    nics::NICS,
    mirrors::FILES,
    dns::LINKS,
    "ALTER TABLE endpoint ADD COLUMN gw_priority INTEGER NOT NULL DEFAULT 0;",
    address_reservations::RESERVATIONS,
    rules::RULES,
    routes::ROUTES,
    choices::CHOICES,
    endpoints::BY_PORT,
];
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;
const FIRST_SCHEMA: &str = "
CREATE TABLE network (
    domain INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, internal INTEGER NOT NULL,
    host_link INTEGER NOT NULL, mtu INTEGER NOT NULL, ageing_seconds INTEGER NOT NULL,
    foreign_owner TEXT, foreign_id TEXT) STRICT;
CREATE TABLE subnet (
    domain INTEGER NOT NULL REFERENCES network ON DELETE CASCADE,
    prefix TEXT NOT NULL, gateway TEXT NOT NULL, pool TEXT NOT NULL) STRICT;
CREATE TABLE endpoint (
    port INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    domain INTEGER NOT NULL REFERENCES network,
    sandbox_path TEXT NOT NULL, sandbox_inode INTEGER NOT NULL, ifname TEXT NOT NULL,
    mac TEXT NOT NULL, backend TEXT NOT NULL, phase TEXT NOT NULL,
    foreign_owner TEXT, foreign_id TEXT) STRICT;
CREATE TABLE endpoint_address (
    port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE, address TEXT NOT NULL) STRICT;
CREATE TABLE publication (
    id INTEGER PRIMARY KEY, port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    transport TEXT NOT NULL, host_ip TEXT, host_port_first INTEGER NOT NULL,
    host_port_last INTEGER NOT NULL, inside_port_first INTEGER NOT NULL,
    from_prefix TEXT) STRICT;
CREATE TABLE host (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";
/// How often, and after what pause, a state that somebody else has is tried again: for a second.
const OPEN_TRIES_MAX: usize = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(50);
/// Statements of the store that are kept ready; it has fewer.
const STATEMENTS_KEPT: usize = 128;
const DATABASE_FILE: &str = "state.sqlite";
const LOCK_FILE: &str = "lock";
const INSTANCE_KEY: &str = "instance";

/// The state on disk.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
    instance: String,
    _lock: Flock<File>,
}

impl Store {
    /// Opens or creates the state in `dir`, and locks it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let unusable = |source| Error::Directory {
            dir: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(unusable)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(dir.join(LOCK_FILE))
            .map_err(unusable)?;
        let lock = lock::take(file, dir)?;
        let path = dir.join(DATABASE_FILE);
        let mut connection = connect(&path).map_err(|source| Error::Database {
            path: path.clone(),
            source,
        })?;
        let prepared = prepare(&mut connection).map_err(|source| Error::Database {
            path: path.clone(),
            source,
        })?;
        let instance = match prepared {
            Prepared::Ready(instance) => instance,
            Prepared::Unknown(found) => return Err(Error::Version { path, found }),
        };
        Ok(Self {
            connection: Mutex::new(connection),
            path,
            instance,
            _lock: lock,
        })
    }

    /// Opens the state when somebody who has it only for a moment, as the lifeline of an earlier
    /// daemon, has let it go.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open_when_free(dir: &Path) -> Result<Self, Error> {
        for _ in 0..OPEN_TRIES_MAX {
            match Self::open(dir) {
                Err(Error::Locked { .. }) => tokio::time::sleep(OPEN_PAUSE).await,
                opened => return opened,
            }
        }
        Self::open(dir)
    }

    /// Marks the kernel objects of this state: eight hexadecimal digits, made once.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Reads the whole desired state.
    ///
    /// # Errors
    /// [`Error::Database`], also for a row that no version of this program has written.
    pub fn load(&self) -> Result<DesiredState, Error> {
        self.with(|connection| {
            Ok(DesiredState {
                networks: load_networks(connection)?,
                endpoints: endpoints::load(connection)?.into_values().collect(),
                publications: publications::load(connection)?,
                fdb: fdb::load(connection)?,
                reservations: address_reservations::load(connection)?,
                mdb: mdb::load(connection)?,
                mirrors: mirrors::load(connection)?,
                mirror_files: mirrors::load_files(connection)?,
                nics: nics::load(connection)?,
                rules: rules::load(connection)?,
            })
        })
    }

    /// Adds or replaces a network.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_network(&self, network: &Network) -> Result<(), Error> {
        self.transaction(|connection| {
            let (owner, id) = foreign_columns(network.foreign.as_ref());
            execute(
                connection,
                "INSERT INTO network VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,
                 ?13, ?14, ?15, ?16, ?17)
                 ON CONFLICT (domain) DO UPDATE SET name = ?2, internal = ?3, host_link = ?4,
                 mtu = ?5, ageing_seconds = ?6, foreign_owner = ?7, foreign_id = ?8,
                 nat_mapping = ?9, nat_filtering = ?10, nat_v4 = ?11, nat_v6 = ?12,
                 stp_frames = ?13, loop_detect = ?14, mcast_snooping = ?15, mcast_querier = ?16,
                 arp_suppression = ?17",
                params![
                    network.domain.0,
                    network.name.as_str(),
                    network.internal,
                    network.host_link,
                    network.mtu,
                    network.ageing_seconds,
                    owner,
                    id,
                    network.nat.mapping.map(Dependence::label),
                    network.nat.filtering.map(Dependence::label),
                    network.nat.v4.map(NatMode::label),
                    network.nat.v6.map(NatMode::label),
                    network.stp_frames.label(),
                    network.loop_detect.label(),
                    network.flood.mcast_snooping,
                    network.flood.mcast_querier,
                    network.flood.arp_suppression
                ],
            )?;
            vlans::put_network(connection, network)?;
            dns::put_network(connection, network)?;
            nics::put_network(connection, network)?;
            rules::put_network(connection, network)?;
            execute(
                connection,
                "DELETE FROM subnet WHERE domain = ?1",
                [network.domain.0],
            )?;
            for subnet in &network.subnets {
                execute(
                    connection,
                    "INSERT INTO subnet VALUES (?1, ?2, ?3, ?4)",
                    params![
                        network.domain.0,
                        subnet.prefix.to_string(),
                        subnet.gateway.to_string(),
                        subnet.pool.to_string()
                    ],
                )?;
            }
            Ok(())
        })
    }

    /// Removes a network, which must have no endpoints.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_network(&self, domain: DomainId) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(
                connection,
                "DELETE FROM network WHERE domain = ?1",
                [domain.0],
            )?;
            Ok(())
        })
    }

    /// Reads a note about the host, such as what a sysctl was before.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn host_note(&self, key: &str) -> Result<Option<String>, Error> {
        self.with(|connection| host_note(connection, key))
    }

    /// Writes a note about the host.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn set_host_note(&self, key: &str, value: &str) -> Result<(), Error> {
        self.transaction(|connection| set_host_note(connection, key, value))
    }

    /// Removes a note about the host.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn remove_host_note(&self, key: &str) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(connection, "DELETE FROM host WHERE key = ?1", [key])?;
            Ok(())
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic between two statements rolled its transaction back.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        read(&self.connection()).map_err(|source| self.failed(source))
    }

    fn transaction(
        &self,
        write: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), Error> {
        let mut connection = self.connection();
        connection
            .transaction()
            .and_then(|transaction| {
                write(&transaction)?;
                transaction.commit()
            })
            .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rusqlite::Error) -> Error {
        Error::Database {
            path: self.path.clone(),
            source,
        }
    }
}

/// Who else may read the database while we have it.
#[derive(Clone, Copy)]
enum Readers {
    /// Whoever looks on.
    Others,
    /// Nobody, so that no shared memory is needed, for which a full disk has no room.
    None,
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    match connect_for(path, Readers::Others) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
            connect_for(path, Readers::None)
        }
        connected => connected,
    }
}

fn connect_for(path: &Path, readers: Readers) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    match readers {
        Readers::Others => {}
        Readers::None => connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?,
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(connection)
}

enum Prepared {
    Ready(String),
    Unknown(i64),
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<Prepared> {
    let transaction = connection.transaction()?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(missing) = MIGRATIONS.get(done..) else {
        return Ok(Prepared::Unknown(version));
    };
    for migration in missing {
        transaction.execute_batch(migration)?;
    }
    if version == 0 {
        let random: i64 = transaction.query_row("SELECT random()", [], |row| row.get(0))?;
        let instance = format!("{:08x}", random.cast_unsigned() & 0xffff_ffff);
        set_host_note(&transaction, INSTANCE_KEY, &instance)?;
        first_start::note(&transaction)?;
    }
    if !missing.is_empty() {
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    let instance = host_note(&transaction, INSTANCE_KEY)?.unwrap_or_default();
    transaction.commit()?;
    Ok(Prepared::Ready(instance))
}

fn host_note(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM host WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()
}

fn set_host_note(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    execute(
        connection,
        "INSERT OR REPLACE INTO host VALUES (?1, ?2)",
        [key, value],
    )?;
    Ok(())
}

/// Adds or replaces an endpoint.
/// Executes a statement that is kept for the next time: to read it costs more than to carry it out.
fn execute(connection: &Connection, sql: &str, values: impl Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(values)
}

fn load_networks(connection: &Connection) -> rusqlite::Result<BTreeMap<DomainId, Network>> {
    let mut networks = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM network")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let network = Network {
            domain: DomainId(row.get("domain")?),
            name: text(row, "name")?,
            subnets: Vec::new(),
            internal: row.get("internal")?,
            host_link: row.get("host_link")?,
            mtu: row.get("mtu")?,
            ageing_seconds: row.get("ageing_seconds")?,
            stp_frames: text(row, "stp_frames")?,
            loop_detect: text(row, "loop_detect")?,
            vlans: NetworkVlans::default(),
            icc: Icc::default(),
            flood: FloodSettings {
                mcast_snooping: row.get("mcast_snooping")?,
                mcast_querier: row.get("mcast_querier")?,
                arp_suppression: row.get("arp_suppression")?,
            },
            nat: NetworkNat {
                mapping: optional(row, "nat_mapping", model::dependence)?,
                filtering: optional(row, "nat_filtering", model::dependence)?,
                v4: optional(row, "nat_v4", model::nat_mode)?,
                v6: optional(row, "nat_v6", model::nat_mode)?,
            },
            dns: NetworkDns::default(),
            router: Router::default(),
            foreign: foreign(row)?,
        };
        networks.insert(network.domain, network);
    }
    let mut statement = connection.prepare("SELECT * FROM subnet ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let subnet = Subnet {
            prefix: text(row, "prefix")?,
            gateway: text(row, "gateway")?,
            pool: text(row, "pool")?,
        };
        if let Some(network) = networks.get_mut(&DomainId(row.get("domain")?)) {
            network.subnets.push(subnet);
        }
    }
    vlans::load_networks(connection, &mut networks)?;
    dns::load_networks(connection, &mut networks)?;
    nics::load_networks(connection, &mut networks)?;
    rules::load_networks(connection, &mut networks)?;
    Ok(networks)
}

fn foreign_columns(foreign: Option<&ForeignId>) -> (Option<&str>, Option<&str>) {
    match foreign {
        Some(foreign) => (Some(&foreign.owner), Some(&foreign.id)),
        None => (None, None),
    }
}

fn foreign(row: &Row<'_>) -> rusqlite::Result<Option<ForeignId>> {
    let owner: Option<String> = row.get("foreign_owner")?;
    let id: Option<String> = row.get("foreign_id")?;
    Ok(owner.zip(id).map(|(owner, id)| ForeignId { owner, id }))
}

/// Reads a column whose type has a text form.
fn text<T>(row: &Row<'_>, column: &'static str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(unreadable)
}

/// Reads a column that may be empty.
fn optional<T, E>(
    row: &Row<'_>,
    column: &'static str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> rusqlite::Result<Option<T>>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| parse(&text).map_err(unreadable))
        .transpose()
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Text;
    rusqlite::Error::FromSqlConversionFailure(0, kind, Box::new(error))
}

fn optional_text<T>(row: &Row<'_>, column: &'static str) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    match row.get::<_, Option<String>>(column)? {
        Some(_) => text(row, column).map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
pub(crate) mod tests;
