//! What is for a service of the switch at a gateway, and what stays the host's, driven through `forward`.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::DomainId;
use dataplane_core::topology::Resolver;
use dataplane_core::trace::{Step, Way};
use dataplane_core::verdict::{Consumer, DropReason, Verdict};
use etherparse::PacketBuilder;
use world::packets::{octets4, octets6};
use world::{HOST_LINK, RED, VAULT, World, gateway_mac, mac};

const GATEWAY: &str = "10.1.0.1";
const GATEWAY6: &str = "fd00:1::1";

fn served(domains: &[DomainId]) -> World {
    let mut world = World::new();
    world.edit(|topology| {
        for id in domains {
            let domain = topology.domains[id.index()].as_mut().unwrap();
            domain.resolver = Resolver::Service;
        }
    });
    world
}

/// From endpoint a to a port of an address, by way of its gateway.
fn udp(dst: &str, port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0);
    let builder = match dst.contains(':') {
        true => builder.ipv6(octets6("fd00:1::2"), octets6(dst), 64),
        false => builder.ipv4(octets4("10.1.0.2"), octets4(dst), 64),
    };
    let mut frame = Vec::new();
    builder.udp(1000, port).write(&mut frame, b"?").unwrap();
    frame
}

fn tcp(dst: &str, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4(octets4("10.1.0.2"), octets4(dst), 64)
        .tcp(1000, port, 7, 1000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

#[test]
fn what_is_for_dns_at_the_gateway_is_delivered_to_the_service() {
    let mut world = served(&[RED]);
    let link_local = gateway_mac(RED).link_local_v6().to_string();
    let frames = [
        udp(GATEWAY, 53),
        tcp(GATEWAY, 53),
        udp(GATEWAY6, 53),
        udp(&link_local, 53),
    ];
    for frame in frames {
        let out = world.send(1, &frame);
        let service = Verdict::Delivered(Consumer::Service(RED));
        assert_eq!(out.verdict, service);
        assert!(out.steps.contains(&Step::Route(Way::Local)));
        assert_eq!(out.frame.bytes(), frame, "as it came");
        assert_eq!(
            out.verdict.to_string(),
            format!("delivered to the service: dns, of {RED}")
        );
    }
}

#[test]
fn other_ports_and_other_addresses_are_not_the_services() {
    let mut world = served(&[RED]);
    let host = Verdict::Delivered(Consumer::HostLink(HOST_LINK));
    for frame in [udp(GATEWAY, 54), tcp(GATEWAY, 80), udp("192.0.2.1", 53)] {
        assert_eq!(world.send(1, &frame).verdict, host);
    }
    let outside = world.send(1, &udp("198.51.100.9", 53)).verdict;
    assert!(matches!(outside, Verdict::Routed(_)), "{outside:?}");
    let sibling = world.send(1, &udp("10.1.0.3", 53)).verdict;
    assert!(matches!(sibling, Verdict::Routed(_)), "{sibling:?}");
    let other = world.send(1, &udp("10.2.0.1", 53)).verdict;
    assert_eq!(other, Verdict::Drop(DropReason::NetworkIsolated));
}

#[test]
fn a_network_whose_service_is_off_asks_the_host_as_before() {
    let mut world = World::new();
    let host = Verdict::Delivered(Consumer::HostLink(HOST_LINK));
    for frame in [udp(GATEWAY, 53), tcp(GATEWAY, 53), udp(GATEWAY6, 53)] {
        assert_eq!(world.send(1, &frame).verdict, host);
    }
}

#[test]
fn networks_without_the_host_and_internal_ones_are_served_too() {
    let mut world = served(&[RED, VAULT]);
    world.edit(|topology| {
        topology.host_link = None;
        for domain in topology.domains.iter_mut().flatten() {
            domain.host_link = false;
        }
    });
    let out = world.send(1, &udp(GATEWAY, 53));
    assert_eq!(out.verdict, Verdict::Delivered(Consumer::Service(RED)));
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(5).0, gateway_mac(VAULT).0)
        .ipv4(octets4("10.3.0.2"), octets4("10.3.0.1"), 64)
        .udp(1000, 53)
        .write(&mut frame, b"?")
        .unwrap();
    let out = world.send(5, &frame);
    assert_eq!(out.verdict, Verdict::Delivered(Consumer::Service(VAULT)));
}

#[test]
fn nobody_asks_under_an_address_of_another_network() {
    let mut world = served(&[RED]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, gateway_mac(RED).0)
        .ipv4(octets4("10.2.0.2"), octets4(GATEWAY), 64)
        .udp(1000, 53)
        .write(&mut frame, b"?")
        .unwrap();
    // Port security would stop it before.
    world.edit(|topology| {
        let port = topology.ports[1].as_mut().unwrap();
        port.profile_mut().identity.addresses = [octets4("10.2.0.2").into()].into();
    });
    let out = world.send(1, &frame);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::MartianSource));
}
