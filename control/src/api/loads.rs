//! How busy workers and ports are: wire format.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How busy one worker was in the last second or so.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkerLoadView {
    /// Which, from 0.
    pub worker: usize,
    /// Share of the time spent on frames, 0 to 1.
    pub busy: f64,
    /// Share of the time spent looking for frames in vain, 0 to 1; the rest it slept.
    pub spinning: f64,
    /// Frames received a second.
    pub rx_frames_per_second: f64,
    /// Frames of an average batch.
    pub batch_frames: f64,
}

/// How busy one port was in the last second or so.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortLoadView {
    /// Its name.
    pub port: String,
    /// The worker that owns its only queue; absent when every worker has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<usize>,
    /// Time spent on what it received, as a share of one core.
    pub busy: f64,
    /// Frames received a second.
    pub rx_frames_per_second: f64,
    /// Bytes received a second.
    pub rx_bytes_per_second: f64,
    /// Frames sent a second.
    pub tx_frames_per_second: f64,
    /// Bytes sent a second.
    pub tx_bytes_per_second: f64,
}
