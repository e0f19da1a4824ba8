//! RFC 7857: what the others were found to lack.

use dataplane_core::nat::{Dependence, SessionState};
use dataplane_core::verdict::DropReason;
use tests::wire::{at, flags};

use crate::lab::{ACK, FIN, Kind, RST, SYN, SYN_ACK};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};
use Kind::{Ask, Udp};

const HOST: &str = "10.1.0.2:50001";
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
);
