//! Rules: who may open flows to whom, driven through `forward`.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane_core::addr::{DomainId, L4Addr, MacAddr, PortId, Prefix};
use dataplane_core::headers::protocol;
use dataplane_core::l2::PortFlags;
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::policy::{Action, Policy, Protocol, Rule, RuleSlot, Ruling, Side, Standing};
use dataplane_core::topology::Topology;
use dataplane_core::trace::Step;
use dataplane_core::verdict::{Consumer, DropReason, Verdict};
use etherparse::PacketBuilder;
use proptest::prelude::*;
use world::packets::{arp_request, octets4};
use world::{
    BLUE, HOST_LINK, HOST_MAC, Outcome, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac,
    ip, mac,
};

const DENIED: Verdict = Verdict::Drop(DropReason::PolicyDenied);
const ICC_OFF: Verdict = Verdict::Drop(DropReason::IccOff);
const ISOLATED: Verdict = Verdict::Drop(DropReason::NetworkIsolated);

const A: Side = Side::Endpoint(PortId(1), RED);
const B: Side = Side::Endpoint(PortId(2), RED);

fn address(port: u16) -> &'static str {
    ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.2.0.2"][usize::from(port) - 1]
}

fn domain_of(port: u16) -> DomainId {
    if port == 4 { BLUE } else { RED }
}

/// The MAC by which one endpoint reaches another.
fn towards(from: u16, to: u16) -> MacAddr {
    match domain_of(from) == domain_of(to) {
        true => mac(to as u8),
        false => gateway_mac(domain_of(from)),
    }
}

fn udp(from: u16, to: u16, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from as u8).0, towards(from, to).0)
        .ipv4(octets4(address(from)), octets4(address(to)), 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, &[7; 20])
        .unwrap();
    frame
}

fn tcp_between(
    macs: (MacAddr, MacAddr),
    ends: (&str, u16),
    to: (&str, u16),
    flags: &str,
) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder =
        PacketBuilder::ethernet2(macs.0.0, macs.1.0).ipv4(octets4(ends.0), octets4(to.0), 64);
    let mut tcp = builder.tcp(ends.1, to.1, 1, 100);
    if flags.contains('S') {
        tcp = tcp.syn();
    }
    if flags.contains('A') {
        tcp = tcp.ack(1);
    }
    if flags.contains('R') {
        tcp = tcp.rst();
    }
    tcp.write(&mut frame, &[]).unwrap();
    frame
}

fn tcp(from: u16, to: u16, ports: (u16, u16), flags: &str) -> Vec<u8> {
    let macs = (mac(from as u8), towards(from, to));
    tcp_between(
        macs,
        (address(from), ports.0),
        (address(to), ports.1),
        flags,
    )
}

fn rule(slot: u16, action: Action, from: Side, to: Side) -> Rule {
    Rule::new(RuleSlot(slot), &format!("r{slot}"), action, from, to)
}

/// A world whose stations are known, with these rules.
fn ruled(rules: impl IntoIterator<Item = Rule>) -> World {
    let mut world = World::new();
    for port in 1..=3 {
        let hello = arp_request(mac(port), [10, 1, 0, port + 1], [10, 1, 0, 99]);
        let _ = world.send(port.into(), &hello);
    }
    set(&mut world, rules);
    world
}

fn set(world: &mut World, rules: impl IntoIterator<Item = Rule>) {
    world.edit(|t| t.policy = Policy::new(rules));
}

fn icc_off(t: &mut Topology) {
    for port in t.ports.iter_mut().flatten().filter(|port| port.id.0 <= 3) {
        port.flags = port.flags.with(PortFlags::ICC_OFF);
    }
}

fn hits(world: &World, slot: u16) -> (u64, u64) {
    world.sw.counters.rule_hits(RuleSlot(slot))
}

#[track_caller]
fn told(out: &Outcome, ruling: Ruling, standing: Standing) {
    let step = Step::Policy(ruling, standing);
    assert!(out.steps.contains(&step), "{:?}", out.steps);
}

#[test]
fn without_rules_nothing_is_asked_and_no_port_is_marked() {
    let mut world = ruled([]);
    let out = world.send(1, &udp(1, 2, (1, 2)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(2)));
    let asked = |step: &Step| matches!(step, Step::Policy(..));
    assert!(!out.steps.iter().any(asked));
    let marked = world.sw.topology.ports.iter().flatten();
    assert!(
        !marked
            .into_iter()
            .any(|port| port.flags.has(PortFlags::POLICED))
    );
}

#[test]
fn a_rule_about_one_network_leaves_the_others_unmarked() {
    let world = ruled([rule(0, Action::Drop, A, B)]);
    let marked = |id| {
        world
            .sw
            .topology
            .port(PortId(id))
            .unwrap()
            .flags
            .has(PortFlags::POLICED)
    };
    assert!(marked(1) && marked(3));
    assert!(!marked(4) && !marked(9));
}

#[test]
fn the_first_rule_that_fits_counts_and_is_counted() {
    let to_web = Rule {
        protocol: Protocol::Number(protocol::UDP),
        ports: [80..=80, 8_000..=8_010].into(),
        ..rule(1, Action::Allow, A, B)
    };
    let mut world = ruled([to_web, rule(2, Action::Drop, A, Side::Network(RED))]);
    let out = world.send(1, &udp(1, 2, (1_000, 8_005)));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(2)));
    told(&out, Ruling::Allowed(RuleSlot(1)), Standing::Opening);
    assert_eq!(
        hits(&world, 1),
        (1, 48),
        "20 + 8 bytes of headers, 20 of payload"
    );
    let out = world.send(1, &udp(1, 2, (1_000, 8_011)));
    assert_eq!(out.verdict, DENIED);
    told(&out, Ruling::Denied(RuleSlot(2)), Standing::Opening);
    assert_eq!(world.send(1, &udp(1, 3, (1_000, 80))).verdict, DENIED);
    assert_eq!((hits(&world, 1).0, hits(&world, 2).0), (1, 2));
    let out = world.send(3, &udp(3, 1, (5, 6)));
    assert_eq!(
        out.verdict,
        Verdict::Bridged(PortId(1)),
        "no rule, so the default"
    );
    told(&out, Ruling::Default, Standing::Opening);
    assert_eq!(world.dropped(DropReason::PolicyDenied), 2);
}

#[test]
fn who_may_be_asked_may_answer_and_may_not_ask() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    assert_eq!(world.send(2, &tcp(2, 1, (80, 1_000), "S")).verdict, ICC_OFF);
    let open = tcp(1, 2, (1_000, 80), "S");
    assert_eq!(world.send(1, &open).verdict, Verdict::Bridged(PortId(2)));
    let out = world.send(2, &tcp(2, 1, (80, 1_000), "SA"));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
    told(&out, Ruling::Allowed(RuleSlot(0)), Standing::Answer);
    assert_eq!(
        hits(&world, 0).0,
        2,
        "the answer counts where its question did"
    );
    let again = world.send(2, &tcp(2, 1, (80, 1_000), "S"));
    assert_eq!(
        again.verdict, ICC_OFF,
        "a new connection between the same ends"
    );
    assert_eq!(world.send(1, &open).verdict, Verdict::Bridged(PortId(2)));
    assert_eq!(world.send(2, &udp(2, 1, (80, 1_000))).verdict, ICC_OFF);
}

#[test]
fn a_connection_that_is_older_than_the_table_goes_on_from_either_end() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    let out = world.send(2, &tcp(2, 1, (80, 1_000), "A"));
    assert_eq!(out.verdict, Verdict::Bridged(PortId(1)));
    told(&out, Ruling::Allowed(RuleSlot(0)), Standing::Answer);
    assert_eq!(
        world.send(2, &tcp(2, 1, (80, 1_001), "SA")).verdict,
        ICC_OFF
    );
    assert_eq!(world.send(3, &tcp(3, 1, (80, 1_000), "A")).verdict, ICC_OFF);
}

#[test]
fn a_rule_that_goes_ends_what_it_let_through() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    let _ = world.send(1, &udp(1, 2, (7, 8)));
    assert_eq!(
        world.send(2, &udp(2, 1, (8, 7))).verdict,
        Verdict::Bridged(PortId(1))
    );
    set(&mut world, [rule(1, Action::Allow, A, Side::Network(RED))]);
    let out = world.send(2, &udp(2, 1, (8, 7)));
    told(&out, Ruling::Allowed(RuleSlot(1)), Standing::Answer);
    set(&mut world, []);
    assert_eq!(world.send(2, &udp(2, 1, (8, 7))).verdict, ICC_OFF);
    assert_eq!(world.send(1, &udp(1, 2, (7, 8))).verdict, ICC_OFF);
}

#[test]
fn a_silent_flow_is_forgotten_after_the_timeout_of_its_kind() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    let _ = world.send(1, &udp(1, 2, (7, 8)));
    world.wait(300);
    assert_eq!(
        world.send(2, &udp(2, 1, (8, 7))).verdict,
        Verdict::Bridged(PortId(1))
    );
    world.wait(301);
    assert_eq!(world.send(2, &udp(2, 1, (8, 7))).verdict, ICC_OFF);
}

#[test]
fn with_icc_off_endpoints_reach_the_gateway_the_host_and_the_outside_only() {
    let mut world = ruled([]);
    world.edit(icc_off);
    assert_eq!(world.send(1, &udp(1, 2, (1, 2))).verdict, ICC_OFF);
    let by_gateway = world::packets::from_a("10.1.0.3");
    assert_eq!(world.send(1, &by_gateway).verdict, ICC_OFF);
    let arp = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    assert!(matches!(world.send(1, &arp).verdict, Verdict::Flooded(..)));
    let to_gateway = world.send(1, &world::packets::from_a("10.1.0.1"));
    let host = Verdict::Delivered(Consumer::HostLink(HOST_LINK));
    assert_eq!(to_gateway.verdict, host);
    let out = world.send(1, &world::packets::from_a("198.51.100.9"));
    assert_eq!(out.verdict, Verdict::Routed(UPLINK));
    // To everybody, or to a station that nobody knows.
    let mut flooded = udp(1, 2, (1, 2));
    flooded[..6].fill(0xff);
    assert_eq!(world.send(1, &flooded).verdict, ICC_OFF);
    let mut dhcp = udp(1, 2, (68, 67));
    dhcp[..6].fill(0xff);
    dhcp[30..34].fill(0xff);
    dhcp[24..26].fill(0);
    let sum = dataplane_core::checksum::ipv4_header(&dhcp[14..34]);
    dhcp[24..26].copy_from_slice(&sum.to_be_bytes());
    assert!(matches!(world.send(1, &dhcp).verdict, Verdict::Flooded(..)));
}

#[test]
fn networks_that_are_allowed_are_routed_one_way_with_a_hop_less_each() {
    let mut world = ruled([rule(
        0,
        Action::Allow,
        Side::Network(RED),
        Side::Network(BLUE),
    )]);
    assert_eq!(
        world.send(4, &tcp(4, 1, (80, 1_000), "S")).verdict,
        ISOLATED
    );
    let out = world.send(1, &tcp(1, 4, (1_000, 80), "S"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(4)));
    assert_eq!(out.frame.bytes()[22], 63);
    let out = world.send(4, &tcp(4, 1, (80, 1_000), "SA"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(1)));
    assert_eq!(
        world.send(4, &tcp(4, 1, (80, 1_001), "S")).verdict,
        ISOLATED
    );
}

#[test]
fn what_leaves_is_judged_before_a_session_is_made() {
    let outside = "198.51.100.9";
    let sent = |port, flags| {
        tcp_between(
            (mac(1), gateway_mac(RED)),
            ("10.1.0.2", 5_000),
            (outside, port),
            flags,
        )
    };
    let to = |port| sent(port, "S");
    let smtp = Rule {
        protocol: Protocol::Number(protocol::TCP),
        ports: [25..=25].into(),
        ..rule(3, Action::Drop, Side::Network(RED), Side::Outside)
    };
    let mut world = ruled([smtp]);
    assert_eq!(world.send(1, &to(25)).verdict, DENIED);
    assert_eq!(world.sw.gateway.session_count(), 0);
    // The last of them would take the way that its session remembers.
    for flags in ["S", "A", "A"] {
        let out = world.send(1, &sent(443, flags));
        assert_eq!(out.verdict, Verdict::Routed(UPLINK));
        told(&out, Ruling::Default, Standing::Opening);
    }
    let port = u16::from_be_bytes(
        world.send(1, &to(443)).frame.bytes()[34..36]
            .try_into()
            .unwrap(),
    );
    let back = tcp_between(
        (ROUTER_MAC, UPLINK_MAC),
        (outside, 443),
        ("192.0.2.1", port),
        "SA",
    );
    let out = world.send(9, &back);
    told(&out, Ruling::Default, Standing::Answer);
    assert_eq!(out.verdict, Verdict::Routed(PortId(1)));
    set(
        &mut world,
        [rule(
            4,
            Action::Drop,
            A,
            Side::Prefix(Prefix::new(ip(outside), 24)),
        )],
    );
    assert_eq!(
        world.send(9, &back).verdict,
        DENIED,
        "what may not be asked is not answered"
    );
    assert_eq!(world.send(1, &to(443)).verdict, DENIED);
}

fn published(t: &mut Topology) {
    let inside = L4Addr::new(ip("10.1.0.3"), 80);
    let inside = Target::new(0, RED, inside);
    let web = StaticRule::new(0, Transport::Tcp, 8_080..=8_080, inside);
    t.statics = StaticRules::build(vec![web]).unwrap();
}

#[test]
fn a_rule_closes_a_published_port_to_some_and_makes_no_session_for_them() {
    let office = Side::Prefix(Prefix::new(ip("198.51.100.0"), 24));
    let mut world = ruled([
        rule(0, Action::Allow, office, B),
        rule(1, Action::Drop, Side::Outside, Side::Network(RED)),
    ]);
    world.edit(published);
    let from = |client, flags| {
        let (macs, to) = ((ROUTER_MAC, UPLINK_MAC), ("192.0.2.1", 8_080));
        tcp_between(macs, (client, 4_000), to, flags)
    };
    assert_eq!(world.send(9, &from("203.0.113.9", "S")).verdict, DENIED);
    assert_eq!(world.sw.gateway.session_count(), 0);
    let out = world.send(9, &from("198.51.100.9", "S"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(2)));
    told(&out, Ruling::Allowed(RuleSlot(0)), Standing::Opening);
    let to_router = (mac(2), gateway_mac(RED));
    let answer = tcp_between(to_router, ("10.1.0.3", 80), ("198.51.100.9", 4_000), "SA");
    let out = world.send(2, &answer);
    assert_eq!(out.verdict, Verdict::Routed(UPLINK));
    told(&out, Ruling::Allowed(RuleSlot(0)), Standing::Answer);
    assert_eq!((hits(&world, 0).0, hits(&world, 1).0), (2, 1));
}

#[test]
fn by_an_external_address_two_endpoints_are_judged_as_they_are_inside() {
    let mut world = ruled([rule(0, Action::Drop, A, B)]);
    world.edit(published);
    let to_host = |from: u8, own| {
        let macs = (mac(from), gateway_mac(RED));
        tcp_between(macs, (own, 4_000), ("192.0.2.1", 8_080), "S")
    };
    assert_eq!(world.send(1, &to_host(1, "10.1.0.2")).verdict, DENIED);
    assert_eq!(world.sw.gateway.session_count(), 0);
    let out = world.send(3, &to_host(3, "10.1.0.4"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(2)));
    told(&out, Ruling::Default, Standing::Opening);
}

#[test]
fn the_host_is_a_side_like_others() {
    let mut world = ruled([
        rule(0, Action::Allow, Side::Host, A),
        rule(1, Action::Drop, A, Side::Host),
    ]);
    let to_host = |flags| {
        let macs = (mac(1), gateway_mac(RED));
        tcp_between(macs, ("10.1.0.2", 22), ("10.1.0.1", 999), flags)
    };
    assert_eq!(world.send(1, &to_host("S")).verdict, DENIED);
    let open = tcp_between(
        (HOST_MAC, HOST_MAC),
        ("192.0.2.1", 999),
        ("10.1.0.2", 22),
        "S",
    );
    assert_eq!(world.send(8, &open).verdict, Verdict::Routed(PortId(1)));
    let macs = (mac(1), gateway_mac(RED));
    let answer = tcp_between(macs, ("10.1.0.2", 22), ("192.0.2.1", 999), "SA");
    let host = Verdict::Delivered(Consumer::HostLink(HOST_LINK));
    assert_eq!(world.send(1, &answer).verdict, host);
}

#[test]
fn fragments_follow_their_first_one_and_are_denied_in_doubt() {
    let to_web = Rule {
        protocol: Protocol::Number(protocol::UDP),
        ports: [80..=80].into(),
        ..rule(0, Action::Allow, A, B)
    };
    let mut world = ruled([to_web]);
    world.edit(icc_off);
    let fragment = |id: u8, position: u16| {
        let mut frame = udp(1, 2, (1, 80));
        frame[19] = id;
        frame[20..22].copy_from_slice(&position.to_be_bytes());
        frame[24..26].fill(0);
        let sum = dataplane_core::checksum::ipv4_header(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let (first, later) = (0x2000, 0x0003);
    assert_eq!(world.send(1, &fragment(1, later)).verdict, ICC_OFF);
    assert_eq!(
        world.send(1, &fragment(1, first)).verdict,
        Verdict::Bridged(PortId(2))
    );
    assert_eq!(
        world.send(1, &fragment(1, later)).verdict,
        Verdict::Bridged(PortId(2))
    );
    assert_eq!(world.send(1, &fragment(2, later)).verdict, ICC_OFF);
    let no_web = Rule {
        protocol: Protocol::Number(protocol::UDP),
        ports: [80..=80].into(),
        ..rule(1, Action::Drop, A, B)
    };
    let mut world = ruled([no_web]);
    assert_eq!(
        world.send(1, &fragment(3, later)).verdict,
        DENIED,
        "it may be to port 80"
    );
}

#[test]
fn what_cannot_be_read_is_denied_in_doubt() {
    let from_one_address = Side::Prefix(Prefix::new(ip("10.1.0.2"), 32));
    let mut broken = udp(1, 2, (1, 2));
    broken[14] = 0x41;
    let mut world = ruled([rule(0, Action::Drop, from_one_address, Side::Anyone)]);
    assert_eq!(world.send(1, &broken).verdict, DENIED);
    let mut world = ruled([rule(0, Action::Allow, from_one_address, Side::Anyone)]);
    world.edit(icc_off);
    assert_eq!(world.send(1, &broken).verdict, ICC_OFF);
}

#[test]
fn an_icmp_error_passes_with_the_flow_that_it_is_about() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    let asked = udp(1, 2, (7, 8));
    let error = |about: &[u8]| {
        let mut frame = Vec::new();
        let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
        PacketBuilder::ethernet2(mac(2).0, mac(1).0)
            .ipv4(octets4(address(2)), octets4(address(1)), 64)
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(unreachable))
            .write(&mut frame, &about[14..])
            .unwrap();
        frame
    };
    assert_eq!(world.send(2, &error(&asked)).verdict, ICC_OFF);
    let _ = world.send(1, &asked);
    assert_eq!(
        world.send(2, &error(&asked)).verdict,
        Verdict::Bridged(PortId(1))
    );
    assert_eq!(world.send(2, &error(&udp(1, 2, (7, 9)))).verdict, ICC_OFF);
}

#[test]
fn a_flood_of_openings_displaces_openings_and_no_flow_that_was_answered() {
    let mut world = ruled([rule(0, Action::Allow, A, B)]);
    world.edit(icc_off);
    let answered: Vec<u16> = (0..200).collect();
    for port in &answered {
        let _ = world.send(1, &udp(1, 2, (*port, 80)));
        let _ = world.send(2, &udp(2, 1, (80, *port)));
    }
    for to in 1_000..1_010 {
        for port in 1_000..9_000 {
            let mut buf = dataplane_core::frame::FrameBuf::from_bytes(&udp(1, 2, (port, to)));
            let mut frame = dataplane_core::frame::Frame::new(PortId(1), &mut buf);
            let now = world.now;
            let _ = dataplane_core::path::forward(
                &mut world.sw,
                &mut frame,
                now,
                &mut dataplane_core::trace::Off,
            );
        }
    }
    for port in &answered {
        let answer = world.send(2, &udp(2, 1, (80, *port)));
        told(&answer, Ruling::Allowed(RuleSlot(0)), Standing::Answer);
    }
    assert_eq!(world.sw.counters.flows_refused.get(), 0);
}

/// A rule as the model knows it: by names alone.
fn side() -> impl Strategy<Value = Side> {
    prop_oneof![
        Just(Side::Anyone),
        Just(Side::Network(RED)),
        Just(Side::Network(BLUE)),
        (1u16..=4).prop_map(|port| Side::Endpoint(PortId(port), domain_of(port))),
        Just(Side::Prefix(Prefix::new(ip("10.1.0.2"), 31))),
        Just(Side::Prefix(Prefix::new(ip("10.2.0.0"), 16))),
        Just(Side::Host),
        Just(Side::Outside),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Drop)];
    let number = prop_oneof![
        Just(Protocol::Any),
        Just(Protocol::Number(17)),
        Just(Protocol::Icmp)
    ];
    let ports = prop_oneof![
        Just(Vec::new()),
        Just(vec![10..=11u16]),
        Just(vec![12..=12, 10..=10])
    ];
    (action, side(), side(), number, ports.clone(), ports).prop_map(
        |(action, from, to, protocol, source_ports, ports)| Rule {
            protocol,
            source_ports: source_ports.into(),
            ports: ports.into(),
            ..rule(0, action, from, to)
        },
    )
}

fn is(side: Side, port: u16) -> bool {
    match side {
        Side::Anyone => true,
        Side::Network(domain) => domain == domain_of(port),
        Side::Endpoint(own, _) => own == PortId(port),
        Side::Prefix(prefix) => prefix.contains(address(port).parse::<IpAddr>().unwrap()),
        Side::Host | Side::Outside => false,
    }
}

/// What the model says of a datagram: the rule that counts, or the default.
fn judged(rules: &[Rule], from: u16, to: u16, ports: (u16, u16)) -> Option<usize> {
    let any = |ranges: &[std::ops::RangeInclusive<u16>], port| {
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&port))
    };
    rules.iter().position(|rule| {
        is(rule.from, from)
            && is(rule.to, to)
            && rule.protocol != Protocol::Icmp
            && any(&rule.source_ports, ports.0)
            && any(&rule.ports, ports.1)
    })
}

proptest! {
    #[test]
    fn rules_decide_as_a_plain_list_of_them_does(
        rules in prop::collection::vec(any_rule(), 0..6),
        sent in prop::collection::vec((1u16..=4, 1u16..=4, 9u16..=13, 9u16..=13), 1..40),
    ) {
        let numbered = rules.iter().cloned().enumerate().map(|(slot, rule)| Rule {
            slot: RuleSlot(slot as u16),
            ..rule
        });
        let mut world = ruled(numbered);
        let mut flows: HashMap<[(u16, u16); 2], Option<usize>> = HashMap::new();
        let mut counts = vec![0; rules.len()];
        for (from, to, source, port) in sent {
            if from == to {
                continue;
            }
            let mut flow = [(from, source), (to, port)];
            flow.sort_unstable();
            let known = flows.get(&flow).copied();
            let decided = known.unwrap_or_else(|| judged(&rules, from, to, (source, port)));
            let same = domain_of(from) == domain_of(to);
            let passes = match decided {
                Some(rule) => rules[rule].action == Action::Allow,
                None => same,
            };
            let out = world.send(from, &udp(from, to, (source, port)));
            let expected = match (passes, same, decided) {
                (true, true, _) => Verdict::Bridged(PortId(to)),
                (true, false, _) => Verdict::Routed(PortId(to)),
                (false, _, Some(_)) => DENIED,
                (false, _, None) => ISOLATED,
            };
            prop_assert_eq!(out.verdict, expected);
            if passes && !(rules.is_empty() && same) {
                flows.insert(flow, decided);
            }
            if let Some(rule) = decided {
                counts[rule] += 1;
            }
        }
        for (slot, count) in counts.into_iter().enumerate() {
            prop_assert_eq!(hits(&world, slot as u16).0, count);
        }
    }
}
