//! FDB entries that commands set.

use dataplane_core::addr::{DomainId, MacAddr, PortId, VlanId};
use dataplane_core::fdb::FdbKind;

/// Where an FDB entry is: its domain, its VLAN, 0 where they do not count, and its station.
pub type FdbPlace = (DomainId, VlanId, MacAddr);

/// An FDB entry that a command has set for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbSetting {
    /// The station's port.
    pub port: PortId,
    /// Static or local.
    pub kind: FdbKind,
}

/// Text that names no kind of FDB entry that can be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no state that an FDB entry can be set to; choose static, sticky or local")]
pub struct FdbKindError(pub String);

/// Reads the word for a kind of FDB entry.
///
/// # Errors
/// [`FdbKindError`] for any other text.
pub fn fdb_kind(text: &str) -> Result<FdbKind, FdbKindError> {
    let of_label = |kind: &FdbKind| kind.label() == text;
    FdbKind::ALL
        .into_iter()
        .find(of_label)
        .ok_or_else(|| FdbKindError(text.to_owned()))
}
