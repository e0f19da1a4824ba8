//! Packets in pieces: cut as a sender cuts them, and put together as a receiver does.

use tests::wire;

/// Cuts a frame into fragments with `size` bytes of payload each.
pub fn cut(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    if frame[14] >> 4 == 4 {
        return wire::fragments(frame, id as u16, size);
    }
    let (head, payload) = frame.split_at(54);
    let count = payload.len().div_ceil(size);
    let piece = |(index, piece): (usize, &[u8])| {
        let place = (index * size) as u16 | u16::from(index + 1 < count);
        let mut fragment = head.to_vec();
        fragment.extend([head[20], 0]);
        fragment.extend(place.to_be_bytes());
        fragment.extend(id.to_be_bytes());
        fragment.extend(piece);
        fragment[18..20].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
        fragment[20] = 44;
        fragment
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Offset, whether more follow, and identification of a fragment.
pub fn place(fragment: &[u8]) -> (u16, bool, u32) {
    let word = |at: usize| u16::from_be_bytes([fragment[at], fragment[at + 1]]);
    if fragment[14] >> 4 == 4 {
        let flags = word(20);
        return ((flags & 0x1fff) * 8, flags & 0x2000 != 0, word(18).into());
    }
    let id = u32::from(word(58)) << 16 | u32::from(word(60));
    (word(56) & 0xfff8, word(56) & 1 != 0, id)
}

/// Puts the fragments of one packet together, in whatever order they came.
pub fn join(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut sorted = fragments.to_vec();
    sorted.sort_by_key(|fragment| place(fragment).0);
    let v4 = sorted[0][14] >> 4 == 4;
    let header_size = if v4 { 34 } else { 62 };
    let mut whole = sorted[0][..if v4 { 34 } else { 54 }].to_vec();
    let mut end = 0;
    for (index, fragment) in sorted.iter().enumerate() {
        let (offset, more, id) = place(fragment);
        assert_eq!(usize::from(offset), end, "no gap and no overlap");
        assert_eq!(more, index + 1 < sorted.len());
        assert_eq!(id, place(&sorted[0]).2, "one identification");
        assert_eq!(fragment[14 + 12..14 + 16], sorted[0][14 + 12..14 + 16]);
        whole.extend(&fragment[header_size..]);
        end += fragment.len() - header_size;
        wire::check_complete(fragment).unwrap();
    }
    if v4 {
        let total = (whole.len() - 14) as u16;
        whole[16..18].copy_from_slice(&total.to_be_bytes());
        whole[20..22].fill(0);
        wire::repair_ipv4(&mut whole);
    } else {
        whole[18..20].copy_from_slice(&(end as u16).to_be_bytes());
        whole[20] = sorted[0][54];
    }
    whole
}
