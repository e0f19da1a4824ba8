//! Queriers of groups, ours and others, and the limits of what is kept, driven through `forward` on a
//! virtual clock (RFC 2236, 3376, 3810; net/bridge/br_multicast.c).

#![allow(clippy::unwrap_used)]

mod world;

use std::net::{IpAddr, Ipv4Addr};

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::frame::FrameBuf;
use dataplane_core::l2::PortFlags;
use dataplane_core::multicast::{Family, Forget, Full, GROUPS_MAX, GROUPS_PER_PORT_MAX, GroupKey};
use dataplane_core::topology::Multicast;
use dataplane_core::verdict::{DropReason, Verdict};
use world::groups::*;
use world::snooping::*;
use world::{RED, World, gateway_mac, ip, mac};

#[test]
fn rfc2236_8_5_a_querier_that_falls_silent_is_none_after_255_seconds() {
    let mut world = queried();
    world.wait(252);
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
    world.wait(1);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3], "flooded again");
    assert!(world.mdb.routers(RED, world.now).is_empty());
}

#[test]
fn a_first_query_is_given_time_to_be_answered() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 100));
    world.wait(9);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    world.wait(1);
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 100));
    assert_eq!(
        goes(&mut world, 2, GROUP),
        [3],
        "a further one is no first one"
    );
    assert_eq!(
        goes(&mut world, 2, GROUP6),
        [1, 3],
        "MLD has its own querier"
    );
}

#[test]
fn rfc3376_4_1_queries_of_version_3_are_understood() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let v3 = |code: u8, group: Ipv4Addr, flags: u8, sources: u8| {
        let mut message = vec![QUERY, code, 0, 0];
        message.extend(group.octets());
        message.extend([flags, 125, 0, sources]);
        (0..sources).for_each(|n| message.extend([192, 0, 2, n]));
        let to = if group.is_unspecified() {
            v4("224.0.0.1")
        } else {
            group
        };
        ipv4(mac(3), v4("10.1.0.4"), to, 2, &summed(message))
    };
    // 0x8b is (11 | 16) << 3 tenths of a second: 21.6 s.
    let _ = world.send(3, &v3(0x8b, Ipv4Addr::UNSPECIFIED, 2, 0));
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    world.wait(21);
    assert_eq!(goes(&mut world, 2, OTHER), [1, 3]);
    world.wait(1);
    assert_eq!(goes(&mut world, 2, OTHER), [3]);
    // Section 4.1.5: the S flag; section 6.6.1 lets timers alone for single sources.
    let _ = world.send(3, &v3(10, v4(GROUP), 2 | 8, 0));
    let _ = world.send(3, &v3(10, v4(GROUP), 2, 1));
    world.wait(3);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    let _ = world.send(3, &v3(10, v4(GROUP), 2, 0));
    world.wait(2);
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
}

#[test]
fn rfc2236_4_a_query_of_version_1_is_general_and_takes_ten_seconds() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 0));
    world.wait(9);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    world.wait(1);
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
}

#[test]
fn rfc2236_3_the_lower_address_is_the_querier() {
    let mut world = queried();
    let querier = |world: &World| {
        let rows = world.mdb.queriers(&world.sw.topology, RED, world.now);
        rows.iter()
            .find(|r| r.family == Family::V4)
            .map(|r| r.address)
    };
    let _ = world.send(1, &query(mac(1), v4("10.1.0.9"), 10));
    assert_eq!(querier(&world), Some(ip("10.1.0.4")));
    let _ = world.send(1, &query(mac(1), v4("10.1.0.3"), 10));
    assert_eq!(querier(&world), Some(ip("10.1.0.3")));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3], "both are routers");
}

#[test]
fn rfc2236_3_a_querier_asks_at_once_again_at_31_s_and_every_125_s() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Queried);
    let times: Vec<_> = asked(&mut world, 300)
        .into_iter()
        .map(|(second, question)| {
            assert_eq!(
                (question.domain, question.group, question.to),
                (RED, None, None)
            );
            (second, question.family)
        })
        .collect();
    let wanted: Vec<_> = [0, 10, 135, 260]
        .into_iter()
        .flat_map(|second| Family::ALL.map(|family| (second, family)))
        .collect();
    assert_eq!(times, wanted);
}

#[test]
fn a_querier_of_ours_is_trusted_when_hosts_have_had_time_to_answer() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Queried);
    let _ = asked(&mut world, 19);
    let flooded = "a report to the first may have been lost";
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3], "{flooded}");
    let _ = asked(&mut world, 2);
    let out = world.send(2, &data(mac(2), ip(GROUP)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoListener));
    multicast(&mut world, Multicast::Snooped);
    let _ = asked(&mut world, 1);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3], "nobody asks any more");
}

#[test]
fn our_queries_are_what_hosts_and_other_switches_take_for_queries() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Queried);
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    let _ = world.send(1, &report(mac(1), ip(GROUP6)));
    let mut all = asked(&mut world, 1);
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    let _ = world.send(1, &leave(mac(1), ip(GROUP6)));
    all.extend(asked(&mut world, 1));
    assert_eq!(all.len(), 4);
    for (_, question) in all {
        let mut buf = FrameBuf::new();
        assert!(question.write(&world.sw.topology, &mut buf));
        let mut other = World::new();
        multicast(&mut other, Multicast::Snooped);
        let out = other.send(3, buf.bytes());
        assert_eq!(
            heard(&out).map(|heard| heard.queries),
            Some(1),
            "{question:?}"
        );
        let rows = other.mdb.queriers(&other.sw.topology, RED, other.now);
        match question.group {
            None => {
                let wanted = match question.family {
                    Family::V4 => ip("10.1.0.1"),
                    Family::V6 => gateway_mac(RED).link_local_v6().into(),
                };
                assert_eq!(rows[0].address, wanted);
            }
            Some(_) => assert!(rows.is_empty()),
        }
        let src = MacAddr(*buf.bytes()[6..].first_chunk().unwrap());
        assert_eq!(src, gateway_mac(RED));
    }
}

#[test]
fn rfc2236_8_8_the_last_listener_is_asked_for_twice_in_a_second_each_by_its_port() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Queried);
    let _ = asked(&mut world, 21);
    for port in [1, 2] {
        let _ = world.send(port, &report(mac(port as u8), ip(GROUP)));
    }
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    let about: Vec<_> = asked(&mut world, 5)
        .into_iter()
        .map(|(second, q)| (second, q.group, q.to))
        .collect();
    let wanted = |second| (second, Some(ip(GROUP)), Some(PortId(1)));
    assert_eq!(about, [wanted(0), wanted(1)]);
    assert_eq!(goes(&mut world, 3, GROUP), [2]);
    // Answered, it is asked no more.
    let _ = world.send(2, &leave(mac(2), ip(GROUP)));
    let _ = world.send(2, &report(mac(2), ip(GROUP)));
    assert!(asked(&mut world, 5).is_empty());
    assert_eq!(goes(&mut world, 3, GROUP), [2]);
}

#[test]
fn rfc2236_3_a_querier_with_a_lower_address_silences_ours_until_it_falls_silent() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Queried);
    let _ = asked(&mut world, 32);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 10));
    let ours = |world: &World| {
        let rows = world.mdb.queriers(&world.sw.topology, RED, world.now);
        rows.iter().filter(|row| row.behind.is_none()).count()
    };
    assert_eq!(ours(&world), 2, "10.1.0.1 is lower");
    let _ = world.send(3, &query(mac(3), v4("10.0.255.255"), 10));
    assert_eq!(ours(&world), 1);
    let asked_v4 = |world: &mut World, seconds| {
        let all = asked(world, seconds);
        all.iter().filter(|(_, q)| q.family == Family::V4).count()
    };
    assert_eq!(asked_v4(&mut world, 254), 0);
    assert_eq!(asked_v4(&mut world, 40), 2, "it begins anew");
    assert_eq!(ours(&world), 2);
    let out = world.send(2, &data(mac(2), ip(GROUP)));
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::NoListener),
        "trusted throughout"
    );
}

#[test]
fn a_port_may_not_take_all_groups_of_its_network_and_gets_all_that_it_wants() {
    let mut world = queried_from_nowhere();
    let group = |n: usize| IpAddr::V4(Ipv4Addr::from(0xef40_0000 + n as u32));
    for n in 0..GROUPS_PER_PORT_MAX {
        let _ = world.send(1, &report(mac(1), group(n)));
    }
    assert_eq!(world.sw.counters.groups_refused.get(), 0);
    assert_eq!(goes(&mut world, 2, OTHER), []);
    let out = world.send(1, &report(mac(1), ip(OTHER)));
    assert_eq!(heard(&out).map(|heard| heard.refused), Some(1));
    assert_eq!(world.sw.counters.groups_refused.get(), 1);
    assert_eq!(world.mdb.len(), GROUPS_PER_PORT_MAX);
    assert_eq!(goes(&mut world, 2, OTHER), [1], "what it asked for");
    assert_eq!(goes(&mut world, 2, "239.9.9.9"), [1], "and everything else");
    let _ = world.send(2, &report(mac(2), ip(OTHER)));
    assert_eq!(
        goes(&mut world, 3, OTHER),
        [1, 2],
        "another port has its own share"
    );
    world.wait(100);
    let _ = world.send(3, &query(mac(3), Ipv4Addr::UNSPECIFIED, 10));
    world.wait(160);
    assert_eq!(
        goes(&mut world, 2, "239.9.9.9"),
        [],
        "as long as a membership lasts"
    );
}

#[test]
fn a_full_network_keeps_the_old_and_floods_the_new_to_who_asked() {
    let mut world = queried_from_nowhere();
    let group = |n: usize| IpAddr::V4(Ipv4Addr::from(0xef40_0000 + n as u32));
    let key = |group| GroupKey {
        vlan: VlanId(0),
        group,
    };
    for n in 0..GROUPS_MAX {
        world.mdb.set(RED, key(group(n)), PortId(1)).unwrap();
    }
    assert_eq!(world.mdb.set(RED, key(ip(OTHER)), PortId(1)), Err(Full));
    let _ = world.send(2, &report(mac(2), ip(OTHER)));
    assert_eq!(world.mdb.len(), GROUPS_MAX);
    assert_eq!(goes(&mut world, 3, OTHER), [2]);
    let _ = world.send(2, &report(mac(2), group(5)));
    assert_eq!(
        world.mdb.len(),
        GROUPS_MAX + 1,
        "a group that is there has room"
    );
}

#[test]
fn what_is_set_neither_leaves_nor_ages_nor_is_flushed() {
    let mut world = queried();
    let key = GroupKey {
        vlan: VlanId(0),
        group: ip(GROUP),
    };
    world.mdb.set(RED, key, PortId(1)).unwrap();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    set(&mut world, 1, |flags| flags.with(PortFlags::FAST_LEAVE));
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    world.mdb.forget_port(PortId(1), Forget::Heard);
    world.wait(200);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 10));
    world.wait(200);
    let _ = asked(&mut world, 2);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    assert!(world.mdb.remove(RED, key, PortId(1)));
    assert!(!world.mdb.remove(RED, key, PortId(1)));
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
    world.mdb.set(RED, key, PortId(1)).unwrap();
    world.mdb.forget_port(PortId(1), Forget::All);
    assert!(world.mdb.is_empty());
}

#[test]
fn a_port_that_is_gone_takes_its_groups_and_its_router_with_it() {
    let mut world = queried();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    let _ = world.send(3, &report(mac(3), ip(GROUP)));
    world.mdb.forget_port(PortId(3), Forget::All);
    assert_eq!(goes(&mut world, 2, GROUP), [1]);
    assert_eq!(world.mdb.len(), 1);
}

#[test]
fn a_network_that_snoops_no_more_forgets_and_so_does_one_that_is_gone() {
    let mut world = queried();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    multicast(&mut world, Multicast::Flooded);
    let _ = asked(&mut world, 1);
    assert!(world.mdb.is_empty());
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    world.edit(|t| t.domains[RED.index()] = None);
    let _ = asked(&mut world, 1);
    assert!(world.mdb.is_empty());
}

#[test]
fn the_dead_are_buried_and_their_share_is_free_again() {
    let mut world = queried_from_nowhere();
    let group = |n: usize| IpAddr::V4(Ipv4Addr::from(0xef40_0000 + n as u32));
    for n in 0..GROUPS_PER_PORT_MAX {
        let _ = world.send(1, &report(mac(1), group(n)));
    }
    world.wait(261);
    let _ = asked(&mut world, 1);
    assert!(world.mdb.is_empty());
    let out = world.send(1, &report(mac(1), ip(OTHER)));
    assert_eq!(
        heard(&out).map(|heard| (heard.joined, heard.refused)),
        Some((1, 0))
    );
}

#[test]
fn a_group_of_one_network_is_none_of_another() {
    let mut world = queried();
    world.edit(|t| t.ports[4].as_mut().unwrap().role = dataplane_core::topology::Role::Bridge(RED));
    let _ = world.send(4, &report(mac(4), ip(GROUP)));
    assert_eq!(goes(&mut world, 2, GROUP), [3, 4]);
    // The port goes to another network: what was heard there is of no use here.
    world.edit(|t| {
        t.ports[4].as_mut().unwrap().role = dataplane_core::topology::Role::Bridge(world::BLUE);
    });
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
}

#[test]
fn a_port_that_comes_later_is_asked_when_it_comes_and_given_time_to_answer() {
    let mut world = World::new();
    world.edit(|t| t.ports[1].as_mut().unwrap().up = false);
    multicast(&mut world, Multicast::Queried);
    let _ = asked(&mut world, 15);
    world.edit(|t| t.ports[1].as_mut().unwrap().up = true);
    let come = asked(&mut world, 6);
    let to: Vec<_> = come.iter().map(|(second, q)| (*second, q.to)).collect();
    assert_eq!(
        to,
        [(0, Some(PortId(1))); 2],
        "by IGMP and MLD, and nobody else"
    );
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3], "it may still answer");
    let _ = asked(&mut world, 5);
    assert_eq!(goes(&mut world, 2, GROUP), [], "it has had its time");
    // Later ones join by themselves; what is known stays in force meanwhile.
    world.edit(|t| t.ports[3].as_mut().unwrap().up = false);
    let _ = asked(&mut world, 1);
    world.edit(|t| t.ports[3].as_mut().unwrap().up = true);
    let back = asked(&mut world, 1);
    assert!(back.iter().all(|(_, q)| q.to == Some(PortId(3))) && back.len() == 2);
    assert_eq!(goes(&mut world, 2, GROUP), []);
}
