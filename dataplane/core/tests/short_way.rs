//! The short way out, by the route that a session remembers, and the long way: the same verdicts,
//! bytes, steps and tables, whatever comes.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{L4Addr, PortId, Prefix, UplinkId};
use dataplane_core::frame::Offload;
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::topology::{Route, Topology};
use dataplane_core::trace::{NatKind, Step, Way};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::{PacketBuilder, TcpHeader};
use proptest::prelude::*;
use world::packets::{octets4, udp4};
use world::{RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac, ip, mac};

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
    /// The remote sends a datagram to a port of the host, which may be published or mapped.
    Answer {
        remote: u8,
        l4_port: u16,
    },
    Wait(u16),
    Edit(Edit),
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
    Withdraw,
    HostTakesRemote,
    HostDropsRemote,
}

/// Behind the router, on the link, and on the link without a MAC.
const REMOTES: [&str; 3] = ["198.51.100.9", "192.0.2.7", "192.0.2.8"];

/// A topology in which no route can be remembered: those that are used stand too far behind.
fn forgetful() -> Topology {
    let mut topology = world::topology();
    let filler = Route {
        prefix: Prefix::new(ip("100.64.0.0"), 10),
        uplink: None,
        next_hop: None,
        source: None,
    };
    let fillers = std::iter::repeat_n(filler, 1 << 16);
    topology.routes = fillers.chain(topology.routes).collect();
    topology.finish();
    topology
}

fn change(edit: Edit, t: &mut Topology) {
    let away = Route {
        prefix: Prefix::new(ip("198.51.100.0"), 24),
        uplink: None,
        next_hop: None,
        source: None,
    };
    let target = Target::new(0, RED, L4Addr::new(ip("10.1.0.2"), 5000));
    let rule = StaticRule::new(7, Transport::Udp, 5000..=5002, target);
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
        Edit::Publish => t.statics = StaticRules::build(vec![rule]).unwrap(),
        Edit::Withdraw => t.statics = StaticRules::default(),
        Edit::HostTakesRemote => {
            t.local_addresses.insert(ip(REMOTES[0]));
        }
        Edit::HostDropsRemote => {
            t.local_addresses.remove(&ip(REMOTES[0]));
        }
    }
}

fn frame(
    from: u8,
    l4_port: u16,
    remote: u8,
    shape: Shape,
    ttl: u8,
    payload: u16,
) -> (Vec<u8>, Offload) {
    let src = [10, 1, 0, from + 1];
    let dst = octets4(REMOTES[usize::from(remote)]);
    let link = PacketBuilder::ethernet2(mac(from).0, gateway_mac(RED).0);
    let data = vec![0x33; usize::from(payload)];
    let mut bytes = Vec::new();
    let mut offload = Offload::NONE;
    match shape {
        Shape::Udp | Shape::FirstFragment | Shape::LaterFragment => {
            let packet = link.ipv4(src, dst, ttl).udp(l4_port, 53);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Tcp(flags) => {
            let mut header = TcpHeader::new(l4_port, 80, 1, 1024);
            header.syn = flags & 1 != 0;
            header.ack = flags & 2 != 0;
            header.fin = flags & 4 != 0;
            header.rst = flags & 8 != 0;
            let packet = link.ipv4(src, dst, ttl).tcp_header(header);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Echo => {
            let packet = link.ipv4(src, dst, ttl).icmpv4_echo_request(l4_port, 1);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::UdpV6 => {
            let mut src = [0; 16];
            src[..4].copy_from_slice(&[0xfd, 0, 0, 1]);
            src[15] = from + 1;
            let mut dst = [0; 16];
            dst[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb9]);
            dst[15] = remote;
            let packet = link.ipv6(src, dst, ttl).udp(l4_port, 53);
            packet.write(&mut bytes, &data).unwrap();
        }
        Shape::Gso => {
            let packet = link.ipv4(src, dst, ttl).tcp(l4_port, 80, 1, 1024);
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

fn answer(remote: u8, l4_port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(ROUTER_MAC.0, UPLINK_MAC.0)
        .ipv4(octets4(REMOTES[usize::from(remote)]), [192, 0, 2, 1], 60)
        .udp(53, l4_port)
        .write(&mut bytes, &[0x55; 30])
        .unwrap();
    bytes
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
        Edit::Withdraw,
        Edit::HostTakesRemote,
        Edit::HostDropsRemote,
    ])
}

fn happening() -> impl Strategy<Value = Happening> {
    let send = (
        1u8..3,
        5000u16..5002,
        0u8..3,
        shape(),
        prop_oneof![9 => Just(64u8), 1 => 0u8..3],
        prop_oneof![4 => Just(40u16), 2 => 500u16..1500],
    );
    let send = send.prop_map(
        |(from, l4_port, remote, shape, ttl, payload)| Happening::Send {
            from,
            l4_port,
            remote,
            shape,
            ttl,
            payload,
        },
    );
    prop_oneof![
        20 => send,
        4 => (0u8..3, 5000u16..5002)
            .prop_map(|(remote, l4_port)| Happening::Answer { remote, l4_port }),
        2 => prop_oneof![3 => 0u16..3, 1 => 200u16..9000].prop_map(Happening::Wait),
        2 => edit().prop_map(Happening::Edit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_short_way_comes_to_what_the_long_way_does(
        story in prop::collection::vec(happening(), 1..120),
    ) {
        let (mut short, mut long) = (World::new(), World::with(forgetful()));
        for happening in story {
            match happening {
                Happening::Wait(seconds) => {
                    short.wait(seconds.into());
                    long.wait(seconds.into());
                }
                Happening::Edit(edit) => {
                    short.edit(|t| change(edit, t));
                    long.edit(|t| change(edit, t));
                }
                Happening::Answer { remote, l4_port } => {
                    let bytes = answer(remote, l4_port);
                    let one = short.send(UPLINK.0, &bytes);
                    let other = long.send(UPLINK.0, &bytes);
                    prop_assert_eq!(&one.steps, &other.steps);
                    prop_assert_eq!(one.frame.bytes(), other.frame.bytes());
                }
                Happening::Send { from, l4_port, remote, shape, ttl, payload } => {
                    let (bytes, offload) = frame(from, l4_port, remote, shape, ttl, payload);
                    let one = short.send_offloaded(from.into(), &bytes, offload);
                    let other = long.send_offloaded(from.into(), &bytes, offload);
                    prop_assert_eq!(&one.steps, &other.steps);
                    prop_assert_eq!(one.frame.bytes(), other.frame.bytes());
                    prop_assert_eq!(one.frame.offload, other.frame.offload);
                }
            }
            let state = |world: &World| (world.fdb.state_hash(), world.tables.nat.state_hash());
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

fn by(mac: dataplane_core::addr::MacAddr) -> Option<Way> {
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
