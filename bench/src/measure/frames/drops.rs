//! What a socket had no room for, by the kernel's own table of sockets.

use std::fs::read_to_string;
use std::io;
use std::net::UdpSocket;

use ::tests::lab::Namespace;
use nix::sys::stat::fstat;

/// Tables of sockets, of either family.
const TABLES: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];

/// Datagrams that a socket in `ns` has dropped since it was opened.
///
/// # Errors
/// When the tables cannot be read, or have no such socket.
pub fn of(ns: &Namespace, socket: &UdpSocket) -> io::Result<u64> {
    let inode = fstat(socket)?.st_ino;
    for table in TABLES {
        let table = ns.run(|| read_to_string(table));
        // A kernel without IPv6 has no second table.
        if let Some(drops) = find(&table.unwrap_or_default(), inode) {
            return Ok(drops);
        }
    }
    Err(io::Error::other("the socket is in no table of /proc/net"))
}

fn find(table: &str, inode: u64) -> Option<u64> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let own = fields.get(9)?.parse() == Ok(inode);
        own.then(|| fields.last()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn drops_are_the_last_field_of_the_sockets_line() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode ref pointer drops\n\
                     213: 0300000A:1451 00000000:0000 07 00000000:00000000 00:00000000 00000000 \
                     0 0 4242 2 0000000000000000 17\n";
        assert_eq!(find(table, 4242), Some(17));
        assert_eq!(find(table, 4243), None);
    }
}
