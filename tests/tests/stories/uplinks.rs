//! Stories of several uplinks.

use dataplane_core::addr::{L4Addr, UplinkId};
use dataplane_core::nat::{External, StaticRule, StaticRules, Target, Transport};
use dataplane_core::topology::Topology;
use tests::wire::{self, Link, at, flags};
use tests::world::{
    RED, SECOND_ROUTER_MAC, SECOND_UPLINK_MAC, add_second_uplink, gateway_mac, ip, mac,
};

use super::super::{HOST, Story, from_router};

/// TCP 8080 leads to b, for what comes in by the first uplink, and to c for the second.
fn publish_on_each(t: &mut Topology) {
    add_second_uplink(t);
    let rule = |id, uplink: u16, address, inside| StaticRule {
        external: External::Uplink(UplinkId(uplink), vec![ip(address)]),
        ..StaticRule::new(
            id,
            Transport::Tcp,
            8080..=8080,
            Target::new(0, RED, L4Addr::new(ip(inside), 80)),
        )
    };
    let rules = vec![
        rule(1, 0, HOST, "10.1.0.3"),
        rule(2, 1, "100.64.0.1", "10.1.0.4"),
    ];
    t.statics = StaticRules::build(rules).expect("the rules are sound");
}

pub fn two_uplinks(s: &mut Story) {
    s.world.edit(publish_on_each);
    let second = Link(SECOND_ROUTER_MAC, SECOND_UPLINK_MAC);
    let (client, other) = (at("198.51.100.9:50000"), at("198.51.100.10:50000"));
    let (first_door, second_door) = (at("192.0.2.1:8080"), at("100.64.0.1:8080"));
    s.say("one port leads to b by the first uplink, and to c by the second");
    s.send(
        9,
        &wire::tcp(from_router(), client, first_door, flags::SYN, b""),
    );
    s.send(10, &wire::tcp(second, client, second_door, flags::SYN, b""));
    s.say(
        "each answers by the uplink whose address was asked, though the host's route is the first",
    );
    let answer = |number, inside| {
        let link = Link(mac(number), gateway_mac(RED));
        wire::tcp(link, at(inside), client, flags::SYN_ACK, b"")
    };
    s.send(2, &answer(2, "10.1.0.3:80"));
    s.send(3, &answer(3, "10.1.0.4:80"));
    s.say("the address of the second is no way in by the first");
    s.send(
        9,
        &wire::tcp(from_router(), other, second_door, flags::SYN, b""),
    );
}
