//! Who listens to which groups, for people.

use dataplane_core::addr::PortId;
use dataplane_core::multicast::{Family, MdbRow, QuerierRow, RouterRow};
use dataplane_core::time::Duration;
use dataplane_core::topology::{Multicast, Topology};

use super::Engine;
use crate::api::groups::{GroupView, MdbView, QuerierView, RouterView};
use crate::error::Error;

impl Engine {
    /// The MDB of a network.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn mdb(&self, network: &str) -> Result<MdbView, Error> {
        let topology = self.dataplane.topology();
        let domain = topology
            .domains()
            .find(|domain| *domain.name == *network)
            .ok_or_else(|| Error::unknown_network(network))?;
        let (mdb, now) = (self.dataplane.mdb(), self.dataplane.now());
        let snooping = match domain.multicast {
            Multicast::Flooded => "off",
            Multicast::Snooped => "on",
            Multicast::Queried => "querier",
        };
        let set = domain.mcast_routers.iter().flat_map(|port| {
            Family::ALL.map(|family| RouterRow {
                vlan: domain.gateway_vlan,
                family,
                port: *port,
                left: None,
            })
        });
        let heard = mdb.routers(domain.id, now);
        let heard = heard
            .into_iter()
            .filter(|router| !domain.mcast_routers.contains(&router.port));
        Ok(MdbView {
            network: network.to_owned(),
            snooping: snooping.to_owned(),
            queriers: mdb
                .queriers(&topology, domain.id, now)
                .into_iter()
                .map(|row| querier_view(&topology, row))
                .collect(),
            routers: set
                .chain(heard)
                .map(|row| router_view(&topology, row))
                .collect(),
            groups: mdb
                .rows(domain.id, now)
                .into_iter()
                .map(|row| group_view(&topology, row))
                .collect(),
        })
    }
}

fn querier_view(topology: &Topology, row: QuerierRow) -> QuerierView {
    QuerierView {
        vlan: row.vlan.0,
        protocol: protocol(row.family).to_owned(),
        address: row.address.to_string(),
        port: row.behind.map(|(port, _)| name(topology, port)),
        left_seconds: row.behind.map(|(_, left)| left.as_secs()),
        trusted: row.trusted,
    }
}

fn router_view(topology: &Topology, row: RouterRow) -> RouterView {
    RouterView {
        vlan: row.vlan.0,
        protocol: protocol(row.family).to_owned(),
        port: name(topology, row.port),
        state: state(row.left).to_owned(),
        left_seconds: row.left.map(|left| left.as_secs()),
    }
}

fn group_view(topology: &Topology, row: MdbRow) -> GroupView {
    GroupView {
        group: row.key.group.to_string(),
        vlan: row.key.vlan.0,
        port: row.port.0,
        port_name: name(topology, row.port),
        state: state(row.left).to_owned(),
        left_seconds: row.left.map(|left| left.as_secs()),
    }
}

/// As bridge(8) has it.
fn state(left: Option<Duration>) -> &'static str {
    match left {
        Some(_) => "temp",
        None => "permanent",
    }
}

fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "igmp",
        Family::V6 => "mld",
    }
}

fn name(topology: &Topology, port: PortId) -> String {
    let found = topology.port(port);
    found.map_or_else(|| port.to_string(), |port| port.name.to_string())
}
