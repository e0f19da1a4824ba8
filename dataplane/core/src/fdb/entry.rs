//! Keys and entries of the forwarding database, each one machine word.

use core::time::Duration;

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::time::Instant;
use crate::topology::DOMAINS_MAX;

/// What is learned: a MAC within a VLAN of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FdbKey {
    /// Domain in the upper 16 bits, MAC in the lower 48.
    domain_mac: u64,
    vlan: VlanId,
}

impl FdbKey {
    /// Joins the three parts.
    #[inline]
    pub const fn new(domain: DomainId, vlan: VlanId, mac: MacAddr) -> Self {
        Self {
            domain_mac: Self::transparent_word(domain, mac),
            vlan,
        }
    }

    /// A key that is not told apart by its VLAN, in one word.
    #[inline(always)]
    pub(super) const fn transparent_word(domain: DomainId, mac: MacAddr) -> u64 {
        (domain.0 as u64) << 48 | mac.to_u64()
    }

    /// The bridge domain.
    pub const fn domain(self) -> DomainId {
        DomainId((self.domain_mac >> 48) as u16)
    }

    /// The VLAN, 0 in a transparent domain.
    pub const fn vlan(self) -> VlanId {
        self.vlan
    }

    /// The station.
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_u64(self.domain_mac)
    }

    /// The key without its VLAN in one word, for the index; `None` for zero and for a domain that
    /// cannot be, which have another meaning there.
    #[inline]
    pub(super) const fn word(self) -> Option<u64> {
        // One comparison, for zero becomes the largest number.
        if self.domain_mac.wrapping_sub(1) < ((DOMAINS_MAX as u64) << 48) - 1 {
            Some(self.domain_mac)
        } else {
            None
        }
    }
}

/// How an entry came, and with it what ends or moves it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FdbKind {
    /// Learned: it ages, and moves with its station.
    Dynamic,
    /// Set, or learned and then held: it ages, and does not move.
    Sticky,
    /// Set: it neither ages nor moves.
    Static,
    /// Set: an address of the switch itself, which is on no cable.
    Local,
}

impl FdbKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Dynamic, Self::Sticky, Self::Static, Self::Local];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Sticky => "sticky",
            Self::Static => "static",
            Self::Local => "local",
        }
    }

    /// Whether only a command ends it: neither age nor a flush of what was learned.
    #[inline]
    pub const fn is_permanent(self) -> bool {
        match self {
            Self::Dynamic | Self::Sticky => false,
            Self::Static | Self::Local => true,
        }
    }
}

/// Where a lookup leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The station is behind this port.
    Port(PortId),
    /// The address is the switch's own.
    Local,
}

/// Where a station was last heard: {port 16, kind 2, port generation 14, last-seen second 32}.
///
/// The kind is 0 for what was learned, so that a frame compares kind and generation as one number,
/// and a learned entry of the port's generation is found without a look at the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FdbEntry(pub u64);

const _: () = assert!(size_of::<FdbEntry>() == 8);

/// Bits of a port's generation. It comes round after 16,384 flushes, more than a port can have
/// between two sweeps, so that no dead entry comes to life again.
const GENERATION_BITS: u32 = 14;

/// The generation after another.
pub(super) const fn next_generation(generation: u16) -> u16 {
    generation.wrapping_add(1) & ((1 << GENERATION_BITS) - 1)
}

impl FdbEntry {
    /// What the index says of a key that it does not have.
    pub const NONE: Self = Self(0);

    /// A learned entry; `generation` is below 2^14.
    #[inline]
    pub const fn new(port: PortId, generation: u16, second: u32) -> Self {
        Self((port.0 as u64) << 48 | (generation as u64) << 32 | second as u64)
    }

    /// The same of another kind.
    pub const fn of_kind(self, kind: FdbKind) -> Self {
        let bits = 0b11 << (32 + GENERATION_BITS);
        Self(self.0 & !bits | (kind as u64) << (32 + GENERATION_BITS))
    }

    pub const fn kind(self) -> FdbKind {
        match (self.0 >> (32 + GENERATION_BITS)) & 0b11 {
            0 => FdbKind::Dynamic,
            1 => FdbKind::Sticky,
            2 => FdbKind::Static,
            _ => FdbKind::Local,
        }
    }

    #[inline]
    pub const fn port(self) -> PortId {
        PortId((self.0 >> 48) as u16)
    }

    #[inline]
    pub const fn generation(self) -> u16 {
        self.kind_and_generation() & ((1 << GENERATION_BITS) - 1)
    }

    /// Of a learned entry, its generation.
    #[inline]
    pub const fn kind_and_generation(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Where it leads.
    pub const fn place(self) -> Place {
        match self.kind() {
            FdbKind::Dynamic | FdbKind::Sticky | FdbKind::Static => Place::Port(self.port()),
            FdbKind::Local => Place::Local,
        }
    }

    #[inline]
    pub const fn second(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub const fn aged(self, now: Instant, ageing: Duration) -> bool {
        age(now, self.second()) as u64 > ageing.as_secs()
    }
}

/// Seconds from `second` to `now`; 0 when another worker's clock read was newer.
#[inline]
pub(super) const fn age(now: Instant, second: u32) -> u32 {
    let elapsed = now.second().wrapping_sub(second);
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}
