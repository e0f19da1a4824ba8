//! ARP and ND suppression (RFC 9161): who asks for an endpoint of the table is answered by the
//! switch, and the others are spared the question.
//!
//! Flooded as before is what the owner has to hear itself: probes and duplicate address detection,
//! whose sender has no address, and announcements. So is what the table does not know, what the owner
//! asks about itself or hears anyway, for it is behind the same port, and what it could not be reached
//! for, for its port is down or isolated from the asker's.

use std::net::IpAddr;

use super::are_isolated;
use crate::addr::MacAddr;
use crate::frame::Frame;
use crate::headers::{Headers, L3};
use crate::reply::{self, Advertised};
use crate::topology::{Domain, Port, Topology};
use crate::trace::Answer;

/// Turns a question for an endpoint into its answer, if it is one.
pub(crate) fn answer(
    topology: &Topology,
    domain: &Domain,
    port: &Port,
    headers: &Headers,
    frame: &mut Frame<'_>,
) -> Option<Answer> {
    if headers.tag.is_some() {
        return None;
    }
    let owner = |address| owner(topology, domain, port, headers.src, address);
    match headers.l3.ok()? {
        L3::Arp(arp) => {
            let asks = arp.operation == 1 && !arp.sender.is_unspecified();
            if !asks || arp.sender == arp.target {
                return None;
            }
            let mac = owner(arp.target.into())?;
            reply::arp(frame.buf, headers.l3_offset, &arp, mac);
            Some(Answer::ArpFor)
        }
        L3::Ip(ip) => {
            let target = reply::solicited(frame.bytes(), headers)?;
            if ip.src.is_unspecified() {
                return None;
            }
            let mac = owner(target.into())?;
            let made = reply::neighbour(frame.buf, headers, target, mac, Advertised::Endpoint);
            made.then_some(Answer::NeighbourFor)
        }
    }
}

/// The MAC of the endpoint that has an address, for somebody else who can reach it.
fn owner(
    topology: &Topology,
    domain: &Domain,
    port: &Port,
    asker: MacAddr,
    address: IpAddr,
) -> Option<MacAddr> {
    let known = domain.neighbours.get(&address)?;
    let owner = topology.port_up(known.port)?;
    let elsewhere = owner.id != port.id && known.mac != asker;
    (elsewhere && !are_isolated(port, owner)).then_some(known.mac)
}
