//! Whatever stations send, no MAC of theirs leaves by a port that has one MAC, and every checksum holds.

#![allow(clippy::unwrap_used)]

mod mac_nat_world;
mod world;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::headers::Headers;
use dataplane_core::path::forward;
use dataplane_core::trace::Off;
use etherparse::PacketBuilder;
use fastrand::Rng;

use mac_nat_world::{LAN, NAT_MAC, OUTSIDE, arp, dhcp_discover, leave, message, nat_world, raw};
use world::mac;
use world::packets::{assert_valid, udp4, udp6};

const FRAMES: usize = 20_000;
/// Where `chaddr` stands in a DHCP message without tags: it stays.
const CHADDR_AT: usize = 14 + 20 + 8 + 28;

/// The seed, which `SEED` replaces.
fn seed() -> u64 {
    std::env::var("SEED").map_or(1, |text| text.parse().unwrap())
}

/// Frames of each kind that have left.
#[derive(Debug, Default)]
struct Coverage {
    arp: usize,
    nd: usize,
    dhcp: usize,
    ip: usize,
    other: usize,
    refused: usize,
    tagged: usize,
}

/// What was made, and whether `chaddr` is in it.
struct Made {
    bytes: Vec<u8>,
    dhcp: bool,
}

fn inside(rng: &mut Rng) -> MacAddr {
    mac(rng.u8(1..=3))
}

fn make(rng: &mut Rng, seen: &mut Coverage) -> Made {
    let src = inside(rng);
    let last = rng.u8(2..=250);
    let mut dhcp = false;
    let mut bytes = match rng.u8(0..6) {
        0 => {
            seen.arp += 1;
            let other = [MacAddr::ZERO, src, OUTSIDE, MacAddr([0xff; 6])];
            let target = *rng.choice(&other).unwrap();
            let sender = if rng.u8(0..4) == 0 { inside(rng) } else { src };
            let to = [10, 1, 0, rng.u8(..)];
            let mut frame = arp(rng.u16(1..=2), sender, [10, 1, 0, last], target, to);
            frame[..6].fill(0xff);
            frame[6..12].copy_from_slice(&src.0);
            // Whom it names besides is one whom its sender may have taken from itself alone.
            if target == src && sender != src {
                frame[32..38].fill(0);
            }
            frame
        }
        1 => {
            seen.nd += 1;
            neighbours(rng, src, last)
        }
        2 => {
            seen.dhcp += 1;
            dhcp = true;
            let relay = [0, 0, 0, rng.u8(0..2)];
            dhcp_discover(src, relay)
        }
        3 => {
            seen.ip += 1;
            let from = format!("10.1.0.{last}");
            udp4(src, OUTSIDE, &from, "10.1.0.251", 64, rng.usize(0..900))
        }
        4 => {
            seen.ip += 1;
            let from = format!("fd00:1::{last}");
            udp6(src, OUTSIDE, &from, "fd00:1::251", 64, rng.usize(0..900))
        }
        _ => {
            seen.other += 1;
            let dst = *rng.choice(&[OUTSIDE, MacAddr([0xff; 6])]).unwrap();
            raw(src, dst, 0x88b5)
        }
    };
    for tag in [[0x81, 0x00], [0x88, 0xa8]] {
        if rng.u8(0..4) == 0 && !dhcp {
            seen.tagged += 1;
            let tag = [tag[0], tag[1], rng.u8(..), rng.u8(..)];
            bytes.splice(12..12, tag);
        }
    }
    Made { bytes, dhcp }
}

/// A message of neighbour discovery with any options, behind a hop-by-hop header or not.
fn neighbours(rng: &mut Rng, src: MacAddr, last: u8) -> Vec<u8> {
    let icmp_type = rng.u8(133..=137);
    let fixed = [0, 8, 16, 16, 32][usize::from(icmp_type - 133)];
    let mut body = vec![0x20; fixed];
    for _ in 0..rng.usize(0..5) {
        let mac = inside(rng).0;
        match rng.u8(0..4) {
            kind @ 1..=2 => body.extend([[kind, 1].as_slice(), &mac].concat()),
            0 => body.extend([5, 1, 0, 0, 0, 0, 5, 220]),
            _ => body.extend([[14, 2].as_slice(), &[rng.u8(8..); 14]].concat()),
        }
    }
    let from = [format!("fe80::{last}"), "::".to_owned()];
    let from = rng.choice(&from).unwrap();
    if rng.bool() {
        return message(src, from, "ff02::1", icmp_type, &body);
    }
    let mut frame = message(src, from, "ff02::1", icmp_type, &body);
    let size = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&size.to_be_bytes());
    let next = std::mem::replace(&mut frame[20], 0);
    frame.splice(54..54, [next, 0, 5, 2, 0, 0, 1, 0]);
    frame
}

#[test]
fn no_mac_from_inside_leaves_and_checksums_hold() {
    let seed = seed();
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = nat_world();
    let mut seen = Coverage::default();
    for number in 0..FRAMES {
        let made = make(&mut rng, &mut seen);
        let Ok(left) = leave(&mut world, &made.bytes) else {
            seen.refused += 1;
            continue;
        };
        assert_eq!(left.len(), made.bytes.len());
        let headers = Headers::parse(left.bytes()).unwrap();
        assert_eq!(headers.src, NAT_MAC, "frame {number}");
        assert_eq!(headers.dst, Headers::parse(&made.bytes).unwrap().dst);
        assert_valid(left.bytes());
        for n in 1..=3 {
            let places = left.bytes().windows(6).enumerate();
            let found: Vec<usize> = places
                .filter(|(_, at)| *at == mac(n).0)
                .map(|(at, _)| at)
                .collect();
            let kept = made.dhcp && found == [CHADDR_AT];
            assert!(found.is_empty() || kept, "frame {number}: {n} at {found:?}");
        }
    }
    println!("{seen:?}");
    let kinds = [
        seen.arp,
        seen.nd,
        seen.dhcp,
        seen.ip,
        seen.other,
        seen.refused,
        seen.tagged,
    ];
    assert!(kinds.iter().all(|count| *count >= 1_000), "{seen:?}");
}

#[test]
fn frames_that_are_no_longer_whole_are_borne_both_ways() {
    let seed = seed();
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = nat_world();
    let mut seen = Coverage::default();
    for _ in 0..FRAMES {
        let mut bytes = make(&mut rng, &mut seen).bytes;
        for _ in 0..rng.usize(0..4) {
            let at = rng.usize(12..bytes.len().min(120));
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(14..=bytes.len()));
        if let Ok(left) = leave(&mut world, &bytes) {
            assert_eq!(left.bytes()[6..12], NAT_MAC.0);
            assert_eq!(left.len(), bytes.len());
        }
        bytes[..6].copy_from_slice(&NAT_MAC.0);
        bytes[6..12].copy_from_slice(&OUTSIDE.0);
        let mut buf = FrameBuf::from_bytes(&bytes);
        let mut frame = Frame::new(PortId(LAN), &mut buf);
        let _ = forward(&mut world.sw, &mut frame, world.now, &mut Off);
        world.wait(1);
    }
}

#[test]
fn an_answer_finds_whoever_has_asked() {
    let mut world = nat_world();
    let mut rng = Rng::with_seed(7);
    for _ in 0..1_000 {
        let (src, port) = (inside(&mut rng), rng.u16(1..));
        let from = [10, 1, 7, rng.u8(1..=250)];
        let to = [10, 1, 0, 251];
        let segment = |(src, dst): (MacAddr, MacAddr), (from, to), (sport, dport)| {
            let mut bytes = Vec::new();
            PacketBuilder::ethernet2(src.0, dst.0)
                .ipv4(from, to, 64)
                .tcp(sport, dport, 1, 100)
                .write(&mut bytes, &[7; 9])
                .unwrap();
            bytes
        };
        let ask = segment((src, OUTSIDE), (from, to), (port, 80));
        leave(&mut world, &ask).unwrap();
        let answer = segment((OUTSIDE, NAT_MAC), (to, from), (80, port));
        let out = world.send(LAN, &answer);
        assert_eq!(out.frame.bytes()[..6], src.0);
        assert_eq!(out.frame.bytes()[6..], answer[6..]);
    }
}
