//! Mirrors that commands set.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use dataplane_core::addr::PortId;
use dataplane_core::l2::{Mirror, MirrorDirection};
use dataplane_core::topology::UPLINKS_MAX;

use super::{ENDPOINT_PORT_FIRST, Name, UPLINK_PORT_FIRST};

/// The port of the first mirror to a file; the others follow. They are below the endpoints', where
/// no uplink can be.
pub const MIRROR_FILE_PORT_FIRST: u16 = UPLINK_PORT_FIRST + UPLINKS_MAX as u16;
/// Mirrors to files: each has a thread and a ring of several megabytes.
pub const MIRROR_FILES_MAX: u16 = 8;
const _: () = assert!(MIRROR_FILE_PORT_FIRST + MIRROR_FILES_MAX <= ENDPOINT_PORT_FIRST);

/// Bytes of a mirror's file when none are named.
pub const MIRROR_FILE_SIZE_DEFAULT: u64 = 1 << 30;
/// Bytes that a mirror's file may be limited to: two of the largest frames at least, and no more
/// than a tool will open.
pub const MIRROR_FILE_SIZES: RangeInclusive<u64> = 128 << 10..=1 << 40;
/// Files of a mirror when no number is named.
pub const MIRROR_FILES_KEPT_DEFAULT: u32 = 10;
/// Files that a mirror may keep. All of them are renamed when one is full.
pub const MIRROR_FILES_KEPT: RangeInclusive<u32> = 1..=1_000;

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

/// A mirror whose copies go to a file, by way of a port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFileSetting {
    /// What the dataplane does.
    pub mirror: Mirror,
    /// Where the copies end.
    pub target: FileTarget,
}

/// A file that is written, and those that it gives way to when it is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTarget {
    /// Absolute.
    pub path: PathBuf,
    /// Bytes of each.
    pub size_max: u64,
    /// Files kept, the one that is written among them.
    pub files_max: u32,
}

/// Mirrors to files, by name: no two mirrors of either kind have one name.
pub type MirrorFiles = BTreeMap<Name, MirrorFileSetting>;

/// Whether a port is that of a mirror to a file.
pub const fn is_mirror_file(port: PortId) -> bool {
    port.0 >= MIRROR_FILE_PORT_FIRST && port.0 < MIRROR_FILE_PORT_FIRST + MIRROR_FILES_MAX
}

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
