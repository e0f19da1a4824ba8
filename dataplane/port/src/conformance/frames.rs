//! Frames that the suite sends: numbered ones, and packets whose checksum may be to do.

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

/// What a [`Packet`] is, as far as offloads differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over IPv4.
    UdpV4,
    /// UDP over IPv6.
    UdpV6,
}

impl PacketKind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::TcpV4, Self::TcpV6, Self::UdpV4, Self::UdpV6];

    const fn is_tcp(self) -> bool {
        matches!(self, Self::TcpV4 | Self::TcpV6)
    }

    const fn is_v4(self) -> bool {
        matches!(self, Self::TcpV4 | Self::UdpV4)
    }

    /// Bytes of the IP header.
    const fn l3_size(self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    /// Bytes of the TCP or UDP header.
    const fn l4_size(self) -> usize {
        if self.is_tcp() { 20 } else { 8 }
    }

    /// Where the checksum is in it.
    const fn checksum_offset(self) -> usize {
        if self.is_tcp() { 16 } else { 6 }
    }

    const fn protocol(self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }

    /// `VIRTIO_NET_HDR_GSO_*`.
    const fn gso_type(self) -> u8 {
        match self {
            Self::TcpV4 => 1,
            Self::TcpV6 => 4,
            Self::UdpV4 | Self::UdpV6 => 5,
        }
    }
}

/// A TCP or UDP packet, of which the checksum can be wanted in either state.
pub struct Packet {
    kind: PacketKind,
    bytes: Vec<u8>,
    l3: usize,
}

impl Packet {
    /// A packet with `payload` bytes behind `tags`.
    pub fn new(kind: PacketKind, tags: &[(u16, u16)], payload: usize) -> Self {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b];
        for (tpid, tci) in tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(if kind.is_v4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        let l3 = bytes.len();
        let l4_size = u16::try_from(kind.l4_size() + payload).unwrap_or(u16::MAX);
        if kind.is_v4() {
            bytes.extend([0x45, 0]);
            bytes.extend((20 + l4_size).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, kind.protocol(), 0, 0]);
            bytes.extend([192, 0, 2, 1, 192, 0, 2, 2]);
            let header_sum = !fold(sum(&bytes[l3..l3 + 20]));
            bytes[l3 + 10..l3 + 12].copy_from_slice(&header_sum.to_be_bytes());
        } else {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(l4_size.to_be_bytes());
            bytes.extend([kind.protocol(), 64]);
            for last in [1, 2] {
                bytes.extend([
                    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
                ]);
            }
        }
        bytes.extend([0x13, 0x88, 0, 80]);
        if kind.is_tcp() {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            bytes.extend(l4_size.to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend((0..payload).map(|i| (i % 251) as u8));
        Self { kind, bytes, l3 }
    }

    /// The frame as on a wire.
    pub fn complete(&self) -> Vec<u8> {
        let segment = sum(&self.bytes[self.l4()..]);
        self.with_checksum(!fold(self.pseudo_header() + segment))
    }

    /// The frame with only the pseudo-header's sum in the checksum field.
    pub fn partial(&self) -> Vec<u8> {
        self.with_checksum(fold(self.pseudo_header()))
    }

    /// What describes [`Packet::partial`].
    pub fn checksum_offload(&self) -> Offload {
        Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: self.l4() as u16,
            csum_offset: self.kind.checksum_offset() as u16,
            ..Offload::NONE
        }
    }

    /// What describes [`Packet::partial`] as a frame to be cut into segments.
    pub fn gso_offload(&self, gso_size: u16) -> Offload {
        Offload {
            gso_type: self.kind.gso_type(),
            gso_size,
            hdr_len: (self.l4() + self.kind.l4_size()) as u16,
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

    fn l4(&self) -> usize {
        self.l3 + self.kind.l3_size()
    }

    fn with_checksum(&self, checksum: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let field = self.l4() + self.kind.checksum_offset();
        bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self) -> u32 {
        let addresses = if self.kind.is_v4() { 12..20 } else { 8..40 };
        let addresses = &self.bytes[self.l3 + addresses.start..self.l3 + addresses.end];
        let l4_size = (self.bytes.len() - self.l4()) as u32;
        sum(addresses) + u32::from(self.kind.protocol()) + l4_size
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
    fn checksums_of_the_test_packets_are_those_of_rfc_1071() {
        for kind in PacketKind::ALL {
            let whole = Packet {
                bytes: Packet::new(kind, &[], 33).complete(),
                kind,
                l3: 14,
            };
            let l4 = whole.l4();
            let total = fold(whole.pseudo_header() + sum(&whole.bytes[l4..]));
            assert_eq!(total, 0xffff, "{kind:?}");
            if kind.is_v4() {
                assert_eq!(fold(sum(&whole.bytes[14..l4])), 0xffff, "{kind:?}");
            }
        }
    }
}
