//! `struct virtio_net_hdr` (linux/virtio_net.h) on the wire between kernel and us.
//!
//! TAP and AF_PACKET put these [`VNET_HEADER_SIZE`] bytes in front of every frame, in the byte
//! order of the machine (virtio 1.2 section 5.1.6, legacy interface). What the kernel says is
//! checked once, here: behind this border an [`Offload`] fits its frame.

use dataplane_core::frame::{GsoKind, Offload};
use dataplane_core::headers::ETHERNET_SIZE;

/// Bytes of the header without `num_buffers`, which only mergeable receive buffers need.
pub const VNET_HEADER_SIZE: usize = 10;

/// The header as the kernel reads it.
#[inline]
pub fn encode(offload: Offload) -> [u8; VNET_HEADER_SIZE] {
    let [hdr_len_0, hdr_len_1] = offload.hdr_len.to_ne_bytes();
    let [gso_size_0, gso_size_1] = offload.gso_size.to_ne_bytes();
    let [start_0, start_1] = offload.csum_start.to_ne_bytes();
    let [offset_0, offset_1] = offload.csum_offset.to_ne_bytes();
    [
        offload.flags,
        offload.gso_type,
        hdr_len_0,
        hdr_len_1,
        gso_size_0,
        gso_size_1,
        start_0,
        start_1,
        offset_0,
        offset_1,
    ]
}

/// The header as the kernel wrote it, unchecked.
#[inline]
pub fn decode(header: &[u8; VNET_HEADER_SIZE]) -> Offload {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Offload {
        flags: header[0],
        gso_type: header[1],
        hdr_len: field(2),
        gso_size: field(4),
        csum_start: field(6),
        csum_offset: field(8),
    }
}

/// `offload` reduced to what can be true of a frame of `frame_size` bytes.
///
/// A checksum field outside the frame, a GSO kind that nobody can segment and a segment size of
/// zero are removed rather than passed on: the next kernel would refuse the frame, or we would
/// write outside of it. What is left is the frame as its bytes stand.
#[inline]
pub fn sanitise(offload: Offload, frame_size: usize) -> Offload {
    // The common case first: a complete frame, or one that fits.
    let mut clean = Offload {
        flags: offload.flags & (Offload::NEEDS_CSUM | Offload::DATA_VALID),
        ..offload
    };
    if clean.needs_checksum() {
        let field_end = usize::from(clean.csum_start) + usize::from(clean.csum_offset) + 2;
        if usize::from(clean.csum_start) < ETHERNET_SIZE || field_end > frame_size {
            clean.flags &= !Offload::NEEDS_CSUM;
        }
    }
    if !clean.needs_checksum() {
        clean.csum_start = 0;
        clean.csum_offset = 0;
    }
    let segmentable = match clean.gso() {
        Some(GsoKind::TcpV4 | GsoKind::TcpV6 | GsoKind::UdpL4) => {
            clean.gso_size > 0 && usize::from(clean.gso_size) < frame_size
        }
        Some(GsoKind::Fragments | GsoKind::UdpFragments | GsoKind::Other(_)) | None => false,
    };
    if !segmentable {
        clean.gso_type = 0;
        clean.gso_size = 0;
    }
    clean.hdr_len = clean
        .hdr_len
        .min(u16::try_from(frame_size).unwrap_or(u16::MAX));
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSO: Offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
    };

    #[test]
    fn header_round_trips() {
        assert_eq!(decode(&encode(TSO)), TSO);
        assert_eq!(encode(Offload::NONE), [0; VNET_HEADER_SIZE]);
    }

    #[test]
    fn true_offload_is_kept_verbatim() {
        assert_eq!(sanitise(TSO, 3_000), TSO);
        assert_eq!(sanitise(Offload::NONE, 14), Offload::NONE);
    }

    #[test]
    fn checksum_field_outside_the_frame_is_forgotten() {
        let last = sanitise(TSO, 52);
        assert!(last.needs_checksum(), "34 + 16 + 2 still fits");
        assert!(!sanitise(TSO, 51).needs_checksum());
        let in_mac = Offload {
            csum_start: 13,
            ..TSO
        };
        assert!(!sanitise(in_mac, 3_000).needs_checksum());
        let huge = Offload {
            csum_start: u16::MAX,
            csum_offset: u16::MAX,
            ..TSO
        };
        assert!(!sanitise(huge, 65_000).needs_checksum());
    }

    #[test]
    fn unknown_gso_kinds_and_empty_segments_are_forgotten() {
        for gso_type in [2u8, 3, 6, 0x20, 0x7f] {
            let clean = sanitise(Offload { gso_type, ..TSO }, 3_000);
            assert_eq!((clean.gso(), clean.gso_size), (None, 0), "{gso_type}");
            assert!(clean.needs_checksum());
        }
        assert_eq!(sanitise(Offload { gso_size: 0, ..TSO }, 3_000).gso_type, 0);
        let ecn = Offload {
            gso_type: 1 | Offload::GSO_ECN,
            ..TSO
        };
        assert_eq!(sanitise(ecn, 3_000), ecn);
    }
}
