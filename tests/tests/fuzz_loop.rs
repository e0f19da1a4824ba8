//! Anything a sandbox might send, through `forward` on every kind of port and through the way out:
//! no panic, and the law of frames after each. `SEED` replays; `FUZZ_FRAMES` sets the length.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane_core::addr::{L4Addr, PortId};
use dataplane_core::checksum;
use dataplane_core::frame::{FRAME_SIZE_MAX, Frame, FrameBuf, Offload};
use dataplane_core::gso::{Segmenter, segment_count};
use dataplane_core::nat::{StaticRule, StaticRules, Target, Transport};
use dataplane_core::path::forward;
use dataplane_core::topology::NatMode;
use dataplane_core::trace::{Off, Recorder, Step};
use dataplane_core::verdict::{DropReason, Verdict};
use fastrand::Rng;
use tests::wire::{self, Pool};
use tests::world::{BLUE, RED, World, ip};

/// Frames of the loop unless `FUZZ_FRAMES` says otherwise.
const FRAMES: u64 = 600_000;
/// Endpoints, the host link, the uplink, and a port that does not exist.
const PORTS: [u16; 8] = [1, 2, 3, 4, 5, 8, 9, 777];

fn variable(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    }
}

/// The world with published ports, and what was covered in it.
struct Loop {
    world: World,
    segmenter: Segmenter,
    outcomes: BTreeMap<String, u64>,
    segments: u64,
}

impl Loop {
    fn new() -> Self {
        let mut world = World::new();
        let rule = |id, transport, ports, inside: &str| {
            let target = Target::new(0, RED, L4Addr::new(ip(inside), 80));
            StaticRule::new(id, transport, ports, target)
        };
        let rules = vec![
            rule(1, Transport::Tcp, 8_080..=8_081, "10.1.0.3"),
            rule(2, Transport::Udp, 443..=443, "10.1.0.4"),
            rule(3, Transport::Tcp, 8_080..=8_080, "fd00:1::3"),
        ];
        let rules = StaticRules::build(rules).expect("the rules are sound");
        world.edit(|t| {
            t.statics = rules;
            let blue = t.domains[BLUE.index()].as_mut().expect("the world has it");
            blue.modes.v4 = NatMode::Routed;
            t.nat.sessions_max = 2_000;
            t.nat.sessions_per_endpoint_max = 500;
        });
        Self {
            world,
            segmenter: Segmenter::new(),
            outcomes: BTreeMap::new(),
            segments: 0,
        }
    }

    /// One frame, in and out again.
    fn take(&mut self, port: u16, buf: &mut FrameBuf, traced: bool) -> Verdict {
        let world = &mut self.world;
        world.sw.fdb.begin_batch();
        let mut frame = Frame::new(PortId(port), buf);
        let verdict = if traced {
            let mut recorder = Recorder::new();
            let verdict = forward(&mut world.sw, &mut frame, world.now, &mut recorder);
            assert_eq!(recorder.steps().last(), Some(&Step::Verdict(verdict)));
            verdict
        } else {
            forward(&mut world.sw, &mut frame, world.now, &mut Off)
        };
        self.check_law();
        if let Verdict::Bridged(to) = verdict {
            assert_ne!(to, PortId(port), "a bridged frame went back");
        }
        self.count(verdict);
        if !matches!(verdict, Verdict::Drop(_)) {
            self.send(buf);
        }
        verdict
    }

    /// The way out: segments, or a completed checksum.
    fn send(&mut self, buf: &mut FrameBuf) {
        let announced = segment_count(buf);
        let mut emitted = 0;
        let largest = buf.len();
        let made = self.segmenter.segment(buf, |segment| {
            assert!(segment.len() <= largest && !segment.offload.needs_checksum());
            emitted += 1;
        });
        if let Ok(made) = made {
            assert_eq!((made, Ok(made)), (emitted, announced));
        } else {
            assert_eq!(emitted, 0, "a refused frame emits nothing");
        }
        self.segments += emitted as u64;
        let _ = checksum::complete(buf);
    }

    fn count(&mut self, verdict: Verdict) {
        let label = match verdict.kind() {
            Ok(kind) => kind.label(),
            Err(reason) => reason.label(),
        };
        match self.outcomes.get_mut(label) {
            Some(count) => *count += 1,
            None => {
                self.outcomes.insert(label.to_owned(), 1);
            }
        }
    }

    fn check_law(&self) {
        let counters = &self.world.sw.counters;
        let entered = counters.rx.get() + counters.released.get();
        assert_eq!(counters.judged(), entered, "law of frames");
    }

    /// Time passes, a worker ticks, held frames are given up.
    fn tick(&mut self) {
        self.world.wait(2);
        let (topology, now) = (Arc::clone(&self.world.sw.topology), self.world.now);
        let counters = Arc::clone(&self.world.sw.counters);
        self.world.sw.gateway.tick(&topology, now, 100);
        while let Some((_, _, verdict)) = self.world.sw.gateway.release(&topology, &counters, now) {
            self.count(verdict);
        }
        self.check_law();
    }
}

#[test]
fn garbled_frames_get_one_verdict_each() {
    let (seed, frames) = (variable("SEED", 1), variable("FUZZ_FRAMES", FRAMES));
    println!("SEED={seed} FUZZ_FRAMES={frames}");
    let mut rng = Rng::with_seed(seed);
    let pool = Pool::of_the_world();
    let aimed = Pool::aimed();
    let mut fuzz = Loop::new();
    let mut buf = FrameBuf::new();
    for index in 0..frames {
        let (port, mut bytes) = if rng.bool() {
            let (port, pool) = &aimed[rng.usize(..aimed.len())];
            (*port, pool.frame(&mut rng))
        } else {
            let port = PORTS[rng.usize(..PORTS.len())];
            (port, pool.frame(&mut rng))
        };
        if rng.bool() {
            wire::garble(&mut rng, &mut bytes);
        }
        bytes.truncate(FRAME_SIZE_MAX);
        buf.copy_from(&bytes, wire::any_offload(&mut rng));
        let _ = fuzz.take(port, &mut buf, index % 2 == 0);
        if index % 500 == 0 {
            fuzz.tick();
        }
    }
    let reasons = |reason: &&DropReason| fuzz.outcomes.contains_key(reason.label());
    let seen = DropReason::ALL.iter().filter(reasons).count();
    println!(
        "covered: {frames} frames, {} segments, {seen} of {} drop reasons: {:?}",
        fuzz.segments,
        DropReason::COUNT,
        fuzz.outcomes
    );
    if frames >= FRAMES {
        assert!(seen >= 30, "only {seen} drop reasons were reached");
        for kind in [
            "bridged",
            "flooded",
            "delivered",
            "routed",
            "replied",
            "held",
            "not_ours",
        ] {
            assert!(fuzz.outcomes.contains_key(kind), "no frame was {kind}");
        }
        assert!(fuzz.segments > frames / 4);
    }
}

#[test]
fn frames_cut_at_every_offset_get_one_verdict_each() {
    let seed = variable("SEED", 2);
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let pool = Pool::of_the_world();
    let mut fuzz = Loop::new();
    let mut buf = FrameBuf::new();
    let mut frames = 0;
    for _ in 0..60 {
        let whole = pool.frame(&mut rng);
        for size in 0..=whole.len().min(200) {
            for port in PORTS {
                let offload = wire::any_offload(&mut rng);
                buf.copy_from(&whole[..size], offload);
                let verdict = fuzz.take(port, &mut buf, false);
                let runt = verdict == Verdict::Drop(DropReason::Runt);
                assert_eq!(runt, size < 14 && port != 777, "{size} bytes");
                frames += 1;
            }
        }
        fuzz.tick();
    }
    println!("covered: {frames} cut frames: {:?}", fuzz.outcomes);
}

#[test]
fn giants_are_segmented_or_refused() {
    let mut fuzz = Loop::new();
    let mut buf = FrameBuf::new();
    let (from, to) = (wire::at("10.1.0.2:1000"), wire::at("198.51.100.9:80"));
    let link = wire::Link(tests::world::mac(1), tests::world::gateway_mac(RED));
    for size in [1_460, 1_461, 9_000, 65_495] {
        let bytes = wire::tcp(link, from, to, wire::flags::ACK, &vec![7; size]);
        for gso_size in [0, 1, 47, 48, 1_448, 65_535] {
            let offload = Offload {
                flags: Offload::NEEDS_CSUM,
                gso_type: 1,
                gso_size,
                csum_start: 34,
                csum_offset: 16,
                ..Offload::NONE
            };
            buf.copy_from(&bytes, offload);
            let _ = fuzz.take(1, &mut buf, true);
        }
    }
    println!("covered: {} segments: {:?}", fuzz.segments, fuzz.outcomes);
    assert!(fuzz.outcomes.contains_key("routed") && fuzz.outcomes.contains_key("replied"));
}
