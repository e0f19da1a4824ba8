//! RFC 7857: what the others were found to lack.

use std::collections::HashSet;

use dataplane_core::addr::L4Addr;
use dataplane_core::checksum::Sum;
use dataplane_core::frame::Offload;
use dataplane_core::gso::Segmenter;
use dataplane_core::nat::{Dependence, SessionState, StaticRule, StaticRules, Target, Transport};
use dataplane_core::topology::NatMode;
use dataplane_core::verdict::DropReason;
use tests::wire::{self, at, flags};
use tests::world::{RED, UPLINK, ip};

use crate::lab::{
    ACK, B, FIN, Kind, Lab, OUTSIDE, OUTSIDE_LINK, RST, SYN, SYN_ACK, addresses, ends, inside_link,
    packet, port_of, segment,
};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};
use Kind::{Ask, Udp};

const HOST: &str = "10.1.0.2:50001";
const SAME_PORT: &str = "10.1.0.3:50001";
const WEB: &str = "198.51.100.9:80";

rows!(
    rfc7857_section2_a_forged_syn_stays_transitory(
        "7857 section 2.1",
        "a connection is established only by its three-way handshake",
        "it is; what a server answers to a forged SYN stays in the short timer",
        MeetsAfter(241),
        |lab| {
            let external = lab.out(SYN, HOST, WEB).unwrap();
            lab.back(SYN_ACK, WEB, external).unwrap();
            lab.wait(241);
            let gone = lab.back(SYN_ACK, WEB, external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc7857_section2_2_a_reset_waits_four_minutes(
        "7857 section 2.2",
        "after a RST the session stays for 4 minutes; a further segment keeps it",
        "so it is: a forged RST costs nothing",
        MeetsAfter(7_000),
        |lab| {
            let external = lab.connect(HOST, WEB);
            lab.back(RST, WEB, external).unwrap();
            lab.wait(240);
            assert_eq!(lab.back(ACK, WEB, external), Ok(at(HOST)));
            lab.wait(7_000);
            assert_eq!(lab.back(ACK, WEB, external), Ok(at(HOST)));
            lab.back(RST, WEB, external).unwrap();
            lab.wait(241);
            let gone = lab.back(ACK, WEB, external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc7857_section2_2_a_reset_that_nobody_waits_for_is_not_believed(
        "7857 section 2.2",
        "a RST that is not valid for the connection need not be believed (RFC 5961 section 3.2)",
        "one whose number the inside cannot be waiting for is passed on, for its receiver to judge, \
         but does not shorten the session's life",
        MeetsAfter(241),
        |lab| {
            let external = lab.connect(HOST, WEB);
            // The host waits for 5000; what it has not acknowledged yet is at most two segments.
            lab.say(HOST, WEB, flags::ACK, (2_000, 5_000));
            for forged in [4_999, 5_000 + 131_072, 5_000u32.wrapping_add(1 << 31), 0] {
                let passed = lab.hear(WEB, external, flags::RST, (forged, 0));
                assert_eq!(passed, Ok(at(HOST)));
            }
            lab.wait(241);
            assert_eq!(
                lab.back(ACK, WEB, external),
                Ok(at(HOST)),
                "still established"
            );
            for real in [5_000, 5_000 + 131_071] {
                lab.say(HOST, WEB, flags::ACK, (2_000, 5_000));
                lab.hear(WEB, external, flags::RST, (real, 0)).unwrap();
                assert_eq!(lab.state(), SessionState::Closing);
            }
            // The answer to a SYN has no number that the host could have told before.
            lab.say(HOST, WEB, flags::SYN, (9_000, 0));
            lab.hear(WEB, external, flags::RST | flags::ACK, (0, 9_001))
                .unwrap();
            assert_eq!(lab.state(), SessionState::Closing);
        }
    ),
    rfc7857_section2_a_syn_reopens_a_closed_session(
        "7857 section 2",
        "a SYN on a closed session opens it again",
        "on the same external port",
        Meets,
        |lab| {
            let external = lab.connect(HOST, WEB);
            lab.out(FIN, HOST, WEB).unwrap();
            lab.back(FIN, WEB, external).unwrap();
            assert_eq!(lab.connect(HOST, WEB), external);
        }
    ),
    rfc7857_section5_mappings_are_of_one_protocol(
        "7857 section 5",
        "mappings SHOULD be of one protocol",
        "TCP, UDP and ICMP have mappings of their own, with the same number when it is free",
        Meets,
        |lab| {
            let udp = lab.out(Udp, HOST, WEB).unwrap();
            assert_eq!(
                lab.back(ACK, WEB, udp),
                Err(DropReason::NatNoMapping),
                "not of TCP"
            );
            assert_eq!(lab.out(SYN, HOST, WEB), Ok(udp));
            let ping = lab.out(Ask, HOST, "198.51.100.9:0").unwrap();
            assert_eq!(ping, udp);
            assert_eq!(lab.sessions(), 3);
        }
    ),
    rfc7857_section6_strangers_do_not_keep_a_mapping(
        "7857 section 6",
        "with endpoint-independent filtering, packets from outside SHOULD NOT keep a mapping",
        "strangers are let in by the mapping without a session of their own, and keep nothing",
        MeetsAfter(301),
        |lab| {
            let open = Dependence::EndpointIndependent;
            lab.behave(open, open);
            let external = lab.out(Udp, HOST, WEB).unwrap();
            for _ in 0..3 {
                lab.wait(100);
                let stranger = lab.back(Udp, "198.51.100.77:7", external);
                assert_eq!(stranger, Ok(at(HOST)));
            }
            assert_eq!(lab.sessions(), 1);
            lab.wait(1);
            let gone = lab.back(Udp, "198.51.100.77:7", external);
            assert_eq!(gone, Err(DropReason::NatNoMapping));
        }
    ),
    rfc7857_section9_a_port_that_is_not_kept_cannot_be_foretold(
        "7857 section 9",
        "ports are chosen at random (RFC 6056), unless they are kept",
        "the inside port when it is free, otherwise a keyed function of the inside",
        Meets,
        |lab| {
            assert_eq!(lab.out(Udp, HOST, WEB).unwrap().port(), 50_001);
            let ports: Vec<u16> = (3..60)
                .map(|host| {
                    let host = format!("10.1.0.{host}:50001");
                    lab.out(Udp, &host, WEB).unwrap().port()
                })
                .collect();
            let ascending = ports.windows(2).filter(|pair| pair[0] < pair[1]).count();
            assert!((10..=46).contains(&ascending), "{ports:?}");
        }
    ),
    rfc7857_section10_packets_that_may_be_fragmented_get_identifications_of_ours(
        "7857 section 10",
        "the identification of translated packets that may be fragmented is unique (RFC 6864 section \
         5.3.1)",
        "packets without DF whose source is translated get an identification of ours, segments of an \
         offloaded frame a row of them; those with DF keep the sender's, which nobody looks at",
        Meets,
        |lab| {
            let mut given = HashSet::new();
            for _ in 0..300 {
                for host in [HOST, SAME_PORT] {
                    let sent = identified(lab, host, WEB, false, 77);
                    assert!(given.insert(sent), "{sent} of {host} was given before");
                }
            }
            assert_eq!(identified(lab, HOST, WEB, true, 77), 77);
            let segments = segments(lab);
            assert_eq!(segments.len(), 6);
            for pair in segments.windows(2) {
                assert_eq!(pair[1], pair[0].wrapping_add(1));
            }
            assert!(segments.into_iter().all(|id| given.insert(id)));
            answers_and_errors_have_one_as_well(lab, &mut given);
        }
    ),
);

/// Sends a datagram with this identification, and returns the one that it leaves with.
fn identified(lab: &mut Lab, src: &str, dst: &str, dont_fragment: bool, id: u16) -> u16 {
    let mut frame = packet(Udp, inside_link(at(src)), at(src), at(dst));
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    wire::set_dont_fragment(&mut frame, dont_fragment);
    let (_, sent) = lab.send(port_of(at(src).ip()), &frame).unwrap();
    ends(&sent);
    identification(&sent)
}

fn identification(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[18], frame[19]])
}

/// The identifications of six segments of one frame that a kernel leaves to be cut.
fn segments(lab: &mut Lab) -> Vec<u16> {
    let numbers = (1_000, 2_000);
    let (src, dst) = (at(HOST), at(WEB));
    let mut frame = segment(
        inside_link(src),
        (src, dst),
        flags::ACK,
        numbers,
        &[7; 6_000],
    );
    wire::set_dont_fragment(&mut frame, false);
    let sum = Sum::pseudo_header(src.ip(), dst.ip(), 6, 6_020);
    frame[50..52].copy_from_slice(&sum.folded().to_be_bytes());
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1_000,
        csum_start: 34,
        csum_offset: 16,
    };
    let out = lab.world.send_offloaded(1, &frame, offload);
    let mut ids = Vec::new();
    let cut = Segmenter::new().segment(&out.frame, |segment| {
        ends(segment.bytes());
        ids.push(identification(segment.bytes()));
    });
    assert_eq!(cut, Ok(6));
    ids
}

/// What a server inside answers, what it says to a sibling by the host's address, and an error that it
/// sends: all by an address that is not its own.
fn answers_and_errors_have_one_as_well(lab: &mut Lab, given: &mut HashSet<u16>) {
    let mut rules = StaticRules::default();
    let target = Target::new(0, RED, L4Addr::new(ip(B), 80));
    rules
        .add(StaticRule::new(1, Transport::Udp, 8_080..=8_080, target))
        .unwrap();
    lab.world.edit(|topology| topology.statics = rules);
    let server = "10.1.0.3:80";
    assert_eq!(lab.back(Udp, WEB, at("192.0.2.1:8080")), Ok(at(server)));
    assert!(given.insert(identified(lab, server, WEB, false, 77)));
    assert!(given.insert(identified(lab, HOST, "192.0.2.1:8080", false, 77)));
    let asked = packet(Udp, OUTSIDE_LINK, at(WEB), at("192.0.2.1:8080"));
    let (_, got) = lab.send(UPLINK.0, &asked).unwrap();
    let (own, client) = ([10, 1, 0, 3].into(), [198, 51, 100, 9].into());
    let mut error = wire::icmp_error(inside_link(at(server)), own, client, (3, 1), &got);
    error[18..20].copy_from_slice(&77u16.to_be_bytes());
    wire::set_dont_fragment(&mut error, false);
    let (_, told) = lab.send(2, &error).unwrap();
    assert_eq!(addresses(&told).0, ip(OUTSIDE));
    assert!(given.insert(identification(&told)));
    // A routed network's own addresses are nobody else's.
    lab.world.edit(|topology| {
        let red = topology.domains[RED.index()].as_mut().unwrap();
        red.modes.v4 = NatMode::Routed;
    });
    assert_eq!(identified(lab, "10.1.0.2:50009", WEB, false, 77), 77);
}
