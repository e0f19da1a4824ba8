//! IPv4 packets cut into fragments by the gateway (RFC 791 section 3.2, RFC 4787 REQ-13 a).
//!
//! A packet that exceeds the MTU of its way and may be fragmented leaves the core whole, marked with
//! the size of its fragments; it is cut on its way into the device, as a GSO frame is. A GSO frame of
//! datagrams is first segmented, and each datagram that exceeds the MTU is cut by itself. IPv6 packets
//! are never cut on their way (RFC 8200 section 5).

use crate::checksum::{self, IPV4_CHECKSUM_OFFSET};
use crate::frame::{FrameBuf, GsoKind, Offload};
use crate::gso::{GsoError, SEGMENTS_MAX};
use crate::headers::{Headers, Ip, array_at};

/// "More fragments" in the word of flags and offset.
const MORE: u16 = 0x2000;
/// Bytes of an IPv4 header without options.
const IPV4_SIZE: usize = 20;
/// The bit of an option's type that makes it a part of every fragment (RFC 791 section 3.1).
const COPIED: u8 = 0x80;

/// Marks a packet or each datagram of a UDP GSO packet to be cut into fragments of at most `mtu` bytes,
/// or a TCP GSO packet to be cut into segments of that size. `false`, and nothing changed, for one
/// that may not or cannot be.
pub(crate) fn mark(buf: &mut FrameBuf, ip: &Ip, size: usize, mtu: u16) -> bool {
    if ip.dont_fragment || usize::from(mtu) < usize::from(ip.header_size) + 8 {
        return false;
    }
    match buf.offload.gso() {
        None | Some(GsoKind::Fragments) => {
            buf.offload.gso_type = Offload::FRAGMENTS;
            buf.offload.gso_size = mtu;
            true
        }
        // The size of the datagrams is their receiver's, too.
        Some(GsoKind::UdpL4 | GsoKind::UdpFragments) => {
            buf.offload.gso_type = Offload::UDP_FRAGMENTS;
            buf.offload.hdr_len = mtu;
            true
        }
        // Its sender leaves the size of segments to the device: smaller ones are as good.
        Some(GsoKind::TcpV4) => {
            let excess = size.saturating_sub(usize::from(mtu));
            match usize::from(buf.offload.gso_size).checked_sub(excess) {
                Some(left @ 1..) => {
                    buf.offload.gso_size = left as u16;
                    true
                }
                Some(0) | None => false,
            }
        }
        Some(GsoKind::TcpV6 | GsoKind::Other(_)) => false,
    }
}

/// Fragments of at most `mtu` bytes that a packet of `size` bytes with the header `ip` is cut into.
///
/// # Errors
/// [`GsoError::SegmentSize`], when it may not be cut, cannot be, or only into too many.
pub(crate) fn count(ip: &Ip, size: usize, mtu: u16) -> Result<usize, GsoError> {
    let header_size = usize::from(ip.header_size);
    let room = room(ip, mtu);
    if ip.dont_fragment || room == 0 {
        return Err(GsoError::SegmentSize(mtu));
    }
    let count = size.saturating_sub(header_size).div_ceil(room).max(1);
    (count <= SEGMENTS_MAX)
        .then_some(count)
        .ok_or(GsoError::SegmentSize(mtu))
}

/// Bytes of payload that a fragment has at most.
fn room(ip: &Ip, mtu: u16) -> usize {
    usize::from(mtu).saturating_sub(usize::from(ip.header_size)) / 8 * 8
}

/// Hands the fragments of `whole`, whose checksum is complete, to `emit`, in order, and returns their
/// number. `piece` is scratch.
///
/// # Errors
/// [`GsoError`]; nothing was emitted.
pub(crate) fn cut(
    whole: &FrameBuf,
    mtu: u16,
    piece: &mut FrameBuf,
    mut emit: impl FnMut(&mut FrameBuf),
) -> Result<usize, GsoError> {
    let headers = Headers::parse(whole.bytes()).map_err(|_| GsoError::Headers)?;
    let ip = *headers.ip().ok_or(GsoError::Headers)?;
    let count = count(&ip, ip.total_size as usize, mtu)?;
    let (header_size, room) = (usize::from(ip.header_size), room(&ip, mtu));
    let (l3, end) = (
        headers.l3_offset,
        headers.l3_offset + ip.total_size as usize,
    );
    let (head, rest) = whole.bytes()[..end].split_at(l3 + header_size);
    let base = ip.fragment.map_or(0, |fragment| fragment.offset);
    let more_behind = ip.fragment.is_some_and(|fragment| fragment.more);
    for index in 0..count {
        let from = index * room;
        let payload = &rest[from..rest.len().min(from + room)];
        piece.copy_from(head, Offload::NONE);
        if !piece.resize(head.len() + payload.len()) {
            return Err(GsoError::Headers);
        }
        let bytes = piece.bytes_mut();
        bytes[head.len()..].copy_from_slice(payload);
        let more = index + 1 < count || more_behind;
        let place = (usize::from(base) + from) as u16 / 8;
        let place = if more { place | MORE } else { place };
        finish(&mut bytes[l3..], header_size, place, index);
        emit(piece);
    }
    Ok(count)
}

/// Makes the IP header of a fragment its own.
fn finish(packet: &mut [u8], header_size: usize, place: u16, index: usize) {
    let size = packet.len() as u16;
    packet[2..4].copy_from_slice(&size.to_be_bytes());
    packet[6..8].copy_from_slice(&place.to_be_bytes());
    if index > 0 {
        blank_options(&mut packet[IPV4_SIZE..header_size]);
    }
    let sum = checksum::ipv4_header(&packet[..header_size]);
    packet[IPV4_CHECKSUM_OFFSET..IPV4_CHECKSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Replaces the options that only the first fragment has by "no operation", so that all headers have
/// one size.
fn blank_options(options: &mut [u8]) {
    let mut at = 0;
    while at < options.len() {
        let size = match options[at] {
            0 => return,
            1 => 1,
            _ => usize::from(array_at::<1>(options, at + 1).map_or(0, |[size]| size)).max(2),
        };
        let end = options.len().min(at + size);
        if options[at] & COPIED == 0 {
            options[at..end].fill(1);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gso::{Segmenter, packet_size, segment_count};
    use etherparse::PacketBuilder;

    fn datagram(size: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..size).map(|n| (n / 3) as u8).collect();
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut bytes, &payload)
            .unwrap();
        bytes[20] = 0;
        let sum = checksum::ipv4_header(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn pieces(bytes: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, GsoError> {
        let mut frame = FrameBuf::from_bytes(bytes);
        frame.offload.gso_type = Offload::FRAGMENTS;
        frame.offload.gso_size = mtu;
        let mut got = Vec::new();
        Segmenter::new().segment(&frame, |piece| got.push(piece.bytes().to_vec()))?;
        Ok(got)
    }

    #[test]
    fn the_pieces_of_a_packet_are_within_the_mtu_and_make_it_up() {
        for (size, mtu) in [(3_000, 1_280), (3_000, 68), (1_253, 1_280), (65_000, 1_500)] {
            let whole = datagram(size);
            let got = pieces(&whole, mtu).unwrap();
            let mut payload: Vec<u8> = Vec::new();
            for (index, piece) in got.iter().enumerate() {
                assert!(piece.len() <= 14 + usize::from(mtu));
                let headers = Headers::parse(piece).unwrap();
                let fragment = headers.ip().unwrap().fragment;
                if got.len() > 1 {
                    let fragment = fragment.unwrap();
                    assert_eq!(usize::from(fragment.offset), payload.len());
                    assert_eq!(fragment.more, index + 1 < got.len());
                }
                assert_eq!(
                    checksum::ipv4_header(&piece[14..34]).to_be_bytes(),
                    piece[24..26]
                );
                payload.extend(&piece[34..]);
            }
            assert_eq!(payload, whole[34..]);
        }
    }

    /// A UDP GSO frame whose datagrams have `gso_size` bytes, marked for `mtu`.
    fn marked_datagrams(size: usize, gso_size: u16, mtu: u16) -> Option<FrameBuf> {
        let mut frame = FrameBuf::from_bytes(&datagram(size));
        frame.offload = Offload {
            gso_type: 5,
            gso_size,
            ..Offload::NONE
        };
        let headers = Headers::parse(frame.bytes()).unwrap();
        let ip = *headers.ip().unwrap();
        let largest = packet_size(&frame.offload, &headers).unwrap();
        assert_eq!(largest, 28 + usize::from(gso_size));
        mark(&mut frame, &ip, largest, mtu).then_some(frame)
    }

    #[test]
    fn each_datagram_of_a_gso_frame_is_cut_by_itself() {
        let whole = datagram(4_000);
        let frame = marked_datagrams(4_000, 1_400, 1_280).unwrap();
        let headers = Headers::parse(frame.bytes()).unwrap();
        assert_eq!(packet_size(&frame.offload, &headers), Some(1_280));
        let mut datagrams: Vec<(u16, Vec<u8>)> = Vec::new();
        let mut sizes = Vec::new();
        let count = Segmenter::new().segment(&frame, |piece| {
            assert_eq!(piece.offload, Offload::NONE);
            let bytes = piece.bytes();
            let ip = *Headers::parse(bytes).unwrap().ip().unwrap();
            let id = u16::from_be_bytes([bytes[18], bytes[19]]);
            assert_eq!(
                checksum::ipv4_header(&bytes[14..34]).to_be_bytes(),
                bytes[24..26]
            );
            sizes.push(ip.total_size);
            let offset = ip.fragment.map_or(0, |fragment| fragment.offset);
            if offset == 0 {
                datagrams.push((id, bytes[34..].to_vec()));
            } else {
                let (first_id, datagram) = datagrams.last_mut().unwrap();
                assert_eq!((id, usize::from(offset)), (*first_id, datagram.len()));
                datagram.extend(&bytes[34..]);
            }
        });
        // The last one fits, and is no fragment.
        assert_eq!(sizes, [1_276, 172, 1_276, 172, 1_228]);
        assert_eq!((count, segment_count(&frame)), (Ok(5), Ok(5)));
        let mut payload: Vec<u8> = Vec::new();
        for (index, (id, datagram)) in datagrams.iter().enumerate() {
            assert_eq!(usize::from(*id), index);
            let size = u16::from_be_bytes([datagram[4], datagram[5]]);
            assert_eq!(usize::from(size), datagram.len());
            let src = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
            let dst = std::net::Ipv4Addr::new(10, 0, 0, 2).into();
            let sum = checksum::Sum::pseudo_header(src, dst, 17, datagram.len());
            assert_eq!(sum.add_bytes(datagram).folded(), 0xffff);
            payload.extend(&datagram[8..]);
        }
        assert_eq!(payload, whole[42..]);
    }

    #[test]
    fn datagrams_that_would_make_too_many_fragments_are_refused() {
        let frame = marked_datagrams(60_000, 49, 68).unwrap();
        assert_eq!(segment_count(&frame), Err(GsoError::SegmentSize(68)));
        assert!(marked_datagrams(4_000, 1_400, 27).is_none());
    }

    #[test]
    fn a_fragment_is_cut_into_smaller_ones_in_its_place() {
        let mut whole = datagram(2_000);
        whole[20..22].copy_from_slice(&(MORE | 100).to_be_bytes());
        let got = pieces(&whole, 1_000).unwrap();
        let places: Vec<_> = got
            .iter()
            .map(|piece| {
                Headers::parse(piece)
                    .unwrap()
                    .ip()
                    .unwrap()
                    .fragment
                    .unwrap()
            })
            .map(|fragment| (fragment.offset, fragment.more))
            .collect();
        assert_eq!(places, [(800, true), (1_776, true), (2_752, true)]);
    }

    #[test]
    fn options_of_the_first_fragment_alone_are_blanked() {
        let mut whole = datagram(200);
        // Security (copied) and record route (not), 12 bytes together.
        let options = [0x82, 4, 9, 9, 7, 7, 4, 0, 0, 0, 0, 0];
        whole.splice(34..34, options);
        whole[14] = 0x48;
        let total = (whole.len() - 14) as u16;
        whole[16..18].copy_from_slice(&total.to_be_bytes());
        let got = pieces(&whole, 100).unwrap();
        assert_eq!(got[0][34..46], options);
        assert_eq!(got[1][34..46], [0x82, 4, 9, 9, 1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn what_may_not_be_cut_is_refused() {
        let mut whole = datagram(3_000);
        whole[20] = 0x40;
        assert_eq!(pieces(&whole, 1_280), Err(GsoError::SegmentSize(1_280)));
        whole[20] = 0;
        assert_eq!(pieces(&whole, 27), Err(GsoError::SegmentSize(27)));
    }
}
