//! Counters with one writer and many readers.
//!
//! Each worker owns one [`Counters`]; the control plane reads them through the same `Arc`. With a
//! single writer an increment is a plain load and store, no locked instruction.
//!
//! The law of frames, checked by every test: received + released = Σ verdicts + Σ drops. What a
//! port received is counted by the port ([`Counters::rx`] is only the core's own tally of frames
//! that entered `forward`).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::fdb::Learn;
use crate::policy::{RULES_MAX, RuleSlot};
use crate::verdict::{DropReason, Verdict, VerdictKind};

/// A number that one thread counts up and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owner may call it: two writers would lose counts.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0
            .store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    /// The current value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a rule has decided on.
#[derive(Debug, Default)]
struct RuleHits {
    packets: Counter,
    bytes: Counter,
}

/// What one worker's core did.
#[derive(Debug)]
pub struct Counters {
    /// Frames that entered `forward`.
    pub rx: Counter,
    /// Held frames that were taken up again.
    pub released: Counter,
    /// Stations that were not learned because the table was full.
    pub learn_full: Counter,
    /// Stations that were not learned for the MAC limit of their port.
    pub learn_limited: Counter,
    /// Moves that were refused because the station flaps.
    pub move_refused: Counter,
    /// Frames whose source an entry that does not move has on another port.
    pub pinned: Counter,
    /// Stations that moved.
    pub moved: Counter,
    /// Stations first heard.
    pub learned: Counter,
    /// ICMP errors that were not sent because too many had been.
    pub errors_suppressed: Counter,
    /// Questions for endpoints that the switch has answered.
    pub answered_for: Counter,
    /// Groups that a port has asked for and that there was no room for.
    pub groups_refused: Counter,
    /// Flows that rules let pass and that there was no room to remember.
    pub flows_refused: Counter,
    /// By [`RuleSlot`].
    rules: Box<[RuleHits]>,
    verdicts: [Counter; VerdictKind::ALL.len()],
    drops: [Counter; DropReason::COUNT],
    refusals: [Counter; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            rx: Counter::default(),
            released: Counter::default(),
            learn_full: Counter::default(),
            learn_limited: Counter::default(),
            move_refused: Counter::default(),
            pinned: Counter::default(),
            moved: Counter::default(),
            learned: Counter::default(),
            errors_suppressed: Counter::default(),
            answered_for: Counter::default(),
            groups_refused: Counter::default(),
            flows_refused: Counter::default(),
            rules: (0..RULES_MAX).map(|_| RuleHits::default()).collect(),
            verdicts: core::array::from_fn(|_| Counter::default()),
            drops: core::array::from_fn(|_| Counter::default()),
            refusals: core::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Counters {
    /// Counts a verdict.
    #[inline]
    pub fn record(&self, verdict: Verdict) {
        match verdict.kind() {
            Ok(kind) => self.verdicts[kind as usize].add(1),
            Err(reason) => self.drops[reason as usize].add(1),
        }
    }

    /// Counts a packet that was refused for a reason, of which its sender is told: its verdict is
    /// the answer.
    pub fn record_refusal(&self, reason: DropReason) {
        self.refusals[reason as usize].add(1);
    }

    /// Packets whose senders were told that they were refused for this reason.
    pub fn refused(&self, reason: DropReason) -> u64 {
        self.refusals[reason as usize].get()
    }

    /// Counts a packet, of so many bytes of IP, that a rule has decided on.
    pub fn record_rule(&self, slot: RuleSlot, size: u64) {
        if let Some(hits) = self.rules.get(usize::from(slot.0)) {
            hits.packets.add(1);
            hits.bytes.add(size);
        }
    }

    /// The packets that the rule of a slot has decided on, and their bytes.
    pub fn rule_hits(&self, slot: RuleSlot) -> (u64, u64) {
        let hits = self.rules.get(usize::from(slot.0));
        hits.map_or((0, 0), |hits| (hits.packets.get(), hits.bytes.get()))
    }

    /// Counts the last frame that entered `forward` as a held one that was taken up again.
    pub fn count_released(&self) {
        self.rx.add(0u64.wrapping_sub(1));
        self.released.add(1);
    }

    /// Counts what learning came to.
    #[inline]
    pub fn record_learn(&self, learn: Learn) {
        match learn {
            Learn::Known | Learn::Exempt | Learn::Off => {}
            Learn::New => self.learned.add(1),
            Learn::Moved { .. } => self.moved.add(1),
            Learn::Full => self.learn_full.add(1),
            Learn::Limited => self.learn_limited.add(1),
            Learn::MoveRefused => self.move_refused.add(1),
            Learn::Pinned { .. } => self.pinned.add(1),
        }
    }

    /// Frames that got verdicts of this kind.
    pub fn verdict(&self, kind: VerdictKind) -> u64 {
        self.verdicts[kind as usize].get()
    }

    /// Frames that were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Frames that have a verdict, drops included: equals `rx + released`.
    pub fn judged(&self) -> u64 {
        self.verdicts
            .iter()
            .chain(&self.drops)
            .map(Counter::get)
            .sum()
    }
}
