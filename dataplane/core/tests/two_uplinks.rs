//! Two providers, driven through `forward`: an answer leaves by the one whose address was asked.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::{L4Addr, MacAddr, PortId};
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::topology::Topology;
use dataplane_core::trace::IcmpErrorKind;
use dataplane_core::verdict::Verdict;
use etherparse::PacketBuilder;
use world::packets::{assert_error, assert_valid, octets4, set_dont_fragment};
use world::{
    Outcome, RED, ROUTER_MAC, SECOND_ROUTER_MAC, SECOND_UPLINK, SECOND_UPLINK_MAC, UPLINK,
    UPLINK_MAC, World, add_second_uplink, gateway_mac, ip, mac,
};

const CLIENT: &str = "198.51.100.9";
const SERVER: &str = "10.1.0.3";
/// Addresses of the host, at the first uplink and at the second.
const FIRST: &str = "192.0.2.1";
const SECOND: &str = "100.64.0.1";

/// A world with two uplinks, where UDP port 53 of every address leads to b.
fn world() -> World {
    let mut world = World::new();
    let target = Target::new(0, RED, L4Addr::new(ip(SERVER), 53));
    let rules = vec![StaticRule::new(1, Transport::Udp, 53..=53, target)];
    world.edit(|t| {
        add_second_uplink(t);
        t.statics = StaticRules::build(rules).unwrap();
    });
    world
}

fn datagram(
    (from, to): (MacAddr, MacAddr),
    src: (&str, u16),
    dst: (&str, u16),
    size: usize,
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(octets4(src.0), octets4(dst.0), 64)
        .udp(src.1, dst.1)
        .write(&mut frame, &vec![7; size])
        .unwrap();
    frame
}

/// The client asks by the second uplink, at the host's address there.
fn ask(world: &mut World) -> Outcome {
    let link = (SECOND_ROUTER_MAC, SECOND_UPLINK_MAC);
    let request = datagram(link, (CLIENT, 4_000), (SECOND, 53), 8);
    let out = world.send(SECOND_UPLINK.0, &request);
    assert_eq!(out.verdict, Verdict::Routed(PortId(2)));
    out
}

fn answer(size: usize) -> Vec<u8> {
    let link = (mac(2), gateway_mac(RED));
    datagram(link, (SERVER, 53), (CLIENT, 4_000), size)
}

/// By which port a frame left, to which MAC, and from which address.
fn left(out: &Outcome) -> (PortId, MacAddr, std::net::IpAddr) {
    let Verdict::Routed(port) = out.verdict else {
        panic!("{:?}", out.verdict)
    };
    assert_valid(out.frame.bytes());
    let bytes = out.frame.bytes();
    let src: [u8; 4] = bytes[26..30].try_into().unwrap();
    (port, MacAddr(bytes[..6].try_into().unwrap()), src.into())
}

#[test]
fn an_answer_leaves_by_the_uplink_whose_address_was_asked() {
    let mut world = world();
    ask(&mut world);
    let second = (SECOND_UPLINK, SECOND_ROUTER_MAC, ip(SECOND));
    for _ in 0..2 {
        assert_eq!(left(&world.send(2, &answer(8))), second);
    }
    let link = (ROUTER_MAC, UPLINK_MAC);
    let request = datagram(link, (CLIENT, 5_000), (FIRST, 53), 8);
    let _ = world.send(UPLINK.0, &request);
    let link = (mac(2), gateway_mac(RED));
    let to_first = datagram(link, (SERVER, 53), (CLIENT, 5_000), 8);
    assert_eq!(
        left(&world.send(2, &to_first)),
        (UPLINK, ROUTER_MAC, ip(FIRST))
    );
    // What the server begins itself leaves by the host's route.
    let own = datagram(link, (SERVER, 7), (CLIENT, 4_000), 8);
    assert_eq!(left(&world.send(2, &own)), (UPLINK, ROUTER_MAC, ip(FIRST)));
}

#[test]
fn fragments_and_errors_leave_where_the_answer_does() {
    let mut world = world();
    let request = ask(&mut world);
    let second = (SECOND_UPLINK, SECOND_ROUTER_MAC, ip(SECOND));
    let whole = answer(2_000);
    let piece = |from: usize, to: usize, more: bool| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34 + from..34 + to]);
        frame[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        let place = (from / 8) as u16 | u16::from(more) << 13;
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        set_dont_fragment(&mut frame, false);
        frame
    };
    for fragment in [piece(0, 1_200, true), piece(1_200, 2_008, false)] {
        assert_eq!(left(&world.send(2, &fragment)), second);
    }
    let mut error = Vec::new();
    PacketBuilder::ethernet2(mac(2).0, gateway_mac(RED).0)
        .ipv4(octets4(SERVER), octets4(CLIENT), 64)
        .icmpv4_raw(3, 3, [0; 4])
        .write(&mut error, &request.frame.bytes()[14..])
        .unwrap();
    assert_eq!(left(&world.send(2, &error)), second);
}

#[test]
fn an_answer_takes_the_hosts_route_where_its_own_uplink_leads_nowhere() {
    let first = (UPLINK, ROUTER_MAC, ip(SECOND));
    let blocked: [fn(&mut Topology); 3] = [
        |t| t.ports[SECOND_UPLINK.index()].as_mut().unwrap().up = false,
        |t| t.routes.truncate(t.routes.len() - 1),
        // The first uplink has the address as well.
        |t| t.uplinks[0].addresses.push(ip(SECOND)),
    ];
    for block in blocked {
        let mut world = world();
        ask(&mut world);
        world.edit(block);
        assert_eq!(left(&world.send(2, &answer(8))), first);
    }
}

#[test]
fn an_answer_is_held_against_the_mtu_of_its_own_uplink() {
    let mut world = world();
    ask(&mut world);
    world.edit(|t| t.uplinks[1].mtu = 1_280);
    let out = world.send(2, &answer(1_400));
    assert_error(
        &out,
        IcmpErrorKind::TooBig { mtu: 1_280 },
        "10.1.0.1",
        SERVER,
    );
    world.edit(|t| (t.uplinks[0].mtu, t.uplinks[1].mtu) = (1_280, 1_500));
    assert_eq!(left(&world.send(2, &answer(1_400))).0, SECOND_UPLINK);
}
