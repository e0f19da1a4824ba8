//! MAC-NAT: all that leaves by a port carries the port's own MAC, for a network that admits one MAC a
//! port, as an access point does a client (three-address frames, IEEE 802.11-2020 clause 9.3.2.1)
//! or a switch with port security does.
//!
//! # Theory of operation
//! *On the way out* ([`MacNat::leave`]), where a copy is fitted to its port, the port's MAC becomes the
//! frame's source and that of what it says in ARP and neighbour discovery, and a DHCP client asks for an
//! answer to everybody. The address that the frame is from is remembered with its station.
//!
//! *On the way in* (`MacNat::enter`), before anything is learned or looked up, a frame to the
//! port's MAC is given to the station that has the packet's destination: one that was heard, an
//! endpoint of the network, the gateway if the address is its own. What is for none of them goes to the
//! station inside whose MAC is the port's, such as the host when it shares the port, else to the
//! gateway as a router; without either it ends. A group that came to one station is a group again.
//!
//! What comes back is no news: a frame from the port's own MAC, as access points repeat what their
//! clients send to groups, and an ARP or ND message that has it for somebody's, as those that answer
//! for their clients send.
//!
//! Not translated: protocols that name a station by its MAC alone, so that they reach the port's
//! owner only; MACs in DHCP's `chaddr` and client identifiers, by which a server knows a client;
//! signed neighbour discovery (RFC 3971), whose signature does not outlive a change.
//!
//! Limits: those of the table ([`MacNatTable`]).

mod rewrite;
mod table;

use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{MacAddr, VlanId};
use crate::frame::{Frame, FrameBuf};
use crate::headers::{Arp, Headers, Ip, L3, ethertype};
use crate::time::Instant;
use crate::topology::{Domain, Port};
use crate::verdict::DropReason;

use super::PortFlags;
use rewrite::Neighbours;
pub use table::{
    Located, MAC_NAT_ADDRESSES_MAX, MAC_NAT_AGEING, MacNatEntry, MacNatTable, TableFull,
};

/// The one MAC of a port, and who is behind it.
#[derive(Clone, Debug)]
pub struct MacNat {
    /// The MAC that everything carries which leaves.
    pub mac: MacAddr,
    /// Who has which address inside; the same in one picture and the next.
    pub table: Arc<MacNatTable>,
}

/// The same MAC, and the same table.
impl PartialEq for MacNat {
    fn eq(&self, other: &Self) -> bool {
        self.mac == other.mac && Arc::ptr_eq(&self.table, &other.table)
    }
}

impl Eq for MacNat {}

/// Why a frame cannot leave under another MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untranslatable {
    /// Neither ARP nor IP, and for one station: its answer would find nobody.
    NotIp,
    /// What it says in ARP or ND cannot be read, so neither can it be rewritten.
    Unreadable,
    /// It is from a new address, and the table has no room.
    Full,
}

impl From<TableFull> for Untranslatable {
    fn from(TableFull: TableFull) -> Self {
        Self::Full
    }
}

impl MacNat {
    /// A port's MAC, with nobody behind it.
    pub fn new(mac: MacAddr, seed: u64) -> Self {
        let table = Arc::new(MacNatTable::new(seed));
        Self { mac, table }
    }

    /// Gives a frame the port's MAC, and takes note of who has sent it.
    ///
    /// # Errors
    /// [`Untranslatable`]; the frame is not to leave.
    pub fn leave(
        &self,
        port: &Port,
        domain: &Domain,
        buf: &mut FrameBuf,
        now: Instant,
    ) -> Result<(), Untranslatable> {
        let headers = Headers::parse(buf.bytes()).map_err(|_| Untranslatable::Unreadable)?;
        // What the gateway sends on is from everywhere; its own addresses are known.
        if !domain.gateway_has(headers.src) {
            self.hear(port, &headers, buf.bytes(), now)?;
        }
        self.rewrite_read(&headers, buf)
    }

    /// Gives a frame the port's MAC as [`MacNat::leave`] does, and takes note of nothing: for those who
    /// only want to see it.
    ///
    /// # Errors
    /// [`Untranslatable::NotIp`], [`Untranslatable::Unreadable`].
    pub fn rewrite(&self, buf: &mut FrameBuf) -> Result<(), Untranslatable> {
        let headers = Headers::parse(buf.bytes()).map_err(|_| Untranslatable::Unreadable)?;
        self.rewrite_read(&headers, buf)
    }

    fn rewrite_read(&self, headers: &Headers, buf: &mut FrameBuf) -> Result<(), Untranslatable> {
        let own = headers.src == self.mac;
        match (headers.l3, headers.ethertype) {
            (Ok(L3::Arp(arp)), _) => {
                rewrite::arp_sender(buf, headers, arp.sender_mac, self.mac);
            }
            (Ok(L3::Ip(ip)), _) => self.rewrite_ip(headers, &ip, buf)?,
            (Err(_), _) if own => {}
            (Err(_), ethertype::ARP | ethertype::IPV4 | ethertype::IPV6) => {
                return Err(Untranslatable::Unreadable);
            }
            (Err(_), _) if !headers.dst.is_group() => return Err(Untranslatable::NotIp),
            (Err(_), _) => {}
        }
        rewrite::ethernet(buf, None, Some(self.mac));
        Ok(())
    }

    fn rewrite_ip(
        &self,
        headers: &Headers,
        ip: &Ip,
        buf: &mut FrameBuf,
    ) -> Result<(), Untranslatable> {
        if let Some(neighbours) = Neighbours::read(headers, ip)? {
            return neighbours.leave(buf, self.mac);
        }
        if headers.src != self.mac {
            rewrite::dhcp_broadcast(buf, headers, ip);
        }
        Ok(())
    }

    /// Takes note of whom a frame is from.
    fn hear(
        &self,
        port: &Port,
        headers: &Headers,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), TableFull> {
        if headers.src == self.mac {
            self.table.hear_owner(now);
        }
        let vlan = vlan_back(port, headers);
        let hear = |address: IpAddr, mac| match is_station(address) {
            true => self.table.hear(Located { vlan, address }, mac, now),
            false => Ok(()),
        };
        match headers.l3 {
            Ok(L3::Arp(arp)) => hear(arp.sender.into(), sender(headers, &arp)),
            Ok(L3::Ip(ip)) => {
                hear(ip.src, headers.src)?;
                let neighbours = Neighbours::read(headers, &ip).ok().flatten();
                let announced = neighbours.and_then(|message| message.announced(bytes));
                announced.map_or(Ok(()), |address| hear(address.into(), headers.src))
            }
            Err(_) => Ok(()),
        }
    }

    /// Gives a frame that has entered to whom it is for.
    ///
    /// # Errors
    /// `MacNatEcho`, `MacNatNotIp`, `MacNatUnknown`.
    pub(super) fn enter(
        &self,
        port: &Port,
        domain: Option<&Domain>,
        headers: &mut Headers,
        frame: &mut Frame<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let inside = Inside {
            nat: self,
            port,
            domain,
            vlan: vlan_back(port, headers),
            now,
        };
        inside.check_news(headers, frame.buf)?;
        if headers.dst != self.mac {
            return Ok(());
        }
        let dst = match headers.l3 {
            Ok(L3::Arp(arp)) => {
                let taker = inside.taker(arp.target.into())?;
                rewrite::arp_target(frame.buf, headers, self.mac, taker);
                taker
            }
            Ok(L3::Ip(ip)) => match rewrite::group(ip.dst) {
                Some(group) => group,
                None => inside.taker(ip.dst)?,
            },
            Err(_) if self.table.has_owner(now) => self.mac,
            Err(_) => return Err(DropReason::MacNatNotIp),
        };
        rewrite::ethernet(frame.buf, Some(dst), None);
        headers.dst = dst;
        Ok(())
    }
}

/// What a frame that has entered is asked about.
struct Inside<'a> {
    nat: &'a MacNat,
    port: &'a Port,
    domain: Option<&'a Domain>,
    vlan: VlanId,
    now: Instant,
}

impl Inside<'_> {
    /// Refuses what comes back, and has a redirect name the station that it leads to.
    fn check_news(&self, headers: &Headers, buf: &mut FrameBuf) -> Result<(), DropReason> {
        let own = self.nat.mac;
        let echo = Err(DropReason::MacNatEcho);
        if headers.src == own {
            return echo;
        }
        let ip = match headers.l3 {
            Ok(L3::Arp(arp)) if arp.sender_mac == own => return echo,
            Ok(L3::Arp(_)) | Err(_) => return Ok(()),
            Ok(L3::Ip(ip)) => ip,
        };
        // What cannot be read is for its receiver to judge: it names nobody inside.
        let Ok(Some(message)) = Neighbours::read(headers, &ip) else {
            return Ok(());
        };
        if !message.names(buf.bytes(), own) {
            return Ok(());
        }
        let target = message.redirected(buf.bytes());
        let station = target.and_then(|target| self.station(target.into()));
        let Some(station) = station else {
            return echo;
        };
        message.enter(buf, own, station).or(echo)
    }

    /// Who takes what is sent to an address.
    fn taker(&self, address: IpAddr) -> Result<MacAddr, DropReason> {
        if let Some(station) = self.station(address) {
            return Ok(station);
        }
        if self.nat.table.has_owner(self.now) {
            return Ok(self.nat.mac);
        }
        let gateway = self.domain.and_then(|domain| domain.gateway.as_ref());
        let gateway = gateway.filter(|_| self.is_in_gateway_vlan());
        gateway
            .map(|gateway| gateway.mac)
            .ok_or(DropReason::MacNatUnknown)
    }

    /// Who has an address inside: whoever was heard, an endpoint of another port, or the gateway.
    fn station(&self, address: IpAddr) -> Option<MacAddr> {
        let vlan = self.vlan;
        let heard = self.nat.table.station(Located { vlan, address }, self.now);
        if heard.is_some() {
            return heard;
        }
        let domain = self.domain.filter(|_| self.is_in_gateway_vlan())?;
        let gateway = domain.gateway.as_ref().filter(|own| own.owns(address));
        let endpoint = || {
            let known = domain.neighbours.get(&address)?;
            (known.port != self.port.id).then_some(known.mac)
        };
        gateway.map(|gateway| gateway.mac).or_else(endpoint)
    }

    fn is_in_gateway_vlan(&self) -> bool {
        let gateway_vlan = self.domain.map(|domain| domain.gateway_vlan);
        gateway_vlan == Some(self.vlan)
    }
}

/// The VLAN in which an answer would come back: that of a frame that enters by the port with such a
/// tag.
fn vlan_back(port: &Port, headers: &Headers) -> VlanId {
    let none = VlanId(0);
    if port.flags.has(PortFlags::FILTERING) {
        return port.profile.classify(headers.tag).unwrap_or(none);
    }
    headers.tag.map_or(none, |tag| tag.vlan())
}

/// The station that an ARP message speaks for: the one that it names, which need not send it itself
/// (VRRP, RFC 9568).
fn sender(headers: &Headers, arp: &Arp) -> MacAddr {
    let named = arp.sender_mac;
    match named.is_group() || named == MacAddr::ZERO {
        true => headers.src,
        false => named,
    }
}

/// Whether one station can have an address.
fn is_station(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !special && !broadcast
}
