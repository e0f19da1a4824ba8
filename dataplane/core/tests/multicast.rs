//! Multicast snooping, driven through `forward` on a virtual clock: what hosts say and where groups
//! go, as RFC 4541, 2236, 3376, 2710 and 3810 ask and the kernel's bridge does it
//! (net/bridge/br_multicast.c).

#![allow(clippy::unwrap_used)]

mod world;

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane_core::l2::PortFlags;
use dataplane_core::topology::Multicast;
use dataplane_core::verdict::{DropReason, Verdict};
use world::groups::*;
use world::snooping::*;
use world::{RED, World, ip, mac};

#[test]
fn without_a_querier_groups_are_flooded_as_before() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    assert_eq!(goes(&mut world, 2, GROUP6), [1, 3]);
}

#[test]
fn a_network_without_snooping_takes_note_of_nothing() {
    let mut world = World::new();
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 10));
    let out = world.send(1, &report(mac(1), ip(GROUP)));
    assert_eq!((heard(&out), world.mdb.len()), (None, 0));
    world.wait(2);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
}

#[test]
fn rfc4541_2_1_2_a_group_goes_to_its_listeners_and_to_routers() {
    let mut world = queried();
    for group in [GROUP, GROUP6] {
        assert_eq!(goes(&mut world, 2, group), [3], "nobody listens");
        let _ = world.send(1, &report(mac(1), ip(group)));
        assert_eq!(goes(&mut world, 2, group), [1, 3]);
        assert_eq!(goes(&mut world, 1, group), [3], "never back");
        assert_eq!(goes(&mut world, 3, group), [1]);
    }
    assert_eq!(goes(&mut world, 2, OTHER), [3], "another group");
}

#[test]
fn rfc4541_2_1_2_what_hosts_need_not_report_is_flooded() {
    let mut world = queried();
    for group in ["224.0.0.1", "224.0.0.251", "224.0.0.255", "ff02::1"] {
        assert_eq!(goes(&mut world, 2, group), [1, 3], "{group}");
    }
    assert_eq!(goes(&mut world, 2, "224.0.1.1"), [3]);
    assert_eq!(goes(&mut world, 2, "ff02::fb"), [3]);
    // Neither IP, nor IP to a group.
    let mut plain = data(mac(2), ip(GROUP));
    plain[12..14].copy_from_slice(&[0x88, 0xb5]);
    let out = world.send(2, &plain);
    assert_eq!(egress(&world, &out, 2), [1, 3]);
    let mut unicast = data(mac(2), ip(GROUP));
    unicast[30..34].copy_from_slice(&[10, 1, 0, 7]);
    let out = world.send(2, &unicast);
    assert_eq!(egress(&world, &out, 2), [1, 3]);
    let out = world.send(
        2,
        &world::packets::arp_request(mac(2), [10, 1, 0, 3], [10, 1, 0, 9]),
    );
    assert_eq!(egress(&world, &out, 2), [1, 3], "broadcast");
}

#[test]
fn a_report_of_what_is_always_flooded_is_kept_nowhere() {
    let mut world = queried();
    let _ = world.send(1, &report(mac(1), ip("224.0.0.251")));
    let _ = world.send(1, &report(mac(1), ip("ff02::1")));
    assert_eq!(world.mdb.len(), 0);
}

#[test]
fn nobody_to_send_a_group_to_is_a_drop_of_its_own() {
    let mut world = queried_from_nowhere();
    let out = world.send(2, &data(mac(2), ip(GROUP)));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoListener));
}

#[test]
fn rfc4541_2_1_1_reports_of_old_go_to_routers_alone() {
    let mut world = queried();
    for group in [GROUP, GROUP6] {
        let _ = world.send(2, &report(mac(2), ip(group)));
        let out = world.send(1, &report(mac(1), ip(group)));
        assert_eq!(egress(&world, &out, 1), [3], "not to other listeners");
        let out = world.send(1, &leave(mac(1), ip(group)));
        assert_eq!(egress(&world, &out, 1), [2, 3], "leaves are flooded");
    }
    let out = world.send(1, &report_v3(mac(1), &[(TO_EX, ip(GROUP), 0)]));
    assert_eq!(egress(&world, &out, 1), [2, 3], "and so are newer reports");
}

#[test]
fn rfc4541_2_1_1_a_query_from_0_0_0_0_makes_no_router() {
    let mut world = queried_from_nowhere();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    assert_eq!(goes(&mut world, 2, GROUP), [1]);
    assert!(world.mdb.routers(RED, world.now).is_empty());
}

#[test]
fn rfc2236_8_4_a_membership_lasts_260_seconds() {
    for group in [GROUP, GROUP6] {
        let mut world = queried();
        let _ = world.send(1, &report(mac(1), ip(group)));
        world.wait(250);
        let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 10));
        let _ = world.send(3, &mld_query(mac(3), v6("fe80::4"), 1_000));
        world.wait(9);
        assert_eq!(goes(&mut world, 2, group), [1, 3]);
        world.wait(1);
        assert_eq!(goes(&mut world, 2, group), [3]);
        let _ = world.send(1, &report(mac(1), ip(group)));
        assert_eq!(goes(&mut world, 2, group), [1, 3], "reported again");
    }
}

#[test]
fn rfc2236_3_a_leave_ends_a_membership_in_two_seconds_unless_somebody_answers() {
    for group in [GROUP, GROUP6] {
        let mut world = World::new();
        multicast(&mut world, Multicast::Snooped);
        for port in [1, 2] {
            let _ = world.send(port, &report(mac(port as u8), ip(group)));
        }
        let _ = world.send(1, &leave(mac(1), ip(group)));
        let _ = world.send(2, &leave(mac(2), ip(group)));
        world.wait(1);
        let _ = world.send(2, &report(mac(2), ip(group)));
        world.wait(1);
        let left: Vec<_> = world
            .mdb
            .rows(RED, world.now)
            .iter()
            .map(|r| r.port.0)
            .collect();
        assert_eq!(left, [2], "{group}");
    }
}

#[test]
fn with_another_querier_a_leave_is_for_that_one_to_follow_up() {
    let mut world = queried();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    world.wait(3);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    let _ = world.send(3, &group_query(mac(3), v4("10.1.0.4"), 10, v4(GROUP)));
    world.wait(1);
    assert_eq!(
        goes(&mut world, 2, GROUP),
        [1, 3],
        "one of two queries may be lost"
    );
    world.wait(1);
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
}

#[test]
fn a_fast_leave_ends_a_membership_at_once() {
    let mut world = queried();
    set(&mut world, 1, |flags| flags.with(PortFlags::FAST_LEAVE));
    for port in [1, 2] {
        let _ = world.send(port, &report(mac(port as u8), ip(GROUP)));
    }
    let _ = world.send(1, &leave(mac(1), ip(GROUP)));
    assert_eq!(goes(&mut world, 3, GROUP), [2]);
}

#[test]
fn rfc3376_records_are_taken_as_of_any_source() {
    for (kind, sources, joins) in [
        (IS_IN, 0, false),
        (TO_IN, 0, false),
        (IS_IN, 2, true),
        (TO_IN, 1, true),
        (IS_EX, 0, true),
        (IS_EX, 3, true),
        (TO_EX, 0, true),
        (ALLOW, 1, true),
        // RFC 3376 section 7.3.2.
        (BLOCK, 1, false),
        // RFC 3376 section 4.2.12.
        (9, 0, false),
    ] {
        let mut world = queried();
        let list = |group: &str| [(IS_EX, ip("239.7.7.7"), 1), (kind, ip(group), sources)];
        let out = world.send(1, &report_v3(mac(1), &list(GROUP)));
        assert!(heard(&out).is_some(), "{kind}");
        let wanted: &[u16] = if joins { &[1, 3] } else { &[3] };
        assert_eq!(goes(&mut world, 2, GROUP), wanted, "{kind} of {sources}");
        let list = [(IS_EX, ip("ff15::7"), 1), (kind, ip(GROUP6), sources)];
        let _ = world.send(1, &mld_report_v2(mac(1), &list));
        assert_eq!(goes(&mut world, 2, GROUP6), wanted, "{kind} of {sources}");
        assert_eq!(
            goes(&mut world, 2, "239.7.7.7"),
            [1, 3],
            "the one before it"
        );
    }
}

#[test]
fn rfc3376_7_3_2_to_include_nothing_is_a_leave() {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(1, &report_v3(mac(1), &[(TO_EX, ip(GROUP), 0)]));
    let _ = world.send(1, &mld_report_v2(mac(1), &[(TO_EX, ip(GROUP6), 0)]));
    assert_eq!(world.mdb.rows(RED, world.now).len(), 2);
    let _ = world.send(1, &report_v3(mac(1), &[(TO_IN, ip(GROUP), 0)]));
    let _ = world.send(1, &mld_report_v2(mac(1), &[(TO_IN, ip(GROUP6), 0)]));
    world.wait(2);
    assert!(world.mdb.rows(RED, world.now).is_empty());
}

#[test]
fn rfc4541_2_1_1_a_message_that_is_wrong_is_neither_believed_nor_flooded() {
    let good = report(mac(1), ip(GROUP));
    let good6 = report(mac(1), ip(GROUP6));
    let spoil = |frame: &[u8], at: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    };
    // Ethernet 14, IPv4 with router alert 24; IPv6 40, options 8.
    let mut foreign = report(mac(1), ip(GROUP));
    foreign[38..46].copy_from_slice(&igmp(REPORT_V2, 0, v4("10.1.2.3")));
    let v3 = |list: &[Record], change: &dyn Fn(&mut Vec<u8>)| {
        let frame = report_v3(mac(1), list);
        let (size, head) = (usize::from(frame[17]), &frame[..14]);
        let mut message = frame[38..14 + size].to_vec();
        change(&mut message);
        let message = summed(message);
        let mut made = ipv4(mac(1), v4("10.1.0.2"), v4("224.0.0.22"), 2, &message);
        made[..14].copy_from_slice(head);
        made
    };
    let join = [(TO_EX, ip(GROUP), 0)];
    for (what, frame) in [
        ("IGMP checksum", spoil(&good, 41, good[41] ^ 1)),
        ("IP checksum", spoil(&good, 24, good[24] ^ 1)),
        ("MLD checksum", spoil(&good6, 64, good6[64] ^ 1)),
        ("not a group", foreign),
        ("hop limit of 2", spoil(&good6, 21, 2)),
        ("more records than there are", v3(&join, &|m| m[7] = 2)),
        ("more sources than there are", v3(&join, &|m| m[11] = 1)),
        (
            "more auxiliary data than there is",
            v3(&join, &|m| m[9] = 1),
        ),
        ("a record of no group", v3(&join, &|m| m[12] = 10)),
        ("a short report", v3(&[], &|m| m.truncate(6))),
        (
            "a short query",
            ipv4(
                mac(1),
                v4("10.1.0.2"),
                v4("224.0.0.1"),
                2,
                &summed(vec![QUERY, 10, 0, 0, 0, 0, 0, 0, 0, 0]),
            ),
        ),
        (
            "RFC 3376 4.1.12: a general query to a group",
            ipv4(
                mac(1),
                v4("10.1.0.2"),
                v4(GROUP),
                2,
                &igmp(QUERY, 10, Ipv4Addr::UNSPECIFIED),
            ),
        ),
        (
            "RFC 3810 5.1.14: a query from afar",
            ipv6(
                mac(1),
                v6("fd00:1::2"),
                v6("ff02::1"),
                &mld(MLD_QUERY, 100, Ipv6Addr::UNSPECIFIED),
            ),
        ),
        (
            "RFC 3810 5.1.15: a general query to a group",
            ipv6(
                mac(1),
                v6("fe80::2"),
                v6(GROUP6),
                &mld(MLD_QUERY, 100, Ipv6Addr::UNSPECIFIED),
            ),
        ),
    ] {
        let mut world = World::new();
        multicast(&mut world, Multicast::Snooped);
        let out = world.send(1, &frame);
        assert_eq!(
            out.verdict,
            Verdict::Drop(DropReason::GroupMessageMalformed),
            "{what}"
        );
        assert_eq!(world.mdb.len(), 0, "{what}");
        assert_eq!(
            world.dropped(DropReason::GroupMessageMalformed),
            1,
            "{what}"
        );
    }
}

#[test]
fn auxiliary_data_is_passed_over() {
    let mut world = queried();
    let mut message = vec![REPORT_V3, 0, 0, 0, 0, 0, 0, 2, TO_EX, 2, 0, 1];
    message.extend(v4(GROUP).octets());
    message.extend([192, 0, 2, 1]);
    message.extend([0xaa; 8]);
    message.extend([TO_EX, 0, 0, 0]);
    message.extend(v4(OTHER).octets());
    let frame = ipv4(
        mac(1),
        v4("10.1.0.2"),
        v4("224.0.0.22"),
        2,
        &summed(message),
    );
    let out = world.send(1, &frame);
    assert_eq!(heard(&out).map(|heard| heard.joined), Some(2));
    assert_eq!(goes(&mut world, 2, OTHER), [1, 3]);
}

#[test]
fn a_report_of_a_fragment_is_none() {
    let mut frame = report(mac(1), ip(GROUP));
    frame[20] = 0x20;
    frame[24..26].fill(0);
    let sum = dataplane_core::checksum::ipv4_header(&frame[14..38]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let mut world = queried();
    let out = world.send(1, &frame);
    assert_eq!(
        out.verdict,
        Verdict::Drop(DropReason::GroupMessageMalformed)
    );
}

#[test]
fn mld_without_a_router_alert_is_data() {
    let mut frame = report(mac(1), ip(GROUP6));
    // Destination options in the place of hop-by-hop ones.
    frame[20] = 60;
    let mut world = queried();
    let out = world.send(1, &frame);
    assert_eq!((heard(&out), world.mdb.len()), (None, 0));
    assert_eq!(egress(&world, &out, 1), [3]);
}

#[test]
fn a_vlan_tag_is_looked_through() {
    let mut world = queried();
    let mut tagged = report(mac(1), ip(GROUP));
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let _ = world.send(1, &tagged);
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
}

#[test]
fn the_flags_of_the_way_out_are_asked_of_floods_only() {
    let mut world = queried();
    let _ = world.send(1, &report(mac(1), ip(GROUP)));
    set(&mut world, 1, |flags| flags.without(PortFlags::MCAST_FLOOD));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    assert_eq!(goes(&mut world, 2, "224.0.0.251"), [3]);
    for port in [1, 2] {
        set(&mut world, port, |flags| flags.with(PortFlags::ISOLATED));
    }
    assert_eq!(goes(&mut world, 2, GROUP), [3], "both are isolated");
    set(&mut world, 2, |flags| {
        flags.without(PortFlags::ISOLATED).with(PortFlags::HAIRPIN)
    });
    let _ = world.send(2, &report(mac(2), ip(GROUP)));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 2, 3], "a hairpin");
    world.edit(|t| t.ports[1].as_mut().unwrap().up = false);
    assert_eq!(goes(&mut world, 2, GROUP), [2, 3]);
}

#[test]
fn a_port_leads_to_a_router_by_setting_or_never() {
    let mut world = queried();
    set(&mut world, 1, |flags| flags.with(PortFlags::MCAST_ROUTER));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    set(&mut world, 1, |flags| {
        flags
            .without(PortFlags::MCAST_ROUTER)
            .without(PortFlags::MCAST_ROUTER_LEARNING)
    });
    let _ = world.send(1, &query(mac(1), v4("10.1.0.2"), 10));
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
}

#[test]
fn a_pim_hello_makes_a_router_and_another_message_does_not() {
    let mut world = queried();
    let pim = |kind: u8| {
        let message = [0x20 | kind, 0, 0, 0, 0, 1, 0, 2, 0, 105];
        ipv4(mac(1), v4("10.1.0.2"), v4("224.0.0.13"), 103, &message)
    };
    let out = world.send(1, &pim(3));
    assert_eq!(egress(&world, &out, 1), [2, 3], "flooded");
    assert_eq!(goes(&mut world, 2, GROUP), [3]);
    let _ = world.send(1, &pim(0));
    assert_eq!(goes(&mut world, 2, GROUP), [1, 3]);
    assert_eq!(goes(&mut world, 2, GROUP6), [3], "PIM for IPv4");
}

#[test]
fn an_unknown_igmp_type_is_data() {
    let mut world = queried();
    let frame = ipv4(
        mac(1),
        v4("10.1.0.2"),
        v4(GROUP),
        2,
        &igmp(0x99, 0, v4(GROUP)),
    );
    let out = world.send(1, &frame);
    assert_eq!((heard(&out), egress(&world, &out, 1)), (None, vec![3]));
}
