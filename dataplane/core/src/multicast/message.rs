//! IGMP and MLD messages, read at fixed offsets.
//!
//! A message is read whole before any of it is believed: RFC 4541 section 2.1.1 (4) forbids to use
//! one whose checksum or lengths are wrong, and to flood it. Every version says one of four things:
//! that somebody listens to a group, that it no longer does, who still does (a query), or that a
//! multicast router is there (a PIM hello). Source lists of IGMPv3 and MLDv2 are looked through for
//! their lengths only: a group that is wanted from some sources is wanted (RFC 3376 section 7.3.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::frame::Frame;
use crate::headers::{Headers, Ip, array_at, protocol};
use crate::time::Duration;

/// Types of IGMP (RFC 2236 section 2.1, RFC 3376 section 4).
pub(super) mod igmp {
    pub const QUERY: u8 = 0x11;
    pub const REPORT_V1: u8 = 0x12;
    pub const REPORT_V2: u8 = 0x16;
    pub const LEAVE: u8 = 0x17;
    pub const REPORT_V3: u8 = 0x22;
    /// Bytes of a message before version 3.
    pub const SIZE: usize = 8;
    /// Bytes of a query of version 3 without sources.
    pub const QUERY_V3_SIZE: usize = 12;
}

/// Types of MLD (RFC 2710 section 3.1, RFC 3810 section 5).
pub(super) mod mld {
    pub const QUERY: u8 = 130;
    pub const REPORT_V1: u8 = 131;
    pub const DONE: u8 = 132;
    pub const REPORT_V2: u8 = 143;
    /// Bytes of a message of version 1.
    pub const SIZE: usize = 24;
    /// Bytes of a query of version 2 without sources.
    pub const QUERY_V2_SIZE: usize = 28;
}

/// All systems and all nodes, whom general queries are sent to.
pub(super) const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All PIM routers (RFC 7761 section 4.3.1).
const PIM_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 13);
/// Version 2, type 0: hello (RFC 7761 section 4.9).
const PIM_HELLO: u8 = 0x20;

/// Bytes of a report of IGMPv3 or MLDv2 before its records.
const REPORT_SIZE: usize = 8;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// Somebody listens to the group.
    Report(IpAddr),
    /// Somebody listens to the group no more.
    Leave(IpAddr),
    /// Of several groups, one or the other.
    Records(Records<'a>),
    /// A querier asks.
    Query(Query),
    /// A multicast router is there.
    Router,
}

/// A querier asks who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Query {
    /// Who asks.
    pub from: IpAddr,
    /// To one group; `None` to any.
    pub group: Option<IpAddr>,
    /// Listeners answer within this time.
    pub response_max: Duration,
    /// Whether timers are to be left alone: it is about single sources, or its sender has told
    /// others to (RFC 3376 section 4.1.5).
    pub leaves_timers: bool,
}

/// What a record of a report says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is listened to.
    Join,
    /// It is not.
    Leave,
    /// Neither: sources are blocked, which a listener of any source ignores (RFC 3376 section
    /// 7.3.2), or the type of the record is not known (section 4.2.12).
    Nothing,
}

/// The records of a report, whose lengths are known to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    /// Bytes of an address.
    width: usize,
}

/// A message that is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the message of a multicast frame; `None` when it has none.
///
/// # Errors
/// [`Malformed`].
pub(super) fn read<'a>(
    headers: &Headers,
    frame: &'a Frame<'_>,
    ip: &Ip,
) -> Result<Option<Message<'a>>, Malformed> {
    let bytes = frame.bytes();
    let l3 = headers.l3_offset;
    let end = l3 + ip.total_size as usize;
    let (Some(packet), start) = (bytes.get(l3..end), usize::from(ip.header_size)) else {
        return Ok(None);
    };
    match (ip.src, ip.dst, ip.protocol) {
        (IpAddr::V4(from), IpAddr::V4(to), protocol::IGMP) => {
            let whole = ip.fragment.is_none() && is_whole(packet, start);
            let message = packet.get(start..).filter(|_| whole).ok_or(Malformed)?;
            read_igmp(message, from, to)
        }
        (_, IpAddr::V4(PIM_ROUTERS), protocol::PIM) => {
            let hello = packet.get(start) == Some(&PIM_HELLO) && is_sound(packet, start);
            Ok(hello.then_some(Message::Router))
        }
        (IpAddr::V6(from), IpAddr::V6(to), protocol::ICMPV6) if is_alerting(packet) => {
            let message = packet.get(start..).ok_or(Malformed)?;
            let kinds = [mld::QUERY, mld::REPORT_V1, mld::DONE, mld::REPORT_V2];
            if !message.first().is_some_and(|kind| kinds.contains(kind)) {
                return Ok(None);
            }
            // A checksum that is left to the device cannot be wrong yet.
            let sum = Sum::pseudo_header(ip.src, ip.dst, protocol::ICMPV6, message.len());
            let right =
                frame.buf.offload.needs_checksum() || sum.add_bytes(message).checksum() == 0;
            // RFC 3810 sections 5.1.14 and 5.2.13: it has not crossed a router.
            if ip.ttl != 1 || ip.fragment.is_some() || !right {
                return Err(Malformed);
            }
            read_mld(message, from, to)
        }
        _ => Ok(None),
    }
}

/// Whether the header and the payload of an IPv4 packet have the checksums that they should.
fn is_whole(packet: &[u8], header_size: usize) -> bool {
    let payload = packet.get(header_size..).unwrap_or_default();
    is_sound(packet, header_size) && Sum::ZERO.add_bytes(payload).checksum() == 0
}

/// Whether the header of an IPv4 packet has the checksum that it should.
fn is_sound(packet: &[u8], header_size: usize) -> bool {
    let header = packet.get(..header_size).unwrap_or_default();
    Sum::ZERO.add_bytes(header).checksum() == 0
}

/// Whether an IPv6 packet has hop-by-hop options, as MLD always has for its router alert.
fn is_alerting(packet: &[u8]) -> bool {
    packet.get(6) == Some(&protocol::HOP_BY_HOP)
}

fn read_igmp(
    message: &[u8],
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> Result<Option<Message<'_>>, Malformed> {
    let [kind, code, _, _, a, b, c, d] = array_at(message, 0).ok_or(Malformed)?;
    let group = Ipv4Addr::new(a, b, c, d);
    let one = || only_multicast(group.into());
    Ok(Some(match kind {
        igmp::REPORT_V1 | igmp::REPORT_V2 => Message::Report(one()?),
        igmp::LEAVE => Message::Leave(one()?),
        igmp::REPORT_V3 => Message::Records(Records::new(message, 4)?),
        igmp::QUERY => {
            let tenths = match (message.len(), code) {
                // Version 1 has no response time; its queries are all general (RFC 2236 section 4).
                (igmp::SIZE, 0) => 100,
                (igmp::SIZE, _) => u64::from(code),
                (igmp::QUERY_V3_SIZE.., _) => u64::from(floating(code.into(), 4)),
                _ => return Err(Malformed),
            };
            let general = group.is_unspecified() || message.len() == igmp::SIZE && code == 0;
            if group.is_unspecified() && to != ALL_SYSTEMS {
                return Err(Malformed);
            }
            Message::Query(Query {
                from: from.into(),
                group: if general { None } else { Some(one()?) },
                response_max: Duration::from_millis(tenths * 100),
                leaves_timers: leaves_timers(message, igmp::SIZE, general),
            })
        }
        _ => return Ok(None),
    }))
}

/// The group that a message is about.
fn only_multicast(group: IpAddr) -> Result<IpAddr, Malformed> {
    group.is_multicast().then_some(group).ok_or(Malformed)
}

fn read_mld(
    message: &[u8],
    from: Ipv6Addr,
    to: Ipv6Addr,
) -> Result<Option<Message<'_>>, Malformed> {
    let kind = message.first().copied().unwrap_or_default();
    if kind == mld::REPORT_V2 {
        return Records::new(message, 16).map(|records| Some(Message::Records(records)));
    }
    let group: [u8; 16] = array_at(message, 8).ok_or(Malformed)?;
    let group = Ipv6Addr::from(group);
    let one = || only_multicast(group.into());
    Ok(Some(match kind {
        mld::REPORT_V1 => Message::Report(one()?),
        mld::DONE => Message::Leave(one()?),
        _ => {
            let code: [u8; 2] = array_at(message, 4).ok_or(Malformed)?;
            let code = u16::from_be_bytes(code);
            let millis = match message.len() {
                mld::SIZE => u32::from(code),
                mld::QUERY_V2_SIZE.. => floating(code, 12),
                _ => return Err(Malformed),
            };
            let general = group.is_unspecified();
            // RFC 3810 section 5.1.14: from a link-local address; section 5.1.15: to all nodes.
            if !from.is_unicast_link_local() || general && to != ALL_NODES {
                return Err(Malformed);
            }
            Message::Query(Query {
                from: from.into(),
                group: if general { None } else { Some(one()?) },
                response_max: Duration::from_millis(millis.into()),
                leaves_timers: leaves_timers(message, mld::SIZE, general),
            })
        }
    }))
}

/// Whether a query of the newer version, whose flags and number of sources stand behind the `size`
/// bytes that it has in common with the older one, is to leave timers alone.
fn leaves_timers(message: &[u8], size: usize, general: bool) -> bool {
    match array_at(message, size) {
        Some([flags, _, high, low]) => {
            let suppressed = flags & 0x08 != 0 && !general;
            suppressed || u16::from_be_bytes([high, low]) != 0
        }
        None => false,
    }
}

/// A number as IGMPv3 and MLDv2 write response times: as it is below the top bit, otherwise three
/// bits of exponent and `bits` of mantissa (RFC 3376 section 4.1.1, RFC 3810 section 5.1.3).
fn floating(code: u16, bits: u32) -> u32 {
    let code = u32::from(code);
    let top = 1 << (bits + 3);
    if code < top {
        return code;
    }
    let mantissa = (code & ((1 << bits) - 1)) | (1 << bits);
    let exponent = (code >> bits) & 7;
    mantissa << (exponent + 3)
}

impl<'a> Records<'a> {
    /// The records of a report, if each of them is all there.
    fn new(report: &'a [u8], width: usize) -> Result<Self, Malformed> {
        let [high, low] = array_at(report, REPORT_SIZE - 2).ok_or(Malformed)?;
        let bytes = report.get(REPORT_SIZE..).ok_or(Malformed)?;
        let mut rest = bytes;
        for _ in 0..u16::from_be_bytes([high, low]) {
            let (group, _, after) = split_record(rest, width).ok_or(Malformed)?;
            if !group.is_multicast() {
                return Err(Malformed);
            }
            rest = after;
        }
        let size = bytes.len() - rest.len();
        Ok(Self {
            bytes: bytes.get(..size).unwrap_or_default(),
            width,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = (IpAddr, Wish);

    fn next(&mut self) -> Option<Self::Item> {
        let (group, wish, rest) = split_record(self.bytes, self.width)?;
        self.bytes = rest;
        Some((group, wish))
    }
}

/// The first record and what follows it (RFC 3376 section 4.2.4, RFC 3810 section 5.2.4): type,
/// length of auxiliary data in words, number of sources, group, sources, auxiliary data.
fn split_record(bytes: &[u8], width: usize) -> Option<(IpAddr, Wish, &[u8])> {
    let [kind, words, high, low] = array_at(bytes, 0)?;
    let sources = usize::from(u16::from_be_bytes([high, low]));
    let group = match width {
        4 => array_at::<4>(bytes, 4).map(IpAddr::from)?,
        _ => array_at::<16>(bytes, 4).map(IpAddr::from)?,
    };
    let size = 4 + width * (1 + sources) + 4 * usize::from(words);
    let wish = match (kind, sources) {
        // MODE_IS_INCLUDE, CHANGE_TO_INCLUDE: of no source is a leave.
        (1 | 3, 0) => Wish::Leave,
        // Of some; MODE_IS_EXCLUDE, CHANGE_TO_EXCLUDE, ALLOW_NEW_SOURCES.
        (1..=5, _) => Wish::Join,
        _ => Wish::Nothing,
    };
    Some((group, wish, bytes.get(size..)?))
}
