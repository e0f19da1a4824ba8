//! A routed network: packets keep their addresses, flows are tracked, strangers stay out.

use dataplane_core::addr::{L4Addr, PortId, Prefix};
use dataplane_core::nat::{
    Account, Dependence, External, SessionState, StaticRule, Target, Transport,
};
use dataplane_core::topology::{NatMode, NatModes};
use dataplane_core::verdict::{DropReason, Verdict};
use tests::wire::{self, Link, at};
use tests::world::{RED, ROUTER_MAC, UPLINK, UPLINK_MAC, gateway_mac, ip, mac};

use crate::ipv6::{
    FAR, FARTHER, HOST, OTHER, ROUTER, SAME_PORT, error_about, error_by, publish, v6,
};
use crate::lab::{
    ACK, FIN, Kind, Lab, OUTSIDE_LINK, RST, SYN, SYN_ACK, addresses, ends, icmp, inside_link,
    packet,
};
use crate::pieces::{cut, join, place};

use Kind::{Answer, Ask, Udp};

const UNSOLICITED: Result<std::net::SocketAddr, DropReason> = Err(DropReason::RoutedUnsolicited);
const SERVER: &str = "[fd00:1::2]:80";

fn routed() -> Lab {
    let mut lab = Lab::new();
    lab.world.edit(|topology| {
        let red = topology.domains[RED.index()].as_mut().unwrap();
        red.modes = NatModes {
            v4: NatMode::Routed,
            v6: NatMode::Routed,
        };
    });
    lab
}

#[test]
fn a_flow_keeps_its_addresses_and_loses_a_hop_each_way() {
    let mut lab = routed();
    let families = [(HOST, FAR, 7), ("10.1.0.2:50001", "198.51.100.9:53", 8)];
    for (host, far, hops_at) in families {
        let frame = wire::udp(inside_link(at(host)), at(host), at(far), 64, b"payload");
        for round in 0..3 {
            let (port, sent) = lab.send(1, &frame).unwrap();
            assert_eq!(port, UPLINK);
            assert_eq!(ends(&sent), (at(host), at(far)), "round {round}");
            assert_eq!(sent[14 + hops_at], 63);
            assert_eq!(sent[..12], [ROUTER_MAC.0, UPLINK_MAC.0].concat());
            let answer = wire::udp(OUTSIDE_LINK, at(far), at(host), 64, b"answer");
            let (port, got) = lab.send(UPLINK.0, &answer).unwrap();
            assert_eq!((port, ends(&got)), (PortId(1), (at(far), at(host))));
            assert_eq!(got[14 + hops_at], 63);
            assert_eq!(got[..12], [mac(1).0, gateway_mac(RED).0].concat());
        }
    }
    assert_eq!(lab.sessions(), 2);
    let pools = lab.world.tables.nat.usage(0).pools;
    assert_eq!(pools, [], "no port of the host's is taken");
}

#[test]
fn the_range_of_the_nat_does_not_bind_a_routed_network() {
    let mut lab = routed();
    lab.set(|nat| nat.port_range = 60_000..=60_063);
    for port in [1, 53, 1_023, 1_024, 40_000, 60_000, 65_535] {
        for host in ["fd00:1::2", "fd00:1::3"] {
            let host = format!("[{host}]:{port}");
            for kind in [Udp, SYN] {
                assert_eq!(lab.out(kind, &host, FAR), Ok(at(&host)));
            }
        }
    }
}

#[test]
fn strangers_stay_out_until_they_are_spoken_to() {
    let mut lab = routed();
    assert_eq!(lab.back(Udp, FAR, at(HOST)), UNSOLICITED);
    assert_eq!(lab.back(ACK, FAR, at(HOST)), UNSOLICITED);
    assert_eq!(lab.out(Udp, HOST, FAR), Ok(at(HOST)));
    assert_eq!(lab.back(Udp, FAR, at(HOST)), Ok(at(HOST)));
    for stranger in [OTHER, FARTHER] {
        assert_eq!(lab.back(Udp, stranger, at(HOST)), UNSOLICITED);
    }
    assert_eq!(lab.back(Udp, FAR, at("[fd00:1::2]:50002")), UNSOLICITED);
    assert_eq!(lab.world.dropped(DropReason::RoutedUnsolicited), 5);
    lab.wait(301);
    assert_eq!(lab.back(Udp, FAR, at(HOST)), UNSOLICITED, "it was long ago");
    assert_eq!(lab.sessions(), 0);
}

#[test]
fn the_filtering_of_the_network_decides_about_strangers() {
    let mut lab = routed();
    lab.behave(
        Dependence::EndpointIndependent,
        Dependence::EndpointIndependent,
    );
    assert_eq!(lab.back(Udp, FAR, at(HOST)), UNSOLICITED, "not open yet");
    lab.out(Udp, HOST, FAR).unwrap();
    assert_eq!(lab.back(Udp, FARTHER, at(HOST)), Ok(at(HOST)));
    lab.behave(
        Dependence::AddressAndPortDependent,
        Dependence::AddressDependent,
    );
    let second = "[fd00:1::2]:50002";
    lab.out(Udp, second, FAR).unwrap();
    lab.out(Udp, second, OTHER).unwrap();
    assert_eq!(lab.back(Udp, OTHER, at(second)), Ok(at(second)));
    assert_eq!(lab.back(Udp, FARTHER, at(second)), UNSOLICITED);
}

#[test]
fn a_published_port_is_open_at_the_endpoints_own_address_and_at_the_hosts() {
    let mut lab = routed();
    publish(&mut lab, 8_080, 80);
    let public = at("[2001:db8::1]:8080");
    // The direct way.
    assert_eq!(lab.back(SYN, FAR, at(SERVER)), Ok(at(SERVER)));
    assert_eq!(lab.out(SYN_ACK, SERVER, FAR), Ok(at(SERVER)));
    assert_eq!(lab.back(ACK, FAR, at(SERVER)), Ok(at(SERVER)));
    assert_eq!(lab.state(), SessionState::Established);
    // By the host's address, from another remote.
    assert_eq!(lab.back(SYN, FARTHER, public), Ok(at(SERVER)));
    assert_eq!(lab.out(SYN_ACK, SERVER, FARTHER), Ok(public));
    assert_eq!(lab.out(ACK, SERVER, FAR), Ok(at(SERVER)), "the first stays");
    assert_eq!(lab.back(Udp, FAR, at(SERVER)), Ok(at(SERVER)));
    let account = Account::Target { rule: 1, target: 0 };
    let totals = lab.world.tables.nat.accounts()[&account];
    assert_eq!((totals.opened, totals.live), (2, 2));
    // The host's port is none of the endpoint's.
    assert_eq!(lab.back(Udp, FAR, at("[fd00:1::2]:8080")), UNSOLICITED);
    // One remote cannot have both: the server could not tell them apart.
    let taken = lab.back(SYN, FAR, public);
    assert_eq!(taken, Err(DropReason::NatNoPort));
    assert_eq!(lab.sessions(), 3);
}

#[test]
fn what_is_published_for_some_is_open_for_them_alone() {
    let mut lab = routed();
    let rule = |id, from: Option<&str>, external: Option<&str>, inside| StaticRule {
        external: external.map_or(External::Every, |text| External::Address(ip(text))),
        from: from.map(|from| Prefix::new(ip(from), 48)),
        ..StaticRule::new(
            id,
            Transport::Udp,
            8_000 + id as u16..=8_000 + id as u16,
            Target::new(0, RED, L4Addr::new(ip("fd00:1::2"), inside)),
        )
    };
    lab.world.edit(|topology| {
        for rule in [
            rule(1, Some("2001:db8:9::"), None, 80),
            rule(2, Some("2001:db8:b::"), None, 80),
            rule(3, None, Some("2001:db8::1"), 81),
        ] {
            topology.statics.add(rule).unwrap();
        }
    });
    assert_eq!(lab.back(Udp, FAR, at(SERVER)), Ok(at(SERVER)));
    let second = "[2001:db8:b::1]:9";
    assert_eq!(lab.back(Udp, second, at(SERVER)), Ok(at(SERVER)));
    assert_eq!(lab.back(Udp, FARTHER, at(SERVER)), UNSOLICITED);
    // Published on one of the host's addresses, it is reached by that one.
    assert_eq!(lab.back(Udp, FAR, at("[fd00:1::2]:81")), UNSOLICITED);
    let inside = lab.back(Udp, FAR, at("[2001:db8::1]:8003"));
    assert_eq!(inside, Ok(at("[fd00:1::2]:81")));
}

#[test]
fn a_connection_goes_on_after_the_tables_were_lost() {
    let mut lab = routed();
    publish(&mut lab, 8_080, 80);
    // The server speaks first; then the client of another connection does.
    assert_eq!(lab.out(ACK, SERVER, FAR), Ok(at(SERVER)));
    assert_eq!(lab.back(ACK, FAR, at(SERVER)), Ok(at(SERVER)));
    assert_eq!(lab.back(ACK, FARTHER, at(SERVER)), Ok(at(SERVER)));
    assert_eq!(lab.out(ACK, SERVER, FARTHER), Ok(at(SERVER)));
}

#[test]
fn a_connection_opens_from_both_sides_and_ends() {
    let mut lab = routed();
    assert!(lab.held(SYN, FAR, at(HOST)));
    lab.wait(1);
    assert_eq!(lab.out(SYN, HOST, FAR), Ok(at(HOST)));
    assert_eq!(lab.back(SYN, FAR, at(HOST)), Ok(at(HOST)), "repeated");
    lab.back(SYN_ACK, FAR, at(HOST)).unwrap();
    lab.out(ACK, HOST, FAR).unwrap();
    assert_eq!(lab.state(), SessionState::Established);
    lab.wait(6);
    assert!(lab.later.is_empty(), "it was met");
    lab.out(FIN, HOST, FAR).unwrap();
    lab.back(FIN, FAR, at(HOST)).unwrap();
    assert_eq!(lab.state(), SessionState::Closing);
    lab.back(RST, FAR, at(HOST)).unwrap();
}

#[test]
fn a_syn_that_nobody_meets_is_told_that_it_is_prohibited() {
    let mut lab = routed();
    let frame = packet(SYN, OUTSIDE_LINK, at(FAR), at(HOST));
    assert!(lab.held(SYN, FAR, at(HOST)));
    lab.wait(5);
    assert!(lab.later.is_empty());
    lab.wait(1);
    let (port, told) = lab.later.pop().unwrap();
    let (kind, code, quoted) = icmp(&told);
    assert_eq!((port, kind, code), (UPLINK, 1, 1));
    assert_eq!(quoted, frame[14..]);
    assert_eq!(addresses(&told).1, ip("2001:db8:9::9"));
}

#[test]
fn pings_pass_both_ways_and_only_to_who_is_there() {
    let mut lab = routed();
    let far = "[2001:db8:9::9]:0";
    assert_eq!(lab.out(Ask, HOST, far), Ok(at(HOST)));
    assert_eq!(lab.back(Answer, far, at(HOST)), Ok(at(HOST)));
    let unasked = lab.back(Answer, far, at("[fd00:1::2]:7"));
    assert_eq!(unasked, UNSOLICITED);
    let before = lab.sessions();
    let asked = wire::echo(OUTSIDE_LINK, ip("2001:db8:9::9"), ip("fd00:1::2"), true, 9);
    let (port, got) = lab.send(UPLINK.0, &asked).unwrap();
    assert_eq!((port, addresses(&got)), (PortId(1), addresses(&asked)));
    let link = inside_link(at(HOST));
    let reply = wire::echo(link, ip("fd00:1::2"), ip("2001:db8:9::9"), false, 9);
    let (port, sent) = lab.send(1, &reply).unwrap();
    assert_eq!((port, addresses(&sent)), (UPLINK, addresses(&reply)));
    assert_eq!(lab.sessions(), before, "no state for what is asked");
    let nobody = wire::echo(OUTSIDE_LINK, ip("2001:db8:9::9"), ip("fd00:1::77"), true, 9);
    let (port, told) = lab.send(UPLINK.0, &nobody).unwrap();
    assert_eq!((port, icmp(&told).0, icmp(&told).1), (UPLINK, 1, 3));
    assert_eq!(told[..12], [ROUTER_MAC.0, UPLINK_MAC.0].concat());
    assert_eq!(addresses(&told).0, ip("fd00:1::1"));
    let gateway = wire::echo(OUTSIDE_LINK, ip("2001:db8:9::9"), ip("fd00:1::1"), true, 9);
    let (port, pong) = lab.send(UPLINK.0, &gateway).unwrap();
    assert_eq!((port, addresses(&pong).0), (UPLINK, ip("fd00:1::1")));
    let udp = wire::udp(OUTSIDE_LINK, at(FAR), at("[fd00:1::1]:53"), 64, b"x");
    assert_eq!(lab.send(UPLINK.0, &udp), Err(DropReason::GatewayClosed));
}

#[test]
fn errors_about_a_flow_pass_as_they_are_and_others_do_not() {
    let mut lab = routed();
    let frame = wire::udp(inside_link(at(HOST)), at(HOST), at(FAR), 64, b"x");
    let (_, sent) = lab.send(1, &frame).unwrap();
    for (kind, info) in [
        ((1, 4), [0; 4]),
        ((2, 0), 1_280u32.to_be_bytes()),
        ((3, 0), [0; 4]),
    ] {
        let error = error_about((ROUTER, v6("fd00:1::2")), kind, info, &sent);
        let (port, got) = lab.send(UPLINK.0, &error).unwrap();
        assert_eq!(port, PortId(1));
        assert_eq!(got[22..], error[22..], "but for MACs and hops, as it came");
    }
    // About a flow that is none, by a stranger's number, or to another than its sender.
    let none = wire::udp(inside_link(at(HOST)), at(HOST), at(OTHER), 64, b"x");
    let to_other = error_about((ROUTER, v6("fd00:1::3")), (1, 4), [0; 4], &sent);
    let unmatched = Err(DropReason::NatIcmpUnmatched);
    let about_none = error_about((ROUTER, v6("fd00:1::2")), (1, 4), [0; 4], &none);
    for error in [about_none, to_other] {
        assert_eq!(lab.send(UPLINK.0, &error), unmatched);
    }
    let mut forged = error_about((ROUTER, v6("fd00:1::2")), (1, 4), [0; 4], &sent);
    *forged.last_mut().unwrap() ^= 1;
    let malformed = Err(DropReason::NatIcmpMalformed);
    assert_eq!(lab.send(UPLINK.0, &forged), malformed);
    // A router of the network's own reports under its own address.
    publish(&mut lab, 8_080, 80);
    let asked = wire::udp(OUTSIDE_LINK, at(FAR), at(SERVER), 64, b"x");
    let (_, got) = lab.send(UPLINK.0, &asked).unwrap();
    let link = Link(mac(2), gateway_mac(RED));
    let ends = (v6("fd00:1::3"), v6("2001:db8:9::9"));
    let error = error_by(link, ends, (1, 4), [0; 4], &got);
    let (port, told) = lab.send(2, &error).unwrap();
    assert_eq!(port, UPLINK);
    assert_eq!(told[22..], error[22..]);
}

#[test]
fn what_is_too_large_or_too_old_is_told() {
    let mut lab = routed();
    lab.out(Udp, HOST, FAR).unwrap();
    lab.world.edit(|topology| {
        topology.uplinks[0].mtu = 1_300;
        let red = topology.domains[RED.index()].as_mut().unwrap();
        red.gateway.as_mut().unwrap().mtu = 1_400;
    });
    let big = wire::udp(inside_link(at(HOST)), at(HOST), at(FAR), 64, &[7; 1_350]);
    let (port, told) = lab.send(1, &big).unwrap();
    assert_eq!((port, icmp(&told).0), (PortId(1), 2));
    assert_eq!(told[58..62], 1_300u32.to_be_bytes());
    let big = wire::udp(OUTSIDE_LINK, at(FAR), at(HOST), 64, &[7; 1_400]);
    let (port, told) = lab.send(UPLINK.0, &big).unwrap();
    assert_eq!((port, icmp(&told).0), (UPLINK, 2));
    assert_eq!(told[58..62], 1_400u32.to_be_bytes());
    assert_eq!(addresses(&told), (ip("fd00:1::1"), ip("2001:db8:9::9")));
    let old = wire::udp(OUTSIDE_LINK, at(FAR), at(HOST), 1, b"x");
    let (port, told) = lab.send(UPLINK.0, &old).unwrap();
    assert_eq!((port, icmp(&told).0), (UPLINK, 3));
    assert_eq!(icmp(&told).2, old[14..], "as it came");
    let old = wire::udp(OUTSIDE_LINK, at(OTHER), at(HOST), 1, b"x");
    let silent = lab.send(UPLINK.0, &old);
    assert_eq!(silent, Err(DropReason::RoutedUnsolicited));
}

#[test]
fn fragments_pass_in_any_order_under_their_own_identification() {
    let mut lab = routed();
    let payload: Vec<u8> = (0..8_000u32).map(|n| (n / 7) as u8).collect();
    for seed in 0..20 {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let whole = wire::udp(inside_link(at(HOST)), at(HOST), at(FAR), 64, &payload);
        let mut pieces = cut(&whole, 77, 1_200);
        rng.shuffle(&mut pieces);
        let sent = lab.send_pieces(1, &pieces);
        let sent: Vec<_> = sent.into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(ends(&join(&sent)), (at(HOST), at(FAR)));
        assert_eq!(place(&sent[0]).2, 77);
        let answer = wire::udp(OUTSIDE_LINK, at(FAR), at(HOST), 64, &payload);
        let mut pieces = cut(&answer, 78, 1_200);
        rng.shuffle(&mut pieces);
        let got = lab.send_pieces(UPLINK.0, &pieces);
        assert!(
            got.iter().all(|(port, _)| *port == PortId(1)),
            "seed {seed}"
        );
        let got: Vec<_> = got.into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(ends(&join(&got)), (at(FAR), at(HOST)));
    }
    // Of what nobody has asked for, no fragment is let in or left to the host.
    let whole = wire::udp(OUTSIDE_LINK, at(OTHER), at(HOST), 64, &payload);
    let pieces = cut(&whole, 79, 1_200);
    let first = lab.send(UPLINK.0, &pieces[0]);
    assert_eq!(first, Err(DropReason::RoutedUnsolicited));
    assert_eq!(lab.send(UPLINK.0, &pieces[1]), Ok((UPLINK, Vec::new())));
    let before = lab
        .world
        .sw
        .counters
        .verdict(dataplane_core::verdict::VerdictKind::NotOurs);
    lab.wait(3);
    assert_eq!(lab.world.dropped(DropReason::NatFragment), 1);
    let after = lab
        .world
        .sw
        .counters
        .verdict(dataplane_core::verdict::VerdictKind::NotOurs);
    assert_eq!(after, before);
}

#[test]
fn sources_that_cannot_be_outside_and_networks_that_are_not_routed_are_refused() {
    let mut lab = routed();
    publish(&mut lab, 8_080, 80);
    for imposter in [
        SAME_PORT,
        "[fd00:1::1]:9",
        "[2001:db8::1]:9",
        "[fe80::1]:9",
        "[::1]:9",
    ] {
        let frame = wire::udp(OUTSIDE_LINK, at(imposter), at(SERVER), 64, b"x");
        let refused = lab.send(UPLINK.0, &frame);
        assert_eq!(refused, Err(DropReason::MartianSource), "{imposter}");
    }
    let broadcast = wire::echo(
        OUTSIDE_LINK,
        ip("198.51.100.9"),
        ip("10.1.255.255"),
        true,
        9,
    );
    let refused = lab.send(UPLINK.0, &broadcast);
    assert_eq!(refused, Err(DropReason::MartianDestination));
    lab.world.edit(|topology| {
        topology.domains[RED.index()].as_mut().unwrap().internal = true;
    });
    let frame = wire::udp(OUTSIDE_LINK, at(FAR), at(SERVER), 64, b"x");
    let foreign = Verdict::Drop(DropReason::UplinkForeignDestination);
    assert_eq!(lab.world.send(UPLINK.0, &frame).verdict, foreign);
    lab.world.edit(|topology| {
        let red = topology.domains[RED.index()].as_mut().unwrap();
        red.internal = false;
        red.modes.v6 = NatMode::Masquerade;
    });
    assert_eq!(lab.world.send(UPLINK.0, &frame).verdict, foreign);
}

#[test]
fn the_limits_of_the_nat_hold_for_routed_flows() {
    let mut lab = routed();
    lab.set(|nat| nat.sessions_per_endpoint_max = 1);
    lab.out(Udp, HOST, FAR).unwrap();
    assert_eq!(lab.refused(Udp, HOST, OTHER), DropReason::NatQuota);
    assert_eq!(lab.out(Udp, SAME_PORT, FAR), Ok(at(SAME_PORT)));
}
