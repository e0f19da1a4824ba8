//! The same requirements over IPv6, as a masqueraded network meets them (NAT66).
//!
//! Fragments, packets that are too big and echoes have both families in their own rows.

use std::net::Ipv6Addr;

use dataplane_core::addr::L4Addr;
use dataplane_core::nat::{Dependence, StaticRule, Target, Transport};
use dataplane_core::verdict::DropReason;
use etherparse::PacketBuilder;
use tests::wire::{self, Link, at};
use tests::world::{RED, UPLINK, ip};

use crate::lab::{
    ACK, FIN, Kind, Lab, OUTSIDE_LINK, SYN, SYN_ACK, addresses, ends, icmp, inside_link,
};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};
use Kind::Udp;

pub const HOST: &str = "[fd00:1::2]:50001";
pub const SAME_PORT: &str = "[fd00:1::3]:50001";
pub const FAR: &str = "[2001:db8:9::9]:53";
pub const OTHER: &str = "[2001:db8:9::9]:54";
pub const FARTHER: &str = "[2001:db8:a::9]:53";
/// The router that reports errors.
pub const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// An ICMPv6 error of a type and code, with its third to sixth byte, about the packet of `about`.
pub fn error_about(
    (src, dst): (Ipv6Addr, Ipv6Addr),
    (kind, code): (u8, u8),
    info: [u8; 4],
    about: &[u8],
) -> Vec<u8> {
    error_by(OUTSIDE_LINK, (src, dst), (kind, code), info, about)
}

pub fn error_by(
    Link(from, to): Link,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    (kind, code): (u8, u8),
    info: [u8; 4],
    about: &[u8],
) -> Vec<u8> {
    let quoted = &about[14..about.len().min(14 + 1_232)];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv6(src.octets(), dst.octets(), 64)
        .icmpv6_raw(kind, code, info)
        .write(&mut frame, quoted)
        .unwrap();
    frame
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Publishes a port of the first host for both transports.
pub fn publish(lab: &mut Lab, external: u16, inside: u16) {
    lab.world.edit(|topology| {
        for (id, transport) in [(1, Transport::Tcp), (2, Transport::Udp)] {
            let target = Target::new(0, RED, L4Addr::new(ip("fd00:1::2"), inside));
            let rule = StaticRule::new(id, transport, external..=external, target);
            topology.statics.add(rule).unwrap();
        }
    });
}

rows!(
    ipv6_rfc4787_req1_one_port_for_every_remote(
        "4787 REQ-1 (IPv6)",
        "endpoint-independent mapping",
        "one external port for all remotes of an inside address and port",
        Meets,
        |lab| {
            let external = lab.out(Udp, HOST, FAR).unwrap();
            assert_eq!(external.ip(), ip("2001:db8::1"));
            for remote in [OTHER, FARTHER] {
                assert_eq!(lab.out(Udp, HOST, remote), Ok(external));
                assert_eq!(lab.back(Udp, remote, external), Ok(at(HOST)));
            }
            let sibling = lab.out(Udp, SAME_PORT, FAR).unwrap();
            assert_ne!(sibling, external);
            assert_eq!(sibling.port() % 64, 50_001 % 64, "parity, and more");
        }
    ),
    ipv6_rfc4787_req8_only_who_was_spoken_to_comes_in(
        "4787 REQ-8 (IPv6)",
        "filtering",
        "address-and-port-dependent by default, and as the network's `filtering` says",
        Meets,
        |lab| {
            let external = lab.out(Udp, HOST, FAR).unwrap();
            assert_eq!(lab.back(Udp, FAR, external), Ok(at(HOST)));
            for stranger in [OTHER, FARTHER] {
                let refused = lab.back(Udp, stranger, external);
                assert_eq!(refused, Err(DropReason::NatFiltered));
            }
            lab.behave(
                Dependence::EndpointIndependent,
                Dependence::AddressDependent,
            );
            let external = lab.out(Udp, "[fd00:1::2]:50002", FAR).unwrap();
            let inside = Ok(at("[fd00:1::2]:50002"));
            assert_eq!(lab.back(Udp, OTHER, external), inside);
            let refused = lab.back(Udp, FARTHER, external);
            assert_eq!(refused, Err(DropReason::NatFiltered));
        }
    ),
    ipv6_rfc4787_req9_hosts_meet_by_their_external_addresses(
        "4787 REQ-9 (IPv6)",
        "hairpinning, with the external address and port as source",
        "both sides are translated, dynamic and published ports alike",
        Meets,
        |lab| {
            let a = lab.out(Udp, HOST, FAR).unwrap();
            let b = lab.out(Udp, SAME_PORT, FAR).unwrap();
            let filtered = lab.around(Udp, SAME_PORT, a);
            assert_eq!(filtered, Err(DropReason::NatFiltered));
            assert_eq!(lab.around(Udp, HOST, b), Ok((a, at(SAME_PORT))));
            assert_eq!(lab.around(Udp, SAME_PORT, a), Ok((b, at(HOST))));
            publish(lab, 8_080, 80);
            let public = at("[2001:db8::1]:8080");
            let sibling = lab.around(Udp, SAME_PORT, public);
            assert_eq!(sibling, Ok((b, at("[fd00:1::2]:80"))));
        }
    ),
    ipv6_rfc5382_req2_every_sequence_of_a_connection(
        "5382 REQ-2 (IPv6)",
        "all valid sequences of TCP pass",
        "an open, a half-close, and an end; a published port keeps the client's address",
        Meets,
        |lab| {
            let external = lab.connect(HOST, FAR);
            lab.out(FIN, HOST, FAR).unwrap();
            assert_eq!(lab.back(ACK, FAR, external), Ok(at(HOST)));
            assert_eq!(lab.back(FIN, FAR, external), Ok(at(HOST)));
            publish(lab, 8_080, 80);
            let public = at("[2001:db8::1]:8080");
            let server = "[fd00:1::2]:80";
            assert_eq!(lab.back(SYN, FARTHER, public), Ok(at(server)));
            assert_eq!(lab.out(SYN_ACK, server, FARTHER), Ok(public));
            assert_eq!(lab.back(ACK, FARTHER, public), Ok(at(server)));
        }
    ),
    ipv6_rfc5382_req4_an_unsolicited_syn_meets_silence_first(
        "5382 REQ-4 (IPv6)",
        "no answer to an unsolicited SYN for at least 6 s",
        "port unreachable after 6 s",
        MeetsAfter(6),
        |lab| {
            let external = at("[2001:db8::1]:50001");
            assert!(lab.held(SYN, FAR, external));
            lab.wait(5);
            assert!(lab.later.is_empty());
            lab.wait(1);
            let (port, told) = lab.later.pop().unwrap();
            let (kind, code, _) = icmp(&told);
            assert_eq!((port, kind, code), (UPLINK, 1, 4));
        }
    ),
    ipv6_rfc5508_req4_errors_are_translated_and_end_nothing(
        "5508 REQ-4, REQ-5, 4787 REQ-12 (IPv6)",
        "errors are translated with the packet that they quote, and end no mapping",
        "unreachable, packet too big with its MTU, time exceeded, parameter problem; in and out",
        Meets,
        |lab| {
            let frame = wire::udp(inside_link(at(HOST)), at(HOST), at(FAR), 64, b"x");
            let (_, sent) = lab.send(1, &frame).unwrap();
            let external = ends(&sent).0;
            let mtu = 1_280u32.to_be_bytes();
            for (kind, info) in [
                ((1, 0), [0; 4]),
                ((1, 4), [0; 4]),
                ((2, 0), mtu),
                ((3, 0), [0; 4]),
                ((4, 1), [0; 4]),
            ] {
                let error = error_about((ROUTER, v6("2001:db8::1")), kind, info, &sent);
                let (port, got) = lab.send(UPLINK.0, &error).unwrap();
                assert_eq!((port.0, addresses(&got).1), (1, ip("fd00:1::2")));
                let (is_kind, is_code, quoted) = icmp(&got);
                assert_eq!((is_kind, is_code), kind);
                assert_eq!(got[58..62], info, "the MTU");
                let hop = 7;
                assert_eq!(quoted[..hop], frame[14..14 + hop]);
                assert_eq!(quoted[hop + 1..], frame[14 + hop + 1..], "as it was sent");
                assert_eq!(lab.back(Udp, FAR, external), Ok(at(HOST)));
            }
            // The host itself reports what came to it.
            let answer = wire::udp(OUTSIDE_LINK, at(FAR), external, 64, b"x");
            let (_, got) = lab.send(UPLINK.0, &answer).unwrap();
            let link = inside_link(at(HOST));
            let ends = (v6("fd00:1::2"), v6("2001:db8:9::9"));
            let error = error_by(link, ends, (1, 4), [0; 4], &got);
            let (port, told) = lab.send(1, &error).unwrap();
            assert_eq!((port, addresses(&told).0), (UPLINK, ip("2001:db8::1")));
            let quoted = icmp(&told).2;
            assert_eq!(quoted[24..40], answer[14 + 24..14 + 40]);
        }
    ),
    ipv6_rfc5508_req8_a_refused_flow_is_told(
        "5508 REQ-8 (IPv6)",
        "a flow without resources is told \"administratively prohibited\"",
        "type 1 code 1, and counted as `nat_quota`",
        Meets,
        |lab| {
            lab.set(|nat| nat.sessions_per_endpoint_max = 1);
            let external = lab.out(Udp, HOST, FAR).unwrap();
            assert_eq!(lab.refused(Udp, HOST, OTHER), DropReason::NatQuota);
            assert_eq!(lab.back(Udp, FAR, external), Ok(at(HOST)));
            assert!(lab.out(Udp, SAME_PORT, FAR).is_ok());
        }
    ),
);
