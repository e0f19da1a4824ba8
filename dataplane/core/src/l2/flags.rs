//! What is switched on for a port, as bridge(8) has it for a bridge port.

use core::fmt;
use core::ops::{BitAnd, BitOr};

use crate::addr::MacAddr;

/// The flags of a port in one word: a frame asks for what it needs by one mask.
///
/// `flood`, `mcast_flood` and `bcast_flood` are of the way out: what is flooded leaves by a port
/// only where its kind may (net/bridge/br_forward.c). A station that is known is reached whatever
/// they say.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortFlags(u32);

impl PortFlags {
    /// Stations that are heard on it are learned and refreshed.
    pub const LEARNING: Self = Self(1);
    /// Unicast to stations that nobody knows leaves by it.
    pub const FLOOD: Self = Self(1 << 1);
    /// Multicast leaves by it.
    pub const MCAST_FLOOD: Self = Self(1 << 2);
    /// Broadcast leaves by it.
    pub const BCAST_FLOOD: Self = Self(1 << 3);
    /// It and other isolated ports do not reach each other.
    pub const ISOLATED: Self = Self(1 << 4);
    /// A bridged frame may go back to it.
    pub const HAIRPIN: Self = Self(1 << 5);
    /// Only frames of its endpoint's own MAC and addresses enter by it.
    pub const SECURED: Self = Self(1 << 6);
    /// BPDUs that enter by it are forwarded as other multicast is. Set of a network, not of a port.
    pub const BPDUS: Self = Self(1 << 7);
    /// Probes are sent by it, and noticed where they come back. Set of a network, not of a port.
    pub const LOOP_DETECT: Self = Self(1 << 8);
    /// VLANs count: a frame enters and leaves by it only in one of its own. Set of a network.
    pub const FILTERING: Self = Self(1 << 9);
    /// A mirror's copies leave by it, and nothing enters. Set of mirrors.
    pub const MIRROR: Self = Self(1 << 10);
    /// Frames leave by it as its device takes them: large, or with a checksum left to do. Without it
    /// they leave complete.
    pub const OFFLOAD: Self = Self(1 << 11);
    /// Nobody behind it is asked whether it was the last listener that has left a group.
    pub const FAST_LEAVE: Self = Self(1 << 13);
    /// It leads to a multicast router, whether one was heard or not.
    pub const MCAST_ROUTER: Self = Self(1 << 14);
    /// It leads to a multicast router while one is heard on it.
    pub const MCAST_ROUTER_LEARNING: Self = Self(1 << 15);

    /// What is flooded that enters by it is metered. Follows from the port's limits.
    pub const STORM: Self = Self(1 << 12);
    /// All that leaves by it carries its own MAC. Follows from the port's having one.
    pub const MAC_NAT: Self = Self(1 << 16);

    /// Its links are more than wires. Follows from them.
    pub const LINKED: Self = Self(1 << 19);

    /// It and other such ports of its network reach each other by rules alone. Set of a network.
    pub const ICC_OFF: Self = Self(1 << 17);
    /// Rules are asked about frames that enter by it. Follows from the topology's rules.
    pub const POLICED: Self = Self(1 << 18);

    /// Whatever has a frame looked at more closely before it is let in. One mask, so that a port
    /// without any of it pays for one test however many there are.
    pub const EXAMINED: Self = Self::SECURED
        .with(Self::LOOP_DETECT)
        .with(Self::FILTERING)
        .with(Self::MIRROR)
        .with(Self::MAC_NAT);
    /// Whatever keeps a frame from some ports of its domain. One mask, for the same reason.
    pub const RESTRICTED: Self = Self::ISOLATED.with(Self::FILTERING).with(Self::POLICED);

    /// Those of a new port, as the kernel has them for one of a bridge.
    pub const USUAL: Self = Self::LEARNING
        .with(Self::FLOOD)
        .with(Self::MCAST_FLOOD)
        .with(Self::BCAST_FLOOD)
        .with(Self::OFFLOAD)
        .with(Self::MCAST_ROUTER_LEARNING);

    /// Every flag that people set, with the word for it.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::LEARNING, "learning"),
        (Self::FLOOD, "flood"),
        (Self::MCAST_FLOOD, "mcast-flood"),
        (Self::BCAST_FLOOD, "bcast-flood"),
        (Self::ISOLATED, "isolated"),
        (Self::HAIRPIN, "hairpin"),
        (Self::OFFLOAD, "offload"),
        (Self::SECURED, "port-security"),
        (Self::FAST_LEAVE, "mcast-fast-leave"),
        (Self::MCAST_ROUTER, "mcast-router"),
        (Self::MCAST_ROUTER_LEARNING, "mcast-router-learning"),
    ];

    /// None of them.
    pub const NONE: Self = Self(0);

    /// Whether any of `flags` is on.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// These, with `flags` on.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These, with `flags` off.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// The flag that a word names.
    pub fn named(word: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, label)| *label == word).map(|(flag, _)| *flag)
    }
}

impl Default for PortFlags {
    fn default() -> Self {
        Self::USUAL
    }
}

impl BitOr for PortFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitAnd for PortFlags {
    type Output = Self;

    #[inline]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for PortFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = Self::ALL.iter().filter(|(flag, _)| self.has(*flag));
        f.debug_set().entries(on.map(|(_, label)| label)).finish()
    }
}

/// Why a frame is flooded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FloodClass {
    /// Nobody knows where the one station is that it is for.
    UnknownUnicast,
    /// It is for a group.
    Multicast,
    /// It is for everyone.
    Broadcast,
}

impl FloodClass {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::UnknownUnicast, Self::Multicast, Self::Broadcast];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownUnicast => "unknown-unicast",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
        }
    }

    /// The class that a word names.
    pub fn named(word: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|class| class.label() == word)
    }

    /// The class of a frame to `dst` that is flooded.
    #[inline]
    pub fn of(dst: MacAddr) -> Self {
        if dst.is_broadcast() {
            Self::Broadcast
        } else if dst.is_group() {
            Self::Multicast
        } else {
            Self::UnknownUnicast
        }
    }

    /// The flag of the ports that such frames leave by.
    #[inline]
    pub const fn flag(self) -> PortFlags {
        match self {
            Self::UnknownUnicast => PortFlags::FLOOD,
            Self::Multicast => PortFlags::MCAST_FLOOD,
            Self::Broadcast => PortFlags::BCAST_FLOOD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_names_its_own_flag_and_nothing_else_does() {
        let mut seen = PortFlags::NONE;
        for (flag, word) in PortFlags::ALL {
            assert_eq!(PortFlags::named(word), Some(flag));
            assert!(!seen.has(flag), "{word} is a bit of its own");
            seen = seen.with(flag);
            assert!(!seen.without(flag).has(flag));
        }
        assert_eq!(PortFlags::named("stp"), None);
    }

    #[test]
    fn a_new_port_learns_and_floods_everything() {
        let on: Vec<_> = PortFlags::ALL
            .iter()
            .filter(|(flag, _)| PortFlags::default().has(*flag))
            .map(|(_, word)| *word)
            .collect();
        let floods = ["learning", "flood", "mcast-flood", "bcast-flood"];
        let others = ["offload", "mcast-router-learning"];
        assert_eq!(on, [&floods[..], &others].concat());
    }

    #[test]
    fn broadcast_is_no_multicast_and_a_station_is_neither() {
        let class = |mac| FloodClass::of(MacAddr(mac));
        assert_eq!(class([0xff; 6]), FloodClass::Broadcast);
        assert_eq!(class([0x01, 0, 0x5e, 0, 0, 1]), FloodClass::Multicast);
        assert_eq!(class([0x02, 0, 0, 0, 0, 1]), FloodClass::UnknownUnicast);
    }
}
