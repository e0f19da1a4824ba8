//! ICMP errors: whoever gets one must find in it the very packet that it sent.
//!
//! The oracle needs no model: a packet goes through the NAT, the far side quotes what it saw, and
//! after the way back the quote has to equal the packet before the NAT, byte for byte.

use super::*;
use crate::trace::NatKind;
use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4, icmpv6};

/// Bytes of transport header and payload that an error quotes, from the least of RFC 792 to more
/// than there is.
const QUOTES: [usize; 4] = [8, 16, 18, 500];

/// The error that `reporter` sends to `to` about the IP packet `quoted`.
fn error(reporter: IpAddr, to: IpAddr, quoted: &[u8]) -> FrameBuf {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(ip_headers(reporter, to));
    let mut bytes = Vec::new();
    let code6 = icmpv6::TimeExceededCode::HopLimitExceeded;
    let code4 = icmpv4::DestUnreachableHeader::FragmentationNeeded {
        next_hop_mtu: 1_400,
    };
    if reporter.is_ipv6() {
        let builder = builder.icmpv6(Icmpv6Type::TimeExceeded(code6));
        builder.write(&mut bytes, quoted).unwrap();
    } else {
        let builder = builder.icmpv4(Icmpv4Type::DestinationUnreachable(code4));
        builder.write(&mut bytes, quoted).unwrap();
    }
    FrameBuf::from_bytes(&bytes)
}

/// The IP packet of a frame, cut after `l4` bytes of its transport.
fn quote(buf: &FrameBuf, l4: usize) -> Vec<u8> {
    let headers = Headers::parse(buf.bytes()).unwrap();
    let size = usize::from(headers.ip().unwrap().header_size) + l4;
    let packet = &buf.bytes()[14..];
    packet[..size.min(packet.len())].to_vec()
}

/// What an error quotes.
fn quoted(buf: &FrameBuf) -> &[u8] {
    let headers = Headers::parse(buf.bytes()).unwrap();
    &buf.bytes()[headers.l4.unwrap().offset + 8..]
}

fn outer(buf: &FrameBuf) -> (IpAddr, IpAddr) {
    assert_checksums(buf.bytes());
    addresses(&SlicedPacket::from_ethernet(buf.bytes()).unwrap())
}

/// (request, reply, host, remote, a router on the way)
fn flows() -> Vec<(Kind, Kind, L4Addr, L4Addr, IpAddr)> {
    let mut flows = Vec::new();
    for (host, web, far, router) in [
        (
            "10.0.0.2:1234",
            "203.0.113.5:80",
            "203.0.113.5:0",
            "192.0.2.254",
        ),
        (
            "[fd00::2]:1234",
            "[2001:db8:5::5]:80",
            "[2001:db8:5::5]:0",
            "2001:db8:fe::1",
        ),
    ] {
        for (request, reply, remote) in [
            (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK), web),
            (Kind::Udp, Kind::Udp, web),
            (Kind::EchoRequest, Kind::EchoReply, far),
        ] {
            flows.push((request, reply, at(host), at(remote), ip(router)));
        }
    }
    flows
}

#[test]
fn an_error_from_outside_quotes_the_packet_that_was_sent() {
    for (request, _, host, remote, router) in flows() {
        for l4 in QUOTES {
            let mut lab = Lab::new();
            let sent = frame(request, host, remote);
            let mut seen = sent.clone();
            lab.go_out(NET, &mut seen).unwrap();
            let mut error = error(router, external_of(host.ip), &quote(&seen, l4));
            let hash = lab.nat.state_hash();
            let inbound = lab.come_in(&mut error).unwrap();
            assert_eq!(inbound.translation.kind, NatKind::IcmpError);
            assert_eq!((inbound.domain, inbound.inside), (NET, host.ip));
            assert_eq!(outer(&error), (router, host.ip));
            assert_eq!(quoted(&error), quote(&sent, l4), "{request:?} {l4}");
            assert_eq!(lab.nat.state_hash(), hash, "an error moves no session");
        }
    }
}

#[test]
fn an_error_from_inside_quotes_the_packet_that_came_and_hides_its_host() {
    for (request, reply, host, remote, _) in flows() {
        for l4 in QUOTES {
            let mut lab = Lab::new();
            let external = lab.out(request, host, remote).unwrap();
            let came = frame(reply, remote, external);
            let mut seen = came.clone();
            lab.come_in(&mut seen).unwrap();
            let mut error = error(host.ip, remote.ip, &quote(&seen, l4));
            let translation = lab.go_out(NET, &mut error).unwrap();
            assert_eq!(translation.kind, NatKind::IcmpError);
            assert_eq!(translation.after.0.ip, external.ip);
            assert_eq!(outer(&error), (external.ip, remote.ip));
            assert_eq!(quoted(&error), quote(&came, l4), "{reply:?} {l4}");
        }
    }
}

#[test]
fn errors_about_published_ports_go_both_ways() {
    for v6 in [false, true] {
        let (client, public, server, router) = if v6 {
            (
                "[2001:db8:7::7]:40000",
                "[2001:db8::1]:80",
                "[fd00::8]:8080",
                "2001:db8:fe::1",
            )
        } else {
            (
                "192.0.2.77:40000",
                "198.51.100.1:80",
                "10.0.0.8:8080",
                "192.0.2.254",
            )
        };
        let (client, public, server) = (at(client), at(public), at(server));
        for kind in [Kind::Tcp(SYN), Kind::Udp] {
            let mut lab = Lab::new();
            lab.publish(1, "*", 80..=80, server);
            let came = frame(kind, client, public);
            let mut seen = came.clone();
            lab.come_in(&mut seen).unwrap();
            let mut refusal = error(server.ip, client.ip, &quote(&seen, 8));
            lab.go_out(NET, &mut refusal).unwrap();
            assert_eq!(outer(&refusal), (public.ip, client.ip));
            assert_eq!(quoted(&refusal), quote(&came, 8));

            let answer = frame(kind, server, client);
            let mut seen = answer.clone();
            lab.go_out(NET, &mut seen).unwrap();
            let mut too_big = error(ip(router), public.ip, &quote(&seen, 500));
            let inbound = lab.come_in(&mut too_big).unwrap();
            assert_eq!((inbound.domain, inbound.inside), (NET, server.ip));
            assert_eq!(outer(&too_big), (ip(router), server.ip));
            assert_eq!(quoted(&too_big), quote(&answer, 500));
        }
    }
}

#[test]
fn errors_about_hairpinned_packets_come_back_the_same_way() {
    let (client, public, server) = (
        at("10.0.0.2:50001"),
        at("198.51.100.1:80"),
        at("10.0.0.8:8080"),
    );
    for kind in [Kind::Tcp(SYN), Kind::Udp] {
        let mut lab = Lab::new();
        lab.publish(1, "*", 80..=80, server);
        let sent = frame(kind, client, public);
        let mut seen = sent.clone();
        lab.around(NET, &mut seen).unwrap();
        let mut refusal = error(server.ip, public.ip, &quote(&seen, 20));
        let inbound = lab.around(NET, &mut refusal).unwrap();
        assert_eq!((inbound.domain, inbound.inside), (NET, client.ip));
        assert_eq!(inbound.translation.kind, NatKind::IcmpError);
        assert_eq!(outer(&refusal), (public.ip, client.ip));
        assert_eq!(quoted(&refusal), quote(&sent, 20));

        let answer = frame(kind, server, at("198.51.100.1:50001"));
        let mut seen = answer.clone();
        lab.around(NET, &mut seen).unwrap();
        let mut refusal = error(client.ip, public.ip, &quote(&seen, 20));
        let inbound = lab.around(NET, &mut refusal).unwrap();
        assert_eq!(inbound.inside, server.ip);
        assert_eq!(outer(&refusal), (public.ip, server.ip));
        assert_eq!(quoted(&refusal), quote(&answer, 20));
    }
}

#[test]
fn errors_that_match_nothing_are_dropped_or_left_to_the_host() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    let external = external_of(host.ip);
    let router = ip("192.0.2.254");
    let mut lab = Lab::new();
    lab.out(Kind::Udp, host, remote).unwrap();
    let ours = L4Addr::new(external, 50_001);
    let about = |kind, src, dst| quote(&frame(kind, src, dst), 8);
    let stranger = at("203.0.113.6:80");
    let cases = [
        (
            about(Kind::Udp, ours, stranger),
            DropReason::NatIcmpUnmatched,
        ),
        (
            about(Kind::Tcp(SYN), ours, remote),
            DropReason::NatNoMapping,
        ),
        (
            about(Kind::Udp, L4Addr::new(external, 50_002), remote),
            DropReason::NatNoMapping,
        ),
        (
            about(Kind::EchoReply, ours, at("203.0.113.5:0")),
            DropReason::NatNoMapping,
        ),
        (vec![0x45, 0], DropReason::NatIcmpMalformed),
        (
            about(Kind::Udp, ours, remote)[..27].to_vec(),
            DropReason::NatIcmpMalformed,
        ),
    ];
    for (packet, reason) in cases {
        let mut error = error(router, external, &packet);
        let before = error.clone();
        assert_eq!(lab.come_in(&mut error), Err(reason), "{packet:02x?}");
        assert_eq!(error.bytes(), before.bytes());
    }
    let mut elsewhere = error(router, ip("198.51.100.2"), &about(Kind::Udp, ours, remote));
    let result = lab.come_in(&mut elsewhere);
    assert_eq!(result, Err(DropReason::NatIcmpUnmatched), "forged");
    let mut unknown = error(host.ip, remote.ip, &about(Kind::Udp, stranger, host));
    let result = lab.go_out(NET, &mut unknown);
    assert_eq!(result, Err(DropReason::NatIcmpUnmatched));
}

#[test]
fn an_error_with_a_wrong_checksum_is_dropped() {
    for (request, _, host, remote, router) in flows() {
        let mut lab = Lab::new();
        let mut seen = frame(request, host, remote);
        lab.go_out(NET, &mut seen).unwrap();
        let mut error = error(router, external_of(host.ip), &quote(&seen, 20));
        let last = error.len() - 1;
        error.bytes_mut()[last] ^= 1;
        let result = lab.come_in(&mut error);
        assert_eq!(result, Err(DropReason::NatIcmpMalformed));
    }
}

#[test]
fn an_error_does_not_revive_an_expired_session() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    let mut lab = Lab::new();
    let mut seen = frame(Kind::Udp, host, remote);
    lab.go_out(NET, &mut seen).unwrap();
    let mut came = frame(Kind::Udp, remote, at("198.51.100.1:50001"));
    lab.come_in(&mut came).unwrap();
    lab.wait(301);
    let outside = error(ip("192.0.2.254"), external_of(host.ip), &quote(&seen, 8));
    let result = lab.come_in(&mut outside.clone());
    assert_eq!(result, Err(DropReason::NatIcmpUnmatched));
    let mut inside = error(host.ip, remote.ip, &quote(&came, 8));
    let result = lab.go_out(NET, &mut inside);
    assert_eq!(result, Err(DropReason::NatIcmpUnmatched));
}

#[test]
fn a_quote_that_is_cut_or_garbled_anywhere_never_panics() {
    let mut rng = fastrand::Rng::with_seed(11);
    for (request, _, host, remote, router) in flows() {
        let mut lab = Lab::new();
        let mut seen = frame(request, host, remote);
        lab.go_out(NET, &mut seen).unwrap();
        let whole = quote(&seen, 500);
        for cut in 0..whole.len() {
            for garble in [false, true] {
                let mut packet = whole[..cut].to_vec();
                if garble && cut > 0 {
                    packet[rng.usize(0..cut)] = rng.u8(..);
                }
                let mut error = error(router, external_of(host.ip), &packet);
                let came = lab.come_in(&mut error);
                assert!(came.is_err() || cut >= 28 || garble, "{cut}");
            }
        }
    }
}
