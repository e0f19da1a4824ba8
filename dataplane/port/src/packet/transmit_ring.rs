//! Sending small frames by a ring: one system call for as many as are handed over at once.
//!
//! # Theory of operation
//! A slot is ours until it says that it is to be sent; while we ask (`sendto`), the kernel takes such slots in
//! order and gives each back when the device is done with it. It stops at the first that it refuses, or that
//! the device drops, and looks at it first the next time. `PACKET_LOSS` would have it go on in silence: it is
//! off, so that each frame's end is known when [`TransmitRing::send`] returns, and what the kernel has not
//! taken is taken back, so that the next frame is where it looks.
//!
//! The ring is that of a socket of its own, which receives nothing: a socket that sends by a ring sends by
//! nothing else, and larger frames are sent by the other one, in their order. Of a frame in a ring the kernel
//! would send the memory itself; told that all of it are headers, it copies it, which is cheaper for a small
//! one and leaves the slot free at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::headers::ETHERNET_SIZE;

use super::slots::{SLOT_SIZE, Slots};
use crate::virtio::{self, VNET_HEADER_SIZE};

/// Slots to send from: several batches, for a device may take its time. 512 KiB.
pub const TRANSMIT_SLOTS: usize = 256;

/// Where a frame with its description begins in a slot to send: `tpacket_parse_header`.
const DATA_OFFSET: usize = libc::TPACKET2_HDRLEN - size_of::<libc::sockaddr_ll>();

/// Bytes of frame that a slot has room for.
const ROOM: usize = SLOT_SIZE - DATA_OFFSET - VNET_HEADER_SIZE;

/// Times that the kernel may be asked to go on: it stops where it has no memory, and never twice in vain.
const KICKS_MAX: usize = 8;

/// A ring to send by, with its socket.
pub struct TransmitRing {
    fd: OwnedFd,
    slots: Slots,
    /// The slot that the kernel looks at next.
    next: usize,
    frame_size_max: usize,
}

impl TransmitRing {
    /// A ring on a socket that is bound to an interface of this MTU, beyond which the kernel would not look.
    pub fn new(fd: OwnedFd, slots: Slots, mtu: usize) -> Self {
        Self {
            fd,
            slots,
            next: 0,
            frame_size_max: ROOM.min(mtu + ETHERNET_SIZE),
        }
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether a frame is one for the ring: small, whole, and more than a header, less than which older
    /// kernels refuse.
    pub fn takes(&self, frame: &FrameBuf) -> bool {
        frame.offload.gso().is_none()
            && frame.len() > ETHERNET_SIZE
            && frame.len() <= self.frame_size_max
    }

    /// Sends `frames` that [`TransmitRing::takes`], from the front, and returns how many were accepted: none
    /// when no slot is free.
    ///
    /// # Errors
    /// Only when not even the first frame was accepted, which it concerns.
    pub fn send(&mut self, frames: &[FrameBuf]) -> io::Result<usize> {
        let mut filled = 0;
        for frame in frames {
            let index = self.slot(filled);
            if filled == TRANSMIT_SLOTS || self.slots.status(index) != libc::TP_STATUS_AVAILABLE {
                break;
            }
            if !self.fill(index, frame) {
                break;
            }
            filled += 1;
        }
        if filled == 0 {
            return Ok(0);
        }
        let mut taken = 0;
        let mut refusal = io::ErrorKind::WouldBlock.into();
        for _ in 0..KICKS_MAX {
            let outcome = kick(self.fd.as_fd());
            let before = taken;
            taken += self.taken(taken, filled);
            if let Err(error) = outcome {
                refusal = error;
                break;
            }
            if taken == filled || taken == before {
                break;
            }
        }
        for ahead in taken..filled {
            self.slots
                .set_status(self.slot(ahead), libc::TP_STATUS_AVAILABLE);
        }
        self.next = self.slot(taken);
        match taken {
            0 => Err(refusal),
            taken => Ok(taken),
        }
    }

    fn slot(&self, ahead: usize) -> usize {
        (self.next + ahead) % TRANSMIT_SLOTS
    }

    /// Puts a frame into a slot; `false` when it has no room, which [`TransmitRing::takes`] rules out.
    fn fill(&mut self, index: usize, frame: &FrameBuf) -> bool {
        let size = VNET_HEADER_SIZE + frame.len();
        let Some(to) = self.slots.bytes_mut(index, DATA_OFFSET, size) else {
            return false;
        };
        let offload = Offload {
            hdr_len: frame.len() as u16,
            ..frame.offload
        };
        to[..VNET_HEADER_SIZE].copy_from_slice(&virtio::encode(offload));
        to[VNET_HEADER_SIZE..].copy_from_slice(frame.bytes());
        self.slots.set_len(index, size as u32);
        self.slots.set_status(index, libc::TP_STATUS_SEND_REQUEST);
        true
    }

    /// How many slots from `first` on the kernel has taken, of those before `end`.
    fn taken(&self, first: usize, end: usize) -> usize {
        let left = libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_WRONG_FORMAT;
        let slots = (first..end).map(|ahead| self.slots.status(self.slot(ahead)));
        slots.take_while(|status| status & left == 0).count()
    }
}

/// Has the kernel send what is to be sent.
fn kick(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (nothing, nobody) = (std::ptr::null(), std::ptr::null());
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: no buffer and no address are passed; the kernel reads the socket's ring.
    // JUSTIFICATION: std sends on no packet socket.
    let returned = unsafe { libc::sendto(socket.as_raw_fd(), nothing, 0, flags, nobody, 0) };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const _: () = assert!(ROOM >= 1_500 + ETHERNET_SIZE + 8, "a frame with two tags");
const _: () = assert!(ROOM <= u16::MAX as usize, "its size is that of a header");
