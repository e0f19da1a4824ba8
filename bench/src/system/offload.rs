//! Segmentation offload off, without a tool: the interface says that it takes one segment at a time.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tests::lab::Namespace;

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const IFLA_GSO_MAX_SEGS: u16 = 40;

/// Makes the stack segment what it sends by `interface`: no frame above the MTU leaves a socket
/// by it.
///
/// # Panics
/// With the interface's name when the kernel refuses.
pub fn segment_in_the_stack(ns: &Namespace, interface: &str) {
    let index = ns.link(interface).index;
    ns.run(|| set_segments_max(index, 1))
        .unwrap_or_else(|e| panic!("{interface}: cannot turn segmentation offload off: {e}"));
}

fn set_segments_max(index: u32, segments: u32) -> io::Result<()> {
    let mut request = Vec::new();
    request.extend(40u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 4]); // family, padding, type
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]); // flags, change
    request.extend(8u16.to_ne_bytes());
    request.extend(IFLA_GSO_MAX_SEGS.to_ne_bytes());
    request.extend(segments.to_ne_bytes());
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut netlink = std::fs::File::from(socket);
    netlink.write_all(&request)?;
    let mut answer = [0; 512];
    let size = netlink.read(&mut answer)?;
    let bad = || io::Error::other("the kernel's answer is cut off");
    let kind = answer[..size].get(4..6).ok_or_else(bad)?;
    let code = answer[..size].get(16..20).ok_or_else(bad)?;
    if kind != NLMSG_ERROR.to_ne_bytes() {
        return Err(io::Error::other(
            "the kernel's answer is no acknowledgement",
        ));
    }
    match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
