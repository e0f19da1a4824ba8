//! Counters of ports and workers, and the snapshot that readers get.
//!
//! The law of copies, checked by every test: per egress port, enqueued = sent + Σ egress drops +
//! queued. A GSO frame is one copy; its segments, where they had to be made here, are counted
//! apart.

use core::fmt;
use std::sync::Arc;

use dataplane_core::addr::PortId;
use dataplane_core::counters::{Counter, Counters};
use dataplane_core::l2::FloodClass;
use dataplane_core::verdict::{DropReason, VerdictKind};
use dataplane_port::EdgeStats;

use crate::links::LinkStats;

macro_rules! egress_drops {
    ($($variant:ident, $label:literal, $sentence:literal;)*) => {
        /// Why a copy of a frame did not leave by a port that its verdict named.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum EgressDrop {
            $(#[doc = $sentence] $variant,)*
        }

        impl EgressDrop {
            /// Every reason, in declaration order: the index of its counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in metrics and listings.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// What happened, as one sentence without a full stop.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

egress_drops! {
    QueueFull, "queue_full", "the device takes no more, and as many frames wait for it as may";
    HandoverFull, "handover_full", "the worker that owns the port has not taken up earlier frames";
    PortGone, "port_gone", "the port was removed while frames were on their way to it";
    DeviceDown, "device_down", "the device is down or gone";
    Oversize, "oversize", "the frame is larger than the port's MTU allows";
    Unsegmentable, "unsegmentable", "the frame must be segmented for this port and cannot be";
    Refused, "refused", "the device refused the frame";
    LinkLost, "link_lost", "the port's link is set to lose frames";
    RateLimited, "rate_limited", "the frame exceeds the port's rate, and as many wait as may";
    LinkFull, "link_full", "as many frames are on their way over the port's link as may be held";
    MacNatNotIp, "mac_nat_not_ip", "the frame is neither ARP nor IP and for one station, whose answer to the port's one MAC would find nobody";
    MacNatUnreadable, "mac_nat_unreadable", "the MACs that the frame names in ARP or ND cannot be found, so they cannot become the port's";
    MacNatFull, "mac_nat_full", "the frame is from a new address, and as many are known behind the port's one MAC as may be";
}

impl fmt::Display for EgressDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// One worker's counters of one port.
#[derive(Debug)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received, GSO frames at their full size.
    pub rx_bytes: Counter,
    /// Frames that the kernel had for the port and dropped, as it was read too slowly.
    pub rx_missed: Counter,
    /// Frames that were skipped because they were cut off or shorter than their headers.
    pub rx_malformed: Counter,
    /// Copies among the sent that the kernel has dropped later.
    pub tx_lost: Counter,
    /// Copies that were meant to leave.
    pub enqueued: Counter,
    /// Copies among those that a mirror has made.
    pub mirrored: Counter,
    /// Copies that the device took.
    pub sent_frames: Counter,
    /// Bytes of those.
    pub sent_bytes: Counter,
    /// Copies among the sent that were GSO frames, passed on whole.
    pub sent_gso: Counter,
    /// Segments made here for a device without segmentation.
    pub segments: Counter,
    /// L4 checksums filled in here for a device without checksum offload.
    pub checksums: Counter,
    /// Copies that wait for the device.
    pub queued: Counter,
    /// Nanoseconds spent on frames that this port received: reading, forwarding, sending.
    pub busy_nanos: Counter,
    drops: [Counter; EgressDrop::ALL.len()],
}

impl Default for PortCounters {
    fn default() -> Self {
        Self {
            rx_frames: Counter::default(),
            rx_bytes: Counter::default(),
            rx_missed: Counter::default(),
            rx_malformed: Counter::default(),
            tx_lost: Counter::default(),
            enqueued: Counter::default(),
            mirrored: Counter::default(),
            sent_frames: Counter::default(),
            sent_bytes: Counter::default(),
            sent_gso: Counter::default(),
            segments: Counter::default(),
            checksums: Counter::default(),
            queued: Counter::default(),
            busy_nanos: Counter::default(),
            drops: core::array::from_fn(|_| Counter::default()),
        }
    }
}

impl PortCounters {
    /// Counts a copy that the device took.
    pub fn record_sent(&self, bytes: u64, gso: bool) {
        self.sent_frames.add(1);
        self.sent_bytes.add(bytes);
        self.sent_gso.add(u64::from(gso));
    }

    /// Counts what was lost at the kernel's edge since an earlier reading.
    pub fn record_edge(&self, before: &EdgeStats, now: &EdgeStats) {
        let since = |before: u64, now: u64| now.saturating_sub(before);
        self.rx_missed.add(since(before.rx_dropped, now.rx_dropped));
        self.rx_malformed
            .add(since(before.rx_malformed, now.rx_malformed));
        self.tx_lost.add(since(before.tx_dropped, now.tx_dropped));
    }

    /// Counts an egress drop.
    pub fn record_drop(&self, reason: EgressDrop) {
        self.drops[reason as usize].add(1);
    }

    /// Counts egress drops of the same reason.
    pub fn record_drops(&self, reason: EgressDrop, count: u64) {
        self.drops[reason as usize].add(count);
    }

    /// Copies dropped for this reason.
    pub fn dropped(&self, reason: EgressDrop) -> u64 {
        self.drops[reason as usize].get()
    }
}

/// One worker's own counters.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Turns taken.
    pub turns: Counter,
    /// Times that the worker slept until something happened.
    pub sleeps: Counter,
    /// Batches forwarded.
    pub batches: Counter,
    /// Nanoseconds spent on frames: received, or handed over by other workers.
    pub busy_nanos: Counter,
    /// Nanoseconds spent looking for frames in vain, and giving way to other threads meanwhile. The
    /// rest of the time the worker slept.
    pub spin_nanos: Counter,
    /// Frames that were flooded, by [`FloodClass`].
    pub flooded: [Counter; FloodClass::ALL.len()],
    /// Frames for a service of the switch that found its queue full.
    pub service_refused: Counter,
    /// Trace records lost because their reader was too slow.
    pub traces_lost: Counter,
    /// Notices to the control plane lost because it was too slow.
    pub notices_lost: Counter,
}

/// A reading of every counter. Not one instant: workers go on while it is taken.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Frames that entered the core.
    pub rx: u64,
    /// Held frames that were taken up again.
    pub released: u64,
    /// Frames by verdict, in the order of [`VerdictKind::ALL`].
    pub verdicts: Vec<(VerdictKind, u64)>,
    /// Frames that were flooded, in the order of [`FloodClass::ALL`]: together those of
    /// [`VerdictKind::Flooded`].
    pub flooded: [u64; FloodClass::ALL.len()],
    /// Frames by drop reason, in the order of [`DropReason::ALL`].
    pub drops: Vec<(DropReason, u64)>,
    /// Packets that were refused with an answer to their sender, by reason.
    pub refusals: Vec<(DropReason, u64)>,
    /// Stations learned, moved, not learned for lack of room, held back from flapping.
    pub learned: u64,
    /// Stations that moved.
    pub moved: u64,
    /// Stations not learned for lack of room.
    pub learn_full: u64,
    /// Stations not learned for the MAC limit of their port.
    pub learn_limited: u64,
    /// Frames whose source an entry that does not move has on another port.
    pub pinned: u64,
    /// Moves refused because the station flaps.
    pub move_refused: u64,
    /// ICMP errors not sent because too many had been.
    pub errors_suppressed: u64,
    /// Questions for endpoints that the switch has answered.
    pub answered_for: u64,
    /// Groups that a port asked for and that there was no room for.
    pub groups_refused: u64,
    /// Flows that rules let pass and that there was no room to remember.
    pub flows_refused: u64,
    /// By port, all workers together.
    pub ports: Vec<PortStats>,
    /// Ports that were removed, all together.
    pub retired: PortStats,
    /// By worker.
    pub workers: Vec<WorkerStats>,
    /// Links that there are, or have been since their port was added.
    pub links: Vec<LinkStats>,
}

/// A reading of one port's counters, all workers together.
#[derive(Clone, Debug, Default)]
pub struct PortStats {
    /// Which port.
    pub port: PortId,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames that the kernel dropped because the port was read too slowly; up to a second old.
    pub rx_missed: u64,
    /// Frames that were skipped as cut off or too short; up to a second old.
    pub rx_malformed: u64,
    /// Copies among the sent that the kernel has dropped later; up to a second old.
    pub tx_lost: u64,
    /// Copies that were meant to leave.
    pub enqueued: u64,
    /// Copies among those that a mirror has made.
    pub mirrored: u64,
    /// Copies that the device took.
    pub sent_frames: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Copies among the sent that were GSO frames, passed on whole.
    pub sent_gso: u64,
    /// Segments made in software.
    pub segments: u64,
    /// Checksums completed in software.
    pub checksums: u64,
    /// Copies that wait for the device.
    pub queued: u64,
    /// Nanoseconds that workers spent on frames that this port received.
    pub busy_nanos: u64,
    /// Copies dropped, by reason.
    pub drops: Vec<(EgressDrop, u64)>,
}

/// A reading of one worker's counters.
#[derive(Clone, Debug, Default)]
pub struct WorkerStats {
    /// Turns taken.
    pub turns: u64,
    /// Times slept.
    pub sleeps: u64,
    /// Batches forwarded.
    pub batches: u64,
    /// Nanoseconds spent on frames.
    pub busy_nanos: u64,
    /// Nanoseconds spent looking for frames in vain.
    pub spin_nanos: u64,
    /// Frames that entered this worker's core.
    pub rx: u64,
    /// Frames for a service that found its queue full.
    pub service_refused: u64,
    /// Trace records lost.
    pub traces_lost: u64,
    /// Notices lost.
    pub notices_lost: u64,
}

impl Stats {
    /// Frames with this verdict.
    pub fn verdict(&self, kind: VerdictKind) -> u64 {
        self.verdicts
            .iter()
            .find(|(k, _)| *k == kind)
            .map_or(0, |(_, count)| *count)
    }

    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops
            .iter()
            .find(|(r, _)| *r == reason)
            .map_or(0, |(_, count)| *count)
    }

    /// The counters of one port.
    pub fn port(&self, id: PortId) -> Option<&PortStats> {
        self.ports.iter().find(|port| port.port == id)
    }

    /// Checks all conservation laws. Exact when no frame is on its way; call it when idle.
    ///
    /// # Errors
    /// A sentence that names the law that does not hold, with both sides.
    pub fn check_laws(&self) -> Result<(), String> {
        let verdicts: u64 = self.verdicts.iter().map(|(_, count)| count).sum();
        let drops: u64 = self.drops.iter().map(|(_, count)| count).sum();
        let received =
            self.ports.iter().map(|port| port.rx_frames).sum::<u64>() + self.retired.rx_frames;
        if received + self.released != verdicts + drops {
            let released = self.released;
            return Err(format!(
                "law of frames: {received} received + {released} released, but {verdicts} \
                 verdicts + {drops} drops"
            ));
        }
        for port in &self.ports {
            let dropped: u64 = port.drops.iter().map(|(_, count)| count).sum();
            if port.enqueued != port.sent_frames + dropped + port.queued {
                return Err(format!(
                    "law of copies on {}: {} enqueued, but {} sent + {dropped} dropped + {} queued",
                    port.port, port.enqueued, port.sent_frames, port.queued
                ));
            }
        }
        let flooded: u64 = self.flooded.iter().sum();
        let floods = self.verdict(VerdictKind::Flooded);
        if flooded != floods {
            return Err(format!(
                "law of floods: {floods} frames flooded, but {flooded} by class"
            ));
        }
        self.links.iter().try_for_each(LinkStats::check_law)
    }

    /// Frames that were flooded for this reason.
    pub fn flooded(&self, class: FloodClass) -> u64 {
        self.flooded[class as usize]
    }

    pub(crate) fn add_floods(&mut self, counters: &WorkerCounters) {
        for (total, counter) in self.flooded.iter_mut().zip(&counters.flooded) {
            *total += counter.get();
        }
    }

    pub(crate) fn add_core(&mut self, counters: &Counters) {
        self.rx += counters.rx.get();
        self.released += counters.released.get();
        self.learned += counters.learned.get();
        self.moved += counters.moved.get();
        self.learn_full += counters.learn_full.get();
        self.learn_limited += counters.learn_limited.get();
        self.pinned += counters.pinned.get();
        self.move_refused += counters.move_refused.get();
        self.errors_suppressed += counters.errors_suppressed.get();
        self.answered_for += counters.answered_for.get();
        self.groups_refused += counters.groups_refused.get();
        self.flows_refused += counters.flows_refused.get();
        if self.verdicts.is_empty() {
            self.verdicts = VerdictKind::ALL.iter().map(|kind| (*kind, 0)).collect();
            self.drops = DropReason::ALL.iter().map(|reason| (*reason, 0)).collect();
            self.refusals = self.drops.clone();
        }
        for (reason, count) in &mut self.refusals {
            *count += counters.refused(*reason);
        }
        for (kind, count) in &mut self.verdicts {
            *count += counters.verdict(*kind);
        }
        for (reason, count) in &mut self.drops {
            *count += counters.dropped(*reason);
        }
    }
}

impl PortStats {
    pub(crate) fn sum(port: PortId, lanes: &[Arc<PortCounters>]) -> Self {
        let mut stats = Self {
            port,
            ..Self::default()
        };
        stats.drops = EgressDrop::ALL.iter().map(|reason| (*reason, 0)).collect();
        for lane in lanes {
            stats.rx_frames += lane.rx_frames.get();
            stats.rx_bytes += lane.rx_bytes.get();
            stats.rx_missed += lane.rx_missed.get();
            stats.rx_malformed += lane.rx_malformed.get();
            stats.tx_lost += lane.tx_lost.get();
            stats.enqueued += lane.enqueued.get();
            stats.mirrored += lane.mirrored.get();
            stats.sent_frames += lane.sent_frames.get();
            stats.sent_bytes += lane.sent_bytes.get();
            stats.sent_gso += lane.sent_gso.get();
            stats.segments += lane.segments.get();
            stats.checksums += lane.checksums.get();
            stats.queued += lane.queued.get();
            stats.busy_nanos += lane.busy_nanos.get();
            for (reason, count) in &mut stats.drops {
                *count += lane.dropped(*reason);
            }
        }
        stats
    }

    /// Adds the counters of a port that is gone.
    pub(crate) fn absorb(&mut self, gone: &Self) {
        self.rx_frames += gone.rx_frames;
        self.rx_bytes += gone.rx_bytes;
        self.rx_missed += gone.rx_missed;
        self.rx_malformed += gone.rx_malformed;
        self.tx_lost += gone.tx_lost;
        self.enqueued += gone.enqueued;
        self.mirrored += gone.mirrored;
        self.sent_frames += gone.sent_frames;
        self.sent_bytes += gone.sent_bytes;
        self.sent_gso += gone.sent_gso;
        self.segments += gone.segments;
        self.checksums += gone.checksums;
        self.queued += gone.queued;
        self.busy_nanos += gone.busy_nanos;
        if self.drops.is_empty() {
            self.drops = EgressDrop::ALL.iter().map(|reason| (*reason, 0)).collect();
        }
        for ((_, total), (_, count)) in self.drops.iter_mut().zip(&gone.drops) {
            *total += count;
        }
    }
}

impl WorkerStats {
    pub(crate) fn read(counters: &WorkerCounters, core: &Counters) -> Self {
        Self {
            turns: counters.turns.get(),
            sleeps: counters.sleeps.get(),
            batches: counters.batches.get(),
            busy_nanos: counters.busy_nanos.get(),
            spin_nanos: counters.spin_nanos.get(),
            rx: core.rx.get(),
            service_refused: counters.service_refused.get(),
            traces_lost: counters.traces_lost.get(),
            notices_lost: counters.notices_lost.get(),
        }
    }
}
