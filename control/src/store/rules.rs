//! The tables of rules, in their order, and of networks whose endpoints need one.

use std::collections::BTreeMap;

use dataplane_core::addr::DomainId;
use dataplane_core::policy::RuleSlot;
use rusqlite::{Connection, params};

use super::{Error, Store, execute, text, unreadable};
use crate::model::{
    Icc, Network, RuleBody, RuleSetting, rule_action, rule_action_label, rule_protocol,
    rule_protocol_label,
};

/// A rule outlives what it names. A network without a row lets its endpoints reach each other.
pub(super) const RULES: &str = "
CREATE TABLE rule (
    position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, action TEXT NOT NULL,
    from_side TEXT NOT NULL, to_side TEXT NOT NULL, protocol TEXT NOT NULL,
    source_ports TEXT NOT NULL, ports TEXT NOT NULL, uplink TEXT) STRICT;
CREATE TABLE network_icc (
    domain INTEGER PRIMARY KEY REFERENCES network ON DELETE CASCADE,
    icc INTEGER NOT NULL) STRICT;
";

impl Store {
    /// Replaces all rules, in their order.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn put_rules(&self, rules: &[RuleSetting]) -> Result<(), Error> {
        self.transaction(|connection| {
            execute(connection, "DELETE FROM rule", [])?;
            for (position, rule) in rules.iter().enumerate() {
                let what = &rule.what;
                execute(
                    connection,
                    "INSERT INTO rule VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        position as i64,
                        rule.name.as_str(),
                        rule_action_label(what.action),
                        what.from.to_string(),
                        what.to.to_string(),
                        rule_protocol_label(what.protocol),
                        what.source_ports.to_string(),
                        what.ports.to_string(),
                        what.uplink
                    ],
                )?;
            }
            Ok(())
        })
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<RuleSetting>> {
    let mut rules = Vec::new();
    let mut statement = connection.prepare("SELECT * FROM rule ORDER BY position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (action, protocol): (String, String) = (row.get("action")?, row.get("protocol")?);
        rules.push(RuleSetting {
            name: text(row, "name")?,
            slot: RuleSlot(rules.len() as u16),
            what: RuleBody {
                action: rule_action(&action).map_err(unreadable)?,
                from: text(row, "from_side")?,
                to: text(row, "to_side")?,
                protocol: rule_protocol(&protocol).map_err(unreadable)?,
                source_ports: text(row, "source_ports")?,
                ports: text(row, "ports")?,
                uplink: row.get("uplink")?,
            },
        });
    }
    Ok(rules)
}

/// Adds or replaces what is set of a network.
pub(super) fn put_network(connection: &Connection, network: &Network) -> rusqlite::Result<()> {
    execute(
        connection,
        "INSERT OR REPLACE INTO network_icc VALUES (?1, ?2)",
        params![network.domain.0, network.icc == Icc::On],
    )?;
    Ok(())
}

/// Gives networks what is set of them.
pub(super) fn load_networks(
    connection: &Connection,
    networks: &mut BTreeMap<DomainId, Network>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT * FROM network_icc")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(network) = networks.get_mut(&DomainId(row.get("domain")?)) {
            network.icc = Icc::from(row.get::<_, bool>("icc")?);
        }
    }
    Ok(())
}
