//! Duplicate addresses: an endpoint's address, or the gateway's, that another MAC claims to have.
//!
//! Workers hear the claims, and what port security refuses of them; here it is found out whose the
//! address is, and told once a minute.

use std::net::IpAddr;
use std::time::Instant;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::Claim;

use super::told::Told;
use super::{Engine, State};
use crate::events::EventKind;
use crate::model::Router;

/// Claims, as they are told of: the port, the address and the MAC.
pub(super) type Claimed = Told<(PortId, IpAddr, MacAddr)>;

impl Engine {
    /// Follows a claim that a worker has heard.
    pub(super) async fn follow_claim(&self, claim: Claim) {
        let mut state = self.state().await;
        let Some(owner) = owner(&state, claim) else {
            return;
        };
        let Some(endpoint) = state.desired.endpoints.get(&claim.port).cloned() else {
            return;
        };
        let Claim { address, mac, .. } = claim;
        let told = (claim.port, address, mac);
        if state.claimed.is_news(told, Instant::now()) {
            let name = &endpoint.name;
            let text =
                format!("{address} is {owner}, and {mac} on port '{name}' claims to have it");
            self.tell_port(&state, EventKind::DuplicateAddress, &endpoint, text);
        }
    }
}

/// Who has an address that is claimed, if it is somebody else.
fn owner(state: &State, claim: Claim) -> Option<String> {
    let network = state.desired.networks.get(&claim.domain)?;
    let mut gateways = network.subnets.iter().map(|subnet| subnet.gateway);
    if network.router == Router::Switch && gateways.any(|gateway| gateway == claim.address) {
        let gateway = network.gateway_mac();
        return (gateway != claim.mac).then(|| format!("the gateway's ({gateway})"));
    }
    let mut endpoints = state.desired.endpoints_of(claim.domain);
    let owner = endpoints.find(|endpoint| endpoint.addresses.contains(&claim.address))?;
    (owner.mac != claim.mac).then(|| format!("that of '{}' ({})", owner.name, owner.mac))
}
