//! The network of what is measured in memory: one bridge domain, its ports and stations.

use dataplane_core::addr::{DomainId, MacAddr, PortId};
use dataplane_core::topology::{Port, Role};

/// The only bridge domain.
pub const NETWORK: DomainId = DomainId(1);
/// The port that frames come by.
pub const SOURCE: PortId = PortId(1);
/// The port of whom they are for.
pub const SINK: PortId = PortId(2);
/// The largest packet, in bytes.
pub const MTU: u16 = 1_500;

/// A station's MAC.
pub const fn station(n: usize) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | (n as u64 + 1))
}

/// A port that is up, named by its id.
pub fn port(id: PortId, role: Role) -> Port {
    Port {
        mtu: MTU,
        ..Port::new(id, &id.to_string(), role)
    }
}
