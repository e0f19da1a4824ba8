//! FDB entries: set, removed, flushed, listed.

use std::time::Duration;

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::fdb::{FdbKey, FdbKind, FdbRow, Flush, Full};
use dataplane_core::l2::TRANSPARENT;

use super::mirrors::check_ordinary;
use super::{Engine, State};
use crate::api::bridging::FdbView;
use crate::error::Error;
use crate::model::{Endpoint, FdbPlace, FdbSetting, Network};
use crate::vlans::VlanFiltering;

/// Entries that commands may set for good, on all networks together. Each is a row of the store and
/// is set anew whenever its port is opened.
pub const FDB_SETTINGS_MAX: usize = 4_096;

/// An entry that somebody wants.
#[derive(Clone, Debug)]
pub struct FdbRequest {
    /// The station.
    pub mac: MacAddr,
    /// Its VLAN; the PVID of its port when left out.
    pub vlan: Option<VlanId>,
    /// Name or id of its port.
    pub port: String,
    /// What it is to be.
    pub kind: FdbKind,
}

impl Engine {
    /// Sets an FDB entry of a network, in place of one that is there.
    ///
    /// # Errors
    /// Names what is unknown, impossible or full; nothing is changed.
    pub async fn set_fdb_entry(&self, network: &str, request: FdbRequest) -> Result<(), Error> {
        let FdbRequest { mac, kind, .. } = request;
        let port = request.port.as_str();
        let mut state = self.state().await;
        let network = network_of(&state, network)?.clone();
        check_station(&network, mac)?;
        let endpoint = endpoint_of_entry(self, &state, &network, port)?;
        let vlan = vlan_of_entry(&network, endpoint, request.vlan)?;
        let key = (network.domain, vlan, mac);
        let setting = FdbSetting {
            port: endpoint.port,
            kind,
        };
        let settings = &state.desired.fdb;
        if kind.is_permanent() && !settings.contains_key(&key) && settings.len() >= FDB_SETTINGS_MAX
        {
            return Err(Error::Limit {
                what: "static and local FDB entries",
                max: FDB_SETTINGS_MAX,
            });
        }
        self.put_in_fdb(key, setting).map_err(|Full| Error::Limit {
            what: "FDB entries, of the port or in all,",
            max: self.dataplane.fdb().limits().entries_max,
        })?;
        if kind.is_permanent() {
            if let Err(error) = self.store.put_fdb_entry(key, setting) {
                self.put_back_in_fdb(&state, key);
                return Err(error.into());
            }
            state.desired.fdb.insert(key, setting);
        } else {
            self.forget_settings(&mut state, |other, _| *other == key)?;
        }
        Ok(())
    }

    /// Undoes an entry that could not be kept: what was set before is set again, and what was learned
    /// will be.
    fn put_back_in_fdb(&self, state: &State, key: FdbPlace) {
        let (domain, vlan, mac) = key;
        let fdb = self.dataplane.fdb();
        match state.desired.fdb.get(&key) {
            Some(before) if self.put_in_fdb(key, *before).is_ok() => {}
            Some(_) | None => {
                fdb.remove(domain, vlan, mac);
            }
        }
    }

    /// Removes a station's FDB entry, learned or set, in one VLAN or in all.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`]; nothing is changed.
    pub async fn remove_fdb_entry(
        &self,
        network: &str,
        mac: MacAddr,
        vlan: Option<VlanId>,
    ) -> Result<(), Error> {
        let mut state = self.state().await;
        let network = network_of(&state, network)?.clone();
        check_station(&network, mac)?;
        let meant = |other: VlanId| vlan.is_none_or(|vlan| other == vlan);
        self.forget_settings(&mut state, |(domain, vlan, station), _| {
            (*domain, *station) == (network.domain, mac) && meant(*vlan)
        })?;
        let (fdb, now) = (self.dataplane.fdb(), self.dataplane.now());
        let ageing = Duration::from_secs(network.ageing_seconds.into());
        let rows = fdb.rows(network.domain, now, ageing).into_iter();
        let rows = rows.filter(|row| row.mac == mac && meant(row.vlan));
        let removed = rows.filter(|row| fdb.remove(network.domain, row.vlan, mac));
        if removed.count() == 0 {
            return Err(Error::unknown_fdb_entry(mac, network.name.as_str()));
        }
        Ok(())
    }

    /// Forgets what a network has learned, on one port or on all, in one VLAN or in all; with [`Flush::All`] what is set
    /// as well.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn flush_fdb(
        &self,
        network: &str,
        port: Option<&str>,
        vlan: Option<VlanId>,
        flush: Flush,
    ) -> Result<(), Error> {
        let mut state = self.state().await;
        let domain = network_of(&state, network)?.domain;
        let port = match port {
            Some(port) => Some(self.port_of(&state, port)?.port),
            None => None,
        };
        if flush == Flush::All {
            self.forget_settings(&mut state, |(other, of, _), setting| {
                *other == domain
                    && vlan.is_none_or(|vlan| vlan == *of)
                    && port.is_none_or(|port| port == setting.port)
            })?;
        }
        let fdb = self.dataplane.fdb();
        match vlan {
            None => fdb.flush_domain(domain, port, flush),
            Some(vlan) => fdb.flush_vlans(domain, vlan..=vlan, port, flush),
        };
        Ok(())
    }

    /// The FDB of a network.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn fdb(&self, network: &str) -> Result<Vec<FdbView>, Error> {
        let topology = self.dataplane.topology();
        let domain = topology
            .domains()
            .find(|domain| *domain.name == *network)
            .ok_or_else(|| Error::unknown_network(network))?;
        let name = |id| {
            let found = topology.port(id);
            found.map_or_else(|| id.to_string(), |port| port.name.to_string())
        };
        let view = |row: FdbRow| FdbView {
            mac: row.mac.to_string(),
            vlan: row.vlan.0,
            port: row.port.0,
            port_name: name(row.port),
            age_seconds: row.age.as_secs(),
            state: row.kind.label().to_owned(),
            moves: row.moves,
        };
        let now = self.dataplane.now();
        let rows = self.dataplane.fdb().rows(domain.id, now, domain.ageing);
        let mut views: Vec<_> = rows.into_iter().map(view).collect();
        views.sort_by(|one, two| (one.vlan, &one.mac).cmp(&(two.vlan, &two.mac)));
        Ok(views)
    }

    /// Sets what is kept for a port, which has just been opened.
    pub(super) fn restore_fdb_entries(&self, state: &State, port: PortId) {
        for (key, setting) in &state.desired.fdb {
            if setting.port == port && self.put_in_fdb(*key, *setting).is_err() {
                let (_, _, mac) = key;
                tracing::error!(%mac, %port, "no room in the FDB for what was set");
            }
        }
    }

    /// Forgets what is set for a port that is gone, and with it has left the store.
    pub(super) fn drop_fdb_entries(&self, state: &mut State, port: PortId) {
        state.desired.fdb.retain(|_, setting| setting.port != port);
        self.dataplane.fdb().forget_port(port);
    }

    /// Takes what is set out of the state and the store.
    pub(super) fn forget_settings(
        &self,
        state: &mut State,
        meant: impl Fn(&FdbPlace, &FdbSetting) -> bool,
    ) -> Result<(), Error> {
        let settings = state.desired.fdb.iter();
        let gone = settings.filter(|(key, setting)| meant(key, setting));
        let gone: Vec<_> = gone.map(|(key, _)| *key).collect();
        if !gone.is_empty() {
            self.store.remove_fdb_entries(&gone)?;
            state.desired.fdb.retain(|key, _| !gone.contains(key));
        }
        Ok(())
    }

    fn put_in_fdb(&self, (domain, vlan, mac): FdbPlace, setting: FdbSetting) -> Result<(), Full> {
        let key = FdbKey::new(domain, vlan, mac);
        let now = self.dataplane.now();
        self.dataplane
            .fdb()
            .set(key, setting.port, setting.kind, now)
    }
}

pub(super) fn network_of<'s>(state: &'s State, name: &str) -> Result<&'s Network, Error> {
    let network = state.desired.network(name);
    network.ok_or_else(|| Error::unknown_network(name))
}

/// The endpoint on a port that is to have an entry of a network.
pub(super) fn endpoint_of_entry<'s>(
    engine: &Engine,
    state: &'s State,
    network: &Network,
    port: &str,
) -> Result<&'s Endpoint, Error> {
    let endpoint = engine.port_of(state, port)?;
    if endpoint.domain != network.domain {
        let other = state.desired.network_of(endpoint);
        let other = other.map_or_else(String::new, |other| other.name.to_string());
        return Err(Error::Invalid(format!(
            "port '{port}' is on network '{other}', not on '{}'; name one of that network's, as \
             `causeway port ls` lists them",
            network.name
        )));
    }
    check_ordinary(state, endpoint.port, endpoint.name.as_str())?;
    Ok(endpoint)
}

/// The VLAN of an entry on an endpoint's port: one that the port is in, 0 where VLANs do not count.
pub(super) fn vlan_of_entry(
    network: &Network,
    endpoint: &Endpoint,
    asked: Option<VlanId>,
) -> Result<VlanId, Error> {
    let (port, name) = (&endpoint.name, &network.name);
    match (network.vlans.filtering, asked) {
        (VlanFiltering::Off, None) => Ok(TRANSPARENT),
        (VlanFiltering::Off, Some(_)) => Err(Error::Invalid(format!(
            "VLANs do not count in network '{name}'; leave --vlan out, or let them count by \
             `causeway network set {name} --vlan-filtering on`"
        ))),
        (VlanFiltering::On, None) => endpoint.vlans.pvid().ok_or_else(|| {
            Error::Invalid(format!(
                "port '{port}' has no VLAN for frames without a tag; name the entry's by --vlan"
            ))
        }),
        (VlanFiltering::On, Some(vlan)) if endpoint.vlans.form(vlan).is_some() => Ok(vlan),
        (VlanFiltering::On, Some(VlanId(vlan))) => Err(Error::Invalid(format!(
            "port '{port}' is not in VLAN {vlan}; put it there by `causeway vlan add {port} {vlan}`"
        ))),
    }
}

/// Whether an FDB can have an entry for an address.
fn check_station(network: &Network, mac: MacAddr) -> Result<(), Error> {
    if mac.is_group() || mac == MacAddr::ZERO {
        return Err(Error::Invalid(format!(
            "{mac} is a group address or zero, and no station has it; give one whose first octet is \
             even, from 02:00:00:00:00:00 for those that you choose yourself"
        )));
    }
    if mac == network.gateway_mac() {
        return Err(Error::Invalid(format!(
            "{mac} is the gateway's MAC of network '{}', which the switch itself has; give another",
            network.name
        )));
    }
    Ok(())
}
