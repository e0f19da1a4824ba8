//! Frames that no honest sandbox sends, by real devices: forwarded or dropped and counted, and
//! everybody else goes on. `SEED` replays a run.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use dataplane::Config;
use dataplane_core::addr::MacAddr;
use dataplane_core::frame::Offload;
use fastrand::Rng;
use tests::lab;
use tests::rig::{Backend, GATEWAY_MAC, Rig, Sandbox, transfer};
use tests::talk::Witness;
use tests::wire::{self, Link, at};

/// Garbled frames by each backend.
const FRAMES: usize = 4_000;
const GATEWAY: &str = "10.0.0.1";
/// No single turned bit makes it somebody else's.
const HOSTILE: &str = "10.0.0.200";
const MTU: u16 = 1_500;

/// A frame that was good before it was garbled.
fn seedling(rng: &mut Rng, from: &Sandbox, to: MacAddr) -> Vec<u8> {
    let link = Link(from.mac, to);
    let source = at(&format!("{HOSTILE}:{}", rng.u16(1..)));
    let targets = [
        "10.0.0.3:80",
        "10.0.0.1:53",
        "192.0.2.2:80",
        "192.0.2.1:8080",
        "203.0.113.1:9",
    ];
    let target = at(targets[rng.usize(..targets.len())]);
    let payload = [0x5a; 100];
    match rng.u8(..7) {
        0 => wire::udp(link, source, target, 64, &payload),
        1 => wire::tcp(link, source, target, rng.u8(..), &payload),
        2 => wire::echo(link, source.ip(), target.ip(), rng.bool(), rng.u16(..)),
        3 => wire::arp_request(
            from.mac,
            Ipv4Addr::new(10, 0, 0, 200),
            Ipv4Addr::new(10, 0, 0, 1),
        ),
        4 => {
            let whole = wire::udp(link, source, target, 64, &[0x5a; 1_400]);
            let mut fragments = wire::fragments(&whole, rng.u16(..), 512);
            fragments.swap_remove(rng.usize(..fragments.len()))
        }
        5 => {
            let frame = wire::udp(link, at("[fd00::200]:9"), at("[fd00::3]:9"), 64, &payload);
            wire::extension_chain(rng, frame)
        }
        _ => {
            let mut frame = wire::udp(link, source, target, 64, &payload);
            wire::tag(&mut frame, 0x8100, rng.u16(..));
            frame
        }
    }
}

#[test]
fn garbled_frames_by_real_devices_harm_nobody() {
    if !lab::require_root("e2e_garbled") {
        return;
    }
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    for backend in Backend::ALL {
        let config = Config {
            workers: 2,
            ..Config::default()
        };
        let mut rig = Rig::new("garbled", &config);
        let a = rig.sandbox("a", "10.0.0.2/24", backend, MTU);
        let b = rig.sandbox("b", "10.0.0.3/24", Backend::Tap, MTU);
        let hostile = rig.sandbox("hostile", &format!("{HOSTILE}/24"), backend, MTU);
        a.ns.add_default_route("eth0", GATEWAY);
        rig.add_gateway(&[GATEWAY], MTU);
        let outside = rig.add_uplink(MTU);
        let mut wire_end = Witness::new(&hostile.ns, "eth0");
        let before = rig.dataplane.stats().rx;
        let mut accepted = 0;
        for _ in 0..FRAMES {
            let to = [b.mac, GATEWAY_MAC, MacAddr::BROADCAST][rng.usize(..3)];
            let mut frame = seedling(&mut rng, &hostile, to);
            wire::garble(&mut rng, &mut frame);
            let offload = match rng.bool() {
                true => wire::any_offload(&mut rng),
                false => Offload::NONE,
            };
            accepted += u64::from(wire_end.try_send(&frame, offload));
            wire_end.look(|_| {});
        }
        // The kernel refuses what is shorter than a header, larger than the MTU or described
        // beyond belief; the rest arrives.
        assert!(accepted > FRAMES as u64 / 3, "{accepted} accepted");
        for (to, port) in [
            (&b.ns, (b.address, 80)),
            (&outside.ns, (outside.address, 80)),
        ] {
            let done = transfer(&a.ns, to, port.into(), port.into(), 2_000_000, None);
            println!("{backend:?}, after {accepted} garbled frames: {done}");
        }
        rig.check_laws();
        let stats = rig.dataplane.stats();
        assert!(
            stats.rx - before > accepted / 2,
            "they have reached the switch"
        );
        let drops = stats.drops.iter().filter(|(_, count)| *count > 0);
        let drops: Vec<_> = drops
            .map(|(reason, count)| (reason.label(), *count))
            .collect();
        println!("{backend:?}: {drops:?}");
    }
}
