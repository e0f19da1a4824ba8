//! Who claims which address: the sender of an ARP message, the target of a neighbour advertisement.
//!
//! An address of the endpoint table that is claimed by another MAC is a duplicate, by mistake or by
//! intent: the control plane is told, and says who has it. Looked at are frames to groups, as
//! questions and announcements are, and what port security refuses.

use std::net::{IpAddr, Ipv6Addr};

use crate::addr::{DomainId, MacAddr, PortId};
use crate::frame::Frame;
use crate::headers::{Headers, L3, L4Kind, array_at, protocol};
use crate::topology::Domain;

/// Neighbour advertisement (RFC 4861 section 4.4), and where its target stands.
const ND_ADVERTISEMENT: u8 = 136;
const ND_TARGET_AT: usize = 8;
/// Hop limit of neighbour discovery, which proves that no router was crossed.
const ND_HOP_LIMIT: u8 = 255;

/// Claims that wait to be told; who has an address repeats himself.
const CLAIMS_MAX: usize = 16;

/// An address is claimed by a MAC that may not be its endpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where it is claimed.
    pub domain: DomainId,
    /// The port that the claim came by.
    pub port: PortId,
    /// The address.
    pub address: IpAddr,
    /// The MAC that it is to have.
    pub mac: MacAddr,
}

/// What one worker has heard claimed and not told yet.
#[derive(Debug)]
pub struct Claims {
    waiting: Vec<Claim>,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            waiting: Vec::with_capacity(CLAIMS_MAX),
        }
    }
}

impl Claims {
    /// The next claim that was not told yet, the latest first.
    pub fn take(&mut self) -> Option<Claim> {
        self.waiting.pop()
    }

    /// Takes note of a frame to a group that claims what the endpoint table has as another's.
    // Apart, so that a frame to one station carries none of it along.
    #[inline(never)]
    pub(super) fn hear(&mut self, domain: &Domain, headers: &Headers, frame: &Frame<'_>) {
        let Some((address, mac)) = claimed(headers, frame.bytes()) else {
            return;
        };
        let gateway = domain.gateway.as_ref().filter(|own| own.owns(address));
        let owner = gateway.map(|gateway| gateway.mac);
        let owner = owner.or_else(|| domain.neighbours.get(&address).map(|known| known.mac));
        if owner.is_some_and(|owner| owner != mac) {
            self.claim(domain.id, frame.ingress, address, mac);
        }
    }

    /// Takes note of a frame that port security has refused: whose the address is, and whether
    /// anybody's, is for the control plane to find out.
    pub(super) fn refused(&mut self, domain: DomainId, headers: &Headers, frame: &Frame<'_>) {
        if let Some((address, mac)) = claimed(headers, frame.bytes()) {
            self.claim(domain, frame.ingress, address, mac);
        }
    }

    fn claim(&mut self, domain: DomainId, port: PortId, address: IpAddr, mac: MacAddr) {
        let claim = Claim {
            domain,
            port,
            address,
            mac,
        };
        if self.waiting.len() < CLAIMS_MAX && !self.waiting.contains(&claim) {
            self.waiting.push(claim);
        }
    }
}

/// The address that a frame claims, and the MAC that it is to have.
fn claimed(headers: &Headers, bytes: &[u8]) -> Option<(IpAddr, MacAddr)> {
    match headers.l3 {
        Ok(L3::Arp(arp)) if !arp.sender.is_unspecified() => {
            Some((arp.sender.into(), arp.sender_mac))
        }
        Ok(L3::Ip(ip)) if ip.protocol == protocol::ICMPV6 && ip.ttl == ND_HOP_LIMIT => {
            let l4 = headers.l4.ok()?;
            let advertisement = L4Kind::IcmpOther {
                icmp_type: ND_ADVERTISEMENT,
            };
            let target: [u8; 16] = array_at(bytes, l4.offset + ND_TARGET_AT)?;
            let target = Ipv6Addr::from(target);
            (l4.kind == advertisement).then_some((target.into(), headers.src))
        }
        Ok(_) | Err(_) => None,
    }
}
