//! Keys and entries of the forwarding database, each one machine word.

use core::time::Duration;

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::time::Instant;

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
            domain_mac: (domain.0 as u64) << 48 | mac.to_u64(),
            vlan,
        }
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

    /// The key in one word, for the index; `None` for one that does not fit, being in a tagged
    /// VLAN, or that the index has another meaning for.
    #[inline]
    pub(super) const fn word(self) -> Option<u64> {
        if self.vlan.0 == 0 && self.domain_mac != 0 {
            Some(self.domain_mac)
        } else {
            None
        }
    }
}

/// Where a station was last heard: {port 16, port generation 16, last-seen second 32}.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FdbEntry(pub u64);

const _: () = assert!(size_of::<FdbEntry>() == 8);

impl FdbEntry {
    /// What the index says of a key that it does not have.
    pub const NONE: Self = Self(0);

    #[inline]
    pub const fn new(port: PortId, generation: u16, second: u32) -> Self {
        Self((port.0 as u64) << 48 | (generation as u64) << 32 | second as u64)
    }

    #[inline]
    pub const fn port(self) -> PortId {
        PortId((self.0 >> 48) as u16)
    }

    #[inline]
    pub const fn generation(self) -> u16 {
        (self.0 >> 32) as u16
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
