//! The short ways out and in, by what a session remembers, and the long ones: the same verdicts,
//! bytes, steps and tables, whatever comes.

#![allow(clippy::unwrap_used)]

mod world;

use std::net::IpAddr;

use dataplane_core::addr::{L4Addr, MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::frame::Offload;
use dataplane_core::nat::{Duty, External, StaticRule, StaticRules, Target, Transport};
use dataplane_core::policy::{Action, Policy, Rule, RuleSlot, Ruling, Side};
use dataplane_core::topology::{Neighbour, Route, Topology};
use dataplane_core::trace::{NatKind, Step, Way};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};
use proptest::prelude::*;
use world::packets::{octets4, udp4};
use world::{
    Outcome, RED, ROUTER_MAC, SECOND_ROUTER_MAC, SECOND_UPLINK, SECOND_UPLINK_MAC, UPLINK,
    UPLINK_MAC, World, gateway_mac, ip, mac,
};

/// Flags of [`Shape::Tcp`].
const SYN: u8 = 1;
const ACK: u8 = 2;

/// A MAC of a second router.
const OTHER_ROUTER: u8 = 0x77;

/// One thing that happens to both switches.
#[derive(Clone, Debug)]
enum Happening {
    /// Endpoint a or b sends a packet outside.
    Send {
        from: u8,
        l4_port: u16,
        remote: u8,
        shape: Shape,
        ttl: u8,
        payload: u16,
    },
    /// The remote sends a packet to a port of the host, which may be published or mapped.
    Answer {
        by: Provider,
        remote: u8,
        l4_port: u16,
        shape: Shape,
        ttl: u8,
        payload: u16,
    },
    Wait(u16),
    Edit(Edit),
}

/// An uplink, and the address that is spoken to by it.
#[derive(Clone, Copy, Debug)]
enum Provider {
    First,
    Second,
    /// The second uplink, and the address of the first.
    Crossed,
    /// The first one, to a MAC that is not its own.
    Astray,
    /// The first one, with a tag.
    Tagged,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Udp,
    Tcp(u8),
    Echo,
    UdpV6,
    FirstFragment,
    LaterFragment,
    Gso,
}

/// A change of the topology, each of which may bend the way of a known flow.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Nothing,
    OtherRouter,
    SameRouter,
    ForgetRouter,
    PreferOtherSource,
    NoSource,
    RouteAway,
    RouteBack,
    UplinkDown,
    UplinkUp,
    SmallMtu,
    LargeMtu,
    Internal,
    Open,
    Publish,
    PublishForOneUplink,
    PublishElsewhere,
    Withdraw,
    SmallNetwork,
    LargeNetwork,
    EndpointMoves,
    EndpointGoes,
    EndpointDown,
    EndpointUp,
    DenyOutside,
    AllowOutside,
    DenyNothing,
    ClampSegments,
    Drain,
    HostTakesRemote,
    HostDropsRemote,
}

/// Behind the router, on the link, and on the link without a MAC.
const REMOTES: [&str; 3] = ["198.51.100.9", "192.0.2.7", "192.0.2.8"];

/// A topology with two providers, in which endpoints keep their ports outside.
fn providers() -> Topology {
    let mut topology = world::topology();
    world::add_second_uplink(&mut topology);
    topology.nat.port_range = 1_024..=65_535;
    topology.finish();
    topology
}

/// Ports 5000 to 5002 of the host, of both transports, lead to as many of `inside`.
fn published(inside: &str, external: &External) -> StaticRules {
    let target = Target::new(0, RED, L4Addr::new(ip(inside), 5000));
    let rules = [(7, Transport::Udp), (8, Transport::Tcp)].map(|(id, transport)| StaticRule {
        external: external.clone(),
        ..StaticRule::new(id, transport, 5000..=5002, target)
    });
    StaticRules::build(rules.into()).unwrap()
}

/// A rule about what outside opens to the red network.
fn outside(action: Action) -> Policy {
    let (from, to) = (Side::Outside, Side::Network(RED));
    Policy::new([Rule::new(RuleSlot(0), "outside", action, from, to)])
}

/// An endpoint of the red network.
fn neighbour(t: &mut Topology) -> &mut Neighbour {
    let red = t.domains[RED.index()].as_mut().unwrap();
    red.neighbours.entry(ip("10.1.0.2")).or_insert(Neighbour {
        mac: mac(1),
        port: PortId(1),
    })
}

fn change(edit: Edit, t: &mut Topology) {
    let away = Route {
        prefix: Prefix::new(ip("198.51.100.0"), 24),
        uplink: None,
        next_hop: None,
        source: None,
    };
    let uplink = &mut t.uplinks[0];
    match edit {
        Edit::Nothing => {}
        Edit::OtherRouter => {
            let router = ip("192.0.2.254");
            uplink.neighbours.insert(router, mac(OTHER_ROUTER));
        }
        Edit::SameRouter => {
            uplink.neighbours.insert(ip("192.0.2.254"), ROUTER_MAC);
        }
        Edit::ForgetRouter => {
            uplink.neighbours.remove(&ip("192.0.2.254"));
        }
        Edit::PreferOtherSource | Edit::NoSource => {
            let other = matches!(edit, Edit::PreferOtherSource).then(|| ip("192.0.2.2"));
            let default = t.routes.iter_mut().find(|route| route.prefix.len == 0);
            default.unwrap().source = other;
        }
        Edit::RouteAway => t.routes.push(away),
        Edit::RouteBack => t.routes.retain(|route| *route != away),
        Edit::UplinkDown | Edit::UplinkUp => {
            let port = t.ports[UPLINK.index()].as_mut().unwrap();
            port.up = matches!(edit, Edit::UplinkUp);
        }
        Edit::SmallMtu => uplink.mtu = 600,
        Edit::LargeMtu => uplink.mtu = 1500,
        Edit::Internal | Edit::Open => {
            let red = t.domains[RED.index()].as_mut().unwrap();
            red.internal = matches!(edit, Edit::Internal);
        }
        Edit::Publish => t.statics = published("10.1.0.2", &External::Every),
        Edit::PublishForOneUplink => {
            let external = External::Uplink(UplinkId(0), vec![ip("192.0.2.1")]);
            t.statics = published("10.1.0.2", &external);
        }
        Edit::PublishElsewhere => t.statics = published("10.1.0.3", &External::Every),
        Edit::SmallNetwork | Edit::LargeNetwork => {
            let red = t.domains[RED.index()].as_mut().unwrap();
            let small = matches!(edit, Edit::SmallNetwork);
            red.gateway.as_mut().unwrap().mtu = if small { 600 } else { 1500 };
        }
        Edit::EndpointMoves => neighbour(t).port = PortId(3),
        Edit::EndpointGoes => {
            let red = t.domains[RED.index()].as_mut().unwrap();
            red.neighbours.remove(&ip("10.1.0.2"));
        }
        Edit::EndpointDown | Edit::EndpointUp => {
            neighbour(t).port = PortId(1);
            let port = t.ports[1].as_mut().unwrap();
            port.up = matches!(edit, Edit::EndpointUp);
        }
        Edit::DenyOutside => t.policy = outside(Action::Drop),
        Edit::AllowOutside => t.policy = outside(Action::Allow),
        Edit::DenyNothing => t.policy = Policy::default(),
        Edit::ClampSegments => {
            uplink.mtu = 600;
            t.nat.clamp_mss = true;
        }
        Edit::Drain => {
            let mut rules = t.statics.rules().to_vec();
            let targets = rules.iter_mut().flat_map(|rule| &mut rule.targets);
            targets.for_each(|target| target.duty = Duty::Draining);
            t.statics = StaticRules::build(rules).unwrap();
        }
        Edit::Withdraw => t.statics = StaticRules::default(),
        Edit::HostTakesRemote => {
            t.local_addresses.insert(ip(REMOTES[0]));
        }
        Edit::HostDropsRemote => {
            t.local_addresses.remove(&ip(REMOTES[0]));
        }
    }
}

/// A packet of IPv4 between two ends, or one of IPv6 from the endpoint `src`.
fn packet(
    (from, to): (MacAddr, MacAddr),
    (src, src_port): ([u8; 4], u16),
    (dst, dst_port): ([u8; 4], u16),
    shape: Shape,
    ttl: u8,
    payload: u16,
) -> (Vec<u8>, Offload) {
    let link = PacketBuilder::ethernet2(from.0, to.0);
    let data = vec![0x33; usize::from(payload)];
    let mut bytes = Vec::new();
    let mut offload = Offload::NONE;
    match shape {
        Shape::Udp | Shape::FirstFragment | Shape::LaterFragment => {
            let packet = link.ipv4(src, dst, ttl).udp(src_port, dst_port);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Tcp(flags) => {
            let mut header = TcpHeader::new(src_port, dst_port, 1, 1024);
            header.syn = flags & 1 != 0;
            header.ack = flags & 2 != 0;
            header.fin = flags & 4 != 0;
            header.rst = flags & 8 != 0;
            if header.syn {
                let offer = TcpOptionElement::MaximumSegmentSize(1_460);
                header.set_options(&[offer]).unwrap();
            }
            let packet = link.ipv4(src, dst, ttl).tcp_header(header);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Echo => {
            let link = link.ipv4(src, dst, ttl);
            let packet = match src {
                [10, ..] => link.icmpv4_echo_request(src_port, 1),
                _ => link.icmpv4_echo_reply(dst_port, 1),
            };
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::UdpV6 => {
            let end = |[a, _, _, d]: [u8; 4]| match a {
                10 => ip(&format!("fd00:1::{d}")),
                192 if d == 1 => ip("2001:db8::1"),
                _ => ip(&format!("2001:db9::{d}")),
            };
            let octets = |end| match end {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(_) => unreachable!("of IPv6"),
            };
            let (src, dst) = (octets(end(src)), octets(end(dst)));
            let packet = link.ipv6(src, dst, ttl).udp(src_port, dst_port);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Gso => {
            let packet = link.ipv4(src, dst, ttl).tcp(src_port, dst_port, 1, 1024);
            packet.write(&mut bytes, &vec![0x44; 4000]).unwrap();
            offload = Offload {
                flags: Offload::NEEDS_CSUM,
                gso_type: 1,
                hdr_len: 54,
                gso_size: payload.max(100),
                csum_start: 34,
                csum_offset: 16,
            };
        }
    }
    match shape {
        Shape::FirstFragment => bytes[20] = 0x20,
        Shape::LaterFragment => bytes[21] = 9,
        Shape::Udp | Shape::Tcp(_) | Shape::Echo | Shape::UdpV6 | Shape::Gso => {
            return (bytes, offload);
        }
    }
    let checksum = dataplane_core::checksum::ipv4_header(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    (bytes, offload)
}

/// What an endpoint sends to a remote.
fn question(
    from: u8,
    l4_port: u16,
    remote: u8,
    shape: Shape,
    ttl: u8,
    payload: u16,
) -> (Vec<u8>, Offload) {
    let macs = (mac(from), gateway_mac(RED));
    let src = ([10, 1, 0, from + 1], l4_port);
    let dst = (octets4(REMOTES[usize::from(remote)]), service(shape));
    packet(macs, src, dst, shape, ttl, payload)
}

/// What a remote sends to a port of the host, and the port that it comes by.
fn answer(
    by: Provider,
    l4_port: u16,
    remote: u8,
    shape: Shape,
    ttl: u8,
    payload: u16,
) -> (PortId, (Vec<u8>, Offload)) {
    let (port, macs, own) = match by {
        Provider::First | Provider::Tagged => (UPLINK, (ROUTER_MAC, UPLINK_MAC), [192, 0, 2, 1]),
        Provider::Astray => (UPLINK, (ROUTER_MAC, mac(OTHER_ROUTER)), [192, 0, 2, 1]),
        Provider::Second => (
            SECOND_UPLINK,
            (SECOND_ROUTER_MAC, SECOND_UPLINK_MAC),
            [100, 64, 0, 1],
        ),
        Provider::Crossed => (
            SECOND_UPLINK,
            (SECOND_ROUTER_MAC, SECOND_UPLINK_MAC),
            [192, 0, 2, 1],
        ),
    };
    let src = (octets4(REMOTES[usize::from(remote)]), service(shape));
    let mut made = packet(macs, src, (own, l4_port), shape, ttl, payload);
    if matches!(by, Provider::Tagged) {
        made.0.splice(12..12, [0x81, 0, 0, 5]);
    }
    (port, made)
}

/// The port of remotes.
fn service(shape: Shape) -> u16 {
    match shape {
        Shape::Tcp(_) | Shape::Gso => 80,
        _ => 53,
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        6 => Just(Shape::Udp),
        6 => (0u8..16).prop_map(Shape::Tcp),
        2 => Just(Shape::Echo),
        2 => Just(Shape::UdpV6),
        1 => Just(Shape::FirstFragment),
        1 => Just(Shape::LaterFragment),
        1 => Just(Shape::Gso),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop::sample::select(vec![
        Edit::Nothing,
        Edit::OtherRouter,
        Edit::SameRouter,
        Edit::ForgetRouter,
        Edit::PreferOtherSource,
        Edit::NoSource,
        Edit::RouteAway,
        Edit::RouteBack,
        Edit::UplinkDown,
        Edit::UplinkUp,
        Edit::SmallMtu,
        Edit::LargeMtu,
        Edit::Internal,
        Edit::Open,
        Edit::Publish,
        Edit::PublishForOneUplink,
        Edit::PublishElsewhere,
        Edit::Withdraw,
        Edit::SmallNetwork,
        Edit::LargeNetwork,
        Edit::EndpointMoves,
        Edit::EndpointGoes,
        Edit::EndpointDown,
        Edit::EndpointUp,
        Edit::DenyOutside,
        Edit::AllowOutside,
        Edit::DenyNothing,
        Edit::ClampSegments,
        Edit::Drain,
        Edit::HostTakesRemote,
        Edit::HostDropsRemote,
    ])
}

/// A TTL, nearly always enough.
fn ttl() -> impl Strategy<Value = u8> {
    prop_oneof![9 => Just(64u8), 1 => 0u8..3]
}

/// Bytes of payload, on both sides of the smaller MTU and of the larger one.
fn payload() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(40u16), 2 => 500u16..1500]
}

fn happening() -> impl Strategy<Value = Happening> {
    let ends = (1u8..3, 5000u16..5002, 0u8..3);
    let send = (ends.clone(), shape(), ttl(), payload());
    let send = send.prop_map(
        |((from, l4_port, remote), shape, ttl, payload)| Happening::Send {
            from,
            l4_port,
            remote,
            shape,
            ttl,
            payload,
        },
    );
    let by = prop_oneof![
        6 => Just(Provider::First),
        2 => Just(Provider::Second),
        1 => Just(Provider::Crossed),
        1 => Just(Provider::Astray),
        1 => Just(Provider::Tagged),
    ];
    let answer = (ends, by, shape(), ttl(), payload());
    let answer =
        answer.prop_map(
            |((_, l4_port, remote), by, shape, ttl, payload)| Happening::Answer {
                by,
                remote,
                l4_port,
                shape,
                ttl,
                payload,
            },
        );
    prop_oneof![
        16 => send,
        16 => answer,
        2 => prop_oneof![3 => 0u16..3, 1 => 200u16..9000].prop_map(Happening::Wait),
        2 => edit().prop_map(Happening::Edit),
    ]
}

/// The steps, but for what no rule says: the short way out does not ask where none could.
fn steps(outcome: &Outcome) -> Vec<Step> {
    let unsaid = |step: &&Step| !matches!(step, Step::Policy(Ruling::Default, _));
    outcome.steps.iter().filter(unsaid).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_short_ways_come_to_what_the_long_ones_do(
        first in prop::collection::vec(edit(), 0..4),
        story in prop::collection::vec(happening(), 1..120),
    ) {
        let (mut short, mut long) = (World::with(providers()), World::with(providers()));
        let first = first.into_iter().map(Happening::Edit);
        for happening in first.chain(story) {
            let (port, (bytes, offload)) = match happening {
                Happening::Wait(seconds) => {
                    short.wait(seconds.into());
                    long.wait(seconds.into());
                    continue;
                }
                Happening::Edit(edit) => {
                    short.edit(|t| change(edit, t));
                    long.edit(|t| change(edit, t));
                    continue;
                }
                Happening::Answer { by, remote, l4_port, shape, ttl, payload } => {
                    answer(by, l4_port, remote, shape, ttl, payload)
                }
                Happening::Send { from, l4_port, remote, shape, ttl, payload } => {
                    let made = question(from, l4_port, remote, shape, ttl, payload);
                    (PortId(from.into()), made)
                }
            };
            // In a picture that is new for every packet, nothing is remembered.
            long.edit(|_| ());
            let one = short.send_offloaded(port.0, &bytes, offload);
            let other = long.send_offloaded(port.0, &bytes, offload);
            prop_assert_eq!(steps(&one), steps(&other));
            prop_assert_eq!(one.frame.bytes(), other.frame.bytes());
            prop_assert_eq!(one.frame.offload, other.frame.offload);
            let state = |world: &World| {
                let hits = world.sw.counters.rule_hits(RuleSlot(0));
                (world.fdb.state_hash(), world.tables.nat.state_hash(), hits)
            };
            prop_assert_eq!(state(&short), state(&long));
        }
    }
}

/// The way and the translation that a packet of one flow takes, `None` when it does not leave.
fn way(world: &mut World) -> (Verdict, Option<Way>, Option<(NatKind, bool)>) {
    let out = world.send(
        1,
        &udp4(mac(1), gateway_mac(RED), "10.1.0.2", "198.51.100.9", 64, 32),
    );
    let way = out.steps.iter().find_map(|step| match step {
        Step::Route(way) => Some(*way),
        _ => None,
    });
    let nat = out.steps.iter().find_map(|step| match step {
        Step::Nat { kind, created, .. } => Some((*kind, *created)),
        _ => None,
    });
    (out.verdict, way, nat)
}

fn by(mac: MacAddr) -> Option<Way> {
    let uplink = UplinkId(0);
    Some(Way::Uplink { uplink, mac })
}

#[test]
fn a_known_flow_follows_the_router_when_the_topology_changes() {
    let mut world = World::new();
    let routed = Verdict::Routed(PortId(9));
    let source = |created| Some((NatKind::Source, created));
    assert_eq!(way(&mut world), (routed, by(ROUTER_MAC), source(true)));
    assert_eq!(way(&mut world), (routed, by(ROUTER_MAC), source(false)));
    world.edit(|t| change(Edit::OtherRouter, t));
    for _ in 0..2 {
        let other = by(mac(OTHER_ROUTER));
        assert_eq!(way(&mut world), (routed, other, source(false)));
    }
    world.edit(|t| change(Edit::Internal, t));
    let internal = Verdict::Drop(DropReason::NetworkInternal);
    assert_eq!(way(&mut world), (internal, None, None));
    world.edit(|t| change(Edit::Open, t));
    world.edit(|t| change(Edit::UplinkDown, t));
    let down = Verdict::Drop(DropReason::EgressDown);
    assert_eq!(way(&mut world), (down, None, None));
    world.edit(|t| change(Edit::UplinkUp, t));
    let other = by(mac(OTHER_ROUTER));
    assert_eq!(way(&mut world), (routed, other, source(false)));
}

/// A datagram to port 5000 of the host's first address; what becomes of it.
fn asks(world: &mut World, by: Provider) -> Verdict {
    let (port, (bytes, _)) = answer(by, 5000, 0, Shape::Udp, 64, 40);
    world.send(port.0, &bytes).verdict
}

#[test]
fn a_known_client_comes_by_the_uplink_that_its_port_is_published_for() {
    let mut world = World::with(providers());
    world.edit(|t| change(Edit::PublishForOneUplink, t));
    let other = Verdict::Drop(DropReason::NatOtherUplink);
    for _ in 0..3 {
        assert_eq!(
            asks(&mut world, Provider::First),
            Verdict::Routed(PortId(1))
        );
        assert_eq!(asks(&mut world, Provider::Crossed), other);
    }
    world.edit(|t| change(Edit::Publish, t));
    for _ in 0..3 {
        assert_eq!(
            asks(&mut world, Provider::First),
            Verdict::Routed(PortId(1))
        );
        assert_eq!(
            asks(&mut world, Provider::Crossed),
            Verdict::Routed(PortId(1))
        );
    }
}

#[test]
fn a_known_client_is_led_by_the_picture_of_now() {
    let mut world = World::with(providers());
    for (edit, endpoint) in [
        (Edit::Publish, 1),
        (Edit::PublishElsewhere, 2),
        (Edit::Publish, 1),
    ] {
        world.edit(|t| change(edit, t));
        for _ in 0..3 {
            let led = asks(&mut world, Provider::First);
            assert_eq!(led, Verdict::Routed(PortId(endpoint)));
        }
    }
    world.edit(|t| change(Edit::Withdraw, t));
    let led = asks(&mut world, Provider::First);
    assert!(!matches!(led, Verdict::Routed(_)), "{led:?}");
}

#[test]
fn a_rule_counts_every_packet_of_a_known_client() {
    let mut world = World::with(providers());
    world.edit(|t| change(Edit::Publish, t));
    assert_eq!(
        asks(&mut world, Provider::First),
        Verdict::Routed(PortId(1))
    );
    world.edit(|t| change(Edit::AllowOutside, t));
    for asked in 1..4 {
        assert_eq!(
            asks(&mut world, Provider::First),
            Verdict::Routed(PortId(1))
        );
        assert_eq!(world.sw.counters.rule_hits(RuleSlot(0)).0, asked);
    }
}

#[test]
fn a_rule_counts_every_answer_of_a_published_port() {
    let mut world = World::with(providers());
    for edit in [Edit::Publish, Edit::AllowOutside] {
        world.edit(|t| change(edit, t));
    }
    assert_eq!(
        asks(&mut world, Provider::First),
        Verdict::Routed(PortId(1))
    );
    for counted in 2..5 {
        let (bytes, _) = question(1, 5000, 0, Shape::Udp, 64, 40);
        assert_eq!(world.send(1, &bytes).verdict, Verdict::Routed(UPLINK));
        assert_eq!(world.sw.counters.rule_hits(RuleSlot(0)).0, counted);
    }
}

#[test]
fn what_was_published_before_makes_no_answer_of_a_flow() {
    let mut world = World::with(providers());
    for edit in [Edit::AllowOutside, Edit::Publish] {
        world.edit(|t| change(edit, t));
    }
    let (port, (bytes, _)) = answer(Provider::First, 5000, 1, Shape::Tcp(0), 64, 40);
    world.send(port.0, &bytes);
    let sends = |world: &mut World| {
        let (bytes, _) = question(1, 5000, 1, Shape::Tcp(ACK), 64, 40);
        let out = world.send(1, &bytes);
        let policy = out
            .steps
            .iter()
            .any(|s| matches!(s, Step::Policy(Ruling::Allowed(_), _)));
        (
            out.verdict,
            policy,
            world.sw.counters.rule_hits(RuleSlot(0)).0,
        )
    };
    let routed = Verdict::Routed(PortId(9));
    assert_eq!(sends(&mut world), (routed, true, 2), "an answer");
    world.edit(|t| change(Edit::PublishElsewhere, t));
    for _ in 0..3 {
        assert_eq!(sends(&mut world), (routed, false, 2), "a flow of its own");
    }
}

#[test]
fn a_syn_of_a_known_flow_is_held_to_the_mtu() {
    let mut world = World::with(providers());
    world.edit(|t| change(Edit::ClampSegments, t));
    let mut sends = |flags| {
        let (bytes, _) = question(1, 5000, 0, Shape::Tcp(flags), 64, 0);
        world.send(1, &bytes).frame.bytes().to_vec()
    };
    for _ in 0..2 {
        sends(ACK);
        let syn = sends(SYN);
        // The option stands behind the header's 20 bytes, its value behind two.
        assert_eq!(syn[14 + 40 + 2..14 + 40 + 4], 560u16.to_be_bytes());
    }
}
