//! Stories of VLANs.

use dataplane_core::addr::{MacAddr, VlanId};
use dataplane_core::l2::{Form, PortFlags, PortVlans};
use tests::wire::{self, Link, at};
use tests::world::{RED, gateway_mac, mac};

use super::{Story, from};
use crate::{A, GATEWAY};

/// A frame with an 802.1Q tag.
fn tagged(mut frame: Vec<u8>, tci: u16) -> Vec<u8> {
    let tag = [[0x81, 0x00], tci.to_be_bytes()].concat();
    frame.splice(12..12, tag);
    frame
}

/// Puts a and b into a VLAN each, and c into VLANs 1 to 99, with tags.
fn filter(s: &mut Story, [a, b]: [u16; 2]) {
    let mut trunk = PortVlans::NONE;
    trunk.add(1..=99, Form::Tagged);
    let access = |vlan| PortVlans::access(VlanId(vlan));
    let ports = [access(a), access(b), trunk];
    s.world.edit(|t| {
        for (port, vlans) in t.ports.iter_mut().skip(1).flatten().zip(ports) {
            port.flags = port.flags.with(PortFlags::FILTERING);
            port.profile_mut().vlans = Some(Box::new(vlans));
        }
        if let Some(Some(red)) = t.domains.get_mut(RED.index()) {
            red.gateway_vlan = VlanId(1);
        }
    });
}

pub fn access_and_trunk(s: &mut Story) {
    filter(s, [10, 20]);
    s.say("a is in VLAN 10, b in VLAN 20, and c a trunk: what a sends to all reaches c alone");
    s.send(1, &from(1, MacAddr::BROADCAST));
    s.say("c answers by the tag, which a does not see");
    s.send(3, &tagged(from(3, mac(1)), 10));
    s.say("the same c in VLAN 20 is another station");
    s.send(3, &tagged(from(3, MacAddr::BROADCAST), 20));
    s.say("a claims to be in b's VLAN, and c to be in none");
    s.send(1, &tagged(from(1, MacAddr::BROADCAST), 20));
    s.send(3, &from(3, MacAddr::BROADCAST));
    s.say("a joins VLAN 20; who knew it in VLAN 10 does not reach it there any more");
    filter(s, [20, 20]);
    s.send(3, &tagged(from(3, mac(1)), 10));
    s.say("with a priority tag, which stays where there is a tag");
    s.send(1, &tagged(from(1, MacAddr::BROADCAST), 0xa000));
}

pub fn the_gateway_in_its_vlan(s: &mut Story) {
    filter(s, [1, 20]);
    s.say("the gateway is in VLAN 1, as is a; b asks in vain");
    s.send(1, &wire::arp_request(mac(1), A, GATEWAY));
    s.send(2, &wire::arp_request(mac(2), A, GATEWAY));
    s.say("c asks with a tag, and is answered with one");
    s.send(3, &tagged(wire::arp_request(mac(3), A, GATEWAY), 1));
    s.say("what it routes leaves as the port has the VLAN, or not at all");
    let to = |address| {
        let link = Link(mac(1), gateway_mac(RED));
        wire::udp(link, at("10.1.0.2:9"), at(address), 64, b"hello")
    };
    s.send(1, &to("10.1.0.4:9"));
    s.send(1, &to("10.1.0.3:9"));
}
