//! RFC 5508: ICMP.

use dataplane_core::verdict::DropReason;
use tests::wire::{self, at};
use tests::world::{UPLINK, ip};

use crate::lab::{A, FAR, Kind, Lab, OUTSIDE_LINK, addresses, icmp, inside_link};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};
use Kind::{Answer, Ask, Udp};

const PING: &str = "10.1.0.2:50001";
const PINGED: &str = "198.51.100.9:0";
const HOST: &str = "10.1.0.2:50002";
const DNS: &str = "198.51.100.9:53";

/// A router's error, of a type and code, about what it quotes.
fn error_about(kind: (u8, u8), quoted: &[u8]) -> Vec<u8> {
    let (router, external) = ([198, 51, 100, 1].into(), [192, 0, 2, 1].into());
    wire::icmp_error(OUTSIDE_LINK, router, external, kind, quoted)
}

/// A datagram of A as it left, and the error of a router about it.
fn sent_and_error(lab: &mut Lab) -> (Vec<u8>, Vec<u8>) {
    let frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, b"x");
    let (_, sent) = lab.send(1, &frame).unwrap();
    let error = error_about((3, 3), &sent);
    (sent, error)
}

/// Makes the checksum of an untagged ICMPv4 frame right again.
fn repair_icmp(frame: &mut [u8]) {
    frame[36..38].fill(0);
    let sum = dataplane_core::checksum::Sum::ZERO.add_bytes(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.checksum().to_be_bytes());
}

rows!(
    rfc5508_req1_queries_and_their_answers_pass(
        "5508 REQ-1",
        "ICMP queries from inside and their answers pass",
        "echo, ICMP and ICMPv6; other queries are dropped with their reason",
        Meets,
        |lab| {
            let external = lab.out(Ask, PING, PINGED).unwrap();
            assert_eq!(lab.back(Answer, PINGED, external), Ok(at(PING)));
            let (inside, far) = ("[fd00:1::2]:50001", "[2001:db8:9::9]:0");
            let external = lab.out(Ask, inside, far).unwrap();
            assert_eq!(lab.back(Answer, far, external), Ok(at(inside)));
        }
    ),
    rfc5508_req1a_one_identifier_for_every_remote(
        "5508 REQ-1 a",
        "query mapping is independent of the external host",
        "one external identifier for all remotes; two hosts with one identifier get two",
        Meets,
        |lab| {
            let external = lab.out(Ask, PING, PINGED).unwrap();
            assert_eq!(lab.out(Ask, PING, "198.51.100.10:0"), Ok(external));
            let other = lab.out(Ask, "10.1.0.3:50001", PINGED).unwrap();
            assert_ne!(other, external);
        }
    ),
    rfc5508_req2_a_query_waits_for_its_answer_for_sixty_seconds(
        "5508 REQ-2",
        "a query session lives for at least 60 s",
        "60 s; `icmp_timeout_seconds`",
        MeetsAfter(61),
        |lab| {
            let external = lab.out(Ask, PING, PINGED).unwrap();
            lab.wait(60);
            assert!(lab.open(Answer, PINGED, external));
            lab.wait(61);
            assert!(!lab.open(Answer, PINGED, external));
        }
    ),
    rfc5508_req3_an_error_with_a_wrong_checksum_is_dropped(
        "5508 REQ-3",
        "an error whose ICMP checksum is wrong is dropped silently",
        "dropped as `nat_icmp_malformed`",
        Meets,
        |lab| {
            let (_, mut error) = sent_and_error(lab);
            error[36] ^= 0x55;
            assert_eq!(
                lab.send(UPLINK.0, &error),
                Err(DropReason::NatIcmpMalformed)
            );
        }
    ),
    rfc5508_req3_what_cannot_be_read_is_dropped(
        "5508 REQ-3",
        "an error that cannot be matched is dropped silently",
        "truncated quotes are `nat_icmp_malformed`, impossible TCP and UDP headers `l4_malformed`; \
         no session is touched",
        Meets,
        |lab| {
            let (sent, _) = sent_and_error(lab);
            let before = lab.world.tables.nat.state_hash();
            for quoted in [0, 10, 19, 20, 27] {
                let error = error_about((3, 3), &sent[..14 + quoted]);
                let told = lab.send(UPLINK.0, &error);
                assert_eq!(told, Err(DropReason::NatIcmpMalformed), "{quoted} bytes");
            }
            // Headers of TCP with four words, datagrams longer than their packet or than nothing.
            let mut tcp = wire::tcp(inside_link(at(HOST)), at(HOST), at(DNS), 2, b"");
            tcp[46] = 0x40;
            assert_eq!(lab.send(1, &tcp), Err(DropReason::L4Malformed));
            for size in [7u16, 10, 65_535] {
                let mut udp = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, b"x");
                udp[38..40].copy_from_slice(&size.to_be_bytes());
                assert_eq!(lab.send(1, &udp), Err(DropReason::L4Malformed), "{size}");
            }
            assert_eq!(lab.world.tables.nat.state_hash(), before);
        }
    ),
    rfc5508_req3b_options_of_the_quoted_header_are_passed_over(
        "5508 REQ-3 b",
        "IP options of the quoted packet are passed over to its transport header",
        "they are",
        Meets,
        |lab| {
            let frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, b"x");
            let (_, mut sent) = lab.send(1, &frame).unwrap();
            // Four bytes of "no operation" behind the header that the router saw.
            sent.splice(34..34, [1u8; 4]);
            sent[14] = 0x46;
            let total = (sent.len() - 14) as u16;
            sent[16..18].copy_from_slice(&total.to_be_bytes());
            wire::repair_ipv4(&mut sent);
            let mut error = error_about((11, 0), &sent);
            error.extend_from_slice(&sent[42..46]);
            let total = (error.len() - 14) as u16;
            error[16..18].copy_from_slice(&total.to_be_bytes());
            wire::repair_ipv4(&mut error);
            repair_icmp(&mut error);
            let (port, got) = lab.send(UPLINK.0, &error).unwrap();
            let (_, _, quoted) = icmp(&got);
            assert_eq!(port.0, 1);
            assert_eq!(quoted[12..16], [10, 1, 0, 2]);
            assert_eq!(quoted[24..26], 50_002u16.to_be_bytes());
        }
    ),
    rfc5508_req3c_the_quoted_transport_checksum_is_not_judged(
        "5508 REQ-3 c",
        "the transport checksum of the quoted packet is not validated",
        "it is not: most errors quote 8 bytes of it",
        Meets,
        |lab| {
            let (mut sent, _) = sent_and_error(lab);
            sent[40] ^= 0x0f;
            let error = error_about((3, 3), &sent);
            assert_eq!(lab.send(UPLINK.0, &error).unwrap().0.0, 1);
        }
    ),
    rfc5508_req4_an_error_from_outside_is_put_back_as_it_was_sent(
        "5508 REQ-4",
        "an error from outside: dropped without a mapping, else the quoted packet and the \
         destination become inside again, type and code stay",
        "so it is; the checksums of both IP headers, of the quoted datagram and of the error are \
         right",
        Meets,
        |lab| {
            let (_, error) = sent_and_error(lab);
            let (port, got) = lab.send(UPLINK.0, &error).unwrap();
            let (kind, code, quoted) = icmp(&got);
            assert_eq!((port.0, kind, code), (1, 3, 3));
            assert_eq!(addresses(&got), (ip("198.51.100.1"), ip(A)));
            assert_eq!(quoted[12..16], [10, 1, 0, 2]);
            assert_eq!(quoted[20..22], 50_002u16.to_be_bytes());
            let sum = dataplane_core::checksum::Sum::ZERO.add_bytes(&quoted[..20]);
            assert_eq!(sum.folded(), 0xffff, "the quoted header's checksum");
            let mut stray = error;
            stray[14 + 28 + 18..14 + 28 + 20].copy_from_slice(&[9, 9]);
            wire::repair_ipv4(&mut stray[28..]);
            repair_icmp(&mut stray);
            assert_eq!(
                lab.send(UPLINK.0, &stray),
                Err(DropReason::NatIcmpUnmatched)
            );
        }
    ),
    rfc5508_req5_an_error_from_inside_hides_who_sent_it(
        "5508 REQ-5",
        "an error from inside: dropped without a mapping, else the quoted packet becomes external \
         again and the source is the external address",
        "so it is",
        Meets,
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            let reply = wire::udp(OUTSIDE_LINK, at(DNS), external, 64, b"x");
            let (_, got) = lab.send(UPLINK.0, &reply).unwrap();
            let about = |got: &[u8]| {
                wire::icmp_error(
                    inside_link(at(HOST)),
                    [10, 1, 0, 2].into(),
                    [198, 51, 100, 9].into(),
                    (3, 3),
                    got,
                )
            };
            let (port, sent) = lab.send(1, &about(&got)).unwrap();
            assert_eq!((port, addresses(&sent)), (UPLINK, (external.ip(), ip(FAR))));
            let (kind, code, quoted) = icmp(&sent);
            assert_eq!((kind, code), (3, 3));
            assert_eq!(quoted[16..20], [192, 0, 2, 1]);
            let mut stray = got;
            stray[36..38].copy_from_slice(&[9, 9]);
            assert_eq!(
                lab.send(1, &about(&stray)),
                Err(DropReason::NatIcmpUnmatched)
            );
        }
    ),
    rfc5508_req6_an_error_neither_refreshes_nor_ends_a_session(
        "5508 REQ-6",
        "an error about a query neither refreshes nor ends its session",
        "errors change no session",
        MeetsAfter(61),
        |lab| {
            let frame = wire::echo(inside_link(at(PING)), ip(A), ip(FAR), true, 50_001);
            let (_, sent) = lab.send(1, &frame).unwrap();
            let external = crate::lab::ends(&sent).0;
            let error = error_about((11, 0), &sent);
            for _ in 0..3 {
                assert_eq!(lab.send(UPLINK.0, &error).unwrap().0.0, 1);
                lab.wait(20);
            }
            assert_eq!(lab.sessions(), 1);
            lab.wait(1);
            assert!(!lab.open(Answer, PINGED, external));
        }
    ),
    rfc5508_req7_errors_about_hairpinned_packets_come_back(
        "5508 REQ-7",
        "errors about hairpinned packets are hairpinned, the destination as in the quoted packet",
        "both sides are put back; a query to the host's own address is the host's to answer",
        Meets,
        |lab| {
            let b = "10.1.0.3:50003";
            let outside_a = lab.out(Udp, HOST, DNS).unwrap();
            let outside_b = lab.out(Udp, b, DNS).unwrap();
            let _ = lab.around(Udp, b, outside_a);
            let frame = wire::udp(inside_link(at(HOST)), at(HOST), outside_b, 64, b"x");
            let (port, got) = lab.send(1, &frame).unwrap();
            assert_eq!(port.0, 2);
            let error = wire::icmp_error(
                inside_link(at(b)),
                [10, 1, 0, 3].into(),
                [192, 0, 2, 1].into(),
                (3, 3),
                &got,
            );
            let (port, back) = lab.send(2, &error).unwrap();
            assert_eq!((port.0, addresses(&back).1), (1, ip(A)));
            let (_, _, quoted) = icmp(&back);
            assert_eq!(quoted[12..24], frame[14 + 12..14 + 24]);
        }
    ),
    rfc5508_req8_who_gets_no_session_is_told(
        "5508 REQ-8",
        "a new flow that can have no session is answered with \"administratively prohibited\"",
        "for want of a port, of room, or of quota; within the budget of 1,000 errors a second",
        Meets,
        |lab| {
            lab.set(|nat| {
                nat.sessions_max = 1;
                nat.sessions_per_endpoint_max = 1;
            });
            lab.out(Udp, HOST, DNS).unwrap();
            let full = lab.refused(Udp, "10.1.0.3:1", DNS);
            assert_eq!(full, DropReason::NatTableFull);
            lab.set(|nat| nat.sessions_max = 100);
            assert_eq!(lab.refused(Udp, "10.1.0.2:1", DNS), DropReason::NatQuota);
            let (v6, far) = ("[fd00:1::2]:50001", "[2001:db8:9::9]:53");
            lab.set(|nat| nat.sessions_max = 1);
            assert_eq!(lab.refused(Udp, v6, far), DropReason::NatTableFull);
            assert!(lab.out(Udp, HOST, DNS).is_ok());
        }
    ),
    rfc5508_req10_the_gateway_answers_and_reports(
        "5508 REQ-10",
        "destination unreachable, time exceeded and echo are supported; redirects and source \
         quench are not sent",
        "the gateway answers echo and sends the errors that it is the source of",
        Meets,
        |lab| {
            let gateway = "10.1.0.1";
            let ping = wire::echo(inside_link(at(PING)), ip(A), ip(gateway), true, 7);
            let (port, answer) = lab.send(1, &ping).unwrap();
            assert_eq!((port.0, icmp(&answer).0), (1, 0));
            let last_hop = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 1, b"x");
            let (port, told) = lab.send(1, &last_hop).unwrap();
            assert_eq!((port.0, icmp(&told).0, icmp(&told).1), (1, 11, 0));
            assert_eq!(addresses(&told), (ip(gateway), ip(A)));
        }
    ),
);
