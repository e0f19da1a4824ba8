//! Listeners to groups that commands set.

use std::net::IpAddr;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use dataplane_core::multicast::GroupKey;

/// A port that a command has set to listen to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MdbSetting {
    /// Its bridge domain.
    pub domain: DomainId,
    /// The VLAN, 0 where they do not count.
    pub vlan: VlanId,
    /// The group.
    pub group: IpAddr,
    /// The port.
    pub port: PortId,
}

impl MdbSetting {
    /// Where it is in the MDB.
    pub const fn key(&self) -> GroupKey {
        GroupKey {
            vlan: self.vlan,
            group: self.group,
        }
    }
}

/// Text that names no group which ports can be set to listen to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no group that listeners are kept of; give an IPv4 address from 224.0.1.0 to \
     239.255.255.255, or an IPv6 address of ff00::/8 other than ff02::1"
)]
pub struct GroupError(pub String);

/// Reads a group that frames are sent to its listeners of.
///
/// # Errors
/// [`GroupError`] for any other text, and for groups that every port gets.
pub fn group(text: &str) -> Result<IpAddr, GroupError> {
    let wrong = || GroupError(text.to_owned());
    let group: IpAddr = text.parse().map_err(|_| wrong())?;
    let vlan = VlanId(0);
    let kept = group.is_multicast() && !GroupKey { vlan, group }.is_always_flooded();
    kept.then_some(group).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_that_listeners_are_kept_of() {
        for text in [
            "224.0.1.0",
            "239.255.255.255",
            "ff00::",
            "ff02::2",
            "ff0e::1",
        ] {
            assert_eq!(group(text), Ok(text.parse().unwrap()));
        }
        for text in [
            "224.0.0.251",
            "192.0.2.1",
            "240.0.0.1",
            "ff02::1",
            "fe80::1",
            "all",
        ] {
            assert_eq!(group(text), Err(GroupError(text.to_owned())));
        }
    }
}
