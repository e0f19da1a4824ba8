//! Published ports and hairpin: the client's address is kept, both ways find the session.

use super::*;
use crate::addr::{Prefix, UplinkId};
use crate::trace::NatKind;

const CLIENT: &str = "192.0.2.77:40000";
const SERVER: &str = "10.0.0.8:8080";
const PUBLIC: &str = "198.51.100.1:80";

fn published() -> Lab {
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, at(SERVER));
    lab
}

#[test]
fn a_client_reaches_a_published_port_with_its_own_address() {
    for (request, reply) in [(Kind::Tcp(SYN), Kind::Tcp(SYN_ACK)), (Kind::Udp, Kind::Udp)] {
        for v6 in [false, true] {
            let mut lab = Lab::new();
            let (client, public, server) = if v6 {
                (
                    "[2001:db8:7::7]:40000",
                    "[2001:db8::1]:80",
                    "[fd00::8]:8080",
                )
            } else {
                (CLIENT, PUBLIC, SERVER)
            };
            let (client, public, server) = (at(client), at(public), at(server));
            lab.publish(1, "*", 80..=80, server);
            assert_eq!(lab.back(request, client, public), Ok((NET, server)));
            let mut answer = frame(reply, server, client);
            let translation = lab.go_out(NET, &mut answer).unwrap();
            assert_eq!(translation.kind, NatKind::ForwardReturn);
            assert_eq!(ends(answer.bytes()), (public, client));
            let session = lab.only_session();
            assert_eq!((session.inside, session.external), (server, public));
            assert_eq!((session.packets_in, session.packets_out), (1, 1));
            let tcp = request != Kind::Udp;
            let rule = if tcp { 1 } else { 101 };
            assert_eq!(session.rule, Some(rule));
            assert_eq!(lab.opened(rule), 1);
            assert_eq!(lab.back(request, client, public), Ok((NET, server)));
            assert_eq!(lab.opened(rule), 1, "the same session");
        }
    }
}

#[test]
fn an_interval_keeps_its_offset_for_every_port() {
    let mut lab = Lab::new();
    lab.publish(1, "198.51.100.1", 1_000..=2_000, at("10.0.0.8:5000"));
    for offset in [0, 1, 499, 1_000] {
        let public = L4Addr::new(ip("198.51.100.1"), 1_000 + offset);
        let server = L4Addr::new(ip("10.0.0.8"), 5_000 + offset);
        assert_eq!(lab.back(Kind::Udp, at(CLIENT), public), Ok((NET, server)));
        assert_eq!(lab.out(Kind::Udp, server, at(CLIENT)), Ok(public));
    }
    let beyond = lab.back(Kind::Udp, at(CLIENT), at("198.51.100.1:2001"));
    assert_eq!(beyond, Err(DropReason::NatNoMapping));
}

#[test]
fn only_the_prefix_that_a_rule_names_is_served() {
    let mut lab = published();
    let mut rule = lab.topology.statics.remove(1).unwrap();
    rule.from = Some(Prefix::new(ip("192.0.2.0"), 24));
    lab.topology.statics.add(rule).unwrap();
    assert!(lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).is_ok());
    let stranger = lab.back(Kind::Tcp(SYN), at("192.0.3.77:40000"), at(PUBLIC));
    assert_eq!(stranger, Err(DropReason::NatFiltered));
}

#[test]
fn a_servers_own_connections_get_a_dynamic_mapping() {
    let mut lab = published();
    let remote = at("203.0.113.5:443");
    let external = lab.out(Kind::Tcp(SYN), at(SERVER), remote).unwrap();
    assert_ne!(external, at(PUBLIC));
    assert_eq!(
        lab.back(Kind::Tcp(SYN_ACK), remote, external),
        Ok((NET, at(SERVER)))
    );
    assert_eq!(lab.out(Kind::Tcp(ACK), at(SERVER), remote), Ok(external));
    assert_eq!(lab.only_session().rule, None);
}

#[test]
fn a_published_connection_outlives_a_restart_from_either_side() {
    let mut lab = published();
    let (client, public, server) = (at(CLIENT), at(PUBLIC), at(SERVER));
    assert_eq!(lab.out(Kind::Tcp(ACK), server, client), Ok(public));
    assert_eq!(lab.only_session().rule, Some(1));
    let mut lab = published();
    assert_eq!(lab.back(Kind::Tcp(ACK), client, public), Ok((NET, server)));
    assert_eq!(lab.out(Kind::Tcp(ACK), server, client), Ok(public));
}

#[test]
fn one_server_port_published_twice_keeps_its_clients_apart() {
    let mut lab = published();
    lab.publish(2, "*", 8_080..=8_080, at(SERVER));
    let second = at("198.51.100.1:8080");
    assert!(lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).is_ok());
    let clash = lab.back(Kind::Tcp(SYN), at(CLIENT), second);
    assert_eq!(clash, Err(DropReason::NatNoPort));
    let other = at("192.0.2.77:40001");
    assert!(lab.back(Kind::Tcp(SYN), other, second).is_ok());
    assert_eq!(lab.out(Kind::Tcp(SYN_ACK), at(SERVER), other), Ok(second));
    assert_eq!(
        lab.out(Kind::Tcp(SYN_ACK), at(SERVER), at(CLIENT)),
        Ok(at(PUBLIC))
    );
    // Once the first is closed its place may be taken.
    lab.out(Kind::Tcp(RST), at(SERVER), at(CLIENT)).unwrap();
    assert!(lab.back(Kind::Tcp(SYN), at(CLIENT), second).is_ok());
    assert_eq!(
        lab.out(Kind::Tcp(SYN_ACK), at(SERVER), at(CLIENT)),
        Ok(second)
    );
    assert_eq!(lab.nat.session_count(), 2);
}

#[test]
fn a_rule_that_got_another_endpoint_takes_its_clients_along() {
    let mut lab = published();
    lab.back(Kind::Udp, at(CLIENT), at(PUBLIC)).unwrap();
    let mut rule = lab.topology.statics.remove(101).unwrap();
    rule.targets[0].inside = ip("10.0.0.9");
    lab.topology.statics.add(rule).unwrap();
    assert_eq!(
        lab.back(Kind::Udp, at(CLIENT), at(PUBLIC)),
        Ok((NET, at("10.0.0.9:8080")))
    );
    assert_eq!(lab.nat.session_count(), 1);
    assert_eq!(lab.nat.session_count_of(NET, ip("10.0.0.8")), 0);
}

#[test]
fn withdrawing_a_rule_ends_its_sessions() {
    let mut lab = published();
    lab.back(Kind::Udp, at(CLIENT), at(PUBLIC)).unwrap();
    lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).unwrap();
    lab.topology.statics.remove(101).unwrap();
    let ended = lab.nat.remove_sessions(|session| session.rule == Some(101));
    assert_eq!(ended, 1);
    lab.nat.forget_rule(101);
    assert_eq!((lab.opened(1), lab.opened(101)), (1, 0));
    assert_eq!(lab.only_session().rule, Some(1));
    let gone = lab.back(Kind::Udp, at(CLIENT), at(PUBLIC));
    assert_eq!(gone, Err(DropReason::NatNoMapping));
    let external = lab.out(Kind::Udp, at(SERVER), at(CLIENT)).unwrap();
    assert_ne!(external, at(PUBLIC));
}

/// Remotes enough that some have their published and their dynamic sessions in one shard.
fn many_remotes() -> impl Iterator<Item = L4Addr> {
    (1..400).map(|port| L4Addr::new(ip("192.0.2.77"), port))
}

#[test]
fn publishing_a_port_in_use_leaves_its_dynamic_sessions_alone() {
    for remote in many_remotes() {
        let mut lab = Lab::new();
        let host = at("10.0.0.2:50001");
        let external = lab.out(Kind::Udp, host, remote).unwrap();
        lab.publish(1, "*", 50_001..=50_001, at(SERVER));
        let (_, inside) = lab.back(Kind::Udp, remote, external).unwrap();
        assert_eq!(inside, at(SERVER));
        assert_eq!(lab.nat.session_count(), 2, "{remote}");
        assert_eq!(lab.out(Kind::Udp, host, remote), Ok(external));
    }
}

#[test]
fn an_ended_published_session_is_never_taken_for_a_dynamic_one() {
    for remote in many_remotes() {
        let mut lab = published();
        lab.back(Kind::Udp, remote, at(PUBLIC)).unwrap();
        lab.wait(301);
        let external = lab.out(Kind::Udp, at(SERVER), remote).unwrap();
        assert_ne!(external, at(PUBLIC), "{remote}");
        let mut lab = published();
        lab.back(Kind::Udp, remote, at(PUBLIC)).unwrap();
        lab.topology.statics = StaticRules::default();
        let gone = lab.back(Kind::Udp, remote, at(PUBLIC));
        assert_eq!(gone, Err(DropReason::NatNoMapping), "{remote}");
    }
}

#[test]
fn a_dynamic_mapping_never_takes_a_published_port() {
    let mut lab = Lab::new();
    lab.topology.nat.port_range = 50_000..=50_127;
    lab.publish(1, "*", 50_000..=50_063, at(SERVER));
    let external = lab.out(Kind::Udp, at("10.0.0.2:50001"), at(CLIENT));
    assert_eq!(external.unwrap().l4_port.0, 50_065, "the only one left");
    let second = lab.out(Kind::Udp, at("10.0.0.3:50001"), at(CLIENT));
    assert_eq!(second, Err(DropReason::NatNoPort));
}

/// Sends a frame around the hairpin and returns both ends after it.
fn around(
    lab: &mut Lab,
    kind: Kind,
    src: L4Addr,
    dst: L4Addr,
) -> Result<(L4Addr, L4Addr), DropReason> {
    let mut buf = frame(kind, src, dst);
    let sent = buf.clone();
    let result = lab.around(NET, &mut buf);
    match result {
        Ok(inbound) => {
            assert_eq!(inbound.translation.kind, NatKind::Hairpin);
            assert_eq!(inbound.translation.before, (src, dst));
            assert_eq!(inbound.translation.after, ends(buf.bytes()));
            assert_eq!(inbound.domain, NET);
            Ok(ends(buf.bytes()))
        }
        Err(reason) => {
            assert_eq!(buf.bytes(), sent.bytes());
            Err(reason)
        }
    }
}

#[test]
fn a_hairpin_to_a_published_port_comes_back_the_same_way() {
    for (request, reply) in [(Kind::Tcp(SYN), Kind::Tcp(SYN_ACK)), (Kind::Udp, Kind::Udp)] {
        // The server itself is one of the clients.
        for client in ["10.0.0.2:50001", "10.0.0.8:50001"] {
            let mut lab = published();
            let (client, server, public) = (at(client), at(SERVER), at(PUBLIC));
            let (seen, to) = around(&mut lab, request, client, public).unwrap();
            assert_eq!(to, server);
            assert_eq!(seen, at("198.51.100.1:50001"), "its external mapping");
            let back = around(&mut lab, reply, server, seen).unwrap();
            assert_eq!(back, (public, client));
            assert_eq!(lab.nat.session_count(), 2);
            let again = around(&mut lab, request, client, public).unwrap();
            assert_eq!(again, (seen, server));
            assert_eq!(lab.nat.session_count(), 2);
        }
    }
}

#[test]
fn two_inside_hosts_meet_by_their_mappings_once_both_have_spoken() {
    let mut lab = Lab::new();
    let (a, b, remote) = (
        at("10.0.0.2:50001"),
        at("10.0.0.3:50002"),
        at("203.0.113.5:80"),
    );
    let a_external = lab.out(Kind::Udp, a, remote).unwrap();
    let b_external = lab.out(Kind::Udp, b, remote).unwrap();
    let first = around(&mut lab, Kind::Udp, a, b_external);
    assert_eq!(first, Err(DropReason::NatFiltered));
    let second = around(&mut lab, Kind::Udp, b, a_external).unwrap();
    assert_eq!(second, (b_external, a));
    let third = around(&mut lab, Kind::Udp, a, b_external).unwrap();
    assert_eq!(third, (a_external, b));
}

#[test]
fn what_is_not_the_nats_goes_to_the_host_and_leaves_no_trace() {
    let mut lab = published();
    let host = at("10.0.0.2:50001");
    for (kind, to) in [
        (Kind::Tcp(SYN), "198.51.100.1:22"),
        (Kind::Udp, "198.51.100.1:53"),
        (Kind::EchoRequest, "198.51.100.1:0"),
    ] {
        let result = around(&mut lab, kind, host, at(to));
        assert_eq!(result, Err(DropReason::NatNoMapping), "{kind:?}");
    }
    assert_eq!(lab.nat.session_count(), 0);
}

#[test]
fn a_rule_of_an_uplink_is_open_to_what_comes_in_by_it_and_to_hosts_inside() {
    let mut lab = Lab::new();
    let public = at(PUBLIC);
    let rule = |id, uplink| StaticRule {
        external: External::Uplink(UplinkId(uplink), vec![ip("198.51.100.1")]),
        ..StaticRule::new(id, Transport::Tcp, 80..=80, Target::new(0, NET, at(SERVER)))
    };
    lab.topology.statics.add(rule(1, 3)).unwrap();
    lab.enter_by(Role::Uplink(UplinkId(2)));
    let syn = Kind::Tcp(SYN);
    let refused = lab.back(syn, at(CLIENT), public);
    assert_eq!(refused, Err(DropReason::NatOtherUplink));
    assert_eq!(lab.nat.session_count(), 0);
    lab.enter_by(Role::Uplink(UplinkId(3)));
    assert_eq!(lab.back(syn, at(CLIENT), public), Ok((NET, at(SERVER))));
    assert_eq!(
        lab.out(Kind::Tcp(SYN_ACK), at(SERVER), at(CLIENT)),
        Ok(public)
    );
    lab.enter_by(Role::Uplink(UplinkId(2)));
    let refused = lab.back(Kind::Tcp(ACK), at(CLIENT), public);
    assert_eq!(
        refused,
        Err(DropReason::NatOtherUplink),
        "of a session, too"
    );
    let mut request = frame(syn, at("10.0.0.2:50000"), public);
    let around = lab.around(NET, &mut request).unwrap();
    assert_eq!((around.domain, around.inside), (NET, ip("10.0.0.8")));
}
