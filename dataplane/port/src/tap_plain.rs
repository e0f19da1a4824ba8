//! TAP devices by the `tun-tap` crate: no offload, one queue.
//!
//! The baseline: every frame is complete and no larger than the MTU, the kernel does the work of
//! checksums and segmentation, and a frame costs a system call. On TCP it carries about a quarter
//! of what a kernel bridge does; [`crate::tap`] carries offloads.
//!
//! Limits: as [`crate::tap`], with one queue. The crate opens an existing persistent device just
//! as it creates a new one, so the name is checked first. Thread-safety: one owner.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf};
use tun_tap::{Iface, Mode};

use crate::tap::{self, Persistence, TapError};
use crate::{BATCH_MAX, Batch, Capabilities, Carrier, PortIo, sys};

/// A TAP device without offloads.
pub struct PlainTap {
    device: Iface,
}

impl PlainTap {
    /// Creates the device in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`TapError::NameTaken`] when any interface has the name.
    pub fn create(name: &str) -> Result<Self, TapError> {
        match sys::interface_index(name) {
            Ok(_) => Err(TapError::NameTaken { name: name.into() }),
            Err(_) => Self::open(name),
        }
    }

    /// Attaches to an existing persistent device in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`TapError::NotFound`] when there is none, [`TapError::NotOurKind`] when it is no TAP, or
    /// one with several queues.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        sys::interface_index(name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TapError::NotFound { name: name.into() },
            _ => TapError::from_io(name, "look up", error),
        })?;
        Self::open(name).map_err(|error| match error {
            TapError::Io { source, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
                TapError::NotOurKind { name: name.into() }
            }
            error => error,
        })
    }

    fn open(name: &str) -> Result<Self, TapError> {
        if sys::interface_name(name).is_none() {
            return Err(TapError::NameInvalid { name: name.into() });
        }
        let failed = |error| TapError::from_io(name, "open", error);
        let device = Iface::without_packet_info(name, Mode::Tap).map_err(failed)?;
        device.set_non_blocking().map_err(failed)?;
        Ok(Self { device })
    }

    /// The name that the kernel knows the device by.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The device's index in the calling thread's network namespace.
    ///
    /// # Errors
    /// `NotFound` when the device is not in that namespace under its first name.
    pub fn interface_index(&self) -> io::Result<u32> {
        sys::interface_index(self.name())
    }

    /// Sets whether the device outlives its descriptor.
    ///
    /// # Errors
    /// What `TUNSETPERSIST` says.
    pub fn set_persistence(&self, persistence: Persistence) -> io::Result<()> {
        tap::set_persistence(self.descriptor(), persistence)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the device owns the descriptor and is borrowed for as long as the result lives.
        // JUSTIFICATION: the crate predates I/O safety and gives out raw descriptors only.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}

impl PortIo for PlainTap {
    fn capabilities(&self) -> Capabilities {
        Capabilities::plain(FRAME_SIZE_MAX)
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let before = rx.len();
        for _ in 0..BATCH_MAX {
            let Some(mut buf) = rx.take_buffer() else {
                break;
            };
            match self.device.recv(buf.receive_area(0)) {
                Ok(size) => {
                    buf.set_received(size, dataplane_core::frame::Offload::NONE);
                    rx.push(buf);
                }
                Err(error) => {
                    rx.recycle(buf);
                    if rx.len() == before {
                        return Err(tap::classified(error));
                    }
                    if error.kind() == io::ErrorKind::WouldBlock {
                        rx.mark_drained();
                    }
                    break;
                }
            }
        }
        Ok(rx.len() - before)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        for (sent, frame) in frames.iter().enumerate() {
            let outcome = if self.capabilities().accepts(frame) {
                self.device.send(frame.bytes()).map_err(tap::classified)
            } else {
                Err(io::ErrorKind::InvalidInput.into())
            };
            match outcome {
                Ok(_) => {}
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
        }
        Ok(frames.len())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor())
    }

    fn set_carrier(&self, carrier: Carrier) -> io::Result<()> {
        tap::set_carrier(self.descriptor(), carrier)
    }
}

impl std::fmt::Debug for PlainTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlainTap({})", self.name())
    }
}
