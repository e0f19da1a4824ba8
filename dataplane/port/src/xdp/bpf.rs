//! The program that hands an interface's frames to our sockets, and bpf(2) as far as it takes.
//!
//! The program is a few instructions of eBPF, put together by hand (linux/bpf.h,
//! Documentation/bpf/standardization/instruction-set.rst): it looks the frame's receive queue up in
//! a map of sockets and redirects to the one that is there. Without one, the frame goes on to the
//! host's stack, as it would without the program. On a card EAPOL goes there before, by which whoever
//! associates the card is let into its network.
//!
//! The program hangs on the interface by a BPF link, a descriptor of this process: when the process
//! ends, in whatever way, the interface is as it was before.

use std::ffi::{c_int, c_long, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use dataplane_core::headers::ETHERNET_SIZE;

use crate::sys;

// linux/bpf.h.
const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const BPF_PROG_LOAD: c_int = 5;
const BPF_LINK_CREATE: c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const XDP_PASS: i32 = 2;
/// Offsets of `data`, `data_end` and `rx_queue_index` in `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;
/// Offset of the EtherType in a frame.
const ETHERTYPE: i16 = 12;
/// The EtherType of EAPOL (IEEE 802.1X-2020 clause 11.1.4).
const EAPOL: u16 = 0x888e;
// linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

// Operation codes of linux/bpf.h and linux/bpf_common.h.
const LOAD_WORD: u8 = 0x61;
const LOAD_WIDE_IMMEDIATE: u8 = 0x18;
const MOVE_IMMEDIATE: u8 = 0xb7;
const LOAD_HALF: u8 = 0x69;
const MOVE: u8 = 0xbf;
const ADD_IMMEDIATE: u8 = 0x07;
const JUMP_GREATER: u8 = 0x2d;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The kernel asks for a licence before it lends helpers; this one's helpers ask for none in
/// particular.
const LICENSE: &[u8] = b"Apache-2.0\0";

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of a frame.
    Native,
    /// In the kernel's common path, for drivers that know no XDP: a frame is copied once more.
    Generic,
}

/// What the host's stack still hears of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostHears {
    Nothing,
    Eapol,
}

/// Whether the program is told of frames that lie in several pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// `BPF_F_XDP_HAS_FRAGS`, Linux 5.18.
    Several,
    One,
}

/// One instruction, `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The destination in the low half, the source in the high half; this order is that of
    /// little-endian machines.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(
    code: u8,
    (destination, source): (u8, u8),
    offset: i16,
    immediate: i32,
) -> Instruction {
    let registers = if cfg!(target_endian = "little") {
        source << 4 | destination
    } else {
        destination << 4 | source
    };
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

/// `return bpf_redirect_map(&sockets, frame->rx_queue_index, XDP_PASS);`
const fn redirect_to(map: c_int) -> [Instruction; 6] {
    [
        instruction(LOAD_WORD, (2, 1), RX_QUEUE_INDEX, 0),
        instruction(LOAD_WIDE_IMMEDIATE, (1, BPF_PSEUDO_MAP_FD), 0, map),
        instruction(0, (0, 0), 0, 0),
        instruction(MOVE_IMMEDIATE, (3, 0), 0, XDP_PASS),
        instruction(CALL, (0, 0), 0, BPF_FUNC_REDIRECT_MAP),
        instruction(EXIT, (0, 0), 0, 0),
    ]
}

/// `if (data + 14 <= data_end && ethertype == EAPOL) return XDP_PASS;`, before [`redirect_to`].
const fn pass_eapol() -> [Instruction; 9] {
    let ethertype = EAPOL.to_be() as i32;
    [
        instruction(LOAD_WORD, (2, 1), DATA, 0),
        instruction(LOAD_WORD, (3, 1), DATA_END, 0),
        instruction(MOVE, (4, 2), 0, 0),
        instruction(ADD_IMMEDIATE, (4, 0), 0, ETHERNET_SIZE as i32),
        instruction(JUMP_GREATER, (4, 3), 4, 0),
        instruction(LOAD_HALF, (4, 2), ETHERTYPE, 0),
        instruction(JUMP_NOT_EQUAL_IMMEDIATE, (4, 0), 2, ethertype),
        instruction(MOVE_IMMEDIATE, (0, 0), 0, XDP_PASS),
        instruction(EXIT, (0, 0), 0, 0),
    ]
}

fn program(map: c_int, host: HostHears) -> Vec<Instruction> {
    match host {
        HostHears::Nothing => redirect_to(map).to_vec(),
        HostHears::Eapol => [&pass_eapol()[..], &redirect_to(map)].concat(),
    }
}

/// A map from receive queues to sockets.
pub fn create_map(queues: u32) -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: queues,
    };
    bpf(BPF_MAP_CREATE, &attributes).map(sys::own)
}

/// Puts a bound socket into the map.
pub fn put_socket(map: BorrowedFd<'_>, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd();
    let attributes = MapUpdate {
        map: map.as_raw_fd(),
        padding: 0,
        key: (&raw const queue) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Loads the program for a map.
pub fn load(map: BorrowedFd<'_>, host: HostHears, pieces: Pieces) -> io::Result<OwnedFd> {
    let program = program(map.as_raw_fd(), host);
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"causeway");
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: match pieces {
            Pieces::Several => BPF_F_XDP_HAS_FRAGS,
            Pieces::One => 0,
        },
        name,
        interface: 0,
        attach_type: BPF_XDP,
    };
    bpf(BPF_PROG_LOAD, &attributes).map(sys::own)
}

/// Hangs the program on an interface of the calling thread's network namespace, for as long as the
/// returned descriptor is open.
pub fn attach(program: BorrowedFd<'_>, interface: u32, mode: Mode) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd(),
        interface,
        attach_type: BPF_XDP,
        flags: match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        },
    };
    bpf(BPF_LINK_CREATE, &attributes).map(sys::own)
}

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The part that `BPF_MAP_UPDATE_ELEM` reads.
#[repr(C)]
struct MapUpdate {
    map: c_int,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part that `BPF_PROG_LOAD` reads.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The part that `BPF_LINK_CREATE` reads.
#[repr(C)]
struct LinkCreate {
    program: c_int,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(size_of::<MapUpdate>() == 32);
const _: () = assert!(size_of::<ProgramLoad>() == 72);

/// bpf(2) with the attributes of one of its commands, which point at live memory.
fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    let size = size_of::<T>() as c_uint;
    // SAFETY: the attributes are a live struct of the size that is passed, laid out as the command
    // reads it; the pointers in it are to memory that outlives the call and is only read.
    // JUSTIFICATION: neither std nor libc has bpf.
    let returned: c_long = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            &raw const *attributes,
            libc::c_ulong::from(size),
        )
    };
    sys::check(c_int::try_from(returned).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(program: &[Instruction]) -> Vec<[u8; 8]> {
        let bytes = program.iter().map(|it| {
            let [offset_0, offset_1] = it.offset.to_le_bytes();
            let [i0, i1, i2, i3] = it.immediate.to_le_bytes();
            [it.code, it.registers, offset_0, offset_1, i0, i1, i2, i3]
        });
        bytes.collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_cards_program_looks_for_eapol_within_the_frame_before() {
        let whole = bytes(&program(7, HostHears::Eapol));
        assert_eq!(
            whole[..9],
            [
                [0x61, 0x12, 0, 0, 0, 0, 0, 0],
                [0x61, 0x13, 4, 0, 0, 0, 0, 0],
                [0xbf, 0x24, 0, 0, 0, 0, 0, 0],
                [0x07, 0x04, 0, 0, 14, 0, 0, 0],
                [0x2d, 0x34, 4, 0, 0, 0, 0, 0],
                [0x69, 0x24, 12, 0, 0, 0, 0, 0],
                [0x55, 0x04, 2, 0, 0x88, 0x8e, 0, 0],
                [0xb7, 0, 0, 0, 2, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
        assert_eq!(whole[9..], bytes(&program(7, HostHears::Nothing)));
    }

    /// As `llvm-objdump -d` has the bytes of `bpf_redirect_map(&map, ctx->rx_queue_index, XDP_PASS)`.
    #[cfg(target_endian = "little")]
    #[test]
    fn the_program_is_the_bytes_that_the_kernel_runs() {
        assert_eq!(
            bytes(&program(7, HostHears::Nothing)),
            [
                [0x61, 0x12, 0x10, 0, 0, 0, 0, 0],
                [0x18, 0x11, 0, 0, 7, 0, 0, 0],
                [0; 8],
                [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
                [0x85, 0, 0, 0, 51, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }
}
