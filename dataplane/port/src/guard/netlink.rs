//! As much rtnetlink as the guard needs: one request, one answer, synchronously.
//!
//! Messages are built by hand (linux/netlink.h, linux/rtnetlink.h, linux/pkt_sched.h): the
//! control plane's rtnetlink crate does not carry classic BPF programs, and this crate has no
//! async runtime. Used when a port is opened or closed, never per frame.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys;

/// Bytes received at once; the kernel builds parts of a dump of up to 32 KiB if we take them.
const RECEIVE_SIZE: usize = 64 * 1024;

/// Messages of one dump. Each is a filter on one hook of one interface; beyond this, somebody
/// else's rules are at work and the search ends with an error.
const DUMP_MESSAGES_MAX: usize = 65_536;

/// Bytes of `struct nlmsghdr` and of `struct tcmsg`.
const HEADER_SIZE: usize = 16;
const TC_SIZE: usize = 20;
const _: () = assert!(size_of::<libc::nlmsghdr>() == HEADER_SIZE);

/// `struct tcmsg` of linux/rtnetlink.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficControl {
    /// The interface.
    pub interface: u32,
    /// Of the qdisc or filter itself.
    pub handle: u32,
    /// The hook that it hangs on.
    pub parent: u32,
    /// Of a filter: its priority, and the protocol in network byte order.
    pub info: u32,
}

impl TrafficControl {
    /// A filter's `info` for a priority and an `ETH_P_*` protocol.
    pub const fn filter_info(priority: u16, protocol: u16) -> u32 {
        (priority as u32) << 16 | protocol.to_be() as u32
    }

    /// The priority in a filter's `info`.
    pub const fn priority(&self) -> u16 {
        (self.info >> 16) as u16
    }

    fn encode(&self) -> [u8; TC_SIZE] {
        let mut bytes = [0; TC_SIZE];
        let fields = [self.interface, self.handle, self.parent, self.info];
        for (to, field) in bytes[4..].chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; TC_SIZE]) -> Self {
        let field = |at: usize| u32_at(bytes, at).unwrap_or(0);
        Self {
            interface: field(4),
            handle: field(8),
            parent: field(12),
            info: field(16),
        }
    }
}

/// A request under construction.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request about a qdisc or filter; `flags` besides `NLM_F_REQUEST`.
    pub fn traffic_control(kind: u16, flags: c_int, about: TrafficControl) -> Self {
        Self::new(kind, flags, &about.encode())
    }

    /// A request with the family's fixed part.
    pub fn new(kind: u16, flags: c_int, fixed: &[u8]) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        // Length, sequence and port id are filled in on sending.
        let mut bytes = vec![0; HEADER_SIZE];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// Adds an attribute that holds those which `fill` adds.
    #[must_use]
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.push(kind | libc::NLA_F_NESTED as u16, &[]);
        let mut filled = fill(self);
        // A longer attribute than 64 KiB cannot be said; the kernel refuses the cut-off one.
        let size = u16::try_from(filled.bytes.len() - start).unwrap_or(u16::MAX);
        filled.bytes[start..start + 2].copy_from_slice(&size.to_ne_bytes());
        filled
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let size = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&size.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What a dump says of one filter.
#[derive(Debug)]
pub struct Filter {
    /// Where it is.
    pub place: TrafficControl,
    /// `TCA_KIND`, without the zero.
    pub kind: Vec<u8>,
    /// `TCA_OPTIONS`.
    pub options: Vec<u8>,
}

/// A connection to the calling thread's network namespace.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens the connection.
    pub fn open() -> io::Result<Self> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let mut netlink = Self {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE_SIZE],
        };
        // The kernel sizes the parts of a dump by the largest buffer that was received into
        // before; without this, a filter of more than a page is not found.
        netlink.request(Request::new(libc::NLMSG_NOOP as u16, 0, &[]))?;
        Ok(netlink)
    }

    /// Sends a request and waits for the kernel's verdict.
    pub fn request(&mut self, request: Request) -> io::Result<()> {
        self.exchange(request, libc::NLM_F_ACK, |_, _| {})
    }

    /// Every filter on a hook.
    pub fn filters(&mut self, interface: u32, parent: u32) -> io::Result<Vec<Filter>> {
        let about = TrafficControl {
            interface,
            parent,
            ..TrafficControl::default()
        };
        let request = Request::traffic_control(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, about);
        let mut filters = Vec::new();
        self.exchange(request, 0, |kind, body| {
            if kind == libc::RTM_NEWTFILTER {
                filters.extend(filter(body));
            }
        })?;
        Ok(filters)
    }

    /// Sends, and hands every message of the answer to `each` until its end.
    fn exchange(
        &mut self,
        mut request: Request,
        flags: c_int,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let bytes = &mut request.bytes;
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        sys::send(self.fd.as_fd(), bytes)?;
        let mut messages = 0;
        while messages < DUMP_MESSAGES_MAX {
            let size = sys::receive(self.fd.as_fd(), &mut self.buffer)?;
            let mut rest = &self.buffer[..size];
            while let Some((kind, sequence, body, next)) = split_message(rest) {
                rest = next;
                messages += 1;
                if sequence != self.sequence {
                    continue;
                }
                match c_int::from(kind) {
                    // Both begin with the error, zero for success; an empty DONE is success too.
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let code = u32_at(body, 0).map_or(0, |code| code as i32);
                        return match code {
                            0 => Ok(()),
                            _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    _ => each(kind, body),
                }
            }
        }
        Err(io::ErrorKind::QuotaExceeded.into())
    }
}

/// The attributes of a message, one after the other.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let size = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !(libc::NLA_F_NESTED as u16);
        let value = bytes.get(4..size)?;
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A message of `RTM_NEWTFILTER`.
fn filter(body: &[u8]) -> Option<Filter> {
    let (place, rest) = body.split_first_chunk()?;
    let find =
        |wanted| attributes(rest).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let kind = find(libc::TCA_KIND)?;
    Some(Filter {
        place: TrafficControl::decode(place),
        kind: kind.strip_suffix(&[0]).unwrap_or(kind).to_vec(),
        options: find(libc::TCA_OPTIONS).unwrap_or(&[]).to_vec(),
    })
}

/// The first message: its kind, sequence number and body, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let size = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER_SIZE..size)?;
    let next = bytes.get(size.next_multiple_of(4)..).unwrap_or(&[]);
    Some((u16_at(bytes, 4)?, u32_at(bytes, 8)?, body, next))
}

/// A number in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&four| u32::from_ne_bytes(four))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&two| u16::from_ne_bytes(two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let request = Request::new(1, 0, &[])
            .attribute(1, b"bpf\0")
            .nested(2, |inner| inner.attribute(4, &[7, 8, 9]).attribute(5, &[]));
        let body = &request.bytes[HEADER_SIZE..];
        assert_eq!(body.len() % 4, 0);
        let outer: Vec<_> = attributes(body).collect();
        assert_eq!(outer[0], (1, &b"bpf\0"[..]));
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!(inner, [(4, &[7u8, 8, 9][..]), (5, &[][..])]);
    }

    #[test]
    fn broken_answers_end_the_reading() {
        for bytes in [&[][..], &[0; 3], &[0xff; 16], &[3, 0, 0, 0], &[0; 64]] {
            assert!(attributes(bytes).count() <= 1, "{bytes:?}");
            assert!(split_message(bytes).is_none(), "{bytes:?}");
            assert!(filter(bytes).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_filters_place_round_trips() {
        let place = TrafficControl {
            interface: 7,
            handle: 0x800,
            parent: 0xffff_fff2,
            info: TrafficControl::filter_info(9, 3),
        };
        assert_eq!(TrafficControl::decode(&place.encode()), place);
        assert_eq!(place.priority(), 9);
    }
}
