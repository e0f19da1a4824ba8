//! Memory that is shared with the kernel: the packet buffers of a socket, and its rings.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use super::DESCRIPTORS_MAX;

/// A mapping of memory, unmapped when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    size: usize,
}

// SAFETY: memory is reachable from any thread; whoever has the mapping is its only owner on this
// side, and the kernel's side follows the protocol of the rings.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `size` bytes of zeroed memory of one's own.
    pub fn anonymous(size: usize) -> io::Result<Self> {
        Self::map(
            size,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            libc::off_t::default(),
        )
    }

    /// The ring of a socket that the kernel shows at `offset`.
    pub fn of_ring(fd: BorrowedFd<'_>, size: usize, offset: u64) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(size, flags, fd.as_raw_fd(), offset)
    }

    fn map(size: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours.
        // JUSTIFICATION: std maps no memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, size })
    }

    /// Where a `T` is, `offset` bytes behind the beginning.
    ///
    /// # Panics
    /// When it would not lie within the mapping, or not be aligned.
    pub fn place<T>(&self, offset: usize) -> NonNull<T> {
        let end = offset.checked_add(size_of::<T>());
        assert!(
            end.is_some_and(|end| end <= self.size),
            "a ring is as large as the kernel says"
        );
        let place = self.at.as_ptr().wrapping_add(offset).cast::<T>();
        assert!(
            place.is_aligned(),
            "the kernel aligns what it shows of a ring"
        );
        NonNull::new(place).expect("a place within a mapping is not null")
    }

    /// Bytes mapped.
    pub const fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nothing refers to it once its owner is gone; pages
        // that the kernel uses for a socket are held by the socket.
        // JUSTIFICATION: std unmaps no memory.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.size) };
    }
}

/// The packet buffers of one socket, in chunks of equal size.
///
/// Every chunk belongs to one side at any time: to the kernel from when its descriptor is
/// submitted until it comes back, else to us.
#[derive(Debug)]
pub struct Umem {
    mapping: Mapping,
    chunk_size: usize,
}

impl Umem {
    /// `count` chunks of `chunk_size` bytes, a power of two.
    pub fn new(count: usize, chunk_size: usize) -> io::Result<Self> {
        let mapping = Mapping::anonymous(count * chunk_size)?;
        Ok(Self {
            mapping,
            chunk_size,
        })
    }

    /// Where it begins, for `XDP_UMEM_REG`.
    pub fn address(&self) -> u64 {
        self.mapping.at.as_ptr() as u64
    }

    /// Bytes of all chunks.
    pub const fn size(&self) -> usize {
        self.mapping.size()
    }

    /// Bytes of one chunk.
    pub const fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// The beginning of the chunk that an address lies in.
    pub const fn chunk_of(&self, address: u64) -> u64 {
        address & !(self.chunk_size as u64 - 1)
    }

    /// `len` bytes from `address` on, within one chunk that is ours now; `None` when they are not
    /// within one.
    pub fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let at = self.within_chunk(address, len)?;
        // SAFETY: `within_chunk` has checked that the bytes lie in the mapping, which lives as long
        // as the borrow; any bytes are valid, and the kernel does not write to a chunk that is ours.
        // JUSTIFICATION: memory that the kernel writes to is no Rust object.
        Some(unsafe { std::slice::from_raw_parts(at, len) })
    }

    /// Like [`Umem::bytes`], to write to.
    pub fn bytes_mut(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let at = self.within_chunk(address, len)?;
        // SAFETY: as in `bytes`; the exclusive borrow of `self` makes it the only reference.
        // JUSTIFICATION: as in `bytes`.
        Some(unsafe { std::slice::from_raw_parts_mut(at, len) })
    }

    fn within_chunk(&self, address: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(address).ok()?;
        let end = offset.checked_add(len)?;
        let chunk = self.chunk_of(address) as usize;
        let fits = end <= self.mapping.size() && end <= chunk + self.chunk_size;
        fits.then(|| self.mapping.at.as_ptr().wrapping_add(offset))
    }
}

const _: () = assert!(DESCRIPTORS_MAX <= 17, "MAX_SKB_FRAGS of linux/skbuff.h");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_a_chunk_or_the_end_is_no_packet() {
        let mut umem = Umem::new(2, 4_096).unwrap();
        assert_eq!(umem.size(), 8_192);
        umem.bytes_mut(4_096, 4_096).unwrap().fill(7);
        assert_eq!(umem.bytes(4_090, 6).unwrap(), [0; 6]);
        assert_eq!(umem.bytes(8_191, 1).unwrap(), [7]);
        assert!(umem.bytes(4_090, 7).is_none());
        assert!(umem.bytes(8_192, 1).is_none());
        assert!(umem.bytes(u64::MAX, 2).is_none());
        assert_eq!(umem.chunk_of(8_191), 4_096);
    }
}
