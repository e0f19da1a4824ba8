//! What frames came to, counted apart: wire format and handler.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// `GET /v1/stats`: frames of all networks since the daemon was started, each in one counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatsView {
    /// Frames received, and frames of a delayed link that have arrived.
    pub received: u64,
    /// To the one port where their destination was heard.
    pub forwarded: u64,
    /// Not forwarded, because their destination was heard on the port that they came by.
    pub filtered_same_port: u64,
    /// To all ports, because nobody knows where the one station is.
    pub flooded_unknown: u64,
    /// To all ports, because they are for everyone.
    pub flooded_bcast: u64,
    /// To all ports, because they are for a group.
    pub flooded_mcast: u64,
    /// To the ports that listen to their group.
    pub multicast: u64,
    /// Through the gateway.
    pub routed: u64,
    /// To the host, or to a service of the switch.
    pub delivered: u64,
    /// Answered by the switch.
    pub replied: u64,
    /// Kept for later; counted again then.
    pub held: u64,
    /// The host's business, on an interface that is shared with it.
    pub not_ours: u64,
    /// Dropped for another reason than the port that they came by: `causeway drops` has the reasons.
    pub dropped: u64,
}

/// `GET /v1/stats`
pub async fn stats(State(engine): State<Arc<Engine>>) -> Json<StatsView> {
    Json(engine.frame_stats())
}
