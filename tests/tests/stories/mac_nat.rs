//! The story of a port by which one MAC leaves.

use std::sync::Arc;

use dataplane::what_if::egress_ports;
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::{MacNat, PortFlags};
use tests::wire::{self, Link, at};
use tests::world::{RED, mac};

use super::{Story, from};
use crate::{A, B};

const LAN: PortId = PortId(3);
const ONE: MacAddr = MacAddr([0x02, 0, 0, 0, 0x77, 0x01]);

/// Sends a frame, and has a copy of it leave by the LAN's port, where one does, as a worker has it.
pub fn send(s: &mut Story, port: u16, bytes: &[u8]) {
    let mut outcome = s.send(port, bytes);
    let (now, sw) = (s.world.now, &s.world.sw);
    let topology = Arc::clone(&sw.topology);
    let leaves = egress_ports(sw, PortId(port), outcome.verdict).contains(&LAN);
    let lan = topology.port(LAN).filter(|_| leaves);
    let nat = lan.and_then(|lan| Some((lan, lan.profile.mac_nat.as_ref()?)));
    if let (Some((lan, nat)), Some(red)) = (nat, topology.domain(RED)) {
        let left = nat.leave(lan, red, &mut outcome.frame, now);
        assert_eq!(left, Ok(()));
    }
}

pub fn one_mac(s: &mut Story) {
    s.world.edit(|t| {
        if let Some(Some(lan)) = t.ports.get_mut(LAN.index()) {
            lan.flags = lan.flags.with(PortFlags::MAC_NAT);
            lan.profile_mut().mac_nat = Some(MacNat::new(ONE, 1));
        }
        if let Some(Some(red)) = t.domains.get_mut(RED.index()) {
            red.gateway = None;
            red.neighbours.clear();
        }
    });
    let outside = mac(0x33);
    let printer = [10, 1, 0, 200].into();
    s.say("c's port leads to a LAN that admits one MAC; nobody has spoken to it yet");
    let answer = |link| {
        let (from, to) = (at("10.1.0.200:631"), at("10.1.0.2:9"));
        wire::udp(link, from, to, 64, b"hello")
    };
    send(s, 3, &answer(Link(outside, ONE)));
    s.say("a asks for a printer there: the LAN is told the port's MAC, b is told a's");
    send(s, 1, &wire::arp_request(mac(1), A, printer));
    s.say("the printer answers the port's MAC, and then a's packet, which is for a by its address");
    send(s, 3, &wire::arp_reply(Link(outside, ONE), printer, A));
    let ask = wire::udp(
        Link(mac(1), outside),
        at("10.1.0.2:9"),
        at("10.1.0.200:631"),
        64,
        b"hello",
    );
    send(s, 1, &ask);
    send(s, 3, &answer(Link(outside, ONE)));
    s.say("an access point repeats what a has asked, and answers for it");
    send(s, 3, &wire::arp_request(ONE, A, printer));
    send(s, 3, &wire::arp_reply(Link(ONE, mac(2)), A, B));
    s.say("what names no address is nobody's");
    let mut other = from(0x33, ONE);
    other[12..14].copy_from_slice(&[0x88, 0x63]);
    send(s, 3, &other);
}
