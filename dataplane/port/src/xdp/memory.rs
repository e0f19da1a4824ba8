//! The packet buffers of a socket, in memory that is shared with the kernel.

use std::io;

use super::DESCRIPTORS_MAX;
use crate::mapping::Mapping;

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
        self.mapping.start() as u64
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
        fits.then(|| self.mapping.start().wrapping_add(offset))
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
