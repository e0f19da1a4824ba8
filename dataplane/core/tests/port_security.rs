//! Port security, driven through `forward`: who claims to be somebody else is not heard.

#![allow(clippy::unwrap_used)]

mod world;

use dataplane_core::addr::MacAddr;
use dataplane_core::l2::{Families, Identity, PortFlags};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::PacketBuilder;
use world::packets::{arp_request, octets6, udp4, udp6};
use world::{World, groups, ip, mac};

const FOREIGN_MAC: Verdict = Verdict::Drop(DropReason::SourceMacForeign);
const FOREIGN_ADDRESS: Verdict = Verdict::Drop(DropReason::SourceAddressForeign);
const OWN4: &str = "10.1.0.2";
const OWN6: &str = "fd00:1::2";
const ADVERTISEMENT: u8 = 136;
const SOLICITATION: u8 = 135;

/// Port 1 is secured, for a: 10.1.0.2, fd00:1::2.
fn secured() -> World {
    let mut world = World::new();
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.flags = port.flags.with(PortFlags::SECURED);
        port.profile_mut().identity = Identity {
            mac: mac(1),
            addresses: [ip(OWN4), ip(OWN6)].into(),
            ..Identity::default()
        };
    });
    world
}

/// Whether a's port lets the frame in.
#[track_caller]
fn passes(world: &mut World, frame: &[u8]) {
    let verdict = world.send(1, frame).verdict;
    let refused = [FOREIGN_MAC, FOREIGN_ADDRESS].contains(&verdict);
    assert!(!refused, "{verdict}");
}

#[track_caller]
fn ends(world: &mut World, frame: &[u8], reason: Verdict) {
    let before = world.fdb.len();
    assert_eq!(world.send(1, frame).verdict, reason);
    assert_eq!(world.fdb.len(), before, "and teaches nothing");
}

/// An ICMPv6 message about a target, as neighbour discovery has it.
fn discovery(src: &str, dst: &str, icmp_type: u8, target: &str) -> Vec<u8> {
    let mut body = octets6(target).to_vec();
    body.extend([2, 1, 2, 0, 0, 0, 0, 1]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(octets6(src), octets6(dst), 255)
        .icmpv6_raw(icmp_type, 0, [0x20, 0, 0, 0])
        .write(&mut frame, &body)
        .unwrap();
    frame
}

#[test]
fn an_endpoint_is_heard_by_its_own_mac_and_addresses() {
    let mut world = secured();
    passes(&mut world, &udp4(mac(1), mac(2), OWN4, "10.1.0.3", 64, 20));
    passes(&mut world, &udp6(mac(1), mac(2), OWN6, "fd00:1::3", 64, 20));
    passes(
        &mut world,
        &arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]),
    );
    let mut other = [mac(2).0, mac(1).0].concat();
    other.extend([0x88, 0xb5, 1, 2, 3]);
    passes(&mut world, &other);
    assert_eq!(world.fdb.len(), 1);
}

#[test]
fn another_mac_is_not_heard_whatever_it_sends() {
    let mut world = secured();
    let stranger = mac(9);
    ends(
        &mut world,
        &udp4(stranger, mac(2), OWN4, "10.1.0.3", 64, 20),
        FOREIGN_MAC,
    );
    let mut other = [MacAddr::BROADCAST.0, stranger.0].concat();
    other.extend([0x88, 0xb5]);
    ends(&mut world, &other, FOREIGN_MAC);
    let mut arp = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    arp[22..28].copy_from_slice(&stranger.0);
    ends(&mut world, &arp, FOREIGN_MAC);
    assert_eq!(world.dropped(DropReason::SourceMacForeign), 3);
}

#[test]
fn another_address_is_not_claimed_by_packet_or_question() {
    let mut world = secured();
    for src in [
        "10.1.0.3",
        "10.1.0.1",
        "192.0.2.7",
        "169.254.1.1",
        "0.0.0.0",
    ] {
        ends(
            &mut world,
            &udp4(mac(1), mac(2), src, "10.1.0.4", 64, 20),
            FOREIGN_ADDRESS,
        );
    }
    for src in ["fd00:1::3", "fd00:1::1", "2001:db8::7", "::"] {
        ends(
            &mut world,
            &udp6(mac(1), mac(2), src, "fd00:1::4", 64, 20),
            FOREIGN_ADDRESS,
        );
    }
    ends(
        &mut world,
        &arp_request(mac(1), [10, 1, 0, 3], [10, 1, 0, 3]),
        FOREIGN_ADDRESS,
    );
    ends(
        &mut world,
        &arp_request(mac(1), [10, 1, 0, 1], [10, 1, 0, 3]),
        FOREIGN_ADDRESS,
    );
    let mut tagged = udp4(mac(1), mac(2), "10.1.0.3", "10.1.0.4", 64, 20);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    ends(&mut world, &tagged, FOREIGN_ADDRESS);
}

#[test]
fn an_endpoint_that_was_given_no_address_of_a_family_may_have_any_of_that_one() {
    let mut world = secured();
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.profile_mut().identity = Identity {
            mac: mac(1),
            addresses: [ip(OWN6)].into(),
            open: Families {
                v4: true,
                v6: false,
            },
        };
    });
    let leased = udp4(mac(1), mac(2), "10.1.0.77", "10.1.0.3", 64, 20);
    passes(&mut world, &leased);
    passes(
        &mut world,
        &arp_request(mac(1), [10, 1, 0, 77], [10, 1, 0, 3]),
    );
    let stranger = udp4(mac(9), mac(2), "10.1.0.77", "10.1.0.3", 64, 20);
    ends(&mut world, &stranger, FOREIGN_MAC);
    let six = udp6(mac(1), mac(2), "fd00:1::77", "fd00:1::3", 64, 20);
    ends(&mut world, &six, FOREIGN_ADDRESS);
}

#[test]
fn what_claims_nothing_passes() {
    let mut world = secured();
    passes(&mut world, &arp_request(mac(1), [0; 4], [10, 1, 0, 2]));
    let mut dhcp = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut dhcp, &[1; 240])
        .unwrap();
    passes(&mut world, &dhcp);
    let join = groups::igmp(groups::REPORT_V2, 0, groups::v4("239.1.2.3"));
    let nowhere = groups::v4("0.0.0.0");
    passes(
        &mut world,
        &groups::ipv4(mac(1), nowhere, groups::v4("239.1.2.3"), 2, &join),
    );
    dhcp[36..38].copy_from_slice(&[0, 69]);
    ends(&mut world, &dhcp, FOREIGN_ADDRESS);
    passes(
        &mut world,
        &discovery("::", "ff02::1:ff00:2", SOLICITATION, OWN6),
    );
    let link_local = "fe80::1234";
    passes(
        &mut world,
        &udp6(mac(1), mac(2), link_local, "fe80::1", 64, 20),
    );
    passes(
        &mut world,
        &discovery(link_local, "ff02::1", ADVERTISEMENT, link_local),
    );
}

#[test]
fn a_neighbour_is_not_advertised_by_another() {
    let mut world = secured();
    passes(&mut world, &discovery(OWN6, "ff02::1", ADVERTISEMENT, OWN6));
    passes(
        &mut world,
        &discovery(OWN6, "ff02::1:ff00:3", SOLICITATION, "fd00:1::3"),
    );
    for src in [OWN6, "fe80::1234", "::"] {
        let claim = discovery(src, "ff02::1", ADVERTISEMENT, "fd00:1::3");
        ends(&mut world, &claim, FOREIGN_ADDRESS);
    }
    let mut cut = discovery(OWN6, "ff02::1", ADVERTISEMENT, OWN6);
    cut.truncate(14 + 40 + 8);
    cut[18..20].copy_from_slice(&[0, 8]);
    ends(&mut world, &cut, FOREIGN_ADDRESS);
}

#[test]
fn whose_claim_cannot_be_read_is_not_believed() {
    let mut world = secured();
    let whole = udp4(mac(1), mac(2), OWN4, "10.1.0.3", 64, 20);
    for size in 14..whole.len() {
        ends(&mut world, &whole[..size], FOREIGN_ADDRESS);
    }
    let whole = arp_request(mac(1), [10, 1, 0, 2], [10, 1, 0, 3]);
    ends(&mut world, &whole[..30], FOREIGN_ADDRESS);
    let mut strange = whole.clone();
    strange[14] = 9;
    ends(&mut world, &strange, FOREIGN_ADDRESS);
    // Nine destination options: more headers than are looked through, and what follows is unknown.
    let mut long = udp6(mac(1), mac(2), OWN6, "fd00:1::3", 64, 20);
    long[20] = 60;
    let options = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    let size = (long.len() - 54 + options.len()) as u16;
    long.splice(54..54, options);
    long[18..20].copy_from_slice(&size.to_be_bytes());
    ends(&mut world, &long, FOREIGN_ADDRESS);
}

#[test]
fn a_secured_port_without_an_identity_lets_nobody_in() {
    let mut world = secured();
    world.edit(|t| t.ports[1].as_mut().unwrap().profile_mut().identity = Identity::default());
    ends(
        &mut world,
        &udp4(mac(1), mac(2), OWN4, "10.1.0.3", 64, 20),
        FOREIGN_MAC,
    );
}

#[test]
fn security_is_of_its_port_alone() {
    let mut world = secured();
    let frame = udp4(mac(9), mac(1), "10.9.9.9", "10.1.0.2", 64, 20);
    let verdict = world.send(2, &frame).verdict;
    assert!(matches!(verdict, Verdict::Flooded(..)), "{verdict}");
    world.edit(|t| {
        let port = t.ports[1].as_mut().unwrap();
        port.flags = port.flags.without(PortFlags::SECURED);
    });
    passes(
        &mut world,
        &udp4(mac(9), mac(2), "10.9.9.9", "10.1.0.3", 64, 20),
    );
}
