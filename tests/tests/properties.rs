//! Properties over random frames: the parser against etherparse, sums of all that the gateway
//! makes, the forwarding database against a model. `SEED` fixes where proptest starts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use dataplane_core::addr::{DomainId, MacAddr, PortId, VlanId};
use dataplane_core::fdb::{Fdb, FdbKey, FdbView, Learn, Limits, Place};
use dataplane_core::frame::Offload;
use dataplane_core::headers::{
    EXTENSION_HEADERS_MAX, HeaderError, Headers, Ip, L3, L4Kind, ethertype,
};
use dataplane_core::time::Instant;
use dataplane_core::verdict::Verdict;
use etherparse::{
    IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, NetSlice, SlicedPacket, TcpHeaderSlice, TransportSlice, UdpHeaderSlice,
};
use fastrand::Rng;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tests::wire::{self, Pool};
use tests::world::World;

/// Cases of each property.
const CASES: u32 = 4_000;
const AGEING: Duration = Duration::from_secs(300);

/// Runs a property on random seeds of frames, from `SEED` if it is set.
fn check(name: &str, cases: u32, property: impl Fn(Rng) -> Result<(), TestCaseError>) {
    let seed: u64 = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED is a number"),
        Err(_) => 1,
    };
    println!("SEED={seed} {name}: {cases} cases");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&any::<u64>(), |case| property(Rng::with_seed(case)));
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

fn pool() -> Pool {
    Pool::of_the_world()
}

#[test]
fn valid_frames_are_read_as_etherparse_reads_them() {
    check("valid frames", CASES, |mut rng| {
        let frame = pool().frame(&mut rng);
        let ours = Headers::parse(&frame).expect("a whole Ethernet header");
        let Ok(theirs) = SlicedPacket::from_ethernet(&frame) else {
            // etherparse is strict where we need not be, such as about the order of extensions.
            return agree_on_layers(&frame);
        };
        let vlan = theirs.vlan_ids().first().map(|id| id.value());
        prop_assert_eq!(ours.tag.map(|tag| tag.vlan().0), vlan);
        match theirs.net {
            Some(NetSlice::Ipv4(v4)) => {
                let (ip, header) = (*ours.ip().expect("IPv4"), v4.header());
                prop_assert_eq!(ip.src, IpAddr::V4(header.source_addr()));
                prop_assert_eq!(ip.dst, IpAddr::V4(header.destination_addr()));
                let sizes = (u32::from(header.total_len()), header.slice().len() as u16);
                prop_assert_eq!((ip.total_size, ip.header_size), sizes);
                prop_assert_eq!(
                    (ip.ttl, ip.dont_fragment),
                    (header.ttl(), header.dont_fragment())
                );
                prop_assert_eq!(ip.fragment.is_some(), header.is_fragmenting_payload());
                let offset = ip.fragment.map_or(0, |fragment| fragment.offset);
                prop_assert_eq!(offset, header.fragments_offset().value() * 8);
            }
            Some(NetSlice::Ipv6(v6)) => {
                let (ip, header) = (*ours.ip().expect("IPv6"), v6.header());
                prop_assert_eq!(ip.src, IpAddr::V6(header.source_addr()));
                prop_assert_eq!(ip.dst, IpAddr::V6(header.destination_addr()));
                prop_assert_eq!(ip.ttl, header.hop_limit());
            }
            Some(NetSlice::Arp(arp)) => {
                let Ok(L3::Arp(ours)) = ours.l3 else {
                    return Err(TestCaseError::fail("ARP was not seen"));
                };
                prop_assert_eq!(ours.operation, arp.operation().0);
                prop_assert_eq!(&ours.sender.octets()[..], arp.sender_protocol_addr());
                prop_assert_eq!(&ours.target.octets()[..], arp.target_protocol_addr());
            }
            None => prop_assert!(ours.ip().is_none()),
        }
        match (theirs.transport, ours.l4.map(|l4| l4.kind)) {
            (
                Some(TransportSlice::Tcp(tcp)),
                Ok(L4Kind::Tcp {
                    src,
                    dst,
                    flags,
                    header_size,
                }),
            ) => {
                prop_assert_eq!((src.0, dst.0), (tcp.source_port(), tcp.destination_port()));
                prop_assert_eq!(flags.0, tcp.slice()[13]);
                prop_assert_eq!(usize::from(header_size), tcp.header_slice().len());
            }
            (Some(TransportSlice::Udp(udp)), Ok(L4Kind::Udp { src, dst })) => {
                prop_assert_eq!((src.0, dst.0), (udp.source_port(), udp.destination_port()));
            }
            (Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)), Ok(kind)) => {
                let transport = matches!(kind, L4Kind::Tcp { .. } | L4Kind::Udp { .. });
                prop_assert!(!transport, "{:?}", kind);
            }
            (None | Some(TransportSlice::Igmp(_)), _) => {}
            // Too many extension headers for us; the layers below are compared all the same.
            (Some(_), Err(HeaderError::Unknown)) if ours.ethertype == ethertype::IPV6 => {}
            (theirs, ours) => prop_assert!(false, "{:?} against {:?}", theirs, ours),
        }
        agree_on_layers(&frame)
    });
}

#[test]
fn broken_frames_are_refused_where_etherparse_refuses_them() {
    check("garbled frames", 4 * CASES, |mut rng| {
        let mut frame = pool().frame(&mut rng);
        wire::garble(&mut rng, &mut frame);
        agree_on_layers(&frame)
    });
}

#[test]
fn frames_cut_at_every_offset_are_read_or_refused_alike() {
    check("cut frames", 100, |mut rng| {
        let frame = pool().frame(&mut rng);
        for size in 0..frame.len().min(300) {
            agree_on_layers(&frame[..size])?;
        }
        Ok(())
    });
}

/// Compares layer by layer, each with etherparse's own slice of it.
fn agree_on_layers(frame: &[u8]) -> Result<(), TestCaseError> {
    let Ok(ours) = Headers::parse(frame) else {
        prop_assert!(frame.len() < 14);
        return Ok(());
    };
    let rest = &frame[ours.l3_offset.min(frame.len())..];
    match ours.ethertype {
        ethertype::IPV4 => {
            let theirs = Ipv4HeaderSlice::from_slice(rest).ok().filter(|header| {
                let total = usize::from(header.total_len());
                total >= header.slice().len() && total <= rest.len()
            });
            prop_assert_eq!(ours.ip().is_some(), theirs.is_some(), "{:?}", ours);
            let (Some(ip), Some(header)) = (ours.ip(), theirs) else {
                return Ok(());
            };
            prop_assert_eq!(ip.src, IpAddr::V4(header.source_addr()));
            prop_assert_eq!(ip.dst, IpAddr::V4(header.destination_addr()));
            if header.fragments_offset().value() != 0 {
                prop_assert!(ours.l4.is_err());
                return Ok(());
            }
            let l4 = &rest[header.slice().len()..usize::from(header.total_len())];
            agree_on_transport(&ours, ip, l4, header.protocol().0)
        }
        ethertype::IPV6 => {
            let theirs = Ipv6HeaderSlice::from_slice(rest).ok();
            let theirs = theirs.filter(|h| 40 + usize::from(h.payload_length()) <= rest.len());
            prop_assert_eq!(ours.ip().is_some(), theirs.is_some(), "{:?}", ours);
            let (Some(ip), Some(header)) = (ours.ip(), theirs) else {
                return Ok(());
            };
            prop_assert_eq!(ip.src, IpAddr::V6(header.source_addr()));
            let payload = &rest[40..40 + usize::from(header.payload_length())];
            match transport_of(payload, header.next_header().0) {
                Chain::Transport(l4, protocol) => agree_on_transport(&ours, ip, l4, protocol),
                Chain::LaterFragment | Chain::Broken => {
                    prop_assert!(ours.l4.is_err(), "{:?}", ours);
                    Ok(())
                }
                Chain::Undecided => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

enum Chain<'a> {
    Transport(&'a [u8], u8),
    LaterFragment,
    Broken,
    /// etherparse refuses an authentication header that we step over.
    Undecided,
}

fn transport_of(mut rest: &[u8], mut protocol: u8) -> Chain<'_> {
    for headers in 0.. {
        let (size, next) = match protocol {
            0 | 43 | 60 | 135 => match Ipv6RawExtHeaderSlice::from_slice(rest) {
                Ok(header) => (header.slice().len(), header.next_header()),
                Err(_) => return Chain::Broken,
            },
            44 => match Ipv6FragmentHeaderSlice::from_slice(rest) {
                Ok(header) if header.fragment_offset().value() != 0 => return Chain::LaterFragment,
                Ok(header) => (header.slice().len(), header.next_header()),
                Err(_) => return Chain::Broken,
            },
            51 => match IpAuthHeaderSlice::from_slice(rest) {
                Ok(header) => (header.slice().len(), header.next_header()),
                Err(_) => return Chain::Undecided,
            },
            _ if headers > EXTENSION_HEADERS_MAX => return Chain::Broken,
            _ => return Chain::Transport(rest, protocol),
        };
        rest = &rest[size..];
        protocol = next.0;
    }
    Chain::Broken
}

fn agree_on_transport(
    ours: &Headers,
    ip: &Ip,
    l4: &[u8],
    protocol: u8,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(ip.protocol, protocol);
    let kind = ours.l4.map(|l4| l4.kind);
    match protocol {
        6 => match (TcpHeaderSlice::from_slice(l4), kind) {
            (Ok(tcp), Ok(L4Kind::Tcp { src, dst, .. })) => {
                prop_assert_eq!((src.0, dst.0), (tcp.source_port(), tcp.destination_port()));
            }
            (theirs, ours) => prop_assert!(theirs.is_err() && ours.is_err(), "{:?}", ours),
        },
        17 => match (UdpHeaderSlice::from_slice(l4), kind) {
            (Ok(udp), Ok(L4Kind::Udp { src, dst })) => {
                prop_assert_eq!((src.0, dst.0), (udp.source_port(), udp.destination_port()));
            }
            // A length that does not even hold the header is ours to refuse.
            (Ok(udp), ours) => prop_assert!(udp.length() < 8 && ours.is_err(), "{:?}", ours),
            (Err(_), ours) => prop_assert!(ours.is_err()),
        },
        _ => {}
    }
    Ok(())
}

#[test]
fn what_the_gateway_makes_of_valid_frames_is_valid() {
    let aimed = Pool::aimed();
    let made = std::cell::Cell::new([0u32; 3]);
    check("gateway output", CASES, |mut rng| {
        let mut world = World::new();
        for _ in 0..20 {
            let (port, pool) = &aimed[rng.usize(..aimed.len())];
            let frame = pool.frame(&mut rng);
            let sound = wire::check(&frame, &Offload::NONE).is_ok();
            let out = world.send(*port, &frame);
            let mut counts = made.get();
            match out.verdict {
                Verdict::Replied(_) => counts[0] += 1,
                Verdict::Routed(_) => counts[1] += 1,
                Verdict::Delivered(_) => counts[2] += 1,
                Verdict::Bridged(_) | Verdict::Flooded(..) | Verdict::Multicast(..) => {
                    prop_assert_eq!(out.frame.bytes(), &frame[..], "bridging changes nothing");
                }
                Verdict::Held(_) | Verdict::NotOurs | Verdict::Drop(_) => continue,
            }
            made.set(counts);
            let judged = wire::check(out.frame.bytes(), &out.frame.offload);
            prop_assert!(!sound || judged.is_ok(), "{:?}: {:?}", out.verdict, judged);
        }
        Ok(())
    });
    let [replied, routed, delivered] = made.get();
    println!("covered: {replied} replied, {routed} routed, {delivered} delivered");
    assert!(replied > 1_000 && routed > 1_000 && delivered > 100);
}

#[test]
fn workers_agree_with_a_model_of_the_table() {
    check("FDB", 300, |mut rng| {
        let fdb = Fdb::new(Limits::default(), rng.u64(..));
        let mut views: Vec<_> = (0..rng.usize(1..=4))
            .map(|_| FdbView::live(fdb.clone()))
            .collect();
        let mut model: BTreeMap<u8, (u16, u64)> = BTreeMap::new();
        let mut second = 1_000;
        for _ in 0..300 {
            let view = rng.usize(..views.len());
            let view = &mut views[view];
            view.begin_batch();
            let station = rng.u8(..12);
            let mac = MacAddr([2, 0, 0, 0, 0, station]);
            let key = FdbKey::new(DomainId(1), VlanId(0), mac);
            let now = Instant::from_secs(second);
            match rng.u8(..20) {
                0..8 => {
                    let port = rng.u16(..4);
                    let learned = view.learn(key, PortId(port), now, AGEING);
                    let known = model.insert(station, (port, second));
                    let expected = match known {
                        Some((at, _)) if at == port => vec![Learn::Known, Learn::New],
                        Some((at, _)) => vec![Learn::Moved { from: PortId(at) }, Learn::New],
                        None => vec![Learn::New],
                    };
                    prop_assert!(expected.contains(&learned), "{:?} of {:?}", learned, known);
                }
                8..16 => {
                    let found = view.lookup(key, now, AGEING).map(|place| match place {
                        Place::Port(port) => port.0,
                        Place::Local => panic!("no address is the switch's"),
                    });
                    let known = model.get(&station).copied();
                    match known {
                        // An entry is written at most every sixteenth of the ageing time.
                        Some((port, at)) if second - at <= 300 - 18 => {
                            prop_assert_eq!(found, Some(port));
                        }
                        Some((port, at)) if second - at <= 300 => {
                            prop_assert!(found.is_none_or(|found| found == port));
                        }
                        Some(_) | None => prop_assert_eq!(found, None),
                    }
                }
                16 => {
                    let port = rng.u16(..4);
                    fdb.flush_port(PortId(port));
                    model.retain(|_, (at, _)| *at != port);
                }
                17 => {
                    fdb.remove(DomainId(1), VlanId(0), mac);
                    model.remove(&station);
                }
                18 => {
                    fdb.sweep(now, |_| AGEING);
                }
                _ => second += rng.u64(..120),
            }
        }
        Ok(())
    });
}
