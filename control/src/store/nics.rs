//! NICs on networks, with what the host had on them, and networks whose router is the LAN's.

use std::collections::BTreeMap;

use dataplane_core::addr::{DomainId, PortId};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{Error, Store, execute, unreadable};
use crate::link::saved::SavedIp;
use crate::model::{Confirmation, Network, NicBefore, NicOrigin, NicSetting, NicStage, Router};

/// A NIC ends with its endpoint, and what the host had on it must be put back before.
pub(super) const NICS: &str = "
CREATE TABLE lan_network (
    domain INTEGER PRIMARY KEY REFERENCES network ON DELETE CASCADE) STRICT;
CREATE TABLE nic (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE,
    setting TEXT NOT NULL) STRICT;
";

/// A [`NicSetting`] as it is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    host_port: Option<u16>,
    stage: String,
    /// Absent once it was confirmed.
    confirm_by_millis: Option<u64>,
    within_seconds: u32,
    came_with_network: bool,
    place: String,
    up: bool,
    addr_gen_mode: Option<u8>,
    /// Absent where an earlier version has written it down.
    #[serde(default)]
    features: Vec<String>,
    ip: Vec<String>,
}

impl From<&NicSetting> for Row {
    fn from(setting: &NicSetting) -> Self {
        Self {
            host_port: setting.host_port.map(|port| port.0),
            stage: setting.stage.label().to_owned(),
            confirm_by_millis: match setting.confirmation {
                Confirmation::Pending(by) => Some(by),
                Confirmation::Done => None,
            },
            within_seconds: setting.within_seconds,
            came_with_network: setting.origin == NicOrigin::Creation,
            place: setting.before.place.clone(),
            up: setting.before.up,
            addr_gen_mode: setting.before.addr_gen_mode,
            features: setting.before.features.clone(),
            ip: setting.before.ip.encode(),
        }
    }
}

impl Row {
    fn setting(self) -> rusqlite::Result<NicSetting> {
        let mut stages = NicStage::ALL.into_iter();
        let stage = stages.find(|stage| stage.label() == self.stage);
        Ok(NicSetting {
            host_port: self.host_port.map(PortId),
            // What cannot be read is put back.
            stage: stage.unwrap_or(NicStage::Moving),
            confirmation: match self.confirm_by_millis {
                Some(by) => Confirmation::Pending(by),
                None => Confirmation::Done,
            },
            within_seconds: self.within_seconds,
            origin: match self.came_with_network {
                true => NicOrigin::Creation,
                false => NicOrigin::Change,
            },
            before: NicBefore {
                place: self.place,
                up: self.up,
                addr_gen_mode: self.addr_gen_mode,
                features: self.features,
                ip: SavedIp::decode(&self.ip).map_err(unreadable)?,
            },
        })
    }
}

impl Store {
    /// Adds or replaces what is known of a NIC, whose endpoint is there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_nic(&self, port: PortId, setting: &NicSetting) -> Result<(), Error> {
        self.transaction(|connection| {
            let text = serde_json::to_string(&Row::from(setting)).map_err(unreadable)?;
            execute(
                connection,
                "INSERT OR REPLACE INTO nic VALUES (?1, ?2)",
                params![port.0, text],
            )?;
            Ok(())
        })
    }
}

/// Writes whose a network's router is.
pub(super) fn put_network(connection: &Connection, network: &Network) -> rusqlite::Result<()> {
    let statement = match network.router {
        Router::Switch => "DELETE FROM lan_network WHERE domain = ?1",
        Router::Lan => "INSERT OR IGNORE INTO lan_network VALUES (?1)",
    };
    execute(connection, statement, [network.domain.0])?;
    Ok(())
}

/// Reads whose the networks' routers are.
pub(super) fn load_networks(
    connection: &Connection,
    networks: &mut BTreeMap<DomainId, Network>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT domain FROM lan_network")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(network) = networks.get_mut(&DomainId(row.get("domain")?)) {
            network.router = Router::Lan;
        }
    }
    Ok(())
}

/// Reads the NICs.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<BTreeMap<PortId, NicSetting>> {
    let mut nics = BTreeMap::new();
    let mut statement = connection.prepare("SELECT * FROM nic")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let text: String = row.get("setting")?;
        let setting: Row = serde_json::from_str(&text).map_err(unreadable)?;
        nics.insert(PortId(row.get("port")?), setting.setting()?);
    }
    Ok(nics)
}
