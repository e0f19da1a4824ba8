//! The rings by which descriptors pass between us and the kernel (linux/if_xdp.h).
//!
//! Each has one producer and one consumer. Both count without end, modulo 2^32; the difference is
//! what is in the ring. What the producer has written is seen by the consumer that has seen its
//! counter, and the other way round: a store with `Release` is partnered by the kernel's
//! `smp_load_acquire` of net/xdp/xsk_queue.h, a load with `Acquire` by its `smp_store_release`.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{RECEIVE_CHUNKS, TRANSMIT_CHUNKS};
use crate::mapping::Mapping;
use crate::sys::{self, PlainData};

// SAFETY: an integer has no invalid bit pattern.
unsafe impl PlainData for u64 {
    const ZERO: Self = 0;
}

// SAFETY: three integers without padding.
unsafe impl PlainData for libc::xdp_desc {
    const ZERO: Self = Self {
        addr: 0,
        len: 0,
        options: 0,
    };
}

const NO_OFFSET: libc::xdp_ring_offset = libc::xdp_ring_offset {
    producer: 0,
    consumer: 0,
    desc: 0,
    flags: 0,
};

// SAFETY: integers without padding.
unsafe impl PlainData for libc::xdp_mmap_offsets {
    const ZERO: Self = Self {
        rx: NO_OFFSET,
        tx: NO_OFFSET,
        fr: NO_OFFSET,
        cr: NO_OFFSET,
    };
}

/// The four rings of a socket.
#[derive(Debug)]
pub struct Rings {
    /// Chunks to receive into.
    pub fill: Producer<u64>,
    /// Frames that were received.
    pub received: Consumer<libc::xdp_desc>,
    /// Frames to send.
    pub transmit: Producer<libc::xdp_desc>,
    /// Chunks that were sent from.
    pub completed: Consumer<u64>,
}

impl Rings {
    /// Maps the rings of a socket that is not bound yet.
    pub fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        for (ring, size) in [
            (libc::XDP_UMEM_FILL_RING, RECEIVE_CHUNKS),
            (libc::XDP_RX_RING, RECEIVE_CHUNKS),
            (libc::XDP_UMEM_COMPLETION_RING, TRANSMIT_CHUNKS),
            (libc::XDP_TX_RING, TRANSMIT_CHUNKS),
        ] {
            sys::set_option(socket, libc::SOL_XDP, ring, &size)?;
        }
        let offsets: libc::xdp_mmap_offsets =
            sys::get_option(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        let (received, transmit) = (libc::XDP_PGOFF_RX_RING, libc::XDP_PGOFF_TX_RING);
        let (fill, completed) = (
            libc::XDP_UMEM_PGOFF_FILL_RING,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING,
        );
        Ok(Self {
            fill: Producer::new(socket, RECEIVE_CHUNKS, &offsets.fr, fill)?,
            received: Consumer::new(socket, RECEIVE_CHUNKS, &offsets.rx, received as u64)?,
            transmit: Producer::new(socket, TRANSMIT_CHUNKS, &offsets.tx, transmit as u64)?,
            completed: Consumer::new(socket, TRANSMIT_CHUNKS, &offsets.cr, completed)?,
        })
    }
}

/// A ring's memory.
#[derive(Debug)]
struct Ring<T> {
    mapping: Mapping,
    offsets: Offsets,
    size: u32,
    entries: PhantomData<T>,
}

/// Where the parts of a ring are in its mapping.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    producer: usize,
    consumer: usize,
    entries: usize,
}

impl<T: PlainData> Ring<T> {
    fn new(
        fd: BorrowedFd<'_>,
        size: u32,
        parts: &libc::xdp_ring_offset,
        page_offset: u64,
    ) -> io::Result<Self> {
        assert!(size.is_power_of_two(), "as the kernel demands");
        let entries_size = size as usize * size_of::<T>();
        let mapping = Mapping::of_ring(fd, parts.desc as usize + entries_size, page_offset)?;
        Ok(Self {
            mapping,
            offsets: Offsets {
                producer: parts.producer as usize,
                consumer: parts.consumer as usize,
                entries: parts.desc as usize,
            },
            size,
            entries: PhantomData,
        })
    }

    fn counter(&self, offset: usize) -> &AtomicU32 {
        let place = self.mapping.place::<AtomicU32>(offset);
        // SAFETY: `place` lies within the mapping, which lives as long as the borrow, and is
        // aligned; both sides access it as an atomic integer.
        // JUSTIFICATION: memory that the kernel writes to is no Rust object.
        unsafe { place.as_ref() }
    }

    fn producer(&self) -> &AtomicU32 {
        self.counter(self.offsets.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.counter(self.offsets.consumer)
    }

    fn read(&self, index: u32) -> T {
        let place = self.mapping.place::<T>(self.entry(index));
        // SAFETY: `place` lies within the mapping and is aligned, and any bytes are a `T`; the
        // caller has seen that the producer is done with the entry.
        // JUSTIFICATION: as in `counter`.
        unsafe { place.read() }
    }

    fn write(&mut self, index: u32, value: T) {
        let place = self.mapping.place::<T>(self.entry(index));
        // SAFETY: as in `read`; the caller has seen that the consumer is done with the entry.
        // JUSTIFICATION: as in `counter`.
        unsafe { place.write(value) };
    }

    fn entry(&self, index: u32) -> usize {
        let index = index & (self.size - 1);
        self.offsets.entries + index as usize * size_of::<T>()
    }
}

/// A ring into which we write: fill, and transmit.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Ring<T>,
    /// The next entry that is written.
    next: u32,
}

impl<T: PlainData> Producer<T> {
    /// Maps a ring of `size` entries, a power of two.
    pub fn new(
        fd: BorrowedFd<'_>,
        size: u32,
        parts: &libc::xdp_ring_offset,
        page_offset: u64,
    ) -> io::Result<Self> {
        let ring = Ring::new(fd, size, parts, page_offset)?;
        Ok(Self { ring, next: 0 })
    }

    /// Entries that the kernel has not taken, those included that are not submitted.
    pub fn pending(&self) -> u32 {
        let taken = self.ring.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(taken)
    }

    /// Entries that may be written.
    pub fn room(&self) -> u32 {
        self.ring.size.saturating_sub(self.pending())
    }

    /// Writes an entry; there must be room.
    pub fn push(&mut self, value: T) {
        self.ring.write(self.next, value);
        self.next = self.next.wrapping_add(1);
    }

    /// Lets the kernel see what was written.
    pub fn submit(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Takes the last `count` entries back, which the kernel must not have looked for, and hands
    /// each to `each`.
    pub fn retract(&mut self, count: u32, mut each: impl FnMut(T)) {
        for _ in 0..count {
            self.next = self.next.wrapping_sub(1);
            each(self.ring.read(self.next));
        }
        self.submit();
    }
}

/// A ring from which we read: receive, and completion.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Ring<T>,
    /// The next entry that is read.
    next: u32,
}

impl<T: PlainData> Consumer<T> {
    /// Maps a ring of `size` entries, a power of two.
    pub fn new(
        fd: BorrowedFd<'_>,
        size: u32,
        parts: &libc::xdp_ring_offset,
        page_offset: u64,
    ) -> io::Result<Self> {
        let ring = Ring::new(fd, size, parts, page_offset)?;
        Ok(Self { ring, next: 0 })
    }

    /// Entries that are there to be read.
    pub fn available(&self) -> u32 {
        let produced = self.ring.producer().load(Ordering::Acquire);
        produced.wrapping_sub(self.next)
    }

    /// The entry that is `ahead` of the next one and available.
    pub fn peek(&self, ahead: u32) -> T {
        self.ring.read(self.next.wrapping_add(ahead))
    }

    /// Goes past `count` entries that are available, and gives them back.
    pub fn release(&mut self, count: u32) {
        self.next = self.next.wrapping_add(count);
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}
