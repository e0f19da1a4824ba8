//! What the NAT reads of a packet: its two ends, as the direction defines them.

use std::net::IpAddr;

use crate::addr::{L4Addr, L4Port};
use crate::checksum::L4Checksum;
use crate::frame::Frame;
use crate::headers::{Fragment, HeaderError, Headers, Ip, L4, L4Kind, TcpFlags, array_at};
use crate::verdict::DropReason;

use super::rewrite::{self, Layout, Side};
use super::session::{Direction, NatProtocol};

/// A packet to be translated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// Source. An echo's identifier stands for the port of the end that sent the request; the
    /// other end has port 0.
    pub src: L4Addr,
    /// Destination.
    pub dst: L4Addr,
    pub layout: Layout,
    pub body: Body,
    /// Its place, when it is one of several fragments.
    pub fragment: Option<Fragment>,
    /// Bytes of the IP packet.
    pub size: u32,
}

/// What is read of a packet besides its addresses, which stay where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outline {
    /// As of [`Packet::src`].
    pub src: L4Port,
    /// As of [`Packet::dst`].
    pub dst: L4Port,
    pub layout: Layout,
    pub body: Body,
    /// Its place, when it is one of several fragments.
    pub fragment: Option<Fragment>,
    /// Bytes of the IP packet.
    pub size: u32,
}

/// One end of a packet, with its address as it stands in the headers. To copy an address that was
/// just written in smaller pieces stalls the store buffer.
#[derive(Clone, Copy)]
pub(super) struct End<'h> {
    pub ip: &'h IpAddr,
    pub l4_port: L4Port,
}

impl End<'_> {
    /// Whether it is this address and port.
    #[inline(always)]
    pub fn is(&self, other: &L4Addr) -> bool {
        self.l4_port == other.l4_port && *self.ip == other.ip
    }
}

impl<'h> From<&'h L4Addr> for End<'h> {
    #[inline(always)]
    fn from(address: &'h L4Addr) -> Self {
        Self {
            ip: &address.ip,
            l4_port: address.l4_port,
        }
    }
}

impl From<End<'_>> for L4Addr {
    #[inline(always)]
    fn from(end: End<'_>) -> Self {
        Self {
            ip: *end.ip,
            l4_port: end.l4_port,
        }
    }
}

/// What kind of packet it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// A packet of a flow.
    Flow {
        protocol: NatProtocol,
        /// No flags for UDP and ICMP.
        flags: TcpFlags,
        /// The number of a TCP segment that its direction makes interesting: see `Event`.
        number: u32,
    },
    /// An echo request to an external address, or an echo reply from inside: never of a session.
    StrayEcho,
    /// An ICMP error; it begins at `offset` and its IP packet ends at `end`.
    Error { offset: usize, end: usize },
    /// A fragment other than the first.
    LaterFragment,
}

impl Packet {
    /// Reads a packet going in `direction`.
    ///
    /// # Errors
    /// The reason why it cannot be translated.
    // Inlined, so that it is built where it is used: copying what was just written in smaller
    // pieces stalls the store buffer, which cost 30 ns of 85.
    #[inline(always)]
    pub fn read(
        frame: &Frame<'_>,
        headers: &Headers,
        direction: Direction,
    ) -> Result<Self, DropReason> {
        let (ip, outline) = Outline::read(frame, headers, direction)?;
        let Outline {
            src,
            dst,
            layout,
            body,
            fragment,
            size,
        } = outline;
        Ok(Self {
            src: L4Addr::new(ip.src, src.0),
            dst: L4Addr::new(ip.dst, dst.0),
            layout,
            body,
            fragment,
            size,
        })
    }

    /// The sequence number of a TCP segment; 0 of anything else.
    pub fn sequence(&self, frame: &Frame<'_>) -> u32 {
        match self.layout.l4 {
            Some((l4, L4Checksum::Tcp)) => {
                u32::from_be_bytes(array_at(frame.bytes(), l4 + 4).unwrap_or_default())
            }
            _ => 0,
        }
    }

    /// Both ends.
    #[inline]
    pub const fn ends(&self) -> (L4Addr, L4Addr) {
        (self.src, self.dst)
    }

    /// Replaces one end, in the frame and here.
    #[inline]
    pub fn rewrite(&mut self, frame: &mut Frame<'_>, side: Side, new: L4Addr) {
        let old = match side {
            Side::Source => &mut self.src,
            Side::Destination => &mut self.dst,
        };
        let offload = frame.buf.offload;
        rewrite::rewrite(
            frame.buf.bytes_mut(),
            &offload,
            self.layout,
            side,
            (old, &new),
        );
        *old = new;
    }
}

impl Outline {
    /// As [`Packet::read`], with the IP header.
    #[inline(always)]
    pub fn read<'h>(
        frame: &Frame<'_>,
        headers: &'h Headers,
        direction: Direction,
    ) -> Result<(&'h Ip, Self), DropReason> {
        let ip = match headers.ip() {
            Some(ip) => ip,
            None if headers.l3.is_ok() => return Err(DropReason::NotIp),
            None => return Err(DropReason::L3Malformed),
        };
        if ip.header_size > 40 && ip.src.is_ipv6() {
            check_extensions(frame.bytes(), headers.l3_offset, ip)?;
        }
        // An "atomic" fragment (RFC 6946) is a whole packet.
        let several = |part: &&Fragment| part.offset != 0 || part.more;
        let fragment = ip.fragment.as_ref().filter(several).copied();
        let mut outline = Self {
            src: L4Port(0),
            dst: L4Port(0),
            layout: Layout {
                l3: headers.l3_offset,
                l4: None,
            },
            body: Body::LaterFragment,
            fragment,
            size: ip.total_size,
        };
        match headers.l4 {
            Ok(l4) => outline.read_l4(frame.bytes(), l4, ip, direction)?,
            Err(HeaderError::LaterFragment) => {}
            Err(HeaderError::Unknown) => return Err(DropReason::NatUnsupported),
            Err(HeaderError::Truncated | HeaderError::Inconsistent) => {
                return Err(DropReason::L4Malformed);
            }
        }
        Ok((ip, outline))
    }

    /// Source and destination.
    #[inline(always)]
    pub const fn ends<'h>(&self, ip: &'h Ip) -> (End<'h>, End<'h>) {
        let src = End {
            ip: &ip.src,
            l4_port: self.src,
        };
        let dst = End {
            ip: &ip.dst,
            l4_port: self.dst,
        };
        (src, dst)
    }

    #[inline(always)]
    fn read_l4(
        &mut self,
        bytes: &[u8],
        l4: L4,
        ip: &Ip,
        direction: Direction,
    ) -> Result<(), DropReason> {
        let mut number = 0;
        let (protocol, tcp_flags) = match l4.kind {
            L4Kind::Tcp {
                src, dst, flags, ..
            } => {
                (self.src, self.dst) = (src, dst);
                let at = match direction {
                    Direction::Out => l4.offset + 8,
                    Direction::In => l4.offset + 4,
                };
                number = u32::from_be_bytes(array_at(bytes, at).unwrap_or_default());
                (NatProtocol::Tcp, flags)
            }
            L4Kind::Udp { src, dst } => {
                let end = self.layout.l3 + ip.total_size as usize;
                let size = u16::from_be_bytes(array_at(bytes, l4.offset + 4).unwrap_or_default());
                // A first fragment declares the size of the whole.
                if usize::from(size) > end - l4.offset && self.fragment.is_none() {
                    return Err(DropReason::L4Malformed);
                }
                (self.src, self.dst) = (src, dst);
                (NatProtocol::Udp, TcpFlags::default())
            }
            L4Kind::Echo { request, id } => {
                if request != (direction == Direction::Out) {
                    self.body = Body::StrayEcho;
                    return Ok(());
                }
                self.set_echo_id(id, direction);
                (NatProtocol::Icmp, TcpFlags::default())
            }
            L4Kind::IcmpError { .. } if self.fragment.is_some() => {
                return Err(DropReason::NatFragment);
            }
            L4Kind::IcmpError { .. } => {
                self.body = Body::Error {
                    offset: l4.offset,
                    end: self.layout.l3 + ip.total_size as usize,
                };
                return Ok(());
            }
            L4Kind::IcmpOther { .. } => return Err(DropReason::NatUnsupported),
        };
        let checksum = rewrite::l4_checksum(protocol, ip.src.is_ipv6());
        self.layout.l4 = Some((l4.offset, checksum));
        self.body = Body::Flow {
            protocol,
            flags: tcp_flags,
            number,
        };
        Ok(())
    }

    fn set_echo_id(&mut self, id: L4Port, direction: Direction) {
        match direction {
            Direction::Out => self.src = id,
            Direction::In => self.dst = id,
        }
    }
}

/// Refuses IPv6 packets whose extension headers forbid a translation.
#[cold]
fn check_extensions(bytes: &[u8], l3: usize, ip: &Ip) -> Result<(), DropReason> {
    let [first] = array_at::<1>(bytes, l3 + 6).unwrap_or_default();
    let end = l3 + usize::from(ip.header_size);
    if rewrite::extensions_allow(bytes, l3 + 40, end, first) {
        Ok(())
    } else {
        Err(DropReason::NatUnsupported)
    }
}
