//! Segmentation in software, for a port that cannot take GSO frames.
//!
//! A GSO frame is one set of headers over a payload of many segments, with a partial checksum
//! (see [`Offload`]). [`Segmenter`] cuts it the way the kernel's `tcp_gso_segment` and
//! `__udp_gso_segment` do: every segment gets the headers, its own lengths, IPv4 identification,
//! sequence number and complete checksums; FIN and PSH stay on the last segment, CWR on the
//! first (RFC 3168 section 6.1.2). VLAN tags and IPv6 extension headers are carried over.
//!
//! One scratch buffer, no allocation per frame. Limit: [`SEGMENTS_MAX`] segments of one frame.

use crate::checksum::{self, Change, IPV4_CHECKSUM_OFFSET, Sum};
use crate::checksum::{TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET};
use crate::cut;
use crate::frame::{FrameBuf, GsoKind, Offload};
use crate::headers::{Headers, Ip, L4Kind, TcpFlags, protocol};

/// Segments of one frame: 64 KiB in pieces of 48 bytes, the smallest MSS that Linux sends with
/// (`TCP_MIN_SND_MSS`). A sandbox cannot turn one frame of its own into more work than that.
pub const SEGMENTS_MAX: usize = 65_535_usize.div_ceil(48);

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER_SIZE: usize = 8;
/// Bytes of an IPv6 header without extensions (RFC 8200 section 3).
const IPV6_HEADER_SIZE: usize = 40;
/// Congestion window reduced (RFC 3168 section 6.1.2).
const CWR: TcpFlags = TcpFlags(0x80);
/// Push (RFC 9293 section 3.1).
const PSH: TcpFlags = TcpFlags(0x08);

/// Why a frame cannot be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GsoError {
    /// A kind that no segmenter here knows, such as the obsolete UFO.
    #[error("GSO type {0} cannot be segmented")]
    Unsupported(u8),
    /// The headers are not those of the announced kind, cannot be read, or are a fragment's.
    #[error("the headers are not what the GSO type announces")]
    Headers,
    /// A segment size of zero, or so small that [`SEGMENTS_MAX`] would be exceeded.
    #[error("a segment size of {0} bytes would make too many segments")]
    SegmentSize(u16),
    /// The unfinished checksum of a frame that is no GSO frame lies outside of it.
    #[error(transparent)]
    Checksum(#[from] checksum::NoChecksumField),
}

/// Bytes of IP packet that a segment has at most, or that the whole packet has when it is no GSO
/// packet: what is compared with an MTU. `None` when `headers` hold no IP packet.
#[inline(always)]
pub fn packet_size(offload: &Offload, headers: &Headers) -> Option<usize> {
    let ip = headers.ip()?;
    let whole = ip.total_size as usize;
    match offload.gso() {
        None => Some(whole),
        Some(kind) => Some(segment_size_max(kind, offload, headers, whole)),
    }
}

/// The same of a packet of `whole` bytes that is a GSO packet.
#[inline(never)]
fn segment_size_max(kind: GsoKind, offload: &Offload, headers: &Headers, whole: usize) -> usize {
    match kind {
        GsoKind::Fragments => return whole.min(usize::from(offload.gso_size)),
        GsoKind::UdpFragments => return whole.min(usize::from(offload.hdr_len)),
        GsoKind::TcpV4 | GsoKind::TcpV6 | GsoKind::UdpL4 | GsoKind::Other(_) => {}
    }
    let Ok(l4) = headers.l4 else {
        return whole;
    };
    let l4_header = match l4.kind {
        L4Kind::Tcp { header_size, .. } => usize::from(header_size),
        L4Kind::Udp { .. } => UDP_HEADER_SIZE,
        L4Kind::Echo { .. } | L4Kind::IcmpError { .. } | L4Kind::IcmpOther { .. } => return whole,
    };
    if offload.gso_size == 0 {
        return whole;
    }
    let headers_size = l4.offset - headers.l3_offset + l4_header;
    whole.min(headers_size + usize::from(offload.gso_size))
}

/// Segments that a frame is cut into; 1 for a frame that is no GSO frame.
///
/// # Errors
/// [`GsoError`], as [`Segmenter::segment`] would give.
pub fn segment_count(frame: &FrameBuf) -> Result<usize, GsoError> {
    match frame.offload.gso() {
        None => Ok(1),
        Some(GsoKind::Fragments | GsoKind::UdpFragments) => Segmenter::new().segment(frame, |_| {}),
        Some(kind) => Ok(Plan::new(frame, kind)?.count),
    }
}

/// Cuts GSO frames into segments, one at a time in a buffer of its own.
#[derive(Debug)]
pub struct Segmenter {
    scratch: FrameBuf,
    /// A packet whose fragments are made in the other.
    whole: FrameBuf,
}

impl Segmenter {
    /// A segmenter with a buffer for the largest frame.
    pub fn new() -> Self {
        Self {
            scratch: FrameBuf::new(),
            whole: FrameBuf::new(),
        }
    }

    /// Hands the segments of `frame` to `emit`, in order, and returns their number. A frame that
    /// is no GSO frame is handed over as one, with its checksum completed. The buffer belongs to
    /// `emit` until it returns.
    ///
    /// # Errors
    /// [`GsoError`]; nothing was emitted.
    pub fn segment(
        &mut self,
        frame: &FrameBuf,
        mut emit: impl FnMut(&mut FrameBuf),
    ) -> Result<usize, GsoError> {
        let Some(kind) = frame.offload.gso() else {
            self.scratch.copy_from(frame.bytes(), frame.offload);
            checksum::complete(&mut self.scratch)?;
            emit(&mut self.scratch);
            return Ok(1);
        };
        match kind {
            GsoKind::Fragments => {
                self.whole.copy_from(frame.bytes(), frame.offload);
                // The transport checksum covers the whole packet, so it is completed before.
                checksum::complete(&mut self.whole)?;
                return cut::cut(&self.whole, frame.offload.gso_size, &mut self.scratch, emit);
            }
            GsoKind::UdpFragments => return self.cut_datagrams(frame, emit),
            GsoKind::TcpV4 | GsoKind::TcpV6 | GsoKind::UdpL4 | GsoKind::Other(_) => {}
        }
        let plan = Plan::new(frame, kind)?;
        for index in 0..plan.count {
            plan.make(frame, index, &mut self.scratch)?;
            emit(&mut self.scratch);
        }
        Ok(plan.count)
    }

    /// Segments a frame into datagrams, and cuts those that exceed the MTU into fragments.
    fn cut_datagrams(
        &mut self,
        frame: &FrameBuf,
        mut emit: impl FnMut(&mut FrameBuf),
    ) -> Result<usize, GsoError> {
        let mtu = frame.offload.hdr_len;
        let plan = Plan::new(frame, GsoKind::UdpL4)?;
        // All are as large as the first, but for the last.
        let datagram_size = plan.header_size - plan.l3 + plan.gso_size;
        if cut::count(&plan.ip, datagram_size, mtu)? * plan.count > SEGMENTS_MAX {
            return Err(GsoError::SegmentSize(mtu));
        }
        let mut count = 0;
        for index in 0..plan.count {
            plan.make(frame, index, &mut self.whole)?;
            if self.whole.len() - plan.l3 <= usize::from(mtu) {
                emit(&mut self.whole);
                count += 1;
            } else {
                count += cut::cut(&self.whole, mtu, &mut self.scratch, &mut emit)?;
            }
        }
        Ok(count)
    }
}

impl Default for Segmenter {
    fn default() -> Self {
        Self::new()
    }
}

/// How a frame is cut.
#[derive(Debug)]
struct Plan {
    ip: Ip,
    l3: usize,
    l4: usize,
    /// Bytes from the start of the frame to the payload.
    header_size: usize,
    /// End of the payload in the frame; what follows is padding.
    end: usize,
    gso_size: usize,
    count: usize,
    transport: Transport,
    /// The sender asked for no UDP checksum.
    without_checksum: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Plan {
    fn new(frame: &FrameBuf, kind: GsoKind) -> Result<Self, GsoError> {
        let headers = Headers::parse(frame.bytes()).map_err(|_| GsoError::Headers)?;
        let ip = *headers.ip().ok_or(GsoError::Headers)?;
        let l4 = headers.l4.map_err(|_| GsoError::Headers)?;
        let v6 = ip.src.is_ipv6();
        let (transport, l4_header) = match (kind, l4.kind) {
            (GsoKind::TcpV4, L4Kind::Tcp { header_size, .. }) if !v6 => {
                (Transport::Tcp, usize::from(header_size))
            }
            (GsoKind::TcpV6, L4Kind::Tcp { header_size, .. }) if v6 => {
                (Transport::Tcp, usize::from(header_size))
            }
            (GsoKind::UdpL4, L4Kind::Udp { .. }) => (Transport::Udp, UDP_HEADER_SIZE),
            (GsoKind::Other(other), _) => return Err(GsoError::Unsupported(other)),
            (
                GsoKind::TcpV4
                | GsoKind::TcpV6
                | GsoKind::UdpL4
                | GsoKind::Fragments
                | GsoKind::UdpFragments,
                _,
            ) => return Err(GsoError::Headers),
        };
        if ip.fragment.is_some() {
            return Err(GsoError::Headers);
        }
        let gso_size = usize::from(frame.offload.gso_size);
        let header_size = l4.offset + l4_header;
        let end = headers.l3_offset + ip.total_size as usize;
        let payload = end.checked_sub(header_size).ok_or(GsoError::Headers)?;
        let refused = GsoError::SegmentSize(frame.offload.gso_size);
        if gso_size == 0 {
            return Err(refused);
        }
        let count = payload.div_ceil(gso_size).max(1);
        if count > SEGMENTS_MAX {
            return Err(refused);
        }
        let field = frame.bytes().get(l4.offset + UDP_CHECKSUM_OFFSET..);
        let absent = field.is_some_and(|field| field.starts_with(&[0, 0]));
        Ok(Self {
            ip,
            l3: headers.l3_offset,
            l4: l4.offset,
            header_size,
            end,
            gso_size,
            count,
            transport,
            without_checksum: transport == Transport::Udp
                && absent
                && !frame.offload.needs_checksum(),
        })
    }

    /// Makes a segment of `frame` in `into`.
    fn make(&self, frame: &FrameBuf, index: usize, into: &mut FrameBuf) -> Result<(), GsoError> {
        let (offset, payload) = self.piece(frame.bytes(), index);
        into.copy_from(&frame.bytes()[..self.header_size], Offload::NONE);
        if !into.resize(self.header_size + payload.len()) {
            // A segment is no larger than its frame, which a buffer of the same size held.
            return Err(GsoError::Headers);
        }
        let bytes = into.bytes_mut();
        bytes[self.header_size..].copy_from_slice(payload);
        self.finish(bytes, index, offset);
        Ok(())
    }

    /// Payload of a segment, and its offset in the payload of the frame.
    fn piece<'a>(&self, bytes: &'a [u8], index: usize) -> (usize, &'a [u8]) {
        let offset = index * self.gso_size;
        let from = self.header_size + offset;
        (offset, &bytes[from..self.end.min(from + self.gso_size)])
    }

    /// Makes the headers of a segment its own. `bytes` hold the frame's headers and the segment's
    /// payload, so every field written here is inside.
    fn finish(&self, bytes: &mut [u8], index: usize, offset: usize) {
        self.finish_ip(bytes, index);
        let checksum_at = match self.transport {
            Transport::Tcp => {
                self.finish_tcp(bytes, index, offset);
                self.l4 + TCP_CHECKSUM_OFFSET
            }
            Transport::Udp => {
                let size = (bytes.len() - self.l4) as u16;
                put(bytes, self.l4 + 4, size.to_be_bytes());
                if self.without_checksum {
                    return;
                }
                self.l4 + UDP_CHECKSUM_OFFSET
            }
        };
        put(bytes, checksum_at, [0, 0]);
        let l4 = &bytes[self.l4..];
        let number = match self.transport {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        };
        let sum = Sum::pseudo_header(self.ip.src, self.ip.dst, number, l4.len()).add_bytes(l4);
        let checksum = match self.transport {
            Transport::Tcp => sum.checksum(),
            Transport::Udp => checksum::udp_form(sum.checksum()),
        };
        put(bytes, checksum_at, checksum.to_be_bytes());
    }

    fn finish_ip(&self, bytes: &mut [u8], index: usize) {
        let packet_size = bytes.len() - self.l3;
        if self.ip.src.is_ipv6() {
            let size = (packet_size - IPV6_HEADER_SIZE) as u16;
            put(bytes, self.l3 + 4, size.to_be_bytes());
            return;
        }
        let (size_before, id_before) = (get(bytes, self.l3 + 2), get(bytes, self.l3 + 4));
        let (size, id) = (packet_size as u16, id_before.wrapping_add(index as u16));
        let change = Change::NONE.word(size_before, size).word(id_before, id);
        let sum = change.complete(get(bytes, self.l3 + IPV4_CHECKSUM_OFFSET));
        put(bytes, self.l3 + 2, size.to_be_bytes());
        put(bytes, self.l3 + 4, id.to_be_bytes());
        put(bytes, self.l3 + IPV4_CHECKSUM_OFFSET, sum.to_be_bytes());
    }

    fn finish_tcp(&self, bytes: &mut [u8], index: usize, offset: usize) {
        let [high, low] = [get(bytes, self.l4 + 4), get(bytes, self.l4 + 6)];
        let sequence = (u32::from(high) << 16 | u32::from(low)).wrapping_add(offset as u32);
        put(bytes, self.l4 + 4, sequence.to_be_bytes());
        let flags = &mut bytes[self.l4 + 13];
        if index + 1 != self.count {
            *flags &= !(TcpFlags::FIN.0 | PSH.0);
        }
        if index != 0 {
            *flags &= !CWR.0;
        }
    }
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, VlanId};
    use proptest::prelude::*;

    const SRC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const DST: [u8; 6] = [2, 0, 0, 0, 0, 2];

    #[derive(Clone, Copy, Debug)]
    struct Shape {
        v6: bool,
        udp: bool,
        tags: usize,
        options: bool,
        /// FIN, PSH, CWR.
        flags: (bool, bool, bool),
        id: u16,
        sequence: u32,
    }

    /// The packet as its sender would have made it for one segment, by etherparse.
    fn packet(shape: &Shape, sequence: u32, id: u16, payload: &[u8]) -> Vec<u8> {
        let ip = if shape.v6 {
            IpHeaders::Ipv6(
                Ipv6Header {
                    hop_limit: 64,
                    source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                    destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
                    ..Default::default()
                },
                Default::default(),
            )
        } else {
            IpHeaders::Ipv4(
                Ipv4Header {
                    time_to_live: 64,
                    identification: id,
                    source: [10, 0, 0, 1],
                    destination: [10, 0, 0, 2],
                    ..Default::default()
                },
                Default::default(),
            )
        };
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2(SRC, DST);
        let builder = match shape.tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(VlanId::try_new(7).unwrap()).ip(ip),
            _ => builder
                .double_vlan(VlanId::try_new(8).unwrap(), VlanId::try_new(7).unwrap())
                .ip(ip),
        };
        if shape.udp {
            builder
                .udp(1_000, 2_000)
                .write(&mut bytes, payload)
                .unwrap();
            return bytes;
        }
        let mut tcp = TcpHeader::new(1_000, 2_000, sequence, 512);
        (tcp.ack, tcp.fin, tcp.psh, tcp.cwr) = (true, shape.flags.0, shape.flags.1, shape.flags.2);
        if shape.options {
            tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
                .unwrap();
        }
        builder.tcp_header(tcp).write(&mut bytes, payload).unwrap();
        bytes
    }

    /// A GSO frame as a kernel hands it over: partial checksum, everything else in place.
    fn gso_frame(shape: &Shape, payload: &[u8], gso_size: u16) -> FrameBuf {
        let bytes = packet(shape, shape.sequence, shape.id, payload);
        let headers = Headers::parse(&bytes).unwrap();
        let (ip, l4) = (*headers.ip().unwrap(), headers.l4.unwrap());
        let (gso_type, offset, number) = match (shape.udp, shape.v6) {
            (true, _) => (5, UDP_CHECKSUM_OFFSET, 17),
            (false, false) => (1, TCP_CHECKSUM_OFFSET, 6),
            (false, true) => (4, TCP_CHECKSUM_OFFSET, 6),
        };
        let mut buf = FrameBuf::from_bytes(&bytes);
        let sum = Sum::pseudo_header(ip.src, ip.dst, number, bytes.len() - l4.offset);
        let field = l4.offset + offset;
        buf.bytes_mut()[field..field + 2].copy_from_slice(&sum.folded().to_be_bytes());
        buf.offload = Offload {
            flags: Offload::NEEDS_CSUM,
            gso_type: gso_type | if shape.flags.2 { Offload::GSO_ECN } else { 0 },
            hdr_len: 0,
            gso_size,
            csum_start: l4.offset as u16,
            csum_offset: offset as u16,
        };
        buf
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let flags = any::<(bool, bool, bool)>();
        (
            any::<(bool, bool, bool)>(),
            0usize..3,
            flags,
            any::<(u16, u32)>(),
        )
            .prop_map(|((v6, udp, options), tags, flags, (id, sequence))| Shape {
                v6,
                udp,
                tags,
                options,
                flags,
                id,
                sequence,
            })
    }

    proptest! {
        #[test]
        fn every_segment_is_what_its_sender_would_have_sent(
            shape in shape(),
            size in 0usize..9_000,
            gso_size in 100u16..1_500,
            padding in 0usize..3,
        ) {
            let payload: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
            let mut buf = gso_frame(&shape, &payload, gso_size);
            let whole = buf.len();
            prop_assert!(buf.resize(whole + padding));
            let mut wanted = Vec::new();
            let mut pieces: Vec<&[u8]> = payload.chunks(usize::from(gso_size)).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            let last = pieces.len() - 1;
            for (index, piece) in pieces.iter().enumerate() {
                let (fin, psh, cwr) = shape.flags;
                let own = Shape {
                    flags: (fin && index == last, psh && index == last, cwr && index == 0),
                    ..shape
                };
                let sequence = shape.sequence.wrapping_add((index * usize::from(gso_size)) as u32);
                wanted.push(packet(&own, sequence, shape.id.wrapping_add(index as u16), piece));
            }
            let mut got = Vec::new();
            let count = Segmenter::new().segment(&buf, |segment| {
                assert_eq!(segment.offload, Offload::NONE);
                got.push(segment.bytes().to_vec());
            });
            prop_assert_eq!(count, Ok(wanted.len()));
            prop_assert_eq!(segment_count(&buf), count);
            let headers = Headers::parse(buf.bytes()).unwrap();
            let largest = got.iter().map(|bytes| bytes.len() - headers.l3_offset).max();
            prop_assert_eq!(packet_size(&buf.offload, &headers), largest);
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn no_frame_and_no_offload_makes_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            shape in shape(),
            cut in 0usize..200,
            (flags, gso_type, gso_size, start, offset) in any::<(u8, u8, u16, u16, u16)>(),
            real in any::<bool>(),
        ) {
            if real {
                let size = bytes.len();
                bytes = packet(&shape, 1, 2, &bytes[..cut.min(size)]);
                bytes.truncate(bytes.len().saturating_sub(cut / 8));
            }
            let mut buf = FrameBuf::from_bytes(&bytes);
            buf.offload = Offload {
                flags,
                gso_type: gso_type % 8,
                hdr_len: 0,
                gso_size,
                csum_start: start % 256,
                csum_offset: offset % 32,
            };
            let mut emitted = 0;
            let result = Segmenter::new().segment(&buf, |_| emitted += 1);
            prop_assert_eq!(result.unwrap_or(0), emitted);
        }
    }

    const PLAIN: Shape = Shape {
        v6: false,
        udp: false,
        tags: 0,
        options: false,
        flags: (false, false, false),
        id: 1,
        sequence: 1,
    };

    fn refusal(buf: &FrameBuf) -> GsoError {
        Segmenter::new()
            .segment(buf, |_| panic!("a refused frame has no segments"))
            .unwrap_err()
    }

    #[test]
    fn what_cannot_be_segmented_is_refused_with_its_reason() {
        let mut buf = gso_frame(&PLAIN, &[1; 3_000], 1_000);
        buf.offload.gso_type = 3;
        assert_eq!(refusal(&buf), GsoError::Unsupported(3));
        buf.offload.gso_type = 4;
        assert_eq!(
            refusal(&buf),
            GsoError::Headers,
            "TCPv6 announced over IPv4"
        );
        buf.offload.gso_type = 5;
        assert_eq!(refusal(&buf), GsoError::Headers, "UDP announced over TCP");
        let mut buf = gso_frame(&PLAIN, &[1; 3_000], 0);
        assert_eq!(refusal(&buf), GsoError::SegmentSize(0));
        buf.offload.gso_size = 1;
        assert_eq!(refusal(&buf), GsoError::SegmentSize(1));
        buf.bytes_mut()[14 + 6] = 0x20;
        assert_eq!(refusal(&buf), GsoError::Headers, "a fragment");
    }

    #[test]
    fn a_datagram_without_checksum_has_segments_without() {
        let shape = Shape { udp: true, ..PLAIN };
        let mut buf = gso_frame(&shape, &[1; 3_000], 1_000);
        buf.bytes_mut()[14 + 20 + 6..14 + 20 + 8].fill(0);
        buf.offload.flags = 0;
        let mut count = 0;
        let segmented = Segmenter::new().segment(&buf, |segment| {
            assert_eq!(segment.bytes()[14 + 20 + 6..14 + 20 + 8], [0, 0]);
            count += 1;
        });
        assert_eq!(segmented, Ok(count));
        assert_eq!(count, 3);
    }

    #[test]
    fn a_frame_that_is_whole_is_completed_and_handed_over() {
        let wanted = packet(&PLAIN, 1, 1, b"whole");
        let mut buf = gso_frame(&PLAIN, b"whole", 0);
        buf.offload.gso_type = 0;
        let mut got = Vec::new();
        let count = Segmenter::new().segment(&buf, |segment| got.push(segment.bytes().to_vec()));
        assert_eq!((count, got), (Ok(1), vec![wanted]));
    }
}
