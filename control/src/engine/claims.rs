//! Duplicate addresses: an endpoint's address, or the gateway's, that another MAC claims to have.
//!
//! Workers hear the claims, and what port security refuses of them; here it is found out whose the
//! address is, and told once a minute.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::Claim;

use super::{Engine, State};
use crate::events::EventKind;

/// Pause between two events about the same claim.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Claims that were told of lately; beyond, all are forgotten and told again.
const TOLD_MAX: usize = 1_024;

/// Claims that were told of lately: the port, the address and the MAC.
#[derive(Debug, Default)]
pub(super) struct Claimed(BTreeMap<(PortId, IpAddr, MacAddr), Instant>);

impl Claimed {
    /// Whether it is time to tell of this, which counts as told then.
    fn is_news(&mut self, claim: Claim, now: Instant) -> bool {
        self.0.retain(|_, at| now - *at < TOLD_AGAIN_AFTER);
        let key = (claim.port, claim.address, claim.mac);
        if self.0.contains_key(&key) {
            return false;
        }
        if self.0.len() >= TOLD_MAX {
            self.0.clear();
        }
        self.0.insert(key, now);
        true
    }
}

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
        if state.claimed.is_news(claim, Instant::now()) {
            let Claim { address, mac, .. } = claim;
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
    if gateways.any(|gateway| gateway == claim.address) {
        let gateway = network.gateway_mac();
        return (gateway != claim.mac).then(|| format!("the gateway's ({gateway})"));
    }
    let mut endpoints = state.desired.endpoints_of(claim.domain);
    let owner = endpoints.find(|endpoint| endpoint.addresses.contains(&claim.address))?;
    (owner.mac != claim.mac).then(|| format!("that of '{}' ({})", owner.name, owner.mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::addr::DomainId;

    #[test]
    fn the_same_claim_is_told_of_once_a_minute() {
        let (mut claimed, start) = (Claimed::default(), Instant::now());
        let claim = |port, last| Claim {
            domain: DomainId(1),
            port: PortId(port),
            address: IpAddr::from([10, 0, 0, last]),
            mac: MacAddr::ZERO,
        };
        assert!(claimed.is_news(claim(1, 2), start));
        assert!(!claimed.is_news(claim(1, 2), start + Duration::from_secs(59)));
        assert!(claimed.is_news(claim(2, 2), start), "by another port");
        assert!(claimed.is_news(claim(1, 3), start), "another address");
        assert!(claimed.is_news(claim(1, 2), start + Duration::from_secs(60)));
    }
}
