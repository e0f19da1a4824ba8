//! Many users of one table: workers, observers, and one that fell over.

use super::*;
use crate::frame::Offload;
use etherparse::PacketBuilder;
use std::thread;

#[test]
fn an_overlay_does_what_would_happen_and_changes_nothing() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    let (client, public) = (at("192.0.2.77:40000"), at("198.51.100.1:80"));
    lab.publish(1, "*", 80..=80, at("10.0.0.8:8080"));
    lab.out(Kind::Tcp(SYN), host, remote).unwrap();
    let hash = lab.nat.state_hash();
    let live = std::mem::replace(&mut lab.view, NatView::overlay(Arc::clone(&lab.nat)));
    lab.wait(1);
    let external = lab.out(Kind::Tcp(SYN), host, remote).unwrap();
    assert!(lab.back(Kind::Tcp(SYN_ACK), remote, external).is_ok());
    let second = lab.out(Kind::Udp, at("10.0.0.3:50001"), remote).unwrap();
    let back = lab.back(Kind::Udp, remote, second);
    assert_eq!(
        back,
        Ok((NET, at("10.0.0.3:50001"))),
        "it sees its own effects"
    );
    assert!(lab.back(Kind::Tcp(SYN), client, public).is_ok());
    lab.topology.nat.sessions_max = 3;
    let full = lab.out(Kind::Udp, at("10.0.0.4:50002"), remote);
    assert_eq!(full, Err(DropReason::NatTableFull), "and its own counts");
    assert_eq!(lab.nat.state_hash(), hash);
    assert_eq!(lab.nat.session_count(), 1);
    assert_eq!(lab.opened(1), 0);
    // A first fragment is remembered by the overlay alone.
    let mut first = frame_with(Kind::Udp, host, remote, b"8 bytes.");
    first.bytes_mut()[20] = 0x20;
    lab.topology.nat.sessions_max = 4;
    lab.go_out(NET, &mut first.clone()).unwrap();
    assert_eq!(lab.nat.state_hash(), hash);
    lab.view = live;
    lab.go_out(NET, &mut first).unwrap();
    lab.nat
        .remove_sessions(|session| session.protocol == NatProtocol::Udp);
    assert_ne!(
        lab.nat.state_hash(),
        hash,
        "the hash does notice a fragment"
    );
    let unknown = lab.back(Kind::Udp, remote, second);
    assert_eq!(unknown, Err(DropReason::NatNoMapping));
    lab.out(Kind::Tcp(SYN), host, remote).unwrap();
    assert_ne!(lab.nat.state_hash(), hash, "the hash does notice a packet");
}

#[test]
fn workers_share_mappings_and_never_a_port() {
    let lab = Lab::new();
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let nat = Arc::clone(&lab.nat);
            thread::spawn(move || {
                let mut own = Lab::new();
                own.view = NatView::live(Arc::clone(&nat));
                own.nat = nat;
                let mut mapped = Vec::new();
                for index in 0..500u16 {
                    // All workers serve the same hosts; each has remotes of its own.
                    let host =
                        L4Addr::new(IpAddr::from([10, 0, 0, (index % 5) as u8]), 40_000 + index);
                    let remote = L4Addr::new(ip("203.0.113.5"), 80 + worker as u16);
                    let external = own.out(Kind::Udp, host, remote).unwrap();
                    assert_eq!(own.back(Kind::Udp, remote, external), Ok((NET, host)));
                    mapped.push((host, external));
                }
                mapped
            })
        })
        .collect();
    let mapped: Vec<_> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    for other in &mapped[1..] {
        assert_eq!(
            *other, mapped[0],
            "one mapping, whichever worker came first"
        );
    }
    assert_eq!(lab.nat.session_count(), 2_000);
    assert_eq!(lab.nat.gauges().mappings, 500);
    assert_eq!(lab.nat.gauges().sessions, 2_000);
}

#[test]
fn a_thread_that_dies_with_a_shard_takes_nobody_along() {
    let mut lab = Lab::new();
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    let external = lab.out(Kind::Udp, host, remote).unwrap();
    let nat = Arc::clone(&lab.nat);
    let died = thread::spawn(move || nat.remove_sessions(|_| panic!("while a shard is locked")));
    assert!(died.join().is_err());
    assert_eq!(lab.back(Kind::Udp, remote, external), Ok((NET, host)));
}

#[test]
fn the_same_seed_gives_the_same_ports() {
    let ports = |seed| -> Vec<L4Addr> {
        let mut lab = Lab::with_seed(seed);
        let remote = at("203.0.113.5:80");
        (1..200)
            .map(|port| {
                let host = L4Addr::new(ip("10.0.0.2"), port);
                lab.out(Kind::Udp, host, remote).unwrap()
            })
            .collect()
    };
    assert_eq!(ports(1), ports(1));
    assert_ne!(ports(1), ports(2));
}

#[test]
fn a_partial_checksum_stays_partial_and_right() {
    for (host, remote) in [
        (at("10.0.0.2:1234"), at("203.0.113.5:80")),
        (at("[fd00::2]:1234"), at("[2001:db8:5::5]:80")),
    ] {
        for (kind, number, offset) in [(Kind::Tcp(SYN), 6, 16), (Kind::Udp, 17, 6)] {
            let mut lab = Lab::new();
            let mut buf = frame(kind, host, remote);
            let headers = Headers::parse(buf.bytes()).unwrap();
            let start = headers.l4.unwrap().offset;
            let size = buf.len() - start;
            let sum = crate::checksum::Sum::pseudo_header(host.ip, remote.ip, number, size);
            let field = start + offset;
            buf.bytes_mut()[field..field + 2].copy_from_slice(&sum.folded().to_be_bytes());
            buf.offload = Offload {
                flags: Offload::NEEDS_CSUM,
                csum_start: start as u16,
                csum_offset: offset as u16,
                ..Offload::NONE
            };
            let offload = buf.offload;
            let external = lab.go_out(NET, &mut buf).unwrap().after.0;
            assert_eq!(buf.offload, offload, "left for the port to complete");
            crate::checksum::complete(&mut buf).unwrap();
            assert_eq!(ends(buf.bytes()), (external, remote));
        }
    }
}

#[test]
fn a_partial_echo_sums_a_pseudo_header_only_over_ipv6() {
    for (host, remote, start) in [
        ("10.0.0.2:1234", "203.0.113.5:0", 34),
        ("[fd00::2]:1234", "[2001:db8:5::5]:0", 54),
    ] {
        let (host, remote) = (at(host), at(remote));
        let mut buf = frame(Kind::EchoRequest, host, remote);
        let size = buf.len() - start;
        let partial = match host.ip {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => {
                crate::checksum::Sum::pseudo_header(host.ip, remote.ip, 58, size).folded()
            }
        };
        buf.bytes_mut()[start + 2..start + 4].copy_from_slice(&partial.to_be_bytes());
        buf.offload = Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: start as u16,
            csum_offset: 2,
            ..Offload::NONE
        };
        let external = Lab::new().go_out(NET, &mut buf).unwrap().after.0;
        crate::checksum::complete(&mut buf).unwrap();
        assert_eq!(ends(buf.bytes()), (external, remote));
    }
}

#[test]
fn a_datagram_without_checksum_gets_none() {
    let mut lab = Lab::new();
    let mut buf = frame(Kind::Udp, at("10.0.0.2:1234"), at("203.0.113.5:80"));
    buf.bytes_mut()[40..42].fill(0);
    lab.go_out(NET, &mut buf).unwrap();
    assert_eq!(buf.bytes()[40..42], [0, 0]);
}

#[test]
fn no_frame_makes_a_worker_panic() {
    let seed = std::env::var("SEED").map_or(3, |seed| seed.parse().expect("SEED is a number"));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut lab = Lab::with_seed(seed);
    lab.topology.nat.sessions_max = 500;
    lab.publish(1, "*", 1..=1_000, at("10.0.0.8:1"));
    let ends = [
        (at("10.0.0.2:50001"), at("203.0.113.5:80")),
        (at("203.0.113.5:80"), at("198.51.100.1:50001")),
        (at("10.0.0.2:50001"), at("198.51.100.1:80")),
        (at("[fd00::2]:50001"), at("[2001:db8:5::5]:80")),
    ];
    for _ in 0..30_000 {
        let (src, dst) = ends[rng.usize(0..ends.len())];
        let kind = [
            Kind::Tcp(TcpFlags(rng.u8(..))),
            Kind::Udp,
            Kind::EchoRequest,
            Kind::EchoReply,
        ][rng.usize(0..4)];
        let mut buf = frame(kind, src, dst);
        for _ in 0..rng.usize(0..6) {
            let at = rng.usize(12..buf.len());
            buf.bytes_mut()[at] = rng.u8(..);
        }
        buf.truncate(rng.usize(14..buf.len() + 20));
        buf.offload = Offload {
            flags: rng.u8(0..4),
            gso_type: rng.u8(0..6),
            hdr_len: rng.u16(..),
            gso_size: rng.u16(..),
            csum_start: rng.u16(0..100),
            csum_offset: rng.u16(0..30),
        };
        let size = buf.len();
        // Whatever comes of it: an address or a reason.
        let _outcome = match rng.u8(0..3) {
            0 => lab.go_out_any(&mut buf),
            1 => lab.come_in(&mut buf).map(|inbound| inbound.translation),
            _ => lab.around(NET, &mut buf).map(|inbound| inbound.translation),
        };
        assert_eq!(buf.len(), size, "SEED={seed}");
        lab.wait(rng.u64(0..2));
    }
    assert!(lab.nat.session_count() <= 500);
    lab.nat.remove_sessions(|_| true);
    assert_eq!(lab.nat.gauges(), Gauges::default(), "SEED={seed}");
}

#[test]
fn a_tagged_frame_is_translated_behind_its_tags() {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .single_vlan(etherparse::VlanId::try_new(7).unwrap())
        .ipv4([10, 0, 0, 2], [203, 0, 113, 5], 64)
        .udp(50_001, 80)
        .write(&mut bytes, b"tagged")
        .unwrap();
    let mut buf = FrameBuf::from_bytes(&bytes);
    let mut lab = Lab::new();
    lab.go_out(NET, &mut buf).unwrap();
    let wanted = (at("198.51.100.1:50001"), at("203.0.113.5:80"));
    assert_eq!(ends(buf.bytes()), wanted);
}

#[test]
fn ipv6_extension_headers_are_looked_through_unless_they_forbid_it() {
    let (host, remote) = (at("[fd00::2]:50001"), at("[2001:db8:5::5]:80"));
    let whole = frame(Kind::Udp, host, remote);
    // Next header, length, and for a routing header type and segments left.
    for (next, head, allowed) in [
        (0, [17, 0, 1, 4], true),
        (60, [17, 0, 1, 4], true),
        (43, [17, 0, 0, 0], true),
        (43, [17, 0, 0, 1], false),
        (51, [17, 0, 0, 0], false),
    ] {
        let (before, after) = whole.bytes().split_at(54);
        let extension = [&head[..], &[0; 4]].concat();
        let mut bytes = [before, &extension, after].concat();
        let size = (bytes.len() - 54) as u16;
        bytes[18..20].copy_from_slice(&size.to_be_bytes());
        bytes[20] = next;
        let mut buf = FrameBuf::from_bytes(&bytes);
        let result = Lab::new().go_out(NET, &mut buf);
        if allowed {
            assert_eq!(ends(buf.bytes()), (at("[2001:db8::1]:50001"), remote));
        } else {
            assert_eq!(result, Err(DropReason::NatUnsupported), "{next}");
            assert_eq!(buf.bytes(), bytes);
        }
    }
}
