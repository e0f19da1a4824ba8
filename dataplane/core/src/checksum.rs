//! The Internet checksum: in full, incrementally, and the half-done form that offloads use.
//!
//! Three forms meet in a virtual switch. A *complete* field holds the complement of the sum over
//! pseudo-header and payload (RFC 1071). A *partial* field, announced by
//! [`Offload::needs_checksum`], holds the folded and **not** complemented sum of the pseudo-header
//! alone; whoever puts the frame on a wire adds the rest. And a UDP field of zero means that the
//! sender made no checksum (RFC 768). A rewrite must tell them apart: ports do not matter to a
//! partial field, nothing matters to an absent one.
//!
//! Incremental updates follow RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`, the one that is right
//! in the corner cases 0x0000 and 0xffff. The incremental result equals the full one bit for bit
//! as long as the summed data is not all zero, which a pseudo-header never is.
//!
//! Pure functions; no allocation.

use std::net::{IpAddr, Ipv4Addr};

use crate::frame::{FrameBuf, Offload};

/// Offset of the checksum field in a TCP header (RFC 9293 section 3.1).
pub const TCP_CHECKSUM_OFFSET: usize = 16;
/// Offset of the checksum field in a UDP header (RFC 768).
pub const UDP_CHECKSUM_OFFSET: usize = 6;
/// Offset of the checksum field in an ICMP or ICMPv6 header (RFC 792, RFC 4443 section 2.1).
pub const ICMP_CHECKSUM_OFFSET: usize = 2;
/// Offset of the checksum field in an IPv4 header (RFC 791 section 3.1).
pub const IPV4_CHECKSUM_OFFSET: usize = 10;

/// A one's-complement sum in the making (RFC 1071), in units of big-endian 16-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// The pseudo-header of RFC 9293 section 3.1 (IPv4) and RFC 8200 section 8.1 (IPv6): both
    /// addresses, the protocol and the length of the transport header and payload.
    #[inline]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, l4_size: usize) -> Self {
        Self::ZERO
            .add_ip(src)
            .add_ip(dst)
            .add_word(u16::from(protocol))
            .add(l4_size as u64)
    }

    /// Adds `bytes`, padded with a zero byte when their number is odd. Only the last piece of
    /// data may have an odd length.
    #[inline]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        // Summing wider words in the machine's own byte order and folding at the end gives the
        // same sum with its bytes swapped (RFC 1071 section 2 (B) and (C)).
        let (words, rest) = bytes.as_chunks::<4>();
        let mut native: u64 = 0;
        for word in words {
            native += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        native += u64::from(u32::from_ne_bytes(last));
        self.add_word(u16::from_be(fold(native)))
    }

    /// Adds one 16-bit word.
    #[inline]
    #[must_use]
    pub const fn add_word(self, word: u16) -> Self {
        self.add(word as u64)
    }

    /// Adds the words of an address.
    #[inline]
    #[must_use]
    pub fn add_ip(self, address: IpAddr) -> Self {
        self.add(u64::from(words_of(address)))
    }

    #[inline]
    #[must_use]
    const fn add(self, words: u64) -> Self {
        // At most a few dozen words of 33 bits are ever added: no overflow.
        Self(self.0 + words)
    }

    /// The sum folded to 16 bits, not complemented: what a partial checksum field holds.
    #[inline]
    pub const fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The complement of the folded sum: what a complete checksum field holds.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// What a rewrite changes in a sum: the words that go and the words that come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u32);

impl Change {
    /// Nothing changes.
    pub const NONE: Self = Self(0);

    /// A TTL, the upper half of its word, is lowered by one.
    pub const HOP: Self = Self::NONE.word(0x0100, 0);

    /// One 16-bit word is replaced.
    #[inline]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        // At most a few dozen words of 17 bits are ever added: no overflow.
        Self(self.0 + (!old) as u32 + new as u32)
    }

    /// An address is replaced by another of the same family.
    #[inline(always)]
    #[must_use]
    pub fn ip(self, old: IpAddr, new: IpAddr) -> Self {
        // Word by word, as equation 3 has it: the complements of the old ones, all at once.
        let words: u32 = if old.is_ipv4() { 2 } else { 8 };
        Self(self.0 + words * 0xffff - words_of(old) + words_of(new))
    }

    /// An address of IPv4 is replaced.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        self.long(old.to_bits(), new.to_bits())
    }

    /// A 32-bit field is replaced.
    #[inline]
    #[must_use]
    pub const fn long(self, old: u32, new: u32) -> Self {
        self.word((old >> 16) as u16, (new >> 16) as u16)
            .word(old as u16, new as u16)
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The complete checksum after the change (RFC 1624 equation 3).
    #[inline]
    pub const fn complete(self, checksum: u16) -> u16 {
        !fold_short(self.0 + (!checksum) as u32)
    }

    /// The partial checksum, a sum that is not complemented, after the change.
    #[inline]
    pub const fn partial(self, sum: u16) -> u16 {
        fold_short(self.0 + sum as u32)
    }

    /// The UDP checksum after the change: none stays none, and a computed zero is written as
    /// 0xffff, its other representation (RFC 768).
    #[inline]
    pub const fn udp(self, checksum: u16) -> u16 {
        match checksum {
            0 => 0,
            checksum => udp_form(self.complete(checksum)),
        }
    }
}

/// How the checksum of a transport header reacts to a rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, which sums no pseudo-header.
    Icmp,
    /// ICMPv6, which does.
    Icmpv6,
}

impl L4Checksum {
    /// Offset of the checksum field in the transport header.
    #[inline]
    pub const fn offset(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM_OFFSET,
            Self::Udp => UDP_CHECKSUM_OFFSET,
            Self::Icmp | Self::Icmpv6 => ICMP_CHECKSUM_OFFSET,
        }
    }

    /// The field's new value, after `addresses` changed in the pseudo-header and `header` in the
    /// transport header.
    #[inline(always)]
    pub const fn update(self, field: u16, addresses: Change, header: Change) -> u16 {
        match self {
            Self::Tcp | Self::Icmpv6 => addresses.and(header).complete(field),
            Self::Udp => addresses.and(header).udp(field),
            Self::Icmp => header.complete(field),
        }
    }

    /// The new value of a field that is partial.
    #[inline]
    pub const fn update_partial(self, field: u16, addresses: Change) -> u16 {
        match self {
            Self::Tcp | Self::Udp | Self::Icmpv6 => addresses.partial(field),
            Self::Icmp => field,
        }
    }
}

/// Whether `offload` says that the checksum field at `offset` into the transport header at
/// `l4_offset` is partial. Another position belongs to an inner packet of a tunnel, whose outer
/// checksum is complete.
#[inline]
pub const fn is_partial(offload: &Offload, l4_offset: usize, offset: usize) -> bool {
    offload.needs_checksum()
        && offload.csum_start as usize == l4_offset
        && offload.csum_offset as usize == offset
}

/// Updates the transport checksum at `l4_offset` of a frame after a rewrite, honouring what
/// `offload` says of it. A field beyond the end of `bytes` is left alone.
#[inline(always)]
pub fn update_l4(
    bytes: &mut [u8],
    offload: &Offload,
    l4_offset: usize,
    kind: L4Checksum,
    addresses: Change,
    header: Change,
) {
    let Some(field) = field_mut(bytes, l4_offset + kind.offset()) else {
        return;
    };
    let old = u16::from_be_bytes(*field);
    let new = if is_partial(offload, l4_offset, kind.offset()) {
        kind.update_partial(old, addresses)
    } else {
        kind.update(old, addresses, header)
    };
    *field = new.to_be_bytes();
}

/// The checksum of an IPv4 header whose checksum field holds anything.
pub fn ipv4_header(header: &[u8]) -> u16 {
    match header.split_at_checked(IPV4_CHECKSUM_OFFSET) {
        Some((before, rest)) => Sum::ZERO
            .add_bytes(before)
            .add_bytes(rest.get(2..).unwrap_or_default())
            .checksum(),
        None => Sum::ZERO.add_bytes(header).checksum(),
    }
}

/// Why a frame's checksum cannot be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame of {size} bytes has no checksum field at {at}")]
pub struct NoChecksumField {
    /// Where the offload says that the field is.
    pub at: usize,
    /// Bytes of frame.
    pub size: usize,
}

/// Completes a partial checksum in software, as the kernel's `skb_checksum_help` does: the sum
/// from `csum_start` to the end of the frame, pseudo-header included because the field holds it.
/// A frame that lacks nothing stays as it is.
///
/// # Errors
/// [`NoChecksumField`] when the offload points outside the frame; the frame is unchanged.
pub fn complete(buf: &mut FrameBuf) -> Result<(), NoChecksumField> {
    if !buf.offload.needs_checksum() {
        return Ok(());
    }
    let start = usize::from(buf.offload.csum_start);
    let offset = usize::from(buf.offload.csum_offset);
    complete_at(buf.bytes_mut(), start, offset)?;
    buf.offload.flags &= !Offload::NEEDS_CSUM;
    buf.offload.csum_start = 0;
    buf.offload.csum_offset = 0;
    Ok(())
}

/// Replaces the partial checksum at `start + offset` of `bytes` by the complete one.
///
/// # Errors
/// [`NoChecksumField`] when the field lies outside `bytes`.
pub fn complete_at(bytes: &mut [u8], start: usize, offset: usize) -> Result<(), NoChecksumField> {
    let missing = NoChecksumField {
        at: start + offset,
        size: bytes.len(),
    };
    let summed = bytes.get(start..).ok_or(missing)?;
    let checksum = Sum::ZERO.add_bytes(summed).checksum();
    let field = field_mut(bytes, start + offset).ok_or(missing)?;
    let checksum = match offset {
        UDP_CHECKSUM_OFFSET => udp_form(checksum),
        _ => checksum,
    };
    *field = checksum.to_be_bytes();
    Ok(())
}

/// A computed UDP checksum as it is written: zero would mean "none" (RFC 768).
#[inline]
pub const fn udp_form(checksum: u16) -> u16 {
    match checksum {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[inline]
fn field_mut(bytes: &mut [u8], at: usize) -> Option<&mut [u8; 2]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

/// The 16-bit words of an address, added up.
#[inline]
fn words_of(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => {
            let bits = v4.to_bits();
            (bits >> 16) + (bits & 0xffff)
        }
        IpAddr::V6(v6) => v6.segments().into_iter().map(u32::from).sum(),
    }
}

/// Folds the carries back in until 16 bits remain.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The same for the few words of an incremental update.
#[inline]
const fn fold_short(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The textbook definition: 16 bits at a time, carry at once.
    fn model(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            sum += u32::from(word);
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        sum as u16
    }

    /// Words that reach the corners 0x0000 and 0xffff often.
    fn word() -> impl Strategy<Value = u16> {
        prop_oneof![
            Just(0u16),
            Just(0xffff),
            Just(1),
            Just(0xfffe),
            any::<u16>()
        ]
    }

    fn address_pair() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        let v4 = (any::<u32>(), any::<u32>())
            .prop_map(|(a, b)| (IpAddr::V4(Ipv4Addr::from(a)), IpAddr::V4(Ipv4Addr::from(b))));
        let v6 = (any::<u128>(), any::<u128>())
            .prop_map(|(a, b)| (IpAddr::V6(Ipv6Addr::from(a)), IpAddr::V6(Ipv6Addr::from(b))));
        prop_oneof![v4, v6]
    }

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.add_bytes(&bytes).folded(), 0xddf2);
    }

    #[test]
    fn the_corner_of_rfc_1624_section_4_gives_zero_and_not_ffff() {
        // HC = 0xDD2F, m = 0x5555, m' = 0x3285: equation 3 gives 0x0000, equation 1 gave 0xFFFF.
        assert_eq!(Change::NONE.word(0x5555, 0x3285).complete(0xdd2f), 0x0000);
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent_and_zero_is_written_as_ffff() {
        assert_eq!(Change::NONE.word(1, 2).udp(0), 0);
        assert_eq!(Change::NONE.word(0x5555, 0x3285).udp(0xdd2f), 0xffff);
    }

    /// A datagram's checksum, from scratch: header and one word of payload.
    fn datagram(src: (IpAddr, u16), dst: (IpAddr, u16), payload: u16) -> u16 {
        let words = [src.1, dst.1, 10, payload];
        let bytes: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        let pseudo = Sum::pseudo_header(src.0, dst.0, 17, bytes.len());
        udp_form(pseudo.add_bytes(&bytes).checksum())
    }

    #[test]
    fn every_value_of_a_udp_checksum_survives_the_incremental_update() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let v4 = (ip("10.0.0.2"), ip("198.51.100.1"), ip("203.0.113.9"));
        let v6 = (ip("fd00::2"), ip("2001:db8::1"), ip("2001:db8:9::9"));
        // Ports that stay, that become larger and smaller, and words of the corners.
        let ports = [(50_000, 50_000), (53, 49_152), (0xffff, 1), (1, 0xffff)];
        for (inside, external, remote) in [v4, v6] {
            for (port, mapped) in ports {
                let change = Change::NONE.ip(inside, external);
                let change = change.and(Change::NONE.word(port, mapped));
                let back = Change::NONE.ip(external, inside);
                let back = back.and(Change::NONE.word(mapped, port));
                let mut met = vec![false; 65_536];
                for payload in 0..=u16::MAX {
                    let before = datagram((inside, port), (remote, 53), payload);
                    let after = datagram((external, mapped), (remote, 53), payload);
                    assert_eq!(change.udp(before), after, "{inside}:{port} {payload:#x}");
                    assert_eq!(back.udp(after), before, "{external}:{mapped} {payload:#x}");
                    met[usize::from(before)] = true;
                }
                // Every value but the one that says that there is none, and that one stays.
                assert!(!met[0] && met[1..].iter().all(|met| *met));
                assert_eq!((change.udp(0), back.udp(0)), (0, 0));
            }
        }
    }

    #[test]
    fn an_offload_that_points_outside_the_frame_changes_nothing() {
        let mut buf = FrameBuf::from_bytes(&[7; 40]);
        for (start, offset) in [(40, 0), (39, 0), (20, 19), (65_535, 65_535)] {
            buf.offload = Offload {
                flags: Offload::NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..Offload::NONE
            };
            assert!(complete(&mut buf).is_err(), "{start}+{offset}");
            assert_eq!(buf.bytes(), &[7; 40]);
            assert!(buf.offload.needs_checksum());
        }
    }

    #[test]
    fn only_the_field_that_the_offload_names_is_partial() {
        let inner = |csum_offset| Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 84,
            csum_offset,
            ..Offload::NONE
        };
        assert!(is_partial(&inner(16), 84, TCP_CHECKSUM_OFFSET));
        for csum_offset in [6, 16] {
            let outer = is_partial(&inner(csum_offset), 34, UDP_CHECKSUM_OFFSET);
            assert!(!outer, "the outer header of a tunnel is complete");
        }
        assert!(!is_partial(&inner(16), 84, UDP_CHECKSUM_OFFSET));
        assert!(!is_partial(&Offload::NONE, 84, TCP_CHECKSUM_OFFSET));
    }

    proptest! {
        #[test]
        fn the_sum_equals_the_textbook(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let folded = Sum::ZERO.add_bytes(&bytes).folded();
            prop_assert_eq!(folded % 0xffff, model(&bytes) % 0xffff);
            prop_assert_eq!(folded == 0, bytes.iter().all(|b| *b == 0));
        }

        #[test]
        fn incremental_equals_full(
            words in prop::collection::vec(word(), 2..40),
            at in any::<prop::sample::Index>(),
            new in word(),
        ) {
            let bytes = |words: &[u16]| -> Vec<u8> {
                words.iter().flat_map(|w| w.to_be_bytes()).collect()
            };
            let at = at.index(words.len());
            let before = Sum::ZERO.add_bytes(&bytes(&words));
            let mut changed = words.clone();
            changed[at] = new;
            prop_assume!(words.iter().any(|w| *w != 0) && changed.iter().any(|w| *w != 0));
            let after = Sum::ZERO.add_bytes(&bytes(&changed));
            let change = Change::NONE.word(words[at], new);
            prop_assert_eq!(change.complete(before.checksum()), after.checksum());
            prop_assert_eq!(change.partial(before.folded()), after.folded());
        }

        #[test]
        fn an_address_change_equals_the_full_pseudo_header(
            (old, new) in address_pair(),
            (other, _) in address_pair(),
            size in 8usize..65_000,
        ) {
            let before = Sum::pseudo_header(old, other, 17, size);
            let after = Sum::pseudo_header(new, other, 17, size);
            let change = Change::NONE.ip(old, new);
            prop_assert_eq!(change.partial(before.folded()), after.folded());
            prop_assert_eq!(change.complete(before.checksum()), after.checksum());
        }

        #[test]
        fn completing_gives_what_etherparse_computes(
            src in any::<[u8; 4]>(),
            dst in any::<[u8; 4]>(),
            ports in any::<(u16, u16)>(),
            udp in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, 64);
            let mut bytes = Vec::new();
            let (kind, protocol) = if udp {
                builder.udp(ports.0, ports.1).write(&mut bytes, &payload).unwrap();
                (L4Checksum::Udp, 17)
            } else {
                builder.tcp(ports.0, ports.1, 1, 2).write(&mut bytes, &payload).unwrap();
                (L4Checksum::Tcp, 6)
            };
            let wanted = bytes.clone();
            let pseudo = Sum::pseudo_header(src.into(), dst.into(), protocol, bytes.len() - 34);
            let field = 34 + kind.offset();
            bytes[field..field + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
            let mut buf = FrameBuf::from_bytes(&bytes);
            buf.offload = Offload {
                flags: Offload::NEEDS_CSUM,
                csum_start: 34,
                csum_offset: kind.offset() as u16,
                ..Offload::NONE
            };
            complete(&mut buf).unwrap();
            prop_assert_eq!(buf.bytes(), &wanted[..]);
            prop_assert_eq!(buf.offload, Offload::NONE);
            prop_assert_eq!(ipv4_header(&wanted[14..34]), u16::from_be_bytes([wanted[24], wanted[25]]));
        }
    }
}
