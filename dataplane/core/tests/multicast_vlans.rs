//! Groups where VLANs count: each VLAN has listeners, a querier and router ports of its own.

#![allow(clippy::unwrap_used)]

mod world;

use std::net::IpAddr;

use dataplane_core::addr::{PortId, VlanId};
use dataplane_core::l2::{Form, PortFlags, PortVlans};
use dataplane_core::topology::{Multicast, Suppression};
use dataplane_core::verdict::{DropReason, Verdict};
use world::groups::{data, query, report, v4};
use world::packets::arp_request;
use world::snooping::asked;
use world::{RED, World, ip, mac};

const GROUP: &str = "239.1.2.3";

/// Ports a and b of red are in VLAN 10 and 20, c takes both with a tag, the gateway is in 10.
fn filtering(how: Multicast) -> World {
    let mut trunk = PortVlans::NONE;
    trunk.add(1..=99, Form::Tagged);
    let vlans = [
        PortVlans::access(VlanId(10)),
        PortVlans::access(VlanId(20)),
        trunk,
    ];
    let mut world = World::new();
    world.edit(|t| {
        for (port, vlans) in t.ports[1..=3].iter_mut().flatten().zip(vlans) {
            port.flags = port.flags.with(PortFlags::FILTERING);
            port.profile_mut().vlans = Some(Box::new(vlans));
        }
        let red = t.domains[RED.index()].as_mut().unwrap();
        red.gateway_vlan = VlanId(10);
        red.multicast = how;
    });
    world
}

fn tagged(vlan: u8, mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, vlan]);
    frame
}

/// Where a datagram to the group goes that enters by the trunk in a VLAN.
fn goes(world: &mut World, vlan: u8) -> Vec<u16> {
    let group: IpAddr = ip(GROUP);
    let out = world.send(3, &tagged(vlan, data(mac(3), group)));
    match out.verdict {
        Verdict::Multicast(RED, VlanId(found)) => {
            assert_eq!(found, u16::from(vlan));
            world.sw.groups.takers().iter().map(|p| p.0).collect()
        }
        Verdict::Flooded(..) => world.flood_ports(&out, 3),
        Verdict::Drop(DropReason::NoListener) => Vec::new(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_querier_of_one_vlan_is_none_of_another_and_neither_are_its_listeners() {
    let mut world = filtering(Multicast::Snooped);
    let _ = world.send(3, &tagged(10, query(mac(3), v4("10.1.0.4"), 10)));
    world.wait(2);
    assert_eq!(goes(&mut world, 10), [], "nobody listens in 10");
    assert_eq!(goes(&mut world, 20), [2], "and nobody asks in 20");
    let _ = world.send(2, &report(mac(2), ip(GROUP)));
    let _ = world.send(3, &tagged(20, query(mac(3), v4("10.1.0.4"), 10)));
    world.wait(2);
    assert_eq!(goes(&mut world, 20), [2]);
    assert_eq!(goes(&mut world, 10), [], "a listener of VLAN 20");
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    assert_eq!(goes(&mut world, 10), [1]);
    let queriers = world.mdb.queriers(&world.sw.topology, RED, world.now);
    let vlans: Vec<_> = queriers.iter().map(|row| row.vlan.0).collect();
    assert_eq!(vlans, [10, 20]);
    let routers = world.mdb.routers(RED, world.now);
    assert!(routers.iter().all(|row| row.port == PortId(3)) && routers.len() == 2);
}

#[test]
fn the_switch_asks_in_the_vlan_of_its_gateway_those_who_are_in_it() {
    let mut world = filtering(Multicast::Queried);
    let questions = asked(&mut world, 1);
    assert_eq!(questions.len(), 2, "of IGMP and MLD");
    for (_, question) in questions {
        assert_eq!(question.vlan, VlanId(10));
        let asked: Vec<_> = world.sw.topology.asked(question).map(|p| p.0).collect();
        assert_eq!(asked, [1, 3]);
    }
    let _ = asked(&mut world, 20);
    assert_eq!(goes(&mut world, 10), []);
    assert_eq!(goes(&mut world, 20), [2], "where it does not ask");
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().gateway_vlan = VlanId(20));
    let moved: Vec<_> = asked(&mut world, 1).iter().map(|(_, q)| q.vlan.0).collect();
    assert_eq!(moved, [20, 20], "it asks where it is now");
    assert_eq!(goes(&mut world, 10), [1], "and no more where it was");
}

#[test]
fn endpoints_are_answered_for_in_the_gateways_vlan_alone() {
    let mut world = filtering(Multicast::Flooded);
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().suppression = Suppression::On);
    let asks =
        |last: u8, about: u8| arp_request(mac(last - 1), [10, 1, 0, last], [10, 1, 0, about]);
    let out = world.send(1, &asks(2, 4));
    assert_eq!(out.verdict, Verdict::Replied(PortId(1)));
    let out = world.send(2, &asks(3, 4));
    assert!(
        matches!(out.verdict, Verdict::Flooded(..)),
        "{}",
        out.verdict
    );
}
