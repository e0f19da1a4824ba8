//! Network cards that are ports of a network, and what the host had on them before.

use dataplane_core::addr::PortId;

use crate::link::saved::SavedIp;

/// Whose the way out of a network is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Router {
    /// The switch's own gateway.
    #[default]
    Switch,
    /// One of the LAN behind a NIC, or none: the switch has no address in the network.
    Lan,
}

/// A NIC on a network. What the host had on it is written down before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSetting {
    /// The port by which the host itself is on the network, where it has moved there.
    pub host_port: Option<PortId>,
    /// Where addresses and routes are.
    pub stage: NicStage,
    /// Whether somebody has said that the host is still reachable.
    pub confirmation: Confirmation,
    /// For how many seconds the host does without a daemon, or an answer, before it gets its NIC back.
    pub within_seconds: u32,
    /// What was asked for: the network came with the NIC, and goes when that is undone.
    pub origin: NicOrigin,
    /// What the host had.
    pub before: NicBefore,
}

/// Where what the host had on a NIC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicStage {
    /// On its way: what was written down counts, and a crash puts it back.
    Moving,
    /// With the switch: on the host's port, where there is one.
    Held,
    /// On the NIC again, for no daemon came back; the next one takes it.
    Returned,
}

impl NicStage {
    /// Each.
    pub const ALL: [Self; 3] = [Self::Moving, Self::Held, Self::Returned];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Moving => "moving",
            Self::Held => "held",
            Self::Returned => "returned",
        }
    }
}

/// Whether a move was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It is undone unless it is confirmed by then, in milliseconds since 1970.
    Pending(u64),
    /// It was, or did not have to be.
    Done,
}

/// What brought a NIC to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicOrigin {
    /// The network's creation.
    Creation,
    /// A change of a network that was there.
    Change,
}

/// A NIC as the host had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicBefore {
    /// Which boot, namespace and interface: elsewhere it says nothing.
    pub place: String,
    /// Whether it was up.
    pub up: bool,
    /// How the kernel makes its link-local address; `None` without IPv6.
    pub addr_gen_mode: Option<u8>,
    /// What the card did by itself that is lost to AF_XDP, by the names that `ethtool -k` has for it.
    pub features: Vec<String>,
    /// Its addresses and routes.
    pub ip: SavedIp,
}
