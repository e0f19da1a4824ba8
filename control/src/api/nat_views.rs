//! What the API shows of the NAT.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::CountView;

/// What a published port led to one target, or a network's endpoints sent outside. A GSO frame
/// counts as one packet, bytes are those of IP packets, of a fragmented packet the first fragment
/// counts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// `publish` or `masquerade`.
    pub kind: String,
    /// The publication's id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub publication: Option<u32>,
    /// The publication, as `-p` would say it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spec: Option<String>,
    /// The target's endpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub endpoint: Option<String>,
    /// The network.
    pub network: String,
    /// Sessions that were opened.
    pub new_sessions: u64,
    /// Sessions that have not ended.
    pub live_sessions: u64,
    /// Packets from outside.
    pub packets_in: u64,
    /// Bytes from outside.
    pub bytes_in: u64,
    /// Packets from inside.
    pub packets_out: u64,
    /// Bytes from inside.
    pub bytes_out: u64,
}

/// A NAT session.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionView {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The network.
    pub network: String,
    /// Inside address and port.
    pub inside: String,
    /// External address and port.
    pub external: String,
    /// Remote address and port.
    pub remote: String,
    /// Where it stands.
    pub state: String,
    /// Came by a published port.
    pub published: bool,
    /// Seconds since its first packet.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Packets to the remote.
    pub packets_out: u64,
    /// Packets from the remote.
    pub packets_in: u64,
    /// Bytes of IP packets to the remote.
    #[serde(default)]
    pub bytes_out: u64,
    /// Bytes of IP packets from the remote.
    #[serde(default)]
    pub bytes_in: u64,
}

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
