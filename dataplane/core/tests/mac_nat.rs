//! MAC-NAT: a port by which one MAC leaves, and every station behind it is found again.

#![allow(clippy::unwrap_used)]

mod mac_nat_world;
mod world;

use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::headers::Headers;
use dataplane_core::l2::{
    Located, MAC_NAT_ADDRESSES_MAX, MAC_NAT_AGEING, PortFlags, Untranslatable,
};
use dataplane_core::topology::Topology;
use dataplane_core::trace::{Answer, Step};
use dataplane_core::verdict::{DropReason, Verdict};
use std::net::Ipv4Addr;
use std::time::Duration;

use mac_nat_world::{
    LAN, NAT_MAC, OUTSIDE, advertisement, arp, dhcp_discover, discovery, entered, leave, nat,
    nat_world, raw,
};
use world::packets::{arp_request, assert_valid, udp4, udp6, unfinished};
use world::{RED, World, gateway_mac, mac};

const BROADCAST: [u8; 6] = [0xff; 6];

fn bytes_at(frame: &[u8], at: usize) -> [u8; 6] {
    frame[at..at + 6].try_into().unwrap()
}

/// Has station `n` of red say that it has 10.1.0.`n + 1`, as it joins.
fn announce(world: &mut World, n: u8) {
    let own = [10, 1, 0, n + 1];
    leave(world, &arp_request(mac(n), own, own)).unwrap();
}

#[test]
fn what_leaves_carries_the_port_s_mac_and_nothing_else_is_changed() {
    let mut world = nat_world();
    for frame in [
        udp4(mac(1), OUTSIDE, "10.1.0.2", "10.1.0.200", 64, 32),
        udp6(mac(1), OUTSIDE, "fd00:1::2", "fd00:1::200", 64, 32),
    ] {
        let left = leave(&mut world, &frame).unwrap();
        let mut wanted = frame.clone();
        wanted[6..12].copy_from_slice(&NAT_MAC.0);
        assert_eq!(left.bytes(), wanted);
    }
}

#[test]
fn an_arp_message_names_the_port_s_mac_and_an_announcement_does_twice() {
    let mut world = nat_world();
    let asks = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 200]);
    let left = leave(&mut world, &asks).unwrap();
    assert_eq!(bytes_at(left.bytes(), 6), NAT_MAC.0);
    assert_eq!(bytes_at(left.bytes(), 22), NAT_MAC.0);
    assert_eq!(
        bytes_at(left.bytes(), 32),
        [0; 6],
        "the target is unknown still"
    );
    // As arping -A has it: who is told is himself.
    let mut told = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 2]);
    told[32..38].copy_from_slice(&mac(1).0);
    let left = leave(&mut world, &told).unwrap();
    assert_eq!(bytes_at(left.bytes(), 22), NAT_MAC.0);
    assert_eq!(bytes_at(left.bytes(), 32), NAT_MAC.0);
    let mut answer = arp(2, mac(1), [10, 1, 0, 2], OUTSIDE, [10, 1, 0, 200]);
    answer[..6].copy_from_slice(&OUTSIDE.0);
    let left = leave(&mut world, &answer).unwrap();
    assert_eq!(bytes_at(left.bytes(), 32), OUTSIDE.0, "who has asked");
}

#[test]
fn neighbour_discovery_names_the_port_s_mac_and_its_checksum_holds() {
    let mut world = nat_world();
    for (icmp_type, option) in [(133, 1), (134, 1), (135, 1), (136, 2)] {
        let frame = discovery(mac(1), "fe80::2", "ff02::1", icmp_type, option, mac(1));
        let left = leave(&mut world, &frame).unwrap();
        assert_valid(left.bytes());
        let found = left.bytes().windows(6).any(|at| at == mac(1).0);
        assert!(!found, "ICMPv6 type {icmp_type}");
        let own = left.bytes().windows(6).filter(|at| *at == NAT_MAC.0);
        assert_eq!(own.count(), 2, "ICMPv6 type {icmp_type}");
    }
}

#[test]
fn duplicate_address_detection_passes_and_claims_nothing_yet() {
    let mut world = nat_world();
    let probe = discovery(mac(1), "::", "ff02::1:ff00:2", 135, 0, mac(1));
    let left = leave(&mut world, &probe).unwrap();
    assert_eq!(bytes_at(left.bytes(), 6), NAT_MAC.0);
    assert_eq!(nat(&world).table.entries(world.now), []);
}

#[test]
fn a_redirect_that_leaves_says_where_to_but_not_by_which_mac() {
    let mut world = nat_world();
    let frame = discovery(mac(1), "fe80::2", "fe80::200", 137, 2, mac(2));
    let left = leave(&mut world, &frame).unwrap();
    assert_valid(left.bytes());
    let options = left.bytes().len() - 8;
    assert_eq!(left.bytes()[options..], [253, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_dhcp_client_is_answered_by_broadcast_and_keeps_its_hardware_address() {
    let mut world = nat_world();
    let ask = dhcp_discover(mac(1), [0; 4]);
    let left = leave(&mut world, &ask).unwrap();
    assert_valid(left.bytes());
    let message = &left.bytes()[42..];
    assert_eq!(message[10..12], [0x80, 0], "broadcast");
    assert_eq!(bytes_at(message, 28), mac(1).0, "chaddr");
    let again = leave(&mut world, left.bytes()).unwrap();
    assert_eq!(again.bytes(), left.bytes(), "asked once more is asked once");
    let relayed = dhcp_discover(mac(1), [10, 1, 0, 9]);
    let left = leave(&mut world, &relayed).unwrap();
    assert_eq!(left.bytes()[52..54], [0, 0], "a relay knows its client");
    let mut unsummed = dhcp_discover(mac(1), [0; 4]);
    unsummed[40..42].fill(0);
    let left = leave(&mut world, &unsummed).unwrap();
    assert_eq!(left.bytes()[40..42], [0, 0], "no checksum stays none");
    assert_eq!(left.bytes()[52..54], [0x80, 0]);
}

#[test]
fn what_comes_in_goes_to_the_station_that_has_the_address() {
    let mut world = nat_world();
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().neighbours.clear());
    for n in [1, 2] {
        announce(&mut world, n);
    }
    for (n, address) in [(1, "10.1.0.2"), (2, "10.1.0.3")] {
        let frame = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", address, 64, 32);
        let out = world.send(LAN, &frame);
        let mut wanted = frame.clone();
        wanted[..6].copy_from_slice(&mac(n).0);
        assert_eq!(out.frame.bytes(), wanted);
        let told = Step::Admitted(VlanId(0), mac(n));
        assert!(out.steps.contains(&told), "{:?}", out.steps);
    }
    let answer = arp(2, OUTSIDE, [10, 1, 0, 200], NAT_MAC, [10, 1, 0, 3]);
    let out = world.send(LAN, &answer);
    assert_eq!(bytes_at(out.frame.bytes(), 0), mac(2).0);
    assert_eq!(bytes_at(out.frame.bytes(), 32), mac(2).0, "ARP target");
}

#[test]
fn a_station_that_advertises_an_address_is_found_by_it() {
    let mut world = nat_world();
    let told = advertisement(mac(2), "fe80::2", "fd00:1::77");
    leave(&mut world, &told).unwrap();
    let frame = udp6(OUTSIDE, NAT_MAC, "fd00:1::200", "fd00:1::77", 64, 8);
    let out = world.send(LAN, &frame);
    assert_eq!(bytes_at(out.frame.bytes(), 0), mac(2).0);
}

#[test]
fn an_endpoint_is_found_before_it_has_sent_anything() {
    let mut world = nat_world();
    let frame = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.4", 64, 32);
    let out = world.send(LAN, &frame);
    assert_eq!(bytes_at(out.frame.bytes(), 0), mac(3).0);
}

#[test]
fn who_is_unknown_is_the_owner_s_of_the_mac_else_the_gateway_s_else_nobody_s() {
    let mut world = nat_world();
    let stranger = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "192.0.2.7", 64, 32);
    let not_ip = raw(OUTSIDE, NAT_MAC, 0x88b5);
    let entered = |world: &mut World, frame: &[u8]| entered(world, frame);
    assert_eq!(entered(&mut world, &stranger), Ok(gateway_mac(RED)));
    assert_eq!(entered(&mut world, &not_ip), Err(DropReason::MacNatNotIp));
    // The host, whose MAC the port has, speaks: what nobody else has is its own.
    leave(
        &mut world,
        &udp4(NAT_MAC, OUTSIDE, "10.1.0.99", "10.1.0.200", 64, 8),
    )
    .unwrap();
    for frame in [&stranger, &not_ip] {
        assert_eq!(entered(&mut world, frame), Ok(NAT_MAC));
    }
    let known = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.2", 64, 32);
    assert_eq!(entered(&mut world, &known), Ok(mac(1)), "not the owner's");
    world.wait(MAC_NAT_AGEING.as_secs());
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().gateway = None);
    assert_eq!(
        entered(&mut world, &stranger),
        Err(DropReason::MacNatUnknown)
    );
    assert_eq!(world.dropped(DropReason::MacNatUnknown), 1);
}

#[test]
fn the_gateway_answers_and_routes_by_the_port_s_mac() {
    let mut world = nat_world();
    let asks = arp_request(OUTSIDE, [10, 1, 0, 200], [10, 1, 0, 1]);
    let out = world.send(LAN, &asks);
    assert!(out.steps.contains(&Step::Reply(Answer::Arp)));
    let left = leave(&mut world, out.frame.bytes()).unwrap();
    assert_eq!(bytes_at(left.bytes(), 22), NAT_MAC.0);
    let to_gateway = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.1", 64, 8);
    assert_eq!(entered(&mut world, &to_gateway), Ok(gateway_mac(RED)));
    let routed = udp4(
        gateway_mac(RED),
        OUTSIDE,
        "198.51.100.1",
        "10.1.0.200",
        63,
        8,
    );
    leave(&mut world, &routed).unwrap();
    assert_eq!(nat(&world).table.entries(world.now), [], "not a station's");
}

#[test]
fn what_comes_back_is_no_news() {
    let mut world = nat_world();
    announce(&mut world, 1);
    let echo = Err(DropReason::MacNatEcho);
    let own = [10, 1, 0, 2];
    let repeated = arp_request(NAT_MAC, own, own);
    assert_eq!(entered(&mut world, &repeated), echo);
    let datagram = udp4(
        NAT_MAC,
        MacAddr(BROADCAST),
        "10.1.0.2",
        "10.1.255.255",
        64,
        8,
    );
    assert_eq!(entered(&mut world, &datagram), echo);
    assert_eq!(world.fdb.len(), 0, "nor is it learned");
    // An access point answers for its client.
    let answered = arp(2, OUTSIDE, own, mac(2), [10, 1, 0, 3]);
    assert!(
        entered(&mut world, &answered).is_ok(),
        "by its own MAC it may"
    );
    let mut answered = answered;
    answered[22..28].copy_from_slice(&NAT_MAC.0);
    assert_eq!(entered(&mut world, &answered), echo);
    let claim = discovery(OUTSIDE, "fe80::200", "ff02::1", 136, 2, NAT_MAC);
    assert_eq!(entered(&mut world, &claim), echo);
}

#[test]
fn a_redirect_to_a_station_inside_names_its_own_mac() {
    let mut world = nat_world();
    leave(&mut world, &advertisement(mac(2), "fe80::2", "fe80::2")).unwrap();
    let frame = discovery(OUTSIDE, "fe80::200", "fe80::2", 137, 2, NAT_MAC);
    let out = world.send(LAN, &frame);
    assert_valid(out.frame.bytes());
    let options = out.frame.len() - 6;
    // The target of `discovery` is fe80::2 as well.
    assert_eq!(bytes_at(out.frame.bytes(), options), mac(2).0);
    assert_eq!(bytes_at(out.frame.bytes(), 0), [0x33, 0x33, 0, 0, 0, 1]);
}

#[test]
fn a_group_that_came_to_one_station_is_a_group_again() {
    let mut world = nat_world();
    for (frame, group) in [
        (
            udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "239.129.2.3", 1, 8),
            [0x01, 0, 0x5e, 1, 2, 3],
        ),
        (
            udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "255.255.255.255", 1, 8),
            BROADCAST,
        ),
        (
            udp6(OUTSIDE, NAT_MAC, "fe80::200", "ff02::fb", 1, 8),
            [0x33, 0x33, 0, 0, 0, 0xfb],
        ),
    ] {
        let out = world.send(LAN, &frame);
        assert_eq!(bytes_at(out.frame.bytes(), 0), group);
        assert_eq!(world.flood_ports(&out, LAN), [1, 2, 3]);
    }
}

#[test]
fn vlans_are_told_apart_and_their_tags_stay() {
    let mut world = nat_world();
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().neighbours.clear());
    let tag =
        |frame: &[u8], vlan: u8| [&frame[..12], &[0x81, 0, 0x60, vlan], &frame[12..]].concat();
    for (vlan, n) in [(7, 1), (8, 2)] {
        let told = arp_request(mac(n), [10, 1, 0, 2], [10, 1, 0, 2]);
        let left = leave(&mut world, &tag(&told, vlan)).unwrap();
        assert_eq!(left.bytes()[12..16], [0x81, 0, 0x60, vlan]);
        assert_eq!(bytes_at(left.bytes(), 26), NAT_MAC.0);
    }
    for (vlan, n) in [(7, 1), (8, 2)] {
        let frame = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.2", 64, 8);
        assert_eq!(entered(&mut world, &tag(&frame, vlan)), Ok(mac(n)));
    }
    let vlans: Vec<u16> = nat(&world)
        .table
        .entries(world.now)
        .iter()
        .map(|entry| entry.located.vlan.0)
        .collect();
    assert_eq!(vlans, [7, 8]);
}

#[test]
fn unfinished_frames_stay_as_unfinished() {
    let mut world = nat_world();
    for gso_size in [0, 1_000] {
        let (frame, offload) = unfinished(3_000, gso_size);
        let mut buf = dataplane_core::frame::FrameBuf::from_bytes(&frame);
        buf.offload = offload;
        let topology = std::sync::Arc::clone(&world.sw.topology);
        let port = topology.port(PortId(LAN)).unwrap();
        let domain = topology.domain(RED).unwrap();
        let nat = port.profile.mac_nat.as_ref().unwrap();
        nat.leave(port, domain, &mut buf, world.now).unwrap();
        assert_eq!(buf.offload, offload);
        assert_eq!(buf.bytes()[12..], frame[12..]);
        world.wait(1);
    }
}

#[test]
fn what_cannot_be_answered_or_read_does_not_leave() {
    let mut world = nat_world();
    let not_ip = Err(Untranslatable::NotIp);
    let unreadable = Err(Untranslatable::Unreadable);
    let other = raw(mac(1), OUTSIDE, 0x88b5);
    assert_eq!(leave(&mut world, &other).map(drop), not_ip);
    let to_all = raw(mac(1), MacAddr(BROADCAST), 0x88b5);
    assert!(leave(&mut world, &to_all).is_ok(), "to a group it may");
    assert!(
        leave(&mut world, &raw(NAT_MAC, OUTSIDE, 0x88b5)).is_ok(),
        "its own may"
    );
    let mut cut = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    cut.truncate(40);
    assert_eq!(leave(&mut world, &cut).map(drop), unreadable);
    let mut options = discovery(mac(1), "fe80::2", "ff02::1", 135, 1, mac(1));
    let len_at = options.len() - 7;
    options[len_at] = 0;
    assert_eq!(leave(&mut world, &options).map(drop), unreadable);
    options[len_at] = 2;
    assert_eq!(leave(&mut world, &options).map(drop), unreadable);
}

#[test]
fn a_full_table_refuses_new_addresses_and_leaves_the_old_alone() {
    let mut world = nat_world();
    let max = MAC_NAT_ADDRESSES_MAX as u32;
    let address = |n: u32| Ipv4Addr::from_bits(0x0a01_0000 + 1_000 + n);
    let frame = |n| {
        let from = address(n).to_string();
        udp4(mac(1), OUTSIDE, &from, "10.1.0.200", 64, 8)
    };
    for n in 0..max {
        assert!(leave(&mut world, &frame(n)).is_ok());
    }
    let refused = leave(&mut world, &frame(max)).map(drop);
    assert_eq!(refused, Err(Untranslatable::Full));
    assert!(leave(&mut world, &frame(0)).is_ok());
    assert_eq!(nat(&world).table.refused(), 1);
    let entries = nat(&world)
        .table
        .entries(world.now + Duration::from_secs(9));
    assert_eq!(entries.len(), MAC_NAT_ADDRESSES_MAX);
    assert_eq!(entries[0].age, Duration::from_secs(9));
    let vlan = VlanId(0);
    let address = address(0).into();
    assert_eq!(entries[0].located, Located { vlan, address });
}

#[test]
fn a_port_without_it_is_as_before() {
    let mut world = nat_world();
    world.edit(|t: &mut Topology| {
        let port = t.ports[usize::from(LAN)].as_mut().unwrap();
        port.flags = port.flags.without(PortFlags::MAC_NAT);
        port.profile_mut().mac_nat = None;
    });
    let frame = udp4(OUTSIDE, NAT_MAC, "10.1.0.200", "10.1.0.2", 64, 32);
    let out = world.send(LAN, &frame);
    assert_eq!(out.frame.bytes(), frame);
    assert!(matches!(out.verdict, Verdict::Flooded(..)));
    assert_eq!(Headers::parse(out.frame.bytes()).unwrap().dst, NAT_MAC);
}
