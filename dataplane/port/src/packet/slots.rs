//! A ring of slots in memory that is shared with the kernel: `TPACKET_V2` of linux/if_packet.h,
//! Documentation/networking/packet_mmap.rst.
//!
//! # Theory of operation
//! Each slot belongs to one side at any time, and its status word says to which. A side that is done with a
//! slot writes the status last and with `Release`, which the other side's `Acquire` is partnered with; of the
//! kernel that is the barrier of `__packet_set_status` and `__packet_get_status` of net/packet/af_packet.c.
//! Both sides go through the slots in order.
//!
//! Limits: a slot has [`SLOT_SIZE`] bytes; all rings of the process [`RING_BYTES_MAX`].

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::mapping::Mapping;
use crate::sys;

/// Bytes of a slot: a frame of an MTU of 1,500 with what the kernel has in front of it. Slots for the largest
/// frames, of 64 KiB, would hold few of the small ones in as much memory, for a slot holds one frame.
pub const SLOT_SIZE: usize = 2_048;

/// Bytes that the kernel allocates in one piece: enough that a ring is a few dozen pieces, few enough that
/// they are found in memory that has been in use for long.
const BLOCK_SIZE: usize = 64 << 10;

/// Bytes of all rings of the process, which the kernel charges to nobody: some 50 ports of two queues. Ports
/// beyond pass frames by system calls, which takes memory for frames that wait alone.
pub const RING_BYTES_MAX: usize = 256 << 20;

const _: () = assert!(BLOCK_SIZE.is_multiple_of(SLOT_SIZE));
const _: () = assert!(SLOT_SIZE.is_multiple_of(align_of::<libc::tpacket2_hdr>()));
const _: () = assert!(align_of::<AtomicU32>() <= align_of::<libc::tpacket2_hdr>());

/// Bytes of all rings that there are.
static RING_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A part of the memory that the rings of the process may have, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    of: &'static AtomicUsize,
    bytes: usize,
}

impl Share {
    /// Memory for a ring of `slots`, unless there would be more than `bytes_max`.
    pub fn take(slots: usize, bytes_max: usize) -> Option<Self> {
        Self::take_of(&RING_BYTES, slots * SLOT_SIZE, bytes_max)
    }

    fn take_of(of: &'static AtomicUsize, bytes: usize, bytes_max: usize) -> Option<Self> {
        let with = |now: usize| now.checked_add(bytes).filter(|&sum| sum <= bytes_max);
        let taken = of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
        taken.ok().map(|_| Self { of, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The slots of one ring of one socket.
#[derive(Debug)]
pub struct Slots {
    mapping: Mapping,
    share: Share,
}

/// Has the socket keep its slots as version 2 lays them out. Before it has any.
pub fn choose_version(socket: BorrowedFd<'_>) -> io::Result<()> {
    let version = libc::tpacket_versions::TPACKET_V2 as c_int;
    sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)
}

/// Has the kernel make the ring that `option` names, of so many slots; of none, has it removed, which takes
/// that nobody maps it.
pub fn make(socket: BorrowedFd<'_>, option: c_int, count: usize) -> io::Result<()> {
    let bytes = count * SLOT_SIZE;
    let request = libc::tpacket_req {
        tp_block_size: BLOCK_SIZE as c_uint,
        tp_block_nr: (bytes / BLOCK_SIZE) as c_uint,
        tp_frame_size: SLOT_SIZE as c_uint,
        tp_frame_nr: count as c_uint,
    };
    sys::set_option(socket, libc::SOL_PACKET, option, &request)
}

impl Slots {
    /// Maps the slots that a share is for, once the kernel has made them.
    pub fn map(socket: BorrowedFd<'_>, share: Share) -> io::Result<Self> {
        let mapping = Mapping::of_ring(socket, share.bytes, 0)?;
        Ok(Self { mapping, share })
    }

    /// Gives the mapping up and keeps the share, for other slots of the same number.
    pub fn unmap(self) -> Share {
        self.share
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.mapping.size() / SLOT_SIZE
    }

    /// Whose a slot is, and what came of it.
    #[inline]
    pub fn status(&self, index: usize) -> u32 {
        self.status_word(index).load(Ordering::Acquire)
    }

    /// Gives a slot to the kernel, or takes one back that it does not look at now.
    #[inline]
    pub fn set_status(&self, index: usize, status: u32) {
        self.status_word(index).store(status, Ordering::Release);
    }

    fn status_word(&self, index: usize) -> &AtomicU32 {
        let place = self.mapping.place::<AtomicU32>(index * SLOT_SIZE);
        // SAFETY: `place` lies within the mapping, which lives as long as the borrow, and is aligned; both
        // sides access the status, the first word of a slot, as an atomic integer.
        // JUSTIFICATION: memory that the kernel writes to is no Rust object.
        unsafe { place.as_ref() }
    }

    /// What the kernel tells of the frame in a slot that is ours.
    #[inline]
    pub fn header(&self, index: usize) -> libc::tpacket2_hdr {
        let place = self.mapping.place::<libc::tpacket2_hdr>(index * SLOT_SIZE);
        // SAFETY: `place` lies within the mapping and is aligned, any bytes are integers, and the kernel
        // does not write to a slot that is ours.
        // JUSTIFICATION: as above.
        unsafe { place.read() }
    }

    /// Writes the length of a frame into a slot that is ours.
    pub fn set_len(&mut self, index: usize, len: u32) {
        let at = index * SLOT_SIZE + std::mem::offset_of!(libc::tpacket2_hdr, tp_len);
        let place = self.mapping.place::<u32>(at);
        // SAFETY: as for `header`, and the exclusive borrow makes it the only access of ours.
        // JUSTIFICATION: as above.
        unsafe { place.write(len) };
    }

    /// `len` bytes from `offset` on of a slot that is ours; `None` where they are not within it.
    #[inline]
    pub fn bytes(&self, index: usize, offset: usize, len: usize) -> Option<&[u8]> {
        let at = self.within(index, offset, len)?;
        // SAFETY: `within` has checked that the bytes lie in the mapping, which lives as long as the
        // borrow; any bytes are valid, and the kernel does not write to a slot that is ours.
        // JUSTIFICATION: as above.
        Some(unsafe { std::slice::from_raw_parts(at, len) })
    }

    /// Like [`Slots::bytes`], to write to, behind the status.
    #[inline]
    pub fn bytes_mut(&mut self, index: usize, offset: usize, len: usize) -> Option<&mut [u8]> {
        let at = self.within(index, offset, len)?;
        // SAFETY: as in `bytes`; the exclusive borrow of `self` makes it the only reference.
        // JUSTIFICATION: as above.
        Some(unsafe { std::slice::from_raw_parts_mut(at, len) })
    }

    fn within(&self, index: usize, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        let fits =
            index < self.count() && offset >= size_of::<libc::tpacket2_hdr>() && end <= SLOT_SIZE;
        let at = index * SLOT_SIZE + offset;
        fits.then(|| self.mapping.start().wrapping_add(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rings_of_a_process_have_so_much_memory_together_and_give_it_back() {
        static BYTES: AtomicUsize = AtomicUsize::new(0);
        let first = Share::take_of(&BYTES, 60, 100).unwrap();
        let second = Share::take_of(&BYTES, 40, 100).unwrap();
        assert!(Share::take_of(&BYTES, 1, 100).is_none());
        drop(second);
        assert!(Share::take_of(&BYTES, 41, 100).is_none());
        assert!(Share::take_of(&BYTES, usize::MAX, usize::MAX).is_none());
        assert!(Share::take_of(&BYTES, 40, 100).is_some());
        drop(first);
        assert_eq!(BYTES.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_lies_in_the_header_or_crosses_a_slot_is_no_frame() {
        let mut slots = Slots {
            mapping: Mapping::anonymous(2 * SLOT_SIZE).unwrap(),
            share: Share::take(2, usize::MAX).unwrap(),
        };
        assert_eq!(slots.count(), 2);
        slots.bytes_mut(1, 32, SLOT_SIZE - 32).unwrap().fill(7);
        assert_eq!(slots.bytes(1, SLOT_SIZE - 1, 1).unwrap(), [7]);
        assert_eq!(slots.bytes(0, SLOT_SIZE - 1, 1).unwrap(), [0]);
        assert!(slots.bytes(1, SLOT_SIZE - 1, 2).is_none());
        assert!(slots.bytes(1, 31, 1).is_none());
        assert!(slots.bytes(2, 32, 1).is_none());
        assert!(slots.bytes(0, 32, usize::MAX).is_none());
        assert_eq!(slots.header(1).tp_len, 0);
        slots.set_len(1, 9);
        slots.set_status(1, 3);
        assert_eq!((slots.header(1).tp_len, slots.status(1)), (9, 3));
        assert_eq!((slots.header(0).tp_len, slots.status(0)), (0, 0));
    }
}
