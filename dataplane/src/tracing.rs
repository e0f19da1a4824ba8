//! Live traces: what the core did with real frames, sent to whoever asked.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use dataplane_core::addr::PortId;
use dataplane_core::frame::Offload;
use dataplane_core::time::Instant;
use dataplane_core::trace::Step;
use dataplane_core::verdict::Verdict;

/// Records that may wait for their reader; beyond, the newest are lost and counted.
pub const RECORDS_MAX: usize = 4_096;

/// Traces that run at a time.
pub const TRACES_MAX: usize = 8;

/// Bytes of a traced frame that are enough for every header and a little payload.
pub const SNAP_SIZE: usize = 192;

/// What happened to one frame.
#[derive(Clone, Debug)]
pub struct Record {
    /// Grows with every frame that was traced by one worker.
    pub sequence: u64,
    /// The worker that forwarded it.
    pub worker: usize,
    /// When, on the dataplane's clock.
    pub at: Instant,
    /// The port that it entered by.
    pub ingress: PortId,
    /// Its size.
    pub size: usize,
    /// Its offload, as received.
    pub offload: Offload,
    /// Its first bytes, as received.
    pub before: Vec<u8>,
    /// Its first bytes, as they left.
    pub after: Vec<u8>,
    /// Its size as it left.
    pub size_after: usize,
    /// Its offload as it left.
    pub offload_after: Offload,
    /// What became of it.
    pub verdict: Verdict,
    /// The ports that it left by.
    pub egress: Vec<PortId>,
    /// The steps, in order; the last is the verdict.
    pub steps: Vec<Step>,
}

/// A worker's end of a trace.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    sender: Sender<Record>,
    /// Tells traces apart.
    pub number: u64,
    /// Bytes of each frame that are kept.
    pub snap_size: usize,
    sequence: Arc<AtomicU64>,
}

impl Tap {
    /// Hands a record over, cut to what this trace keeps; `false` when its reader is too slow and
    /// it is lost.
    pub fn send(&self, record: &Record) -> bool {
        let cut = |bytes: &[u8]| bytes[..bytes.len().min(self.snap_size)].to_vec();
        let own = Record {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            before: cut(&record.before),
            after: cut(&record.after),
            egress: record.egress.clone(),
            steps: record.steps.clone(),
            ..*record
        };
        self.sender.try_send(own).is_ok()
    }
}

pub(crate) fn channel(number: u64, snap_size: usize) -> (Tap, Receiver<Record>) {
    let (sender, receiver) = bounded(RECORDS_MAX);
    let sequence = Arc::new(AtomicU64::new(0));
    (
        Tap {
            sender,
            number,
            snap_size,
            sequence,
        },
        receiver,
    )
}
