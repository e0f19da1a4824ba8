//! The conformance suite on cables: what is tested has the near end, a packet socket the far one.

use dataplane_port::PortIo;
use dataplane_port::conformance::{PortPeer, Subject, check_all};
use dataplane_port::packet::PacketSocket;

use crate::common::ip;

/// Runs the suite on the ports that `open` opens by name, on cables of an MTU.
pub fn conforms<P: PortIo + 'static>(mtu: u16, open: impl Fn(&str) -> P) {
    let mut pair = 0;
    check_all(|| {
        // The pair of the check before may still be there.
        pair += 1;
        let (near, far) = (format!("a{pair}"), format!("b{pair}"));
        ip(&format!(
            "link add {near} mtu {mtu} type veth peer name {far} mtu {mtu}"
        ));
        ip(&format!("link set {near} up"));
        ip(&format!("link set {far} up"));
        let port = open(&near);
        let far_end = PacketSocket::open(&far).unwrap();
        let unplug = move || ip(&format!("link del {near}"));
        let peer = PortPeer::new(far_end, unplug);
        Subject::new(port, peer, usize::from(mtu) + 14)
    });
}
