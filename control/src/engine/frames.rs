//! What frames came to.

use dataplane_core::l2::FloodClass;
use dataplane_core::verdict::{DropReason, VerdictKind};

use super::Engine;
use crate::api::frames::StatsView;

impl Engine {
    /// What frames came to since the start.
    pub fn frame_stats(&self) -> StatsView {
        let stats = self.dataplane.stats();
        let drops: u64 = stats.drops.iter().map(|(_, count)| count).sum();
        let filtered = stats.dropped(DropReason::SamePort);
        StatsView {
            received: stats.rx + stats.released,
            forwarded: stats.verdict(VerdictKind::Bridged),
            filtered_same_port: filtered,
            flooded_unknown: stats.flooded(FloodClass::UnknownUnicast),
            flooded_bcast: stats.flooded(FloodClass::Broadcast),
            flooded_mcast: stats.flooded(FloodClass::Multicast),
            multicast: stats.verdict(VerdictKind::Multicast),
            routed: stats.verdict(VerdictKind::Routed),
            delivered: stats.verdict(VerdictKind::Delivered),
            replied: stats.verdict(VerdictKind::Replied),
            held: stats.verdict(VerdictKind::Held),
            not_ours: stats.verdict(VerdictKind::NotOurs),
            dropped: drops.saturating_sub(filtered),
        }
    }
}
