//! A frame in flight: its bytes, the port it came from, and what its checksums still lack.
//!
//! The kernel hands virtual switches frames whose checksums are unfinished and whose payload
//! exceeds the MTU, described by a `virtio_net_hdr`. That description travels with the frame as
//! [`Offload`] from ingress to egress and is handed back verbatim to a port that understands it.
//!
//! Limits: [`FRAME_SIZE_MAX`] bytes of frame, [`HEADROOM`] bytes before it for headers that an
//! egress port puts in front. Not thread-safe: one owner, passed along.

use crate::addr::PortId;

/// Largest frame: a 64 KiB IP packet as GSO builds it, with an Ethernet header and two VLAN tags.
pub const FRAME_SIZE_MAX: usize = 65_535 + 14 + 8;

/// Free bytes in front of a received frame, a cache line: a virtio-net header (12) and two VLAN tags
/// (8), or that header, a tag, and the headers of an ICMPv6 error (48).
pub const HEADROOM: usize = 64;

/// Offload state of a frame: the content of `struct virtio_net_hdr` (linux/virtio_net.h).
///
/// The default value means a complete frame: checksums filled in, no larger than the MTU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Offload {
    /// [`Offload::NEEDS_CSUM`] and [`Offload::DATA_VALID`].
    pub flags: u8,
    /// [`GsoKind`] as the kernel writes it, possibly with [`Offload::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes up to the end of the L4 header; a hint, never trusted.
    pub hdr_len: u16,
    /// Payload bytes per segment, 0 when the frame is not GSO.
    pub gso_size: u16,
    /// Offset of the L4 header, counted from the first byte of the frame.
    pub csum_start: u16,
    /// Offset of the checksum field, counted from `csum_start`.
    pub csum_offset: u16,
}

/// What a GSO frame is cut into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    TcpV4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    TcpV6,
    /// UDP datagrams of equal size (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    UdpL4,
    /// An IPv4 packet into fragments, by a mark of the gateway's own that no device knows; the GSO
    /// size is that of a whole fragment.
    Fragments,
    /// UDP datagrams of equal size over IPv4, and those that are too large into fragments, by another
    /// mark of the gateway's own; `hdr_len` has the size of a whole fragment.
    UdpFragments,
    /// Something this version cannot segment, such as the obsolete UFO.
    Other(u8),
}

impl Offload {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the L4 checksum field holds only the pseudo-header sum.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the sender vouches for the checksum.
    pub const DATA_VALID: u8 = 2;
    /// `VIRTIO_NET_HDR_GSO_ECN`, or-ed onto the GSO type.
    pub const GSO_ECN: u8 = 0x80;

    /// The GSO type of [`GsoKind::Fragments`], out of the range that the kernel uses.
    pub(crate) const FRAGMENTS: u8 = 0x7e;
    /// The GSO type of [`GsoKind::UdpFragments`].
    pub(crate) const UDP_FRAGMENTS: u8 = 0x7d;

    /// Nothing left to do: the frame is as it would be on a wire.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Whether the L4 checksum field holds only the pseudo-header sum.
    #[inline]
    pub const fn needs_checksum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    /// The kind of segments this frame is to be cut into, `None` for an ordinary frame.
    #[inline]
    pub const fn gso(&self) -> Option<GsoKind> {
        match self.gso_type & !Self::GSO_ECN {
            0 => None,
            1 => Some(GsoKind::TcpV4),
            4 => Some(GsoKind::TcpV6),
            5 => Some(GsoKind::UdpL4),
            Self::FRAGMENTS => Some(GsoKind::Fragments),
            Self::UDP_FRAGMENTS => Some(GsoKind::UdpFragments),
            other => Some(GsoKind::Other(other)),
        }
    }

    /// Moves the checksum start by `delta` bytes, after a tag was inserted or removed in front.
    pub fn shift(&mut self, delta: i16) {
        if self.needs_checksum() {
            self.csum_start = self.csum_start.wrapping_add_signed(delta);
        }
        if self.hdr_len != 0 && self.gso() != Some(GsoKind::UdpFragments) {
            self.hdr_len = self.hdr_len.wrapping_add_signed(delta);
        }
    }
}

/// Owned storage for one frame, with room in front and behind.
#[derive(Clone)]
pub struct FrameBuf {
    storage: Box<[u8]>,
    start: usize,
    len: usize,
    /// What the frame's checksums and segmentation still lack.
    pub offload: Offload,
}

impl FrameBuf {
    /// An empty buffer able to hold the largest frame.
    pub fn new() -> Self {
        Self::with_capacity(FRAME_SIZE_MAX)
    }

    /// An empty buffer for frames of up to `frame_size_max` bytes.
    pub fn with_capacity(frame_size_max: usize) -> Self {
        let storage = vec![0; HEADROOM + frame_size_max].into_boxed_slice();
        Self {
            storage,
            start: HEADROOM,
            len: 0,
            offload: Offload::NONE,
        }
    }

    /// A buffer holding a copy of `bytes`, able to grow to the largest frame. For tests and
    /// services; a worker reads into buffers that it reuses.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut buf = Self::new();
        buf.copy_from(bytes, Offload::NONE);
        buf
    }

    /// The frame, from destination MAC to last payload byte, without FCS.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// The frame, writable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }

    /// Bytes of frame held.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no frame is held.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Largest frame that fits from the current start.
    pub fn capacity(&self) -> usize {
        self.storage.len() - self.start
    }

    /// Whether the largest frame can be received into it: not so of one made for a frame that is
    /// known.
    #[inline]
    pub fn takes_any(&self) -> bool {
        self.storage.len() >= HEADROOM + FRAME_SIZE_MAX
    }

    /// Forgets the frame: empty, full headroom, no offload.
    #[inline]
    pub fn clear(&mut self) {
        self.start = HEADROOM;
        self.len = 0;
        self.offload = Offload::NONE;
    }

    /// Replaces the frame. `bytes` beyond the capacity are cut off; a caller that may exceed it
    /// checks [`FrameBuf::capacity`] first.
    pub fn copy_from(&mut self, bytes: &[u8], offload: Offload) {
        self.start = HEADROOM;
        self.len = bytes.len().min(self.storage.len() - HEADROOM);
        self.storage[HEADROOM..HEADROOM + self.len].copy_from_slice(&bytes[..self.len]);
        self.offload = offload;
    }

    /// The storage that a port reads into: `prefix` bytes of header, then the frame.
    /// Followed by [`FrameBuf::set_received`].
    ///
    /// # Panics
    /// When `prefix` exceeds [`HEADROOM`].
    #[inline]
    pub fn receive_area(&mut self, prefix: usize) -> &mut [u8] {
        &mut self.storage[HEADROOM - prefix..]
    }

    /// Declares that `len` bytes of frame stand behind the prefix given to `receive_area`.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    #[inline]
    pub fn set_received(&mut self, len: usize, offload: Offload) {
        assert!(
            HEADROOM + len <= self.storage.len(),
            "a port received past the buffer"
        );
        self.start = HEADROOM;
        self.len = len;
        self.offload = offload;
    }

    /// The frame with `prefix` bytes in front of it that an egress port may overwrite, or `None`
    /// when the headroom was used up.
    #[inline]
    pub fn with_prefix(&mut self, prefix: usize) -> Option<&mut [u8]> {
        let from = self.start.checked_sub(prefix)?;
        Some(&mut self.storage[from..self.start + self.len])
    }

    /// Inserts `count` zero bytes at `offset` by moving what stands before it into the headroom;
    /// `false`, and nothing changed, when there is no room. The offload's offsets are kept true.
    pub fn insert(&mut self, offset: usize, count: usize) -> bool {
        if count > self.start || offset > self.len {
            return false;
        }
        self.storage
            .copy_within(self.start..self.start + offset, self.start - count);
        self.start -= count;
        self.len += count;
        self.storage[self.start + offset..self.start + offset + count].fill(0);
        self.offload.shift(count as i16);
        true
    }

    /// Takes `count` bytes out at `offset` by moving what stands before them back; `false`, and nothing
    /// changed, when there are not so many. The offload's offsets are kept true.
    pub fn remove(&mut self, offset: usize, count: usize) -> bool {
        if offset.saturating_add(count) > self.len {
            return false;
        }
        self.storage
            .copy_within(self.start..self.start + offset, self.start + count);
        self.start += count;
        self.len -= count;
        self.offload.shift(-(count as i16));
        true
    }

    /// Cuts the frame to its first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Grows or shrinks the frame to `len` bytes; new bytes are what the storage held.
    /// `false`, and nothing changed, when it does not fit.
    pub fn resize(&mut self, len: usize) -> bool {
        if self.start + len > self.storage.len() {
            return false;
        }
        self.len = len;
        true
    }
}

impl Default for FrameBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for FrameBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let shown = &self.bytes()[..self.len.min(64)];
        write!(
            f,
            "FrameBuf({} bytes, {:?}, {shown:02x?})",
            self.len, self.offload
        )
    }
}

/// A frame on its way through the core: a buffer and the port that it entered by.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The port that received the frame.
    pub ingress: PortId,
    /// The bytes and the offload; the gateway and NAT rewrite them in place.
    pub buf: &'a mut FrameBuf,
}

impl<'a> Frame<'a> {
    /// Joins a buffer and the port that filled it.
    pub fn new(ingress: PortId, buf: &'a mut FrameBuf) -> Self {
        Self { ingress, buf }
    }

    /// The frame, from destination MAC to last payload byte, without FCS.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.buf.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_moves_the_front_and_keeps_the_checksum_start() {
        let mut buf = FrameBuf::from_bytes(b"abcdefgh");
        buf.offload = Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 6,
            ..Offload::NONE
        };
        assert!(buf.insert(4, 2));
        assert_eq!(buf.bytes(), b"abcd\0\0efgh");
        assert_eq!(buf.offload.csum_start, 8);
        assert!(!buf.insert(4, HEADROOM), "headroom is partly used");
        assert_eq!(buf.bytes(), b"abcd\0\0efgh");
        assert!(!buf.insert(11, 1), "beyond the end");
    }

    #[test]
    fn what_was_inserted_is_removed_again_and_nothing_beyond_the_end() {
        let mut buf = FrameBuf::from_bytes(b"abcdefgh");
        buf.offload = Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 6,
            hdr_len: 8,
            ..Offload::NONE
        };
        let before = buf.offload;
        assert!(buf.insert(4, 2) && buf.remove(4, 2));
        assert_eq!((buf.bytes(), buf.offload), (&b"abcdefgh"[..], before));
        assert!(!buf.remove(7, 2), "beyond the end");
        assert!(buf.remove(0, 3));
        assert_eq!(buf.bytes(), b"defgh");
        assert_eq!((buf.offload.csum_start, buf.offload.hdr_len), (3, 5));
    }

    #[test]
    fn prefix_is_refused_when_the_headroom_is_used_up() {
        let mut buf = FrameBuf::from_bytes(b"abc");
        assert_eq!(buf.with_prefix(10).map(|b| b.len()), Some(13));
        assert!(buf.insert(0, HEADROOM));
        assert!(buf.with_prefix(1).is_none());
        assert_eq!(buf.with_prefix(0).map(|b| b.len()), Some(3 + HEADROOM));
    }

    #[test]
    fn copies_and_sizes_stop_at_the_capacity() {
        let mut buf = FrameBuf::with_capacity(4);
        assert!(!buf.takes_any() && FrameBuf::new().takes_any());
        buf.copy_from(b"abcdef", Offload::NONE);
        assert_eq!(buf.bytes(), b"abcd");
        assert!(!buf.resize(5));
        assert!(buf.resize(2));
        assert_eq!(buf.bytes(), b"ab");
        buf.clear();
        assert!(buf.is_empty());
    }
}
