//! What the packets of an interface begin with.
//!
//! Tunnels such as tun and WireGuard carry IP without a link layer (`ARPHRD_NONE` of
//! linux/if_arp.h). The switch forwards Ethernet frames alone, so the port of such an interface
//! puts a header on what comes in and takes it off what goes out. Both ends of the invented link
//! have a MAC that is the same everywhere: nobody else ever sees it.

use dataplane_core::addr::MacAddr;
use dataplane_core::headers::ETHERNET_SIZE;

/// What the packets of an interface begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// IP itself.
    Ip,
}

impl Framing {
    /// The MAC of this host on an interface that has none; locally administered, "cwip" and 1.
    pub const OWN_MAC: MacAddr = MacAddr([0x02, b'c', b'w', b'i', b'p', 1]);
    /// The MAC of whoever is at the other end of an interface that has none.
    pub const PEER_MAC: MacAddr = MacAddr([0x02, b'c', b'w', b'i', b'p', 2]);

    /// Bytes of Ethernet header that the interface's packets lack.
    pub const fn lacking(self) -> usize {
        match self {
            Self::Ethernet => 0,
            Self::Ip => ETHERNET_SIZE,
        }
    }

    /// Bytes of header in front of IP, as the kernel's filters see a packet of the interface.
    pub const fn header_size(self) -> usize {
        ETHERNET_SIZE - self.lacking()
    }

    /// The header of a packet that has arrived without one.
    pub(crate) fn header(ethertype: u16) -> [u8; ETHERNET_SIZE] {
        let mut header = [0; ETHERNET_SIZE];
        header[..6].copy_from_slice(&Self::OWN_MAC.0);
        header[6..12].copy_from_slice(&Self::PEER_MAC.0);
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
        header
    }
}
