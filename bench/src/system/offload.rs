//! Offloads of an interface off, and its queues counted out, by the kernel's ethtool family of netlink.

use std::fs::File;
use std::io::{self, Read, Write};

use ::tests::lab::Namespace;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Segmentation by the device: what makes a socket send frames above the MTU.
pub const SEGMENTATION: [&str; 6] = [
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
];
/// Checksums by the device: what a switch without virtio headers does not know to complete.
pub const CHECKSUM: [&str; 1] = ["tx-checksum-ip-generic"];

// linux/netlink.h, linux/genetlink.h, linux/ethtool_netlink.h.
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_MSG_CHANNELS_SET: u8 = 18;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
/// Bytes of the headers of netlink and of its generic family.
const HEADERS_SIZE: usize = 16 + 4;

/// Turns offloads of `interface` off; those that it does not have stay so.
///
/// # Panics
/// With the interface's name when the kernel refuses.
pub fn turn_off(ns: &Namespace, interface: &str, names: &[&str]) {
    let index = ns.link(interface).index;
    ns.run(|| set_features(index, names))
        .unwrap_or_else(|e| panic!("{interface}: cannot turn {} off: {e}", names.join(", ")));
}

/// Has `interface`, a veth, send and receive by so many queues, of which it has one for each CPU.
///
/// # Panics
/// With the interface's name when the kernel refuses.
pub fn set_queues(ns: &Namespace, interface: &str, count: u32) {
    let index = ns.link(interface).index;
    let counts = [ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_TX_COUNT]
        .map(|kind| attribute(kind, &count.to_ne_bytes()));
    ns.run(|| set(index, ETHTOOL_MSG_CHANNELS_SET, &counts.concat()))
        .unwrap_or_else(|e| panic!("{interface}: cannot have {count} queues: {e}"));
}

fn set_features(index: u32, off: &[&str]) -> io::Result<()> {
    // A bit that is named without a value is off.
    let bits = off.iter().flat_map(|name| {
        let name = [name.as_bytes(), &[0]].concat();
        nested(
            ETHTOOL_A_BITSET_BITS_BIT,
            &attribute(ETHTOOL_A_BITSET_BIT_NAME, &name),
        )
    });
    let bits = nested(ETHTOOL_A_BITSET_BITS, &bits.collect::<Vec<u8>>());
    let wanted = nested(ETHTOOL_A_FEATURES_WANTED, &bits);
    set(index, ETHTOOL_MSG_FEATURES_SET, &wanted)
}

/// A command of the ethtool family about an interface.
fn set(index: u32, command: u8, attributes_of_it: &[u8]) -> io::Result<()> {
    let mut netlink = open()?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
    let family = call(&mut netlink, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let family = attributes(&family)
        .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
        .and_then(|(_, value)| Some(u16::from_ne_bytes(*value.first_chunk()?)))
        .ok_or_else(|| io::Error::other("the kernel has no ethtool family"))?;
    let device = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    let body = [&nested(ETHTOOL_A_HEADER, &device), attributes_of_it].concat();
    call(&mut netlink, family, command, &body).map(drop)
}

fn open() -> io::Result<File> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkGeneric,
    )?;
    Ok(File::from(socket))
}

/// Asks, and waits for the acknowledgement; the attributes of the answer before it, if any.
fn call(netlink: &mut File, family: u16, command: u8, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    request.extend(((HEADERS_SIZE + body.len()) as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([command, 1, 0, 0]);
    request.extend(body);
    netlink.write_all(&request)?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 1 << 15];
    loop {
        let size = netlink.read(&mut buffer)?;
        let mut rest = &buffer[..size];
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let message = rest.get(..len).ok_or_else(cut_off)?;
            if u16::from_ne_bytes([header[4], header[5]]) == NLMSG_ERROR {
                let errno = message.get(16..).and_then(<[u8]>::first_chunk);
                return match i32::from_ne_bytes(*errno.ok_or_else(cut_off)?) {
                    0 => Ok(answer),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                };
            }
            answer = message.get(HEADERS_SIZE..).ok_or_else(cut_off)?.to_vec();
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::other("the kernel's answer is cut off")
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, value)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NLA_F_NESTED;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let bytes = [attribute(1, b"abc"), nested(2, &attribute(3, &[9]))].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read[0], (1, &b"abc"[..]));
        assert_eq!(read[1].0, 2);
        assert_eq!(attributes(read[1].1).next(), Some((3, &[9][..])));
        assert_eq!(attributes(&bytes[..6]).next(), None);
    }

    #[test]
    fn offloads_are_turned_off_and_an_unknown_one_is_refused() {
        if !::tests::lab::require_root("offload") {
            return;
        }
        let lab = ::tests::lab::Lab::new("bench-offload");
        let (a, b) = (lab.namespace("a"), lab.namespace("b"));
        lab.cable(&a, "one", &b, "two");
        let index = a.link("one").index;
        a.run(|| set_features(index, &SEGMENTATION)).expect("off");
        a.run(|| set_features(index, &CHECKSUM)).expect("off");
        let unknown = a.run(|| set_features(index, &["tx-magic"]));
        assert!(unknown.is_err());
    }
}
