//! How endpoints are connected.

use std::str::FromStr;

/// How an endpoint is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// A multi-queue TAP with offloads, moved into the sandbox.
    Tap,
    /// A TAP without offloads, by the `tun-tap` crate.
    TapPlain,
    /// A veth pair, its host end read by AF_PACKET.
    Packet,
    /// A veth pair, its host end read by AF_XDP.
    Xdp,
    /// A network card of the host, read by AF_PACKET.
    Nic,
    /// A network card of the host, read by AF_XDP.
    NicXdp,
    /// A TAP that stays with the host, for its own addresses on a NIC's network.
    Host,
}

impl Backend {
    /// Those that an attachment may ask for; the others come with a network's NIC.
    pub const ALL: [Self; 4] = [Self::Tap, Self::TapPlain, Self::Packet, Self::Xdp];
    /// Every backend.
    const EVERY: [Self; 7] = [
        Self::Tap,
        Self::TapPlain,
        Self::Packet,
        Self::Xdp,
        Self::Nic,
        Self::NicXdp,
        Self::Host,
    ];

    /// Whether the host has one end of a veth pair, and the sandbox the other.
    pub const fn is_veth(self) -> bool {
        match self {
            Self::Packet | Self::Xdp => true,
            Self::Tap | Self::TapPlain | Self::Nic | Self::NicXdp | Self::Host => false,
        }
    }

    /// Whether it is a network card of the host.
    pub const fn is_nic(self) -> bool {
        match self {
            Self::Nic | Self::NicXdp => true,
            Self::Tap | Self::TapPlain | Self::Packet | Self::Xdp | Self::Host => false,
        }
    }

    /// The word on the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::TapPlain => "tap-plain",
            Self::Packet => "packet",
            Self::Xdp => "xdp",
            Self::Nic => "nic",
            Self::NicXdp => "nic-xdp",
            Self::Host => "host",
        }
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        let of_label = |backend: &Self| backend.label() == text;
        Self::EVERY
            .into_iter()
            .find(of_label)
            .ok_or_else(|| BackendError(text.to_owned()))
    }
}

/// How a network card of the host is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicBackend {
    /// By AF_PACKET.
    #[default]
    Packet,
    /// By AF_XDP.
    Xdp,
}

impl NicBackend {
    /// As the backend of the card's port.
    pub const fn of_port(self) -> Backend {
        match self {
            Self::Packet => Backend::Nic,
            Self::Xdp => Backend::NicXdp,
        }
    }

    /// The word on the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Packet => Backend::Packet.label(),
            Self::Xdp => Backend::Xdp.label(),
        }
    }
}

impl FromStr for NicBackend {
    type Err = NicBackendError;

    fn from_str(text: &str) -> Result<Self, NicBackendError> {
        let mut all = [Self::Packet, Self::Xdp].into_iter();
        let found = all.find(|backend| backend.label() == text);
        found.ok_or_else(|| NicBackendError(text.to_owned()))
    }
}

/// Text that names no backend of a network card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no backend of a network card; choose packet or xdp")]
pub struct NicBackendError(pub String);

/// What an endpoint is for, where its backend is the daemon's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Large and small frames, as most have.
    Mixed,
    /// Many small frames.
    SmallFrames,
}

/// What is asked for of an endpoint's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendAsked {
    /// This one.
    Named(Backend),
    /// The best for a purpose that works here.
    Auto(Purpose),
}

impl BackendAsked {
    /// The word on the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Named(backend) => backend.label(),
            Self::Auto(Purpose::Mixed) => "auto",
            Self::Auto(Purpose::SmallFrames) => "auto-small",
        }
    }
}

impl FromStr for BackendAsked {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        match text {
            "auto" => Ok(Self::Auto(Purpose::Mixed)),
            "auto-small" => Ok(Self::Auto(Purpose::SmallFrames)),
            _ => text.parse().map(Self::Named),
        }
    }
}

/// That an endpoint's backend was the daemon's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendChoice {
    /// What the endpoint is for.
    pub purpose: Purpose,
    /// Why it has the backend that it has.
    pub why: String,
}

/// Text that names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no backend; choose auto, auto-small, tap, tap-plain, packet or xdp")]
pub struct BackendError(pub String);
