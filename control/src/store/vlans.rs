//! The tables of VLANs: of networks in which they count, and of ports.

use std::collections::BTreeMap;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use rusqlite::{Connection, params};

use super::{execute, unreadable};
use crate::model::{Endpoint, Network};
use crate::vlans::{self, NetworkVlans, VlanFiltering};

/// A network or port without a row is as a new one. An FDB entry is of a VLAN from now on.
pub(super) const VLANS: &str = "
CREATE TABLE network_vlan (
    domain INTEGER PRIMARY KEY REFERENCES network ON DELETE CASCADE,
    filtering INTEGER NOT NULL, gateway INTEGER NOT NULL) STRICT;
CREATE TABLE endpoint_vlan (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE,
    vlans TEXT NOT NULL) STRICT;
CREATE TABLE fdb_entry_of_vlan (
    domain INTEGER NOT NULL REFERENCES network ON DELETE CASCADE, vlan INTEGER NOT NULL,
    mac TEXT NOT NULL, port INTEGER NOT NULL REFERENCES endpoint ON DELETE CASCADE,
    kind TEXT NOT NULL, PRIMARY KEY (domain, vlan, mac)) STRICT;
INSERT INTO fdb_entry_of_vlan SELECT domain, 0, mac, port, kind FROM fdb_entry;
DROP TABLE fdb_entry;
ALTER TABLE fdb_entry_of_vlan RENAME TO fdb_entry;
";

/// Adds or replaces those of a network.
pub(super) fn put_network(connection: &Connection, network: &Network) -> rusqlite::Result<()> {
    let NetworkVlans { filtering, gateway } = network.vlans;
    let filtering = filtering == VlanFiltering::On;
    execute(
        connection,
        "INSERT OR REPLACE INTO network_vlan VALUES (?1, ?2, ?3)",
        params![network.domain.0, filtering, gateway.0],
    )?;
    Ok(())
}

/// Adds or replaces those of an endpoint's port.
pub(super) fn put_endpoint(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    execute(
        connection,
        "INSERT OR REPLACE INTO endpoint_vlan VALUES (?1, ?2)",
        params![endpoint.port.0, vlans::written(&endpoint.vlans)],
    )?;
    Ok(())
}

/// Gives networks what is set of them.
pub(super) fn load_networks(
    connection: &Connection,
    networks: &mut BTreeMap<DomainId, Network>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM network_vlan")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(network) = networks.get_mut(&DomainId(row.get("domain")?)) {
            network.vlans = NetworkVlans {
                filtering: match row.get("filtering")? {
                    true => VlanFiltering::On,
                    false => VlanFiltering::Off,
                },
                gateway: VlanId(row.get("gateway")?),
            };
        }
    }
    Ok(())
}

/// Gives endpoints what is set of their ports.
pub(super) fn load_endpoints(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM endpoint_vlan")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            let text: String = row.get("vlans")?;
            endpoint.vlans = vlans::read(&text).map_err(unreadable)?;
        }
    }
    Ok(())
}
