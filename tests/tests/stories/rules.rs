//! Stories of rules: who may open flows to whom.

use dataplane_core::addr::PortId;
use dataplane_core::headers::protocol;
use dataplane_core::l2::PortFlags;
use dataplane_core::policy::{Action, Policy, Protocol, Rule, RuleSlot, Side};
use dataplane_core::topology::Topology;
use tests::wire::{self, Link, at, flags};
use tests::world::{BLUE, RED, gateway_mac, mac};

use super::super::{OUTSIDE, Story, a_out};

const A: Side = Side::Endpoint(PortId(1), RED);
const B: Side = Side::Endpoint(PortId(2), RED);

fn only_web() -> Vec<Rule> {
    let web = Rule {
        protocol: Protocol::Number(protocol::TCP),
        ports: [80..=80, 443..=443].into(),
        ..Rule::new(
            RuleSlot(0),
            "web",
            Action::Allow,
            Side::Network(RED),
            Side::Outside,
        )
    };
    let rest = (Side::Network(RED), Side::Outside);
    let across = (Side::Network(RED), Side::Network(BLUE));
    vec![
        web,
        Rule::new(RuleSlot(1), "no-internet", Action::Drop, rest.0, rest.1),
        Rule::new(
            RuleSlot(2),
            "red-to-blue",
            Action::Allow,
            across.0,
            across.1,
        ),
    ]
}

pub fn in_order_and_back(s: &mut Story) {
    s.world.edit(|t| t.policy = Policy::new(only_web()));
    s.say("the first rule that fits counts");
    let from = at("10.1.0.2:40000");
    s.send(1, &wire::tcp(a_out(), from, at(OUTSIDE), flags::SYN, b""));
    s.send(
        1,
        &wire::tcp(a_out(), from, at("198.51.100.9:25"), flags::SYN, b""),
    );
    s.say("red may ask blue, and blue may answer");
    let (red, blue) = (at("10.1.0.2:5000"), at("10.2.0.2:80"));
    let from_blue = Link(mac(4), gateway_mac(BLUE));
    s.send(1, &wire::tcp(a_out(), red, blue, flags::SYN, b""));
    s.send(4, &wire::tcp(from_blue, blue, red, flags::SYN_ACK, b""));
    s.say("but not ask");
    s.send(4, &wire::tcp(from_blue, blue, red, flags::SYN, b""));
    s.say("without the rule, the connection is at its end");
    s.world
        .edit(|t| t.policy = Policy::new(only_web().into_iter().take(2)));
    s.send(4, &wire::tcp(from_blue, blue, red, flags::ACK, b"more"));
}

fn off(t: &mut Topology) {
    for port in t.ports.iter_mut().flatten().filter(|port| port.id.0 <= 3) {
        port.flags = port.flags.with(PortFlags::ICC_OFF);
    }
    t.policy = Policy::new([Rule::new(RuleSlot(0), "a-to-b", Action::Allow, A, B)]);
}

pub fn icc_off(s: &mut Story) {
    s.say("stations say hello");
    for number in [1, 2, 3] {
        let group = Link(mac(number), dataplane_core::addr::MacAddr::BROADCAST);
        s.send(number.into(), &wire::plain(group));
    }
    s.world.edit(off);
    let (a, b, c) = (at("10.1.0.2:1"), at("10.1.0.3:2"), at("10.1.0.4:3"));
    s.say("endpoints do not reach each other, directly or by the gateway");
    s.send(3, &wire::udp(Link(mac(3), mac(1)), c, a, 64, b"hi"));
    let by_gateway = Link(mac(3), gateway_mac(RED));
    s.send(3, &wire::udp(by_gateway, c, a, 64, b"hi"));
    s.say("but where a rule allows one to ask the other");
    s.send(1, &wire::udp(Link(mac(1), mac(2)), a, b, 64, b"ask"));
    s.send(2, &wire::udp(Link(mac(2), mac(1)), b, a, 64, b"answer"));
    s.say("the gateway is there for all");
    let (c, gateway) = (c.ip(), at("10.1.0.1:0").ip());
    s.send(3, &wire::echo(by_gateway, c, gateway, true, 9));
}

pub fn rejected(s: &mut Story) {
    let no = Rule::new(
        RuleSlot(0),
        "no",
        Action::Reject,
        Side::Network(RED),
        Side::Anyone,
    );
    s.world.edit(|t| t.policy = Policy::new([no]));
    s.say("a connection is reset as by whom it was for");
    let (from, to) = (at("10.1.0.2:40000"), at(OUTSIDE));
    s.send(1, &wire::tcp(a_out(), from, to, flags::SYN, b""));
    s.say("anything else is told of by the gateway");
    s.send(1, &wire::udp(a_out(), from, to, 64, b"hi"));
    s.say("but not a reset");
    s.send(1, &wire::tcp(a_out(), from, to, flags::RST, b""));
}
