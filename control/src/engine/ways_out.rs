//! Which endpoint of a sandbox its packets leave by, where it has several.

use super::{Engine, State};
use crate::model::{Endpoint, Network, Phase};

impl Engine {
    /// Gives the default routes of a sandbox to the endpoint that is to have them, now that one has come
    /// or gone. That it cannot be done must not undo the rest.
    pub(super) async fn settle_ways_out(&self, state: &State, sandbox_inode: u64) {
        let endpoints = state.desired.endpoints.values();
        let here: Vec<(&Endpoint, &Network)> = endpoints
            .filter(|endpoint| endpoint.sandbox.inode == sandbox_inode)
            .filter(|endpoint| endpoint.phase == Phase::Attached)
            .filter_map(|endpoint| Some((endpoint, state.desired.network_of(endpoint)?)))
            .collect();
        if let Err(error) = self.devices.lead_default_routes(&here).await {
            let names: Vec<&str> = here.iter().map(|(e, _)| e.name.as_str()).collect();
            tracing::warn!(endpoints = ?names, %error, "cannot set the default route of a sandbox");
        }
    }

    /// The same where there is somebody to choose from.
    pub(super) async fn settle_ways_out_beside(&self, state: &State, endpoint: &Endpoint) {
        let mut all = state.desired.endpoints.in_sandbox(endpoint.sandbox.inode);
        if all.any(|other| other.port != endpoint.port) {
            self.settle_ways_out(state, endpoint.sandbox.inode).await;
        }
    }
}
