//! Mirrors that commands set.

use std::collections::BTreeMap;

use dataplane_core::addr::PortId;
use dataplane_core::l2::{Mirror, MirrorDirection};

use super::Name;

/// A mirror: what is copied to which endpoint's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorSetting {
    /// What the dataplane does.
    pub mirror: Mirror,
    /// What the port is besides.
    pub ingress: MirrorIngress,
}

/// What becomes of frames that enter by the port of a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MirrorIngress {
    /// They end; the port shows copies and nothing else.
    #[default]
    Closed,
    /// They are forwarded: the port is an ordinary one of its network as well.
    Open,
}

/// Mirrors by name.
pub type Mirrors = BTreeMap<Name, MirrorSetting>;

/// Whether a port shows the copies of a mirror and nothing else.
pub fn only_shows(mirrors: &Mirrors, port: PortId) -> bool {
    let closed = |setting: &MirrorSetting| setting.ingress == MirrorIngress::Closed;
    let mut mirrors = mirrors.values();
    mirrors.any(|setting| setting.mirror.to == port && closed(setting))
}

/// Text that names no direction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no direction; choose in, out or both, seen from the switch")]
pub struct MirrorDirectionError(pub String);

/// Reads the word for a direction.
///
/// # Errors
/// [`MirrorDirectionError`] for any other text.
pub fn mirror_direction(text: &str) -> Result<MirrorDirection, MirrorDirectionError> {
    let of_label = |direction: &MirrorDirection| direction.label() == text;
    let mut all = MirrorDirection::ALL.into_iter();
    all.find(of_label)
        .ok_or_else(|| MirrorDirectionError(text.to_owned()))
}
