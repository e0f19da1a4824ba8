//! What is ours on an interface that we share with the host: one declaration, three readers.
//!
//! [`GuardSpec::classify`] says it in Rust, [`GuardSpec::guard_program`] to the kernel's ingress,
//! [`GuardSpec::socket_filter`] to our packet socket. The tests hold the three to one answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane_core::addr::{L4Port, Prefix};
use dataplane_core::headers::{ETHERNET_SIZE, ethertype, protocol};

use crate::Framing;

/// IPv6 extension headers that are looked through for L4: every kind that a fragmented packet
/// usually has. A longer chain is the host's. It is not more, because the loop is unrolled.
pub const EXTENSIONS_MAX: usize = 4;

/// ICMP and ICMPv6 types that answer something we may have sent: echo reply and the errors
/// (RFC 792, RFC 4443). Both stacks get them.
pub(super) const ICMP_SHARED: [u8; 4] = [0, 3, 11, 12];
pub(super) const ICMPV6_SHARED: [u8; 5] = [129, 1, 2, 3, 4];

/// What is ours of the packets that arrive by an interface which the host uses as well.
///
/// The default is that nothing is, and that every address is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSpec {
    /// What the interface's packets begin with.
    pub framing: Framing,
    /// Addresses of the host that NAT translates to. Empty means every address.
    pub addresses: Vec<IpAddr>,
    /// Ports at the host's addresses that are ours.
    pub ports: Vec<GuardPorts>,
    /// Prefixes that are ours as a whole, whatever the protocol.
    pub prefixes: Vec<Prefix>,
}

/// A range of ports that are ours: the NAT's own range, or a published one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardPorts {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address that they are ours at; `None` means all [`GuardSpec::addresses`].
    pub destination: Option<IpAddr>,
    /// First port.
    pub first: L4Port,
    /// Last port, inclusive.
    pub last: L4Port,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The IANA protocol number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }
}

/// Whose a received frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub enum Owner {
    /// The host's alone: we do not see it.
    Host,
    /// Possibly ours, and harmless to the host: both see it. Echo replies, ICMP errors, and the
    /// later fragments of any datagram, whose ports nobody can see.
    Both,
    /// Ours alone: the host must not answer it.
    Ours,
}

/// IP versions, which have filters of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Ranges of one transport, by destination; sorted, merged and never empty.
pub(super) type RangesByDestination = BTreeMap<Option<IpAddr>, Vec<(u16, u16)>>;

impl GuardSpec {
    /// Whose a frame is that is addressed to this station, or to a group; of an interface without
    /// link headers, the frame that its port makes of a packet. This is the meaning of the two
    /// programs: a frame that ends before something that is needed is the host's, and so
    /// is every tagged one.
    pub fn classify(&self, frame: &[u8]) -> Owner {
        self.classify_untagged(frame).unwrap_or(Owner::Host)
    }

    fn classify_untagged(&self, frame: &[u8]) -> Option<Owner> {
        match u16_at(frame, 12)? {
            ethertype::IPV4 => self.classify_v4(frame),
            ethertype::IPV6 => self.classify_v6(frame),
            _ => Some(Owner::Host),
        }
    }

    fn classify_v4(&self, frame: &[u8]) -> Option<Owner> {
        const L3: usize = ETHERNET_SIZE;
        let version_and_length = *frame.get(L3)?;
        if version_and_length >> 4 != 4 || version_and_length & 0x0f < 5 {
            return Some(Owner::Host);
        }
        let dst = IpAddr::from(*frame.get(L3 + 16..)?.first_chunk::<4>()?);
        if self.prefixes.iter().any(|prefix| prefix.contains(dst)) {
            return Some(Owner::Ours);
        }
        if !self.knows(dst) {
            return Some(Owner::Host);
        }
        let next = *frame.get(L3 + 9)?;
        if u16_at(frame, L3 + 6)? & 0x1fff != 0 {
            return Some(later_fragment(next, protocol::ICMP));
        }
        let l4 = L3 + usize::from(version_and_length & 0x0f) * 4;
        self.classify_l4(frame, dst, next, l4)
    }

    fn classify_v6(&self, frame: &[u8]) -> Option<Owner> {
        const L3: usize = ETHERNET_SIZE;
        if *frame.get(L3)? >> 4 != 6 {
            return Some(Owner::Host);
        }
        let dst = IpAddr::from(*frame.get(L3 + 24..)?.first_chunk::<16>()?);
        if self.prefixes.iter().any(|prefix| prefix.contains(dst)) {
            return Some(Owner::Ours);
        }
        if !self.knows(dst) {
            return Some(Owner::Host);
        }
        let mut next = *frame.get(L3 + 6)?;
        let mut at = L3 + 40;
        for _ in 0..EXTENSIONS_MAX {
            match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    next = *frame.get(at)?;
                    at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
                }
                protocol::FRAGMENT => {
                    let later = u16_at(frame, at + 2)? & 0xfff8 != 0;
                    next = *frame.get(at)?;
                    if later {
                        return Some(later_fragment(next, protocol::ICMPV6));
                    }
                    at += 8;
                }
                _ => break,
            }
        }
        self.classify_l4(frame, dst, next, at)
    }

    fn classify_l4(&self, frame: &[u8], dst: IpAddr, next: u8, l4: usize) -> Option<Owner> {
        let shared: &[u8] = match (next, Family::of(dst)) {
            (protocol::ICMP, Family::V4) => &ICMP_SHARED,
            (protocol::ICMPV6, Family::V6) => &ICMPV6_SHARED,
            _ => {
                let transport = Transport::ALL.into_iter().find(|t| t.protocol() == next);
                let Some(transport) = transport else {
                    return Some(Owner::Host);
                };
                let port = u16_at(frame, l4 + 2)?;
                let ours = self.ports.iter().any(|range| {
                    range.transport == transport
                        && (range.first.0..=range.last.0).contains(&port)
                        && range.destination.map_or(self.shares(dst), |own| own == dst)
                });
                return Some(if ours { Owner::Ours } else { Owner::Host });
            }
        };
        let answers = shared.contains(frame.get(l4)?);
        Some(if answers { Owner::Both } else { Owner::Host })
    }

    /// Whether `dst` is one of the addresses that NAT translates to.
    fn shares(&self, dst: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.contains(&dst)
    }

    /// Whether anything at `dst` can be ours.
    fn knows(&self, dst: IpAddr) -> bool {
        self.shares(dst) || self.ports.iter().any(|p| p.destination == Some(dst))
    }

    /// The ranges of one transport that can match packets of one family.
    pub(super) fn ranges(&self, transport: Transport, family: Family) -> RangesByDestination {
        let mut ranges = RangesByDestination::new();
        for range in &self.ports {
            let fits = range.transport == transport
                && range.first <= range.last
                && range
                    .destination
                    .is_none_or(|dst| Family::of(dst) == family);
            if fits {
                let same = ranges.entry(range.destination).or_default();
                same.push((range.first.0, range.last.0));
            }
        }
        for same in ranges.values_mut() {
            merge(same);
        }
        ranges
    }
}

/// A fragment without ports: anybody's, if it can be of a kind that is ours at all.
fn later_fragment(next: u8, icmp: u8) -> Owner {
    if next == icmp || Transport::ALL.iter().any(|t| t.protocol() == next) {
        return Owner::Both;
    }
    Owner::Host
}

/// Sorts ranges and joins those that overlap or touch.
fn merge(ranges: &mut Vec<(u16, u16)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let joined = u32::from(next.0) <= u32::from(kept.1) + 1;
        if joined {
            kept.1 = kept.1.max(next.1);
        }
        joined
    });
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    frame
        .get(at..)?
        .first_chunk()
        .map(|&two| u16::from_be_bytes(two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_joined() {
        let mut ranges = vec![
            (80, 80),
            (443, 443),
            (81, 90),
            (85, 88),
            (92, 92),
            (65_535, 65_535),
        ];
        merge(&mut ranges);
        assert_eq!(ranges, [(80, 90), (92, 92), (443, 443), (65_535, 65_535)]);
    }

    #[test]
    fn reversed_range_and_other_family_match_nothing() {
        let range = |destination, first, last| GuardPorts {
            transport: Transport::Tcp,
            destination,
            first: L4Port(first),
            last: L4Port(last),
        };
        let spec = GuardSpec {
            ports: vec![
                range(None, 90, 80),
                range(Some("2001:db8::1".parse().unwrap()), 1, 2),
                range(None, 5, 6),
            ],
            ..GuardSpec::default()
        };
        let v4 = spec.ranges(Transport::Tcp, Family::V4);
        assert_eq!(v4.into_iter().collect::<Vec<_>>(), [(None, vec![(5, 6)])]);
        assert!(spec.ranges(Transport::Udp, Family::V6).is_empty());
    }
}
