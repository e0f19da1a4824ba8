//! Switch ports of endpoints: what is set of them while they are in use.

use dataplane_core::addr::PortId;

use super::{Engine, State};
use crate::error::Error;
use crate::model::{Asked, Endpoint};
use crate::port_settings::PortChange;

impl Engine {
    /// Changes what is set of an endpoint's port, named by the endpoint or by the port's id. It is
    /// in force, and kept, when this returns.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`] for a port that is no endpoint's; nothing is changed.
    pub async fn set_port(&self, name: &str, change: PortChange) -> Result<PortId, Error> {
        let mut state = self.state().await;
        let before = self.port_of(&state, name)?.clone();
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
        if let Err(error) = self.put_settings(&mut state, after) {
            self.put_settings(&mut state, before)?;
            return Err(error);
        }
        let (port, settings) = (before.port, change);
        tracing::info!(endpoint = %before.name, ?settings, "port changed");
        Ok(port)
    }

    fn put_settings(&self, state: &mut State, endpoint: Endpoint) -> Result<(), Error> {
        self.store.put_endpoint(&endpoint)?;
        state.desired.endpoints.insert(endpoint.port, endpoint);
        self.install(state)
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
