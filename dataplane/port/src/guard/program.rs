//! Classic BPF programs for a [`GuardSpec`]: the guard's and the socket filter's.
//!
//! Both are one program with different answers. Classic instructions rather than eBPF, because
//! `cls_bpf` takes them as bytes over netlink (`TCA_BPF_OPS`, with direct action since Linux 4.4):
//! no bpf(2), so no CAP_BPF, and the guard works in a user namespace too. The kernel compiles them
//! all the same (net/core/filter.c `bpf_convert_filter`; Documentation/networking/filter.rst).
//!
//! Two things are not in a frame's bytes and are asked of the kernel: whether it had a VLAN tag, and
//! whether it is for another station. Either makes it the host's. A packet without a link header
//! ([`Framing::Ip`]) is asked for its protocol as well, and begins with IP for both programs: the
//! guard's is run from the link header on, which is empty.
//!
//! A load beyond the frame ends a program with zero: refused by the filter, `TC_ACT_OK` to the
//! guard, hence the host's in both.

use std::net::IpAddr;

use dataplane_core::headers::{ethertype, protocol};
use libc::sock_filter;

use super::spec::{EXTENSIONS_MAX, Family, GuardSpec, ICMP_SHARED, ICMPV6_SHARED, Transport};
use crate::Framing;

/// Instructions of a guard: a program of this many still fits the kernel's answer to a dump,
/// which is at most 32 KiB and how the guard is found again. `BPF_MAXINSNS` is 4,096.
pub const INSTRUCTIONS_MAX: usize = 3_900;

/// The operand of a guard's first instruction, by which it is recognised after a crash: "cwgd".
pub(super) const SIGNATURE: u32 = 0x6377_6764;

/// The EtherType of EAPOL (IEEE 802.1X-2020 clause 11.1.4).
const EAPOL: u32 = 0x888e;
/// `TC_ACT_STOLEN` of linux/pkt_cls.h: the packet goes no further.
const STOLEN: u32 = 4;
/// `TC_ACT_UNSPEC`: the next filter decides, so the host's own filters keep their say.
const NEXT_FILTER: u32 = u32::MAX;

/// The answers of a program.
#[derive(Clone, Copy)]
struct Answers {
    ours: u32,
    both: u32,
    host: u32,
}

impl GuardSpec {
    /// Steals what is ours from the host's stack; `None` when it would exceed
    /// [`INSTRUCTIONS_MAX`].
    pub fn guard_program(&self) -> Option<Vec<sock_filter>> {
        self.program(Answers {
            ours: STOLEN,
            both: NEXT_FILTER,
            host: NEXT_FILTER,
        })
    }

    /// Admits to a packet socket what may be ours. Where that would exceed
    /// [`INSTRUCTIONS_MAX`], all untagged IP is admitted: the data path sorts out the rest.
    pub fn socket_filter(&self) -> Vec<sock_filter> {
        let answers = Answers {
            ours: u32::MAX,
            both: u32::MAX,
            host: 0,
        };
        self.program(answers).unwrap_or_else(|| {
            let everything = Self {
                framing: self.framing,
                prefixes: ALL_ADDRESSES.to_vec(),
                ..Self::default()
            };
            everything
                .program(answers)
                .expect("two rules are a short program")
        })
    }

    fn program(&self, answers: Answers) -> Option<Vec<sock_filter>> {
        let mut code = Assembler::default();
        let (ours, both, host) = (code.label(), code.label(), code.label());
        let exits = Exits { ours, both, host };
        let (v4, v6) = (code.label(), code.label());
        code.statement(LOAD_IMMEDIATE, SIGNATURE);
        // The kernel keeps the outer tag out of the bytes; the EtherType would be the inner one.
        code.statement(LOAD_BYTE, ancillary(libc::SKF_AD_VLAN_TAG_PRESENT));
        code.jump_unless(JUMP_EQUAL, 0, host);
        // Flooded by a switch, or seen because somebody made the card promiscuous.
        code.statement(LOAD_BYTE, ancillary(libc::SKF_AD_PKTTYPE));
        code.jump_if(JUMP_EQUAL, libc::PACKET_OTHERHOST.into(), host);
        match self.framing {
            Framing::Ethernet => code.statement(LOAD_HALF, 12),
            Framing::Ip => code.statement(LOAD_HALF, ancillary(libc::SKF_AD_PROTOCOL)),
        }
        code.jump_if(JUMP_EQUAL, ethertype::IPV4.into(), v4);
        code.jump_if(JUMP_EQUAL, ethertype::IPV6.into(), v6);
        code.jump(host);
        code.bind(v4);
        self.emit_v4(&mut code, exits);
        code.bind(v6);
        self.emit_v6(&mut code, exits);
        for (label, answer) in [
            (ours, answers.ours),
            (both, answers.both),
            (host, answers.host),
        ] {
            code.bind(label);
            code.statement(RETURN, answer);
        }
        code.finish()
    }

    /// Where IP begins in what the programs see.
    const fn l3(&self) -> u32 {
        self.framing.header_size() as u32
    }

    fn emit_v4(&self, code: &mut Assembler, exits: Exits) {
        let l3 = self.l3();
        let later = code.label();
        code.statement(LOAD_BYTE, l3);
        code.statement(AND, 0xf0);
        code.jump_unless(JUMP_EQUAL, 0x40, exits.host);
        code.statement(LOAD_BYTE, l3);
        code.statement(AND, 0x0f);
        code.jump_unless(JUMP_GREATER_EQUAL, 5, exits.host);
        self.emit_destination(code, Family::V4, exits);

        code.statement(LOAD_HALF, l3 + 6);
        code.statement(AND, 0x1fff);
        code.jump_unless(JUMP_EQUAL, 0, later);
        code.statement(LOAD_BYTE, l3 + 9);
        code.statement(STORE, SCRATCH_NEXT);
        // X = 4 * IHL, hence short of L4 by what stands before L3.
        code.statement(LOAD_X_HEADER_LENGTH, l3);
        self.emit_l4(code, Family::V4, l3, exits);

        code.bind(later);
        code.statement(LOAD_BYTE, l3 + 9);
        emit_later_fragment(code, protocol::ICMP, exits);
    }

    fn emit_v6(&self, code: &mut Assembler, exits: Exits) {
        let l3 = self.l3();
        let later = code.label();
        let l4 = code.label();
        code.statement(LOAD_BYTE, l3);
        code.statement(AND, 0xf0);
        code.jump_unless(JUMP_EQUAL, 0x60, exits.host);
        self.emit_destination(code, Family::V6, exits);

        code.statement(LOAD_BYTE, l3 + 6);
        code.statement(STORE, SCRATCH_NEXT);
        code.statement(LOAD_X_IMMEDIATE, l3 + 40);
        for _ in 0..EXTENSIONS_MAX {
            let (options, fragment, next) = (code.label(), code.label(), code.label());
            code.statement(LOAD_SCRATCH, SCRATCH_NEXT);
            for kind in [
                protocol::HOP_BY_HOP,
                protocol::ROUTING,
                protocol::DESTINATION_OPTIONS,
            ] {
                code.jump_if(JUMP_EQUAL, kind.into(), options);
            }
            code.jump_if(JUMP_EQUAL, protocol::FRAGMENT.into(), fragment);
            code.jump(l4);

            code.bind(options);
            code.statement(LOAD_BYTE_X, 0);
            code.statement(STORE, SCRATCH_NEXT);
            code.statement(LOAD_BYTE_X, 1);
            code.statement(ADD, 1);
            code.statement(SHIFT_LEFT, 3);
            code.statement(ADD_X, 0);
            code.statement(A_TO_X, 0);
            code.jump(next);

            code.bind(fragment);
            code.statement(LOAD_HALF_X, 2);
            code.statement(AND, 0xfff8);
            code.jump_unless(JUMP_EQUAL, 0, later);
            code.statement(LOAD_BYTE_X, 0);
            code.statement(STORE, SCRATCH_NEXT);
            code.statement(X_TO_A, 0);
            code.statement(ADD, 8);
            code.statement(A_TO_X, 0);
            code.bind(next);
        }
        code.bind(l4);
        self.emit_l4(code, Family::V6, 0, exits);

        code.bind(later);
        code.statement(LOAD_BYTE_X, 0);
        emit_later_fragment(code, protocol::ICMPV6, exits);
    }

    /// Goes on only with a destination that is known but no prefix of ours, and notes whether it
    /// is one of [`GuardSpec::addresses`].
    fn emit_destination(&self, code: &mut Assembler, family: Family, exits: Exits) {
        // Even where no rule looks at it: a frame that ends before it is the host's.
        let last_word = match family {
            Family::V4 => 16,
            Family::V6 => 36,
        };
        let l3 = self.l3();
        code.statement(LOAD_WORD, l3 + last_word);
        for prefix in &self.prefixes {
            if Family::of(prefix.address) == family {
                let differs = code.label();
                emit_prefix(code, l3, (prefix.address, prefix.len), differs);
                code.jump(exits.ours);
                code.bind(differs);
            }
        }
        code.statement(LOAD_IMMEDIATE, 1);
        code.statement(STORE, SCRATCH_SHARED);
        if self.addresses.is_empty() {
            return;
        }
        let known = code.label();
        for &address in &self.addresses {
            emit_address(code, l3, (family, address), known);
        }
        code.statement(LOAD_IMMEDIATE, 0);
        code.statement(STORE, SCRATCH_SHARED);
        let mut destinations: Vec<_> = self.ports.iter().filter_map(|p| p.destination).collect();
        destinations.sort_unstable();
        destinations.dedup();
        for address in destinations {
            emit_address(code, l3, (family, address), known);
        }
        code.jump(exits.host);
        code.bind(known);
    }

    /// L4 stands `base` bytes behind X, its protocol in the scratch memory.
    fn emit_l4(&self, code: &mut Assembler, family: Family, base: u32, exits: Exits) {
        let (icmp, shared): (u8, &[u8]) = match family {
            Family::V4 => (protocol::ICMP, &ICMP_SHARED),
            Family::V6 => (protocol::ICMPV6, &ICMPV6_SHARED),
        };
        let icmp_label = code.label();
        let transports = Transport::ALL.map(|transport| (transport, code.label()));
        code.statement(LOAD_SCRATCH, SCRATCH_NEXT);
        code.jump_if(JUMP_EQUAL, icmp.into(), icmp_label);
        for (transport, label) in transports {
            code.jump_if(JUMP_EQUAL, transport.protocol().into(), label);
        }
        code.jump(exits.host);

        code.bind(icmp_label);
        code.statement(LOAD_BYTE_X, base);
        for &kind in shared {
            code.jump_if(JUMP_EQUAL, kind.into(), exits.both);
        }
        code.jump(exits.host);

        for (transport, label) in transports {
            code.bind(label);
            code.statement(LOAD_HALF_X, base + 2);
            code.statement(STORE, SCRATCH_PORT);
            for (destination, ranges) in self.ranges(transport, family) {
                let elsewhere = code.label();
                match destination {
                    Some(address) => emit_prefix(code, self.l3(), (address, u8::MAX), elsewhere),
                    None => {
                        code.statement(LOAD_SCRATCH, SCRATCH_SHARED);
                        code.jump_if(JUMP_EQUAL, 0, elsewhere);
                    }
                }
                for (first, last) in ranges {
                    // One comparison for both ends: below `first`, the difference wraps.
                    code.statement(LOAD_SCRATCH, SCRATCH_PORT);
                    code.statement(SUBTRACT, first.into());
                    code.jump_unless(JUMP_GREATER, (last - first).into(), exits.ours);
                }
                code.bind(elsewhere);
            }
            code.jump(exits.host);
        }
    }
}

/// Every address of both families.
const ALL_ADDRESSES: [dataplane_core::addr::Prefix; 2] = [
    dataplane_core::addr::Prefix::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
    dataplane_core::addr::Prefix::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0),
];

/// The guard of an interface that is ours alone: the host sees nothing of it.
pub(super) fn steal_everything() -> Vec<sock_filter> {
    let mut code = Assembler::default();
    code.statement(LOAD_IMMEDIATE, SIGNATURE);
    code.statement(RETURN, STOLEN);
    code.code
}

/// Steals every frame but EAPOL, which a supplicant of the host waits for.
pub(super) fn steal_all_but_eapol() -> Vec<sock_filter> {
    let mut code = Assembler::default();
    let host = code.label();
    code.statement(LOAD_IMMEDIATE, SIGNATURE);
    code.statement(LOAD_HALF, 12);
    code.jump_if(JUMP_EQUAL, EAPOL, host);
    code.statement(RETURN, STOLEN);
    code.bind(host);
    code.statement(RETURN, NEXT_FILTER);
    code.finish().expect("five statements are a short program")
}

/// Where a program ends.
#[derive(Clone, Copy)]
struct Exits {
    ours: Label,
    both: Label,
    host: Label,
}

/// Goes to `known` when the destination is `address`.
fn emit_address(code: &mut Assembler, l3: u32, (family, address): (Family, IpAddr), known: Label) {
    if Family::of(address) != family {
        return;
    }
    let differs = code.label();
    emit_prefix(code, l3, (address, u8::MAX), differs);
    code.jump(known);
    code.bind(differs);
}

/// Goes to `differs` when the destination is outside the prefix.
fn emit_prefix(code: &mut Assembler, l3: u32, (address, len): (IpAddr, u8), differs: Label) {
    let mut bits = u32::from(len);
    for (value, offset) in destination_words(address) {
        let mask = u32::MAX
            .checked_shr(bits)
            .map_or(u32::MAX, |host_part| !host_part);
        if mask != 0 {
            code.statement(LOAD_WORD, l3 + offset);
            if mask != u32::MAX {
                code.statement(AND, mask);
            }
            code.jump_unless(JUMP_EQUAL, value & mask, differs);
        }
        bits = bits.saturating_sub(32);
    }
}

/// The destination's words with their offsets from IP's first byte.
fn destination_words(address: IpAddr) -> impl Iterator<Item = (u32, u32)> {
    let (words, first) = match address {
        IpAddr::V4(v4) => ([v4.to_bits(), 0, 0, 0], 16),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            let word = |shift: u32| (bits >> shift) as u32;
            ([word(96), word(64), word(32), word(0)], 24)
        }
    };
    let count = match address {
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 4,
    };
    words.into_iter().zip((first..).step_by(4)).take(count)
}

/// With the protocol of a later fragment in A.
fn emit_later_fragment(code: &mut Assembler, icmp: u8, exits: Exits) {
    for kind in [icmp, protocol::TCP, protocol::UDP] {
        code.jump_if(JUMP_EQUAL, kind.into(), exits.both);
    }
    code.jump(exits.host);
}

// Cells of the scratch memory.
const SCRATCH_NEXT: u32 = 0;
const SCRATCH_SHARED: u32 = 1;
const SCRATCH_PORT: u32 = 2;

// Instructions of linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const LOAD_BYTE_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_IMMEDIATE: u32 = libc::BPF_LD | libc::BPF_IMM;
const LOAD_SCRATCH: u32 = libc::BPF_LD | libc::BPF_MEM;
const LOAD_X_IMMEDIATE: u32 = libc::BPF_LDX | libc::BPF_IMM;
const LOAD_X_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const STORE: u32 = libc::BPF_ST;
const ADD: u32 = libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K;
const ADD_X: u32 = libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X;
const SUBTRACT: u32 = libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_LEFT: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const A_TO_X: u32 = libc::BPF_MISC | libc::BPF_TAX;
const X_TO_A: u32 = libc::BPF_MISC | libc::BPF_TXA;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const JUMP_GREATER_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The pseudo-offset of something that is known of a packet besides its bytes.
const fn ancillary(what: libc::c_int) -> u32 {
    (libc::SKF_AD_OFF + what) as u32
}

/// A place in a program that jumps go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label(usize);

/// Instructions with jumps to places that are not known yet. A conditional jump reaches only 255
/// instructions, so each is one over an unconditional one, which reaches everywhere.
#[derive(Default)]
struct Assembler {
    code: Vec<sock_filter>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands for the next instruction.
    fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn statement(&mut self, code: u32, operand: u32) {
        self.push(code, 0, 0, operand);
    }

    fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(JUMP, 0, 0, 0);
    }

    fn jump_if(&mut self, condition: u32, operand: u32, label: Label) {
        self.push(condition, 0, 1, operand);
        self.jump(label);
    }

    fn jump_unless(&mut self, condition: u32, operand: u32, label: Label) {
        self.push(condition, 1, 0, operand);
        self.jump(label);
    }

    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        // Instruction codes are 16 bits wide in the kernel's struct and 8 bits in use.
        let code = code as u16;
        self.code.push(sock_filter { code, jt, jf, k });
    }

    /// The program with its jumps filled in, unless it is too long.
    fn finish(mut self) -> Option<Vec<sock_filter>> {
        if self.code.len() > INSTRUCTIONS_MAX {
            return None;
        }
        for (at, label) in self.jumps {
            // Classic BPF only jumps forward: every label is bound behind its jumps.
            let target = self.labels[label.0]?;
            self.code[at].k = u32::try_from(target.checked_sub(at + 1)?).ok()?;
        }
        Some(self.code)
    }
}

#[cfg(test)]
mod tests;
