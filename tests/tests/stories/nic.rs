//! The story of a network card on a network, and of the host's own port beside it.

use dataplane_core::addr::MacAddr;
use dataplane_core::l2::{MacNat, PortFlags};
use tests::wire::{self, Link, at};
use tests::world::{RED, mac};

use super::Story;
use super::mac_nat::send;
use crate::{A, B};

/// The card's own MAC, which is that of the host's port as well.
const CARD: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 2]);
const ROUTER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xf1]);

pub fn a_card_and_the_hosts_port(s: &mut Story) {
    let router = [10, 1, 0, 254].into();
    s.world.edit(|t| {
        for (port, name) in [(2, "cw-lan"), (3, "nic0")] {
            if let Some(Some(port)) = t.ports.get_mut(port) {
                port.name = name.into();
            }
        }
        if let Some(Some(red)) = t.domains.get_mut(RED.index()) {
            red.gateway = None;
            red.neighbours.clear();
        }
    });
    s.say(
        "the LAN's router is behind the card, the host on the port cw-lan; both hear a's question",
    );
    send(s, 1, &wire::arp_request(mac(1), A, router));
    send(s, 3, &wire::arp_reply(Link(ROUTER, mac(1)), router, A));
    s.say(
        "who is outside of the LAN is asked by way of its router: the switch routes nothing here",
    );
    let far = |link| {
        let (from, to) = (at("10.1.0.2:40000"), at("198.51.100.9:53"));
        wire::udp(link, from, to, 64, b"who?")
    };
    send(s, 1, &far(Link(mac(1), ROUTER)));
    s.say("the router asks for the host, whose port answers with the card's MAC");
    send(s, 3, &wire::arp_request(ROUTER, router, B));
    send(s, 2, &wire::arp_reply(Link(CARD, ROUTER), B, router));
    s.say("host and container reach each other, and nobody else hears it");
    let (host, a) = (B.into(), A.into());
    send(s, 2, &wire::echo(Link(CARD, mac(1)), host, a, true, 1));
    send(s, 1, &wire::echo(Link(mac(1), CARD), a, host, false, 1));

    s.world.edit(|t| {
        if let Some(Some(nic)) = t.ports.get_mut(3) {
            nic.flags = nic.flags.with(PortFlags::MAC_NAT);
            nic.profile_mut().mac_nat = Some(MacNat::new(CARD, 1));
        }
    });
    s.say("the card is wireless: its MAC is everybody's from here on, and the address tells them apart");
    send(s, 2, &wire::arp_reply(Link(CARD, ROUTER), B, router));
    send(s, 1, &far(Link(mac(1), ROUTER)));
    let ping = |to| wire::echo(Link(ROUTER, CARD), router.into(), to, true, 2);
    send(s, 3, &ping(a));
    send(s, 3, &ping(host));
    s.say("an address that nobody has said is the host's business");
    send(s, 3, &ping([10, 1, 0, 99].into()));
    s.say("what the card's own MAC has sent does not come by it");
    send(s, 3, &wire::arp_request(CARD, B, router));
}
