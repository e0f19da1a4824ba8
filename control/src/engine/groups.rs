//! Who listens to which groups, for people.

use std::net::IpAddr;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use dataplane_core::multicast::{Family, Forget, Full, GROUPS_MAX, MdbRow, QuerierRow, RouterRow};
use dataplane_core::time::Duration;
use dataplane_core::topology::{Multicast, Topology};

use super::stations::{endpoint_of_entry, network_of, vlan_of_entry};
use super::{Engine, State};
use crate::api::groups::{GroupView, MdbView, QuerierView, RouterView};
use crate::error::Error;
use crate::model::MdbSetting;

/// Listeners that commands may set, on all networks together: each is a row of the store.
pub const MDB_SETTINGS_MAX: usize = 4_096;

/// A listener that somebody wants, or wants no more.
#[derive(Clone, Debug)]
pub struct ListenerRequest {
    /// The group.
    pub group: IpAddr,
    /// Its VLAN; the PVID of the port when left out.
    pub vlan: Option<VlanId>,
    /// Name or id of the port.
    pub port: String,
}

impl Engine {
    /// Sets a port to listen to a group, until that is taken back.
    ///
    /// # Errors
    /// Names what is unknown, impossible or full; nothing is changed.
    pub async fn add_listener(&self, name: &str, request: ListenerRequest) -> Result<(), Error> {
        let mut state = self.state().await;
        let listener = self.listener_of(&state, name, &request)?;
        let set = &state.desired.mdb;
        if !set.contains(&listener) && set.len() >= MDB_SETTINGS_MAX {
            return Err(Error::Limit {
                what: "listeners that are set",
                max: MDB_SETTINGS_MAX,
            });
        }
        self.put_in_mdb(listener).map_err(|Full| Error::Limit {
            what: "groups of the network",
            max: GROUPS_MAX,
        })?;
        if let Err(error) = self.store.put_listener(listener) {
            // One that is heard comes back with its next report.
            let mdb = self.dataplane.mdb();
            mdb.remove(listener.domain, listener.key(), listener.port);
            return Err(error.into());
        }
        state.desired.mdb.insert(listener);
        Ok(())
    }

    /// Has a port no longer listen to a group, whether that was set or heard.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`], [`Error::NotAttached`]; nothing is changed.
    pub async fn remove_listener(&self, name: &str, request: ListenerRequest) -> Result<(), Error> {
        let mut state = self.state().await;
        let listener = self.listener_of(&state, name, &request)?;
        let MdbSetting { domain, port, .. } = listener;
        self.store.remove_listener(listener)?;
        let was_set = state.desired.mdb.remove(&listener);
        let was_there = self.dataplane.mdb().remove(domain, listener.key(), port);
        if !was_set && !was_there {
            return Err(Error::unknown_listener(request.group, &request.port, name));
        }
        Ok(())
    }

    fn listener_of(
        &self,
        state: &State,
        name: &str,
        request: &ListenerRequest,
    ) -> Result<MdbSetting, Error> {
        let network = network_of(state, name)?;
        let endpoint = endpoint_of_entry(self, state, network, &request.port)?;
        Ok(MdbSetting {
            domain: network.domain,
            vlan: vlan_of_entry(network, endpoint, request.vlan)?,
            group: request.group,
            port: endpoint.port,
        })
    }

    fn put_in_mdb(&self, listener: MdbSetting) -> Result<(), Full> {
        let mdb = self.dataplane.mdb();
        mdb.set(listener.domain, listener.key(), listener.port)
    }

    /// Sets what is kept for a port, which has just been opened.
    pub(super) fn restore_listeners(&self, state: &State, port: PortId) {
        for listener in state.desired.mdb.iter().filter(|l| l.port == port) {
            if self.put_in_mdb(*listener).is_err() {
                tracing::error!(group = %listener.group, %port, "no room in the MDB for what was set");
            }
        }
    }

    /// Takes what is set for a port that goes to another network out of the state and the store.
    pub(super) fn forget_listeners(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        for listener in state.desired.mdb.iter().filter(|l| l.port == port) {
            self.store.remove_listener(*listener)?;
        }
        self.drop_listeners(state, port);
        Ok(())
    }

    /// Sets what is kept for a network, which may have forgotten it while it did not snoop.
    pub(super) fn restore_listeners_of(&self, state: &State, domain: DomainId) {
        let ports = state.desired.endpoints_of(domain);
        ports.for_each(|endpoint| self.restore_listeners(state, endpoint.port));
    }

    /// Forgets what a port that is gone listened to; with it, it has left the store.
    pub(super) fn drop_listeners(&self, state: &mut State, port: PortId) {
        state.desired.mdb.retain(|listener| listener.port != port);
        self.dataplane.mdb().forget_port(port, Forget::All);
    }

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
