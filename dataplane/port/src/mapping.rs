//! Mappings of memory: one's own, and what a socket shares with the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

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

    /// Where it begins.
    pub const fn start(&self) -> *mut u8 {
        self.at.as_ptr()
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
