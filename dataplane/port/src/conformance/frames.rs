//! Frames that the suite sends: numbered ones, and TCP packets whose checksum may be to do.

use dataplane_core::frame::Offload;

/// A frame of `size` bytes that carries a number where it is large enough, of the EtherType that
/// IEEE 802 leaves to experiments.
pub fn numbered(size: usize, number: u32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(size);
    frame.extend([0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    while frame.len() < size {
        frame.push((frame.len() % 251) as u8);
    }
    frame.truncate(size);
    frame
}

/// The number of a frame made by [`numbered`].
pub(super) fn number_of(frame: &[u8]) -> u32 {
    match frame.get(14..18) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        Some(_) | None => panic!("no numbered frame: {frame:02x?}"),
    }
}

/// Untagged, 802.1Q, and 802.1ad around 802.1Q: (TPID, TCI) from the outside in.
pub(super) const TAGGINGS: [&[(u16, u16)]; 3] = [
    &[],
    &[(0x8100, 0x600a)],
    &[(0x88a8, 0x0064), (0x8100, 0x000a)],
];

/// A TCP segment over IPv4, of which the checksum can be wanted in either state.
pub struct Packet {
    bytes: Vec<u8>,
    l3: usize,
}

impl Packet {
    /// A segment with `payload` bytes behind `tags`.
    pub fn tcp(tags: &[(u16, u16)], payload: usize) -> Self {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b];
        for (tpid, tci) in tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend([0x08, 0x00]);
        let l3 = bytes.len();
        let total = u16::try_from(40 + payload).unwrap_or(u16::MAX);
        bytes.extend([0x45, 0]);
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let header_sum = !fold(sum(&bytes[l3..l3 + 20]));
        bytes[l3 + 10..l3 + 12].copy_from_slice(&header_sum.to_be_bytes());
        bytes.extend([
            0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff,
        ]);
        bytes.extend([0, 0, 0, 0]);
        bytes.extend((0..payload).map(|i| (i % 251) as u8));
        Self { bytes, l3 }
    }

    /// The frame as on a wire.
    pub fn complete(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let segment = &bytes[self.l3 + 20..];
        let checksum = !fold(self.pseudo_header() + sum(segment));
        let field = self.l3 + 36;
        bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// The frame with only the pseudo-header's sum in the checksum field.
    pub fn partial(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let field = self.l3 + 36;
        bytes[field..field + 2].copy_from_slice(&fold(self.pseudo_header()).to_be_bytes());
        bytes
    }

    /// What describes [`Packet::partial`].
    pub fn checksum_offload(&self) -> Offload {
        Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: (self.l3 + 20) as u16,
            csum_offset: 16,
            ..Offload::NONE
        }
    }

    /// What describes [`Packet::partial`] as a frame to be cut into segments.
    pub fn gso_offload(&self, gso_size: u16) -> Offload {
        Offload {
            gso_type: 1,
            gso_size,
            hdr_len: (self.l3 + 40) as u16,
            ..self.checksum_offload()
        }
    }

    /// Asserts that `bytes` and `offload` mean this packet, its checksum done or to do.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_equivalent(&self, bytes: &[u8], offload: Offload) {
        if !offload.needs_checksum() {
            assert_eq!(bytes, self.complete(), "complete");
            return;
        }
        assert_eq!(bytes, self.partial(), "unfinished");
        let expected = self.checksum_offload();
        assert_eq!(offload.csum_start, expected.csum_start, "after the tags");
        assert_eq!(offload.csum_offset, expected.csum_offset);
    }

    fn pseudo_header(&self) -> u32 {
        let segment_size = (self.bytes.len() - self.l3 - 20) as u32;
        sum(&self.bytes[self.l3 + 12..self.l3 + 20]) + 6 + segment_size
    }
}

/// The sum of RFC 1071, not folded; frames are too short for it to overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum()
}

/// The sum folded to 16 bits, not complemented.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_test_packet_is_that_of_rfc_1071() {
        let complete = Packet::tcp(&[], 33).complete();
        let whole = Packet {
            bytes: complete,
            l3: 14,
        };
        assert_eq!(
            fold(whole.pseudo_header() + sum(&whole.bytes[34..])),
            0xffff
        );
        assert_eq!(fold(sum(&whole.bytes[14..34])), 0xffff);
    }
}
