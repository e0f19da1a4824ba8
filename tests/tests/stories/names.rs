//! Stories of the name service.

use dataplane_core::topology::Resolver;
use tests::wire::{self, Link, at, flags};
use tests::world::{RED, gateway_mac, mac};

use super::Story;

pub fn at_the_gateway(s: &mut Story) {
    let link = Link(mac(1), gateway_mac(RED));
    let udp = |to| wire::udp(link, at("10.1.0.2:4000"), at(to), 64, b"who is b?");
    s.say("without the service, port 53 of the gateway is the host's");
    s.send(1, &udp("10.1.0.1:53"));
    s.say("with it, a question is the service's, by UDP and by TCP");
    s.world.edit(|t| {
        if let Some(Some(red)) = t.domains.get_mut(RED.index()) {
            red.resolver = Resolver::Service;
        }
    });
    s.send(1, &udp("10.1.0.1:53"));
    s.send(
        1,
        &wire::tcp(
            link,
            at("10.1.0.2:4000"),
            at("10.1.0.1:53"),
            flags::SYN,
            b"",
        ),
    );
    s.say("other ports, and servers elsewhere, are not");
    s.send(1, &udp("10.1.0.1:54"));
    s.send(1, &udp("10.1.0.3:53"));
    s.send(1, &udp("198.51.100.9:53"));
}
