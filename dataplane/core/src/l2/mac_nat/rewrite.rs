//! The MACs in a frame besides those of its Ethernet header: in ARP, in neighbour discovery, and in
//! DHCP the flag that asks for an answer to everybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Untranslatable;
use crate::addr::MacAddr;
use crate::checksum::{Change, L4Checksum, update_l4};
use crate::frame::FrameBuf;
use crate::headers::{HeaderError, Headers, Ip, L4, L4Kind, array_at, protocol};
use crate::multicast::group_mac;

/// Hardware addresses of an ARP message (RFC 826).
const ARP_SENDER_AT: usize = 8;
const ARP_TARGET_AT: usize = 18;

/// The messages of neighbour discovery (RFC 4861 section 4), by ICMPv6 type.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Where an advertisement's and a redirect's target stands.
const ND_TARGET_AT: usize = 8;
/// Link-layer addresses: of the sender, of the target (RFC 4861 section 4.6.1).
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
/// An option that receivers ignore (RFC 4727 section 6; RFC 4861 section 4.6).
const OPTION_IGNORED: u8 = 253;
/// Options are so many bytes, or a multiple.
const OPTION_UNIT: usize = 8;
/// Options that are looked through; a message of the usual MTU has no room for more.
const OPTIONS_MAX: usize = 187;

/// DHCP (RFC 2131): its ports, and where in a message what stands.
const DHCP_CLIENT: u16 = 68;
const DHCP_SERVER: u16 = 67;
const UDP_SIZE: usize = 8;
const BOOTREQUEST: u8 = 1;
const DHCP_FLAGS_AT: usize = 10;
const DHCP_BROADCAST: u16 = 0x8000;
const DHCP_RELAY_AT: usize = 24;

/// Writes the MACs of an Ethernet header, where one is given.
pub(super) fn ethernet(buf: &mut FrameBuf, dst: Option<MacAddr>, src: Option<MacAddr>) {
    for (at, mac) in [(0, dst), (6, src)] {
        if let Some(mac) = mac {
            put(buf, at, mac);
        }
    }
}

fn put(buf: &mut FrameBuf, at: usize, mac: MacAddr) {
    if let Some(field) = buf.bytes_mut().get_mut(at..at + 6) {
        field.copy_from_slice(&mac.0);
    }
}

/// Gives an ARP message that leaves another sender, and another target where the two were one, as in
/// some announcements.
pub(super) fn arp_sender(buf: &mut FrameBuf, headers: &Headers, sender: MacAddr, new: MacAddr) {
    put(buf, headers.l3_offset + ARP_SENDER_AT, new);
    let at = headers.l3_offset + ARP_TARGET_AT;
    let target = array_at(buf.bytes(), at).map(MacAddr);
    if target.is_some_and(|target| target == sender || target == headers.src) {
        put(buf, at, new);
    }
}

/// Gives an ARP message that has entered another target, where it was `old`.
pub(super) fn arp_target(buf: &mut FrameBuf, headers: &Headers, old: MacAddr, new: MacAddr) {
    let at = headers.l3_offset + ARP_TARGET_AT;
    if array_at(buf.bytes(), at) == Some(old.0) {
        put(buf, at, new);
    }
}

/// A message of neighbour discovery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbours {
    l4: L4,
    icmp_type: u8,
    /// Where its options begin and where the packet ends.
    options: (usize, usize),
}

/// One option of it that is a link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LinkLayer {
    at: usize,
    kind: u8,
    mac: MacAddr,
}

impl Neighbours {
    /// The message that a packet is, if it is one.
    ///
    /// # Errors
    /// [`Untranslatable::Unreadable`] where it may be one: its header is behind extension headers that
    /// cannot be followed, or it is a fragment (which RFC 6980 forbids).
    pub fn read(headers: &Headers, ip: &Ip) -> Result<Option<Self>, Untranslatable> {
        let later = headers.l4 == Err(HeaderError::LaterFragment);
        let other = headers.l4.is_err() && !protocol::is_extension(ip.protocol);
        if ip.src.is_ipv4() || later || other {
            return Ok(None);
        }
        let l4 = headers.l4.map_err(|_| Untranslatable::Unreadable)?;
        let L4Kind::IcmpOther { icmp_type } = l4.kind else {
            return Ok(None);
        };
        let fixed = match icmp_type {
            ROUTER_SOLICITATION => 8,
            ROUTER_ADVERTISEMENT => 16,
            SOLICITATION | ADVERTISEMENT => 24,
            REDIRECT => 40,
            _ => return Ok(None),
        };
        if ip.protocol != protocol::ICMPV6 {
            return Ok(None);
        }
        if ip.fragment.is_some() {
            return Err(Untranslatable::Unreadable);
        }
        let end = headers.l3_offset + ip.total_size as usize;
        Ok(Some(Self {
            l4,
            icmp_type,
            options: (l4.offset + fixed, end),
        }))
    }

    /// The address that an advertisement announces.
    pub fn announced(&self, bytes: &[u8]) -> Option<Ipv6Addr> {
        (self.icmp_type == ADVERTISEMENT).then(|| self.target(bytes))?
    }

    /// The address that a redirect leads to.
    pub fn redirected(&self, bytes: &[u8]) -> Option<Ipv6Addr> {
        (self.icmp_type == REDIRECT).then(|| self.target(bytes))?
    }

    fn target(&self, bytes: &[u8]) -> Option<Ipv6Addr> {
        let target: Option<[u8; 16]> = array_at(bytes, self.l4.offset + ND_TARGET_AT);
        target.map(Ipv6Addr::from)
    }

    /// Whether it speaks of a link-layer address.
    pub fn names(&self, bytes: &[u8], mac: MacAddr) -> bool {
        let mut at = self.options.0;
        while let Ok(Some(option)) = self.next_link_layer(bytes, &mut at) {
            if option.mac == mac {
                return true;
            }
        }
        false
    }

    /// Gives a message that leaves another link-layer address.
    ///
    /// # Errors
    /// [`Untranslatable::Unreadable`], with the message half changed.
    pub fn leave(&self, buf: &mut FrameBuf, new: MacAddr) -> Result<(), Untranslatable> {
        self.replace(buf, |option| match (self.icmp_type, option.kind) {
            // The target may be outside, and have a MAC there: whoever is told asks for it himself.
            (REDIRECT, OPTION_TARGET) => (OPTION_IGNORED, MacAddr::ZERO),
            _ => (option.kind, new),
        })
    }

    /// Gives a message that has entered another link-layer address, where it was `old`.
    ///
    /// # Errors
    /// As [`Neighbours::leave`].
    pub fn enter(
        &self,
        buf: &mut FrameBuf,
        old: MacAddr,
        new: MacAddr,
    ) -> Result<(), Untranslatable> {
        self.replace(buf, |option| match option.mac == old {
            true => (option.kind, new),
            false => (option.kind, option.mac),
        })
    }

    fn replace(
        &self,
        buf: &mut FrameBuf,
        new: impl Fn(LinkLayer) -> (u8, MacAddr),
    ) -> Result<(), Untranslatable> {
        let mut at = self.options.0;
        while let Some(option) = self.next_link_layer(buf.bytes(), &mut at)? {
            let (kind, mac) = new(option);
            let old = words(buf.bytes(), option.at);
            if let Some(field) = buf.bytes_mut().get_mut(option.at..option.at + OPTION_UNIT) {
                field[0] = kind;
                field[2..].copy_from_slice(&mac.0);
            }
            let new = words(buf.bytes(), option.at);
            let pairs = old.into_iter().zip(new);
            let change = pairs.fold(Change::NONE, |sum, (old, new)| sum.word(old, new));
            // An option at a time, for a change has room for a few dozen words.
            self.fix(buf, change);
        }
        Ok(())
    }

    fn fix(&self, buf: &mut FrameBuf, change: Change) {
        let offload = buf.offload;
        let (at, kind) = (self.l4.offset, L4Checksum::Icmpv6);
        update_l4(buf.bytes_mut(), &offload, at, kind, Change::NONE, change);
    }

    /// The next link-layer address at or behind `at`, which moves behind it.
    fn next_link_layer(
        &self,
        bytes: &[u8],
        at: &mut usize,
    ) -> Result<Option<LinkLayer>, Untranslatable> {
        let end = self.options.1;
        for _ in 0..OPTIONS_MAX {
            if *at == end {
                return Ok(None);
            }
            let head: [u8; OPTION_UNIT] = match array_at(bytes, *at) {
                Some(head) if *at + OPTION_UNIT <= end => head,
                Some(_) | None => break,
            };
            let [kind, units, mac @ ..] = head;
            let start = *at;
            *at += usize::from(units) * OPTION_UNIT;
            match (kind, units) {
                (_, 0) => break,
                (OPTION_SOURCE | OPTION_TARGET, 1) => {
                    let (at, mac) = (start, MacAddr(mac));
                    return Ok(Some(LinkLayer { at, kind, mac }));
                }
                // Not of Ethernet, so nobody knows what is in it.
                (OPTION_SOURCE | OPTION_TARGET, _) => break,
                _ => {}
            }
        }
        Err(Untranslatable::Unreadable)
    }
}

/// The words of an option of one unit.
fn words(bytes: &[u8], at: usize) -> [u16; 4] {
    let unit: [u8; OPTION_UNIT] = array_at(bytes, at).unwrap_or_default();
    let [a, b, c, d, e, f, g, h] = unit;
    [[a, b], [c, d], [e, f], [g, h]].map(u16::from_be_bytes)
}

/// Asks a DHCP server to answer everybody, for the client's own MAC is unknown outside (RFC 2131
/// section 4.1). The answer is known by its transaction and by `chaddr`, which stays.
pub(super) fn dhcp_broadcast(buf: &mut FrameBuf, headers: &Headers, ip: &Ip) {
    let Ok(l4) = headers.l4 else {
        return;
    };
    let from_client = matches!(
        l4.kind,
        L4Kind::Udp { src, dst } if (src.0, dst.0) == (DHCP_CLIENT, DHCP_SERVER)
    );
    if !from_client || ip.src.is_ipv6() || buf.offload.gso().is_some() {
        return;
    }
    let message = l4.offset + UDP_SIZE;
    let bytes = buf.bytes();
    let request = bytes.get(message) == Some(&BOOTREQUEST);
    let relay: Option<[u8; 4]> = array_at(bytes, message + DHCP_RELAY_AT);
    let flags: Option<[u8; 2]> = array_at(bytes, message + DHCP_FLAGS_AT);
    let (Some(flags), Some([0, 0, 0, 0]), true) = (flags, relay, request) else {
        return;
    };
    let old = u16::from_be_bytes(flags);
    let new = old | DHCP_BROADCAST;
    if let Some(field) = buf.bytes_mut().get_mut(message + DHCP_FLAGS_AT..) {
        field[..2].copy_from_slice(&new.to_be_bytes());
    }
    let change = Change::NONE.word(old, new);
    let offload = buf.offload;
    let (at, kind) = (l4.offset, L4Checksum::Udp);
    update_l4(buf.bytes_mut(), &offload, at, kind, Change::NONE, change);
}

/// The MAC that frames to a group are sent to, for one that came to a station: access points send some
/// groups so.
pub(super) fn group(address: IpAddr) -> Option<MacAddr> {
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some(MacAddr::BROADCAST),
        group if group.is_multicast() => Some(group_mac(group)),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
