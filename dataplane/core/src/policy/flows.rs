//! The table of flows: who opened what, for flows that no NAT session tells it of.
//!
//! A set-associative table of atomic words, so that a hit takes no lock and writes shared memory at
//! most once a second. A flow is known by a keyed hash of 64 bits of its ends and protocol, the same
//! in both directions; that another one has the same hash, of eight in its bucket, nobody can bring
//! about who does not know the key. What a slot says is an answer to one question only: who opened it,
//! and which rule let it pass as of which topology.
//!
//! *Full* means that the eight slots of a bucket hold flows that are alive and answered. One that
//! nobody has answered gives way, the oldest first, so that a flood of openings displaces openings.
//! A new flow that finds no room passes all the same, if rules let it, and is counted: its answers
//! are then judged as openings are. Nothing passes for want of room that rules deny.
//!
//! Two workers may take up a flow at the same time, in two slots: either says the same, and the one
//! that is not found expires.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::judge::Ruling;
use super::rule::RuleSlot;
use crate::addr::L4Addr;
use crate::headers::TcpFlags;
use crate::nat::{FRAGMENT_TIMEOUT_SECONDS, FlowHash, Timeouts};
use crate::time::Instant;

/// Flows of one process that are known at a time: 24 bytes each, 1.5 MiB, which are taken when the
/// first flow is opened that a rule has a say in.
pub const FLOWS_MAX: usize = 1 << 16;

/// Slots that a flow may be in.
const WAYS: usize = 8;
const BUCKETS: usize = FLOWS_MAX / WAYS;
/// The hash of a slot that is being written.
const BUSY: u64 = u64::MAX;

/// State word: the opener is the higher of the two ends.
const OPENER_HIGH: u64 = 1 << 32;
/// State word: the other end has sent, too.
const ANSWERED: u64 = 1 << 33;
/// State word: a FIN or RST was seen.
const CLOSING: u64 = 1 << 34;
/// State word: where the kind of flow is.
const KIND_SHIFT: u32 = 40;
/// State word: passed by default.
const NO_RULE: u64 = 0xffff;

/// The flows of all workers.
#[derive(Debug)]
pub struct Flows {
    hash: FlowHash,
    slots: OnceLock<Box<[Slot]>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Whose slot it is; 0 for nobody's.
    hash: AtomicU64,
    /// The topology's stamp, and the second of the last packet.
    seen: AtomicU64,
    /// The rule's slot in the low 16 bits, flags and kind above.
    state: AtomicU64,
}

/// What a flow is made of: how long it may be silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Tcp,
    Icmp,
    /// The later fragments of one packet.
    Fragments,
    /// UDP, and all else.
    Other,
}

/// A packet as the table knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub hash: u64,
    /// Its source is the higher of the two ends.
    pub from_high: bool,
    pub kind: Kind,
    pub flags: TcpFlags,
}

/// A flow that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    slot: usize,
    state: u64,
    /// The topology as of which [`Known::ruling`] was given.
    pub stamp: u32,
    second: u32,
}

impl Known {
    /// Whether a packet goes against the direction in which the flow was opened.
    pub const fn is_answered_by(&self, packet: &Packet) -> bool {
        (self.state & OPENER_HIGH != 0) != packet.from_high
    }

    /// What was said of its opening.
    pub const fn ruling(&self) -> Ruling {
        match self.state & NO_RULE {
            NO_RULE => Ruling::Default,
            rule => Ruling::Allowed(RuleSlot(rule as u16)),
        }
    }
}

impl Flows {
    /// Empty.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            // Not the hashes of the NAT, which has the same seed.
            hash: FlowHash::new(seed ^ 0x666c_6f77_7461_626c),
            slots: OnceLock::new(),
        })
    }

    /// A hash of all that frames change.
    pub fn state_hash(&self) -> u64 {
        let slots = self.slots.get().into_iter().flatten();
        let words = slots.flat_map(|slot| [&slot.hash, &slot.seen, &slot.state]);
        words.fold(0, |hash, word| {
            (hash ^ word.load(Ordering::Relaxed))
                .rotate_left(5)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }

    fn bucket(hash: u64) -> core::ops::Range<usize> {
        let first = (hash >> 32) as usize % BUCKETS * WAYS;
        first..first + WAYS
    }
}

/// One worker's view of the flows, or a what-if's.
#[derive(Clone, Debug)]
pub struct FlowsView {
    flows: Arc<Flows>,
    /// A what-if reads what is there and writes nothing.
    writes: Writes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writes {
    Shared,
    Nothing,
}

impl FlowsView {
    pub(crate) const fn live(flows: Arc<Flows>) -> Self {
        let writes = Writes::Shared;
        Self { flows, writes }
    }

    pub(crate) const fn overlay(flows: Arc<Flows>) -> Self {
        let writes = Writes::Nothing;
        Self { flows, writes }
    }

    pub(super) fn hash(&self, tag: u64, a: L4Addr, b: L4Addr) -> u64 {
        // What is being written has a mark of its own.
        self.flows.hash.flow(tag, a, b).min(BUSY - 1)
    }

    /// The flow that a packet belongs to, if it is alive.
    pub(super) fn find(&self, packet: &Packet, now: Instant, timeouts: &Timeouts) -> Option<Known> {
        let slots = self.flows.slots.get()?;
        let mut bucket = Flows::bucket(packet.hash);
        let index = bucket.find(|index| {
            // Acquire: pairs with the release in `write`, so that the other words are of this flow.
            slots[*index].hash.load(Ordering::Acquire) == packet.hash
        })?;
        let slot = &slots[index];
        let seen = slot.seen.load(Ordering::Acquire);
        let state = slot.state.load(Ordering::Acquire);
        // Given to another flow meanwhile, it would say what is not of this one.
        let still = slot.hash.load(Ordering::Relaxed) == packet.hash;
        let (stamp, second) = ((seen >> 32) as u32, seen as u32);
        let known = Known {
            slot: index,
            state,
            stamp,
            second,
        };
        (still && !is_over(state, second, now, timeouts)).then_some(known)
    }

    /// Takes note of a packet of a known flow.
    pub(super) fn touch(
        &self,
        known: &Known,
        packet: &Packet,
        ruling: Ruling,
        stamp: u32,
        now: Instant,
    ) {
        let Some(slots) = self.writable() else {
            return;
        };
        let slot = &slots[known.slot];
        let mut state = known.state & !NO_RULE | rule_bits(ruling);
        if known.is_answered_by(packet) {
            state |= ANSWERED;
        }
        if packet
            .flags
            .has(TcpFlags(TcpFlags::FIN.0 | TcpFlags::RST.0))
        {
            state |= CLOSING;
        }
        if state != known.state {
            slot.state.store(state, Ordering::Relaxed);
        }
        if (known.second, known.stamp) != (now.second(), stamp) {
            slot.seen.store(seen_word(stamp, now), Ordering::Relaxed);
        }
    }

    /// Takes up a flow that `packet` opens, or the one that it answers where `answers`; whether there
    /// is room.
    pub(super) fn open(
        &self,
        packet: &Packet,
        opener: Opener,
        ruling: Ruling,
        stamp: u32,
        now: Instant,
        timeouts: &Timeouts,
    ) -> bool {
        if self.writes == Writes::Nothing {
            return true;
        }
        let make = || (0..FLOWS_MAX).map(|_| Slot::default()).collect();
        let slots: &[Slot] = self.flows.slots.get_or_init(make);
        let Some(index) = place(slots, packet, now, timeouts) else {
            return false;
        };
        let mut state = rule_bits(ruling) | (packet.kind as u64) << KIND_SHIFT;
        let high = packet.from_high == (opener == Opener::Sender);
        if high {
            state |= OPENER_HIGH;
        }
        if opener == Opener::Receiver {
            state |= ANSWERED;
        }
        write(&slots[index], packet.hash, seen_word(stamp, now), state);
        true
    }

    fn writable(&self) -> Option<&[Slot]> {
        let slots = self.flows.slots.get().map(|slots| &**slots);
        slots.filter(|_| self.writes == Writes::Shared)
    }
}

/// Which end of a packet opened its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opener {
    Sender,
    Receiver,
}

/// Where a new flow goes: where it was, where nobody is, or in place of the oldest that nobody has
/// answered.
fn place(slots: &[Slot], packet: &Packet, now: Instant, timeouts: &Timeouts) -> Option<usize> {
    let mut free = None;
    let mut displaced: Option<(u32, usize)> = None;
    for index in Flows::bucket(packet.hash) {
        let slot = &slots[index];
        let hash = slot.hash.load(Ordering::Relaxed);
        if hash == packet.hash {
            return Some(index);
        }
        let state = slot.state.load(Ordering::Relaxed);
        let second = slot.seen.load(Ordering::Relaxed) as u32;
        if hash == BUSY {
            continue;
        }
        if hash == 0 || is_over(state, second, now, timeouts) {
            free = free.or(Some(index));
        } else if state & ANSWERED == 0 && displaced.is_none_or(|(oldest, _)| second < oldest) {
            displaced = Some((second, index));
        }
    }
    free.or(displaced.map(|(_, index)| index))
}

/// Gives a slot to a flow. Lost to another worker that writes there, it stays the other's.
fn write(slot: &Slot, hash: u64, seen: u64, state: u64) {
    let was = slot.hash.load(Ordering::Relaxed);
    let claim = slot
        .hash
        .compare_exchange(was, BUSY, Ordering::Acquire, Ordering::Relaxed);
    if was == BUSY || claim.is_err() {
        return;
    }
    slot.seen.store(seen, Ordering::Release);
    slot.state.store(state, Ordering::Release);
    // Release: pairs with the acquire in `find`.
    slot.hash.store(hash, Ordering::Release);
}

fn seen_word(stamp: u32, now: Instant) -> u64 {
    u64::from(stamp) << 32 | u64::from(now.second())
}

const fn rule_bits(ruling: Ruling) -> u64 {
    match ruling {
        Ruling::Allowed(RuleSlot(slot)) => slot as u64,
        Ruling::Default | Ruling::Denied(_) | Ruling::Rejected(_) => NO_RULE,
    }
}

/// Whether a flow has been silent for longer than one of its kind may be.
fn is_over(state: u64, second: u32, now: Instant, timeouts: &Timeouts) -> bool {
    let limit = match (state >> KIND_SHIFT) as u8 {
        kind if kind == Kind::Tcp as u8 => match state & (ANSWERED | CLOSING) {
            ANSWERED => timeouts.tcp_established.as_secs(),
            0 => timeouts.tcp_opening.as_secs(),
            _ => timeouts.tcp_closing.as_secs(),
        },
        kind if kind == Kind::Icmp as u8 => timeouts.icmp.as_secs(),
        kind if kind == Kind::Fragments as u8 => FRAGMENT_TIMEOUT_SECONDS.into(),
        _ => timeouts.udp.as_secs(),
    };
    u64::from(now.second().saturating_sub(second)) > limit
}

const _: () = assert!(size_of::<Slot>() == 24);
