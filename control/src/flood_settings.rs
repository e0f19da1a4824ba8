//! What of a network's frames is spared the ports that have no use for it.

use dataplane_core::topology::{Multicast, Suppression};

/// What is set of a network's floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodSettings {
    /// Frames to a group go to its listeners, where a querier asks for them.
    pub mcast_snooping: bool,
    /// The switch is a querier, where there is snooping.
    pub mcast_querier: bool,
    /// The switch answers ARP requests and neighbour solicitations for endpoints.
    pub arp_suppression: bool,
}

impl Default for FloodSettings {
    /// As the kernel's bridge (decision 0020).
    fn default() -> Self {
        Self {
            mcast_snooping: true,
            mcast_querier: false,
            arp_suppression: false,
        }
    }
}

impl FloodSettings {
    /// How frames to groups are forwarded.
    pub const fn multicast(self) -> Multicast {
        match (self.mcast_snooping, self.mcast_querier) {
            (false, _) => Multicast::Flooded,
            (true, false) => Multicast::Snooped,
            (true, true) => Multicast::Queried,
        }
    }

    /// Who answers questions for endpoints.
    pub const fn suppression(self) -> Suppression {
        match self.arp_suppression {
            true => Suppression::On,
            false => Suppression::Off,
        }
    }
}

/// What a request says of a network's floods; what it does not name stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodChange {
    /// As [`FloodSettings::mcast_snooping`].
    pub mcast_snooping: Option<bool>,
    /// As [`FloodSettings::mcast_querier`].
    pub mcast_querier: Option<bool>,
    /// As [`FloodSettings::arp_suppression`].
    pub arp_suppression: Option<bool>,
}

impl FloodChange {
    /// The settings after the request.
    pub fn over(self, before: FloodSettings) -> FloodSettings {
        FloodSettings {
            mcast_snooping: self.mcast_snooping.unwrap_or(before.mcast_snooping),
            mcast_querier: self.mcast_querier.unwrap_or(before.mcast_querier),
            arp_suppression: self.arp_suppression.unwrap_or(before.arp_suppression),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_snoops_without_asking_unless_told_otherwise() {
        let usual = FloodSettings::default();
        assert_eq!(usual.multicast(), Multicast::Snooped);
        let change = |mcast_snooping, mcast_querier| FloodChange {
            mcast_snooping,
            mcast_querier,
            arp_suppression: None,
        };
        let queried = change(None, Some(true)).over(usual);
        assert_eq!(queried.multicast(), Multicast::Queried);
        let flooded = change(Some(false), None).over(queried);
        assert_eq!(flooded.multicast(), Multicast::Flooded);
        assert!(flooded.mcast_querier, "kept for when it is on again");
    }
}
