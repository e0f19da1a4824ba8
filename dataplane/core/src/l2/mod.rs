//! Admission of frames into a bridge domain.

use crate::addr::{MacAddr, VlanId};
use crate::headers::Headers;
use crate::topology::{Port, Role};
use crate::verdict::DropReason;

/// The VLAN of every frame in a domain that is transparent to tags.
const TRANSPARENT: VlanId = VlanId(0);

/// Decides whether a frame may enter its domain, and in which VLAN. Frames of the host link and
/// of uplinks enter no domain and pass.
///
/// # Errors
/// `SourceGroup`, `SourceZero`: no station can have such an address, and learning it would send
/// other stations' frames astray. `LinkLocalGroup`: IEEE 802.1Q-2018 clause 8.6.3.
#[inline]
pub fn admit(port: &Port, headers: &Headers) -> Result<VlanId, DropReason> {
    if !matches!(port.role, Role::Bridge(_)) {
        return Ok(TRANSPARENT);
    }
    if headers.src.is_group() {
        return Err(DropReason::SourceGroup);
    }
    if headers.src == MacAddr::ZERO {
        return Err(DropReason::SourceZero);
    }
    if headers.dst.is_link_local_group() {
        return Err(DropReason::LinkLocalGroup);
    }
    Ok(TRANSPARENT)
}
