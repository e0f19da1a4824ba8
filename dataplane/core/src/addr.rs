//! Addresses and identifiers: one newtype per meaning, so that a switch port can never be
//! mistaken for a TCP port.

use core::fmt;
use core::str::FromStr;
use std::net::IpAddr;

/// A 48-bit IEEE 802 MAC address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`, every station.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, never a valid source.
    pub const ZERO: Self = Self([0; 6]);

    /// `01:80:c2:00:00:00`, which bridge protocol data units are sent to (IEEE 802.1Q-2018 table 8-1).
    pub const BRIDGE_GROUP: Self = Self([0x01, 0x80, 0xc2, 0, 0, 0]);

    /// The group bit (IEEE 802-2014 clause 8.2.2): set for multicast and broadcast.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// All 48 bits set.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// `01:80:c2:00:00:00`-`0f`: the addresses that a bridge never forwards
    /// (IEEE 802.1Q-2018 table 8-1).
    #[inline]
    pub const fn is_link_local_group(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a == 0x01 && b == 0x80 && c == 0xc2 && d == 0 && e == 0 && f < 0x10
    }

    /// The 48 bits as the low part of a `u64`, first octet highest.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        // Two words, as the compiler loads them; joined as eight bytes they are shuffled one by one.
        let [a, b, c, d, e, f] = self.0;
        let (high, low) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]));
        (high as u64) << 16 | low as u64
    }

    /// The inverse of [`MacAddr::to_u64`]; the upper 16 bits are ignored.
    #[inline]
    pub const fn from_u64(bits: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        Self([a, b, c, d, e, f])
    }

    /// The locally administered address that docker0 gives an IPv4 address: `02:42:` + the octets.
    pub const fn from_ipv4(address: std::net::Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The modified EUI-64 link-local address of this MAC (RFC 4291 appendix A).
    pub const fn link_local_v6(self) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        std::net::Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            u16::from_be_bytes([a ^ 0x02, b]),
            u16::from_be_bytes([c, 0xff]),
            u16::from_be_bytes([0xfe, d]),
            u16::from_be_bytes([e, f]),
        )
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not six colon-separated hexadecimal octets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address; write six hexadecimal octets, such as 02:42:ac:11:00:02")]
pub struct MacAddrError(pub String);

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| (1..=2).contains(&part.len()) && !part.starts_with('+'))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| MacAddrError(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(MacAddrError(text.to_owned())),
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u16);

        impl $name {
            /// The id as an index into the table of its kind.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A switch attachment: one TAP, veth end, NIC or memory port. Not a TCP or UDP port.
    PortId,
    "port"
);
id!(
    /// A bridge domain: one learning, flooding L2 segment. One per network.
    DomainId,
    "domain"
);
id!(
    /// An external interface that routed traffic leaves by, as an index into the topology.
    UplinkId,
    "uplink"
);
id!(
    /// An IEEE 802.1Q VLAN identifier, 0..=4095; 0 is "untagged" in a VLAN-transparent domain.
    VlanId,
    "vlan"
);

/// A TCP or UDP port, or an ICMP query identifier, which plays its part in NAT (RFC 5508).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct L4Port(pub u16);

impl L4Port {
    /// Where DNS is asked (RFC 1035 section 4.2).
    pub const DNS: Self = Self(53);
}

impl fmt::Display for L4Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for L4Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One side of a transport flow: an IP address and a transport port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct L4Addr {
    /// The IPv4 or IPv6 address.
    pub ip: IpAddr,
    /// The TCP or UDP port, or the ICMP identifier.
    pub l4_port: L4Port,
}

impl L4Addr {
    /// Joins an address and a port.
    pub const fn new(ip: IpAddr, l4_port: u16) -> Self {
        Self {
            ip,
            l4_port: L4Port(l4_port),
        }
    }
}

impl fmt::Display for L4Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.l4_port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.l4_port),
        }
    }
}

impl fmt::Debug for L4Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP prefix: an address with the number of leading bits that count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Any address of the prefix.
    pub address: IpAddr,
    /// Leading bits that must match: 0..=32 for IPv4, 0..=128 for IPv6.
    pub len: u8,
}

impl Prefix {
    /// Joins an address and a length; a length beyond the family's width acts as the width.
    pub const fn new(address: IpAddr, len: u8) -> Self {
        Self { address, len }
    }

    /// Whether `address` is of the same family and inside this prefix.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differ = own.to_bits() ^ other.to_bits();
                differ.leading_zeros() >= u32::from(self.len.min(32))
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differ = own.to_bits() ^ other.to_bits();
                differ.leading_zeros() >= u32::from(self.len.min(128))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// The IPv4 directed-broadcast address of the prefix; `None` for IPv6 and for /31 and /32.
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(own) if self.len < 31 => {
                Some(IpAddr::V4((own.to_bits() | (u32::MAX >> self.len)).into()))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips_and_bad_text_is_named() {
        let mac: MacAddr = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "02:42",
            "02:42:ac:11:00:zz",
            "02:42:ac:11:00:02:03",
            "+2:42:ac:11:00:2",
        ] {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacAddrError(bad.to_owned())));
        }
    }

    #[test]
    fn link_local_groups_are_the_sixteen_of_802_1q() {
        for last in 0..=255u8 {
            let mac = MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
            assert_eq!(mac.is_link_local_group(), last < 0x10, "{mac}");
        }
        assert!(!MacAddr([0x01, 0x80, 0xc3, 0, 0, 0]).is_link_local_group());
    }

    #[test]
    fn eui64_flips_the_universal_bit() {
        let mac: MacAddr = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(mac.link_local_v6().to_string(), "fe80::42:acff:fe11:2");
    }

    #[test]
    fn a_prefix_contains_its_own_and_no_other_family() {
        let p = Prefix::new("10.1.0.0".parse().unwrap(), 16);
        assert!(p.contains("10.1.255.255".parse().unwrap()));
        assert!(!p.contains("10.2.0.0".parse().unwrap()));
        assert!(!p.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert_eq!(p.broadcast(), Some("10.1.255.255".parse().unwrap()));
        assert!(Prefix::new("::".parse().unwrap(), 0).contains("fe80::1".parse().unwrap()));
        assert!(Prefix::new("0.0.0.0".parse().unwrap(), 0).contains("9.9.9.9".parse().unwrap()));
    }
}
