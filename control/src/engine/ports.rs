//! Switch ports of endpoints: what is set of them while they are in use.

use std::collections::{BTreeSet, HashSet};

use dataplane_core::addr::PortId;
use dataplane_port::Carrier;

use super::{Engine, State, mac_nat};
use crate::error::Error;
use crate::events::EventKind;
use crate::hostnet::HostState;
use crate::model::{Asked, Backend, Endpoint};
use crate::port_settings::{AdminState, PortChange};

impl Engine {
    /// Changes what is set of an endpoint's port, named by the endpoint or by the port's id. It is
    /// in force, and kept, when this returns.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`] for a port that is no endpoint's; nothing is changed.
    pub async fn set_port(&self, name: &str, change: PortChange) -> Result<PortId, Error> {
        let mut state = self.state().await;
        let before = self.port_of(&state, name)?.clone();
        let change = self.named_mac(&state, &before, change)?;
        let max = self.dataplane.fdb().limits().entries_per_port_max;
        if let Asked::Value(limit) = change.mac_limit
            && !(1..=max).contains(&limit)
        {
            return Err(Error::Invalid(format!(
                "a port's MAC limit is from 1 to {max} stations, or none; `learning off` learns no \
                 station at all"
            )));
        }
        let after = Endpoint {
            settings: change.over(before.settings),
            ..before.clone()
        };
        mac_nat::check_together(&after.settings)?;
        if let Err(error) = self.put_settings(&mut state, after).await {
            self.put_settings(&mut state, before.clone()).await?;
            return Err(error);
        }
        if change.state == Some(AdminState::Up) && self.blocked.release(before.port) {
            self.install(&state)?;
            self.tell_unblocked(&state, &before);
        }
        let text = format!("port '{}' was changed: {change}", before.name);
        self.tell_port(&state, EventKind::PortChanged, &before, text);
        Ok(before.port)
    }

    pub(super) async fn put_settings(
        &self,
        state: &mut State,
        endpoint: Endpoint,
    ) -> Result<(), Error> {
        self.store.put_endpoint(&endpoint)?;
        state.desired.endpoints.insert(endpoint.clone());
        self.install(state)?;
        self.drive_carrier(state, &endpoint).await
    }

    /// Lets the sandbox see whether its port is up; what was learned on one that is down is
    /// forgotten, as a bridge does without a carrier.
    pub(super) async fn drive_carrier(
        &self,
        state: &State,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        if !state.open.contains(&endpoint.port) {
            return Ok(());
        }
        let carrier = endpoint.settings.state.carrier();
        self.blocking(|dataplane| dataplane.set_carrier(endpoint.port, carrier))?;
        self.devices.set_carrier(endpoint, carrier).await?;
        if carrier == Carrier::Absent {
            self.dataplane.fdb().flush_port(endpoint.port);
        }
        Ok(())
    }

    /// Unplugs a device that has just been opened, which leaves every one plugged.
    pub(super) async fn unplug_if_down(
        &self,
        state: &State,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        match endpoint.settings.state {
            AdminState::Up => Ok(()),
            AdminState::Down => self.drive_carrier(state, endpoint).await,
        }
    }

    /// Forgets what was learned on ports whose far end has gone down since the last call: veths,
    /// which the host sees lose their carrier. Of a TAP a worker finds it out.
    pub(super) fn flush_unplugged(&self, state: &mut State, host: &HostState) {
        let dark = host.links.iter().filter(|link| !link.carrier);
        let dark: HashSet<&str> = dark.map(|link| link.name.as_str()).collect();
        let is_dark = |endpoint: &&Endpoint| match endpoint.backend {
            Backend::Packet | Backend::Xdp => {
                dark.contains(self.devices.own_name(endpoint).as_str())
            }
            Backend::Nic | Backend::NicXdp => dark.contains(endpoint.ifname.as_str()),
            Backend::Tap | Backend::TapPlain | Backend::Host => false,
        };
        let endpoints = state.desired.endpoints.values().filter(is_dark);
        let unplugged: BTreeSet<PortId> = endpoints.map(|endpoint| endpoint.port).collect();
        for port in unplugged.difference(&state.unplugged) {
            self.dataplane.fdb().flush_port(*port);
            self.tell_cable(state, *port, Carrier::Absent);
        }
        for port in state.unplugged.difference(&unplugged) {
            self.tell_cable(state, *port, Carrier::Present);
        }
        state.unplugged = unplugged;
    }

    /// Tells what became of the cable of a card; of a veth its sandbox knows.
    fn tell_cable(&self, state: &State, port: PortId, carrier: Carrier) {
        let nic = state.desired.endpoints.get(&port);
        let Some(nic) = nic.filter(|nic| nic.backend.is_nic()) else {
            return;
        };
        let (kind, what) = match carrier {
            Carrier::Absent => (EventKind::PortDown, "down: the card has no cable"),
            Carrier::Present => (EventKind::PortUp, "up again"),
        };
        let text = format!("port '{}' is {what}", nic.name);
        self.tell_port(state, kind, nic, text);
    }

    /// The endpoint of that name, or on the port of that id: `33`, `port33`.
    pub(super) fn port_of<'s>(&self, state: &'s State, name: &str) -> Result<&'s Endpoint, Error> {
        if let Some(endpoint) = state.desired.endpoint(name) {
            return Ok(endpoint);
        }
        let port = PortId(self.port(name)?.port);
        state.desired.endpoints.get(&port).ok_or_else(|| {
            Error::Invalid(format!(
                "'{name}' leads to no endpoint, so it is not bridged and none of this can be set \
                 of it; `causeway port ls` lists the ports with their networks"
            ))
        })
    }
}

/// The id of a port in words: `33`, `port33`.
pub(super) fn port_id(text: &str) -> Option<u16> {
    text.strip_prefix("port").unwrap_or(text).parse().ok()
}
