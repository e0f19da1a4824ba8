//! Who holds a port of the host: best effort and never an error, because it is for messages and
//! for a check that a port is free, which a bind confirms where it matters.
//!
//! Reads `/proc/PID/net` of the calling thread for the socket's inode and then the descriptors of
//! every process for a link to it (proc(5), Documentation/networking/proc_net_tcp.rst).

use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use dataplane_core::nat::Transport;

/// Processes looked at; a host with more gets "another program" for an answer.
const PROCESSES_MAX: usize = 20_000;
/// Column of the local address in `/proc/net/tcp` and its kin.
const LOCAL_ADDRESS_COLUMN: usize = 1;
/// Column of the state.
const STATE_COLUMN: usize = 3;
/// Column of the inode.
const INODE_COLUMN: usize = 9;
/// `TCP_LISTEN` of `net/tcp_states.h`.
const LISTEN: &str = "0A";
/// `TCP_TIME_WAIT`.
const TIME_WAIT: &str = "06";
/// The state of an unconnected UDP socket: `TCP_CLOSE`.
const UNCONNECTED: &str = "07";

/// Names the program that listens on a port, with its process id where it can be seen.
pub fn of_port(transport: Transport, port: u16) -> String {
    let (files, state) = match transport {
        Transport::Tcp => (["tcp", "tcp6"], LISTEN),
        Transport::Udp => (["udp", "udp6"], UNCONNECTED),
    };
    let inode = files.iter().find_map(|file| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        inode_of(&table, port, state)
    });
    inode
        .and_then(|inode| process_of(&inode))
        .unwrap_or_else(|| "another program".to_owned())
}

/// The lowest port in `range` that a socket of the host uses as its own, with its owner. Sockets
/// that only wait for a connection's echoes to die out are left out: they receive nothing.
pub fn of_any_port(range: &RangeInclusive<u16>) -> Option<(u16, String)> {
    let files = ["tcp", "tcp6", "udp", "udp6"];
    let used = files
        .iter()
        .filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|table| sockets(&table))
        .filter(|socket| range.contains(&socket.port) && socket.state != TIME_WAIT)
        .min_by_key(|socket| socket.port)?;
    let owner = process_of(&used.inode).unwrap_or_else(|| "another program".to_owned());
    Some((used.port, owner))
}

/// The lowest port of a range that the host itself uses on `address`, or on any where there is
/// none, with its owner: what the guard would cut off. What stays within the host never meets the
/// guard, so sockets on loopback count only when that very address is meant.
pub fn of_range(
    transport: Transport,
    address: Option<IpAddr>,
    range: &RangeInclusive<u16>,
) -> Option<(u16, String)> {
    let files = match transport {
        Transport::Tcp => ["tcp", "tcp6"],
        Transport::Udp => ["udp", "udp6"],
    };
    let meets = |local: IpAddr| {
        let shared = address.is_none_or(|ip| ip == local || local.is_unspecified());
        shared && (!local.is_loopback() || address == Some(local))
    };
    let used = files
        .iter()
        .filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|table| sockets(&table))
        .filter(|socket| range.contains(&socket.port) && socket.state != TIME_WAIT)
        .filter(|socket| meets(socket.address))
        .min_by_key(|socket| socket.port)?;
    let owner = process_of(&used.inode).unwrap_or_else(|| "another program".to_owned());
    Some((used.port, owner))
}

/// An address as the tables print it: words of four bytes, each in the byte order of the machine.
fn address(digits: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for word in digits.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    if let Ok(octets) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(IpAddr::from(octets));
    }
    let octets = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(IpAddr::from(octets).to_canonical())
}

/// A line of `/proc/net/tcp` or its kin.
struct Socket {
    address: IpAddr,
    port: u16,
    state: String,
    inode: String,
}

fn sockets(table: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, port) = columns.get(LOCAL_ADDRESS_COLUMN)?.rsplit_once(':')?;
        Some(Socket {
            address: address(local)?,
            port: u16::from_str_radix(port, 16).ok()?,
            state: (*columns.get(STATE_COLUMN)?).to_owned(),
            inode: (*columns.get(INODE_COLUMN)?).to_owned(),
        })
    };
    table.lines().skip(1).filter_map(socket).collect()
}

fn inode_of(table: &str, port: u16, state: &str) -> Option<String> {
    sockets(table)
        .into_iter()
        .find(|socket| socket.port == port && socket.state == state)
        .map(|socket| socket.inode)
}

fn process_of(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes.take(PROCESSES_MAX) {
        let name = process.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = |path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == wanted.as_str());
        if descriptors
            .flatten()
            .any(|descriptor| holds(descriptor.path()))
        {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("'{}' (process {pid})", command.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_and_no_connection_of_it_is_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n   \
            1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n";
        assert_eq!(inode_of(table, 8_080, LISTEN).as_deref(), Some("222"));
        assert_eq!(inode_of(table, 8_081, LISTEN), None);
        let addresses: Vec<_> = sockets(table).iter().map(|s| s.address).collect();
        assert_eq!(addresses, [IpAddr::from([127, 0, 0, 1]); 2]);
        let mapped = "0000000000000000FFFF0000020000C0";
        assert_eq!(address(mapped), Some(IpAddr::from([192, 0, 0, 2])));
        assert_eq!(address("zz"), None);
        assert_eq!(inode_of("", 1, LISTEN), None);
        assert_eq!(inode_of("header\nshort\n", 1, LISTEN), None);
    }
}
