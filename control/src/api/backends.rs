//! How an endpoint is connected: wire format.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::FeatureView;

/// How an endpoint is connected, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BackendView {
    /// By what.
    pub backend: String,
    /// What was asked for.
    pub asked: String,
    /// Why this one was chosen, where the choice was the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was negotiated with the kernel.
    #[serde(default)]
    pub features: Vec<FeatureView>,
}
