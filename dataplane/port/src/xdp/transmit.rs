//! Having the kernel take what was submitted, and what becomes of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use dataplane_core::frame::Offload;

use super::METADATA_SIZE;
use super::memory::Umem;
use super::ring::{Consumer, Producer};

/// Times that the kernel may take nothing before we stop asking: what it waits for, memory or a
/// device's queue, takes longer than a few calls.
const STALLS_MAX: u32 = 4;

/// What became of submitted frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drained {
    /// Frames that the kernel took and dropped.
    pub lost: usize,
    /// The interface is down or gone.
    pub down: bool,
}

/// Has the kernel take what was submitted, all of it unless it cannot; `reap` takes chunks back that
/// it has sent from.
pub fn drain(
    socket: BorrowedFd<'_>,
    transmit: &Producer<libc::xdp_desc>,
    mut reap: impl FnMut(),
) -> Drained {
    let mut drained = Drained::default();
    let mut pending = transmit.pending();
    let mut stalls = 0;
    while pending > 0 && stalls < STALLS_MAX {
        let outcome = kick(socket);
        let left = transmit.pending();
        match outcome.map_err(|error| error.raw_os_error()) {
            // It has dropped the last frame that it took: no carrier, or the far end is full.
            Err(Some(libc::EBUSY)) if left < pending => drained.lost += 1,
            Err(Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV)) => {
                drained.down = true;
                break;
            }
            // It takes some 32 frames at once and says EAGAIN when there are more.
            Ok(()) | Err(_) => {}
        }
        if left == pending {
            stalls += 1;
            reap();
        }
        pending = left;
    }
    drained
}

/// Takes chunks back that the kernel has sent from, and returns how many.
pub fn reap(umem: &Umem, completed: &mut Consumer<u64>, free: &mut Vec<u64>) -> u32 {
    let count = completed.available();
    for index in 0..count {
        free.push(umem.chunk_of(completed.peek(index)));
    }
    completed.release(count);
    count
}

/// `struct xsk_tx_metadata` of linux/if_xdp.h, which asks for a checksum.
pub fn describe(offload: Offload) -> [u8; METADATA_SIZE] {
    let mut metadata = [0; METADATA_SIZE];
    let flags = u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM);
    metadata[..8].copy_from_slice(&flags.to_ne_bytes());
    metadata[8..10].copy_from_slice(&offload.csum_start.to_ne_bytes());
    metadata[10..12].copy_from_slice(&offload.csum_offset.to_ne_bytes());
    metadata
}

/// Has the kernel send what was submitted.
fn kick(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (nothing, nobody) = (std::ptr::null(), std::ptr::null());
    // SAFETY: no buffer and no address are passed; the kernel reads the socket's rings.
    // JUSTIFICATION: std sends on no socket of AF_XDP.
    let returned = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            nothing,
            0,
            libc::MSG_DONTWAIT,
            nobody,
            0,
        )
    };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
