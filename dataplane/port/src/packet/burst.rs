//! The argument arrays of `recvmmsg` and `sendmmsg`, and what a received message means.

use std::ffi::{c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::headers::{ETHERNET_SIZE, VLAN_TAG_SIZE, ethertype};

use super::{Link, Offloads};
use crate::virtio::{self, VNET_HEADER_SIZE};
use crate::{BATCH_BYTES_MAX, BATCH_MAX, Batch, Framing, sys};

/// Frames moved by one system call. Half a batch amortises the call (a few hundred nanoseconds)
/// to a few per frame, and keeps the argument arrays within 8 KiB.
pub const BURST_MAX: usize = 32;

/// Offset of the VLAN tag in a frame: behind the two MACs.
const TAG_OFFSET: usize = 12;

/// What a received message was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    Frame,
    /// Sent by this host through the interface; seen where it cannot be ignored.
    Outgoing,
    /// Cut off, or shorter than its headers.
    Malformed,
}

/// Control data of one message: one `tpacket_auxdata` with its header, aligned as `cmsghdr` is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_SIZE]);

// SAFETY: CMSG_SPACE is arithmetic on its argument.
// JUSTIFICATION: libc declares its const functions unsafe.
const CONTROL_SIZE: usize =
    unsafe { libc::CMSG_SPACE(size_of::<libc::tpacket_auxdata>() as c_uint) } as usize;

// SAFETY: CMSG_LEN is arithmetic on its argument.
// JUSTIFICATION: libc declares its const functions unsafe.
const CONTROL_DATA_OFFSET: usize = unsafe { libc::CMSG_LEN(0) } as usize;

/// The argument arrays of `recvmmsg`, kept so that a call fills in pointers only.
///
/// The pointers in `messages` and `vectors` are written anew before every call and read by the
/// kernel during it alone; between calls they are meaningless.
pub struct Receiver {
    messages: [libc::mmsghdr; BURST_MAX],
    vectors: [libc::iovec; BURST_MAX],
    addresses: [libc::sockaddr_ll; BURST_MAX],
    controls: [Control; BURST_MAX],
    buffers: [Option<FrameBuf>; BURST_MAX],
    /// Size of the last burst's largest frame: how many of them make a full batch.
    frame_size_seen: usize,
}

// SAFETY: the raw pointers are written and used within one `&mut self` call; nothing behind them
// is owned or reached by them in between. Everything else is plain data.
unsafe impl Send for Receiver {}

impl Receiver {
    pub fn new() -> Box<Self> {
        Box::new(Self {
            messages: [EMPTY_MESSAGE; BURST_MAX],
            vectors: [EMPTY_VECTOR; BURST_MAX],
            addresses: [EMPTY_ADDRESS; BURST_MAX],
            controls: [Control([0; CONTROL_SIZE]); BURST_MAX],
            buffers: [const { None }; BURST_MAX],
            frame_size_seen: 0,
        })
    }

    /// How many frames to ask for: what fits the batch, were they all as large as the last ones.
    pub fn wanted(&self, rx: &Batch) -> usize {
        let room = BATCH_MAX.saturating_sub(rx.len()).min(BURST_MAX);
        room.min((BATCH_BYTES_MAX / self.frame_size_seen.max(1)).max(2))
    }

    /// Fills `wanted` buffers of `rx`, at most [`BURST_MAX`], and returns how many messages arrived. On an error
    /// every buffer is back in `rx`.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        rx: &mut Batch,
        wanted: usize,
        (prefix, link): (usize, Link),
    ) -> io::Result<usize> {
        let mut count = 0;
        while count < wanted.min(BURST_MAX) {
            let Some(buf) = rx.take_buffer() else {
                break;
            };
            let buf = self.buffers[count].insert(buf);
            let area = &mut buf.receive_area(prefix)[link.framing.lacking()..];
            self.vectors[count] = libc::iovec {
                iov_base: area.as_mut_ptr().cast(),
                iov_len: area.len(),
            };
            self.messages[count].msg_hdr = libc::msghdr {
                msg_name: (&raw mut self.addresses[count]).cast(),
                msg_namelen: size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                msg_iov: &raw mut self.vectors[count],
                msg_iovlen: 1,
                msg_control: (&raw mut self.controls[count]).cast(),
                msg_controllen: CONTROL_SIZE as _,
                ..EMPTY_MESSAGE.msg_hdr
            };
            count += 1;
        }
        if count == 0 {
            // The pool is empty: every buffer waits for some slow device.
            return Ok(0);
        }
        // SAFETY: the first `count` messages point at the vector, address and control data of
        // the same index, and the vectors at the storage of the buffer of the same index, all of
        // which live in `self` and are not touched during the call.
        // JUSTIFICATION: std has no batched receive, and no control data.
        let returned = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                count as c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let arrived = sys::check(returned).map(|count| count as usize);
        if arrived.is_err() {
            self.put_back(rx);
        }
        let largest = self.messages[..*arrived.as_ref().unwrap_or(&0)].iter();
        if let Some(largest) = largest.map(|message| message.msg_len as usize).max() {
            self.frame_size_seen = largest;
        }
        arrived
    }

    /// Adds to `rx` what the first `arrived` messages hold, and returns how many were malformed. The
    /// buffers of the others go back.
    pub fn deliver(&mut self, arrived: usize, rx: &mut Batch, shape: (usize, Link)) -> u64 {
        let mut malformed = 0;
        for index in 0..arrived {
            let Some(mut buf) = self.buffers[index].take() else {
                continue;
            };
            match self.accept(index, &mut buf, shape) {
                Arrival::Frame => rx.push(buf),
                Arrival::Outgoing => rx.recycle(buf),
                Arrival::Malformed => {
                    malformed += 1;
                    rx.recycle(buf);
                }
            }
        }
        self.put_back(rx);
        malformed
    }

    /// Makes the message at `index` a frame in `buf`.
    fn accept(&self, index: usize, buf: &mut FrameBuf, (prefix, link): (usize, Link)) -> Arrival {
        let message = &self.messages[index];
        if self.addresses[index].sll_pkttype == libc::PACKET_OUTGOING {
            return Arrival::Outgoing;
        }
        let cut_off = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let lacking = link.framing.lacking();
        let packet_size = (message.msg_len as usize).checked_sub(prefix);
        let frame_size = packet_size.map(|size| size + lacking);
        let Some(frame_size) = frame_size.filter(|&size| size >= ETHERNET_SIZE && !cut_off) else {
            return Arrival::Malformed;
        };
        let offload = match buf.receive_area(prefix)[lacking..].first_chunk() {
            Some(header) if prefix > 0 => {
                let mut offload = virtio::decode(header);
                offload.shift(lacking as i16);
                virtio::sanitise(offload, frame_size)
            }
            Some(_) | None => Offload::NONE,
        };
        buf.set_received(frame_size, offload);
        if link.framing == Framing::Ip {
            let ethertype = u16::from_be(self.addresses[index].sll_protocol);
            buf.bytes_mut()[..ETHERNET_SIZE].copy_from_slice(&Framing::header(ethertype));
        }
        match self.tag(index) {
            Some(tag) => with_tag(buf, tag),
            None => Arrival::Frame,
        }
    }

    /// The VLAN tag that the kernel took out of the frame at `index`: TPID and TCI.
    #[inline]
    fn tag(&self, index: usize) -> Option<(u16, u16)> {
        let header = &self.messages[index].msg_hdr;
        if header.msg_controllen < CONTROL_SIZE as _ {
            return None;
        }
        let control = self.controls[index].0.as_ptr();
        // SAFETY: `Control` is aligned for and larger than a cmsghdr, and integers are always
        // valid.
        // JUSTIFICATION: control data has no safe reader in std.
        let head = unsafe { control.cast::<libc::cmsghdr>().read() };
        if head.cmsg_level != libc::SOL_PACKET || head.cmsg_type != libc::PACKET_AUXDATA {
            return None;
        }
        let data = control.wrapping_add(CONTROL_DATA_OFFSET);
        // SAFETY: CONTROL_SIZE was computed to hold an auxdata there; it is made of integers and
        // read unaligned.
        // JUSTIFICATION: as above.
        let auxdata = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
        tag_of(auxdata.tp_status, auxdata.tp_vlan_tpid, auxdata.tp_vlan_tci)
    }

    /// Returns the buffers that no message filled.
    fn put_back(&mut self, rx: &mut Batch) {
        // Last taken, first returned: the pool is as it was.
        for buffer in self.buffers.iter_mut().rev() {
            if let Some(buf) = buffer.take() {
                rx.recycle(buf);
            }
        }
    }
}

/// The VLAN tag, TPID and TCI, that the kernel tells of beside a frame.
#[inline]
pub fn tag_of(status: u32, tpid: u16, tci: u16) -> Option<(u16, u16)> {
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => Some((ethertype::VLAN, tci)),
        _ => Some((tpid, tci)),
    }
}

/// Puts a tag back into a frame that holds both MACs.
pub fn with_tag(buf: &mut FrameBuf, (tpid, tci): (u16, u16)) -> Arrival {
    // The headroom takes far more than a tag.
    if !buf.insert(TAG_OFFSET, VLAN_TAG_SIZE) {
        return Arrival::Malformed;
    }
    let [tpid_high, tpid_low] = tpid.to_be_bytes();
    let [tci_high, tci_low] = tci.to_be_bytes();
    buf.bytes_mut()[TAG_OFFSET..TAG_OFFSET + VLAN_TAG_SIZE]
        .copy_from_slice(&[tpid_high, tpid_low, tci_high, tci_low]);
    Arrival::Frame
}

/// The argument arrays of `sendmmsg`; the same rules as for [`Receiver`].
pub struct Sender {
    messages: [libc::mmsghdr; BURST_MAX],
    vectors: [[libc::iovec; 2]; BURST_MAX],
    headers: [[u8; VNET_HEADER_SIZE]; BURST_MAX],
    /// Where packets without a link header go: to which protocol of the interface.
    addresses: [libc::sockaddr_ll; BURST_MAX],
}

// SAFETY: as for `Receiver`.
unsafe impl Send for Sender {}

impl Sender {
    pub fn new() -> Box<Self> {
        Box::new(Self {
            messages: [EMPTY_MESSAGE; BURST_MAX],
            vectors: [[EMPTY_VECTOR; 2]; BURST_MAX],
            headers: [[0; VNET_HEADER_SIZE]; BURST_MAX],
            addresses: [EMPTY_ADDRESS; BURST_MAX],
        })
    }

    /// Sends up to [`BURST_MAX`] frames from the front and returns how many were accepted. The
    /// header travels in a part of its own, so the frames are only read.
    pub fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        frames: &[FrameBuf],
        (offloads, link): (Offloads, Link),
    ) -> io::Result<usize> {
        let count = frames.len().min(BURST_MAX);
        let lacking = link.framing.lacking();
        for (index, frame) in frames[..count].iter().enumerate() {
            let mut offload = frame.offload;
            offload.shift(-(lacking as i16));
            self.headers[index] = virtio::encode(offload);
            // Whatever is forwarded has an Ethernet header.
            let packet = frame.bytes().get(lacking..).unwrap_or_default();
            self.vectors[index] = [vector(&self.headers[index]), vector(packet)];
            let first = match offloads {
                Offloads::VnetHeader => 0,
                Offloads::None => 1,
            };
            let parts = &mut self.vectors[index][first..];
            self.messages[index].msg_hdr = libc::msghdr {
                msg_iov: parts.as_mut_ptr(),
                msg_iovlen: parts.len() as _,
                ..EMPTY_MESSAGE.msg_hdr
            };
            if link.framing == Framing::Ip {
                self.address(index, link, frame.bytes());
            }
        }
        // SAFETY: the first `count` messages point at the vectors, and perhaps the address, of the
        // same index, and the vectors at a header in `self` and a frame that is borrowed for the
        // call; the kernel only reads.
        // JUSTIFICATION: std has no batched send.
        let returned = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                count as c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        sys::check(returned).map(|count| count as usize)
    }

    /// Names the protocol of a packet whose link header was left out: its EtherType.
    fn address(&mut self, index: usize, link: Link, frame: &[u8]) {
        let ethertype = frame.get(12..14).and_then(|field| field.first_chunk());
        let address = &mut self.addresses[index];
        // In network byte order both.
        address.sll_protocol = ethertype.map_or(0, |field| u16::from_ne_bytes(*field));
        address.sll_ifindex = link.interface;
        let header = &mut self.messages[index].msg_hdr;
        header.msg_name = (&raw mut self.addresses[index]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    }
}

/// A part of a message to send; the kernel does not write through it.
fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast::<c_void>().cast_mut(),
        iov_len: bytes.len(),
    }
}

const EMPTY_VECTOR: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

// SAFETY: a message header of zero bytes is null pointers and zero lengths: an empty one.
// JUSTIFICATION: `msghdr` has private padding on some targets, so no literal can name it all.
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };

pub const EMPTY_ADDRESS: libc::sockaddr_ll = libc::sockaddr_ll {
    sll_family: libc::AF_PACKET as u16,
    sll_protocol: 0,
    sll_ifindex: 0,
    sll_hatype: 0,
    sll_pkttype: 0,
    sll_halen: 0,
    sll_addr: [0; 8],
};
