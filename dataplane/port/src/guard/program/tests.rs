//! The programs against [`GuardSpec::classify`], run by a small interpreter of classic BPF.

use dataplane_core::addr::{L4Port, Prefix};

use super::*;
use crate::guard::{GuardPorts, Owner};

/// Answers that tell the three owners apart.
const TELLING: Answers = Answers {
    ours: 2,
    both: 1,
    host: 0,
};

#[test]
fn programs_agree_with_the_classifier_on_many_packets() {
    let specs = specs();
    let mut seen = [0u32; 3];
    let mut random = Random(0x5eed);
    for round in 0..60_000 {
        let spec = &specs[round % specs.len()];
        let frame = random.frame();
        let owner = spec.classify(&frame);
        let program = spec.program(TELLING).unwrap();
        assert_eq!(
            run_on(spec.framing, &program, &frame),
            owner as u32,
            "{spec:?}\n{frame:02x?}"
        );
        seen[owner as usize] += 1;
    }
    assert!(seen.iter().all(|&count| count > 1_000), "{seen:?}");
}

#[test]
fn guard_steals_exactly_what_the_filter_admits_and_the_host_does_not_need() {
    let mut random = Random(7);
    for spec in specs() {
        let guard = spec.guard_program().unwrap();
        let filter = spec.socket_filter();
        for _ in 0..5_000 {
            let frame = random.frame();
            let (stolen, admitted) = match spec.classify(&frame) {
                Owner::Host => (false, false),
                Owner::Both => (false, true),
                Owner::Ours => (true, true),
            };
            let run = |program| run_on(spec.framing, program, &frame);
            assert_eq!(run(&guard) == STOLEN, stolen, "{frame:02x?}");
            assert_eq!(run(&filter) == u32::MAX, admitted, "{frame:02x?}");
        }
    }
}

#[test]
fn a_frame_that_ends_early_is_the_hosts() {
    let mut random = Random(11);
    for spec in specs() {
        let program = spec.program(TELLING).unwrap();
        for _ in 0..300 {
            let frame = random.frame();
            // A port never makes less than a whole header.
            for size in spec.framing.lacking()..frame.len() {
                let cut = &frame[..size];
                let answer = run_on(spec.framing, &program, cut);
                assert_eq!(answer, spec.classify(cut) as u32, "{cut:02x?}");
            }
        }
    }
}

#[test]
fn ranges_end_where_they_say() {
    let spec = GuardSpec {
        ports: vec![ports(Transport::Udp, None, 49_152, 65_535)],
        ..GuardSpec::default()
    };
    for (port, owner) in [
        (49_151, Owner::Host),
        (49_152, Owner::Ours),
        (65_535, Owner::Ours),
        (0, Owner::Host),
    ] {
        assert_eq!(spec.classify(&udp(port)), owner, "{port}");
    }
}

#[test]
fn tagged_frames_and_those_for_other_stations_are_the_hosts() {
    let spec = GuardSpec {
        ports: vec![ports(Transport::Udp, None, 0, 65_535)],
        ..GuardSpec::default()
    };
    let guard = spec.guard_program().unwrap();
    assert_eq!(run(&guard, &udp(53)), STOLEN);
    assert_eq!(run_tagged(&guard, &udp(53)), NEXT_FILTER);
    let kind = libc::PACKET_OTHERHOST.into();
    let elsewhere = interpret(&guard, (Framing::Ethernet, &udp(53)), 0, kind);
    assert_eq!(elsewhere, Some(NEXT_FILTER));
}

#[test]
fn too_many_rules_are_no_guard_and_a_wide_filter() {
    let spec = GuardSpec {
        // Every other port, so that nothing can be merged.
        ports: (0..2_000)
            .map(|n| ports(Transport::Tcp, None, 2 * n, 2 * n))
            .collect(),
        ..GuardSpec::default()
    };
    assert!(spec.guard_program().is_none());
    let filter = spec.socket_filter();
    assert!(filter.len() < 256);
    assert_eq!(run(&filter, &udp(1)), u32::MAX);
    assert_eq!(run(&filter, &[0; 60]), 0, "no IP");
}

#[test]
fn guard_begins_with_its_signature() {
    for program in [
        steal_everything(),
        GuardSpec::default().guard_program().unwrap(),
    ] {
        assert_eq!(program[0].k, SIGNATURE);
    }
    assert_eq!(run(&steal_everything(), &[]), STOLEN);
}

fn ports(transport: Transport, destination: Option<&str>, first: u16, last: u16) -> GuardPorts {
    GuardPorts {
        transport,
        destination: destination.map(|text| text.parse().unwrap()),
        first: L4Port(first),
        last: L4Port(last),
    }
}

fn specs() -> Vec<GuardSpec> {
    let nat = |transport| ports(transport, None, 49_152, 65_535);
    let prefix = |text: &str, len| Prefix::new(text.parse().unwrap(), len);
    let own = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    let typical = GuardSpec {
        addresses: own.to_vec(),
        ports: vec![
            nat(Transport::Tcp),
            nat(Transport::Udp),
            ports(Transport::Tcp, None, 80, 80),
            ports(Transport::Tcp, Some("192.0.2.2"), 8_000, 8_999),
            ports(Transport::Udp, Some("2001:db8::2"), 53, 53),
        ],
        prefixes: vec![prefix("198.51.100.0", 24), prefix("2001:db8:1::", 47)],
        ..GuardSpec::default()
    };
    let specs = [
        GuardSpec::default(),
        GuardSpec {
            addresses: vec![],
            ..typical.clone()
        },
        GuardSpec {
            prefixes: vec![prefix("0.0.0.0", 0), prefix("2001:db8::2", 128)],
            ..typical.clone()
        },
        typical,
    ];
    let on = |framing| {
        let on_it = move |spec: &GuardSpec| GuardSpec {
            framing,
            ..spec.clone()
        };
        specs.iter().map(on_it)
    };
    on(Framing::Ethernet).chain(on(Framing::Ip)).collect()
}

fn udp(port: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([192, 0, 2, 9, 192, 0, 2, 1, 0, 9]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}

/// xorshift, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A packet out of values that the specs ask for and their neighbours.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 12];
        match self.below(20) {
            0 => frame.extend([0x08, 0x06]),
            1 => frame.extend([0x81, 0x00, 0, 5, 0x08, 0x00]),
            2..=10 => {
                frame.extend([0x08, 0x00]);
                self.v4(&mut frame);
            }
            _ => {
                frame.extend([0x86, 0xdd]);
                self.v6(&mut frame);
            }
        }
        frame.extend(self.l4());
        frame
    }

    fn v4(&mut self, frame: &mut Vec<u8>) {
        let ihl = self.of(&[5u8, 5, 5, 6, 15, 4]);
        let version = self.of(&[4u8, 4, 4, 4, 4, 4, 4, 5]);
        let fragment = self.of(&[0u16, 0, 0, 0x2000, 0x4000, 1, 0x2001, 0x1fff]);
        frame.extend([version << 4 | ihl, 0, 0, 60, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, self.of(&[6u8, 17, 1, 58, 47]), 0, 0, 203, 0, 113, 5]);
        let dst = self.of(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.77"]);
        frame.extend(dst.parse::<std::net::Ipv4Addr>().unwrap().octets());
        frame.extend(vec![0; usize::from(ihl).saturating_sub(5) * 4]);
    }

    fn v6(&mut self, frame: &mut Vec<u8>) {
        let version = self.of(&[0x60u8, 0x60, 0x60, 0x60, 0x60, 0x40]);
        let last = self.of(&[6u8, 17, 58, 1, 51]);
        let mut chain: Vec<u8> = (0..self.below(7))
            .map(|_| self.of(&[0u8, 43, 60, 44]))
            .collect();
        if self.below(2) == 0 {
            chain.clear();
        }
        chain.push(last);
        frame.extend([version, 0, 0, 0, 0, 60, chain[0], 64]);
        frame.extend([0; 16]);
        let dst = self.of(&[
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "2001:db8:1:2::7",
            "2001:db8:4::",
        ]);
        frame.extend(dst.parse::<std::net::Ipv6Addr>().unwrap().octets());
        for pair in chain.windows(2) {
            if pair[0] == 44 {
                let offset = self.of(&[0u16, 1, 8, 0xfff8]);
                frame.extend([pair[1], 0]);
                frame.extend(offset.to_be_bytes());
                frame.extend([0; 4]);
            } else {
                let units = self.below(3);
                frame.extend([pair[1], units as u8]);
                frame.extend(vec![0; units * 8 + 6]);
            }
        }
    }

    fn l4(&mut self) -> Vec<u8> {
        let first = self.of(&[0u8, 1, 2, 3, 4, 8, 11, 12, 128, 129, 135]);
        let port = self.of(&[
            53u16, 79, 80, 81, 7_999, 8_000, 8_500, 8_999, 9_000, 49_151, 49_152, 65_535,
        ]);
        let mut l4 = vec![first, 0];
        l4.extend(port.to_be_bytes());
        l4.extend([0; 16]);
        l4
    }
}

fn run(program: &[sock_filter], frame: &[u8]) -> u32 {
    run_on(Framing::Ethernet, program, frame)
}

/// The answer to the packet of which a port makes `frame`.
fn run_on(framing: Framing, program: &[sock_filter], frame: &[u8]) -> u32 {
    interpret(program, (framing, frame), 0, libc::PACKET_HOST.into()).unwrap_or(0)
}

fn run_tagged(program: &[sock_filter], frame: &[u8]) -> u32 {
    let kind = libc::PACKET_HOST.into();
    interpret(program, (Framing::Ethernet, frame), 1, kind).unwrap_or(0)
}

/// The answer of a program; `None` for a load beyond the frame.
fn interpret(
    program: &[sock_filter],
    (framing, frame): (Framing, &[u8]),
    tags: u32,
    kind: u32,
) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let protocol = || u32::from(u16::from_be_bytes([frame[12], frame[13]]));
    let load = |at: u32, size: usize| -> Option<u32> {
        let packet = frame.get(framing.lacking()..)?;
        let bytes = packet.get(at as usize..)?.get(..size)?;
        Some(
            bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u32::from(byte)),
        )
    };
    let mut at = 0;
    loop {
        let op = program[at];
        let k = op.k;
        at += 1;
        match u32::from(op.code) {
            LOAD_BYTE if k == ancillary(libc::SKF_AD_VLAN_TAG_PRESENT) => a = tags,
            LOAD_BYTE if k == ancillary(libc::SKF_AD_PKTTYPE) => a = kind,
            LOAD_HALF if k == ancillary(libc::SKF_AD_PROTOCOL) => a = protocol(),
            LOAD_BYTE => a = load(k, 1)?,
            LOAD_HALF => a = load(k, 2)?,
            LOAD_WORD => a = load(k, 4)?,
            LOAD_BYTE_X => a = load(x + k, 1)?,
            LOAD_HALF_X => a = load(x + k, 2)?,
            LOAD_IMMEDIATE => a = k,
            LOAD_SCRATCH => a = memory[k as usize],
            LOAD_X_IMMEDIATE => x = k,
            LOAD_X_HEADER_LENGTH => x = 4 * (load(k, 1)? & 0x0f),
            STORE => memory[k as usize] = a,
            ADD => a = a.wrapping_add(k),
            ADD_X => a = a.wrapping_add(x),
            SUBTRACT => a = a.wrapping_sub(k),
            AND => a &= k,
            SHIFT_LEFT => a <<= k,
            A_TO_X => x = a,
            X_TO_A => a = x,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += usize::from(if a == k { op.jt } else { op.jf }),
            JUMP_GREATER => at += usize::from(if a > k { op.jt } else { op.jf }),
            JUMP_GREATER_EQUAL => at += usize::from(if a >= k { op.jt } else { op.jf }),
            RETURN => return Some(k),
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}
