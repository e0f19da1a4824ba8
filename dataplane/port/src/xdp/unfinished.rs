//! Checksums that are still to do, in frames that say nothing of it.
//!
//! A sandbox leaves the checksum of TCP and UDP to its device. Of a frame that XDP redirects, the
//! kernel's note about that is lost; what remains is the field itself, in which the kernel has put
//! the sum of the pseudo-header. So a field that holds exactly this sum is taken for unfinished.
//!
//! A finished checksum may hold the same value, once in 65,536 times. Finishing it again computes the
//! very value that is there, as the sum over the rest is its complement: nothing is harmed. What
//! this cannot tell apart is a frame that was damaged on a cable so that the damaged field equals the
//! sum, which doubles the chance, of one in 65,536, that a checksum misses damage at all.
//!
//! Limits: TCP and UDP in what [`Headers`] reads. The inner packet of a tunnel that a sandbox makes
//! is not looked at, nor is SCTP.

use dataplane_core::checksum::{L4Checksum, Sum};
use dataplane_core::frame::Offload;
use dataplane_core::headers::{Headers, L4Kind};

/// What is left to do of a frame, as its bytes tell.
#[inline]
pub fn find(bytes: &[u8]) -> Offload {
    unfinished(bytes).unwrap_or(Offload::NONE)
}

fn unfinished(bytes: &[u8]) -> Option<Offload> {
    let mut headers = Headers::NONE;
    headers.read(bytes).ok()?;
    let ip = headers.ip()?;
    let l4 = headers.l4.ok()?;
    let kind = match l4.kind {
        L4Kind::Tcp { .. } => L4Checksum::Tcp,
        L4Kind::Udp { .. } => L4Checksum::Udp,
        L4Kind::Echo { .. } | L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. } => return None,
    };
    // The kernel finishes a packet before it cuts it into fragments.
    if ip.fragment.is_some() {
        return None;
    }
    let at = l4.offset + kind.offset();
    let field = u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
    let l4_size = (ip.total_size as usize).checked_sub(l4.offset - headers.l3_offset)?;
    let sum = Sum::pseudo_header(ip.src, ip.dst, ip.protocol, l4_size);
    if field == 0 || field != sum.folded() {
        return None;
    }
    Some(Offload {
        flags: Offload::NEEDS_CSUM,
        csum_start: u16::try_from(l4.offset).ok()?,
        csum_offset: kind.offset() as u16,
        ..Offload::NONE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Packet, PacketKind};
    use dataplane_core::checksum;
    use dataplane_core::frame::FrameBuf;

    const TAGGED: &[(u16, u16)] = &[(0x88a8, 100), (0x8100, 10)];

    #[test]
    fn a_field_that_holds_the_sum_of_the_pseudo_header_is_unfinished() {
        for kind in PacketKind::ALL {
            for tags in [&[][..], TAGGED] {
                let packet = Packet::new(kind, tags, 300);
                assert_eq!(find(&packet.partial()), packet.checksum_offload());
                assert_eq!(find(&packet.complete()), Offload::NONE, "{kind:?}");
            }
        }
    }

    #[test]
    fn neither_no_checksum_nor_half_a_packet_is_unfinished() {
        let packet = Packet::new(PacketKind::UdpV4, &[], 30);
        let mut without = packet.partial();
        without[40..42].fill(0);
        assert_eq!(find(&without), Offload::NONE);
        let whole = packet.partial();
        for len in 0..whole.len() {
            assert_eq!(find(&whole[..len]), Offload::NONE, "{len} bytes");
        }
        let mut fragment = packet.partial();
        fragment[20] |= 0x20;
        assert_eq!(find(&fragment), Offload::NONE, "more fragments follow");
    }

    /// The payload is chosen so that the finished checksum is the sum of the pseudo-header.
    #[test]
    fn a_finished_checksum_that_looks_unfinished_is_finished_to_itself() {
        for kind in PacketKind::ALL {
            let packet = Packet::new(kind, &[], 64);
            let (mut bytes, partial) = (packet.complete(), packet.partial());
            let offload = packet.checksum_offload();
            let field = usize::from(offload.csum_start + offload.csum_offset);
            let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let (now, wanted) = (word(&bytes, field), word(&partial, field));
            // The last word makes up for what the field's change adds to the sum.
            let last = bytes.len() - 2;
            let sum = u32::from(word(&bytes, last)) + u32::from(now) + u32::from(!wanted);
            let sum = (sum & 0xffff) + (sum >> 16);
            let made_up = ((sum & 0xffff) + (sum >> 16)) as u16;
            bytes[last..].copy_from_slice(&made_up.to_be_bytes());
            bytes[field..field + 2].copy_from_slice(&wanted.to_be_bytes());

            let mut frame = FrameBuf::from_bytes(&bytes);
            frame.offload = find(&bytes);
            assert!(frame.offload.needs_checksum(), "{kind:?} looks unfinished");
            checksum::complete(&mut frame).unwrap();
            assert_eq!(frame.bytes(), bytes, "{kind:?}");
        }
    }
}
