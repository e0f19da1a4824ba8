//! RFC 5382: TCP.

use dataplane_core::addr::{L4Addr, Prefix};
use dataplane_core::nat::{StaticRule, Target, Transport};
use dataplane_core::verdict::DropReason;
use tests::wire::{self, at};
use tests::world::{RED, UPLINK, ip};

use crate::lab::{A, ACK, FIN, OUTSIDE_LINK, RST, SYN, SYN_ACK, addresses, inside_link, packet};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};

const HOST: &str = "10.1.0.2:50001";
const WEB: &str = "198.51.100.9:80";

/// RFC 5382 REQ-5: 2 hours and 4 minutes.
const ESTABLISHED: u64 = 7_440;
/// RFC 5382 REQ-5: 4 minutes.
const TRANSITORY: u64 = 240;

rows!(
    rfc5382_req1_one_port_for_every_remote(
        "5382 REQ-1",
        "endpoint-independent mapping",
        "one external port for all remotes of an inside address and port",
        Meets,
        |lab| {
            let external = lab.connect(HOST, WEB);
            for remote in ["198.51.100.9:443", "198.51.100.10:80", "192.0.2.7:80"] {
                assert_eq!(lab.connect(HOST, remote), external);
            }
        }
    ),
    rfc5382_req2_every_valid_sequence_passes(
        "5382 REQ-2",
        "all valid sequences of TCP packets, simultaneous open included",
        "handshake, simultaneous open, half-close, reset, re-open; a flow seen from its middle",
        Meets,
        |lab| {
            let external = lab.connect(HOST, WEB);
            lab.out(FIN, HOST, WEB).unwrap();
            for _ in 0..3 {
                assert_eq!(lab.back(ACK, WEB, external), Ok(at(HOST)), "half-closed");
            }
            lab.back(FIN, WEB, external).unwrap();
            lab.out(ACK, HOST, WEB).unwrap();
            assert_eq!(lab.connect(HOST, WEB), external, "re-opened");
            lab.back(RST, WEB, external).unwrap();
            assert_eq!(lab.connect(HOST, WEB), external, "after a reset");
            // Simultaneous open, twice: ours first, then theirs first.
            let other = "198.51.100.10:80";
            let external = lab.out(SYN, HOST, other).unwrap();
            for (inbound, outbound) in [(SYN, SYN_ACK), (SYN_ACK, ACK)] {
                assert_eq!(lab.back(inbound, other, external), Ok(at(HOST)));
                assert_eq!(lab.out(outbound, HOST, other), Ok(external));
            }
            let middle = "198.51.100.11:80";
            let external = lab.out(ACK, HOST, middle).unwrap();
            assert_eq!(lab.back(ACK, middle, external), Ok(at(HOST)));
        }
    ),
    rfc5382_req3_only_who_was_spoken_to_comes_in(
        "5382 REQ-3",
        "filtering: endpoint-independent for transparency, address-dependent for strictness",
        "address-and-port-dependent by default",
        Meets,
        |lab| {
            let external = lab.connect(HOST, WEB);
            for stranger in ["198.51.100.9:81", "198.51.100.10:80"] {
                let refused = lab.back(ACK, stranger, external);
                assert_eq!(refused, Err(DropReason::NatFiltered));
            }
        }
    ),
    rfc5382_req4_an_unsolicited_syn_is_met_with_silence_at_first(
        "5382 REQ-4",
        "an unsolicited SYN gets no answer for 6 s, and then \"port unreachable\"",
        "so it is, once for all repetitions; at most 64 wait on each worker, the rest ends in \
         silence",
        MeetsAfter(6),
        |lab| {
            let closed = at("192.0.2.1:60000");
            assert!(lab.held(SYN, WEB, closed));
            lab.wait(3);
            let repeated = lab.back(SYN, WEB, closed);
            assert_eq!(repeated, Err(DropReason::NatNoMapping));
            lab.wait(2);
            assert!(lab.later.is_empty(), "5 s have passed");
            lab.wait(1);
            let (port, told) = lab.later.pop().unwrap();
            let (kind, code, quoted) = crate::lab::icmp(&told);
            assert_eq!((port, kind, code), (UPLINK, 3, 3));
            let syn = packet(SYN, OUTSIDE_LINK, at(WEB), closed);
            assert_eq!(quoted, syn[14..]);
            assert_eq!(addresses(&told), (closed.ip(), at(WEB).ip()));
            lab.wait(10);
            assert!(lab.later.is_empty());
            // To an open port that filters it, too; but never more than so many.
            let external = lab.connect(HOST, WEB);
            let held = (0..100u16)
                .filter(|n| lab.held(SYN, &format!("198.51.100.10:{}", 1_000 + n), external))
                .count();
            assert_eq!(held, dataplane_core::route::UNSOLICITED_MAX);
            lab.wait(6);
            assert_eq!(lab.later.len(), held);
        }
    ),
    rfc5382_req4_a_syn_that_meets_one_from_inside_is_never_answered(
        "5382 REQ-4",
        "when a matching SYN goes out within 6 s, the unsolicited one is dropped silently",
        "so it is: a simultaneous open succeeds",
        MeetsAfter(6),
        |lab| {
            let external = at("192.0.2.1:50001");
            assert!(lab.held(SYN, WEB, external));
            lab.wait(1);
            assert_eq!(lab.out(SYN, HOST, WEB), Ok(external));
            assert_eq!(lab.back(SYN, WEB, external), Ok(at(HOST)), "repeated");
            lab.wait(6);
            assert!(lab.later.is_empty());
            assert_eq!(lab.world.dropped(DropReason::NatNoMapping), 1);
        }
    ),
    rfc5382_req4a_policy_goes_first(
        "5382 REQ-4 a",
        "no answer where it would violate a policy",
        "a published port is silent towards clients that it is not for",
        MeetsAfter(6),
        |lab| {
            lab.world.edit(|topology| {
                let target = Target::new(0, RED, L4Addr::new(ip(A), 80));
                let rule = StaticRule {
                    from: Some(Prefix::new(ip("203.0.113.0"), 24)),
                    ..StaticRule::new(1, Transport::Tcp, 8_080..=8_080, target)
                };
                topology.statics.add(rule).unwrap();
            });
            let refused = lab.back(SYN, WEB, at("192.0.2.1:8080"));
            assert_eq!(refused, Err(DropReason::NatFiltered));
            lab.wait(7);
            assert!(lab.later.is_empty());
        }
    ),
    rfc5382_req5_an_established_connection_lives_for_two_hours_and_four_minutes(
        "5382 REQ-5",
        "an established connection lives for at least 2 h 4 min without traffic",
        "2 h 4 min; `tcp_established_timeout_seconds`",
        MeetsAfter(ESTABLISHED + 1),
        |lab| {
            let external = lab.connect(HOST, WEB);
            lab.wait(ESTABLISHED);
            assert_eq!(lab.back(ACK, WEB, external), Ok(at(HOST)));
            lab.wait(ESTABLISHED + 1);
            let gone = lab.back(ACK, WEB, external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc5382_req5_an_opening_connection_lives_for_four_minutes(
        "5382 REQ-5",
        "a partially open connection lives for at least 4 min",
        "4 min; `tcp_opening_timeout_seconds`",
        MeetsAfter(TRANSITORY + 1),
        |lab| {
            let external = lab.out(SYN, HOST, WEB).unwrap();
            lab.wait(TRANSITORY);
            assert_eq!(lab.back(SYN_ACK, WEB, external), Ok(at(HOST)));
            lab.wait(TRANSITORY + 1);
            let gone = lab.back(SYN_ACK, WEB, external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc5382_req5_a_closing_connection_lives_for_four_minutes(
        "5382 REQ-5",
        "a closing connection lives for at least 4 min",
        "4 min; stray segments do not prolong it; `tcp_closing_timeout_seconds`",
        MeetsAfter(TRANSITORY + 1),
        |lab| {
            let external = lab.connect(HOST, WEB);
            lab.out(FIN, HOST, WEB).unwrap();
            lab.back(FIN, WEB, external).unwrap();
            lab.wait(TRANSITORY);
            assert_eq!(lab.back(ACK, WEB, external), Ok(at(HOST)));
            lab.wait(1);
            let gone = lab.back(ACK, WEB, external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc5382_req5_the_timers_can_be_set(
        "5382 REQ-5 a",
        "the timers may be configurable",
        "one for each state; below the RFC's least only with `force`",
        MeetsAfter(600),
        |lab| {
            lab.set(|nat| {
                nat.timeouts.tcp_opening = std::time::Duration::from_secs(500);
            });
            let external = lab.out(SYN, HOST, WEB).unwrap();
            lab.wait(500);
            assert_eq!(lab.back(SYN_ACK, WEB, external), Ok(at(HOST)));
            lab.wait(501);
            assert!(lab.back(SYN_ACK, WEB, external).is_err());
        }
    ),
    rfc5382_req8_hosts_inside_meet_by_their_external_ports(
        "5382 REQ-8",
        "hairpinning, with the external address and port as source",
        "both sides are translated",
        Meets,
        |lab| {
            let b = "10.1.0.3:50002";
            let (outside_a, outside_b) = (lab.connect(HOST, WEB), lab.connect(b, WEB));
            let filtered = lab.around(SYN, HOST, outside_b);
            assert_eq!(filtered, Err(DropReason::NatFiltered));
            assert_eq!(lab.around(SYN, b, outside_a), Ok((outside_b, at(HOST))));
            assert_eq!(lab.around(SYN_ACK, HOST, outside_b), Ok((outside_a, at(b))));
        }
    ),
    rfc5382_section7_the_segment_size_fits_the_way(
        "5382 section 7.2",
        "a NAT may help where path MTU discovery fails",
        "`clamp_mss` holds the segment size that either end offers to the MTU of the way; off by \
         default",
        Meets,
        |lab| {
            let offer = |size| {
                let mut header = etherparse::TcpHeader::new(50_001, 80, 1, 512);
                header.syn = true;
                let option = etherparse::TcpOptionElement::MaximumSegmentSize(size);
                header.set_options(&[option]).unwrap();
                let mut frame = Vec::new();
                let link = inside_link(at(HOST));
                etherparse::PacketBuilder::ethernet2(link.0.0, link.1.0)
                    .ipv4([10, 1, 0, 2], [198, 51, 100, 9], 64)
                    .tcp_header(header)
                    .write(&mut frame, b"")
                    .unwrap();
                frame
            };
            let offered = |frame: &[u8]| u16::from_be_bytes([frame[56], frame[57]]);
            lab.world.edit(|topology| topology.uplinks[0].mtu = 1_400);
            let (_, sent) = lab.send(1, &offer(1_460)).unwrap();
            assert_eq!(offered(&sent), 1_460);
            lab.set(|nat| nat.clamp_mss = true);
            for (size, fits) in [(1_460, 1_360), (1_360, 1_360), (536, 536)] {
                let (_, sent) = lab.send(1, &offer(size)).unwrap();
                crate::lab::ends(&sent);
                assert_eq!(offered(&sent), fits);
            }
        }
    ),
    rfc5382_req9_icmp_errors_reach_the_sender(
        "5382 REQ-9",
        "ICMP destination unreachable is translated",
        "every error is, with the packet that it quotes and all checksums",
        Meets,
        |lab| {
            let frame = packet(SYN, inside_link(at(HOST)), at(HOST), at(WEB));
            let (_, sent) = lab.send(1, &frame).unwrap();
            for kind in [(3, 1), (3, 3), (3, 4), (11, 0)] {
                let router = [198, 51, 100, 1].into();
                let error =
                    wire::icmp_error(OUTSIDE_LINK, router, [192, 0, 2, 1].into(), kind, &sent);
                let (port, got) = lab.send(UPLINK.0, &error).unwrap();
                assert_eq!((port.0, addresses(&got).1), (1, ip(A)));
                let (found, code, quoted) = crate::lab::icmp(&got);
                assert_eq!((found, code), kind);
                // The receiver knows the packet as it sent it, but for TTL and checksum.
                assert_eq!(quoted[12..28], frame[14 + 12..14 + 28]);
            }
        }
    ),
);
