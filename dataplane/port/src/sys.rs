//! The few system calls that several backends share, each behind a safe function.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Bytes of an interface name with its terminating zero (`IFNAMSIZ` of linux/if.h).
pub const INTERFACE_NAME_SIZE: usize = libc::IFNAMSIZ;

/// An interface name as the kernel takes it: zero-terminated in a fixed field.
///
/// `None` when the kernel would refuse it (`dev_valid_name` in net/core/dev.c).
pub fn interface_name(name: &str) -> Option<[libc::c_char; INTERFACE_NAME_SIZE]> {
    let valid = !name.is_empty()
        && name.len() < INTERFACE_NAME_SIZE
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b != 0 && b != b'/' && b != b':' && !b.is_ascii_whitespace());
    if !valid {
        return None;
    }
    let mut field = [0; INTERFACE_NAME_SIZE];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Some(field)
}

/// Turns the -1 of a system call into the error that it left in `errno`.
pub fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}

/// Takes ownership of a descriptor that a system call has just returned.
pub fn own(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "only a successful call's descriptor is owned");
    // SAFETY: the caller got `fd` from a system call that created it, and gives up its copy.
    // JUSTIFICATION: std has no opener for sockets of AF_PACKET or AF_NETLINK.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A socket of any family, closed on exec.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes plain integers and touches no memory of ours.
    // JUSTIFICATION: std only opens UDP, TCP and unix sockets.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd).map(own)
}

/// `setsockopt` with a value that is plain data for the kernel to read. A pointer within it, as
/// `sock_fprog` has one, must point at live memory of the length that it says.
pub fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let size = option_size::<T>();
    // SAFETY: `value` is a live reference to `size` bytes, which the kernel only reads.
    // JUSTIFICATION: std exposes none of the packet and filter options.
    let returned = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            size,
        )
    };
    check(returned).map(drop)
}

/// `getsockopt` into a value of which every bit pattern is valid.
pub fn get_option<T: PlainData>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::ZERO;
    let mut size = option_size::<T>();
    // SAFETY: `value` is a live, exclusive place of `size` bytes; the kernel writes at most that
    // many, and `PlainData` promises that any bytes are a valid `T`.
    // JUSTIFICATION: std exposes none of the packet options.
    let returned = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    check(returned)?;
    Ok(value)
}

/// Takes the error that a socket has met since it was last asked.
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    match get_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Types that the kernel may fill with any bytes.
///
/// # Safety
/// Every bit pattern is a valid value, and there is no padding that matters.
pub unsafe trait PlainData: Copy {
    /// All bytes zero.
    const ZERO: Self;
}

// SAFETY: an integer has no invalid bit pattern.
unsafe impl PlainData for c_int {
    const ZERO: Self = 0;
}

// SAFETY: two integers.
unsafe impl PlainData for libc::tpacket_stats {
    const ZERO: Self = Self {
        tp_packets: 0,
        tp_drops: 0,
    };
}

/// The size of `T` as the socket calls take it.
fn option_size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("option structs are a few bytes")
}

/// The index of the interface `name` in the calling thread's network namespace.
///
/// # Errors
/// `NotFound` when there is no such interface, or the name cannot be one.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let field = interface_name(name).ok_or(io::ErrorKind::NotFound)?;
    // SAFETY: `field` is a live, zero-terminated string.
    // JUSTIFICATION: std does not resolve interface names.
    let index = unsafe { libc::if_nametoindex(field.as_ptr()) };
    if index != 0 {
        return Ok(index);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENODEV) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Err(error)
}

/// The MTU of the interface `name` in the calling thread's network namespace.
pub fn interface_mtu(name: &str) -> io::Result<usize> {
    let mut request = libc::ifreq {
        ifr_name: interface_name(name).ok_or(io::ErrorKind::NotFound)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 },
    };
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: the request is a live, exclusive `ifreq`, which the kernel reads and writes.
    // JUSTIFICATION: std has no ioctl.
    let returned =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
    check(returned)?;
    // SAFETY: the kernel has written the MTU, and any bytes are an integer.
    // JUSTIFICATION: the struct is a union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Sends one message on a connected or routed socket.
pub fn send(fd: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice that is only read.
    // JUSTIFICATION: std has no send for sockets of AF_NETLINK.
    let sent = unsafe { libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    usize::try_from(sent).map_or_else(|_| Err(io::Error::last_os_error()), |_| Ok(()))
}

/// Receives one message into `buffer` and returns its size.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (at, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the pointer and the length are those of a live slice borrowed for writing.
    // JUSTIFICATION: std has no receive for sockets of AF_NETLINK.
    let received = unsafe { libc::recv(fd.as_raw_fd(), at, size, 0) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Whether a read on `fd` would return something now: a frame or an error.
pub fn readable(fd: RawFd) -> io::Result<bool> {
    let mut interest = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live, exclusive `pollfd`, as the count says; a closed `fd` is reported, not used.
    // JUSTIFICATION: std has no poll.
    let ready = unsafe { libc::poll(&raw mut interest, 1, 0) };
    check(ready).map(|count| count > 0)
}

/// Major and minor version of the running kernel, for what only a version tells; zero when its
/// name does not begin with numbers.
pub fn kernel_version() -> (u32, u32) {
    // SAFETY: `utsname` is arrays of characters, for which zero is valid.
    // JUSTIFICATION: the struct's size differs between targets, so no literal can name it all.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: a live, exclusive place of the type that the call fills.
    // JUSTIFICATION: std does not tell the kernel's version.
    if unsafe { libc::uname(&raw mut names) } != 0 {
        return (0, 0);
    }
    let release = names.release.iter().map(|&c| char::from(c.cast_unsigned()));
    parse_version(&release.take_while(|&c| c != '\0').collect::<String>())
}

/// The first two numbers of a release such as "6.1.0-18-amd64".
fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:1",
            "a b",
            "a\0b",
            "0123456789abcdef",
        ] {
            assert!(interface_name(bad).is_none(), "{bad:?}");
        }
        let field = interface_name("0123456789abcde").unwrap();
        assert_eq!(field[15], 0);
        assert_eq!(field[0], b'0' as libc::c_char);
    }

    #[test]
    fn loopback_has_an_index_and_a_missing_interface_is_not_found() {
        assert!(interface_index("lo").is_ok());
        let error = interface_index("cw-port-none").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn releases_are_read_up_to_the_minor_version() {
        assert_eq!(parse_version("6.1.0-18-amd64"), (6, 1));
        assert_eq!(parse_version("6.18"), (6, 18));
        assert_eq!(parse_version("7"), (7, 0));
        assert_eq!(parse_version("custom"), (0, 0));
        assert!(kernel_version() > (2, 0));
    }
}
