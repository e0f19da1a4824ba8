//! What is set of name services: a row for each network and endpoint where it is not as usual.

use std::collections::BTreeMap;

use dataplane_core::addr::{DomainId, PortId};
use rusqlite::{Connection, params};

use super::{execute, unreadable};
use crate::model::dns::{EndpointDns, NetworkDns, endpoint_dns, network_dns, network_dns_words};
use crate::model::{Endpoint, Network};

/// The tables.
pub(super) const SETTINGS: &str = "
CREATE TABLE network_dns (
    domain INTEGER PRIMARY KEY REFERENCES network ON DELETE CASCADE, words TEXT NOT NULL) STRICT;
CREATE TABLE endpoint_dns (
    port INTEGER PRIMARY KEY REFERENCES endpoint ON DELETE CASCADE,
    aliases TEXT NOT NULL, servers TEXT NOT NULL) STRICT;
";

/// Names that an endpoint alone knows others by.
pub(super) const LINKS: &str =
    "ALTER TABLE endpoint_dns ADD COLUMN links TEXT NOT NULL DEFAULT '';";

/// Writes what is set of a network.
pub(super) fn put_network(connection: &Connection, network: &Network) -> rusqlite::Result<()> {
    let domain = network.domain.0;
    execute(
        connection,
        "DELETE FROM network_dns WHERE domain = ?1",
        [domain],
    )?;
    if network.dns != NetworkDns::default() {
        let words = network_dns_words(&network.dns).join(" ");
        execute(
            connection,
            "INSERT INTO network_dns VALUES (?1, ?2)",
            params![domain, words],
        )?;
    }
    Ok(())
}

/// Writes what is set of an endpoint.
pub(super) fn put_endpoint(connection: &Connection, endpoint: &Endpoint) -> rusqlite::Result<()> {
    let (port, dns) = (endpoint.port.0, &endpoint.dns);
    execute(
        connection,
        "DELETE FROM endpoint_dns WHERE port = ?1",
        [port],
    )?;
    if *dns != EndpointDns::default() {
        let aliases: Vec<String> = dns.aliases.iter().map(ToString::to_string).collect();
        let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
        let links: Vec<String> = dns.links.iter().map(ToString::to_string).collect();
        execute(
            connection,
            "INSERT INTO endpoint_dns (port, aliases, servers, links) VALUES (?1, ?2, ?3, ?4)",
            params![port, aliases.join(" "), servers.join(" "), links.join(" ")],
        )?;
    }
    Ok(())
}

/// Reads what is set of all networks.
pub(super) fn load_networks(
    connection: &Connection,
    networks: &mut BTreeMap<DomainId, Network>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM network_dns")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let dns = network_dns(&words(&row.get::<_, String>("words")?)).map_err(unreadable)?;
        if let Some(network) = networks.get_mut(&DomainId(row.get("domain")?)) {
            network.dns = dns;
        }
    }
    Ok(())
}

/// Reads what is set of all endpoints.
pub(super) fn load_endpoints(
    connection: &Connection,
    endpoints: &mut BTreeMap<PortId, Endpoint>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM endpoint_dns")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let column = |name| -> rusqlite::Result<_> { Ok(words(&row.get::<_, String>(name)?)) };
        let (aliases, servers) = (column("aliases")?, column("servers")?);
        let dns = endpoint_dns(&aliases, &servers, &column("links")?).map_err(unreadable)?;
        if let Some(endpoint) = endpoints.get_mut(&PortId(row.get("port")?)) {
            endpoint.dns = dns;
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
