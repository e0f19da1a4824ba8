//! Which congestion controls of TCP this kernel has.

use std::ffi::OsString;
use std::fs;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

/// Those that are loaded; the kernel may have others as modules.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// Whether a socket could have it. The kernel loads its module for root.
pub fn known(name: &str) -> bool {
    let tried = || {
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let scratch = socket(family, kind, SockFlag::empty(), SockProtocol::Tcp)?;
        setsockopt(&scratch, sockopt::TcpCongestion, &OsString::from(name))
    };
    // Any other refusal is of this user, or of sockets as such, and is said by the measurement.
    !matches!(tried(), Err(Errno::ENOENT | Errno::EINVAL))
}

/// Their names, for people.
pub fn available() -> String {
    match fs::read_to_string(AVAILABLE) {
        Ok(names) => names.split_whitespace().collect::<Vec<_>>().join(", "),
        Err(error) => format!("those that {AVAILABLE} would list ({error})"),
    }
}
