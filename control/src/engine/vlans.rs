//! VLANs of ports: given, taken away, listed.

use std::ops::RangeInclusive;

use dataplane_core::addr::VlanId;
use dataplane_core::fdb::Flush;
use dataplane_core::l2::PortVlans;

use super::{Engine, State};
use crate::api::vlans::{PortVlansView, views};
use crate::error::Error;
use crate::events::EventKind;
use crate::model::Endpoint;
use crate::vlans::{self, Membership, VlanFiltering, span_text};

impl Engine {
    /// Makes a port a member of VLANs. It is in force, and kept, when this returns.
    ///
    /// # Errors
    /// Names what is unknown or impossible; nothing is changed.
    pub async fn add_vlans(
        &self,
        port: &str,
        interval: RangeInclusive<u16>,
        membership: Membership,
    ) -> Result<PortVlansView, Error> {
        let mut state = self.state().await;
        let before = self.port_of(&state, port)?.clone();
        let mut after = before.vlans.clone();
        vlans::add(&mut after, &interval, membership)?;
        let text = format!(
            "port '{}' is in VLAN {}",
            before.name,
            vlans::written(&after)
        );
        self.put_vlans(&mut state, before, after, text).await
    }

    /// Takes VLANs away from a port, and forgets what was learned on it in them.
    ///
    /// # Errors
    /// Names what is unknown; nothing is changed.
    pub async fn remove_vlans(
        &self,
        port: &str,
        interval: RangeInclusive<u16>,
    ) -> Result<(), Error> {
        let mut state = self.state().await;
        let before = self.port_of(&state, port)?.clone();
        let is_member = |vlan: u16| before.vlans.form(VlanId(vlan)).is_some();
        if !interval.clone().any(is_member) {
            return Err(Error::NotAttached(format!(
                "port '{}' is not in VLAN {}; `causeway vlan ls {0}` lists those that it is in",
                before.name,
                span_text(&interval)
            )));
        }
        let mut after = before.vlans.clone();
        after.remove(interval.clone());
        let text = format!("port '{}' left VLAN {}", before.name, span_text(&interval));
        let (domain, port) = (before.domain, before.port);
        self.put_vlans(&mut state, before, after, text).await?;
        let vlans = VlanId(*interval.start())..=VlanId(*interval.end());
        let fdb = self.dataplane.fdb();
        fdb.flush_vlans(domain, vlans, Some(port), Flush::Learned);
        Ok(())
    }

    async fn put_vlans(
        &self,
        state: &mut State,
        before: Endpoint,
        vlans: PortVlans,
        text: String,
    ) -> Result<PortVlansView, Error> {
        let after = Endpoint {
            vlans,
            ..before.clone()
        };
        if let Err(error) = self.put_settings(state, after.clone()).await {
            self.put_settings(state, before).await?;
            return Err(error);
        }
        self.tell_port(state, EventKind::PortChanged, &after, text);
        Ok(view(state, &after))
    }

    /// The VLANs of a port, or of every endpoint's.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`] for a port that is no endpoint's.
    pub async fn vlans(&self, port: Option<&str>) -> Result<Vec<PortVlansView>, Error> {
        let state = self.state().await;
        if let Some(port) = port {
            return Ok(vec![view(&state, self.port_of(&state, port)?)]);
        }
        let endpoints = state.desired.endpoints.values();
        Ok(endpoints.map(|endpoint| view(&state, endpoint)).collect())
    }
}

fn view(state: &State, endpoint: &Endpoint) -> PortVlansView {
    let network = state.desired.network_of(endpoint);
    PortVlansView {
        port: endpoint.port.0,
        name: endpoint.name.to_string(),
        network: network.map_or_else(String::new, |network| network.name.to_string()),
        filtering: network.is_some_and(|network| network.vlans.filtering == VlanFiltering::On),
        vlans: views(&endpoint.vlans),
    }
}
