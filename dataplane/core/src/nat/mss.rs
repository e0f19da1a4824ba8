//! The maximum segment size that TCP ends offer each other, held to the MTU of the way between them.
//!
//! Where errors are lost on the way (a "black hole"), path MTU discovery never ends, and a smaller
//! offer in the SYN is the only help. An option, because it changes what the ends said.

use crate::checksum::{self, Change, L4Checksum};
use crate::frame::Frame;
use crate::headers::{Headers, L4Kind, TcpFlags, array_at};

/// The option's number and size (RFC 9293 section 3.2).
const MSS_OPTION: [u8; 2] = [2, 4];
/// Bytes of the TCP header without options.
const TCP_SIZE: usize = 20;
/// Options of one header: 40 bytes of them, one each.
const OPTIONS_MAX: usize = 40;

/// Lowers the segment size that a SYN offers to what fits into `mtu`; headers count without their
/// options (RFC 6691).
#[cold]
pub(crate) fn clamp(frame: &mut Frame<'_>, headers: &Headers, mtu: u16) {
    let (Ok(l4), Some(ip)) = (headers.l4, headers.ip()) else {
        return;
    };
    let L4Kind::Tcp {
        flags, header_size, ..
    } = l4.kind
    else {
        return;
    };
    let headers_size = if ip.src.is_ipv6() { 60 } else { 40 };
    let end = l4.offset + usize::from(header_size);
    let fits = mtu.saturating_sub(headers_size);
    if !flags.has(TcpFlags::SYN) {
        return;
    }
    let Some((at, offered)) = find(frame.bytes(), l4.offset + TCP_SIZE, end) else {
        return;
    };
    if offered <= fits {
        return;
    }
    // Sums are of words counted from the header's beginning, and the option may stand across two.
    let odd = (at - l4.offset) % 2;
    let word_at = at - odd;
    let words = |bytes: &[u8]| {
        let second = if odd == 1 { word_at + 2 } else { word_at };
        [word_at, second].map(|at| u16::from_be_bytes(array_at(bytes, at).unwrap_or_default()))
    };
    let before = words(frame.bytes());
    frame.buf.bytes_mut()[at..at + 2].copy_from_slice(&fits.to_be_bytes());
    let after = words(frame.bytes());
    let first = Change::NONE.word(before[0], after[0]);
    let change = match odd {
        0 => first,
        _ => first.word(before[1], after[1]),
    };
    let offload = frame.buf.offload;
    let bytes = frame.buf.bytes_mut();
    checksum::update_l4(
        bytes,
        &offload,
        l4.offset,
        L4Checksum::Tcp,
        Change::NONE,
        change,
    );
}

/// Where the segment size stands among the options from `at` to `end`, and its value.
fn find(bytes: &[u8], mut at: usize, end: usize) -> Option<(usize, u16)> {
    let options = bytes.get(..end)?;
    for _ in 0..OPTIONS_MAX {
        match array_at::<2>(options, at) {
            Some(MSS_OPTION) => {
                let value = array_at::<2>(options, at + 2)?;
                return Some((at + 2, u16::from_be_bytes(value)));
            }
            // The end of the options.
            Some([0, _]) | None => return None,
            // Padding.
            Some([1, _]) => at += 1,
            Some([_, size]) => at += usize::from(size.max(2)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PortId;
    use crate::frame::FrameBuf;
    use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement};

    fn syn(options: &[TcpOptionElement], v6: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(1_000, 80, 7, 512);
        header.syn = true;
        header.set_options(options).unwrap();
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 {
            ethernet.ipv6([1; 16], [2; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
        };
        let mut bytes = Vec::new();
        ip.tcp_header(header).write(&mut bytes, b"").unwrap();
        bytes
    }

    fn clamped(bytes: &[u8], mtu: u16) -> Vec<u8> {
        let mut buf = FrameBuf::from_bytes(bytes);
        let headers = Headers::parse(bytes).unwrap();
        clamp(&mut Frame::new(PortId(1), &mut buf), &headers, mtu);
        buf.bytes().to_vec()
    }

    #[test]
    fn the_offer_is_lowered_wherever_it_stands_and_the_sum_stays_right() {
        use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted};
        for padding in 0..4 {
            for v6 in [false, true] {
                let mut options = vec![Noop; padding];
                options.push(MaximumSegmentSize(1_460));
                options.push(SelectiveAcknowledgementPermitted);
                let got = clamped(&syn(&options, v6), 1_280);
                let wanted = if v6 { 1_220 } else { 1_240 };
                options[padding] = MaximumSegmentSize(wanted);
                assert_eq!(got, syn(&options, v6), "{padding} {v6}");
                SlicedPacket::from_ethernet(&got).unwrap();
            }
        }
    }

    #[test]
    fn a_smaller_offer_none_or_nonsense_stays() {
        use TcpOptionElement::{MaximumSegmentSize, Noop};
        let fits = syn(&[MaximumSegmentSize(1_240)], false);
        assert_eq!(clamped(&fits, 1_280), fits);
        let none = syn(&[Noop], false);
        assert_eq!(clamped(&none, 1_280), none);
        let mut nonsense = syn(&[MaximumSegmentSize(1_460)], false);
        for size in 0..=255 {
            nonsense[34 + 20..34 + 22].copy_from_slice(&[9, size]);
            assert_eq!(clamped(&nonsense, 1_280), nonsense);
        }
        let mut data = syn(&[MaximumSegmentSize(1_460)], false);
        data[34 + 13] = 0x10;
        assert_eq!(clamped(&data, 1_280), data, "not a SYN");
    }
}
