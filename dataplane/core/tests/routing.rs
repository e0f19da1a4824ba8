//! Where the gateway routes, driven through `forward`: the same network, others, the host, the
//! outside, and what it refuses.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::PortId;
use dataplane_core::policy::{Action, Policy, Rule, RuleSlot, Side};
use dataplane_core::route::{HELD_PER_NEXT_HOP_MAX, HOLD_TIME};
use dataplane_core::trace::{IcmpErrorKind, Step, Way};
use dataplane_core::verdict::{Awaited, Consumer, DropReason, Verdict, VerdictKind};
use world::packets::{arp_request, assert_error, assert_valid, from_a, udp4};
use world::{
    BLUE, HOST_LINK, HOST_MAC, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, World, gateway_mac, ip, mac,
};

#[test]
fn the_same_network_is_routed_out_again_with_one_hop_less() {
    let mut world = World::new();
    let out = world.send(1, &from_a("10.1.0.3"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(2)));
    assert_valid(out.frame.bytes());
    assert_eq!(
        out.frame.bytes()[..12],
        [mac(2).0, gateway_mac(RED).0].concat()
    );
    assert_eq!(out.frame.bytes()[22], 63);
    let out = world.send(1, &from_a("10.1.0.77"));
    assert_error(&out, IcmpErrorKind::HostUnreachable, "10.1.0.1", "10.1.0.2");
}

#[test]
fn networks_are_isolated_until_allowed_and_then_in_that_direction_only() {
    let mut world = World::new();
    let isolated = Verdict::Drop(DropReason::NetworkIsolated);
    assert_eq!(world.send(1, &from_a("10.2.0.2")).verdict, isolated);
    assert_eq!(
        world.send(1, &from_a("10.2.0.1")).verdict,
        isolated,
        "nor its gateway"
    );
    world.edit(|t| {
        let (red, blue) = (Side::Network(RED), Side::Network(BLUE));
        t.policy = Policy::new([Rule::new(RuleSlot(0), "to-blue", Action::Allow, red, blue)]);
    });
    let out = world.send(1, &from_a("10.2.0.2"));
    assert_eq!(out.verdict, Verdict::Routed(PortId(4)));
    assert_eq!(
        out.frame.bytes()[..12],
        [mac(4).0, gateway_mac(BLUE).0].concat()
    );
    let back = udp4(mac(4), gateway_mac(BLUE), "10.2.0.2", "10.1.0.2", 64, 8);
    assert_eq!(world.send(4, &back).verdict, isolated);
}

#[test]
fn an_internal_network_reaches_its_gateway_and_nothing_outside() {
    let mut world = World::new();
    let vault = gateway_mac(dataplane_core::addr::DomainId(3));
    for dst in ["198.51.100.9", "192.0.2.1", "10.1.0.2", "192.0.2.7"] {
        let out = world.send(5, &udp4(mac(5), vault, "10.3.0.2", dst, 64, 8));
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::NetworkInternal),
            "{dst}"
        );
    }
    let out = world.send(5, &udp4(mac(5), vault, "10.3.0.2", "10.3.0.1", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Delivered(Consumer::HostLink(HOST_LINK))
    );
}

#[test]
fn the_host_is_reached_at_the_gateway_and_at_its_own_addresses() {
    let mut world = World::new();
    for dst in ["10.1.0.1", "192.0.2.1"] {
        let out = world.send(1, &from_a(dst));
        assert_eq!(
            out.verdict,
            Verdict::Delivered(Consumer::HostLink(HOST_LINK)),
            "{dst}"
        );
        assert!(out.steps.contains(&Step::Route(Way::Host)));
        assert_eq!(
            out.frame.bytes()[..12],
            [HOST_MAC.0, gateway_mac(RED).0].concat()
        );
        assert_eq!(out.frame.bytes()[22], 64, "the host is no hop away");
    }
}

#[test]
fn without_a_host_link_the_gateway_refuses_what_it_does_not_serve() {
    let mut world = World::new();
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().host_link = false);
    let out = world.send(1, &from_a("10.1.0.1"));
    assert_error(&out, IcmpErrorKind::PortUnreachable, "10.1.0.1", "10.1.0.2");
    let out = world.send(1, &from_a("192.0.2.1"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoHostLink));
    let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, "192.0.2.1", "10.1.0.2", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::NoRoute),
        "nor does the host get in"
    );
}

#[test]
fn the_host_reaches_containers_from_its_own_addresses_only() {
    let mut world = World::new();
    for src in ["192.0.2.1", "10.1.0.1"] {
        let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, src, "10.1.0.2", 64, 8));
        assert_eq!(out.verdict, Verdict::Routed(PortId(1)), "{src}");
        assert_eq!(
            out.frame.bytes()[..12],
            [mac(1).0, gateway_mac(RED).0].concat()
        );
        assert_eq!(out.frame.bytes()[22], 64);
    }
    let out = world.send(8, &udp4(HOST_MAC, HOST_MAC, "192.0.2.7", "10.1.0.2", 64, 8));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::HostLinkForeignSource)
    );
}

#[test]
fn impossible_addresses_go_nowhere() {
    let mut world = World::new();
    let martian = Verdict::Drop(DropReason::MartianDestination);
    for dst in [
        "224.0.0.1",
        "255.255.255.255",
        "127.0.0.1",
        "0.0.0.0",
        "10.1.255.255",
    ] {
        assert_eq!(world.send(1, &from_a(dst)).verdict, martian, "{dst}");
    }
    for src in ["10.2.0.2", "198.51.100.1", "0.0.0.0", "127.0.0.1"] {
        let out = world.send(
            1,
            &udp4(mac(1), gateway_mac(RED), src, "198.51.100.9", 64, 8),
        );
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::MartianSource),
            "{src}"
        );
    }
}

#[test]
fn what_the_gateway_cannot_read_is_dropped_with_its_reason() {
    let mut world = World::new();
    let whole = from_a("198.51.100.9");
    for size in 14..whole.len() {
        let out = world.send(1, &whole[..size]);
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::L3Malformed),
            "{size} bytes"
        );
    }
    let mut tagged = whole[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&whole[12..]);
    assert_eq!(
        world.send(1, &tagged).verdict,
        Verdict::Drop(DropReason::TaggedForGateway)
    );
}

#[test]
fn no_route_and_a_route_by_no_uplink_are_told_apart() {
    let mut world = World::new();
    let out = world.send(1, &from_a("203.0.113.5"));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoUplinkRoute));
    world.edit(|t| t.routes.retain(|route| route.prefix.len != 0));
    let out = world.send(1, &from_a("198.51.100.9"));
    assert_error(
        &out,
        IcmpErrorKind::NetworkUnreachable,
        "10.1.0.1",
        "10.1.0.2",
    );
}

#[test]
fn a_frame_waits_for_its_next_hop_and_leaves_when_it_is_known() {
    let mut world = World::new();
    let out = world.send(1, &from_a("192.0.2.99"));
    assert_eq!(out.verdict, Verdict::Held(Awaited::NextHop));
    assert_eq!(
        world.sw.gateway.take_wanted(),
        [(dataplane_core::addr::UplinkId(0), ip("192.0.2.99"))]
    );
    let counters = std::sync::Arc::clone(&world.sw.counters);
    assert!(
        world
            .sw
            .gateway
            .release(&world.sw.topology, &counters, world.now)
            .is_none()
    );
    world.edit(|t| {
        t.uplinks[0].neighbours.insert(ip("192.0.2.99"), mac(99));
    });
    let released = world
        .sw
        .gateway
        .release(&world.sw.topology, &counters, world.now);
    let (ingress, frame, verdict) = released.unwrap();
    assert_eq!((ingress, verdict), (PortId(1), Verdict::Routed(UPLINK)));
    assert_eq!(frame.bytes()[..12], [mac(99).0, UPLINK_MAC.0].concat());
    assert_valid(frame.bytes());
    assert_eq!(counters.released.get(), 1);
    assert_eq!(counters.judged(), counters.rx.get() + 1);
    assert_eq!(counters.verdict(VerdictKind::Held), 1);
}

#[test]
fn by_a_tunnel_everything_goes_to_its_other_end_and_waits_for_nobody() {
    let mut world = World::new();
    world.edit(|t| {
        t.uplinks[0].neighbours.clear();
        t.uplinks[0].peer = Some(mac(77));
    });
    // On the link, and behind a router; the second packet takes the short way.
    for destination in ["192.0.2.99", "198.51.100.9"] {
        for packet in 0..2 {
            let out = world.send(1, &from_a(destination));
            assert_eq!(
                out.verdict,
                Verdict::Routed(UPLINK),
                "{destination} {packet}"
            );
            assert_eq!(out.frame.bytes()[..12], [mac(77).0, UPLINK_MAC.0].concat());
            assert_valid(out.frame.bytes());
        }
    }
    // What has waited for a station leaves once the uplink is a tunnel.
    world.edit(|t| t.uplinks[0].peer = None);
    let out = world.send(1, &from_a("192.0.2.98"));
    assert_eq!(out.verdict, Verdict::Held(Awaited::NextHop));
    world.edit(|t| t.uplinks[0].peer = Some(mac(78)));
    let counters = std::sync::Arc::clone(&world.sw.counters);
    let (topology, now) = (&world.sw.topology, world.now);
    let released = world.sw.gateway.release(topology, &counters, now).unwrap();
    assert_eq!(released.1.bytes()[..6], mac(78).0);
}

#[test]
fn waiting_frames_are_few_and_are_given_up_in_time() {
    let mut world = World::new();
    for n in 0..=HELD_PER_NEXT_HOP_MAX {
        let verdict = world.send(1, &from_a("192.0.2.99")).verdict;
        let expected = match n {
            HELD_PER_NEXT_HOP_MAX => Verdict::Drop(DropReason::NextHopUnresolved),
            _ => Verdict::Held(Awaited::NextHop),
        };
        assert_eq!(verdict, expected, "frame {n}");
    }
    world.wait(HOLD_TIME.as_secs());
    let counters = std::sync::Arc::clone(&world.sw.counters);
    let mut given_up = 0;
    while let Some((_, _, verdict)) =
        world
            .sw
            .gateway
            .release(&world.sw.topology, &counters, world.now)
    {
        assert_eq!(verdict, Verdict::Drop(DropReason::NextHopUnresolved));
        given_up += 1;
    }
    assert_eq!(given_up, HELD_PER_NEXT_HOP_MAX);
}

#[test]
fn on_a_shared_interface_the_hosts_own_traffic_is_left_alone() {
    let mut world = World::new();
    let to_host = |dst_mac, dst: &str| udp4(ROUTER_MAC, dst_mac, "198.51.100.9", dst, 64, 8);
    for (frame, why) in [
        (to_host(UPLINK_MAC, "192.0.2.1"), "a port of the host's own"),
        (to_host(mac(66), "192.0.2.1"), "another station's MAC"),
        (
            to_host(UPLINK_MAC, "192.0.2.200"),
            "neither an address of the host nor of a network",
        ),
        (
            arp_request(ROUTER_MAC, [192, 0, 2, 254], [192, 0, 2, 1]),
            "ARP is the host's",
        ),
        (vec![0xff; 60], "noise"),
    ] {
        assert_eq!(world.send(9, &frame).verdict, Verdict::NotOurs, "{why}");
    }
    let out = world.send(9, &to_host(UPLINK_MAC, "10.1.0.2"));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::UplinkForeignDestination)
    );
}
