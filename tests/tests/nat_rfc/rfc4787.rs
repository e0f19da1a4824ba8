//! RFC 4787: UDP.

use dataplane_core::addr::L4Addr;
use dataplane_core::checksum::Sum;
use dataplane_core::frame::Offload;
use dataplane_core::gso::Segmenter;
use dataplane_core::nat::{Dependence, StaticRule, Target, Transport};
use dataplane_core::verdict::{DropReason, Verdict};
use tests::wire::{self, at};
use tests::world::{BLUE, HOST_LINK, RED, UPLINK, ip};

use crate::lab::{A, B, FAR, Kind, Lab, OUTSIDE, OUTSIDE_LINK, addresses, ends, icmp, inside_link};
use crate::pieces::{cut, join, place};
use crate::{Claim, rows};

use Claim::{Meets, MeetsAfter};
use Kind::Udp;

const HOST: &str = "10.1.0.2:50001";
const SAME_PORT: &str = "10.1.0.3:50001";
const DNS: &str = "198.51.100.9:53";
const REMOTE: &str = "198.51.100.9:4000";

rows!(
    rfc4787_req1_one_port_for_every_remote(
        "4787 REQ-1",
        "endpoint-independent mapping",
        "one external port for all remotes of an inside address and port",
        Meets,
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            for remote in [
                REMOTE,
                "198.51.100.9:5000",
                "198.51.100.10:53",
                "192.0.2.7:1",
            ] {
                assert_eq!(lab.out(Udp, HOST, remote), Ok(external));
                assert_eq!(lab.back(Udp, remote, external), Ok(at(HOST)));
            }
        }
    ),
    rfc4787_req1_a_port_for_each_remote_where_it_is_asked_for(
        "4787 REQ-1",
        "other mapping behaviours are not what an application expects",
        "`mapping` of a network: address-dependent or address-and-port-dependent, for experiments",
        Meets,
        |lab| {
            let (first, second) = ("198.51.100.9:53", "198.51.100.9:54");
            let third = "198.51.100.10:53";
            let mapped = |lab: &mut crate::lab::Lab, mapping| {
                lab.behave(mapping, Dependence::AddressAndPortDependent);
                [first, second, third].map(|remote| {
                    let external = lab.out(Udp, HOST, remote).unwrap();
                    assert_eq!(lab.back(Udp, remote, external), Ok(at(HOST)));
                    assert_eq!(lab.out(Udp, HOST, remote), Ok(external));
                    external.port()
                })
            };
            let [a, b, c] = mapped(lab, Dependence::AddressDependent);
            assert!(a == b && b != c, "{a} {b} {c}");
            lab.wait(301);
            let [a, b, c] = mapped(lab, Dependence::AddressAndPortDependent);
            assert!(a != b && b != c && a != c, "{a} {b} {c}");
        }
    ),
    rfc4787_req2_all_of_a_host_behind_one_address(
        "4787 REQ-2",
        "paired pooling: all sessions of an inside address have one external address",
        "`external_addresses`: each endpoint is behind one of them, on the uplink of its route,          also when it is hairpinned; without the setting there is one",
        Meets,
        |lab| {
            let pool = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(ip);
            lab.world.edit(|topology| {
                topology.uplinks[0].addresses = pool.to_vec();
                topology.local_addresses.extend(pool);
                topology.nat.external_addresses = pool.to_vec();
            });
            let mut used = std::collections::BTreeMap::new();
            for host in 2..60 {
                let external = lab.out(Udp, &format!("10.1.0.{host}:4000"), DNS).unwrap();
                *used.entry(external.ip()).or_insert(0) += 1;
                for (port, remote) in [(4_000, REMOTE), (4_001, DNS)] {
                    let again = lab
                        .out(Udp, &format!("10.1.0.{host}:{port}"), remote)
                        .unwrap();
                    assert_eq!(again.ip(), external.ip());
                }
            }
            assert_eq!(used.len(), 3);
            assert!(used.values().all(|count| *count >= 8), "{used:?}");
            let (a, b) = (
                lab.out(Udp, HOST, DNS).unwrap(),
                lab.out(Udp, SAME_PORT, DNS).unwrap(),
            );
            let _ = lab.around(Udp, SAME_PORT, a);
            assert_eq!(lab.around(Udp, HOST, b), Ok((a, at(SAME_PORT))));
        }
    ),
    rfc4787_req3_a_port_is_shared_only_when_none_is_free(
        "4787 REQ-3, 5382 REQ-7",
        "no port overloading",
        "a port of one mapping is another's only when none is left, and then only towards other          remotes: endpoint-dependent for the latecomer",
        Claim::Deviates("a setting, `share_ports`; off, the latecomer is refused"),
        |lab| {
            lab.set(|nat| nat.port_range = 50_000..=50_127);
            let first = lab.out(Udp, HOST, DNS).unwrap();
            let second = lab.out(Udp, SAME_PORT, DNS).unwrap();
            assert_ne!(first, second);
            let shared = lab.out(Udp, "10.1.0.4:50001", REMOTE).unwrap();
            assert!([first, second].contains(&shared));
            assert_eq!(lab.back(Udp, REMOTE, shared), Ok(at("10.1.0.4:50001")));
            assert_eq!(lab.back(Udp, DNS, first), Ok(at(HOST)));
            assert_eq!(lab.back(Udp, DNS, second), Ok(at(SAME_PORT)));
        }
    ),
    rfc4787_req3_no_port_is_shared_when_that_is_forbidden(
        "4787 REQ-3, 5382 REQ-7",
        "no port overloading",
        "with `share_ports = false` never: a flow that finds no port is refused, those that are          there stay",
        Meets,
        |lab| {
            lab.set(|nat| {
                nat.port_range = 50_000..=50_127;
                nat.share_ports = false;
            });
            let first = lab.out(Udp, HOST, DNS).unwrap();
            let second = lab.out(Udp, SAME_PORT, DNS).unwrap();
            let refused = lab.refused(Udp, "10.1.0.4:50001", REMOTE);
            assert_eq!(refused, DropReason::NatNoPort);
            assert_eq!(lab.out(Udp, HOST, REMOTE), Ok(first));
            assert_eq!(lab.back(Udp, DNS, second), Ok(at(SAME_PORT)));
            lab.wait(301);
            assert!(lab.out(Udp, "10.1.0.4:50001", REMOTE).is_ok());
        }
    ),
    rfc4787_req3a_system_ports_keep_their_class(
        "4787 REQ-3 a",
        "a port below 1024 SHOULD get one below 1024, any other one above",
        "so it is where the range has ports below 1024",
        Meets,
        |lab| {
            lab.set(|nat| nat.port_range = 1..=65_535);
            for port in [1u16, 123, 500, 1_023] {
                for host in [A, B] {
                    let external = lab.out(Udp, &format!("{host}:{port}"), DNS).unwrap();
                    assert!(external.port() < 1_024, "{port}: {external}");
                }
            }
            // Half of the range is below, so that one who draws from all of it is found out.
            lab.set(|nat| nat.port_range = 1..=2_047);
            for port in 1_024u16..1_056 {
                for host in [A, B] {
                    let external = lab.out(Udp, &format!("{host}:{port}"), DNS).unwrap();
                    assert!(external.port() >= 1_024, "{port}: {external}");
                }
            }
        }
    ),
    rfc4787_req3a_a_shared_host_keeps_its_system_ports(
        "4787 REQ-3 a",
        "a port below 1024 SHOULD get one below 1024",
        "a port of the range, for the range of a daemon excludes those below 1024",
        Claim::Deviates("the address is the host's, whose own services have these ports"),
        |lab| {
            let external = lab.out(Udp, "10.1.0.2:123", DNS).unwrap();
            assert!(external.port() >= 49_152);
        }
    ),
    rfc4787_req4_parity_is_kept(
        "4787 REQ-4",
        "an even port stays even, an odd one odd (7857 section 8: may be turned off)",
        "always: external and inside port agree modulo 64",
        Meets,
        |lab| {
            for port in [1_234u16, 1_235, 50_000, 50_001] {
                for host in [A, B] {
                    let external = lab.out(Udp, &format!("{host}:{port}"), DNS).unwrap();
                    assert_eq!(external.port() % 2, port % 2);
                }
            }
        }
    ),
    rfc4787_req5_a_mapping_lives_for_more_than_two_minutes(
        "4787 REQ-5",
        "a UDP mapping lives for at least 2 minutes without traffic",
        "5 minutes",
        MeetsAfter(120),
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            lab.wait(121);
            assert!(lab.open(Udp, DNS, external));
        }
    ),
    rfc4787_req5a_a_name_servers_answer_need_not_be_waited_for_as_long(
        "4787 REQ-5 a",
        "the timer may be shorter for well-known destination ports",
        "port 53, by `udp_dns_timeout_seconds`; off by default",
        MeetsAfter(121),
        |lab| {
            lab.set(|nat| nat.timeouts.udp_dns = Some(std::time::Duration::from_secs(20)));
            let external = lab.out(Udp, HOST, DNS).unwrap();
            lab.out(Udp, HOST, REMOTE).unwrap();
            lab.wait(20);
            assert!(lab.open(Udp, DNS, external));
            lab.wait(21);
            assert!(!lab.open(Udp, DNS, external));
            lab.wait(100);
            assert!(lab.open(Udp, REMOTE, external));
        }
    ),
    rfc4787_req5b_the_timer_can_be_set(
        "4787 REQ-5 b",
        "the timer may be configurable",
        "`udp_timeout_seconds`; below 2 minutes only with `force`",
        MeetsAfter(600),
        |lab| {
            lab.set(|nat| nat.timeouts.udp = std::time::Duration::from_secs(600));
            let external = lab.out(Udp, HOST, DNS).unwrap();
            lab.wait(600);
            assert!(lab.open(Udp, DNS, external));
            lab.wait(601);
            assert!(!lab.open(Udp, DNS, external));
        }
    ),
    rfc4787_req5c_five_minutes_by_default(
        "4787 REQ-5 c",
        "5 minutes or more are RECOMMENDED as the default",
        "5 minutes, and no session lives on in silence",
        MeetsAfter(301),
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            lab.wait(300);
            assert!(lab.open(Udp, DNS, external));
            lab.wait(301);
            assert!(!lab.open(Udp, DNS, external));
            assert_eq!(lab.sessions(), 0);
        }
    ),
    rfc4787_req6_outbound_traffic_refreshes(
        "4787 REQ-6",
        "packets from inside refresh the timer",
        "they do",
        MeetsAfter(1_000),
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            for _ in 0..5 {
                lab.wait(200);
                assert_eq!(lab.out(Udp, HOST, DNS), Ok(external));
            }
            lab.wait(200);
            assert!(lab.open(Udp, DNS, external));
        }
    ),
    rfc4787_req6a_inbound_traffic_refreshes(
        "4787 REQ-6 a",
        "packets from outside MAY refresh the timer",
        "packets of a session do",
        MeetsAfter(1_000),
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            for _ in 0..5 {
                lab.wait(200);
                assert!(lab.open(Udp, DNS, external));
            }
            assert_eq!(lab.out(Udp, HOST, REMOTE), Ok(external));
        }
    ),
    rfc4787_req6a_inbound_traffic_need_not_refresh(
        "4787 REQ-6 a",
        "packets from outside MAY refresh the timer",
        "with `udp_inbound_refresh = false` they do not",
        MeetsAfter(301),
        |lab| {
            lab.set(|nat| nat.udp_inbound_refresh = false);
            let external = lab.out(Udp, HOST, DNS).unwrap();
            lab.wait(200);
            assert!(lab.open(Udp, DNS, external));
            lab.wait(101);
            assert!(!lab.open(Udp, DNS, external));
        }
    ),
    rfc4787_req7_the_same_addresses_inside_and_outside(
        "4787 REQ-7",
        "inside and outside may use the same address space",
        "the network's own addresses are inside; what lies behind the uplink in the same prefix \
         is reached by no route and answered for, and the host's own address is the host's",
        Meets,
        |lab| {
            // Outside, a station has the very address of a host inside and a source in its prefix.
            let external = lab.out(Udp, HOST, DNS).unwrap();
            let imposter = wire::udp(OUTSIDE_LINK, at("10.1.0.3:53"), external, 64, b"x");
            assert_eq!(lab.send(UPLINK.0, &imposter), Err(DropReason::NatFiltered));
            let straight = wire::udp(OUTSIDE_LINK, at(DNS), at(HOST), 64, b"x");
            assert_eq!(
                lab.send(UPLINK.0, &straight),
                Err(DropReason::UplinkForeignDestination)
            );
            assert!(lab.open(Udp, DNS, external));
            // Two networks inside with one prefix keep apart.
            lab.world.edit(|topology| {
                let twin = topology.domains[BLUE.index()].as_mut().unwrap();
                twin.subnets = vec![dataplane_core::addr::Prefix::new(ip("10.1.0.0"), 16)];
            });
            let twin_link = wire::Link(tests::world::mac(4), tests::world::gateway_mac(BLUE));
            let frame = wire::udp(twin_link, at(HOST), at(DNS), 64, b"x");
            let (port, sent) = lab.send(4, &frame).unwrap();
            assert_eq!((port, addresses(&sent).0), (UPLINK, ip(OUTSIDE)));
            assert_ne!(crate::lab::ends(&sent).0, external);
        }
    ),
    rfc4787_req8_only_who_was_spoken_to_comes_in(
        "4787 REQ-8",
        "filtering: endpoint-independent for transparency, address-dependent for strictness",
        "address-and-port-dependent by default: only the remote address and port that were \
         spoken to",
        Meets,
        |lab| {
            let external = lab.out(Udp, HOST, DNS).unwrap();
            assert!(lab.open(Udp, DNS, external));
            for stranger in [REMOTE, "198.51.100.10:53"] {
                assert_eq!(
                    lab.back(Udp, stranger, external),
                    Err(DropReason::NatFiltered)
                );
            }
        }
    ),
    rfc4787_req8_endpoint_independent_filtering(
        "4787 REQ-8",
        "endpoint-independent filtering, where transparency matters most",
        "`filtering` of a network: whoever addresses an open external port comes in, of the same          protocol",
        Meets,
        |lab| {
            let open = Dependence::EndpointIndependent;
            lab.behave(open, open);
            let external = lab.out(Udp, HOST, DNS).unwrap();
            for stranger in [REMOTE, "198.51.100.10:53", "192.0.2.7:9"] {
                assert_eq!(lab.back(Udp, stranger, external), Ok(at(HOST)));
                assert_eq!(lab.out(Udp, HOST, stranger), Ok(external));
            }
            let tcp = lab.back(crate::lab::ACK, DNS, external);
            assert_eq!(tcp, Err(DropReason::NatNoMapping));
        }
    ),
    rfc4787_req8_address_dependent_filtering(
        "4787 REQ-8",
        "address-dependent filtering, where strictness matters most",
        "`filtering` of a network: any port of an address that was spoken to comes in, for as long          as one session with it lives",
        MeetsAfter(301),
        |lab| {
            lab.behave(
                Dependence::EndpointIndependent,
                Dependence::AddressDependent,
            );
            let external = lab.out(Udp, HOST, DNS).unwrap();
            assert_eq!(lab.back(Udp, REMOTE, external), Ok(at(HOST)));
            let stranger = lab.back(Udp, "198.51.100.10:53", external);
            assert_eq!(stranger, Err(DropReason::NatFiltered));
            for _ in 0..2 {
                lab.wait(200);
                lab.out(Udp, HOST, "192.0.2.7:9").unwrap();
            }
            let gone = lab.back(Udp, REMOTE, external);
            assert_eq!(gone, Err(DropReason::NatFiltered));
        }
    ),
    rfc4787_req9_hosts_inside_meet_by_their_external_ports(
        "4787 REQ-9",
        "hairpinning",
        "between mappings of one network or two, and to published ports",
        Meets,
        |lab| {
            let b = "10.1.0.3:50002";
            let outside_a = lab.out(Udp, HOST, DNS).unwrap();
            let outside_b = lab.out(Udp, b, DNS).unwrap();
            // Each has to have spoken to the other, as with any remote.
            let first = lab.around(Udp, HOST, outside_b);
            assert_eq!(first, Err(DropReason::NatFiltered));
            assert_eq!(lab.around(Udp, b, outside_a), Ok((outside_b, at(HOST))));
            assert_eq!(lab.around(Udp, HOST, outside_b), Ok((outside_a, at(b))));
        }
    ),
    rfc4787_req9a_the_hairpin_shows_the_external_source(
        "4787 REQ-9 a",
        "a hairpinned packet has the external address and port as its source",
        "it has, also when a host addresses its own published port",
        Meets,
        |lab| {
            lab.world.edit(|topology| {
                let target = Target::new(0, RED, L4Addr::new(ip(A), 80));
                let rule = StaticRule::new(1, Transport::Udp, 8_080..=8_080, target);
                topology.statics.add(rule).unwrap();
            });
            let public = at("192.0.2.1:8080");
            let own = lab.around(Udp, HOST, public).unwrap();
            assert_eq!(own, (at("192.0.2.1:50001"), at("10.1.0.2:80")));
            let sibling = lab.around(Udp, SAME_PORT, public).unwrap();
            assert_eq!(
                (sibling.0.ip(), sibling.1),
                (ip(OUTSIDE), at("10.1.0.2:80"))
            );
        }
    ),
    rfc4787_req10_payload_is_never_touched(
        "4787 REQ-10, 5382 REQ-6",
        "application gateways are off by default",
        "there are none",
        Meets,
        |lab| {
            let payload = b"PORT 10,1,0,2,195,81\r\nc=IN IP4 10.1.0.2\r\n";
            for port in [21, 53, 69, 554, 1_723, 5_060] {
                let remote = at(&format!("{FAR}:{port}"));
                let frame = wire::udp(inside_link(at(HOST)), at(HOST), remote, 64, payload);
                let (_, sent) = lab.send(1, &frame).unwrap();
                assert!(sent.ends_with(payload));
            }
            assert_eq!(lab.sessions(), 6);
        }
    ),
    rfc4787_req11_the_same_again(
        "4787 REQ-11",
        "behaviour does not change at any time, whatever the load",
        "the same packets get the same mappings; a conflict changes the port, never the rules",
        Meets,
        |lab| {
            let mut again = crate::lab::Lab::new();
            let mapped = |lab: &mut crate::lab::Lab| -> Vec<_> {
                (0..200u16)
                    .map(|n| {
                        let host = format!("10.1.{}.{}:{}", n % 7, 2 + n % 50, 1_000 + n % 9);
                        lab.out(Udp, &host, DNS).unwrap()
                    })
                    .collect()
            };
            let first = mapped(lab);
            assert_eq!(first, mapped(&mut again));
            assert_eq!(first, mapped(lab));
        }
    ),
    rfc4787_req12_no_icmp_error_ends_a_mapping(
        "4787 REQ-12, 5382 REQ-10",
        "no ICMP message ends a mapping",
        "errors are translated and change nothing",
        Meets,
        |lab| {
            let frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, b"x");
            let (_, sent) = lab.send(1, &frame).unwrap();
            let external = crate::lab::ends(&sent).0;
            for kind in [
                (3, 0),
                (3, 1),
                (3, 2),
                (3, 3),
                (3, 4),
                (3, 13),
                (11, 0),
                (12, 0),
            ] {
                let router = [198, 51, 100, 1].into();
                let error =
                    wire::icmp_error(OUTSIDE_LINK, router, [192, 0, 2, 1].into(), kind, &sent);
                let (port, got) = lab.send(UPLINK.0, &error).unwrap();
                assert_eq!((port.0, addresses(&got).1), (1, ip(A)));
                assert!(lab.open(Udp, DNS, external), "{kind:?}");
            }
            assert_eq!(lab.out(Udp, HOST, DNS), Ok(external));
        }
    ),
    rfc4787_req13_too_large_with_df_is_told_the_mtu(
        "4787 REQ-13",
        "DF set and too large: the sender is told \"fragmentation needed\"",
        "type 3 code 4 with the MTU; IPv6: packet too big",
        Meets,
        |lab| {
            lab.world.edit(|topology| topology.uplinks[0].mtu = 1_300);
            let mut frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, &[7; 1_400]);
            wire::set_dont_fragment(&mut frame, true);
            let (port, told) = lab.send(1, &frame).unwrap();
            let (kind, code, quoted) = icmp(&told);
            assert_eq!((port.0, kind, code), (1, 3, 4));
            assert_eq!(told[14 + 20 + 6..14 + 20 + 8], 1_300u16.to_be_bytes());
            assert_eq!(quoted[..28], frame[14..42]);
            let v6 = at("[fd00:1::2]:50001");
            let remote = at("[2001:db8:9::9]:53");
            let frame = wire::udp(inside_link(at(HOST)), v6, remote, 64, &[7; 1_400]);
            let (port, told) = lab.send(1, &frame).unwrap();
            let (kind, code, _) = icmp(&told);
            assert_eq!((port.0, kind, code), (1, 2, 0));
            assert_eq!(told[14 + 40 + 4..14 + 40 + 8], 1_300u32.to_be_bytes());
        }
    ),
    rfc4787_req13a_too_large_without_df_is_cut(
        "4787 REQ-13 a",
        "DF not set and too large: the packet is fragmented, the fragments sent in order",
        "so it is, IPv4 alone, each datagram of an offloaded frame by itself; TCP that a device is to \
         cut is cut into smaller segments",
        Meets,
        |lab| {
            lab.world.edit(|topology| topology.uplinks[0].mtu = 1_280);
            let mut frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, &[7; 1_400]);
            wire::set_dont_fragment(&mut frame, false);
            let out = lab.world.send(1, &frame);
            assert_eq!(out.verdict, Verdict::Routed(UPLINK));
            let mut pieces = Vec::new();
            let cut = Segmenter::new().segment(&out.frame, |piece| {
                assert!(piece.len() <= 14 + 1_280);
                pieces.push(piece.bytes().to_vec());
            });
            assert_eq!(cut, Ok(2));
            assert_eq!(place(&pieces[0]).0, 0);
            assert_eq!(ends(&join(&pieces)).1, at(DNS));
            several_datagrams_of_one_frame_are_cut(lab);
        }
    ),
    rfc4787_req14_fragments_in_any_order(
        "4787 REQ-14",
        "fragments are received in order and out of order",
        "those that overtake the first wait for it; IPv4 and IPv6, out and in",
        Meets,
        |lab| {
            let payload: Vec<u8> = (0..8_000u32).map(|n| (n / 7) as u8).collect();
            let flows = [(HOST, DNS), ("[fd00:1::2]:50001", "[2001:db8:9::9]:53")];
            for (id, (host, remote)) in (1..).zip(flows) {
                for seed in 0..40 {
                    let rng = &mut fastrand::Rng::with_seed(seed);
                    let whole =
                        wire::udp(inside_link(at(host)), at(host), at(remote), 64, &payload);
                    let mut pieces = cut(&whole, id, 1_200);
                    rng.shuffle(&mut pieces);
                    let sent = lab.send_pieces(1, &pieces);
                    assert!(sent.iter().all(|(port, _)| *port == UPLINK));
                    let sent: Vec<_> = sent.into_iter().map(|(_, frame)| frame).collect();
                    let (external, to) = crate::lab::ends(&join(&sent));
                    assert_eq!(to, at(remote));
                    let answer = wire::udp(OUTSIDE_LINK, at(remote), external, 64, &payload);
                    let mut pieces = cut(&answer, id, 1_200);
                    rng.shuffle(&mut pieces);
                    let got = lab.send_pieces(UPLINK.0, &pieces);
                    assert!(got.iter().all(|(port, _)| port.0 == 1), "seed {seed}");
                    let got: Vec<_> = got.into_iter().map(|(_, frame)| frame).collect();
                    assert_eq!(crate::lab::ends(&join(&got)), (at(remote), at(host)));
                }
            }
            assert_eq!(lab.sessions(), 2);
        }
    ),
    rfc4787_req14_two_hosts_with_one_identification(
        "4787 REQ-14, 7857 section 10",
        "the identification of translated packets is unique (RFC 6864 section 5.3.1)",
        "fragments whose source is translated get an identification of ours, which no other packet \
         has for the next 65,535",
        Meets,
        |lab| {
            for (a, b, remote) in [
                (HOST, SAME_PORT, DNS),
                (
                    "[fd00:1::2]:50001",
                    "[fd00:1::3]:50001",
                    "[2001:db8:9::9]:53",
                ),
            ] {
                let pieces = |host: &str| {
                    let whole =
                        wire::udp(inside_link(at(host)), at(host), at(remote), 64, &[7; 3_000]);
                    cut(&whole, 77, 1_200)
                };
                let (of_a, of_b) = (pieces(a), pieces(b));
                let mut sent = [Vec::new(), Vec::new()];
                for (one, other) in of_a.iter().zip(&of_b).rev() {
                    for (index, (port, piece)) in [(1, one), (2, other)].into_iter().enumerate() {
                        let left = lab.send_pieces(port, std::slice::from_ref(piece));
                        sent[index].extend(left.into_iter().map(|(_, frame)| frame));
                    }
                }
                let [of_a, of_b] = sent;
                let externals = [join(&of_a), join(&of_b)].map(|whole| crate::lab::ends(&whole).0);
                assert_ne!(externals[0], externals[1]);
                assert_eq!(lab.back(Udp, remote, externals[0]), Ok(at(a)));
                assert_eq!(lab.back(Udp, remote, externals[1]), Ok(at(b)));
                assert_ne!(place(&of_a[0]).2, place(&of_b[0]).2);
            }
        }
    ),
    rfc4787_req14a_a_flood_of_fragments_harms_nobody(
        "4787 REQ-14 a",
        "fragments are no means of denying service",
        "128 of a worker wait, 64 of one sender, for 2 s; a packet whose fragments overlap is \
         refused as `nat_fragment_overlap`",
        MeetsAfter(2),
        |lab| {
            let whole = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, &[7; 3_000]);
            let later = |id: u32| cut(&whole, id, 1_200).remove(1);
            let held = (0..1_000u32)
                .filter(|id| lab.send(1, &later(*id)) == Err(DropReason::NatFragment))
                .count();
            assert_eq!(held, 1_000 - dataplane_core::route::EARLY_PER_SENDER_MAX);
            // Another host's go through all the while, in any order.
            let b = "10.1.0.3:50002";
            let whole = wire::udp(inside_link(at(b)), at(b), at(DNS), 64, &[7; 3_000]);
            let mut pieces = cut(&whole, 5, 1_200);
            pieces.reverse();
            assert_eq!(lab.send_pieces(2, &pieces).len(), 3);
            lab.wait(2);
            let given_up = dataplane_core::route::EARLY_PER_SENDER_MAX;
            assert_eq!(lab.world.dropped(DropReason::NatFragment), 1_000);
            assert!(given_up > 0 && lab.later.is_empty());
            // One byte too many in the middle, and the rest is refused as well.
            let mut pieces = cut(&whole, 6, 1_200);
            let overlapping = {
                let mut shifted = pieces[1].clone();
                shifted[20..22].copy_from_slice(&(0x2000u16 | 149).to_be_bytes());
                wire::repair_ipv4(&mut shifted);
                shifted
            };
            lab.send(2, &pieces.remove(0)).unwrap();
            for refused in [overlapping, pieces.remove(0), pieces.remove(0)] {
                let told = lab.send(2, &refused);
                assert_eq!(told, Err(DropReason::NatFragmentOverlap));
            }
        }
    ),
    rfc4787_stray_packets_to_the_host_are_the_hosts(
        "4787 section 4",
        "what is not the NAT's is nobody's or the host's",
        "outside the port range the host answers, inside it nobody does",
        Meets,
        |lab| {
            let free = at("192.0.2.1:60000");
            assert_eq!(lab.back(Udp, DNS, free), Err(DropReason::NatNoMapping));
            let host = wire::udp(OUTSIDE_LINK, at(DNS), at("192.0.2.1:53"), 64, b"x");
            let out = lab.world.send(UPLINK.0, &host);
            assert_eq!(out.verdict, dataplane_core::verdict::Verdict::NotOurs);
            let inside = wire::udp(
                inside_link(at(HOST)),
                at(HOST),
                at("192.0.2.1:53"),
                64,
                b"x",
            );
            assert_eq!(lab.send(1, &inside).unwrap().0, HOST_LINK);
        }
    ),
);

/// Two datagrams of 1,400 bytes and one that fits, in one frame whose checksum is left to the device.
fn several_datagrams_of_one_frame_are_cut(lab: &mut Lab) {
    let mut frame = wire::udp(inside_link(at(HOST)), at(HOST), at(DNS), 64, &[7; 3_800]);
    wire::set_dont_fragment(&mut frame, false);
    let sum = Sum::pseudo_header(at(HOST).ip(), at(DNS).ip(), 17, 3_808);
    frame[40..42].copy_from_slice(&sum.folded().to_be_bytes());
    let offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 5,
        hdr_len: 42,
        gso_size: 1_400,
        csum_start: 34,
        csum_offset: 6,
    };
    let out = lab.world.send_offloaded(1, &frame, offload);
    assert_eq!(out.verdict, Verdict::Routed(UPLINK));
    let mut pieces = Vec::new();
    let cut = Segmenter::new().segment(&out.frame, |piece| {
        assert!(piece.len() <= 14 + 1_280);
        pieces.push(piece.bytes().to_vec());
    });
    assert_eq!(cut, Ok(5));
    for datagram in [&pieces[..2], &pieces[2..4], &pieces[4..]] {
        let (src, dst) = ends(&join(datagram));
        assert_eq!((src.ip().to_string().as_str(), dst), (OUTSIDE, at(DNS)));
    }
}
