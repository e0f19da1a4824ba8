//! Inside to outside and back: mapping, filtering, timers (RFC 4787, RFC 5382, RFC 5508).

use super::*;

const WEB: &str = "203.0.113.5:80";

fn every_kind() -> [(Kind, Kind, L4Addr, L4Addr); 6] {
    let (v4, v6) = (at("10.0.0.2:50001"), at("[fd00::2]:50001"));
    let (web4, web6) = (at(WEB), at("[2001:db8:5::5]:80"));
    let (far4, far6) = (at("203.0.113.5:0"), at("[2001:db8:5::5]:0"));
    [
        (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK), v4, web4),
        (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK), v6, web6),
        (Kind::Udp, Kind::Udp, v4, web4),
        (Kind::Udp, Kind::Udp, v6, web6),
        (Kind::EchoRequest, Kind::EchoReply, v4, far4),
        (Kind::EchoRequest, Kind::EchoReply, v6, far6),
    ]
}

#[test]
fn a_flow_goes_out_and_its_answer_comes_back() {
    for (request, reply, host, remote) in every_kind() {
        let mut lab = Lab::new();
        let external = lab.out(request, host, remote).unwrap();
        assert_eq!(external.ip, external_of(host.ip));
        assert_eq!(external.l4_port, host.l4_port, "the port is free and kept");
        assert_eq!(lab.back(reply, remote, external), Ok((NET, host)));
        let session = lab.only_session();
        assert_eq!((session.inside, session.external), (host, external));
        assert_eq!((session.remote, session.domain), (remote, NET));
        assert_eq!((session.packets_out, session.packets_in), (1, 1));
        assert_eq!(session.rule, None);
    }
}

#[test]
fn one_mapping_serves_every_remote() {
    let mut lab = Lab::new();
    let host = at("10.0.0.2:1234");
    let external = lab.out(Kind::Udp, host, at(WEB)).unwrap();
    assert_ne!(external.l4_port, host.l4_port, "1234 is not in the range");
    assert_eq!(external.l4_port.0 % 64, 1234 % 64);
    for remote in ["203.0.113.5:81", "203.0.113.6:80", "192.0.2.9:5"] {
        assert_eq!(lab.out(Kind::Udp, host, at(remote)), Ok(external));
    }
    assert_eq!(lab.nat.gauges().mappings, 1);
    assert_eq!(lab.nat.session_count(), 4);
}

#[test]
fn only_the_remote_that_was_spoken_to_comes_in() {
    let mut lab = Lab::new();
    let external = lab.out(Kind::Udp, at("10.0.0.2:50001"), at(WEB)).unwrap();
    for stranger in ["203.0.113.5:81", "203.0.113.6:80"] {
        let refused = lab.back(Kind::Udp, at(stranger), external);
        assert_eq!(refused, Err(DropReason::NatFiltered), "{stranger}");
    }
    let nobody = L4Addr::new(external.ip, 50_002);
    let refused = lab.back(Kind::Udp, at(WEB), nobody);
    assert_eq!(refused, Err(DropReason::NatNoMapping));
    let other_protocol = lab.back(Kind::Tcp(SYN), at(WEB), external);
    assert_eq!(other_protocol, Err(DropReason::NatNoMapping));
}

#[test]
fn two_hosts_with_one_port_get_two_external_ports() {
    let mut lab = Lab::new();
    let (a, b) = (at("10.0.0.2:50001"), at("10.0.0.3:50001"));
    let first = lab.out(Kind::Udp, a, at(WEB)).unwrap();
    let second = lab.out(Kind::Udp, b, at(WEB)).unwrap();
    assert_ne!(first, second);
    assert_eq!(first.l4_port.0 % 64, second.l4_port.0 % 64);
    assert_eq!(lab.back(Kind::Udp, at(WEB), first), Ok((NET, a)));
    assert_eq!(lab.back(Kind::Udp, at(WEB), second), Ok((NET, b)));
}

#[test]
fn networks_with_the_same_addresses_coexist() {
    let mut lab = Lab::new();
    let host = at("10.0.0.2:50001");
    let one = lab.out_from(NET, Kind::Udp, host, at(WEB)).unwrap();
    let two = lab.out_from(TWIN, Kind::Udp, host, at(WEB)).unwrap();
    assert_eq!(lab.back(Kind::Udp, at(WEB), one), Ok((NET, host)));
    assert_eq!(lab.back(Kind::Udp, at(WEB), two), Ok((TWIN, host)));
}

#[test]
fn another_uplink_gives_another_mapping() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let mut mapped = Vec::new();
    for external in ["198.51.100.1", "198.51.100.2", "198.51.100.1"] {
        let mut buf = frame(Kind::Udp, host, remote);
        let headers = Headers::parse(buf.bytes()).unwrap();
        let mut sent = Frame::new(PortId(1), &mut buf);
        let translated = lab.view.outbound(
            &lab.topology,
            NET,
            ip(external).into(),
            &mut sent,
            &headers,
            lab.now,
        );
        let source = translated.unwrap().after.0;
        assert_eq!(source.ip, ip(external));
        mapped.push(source);
    }
    assert_eq!(mapped[0], mapped[2]);
    for external in mapped {
        assert_eq!(lab.back(Kind::Udp, remote, external), Ok((NET, host)));
    }
    assert_eq!(lab.nat.session_count(), 2);
}

#[test]
fn stray_echoes_are_the_hosts_and_answers_nobody_asked_for_are_dropped() {
    let mut lab = Lab::new();
    let host = L4Addr::new(external_of(ip("10.0.0.2")), 0);
    let remote = at("203.0.113.5:7");
    let asked = lab.back(Kind::EchoRequest, remote, host);
    assert_eq!(asked, Err(DropReason::NatNoMapping));
    let answered = lab.out(Kind::EchoReply, at("10.0.0.2:0"), remote);
    assert_eq!(answered, Err(DropReason::NatUnsupported));
    assert_eq!(lab.nat.session_count(), 0);
}

#[test]
fn each_class_lives_for_its_timeout_and_not_much_longer() {
    let established = [
        (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK)),
        (Kind::Tcp(ACK), Kind::Tcp(ACK)),
    ];
    let closed = [
        (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK)),
        (Kind::Tcp(ACK), Kind::Tcp(RST)),
    ];
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let cases: [(&[(Kind, Kind)], u64); 5] = [
        (&[(Kind::Udp, Kind::Udp)], 300),
        (&[(Kind::EchoRequest, Kind::EchoReply)], 60),
        (&established[..1], 240),
        (&established, 7_440),
        (&closed, 240),
    ];
    for (exchange, timeout) in cases {
        for (idle, alive) in [(timeout, true), (timeout + 1, false)] {
            let mut lab = Lab::new();
            let echo = exchange[0].0 == Kind::EchoRequest;
            let remote = if echo { at("203.0.113.5:0") } else { remote };
            let mut external = None;
            for (request, reply) in exchange {
                let mapped = lab.out(*request, host, remote).unwrap();
                assert_eq!(lab.back(*reply, remote, mapped), Ok((NET, host)));
                external = Some(mapped);
            }
            lab.wait(idle);
            let reply = exchange.last().unwrap().1;
            let config = lab.topology.nat.clone();
            let result = lab.back(reply, remote, external.unwrap());
            assert_eq!(
                result.is_ok(),
                alive,
                "{exchange:?} after {idle} s: {result:?}"
            );
            // A session that the lookup found expired is swept, one that it found alive is not.
            let swept = lab.nat.expire(lab.now, &config, 10);
            assert_eq!(swept, usize::from(!alive), "{exchange:?} after {idle} s");
            assert_eq!(lab.nat.session_count(), usize::from(alive));
            assert_eq!(lab.nat.gauges().mappings, usize::from(alive));
        }
    }
}

#[test]
fn traffic_in_either_direction_keeps_a_session() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let external = lab.out(Kind::Udp, host, remote).unwrap();
    for _ in 0..5 {
        lab.wait(290);
        assert_eq!(lab.back(Kind::Udp, remote, external), Ok((NET, host)));
        lab.wait(290);
        assert_eq!(lab.out(Kind::Udp, host, remote), Ok(external));
    }
    assert_eq!(lab.only_session().packets_in, 5);
    assert_eq!(lab.only_session().age(lab.now).as_secs(), 2_900);
}

#[test]
fn stray_segments_do_not_hold_the_port_of_a_closed_connection() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let external = lab.out(Kind::Tcp(SYN), host, remote).unwrap();
    lab.back(Kind::Tcp(SYN_ACK), remote, external).unwrap();
    lab.out(Kind::Tcp(FIN_ACK), host, remote).unwrap();
    lab.back(Kind::Tcp(FIN_ACK), remote, external).unwrap();
    assert_eq!(lab.only_session().state, SessionState::Closing);
    for _ in 0..2 {
        lab.wait(120);
        lab.out(Kind::Tcp(ACK), host, remote).unwrap();
    }
    lab.wait(1);
    let late = lab.back(Kind::Tcp(ACK), remote, external);
    assert_eq!(late, Err(DropReason::NatFiltered));
    assert_eq!(lab.out(Kind::Tcp(SYN), host, remote), Ok(external));
    assert_eq!(lab.only_session().state, SessionState::Opening);
}

#[test]
fn a_syn_reopens_a_closing_session_on_its_port() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let external = lab.out(Kind::Tcp(SYN), host, remote).unwrap();
    lab.back(Kind::Tcp(RST), remote, external).unwrap();
    assert_eq!(lab.only_session().state, SessionState::Closing);
    assert_eq!(lab.out(Kind::Tcp(SYN), host, remote), Ok(external));
    assert_eq!(lab.only_session().state, SessionState::Opening);
}

#[test]
fn any_segment_opens_because_flows_outlive_a_restart() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let external = lab.out(Kind::Tcp(ACK), host, remote).unwrap();
    assert_eq!(lab.back(Kind::Tcp(ACK), remote, external), Ok((NET, host)));
}

#[test]
fn what_cannot_be_translated_says_why() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at(WEB));
    let mut gre = frame(Kind::Udp, host, remote);
    gre.bytes_mut()[23] = 47;
    assert_eq!(lab.go_out(NET, &mut gre), Err(DropReason::NatUnsupported));
    let mut short = frame(Kind::Udp, host, remote);
    short.bytes_mut()[14 + 20 + 4..14 + 20 + 6].fill(0);
    assert_eq!(lab.go_out(NET, &mut short), Err(DropReason::L4Malformed));
    let mut cut = frame(Kind::Udp, host, remote);
    cut.truncate(30);
    let headers = Headers::parse(cut.bytes()).unwrap();
    let mut cut = Frame::new(PortId(1), &mut cut);
    let external = external_of(host.ip);
    let result = lab.view.outbound(
        &lab.topology,
        NET,
        external.into(),
        &mut cut,
        &headers,
        lab.now,
    );
    assert_eq!(result, Err(DropReason::L3Malformed));
    let mut v4 = frame(Kind::Udp, host, remote);
    let headers = Headers::parse(v4.bytes()).unwrap();
    let mut v4 = Frame::new(PortId(1), &mut v4);
    let external = ip("2001:db8::1");
    let result = lab.view.outbound(
        &lab.topology,
        NET,
        external.into(),
        &mut v4,
        &headers,
        lab.now,
    );
    assert_eq!(result, Err(DropReason::NatNoAddress));
    assert_eq!(lab.nat.session_count(), 0);
}
