//! How much of the NAT's limits is used: wire format.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::CountView;

/// How much of the NAT's limits is used: `GET /v1/nat/usage`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NatUsageView {
    /// Sessions of all kinds.
    pub sessions: usize,
    /// As many as there may be.
    pub sessions_max: usize,
    /// As many as one endpoint may have.
    pub sessions_per_endpoint_max: usize,
    /// External addresses whose ports are held.
    pub pools: Vec<NatPoolView>,
    /// Endpoints with the most sessions, the fullest first.
    pub endpoints: Vec<NatEndpointView>,
    /// Packets of new sessions that were refused, by reason.
    pub refused: Vec<CountView>,
}

/// Ports of an external address.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NatPoolView {
    /// The address.
    pub address: String,
    /// `TCP`, `UDP` or `ICMP`.
    pub protocol: String,
    /// Ports that dynamic mappings hold.
    pub ports: usize,
    /// Ports of the range.
    pub ports_max: usize,
}

/// Sessions of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NatEndpointView {
    /// Its network.
    pub network: String,
    /// Its name, if it is still there.
    pub endpoint: Option<String>,
    /// The address that has them.
    pub address: String,
    /// How many.
    pub sessions: usize,
}
