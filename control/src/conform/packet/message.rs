//! ICMP messages by what they say: each family has numbers of its own (RFC 792, RFC 4443).

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// For people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bytes of its header, without options and extensions.
    pub const fn header_size(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Least MTU of its links (RFC 791, RFC 8200 section 5).
    pub const fn mtu_min(self) -> u32 {
        match self {
            Self::V4 => 68,
            Self::V6 => 1_280,
        }
    }

    /// The protocol number of its ICMP.
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What an ICMP message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A ping.
    EchoRequest,
    /// Its answer.
    EchoReply,
    /// The host cannot be reached.
    HostUnreachable,
    /// The host does not know the protocol.
    ProtocolUnreachable,
    /// Nobody is at the port.
    PortUnreachable,
    /// A filter has refused the packet.
    Prohibited,
    /// The packet exceeds the MTU of the way.
    TooBig,
    /// The packet has passed too many routers.
    TimeExceeded,
    /// One that no probe sends and no NAT makes.
    Rare,
    /// Another of these.
    Rarer,
}

impl Message {
    /// Type and code.
    pub const fn kind(self, family: Family) -> (u8, u8) {
        match family {
            Family::V4 => match self {
                Self::EchoRequest => (8, 0),
                Self::EchoReply => (0, 0),
                Self::HostUnreachable => (3, 1),
                Self::ProtocolUnreachable => (3, 2),
                Self::PortUnreachable => (3, 3),
                Self::Prohibited => (3, 13),
                Self::TooBig => (3, 4),
                Self::TimeExceeded => (11, 0),
                Self::Rare => (3, 6),
                Self::Rarer => (3, 7),
            },
            Family::V6 => match self {
                Self::EchoRequest => (128, 0),
                Self::EchoReply => (129, 0),
                Self::HostUnreachable => (1, 3),
                Self::ProtocolUnreachable => (4, 1),
                Self::PortUnreachable => (1, 4),
                Self::Prohibited => (1, 1),
                Self::TooBig => (2, 0),
                Self::TimeExceeded => (3, 0),
                Self::Rare => (1, 5),
                Self::Rarer => (1, 6),
            },
        }
    }

    /// The second half of the header of [`Message::TooBig`]; the same in both families, for an MTU of
    /// 16 bits.
    pub const fn mtu_field(mtu: u16) -> [u8; 4] {
        let [high, low] = mtu.to_be_bytes();
        [0, 0, high, low]
    }
}
